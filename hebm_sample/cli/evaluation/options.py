"""Options that several measuring commands take, and what they ask for."""

import functools
import json
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

import click

from hebm_sample.cli.data import HoldOutType, tell
from hebm_sample.cli.options import ModelType, one_model
from hebm_sample.cli.printing import say
from hebm_sample.cli.requests.grammar import FactorsType, NumberType, WordType
from hebm_sample.config import SamplerName
from hebm_sample.config.sampler import MAX_PARTICLES
from hebm_sample.errors import UserInputError
from hebm_sample.io.files import write_atomically
from hebm_sample.io.seeds import MAX_SEEDS

__all__ = [
    "ARGUMENTS",
    "BATCH",
    "DEVICE",
    "DEVICES",
    "FEATURE_STEPS",
    "FILE",
    "HELD_OUT",
    "JSON",
    "QUIET",
    "SAMPLING",
    "check_file",
    "check_needs_data",
    "command_line",
    "common_options",
    "data_option",
    "images_option",
    "named_sources",
    "open_sets",
    "open_sets_of",
    "option_names",
    "takes_model",
    "with_options",
    "told_of",
    "write_json",
]

Decorator = Callable[..., Any]
ARGUMENTS = "hebm_sample.cli.evaluation.arguments"  # of what was typed, in a context's meta
DEVICES = WordType(["auto", "cpu", "cuda"])
FILE = click.Path(dir_okay=False, path_type=Path)

DEVICE: Decorator = click.option(
    "--device", type=DEVICES, default="auto", show_default=True, help="Where to compute."
)
QUIET: Decorator = click.option("--quiet", is_flag=True, help="No progress bars.")
BATCH: Decorator = click.option(
    "--batch",
    type=click.IntRange(1),
    default=50,
    show_default=True,
    metavar="N",
    help="Images at a time.",
)
JSON: Sequence[Decorator] = (
    click.option(
        "--json", "json_path", type=FILE, metavar="FILE", help="Write the figures there too."
    ),
    click.option("--overwrite", is_flag=True, help="Replace the file of --json."),
)
SETTINGS = ("sampler", "steps", "step_scale", "temperature", "particles")  # those of SAMPLING
FEATURE_STEPS: Decorator = click.option(
    "--feature-steps",
    type=click.IntRange(2),
    metavar="N",
    help="Steps of the classifier whose features are used.  [default: 1200]",
)
HELD_OUT: Sequence[Decorator] = (
    click.option(
        "--validation",
        type=HoldOutType(),
        metavar="ROWS",
        help="Rows that training kept apart: hash, last:N or N; 0: the split `test` is held out."
        "  [default: the run's, where the model says it; else the preset's, or hash]",
    ),
    click.option("--split", metavar="NAME", help="Split of the data that is held out."),
)
SAMPLING: Sequence[Decorator] = (
    click.option(
        "--sampler",
        type=WordType(get_args(SamplerName)),
        help="In place of the model's own.",
    ),
    click.option(
        "--steps",
        type=click.IntRange(1),
        metavar="N",
        help="Gradients, in place of the model's own.",
    ),
    click.option(
        "--step-scale", type=NumberType(0), metavar="C", help="In place of the model's own."
    ),
    click.option(
        "--temperature",
        "--trunc",
        type=FactorsType(),
        metavar="FACTOR[,...]",
        help="Factor on the noise, or one per group, in place of the model's own.",
    ),
    click.option(
        "--particles",
        type=click.IntRange(1, MAX_PARTICLES),
        metavar="N",
        help="Chains per image, in place of the model's own.",
    ),
)


def takes_model(command: Callable[..., None]) -> Callable[..., None]:
    """MODEL, with --dataset before it or without."""

    @functools.wraps(command)
    def run(model: str | None, dataset: str | None, **options: Any) -> None:
        name = one_model(model, dataset)
        if name is None:
            raise click.UsageError(
                "Missing argument 'MODEL'; `hebm-sample --list` shows the models."
            )
        command(model=name, **options)

    text = "MODEL, as other commands take it."
    named = click.option("--dataset", "-d", type=ModelType(), metavar="MODEL", help=text)
    return click.argument("model", required=False, type=ModelType())(named(run))


def data_option(required: bool, text: str) -> Decorator:
    """--data."""
    return click.option("--data", required=required, metavar="SOURCE", help=text)


def images_option(default: int, text: str, *, of_halves: bool = False) -> Decorator:
    """-n.

    Arguments:
        of_halves: Half of the held-out images are the default where that is less: None, until
            they have been counted.
    """
    if of_halves:
        text += f"  [default: {default:,}, or half of the held-out images if that is less]"
    return click.option(
        "-n",
        "--num-images",
        "--num",
        type=click.IntRange(1, MAX_SEEDS),
        default=None if of_halves else default,
        show_default=not of_halves,
        metavar="N",
        help=text,
    )


def with_options(*options: Decorator | Sequence[Decorator]) -> Callable[[Any], Any]:
    """These options, in this order."""
    flat: list[Decorator] = []
    for option in options:
        flat += [option] if callable(option) else option

    def decorate(command: Any) -> Any:
        for option in reversed(flat):
            command = option(command)
        return command

    return decorate


def option_names(names: Sequence[str]) -> str:
    """As they are typed: `judge_file` is not a name of an option, `--classifier` is."""
    return ", ".join("--" + name.removesuffix("_file").replace("_", "-") for name in names)


def check_needs_data(data: str | None, options: dict[str, Any], names: Sequence[str]) -> None:
    """An option that would be ignored is an error."""
    typed = [name for name in names if options[name] not in (None, (), False)]
    if data is None and typed:
        raise UserInputError(f"{option_names(typed)} need --data")


def check_file(option: str, path: Path | None, overwrite: bool) -> None:
    """Before hours of work, not after them: that a file can be written, its folders being made,
    and replaces none unasked.

    Raises:
        UserInputError: It is no possible file, or it is there already.
        EnvironmentFailure: The system refuses.
    """
    from hebm_sample.io.images import check_writable

    if path is None:
        return
    check_writable(path)
    if path.exists() and not overwrite:
        raise UserInputError(
            f"{option} {path} is there already; choose another place, or add --overwrite"
        )


def open_sets_of(pipe: Any, data: str, options: dict[str, Any]) -> Any:
    """Training and held-out images of a model, of which a line is printed."""
    size = pipe.config.generator.image_size
    return open_sets(data, size, pipe.name, options, pipe.config.training)


def open_sets(
    data: str,
    size: int,
    model: str | None,
    options: dict[str, Any],
    records: Sequence[Any] = (),
) -> Any:
    """The same without a model's size, and maybe without its name and records."""
    from hebm_sample.evaluation.distances import held_out_by, open_held_out
    from hebm_sample.training.record import check_rows

    quiet = options["quiet"]
    chosen: dict[str, Any] = {"validation": options["validation"], "split": options["split"]}
    chosen["records"] = records
    sets = open_held_out(data, size=size, model=model, progress=not quiet, **chosen)
    rule = held_out_by(model, size=size, **chosen)
    if model is not None and (note := check_rows(model, records, *sets)):
        rule += f"; {note}"
    tell(data, *sets, rule, quiet)
    return sets


def common_options(options: dict[str, Any]) -> dict[str, Any]:
    """What every measurement takes: batches, bars, words, and the sampler's settings."""
    quiet = options["quiet"]
    return {
        "batch_size": options["batch"],
        "progress": not quiet,
        "announce": lambda text: None if quiet else say(text, err=True),
        **{name: options[name] for name in SETTINGS},
    }


def named_sources(
    option: str, pairs: Sequence[str], size: int, count: int, quiet: bool
) -> dict[str, Any]:
    """NAME=SOURCE: images by name, the last rows of each source, of which a line is printed.

    Raises:
        UserInputError: Among others for a name that a set of the measurement's own has, and for a
            single image, which has no AUROC.
    """
    from hebm_sample.data.dataset import last_images
    from hebm_sample.data.summary import source_line
    from hebm_sample.evaluation.ood import OWN_SETS

    found = {}
    for pair in pairs:
        name, _, source = pair.partition("=")
        if not (name and source):
            raise UserInputError(f"{option} is {pair!r}; write NAME=SOURCE")
        if name in found:
            raise UserInputError(f"{option} names {name!r} twice")
        if name in OWN_SETS:
            raise UserInputError(
                f"{option} names {name!r}, which is measured anyway ({', '.join(OWN_SETS)}); "
                "give the set another name"
            )

        def said(opened: Any, name: str = name, source: str = source) -> None:
            if not quiet:
                say(f"{name}: {source_line(source, opened)}", err=True)

        found[name] = last_images(source, size=size, count=count, opened=said)
        if len(found[name][0]) < 2:
            raise UserInputError(f"{option} {name}: {source} has one image; an AUROC needs 2")
    return found


def told_of(pipe: Any, sets: Any = None) -> dict[str, Any]:
    """What figures are of, for their file: the hash of the weights, as images carry it, and the
    identities of training and held-out rows.
    """
    told = {"weights": pipe.weights_hash}
    names = ("training", "held_out")
    if sets is None:
        return told
    return told | {"data": {n: x.identity for n, x in zip(names, sets, strict=True)}}


def write_json(path: Path | None, found: dict[str, Any]) -> None:
    """Where one was asked for."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, (json.dumps(found, indent=2) + "\n").encode())


def command_line() -> str:
    """The `hebm-eval` line that is running."""
    return "hebm-eval " + shlex.join(click.get_current_context().meta.get(ARGUMENTS, []))
