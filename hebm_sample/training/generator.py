"""The generator's objective: the evidence lower bound with KL balancing.

    loss = [ -log p(x | h_{L+1}) + beta sum_i c_i KL_i ] / (dimensions log 2)

in bits a dimension.

During the warm-up (the first third) beta rises to `kl_weight` and c_i is proportional to
(mean KL_i + 0.01) / alpha_i, alpha_i = positions of its scale / groups at its scale, detached and
of mean 1: a group with little KL is charged little, so that none dies. Afterwards beta = kl_weight
and c_i = 1. With kl_weight 1 the loss is then the ELBO; more than 1 buys fewer nats in u, so a
smaller prior hole, with coarser reconstructions. The statistic `bits` is always the ELBO.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from hebm_sample.config import GeneratorConfig
from hebm_sample.generator.encoder import Encoder, Posterior, encode, kl_per_group
from hebm_sample.generator.hierarchy import HierarchicalGenerator, Latents
from hebm_sample.generator.likelihood import bits_per_dimension

__all__ = ["Elbo", "GeneratorObjective", "balance", "elbo", "standard_normal"]

WARM_UP = 1 / 3


class Elbo(NamedTuple):
    """-log p(x | h_{L+1}) (B,) and KL a group (B, L) in nats; the posterior draw and its mean
    picture.
    """

    distortion: Tensor
    kl: Tensor
    posterior: Posterior
    mean: Tensor


def standard_normal(
    shapes: tuple[tuple[int, int, int], ...], batch: int, device: torch.device
) -> Latents:
    """u ~ N(0, I) from torch's global stream."""
    return tuple(torch.randn(batch, *s, device=device) for s in shapes)


def balance(kl: Tensor, config: GeneratorConfig) -> Tensor:
    """c_i of mean 1 from KL (B, L): proportional to (mean KL_i + 0.01) / alpha_i, detached."""
    alpha = torch.tensor(
        [s.resolution**2 / s.groups for s in config.scales for _ in range(s.groups)],
        device=kl.device,
    )
    c = (kl.detach().mean(0) + 0.01) / alpha
    return c / c.mean()


def elbo(
    generator: HierarchicalGenerator, encoder: Encoder, images: Tensor, noise: Latents
) -> Elbo:
    """The parts of the evidence lower bound for pictures (B, 3, S, S) in [-1, 1]."""
    posterior = encode(generator, encoder, images, noise)
    mean = generator.decode(posterior.top.features)
    log_p = generator.likelihood.log_prob(mean, images)
    return Elbo(-log_p, kl_per_group(posterior.mean, posterior.log_s), posterior, mean)


class GeneratorObjective(nn.Module):
    """Generator and encoder with the loss above.

    Arguments:
        kl_weight: beta after the warm-up.
        warm_up: Share of the run that the warm-up takes; 0 for a generator that is trained
            already.
    """

    def __init__(
        self,
        generator: HierarchicalGenerator,
        encoder: Encoder,
        kl_weight: float = 1.0,
        warm_up: float = WARM_UP,
    ) -> None:
        super().__init__()
        self.generator, self.encoder = generator, encoder
        self.kl_weight, self.warm_up = kl_weight, warm_up

    def forward(self, images: Tensor, fraction: float) -> tuple[Tensor, dict[str, Any]]:
        """Loss in bits a dimension, and statistics: bits, reconstruction bits, KL a group in nats.

        Arguments:
            images: (B, 3, S, S) in [-1, 1].
            fraction: Part of the run that is done, in [0, 1].
        """
        config = self.generator.config
        noise = standard_normal(config.latent_shapes, images.shape[0], images.device)
        distortion, kl, _, _ = elbo(self.generator, self.encoder, images, noise)
        charged = self.kl_weight * kl.sum(1)
        if fraction < self.warm_up:
            beta = self.kl_weight * fraction / self.warm_up
            charged = beta * (balance(kl, config) * kl).sum(1)
        shape = tuple(images.shape[1:])
        loss = bits_per_dimension((distortion + charged).mean(), shape)
        with torch.no_grad():
            stats = {
                "bits": bits_per_dimension((distortion + kl.sum(1)).mean(), shape),
                "distortion_bits": bits_per_dimension(distortion.mean(), shape),
                "kl": kl.mean(0),
            }
        return loss, stats
