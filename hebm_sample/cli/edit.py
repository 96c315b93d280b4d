"""The command `hebm-edit`: what a model makes of real images.

    edit          change what is asked, keep the rest
    interpolate   between two images
    inpaint       fill in the white of a mask
    score         energies and symbol probabilities

Images are read, and places to write to are checked, before the model is loaded; torch is
imported after that.
"""

import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hebm_sample import __version__
from hebm_sample.cli.edit_requests import (
    EditOptions,
    InpaintOptions,
    InterpolateOptions,
    ScoreOptions,
    counted,
)
from hebm_sample.cli.errors import OneLineErrors
from hebm_sample.cli.options import (
    DATASET,
    MACHINE,
    OUTPUT,
    PATH,
    REVISION,
    SAMPLER,
    STEERING,
    GroupsType,
    SectionedCommand,
    SeedsType,
    finite,
    option,
    taking,
)
from hebm_sample.cli.requests import CommandOptions, SteeringOptions
from hebm_sample.cli.run import (
    check_sheet,
    check_targets,
    load,
    model_facts,
    png_text,
    progress_bar,
    sampler_facts,
    within_memory,
)
from hebm_sample.cli.score import score_table, scores
from hebm_sample.errors import UserInputError
from hebm_sample.io.seeds import MAX_SEEDS, derived_seed, format_seeds

if TYPE_CHECKING:
    from PIL.Image import Image

    from hebm_sample.pipeline.pipeline import Pipeline, Samples

__all__ = ["main"]

_EXAMPLES = """\b
Examples:
  hebm-edit edit face.jpg --dataset celeba64 --attr Smiling
  hebm-edit edit *.jpg --dataset celeba64 --attr Male=no --guidance 2 --outdir edited
  hebm-edit interpolate a.jpg b.jpg --dataset celebahq -n 9
  hebm-edit inpaint face.jpg --mask mask.png --dataset celebahq --seeds 0-3
  hebm-edit score *.jpg --dataset celeba64 --json

Completion: eval "$(_HEBM_EDIT_COMPLETE=bash_source hebm-edit)" in ~/.bashrc; also zsh, fish.
"""


# Before the model is loaded


def _sheet_path(options: CommandOptions, first: Path, what: str) -> Path:
    """--out, or the first image's name with what was done."""
    return options.out or Path(f"{first.stem}-{what}.png")


def _check_files(
    options: CommandOptions, sources: Sequence[Path], sheet: Path, targets: Sequence[Path]
) -> None:
    """Every source is an image, and nothing that is there would be overwritten unasked."""
    outdir = options.outdir
    _check_sources(sources)
    check_targets(sheet, outdir, targets)
    read = {os.path.realpath(source) for source in sources}
    for path in targets if outdir is not None else [sheet]:
        if os.path.realpath(path) in read:
            raise UserInputError(
                f"{path} is an image that is read; write to another place, so that it stays"
            )
    _refuse_existing(options, sheet, targets)


def _refuse_existing(options: CommandOptions, sheet: Path, targets: Sequence[Path]) -> None:
    """`UserInputError` if a name that nobody typed is taken: --out itself is what was asked."""
    derived = list(targets) if options.outdir is not None else [sheet] * (options.out is None)
    there = [path for path in derived if os.path.lexists(path)]
    if there and not options.overwrite:
        more = f" and {len(there) - 1} more" if len(there) > 1 else ""
        raise UserInputError(
            f"{there[0]}{more} would be overwritten; write to another place, or add --overwrite"
        )


def _check_sources(sources: Sequence[Path]) -> None:
    from hebm_sample.io.images import open_image

    # One at a time: many large images do not fit into memory together.
    for source in sources:
        open_image(source)


# After it


def _squares(pipe: "Pipeline", sources: Sequence[Path]) -> list["Image"]:
    """The images as the model sees them."""
    from hebm_sample.io.images import prepare, to_pil

    return to_pil(prepare(list(sources), pipe.config.generator.image_size))


def _total_steps(pipe: "Pipeline", options: SteeringOptions, count: int) -> int:
    return pipe.total_steps(num_images=count, batch_size=options.batch, steps=options.steps)


def _facts(pipe: "Pipeline", options: SteeringOptions, **more: Any) -> dict[str, Any]:
    asked = {"symbols": options.symbols or None, "guidance": options.weights or None, **more}
    return model_facts(pipe) | sampler_facts(pipe, options) | asked


def _save(
    options: CommandOptions,
    sheet: tuple[Path, list["Image"], int],
    singles: Sequence[tuple[int, Path, "Image"]],
    facts: dict[str, Any],
) -> list[Path]:
    """The sheet (path, images, columns), or with --outdir the singles (seed, path, image).

    Returns the files written.
    """
    from hebm_sample.io.images import grid, save_png

    if options.outdir is None:
        path, images, columns = sheet
        seeds = format_seeds([seed for seed, _, _ in singles]) or None
        save_png(grid(images, columns), path, png_text(facts, seeds=seeds))
        return [path]
    options.outdir.mkdir(parents=True, exist_ok=True)
    for seed, path, image in singles:
        save_png(image, path, png_text(facts, seed=seed))
    return [path for _, path, _ in singles]


def _answer(
    options: CommandOptions, files: Sequence[Path], count: int, facts: dict[str, Any], start: float
) -> None:
    """The closing line, or --json."""
    seconds = round(time.perf_counter() - start, 3)
    if options.as_json:
        written = {"files": list(map(os.fspath, files))}
        click.echo(json.dumps({**written, **facts, "seconds": seconds}))
    elif not options.quiet:
        where = click.format_filename(options.outdir or files[0])
        click.echo(f"{where}: {counted(count)} in {seconds:.1f} s")


def _drawn(samples: "Samples") -> dict[str, Any]:
    energies = [] if samples.energies is None else samples.energies.float().tolist()
    return {"seeds": list(samples.seeds), "energies": energies}


def _edit(options: EditOptions) -> None:
    start = time.perf_counter()
    sheet, targets = _sheet_path(options, options.images[0], "edit"), options.targets
    _check_files(options, options.images, sheet, targets)
    pipe = load(options)
    from hebm_sample.pipeline.editing import ENCODE_STREAM

    count, seeds, batch = len(options.images), options.chosen_seeds, options.batch
    if options.outdir is None:
        check_sheet(3 * count, pipe.config.generator.image_size, 3)
    groups = None if options.groups is None else list(options.groups)
    own = [derived_seed(seed, ENCODE_STREAM) for seed in seeds]  # of the draw that `edit` makes
    total = _total_steps(pipe, options, count)
    with progress_bar(total, pipe.name, options.quiet) as progress, within_memory(batch):
        originals = _squares(pipe, options.images)
        edited = pipe.edit(
            originals,
            groups=groups,
            strength=options.strength,
            method=options.method,
            seeds=seeds,
            batch_size=batch,
            progress=progress,
            **options.settings,
            **options.wishes,
        )
        decoded = pipe.decode(pipe.encode(originals, seeds=own, batch_size=batch))
    facts = _facts(pipe, options, strength=options.strength, method=options.method, groups=groups)
    rows = zip(originals, decoded, edited.images, strict=True)
    images = [image for row in rows for image in row]
    singles = list(zip(seeds, targets or [sheet] * count, edited.images, strict=True))
    files = _save(options, (sheet, images, 3), singles, facts)
    _answer(options, files, count, _drawn(edited) | facts, start)


def _interpolate(options: InterpolateOptions) -> None:
    start, count = time.perf_counter(), options.num_images
    sheet = _sheet_path(options, options.a, "interpolate")
    _check_files(options, [options.a, options.b], sheet, [])
    pipe = load(options)
    check_sheet(count, pipe.config.generator.image_size, count)
    with within_memory(options.batch):
        a, b = _squares(pipe, [options.a, options.b])
        between = pipe.interpolate([a], [b], count, batch_size=options.batch)
    facts = model_facts(pipe)
    files = _save(options, (sheet, between, count), [], facts)
    _answer(options, files, count, facts, start)


def _inpaint(options: InpaintOptions) -> None:
    start = time.perf_counter()
    sheet, targets = _sheet_path(options, options.image, "inpaint"), options.targets
    _check_files(options, [options.image, options.mask], sheet, targets)
    pipe = load(options)
    from hebm_sample.io.images import open_image, prepare, prepare_masks, to_pil

    seeds, size = options.chosen_seeds, pipe.config.generator.image_size
    columns = len(seeds) + 2
    if options.outdir is None:
        check_sheet(columns, size, columns)
    image, mask = open_image(options.image), open_image(options.mask)
    x, unknown = prepare(image, size), prepare_masks(mask, image, size, 1)
    total = _total_steps(pipe, options, len(seeds))
    with progress_bar(total, pipe.name, options.quiet) as progress, within_memory(options.batch):
        filled = pipe.inpaint(
            (x + 1).div(2).expand(len(seeds), -1, -1, -1),
            unknown[0],
            weight=options.weight,
            strength=options.strength,
            seeds=seeds,
            batch_size=options.batch,
            progress=progress,
            **options.settings,
            **options.wishes,
        )
    facts = _facts(pipe, options, strength=options.strength, weight=options.weight)
    images = [*to_pil(x), *to_pil(x.masked_fill(unknown, 0.0)), *filled.images]
    singles = list(zip(seeds, targets or [sheet] * len(seeds), filled.images, strict=True))
    files = _save(options, (sheet, images, columns), singles, facts)
    _answer(options, files, len(seeds), _drawn(filled) | facts, start)


def _score(options: ScoreOptions) -> None:
    start = time.perf_counter()
    _check_sources(options.images)
    pipe = load(options)
    groups = None if options.groups is None else list(options.groups)
    with within_memory(options.batch):
        squares = _squares(pipe, options.images)
        rows = scores(pipe, squares, groups, options.batch)
    rows = [{"picture": os.fspath(p), **r} for p, r in zip(options.images, rows, strict=True)]
    if options.as_json:
        seconds = round(time.perf_counter() - start, 3)
        facts = {"p_value": pipe.p_value_note(), **model_facts(pipe)}
        click.echo(json.dumps({"scores": rows, **facts, "seconds": seconds}))
    else:
        click.echo(score_table(rows))
        click.echo(pipe.p_value_note())


# The commands


class _Group(OneLineErrors, click.Group):
    """A group of commands whose every error is one line."""


_IMAGES = click.argument("images", nargs=-1, required=True, type=PATH, metavar="IMAGE...")
_SEEDS = SeedsType()
_OUT = option(
    "Output",
    "--out",
    type=PATH,
    metavar="FILE",
    help="One PNG with all images on a sheet.  [default: IMAGE's name and the command's]",
)
_OVERWRITE = option(
    "Output", "--overwrite", is_flag=True, help="Replace files of the names that results get."
)
_CONTEXT: dict[str, Any] = {
    "help_option_names": ["-h", "--help"],
    "max_content_width": 100,
}


def _outdir(name: str) -> Callable[[Any], Any]:
    text = f"One PNG a result instead: DIR/{name}.png."
    return option("Output", "--outdir", type=PATH, metavar="DIR", help=text)


def _groups(text: str) -> Callable[[Any], Any]:
    return option("Images", "--groups", type=GroupsType(), metavar="LIST", help=text)


def _strength(default: float, text: str) -> Callable[[Any], Any]:
    return option(
        "Images",
        "--strength",
        type=click.FloatRange(0.0, 1.0, min_open=True),
        callback=finite,
        default=default,
        show_default=True,
        metavar="X",
        help=text,
    )


@click.group(cls=_Group, epilog=_EXAMPLES, context_settings=_CONTEXT)
@click.version_option(__version__, message="hebm-edit %(version)s")
def main() -> None:
    """Edit, complete and judge real images with a model's energies.

    PNG, JPEG, WebP, AVIF, BMP, GIF, PPM and TIFF files are read, cropped to the middle square and
    resized to the model's size.
    """


@main.command(cls=SectionedCommand, context_settings=_CONTEXT)
@_IMAGES
@taking(
    DATASET,
    REVISION,
    option("Images", "--seeds", type=_SEEDS, metavar="LIST", help="One per image."),
    _strength(0.77, "Noise to go up to: less changes less."),
    option(
        "Images",
        "--method",
        type=click.Choice(["flow", "noise"]),
        default="flow",
        show_default=True,
        help="How: along the flow, which keeps what is not asked for; or by drawing anew.",
    ),
    _groups("Groups that may change, 0 the top: 0-3.  [default: all]"),
    STEERING,
    SAMPLER,
    MACHINE,
    _OUT,
    _outdir("IMAGE"),
    _OVERWRITE,
    OUTPUT,
)
def edit(**options: Any) -> None:
    """Change what is asked of images, and keep the rest.

    The sheet has a row per image: as it is, reconstructed, edited.
    """
    _edit(EditOptions(**options))


@main.command(cls=SectionedCommand, context_settings=_CONTEXT)
@click.argument("a", type=PATH)
@click.argument("b", type=PATH)
@taking(
    DATASET,
    REVISION,
    option(
        "Images",
        "-n",
        "--num-images",
        type=click.IntRange(2, MAX_SEEDS),
        default=9,
        show_default=True,
        metavar="N",
        help="Number of images, both ends included.",
    ),
    MACHINE,
    _OUT,
    _OVERWRITE,
    OUTPUT,
)
def interpolate(**options: Any) -> None:
    """A row of images from A to B, on great circles in the latents."""
    _interpolate(InterpolateOptions(**options))


@main.command(cls=SectionedCommand, context_settings=_CONTEXT)
@click.argument("image", type=PATH)
@taking(
    DATASET,
    REVISION,
    option(
        "Images",
        "--mask",
        type=PATH,
        required=True,
        metavar="FILE",
        help="White where to fill in; of the image's size, or the model's.",
    ),
    option(
        "Images", "--seeds", type=_SEEDS, metavar="LIST", help="One result a seed.  [default: 0]"
    ),
    _strength(0.9, "Noise to start from: less keeps more of a smooth filling."),
    option(
        "Images",
        "--weight",
        type=click.FloatRange(0.0, 1000.0),
        callback=finite,
        default=1.0,
        show_default=True,
        metavar="W",
        help="Of the known pixels' likelihood.",
    ),
    STEERING,
    SAMPLER,
    MACHINE,
    _OUT,
    _outdir("IMAGE-seed0007"),
    _OVERWRITE,
    OUTPUT,
)
def inpaint(**options: Any) -> None:
    """Fill in the white of a mask; the other pixels stay as they are.

    The sheet is a row: the image, what is known of it, and a result a seed.
    """
    _inpaint(InpaintOptions(**options))


@main.command(cls=SectionedCommand, context_settings=_CONTEXT)
@_IMAGES
@taking(
    DATASET,
    REVISION,
    _groups("Groups that count, 0 the top: 0-3.  [default: all]"),
    MACHINE,
    OUTPUT[0],
)
def score(**options: Any) -> None:
    """How unusual images are: log densities and p-values, low for what is unusual; energies, high
    for it; and symbol probabilities.

    A p-value is the share of held-out images that are at least as unusual, all groups together; it
    needs a model that carries a calibration.
    """
    _score(ScoreOptions(**options))


if __name__ == "__main__":
    main()
