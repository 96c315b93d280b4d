r"""The variance-preserving diffusion that the prior is learned through.

    u_{t+1} = a_{t+1} u_t + sigma_{t+1} eps,      a_t^2 + sigma_t^2 = 1
    u_t     = cum_a_t u_0 + cum_sigma_t eps,      cum_a_t = a_0 a_1 ... a_t

for t = 0 ... T. Level 0 is already diffused once, by almost nothing; level T is (almost) pure
noise, and its cum_a may be exactly 0. The process of "Denoising Diffusion Probabilistic Models"
(arXiv 2006.11239), with a = sqrt(1 - beta). A model stores the cum_sigma of its levels, everything
else follows in float64.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hebm_sample.errors import UserInputError
from hebm_sample.latents import Latents, Scalar, per_example

__all__ = [
    "DiffusionSchedule",
    "Level",
    "log_snr_levels",
    "log_snr_of",
    "release_levels",
    "release_step_sizes",
]

Level = int | Tensor
"""A noise level t: one for the batch, or integers of shape (B,)."""


def log_snr_of(cum_sigma: float) -> float:
    """log(cum_a^2 / cum_sigma^2) of a noise level 0 < cum_sigma < 1."""
    return math.log((1 - cum_sigma) * (1 + cum_sigma)) - 2 * math.log(cum_sigma)


class DiffusionSchedule(nn.Module):
    """Per-step and cumulative coefficients of the levels t = 0 ... T.

    The tables are float64 on the CPU whatever the module is moved to: they are read as numbers,
    and a model cast to half precision must not lose digits of them. They are not part of the
    state: the config holds them.

    Arguments:
        levels: cum_sigma of t = 0 ... T, rising, in (0, 1].

    Attributes:
        a, sigma: (T+1,) coefficients of the step from t-1 to t; those of t = 0 lead from u_0's
            clean value.
        cum_a, cum_sigma: (T+1,) coefficients of u_t given u_0.
        log_snr: (T+1,) log(cum_a^2 / cum_sigma^2); -inf where cum_a is 0.
        recovery: (T+1,) r_t, the weight of the link to level t: 1, and 0 at t = T.

    Raises:
        UserInputError: fewer than two levels, or levels that do not rise within (0, 1].

    >>> schedule = DiffusionSchedule((0.6, 0.8, 1.0))
    >>> schedule.num_levels
    2
    >>> [round(float(a), 3) for a in schedule.cum_a]
    [0.8, 0.6, 0.0]
    >>> [round(float(a), 3) for a in schedule.a]
    [0.8, 0.75, 0.0]
    """

    a: Tensor
    sigma: Tensor
    cum_a: Tensor
    cum_sigma: Tensor
    log_snr: Tensor
    recovery: Tensor

    def __init__(self, levels: Sequence[float]) -> None:
        super().__init__()
        rising = all(low < high for low, high in zip(levels, levels[1:], strict=False))
        if len(levels) < 2 or not rising or not 0 < levels[0] or not levels[-1] <= 1:
            raise UserInputError(
                f"levels are {list(levels)}; a schedule needs two or more, rising, in (0, 1]"
            )
        self.levels = tuple(float(s) for s in levels)
        self.cum_sigma = torch.tensor(self.levels, dtype=torch.float64, device="cpu")
        self.cum_a = ((1 - self.cum_sigma) * (1 + self.cum_sigma)).sqrt()
        before = torch.cat([self.cum_a.new_ones(1), self.cum_a[:-1]])
        self.a = self.cum_a / before
        self.sigma = ((1 - self.a) * (1 + self.a)).sqrt()
        self.log_snr = 2 * (self.cum_a.log() - self.cum_sigma.log())
        self.recovery = torch.ones_like(self.a)
        self.recovery[-1] = 0

    @property
    def num_levels(self) -> int:
        """T: levels 0 ... T-1 have densities, level T is where chains start."""
        return len(self.levels) - 1

    def extra_repr(self) -> str:
        """The levels, for `print(schedule)`."""
        return f"levels={self.levels}"

    def gather(self, table: Tensor, t: Level, dtype: torch.dtype = torch.float32) -> Scalar:
        """Entries of a table above: a float for an integer t, (B,) on t's device for a tensor."""
        if isinstance(t, Tensor):
            return table.to(dtype).to(t.device)[t]
        return float(table[t])

    def diffuse(self, u0: Latents, t: Level, noise: Latents) -> Latents:
        """u_t = cum_a_t u_0 + cum_sigma_t eps.

        Arguments:
            u0: Clean latents, (B, C_i, H_i, W_i) a group.
            t: One level, or integers (B,) on the latents' device.
            noise: Standard normal, shaped like `u0`.
        """
        cum_a = self.gather(self.cum_a, t, u0[0].dtype)
        cum_sigma = self.gather(self.cum_sigma, t, u0[0].dtype)
        return tuple(
            per_example(cum_a, g) * g + per_example(cum_sigma, g) * eps
            for g, eps in zip(u0, noise, strict=True)
        )


def release_levels(num_levels: int) -> tuple[float, ...]:
    """cum_sigma of t = 0 ... T in the authors' release.

    betas run linearly from 1e-4 to 0.02 over 1000 steps; the levels sit at the steps
    [0, 1, ..., T-1] * (1000 // (2 (T-1))) and 999; for T = 1, without diffusion, at 0 and 999.

    >>> [round(cum_sigma, 4) for cum_sigma in release_levels(3)]
    [0.01, 0.6918, 0.9603, 1.0]
    """
    if not 1 <= num_levels <= 500:
        raise UserInputError(f"the release's schedule has 1 to 500 levels; asked for {num_levels}")
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64, device="cpu")
    cum_a_squared = torch.cumprod(1 - betas, 0)
    stride = 1000 // (2 * (num_levels - 1)) if num_levels > 1 else 0
    steps = [k * stride for k in range(num_levels)] + [999]
    return tuple(float(s) for s in (1 - cum_a_squared[steps]).sqrt())


def release_step_sizes(schedule: DiffusionSchedule, s_0: float) -> tuple[float, ...]:
    """s_t = s_0 (cum_sigma_t / cum_sigma_0) sigma_{t+1}^2 for t = 0 ... T-1, as in the release."""
    growth = schedule.cum_sigma[:-1] / schedule.cum_sigma[0]
    return tuple(float(s) for s in s_0 * growth * schedule.sigma[1:].square())


def log_snr_levels(
    num_levels: int, sigma_low: float, sigma_high: float, sigma_last: float = 1.0
) -> tuple[float, ...]:
    """cum_sigma of t = 0 ... T: T levels even in log SNR, then `sigma_last`.

    They run from `sigma_low` to `sigma_high`; with T = 1 there is only `sigma_low`.

    >>> levels = log_snr_levels(3, 0.2, 0.96)
    >>> [round(cum_sigma, 2) for cum_sigma in levels]
    [0.2, 0.64, 0.96, 1.0]
    >>> [round(log_snr_of(cum_sigma), 2) for cum_sigma in levels[:3]]
    [3.18, 0.36, -2.46]
    """
    if num_levels < 1 or not 0 < sigma_low < sigma_high < sigma_last <= 1:
        raise UserInputError(
            f"{num_levels} levels from {sigma_low} to {sigma_high}, then {sigma_last}, cannot be "
            "spaced; give 1 or more, and 0 < sigma_low < sigma_high < sigma_last <= 1"
        )
    low, high = log_snr_of(sigma_low), log_snr_of(sigma_high)
    inner = [low + (high - low) * k / (num_levels - 1) for k in range(1, num_levels - 1)]
    ends = [sigma_high] if num_levels > 1 else []
    return (sigma_low, *(1 / math.sqrt(1 + math.exp(x)) for x in inner), *ends, sigma_last)
