"""A changed default dtype or default device changes nothing in training and measuring, either.

Without this a notebook that works in float64 trains other weights, or fails in the middle.
"""

from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny import tiny_pipeline
from toy import draw_images, short_preset

from hebm_sample.data.dataset import StepSampler, load_images
from hebm_sample.evaluation.folders import compare_folders
from hebm_sample.evaluation.latent_ddpm import train_ddpm
from hebm_sample.io.defaults import usual_defaults
from hebm_sample.metrics.attribute_classifier import train_attribute_classifier
from hebm_sample.metrics.classifiers import train_feature_net
from hebm_sample.training.checkpoint import latest_checkpoint
from hebm_sample.training.costs.dry_run import dry_run
from hebm_sample.training.decoding.train import train_decoder
from hebm_sample.training.export import export, load_run
from hebm_sample.training.train import train_generator, train_prior

QUIET = {"show_progress": False}


@contextmanager
def changed(how):
    """A process whose owner has set a default; tensors on "meta" have no numbers, and whatever
    lands there fails.
    """
    try:
        if how == "float64":
            torch.set_default_dtype(torch.float64)
        elif how:
            torch.set_default_device(how)
        yield
        if how == "float64":
            assert torch.get_default_dtype() == torch.float64
        elif how:
            assert torch.empty(0).device.type == how
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)


def weights(run):
    """All that a run has written of numbers: model, average, optimiser."""
    found = {}
    for file in [*latest_checkpoint(run).glob("*.safetensors"), *run.glob("*.safetensors")]:
        found |= {f"{file.name} {k}": v for k, v in load_file(file, device="cpu").items()}
    for file in (run / "model").glob("*.safetensors"):
        found |= {f"model {file.name} {k}": v for k, v in load_file(file, device="cpu").items()}
    return found


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    home = tmp_path_factory.mktemp("data")
    folder = draw_images(home / "images", labels=True)
    return load_images(folder, size=16, cache_dir=home / "cache", progress=False)


def trained(images, home):
    """Runs of every kind, and what follows from them."""
    settings = {"steps": 2, "batch_size": 8, "log_every": 1, "evaluate_every": 1, "heldout": 4}
    preset = short_preset(zoom=0.6, flip=True, **settings)
    once = replace(preset, prior_settings=replace(preset.prior_settings, zoom=1.0))
    train_generator(preset, images, home / "generator", **QUIET)
    model = load_run(home / "generator")
    train_prior(once, model, images, home / "prior", **QUIET)
    train_prior(once, model, images, home / "mle", objective="mle", **QUIET)
    train_decoder(preset, load_run(home / "prior"), images, home / "decoder", **QUIET)
    train_ddpm(once, load_run(home / "prior"), images, home / "ddpm", **QUIET)
    export(home / "prior", home / "exported")
    names = ("generator", "prior", "mle", "decoder", "ddpm")
    found = {f"{run} {k}": v for run in names for k, v in weights(home / run).items()}
    shown = load_file(home / "exported/prior.safetensors", device="cpu")
    return found | {f"exported {k}": v for k, v in shown.items()}


@pytest.fixture(scope="module")
def usual(images, tmp_path_factory):
    return trained(images, tmp_path_factory.mktemp("usual"))


@pytest.mark.parametrize("how", ["float64", pytest.param("meta", marks=pytest.mark.slow)])
def test_the_same_weights(usual, images, tmp_path, how):
    with changed(how):
        found = trained(images, tmp_path)
    assert found.keys() == usual.keys()
    for name, value in usual.items():
        assert found[name].dtype == value.dtype and torch.equal(found[name], value), name


def measured(images, folder):
    shown, few = np.asarray(images.images[:]), {"steps": 2, "batch_size": 8, "progress": False}
    net, _ = train_feature_net(shown, images.labels, **few)
    classifier, _ = train_attribute_classifier(shown, images.labels, **few)
    compared = compare_folders(folder, folder, cache_dir=folder / ".cache", progress=False)
    dry_run("generator", short_preset(), torch.device("cpu"))
    return [*net.state_dict().values(), *classifier.state_dict().values()], compared.to_dict()


@pytest.fixture(scope="module")
def few(images, tmp_path_factory):
    folder = draw_images(tmp_path_factory.mktemp("few") / "a", count=12)
    return folder, *measured(images, folder)


@pytest.mark.parametrize("how", ["float64", "meta"])
def test_the_same_figures(images, few, how):
    folder, tensors, figures = few
    with changed(how):
        again, same = measured(images, folder)
    assert same == figures
    for a, b in zip(tensors, again, strict=True):
        assert a.dtype == b.dtype and torch.equal(a, b)


@pytest.mark.parametrize("how", ["float64", "meta"])
def test_rows_and_squares(how):
    def found():
        sampler = StepSampler(10, 4, 0)
        return sampler.indices(1), sampler.flips(1), sampler.squares(1, 0.5)

    usual = found()
    with changed(how):
        again = found()
    for a, b in zip(usual, again, strict=True):
        assert a.dtype == b.dtype and b.device.type == "cpu" and torch.equal(a, b)


def test_what_was_set_is_set_again():
    @usual_defaults()
    def fails():
        assert torch.empty(0).dtype == torch.float32 and torch.empty(0).device.type == "cpu"
        tiny_pipeline()
        raise ValueError

    for how in ("float64", "meta"):
        with changed(how), pytest.raises(ValueError):
            fails()
