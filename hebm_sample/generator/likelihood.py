"""The discretised logistic likelihood p(x | h_{L+1}).

An image's value is one of 256 levels, x = 2 k / 255 - 1. With mean m and scale b,

    p(x) = sigmoid((x + 1/255 - m) / b) - sigmoid((x - 1/255 - m) / b)

with the outermost bins reaching to infinity, as in "PixelCNN++" (arXiv 1701.05517) with one
component.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["DiscretizedLogistic", "LogisticOutput", "bits_per_dimension"]

HALF_BIN = 1 / 255
LOWEST_LOG_SCALE = -7.0


def bits_per_dimension(nats: Tensor, image_shape: tuple[int, ...]) -> Tensor:
    """Nats per image to bits per dimension (a colour value of a pixel)."""
    return nats / (math.log(2) * math.prod(image_shape))


class DiscretizedLogistic(nn.Module):
    """Discretised logistic with one learned log scale a colour channel."""

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.full((channels,), -2.0))

    def log_prob(self, mean: Tensor, images: Tensor) -> Tensor:
        """log p(x | mean) in nats.

        Arguments:
            mean: (B, C, H, W).
            images: (B, C, H, W) in [-1, 1], on the grid of 256 levels.

        Returns:
            (B,), summed over the image.
        """
        log_scale = self.log_scale.clamp(min=LOWEST_LOG_SCALE).view(1, -1, 1, 1)
        inverse = torch.exp(-log_scale)
        upper = (images + HALF_BIN - mean) * inverse
        lower = (images - HALF_BIN - mean) * inverse
        # sigmoid(a) - sigmoid(b) = sigmoid(a) sigmoid(-b) (1 - exp(b - a)): no difference of close
        # numbers.
        width = 2 * HALF_BIN * inverse
        inside = F.logsigmoid(upper) + F.logsigmoid(-lower) + torch.log(-torch.expm1(-width))
        darkest, brightest = F.logsigmoid(upper), F.logsigmoid(-lower)
        edge = 1 - HALF_BIN
        log_p = torch.where(images < -edge, darkest, torch.where(images > edge, brightest, inside))
        return log_p.flatten(1).sum(1)

    def draw(self, mean: Tensor, uniform: Tensor) -> Tensor:
        """A draw x ~ p(x | mean) from uniform numbers in (0, 1), both (B, C, H, W); on the 256
        levels.
        """
        log_scale = self.log_scale.clamp(min=LOWEST_LOG_SCALE).view(1, -1, 1, 1)
        x = mean + torch.exp(log_scale) * torch.logit(uniform, eps=1e-6)
        return ((x.clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1


class LogisticOutput(NamedTuple):
    """p(x | h_{L+1}) of a batch: its mean (B, C, H, W), and the likelihood around it."""

    mean: Tensor
    likelihood: DiscretizedLogistic

    @property
    def variance(self) -> Tensor:
        """b^2 pi^2 / 3 of each colour channel, (1, C, 1, 1)."""
        scale = self.likelihood.log_scale.exp().square() * (torch.pi**2 / 3)
        return scale.view(1, -1, 1, 1)

    def log_prob(self, images: Tensor) -> Tensor:
        """log p(x | h_{L+1}) in nats, (B,), of images (B, C, H, W) on the grid of 256 levels."""
        return self.likelihood.log_prob(self.mean, images)
