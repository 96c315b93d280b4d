"""The presets at the paper's size are what they say, and each of them can be run.

Without this a preset for a week of GPUs is found to be wrong, or too large to be saved, by those
who have started it.
"""

import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from hebm_sample import Pipeline
from hebm_sample.config import ModelConfig
from hebm_sample.data.dataset import ImageDataset
from hebm_sample.presets.models import find_preset
from hebm_sample.presets.paper import PAPER_PRESETS
from hebm_sample.prior.schedule import DiffusionSchedule, release_levels
from hebm_sample.training import train as runs
from hebm_sample.training.export import load_run
from hebm_sample.training.train import sampling_for, train_generator, train_prior
from hebm_sample.training.trainer import Run, make_accelerator

NAMES = ("celeba64-paper", "celebahq-paper", "cifar10-paper", "lsun-church")
# Image's side, groups a scale, latent dimensions.
SHAPES = {
    "cifar10-paper": (32, {16: 30}, 30 * 20 * 16**2),
    "celebahq-paper": (256, {8: 4, 16: 4, 32: 4, 64: 4, 128: 4}, 1_745_920),
    "celeba64-paper": (64, {8: 5, 16: 5, 32: 5}, 134_400),
    "lsun-church": (64, {8: 5, 16: 5, 32: 5}, 134_400),
}


def test_there_are_four_and_all_can_be_asked_for():
    assert sorted(p.name for p in PAPER_PRESETS) == sorted(NAMES)
    assert all(find_preset(p.name) is p for p in PAPER_PRESETS)


@pytest.mark.parametrize("name", NAMES)
def test_shapes(name):
    preset, (side, groups, dimensions) = find_preset(name), SHAPES[name]
    generator = preset.generator
    assert generator.image_size == side and generator.latent_dimensions == dimensions
    assert {s.resolution: s.groups for s in generator.scales} == groups
    assert {shape[0] for shape in generator.latent_shapes} == {20}
    config = ModelConfig(preset.model_name, generator, preset.prior, preset.sampling)
    assert ModelConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize("name", NAMES)
def test_the_prior_is_the_releases(name):
    """Its levels, parametrisation, optimiser, and chains that sample as they were trained."""
    preset = find_preset(name)
    assert preset.objective == "mle" and preset.prior.parametrization == "release"
    assert preset.prior.levels == pytest.approx(release_levels(3), abs=1e-15)
    a = DiffusionSchedule(preset.prior.levels).a.tolist()
    assert a == pytest.approx([0.99995, 0.72213, 0.38627, 0.02278], abs=5e-6)
    wide = name == "cifar10-paper"
    assert preset.chain_steps == (50 if wide else 30)
    assert preset.prior.step_size_0 == (3e-5 if wide else 2e-5)
    assert preset.prior.width == (128 if wide else 64)
    settings = preset.prior_settings
    assert (settings.learning_rate, settings.weight_decay) == (4e-5, 3e-5)
    assert settings.betas == (0.99, 0.999)
    assert preset.sampling.steps == preset.prior.num_levels * preset.chain_steps
    assert sampling_for(preset) == preset.sampling


def test_batches_of_the_release():
    found = [find_preset(n).prior_settings.batch_size for n in ("cifar10-paper", "celebahq-paper")]
    assert found == [25, 2]


def test_listing_presets_needs_no_torch():
    script = "import sys, hebm_sample.presets.models; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True)


# ---- each of them, run


def shortened(preset):
    """The whole architecture; two steps of one image, chains of two, three levels to sample."""
    short = {"steps": 2, "batch_size": 1, "validation": 1, "log_every": 1, "checkpoint_every": 0.0}
    return replace(
        preset,
        chain_steps=2,
        sampling=replace(preset.sampling, steps=3),
        generator_settings=replace(preset.generator_settings, **short),
        prior_settings=replace(preset.prior_settings, **short),
    )


def some_images(preset, count=3):
    random, size = np.random.default_rng(0), preset.generator.image_size
    images = random.integers(0, 256, (count, 3, size, size)).astype(np.uint8)
    labels = {s.name: random.integers(0, 2, count) for s in preset.prior.symbols}
    return ImageDataset(images, labels, {}, (0,), "noise")


def interrupted_and_resumed(monkeypatch, train):
    """Stop before the second step, then go on; the result of the second call."""
    one_step = Run.one_step

    def stops(self, step):
        if step == 1:
            raise KeyboardInterrupt
        return one_step(self, step)

    monkeypatch.setattr(Run, "one_step", stops)
    with pytest.raises(KeyboardInterrupt):
        train(resume=False)
    monkeypatch.setattr(Run, "one_step", one_step)
    return train(resume=True)


@pytest.fixture
def folder(tmp_path):
    """Gigabytes of checkpoints, which pytest would keep."""
    yield tmp_path
    shutil.rmtree(tmp_path, ignore_errors=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_it_trains_saves_resumes_and_samples(name, folder, monkeypatch):
    monkeypatch.setattr(runs, "PREVIEW", 1)
    preset = shortened(find_preset(name))
    images = some_images(preset)
    options = {"accelerator": make_accelerator("cpu"), "show_progress": False}

    def generator(resume):
        return train_generator(preset, images, folder / "a", resume=resume, **options)

    result = interrupted_and_resumed(monkeypatch, generator)
    assert (result.steps, result.skipped) == (2, 0)
    model = load_run(folder / "a")
    shutil.rmtree(folder / "a")

    def prior(resume):
        options["objective"] = preset.objective
        return train_prior(preset, model, images, folder / "b", resume=resume, **options)

    result = interrupted_and_resumed(monkeypatch, prior)
    assert (result.steps, result.skipped) == (2, 0)
    pipe = Pipeline.from_pretrained(folder / "b/model", device="cpu")
    assert pipe.config.prior == preset.prior and pipe.config.sampling == preset.sampling
    sample = pipe(1, output_type="torch")
    size = preset.generator.image_size
    assert sample.images.shape == (1, 3, size, size)
    assert bool(torch.isfinite(sample.images).all() and torch.isfinite(sample.energies).all())
    assert sample.energies.shape == (1, len(preset.generator.latent_shapes))
    assert any(bool(net.out.weight.any()) for net in pipe.prior.nets)  # it has learned something
