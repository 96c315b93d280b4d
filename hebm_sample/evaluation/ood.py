"""Out-of-distribution detection: does a score tell other images from those like the training data?

    energy of the top k groups   -F_G(u), G = the k coarsest groups, u ~ q(u | x); every k
    energy after the chain       the same of u_0 from the energy-based prior's lowest level: u as
                                 above, moved by the sampler's chain on log p(u_0 | u_1), with u_1
                                 = u diffused
    negative log density         -log p_G(u) = -F_G(u) + |u_G|^2 / 2 of the top k groups, every k;
                                 also of q(u | x)'s mean, and of u_0 after the chain
    rate                         E_q[-F_G] + KL_G of the top k groups, every k
    LLR > k                      the bound less the bound without the k finest groups (Havtorn et
                                 al., arXiv 2102.08248; `pipeline/scoring.py`)
    combination                  Mahalanobis distance of every level's statistics, fitted on
                                 held-out images alone (`metrics/typicality.py`)
    likelihood                   -ELBO in nats
    compression                  bytes of the image as PNG: no model at all
    likelihood less compression  -ELBO - 8 log 2 bytes (Serrà et al., "Input complexity and
                                 out-of-distribution detection with likelihood-based generative
                                 models", arXiv 1909.11480)

All are large for out-of-distribution images. AUROC = P(score of another image > score of a
held-out one). A likelihood is known to prefer smooth images of any kind (Nalisnick et al., "Do
Deep Generative Models Know What They Don't Know?", arXiv 1810.09136); the compression column says
how much of a figure that explains.
"""

import io
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from PIL import Image, ImageFilter

from hebm_sample.config import LangevinConfig, PriorConfig, require_integer
from hebm_sample.errors import UserInputError
from hebm_sample.io.defaults import usual_defaults
from hebm_sample.io.seeds import derived_seed
from hebm_sample.latents import Latents, check_latents, concatenate, flatten
from hebm_sample.metrics.statistics import Figure, auroc
from hebm_sample.metrics.typicality import Calibration
from hebm_sample.pipeline.pipeline import Pipeline
from hebm_sample.pipeline.scoring import Measured
from hebm_sample.prior.density import net_level
from hebm_sample.prior.schedule import DiffusionSchedule
from hebm_sample.sampling.chain import run_chain
from hebm_sample.sampling.noise import NoiseStreams
from hebm_sample.sampling.step_size import transition

__all__ = [
    "OWN_SETS",
    "chain_latents",
    "corruptions",
    "png_bytes",
    "scores",
    "separations",
    "top_group_energies",
]

NOISE_LEVEL = 40.0  # standard deviation, on 0 to 255
BLUR_SHARE = 1 / 16  # radius, of the side
CHAINS = 5_001  # the purpose of the chains' streams: images were encoded with other noise


# Names of the sets that are made of held-out images, and theirs.
OWN_SETS = ("held-out", "noise", "blur", "one colour", "inverted")


def corruptions(images: np.ndarray, seed: int = 0) -> dict[str, np.ndarray]:
    """The same images, uint8 (N, 3, S, S), corrupted: noise, blur, one colour, inverted."""
    rng = np.random.default_rng(seed)
    noisy = images + NOISE_LEVEL * rng.standard_normal(images.shape, dtype=np.float32)
    radius = max(1.0, images.shape[-1] * BLUR_SHARE)
    blurred = [
        np.asarray(Image.fromarray(x).filter(ImageFilter.GaussianBlur(radius)))
        for x in images.transpose(0, 2, 3, 1)
    ]
    colour = images.mean(axis=(2, 3), keepdims=True)
    return {
        "noise": noisy.clip(0, 255).round().astype(np.uint8),
        "blur": np.ascontiguousarray(np.stack(blurred).transpose(0, 3, 1, 2)),
        "one colour": np.broadcast_to(colour.round(), images.shape).astype(np.uint8),
        "inverted": (255 - images).astype(np.uint8),
    }


def png_bytes(images: np.ndarray) -> np.ndarray:
    """Size of each image, uint8 (N, 3, S, S), as an optimised PNG, (N,)."""
    sizes = []
    for image in images.transpose(0, 2, 3, 1):
        buffer = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(image)).save(buffer, "PNG", optimize=True)
        sizes.append(buffer.tell())
    return np.array(sizes, dtype=np.float64)


@torch.no_grad()
def top_group_energies(pipe: Pipeline, u: Latents, batch_size: int = 50) -> np.ndarray:
    """-F_G at the lowest noise level for G = the top 1, 2, ... L groups, (N, L); the nets run
    once.
    """
    batch_size = require_integer("batch_size", batch_size, 1, 2**31)
    prior, config = pipe.prior, pipe.config.prior
    if prior is None or config is None:
        raise UserInputError(f"{pipe.name} has no energy-based prior, so no energies")
    count = check_latents(u, pipe.generator.latent_shapes)
    level = float(net_level(DiffusionSchedule(config.levels), 0, config.parametrization))
    tops = [list(range(k + 1)) for k in range(len(u))]
    parts = []
    for i in range(0, count, batch_size):
        rows = tuple(g[i : i + batch_size].to(pipe.device, torch.float32) for g in u)
        levels = torch.full((len(rows[0]),), level, device=pipe.device)
        outputs = prior.outputs(pipe.generator.transform(rows), levels)
        parts.append(torch.stack([-prior.select(outputs, g) for g in tops], dim=1).cpu())
    return torch.cat(parts).double().numpy()


@usual_defaults()
@torch.no_grad()
def chain_latents(
    pipe: Pipeline,
    u: Latents,
    config: LangevinConfig | None = None,
    *,
    batch_size: int = 50,
    progress: Callable[[int], object] | None = None,
) -> Latents:
    """u_0 of chains that start at u and run on log p(u_0 | u_1) with u_1 the same u diffused; on
    log p_0 where there is one level only, or the sampler anneals. The sampler's kernel and step
    size, without its momentum.

    Arguments:
        u: (N, C_i, H_i, W_i) a group, u ~ q(u | x).
        config: Of the sampler; the model's own if None. Its steps are shared among the levels, and
            the lowest one's share is the chain's length.
        batch_size: Chains at a time.
        progress: Called with the gradients just evaluated.
    """
    prior = pipe.config.prior
    if pipe.prior is None or prior is None:
        raise UserInputError(f"{pipe.name} has no energy-based prior, so no chains")
    config = config or pipe.config.sampling
    count, shapes = check_latents(u, pipe.generator.latent_shapes), pipe.generator.latent_shapes
    parts: list[Latents] = []
    for i in range(0, count, batch_size):
        rows = tuple(g[i : i + batch_size].to(pipe.device, torch.float32) for g in u)
        seeds = [derived_seed(i + k, CHAINS) for k in range(len(rows[0]))]
        noise = NoiseStreams(seeds, shapes, device=pipe.device)
        parts.append(_lowest_chain(pipe, prior, rows, config, noise, progress))
    return concatenate(parts)


def _lowest_chain(
    pipe: Pipeline,
    prior: PriorConfig,
    rows: Latents,
    config: LangevinConfig,
    noise: NoiseStreams,
    progress: Callable[[int], object] | None,
) -> Latents:
    """u_0 of the chains that start at these rows, on the CPU."""
    schedule = DiffusionSchedule(prior.levels)
    wide = pipe.posterior_variance() if config.precondition else None
    chain = transition(
        schedule,
        0,
        config if config.runs_chains else replace(config, sampler="recovery"),
        parametrization=prior.parametrization,
        step_size_0=prior.step_size_0,
        posterior_variance=None if wide is None else flatten(wide),
    )
    above = schedule.diffuse(rows, 1, noise.normal()) if chain.conditional else rows
    moved, _ = run_chain(
        rows,
        chain.density(pipe.energy_terms, above),
        partial(noise.normal, config.temperature),
        num_steps=max(1, config.steps // schedule.num_levels),
        step_size=chain.step_size,
        kernel=config.kernel,
        reference_variance=chain.reference_variance,
        decay=chain.decay,
        tally=None if progress is None else lambda: progress(1),  # pyright: ignore
    )
    return tuple(g.cpu() for g in moved)


@usual_defaults()
def scores(
    energies: np.ndarray,
    nats: np.ndarray,
    bytes_: np.ndarray,
    after_chain: np.ndarray | None = None,
    measured: Measured | None = None,
    calibration: Calibration | None = None,
    densities_after_chain: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """The module's table: name to (N,), large for out-of-distribution images.

    Arguments:
        energies: (N, L), as `top_group_energies` gives them.
        nats: -ELBO, (N,).
        bytes_: As `png_bytes` gives them.
        after_chain: (N, L), the energies of `chain_latents`; None leaves them out.
        measured: Densities, rates, ratios and statistics of the images; None leaves them out.
        calibration: Fitted on other held-out images; None leaves the combination out.
        densities_after_chain: (N, L), -log p of `chain_latents`; None leaves them out.
    """
    named = _by_groups("energy", energies)
    if after_chain is not None:
        named |= _by_groups("energy after the chain", after_chain)
    if densities_after_chain is not None:
        named |= _by_groups("negative log density after the chain", densities_after_chain)
    if measured is not None:
        named |= _by_level(measured, calibration)
    return named | {
        "likelihood": nats,
        "compression": bytes_,
        "likelihood less compression": nats - 8 * math.log(2) * bytes_,
    }


def _by_groups(kind: str, values: np.ndarray) -> dict[str, np.ndarray]:
    """Columns (N,) of values (N, L), by the number of top groups."""
    groups = values.shape[1]
    return {f"{kind}, top {k + 1} of {groups}": values[:, k] for k in range(groups)}


def _by_level(measured: Measured, calibration: Calibration | None) -> dict[str, np.ndarray]:
    """Scores that know of levels, (N,) each."""
    kinds = {
        "negative log density": measured.densities,
        "negative log density of means": measured.mean_densities,
        "rate": measured.rates,
    }
    named: dict[str, np.ndarray] = {}
    for kind, values in kinds.items():
        named |= _by_groups(kind, values.numpy())
    groups = measured.rates.shape[1]
    named |= {f"LLR > {k}": measured.ratios[:, k].numpy() for k in range(1, groups)}
    if calibration is not None:
        named["combination"] = calibration.distance(measured.statistics.numpy())
    return named


def separations(
    own: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray], *, paired: bool = False
) -> dict[str, Figure]:
    """AUROC a score: of the data set's own held-out images against others.

    Arguments:
        paired: The others were made of the very same images, one of each.
    """
    return {name: auroc(own[name], other[name], paired=paired) for name in own}
