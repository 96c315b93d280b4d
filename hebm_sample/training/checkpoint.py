"""Checkpoints that a kill, a full disk or a flipped bit cannot turn into a broken run.

A checkpoint is a folder `checkpoint-00001200/`: one safetensors file a module, one for the
optimiser's state, and `state.json`, written last, with the size and sha256 of the others. It is
built under a temporary name, every file is synced, and the folder is renamed: what bears the final
name is whole, and the one before stays until then. Nothing is pickled: tensors are safetensors,
everything else is JSON.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
import socket
import uuid
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.optim import Optimizer

from hebm_sample.errors import EnvironmentFailure, UserInputError, WeightsError

__all__ = [
    "check_identity",
    "latest_checkpoint",
    "load_checkpoint",
    "load_part",
    "read_state",
    "save_checkpoint",
]

FORMAT_VERSION = 1
STATE_NAME = "state.json"
OPTIMIZER_NAME = "optimizer"
# A second checkpoint of the same step gets a version: `checkpoint-00001200.1`.
_FINAL = re.compile(r"checkpoint-(\d{8,})(?:\.(\d+))?")
_TEMPORARY = re.compile(r"\.checkpoint-tmp-(.+)-(\d+)-[0-9a-f]{32}")


def save_checkpoint(
    run_dir: str | Path,
    step: int,
    *,
    modules: Mapping[str, nn.Module],
    optimizer: Optimizer | None = None,
    state: dict[str, Any],
    keep: int = 2,
) -> Path:
    """Write the checkpoint of `step` and return its folder; older ones beyond `keep` are removed.

    Arguments:
        run_dir: The run's folder; made if need be.
        step: Steps done.
        modules: What to save, by file name; copies with averaged weights are modules of their own.
        optimizer: Its state is saved by the position of each parameter; None saves none, for
            weights that are kept and not trained further.
        state: Anything else, as JSON values; floats survive exactly.
        keep: Checkpoints to leave, this one included; later steps than `step` are never touched.

    Raises `EnvironmentFailure` if the disk fails; the checkpoint before is then still the latest.
    """
    run_dir = Path(run_dir)
    for name in modules:
        if not re.fullmatch(r"[A-Za-z0-9_.-]+", name) or name == OPTIMIZER_NAME:
            raise UserInputError(f"a module of a checkpoint cannot be called {name!r}")
    building = run_dir / f".checkpoint-tmp-{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex}"
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        os.mkdir(building)
        _write_contents(building, step, modules, optimizer, state)
        final = _free_name(run_dir, step)
        os.rename(building, final)
        _sync_folder(run_dir)
    except OSError as error:
        raise EnvironmentFailure(
            f"the checkpoint of step {step} could not be written to {run_dir}: "
            f"{error.strerror or error}; the one before is kept"
        ) from error
    finally:
        shutil.rmtree(building, ignore_errors=True)
    _prune(run_dir, final, max(1, keep))
    return final


def latest_checkpoint(run_dir: str | Path) -> Path | None:
    """The newest checkpoint that is whole, or None; broken ones are passed over with a warning."""
    for path in reversed(_checkpoints(Path(run_dir)).values()):
        try:
            header = _read_header(path)
            for name in header["files"]:
                _read_file(path, name, header)
        except WeightsError as error:
            warnings.warn(f"passed over a broken checkpoint: {error}", stacklevel=2)
        else:
            return path
    return None


def read_state(path: str | Path) -> dict[str, Any]:
    """The `state` that a checkpoint was saved with, without its tensors."""
    return _read_header(Path(path))["state"]


def check_start(run_dir: Path, resume: bool) -> None:
    """`UserInputError` if a folder holds a run that is not to be gone on with, or none that is."""
    held = latest_checkpoint(run_dir) is not None
    if held and not resume:
        raise UserInputError(
            f"{run_dir} already holds a run; go on with --resume, or choose another folder"
        )
    if resume and not held:
        raise UserInputError(
            f"nothing to resume in {run_dir}: it holds no whole checkpoint; start without --resume"
        )


def check_identity(
    run_dir: Path, found: dict[str, Any], wanted: dict[str, Any], defaults: dict[str, Any]
) -> None:
    """`UserInputError` where a checkpoint is not of the run that would go on from it.

    Arguments:
        found: The identity in the checkpoint's state.
        wanted: The run's own.
        defaults: Of the settings that must agree: what a checkpoint from before one of them had.
    """
    wanted, found, defaults = json.loads(json.dumps([wanted, found, defaults]))
    for identity in (wanted, found):  # training knows nothing of particles and crops
        config = identity.get("config", {})
        config.get("sampling", {}).pop("particles", None)
        config.pop("crop", None)
        config.pop("training", None)  # records; what was trained is told by its hash
        if identity.get("kind") == "decoder":  # whose samples are named by their hash
            config.pop("sampling", None)
    old, new = (
        {name: identity.get("settings", {}).get(name, value) for name, value in defaults.items()}
        for identity in (found, wanted)
    )
    # What a run is made on is more than its data.
    of_generator = wanted["kind"] == "generator"
    named = {"data": "data or KL weights" if of_generator else "data, options or frozen networks"}
    differing = sorted(
        named.get(k, k) for k in wanted if k != "settings" and found.get(k) != wanted[k]
    )
    if which := ", ".join(sorted(name for name in defaults if old[name] != new[name])):
        differing = sorted([*differing, f"settings ({which})"])
    if differing:
        raise UserInputError(
            f"the checkpoint in {run_dir} was made with other {', '.join(differing)}; "
            "resume with the same options, or start in another folder"
        )


def load_checkpoint(
    path: str | Path, *, modules: Mapping[str, nn.Module], optimizer: Optimizer | None
) -> dict[str, Any]:
    """Restore modules and optimiser in place, bit for bit, and return the `state` saved with them.

    With an optimiser the modules must be exactly those saved; without one (export, evaluation) a
    part of them will do. Names, shapes and dtypes are checked before anything is changed; raises
    `WeightsError` if they do not fit or the files are damaged.
    """
    path = Path(path)
    header = _read_header(path)
    saved = {name.removesuffix(".safetensors") for name in header["files"]} - {OPTIMIZER_NAME}
    unknown = sorted(set(modules) - saved)
    left = sorted(saved - set(modules)) if optimizer is not None else []
    if unknown or left:
        raise WeightsError(
            f"{path} has the modules {sorted(saved)}; it lacks {unknown}, and {left} have no place"
        )
    tensors = {name: _read_tensors(path, name, header) for name in modules}
    for name, module in modules.items():
        _check_fit(f"{path}, {name}", module.state_dict(), tensors[name])
    if optimizer is not None:
        _restore_optimizer(
            optimizer, _read_tensors(path, OPTIMIZER_NAME, header), header["optimizer"], path
        )
    for name, module in modules.items():
        module.load_state_dict(tensors[name], strict=True)
    return header["state"]


def load_part(path: str | Path, name: str, prefix: str, module: nn.Module) -> None:
    """Restore `module` from those tensors of the saved module `name` that begin with `prefix`.

    Raises:
        WeightsError: They do not fit, or the files are damaged.
    """
    path = Path(path)
    tensors = _read_tensors(path, name, _read_header(path))
    own = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    _check_fit(f"{path}, {name}", module.state_dict(), own)
    module.load_state_dict(own, strict=True)


# Writing


def _write_contents(
    folder: Path,
    step: int,
    modules: Mapping[str, nn.Module],
    optimizer: Optimizer | None,
    state: dict[str, Any],
) -> None:
    optimizer_rest: dict[str, Any] = {}
    optimizers: dict[str, dict[str, Tensor]] = {}
    if optimizer is not None:
        optimizers[OPTIMIZER_NAME], optimizer_rest = _flatten_optimizer(optimizer)
    # A generator, so that one module at a time is held as bytes.
    contents = ((name, module.state_dict()) for name, module in modules.items())
    files = {}
    for name, tensors in (*contents, *optimizers.items()):
        data = safetensors.torch.save(_saveable(tensors))
        _write_file(folder / f"{name}.safetensors", data)
        files[f"{name}.safetensors"] = {
            "size": len(data),
            "sha256": hashlib.sha256(data).hexdigest(),
        }
    header = {
        "format_version": FORMAT_VERSION,
        "step": step,
        "files": files,
        "optimizer": optimizer_rest,
        "state": state,
    }
    header["sha256"] = _digest(header)
    _write_file(folder / STATE_NAME, json.dumps(header, indent=1).encode())
    _sync_folder(folder)


def _digest(header: dict[str, Any]) -> str:
    """Hash of what state.json says; through JSON first, so that it is what a reader sees."""
    plain = {k: v for k, v in json.loads(json.dumps(header)).items() if k != "sha256"}
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def _write_file(path: Path, data: bytes) -> None:
    with open(path, "xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """Make names in the folder durable, where folders can be synced at all."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _saveable(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous tensors on the CPU, none sharing memory: safetensors takes no others."""
    result, seen = {}, set()
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        pointer = tensor.untyped_storage().data_ptr()
        result[name] = tensor.clone() if pointer in seen else tensor
        seen.add(pointer)
    return result


def _flatten_optimizer(optimizer: Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """({"3.exp_avg": tensor, ...}, {"param_groups": ..., "values": {"3.name": number}})."""
    packed = optimizer.state_dict()
    tensors, values = {}, {}
    for index, entries in packed["state"].items():
        for name, value in entries.items():
            (tensors if isinstance(value, Tensor) else values)[f"{index}.{name}"] = value
    return tensors, {"param_groups": packed["param_groups"], "values": values}


def _free_name(run_dir: Path, step: int) -> Path:
    name, version = f"checkpoint-{step:08d}", 0
    while (path := run_dir / (f"{name}.{version}" if version else name)).exists():
        version += 1
    return path


def _checkpoints(run_dir: Path) -> dict[tuple[int, int], Path]:
    """Folders with a checkpoint's name by (step, version), oldest first."""
    found = {}
    for path in run_dir.iterdir() if run_dir.is_dir() else ():
        if (match := _FINAL.fullmatch(path.name)) and path.is_dir():
            found[int(match[1]), int(match[2] or 0)] = path
    return {k: found[k] for k in sorted(found)}


def _prune(run_dir: Path, newest: Path, keep: int) -> None:
    """Remove older checkpoints beyond `keep`, and what dead processes here left half-built."""
    found = _checkpoints(run_dir)
    last = next(k for k, path in found.items() if path == newest)
    doomed = [p for k, p in found.items() if k[0] == last[0] and k != last]  # superseded
    older = [p for k, p in found.items() if k[0] < last[0]]
    doomed += older[: max(0, len(older) - (keep - 1))]
    doomed += [p for p in run_dir.iterdir() if _is_orphan(p.name)]
    for path in doomed:
        # state.json goes first: a half-removed checkpoint must not look like one.
        with contextlib.suppress(OSError):
            (path / STATE_NAME).unlink(missing_ok=True)
        shutil.rmtree(path, ignore_errors=True)


def _is_orphan(name: str) -> bool:
    match = _TEMPORARY.fullmatch(name)
    if match is None or match[1] != socket.gethostname() or os.name != "posix":
        return False
    try:
        os.kill(int(match[2]), 0)
    except OSError as error:
        return isinstance(error, ProcessLookupError)
    return False


# Reading


def _read_header(path: Path) -> dict[str, Any]:
    try:
        header = json.loads((path / STATE_NAME).read_bytes())
    except FileNotFoundError as error:
        raise WeightsError(f"{path} has no {STATE_NAME}: it is not a whole checkpoint") from error
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path / STATE_NAME} cannot be read: {error}") from error
    if not isinstance(header, dict) or header.get("format_version") != FORMAT_VERSION:
        raise WeightsError(f"{path / STATE_NAME} is not of format {FORMAT_VERSION}")
    if header.get("sha256") != _digest(header):
        raise WeightsError(f"{path / STATE_NAME} is damaged: it does not match its own sha256")
    return header


def _read_file(path: Path, name: str, header: dict[str, Any]) -> bytes:
    """A file's bytes, checked against state.json."""
    file, expected = path / name, header["files"].get(name)
    if expected is None or Path(name).name != name:
        raise WeightsError(f"{path / STATE_NAME} does not describe {name}")
    try:
        data = file.read_bytes()
    except OSError as error:
        raise WeightsError(f"{file} cannot be read: {error.strerror}") from error
    if len(data) != expected["size"]:
        raise WeightsError(f"{file} has {len(data)} bytes instead of {expected['size']}")
    if (digest := hashlib.sha256(data).hexdigest()) != expected["sha256"]:
        raise WeightsError(f"{file} has sha256 {digest} instead of {expected['sha256']}")
    return data


def _read_tensors(path: Path, name: str, header: dict[str, Any]) -> dict[str, Tensor]:
    data = _read_file(path, f"{name}.safetensors", header)
    try:
        return safetensors.torch.load(data)
    except SafetensorError as error:
        raise WeightsError(
            f"{path / name}.safetensors is not a safetensors file: {error}"
        ) from error


def _check_fit(where: str, present: Mapping[str, Tensor], saved: Mapping[str, Tensor]) -> None:
    missing = sorted(present.keys() - saved.keys())
    unexpected = sorted(saved.keys() - present.keys())
    if missing or unexpected:
        raise WeightsError(f"{where}: missing {missing}, unexpected {unexpected}")
    for key, tensor in present.items():
        if tensor.shape != saved[key].shape or tensor.dtype != saved[key].dtype:
            raise WeightsError(
                f"{where}: {key} is {tuple(saved[key].shape)} {saved[key].dtype} "
                f"instead of {tuple(tensor.shape)} {tensor.dtype}"
            )


def _restore_optimizer(
    optimizer: Optimizer, tensors: dict[str, Tensor], rest: dict[str, Any], path: Path
) -> None:
    groups = [dict(g) for g in rest["param_groups"]]
    sizes = [len(g["params"]) for g in groups]
    present = [len(g["params"]) for g in optimizer.param_groups]
    if sizes != present:
        raise WeightsError(
            f"{path}: the optimiser has groups of {sizes} parameters, not {present}"
        )
    owners: dict[int, tuple[Tensor, dict[str, Any]]] = {}
    for group, current in zip(groups, optimizer.param_groups, strict=True):
        group |= {k: tuple(v) for k, v in group.items() if isinstance(current.get(k), tuple)}
        # How an update is computed is this process's affair.
        group |= {k: current[k] for k in ("foreach", "fused") if k in current}
        for index, parameter in zip(group["params"], current["params"], strict=True):
            owners[index] = parameter, group
    # torch would cast to the parameter's dtype and drop the memory layout; both must survive.
    optimizer.load_state_dict({"state": {}, "param_groups": groups})
    for key, value in (*tensors.items(), *rest["values"].items()):
        index, name = key.split(".", 1)
        parameter, group = owners[int(index)]
        if isinstance(value, Tensor):
            value = _like(parameter, group, name, value)
        optimizer.state[parameter][name] = value


def _like(parameter: Tensor, group: dict[str, Any], name: str, value: Tensor) -> Tensor:
    """State with its parameter's device and strides; step counters stay where torch keeps them."""
    if name == "step":
        on_device = group.get("capturable") or group.get("fused")
        return value.to(parameter.device) if on_device else value
    if value.shape != parameter.shape:
        return value.to(parameter.device)
    return torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(value)
