"""Editing images: u_0 ~ q(u | x), brought to a noise level, from which the conditional density
leads back down on some groups.

    "flow"    DDIM-style inversion: the unconditional flow carries u_0 up, the conditional one down
    "noise"   SDEdit: u_0 is diffused by noise, and the model's sampler goes down from there

The first goes both ways along the flow, as "Denoising Diffusion Implicit Models" (arXiv
2010.02502) encodes images and decodes them, here in latents (`sampling/probability_flow.py`); the
second is "SDEdit: Guided Image Synthesis and Editing with Stochastic Differential Equations"
(arXiv 2108.01073).
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, Literal

from torch import Tensor

from hebm_sample.config import (
    EDIT_GUIDANCE,
    EDIT_STEPS,
    LangevinConfig,
    plain,
    require_choice,
    require_range,
)
from hebm_sample.errors import UserInputError
from hebm_sample.latents import Latents
from hebm_sample.pipeline.alignment import frame
from hebm_sample.pipeline.conditions import Guidance, Symbols
from hebm_sample.pipeline.identity import encoder_hash
from hebm_sample.pipeline.model import EncodeMode, Groups, ImagesLike, Model
from hebm_sample.pipeline.outputs import OutputType, Samples, seeds_of
from hebm_sample.pipeline.provenance import said_of_mode
from hebm_sample.pipeline.request import read_request, sampling_config
from hebm_sample.pipeline.sampler import Sampler
from hebm_sample.sampling.constraints import LatentConstraint

__all__ = [
    "EditMethod",
    "check_strength",
    "edit",
    "posterior",
    "refuse_prior",
    "seeded",
    "with_edit_steps",
]

EditMethod = Literal["flow", "noise"]

# Settings that an edit by inversion has no use for.
_OF_CHAINS = set(LangevinConfig.__dataclass_fields__) - {"sampler", "steps", "denoise"}


def edit(
    sampler: Sampler,
    /,
    images: ImagesLike,
    symbols: Symbols | None = None,
    *,
    groups: Groups | None = None,
    strength: float = 0.77,
    guidance: Guidance = EDIT_GUIDANCE,
    method: EditMethod = "flow",
    seeds: int | Iterable[int] | None = None,
    mode: EncodeMode = "sample",
    batch_size: int = 16,
    output_type: OutputType = "pil",
    align: bool = False,
    face: int | None = None,
    paste_back: bool = False,
    **options: Any,
) -> Samples:
    """Change images to a condition and keep the rest of them: u_0 ~ q(u | x), brought to a noise
    level, from which the conditional density leads back down on some groups.

    Arguments:
        images: As for `encode`.
        symbols, guidance: As of a call; None only resamples what the noise wiped out.
        groups: The groups that may change; all if None. The others keep their u_0.
        strength: cum_sigma of the level to start from, in (0, 1]; the model's nearest level is
            taken.
        method: "flow", DDIM-style inversion (arXiv 2010.02502): the unconditional flow carries u_0
            up, and the conditional one back down, with half of the gradients each, `EDIT_STEPS` in
            all unless `steps` says otherwise. Nothing is random, so what the condition does not
            name comes back. "noise", SDEdit (arXiv 2108.01073): u_0 is diffused by noise and the
            model's sampler samples u_0 anew; a `strength` of 1 keeps nothing of the groups but
            what the others say.
        seeds: One per image; 0 ... N-1 if None.
        mode: "sample" or "mean" of q(u | x).
        align: Find the face in each image, turn it and crop it as the model's images are. An
            image that is not aligned and framed otherwise gets a `FramingWarning`; so in all that
            reads images.
        face: With `align`: which face, numbered from the left, from 1; the largest if None.
        paste_back: With `align`: give the photographs with the edited faces in their places.
        options: `decoder`, `progress` and fields of `LangevinConfig`.

    Raises:
        UserInputError: With `align`: an image without a face, or a model without a crop. A face
            that was cut for another model. What would be ignored: a guidance without symbols, and
            with method "flow" a sampler, a temperature and other settings of chains.
        EnvironmentFailure: With `align`: the extra `align` is not installed.
    """
    check_strength(strength)
    refuse_prior(options)
    require_choice("method", method, EditMethod)
    require_choice("output_type", output_type, OutputType)
    model, inverted = sampler.model, method == "flow"
    if inverted:
        options = flow_options(model, options)
    free = model.group_indices(groups)
    level = model.level_near(strength, below_noise=inverted)
    framing: dict[str, Any] = {"align": align, "face": face, "paste_back": paste_back}
    framed = frame(model, images, output_type=output_type, photographs=paste_back, **framing)
    x, chosen = seeded(model, framed.images, seeds)
    named = None if groups is None else free
    facts = {"strength": strength, "method": method, "groups": named, **said_of_mode(mode)}
    options["facts"] = facts | {"encoder": encoder_hash(model), **framed.facts(face, paste_back)}
    is_default = symbols is None and guidance == EDIT_GUIDANCE
    options["guidance"] = 1.0 if is_default else guidance
    request = read_request(model, None, chosen, symbols=symbols, batch_size=batch_size, **options)
    u = posterior(model, x, chosen, mode, batch_size)
    clamped = tuple(i for i in range(len(u)) if i not in free)
    constraint = LatentConstraint(u, clamped, level)
    request = replace(request, constraint=constraint, inverted=inverted)
    samples = sampler.samples(sampler.best(request), request, output_type)
    return framed.pasted(samples, paste_back)


def check_strength(strength: Any) -> None:
    """`UserInputError` unless it lies in (0, 1]."""
    require_range("strength", strength, 0.0, 1.0)
    if strength == 0:
        raise UserInputError("strength is 0; it must be above 0 and at most 1")


def refuse_prior(options: Mapping[str, Any]) -> None:
    """`UserInputError` for a choice of prior."""
    if options.get("prior") is not None:
        raise UserInputError(
            f"prior={options['prior']!r} is of samples; edits and inpaintings follow the "
            "energies: leave it out"
        )


def with_edit_steps(options: dict[str, Any]) -> dict[str, Any]:
    """The options, with `EDIT_STEPS` where they leave the steps open."""
    steps = options.get("steps")
    return options | {"steps": EDIT_STEPS if steps is None else steps}


def flow_options(model: Model, options: dict[str, Any]) -> dict[str, Any]:
    """The options of an edit by inversion, which has no sampler to choose."""
    if options.get("sampler") not in (None, "flow"):
        raise UserInputError(
            f"sampler is {options['sampler']!r}, but method 'flow' draws nothing; leave the "
            "sampler out, or take method='noise'"
        )
    _refuse_idle(options)
    if model.energies().config.parametrization == "release":
        raise UserInputError(
            "method 'flow' needs energies conditioned on log SNR; this model has the "
            "release's parametrisation: use method='noise'"
        )
    if len(model.energies().config.levels) < 3:
        raise UserInputError(
            "method 'flow' needs a level between data and noise; this model has one level: "
            "use method='noise'"
        )
    options = with_edit_steps(options)
    steps = sampling_config(model, steps=options["steps"]).steps
    if steps < 2:
        raise UserInputError(f"steps is {steps}; an edit by inversion takes at least 2")
    return options | {"sampler": "flow"}


def _refuse_idle(options: dict[str, Any]) -> None:
    """`UserInputError` for settings that an edit by inversion would ignore."""
    for name in (name for name in options if name in _OF_CHAINS):
        value, neutral = plain(options[name]), LangevinConfig.__dataclass_fields__[name].default
        if value is not None and value != neutral:
            raise UserInputError(
                f"{name} is {value!r}, but method 'flow' draws nothing and has no chains; leave "
                f"{name} out, or take method='noise'"
            )


def seeded(
    model: Model, images: ImagesLike, seeds: int | Iterable[int] | None
) -> tuple[Tensor, tuple[int, ...]]:
    """Images (N, 3, S, S) in [-1, 1], and one seed each; 0 ... N-1 if None."""
    x = model.read_images(images)
    return x, seeds_of(len(x), seeds)


def posterior(
    model: Model, x: Tensor, seeds: tuple[int, ...], mode: EncodeMode, batch_size: int
) -> Latents:
    """u_0 of images in [-1, 1]; its noise is not the chain's."""
    return model.encode((x + 1) / 2, mode=mode, seeds=seeds, batch_size=batch_size)
