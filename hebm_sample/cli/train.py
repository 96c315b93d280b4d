"""The command `hebm-train`: generator, prior, export, evaluate, classifier, baseline, calibrate,
push, import-nvae.

Options override single values of a preset. A run lives in one folder, `--out`; `--resume` goes on
from its newest whole checkpoint. `accelerate launch -m hebm_sample.training ...` runs the same
commands on several devices.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from hebm_sample import __version__
from hebm_sample.cli.data import HASH, HoldOutType, refuse_same_folder, tell
from hebm_sample.cli.errors import OneLineErrors
from hebm_sample.cli.evaluation.baseline import baseline
from hebm_sample.cli.evaluation.calibrate import calibrate
from hebm_sample.cli.evaluation.classifier import classifier, judge
from hebm_sample.cli.evaluation.legacy import evaluate
from hebm_sample.cli.evaluation.options import DEVICES
from hebm_sample.cli.import_nvae import import_nvae
from hebm_sample.cli.push import push
from hebm_sample.cli.trained import load_model
from hebm_sample.errors import UserInputError

__all__ = ["main"]

_PATH = click.Path(path_type=Path)


class _OneLineGroup(OneLineErrors, click.Group):
    """A group of commands whose every error is one line."""


class _Duration(click.ParamType):
    """90s, 3m, 1.5h or seconds."""

    name = "duration"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Seconds."""
        from hebm_sample.presets.settings import parse_duration

        return parse_duration(value) if isinstance(value, str) else value


def _run_options(command: Callable[..., None]) -> Callable[..., None]:
    """The options that both kinds of training take."""
    for option in reversed(
        [
            click.option(
                "--preset",
                default="images64",
                show_default=True,
                metavar="NAME",
                help="See --list-presets.",
            ),
            click.option(
                "--data",
                metavar="SOURCE",
                help="Folder of images, parquet file, folder of parquet files, LMDB, or Hub "
                "data set.  [required]",
            ),
            click.option("--out", type=_PATH, metavar="DIR", help="The run's folder.  [required]"),
            click.option(
                "--dry-run",
                is_flag=True,
                help="Say what the run would take, from one step at a small batch; write nothing. "
                "Needs neither --data nor --out.",
            ),
            click.option(
                "--time-budget",
                type=_Duration(),
                metavar="TIME",
                help="90s, 3m, 1.5h: turned into steps once.",
            ),
            click.option(
                "--max-steps",
                type=click.IntRange(1),
                metavar="N",
                help="Steps, instead of a time.",
            ),
            click.option(
                "--batch-size",
                type=click.IntRange(1),
                metavar="N",
                help="Images a step and process.",
            ),
            click.option(
                "--learning-rate",
                type=click.FloatRange(0),
                metavar="X",
                help="Peak of the cosine.",
            ),
            click.option(
                "--seed", type=click.IntRange(0), metavar="N", help="Of weights, order and noise."
            ),
            click.option(
                "--validation",
                type=HoldOutType(),
                metavar="ROWS",
                help="Rows kept apart: hash, a tenth of them, chosen by their names; last:N or N, "
                "those at the end.  [default: the preset's, or hash]",
            ),
            click.option(
                "--checkpoint-every", type=_Duration(), metavar="TIME", help="Between checkpoints."
            ),
            click.option(
                "--log-every", type=click.IntRange(1), metavar="N", help="Steps between log lines."
            ),
            click.option(
                "--set",
                "changes",
                multiple=True,
                metavar="NAME=VALUE",
                help="Change a setting of the preset: prior.width=48, sampling.steps=24, "
                "settings.weight_decay=0; repeatable.",
            ),
            click.option("--init", metavar="MODEL", help="Fine-tune from this model."),
            click.option(
                "--resume", is_flag=True, help="Go on from the newest whole checkpoint in --out."
            ),
            click.option(
                "--device",
                type=DEVICES,
                default="auto",
                show_default=True,
                help="Where to compute.",
            ),
            click.option("--quiet", is_flag=True, help="No progress bar."),
        ]
    ):
        command = option(command)
    return command


def _preset(kind: Any, options: dict[str, Any]) -> Any:
    """The preset with what was typed."""
    from hebm_sample.presets.models import find_preset
    from hebm_sample.training.overrides import changed, changed_settings

    preset = changed(find_preset(options["preset"]), kind, options["changes"])
    twice = {
        name
        for name in changed_settings(options["changes"])
        if options.get({"steps": "max_steps"}.get(name, name)) is not None
    }
    if twice:
        raise UserInputError(
            f"{', '.join(sorted(twice))} was given with --set and with an option of its own; "
            "leave one of them out"
        )
    field = f"{kind}_settings"
    return replace(preset, **{field: _overridden(getattr(preset, field), options)})


def _overridden(settings: Any, options: dict[str, Any]) -> Any:
    """`settings` with the options that were typed; steps and a time budget replace each other."""
    names = ("batch_size", "learning_rate", "seed", "validation", "checkpoint_every", "log_every")
    changes = {k: options[k] for k in names if options[k] is not None}
    if changes.get("validation") == HASH:
        changes["validation"] = None
    steps, budget = options["max_steps"], options["time_budget"]
    if steps is not None and budget is not None:
        raise UserInputError(
            "--max-steps and --time-budget were both given; leave one of them out"
        )
    if steps is not None or budget is not None:
        changes |= {"steps": steps, "time_budget": budget}
    return replace(settings, **changes)


def _use_the_machine() -> None:
    """What makes steps fast and holds for the whole process: a command's to decide."""
    import sys

    from hebm_sample.pipeline.runtime.malloc import keep_freed_memory
    from hebm_sample.pipeline.runtime.threads import TURN

    keep_freed_memory(training=True)
    # Parts of a batch run in threads, each of which gives Python's lock back late otherwise.
    sys.setswitchinterval(min(sys.getswitchinterval(), TURN))


def _needed(options: dict[str, Any], *names: str) -> None:
    """What click would say of a missing option; a dry run does without these."""
    for name in names:
        if options[name] is None:
            raise click.UsageError(f"Missing option '--{name}'.")


def _dry_run(kind: Any, preset: Any, options: dict[str, Any], model: str | None) -> None:
    """Print what the run would take."""
    from hebm_sample.data.sources import open_source
    from hebm_sample.pipeline.device import pick_device
    from hebm_sample.training.dry_run import dry_run

    rows = open_source(options["data"], None).total if options["data"] else None
    if not options["quiet"]:
        click.echo("measuring a step of a few images ...", err=True)
    estimate = dry_run(
        kind,
        preset,
        pick_device(options["device"]),
        objective=options.get("objective"),
        model=load_model(model) if model else None,
        images=rows,
    )
    click.echo("\n".join(estimate.lines()))


def _images(options: dict[str, Any], size: int, validation: int | None) -> Any:
    """The data, of which a line is printed."""
    from hebm_sample.data.dataset import load_images
    from hebm_sample.data.summary import held_out_rule

    refuse_same_folder(options["data"], options["out"])
    images = load_images(options["data"], size=size, progress=not options["quiet"])
    rule = held_out_rule(validation)
    tell(options["data"], *images.split(validation), rule, options["quiet"])
    return images


def _check_resume(options: dict[str, Any]) -> None:
    """`UserInputError` if a run that goes on is asked for another length than it began with: its
    learning rates follow from that.
    """
    from hebm_sample.training.checkpoint import latest_checkpoint, read_state

    path = latest_checkpoint(options["out"]) if options["resume"] else None
    if path is None:
        return
    state, steps, budget = read_state(path), options["max_steps"], options["time_budget"]
    if steps is not None and steps != state["total"]:
        asked = f"--max-steps {steps}"
    elif budget is not None and budget != state.get("time_budget"):
        asked = f"--time-budget of {budget:g} s"
    else:
        return
    raise UserInputError(
        f"{asked} does not go with --resume: the run in {options['out']} has {state['total']} "
        "steps, and its learning rates follow from them; leave it out, or start a longer run in "
        f"another folder with --init {options['out']}"
    )


def _announce(kind: str, folder: Path, result: Any) -> None:
    skipped = f", {result.skipped} skipped" if result.skipped else ""
    click.echo(
        f"{kind}: {result.steps} steps in {result.seconds:.0f} s{skipped}; "
        f"model in {folder / 'model'}"
    )


def _list_presets(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if not value:
        return
    from hebm_sample.presets.models import PRESETS

    for name, preset in sorted(PRESETS.items()):
        click.echo(f"{name:15} {preset.note}")
    ctx.exit()


@click.group(
    cls=_OneLineGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.option(
    "--list-presets",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_list_presets,
    help="And leave.",
)
@click.version_option(__version__, message="hebm-train %(version)s")
def main() -> None:
    """Train, export and measure models."""


@main.command(cls=OneLineErrors)
@_run_options
def generator(**options: Any) -> None:
    """Train a generator and its encoder; ends with a model folder in DIR/model."""
    preset = _preset("generator", options)
    if options["dry_run"]:
        return _dry_run("generator", preset, options, options["init"])
    _needed(options, "data", "out")
    _check_resume(options)
    from hebm_sample.training.train import train_generator
    from hebm_sample.training.trainer import make_accelerator

    _use_the_machine()
    accelerator = make_accelerator(options["device"])
    settings = preset.generator_settings
    result = train_generator(
        preset,
        _images(options, preset.generator.image_size, settings.validation),
        options["out"],
        resume=options["resume"],
        init=load_model(options["init"]) if options["init"] else None,
        accelerator=accelerator,
        show_progress=not options["quiet"],
    )
    if accelerator.is_main_process:
        _announce("generator", options["out"], result)


@main.command(cls=OneLineErrors)
@click.option(
    "--generator",
    metavar="MODEL",
    help="Generator: its run's folder, or a model.  [required, except with --dry-run]",
)
@click.option(
    "--objective",
    type=click.Choice(["score", "mle"]),
    help="Score matching, or the paper's maximum likelihood.  [default: the preset's]",
)
@_run_options
def prior(**options: Any) -> None:
    """Train the energy-based prior of a frozen generator; ends with a model folder in
    DIR/model.
    """
    preset = _preset("prior", options)
    if options["dry_run"]:
        return _dry_run("prior", preset, options, options["generator"])
    _needed(options, "generator", "data", "out")
    _check_resume(options)
    from hebm_sample.training.train import train_prior
    from hebm_sample.training.trainer import make_accelerator

    model = load_model(options["generator"])
    _use_the_machine()
    accelerator = make_accelerator(options["device"])
    settings = preset.prior_settings
    result = train_prior(
        preset,
        model,
        _images(options, model.config.generator.image_size, settings.validation),
        options["out"],
        objective=options["objective"] or preset.objective,
        resume=options["resume"],
        init=load_model(options["init"]) if options["init"] else None,
        accelerator=accelerator,
        show_progress=not options["quiet"],
    )
    if accelerator.is_main_process:
        _announce("prior", options["out"], result)


def _notes(path: Path | None) -> str:
    try:
        return "" if path is None else path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserInputError(
            f"--notes {path} is not UTF-8 (byte {error.start}); save it as UTF-8 text"
        ) from error


@main.command(cls=OneLineErrors)
@click.option(
    "--run",
    required=True,
    type=_PATH,
    metavar="DIR",
    help="Folder of a training run, finished or not.",
)
@click.option("--out", required=True, type=_PATH, metavar="DIR", help="The model's folder.")
@click.option("--name", metavar="NAME", help="The model's name.  [default: the preset's]")
@click.option("--licence", metavar="TEXT", help="Of the weights, in one line.")
@click.option(
    "--notes",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Markdown for the card: data, training, limits.",
)
@click.option("--sampler", metavar="NAME", help="Becomes the model's default.")
@click.option("--steps", type=click.IntRange(1), metavar="N", help="Becomes the model's default.")
@click.option(
    "--step-scale", type=click.FloatRange(0), metavar="C", help="Becomes the model's default."
)
@click.option("--overwrite", is_flag=True, help="Replace a model that is in --out.")
def export(
    run: Path,
    out: Path,
    name: str | None,
    licence: str | None,
    notes: Path | None,
    overwrite: bool,
    **sampling: Any,
) -> None:
    """Write a run's averaged weights as a model folder, in half precision."""
    from hebm_sample.training.export import UNSTATED_LICENCE
    from hebm_sample.training.export import export as export_run

    text = _notes(notes)
    row = export_run(
        run,
        out,
        name=name,
        licence=licence or UNSTATED_LICENCE,
        notes=text,
        overwrite=overwrite,
        **sampling,
    )
    size = sum(file.size for file in row.files.values()) / 2**20
    click.echo(
        f"{out}: {row.name}, {row.resolution}x{row.resolution}, {size:.2f} MiB; "
        f"hebm-sample --dataset {out}"
    )


main.add_command(evaluate)
main.add_command(classifier)
main.add_command(judge, "judge")
main.add_command(baseline)
main.add_command(calibrate)
main.add_command(push)
main.add_command(import_nvae)


if __name__ == "__main__":
    main()
