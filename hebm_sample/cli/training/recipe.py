"""`hebm-train recipe`: a model from nothing, by one command, and its figures."""

from pathlib import Path
from typing import Any

import click

from hebm_sample.cli.errors import OneLineErrors
from hebm_sample.cli.evaluation.options import DEVICE, QUIET, open_sets_of, write_json
from hebm_sample.cli.printing import say
from hebm_sample.cli.requests.grammar import NumberType
from hebm_sample.cli.training.options import PATH, read_images
from hebm_sample.errors import UserInputError
from hebm_sample.io.seeds import MAX_SEEDS

__all__ = ["recipe"]

IMAGES = 2000  # in each set of the evaluation
FEWEST = 10
EVALUATION = "evaluation.json"


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
@click.option(
    "-n",
    "--num-images",
    type=click.IntRange(0, MAX_SEEDS),
    default=IMAGES,
    show_default=True,
    metavar="N",
    help="Images in each set of the evaluation, of which a rehearsal has its share; 0: none.",
)
@DEVICE
@QUIET
def recipe(
    preset: str, data: str, out: Path, scale: float, num_images: int, device: str, quiet: bool
) -> None:
    """Make the model of PRESET: train generator, prior and decoder, one after another, write
    DIR/PRESET/model, and measure it on held-out images (DIR/PRESET/evaluation.json).

    Interrupted, the same line goes on where it was.
    """
    from hebm_sample.pipeline.runtime.process import tune_process
    from hebm_sample.presets.models import find_preset
    from hebm_sample.training.devices import agreed, by_first
    from hebm_sample.training.recipe import finish, run_stage, stages, start
    from hebm_sample.training.trainer import make_accelerator

    found, folder = find_preset(preset), out / preset
    tune_process(training=True)
    images: dict[int, Any] = {}
    accelerator = make_accelerator(device)
    model, chain = None, stages(found, folder, scale)
    for stage in chain:
        agreed(stage.settings, accelerator)  # before the images are read
    for stage in chain:
        if stage.size not in images:
            options = {"data": data, "out": folder, "quiet": quiet}
            images[stage.size] = read_images(options, stage.size, stage.settings.validation)
        by_first(accelerator, lambda: start(folder, found, scale, _identity(images)))
        model = run_stage(
            stage,
            images[stage.size],
            make_accelerator=lambda: accelerator,
            show_progress=not quiet,
        )
        if accelerator.is_main_process:
            say(f"{stage.folder.name}: {model.config.training[-1]}")
    if accelerator.is_main_process and model is not None:
        finish(folder, model)
        _evaluate(folder, data, round(num_images * scale), device, quiet)
        say(f"model in {folder / 'model'}; hebm-sample --dataset {folder / 'model'}")


def _evaluate(folder: Path, data: str, count: int, device: str, quiet: bool) -> None:
    """Measure the model as it was written, unless that was done; a set of images that is too
    small for it is said, and is no failure of what was trained.
    """
    from hebm_sample.cli.trained import model_to_measure
    from hebm_sample.evaluation.distances import evaluate

    if not count:
        return
    model, path = model_to_measure(str(folder / "model"), device), folder / EVALUATION
    asked = {"weights": model.weights_hash, "num_images": count}
    known = _measured(path)
    if asked == {name: known.get(name) for name in asked}:
        return
    options = {"validation": None, "split": None, "quiet": quiet}
    try:
        training, held_out = open_sets_of(model, data, options)
        result = evaluate(
            model,
            training,
            held_out,
            num_images=max(FEWEST, min(count, len(held_out) // 2)),
            progress=not quiet,
            announce=lambda text: None if quiet else say(text, err=True),
        )
    except UserInputError as error:
        say(f"not evaluated: {error}", err=True)
        return
    write_json(path, result.to_dict() | asked)
    say(result.table())


def _measured(path: Path) -> dict[str, Any]:
    """What was measured before; nothing where there is nothing that can be read."""
    from hebm_sample.io.files import parse_json
    from hebm_sample.io.kept import damaged

    try:
        return dict(parse_json(path.read_bytes())) if path.exists() else {}
    except (OSError, ValueError, TypeError) as error:
        damaged(path, error)
        return {}


def _identity(images: dict[int, Any]) -> str:
    """Of the data at their smallest size, which is read first."""
    return images[min(images)].identity
