r"""Sampling that starts from, or holds on to, latents u_0 that are already there.

    kept groups    u_t = cum_a_t u_0 + cum_sigma_t eps at every level, and u_0 itself at the end
    free groups    start from eps, or from cum_a_k u_0 + cum_sigma_k eps at a level k

with one eps an image: standard normal, or what the flow finds by carrying u_0 up. Single cells of
a free group can be held likewise. Holding the kept groups at their own diffused values is an
approximation to conditioning on them: the free groups see a noisy version of what is kept, and
from level to level the same noise. To the sampler only the free groups exist.
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

__all__ = ["FreeGroups", "Given"]


@dataclass(frozen=True)
class Given:
    """Latents to keep or to start from.

    Arguments:
        u: u_0, (B, C_i, H_i, W_i) a group, on the chains' device.
        kept: Indices of the groups that are held; the others are free, at least one of them.
        cells: Of the free groups, the cells that are held: bool (B, 1, H_i, W_i) a group.
        start_level: k, at which the free groups start from their diffused values; None starts them
            from noise.
        eps: The noise, one tensor a group; None draws it.
    """

    u: Latents
    kept: tuple[int, ...] = ()
    start_level: int | None = None
    cells: Latents | None = None
    eps: Latents | None = None

    def rows(self, start: int, stop: int) -> "Given":
        """Of images start ... stop - 1."""
        cells = self.cells and tuple(c[start:stop] for c in self.cells)
        eps = self.eps and tuple(e[start:stop] for e in self.eps)
        return replace(self, u=tuple(g[start:stop] for g in self.u), cells=cells, eps=eps)

    def to(self, device: torch.device) -> "Given":
        """On another device, in float32."""
        cells = self.cells and tuple(c.to(device) for c in self.cells)
        eps = self.eps and tuple(e.to(device, torch.float32) for e in self.eps)
        u = tuple(g.to(device, torch.float32) for g in self.u)
        return replace(self, u=u, cells=cells, eps=eps)


def _diffused(u: Tensor, eps: Tensor, cum_sigma: Scalar) -> Tensor:
    """cum_a u + cum_sigma eps, (B, C, H, W), for one noise level or (B,)."""
    sigma = torch.as_tensor(cum_sigma, device=u.device)
    cum_a = ((1 - sigma) * (1 + sigma)).clamp(min=0).sqrt()
    if sigma.dim():
        return per_example(cum_a, u) * u + per_example(sigma, u) * eps
    return float(cum_a) * u + float(sigma) * eps


class FreeGroups:
    """The free groups of `given`, with the kept ones put back where they are needed.

    Arguments:
        given: None if all groups are free and start from noise.
        eps: One standard normal draw of all groups, used where `given` has no noise of its own.
    """

    def __init__(self, given: Given | None, eps: Latents) -> None:
        self.given = given
        self.eps = eps if given is None or given.eps is None else given.eps
        kept = given.kept if given is not None else ()
        self.free: Sequence[int] = [i for i in range(len(eps)) if i not in kept]

    @property
    def keeps(self) -> bool:
        """Whether any group, or any cell, is kept."""
        cells = self.given is not None and self.given.cells is not None
        return cells or len(self.free) < len(self.eps)

    def select(self, u: Latents) -> Latents:
        """The free ones of all groups."""
        return tuple(u[i] for i in self.free)

    def start(self, cum_sigma: float) -> Latents:
        """Free groups where their chains begin, at the start level's `cum_sigma`."""
        if self.given is None or self.given.start_level is None:
            return self.select(self.eps)
        return tuple(_diffused(self.given.u[i], self.eps[i], cum_sigma) for i in self.free)

    def full(self, free: Latents, cum_sigma: Scalar) -> Latents:
        """All groups: the free ones, and the kept ones diffused to `cum_sigma`; 0 gives them
        exactly.
        """
        if self.given is None or not self.keeps:
            return free
        found = dict(zip(self.free, free, strict=True))
        exact = isinstance(cum_sigma, float) and cum_sigma == 0.0
        for i in range(len(self.eps)) if self.given.cells is not None else self.given.kept:
            u = self.given.u[i]
            held = u if exact else _diffused(u, self.eps[i], cum_sigma)
            if i in found and self.given.cells is not None:
                held = torch.where(self.given.cells[i], held, found[i])
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
    """An `Energy` of the free groups, with the kept ones at their own noisy values."""

    energy: AnyEnergy
    groups: FreeGroups
    cum_sigma_of: CumSigma

    def at(self, level: Scalar) -> EnergyAtLevel:
        """F at one level."""
        fixed = at_level(self.energy, level)
        if not self.groups.keeps:
            return fixed
        return lambda free: fixed(
            self.groups.full(free, self.cum_sigma_of(level_rows(level, free)))
        )
