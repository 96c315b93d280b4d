"""The options of `hebm-train evaluate --report` and `--compare`, and what they ask for."""

import json
import shlex
import sys
from pathlib import Path
from typing import Any

import click

from hebm_sample.cli.evaluate_control import run_control
from hebm_sample.errors import UserInputError
from hebm_sample.io.files import write_atomically

__all__ = ["REPORT_OPTIONS", "run_compare", "run_report", "run_without_data"]

REPORT_OPTIONS = [
    click.option(
        "--report",
        type=click.Path(file_okay=False, path_type=Path),
        metavar="DIR",
        help="Measure everything, and write a page and results.json there; goes on where it was.",
    ),
    click.option(
        "--parts",
        metavar="A,B",
        help="Of a report: gap, baselines, control, hole, ood, memorisation, diagnostics."
        "  [default: all]",
    ),
    click.option(
        "--ood",
        multiple=True,
        metavar="NAME=SOURCE",
        help="Of a report: strange images to tell from the data's; repeatable.",
    ),
    click.option(
        "--baseline",
        multiple=True,
        metavar="NAME=DIR",
        help="Of a report: another prior of the same generator, such as hebm-train baseline's.",
    ),
    click.option(
        "--inception",
        is_flag=True,
        help="Of a report or --compare: also in Inception's features; the extra [inception].",
    ),
    click.option(
        "--compare",
        nargs=2,
        metavar="DIR_A DIR_B",
        type=click.Path(file_okay=False),
        help="Measure folder A's images against folder B's; no model.",
    ),
    click.option(
        "--size",
        type=click.IntRange(16),
        metavar="S",
        help="Of --compare: side of the images.  [default: B's]",
    ),
]


def _others(pairs: tuple[str, ...], size: int, count: int) -> dict[str, Any]:
    """Strange images by name: the last rows of each source."""
    from hebm_sample.data.dataset import last_images

    found = {}
    for pair in pairs:
        name, _, source = pair.partition("=")
        if not (name and source):
            raise UserInputError(f"--ood is {pair!r}; write NAME=SOURCE")
        if name in found:
            raise UserInputError(f"--ood names {name!r} twice")
        found[name] = last_images(source, size=size, count=count)
    return found


def _folders(pairs: tuple[str, ...]) -> dict[str, Path]:
    """Baselines by name."""
    found = {}
    for pair in pairs:
        name, _, folder = pair.rpartition("=")  # a name may be "T = 1"
        if not (name and folder):
            raise UserInputError(f"--baseline is {pair!r}; write NAME=DIR")
        if not Path(folder).is_dir():
            raise UserInputError(f"--baseline {name}: there is no folder {folder}")
        found[name] = Path(folder)
    return found


def _control(pipe: Any, sets: Any, common: dict[str, Any], options: dict[str, Any]) -> Any:
    """A measurement of control, or None where there is nothing to measure."""
    from hebm_sample.evaluation.classifiers import label_columns

    table = pipe.config.prior.symbols if pipe.config.prior is not None else ()
    named = options["label_column"]
    if sets is None or not table:
        return None
    try:
        label_columns(table, sets[0], pipe.name)
    except UserInputError:
        if not named:
            return None

    def run() -> dict[str, Any]:
        found = run_control(pipe, sets, common, options | {"num_images": None})
        return found.to_dict() | {"table": found.table()}

    return run


def run_report(
    pipe: Any, sets: Any, common: dict[str, Any], options: dict[str, Any], quiet: bool
) -> None:
    """Write a report on a model; `sets` are its training and held-out images, or None."""
    from hebm_sample.cli.evaluate_control import CONTROL_NAMES
    from hebm_sample.evaluation.context import EvaluationContext
    from hebm_sample.evaluation.distances import DEFAULT_IMAGES, make_context
    from hebm_sample.evaluation.report.report import ReportPlan, check_extras, write_report

    out, count = options["report"], options["num_images"] or DEFAULT_IMAGES
    sampling = {k: common[k] for k in ("sampler", "steps", "step_scale")}
    parts = options["parts"]
    size = pipe.config.generator.image_size
    plan = ReportPlan(
        parts=None if parts is None else tuple(p.strip() for p in parts.split(",")),
        feature_steps=options["feature_steps"],
        inception=options["inception"],
        others=_others(options["ood"], size, ReportPlan.ood_images) if sets else {},
        baselines=_folders(options["baseline"]),
        control=_control(pipe, sets, common, options),
        control_key=[str(options[name]) for name in CONTROL_NAMES],
        command="hebm-train " + shlex.join(sys.argv[1:]),
    )
    check_extras(plan)
    shared: dict[str, Any] = {
        "num_images": count,
        "batch_size": common["batch_size"],
        "folder": out / "draws",
        "progress": not quiet,
    }
    if sets is not None:
        context = make_context(pipe, *sets, **shared, **sampling)
    else:
        pipe.sampling_config(**sampling)
        given = {k: v for k, v in sampling.items() if v is not None}
        context = EvaluationContext(pipe, **shared, sampling=given)
    found = write_report(context, plan, out, announce=common["announce"])
    click.echo(f"{out / 'index.html'}: {', '.join(found)}; numbers in {out / 'results.json'}")


def run_without_data(
    pipe: Any, common: dict[str, Any], options: dict[str, Any], quiet: bool
) -> dict[str, Any]:
    """Distances to the reference that comes with the package; prints them."""
    from hebm_sample.evaluation.context import EvaluationContext
    from hebm_sample.evaluation.distances import DEFAULT_IMAGES
    from hebm_sample.evaluation.report.images import show_gap
    from hebm_sample.evaluation.report.page import to_markdown
    from hebm_sample.evaluation.report.report import shipped_gap

    sampling = {k: common[k] for k in ("sampler", "steps", "step_scale")}
    pipe.sampling_config(**sampling)
    context = EvaluationContext(
        pipe,
        options["num_images"] or DEFAULT_IMAGES,
        batch_size=common["batch_size"],
        progress=not quiet,
        sampling={k: v for k, v in sampling.items() if v is not None},
    )
    found = shipped_gap(context)
    click.echo(to_markdown(show_gap(found)).rstrip())
    return found


def run_compare(options: dict[str, Any], json_path: Path | None, quiet: bool) -> None:
    """Compare two folders and print the figures."""
    from hebm_sample.evaluation.folders import compare_folders

    found = compare_folders(
        *options["compare"],
        size=options["size"],
        inception=options["inception"],
        progress=not quiet,
    )
    click.echo(found.table())
    if json_path is not None:
        write_atomically(json_path, (json.dumps(found.to_dict(), indent=2) + "\n").encode())
