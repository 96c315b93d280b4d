"""The commands of `hebm-train` that measure: evaluate and judge."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from hebm_sample.cli.data import HoldOutType, tell
from hebm_sample.cli.errors import OneLineErrors
from hebm_sample.cli.evaluate_control import CONTROL_NAMES, CONTROL_OPTIONS, run_control
from hebm_sample.cli.evaluate_report import (
    REPORT_OPTIONS,
    run_compare,
    run_report,
    run_without_data,
)
from hebm_sample.errors import UserInputError
from hebm_sample.io.files import write_atomically

__all__ = ["DEVICES", "evaluate", "judge", "load_model"]

DEVICES = click.Choice(["auto", "cpu", "cuda"])
_FILE = click.Path(dir_okay=False, path_type=Path)
_GAP_IMAGES, _CONTROL_IMAGES = 2000, 100


def _data_option(required: bool, text: str) -> Callable[..., Any]:
    return click.option("--data", required=required, metavar="SOURCE", help=text)


_DATA_OPTIONS = [
    click.option(
        "--validation",
        type=HoldOutType(),
        metavar="ROWS",
        help="Rows that training kept apart: hash, last:N or N; 0: the split `test` is held out."
        "  [default: the preset's, or hash]",
    ),
    click.option("--split", metavar="NAME", help="Split of the data that is held out."),
    click.option(
        "--device", type=DEVICES, default="auto", show_default=True, help="Where to compute."
    ),
    click.option("--quiet", is_flag=True, help="No progress bars."),
]


def _with(options: Sequence[Callable[..., Any]]) -> Callable[..., Any]:
    """These options, in this order."""

    def decorate(command: Any) -> Any:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def load_model(name: str | Path) -> Any:
    """A model's pipeline: a training run's newest checkpoint, or whatever `Pipeline` loads."""
    from hebm_sample.pipeline.pipeline import Pipeline
    from hebm_sample.training.checkpoint import latest_checkpoint
    from hebm_sample.training.export import load_run

    if Path(name).is_dir() and latest_checkpoint(name) is not None:
        return load_run(name)
    return Pipeline.from_pretrained(name, device="cpu")


def _check_folder(option: str, path: Path | None) -> None:
    """Before hours of work, not after them."""
    if path is not None and not path.absolute().parent.is_dir():
        raise UserInputError(f"{option} {path}: the folder {path.parent} does not exist")


def _opened(pipe: Any, data: str, options: dict[str, Any], quiet: bool) -> Any:
    """Training and held-out images of a model."""
    return _both_sets(data, pipe.config.generator.image_size, pipe.name, options, quiet)


def _both_sets(
    data: str, size: int, model: str | None, options: dict[str, Any], quiet: bool
) -> Any:
    """Training and held-out images, of which a line is printed."""
    from hebm_sample.evaluation.distances import held_out_by, open_held_out

    chosen = {"validation": options["validation"], "split": options["split"]}
    sets = open_held_out(data, size=size, model=model, progress=not quiet, **chosen)
    tell(data, *sets, held_out_by(model, **chosen), quiet)
    return sets


def _write_json(path: Path | None, found: dict[str, Any]) -> None:
    if path is not None:
        write_atomically(path, (json.dumps(found, indent=2) + "\n").encode())


def _typed(options: dict[str, Any], names: Sequence[str]) -> list[str]:
    return [name for name in names if options[name] not in (None, (), False)]


def _shown(names: Sequence[str]) -> str:
    return ", ".join("--" + name.removesuffix("_file").replace("_", "-") for name in names)


# Options that would be ignored: their names, whether they are (of the modes typed), and why.
_Modes = set[str]  # of report, control, compare, data
_IDLE: list[tuple[Sequence[str], Callable[[_Modes], bool], str]] = [
    (["feature_steps"], lambda m: "control" in m, "do not go with --control"),
    (CONTROL_NAMES, lambda m: not m & {"control", "report"}, "go with --control only"),
    (["parts", "ood", "baseline"], lambda m: "report" not in m, "go with --report only"),
    (["inception"], lambda m: not m & {"report", "compare"}, "go with --report or --compare only"),
    (["size"], lambda m: "compare" not in m, "go with --compare only"),
    (
        ["report", "control", "num_images", "validation", "split", "feature_steps", "data"],
        lambda m: "compare" in m,
        "do not go with --compare",
    ),
    (
        ["control", "validation", "split", "feature_steps", "ood", "baseline"],
        lambda m: "data" not in m,
        "need --data",
    ),
]


def _check_options(model: str | None, options: dict[str, Any]) -> None:
    """An option that would be ignored is an error."""
    modes = set(_typed(options, ["report", "control", "compare", "data"]))
    for names, idle, what in _IDLE:
        if idle(modes) and (typed := _typed(options, names)):
            raise UserInputError(f"{_shown(typed)} {what}")
    if modes >= {"control", "report"}:
        raise UserInputError("a report has the control tables in it; leave --control out")
    if ("compare" in modes) == (model is not None):
        raise UserInputError("give a MODEL, or two folders with --compare, and not both")
    if options["judge_file"] is not None and options["judge_steps"] is not None:
        raise UserInputError("--judge-steps trains a judge, --judge reads one; leave one out")


@click.command(cls=OneLineErrors)
@click.argument("model", required=False)
@_data_option(
    False,
    "The data it was trained on. Without them only what the package's own "
    "reference allows is measured.",
)
@_with(_DATA_OPTIONS)
@click.option(
    "-n",
    "--num-images",
    type=click.IntRange(1),
    metavar="N",
    help="Images in each set; with --control, samples a value and guidance."
    f"  [default: {_GAP_IMAGES}, {_CONTROL_IMAGES}]",
)
@click.option(
    "--feature-steps",
    type=click.IntRange(2),
    metavar="N",
    help="Steps of the classifier whose features are used.  [default: 1200]",
)
@click.option(
    "--sampler",
    type=click.Choice(["recovery", "annealed", "flow"]),
    help="In place of the model's own.",
)
@click.option(
    "--steps", type=click.IntRange(1), metavar="N", help="Gradients, in place of the model's own."
)
@click.option(
    "--step-scale", type=click.FloatRange(0), metavar="C", help="In place of the model's own."
)
@click.option(
    "--batch",
    type=click.IntRange(1),
    default=50,
    show_default=True,
    metavar="N",
    help="Images at a time.",
)
@click.option(
    "--json",
    "json_path",
    type=_FILE,
    metavar="FILE",
    help="Write the figures there too.",
)
@click.option(
    "--control",
    is_flag=True,
    help="Measure, with a judge, whether samples show what is asked; with the options below.",
)
@_with(CONTROL_OPTIONS)
@_with(REPORT_OPTIONS)
def evaluate(
    model: str | None, data: str | None, json_path: Path | None, quiet: bool, **options: Any
) -> None:
    """Measure a model on held-out images: bits, KL, Fréchet distances, gap closed; with
    --control, how often it draws what it is asked for; with --report, everything, on one page.
    """
    from hebm_sample.evaluation.distances import evaluate as evaluate_model

    _check_folder("--json", json_path)
    _check_folder("--report", options["report"])
    _check_options(model, options | {"data": data})
    if model is None:
        run_compare(options, json_path, quiet)
        return
    pipe = load_model(model).to(options["device"])
    sets: Any = None if data is None else _opened(pipe, data, options, quiet)
    common: dict[str, Any] = {
        "batch_size": options["batch"],
        "progress": not quiet,
        "announce": lambda text: None if quiet else click.echo(text, err=True),
        **{name: options[name] for name in ("sampler", "steps", "step_scale")},
    }
    if options["report"] is not None:
        run_report(pipe, sets, common, options, quiet)
        return
    if sets is None:
        _write_json(json_path, run_without_data(pipe, common, options, quiet))
        return
    if options["control"]:
        result = run_control(pipe, sets, common, options)
    else:
        result = evaluate_model(
            pipe,
            *sets,
            num_images=options["num_images"] or _GAP_IMAGES,
            feature_steps=options["feature_steps"],
            **common,
        )
    click.echo(result.table())
    _write_json(json_path, result.to_dict())


@click.command(cls=OneLineErrors)
@_data_option(True, "Images with labels.")
@_with(_DATA_OPTIONS)
@click.option(
    "--size", type=click.IntRange(16), required=True, metavar="S", help="Side of the images."
)
@click.option(
    "--column",
    "columns",
    multiple=True,
    required=True,
    metavar="NAME",
    help="Label column; repeatable.",
)
@click.option("--out", required=True, type=_FILE, metavar="FILE", help="A safetensors file.")
@click.option(
    "--steps",
    type=click.IntRange(2),
    metavar="N",
    help="Of training.  [default: ten passes over the rows]",
)
def judge(
    data: str, size: int, columns: tuple[str, ...], out: Path, quiet: bool, **options: Any
) -> None:
    """Train a judge for `evaluate --control`: a classifier of label columns, on pixels alone."""
    from hebm_sample.evaluation.classifiers import find_attribute_classifier
    from hebm_sample.pipeline.device import pick_device

    _check_folder("--out", out)
    training, held_out = _both_sets(data, size, None, options, quiet)
    _, report = find_attribute_classifier(
        training,
        held_out,
        columns,
        steps=options["steps"],
        out=out,
        device=pick_device(options["device"]),
        progress=not quiet,
    )
    for name, found in report["columns"].items():
        click.echo(
            f"{name}: accuracy {found['accuracy']:.4f}, balanced {found['balanced_accuracy']:.4f} "
            f"on {found['count']} held-out images (commonest value {found['majority']:.4f})"
        )
    click.echo(f"judge: {report['recipe']['steps']} steps; {out}")
