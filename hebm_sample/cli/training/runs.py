"""`hebm-train generator`, `prior` and `decoder`: one run in one folder each."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from hebm_sample.cli.errors import OneLineErrors
from hebm_sample.cli.options import ModelType
from hebm_sample.cli.printing import say
from hebm_sample.cli.requests.grammar import WordType
from hebm_sample.cli.trained import load_model
from hebm_sample.cli.training.options import (
    LABELS,
    check_folder,
    check_labels,
    check_resume,
    check_rows,
    needed,
    read_images,
    run_options,
    symbols_line,
    typed_preset,
    typed_settings,
)

__all__ = ["decoder", "generator", "labelled", "prior"]


def _dry_run(kind: Any, preset: Any, options: dict[str, Any], check: Callable[..., Any]) -> None:
    """Print what the run would take; models are refused by `check` as the run would."""
    from hebm_sample.data.sources import open_source
    from hebm_sample.data.summary import source_line
    from hebm_sample.pipeline.device import pick_device
    from hebm_sample.training.costs.dry_run import dry_run

    base, init = (_loaded(options, name) for name in ("generator", "init"))
    check(preset, base, init)
    source = open_source(options["data"], None) if options["data"] else None
    if source is not None and not options["quiet"]:
        say(source_line(options["data"], source), err=True)
    if kind == "prior":
        preset = labelled(preset, options, source)
    if source is not None:
        check_rows(options["data"], getattr(preset, f"{kind}_settings").validation)
    if not options["quiet"]:
        say("measuring a step of a few images ...", err=True)
    estimate = dry_run(
        kind,
        preset,
        pick_device(options["device"]),
        objective=options.get("objective"),
        model=init if base is None else base,
        images=None if source is None else source.total,
    )
    say("\n".join(estimate.lines()))


def _loaded(options: dict[str, Any], name: str) -> Any:
    """The model of an option; None where it is left out, or the command has none of that name."""
    return None if options.get(name) is None else load_model(options[name])


def labelled(preset: Any, options: dict[str, Any], source: Any) -> Any:
    """The preset, with symbols of the data's columns where they are asked for, for a dry run."""
    from hebm_sample.training.label_columns import check_columns, labels_of_source, with_labels

    labels = options["labels"]
    if source is None:
        if labels:
            raise click.UsageError("--labels are columns of the data; give --data")
        return preset
    if not (labels or preset.prior.symbols):
        return preset
    columns = labels_of_source(source)
    preset = with_labels(preset, columns, labels) if labels else preset
    check_columns(preset, columns)
    if not options["quiet"]:
        say(symbols_line(preset), err=True)
    return preset


def _announce(kind: str, folder: Path, result: Any) -> None:
    skipped = f", {result.skipped} skipped" if result.skipped else ""
    best = result.best
    kept = f"; weights of step {best['step']}, the best on held-out images" if best else ""
    say(
        f"{kind}: {result.steps} steps in {result.seconds:.0f} s{skipped}{kept}; "
        f"model in {folder / 'model'}"
    )


def _train(
    kind: Any, options: dict[str, Any], check: Callable[..., Any], run: Callable[..., Any]
) -> None:
    """Read what was typed and run it.

    Arguments:
        check: (preset, model of --generator or None, that of --init or None): raises what can be
            said before the data are read.
        run: (preset, model of --generator or None, data, keyword arguments) to its result.
    """
    preset = typed_preset(kind, options)
    if options.get("dry_run"):
        return _dry_run(kind, preset, options, check)
    needed(options, *(["generator"] if "generator" in options else []), "data", "out")
    check_folder(options)
    check_resume(options)
    from hebm_sample.pipeline.runtime.process import tune_process
    from hebm_sample.training.devices import agreed
    from hebm_sample.training.trainer import make_accelerator

    model, init = (_loaded(options, name) for name in ("generator", "init"))
    check(preset, model, init)
    config = preset.generator if model is None else model.config.generator
    if kind == "prior":
        check_labels(preset, options["data"], config.image_size, options["labels"])
    tune_process(training=True)
    accelerator = make_accelerator(options["device"])
    settings = getattr(preset, f"{kind}_settings")
    agreed(settings, accelerator, typed_settings(options))  # before the images are read
    result = run(
        preset,
        model,
        read_images(options, config.image_size, settings.validation),
        folder=options["out"],
        resume=options["resume"],
        accelerator=accelerator,
        show_progress=not options["quiet"],
        **({"init": init} if "init" in options else {}),
    )
    if accelerator.is_main_process:
        _announce(kind, options["out"], result)


_INIT = click.option(
    "--init", type=ModelType(), metavar="MODEL", help="Fine-tune from this model."
)
_DRY_RUN = click.option(
    "--dry-run",
    is_flag=True,
    help="Say what the run would take, from one step at a small batch; write nothing. "
    "Needs neither --data nor --out.",
)
_GENERATOR = click.option(
    "--generator",
    type=ModelType(),
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

    def check(preset: Any, _: Any, init: Any) -> None:
        from hebm_sample.training.record import check_generator

        check_generator(preset, init)

    _train("generator", options, check, run)


@click.command(cls=OneLineErrors)
@_GENERATOR
@click.option(
    "--objective",
    type=WordType(["score", "mle"]),
    help="Score matching, or the paper's maximum likelihood.  [default: the preset's]",
)
@LABELS
@run_options
@_INIT
@_DRY_RUN
def prior(**options: Any) -> None:
    """Train the energy-based prior of a frozen generator; ends with a model folder in
    DIR/model.
    """

    def run(preset: Any, model: Any, images: Any, **how: Any) -> Any:
        from hebm_sample.training.label_columns import with_labels
        from hebm_sample.training.train import train_prior

        objective = options["objective"] or preset.objective
        if options["labels"]:
            columns = images.labels, images.label_names
            preset = with_labels(preset, columns, options["labels"])
            if not options["quiet"]:
                say(symbols_line(preset), err=True)
        return train_prior(preset, model, images, objective=objective, **how)

    def check(preset: Any, model: Any, init: Any) -> None:
        from hebm_sample.training.record import check_prior

        check_prior(preset, model, options["objective"] or preset.objective, init)

    _train("prior", options, check, run)


@click.command(cls=OneLineErrors)
@click.option(
    "--generator",
    type=ModelType(),
    metavar="MODEL",
    help="A run's folder, or a model, with a prior or without.  [required, except with --dry-run]",
)
@run_options
@_DRY_RUN
def decoder(**options: Any) -> None:
    """Train a sharp image decoder of a frozen model against a discriminator; ends with a model
    folder in DIR/model.

    Images are shown with it from then on. The likelihood's decoder, the encoder and the prior stay
    as they are.
    """

    def run(preset: Any, model: Any, images: Any, **how: Any) -> Any:
        from hebm_sample.training.decoding.train import train_decoder

        return train_decoder(preset, model, images, **how)

    def check(preset: Any, model: Any, _: Any) -> None:
        from hebm_sample.training.decoding.train import check_decoder, check_patience

        if model is None:  # of a dry run
            check_patience(preset)
        else:
            check_decoder(preset, model)

    _train("decoder", options, check, run)
