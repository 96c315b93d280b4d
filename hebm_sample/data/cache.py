"""Decoded images on the disk: a folder of three files, built under another name and renamed when
every byte is on the disk.

    images.npy    uint8 (N, 3, S, S), mapped into memory
    labels.npz    label columns, and what each row is known by
    meta.json     names, counts, and the sha256 of the pixels, of labels.npz and of itself

All of it is compared with its sha256 whenever it is opened, and what differs is made again: bytes
that something else changed are never trained on.
"""

import contextlib
import hashlib
import io
import json
import math
import os
import shutil
import time
import uuid
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from hebm_sample.data.decoding import DecodedChunk, decoded_chunks
from hebm_sample.data.holdout import row_keys
from hebm_sample.data.images import ImageDataset
from hebm_sample.data.labels import encode_labels
from hebm_sample.data.source import Source
from hebm_sample.errors import UserInputError
from hebm_sample.io.bars import disabled
from hebm_sample.io.files import parse_json, printable, read_regular, sync_file, sync_folder
from hebm_sample.io.made import count_made, made_note

__all__ = ["build_cache", "cache_folder", "mapped_bytes", "read_cache"]

# Raised when decoding or these files change, so that old caches are not taken for new ones.
RECIPE = 4
IMAGES, LABELS, META = "images.npy", "labels.npz", "meta.json"
MOST_BYTES = 2**33  # of labels and of the description
BLOCK = 2**26
LEFT_AFTER = 86_400.0  # seconds


def cache_folder(home: Path, source: Source, size: int) -> Path:
    """Where the decoded images of a source lie, by all that they depend on."""
    key = json.dumps([RECIPE, size, source.key])
    return home / "images" / hashlib.sha256(key.encode()).hexdigest()[:32]


def read_cache(folder: Path) -> ImageDataset | None:
    """The decoded images; None where there are none, or, with a warning, only damaged ones."""
    if not os.path.lexists(folder):
        return None
    try:
        return _read(folder)
    except Exception as error:  # whatever NumPy raises for files that something else wrote
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        warnings.warn(
            f"the decoded images in {folder} are damaged and are made again: {reason}",
            stacklevel=3,
        )
        return None


def _read(folder: Path) -> ImageDataset:
    meta = parse_json(_bytes_of(folder / META))
    _compare(META, meta.pop("sha256"), _digest(meta))
    packed = _bytes_of(folder / LABELS)
    _compare(LABELS, meta["labels"], hashlib.sha256(packed).hexdigest())
    with np.load(io.BytesIO(packed), allow_pickle=False) as columns:
        labels = {name: columns[f"column{i}"] for i, name in enumerate(meta["columns"])}
        keys = columns["keys"]
    shape: list[int] = meta["shape"]
    pixels: np.ndarray = mapped_bytes(folder / IMAGES, math.prod(shape), meta["pixels"])
    return ImageDataset(
        np.reshape(pixels, shape),
        labels,
        {k: tuple(v) for k, v in meta["label_names"].items()},
        tuple(meta["part_starts"]),
        meta["identity"],
        meta["skipped"],
        keys,
        notes=tuple(meta["notes"]),
    )


def _bytes_of(path: Path) -> bytes:
    data = read_regular(path, MOST_BYTES)
    if data is None:
        raise ValueError(f"{path.name} is no regular file")
    return data


def _compare(name: str, wanted: object, found: str) -> None:
    if wanted != found:
        raise ValueError(f"{name} does not match its sha256")


def _digest(meta: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()


def mapped_bytes(path: Path, count: int, digest: str | None) -> NDArray[np.uint8]:
    """The last `count` bytes of a file, mapped into memory; those that are mapped are those that
    are compared.

    Arguments:
        digest: Their sha256; None compares their number alone.

    Raises `ValueError` where there are fewer, or others.
    """
    mapped = np.memmap(path, np.uint8, "r")
    if len(mapped) < count:
        raise ValueError(f"{path.name} has {len(mapped)} bytes, and not the {count} of its rows")
    found, wanted = hashlib.sha256(), mapped[len(mapped) - count :]
    for start in range(0, count if digest else 0, BLOCK):
        found.update(wanted[start : start + BLOCK].data)
    if digest is not None:
        _compare(path.name, digest, found.hexdigest())
    return wanted


def build_cache(source: Source, folder: Path, size: int, shown: str, progress: bool) -> None:
    """Decode all images of a source into `folder`, unless another process has done so meanwhile.

    Arguments:
        shown: The source as it was given, for messages.

    Raises `UserInputError` where no image can be read, `OSError` where the disk fails.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    building = folder.with_name(f".{folder.name}-{uuid.uuid4().hex}")
    building.mkdir()  # not tempfile's 0700: a cache may be shared
    _remove_left(folder.parent)
    try:
        _fill(building, source, size, shown, progress)
        if os.path.lexists(folder) and _is_damaged(folder):
            _remove(folder)
        if not os.path.lexists(folder):
            building.rename(folder)
            sync_folder(folder.parent)
    except OSError:
        if _is_damaged(folder):  # else another process was faster, and its copy is as good
            raise
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _remove_left(home: Path) -> None:
    """What processes that were killed a day ago and longer had begun."""
    latest = time.time() - LEFT_AFTER
    for path in home.glob(".*-" + "[0-9a-f]" * 32):
        with contextlib.suppress(OSError):
            times = [each.lstat().st_mtime for each in (path, *path.iterdir())]
            if max(times) < latest:
                shutil.rmtree(path, ignore_errors=True)


def _is_damaged(folder: Path) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return read_cache(folder) is None


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _fill(folder: Path, source: Source, size: int, shown: str, progress: bool) -> None:
    """Write the three files, durably."""
    rows = _decode_all(source, folder / IMAGES, size, shown, progress)
    labels, values = encode_labels(rows.columns, source.label_names)
    with (folder / LABELS).open("wb") as file:
        arrays: dict[str, Any] = {f"column{i}": v for i, v in enumerate(labels.values())}
        np.savez(file, keys=row_keys(rows.known_by), **arrays)
        sync_file(file)
    identity = hashlib.sha256(rows.digest.hexdigest().encode())
    for name, column in sorted(labels.items()):
        identity.update(name.encode("utf-8", "surrogatepass") + column.tobytes())
    meta: dict[str, Any] = {
        "shape": [rows.count, 3, size, size],
        "pixels": rows.digest.hexdigest(),
        "labels": hashlib.sha256(_bytes_of(folder / LABELS)).hexdigest(),
        "columns": list(labels),
        "label_names": values,
        "part_starts": list(rows.starts.values()),
        "identity": identity.hexdigest(),
        "skipped": source.total - rows.count,
        "notes": [
            *_dropped(sorted(set(rows.columns) - set(labels))),
            *_unfit(labels, values, source.label_names),
            *made_note(rows.made),
        ],
    }
    meta = json.loads(json.dumps(meta))
    with (folder / META).open("wb") as file:
        file.write(json.dumps(meta | {"sha256": _digest(meta)}).encode())
        sync_file(file)
    sync_folder(folder)


def _dropped(columns: list[str]) -> list[str]:
    """What to say of columns that are no labels."""
    shown = ", ".join(columns[:5]) + (", ..." if len(columns) > 5 else "")
    return [f"no labels in {shown}"] if columns else []


def _unfit(
    labels: dict[str, np.ndarray],
    used: dict[str, tuple[str, ...]],
    known: dict[str, tuple[str, ...]],
) -> list[str]:
    """What to say of columns with values that the source has no names for."""
    return [
        f"{column} has the value {labels[column].max()}, and names of {len(names)} values, which "
        "are left out"
        for column, names in known.items()
        if column in labels and column not in used
    ]


@dataclass
class _Rows:
    """What is known of the rows that could be read: labels as they were found, names, the first
    row of each part, the first that could not be read and why, how many this package made, the
    hash of the pixels.
    """

    count: int = 0
    columns: dict[str, list[Any]] = field(default_factory=dict[str, "list[Any]"])
    known_by: list[str] = field(default_factory=list[str])
    starts: dict[int, int] = field(default_factory=dict[int, int])
    first_broken: str = ""
    made: int = 0
    digest: Any = field(default_factory=hashlib.sha256)

    def add(self, decoded: DecodedChunk, file: BinaryIO) -> None:
        """Write a chunk's images and take up the rest of it."""
        chunk, results = decoded.chunk, decoded.results
        self.starts.setdefault(chunk.part, self.count)
        good = {i: x for i, x in enumerate(results) if isinstance(x, np.ndarray)}
        bad = ((decoded.before + i, x) for i, x in enumerate(results) if isinstance(x, str))
        if not self.first_broken:
            self.first_broken = next((f"; row {i}: {x}" for i, x in bad), "")
        for name in chunk.labels:
            self.columns.setdefault(name, [None] * self.count)
        for name, values in self.columns.items():
            found = chunk.labels.get(name)
            values.extend(found[i] if found else None for i in good)
        self.known_by.extend(chunk.names[i] for i in good)
        self.made += count_made(chunk.images[i] for i in good)
        for image in good.values():
            data = image.tobytes()
            self.digest.update(data)
            file.write(data)
        self.count += len(good)


def _decode_all(source: Source, path: Path, size: int, shown: str, progress: bool) -> _Rows:
    """Write all readable images to `path`, with one warning about the others."""
    rows = _Rows()
    with (
        path.open("wb") as file,
        tqdm(total=source.total, desc="decoding", unit="image", disable=disabled(progress)) as bar,
    ):
        _write_header(file, source.total, size)
        for decoded in decoded_chunks(source, size):
            rows.add(decoded, file)
            bar.update(len(decoded.results))
        if rows.count == 0:
            raise UserInputError(
                f"none of the {source.total} images in {shown} can be read{rows.first_broken}"
            )
        file.seek(0)
        _write_header(file, rows.count, size)
        sync_file(file)
    if skipped := source.total - rows.count:
        warnings.warn(
            printable(
                f"{skipped} of {source.total} images in {shown} left out{rows.first_broken}"
            ),
            stacklevel=5,
        )
    return rows


def _write_header(file: BinaryIO, rows: int, size: int) -> None:
    """The .npy header; NumPy leaves it room to grow, so its length does not depend on `rows`."""
    header = {"descr": "|u1", "fortran_order": False, "shape": (rows, 3, size, size)}
    np.lib.format.write_array_header_1_0(file, header)
