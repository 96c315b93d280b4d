"""`hebm-train calibrate`: what a model's scores are on held-out images, into its folder."""

from pathlib import Path
from typing import Any

import click

from hebm_sample.cli.errors import OneLineErrors
from hebm_sample.cli.evaluation.options import DEVICE, HELD_OUT, open_sets_of, with_options
from hebm_sample.cli.printing import say
from hebm_sample.errors import UserInputError
from hebm_sample.hub.manifest import MANIFEST_NAME, read_row
from hebm_sample.io.seeds import MAX_SEEDS

__all__ = ["calibrate", "some_of"]

FEWEST_IMAGES = 200  # as in metrics/typicality.py, which --help does without
_LEAST_P = 0.01


@click.command(cls=OneLineErrors)
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--data",
    required=True,
    metavar="SOURCE",
    help="The data it was trained on.",
)
@with_options(HELD_OUT)
@click.option(
    "-n",
    "--num-images",
    "--num",
    type=click.IntRange(FEWEST_IMAGES, MAX_SEEDS),
    default=2000,
    show_default=True,
    metavar="N",
    help="Held-out images: half fit the distance, the others' distances are kept.",
)
@click.option(
    "--draws", type=click.IntRange(1, 100), default=2, show_default=True, help="Of u, an image."
)
@click.option("--batch", type=click.IntRange(1), default=50, show_default=True, metavar="N")
@DEVICE
@click.option("--quiet", is_flag=True, help="No progress bars.")
def calibrate(folder: Path, data: str, num_images: int, quiet: bool, **options: Any) -> None:
    """Write calibration.json into a model FOLDER: `hebm-edit score` then gives p-values.

    Only held-out images are seen, N of them chosen at random, always the same. config.json and
    the weights stay as they are.
    """
    if not (folder / MANIFEST_NAME).is_file():
        raise UserInputError(
            f"{folder} is no model folder; give one that hebm-train export or save_pretrained "
            "wrote"
        )
    from hebm_sample.hub.save import write_calibration
    from hebm_sample.io.images import check_writable

    check_writable(folder / "calibration.json")
    loaded = read_row(folder)  # before the model: what is written meanwhile is noticed
    found = _measured(folder, data, num_images, options | {"quiet": quiet})
    row = write_calibration(folder, found, loaded=loaded)
    say(
        f"{folder}: {len(found.names)} statistics of {found.facts['images']} held-out images, "
        f"{row.files['calibration.json'].size / 2**10:.0f} KiB; hebm-edit score --dataset {folder}"
    )
    if (p := found.facts["rows_ks_p_value"]) < _LEAST_P:
        say(
            "note: held-out images from the beginning and from the end of the data differ "
            f"(Kolmogorov-Smirnov test, p = {p:.1g}): p-values are uniform over all of them "
            "together, and not over each kind of them",
            err=True,
        )


def _measured(folder: Path, data: str, num_images: int, options: dict[str, Any]) -> Any:
    """The calibration of the model in a folder."""
    from hebm_sample.cli.trained import check_reads_images
    from hebm_sample.evaluation.calibration import calibrate as calibrate_model
    from hebm_sample.pipeline.pipeline import Pipeline
    from hebm_sample.pipeline.runtime.process import tune_process

    tune_process()
    pipe = Pipeline.from_pretrained(folder, device=options["device"])
    check_reads_images(pipe)
    _, held_out = open_sets_of(pipe, data, options)
    return calibrate_model(
        pipe,
        some_of(held_out, num_images).images,
        draws=options["draws"],
        batch_size=options["batch"],
        progress=not options["quiet"],
    )


def some_of(held_out: Any, count: int) -> Any:
    """`count` held-out images at random, always the same: folders list one kind after another."""
    import numpy as np

    from hebm_sample.data.holdout import random_rows

    return held_out.select(np.sort(random_rows(len(held_out), count)))
