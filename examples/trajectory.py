"""From noise to a picture: u_t decoded after each noise level, t = T-1 at the top, 0 below.

With `--out moving.gif` or `moving.webp` the levels follow each other in time.
"""

import click

from hebm_sample import Pipeline
from hebm_sample.io.images import grid


@click.command()
@click.option("--dataset", default="celeba64", show_default=True, help="Name, Hub id or folder.")
@click.option("-n", "--num-images", default=8, show_default=True, help="Pictures in a row.")
@click.option("--out", default="trajectory.png", show_default=True, help=".png, .gif or .webp.")
def main(dataset: str, num_images: int, out: str) -> None:
    """Write a row of pictures for each level, or pictures that move."""
    pipe = Pipeline.from_pretrained(dataset)
    moving = pipe.trajectory(num_images)
    for step in moving.steps:
        click.echo(f"level {step.level}: mean energy {step.energies.sum(1).mean():.1f}")
    if out.endswith(".png"):
        rows = [picture for step in moving.steps for picture in step.images]
        grid(rows, num_images).save(out)
    else:
        moving.save(out)
    click.echo(f"{out}: {len(moving)} levels")


if __name__ == "__main__":
    main()
