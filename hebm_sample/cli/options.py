"""The options that the commands share: declared once, with their help and their place in it.

Help is printed in sections, in the order in which a command lists its parameters. Every factory
below makes a fresh option, so one definition serves several commands.
"""

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar, get_args

import click
from click.shell_completion import CompletionItem

from hebm_sample.cli.errors import OneLineErrors
from hebm_sample.cli.requests.grammar import (
    MAX_BATCH,
    AttributeType,
    BatchType,
    ClassType,
    FactorsType,
    GuidanceType,
    SeedsType,
    WordType,
    known_word,
)
from hebm_sample.config import DecoderName, SamplerName
from hebm_sample.config.sampler import MAX_PARTICLES
from hebm_sample.errors import HebmError, UserInputError

__all__ = [
    "CONTEXT",
    "DATASET",
    "DECODER",
    "MACHINE",
    "MANY",
    "MODEL",
    "ModelType",
    "OUTPUT",
    "OVERWRITE",
    "PATH",
    "REVISION",
    "SAMPLER",
    "sampler_options",
    "SECTIONS",
    "SectionedCommand",
    "SectionedOption",
    "dataset",
    "device",
    "one_model",
    "option",
    "out",
    "outdir",
    "seeds",
    "steering",
    "taking",
]

CONTEXT: dict[str, Any] = {
    "help_option_names": ["-h", "--help"],
    "max_content_width": 100,
}
_MANIFEST = "weights_manifest.json"  # as in hub/manifest.py, which --help does without
_COMPILE = "Compile the chain first, which takes long: for many images."
PATH = click.Path(path_type=Path)
_F = TypeVar("_F", bound=Callable[..., Any])


class ModelType(click.ParamType):
    """A model's name in any spelling, completed from the manifest, or a folder."""

    name = "model"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """A known name in its own spelling; folders, repositories and others as they are."""
        from hebm_sample.io.files import is_run_folder

        if not value or "/" in value:
            return value
        # Other folders that are called as a model is do not hide it.
        if os.path.exists(os.path.join(value, _MANIFEST)) or is_run_folder(Path(value)):
            return value
        import hebm_sample

        try:
            rows = hebm_sample.list_models()
            names = {row.name for row in rows}
            return known_word(value, names | {f"{r.name}-{r.resolution}" for r in rows})
        except (HebmError, OSError):  # loading the model says what is wrong with the manifest
            return value

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """The names that begin so; folders where none does."""
        import hebm_sample

        rows = hebm_sample.list_models()
        names = sorted({row.name for row in rows})
        names += sorted(f"{r.name}-{r.resolution}" for r in rows if not r.default)
        fitting = [CompletionItem(name) for name in names if name.startswith(incomplete)]
        return fitting or [CompletionItem(incomplete, type="dir")]


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


def one_model(positional: str | None, typed: str | None) -> str | None:
    """The model, which can be named with or without --dataset."""
    if positional is not None and typed is not None and positional != typed:
        raise UserInputError(f"the model is given as {typed!r} and as {positional!r}; give one")
    return typed if positional is None else positional


def dataset(
    text: str = "Model name (see hebm-sample --list), Hub repository id, or local folder.",
    *names: str,
    **settings: Any,
) -> Callable[[Any], Any]:
    """--dataset, with another help, name in Python or number of values where that is given."""
    declared = ("--dataset", "-d", *names)
    return option("Model", *declared, type=ModelType(), metavar="MODEL", help=text, **settings)


def device(*more: str) -> Callable[[Any], Any]:
    """--device: auto, cpu, cuda, and what else a command can compute on."""
    return option(
        "Machine",
        "--device",
        type=WordType(["auto", "cpu", "cuda", *more]),
        default="auto",
        show_default=True,
        help="Where to compute; auto is cuda, else cpu.",
    )


MODEL = click.argument("model", required=False, type=ModelType(), metavar="[MODEL]")
DATASET = [
    dataset(),
    option(
        "Model",
        "--resolution",
        type=click.IntRange(1),
        metavar="N",
        help="Side in pixels, where a model comes in several.",
    ),
]


def seeds(text: str) -> Callable[[Any], Any]:
    """--seeds LIST."""
    return option("Images", "--seeds", "--seed", type=SeedsType(), metavar="LIST", help=text)


REVISION = option(
    "Model", "--revision", metavar="REV", help="Commit, tag or branch of a Hub repository."
)


def steering(default: str = "1") -> list[Callable[[Any], Any]]:
    """The condition and its guidance, whose default is the command's own."""
    return [
        option(
            "Steering",
            "--class",
            "classes",
            type=ClassType(),
            multiple=True,
            metavar="VALUE",
            help="Target of the variable `class`: cat; cat,dog is either; ~cat is any other.",
        ),
        option(
            "Steering",
            "--attr",
            "attributes",
            type=AttributeType(),
            multiple=True,
            metavar="NAME[=VALUE]",
            help="The same of any variable; NAME alone is NAME=yes. Repeatable: all at once.",
        ),
        option(
            "Steering",
            "--guidance",
            type=GuidanceType(),
            multiple=True,
            metavar="[NAME=]W",
            help=f"Weight of the condition, or of one variable.  [default: {default}]",
        ),
    ]


def sampler_options(whose: str = "the model's", steps: str = "the model's") -> list[Any]:
    """--sampler, --steps, --temperature, --particles.

    Arguments:
        whose: Default of all but the steps, as their help says it.
        steps: Of those.
    """
    return [
        option(
            "Sampler",
            "--sampler",
            type=WordType(get_args(SamplerName)),
            help=f"How to sample.  [default: {whose}]",
        ),
        option(
            "Sampler",
            "--steps",
            type=click.IntRange(1, 100_000),
            metavar="N",
            help=f"Gradient evaluations in all.  [default: {steps}]",
        ),
        option(
            "Sampler",
            "--temperature",
            "--trunc",
            type=FactorsType(),
            metavar="FACTOR[,...]",
            help="Factor on the noise's standard deviation, or one per group.  "
            f"[default: {whose}]",
        ),
        option(
            "Sampler",
            "--particles",
            type=click.IntRange(1, MAX_PARTICLES),
            metavar="N",
            help=f"Chains per image; unlikely ones give way to others.  [default: {whose}]",
        ),
    ]


SAMPLER = sampler_options()


DECODER = option(
    "Output",
    "--decoder",
    type=WordType(get_args(DecoderName)),
    help="What shows the latents.  [default: sharp where the model has it]",
)


def _batch(kind: click.ParamType, text: str) -> Callable[[Any], Any]:
    return option(
        "Machine", "--batch", type=kind, default=16, show_default=True, metavar="N", help=text
    )


MACHINE = [
    device("mps"),
    option(
        "Machine",
        "--dtype",
        type=WordType(["float32", "bfloat16"]),
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
    _batch(BatchType(), "Most images at a time; auto: what fits the free memory."),
    option("Machine", "--compile", "compiled", is_flag=True, help=_COMPILE),
    *MACHINE[3:],
]


def out(text: str) -> Callable[[Any], Any]:
    """--out FILE."""
    return option("Output", "--out", "-o", type=PATH, metavar="FILE", help=text)


def outdir(text: str) -> Callable[[Any], Any]:
    """--outdir DIR."""
    return option("Output", "--outdir", type=PATH, metavar="DIR", help=text)


OVERWRITE = option(
    "Output", "--overwrite", is_flag=True, help="Replace files of the names that results get."
)
OUTPUT = [
    option("Output", "--json", "as_json", is_flag=True, help="Answer with one JSON object."),
    option("Output", "--quiet", is_flag=True, help="No progress bar and no closing line."),
]
