"""One random stream per seed, so that a seed's image does not depend on its neighbours.

Each stream is a `torch.Generator` on the CPU: the same numbers for every device, batch size and
order of seeds, and the global random state is never read or written. Numbers are drawn in float32
as one row of D per seed, then split into groups, moved and cast.
"""

import math
from collections.abc import Iterable, Sequence

import torch

from hebm_sample.errors import UserInputError
from hebm_sample.io.seeds import checked_seed
from hebm_sample.latents import Latents

__all__ = ["NoiseStreams"]


class NoiseStreams:
    """Standard normal latents, one stream per seed.

    Arguments:
        seeds: B whole numbers in [0, 2^32 - 1]; a seed may occur twice and then gives the same
            noise twice.
        shapes: (C_i, H_i, W_i) of each group, top to bottom.
        device: Where the latents go.
        dtype: What they are cast to.
        names: The seeds as messages have them, where these were made of others.

    Raises:
        UserInputError: no seeds, or one out of range.
    """

    def __init__(
        self,
        seeds: Iterable[int],
        shapes: Sequence[tuple[int, ...]],
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        names: Sequence[int] | None = None,
    ) -> None:
        self.seeds = [checked_seed(seed) for seed in seeds]
        self.names = self.seeds if names is None else list(names)
        if not self.seeds:
            raise UserInputError("no seeds were given; give at least one, such as seeds=[0]")
        self.shapes = tuple(tuple(shape) for shape in shapes)
        self.device, self.dtype = torch.device(device), dtype
        self._sizes = [math.prod(shape) for shape in self.shapes]
        self._streams = [torch.Generator("cpu").manual_seed(seed) for seed in self.seeds]

    def __len__(self) -> int:
        return len(self.seeds)

    def normal(self, std: float | tuple[float, ...] = 1.0) -> Latents:
        """The next draw of every stream times `std`, one for all or one per group: (B, C_i, H_i,
        W_i) a group.

        A `std` of 0 advances the streams like any other. Raises `UserInputError` unless several
        are as many as the groups.
        """
        if isinstance(std, tuple) and len(std) != len(self.shapes):
            raise UserInputError(
                f"temperature has {len(std)} numbers; the model has {len(self.shapes)} groups"
            )
        rows = torch.empty(
            len(self.seeds),
            sum(self._sizes),
            dtype=torch.float32,
            device="cpu",
            pin_memory=self.device.type
            == "cuda",  # else the copy would wait for the device's queue
        )
        for row, stream in zip(rows, self._streams, strict=True):
            row.normal_(generator=stream)
        if isinstance(std, tuple):
            for part, factor in zip(torch.split(rows, self._sizes, dim=1), std, strict=True):
                part *= factor
        elif std != 1.0:
            rows *= std
        moved = rows.to(self.device, non_blocking=True).to(self.dtype)
        groups = torch.split(moved, self._sizes, dim=1)
        return tuple(
            g.reshape(len(self.seeds), *shape)
            for g, shape in zip(groups, self.shapes, strict=True)
        )

    def uniform(self) -> torch.Tensor:
        """The next number in [0, 1) of every stream, (B,)."""
        drawn = [
            torch.rand((), generator=stream, dtype=torch.float32, device="cpu")
            for stream in self._streams
        ]
        return torch.stack(drawn).to(self.device)
