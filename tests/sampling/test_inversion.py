"""The flow up and down: the one undoes the other, and what is asked for besides adds up."""

import pytest
import torch
from analytic import gaussian_energy

from hebm_sample import Pipeline
from hebm_sample.sampling.inversion import invert, retrace
from hebm_sample.sampling.noise import NoiseStreams
from hebm_sample.sampling.probability_flow import flow_levels, flow_weight
from hebm_sample.sampling.state import GradientTally

SHAPES = ((2, 2, 2), (1, 4, 4))
SEEDS = (3, 4)
NAMES = ("celeba64", "celebahq", "church64", "cifar10")


def narrow(u, level):
    """Much narrower than N(0, I), so that steps up and steps down differ by much."""
    return gaussian_energy(0.02)(u, level)


def there_and_back(energy, other, *, count=6, denoise=True, first_step=False, clamped=()):
    u, tally = NoiseStreams(SEEDS, SHAPES).normal(), GradientTally(SEEDS)
    path = flow_levels(count, 0.1, 0.8, denoise=denoise)
    way = invert(energy, u, path, tally, first_step=first_step)
    assert tally.done == count + first_step
    *_, state = retrace(other, way, tally, clamped, lowest=0.1)
    assert tally.done == 2 * count + first_step and state.level == 0
    return u, way, state


@pytest.mark.parametrize("denoise", [True, False])
@pytest.mark.parametrize("first_step", [True, False])
@pytest.mark.parametrize("count", [1, 2, 24])
def test_the_way_down_undoes_the_way_up(count, denoise, first_step):
    options = {"count": count, "denoise": denoise, "first_step": first_step}
    u, way, state = there_and_back(narrow, narrow, **options)
    for back, before in zip(state.u, u, strict=True):
        torch.testing.assert_close(back, before, atol=1e-5, rtol=0)
    moved = sum((a - b).abs().max() for a, b in zip(way.u[0], u, strict=True))
    assert moved > 0.1 or (count == 1 and not first_step)


@pytest.mark.parametrize("denoise", [True, False])
def test_a_constant_pull_adds_up(denoise):
    """With g' - g = c for every u, v_0 - u_0 is c times the sum of the steps' weights."""

    def pulled(u, level):
        return narrow(u, level) + 0.3 * sum(g.flatten(1).sum(1, keepdim=True) for g in u)

    def constant(u, level):
        return 0.5 * u[0].flatten(1).sum(1, keepdim=True)

    def both(u, level):
        return constant(u, level) + 0.3 * sum(g.flatten(1).sum(1, keepdim=True) for g in u)

    u, way, state = there_and_back(constant, both, denoise=denoise)
    weight = sum(flow_weight(a, b) for a, b in zip(way.path, way.path[1:], strict=False))
    for after, before in zip(state.u, u, strict=True):
        torch.testing.assert_close(after - before, torch.full_like(after, 0.3 * weight))
    *_, far = there_and_back(narrow, pulled, denoise=denoise)
    assert all((a - b).abs().min() > 0 for a, b in zip(far.u, u, strict=True))


def test_clamped_groups_go_back_as_they_came():
    def pulled(u, level):
        return narrow(u, level) + 0.3 * sum(g.flatten(1).sum(1, keepdim=True) for g in u)

    u, _, state = there_and_back(narrow, pulled, clamped=(0,))
    assert torch.equal(state.u[0], u[0]) and not torch.allclose(state.u[1], u[1], atol=1e-2)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_default_edit_with_nothing_asked_gives_the_image_back(name):
    """At most 2 of 255 from the image of u_0, at the settings that an edit has."""
    pipe = Pipeline.from_pretrained(name, device="cpu")
    images = pipe(seeds=SEEDS, output_type="torch").images
    found = pipe.edit(images, output_type="torch")
    u = pipe.encode(images, seeds=(0, 1))
    again = pipe.decode(u, output_type="torch")
    assert (found.images - again).abs().max() <= 2.01 / 255
    asked = {"Smiling": "yes"} if "Smiling" in pipe.symbols else None
    if asked is not None:
        smiling = pipe.classify(latents=pipe.edit(images, asked).latents)["Smiling"][:, 1]
        assert (smiling > 0.5).all()


@pytest.mark.slow
def test_a_hundred_faces_come_back_from_an_edit_with_nothing_asked():
    pipe = Pipeline.from_pretrained("celebahq", resolution=64, device="cpu")
    images = pipe(100, particles=1, output_type="torch", batch_size=50).images
    found = pipe.edit(images, output_type="torch", batch_size=50).images
    again = pipe.decode(pipe.encode(images, seeds=range(100)), output_type="torch")
    assert (found - again).abs().max() <= 2.01 / 255
