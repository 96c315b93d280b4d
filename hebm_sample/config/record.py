"""What a part of a model was trained with: images, steps, time."""

import re
from dataclasses import dataclass
from typing import Literal

from hebm_sample.config.base import (
    ConfigBase,
    require,
    require_choice,
    require_integer,
    require_range,
)

__all__ = ["TrainedPart", "TrainingRecord"]

TrainedPart = Literal["generator", "prior", "decoder"]

_DATE = re.compile(r"\d{4}-\d{2}-\d{2}")


@dataclass(frozen=True)
class TrainingRecord(ConfigBase):
    """One training run of one part.

    Arguments:
        part: What was trained.
        images: Images seen, each as often as it was.
        steps: Optimiser steps.
        seconds: Of training, in all sittings.
        started, ended: Dates, YYYY-MM-DD.
        kept: The step whose averaged weights the model has: where they were best on held-out
            images, or the last.
        image_size: Of the images, in pixels.
    """

    part: TrainedPart
    images: int
    steps: int
    seconds: float
    started: str
    ended: str
    kept: int
    image_size: int

    def __post_init__(self) -> None:
        require_choice("part", self.part, TrainedPart)
        for name in ("images", "steps", "kept", "image_size"):
            require_integer(name, getattr(self, name), 0, 10**12)
        require_range("seconds", self.seconds, 0.0, 1e12)
        for name in ("started", "ended"):
            date = getattr(self, name)
            require(_DATE.fullmatch(date) is not None, f"{name} is {date!r}; write YYYY-MM-DD")

    def __str__(self) -> str:
        """In a line."""
        dates = self.started if self.started == self.ended else f"{self.started} to {self.ended}"
        kept = (
            "" if self.kept == self.steps else f", weights of step {self.kept:,} (best held-out)"
        )
        return (
            f"{self.part} ({self.image_size}x{self.image_size}): {self.images:,} images in "
            f"{self.steps:,} steps, {self.seconds / 3600:.1f} h, {dates}{kept}"
        )
