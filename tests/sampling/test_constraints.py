"""Samples that keep or start from latents, and samples of exact conditionals.

Clamped groups that move by a rounding are not clamped; a start at the wrong noise level changes
too much or too little; a condition that leaks into weight 0 is no longer the unconditional model.
"""

import math
from typing import get_args

import pytest
import torch
from analytic import Mixture, assert_moments, flat_energy, gaussian_energy

from hebm_sample.config import CHAINLESS, LangevinConfig, SamplerName
from hebm_sample.errors import UserInputError
from hebm_sample.latents import flatten
from hebm_sample.prior.schedule import DiffusionSchedule, log_snr_of
from hebm_sample.sampling import NoiseStreams, sample_prior
from hebm_sample.sampling.constraints import FreeGroups, Given, LatentConstraint

LEVELS = (0.05, 0.324, 0.586, 0.778, 0.898, 0.960, 1.0)
SCHEDULE = DiffusionSchedule(LEVELS)
TOP = SCHEDULE.num_levels
SMALL = ((2, 2, 2), (1, 4, 4), (1, 2, 2))
SAMPLERS = get_args(SamplerName)


def states(energy, config, constraint=None, seeds=(0, 1), shapes=SMALL, **options):
    noise = NoiseStreams(seeds, shapes)
    return list(sample_prior(energy, SCHEDULE, noise, config, given=constraint, **options))


def final(*arguments, **options):
    return states(*arguments, **options)[-1]


def latents(seed=5, batch=2, shapes=SMALL):
    stream = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(batch, *s, generator=stream) for s in shapes)


def coupled(u, level):
    """All groups depend on each other."""
    row = flatten(u)
    return (-0.1 * row.sum(1).square() + row.sin().sum(1) * level.tanh())[:, None]


def equal(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


# ---- clamped groups


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("settings", [{}, {"start": "u_next", "denoise": False}])
@pytest.mark.parametrize("clamped", [(0,), (1, 2), (0, 2), ()])
def test_clamped_groups_come_back_bit_by_bit(sampler, settings, clamped):
    u, config = latents(), LangevinConfig(sampler=sampler, steps=12, **settings)
    found = final(coupled, config, LatentConstraint(u, clamped)).u
    for i in range(len(SMALL)):
        assert torch.equal(found[i], u[i]) == (i in clamped)
    again = final(coupled, config, LatentConstraint(u, clamped)).u
    assert equal(found, again)
    other = final(coupled, config, LatentConstraint(latents(6), clamped)).u
    free = next(i for i in range(len(SMALL)) if i not in clamped)
    assert torch.equal(other[free], found[free]) == (not clamped)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_in_between_clamped_groups_are_at_the_noise_of_their_level(sampler):
    """One eps per image: cum_a u_0 + cum_sigma eps at every level before the last."""
    u = latents()
    config = LangevinConfig(sampler=sampler, steps=12)
    eps = NoiseStreams((0, 1), SMALL).normal()
    seen = []

    def watched(groups, level):
        seen.append((groups[0].detach().clone(), float(level[0])))
        return coupled(groups, level)

    *before, _ = states(watched, config, LatentConstraint(u, (0,)))
    for value, log_snr in seen[:-1]:  # the last call is for the result's own terms
        sigma = math.sqrt(1 / (1 + math.exp(log_snr)))
        expected = math.sqrt(1 - sigma**2) * u[0] + sigma * eps[0]
        assert torch.allclose(value, expected, atol=1e-5)
    levels = {state.level: state for state in before}
    if sampler not in CHAINLESS:
        for t, state in levels.items():
            expected = math.sqrt(1 - LEVELS[t] ** 2) * u[0] + LEVELS[t] * eps[0]
            assert torch.allclose(state.u[0], expected, atol=1e-5)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_without_coupling_the_free_groups_do_not_notice(sampler):
    config = LangevinConfig(sampler=sampler, steps=12)
    alone = final(gaussian_energy(0.3), config).u
    found = final(gaussian_energy(0.3), config, LatentConstraint(latents(), (1,))).u
    for i in (0, 2):
        torch.testing.assert_close(found[i], alone[i], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_with_flat_energies_the_free_groups_are_standard_normal(sampler):
    shapes = ((1, 100, 100), (2, 100, 100))
    config = LangevinConfig(sampler=sampler, steps=60)
    found = final(
        flat_energy, config, LatentConstraint(latents(1, 1, shapes), (0,)), (0,), shapes
    ).u
    assert_moments(found[1], 0.0, 1.0)


def correlated(rho):
    """Exact energies of pairs of numbers, one of each group, with this correlation."""

    def energy(u, level):
        a_squared = torch.sigmoid(level)[:, None]
        x, y = u[0].flatten(1), u[1].flatten(1)
        r = rho * a_squared
        square = (x.square() + y.square() - 2 * r * x * y) / (1 - r.square())
        return (0.5 * (x.square() + y.square() - square)).sum(1, keepdim=True)

    return energy


@pytest.mark.parametrize(
    ("sampler", "follows"), [("annealed", 0.9), ("recovery", 0.7), ("flow", 0.4)]
)
def test_the_free_group_follows_the_clamped_one(sampler, follows):
    """Approximately: it is known through its noise only, so the mean falls short of rho x."""
    shapes = ((1, 60, 60), (1, 60, 60))
    clamped = torch.full((1, 1, 60, 60), 1.5)
    config = LangevinConfig(sampler=sampler, steps=96)
    for rho in (0.8, -0.8):
        constraint = LatentConstraint((clamped, torch.zeros_like(clamped)), (0,))
        y = final(correlated(rho), config, constraint, (0,), shapes).u[1]
        assert follows < float(y.mean()) / (1.5 * rho) < 1.0
        assert 0.36 < float(y.var()) < 0.75  # exactly 1 - rho^2 = 0.36


# ---- starting at a level


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("start", ["flow", "u_next"])
@pytest.mark.parametrize("level", [1, 3, TOP])
def test_a_start_level_spends_all_steps_below_it(sampler, start, level):
    config = LangevinConfig(sampler=sampler, steps=13, start=start)
    reported, seen = [], set()

    def watched(u, log_snr):
        seen.add(round(float(log_snr[0]), 4))
        return coupled(u, log_snr)

    found = states(
        watched, config, LatentConstraint(latents(), (), level), progress=reported.append
    )
    assert sum(reported) == 13
    if sampler in CHAINLESS:
        low, high = log_snr_of(LEVELS[0]), log_snr_of(min(LEVELS[level], 0.99))
        assert high - 1e-3 <= min(seen) and max(seen) <= low + 1e-3
        return
    assert [state.level for state in found] == list(range(level))[::-1]
    # With flow steps the first gradient is taken at the start level itself.
    visited = LEVELS[: level + (start == "flow" and level < TOP)]
    assert seen == {round(log_snr_of(sigma), 4) for sigma in visited}


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("level", [0, -1, TOP + 1])
def test_a_start_level_out_of_range_is_refused_at_once(sampler, level):
    config, noise = LangevinConfig(sampler=sampler, steps=12), NoiseStreams((0,), SMALL)
    constraint = LatentConstraint(latents(), (), level)
    with pytest.raises(UserInputError, match=f"start level is {level}; .* levels 1 to {TOP}"):
        sample_prior(coupled, SCHEDULE, noise, config, given=constraint)


@pytest.mark.parametrize("steps", [1, 3])
def test_too_few_steps_are_counted_as_they_were_typed(steps):
    config, noise = LangevinConfig(steps=steps), NoiseStreams((0,), SMALL)
    constraint = LatentConstraint(latents(), (), 3)
    with pytest.raises(UserInputError, match=rf"steps is {steps};.* at least 4"):
        sample_prior(coupled, SCHEDULE, noise, config, given=constraint)


@pytest.mark.parametrize("level", [1, 2, 5])
def test_the_start_is_the_diffused_value(level):
    """The flow stands still where F = 0, so it returns where it began."""
    u, eps = latents(), NoiseStreams((0, 1), SMALL).normal()
    config = LangevinConfig(sampler="flow", steps=4)
    sigma = LEVELS[level]
    for temperature in (0.0, 1.0):
        config = LangevinConfig(sampler="flow", steps=4, temperature=temperature)
        found = final(flat_energy, config, LatentConstraint(u, (2,), level)).u
        for i in (0, 1):
            expected = math.sqrt(1 - sigma**2) * u[i] + temperature * sigma * eps[i]
            torch.testing.assert_close(found[i], expected, rtol=1e-5, atol=1e-6)
        assert torch.equal(found[2], u[2])


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("start", ["flow", "u_next"])
def test_low_starts_stay_near(sampler, start):
    config = LangevinConfig(sampler=sampler, steps=24, start=start, step_scale=0.5)
    u, moved = latents(), []
    for level in (1, 2, 4, TOP):
        found = final(coupled, config, LatentConstraint(u, (), level)).u
        moved.append(float((flatten(found) - flatten(u)).norm()))
    assert moved == sorted(moved) and moved[0] < 0.5 * moved[-1]


# ---- no constraint


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("start", ["flow", "u_next"])
def test_nothing_clamped_is_the_sampler_itself(sampler, start):
    config = LangevinConfig(sampler=sampler, steps=12, start=start)
    plain = final(coupled, config).u
    assert equal(final(coupled, config, LatentConstraint(latents(), ())).u, plain)
    assert equal(final(coupled, config, LatentConstraint(latents(), (), TOP)).u, plain)


def test_free_groups_by_themselves():
    eps, u = latents(1), latents(2)
    groups = FreeGroups(None, eps)
    assert groups.free == [0, 1, 2] and groups.full(u, 0.3) is u
    fixed = groups.energy(coupled, lambda level: level).at(1.5)
    level = torch.full((len(u[0]),), 1.5, dtype=u[0].dtype)
    assert torch.equal(fixed(u), coupled(u, level))
    groups = FreeGroups(LatentConstraint(u, (1,)), eps)
    assert groups.free == [0, 2] and equal(groups.select(eps), (eps[0], eps[2]))
    sigma = torch.tensor([0.3, 0.8])
    each = groups.full((eps[0], eps[2]), sigma)
    for row, value in enumerate((0.3, 0.8)):
        one = groups.full((eps[0], eps[2]), value)
        assert torch.allclose(each[1][row], one[1][row], atol=1e-6)
        assert torch.equal(each[0], eps[0]) and torch.equal(each[2], eps[2])


# ---- conditionals


NUMBERS = ((1, 70, 70),)
# Far enough apart that every sample has one component's sign.
MIXTURE = Mixture((-2.0, 0.0, 2.0), (0.2, 0.3, 0.5), 0.05)


def draw(sampler, asked, steps=60):
    config = LangevinConfig(sampler=sampler, steps=steps)
    energy = MIXTURE.every_number(asked)
    # At 0.99 the flow would start from N(0, I) where the mean is still 0.14 of the data's.
    return flatten(final(energy, config, None, (0,), NUMBERS, sigma_high=0.999).u)[0]


def shares(x):
    return torch.stack([((x - m).abs() < 1).double().mean() for m in MIXTURE.means])


@pytest.mark.parametrize("sampler", ["recovery", "flow"])
@pytest.mark.parametrize("part", [0, 1, 2])
def test_weight_one_samples_the_asked_component(sampler, part):
    """The conditional is a Gaussian, for which the sampler's law is known."""
    found = draw(sampler, ({part}, 1.0), steps=48)
    exact = gaussian_energy(0.05, float(MIXTURE.means[part]))
    config = LangevinConfig(sampler=sampler, steps=48)
    expected = flatten(final(exact, config, None, (0,), NUMBERS, sigma_high=0.999).u)[0]
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    assert float(found.mean()) == pytest.approx(float(MIXTURE.means[part]), abs=0.06)
    assert shares(found)[part] > 0.995


@pytest.mark.parametrize("sampler", ["recovery", "flow"])
@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (None, (0.2, 0.3, 0.5)),
        (({0, 1}, 1.0), (0.4, 0.6, 0.0)),
        (({0, 2}, 1.0), (2 / 7, 0.0, 5 / 7)),
    ],
    ids=["open", "or", "not"],
)
def test_shares_of_the_components(sampler, asked, expected):
    found = shares(draw(sampler, asked))
    assert found.sum() > 0.95
    assert (found - torch.tensor(expected, dtype=torch.float64)).abs().max() < 0.04


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_weight_zero_is_unconditional_in_every_bit(sampler):
    plain = draw(sampler, None, steps=12)
    assert torch.equal(draw(sampler, ({1}, 0.0), steps=12), plain)
    everything = draw(sampler, ({0, 1, 2}, 3.0), steps=12)
    torch.testing.assert_close(everything, plain, rtol=1e-4, atol=1e-4)
    assert not torch.equal(draw(sampler, ({1}, 0.5), steps=12), plain)


@pytest.mark.parametrize("sampler", ["recovery", "flow"])
def test_more_weight_finds_it_more_often(sampler):
    found = [float(shares(draw(sampler, ({1}, w), steps=24))[1]) for w in (0.0, 0.3, 0.6, 1.0)]
    assert found == sorted(found) and found[0] < 0.4 and found[-1] > 0.95


def test_the_earlier_name_makes_the_same_constraint():
    u = latents()
    assert Given(u, kept=(1,), start_level=2) == LatentConstraint(u, clamped=(1,), start_level=2)
