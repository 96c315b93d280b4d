r"""The likelihood of known pixels, as a term that sampling adds to F.

At noise level t, with the Gaussian prior's guess of u_0, whose variance is cum_sigma_t^2,

    mean = x(cum_a_t u_t),    log p(known | u_t) ~ - w sum_known (x - mean)^2 / (2 v_t)
    v_t  = b^2 pi^2 / 3 + cum_sigma_t^2 V

b is the scale of the generator's logistic likelihood, and V the variance of a pixel under the
generator's prior: what a guess without any information would be off by.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hebm_sample.generator.hierarchy import HierarchicalGenerator, Latents

__all__ = ["KnownPixels"]

PIXEL_VARIANCE = 0.25


@dataclass(frozen=True)
class KnownPixels:
    """log p(known pixels | u_t), (B,), of latents and level.

    Arguments:
        generator: The generator.
        cum_sigma_of: What the nets are told about a level, (B,), to cum_sigma (B,).
        images: (B, 3, S, S) in [-1, 1].
        known: (B, 1, S, S) bool.
        weight: w.
    """

    generator: HierarchicalGenerator
    cum_sigma_of: Callable[[Tensor], Tensor]
    images: Tensor
    known: Tensor
    weight: float = 1.0

    def rows(self, start: int, stop: int) -> "KnownPixels":
        """Of pictures start ... stop - 1."""
        return replace(self, images=self.images[start:stop], known=self.known[start:stop])

    def to(self, device: torch.device) -> "KnownPixels":
        """On another device."""
        return replace(self, images=self.images.to(device), known=self.known.to(device))

    def __call__(self, u: Latents, level: Tensor) -> Tensor:
        """(B,), differentiable in u."""
        sigma = self.cum_sigma_of(level)[:, None, None, None]
        cum_a = (1 - sigma.square()).clamp(min=0).sqrt()
        mean = self.generator(tuple(cum_a * g for g in u)).float()
        scale = self.generator.likelihood.log_scale.exp().view(1, -1, 1, 1)
        variance = scale.square() * (torch.pi**2 / 3) + sigma.square() * PIXEL_VARIANCE
        square = (self.images - mean).square() / (2 * variance)
        return -self.weight * (square * self.known).flatten(1).sum(1)
