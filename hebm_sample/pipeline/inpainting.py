r"""Known pixels: the latents that see nothing else are held, and a likelihood pulls on the others.

A cell of group i whose patch of the image is known altogether keeps u_0 ~ q(u | x) there, as
kept groups do (`sampling/constraints.py`). The others move under F plus the log likelihood

    log p(known | u_t) = - w Z sqrt( sum_known (x - mean)^2 + n b^2 pi^2 / 3 )
    mean = x(cum_a_t u_t)

n is the number of known values, b^2 pi^2 / 3 the variance of the generator's logistic likelihood
(another kind of generator has its own) and cum_a_t u_t the Gaussian prior's guess of u_0. The
errors of neighbouring pixels are one error: with their squares simply summed, the density is so
stiff along the coarse latents that chains of this length leave the finite numbers. A norm, whose
pull does not grow with the error, stays stable. For the same reason a generator grown to larger
images compares what its encoder reads: images averaged to `encoder_size`, where all pixels of
a square are known.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from hebm_sample.generator.protocol import Generator
from hebm_sample.latents import Latents
from hebm_sample.prior.density import CumSigma

__all__ = ["KnownPixels", "fill_smoothly", "known_cells"]

PULL = 3.0  # Z


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

    generator: Generator
    cum_sigma_of: CumSigma
    images: Tensor
    known: Tensor
    weight: float = 1.0

    def rows(self, start: int, stop: int) -> "KnownPixels":
        """Of images start ... stop - 1."""
        return replace(self, images=self.images[start:stop], known=self.known[start:stop])

    def to(self, device: torch.device) -> "KnownPixels":
        """On another device."""
        return replace(self, images=self.images.to(device), known=self.known.to(device))

    def __call__(self, u: Latents, level: Tensor) -> Tensor:
        """(B,), differentiable in u."""
        sigma = self.cum_sigma_of(level)[:, None, None, None]
        cum_a = (1 - sigma.square()).clamp(min=0).sqrt()
        factor = self.generator.config.encoder_reduction
        top = self.generator.transform(tuple(cum_a * g for g in u))
        output = self.generator.output(top.features)
        mean, images, known = output.mean.float(), self.images, self.known
        if factor > 1:
            mean, images = F.avg_pool2d(mean, factor), F.avg_pool2d(images, factor)
            known = -F.max_pool2d(-known.float(), factor)
        variance = output.variance
        if factor > 1 and variance.shape[-1] > 1:
            variance = F.avg_pool2d(variance, factor)
        square = (images - mean).square() + variance
        # The tiny number keeps the root's slope finite where no pixel is known.
        total = (square * known).flatten(1).sum(1) + 1e-12
        return -self.weight * PULL * total.sqrt()


def fill_smoothly(images: Tensor, known: Tensor) -> Tensor:
    """The images with unknown pixels replaced by means of the known ones around them.

    Means over squares of 2, 4, 8, ... pixels; a pixel takes the smallest square that has a known
    one.

    Arguments:
        images: (B, C, S, S).
        known: (B, 1, S, S) bool.
    """
    side = images.shape[-1]
    values, weights = images * known, known.float()
    filled, done, size = images * known, known, 2
    while size < 2 * side and not bool(done.all()):
        # Stride 1, so that what is filled in has no seams of its own.
        pad = (size - 1 - (size - 1) // 2, (size - 1) // 2)
        window = (*pad, *pad)
        share = F.avg_pool2d(F.pad(weights, window), size, 1)
        mean = F.avg_pool2d(F.pad(values, window), size, 1) / share.clamp(min=1e-9)
        found = share > 1e-9
        filled = torch.where(done, filled, torch.where(found, mean, filled))
        done, size = done | found, 2 * size
    return filled


def known_cells(known: Tensor, shapes: tuple[tuple[int, int, int], ...]) -> tuple[Tensor, ...]:
    """Cells whose patch of the image is known altogether: (B, 1, H_i, W_i) bool a group.

    Arguments:
        known: (B, 1, S, S) bool.
        shapes: (C, H, W) a group.
    """
    side = known.shape[-1]
    return tuple(-F.max_pool2d(-known.float(), side // s[1]) > 0.5 for s in shapes)
