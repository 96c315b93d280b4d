"""Label columns as whole numbers, -1 where unknown: what a cell means, and which columns are
labels.

A cell is a whole number however it is written (1, "1", 1.0, "1.0", true), a text, or unknown
(None, NaN, "nan", an empty text). What is known to be a text (`Text`) is never a number. A column
of whole numbers keeps them, and one of -1 and 1 alone becomes 0 and 1, as CelebA means it: other
negative numbers are unknown. A column with texts is numbered in their alphabetical order.
Fractions, nested values and more than `MAX_NAMED_VALUES` texts are no labels.
"""

import math
import re
from typing import Any, cast

import numpy as np

from hebm_sample.errors import UserInputError

__all__ = ["MAX_NAMED_VALUES", "Text", "encode_labels", "renumbered"]

MAX_NAMED_VALUES = 256
UNKNOWN = -1
_WHOLE = re.compile(r"\s*([+-]?[0-9]+)(?:\.0*)?\s*", re.ASCII)
# What programs write for a missing number; a text of its own where the others are texts.
_MISSING = ("nan", "na", "n/a", "null", "none", "<na>")
# And for a missing text: "Nan" is somebody's name.
_NAN = ("nan", "NaN", "NAN")


class Text(str):
    """A cell that is a text, whatever it looks like: the name of a folder."""


def encode_labels(
    columns: dict[str, list[Any]], known_names: dict[str, tuple[str, ...]]
) -> tuple[dict[str, np.ndarray], dict[str, tuple[str, ...]]]:
    """Columns that are labels, as int64 (N,) with -1 where unknown, and their values' names."""
    labels: dict[str, np.ndarray] = {}
    names: dict[str, tuple[str, ...]] = {}
    for column, values in columns.items():
        cells = [_cell(v) for v in values]
        found = _numbers(cells)
        if found is None:
            texts = _texts(cells)
            distinct = tuple(sorted({t for t in texts or () if t is not None}))
            if texts is None or len(distinct) > MAX_NAMED_VALUES:
                continue
            names[column], number = distinct, {name: i for i, name in enumerate(distinct)}
            found = [None if t is None else number[t] for t in texts]
        if any(v is not None and abs(v) >= 2**31 for v in found):
            continue
        if {v for v in found if v is not None} == {-1, 1}:  # CelebA's no and yes
            found = [None if v is None else max(v, 0) for v in found]
        labels[column] = np.array(
            [UNKNOWN if v is None or v < 0 else v for v in found], dtype=np.int64
        )
        # Names of other values than the column has say nothing.
        if column in known_names and labels[column].max(initial=-1) < len(known_names[column]):
            names.setdefault(column, known_names[column])
    return labels, names


def renumbered(
    column: str, values: np.ndarray, names: tuple[str, ...] | None, wanted: tuple[str, ...] | None
) -> tuple[np.ndarray, tuple[str, ...]]:
    """(a column in other numbers, the names that these numbers lack, whose rows are unknown).

    Arguments:
        values: (N,) int64, -1 where unknown.
        names: Of the values 0, 1, ...; None where numbers are all there is.
        wanted: Those of the numbers to have.

    Raises `UserInputError` where one side has names and the other has numbers.
    """
    known = bool((values >= 0).any())
    if names == wanted or not known:
        return values, ()
    if names is None or wanted is None:
        raise UserInputError(
            f"{column} has names in one split ({', '.join((names or wanted or ())[:8])}) and "
            "numbers in the other; write both in the same way"
        )
    number = {name: i for i, name in enumerate(wanted)}
    table = np.array([*(number.get(name, UNKNOWN) for name in names), UNKNOWN], dtype=np.int64)
    found: list[int] = np.unique(values[values >= 0]).tolist()
    return table[values], tuple(names[v] for v in found if names[v] not in number)


def _cell(value: Any) -> Any:
    """The value as int, float, str or None; what is none of them as it is."""
    if isinstance(value, Text):
        return value
    if isinstance(value, (bytes, memoryview)):
        data = bytes(cast("bytes", value))
        try:
            value = data.decode("utf-8")
        except UnicodeDecodeError:
            return data
    if isinstance(value, np.generic):
        value = cast("Any", value).item()
    if isinstance(value, str):
        return value if value.strip() and value.strip() not in _NAN else None
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, float):
        if math.isnan(value):
            return None
        return int(value) if value.is_integer() else value
    return value


def _numbers(cells: list[Any]) -> list[int | None] | None:
    """The cells as whole numbers, or None if one of them is none."""
    found: list[int | None] = []
    for cell in cells:
        if isinstance(cell, Text):
            return None
        if isinstance(cell, str):
            whole = _WHOLE.fullmatch(cell)
            if whole is None and cell.strip().lower() not in _MISSING:
                return None
            # More digits than any label has: Python refuses to read thousands of them.
            cell = None if whole is None else int(whole[1][:20])
        if cell is not None and not isinstance(cell, int):
            return None
        found.append(cell)
    # Texts for "missing" alone say nothing about numbers.
    if all(v is None for v in found) and any(isinstance(c, str) for c in cells):
        return None
    return found


def _texts(cells: list[Any]) -> list[str | None] | None:
    """The cells as texts where they are texts or whole numbers, or None; there must be a text."""
    if not any(isinstance(c, str) for c in cells):
        return None
    if not all(c is None or isinstance(c, (str, int)) for c in cells):
        return None
    return [None if c is None else str(c) for c in cells]
