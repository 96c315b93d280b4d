"""CelebA's tables of attributes: -1 and 1 per image and attribute, here 0 (no) and 1 (yes).

    202599                                                        rows
    5_o_Clock_Shadow Arched_Eyebrows ...                          names
    000001.jpg -1  1 ...                                          a row per image

That is `list_attr_celeba.txt`, and `CelebAMask-HQ-attribute-anno.txt` of CelebA-HQ. The table is
also passed on as `list_attr_celeba.csv`, whose first line is `image_id,` and the names.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hebm_sample.errors import UserInputError

__all__ = ["CELEBA_NAMES", "AttributeTable", "find_attributes", "read_attributes"]

CELEBA_NAMES = ("list_attr_celeba.txt", "list_attr_celeba.csv", "CelebAMask-HQ-attribute-anno.txt")


@dataclass(frozen=True)
class AttributeTable:
    """Attributes of images.

    Arguments:
        names: Of the attributes.
        rows: Row of an image, by its file's name without the suffix.
        values: (rows, attributes) int8, 0 or 1.
    """

    names: tuple[str, ...]
    rows: dict[str, int]
    values: np.ndarray

    def columns(self, images: Sequence[Path]) -> dict[str, list[int | None]]:
        """Labels of these images, a column an attribute; None where the table lacks one."""
        found = [self.rows.get(p.stem) for p in images]
        return {
            name: [None if row is None else int(self.values[row, j]) for row in found]
            for j, name in enumerate(self.names)
        }


def find_attributes(folder: Path, names: Sequence[str]) -> Path | None:
    """The table of attributes among `names`, files in or below `folder`, or else right beside
    the folder, or None.
    """
    below = (folder / name for name in names if name.rsplit("/", 1)[-1] in CELEBA_NAMES)
    beside = (folder.resolve().parent / name for name in CELEBA_NAMES)
    return next((p for p in (*below, *beside) if p.is_file()), None)


def read_attributes(table: Path) -> AttributeTable:
    """Read a table; `UserInputError` names the line that does not fit."""
    try:
        lines = table.read_text(encoding="utf-8-sig").splitlines()
    except (UnicodeDecodeError, OSError) as error:
        raise UserInputError(f"{table} could not be read: {error}") from error
    separator = "," if table.suffix == ".csv" else None
    head = 0 if separator else 1
    names = tuple(lines[head].split(separator)[1 if separator else 0 :]) if lines[head:] else ()
    if not names:
        raise UserInputError(f"{table} names no attributes in line {head + 1}")
    rows: dict[str, int] = {}
    values = np.zeros((len(lines), len(names)), dtype=np.int8)
    for number, (name, found) in _rows(lines[head + 1 :], separator, head + 2):
        if len(found) != len(names) or not set(found) <= {"-1", "1", "0"}:
            raise UserInputError(
                f"{table}, line {number}: a row needs a file's name and {len(names)} values, "
                "-1 or 1"
            )
        labels, stem = [value == "1" for value in found], Path(name).stem
        known = stem in rows
        row = rows.setdefault(stem, len(rows))
        if known and values[row].tolist() != labels:
            raise UserInputError(f"{table}, line {number}: {stem} has other values above")
        values[row] = labels
    return AttributeTable(names, rows, values[: len(rows)])


def _rows(
    lines: list[str], separator: str | None, first: int
) -> Iterator[tuple[int, tuple[str, list[str]]]]:
    """(line's number, (file's name, values)) of the lines that are not empty."""
    for number, line in enumerate(lines, start=first):
        if line.strip():
            name, *values = (part.strip() for part in line.split(separator))
            yield number, (name, values)
