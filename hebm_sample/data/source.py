"""What every kind of data set is read as: a stream of encoded rows."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

__all__ = ["CHUNK_ROWS", "Chunk", "Source", "stamps"]

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
        key: What the decoded copy depends on: `stamps` of its files.
        total: Rows.
        label_names: Names of a label column's values 0, 1, ..., where the files say them.
        chunks: Starts a pass over the rows.
        left_out: Why files or rows are not read, and how many.
        notes: What else a user should know, such as rows of a table that name no image.
        taken: What the other splits' `left_out` says of these rows.
        by_name: Whether rows are in the order of their files' names, which can say what they show.
    """

    key: list[Any]
    total: int
    label_names: dict[str, tuple[str, ...]]
    chunks: Callable[[], Iterator[Chunk]]
    left_out: dict[str, int]
    notes: tuple[str, ...] = ()
    taken: Mapping[str, int] = {}
    by_name: bool = False


def stamps(paths: Iterable[Path], root: Path) -> list[Any]:
    """What tells these files from all others without reading them: the real folder, and of each
    its name, its size, and when it was changed.

    Archives and copies keep names, sizes and times of modification; the folder with its links
    followed, and the system's own time of the last change, are of these files alone.

    Arguments:
        paths: Of files; one that is not there is told by its name.
        root: The data's folder.
    """
    found: list[Any] = [os.path.realpath(root)]
    for path in paths:
        name = path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)
        try:
            stat = path.stat()
        except OSError:
            found.append([name])
        else:
            found.append([name, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns])
    return found
