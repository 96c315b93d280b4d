"""Training images: decoded once to bytes, then taken in an order that follows from (seed, step).

    rows of step s = a slice of permutation(seed, epoch of s)

`load_images` writes one uint8 array (N, 3, S, S) into a cache folder (`cache.py`) and maps it into
memory, so a run neither holds the images nor decodes them twice. `StepSampler` has no state: a
resumed run asks for step s and gets the rows and flips that the uninterrupted run would have got.
"""

import hashlib
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hebm_sample.data.cache import build_cache, cache_folder, read_cache
from hebm_sample.data.decoding import decode_squares
from hebm_sample.data.holdout import random_rows
from hebm_sample.data.images import UNREADABLE, ImageDataset, to_float, zoomed
from hebm_sample.data.sources import Source, open_source
from hebm_sample.errors import EnvironmentFailure, UserInputError
from hebm_sample.io.files import cache_home

__all__ = ["ImageDataset", "StepSampler", "last_images", "load_images", "to_float", "zoomed"]

FLOATS: Any = {"dtype": torch.float32, "device": "cpu"}  # whatever the process's defaults are


class StepSampler:
    """Which rows a step sees, from (seed, step) alone.

    The global batch of a step, world * batch_size rows, is a slice of its epoch's permutation; a
    rank takes its own batch_size of them. What is left at an epoch's end and is smaller than a
    global batch is dropped. With fewer rows than a global batch an epoch is one step: permutations
    follow each other until it is full.

    Arguments:
        num_rows: Rows to draw from.
        batch_size: Rows per step and rank.
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
        draws = torch.rand(self.global_batch, generator=self._generator("flip", step), **FLOATS)
        coins = draws < 0.5
        return coins[self.rank * self.batch_size :][: self.batch_size]

    def squares(self, step: int, zoom: float) -> Tensor:
        """For `zoomed`, (batch_size, 3): a random square of each of this rank's images whose
        side is at least `zoom` of the image's.
        """
        stream = self._generator("zoom", step)
        draws = torch.rand(self.global_batch, 3, generator=stream, **FLOATS)
        draws[:, 0] = zoom + (1 - zoom) * draws[:, 0]
        return draws[self.rank * self.batch_size :][: self.batch_size]

    def _order(self, epoch: int) -> Tensor:
        if self._cached is None or self._cached[0] != epoch:
            generator = self._generator("order", epoch)
            repeats = -(-self.global_batch // self.num_rows)
            order = [
                torch.randperm(self.num_rows, generator=generator, device="cpu")
                for _ in range(repeats)
            ]
            self._cached = epoch, torch.cat(order)
        return self._cached[1]

    def _generator(self, purpose: str, number: int) -> torch.Generator:
        # Hashed, because generators seeded with neighbouring numbers must not be related.
        digest = hashlib.sha256(f"{purpose} {self.seed} {number}".encode()).digest()
        return torch.Generator("cpu").manual_seed(int.from_bytes(digest[:8], "little") >> 1)


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

    Images that cannot be read are left out and counted in one warning, and decoded ones that
    something else has damaged are decoded again, with one. Raises `UserInputError`
    if there is no image at all, `EnvironmentFailure` if the disk or the [train] extra fails.
    """
    if size < 1:
        raise UserInputError(f"size is {size}; it must be at least 1")
    opened, home = open_source(source, split), cache_home(cache_dir)
    folder = cache_folder(home, opened, size)
    try:
        if (images := read_cache(folder)) is None:
            build_cache(opened, folder, size, str(source), progress)
            images = read_cache(folder)
    except OSError as error:
        raise EnvironmentFailure(
            f"decoded images could not be kept in {home}: {error}; set HEBM_CACHE to a folder "
            "that can be written"
        ) from error
    if images is None:
        raise EnvironmentFailure(
            f"decoded images could not be read back from {folder}; remove it and try again"
        )
    return _described(images, opened)


def _described(images: ImageDataset, source: Source) -> ImageDataset:
    """With what the source says of itself."""
    left_out = {UNREADABLE: images.skipped} if images.skipped else {}
    return replace(
        images,
        left_out=left_out | source.left_out,
        notes=(*images.notes, *source.notes),
        taken=source.taken,
        by_name=source.by_name,
    )


def last_images(
    source: str | Path,
    *,
    size: int,
    count: int,
    split: str | None = None,
    opened: Callable[[Source], object] = lambda _: None,
) -> tuple[np.ndarray, str]:
    """The last `count` images of a set that can be read, of a folder of files random ones, uint8
    (N, 3, size, size), and a hash of them; no other is decoded, and nothing is kept. `opened` is
    told of the set before. Raises `UserInputError` if there is none.
    """
    opened(rows := open_source(source, split))
    encoded: deque[bytes | Path | None] = deque(maxlen=None if rows.by_name else count)
    for chunk in rows.chunks():
        encoded.extend(chunk.images)
    if rows.by_name:  # the last are of the last class
        files, chosen = list(encoded), np.sort(random_rows(len(encoded), count))
        encoded = deque(files[int(i)] for i in chosen)
    found = decode_squares(encoded, size)
    good = [x for x in found if isinstance(x, np.ndarray)]
    if not good:
        reason = next((x for x in found if isinstance(x, str)), "it is empty")
        raise UserInputError(f"none of the last {count} images in {source} can be read: {reason}")
    images = np.stack(good)
    return images, hashlib.sha256(images.tobytes()).hexdigest()
