"""p(x | h_{L+1}) of an NVAE, in both forms of "NVAE" (arXiv 2007.03898).

Mixture of discretised logistics ("PixelCNN++", arXiv 1701.05517), K to a pixel, whose colours
depend on each other: with weights pi_k, scales b_kc and coefficients a_k of tanh,

    p(red, green, blue) = sum_k pi_k prod_c P_kc(x_c)      bins of width 2 / (2^bits - 1)
    m_green = mu_k,green + a_k0 red,   m_blue = mu_k,blue + a_k1 red + a_k2 green

Normal distribution of each value: log N(x; m, s), a density and no probability, so that the bits
it gives cannot be compared with those of discretised distributions. m and log s are softly kept in
(-5, 5), and 0.01 is added to s.

Values above 0.99 count to the bin that reaches to infinity: with 8 bits, the two brightest levels.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from hebm_sample.generator.hierarchy import soft_bound

__all__ = ["MixtureOutput", "NormalOutput", "nvae_normal", "quantised"]

BOUND = 5.0
LEAST_SIGMA = 1e-2
LOWEST_LOG_SCALE = -7.0
DARKEST, BRIGHTEST = -0.999, 0.99


def nvae_normal(mu: Tensor, log_sigma: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of NVAE's normal distributions: mu and log sigma softly bounded,
    and 0.01 added to sigma.
    """
    return soft_bound(mu, BOUND), torch.exp(soft_bound(log_sigma, BOUND)) + LEAST_SIGMA


def quantised(images: Tensor, bits: int) -> Tensor:
    """Images in [-1, 1] of 256 levels, with 2^bits levels: the values' first bits, again in
    [-1, 1]. With 8 bits they stay as they are.
    """
    if bits == 8:
        return images
    levels = ((images + 1) * 127.5).round().div(2 ** (8 - bits)).floor()
    return levels * (2 / (2**bits - 1)) - 1


class MixtureOutput:
    """Mixture of discretised logistics.

    Arguments:
        logits: (B, 10 K, H, W): log weights K; for each colour means K, log scales K and
            coefficients K, before tanh.
        mixtures: K.
        bits: Of a value.
    """

    def __init__(self, logits: Tensor, mixtures: int, bits: int) -> None:
        self.logits, self.bits = logits, bits
        self.log_weights = F.log_softmax(logits[:, :mixtures], dim=1)
        parts = logits[:, mixtures:].unflatten(1, (3, 3, mixtures))
        self.means = parts[:, :, 0]
        self.log_scales = parts[:, :, 1].clamp(min=LOWEST_LOG_SCALE)
        self.coefficients = parts[:, :, 2].tanh()

    def _weighted(self, values: Tensor) -> Tensor:
        """Means over the mixture of (B, 3, K, H, W)."""
        return (values * self.log_weights.exp()[:, None]).sum(2)

    @property
    def mean(self) -> Tensor:
        """(B, 3, H, W) in [-1, 1]: the weighted means, each colour's from those before it."""
        means, a = self._weighted(self.means), self._weighted(self.coefficients)
        red = means[:, 0].clamp(-1, 1)
        green = (means[:, 1] + a[:, 0] * red).clamp(-1, 1)
        blue = (means[:, 2] + a[:, 1] * red + a[:, 2] * green).clamp(-1, 1)
        return torch.stack([red, green, blue], dim=1)

    @property
    def variance(self) -> Tensor:
        """(B, 3, H, W): b^2 pi^2 / 3 and the means' own spread, other colours held."""
        spread = self._weighted(self.means.square()) - self._weighted(self.means).square()
        scales = self._weighted(torch.exp(2 * self.log_scales))
        return scales * (torch.pi**2 / 3) + spread.clamp(min=0)

    def log_prob(self, images: Tensor) -> Tensor:
        """log p(x | h_{L+1}) in nats, (B,), of images (B, 3, H, W) in [-1, 1]; they are
        `quantised` first.
        """
        images = quantised(images, self.bits)
        x, a = images[:, :, None], self.coefficients
        red, green = x[:, 0], x[:, 1]
        shift = torch.stack(
            [torch.zeros_like(a[:, 0]), a[:, 0] * red, a[:, 1] * red + a[:, 2] * green], dim=1
        )
        half, inverse = 1 / (2**self.bits - 1), torch.exp(-self.log_scales)
        centred = x - self.means - shift
        upper, lower = (centred + half) * inverse, (centred - half) * inverse
        # As in generator/likelihood.py: no difference of close numbers.
        width = torch.log(-torch.expm1(-2 * half * inverse))
        dark, bright = F.logsigmoid(upper), F.logsigmoid(-lower)
        inside = dark + bright + width
        log_p = torch.where(x < DARKEST, dark, torch.where(x > BRIGHTEST, bright, inside))
        return torch.logsumexp(log_p.sum(1) + self.log_weights, dim=1).flatten(1).sum(1)


class NormalOutput:
    """A normal distribution of each value.

    Arguments:
        logits: (B, 6, H, W): mean and log standard deviation of each colour, before their bounds.
        bits: Of a value.
    """

    def __init__(self, logits: Tensor, bits: int) -> None:
        self.logits, self.bits = logits, bits
        self._mean, self._sigma = nvae_normal(*logits.chunk(2, dim=1))

    @property
    def mean(self) -> Tensor:
        """(B, 3, H, W) in [-1, 1]."""
        return self._mean.clamp(-1, 1)

    @property
    def variance(self) -> Tensor:
        """(B, 3, H, W)."""
        return self._sigma.square()

    def log_prob(self, images: Tensor) -> Tensor:
        """log density in nats, (B,), of images (B, 3, H, W) in [-1, 1]; they are `quantised`
        first.
        """
        error = (quantised(images, self.bits) - self._mean) / self._sigma
        log_p = -0.5 * (error.square() + math.log(2 * math.pi)) - self._sigma.log()
        return log_p.flatten(1).sum(1)
