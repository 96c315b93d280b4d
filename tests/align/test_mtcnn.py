"""The cascade: its arithmetic on random weights, and with the extra what it finds in faces that a
model makes.
"""

import importlib.util
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from hebm_sample.align import faces, mtcnn
from hebm_sample.align.aligner import align, crop_points, placed
from hebm_sample.align.geometry import Similarity, paste
from hebm_sample.align.mtcnn import Mtcnn
from hebm_sample.errors import EnvironmentFailure
from hebm_sample.presets.crops import CROPS

_SIZES = (
    ((3, 3, 10), (3, 10, 16), (3, 16, 32)),
    ((3, 3, 28), (3, 28, 48), (2, 48, 64)),
    ((3, 3, 32), (3, 32, 64), (3, 64, 64), (2, 64, 128)),
)
_DENSE = ((), (576, 128), (1152, 256))
_HEADS = ((4, 2), (4, 2), (4, 10, 2))


def _weights(seed: int = 0) -> list[list[np.ndarray]]:
    """Random networks in the layout of the package's files."""
    rng, networks = np.random.default_rng(seed), []

    def normal(*shape: int) -> np.ndarray:
        return (rng.normal(size=shape) / math.sqrt(math.prod(shape[:-1]) or 1)).astype(np.float32)

    for convolutions, dense, heads in zip(_SIZES, _DENSE, _HEADS, strict=True):
        found = []
        for side, inputs, outputs in convolutions:
            found += [normal(side, side, inputs, outputs), normal(outputs), normal(1, 1, outputs)]
        width = convolutions[-1][2]
        if dense:
            found += [normal(*dense), normal(dense[1]), normal(dense[1])]
            width = dense[1]
        for outputs in heads:
            shape = (width, outputs) if dense else (1, 1, width, outputs)
            found += [normal(*shape), normal(outputs)]
        networks.append(found)
    return networks


def test_a_kernel_is_read_in_the_order_of_its_file() -> None:
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(3, 2, 4, 5)).astype(np.float32)  # height, width, inputs, outputs
    x = rng.normal(size=(3, 2, 4)).astype(np.float32)
    found = F.conv2d(torch.from_numpy(x).permute(2, 0, 1)[None], mtcnn._in_torch(kernel))
    assert found.flatten().numpy() == pytest.approx(np.einsum("hwi,hwio->o", x, kernel), abs=1e-4)


def test_the_proposal_network_says_the_same_of_a_window_alone_and_in_an_image() -> None:
    network = Mtcnn(_weights())._networks[0]
    x = torch.randn(1, 3, 20, 24, generator=torch.Generator().manual_seed(0))
    boxes, scores = network.everywhere(x)
    for row, column in ((0, 0), (2, 4)):
        window = x[:, :, 2 * row : 2 * row + 12, 2 * column : 2 * column + 12]
        box, score = network.everywhere(window)
        assert torch.allclose(box[0, :, 0, 0], boxes[0, :, row, column], atol=1e-5)
        assert torch.allclose(score[0, 0, 0], scores[0, row, column], atol=1e-5)


@pytest.mark.parametrize("index, side, landmarks", [(1, 24, 0), (2, 48, 10)])
def test_the_others_give_boxes_landmarks_and_probabilities(index, side, landmarks) -> None:
    network = Mtcnn(_weights())._networks[index]
    boxes, marks, scores = network.of_patches(torch.zeros(3, 3, side, side))
    assert boxes.shape == (3, 4) and marks.shape == (3, landmarks)
    assert ((scores > 0) & (scores < 1)).all()


def test_of_boxes_that_overlap_the_likeliest_stays() -> None:
    boxes = np.array([[0, 0, 10, 10], [1, 0, 11, 10], [20, 0, 30, 10], [2, 2, 6, 6]], float)
    scores = np.array([0.8, 0.9, 0.7, 0.95])
    assert mtcnn._kept(boxes, scores, 0.5).tolist() == [3, 1, 2]
    assert mtcnn._kept(boxes, scores, 0.5, of_smaller=True).tolist() == [3, 2]
    assert mtcnn._kept(boxes[:0], scores[:0], 0.5).tolist() == []


def test_patches_are_squares_of_the_image_and_grey_outside_it() -> None:
    image = Image.new("RGB", (40, 30), (255, 0, 0))
    inside, outside = mtcnn._patches(image, np.array([[5, 5, 25, 25], [-20, 0, 0, 20.0]]), 24)
    assert inside[0].min() > 0.98 and inside[1].max() < -0.98
    assert outside[:, :, :-1].abs().max() < 0.01  # the last column blends with the image


@pytest.mark.parametrize("size", [(1, 1), (11, 300), (64, 64), (1500, 40)])
def test_images_of_any_shape_are_looked_at(size: tuple[int, int]) -> None:
    assert isinstance(Mtcnn(_weights(1))(Image.new("RGB", size)), list)


def test_without_the_extra_a_line_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str, package: str | None = None) -> None:
        return None

    monkeypatch.setattr(importlib.util, "find_spec", missing)
    monkeypatch.setattr(mtcnn, "import_extra", _refuse)
    assert not faces.has_detector()
    with pytest.raises(EnvironmentFailure, match=r"\[align\]"):
        Mtcnn.installed()


def test_another_release_is_no_fault_of_who_did_not_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    def other() -> None:
        raise EnvironmentFailure("pnet.lz4 is not the file of mtcnn 1.0.0")

    monkeypatch.setattr(faces, "has_detector", lambda: True)
    monkeypatch.setattr(faces, "default_detector", other)
    assert not faces.detector_works()
    monkeypatch.setattr(faces, "default_detector", lambda: None)
    assert faces.detector_works()


def _refuse(module: str, extra: str) -> None:
    from hebm_sample.io.extras import missing_extra

    raise missing_extra(module, extra)


class TestInstalled:
    """With the extra."""

    @pytest.fixture(autouse=True)
    def extra(self) -> None:
        if not faces.has_detector():
            pytest.skip("needs the extra align")

    def test_other_weights_are_not_opened(self, tmp_path: Path, monkeypatch) -> None:
        folder = tmp_path / "mtcnn" / "assets" / "weights"
        folder.mkdir(parents=True)
        for name in mtcnn._FILES:
            (folder / name).write_bytes(b"something else")
        spec = importlib.util.spec_from_loader("mtcnn", None, is_package=True)
        assert spec is not None
        spec.submodule_search_locations = [str(tmp_path / "mtcnn")]
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
        with pytest.raises(EnvironmentFailure, match=r"mtcnn==1\.0\.0"):
            mtcnn._weight_files()

    @pytest.mark.parametrize("colour", ["black", "white", "grey"])
    def test_there_is_no_face_in_an_empty_image(self, colour: str) -> None:
        assert faces.default_detector()(Image.new("RGB", (300, 200), colour)) == []

    @pytest.mark.slow
    def test_eyes_of_turned_faces_in_scenes_land_within_3_in_100_of_the_side(self) -> None:
        from hebm_sample import Pipeline

        crop, rng = CROPS["celebahq"], np.random.default_rng(0)
        pipe = Pipeline.from_pretrained("celebahq", device="cpu")
        found = []
        for face in pipe(seeds=range(8), temperature=0.8, steps=24).images:
            side, turn = rng.uniform(200, 320), math.radians(15 * rng.choice([-1, 1]))
            a = side * complex(math.cos(turn), math.sin(turn))
            there = Similarity(a, complex(rng.uniform(300, 900), 400) - a * (0.5 + 0.5j))
            noise = rng.integers(60, 120, (800, 1200, 3), dtype=np.uint8)
            scene = paste(Image.fromarray(noise), face, there.inverse(), 0.05)
            aligned = align(scene, crop, 256)
            assert abs(aligned.to_crop.degrees + math.degrees(turn)) < 10
            points = placed(aligned.image)
            assert points is not None
            found.append(np.linalg.norm(points[:2] - crop_points(crop)[:2], axis=1).max())
        assert max(found) < 0.03 and np.median(found) < 0.015
