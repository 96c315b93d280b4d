"""safetensors files to modules and back: strict, finite, bounded.

safetensors promises that a file never makes the reader take more memory than the file has bytes;
it checks neither which tensors are there nor their values. So: the key sets must be equal, every
shape must agree, every tensor must be F16, BF16 or F32 and finite, no key may appear twice. All of
it is known before the module changes, so that a failed load leaves the module as it was.
"""

import hashlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load as parse_safetensors
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn

from hebm_sample.errors import WeightsError
from hebm_sample.io.files import MAX_FILE_BYTES, parse_json, read_capped, short, write_atomically

__all__ = ["content_digest", "load_weights", "save_weights", "weights_bytes"]

# A header takes about 100 bytes a tensor; safetensors itself would parse 100 MB for over a second.
MAX_HEADER_BYTES = 8_000_000
FLOATS = (torch.float16, torch.bfloat16, torch.float32)


def load_weights(
    module: nn.Module,
    path: str | os.PathLike[str],
    *,
    data: bytes | None = None,
    dtype: torch.dtype | None = torch.float32,
    prefix: str = "",
) -> None:
    """Fill a module (on the meta device or not) with the tensors of a safetensors file.

    Tensors are assigned on the device where the module has them, the CPU if it is on meta.

    Arguments:
        module: Its persistent parameters and buffers are filled; others are its builder's affair.
        path: The file.
        data: What is in it, where that has been read and verified: it is not read again.
        dtype: What the tensors become in memory; None keeps the module's own types.
        prefix: Only the file's keys that begin so are looked at, less the prefix.

    Raises:
        WeightsError: The file is missing, malformed or does not fit; the module is unchanged.
    """
    path = Path(path)
    # Not a memory map: a file that is truncated meanwhile would kill the process.
    found = _parsed(path, read_capped(path, MAX_FILE_BYTES) if data is None else data)
    found = {k.removeprefix(prefix): v for k, v in found.items() if k.startswith(prefix)}
    wanted = module.state_dict()
    _check_fit(path, found, wanted)
    ready: dict[str, Tensor] = {}
    for key, goal in wanted.items():
        device = torch.device("cpu") if goal.is_meta else goal.device
        ready[key] = found[key].to(device=device, dtype=dtype or goal.dtype)
    _check_finite(str(path), ready)
    module.load_state_dict(ready, strict=True, assign=True)


def save_weights(
    module: nn.Module,
    path: str | os.PathLike[str],
    dtype: torch.dtype = torch.float16,
) -> None:
    """Write a module's persistent tensors, atomically; equal tensors give equal bytes.

    Raises:
        WeightsError: A tensor is no float, or not finite once in `dtype`; nothing is written.
        EnvironmentFailure: The disk is full or read-only; an older file is kept.
    """
    path = Path(path)
    write_atomically(path, weights_bytes(module, dtype, str(path)))


def weights_bytes(module: nn.Module, dtype: torch.dtype, name: str) -> bytes:
    """What `save_weights` writes.

    Arguments:
        name: Of the file, for errors.
    """
    if dtype not in FLOATS:
        raise WeightsError(
            f"dtype is {dtype}; weights are stored as {_names(map(_plain, FLOATS))}"
        )
    tensors = module.state_dict()
    other = [key for key, value in tensors.items() if value.dtype not in FLOATS]
    if other:
        raise WeightsError(
            f"{name} is not written: {_names(other)} is not float16, bfloat16 or float32; "
            "make such buffers non-persistent"
        )
    # A copy each: safetensors refuses tensors that share memory or are not contiguous.
    tensors = {
        key: value.detach().to("cpu", dtype, copy=True).contiguous()
        for key, value in sorted(tensors.items())
    }
    _check_finite(f"{name} is not written as {_plain(dtype)}", tensors)
    return to_safetensors(tensors)


def content_digest(
    *modules: nn.Module, stored: torch.dtype | None = None, without: tuple[str, ...] = ()
) -> str:
    """The sha256 of all persistent tensors of some modules: names, types, shapes and every bit.

    It is the same on every device and in every memory layout, and changes with any weight.

    Arguments:
        stored: Of the tensors once they were saved as this type and loaded again; as they are if
            None.
        without: Beginnings of names that are left out.

    >>> a, b = nn.Linear(2, 2), nn.Linear(2, 2)
    >>> b.load_state_dict(a.state_dict())
    <All keys matched successfully>
    >>> content_digest(a) == content_digest(b), content_digest(a, b) == content_digest(a)
    (True, False)
    """
    digest = hashlib.sha256()
    for module in modules:
        digest.update(b"module\n")
        for key, value in sorted(module.state_dict().items()):
            if key.startswith(without):
                continue
            tensor = value.detach().cpu().contiguous()
            tensor = tensor if stored is None else tensor.to(stored).to(tensor.dtype)
            digest.update(f"{key!a} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _parsed(path: Path, data: bytes) -> dict[str, Tensor]:
    try:
        _check_header(data)
        tensors = parse_safetensors(data)
    except (SafetensorError, ValueError, KeyError, RuntimeError, MemoryError) as error:
        reason = short(str(error) or type(error).__name__)[1:-1]
        raise WeightsError(f"{path} is no valid safetensors file: {reason}") from error
    other = [f"{key!a} ({_plain(t.dtype)})" for key, t in tensors.items() if t.dtype not in FLOATS]
    if other:
        raise WeightsError(
            f"{path} holds tensors that are not float16, bfloat16 or float32: {_names(other)}"
        )
    return tensors


def _check_header(data: bytes) -> None:
    """What safetensors leaves unchecked: a header of 100 MB, and keys that appear twice."""
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or length > len(data) - 8:
        raise ValueError(f"the header ends after the file's {len(data)} bytes")
    if length > MAX_HEADER_BYTES:
        raise ValueError(f"the header has {length} bytes, more than {MAX_HEADER_BYTES}")
    parse_json(data[8 : 8 + length])


def _check_fit(path: Path, found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    faults: list[str] = []
    if missing := wanted.keys() - found.keys():
        faults.append(f"missing {_names(missing)}")
    if unexpected := found.keys() - wanted.keys():
        faults.append(f"unexpected {_names(unexpected)}")
    shapes = [
        f"{key} is {tuple(found[key].shape)}, not {tuple(wanted[key].shape)}"
        for key in found.keys() & wanted.keys()
        if found[key].shape != wanted[key].shape
    ]
    if shapes:
        faults.append(f"shapes: {_names(shapes, quote=False)}")
    if faults:
        raise WeightsError(f"{path} does not fit its config.json: {'; '.join(faults)}")


def _check_finite(where: str, tensors: Mapping[str, Tensor]) -> None:
    bad = [key for key, value in tensors.items() if not bool(torch.isfinite(value).all())]
    if bad:
        raise WeightsError(f"{where}: non-finite values in {_names(bad)}")


def _names(names: Iterable[str], quote: bool = True) -> str:
    """Sorted, on one line whatever the names hold, the first ten and the number of the rest."""
    ordered = sorted(names)
    shown = [ascii(name) if quote else ascii(name)[1:-1] for name in ordered[:10]]
    shown = [text if len(text) <= 200 else text[:197] + "..." for text in shown]
    more = f" and {len(ordered) - 10} more" if len(ordered) > 10 else ""
    return ", ".join(shown) + more


def _plain(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
