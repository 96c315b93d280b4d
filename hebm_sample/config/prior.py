"""The description of a diffusion-learned energy-based prior and of its symbols."""

import re
from dataclasses import dataclass
from typing import Any, Literal

from hebm_sample.config.base import (
    ConfigBase,
    require,
    require_choice,
    require_integer,
    require_range,
)
from hebm_sample.errors import short

__all__ = ["Parametrization", "PriorConfig", "SymbolConfig"]

SYMBOL_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"

Parametrization = Literal["log_snr", "release"]
Network = Literal["energy_net", "release_residual", "release_plain"]


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
                f"symbol name {short(text)}; it must have 1 to 64 letters, digits, '.', '_' or "
                "'-' and begin with a letter or digit",
            )
        require(
            2 <= len(self.values) <= 1000 and len(set(self.values)) == len(self.values),
            f"symbol {short(self.name)} has the values {short(list(self.values)[:9])}; "
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
        sigma_min: Smallest cum_sigma that training visits; the energies are not defined below it,
            so that levels may not lie there. The release's are trained at the levels themselves.
        sigma_max: Largest cum_sigma that training visits.
        symbols: The symbol table: variables that samples can be asked to have.
        network: Of each group: ours, or those of the authors' release, residual (CIFAR-10) or
            plain (CelebA-HQ), which are imported and have no symbols. Written only if not ours.

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
    network: Network = "energy_net"

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
        require(
            self.parametrization == "release" or self.levels[0] >= self.sigma_min,
            f"levels begin at {self.levels[0]}, below sigma_min {self.sigma_min}, where the "
            "energies are not defined; begin at sigma_min, or train with a smaller one",
        )
        names = [symbol.name for symbol in self.symbols]
        require(len(set(names)) == len(names), f"symbols {names} name a variable twice")
        require(len(names) <= 256, f"symbols has {len(names)} variables; it can have 256")
        require_choice("network", self.network, Network)
        require(
            self.network == "energy_net" or (self.parametrization == "release" and not names),
            f"network is {self.network!r}; it needs parametrization 'release' and no symbols",
        )

    def to_dict(self) -> dict[str, Any]:
        """As any other, less a `network` that is ours: earlier releases know no other."""
        data = super().to_dict()
        if self.network == "energy_net":
            del data["network"]
        return data

    @property
    def num_levels(self) -> int:
        """T: the number of conditional densities, t = T-1 ... 0."""
        return len(self.levels) - 1
