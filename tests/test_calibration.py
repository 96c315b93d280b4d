"""A model folder that carries a calibration: p-values in Python and in the command, and folders
that carry none as they always were.
"""

import hashlib
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
from hebm_sample.cli.evaluation import calibrate as calibrate_command
from hebm_sample.cli.evaluation.main import main as eval_main
from hebm_sample.cli.train import main as train_main
from hebm_sample.errors import UserInputError, WeightsError
from hebm_sample.evaluation import calibration as calibration_module
from hebm_sample.evaluation.calibration import calibrate, measure_images
from hebm_sample.hub import save as save_module
from hebm_sample.hub.manifest import FileRow, read_row, write_manifest
from hebm_sample.hub.save import write_calibration
from hebm_sample.metrics.typicality import (
    FEWEST_IMAGES,
    Calibration,
    calibration_bytes,
    fit_calibration,
    share_in_words,
    uniformity,
)
from hebm_sample.pipeline.pipeline import Pipeline

COUNT = 240


def discs(folder, count, seed):
    """uint8 (N, 3, 16, 16)."""
    files = sorted(draw_images(folder, count, seed).glob("*.png"))
    return np.stack([np.asarray(Image.open(f)).transpose(2, 0, 1) for f in files])


def as_floats(images):
    return torch.from_numpy(images).float() / 255


def rewrite(folder, data):
    """A model's calibration.json, listed as it is."""
    content = json.dumps(data).encode()
    (folder / "calibration.json").write_bytes(content)
    row = read_row(folder)
    file = FileRow(len(content), hashlib.sha256(content).hexdigest())
    row = replace(row, files={**row.files, "calibration.json": file})
    write_manifest(folder / "weights_manifest.json", [row])


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("calibrated")


@pytest.fixture(scope="module")
def held_out(home):
    return discs(home / "discs", COUNT, 3)


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
        assert "120 held-out images" in found.note
        assert "p-value 0.00826: more unusual than all 120 held-out images" in str(found)

    @pytest.mark.parametrize("weight", [0.0, 1e-7])
    def test_a_group_that_has_collapsed_does_not_count(self, home, held_out, weight):
        """Its posterior is the same for every image, to rounding."""
        generator, encoder, prior = tiny_modules()
        with torch.no_grad():
            encoder.heads[2].out.weight.mul_(weight)
            encoder.heads[2].out.bias.fill_(0.1234567)
        known = calibrate(Pipeline(tiny_config(), generator, prior, encoder), held_out)
        assert known.distances.max() > 1.5 * known.distances.min()
        pipe = Pipeline(tiny_config(), generator, prior, encoder, calibration=known)
        p = pipe.score(as_floats(discs(home / f"few-{weight}", 40, 2)), batch_size=40).p_value
        assert p.min() < 0.3 < 0.7 < p.max()
        noise = torch.rand(5, 3, 16, 16, generator=torch.Generator().manual_seed(0))
        assert (pipe.score(noise).p_value < 0.02).all()

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
        x = as_floats(held_out[:3])
        found = pipe.score(x)
        assert found.ratios.shape == (3, 3) and len(found) == 3
        # -log p = -F + |u|^2 / 2
        each = [pipe.encode(x, seeds=[draw] * 3) for draw in range(2)]
        squares = sum(sum(g.flatten(1).square().sum(1) / 2 for g in u) for u in each) / 2
        torch.testing.assert_close(
            -found.log_density, found.energy + squares, rtol=1e-4, atol=1e-3
        )

    def test_without_a_calibration_one_line_says_so(self, held_out):
        found = tiny_pipeline().score(as_floats(held_out[:2]))
        assert found.p_value is None and found.distance is None
        assert found.note.startswith("no p-values: tiny carries no calibration")
        assert "\n" not in found.note and str(found).endswith(found.note)


class TestWeights:
    """A calibration speaks for the weights that it is of, and for no others."""

    def modules(self, held_out):
        generator, encoder, prior = tiny_modules()
        plain = Pipeline(tiny_config(), generator, prior, encoder)
        known = calibrate(plain, held_out)
        return Pipeline(tiny_config(), generator, prior, encoder, calibration=known)

    def exchange(self, pipe, part):
        generator, encoder, prior = tiny_modules(seed=5)
        if part == "prior":
            pipe.prior = prior.eval()
        elif part == "generator":
            pipe.generator = generator.eval()
        elif part == "encoder":
            pipe.model._encoder = encoder.eval()
        elif part == "description":
            levels = (*tiny_config().prior.levels[:-1], 0.9999)
            pipe.config = replace(tiny_config(), prior=replace(tiny_config().prior, levels=levels))
        else:  # further training
            with torch.no_grad():
                pipe.prior.nets[0].out.weight.mul_(1.5)

    @pytest.mark.parametrize("part", ["prior", "generator", "encoder", "description", "training"])
    def test_others_have_no_p_values(self, folder, held_out, tmp_path, part):
        pipe, x = Pipeline.from_pretrained(folder, device="cpu"), as_floats(held_out[:2])
        assert pipe.score(x).p_value is not None
        self.exchange(pipe, part)
        found = pipe.score(x)
        assert found.p_value is None and found.distance is None and found.held_out == 0
        assert "is of other weights than it has now; calibrate it again" in found.note
        assert "\n" not in found.note and found.note == pipe.p_value_note()
        if part != "description":
            pipe.save_pretrained(tmp_path / "copy")
            assert not (tmp_path / "copy/calibration.json").exists()

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
    def test_precisions_are_no_other_weights(self, held_out, tmp_path, dtype):
        """Saved from memory in any, loaded, saved again."""
        pipe, x = self.modules(held_out), as_floats(held_out[:4])
        before = pipe.score(x).p_value
        for name in ("once", "twice"):
            pipe.save_pretrained(tmp_path / name, dtype=dtype)
            pipe = Pipeline.from_pretrained(tmp_path / name, device="cpu")
            rounding = 0.05 if dtype != torch.bfloat16 else 0.2
            assert (pipe.score(x).p_value - before).abs().max() < rounding
        pipe.to(torch.bfloat16)
        assert (pipe.score(x).p_value - before).abs().max() < 0.2
        assert pipe.to("cpu", torch.float32).score(x).p_value is not None

    def test_one_that_cannot_be_read_stops_what_does_without_it_no_more(self, folder, tmp_path):
        pipe = Pipeline.from_pretrained(folder, device="cpu")
        old = pipe.calibration.to_dict() | {"format_version": 1}
        for name in ("m", "facts"):
            pipe.save_pretrained(tmp_path / name)
        rewrite(tmp_path / "m", old)
        rewrite(tmp_path / "facts", pipe.calibration.to_dict() | {"facts": {"draws": 10**9}})
        image = Image.new("RGB", (16, 16), (9, 9, 9))
        for name, said in (("m", "calibrate the model again"), ("facts", "1 to 1000")):
            stale = Pipeline.from_pretrained(tmp_path / name, device="cpu")
            with pytest.raises(WeightsError, match=rf"calibration\.json: .*{said}"):
                stale.score([image])
            assert stale.energy([image]).shape == (1,)
            assert stale.framing_notes([image]) == []
            assert len(stale.edit([image], None, steps=6)) == 1
            stale.save_pretrained(tmp_path / f"{name}-copy")
            assert not (tmp_path / f"{name}-copy/calibration.json").exists()
            line = ["score", str(tmp_path / f"{name}.png"), "--dataset", str(tmp_path / name)]
            image.save(line[1])
            result = CliRunner().invoke(edit_main, line)
            assert isinstance(result.exception, SystemExit) and said in result.output
            assert len(result.output.strip().splitlines()) == 1


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
        known = calibrate(Pipeline(tiny_config(), generator, prior, encoder), held_out)
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
        p, words = row["p_value"], share_in_words(row["p_value"], 105)
        assert f" {p:.3g} ({words}) " in table[1]

    def test_rows_that_are_sorted_by_class_are_all_calibrated(self, tmp_path, monkeypatch):
        """The first half of the rows is dark, the other bright."""
        monkeypatch.setenv("HEBM_CACHE", str(tmp_path / "cache"))
        rng = np.random.default_rng(0)

        def draw(folder, bright, count):
            folder.mkdir(parents=True)
            for i in range(count):
                low = rng.integers(0, 100, (4, 4, 3)) + 150 * bright
                image = Image.fromarray(low.astype(np.uint8)).resize((16, 16), Image.BICUBIC)
                image.save(folder / f"{i:03}.png", compress_level=0)
            return sorted(folder.iterdir())

        new = [draw(tmp_path / name, name == "b", 20) for name in ("a", "b")]
        for name in ("cat", "dog"):
            draw(tmp_path / "data" / name, name == "dog", 230)
        tiny_pipeline().save_pretrained(tmp_path / "model")
        arguments = ["--data", str(tmp_path / "data"), "--validation", "450", "-n", "220"]
        line = ["calibrate", str(tmp_path / "model"), *arguments, "--quiet"]
        done = CliRunner().invoke(train_main, line)
        assert done.exit_code == 0, done.output
        pipe = Pipeline.from_pretrained(tmp_path / "model", device="cpu")
        for paths in new:
            p = pipe.score(paths).p_value
            assert 0.1 < p.median() < 0.9 and (p < 0.05).double().mean() < 0.4
        assert "from the beginning and from the end of the data differ" in done.output
        assert pipe.calibration.facts["rows_ks_p_value"] < 0.01

    def test_what_was_calibrated_in_one_piece_has_no_note(self, pipe):
        assert pipe.calibration.facts["rows_ks_p_value"] > 0.01

    def test_refused_before_data_are_read(self, tmp_path):
        generator, encoder, prior = tiny_modules()
        Pipeline(tiny_config(), generator, prior, None).save_pretrained(tmp_path / "blind")
        bare = replace(tiny_config(), prior=None)
        Pipeline(bare, generator, None, encoder).save_pretrained(tmp_path / "bare")
        data = ["--data", str(tmp_path / "absent")]
        for name, said in (("blind", "has no encoder"), ("bare", "no energy-based prior")):
            model = str(tmp_path / name)
            for main, words in (
                (train_main, ["calibrate", model]),
                (eval_main, ["ood", model]),
                (eval_main, ["distances", model]),
                (eval_main, ["report", model, "--out", str(tmp_path / "out")]),
            ):
                result = CliRunner().invoke(main, [*words, *data])
                assert result.exit_code == 2 and said in result.output, result.output
        few = CliRunner().invoke(train_main, ["calibrate", str(tmp_path / "blind"), *data, "-n9"])
        assert few.exit_code == 2 and "9 is not in the range" in few.output
        assert calibrate_command.FEWEST_IMAGES == FEWEST_IMAGES

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

    def test_statistics_that_could_not_be_read_again(self, held_out, monkeypatch, tmp_path):
        """Refused before they are measured; by the writer, too, before anything is written."""
        plain = tiny_pipeline()
        measured = []
        real = calibration_module.measure

        def measure(model, x, *args):
            measured.append(len(x))
            return real(model, x, *args)

        monkeypatch.setattr(calibration_module, "measure", measure)
        monkeypatch.setattr(calibration_module, "MAX_CALIBRATION_BYTES", 1000)
        with pytest.raises(UserInputError, match="1000 are the most that is read"):
            calibrate(plain, held_out)
        assert sum(measured) == 1
        plain.save_pretrained(tmp_path / "model")
        before = {f.name: f.read_bytes() for f in (tmp_path / "model").iterdir()}
        known = fit_calibration(np.random.default_rng(0).normal(size=(200, 9)), list("abcdefghi"))
        monkeypatch.setattr(save_module, "MAX_CALIBRATION_BYTES", 1000)
        with pytest.raises(UserInputError, match="1000 are the most that is read"):
            write_calibration(tmp_path / "model", known)
        assert before == {f.name: f.read_bytes() for f in (tmp_path / "model").iterdir()}

    def test_the_largest_nvae_can_be_calibrated(self, tmp_path):
        """36 groups of 20 channels: some 2,600 statistics, written and read."""
        statistics = 3 * 36 * 20 + 6 * 36 + 12
        assert calibration_bytes(statistics, 10_000) < save_module.MAX_CALIBRATION_BYTES
        x = np.random.default_rng(0).normal(size=(200, 400))
        tiny_pipeline().save_pretrained(tmp_path / "model")
        known = fit_calibration(x, [f"channel mean {i}" for i in range(400)])
        row = write_calibration(tmp_path / "model", known)
        assert row.files["calibration.json"].size < calibration_bytes(400, 100)
        loaded = Pipeline.from_pretrained(tmp_path / "model", device="cpu").calibration
        np.testing.assert_array_equal(loaded.distance(x[:2]), known.distance(x[:2]))

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


def test_ties_count_as_at_least_as_unusual():
    """Without, duplicates of an odd image would all be the rarest that there is."""
    kept = np.append(np.linspace(1, 2, 97), [3.0] * 3)
    stated = Calibration(("a",), np.zeros(1), np.ones(1), np.eye(1), kept, {})
    found = stated.p_value(np.array([[3.0], [3.0 + 1e-9], [-3.0], [3.1], [0.5]]))
    assert found.tolist() == pytest.approx([4 / 101, 4 / 101, 4 / 101, 1 / 101, 1.0])
