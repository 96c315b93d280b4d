"""A classifier learns what labels say, from known ones only, and says the same of mirror images.

Without this the control tables could rest on a classifier that was taught by unknown labels, that
says something else after it was saved, or whose accuracies are not those of its answers.
"""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from hebm_sample.errors import TrainingDivergedError, UserInputError, WeightsError
from hebm_sample.metrics import PcaFeatures, save_extractor
from hebm_sample.metrics.attribute_classifier import (
    SMOOTHING,
    AttributeClassifier,
    Predictions,
    accuracies,
    load_attribute_classifier,
    save_attribute_classifier,
    train_attribute_classifier,
)
from hebm_sample.metrics.classifiers import masked_cross_entropy

SHORT = {"steps": 30, "batch_size": 16, "progress": False}


def toy_images(count: int = 64, size: int = 16, seed: int = 0):
    """Bright or dark, and reddish or bluish; a third of the second column is unknown."""
    random = np.random.default_rng(seed)
    bright, red = random.integers(0, 2, (2, count))
    images = random.integers(0, 60, (count, 3, size, size)) + 90 * bright[:, None, None, None]
    images[:, 0] += 100 * red[:, None, None]
    images[:, 2] += 100 * (1 - red)[:, None, None]
    known = np.where(random.random(count) < 1 / 3, -1, red)
    return images.astype(np.uint8), {"bright": bright, "red": known}, red


@pytest.fixture(scope="module")
def trained():
    images, labels, _ = toy_images()
    return train_attribute_classifier(images, labels, **SHORT)


def test_it_learns_both_columns_from_what_is_known(trained):
    classifier, report = trained
    images, labels, red = toy_images(seed=1)
    predictions = classifier.predict(images)
    assert (predictions.values("bright") == labels["bright"]).mean() > 0.9
    assert (predictions.values("red") == red).mean() > 0.9  # of the unknown ones too
    assert report["recipe"]["steps"] == 30 and report["labelled"] == 64
    json.dumps(report, allow_nan=False)


def test_unknown_labels_have_no_say():
    images, labels, _ = toy_images()
    labels["none"] = np.full(64, -1)
    classifier, _ = train_attribute_classifier(images, labels, **SHORT | {"steps": 2})
    assert list(classifier.columns) == ["bright", "red"]
    net = AttributeClassifier({"a": 2, "b": 3}, 16)
    logits = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    known = torch.tensor([[0, 2], [1, -1], [-1, -1], [-1, 0]])
    expected = []
    for row, column, where in ((0, 0, slice(0, 2)), (1, 0, slice(0, 2))):
        expected.append((row, known[row, column], where))
    expected += [(0, known[0, 1], slice(2, 5)), (3, known[3, 1], slice(2, 5))]
    total = 0.0
    for row, value, where in expected:
        log_p = F.log_softmax(logits[row, where], 0)
        total -= float((1 - SMOOTHING) * log_p[value] + SMOOTHING * log_p.mean())
    assert float(
        masked_cross_entropy(net.split(logits).values(), known, SMOOTHING)
    ) == pytest.approx(total / 4, rel=1e-5)


def test_rows_without_a_label_are_never_seen():
    images, labels, _ = toy_images()
    labels = {"bright": np.where(np.arange(64) < 32, labels["bright"], -1)}
    other = images.copy()
    other[32:] = 255 - other[32:]
    a, _ = train_attribute_classifier(images, labels, **SHORT | {"steps": 3})
    b, _ = train_attribute_classifier(other, labels, **SHORT | {"steps": 3})
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


def test_it_says_the_same_of_a_mirror_image_and_of_floats_in_any_batches(trained):
    classifier, _ = trained
    images = toy_images(10, seed=2)[0]
    predictions, mirrored = (
        classifier.predict(images),
        classifier.predict(images[..., ::-1].copy()),
    )
    floats = classifier.predict(torch.from_numpy(images).float() / 127.5 - 1, batch_size=3)
    for other in (mirrored, floats):
        np.testing.assert_allclose(other.features, predictions.features, atol=1e-5)
        for name, p in predictions.probabilities.items():
            np.testing.assert_allclose(other.probabilities[name], p, atol=1e-5)
            np.testing.assert_allclose(p.sum(1), 1, atol=1e-6)
    assert predictions.features.shape == (10, classifier.widths[-1])


def test_training_again_is_the_same_and_leaves_the_global_stream(trained):
    images, labels, _ = toy_images()
    torch.manual_seed(5)
    expected = torch.randn(3)
    torch.manual_seed(5)
    again, _ = train_attribute_classifier(images, labels, **SHORT)
    assert torch.equal(torch.randn(3), expected)
    for key, value in trained[0].state_dict().items():
        assert torch.equal(again.state_dict()[key], value), key


@pytest.mark.parametrize("steps", [2, 3, 4, 5, 6])
def test_any_number_of_steps_trains(steps):
    """A warm-up of one whole step, a fifth of five, once divided by zero."""
    images, labels, _ = toy_images()
    net, _ = train_attribute_classifier(images, labels, **SHORT | {"steps": steps})
    assert all(torch.isfinite(p).all() for p in net.parameters())


def test_saved_and_loaded_it_says_the_same(trained, tmp_path):
    classifier, report = trained
    save_attribute_classifier(classifier, tmp_path / "classifier.safetensors", report)
    again, read = load_attribute_classifier(tmp_path / "classifier.safetensors")
    images = toy_images(5, seed=3)[0]
    assert read == json.loads(json.dumps(report))
    for name, p in classifier.predict(images).probabilities.items():
        np.testing.assert_array_equal(again.predict(images).probabilities[name], p)


def test_files_that_are_no_classifier(tmp_path):
    with pytest.raises(
        UserInputError, match="there is no attribute classifier .*absent.*hebm-train classifier"
    ):
        load_attribute_classifier(tmp_path / "absent")
    (tmp_path / "text").write_text("no tensors")
    save_file({"x": torch.zeros(1)}, tmp_path / "bare")
    images = np.random.default_rng(0).integers(0, 256, (20, 3, 16, 16)).astype(np.uint8)
    save_extractor(PcaFeatures(4).fit(images), tmp_path / "pca")
    for name in ("text", "bare", "pca"):
        with pytest.raises(
            WeightsError, match=f"{name} is no usable attribute classifier.*train it again"
        ):
            load_attribute_classifier(tmp_path / name)


def test_larger_images_cost_no_more_inside():
    small, large = AttributeClassifier({"a": 2}, 32), AttributeClassifier({"a": 2}, 64)
    assert large.features(torch.zeros(1, 3, 64, 64)).shape == (1, 192)
    for a, b in zip(small.grow.parameters(), large.grow.parameters(), strict=True):
        assert a.shape == b.shape
    with pytest.raises(UserInputError, match="32x32; these have 64x64"):
        small.features(torch.zeros(1, 3, 64, 64))


def test_accuracies_by_hand():
    p = np.eye(3)[[0, 0, 1, 2, 1]]
    predictions = Predictions({"a": p, "b": p[:, :2]}, np.zeros((5, 1)))
    labels = {"a": np.array([0, 1, 1, -1, 1]), "b": np.full(5, -1)}
    assert accuracies(predictions, labels) == {
        "a": {
            "accuracy": 0.75,
            "balanced_accuracy": pytest.approx((1 + 2 / 3) / 2),
            "majority": 0.75,
            "count": 4,
            "recalls": [1.0, pytest.approx(2 / 3), None],
        }
    }


def test_what_cannot_be_trained_is_refused():
    images, labels, _ = toy_images()
    cases = [
        (images.astype(float), labels, {}, "must be uint8"),
        (images[..., :8], labels, {}, "must be uint8 .N, 3, S, S."),
        (images[..., :8, :8], labels, {}, "not 8"),
        (images, labels, {"steps": 1}, "steps is 1"),
        (images, {"none": np.full(64, -1)}, {}, "no image has a label"),
        (images, {"bright": labels["bright"][:3]}, {}, "64 whole numbers"),
    ]
    for data, columns, changes, message in cases:
        with pytest.raises(UserInputError, match=message):
            train_attribute_classifier(data, columns, **SHORT | changes)
    with pytest.raises(TrainingDivergedError, match="the attribute classifier's loss is nan"):
        train_attribute_classifier(images, labels, **SHORT, learning_rate=float("inf"))
    with pytest.raises(UserInputError, match="no images to classify"):
        AttributeClassifier({"a": 2}, 16).predict(images[:0])
