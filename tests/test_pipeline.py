"""One seed is one image, whatever the batch, the order, the caller's autograd or random state.

Users compare images by seed and steer by latents; a seed that depends on its neighbours, a knob
without effect or a black image in place of an error would not be noticed by looking.
"""

import copy
import pickle
import random
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import (
    release_config,
    symbolic_pipeline,
    tiny_config,
    tiny_images,
    tiny_latents,
    tiny_modules,
    tiny_pipeline,
)

from hebm_sample.config import SamplerName
from hebm_sample.errors import (
    NonFiniteSampleError,
    UserInputError,
    WeightsError,
)
from hebm_sample.pipeline import request
from hebm_sample.pipeline.pipeline import Pipeline
from hebm_sample.prior.schedule import DiffusionSchedule, log_snr_of
from hebm_sample.sampling.noise import NoiseStreams

CONFIG = tiny_config()
GROUPS = len(CONFIG.generator.latent_shapes)
LEVEL = 1 / 255
TWO_LEVELS = 2.01 / 255


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline()


@pytest.fixture(scope="module")
def eight(pipe):
    """Seeds 0 ... 7 in one batch."""
    return pipe(seeds=range(8), output_type="torch")


@pytest.fixture(scope="module")
def images():
    """(3, 3, 16, 16) in [0, 1], on the 256 levels."""
    return (tiny_images(CONFIG, 3) + 1) / 2


def draw(pipe, seeds=(0, 1), **options):
    return pipe(seeds=seeds, output_type="torch", **options).images


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


# ---- seeds


def test_the_model_is_not_trivial(pipe, eight):
    """Images differ between seeds, and the energies move them."""
    assert eight.images.std(0).mean() > 0.02
    gaussian = pipe(seeds=range(8), prior="gaussian", output_type="torch").images
    assert (gaussian - eight.images).abs().mean() > 0.02


@pytest.mark.parametrize("sampler", get_args(SamplerName))
@pytest.mark.parametrize("batch_size", [1, 3])
def test_seed_is_image_in_any_batch(pipe, sampler, batch_size):
    whole = draw(pipe, range(8), sampler=sampler)
    parts = draw(pipe, range(8), sampler=sampler, batch_size=batch_size)
    assert (whole - parts).abs().max() <= TWO_LEVELS
    assert same([draw(pipe, range(8), sampler=sampler)], [whole])


@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_seed_with_particles_is_one_image_in_any_batch(pipe, batch_size):
    settings = {"start": "ancestral", "particles": 4}
    whole = pipe(seeds=range(6), output_type="torch", **settings)
    assert whole.images.shape[0] == len(whole.energies) == len(whole.latents[0]) == 6
    parts = draw(pipe, range(6), batch_size=batch_size, **settings)
    assert (whole.images - parts).abs().max() <= TWO_LEVELS


def test_particles_of_the_model_are_left_where_they_cannot_be():
    pipe = tiny_pipeline(tiny_config(start="ancestral", particles=2))
    assert (draw(pipe) - draw(pipe, particles=1)).abs().max() > LEVEL
    assert pipe.sampling_config(sampler="flow").particles == 1
    assert pipe.sampling_config(temperature=(1.0, 0.9, 0.8)).particles == 1
    with pytest.raises(UserInputError, match="particles is 2"):
        pipe.sampling_config(sampler="flow", particles=2)


@pytest.mark.parametrize("start", ["u_next", "flow"])
def test_several_particles_bring_their_start_along(start):
    """Of a model that starts levels otherwise, unless that is asked for, too."""
    pipe = tiny_pipeline(tiny_config(start=start))
    assert pipe.sampling_config(particles=2) == pipe.sampling_config(
        start="ancestral", particles=2
    )
    assert pipe.sampling_config().start == pipe.sampling_config(particles=1).start == start
    with pytest.raises(UserInputError, match=f"these are start={start!r}"):
        pipe.sampling_config(start=start, particles=2)


def test_errors_name_the_seed_that_was_given(pipe):
    """Whatever stream its noise came from."""
    images = pipe(seeds=[0], output_type="torch").images
    far = {"kernel": "plain", "step_scale": 1e5, "steps": 30}
    for call in (
        lambda: pipe(seeds=[7], **far),
        lambda: pipe.vary(images, [0], 1, seeds=[7], **far),
        lambda: pipe(seeds=[7], start="ancestral", particles=2, **far),
    ):
        with pytest.raises(NonFiniteSampleError, match="seed 7 "):
            call()


@pytest.mark.parametrize("seeds", ["3", "0-3", b"3"])
def test_seeds_as_text_are_refused(pipe, seeds):
    with pytest.raises(UserInputError, match="give a whole number, or some in a list"):
        pipe(2, seeds=seeds)


def test_particles_beyond_memory_are_refused(pipe, monkeypatch):
    monkeypatch.setattr("hebm_sample.pipeline.request.free_bytes", lambda device: 10_000_000)
    with pytest.raises(UserInputError, match=r"1000 particles for each of 2 images .* GiB"):
        draw(pipe, start="ancestral", particles=1000)
    faces = pipe(2, prior="gaussian").images
    many = {"start": "ancestral", "particles": 1000}
    with pytest.raises(UserInputError, match="particles for each of 2 images"):
        pipe.inpaint(faces, torch.arange(256).reshape(16, 16) > 99, **many)
    with pytest.raises(UserInputError, match="particles for each of 2 images"):
        pipe.vary(faces[:1], [0], 2, **many)
    draw(pipe, start="ancestral", particles=2)


@pytest.mark.parametrize("prior", ["ebm", "gaussian"])
def test_the_order_of_seeds_is_free(pipe, prior):
    whole = draw(pipe, range(8), prior=prior)
    order = [5, 0, 7, 2, 2, 6]
    assert (draw(pipe, order, prior=prior) - whole[order]).abs().max() <= TWO_LEVELS
    halves = [draw(pipe, range(4), prior=prior), draw(pipe, range(4, 8), prior=prior)]
    assert (torch.cat(halves) - whole).abs().max() <= TWO_LEVELS


def test_without_seeds_they_are_counted_from_zero(pipe, eight):
    out = pipe(num_images=8, output_type="torch")
    assert out.seeds == tuple(range(8)) and len(out) == 8 and torch.equal(out.images, eight.images)
    assert pipe().seeds == (0,)
    assert pipe(seeds=7).seeds == (7,)


def states():
    return random.getstate(), pickle.dumps(np.random.get_state()), torch.get_rng_state().tolist()


def test_global_random_states_are_neither_moved_nor_read(pipe, tmp_path, images):
    pipe.save_pretrained(tmp_path / "model")
    before = states()
    loaded = Pipeline.from_pretrained(tmp_path / "model", device="cpu")
    first = draw(loaded)
    loaded.encode(images)
    loaded.save_pretrained(tmp_path / "again")
    assert states() == before
    torch.manual_seed(99), random.seed(99), np.random.seed(99)
    assert torch.equal(draw(loaded), first)


# ---- what comes out


def test_output_types_agree(pipe, eight):
    pil = pipe(seeds=range(8)).images
    array = pipe(seeds=range(8), output_type="numpy").images
    tensor = eight.images
    assert tensor.shape == (8, 3, 16, 16) and tensor.dtype == torch.float32
    assert 0 <= tensor.min() < 0.2 and 0.8 < tensor.max() <= 1
    assert array.shape == (8, 16, 16, 3) and array.dtype == np.float32
    assert np.array_equal(array, tensor.permute(0, 2, 3, 1).numpy())
    assert all(x.mode == "RGB" and x.size == (16, 16) for x in pil)
    bytes_ = np.stack([np.asarray(x) for x in pil])
    assert np.abs(bytes_ / 255 - array).max() <= 0.51 / 255
    assert len({x.tobytes() for x in pil}) == 8


@pytest.mark.parametrize("output_type", ["pil", "numpy", "torch"])
def test_a_grid_of_any_output_type(pipe, output_type):
    out = pipe(num_images=4, output_type=output_type)
    grid = out.grid(columns=4)
    assert grid.size == (4 * 16 + 3 * 2, 16) and out.grid().size == (34, 34)
    cell = np.asarray(grid.crop((18, 0, 34, 16)))
    assert np.array_equal(cell, np.asarray(pipe(num_images=4).images[1]))


def test_shapes_of_latents_and_energies(eight):
    assert [tuple(u.shape) for u in eight.latents] == [
        (8, *s) for s in CONFIG.generator.latent_shapes
    ]
    assert eight.energies.shape == (8, GROUPS) and eight.level == 0
    assert not any(x.requires_grad for x in (*eight.latents, eight.energies, eight.images))


def test_decoding_the_latents_gives_the_images(pipe, eight):
    assert torch.equal(pipe.decode(eight.latents, output_type="torch"), eight.images)
    images = pipe.decode(eight.latents, batch_size=3)
    assert (
        np.abs(
            np.stack([np.asarray(x) for x in images]) / 255
            - eight.images.permute(0, 2, 3, 1).numpy()
        ).max()
        <= TWO_LEVELS
    )


def test_decoding_a_few_at_a_time_changes_nothing(pipe, eight, monkeypatch):
    whole = pipe.decode(eight.latents, output_type="torch")
    side = pipe.config.generator.image_size
    counts, render = [], pipe.generator.render

    def counted(h, *decoder):
        counts.append(len(h))
        return render(h, *decoder)

    monkeypatch.setattr(pipe.generator, "render", counted)
    monkeypatch.setattr("hebm_sample.pipeline.model.MOST_PIXELS", (3 * side**2,) * 2)
    parts = pipe.decode(eight.latents, output_type="torch")
    assert counts == [3, 3, 2]
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-5)


def test_energies_are_minus_f_at_the_lowest_level(pipe, eight):
    u = eight.latents
    level = torch.full((8,), log_snr_of(CONFIG.prior.levels[0]))
    terms = pipe.prior(pipe.generator.transform(u), level)
    assert torch.allclose(eight.energies, -terms, rtol=1e-4, atol=1e-4)
    assert eight.energies.std() > 0.1


@pytest.mark.parametrize("sampler", get_args(SamplerName))
@pytest.mark.parametrize(
    ("groups", "columns"),
    [(None, [0, 1, 2]), (slice(0, 2), [0, 1]), ([2, 0], [0, 2]), (1, [1]), (-1, [2])],
)
def test_energy_of_groups_is_the_sum_of_their_columns(pipe, sampler, groups, columns):
    out = pipe(num_images=3, sampler=sampler)
    found = pipe.energy(latents=out.latents, groups=groups)
    assert found.shape == (3,)
    assert torch.allclose(found, out.energies[:, columns].sum(1), rtol=1e-3, atol=1e-3)


def test_energy_in_batches(pipe, eight):
    whole, parts = (pipe.energy(latents=eight.latents, batch_size=n) for n in (8, 3))
    assert torch.allclose(whole, parts, rtol=1e-3, atol=1e-3)


# ---- stream and progress


@pytest.mark.parametrize(
    ("settings", "levels"),
    [
        ({}, [2, 1, 0]),
        ({"sampler": "annealed"}, [2, 1, 0]),
        ({"sampler": "flow", "steps": 5}, [4, 3, 2, 1, 0]),
        ({"prior": "gaussian"}, [0]),
    ],
)
def test_the_stream_shows_every_level_and_ends_with_the_call(pipe, settings, levels):
    states = list(pipe.stream(seeds=(4, 5, 6), batch_size=2, output_type="torch", **settings))
    assert [s.level for s in states] == levels
    assert all(s.seeds == (4, 5, 6) and len(s.images) == 3 for s in states)
    result = pipe(seeds=(4, 5, 6), batch_size=2, output_type="torch", **settings)
    assert torch.equal(states[-1].images, result.images)
    assert same(states[-1].latents, result.latents)
    assert torch.equal(states[-1].energies, result.energies)
    assert len({s.images.numpy().tobytes() for s in states}) == len(levels)
    for state in states:
        expected = pipe.decode(state.latents, output_type="torch")
        assert (state.images - expected).abs().max() <= TWO_LEVELS


@pytest.mark.parametrize(
    ("settings", "total"),
    [({}, 36), ({"steps": 7}, 21), ({"prior": "gaussian"}, 0), ({"num_images": 4}, 24)],
)
def test_progress_adds_up_to_the_announced_total(pipe, settings, total):
    settings = {"num_images": 5, "batch_size": 2, **settings}
    done = []
    pipe(progress=done.append, **settings)
    assert sum(done) == pipe.total_steps(**settings) == total


@pytest.mark.parametrize("sampler", get_args(SamplerName))
def test_steps_is_the_number_of_gradients(pipe, sampler):
    done = []
    pipe(sampler=sampler, steps=11, progress=done.append)
    assert sum(done) == 11


def test_a_stream_says_what_is_wrong_before_the_first_image(pipe):
    with pytest.raises(UserInputError, match="unknown sampler settings"):
        pipe.stream(colour="red")


# ---- knobs


@pytest.mark.parametrize(
    "setting",
    [
        {"sampler": "annealed"},
        {"sampler": "flow"},
        {"steps": 15},
        {"kernel": "plain"},
        {"start": "u_next"},
        {"reference_variance": "posterior"},
        {"step_scale": 1.0},
        {"step_decay": 0.1},
        {"momentum": 0.5},
        {"metropolis": True},
        {"start": "ancestral", "particles": 3},
        {"precondition": True},
        {"temperature": 0.8},
        {"denoise": False},
        {"prior": "gaussian"},
    ],
    ids=lambda s: next(iter(s.items())).__repr__(),
)
def test_each_knob_moves_the_images(pipe, setting):
    assert (draw(pipe, **setting) - draw(pipe)).abs().max() > LEVEL


def test_the_posteriors_variance_is_that_of_the_models_own_images(pipe):
    """Found once, the same in another pipeline, and of the size that images have."""
    found = pipe.posterior_variance()
    assert found is pipe.posterior_variance()
    for group, shape in zip(found, pipe.generator.latent_shapes, strict=True):
        assert tuple(group.shape) == (1, *shape) and bool((group > 0).all())
    torch.testing.assert_close(tiny_pipeline().posterior_variance(), found)
    drawn = pipe(num_images=64, prior="gaussian", output_type="torch").images
    means, draws = (pipe.encode(drawn, mode=mode) for mode in ("mean", "sample"))
    spread = (draws[0] - means[0]).square().mean()  # of the first group: the same h for both
    assert float(spread) == pytest.approx(float(found[0].mean()), rel=0.1)
    changed = tiny_pipeline()
    before = changed.posterior_variance()
    with torch.no_grad():
        changed.encoder.heads[0].out.weight.mul_(0.5)
    assert not torch.equal(changed.posterior_variance()[0], before[0])


def test_none_means_the_models_own(pipe):
    own = tiny_pipeline(tiny_config(sampler="flow", steps=4))
    assert torch.equal(draw(own, sampler=None, steps=None), draw(pipe, sampler="flow", steps=4))


@pytest.mark.parametrize("prior", ["gaussian", "ebm"])
def test_temperature_zero_has_no_variance(pipe, prior):
    images = draw(pipe, range(4), prior=prior, temperature=0.0)
    assert (images - images[:1]).abs().max() <= 1e-5


def test_temperature_scales_the_gaussian_latents(pipe):
    one = pipe(seeds=(0, 1), prior="gaussian").latents
    half = pipe(seeds=(0, 1), prior="gaussian", temperature=0.5).latents
    assert all(torch.allclose(h, 0.5 * o) for h, o in zip(half, one, strict=True))
    zero = pipe(prior="gaussian", temperature=0.0, output_type="torch").images
    centre = tuple(torch.zeros_like(u[:1]) for u in one)
    assert torch.equal(zero, pipe.decode(centre, output_type="torch"))


def test_the_releases_parametrisation_samples_and_refuses_the_flow():
    pipe = tiny_pipeline(release_config())
    assert (draw(pipe) - draw(pipe, prior="gaussian")).abs().max() > LEVEL
    with pytest.raises(UserInputError, match="needs energies conditioned on log SNR"):
        pipe(sampler="flow")


# ---- the caller's autograd


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("prior", ["ebm", "gaussian"])
def test_callers_grad_modes_change_nothing(pipe, mode, prior):
    plain = draw(pipe, prior=prior)
    with mode():
        out = pipe(seeds=(0, 1), prior=prior, output_type="torch")
        assert torch.equal(pipe.decode(out.latents, output_type="torch"), out.images)
    assert torch.equal(out.images, plain)
    assert pipe.energy(latents=out.latents).shape == (2,)


def test_conditions_edits_and_masks_do_not_mind_inference_mode(images):
    pipe, asked = symbolic_pipeline(steps=6), {"Smiling": "yes"}
    mask = torch.zeros(16, 16, dtype=torch.bool)
    mask[4:9, 4:9] = True

    def all_of_it(x, mask):
        how = {"output_type": "torch", "steps": 6}
        return (
            pipe(2, symbols=asked, guidance=2.0, **how).images,
            pipe.edit(x, asked, **how).images,
            pipe.inpaint(x, mask, **how).images,
        )

    plain = all_of_it(images, mask)
    with torch.inference_mode():
        inside = all_of_it(images.clone(), mask.clone())
    assert all(torch.equal(a, b) for a, b in zip(plain, inside, strict=True))


def test_parameters_stay_frozen_and_without_gradients(pipe, images):
    draw(pipe), pipe.encode(images), pipe.energy(images)
    for module in (pipe.generator, pipe.prior, pipe.encoder):
        assert not module.training
        assert all(p.grad is None and not p.requires_grad for p in module.parameters())


def test_a_model_loaded_in_inference_mode_samples(pipe, tmp_path, images):
    pipe.save_pretrained(tmp_path / "model", dtype=torch.float32)
    with torch.inference_mode():
        loaded = Pipeline.from_pretrained(tmp_path / "model", device="cpu")
        loaded.encode(images)
        inside = draw(loaded)
    assert torch.equal(inside, draw(pipe)) and torch.equal(draw(loaded), inside)


# ---- non-finite


@pytest.mark.parametrize(
    ("settings", "level", "step"),
    [({}, 2, 4), ({"sampler": "annealed", "steps": 9}, 2, 3), ({"sampler": "flow"}, 11, 1)],
)
def test_a_nan_weight_stops_the_chain(settings, level, step):
    pipe = tiny_pipeline()
    with torch.no_grad():
        pipe.prior.nets[1].out.weight[0, 0] = torch.nan
    message = rf"seed 3, 4 became non-finite at level {level}, step {step}; use float32"
    with pytest.raises(NonFiniteSampleError, match=message) as caught:
        pipe(seeds=(3, 4, 5), batch_size=2, **settings)
    assert (caught.value.seeds, caught.value.level, caught.value.step) == ([3, 4], level, step)


# ---- images in


def test_encode_gives_means_or_seeded_draws(pipe, images):
    mean = pipe.encode(images, mode="mean")
    sample = pipe.encode(images)
    assert [tuple(u.shape) for u in mean] == [(3, *s) for s in CONFIG.generator.latent_shapes]
    assert same(sample, pipe.encode(images, seeds=(0, 1, 2)))
    other = pipe.encode(images, seeds=(0, 9, 2))
    for m, a, b in zip(mean, sample, other, strict=True):
        assert torch.allclose(a[[0, 2]], b[[0, 2]], atol=1e-5)
        assert (a[1] - b[1]).abs().max() > 0.01 and (a - m).abs().max() > 0.01


def test_an_image_is_not_encoded_with_the_noise_that_it_was_sampled_with(pipe):
    """The top group's posterior sees no other, so its noise can be read off."""
    seeds = range(200)
    samples = pipe(seeds=seeds, prior="gaussian", output_type="torch", batch_size=50)
    how = {"seeds": seeds, "batch_size": 50}
    off = pipe.encode(samples, **how)[0] - pipe.encode(samples, mode="mean", batch_size=50)[0]
    pairs = torch.stack([off.flatten(), samples.latents[0].flatten()])
    assert torch.corrcoef(pairs)[0, 1].abs() < 4 / off.numel() ** 0.5


def test_an_images_draw_does_not_depend_on_the_batch(pipe, images):
    whole, parts = pipe.encode(images), pipe.encode(images, batch_size=2)
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(whole, parts, strict=True))


def test_pil_paths_and_tensors_read_alike(pipe, images, tmp_path):
    array = (images * 255).round().byte().permute(0, 2, 3, 1).numpy()
    stills = [Image.fromarray(x) for x in array]
    stills[0].save(tmp_path / "0.png")
    expected = pipe.encode(images, mode="mean")
    for given in (stills, [tmp_path / "0.png", *stills[1:]]):
        found = pipe.encode(given, mode="mean")
        assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(found, expected, strict=True))


def test_reconstruct_is_decode_of_encode(pipe, images):
    for mode in ("sample", "mean"):
        expected = pipe.decode(pipe.encode(images, mode=mode), output_type="torch")
        assert torch.equal(
            pipe.reconstruct(images, mode=mode, output_type="torch").images, expected
        )
    assert all(x.size == (16, 16) for x in pipe.reconstruct(images))


def test_energy_of_images_is_that_of_their_latents(pipe, images):
    found = pipe.energy(images, mode="mean", groups=slice(0, 2))
    expected = pipe.energy(latents=pipe.encode(images, mode="mean"), groups=slice(0, 2))
    assert torch.equal(found, expected) and found.std() > 0


# ---- what is refused


BAD_CALLS = [
    ({"num_images": 3, "seeds": (1, 2)}, r"num_images is 3 but 2 seeds were given"),
    ({"num_images": 0}, r"num_images is 0; it must lie in \[1, "),
    ({"num_images": -2}, r"num_images is -2; it must lie in"),
    ({"seeds": ()}, r"0 images were asked for; it can be 1 to"),
    ({"num_images": 10**6}, r"num_images is 1000000; it must lie in"),
    ({"seeds": (0, -1)}, r"seed is -1; it must lie in"),
    ({"seeds": (0.5,)}, r"seed is 0\.5; it must be a whole number"),
    ({"colour": "red"}, r"unknown sampler settings \['colour'\]; known are \['denoise'"),
    ({"sampler": "gibbs"}, r"sampler is 'gibbs'; it can be 'recovery'"),
    ({"steps": 2}, r"steps is 2; this sampler visits 3 levels and needs at least 3"),
    ({"steps": 0}, r"steps is 0; it must lie in"),
    ({"temperature": -1.0}, r"temperature is -1\.0"),
    ({"batch_size": 0}, r"batch_size is 0; it must lie in"),
    ({"prior": "uniform"}, r"prior is 'uniform'; it can be 'ebm', 'gaussian'"),
    ({"output_type": "jpg"}, r"output_type is 'jpg'; it can be 'pil', 'numpy', 'torch'"),
]


@pytest.mark.parametrize(("call", "match"), BAD_CALLS)
def test_bad_calls(pipe, call, match):
    with pytest.raises(UserInputError, match=match):
        pipe(**call)


@pytest.mark.parametrize(
    ("corrupt", "match"),
    [
        (lambda x: x[0], r"images have shape \(3, 16, 16\); this model reads \(N, 3, 16, 16\)"),
        (lambda x: x[:, :1], r"images have shape \(3, 1, 16, 16\)"),
        (lambda x: x[..., :8], r"images have shape \(3, 3, 16, 8\)"),
        (lambda x: x[:0], r"images have shape \(0, 3, 16, 16\)"),
        (lambda x: 2 * x, r"images must be floats in \[0, 1\]"),
        (lambda x: x - 0.5, r"images must be floats in \[0, 1\]"),
        (lambda x: x * torch.nan, r"images must be floats in \[0, 1\]"),
        (lambda x: (255 * x).byte(), r"images must be floats in \[0, 1\]"),
        (lambda x: [], r"images is empty"),
        (lambda x: [3], r"an image is of type int"),
    ],
)
@pytest.mark.parametrize("method", ["encode", "reconstruct", "energy"])
def test_bad_images(pipe, images, method, corrupt, match):
    with pytest.raises(UserInputError, match=match):
        getattr(pipe, method)(corrupt(images))


def test_other_bad_arguments(pipe, images):
    u = tiny_latents(CONFIG, 3)
    cases = [
        (
            lambda: pipe.encode(images, mode="median"),
            r"mode is 'median'; it can be 'sample', 'mean'",
        ),
        (lambda: pipe.encode(images, seeds=(1, 2)), r"2 seeds were given for 3 images"),
        (lambda: pipe.decode(u[:-1]), r"latents have shapes"),
        (lambda: pipe.decode(u, output_type="jpg"), r"output_type is 'jpg'"),
        (lambda: pipe.energy(), r"give either images or latents, and not both"),
        (lambda: pipe.energy(images, latents=u), r"give either images or latents, and not both"),
        (lambda: pipe.energy(latents=u, groups=3), r"groups 3 .* has 3, numbered 0"),
        (lambda: pipe.energy(latents=u, groups=[0, -4]), r"groups \[0, -4\]"),
        (lambda: pipe.energy(latents=u, groups=[]), r"groups \[\]"),
        (lambda: pipe.energy(latents=u, groups=slice(5, 9)), r"groups slice\(5, 9, None\)"),
        (lambda: pipe.to("warp"), r"device 'warp' does not exist; use auto, cpu, cuda or mps"),
        (lambda: tiny_pipeline(device="warp"), r"device 'warp' does not exist"),
        (lambda: pipe.to(dtype=torch.float16), r"dtype is torch\.float16; it can be"),
    ]
    for call, match in cases:
        with pytest.raises(UserInputError, match=match):
            call()
    assert pipe.device.type == "cpu" and pipe.dtype == torch.float32


@pytest.mark.parametrize("method", ["encode", "decode", "reconstruct", "energy", "total_steps"])
def test_batch_size_zero_is_refused_everywhere(pipe, images, method):
    calls = {
        "decode": lambda: pipe.decode(tiny_latents(CONFIG), batch_size=0),
        "total_steps": lambda: pipe.total_steps(batch_size=0),
    }
    with pytest.raises(UserInputError, match=r"batch_size is 0; it must lie in"):
        calls.get(method, lambda: getattr(pipe, method)(images, batch_size=0))()


# ---- models without a part


def test_a_generator_alone(images):
    generator, encoder, _ = tiny_modules()
    config = tiny_config()
    bare = Pipeline(type(config)("bare", config.generator), generator, None, encoder)
    out = bare(num_images=2, prior="gaussian")
    assert out.energies is None and len(out.images) == 2
    refusal = (
        r"^bare has no energy-based prior, so no energies; sample it with --gaussian-prior "
        r"\(prior='gaussian'\), or train one on it: hebm-train prior$"
    )
    with pytest.raises(UserInputError, match=refusal):
        bare()
    with pytest.raises(UserInputError, match=r"bare has no energy-based prior, so no energies"):
        bare.energy(images)


def test_a_model_without_encoder(images):
    generator, _, prior = tiny_modules()
    blind = Pipeline(CONFIG, generator, prior)
    assert len(blind(num_images=2)) == 2
    with pytest.raises(UserInputError, match="tiny has no encoder, so it cannot read images"):
        blind.encode(images)
    with pytest.raises(UserInputError, match="tiny has no encoder"):
        blind(num_images=1, precondition=True)


def test_the_encoder_is_loaded_when_it_is_needed(images):
    generator, encoder, prior = tiny_modules()
    loads = []
    lazy = Pipeline(CONFIG, generator, prior, lambda: loads.append(1) or encoder)
    lazy(num_images=1)
    assert not loads
    lazy.encode(images), lazy.encode(images)
    assert loads == [1]


# ---- precision, saving


def test_bfloat16_stays_close():
    pipe, half = tiny_pipeline(), tiny_pipeline(dtype=torch.bfloat16)
    for prior in ("ebm", "gaussian"):
        a, b = draw(pipe, prior=prior), draw(half, prior=prior)
        assert b.dtype == torch.float32 and not torch.equal(a, b)
        assert (a - b).abs().mean() < 0.01
    out = half(num_images=2)
    assert out.energies.dtype == torch.float32 and out.latents[0].dtype == torch.float32
    assert half.encode((tiny_images(CONFIG) + 1) / 2)[0].dtype == torch.float32


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 0.0), (torch.float16, TWO_LEVELS)]
)
def test_saved_and_loaded_images(pipe, images, tmp_path, dtype, tolerance):
    pipe.save_pretrained(tmp_path / "model", dtype=dtype)
    loaded = Pipeline.from_pretrained(tmp_path / "model", device="cpu")
    assert loaded.config == pipe.config and loaded.name == "tiny" and loaded.revision is None
    for sampler in ("recovery", "flow"):
        a, b = draw(pipe, sampler=sampler), draw(loaded, sampler=sampler)
        assert (a - b).abs().max() <= tolerance
    a, b = (p.reconstruct(images, output_type="torch").images for p in (pipe, loaded))
    assert (a - b).abs().max() <= tolerance


def test_a_missing_encoder_file_is_noticed_on_use_only(pipe, images, tmp_path):
    pipe.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "encoder.safetensors").unlink()
    loaded = Pipeline.from_pretrained(tmp_path / "model", device="cpu")
    assert len(loaded(num_images=1)) == 1
    with pytest.raises(WeightsError, match=r"encoder\.safetensors is missing"):
        loaded.encode(images)


@pytest.mark.parametrize("copying", [pickle.dumps, copy.deepcopy])
def test_pickling_is_refused(pipe, copying):
    with pytest.raises(UserInputError, match="cannot be pickled; use save_pretrained"):
        copying(pipe)


def test_the_pipelines_schedule_is_the_configs(pipe):
    assert pipe.model.schedule.levels == DiffusionSchedule(CONFIG.prior.levels).levels


# ---- what goes in


@pytest.mark.parametrize("bad", [1.5, "a", True, -1, 2**32])
@pytest.mark.parametrize("method", ["encode", "edit", "inpaint", "vary", "call"])
def test_seeds_are_checked_before_others_are_derived_from_them(pipe, images, method, bad):
    calls = {
        "encode": lambda seeds: pipe.encode(images[:2], seeds=seeds),
        "edit": lambda seeds: pipe.edit(images[:2], seeds=seeds),
        "inpaint": lambda seeds: pipe.inpaint(images[:2], torch.eye(16) > 0, seeds=seeds),
        "vary": lambda seeds: pipe.vary(images[:1], 1, 2, seeds=seeds),
        "call": lambda seeds: pipe(seeds=seeds),
    }
    with pytest.raises(UserInputError, match=r"^seed is .*; it must"):
        calls[method]([3, bad])


def test_latents_of_double_precision_are_decoded(pipe, eight):
    double = tuple(g.double() for g in eight.latents)
    assert torch.equal(pipe.decode(double, output_type="torch"), eight.images)
    pipe.interpolate(double, tuple(g.flip(0) for g in double), 3)


def test_a_model_without_encoder_is_saved_again(tmp_path):
    config = tiny_config()
    generator, _, prior = tiny_modules(config)
    Pipeline(config, generator, prior).save_pretrained(tmp_path / "one")
    again = Pipeline.from_pretrained(tmp_path / "one", device="cpu")
    again.save_pretrained(tmp_path / "two")
    assert not again.has_encoder
    assert draw(again).equal(draw(Pipeline.from_pretrained(tmp_path / "two", device="cpu")))


def test_a_batch_is_begun_when_the_one_before_has_ended(pipe, monkeypatch):
    """What all batches need at once would bound nothing."""
    begun, steps = [], []
    make = NoiseStreams.__init__

    def noted(self, seeds, *args, **kwargs):
        make(self, seeds, *args, **kwargs)
        begun.append((len(self.seeds), len(steps)))

    monkeypatch.setattr(NoiseStreams, "__init__", noted)
    pipe(6, batch_size=2, steps=6, callback=lambda *_: steps.append(0))
    counts = [done for _, done in begun]
    assert sorted(set(counts)) == [0, 6, 12] and sum(n for n, _ in begun) == 6


def test_another_description_has_its_own_levels():
    pipe = tiny_pipeline()
    before, levels = draw(pipe), pipe.config.prior.levels
    prior = replace(pipe.config.prior, levels=tuple(x**1.5 for x in levels))
    pipe.config = replace(pipe.config, prior=prior)
    assert pipe.model.schedule.levels == prior.levels
    assert not torch.equal(draw(pipe), before)


@pytest.mark.parametrize("options", [{"step_scale": 1.0}, {"metropolis": True}, {"start": "flow"}])
def test_what_only_chains_have_is_refused_for_the_flow(pipe, options):
    with pytest.raises(UserInputError, match=f"so {next(iter(options))} would have no effect"):
        pipe(sampler="flow", **options)
    draw(pipe, **options)


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_the_flows_energies_are_those_of_its_latents(pipe, images, steps):
    for found in (
        pipe(2, sampler="flow", steps=steps),
        pipe.edit(images[:2], steps=2 * steps),
    ):
        own = pipe.energy(latents=found.latents)
        assert torch.allclose(found.energies.sum(1), own, atol=1e-3, rtol=1e-4)


def test_the_gaussian_prior_has_no_particles(pipe, monkeypatch):
    monkeypatch.setattr(request, "free_bytes", lambda _: 1)
    config = replace(pipe.config.sampling, start="ancestral", particles=4)
    many = tiny_pipeline(replace(pipe.config, sampling=config))
    many(2, prior="gaussian")
    with pytest.raises(UserInputError, match="4 particles for each of 2 images"):
        many(2)


def test_particles_that_fill_in_are_counted_with_the_image_decoder(pipe, images, monkeypatch):
    counted = []
    keep = request.bytes_per_image

    def count(model, likelihood=None):
        counted.append(keep(model, likelihood))
        return counted[-1]

    monkeypatch.setattr(request, "bytes_per_image", count)
    mask = torch.eye(16) > 0
    pipe.inpaint(images[:1], mask, particles=2)
    pipe.vary(images[:1], 1, 1, particles=2)
    assert counted[0] > 1.2 * counted[1]


@pytest.mark.parametrize("method", ["edit", "inpaint"])
def test_no_strength_is_no_edit(pipe, images, method):
    more = (torch.eye(16) > 0,) if method == "inpaint" else ()
    with pytest.raises(UserInputError, match="strength is 0; it must be above 0"):
        getattr(pipe, method)(images, *more, strength=0)
    with pytest.raises(UserInputError, match="prior='gaussian' is of samples"):
        getattr(pipe, method)(images, *more, prior="gaussian")
