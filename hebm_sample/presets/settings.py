"""How long and how fast to learn: one frozen dataclass for every kind of training run."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from hebm_sample.config import ConfigBase, require, require_choice, require_integer, require_range

__all__ = ["TrainSettings", "parse_duration", "parse_validation"]

AMPLE = 16  # images per batch of a run whose memory is not short


@dataclass(frozen=True)
class TrainSettings(ConfigBase):
    """Settings shared by the generator's and the prior's training.

    Arguments:
        steps: Optimiser steps in all; None with `time_budget`.
        time_budget: Seconds, turned into steps once, at the start, and stored; None with `steps`.
        batch_size: Images per step and process.
        accumulate: Micro-batches that a process computes its batch in, one after another, with
            the gradients averaged: less memory. A divisor of `batch_size`.
        dtype: Of convolutions and matrix products, "float32" or "bfloat16"; weights are float32.
        compile: Compile what a step computes with `torch.compile`: minutes at a run's start, then
            faster steps, equal up to rounding. Needs a C++ compiler. The decoder's run has none.
        activation_checkpointing: Keep only the states between T's groups for gradients, and
            compute the rest again: less memory, more time, the same numbers to rounding.
        learning_rate: Peak of a cosine schedule that ends at a hundredth of it.
        warmup_steps: Steps of linear warm-up.
        weight_decay: AdamW's.
        betas: AdamW's.
        ema_decay: Of the averaged weights that are exported.
        ema_length: Relative length of a power-function average that takes the place of a fixed
            decay: standard deviation of its profile over the steps done, 0.05 to 0.2.
        gradient_clip: Largest gradient norm, after the loss is scaled to bits or squares a
            dimension.
        max_skipped: Non-finite steps in a row after which training stops.
        flip: Mirror half of the images.
        zoom: Least share of the side that a random square of the image keeps, enlarged to the
            whole; 1 leaves images alone. For small data sets.
        encode_once: Compute the frozen encoder's maps of all images before the energies' first
            step, and keep them in half precision in the run's folder until its end. Without
            effect where images are zoomed or the run sees fewer than half of them, and on a
            generator's run.
        validation: Rows at the end of the data that are never trained on; None for rows that are
            chosen by a hash of their identity, a tenth and at most 4,000.
        log_every: Steps between log lines; checkpoints fall on multiples of it.
        checkpoint_every: Most seconds between checkpoints; a sixth of a short time budget.
        sample_every: Seconds between image grids.
        evaluate_every: Steps between measurements of the averaged weights on held-out images; the
            best of them is kept and exported. 0 for none. It is done with the next log line.
        heldout: Held-out images that are measured on, with fixed noise.
        patience: Steps without a better measurement after which a run ends before its time; 0 for
            none. A multiple of `evaluate_every`. For small data sets, which are learned by heart.
        seed: Of the weights, the order of the images and every draw.
    """

    steps: int | None = None
    time_budget: float | None = None
    batch_size: int = 32
    accumulate: int = 1
    dtype: Literal["float32", "bfloat16"] = "float32"
    compile: bool = False
    activation_checkpointing: bool = False
    learning_rate: float = 2e-3
    warmup_steps: int = 100
    weight_decay: float = 1e-4
    betas: tuple[float, ...] = (0.9, 0.99)
    ema_decay: float = 0.998
    ema_length: float | None = None
    gradient_clip: float = 1.0
    max_skipped: int = 25
    flip: bool = True
    zoom: float = 1.0
    encode_once: bool = True
    validation: int | None = None
    log_every: int = 25
    checkpoint_every: float = 120.0
    sample_every: float = 600.0
    evaluate_every: int = 0
    heldout: int = 500
    patience: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps is not None:
            require_integer("steps", self.steps, 1, 10**9)
        if self.time_budget is not None:
            require_range("time_budget", self.time_budget, 1.0, 1e8)
        for name in ("checkpoint_every", "sample_every"):
            require_range(name, getattr(self, name), 0.0, 1e9)
        for name in ("batch_size", "accumulate", "max_skipped", "log_every"):
            require_integer(name, getattr(self, name), 1, 10**6)
        require(
            self.batch_size % self.accumulate == 0,
            f"accumulate is {self.accumulate}, which does not divide batch_size = "
            f"{self.batch_size}; give micro-batches of equal sizes",
        )
        require_choice("dtype", self.dtype, Literal["float32", "bfloat16"])
        self._check_optimiser()
        if self.validation is not None:
            require_integer("validation", self.validation, 0, 10**9)
        require_integer("evaluate_every", self.evaluate_every, 0, 10**9)
        require_integer("heldout", self.heldout, 1, 10**6)
        require_integer("patience", self.patience, 0, 10**9)
        self._check_patience()
        require_range("zoom", self.zoom, 0.5, 1.0)
        require_integer("seed", self.seed, 0, 2**31)

    def _check_patience(self) -> None:
        if not self.patience:
            return
        every = self.evaluate_every
        require(
            self.validation != 0,
            f"patience is {self.patience}, but no rows are held out to measure on; hold some out, "
            "or set it to 0 (--set settings.patience=0)",
        )
        require(
            every > 0,
            f"patience is {self.patience}, but nothing is measured; set evaluate_every too",
        )
        require(
            self.patience % every == 0,
            f"patience is {self.patience}; it must be a multiple of evaluate_every = {every}",
        )

    @property
    def micro_batch(self) -> int:
        """Images that a process computes at a time."""
        return self.batch_size // self.accumulate

    def encodes_once(self, images: int, processes: int = 1) -> bool:
        """Whether a run on so many images computes the encoder's maps of all of them first: not
        where they are zoomed, nor where it sees fewer than half of them.
        """
        seen = None if self.steps is None else self.steps * self.batch_size * processes
        worth = seen is None or 2 * seen >= images
        return self.encode_once and self.zoom == 1 and worth

    def as_begun(self, state: Mapping[str, Any] | None) -> "TrainSettings":
        """With the length that a run was begun with, as its checkpoint's state says: whoever
        resumes it need not say it again.
        """
        if state is None:
            return self
        budget = state.get("time_budget")
        return replace(self, steps=None if budget else state["total"], time_budget=budget)

    def at_once(self, most: int) -> int:
        """How many of `most` images can be shown, measured or encoded at a time: all, unless the
        run's own batch is small, or is cut because memory is short.
        """
        short = self.accumulate > 1 or self.batch_size < AMPLE
        return min(most, self.micro_batch) if short else most

    def _check_optimiser(self) -> None:
        require_integer("warmup_steps", self.warmup_steps, 0, 10**9)
        require_range("learning_rate", self.learning_rate, 0.0, 10.0)
        require_range("weight_decay", self.weight_decay, 0.0, 10.0)
        require_range("ema_decay", self.ema_decay, 0.0, 0.999999)
        if self.ema_length is not None:
            require_range("ema_length", self.ema_length, 0.001, 0.28)
        require_range("gradient_clip", self.gradient_clip, 1e-9, 1e9)
        require(len(self.betas) == 2, f"betas is {list(self.betas)}; AdamW needs two numbers")
        for beta in self.betas:
            require_range("betas", beta, 0.0, 0.9999999)


def parse_duration(text: str) -> float:
    """Seconds of "90s", "3m", "1.5h" or a plain number of seconds."""
    text = text.strip().lower()
    units = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
    body, unit = (text[:-1], units[text[-1]]) if text and text[-1] in units else (text, 1.0)
    try:
        seconds = float(body) * unit
    except ValueError:
        seconds = -1.0
    require(
        1.0 <= seconds < 1e8,
        f"{text!r} is no time of a second or more; write for example 90s, 3m or 1.5h",
    )
    return seconds


def parse_validation(text: str) -> int | None:
    """Rows that are held out: "hash" (None), "last:N", or a plain N, which means the same."""
    text = text.strip().lower()
    body = text.removeprefix("last:")
    if text == "hash":
        return None
    require(
        body.isascii() and body.isdecimal() and len(body) < 10,
        f"{text!r} names no rows to hold out; write hash, last:N or N",
    )
    return int(body)
