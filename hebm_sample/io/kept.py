"""Files that are kept to save work, with a hash of what is in them: what was cut or changed since
is noticed and made again, with one line.

    tensors   safetensors, the sha256 of names, types, shapes, values and facts among the facts
    JSON      an object, its sha256 under the key `sha256`
"""

import hashlib
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from hebm_sample.io.files import MAX_FILE_BYTES, parse_json, read_regular, write_atomically

__all__ = ["damaged", "kept_json", "keep_json", "open_tensors", "tensor_bytes"]

DIGEST = "sha256"


def tensor_bytes(tensors: Mapping[str, Any], facts: Mapping[str, str] | None = None) -> bytes:
    """A safetensors file of tensors on the CPU and facts, with their sha256."""
    from safetensors.torch import save

    known = dict(facts or {})
    return save(dict(tensors), {**known, DIGEST: _digest(tensors, known)})


def open_tensors(data: bytes, *, hashed: bool = False) -> tuple[dict[str, Any], dict[str, str]]:
    """(tensors, facts) of such a file's bytes.

    Arguments:
        hashed: Refuse a file without a hash, as other programs and earlier releases write them.

    Raises:
        ValueError: These are no such bytes, or not those that were hashed.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        tensors = load(data)
    except (SafetensorError, KeyError, RuntimeError, MemoryError) as error:
        raise ValueError(" ".join(str(error).split())) from error
    header: Any = parse_json(data[8 : 8 + int.from_bytes(data[:8], "little")])
    facts = dict(cast("dict[str, str]", header.get("__metadata__") or {}))
    wanted = facts.pop(DIGEST, None)
    if wanted is None and hashed:
        raise ValueError("it has no hash of its content")
    if wanted is not None and wanted != _digest(tensors, facts):
        raise ValueError("its content is not what was written")
    return tensors, facts


def _digest(tensors: Mapping[str, Any], facts: Mapping[str, str]) -> str:
    import torch

    digest = hashlib.sha256(json.dumps(dict(facts), sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name!a} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def keep_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write an object of JSON values; raises `EnvironmentFailure`."""
    plain = json.loads(json.dumps(dict(value), allow_nan=False))
    text = json.dumps({**plain, DIGEST: _json_digest(plain)}, indent=2, allow_nan=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, (text + "\n").encode())


def kept_json(path: Path) -> dict[str, Any] | None:
    """What `keep_json` wrote; None where there is nothing, or what there is was damaged since, of
    which a line is said.
    """
    try:
        data = read_regular(path, MAX_FILE_BYTES)
        found = parse_json(data or b"")
        wanted = found.pop(DIGEST, None)
        if wanted != _json_digest(found):
            raise ValueError("its content is not what was written")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, AttributeError) as error:
        damaged(path, error)
        return None
    return found


def _json_digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def damaged(path: Path, reason: object) -> None:
    """Say in a line that a file is made again."""
    warnings.warn(f"{path} is damaged and is made again: {reason}", stacklevel=3)
