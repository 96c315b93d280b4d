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
from hebm_sample.data.cache import cache_folder
from hebm_sample.data.dataset import ImageDataset
from hebm_sample.data.labels import UNKNOWN, encode_labels
from hebm_sample.data.source import Source
from hebm_sample.data.sources import open_source
from hebm_sample.errors import UserInputError
from hebm_sample.io.files import cache_home
from hebm_sample.io.spelling import known_word, means_yes
from hebm_sample.presets.preset import Preset

__all__ = [
    "ALL_LABELS",
    "Columns",
    "check_columns",
    "check_numbers",
    "label_columns",
    "labels_of_source",
    "undecoded_labels",
    "values_of",
    "with_labels",
    "with_values",
]

ALL_LABELS = ("all",)
ANSWERS = ("no", "yes")
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


def undecoded_labels(data: str, size: int) -> Columns | None:
    """The label columns of data whose images of that size are not decoded yet; None where they
    are, so that opening them costs nothing.
    """
    source = open_source(data, None)
    if cache_folder(cache_home(), source, size).exists():
        return None
    return labels_of_source(source)


def with_labels(preset: Preset, columns: Columns, names: Sequence[str]) -> Preset:
    """The preset with a symbol a label column, in the place of its own.

    Values are those of the column: no and yes of words and numbers that mean that, in any
    spelling; else its texts in their alphabetical order, or the whole numbers that occur. What
    cannot be a symbol's word becomes "_".

    Arguments:
        names: Columns, in any spelling; `ALL_LABELS` for all that look like labels: two values or
            more, of `ENOUGH` rows each on average.

    Raises:
        UserInputError: There is no such column, it has fewer than two values, or two of its values
            become the same word.
    """
    labels, words = columns
    names = [known_word(name, labels) for name in names]
    if tuple(map(str.casefold, names)) == ALL_LABELS and names[0] not in labels:
        names = [name for name, column in labels.items() if _looks_like_labels(column)]
        if not names:
            raise UserInputError(
                f"no column of the data looks like labels; they have {sorted(labels) or 'none'}"
            )
    symbols = tuple(_symbol(name, labels, words.get(name)) for name in names)
    _check_apart([symbol.name for symbol in symbols], names)
    named = [(s.name, name) for s, name in zip(symbols, names, strict=True) if s.name != name]
    prior = replace(preset.prior, symbols=symbols)
    return replace(preset, prior=prior, label_columns=tuple(named))


def _check_apart(symbols: Sequence[str], columns: Sequence[str]) -> None:
    """`UserInputError` if a column was named twice, or two become one symbol."""
    for i, name in enumerate(symbols):
        if name in symbols[:i]:
            first, second = columns[symbols.index(name)], columns[i]
            both = repr(first) if first == second else f"{first!r} and {second!r}"
            raise UserInputError(f"label columns {both} become the symbol {name!r} twice")


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
    known: list[int] = np.unique(labels[name][labels[name] >= 0]).tolist()
    if len(known) < 2:
        raise UserInputError(f"label column {name!r} has {len(known)} values; a symbol needs two")
    if words is None:
        words = ANSWERS if known == [0, 1] else tuple(map(str, known))
    values = ANSWERS if _are_answers(words) else tuple(map(_word, words))
    if len(set(values)) < len(values):
        same = next(w for w, v in zip(words, values, strict=True) if values.count(v) > 1)
        raise UserInputError(
            f"label column {name!r} has values that become one word, such as {same!r}; name them "
            "with letters, digits, '.', '_' and '-'"
        )
    return SymbolConfig(_word(name), values)


def _are_answers(words: Sequence[str]) -> bool:
    """Whether all of them mean no or yes, and both occur."""
    return {means_yes(word) for word in words} == {False, True}


def _word(text: str) -> str:
    """As a symbol's name or value can be."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", text.strip()).lstrip("._-")[:64] or "_"


def values_of(
    symbol: SymbolConfig, labels: np.ndarray, names: tuple[str, ...] | None
) -> np.ndarray:
    """Labels of a column as numbers of a symbol's values, -1 where unknown.

    They are the same numbers, with two exceptions: values that are whole numbers themselves (1 and
    2) are those of the labels, and names that mean no or yes, in any spelling, are no and yes.

    Arguments:
        labels: Whole numbers of any shape, -1 where unknown.
        names: Of the labels 0, 1, ...; None where numbers are all there is.
    """
    if names is None and all(value.isdecimal() for value in symbol.values):
        meant = [int(value) for value in symbol.values]
    elif names is not None and symbol.values == ANSWERS and _are_answers(names):
        answers = np.array([*map(means_yes, names), UNKNOWN], dtype=np.int64)
        return answers[labels]
    else:
        return labels
    found = np.full_like(labels, UNKNOWN)
    for value, label in enumerate(meant):
        found[labels == label] = value
    return found


def with_values(preset: Preset, images: ImageDataset, columns: Sequence[str]) -> ImageDataset:
    """The images, their labels in `columns` (as `label_columns` gives them) being numbers of the
    values of the preset's symbols.

    Their identity stays: which numbers they get follows from it and from the symbols.
    """
    labels = dict(images.labels)
    for symbol, column in zip(preset.prior.symbols, columns, strict=True):
        labels[column] = values_of(symbol, images.labels[column], images.label_names.get(column))
    return replace(images, labels=labels)


def label_columns(preset: Preset, images: ImageDataset) -> tuple[str, ...]:
    """The data's columns of the preset's symbols; `UserInputError` where one is missing or holds
    other values.
    """
    columns = check_columns(preset, (images.labels, images.label_names))
    shown = with_values(preset, images, columns)
    _warn_of_unseen(preset, [shown.labels[column] for column in columns])
    return columns


def check_columns(preset: Preset, data: Columns) -> tuple[str, ...]:
    """The same of the labels alone, such as of images that are not decoded yet; no warnings."""
    labels, label_names = data
    columns: list[str] = []
    for symbol in preset.prior.symbols:
        column = dict(preset.label_columns).get(symbol.name, symbol.name)
        if column not in labels:
            raise UserInputError(
                f"preset {preset.name} has the symbol {symbol.name!r}, but the data have no label "
                f"column {column!r}; they have {sorted(labels) or 'none'}"
            )
        check_numbers(symbol, column, labels[column], label_names.get(column))
        columns.append(column)
    return tuple(columns)


def check_numbers(
    symbol: SymbolConfig, column: str, labels: np.ndarray, names: tuple[str, ...] | None
) -> None:
    """`UserInputError` unless a column's labels are the symbol's values."""
    found = values_of(symbol, labels, names)
    if found is not labels:
        beyond = labels[(found < 0) & (labels >= 0)]
        if len(beyond):
            raise UserInputError(
                f"label column {column!r} holds {beyond[0]}; symbol {symbol.name!r} has "
                f"{', '.join(symbol.values[:12])}"
            )
        return
    top = int(labels.max(initial=UNKNOWN))
    if top >= len(symbol.values):
        raise UserInputError(
            f"label column {column!r} holds {top}; symbol {symbol.name!r} has "
            f"{len(symbol.values)} values, numbered from 0"
        )
    if names is not None and tuple(map(_word, names)) != symbol.values[: len(names)]:
        raise UserInputError(
            f"label column {column!r} has the values {', '.join(names[:12])}; symbol "
            f"{symbol.name!r} has {', '.join(symbol.values[:12])}: they must agree in order"
        )


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
