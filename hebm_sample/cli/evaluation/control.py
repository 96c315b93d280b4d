"""`hebm-eval control`: do samples and edits follow their conditions?"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from hebm_sample.cli.errors import OneLineErrors
from hebm_sample.cli.evaluation.options import (
    BATCH,
    DEVICE,
    FILE,
    HELD_OUT,
    JSON,
    QUIET,
    SAMPLING,
    check_file,
    common_options,
    data_option,
    images_option,
    open_sets_of,
    takes_model,
    told_of,
    with_options,
    write_json,
)
from hebm_sample.cli.printing import say
from hebm_sample.cli.requests.grammar import NumberType, WordType, known_value, known_word
from hebm_sample.errors import UserInputError

__all__ = [
    "CONTROL_NAMES",
    "CONTROL_OPTIONS",
    "check_classifier",
    "check_control",
    "control",
    "measure_control",
]

_IMAGES = 100

# Of `control`, and of a report that measures it, too.
CONTROL_OPTIONS = (
    click.option(
        "--classifier",
        "--judge",
        "classifier_file",
        type=FILE,
        metavar="FILE",
        help="A trained attribute classifier.  [default: trained, and kept in the cache]",
    ),
    click.option(
        "--classifier-steps",
        "--judge-steps",
        "classifier_steps",
        type=click.IntRange(2),
        metavar="N",
        help="Steps of training a classifier.  [default: ten passes over the rows]",
    ),
    click.option(
        "--label-column",
        "label_column",
        multiple=True,
        metavar="SYMBOL=COLUMN",
        help="Column of a symbol's labels.  [default: the preset's, or the same name]",
    ),
    click.option(
        "--attributes", metavar="A,B", help="Symbols to condition on.  [default: all with labels]"
    ),
    click.option(
        "--combine",
        multiple=True,
        metavar="A=VALUE,B=VALUE",
        help="Target values together; repeatable.",
    ),
    click.option("--guidance", metavar="W,W", help="Weights to try.  [default: 0,1,2,4]"),
    click.option(
        "--edit", metavar="A=VALUE", help="Edit held-out images that lack this by their labels."
    ),
    click.option(
        "--edit-images", type=click.IntRange(1), metavar="N", help="How many.  [default: 200]"
    ),
    click.option(
        "--strength", type=NumberType(0, 1), metavar="S", help="Of edits.  [default: 0.77]"
    ),
    click.option(
        "--edit-guidance", type=NumberType(0), metavar="W", help="Of edits.  [default: 32]"
    ),
    click.option(
        "--edit-method", type=WordType(["flow", "noise"]), help="Of edits.  [default: flow]"
    ),
    click.option(
        "--held-out",
        type=click.IntRange(1),
        metavar="N",
        help="Held-out images to classify and reconstruct.  [default: 2000]",
    ),
    click.option(
        "--layer-images",
        type=click.IntRange(0),
        metavar="N",
        help="Samples to vary layer by layer.  [default: 4]",
    ),
)
_PLAN_NAMES = (
    "edit_images",
    "strength",
    "edit_guidance",
    "edit_method",
    "held_out",
    "layer_images",
)
# The order is that of a report's keys.
CONTROL_NAMES = (
    "classifier_file",
    "classifier_steps",
    "label_column",
    "attributes",
    "combine",
    "guidance",
    "edit",
    *_PLAN_NAMES,
)


@click.command(cls=OneLineErrors)
@takes_model
@with_options(
    data_option(True, "The data it was trained on, with labels."),
    HELD_OUT,
    images_option(_IMAGES, "Samples a value and guidance."),
    CONTROL_OPTIONS,
    SAMPLING,
    BATCH,
    JSON,
    DEVICE,
    QUIET,
)
def control(model: str, data: str, json_path: Path | None, **options: Any) -> None:
    """Measure how often MODEL's samples and edits show what they are conditioned on.

    An attribute classifier that shares nothing with the model says what is in them.
    """
    from hebm_sample.cli.trained import model_to_measure

    check_file("--json", json_path, options["overwrite"])
    check_classifier(options)
    pipe = model_to_measure(model, options["device"])
    sets = open_sets_of(pipe, data, options)
    result = measure_control(pipe, sets, common_options(options), options)
    write_json(json_path, result.to_dict() | told_of(pipe, sets))
    say(result.table())


def check_classifier(options: dict[str, Any]) -> None:
    """A classifier is read or trained."""
    if options["classifier_file"] is not None and options["classifier_steps"] is not None:
        raise UserInputError(
            "--classifier-steps trains a classifier, --classifier reads one; leave one out"
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
    found = [pair.split("=", 1) for pair in pairs]
    names = [name for name, _ in found]
    for name in names:
        if names.count(name) > 1:
            raise UserInputError(f"--label-column of {name} was given twice; leave one out")
    return dict(found)


def _columns_of(
    pairs: Sequence[str], symbols: Sequence[Any], columns: Sequence[str]
) -> dict[str, str]:
    """The pairs in the spelling of the model and of the data."""
    names = [symbol.name for symbol in symbols]
    return {known_word(s, names): known_word(c, columns) for s, c in _columns(pairs).items()}


def _spelt(text: str, symbols: Sequence[Any]) -> str:
    """`male=NO, smiling` in the model's spelling."""
    table, parts = {symbol.name: symbol.values for symbol in symbols}, []
    for part in text.split(","):
        name, equals, value = part.strip().partition("=")
        name = known_word(name, table)
        parts.append(f"{name}{equals}{known_value(value, table.get(name, ()))}")
    return ",".join(parts)


def _symbols(pipe: Any) -> Any:
    return pipe.config.prior.symbols if pipe.config.prior is not None else ()


def _plan(pipe: Any, options: dict[str, Any]) -> Any:
    """What the control options ask for; what was not typed is `ControlPlan`'s default."""
    from hebm_sample.evaluation.classifiers import parse_condition
    from hebm_sample.evaluation.control_results import ControlPlan
    from hebm_sample.pipeline.conditions import find_symbol

    def condition(text: str) -> dict[str, str]:
        return parse_condition(_spelt(text, table), table, pipe.name)

    table = _symbols(pipe)
    given: dict[str, Any] = {name: options[name] for name in _PLAN_NAMES}
    given |= {
        "num_images": options["num_images"] or _IMAGES,
        "guidance": options["guidance"] and _numbers(options["guidance"]),
        "combinations": tuple(condition(text) for text in options["combine"]),
        "edit": options["edit"] and condition(options["edit"]),
    }
    if options["attributes"] is not None:
        known = [symbol.name for symbol in table]
        names = [known_word(name.strip(), known) for name in options["attributes"].split(",")]
        names = [find_symbol(table, n, pipe.name).name for n in names]
        for name in names:
            if names.count(name) > 1:
                raise UserInputError(f"--attributes has {name} twice; leave one out")
        given["attributes"] = tuple(names)
    return ControlPlan(**{k: v for k, v in given.items() if v is not None})


def _check_trained(
    path: Any, report: dict[str, Any], sets: Any, announce: Callable[[str], object]
) -> None:
    """`UserInputError` for a classifier that was trained on rows that count as held out: it knows
    them, so that the accuracies on real images and on reconstructions would be too high.
    """
    from hebm_sample.training.record import trained_on

    training, held_out = sets
    data = str(report.get("data") or "")
    if trained_on(data, training.identity, held_out.identity):
        raise UserInputError(
            f"--classifier {path} was trained with other rows held out of these data: some of the "
            f"{len(held_out)} rows that would count as held out were trained on; train it again "
            "with the same --validation, or leave --classifier out"
        )
    if not data:
        announce(f"{path} does not say which rows it was trained on")


def check_control(pipe: Any, sets: Any, options: dict[str, Any]) -> tuple[Any, dict[str, str]]:
    """What the control options ask for, and each symbol's column; `UserInputError` for what is
    malformed or not there, and for a classifier's file that does not fit.
    """
    from hebm_sample.evaluation.classifiers import label_columns
    from hebm_sample.evaluation.control import check_classifier_columns
    from hebm_sample.metrics import load_attribute_classifier

    training, plan = sets[0], _plan(pipe, options)
    named = _columns_of(options["label_column"], _symbols(pipe), list(training.labels))
    columns = label_columns(_symbols(pipe), training, pipe.name, named)
    if (path := options["classifier_file"]) is not None:
        classifier, report = load_attribute_classifier(path)
        size = pipe.config.generator.image_size
        if classifier.size != size:
            raise UserInputError(
                f"--classifier {path} takes images of {classifier.size}x{classifier.size}; "
                f"{pipe.name} makes {size}x{size}"
            )
        _check_values(path, report, training)
        check_classifier_columns(classifier, columns, plan)
    return plan, columns


def _check_values(path: Any, report: dict[str, Any], training: Any) -> None:
    """`UserInputError` for a classifier whose labels had other meanings than those of the data."""
    for column, values in (report.get("values") or {}).items():
        now = training.label_names.get(column)
        if now is not None and list(now) != list(values):
            raise UserInputError(
                f"--classifier {path} was trained with the values {', '.join(values[:12])} of "
                f"{column!r}, which are {', '.join(now[:12])} in these data: they must agree in "
                "order"
            )


def measure_control(pipe: Any, sets: Any, common: dict[str, Any], options: dict[str, Any]) -> Any:
    """The control tables; `sets` are training and held-out images."""
    from hebm_sample.evaluation.classifiers import find_attribute_classifier
    from hebm_sample.evaluation.control import control
    from hebm_sample.evaluation.duration import expected_control_line
    from hebm_sample.metrics import load_attribute_classifier

    training, held_out = sets
    plan, columns = check_control(pipe, sets, options)
    if options["classifier_file"] is not None:
        found = load_attribute_classifier(options["classifier_file"], device=pipe.device)
        _check_trained(options["classifier_file"], found[1], sets, common["announce"])
    else:
        common["announce"]("attribute classifier")
        found = find_attribute_classifier(
            training,
            held_out,
            tuple(columns.values()),
            steps=options["classifier_steps"],
            device=pipe.device,
            progress=common["progress"],
        )
    if not options["quiet"]:
        settings = {k: v for k, v in common.items() if k not in ("announce", "progress")}
        line = expected_control_line(pipe, plan, columns, len(held_out), **settings)
        common["announce"](line)
    return control(pipe, training, held_out, *found, columns, plan, **common)
