"""What the commands write: checked before the work, saved after it, told at the end."""

import json
import os
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hebm_sample.cli.requests.base import CommandOptions, counted
from hebm_sample.errors import UserInputError
from hebm_sample.pipeline.provenance import Provenance

if TYPE_CHECKING:
    from PIL.Image import Image

    from hebm_sample.pipeline.pipeline import Samples

__all__ = ["check_grid", "check_targets", "energies_of", "save_grid", "save_singles", "tell"]


def check_targets(grid: Path, folder: Path | None, files: Iterable[Path]) -> None:
    """Find out now, not after minutes of sampling, that the images could not be saved.

    Arguments:
        grid: Where they go if `folder` is None.
        folder: --outdir.
        files: What would be written to it.
    """
    from hebm_sample.io.images import check_folder, check_writable

    if folder is None:
        check_writable(grid)
        return
    check_folder(folder)
    for path in files:
        if os.path.lexists(path):
            check_writable(path)


def check_grid(count: int, resolution: int, columns: int | None = None) -> None:
    """Refuse a grid that no viewer opens."""
    from hebm_sample.io.images import MAX_PIXELS, grid_size

    width, height = grid_size(count, resolution, resolution, columns)
    if width * height > MAX_PIXELS:
        raise UserInputError(
            f"a grid of {count} images would have {width} x {height} pixels; "
            "use --outdir, or ask for fewer images"
        )


def energies_of(samples: "Samples") -> list[list[float]]:
    """-F_{i} of each image and group; empty where the model has no energies."""
    return [] if samples.energies is None else samples.energies.float().tolist()


def save_grid(
    images: Sequence["Image"], columns: int | None, path: Path, provenance: Provenance
) -> list[Path]:
    """All images on one grid; the file written."""
    from hebm_sample.io.images import grid, save_png

    save_png(grid(images, columns), path, provenance.text())
    return [path]


def save_singles(
    images: Sequence["Image"],
    seeds: Sequence[int],
    paths: Sequence[Path],
    provenance: Provenance,
) -> list[Path]:
    """A file an image, each with its own seed; the files written."""
    from hebm_sample.io.images import save_png

    for image, seed, path in zip(images, seeds, paths, strict=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        save_png(image, path, provenance.of_seeds(seed).text(single=True))
    return list(paths)


def tell(
    options: CommandOptions,
    files: Sequence[Path],
    count: int,
    answer: dict[str, Any],
    *,
    where: Path,
    start: float,
    more: str = "",
) -> None:
    """The closing line, or --json's answer.

    Arguments:
        files: What was written.
        count: The number of images.
        answer: What --json tells beside the files and the time.
        where: What the line names: the folder or the file.
        start: When it began, of `time.perf_counter`.
        more: The end of the line.
    """
    seconds = time.perf_counter() - start
    if options.as_json:
        written = {"files": list(map(os.fspath, files))}
        click.echo(json.dumps({**written, **answer, "seconds": round(seconds, 3)}))
    elif not options.quiet:
        name = click.format_filename(where)
        click.echo(f"{name}: {counted(count)} in {seconds:.1f} s{more}")
