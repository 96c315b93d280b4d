"""Everything that `config.json` holds."""

import re
import typing
from dataclasses import dataclass, field
from typing import Any

from hebm_sample.config.base import FORMAT_VERSION, ConfigBase, require, require_version
from hebm_sample.config.crop import FaceCrop
from hebm_sample.config.generator import GeneratorConfig
from hebm_sample.config.nvae import NvaeConfig
from hebm_sample.config.prior import PriorConfig
from hebm_sample.config.record import TrainingRecord
from hebm_sample.config.sampler import LangevinConfig
from hebm_sample.errors import short

__all__ = ["ModelConfig"]


@dataclass(frozen=True)
class ModelConfig(ConfigBase):
    """Everything `config.json` holds.

    Arguments:
        name: The model's name, as in the manifest.
        generator: The generator and its encoder, of either kind.
        prior: The energy-based prior; None for a generator that has not got one yet.
        sampling: The sampler's defaults.
        training: What each part was trained with, in that order; empty where it is not known.
        crop: Where the faces of its images have eyes and mouth; None for models of other things,
            or where it was not measured.
        format_version: Of this file; a newer one is refused.

    >>> from hebm_sample.config import ScaleConfig
    >>> model = ModelConfig("toy", GeneratorConfig(16, (ScaleConfig(8, 1, 4, 16),)))
    >>> ModelConfig.from_dict(model.to_dict()) == model
    True
    >>> ModelConfig.from_dict(model.to_dict() | {"colour": "red"})
    Traceback (most recent call last):
    hebm_sample.errors.UserInputError: config has unknown keys ['colour']; known are
    ['crop', 'format_version', 'generator', 'name', 'prior', 'sampling', 'training']
    """

    name: str
    generator: GeneratorConfig | NvaeConfig
    prior: PriorConfig | None = None
    sampling: LangevinConfig = field(default_factory=LangevinConfig)
    format_version: int = FORMAT_VERSION
    training: tuple[TrainingRecord, ...] = ()
    crop: FaceCrop | None = None

    def __post_init__(self) -> None:
        require_version(self.format_version)
        require(
            re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", self.name) is not None,
            f"name is {short(self.name)}; it must have 1 to 100 letters, digits, '.', '_' or '-'",
        )
        self._check_network()
        most = self.prior.max_resolution if self.prior is not None else 1
        for side in (scale.resolution for scale in self.generator.scales):
            require(
                self.prior is None or side % max(1, side // most) == 0,
                f"max_resolution is {most}; groups of resolution {side} cannot be folded to it: "
                f"take a divisor of {side}",
            )

    def _check_network(self) -> None:
        if self.prior is None or self.prior.network == "energy_net":
            return
        for side in (scale.resolution for scale in self.generator.scales):
            require(
                side >= 8 and side & (side - 1) == 0,
                f"network is {self.prior.network!r}; groups of resolution {side} do not fit it: "
                "take powers of two from 8",
            )

    def to_dict(self) -> dict[str, Any]:
        """As any other, with the parts' own forms; without `training` and `crop` if not known."""
        found = super().to_dict() | {
            "generator": self.generator.to_dict(),
            "prior": self.prior.to_dict() if self.prior is not None else None,
            "sampling": self.sampling.to_dict(),
        }
        found["training"] = [record.to_dict() for record in self.training]
        if not self.training:
            del found["training"]
        if self.crop is None:
            del found["crop"]
        return found

    @classmethod
    def from_dict(cls, data: Any, path: str = "config") -> "ModelConfig":
        """As any other; but the version first, because a newer one may have other keys."""
        if isinstance(data, dict):
            require_version(typing.cast("dict[str, Any]", data).get("format_version", 1))
        return super().from_dict(data, path)
