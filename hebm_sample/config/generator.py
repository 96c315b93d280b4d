"""The description of a multi-layer generator and its encoder."""

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

from hebm_sample.config.base import (
    ConfigBase,
    require,
    require_choice,
    require_integer,
    require_range,
)
from hebm_sample.errors import short

__all__ = [
    "DecoderName",
    "GeneratorConfig",
    "Likelihood",
    "ScaleConfig",
    "StageConfig",
    "Upsampling",
]

Likelihood = Literal["discretized_logistic"]
DecoderName = Literal["sharp", "likelihood"]
Upsampling = Literal["nearest", "bilinear"]


@dataclass(frozen=True)
class ScaleConfig(ConfigBase):
    """One spatial scale of the hierarchy.

    Arguments:
        resolution: Side of the square maps, in positions.
        groups: Latent groups at this scale.
        latent_channels: Channels of z_i and u_i.
        width: Channels of the top-down state h_i.
        cells: Residual cells that follow each group.
    """

    resolution: int
    groups: int
    latent_channels: int
    width: int
    cells: int = 1

    def __post_init__(self) -> None:
        require_integer("resolution", self.resolution, 1, 256)
        require_integer("groups", self.groups, 1, 64)
        require_integer("latent_channels", self.latent_channels, 1, 256)
        require_integer("width", self.width, 2, 2048)
        require_integer("cells", self.cells, 0, 32)


@dataclass(frozen=True)
class StageConfig(ConfigBase):
    """One stage of the image decoder (mirrored by the encoder) above the finest latent scale."""

    resolution: int
    width: int
    cells: int = 1

    def __post_init__(self) -> None:
        require_integer("resolution", self.resolution, 2, 1024)
        require_integer("width", self.width, 2, 2048)
        require_integer("cells", self.cells, 0, 32)


@dataclass(frozen=True)
class GeneratorConfig(ConfigBase):
    """The multi-layer generator and the encoder that mirrors it.

    Arguments:
        image_size: Side of the square images, in pixels.
        scales: Latent scales, coarse to fine; each resolution doubles the one before.
        decoder: Stages between the finest latent scale and the head, each doubling the resolution.
        head_upsample: The head's pixel shuffle: last stage's resolution times this is the
            image's side.
        encoder_cells: Residual cells per scale and stage in the encoder.
        encoder_size: Side to which the encoder averages images before it reads them; None for
            `image_size`. A generator grown from a smaller one keeps the smaller one's encoder, and
            with it q(u | x), T and the prior.
        likelihood: p(x | h_{L+1}).
        log_sigma_bound: log sigma_i(h_i) is kept in (-bound, bound).
        image_channels: 3 for RGB.
        sharp_decoder: Stages of a second image decoder, like those of `decoder`, which images are
            shown with, and maybe one of `image_size` positions, which refines what its head draws;
            p(x | h_{L+1}) stays the first one's. None for a generator with one.
        sharp_upsampling: How the sharp decoder's stages, and its refinement's share of features
            and image, are enlarged. Of nearest neighbours blocks stay that the cells must smooth.

    >>> scales = (ScaleConfig(4, 2, latent_channels=16, width=128), ScaleConfig(8, 1, 8, 144))
    >>> config = GeneratorConfig(32, scales, decoder=(StageConfig(16, 80),))
    >>> config.latent_shapes
    ((16, 4, 4), (16, 4, 4), (8, 8, 8))
    >>> config.latent_dimensions
    1024
    >>> GeneratorConfig(64, scales)
    Traceback (most recent call last):
    hebm_sample.errors.UserInputError: the last stage has 8 positions and head_upsample is 2; their
    product must be image_size = 64
    """

    image_size: int
    scales: tuple[ScaleConfig, ...]
    decoder: tuple[StageConfig, ...] = ()
    head_upsample: int = 2
    encoder_cells: int = 1
    likelihood: Likelihood = "discretized_logistic"
    log_sigma_bound: float = 3.0
    image_channels: int = 3
    encoder_size: int | None = None
    sharp_decoder: tuple[StageConfig, ...] | None = None
    sharp_upsampling: Upsampling = "nearest"

    def __post_init__(self) -> None:
        require_integer("image_size", self.image_size, 4, 1024)
        require_integer("image_channels", self.image_channels, 1, 4)
        require_integer("encoder_cells", self.encoder_cells, 0, 32)
        require_integer("head_upsample", self.head_upsample, 1, 16)
        require_choice("likelihood", self.likelihood, Likelihood)
        require_choice("sharp_upsampling", self.sharp_upsampling, Upsampling)
        require_range("log_sigma_bound", self.log_sigma_bound, 0.1, 20.0)
        require(
            len(self.scales) > 0, "scales is empty; a generator needs at least one latent scale"
        )
        self._check_stages()

    def _check_stages(self) -> None:
        """Stages double from one to the next, up to the image; a second decoder has the same, and
        maybe one of the image's own resolution.
        """
        resolutions = [s.resolution for s in (*self.scales, *self.decoder)]
        for low, high in zip(resolutions, resolutions[1:], strict=False):
            require(
                high == 2 * low,
                f"resolutions {resolutions} must double from one scale to the next",
            )
        require(
            resolutions[-1] * self.head_upsample == self.image_size,
            f"the last stage has {resolutions[-1]} positions and head_upsample is "
            f"{self.head_upsample}; their product must be image_size = {self.image_size}",
        )
        sizes = [r * self.head_upsample for r in resolutions[len(self.scales) - 1 :]]
        require(
            self.encoder_size is None or self.encoder_size in sizes,
            f"encoder_size is {short(self.encoder_size)}; it can be {sizes} with these stages",
        )
        require(
            self.sharp_decoder is not None or self.sharp_upsampling == "nearest",
            f"sharp_upsampling is {self.sharp_upsampling!r}, and there is no sharp_decoder",
        )
        sides = [s.resolution for s in self.decoder]
        sharp = sides if self.sharp_decoder is None else [s.resolution for s in self.sharp_decoder]
        require(
            sharp in (sides, [*sides, self.image_size]),
            f"sharp_decoder has stages of {sharp} positions; those of decoder have {sides}, and "
            f"one more can have {self.image_size}",
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; a generator with one image decoder does not speak of a second, and
        one with a second only of what is not as it was in earlier releases.
        """
        found = super().to_dict()
        if self.sharp_decoder is None:
            del found["sharp_decoder"]
        if self.sharp_upsampling == "nearest":
            del found["sharp_upsampling"]
        return found

    @property
    def latent_shapes(self) -> tuple[tuple[int, int, int], ...]:
        """(C, H, W) of each group, top to bottom."""
        return tuple(
            (s.latent_channels, s.resolution, s.resolution)
            for s in self.scales
            for _ in range(s.groups)
        )

    @property
    def state_shapes(self) -> tuple[tuple[int, int, int], ...]:
        """(C, H, W) of the top-down state h_i that meets each group, top to bottom."""
        return tuple(
            (s.width, s.resolution, s.resolution) for s in self.scales for _ in range(s.groups)
        )

    @property
    def latent_dimensions(self) -> int:
        """Numbers in u, all groups together."""
        return sum(math.prod(s) for s in self.latent_shapes)

    @property
    def encoder_reduction(self) -> int:
        """Pixels on a side that the encoder averages into one."""
        return self.image_size // (self.encoder_size or self.image_size)

    @property
    def encoder_stages(self) -> tuple[StageConfig, ...]:
        """The stages of `decoder` that the encoder mirrors: those of images it reads."""
        finest = (self.encoder_size or self.image_size) // self.head_upsample
        return tuple(s for s in self.decoder if s.resolution <= finest)

    def grows_from(self, smaller: object) -> bool:
        """Whether this is `smaller` with a longer image decoder: the same T and the same encoder,
        so that a prior of the one is a prior of the other.
        """
        if not isinstance(smaller, GeneratorConfig):
            return False
        kept = {
            "image_size": self.encoder_size,
            "decoder": self.encoder_stages,
            "encoder_size": smaller.encoder_size,
            "sharp_decoder": smaller.sharp_decoder,
            "sharp_upsampling": smaller.sharp_upsampling,
        }
        return self != smaller and vars(self) | kept == vars(smaller)

    @property
    def without_sharp_decoder(self) -> "GeneratorConfig":
        """The same with the likelihood's image decoder alone."""
        return replace(self, sharp_decoder=None, sharp_upsampling="nearest")

    def keeps_latents_of(self, start: object) -> bool:
        """Whether training that begins with `start` keeps its T and encoder: this grows from it,
        or it is this, which has grown already.
        """
        if not isinstance(start, GeneratorConfig):
            return False
        again = self.encoder_reduction > 1 and start.without_sharp_decoder == self
        return again or self.grows_from(start)
