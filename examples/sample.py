"""A model's name to a grid of 16 images."""

import click

from hebm_sample import Pipeline


@click.command()
@click.option("--model", default="celebahq", show_default=True, help="Name, Hub id or folder.")
@click.option("--out", default="faces.png", show_default=True, help="The grid, a PNG.")
def main(model: str, out: str) -> None:
    """Sample 16 images, one per seed."""
    pipe = Pipeline.from_pretrained(model)
    samples = pipe(seeds=range(16))
    samples.grid().save(out)
    click.echo(f"{out}: seeds {samples.seeds[0]} to {samples.seeds[-1]}")


if __name__ == "__main__":
    main()
