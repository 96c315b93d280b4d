"""Parquet files with encoded images, as Hugging Face data sets write them."""

import json
import os
import re
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, cast

from hebm_sample.data import source as rows_source
from hebm_sample.data.source import Chunk, Source, stamps
from hebm_sample.data.splits import by_split, pick_split
from hebm_sample.errors import EnvironmentFailure, HebmError, UserInputError
from hebm_sample.io.extras import import_extra
from hebm_sample.io.files import printable

__all__ = ["best_named", "column_notes", "encoded_cell", "first_line", "parquet_source"]

MOST_LETTERS = 300
NOTHING: Mapping[str, int] = {}
OTHER_SPLITS = ".parquet of other splits"
IMAGE_COLUMNS = ("image", "img", "images", "picture", "photo", "jpg", "jpeg", "png", "webp")


class _Part(NamedTuple):
    """A file: the column of its images, those of its labels, and what is not read."""

    path: Path
    image: str
    labels: list[str]
    unread: list[str]


def parquet_source(
    names: list[str],
    root: Path,
    split: str | None,
    images: Sequence[str] = (),
    left_out: Mapping[str, int] = NOTHING,
) -> Source:
    """Rows of the files of one split, in the order of their names.

    Arguments:
        names: Of the files below `root`.
        split: As of `splits.pick_split`.
        images: Names of the images that lie beside them; those that a cell names are read.
        left_out: Of what else lies there.

    Raises `UserInputError` where files do not fit each other.
    """
    parquet = import_extra("pyarrow.parquet", "train")
    found, others = pick_split(by_split(map(PurePosixPath, names)), split, str(root))
    total, label_names = 0, dict[str, tuple[str, ...]]()
    parts, files, outside = list[_Part](), list[Path](), list[Path]()
    for path in (root / name for name in found):
        with _header_of(path):
            opened = parquet.ParquetFile(path)
            total += opened.metadata.num_rows
            parts.append(_part(opened.schema_arrow, path))
            _same_images(parts[0], parts[-1])
            _add_names(label_names, opened.schema_arrow, path)
            outside += _named_files(opened, parts[-1])
        files.append(path)

    def chunks() -> Iterator[Chunk]:
        for number, part in enumerate(parts):
            with _header_of(part.path):
                opened = parquet.ParquetFile(part.path)
            yield from _chunks(opened, number, part, root)

    beside = len({root / name for name in images} - set(outside))
    more = {"beside the parquet files": beside, OTHER_SPLITS: others}
    everything = {reason: count for reason, count in more.items() if count} | dict(left_out)
    taken = {OTHER_SPLITS: len(files)} if others else {}
    key = stamps([*files, *outside], root)
    unread = list(dict.fromkeys(name for part in parts for name in part.unread))
    notes = column_notes(parts[0].image, unread)
    return Source(key, total, label_names, chunks, everything, notes, taken)


@contextmanager
def _header_of(path: Path) -> Generator[None, None, None]:
    """What is raised where a header is read is its fault: a damaged one makes the reader, and
    whatever asks it for names and types, raise anything.
    """
    try:
        yield
    except HebmError:
        raise
    except Exception as error:
        raise EnvironmentFailure(
            f"{path} is not a readable parquet file: {first_line(error)}"
        ) from error


def _chunks(opened: Any, number: int, part: _Part, root: Path) -> Iterator[Chunk]:
    # Files of a set that grows: train-00000-of-00003 is train-00000-of-00004 later.
    name = re.sub(r"-of-\d+", "", part.path.relative_to(root).as_posix())
    row = 0
    wanted = [part.image, *part.labels]
    for columns in _batches(opened, part.path, columns=wanted):
        images = [_beside(encoded_cell(cell), part.path) for cell in columns.pop(part.image)]
        names = [f"{name}:{row + i}" for i in range(len(images))]
        row += len(images)
        yield Chunk(number, images, columns, names)


def _batches(opened: Any, path: Path, **options: Any) -> Iterator[dict[str, list[Any]]]:
    """Cells by column; `EnvironmentFailure` where the file is damaged."""
    batches = opened.iter_batches(rows_source.CHUNK_ROWS, **options)
    while True:
        try:
            batch = next(batches, None)
            columns = None if batch is None else batch.to_pydict()
        except Exception as error:
            raise EnvironmentFailure(f"{path} is damaged: {first_line(error)}") from error
        if columns is None:
            return
        yield columns


# Images that cells name in place of holding them


def _beside(cell: bytes | Path | None, table: Path) -> bytes | Path | None:
    """A name in a cell is one below the folder of its table, wherever the process is; one that
    leads out of it, and one of a pipe or a device, is no image's.
    """
    if not isinstance(cell, Path):
        return cell
    path = table.parent / cell
    is_other = os.path.exists(path) and not os.path.isfile(path)
    return None if cell.is_absolute() or ".." in cell.parts or is_other else path


def _named_files(opened: Any, part: _Part) -> Iterator[Path]:
    """Files that the cells of a part name and that are there, those of cells with bytes of their
    own too: the statistics that would tell them apart end the process where a file is damaged.
    """
    types = import_extra("pyarrow.types", "train")
    kind = opened.schema_arrow.field(part.image).type
    if not types.is_struct(kind) or kind.get_field_index("path") < 0:
        return
    for columns in _batches(opened, part.path, columns=[f"{part.image}.path"]):
        cells = cast("list[dict[str, Any] | None]", columns[part.image])
        names = (cell.get("path") for cell in cells if cell is not None)
        cells = (Path(name) for name in names if isinstance(name, str) and name)
        files = (_beside(cell, part.path) for cell in cells)
        yield from (file for file in files if isinstance(file, Path) and os.path.isfile(file))


# Columns


def _kinds(types: Any, *names: str) -> list[Any]:
    """The checks of these names that this pyarrow has: views came with 16."""
    return [check for name in names if (check := getattr(types, name, None)) is not None]


def _part(schema: Any, path: Path) -> _Part:
    twice = sorted({name for name in schema.names if schema.names.count(name) > 1})
    if twice:
        raise UserInputError(f"{path} has two columns called {twice[0]}; rename one of them")
    types = import_extra("pyarrow.types", "train")
    simple = _kinds(
        types,
        *("is_integer", "is_boolean", "is_floating", "is_string", "is_large_string"),
        *("is_string_view", "is_dictionary"),
    )
    image = _image_column(schema, path)
    labels = [f.name for f in schema if any(is_kind(f.type) for is_kind in simple)]
    unread = [f.name for f in schema if f.name not in (image, *labels)]
    kind = schema.field(image).type
    if types.is_struct(kind):
        fields = (kind.field(i).name for i in range(kind.num_fields))
        unread += [f"{image}.{name}" for name in fields if name not in ("bytes", "path")]
    return _Part(path, image, labels, unread)


def _image_column(schema: Any, path: Path) -> str:
    """The column that holds encoded images: a struct with the field `bytes`, or plain binary; of
    several the one that is called so.
    """
    types: Any = import_extra("pyarrow.types", "train")
    binary = _kinds(types, "is_binary", "is_large_binary", "is_binary_view")
    found: list[str] = []
    for field in schema:
        kind = field.type
        packed = types.is_struct(kind) and kind.get_field_index("bytes") >= 0
        if packed or any(check(kind) for check in binary):
            found.append(field.name)
    if not found:
        raise UserInputError(f"{path} has no column of images; its columns are {schema.names}")

    return best_named(found)


def best_named(columns: list[str]) -> str:
    """Of columns of images the one that is called so, or else the first."""

    def rank(name: str) -> tuple[bool, bool, int]:
        known = name.casefold() in IMAGE_COLUMNS
        return name not in ("image", "img"), not known, columns.index(name)

    return min(columns, key=rank)


def _same_images(first: _Part, part: _Part) -> None:
    if part.image != first.image:
        raise UserInputError(
            f"the images of {first.path} are in the column {first.image}, those of {part.path} in "
            f"{part.image}; give one of the files, or rename the column"
        )


def column_notes(image: str, unread: Sequence[str]) -> tuple[str, ...]:
    """What to say of columns that are not read, beside that of the images."""
    shown = ", ".join(unread[:8]) + (", ..." if len(unread) > 8 else "")
    notes = [f"not read: the columns {shown}"] if unread else []
    if unread and image.casefold() not in IMAGE_COLUMNS:
        notes.insert(0, f"images of the column {image}")
    return tuple(notes)


def _add_names(known: dict[str, tuple[str, ...]], schema: Any, path: Path) -> None:
    """Names of the values of whole numbers, which have to be the same in all files."""
    types: Any = import_extra("pyarrow.types", "train")
    for column, names in _value_names(schema.metadata or {}).items():
        at = schema.get_field_index(column)
        if at < 0 or not types.is_integer(schema.field(at).type):
            continue
        if known.setdefault(column, names) != names:
            raise UserInputError(
                f"{path} calls the values of {column} {', '.join(names[:8])}, and files before it "
                f"{', '.join(known[column][:8])}; give files with the same names"
            )


def _value_names(metadata: dict[bytes, bytes]) -> dict[str, tuple[str, ...]]:
    """Names of class labels as `datasets` writes them into a parquet file's schema."""
    try:
        features: Any = json.loads(metadata.get(b"huggingface", b"{}"))["info"]["features"]
        named: dict[str, Any] = {
            k: v for k, v in features.items() if isinstance(v, dict) and "names" in v
        }
        return {k: tuple(map(str, v["names"])) for k, v in named.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def encoded_cell(cell: Any) -> bytes | Path | None:
    """The bytes of an image's cell, or its path, or None."""
    if isinstance(cell, dict):
        packed = cast("dict[str, Any]", cell)
        if packed.get("bytes") is not None:
            return encoded_cell(packed["bytes"])
        return Path(packed["path"]) if packed.get("path") else None
    return cell if isinstance(cell, bytes) else None


def first_line(error: BaseException) -> str:
    """What an error says, in one line that a terminal can show: it may quote any bytes."""
    line = printable((str(error).strip() or type(error).__name__).splitlines()[0])
    return line if len(line) <= MOST_LETTERS else f"{line[: MOST_LETTERS - 3]}..."
