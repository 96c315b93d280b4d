"""What the energy-based prior buys: samples with it and without it beside reconstructions.

Rows of the grid, top to bottom:

    u ~ p(u)          the energy-based prior
    u ~ N(0, I)       the same seeds without it
    x                 images
    u ~ q(u | x)      their reconstructions: what the generator can say when u is right
"""

from pathlib import Path

import click

from hebm_sample import Pipeline
from hebm_sample.io.images import grid, prepare, to_pil

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp"}


@click.command()
@click.option("--model", default="celebahq", show_default=True, help="Name, Hub id or folder.")
@click.option("--out", default="priors.png", show_default=True, help="The grid, a PNG.")
@click.option("-n", "--num-images", default=8, show_default=True, help="Images in a row.")
@click.option(
    "--images",
    "--pictures",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder of images to reconstruct.  [default: the samples of the first row]",
)
def main(model: str, out: str, num_images: int, images: Path | None) -> None:
    """Write one grid: samples, samples of N(0, I), images, reconstructions."""
    pipe = Pipeline.from_pretrained(model)
    learned = pipe(num_images)
    gaussian = pipe(num_images, prior="gaussian")
    originals = learned.images
    if images is not None:
        paths = sorted(p for p in images.iterdir() if p.suffix.lower() in SUFFIXES)
        if len(paths) < num_images:
            raise click.UsageError(f"{images} has {len(paths)} images, not {num_images}")
        # Cropped to the middle square and resized, as the encoder sees them.
        originals = to_pil(prepare(paths[:num_images], pipe.config.generator.image_size))
    rebuilt = pipe.reconstruct(originals)
    grid([*learned.images, *gaussian.images, *originals, *rebuilt], num_images).save(out)
    click.echo(f"{out}: energy-based prior, N(0, I), images, reconstructions")
    for name, samples in (("energy-based prior", learned), ("N(0, I)", gaussian)):
        if pipe.prior is not None:
            energy = pipe.energy(latents=samples.latents).mean()
            click.echo(f"mean energy, {name}: {energy:.2f}")


if __name__ == "__main__":
    main()
