"""The encoder, a posterior directly in u space.

q(u_i | x, u_<i) = N(m_i, s_i^2),    m_i, s_i of (h_i, e_i);  e = bottom-up features of x
KL_i = 1/2 (m_i^2 + s_i^2 - 1) - log s_i                        summed over the group's positions

Top-down inference as in "NVAE: A Deep Hierarchical Variational Autoencoder" (arXiv 2007.03898).
"""

from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hebm_sample.config import GeneratorConfig, ScaleConfig
from hebm_sample.errors import UserInputError
from hebm_sample.generator.blocks import Cell, Downsample, cells, narrow_start
from hebm_sample.generator.hierarchy import soft_bound
from hebm_sample.generator.protocol import (
    Generator,
    GroupDraw,
    ImageEncoder,
    Maps,
    Posterior,
    at_least_float32,
    in_float32,
)
from hebm_sample.latents import Latents

__all__ = ["Encoder", "Posterior", "encode", "kl_per_group"]

LOG_S_BOUND = 5.0


class PosteriorHead(nn.Module):
    """m_i and log s_i of one group from the top-down state and the bottom-up features."""

    def __init__(self, scale: ScaleConfig) -> None:
        super().__init__()
        self.join = nn.Conv2d(2 * scale.width, scale.width, 1)
        self.cell = Cell(scale.width)
        self.out = narrow_start(nn.Conv2d(scale.width, 2 * scale.latent_channels, 1), 0.3)

    def forward(self, h: Tensor, e: Tensor) -> tuple[Tensor, Tensor]:
        """(B, W, H, W) twice to m_i, log s_i, each (B, C_i, H, W)."""
        found = self.out(F.silu(self.cell(self.join(torch.cat([h, e], 1)))))
        m, log_s = at_least_float32(found).chunk(2, dim=1)  # their KL is a small difference
        return m, soft_bound(log_s, LOG_S_BOUND)


class Encoder(ImageEncoder):
    """Bottom-up network and one posterior head per group, mirroring a `GeneratorConfig`."""

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        self.config = config
        stages = [*reversed(config.encoder_stages), *reversed(config.scales)]
        patch = config.head_upsample
        self.stem = nn.Conv2d(config.image_channels * patch**2, stages[0].width, 3, padding=1)
        self.downsamples = nn.ModuleList(
            Downsample(a.width, b.width) for a, b in zip(stages, stages[1:], strict=False)
        )
        self.stages = nn.ModuleList(cells(s.width, config.encoder_cells) for s in stages)
        self.heads = nn.ModuleList(
            PosteriorHead(s) for s in config.scales for _ in range(s.groups)
        )

    def features(self, images: Tensor) -> Maps:
        """Bottom-up maps by resolution.

        Arguments:
            images: (B, 3, S, S) in [-1, 1]; raises `UserInputError` on another shape.
        """
        size, channels = self.config.image_size, self.config.image_channels
        if images.ndim != 4 or images.shape[1:] != (channels, size, size):
            raise UserInputError(
                f"images have shape {tuple(images.shape)}; "
                f"this model needs (B, {channels}, {size}, {size})"
            )
        if (reduction := self.config.encoder_reduction) > 1:
            images = F.avg_pool2d(images, reduction)
        x = self.stem(F.pixel_unshuffle(images, self.config.head_upsample))
        maps: Maps = {}
        for i, stage in enumerate(self.stages):
            x = stage(x if i == 0 else self.downsamples[i - 1](x))
            maps[int(x.shape[-1])] = x
        return maps

    @property
    def map_shapes(self) -> dict[int, tuple[int, int, int]]:
        """(C, H, W) of the maps that posteriors read, by resolution."""
        scales = self.config.scales
        return {s.resolution: (s.width, s.resolution, s.resolution) for s in scales}

    def posterior(
        self, i: int, maps: Maps, h: Tensor, mu: Tensor, log_sigma: Tensor, noise: Tensor | None
    ) -> GroupDraw:
        """u_i = m_i + s_i eps and z_i = mu_i + sigma_i u_i; as `ImageEncoder.posterior`."""
        m, log_s = self.heads[i](h, maps[int(h.shape[-1])])
        u = m if noise is None else m + log_s.exp() * noise
        return GroupDraw(u, mu + log_sigma.exp() * u, m, log_s)

    def kl(self, drawn: Posterior) -> Tensor:
        """The KL of two normal distributions, (B, L); as `ImageEncoder.kl`."""
        return kl_per_group(drawn.mean, drawn.log_s)


def encode(
    generator: Generator,
    encoder: ImageEncoder,
    images: Tensor | Maps,
    noise: Latents | None,
    *,
    features: bool = True,
) -> Posterior:
    """Draw u ~ q(u | x), top to bottom.

    Arguments:
        images: (B, 3, S, S) in [-1, 1], or their `ImageEncoder.features`.
        noise: Standard normal latents; None takes the mean of every group.
        features: As of `Generator.descend`.
    """
    first = images if isinstance(images, Tensor) else next(iter(images.values()))
    with in_float32(first.device) if encoder.divides else nullcontext():
        maps = encoder.features(images) if isinstance(images, Tensor) else images
        return _drawn(generator, encoder, maps, noise, features)


def _drawn(
    generator: Generator, encoder: ImageEncoder, maps: Maps, noise: Latents | None, features: bool
) -> Posterior:
    """`encode` of maps."""
    means, log_ss = [], []

    def choose(i: int, h: Tensor, mu: Tensor, log_sigma: Tensor) -> tuple[Tensor, Tensor]:
        own = None if noise is None else noise[i]
        group = encoder.posterior(i, maps, h, mu, log_sigma, own)
        means.append(group.mean)
        log_ss.append(group.log_s)
        return group.u, group.z

    batch = int(next(iter(maps.values())).shape[0])
    top = generator.descend(batch, choose, features=features)
    return Posterior(top.u, tuple(means), tuple(log_ss), top, noise)


def kl_per_group(mean: Latents, log_s: Latents) -> Tensor:
    """KL_i = 1/2 (m_i^2 + s_i^2 - 1) - log s_i in nats, summed over each group: (B, L)."""
    return torch.stack(
        [
            (0.5 * (m.square() + torch.exp(2 * s) - 1) - s).flatten(1).sum(1)
            for m, s in zip(mean, log_s, strict=True)
        ],
        dim=1,
    )
