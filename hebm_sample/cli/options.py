"""The parameters that the commands share: their grammar, their help, their place in it.

    seeds, groups    0-15,20                                 `hebm_sample.io.seeds`
    wish             value | ~value | value,value            NAME or NAME=wish for --attr
    guidance         W | NAME=W
    factors          0.8 | 1,1,0.7                           one, or one per group

Help is printed in sections, in the order in which a command lists its parameters. Every factory
below makes a fresh option, so one definition serves several commands.
"""

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar, get_args

import click
from click.shell_completion import CompletionItem

from hebm_sample.cli.errors import OneLineErrors
from hebm_sample.config import SamplerName
from hebm_sample.errors import UserInputError
from hebm_sample.io.seeds import MAX_SEEDS, parse_seeds

__all__ = [
    "DATASET",
    "MACHINE",
    "MANY",
    "OUTPUT",
    "PATH",
    "REVISION",
    "SAMPLER",
    "SECTIONS",
    "STEERING",
    "GroupsType",
    "MixType",
    "SectionedCommand",
    "SectionedOption",
    "SeedType",
    "SeedsType",
    "finite",
    "option",
    "taking",
]

MAX_TEMPERATURE = 10.0
MAX_GUIDANCE = 100.0
MAX_BATCH = min(4096, MAX_SEEDS)
_COMPILE = "Compile the chain first, which takes long: for many images."
PATH = click.Path(path_type=Path)
_F = TypeVar("_F", bound=Callable[..., Any])


# Grammar


class SeedsType(click.ParamType):
    """`0-15,20` on the command line."""

    name = "seeds"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        """Parse, or fail as click's parameter types do."""
        try:
            return parse_seeds(value)
        except UserInputError as error:
            self.fail(str(error), param, ctx)


class SeedType(click.ParamType):
    """One seed."""

    name = "seed"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Parse, or fail."""
        try:
            seeds = parse_seeds(value)
        except UserInputError as error:
            self.fail(str(error), param, ctx)
        if len(seeds) != 1:
            self.fail(f"{value!r} is more than one seed; give one", param, ctx)
        return seeds[0]


class GroupsType(click.ParamType):
    """`0-3`: latent groups, 0 at the top."""

    name = "groups"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        """Parse, or fail; whether the model has them is the model's to say."""
        try:
            return parse_seeds(value)
        except UserInputError:
            self.fail(
                f"{value!r} names no groups; write numbers and ranges such as 0-3, each once",
                param,
                ctx,
            )


class MixType(click.ParamType):
    """`A:B`, two seeds."""

    name = "mix"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int]:
        """The seed of the coarse groups and that of the fine ones."""
        try:
            seeds = [seed for part in value.split(":") for seed in parse_seeds(part)]
        except UserInputError as error:
            self.fail(str(error), param, ctx)
        if len(seeds) != 2 or value.count(":") != 1 or seeds[0] == seeds[1]:
            self.fail(f"{value!r} is not A:B, two different seeds such as 7:12", param, ctx)
        return seeds[0], seeds[1]


def _wish(text: str) -> tuple[str, ...]:
    """The items of `cat,dog`; none may be empty."""
    items = tuple(part.strip() for part in text.split(","))
    if not all(item.removeprefix("~") for item in items):
        raise ValueError(text)
    return items


class _WishType(click.ParamType):
    """What the variable `class` is asked to be."""

    name = "wish"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, tuple[str, ...]]:
        """("class", the items)."""
        try:
            return "class", _wish(value)
        except ValueError:
            self.fail(f"{value!r} asks for nothing; write cat, ~cat or cat,dog", param, ctx)


class _BatchType(click.IntRange):
    """A number, or `auto` as 0."""

    def __init__(self) -> None:
        super().__init__(1, MAX_BATCH)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """0, or as `IntRange`."""
        return 0 if value in ("auto", 0) else super().convert(value, param, ctx)


class _AttributeType(click.ParamType):
    """`Smiling`, `Eyeglasses=no`."""

    name = "attribute"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, tuple[str, ...]]:
        """(name, items); a bare name asks for "yes"."""
        name, equals, wish = value.partition("=")
        try:
            if name.strip():
                return name.strip(), _wish(wish) if equals else ("yes",)
        except ValueError:
            pass
        self.fail(
            f"{value!r} asks for nothing; write NAME, NAME=value, NAME=~value or NAME=a,b",
            param,
            ctx,
        )


def _number(text: str, high: float) -> float:
    number = float(text)
    if not 0.0 <= number <= high:  # nan lies in no range
        raise ValueError(text)
    return number


class _GuidanceType(click.ParamType):
    """`2` or `Smiling=2`."""

    name = "guidance"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str | None, float]:
        """(name, or None for all that is asked; weight)."""
        name, equals, weight = value.rpartition("=")
        try:
            if bool(name.strip()) == bool(equals):
                return name.strip() or None, _number(weight, MAX_GUIDANCE)
        except ValueError:
            pass
        self.fail(
            f"{value!r} is no weight; write W or NAME=W, W from 0 to {MAX_GUIDANCE:g}", param, ctx
        )


class _FactorsType(click.ParamType):
    """`0.8`, or `1,1,0.7`: one per group."""

    name = "factors"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float | tuple[float, ...]:
        """One number, or several."""
        try:
            numbers = tuple(_number(part, MAX_TEMPERATURE) for part in value.split(","))
        except ValueError:
            self.fail(
                f"{value!r} is no number from 0 to {MAX_TEMPERATURE:g}, or one per group: 1,1,0.7",
                param,
                ctx,
            )
        return numbers[0] if len(numbers) == 1 else numbers


class _ModelType(click.ParamType):
    """A model's name, completed from the manifest, or a folder."""

    name = "model"

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """The names that begin so; folders where none does."""
        import hebm_sample

        names = sorted({row.name for row in hebm_sample.list_models()})
        fitting = [CompletionItem(name) for name in names if name.startswith(incomplete)]
        return fitting or [CompletionItem(incomplete, type="dir")]


def finite(_ctx: click.Context, _param: click.Parameter, value: float | None) -> float | None:
    """Refuse nan and the infinities."""
    # nan lies in no range, yet passes click's comparison with the ends.
    if value is not None and not math.isfinite(value):
        raise click.BadParameter(f"{value} is not a finite number.")
    return value


# Sections of the help

SECTIONS = ("Model", "Images", "Steering", "Sampler", "Machine", "Output")


class SectionedOption(click.Option):
    """An option that knows the section of the help it stands in."""

    def __init__(self, *arguments: Any, section: str = "Other", **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.section = section


class SectionedCommand(OneLineErrors):
    """A command whose help has a section for each kind of option."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Sections as in `SECTIONS`, then --version and --help."""
        sections: dict[str, list[tuple[str, str]]] = {name: [] for name in (*SECTIONS, "Other")}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None and isinstance(parameter, click.Option):
                sections[getattr(parameter, "section", "Other")].append(record)
        for title, records in sections.items():
            if records:
                with formatter.section(title):
                    # Columns alike in all sections.
                    formatter.write_dl([(f"{term:<{_TERM}}", text) for term, text in records])


_TERM = 28


def option(section: str, *names: str, **settings: Any) -> Callable[[Any], Any]:
    """A decorator as `click.option`, for a section of the help."""
    return click.option(*names, cls=SectionedOption, section=section, **settings)


def taking(*options: Callable[[Any], Any] | Iterable[Callable[[Any], Any]]) -> Callable[[_F], _F]:
    """One decorator of several, single or in groups, in the order in which help shows them."""
    flat = [o for some in options for o in ([some] if callable(some) else some)]

    def decorate(function: _F) -> _F:
        for decorator in reversed(flat):
            function = decorator(function)
        return function

    return decorate


# Options of several commands

DATASET = [
    option(
        "Model",
        "--dataset",
        type=_ModelType(),
        metavar="MODEL",
        help="Model name (see hebm-sample --list), Hub repository id, or local folder.",
    ),
    option(
        "Model",
        "--resolution",
        type=click.IntRange(1),
        metavar="N",
        help="Side in pixels, where a model comes in several.",
    ),
]
REVISION = option(
    "Model", "--revision", metavar="REV", help="Commit, tag or branch of a Hub repository."
)
STEERING = [
    option(
        "Steering",
        "--class",
        "classes",
        type=_WishType(),
        multiple=True,
        metavar="VALUE",
        help="What the variable `class` is to be: cat; cat,dog is either; ~cat is any other.",
    ),
    option(
        "Steering",
        "--attr",
        "attributes",
        type=_AttributeType(),
        multiple=True,
        metavar="NAME[=VALUE]",
        help="The same of any variable; NAME alone is NAME=yes. Repeatable: all of them at once.",
    ),
    option(
        "Steering",
        "--guidance",
        type=_GuidanceType(),
        multiple=True,
        metavar="[NAME=]W",
        help="Weight of what is asked, or of one variable.  [default: 1]",
    ),
]
SAMPLER = [
    option(
        "Sampler",
        "--sampler",
        type=click.Choice(get_args(SamplerName)),
        help="How to sample.  [default: the model's]",
    ),
    option(
        "Sampler",
        "--steps",
        type=click.IntRange(1, 100_000),
        metavar="N",
        help="Gradient evaluations in all.  [default: the model's]",
    ),
    option(
        "Sampler",
        "--temperature",
        type=_FactorsType(),
        metavar="FACTOR[,...]",
        help="Factor on the noise's standard deviation, or one per group.  [default: the model's]",
    ),
]


def _batch(kind: click.ParamType, text: str) -> Callable[[Any], Any]:
    return option(
        "Machine", "--batch", type=kind, default=16, show_default=True, metavar="N", help=text
    )


MACHINE = [
    option(
        "Machine",
        "--device",
        type=click.Choice(["auto", "cpu", "cuda", "mps"]),
        default="auto",
        show_default=True,
        help="Where to compute; auto is cuda, else cpu.",
    ),
    option(
        "Machine",
        "--dtype",
        type=click.Choice(["float32", "bfloat16"]),
        default="float32",
        show_default=True,
        help="Precision of the networks.",
    ),
    _batch(click.IntRange(1, MAX_BATCH), "Most images at a time."),
    option("Machine", "--offline", is_flag=True, help="Use only files that are on this machine."),
    option("Machine", "--cache-dir", type=PATH, metavar="DIR", help="Folder of the Hub's cache."),
]
MANY = [
    *MACHINE[:2],
    _batch(_BatchType(), "Most images at a time; auto: what fits the free memory."),
    option("Machine", "--compile", "compiled", is_flag=True, help=_COMPILE),
    *MACHINE[3:],
]
OUTPUT = [
    option("Output", "--json", "as_json", is_flag=True, help="Answer with one JSON object."),
    option("Output", "--quiet", is_flag=True, help="No progress bar and no closing line."),
]
