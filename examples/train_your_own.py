"""From a folder of images to a model folder, through the Python interface.

    images -> generator and encoder -> energy-based prior -> folder that `Pipeline` loads

Needs the extra `train`. Without `--data` it draws 48 toy images (a disc on a plain ground) and
takes some seconds; with `--preset images64` and a folder of photographs, hours. The commands
`hebm-train generator`, `prior` and `export` do the same.
"""

import random
from pathlib import Path

import click
from PIL import Image, ImageDraw

from hebm_sample import Pipeline
from hebm_sample.data.dataset import load_images
from hebm_sample.presets.models import find_preset
from hebm_sample.training.export import export
from hebm_sample.training.train import train_generator, train_prior

SIDE = 32


def draw_discs(folder: Path, count: int = 48) -> Path:
    """Write toy images to learn from."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(0)
    for i in range(count):
        ground, colour = (tuple(rng.randrange(256) for _ in range(3)) for _ in range(2))
        image = Image.new("RGB", (SIDE, SIDE), ground)
        x, y, r = rng.uniform(8, 24), rng.uniform(8, 24), rng.uniform(4, 9)
        ImageDraw.Draw(image).ellipse((x - r, y - r, x + r, y + r), fill=colour)
        image.save(folder / f"{i:03d}.png")
    return folder


@click.command()
@click.option("--data", type=click.Path(exists=True), help="Images.  [default: toy images]")
@click.option("--preset", default="tiny", show_default=True, help="See hebm-train --list-presets.")
@click.option("--model", default="discs", show_default=True, help="What to call the model.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("my-model"),
    show_default=True,
    help="Folder for the runs, the model and a grid of its samples.",
)
def main(data: str | None, preset: str, model: str, out: Path) -> None:
    """Train a generator, then its prior, and sample from the result."""
    chosen = find_preset(preset)
    images = load_images(
        data or draw_discs(out / "toy"),
        size=chosen.generator.image_size,
        cache_dir=out / "decoded",
    )

    train_generator(chosen, images, out / "generator")
    generator = Pipeline.from_pretrained(out / "generator" / "model", device="cpu")

    train_prior(chosen, generator, images, out / "prior")
    export(out / "prior", out / "model", name=model)

    pipe = Pipeline.from_pretrained(out / "model")
    pipe(16).grid().save(out / "samples.png")
    click.echo(f"{out / 'model'}: {pipe.name}; samples in {out / 'samples.png'}")


if __name__ == "__main__":
    main()
