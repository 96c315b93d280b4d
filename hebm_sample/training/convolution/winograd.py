r"""3x3 convolutions with stride 1 by a quarter of the multiplications; their weight gradient.

    y = A^T [ (G w G^T) (B^T x B) ] A       of each 6x6 window of x, for 4x4 positions of y
    dw = G^T [ (B^T x B) (A dy A^T) ] G     summed over the windows

The products in brackets are taken element by element of the 36 and summed over channels: 36
products of matrices. This is F(4x4, 3x3) of "Fast Algorithms for Convolutional Neural Networks"
(arXiv 1509.09308). Rounding is about ten times that of the plain sum: 3e-6 in float32.
"""

from functools import lru_cache

import torch
from torch import Tensor

__all__ = [
    "convolve",
    "pays",
    "transformed_kernel",
    "transformed_windows",
    "weight_gradient",
]

TILE = 4  # positions of y a side
WINDOW = TILE + 2  # of x
# With fewer channels the transforms cost what the products save.
FEWEST_CHANNELS = 96

B_T = (
    (4.0, 0.0, -5.0, 0.0, 1.0, 0.0),
    (0.0, -4.0, -4.0, 1.0, 1.0, 0.0),
    (0.0, 4.0, -4.0, -1.0, 1.0, 0.0),
    (0.0, -2.0, -1.0, 2.0, 1.0, 0.0),
    (0.0, 2.0, -1.0, -2.0, 1.0, 0.0),
    (0.0, 4.0, 0.0, -5.0, 0.0, 1.0),
)
G = (
    (1 / 4, 0.0, 0.0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0.0, 0.0, 1.0),
)
A_T = (
    (1.0, 1.0, 1.0, 1.0, 1.0, 0.0),
    (0.0, 1.0, -1.0, 2.0, -2.0, 0.0),
    (0.0, 1.0, 1.0, 4.0, 4.0, 0.0),
    (0.0, 1.0, -1.0, 8.0, -8.0, 1.0),
)


def pays(maps: torch.Size, weight: torch.Size) -> bool:
    """Whether a convolution of maps (B, C, H, W) by a weight (K, C, 3, 3) with padding 1 is
    faster so.
    """
    whole = maps[2] % TILE == 0 and maps[3] % TILE == 0
    return whole and weight[2:] == (3, 3) and min(weight[:2]) >= FEWEST_CHANNELS


@lru_cache(maxsize=32)
def _twice(rows: tuple[tuple[float, ...], ...], dtype: torch.dtype) -> Tensor:
    """The matrix M as M (x) M, which transforms both sides of a square at once."""
    with torch.inference_mode(False):
        m = torch.tensor(rows, dtype=torch.float64)
        return torch.kron(m, m).to(dtype)


def _transformed(matrix: Tensor, squares: Tensor) -> Tensor:
    """matrix (36, P) of every square (squares, P, C): (36, squares, C)."""
    return torch.bmm(matrix.expand(len(squares), -1, -1), squares).transpose(0, 1)


def transformed_windows(x: Tensor) -> Tensor:
    """B^T x B of all windows, which overlap, of (B, C, H, W) with a border of zeros:
    (36, windows, C).
    """
    batch, channels, height, width = x.shape
    wide = x.new_zeros(batch, height + 2, width + 2, channels)
    wide[:, 1:-1, 1:-1].copy_(x.permute(0, 2, 3, 1))
    image, row, column, _ = wide.stride()
    windows = wide.as_strided(
        (batch, height // TILE, width // TILE, WINDOW, WINDOW, channels),
        (image, TILE * row, TILE * column, row, column, 1),
    )
    return _transformed(_twice(B_T, x.dtype), windows.reshape(-1, WINDOW**2, channels))


def transformed_kernel(weight: Tensor) -> Tensor:
    """G w G^T of (K, C, 3, 3): (36, C, K)."""
    outputs, channels = weight.shape[:2]
    kernel = weight.permute(2, 3, 1, 0).reshape(9, -1)
    return torch.mm(_twice(G, weight.dtype), kernel).view(-1, channels, outputs)


def convolve(windows: Tensor, kernel: Tensor, maps: torch.Size, bias: Tensor | None) -> Tensor:
    """Maps by a weight, with a border of zeros: (B, K, H, W), channels last.

    Arguments:
        windows, kernel: Of maps and weight, transformed.
        maps: (B, C, H, W); height and width are multiples of 4.
        bias: (K,), if any.
    """
    batch, _, height, width = maps
    outputs = kernel.shape[2]
    products = torch.bmm(windows, kernel).view(WINDOW**2, -1)
    tiles = torch.mm(_twice(A_T, kernel.dtype), products)
    tiles = tiles.view(TILE, TILE, batch, height // TILE, width // TILE, outputs)
    tiles = tiles.permute(2, 3, 0, 4, 1, 5)
    if bias is None:
        y = tiles.reshape(batch, height, width, outputs)
    else:
        y = kernel.new_empty(batch, height, width, outputs)
        torch.add(tiles, bias, out=y.view(tiles.shape))
    return y.permute(0, 3, 1, 2)


def weight_gradient(windows: Tensor, slope: Tensor) -> Tensor:
    """Of sum(slope * y) by the weight: (K, C, 3, 3), channels last.

    Arguments:
        windows: Of the maps, transformed.
        slope: (B, K, H, W), as y.
    """
    batch, outputs, height, width = slope.shape
    shape = (batch, height // TILE, TILE, width // TILE, TILE, outputs)
    tiles = slope.permute(0, 2, 3, 1).reshape(shape).transpose(2, 3)
    tiles = tiles.reshape(-1, TILE**2, outputs)
    slopes = _transformed(_twice(A_T, slope.dtype).T, tiles)
    products = torch.bmm(windows.transpose(1, 2), slopes).view(WINDOW**2, -1)
    found = torch.mm(_twice(G, slope.dtype).T, products).view(3, 3, -1, outputs)
    return found.permute(3, 2, 0, 1).contiguous(memory_format=torch.channels_last)
