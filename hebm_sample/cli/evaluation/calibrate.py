"""`hebm-train calibrate`: what a model's scores are on held-out images, into its folder."""

from pathlib import Path
from typing import Any

import click

from hebm_sample.cli.errors import OneLineErrors
from hebm_sample.cli.evaluation.options import HELD_OUT, open_sets_of, with_options
from hebm_sample.cli.printing import say
from hebm_sample.errors import UserInputError
from hebm_sample.hub.manifest import MANIFEST_NAME, read_row
from hebm_sample.io.seeds import MAX_SEEDS

__all__ = ["calibrate"]


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
    type=click.IntRange(1, MAX_SEEDS),
    default=2000,
    show_default=True,
    metavar="N",
    help="Held-out images: half fit the distance, the others' distances are kept.",
)
@click.option(
    "--draws", type=click.IntRange(1, 100), default=2, show_default=True, help="Of u, an image."
)
@click.option("--batch", type=click.IntRange(1), default=50, show_default=True, metavar="N")
@click.option(
    "--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True
)
@click.option("--quiet", is_flag=True, help="No progress bars.")
def calibrate(folder: Path, data: str, num_images: int, quiet: bool, **options: Any) -> None:
    """Write calibration.json into a model FOLDER: `hebm-edit score` then gives p-values.

    Only held-out images are seen, the first N of them. config.json and the weights stay as they
    are.
    """
    if not (folder / MANIFEST_NAME).is_file():
        raise UserInputError(
            f"{folder} is no model folder; give one that hebm-train export or save_pretrained "
            "wrote"
        )
    from hebm_sample.evaluation.calibration import calibrate as calibrate_model
    from hebm_sample.hub.save import write_calibration
    from hebm_sample.io.images import check_writable
    from hebm_sample.pipeline.pipeline import Pipeline
    from hebm_sample.pipeline.runtime.process import tune_process

    check_writable(folder / "calibration.json")
    tune_process()
    loaded = read_row(folder)  # before the model: what is written meanwhile is noticed
    pipe = Pipeline.from_pretrained(folder, device=options["device"])
    _, held_out = open_sets_of(pipe, data, options | {"quiet": quiet})
    found = calibrate_model(
        pipe,
        held_out.images[:num_images],
        draws=options["draws"],
        batch_size=options["batch"],
        progress=not quiet,
    )
    row = write_calibration(folder, found, loaded=loaded)
    say(
        f"{folder}: {len(found.names)} statistics of {found.facts['images']} held-out images, "
        f"{row.files['calibration.json'].size / 2**10:.0f} KiB; hebm-edit score --dataset {folder}"
    )
