"""A model folder that carries a calibration: p-values in Python and in the command, and folders
that carry none as they always were.
"""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from tiny import tiny_config, tiny_modules, tiny_pipeline
from toy import draw_images

from hebm_sample.cli.edit import main as edit_main
from hebm_sample.cli.train import main as train_main
from hebm_sample.errors import UserInputError, WeightsError
from hebm_sample.evaluation.calibration import calibrate, measure_images
from hebm_sample.hub.save import write_calibration
from hebm_sample.metrics.typicality import uniformity
from hebm_sample.pipeline.pipeline import Pipeline

COUNT = 240


def discs(folder, count, seed):
    """uint8 (N, 3, 16, 16)."""
    files = sorted(draw_images(folder, count, seed).glob("*.png"))
    return np.stack([np.asarray(Image.open(f)).transpose(2, 0, 1) for f in files])


def as_floats(images):
    return torch.from_numpy(images).float() / 255


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("calibrated")


@pytest.fixture(scope="module")
def held_out(home):
    return discs(home / "discs", COUNT, 1)


@pytest.fixture(scope="module")
def folder(home, held_out):
    """A saved model, calibrated."""
    pipe = tiny_pipeline()
    pipe.save_pretrained(home / "model")
    before = {p.name: p.read_bytes() for p in (home / "model").iterdir()}
    loaded = Pipeline.from_pretrained(home / "model", device="cpu")
    row = write_calibration(home / "model", calibrate(loaded, held_out))
    after = {p.name: p.read_bytes() for p in (home / "model").iterdir()}
    changed = {name for name in after if before.get(name) != after[name]}
    assert changed == {"calibration.json", "weights_manifest.json"}
    assert "calibration.json" in row.files
    return home / "model"


@pytest.fixture(scope="module")
def pipe(folder):
    return Pipeline.from_pretrained(folder, device="cpu")


class TestScore:
    def test_new_images_of_the_same_kind_have_uniform_p_values(self, pipe, home):
        new = discs(home / "new", 120, 2)
        p = pipe.score(as_floats(new), batch_size=50).p_value.double().numpy()
        ranks = np.linspace(0, 1, len(pipe.calibration.distances) + 2)[1:]
        assert uniformity(ranks, p)[1] > 0.01
        distance = pipe.calibration.distance(measure_images(pipe, new).statistics.numpy())
        assert uniformity(pipe.calibration.distances, distance)[1] > 0.01

    def test_other_images_are_unusual(self, pipe):
        noise = torch.rand(20, 3, 16, 16, generator=torch.Generator().manual_seed(0))
        found = pipe.score(noise)
        assert (found.p_value < 0.02).all()
        assert "held-out images" in found.note and "p-value 0.00" in str(found)

    def test_is_the_same_alone_and_in_any_batch(self, pipe, held_out):
        x = as_floats(held_out[:6])
        together = pipe.score(x, batch_size=6)
        for i in (0, 4):
            alone = pipe.score(x[i : i + 1])
            torch.testing.assert_close(alone.distance[0], together.distance[i], rtol=1e-4, atol=0)
            torch.testing.assert_close(alone.ratios[0], together.ratios[i], rtol=1e-3, atol=1e-2)
        backwards = pipe.score(x.flip(0), batch_size=4).p_value.flip(0)
        assert (backwards - together.p_value).abs().max() < 0.02

    def test_the_parts_belong_together(self, pipe, held_out):
        found = pipe.score(as_floats(held_out[:3]))
        assert found.ratios.shape == (3, 3) and (found.ratios[:, 0] == 0).all()
        # -log p = -F + |u|^2 / 2
        assert (-found.log_density > found.energy).all()
        assert len(found) == 3

    def test_without_a_calibration_one_line_says_so(self, held_out):
        found = tiny_pipeline().score(as_floats(held_out[:2]))
        assert found.p_value is None and found.distance is None
        assert found.note.startswith("no p-values: tiny carries no calibration")
        assert "\n" not in found.note and str(found).endswith(found.note)


class TestFolder:
    def test_saved_again_it_carries_the_same(self, pipe, tmp_path):
        pipe.save_pretrained(tmp_path / "copy")
        again = Pipeline.from_pretrained(tmp_path / "copy", device="cpu").calibration
        assert again.to_dict() == pipe.calibration.to_dict()
        tiny_pipeline().save_pretrained(tmp_path / "copy", overwrite=True)
        assert not (tmp_path / "copy/calibration.json").exists()
        assert Pipeline.from_pretrained(tmp_path / "copy", device="cpu").calibration is None

    def test_a_corrupt_file_is_refused(self, pipe, tmp_path):
        pipe.save_pretrained(tmp_path / "model")
        path = tmp_path / "model/calibration.json"
        path.write_text(path.read_text().replace("1", "2", 1))
        with pytest.raises(WeightsError, match=r"calibration\.json is corrupt"):
            Pipeline.from_pretrained(tmp_path / "model", device="cpu")

    def test_of_other_statistics_it_is_refused(self, held_out):
        generator, encoder, prior = tiny_modules()
        known = calibrate(tiny_pipeline(), held_out)
        other = replace(known, names=tuple(reversed(known.names)))
        pipe = Pipeline(tiny_config(), generator, prior, encoder, calibration=other)
        with pytest.raises(UserInputError, match="calibrate the model again"):
            pipe.score(as_floats(held_out[:1]))


class TestCommands:
    def test_calibrate_then_score(self, home, held_out, tmp_path, monkeypatch):
        monkeypatch.setenv("HEBM_CACHE", str(tmp_path / "cache"))
        tiny_pipeline().save_pretrained(tmp_path / "model")
        image = str(home / "discs/000.png")
        score = ["score", image, "--dataset", str(tmp_path / "model")]
        bare = CliRunner().invoke(edit_main, [*score, "--json"])
        answer = json.loads(bare.stdout)
        assert answer["scores"][0]["p_value"] is None
        assert answer["p_value"].startswith("no p-values: tiny carries no calibration")
        assert "p-value" not in CliRunner().invoke(edit_main, score).stdout.splitlines()[0]

        arguments = ["--data", str(home / "discs"), "--validation", "210", "-n", "210", "--quiet"]
        done = CliRunner().invoke(train_main, ["calibrate", str(tmp_path / "model"), *arguments])
        assert done.exit_code == 0, done.output
        assert "210 held-out images" in done.output

        answer = json.loads(CliRunner().invoke(edit_main, [*score, "--json"]).stdout)
        pipe = Pipeline.from_pretrained(tmp_path / "model", device="cpu")
        found = pipe.score([Image.open(image)])
        row = answer["scores"][0]
        assert row["p_value"] == pytest.approx(found.p_value.item(), abs=1e-6)
        density = pipe.log_density([Image.open(image)]).item()
        assert row["log_density"] == pytest.approx(density, rel=1e-5)
        table = CliRunner().invoke(edit_main, score).stdout.splitlines()
        assert table[0].split()[:2] == ["image", "p-value"]
        assert table[-1] == pipe.p_value_note() == answer["p_value"]

    def test_errors_are_one_line(self, home, tmp_path, monkeypatch):
        monkeypatch.setenv("HEBM_CACHE", str(tmp_path / "cache"))
        tiny_pipeline().save_pretrained(tmp_path / "model")
        data = ["--data", str(home / "discs"), "--quiet"]
        for arguments, message in (
            ([str(tmp_path), *data], "is no model folder"),
            (["cifar10", *data], "cifar10 is no model folder"),
            ([str(tmp_path / "model"), *data, "--validation", "30"], "30 held-out images"),
        ):
            result = CliRunner().invoke(train_main, ["calibrate", *arguments])
            assert result.exit_code == 2 and message in result.output, result.output
            assert len(result.output.strip().splitlines()) == 1
        assert not (tmp_path / "model/calibration.json").exists()


class TestBadInput:
    def test_too_few_images(self, held_out):
        with pytest.raises(UserInputError, match=r"50 held-out images .* tiny; it takes 200"):
            calibrate(tiny_pipeline(), held_out[:50])

    def test_no_prior(self, held_out):
        generator, encoder, _ = tiny_modules()
        bare = Pipeline(replace(tiny_config(), prior=None), generator, None, encoder)
        for call in (
            lambda: bare.score(as_floats(held_out[:1])),
            lambda: calibrate(bare, held_out),
        ):
            with pytest.raises(UserInputError, match="tiny has no energy-based prior"):
                call()

    def test_no_encoder(self, held_out, tmp_path):
        generator, _, prior = tiny_modules()
        Pipeline(tiny_config(), generator, prior, None).save_pretrained(tmp_path / "blind")
        blind = Pipeline.from_pretrained(tmp_path / "blind", device="cpu")
        with pytest.raises(UserInputError, match="no encoder, so it cannot read"):
            blind.score(as_floats(held_out[:1]))
