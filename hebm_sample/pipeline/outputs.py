"""What sampling takes and what it returns: seeds in, images with their latents and
energies out, or with all that they were on the way.
"""

import operator
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal, SupportsIndex

import torch
from PIL import Image
from torch import Tensor

from hebm_sample.config import DecoderName, plain, require_integer
from hebm_sample.errors import UserInputError
from hebm_sample.io.animation import ANIMATED, SECONDS, save_animation
from hebm_sample.io.images import grid, png_bytes, save_png, to_pil
from hebm_sample.io.seeds import MAX_SEEDS, format_seeds
from hebm_sample.latents import Latents

__all__ = ["OutputType", "Samples", "Trajectory", "choose_seeds", "to_output"]

OutputType = Literal["pil", "numpy", "torch"]

# What a notebook shows of many images.
SHOWN_IMAGES, SHOWN_SIDE = 64, 1024


@dataclass(frozen=True, repr=False)
class Samples:
    """What a call returns.

    Arguments:
        images: N PIL images; or (N, S, S, 3) floats in [0, 1] ("numpy"); or (N, 3, S, S) in [0,
            1] ("torch").
        latents: u, on the CPU: (N, C_i, H_i, W_i) a group.
        energies: -F_{i}, of each group alone, at the level just done, with the condition: (N, L).
            Without symbols they sum to -F. None where the model has no energies.
        seeds: The seed of each image.
        level: Noise level just done; 0 for a finished image.
        columns: Of the grid that the images belong on; None if they are in no order.
        decoder: What decoded u, "sharp" or "likelihood"; None where nobody says.

    >>> grey = Image.new("RGB", (8, 8), "grey")
    >>> samples = Samples([grey] * 3, (torch.zeros(3, 2, 4, 4),), None, seeds=(0, 1, 2))
    >>> len(samples), samples.seeds
    (3, (0, 1, 2))
    >>> samples.grid(columns=3).size
    (28, 8)
    """

    images: Any
    latents: Latents
    energies: Tensor | None
    seeds: tuple[int, ...]
    level: int = 0
    columns: int | None = None
    decoder: DecoderName | None = None

    def __len__(self) -> int:
        """N."""
        return len(self.seeds)

    def grid(self, columns: int | None = None) -> Image.Image:
        """All images on one grid: `columns` a row, by default their own order's, or as near to
        a square as can be.
        """
        columns = columns or self.columns
        if isinstance(self.images, Tensor):
            return grid(to_pil(self.images * 2 - 1), columns)
        if isinstance(self.images, list):
            return grid(self.images, columns)
        return grid(to_pil(torch.from_numpy(self.images).permute(0, 3, 1, 2) * 2 - 1), columns)

    def __repr__(self) -> str:
        """How many, and their seeds; not every number."""
        noun = "image" if len(self) == 1 else "images"
        return f"<Samples: {len(self)} {noun}, seeds {_short(self.seeds)}, level {self.level}>"

    def _repr_png_(self) -> bytes:
        """What a notebook shows: the first 64 images, reduced to 1024 pixels per side."""
        some = slice(0, SHOWN_IMAGES)
        return _reduced(replace(self, images=self.images[some], seeds=self.seeds[some]).grid())


@dataclass(frozen=True, repr=False)
class Trajectory:
    """Images on their way from noise.

    Arguments:
        steps: `Samples` after each noise level, from the noisiest to the finished images.
    """

    steps: tuple[Samples, ...]

    def __len__(self) -> int:
        """The number of steps, which is that of the frames."""
        return len(self.steps)

    @property
    def samples(self) -> Samples:
        """The finished images: what a call returns for the same seeds."""
        return self.steps[-1]

    @property
    def frames(self) -> list[Image.Image]:
        """A grid of all images after each step."""
        return [step.grid() for step in self.steps]

    def grid(self) -> Image.Image:
        """One grid: a row per image, a column per step."""
        rows = zip(*(step.images for step in self.steps), strict=True)
        return grid([image for row in rows for image in row], len(self))

    def save(
        self,
        path: str | os.PathLike[str],
        seconds: float = SECONDS,
        text: Mapping[str, str] | None = None,
    ) -> None:
        """Write it: frames that move as .gif or .webp, the grid as .png.

        Arguments:
            path: Its ending says which.
            seconds: How long the frames move before the last is held.
            text: Facts to write into the file.
        """
        ending = Path(path).suffix.lower()
        if ending in ANIMATED:
            save_animation(self.frames, path, seconds, text)
        elif ending == ".png":
            save_png(self.grid(), path, text)
        else:
            raise UserInputError(
                f"a trajectory goes to {str(path)!r}; end it in .png, {' or '.join(ANIMATED)}"
            )

    def __repr__(self) -> str:
        """How long it is, and of what."""
        return f"<Trajectory: {len(self)} steps to {self.samples!r}>"

    def _repr_png_(self) -> bytes:
        """What a notebook shows: the grid, reduced to 1024 pixels per side."""
        return _reduced(self.grid())


def _short(seeds: Sequence[int]) -> str:
    """The seeds as they are typed, if that is short."""
    text = format_seeds(seeds)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _reduced(image: Image.Image) -> bytes:
    """PNG of at most `SHOWN_SIDE` pixels per side."""
    image.thumbnail((SHOWN_SIDE, SHOWN_SIDE))
    return png_bytes(image)


def choose_seeds(num_images: int | None, seeds: int | Iterable[int] | None) -> tuple[int, ...]:
    """The chosen seeds; 0 ... n-1 where none were.

    >>> choose_seeds(3, None), choose_seeds(None, [7, 11]), choose_seeds(None, None)
    ((0, 1, 2), (7, 11), (0,))
    """
    num_images, seeds = plain(num_images), plain(seeds)
    if num_images is not None:
        require_integer("num_images", num_images, 1, MAX_SEEDS)
    if isinstance(seeds, SupportsIndex) and not hasattr(seeds, "ndim"):  # an array has both
        seeds = (operator.index(seeds),)
    asked = range(1 if num_images is None else num_images) if seeds is None else seeds
    chosen = tuple(map(plain, islice(asked, MAX_SEEDS + 1)))  # of endless ones, too
    if len(chosen) > MAX_SEEDS:
        raise UserInputError(
            f"more than {MAX_SEEDS} images were asked for; it can be 1 to {MAX_SEEDS} a call"
        )
    if seeds is not None and num_images is not None and len(chosen) != num_images:
        raise UserInputError(
            f"num_images is {num_images} but {len(chosen)} seeds were given; leave one of them out"
        )
    if not chosen:
        raise UserInputError(f"0 images were asked for; it can be 1 to {MAX_SEEDS} a call")
    return chosen


def to_output(images: Tensor, output_type: OutputType) -> Any:
    """Float images (N, 3, S, S), about [-1, 1], as the caller wants them."""
    if output_type == "pil":
        return to_pil(images)
    unit = (images.clamp(-1, 1) + 1) / 2
    return unit if output_type == "torch" else unit.permute(0, 2, 3, 1).contiguous().numpy()
