"""`hebm-train import-nvae`: a checkpoint of NVAE becomes a model folder."""

import shlex
from pathlib import Path

import click

from hebm_sample.cli.errors import OneLineErrors
from hebm_sample.cli.printing import say

__all__ = ["import_nvae"]

_PATH = click.Path(path_type=Path)


@click.command("import-nvae", cls=OneLineErrors)
@click.argument("checkpoint", type=_PATH)
@click.option("--out", "-o", required=True, type=_PATH, metavar="DIR", help="The model's folder.")
@click.option(
    "--energies",
    type=_PATH,
    metavar="FILE",
    help="Energies that the authors' release (arXiv 2405.13910) trained on it.",
)
@click.option("--name", metavar="NAME", help="The model's name.  [default: nvae-DATASET]")
@click.option("--overwrite", is_flag=True, help="Replace a model that is in --out.")
def import_nvae(
    checkpoint: Path, out: Path, energies: Path | None, name: str | None, overwrite: bool
) -> None:
    """Make a model folder of a CHECKPOINT of NVAE (arXiv 2007.03898), as its training saves it.

    The file is read without running anything in it. Its weights stay under NVAE's licence:
    non-commercial use only. Go on with `hebm-train prior --generator DIR`.
    """
    from hebm_sample.training.imports.nvae_checkpoint import import_nvae as import_checkpoint

    row = import_checkpoint(checkpoint, out, name=name, energies=energies, overwrite=overwrite)
    size = sum(file.size for file in row.files.values()) / 2**20
    how = "" if energies else " --gaussian-prior"
    say(
        f"{out}: {row.name}, {row.resolution}x{row.resolution}, {size:.2f} MiB; "
        f"hebm-sample --dataset {shlex.quote(str(out))}{how}"
    )
