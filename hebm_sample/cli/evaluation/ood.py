"""`hebm-eval ood`: do scores tell other images from those like the training data?"""

from pathlib import Path
from typing import Any

import click

from hebm_sample import __version__
from hebm_sample.cli.errors import OneLineErrors
from hebm_sample.cli.evaluation.options import (
    BATCH,
    DEVICE,
    HELD_OUT,
    JSON,
    QUIET,
    SAMPLING,
    check_file,
    common_options,
    data_option,
    images_option,
    named_sources,
    open_sets_of,
    takes_model,
    told_of,
    with_options,
    write_json,
)
from hebm_sample.cli.printing import say

__all__ = ["OOD", "ood"]

_IMAGES = 1000
OOD: Any = click.option(
    "--ood",
    "others",
    multiple=True,
    metavar="NAME=SOURCE",
    help="Out-of-distribution images to tell from the data's; repeatable. Corruptions of held-out "
    "images are always measured.",
)


@click.command(cls=OneLineErrors)
@takes_model
@with_options(
    data_option(True, "The data it was trained on."),
    OOD,
    HELD_OUT,
    images_option(
        _IMAGES,
        "Images of each set; as many more held-out ones fit the combination of scores.",
        of_halves=True,
    ),
    SAMPLING,
    BATCH,
    JSON,
    DEVICE,
    QUIET,
)
def ood(
    model: str, data: str, others: tuple[str, ...], json_path: Path | None, **options: Any
) -> None:
    """Measure out-of-distribution detection by MODEL's scores: AUROC of each."""
    from hebm_sample.cli.trained import check_reads_images, model_to_measure
    from hebm_sample.evaluation.distances import make_context
    from hebm_sample.evaluation.duration import expected_ood_line
    from hebm_sample.evaluation.report.ood import measure_ood, show_ood
    from hebm_sample.evaluation.report.page import ReportImage, to_markdown

    check_file("--json", json_path, options["overwrite"])
    pipe = model_to_measure(model, options["device"])
    check_reads_images(pipe)
    sets = open_sets_of(pipe, data, options)
    count = options["num_images"] or min(_IMAGES, len(sets[1]) // 2)
    images = named_sources(
        "--ood", others, pipe.config.generator.image_size, count, options["quiet"]
    )
    settings = {k: v for k, v in common_options(options).items() if k != "announce"}
    context = make_context(pipe, *sets, num_images=count, **settings)
    if not options["quiet"]:
        say(expected_ood_line(context, len(images), count), err=True)
    plain = {name: found for name, (found, _) in images.items()}
    found = measure_ood(context, plain, images=count).figures
    blocks = [b for b in show_ood(found) if not isinstance(b, ReportImage)]
    write_json(json_path, {"version": __version__, **found, **told_of(pipe, sets)})
    say(to_markdown(blocks).rstrip())
