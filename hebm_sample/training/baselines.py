"""Baselines by the same generator: what else could stand in the place of the prior.

    joint-ebm    one energy-based prior p(u) without a diffusion (T = 1, the 2023 predecessor):
                 maximum likelihood, chains from N(0, I); `joint_ebm` is its preset
    ddpm         a latent DDPM, `training/ddpm.py`

`run_baselines` measures all of them with the same feature spaces, reference, seeds and number of
pictures, and the seconds a picture that drawing u took.
"""

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from tqdm.auto import tqdm

from hebm_sample.errors import UserInputError
from hebm_sample.generator.hierarchy import Latents
from hebm_sample.metrics.frechet import FeatureStatistics, frechet_distance, gap_closed
from hebm_sample.metrics.quality import measure_quality
from hebm_sample.pipeline import Pipeline
from hebm_sample.prior.schedule import release_levels
from hebm_sample.sampling.noise import NoiseStreams
from hebm_sample.training.ddpm import DDPM_FILE, LatentDenoiser, load_ddpm, sample_ddpm
from hebm_sample.training.draws import Bench, Spaces, joined
from hebm_sample.training.preset import Preset
from hebm_sample.training.report_page import Block, Heading, Table, Text, number, with_error

__all__ = ["joint_ebm", "run_baselines", "show_baselines"]

JOINT_STEP = 0.1  # s of the joint EBM's chains, in training and sampling
JOINT_CHAIN = 30
DDPM_STEPS = (10, 48)


def joint_ebm(preset: Preset) -> Preset:
    """The preset without its diffusion: levels of T = 1, the release's parametrisation, chains of
    30 steps from N(0, I) with s = 0.1, no symbols.
    """
    prior = replace(
        preset.prior,
        levels=release_levels(1),
        parametrization="release",
        step_size_0=JOINT_STEP,
        symbols=(),
    )
    sampling = replace(
        preset.sampling,
        sampler="recovery",
        steps=JOINT_CHAIN,
        kernel="plain",
        start="u_next",
        denoise=False,
        step_scale=1.0,
    )
    return replace(
        preset,
        prior=prior,
        sampling=sampling,
        objective="mle",
        chain_steps=JOINT_CHAIN,
        label_columns=(),
    )


def _generator_of(name: str, other: Pipeline, bench: Bench) -> None:
    """`UserInputError` unless both models have one generator."""
    if other.config.generator == bench.pipe.config.generator:
        pairs = zip(
            other.generator.state_dict().values(),
            bench.pipe.generator.state_dict().values(),
            strict=True,
        )
        # Half precision on disk: a copy may be off by its rounding.
        if all(torch.allclose(a.cpu(), b.cpu(), rtol=2e-3, atol=1e-5) for a, b in pairs):
            return
    raise UserInputError(
        f"baseline {name} has another generator than {bench.pipe.name}; "
        "train it with --generator of this model"
    )


def _ddpm_draws(bench: Bench, net: LatentDenoiser, steps: int) -> tuple[Latents, float]:
    pipe, parts, began = bench.pipe, [], time.perf_counter()
    net = net.to(pipe.device)
    total = steps * -(-bench.num_pictures // bench.batch_size)
    with tqdm(total=total, desc="latent DDPM", unit="step", disable=not bench.progress) as bar:
        for i in range(0, bench.num_pictures, bench.batch_size):
            seeds = range(i, min(i + bench.batch_size, bench.num_pictures))
            noise = NoiseStreams(seeds, pipe.generator.latent_shapes, device=pipe.device)
            u = sample_ddpm(net, noise, steps=steps, progress=bar.update)
            parts.append(tuple(g.cpu() for g in u))
    return joined(parts), time.perf_counter() - began


def _draws(bench: Bench, folders: Mapping[str, Path | str]) -> dict[str, tuple[Latents, float]]:
    """Latents and seconds of every baseline."""
    found = {}
    for name, folder in folders.items():
        if (Path(folder) / DDPM_FILE).is_file():
            net = load_ddpm(folder)
            if net.shapes != bench.pipe.generator.latent_shapes:
                raise UserInputError(f"baseline {name} is for latents of other shapes")
            for steps in DDPM_STEPS:
                found[f"{name}, {steps} steps"] = _ddpm_draws(bench, net, steps)
            continue
        other = Pipeline.from_pretrained(folder, device=bench.pipe.device)
        _generator_of(name, other, bench)
        own = replace(bench, pipe=other, sampling={}, folder=None, _made={})
        drawn = own.drawn("ebm")
        found[f"{name}, {other.config.sampling.steps} gradients"] = (drawn.u, drawn.seconds)
    return found


def run_baselines(
    bench: Bench, spaces: Spaces, folders: Mapping[str, Path | str]
) -> dict[str, Any]:
    """Every prior's distances and seconds a picture, in every space.

    Arguments:
        folders: Name to a folder of `train_ddpm`, or a model with the same generator.
    """
    count = bench.num_pictures
    gauss, ebm = bench.drawn("gaussian"), bench.drawn("ebm")
    steps = bench.pipe.sampling_config(**bench.sampling).steps
    named = {
        "reconstructions": (bench.features("reconstructions", spaces), None),
        "N(0, I)": (bench.features("gaussian", spaces), gauss.seconds),
        f"energy-based prior, {steps} gradients": (bench.features("ebm", spaces), ebm.seconds),
    }
    for name, (u, seconds) in _draws(bench, folders).items():
        named[name] = (bench.features_of(f"baseline {name}", u, spaces), seconds)
    reference = bench.features("reference", spaces)
    found: dict[str, Any] = {"count": count, "spaces": {}}
    for space in spaces:
        rows: dict[str, dict[str, Any]] = {}
        for name, (features, seconds) in named.items():
            rows[name] = measure_quality(features[space], reference[space]).to_dict()
            rows[name]["seconds_a_picture"] = None if seconds is None else seconds / count
        ends = rows["N(0, I)"]["frechet"], rows["reconstructions"]["frechet"]
        for row in rows.values():
            row["gap_closed"] = gap_closed(ends[0], row["frechet"], ends[1])
        found["spaces"][space] = rows
    found["seeds"] = _seed_spread(named, reference, cast("dict[str, Any]", spaces))
    return found


def _seed_spread(
    named: Mapping[str, tuple[Mapping[str, Any], float | None]],
    reference: Mapping[str, Any],
    spaces: Mapping[str, Any],
    blocks: int = 5,
) -> dict[str, dict[str, list[float]]]:
    """FD of five disjoint runs of seeds, each a fifth of the pictures: what another choice of
    seeds changes. These distances are of fewer pictures, so larger; compare them among each other.
    """
    found: dict[str, dict[str, list[float]]] = {}
    for space in spaces:
        against = FeatureStatistics.from_features(reference[space])
        found[space] = {}
        for name, (features, _) in named.items():
            rows = features[space]
            size = len(rows) // blocks
            if size < 2:
                continue
            found[space][name] = [
                frechet_distance(
                    FeatureStatistics.from_features(rows[i * size : (i + 1) * size]), against
                )
                for i in range(blocks)
            ]
    return found


def show_baselines(found: dict[str, Any]) -> list[Block]:
    """The part's blocks."""
    blocks: list[Block] = [
        Heading("Baselines"),
        Text(
            f"The same generator, {found['count']} pictures and seeds, the same reference. "
            "Seconds are those of drawing u; decoding comes to all alike."
        ),
    ]
    for space, rows in found["spaces"].items():
        table = [
            [
                name,
                with_error(row["frechet"], row["frechet_error"], 2),
                number(row["gap_closed"]),
                with_error(row["kernel"], row["kernel_error"], 4),
                number(row.get("precision")),
                number(row.get("recall")),
                number(row["seconds_a_picture"], 4),
            ]
            for name, row in rows.items()
        ]
        header = ["", "Fréchet", "gap closed", "KID", "precision", "recall", "seconds a picture"]
        blocks += [Text(f"In {space}:"), Table(header, table)]
    return blocks
