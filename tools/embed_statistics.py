"""Put evaluation sets into the package: a data set's classifier and its reference statistics.

    python tools/embed_statistics.py cifar10 --data DATA
    python tools/embed_statistics.py celebahq --data DATA --classifier celeba64
    python tools/embed_statistics.py cifar10 --data DATA --keep    # of a new model

NAME is a preset: its images' size and held-out rows are used. The classifier is the one that
`hebm-train evaluate --data` trains and keeps in the cache; it is trained first if it is not there.
The reference are the held-out rows that `evaluate` compares with by default, so that figures with
and without the data are the same. With `--classifier` the net of a set that is there already sees
these images, too, and no second one is shipped. If the package has the preset's model, the
distance of its reconstructions is kept beside the reference, so that the gap it closes can be
measured without the data. With `--keep` that distance alone is measured anew, and classifier and
reference stay, so that figures of earlier weights can be compared.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np

from hebm_sample.config import ModelConfig, TrainingRecord
from hebm_sample.evaluation.context import EvaluationContext, fingerprint
from hebm_sample.evaluation.distances import (
    DEFAULT_FEATURE_STEPS,
    DEFAULT_IMAGES,
    feature_spaces,
    open_held_out,
)
from hebm_sample.evaluation.reference import SHIPPED, EvaluationSet, build_set, find_set, write_set
from hebm_sample.metrics.features import extract
from hebm_sample.metrics.quality import measure_to_reference
from hebm_sample.pipeline.pipeline import Pipeline
from hebm_sample.presets.models import find_preset

SHARED_SIZE = 64


def classifier(
    name: str, size: int, folder: Path, training: Any, steps: int, show: bool
) -> tuple[Any, dict[str, Any]]:
    """The net and its report: of the set `name`, or trained on the data's labels."""
    if name:
        known = find_set(name, size, folder)
        if known is None:
            raise click.ClickException(f"there is no set {name} at {size}x{size} in {folder}")
        return known.net, known.recipe["classifier"]
    net, report = next(iter(feature_spaces(training, steps=steps, progress=show).values()))
    if net.kind != "classifier":
        raise click.ClickException("the data have no labels, so there is no classifier to ship")
    return net, report


def with_reconstructions(
    found: EvaluationSet, training: Any, held_out: Any, draws: Path | None, show: bool
) -> EvaluationSet:
    """The set with the distance of its model's reconstructions of the first held-out rows."""
    count = DEFAULT_IMAGES
    pipe = Pipeline.from_pretrained(found.name, resolution=found.image_size, device="cpu")
    context = EvaluationContext(pipe, count, training, held_out.some(2 * count), 50, draws, show)
    features = np.concatenate([extract(found.net, x) for x in context.stream("reconstructions")])
    quality = measure_to_reference(features, found.statistics, found.features)
    known = {
        "model": fingerprint(pipe, encoder=True),
        "num_images": count,
        "frechet": quality.frechet.value,
        "frechet_error": quality.frechet.error,
    }
    return replace(found, recipe=found.recipe | {"reconstructions": known})


def _records(name: str, size: int) -> tuple[TrainingRecord, ...]:
    """Of the training of the weights that the package has, whose held-out rows the reference is
    of; none where it has none.
    """
    path = SHIPPED.parent / f"{name}-{size}" / "config.json"
    if not path.is_file():
        return ()
    return ModelConfig.from_dict(json.loads(path.read_text(encoding="utf-8"))).training


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
@click.option("--classifier", "owner", default="", help="NAME of a set, at 64x64, to share.")
@click.option(
    "--draws",
    type=click.Path(file_okay=False, path_type=Path),
    help="Of a report on the same model: latents of held-out images.",
)
@click.option("--keep", is_flag=True, help="Classifier and reference stay as they are.")
@click.option("--quiet", is_flag=True)
def main(
    name: str,
    data: str,
    feature_steps: int,
    folder: Path,
    owner: str,
    draws: Path | None,
    keep: bool,
    quiet: bool,
) -> None:
    """Embed the evaluation set of preset NAME."""
    preset = find_preset(name)
    size, name = preset.generator.image_size, preset.model_name
    training, held_out = open_held_out(
        data, size=size, model=preset.name, records=_records(name, size), progress=not quiet
    )
    start, stop = DEFAULT_IMAGES, 2 * DEFAULT_IMAGES
    if len(held_out) < stop:
        raise click.ClickException(f"{len(held_out)} held-out images; {stop} are needed")
    if keep:
        found = kept(name, size, folder, training, held_out)
        write_all(found, training, held_out, draws, folder, not quiet)
        return
    net, report = classifier(owner, SHARED_SIZE, folder, training, feature_steps, not quiet)
    recipe = {
        "classifier": report,
        "training": training.identity,
        "held_out": held_out.identity,
        "rows": [start, stop],
    }
    images = held_out.some(stop).rows(start, stop).images
    found = build_set(name, net, images, recipe, net_of=owner or None, progress=not quiet)
    write_all(found, training, held_out, draws, folder, not quiet)


def kept(name: str, size: int, folder: Path, training: Any, held_out: Any) -> EvaluationSet:
    """The set that is there, if it is of these rows."""
    found = find_set(name, size, folder)
    if found is None:
        raise click.ClickException(f"there is no set {name} at {size}x{size} in {folder}")
    if found.recipe["held_out"] != held_out.identity:
        raise click.ClickException(f"the set {name} is of other held-out rows; leave --keep out")
    if found.recipe["training"] != training.identity:
        click.echo("its classifier was trained on other rows of these data", err=True)
    return found


def write_all(
    found: EvaluationSet,
    training: Any,
    held_out: Any,
    draws: Path | None,
    folder: Path,
    show: bool,
) -> None:
    """Write the set, with its model's reconstructions if the package has the model."""
    if (SHIPPED.parent / f"{found.name}-{found.image_size}").is_dir():
        found = with_reconstructions(found, training, held_out, draws, show)
    path = write_set(found, folder)
    click.echo(f"{path}: {path.stat().st_size / 2**20:.2f} MiB")


if __name__ == "__main__":
    main()
