"""The commands of `hebm-train` that measure: evaluate, with its control tables, and judge."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from hebm_sample.console import OneLineErrors
from hebm_sample.errors import UserInputError
from hebm_sample.hub.files import write_atomically

__all__ = ["DEVICES", "evaluate", "judge", "load_model"]

DEVICES = click.Choice(["auto", "cpu", "cuda"])
_FILE = click.Path(dir_okay=False, path_type=Path)
_GAP_IMAGES, _CONTROL_IMAGES = 2000, 100

_DATA_OPTIONS = [
    click.option(
        "--data",
        required=True,
        metavar="SOURCE",
        help="The data it was trained on, validation rows last.",
    ),
    click.option(
        "--validation",
        type=click.IntRange(0),
        metavar="N",
        help="Rows at the end that training kept apart; 0: the split `test` is held out."
        "  [default: the preset's, or 4000]",
    ),
    click.option("--split", metavar="NAME", help="Split of the data that is held out."),
    click.option(
        "--device", type=DEVICES, default="auto", show_default=True, help="Where to compute."
    ),
    click.option("--quiet", is_flag=True, help="No progress bars."),
]

# Of evaluate; refused without --control.
_CONTROL_OPTIONS = [
    click.option(
        "--judge",
        "judge_file",
        type=_FILE,
        metavar="FILE",
        help="A trained judge.  [default: trained, and kept in the cache]",
    ),
    click.option(
        "--judge-steps",
        type=click.IntRange(2),
        metavar="N",
        help="Steps of training a judge.  [default: ten passes over the rows]",
    ),
    click.option(
        "--label-column",
        "label_column",
        multiple=True,
        metavar="SYMBOL=COLUMN",
        help="Column of a symbol's labels.  [default: the preset's, or the same name]",
    ),
    click.option(
        "--attributes", metavar="A,B", help="Symbols to ask for.  [default: all with labels]"
    ),
    click.option(
        "--combine",
        multiple=True,
        metavar="A=VALUE,B=VALUE",
        help="Values to ask for together; repeatable.",
    ),
    click.option("--guidance", metavar="W,W", help="Weights to try.  [default: 0,1,2,4]"),
    click.option(
        "--edit", metavar="A=VALUE", help="Edit held-out pictures that lack this by their labels."
    ),
    click.option(
        "--edit-images", type=click.IntRange(1), metavar="N", help="How many.  [default: 200]"
    ),
    click.option(
        "--strength", type=click.FloatRange(0, 1), metavar="S", help="Of edits.  [default: 0.6]"
    ),
    click.option(
        "--edit-guidance", type=click.FloatRange(0), metavar="W", help="Of edits.  [default: 1]"
    ),
    click.option(
        "--held-out",
        type=click.IntRange(1),
        metavar="N",
        help="Held-out pictures to judge and reconstruct.  [default: 2000]",
    ),
    click.option(
        "--layer-images",
        type=click.IntRange(0),
        metavar="N",
        help="Samples to vary layer by layer.  [default: 4]",
    ),
]
_CONTROL_NAMES = (
    "judge_file",
    "judge_steps",
    "label_column",
    "attributes",
    "combine",
    "guidance",
    "edit",
    "edit_images",
    "strength",
    "edit_guidance",
    "held_out",
    "layer_images",
)


def _with(options: Sequence[Callable[..., Any]]) -> Callable[..., Any]:
    """These options, in this order."""

    def decorate(command: Any) -> Any:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def load_model(name: str | Path) -> Any:
    """A model's pipeline: a training run's newest checkpoint, or whatever `Pipeline` loads."""
    from hebm_sample.pipeline import Pipeline
    from hebm_sample.training.checkpoint import latest_checkpoint
    from hebm_sample.training.export import load_run

    if Path(name).is_dir() and latest_checkpoint(name) is not None:
        return load_run(name)
    return Pipeline.from_pretrained(name, device="cpu")


def _check_folder(option: str, path: Path | None) -> None:
    """Before hours of work, not after them."""
    if path is not None and not path.absolute().parent.is_dir():
        raise UserInputError(f"{option} {path}: the folder {path.parent} does not exist")


def _check_options(options: dict[str, Any]) -> None:
    """An option that would be ignored is an error."""
    if options["control"]:
        idle = ["feature_steps"] if options["feature_steps"] is not None else []
    else:
        idle = [name for name in _CONTROL_NAMES if options[name] not in (None, ())]
    if idle:
        shown = ", ".join("--" + name.removesuffix("_file").replace("_", "-") for name in idle)
        what = "do not go with --control" if options["control"] else "go with --control only"
        raise UserInputError(f"{shown} {what}")
    if options["judge_file"] is not None and options["judge_steps"] is not None:
        raise UserInputError("--judge-steps trains a judge, --judge reads one; leave one out")


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise UserInputError(f"--guidance is {text!r}; write numbers such as 0,1,2,4") from error


def _columns(pairs: Sequence[str]) -> dict[str, str]:
    for pair in pairs:
        if not all(pair.partition("=")):
            raise UserInputError(f"--label-column is {pair!r}; write SYMBOL=COLUMN")
    return dict(pair.split("=", 1) for pair in pairs)


def _plan(pipe: Any, options: dict[str, Any]) -> Any:
    """What the control options ask for; what was not typed is `ControlPlan`'s default."""
    from hebm_sample.conditions import find_symbol
    from hebm_sample.training.control_report import ControlPlan
    from hebm_sample.training.judging import parse_wish

    def wish(text: str) -> dict[str, str]:
        return parse_wish(text, table, pipe.name)

    table = pipe.config.prior.symbols if pipe.config.prior is not None else ()
    given: dict[str, Any] = {
        "num_images": options["num_images"] or _CONTROL_IMAGES,
        **{
            name: options[name]
            for name in ("edit_images", "strength", "edit_guidance", "held_out", "layer_images")
        },
        "guidance": options["guidance"] and _numbers(options["guidance"]),
        "combinations": tuple(wish(text) for text in options["combine"]),
        "edit": options["edit"] and wish(options["edit"]),
    }
    if options["attributes"] is not None:
        names = [name.strip() for name in options["attributes"].split(",")]
        given["attributes"] = tuple(find_symbol(table, n, pipe.name).name for n in names)
    return ControlPlan(**{k: v for k, v in given.items() if v is not None})


def _control(pipe: Any, training: Any, held_out: Any, common: Any, options: dict[str, Any]) -> Any:
    """The control tables."""
    from hebm_sample.metrics import load_judge
    from hebm_sample.training.control import control
    from hebm_sample.training.judging import find_judge, label_columns

    plan = _plan(pipe, options)
    table = pipe.config.prior.symbols if pipe.config.prior is not None else ()
    columns = label_columns(table, training, pipe.name, _columns(options["label_column"]))
    if options["judge_file"] is not None:
        found = load_judge(options["judge_file"], device=pipe.device)
    else:
        common["announce"]("judge")
        found = find_judge(
            training,
            held_out,
            tuple(columns.values()),
            steps=options["judge_steps"],
            device=pipe.device,
            progress=common["progress"],
        )
    return control(pipe, training, held_out, *found, columns, plan, **common)


@click.command(cls=OneLineErrors)
@click.argument("model")
@_with(_DATA_OPTIONS)
@click.option(
    "-n",
    "--num-images",
    type=click.IntRange(1),
    metavar="N",
    help="Pictures in each set; with --control, samples a value and guidance."
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
    help="Pictures at a time.",
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
@_with(_CONTROL_OPTIONS)
def evaluate(model: str, data: str, json_path: Path | None, quiet: bool, **options: Any) -> None:
    """Measure a model on held-out pictures: bits, KL, Fréchet distances, gap closed; or with
    --control, how often it draws what it is asked for.
    """
    from hebm_sample.training.evaluate import DEFAULT_FEATURE_STEPS, open_held_out
    from hebm_sample.training.evaluate import evaluate as evaluate_model

    _check_folder("--json", json_path)
    _check_options(options)
    pipe = load_model(model).to(options["device"])
    sets = open_held_out(
        data,
        size=pipe.config.generator.image_size,
        model=pipe.name,
        validation=options["validation"],
        split=options["split"],
        progress=not quiet,
    )
    common: dict[str, Any] = {
        "batch_size": options["batch"],
        "progress": not quiet,
        "announce": lambda text: None if quiet else click.echo(text, err=True),
        **{name: options[name] for name in ("sampler", "steps", "step_scale")},
    }
    if options["control"]:
        result = _control(pipe, *sets, common, options)
    else:
        result = evaluate_model(
            pipe,
            *sets,
            num_pictures=options["num_images"] or _GAP_IMAGES,
            feature_steps=options["feature_steps"] or DEFAULT_FEATURE_STEPS,
            **common,
        )
    click.echo(result.table())
    if json_path is not None:
        write_atomically(json_path, (json.dumps(result.to_dict(), indent=2) + "\n").encode())


@click.command(cls=OneLineErrors)
@_with(_DATA_OPTIONS)
@click.option(
    "--size", type=click.IntRange(16), required=True, metavar="S", help="Side of the pictures."
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
    from hebm_sample.device import pick_device
    from hebm_sample.training.evaluate import open_held_out
    from hebm_sample.training.judging import find_judge

    _check_folder("--out", out)
    sets = open_held_out(
        data,
        size=size,
        validation=options["validation"],
        split=options["split"],
        progress=not quiet,
    )
    _, report = find_judge(
        *sets,
        columns,
        steps=options["steps"],
        out=out,
        device=pick_device(options["device"]),
        progress=not quiet,
    )
    for name, found in report["columns"].items():
        click.echo(
            f"{name}: accuracy {found['accuracy']:.4f}, balanced {found['balanced_accuracy']:.4f} "
            f"on {found['count']} held-out pictures (commonest value {found['majority']:.4f})"
        )
    click.echo(f"judge: {report['recipe']['steps']} steps; {out}")
