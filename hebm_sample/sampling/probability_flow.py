r"""The deterministic probability flow, driven by grad F.

With cum_a = cos(theta) and cum_sigma = sin(theta), the flow that carries p_t along is

    du / dtheta = -tan(theta) grad F(u, theta)

and one step from theta_t down to theta_s is

    u_s = u_t + tan(theta_t) sin(theta_t - theta_s) grad F(u_t, t)

This is the probability flow of "Score-Based Generative Modeling through Stochastic Differential
Equations" (arXiv 2011.13456). The usual step, that of "Denoising Diffusion Implicit Models" (arXiv
2010.02502), has cos(theta_t - theta_s) u_t in place of u_t: it is exact for a point mass
but shrinks N(0, I), a little at every step. F is the departure from N(0, I), so the form above is
exact where F = 0, and the two differ by terms of second order. A step to theta_s = 0 is the
denoising that ends a sampler. Steps upwards, from the data to the noise, are the same formula
(`sampling/inversion.py`).
"""

import math
from collections.abc import Callable, Iterator

import torch

from hebm_sample.config import LangevinConfig
from hebm_sample.latents import Latents, unflatten
from hebm_sample.prior.density import AnyEnergy, MarginalEBM, row_norm
from hebm_sample.prior.schedule import DiffusionSchedule, log_snr_levels, log_snr_of
from hebm_sample.sampling.langevin import StepInfo
from hebm_sample.sampling.state import GradientTally, LevelState

__all__ = ["flow_levels", "flow_step", "flow_weight", "path_of", "probability_flow"]


def flow_weight(sigma: float, sigma_to: float) -> float:
    """w of a step u + w grad F from one cum_sigma, below 1, to another, up or down."""
    theta, theta_to = math.asin(sigma), math.asin(sigma_to)
    return math.tan(theta) * math.sin(theta - theta_to)


def flow_step(
    marginal: MarginalEBM, u: Latents, sigma: float, sigma_to: float
) -> tuple[Latents, torch.Tensor, StepInfo]:
    """One step of the flow; costs one gradient.

    Arguments:
        marginal: The density at the level that `u` is at.
        u: (B, C_i, H_i, W_i) a group, at noise level `sigma`.
        sigma: cum_sigma of that level, below 1.
        sigma_to: cum_sigma of the level to go to, up or down; 0 removes the noise.

    Returns:
        The latents at `sigma_to`; the terms F_i (B, L) at `u`; diagnostics (B,).
    """
    found = marginal.evaluate(u)
    weight = flow_weight(sigma, sigma_to)
    info = StepInfo(
        log_density=found.value,
        gradient_norm=row_norm(found.score),
        displacement=abs(weight) * row_norm(found.slope),
        acceptance=torch.ones_like(found.value),
    )
    rows = zip(u, unflatten(found.slope, u), strict=True)
    return tuple(g + weight * d for g, d in rows), found.terms, info


def flow_levels(
    num_gradients: int, sigma_low: float, sigma_high: float, *, denoise: bool = True
) -> tuple[float, ...]:
    """cum_sigma of the flow's path, falling, `num_gradients` + 1 numbers, even in log SNR.

    It starts at `sigma_high`; it passes `sigma_low` and ends at 0, or without `denoise` ends at
    `sigma_low`.
    """
    count = num_gradients if denoise else num_gradients + 1
    inner = (sigma_high,) if count == 1 else log_snr_levels(count, sigma_low, sigma_high)[-2::-1]
    return (*inner, 0.0) if denoise else inner


def path_of(
    config: LangevinConfig, schedule: DiffusionSchedule, sigma_high: float
) -> tuple[float, ...]:
    """cum_sigma of the path that a sampler without chains follows, from `sigma_high`."""
    return flow_levels(config.steps, schedule.levels[0], sigma_high, denoise=config.denoise)


def probability_flow(
    energy: AnyEnergy,
    path: tuple[float, ...],
    draw: Callable[[], Latents],
    tally: GradientTally,
    *,
    lowest: float,
) -> Iterator[LevelState]:
    """Follow the flow from N(0, I) along `path`, one gradient per step.

    Arguments:
        lowest: cum_sigma of the model's lowest level, whose terms the result has.

    The state of each level before the last shows u where the level's gradient was taken; the last
    is the result. The caller turns autograd off.
    """
    u = draw()
    for level, (sigma, sigma_to) in zip(
        range(len(path) - 2, -1, -1), zip(path, path[1:], strict=False), strict=True
    ):
        marginal = MarginalEBM(energy, log_snr_of(sigma))
        moved, terms, info = flow_step(marginal, u, sigma, sigma_to)
        tally()
        if level == 0:
            u = moved
            terms = MarginalEBM(energy, log_snr_of(lowest)).terms(u)
        tally.check(level, u, terms)
        yield LevelState(level, u, terms, StepInfo(*(x.unsqueeze(0) for x in info)))
        u = moved
