"""The parts of a report about pictures: distances, control, strange pictures, memorisation."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from hebm_sample.images import grid, save_png
from hebm_sample.metrics.memorisation import measure_memorisation
from hebm_sample.metrics.ood import corruptions, png_bytes, scores, separations, top_group_energies
from hebm_sample.metrics.quality import measure_to_reference
from hebm_sample.metrics.reference import EvaluationSet
from hebm_sample.training.draws import Bench, Seen, Spaces
from hebm_sample.training.evaluate import measure
from hebm_sample.training.report_page import (
    Block,
    Code,
    Heading,
    Picture,
    Table,
    Text,
    number,
    with_error,
)
from hebm_sample.training.report_plots import histograms, lines

__all__ = [
    "run_gap",
    "run_memorisation",
    "run_ood",
    "run_shipped_gap",
    "show_control",
    "show_gap",
    "show_memorisation",
    "show_ood",
]

SHEET_PAIRS = 16
SETS = {
    "reconstructions": "reconstructions",
    "gaussian": "N(0, I)",
    "ebm": "energy-based prior",
}
MEASURES = ("frechet", "kernel", "precision", "recall", "density", "coverage")


# Distances


def run_gap(bench: Bench, spaces: Spaces, announce: Callable[[str], object]) -> dict[str, Any]:
    """What `evaluate` measures."""
    return measure(bench, spaces, announce=announce).to_dict()


def run_shipped_gap(bench: Bench, known: EvaluationSet) -> dict[str, Any]:
    """What can be said without the data: both priors against the package's reference."""
    space = known.net.name
    spaces: Spaces = {space: (known.net, known.recipe["classifier"])}
    quality = {
        name: measure_to_reference(
            bench.features(name, spaces)[space], known.statistics, known.features
        ).to_dict()
        for name in ("gaussian", "ebm")
    }
    drawn = bench.drawn("ebm")
    return {
        "model": bench.pipe.name,
        "sampling": bench.pipe.sampling_config(**bench.sampling).to_dict(),
        "quality": {space: quality},
        "feature_reports": {space: known.recipe["classifier"]},
        "reference": {k: known.recipe[k] for k in ("rows", "held_out") if k in known.recipe}
        | {"count": known.statistics.count, "features": len(known.features)},
        "sampling_seconds": drawn.seconds,
        "u_square": [float(g.double().square().mean()) for g in drawn.u],
    }


def _quality_row(title: str, found: Mapping[str, Any]) -> list[str]:
    digits = {"frechet": 2, "kernel": 4}
    return [
        title,
        *(with_error(found.get(m), found.get(f"{m}_error"), digits.get(m, 3)) for m in MEASURES),
    ]


def show_gap(found: dict[str, Any]) -> list[Block]:
    """The part's blocks, with and without the data."""
    sampler = f"{found['sampling']['sampler']}, {found['sampling']['steps']} gradients"
    blocks: list[Block] = [Heading("Distances")]
    for space, sets in found["quality"].items():
        count = next(iter(sets.values()))
        text = (
            f"In {space}, {count['num_pictures']} pictures a set against "
            f"{count['num_reference']} held-out ones; {sampler}. "
        )
        report = found["feature_reports"].get(space, {})
        if "mean_accuracy" in report:
            text += f"The classifier's held-out accuracy is {report['mean_accuracy']:.3f}. "
        if "implementation" in report:
            text += "; ".join(f"{k}: {v}" for k, v in report.items()) + ". "
        gap = found.get("gaps", {}).get(space)
        if gap is not None:
            closed = with_error(gap["gap_closed"], gap["gap_closed_error"])
            text += f"Gap closed: {closed}."
        rows = [_quality_row(title, sets[n]) for n, title in SETS.items() if n in sets]
        header = ["", "Fréchet", "KID", *(m for m in MEASURES[2:])]
        blocks += [Text(text), Table(header, rows)]
    if "gaps" not in found:
        blocks.append(
            Text(
                "Measured without the data: the reference are statistics that come with the "
                f"package, and KID and the neighbours use {found['reference']['features']} of its "
                "pictures. Errors of Fréchet distances count the samples only. Reconstructions, "
                "gap closed, bits and KL need --data."
            )
        )
        return blocks
    header = ["", *(f"group {i}" for i in range(len(found["kl"])))]
    rows = [
        ["KL, nats", *(number(v, 1) for v in found["kl"])],
        ["mean square of q(u)", *(number(v) for v in found["u_square_posterior"])],
        ["mean square of samples", *(number(v) for v in found["u_square"])],
    ]
    bits = (
        f"Bits a dimension on held-out pictures (Gaussian-prior ELBO): {found['bits']:.3f}, of "
        f"which distortion {found['distortion_bits']:.3f}. Sampling took "
        f"{found['sampling_seconds']:.0f} s."
    )
    return [*blocks, Table(header, rows), Text(bits)]


def show_control(found: dict[str, Any]) -> list[Block]:
    """The part's blocks: the control tables as text."""
    return [Heading("Control"), Code(found["table"])]


# Strange pictures


def run_ood(
    bench: Bench, others: Mapping[str, np.ndarray], out: Path, *, images: int
) -> dict[str, Any]:
    """AUROC of every score between held-out pictures and others, and corruptions of them.

    Arguments:
        others: Name to uint8 (N, 3, S, S).
        images: Of each set, at most.
    """
    pipe, half = bench.pipe, bench.num_pictures
    count = min(images, half)
    rows = slice(half, half + count)
    own_images = np.asarray(bench._held_out().images[rows])
    seen = bench.seen()
    own_seen = Seen(tuple(g[rows] for g in seen.u), seen.distortion[rows], seen.kl[rows])

    def score(pictures: np.ndarray, what: Seen) -> dict[str, np.ndarray]:
        energies = top_group_energies(pipe, what.u, bench.batch_size)
        nats = (what.distortion + what.kl.sum(1)).numpy()
        return scores(energies, nats, png_bytes(pictures))

    own = score(own_images, own_seen)
    strange = {name: np.asarray(x[:images]) for name, x in others.items()}
    strange |= corruptions(own_images)
    found = {name: score(x, bench.look_at(x)) for name, x in strange.items()}
    tables = {name: separations(own, other) for name, other in found.items()}
    groups = len(pipe.generator.latent_shapes)
    _plot_ood(own, found, tables, groups, out)
    return {
        "groups": groups,
        "count": count,
        "counts": {name: len(x) for name, x in strange.items()},
        "auroc": {
            name: {s: {"value": f.value, "error": f.error} for s, f in table.items()}
            for name, table in tables.items()
        },
    }


def _plot_ood(
    own: dict[str, np.ndarray], found: dict[str, Any], tables: Any, groups: int, out: Path
) -> None:
    tops = [f"energy, top {k + 1} of {groups}" for k in range(groups)]
    by_groups = {
        name: (range(1, groups + 1), [table[t].value for t in tops])
        for name, table in tables.items()
    }
    title = "energies of the top groups against other pictures"
    lines(out / "figures/ood.png", {title: by_groups}, x="top groups kept", y="AUROC", level=0.5)
    panels = {
        label: {"held-out": own[key], **{name: x[key] for name, x in found.items()}}
        for label, key in (("energy, all groups", tops[-1]), ("-ELBO, nats", "likelihood"))
    }
    histograms(out / "figures/ood-histograms.png", panels)


def _advice(name: str, table: Mapping[str, Mapping[str, float]]) -> str:
    """One sentence: which score separates best, and whether that is a surprise."""
    best = max(table, key=lambda s: table[s]["value"])
    energies = {s: f["value"] for s, f in table.items() if s.startswith("energy")}
    top = max(energies, key=lambda s: energies[s])
    text = f"{name}: {best} separates best ({table[best]['value']:.3f})"
    if not best.startswith("energy"):
        kept = top.removeprefix("energy, ")
        text += f", better than every energy (the best, {kept}: {energies[top]:.3f})"
    elif table["compression"]["value"] > 0.9:
        text += f", though file size alone has {table['compression']['value']:.3f}"
    if table[best]["value"] < 0.6:
        text += "; none is of use here"
    return text + "."


def show_ood(found: dict[str, Any]) -> list[Block]:
    """The part's blocks."""
    names = list(next(iter(found["auroc"].values())))
    short = [n.replace("energy, ", "").replace(f" of {found['groups']}", "") for n in names]
    rows = [
        [name, *(number(table[s]["value"]) for s in names)]
        for name, table in found["auroc"].items()
    ]
    return [
        Heading("Out-of-distribution detection"),
        Text(
            f"AUROC between {found['count']} held-out pictures and others: 0.5 is chance, below "
            "it the others look more like the data than the data. Energies are those of the top "
            "groups kept, u from the encoder; likelihood is -ELBO, compression the size as PNG."
        ),
        Table(["", *short], rows),
        *(Text(_advice(name, table)) for name, table in found["auroc"].items()),
        Picture("figures/ood.png", "AUROC by number of top groups"),
        Picture("figures/ood-histograms.png", "Distributions of two scores"),
    ]


# Memorisation


def run_memorisation(bench: Bench, spaces: Spaces, out: Path) -> dict[str, Any]:
    """Distances to the nearest training picture, in the first feature space, and a sheet."""
    space = next(iter(spaces))
    first = {space: spaces[space]}
    sets = {
        name: bench.features(name, first)[space]
        for name in ("ebm", "reference", "training", "reconstructions")
    }
    found = measure_memorisation(
        sets["ebm"], sets["reference"], sets["training"], reconstructions=sets["reconstructions"]
    )
    histograms(out / "figures/memorisation.png", {"nearest training picture": found.distances})
    rows = found.closest[:SHEET_PAIRS]
    u = tuple(g[rows] for g in bench.drawn("ebm").u)
    drawn = np.concatenate(list(bench.pictures(u)))
    assert bench.training is not None
    pairs = zip(drawn, found.neighbours[:SHEET_PAIRS], strict=True)
    sheet = [x for a, i in pairs for x in (a, np.asarray(bench.training.images[i]))]
    pictures = [Image.fromarray(np.ascontiguousarray(x.transpose(1, 2, 0))) for x in sheet]
    save_png(grid(pictures, columns=8), out / "nearest.png")
    return {"features": space, **found.to_dict()}


def show_memorisation(found: dict[str, Any]) -> list[Block]:
    """The part's blocks."""
    levels = [f"{100 * q:g}%" for q in found["quantile_levels"]]
    rows = [[n.replace("_", "-"), *map(number, q)] for n, q in found["quantiles"].items()]
    verdict = (
        "Samples are no nearer to training pictures than held-out pictures are."
        if found["no_shorter"]
        else "Samples are nearer to training pictures than held-out pictures are: look at the "
        "nearest pairs, and at the reconstructions' distances, which show what blur alone does."
    )
    shorter = with_error(found["shorter"], found["shorter_error"])
    tail = with_error(found["tail"], found["tail_error"])
    blurred = found["shorter_than"]["reconstructions"]
    return [
        Heading("Memorisation"),
        Text(
            f"Distance to the nearest of {found['counts']['training']} training pictures in "
            f"{found['features']}, its quantiles by set. P(sample nearer than held-out) = "
            f"{shorter}, than a reconstruction {with_error(blurred['value'], blurred['error'])}; "
            f"share of samples nearer than the held-out pictures' 1% quantile: {tail}."
        ),
        Table(["", *levels], rows),
        Text(verdict),
        Picture("figures/memorisation.png", "Distances to the nearest training picture"),
        Picture("nearest.png", "The nearest pairs: sample, training picture, sample, ..."),
    ]
