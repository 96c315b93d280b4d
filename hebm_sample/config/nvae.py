"""The description of an imported NVAE: a second kind of generator."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

from hebm_sample.config.base import (
    ConfigBase,
    require,
    require_choice,
    require_integer,
)
from hebm_sample.config.generator import ScaleConfig
from hebm_sample.errors import short

__all__ = ["CellKind", "NvaeCells", "NvaeConfig"]

CellKind = Literal[
    "res_elu",
    "res_bnelu",
    "res_bnswish",
    "res_bnswish5",
    "mconv_e6k5g0",
    "mconv_e3k5g0",
    "mconv_e3k5g8",
    "mconv_e6k11g0",
]
"""Operations of NVAE's residual cells: activated convolutions (`res`, with or without batch norm)
and inverted bottlenecks (`mconv`) of expansion e, kernel k, g convolution groups (0: depthwise).
"""

MOST_GROUPS, MOST_OPERATIONS = 128, 1024
GROUPED = "mconv_e3k5g8"
Operations = tuple[str, ...]


@dataclass(frozen=True)
class NvaeCells(ConfigBase):
    """The operations of each role's cells, `CellKind` names in their order.

    Arguments:
        normal_pre, down_pre: Before the encoder's tower; the second halves the resolution.
        normal_enc, down_enc: In the encoder's tower.
        normal_dec, up_dec: In the top-down path; the second doubles the resolution.
        normal_post, up_post: In the image decoder.
    """

    normal_pre: Operations
    down_pre: Operations
    normal_enc: Operations
    down_enc: Operations
    normal_dec: Operations
    up_dec: Operations
    normal_post: Operations
    up_post: Operations

    def __post_init__(self) -> None:
        for role, names in vars(self).items():
            require(
                1 <= len(names) <= 8, f"{role} has {len(names)} operations; it can have 1 to 8"
            )
            for name in names:
                known = ", ".join(get_args(CellKind))
                require(
                    name in get_args(CellKind),
                    f"the cells {role} have the operation {short(name)}; known are {known}",
                )


@dataclass(frozen=True)
class NvaeConfig(ConfigBase):
    """An NVAE and its encoder, after "NVAE: A Deep Hierarchical Variational Autoencoder" (arXiv
    2007.03898).

    Arguments:
        image_size: Side of the square images, in pixels.
        groups: Latent groups of each scale, coarse to fine; the resolution doubles in between.
        latent_channels: Channels of every group's z_i and u_i.
        encoder_width: Channels of the encoder at the images' resolution; each halving of the
            resolution doubles them.
        decoder_width: The same of the top-down path and the image decoder.
        cells: Operations of the cells.
        blocks: Halvings between the images and the finest latent scale.
        preprocess_cells: Cells of each halving, in the encoder.
        postprocess_cells: Cells of each doubling, in the image decoder.
        encoder_cells: Cells per group in the encoder's tower.
        decoder_cells: Cells per group in the top-down path.
        flows: Pairs of autoregressive shifts that end each group's posterior.
        squeeze_excitation: Whether cells have it.
        residual_posterior: Whether q's mean and log standard deviation are added to p's.
        mixtures: Logistics in the mixture of each pixel; 1 for a normal distribution a value.
        bits: Of each value of an image: 2^bits levels.
        kind: "nvae".

    >>> cells = NvaeCells(*[("res_bnswish",)] * 8)
    >>> config = NvaeConfig(32, (1, 2), 4, encoder_width=8, decoder_width=8, cells=cells)
    >>> config.latent_shapes
    ((4, 8, 8), (4, 16, 16), (4, 16, 16))
    >>> config.scales[0].width
    32
    """

    image_size: int
    groups: tuple[int, ...]
    latent_channels: int
    encoder_width: int
    decoder_width: int
    cells: NvaeCells
    blocks: int = 1
    preprocess_cells: int = 2
    postprocess_cells: int = 2
    encoder_cells: int = 1
    decoder_cells: int = 1
    flows: int = 0
    squeeze_excitation: bool = True
    residual_posterior: bool = True
    mixtures: int = 10
    bits: int = 8
    kind: Literal["nvae"] = "nvae"

    def __post_init__(self) -> None:
        require_choice("kind", self.kind, Literal["nvae"])
        require_integer("image_size", self.image_size, 4, 1024)
        require(1 <= len(self.groups) <= 8, f"groups has {len(self.groups)} scales; it can be 1-8")
        for count in self.groups:
            require_integer("groups", count, 1, MOST_GROUPS)
        require(
            2 <= sum(self.groups) <= MOST_GROUPS,
            f"groups are {sum(self.groups)} in all; an NVAE has 2 to {MOST_GROUPS} here",
        )
        for name, low, high in _RANGES:
            require_integer(name, getattr(self, name), low, high)
        self._check_sizes()

    def _check_sizes(self) -> None:
        halvings = self.blocks + len(self.groups) - 1
        require(
            self.image_size % 2**halvings == 0,
            f"image_size is {self.image_size}; {halvings} halvings need a multiple of "
            f"{2**halvings}",
        )
        widths = (self.encoder_width, self.decoder_width)
        require(
            self.encoder_width * 2**halvings <= 8192 and self.decoder_width * 2**halvings <= 8192,
            f"widths {widths} become more than 8192 at the coarsest scale",
        )
        most = max(self.preprocess_cells, self.postprocess_cells) * self.blocks
        total = 2 * most + sum(self.groups) * (self.encoder_cells + self.decoder_cells)
        require(
            total <= MOST_OPERATIONS,
            f"the network has {total} cells; it can have {MOST_OPERATIONS}",
        )
        self._check_convolution_groups()
        _ = self.scales  # which check themselves

    def _check_convolution_groups(self) -> None:
        """Of `mconv_e3k5g8`: 8 groups of channels, three times as many as its input has."""
        for role, names in vars(self.cells).items():
            before, after = self._narrowest(role)
            # The first operation meets the cell's input, the others its output.
            met = [before] * (names[0] == GROUPED) + [after] * (GROUPED in names[1:])
            for width in met:
                require(
                    width % 8 == 0,
                    f"the cells {role} have the operation {GROUPED!r} on {width} channels; its "
                    "groups need a multiple of 8",
                )

    def _narrowest(self, role: str) -> tuple[int, int]:
        """Channels before and after the narrowest cells of a role, of which the others have a
        multiple; zeros where there are none.
        """
        there = {
            "normal_pre": self.preprocess_cells > 1,
            "normal_post": self.postprocess_cells > 1,
            "down_enc": len(self.groups) > 1,
            "up_dec": len(self.groups) > 1,
        }
        if not there.get(role, True):
            return 0, 0
        kind, _, place = role.partition("_")
        fine = self.encoder_width if place in ("pre", "enc") else self.decoder_width
        fine *= 2**self.blocks if place in ("enc", "dec") else 1
        return {"normal": (fine, fine), "down": (fine, 2 * fine), "up": (2 * fine, fine)}[kind]

    @property
    def image_channels(self) -> int:
        """3, for RGB."""
        return 3

    @property
    def encoder_reduction(self) -> int:
        """Pixels on a side that the encoder averages into one: none are."""
        return 1

    @property
    def scales(self) -> tuple[ScaleConfig, ...]:
        """The latent scales, coarse to fine."""
        halvings = range(self.blocks + len(self.groups) - 1, self.blocks - 1, -1)
        return tuple(
            ScaleConfig(
                resolution=self.image_size // 2**power,
                groups=count,
                latent_channels=self.latent_channels,
                width=self.decoder_width * 2**power,
                cells=self.decoder_cells,
            )
            for power, count in zip(halvings, self.groups, strict=True)
        )

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


_RANGES = (
    ("latent_channels", 1, 256),
    ("encoder_width", 2, 1024),
    ("decoder_width", 2, 1024),
    ("blocks", 1, 6),
    ("preprocess_cells", 1, 16),
    ("postprocess_cells", 1, 16),
    ("encoder_cells", 1, 16),
    ("decoder_cells", 1, 16),
    ("flows", 0, 8),
    ("mixtures", 1, 100),
    ("bits", 1, 8),
)
