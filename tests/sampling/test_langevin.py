"""The Langevin kernel's law, drift and side effects.

Noise too small by sqrt(2), or a gradient counted twice, still gives plausible samples; only their
law tells.
"""

import math

import pytest
import torch
from analytic import assert_moments, standard_normal, stationary_variance

from hebm_sample.errors import UserInputError
from hebm_sample.prior.density import value_and_grad
from hebm_sample.sampling.chain import run_chain
from hebm_sample.sampling.langevin import langevin_step, noise_scale
from hebm_sample.sampling.noise import NoiseStreams

WIDE = ((50_000, 1, 1),)


def gaussian(variance, mean=0.0):
    return lambda u: -0.5 * sum((g - mean).flatten(1).square().sum(1) for g in u) / variance


def check_law(kernel, target, step, reference, noise_factor=1.0, mean=0.5):
    """Run a chain to stationarity; compare with the discretised law, not with the target's."""
    noise = NoiseStreams([3], WIDE)
    u, _ = run_chain(
        noise.normal(),
        gaussian(target, mean),
        lambda: noise.normal(noise_factor),
        num_steps=60,
        step_size=step,
        kernel=kernel,
        reference_variance=reference,
    )
    law = stationary_variance(target, step, None if kernel == "plain" else reference)
    assert_moments(u[0], mean, law)
    return law


CASES = [
    ("plain", 1.0, 0.6, 1.0),
    ("plain", 0.3, 0.5, 1.0),
    ("corrected", 0.7, 0.7, 0.7),
    ("corrected", 0.7, 1.4, 0.7),
    ("corrected", 0.4, 0.4, 1.0),
]


@pytest.mark.parametrize(("kernel", "target", "step", "reference"), CASES)
def test_stationary_law(kernel, target, step, reference):
    check_law(kernel, target, step, reference)


@pytest.mark.parametrize(("kernel", "target", "step", "reference"), CASES)
def test_the_check_notices_noise_too_small(kernel, target, step, reference):
    with pytest.raises(AssertionError, match="variance is off"):
        check_law(kernel, target, step, reference, noise_factor=1 / math.sqrt(2))


def test_laws_in_closed_form():
    assert check_law("plain", 1.0, 1.0, 1.0) == pytest.approx(1 / (1 - 1 / 4))
    assert check_law("corrected", 0.5, 0.8, 0.5) == pytest.approx(0.5)


def test_zero_gradient_gives_the_noise_variance():
    noise = NoiseStreams([0], WIDE)
    still = (torch.zeros(1, *WIDE[0]),)
    for kernel, variance in (("plain", 0.8), ("corrected", 0.8 * (1 - 0.8 / (4 * 0.9)))):
        u, _ = langevin_step(
            still,
            lambda u: 0.0 * u[0].flatten(1).sum(1),
            0.8,
            noise.normal(),
            kernel=kernel,
            reference_variance=0.9,
        )
        assert_moments(u[0], 0.0, variance)


def test_twice_the_reference_draws_independently():
    """s = 2C: the old position does not matter, and eps comes through as sqrt(C) eps."""
    u, eps = (torch.full((2, 1, 1, 1), 9.0),), (torch.randn(2, 1, 1, 1),)
    moved, _ = langevin_step(u, gaussian(0.5), 1.0, eps, reference_variance=0.5)
    torch.testing.assert_close(moved[0], math.sqrt(0.5) * eps[0])


def test_zero_noise_gives_the_drift():
    u = (torch.tensor([[1.0, -2.0]]).reshape(1, 2, 1, 1), torch.tensor([3.0]).reshape(1, 1, 1, 1))
    zero = tuple(torch.zeros_like(g) for g in u)
    moved, info = langevin_step(u, gaussian(2.0), 0.4, zero)
    for g, m in zip(u, moved, strict=True):
        torch.testing.assert_close(m, g - 0.2 * g / 2.0)
    norm = math.sqrt(14)
    torch.testing.assert_close(info.log_density, torch.tensor([-3.5]))
    torch.testing.assert_close(info.gradient_norm, torch.tensor([norm / 2]))
    torch.testing.assert_close(info.displacement, torch.tensor([0.1 * norm]))


def test_a_step_size_an_example():
    u = (torch.randn(3, 2, 2, 2), torch.randn(3, 1, 4, 4))
    eps = tuple(torch.randn_like(g) for g in u)
    steps, reference = torch.tensor([0.1, 0.5, 1.0]), torch.tensor([1.0, 0.6, 0.8])
    mixed, info = langevin_step(u, standard_normal, steps, eps, reference_variance=reference)
    assert all(x.shape == (3,) for x in info)
    for row in range(3):
        one, _ = langevin_step(
            u, standard_normal, float(steps[row]), eps, reference_variance=float(reference[row])
        )
        for g, h in zip(mixed, one, strict=True):
            torch.testing.assert_close(g[row], h[row])


def test_step_too_large_for_the_corrected_kernel():
    with pytest.raises(UserInputError, match="exceeds 4 C = 2; the corrected kernel needs"):
        noise_scale(2.1, "corrected", 0.5)
    assert noise_scale(2.0, "corrected", 0.5) == 0.0
    assert noise_scale(torch.tensor([9.0]), "corrected", 1.0).item() == 0.0


def test_pure_and_parameters_untouched():
    net = torch.nn.Linear(4, 1)
    u, eps = (torch.randn(2, 4, 1, 1),), (torch.randn(2, 4, 1, 1),)
    before = u[0].clone()
    moved, info = langevin_step(u, lambda u: net(u[0].flatten(1)).squeeze(1), 0.1, eps)
    assert torch.equal(u[0], before) and not u[0].requires_grad
    assert all(p.grad is None and p.requires_grad for p in net.parameters())
    assert not moved[0].requires_grad and not any(x.requires_grad for x in info)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_inside_no_grad_and_inference_mode(mode):
    net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.SiLU(), torch.nn.Linear(8, 1))
    base, eps = torch.randn(2, 4, 1, 1), (torch.randn(2, 4, 1, 1),)
    expected, _ = langevin_step((base,), lambda u: net(u[0].flatten(1)).squeeze(1), 0.1, eps)
    with mode():
        inside = (base * 1.0,)  # an inference tensor in inference mode
        moved, _ = langevin_step(inside, lambda u: net(u[0].flatten(1)).squeeze(1), 0.1, eps)
    torch.testing.assert_close(moved[0], expected[0], rtol=0, atol=0)


def test_unread_groups_and_constants_get_zero_gradients():
    u = (torch.randn(2, 1, 1, 1), torch.randn(2, 3, 1, 1))
    _, grads = value_and_grad(lambda u: u[0].flatten(1), u)
    assert torch.equal(grads[0], torch.ones_like(u[0])) and not grads[1].any()
    _, grads = value_and_grad(lambda u: torch.zeros(2, 5), u)
    assert [g.shape for g in grads] == [g.shape for g in u] and not any(g.any() for g in grads)


def test_chain_of_no_steps():
    u = (torch.randn(2, 1, 1, 1),)
    same, info = run_chain(u, standard_normal, lambda: u, num_steps=0, step_size=1.0)
    assert same is u and all(x.shape == (0, 2) for x in info)
    _, info = run_chain(u, standard_normal, lambda: u, num_steps=3, step_size=1.0)
    assert all(x.shape == (3, 2) for x in info)
