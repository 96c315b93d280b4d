"""The data's columns of a preset's symbols, checked before hours of training."""

import warnings
from collections.abc import Sequence

import numpy as np

from hebm_sample.data.dataset import ImageDataset
from hebm_sample.errors import UserInputError
from hebm_sample.presets.preset import Preset

__all__ = ["label_columns"]


def label_columns(preset: Preset, images: ImageDataset) -> tuple[str, ...]:
    """The data's columns of the preset's symbols; `UserInputError` where one is missing or holds
    other values.
    """
    columns = []
    for symbol in preset.prior.symbols:
        column = dict(preset.label_columns).get(symbol.name, symbol.name)
        if column not in images.labels:
            raise UserInputError(
                f"preset {preset.name} has the symbol {symbol.name!r}, but the data have no label "
                f"column {column!r}; they have {sorted(images.labels) or 'none'}"
            )
        top = int(images.labels[column].max())
        if top >= len(symbol.values):
            raise UserInputError(
                f"label column {column!r} holds {top}; symbol {symbol.name!r} has "
                f"{len(symbol.values)} values, numbered from 0"
            )
        names = images.label_names.get(column)
        if names is not None and names != symbol.values[: len(names)]:
            raise UserInputError(
                f"label column {column!r} has the values {', '.join(names[:12])}; symbol "
                f"{symbol.name!r} has {', '.join(symbol.values[:12])}: they must agree in order"
            )
        columns.append(column)
    _warn_of_unseen(preset, [images.labels[column] for column in columns])
    return tuple(columns)


def _warn_of_unseen(preset: Preset, columns: Sequence[np.ndarray]) -> None:
    """Warn of symbols' values that no training row has: nothing is learned of them."""
    unseen = [
        f"{symbol.name} = {value}"
        for symbol, labels in zip(preset.prior.symbols, columns, strict=True)
        for i, value in enumerate(symbol.values)
        if not (labels == i).any()
    ]
    if unseen:
        shown = ", ".join(unseen[:12]) + (", ..." if len(unseen) > 12 else "")
        warnings.warn(
            f"no training image has {shown}; the model cannot be asked for it: hold out other "
            "rows (--validation hash), or add such images",
            stacklevel=3,
        )
