"""What each latent group decides: the paper's hierarchical figure.

    row r:    u_1 ... u_{L-1-r} kept, the groups below resampled

The first column is the image that all the others are variations of.
"""

import click
import torch

from hebm_sample import Pipeline


@click.command()
@click.option("--dataset", default="celeba64", show_default=True, help="Name, Hub id or folder.")
@click.option("--seed", default=7, show_default=True, help="Of the original.")
@click.option("--columns", default=8, show_default=True, help="Images in a row.")
@click.option("--out", default="layers.png", show_default=True, help="The grid, a PNG.")
def main(dataset: str, seed: int, columns: int, out: str) -> None:
    """Write the grid; say how far a row's variations are from the original."""
    pipe = Pipeline.from_pretrained(dataset)
    samples = pipe.layers(seed, columns, output_type="torch")
    samples.grid().save(out)
    rows = torch.stack(samples.images.split(columns))  # (rows, columns, 3, S, S)
    away = (rows[:, 1:] - rows[:, :1]).square().mean((1, 2, 3, 4)).sqrt()
    click.echo(f"{out}: root mean square difference of pixels, in levels of 255")
    for row, distance in enumerate(away.tolist()):
        click.echo(f"top {len(rows) - 1 - row} groups kept: {255 * distance:.1f}")


if __name__ == "__main__":
    main()
