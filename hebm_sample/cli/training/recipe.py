"""`hebm-train recipe`: a model from nothing, by one command."""

from pathlib import Path
from typing import Any

import click

from hebm_sample.cli.errors import OneLineErrors
from hebm_sample.cli.evaluation.options import DEVICE, QUIET
from hebm_sample.cli.printing import say
from hebm_sample.cli.requests.grammar import NumberType
from hebm_sample.cli.training.options import PATH, read_images

__all__ = ["recipe"]


@click.command(cls=OneLineErrors)
@click.argument("preset")
@click.option("--data", required=True, metavar="SOURCE", help="As of the other commands.")
@click.option("--out", required=True, type=PATH, metavar="DIR", help="Its runs go to DIR/PRESET.")
@click.option(
    "--scale",
    type=NumberType(0, 1, min_open=True),
    default=1.0,
    show_default=True,
    metavar="X",
    help="Share of all steps, for a rehearsal.",
)
@DEVICE
@QUIET
def recipe(preset: str, data: str, out: Path, scale: float, device: str, quiet: bool) -> None:
    """Make the model of PRESET: train generator, prior and decoder, one after another, and write
    DIR/PRESET/model.

    Interrupted, the same line goes on where it was.
    """
    from hebm_sample.pipeline.runtime.process import tune_process
    from hebm_sample.presets.models import find_preset
    from hebm_sample.training.recipe import run_stage, stages, start
    from hebm_sample.training.trainer import make_accelerator

    found, folder = find_preset(preset), out / preset
    tune_process(training=True)
    images: dict[int, Any] = {}
    accelerator = make_accelerator(device)
    model = None
    for stage in stages(found, folder, scale):
        if stage.size not in images:
            options = {"data": data, "out": folder, "quiet": quiet}
            images[stage.size] = read_images(options, stage.size, stage.settings.validation)
        if accelerator.is_main_process:
            start(folder, found, scale, _identity(images))
        model = run_stage(
            stage,
            images[stage.size],
            make_accelerator=lambda: accelerator,
            show_progress=not quiet,
        )
        if accelerator.is_main_process:
            say(f"{stage.folder.name}: {model.config.training[-1]}")
    if accelerator.is_main_process and model is not None:
        model.save_pretrained(folder / "model", overwrite=True)
        say(f"model in {folder / 'model'}; hebm-sample --dataset {folder / 'model'}")


def _identity(images: dict[int, Any]) -> str:
    """Of the data at their smallest size, which is read first."""
    return images[min(images)].identity
