"""From modules to a model folder, laid out as a Hub repository."""

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from hebm_sample.config import ModelConfig, NvaeConfig
from hebm_sample.errors import EnvironmentFailure, UserInputError
from hebm_sample.hub.card import model_card
from hebm_sample.hub.manifest import (
    CALIBRATION_NAME,
    MANIFEST_NAME,
    FileRow,
    ModelRow,
    read_row,
    write_manifest,
    write_row,
)
from hebm_sample.hub.weights import save_weights
from hebm_sample.io.files import sha256_of, write_atomically

if TYPE_CHECKING:
    from hebm_sample.metrics.typicality import Calibration

__all__ = [
    "UNSTATED_LICENCE",
    "check_model_folder",
    "licence_of",
    "write_calibration",
    "write_model_folder",
]

_PARTS = ("generator", "prior", "encoder")
_FILES = (
    *("config.json", "README.md", "weights_manifest.json", CALIBRATION_NAME),
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
    if "weights_manifest.json" not in there and not _is_config(folder / "config.json"):
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
    generator: nn.Module,
    prior: nn.Module | None,
    encoder: nn.Module | None,
    *,
    dtype: torch.dtype = torch.float16,
    licence: str = UNSTATED_LICENCE,
    figures: Mapping[str, Any] | None = None,
    card: Path | str | None = None,
    calibration: "Calibration | None" = None,
    overwrite: bool = False,
) -> ModelRow:
    """Write config, weights, card and, last, the manifest row; returns the row.

    The row is written last, so a folder that was interrupted half-way is refused by
    `from_pretrained`.

    Arguments:
        card: An existing card's path, or its text; a plain one is written if None.
        calibration: Of the scores of its images; None for none.
        overwrite: Replace a model that is there.

    Raises:
        UserInputError: The folder cannot be made there, or holds such files already: a model's
            without `overwrite`, or others, which are never touched.
        EnvironmentFailure: The disk is full or read-only.
    """
    licence = licence_of(config, licence)
    if folder.exists() and not folder.is_dir():
        raise UserInputError(f"{folder} is a file; name a folder for the model")
    text = card.read_text(encoding="utf-8") if isinstance(card, Path) else card
    check_model_folder(folder, overwrite)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "weights_manifest.json").unlink(missing_ok=True)
    except OSError as error:
        raise EnvironmentFailure(
            f"the folder {folder} cannot be written: {error.strerror}"
        ) from error
    write_atomically(
        folder / "config.json", (json.dumps(config.to_dict(), indent=2) + "\n").encode()
    )
    parts = {"generator": generator, "prior": prior, "encoder": encoder}
    for name, module in parts.items():
        if module is not None:
            save_weights(module, folder / f"{name}.safetensors", dtype)
        else:  # of an older model, which the row would take for this one's
            (folder / f"{name}.safetensors").unlink(missing_ok=True)
    if calibration is not None:
        write_atomically(folder / CALIBRATION_NAME, _json(calibration))
    else:
        (folder / CALIBRATION_NAME).unlink(missing_ok=True)
    text = text or model_card(config, licence=licence, figures=figures or {})
    write_atomically(folder / "README.md", text.encode())
    return write_row(
        folder,
        name=config.name,
        resolution=config.generator.image_size,
        licence=licence,
        figures=figures,
    )


def write_calibration(folder: Path, calibration: "Calibration") -> ModelRow:
    """Write `calibration.json` into a model folder and enter it into the folder's row, which stays
    as it is otherwise; returns the row.

    Raises:
        WeightsError: The folder has no manifest.
        EnvironmentFailure: It cannot be written.
    """
    row, path = read_row(folder), folder / CALIBRATION_NAME
    write_atomically(path, _json(calibration))
    file = FileRow(path.stat().st_size, sha256_of(path))
    row = replace(row, files={**row.files, CALIBRATION_NAME: file})
    write_manifest(folder / MANIFEST_NAME, [row])
    return row


def _json(calibration: "Calibration") -> bytes:
    return (json.dumps(calibration.to_dict(), allow_nan=False) + "\n").encode()
