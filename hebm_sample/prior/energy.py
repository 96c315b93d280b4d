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

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["EnergyNet", "LevelEmbedding"]

FREQUENCIES = 32
LOWEST_FREQUENCY, HIGHEST_FREQUENCY = 0.1, 3.0


class LevelEmbedding(nn.Module):
    """Noise levels (B,), log SNR or integers, to features (B, width): sinusoids, then one hidden
    layer.
    """

    frequencies: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        log_ends = (math.log(LOWEST_FREQUENCY), math.log(HIGHEST_FREQUENCY))
        self.register_buffer(
            "frequencies", torch.exp(torch.linspace(*log_ends, FREQUENCIES)), persistent=False
        )
        self.hidden = nn.Linear(2 * FREQUENCIES, width)

    def forward(self, level: Tensor) -> Tensor:
        """(B,) to (B, width)."""
        phase = level[:, None] * self.frequencies
        return F.silu(self.hidden(torch.cat([phase.sin(), phase.cos()], dim=1)))


class EnergyCell(nn.Module):
    """x + conv(silu(scale * conv(silu(x)) + shift)), scale and shift from the level's features."""

    def __init__(self, width: int, level_width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.modulate = nn.Linear(level_width, 2 * width)
        self.conv2.weight.data.mul_(0.3)

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        """(B, W, H, H) and level features (B, E) to (B, W, H, H)."""
        scale, shift = self.modulate(level)[:, :, None, None].chunk(2, dim=1)
        y = self.conv1(F.silu(x))
        return x + self.conv2(F.silu(y * (1 + scale) + shift))


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

    def forward(self, z: Tensor, u: Tensor, h: Tensor, level: Tensor) -> tuple[Tensor, Tensor]:
        """f_i (B,) and g_i (B, V).

        Arguments:
            z: (B, C, H, W).
            u: (B, C, H, W).
            h: (B, S, H, W).
            level: (B,), log SNR or integer t as a float.
        """
        if self.fold > 1:
            z, u, h = (F.pixel_unshuffle(x, self.fold) for x in (z, u, h))
        e = self.level(level)
        x = self.state(F.silu(h)) + self.latent(torch.cat([z, u], dim=1))
        for cell in self.cells:
            x = cell(x, e)
        x = F.silu(x)
        v = self.out(x) + self.gain(e)[:, :, None, None] * u
        pooled = x.sum((2, 3)) / math.sqrt(x.shape[2] * x.shape[3])
        f = (v * u).flatten(1).sum(1) + self.pooled(pooled).squeeze(1)
        if not self.symbol_values:
            return f, u.new_zeros(len(u), 0)
        return f, self._symbol_maps(x, u) + self.symbol_pooled(pooled)

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
