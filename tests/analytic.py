"""Closed-form targets: energies of Gaussian data, and the exact law of each sampler on them.

For data N(m, v) in every dimension the diffused density is N(cum_a m, V), V = cum_a^2 v +
cum_sigma^2, so F = u^2/2 - (u - cum_a m)^2 / (2 V). All samplers are then linear in u, and their
variance follows by recursion. A mixture of such Gaussians, its components being the values of a
symbol, has exact conditional energies.
"""

import math

import torch

from hebm_sample.config import LangevinConfig, SymbolConfig
from hebm_sample.latents import flatten
from hebm_sample.prior.schedule import DiffusionSchedule
from hebm_sample.prior.symbols import Condition, SymbolTable, symbol_part
from hebm_sample.sampling.sample import gradients_per_level


def gaussian_energy(variance: float, mean: float = 0.0):
    """Energies (B, L), one term per group, of data N(mean, variance)."""

    def energy(u, level):
        cum_a_squared = torch.sigmoid(level)
        total = cum_a_squared * variance + 1 - cum_a_squared
        centre = cum_a_squared.sqrt() * mean
        terms = []
        for g in u:
            row = g.flatten(1)
            deviation = (row - centre[:, None]).square().sum(1)
            terms.append(0.5 * row.square().sum(1) - 0.5 * deviation / total)
        return torch.stack(terms, dim=1)

    return energy


def flat_energy(u, level):
    """F = 0: the prior is N(0, I)."""
    return torch.zeros(len(level), len(u), dtype=u[0].dtype)


class Mixture:
    """Gaussians of one variance in every dimension; the component is the variable `part`.

    Arguments:
        means, weights: One a component.
        variance: Of each.
    """

    def __init__(self, means, weights, variance: float) -> None:
        self.means = torch.tensor(means, dtype=torch.float64)
        self.log_weights = torch.tensor(weights, dtype=torch.float64).log()
        self.variance = variance
        self.table = SymbolTable((SymbolConfig("part", tuple("abcdefgh"[: len(means)])),))

    def logits(self, u, level):
        """g^j = log p(u_t, y = j) - log N(u_t; 0, I) of rows u (B, D) at log SNR (B,): (B, J)."""
        cum_a_squared = torch.sigmoid(level.double())[:, None, None]
        total = cum_a_squared * self.variance + 1 - cum_a_squared
        x = u.double()[:, None, :]
        deviation = (x - cum_a_squared.sqrt() * self.means[None, :, None]).square()
        log_ratio = 0.5 * (x.square() - deviation / total - total.log())
        return (self.log_weights + log_ratio.sum(2)).to(u.dtype)

    def every_number(self, asked=None):
        """Energies (B, 1) that take each number of u for an image of its own, all under one
        condition: (values allowed, weight).
        """

        def energy(u, level):
            row = flatten(u)
            numbers, levels = row.reshape(-1, 1), level.repeat_interleave(row.shape[1])
            condition = None
            if asked is not None:
                allowed = torch.zeros(len(numbers), len(self.means), dtype=torch.bool)
                allowed[:, list(asked[0])] = True
                condition = Condition(allowed, torch.full((len(numbers), 1), float(asked[1])))
            terms = symbol_part(self.table, self.logits(numbers, levels), condition)
            return terms.reshape(len(row), -1).sum(1, keepdim=True)

        return energy


def standard_normal(u):
    """log N(u; 0, I), (B,)."""
    return -0.5 * sum(g.flatten(1).square().sum(1) for g in u)


def assert_moments(samples, mean: float, variance: float, standard_errors: float = 4.0) -> None:
    """Independent samples of a Gaussian have this mean and this variance, both two-sided."""
    count = samples.numel()
    allowed = standard_errors * math.sqrt(variance / count)
    off = abs(float(samples.double().mean()) - mean)
    assert off <= allowed, f"mean is off by {off:.2e}, allowed {allowed:.2e}"
    allowed = standard_errors * variance * math.sqrt(2 / (count - 1))
    off = abs(float(samples.double().var()) - variance)
    assert off <= allowed, f"variance is off by {off:.2e}, allowed {allowed:.2e}"


def stationary_variance(target: float, step: float, reference: float | None) -> float:
    """Of u <- u - (s/2) u / V + sqrt(v) eps; `reference` None is the plain kernel's v = s."""
    noise = step if reference is None else step * (1 - step / (4 * reference))
    return noise / (1 - (1 - step / (2 * target)) ** 2)


def _flow_factor(v: float, sigma: float, sigma_to: float) -> float:
    theta, theta_to = math.asin(sigma), math.asin(sigma_to)
    total = (1 - sigma**2) * v + sigma**2
    return 1 + math.tan(theta) * math.sin(theta - theta_to) * (1 - 1 / total)


def flow_variance(v: float, path) -> float:
    """Variance that the probability flow returns for data of variance v, started from N(0, I)."""
    factor = math.prod(_flow_factor(v, s, r) for s, r in zip(path, path[1:], strict=False))
    return factor**2


def chain_variance(v: float, schedule: DiffusionSchedule, config: LangevinConfig) -> float:
    """What `recovery` or `annealed` returns for "sigma_next" and `denoise`."""
    T, levels = schedule.num_levels, schedule.levels
    budget = gradients_per_level(config.steps, T, early_share=config.early_share)
    variance, carry = 1.0, 1.0
    for t in reversed(range(T)):
        total = (1 - levels[t] ** 2) * v + levels[t] ** 2
        a_squared = (1 - levels[t + 1] ** 2) / (1 - levels[t] ** 2)
        noise = 1 - a_squared
        linked = config.sampler == "recovery" and t < T - 1
        reference = noise if linked else 1.0
        step = config.step_scale * levels[t] ** 2
        step *= noise / levels[t + 1] ** 2 if linked else 1.0
        precision = 1 / total + (a_squared / noise if linked else 0.0)
        pull = math.sqrt(a_squared) / noise if linked else 0.0
        injected = step if config.kernel == "plain" else step * (1 - step / (4 * reference))
        weight, spread = carry, 0.0  # u = weight * u_next + independent noise of variance spread
        carries = t == 0 or config.start == "flow"
        for _ in range(budget[t] - carries):
            weight = weight * (1 - step / 2 * precision) + step / 2 * pull
            spread = spread * (1 - step / 2 * precision) ** 2 + injected
        variance = weight**2 * variance + spread
        carry = _flow_factor(v, levels[t], levels[t - 1]) if config.start == "flow" and t else 1.0
    return variance * _flow_factor(v, levels[0], 0.0) ** 2
