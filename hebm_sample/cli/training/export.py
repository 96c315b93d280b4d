"""`hebm-train export`: a run's averaged weights as a model folder."""

import json
from pathlib import Path
from typing import Any, get_args

import click

from hebm_sample.cli.errors import OneLineErrors
from hebm_sample.cli.printing import say
from hebm_sample.cli.requests.grammar import FactorsType, NumberType, WordType
from hebm_sample.cli.training.options import PATH
from hebm_sample.config import SamplerName, TrainingRecord
from hebm_sample.errors import UserInputError

__all__ = ["export"]


def _notes(path: Path | None) -> str:
    try:
        return "" if path is None else path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserInputError(
            f"--notes {path} is not UTF-8 (byte {error.start}); save it as UTF-8 text"
        ) from error


@click.command(cls=OneLineErrors)
@click.option(
    "--run",
    required=True,
    type=PATH,
    metavar="DIR",
    help="Folder of a training run, finished or not.",
)
@click.option("--out", "-o", required=True, type=PATH, metavar="DIR", help="The model's folder.")
@click.option("--name", metavar="NAME", help="The model's name.  [default: the preset's]")
@click.option("--licence", metavar="TEXT", help="Of the weights, in one line.")
@click.option(
    "--notes",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Markdown for the card: data, training, limits.",
)
@click.option(
    "--sampler", type=WordType(get_args(SamplerName)), help="Becomes the model's default."
)
@click.option("--steps", type=click.IntRange(1), metavar="N", help="Becomes the model's default.")
@click.option("--step-scale", type=NumberType(0), metavar="C", help="Becomes the model's default.")
@click.option(
    "--temperature",
    type=FactorsType(),
    metavar="FACTOR[,...]",
    help="Becomes the model's default.",
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
    config = json.loads((out / "config.json").read_text(encoding="utf-8"))
    for made in config.get("training", []):
        say(str(TrainingRecord.from_dict(made)))
    size = sum(file.size for file in row.files.values()) / 2**20
    say(
        f"{out}: {row.name}, {row.resolution}x{row.resolution}, {size:.2f} MiB; "
        f"hebm-sample --dataset {out}"
    )
