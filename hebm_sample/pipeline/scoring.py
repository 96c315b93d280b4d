r"""What a model says of how likely images are: densities, rates, likelihood ratios by level.

    log p_G(u) = F_G(u) - |u_G|^2 / 2 + const        prior log density of the groups G
    rate_G(x)  = E_q[-F_G(u)] + KL_G                 KL(q(u_G | x) || p_G), up to the same constant
    LLR^{>k}   = L(x) - L^{>k}(x)                    likelihood ratio of the k finest groups

with u ~ q(u | x), and KL at these draws where the posterior has flows. L is the evidence lower
bound under N(0, I), and L^{>k} the bound that keeps the posterior of the coarse groups only and
samples the k finest from N(0, I):

    L^{>k} = E[log p(x | u)] - sum_{i <= n-k} KL_i,   u_i ~ q for i <= n-k, u_i ~ N(0, I) below

for a model of n groups; LLR^{>0} = 0. Havtorn et al., "Hierarchical VAEs Know What They Don't
Know" (arXiv 2102.08248): low-level features are shared by images of all kinds, so what the fine
groups alone explain is taken off the bound.

`measure` also gives each level's statistics, which have a distance from those of held-out images
(`metrics/typicality.py`): typicality as in Nalisnick et al., "Detecting Out-of-Distribution Inputs
to Deep Generative Models Using Typicality" (arXiv 1906.02994), of many statistics at once as in
Morningstar et al., "Density of States Estimation for Out-of-Distribution Detection" (arXiv
2006.09273). What has a long tail enters by its logarithm where it is positive by construction, a
sum or mean of squares, and else by asinh, which is linear about 0 and logarithmic far from it on
either side: a KL divergence at single draws and the -log of a density may be negative.

Every image is met by the same noise, so its scores depend neither on its neighbours nor on its
place among them.
"""

import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hebm_sample.config import plain, require_integer
from hebm_sample.errors import UserInputError
from hebm_sample.generator.encoder import Posterior, encode
from hebm_sample.generator.protocol import ImageDistribution, TopDown
from hebm_sample.io.seeds import MAX_SEEDS, posterior_seed
from hebm_sample.latents import Latents, check_finite, check_latents, concatenate, exact
from hebm_sample.pipeline.alignment import crops
from hebm_sample.pipeline.identity import calibration_if_any
from hebm_sample.pipeline.outputs import refuse_idle_align
from hebm_sample.prior.symbols import GroupOutputs
from hebm_sample.sampling.noise import NoiseStreams

if TYPE_CHECKING:
    from hebm_sample.pipeline.model import EncodeMode, ImagesLike, Model

__all__ = [
    "Measured",
    "distortion",
    "group_indices",
    "half_squares",
    "log_density",
    "measure",
    "rate",
    "samples_of",
    "score_draws",
    "shared_samples",
]

SCORE_DRAWS = 2
SMALLEST = 1e-12  # below which a mean square is taken for this


def group_indices(groups: Any, count: int) -> list[int]:
    """Indices of the groups that a slice, indices, one index or None (all) name.

    >>> group_indices(slice(0, 2), 4), group_indices(-1, 4), group_indices(None, 3)
    ([0, 1], [3], [0, 1, 2])
    """
    every, groups = range(count), plain(groups)
    try:
        if groups is None or isinstance(groups, slice):
            chosen = list(every if groups is None else every[groups])
        else:
            named = [groups] if isinstance(groups, int) else groups
            chosen = [every[_number(i)] for i in named]
    except (IndexError, TypeError, ValueError):
        chosen = []
    if not chosen or len(set(chosen)) < len(chosen):
        raise UserInputError(
            f"groups {groups} asked for; this model has {count}, "
            f"numbered 0 (top) to {count - 1}, each to be named once"
        )
    return chosen


def _number(index: Any) -> int:
    index = plain(index)
    if isinstance(index, bool):
        raise TypeError("a truth value is no number")
    return operator.index(index)


def log_density(model: "Model", u: Latents, groups: Sequence[int], batch_size: int = 16) -> Tensor:
    """log p_G(u) = F_G(u) - |u_G|^2 / 2 at the lowest noise level, up to its constant: (N,).

    Arguments:
        u: (N, C_i, H_i, W_i) a group.
        groups: G, as `group_indices` gives them.
    """
    prior = model.energies()
    gain = prior.select(model.lowest_outputs(u, batch_size), list(groups)).double()
    return (gain - half_squares(u)[:, list(groups)].sum(1).cpu()).float()


def half_squares(u: Latents) -> Tensor:
    """|u_i|^2 / 2 of every group, (N, L), in double precision."""
    return torch.stack([exact(g.flatten(1)).square().sum(1) / 2 for g in u], dim=1)


@dataclass(frozen=True)
class _PosteriorSample:
    """What a batch of images looks like with one sample of u, or with the posterior's means."""

    posterior: Posterior
    noise: Latents | None
    kl: Tensor
    outputs: GroupOutputs


def _batches(model: "Model", x: Tensor, batch_size: int) -> Iterator[tuple[Tensor, Any]]:
    for i in range(0, len(x), batch_size):
        rows = x[i : i + batch_size].to(model.device)
        with model.precision():
            yield rows, model.encoder.features(rows)


def _posterior(
    model: "Model", features: Any, seed: int | None
) -> tuple[Posterior, Latents | None]:
    """u ~ q(u | x) with the noise of a seed, the same for every image; the means if it is None.
    And the seed's further noise, for groups that are sampled from N(0, I).
    """
    count, shapes = len(next(iter(features.values()))), model.generator.latent_shapes
    own = further = None
    if seed is not None:
        stream = NoiseStreams([posterior_seed(seed)], shapes, device=model.device)
        own, further = (
            tuple(g.expand(count, -1, -1, -1) for g in stream.normal()) for _ in range(2)
        )
    with model.precision():
        return encode(model.generator, model.encoder, features, own), further


def _posterior_sample(model: "Model", features: Any, seed: int | None) -> _PosteriorSample:
    """The same with its KL divergence and energies."""
    posterior, further = _posterior(model, features, seed)
    count = len(posterior.u[0])
    levels = torch.full((count,), model.lowest_level(), dtype=torch.float32, device=model.device)
    with model.precision():
        outputs = model.energies().outputs(posterior.top, levels)
    kl = model.encoder.kl(_in_double(posterior))
    found = GroupOutputs(*(exact(part) for part in outputs))
    return _PosteriorSample(posterior, further, kl, found)


def score_draws(model: "Model") -> int:
    """Samples of u an image that its scores are means over: those of its calibration."""
    known = calibration_if_any(model)
    return SCORE_DRAWS if known is None else known.draws or SCORE_DRAWS


def samples_of(
    model: "Model",
    images: "ImagesLike | None",
    latents: Latents | None,
    mode: "EncodeMode",
    batch_size: int,
    align: bool = False,
    face: int | None = None,
) -> tuple[Latents, ...]:
    """What a score is the mean over: the latents themselves, q(u | x)'s mean, or `score_draws`
    samples of it, with the same noise for every image.

    Raises:
        UserInputError: Both or neither of images and latents, latents that are not finite or of
            other shapes, or a model without encoder.
    """
    batch_size = require_integer("batch_size", batch_size, 1, MAX_SEEDS)
    if (images is None) == (latents is None):
        raise UserInputError("give either images or latents, and not both")
    if latents is not None:
        refuse_idle_align(align, face, latents)
        check_latents(latents, model.generator.latent_shapes)
        check_finite(latents)
        return (latents,)
    if mode != "sample":
        how: dict[str, Any] = {"align": align, "face": face}
        return (model.encode(images, mode=mode, batch_size=batch_size, **how),)
    assert images is not None
    x = model.read_images(crops(model, images, align, face))
    return shared_samples(model, x, score_draws(model), batch_size)


@torch.no_grad()
def shared_samples(
    model: "Model", x: Tensor, draws: int, batch_size: int = 16
) -> tuple[Latents, ...]:
    """Samples of u ~ q(u | x), on the CPU, with the noise of the seeds 0 ... draws-1 in turn,
    which is the same for every image: what is said of one depends on no other.

    Arguments:
        x: (N, 3, S, S) in [-1, 1].
    """
    parts: list[list[Latents]] = [[] for _ in range(draws)]
    for _, features in _batches(model, x, batch_size):
        for seed, found in enumerate(parts):
            posterior, _ = _posterior(model, features, seed)
            found.append(tuple(g.float().cpu() for g in posterior.u))
    return tuple(concatenate(found) for found in parts)


@torch.no_grad()
def distortion(model: "Model", x: Tensor, draws: int, batch_size: int = 16) -> Tensor:
    """-log p(x | u) in nats, mean over the samples, (N,): that of `measure`, and nothing else."""
    parts = []
    for rows, features in _batches(model, x, batch_size):
        found = [_posterior(model, features, seed)[0] for seed in range(draws)]
        each = [exact(-_likelihood(model, p.top).log_prob(rows)) for p in found]
        parts.append(torch.stack(each).mean(0).cpu())
    return torch.cat(parts)


def _likelihood(model: "Model", top: TopDown) -> ImageDistribution:
    with model.precision():
        return model.generator.output(top.features.float())


def _in_double(drawn: Posterior) -> Posterior:
    """What its KL is of, in double precision."""
    u, mean, log_s = (tuple(exact(g) for g in part) for part in drawn[:3])
    noise = drawn.noise and tuple(exact(e) for e in drawn.noise)
    return Posterior(u, mean, log_s, drawn.top, noise)


@torch.no_grad()
def rate(
    model: "Model", x: Tensor, groups: Sequence[int], draws: int, batch_size: int = 16
) -> Tensor:
    """E_q[-F_G] + KL_G in nats, up to the constant of log p_G, over some samples of u: (N,).

    Arguments:
        x: (N, 3, S, S) in [-1, 1].
    """
    prior, parts = model.energies(), []
    for _, features in _batches(model, x, batch_size):
        found = [_posterior_sample(model, features, seed) for seed in range(draws)]
        each = [
            d.kl[:, list(groups)].sum(1) - prior.select(d.outputs, list(groups)) for d in found
        ]
        parts.append(torch.stack(each).mean(0).float().cpu())
    return torch.cat(parts)


@dataclass(frozen=True)
class Measured:
    """What `measure` finds, float64 on the CPU.

    Arguments:
        energies: -F, mean over the samples, (N,).
        bound: L(x), the evidence lower bound under N(0, I) in nats, (N,).
        ratios: LLR^{>k} for k = 0 ... n-1 finest groups, (N, n).
        rates: E_q[-F_G] + KL_G of the top 1 ... n groups, (N, n).
        densities: -log p_G(u) of the top 1 ... n groups, mean over the samples, (N, n).
        mean_densities: The same of the posterior's means, (N, n).
        distortion: -log p(x | u) in nats, mean over the samples, (N,).
        statistics: Of each level, (N, D), as `names` calls them.
        names: D.
    """

    energies: Tensor
    bound: Tensor
    ratios: Tensor
    rates: Tensor
    densities: Tensor
    mean_densities: Tensor
    distortion: Tensor
    statistics: Tensor
    names: tuple[str, ...]


@torch.no_grad()
def measure(model: "Model", x: Tensor, draws: int = 2, batch_size: int = 16) -> Measured:
    """Bounds, ratios, rates, densities and level statistics of images.

    Arguments:
        x: (N, 3, S, S) in [-1, 1].
        draws: Samples of u, over which everything is averaged.
    """
    parts: list[dict[str, Tensor]] = []
    for rows, features in _batches(model, x, batch_size):
        each = [
            _of_sample(model, rows, _posterior_sample(model, features, s)) for s in range(draws)
        ]
        mean = {k: torch.stack([d[k] for d in each]).mean(0) for k in each[0]}
        parts.append({k: v.cpu() for k, v in _with_means(model, features, mean).items()})
    found = {k: torch.cat([p[k] for p in parts]) for k in parts[0]}
    columns = _columns(found)
    plain = ("energies", "bound", "ratios", "rates", "densities", "mean_densities")
    return Measured(
        **{k: found[k] for k in plain},
        distortion=found["distortion"][:, 0],
        statistics=torch.cat(list(columns.values()), dim=1),
        names=tuple(f"{name} {i}" for name, c in columns.items() for i in range(c.shape[1])),
    )


def _of_sample(model: "Model", x: Tensor, sample: _PosteriorSample) -> dict[str, Tensor]:
    """All that needs a sample of u; (B, ...) each."""
    prior, kl = model.energies(), sample.kl
    tops = [list(range(k + 1)) for k in range(kl.shape[1])]
    gains = torch.stack([prior.select(sample.outputs, g) for g in tops], dim=1)
    squares = half_squares(sample.posterior.u)
    likelihood = _likelihood(model, sample.posterior.top)
    with model.precision():
        mean = likelihood.mean.float()
    distortion = -exact(likelihood.log_prob(x))
    bound = -distortion - kl.sum(1)
    return {
        "energies": -gains[:, -1],
        "bound": bound,
        "ratios": _ratios(model, x, sample, bound),
        "rates": kl.cumsum(1) - gains,
        "densities": squares.cumsum(1) - gains,
        "kl": kl,
        "squares": squares,
        "gains": torch.stack([prior.select(sample.outputs, [i]) for i in range(len(tops))], dim=1),
        "distortion": distortion[:, None],
        **_residual(mean - x),
    }


def _ratios(model: "Model", x: Tensor, sample: _PosteriorSample, bound: Tensor) -> Tensor:
    """LLR^{>k}, (B, n): the k finest groups explain x by so many nats more than noise does."""
    count = sample.kl.shape[1]
    # With nothing replaced it is the bound itself, which needs no further pass.
    below = [bound if k == 0 else bound_above(model, x, sample, k) for k in range(count)]
    return torch.stack([bound - other for other in below], dim=1)


def bound_above(model: "Model", x: Tensor, sample: _PosteriorSample, finest: int) -> Tensor:
    """L^{>k}, (B,): the bound whose `finest` groups are sampled from N(0, I)."""
    u, noise, kept = sample.posterior.u, sample.noise, sample.kl.shape[1] - finest
    assert noise is not None
    with model.precision():
        top = model.generator.transform((*u[:kept], *noise[kept:]))
    return exact(_likelihood(model, top).log_prob(x)) - sample.kl[:, :kept].sum(1)


def _residual(r: Tensor) -> dict[str, Tensor]:
    """Statistics of what the mean image leaves, (B, 3, S, S), a colour channel: mean, mean
    square, and mean square from pixel to pixel along rows and columns.
    """
    r = exact(r)
    steps = (r, r.diff(dim=3), r.diff(dim=2))
    squares = [part.square().mean((2, 3)) for part in steps]
    return {"residual mean": r.mean((2, 3)), "residual squares": torch.cat(squares, dim=1)}


def _with_means(model: "Model", features: Any, found: dict[str, Tensor]) -> dict[str, Tensor]:
    """Adds what the posterior's means and widths say, group by group and channel by channel.

    Flows are followed by what they make of the means. Widths are those before flows, whose
    determinant is 1: log volumes of the posterior.
    """
    prior, sample = model.energies(), _posterior_sample(model, features, None)
    means, widths = sample.posterior.u, sample.posterior.log_s
    gains = [prior.select(sample.outputs, [i]) for i in range(len(means))]
    tops = [prior.select(sample.outputs, list(range(k + 1))) for k in range(len(means))]
    squares = half_squares(means)
    return found | {
        "mean_densities": squares.cumsum(1) - torch.stack(tops, dim=1),
        "squares of means": squares,
        "gains at means": torch.stack(gains, dim=1),
        "channel mean": torch.cat([exact(m).mean((2, 3)) for m in means], dim=1),
        "channel square": torch.cat([exact(m).square().mean((2, 3)) for m in means], dim=1),
        "channel width": torch.cat([exact(s).mean((2, 3)) for s in widths], dim=1),
    }


def _columns(found: dict[str, Tensor]) -> dict[str, Tensor]:
    """The statistics by name, (N, d) each, as the module's docstring says."""
    plain = ("gains", "gains at means", "channel mean", "channel width", "residual mean")
    signed = ("kl", "distortion")
    positive = ("squares", "squares of means", "channel square", "residual squares")
    columns = {name: found[name] for name in plain}
    columns |= {f"asinh {name}": found[name].asinh() for name in signed}
    columns |= {f"log {name}": found[name].clamp(min=SMALLEST).log() for name in positive}
    return columns | {"ratio": found["ratios"][:, 1:]}
