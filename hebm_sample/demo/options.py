"""A step's options, read by the command's own parser from the words that the page shows: what the
page does and what it shows cannot part.
"""

from dataclasses import fields
from typing import TYPE_CHECKING, TypeVar

import click

from hebm_sample.cli.requests.base import CommandOptions
from hebm_sample.cli.requests.sample import SampleOptions
from hebm_sample.demo.steps import Draw, Edit, Inpaint, Interpolate, Mix, Origin, Upload, Vary
from hebm_sample.errors import UserInputError
from hebm_sample.io.seeds import format_seeds

if TYPE_CHECKING:
    from hebm_sample.cli.requests.edit import EditOptions, InpaintOptions

__all__ = [
    "edit_options",
    "edit_words",
    "inpaint_options",
    "inpaint_words",
    "interpolate_words",
    "mix_options",
    "mix_words",
    "sample_options",
    "sample_words",
    "seeds_of_mix",
]

_O = TypeVar("_O", bound=CommandOptions)


def sample_options(step: Draw | Vary) -> SampleOptions:
    """As `hebm-sample` reads them.

    Raises:
        UserInputError: They are wrong.
    """
    from hebm_sample.cli.sample import main

    return _parsed(SampleOptions, main, sample_words(step))


def mix_options(step: Mix) -> SampleOptions | None:
    """As `hebm-sample --mix` reads them; None for a mixture of other images than two seeds'."""
    from hebm_sample.cli.sample import main

    words = mix_words(step)
    return None if words is None else _parsed(SampleOptions, main, words)


def edit_options(step: Edit, image: str) -> "EditOptions":
    """As `hebm-edit edit` reads them."""
    from hebm_sample.cli.edit import edit
    from hebm_sample.cli.requests.edit import EditOptions

    return _parsed(EditOptions, edit, edit_words(step, image))


def inpaint_options(step: Inpaint, image: str) -> "InpaintOptions":
    """As `hebm-edit inpaint` reads them."""
    from hebm_sample.cli.edit import inpaint
    from hebm_sample.cli.requests.edit import InpaintOptions

    return _parsed(InpaintOptions, inpaint, inpaint_words(step, image))


def _parsed(kind: type[_O], command: click.Command, words: list[str]) -> _O:
    try:
        params = command.make_context(command.name, list(words)).params
    except click.ClickException as error:
        raise UserInputError(error.format_message()) from None
    known = {field.name for field in fields(kind)}
    return kind(**{name: value for name, value in params.items() if name in known})


# Words


def sample_words(step: Draw | Vary) -> list[str]:
    """Of `hebm-sample`."""
    words = [*step.model.words, "--seeds", format_seeds(step.seeds)]
    if isinstance(step, Vary) and step.sampled_source is not None:
        (seed,) = step.sampled_source.seeds
        words += ["--from-seed", str(seed), "--keep-top", str(step.keep)]
    return words + step.settings.words


def seeds_of_mix(step: Mix) -> Draw | None:
    """The two seeds sampled together, as `hebm-sample --mix` does; None for other images."""
    draw, places = step.coarse.step, (step.coarse.index, step.fine.index)
    if isinstance(draw, Draw) and draw == step.fine.step and len(draw.seeds) == 2:
        return draw if places == (0, 1) else None
    return None


def mix_words(step: Mix) -> list[str] | None:
    """Of `hebm-sample --mix`."""
    draw = seeds_of_mix(step)
    if draw is None:
        return None
    mixed = ["--mix", f"{draw.seeds[0]}:{draw.seeds[1]}", "--keep-top", str(step.cut)]
    return [*step.model.words, *mixed, *draw.settings.words]


def edit_words(step: Edit, image: str) -> list[str]:
    """Of `hebm-edit edit`."""
    strength = ["--strength", f"{step.strength:g}", "--method", step.method]
    return [image, *step.model.words, *step.settings.words, *strength, *_align(step.source)]


def inpaint_words(step: Inpaint, image: str) -> list[str]:
    """Of `hebm-edit inpaint`."""
    words = [image, "--mask", step.mask_name, *step.model.words]
    words += ["--seeds", format_seeds(step.seeds), *step.settings.words]
    return [*words, "--strength", f"{step.strength:g}", *_align(step.source)]


def interpolate_words(step: Interpolate, first: str, second: str) -> list[str]:
    """Of `hebm-edit interpolate`."""
    return [first, second, *step.model.words, "-n", str(step.count)]


def _align(source: Origin) -> list[str]:
    aligned = isinstance(source.step, Upload) and source.step.aligned_to is not None
    return ["--align"] if aligned else []
