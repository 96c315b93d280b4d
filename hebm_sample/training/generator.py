"""The generator's objective: the evidence lower bound with KL balancing.

    loss = [ -log p(x | h_{L+1}) + beta sum_i c_i KL_i ] / (dimensions log 2)        in bits a
    dimension

During the warm-up (the first third) beta rises to 1 and c_i is proportional to (mean KL_i + 0.01)
/ alpha_i, alpha_i = positions of its scale / groups at its scale, detached and of mean 1: a group
with little KL is charged little, so that none dies. Afterwards beta = c_i = 1 and the loss is the
ELBO.
"""

from typing import Any

import torch
from torch import Tensor, nn

from hebm_sample.config import GeneratorConfig
from hebm_sample.generator.encoder import Encoder, encode, kl_per_group
from hebm_sample.generator.hierarchy import HierarchicalGenerator, Latents
from hebm_sample.generator.likelihood import bits_per_dimension

__all__ = ["GeneratorObjective", "balance", "elbo", "standard_normal"]

WARM_UP = 1 / 3


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
) -> tuple[Tensor, Tensor]:
    """-log p(x | h_{L+1}) (B,) and KL a group (B, L), both in nats."""
    posterior = encode(generator, encoder, images, noise)
    log_p = generator.likelihood.log_prob(generator.decode(posterior.top.features), images)
    return -log_p, kl_per_group(posterior.mean, posterior.log_s)


class GeneratorObjective(nn.Module):
    """Generator and encoder with the loss above."""

    def __init__(self, generator: HierarchicalGenerator, encoder: Encoder) -> None:
        super().__init__()
        self.generator, self.encoder = generator, encoder

    def forward(self, images: Tensor, fraction: float) -> tuple[Tensor, dict[str, Any]]:
        """Loss in bits a dimension, and statistics: bits, reconstruction bits, KL a group in nats.

        Arguments:
            images: (B, 3, S, S) in [-1, 1].
            fraction: Part of the run that is done, in [0, 1].
        """
        config = self.generator.config
        noise = standard_normal(config.latent_shapes, images.shape[0], images.device)
        distortion, kl = elbo(self.generator, self.encoder, images, noise)
        charged = kl.sum(1)
        if fraction < WARM_UP:
            charged = (fraction / WARM_UP) * (balance(kl, config) * kl).sum(1)
        shape = tuple(images.shape[1:])
        loss = bits_per_dimension((distortion + charged).mean(), shape)
        with torch.no_grad():
            stats = {
                "bits": bits_per_dimension((distortion + kl.sum(1)).mean(), shape),
                "distortion_bits": bits_per_dimension(distortion.mean(), shape),
                "kl": kl.mean(0),
            }
        return loss, stats
