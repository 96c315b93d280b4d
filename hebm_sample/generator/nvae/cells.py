"""NVAE's residual cells as they are once trained: batch norm and weight norm are folded away.

    cell(h) = skip(h) + 0.1 SE(op_n(... op_1(h)))
    res:      conv(act(scale h + shift))                            act = SiLU or ELU
    mconv:    W3 silu(dw(silu(W1 h + b1)) + b2) + b3                1x1, k x k in groups, 1x1

The architecture is that of "NVAE: A Deep Hierarchical Variational Autoencoder" (arXiv 2007.03898),
squeeze-and-excitation that of arXiv 1709.01507. Batch norm that no nonlinearity follows is part of
the convolution behind or before it; elsewhere it is a scale and a shift a channel.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hebm_sample.generator.blocks import enlarged

__all__ = [
    "ActivatedConv",
    "Cell",
    "CornerSkip",
    "InvertedBottleneck",
    "Norm",
    "SqueezeExcitation",
    "UpsampleSkip",
    "cell_width",
]

BRANCH = 0.1  # what a cell's branch is multiplied by
CORNERS = ((0, 0), (1, 1), (0, 1), (1, 0))  # of each square of four positions: row, column
Stride = int  # 1; 2 halves the resolution and doubles the channels; -1 the other way round


class Convolution(NamedTuple):
    """An activated convolution: its nonlinearity, whether it is normalised, its dilation."""

    activation: str
    normalised: bool
    dilation: int = 1


class Bottleneck(NamedTuple):
    """An inverted bottleneck: its expansion, its kernel's side, groups (0 is one per channel)."""

    expansion: int
    kernel: int
    groups: int = 0


OPERATIONS: dict[str, Convolution | Bottleneck] = {
    "res_elu": Convolution("elu", normalised=False),
    "res_bnelu": Convolution("elu", normalised=True),
    "res_bnswish": Convolution("silu", normalised=True),
    "res_bnswish5": Convolution("silu", normalised=True, dilation=2),
    "mconv_e6k5g0": Bottleneck(6, 5),
    "mconv_e3k5g0": Bottleneck(3, 5),
    "mconv_e3k5g8": Bottleneck(3, 5, 8),
    "mconv_e6k11g0": Bottleneck(6, 11),
}


def cell_width(width: int, stride: Stride) -> int:
    """Channels after a cell of `width` channels."""
    return {1: width, 2: 2 * width, -1: width // 2}[stride]


class Norm(nn.Module):
    """Folded batch norm: (B, C, H, W) times a scale plus a shift a channel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))
        self.shift = nn.Parameter(torch.zeros(width))

    def forward(self, h: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        return h * self.scale[:, None, None] + self.shift[:, None, None]


class ActivatedConv(nn.Module):
    """Norm, nonlinearity, then a 3x3 convolution; stride -1 doubles the maps before it."""

    def __init__(self, width: int, outputs: int, stride: Stride, kind: Convolution) -> None:
        super().__init__()
        self.norm = Norm(width) if kind.normalised else nn.Identity()
        self.activation = getattr(F, kind.activation)
        self.upsamples = stride == -1
        self.conv = nn.Conv2d(
            width, outputs, 3, abs(stride), padding=kind.dilation, dilation=kind.dilation
        )

    def forward(self, h: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C', H', W')."""
        h = self.activation(self.norm(h))
        if self.upsamples:
            h = enlarged(h, 2, "nearest")
        return self.conv(h)


class InvertedBottleneck(nn.Module):
    """Wide 1x1 convolution, convolution in groups, 1x1 back; stride -1 doubles the maps first."""

    def __init__(self, width: int, outputs: int, stride: Stride, kind: Bottleneck) -> None:
        super().__init__()
        hidden = width * kind.expansion
        self.upsamples = stride == -1
        self.expand = nn.Conv2d(width, hidden, 1)
        self.mix = nn.Conv2d(
            hidden,
            hidden,
            kind.kernel,
            abs(stride),
            padding=(kind.kernel - 1) // 2,
            groups=kind.groups or hidden,
        )
        self.project = nn.Conv2d(hidden, outputs, 1)

    def forward(self, h: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C', H', W')."""
        h = self.expand(h)  # pointwise, so that it may come before the doubling
        if self.upsamples:
            h = enlarged(h, 2, "nearest")
        return self.project(F.silu(self.mix(F.silu(h))))


class SqueezeExcitation(nn.Module):
    """h times a gate per channel, made of the channels' means."""

    def __init__(self, width: int) -> None:
        super().__init__()
        inner = max(width // 16, 4)
        self.squeeze = nn.Linear(width, inner)
        self.excite = nn.Linear(inner, width)

    def forward(self, h: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        gate = torch.sigmoid(self.excite(F.relu(self.squeeze(h.mean((2, 3))))))
        return h * gate[:, :, None, None]


class CornerSkip(nn.Module):
    """Half the resolution, twice the channels: a 1x1 convolution of each corner of four."""

    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        quarter = outputs // 4
        sizes = (quarter, quarter, quarter, outputs - 3 * quarter)
        self.corners = nn.ModuleList(nn.Conv2d(width, size, 1) for size in sizes)

    def forward(self, h: Tensor) -> Tensor:
        """(B, C, H, W) to (B, 2C, H/2, W/2)."""
        h = F.silu(h)
        places = zip(self.corners, CORNERS, strict=True)
        return torch.cat([conv(h[:, :, y::2, x::2]) for conv, (y, x) in places], dim=1)


class UpsampleSkip(nn.Module):
    """Twice the resolution, bilinearly between corners, and half the channels."""

    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.project = nn.Conv2d(width, outputs, 1, bias=False)

    def forward(self, h: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C/2, 2H, 2W)."""
        # Pointwise and linear, so that it may come first, where maps are small.
        return F.interpolate(self.project(h), scale_factor=2, mode="bilinear", align_corners=True)


class Cell(nn.Module):
    """A residual cell of several operations.

    Arguments:
        width: Channels of its input.
        stride: Of its first operation and its skip connection.
        operations: Names of `OPERATIONS`.
        gated: With squeeze-and-excitation.
    """

    def __init__(
        self, width: int, stride: Stride, operations: tuple[str, ...], gated: bool
    ) -> None:
        super().__init__()
        outputs = cell_width(width, stride)
        kinds = {1: lambda *_: nn.Identity(), 2: CornerSkip, -1: UpsampleSkip}
        self.skip = kinds[stride](width, outputs)
        ops: list[nn.Module] = []
        for i, name in enumerate(operations):
            kind, channels = OPERATIONS[name], outputs if i else width
            build = ActivatedConv if isinstance(kind, Convolution) else InvertedBottleneck
            ops.append(build(channels, outputs, 1 if i else stride, kind))  # pyright: ignore
        self.operations = nn.Sequential(*ops)
        self.gate = SqueezeExcitation(outputs) if gated else nn.Identity()

    def forward(self, h: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C', H', W')."""
        return self.skip(h) + BRANCH * self.gate(self.operations(h))
