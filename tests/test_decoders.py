"""Which of a model's decoders shows its latents is the caller's to choose, and is said.

A model with a sharp decoder beside the same model without one: everything but the images, scores
included, is the same whichever decodes.
"""

import json
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from tiny import symbolic_config, tiny_images, tiny_pipeline
from torch import nn

from hebm_sample.cli.edit import main as edit
from hebm_sample.cli.sample import main as sample
from hebm_sample.errors import UserInputError
from hebm_sample.generator.hierarchy import sharp_decoder
from hebm_sample.io.images import read_text
from hebm_sample.pipeline.provenance import Provenance
from hebm_sample.training.decoding.train import sharpened


@pytest.fixture(scope="module")
def plain():
    return tiny_pipeline(symbolic_config(steps=4))


@pytest.fixture(scope="module")
def sharp(plain):
    generator = replace(plain.config.generator, sharp_decoder=plain.config.generator.decoder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        decoder = sharp_decoder(generator)
        nn.init.normal_(decoder.head.weight, std=0.15)
    return sharpened(plain, replace(plain.config, generator=generator), decoder)


@pytest.fixture(scope="module")
def x(plain):
    return (tiny_images(plain.config, 2) + 1) / 2


def _mask(pipe):
    side = pipe.config.generator.image_size
    mask = torch.zeros(side, side, dtype=torch.bool)
    mask[:, : side // 2] = True
    return mask


# Everything that makes images, of a pipeline, two images and what is said of the decoder.
MADE = {
    "call": lambda pipe, x, how: pipe(seeds=[3, 5], **how),
    "best of 2": lambda pipe, x, how: pipe(seeds=[3], best_of=2, **how),
    "gaussian": lambda pipe, x, how: pipe(seeds=[3, 5], prior="gaussian", **how),
    "stream": lambda pipe, x, how: list(pipe.stream(seeds=[3], **how))[-1],
    "vary": lambda pipe, x, how: pipe.vary(x, slice(0, 1), 2, **how),
    "layers": lambda pipe, x, how: pipe.layers(3, 2, **how),
    "edit": lambda pipe, x, how: pipe.edit(x, {"Smiling": "yes"}, steps=4, **how),
    "edit by SDEdit": lambda pipe, x, how: pipe.edit(x, method="noise", steps=4, **how),
    "inpaint": lambda pipe, x, how: pipe.inpaint(x, _mask(pipe), steps=4, **how),
    "decode": lambda pipe, x, how: pipe.decode(pipe.encode(x), **how),
    "reconstruct": lambda pipe, x, how: pipe.reconstruct(x, **how),
    "mix": lambda pipe, x, how: pipe.mix(x[:1], x[1:], 1, **how),
    "interpolate": lambda pipe, x, how: pipe.interpolate(x[:1], x[1:], 3, **how),
}


def made(name, pipe, x, **how):
    """The images, and the samples if they are some."""
    found = MADE[name](pipe, x, {"output_type": "torch", **how})
    return (found, None) if isinstance(found, torch.Tensor) else (found.images, found)


@pytest.mark.parametrize("name", MADE)
def test_the_default_is_the_sharp_decoder_and_the_other_one_can_be_had(name, plain, sharp, x):
    default, samples = made(name, sharp, x)
    chosen, _ = made(name, sharp, x, decoder="sharp")
    likely, other = made(name, sharp, x, decoder="likelihood")
    without, before = made(name, plain, x)
    same, _ = made(name, plain, x, decoder="likelihood")
    assert torch.equal(default, chosen)
    assert (default - likely).abs().max() > 0.05
    assert torch.equal(likely, without) and torch.equal(without, same)
    if samples is None:
        return
    assert (samples.decoder, other.decoder, before.decoder) == ("sharp", *["likelihood"] * 2)
    for a, b, c in zip(samples.latents, other.latents, before.latents, strict=True):
        assert torch.equal(a, b) and torch.equal(b, c)
    if samples.energies is not None:
        assert torch.equal(samples.energies, other.energies)


def test_known_pixels_are_the_images_own_whichever_decodes(sharp, x):
    known = ~_mask(sharp)
    for decoder in ("sharp", "likelihood"):
        filled, _ = made("inpaint", sharp, x, decoder=decoder)
        torch.testing.assert_close(filled[..., known], x[..., known], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", MADE)
def test_a_decoder_that_the_model_lacks_is_refused_before_the_work(name, plain, x, monkeypatch):
    for network in (plain.encoder, plain.prior.nets[0]) if name != "decode" else ():
        monkeypatch.setattr(network, "forward", lambda *_: pytest.fail("worked"))
    monkeypatch.setattr(plain.generator, "render", lambda *_: pytest.fail("decoded"))
    with pytest.raises(UserInputError, match="decoder is 'sharp'; this model has 'likelihood'"):
        made(name, plain, x, decoder="sharp")
    with pytest.raises(UserInputError, match="decoder is 'blunt'; this model has 'likelihood'"):
        made(name, plain, x, decoder="blunt")


def test_no_name_is_taken_for_the_sharp_one(sharp):
    h = sharp.generator.transform(sharp(1).latents).features
    with pytest.raises(UserInputError, match="this model has 'sharp', 'likelihood'"):
        sharp.generator.render(h, "blunt")


def test_scores_do_not_depend_on_the_decoder_that_shows(plain, sharp, x):
    for ask in (
        lambda pipe: pipe.energy(x),
        lambda pipe: pipe.log_density(x),
        lambda pipe: pipe.rate(x, draws=2),
        lambda pipe: pipe.score(x).bound,
        lambda pipe: pipe.score(x).ratios,
        lambda pipe: pipe.classify(x)["Smiling"],
    ):
        assert torch.equal(ask(plain), ask(sharp))


def test_facts_say_what_decodes(plain, sharp):
    for pipe, decoder, said in (
        (plain, None, "likelihood"),
        (sharp, None, "sharp"),
        (sharp, "likelihood", "likelihood"),
    ):
        for found in (
            Provenance.of_samples(pipe, decoder=decoder),
            Provenance.of_decoded(pipe, decoder),
        ):
            assert found.facts["decoder"] == found.text()["decoder"] == said
    assert "decoder" not in Provenance.of_model(sharp).facts  # of scores, which decode nothing


# The commands


@pytest.fixture(scope="module")
def models(plain, sharp, tmp_path_factory):
    home = tmp_path_factory.mktemp("models")
    plain.save_pretrained(home / "plain")
    sharp.save_pretrained(home / "sharp")
    return home


@pytest.fixture
def here(models, tmp_path, monkeypatch, x):
    """A folder with both models, two images and a mask; the tests run in it."""
    monkeypatch.chdir(tmp_path)
    for name in ("plain", "sharp"):
        Path(name).symlink_to(models / name)
    for name, image in zip("ab", x, strict=True):
        pixels = (image * 255).round().byte().permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(f"{name}.png")
    mask = Image.new("L", (16, 16))
    mask.paste(255, (0, 0, 8, 16))
    mask.save("mask.png")
    return tmp_path


COMMANDS = [
    (sample, "-n 2"),
    (sample, "--mix 4:9"),
    (sample, "--layers --seeds 7 -n 2"),
    (sample, "--from-seed 7 --keep-top 1 -n 2"),
    (sample, "--trajectory -n 1"),
    (edit, "edit a.png --attr Smiling --steps 4"),
    (edit, "interpolate a.png b.png -n 3"),
    (edit, "inpaint a.png --mask mask.png --steps 4"),
]


def run(command, words, *more):
    return CliRunner().invoke(command, [*shlex.split(words), *more, "--device", "cpu"])


def pixels(path):
    with Image.open(path) as image:
        return image.tobytes()


@pytest.mark.parametrize(("command", "words"), COMMANDS, ids=[words for _, words in COMMANDS])
def test_commands_decode_as_they_are_told(here, command, words):
    files = {}
    for model, decoder in (("sharp", None), ("sharp", "likelihood"), ("plain", None)):
        path = f"{model}-{decoder}.png"
        more = ["--dataset", f"./{model}", "--out", path, "--json"]
        result = run(command, words, *more, *(["--decoder", decoder] if decoder else []))
        assert result.exit_code == 0, result.output
        said = decoder or ("sharp" if model == "sharp" else "likelihood")
        assert json.loads(result.stdout)["decoder"] == said
        text = read_text(Path(path))
        assert text["decoder"] == said and f"--decoder {said}" in text["command"]
        files[model, decoder] = pixels(path)
    assert files["sharp", None] != files["sharp", "likelihood"] == files["plain", None]


@pytest.mark.parametrize(("command", "words"), [COMMANDS[0], *COMMANDS[5:]])
def test_a_command_refuses_a_decoder_that_the_model_lacks(here, command, words):
    result = run(command, words, "--dataset", "./plain", "--out", "x.png", "--decoder", "sharp")
    assert result.exit_code == 2 and not Path("x.png").exists()
    assert result.stderr == "Error: decoder is 'sharp'; this model has 'likelihood'\n"
