"""The part of a report about out-of-distribution detection: the scores of `evaluation/ood.py`."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm.auto import tqdm

from hebm_sample.evaluation.calibration import calibrate, measure_images
from hebm_sample.evaluation.context import EvaluationContext
from hebm_sample.evaluation.ood import (
    OWN_SETS,
    chain_latents,
    corruptions,
    png_bytes,
    scores,
    separations,
    top_group_energies,
)
from hebm_sample.evaluation.report.page import Block, Heading, ReportImage, Table, Text, number
from hebm_sample.evaluation.report.plots import histograms, lines
from hebm_sample.io.bars import disabled
from hebm_sample.metrics.typicality import FEWEST_IMAGES, Calibration, uniformity
from hebm_sample.pipeline.scoring import half_squares

__all__ = ["Measured", "auroc_by_groups", "measure_ood", "ood_table", "run_ood", "show_ood"]


class Measured(NamedTuple):
    """Figures as plain values, and the scores themselves: of held-out images, and by other set."""

    figures: dict[str, Any]
    own: dict[str, np.ndarray]
    others: dict[str, dict[str, np.ndarray]]


def measure_ood(
    context: EvaluationContext, others: Mapping[str, np.ndarray], *, images: int
) -> Measured:
    """AUROC of every score between held-out images, others, and corruptions of the former.

    Held-out images are those of `EvaluationContext.scored_images`. The combination is fitted on
    the half of them that is not compared; of fewer than `FEWEST_IMAGES` there is none.

    Arguments:
        others: Name to uint8 (N, 3, S, S).
        images: Of each set, at most; and no more than the context has.
    """
    count = min(images, context.num_images)
    fitting, scored = context.scored_images(count)
    own_images = np.asarray(scored)
    calibration = _calibration(context, fitting)
    sets = {name: np.asarray(x[:count]) for name, x in others.items()} | corruptions(own_images)
    with tqdm(desc="chains", unit="grad", disable=disabled(context.progress)) as bar:
        own, *rest = (
            _scores(context, x, calibration, bar.update) for x in (own_images, *sets.values())
        )
    found = dict(zip(sets, rest, strict=True))
    tables = {
        name: separations(own, other, paired=name in OWN_SETS) for name, other in found.items()
    }
    figures = {
        "groups": len(context.pipe.generator.latent_shapes),
        "count": count,
        "counts": {name: len(x) for name, x in sets.items()},
        "auroc": {
            name: {s: {"value": f.value, "error": f.error} for s, f in table.items()}
            for name, table in tables.items()
        },
        "calibration": _uniform(calibration, own),
    }
    return Measured(figures, own, found)


def run_ood(
    context: EvaluationContext, others: Mapping[str, np.ndarray], out: Path, *, images: int
) -> dict[str, Any]:
    """`measure_ood`, with figures in the folder `out`; its plain values."""
    measured = measure_ood(context, others, images=images)
    _plot_ood(measured, out)
    return measured.figures


def _calibration(context: EvaluationContext, images: np.ndarray) -> Calibration | None:
    """Of held-out images that are not compared; None of too few."""
    if len(images) < FEWEST_IMAGES:
        return None
    return calibrate(
        context.pipe, images, batch_size=context.batch_size, progress=context.progress
    )


def _scores(
    context: EvaluationContext,
    images: np.ndarray,
    calibration: Calibration | None,
    progress: Callable[[int], object],
) -> dict[str, np.ndarray]:
    """Every score of some images, by name."""
    pipe, batch, encoded = context.pipe, context.batch_size, context.encode_images(images)
    config = pipe.sampling_config(**context.sampling)
    moved = chain_latents(pipe, encoded.u, config, batch_size=batch, progress=progress)
    after_chain = top_group_energies(pipe, moved, batch)
    return scores(
        top_group_energies(pipe, encoded.u, batch),
        (encoded.distortion + encoded.kl.sum(1)).numpy(),
        png_bytes(images),
        after_chain,
        measure_images(pipe, images, batch_size=batch, progress=context.progress),
        calibration,
        after_chain + half_squares(moved).cumsum(1).numpy(),
    )


def _uniform(
    calibration: Calibration | None, own: Mapping[str, np.ndarray]
) -> dict[str, Any] | None:
    """Are the p-values of held-out images, which fitted nothing, uniform?"""
    if calibration is None:
        return None
    statistic, p = uniformity(calibration.distances, own["combination"])
    return {**calibration.facts, "ks_statistic": statistic, "ks_p_value": p}


def auroc_by_groups(
    figures: Mapping[str, Any], titles: Mapping[str, str]
) -> dict[str, dict[str, tuple[Any, list[float]]]]:
    """Panels of lines: title to set of images to numbers of top groups kept and AUROC; of those
    kinds of scores that were measured. LLR > k keeps all groups but the k finest.

    Arguments:
        titles: Kind of scores to title, in order.
    """
    groups, auroc = figures["groups"], figures["auroc"]
    panels: dict[str, dict[str, tuple[Any, list[float]]]] = {}
    for kind, title in titles.items():
        if kind == "LLR":
            names = {groups - k: f"LLR > {k}" for k in range(groups - 1, 0, -1)}
        else:
            names = {k: f"{kind}, top {k} of {groups}" for k in range(1, groups + 1)}
        if names and all(n in table for table in auroc.values() for n in names.values()):
            panels[title] = {
                name: (list(names), [table[n]["value"] for n in names.values()])
                for name, table in auroc.items()
            }
    return panels


def _plot_ood(measured: Measured, out: Path) -> None:
    figures, own = measured.figures, measured.own
    groups = figures["groups"]
    by_groups = auroc_by_groups(figures, {kind: kind for kind in KINDS})
    lines(out / "figures/ood.png", by_groups, x="top groups kept", y="AUROC", level=0.5)
    every = f"energy, top {groups} of {groups}"
    shown = [("energy, all groups", every), ("-ELBO, nats", "likelihood")]
    shown += [("combination", "combination")] if "combination" in own else []
    panels = {
        label: {"held-out": own[key], **{n: x[key] for n, x in measured.others.items()}}
        for label, key in shown
    }
    histograms(out / "figures/ood-histograms.png", panels)


KINDS = (  # of scores by level, a panel each
    "energy",
    "energy after the chain",
    "negative log density",
    "negative log density of means",
    "negative log density after the chain",
    "rate",
    "LLR",
)
# From the simplest score to the dearest: among equals the first is to be used.
_SIMPLEST = (
    "compression",
    "likelihood less compression",
    "likelihood",
    "energy",
    "negative log density",
    "rate",
    "LLR",
    "combination",
)
_ABOUT_LEVELS = (
    "negative log densities are energies with |u|² / 2, of the encoder's u, its means or u_0 "
    "after the chain, rates have the KL divergence in its place; LLR > k is the likelihood ratio "
    "that takes off what the k finest groups explain; "
)
_OTHER = ("no score by level", "scores by level")
_OF_LEVELS = _SIMPLEST[3:]  # what knows of the prior or of single levels
_USELESS = 0.6
_LEAST_P = 0.01  # below which p-values are said not to be uniform
_NOT_UNIFORM = " They are not uniform: neither they nor the combination can be trusted here."


def _advice(name: str, table: Mapping[str, Mapping[str, float]]) -> str:
    """One sentence: which score to use, plainly a simpler one where that does as well."""
    best = max(table, key=lambda s: table[s]["value"])
    if table[best]["value"] < _USELESS:
        return f"{name}: none is of use, the best is {_score(best, table)}."
    as_good = [
        s
        for s in table
        if table[s]["value"] >= table[best]["value"] - 2 * table[best]["error"] - 5e-4
    ]
    use = min(as_good, key=lambda s: (_cost(s), -table[s]["value"]))
    text = f"{name}: use {_score(use, table)}"
    top = max((s for s in table if s.startswith(_OF_LEVELS)), key=lambda s: table[s]["value"])
    if use.startswith(_OF_LEVELS):
        return f"{text}, against {_score('likelihood', table)} and {_score('compression', table)}."
    beaten = table[top]["value"] < table[use]["value"] - 2 * table[use]["error"]
    kind = ("no energy", "energies") if top.startswith("energy") else _OTHER
    rest = f"{kind[0]} does as well" if beaten else f"{kind[1]} do no better"
    return f"{text}, the simpler score; {rest}, the best is {_score(top, table)}."


def _cost(score: str) -> int:
    kind = next(i for i, s in enumerate(_SIMPLEST) if score.startswith(s))
    return kind + ("after the chain" in score)


def _score(score: str, table: Mapping[str, Mapping[str, float]]) -> str:
    return f"{score} ({table[score]['value']:.3f})"


def ood_table(auroc: Mapping[str, Mapping[str, Mapping[str, float]]]) -> Table:
    """A row a score, a column a set of images."""
    names = list(next(iter(auroc.values())))
    rows = [[name, *(number(table[name]["value"]) for table in auroc.values())] for name in names]
    return Table(["", *auroc], rows)


def show_ood(found: dict[str, Any]) -> list[Block]:
    """The part's blocks."""
    auroc = found["auroc"]
    by_level = any(name.startswith("LLR") for name in next(iter(auroc.values())))
    largest = max(f["error"] for table in auroc.values() for f in table.values())
    return [
        Heading("Out-of-distribution detection"),
        Text(
            f"AUROC between {found['count']} held-out images and others: 0.5 is chance, below "
            "it the others look more like the data than the data. Energies are those of the top "
            "groups kept, with u from the encoder, and with u_0 after the lowest level's chain "
            f"from there; {_ABOUT_LEVELS if by_level else ''}likelihood is -ELBO, compression the "
            f"size as PNG. No standard error is above {largest:.3f}."
        ),
        *([Text(_about_combination(found["calibration"]))] if "calibration" in found else []),
        ood_table(auroc),
        *(Text(_advice(name, table)) for name, table in auroc.items()),
        Text(
            "These scores are chosen on the rows that they are quoted on, so that of many with "
            "about the same AUROC the best one's is a little too high."
        ),
        ReportImage("figures/ood.png", "AUROC by number of top groups"),
        ReportImage("figures/ood-histograms.png", "Distributions of two scores"),
    ]


def _about_combination(found: Mapping[str, Any] | None) -> str:
    """One sentence or two: what fitted the combination, and whether its p-values are uniform."""
    if found is None:
        return (
            f"There is no combination: it takes {FEWEST_IMAGES} held-out images that are not "
            "compared."
        )
    return (
        "The combination is the Mahalanobis distance of every level's statistics, fitted on "
        f"{found['fitted_on']} held-out images that are not compared, and on no others. p-values "
        f"of those compared: Kolmogorov-Smirnov distance from uniform {found['ks_statistic']:.3f} "
        f"(p = {found['ks_p_value']:.2f})."
        + (_NOT_UNIFORM if found["ks_p_value"] < _LEAST_P else "")
    )
