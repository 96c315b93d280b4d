"""Evaluation sets round-trip and are checked; large images are averaged down; Inception gets the
bytes.

A reference taken through one net and compared through another would shift every figure.
"""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from hebm_sample.errors import EnvironmentFailure, UserInputError, WeightsError
from hebm_sample.evaluation import reference
from hebm_sample.evaluation.reference import SHIPPED, build_set, find_set, write_set
from hebm_sample.metrics.features import (
    FeatureNet,
    averaged_down,
    extract,
    load_extractor,
    save_extractor,
)
from hebm_sample.metrics.frechet import FeatureStatistics, frechet_distance
from hebm_sample.metrics.inception import InceptionFeatures

RECIPE = {"classifier": {"mean_accuracy": 0.71239}, "rows": [2000, 4000], "data": "abc"}


def noise(count: int, side: int = 16, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 3, side, side)).astype(np.uint8)


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return FeatureNet({"a": 2, "b": 3}, widths=(8, 12)).eval()


class TestInputSize:
    def test_larger_images_are_seen_as_their_area_averages(self, net):
        images = torch.from_numpy(noise(3, side=256)).float() / 127.5 - 1
        blocks = images.unfold(2, 4, 4).unfold(3, 4, 4).mean(dim=(4, 5))
        torch.testing.assert_close(averaged_down(images, 64), blocks)
        torch.testing.assert_close(net.features(images), net.features(blocks))
        assert averaged_down(blocks, 64) is blocks

    def test_smaller_images_are_as_they_are(self, net):
        images = torch.from_numpy(noise(3, side=32)).float() / 127.5 - 1
        other = FeatureNet(**{**net.settings(), "input_size": 32}).eval()
        other.load_state_dict(net.state_dict())
        assert torch.equal(net.features(images), other.features(images))
        assert other.settings()["input_size"] == 32
        reduced = FeatureNet(**{**net.settings(), "input_size": 16}).eval()
        reduced.load_state_dict(net.state_dict())
        expected = net.features(F.avg_pool2d(images, 2))
        torch.testing.assert_close(reduced.features(images), expected)

    def test_files_from_before_the_setting_load(self, net, tmp_path):
        path = tmp_path / "f.safetensors"
        save_extractor(net, path)
        data = path.read_bytes()
        old = data.replace(rb", \"input_size\": 64", b"").replace(b'"sha256"', b'"nohash"')
        length = int.from_bytes(data[:8], "little") - (len(data) - len(old))
        assert len(old) < len(data)
        path.write_bytes(length.to_bytes(8, "little") + old[8:])
        loaded, _ = load_extractor(path)
        assert isinstance(loaded, FeatureNet) and loaded.input_size == 64
        with pytest.raises(UserInputError, match="input_size is 0"):
            FeatureNet({"a": 2}, input_size=0)


@pytest.fixture(scope="module")
def folder(net, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sets")
    write_set(build_set("toy", net, noise(600), RECIPE), folder)
    return folder


class TestEvaluationSet:
    def test_round_trip(self, net, folder):
        built, found = build_set("toy", net, noise(600), RECIPE), find_set("toy", 16, folder)
        assert found is not None
        np.testing.assert_array_equal(found.statistics.mean, built.statistics.mean)
        np.testing.assert_array_equal(found.statistics.covariance, built.statistics.covariance)
        np.testing.assert_array_equal(found.features, built.features)
        assert (found.statistics.count, len(found.features)) == (600, 512)
        assert (found.recipe, found.name, found.image_size) == (RECIPE, "toy", 16)
        index = json.loads((folder / "index.json").read_text())["sets"]["toy-16.safetensors"]
        assert (index["accuracy"], index["count"]) == (0.7124, 600)

    def test_the_reference_is_of_the_net_that_comes_with_it(self, folder):
        found = find_set("toy", 16, folder)
        assert found is not None
        features = extract(found.net, noise(600))
        again = FeatureStatistics.from_features(features)
        scale = np.trace(again.covariance)
        assert frechet_distance(found.statistics, again) < 1e-9 * scale
        np.testing.assert_allclose(found.features, features[:512], rtol=2e-3, atol=1e-4)

    def test_others_are_none_and_damage_is_found(self, net, folder, tmp_path):
        assert find_set("toy", 32, folder) is None
        assert find_set("other", 16, folder) is None
        assert find_set("toy", 16, tmp_path) is None
        path = write_set(build_set("toy", net, noise(30), RECIPE), tmp_path)
        path.write_bytes(path.read_bytes()[:-1] + b"x")
        with pytest.raises(WeightsError, match="damaged"):
            find_set("toy", 16, tmp_path)
        (tmp_path / "index.json").write_text('{"format_version": 9}')
        with pytest.raises(WeightsError, match="format_version 9"):
            find_set("toy", 16, tmp_path)

    def test_what_is_used_is_what_was_hashed(self, net, tmp_path, monkeypatch):
        """A file that is put right as soon as it was read is no proof of what was read."""
        path = write_set(build_set("toy", net, noise(30), RECIPE), tmp_path)
        whole, read = path.read_bytes(), reference.read_capped
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))

        def read_then_mend(place, limit):
            data = read(place, limit)
            if place == path:
                path.write_bytes(whole)
            return data

        monkeypatch.setattr(reference, "read_capped", read_then_mend)
        with pytest.raises(WeightsError, match="damaged"):
            find_set("toy", 16, tmp_path)

    def test_a_net_can_be_shared(self, net, folder, tmp_path):
        shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
        owner = find_set("toy", 16, tmp_path)
        known = {"model": "m", "num_images": 60, "frechet": 1.5, "frechet_error": 0.1}
        recipe = RECIPE | {"reconstructions": known}
        built = build_set("other", owner.net, noise(60, 32, seed=1), recipe, net_of="toy")
        path = write_set(built, tmp_path)
        assert path.stat().st_size < (tmp_path / "toy-16.safetensors").stat().st_size
        found = find_set("other", 32, tmp_path)
        assert found.space == f"{net.name} of toy" and owner.space == net.name
        images = noise(5, 32, seed=2)
        np.testing.assert_array_equal(extract(found.net, images), extract(owner.net, images))
        np.testing.assert_array_equal(found.statistics.mean, built.statistics.mean)
        assert found.reconstructions("m", 60) == {"frechet": 1.5, "frechet_error": 0.1}
        assert found.reconstructions("m", 61) is found.reconstructions("n", 60) is None
        assert owner.reconstructions("m", 60) is None
        write_set(build_set("toy", net, noise(30), RECIPE), tmp_path)
        with pytest.raises(WeightsError, match="goes with another toy-16"):
            find_set("other", 32, tmp_path)
        with pytest.raises(WeightsError, match="no set nobody"):
            write_set(build_set("x", net, noise(30), RECIPE, net_of="nobody"), tmp_path)

    def test_those_that_come_with_the_package(self):
        rows = json.loads((SHIPPED / "index.json").read_text())["sets"]
        assert rows
        for row in rows.values():
            found = find_set(row["name"], row["image_size"])
            assert found is not None and found.statistics.count == row["count"]
            assert row["size"] < 1.6 * 2**20
            if (known := found.recipe.get("reconstructions")) is not None:
                (count,) = (n for name, n in known.items() if name.startswith("num_"))
                assert found.reconstructions(known["model"], count)["frechet"] == known["frechet"]
                assert found.reconstructions("another model", count) is None
            assert np.linalg.eigvalsh(found.statistics.covariance)[0] > -1e-9


class StubNet(torch.nn.Module):
    def __init__(self, name, features_list, feature_extractor_weights_path=None):
        super().__init__()
        if feature_extractor_weights_path == "broken":
            raise OSError("no route to host")
        self.register_buffer("weight", torch.ones(1))
        self.asked = name, features_list, feature_extractor_weights_path

    def forward(self, pixels):
        assert pixels.dtype == torch.uint8
        return (pixels.float().flatten(2).mean(2),)


class TestInception:
    @pytest.fixture
    def package(self, monkeypatch):
        package = SimpleNamespace(__version__="0.4", FeatureExtractorInceptionV3=StubNet)
        monkeypatch.setattr("hebm_sample.metrics.inception.import_extra", lambda *_: package)
        return package

    def test_the_bytes_arrive_unchanged(self, package):
        extractor, images = InceptionFeatures(), noise(5)
        assert extractor.net.asked == ("inception-v3-compat", ["2048"], None)
        expected = images.reshape(5, 3, -1).mean(2)
        np.testing.assert_allclose(extract(extractor, images), expected, rtol=1e-6)
        assert extractor.name == "2048 Inception features (torch-fidelity 0.4)"
        assert "torch-fidelity 0.4" in json.dumps(extractor.protocol())

    def test_what_is_missing_is_said(self, package, monkeypatch, tmp_path):
        with pytest.raises(UserInputError, match="no weight file"):
            InceptionFeatures(tmp_path / "absent.pth")
        broken = type("Broken", (), {"__init__": lambda *_, **__: 1 / 0})
        package.FeatureExtractorInceptionV3 = broken
        with pytest.raises(EnvironmentFailure, match="weights could not be loaded.*download"):
            InceptionFeatures()
        monkeypatch.undo()
        with pytest.raises(EnvironmentFailure, match=r"pip install .*\[inception\]"):
            InceptionFeatures()
