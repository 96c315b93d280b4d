"""Baselines by the same generator: what else could stand in the place of the prior.

    joint-ebm    one energy-based prior p(u) without a diffusion (T = 1, the 2023 predecessor):
                 maximum likelihood, chains from N(0, I); `joint_ebm` is its preset
    ddpm         a latent DDPM, `evaluation/latent_ddpm.py`

`run_baselines` measures all of them with the same feature spaces, reference, seeds and number of
images; the seconds per image that sampling u took; and over five disjoint sets of seeds by how
much each is worse than the energy-based prior.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from hebm_sample.config import TrainingRecord
from hebm_sample.errors import UserInputError
from hebm_sample.evaluation.context import EvaluationContext, Spaces, clock, fingerprint
from hebm_sample.evaluation.latent_ddpm import (
    DDPM_FILE,
    LatentDenoiser,
    TrainedDdpm,
    latents_digest,
    read_ddpm,
    sample_ddpm,
    told_by_run,
)
from hebm_sample.io.bars import disabled
from hebm_sample.io.defaults import usual_defaults
from hebm_sample.latents import Latents, concatenate
from hebm_sample.metrics.frechet import (
    DEFAULT_GROUPS,
    FeatureStatistics,
    frechet_distance,
    gap_closed,
    jackknife_standard_error,
)
from hebm_sample.metrics.quality import measure_quality
from hebm_sample.pipeline.pipeline import Pipeline
from hebm_sample.presets.preset import Preset
from hebm_sample.presets.settings import TrainSettings
from hebm_sample.prior.schedule import release_levels
from hebm_sample.sampling.noise import NoiseStreams
from hebm_sample.training.checkpoint import latest_checkpoint, read_state
from hebm_sample.training.record import check_rows

__all__ = ["joint_ebm", "run_baselines"]

JOINT_STEP = 0.1  # s of the joint EBM's chains, in training and sampling
JOINT_CHAIN = 20
JOINT_SAMPLING: dict[str, Any] = {
    "sampler": "recovery",
    "steps": JOINT_CHAIN,
    "kernel": "plain",
    "start": "u_next",
    "denoise": False,
    "step_scale": 1.0,
}
# Maximum likelihood needs a chain a step: many small steps learn more in the same time.
JOINT_BATCH, JOINT_RATE, JOINT_AVERAGE = 16, 3e-4, 0.99
# Steps and eta: ancestral sampling needs many, the deterministic one does with few. All of them
# leave N(0, I) as it is where the net is right for it.
DDPM_SAMPLERS = ((10, 0.0), (48, 0.0), (48, 1.0), (100, 1.0))
SEED_SETS = 5


def joint_ebm(preset: Preset) -> Preset:
    """The preset without its diffusion: levels of T = 1, the release's parametrisation, chains of
    20 steps from N(0, I) with s = 0.1, no symbols. A latent space energy-based prior by maximum
    likelihood (Pang et al., "Learning Latent Space Energy-Based Prior Model", arXiv 2006.08205),
    in the latents of a hierarchical generator.
    """
    return replace(
        preset,
        prior=replace(
            preset.prior,
            levels=release_levels(1),
            parametrization="release",
            step_size_0=JOINT_STEP,
            symbols=(),
        ),
        sampling=replace(preset.sampling, **JOINT_SAMPLING),
        prior_settings=_joint_settings(preset.prior_settings),
        objective="mle",
        chain_steps=JOINT_CHAIN,
        label_columns=(),
    )


def _joint_settings(settings: TrainSettings) -> TrainSettings:
    return replace(
        settings,
        batch_size=min(JOINT_BATCH, settings.batch_size),
        learning_rate=JOINT_RATE,
        warmup_steps=20,
        ema_decay=JOINT_AVERAGE,
        patience=0,
    )


def _check_generator(name: str, latents: str, context: EvaluationContext) -> None:
    """`UserInputError` unless a baseline is of the very latents that are measured."""
    if latents != latents_digest(context.pipe):
        raise UserInputError(
            f"baseline {name} has another generator or encoder than {context.pipe.name}; "
            "train it with --generator of this model"
        )


def _check_rows(
    name: str,
    records: Sequence[TrainingRecord],
    context: EvaluationContext,
    *,
    generator: bool = True,
) -> str | None:
    """What is not known of the rows that a baseline was trained on, in words; `UserInputError` if
    rows that are held out here are among them.
    """
    if context.training is None or context.held_out is None:
        return None
    sets = (context.training, context.held_out)
    return check_rows(f"baseline {name}", records, *sets, generator=generator) or None


def _checked_ddpm(name: str, folder: Path, context: EvaluationContext) -> TrainedDdpm:
    """A latent DDPM of this very generator and encoder, with the record of its rows."""
    found = told_by_run(read_ddpm(folder), folder, context.pipe)
    if found.net.shapes != context.pipe.generator.latent_shapes:
        raise UserInputError(f"baseline {name} is for latents of other shapes")
    if found.latents is None or found.record is None:
        raise UserInputError(
            f"{folder / DDPM_FILE} does not say which generator and rows it was trained with; "
            f"train it again: hebm-train baseline ddpm --generator {context.pipe.name}"
        )
    _check_generator(name, found.latents, context)
    return found


class _Samples(NamedTuple):
    """A prior's latents, the seconds that sampling them took, its parameters, and the steps and
    seconds of its training, as far as they are known.
    """

    u: Latents
    seconds: float
    parameters: int | None = None
    training_steps: int | None = None
    training_seconds: float | None = None


def _training(folder: Path) -> tuple[int | None, float | None]:
    """Steps and seconds of the run that a folder, or the one above it, holds."""
    for place in (folder, folder.parent):
        if (path := latest_checkpoint(place)) is not None:
            state = read_state(path)
            return state["step"], state["seconds"]
    return None, None


def _size(module: nn.Module | None) -> int | None:
    return None if module is None else sum(p.numel() for p in module.parameters())


def _ddpm_samples(
    context: EvaluationContext, net: LatentDenoiser, digest: str, steps: int, eta: float
) -> tuple[Latents, float]:
    """u of the context's seeds and the seconds that they took, kept in its folder.

    Arguments:
        digest: The sha256 of the net's file.
    """
    shapes, device = context.pipe.generator.latent_shapes, context.pipe.device
    net = net.to(device)

    def make(start: int, stop: int) -> dict[str, Tensor]:
        seconds, parts = 0.0, []
        for i in range(start, stop, context.batch_size):
            began = clock(device)
            noise = NoiseStreams(
                range(i, min(i + context.batch_size, stop)), shapes, device=device
            )
            u = sample_ddpm(net, noise, steps=steps, eta=eta, progress=bar.update)
            seconds += clock(device) - began
            parts.append(tuple(g.cpu() for g in u))
        return {f"u{i}": g for i, g in enumerate(concatenate(parts))} | {
            "seconds": torch.tensor([seconds])
        }

    total = steps * -(-context.num_images // context.batch_size)
    with tqdm(
        total=total, desc="latent DDPM", unit="step", disable=disabled(context.progress)
    ) as bar:
        name, key = f"ddpm-{steps}-{eta:g}-{digest[:8]}", ["ddpm", 2, digest, steps, eta]
        key += context.unusual()
        found = context.cached(name, key, context.num_images, make)
    return context.latents_of(found), float(found["seconds"].sum())


def _samples_of(
    context: EvaluationContext, folders: Mapping[str, Path | str]
) -> tuple[dict[str, _Samples], list[str]]:
    """Latents of every baseline and what they took, and what is not known of their rows. All are
    checked before the first is sampled.
    """
    known = {
        name: _checked_ddpm(name, Path(folder), context)
        if (Path(folder) / DDPM_FILE).is_file()
        else Pipeline.from_pretrained(folder, device=context.pipe.device)
        for name, folder in folders.items()
    }
    notes: list[str | None] = []
    for name, other in known.items():
        if isinstance(other, TrainedDdpm):
            assert other.record is not None
            notes.append(_check_rows(name, [other.record], context, generator=False))
            continue
        _check_generator(name, latents_digest(other), context)
        notes.append(_check_rows(name, other.config.training, context))
    found: dict[str, _Samples] = {}
    for name, other in known.items():
        run = _training(Path(folders[name]))
        if isinstance(other, TrainedDdpm):
            found |= _all_ddpm_samples(context, name, other, run)
            continue
        own = context.of_model(other).samples("ebm")
        title = f"{name}, {other.config.sampling.gradients} gradients"
        found[title] = _Samples(*own, _size(other.prior), *run)
    return found, [note for note in notes if note]


def _all_ddpm_samples(
    context: EvaluationContext,
    name: str,
    ddpm: TrainedDdpm,
    run: tuple[int | None, float | None],
) -> dict[str, _Samples]:
    """Of a latent DDPM, in each way that it is sampled."""
    found = {}
    for steps, eta in DDPM_SAMPLERS:
        title = f"{name}, {steps} {'ancestral' if eta else 'deterministic'} steps"
        drawn = _ddpm_samples(context, ddpm.net, ddpm.digest, steps, eta)
        found[title] = _Samples(*drawn, _size(ddpm.net), *run)
    return found


def _own_training(records: Sequence[TrainingRecord]) -> tuple[int | None, float | None]:
    """Steps and seconds of all runs of the energies, as the model's config tells them."""
    runs = [record for record in records if record.part == "prior"]
    if not runs:
        return None, None
    return sum(r.steps for r in runs), sum(r.seconds for r in runs)


@usual_defaults()
def run_baselines(
    context: EvaluationContext, spaces: Spaces, folders: Mapping[str, Path | str]
) -> dict[str, Any]:
    """Every prior's distances and seconds per image, in every space.

    Arguments:
        folders: Name to a folder of `train_ddpm`, or a model with the same generator.

    Raises:
        UserInputError: A baseline has another generator or encoder, was trained on rows that are
            held out here, or does not say so.
    """
    gradients = context.pipe.sampling_config(**context.sampling).gradients
    own = f"energy-based prior, {gradients} gradients"
    others, notes = _samples_of(context, folders)
    pipe, run = context.pipe, _own_training(context.pipe.config.training)
    samples = {
        "N(0, I)": _Samples(*context.samples("gaussian"), 0),
        own: _Samples(*context.samples("ebm"), _size(pipe.prior), *run),
        **others,
    }
    kept = {"reconstructions": "reconstructions", "N(0, I)": "gaussian", own: "ebm"}
    features = {name: context.features(of, spaces) for name, of in kept.items()}
    for name, found in others.items():
        features[name] = context.features_of(f"baseline {name}", found.u, spaces)
    reference = context.features("reference", spaces)
    decoding = _decoding_seconds(context)
    by_space = {
        space: _rows(samples, features, reference, space, context.num_images) for space in spaces
    }
    spread = _seed_spread(features, reference, spaces)
    return {
        "count": context.num_images,
        "own": own,
        "notes": notes,
        "decoding_seconds_per_image": decoding,
        "spaces": by_space,
        "seeds": spread,
        "differences": {s: _differences(features, reference, s, own) for s in spaces},
        "differences_by": "jackknife",
    }


def _decoding_seconds(context: EvaluationContext) -> float:
    """Per image, of the first batch; kept, so that a report says the same when it goes on."""
    u = tuple(g[: context.batch_size] for g in context.samples("gaussian").u)

    def make(_: int, __: int) -> dict[str, Tensor]:
        began = clock(context.pipe.device)
        for _batch in context.images(u):
            pass
        return {"seconds": torch.tensor([clock(context.pipe.device) - began])}

    key = ["decoding", fingerprint(context.pipe), len(u[0])]
    return float(context.cached("decoding", key, 1, make)["seconds"]) / len(u[0])


def _rows(
    samples: Mapping[str, _Samples],
    features: Mapping[str, Mapping[str, np.ndarray]],
    reference: Mapping[str, np.ndarray],
    space: str,
    count: int,
) -> dict[str, dict[str, Any]]:
    """Quality, gap closed and costs by prior, in one space."""
    rows: dict[str, dict[str, Any]] = {
        name: measure_quality(found[space], reference[space]).to_dict()
        | _costs(samples.get(name), count)
        for name, found in features.items()
    }
    ends = rows["N(0, I)"]["frechet"], rows["reconstructions"]["frechet"]
    for row in rows.values():
        row["gap_closed"] = gap_closed(ends[0], row["frechet"], ends[1])
    return rows


def _costs(samples: _Samples | None, count: int) -> dict[str, Any]:
    """What a prior costs, an image and once."""
    return {
        "seconds_per_image": None if samples is None else samples.seconds / count,
        "parameters": None if samples is None else samples.parameters,
        "training_steps": None if samples is None else samples.training_steps,
        "training_seconds": None if samples is None else samples.training_seconds,
    }


def _differences(
    features: Mapping[str, Mapping[str, np.ndarray]],
    reference: Mapping[str, np.ndarray],
    space: str,
    own: str,
) -> dict[str, dict[str, float]]:
    """By how much each prior's FD is above our own's, with the standard error of a difference:
    all are sampled with the same seeds, and have the same reference.
    """

    def above(a: FeatureStatistics, b: FeatureStatistics, real: FeatureStatistics) -> float:
        return frechet_distance(a, real) - frechet_distance(b, real)

    found = {}
    for name, those in features.items():
        if name in (own, "reconstructions"):
            continue
        sets = those[space], features[own][space], reference[space]
        groups = min(DEFAULT_GROUPS, len(sets[0]) // 2)
        found[name] = {
            "value": above(*map(FeatureStatistics.from_features, sets)),
            "error": jackknife_standard_error(above, *sets, num_groups=groups),
        }
    return found


def _seed_spread(
    named: Mapping[str, Mapping[str, Any]],
    reference: Mapping[str, Any],
    spaces: Mapping[str, Any],
    blocks: int = SEED_SETS,
) -> dict[str, dict[str, list[float]]]:
    """FD of five disjoint runs of seeds, each a fifth of the images: what another choice of
    seeds changes. These distances are of fewer images, so larger; compare them among each other.
    """
    found: dict[str, dict[str, list[float]]] = {}
    for space in spaces:
        against = FeatureStatistics.from_features(reference[space])
        found[space] = {}
        for name, features in named.items():
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
