"""`hebm-train baseline`: train what the energy-based prior is compared with."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from hebm_sample.cli.data import HASH, check_run, tell
from hebm_sample.cli.errors import OneLineErrors
from hebm_sample.cli.evaluation.options import DEVICE, QUIET
from hebm_sample.cli.options import ModelType
from hebm_sample.cli.printing import say
from hebm_sample.cli.requests.grammar import WordType
from hebm_sample.cli.trained import DurationType, PresetType, load_model
from hebm_sample.errors import UserInputError

__all__ = ["baseline"]


@click.command(cls=OneLineErrors)
@click.argument("kind", type=WordType(["ddpm", "joint-ebm"]))
@click.option(
    "--generator",
    required=True,
    type=ModelType(),
    metavar="MODEL",
    help="The model whose generator is used.",
)
@click.option("--data", required=True, metavar="SOURCE", help="The data it was trained on.")
@click.option(
    "--out",
    "-o",
    required=True,
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Of the run.",
)
@click.option(
    "--preset",
    type=PresetType(),
    metavar="NAME",
    help="Settings of the run.  [default: the model's name]",
)
@click.option("--max-steps", type=click.IntRange(1), metavar="N", help="Steps.")
@click.option("--time-budget", type=DurationType(), metavar="TIME", help="Instead: 90s, 3m, 1.5h.")
@click.option("--resume", is_flag=True, help="Go on from the newest whole checkpoint in --out.")
@DEVICE
@QUIET
def baseline(
    kind: str, generator: str, data: str, out: Path, preset: str | None, **options: Any
) -> None:
    """Train a baseline on a model's generator, with its prior's settings: a latent diffusion
    model (ddpm) or an energy-based prior without diffusion (joint-ebm, T = 1).

    `hebm-eval report MODEL --data DATA --out OUT --baseline NAME=DIR` measures it beside the
    model; DIR is --out for ddpm, --out/model for joint-ebm.
    """
    from hebm_sample.pipeline.runtime.process import tune_process
    from hebm_sample.training.trainer import make_accelerator

    tune_process(training=True)
    model = load_model(generator)
    preset_of_run = _with_rows_of(model, _preset(preset or _own_preset(model), options))
    images = _images(data, out, model, preset_of_run, options["quiet"])
    run: dict[str, Any] = {
        "resume": options["resume"],
        "accelerator": make_accelerator(options["device"]),
        "show_progress": not options["quiet"],
    }
    result, where = _train(kind, preset_of_run, model, images, out, run)
    say(f"{kind}: {result.steps} steps in {result.seconds:.0f} s; in {where}")


def _own_preset(model: Any) -> str:
    """The preset of the model's energies: of those that were trained at another size, that of the
    size.
    """
    from hebm_sample.presets.models import PRESETS

    sizes = [record.image_size for record in model.config.training if record.part == "prior"]
    sized = f"{model.name}-{sizes[-1]}" if sizes else model.name
    return sized if sized in PRESETS else model.name


def _preset(name: str, options: dict[str, Any]) -> Any:
    """The preset, with the length that was typed."""
    from hebm_sample.presets.models import find_preset

    steps, budget = options["max_steps"], options["time_budget"]
    if steps is not None and budget is not None:
        raise UserInputError(
            "--max-steps and --time-budget were both given; leave one of them out"
        )
    preset = find_preset(name)
    if steps is None and budget is None:
        return preset
    settings = replace(preset.prior_settings, steps=steps, time_budget=budget)
    return replace(preset, prior_settings=settings)


def _with_rows_of(model: Any, preset: Any) -> Any:
    """The preset, with the rows held out that the model's own runs held out."""
    from hebm_sample.training.record import held_out_rule_of

    rule = held_out_rule_of(model.config.training, model.config.generator.image_size)
    if rule is None:
        return preset
    settings = replace(preset.prior_settings, validation=None if rule == HASH else rule)
    return replace(preset, prior_settings=settings)


def _images(data: str, out: Path, model: Any, preset: Any, quiet: bool) -> Any:
    """The data, of which a line is printed."""
    from hebm_sample.data.dataset import load_images
    from hebm_sample.data.summary import held_out_rule

    check_run(data, out)
    images = load_images(data, size=model.config.generator.image_size, progress=not quiet)
    validation = preset.prior_settings.validation
    tell(data, *images.split(validation), held_out_rule(validation), quiet)
    return images


def _train(
    kind: str, preset: Any, model: Any, images: Any, out: Path, run: dict[str, Any]
) -> tuple[Any, Path]:
    """The run's result, and the folder that a report takes."""
    from hebm_sample.evaluation.baselines import joint_ebm
    from hebm_sample.evaluation.latent_ddpm import train_ddpm
    from hebm_sample.training.train import train_prior

    if kind == "ddpm":
        return train_ddpm(preset, model, images, out, **run), out
    result = train_prior(joint_ebm(preset), model, images, out, objective="mle", **run)
    return result, out / "model"
