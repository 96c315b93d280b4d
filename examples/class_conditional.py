"""A row of images for each value of a symbol.

    u ~ exp(F_open(u) + w log p(y = j | u)) N(u; 0, I)        in row j

All rows have the same seeds, so a column shows one seed under each condition.
"""

import click

from hebm_sample import Pipeline


@click.command()
@click.option("--dataset", default="cifar10", show_default=True, help="Name, Hub id or folder.")
@click.option("--symbol", metavar="NAME", help="The variable.  [default: the model's first]")
@click.option("--guidance", default=2.0, show_default=True, help="w.")
@click.option("-n", "--num-images", default=8, show_default=True, help="Images in a row.")
@click.option("--out", default="classes.png", show_default=True, help="The grid, a PNG.")
def main(dataset: str, symbol: str | None, guidance: float, num_images: int, out: str) -> None:
    """Write one row for each value, and say how often the model's own p(y | u) agrees."""
    pipe = Pipeline.from_pretrained(dataset)
    name = symbol or next(iter(pipe.symbols), "class")
    if name not in pipe.symbols:
        raise click.UsageError(f"{pipe.name} has the symbols {list(pipe.symbols)}, not {name!r}")
    values = pipe.symbols[name]
    conditions = [{name: value} for value in values for _ in range(num_images)]
    seeds = [seed for _ in values for seed in range(num_images)]
    samples = pipe(seeds=seeds, symbols=conditions, guidance=guidance)
    samples.grid(columns=num_images).save(out)
    named = pipe.classify(latents=samples.latents)[name].argmax(1).reshape(-1, num_images)
    click.echo(f"{out}: {name}, guidance {guidance:g}")
    for j, value in enumerate(values):
        click.echo(f"{value}: named in {int((named[j] == j).sum())} of {num_images}")


if __name__ == "__main__":
    main()
