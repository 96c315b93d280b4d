r"""Chains of Langevin steps on one density.

Overdamped, one `langevin_step` after another, or with a momentum p of which a step keeps a part:

    u' = u + (s/2) g(u) + sqrt(v) p                       g = grad log p, v as in `langevin_step`
    p' = p + s / (2 sqrt(v)) (g(u) + g(u'))
    p <- rho p' + sqrt(1 - rho^2) eps

With v = s the first two lines are a leapfrog step of Hamilton's equations; with the corrected
kernel's v they are one in coordinates where a Gaussian of variance C turns about its mean, so that
this Gaussian is invariant, exactly, for any s < 4C and any rho. rho = 0 is the Langevin step.

Metropolis's correction takes (u', p') with probability

    min(1, exp(log p(u') - log p(u) + (|p|^2 - |p'|^2) / 2))

and else leaves u where it was and turns p round ("MCMC Using Hamiltonian Dynamics", arXiv
1206.1901): the density is invariant whatever s is. Every variant needs one gradient per step; the
correction one more, for the start.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from hebm_sample.config import Kernel
from hebm_sample.latents import Latents, Scalar, flatten, per_example, unflatten
from hebm_sample.prior.density import row_norm
from hebm_sample.sampling.langevin import LogDensity, StepInfo, langevin_step, noise_scale, score
from hebm_sample.sampling.step_size import step_sizes

__all__ = ["Metropolis", "run_chain"]


class Metropolis(NamedTuple):
    """What the correction needs.

    Arguments:
        uniform: Gives a fresh number in [0, 1) an image, (B,).
        temperature: The standard deviation of the chain's noise; the density is then p to the
            power 1 / temperature^2.
    """

    uniform: Callable[[], Tensor]
    temperature: float = 1.0


def run_chain(
    u: Latents,
    log_density: LogDensity,
    draw: Callable[[], Latents],
    *,
    num_steps: int,
    step_size: Scalar,
    kernel: Kernel = "corrected",
    reference_variance: Scalar = 1.0,
    decay: float = 1.0,
    momentum: float = 0.0,
    metropolis: Metropolis | None = None,
    tally: Callable[[], None] | None = None,
) -> tuple[Latents, StepInfo]:
    """A chain of `num_steps` gradients on one density.

    Arguments:
        u: Where the chains start, (B, C_i, H_i, W_i) a group.
        log_density: Latents to log p (B,).
        draw: Gives fresh standard normal latents shaped like `u`.
        num_steps: K; 0 gives `u` back. With `metropolis` the first gradient is of the start, so
            they are K - 1 steps.
        step_size: s, one number, (B,), or (1, D), a number for each of the D dimensions of u.
        kernel: "corrected" or "plain".
        reference_variance: C of the corrected kernel, shaped as `step_size` may be.
        decay: The last step's s over the first's.
        momentum: rho in [0, 1).
        metropolis: For the correction.
        tally: Called after each gradient.

    Returns:
        Where the chains end, and the diagnostics of all steps, (K, B) each.
    """
    moves = num_steps if metropolis is None else max(0, num_steps - 1)
    sizes = step_sizes(step_size, moves, decay)
    if momentum == 0.0 and metropolis is None:
        infos: list[StepInfo] = []
        for size in sizes:
            u, info = langevin_step(
                u, log_density, size, draw(), kernel=kernel, reference_variance=reference_variance
            )
            infos.append(info)
            if tally is not None:
                tally()
    else:
        scales = [noise_scale(size, kernel, reference_variance) for size in sizes]
        walk = _Walk(log_density, draw, momentum, metropolis, tally)
        u, infos = walk(u, num_steps, sizes, scales)
    if not infos:
        nothing = u[0].new_empty(0, len(u[0]))
        return u, StepInfo(*[nothing] * len(StepInfo._fields))
    return u, StepInfo(*(torch.stack(column) for column in zip(*infos, strict=True)))


class _State(NamedTuple):
    """Where a walk is: u as rows (B, D), p likewise, log p (B,) and its gradient (B, D)."""

    row: Tensor
    p: Tensor
    log_p: Tensor
    gradient: Tensor


class _Walk:
    """A chain with momentum, corrected or not; arguments as of `run_chain`."""

    def __init__(
        self,
        log_density: LogDensity,
        draw: Callable[[], Latents],
        momentum: float,
        metropolis: Metropolis | None,
        tally: Callable[[], None] | None,
    ) -> None:
        self.log_density, self.draw = log_density, draw
        self.momentum, self.metropolis, self.tally = momentum, metropolis, tally

    @torch.inference_mode(False)
    @torch.no_grad()
    def __call__(
        self, u: Latents, num_steps: int, sizes: list[Scalar], scales: list[Scalar]
    ) -> tuple[Latents, list[StepInfo]]:
        """Where `num_steps` gradients lead, and each step's diagnostics."""
        if num_steps == 0:
            return u, []
        infos: list[StepInfo] = []
        like = u
        state = _State(flatten(u), flatten(self.draw()), *self._score(u))
        for k, (size, scale) in enumerate(zip(sizes, scales, strict=True)):
            half = per_example(0.5 * size, state.row)
            spread = per_example(scale, state.row)
            moved = state.row + half * state.gradient + spread * state.p
            chance = torch.ones_like(state.log_p)
            last = k == len(sizes) - 1
            if last and self.metropolis is None:  # nobody asks for the gradient there
                infos.append(_diagnostics(state, moved, chance))
                return unflatten(moved, like), infos
            log_p, gradient = self._score(unflatten(moved, like))
            p = state.p + _kick(half, spread) * (state.gradient + gradient)
            found = _State(moved, p, log_p, gradient)
            if self.metropolis is not None:
                found, chance = self._decided(state, found, self.metropolis)
            infos.append(_diagnostics(state, found.row, chance))
            state = found if last else found._replace(p=self._refreshed(found.p))
        return unflatten(state.row, like), infos

    def _score(self, u: Latents) -> tuple[Tensor, Tensor]:
        found = score(self.log_density, u)
        if self.tally is not None:
            self.tally()
        return found

    def _refreshed(self, p: Tensor) -> Tensor:
        rho = self.momentum
        return rho * p + math.sqrt(1 - rho**2) * flatten(self.draw())

    @staticmethod
    def _decided(old: _State, new: _State, metropolis: Metropolis) -> tuple[_State, Tensor]:
        """The proposal where it is accepted, and the probability of that, (B,)."""
        kinetic = 0.5 * (old.p.square() - new.p.square()).sum(1)
        gain = (new.log_p - old.log_p + kinetic) / metropolis.temperature**2
        chance = gain.clamp(max=0).exp().nan_to_num(0.0)
        accepted = metropolis.uniform() < chance
        stayed = old._replace(p=-old.p)
        found = [
            torch.where(accepted.reshape(-1, *(1,) * (a.dim() - 1)), a, b)
            for a, b in zip(new, stayed, strict=True)
        ]
        return _State(*found), chance


def _kick(half: Scalar, spread: Scalar) -> Scalar:
    """s / (2 sqrt(v)); a step of size 0, whose v is 0 too, has none."""
    if isinstance(half, Tensor):
        return torch.where(half == 0, half, half / spread)
    return half / spread if half else 0.0


def _diagnostics(state: _State, moved: Tensor, chance: Tensor) -> StepInfo:
    return StepInfo(state.log_p, row_norm(state.gradient), row_norm(moved - state.row), chance)
