"""Sequential Monte Carlo over noise levels: its weights have the right mean, its samples the right
law where the proposals have not, and a seed stays one image.
"""

import math
from dataclasses import replace

import pytest
import torch
from analytic import Mixture, flat_energy, gaussian_energy

from hebm_sample.config import LangevinConfig
from hebm_sample.errors import UserInputError
from hebm_sample.io.seeds import derived_seed
from hebm_sample.latents import flatten
from hebm_sample.prior.schedule import DiffusionSchedule
from hebm_sample.sampling import NoiseStreams, sample_prior
from hebm_sample.sampling.constraints import FreeGroups, LatentConstraint
from hebm_sample.sampling.particles import Particles, particle_seeds

COARSE = DiffusionSchedule((0.05, 0.6, 0.95, 1.0))
BARE = LangevinConfig(start="ancestral", steps=4, denoise=False)  # proposals and little else
SHAPES = ((1, 1, 1),)


def final(energy, config, seeds, shapes=SHAPES, schedule=COARSE, **options):
    noise = NoiseStreams(particle_seeds(seeds, config.particles), shapes)
    *_, state = sample_prior(energy, schedule, noise, config, **options)
    return state


def spy(monkeypatch):
    """Log weights at the end, of a run in which nothing is resampled."""
    seen = []
    draw = Particles.draw
    monkeypatch.setattr(Particles, "resample", lambda self: None)
    monkeypatch.setattr(Particles, "draw", lambda self: (seen.append(self), draw(self))[1])
    return seen


@pytest.mark.parametrize("sampler", ["recovery", "annealed"])
@pytest.mark.parametrize("variance", [0.3, 1.0, 2.0])
@pytest.mark.parametrize("temperature", [1.0, 0.8])
def test_weights_average_to_the_constant_of_the_density(
    monkeypatch, sampler, variance, temperature
):
    seen = spy(monkeypatch)
    config = replace(BARE, sampler=sampler, particles=1000, temperature=temperature)
    final(gaussian_energy(variance), config, range(20))
    (particles,) = seen
    found = (particles.log_weights.logsumexp(1) - math.log(1000)).exp()
    # exp(F / tau^2) N(u; 0, tau^2), with F of data of that variance, at the lowest level
    sigma = COARSE.levels[0] ** 2
    total = (1 - sigma) * variance + sigma
    error = float(found.std()) / math.sqrt(len(found))
    assert error < 0.03
    assert abs(float(found.mean()) - math.sqrt(total)) < 4 * error + 1e-6


def test_samples_have_the_law_that_coarse_levels_miss():
    mixture = Mixture([-2.0, 1.0], [0.3, 0.7], 0.02)
    rows = {}
    for count in (1, 64):
        config = replace(BARE, particles=count, sampler="annealed")
        u = [flatten(final(mixture.every_number(), config, range(1500), SHAPES).u)]
        rows[count] = torch.cat(u)[:, 0].double()
    sigma = COARSE.levels[0] ** 2
    means = mixture.means * math.sqrt(1 - sigma)
    weights = mixture.log_weights.exp()
    mean = float((weights * means).sum())
    variance = float((weights * means.square()).sum()) - mean**2 + (1 - sigma) * 0.02 + sigma
    misses = {n: abs(float(x.var()) / variance - 1) for n, x in rows.items()}
    assert misses[64] < 0.08 < misses[1]
    share = float((rows[64] > -0.5).double().mean())
    assert abs(share - 0.7) < 4 * math.sqrt(0.21 / 1500)


def test_without_energies_all_particles_weigh_the_same(monkeypatch):
    seen = spy(monkeypatch)
    final(flat_energy, replace(BARE, particles=5, steps=12), [3, 4])
    assert seen[0].log_weights.abs().max() < 1e-5
    assert torch.allclose(seen[0].effective(), torch.full((2,), 5.0, dtype=torch.float64))


def test_the_first_particle_is_the_seeds_own_image(monkeypatch):
    energy = gaussian_energy(0.3, 0.5)
    alone = final(energy, replace(BARE, steps=12), [5, 9])
    monkeypatch.setattr(Particles, "resample", lambda self: None)
    monkeypatch.setattr(Particles, "draw", lambda self: torch.tensor([0, 4]))
    first = final(energy, replace(BARE, steps=12, particles=4), [5, 9])
    assert torch.allclose(alone.u[0], first.u[0], atol=1e-6)


def test_particles_are_no_other_candidates_first_ones():
    for seed in (0, 7):
        candidates = {derived_seed(seed, k) for k in range(100)}
        assert candidates & set(particle_seeds([seed], 100)) == {seed}
        together = [particle_seeds([s], 8) for s in candidates]
        assert len({s for seeds in together for s in seeds}) == 800


def test_what_is_clamped_keeps_its_noise_beside_a_particle_that_goes_on(monkeypatch):
    shapes = ((2, 2, 2), (1, 4, 4))
    u, eps, free = (
        tuple(torch.randn(6, *s, generator=torch.Generator().manual_seed(k)) for s in shapes)
        for k in range(3)
    )
    groups, rows = FreeGroups(LatentConstraint(u, clamped=(0,)), eps), torch.tensor([2, 2, 0])
    whole = groups.full(free[1:], 0.5)
    groups.reorder(rows)
    groups.constraint = LatentConstraint(tuple(g[rows] for g in u), clamped=(0,))
    again = groups.full((free[1][rows],), 0.5)
    assert all(torch.equal(a[rows], b) for a, b in zip(whole, again, strict=True))

    seen, reorder = [], FreeGroups.reorder
    monkeypatch.setattr(Particles, "resample", lambda self: torch.tensor([1, 1, 0]))
    monkeypatch.setattr(FreeGroups, "reorder", lambda s, r: (seen.append(r), reorder(s, r))[1])
    final(gaussian_energy(0.4), replace(BARE, steps=12, particles=3), [0])
    assert [r.tolist() for r in seen] == [[1, 1, 0]] * (COARSE.num_levels - 1)


@pytest.mark.parametrize("settings", [{}, {"momentum": 0.7}, {"metropolis": True}])
def test_a_seed_is_one_image_in_any_batch(settings):
    energy = gaussian_energy(0.3, 0.5)
    config = replace(BARE, steps=16, particles=6, denoise=True, **settings)
    shapes = ((2, 2, 2), (1, 4, 4))
    together = final(energy, config, [9, 2, 5], shapes)
    assert [len(g) for g in together.u] == [3, 3]
    assert together.terms.shape == (3, 2)
    for k, seed in enumerate([9, 2, 5]):
        alone = final(energy, config, [seed], shapes)
        for a, b in zip(alone.u, together.u, strict=True):
            assert torch.allclose(a[0], b[k], atol=1e-6)


def test_clamped_groups_stay_and_every_level_has_a_row_an_image():
    shapes = ((2, 2, 2), (1, 4, 4))
    u = tuple(torch.randn(4, *s, generator=torch.Generator().manual_seed(0)) for s in shapes)
    config = replace(BARE, steps=12, particles=3)
    noise = NoiseStreams(particle_seeds(range(4), 3), shapes)
    given = LatentConstraint(u, clamped=(0,)).repeated(3)
    states = list(sample_prior(gaussian_energy(0.4), COARSE, noise, config, given=given))
    assert [len(s.u[0]) for s in states] == [4, 4, 4]
    assert torch.equal(states[-1].u[0], u[0])
    assert not torch.allclose(states[-1].u[1], u[1])


def test_resampling_keeps_as_many_as_the_weights_say():
    weights = torch.tensor([0.61, 0.02, 0.30, 0.07], dtype=torch.float64)
    counts = torch.zeros(4, dtype=torch.float64)
    for seed in range(500):
        particles = Particles([seed, 1], 4)
        particles.weigh(torch.cat([(5 * weights).log() * 1.7, torch.zeros(4)]))
        heavy = particles.log_weights[0].softmax(0)
        rows = particles.resample()
        assert rows is not None
        assert rows[4:].tolist() == [4, 5, 6, 7]  # of the image whose particles are all good
        found = torch.bincount(rows[:4], minlength=4).double()
        assert ((found - 4 * heavy).abs() < 1).all()
        assert (particles.log_weights == 0).all()
        counts += found / 500
    assert (counts - 4 * heavy).abs().max() < 0.1


def test_the_last_one_is_drawn_by_weight():
    particles = Particles(range(2000), 3)
    particles.weigh(torch.tensor([0.5, 0.2, 0.3]).log().repeat(2000))
    rows = particles.draw()
    assert torch.equal(rows // 3, torch.arange(2000))
    shares = torch.bincount(rows % 3).double() / 2000
    assert (shares - torch.tensor([0.5, 0.2, 0.3])).abs().max() < 0.05
    assert torch.equal(particles.heaviest(), 3 * torch.arange(2000))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"particles": 0}, "particles is 0"),
        ({"particles": 2.5}, "particles is 2.5"),
        ({"particles": 4, "start": "flow"}, "need start='ancestral'"),
        ({"particles": 4, "sampler": "flow"}, "sampler='recovery' or 'annealed'"),
        ({"particles": 4, "temperature": (1.0, 0.9)}, "need one number above 0"),
        ({"particles": 4, "temperature": 0.0}, "need one number above 0"),
    ],
)
def test_settings_that_cannot_have_particles(settings, message):
    with pytest.raises(UserInputError, match=message):
        LangevinConfig(**{"start": "ancestral", **settings})
