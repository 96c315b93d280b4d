"""What sampling is asked for and what it returns: seeds in, pictures with their latents and
energies out.
"""

import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, SupportsIndex

import torch
from PIL import Image
from torch import Tensor

from hebm_sample.config import require_integer
from hebm_sample.errors import UserInputError
from hebm_sample.generator.hierarchy import Latents
from hebm_sample.images import grid, to_pil
from hebm_sample.seeds import MAX_SEEDS

__all__ = ["OutputType", "Samples", "choose_seeds", "concatenate", "to_output"]

OutputType = Literal["pil", "numpy", "torch"]


@dataclass(frozen=True)
class Samples:
    """What a call returns.

    Arguments:
        images: N PIL pictures; or (N, S, S, 3) floats in [0, 1] ("numpy"); or (N, 3, S, S) in [0,
            1] ("torch").
        latents: u, on the CPU: (N, C_i, H_i, W_i) a group.
        energies: -F_{i}, of each group alone, at the level just done, with what was asked: (N, L).
            Without symbols they sum to -F. None where the model has no energies.
        seeds: The seed of each picture.
        level: Noise level just done; 0 for a finished picture.
        columns: Of the sheet that the pictures belong on; None if they are in no order.
    """

    images: Any
    latents: Latents
    energies: Tensor | None
    seeds: tuple[int, ...]
    level: int = 0
    columns: int | None = None

    def __len__(self) -> int:
        """N."""
        return len(self.seeds)

    def grid(self, columns: int | None = None) -> Image.Image:
        """All pictures on one sheet: `columns` a row, by default their own order's, or as near to
        a square as can be.
        """
        columns = columns or self.columns
        if isinstance(self.images, Tensor):
            return grid(to_pil(self.images * 2 - 1), columns)
        if isinstance(self.images, list):
            return grid(self.images, columns)
        return grid(to_pil(torch.from_numpy(self.images).permute(0, 3, 1, 2) * 2 - 1), columns)


def choose_seeds(num_images: int | None, seeds: int | Iterable[int] | None) -> tuple[int, ...]:
    """The seeds asked for; 0 ... n-1 where none were."""
    if num_images is not None:
        require_integer("num_images", num_images, 1, MAX_SEEDS)
    if isinstance(seeds, SupportsIndex):
        seeds = (operator.index(seeds),)
    chosen = (
        tuple(seeds)
        if seeds is not None
        else tuple(range(1 if num_images is None else num_images))
    )
    if seeds is not None and num_images is not None and len(chosen) != num_images:
        raise UserInputError(
            f"num_images is {num_images} but {len(chosen)} seeds were given; leave one of them out"
        )
    if not 1 <= len(chosen) <= MAX_SEEDS:
        raise UserInputError(
            f"{len(chosen)} pictures were asked for; it can be 1 to {MAX_SEEDS} a call"
        )
    return chosen


def to_output(pictures: Tensor, output_type: OutputType) -> Any:
    """Float pictures (N, 3, S, S), about [-1, 1], as the caller asked for them."""
    if output_type == "pil":
        return to_pil(pictures)
    unit = (pictures.clamp(-1, 1) + 1) / 2
    return unit if output_type == "torch" else unit.permute(0, 2, 3, 1).contiguous().numpy()


def concatenate(parts: Sequence[Latents]) -> Latents:
    """Latents of several batches as those of one."""
    return tuple(torch.cat(group) for group in zip(*parts, strict=True))
