"""What sampling takes and what it returns: seeds in, images with their latents and
energies out, or with all that they were on the way.
"""

import itertools
import operator
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, SupportsIndex, TypeGuard, overload

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from hebm_sample.config import DecoderName, plain, require_integer
from hebm_sample.errors import UserInputError
from hebm_sample.io.animation import ANIMATED, SECONDS, STILLS, or_list, save_animation
from hebm_sample.io.images import (
    check_folder,
    grid,
    png_bytes,
    prepare,
    save_image,
    to_pil,
    to_rgb,
)
from hebm_sample.io.seeds import MAX_SEEDS, checked_seed, format_seeds
from hebm_sample.latents import Latents
from hebm_sample.pipeline.provenance import Provenance, together

if TYPE_CHECKING:
    from hebm_sample.pipeline.model import Model

__all__ = [
    "OutputType",
    "Samples",
    "SeedsFrom",
    "Trajectory",
    "are_latents",
    "as_floats",
    "choose_seeds",
    "decoded",
    "listed",
    "reads_images",
    "refuse_idle_align",
    "said_of",
    "seeds_of",
    "to_output",
]

OutputType = Literal["pil", "numpy", "torch", "np", "pt"]  # the last two as diffusers calls them

# What a notebook shows of many images.
SHOWN_IMAGES, SHOWN_SIDE = 64, 1024


# Endings of files that are no folder's name.
UNWRITTEN = (".bmp", ".tif", ".tiff", ".ppm", ".avif", ".heic", ".svg", ".pdf")


@dataclass(frozen=True, repr=False, eq=False)
class Samples(Sequence[Any]):
    """What a call returns: images, with what they were decoded from. A sequence of its images,
    as a list of them is; equal to itself alone.

    Arguments:
        images: N PIL images; or (N, S, S, 3) floats in [0, 1] ("numpy", "np"); or (N, 3, S, S) in
            [0, 1] ("torch", "pt").
        latents: u, on the CPU: (N, C_i, H_i, W_i) a group.
        energies: -F_{i}, of each group alone, at the level just done, with the condition: (N, L).
            Without symbols they sum to -F. None where the model has no energies, and for images
            that were decoded and not sampled.
        seeds: The seed of each image; none where no chain sampled them.
        level: Noise level just done; 0 for a finished image.
        columns: Of the grid that the images belong on; None if they are in no order.
        decoder: What decoded u, "sharp" or "likelihood"; None where nobody says.
        provenance: How each image came about, which `save` writes into its file; empty where
            nobody says.

    >>> grey = Image.new("RGB", (8, 8), "grey")
    >>> samples = Samples([grey] * 3, (torch.zeros(3, 2, 4, 4),), None, seeds=(0, 1, 2))
    >>> len(samples), samples[-1].size, samples[1:]
    (3, (8, 8), <Samples: 2 images, seeds 1-2, level 0>)
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
    provenance: tuple[Provenance, ...] = ()

    def __len__(self) -> int:
        """N."""
        return len(self.images)

    def __iter__(self) -> Iterator[Any]:
        """Image after image."""
        return iter(self.images)

    @overload
    def __getitem__(self, index: SupportsIndex) -> Any: ...

    @overload
    def __getitem__(self, index: slice) -> "Samples": ...

    def __getitem__(self, index: Any) -> Any:
        """An image; or, of a slice, its images with their latents, energies and seeds."""
        if not isinstance(index, slice):
            return self.images[operator.index(index)]
        return replace(
            self,
            images=self.images[index],
            latents=tuple(group[index] for group in self.latents),
            energies=None if self.energies is None else self.energies[index],
            seeds=self.seeds[index],
            provenance=self.provenance[index],
        )

    def __add__(self, other: Iterable[Any]) -> list[Any]:
        """A list of both's images."""
        return [*self, *other]

    def __radd__(self, other: Iterable[Any]) -> list[Any]:
        """A list of both's images."""
        return [*other, *self]

    def grid(self, columns: int | None = None) -> Image.Image:
        """All images on one grid: `columns` a row, by default their own order's, or as near to
        a square as can be.
        """
        return grid(self.pil(), columns or self.columns)

    def save(self, folder: str | os.PathLike[str], *, overwrite: bool = False) -> list[Path]:
        """Write a PNG an image, whose text says how the image came about.

        Arguments:
            folder: Made if it is not there. Of one image it can be a file, that ends in .png,
                .jpg, .webp or .gif.
            overwrite: Replace files of these names.

        Returns:
            The files: seed0007.png where all seeds are different, 0003-seed0007.png where some
            are not, image0003.png without seeds.

        Raises:
            UserInputError: There are files of these names, several images for one file, or a
                file's ending that is not written; nothing has been written.
            EnvironmentFailure: The folder cannot be written.
        """
        folder = Path(folder).expanduser()
        paths = self._paths(folder)
        taken = [path for path in paths if os.path.lexists(path)]
        if taken and not overwrite:
            place, count = ("folder", f" ({len(taken)} of {len(paths)} files are)")
            if paths == [folder]:
                place, count = "name", ""
            raise UserInputError(
                f"{taken[0]} is there already{count}; give another {place}, or overwrite=True"
            )
        said = self.provenance or (Provenance({}),) * len(paths)
        for path, image, provenance in zip(paths, self.pil(), said, strict=True):
            save_image(image, path, provenance.text(single=True))
        return paths

    def _paths(self, place: Path) -> list[Path]:
        """The files in a folder; or a file for the one image."""
        if place.suffix.lower() in STILLS and not place.is_dir():
            if len(self) != 1:
                raise UserInputError(
                    f"{str(place)!r} is one file for {len(self)} images; give a folder for a file "
                    f"each, or save the grid of all: grid().save({str(place)!r})"
                )
            return [place]
        if place.suffix.lower() in UNWRITTEN and not place.is_dir():
            raise UserInputError(f"images are not written as {place.suffix}; {_endings()}")
        check_folder(place)
        return [place / name for name in self._names()]

    def _names(self) -> list[str]:
        if not self.seeds:
            return [f"image{i:04d}.png" for i in range(len(self))]
        if len(set(self.seeds)) == len(self):
            return [f"seed{seed:04d}.png" for seed in self.seeds]
        return [f"{i:04d}-seed{seed:04d}.png" for i, seed in enumerate(self.seeds)]

    def pil(self) -> list[Image.Image]:
        """The images as PIL's."""
        if isinstance(self.images, list):
            return self.images
        x = self.images
        if not isinstance(x, Tensor):
            x = torch.from_numpy(x).permute(0, 3, 1, 2)
        return to_pil(x * 2 - 1)

    def __repr__(self) -> str:
        """How many, and their seeds; not every number."""
        noun = "image" if len(self) == 1 else "images"
        seeds = f", seeds {_short(self.seeds)}" if self.seeds else ""
        return f"<Samples: {len(self)} {noun}{seeds}, level {self.level}>"

    def _repr_png_(self) -> bytes:
        """What a notebook shows: the first 64 images, reduced to 1024 pixels per side."""
        shown = self[:SHOWN_IMAGES]
        images = shown.pil()
        if len({image.size for image in images}) < 2:
            return _reduced(shown.grid())
        side = (SHOWN_SIDE // 4, SHOWN_SIDE // 4)
        tiles = [ImageOps.pad(to_rgb(image), side, color="white") for image in images]
        return _reduced(grid(tiles, shown.columns))


@dataclass(frozen=True, repr=False, eq=False)
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
        *,
        overwrite: bool = False,
    ) -> None:
        """Write it: frames that move as .gif or .webp, the grid as .png or .jpg.

        Arguments:
            path: Its ending says which.
            seconds: How long the frames move before the last is held.
            text: Facts to write into the file; how the images came about if None.
            overwrite: Replace a file of this name.

        Raises:
            UserInputError: There is such a file, or no format has this ending.
            EnvironmentFailure: It cannot be written.
        """
        path = Path(path).expanduser()
        ending = path.suffix.lower()
        if os.path.lexists(path) and not overwrite:
            raise UserInputError(f"{path} is there already; give another name, or overwrite=True")
        if text is None and self.samples.provenance:
            text = together(self.samples.provenance).saying(sheet="trajectory").text()
        if ending in ANIMATED:
            save_animation(self.frames, path, seconds, text)
        elif ending in STILLS:
            save_image(self.grid(), path, text)
        else:
            raise UserInputError(f"a trajectory goes to {str(path)!r}; {_endings()}")

    def __repr__(self) -> str:
        """How long it is, and of what."""
        return f"<Trajectory: {len(self)} steps to {self.samples!r}>"

    def _repr_png_(self) -> bytes:
        """What a notebook shows: the grid, reduced to 1024 pixels per side."""
        return _reduced(self.grid())


def _endings() -> str:
    return f"end the name in {or_list(STILLS)}"


def _short(seeds: Sequence[int]) -> str:
    """The seeds as they are typed, if that is short."""
    text = format_seeds(seeds)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _reduced(image: Image.Image) -> bytes:
    """PNG of at most `SHOWN_SIDE` pixels per side."""
    image.thumbnail((SHOWN_SIDE, SHOWN_SIDE))
    return png_bytes(image)


@dataclass(frozen=True)
class SeedsFrom:
    """As many seeds as there are images, from this one on."""

    first: int

    def __iter__(self) -> Iterator[int]:
        """One after another, without an end."""
        return itertools.count(self.first)


def choose_seeds(
    num_images: int | None, seeds: int | Iterable[int] | SeedsFrom | None
) -> tuple[int, ...]:
    """The chosen seeds; 0 ... n-1 where none were.

    >>> choose_seeds(3, None), choose_seeds(None, [7, 11]), choose_seeds(None, None)
    ((0, 1, 2), (7, 11), (0,))
    >>> choose_seeds(3, SeedsFrom(7))
    (7, 8, 9)
    """
    num_images, seeds = plain(num_images), plain(seeds)
    if num_images is not None:
        require_integer("num_images", num_images, 1, MAX_SEEDS)
    if isinstance(seeds, SeedsFrom):
        return tuple(islice(seeds, num_images or 1))
    if isinstance(seeds, SupportsIndex) and not hasattr(seeds, "ndim"):  # an array has both
        seeds = (seeds if isinstance(seeds, bool) else operator.index(seeds),)
    if isinstance(seeds, str | bytes) or not isinstance(seeds, Iterable | type(None)):
        raise UserInputError(f"seeds is {seeds!r}; give a whole number, or some in a list")
    asked: Any = range(1 if num_images is None else num_images) if seeds is None else seeds
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
    # Here, for streams are of what is derived from them.
    return tuple(checked_seed(seed) for seed in chosen)


def seeds_of(count: int, seeds: int | Iterable[int] | SeedsFrom | None) -> tuple[int, ...]:
    """One seed for each of `count` images; 0 ... count-1 if None."""
    open_ended = seeds is None or isinstance(seeds, SeedsFrom)
    chosen = choose_seeds(count if open_ended else None, seeds)
    if len(chosen) != count:
        raise UserInputError(
            f"{len(chosen)} seeds were given for {count} images; give one per image"
        )
    return chosen


def to_output(images: Tensor, output_type: OutputType) -> Any:
    """Float images (N, 3, S, S), about [-1, 1], as the caller wants them."""
    if output_type == "pil":
        return to_pil(images)
    unit = (images.clamp(-1, 1) + 1) / 2
    return (
        unit if output_type in ("torch", "pt") else unit.permute(0, 2, 3, 1).contiguous().numpy()
    )


def decoded(
    model: "Model",
    u: Latents,
    decoder: DecoderName | None,
    facts: Mapping[str, Any],
    *,
    output_type: OutputType,
    batch_size: int,
    encoder: bool = False,
) -> Samples:
    """Images of u as `Samples` without seeds and energies, whose files say `facts`.

    Arguments:
        encoder: Whether images were read.
    """
    images = model.decode(u, decoder=decoder, output_type=output_type, batch_size=batch_size)
    common = Provenance.of_decoded(model, decoder, encoder=encoder)
    said = (common.saying(**facts),) * len(u[0])
    return Samples(images, u, None, (), decoder=decoder, provenance=said)


# Images and latents that are given


def listed(images: Any) -> list[Any]:
    """One after another: PIL images, paths, open files, faces that were cut, floats (3, S, S) or
    (S, S, 3).
    """
    if isinstance(images, Samples):
        return images.pil()
    if isinstance(images, (np.ndarray, Tensor)):
        return list(images) if images.ndim > 3 else [images]
    if isinstance(images, Sequence) and not isinstance(images, (str, bytes)):
        return [x for each in images for x in listed(each)]
    return [images]


def as_floats(images: Any, size: int) -> Tensor:
    """Floats (N, 3, S, S) in [-1, 1] of PIL images or paths, of `Samples`, of arrays as in
    `Samples`, or of a list of these; `UserInputError` for others.
    """
    images = images.images if isinstance(images, Samples) else images
    if isinstance(images, (np.ndarray, Tensor)):
        return _checked(images, size)
    given = listed(images)
    if not any(isinstance(x, (np.ndarray, Tensor)) for x in given):
        return prepare(given, size)
    is_array = [isinstance(x, (np.ndarray, Tensor)) for x in given]
    pairs = zip(given, is_array, strict=True)
    return torch.cat([_checked(x[None], size) if a else prepare(x, size) for x, a in pairs])


def _from_array(images: np.ndarray, size: int) -> Tensor:
    """Channels first."""
    try:
        return torch.from_numpy(np.ascontiguousarray(images)).movedim(-1, 1)
    except (TypeError, IndexError) as error:
        raise UserInputError(
            f"images are an array of {images.dtype} with shape {images.shape}; this model reads "
            f"floats (N, {size}, {size}, 3) in [0, 1]"
        ) from error


def _checked(images: "np.ndarray | Tensor", size: int) -> Tensor:
    if isinstance(images, np.ndarray):
        if images.dtype.kind != "f":
            raise UserInputError(f"images are {images.dtype}; they must be floats in [0, 1]")
        images = _from_array(images, size)
    if images.ndim != 4 or tuple(images.shape[1:]) != (3, size, size) or len(images) == 0:
        raise UserInputError(
            f"images have shape {tuple(images.shape)}; this model reads (N, 3, {size}, {size})"
        )
    if not images.is_floating_point() or not bool(((images >= 0) & (images <= 1)).all()):
        raise UserInputError("images must be floats in [0, 1]")
    return images.float().cpu() * 2 - 1


def reads_images(*sources: Any) -> bool:
    """Whether one of them is images, which the encoder reads."""
    return not all(isinstance(source, Samples) or are_latents(source) for source in sources)


def are_latents(source: Any) -> TypeGuard[Latents]:
    """Whether it is u, a tuple of a tensor per group."""
    return isinstance(source, tuple) and bool(source) and isinstance(source[0], Tensor)


def refuse_idle_align(align: bool, face: int | None, *sources: Any) -> None:
    """`UserInputError` for `align` and `face` where no images are read."""
    if (align or face is not None) and not reads_images(*sources):
        word = "align" if align else "face"
        raise UserInputError(f"{word} is for images; samples and latents are taken as they are")


def said_of(source: Any, row: int, align: bool = False, face: int | None = None) -> Provenance:
    """What there is to say of the image that others are made of.

    Arguments:
        source: As of `latents_of`.
        row: Which of them.
    """
    if isinstance(source, Samples):
        row = 0 if len(source) == 1 else row
        found = source.provenance[row] if source.provenance else Provenance({})
        return found.of_seeds(*source.seeds[row : row + 1])
    if not reads_images(source):
        return Provenance({})
    return Provenance({"align": align or None, "face": face})
