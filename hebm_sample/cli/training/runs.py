"""`hebm-train generator`, `prior` and `decoder`: one run in one folder each."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from hebm_sample.cli.errors import OneLineErrors
from hebm_sample.cli.printing import say
from hebm_sample.cli.trained import load_model
from hebm_sample.cli.training.options import (
    check_resume,
    needed,
    read_images,
    run_options,
    typed_preset,
)

__all__ = ["decoder", "generator", "prior"]


def _dry_run(kind: Any, preset: Any, options: dict[str, Any], model: str | None) -> None:
    """Print what the run would take."""
    from hebm_sample.data.sources import open_source
    from hebm_sample.pipeline.device import pick_device
    from hebm_sample.training.costs.dry_run import dry_run

    rows = open_source(options["data"], None).total if options["data"] else None
    if not options["quiet"]:
        say("measuring a step of a few images ...", err=True)
    estimate = dry_run(
        kind,
        preset,
        pick_device(options["device"]),
        objective=options.get("objective"),
        model=load_model(model) if model else None,
        images=rows,
    )
    say("\n".join(estimate.lines()))


def _announce(kind: str, folder: Path, result: Any) -> None:
    skipped = f", {result.skipped} skipped" if result.skipped else ""
    best = result.best
    kept = f"; weights of step {best['step']}, the best on held-out images" if best else ""
    say(
        f"{kind}: {result.steps} steps in {result.seconds:.0f} s{skipped}{kept}; "
        f"model in {folder / 'model'}"
    )


def _train(kind: Any, options: dict[str, Any], run: Callable[..., Any]) -> None:
    """Read what was typed and run it.

    Arguments:
        run: (preset, model of --generator or None, data, keyword arguments) to its result.
    """
    preset, base = typed_preset(kind, options), options.get("generator")
    if options.get("dry_run"):
        return _dry_run(kind, preset, options, base or options.get("init"))
    needed(options, *(["generator"] if "generator" in options else []), "data", "out")
    check_resume(options)
    from hebm_sample.pipeline.runtime.process import tune_process
    from hebm_sample.training.trainer import make_accelerator

    model = load_model(base) if base else None
    config = preset.generator if model is None else model.config.generator
    tune_process(training=True)
    accelerator = make_accelerator(options["device"])
    settings = getattr(preset, f"{kind}_settings")
    more = {"init": options["init"] and load_model(options["init"])} if "init" in options else {}
    result = run(
        preset,
        model,
        read_images(options, config.image_size, settings.validation),
        folder=options["out"],
        resume=options["resume"],
        accelerator=accelerator,
        show_progress=not options["quiet"],
        **more,
    )
    if accelerator.is_main_process:
        _announce(kind, options["out"], result)


_INIT = click.option("--init", metavar="MODEL", help="Fine-tune from this model.")
_DRY_RUN = click.option(
    "--dry-run",
    is_flag=True,
    help="Say what the run would take, from one step at a small batch; write nothing. "
    "Needs neither --data nor --out.",
)
_GENERATOR = click.option(
    "--generator",
    metavar="MODEL",
    help="Generator: its run's folder, or a model.  [required, except with --dry-run]",
)


@click.command(cls=OneLineErrors)
@run_options
@_INIT
@_DRY_RUN
def generator(**options: Any) -> None:
    """Train a generator and its encoder; ends with a model folder in DIR/model."""

    def run(preset: Any, _: Any, images: Any, **how: Any) -> Any:
        from hebm_sample.training.train import train_generator

        return train_generator(preset, images, **how)

    _train("generator", options, run)


@click.command(cls=OneLineErrors)
@_GENERATOR
@click.option(
    "--objective",
    type=click.Choice(["score", "mle"]),
    help="Score matching, or the paper's maximum likelihood.  [default: the preset's]",
)
@run_options
@_INIT
@_DRY_RUN
def prior(**options: Any) -> None:
    """Train the energy-based prior of a frozen generator; ends with a model folder in
    DIR/model.
    """

    def run(preset: Any, model: Any, images: Any, **how: Any) -> Any:
        from hebm_sample.training.train import train_prior

        objective = options["objective"] or preset.objective
        return train_prior(preset, model, images, objective=objective, **how)

    _train("prior", options, run)


@click.command(cls=OneLineErrors)
@click.option(
    "--generator",
    metavar="MODEL",
    help="A run's folder, or a model, with a prior or without.  [required]",
)
@run_options
def decoder(**options: Any) -> None:
    """Train a sharp image decoder of a frozen model against a discriminator; ends with a model
    folder in DIR/model.

    Images are shown with it from then on. The likelihood's decoder, the encoder and the prior stay
    as they are.
    """

    def run(preset: Any, model: Any, images: Any, **how: Any) -> Any:
        from hebm_sample.training.train_decoder import train_decoder

        return train_decoder(preset, model, images, **how)

    _train("decoder", options, run)
