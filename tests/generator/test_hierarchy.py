"""T: u -> (z, u, h) is exactly invertible, top-down, and needs no image decoder.

A sampler differentiates through T at every step: were the decoder in it, sampling would cost
several times as much; were a lower group to reach a higher one, clamped groups would not stay what
they are.
"""

import pytest
import torch
from tiny import release_config, tiny_config, tiny_images, tiny_latents, tiny_modules

from hebm_sample.errors import UserInputError
from hebm_sample.generator.encoder import encode
from hebm_sample.generator.hierarchy import HierarchicalGenerator, soft_bound
from hebm_sample.latents import check_latents

CONFIG = tiny_config()
SHAPES = CONFIG.generator.latent_shapes


@pytest.fixture(scope="module")
def generator():
    return tiny_modules()[0].requires_grad_(False)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-11)])
def test_inverse_of_transform(dtype, tolerance):
    generator = tiny_modules()[0].to(dtype)
    u = tiny_latents(CONFIG, 3, dtype=dtype)
    top = generator.transform(u)
    again = generator.inverse(top.z)
    for i, (before, z, after) in enumerate(zip(u, top.z, again, strict=True)):
        assert torch.allclose(after, before, rtol=0, atol=tolerance), i
        # The law would hold for z = u as well; these are not equal.
        assert (z - before).abs().max() > 0.05, i
    back = generator.transform(generator.inverse(u)).z
    assert all(
        torch.allclose(a, b, rtol=0, atol=10 * tolerance) for a, b in zip(back, u, strict=True)
    )


def test_z_is_mu_plus_sigma_u(generator):
    u = tiny_latents(CONFIG)
    top = generator.transform(u)
    for group, h, z, given in zip(generator.groups, top.h, top.z, u, strict=True):
        mu, log_sigma = group.prior_parameters(h)
        assert torch.equal(z, mu + log_sigma.exp() * given)


def test_shapes(generator):
    u = tiny_latents(CONFIG, 5)
    top = generator.transform(u)
    assert [tuple(x.shape) for x in top.z] == [(5, *s) for s in SHAPES]
    assert [tuple(x.shape) for x in top.h] == [(5, *s) for s in CONFIG.generator.state_shapes]
    assert all(a is b for a, b in zip(top.u, u, strict=True))
    last = CONFIG.generator.state_shapes[-1]
    assert tuple(top.features.shape) == (5, *last)
    assert tuple(generator.decode(top.features).shape) == (5, 3, 16, 16)
    assert torch.equal(generator(u), generator.decode(top.features))


def test_transform_and_inverse_call_no_decoder(generator, monkeypatch):
    def refuse(*_):
        raise AssertionError("the image decoder ran")

    monkeypatch.setattr(generator.decoder, "forward", refuse)
    u = tiny_latents(CONFIG)
    generator.inverse(generator.transform(u).z)
    with pytest.raises(AssertionError, match="the image decoder ran"):
        generator(u)


@pytest.mark.parametrize("moved", range(len(SHAPES)))
def test_states_depend_on_the_groups_above_only(generator, moved):
    u = tiny_latents(CONFIG)
    other = tuple(x + (i == moved) for i, x in enumerate(u))
    before, after = generator.transform(u), generator.transform(other)
    for i in range(len(SHAPES)):
        assert torch.equal(before.h[i], after.h[i]) == (i <= moved), i
        assert torch.equal(before.z[i], after.z[i]) == (i < moved), i
    assert not torch.equal(before.features, after.features)


def test_a_row_does_not_see_its_neighbours(generator):
    u = tiny_latents(CONFIG, 4)
    alone = generator(tuple(x[2:3] for x in u))
    assert torch.allclose(generator(u)[2:3], alone, rtol=0, atol=1e-5)


def test_log_sigma_is_bounded():
    generator = tiny_modules()[0]
    bound = CONFIG.generator.log_sigma_bound
    for group in generator.groups:
        torch.nn.init.constant_(group.prior.bias, 1e4)
        _, log_sigma = group.prior_parameters(generator.transform(tiny_latents(CONFIG)).h[0])
        assert torch.isfinite(log_sigma).all() and log_sigma.abs().max() <= bound
        break
    x = torch.tensor([-1e3, -1e-3, 0.0, 1e-3, 1e3])
    assert torch.allclose(
        soft_bound(x, 3.0), torch.tensor([-3.0, -1e-3, 0.0, 1e-3, 3.0]), atol=1e-6
    )


def test_the_config_rebuilds_the_same_module(generator):
    again = HierarchicalGenerator(type(CONFIG.generator).from_dict(CONFIG.generator.to_dict()))
    again.load_state_dict(generator.state_dict())
    u = tiny_latents(CONFIG)
    assert torch.equal(again(u), generator(u)) and again.latent_shapes == SHAPES


@pytest.mark.parametrize("method", ["transform", "inverse"])
@pytest.mark.parametrize(
    "corrupt",
    [
        lambda u: u[:-1],
        lambda u: (u[0], u[1], u[2][:1]),
        lambda u: (u[0], u[1], u[2][:, :1]),
        lambda u: (u[1], u[0], u[2]),
        lambda u: (u[0][0], u[1], u[2]),
        lambda u: (),
    ],
    ids=["a group short", "two batches", "a channel short", "order", "no batch", "empty"],
)
def test_latents_of_other_shapes_are_refused(generator, method, corrupt):
    with pytest.raises(
        UserInputError, match=r"latents have shapes .* this model needs \(B, C, H, W\)"
    ):
        getattr(generator, method)(corrupt(tiny_latents(CONFIG)))


def test_check_latents_gives_the_batch():
    assert check_latents(tiny_latents(CONFIG, 7), SHAPES) == 7


def test_the_helpers_energies_and_sigmas_are_not_trivial():
    """The other tests rely on it."""
    generator, _, prior = tiny_modules(release_config())
    top = generator.transform(tiny_latents(CONFIG))
    assert prior(top, torch.zeros(2)).abs().min() > 0
    assert generator.decode(top.features).std() > 0.05


def test_states_without_features_are_the_same_states():
    generator, encoder, _ = tiny_modules()
    u = tiny_latents(tiny_config(), 3)
    whole, short = generator.transform(u), generator.transform(u, features=False)
    for name in ("z", "u", "h"):
        for a, b in zip(getattr(whole, name), getattr(short, name), strict=True):
            assert torch.equal(a, b)
    assert short.features is short.h[-1] and not torch.equal(short.features, whole.features)
    images = tiny_images(tiny_config(), 3)
    drawn, brief = (
        encode(generator, encoder, images, u),
        encode(generator, encoder, images, u, features=False),
    )
    assert all(torch.equal(a, b) for a, b in zip(drawn.u, brief.u, strict=True))
