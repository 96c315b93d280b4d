r"""The transition at a level: on which density its chain runs, by which steps, against which C.

    chain on               B_t                                                C
    log p(u_t | u_{t+1})   sigma_{t+1}^2 cum_sigma_t^2 / cum_sigma_{t+1}^2    sigma_{t+1}^2, or B_t
    log p_t                cum_sigma_t^2                                      1, or B_t

and s = c B_t with the step scale c. B_t is the variance of the chain's target if u_0 were known
(for the first that of q(u_t | u_{t+1}, u_0) in "Denoising Diffusion Probabilistic Models", arXiv
2006.11239),
the least a direction can have, so c < 4 is stable; the first C ("sigma_next") is its variance if
u_0 were N(0, I). So B_t <= C <= 1. With `precondition` a coordinate whose posterior has the
variance w, averaged over images, has

    cum_a_t^2 w + cum_sigma_t^2    in place of cum_sigma_t^2

in B_t, which is then between the two: B_t where an image fixes its latents (w = 0), C where it
says nothing of them (w = 1). The plain kernel on energies of the release's parametrisation has the
release's s_t in place of B_t.

Whoever runs a chain or reports on one asks here: the sampler, maximum likelihood's training
chains, scores after a chain, diagnostics.
"""

from dataclasses import dataclass

from torch import Tensor

from hebm_sample.config import LangevinConfig, Parametrization
from hebm_sample.latents import Latents, Scalar
from hebm_sample.prior.density import AnyEnergy, MarginalEBM, conditional_at, marginal_at
from hebm_sample.prior.schedule import DiffusionSchedule, release_step_sizes

__all__ = ["Transition", "coordinate_variances", "step_sizes", "transition"]


@dataclass(frozen=True)
class Transition:
    """A level's chain.

    Arguments:
        schedule: The model's noise levels.
        t: The level.
        parametrization: Of the energies.
        conditional: Whether it runs on log p(u_t | u_{t+1}), or on log p_t.
        unit: B_t, or the release's s_t: one number, or one per coordinate, (1, D).
        step_size: s of its first step, shaped likewise.
        decay: The last step's s over the first's.
        reference_variance: C.
    """

    schedule: DiffusionSchedule
    t: int
    parametrization: Parametrization
    conditional: bool
    unit: Scalar
    step_size: Scalar
    decay: float
    reference_variance: Scalar

    def density(self, energy: AnyEnergy, u_next: Latents) -> MarginalEBM:
        """What the chain runs on.

        Arguments:
            energy: The terms F_i (B, L) of latents and level.
            u_next: u_{t+1}, (B, C_i, H_i, W_i) a group; without effect on a marginal.
        """
        where = (energy, self.schedule, self.t)
        if self.conditional:
            return conditional_at(*where, u_next, self.parametrization)
        return marginal_at(*where, self.parametrization)

    def mean_steps(self, count: int) -> list[float]:
        """s of each of `count` steps, its mean over coordinates where they have their own."""
        sizes = step_sizes(self.step_size, count, self.decay)
        return [float(s.mean() if isinstance(s, Tensor) else s) for s in sizes]


def step_sizes(step_size: Scalar, count: int, decay: float = 1.0) -> list[Scalar]:
    """s of each of `count` steps: `step_size` at first, `decay` times that at last, geometric
    between.
    """
    if decay == 1.0:
        return [step_size] * count
    return [step_size * decay ** (k / max(1, count - 1)) for k in range(count)]


def coordinate_variances(
    schedule: DiffusionSchedule, t: int, posterior_variance: Scalar, *, conditional: bool
) -> tuple[Scalar, float]:
    """B_t for a posterior of that variance, one number or one per coordinate; and B_t for 1."""
    cum_a, cum_sigma = float(schedule.cum_a[t]), float(schedule.cum_sigma[t])
    wide = cum_a**2 * posterior_variance + cum_sigma**2
    if not conditional:
        return wide, 1.0
    a, variance = float(schedule.a[t + 1]), float(schedule.sigma[t + 1]) ** 2
    return wide * variance / (variance + a**2 * wide), variance


def transition(
    schedule: DiffusionSchedule,
    t: int,
    config: LangevinConfig,
    *,
    parametrization: Parametrization = "log_snr",
    step_size_0: float = 2e-5,
    posterior_variance: Tensor | None = None,
    marginal: bool = False,
) -> Transition:
    """The chain of level t under a sampler's settings.

    Arguments:
        schedule: The model's noise levels.
        t: 0 ... T - 1.
        config: Sampler, kernel, step scale and decay, reference variance.
        parametrization: Of the energies.
        step_size_0: s_0 of the release's step sizes.
        posterior_variance: w of every coordinate, (1, D), for preconditioned steps.
        marginal: On log p_t whatever the sampler would do.
    """
    linked = config.sampler == "recovery" and bool(schedule.recovery[t + 1] > 0)
    conditional = linked and not marginal
    width: Scalar = 0.0 if posterior_variance is None else posterior_variance
    unit, widest = coordinate_variances(schedule, t, width, conditional=conditional)
    reference: Scalar = widest if config.reference_variance == "sigma_next" else unit
    if parametrization == "release" and config.kernel == "plain":
        unit = release_step_sizes(schedule, step_size_0)[t]
    return Transition(
        schedule,
        t,
        parametrization,
        conditional,
        unit,
        config.step_scale * unit,
        config.step_decay,
        reference,
    )
