"""From modules to a model folder, laid out as a Hub repository."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hebm_sample.config import ModelConfig
from hebm_sample.errors import EnvironmentFailure, UserInputError
from hebm_sample.hub.card import model_card
from hebm_sample.hub.manifest import ModelRow, write_row
from hebm_sample.hub.weights import save_weights
from hebm_sample.io.files import write_atomically

__all__ = ["UNSTATED_LICENCE", "check_model_folder", "write_model_folder"]

_PARTS = ("generator", "prior", "encoder")
_FILES = (
    *("config.json", "README.md", "weights_manifest.json"),
    *(f"{part}.safetensors" for part in _PARTS),
)

UNSTATED_LICENCE = "unstated: that of the training data"


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
    overwrite: bool = False,
) -> ModelRow:
    """Write config, weights, card and, last, the manifest row; returns the row.

    The row is written last, so a folder that was interrupted half-way is refused by
    `from_pretrained`.

    Arguments:
        card: An existing card's path, or its text; a plain one is written if None.
        overwrite: Replace a model that is there.

    Raises:
        UserInputError: The folder cannot be made there, or holds such files already: a model's
            without `overwrite`, or others, which are never touched.
        EnvironmentFailure: The disk is full or read-only.
    """
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
    text = text or model_card(config, licence=licence, figures=figures or {})
    write_atomically(folder / "README.md", text.encode())
    return write_row(
        folder,
        name=config.name,
        resolution=config.generator.image_size,
        licence=licence,
        figures=figures,
    )
