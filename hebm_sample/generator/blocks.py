"""Residual cells and resampling layers.

    cell(h) = h + W4 s(W3 s(W2 s(W1 s(h))))        s = SiLU; 1x1, 3x3, 3x3, 1x1 at half width

Dense 3x3 convolutions inside a narrow bottleneck are several times faster on a CPU than depthwise
ones. No
normalisation: an image must not depend on the others in its batch, and the maps are small.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["Cell", "Downsample", "Upsample", "cells", "enlarged", "narrow_start"]

RESIDUAL_START = 0.1


def narrow_start(layer: nn.Conv2d, factor: float) -> nn.Conv2d:
    """Shrink a layer's initial weights, so that the branch it ends starts small; returns the
    layer.
    """
    nn.init.zeros_(layer.bias) if layer.bias is not None else None
    layer.weight.data.mul_(factor)
    return layer


class Cell(nn.Module):
    """Bottleneck residual cell: (B, C, H, W) to the same shape."""

    def __init__(self, width: int) -> None:
        super().__init__()
        inner = max(width // 2, 1)
        self.reduce = nn.Conv2d(width, inner, 1)
        self.conv1 = nn.Conv2d(inner, inner, 3, padding=1)
        self.conv2 = nn.Conv2d(inner, inner, 3, padding=1)
        self.expand = narrow_start(nn.Conv2d(inner, width, 1), RESIDUAL_START)

    def forward(self, h: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, H, W)."""
        x = self.reduce(F.silu(h))
        x = self.conv1(F.silu(x))
        x = self.conv2(F.silu(x))
        return h + self.expand(F.silu(x))


def cells(width: int, count: int) -> nn.Sequential:
    """`count` cells in a row; none is the identity."""
    return nn.Sequential(*(Cell(width) for _ in range(count)))


def enlarged(x: Tensor, factor: int, mode: str) -> Tensor:
    """(B, C, H, W) to (B, C, factor H, factor W), by "nearest" or "bilinear"."""
    if mode == "nearest" and torch.compiler.is_compiling():
        # PyTorch 2.13 compiles `interpolate` into a backward pass that has lost its gradient, in
        # bfloat16 before a residual cell (`tests/training/test_compile.py`).
        b, c, h, w = x.shape
        blocks = x[:, :, :, None, :, None].expand(b, c, h, factor, w, factor)
        return blocks.reshape(b, c, h * factor, w * factor)
    return F.interpolate(x, scale_factor=factor, mode=mode)


class Upsample(nn.Module):
    """(B, C, H, W) to (B, C', 2H, 2W): channels first, where maps are small, then positions.

    Arguments:
        mode: "nearest" or "bilinear".
    """

    def __init__(self, width_in: int, width_out: int, mode: str = "nearest") -> None:
        super().__init__()
        self.mode = mode
        self.project = nn.Conv2d(width_in, width_out, 1)

    def forward(self, h: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C', 2H, 2W)."""
        return enlarged(self.project(h), 2, self.mode)


class Downsample(nn.Module):
    """(B, C, H, W) to (B, C', H/2, W/2): space to depth, then channels."""

    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__()
        self.project = nn.Conv2d(4 * width_in, width_out, 1)

    def forward(self, h: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C', H/2, W/2)."""
        return self.project(F.pixel_unshuffle(h, 2))
