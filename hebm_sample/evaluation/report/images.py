"""The parts of a report about images: distances, control, memorisation."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from hebm_sample import __version__
from hebm_sample.config import LangevinConfig
from hebm_sample.errors import UserInputError
from hebm_sample.evaluation.context import EvaluationContext, Spaces, fingerprint
from hebm_sample.evaluation.distances import measure
from hebm_sample.evaluation.reference import EvaluationSet
from hebm_sample.evaluation.report.page import (
    Block,
    Code,
    Heading,
    ReportImage,
    Table,
    Text,
    number,
    with_error,
)
from hebm_sample.evaluation.report.plots import histograms
from hebm_sample.io.images import grid, save_png
from hebm_sample.metrics.frechet import (
    DEFAULT_GROUPS,
    FeatureStatistics,
    frechet_distance,
    gap_closed,
    jackknife_standard_error,
)
from hebm_sample.metrics.memorisation import measure_memorisation
from hebm_sample.metrics.quality import measure_to_reference
from hebm_sample.training.record import trained_on

__all__ = [
    "group_table",
    "memorisation_table",
    "quality_table",
    "run_gap",
    "run_memorisation",
    "run_shipped_gap",
    "show_control",
    "show_gap",
    "show_memorisation",
]

GRID_PAIRS = 16
SETS = {
    "reconstructions": "reconstructions",
    "gaussian": "N(0, I)",
    "ebm": "energy-based prior",
}
MEASURES = ("frechet", "kernel", "precision", "recall", "density", "coverage")


# Distances


def run_gap(
    context: EvaluationContext, spaces: Spaces, announce: Callable[[str], object]
) -> dict[str, Any]:
    """What `evaluate` measures."""
    return measure(context, spaces, announce=announce).to_dict()


def run_shipped_gap(context: EvaluationContext, known: EvaluationSet) -> dict[str, Any]:
    """What can be said without the data: both priors against the package's reference."""
    _check_reference(context, known)
    space = known.space
    spaces: Spaces = {space: (known.net, known.recipe["classifier"])}
    sets = {name: context.features(name, spaces)[space] for name in ("gaussian", "ebm")}
    quality = {
        name: measure_to_reference(features, known.statistics, known.features).to_dict()
        for name, features in sets.items()
    }
    samples = context.samples("ebm")
    recon = known.reconstructions(fingerprint(context.pipe, encoder=True), context.num_images)
    closed = None if recon is None else _closed(sets, known.statistics, recon)
    return {
        "known_reconstructions": recon,
        "gap_closed": closed,
        "model": context.pipe.name,
        "sampling": context.pipe.sampling_config(**context.sampling).to_dict(),
        "quality": {space: quality},
        "feature_reports": {space: known.recipe["classifier"]},
        "reference": {k: known.recipe[k] for k in ("rows", "held_out") if k in known.recipe}
        | {"count": known.statistics.count, "features": len(known.features)},
        "sampling_seconds": samples.seconds,
        "u_square": [float(g.double().square().mean()) for g in samples.u],
    }


def _check_reference(context: EvaluationContext, known: EvaluationSet) -> None:
    """`UserInputError` if the model was trained on rows that the package's reference is of."""
    pipe = context.pipe
    training, held_out = (str(known.recipe.get(name, "")) for name in ("training", "held_out"))
    for record in pipe.config.training:
        if trained_on(record.data, training, held_out):
            raise UserInputError(
                f"{pipe.name}'s {record.part} was trained with other rows held out "
                f"({record.held_out}) than the package's evaluation set is of; measure it with "
                "--data"
            )


def _closed(
    sets: Mapping[str, np.ndarray], reference: FeatureStatistics, recon: Mapping[str, float]
) -> dict[str, float | None] | None:
    """The gap closed, with its standard error: samples of both priors share their seeds, so that
    their errors are taken together; the reconstructions' is independent of them.
    """
    r = recon["frechet"]

    def distances(*found: FeatureStatistics) -> tuple[float, float]:
        g, e = (frechet_distance(s, reference) for s in found)
        return g, e

    g, e = distances(*(FeatureStatistics.from_features(x) for x in sets.values()))
    if g <= r:
        return None
    groups = min(DEFAULT_GROUPS, min(map(len, sets.values())) // 2)
    paired = jackknife_standard_error(
        lambda *found: gap_closed(*distances(*found), r), *sets.values(), num_groups=groups
    )
    slope = (g - e) / (g - r) ** 2
    error = math.hypot(paired, slope * recon["frechet_error"])
    # Not a number where a part of the samples leaves no gap.
    return {"value": gap_closed(g, e, r), "error": error if math.isfinite(error) else None}


def quality_table(sets: Mapping[str, Mapping[str, Any]]) -> Table:
    """A row a set of images, in one space."""
    digits = {"frechet": 2, "kernel": 4}
    rows = [
        [
            title,
            *(
                with_error(found.get(m), found.get(f"{m}_error"), digits.get(m, 3))
                for m in MEASURES
            ),
        ]
        for title, found in ((title, sets[n]) for n, title in SETS.items() if n in sets)
    ]
    return Table(["", "Fréchet", "KID", *MEASURES[2:]], rows)


def group_table(found: Mapping[str, Any]) -> Table:
    """KL and mean squares by group of latents."""
    return Table(
        ["", *(f"group {i}" for i in range(len(found["kl"])))],
        [
            ["KL, nats", *(number(v, 1) for v in found["kl"])],
            ["mean square of q(u)", *(number(v) for v in found["u_square_posterior"])],
            ["mean square of samples", *(number(v) for v in found["u_square"])],
        ],
    )


def _about_space(space: str, found: Mapping[str, Any]) -> str:
    """What the figures of one space are of."""
    sampler = LangevinConfig.from_dict(found["sampling"]).words
    count = next(iter(found["quality"][space].values()))
    text = (
        f"In {space}, {count['num_images']} images per set against "
        f"{count['num_reference']} held-out ones; {sampler}. "
    )
    report = found["feature_reports"].get(space, {})
    if "mean_accuracy" in report:
        text += f"The classifier's held-out accuracy is {report['mean_accuracy']:.3f}. "
    if "implementation" in report:
        text += "; ".join(f"{k}: {v}" for k, v in report.items()) + ". "
    gap = found.get("gaps", {}).get(space)
    if gap is not None:
        text += f"Gap closed: {with_error(gap['gap_closed'], gap['gap_closed_error'])}."
    return text


def show_gap(found: dict[str, Any]) -> list[Block]:
    """The part's blocks, with and without the data."""
    blocks: list[Block] = [Heading("Distances")]
    for space, sets in found["quality"].items():
        blocks += [Text(_about_space(space, found)), quality_table(sets)]
    if "gaps" not in found:
        text = (
            "Measured without the data: the reference are statistics that come with the "
            f"package, and KID and the neighbours use {found['reference']['features']} of its "
            "images. Errors of Fréchet distances count the samples only. "
        )
        return [*blocks, Text(text + _without(found))]
    bits = (
        f"Bits per dimension on held-out images (Gaussian-prior ELBO): {found['bits']:.3f}, of "
        f"which distortion {found['distortion_bits']:.3f}. Sampling took "
        f"{found['sampling_seconds']:.0f} s."
    )
    return [*blocks, group_table(found), Text(bits)]


def _without(found: Mapping[str, Any]) -> str:
    """What is known of the gap without the data."""
    recon, closed = found.get("known_reconstructions"), found.get("gap_closed")
    if recon is None or closed is None:
        return "Reconstructions, gap closed, bits and KL need --data."
    return (
        "The distance of this model's reconstructions comes with the package, "
        f"{with_error(recon['frechet'], recon['frechet_error'], 2)}. Gap closed: "
        f"{with_error(closed['value'], closed['error'])}. Bits and KL need --data."
    )


def show_control(found: dict[str, Any]) -> list[Block]:
    """The part's blocks: the control tables as text."""
    return [Heading("Control"), Code(found["table"])]


# Memorisation


def run_memorisation(context: EvaluationContext, spaces: Spaces, out: Path) -> dict[str, Any]:
    """Distances to the nearest training image, in the first feature space, and a grid of
    the nearest pairs.
    """
    space = next(iter(spaces))
    first = {space: spaces[space]}
    sets = {
        name: context.features(name, first)[space]
        for name in ("ebm", "reference", "training", "reconstructions")
    }
    found = measure_memorisation(
        sets["ebm"], sets["reference"], sets["training"], reconstructions=sets["reconstructions"]
    )
    histograms(out / "figures/memorisation.png", {"nearest training image": found.distances})
    rows = found.closest[:GRID_PAIRS]
    u = tuple(g[rows] for g in context.samples("ebm").u)
    samples = np.concatenate(list(context.images(u)))
    assert context.training is not None
    pairs = zip(samples, found.neighbours[:GRID_PAIRS], strict=True)
    shown = [x for a, i in pairs for x in (a, np.asarray(context.training.images[i]))]
    images = [Image.fromarray(np.ascontiguousarray(x.transpose(1, 2, 0))) for x in shown]
    version = {"version": f"hebm_sample {__version__}"}
    save_png(grid(images, columns=8), out / "nearest.png", version)
    return {"features": space, **found.to_dict()}


def memorisation_table(found: Mapping[str, Any]) -> Table:
    """Quantiles of the distances by set."""
    levels = [f"{100 * q:g}%" for q in found["quantile_levels"]]
    rows = [[n.replace("_", "-"), *map(number, q)] for n, q in found["quantiles"].items()]
    return Table(["", *levels], rows)


def show_memorisation(found: dict[str, Any]) -> list[Block]:
    """The part's blocks."""
    conclusion = (
        "No sign that samples are nearer to training images than held-out images are."
        if found["no_shorter"]
        else "Samples are nearer to training images than held-out images are: look at the "
        "nearest pairs, and at the reconstructions' distances, which show what blur alone does."
    )
    shorter = with_error(found["shorter"], found["shorter_error"])
    tail = with_error(found["tail"], found["tail_error"])
    blurred = found["shorter_than"]["reconstructions"]
    if (p := found.get("p_value")) is not None:  # reports of before have none
        conclusion += f" One test of all distances, p = {p:.3f}; 0.05 is the limit."
    return [
        Heading("Memorisation"),
        Text(
            f"Distance to the nearest of {found['counts']['training']} training images in "
            f"{found['features']}, its quantiles by set. P(sample nearer than held-out) = "
            f"{shorter}, than a reconstruction {with_error(blurred['value'], blurred['error'])}; "
            f"share of samples nearer than the held-out images' 1% quantile: {tail}, where "
            f"one law would have {number(found['tail_expected'], 3)}."
        ),
        memorisation_table(found),
        Text(conclusion),
        ReportImage("figures/memorisation.png", "Distances to the nearest training image"),
        ReportImage("nearest.png", "The nearest pairs: sample, training image, sample, ..."),
    ]
