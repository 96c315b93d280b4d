"""Several symbols at once, each row asking for one more.

    u ~ exp(F_open(u) + sum_v w log p(y_v in S_v | u)) N(u; 0, I)

All rows have the same seeds; the first is unconditional.
"""

import click

from hebm_sample import Pipeline

FACE = {"Male": "no", "Smiling": "yes", "Blond_Hair": "yes"}


@click.command()
@click.option("--dataset", default="celeba64", show_default=True, help="Name, Hub id or folder.")
@click.option("--attr", multiple=True, metavar="NAME=VALUE", help="To add; ~VALUE is NOT.")
@click.option("--guidance", default=2.0, show_default=True, help="w.")
@click.option("-n", "--num-images", default=8, show_default=True, help="Images in a row.")
@click.option("--out", default="attributes.png", show_default=True, help="The grid, a PNG.")
def main(dataset: str, attr: tuple[str, ...], guidance: float, num_images: int, out: str) -> None:
    """Write one unconditional row, then one for each attribute that is added."""
    pipe = Pipeline.from_pretrained(dataset)
    asked = [(name, value or "yes") for name, _, value in (a.partition("=") for a in attr)]
    asked = asked or [(name, value) for name, value in FACE.items() if name in pipe.symbols]
    # A model of other things than faces: the last values of its first two variables.
    asked = asked or [(name, values[-1]) for name, values in list(pipe.symbols.items())[:2]]
    rows = [dict(asked[:k]) for k in range(len(asked) + 1)]
    conditions = [row for row in rows for _ in range(num_images)]
    seeds = [seed for _ in rows for seed in range(num_images)]
    samples = pipe(seeds=seeds, symbols=conditions, guidance=guidance)
    samples.grid(columns=num_images).save(out)
    for row in rows:
        click.echo(", ".join("=".join(pair) for pair in row.items()) or f"{out}: unconditional")


if __name__ == "__main__":
    main()
