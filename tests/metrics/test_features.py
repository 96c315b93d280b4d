"""The feature network learns what its labels say, unknown labels teach nothing, files round-trip.

A network trained on "unknown" as if it were a value, or features that depend on the batch, would
give distances that look plausible and mean nothing.
"""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from hebm_sample.errors import UserInputError, WeightsError
from hebm_sample.metrics.classifiers import masked_cross_entropy, train_feature_net
from hebm_sample.metrics.features import (
    FeatureNet,
    PcaFeatures,
    extract,
    load_extractor,
    save_extractor,
)

COLOURS = np.array([[220, 40, 40], [40, 200, 60], [50, 70, 230]])


def squares(count: int, seed: int = 0, side: int = 16) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """A coloured square, large or small, somewhere on a noisy grey ground, and its labels."""
    rng = np.random.default_rng(seed)
    images = rng.integers(90, 160, (count, 3, side, side))
    colour, large = rng.integers(0, 3, count), rng.integers(0, 2, count)
    for i in range(count):
        size = side // 2 if large[i] else side // 4
        y, x = rng.integers(0, side - size + 1, 2)
        images[i, :, y : y + size, x : x + size] = COLOURS[colour[i]][:, None, None]
    return images.astype(np.uint8), {"colour": colour, "large": large}


@pytest.fixture(scope="module")
def trained():
    """Trained with a third of each column unknown, and some rows without any label."""
    images, labels = squares(500)
    rng = np.random.default_rng(1)
    labels = {k: np.where(rng.random(500) < 0.33, -1, v) for k, v in labels.items()}
    labels["never"] = np.full(500, -1)
    before = torch.get_rng_state()
    net, report = train_feature_net(images, labels, steps=80, batch_size=32, progress=False)
    assert torch.equal(before, torch.get_rng_state())
    return net, report


def test_learns_squares(trained):
    net, report = trained
    images, labels = squares(200, seed=2)
    with torch.no_grad():
        logits = net.split(net(torch.from_numpy(images).float() / 127.5 - 1))
    assert {k: v.shape[1] for k, v in logits.items()} == {"colour": 3, "large": 2}
    for name, column in logits.items():
        assert (column.argmax(dim=1).numpy() == labels[name]).mean() > 0.9, name
    assert report["mean_accuracy"] > 0.9
    assert report["mean_balanced_accuracy"] > 0.9


def test_report(trained):
    net, report = trained
    assert not net.training
    assert report["recipe"]["steps"] == 80
    assert report["data"]["images"] == 500
    assert report["data"]["held_out"] == round(0.1 * report["data"]["labelled"])
    assert set(report["columns"]) == {"colour", "large"}
    assert 0 < report["columns"]["colour"]["count"] < report["data"]["held_out"]
    assert report["name"] == "128 features of a classifier of colour, large"
    assert json.loads(json.dumps(report)) == report


def test_same_seed_same_network():
    images, labels = squares(60)
    runs = [
        train_feature_net(images, labels, steps=3, batch_size=8, seed=s, progress=False)
        for s in (0, 0, 1)
    ]
    heads = [net.head.weight for net, _ in runs]
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])
    assert runs[0][1] == runs[1][1]


def test_unknown_labels_have_no_loss_and_no_gradient():
    net = FeatureNet({"a": 2, "b": 3})
    logits = torch.randn(4, 5, requires_grad=True)
    labels = torch.tensor([[0, -1], [-1, 2], [1, 0], [-1, -1]])
    loss = masked_cross_entropy(net.split(logits).values(), labels)
    known = [(0, slice(0, 2), 0), (1, slice(2, 5), 2), (2, slice(0, 2), 1), (2, slice(2, 5), 0)]
    expected = sum(-F.log_softmax(logits[n, c], dim=0)[y] for n, c, y in known) / len(known)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert logits.grad is not None
    assert not logits.grad[3].any()
    assert not logits.grad[0, 2:].any()
    assert masked_cross_entropy(net.split(logits).values(), torch.full((4, 2), -1)) == 0


def test_two_logits_are_binary_cross_entropy():
    logits, labels = torch.randn(6, 2), torch.tensor([0, 1, 1, 0, 1, 0])
    found = masked_cross_entropy([logits], labels[:, None])
    expected = F.binary_cross_entropy_with_logits(logits[:, 1] - logits[:, 0], labels.float())
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("side", [16, 32, 64])
def test_features_do_not_depend_on_batches(trained, side: int):
    net, _ = trained
    images, _ = squares(7, side=side)
    whole = extract(net, images)
    assert whole.shape == (7, 128)
    assert whole.dtype == np.float64
    np.testing.assert_allclose(extract(net, images, batch_size=2), whole, atol=1e-5)
    np.testing.assert_allclose(extract(net, (images[:3], images[3:])), whole, atol=1e-5)
    np.testing.assert_allclose(extract(net, images / 127.5 - 1), whole, atol=1e-5)
    np.testing.assert_allclose(extract(net, torch.from_numpy(images)), whole, atol=1e-5)
    net.train()
    np.testing.assert_allclose(extract(net, images), whole, atol=1e-5)
    assert net.training
    net.eval()


def test_pca_is_a_deterministic_orthonormal_projection():
    images, _ = squares(300)
    pca = PcaFeatures(dim=20, side=8).fit(images)
    again = PcaFeatures(dim=20, side=8).fit(images, batch_size=17)
    torch.testing.assert_close(pca.components, again.components, atol=1e-9, rtol=0)
    torch.testing.assert_close(pca.components @ pca.components.T, torch.eye(20).double())
    features = extract(pca, images)
    assert features.shape == (300, 20)
    np.testing.assert_allclose(features.mean(axis=0), 0, atol=1e-6)
    covariance = np.cov(features.T)
    variances = np.diag(covariance)
    np.testing.assert_allclose(covariance, np.diag(variances), atol=1e-6 * variances[0])
    assert (np.diff(variances) < 0).all()


@pytest.mark.parametrize("kind", ["classifier", "pca"])
def test_file_round_trip(trained, tmp_path, kind: str):
    images, _ = squares(40)
    net, report = trained
    extractor = net if kind == "classifier" else PcaFeatures(dim=5, side=4).fit(images)
    save_extractor(extractor, tmp_path / "f.safetensors", {"report": report})
    assert [p.name for p in tmp_path.iterdir()] == ["f.safetensors"]
    loaded, metadata = load_extractor(tmp_path / "f.safetensors")
    assert metadata == {"report": report}
    assert loaded.name == extractor.name
    np.testing.assert_array_equal(extract(loaded, images), extract(extractor, images))


def test_unusable_files(tmp_path):
    path = tmp_path / "f.safetensors"
    with pytest.raises(UserInputError, match="no feature file"):
        load_extractor(path)
    save_extractor(FeatureNet({"a": 2}, widths=(4, 4)), path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-3])
    with pytest.raises(WeightsError, match="not a usable feature file"):
        load_extractor(path)
    changed = whole.replace(b'"kind":"classifier"', b'"kind":"classifies"')
    path.write_bytes(changed)
    with pytest.raises(WeightsError, match="not what was written"):
        load_extractor(path)
    path.write_bytes(changed.replace(b'"sha256"', b'"nohash"'))
    with pytest.raises(WeightsError, match="classifies"):
        load_extractor(path)


def test_bad_input():
    images, labels = squares(30)

    def train(images=images, labels=labels, **options):
        return train_feature_net(images, labels, **{"steps": 2, "progress": False, **options})

    with pytest.raises(UserInputError, match="no image has a label.*PcaFeatures"):
        train(labels={"a": np.full(30, -1)})
    with pytest.raises(UserInputError, match="only 10 images have labels"):
        train(labels={"a": np.where(np.arange(30) < 10, 1, -1)})
    with pytest.raises(UserInputError, match="'colour' has shape.*30 whole numbers"):
        train(labels={"colour": labels["colour"][:9]})
    with pytest.raises(UserInputError, match="'a' holds -2"):
        train(labels={"a": labels["large"] - 2})
    with pytest.raises(UserInputError, match="must be uint8"):
        train(images=images / 255)
    with pytest.raises(UserInputError, match="steps is 1"):
        train(steps=1)
    with pytest.raises(UserInputError, match="holdout is 1"):
        train(holdout=1)
    with pytest.raises(UserInputError, match="30 images cannot give 100 components"):
        PcaFeatures().fit(images)
    with pytest.raises(UserInputError, match="not fitted"):
        extract(PcaFeatures(), images)
    with pytest.raises(UserInputError, match="no images"):
        extract(FeatureNet({"a": 2}), [])
    with pytest.raises(UserInputError, match=r"shape \(30, 16, 16, 3\)"):
        extract(FeatureNet({"a": 2}), images.transpose(0, 2, 3, 1))
