r"""A discriminator for an image decoder, and the losses of both.

    D(x), maps_1(x), ...    one logit per image, the mean over its patches, and feature maps

    discriminator   softplus(-D(x)) + softplus(D(y))
                    + (gamma / 2) (|grad D(x)|^2 + |grad D(y)|^2)
    decoder         a |y - x|_1 + d |y - x|^2 + c softplus(-D(y)) / s
                    + b mean_i |maps_i(y) - maps_i(x)|_1 / |maps_i(x)|_1
                    s = sqrt(n) |grad D(y)|, a number, of an image of n values

with x an image and y what the decoder makes of its latents; of samples, which have no image, see
`decoding/objective.py`. A discriminator gets steeper as long as it learns. Divided by its slope,
its word has the same weight beside the pixels' all the time, after Esser et al., "Taming
Transformers for High-Resolution Image Synthesis" (arXiv 2012.09841). The non-saturating loss is
that of Goodfellow et al., "Generative Adversarial Networks" (arXiv 1406.2661); the penalties are
R1 and R2 of Mescheder et al., "Which Training Methods for GANs do actually Converge?"
(arXiv 1801.04406), both at once after Huang et al., "The GAN is dead; long live the GAN!"
(arXiv 2501.05441); feature matching is that of Larsen et al., "Autoencoding beyond pixels
using a learned similarity metric" (arXiv 1512.09300).
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["Discriminator", "Response", "feature_distance", "gradient_penalty"]

WIDTHS = (48, 96, 128, 128)
SLOPE = 0.2
LEAST_SIDE = 4  # positions of the last map


class Response(NamedTuple):
    """Of a batch of images: logits (B,), large for real ones, and feature maps, coarse last."""

    logits: Tensor
    maps: tuple[Tensor, ...]


class _Stage(nn.Module):
    """3x3, then 4x4 with stride 2; (B, C, H, W) to (B, C', H/2, W/2)."""

    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width_in, width_in, 3, padding=1)
        self.down = nn.Conv2d(width_in, width_out, 4, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C', H/2, W/2)."""
        x = self.conv(F.leaky_relu(x, SLOPE))
        return self.down(F.leaky_relu(x, SLOPE))


class Discriminator(nn.Module):
    """Real or decoded, from square images of `size` pixels: space to depth, strided stages down to
    4x4 patches, one logit a patch.

    Arguments:
        size: Side of the images, 8 times a power of two or more.
        channels: Of the images.
        widths: Of the stages; the last repeats for larger images.
    """

    def __init__(self, size: int, channels: int = 3, widths: Sequence[int] = WIDTHS) -> None:
        super().__init__()
        self.stem = nn.Conv2d(4 * channels, widths[0], 3, padding=1)
        stages, width, side, count = [], widths[0], size // 2, 0
        while side > LEAST_SIDE:
            count += 1
            after = widths[min(count, len(widths) - 1)]
            stages.append(_Stage(width, after))
            width, side = after, side // 2
        self.stages = nn.ModuleList(stages)
        self.last = nn.Conv2d(width, 64, 3, padding=1)
        self.out = nn.Conv2d(64, 1, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, a=SLOPE)
                assert module.bias is not None
                nn.init.zeros_(module.bias)

    def forward(self, images: Tensor) -> Response:
        """Images (B, C, S, S), about [-1, 1], to logits and maps."""
        x, maps = self.stem(F.pixel_unshuffle(images, 2)), []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        x = self.out(F.leaky_relu(self.last(F.leaky_relu(x, SLOPE)), SLOPE))
        return Response(x.flatten(1).mean(1), tuple(maps))


def feature_distance(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> Tensor:
    """Mean over the maps of |found - wanted|_1 / |wanted|_1."""
    pairs = zip(found, wanted, strict=True)
    return torch.stack([(a - b).abs().mean() / b.abs().mean() for a, b in pairs]).mean()


def gradient_penalty(discriminator: nn.Module, images: Tensor) -> Tensor:
    """Mean of |grad_x D(x)|^2 over images (B, C, S, S), differentiable in D's parameters."""
    images = images.detach().requires_grad_()
    logits = discriminator(images).logits
    (slope,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    return slope.square().flatten(1).sum(1).mean()
