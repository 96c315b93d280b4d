"""The schedule's identities and the release's tables.

A wrong coefficient would not crash anything: every chain would aim at a slightly different
density.
"""

import math

import pytest
import torch

from hebm_sample.errors import UserInputError
from hebm_sample.latents import per_example
from hebm_sample.prior.schedule import (
    DiffusionSchedule,
    log_snr_levels,
    log_snr_of,
    release_levels,
    release_step_sizes,
)

LEVELS = (0.05, 0.324, 0.586, 0.778, 0.898, 0.960, 1.0)

RELEASE = {
    3: ((0.99995, 0.72213, 0.38627, 0.02278), (0.99995, 0.72210, 0.27892, 0.00635)),
    4: (
        (0.99995, 0.86371, 0.65579, 0.49746, 0.02255),
        (0.99995, 0.86366, 0.56638, 0.28175, 0.00635),
    ),
    6: (
        (0.99995, 0.94617, 0.85629, 0.77480, 0.70092, 0.63396, 0.02278),
        (0.99995, 0.94612, 0.81015, 0.62770, 0.43997, 0.27892, 0.00635),
    ),
}


@pytest.mark.parametrize("num_levels", RELEASE)
def test_release_tables(num_levels):
    schedule = DiffusionSchedule(release_levels(num_levels))
    a, cum_a = RELEASE[num_levels]
    assert schedule.num_levels == num_levels
    assert schedule.a.tolist() == pytest.approx(a, abs=6e-6)
    assert schedule.cum_a.tolist() == pytest.approx(cum_a, abs=6e-6)


def test_release_without_diffusion():
    schedule = DiffusionSchedule(release_levels(1))
    assert schedule.cum_a.tolist() == pytest.approx([0.99995, 0.00635], abs=6e-6)
    assert schedule.recovery.tolist() == [1.0, 0.0]


@pytest.mark.parametrize("levels", [LEVELS, release_levels(3), release_levels(6), (0.2, 0.9)])
def test_identities(levels):
    s = DiffusionSchedule(levels)
    one = torch.ones(len(levels), dtype=torch.float64)
    torch.testing.assert_close(s.a**2 + s.sigma**2, one)
    torch.testing.assert_close(s.cum_a**2 + s.cum_sigma**2, one)
    torch.testing.assert_close(s.a.cumprod(0), s.cum_a)
    assert s.a[0] == s.cum_a[0]
    assert (s.log_snr.diff() < 0).all()
    assert s.recovery.tolist() == [1.0] * (len(levels) - 1) + [0.0]


def test_pure_noise_is_exact():
    s = DiffusionSchedule(LEVELS)
    assert (s.cum_a[-1], s.a[-1], s.sigma[-1]) == (0.0, 0.0, 1.0)
    assert s.log_snr[-1] == -math.inf


def test_tables_keep_double_precision_and_stay_out_of_the_state():
    s = DiffusionSchedule(LEVELS).half()
    assert s.cum_a.dtype == torch.float64
    assert s.state_dict() == {}


def test_diffuse_one_level_and_a_level_an_example():
    s = DiffusionSchedule(LEVELS)
    u0 = (torch.randn(3, 2, 4, 4), torch.randn(3, 1, 8, 8))
    eps = tuple(torch.randn_like(g) for g in u0)
    t = torch.tensor([0, 3, 6])
    mixed = s.diffuse(u0, t, eps)
    for row, level in enumerate(t.tolist()):
        one = s.diffuse(u0, level, eps)
        for g, h, clean, noise in zip(mixed, one, u0, eps, strict=True):
            torch.testing.assert_close(g[row], h[row])
            expected = float(s.cum_a[level]) * clean + float(s.cum_sigma[level]) * noise
            torch.testing.assert_close(h, expected)


def test_one_step_of_the_chain_composes_to_diffuse():
    """The variance of a u_t + sigma eps agrees with the cumulative coefficients."""
    s = DiffusionSchedule(LEVELS)
    through = s.a[1:] ** 2 * s.cum_sigma[:-1] ** 2 + s.sigma[1:] ** 2
    torch.testing.assert_close(through, s.cum_sigma[1:] ** 2)


def test_log_snr_levels_are_even():
    levels = log_snr_levels(6, 0.05, 0.96)
    snr = [log_snr_of(x) for x in levels[:-1]]
    gaps = [a - b for a, b in zip(snr, snr[1:], strict=False)]
    assert gaps == pytest.approx([gaps[0]] * 5)
    assert (levels[0], levels[-2], levels[-1]) == (0.05, 0.96, 1.0)
    assert levels == pytest.approx((0.05, 0.1166, 0.2566, 0.5, 0.7923, 0.96, 1.0), abs=0.1)
    assert log_snr_levels(1, 0.05, 0.96) == (0.05, 1.0)


def test_release_step_sizes():
    s = DiffusionSchedule(release_levels(3))
    sizes = release_step_sizes(s, 2e-5)
    assert len(sizes) == 3
    for t, size in enumerate(sizes):
        expected = 2e-5 * s.levels[t] / s.levels[0] * float(s.sigma[t + 1]) ** 2
        assert size == pytest.approx(expected, rel=1e-12)
    assert sizes[0] == pytest.approx(2e-5 * (1 - 0.72213**2), rel=1e-4)


def test_per_example_broadcasts():
    assert per_example(2.0, torch.zeros(3, 1, 2, 2)) == 2.0
    assert per_example(torch.ones(3), torch.zeros(3, 1, 2, 2)).shape == (3, 1, 1, 1)


@pytest.mark.parametrize("levels", [(0.5,), (0.5, 0.4), (0.0, 0.5), (0.5, 1.1), (0.5, 0.5)])
def test_bad_levels(levels):
    with pytest.raises(UserInputError, match=r"levels are .* rising, in \(0, 1\]"):
        DiffusionSchedule(levels)


def test_bad_spacing():
    with pytest.raises(UserInputError, match="cannot be spaced"):
        log_snr_levels(4, 0.5, 0.4)
    with pytest.raises(UserInputError, match="1 to 500 levels; asked for 0"):
        release_levels(0)
