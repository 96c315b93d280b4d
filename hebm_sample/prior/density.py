r"""Log densities of the diffused prior, up to constants.

    log p_t(u_t)          = sum_i F_i(u_t, t) - |u_t|^2 / 2
    log p(u_t | u_{t+1})  = log p_t(u_t) - r_{t+1} |u_{t+1} - a_{t+1} u_t|^2 / (2 sigma_{t+1}^2)

called the marginal and the conditional, as in "Learning Energy-Based Models by Diffusion Recovery
Likelihood" (arXiv 2012.08125).

F large = likely, and never multiplied by a step size here. The energies arrive as an `Energy`:
asked for a noise level, it gives the terms F_i as a function of the latents alone. Of a density
only F goes through autograd; what is added to it has its gradient in closed form.
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol, cast

import torch
from torch import Tensor

from hebm_sample.config import Parametrization
from hebm_sample.latents import Latents, Scalar, flatten, per_example
from hebm_sample.prior.schedule import DiffusionSchedule, Level

__all__ = [
    "AnyEnergy",
    "ConditionalEBM",
    "CumSigma",
    "Energy",
    "EnergyAtLevel",
    "EnergyFunction",
    "Evaluation",
    "MarginalEBM",
    "at_level",
    "conditional_at",
    "cum_sigma_of",
    "level_rows",
    "marginal_at",
    "net_level",
    "row_norm",
    "value_and_grad",
]

EnergyAtLevel = Callable[[Latents], Tensor]
"""Latents to the terms F_i (B, L), at one noise level."""

EnergyFunction = Callable[[Latents, Tensor], Tensor]
"""(latents, level (B,)) to the terms F_i (B, L)."""


class Energy(Protocol):
    """Energies at every noise level."""

    def at(self, level: Scalar) -> EnergyAtLevel:
        """F at one level, as `net_level` gives it: one number, or (B,)."""
        ...


AnyEnergy = Energy | EnergyFunction
"""Energies in either form."""

CumSigma = Callable[[Tensor], Tensor]
"""What the nets are told about a level, (B,), to cum_sigma (B,)."""


def level_rows(level: Scalar, u: Latents) -> Tensor:
    """A level as (B,), for the nets that read latents `u`."""
    if isinstance(level, Tensor):
        return level
    return torch.full((len(u[0]),), level, dtype=u[0].dtype, device=u[0].device)


def at_level(energy: AnyEnergy, level: Scalar) -> EnergyAtLevel:
    """The energies fixed at a level, whichever form they come in."""
    fix = getattr(energy, "at", None)
    if fix is not None:
        return fix(level)
    function = cast("EnergyFunction", energy)
    return lambda u: function(u, level_rows(level, u))


def value_and_grad(function: Callable[[Latents], Tensor], u: Latents) -> tuple[Tensor, Latents]:
    """The values (B, ...) of a function of the latents, and the gradient of their sum.

    A small island of autograd: it works inside `torch.no_grad` and `torch.inference_mode`,
    differentiates by u alone, and leaves every parameter's `.grad` as it was. Groups that the
    function does not read get zeros.
    """
    with torch.inference_mode(False), torch.enable_grad():
        leaves = tuple((g.clone() if g.is_inference() else g.detach()).requires_grad_() for g in u)
        values = function(leaves)
        if not values.requires_grad:
            return values, tuple(torch.zeros_like(g) for g in u)
        grads = torch.autograd.grad(values.sum(), leaves, materialize_grads=True)
    return values.detach(), grads


def row_norm(rows: Tensor) -> Tensor:
    """Euclidean norm of each row of (B, D), (B,)."""
    return rows.square().sum(1).sqrt()


def net_level(schedule: DiffusionSchedule, t: Level, parametrization: Parametrization) -> Scalar:
    """What the nets are told about level t: its log SNR, or in the release's mode t itself."""
    if parametrization == "log_snr":
        return schedule.gather(schedule.log_snr, t)
    return t.to(torch.float32) if isinstance(t, Tensor) else float(t)


def cum_sigma_of(
    schedule: DiffusionSchedule, parametrization: Parametrization, level: Tensor
) -> Tensor:
    """cum_sigma (B,) of what `net_level` gave, (B,)."""
    if parametrization == "log_snr":
        return torch.sigmoid(-level).sqrt()
    sigma = schedule.gather(schedule.cum_sigma, level.round().long(), level.dtype)
    assert isinstance(sigma, Tensor)
    return sigma


class Evaluation(NamedTuple):
    """A density at u.

    Arguments:
        terms: F_i, (B, L).
        slope: grad F, all groups in one row, (B, D).
        value: log p, (B,).
        score: grad log p, (B, D).
    """

    terms: Tensor
    slope: Tensor
    value: Tensor
    score: Tensor


class MarginalEBM:
    """log p_t(u_t), without its constant.

    Arguments:
        energy: The energies.
        level: As `net_level` gives it: one number, or (B,).
    """

    def __init__(self, energy: AnyEnergy, level: Scalar) -> None:
        self.terms = at_level(energy, level)

    def __call__(self, u: Latents) -> Tensor:
        """log p, (B,)."""
        return self._with_base(self.terms(u).sum(1), None, flatten(u))[0]

    def evaluate(self, u: Latents) -> Evaluation:
        """Value and score at u with what they are made of; one gradient of F."""
        terms, slopes = value_and_grad(self.terms, u)
        slope = flatten(slopes)
        value, score = self._with_base(terms.sum(1), slope, flatten(u))
        assert score is not None
        return Evaluation(terms, slope, value, score)

    def value_and_score(self, u: Latents) -> tuple[Tensor, Tensor]:
        """log p (B,) and its gradient, all groups in one row, (B, D)."""
        found = self.evaluate(u)
        return found.value, found.score

    def base(self, u: Latents) -> Tensor:
        """log p less F, (B,)."""
        row = flatten(u)
        return self._with_base(row.new_zeros(len(row)), None, row)[0]

    def _with_base(
        self, value: Tensor, slope: Tensor | None, row: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """F (B,) and grad F (B, D), if it is needed, with what is added to F."""
        value = value - 0.5 * row.square().sum(1)
        return value, None if slope is None else slope - row


class ConditionalEBM(MarginalEBM):
    """log p(u_t | u_{t+1}), without its constant.

    Arguments:
        energy: The energies.
        level: As `net_level` gives it: one number, or (B,).
        u_next: u_{t+1}, (B, C_i, H_i, W_i) a group; held fixed.
        a_next: a_{t+1}, one number or (B,).
        sigma_next: sigma_{t+1}, one number or (B,).
        recovery: r_{t+1}, one number or (B,); 0 leaves the marginal.
    """

    def __init__(
        self,
        energy: AnyEnergy,
        level: Scalar,
        u_next: Latents,
        a_next: Scalar,
        sigma_next: Scalar,
        recovery: Scalar = 1.0,
    ) -> None:
        super().__init__(energy, level)
        self.next = flatten(u_next).detach()
        self.a_next = per_example(a_next, self.next)
        self.precision = recovery / sigma_next**2

    def _with_base(
        self, value: Tensor, slope: Tensor | None, row: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """As above, with the link to u_{t+1}."""
        value, score = super()._with_base(value, slope, row)
        away = self.next - self.a_next * row
        value = value - 0.5 * self.precision * away.square().sum(1)
        if score is not None:
            score = score + per_example(self.precision, row) * (self.a_next * away)
        return value, score


def marginal_at(
    energy: AnyEnergy,
    schedule: DiffusionSchedule,
    t: Level,
    parametrization: Parametrization = "log_snr",
) -> MarginalEBM:
    """The marginal at level t of a schedule; t is one level, or integers (B,)."""
    return MarginalEBM(energy, net_level(schedule, t, parametrization))


def conditional_at(
    energy: AnyEnergy,
    schedule: DiffusionSchedule,
    t: Level,
    u_next: Latents,
    parametrization: Parametrization = "log_snr",
) -> ConditionalEBM:
    """The density of u_t given u_{t+1} = `u_next`; t is one level below T, or integers (B,)."""
    dtype = u_next[0].dtype
    return ConditionalEBM(
        energy,
        net_level(schedule, t, parametrization),
        u_next,
        schedule.gather(schedule.a, t + 1, dtype),
        schedule.gather(schedule.sigma, t + 1, dtype),
        schedule.gather(schedule.recovery, t + 1, dtype),
    )
