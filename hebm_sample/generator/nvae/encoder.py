"""The encoder of an NVAE (arXiv 2007.03898), as a posterior in u space.

    z_i = f_i(m_i + s_i eps)      m_i, s_i of W [e_i + V h_i] (+ p's own, if residual)
    u_i = (z_i - mu_i(h_i)) / sigma_i(h_i)

e_i are maps of the bottom-up tower, coarser for earlier groups. f_i is a chain of autoregressive
shifts, z - t(z), each of which sees only what comes before a position ("Improved Variational
Inference with Inverse Autoregressive Flow", arXiv 1606.04934), in pairs of opposite directions.
Their determinant is 1, so that

    KL_i = sum_j [ u_j^2 / 2 - eps_j^2 / 2 - log s_j + log sigma_j ]      at the draw

where there are flows; the KL of two normal distributions where there are none.
"""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hebm_sample.config import NvaeConfig
from hebm_sample.errors import UserInputError
from hebm_sample.generator.encoder import kl_per_group
from hebm_sample.generator.nvae.cells import Cell, cell_width
from hebm_sample.generator.nvae.hierarchy import new_cell
from hebm_sample.generator.nvae.output import nvae_normal, quantised
from hebm_sample.generator.protocol import (
    GroupDraw,
    ImageEncoder,
    Maps,
    Posterior,
    in_float32,
)

__all__ = ["FLOW_WIDTH", "NvaeEncoder", "PosteriorHead", "Shift"]

FLOW_WIDTH = 6  # channels of a shift's maps to one latent channel


class Shift(nn.Module):
    """z - t(z) of latents (B, C, H, W); the masks are part of the weights."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = FLOW_WIDTH * channels
        self.conv1 = nn.Conv2d(channels, hidden, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(hidden, hidden, 5, padding=2, groups=hidden, bias=False)
        self.out = nn.Conv2d(hidden, channels, 1)

    def forward(self, z: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        t = F.elu(self.conv2(F.elu(self.conv1(z))))
        return z - self.out(F.elu(t))


class PosteriorHead(nn.Module):
    """One group's part of the posterior.

    Arguments:
        widths: Channels of e_i and h_i.
        channels: Of z_i.
        top: Whether it is the first group, whose posterior reads no h.
        residual: Whether p's own parameters are added; the head has a copy of their layer.
        flows: Pairs of shifts.
    """

    def __init__(
        self, widths: tuple[int, int], channels: int, top: bool, residual: bool, flows: int
    ) -> None:
        super().__init__()
        encoded, state = widths
        self.join = None if top else nn.Conv2d(state, encoded, 1)
        self.out = nn.Conv2d(encoded, 2 * channels, 3, padding=1)
        self.prior = nn.Conv2d(state, 2 * channels, 1) if residual and not top else None
        self.flows = nn.Sequential(*(Shift(channels) for _ in range(2 * flows)))

    def forward(self, e: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """m_i and s_i, in the units of z_i and before flows, of e_i and h_i."""
        parameters = self.out(e if self.join is None else e + self.join(h))
        if self.prior is not None:
            parameters = parameters + self.prior(F.elu(h))
        return nvae_normal(*parameters.chunk(2, dim=1))


class NvaeEncoder(ImageEncoder):
    """The bottom-up tower of one `NvaeConfig` and a posterior head per group. Its maps have the
    groups' numbers as keys.
    """

    config: NvaeConfig
    divides = True

    def __init__(self, config: NvaeConfig) -> None:
        super().__init__()
        self.config = config
        width = config.encoder_width
        self.stem = nn.Conv2d(config.image_channels, width, 3, padding=1)
        layers: list[Cell] = []
        for _ in range(config.blocks):
            layers += [
                new_cell(config, "normal_pre", width) for _ in range(config.preprocess_cells - 1)
            ]
            layers.append(new_cell(config, "down_pre", width))
            width = cell_width(width, 2)
        self.preprocess = nn.Sequential(*layers)
        self.stages = nn.ModuleList(self._stages(width))  # from the last group to the first
        coarsest = self.map_shapes[0][0]
        self.top = nn.Conv2d(coarsest, coarsest, 1)
        states, shapes = config.state_shapes, self.map_shapes
        self.heads = nn.ModuleList(
            PosteriorHead(
                (shapes[i][0], states[i][0]),
                config.latent_channels,
                i == 0,
                config.residual_posterior,
                config.flows,
            )
            for i in range(len(states))
        )

    def _stages(self, width: int) -> list[nn.Sequential]:
        stages: list[nn.Sequential] = []
        for s, scale in enumerate(reversed(self.config.scales)):
            for g in range(scale.groups):
                layers: list[Cell] = []
                if s and g == 0:
                    layers.append(new_cell(self.config, "down_enc", width))
                    width = cell_width(width, 2)
                for _ in range(self.config.encoder_cells):
                    layers.append(new_cell(self.config, "normal_enc", width))
                stages.append(nn.Sequential(*layers))
        return stages

    @property
    def normal(self) -> bool:
        """Whether there are no flows; as of `ImageEncoder`."""
        return not self.config.flows

    @property
    def map_shapes(self) -> dict[int, tuple[int, int, int]]:
        """(C, H, W) of the maps by group."""
        config = self.config
        return {
            i: (config.encoder_width * (config.image_size // side), side, side)
            for i, (_, side, _) in enumerate(config.latent_shapes)
        }

    def features(self, images: Tensor) -> Maps:
        """Maps by group, in float32; as `ImageEncoder.features`."""
        size = self.config.image_size
        if images.ndim != 4 or images.shape[1:] != (3, size, size):
            raise UserInputError(
                f"images have shape {tuple(images.shape)}; this model needs (B, 3, {size}, {size})"
            )
        maps: Maps = {}
        with in_float32(images.device):
            e = self.preprocess(self.stem(quantised(images, self.config.bits)))
            for i, stage in zip(reversed(range(len(self.stages))), self.stages, strict=True):
                e = stage(e)
                maps[i] = e
            maps[0] = F.elu(self.top(F.elu(e)))
        return maps

    def posterior(
        self, i: int, maps: Maps, h: Tensor, mu: Tensor, log_sigma: Tensor, noise: Tensor | None
    ) -> GroupDraw:
        """A draw of q(u_i | x, u_<i); as `ImageEncoder.posterior`."""
        head = cast("PosteriorHead", self.heads[i])
        mean, s = head(maps[i], h)
        z = head.flows(mean if noise is None else mean + s * noise)
        scale = torch.exp(-log_sigma)
        return GroupDraw((z - mu) * scale, z, (mean - mu) * scale, s.log() - log_sigma)

    def kl(self, drawn: Posterior) -> Tensor:
        """KL_i in nats, (B, L): at the draw where there are flows; as `ImageEncoder.kl`."""
        if not self.config.flows:
            return kl_per_group(drawn.mean, drawn.log_s)
        noise = drawn.noise or tuple(torch.zeros_like(u) for u in drawn.u)
        rows = zip(drawn.u, noise, drawn.log_s, strict=True)
        parts = [(0.5 * (u.square() - e.square()) - s).flatten(1).sum(1) for u, e, s in rows]
        return torch.stack(parts, dim=1)
