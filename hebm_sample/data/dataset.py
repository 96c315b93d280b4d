"""Training images: decoded once to bytes, then drawn in an order that follows from (seed, step).

    rows of step s = a slice of permutation(seed, epoch of s)

`load_images` writes one uint8 array (N, 3, S, S) into a cache folder and maps it into memory, so
a run neither holds the images nor decodes them twice. `StepSampler` has no state: a resumed run
asks for step s and gets the rows and flips that the uninterrupted run would have got.
"""

import hashlib
import io
import json
import os
import shutil
import uuid
import warnings
import zipfile
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm

from hebm_sample.data.holdout import row_keys
from hebm_sample.data.images import ImageDataset, to_float, zoomed
from hebm_sample.data.labels import encode_labels
from hebm_sample.data.sources import Source, open_source
from hebm_sample.errors import EnvironmentFailure, HebmError, UserInputError
from hebm_sample.io.images import open_image

__all__ = ["ImageDataset", "StepSampler", "last_images", "load_images", "to_float", "zoomed"]

RECIPE = 2  # raise it when decoding changes, so that old caches are not taken for new ones
DECODING_THREADS = 2


class StepSampler:
    """Which rows a step sees, from (seed, step) alone.

    The global batch of a step, world * batch_size rows, is a slice of its epoch's permutation; a
    rank takes its own batch_size of them. What is left at an epoch's end and is smaller than a
    global batch is dropped. With fewer rows than a global batch an epoch is one step: permutations
    follow each other until it is full.

    Arguments:
        num_rows: Rows to draw from.
        batch_size: Rows a step and rank.
        seed: Of the order and the flips.
        rank: Of this process.
        world: Processes.
    """

    def __init__(
        self, num_rows: int, batch_size: int, seed: int, rank: int = 0, world: int = 1
    ) -> None:
        if num_rows < 1 or batch_size < 1 or world < 1 or not 0 <= rank < world:
            raise UserInputError(
                f"num_rows {num_rows}, batch_size {batch_size} and world {world} must be at least "
                f"1, and rank {rank} in [0, world)"
            )
        self.num_rows, self.batch_size, self.seed = num_rows, batch_size, seed
        self.rank, self.world = rank, world
        self.global_batch = batch_size * world
        self.steps_per_epoch = max(1, num_rows // self.global_batch)
        self._cached: tuple[int, Tensor] | None = None

    def epoch(self, step: int) -> int:
        """The epoch that `step` belongs to."""
        return step // self.steps_per_epoch

    def indices(self, step: int) -> Tensor:
        """Rows (batch_size,) of this rank at `step`."""
        start = step % self.steps_per_epoch * self.global_batch + self.rank * self.batch_size
        return self._order(self.epoch(step))[start : start + self.batch_size].clone()

    def flips(self, step: int) -> Tensor:
        """Which of this rank's images (batch_size,) are mirrored at `step`: fair coins."""
        coins = torch.rand(self.global_batch, generator=self._generator("flip", step)) < 0.5
        return coins[self.rank * self.batch_size :][: self.batch_size]

    def squares(self, step: int, zoom: float) -> Tensor:
        """For `zoomed`, (batch_size, 3): a random square of each of this rank's images whose
        side is at least `zoom` of the image's.
        """
        draws = torch.rand(self.global_batch, 3, generator=self._generator("zoom", step))
        draws[:, 0] = zoom + (1 - zoom) * draws[:, 0]
        return draws[self.rank * self.batch_size :][: self.batch_size]

    def _order(self, epoch: int) -> Tensor:
        if self._cached is None or self._cached[0] != epoch:
            generator = self._generator("order", epoch)
            repeats = -(-self.global_batch // self.num_rows)
            order = [torch.randperm(self.num_rows, generator=generator) for _ in range(repeats)]
            self._cached = epoch, torch.cat(order)
        return self._cached[1]

    def _generator(self, purpose: str, number: int) -> torch.Generator:
        # Hashed, because generators seeded with neighbouring numbers must not be related.
        digest = hashlib.sha256(f"{purpose} {self.seed} {number}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def load_images(
    source: str | Path,
    *,
    size: int,
    split: str | None = None,
    cache_dir: Path | None = None,
    progress: bool = True,
) -> ImageDataset:
    """Open a set of images, decoding it on first use.

    Arguments:
        source: A folder of images, a parquet file, a folder of parquet files, or a Hub data set
            `owner/name`.
        size: Side of the squares, in pixels: centre crop, then reduction.
        split: Of parquet files, folders and Hub sets; by default `train`, or everything if there
            is none.
        cache_dir: Where decoded images are kept; by default $HEBM_CACHE or ~/.cache/hebm_sample.
        progress: Show a bar while decoding.

    Images that cannot be read are left out and counted in one warning. Raises `UserInputError`
    if there is no image at all, `EnvironmentFailure` if the disk or the [train] extra fails.
    """
    if size < 1:
        raise UserInputError(f"size is {size}; it must be at least 1")
    opened = open_source(source, split)
    key = json.dumps([RECIPE, size, opened.key])
    home = cache_dir or Path(
        os.environ.get("HEBM_CACHE") or Path.home() / ".cache" / "hebm_sample"
    )
    folder = Path(home).expanduser() / "images" / hashlib.sha256(key.encode()).hexdigest()[:32]
    try:
        if (cached := _read_cache(folder)) is not None:
            return _described(cached, opened)
        _build_cache(opened, folder, size, str(source), progress)
    except OSError as error:
        raise EnvironmentFailure(f"decoded images could not be kept in {home}: {error}") from error
    if (built := _read_cache(folder)) is None:
        raise EnvironmentFailure(
            f"decoded images could not be read back from {folder}; remove it and try again"
        )
    return _described(built, opened)


def _described(images: ImageDataset, source: Source) -> ImageDataset:
    """With what the source says of itself."""
    left_out = {"that cannot be read": images.skipped} if images.skipped else {}
    return replace(
        images,
        left_out=left_out | source.left_out,
        notes=(*images.notes, *source.notes),
    )


def last_images(
    source: str | Path, *, size: int, count: int, split: str | None = None
) -> tuple[np.ndarray, str]:
    """The last `count` images of a set that can be read, uint8 (N, 3, size, size), and a hash of
    them; no other is decoded, and nothing is kept. Raises `UserInputError` if there is none.
    """
    encoded: deque[bytes | Path | None] = deque(maxlen=count)
    for chunk in open_source(source, split).chunks():
        encoded.extend(chunk.images)
    with ThreadPoolExecutor(DECODING_THREADS) as pool:
        found = list(pool.map(lambda p: _decode(p, size), encoded))
    good = [x for x in found if isinstance(x, np.ndarray)]
    if not good:
        reason = next((x for x in found if isinstance(x, str)), "it is empty")
        raise UserInputError(f"none of the last {count} images in {source} can be read: {reason}")
    images = np.stack(good)
    return images, hashlib.sha256(images.tobytes()).hexdigest()


def _read_cache(folder: Path) -> ImageDataset | None:
    """The decoded images, or None if they are not there whole."""
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        images = np.load(folder / "images.npy", mmap_mode="r", allow_pickle=False)
        with np.load(folder / "labels.npz", allow_pickle=False) as columns:
            labels = {name: columns[f"column{i}"] for i, name in enumerate(meta["columns"])}
            keys = columns["keys"]
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        return None
    names = {k: tuple(v) for k, v in meta["label_names"].items()}
    return ImageDataset(
        images,
        labels,
        names,
        tuple(meta["part_starts"]),
        meta["identity"],
        meta["skipped"],
        keys,
        notes=tuple(meta["notes"]),
    )


def _build_cache(source: Source, folder: Path, size: int, shown: str, progress: bool) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    building = folder.with_name(f".{folder.name}-{uuid.uuid4().hex}")
    building.mkdir()  # not tempfile's 0700: a cache may be shared
    try:
        meta, columns, names = _decode_all(source, building / "images.npy", size, shown, progress)
        labels, values = encode_labels(columns, source.label_names)
        with (building / "labels.npz").open("wb") as file:
            arrays: dict[str, Any] = {f"column{i}": v for i, v in enumerate(labels.values())}
            np.savez(file, keys=row_keys(names), **arrays)
        digest = hashlib.sha256(meta.pop("digest").encode())
        for name, column in sorted(labels.items()):
            digest.update(name.encode() + column.tobytes())
        meta |= {"columns": list(labels), "label_names": values, "identity": digest.hexdigest()}
        meta["notes"] = _dropped(sorted(set(columns) - set(labels)))
        (building / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
        if folder.exists() and _read_cache(folder) is None:
            shutil.rmtree(folder)
        if not folder.exists():
            building.rename(folder)
    except OSError:
        if _read_cache(folder) is None:  # else another process was faster, and its copy is as good
            raise
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _dropped(columns: list[str]) -> list[str]:
    """What to say of columns that are no labels."""
    shown = ", ".join(columns[:5]) + (", ..." if len(columns) > 5 else "")
    return [f"no labels in {shown}"] if columns else []


def _decode_all(
    source: Source, path: Path, size: int, shown: str, progress: bool
) -> tuple[dict[str, Any], dict[str, list[Any]], list[str]]:
    """Write all readable images to `path`; returns facts about them, their raw labels, and what
    each row is known by.
    """
    columns: dict[str, list[Any]] = {}
    known_by: list[str] = []
    starts: dict[int, int] = {}
    rows, first_broken, digest = 0, "", hashlib.sha256()
    with (
        path.open("wb") as file,
        tqdm(total=source.total, desc="decoding", unit="image", disable=not progress) as bar,
    ):
        _write_header(file, source.total, size)
        for part, seen, results, labels, names in _decoded(source, size):
            starts.setdefault(part, rows)
            good = {i: r for i, r in enumerate(results) if isinstance(r, np.ndarray)}
            bad = (f"; row {seen + i}: {r}" for i, r in enumerate(results) if isinstance(r, str))
            first_broken = first_broken or next(bad, "")
            for name in labels:
                columns.setdefault(name, [None] * rows)
            for name, values in columns.items():
                found = labels.get(name)
                values.extend(found[i] if found else None for i in good)
            known_by.extend(names[i] for i in good)
            for image in good.values():
                data = image.tobytes()
                digest.update(data)
                file.write(data)
            rows += len(good)
            bar.update(len(results))
        if rows == 0:
            raise UserInputError(
                f"none of the {source.total} images in {shown} can be read{first_broken}"
            )
        file.seek(0)
        _write_header(file, rows, size)
    skipped = source.total - rows
    if skipped:
        warnings.warn(
            f"{skipped} of {source.total} images in {shown} left out{first_broken}",
            stacklevel=4,
        )
    meta = {"part_starts": list(starts.values()), "skipped": skipped, "digest": digest.hexdigest()}
    return meta, columns, known_by


def _decoded(
    source: Source, size: int
) -> Iterator[tuple[int, int, list[np.ndarray | str], dict[str, list[Any]], list[str]]]:
    """(part, rows before, images or reasons, labels, names) a chunk: one chunk is in memory at
    once.
    """
    seen = 0
    with ThreadPoolExecutor(DECODING_THREADS) as pool:
        for chunk in source.chunks():
            results = list(pool.map(lambda p: _decode(p, size), chunk.images))
            yield chunk.part, seen, results, chunk.labels, chunk.names
            seen += len(results)


def _decode(encoded: bytes | Path | None, size: int) -> np.ndarray | str:
    """One encoded image to uint8 (3, size, size), or the reason why it cannot be."""
    if encoded is None:
        return "empty"
    try:
        image = open_image(encoded if isinstance(encoded, Path) else io.BytesIO(encoded))
    except HebmError as error:
        return str(error)
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    square = image.crop((left, top, left + side, top + side))
    if side != size:
        square = square.resize((size, size), Image.Resampling.LANCZOS, reducing_gap=3.0)
    return np.ascontiguousarray(np.asarray(square).transpose(2, 0, 1))


def _write_header(file: BinaryIO, rows: int, size: int) -> None:
    """The .npy header; NumPy leaves it room to grow, so its length does not depend on `rows`."""
    header = {"descr": "|u1", "fortran_order": False, "shape": (rows, 3, size, size)}
    np.lib.format.write_array_header_1_0(file, header)
