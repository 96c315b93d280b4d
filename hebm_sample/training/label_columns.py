"""The data's columns of a preset's symbols, checked before hours of training; and symbols that are
made from the data's columns.
"""

import difflib
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from hebm_sample.config import SymbolConfig
from hebm_sample.data.dataset import ImageDataset
from hebm_sample.data.labels import encode_labels
from hebm_sample.data.source import Source
from hebm_sample.errors import UserInputError
from hebm_sample.presets.preset import Preset

__all__ = ["ALL_LABELS", "Columns", "label_columns", "labels_of_source", "with_labels"]

ALL_LABELS = ("all",)
ENOUGH = 10  # rows a value, on average, of a column that looks like labels

Columns = tuple[Mapping[str, np.ndarray], Mapping[str, tuple[str, ...]]]
"""Integer columns (N,), -1 where unknown, and the names of their values where they have some."""


def labels_of_source(source: Source) -> Columns:
    """The label columns of a source, of which no image is decoded."""
    columns: dict[str, list[object]] = {}
    count = 0
    for chunk in source.chunks():
        for name in chunk.labels:
            columns.setdefault(name, [None] * count)
        count += len(chunk.images)
        for name, values in columns.items():
            values.extend(chunk.labels.get(name) or [None] * (count - len(values)))
    return encode_labels(columns, source.label_names)


def with_labels(preset: Preset, columns: Columns, names: Sequence[str]) -> Preset:
    """The preset with a symbol a label column, in the place of its own.

    Values are those of the column: its texts in their alphabetical order; no and yes for 0 and 1;
    0, 1, ... for other whole numbers. What cannot be a symbol's word becomes "_".

    Arguments:
        names: Columns; `ALL_LABELS` for all that look like labels: two values or more, of `ENOUGH`
            rows each on average.

    Raises:
        UserInputError: There is no such column, it has fewer than two values, or two of its values
            become the same word.
    """
    labels, words = columns
    if tuple(names) == ALL_LABELS and "all" not in labels:
        names = [name for name, column in labels.items() if _looks_like_labels(column)]
        if not names:
            raise UserInputError(
                f"no column of the data looks like labels; they have {sorted(labels) or 'none'}"
            )
    symbols = tuple(_symbol(name, labels, words.get(name)) for name in names)
    named = [(s.name, name) for s, name in zip(symbols, names, strict=True) if s.name != name]
    prior = replace(preset.prior, symbols=symbols)
    return replace(preset, prior=prior, label_columns=tuple(named))


def _looks_like_labels(column: np.ndarray) -> bool:
    known = column[column >= 0]
    values = len(np.unique(known))
    return values >= 2 and len(known) >= ENOUGH * values and int(known.max()) < ENOUGH * 100


def _symbol(
    name: str, labels: Mapping[str, np.ndarray], words: tuple[str, ...] | None
) -> SymbolConfig:
    """The symbol of a column."""
    if name not in labels:
        close = difflib.get_close_matches(name, labels, n=1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        raise UserInputError(
            f"the data have no label column {name!r}{hint}; they have {sorted(labels) or 'none'}"
        )
    known = labels[name][labels[name] >= 0]
    if len(np.unique(known)) < 2:
        raise UserInputError(
            f"label column {name!r} has {len(np.unique(known))} values; a symbol needs two"
        )
    if words is None:
        top = int(known.max())
        words = ("no", "yes") if top == 1 else tuple(map(str, range(top + 1)))
    values = tuple(map(_word, words))
    if len(set(values)) < len(values):
        same = next(w for w, v in zip(words, values, strict=True) if values.count(v) > 1)
        raise UserInputError(
            f"label column {name!r} has values that become one word, such as {same!r}; name them "
            "with letters, digits, '.', '_' and '-'"
        )
    return SymbolConfig(_word(name), values)


def _word(text: str) -> str:
    """As a symbol's name or value can be."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", text.strip()).lstrip("._-")[:64] or "_"


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
        if names is not None and tuple(map(_word, names)) != symbol.values[: len(names)]:
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
