"""The parts of a report about latents: the prior hole, and the chains that sample the prior."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from tqdm.auto import tqdm

from hebm_sample.evaluation.context import Bench
from hebm_sample.evaluation.mcmc import check_steps, diagnose_levels, traces_from
from hebm_sample.evaluation.report.page import (
    Block,
    Heading,
    ReportImage,
    Table,
    Text,
    number,
    with_error,
)
from hebm_sample.evaluation.report.plots import lines, scatter_pairs
from hebm_sample.latents import Latents
from hebm_sample.metrics.prior_hole import correlated_pairs, measure_hole
from hebm_sample.prior.schedule import DiffusionSchedule
from hebm_sample.sampling.noise import NoiseStreams

__all__ = ["run_diagnostics", "run_hole", "show_diagnostics", "show_hole"]

STEP_SCALES = (0.25, 0.5, 1.0, 1.5, 2.0, 3.0)
PRIORS = {"gaussian": "N(0, I)", "ebm": "energy-based prior"}


def _rows(group: Tensor) -> np.ndarray:
    return group.flatten(1).double().numpy()


def _all_rows(u: Latents) -> np.ndarray:
    return np.concatenate([_rows(g) for g in u], axis=1)


# The prior hole


def run_hole(bench: Bench, out: Path) -> dict[str, Any]:
    """Two-sample figures of q(u) on the reference half against both priors, a group and
    jointly.
    """
    half = bench.num_images
    seen = bench.seen()
    q = tuple(g[half : 2 * half] for g in seen.u)
    found: dict[str, Any] = {"rate": seen.kl.mean(0).tolist(), "count": half}
    joint = {"q(u)": _all_rows(q)}
    bar = tqdm(total=2 * (len(q) + 1), desc="prior hole", unit="test", disable=not bench.progress)
    for name, title in PRIORS.items():
        u = bench.drawn(name).u  # pyright: ignore[reportArgumentType]
        joint[title] = _all_rows(u)
        groups = []
        for a, b in zip(q, u, strict=True):
            groups.append(measure_hole(_rows(a), _rows(b)).to_dict())
            bar.update()
        whole = measure_hole(joint["q(u)"], joint[title]).to_dict()
        bar.update()
        found[name] = {"groups": groups, "joint": whole}
    bar.close()
    # Chosen on the other half: the pairs shown are not the luck of these rows.
    pairs = correlated_pairs(_all_rows(tuple(g[:half] for g in seen.u)))
    labels = _coordinates(bench)
    scatter_pairs(out / "figures/hole.png", joint, pairs, labels)
    return found | {"pairs": [[labels[i], labels[j]] for i, j in pairs]}


def _coordinates(bench: Bench) -> list[str]:
    """Names of the columns: group, channel, row, column."""
    return [
        f"u{i}[{c},{y},{x}]"
        for i, (channels, height, width) in enumerate(bench.pipe.generator.latent_shapes)
        for c in range(channels)
        for y in range(height)
        for x in range(width)
    ]


def show_hole(found: dict[str, Any]) -> list[Block]:
    """The part's blocks."""
    count = len(found["rate"])
    header = ["", *(f"group {i}" for i in range(count)), "jointly"]
    rows = [["KL(q(u|x) || N(0, I)), nats", *(number(v, 1) for v in found["rate"]), "–"]]
    for name, title in PRIORS.items():
        figures = [*found[name]["groups"], found[name]["joint"]]
        rows += [
            [
                f"{title}: accuracy",
                *(with_error(f["accuracy"], f["accuracy_error"], 2) for f in figures),
            ],
            [f"{title}: KL bound, nats", *(number(f["kl_bound"], 2) for f in figures)],
            [
                f"{title}: 1000 MMD²",
                *(with_error(1e3 * f["mmd"], 1e3 * f["mmd_error"], 2) for f in figures),
            ],
        ]
    return [
        Heading("Prior hole"),
        Text(
            f"q(u) of {found['count']} held-out images against as many samples of each prior. "
            "Accuracy of the better of two classifiers on rows that it has not seen: 0.5 is "
            "closed. The KL bound is a lower bound of KL(q || p) by the quadratic classifier. "
            "MMD² has a Gaussian kernel of median width."
        ),
        Table(header, rows),
        ReportImage(
            "figures/hole.png",
            "The coordinates most correlated in q(u), on rows that did not choose them",
        ),
    ]


# Chains


def run_diagnostics(bench: Bench, out: Path, *, images: int, steps: int) -> dict[str, Any]:
    """The sampler's own chains, acceptance by step size, chains from different starts."""
    pipe = bench.pipe
    config = replace(pipe.sampling_config(**bench.sampling), denoise=False)
    bar = tqdm(desc="diagnostics", unit="grad", disable=not bench.progress)
    levels, latents = diagnose_levels(pipe, range(images), config, bar.update)
    chains = config.sampler != "flow"
    known = _diffused(bench, images)
    checks = check_steps(pipe, known or latents, STEP_SCALES, config) if chains else []
    top = max(latents)
    traces = []
    for t in sorted({0, top // 2, top}) if chains else []:
        noise = NoiseStreams(range(images), pipe.generator.latent_shapes).normal()
        starts = {"the sampler's": latents[t], "N(0, I)": noise}
        starts |= {"q(u), diffused": known[t]} if known else {}
        traces.append(traces_from(pipe, starts, t, steps, config, progress=bar.update))
    bar.close()
    found = {
        "images": images,
        "acceptance_from": "q(u), diffused" if known else "the sampler's own",
        "sampling": config.to_dict(),
        "levels": [asdict(level) for level in levels],
        "steps": [asdict(check) for check in checks],
        "starts": traces,
    }
    if chains:
        _plot_diagnostics(found, out)
    return found


def _diffused(bench: Bench, images: int) -> dict[int, Latents]:
    """u_t of encoded images by level; none without data."""
    if bench.held_out is None or bench.pipe.config.prior is None:
        return {}
    schedule = DiffusionSchedule(bench.pipe.config.prior.levels)
    u = tuple(g[:images] for g in bench.seen().u)
    noise = NoiseStreams(range(7000, 7000 + len(u[0])), bench.pipe.generator.latent_shapes)
    return {t: schedule.diffuse(u, t, noise.normal()) for t in range(schedule.num_levels)}


def _plot_diagnostics(found: dict[str, Any], out: Path) -> None:
    steps = sorted({c["level"] for c in found["steps"]})
    by_level = {
        f"level {t}": (
            [c["step_scale"] for c in found["steps"] if c["level"] == t],
            [c["acceptance"] for c in found["steps"] if c["level"] == t],
        )
        for t in steps
    }
    own = {
        f"level {x['level']}": (range(x["steps"]), x["displacement"])
        for x in found["levels"]
        if x["steps"]
    }
    lines(
        out / "figures/acceptance.png",
        {"acceptance of a Metropolis correction": by_level},
        x="step scale c",
        y="mean acceptance",
    )
    lines(
        out / "figures/displacement.png",
        {"the sampler's own steps": own},
        x="step",
        y="displacement / sqrt(s D)",
    )
    panels = {
        f"level {x['level']}, R hat {x['r_hat']:.2f}": {
            name: (range(len(trace)), trace) for name, trace in x["traces"].items()
        }
        for x in found["starts"]
    }
    lines(out / "figures/traces.png", panels, x="step", y="log p / D", markers=False)


def show_diagnostics(found: dict[str, Any]) -> list[Block]:
    """The part's blocks."""
    scale = found["sampling"]["step_scale"]
    rows = []
    for level in found["levels"]:
        rates = [c for c in found["steps"] if c["level"] == level["level"]]
        own = min(rates, key=lambda c: abs(c["step_scale"] - scale), default=None)
        best = max(rates, key=lambda c: c["effective_step"], default=None)
        rows.append(
            [
                str(level["level"]),
                number(level["cum_sigma"], 2),
                str(level["steps"]),
                number(np.mean(level["displacement"]) if level["steps"] else None, 2),
                with_error(level["energy"][0], level["energy"][1], 1),
                "–" if own is None else f"{own['acceptance']:.3f} (c = {own['step_scale']:g})",
                "–" if best is None else f"c = {best['step_scale']:g}",
            ]
        )
    blocks: list[Block] = [
        Heading("Langevin diagnostics"),
        Text(
            f"{found['images']} chains. Displacement is a step's over sqrt(s D); the energy -F "
            "at the level's end is its mean ± standard deviation over images. Acceptance is "
            "that of a Metropolis correction, which the sampler does not make, on the marginal "
            f"of the level, from latents of {found['acceptance_from']}; the last column has the "
            "step with the largest effective step, c times acceptance."
        ),
        Table(
            [
                "level",
                "cum. sigma",
                "steps",
                "displacement",
                "energy",
                "acceptance",
                "longest effective step",
            ],
            rows,
        ),
    ]
    if found["steps"]:
        blocks += [
            ReportImage("figures/acceptance.png", "Acceptance by step scale"),
            ReportImage("figures/displacement.png", "Displacement of the sampler's own steps"),
            ReportImage("figures/traces.png", "Chains on the marginals from different starts"),
        ]
    return blocks
