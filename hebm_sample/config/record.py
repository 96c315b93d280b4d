"""What a part of a model was trained with: images, steps, time."""

import re
from dataclasses import dataclass
from typing import Any, Literal

from hebm_sample.config.base import (
    ConfigBase,
    plain,
    require,
    require_choice,
    require_integer,
    require_range,
)
from hebm_sample.errors import short

MAX_KL_WEIGHT = 1e6

__all__ = ["MAX_KL_WEIGHT", "TrainedPart", "TrainingRecord"]

TrainedPart = Literal["generator", "prior", "decoder"]

_NOTE = re.compile(r"[0-9A-Za-z_.,:;()/%+ -]{0,300}")  # nothing that Markdown or HTML reads
_HELD_OUT = re.compile(r"(hash|last:[1-9]\d{0,9}|none)?")
_DATA = re.compile(r"[0-9A-Za-z_.:\[\]-]{0,400}")
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
        data: Identity of the rows that were trained on (`ImageDataset.identity`): a hash of the
            set's decoded images and labels, and in brackets which rows of it; empty where unknown.
        held_out: The rule that kept other rows apart: "hash", "last:N", or "none"; empty where
            unknown.
        held_out_seed: Of the rule "hash" (`data/holdout.py`).
        kl_weights: Of a generator: beta of each group's KL divergence in its loss, top to bottom;
            empty where unknown.
        note: What else there is to say of the run, such as by what other than `hebm-train` it was
            made; a line, mostly empty.
    """

    part: TrainedPart
    images: int
    steps: int
    seconds: float
    started: str
    ended: str
    kept: int
    image_size: int
    data: str = ""
    held_out: str = ""
    held_out_seed: int = 0
    kl_weights: tuple[float, ...] = ()
    note: str = ""

    def __post_init__(self) -> None:
        require_choice("part", self.part, TrainedPart)
        require(
            _HELD_OUT.fullmatch(self.held_out) is not None,
            f"held_out is {short(self.held_out)}; write hash, last:N or none",
        )
        require(
            _DATA.fullmatch(self.data) is not None,
            f"data is {short(self.data)}; it must be the identity of a data set, or empty",
        )
        require(
            _NOTE.fullmatch(self.note) is not None,
            f"note is {short(self.note)}; it must be a plain line of at most 300 characters",
        )
        for name in ("images", "steps", "kept", "image_size", "held_out_seed"):
            require_integer(name, getattr(self, name), 0, 10**12)
        object.__setattr__(self, "kl_weights", tuple(map(plain, self.kl_weights)))
        require(len(self.kl_weights) <= 1000, "kl_weights has more numbers than there are groups")
        for weight in self.kl_weights:
            require_range("kl_weights", weight, 0.0, MAX_KL_WEIGHT)
        require_range("seconds", self.seconds, 0.0, 1e12)
        for name in ("started", "ended"):
            date = getattr(self, name)
            require(
                _DATE.fullmatch(date) is not None, f"{name} is {short(date)}; write YYYY-MM-DD"
            )

    def to_dict(self) -> dict[str, Any]:
        """As any other, without what is not known, and without an empty note: so it was written
        before.
        """
        found = super().to_dict()
        for name in ("note", "kl_weights"):
            if not found[name]:
                del found[name]
        if not self.data:
            for name in ("data", "held_out", "held_out_seed"):
                del found[name]
        return found

    def __str__(self) -> str:
        """In a line."""
        dates = self.started if self.started == self.ended else f"{self.started} to {self.ended}"
        kept = (
            "" if self.kept == self.steps else f", weights of step {self.kept:,} (best held-out)"
        )
        note = f"; {self.note}" if self.note else ""
        return (
            f"{self.part} ({self.image_size}x{self.image_size}): {self.images:,} images in "
            f"{self.steps:,} steps, {self.seconds / 3600:.1f} h, {dates}{kept}{note}"
        )
