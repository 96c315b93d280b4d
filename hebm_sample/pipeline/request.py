"""What the sampler is to do: a call's arguments, checked, as one value.

A `Request` has a row per image wherever images differ, so that a batch, or a part of one, is a
request again.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol, cast

import torch
from torch import Tensor

from hebm_sample.config import DecoderName, LangevinConfig, require_choice, require_integer
from hebm_sample.config.sampler import OF_CHAINS
from hebm_sample.errors import UserInputError
from hebm_sample.io.seeds import MAX_SEEDS
from hebm_sample.latents import Latents
from hebm_sample.pipeline.conditions import Guidance, Symbols, plain_guidance, read_condition
from hebm_sample.pipeline.model import Model
from hebm_sample.pipeline.outputs import SeedsFrom, choose_seeds
from hebm_sample.pipeline.progress import Callback, Progress, Watch, check_watchers
from hebm_sample.pipeline.runtime.batch_size import bytes_per_image, free_bytes
from hebm_sample.pipeline.words import unknown_setting
from hebm_sample.prior.symbols import Condition
from hebm_sample.sampling.constraints import LatentConstraint
from hebm_sample.sampling.particles import particle_seeds

__all__ = [
    "Likelihood",
    "Prior",
    "Progress",
    "Request",
    "check_particles",
    "read_request",
    "sampling_config",
    "total_steps",
]

Prior = Literal["ebm", "gaussian"]


class Likelihood(Protocol):
    """log p of a measurement, a term that is added to F."""

    def rows(self, start: int, stop: int) -> "Likelihood":
        """Of images start ... stop - 1."""
        ...

    def repeated(self, count: int) -> "Likelihood":
        """Each image `count` times, one after another."""
        ...

    def to(self, device: torch.device) -> "Likelihood":
        """On another device."""
        ...

    def __call__(self, u: Latents, level: Tensor) -> Tensor:
        """(B,) of latents and level (B,), differentiable in u."""
        ...


@dataclass(frozen=True)
class Request:
    """Images to be sampled.

    Arguments:
        seeds: One per image.
        config: The sampler's settings.
        prior: "ebm" or "gaussian".
        condition: Target values of each image; its rows follow `seeds`.
        constraint: Latents to clamp or to start from, rows as `seeds`.
        inverted: Whether u_0 of `constraint` is carried up by the flow and back down, with half of
            the gradients each way.
        likelihood: Of a measurement, added to F.
        progress, callback: As of `pipeline/progress.py`.
        asked: What each image was asked to be: its `symbols` and `guidance`, if any.
        facts: What else its file says of how it came about.
        only_last: Decode the result only.
        decoder: What decodes: "sharp" or "likelihood".
        batch_size: Most images at a time.
    """

    seeds: tuple[int, ...]
    config: LangevinConfig
    prior: Prior = "ebm"
    condition: Condition | None = None
    constraint: LatentConstraint | None = None
    inverted: bool = False
    likelihood: Likelihood | None = None
    progress: Progress | Watch | bool | None = None
    callback: Callback | None = None
    asked: tuple[Mapping[str, Any], ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    only_last: bool = True
    decoder: DecoderName = "likelihood"
    batch_size: int = 16

    @property
    def told(self) -> Progress | None:
        """Who is told of each gradient by the chains themselves, if anybody."""
        return cast("Progress", self.progress) if callable(self.progress) else None

    @property
    def gradients(self) -> int:
        """Of all batches."""
        batches = -(-len(self.seeds) // self.batch_size)
        return 0 if self.prior == "gaussian" else self.config.steps * batches

    def rows(self, start: int, stop: int) -> "Request":
        """The same for images start ... stop - 1."""
        condition, constraint = self.condition, self.constraint
        return replace(
            self,
            seeds=self.seeds[start:stop],
            condition=condition and condition.rows(start, stop),
            constraint=constraint and constraint.rows(start, stop),
            likelihood=self.likelihood and self.likelihood.rows(start, stop),
        )

    def particles(self) -> "Request":
        """The same with a row for each particle of each image, each with a seed of its own."""
        condition, constraint = self.condition, self.constraint
        count = self.config.particles
        return replace(
            self,
            seeds=particle_seeds(self.seeds, count),
            condition=condition and condition.repeated(count),
            constraint=constraint and constraint.repeated(count),
            likelihood=self.likelihood and self.likelihood.repeated(count),
        )

    def batches(self) -> Iterator["Request"]:
        """Requests of at most `batch_size` images each."""
        for start in range(0, len(self.seeds), self.batch_size):
            yield self.rows(start, start + self.batch_size)


def sampling_config(model: Model, /, **overrides: Any) -> LangevinConfig:
    """The model's sampler settings with those that are given (not None) in their place."""
    given = {k: v for k, v in overrides.items() if v is not None}
    known = set(LangevinConfig.__dataclass_fields__)
    if unknown := sorted(set(given) - known):
        raise UserInputError(
            f"unknown sampler settings {unknown}{unknown_setting(unknown[0], known)}; known are "
            f"{sorted(known)}"
        )
    return model.config.sampling.changed(**given)


def total_steps(
    model: Model,
    /,
    *,
    num_images: int = 1,
    batch_size: int = 16,
    steps: int | None = None,
    prior: Prior = "ebm",
) -> int:
    """Gradient evaluations of such a call, over all its batches; 0 under the Gaussian prior."""
    batch_size = require_integer("batch_size", batch_size, 1, MAX_SEEDS)
    num_images = require_integer("num_images", num_images, 0, 2**53)
    if prior == "gaussian":
        return 0
    return sampling_config(model, steps=steps).steps * -(-num_images // batch_size)


def read_request(
    model: Model,
    /,
    num_images: int | None,
    seeds: int | Iterable[int] | None,
    *,
    symbols: Symbols | None = None,
    guidance: Guidance = 1.0,
    prior: Prior = "ebm",
    batch_size: int = 16,
    progress: Progress | bool | None = None,
    callback: Callback | None = None,
    facts: Mapping[str, Any] | None = None,
    only_last: bool = True,
    decoder: DecoderName | None = None,
    **settings: Any,
) -> Request:
    """A call's arguments, checked; they are those of `Sampler.__call__`.

    Raises:
        UserInputError: A setting out of range, an unknown one, settings that do not go with the
            Gaussian prior, or symbols or a decoder that the model has not.
    """
    require_choice("prior", prior, Prior)
    batch_size = require_integer("batch_size", batch_size, 1, MAX_SEEDS)
    guidance = plain_guidance(guidance)
    check_watchers(progress, callback)
    idle = sorted(k for k, v in settings.items() if v is not None and k != "temperature")
    idle += ["symbols"] if symbols is not None else []
    if prior == "gaussian" and idle:
        raise UserInputError(
            f"prior='gaussian' draws u at once, without {', '.join(idle)}; leave them out"
        )
    open_ended = seeds is None or isinstance(seeds, SeedsFrom)
    if num_images is None and open_ended and isinstance(symbols, (list, tuple)):
        num_images = len(symbols)
    chosen, config = choose_seeds(num_images, seeds), sampling_config(model, **settings)
    _refuse_of_chains(config, settings)
    return Request(
        chosen,
        config,
        prior,
        _condition(model, symbols, guidance, len(chosen)),
        progress=progress,
        callback=callback,
        asked=_asked(symbols, guidance, len(chosen)),
        facts=facts or {},
        only_last=only_last,
        decoder=model.generator.chosen_decoder(decoder),
        batch_size=batch_size,
    )


def _refuse_of_chains(config: LangevinConfig, settings: Mapping[str, Any]) -> None:
    """`UserInputError` for what only chains have, asked of a sampler without."""
    given = (name for name, value in settings.items() if value is not None)
    idle = [name for name in given if name in OF_CHAINS and not config.runs_chains]
    if idle:
        raise UserInputError(
            f"sampler={config.sampler!r} has no chains, so {', '.join(idle)} would have no "
            "effect; leave them out"
        )


def check_particles(model: Model, request: Request) -> None:
    """Raise `UserInputError` where the particles of a batch take more memory than is free."""
    count, measured = request.config.particles, request.likelihood
    if count == 1 or request.prior == "gaussian":
        return
    rows = count * min(len(request.seeds), request.batch_size)
    of_one = measured and measured.rows(0, 1).to(model.device)
    needed, free = rows * bytes_per_image(model, of_one), free_bytes(model.device)
    if needed > free:
        raise UserInputError(
            f"{count} particles for each of {rows // count} images at a time take "
            f"{needed / 2**30:.1f} GiB of memory, and {free / 2**30:.1f} GiB are free; "
            "ask for fewer particles, or a smaller batch"
        )


def _condition(
    model: Model, symbols: Symbols | None, guidance: Guidance, count: int
) -> Condition | None:
    if symbols is None and guidance == 1.0:
        return None
    return read_condition(model.energies().table, symbols, guidance, count, model.name)


def _asked(symbols: Symbols | None, guidance: Guidance, count: int) -> tuple[dict[str, Any], ...]:
    """Each image's symbols and guidance, as its file tells them."""
    if symbols is None:
        return ({},) * count
    each = [symbols] * count if isinstance(symbols, Mapping) else symbols

    def weight(name: str) -> float:
        return guidance.get(name, 1.0) if isinstance(guidance, Mapping) else guidance

    return tuple(
        {"symbols": dict(one), "guidance": {name: weight(name) for name in one}} for one in each
    )
