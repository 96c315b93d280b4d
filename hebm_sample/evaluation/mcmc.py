r"""Does the sampler's Langevin chain do what it is meant to?

- *Displacement*: |u_after - u_before| a step, over what free diffusion with the same step and
  temperature tau would move, sqrt(sum_d s_d tau_d^2): sqrt(s D) for one step and tau = 1.
- *Traces*: log p along the chain. A chain that is long enough ends on a plateau, the same one
  from wherever it started: `split_r_hat` is 1 there.
- *Acceptance*: were each step a Metropolis proposal, how often would it be accepted?

      log alpha = log p(u') - log p(u) + log q(u | u') - log q(u' | u)
      q(u' | u) = N(u'; u + (s/2) grad log p(u), v)

  The chain accepts everything, so this is a check of the step size and nothing else: 1 where the
  discretisation leaves the target exactly invariant, as the corrected kernel does on a Gaussian of
  its reference variance, falling as the step grows too long for the target. With many dimensions
  it is a strict check.
- *Effective step*: s times the mean acceptance, the step that a chain with the correction would
  really take. It has a maximum in s; beyond it a longer step buys nothing but bias.

The correction is that of the Metropolis-adjusted Langevin algorithm (Roberts and Tweedie,
"Exponential convergence of Langevin distributions and their discrete approximations", 1996). Split
R hat is that of Gelman et al., "Bayesian Data Analysis"; Vehtari et al., "Rank-normalization,
folding, and localization: An improved R-hat" (arXiv 1903.08008) say what it misses.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor

from hebm_sample.config import Kernel, LangevinConfig
from hebm_sample.errors import UserInputError
from hebm_sample.io.defaults import usual_defaults
from hebm_sample.io.seeds import derived_seed
from hebm_sample.latents import Latents, Scalar, flatten, per_example, unflatten
from hebm_sample.pipeline.pipeline import Pipeline
from hebm_sample.prior.schedule import DiffusionSchedule
from hebm_sample.sampling.chain import run_chain
from hebm_sample.sampling.langevin import LogDensity, noise_scale, score
from hebm_sample.sampling.noise import NoiseStreams
from hebm_sample.sampling.probability_flow import path_of
from hebm_sample.sampling.sample import sample_prior
from hebm_sample.sampling.state import LevelState
from hebm_sample.sampling.step_size import Transition, step_sizes, transition

__all__ = [
    "LevelDiagnostics",
    "StepCheck",
    "acceptance",
    "check_steps",
    "diagnose_levels",
    "split_r_hat",
    "traces_from",
]

# Purposes of streams of their own: what made a state, such as the posterior's or the sampler's
# noise of the same seeds, must not come back in the noise that it is measured with.
ACCEPTANCE, TRACES, TRACE_STARTS, DIFFUSION = 1_001, 2_001, 3_001, 4_001


def acceptance(
    log_density: LogDensity,
    u: Latents,
    noise: Latents,
    step_size: Scalar,
    *,
    kernel: Kernel = "corrected",
    reference_variance: Scalar = 1.0,
) -> Tensor:
    """min(1, alpha) of one Langevin step from u, (B,); the module's formula.

    Arguments:
        log_density: Latents to log p (B,).
        u: (B, C_i, H_i, W_i) a group.
        noise: eps, shaped like `u`.
        step_size: s, one number or (1, D), a number for each of the D dimensions of u.
        kernel, reference_variance: As of `langevin_step`; with s = 4 C the corrected kernel has no
            noise, so no proposal density, and is refused.
    """
    scale = noise_scale(step_size, kernel, reference_variance)
    if not torch.as_tensor(scale > 0).all():
        raise UserInputError("a step without noise has no acceptance rate; take s below 4 C")
    row, eps = flatten(u), flatten(noise)
    half, spread = per_example(step_size / 2, row), per_example(scale, row)
    before, gradient = score(log_density, u)
    moved = row + half * gradient + spread * eps
    after, back = score(log_density, unflatten(moved, u))
    forth_noise = eps.square().sum(1)
    back_noise = ((row - moved - half * back) / spread).square().sum(1)
    log_alpha = after - before + (forth_noise - back_noise) / 2
    return log_alpha.clamp(max=0).exp()


def split_r_hat(traces: Tensor) -> float:
    """Gelman and Rubin's ratio of a quantity along chains (K, B), each cut into halves: 1 where
    all halves have one law. Needs K >= 4; nan where nothing moves.
    """
    steps = traces.shape[0] // 2
    if steps < 2:
        raise UserInputError(f"traces of {traces.shape[0]} steps; R hat needs at least 4")
    halves = torch.cat([traces[:steps], traces[steps : 2 * steps]], dim=1).double()
    within = halves.var(0).mean()
    between = halves.mean(0).var()
    return float(((steps - 1) / steps + between / within).sqrt())


@dataclass(frozen=True)
class LevelDiagnostics:
    """What the sampler's own chain did at one noise level; means over images.

    Of the flow, which takes no Langevin steps, the lists are empty, there is no step size (nan),
    and levels are those of its own path, as many as the sampler has steps.

    Arguments:
        level: t, counted down to 0.
        cum_sigma: Of the level.
        step_size: s of its first step; its mean over coordinates where they have their own.
        step_sizes: s of each step, likewise.
        unit: B_t, or the release's s_t, likewise.
        steps: Langevin steps; the lists have one number per step.
        log_density: Before each step, per dimension of u.
        gradient_norm: Likewise, over sqrt(D).
        displacement: Over the free diffusion's; nan where that does not move.
        energy: -F at the end of the level, its mean and standard deviation over images.
    """

    level: int
    cum_sigma: float
    step_size: float
    step_sizes: list[float]
    unit: float
    steps: int
    log_density: list[float]
    gradient_norm: list[float]
    displacement: list[float]
    energy: tuple[float, float]


class _Chain:
    """A model's densities and step sizes, level by level."""

    def __init__(self, pipe: Pipeline, config: LangevinConfig | None = None) -> None:
        if pipe.prior is None or pipe.config.prior is None:
            raise UserInputError(f"{pipe.name} has no energy-based prior, so no chains")
        self.pipe = pipe
        # A chain a seed: what particles do with one another is no property of a chain.
        self.config = replace(config or pipe.config.sampling, particles=1)
        self.prior = pipe.config.prior
        self.schedule = DiffusionSchedule(self.prior.levels)
        self.dimensions = sum(math.prod(s) for s in pipe.generator.latent_shapes)

    def energy(self, u: Latents, level: Tensor) -> Tensor:
        return self.pipe.energy_terms(u, level)

    def at(self, t: int, *, marginal: bool) -> Transition:
        """The sampler's own transition, or the one on log p_t."""
        wide = self.pipe.posterior_variance() if self.config.precondition else None
        return transition(
            self.schedule,
            t,
            self.config,
            parametrization=self.prior.parametrization,
            step_size_0=self.prior.step_size_0,
            posterior_variance=None if wide is None else flatten(wide),
            marginal=marginal,
        )

    def free_displacement(self, own: Transition, count: int) -> Tensor:
        """sqrt(sum_d s_d tau_d^2) of each of `count` steps, (count,), on the CPU."""
        heat = self.config.temperature
        groups = (
            heat if isinstance(heat, tuple) else (heat,) * len(self.pipe.generator.latent_shapes)
        )
        sizes = [math.prod(shape) for shape in self.pipe.generator.latent_shapes]
        tau = torch.repeat_interleave(
            torch.tensor(groups, dtype=torch.float64), torch.tensor(sizes)
        )
        steps = step_sizes(own.step_size, count, own.decay)
        rows = [(torch.as_tensor(s).double().cpu() * tau.square()).sum().sqrt() for s in steps]
        return torch.stack(rows) if rows else torch.zeros(0, dtype=torch.float64)

    def noise(self, seeds: Sequence[int], purpose: int = 0) -> NoiseStreams:
        """Streams of these seeds; those of another purpose have nothing to do with them."""
        shapes = self.pipe.generator.latent_shapes
        own = [derived_seed(seed, purpose) for seed in seeds]
        return NoiseStreams(own, shapes, device=self.pipe.device)


@usual_defaults()
def diagnose_levels(
    pipe: Pipeline,
    seeds: Sequence[int],
    config: LangevinConfig | None = None,
    progress: Callable[[int], object] | None = None,
) -> tuple[list[LevelDiagnostics], dict[int, Latents]]:
    """Run the sampler as it is and measure its chains; also the latents after each level."""
    chain = _Chain(pipe, config)
    config, found, latents = chain.config, [], {}
    high = min(0.99, chain.prior.sigma_max)
    states = sample_prior(
        chain.energy,
        chain.schedule,
        chain.noise(seeds),
        config,
        parametrization=chain.prior.parametrization,
        step_size_0=chain.prior.step_size_0,
        sigma_high=high,
        posterior_variance=pipe.posterior_variance() if config.precondition else None,
        progress=cast("Callable[[int], None] | None", progress),
    )
    # The state of a level of the flow shows u where the level's gradient was taken, at path[-2 -
    # level]; where the path ends, it is the result.
    high = min(high, chain.schedule.levels[-1])
    path = path_of(config, chain.schedule, high)
    for state in states:
        latents[state.level] = state.u
        if config.runs_chains:
            found.append(_of_chain(chain, state))
        else:
            found.append(_of_flow(state, path[-2 - state.level]))
    return found, latents


def _energy(state: LevelState) -> tuple[float, float]:
    energy = -state.terms.sum(1)
    return float(energy.mean()), float(energy.std())


def _of_flow(state: LevelState, cum_sigma: float) -> LevelDiagnostics:
    """A level of the flow's path: its energy, and nothing of Langevin steps."""
    nothing: list[float] = []
    return LevelDiagnostics(
        state.level,
        cum_sigma,
        math.nan,
        nothing,
        math.nan,
        0,
        nothing,
        nothing,
        nothing,
        _energy(state),
    )


def _of_chain(chain: _Chain, state: LevelState) -> LevelDiagnostics:
    """What the chain did at the level that ended in `state`."""
    t, info = state.level, state.info
    own, count, width = chain.at(t, marginal=False), len(info.log_density), chain.dimensions**0.5
    moved = info.displacement.mean(1).cpu() / chain.free_displacement(own, count)
    return LevelDiagnostics(
        t,
        float(chain.schedule.cum_sigma[t]),
        float(torch.as_tensor(own.step_size).mean()),
        own.mean_steps(count),
        float(torch.as_tensor(own.unit).mean()),
        count,
        (info.log_density.mean(1) / chain.dimensions).tolist(),
        (info.gradient_norm.mean(1) / width).tolist(),
        torch.where(moved.isfinite(), moved, math.nan).tolist(),
        _energy(state),
    )


@dataclass(frozen=True)
class StepCheck:
    """Acceptance at one level for one step scale c, s = c B_t; means over images, and the
    acceptance's standard error.
    """

    level: int
    step_scale: float
    acceptance: float
    effective_step: float
    acceptance_error: float = math.nan


@usual_defaults()
def check_steps(
    pipe: Pipeline,
    latents: dict[int, Latents],
    step_scales: Sequence[float],
    config: LangevinConfig | None = None,
    *,
    seed: int = 0,
) -> list[StepCheck]:
    """Acceptance of steps on the marginal log p_t from given latents.

    Arguments:
        latents: u_t by level, best of q(u) diffused: from where log p still has to rise every
            step is accepted. What `diagnose_levels` returns will do without data; level 0 must
            still have its noise, so diagnose a sampler that denoises with denoise=False.
        step_scales: c; the effective step is in units of B_t. Those without noise (c = 4 C / B_t)
            are left out.
    """
    chain, found = _Chain(pipe, config), []
    for t, u in sorted(latents.items()):
        if t >= chain.schedule.num_levels:
            continue
        own = chain.at(t, marginal=True)
        unit, reference = own.unit, own.reference_variance
        u = tuple(g.to(pipe.device) for g in u)
        noise = chain.noise(range(seed, seed + len(u[0])), ACCEPTANCE).normal()
        for scale in step_scales:
            still = torch.as_tensor(scale * unit >= 4 * reference).any()
            if chain.config.kernel == "corrected" and still:
                continue
            rate = acceptance(
                own.density(chain.energy, u),
                u,
                noise,
                scale * unit,
                kernel=chain.config.kernel,
                reference_variance=reference,
            )
            # Not `mean_figure`: rates of 1 are exact, they are no answers that are all right.
            mean, count = float(rate.mean()), len(rate)
            error = float(rate.double().std()) / math.sqrt(count) if count > 1 else math.nan
            found.append(StepCheck(t, scale, mean, scale * mean, error))
    return found


@usual_defaults()
def traces_from(
    pipe: Pipeline,
    starts: dict[str, Latents],
    level: int,
    steps: int,
    config: LangevinConfig | None = None,
    *,
    seed: int = 0,
    progress: Callable[[], object] | None = None,
) -> dict[str, Any]:
    """Chains on the marginal log p_t from different starts, each with noise of its own: under one
    noise they would run together, and R hat would call that agreement.

    Arguments:
        starts: Name to u, (B, C_i, H_i, W_i) a group.
        level: t.
        steps: K, at least 8.

    Returns:
        `traces`: name to the mean of log p per dimension before each step; `r_hat`: of log p over
        the second halves of all chains of all starts together.
    """
    if steps < 8:
        raise UserInputError(f"steps is {steps}; traces need at least 8")
    chain, traces = _Chain(pipe, config), {}
    own = chain.at(level, marginal=True)
    for number, (name, u) in enumerate(starts.items()):
        noise = chain.noise(range(seed, seed + len(u[0])), TRACES + number)
        u = tuple(g.to(pipe.device) for g in u)
        _, info = run_chain(
            u,
            own.density(chain.energy, u),
            noise.normal,
            num_steps=steps,
            step_size=own.step_size,
            kernel=chain.config.kernel,
            reference_variance=own.reference_variance,
            decay=own.decay,
            tally=cast("Callable[[], None] | None", progress),
        )
        traces[name] = info.log_density.cpu() / chain.dimensions
    late = torch.cat([x[steps // 2 :] for x in traces.values()], dim=1)
    return {
        "level": level,
        "traces": {name: x.mean(1).tolist() for name, x in traces.items()},
        "r_hat": split_r_hat(late),
    }
