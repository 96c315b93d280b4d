"""`hebm-eval report`: everything about a model, on one page."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from hebm_sample.cli.errors import OneLineErrors
from hebm_sample.cli.evaluation.control import (
    CONTROL_NAMES,
    CONTROL_OPTIONS,
    check_classifier,
    check_control,
    measure_control,
)
from hebm_sample.cli.evaluation.ood import OOD
from hebm_sample.cli.evaluation.options import (
    BATCH,
    DEVICE,
    FEATURE_STEPS,
    HELD_OUT,
    QUIET,
    SAMPLING,
    check_needs_data,
    command_line,
    common_options,
    data_option,
    images_option,
    named_sources,
    open_sets_of,
    option_names,
    takes_model,
    with_options,
)
from hebm_sample.cli.printing import say
from hebm_sample.cli.requests.grammar import known_word
from hebm_sample.errors import UserInputError

__all__ = ["report"]

_IMAGES = 2000
_PARTS = {"prior-hole": "hole"}  # other spellings
_NEEDS_DATA = ("validation", "split", "feature_steps", "inception", "baseline", *CONTROL_NAMES)


@click.command(cls=OneLineErrors)
@takes_model
@with_options(
    click.option(
        "--out",
        "-o",
        required=True,
        type=click.Path(file_okay=False, path_type=Path),
        metavar="DIR",
        help="The page and results.json; a second call goes on where it was.",
    ),
    click.option("--overwrite", is_flag=True, help="Replace another model's report in --out."),
    data_option(
        False,
        "The data it was trained on. Without them only what the package's own reference allows "
        "is measured.",
    ),
    HELD_OUT,
    images_option(_IMAGES, "Images in each set.", of_halves=True),
    click.option(
        "--parts",
        metavar="A,B",
        help="gap, baselines, control, hole, ood, memorisation, diagnostics.  [default: all]",
    ),
    OOD,
    click.option(
        "--baseline",
        multiple=True,
        metavar="NAME=DIR",
        help="Another prior of the same generator, such as hebm-train baseline's.",
    ),
    FEATURE_STEPS,
    click.option(
        "--inception",
        is_flag=True,
        help="Also in Inception's features; the extra [inception].",
    ),
    CONTROL_OPTIONS,
    SAMPLING,
    BATCH,
    DEVICE,
    QUIET,
)
def report(
    model: str,
    out: Path,
    data: str | None,
    others: tuple[str, ...],
    overwrite: bool,
    **options: Any,
) -> None:
    """Measure everything about MODEL, and write a page and its numbers.

    The options from --classifier to --layer-images are those of hebm-eval control.
    """
    from hebm_sample.cli.trained import check_reads_images, model_to_measure
    from hebm_sample.evaluation.report.report import check_extras, write_report
    from hebm_sample.io.images import check_folder
    from hebm_sample.io.written import check_report_folder

    check_folder(out)
    check_needs_data(data, options | {"ood": others}, [*_NEEDS_DATA, "ood"])
    check_classifier(options)
    pipe = model_to_measure(model, options["device"])
    check_report_folder(out, pipe.name, overwrite)
    if data is not None:
        check_reads_images(pipe)
    sets = None if data is None else open_sets_of(pipe, data, options)
    plan = _plan(pipe, sets, others, options)
    check_extras(plan)
    context = _context(pipe, sets, out, options)
    if not options["quiet"]:
        from hebm_sample.evaluation.duration import expected_line

        say(expected_line(context), err=True)
    announce = common_options(options)["announce"]
    found = write_report(context, plan, out, overwrite=overwrite, announce=announce)
    say(f"{out / 'index.html'}: {', '.join(found)}; numbers in {out / 'results.json'}")


def _plan(pipe: Any, sets: Any, others: tuple[str, ...], options: dict[str, Any]) -> Any:
    from hebm_sample.evaluation.report.report import PARTS, ReportPlan

    parts = None
    if options["parts"] is not None:
        typed = (known_word(p.strip(), (*PARTS, *_PARTS)) for p in options["parts"].split(","))
        parts = tuple(_PARTS.get(p, p) for p in typed)
    size = pipe.config.generator.image_size
    return ReportPlan(
        parts=parts,
        feature_steps=options["feature_steps"],
        inception=options["inception"],
        others=named_sources("--ood", others, size, ReportPlan.ood_images, options["quiet"])
        if sets
        else {},
        baselines=_folders(options["baseline"]),
        control=_control(pipe, sets, options),
        control_key=[_key_of(name, options[name]) for name in CONTROL_NAMES],
        command=command_line(),
    )


def _key_of(name: str, value: Any) -> str:
    """A control option as a report's key has it: of a classifier its file's content."""
    from hebm_sample.io.files import sha256_of

    return sha256_of(value) if name == "classifier_file" and value is not None else str(value)


def _context(pipe: Any, sets: Any, out: Path, options: dict[str, Any]) -> Any:
    from hebm_sample.evaluation.distances import make_context, make_context_without_data

    settings = {k: v for k, v in common_options(options).items() if k != "announce"}
    settings |= {"num_images": options["num_images"], "folder": out / "draws"}
    if sets is None:
        return make_context_without_data(pipe, **settings)
    return make_context(pipe, *sets, **settings)


def _folders(pairs: tuple[str, ...]) -> dict[str, Path]:
    """Baselines by name."""
    found = {}
    for pair in pairs:
        # A name may be "T = 1", and a folder runs/lr=0.1: the first sign with a folder behind it.
        signs = [i for i, letter in enumerate(pair) if letter == "="]
        there = [i for i in signs if pair[i + 1 :] and Path(pair[i + 1 :]).is_dir()]
        at = (there or signs[-1:] or [-1])[0]
        name, folder = pair[: max(at, 0)], pair[at + 1 :]
        if not (name and folder):
            raise UserInputError(f"--baseline is {pair!r}; write NAME=DIR")
        if not there:
            raise UserInputError(f"--baseline {name}: there is no folder {folder}")
        if name in found:
            raise UserInputError(f"--baseline {name} was given twice; give each a name of its own")
        found[name] = Path(folder)
    return found


def _control(pipe: Any, sets: Any, options: dict[str, Any]) -> Callable[[], Any] | None:
    """A measurement of control, or None where there is nothing to measure; what is wrong with its
    options is said now, hours before it begins.
    """
    from hebm_sample.evaluation.classifiers import columns_there

    table = pipe.config.prior.symbols if pipe.config.prior is not None else ()
    typed = [n for n in CONTROL_NAMES if options[n] not in (None, (), False)]
    if sets is not None and not table and typed:
        raise UserInputError(
            f"{option_names(typed)} would have no effect: {pipe.name} has no symbols; leave "
            "them out"
        )
    if sets is None or not table:
        return None
    if not (typed or columns_there(table, sets[0], pipe.name)):
        return None
    options = options | {"num_images": None}  # of a value and guidance, not of the distances
    check_control(pipe, sets, options)

    def run() -> dict[str, Any]:
        found = measure_control(pipe, sets, common_options(options), options)
        return found.to_dict() | {"table": found.table()}

    return run
