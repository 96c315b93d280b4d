"""What every kind of data set is read as: a stream of encoded rows."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

__all__ = ["CHUNK_ROWS", "Chunk", "Source", "stamp"]

CHUNK_ROWS = 256


class Chunk(NamedTuple):
    """Consecutive rows of one source file.

    Arguments:
        part: Number of the file.
        images: Encoded images, or their paths; None where a row has none.
        labels: Cells per column.
        names: What each row is known by: its file's name below the data's folder, or a number.
    """

    part: int
    images: list[bytes | Path | None]
    labels: dict[str, list[Any]]
    names: list[str]


class Source(NamedTuple):
    """A set of images before decoding.

    Arguments:
        key: Names, sizes and modification times of all files: what the decoded copy depends on.
        total: Rows.
        label_names: Names of a label column's values 0, 1, ..., where the files say them.
        chunks: Starts a pass over the rows.
        left_out: Why files or rows are not read, and how many.
        notes: What else a user should know, such as rows of a table that name no image.
    """

    key: list[Any]
    total: int
    label_names: dict[str, tuple[str, ...]]
    chunks: Callable[[], Iterator[Chunk]]
    left_out: dict[str, int]
    notes: tuple[str, ...] = ()


def stamp(path: Path, root: Path) -> list[Any]:
    """Name below `root`, size and modification time."""
    stat = path.stat()
    return [path.relative_to(root).as_posix(), stat.st_size, stat.st_mtime_ns]
