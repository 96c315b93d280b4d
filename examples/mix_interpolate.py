"""Two ways from image a to image b.

    first row     great circles in u, group by group
    second row    the top k groups of a with the others of b, k = L ... 0

Both begin at a and end at b.
"""

import click

from hebm_sample import Pipeline
from hebm_sample.io.images import grid


@click.command()
@click.option("--dataset", default="celeba64", show_default=True, help="Name, Hub id or folder.")
@click.option("--seeds", nargs=2, default=(0, 1), show_default=True, help="Of a and b.")
@click.option(
    "--images", "--pictures", nargs=2, metavar="A B", help="Files to take in place of samples."
)
@click.option("--out", default="between.png", show_default=True, help="The grid, a PNG.")
def main(dataset: str, seeds: tuple[int, int], images: tuple[str, str] | None, out: str) -> None:
    """Write a grid of two rows, both from a to b."""
    pipe = Pipeline.from_pretrained(dataset)
    a, b = [[p] for p in images] if images else [pipe(seeds=seed) for seed in seeds]
    # Encoded once: a posterior draw of a file would be the same each time, but costs time.
    a, b = pipe.latents_of(a), pipe.latents_of(b)
    depth = len(a)
    circle = pipe.interpolate(a, b, depth + 1)
    mixed = [image for k in range(depth, -1, -1) for image in pipe.mix(a, b, k)]
    grid([*circle, *mixed], depth + 1).save(out)
    click.echo(f"{out}: {depth + 1} images per row")


if __name__ == "__main__":
    main()
