"""Put evaluation sets into the package: a data set's classifier and its reference statistics.

    python tools/embed_statistics.py cifar10 --data DATA

NAME is a preset: its pictures' size and held-out rows are used. The classifier is the one that
`hebm-train evaluate --data` trains and keeps in the cache; it is trained first if it is not there.
The reference are the held-out rows that `evaluate` compares with by default, so that figures with
and without the data are the same.
"""

from pathlib import Path

import click

from hebm_sample.metrics.reference import SHIPPED, build_set, write_set
from hebm_sample.training.evaluate import (
    DEFAULT_FEATURE_STEPS,
    DEFAULT_PICTURES,
    feature_spaces,
    open_held_out,
)
from hebm_sample.training.presets import find_preset


@click.command()
@click.argument("name")
@click.option("--data", required=True)
@click.option("--feature-steps", type=click.IntRange(2), default=DEFAULT_FEATURE_STEPS)
@click.option(
    "--folder",
    type=click.Path(file_okay=False, path_type=Path),
    default=SHIPPED,
    show_default=True,
)
@click.option("--quiet", is_flag=True)
def main(name: str, data: str, feature_steps: int, folder: Path, quiet: bool) -> None:
    """Embed the evaluation set of preset NAME."""
    preset = find_preset(name)
    size, name = preset.generator.image_size, preset.model_name
    training, held_out = open_held_out(
        data, size=size, validation=preset.prior_settings.validation, progress=not quiet
    )
    spaces = feature_spaces(training, steps=feature_steps, progress=not quiet)
    net, report = next(iter(spaces.values()))
    if net.kind != "classifier":
        raise click.ClickException("the data have no labels, so there is no classifier to ship")
    start, stop = DEFAULT_PICTURES, 2 * DEFAULT_PICTURES
    if len(held_out) < stop:
        raise click.ClickException(f"{len(held_out)} held-out pictures; {stop} are needed")
    recipe = {
        "classifier": report,
        "training": training.identity,
        "held_out": held_out.identity,
        "rows": [start, stop],
    }
    found = build_set(name, net, held_out.rows(start, stop).images, recipe, progress=not quiet)
    path = write_set(found, folder)
    click.echo(f"{path}: {path.stat().st_size / 2**20:.2f} MiB")


if __name__ == "__main__":
    main()
