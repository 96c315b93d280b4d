"""`hebm-train classifier`: an attribute classifier for `hebm-eval control`."""

import copy
from pathlib import Path
from typing import Any

import click

from hebm_sample.cli.errors import OneLineErrors
from hebm_sample.cli.evaluation.options import (
    DEVICE,
    FILE,
    HELD_OUT,
    QUIET,
    check_file,
    data_option,
    open_sets,
    with_options,
)
from hebm_sample.cli.printing import say
from hebm_sample.cli.requests.grammar import known_word

__all__ = ["classifier", "judge"]


@click.command(cls=OneLineErrors)
@with_options(data_option(True, "Images with labels."), HELD_OUT, DEVICE, QUIET)
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
@click.option("--out", "-o", required=True, type=FILE, metavar="FILE", help="A safetensors file.")
@click.option("--overwrite", is_flag=True, help="Replace the file of --out.")
@click.option(
    "--steps",
    type=click.IntRange(2),
    metavar="N",
    help="Of training.  [default: ten passes over the rows]",
)
def classifier(
    data: str, size: int, columns: tuple[str, ...], out: Path, overwrite: bool, **options: Any
) -> None:
    """Train a classifier of label columns, on pixels alone, for `hebm-eval control`."""
    from hebm_sample.evaluation.classifiers import find_attribute_classifier
    from hebm_sample.pipeline.device import pick_device

    check_file("--out", out, overwrite)
    training, held_out = open_sets(data, size, None, options)
    _, report = find_attribute_classifier(
        training,
        held_out,
        [known_word(column, training.labels) for column in columns],
        steps=options["steps"],
        out=out,
        device=pick_device(options["device"]),
        progress=not options["quiet"],
    )
    for name, found in report["columns"].items():
        say(
            f"{name}: accuracy {found['accuracy']:.4f}, balanced {found['balanced_accuracy']:.4f} "
            f"on {found['count']} held-out images (commonest value {found['majority']:.4f})"
        )
    say(f"classifier: {report['recipe']['steps']} steps; {out}")


# Its name of before.
judge = copy.copy(classifier)
judge.hidden = True
