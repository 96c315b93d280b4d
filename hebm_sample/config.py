"""A model's description: frozen dataclasses that round-trip through `config.json`.

Everything a sampler needs to rebuild a model is here and is checked when it is built: shapes,
noise levels as explicit numbers, the parametrisation of the energies, the sampler's defaults.
Unknown keys are errors.
"""

import math
import re
import typing
from dataclasses import dataclass, field
from typing import Any, Literal

from hebm_sample.config_base import (
    FORMAT_VERSION,
    ConfigBase,
    require,
    require_choice,
    require_integer,
    require_range,
    require_version,
)
from hebm_sample.config_sampling import (
    EDIT_STEPS,
    Kernel,
    LangevinConfig,
    ReferenceVariance,
    SamplerName,
    Start,
)

__all__ = [
    "EDIT_STEPS",
    "FORMAT_VERSION",
    "ConfigBase",
    "GeneratorConfig",
    "Kernel",
    "LangevinConfig",
    "ModelConfig",
    "Parametrization",
    "PriorConfig",
    "ReferenceVariance",
    "SamplerName",
    "ScaleConfig",
    "StageConfig",
    "Start",
    "SymbolConfig",
    "require",
    "require_choice",
    "require_integer",
    "require_range",
]

SYMBOL_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"

Parametrization = Literal["log_snr", "release"]
Likelihood = Literal["discretized_logistic"]


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
        image_size: Side of the square pictures, in pixels.
        scales: Latent scales, coarse to fine; each resolution doubles the one before.
        decoder: Stages between the finest latent scale and the head, each doubling the resolution.
        head_upsample: The head's pixel shuffle: last stage's resolution times this is the
            picture's side.
        encoder_cells: Residual cells a scale and stage in the encoder.
        encoder_size: Side to which the encoder averages pictures before it reads them; None for
            `image_size`. A generator grown from a smaller one keeps the smaller one's encoder, and
            with it q(u | x), T and the prior.
        likelihood: p(x | h_{L+1}).
        log_sigma_bound: log sigma_i(h_i) is kept in (-bound, bound).
        image_channels: 3 for RGB.

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

    def __post_init__(self) -> None:
        require_integer("image_size", self.image_size, 4, 1024)
        require_integer("image_channels", self.image_channels, 1, 4)
        require_integer("encoder_cells", self.encoder_cells, 0, 32)
        require_integer("head_upsample", self.head_upsample, 1, 16)
        require_choice("likelihood", self.likelihood, Likelihood)
        require_range("log_sigma_bound", self.log_sigma_bound, 0.1, 20.0)
        require(
            len(self.scales) > 0, "scales is empty; a generator needs at least one latent scale"
        )
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
            f"encoder_size is {self.encoder_size!r}; it can be {sizes} with these stages",
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

    @property
    def encoder_reduction(self) -> int:
        """Pixels on a side that the encoder averages into one."""
        return self.image_size // (self.encoder_size or self.image_size)

    @property
    def encoder_stages(self) -> tuple[StageConfig, ...]:
        """The stages of `decoder` that the encoder mirrors: those of pictures it reads."""
        finest = (self.encoder_size or self.image_size) // self.head_upsample
        return tuple(s for s in self.decoder if s.resolution <= finest)

    def grows_from(self, smaller: "GeneratorConfig") -> bool:
        """Whether this is `smaller` with a longer image decoder: the same T and the same encoder,
        so that a prior of the one is a prior of the other.
        """
        kept = {
            "image_size": self.encoder_size,
            "decoder": self.encoder_stages,
            "encoder_size": smaller.encoder_size,
        }
        return self != smaller and vars(self) | kept == vars(smaller)


@dataclass(frozen=True)
class SymbolConfig(ConfigBase):
    """A named variable that the prior is coupled to, and the names of its values.

    Arguments:
        name: The variable, such as "class" or "Smiling".
        values: Its values in the order of the energies' outputs, such as "no", "yes".

    >>> SymbolConfig("Smiling", ("no", "yes")).values
    ('no', 'yes')
    """

    name: str
    values: tuple[str, ...]

    def __post_init__(self) -> None:
        for text in (self.name, *self.values):
            require(
                re.fullmatch(SYMBOL_NAME, text) is not None,
                f"symbol name {text!r}; it must have 1 to 64 letters, digits, '.', '_' or '-' "
                "and begin with a letter or digit",
            )
        require(
            2 <= len(self.values) <= 1000 and len(set(self.values)) == len(self.values),
            f"symbol {self.name!r} has the values {list(self.values)[:9]}; "
            "it needs 2 to 1000 different ones",
        )


@dataclass(frozen=True)
class PriorConfig(ConfigBase):
    """The diffusion-learned energy-based prior.

    Arguments:
        levels: cum_sigma of the noise levels t = 0 ... T, rising; the last is (almost) pure noise.
        width: Channels of each group's energy net.
        cells: Residual cells of each group's energy net.
        max_resolution: Finer groups are folded (space to depth) to this side before the net.
        parametrization: "log_snr": the net sees log SNR and F is its output over cum_sigma.
            "release": the net sees the integer t and its output is s_t F, as in the authors'
            release.
        step_size_0: s_0 of the release's schedule
            s_t = s_0 (cum_sigma[t] / cum_sigma[0]) sigma_{t+1}^2.
        sigma_min: Smallest cum_sigma that training visits; the energies are not defined below it.
        sigma_max: Largest cum_sigma that training visits.
        symbols: The symbol table: variables that samples can be asked to have.

    >>> PriorConfig(levels=(0.2, 0.6, 0.9, 1.0)).num_levels
    3
    >>> PriorConfig(levels=(0.6, 0.2))
    Traceback (most recent call last):
    hebm_sample.errors.UserInputError: levels [0.6, 0.2] must rise
    """

    levels: tuple[float, ...]
    width: int = 96
    cells: int = 3
    max_resolution: int = 8
    parametrization: Parametrization = "log_snr"
    step_size_0: float = 2e-5
    sigma_min: float = 0.03
    sigma_max: float = 0.999
    symbols: tuple[SymbolConfig, ...] = ()

    def __post_init__(self) -> None:
        require(
            len(self.levels) >= 2,
            f"levels has {len(self.levels)} numbers; it needs at least 2 (T >= 1)",
        )
        for value in self.levels:
            require_range("levels", value, 1e-4, 1.0)
        rising = all(a < b for a, b in zip(self.levels, self.levels[1:], strict=False))
        require(rising, f"levels {list(self.levels)} must rise")
        require_integer("width", self.width, 4, 2048)
        require_integer("cells", self.cells, 0, 32)
        require_integer("max_resolution", self.max_resolution, 1, 256)
        require_choice("parametrization", self.parametrization, Parametrization)
        require_range("step_size_0", self.step_size_0, 1e-12, 1.0)
        require_range("sigma_min", self.sigma_min, 1e-4, 0.99)
        require_range("sigma_max", self.sigma_max, self.sigma_min, 1.0)
        names = [symbol.name for symbol in self.symbols]
        require(len(set(names)) == len(names), f"symbols {names} name a variable twice")
        require(len(names) <= 256, f"symbols has {len(names)} variables; it can have 256")

    @property
    def num_levels(self) -> int:
        """T: the number of conditional densities, t = T-1 ... 0."""
        return len(self.levels) - 1


@dataclass(frozen=True)
class ModelConfig(ConfigBase):
    """Everything `config.json` holds.

    Arguments:
        name: The model's name, as in the manifest.
        generator: The generator and its encoder.
        prior: The energy-based prior; None for a generator that has not got one yet.
        sampling: The sampler's defaults.
        format_version: Of this file; a newer one is refused.

    >>> model = ModelConfig("toy", GeneratorConfig(16, (ScaleConfig(8, 1, 4, 16),)))
    >>> ModelConfig.from_dict(model.to_dict()) == model
    True
    >>> ModelConfig.from_dict(model.to_dict() | {"colour": "red"})
    Traceback (most recent call last):
    hebm_sample.errors.UserInputError: config has unknown keys ['colour']; known are
    ['format_version', 'generator', 'name', 'prior', 'sampling']
    """

    name: str
    generator: GeneratorConfig
    prior: PriorConfig | None = None
    sampling: LangevinConfig = field(default_factory=LangevinConfig)
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        require_version(self.format_version)
        require(
            re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", self.name) is not None,
            f"name is {self.name!r}; it must have 1 to 100 letters, digits, '.', '_' or '-'",
        )
        most = self.prior.max_resolution if self.prior is not None else 1
        for side in (scale.resolution for scale in self.generator.scales):
            require(
                self.prior is None or side % max(1, side // most) == 0,
                f"max_resolution is {most}; groups of resolution {side} cannot be folded to it: "
                f"take a divisor of {side}",
            )

    def to_dict(self) -> dict[str, Any]:
        """As any other, with the sampler's own form of its settings."""
        return super().to_dict() | {"sampling": self.sampling.to_dict()}

    @classmethod
    def from_dict(cls, data: Any, path: str = "config") -> "ModelConfig":
        """As any other; but the version first, because a newer one may have other keys."""
        if isinstance(data, dict):
            require_version(typing.cast("dict[str, Any]", data).get("format_version", 1))
        return super().from_dict(data, path)
