"""From modules to a model folder, laid out as a Hub repository."""

import contextlib
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Generator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import Module

from hebm_sample.config import GeneratorConfig, ModelConfig, NvaeConfig
from hebm_sample.errors import EnvironmentFailure, UserInputError
from hebm_sample.hub.card import SAMPLES_NAME, model_card
from hebm_sample.hub.manifest import (
    CALIBRATION_NAME,
    MANIFEST_NAME,
    MAX_CALIBRATION_BYTES,
    MODEL_FILES,
    FileRow,
    ModelRow,
    read_row,
    write_manifest,
)
from hebm_sample.hub.weights import weights_bytes
from hebm_sample.io.files import (
    MAX_FILE_BYTES,
    is_run_folder,
    read_regular,
    short,
    sync_folder,
    write_atomically,
)
from hebm_sample.io.lock import exclusive

if TYPE_CHECKING:
    from hebm_sample.metrics.typicality import Calibration

__all__ = [
    "UNSTATED_LICENCE",
    "check_model_folder",
    "check_new_model",
    "check_sizes",
    "licence_of",
    "stored_dtype",
    "write_calibration",
    "write_config",
    "write_model_folder",
]

_PARTS = ("generator", "prior", "encoder")
CARD_NAME = "README.md"
MAX_SAMPLES_BYTES = 2**24
LONGEST_NAME, LONGEST_PATH = 255, 4000  # bytes, of a folder
_FILES = (
    *("config.json", CARD_NAME, SAMPLES_NAME, MANIFEST_NAME, CALIBRATION_NAME),
    *(f"{part}.safetensors" for part in _PARTS),
)

UNSTATED_LICENCE = "unstated: that of the training data"
NVAE_LICENCE = "NVIDIA Source Code License for NVAE, non-commercial use only"


def licence_of(config: ModelConfig, stated: str = UNSTATED_LICENCE) -> str:
    """The licence of a model's weights: what is stated; of a model on an imported NVAE, which
    carries NVAE's terms along, those where nothing is.
    """
    imported = isinstance(config.generator, NvaeConfig)
    return NVAE_LICENCE if imported and stated == UNSTATED_LICENCE else stated


def check_model_folder(folder: Path, overwrite: bool = False) -> None:
    """`UserInputError` if `write_model_folder` would replace what it must not."""
    there = [name for name in _FILES if os.path.lexists(folder / name)]
    if not there:
        return
    if folders := [name for name in there if (folder / name).is_dir()]:
        raise UserInputError(
            f"{folder / folders[0]} is a folder, where a model has a file; move it away, or "
            "choose another folder"
        )
    if not overwrite:
        raise UserInputError(
            f"{folder} already holds {', '.join(there)}; choose another folder, or replace the "
            "model there with --overwrite (overwrite=True)"
        )
    if MANIFEST_NAME not in there and not _is_config(folder / "config.json"):
        raise UserInputError(
            f"{folder} holds {', '.join(there)} and no model of hebm_sample; choose another folder"
        )


def check_new_model(folder: Path, overwrite: bool = False) -> None:
    """Before anything is read or made for a model: that it can be written into the folder.

    Raises:
        UserInputError: A file is in the way, the folder is a training run's, which a model there
            would hide, or `check_model_folder` refuses it.
    """
    place = folder
    while not os.path.lexists(place) and place != place.parent:
        place = place.parent
    if not place.is_dir():
        kind = "a file" if place.exists() else "a link to nothing"
        raise UserInputError(
            f"{folder} cannot be written: {place} is {kind}; name another folder for the model"
            if place != folder
            else f"{folder} is {kind}; name a folder for the model"
        )
    long = any(len(os.fsencode(part)) > LONGEST_NAME for part in folder.parts)
    if long or len(os.fsencode(folder)) > LONGEST_PATH:
        raise UserInputError(f"the name {short(str(folder))} is too long for a folder")
    if is_run_folder(folder):
        raise UserInputError(
            f"{folder} is the folder of a training run, which a model in it would hide; name "
            "another folder for the model"
        )
    check_model_folder(folder, overwrite)


def check_sizes(parts: Mapping[str, Module | None], dtype: torch.dtype) -> None:
    """`UserInputError` if a part's file would be larger than any that is loaded.

    Arguments:
        parts: The networks, on the meta device or not, by the names of their files.
    """
    for name, module in parts.items():
        tensors = {} if module is None else module.state_dict()
        size = sum(value.numel() for value in tensors.values()) * dtype.itemsize
        if size > MAX_FILE_BYTES:
            raise UserInputError(
                f"{name} would have {size} bytes, and files of a model have at most "
                f"{MAX_FILE_BYTES}: the network is too large to be stored as "
                f"{str(dtype).removeprefix('torch.')}"
            )


def _is_config(path: Path) -> bool:
    """Whether a model is described there, as in a folder whose writing was interrupted."""
    try:
        ModelConfig.from_dict(json.loads(path.read_bytes()))
    except (OSError, ValueError, RecursionError):
        return False
    return True


def write_model_folder(
    folder: Path,
    config: ModelConfig,
    generator: Module,
    prior: Module | None,
    encoder: Module | None,
    *,
    dtype: torch.dtype = torch.float16,
    licence: str = UNSTATED_LICENCE,
    figures: Mapping[str, Any] | None = None,
    card: Path | str | None = None,
    calibration: "Calibration | None" = None,
    samples: bytes | None = None,
    overwrite: bool = False,
) -> ModelRow:
    """Write config, weights, card and manifest row; returns the row.

    All of it is written beside its place first, and the row is that of the bytes that were
    written. A model that was there stays whole until then; if the power fails while the files
    change places, the folder has no row and is refused. Of several writers the last one's model
    is there, and no mixture.

    Arguments:
        card: An existing card's path, or its text; a plain one is written if None. What cannot be
            read is refused before anything is written.
        calibration: Of the scores of its images; None for none.
        samples: The PNG that the card shows; that beside an existing card if None.
        overwrite: Replace a model that is there.

    Raises:
        UserInputError: The folder cannot be made there, is a training run's, or holds such files
            already: a model's without `overwrite`, or others, which are never touched. Or the
            networks are larger than any that is loaded.
        EnvironmentFailure: The disk is full or read-only, or the card cannot be read.
    """
    licence = licence_of(config, licence)
    check_new_model(folder, overwrite)
    figures = dict(figures or {})
    parts = zip(_PARTS, (generator, prior, encoder), strict=True)
    modules = {f"{part}.safetensors": module for part, module in parts}
    check_sizes(modules, dtype)
    contents: dict[str, bytes | Module | None] = {
        "config.json": _described(config),
        **modules,
        CALIBRATION_NAME: None if calibration is None else _json(calibration),
        CARD_NAME: _text(card, config, licence, figures, samples),
        SAMPLES_NAME: samples or _beside(card),
    }
    try:
        with _staging_for(folder) as staging:
            files = {
                name: _write(staging / name, content, stored_dtype(config, name, content, dtype))
                for name, content in contents.items()
                if content is not None
            }
            files = {k: v for k, v in files.items() if k not in (CARD_NAME, SAMPLES_NAME)}
            size = config.generator.image_size
            row = ModelRow(config.name, size, licence, files, figures=figures)
            write_manifest(staging / MANIFEST_NAME, [row])
            _install(staging, folder, overwrite)
    except OSError as error:
        raise EnvironmentFailure(
            f"the folder {folder} cannot be written: {error.strerror or error}"
        ) from error
    return row


def _text(
    card: Path | str | None,
    config: ModelConfig,
    licence: str,
    figures: Mapping[str, Any],
    samples: bytes | None,
) -> bytes:
    """A card as it stands, whatever its encoding; a plain one for None."""
    if not isinstance(card, Path):
        shown = None if samples is None else "Samples"
        text = card or model_card(config, licence=licence, figures=figures, samples=shown)
        return text.encode(errors="replace")
    try:
        return card.read_bytes()
    except OSError as error:
        raise EnvironmentFailure(
            f"the model's card {card} cannot be read ({error.strerror or error}), so nothing was "
            "written; remove it, or mend it"
        ) from error


def _beside(card: Path | str | None) -> bytes | None:
    """The image that an existing card shows."""
    if not isinstance(card, Path):
        return None
    try:
        return read_regular(card.parent / SAMPLES_NAME, MAX_SAMPLES_BYTES)
    except OSError:
        return None


def stored_dtype(
    config: ModelConfig, name: str, content: bytes | Module, dtype: torch.dtype
) -> torch.dtype:
    """What a file of a model holds: float32 for an imported network that has weights out of the
    range of `dtype`. They are given: only in a network that was trained here are they a fault.
    """
    learned = config.prior is None or config.prior.network == "energy_net"
    ours = isinstance(config.generator, GeneratorConfig)
    trained = learned if name.startswith("prior.") else ours
    if trained or not isinstance(content, Module) or not dtype.is_floating_point:
        return dtype
    most = torch.finfo(dtype).max
    large = any(bool((value.abs() > most).any()) for value in content.state_dict().values())
    return torch.float32 if large else dtype


def _write(path: Path, content: bytes | Module, dtype: torch.dtype) -> FileRow:
    """Write a file; the row of the bytes that were written."""
    if isinstance(content, Module):
        content = weights_bytes(content, dtype, path.name)
    write_atomically(path, content)
    return FileRow(len(content), hashlib.sha256(content).hexdigest())


@contextlib.contextmanager
def _staging_for(folder: Path) -> Generator[Path]:
    """A new folder on the disk of `folder`: in it where it exists, else beside it."""
    name = f"hebm-{uuid.uuid4().hex}.tmp"
    beside = folder.parent / f".{folder.name[:40]}.{name}"  # a name as long as any can be
    staging = folder / f".{name}" if folder.is_dir() else beside
    staging.parent.mkdir(parents=True, exist_ok=True)
    staging.mkdir()
    try:
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _install(staging: Path, folder: Path, overwrite: bool) -> None:
    """Give a whole model its place: by one rename where there is no folder yet, else file by file,
    alone, with the row taken away first and set last.
    """
    if staging.parent != folder:
        try:
            os.rename(staging, folder)
        except OSError:
            if not folder.is_dir():  # else somebody else was faster
                raise
        else:
            sync_folder(folder.parent)
            return
    with exclusive(folder):
        check_model_folder(folder, overwrite)
        _change_places(staging, folder)


def _change_places(staging: Path, folder: Path) -> None:
    """Put the staged files of a model where an older one's are, or leave those."""
    former = staging / "former"
    former.mkdir()
    rest = [name for name in _FILES if name != MANIFEST_NAME]
    for name in _FILES:
        _keep(folder / name, former / name)
    try:
        (folder / MANIFEST_NAME).unlink(missing_ok=True)
        sync_folder(folder)
        for name in (*rest, MANIFEST_NAME):  # what is an older model's alone goes
            _replace(staging / name, folder / name)
    except BaseException:
        for name in (*rest, MANIFEST_NAME):
            _replace(former / name, folder / name)
        raise
    finally:
        sync_folder(folder)


def _keep(path: Path, place: Path) -> None:
    """A second name for a file, if there is one; a copy where there are no such names."""
    if path.is_symlink():  # which may say where it points to from its own place
        shutil.copyfile(path, place)
    elif path.exists():
        try:
            os.link(path, place)
        except OSError:
            shutil.copyfile(path, place)


def _replace(path: Path, place: Path) -> None:
    """Rename a file; without one, none is left at the place."""
    if path.exists():
        os.replace(path, place)
    else:
        place.unlink(missing_ok=True)


def write_config(folder: Path, config: ModelConfig, *, loaded: ModelRow | None = None) -> ModelRow:
    """Write a model folder's `config.json` anew and enter it into the folder's row, which stays as
    it is otherwise; returns the row.

    Arguments:
        loaded: The row of the model that `config` is of, read before it was loaded.

    Raises:
        UserInputError: The folder holds another model than `loaded` by now.
        WeightsError: The folder has no manifest.
        EnvironmentFailure: It cannot be written; what was there is left.
    """
    return _replace_part(folder, "config.json", _described(config), loaded)


def write_calibration(
    folder: Path, calibration: "Calibration", *, loaded: ModelRow | None = None
) -> ModelRow:
    """Write `calibration.json` into a model folder and enter it into the folder's row, which stays
    as it is otherwise; returns the row. Arguments and errors as of `write_config`, and
    `UserInputError` for one that is larger than any that is read.
    """
    return _replace_part(folder, CALIBRATION_NAME, _json(calibration), loaded)


def _replace_part(folder: Path, name: str, data: bytes, loaded: ModelRow | None) -> ModelRow:
    """Replace one file of a model folder, and the row with it; returns the row.

    Both are whole beside their places before the first of them is renamed, and where the second
    rename fails the old file comes back: the folder holds the old model or the new one.
    """
    read_row(folder)  # there must be one
    try:
        with exclusive(folder), _staging_for(folder) as staging:
            row = read_row(folder)
            _same_model(folder, row, loaded)
            file = FileRow(len(data), hashlib.sha256(data).hexdigest())
            changed = replace(row, files={**row.files, name: file})
            write_atomically(staging / name, data)
            write_manifest(staging / MANIFEST_NAME, [changed])
            _exchange(folder, staging, name)
    except OSError as error:
        raise EnvironmentFailure(
            f"{folder / name} cannot be written: {error.strerror or error}; the folder is as it "
            "was"
        ) from error
    return changed


def _same_model(folder: Path, row: ModelRow, loaded: ModelRow | None) -> None:
    """`UserInputError` if the folder's description or weights are no longer those loaded."""
    if loaded is None:
        return
    old, new = ({name: r.files.get(name) for name in MODEL_FILES} for r in (loaded, row))
    if old != new:
        other = ", ".join(name for name in MODEL_FILES if old[name] != new[name])
        raise UserInputError(
            f"{folder} holds another model than the one that was measured (another {other} was "
            "written there meanwhile), so nothing is written; give the same line again"
        )


def _exchange(folder: Path, staging: Path, name: str) -> None:
    """Rename a staged file and its manifest into their places, or neither."""
    old = staging / f"{name}.old"
    if (folder / name).exists():
        write_atomically(old, (folder / name).read_bytes())
    os.replace(staging / name, folder / name)
    try:
        os.replace(staging / MANIFEST_NAME, folder / MANIFEST_NAME)
    except BaseException:
        if old.exists():
            os.replace(old, folder / name)
        else:
            (folder / name).unlink(missing_ok=True)
        raise
    finally:
        sync_folder(folder)


def _described(config: ModelConfig) -> bytes:
    return (json.dumps(config.to_dict(), indent=2) + "\n").encode()


def _json(calibration: "Calibration") -> bytes:
    data = (json.dumps(calibration.to_dict(), allow_nan=False) + "\n").encode()
    if len(data) > MAX_CALIBRATION_BYTES:
        raise UserInputError(
            f"the calibration of {len(calibration.names)} statistics takes {len(data)} bytes, and "
            f"{MAX_CALIBRATION_BYTES} are the most that is read"
        )
    return data
