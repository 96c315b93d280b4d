"""The samplers on energies of known answer; the promises about seeds, gradients and errors.

A sampler with a wrong variance at one level passes it on to all lower ones and to the images'
contrast.
"""

import math
from dataclasses import replace
from typing import get_args

import pytest
import torch
from analytic import assert_moments, chain_variance, flat_energy, flow_variance, gaussian_energy

from hebm_sample.config import LangevinConfig, SamplerName
from hebm_sample.errors import NonFiniteSampleError, UserInputError
from hebm_sample.prior.schedule import DiffusionSchedule, release_levels, release_step_sizes
from hebm_sample.sampling import NoiseStreams, sample_prior
from hebm_sample.sampling.constraints import LatentConstraint
from hebm_sample.sampling.probability_flow import flow_levels, path_of
from hebm_sample.sampling.sample import (
    gradients_per_level,
)
from hebm_sample.sampling.step_size import coordinate_variances, transition

LEVELS = (0.05, 0.324, 0.586, 0.778, 0.898, 0.960, 1.0)
SCHEDULE = DiffusionSchedule(LEVELS)
WIDE = ((20_000, 1, 1), (1, 100, 100))
SMALL = ((2, 2, 2), (1, 4, 4))
SAMPLERS = get_args(SamplerName)


def final(energy, config, seeds=(0,), shapes=WIDE, schedule=SCHEDULE, **options):
    *_, state = sample_prior(energy, schedule, NoiseStreams(seeds, shapes), config, **options)
    assert state.level == 0
    return state


def row(u):
    return torch.cat([g.flatten(1) for g in u], dim=1)


class Wavy(torch.nn.Module):
    """Small energies with parameters, reading all groups and the level."""

    def __init__(self, size=24, terms=2):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.net = torch.nn.Sequential(
                torch.nn.Linear(size + 1, 16), torch.nn.SiLU(), torch.nn.Linear(16, terms)
            )
        self.gradients = 0

    def forward(self, u, level):
        self.gradients += torch.is_grad_enabled()
        return self.net(torch.cat([row(u), level[:, None] / 8], dim=1))


# ---- laws


@pytest.mark.parametrize("sampler", ["recovery", "annealed"])
@pytest.mark.parametrize("variance", [0.02, 0.1, 1.0, 10.0])
@pytest.mark.parametrize(
    "settings", [{}, {"kernel": "plain", "step_scale": 0.5}, {"start": "u_next"}]
)
def test_exact_energies_give_the_recursion(sampler, variance, settings):
    config = LangevinConfig(**{"sampler": sampler, "steps": 24, "step_scale": 1.5, **settings})
    u = row(final(gaussian_energy(variance), config).u)
    assert_moments(u, 0.0, chain_variance(variance, SCHEDULE, config))


@pytest.mark.parametrize("early_share", [0.0, 5.0])
def test_exact_energies_with_uneven_levels(early_share):
    even = LangevinConfig(steps=26, step_scale=1.5, start="u_next")
    config = replace(even, early_share=early_share)
    variances = [chain_variance(0.1, SCHEDULE, c) for c in (config, even)]
    assert abs(variances[0] - variances[1]) > 0.01  # more than what is allowed below
    u = row(final(gaussian_energy(0.1), config).u)
    assert_moments(u, 0.0, variances[0])


@pytest.mark.parametrize("sampler", ["recovery", "annealed"])
@pytest.mark.parametrize("clamped", [(), (0,)])
def test_a_preconditioned_step_draws_a_gaussian_at_once(sampler, clamped):
    """Where u is Gaussian and an image says nothing of it, w is its variance and B_t that of
    every density; a step of 2 B_t draws it, whatever came before.
    """
    u = tuple(torch.ones(1, *s) for s in WIDE)
    constraint = LatentConstraint(u, clamped=clamped) if clamped else None
    config = LangevinConfig(
        sampler=sampler,
        steps=6,
        step_scale=2.0,
        reference_variance="posterior",
        start="u_next",
        denoise=False,
        precondition=True,
    )
    widths = tuple(torch.full((1, *s), v) for s, v in zip(WIDE, (0.3, 2.0), strict=True))

    def energy(u, level):
        pairs = zip(u, (0.3, 2.0), strict=True)
        return torch.cat([gaussian_energy(v)((g,), level) for g, v in pairs], dim=1)

    state = final(energy, config, posterior_variance=widths, given=constraint)
    for i, v in enumerate((0.3, 2.0)):
        if i not in clamped:
            total = (1 - LEVELS[0] ** 2) * v + LEVELS[0] ** 2
            assert_moments(state.u[i], 0.0, total)


def test_preconditioning_lies_between_the_least_and_the_reference_variance():
    for conditional, levels in ((True, range(5)), (False, range(6))):
        for t in levels:
            unit, reference = variances(t, conditional=conditional)
            units = [
                coordinate_variances(SCHEDULE, t, w, conditional=conditional)[0]
                for w in (0.0, 0.1, 0.5, 1.0)
            ]
            assert units == sorted(units) and units[0] == unit
            assert units[-1] == pytest.approx(reference)
    with pytest.raises(UserInputError, match="precondition needs the posterior's variance"):
        final(flat_energy, LangevinConfig(precondition=True), shapes=SMALL)


@pytest.mark.parametrize("settings", [{"momentum": 0.6}, {"momentum": 0.6, "metropolis": True}])
@pytest.mark.parametrize("sampler", ["recovery", "annealed"])
def test_momentum_and_metropolis_without_energies(sampler, settings):
    """Every density is a Gaussian of its chain's reference variance, so nothing is refused."""
    config = LangevinConfig(sampler=sampler, steps=60, **settings)
    noise = NoiseStreams([0], WIDE)
    *states, last = sample_prior(flat_energy, SCHEDULE, noise, config)
    assert_moments(row(last.u), 0.0, 1.0)
    assert all(float(state.info.acceptance.min()) > 0.9 for state in (*states, last))


@pytest.mark.parametrize("variance", [0.1, 1.0])
def test_longer_chains_with_momentum_return_the_variance_of_the_data(variance):
    config = LangevinConfig(steps=192, momentum=0.5)
    u = row(final(gaussian_energy(variance), config).u)
    assert float(u.var()) / variance == pytest.approx(1.0, abs=0.06)


@pytest.mark.parametrize("variance", [0.02, 0.1, 1.0, 10.0])
def test_exact_energies_through_the_flow(variance):
    config = LangevinConfig(sampler="flow", steps=20)
    u = row(final(gaussian_energy(variance), config).u)
    assert_moments(u, 0.0, flow_variance(variance, flow_levels(20, 0.05, 0.99)))


# The exact recursion's largest |output / target variance - 1| is 0.06, 0.08, 0.15 and 0.11. The
# flow pays 0.15 for starting the widest data from N(0, I) at 0.99, and 0.11 for replacing u_0 by
# its mean at 0.05.
@pytest.mark.parametrize(
    ("sampler", "settings", "bound"),
    [
        ("recovery", {"steps": 48, "step_scale": 1.5}, 0.08),
        ("annealed", {"steps": 48, "step_scale": 2.0}, 0.10),
        ("flow", {"steps": 20}, 0.17),
        ("flow", {"steps": 200, "sigma_high": 0.999}, 0.12),
    ],
)
@pytest.mark.parametrize("variance", [0.02, 0.1, 1.0, 10.0])
def test_exact_energies_return_the_variance_of_the_data(sampler, settings, bound, variance):
    settings = dict(settings)
    options = {"sigma_high": settings.pop("sigma_high")} if "sigma_high" in settings else {}
    config = LangevinConfig(sampler=sampler, **settings)
    u = row(final(gaussian_energy(variance), config, **options).u)
    assert float(u.var()) / variance == pytest.approx(1.0, abs=bound)


def test_the_mean_of_the_data_is_found():
    """Deterministic chains end at the mode, which for a Gaussian is its mean."""
    for sampler in ("recovery", "annealed"):
        config = LangevinConfig(sampler=sampler, steps=240, temperature=0.0)
        u = row(final(gaussian_energy(0.1, mean=0.8), config).u)
        assert torch.allclose(u, torch.tensor(0.8), atol=0.02)


@pytest.mark.parametrize(("sampler", "steps"), [("recovery", 240), ("annealed", 24), ("flow", 20)])
def test_without_energies_the_prior_is_standard_normal(sampler, steps):
    u = row(final(flat_energy, LangevinConfig(sampler=sampler, steps=steps)).u)
    assert_moments(u, 0.0, 1.0)


def test_temperature_scales_every_draw():
    for sampler in SAMPLERS:
        config = LangevinConfig(sampler=sampler, steps=24, temperature=0.5)
        cold = row(final(gaussian_energy(0.5), config).u)
        warm = row(
            final(
                gaussian_energy(0.5), LangevinConfig(sampler=sampler, steps=24, temperature=1.0)
            ).u
        )
        torch.testing.assert_close(cold, 0.5 * warm, rtol=1e-4, atol=1e-5)
        zero = LangevinConfig(sampler=sampler, steps=24, temperature=0.0)
        still = row(final(Wavy(), zero, seeds=(1, 2), shapes=SMALL).u)
        torch.testing.assert_close(still[0], still[1], rtol=1e-6, atol=1e-6)


# ---- seeds


@pytest.mark.parametrize("sampler", [*SAMPLERS, "metropolis"])
def test_a_seed_does_not_depend_on_the_batch(sampler):
    config = LangevinConfig(steps=24, momentum=0.5, metropolis=True)
    if sampler != "metropolis":
        config = LangevinConfig(sampler=sampler, steps=12)
    energy = Wavy()
    together = row(final(energy, config, seeds=(3, 1, 4, 15), shapes=SMALL).u)
    for index, seed in enumerate((3, 1, 4, 15)):
        alone = row(final(energy, config, seeds=(seed,), shapes=SMALL).u)[0]
        torch.testing.assert_close(together[index], alone, rtol=1e-5, atol=1e-5)
    shuffled = row(final(energy, config, seeds=(15, 4, 1, 3), shapes=SMALL).u)
    torch.testing.assert_close(shuffled.flip(0), together, rtol=1e-5, atol=1e-5)
    again = row(final(energy, config, seeds=(3, 1, 4, 15), shapes=SMALL).u)
    assert torch.equal(again, together)
    assert (torch.cdist(together, together) + torch.eye(4) > 0.1).all()


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_global_random_state_is_untouched(sampler):
    before = torch.get_rng_state()
    final(flat_energy, LangevinConfig(sampler=sampler, steps=12), shapes=SMALL)
    assert torch.equal(torch.get_rng_state(), before)


# ---- gradients, states, modes


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("steps", [6, 13, 48])
@pytest.mark.parametrize("denoise", [True, False])
@pytest.mark.parametrize("start", ["flow", "u_next"])
@pytest.mark.parametrize("kind", [{}, {"momentum": 0.5}, {"metropolis": True}])
def test_exactly_as_many_gradients_as_steps(sampler, steps, denoise, start, kind):
    config = LangevinConfig(sampler=sampler, steps=steps, denoise=denoise, start=start, **kind)
    energy, reported = Wavy(), []
    final(energy, config, shapes=SMALL, progress=reported.append)
    assert energy.gradients == sum(reported) == steps
    assert set(reported) == {1}


def test_progress_comes_while_it_happens():
    reported = []
    noise = NoiseStreams([0], SMALL)
    states = sample_prior(flat_energy, SCHEDULE, noise, LangevinConfig(), progress=reported.append)
    counts = [(state.level, len(reported)) for state in states]
    assert counts == [(5, 8), (4, 16), (3, 24), (2, 32), (1, 40), (0, 48)]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_states(sampler):
    config = LangevinConfig(sampler=sampler, steps=12)
    energy, noise = Wavy(), NoiseStreams([0, 1], SMALL)
    states = list(sample_prior(energy, SCHEDULE, noise, config))
    count = 6 if config.runs_chains else len(path_of(config, SCHEDULE, 0.99)) - 1
    assert [state.level for state in states] == list(reversed(range(count)))
    for state in states:
        assert [tuple(g.shape) for g in state.u] == [(2, *s) for s in SMALL]
        assert state.terms.shape == (2, 2)
        assert all(x.shape[1:] == (2,) for x in state.info)
        assert not any(x.requires_grad for x in (*state.u, state.terms, *state.info))
    last = states[-1]
    level = SCHEDULE.log_snr[0].float().expand(2)
    torch.testing.assert_close(last.terms, energy(last.u, level).detach())
    if config.runs_chains:
        level = SCHEDULE.log_snr[3].float().expand(2)
        torch.testing.assert_close(states[2].terms, energy(states[2].u, level).detach())


def test_denoise_is_the_step_to_no_noise():
    """u_0 = u_t + (cum_sigma^2 / cum_a) grad F: for a Gaussian a known factor on the same u_t."""
    kept = final(
        gaussian_energy(0.3), LangevinConfig(steps=11, denoise=False), schedule=one_level()
    )
    clean = final(gaussian_energy(0.3), LangevinConfig(steps=12), schedule=one_level())
    total = 0.96 * 0.3 + 0.04
    factor = 1 + 0.04 / math.sqrt(0.96) * (1 - 1 / total)
    torch.testing.assert_close(row(clean.u), factor * row(kept.u), rtol=1e-4, atol=1e-5)


def one_level():
    return DiffusionSchedule((0.2, 1.0))


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_any_autograd_mode(sampler, mode):
    energy, config = Wavy(), LangevinConfig(sampler=sampler, steps=12)
    expected = row(final(energy, config, shapes=SMALL).u)
    with mode():
        state = final(energy, config, shapes=SMALL)
        assert torch.equal(row(state.u), expected)
    assert not state.u[0].is_inference() and not state.u[0].requires_grad
    assert all(p.grad is None and p.requires_grad for p in energy.parameters())


def test_the_callers_mode_holds_between_levels():
    states = sample_prior(flat_energy, SCHEDULE, NoiseStreams([0], SMALL), LangevinConfig())
    with torch.inference_mode():
        next(states)
        assert torch.is_inference_mode_enabled()
    next(states)
    assert torch.is_grad_enabled()


def test_double_precision():
    noise = NoiseStreams([0], SMALL, dtype=torch.float64)
    *_, state = sample_prior(gaussian_energy(0.5), SCHEDULE, noise, LangevinConfig())
    assert state.u[0].dtype == state.terms.dtype == torch.float64


def test_budget():
    assert gradients_per_level(48, 6) == [8] * 6
    assert gradients_per_level(15, 6) == [3, 3, 3, 2, 2, 2]
    assert gradients_per_level(30, 3, early_share=0) == [19, 10, 1]
    assert gradients_per_level(22, 3, before=1, early_share=4) == [3, 7, 11]
    with pytest.raises(UserInputError, match="steps is 5; this sampler visits 6 levels"):
        gradients_per_level(5, 6)
    assert final(flat_energy, LangevinConfig(sampler="flow", steps=1), shapes=SMALL).level == 0


def variances(t, *, conditional, reference="sigma_next"):
    config = LangevinConfig(reference_variance=reference)
    found = transition(SCHEDULE, t, config, marginal=not conditional)
    assert found.conditional is conditional
    assert found.step_size == config.step_scale * found.unit
    return found.unit, found.reference_variance


def test_the_variances_of_a_transition():
    for t in range(5):
        unit, reference = variances(t, conditional=True)
        precision = 1 / LEVELS[t] ** 2 + float(SCHEDULE.a[t + 1] / SCHEDULE.sigma[t + 1]) ** 2
        assert unit == pytest.approx(1 / precision)  # of u_t given u_{t+1} and u_0
        assert unit <= reference <= 1
        assert variances(t, conditional=True, reference="posterior") == (unit, unit)
    unit, reference = variances(5, conditional=False)
    assert (unit, reference) == (pytest.approx(0.96**2), 1.0)


# ---- the release's parametrisation


def test_release_levels_and_steps():
    schedule, seen = DiffusionSchedule(release_levels(3)), set()

    def energy(u, level):
        seen.update(level.tolist())
        return torch.zeros(len(level), 1)

    config = LangevinConfig(kernel="plain", start="u_next", denoise=False, steps=3, step_scale=1.0)
    noise = NoiseStreams([0], WIDE)
    states = list(
        sample_prior(energy, schedule, noise, config, parametrization="release", step_size_0=1e-3)
    )
    assert seen == {0.0, 1.0, 2.0}
    s = release_step_sizes(schedule, 1e-3)[1]
    a, sigma = float(schedule.a[2]), float(schedule.sigma[2])
    u_next, u = row(states[0].u), row(states[1].u)
    drift = -u_next + a * (u_next - a * u_next) / sigma**2
    assert_moments(u - u_next - s / 2 * drift, 0.0, s)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sampler": "flow"}, "sampler='flow' needs energies conditioned on log SNR.*'recovery'"),
        ({"sampler": "annealed"}, "sampler='annealed' needs"),
        ({"start": "flow", "denoise": False}, "start='flow' needs .* use start='u_next'"),
        ({"start": "u_next", "denoise": True}, "denoise=True needs .* use denoise=False"),
    ],
)
def test_release_cannot_flow(settings, message):
    with pytest.raises(UserInputError, match=message):
        sample_prior(
            flat_energy,
            SCHEDULE,
            NoiseStreams([0], SMALL),
            LangevinConfig(**settings),
            parametrization="release",
        )


# ---- failures


@pytest.mark.parametrize(("sampler", "level", "step"), [("recovery", 2, 8), ("flow", 6, 6)])
def test_non_finite_names_seed_level_and_step(sampler, level, step):
    """The second row's energies break where log SNR passes 0.5."""

    def energy(u, log_snr):
        broken = (log_snr > 0.5) & (torch.arange(len(log_snr)) == 1)
        return (row(u).sum(1) * torch.where(broken, torch.nan, 0.0))[:, None]

    config = LangevinConfig(sampler=sampler, steps=12)
    with pytest.raises(NonFiniteSampleError, match="seed 11 became non-finite at level") as caught:
        final(energy, config, seeds=(10, 11, 12), shapes=SMALL)
    assert (caught.value.seeds, caught.value.level) == ([11], level)
    assert caught.value.step == step
