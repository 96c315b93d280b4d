"""Fill in what is missing of an image.

    p(u | known pixels) ∝ p(u) p(known pixels | u)

Rows of the grid: images, what is known of them, two ways to go on.
"""

import click
from PIL import Image

from hebm_sample import Pipeline
from hebm_sample.io.images import grid, prepare, to_pil


@click.command()
@click.argument("files", nargs=-1, type=click.Path(exists=True, dir_okay=False))
@click.option("--dataset", default="celeba64", show_default=True, help="Name, Hub id or folder.")
@click.option("--mask", metavar="FILE", help="White is filled in.  [default: the lower half]")
@click.option("--out", default="inpainted.png", show_default=True, help="The grid, a PNG.")
def main(files: tuple[str, ...], dataset: str, mask: str | None, out: str) -> None:
    """Fill in FILES; without any, eight samples of the model."""
    pipe = Pipeline.from_pretrained(dataset)
    size = pipe.config.generator.image_size
    images = to_pil(prepare(files, size)) if files else pipe(8).images
    area = Image.new("L", (size, size), 0)
    area.paste(255, (0, size // 2, size, size))
    if mask:
        area = to_pil(prepare(mask, size))[0].convert("L")
    grey = Image.new("RGB", (size, size), (128, 128, 128))
    known = [Image.composite(grey, image, area) for image in images]
    count = len(images)
    ways = [pipe.inpaint(images, area, seeds=range(k, k + count)).images for k in (0, count)]
    grid([*images, *known, *ways[0], *ways[1]], count).save(out)
    click.echo(f"{out}: files, known pixels, filled in twice")


if __name__ == "__main__":
    main()
