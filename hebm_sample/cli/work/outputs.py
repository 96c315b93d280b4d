"""What the commands write: checked before the work, saved after it, told at the end."""

import json
import os
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hebm_sample.cli.printing import say
from hebm_sample.cli.requests.base import CommandOptions, counted
from hebm_sample.errors import UserInputError

if TYPE_CHECKING:
    from PIL.Image import Image

    from hebm_sample.pipeline.pipeline import Samples

__all__ = [
    "check_grid",
    "check_targets",
    "energies_of",
    "holds",
    "refuse_mixed",
    "refuse_others",
    "save_claiming",
    "save_grid",
    "save_singles",
    "tell",
]


# What a folder's images have in common, whatever their seeds and conditions.
OF_THE_MODEL = ("weights", "description", "dtype")
OF_THE_SAMPLER = (
    *("compile", "decoder", "encoder", "particles", "prior", "sampler", "sampling", "steps"),
    "temperature",
)
MOST_READ = 2000  # images of a folder, evenly spread over their names


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


def check_grid(
    path: Path, count: int, resolution: int, columns: int | None = None, *, alone: bool = True
) -> None:
    """Refuse a grid that no viewer opens, or that its file's format cannot hold.

    Arguments:
        path: Its file.
        alone: Whether the command can write its images one by one.
    """
    from hebm_sample.io.animation import check_sides
    from hebm_sample.io.images import MAX_PIXELS, grid_size

    width, height = grid_size(count, resolution, resolution, columns)
    if width * height > MAX_PIXELS:
        raise UserInputError(
            f"a grid of {count} images would have {width} x {height} pixels; "
            f"{'use --outdir, or ' if alone else ''}ask for fewer images"
        )
    check_sides(path, width, height)


def energies_of(samples: "Samples") -> list[list[float]]:
    """-F_{i} of each image and group; empty where the model has no energies."""
    return [] if samples.energies is None else samples.energies.float().tolist()


def refuse_others(options: CommandOptions, texts: Mapping[Path, Mapping[str, str]]) -> None:
    """`UserInputError` if a file of a name that nobody typed is there and says otherwise.

    Arguments:
        texts: What each file would say of how it came about.
    """
    if options.overwrite:
        return
    for path, text in texts.items():
        if not os.path.lexists(path):
            continue
        reason = _difference(path, text)
        if reason is not None:
            raise UserInputError(
                f"{path} would be overwritten, and {reason}; write to another place, or add "
                "--overwrite"
            )


def refuse_mixed(
    folder: Path, names: str, text: Mapping[str, str], leaving: Iterable[Path], overwrite: bool
) -> None:
    """`UserInputError` if a folder holds images of another model or sampler, which would lie among
    those that are to be written.

    Arguments:
        names: A regular expression of what the command calls its files.
        text: What any of them would say of how it came about.
        leaving: Files that are looked at, or written over, anyway.
        overwrite: Only another model counts: what is asked for replaces its own file.
    """
    if not folder.is_dir():
        return
    own = {path.name for path in leaving}
    pattern = re.compile(names)
    there = sorted(n for n in os.listdir(folder) if pattern.fullmatch(n) and n not in own)
    for name in there[:: -(-len(there) // MOST_READ)] if there else ():
        reason = _other_origin(folder / name, text, () if overwrite else OF_THE_SAMPLER)
        if reason is not None:
            raise UserInputError(
                f"{folder} would hold images of two kinds: {name} {reason}; write to another "
                "folder, or move the images that are there away"
            )


def _other_origin(path: Path, text: Mapping[str, str], keys: Iterable[str]) -> str | None:
    """How a file's model or sampler is another; None too for a file that says nothing of them."""
    from hebm_sample.io.images import read_text, writable_text

    found, wanted = read_text(path), writable_text(text)
    if _is_of_another_command(found, wanted):
        return None
    if "weights" not in found:
        return None if "model" not in found else "does not say of which weights it is"
    for key in (*OF_THE_MODEL, *keys):
        if found.get(key) != wanted.get(key):
            old, new = found.get(key, "the default"), wanted.get(key, "the default")
            return f"was made otherwise: {key} is {old!r}, not {new!r}"
    return None


def _is_of_another_command(found: Mapping[str, str], wanted: Mapping[str, str]) -> bool:
    """Whether a file says that it is a grid, or of another command, as it may lie anywhere."""
    if "command" not in found:
        return False
    program, other = (text["command"].split()[:2] for text in (wanted, found))
    return program != other or ("seed" in wanted) != ("seed" in found)


def _difference(path: Path, text: Mapping[str, str]) -> str | None:
    """How a file came about otherwise than it would now; None if it did not."""
    from hebm_sample.io.images import read_text, writable_text

    found = read_text(path)
    if not found:
        return "does not say how it was made"
    for key, value in writable_text(text).items():
        if key not in found:
            return f"does not say its {key}"
        if found[key] != value:
            return f"was made otherwise: {key} is {found[key]!r}, not {value!r}"
    return None


def holds(path: Path, text: Mapping[str, str]) -> bool:
    """Whether there is an image with this text. Files appear by rename, so it is whole."""
    return path.is_file() and _difference(path, text) is None


def save_grid(
    images: Sequence["Image"],
    columns: int | None,
    path: Path,
    text: Mapping[str, str],
    scale: int | None = None,
) -> list[Path]:
    """All images on one grid, each pixel as `scale` x `scale`; the file written."""
    from hebm_sample.io.images import enlarged, grid, save_image

    save_image(grid([enlarged(image, scale or 1) for image in images], columns), path, text)
    return [path]


def save_singles(
    images: Sequence["Image"],
    paths: Sequence[Path],
    texts: Sequence[Mapping[str, str]],
    scale: int | None = None,
) -> list[Path]:
    """A file per image, each with its own text; the files written."""
    from hebm_sample.io.images import enlarged, save_image

    for image, path, text in zip(images, paths, texts, strict=True):
        save_image(enlarged(image, scale or 1), path, text)
    return list(paths)


def save_claiming(
    folder: Path,
    refuse: Callable[[], None],
    images: Sequence["Image"],
    paths: Sequence[Path],
    texts: Sequence[Mapping[str, str]],
    scale: int | None = None,
) -> list[Path]:
    """Likewise, into a folder that another command may have begun to fill since it was looked at:
    that is looked at again, and nobody else's file comes in between.

    Arguments:
        refuse: Raises if what lies in the folder by now does not go with these.
    """
    from hebm_sample.io.lock import exclusive

    folder.mkdir(parents=True, exist_ok=True)
    with exclusive(folder):
        refuse()
        return save_singles(images, paths, texts, scale)


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
        say(json.dumps({**written, **answer, "seconds": round(seconds, 3)}))
    elif not options.quiet:
        name = click.format_filename(where)
        say(f"{name}: {counted(count)} in {seconds:.1f} s{more}")
