"""One latent group's term of the energy-based prior: (z_i, u_i, h_i) and a level to numbers.

    f_i = < v_i(z_i, u_i, h_i, t), u_i > + w^T pool(features)           the base
    b_i = f_i / cum_sigma   or   f_i / s_t                              (`prior/joint.py`)
    g_i^j = < v_i^j(features), u_i > + W_j pool(features) + c_j        one number a symbol's value

v_i is a residual network's map of u_i's shape. The inner product lets the gradient in u_i be read
off the output, as a score network's is, while F_i stays a scalar; the pooled term adds what is not
local. A net that reads the top-down state h_i sees the dependence between the layers above and its
own, which one of z_i alone cannot. All heads start at zero: an untrained prior is N(0, I).
"""

import math
from collections.abc import Iterable
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["EnergyNet", "LevelEmbedding", "LevelFeatures"]

FREQUENCIES = 32
LOWEST_FREQUENCY, HIGHEST_FREQUENCY = 0.1, 3.0


class LevelFeatures(NamedTuple):
    """What a net makes of the noise level alone; a chain asks for it once.

    Arguments:
        modulation: 1 + scale and shift of each cell, (B, W, 1, 1) each.
        gain: (B, C, 1, 1), of u itself in v.
    """

    modulation: tuple[tuple[Tensor, Tensor], ...]
    gain: Tensor


class LevelEmbedding(nn.Module):
    """Noise levels (B,), log SNR or integers, to features (B, width): sinusoids, then one hidden
    layer.
    """

    frequencies: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        log_ends = (math.log(LOWEST_FREQUENCY), math.log(HIGHEST_FREQUENCY))
        logs = torch.linspace(*log_ends, FREQUENCIES, dtype=torch.float32)
        self.register_buffer("frequencies", torch.exp(logs), persistent=False)
        self.hidden = nn.Linear(2 * FREQUENCIES, width)

    def forward(self, level: Tensor) -> Tensor:
        """(B,) to (B, width)."""
        phase = level[:, None] * self.frequencies
        return F.silu(self.hidden(torch.cat([phase.sin(), phase.cos()], dim=1)))


class EnergyCell(nn.Module):
    """x + conv(silu((1 + scale) conv(silu(x)) + shift)); scale and shift come from the level."""

    def __init__(self, width: int, level_width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.modulate = nn.Linear(level_width, 2 * width)
        self.conv2.weight.data.mul_(0.3)

    def modulation(self, level: Tensor) -> tuple[Tensor, Tensor]:
        """1 + scale and shift, (B, W, 1, 1) each, of level features (B, E)."""
        scale, shift = self.modulate(level)[:, :, None, None].chunk(2, dim=1)
        return 1 + scale, shift

    def forward(self, x: Tensor, factor: Tensor, shift: Tensor) -> Tensor:
        """(B, W, H, H) to the same shape, with what `modulation` gave."""
        y = self.conv1(F.silu(x))
        return x + self.conv2(F.silu(y * factor + shift))


class EnergyNet(nn.Module):
    """f_i and g_i of one group.

    Arguments:
        latent_shape: (C, H, W) of z_i and u_i.
        state_channels: Channels of h_i.
        width: Channels of the features.
        cells: Residual cells.
        max_resolution: Maps with a longer side are folded, space to depth, to this side first.
        symbol_values: V, the values of all symbols together.
    """

    def __init__(
        self,
        latent_shape: tuple[int, int, int],
        state_channels: int,
        width: int,
        cells: int,
        max_resolution: int,
        symbol_values: int = 0,
    ) -> None:
        super().__init__()
        channels, side, _ = latent_shape
        self.fold = max(1, side // max_resolution)
        latents = channels * self.fold**2
        self.level = LevelEmbedding(width)
        self.state = nn.Conv2d(state_channels * self.fold**2, width, 1)
        self.latent = nn.Conv2d(2 * latents, width, 3, padding=1)
        self.cells = nn.ModuleList(EnergyCell(width, width) for _ in range(cells))
        self.out = nn.Conv2d(width, latents, 1)
        self.gain = nn.Linear(width, latents)
        self.pooled = nn.Linear(width, 1, bias=False)
        self.symbol_values, heads = symbol_values, [self.out, self.gain, self.pooled]
        if symbol_values:
            # The other nets' initial weights must not depend on whether there are symbols.
            with torch.random.fork_rng(devices=[]):  # pyright: ignore
                self.symbol_out = nn.Conv2d(width, symbol_values * latents, 1)
                self.symbol_pooled = nn.Linear(width, symbol_values)
            heads += [self.symbol_out, self.symbol_pooled]
        for head in heads:
            nn.init.zeros_(head.weight)
            if head.bias is not None:
                nn.init.zeros_(head.bias)

    def at(self, level: Tensor) -> LevelFeatures:
        """What depends on the level (B,) alone: log SNR, or integer t as a float."""
        e = self.level(level)
        cells = cast("Iterable[EnergyCell]", self.cells)
        return LevelFeatures(
            tuple(cell.modulation(e) for cell in cells), self.gain(e)[:, :, None, None]
        )

    def forward(
        self, z: Tensor, u: Tensor, h: Tensor, level: Tensor | LevelFeatures
    ) -> tuple[Tensor, Tensor]:
        """f_i (B,) and g_i (B, V).

        Arguments:
            z: (B, C, H, W).
            u: (B, C, H, W).
            h: (B, S, H, W).
            level: As for `at`, or what it gave.
        """
        features = self.at(level) if isinstance(level, Tensor) else level
        if self.fold > 1:
            z, u = (F.pixel_unshuffle(x, self.fold) for x in (z, u))
        x = self._state_map(F.silu(h)) + self.latent(torch.cat([z, u], dim=1))
        for cell, modulation in zip(self.cells, features.modulation, strict=True):
            x = cell(x, *modulation)
        x = F.silu(x)
        v = self.out(x) + features.gain * u
        pooled = x.sum((2, 3)) / math.sqrt(x.shape[2] * x.shape[3])
        f = (v * u).flatten(1).sum(1) + self.pooled(pooled).squeeze(1)
        if not self.symbol_values:
            return f, u.new_zeros(len(u), 0)
        return f, self._symbol_maps(x, u) + self.symbol_pooled(pooled)

    def _state_map(self, h: Tensor) -> Tensor:
        """`state` of (B, S, H, W) folded. Space to depth and then 1x1 is a convolution whose
        stride is its kernel's side, which moves the large map once less.
        """
        if self.fold == 1:
            return self.state(h)
        weight = self.state.weight.reshape(-1, h.shape[1], self.fold, self.fold)
        return F.conv2d(h, weight, self.state.bias, stride=self.fold)

    def _symbol_maps(self, x: Tensor, u: Tensor) -> Tensor:
        """< v^j(x), u > with v^j(x) = `symbol_out`(x)^j, (B, V), from features (B, W, H, H).

        Summed over positions first: the V maps themselves would be large and are not needed.
        """
        values, channels = self.symbol_values, u.shape[1]
        products = torch.bmm(u.flatten(2), x.flatten(2).transpose(1, 2))  # (B, C, W)
        weight = self.symbol_out.weight.reshape(values, -1)  # (V, C W)
        bias = self.symbol_out.bias
        assert bias is not None
        return F.linear(products.flatten(1), weight) + F.linear(
            u.sum((2, 3)), bias.reshape(values, channels)
        )
