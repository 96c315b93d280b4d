"""`hebm-train recipe`: a model from nothing, by one command, and its figures."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import click

from hebm_sample.cli.errors import OneLineErrors
from hebm_sample.cli.evaluation.options import DEVICE, QUIET
from hebm_sample.cli.printing import say
from hebm_sample.cli.requests.grammar import NumberType
from hebm_sample.cli.trained import PresetType
from hebm_sample.cli.training.measured import IMAGES, Measured
from hebm_sample.cli.training.options import (
    COMPILE,
    DTYPE,
    LABELS,
    PATH,
    check_labels,
    needed,
    read_images,
    symbols_line,
)
from hebm_sample.errors import UserInputError
from hebm_sample.io.seeds import MAX_SEEDS

__all__ = ["recipe"]


@click.command(cls=OneLineErrors)
@click.argument("preset", type=PresetType())
@click.option("--data", metavar="SOURCE", help="As of the other commands.  [required]")
@click.option(
    "--out", "-o", type=PATH, metavar="DIR", help="Its runs go to DIR/PRESET.  [required]"
)
@click.option(
    "--scale",
    type=NumberType(0, 1, min_open=True),
    default=1.0,
    show_default=True,
    metavar="X",
    help="Share of all steps, for a rehearsal.",
)
@click.option(
    "-n",
    "--num-images",
    "--num",
    type=click.IntRange(0, MAX_SEEDS),
    default=IMAGES,
    show_default=True,
    metavar="N",
    help="Images in each set of the evaluation, of which a rehearsal has its share; 0: none.",
)
@LABELS
@DTYPE
@COMPILE
@click.option(
    "--dry-run",
    is_flag=True,
    help="Say what each stage would take, from a few steps at a small batch; write nothing. Needs "
    "neither --data nor --out.",
)
@DEVICE
@QUIET
def recipe(preset: str, num_images: int, dry_run: bool, **options: Any) -> None:
    """Make the model of PRESET: train generator, prior and decoder, one after another, write
    DIR/PRESET/model, calibrate its scores, measure the crop of its faces, and measure it on
    held-out images (DIR/PRESET/evaluation.json).

    Interrupted, the same line goes on where it was.
    """
    from hebm_sample.presets.models import find_preset

    found = find_preset(preset)
    _check_symbols(found, options["labels"])
    if dry_run:
        _dry_run(found, options)
        return
    needed(options, "data", "out")
    folder = options["out"] / preset
    if not _trained(found, folder, options):
        return
    measured = Measured(
        folder, options["data"], options["scale"], options["device"], options["quiet"]
    )
    if found.faces:
        measured.crop()
    measured.calibrate()
    measured.evaluate(round(num_images * options["scale"]))
    say(f"model in {folder / 'model'}; hebm-sample --dataset {folder / 'model'}")


def _check_symbols(preset: Any, labels: Sequence[str] | None) -> None:
    """`UserInputError` if labels are to become symbols of a preset that has some."""
    if labels and preset.prior.symbols:
        names = ", ".join(symbol.name for symbol in preset.prior.symbols)
        raise UserInputError(
            f"preset {preset.name} has symbols of its own ({names}); leave --labels out, or take "
            "a preset without, such as images64"
        )


def _trained(preset: Any, folder: Path, options: dict[str, Any]) -> bool:
    """Go through the stages and write the last one's model; whether this is the process that
    goes on alone.
    """
    from hebm_sample.pipeline.runtime.process import tune_process
    from hebm_sample.training.devices import agreed, by_first
    from hebm_sample.training.recipe import finish, run_stage, stages, start
    from hebm_sample.training.trainer import make_accelerator

    tune_process(training=True)
    images: dict[int, Any] = {}
    accelerator = make_accelerator(options["device"])
    scale, labels, quiet = options["scale"], options["labels"], options["quiet"]
    model, chain = None, stages(preset, folder, scale, _how(options))
    for stage in chain:
        agreed(stage.settings, accelerator, _how(options))  # before the images are read
    check_labels(preset, options["data"], chain[0].size, labels)
    for stage in chain:
        if stage.size not in images:
            images[stage.size] = _images(stage, folder, options)
        identity = images[min(images)].identity  # at their smallest size, which is read first
        by_first(accelerator, partial(start, folder, preset, scale, identity, labels))
        model = run_stage(
            _labelled(stage, images[stage.size], labels, quiet),
            images[stage.size],
            make_accelerator=lambda: accelerator,
            show_progress=not quiet,
        )
        if accelerator.is_main_process:
            say(f"{stage.folder.name}: {model.config.training[-1]}")
    if accelerator.is_main_process and model is not None:
        finish(folder, model, preset)
        return True
    return False


def _how(options: dict[str, Any]) -> dict[str, Any]:
    """Settings of all stages that were typed."""
    return {k: options[k] for k in ("dtype", "compile") if options[k] is not None}


def _images(stage: Any, folder: Path, options: dict[str, Any]) -> Any:
    """The data at the size of a stage, of which a line is printed."""
    settings = {"data": options["data"], "out": folder, "quiet": options["quiet"]}
    return read_images(settings, stage.size, stage.settings.validation)


def _labelled(stage: Any, images: Any, labels: Sequence[str] | None, quiet: bool) -> Any:
    """The stage, its prior with symbols of the data's columns where they are asked for."""
    from hebm_sample.training.label_columns import with_labels

    if not labels or stage.part != "prior":
        return stage
    preset = with_labels(stage.preset, (images.labels, images.label_names), labels)
    if not quiet:
        say(symbols_line(preset), err=True)
    return replace(stage, preset=preset)


# Before it is begun


def _dry_run(preset: Any, options: dict[str, Any]) -> None:
    """Print what each stage would take, from a few steps of it."""
    from hebm_sample.evaluation.duration import in_words
    from hebm_sample.training.recipe import stages

    folder = (options["out"] or Path()) / preset.name
    rows, preset = _rows(preset, options)
    total = 0.0
    for stage in stages(preset, folder, options["scale"], _how(options)):
        if not options["quiet"]:
            say(f"measuring a step of {stage.folder.name} ...", err=True)
        seconds, line = _stage_line(stage, rows, options["device"])
        done = options["out"] is not None and stage.done
        total += 0.0 if done else seconds
        say(f"{stage.folder.name:14} {line}{'; done' if done else ''}")
    ends = "crop, calibration" if preset.faces else "calibration"
    timed = ", timed without --compile, an upper bound" if options["compile"] else ""
    say(
        f"about {in_words(total)} in all on this device{timed}, and {ends} and evaluation; "
        "nothing was written"
    )


def _rows(preset: Any, options: dict[str, Any]) -> tuple[int | None, Any]:
    """How many images the data have, of which a line is printed, and the preset with symbols of
    their labels; the preset alone without data.
    """
    from hebm_sample.cli.training.runs import labelled
    from hebm_sample.data.sources import open_source
    from hebm_sample.data.summary import source_line

    data = options["data"]
    if data is None:
        return None, labelled(preset, options, None)
    source = open_source(data, None)
    if not options["quiet"]:
        say(source_line(data, source), err=True)
    return source.total, labelled(preset, options, source)


def _stage_line(stage: Any, rows: int | None, device: str) -> tuple[float, str]:
    """Seconds of a stage, and what it would do in a line."""
    from hebm_sample.evaluation.duration import in_words
    from hebm_sample.pipeline.device import pick_device
    from hebm_sample.training.costs.dry_run import dry_run
    from hebm_sample.training.recipe import smaller_model

    where, smaller = pick_device(device), smaller_model(stage)
    found = dry_run(stage.part, stage.preset, where, model=smaller, images=rows)
    seconds, seen = found.step_seconds * found.steps, found.steps * found.batch
    times = f", {seen / rows:,.1f} times through {rows:,}" if rows else ""
    return seconds, (
        f"{found.steps:,} steps of {found.batch} images, {seen:,} images to be seen{times}; "
        f"{found.step_seconds:.3g} s a step, about {in_words(seconds)}"
    )
