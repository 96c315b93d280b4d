r"""Sampling that starts from, or holds on to, latents u_0 that are already there.

    clamped groups  u_t = cum_a_t u_0 + cum_sigma_t eps at every level, and u_0 itself at the end
    free groups     start from eps, or from cum_a_k u_0 + cum_sigma_k eps at a level k

with one standard normal eps per image. Single cells of a free group can be clamped likewise.
Clamping groups to their own diffused values is an approximation to conditioning on them: the free
groups meet a noisy version of what is clamped, and from level to level the same noise. To the
sampler only the free groups exist.

Known parts at their diffused values are those of "Score-Based Generative Modeling through
Stochastic Differential Equations" (arXiv 2011.13456), a start at a level k is that of "SDEdit"
(arXiv 2108.01073).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hebm_sample.latents import Latents, Scalar, per_example
from hebm_sample.prior.density import (
    AnyEnergy,
    CumSigma,
    Energy,
    EnergyAtLevel,
    at_level,
    level_rows,
)

__all__ = ["FreeGroups", "Given", "LatentConstraint"]


@dataclass(frozen=True)
class LatentConstraint:
    """Latents to clamp, or to start from.

    Arguments:
        u: u_0, (B, C_i, H_i, W_i) a group, on the chains' device.
        clamped: Indices of the groups that are held; the others are free, at least one of them.
        start_level: k, at which the free groups start from their diffused values; None starts them
            from noise.
        cells: Of the free groups, the cells that are clamped: bool (B, 1, H_i, W_i) a group.
    """

    u: Latents
    clamped: tuple[int, ...] = ()
    start_level: int | None = None
    cells: Latents | None = None

    def rows(self, start: int, stop: int) -> "LatentConstraint":
        """Of images start ... stop - 1."""
        cells = self.cells and tuple(c[start:stop] for c in self.cells)
        return replace(self, u=tuple(g[start:stop] for g in self.u), cells=cells)

    def repeated(self, count: int) -> "LatentConstraint":
        """Each image `count` times, one after another."""
        u = tuple(g.repeat_interleave(count, 0) for g in self.u)
        cells = self.cells and tuple(c.repeat_interleave(count, 0) for c in self.cells)
        return replace(self, u=u, cells=cells)

    def to(self, device: torch.device) -> "LatentConstraint":
        """On another device, in float32."""
        cells = self.cells and tuple(c.to(device) for c in self.cells)
        u = tuple(g.to(device, torch.float32) for g in self.u)
        return replace(self, u=u, cells=cells)


def Given(  # noqa: N802 (a class once)
    u: Latents,
    kept: tuple[int, ...] = (),
    start_level: int | None = None,
    cells: Latents | None = None,
) -> LatentConstraint:
    """A `LatentConstraint`, by the name that earlier documentation showed."""
    return LatentConstraint(u, kept, start_level, cells)


def _diffused(u: Tensor, eps: Tensor, cum_sigma: Scalar) -> Tensor:
    """cum_a u + cum_sigma eps, (B, C, H, W), for one noise level or (B,)."""
    if not isinstance(cum_sigma, Tensor):
        cum_sigma = torch.tensor(cum_sigma, dtype=torch.float32, device=u.device)
    sigma = cum_sigma.to(u.device)
    cum_a = ((1 - sigma) * (1 + sigma)).clamp(min=0).sqrt()
    if sigma.dim():
        return per_example(cum_a, u) * u + per_example(sigma, u) * eps
    return float(cum_a) * u + float(sigma) * eps


class FreeGroups:
    """The free groups of a constraint, with the clamped ones put back where they are needed.

    Arguments:
        constraint: None if all groups are free and start from noise.
        eps: One standard normal sample of all groups.
    """

    def __init__(self, constraint: LatentConstraint | None, eps: Latents) -> None:
        self.constraint, self.eps = constraint, eps
        clamped = constraint.clamped if constraint is not None else ()
        self.free: Sequence[int] = [i for i in range(len(eps)) if i not in clamped]

    @property
    def clamps(self) -> bool:
        """Whether any group, or any cell, is clamped."""
        cells = self.constraint is not None and self.constraint.cells is not None
        return cells or len(self.free) < len(self.eps)

    def select(self, u: Latents) -> Latents:
        """The free ones of all groups."""
        return tuple(u[i] for i in self.free)

    def reorder(self, rows: Tensor) -> None:
        """Go on with these rows, of which some may be there twice: what is clamped keeps the noise
        that it had beside them.
        """
        self.eps = tuple(e[rows.to(e.device)] for e in self.eps)

    def start(self, cum_sigma: float) -> Latents:
        """Free groups where their chains begin, at the start level's `cum_sigma`."""
        if self.constraint is None or self.constraint.start_level is None:
            return self.select(self.eps)
        return tuple(_diffused(self.constraint.u[i], self.eps[i], cum_sigma) for i in self.free)

    def full(self, free: Latents, cum_sigma: Scalar) -> Latents:
        """All groups: the free ones, and the clamped ones diffused to `cum_sigma`; 0 gives them
        exactly.
        """
        if self.constraint is None or not self.clamps:
            return free
        found = dict(zip(self.free, free, strict=True))
        exact = isinstance(cum_sigma, float) and cum_sigma == 0.0
        cells = self.constraint.cells
        for i in self.constraint.clamped if cells is None else range(len(self.eps)):
            u = self.constraint.u[i]
            held = u if exact else _diffused(u, self.eps[i], cum_sigma)
            if i in found and cells is not None:
                held = torch.where(cells[i], held, found[i])
            found[i] = held
        return tuple(found[i] for i in range(len(self.eps)))

    def energy(self, energy: AnyEnergy, cum_sigma_of: CumSigma) -> Energy:
        """The same energy as a function of the free groups alone.

        Arguments:
            cum_sigma_of: What the nets are told about a level, (B,), to cum_sigma (B,).
        """
        return _OfFreeGroups(energy, self, cum_sigma_of)


@dataclass(frozen=True)
class _OfFreeGroups:
    """An `Energy` of the free groups, with the clamped ones at their own noisy values."""

    energy: AnyEnergy
    groups: FreeGroups
    cum_sigma_of: CumSigma

    def at(self, level: Scalar) -> EnergyAtLevel:
        """F at one level."""
        fixed = at_level(self.energy, level)
        if not self.groups.clamps:
            return fixed
        return lambda free: fixed(
            self.groups.full(free, self.cum_sigma_of(level_rows(level, free)))
        )
