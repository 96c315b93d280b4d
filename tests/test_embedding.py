"""Embedded models: figures from what was measured, files that two resolutions share kept once.

Without this the package would carry the same energies twice, or lose a model's when another one is
replaced.
"""

import json
from dataclasses import replace

import pytest
import torch
from click.testing import CliRunner
from scripts import script
from tiny import tiny_config, tiny_modules

from hebm_sample import Pipeline
from hebm_sample.config import StageConfig
from hebm_sample.generator.hierarchy import HierarchicalGenerator
from hebm_sample.hub import manifest, resolve


def grown(config, generator):
    """A config of 32x32 images and its generator, grown from the tiny one."""
    stages = (*config.generator.decoder, StageConfig(resolution=16, width=8))
    large = replace(config.generator, image_size=32, decoder=stages, encoder_size=16)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = HierarchicalGenerator(large)
    model.grow_from(generator)
    return replace(config, generator=large), model


@pytest.fixture
def models(tmp_path):
    config = tiny_config()
    generator, encoder, prior = tiny_modules(config)
    Pipeline(config, generator, prior, encoder).save_pretrained(tmp_path / "small")
    large, decoder = grown(config, generator)
    Pipeline(large, decoder, prior, encoder).save_pretrained(tmp_path / "large")
    other = tiny_modules(config, seed=3)
    Pipeline(config, other[0], other[2], other[1]).save_pretrained(tmp_path / "other")
    return tmp_path


@pytest.fixture
def embed(models, monkeypatch):
    with script("tools/embed_weights.py") as tool:
        yield _prepared(tool, models, monkeypatch)


def _prepared(tool, models, monkeypatch):
    root = models / "root"
    weights = root / "hebm_sample" / "weights"
    weights.mkdir(parents=True)
    manifest.write_manifest(root / "weights_manifest.json", [])
    monkeypatch.setattr(tool, "ROOT", root)
    monkeypatch.setattr(tool, "WEIGHTS", weights)
    monkeypatch.setattr(resolve, "EMBEDDED", weights)
    monkeypatch.setattr(manifest, "_package_manifest", lambda: root / "weights_manifest.json")
    gap = {k: 1.23456 for k in ("fd_recon", "fd_gauss", "fd_model")}
    gap |= {"gap_closed": 0.51234, "gap_closed_error": 0.04, "num_images": 100}
    figures = {"gaps": {"pixels": gap}, "bits": 5.4321, "kl": [1.0, 2.0, 3.0]}
    figures["sampling"] = tiny_config().sampling.to_dict()
    (models / "figures.json").write_text(json.dumps(figures))
    (models / "notes.md").write_text("## Data\n\nDiscs.\n")

    def run(name, weights=None, report=None, control=None, **changed):
        own = Pipeline.from_pretrained(models / name, device="cpu").weights_hash
        said = {} if weights == "" else {"weights": weights or own}
        whole = {"parts": {report: figures}} if report else figures | changed
        (models / "figures.json").write_text(json.dumps(whole | said))
        options = ["--figures", models / "figures.json", "--notes", models / "notes.md"]
        if control is not None:
            (models / "control.json").write_text(json.dumps(control | said))
            options += ["--control", models / "control.json"]
        arguments = map(str, (models / name, *options, "--licence", "CC0-1.0"))
        return CliRunner().invoke(tool.main, list(arguments))

    return run


def assert_it_is(name, resolution, folder):
    pipe = Pipeline.from_pretrained(name, resolution=resolution, device="cpu")
    origin = Pipeline.from_pretrained(folder, device="cpu")
    for module in ("generator", "prior", "encoder"):
        expected = getattr(origin, module).state_dict()
        for key, value in getattr(pipe, module).state_dict().items():
            assert torch.equal(value, expected[key]), key


def test_figures_of_other_weights_are_refused(models, embed):
    """Those that do not say are taken for weights that are embedded already."""
    refused = embed("small", weights="a" * 64)
    assert refused.exit_code == 1 and "measured with other weights" in refused.output
    refused = embed("small", weights="")
    assert refused.exit_code == 1 and "does not say which weights" in refused.output
    assert [embed("small", weights=said).exit_code for said in (None, "")] == [0, 0]


def test_a_report_has_the_figures_too(models, embed):
    refused = embed("small", report="hole")
    assert refused.exit_code == 1 and "no part gap" in refused.output
    refused = embed("small", weights="a" * 64, report="gap")
    assert refused.exit_code == 1 and "measured with other weights" in refused.output
    assert embed("small", report="gap").exit_code == 0
    assert "0.512" in (models / "root/hebm_sample/weights/tiny-16/README.md").read_text()


def test_figures_of_another_sampler_or_without_a_gap_are_refused(models, embed):
    other = replace(tiny_config().sampling, steps=7).to_dict()
    control = {"variables": {}, "combinations": [], "sampling": other}
    null = {"pixels": {"gap_closed": None, "num_images": 100}}
    for how, said in (
        ({"sampling": other}, "figures.json was measured with other settings"),
        ({"control": control}, "control.json was measured with other settings"),
        ({"gaps": {}}, "the figures have no gap; measure with --data"),
        ({"gaps": null}, "there is no gap to close in pixels"),
    ):
        refused = embed("small", **how)
        assert refused.exit_code == 1 and said in refused.output
        assert not (models / "root/hebm_sample/weights/tiny-16").exists()


@pytest.mark.parametrize("order", [("small", "large"), ("large", "small")])
def test_two_resolutions_share_their_files(models, embed, order):
    assert [embed(name).exit_code for name in order] == [0, 0]
    weights = models / "root/hebm_sample/weights"
    for name in ("prior.safetensors", "encoder.safetensors"):
        assert len(list(weights.glob(f"*/{name}"))) == 1
    assert len(list(weights.glob("*/generator.safetensors"))) == 2
    assert_it_is("tiny", 16, models / "small")
    assert_it_is("tiny", 32, models / "large")
    assert Pipeline.from_pretrained("tiny").config.generator.image_size == 32
    card = (weights / "tiny-32/README.md").read_text()
    assert "0.512" in card and "Discs." in card
    assert 'from_pretrained("tiny")' in card and "--dataset tiny -n 16" in card
    if order[0] == "large":
        card = (weights / "tiny-16/README.md").read_text()
        assert 'from_pretrained("tiny", resolution=16)' in card
        assert "`hebm-sample --dataset tiny --resolution 16 -n 16`" in card


def test_samples_beside_a_model_are_on_its_card(models, embed):
    assert embed("small").exit_code == 0
    card = models / "root/hebm_sample/weights/tiny-16/README.md"
    assert "samples.png" not in card.read_text()
    (models / "small/samples.png").write_bytes(b"an image")
    assert embed("small").exit_code == 0
    assert "![Samples of seeds 0 to 15, not picked](samples.png)" in card.read_text()
    assert (card.parent / "samples.png").read_bytes() == b"an image"


def test_a_shared_file_is_not_lost(models, embed):
    assert [embed(name).exit_code for name in ("small", "large")] == [0, 0]
    (models / "small").rename(models / "was")
    (models / "other").rename(models / "small")  # other weights, under the same name and size
    refused = embed("small")
    assert refused.exit_code == 1
    assert "tiny-32 shares" in refused.output and "encoder.safetensors" in refused.output
    assert_it_is("tiny", 16, models / "was")
    (models / "large").rename(models / "old")
    other = Pipeline.from_pretrained(models / "small", device="cpu")
    config, decoder = grown(other.config, other.generator)
    Pipeline(config, decoder, other.prior, other.encoder).save_pretrained(models / "large")
    assert [embed(name).exit_code for name in ("large", "small")] == [0, 0]
    assert_it_is("tiny", 16, models / "small")
    assert_it_is("tiny", 32, models / "large")
