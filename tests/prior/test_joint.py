"""F = sum_i F_i: scaled in one place, one term per group, exactly N(0, I) before training.

A term that saw the groups below it would break keeping the top ones; a scaling forgotten or made
twice is a prior of another temperature, which still draws plausible images.
"""

from dataclasses import replace

import pytest
import torch
from tiny import release_config, tiny_config, tiny_latents, tiny_modules

from hebm_sample.hub.load import new_prior
from hebm_sample.prior.network import EnergyNet
from hebm_sample.prior.schedule import DiffusionSchedule, log_snr_of, release_step_sizes

CONFIG = tiny_config()
GROUPS = len(CONFIG.generator.latent_shapes)
LEVEL = torch.tensor([0.5, -1.0])


@pytest.fixture(scope="module")
def model():
    generator, _, prior = tiny_modules()
    return generator.requires_grad_(False), prior.requires_grad_(False)


def outputs(prior, top, level):
    """f_i as the networks put them out, (B, L)."""
    rows = zip(prior.nets, top.z, top.u, top.h, strict=True)
    return torch.stack([net(z, u, h, level)[0] for net, z, u, h in rows], dim=1)


# ---- the untrained prior


@pytest.mark.parametrize("config", [CONFIG, release_config()], ids=["log_snr", "release"])
def test_untrained_energies_are_zero_with_zero_gradient(config):
    generator = tiny_modules()[0].requires_grad_(False)
    u = tuple(x.requires_grad_() for x in tiny_latents(config))
    terms = new_prior(config)(generator.transform(u), torch.tensor([0.0, 2.0]))
    assert torch.equal(terms, torch.zeros(2, GROUPS))
    grads = torch.autograd.grad(terms.sum(), u)
    assert all(torch.equal(g, torch.zeros_like(g)) for g in grads)


def test_untrained_energies_can_learn():
    """Zero heads must not be a stationary point."""
    generator = tiny_modules()[0].requires_grad_(False)
    prior = new_prior(CONFIG)
    prior(generator.transform(tiny_latents(CONFIG)), LEVEL).sum().backward()
    for net in prior.nets:
        for head in (net.out, net.gain, net.pooled):
            assert head.weight.grad.abs().max() > 0


# ---- scaling


def test_log_snr_divides_by_cum_sigma(model):
    generator, prior = model
    top = generator.transform(tiny_latents(CONFIG))
    for sigma in (0.05, 0.5, 0.96):
        level = torch.full((2,), log_snr_of(sigma))
        expected = outputs(prior, top, level) / sigma
        assert torch.allclose(prior(top, level), expected, rtol=1e-5)


def test_release_divides_by_its_step_size():
    config = release_config()
    generator, _, prior = tiny_modules(config)
    top = generator.transform(tiny_latents(config))
    steps = release_step_sizes(DiffusionSchedule(config.prior.levels), config.prior.step_size_0)
    assert len(set(steps)) == config.prior.num_levels
    for t, s in enumerate(steps):
        level = torch.full((2,), float(t))
        assert torch.allclose(prior(top, level), outputs(prior, top, level) / s, rtol=1e-5)


@pytest.mark.parametrize("config", [CONFIG, release_config()], ids=["log_snr", "release"])
def test_each_row_has_its_own_level(config):
    generator, _, prior = tiny_modules(config)
    top = generator.transform(tiny_latents(config))
    both = prior(top, torch.tensor([0.0, 2.0]))
    for row, level in enumerate((0.0, 2.0)):
        assert torch.allclose(
            both[row], prior(top, torch.full((2,), level))[row], rtol=1e-4, atol=1e-6
        )
    assert not torch.allclose(both[0], prior(top, torch.full((2,), 2.0))[0], rtol=1e-2)


# ---- who reads what


@pytest.mark.parametrize("moved", range(GROUPS))
def test_a_term_depends_on_the_groups_down_to_its_own(model, moved):
    generator, prior = model
    u = tiny_latents(CONFIG)
    before = prior(generator.transform(u), LEVEL)
    after = prior(generator.transform(tuple(x + (i == moved) for i, x in enumerate(u))), LEVEL)
    for i in range(GROUPS):
        assert torch.equal(before[:, i], after[:, i]) == (i < moved), i


def test_a_term_reads_the_state_above(model):
    """F_i of z_i alone could not see how its group depends on the ones above."""
    net = model[1].nets[1]
    top = model[0].transform(tiny_latents(CONFIG))
    before, _ = net(top.z[1], top.u[1], top.h[1], LEVEL)
    after, _ = net(top.z[1], top.u[1], top.h[1] + 1, LEVEL)
    assert not torch.allclose(before, after, rtol=1e-3)


def test_rows_are_independent(model):
    generator, prior = model
    u = tiny_latents(CONFIG, 4)
    level = torch.linspace(-1, 1, 4)
    alone = prior(generator.transform(tuple(x[2:3] for x in u)), level[2:3])
    assert torch.allclose(prior(generator.transform(u), level)[2:3], alone, rtol=1e-4, atol=1e-5)


def test_fine_groups_are_folded():
    net = EnergyNet((2, 8, 8), 6, width=8, cells=1, max_resolution=4)
    assert net.fold == 2 and net.out.weight.shape[0] == 8
    z, u, h = torch.randn(3, 2, 8, 8), torch.randn(3, 2, 8, 8), torch.randn(3, 6, 8, 8)
    torch.nn.init.normal_(net.out.weight)
    f, g = net(z, u, h, torch.zeros(3))
    assert f.shape == (3,) and g.shape == (3, 0)
    whole = EnergyNet((2, 8, 8), 6, width=8, cells=1, max_resolution=8)
    assert whole.fold == 1 and whole.out.weight.shape[0] == 2


# ---- the gradient


def test_gradient_against_finite_differences():
    generator, _, prior = tiny_modules()
    generator, prior = generator.double(), prior.double()
    level = torch.tensor([0.7, -0.4], dtype=torch.float64)
    u = tiny_latents(CONFIG, dtype=torch.float64)

    def terms(*groups):
        return prior(generator.transform(groups), level)

    leaves = tuple(x.clone().requires_grad_() for x in u)
    grads = torch.autograd.grad(terms(*leaves).sum(), leaves)
    stream = torch.Generator().manual_seed(1)
    for i in range(GROUPS):
        way = torch.randn(u[i].shape, generator=stream, dtype=torch.float64)
        step = 1e-5
        ends = [terms(*u[:i], u[i] + sign * step * way, *u[i + 1 :]).sum(1) for sign in (1, -1)]
        slope = (ends[0] - ends[1]) / (2 * step)
        along = (grads[i] * way).flatten(1).sum(1)
        assert torch.allclose(along, slope, rtol=1e-7, atol=1e-8), i
        assert along.abs().min() > 1e-3, i


def test_the_config_decides_the_size():
    wide = replace(CONFIG, prior=replace(CONFIG.prior, width=24, cells=2))
    net = new_prior(wide).nets[0]
    assert net.out.weight.shape[1] == 24 and len(net.cells) == 2
