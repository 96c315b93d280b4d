"""How likely are these images? Their energy, by the number of top groups that count.

    E_k(x) = -sum_{i <= k} F_i(u),    mean over u ~ q(u | x),    at the lowest noise level

An energy is the log ratio of N(0, I) to the prior, and only differences within a column say
something. The top groups hold the coarse content, so the columns say at which depth of the
hierarchy images differ.
"""

import csv
from pathlib import Path

import click
import torch

from hebm_sample import Pipeline

NUM = 8


def examples(pipe: Pipeline) -> dict[str, object]:
    """Images to score where none were given: of the model, of N(0, I), and pure noise."""
    size = pipe.config.generator.image_size
    noise = torch.rand(NUM, 3, size, size, generator=torch.Generator().manual_seed(0))
    return {
        "samples": pipe(NUM, output_type="torch").images,
        "N(0, I)": pipe(NUM, prior="gaussian", output_type="torch").images,
        "noise": noise,
    }


def scores(pipe: Pipeline, images: object) -> torch.Tensor:
    """E_k of each image for k = 1 ... L, (N, L)."""
    depth = len(pipe.config.generator.latent_shapes)
    columns = [pipe.energy(images, groups=slice(0, k + 1)) for k in range(depth)]
    return torch.stack(columns, dim=1)


@click.command()
@click.argument("files", nargs=-1, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--model", default="celebahq", show_default=True, help="Name, Hub id or folder.")
@click.option("--out", default="energies.csv", show_default=True, help="A row per image, as CSV.")
def main(files: tuple[Path, ...], model: str, out: str) -> None:
    """Score FILES; without any, samples of the model beside N(0, I) and noise."""
    pipe = Pipeline.from_pretrained(model)
    sets = {str(path): [path] for path in files} or examples(pipe)
    found = {name: scores(pipe, images) for name, images in sets.items()}
    depth = len(pipe.config.generator.latent_shapes)
    with open(out, "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["images", *(f"top {k + 1}" for k in range(depth))])
        for name, rows in found.items():
            table.writerows([name, *map("{:.4f}".format, row)] for row in rows.tolist())
    width = max(len(name) for name in found)
    click.echo(" " * width + "".join(f"{f'top {k + 1}':>10}" for k in range(depth)))
    for name, rows in found.items():
        click.echo(name.ljust(width) + "".join(f"{v:10.2f}" for v in rows.mean(0).tolist()))


if __name__ == "__main__":
    main()
