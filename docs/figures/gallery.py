"""Draws the images of docs/gallery.md and the strip of the README: every one from seeds.

    python docs/figures/gallery.py                  all of them, to docs/images
    python docs/figures/gallery.py guidance edits   some

All images are samples of the embedded models, and what the models make of their own samples;
none is of a data set. Files are WebP, which is a tenth of the same grid as PNG.
"""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TypeAlias

import click
from PIL import Image

from hebm_sample import Pipeline
from hebm_sample.io.images import grid
from hebm_sample.pipeline.outputs import Trajectory

IMAGES = Path(__file__).resolve().parents[1] / "images"
QUALITY = 88
Draw: TypeAlias = Callable[[], Image.Image | Trajectory]
FIGURES: dict[str, Draw] = {}


def figure(draw: Draw) -> Draw:
    FIGURES[draw.__name__] = draw
    return draw


@cache
def model(name: str, resolution: int | None = None) -> Pipeline:
    return Pipeline.from_pretrained(name, resolution=resolution)


def at_side(images: list[Image.Image], side: int) -> list[Image.Image]:
    """Pixels are repeated or averaged, so that models of several sizes fit into one grid."""
    return [
        p.resize(
            (side, side), Image.Resampling.NEAREST if p.width < side else Image.Resampling.BOX
        )
        for p in images
    ]


@figure
def strip() -> Image.Image:
    """Seeds 0 to 7 of celebahq, celeba64, church64 and cifar10 (with guidance 4), a row each."""
    rows = at_side(model("celebahq")(8).images, 128)
    rows += at_side(model("celeba64")(8).images, 128)
    rows += at_side(model("church64")(8).images, 128)
    classes = ("airplane", "automobile", "bird", "cat", "deer", "dog", "horse", "ship")
    asked = [{"class": name} for name in classes]
    return grid(rows + at_side(model("cifar10")(8, symbols=asked, guidance=4.0).images, 128), 8)


@figure
def variations() -> Image.Image:
    """Rows: seeds 4 and 9 of celebahq at 64x64, each with seven that keep its top three groups."""
    pipe = model("celebahq", 64)
    own = pipe(seeds=[4, 9])
    varied = pipe.vary(own, 3, 7).images
    rows = [[face, *varied[7 * k : 7 * k + 7]] for k, face in enumerate(own.images)]
    return grid([image for row in rows for image in row], 8)


@figure
def guidance() -> Image.Image:
    """Seeds 0 to 7 of celeba64: unconditional, then Blond_Hair=yes with guidance 1, 4 and 8."""
    pipe = model("celeba64")
    rows = pipe(8).images
    for weight in (1.0, 4.0, 8.0):
        rows += pipe(8, symbols={"Blond_Hair": "yes"}, guidance=weight).images
    return grid(rows, 8)


@figure
def edits() -> Image.Image:
    """celebahq at 64x64, seeds 0 to 7; then edited to Smiling, Eyeglasses and Blond_Hair."""
    pipe = model("celebahq", 64)
    faces = pipe(8).images
    rows = [faces]
    for name in ("Smiling", "Eyeglasses", "Blond_Hair"):
        rows.append(pipe.edit(faces, {name: "yes"}).images)
    return grid([image for row in rows for image in row], 8)


@figure
def inpainting_256() -> Image.Image:
    """Rows: seeds 4 and 9 of celebahq at 256x256, what is known of them, two ways to go on."""
    pipe, seeds = model("celebahq"), [4, 9]
    faces, size = pipe(seeds=seeds).images, pipe.config.generator.image_size
    mask = Image.new("L", (size, size), 0)
    mask.paste(255, (0, size // 2, size, size))  # the lower half is filled in
    grey = Image.new("RGB", (size, size), (128, 128, 128))
    known = [Image.composite(grey, face, mask) for face in faces]
    ways = [pipe.inpaint(faces, mask, seeds=chosen).images for chosen in ([0, 1], [2, 3])]
    rows = zip(faces, known, *ways, strict=True)
    return grid([image for row in rows for image in row], 4)


@figure
def priors() -> Image.Image:
    """Seeds 16 to 23 of celeba64: from N(0, I), then from the energy-based prior."""
    pipe, seeds = model("celeba64"), range(16, 24)
    return grid(pipe(seeds=seeds, prior="gaussian").images + pipe(seeds=seeds).images, 8)


@figure
def torn() -> Image.Image:
    """Seeds 3, 4, 5 and 9 of celeba64; with a temperature of 0.8; the best of four."""
    pipe, seeds = model("celeba64"), [3, 4, 5, 9]
    rows = pipe(seeds=seeds).images + pipe(seeds=seeds, temperature=0.8).images
    return grid(rows + pipe(seeds=seeds, best_of=4).images, 4)


@figure
def frogs() -> Image.Image:
    """Seeds 0 to 7 of cifar10: class frog with guidance 1, then 4."""
    pipe = model("cifar10")
    rows = [pipe(8, symbols={"class": "frog"}, guidance=w).images for w in (1.0, 4.0)]
    return grid(at_side([image for row in rows for image in row], 64), 8)


@figure
def animation() -> Trajectory:
    """Seeds 0 to 8 of celeba64 on their way, 24 steps of the flow; moves."""
    pipe = model("celeba64")
    return pipe.trajectory(9, sampler="flow", steps=24)


@click.command()
@click.argument("names", nargs=-1, type=click.Choice(list(FIGURES)))
@click.option(
    "--out", default=IMAGES, type=click.Path(path_type=Path, file_okay=False), show_default=True
)
def main(names: tuple[str, ...], out: Path) -> None:
    """Write the figures NAMES, all by default."""
    for name in names or FIGURES:
        path = out / f"{name.replace('_', '-')}.webp"
        drawn = FIGURES[name]()
        if isinstance(drawn, Trajectory):
            drawn.save(path, overwrite=True)
        else:
            drawn.save(path, quality=QUALITY, method=6)
        click.echo(f"{path}: {path.stat().st_size / 1024:.0f} KiB. {FIGURES[name].__doc__}")


if __name__ == "__main__":
    main()
