"""What commands share that begin with a training: a model or a run's folder, and durations."""

from pathlib import Path
from typing import Any

import click

from hebm_sample.cli.requests.grammar import known_word
from hebm_sample.errors import UserInputError

__all__ = [
    "DurationType",
    "PresetType",
    "check_reads_images",
    "load_model",
    "model_to_measure",
]


class DurationType(click.ParamType):
    """90s, 3m, 1.5h or seconds."""

    name = "duration"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Seconds."""
        from hebm_sample.presets.settings import parse_duration

        return parse_duration(value) if isinstance(value, str) else value


class PresetType(click.ParamType):
    """A preset's name, in any spelling."""

    name = "preset"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """A known name in its own spelling; the preset is looked for later."""
        from hebm_sample.presets.models import PRESETS

        return known_word(value, PRESETS)


def load_model(name: str | Path) -> Any:
    """A model's pipeline: a training run's newest checkpoint, or whatever `Pipeline` loads."""
    from hebm_sample.pipeline.pipeline import Pipeline
    from hebm_sample.training.checkpoint import latest_checkpoint
    from hebm_sample.training.export import load_run

    if not str(name):
        raise UserInputError("the model's name is empty; give a model or a run's folder")
    if Path(name).is_dir() and latest_checkpoint(name) is not None:
        return load_run(name)
    return Pipeline.from_pretrained(name, device="cpu")


def model_to_measure(name: str | Path, device: str) -> Any:
    """The same on a device, in a process that is given to sampling it."""
    from hebm_sample.pipeline.runtime.process import tune_process

    tune_process()
    return load_model(name).to(device)


def check_reads_images(pipe: Any) -> None:
    """Before data are read for it: `UserInputError` for a model without energies or encoder."""
    pipe.model.energies()
    _ = pipe.encoder
