"""Which rows are held out: by a hash of each row's identity, fixed by a seed.

    key(row) = first 64 bits of SHA-256("seed name")        held out: key < share * 2^64

A row's identity is its file's name below the data's folder, or its number in a table of rows. Its
key alone decides, except that

- of large sets the lowest `HELD_OUT_MOST` keys are taken, so that rows that join send some of the
  highest back to training;
- a value of a label that `ENOUGH` rows have is on both sides, and every value that occurs is
  trained on: where none of its rows would be held out the lowest key is, where all would be the
  highest is not, until rows that join make this needless. Columns with more values than half of
  their rows, such as captions, do not count.

So which rows are held out is a matter of one state of the data, and records of training name it
(`TrainingRecord.data`). What is to be kept apart for good lies in a folder of its own, test/.
"""

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any, cast

import numpy as np

__all__ = ["SelectedRows", "held_out_rows", "random_rows", "row_keys", "selected"]

HELD_OUT_SHARE = 0.1
HELD_OUT_MOST = 4000
SEED = 0  # raise it never: published figures name rows by it
ENOUGH = 10  # rows of a label's value: a tenth of them is one
ROWS_SEED = 20  # of rows that are chosen at random: published scores are of them
MOST_VALUES = 256  # more are numbers of something, and no classes


def row_keys(names: Iterable[str], seed: int = SEED) -> np.ndarray:
    """A key per row, (N,) uint64, from its identity and the seed alone."""
    digests = (
        hashlib.sha256(f"{seed} {name}".encode("utf-8", "surrogatepass")).digest()[:8]
        for name in names
    )
    return np.frombuffer(b"".join(digests), dtype="<u8").astype(np.uint64)


def held_out_rows(
    keys: np.ndarray,
    labels: Mapping[str, np.ndarray],
    share: float = HELD_OUT_SHARE,
    most: int = HELD_OUT_MOST,
) -> np.ndarray:
    """Which rows are held out, (N,) bool.

    Arguments:
        keys: (N,) uint64, of `row_keys`.
        labels: Integer columns (N,), -1 where unknown.
        share: Of all rows, on average.
        most: Rows; the lowest keys where the share is more.
    """
    held = keys < np.uint64(int(share * 2**64))
    if held.sum() > most:
        held = np.zeros(len(keys), dtype=bool)
        held[np.argsort(keys, kind="stable")[:most]] = True
    groups = list(_groups(labels))
    if len(keys) > 1:
        groups.append(np.arange(len(keys)))
    for rows in groups:
        if not held[rows].any() and (len(rows) >= ENOUGH or len(rows) == len(keys)):
            held[rows[np.argmin(keys[rows])]] = True
    for rows in [*groups, np.arange(len(keys))]:
        if len(rows) and held[rows].all():
            held[rows[np.argmax(keys[rows])]] = False
    return held


def _groups(labels: Mapping[str, np.ndarray]) -> Iterable[np.ndarray]:
    """Rows of each value of the columns that are classes or attributes: not of those, such as
    captions, whose values are of a row each.
    """
    for column in labels.values():
        known = column[column >= 0]
        values = np.unique(known)
        if len(values) <= min(MOST_VALUES, len(known) / 2):
            yield from (np.flatnonzero(column == value) for value in values)


def random_rows(count: int, wanted: int) -> np.ndarray:
    """`wanted` of `count` rows, or all, (M,) int64, in a random order that is always the same.

    Rows of a data set may be sorted by class, so that the first of them are of some kinds only.
    """
    return np.random.default_rng(ROWS_SEED).permutation(count)[:wanted]


class SelectedRows:
    """Some rows of an array (N, ...) that may lie on disk: read when they are asked for.

    Arguments:
        base: The array.
        rows: (M,) int64; indices into it, in the order that they are to have here.
    """

    def __init__(self, base: np.ndarray, rows: np.ndarray) -> None:
        self.base, self.rows = base, rows
        self.shape, self.dtype, self.ndim = (len(rows), *base.shape[1:]), base.dtype, base.ndim

    def __len__(self) -> int:
        """Rows."""
        return len(self.rows)

    def __getitem__(self, key: Any) -> np.ndarray:
        """As of the array that it stands for; the rows are copied."""
        first, *rest = cast("tuple[Any, ...]", key if isinstance(key, tuple) else (key,))
        found = self.base[self.rows[first]]
        if not rest:
            return found
        whole = (slice(None),) if found.ndim == self.ndim else ()
        return found[(*whole, *rest)]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """All rows, copied."""
        found = np.asarray(self.base[self.rows])
        return found if dtype is None else found.astype(dtype)


def selected(base: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """`SelectedRows`, which does what is done to the images of a data set."""
    return cast("np.ndarray", SelectedRows(base, rows))
