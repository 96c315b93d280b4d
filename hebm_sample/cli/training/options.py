"""What all training commands take: options that override single values of a preset."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from hebm_sample.cli.data import HASH, HoldOutType, check_run, tell
from hebm_sample.cli.evaluation.options import DEVICE, QUIET
from hebm_sample.cli.requests.grammar import NumberType, WordType
from hebm_sample.cli.trained import DurationType, PresetType
from hebm_sample.errors import UserInputError

__all__ = [
    "LABELS",
    "PATH",
    "check_folder",
    "check_labels",
    "check_resume",
    "check_rows",
    "needed",
    "read_images",
    "run_options",
    "symbols_line",
    "typed_preset",
    "typed_settings",
]

PATH = click.Path(path_type=Path)


class _NamesType(click.ParamType):
    """`kind,big`: columns."""

    name = "columns"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, ...]:
        """The names; none may be empty, or occur twice."""
        names = tuple(name.strip() for name in value.split(","))
        if not all(names) or len(set(names)) < len(names):
            self.fail(f"{value!r} names no columns; write kind, or kind,big", param, ctx)
        return names


LABELS = click.option(
    "--labels",
    type=_NamesType(),
    metavar="A,B",
    help="Label columns of the data that become symbols, with the values that they have; all: "
    "those that look like labels.  [default: the preset's symbols]",
)
DTYPE = click.option(
    "--dtype",
    type=WordType(["float32", "bfloat16"]),
    help="Of convolutions and matrix products; weights stay float32.  [default: the preset's]",
)
COMPILE = click.option(
    "--compile",
    is_flag=True,
    default=None,
    help="Compile a step with torch.compile: minutes at the start, then faster steps. Needs a C++ "
    "compiler.",
)
STEP_SETTINGS = ("accumulate", "dtype", "compile", "activation_checkpointing")
STEP_OPTIONS = (
    click.option(
        "--accumulate",
        type=click.IntRange(1),
        metavar="K",
        help="Compute a process's batch in K micro-batches, one after another: less memory, the "
        "same run up to rounding.",
    ),
    DTYPE,
    COMPILE,
    click.option(
        "--activation-checkpointing",
        is_flag=True,
        default=None,
        help="Keep only what passes between T's groups for gradients: less memory, more time.",
    ),
)

RUN_OPTIONS = (
    click.option(
        "--preset",
        type=PresetType(),
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
    click.option("--out", "-o", type=PATH, metavar="DIR", help="The run's folder.  [required]"),
    click.option(
        "--time-budget",
        type=DurationType(),
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
        help="Images per step and process.",
    ),
    *STEP_OPTIONS,
    click.option(
        "--learning-rate",
        type=NumberType(0),
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
        "--checkpoint-every", type=DurationType(), metavar="TIME", help="Between checkpoints."
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
    click.option(
        "--resume", is_flag=True, help="Go on from the newest whole checkpoint in --out."
    ),
    DEVICE,
    QUIET,
)


def run_options(command: Callable[..., None]) -> Callable[..., None]:
    """The options that every kind of training takes."""
    for option in reversed(RUN_OPTIONS):
        command = option(command)
    return command


def typed_preset(kind: Any, options: dict[str, Any]) -> Any:
    """The preset with what was typed."""
    from hebm_sample.presets.models import find_preset
    from hebm_sample.training.overrides import changed, changed_settings

    preset = changed(find_preset(options["preset"]), kind, options["changes"])
    named = changed_settings(options["changes"])
    twice = {
        name for name in named if options.get({"steps": "max_steps"}.get(name, name)) is not None
    }
    lengths = [name for name in ("steps", "time_budget") if name in named]
    typed = [name for name in ("max_steps", "time_budget") if options[name] is not None]
    if lengths and len(lengths + typed) > 1 and not twice:
        twice = {"the length of the run"}
    if twice:
        raise UserInputError(
            f"{', '.join(sorted(twice))} was given with --set and with an option of its own, or "
            "another --set; leave one of them out"
        )
    field = f"{kind}_settings"
    return replace(preset, **{field: _overridden(getattr(preset, field), options)})


def _overridden(settings: Any, options: dict[str, Any]) -> Any:
    """`settings` with the options that were typed; steps and a time budget replace each other."""
    names = ("batch_size", "learning_rate", "seed", "validation", "checkpoint_every", "log_every")
    changes = {k: options[k] for k in (*names, *STEP_SETTINGS) if options[k] is not None}
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


def typed_settings(options: dict[str, Any]) -> set[str]:
    """Names of the settings of a step that were typed, with options of their own or with --set."""
    from hebm_sample.training.overrides import changed_settings

    given = {name for name in STEP_SETTINGS if options[name] is not None}
    return given | changed_settings(options["changes"])


def needed(options: dict[str, Any], *names: str) -> None:
    """What click would say of a missing option; a dry run does without these."""
    for name in names:
        if options[name] is None:
            raise click.UsageError(f"Missing option '--{name}'.")


def read_images(options: dict[str, Any], size: int, validation: int | None) -> Any:
    """The data, of which a line is printed."""
    from hebm_sample.data.dataset import load_images
    from hebm_sample.data.summary import held_out_rule

    check_run(options["data"], options["out"])
    check_rows(options["data"], validation)
    images = load_images(options["data"], size=size, progress=not options["quiet"])
    rule = held_out_rule(validation)
    tell(options["data"], *images.split(validation), rule, options["quiet"])
    return images


def check_rows(data: str, validation: int | None) -> None:
    """Before the images are decoded: `UserInputError` unless rows are left to train on."""
    from hebm_sample.data.sources import open_source

    if validation is None:
        return
    total = open_source(data, None).total
    if not validation < total:
        raise UserInputError(
            f"{validation} images are to be held out, as --validation or the preset says; of "
            f"{total} images it can be 0 to {total - 1}"
        )


def check_labels(preset: Any, data: str, size: int, labels: Sequence[str] | None) -> None:
    """Before the images are decoded: `UserInputError` unless the data have the columns of
    --labels, or of the preset's symbols.
    """
    from hebm_sample.training.label_columns import check_columns, undecoded_labels, with_labels

    if not (labels or preset.prior.symbols):
        return
    columns = undecoded_labels(data, size)
    if columns is not None:
        check_columns(with_labels(preset, columns, labels) if labels else preset, columns)


def symbols_line(preset: Any) -> str:
    """What the prior will learn of the labels."""
    found = [
        f"{s.name} ({', '.join(s.values[:8])}{', ...' * (len(s.values) > 8)})"
        for s in preset.prior.symbols
    ]
    return f"symbols: {'; '.join(found)}"


def check_folder(options: dict[str, Any]) -> None:
    """Before the images are decoded: `UserInputError` if --out holds a run and --resume was not
    typed, or the other way round.
    """
    from hebm_sample.training.checkpoint import check_start

    check_start(options["out"], options["resume"])


def check_resume(options: dict[str, Any]) -> None:
    """`UserInputError` if a run that goes on is asked for another length than it began with: its
    learning rates follow from that.
    """
    from hebm_sample.training.checkpoint import latest_checkpoint, read_state
    from hebm_sample.training.overrides import changed_settings

    path = latest_checkpoint(options["out"]) if options["resume"] else None
    if path is None:
        return
    state, steps, budget = read_state(path), options["max_steps"], options["time_budget"]
    if steps is not None and steps != state["total"]:
        asked = f"--max-steps {steps}"
    elif budget is not None and budget != state.get("time_budget"):
        asked = f"--time-budget of {budget:g} s"
    elif named := {"steps", "time_budget"} & changed_settings(options["changes"]):
        asked = f"--set settings.{min(named)}"
    else:
        return
    option = "--init" if "init" in options else "--generator"
    raise UserInputError(
        f"{asked} does not go with --resume: the run in {options['out']} has {state['total']} "
        "steps, and its learning rates follow from them; leave it out, or start a longer run in "
        f"another folder with {option} {options['out']}"
    )
