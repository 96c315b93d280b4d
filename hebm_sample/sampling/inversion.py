r"""Latents carried up the probability flow and back down, so that the one undoes the other.

Upwards the flow takes its steps from u_k at cum_sigma_k to u_{k+1}, with the gradient at u_k; the
steps of `sampling/probability_flow.py` back down take theirs at u_{k+1}, so by themselves they
come out elsewhere, by terms of second order. Each step down therefore adds what it missed the path
by, when it was asked from the path itself:

    way up      u_1 = u_0,     u_{k+1} = u_k + w_{k+1} g(u_k, k)
                r_k     = u_{k-1} - (u_k + w_k g(u_k, k))
    way down    v_n = u_n,     v_{k-1} = v_k + w_k g'(v_k, k) + r_k

g is grad F as it is, g' that of what is asked, w the weights of the flow's steps. With g' = g the
way down is the way up, backwards and to rounding; otherwise v_k - u_k grows with g' - g alone. The
gradients of the way up are those that r needs, but for the last, at u_n: n each way.

Inversion by the flow is that of "Denoising Diffusion Implicit Models" (arXiv 2010.02502); what is
recorded on the way up and added on the way down is, for a sampler with noise, that of "An Edit
Friendly DDPM Noise Space: Inversion and Manipulations" (arXiv 2304.06140).
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from hebm_sample.latents import Latents, unflatten
from hebm_sample.prior.density import AnyEnergy, MarginalEBM
from hebm_sample.prior.schedule import log_snr_of
from hebm_sample.sampling.langevin import StepInfo
from hebm_sample.sampling.probability_flow import flow_step, flow_weight
from hebm_sample.sampling.state import GradientTally, LevelState

__all__ = ["Inversion", "invert", "retrace"]


class Inversion(NamedTuple):
    """A way up, as the way down needs it.

    Arguments:
        path: cum_sigma of u_n ... u_0, falling, as `flow_levels` gives it.
        u: u_n ... u_0, (B, C_i, H_i, W_i) a group each.
        missed: r_n ... r_1, likewise.
    """

    path: tuple[float, ...]
    u: tuple[Latents, ...]
    missed: tuple[Latents, ...]


@torch.inference_mode(False)
@torch.no_grad()
def invert(
    energy: AnyEnergy,
    u_0: Latents,
    path: tuple[float, ...],
    tally: GradientTally,
    *,
    first_step: bool = False,
) -> Inversion:
    """Carry u_0 up the flow.

    Arguments:
        energy: The terms F_i (B, L) of latents and level (B,).
        u_0: (B, C_i, H_i, W_i) a group.
        path: cum_sigma of the way down, falling: of u_n ... u_0.
        tally: Called after each gradient, of which there are n.
        first_step: Spend one more, on the step up to u_1: u_1 = u_0 - w_1 g(u_0, 1).
    """
    u, ways = u_0, [u_0]
    missed: list[Latents] = []
    if first_step:
        slope, _ = _slope(energy, u_0, path[-2], tally)
        u = _plus(u_0, -flow_weight(path[-2], path[-1]), slope)
    for k in range(len(path) - 2, -1, -1):
        slope, terms = _slope(energy, u, path[k], tally)
        tally.check(0, u, terms)
        down = _plus(u, flow_weight(path[k], path[k + 1]), slope)
        missed.append(tuple(a - b for a, b in zip(ways[-1], down, strict=True)))
        ways.append(u)
        if k > 0:
            u = _plus(u, flow_weight(path[k], path[k - 1]), slope)
    return Inversion(path, tuple(ways[::-1]), tuple(missed[::-1]))


@torch.inference_mode(False)
@torch.no_grad()
def retrace(
    energy: AnyEnergy,
    way: Inversion,
    tally: GradientTally,
    clamped: tuple[int, ...] = (),
    *,
    lowest: float,
) -> Iterator[LevelState]:
    """Follow the flow of an energy back down from where `invert` arrived, one gradient a step.

    Arguments:
        energy: As of `invert`, with what is asked.
        way: What `invert` found.
        tally: Called after each gradient.
        clamped: Indices of the groups that go back as they came.
        lowest: cum_sigma of the model's lowest level, whose terms the result has.

    Yields:
        A state a step; the last is the result.
    """
    v, steps = way.u[0], len(way.missed)
    for k, (u, missed) in enumerate(zip(way.u[1:], way.missed, strict=True)):
        level, sigma, sigma_to = steps - 1 - k, way.path[k], way.path[k + 1]
        density = MarginalEBM(energy, log_snr_of(sigma))
        moved, terms, info = flow_step(density, v, sigma, sigma_to)
        tally()
        rows = zip(u, moved, missed, strict=True)
        v = tuple(held if i in clamped else g + r for i, (held, g, r) in enumerate(rows))
        if level == 0:
            terms = MarginalEBM(energy, log_snr_of(lowest)).terms(v)
        tally.check(level, v, terms)
        yield LevelState(level, v, terms, StepInfo(*(x.unsqueeze(0) for x in info)))


def _slope(
    energy: AnyEnergy, u: Latents, sigma: float, tally: GradientTally
) -> tuple[Latents, Tensor]:
    """grad F and the terms F_i (B, L) at u and cum_sigma."""
    found = MarginalEBM(energy, log_snr_of(sigma)).evaluate(u)
    tally()
    return unflatten(found.slope, u), found.terms


def _plus(u: Latents, weight: float, slope: Latents) -> Latents:
    return tuple(g + weight * d for g, d in zip(u, slope, strict=True))
