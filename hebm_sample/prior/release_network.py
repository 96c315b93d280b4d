"""The energy nets of "Learning Latent Space Hierarchical EBM Diffusion Models" (arXiv 2405.13910),
as its authors' release has them: one per group, of z_i and the integer level t, to s_t F_i.

    e = M(sinusoids of t)                                        128 numbers
    features: convolutions of stride 2, down to 2x2 (residual) or 4x4 (plain)
    f <- A silu(L silu(f) + E silu(e)) + S silu(f)               twice, on the flat features
    s_t F_i = out(silu(f))

The residual nets, for CIFAR-10, add e to z and to each block as well. No layer has a bias.
Spectral norm ("Spectral Normalization for GANs", arXiv 1802.05957) is part of the weights: these
nets are imported, and are what they were at evaluation.
"""

import math
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["DenseBlock", "HalvingBlock", "ReleaseLevel", "ReleaseNet"]

LEVEL_WIDTH, LONGEST_PERIOD = 128, 10_000.0


class ReleaseLevel(NamedTuple):
    """What a net makes of t alone: e (B, 128), and what is added to z (B, C, 1, 1)."""

    embedding: Tensor
    offset: Tensor | None


def _conv(inputs: int, outputs: int, side: int) -> nn.Conv2d:
    """3x3, or 4x4 at half the resolution."""
    stride = 2 if side == 4 else 1
    return nn.Conv2d(inputs, outputs, side, stride, padding=1, bias=False)


def _linear(inputs: int, outputs: int) -> nn.Linear:
    return nn.Linear(inputs, outputs, bias=False)


class HalvingBlock(nn.Module):
    """Half the resolution: conv(silu(conv(h) + E silu(e))) + conv(h)."""

    def __init__(self, inputs: int, width: int, first: bool) -> None:
        super().__init__()
        self.first = first  # the first block reads z without a nonlinearity
        self.conv1 = _conv(inputs, width, 4)
        self.conv2 = _conv(width, width, 3)
        self.short = _conv(inputs, width, 4)
        self.level = _linear(LEVEL_WIDTH, width)

    def forward(self, h: Tensor, e: Tensor) -> Tensor:
        """(B, C, H, W) and (B, 128) to (B, C', H/2, W/2)."""
        h = h if self.first else F.silu(h)
        x = self.conv1(h) + self.level(F.silu(e))[:, :, None, None]
        return self.conv2(F.silu(x)) + self.short(h)


class DenseBlock(nn.Module):
    """A silu(L silu(f) + E silu(e)) + S silu(f), to half the width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        half = width // 2
        self.lead, self.short = _linear(width, half), _linear(width, half)
        self.level, self.mix = _linear(LEVEL_WIDTH, half), _linear(half, half)

    def forward(self, f: Tensor, e: Tensor) -> Tensor:
        """(B, W) and (B, 128) to (B, W / 2)."""
        x = self.lead(F.silu(f)) + self.level(F.silu(e))
        return self.mix(F.silu(x)) + self.short(F.silu(f))


class ReleaseNet(nn.Module):
    """One group's net.

    Arguments:
        latent_shape: (C, H, W) of z_i; H a power of two of at least 8.
        width: Channels of the features.
        residual: As for CIFAR-10; plain as for CelebA-HQ if not.
    """

    def __init__(self, latent_shape: tuple[int, int, int], width: int, residual: bool) -> None:
        super().__init__()
        channels, side, _ = latent_shape
        last = 2 if residual else 4
        count = int(math.log2(side // last))
        self.residual = residual
        self.embed1 = _linear(LEVEL_WIDTH, LEVEL_WIDTH)
        self.embed2 = _linear(LEVEL_WIDTH, LEVEL_WIDTH)
        widths = [channels] + [width] * count
        pairs = list(zip(widths, widths[1:], strict=False))
        if residual:
            self.offset1, self.offset2 = (
                _linear(LEVEL_WIDTH, channels),
                _linear(channels, channels),
            )
            self.blocks = nn.ModuleList(
                HalvingBlock(a, b, i == 0) for i, (a, b) in enumerate(pairs)
            )
        else:
            self.blocks = nn.ModuleList(_conv(a, b, 4) for a, b in pairs)
        flat = width * last**2
        self.dense = nn.ModuleList((DenseBlock(flat), DenseBlock(flat // 2)))
        self.out = _linear(flat // 4, 1)

    def at(self, level: Tensor) -> ReleaseLevel:
        """What depends on the level alone: t (B,), an integer as a float."""
        half = LEVEL_WIDTH // 2
        steps = torch.arange(half, dtype=torch.float32, device=level.device)
        phase = level[:, None] * torch.exp(-math.log(LONGEST_PERIOD) * steps / half)
        sinusoids = torch.cat([phase.cos(), phase.sin()], dim=1)
        e = self.embed2(F.silu(self.embed1(sinusoids)))
        if not self.residual:
            return ReleaseLevel(e, None)
        return ReleaseLevel(e, self.offset2(F.silu(self.offset1(sinusoids)))[:, :, None, None])

    def forward(
        self, z: Tensor, u: Tensor, h: Tensor, level: Tensor | ReleaseLevel
    ) -> tuple[Tensor, Tensor]:
        """s_t F_i (B,), and no symbols' outputs (B, 0); only z is read.

        Arguments:
            z, u, h: As for `EnergyNet`.
            level: As for `at`, or what it gave.
        """
        known = self.at(level) if isinstance(level, Tensor) else level
        e, f = known.embedding, z if known.offset is None else z + known.offset
        for i, block in enumerate(self.blocks):
            if self.residual:
                f = block(f, e)
            else:
                f = cast("nn.Conv2d", block)(f if i == 0 else F.silu(f))
        f = f.flatten(1)
        for block in self.dense:
            f = block(f, e)
        return self.out(F.silu(f)).squeeze(1), u.new_zeros(len(u), 0)
