"""The command `hebm-edit`: what a model makes of real images.

    edit          lead images to a condition, keep the rest
    interpolate   between two images
    inpaint       fill in the white of a mask
    score         p-values, densities, energies and symbol probabilities

What they do is in `work/editing.py`. Images are read, and places to write to are checked, before
the model is loaded; torch is imported after that.
"""

from collections.abc import Callable
from typing import Any

import click

from hebm_sample import __version__
from hebm_sample.cli.errors import OneLineErrors
from hebm_sample.cli.options import (
    CONTEXT,
    DATASET,
    DECODER,
    MACHINE,
    OUTPUT,
    OVERWRITE,
    PATH,
    REVISION,
    SectionedCommand,
    option,
    out,
    outdir,
    sampler_options,
    seeds,
    steering,
    taking,
)
from hebm_sample.cli.requests.edit import (
    EditOptions,
    InpaintOptions,
    InterpolateOptions,
    ScoreOptions,
)
from hebm_sample.cli.requests.grammar import GroupsType, NumberType, WordType
from hebm_sample.cli.work import editing
from hebm_sample.config import EDIT_GUIDANCE, EDIT_STEPS
from hebm_sample.io.seeds import MAX_SEEDS

__all__ = ["main"]

_EXAMPLES = """\b
Examples:
  hebm-edit edit face.jpg --dataset celeba64 --attr Smiling
  hebm-edit edit *.jpg --dataset celeba64 --attr Male=no --guidance 16 --outdir edited
  hebm-edit edit photo.jpg --dataset celebahq --attr Smiling --align --paste-back
  hebm-edit interpolate a.jpg b.jpg --dataset celebahq -n 9
  hebm-edit inpaint face.jpg --mask mask.png --dataset celebahq --seeds 0-3
  hebm-edit score *.jpg --dataset celeba64 --json

Completion: eval "$(_HEBM_EDIT_COMPLETE=bash_source hebm-edit)" in ~/.bashrc; also zsh, fish.
"""


# The commands


class _Group(OneLineErrors, click.Group):
    """A group of commands whose every error is one line."""


_OF_NOISE = "of --method noise the model's"
_IMAGES = click.argument("images", nargs=-1, required=True, type=PATH, metavar="IMAGE...")
_OUT = out("One image file with all images on a grid.  [default: IMAGE's name and the command's]")


def _outdir(name: str) -> Callable[[Any], Any]:
    return outdir(f"One PNG a result instead: DIR/{name}.png.")


_ALIGN = (
    option(
        "Images",
        "--align",
        is_flag=True,
        help="Find the face, turn and crop it as the model's images are (extra `align`).",
    ),
    option(
        "Images",
        "--face",
        type=click.IntRange(1),
        metavar="K",
        help="With --align: which, numbered from the left.  [default: the largest]",
    ),
)
_PASTE_BACK = option(
    "Images",
    "--paste-back",
    is_flag=True,
    help="With --align: write the photograph with the result in the face's place.",
)


def _groups(text: str) -> Callable[[Any], Any]:
    return option("Images", "--groups", type=GroupsType(), metavar="LIST", help=text)


def _strength(default: float, text: str) -> Callable[[Any], Any]:
    return option(
        "Images",
        "--strength",
        type=NumberType(0.0, 1.0, min_open=True),
        default=default,
        show_default=True,
        metavar="X",
        help=text,
    )


@click.group(cls=_Group, epilog=_EXAMPLES, context_settings=CONTEXT)
@click.version_option(__version__, message="hebm-edit %(version)s")
def main() -> None:
    """Edit, complete and score real images with a model's energies.

    PNG, JPEG, WebP, AVIF, BMP, GIF, PPM and TIFF files are read, cropped to the middle square, or
    with --align to the face, and resized to the model's size.
    """


@main.command(cls=SectionedCommand, context_settings=CONTEXT)
@_IMAGES
@taking(
    DATASET,
    REVISION,
    _ALIGN,
    _PASTE_BACK,
    seeds("One per image, or the first of them.  [default: 0]"),
    _strength(0.77, "Noise to go up to: less changes less."),
    option(
        "Images",
        "--method",
        type=WordType(["flow", "noise"]),
        default="flow",
        show_default=True,
        help="How: along the flow, which keeps what the condition leaves open; or with new noise.",
    ),
    _groups("Groups that may change, 0 the top: 0-3.  [default: all]"),
    steering(f"{EDIT_GUIDANCE:g}"),
    sampler_options(_OF_NOISE, f"{EDIT_STEPS}; {_OF_NOISE}"),
    MACHINE,
    _OUT,
    _outdir("IMAGE"),
    DECODER,
    OVERWRITE,
    OUTPUT,
)
def edit(**options: Any) -> None:
    """Lead images to a condition, and keep the rest.

    The grid has a row per image: as it is, reconstructed, edited.
    """
    editing.edit(EditOptions(**options))


@main.command(cls=SectionedCommand, context_settings=CONTEXT)
@click.argument("a", type=PATH)
@click.argument("b", type=PATH)
@taking(
    DATASET,
    REVISION,
    _ALIGN,
    option(
        "Images",
        "-n",
        "--num-images",
        "--num",
        type=click.IntRange(2, MAX_SEEDS),
        default=9,
        show_default=True,
        metavar="N",
        help="Number of images, both ends included.",
    ),
    MACHINE,
    _OUT,
    DECODER,
    OVERWRITE,
    OUTPUT,
)
def interpolate(**options: Any) -> None:
    """A row of images from A to B, on great circles in the latents."""
    editing.interpolate(InterpolateOptions(**options))


@main.command(cls=SectionedCommand, context_settings=CONTEXT)
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
    _ALIGN,
    _PASTE_BACK,
    seeds("One result per seed.  [default: 0]"),
    _strength(0.9, "Noise to start from: less keeps more of a smooth filling."),
    option(
        "Images",
        "--weight",
        type=NumberType(0.0, 1000.0),
        default=1.0,
        show_default=True,
        metavar="W",
        help="Of the known pixels' likelihood.",
    ),
    steering(),
    sampler_options(steps=str(EDIT_STEPS)),
    MACHINE,
    _OUT,
    _outdir("IMAGE-seed0007"),
    DECODER,
    OVERWRITE,
    OUTPUT,
)
def inpaint(**options: Any) -> None:
    """Fill in the white of a mask; the other pixels stay as they are, but for a narrow band.

    The grid is a row: the image, what is known of it, and a result per seed.
    """
    editing.inpaint(InpaintOptions(**options))


@main.command(cls=SectionedCommand, context_settings=CONTEXT)
@_IMAGES
@taking(
    DATASET,
    REVISION,
    _ALIGN,
    _groups("Groups that count, 0 the top: 0-3.  [default: all]"),
    MACHINE,
    OUTPUT[0],
)
def score(**options: Any) -> None:
    """How unusual images are: p-values, low for what is unusual; and log densities, energies and
    symbol probabilities.

    A p-value is the share of held-out images that are at least as unusual, all groups together; it
    needs a model that carries a calibration. A log density or an energy alone is no measure of
    it: smooth images of any kind have high densities.
    """
    editing.score(ScoreOptions(**options))


if __name__ == "__main__":
    main()
