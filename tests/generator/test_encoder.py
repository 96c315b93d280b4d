"""q(u | x) = N(m, s^2) in u space, its draw and its KL.

A draw with the wrong spread, or a KL with the wrong sign somewhere, trains a generator that looks
converged and samples badly.
"""

import pytest
import torch
from tiny import tiny_config, tiny_images, tiny_latents, tiny_modules
from torch.distributions import Normal, kl_divergence

from hebm_sample.errors import UserInputError
from hebm_sample.generator.encoder import encode, kl_per_group

CONFIG = tiny_config()
SHAPES = CONFIG.generator.latent_shapes


@pytest.fixture(scope="module")
def parts():
    generator, encoder, _ = tiny_modules()
    return generator.requires_grad_(False), encoder.requires_grad_(False)


@pytest.fixture(scope="module")
def images():
    return tiny_images(CONFIG, 3)


def test_without_noise_u_is_the_mean(parts, images):
    posterior = encode(*parts, images, None)
    assert all(torch.equal(u, m) for u, m in zip(posterior.u, posterior.mean, strict=True))
    assert [tuple(u.shape) for u in posterior.u] == [(3, *s) for s in SHAPES]


def test_a_draw_is_mean_plus_s_noise(parts, images):
    noise = tiny_latents(CONFIG, 3)
    posterior = encode(*parts, images, noise)
    for u, m, log_s, eps in zip(posterior.u, posterior.mean, posterior.log_s, noise, strict=True):
        assert torch.equal(u, m + log_s.exp() * eps)
        assert log_s.std() > 0


def test_the_posterior_is_conditioned_on_the_draws_above(parts, images):
    noise = tiny_latents(CONFIG, 3)
    first = encode(*parts, images, noise)
    other = encode(*parts, images, (noise[0], noise[1] + 1, noise[2]))
    assert torch.equal(first.mean[1], other.mean[1]) and torch.equal(first.u[0], other.u[0])
    assert not torch.equal(first.mean[2], other.mean[2])


def test_it_carries_the_top_down_pass_of_its_draw(parts, images):
    posterior = encode(*parts, images, tiny_latents(CONFIG, 3))
    again = parts[0].transform(posterior.u)
    assert all(
        torch.allclose(a, b, atol=1e-5) for a, b in zip(posterior.top.z, again.z, strict=True)
    )
    assert torch.allclose(posterior.top.features, again.features, atol=1e-5)


def test_it_reads_the_image(parts, images):
    other = encode(*parts, tiny_images(CONFIG, 3, seed=1), None)
    for a, b in zip(encode(*parts, images, None).mean, other.mean, strict=True):
        assert (a - b).abs().max() > 1e-3


def test_features_may_be_computed_once(parts, images):
    maps = parts[1].features(images)
    assert sorted(maps) == [2, 4, 8]
    a, b = encode(*parts, maps, None), encode(*parts, images, None)
    assert all(torch.equal(x, y) for x, y in zip(a.u, b.u, strict=True))


@pytest.mark.parametrize("shape", [(3, 16, 16), (1, 1, 16, 16), (1, 3, 8, 8), (1, 3, 16, 32)])
def test_images_of_other_shapes_are_refused(parts, shape):
    with pytest.raises(UserInputError, match=r"images have shape .* needs \(B, 3, 16, 16\)"):
        parts[1].features(torch.zeros(shape))


# ---- KL


def test_kl_is_torchs(parts):
    mean = tiny_latents(CONFIG, 4, dtype=torch.float64)
    log_s = tuple(0.7 * x for x in tiny_latents(CONFIG, 4, seed=1, dtype=torch.float64))
    kl = kl_per_group(mean, log_s)
    assert kl.shape == (4, len(SHAPES))
    standard = Normal(torch.tensor(0.0, dtype=torch.float64), 1.0)
    for i, (m, s) in enumerate(zip(mean, log_s, strict=True)):
        expected = kl_divergence(Normal(m, s.exp()), standard).flatten(1).sum(1)
        assert torch.allclose(kl[:, i], expected, rtol=1e-10)


def test_kl_vanishes_at_the_prior_and_only_there():
    zeros = tuple(torch.zeros(2, *s) for s in SHAPES)
    assert torch.equal(kl_per_group(zeros, zeros), torch.zeros(2, len(SHAPES)))
    off = tuple(x + 0.1 for x in zeros)
    assert (kl_per_group(off, zeros) > 0).all() and (kl_per_group(zeros, off) > 0).all()
    assert (kl_per_group(zeros, tuple(-x for x in off)) > 0).all()
