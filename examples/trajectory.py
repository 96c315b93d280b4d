"""From noise to an image: u_t decoded after each noise level, t = T-1 at the top, 0 below.

With `--out animation.gif` or `animation.webp` the levels follow each other in time.
"""

import click

from hebm_sample import Pipeline
from hebm_sample.io.images import grid


@click.command()
@click.option("--dataset", default="celeba64", show_default=True, help="Name, Hub id or folder.")
@click.option("-n", "--num-images", default=8, show_default=True, help="Images in a row.")
@click.option("--out", default="trajectory.png", show_default=True, help=".png, .gif or .webp.")
def main(dataset: str, num_images: int, out: str) -> None:
    """Write a row of images for each level, or an animation."""
    pipe = Pipeline.from_pretrained(dataset)
    trajectory = pipe.trajectory(num_images)
    for step in trajectory.steps:
        energies = "".join(f"{value:8.1f}" for value in step.energies.mean(0).tolist())
        click.echo(f"level {step.level}: mean energy of each group {energies}")
    if out.endswith(".png"):
        rows = [image for step in trajectory.steps for image in step.images]
        grid(rows, num_images).save(out)
    else:
        trajectory.save(out, overwrite=True)
    click.echo(f"{out}: {len(trajectory)} levels")


if __name__ == "__main__":
    main()
