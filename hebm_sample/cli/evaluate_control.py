"""The options of `hebm-train evaluate --control`, and what they ask for."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from hebm_sample.errors import UserInputError

__all__ = ["CONTROL_NAMES", "CONTROL_OPTIONS", "run_control"]

_FILE = click.Path(dir_okay=False, path_type=Path)
_CONTROL_IMAGES = 100

# Of evaluate; refused without --control.
CONTROL_OPTIONS = [
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
        "--edit", metavar="A=VALUE", help="Edit held-out images that lack this by their labels."
    ),
    click.option(
        "--edit-images", type=click.IntRange(1), metavar="N", help="How many.  [default: 200]"
    ),
    click.option(
        "--strength", type=click.FloatRange(0, 1), metavar="S", help="Of edits.  [default: 0.77]"
    ),
    click.option(
        "--edit-guidance", type=click.FloatRange(0), metavar="W", help="Of edits.  [default: 32]"
    ),
    click.option(
        "--edit-method", type=click.Choice(["flow", "noise"]), help="Of edits.  [default: flow]"
    ),
    click.option(
        "--held-out",
        type=click.IntRange(1),
        metavar="N",
        help="Held-out images to judge and reconstruct.  [default: 2000]",
    ),
    click.option(
        "--layer-images",
        type=click.IntRange(0),
        metavar="N",
        help="Samples to vary layer by layer.  [default: 4]",
    ),
]
CONTROL_NAMES = (
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
    "edit_method",
    "held_out",
    "layer_images",
)


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
    from hebm_sample.evaluation.classifiers import parse_condition
    from hebm_sample.evaluation.control_results import ControlPlan
    from hebm_sample.pipeline.conditions import find_symbol

    def condition(text: str) -> dict[str, str]:
        return parse_condition(text, table, pipe.name)

    table = pipe.config.prior.symbols if pipe.config.prior is not None else ()
    given: dict[str, Any] = {
        "num_images": options["num_images"] or _CONTROL_IMAGES,
        **{
            name: options[name]
            for name in (
                "edit_images",
                "strength",
                "edit_guidance",
                "edit_method",
                "held_out",
                "layer_images",
            )
        },
        "guidance": options["guidance"] and _numbers(options["guidance"]),
        "combinations": tuple(condition(text) for text in options["combine"]),
        "edit": options["edit"] and condition(options["edit"]),
    }
    if options["attributes"] is not None:
        names = [name.strip() for name in options["attributes"].split(",")]
        given["attributes"] = tuple(find_symbol(table, n, pipe.name).name for n in names)
    return ControlPlan(**{k: v for k, v in given.items() if v is not None})


def run_control(pipe: Any, sets: Any, common: dict[str, Any], options: dict[str, Any]) -> Any:
    """The control tables; `sets` are training and held-out images."""
    from hebm_sample.evaluation.classifiers import find_attribute_classifier, label_columns
    from hebm_sample.evaluation.control import control
    from hebm_sample.metrics import load_attribute_classifier

    training, held_out = sets
    plan = _plan(pipe, options)
    table = pipe.config.prior.symbols if pipe.config.prior is not None else ()
    columns = label_columns(table, training, pipe.name, _columns(options["label_column"]))
    if options["judge_file"] is not None:
        found = load_attribute_classifier(options["judge_file"], device=pipe.device)
    else:
        common["announce"]("judge")
        found = find_attribute_classifier(
            training,
            held_out,
            tuple(columns.values()),
            steps=options["judge_steps"],
            device=pipe.device,
            progress=common["progress"],
        )
    return control(pipe, training, held_out, *found, columns, plan, **common)
