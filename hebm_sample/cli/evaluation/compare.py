"""`hebm-eval compare`: two folders of images, no model."""

from pathlib import Path

import click

from hebm_sample.cli.data import tell
from hebm_sample.cli.errors import OneLineErrors
from hebm_sample.cli.evaluation.options import JSON, QUIET, check_file, with_options, write_json
from hebm_sample.cli.printing import say

__all__ = ["compare"]

_FOLDER = click.Path(file_okay=False)


@click.command(cls=OneLineErrors)
@click.argument("folder_a", type=_FOLDER)
@click.argument("folder_b", type=_FOLDER)
@click.option(
    "--size",
    type=click.IntRange(16),
    metavar="S",
    help="Side of the images.  [default: FOLDER_B's]",
)
@click.option(
    "--inception",
    is_flag=True,
    help="Also in Inception's features; the extra [inception].",
)
@with_options(JSON, QUIET)
def compare(
    folder_a: str,
    folder_b: str,
    size: int | None,
    inception: bool,
    json_path: Path | None,
    overwrite: bool,
    quiet: bool,
) -> None:
    """Measure the images of FOLDER_A against those of FOLDER_B."""
    from hebm_sample.evaluation.folders import compare_folders

    check_file("--json", json_path, overwrite)
    found = compare_folders(
        folder_a,
        folder_b,
        size=size,
        inception=inception,
        progress=not quiet,
        read=lambda folder, images: tell(folder, images, None, "", quiet),
    )
    write_json(json_path, found.to_dict())
    say(found.table())
