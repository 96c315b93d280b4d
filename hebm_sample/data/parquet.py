"""Parquet files with encoded images, as Hugging Face data sets write them."""

import json
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, cast

from hebm_sample.data import source as rows_source
from hebm_sample.data.source import Chunk, Source, stamp
from hebm_sample.data.splits import by_split, pick_split
from hebm_sample.errors import EnvironmentFailure, UserInputError
from hebm_sample.io.extras import import_extra

__all__ = ["encoded_cell", "first_line", "parquet_source"]

MOST_LETTERS = 300


def parquet_source(
    names: list[str], root: Path, split: str | None, left_out: dict[str, int]
) -> Source:
    """Rows of the files of one split, in the order of their names.

    Arguments:
        names: Of the files below `root`.
        split: As of `splits.pick_split`.
        left_out: Of what lies beside them.
    """
    parquet = import_extra("pyarrow.parquet", "train")
    found, others = pick_split(by_split(map(PurePosixPath, names)), split, str(root))
    files = [root / path for path in found]
    total, label_names = 0, dict[str, tuple[str, ...]]()
    for f in files:
        opened = _open(parquet, f)
        total += opened.metadata.num_rows
        _image_column(opened.schema_arrow, f)
        label_names.update(_value_names(opened.schema_arrow.metadata or {}))

    def chunks() -> Iterator[Chunk]:
        for part, f in enumerate(files):
            yield from _chunks(_open(parquet, f), part, f, root)

    left_out = left_out | ({".parquet of other splits": others} if others else {})
    return Source([stamp(f, root) for f in files], total, label_names, chunks, left_out)


def _open(parquet: Any, path: Path) -> Any:
    try:
        return parquet.ParquetFile(path)
    except Exception as error:  # a damaged header makes the reader raise anything
        raise EnvironmentFailure(
            f"{path} is not a readable parquet file: {first_line(error)}"
        ) from error


def _chunks(opened: Any, part: int, path: Path, root: Path) -> Iterator[Chunk]:
    image = _image_column(opened.schema_arrow, path)
    wanted = _wanted_columns(opened.schema_arrow, image)
    # Files of a set that grows: train-00000-of-00003 is train-00000-of-00004 later.
    name = re.sub(r"-of-\d+", "", path.relative_to(root).as_posix())
    row = 0
    batches = opened.iter_batches(rows_source.CHUNK_ROWS, columns=wanted)
    while True:
        try:
            batch = next(batches, None)
            columns = None if batch is None else batch.to_pydict()
        except Exception as error:
            raise EnvironmentFailure(f"{path} is damaged: {first_line(error)}") from error
        if columns is None:
            return
        images = [encoded_cell(cell) for cell in columns.pop(image)]
        names = [f"{name}:{row + i}" for i in range(len(images))]
        row += len(images)
        yield Chunk(part, images, columns, names)


def _kinds(types: Any, *names: str) -> list[Any]:
    """The checks of these names that this pyarrow has: views came with 16."""
    return [check for name in names if (check := getattr(types, name, None)) is not None]


def _image_column(schema: Any, path: Path) -> str:
    """The column that holds encoded images: a struct with the field `bytes`, or plain binary."""
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
    return min(found, key=lambda name: (name not in ("image", "img"), found.index(name)))


def _wanted_columns(schema: Any, image: str) -> list[str]:
    types = import_extra("pyarrow.types", "train")
    simple = _kinds(
        types,
        *("is_integer", "is_boolean", "is_floating", "is_string", "is_large_string"),
        *("is_string_view", "is_dictionary"),
    )
    return [
        f.name for f in schema if f.name == image or any(is_kind(f.type) for is_kind in simple)
    ]


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
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    line = "".join(c if c.isprintable() else "?" for c in line)
    return line if len(line) <= MOST_LETTERS else f"{line[: MOST_LETTERS - 3]}..."
