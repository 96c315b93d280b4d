"""A model as files of limited size, which can be copied away at any moment.

    RUN/pieces/model-00007.json                 what version 7 is, and the sha256 of its pieces
    RUN/pieces/model-00007-0.safetensors, ...   its weights in half precision

Pieces are written beside and renamed, the description last, and the version before stays until the
next but one is whole; so a copy that is made within one interval has a whole version. Tensors are
named by part: `generator.`, `encoder.`, `prior.`.
"""

import json
import re
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from hebm_sample.config import ModelConfig
from hebm_sample.errors import UserInputError, WeightsError
from hebm_sample.generator.kinds import new_encoder, new_generator
from hebm_sample.hub.load import new_prior
from hebm_sample.io.files import parse_json, sha256_of, write_atomically
from hebm_sample.pipeline.pipeline import Pipeline

__all__ = ["collect", "join", "newest", "write"]

FORMAT_VERSION = 1
MEBIBYTE = 2**20
ROOM = 200  # bytes of a file's header for each tensor
KEPT = 2  # versions
_DESCRIPTION = re.compile(r"model-(\d{5})\.json")


def write(folder: Path, model: Pipeline, about: dict[str, Any], piece: float) -> Path:
    """Write the model as the next version; returns its description.

    Arguments:
        about: What else the description says, as JSON values.
        piece: MiB of a file at most.

    Raises:
        UserInputError: A tensor is larger than a piece.
        WeightsError: A weight does not fit half precision; the version before is the newest.
    """
    folder.mkdir(parents=True, exist_ok=True)
    number = max(_versions(folder), default=0) + 1
    rows = []
    for index, tensors in enumerate(_grouped(_tensors(model), piece)):
        path = folder / f"model-{number:05}-{index}.safetensors"
        write_atomically(path, safetensors.torch.save(tensors))
        size = path.stat().st_size
        rows.append({"file": path.name, "bytes": size, "sha256": sha256_of(path)})
    found = {"format_version": FORMAT_VERSION, "config": model.config.to_dict(), "files": rows}
    path = folder / f"model-{number:05}.json"
    write_atomically(path, (json.dumps(found | {"about": about}, indent=1) + "\n").encode())
    for old in sorted(_versions(folder))[:-KEPT]:
        for name in folder.glob(f"model-{old:05}[-.]*"):
            name.unlink(missing_ok=True)
    return path


def _versions(folder: Path) -> dict[int, Path]:
    """Descriptions by version; those whose pieces never followed too."""
    matches = ((_DESCRIPTION.fullmatch(p.name), p) for p in folder.glob("model-*.json"))
    return {int(match[1]): path for match, path in matches if match}


def _tensors(model: Pipeline) -> dict[str, Tensor]:
    """All weights, half precision, on the CPU."""
    parts = {"generator": model.generator, "encoder": model.encoder, "prior": model.prior}
    found = {}
    for part, module in parts.items():
        for name, value in (module.state_dict() if module is not None else {}).items():
            half = value.detach().to("cpu", torch.float16).contiguous()
            if not torch.isfinite(half).all():
                raise WeightsError(f"{part}.{name} does not fit half precision")
            found[f"{part}.{name}"] = half
    return found


def _grouped(tensors: dict[str, Tensor], piece: float) -> list[dict[str, Tensor]]:
    """Into as few pieces as come of filling one after another."""
    most, groups, used = piece * MEBIBYTE, [{}], 0.0
    for name, value in tensors.items():
        size = 2 * value.numel() + ROOM
        if size > most:
            raise UserInputError(
                f"{name} has {size:,} bytes, more than a piece of {piece:g} MiB; raise --piece"
            )
        if used + size > most:
            groups.append({})
            used = 0.0
        groups[-1][name] = value
        used += size
    return groups


def newest(folder: Path) -> dict[str, Any]:
    """The description of the newest version that is whole in a folder, or in its `pieces/`.

    Raises:
        UserInputError: There is none.
    """
    home = folder / "pieces" if (folder / "pieces").is_dir() else folder
    faults = []
    for _, path in sorted(_versions(home).items(), reverse=True):
        found = parse_json(path.read_bytes())
        bad = [row["file"] for row in found["files"] if not _whole(home, row)]
        if not bad and found["format_version"] == FORMAT_VERSION:
            return found | {"folder": home, "name": path.name}
        faults.append(f"{path.name} lacks {', '.join(bad) or 'a format that is known'}")
    raise UserInputError(
        f"{home} holds no whole version of a model ({'; '.join(faults) or 'no model-*.json'})"
    )


def _whole(home: Path, row: dict[str, Any]) -> bool:
    path = home / row["file"]
    return path.is_file() and sha256_of(path) == row["sha256"]


def collect(folder: Path, out: Path) -> list[Path]:
    """Copy the newest whole version, description last; returns the copies."""
    found = newest(folder)
    out.mkdir(parents=True, exist_ok=True)
    copies = []
    for name in (*(row["file"] for row in found["files"]), found["name"]):
        write_atomically(out / name, (found["folder"] / name).read_bytes())
        copies.append(out / name)
    return copies


def join(folder: Path) -> tuple[Pipeline, dict[str, Any]]:
    """The newest whole version as a model on the CPU, and its description."""
    found = newest(folder)
    tensors: dict[str, Tensor] = {}
    for row in found["files"]:
        tensors |= safetensors.torch.load_file(found["folder"] / row["file"])
    config = ModelConfig.from_dict(found["config"])
    prior = None if config.prior is None else new_prior(config)
    modules: dict[str, nn.Module | None] = {
        "generator": new_generator(config.generator),
        "encoder": new_encoder(config.generator),
        "prior": prior,
    }
    for part, module in modules.items():
        if module is not None:
            prefix = f"{part}."
            own = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
            module.load_state_dict({k: v.float() for k, v in own.items()})
    model = Pipeline(config, modules["generator"], prior, modules["encoder"])  # pyright: ignore
    return model, found
