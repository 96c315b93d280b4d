"""What a sampler yields after each noise level, and the tally it keeps of gradients."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from hebm_sample.errors import NonFiniteSampleError
from hebm_sample.latents import Latents, flatten
from hebm_sample.sampling.langevin import StepInfo

__all__ = ["GradientTally", "LevelState"]

# Noise at the highest temperature stays a hundred times below it. What lies beyond is no sample: a
# chain that ran away, whose image would be flat black or white, and no error.
MOST = 1e4


class LevelState(NamedTuple):
    """Where the chains are when a level is done; level 0 comes last and is the result.

    Arguments:
        level: t, counted down to 0.
        u: The latents, (B, C_i, H_i, W_i) a group: u_t, and for the result u_0 if the sampler
            denoises.
        terms: F_i at `u` and this level, (B, L).
        info: Diagnostics of the level's K steps, (K, B) each.
        shown: Of several particles per image the row that stands for it, (images,); None where
            each row is an image.
    """

    level: int
    u: Latents
    terms: Tensor
    info: StepInfo
    shown: Tensor | None = None

    def shown_rows(self) -> "LevelState":
        """A row per image."""
        if (rows := self.shown) is None:
            return self
        u, info = tuple(g[rows] for g in self.u), StepInfo(*(x[:, rows] for x in self.info))
        return LevelState(self.level, u, self.terms[rows], info)


class GradientTally:
    """Counts gradients, reports them as they happen, and checks the chains once per level.

    Arguments:
        seeds: Each row's, for the error message.
        progress: Called with the number of evaluations just done.
    """

    def __init__(
        self, seeds: Sequence[int], progress: Callable[[int], object] | None = None
    ) -> None:
        self.seeds = seeds
        self.progress = progress
        self.done = 0

    def __call__(self, evaluations: int = 1) -> None:
        """Note that so many gradients have just been evaluated."""
        self.done += evaluations
        if self.progress is not None:
            self.progress(evaluations)

    def check(self, level: int, u: Latents, terms: Tensor) -> None:
        """Raise `NonFiniteSampleError` for the seeds whose latents or energies are not finite, or
        whose latents are beyond `MOST`.

        The only place where a sampler waits for the device.
        """
        largest = flatten(u).abs().amax(1)
        finite = torch.isfinite(largest) & torch.isfinite(terms).all(1)
        bad = ~(finite & (largest <= MOST))
        if bad.any():
            seeds = [s for s, is_bad in zip(self.seeds, bad, strict=True) if bool(is_bad)]
            fault = f"too large to be one (|u| > {MOST:g})" if finite.all() else "non-finite"
            raise NonFiniteSampleError(list(dict.fromkeys(seeds)), level, self.done, fault)
