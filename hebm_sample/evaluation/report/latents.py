"""The parts of a report about latents: the prior hole, and the chains that sample the prior."""

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from tqdm.auto import tqdm

from hebm_sample.evaluation.context import EvaluationContext
from hebm_sample.evaluation.mcmc import (
    DIFFUSION,
    TRACE_STARTS,
    check_steps,
    diagnose_levels,
    traces_from,
)
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
from hebm_sample.io.bars import disabled
from hebm_sample.io.seeds import derived_seed
from hebm_sample.latents import Latents
from hebm_sample.metrics.prior_hole import correlated_pairs, measure_prior_hole
from hebm_sample.prior.schedule import DiffusionSchedule
from hebm_sample.sampling.noise import NoiseStreams

__all__ = [
    "diagnostics_table",
    "prior_hole_table",
    "run_diagnostics",
    "run_prior_hole",
    "show_diagnostics",
    "show_prior_hole",
]

STEP_SCALES = (0.25, 0.5, 1.0, 1.5, 2.0, 3.0)
PRIORS = {"gaussian": "N(0, I)", "ebm": "energy-based prior"}


def _rows(group: Tensor) -> np.ndarray:
    return group.flatten(1).double().numpy()


def _all_rows(u: Latents) -> np.ndarray:
    return np.concatenate([_rows(g) for g in u], axis=1)


# The prior hole


def run_prior_hole(context: EvaluationContext, out: Path) -> dict[str, Any]:
    """Two-sample figures of q(u) on the reference half against both priors, by group and
    jointly.
    """
    half = context.num_images
    encoded = context.encoded()
    q = tuple(g[half : 2 * half] for g in encoded.u)
    found: dict[str, Any] = {"rate": encoded.kl.mean(0).tolist(), "count": half}
    joint = {"q(u)": _all_rows(q)}
    bar = tqdm(
        total=2 * (len(q) + 1), desc="prior hole", unit="test", disable=disabled(context.progress)
    )
    for name, title in PRIORS.items():
        u = context.samples(name).u  # pyright: ignore[reportArgumentType]
        joint[title] = _all_rows(u)
        groups = []
        for a, b in zip(q, u, strict=True):
            groups.append(measure_prior_hole(_rows(a), _rows(b)).to_dict())
            bar.update()
        whole = measure_prior_hole(joint["q(u)"], joint[title]).to_dict()
        bar.update()
        found[name] = {"groups": groups, "joint": whole}
    bar.close()
    # Chosen on the other half: the pairs shown are not the luck of these rows.
    pairs = correlated_pairs(_all_rows(tuple(g[:half] for g in encoded.u)))
    labels = _coordinates(context)
    scatter_pairs(out / "figures/hole.png", joint, pairs, labels)
    return found | {"pairs": [[labels[i], labels[j]] for i, j in pairs]}


def _coordinates(context: EvaluationContext) -> list[str]:
    """Names of the columns: group, channel, row, column."""
    return [
        f"u{i}[{c},{y},{x}]"
        for i, (channels, height, width) in enumerate(context.pipe.generator.latent_shapes)
        for c in range(channels)
        for y in range(height)
        for x in range(width)
    ]


def prior_hole_table(found: Mapping[str, Any]) -> Table:
    """Figures by group of latents, and jointly."""
    header = ["", *(f"group {i}" for i in range(len(found["rate"]))), "jointly"]
    rows = [["KL(q(u|x) || N(0, I)), nats", *(number(v, 1) for v in found["rate"]), "–"]]
    for name, title in PRIORS.items():
        figures = [*found[name]["groups"], found[name]["joint"]]
        accuracies = [with_error(f["accuracy"], f["accuracy_error"], 2) for f in figures]
        mmds = [with_error(1e3 * f["mmd"], 1e3 * f["mmd_error"], 2) for f in figures]
        rows += [
            [f"{title}: accuracy", *accuracies],
            [f"{title}: KL estimate, nats", *(number(f["kl_bound"], 2) for f in figures)],
            [f"{title}: 1000 MMD²", *mmds],
        ]
    return Table(header, rows)


def _acceptance(check: Mapping[str, Any]) -> str:
    """With its standard error, which figures of before have not."""
    error = check.get("acceptance_error")
    rate = f"{check['acceptance']:.3f}" + ("" if error is None else f" ± {error:.3f}")
    return f"{rate} (c = {check['step_scale']:g})"


def show_prior_hole(found: dict[str, Any]) -> list[Block]:
    """The part's blocks."""
    # Figures of before, which name no version, chose the classifier by the rows of the figure.
    rows = "neither trained nor chose it" if "version" in found else "did not train it"
    return [
        Heading("Prior hole"),
        Text(
            f"q(u) of {found['count']} held-out images against as many samples of each prior. "
            f"Accuracy of the better of two classifiers on rows that {rows}: 0.5 is closed. "
            "The KL estimate is Donsker and Varadhan's of KL(q || p), from the quadratic "
            "classifier's log odds: a lower bound where there are enough rows for the mean of "
            "exp T, and too large where KL is many nats. MMD² has a Gaussian kernel of median "
            "width."
        ),
        prior_hole_table(found),
        ReportImage(
            "figures/hole.png",
            "The coordinates most correlated in q(u), on rows that did not choose them",
        ),
    ]


# Chains


def run_diagnostics(
    context: EvaluationContext, out: Path, *, images: int, steps: int
) -> dict[str, Any]:
    """The sampler's own chains, acceptance by step size, chains from different starts."""
    pipe = context.pipe
    config = replace(pipe.sampling_config(**context.sampling), denoise=False, particles=1)
    bar = tqdm(desc="diagnostics", unit="grad", disable=disabled(context.progress))
    levels, latents = diagnose_levels(pipe, range(images), config, bar.update)
    chains = config.runs_chains
    known = _diffused(context, images)
    checks = check_steps(pipe, known or latents, STEP_SCALES, config) if chains else []
    top = max(latents)
    traces = []
    for t in sorted({0, top // 2, top}) if chains else []:
        seeds = [derived_seed(i, TRACE_STARTS) for i in range(images)]
        noise = NoiseStreams(seeds, pipe.generator.latent_shapes).normal()
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


def _diffused(context: EvaluationContext, images: int) -> dict[int, Latents]:
    """u_t of encoded images by level; none without data."""
    if context.held_out is None or context.pipe.config.prior is None:
        return {}
    schedule = DiffusionSchedule(context.pipe.config.prior.levels)
    u = tuple(g[:images] for g in context.encoded().u)
    seeds = [derived_seed(i, DIFFUSION) for i in range(len(u[0]))]
    noise = NoiseStreams(seeds, context.pipe.generator.latent_shapes)
    return {t: schedule.diffuse(u, t, noise.normal()) for t in range(schedule.num_levels)}


def _plot_diagnostics(found: dict[str, Any], out: Path) -> None:
    by_level: dict[str, Any] = {}
    for check in found["steps"]:
        xs, ys = by_level.setdefault(f"level {check['level']}", ([], []))
        xs.append(check["step_scale"])
        ys.append(check["acceptance"])
    own = {
        f"level {x['level']}": (range(x["steps"]), x["displacement"])
        for x in found["levels"]
        if x["steps"]
    }
    panels = {
        f"level {x['level']}, R hat {x['r_hat']:.2f}": {
            name: (range(len(trace)), trace) for name, trace in x["traces"].items()
        }
        for x in found["starts"]
    }
    rate, moved = "acceptance of a Metropolis correction", "the sampler's own steps"
    figures = out / "figures"
    lines(figures / "acceptance.png", {rate: by_level}, x="step scale c", y="mean acceptance")
    lines(figures / "displacement.png", {moved: own}, x="step", y="displacement / sqrt(s D)")
    lines(figures / "traces.png", panels, x="step", y="log p / D", markers=False)


def diagnostics_table(found: Mapping[str, Any]) -> Table:
    """A row a noise level."""
    header = ["level", "cum. sigma", "steps", "displacement", "energy", "acceptance"]
    rows = [_level_row(found, level) for level in found["levels"]]
    return Table([*header, "longest effective step"], rows)


def _level_row(found: Mapping[str, Any], level: Mapping[str, Any]) -> list[str]:
    scale = found["sampling"]["step_scale"]
    rates = [c for c in found["steps"] if c["level"] == level["level"]]
    own = min(rates, key=lambda c: abs(c["step_scale"] - scale), default=None)
    best = max(rates, key=lambda c: c["effective_step"], default=None)
    moved = [x for x in level["displacement"] if x is not None and x == x]
    return [
        str(level["level"]),
        number(level["cum_sigma"], 2),
        str(level["steps"]),
        number(float(np.mean(moved)) if moved else None, 2),
        with_error(level["energy"][0], level["energy"][1], 1),
        "–" if own is None else _acceptance(own),
        "–" if best is None else f"c = {best['step_scale']:g}",
    ]


def show_diagnostics(found: dict[str, Any]) -> list[Block]:
    """The part's blocks."""
    blocks: list[Block] = [
        Heading("Langevin diagnostics"),
        Text(
            f"{found['images']} chains. Displacement is a step's over that of free diffusion; the "
            "energy -F at the level's end is its mean ± standard deviation over images. "
            "Acceptance is that of a Metropolis correction, which the sampler does not make, on "
            f"the marginal of the level, from latents of {found['acceptance_from']}; the last "
            "column has the step with the largest effective step, c times acceptance."
        ),
        diagnostics_table(found),
    ]
    if found["steps"]:
        blocks += [
            ReportImage("figures/acceptance.png", "Acceptance by step scale"),
            ReportImage("figures/displacement.png", "Displacement of the sampler's own steps"),
            ReportImage("figures/traces.png", "Chains on the marginals from different starts"),
        ]
    return blocks
