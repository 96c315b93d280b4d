"""From noise to a picture: u_t decoded after each noise level, t = T-1 at the top, 0 below."""

import click

from hebm_sample import Pipeline
from hebm_sample.images import grid


@click.command()
@click.option("--dataset", default="celeba64", show_default=True, help="Name, Hub id or folder.")
@click.option("-n", "--num-images", default=8, show_default=True, help="Pictures in a row.")
@click.option("--out", default="trajectory.png", show_default=True, help="The sheet, a PNG.")
def main(dataset: str, num_images: int, out: str) -> None:
    """Write a row of pictures for each level."""
    pipe = Pipeline.from_pretrained(dataset)
    rows = []
    for step in pipe.stream(num_images):
        rows += step.images
        click.echo(f"level {step.level}: mean energy {step.energies.sum(1).mean():.1f}")
    grid(rows, num_images).save(out)
    click.echo(f"{out}: {len(rows) // num_images} levels")


if __name__ == "__main__":
    main()
