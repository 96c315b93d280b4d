r"""Log densities of the diffused prior, up to constants.

    log p_t(u_t)          = sum_i F_i(u_t, t) - |u_t|^2 / 2
    log p(u_t | u_{t+1})  = log p_t(u_t) - r_{t+1} |u_{t+1} - a_{t+1} u_t|^2 / (2 sigma_{t+1}^2)

called the marginal and the conditional.

F large = likely, and never multiplied by a step size here. The energies arrive as one callable of
the latents and of what the nets are told about the noise level, so that nothing here knows the
generator.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from hebm_sample.config import Parametrization
from hebm_sample.latents import Latents, Scalar, flatten, per_example
from hebm_sample.prior.schedule import DiffusionSchedule, Level

__all__ = [
    "ConditionalEBM",
    "CumSigma",
    "Energy",
    "MarginalEBM",
    "conditional_at",
    "cum_sigma_of",
    "marginal_at",
    "net_level",
    "row_norm",
]

Energy = Callable[[Latents, Tensor], Tensor]
"""(latents, level (B,)) to the terms F_i (B, L)."""


CumSigma = Callable[[Tensor], Tensor]
"""What the nets are told about a level, (B,), to cum_sigma (B,)."""


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


class MarginalEBM:
    """log p_t(u_t), without its constant.

    Arguments:
        energy: The terms F_i (B, L) of latents and level.
        level: As `net_level` gives it: one number, or (B,).
    """

    def __init__(self, energy: Energy, level: Scalar) -> None:
        self.energy = energy
        self.level = level
        self._levels: Tensor | None = None

    def terms(self, u: Latents) -> Tensor:
        """The terms F_i, (B, L)."""
        return self.energy(u, self._level_of(u))

    def _level_of(self, u: Latents) -> Tensor:
        """The level (B,): the same tensor at every step of a chain, so that `energy` can tell."""
        if isinstance(self.level, Tensor):
            return self.level
        like = u[0]
        levels = self._levels
        if levels is None or (len(levels), levels.dtype) != (len(like), like.dtype):
            levels = torch.full((len(like),), self.level, dtype=like.dtype, device=like.device)
        self._levels = levels
        return levels

    def __call__(self, u: Latents) -> Tensor:
        """log p, (B,)."""
        return self.log_density(self.terms(u), flatten(u))

    def log_density(self, terms: Tensor, row: Tensor) -> Tensor:
        """log p (B,) of the terms F_i (B, L) at u, whose groups lie in one `row`, (B, D)."""
        return terms.sum(1) - 0.5 * row.square().sum(1)

    def gradient(self, slope: Tensor, row: Tensor) -> Tensor:
        """grad log p (B, D) of `slope` = grad F at u. What is added to F has it in closed form."""
        return slope - row


class ConditionalEBM(MarginalEBM):
    """log p(u_t | u_{t+1}), without its constant.

    Arguments:
        energy: The terms F_i (B, L) of latents and level.
        level: As `net_level` gives it: one number, or (B,).
        u_next: u_{t+1}, (B, C_i, H_i, W_i) a group; held fixed.
        a_next: a_{t+1}, one number or (B,).
        sigma_next: sigma_{t+1}, one number or (B,).
        recovery: r_{t+1}, one number or (B,); 0 leaves the marginal.
    """

    def __init__(
        self,
        energy: Energy,
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

    def log_density(self, terms: Tensor, row: Tensor) -> Tensor:
        """As above, with the link to u_{t+1}."""
        link = (self.next - self.a_next * row).square().sum(1)
        return super().log_density(terms, row) - 0.5 * self.precision * link

    def gradient(self, slope: Tensor, row: Tensor) -> Tensor:
        """As above, with the link to u_{t+1}."""
        pull = self.a_next * (self.next - self.a_next * row)
        return super().gradient(slope, row) + per_example(self.precision, row) * pull


def marginal_at(
    energy: Energy,
    schedule: DiffusionSchedule,
    t: Level,
    parametrization: Parametrization = "log_snr",
) -> MarginalEBM:
    """The marginal at level t of a schedule; t is one level, or integers (B,)."""
    return MarginalEBM(energy, net_level(schedule, t, parametrization))


def conditional_at(
    energy: Energy,
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
