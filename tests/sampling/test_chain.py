"""Momentum and Metropolis's correction: their laws, and what they leave as it was.

A refused step that forgets to turn its momentum round, or a gradient of the wrong weight, moves
chains as briskly as the right one does; only the density they settle in tells.
"""

import math

import pytest
import torch
from analytic import assert_moments, standard_normal

from hebm_sample.latents import flatten
from hebm_sample.sampling.chain import Metropolis, run_chain
from hebm_sample.sampling.noise import NoiseStreams
from hebm_sample.sampling.step_size import step_sizes

WIDE = ((50_000, 1, 1),)
MANY = 20_000  # chains of one number each, where each decides for itself


def gaussian(variance, mean=0.0):
    return lambda u: -0.5 * sum((g - mean).flatten(1).square().sum(1) for g in u) / variance


def two_hills(u):
    """0.4 N(-1, 0.3) + 0.6 N(1, 0.3) in each dimension."""
    x = flatten(u)
    parts = [math.log(w) - (x - m).square() / 0.6 for w, m in ((0.4, -1), (0.6, 1))]
    return torch.logaddexp(*parts).sum(1)


MEAN, VARIANCE = 0.2, 0.3 + 1 - 0.2**2  # of two_hills


class Rows:
    """Standard normal numbers and uniform ones for `MANY` chains, from one random source."""

    def __init__(self, dimensions=1, seed=0):
        self.source, self.shape = torch.Generator().manual_seed(seed), (MANY, dimensions, 1, 1)

    def normal(self):
        return (torch.randn(self.shape, generator=self.source),)

    def uniform(self):
        return torch.rand(MANY, generator=self.source)


def walked(target, rows, *, num_steps, start=None, corrected=True, **options):
    metropolis = Metropolis(rows.uniform) if corrected else None
    start = rows.normal() if start is None else start
    return run_chain(
        start, target, rows.normal, num_steps=num_steps, metropolis=metropolis, **options
    )


def linear_law(target, step, noise, momentum, count):
    """Variance of u after `count` steps from N(0, 1), on a Gaussian of variance `target`."""
    ratio = 1 - step / (2 * target)
    push = step / (2 * noise) * (1 + ratio) / target
    moved = torch.tensor([[ratio, noise], [-push, ratio]], dtype=torch.float64)
    kept = torch.diag(torch.tensor([1.0, momentum], dtype=torch.float64))
    fresh = torch.diag(torch.tensor([0.0, 1 - momentum**2], dtype=torch.float64))
    law = torch.eye(2, dtype=torch.float64)
    for _ in range(count):
        law = kept @ moved @ law @ moved.T @ kept + fresh
    return float(law[0, 0])


# ---- momentum


@pytest.mark.parametrize("momentum", [0.3, 0.9])
@pytest.mark.parametrize(
    ("kernel", "target", "step", "reference"),
    [("plain", 0.6, 0.8, 1.0), ("corrected", 0.3, 0.5, 0.7), ("corrected", 0.7, 1.9, 0.7)],
)
def test_the_law_of_a_gaussian(kernel, target, step, reference, momentum):
    noise = NoiseStreams([4], WIDE)
    u, info = run_chain(
        noise.normal(),
        gaussian(target, 0.0),
        noise.normal,
        num_steps=9,
        step_size=step,
        kernel=kernel,
        reference_variance=reference,
        momentum=momentum,
    )
    spread = math.sqrt(step * (1 - step / (4 * reference)) if kernel == "corrected" else step)
    assert_moments(u[0], 0.0, linear_law(target, step, spread, momentum, 9))
    assert info.displacement.shape == (9, 1) and bool((info.acceptance == 1).all())


def test_a_gaussian_of_the_reference_variance_is_invariant_wherever_it_lies():
    """Also at a step far too long for the plain kernel; and every step conserves energy."""
    rows = Rows(dimensions=3)
    start = tuple(5.0 + 0.7**0.5 * g for g in rows.normal())
    for corrected in (False, True):
        u, info = walked(
            gaussian(0.7, 5.0),
            rows,
            num_steps=12,
            start=start,
            corrected=corrected,
            step_size=2.4,
            reference_variance=0.7,
            momentum=0.8,
        )
        assert_moments(u[0], 5.0, 0.7)
        assert float(info.acceptance.min()) > 0.999


def test_without_momentum_it_is_the_langevin_step():
    """Its proposals, all accepted, are the chain of `langevin_step` with the same noise."""
    options = {"step_size": 0.3, "reference_variance": 0.4, "decay": 0.5}
    plain, seen = run_chain(
        Rows(seed=1).normal(), two_hills, Rows(seed=2).normal, num_steps=5, **options
    )
    always = Metropolis(lambda: torch.full((MANY,), -1.0))
    found, info = run_chain(
        Rows(seed=1).normal(),
        two_hills,
        Rows(seed=2).normal,
        num_steps=6,
        metropolis=always,
        **options,
    )
    torch.testing.assert_close(found, plain, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(info.log_density, seen.log_density, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(info.gradient_norm, seen.gradient_norm, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(info.displacement, seen.displacement, rtol=1e-3, atol=1e-5)


# ---- Metropolis


@pytest.mark.parametrize("momentum", [0.0, 0.7])
@pytest.mark.parametrize("kernel", ["plain", "corrected"])
def test_the_density_is_invariant_however_long_the_step(kernel, momentum):
    options = {"step_size": 0.8, "kernel": kernel, "momentum": momentum, "num_steps": 100}
    u, info = walked(two_hills, Rows(), **options)
    assert_moments(u[0], MEAN, VARIANCE)
    assert 0.5 < float(info.acceptance[-1].mean()) < 0.95
    assert info.acceptance.shape == (99, MANY)


def test_the_check_notices_steps_that_are_not_corrected():
    options = {"step_size": 0.8, "num_steps": 100, "corrected": False}
    for kernel in ("plain", "corrected"):
        u, _ = walked(two_hills, Rows(), kernel=kernel, **options)
        with pytest.raises(AssertionError, match="is off"):
            assert_moments(u[0], MEAN, VARIANCE)


def test_a_colder_chain_has_the_density_to_a_power():
    rows = Rows()
    cold = Metropolis(rows.uniform, temperature=0.5)
    u, _ = run_chain(
        rows.normal(),
        gaussian(0.8),
        lambda: tuple(0.5 * g for g in rows.normal()),
        num_steps=60,
        step_size=0.9,
        kernel="plain",
        metropolis=cold,
    )
    assert_moments(u[0], 0.0, 0.8 * 0.5**2)


def test_a_refused_step_changes_nothing():
    never = Metropolis(lambda: torch.ones(MANY))
    start = Rows().normal()
    u, info = run_chain(
        start, two_hills, Rows(seed=3).normal, num_steps=4, step_size=0.5, metropolis=never
    )
    torch.testing.assert_close(u, start, rtol=0, atol=0)
    assert float(info.displacement.max()) == 0


def test_infinite_energy_is_refused():
    def walled(u):
        x = flatten(u)
        return torch.where(x.abs() < 1, -0.5 * x.square(), -math.inf).sum(1)

    start = (torch.zeros(MANY, 1, 1, 1),)
    u, _ = walked(walled, Rows(), start=start, num_steps=20, step_size=1.0)
    assert float(u[0].abs().max()) < 1 and float(u[0].std()) > 0.2


# ---- gradients and steps


@pytest.mark.parametrize("momentum", [0.0, 0.5])
@pytest.mark.parametrize("corrected", [False, True])
@pytest.mark.parametrize("count", [0, 1, 4])
def test_as_many_gradients_as_asked_for(count, corrected, momentum):
    noise, calls, tallied = NoiseStreams([0, 1], ((2, 2, 2),)), [], []

    def density(u):
        calls.append(len(u[0]))
        return standard_normal(u)

    start = noise.normal()
    u, info = run_chain(
        start,
        density,
        noise.normal,
        num_steps=count,
        step_size=0.5,
        momentum=momentum,
        metropolis=Metropolis(noise.uniform) if corrected else None,
        tally=lambda: tallied.append(1),
    )
    assert len(calls) == len(tallied) == count
    moves = max(0, count - corrected)
    assert len(info.displacement) == moves
    assert torch.equal(u[0], start[0]) == (moves == 0)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("corrected", [False, True])
@pytest.mark.parametrize("kernel", ["plain", "corrected"])
@pytest.mark.parametrize("size", [0.0, torch.zeros(MANY), torch.zeros(1, 3)])
def test_steps_of_size_0_are_the_identity(momentum, corrected, kernel, size):
    rows = Rows(3)
    (start,) = rows.normal()
    options = {"momentum": momentum, "corrected": corrected, "kernel": kernel}
    (end,), _ = walked(two_hills, rows, num_steps=5, step_size=size, start=(start,), **options)
    assert torch.equal(start, end)


def test_coordinates_without_steps_stay_and_the_others_have_their_law():
    rows = Rows(2)
    sizes = torch.tensor([[0.0, 0.8]])
    (start,) = rows.normal()
    options = {"momentum": 0.5, "corrected": False, "start": (start,)}
    (end,), _ = walked(gaussian(1.0), rows, num_steps=40, step_size=sizes, **options)
    assert torch.equal(end[:, 0], start[:, 0])
    assert_moments(end[:, 1].reshape(1, -1), 0.0, 1.0)


def test_steps_shrink_geometrically():
    assert step_sizes(0.8, 3, 0.25) == pytest.approx([0.8, 0.4, 0.2])
    assert step_sizes(0.8, 1, 0.25) == [0.8] and step_sizes(0.8, 0, 0.25) == []
    sizes = step_sizes(torch.tensor([1.0, 2.0]), 2, 0.5)
    assert torch.equal(torch.stack(sizes), torch.tensor([[1.0, 2.0], [0.5, 1.0]]))


def test_a_step_of_its_own_for_each_coordinate():
    noise = NoiseStreams([0], WIDE)
    variances = torch.linspace(0.1, 2.0, WIDE[0][0])[None]

    def uneven(u):
        return -0.5 * (flatten(u).square() / variances).sum(1)

    u, _ = run_chain(
        (torch.full((1, *WIDE[0]), 9.0),),
        uneven,
        noise.normal,
        num_steps=1,
        step_size=2 * variances,
        reference_variance=variances,
    )
    assert_moments(flatten(u) / variances.sqrt(), 0.0, 1.0)
