"""A larger image from the same latents: only the image decoder is new.

If growing moved T or the encoder by a bit, the energies would be those of another model, and the
two resolutions could not share their files.
"""

import warnings
from dataclasses import replace

import pytest
import torch
from tiny import symbolic_config, tiny_images, tiny_latents, tiny_pipeline
from torch.nn import functional as F
from toy import draw_images, short_preset

from hebm_sample import Pipeline
from hebm_sample.config import StageConfig, TrainingRecord
from hebm_sample.data.dataset import load_images
from hebm_sample.errors import UserInputError
from hebm_sample.generator.kinds import new_generator
from hebm_sample.hub.manifest import read_row
from hebm_sample.pipeline.inpainting import KnownPixels
from hebm_sample.training.export import export, load_run
from hebm_sample.training.train import train_generator
from hebm_sample.training.trainer import make_accelerator

SMALL = symbolic_config()


def grown_generator():
    stages = (*SMALL.generator.decoder, StageConfig(resolution=16, width=8, cells=1))
    return replace(SMALL.generator, image_size=32, decoder=stages, encoder_size=16)


def grown_preset(**settings):
    preset = short_preset(steps=6, **settings)
    return replace(preset, name="grown", model="tiny", generator=grown_generator())


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("grown")


@pytest.fixture(scope="module")
def images(home):
    folder = draw_images(home / "images")
    return load_images(folder, size=32, cache_dir=home / "cache", progress=False)


@pytest.fixture(scope="module")
def small(home):
    tiny_pipeline(SMALL).save_pretrained(home / "small")
    return Pipeline.from_pretrained(home / "small", device="cpu")


@pytest.fixture(scope="module")
def grown(home, images, small):
    options = {"accelerator": make_accelerator("cpu"), "show_progress": False}
    train_generator(grown_preset(), images, home / "run", init=small, **options)
    return Pipeline.from_pretrained(home / "run/model", device="cpu")


def test_its_run_is_the_whole_model(home, small, grown):
    """Energies, encoder, sampler and what every part saw, with or without the finished model."""
    run = load_run(home / "run")
    assert run.config == grown.config and run.config.training[-1].part == "generator"
    for part in ("prior", "encoder"):
        own, expected = getattr(run, part).state_dict(), getattr(small, part).state_dict()
        assert all(torch.equal(own[k], v) for k, v in expected.items())
    export(home / "run", home / "exported", samples=False)
    files = [read_row(home / name).files for name in ("exported", "run/model")]
    assert files[0] == files[1]


def test_a_model_that_is_gone_on_with_keeps_its_records(home, images, small):
    """And no energies, which are not those of its T any more."""
    options = {"accelerator": make_accelerator("cpu"), "show_progress": False}
    preset = grown_preset()
    train_generator(preset, images, home / "once", **options)
    first = load_run(home / "once")
    train_generator(preset, images, home / "twice", init=first, **options)
    for model in (load_run(home / "twice"), Pipeline.from_pretrained(home / "twice/model")):
        assert [r.steps for r in model.config.training] == [6, 6] and model.prior is None


def test_what_has_grown_goes_on_with_its_latents(home, images, grown):
    """T, encoder and energies stay in the second run, too; a sharp decoder is left out."""
    options = {"accelerator": make_accelerator("cpu"), "show_progress": False}
    sharp = replace(grown.config.generator, sharp_decoder=grown.config.generator.decoder)
    network = new_generator(sharp)
    network.load_state_dict(grown.generator.state_dict(), strict=False)
    config = replace(grown.config, generator=sharp)
    begun = Pipeline(config, network, grown.prior, grown.encoder)
    train_generator(grown_preset(), images, home / "on", init=begun, **options)
    found = Pipeline.from_pretrained(home / "on/model", device="cpu")
    assert found.config.generator == grown.config.generator
    for part in ("prior", "encoder"):
        own, expected = getattr(found, part).state_dict(), getattr(grown, part).state_dict()
        assert all(torch.equal(own[k], v) for k, v in expected.items())
    before, after = grown.generator.state_dict(), found.generator.state_dict()
    moved = {k.split(".")[0] for k in before if not torch.equal(before[k], after[k])}
    assert moved and moved <= {"decoder", "likelihood"}
    assert [r.part for r in found.config.training].count("generator") == 2


def test_a_preset_that_grows_needs_what_it_grows_from(home, images):
    preset = replace(grown_preset(), grown_from="tiny")
    with pytest.raises(UserInputError, match="give that model with --init, such as a run of pre"):
        train_generator(preset, images, home / "none", accelerator=make_accelerator("cpu"))
    assert not (home / "none").exists()


def test_which_configs_grow_from_which():
    large = grown_generator()
    assert large.grows_from(SMALL.generator)
    assert not SMALL.generator.grows_from(large)
    assert not SMALL.generator.grows_from(SMALL.generator)
    assert not replace(large, encoder_cells=2).grows_from(SMALL.generator)
    # An encoder that reads 32x32 images has another posterior, so other energies.
    assert not replace(large, encoder_size=None).grows_from(SMALL.generator)
    wide = (replace(large.decoder[0], width=12), large.decoder[1])
    assert not replace(large, decoder=wide).grows_from(SMALL.generator)


def test_the_encoder_can_only_read_what_a_stage_mirrors():
    with pytest.raises(UserInputError, match=r"encoder_size is 12; it can be \[8, 16, 32\]"):
        replace(grown_generator(), encoder_size=12)


def test_only_the_image_decoder_is_trained(small, grown, images):
    before, after = small.generator.state_dict(), grown.generator.state_dict()
    new = ("decoder.", "likelihood.")
    for key, value in before.items():
        if not key.startswith(new):
            assert torch.equal(after[key], value), key
    shared = [k for k in before if k.startswith("decoder.stages.")]
    assert any(not torch.equal(after[k], before[k]) for k in shared)


def test_it_has_the_same_latents_samples_and_energies(small, grown):
    images = (tiny_images(grown.config, 3) + 1) / 2
    reduced = F.avg_pool2d(images, 2)
    top, same = grown.encode(images, seeds=[1, 2, 3]), small.encode(reduced, seeds=[1, 2, 3])
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(top, same, strict=True))
    assert torch.equal(grown.energy(latents=top), small.energy(latents=top))
    options = {"seeds": [4, 5], "symbols": {"class": "b"}, "steps": 8, "output_type": "torch"}
    large, little = grown(**options), small(**options)
    assert all(torch.equal(a, b) for a, b in zip(large.latents, little.latents, strict=True))
    assert large.images.shape == (2, 3, 32, 32) and little.images.shape == (2, 3, 16, 16)


def test_files_that_both_have_are_the_same_bytes(home, grown):
    large, little = read_row(home / "run/model"), read_row(home / "small")
    assert large.resolution == 32 and large.name == "tiny"
    for name in ("prior.safetensors", "encoder.safetensors"):
        assert large.files[name] == little.files[name]
    assert large.files["generator.safetensors"] != little.files["generator.safetensors"]


def test_another_model_is_not_grown_from(home, images, small):
    preset = grown_preset()
    other = replace(preset, generator=replace(preset.generator, encoder_cells=2))
    with pytest.raises(UserInputError, match="tiny has another architecture than preset grown"):
        train_generator(
            other, images, home / "other", init=small, accelerator=make_accelerator("cpu")
        )


def test_known_pixels_are_compared_at_the_encoders_size(grown):
    u, level = tiny_latents(SMALL), torch.tensor([0.4, 0.8])
    images = tiny_images(grown.config, 2)
    known = torch.ones(2, 1, 32, 32, dtype=torch.bool)
    known[:, :, 20, 10] = False  # and with it the square of four that it is averaged with
    term = KnownPixels(grown.generator, lambda x: x, images, known)
    there = images.clone()
    there[:, :, 20:22, 10:12] = 0.123
    assert torch.equal(replace(term, images=there)(u, level), term(u, level))
    # Detail that averages out is nothing that latents of smaller images could explain.
    fine = images.clone()
    fine[:, :, ::2, ::2] += 0.1
    fine[:, :, 1::2, 1::2] -= 0.1
    assert torch.allclose(replace(term, images=fine)(u, level), term(u, level), rtol=1e-5)
    assert not torch.allclose(replace(term, images=images + 0.1)(u, level), term(u, level))


def test_another_rule_at_another_size_is_said(images, small, tmp_path):
    """Nothing tells whether they are the same data, so it is no error."""
    record = TrainingRecord("prior", 1, 1, 1.0, "2026-01-01", "2026-01-01", 1, 16)
    record = replace(record, data="x", held_out="hash", held_out_seed=0)
    begun = replace(small.config, training=(record,))
    init = Pipeline(begun, small.generator, small.prior, small.encoder)
    options = {"accelerator": make_accelerator("cpu"), "show_progress": False}
    with pytest.warns(UserWarning, match=r"at 16 pixels with other rows held out \(hash\)"):
        train_generator(grown_preset(validation=9), images, tmp_path / "a", init=init, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train_generator(
            grown_preset(validation=None), images, tmp_path / "b", init=init, **options
        )
