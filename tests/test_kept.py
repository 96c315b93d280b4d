"""What is kept to save work is what was written, or is made again: a figure of damaged samples, or
in the features of a damaged classifier, looks like any other.
"""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save
from tiny import tiny_pipeline
from toy import draw_images

from hebm_sample.data.dataset import load_images
from hebm_sample.evaluation.classifiers import find_attribute_classifier
from hebm_sample.evaluation.distances import feature_spaces, make_context
from hebm_sample.evaluation.report import report as reports
from hebm_sample.io.kept import keep_json, kept_json, open_tensors, tensor_bytes

AGAIN = "damaged and is made again"
TENSORS = {"b": torch.arange(6.0).reshape(2, 3), "a": torch.ones(0, 2).half()}


def test_every_changed_byte_is_noticed():
    data = tensor_bytes(TENSORS, {"what": "it is"})
    found, facts = open_tensors(data, hashed=True)
    assert facts == {"what": "it is"} and found.keys() == TENSORS.keys()
    assert all(torch.equal(found[k], v) for k, v in TENSORS.items())
    for i in range(len(data)):
        with pytest.raises(ValueError):
            open_tensors(data[:i] + bytes([data[i] ^ 1]) + data[i + 1 :], hashed=True)
        with pytest.raises(ValueError):
            open_tensors(data[:i], hashed=True)
    plain = save(TENSORS)
    assert open_tensors(plain)[0].keys() == TENSORS.keys()
    with pytest.raises(ValueError, match="no hash"):
        open_tensors(plain, hashed=True)


def test_every_other_number_is_noticed(tmp_path):
    path = tmp_path / "inner" / "row.json"
    assert kept_json(path) is None
    keep_json(path, {"x": 0.1, "rows": [1, None]})
    assert kept_json(path) == {"x": 0.1, "rows": [1, None]}
    text = path.read_text()
    for changed in (text.replace("0.1", "0.2"), text.replace("null", "3"), text[:-9], "", "[]"):
        path.write_text(changed)
        with pytest.warns(UserWarning, match=AGAIN):
            assert kept_json(path) is None


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    home = tmp_path_factory.mktemp("kept")
    folder = draw_images(home / "images", count=80, labels=True)
    return load_images(folder, size=16, cache_dir=home / "cache", progress=False).split(40)


def damages(data):
    """Cut, empty, and with another sign everywhere."""
    start = 8 + int.from_bytes(data[:8], "little")
    signs = bytearray(data)
    for i in range(start + 3, len(signs), 4):
        signs[i] ^= 0x80
    return [data[: len(data) // 2], b"", bytes(signs), data.replace(b'"u0"', b'"u9"')]


def test_samples_of_a_measurement(sets, tmp_path):
    def samples():
        how = {"num_images": 10, "batch_size": 10, "progress": False, "steps": 3}
        return make_context(tiny_pipeline(), *sets, folder=tmp_path, **how).samples("ebm").u

    first = samples()
    (path,) = tmp_path.glob("ebm-*")
    whole = path.read_bytes()
    for data in damages(whole):
        path.write_bytes(data)
        with pytest.warns(UserWarning, match=AGAIN):
            again = samples()
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
        samples()  # and it is whole


@pytest.mark.parametrize("folder", ["features", "judges"])
def test_cached_networks(sets, tmp_path, folder):
    def network():
        if folder == "features":
            return next(
                iter(feature_spaces(sets[0], steps=2, cache_dir=tmp_path, progress=False).values())
            )
        column = list(sets[0].labels)[:1]
        return find_attribute_classifier(
            *sets, column, steps=2, cache_dir=tmp_path, progress=False
        )

    first = network()[0].state_dict()
    (path,) = (tmp_path / folder).glob("*")
    whole = path.read_bytes()
    for data in damages(whole)[:3]:
        path.write_bytes(data)
        with pytest.warns(UserWarning, match=AGAIN):
            again = network()[0].state_dict()
        assert all(torch.equal(first[k], v) for k, v in again.items())
    assert network()[1].keys() >= {"recipe"}


def test_a_classifiers_accuracies_are_of_these_images(sets, tmp_path):
    """Its training rows alone name it in the cache."""
    training, held_out = sets
    column = list(training.labels)[:1]
    how = {"steps": 2, "cache_dir": tmp_path, "progress": False}
    _, first = find_attribute_classifier(training, held_out, column, **how)
    part = held_out.rows(0, 10)
    _, second = find_attribute_classifier(training, part, column, **how)
    assert (first["held_out"], second["held_out"]) == (held_out.identity, part.identity)
    assert second["columns"] != first["columns"]


def test_parts_of_a_report(sets, tmp_path, monkeypatch):
    context = make_context(tiny_pipeline(), *sets, num_images=10, batch_size=10, progress=False)
    report = reports._Report(context, reports.ReportPlan(), tmp_path, lambda _: None)
    made = []

    def run(self, part):
        made.append(part)
        return {"value": np.float64(1.5)}

    monkeypatch.setattr(reports._Report, "run", run)
    first = report.measured("hole")
    assert report.measured("hole") == first and made == ["hole"]
    path = tmp_path / "parts" / "hole.json"
    kept = json.loads(path.read_text())
    for changed in (kept | {"figures": []}, kept | {"figures": first | {"value": 9.0}}, {}):
        path.write_text(json.dumps(changed))
        with pytest.warns(UserWarning, match=AGAIN):
            assert report.measured("hole")["value"] == 1.5
    assert len(made) == 4
