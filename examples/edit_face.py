"""Give faces another attribute and keep the rest.

    u_0 ~ q(u | x), inverted to cum_sigma = strength, and back under the condition

Rows of the grid: images, their reconstructions, the edits.
"""

import click

from hebm_sample import Pipeline
from hebm_sample.io.images import grid, prepare, to_pil


@click.command()
@click.argument("files", nargs=-1, type=click.Path(exists=True, dir_okay=False))
@click.option("--dataset", default="celeba64", show_default=True, help="Name, Hub id or folder.")
@click.option("--attr", metavar="NAME=VALUE", help="[default: Smiling=yes, or what there is]")
@click.option("--top", type=int, help="How many groups may change.  [default: all]")
@click.option("--strength", default=0.77, show_default=True, help="Noise to go up to.")
@click.option("--guidance", default=32.0, show_default=True, help="w.")
@click.option("--method", default="flow", show_default=True, help="flow, or noise: drawn anew.")
@click.option("--out", default="edits.png", show_default=True, help="The grid, a PNG.")
def main(files: tuple[str, ...], dataset: str, attr: str | None, out: str, **options) -> None:
    """Edit FILES; without any, eight samples of the model."""
    pipe = Pipeline.from_pretrained(dataset)
    symbols = {"Smiling": "yes"} if "Smiling" in pipe.symbols else {}
    symbols = symbols or {name: values[-1] for name, values in list(pipe.symbols.items())[:1]}
    if attr:
        name, _, value = attr.partition("=")
        symbols = {name: value or "yes"}
    size = pipe.config.generator.image_size
    images = to_pil(prepare(files, size)) if files else pipe(8).images
    top = slice(0, options.pop("top"))
    edited = pipe.edit(images, symbols, groups=top, **options)
    grid([*images, *pipe.reconstruct(images), *edited.images], len(images)).save(out)
    click.echo(f"{out}: files, reconstructions, {symbols}")


if __name__ == "__main__":
    main()
