"""Where pictures come from: folders, parquet files and Hub data sets, as a stream of encoded rows.

Files are taken in sorted order, so that a row's number means the same picture on every machine.
Nothing is decoded here: a `Chunk` holds encoded bytes or a path, and the labels as they were
found. Names follow the conventions of Hugging Face data sets: `metadata.jsonl` or `metadata.csv`
with a column `file_name`, one folder a class without them, `train-00000-of-00003.parquet` or a
folder `train/` for splits. Two data sets are also read as their authors publish them: LSUN's LMDBs
(`lmdb_pictures.py`) and the attributes of CelebA and CelebA-HQ (`celeba.py`).
"""

import json
import re
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from hebm_sample.data.celeba import find_attributes, read_attributes
from hebm_sample.data.lmdb import (
    DATA_FILE,
    count_values,
    find_lmdb,
    iterate_values,
)
from hebm_sample.data.metadata import METADATA_NAMES, metadata_rows
from hebm_sample.errors import EnvironmentFailure, HubError, UserInputError

__all__ = ["Chunk", "Source", "encode_labels", "open_source"]

CHUNK_ROWS = 256
PICTURE_SUFFIXES = (".jpeg", ".jpg", ".png", ".webp")
MAX_NAMED_VALUES = 256
UNKNOWN = -1
ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".001")


class Chunk(NamedTuple):
    """Consecutive rows of one source file: pictures as encoded bytes or paths, labels a column."""

    part: int
    pictures: list[bytes | Path | None]
    labels: dict[str, list[Any]]


class Source(NamedTuple):
    """A set of pictures before decoding.

    Arguments:
        key: Names, sizes and modification times of all files: what the decoded copy depends on.
        total: Rows.
        label_names: Names of a label column's values 0, 1, ..., where the files say them.
        chunks: Starts a pass over the rows.
    """

    key: list[Any]
    total: int
    label_names: dict[str, tuple[str, ...]]
    chunks: Callable[[], Iterator[Chunk]]


def open_source(source: str | Path, split: str | None) -> Source:
    """Find the files of `source`.

    Raises `UserInputError` if there are none, `HubError` or `EnvironmentFailure` if reading fails.
    """
    path = Path(source).expanduser()
    _refuse_pickles(path)
    if path.is_dir():
        if (lmdb := find_lmdb(path, split)) is not None:
            return _lmdb_source(lmdb, path)
        parquet = _visible(path, (".parquet",))
        return _parquet_source(parquet, path, split) if parquet else _folder_source(path, split)
    if path.is_file():
        if path.name == DATA_FILE:
            return _lmdb_source(path.parent, path.parent)
        if path.suffix.lower() in ARCHIVES:
            raise UserInputError(f"{path} is an archive; unpack it and give the folder")
        if path.suffix.lower() != ".parquet":
            raise UserInputError(
                f"{path} is not a parquet file; give a .parquet file or a folder of pictures"
            )
        return _parquet_source([path], path.parent, split)
    if re.fullmatch(r"[\w.-]+/[\w.-]+", str(source)) and ".." not in str(source):
        return _hub_source(str(source), split)
    raise UserInputError(
        f"no pictures at {source}: give a folder of pictures, a parquet file, a folder of parquet "
        "files, a folder with an LMDB, or a Hub data set as owner/name"
    )


def _refuse_pickles(path: Path) -> None:
    """CIFAR-10's and CIFAR-100's archives for Python hold pickles, and those can run code."""
    batches = [path / "data_batch_1", path / "cifar-10-batches-py/data_batch_1"]
    if re.match(r"cifar-100?-python(\.|$)", path.name) or any(b.is_file() for b in batches):
        raise UserInputError(
            f"{path} holds Python pickles, which can run code when they are opened and are never "
            "read here; take the parquet files of the Hub instead: --data uoft-cs/cifar10"
        )


def _visible(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """Files below `folder` with one of the suffixes, sorted by relative name; no hidden ones."""
    found = (p for p in folder.rglob("*") if p.suffix.lower() in suffixes and p.is_file())
    relative = sorted(p.relative_to(folder).as_posix() for p in found)
    return [
        folder / name
        for name in relative
        if not any(part.startswith(".") for part in name.split("/"))
    ]


def _stamp(path: Path, root: Path) -> list[Any]:
    stat = path.stat()
    return [path.relative_to(root).as_posix(), stat.st_size, stat.st_mtime_ns]


def encode_labels(
    columns: dict[str, list[Any]], known_names: dict[str, tuple[str, ...]]
) -> tuple[dict[str, np.ndarray], dict[str, tuple[str, ...]]]:
    """Columns that are labels, as int64 with -1 where unknown, and their values' names.

    Texts are numbered in alphabetical order. Many texts, fractions and nested values are no
    labels.
    """
    labels, names = {}, {}
    for column, values in columns.items():
        known = [v for v in values if v is not None]
        if known and all(isinstance(v, str) for v in known):
            number = {v: int(v) for v in known if re.fullmatch(r"\s*-?[0-9]+\s*", v)}
            if len(number) < len(set(known)):
                distinct = sorted(set(known))
                if len(distinct) > MAX_NAMED_VALUES:  # captions or file names, not labels
                    continue
                names[column] = tuple(distinct)
                number = {name: i for i, name in enumerate(distinct)}
            values = [None if v is None else number[v] for v in values]
        elif not all(isinstance(v, int) for v in known):
            continue
        if any(v is not None and abs(v) >= 2**31 for v in values):
            continue
        labels[column] = np.array(
            [UNKNOWN if v is None or v < 0 else v for v in values], dtype=np.int64
        )
        if column in known_names:
            names[column] = known_names[column]
    return labels, names


# Folders of pictures


def _folder_source(folder: Path, split: str | None) -> Source:
    """Pictures as files; labels from a metadata file, CelebA's table, or the folders' names."""
    attributes = find_attributes(folder)
    folder = _split_folder(folder, split)
    files = _visible(folder, PICTURE_SUFFIXES)
    if not files:
        raise UserInputError(
            f"no pictures in {folder}: it has no {', '.join(PICTURE_SUFFIXES)} or .parquet files"
        )
    tables = [p for p in sorted(folder.rglob("metadata.*")) if p.name in METADATA_NAMES]
    if attributes is not None and not tables:
        if (found := _attribute_source(files, folder, attributes)) is not None:
            return found
    rows: dict[Path, dict[str, Any]] = {}
    for table in tables:
        rows.update(metadata_rows(table))
    if tables and not any(f in rows for f in files):
        raise UserInputError(f"{tables[0]} names none of the {len(files)} pictures in its folder")
    if not tables:
        rows = _class_folders(files, folder)
    columns = list(dict.fromkeys(name for row in rows.values() for name in row))

    def chunks() -> Iterator[Chunk]:
        for i in range(0, len(files), CHUNK_ROWS):
            some = files[i : i + CHUNK_ROWS]
            labels = {c: [rows.get(f, {}).get(c) for f in some] for c in columns}
            yield Chunk(0, list(some), labels)

    key = [_stamp(p, folder) for p in (*tables, *files)]
    return Source(key, len(files), {}, chunks)


def _split_folder(folder: Path, split: str | None) -> Path:
    """The folder of a split below `folder`; by default train's, or all of `folder` without one."""
    if (folder / (split or "train")).is_dir():
        return folder / (split or "train")
    if split is not None:
        raise UserInputError(f"{folder} has no folder {split!r} for that split")
    return folder


def _attribute_source(files: list[Path], folder: Path, path: Path) -> Source | None:
    """Pictures as files, with the attributes of CelebA or CelebA-HQ; None if the table lies beside
    the folder and is of other pictures.
    """
    table = read_attributes(path)
    if not any(f.stem in table.rows for f in files):
        if not path.is_relative_to(folder):
            return None
        raise UserInputError(f"{path} names none of the {len(files)} pictures in {folder}")

    def chunks() -> Iterator[Chunk]:
        for i in range(0, len(files), CHUNK_ROWS):
            some = files[i : i + CHUNK_ROWS]
            yield Chunk(0, list(some), dict(table.columns(some)))

    key = [_stamp(path, path.parent), *(_stamp(p, folder) for p in files)]
    return Source(key, len(files), {name: ("no", "yes") for name in table.names}, chunks)


def _class_folders(files: list[Path], folder: Path) -> dict[Path, dict[str, Any]]:
    """`label` from a picture's folder, if all lie one folder deep in several folders."""
    if any(f.parent.parent != folder for f in files) or len({f.parent for f in files}) < 2:
        return {}
    return {f: {"label": f.parent.name} for f in files}


# LMDBs


def _lmdb_source(folder: Path, root: Path) -> Source:
    lmdb = _train_extra("lmdb")
    total = count_values(lmdb, folder)

    def chunks() -> Iterator[Chunk]:
        values = iterate_values(lmdb, folder)
        while some := list(islice(values, CHUNK_ROWS)):
            yield Chunk(0, list(some), {})

    return Source([_stamp(folder / DATA_FILE, root)], total, {}, chunks)


# Parquet files


def _select_split(files: list[Path], split: str | None) -> list[Path]:
    """The files whose names begin with the split's; by default train's, or all without any."""
    found: dict[str, list[Path]] = {}
    for f in files:
        named = re.match(r"[A-Za-z]+", f.stem)
        found.setdefault(named.group().lower() if named else "", []).append(f)
    if split is None:
        return found.get("train", files)
    if split.lower() not in found:
        raise UserInputError(
            f"no parquet file of the split {split!r}; there are {sorted(filter(None, found))}"
        )
    return found[split.lower()]


def _parquet_source(files: list[Path], root: Path, split: str | None) -> Source:
    parquet = _train_extra("pyarrow.parquet")
    files = _select_split(files, split)
    total, names = 0, {}
    for f in files:
        try:
            opened = parquet.ParquetFile(f)
        except (OSError, ValueError) as error:  # pyarrow's ArrowInvalid is a ValueError
            raise EnvironmentFailure(f"{f} is not a readable parquet file: {error}") from error
        total += opened.metadata.num_rows
        _image_column(opened.schema_arrow, f)
        names.update(_value_names(opened.schema_arrow.metadata or {}))

    def chunks() -> Iterator[Chunk]:
        for part, f in enumerate(files):
            opened = parquet.ParquetFile(f)
            image = _image_column(opened.schema_arrow, f)
            wanted = _wanted_columns(opened.schema_arrow, image)
            try:
                for batch in opened.iter_batches(CHUNK_ROWS, columns=wanted):
                    columns = batch.to_pydict()
                    pictures = [_encoded(cell) for cell in columns.pop(image)]
                    yield Chunk(part, pictures, columns)
            except (OSError, ValueError) as error:
                raise EnvironmentFailure(f"{f} is damaged: {error}") from error

    return Source([_stamp(f, root) for f in files], total, names, chunks)


def _image_column(schema: Any, path: Path) -> str:
    """The column that holds encoded pictures: a struct with the field `bytes`, or plain binary."""
    types = _train_extra("pyarrow.types")
    found = []
    for field in schema:
        kind = field.type
        packed = types.is_struct(kind) and kind.get_field_index("bytes") >= 0
        if packed or types.is_binary(kind) or types.is_large_binary(kind):
            found.append(field.name)
    if not found:
        raise UserInputError(f"{path} has no column of pictures; its columns are {schema.names}")
    return min(found, key=lambda name: (name not in ("image", "img"), found.index(name)))


def _wanted_columns(schema: Any, image: str) -> list[str]:
    types = _train_extra("pyarrow.types")
    simple = (
        types.is_integer,
        types.is_boolean,
        types.is_string,
        types.is_large_string,
        types.is_dictionary,
    )
    return [
        f.name for f in schema if f.name == image or any(is_kind(f.type) for is_kind in simple)
    ]


def _value_names(metadata: dict[bytes, bytes]) -> dict[str, tuple[str, ...]]:
    """Names of class labels as `datasets` writes them into a parquet file's schema."""
    try:
        features = json.loads(metadata.get(b"huggingface", b"{}"))["info"]["features"]
        return {
            k: tuple(v["names"])
            for k, v in features.items()
            if isinstance(v, dict) and "names" in v
        }
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}


def _encoded(cell: Any) -> bytes | Path | None:
    if isinstance(cell, dict):
        if cell.get("bytes") is not None:
            return cell["bytes"]
        return Path(cell["path"]) if cell.get("path") else None
    return cell


# The Hub


def _hub_source(name: str, split: str | None) -> Source:
    """A Hub data set through `datasets`, map-style, so that row numbers are fixed."""
    datasets = _train_extra("datasets")
    try:
        table = datasets.load_dataset(name, split=split or "train")
    except (datasets.exceptions.DatasetNotFoundError, ValueError) as error:
        raise UserInputError(
            f"{name} is neither a folder here nor a data set on the Hub with the split "
            f"{split or 'train'!r}: {_first_line(error)}"
        ) from error
    except Exception as error:  # the client raises whatever its transport raises
        raise HubError(
            f"the data set {name} could not be fetched: {_first_line(error)}"
        ) from error
    images = [k for k, v in table.features.items() if isinstance(v, datasets.Image)]
    if not images:
        raise UserInputError(
            f"the data set {name} has no column of pictures; it has {list(table.features)}"
        )
    names = {
        k: tuple(v.names) for k, v in table.features.items() if isinstance(v, datasets.ClassLabel)
    }
    simple = [
        k
        for k, v in table.features.items()
        if isinstance(v, (datasets.Value, datasets.ClassLabel))
    ]
    table = table.select_columns([images[0], *simple]).cast_column(
        images[0], datasets.Image(decode=False)
    )

    def chunks() -> Iterator[Chunk]:
        for start in range(0, len(table), CHUNK_ROWS):
            columns = table[start : start + CHUNK_ROWS]
            pictures = [_encoded(cell) for cell in columns.pop(images[0])]
            yield Chunk(0, pictures, columns)

    return Source([name, split, table._fingerprint], len(table), names, chunks)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _train_extra(module: str) -> ModuleType:
    """Import a module of the [train] extra, or say how to get it."""
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.split(".")[0]
        raise EnvironmentFailure(
            f'this needs {package}, which is not installed: pip install "hebm-sample[train]"'
        ) from error
