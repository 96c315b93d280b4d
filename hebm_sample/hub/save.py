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

from hebm_sample.config import ModelConfig, NvaeConfig
from hebm_sample.errors import EnvironmentFailure, UserInputError
from hebm_sample.hub.card import SAMPLES_NAME, model_card
from hebm_sample.hub.manifest import (
    CALIBRATION_NAME,
    MANIFEST_NAME,
    FileRow,
    ModelRow,
    read_row,
    write_manifest,
)
from hebm_sample.hub.weights import weights_bytes
from hebm_sample.io.files import read_regular, sync_folder, write_atomically
from hebm_sample.io.lock import exclusive

if TYPE_CHECKING:
    from hebm_sample.metrics.typicality import Calibration

__all__ = [
    "UNSTATED_LICENCE",
    "check_model_folder",
    "licence_of",
    "write_calibration",
    "write_config",
    "write_model_folder",
]

_PARTS = ("generator", "prior", "encoder")
CARD_NAME = "README.md"
MAX_SAMPLES_BYTES = 2**24
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
    if not overwrite:
        raise UserInputError(
            f"{folder} already holds {', '.join(there)}; choose another folder, or replace the "
            "model there with --overwrite (overwrite=True)"
        )
    if MANIFEST_NAME not in there and not _is_config(folder / "config.json"):
        raise UserInputError(
            f"{folder} holds {', '.join(there)} and no model of hebm_sample; choose another folder"
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
        UserInputError: The folder cannot be made there, or holds such files already: a model's
            without `overwrite`, or others, which are never touched.
        EnvironmentFailure: The disk is full or read-only, or the card cannot be read.
    """
    licence = licence_of(config, licence)
    if folder.exists() and not folder.is_dir():
        raise UserInputError(f"{folder} is a file; name a folder for the model")
    check_model_folder(folder, overwrite)
    figures = dict(figures or {})
    contents: dict[str, bytes | Module | None] = {
        "config.json": (json.dumps(config.to_dict(), indent=2) + "\n").encode(),
        "generator.safetensors": generator,
        "prior.safetensors": prior,
        "encoder.safetensors": encoder,
        CALIBRATION_NAME: None if calibration is None else _json(calibration),
        CARD_NAME: _text(card, config, licence, figures),
        SAMPLES_NAME: samples or _beside(card),
    }
    try:
        with _staging_for(folder) as staging:
            files = {
                name: _write(staging / name, content, dtype)
                for name, content in contents.items()
                if content is not None
            }
            for name in (CARD_NAME, SAMPLES_NAME):
                files.pop(name, None)
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
    card: Path | str | None, config: ModelConfig, licence: str, figures: Mapping[str, Any]
) -> bytes:
    """A card as it stands, whatever its encoding; a plain one for None."""
    if not isinstance(card, Path):
        text = card or model_card(config, licence=licence, figures=figures)
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
    staging = folder / f".{name}" if folder.is_dir() else folder.parent / f".{folder.name}.{name}"
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
        (folder / MANIFEST_NAME).unlink(missing_ok=True)
        sync_folder(folder)
        for name in (*(name for name in _FILES if name != MANIFEST_NAME), MANIFEST_NAME):
            if (staging / name).exists():
                os.replace(staging / name, folder / name)
            else:  # of an older model, which the row would take for this one's
                (folder / name).unlink(missing_ok=True)
        sync_folder(folder)


def write_config(folder: Path, config: ModelConfig) -> ModelRow:
    """Write a model folder's `config.json` anew and enter it into the folder's row, which stays as
    it is otherwise; returns the row. While it is written the folder has no row and is refused.

    Raises:
        WeightsError: The folder has no manifest.
        EnvironmentFailure: It cannot be written.
    """
    data = (json.dumps(config.to_dict(), indent=2) + "\n").encode()
    read_row(folder)  # there must be one
    with exclusive(folder):
        row = read_row(folder)
        (folder / MANIFEST_NAME).unlink()
        write_atomically(folder / "config.json", data)
        file = FileRow(len(data), hashlib.sha256(data).hexdigest())
        row = replace(row, files={**row.files, "config.json": file})
        write_manifest(folder / MANIFEST_NAME, [row])
    return row


def write_calibration(folder: Path, calibration: "Calibration") -> ModelRow:
    """Write `calibration.json` into a model folder and enter it into the folder's row, which stays
    as it is otherwise; returns the row.

    Raises:
        WeightsError: The folder has no manifest.
        EnvironmentFailure: It cannot be written.
    """
    data = _json(calibration)
    read_row(folder)  # there must be one
    with exclusive(folder):
        row = read_row(folder)
        # Without the file at first: the folder is a whole model at every moment.
        files = {name: file for name, file in row.files.items() if name != CALIBRATION_NAME}
        write_manifest(folder / MANIFEST_NAME, [replace(row, files=files)])
        write_atomically(folder / CALIBRATION_NAME, data)
        file = FileRow(len(data), hashlib.sha256(data).hexdigest())
        row = replace(row, files={**files, CALIBRATION_NAME: file})
        write_manifest(folder / MANIFEST_NAME, [row])
    return row


def _json(calibration: "Calibration") -> bytes:
    return (json.dumps(calibration.to_dict(), allow_nan=False) + "\n").encode()
