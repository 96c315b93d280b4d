"""The generator's objective: the evidence lower bound with KL balancing.

    loss = [ -log p(x | h_{L+1}) + warm sum_i c_i beta_i KL_i ] / (dimensions log 2)

in bits per dimension, with a weight beta_i of each group's KL (`kl_weight`).

During the warm-up (the first third) warm rises from 0 to 1 and c_i is proportional to
(mean KL_i + 0.01) / alpha_i, alpha_i = positions of its scale / groups at its scale, detached and
of mean 1: a group with little KL is charged little, so that none dies. Afterwards warm = c_i = 1.
With all beta_i = 1 the loss is then the ELBO; more buys fewer nats in u, so a smaller prior hole,
with coarser reconstructions. Fine scales, whose details a prior learns worst and an image decoder
can make up, bear the largest weights: KL reweighting by group is that of Luhman and Luhman,
"Optimizing Hierarchical Image VAEs for Sample Quality" (arXiv 2210.10205). The statistic `bits` is
always the ELBO.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from hebm_sample.config import GeneratorConfig, require_range
from hebm_sample.config.record import MAX_KL_WEIGHT
from hebm_sample.errors import UserInputError
from hebm_sample.generator.encoder import Encoder, encode
from hebm_sample.generator.hierarchy import HierarchicalGenerator
from hebm_sample.generator.likelihood import bits_per_dimension
from hebm_sample.generator.protocol import Generator, ImageEncoder, Posterior
from hebm_sample.latents import Latents
from hebm_sample.training.optim import Stream, draw

__all__ = [
    "Elbo",
    "GeneratorObjective",
    "balance",
    "elbo",
    "group_weights",
    "standard_normal",
]

WARM_UP = 1 / 3


class Elbo(NamedTuple):
    """-log p(x | h_{L+1}) (B,) and KL per group (B, L) in nats; the posterior draw and its mean
    image.
    """

    distortion: Tensor
    kl: Tensor
    posterior: Posterior
    mean: Tensor


def standard_normal(
    shapes: tuple[tuple[int, int, int], ...],
    batch: int,
    device: torch.device,
    stream: Stream = None,
) -> Latents:
    """u ~ N(0, I) from a stream, torch's global one if None."""
    return tuple(draw(torch.randn, (batch, *s), stream, device) for s in shapes)


@lru_cache(maxsize=16)
@torch.inference_mode(False)
def _constants(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Numbers on a device, copied there once: a CUDA graph cannot capture the copying."""
    return torch.tensor(values, device=device)


def balance(kl: Tensor, config: GeneratorConfig) -> Tensor:
    """c_i of mean 1 from KL (B, L): proportional to (mean KL_i + 0.01) / alpha_i, detached."""
    sizes = [s.resolution**2 / s.groups for s in config.scales for _ in range(s.groups)]
    alpha = _constants(tuple(sizes), kl.device)
    c = (kl.detach().mean(0) + 0.01) / alpha
    return c / c.mean()


def elbo(generator: Generator, encoder: ImageEncoder, images: Tensor, noise: Latents) -> Elbo:
    """The parts of the evidence lower bound for images (B, 3, S, S) in [-1, 1]."""
    posterior = encode(generator, encoder, images, noise)
    output = generator.output(posterior.top.features)
    return Elbo(-output.log_prob(images), encoder.kl(posterior), posterior, output.mean)


def group_weights(config: GeneratorConfig, kl_weight: float | Sequence[float]) -> list[float]:
    """beta_i of every group, (L,).

    Arguments:
        kl_weight: One number for all groups, or one per scale, or one per group, coarse to fine.

    Raises:
        UserInputError: Another number of weights, or one that is negative or no number.
    """
    groups = [s.groups for s in config.scales]
    for weight in [kl_weight] if isinstance(kl_weight, int | float) else kl_weight:
        require_range("kl_weight", weight, 0.0, MAX_KL_WEIGHT)
    if isinstance(kl_weight, int | float):
        return [float(kl_weight)] * sum(groups)
    weights = [float(w) for w in kl_weight]
    if len(weights) == len(groups):
        return [w for w, count in zip(weights, groups, strict=True) for _ in range(count)]
    if len(weights) == sum(groups):
        return weights
    raise UserInputError(
        f"kl_weight has {len(weights)} numbers; this generator has {len(groups)} scales and "
        f"{sum(groups)} groups: give one number, one per scale or one per group"
    )


class GeneratorObjective(nn.Module):
    """Generator and encoder with the loss above.

    Arguments:
        kl_weight: beta, as `group_weights` takes it.
        warm_up: Share of the run that the warm-up takes; 0 for a generator that is trained
            already.
    """

    divisible = True
    compilable = ("bound",)

    def __init__(
        self,
        generator: HierarchicalGenerator,
        encoder: Encoder,
        kl_weight: float | Sequence[float] = 1.0,
        warm_up: float = WARM_UP,
    ) -> None:
        super().__init__()
        self.generator, self.encoder = generator, encoder
        self.kl_weight, self.warm_up = group_weights(generator.config, kl_weight), warm_up

    def weights(self, kl: Tensor, fraction: float | Tensor) -> Tensor:
        """What each group's KL is charged at this part of the run, (L,), from KL (B, L)."""
        weights = _constants(tuple(self.kl_weight), kl.device)
        known = not isinstance(fraction, Tensor)
        if self.warm_up == 0 or (known and fraction >= self.warm_up):
            return weights
        rising = weights * balance(kl, self.generator.config) * (fraction / self.warm_up)
        # A captured step cannot branch on what the device alone knows.
        return rising if known else torch.where(fraction < self.warm_up, rising, weights)

    def bound(self, images: Tensor, noise: Latents) -> tuple[Tensor, Tensor]:
        """The distortion (B,) and KL per group (B, L)."""
        found = elbo(self.generator, self.encoder, images, noise)
        return found.distortion, found.kl

    def forward(
        self,
        images: Tensor,
        fraction: float | Tensor,
        labels: Tensor | None = None,
        stream: Stream = None,
    ) -> tuple[Tensor, dict[str, Any]]:
        """Loss in bits per dimension; bits, reconstruction bits, KL per group in nats.

        Arguments:
            images: (B, 3, S, S) in [-1, 1].
            fraction: Part of the run that is done, in [0, 1]; a tensor () on the device where
                steps are captured as a CUDA graph.
            labels: Unused.
            stream: Of the draws from the posterior.
        """
        config = self.generator.config
        noise = standard_normal(config.latent_shapes, images.shape[0], images.device, stream)
        distortion, kl = self.bound(images, noise)
        charged = (self.weights(kl, fraction) * kl).sum(1)
        shape = tuple(images.shape[1:])
        loss = bits_per_dimension((distortion + charged).mean(), shape)
        with torch.no_grad():
            stats = {
                "bits": bits_per_dimension((distortion + kl.sum(1)).mean(), shape),
                "distortion_bits": bits_per_dimension(distortion.mean(), shape),
                "kl": kl.mean(0),
            }
        return loss, stats
