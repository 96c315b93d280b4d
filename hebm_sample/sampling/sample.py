r"""From noise to latents: the loops over levels.

- `recovery`: for t = T-1 ... 0 a chain on log p(u_t | u_{t+1}); at t = T-1, where r_T = 0, on the
  marginal. "Learning Energy-Based Models by Diffusion Recovery Likelihood" (arXiv 2012.08125).
- `annealed`: for t = T-1 ... 0 a chain on the marginal log p_t, as in "Generative Modeling by
  Estimating Gradients of the Data Distribution" (arXiv 1907.05600).
- `flow`: no chains, the probability flow of `sampling/probability_flow.py`.

The first two start from N(0, I), and between levels they

    stay where they are                                            start "u_next"
    take one step of the flow                                      start "flow"
    u_t = a u + (sigma^2 / a) grad F(u, t+1) + sigma eps           start "ancestral"

with a, sigma of level t+1. The last is the sample of u_t given u_{t+1} = u that Tweedie's guess of
u_0 suggests, as in "Denoising Diffusion Probabilistic Models" (arXiv 2006.11239), and exact for
F = 0. From the other two a chain must still forget that it starts in
step with u_{t+1}, or every level hands on too much variance. `sampling/step_size.py` has their
densities, steps and reference variances.

With several particles per image (`sampling/particles.py`) they are weighed and resampled after
each level. Every sampler evaluates exactly `config.steps` gradients per row. With a latent
constraint (`sampling/constraints.py`) the loop runs over the free groups, and over the levels
below the one that they start at.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from hebm_sample.config import LangevinConfig, Parametrization
from hebm_sample.errors import UserInputError
from hebm_sample.latents import Latents, flatten, unflatten
from hebm_sample.prior.density import (
    AnyEnergy,
    MarginalEBM,
    cum_sigma_of,
    marginal_at,
)
from hebm_sample.prior.schedule import DiffusionSchedule
from hebm_sample.sampling.chain import Metropolis, run_chain
from hebm_sample.sampling.constraints import FreeGroups, LatentConstraint
from hebm_sample.sampling.langevin import StepInfo
from hebm_sample.sampling.noise import NoiseStreams
from hebm_sample.sampling.particles import Particles
from hebm_sample.sampling.probability_flow import flow_step, path_of, probability_flow
from hebm_sample.sampling.state import GradientTally, LevelState
from hebm_sample.sampling.step_size import Transition, transition

__all__ = ["LevelState", "gradients_per_level", "sample_prior"]


def gradients_per_level(
    steps: int, num_levels: int, before: int = 0, early_share: float = 1.0
) -> list[int]:
    """`steps` split over the levels t = 0 ... T-1: one each, and the others with weights on a line
    from 1 at t = 0 to `early_share` at T-1. What does not divide goes to the lowest first.

    Arguments:
        before: Of them, those spent before the first level.

    Raises:
        UserInputError: fewer steps than levels.
    """
    least = num_levels + before
    if steps < least:
        raise UserInputError(
            f"steps is {steps}; this sampler visits {num_levels} levels and needs at least "
            f"{least} steps (sampler='flow' takes any number)"
        )
    slope = (early_share - 1) / max(1, num_levels - 1)
    weights = [1 + slope * t for t in range(num_levels)]
    exact = [(steps - least) * w / sum(weights) for w in weights]
    budget = [1 + math.floor(x) for x in exact]
    by_rest = sorted(range(num_levels), key=lambda t: (math.floor(exact[t]) - exact[t], t))
    for t in by_rest[: steps - before - sum(budget)]:
        budget[t] += 1
    return budget


def sample_prior(
    energy: AnyEnergy,
    schedule: DiffusionSchedule,
    noise: NoiseStreams,
    config: LangevinConfig,
    *,
    parametrization: Parametrization = "log_snr",
    step_size_0: float = 2e-5,
    sigma_high: float = 0.99,
    given: LatentConstraint | None = None,
    posterior_variance: Latents | None = None,
    progress: Callable[[int], object] | None = None,
) -> Iterator[LevelState]:
    """Sample the prior from noise, yielding after each noise level; the last state is the result.

    The module's docstring has the samplers and their sources.

    Arguments:
        energy: The terms F_i (B, L) of latents and level (B,).
        schedule: The model's noise levels.
        noise: The random streams; all randomness comes from them. With several particles, one
            for each of them, as `particle_seeds` has them; states have a row per image.
        config: Method, number of gradients and the kernel's settings.
        parametrization: What the nets are told about a level, see `prior.density.net_level`.
        step_size_0: s_0 of the release's step sizes, for its parametrization with the plain
            kernel.
        sigma_high: cum_sigma where the flow starts.
        given: Latents to clamp or to start from; None samples all groups from noise.
        posterior_variance: w of every coordinate, (1, C_i, H_i, W_i) a group, on the latents'
            device; for `config.precondition`.
        progress: Called with the number of gradients just evaluated; they sum to `config.steps`.

    Raises:
        UserInputError: at once, for settings that do not fit each other or the model.
        NonFiniteSampleError: while iterating, when a chain left the finite numbers.
    """
    _check_parametrization(config, parametrization)
    count = config.particles
    tally = GradientTally([s for s in noise.names[::count] for _ in range(count)], progress)
    top, given = _start(schedule, given)
    groups = FreeGroups(given, noise.normal(config.temperature))
    lowest = marginal_at(energy, schedule, 0, parametrization)
    energy = groups.energy(energy, partial(cum_sigma_of, schedule, parametrization))
    if not config.runs_chains:
        high = min(sigma_high, schedule.levels[top])
        path = path_of(config, schedule, high)
        start, low = partial(groups.start, high), schedule.levels[0]
        states = probability_flow(energy, path, start, tally, lowest=low)
        sigmas = [0.0, *path[-3::-1]]
    else:
        of = partial(
            transition,
            schedule,
            config=config,
            parametrization=parametrization,
            step_size_0=step_size_0,
            posterior_variance=_coordinates(config, groups, posterior_variance),
        )
        states = _chain_states(energy, schedule, config, of, top, groups, noise, tally)
        sigmas = [0.0, *schedule.levels[1:]]
    return _without_autograd(_completed(states, groups, sigmas, lowest.terms))


def _start(
    schedule: DiffusionSchedule, given: LatentConstraint | None
) -> tuple[int, LatentConstraint | None]:
    """The level above the first chain, and the constraint without what it does not need."""
    top = schedule.num_levels
    if given is None or given.start_level is None:
        return top, given
    level = given.start_level
    if not 1 <= level <= top:
        raise UserInputError(f"start level is {level}; this model has levels 1 to {top}")
    if level == top:  # the flow begins a little below, where u_0 still shows
        given = replace(given, start_level=None)
    return level, given


def _coordinates(
    config: LangevinConfig, groups: FreeGroups, posterior_variance: Latents | None
) -> Tensor | None:
    """w of the free coordinates, (1, D), for preconditioned steps."""
    if not config.precondition:
        return None
    if posterior_variance is None:
        raise UserInputError("precondition needs the posterior's variance; give it")
    return flatten(groups.select(posterior_variance))


def _chain_states(
    energy: AnyEnergy,
    schedule: DiffusionSchedule,
    config: LangevinConfig,
    transition_at: Callable[[int], Transition],
    top: int,
    groups: FreeGroups,
    noise: NoiseStreams,
    tally: GradientTally,
) -> Iterator[LevelState]:
    """States of the free groups by chains at the levels below `top`."""

    def draw() -> Latents:
        return groups.select(noise.normal(config.temperature))

    # A start below the noisiest level first takes a step down from there.
    descends = top < schedule.num_levels and config.start != "u_next"
    budget = gradients_per_level(config.steps, top, descends, config.early_share)
    chains = _Chains(energy, schedule, config, transition_at, groups, noise)
    return chains.run(groups.start(schedule.levels[top]), draw, budget, tally, descends)


def _check_parametrization(config: LangevinConfig, parametrization: Parametrization) -> None:
    """Refuse what needs energies that know their noise, which the release's do not."""
    if parametrization != "release":
        return
    for name, value, allowed in (
        ("sampler", config.sampler, "recovery"),
        ("start", config.start, "u_next"),
        ("denoise", config.denoise, False),
        ("precondition", config.precondition, False),
    ):
        if value != allowed:
            raise UserInputError(
                f"{name}={value!r} needs energies conditioned on log SNR; this model has the "
                f"release's parametrisation: use {name}={allowed!r}"
            )


def _completed(
    states: Iterator[LevelState],
    groups: FreeGroups,
    path: Sequence[float],
    lowest_terms: Callable[[Latents], torch.Tensor],
) -> Iterator[LevelState]:
    """States of the free groups as states of all; `path` is cum_sigma of each state's u."""
    for state in states:
        full = state._replace(u=groups.full(state.u, path[state.level]))
        if state.level == 0 and groups.clamps:  # the chain had the clamped ones with noise
            full = full._replace(terms=lowest_terms(full.u))
        yield full.shown_rows()


@torch.inference_mode(False)
@torch.no_grad()
def _without_autograd(states: Iterator[LevelState]) -> Iterator[LevelState]:
    """The same states, each computed outside the caller's autograd and inference modes."""
    yield from states


class _Chains:
    """The loop over levels of `recovery` and `annealed`."""

    def __init__(
        self,
        energy: AnyEnergy,
        schedule: DiffusionSchedule,
        config: LangevinConfig,
        transition_at: Callable[[int], Transition],
        groups: FreeGroups,
        noise: NoiseStreams,
    ) -> None:
        self.energy, self.schedule, self.config = energy, schedule, config
        self.transition_at, self.groups = transition_at, groups
        self.metropolis, self.particles = None, None
        if isinstance(temperature := config.temperature, float | int):
            if config.metropolis:
                self.metropolis = Metropolis(noise.uniform, temperature)
            if config.particles > 1:
                seeds = noise.seeds[:: config.particles]
                self.particles = Particles(seeds, config.particles, temperature)

    def _marginal(self, t: int) -> MarginalEBM:
        """log p_t, up to the level above the chains."""
        parametrization = self.transition_at(0).parametrization
        return marginal_at(self.energy, self.schedule, t, parametrization)

    def run(
        self,
        start: Latents,
        draw: Callable[[], Latents],
        budget: list[int],
        tally: GradientTally,
        descends: bool,
    ) -> Iterator[LevelState]:
        """Levels len(budget) - 1 ... 0, from `start` one level above. Unless the config's
        `start` is "u_next", a level's last gradient carries its chains down.
        """
        u = u_next = start
        if descends:
            top = len(budget)
            marginal = self._marginal(top)
            u, _ = self._descend(marginal, u_next, top, draw)
            tally()
        for t in reversed(range(len(budget))):
            carries = self.config.start != "u_next" if t > 0 else self.config.denoise
            u, info = self._chain(t, u, u_next, draw, budget[t] - carries, tally)
            u, shown = self._resampled(u, t)
            marginal = self._marginal(t)
            moved, terms = u, None
            if carries:
                moved, terms = self._descend(marginal, u, t, draw)
                tally()
            if t == 0:
                u, terms = moved, None
            terms = marginal.terms(u) if terms is None else terms
            tally.check(t, u, terms)
            yield LevelState(t, u, terms, info, shown)
            u_next, u = u, moved

    def _resampled(self, u: Latents, t: int) -> tuple[Latents, Tensor | None]:
        """Where chains go on from after level t's, and the row that each image shows there."""
        if self.particles is None:
            return u, None
        if t == 0:
            return u, self.particles.draw().to(u[0].device)
        rows = self.particles.resample()
        if rows is not None:
            u = tuple(g[rows.to(g.device)] for g in u)
            self.groups.reorder(rows)
        return u, self.particles.heaviest().to(u[0].device)

    def _descend(
        self, marginal: MarginalEBM, u: Latents, t: int, draw: Callable[[], Latents]
    ) -> tuple[Latents, Tensor]:
        """From level t to where the chain of level t - 1 starts, or from level 0 to no noise, with
        one gradient; and the terms F_i at `u`.
        """
        if t == 0 or self.config.start == "flow":
            sigma_to = self.schedule.levels[t - 1] if t > 0 else 0.0
            moved, terms, _ = flow_step(marginal, u, self.schedule.levels[t], sigma_to)
            return moved, terms
        found = marginal.evaluate(u)
        a, sigma = float(self.schedule.a[t]), float(self.schedule.sigma[t])
        noise = draw()
        rows = zip(u, unflatten(found.slope, u), noise, strict=True)
        moved = tuple(a * g + sigma**2 / a * d + sigma * eps for g, d, eps in rows)
        if self.particles is not None:  # r_0 / r of this step, and what F was before it
            tilt = sigma / a * found.slope
            ratio = -(tilt * (flatten(noise) + tilt / 2)).sum(1)
            self.particles.weigh(ratio - found.terms.sum(1))
        return moved, found.terms

    def _chain(
        self,
        t: int,
        u: Latents,
        u_next: Latents,
        draw: Callable[[], Latents],
        num_steps: int,
        tally: GradientTally,
    ) -> tuple[Latents, StepInfo]:
        """The chain at level t, with its density, step size and reference variance."""
        config, chain = self.config, self.transition_at(t)
        density = chain.density(self.energy, u_next)
        found = run_chain(
            u,
            density,
            draw,
            num_steps=num_steps,
            step_size=chain.step_size,
            kernel=config.kernel,
            reference_variance=chain.reference_variance,
            decay=chain.decay,
            momentum=config.momentum,
            metropolis=self.metropolis,
            tally=tally,
        )
        if self.particles is not None:  # F where the chain started
            log_p = found[1].log_density
            self.particles.weigh((log_p[0] if len(log_p) else density(u)) - density.base(u))
        return found
