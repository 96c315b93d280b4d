"""The top-down part of an NVAE (arXiv 2007.03898): T and the image decoder.

    h_1 = learned constant
    z_1 = 1.01 u_1,   z_i = mu_i(h_i) + sigma_i(h_i) u_i       sigma = exp(5 tanh(s / 5)) + 0.01
    h_{i+1} = cells(W [h_i, z_i])                              a doubling cell between scales
    x ~ p(x | h_{L+1})                                         `nvae/output.py`

u = (z - mu) / sigma of NVAE's own prior, so that u ~ N(0, I) is its sampling, and u ~ N(0, T^2 I)
its sampling at temperature T.
"""

import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hebm_sample.config import NvaeConfig
from hebm_sample.generator.nvae.cells import Cell, cell_width
from hebm_sample.generator.nvae.output import (
    LEAST_SIGMA,
    MixtureOutput,
    NormalOutput,
    nvae_normal,
)
from hebm_sample.generator.protocol import Choose, Generator, TopDown

__all__ = ["NvaeGenerator", "NvaeGroup", "new_cell"]


class NvaeGroup(nn.Module):
    """One latent group: mu_i, sigma_i of h_i, the convolution that takes z_i in, and the cells
    below it.

    Arguments:
        width: Channels of h_i.
        latent_channels: Of z_i.
        top: Whether it is the first group, whose prior does not depend on h_1.
        below: The cells between z_i and h_{i+1}.
    """

    def __init__(self, width: int, latent_channels: int, top: bool, below: list[Cell]) -> None:
        super().__init__()
        self.latent_channels = latent_channels
        self.prior = None if top else nn.Conv2d(width, 2 * latent_channels, 1)
        self.combine = nn.Conv2d(width + latent_channels, width, 1)
        self.cells = nn.Sequential(*below)

    def prior_parameters(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """mu_i(h_i) and log sigma_i(h_i), each (B, C_i, H_i, W_i)."""
        if self.prior is None:
            mu = h.new_zeros(len(h), self.latent_channels, *h.shape[2:])
            return mu, mu + math.log(1 + LEAST_SIGMA)
        mu, sigma = nvae_normal(*self.prior(F.elu(h)).chunk(2, dim=1))
        return mu, sigma.log()

    def forward(self, h: Tensor, z: Tensor) -> Tensor:
        """h_{i+1} of h_i (B, W, H, W) and z_i (B, C_i, H, W)."""
        return self.cells(self.combine(torch.cat([h, z], dim=1)))


def new_cell(config: NvaeConfig, role: str, width: int) -> Cell:
    """A cell of a role of `NvaeCells`, for maps of `width` channels."""
    stride = {"normal": 1, "down": 2, "up": -1}[role.partition("_")[0]]
    return Cell(width, stride, getattr(config.cells, role), config.squeeze_excitation)


class NvaeGenerator(Generator):
    """The generator of one `NvaeConfig`."""

    config: NvaeConfig

    def __init__(self, config: NvaeConfig) -> None:
        super().__init__()
        self.config = config
        top = config.scales[0]
        self.constant = nn.Parameter(torch.rand(1, top.width, top.resolution, top.resolution))
        self.groups = nn.ModuleList(_groups(config))
        layers, width = [], config.scales[-1].width
        for _ in range(config.blocks):
            layers.append(new_cell(config, "up_post", width))
            width = cell_width(width, -1)
            layers += [
                new_cell(config, "normal_post", width) for _ in range(config.postprocess_cells - 1)
            ]
        self.decoder = nn.Sequential(*layers)
        outputs = 6 if config.mixtures == 1 else 10 * config.mixtures
        self.head = nn.Conv2d(width, outputs, 3, padding=1)

    def descend(self, batch: int, choose: Choose, *, features: bool = True) -> TopDown:
        """Walk the hierarchy, as `Generator.descend`."""
        h = self.constant.expand(batch, -1, -1, -1)
        zs, us, hs = [], [], []
        for i, group in enumerate(self.groups):
            u, z = choose(i, h, *cast("NvaeGroup", group).prior_parameters(h))
            zs.append(z)
            us.append(u)
            hs.append(h)
            if i < len(self.groups) - 1 or features:
                h = self.through(group, h, z)
        return TopDown(tuple(zs), tuple(us), tuple(hs), h)

    def output(self, features: Tensor) -> MixtureOutput | NormalOutput:
        """p(x | h_{L+1}) of features (B, W, H, W)."""
        logits = self.head(F.elu(self.decoder(features))).float()
        if self.config.mixtures == 1:
            return NormalOutput(logits, self.config.bits)
        return MixtureOutput(logits, self.config.mixtures, self.config.bits)


def _groups(config: NvaeConfig) -> list[NvaeGroup]:
    """All groups, each with the cells that lead to the next one."""
    sides = [s for s in config.scales for _ in range(s.groups)]
    found = []
    for i, scale in enumerate(sides):
        below: list[Cell] = []
        if i + 1 < len(sides):
            following = sides[i + 1]
            if following.resolution != scale.resolution:
                below.append(new_cell(config, "up_dec", scale.width))
            below += [
                new_cell(config, "normal_dec", following.width)
                for _ in range(config.decoder_cells)
            ]
        found.append(NvaeGroup(scale.width, config.latent_channels, i == 0, below))
    return found
