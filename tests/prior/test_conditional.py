"""Log densities against closed forms and finite differences, in float64.

The chains follow the gradient of these and nothing else: a lost factor of two would still give
images.
"""

import pytest
import torch
from analytic import flat_energy, gaussian_energy

from hebm_sample.latents import flatten
from hebm_sample.prior.density import (
    ConditionalEBM,
    conditional_at,
    marginal_at,
    net_level,
    row_norm,
)
from hebm_sample.prior.schedule import DiffusionSchedule

SCHEDULE = DiffusionSchedule((0.05, 0.5, 0.9, 1.0))
SHAPES = ((2, 1, 1), (1, 2, 2))


def latents(seed, batch=3):
    rng = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(batch, *s, generator=rng, dtype=torch.float64) for s in SHAPES)


def wavy_energy(u, level):
    """Something without a closed form that couples groups and reads the level."""
    row = flatten(u)
    first = torch.sin(row.sum(1)) * level.tanh()
    return torch.stack([first, row.cos().prod(1)], dim=1)


def score(density, u):
    leaves = tuple(g.clone().requires_grad_() for g in u)
    return torch.autograd.grad(density(leaves).sum(), leaves)


def test_shapes():
    u = latents(0)
    density = conditional_at(wavy_energy, SCHEDULE, 1, latents(1))
    assert density.terms(u).shape == (3, 2)
    assert density(u).shape == (3,)
    assert flatten(u).shape == (3, 6)
    torch.testing.assert_close(row_norm(flatten(u)), flatten(u).norm(dim=1))


@pytest.mark.parametrize("t", [0, 1, 2])
def test_conditional_score_closed_form(t):
    v, mean = 0.3, 0.7
    u, u_next = latents(2), latents(3)
    grads = score(conditional_at(gaussian_energy(v, mean), SCHEDULE, t, u_next), u)
    cum_a, sigma = float(SCHEDULE.cum_a[t]), float(SCHEDULE.sigma[t + 1])
    a, r = float(SCHEDULE.a[t + 1]), float(SCHEDULE.recovery[t + 1])
    total = cum_a**2 * v + float(SCHEDULE.cum_sigma[t]) ** 2
    for g, nxt, grad in zip(u, u_next, grads, strict=True):
        expected = -(g - cum_a * mean) / total + r * a * (nxt - a * g) / sigma**2
        torch.testing.assert_close(grad, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("t", [0, 1])
def test_conditional_score_finite_differences(t):
    density = conditional_at(wavy_energy, SCHEDULE, t, latents(5))
    torch.autograd.gradcheck(
        lambda *u: density(u), tuple(g.requires_grad_() for g in latents(4)), atol=1e-7
    )


@pytest.mark.parametrize("t", [1, 2, torch.tensor([0, 2, 1])])
def test_the_gradient_in_closed_form_is_autograds(t):
    u = latents(4)
    for density in (
        conditional_at(wavy_energy, SCHEDULE, t, latents(5)),
        marginal_at(wavy_energy, SCHEDULE, t),
    ):
        found = density.evaluate(u)
        slope = flatten(score(lambda u, density=density: density.terms(u).sum(1), u))
        torch.testing.assert_close(found.slope, slope)
        torch.testing.assert_close(found.terms, density.terms(u))
        expected = flatten(score(lambda u, density=density: density(u), u))
        torch.testing.assert_close(found.score, expected, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(found.value, density(u))
        value, gradient = density.value_and_score(u)
        assert torch.equal(value, found.value) and torch.equal(gradient, found.score)


def test_conditional_is_marginal_plus_link():
    u, u_next = latents(6), latents(7)
    link = conditional_at(wavy_energy, SCHEDULE, 0, u_next)(u) - marginal_at(
        wavy_energy, SCHEDULE, 0
    )(u)
    a, sigma = float(SCHEDULE.a[1]), float(SCHEDULE.sigma[1])
    expected = -(flatten(u_next) - a * flatten(u)).square().sum(1) / (2 * sigma**2)
    torch.testing.assert_close(link, expected)


def test_top_level_has_no_link():
    u = latents(8)
    top = conditional_at(wavy_energy, SCHEDULE, 2, latents(9))(u)
    torch.testing.assert_close(top, marginal_at(wavy_energy, SCHEDULE, 2)(u))


def test_a_level_an_example():
    u, u_next, t = latents(10), latents(11), torch.tensor([0, 2, 1])
    mixed = conditional_at(wavy_energy, SCHEDULE, t, u_next)(u)
    for row, level in enumerate(t.tolist()):
        one = conditional_at(wavy_energy, SCHEDULE, level, u_next)(u)
        torch.testing.assert_close(mixed[row], one[row], rtol=1e-6, atol=1e-6)


def test_net_level():
    assert net_level(SCHEDULE, 1, "log_snr") == pytest.approx(1.0986, abs=1e-4)
    assert net_level(SCHEDULE, 2, "release") == 2.0
    t = torch.tensor([0, 1])
    torch.testing.assert_close(net_level(SCHEDULE, t, "release"), torch.tensor([0.0, 1.0]))
    torch.testing.assert_close(net_level(SCHEDULE, t, "log_snr"), SCHEDULE.log_snr[:2].float())


def test_no_gradient_reaches_u_next():
    u_next = tuple(g.requires_grad_() for g in latents(12))
    density = ConditionalEBM(flat_energy, 0.0, u_next, 0.9, 0.4)
    u = tuple(g.requires_grad_() for g in latents(13))
    density(u).sum().backward()
    assert all(g.grad is None for g in u_next) and all(g.grad is not None for g in u)
