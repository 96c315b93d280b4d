"""`hebm-eval distances`: bits, KL, Fréchet distances and the gap closed."""

from pathlib import Path
from typing import Any

import click

from hebm_sample import __version__
from hebm_sample.cli.errors import OneLineErrors
from hebm_sample.cli.evaluation.options import (
    BATCH,
    DEVICE,
    FEATURE_STEPS,
    HELD_OUT,
    JSON,
    QUIET,
    SAMPLING,
    check_file,
    check_needs_data,
    common_options,
    data_option,
    images_option,
    open_sets_of,
    takes_model,
    told_of,
    with_options,
    write_json,
)
from hebm_sample.cli.printing import say

__all__ = ["distances"]

_IMAGES = 2000


@click.command(cls=OneLineErrors)
@takes_model
@with_options(
    data_option(
        False,
        "The data it was trained on. Without them only what the package's own reference allows "
        "is measured.",
    ),
    HELD_OUT,
    images_option(_IMAGES, "Images in each set.", of_halves=True),
    FEATURE_STEPS,
    SAMPLING,
    BATCH,
    JSON,
    DEVICE,
    QUIET,
)
def distances(model: str, data: str | None, json_path: Path | None, **options: Any) -> None:
    """Measure MODEL on held-out images: bits, KL, Fréchet distances, gap closed.

    MODEL is a name, a model's folder, or a run of hebm-train prior.
    """
    from hebm_sample.cli.trained import check_reads_images, model_to_measure

    check_file("--json", json_path, options["overwrite"])
    check_needs_data(data, options, ["validation", "split", "feature_steps"])
    pipe = model_to_measure(model, options["device"])
    common = common_options(options)
    if data is None:
        figures, table = _without_data(pipe, common, options)
        found = {"version": __version__, **figures, **told_of(pipe)}
    else:
        from hebm_sample.evaluation.distances import evaluate

        check_reads_images(pipe)
        sizes = {name: options[name] for name in ("num_images", "feature_steps")}
        sets = open_sets_of(pipe, data, options)
        _tell_duration(pipe, sets, common, options)
        result = evaluate(pipe, *sets, **sizes, **common)
        found, table = result.to_dict() | told_of(pipe, sets), result.table()
    write_json(json_path, found)
    say(table)


def _tell_duration(pipe: Any, sets: Any, common: dict[str, Any], options: dict[str, Any]) -> None:
    """Say how long it will take, once it is known that it can be done."""
    from hebm_sample.evaluation.distances import make_context
    from hebm_sample.evaluation.duration import expected_line

    settings = {k: v for k, v in common.items() if k != "announce"}
    context = make_context(pipe, *sets, num_images=options["num_images"], **settings)
    if not options["quiet"]:
        common["announce"](expected_line(context))


def _without_data(
    pipe: Any, common: dict[str, Any], options: dict[str, Any]
) -> tuple[dict[str, Any], str]:
    """Distances to the reference that comes with the package, and their table."""
    from hebm_sample.evaluation.distances import make_context_without_data
    from hebm_sample.evaluation.duration import expected_line
    from hebm_sample.evaluation.report.images import show_gap
    from hebm_sample.evaluation.report.page import to_markdown
    from hebm_sample.evaluation.report.report import shipped_gap

    settings = {k: v for k, v in common.items() if k != "announce"}
    context = make_context_without_data(pipe, num_images=options["num_images"], **settings)
    if not options["quiet"]:
        common["announce"](expected_line(context))
    found = shipped_gap(context)
    return found, to_markdown(show_gap(found)).rstrip()
