"""`hebm-train crop`: where a model's data have eyes and mouths, into its config.json."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from hebm_sample.cli.errors import OneLineErrors
from hebm_sample.cli.evaluation.options import (
    HELD_OUT,
    QUIET,
    data_option,
    images_option,
    open_sets_of,
    with_options,
)
from hebm_sample.cli.printing import say
from hebm_sample.errors import UserInputError
from hebm_sample.hub.manifest import MANIFEST_NAME, read_row

__all__ = ["crop", "crop_line", "measured_crop"]


@click.command(cls=OneLineErrors)
@click.argument("folder", type=click.Path(path_type=Path))
@with_options(
    data_option(True, "The data it was trained on."),
    HELD_OUT,
    images_option(2000, "Training images that faces are looked for in."),
    QUIET,
)
def crop(folder: Path, data: str, num_images: int, quiet: bool, **options: Any) -> None:
    """Write where faces have eyes and mouth into a model FOLDER's config.json.

    `hebm-edit --align` then cuts photographs as its training images are cut. It needs the extra
    `align`; the weights stay as they are.
    """
    if not (folder / MANIFEST_NAME).is_file():
        raise UserInputError(
            f"{folder} is no model folder; give one that hebm-train export or save_pretrained "
            "wrote"
        )
    from hebm_sample.hub.save import write_config
    from hebm_sample.io.images import check_writable
    from hebm_sample.pipeline.pipeline import Pipeline

    check_writable(folder / "config.json")
    loaded = read_row(folder)  # before the model: what is written meanwhile is noticed
    pipe = Pipeline.from_pretrained(folder, device="cpu")
    training, _ = open_sets_of(pipe, data, options | {"quiet": quiet})
    found = measured_crop(training, num_images, quiet)
    write_config(folder, replace(pipe.config, crop=found), loaded=loaded)
    say(f"{folder}: {crop_line(found)}")


def measured_crop(training: Any, count: int, quiet: bool) -> Any:
    """The crop of the first `count` training images; errors as of `measure_crop`."""
    import numpy as np
    from PIL import Image

    from hebm_sample.align.measure import measure_crop

    rows: list[Any] = list(training.images[:count])
    with click.progressbar(rows, label="finding faces", hidden=quiet, file=sys.stderr) as shown:
        return measure_crop(Image.fromarray(np.asarray(x).transpose(1, 2, 0)) for x in shown)


def crop_line(crop: Any) -> str:
    """Where its faces have eyes and mouth."""
    return (
        f"left eye {_point(crop.left_eye)}, right eye {_point(crop.right_eye)}, "
        f"mouth {_point(crop.mouth)} of the side; 99 in 100 within {crop.spread:.3f}"
    )


def _point(xy: tuple[float, ...]) -> str:
    return f"({xy[0]:.3f}, {xy[1]:.3f})"
