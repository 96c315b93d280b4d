"""Similarities, crops and pasting back: laws of the plane, known pixels, known edges."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from hebm_sample.align.geometry import Similarity, cut, feather_mask, fit, paste
from hebm_sample.errors import UserInputError

_NUMBERS = st.floats(-500, 500)
_SCALES = st.floats(0.05, 20)
_ANGLES = st.floats(-math.pi, math.pi)


def _similarity(scale: float, angle: float, x: float, y: float) -> Similarity:
    return Similarity(scale * complex(math.cos(angle), math.sin(angle)), complex(x, y))


def _waves(width: int, height: int, length: float = 40.0) -> Image.Image:
    """A smooth image, in which no two places of a neighbourhood are alike."""
    y, x = np.mgrid[:height, :width] + 0.5
    channels = [np.sin(x / length), np.cos(y / length), np.sin((x + 2 * y) / length)]
    return Image.fromarray(np.rint(np.stack(channels, -1) * 100 + 128).astype(np.uint8))


def _difference(a: Image.Image, b: Image.Image) -> np.ndarray:
    return np.abs(np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64))


@given(_SCALES, _ANGLES, _NUMBERS, _NUMBERS)
def test_a_fit_finds_the_similarity_that_moved_the_points(scale, angle, x, y) -> None:
    points = np.array([[3.0, 5.0], [40.0, 2.0], [20.0, 30.0]])
    true = _similarity(scale, angle, x, y)
    found = fit(points, true(points), weights=(1.0, 1.0, 0.5))
    assert found.a == pytest.approx(true.a, rel=1e-9)
    assert found(points) == pytest.approx(true(points), abs=1e-6)


def test_a_fit_is_a_minimum_of_the_weighted_squares() -> None:
    rng = np.random.default_rng(0)
    source, target, weights = rng.normal(size=(5, 2)), rng.normal(size=(5, 2)), rng.uniform(size=5)

    def loss(t: Similarity) -> float:
        return float((weights * ((t(source) - target) ** 2).sum(1)).sum())

    best = fit(source, target, weights)
    for step in (1e-3, -1e-3, 1e-3j, -1e-3j):
        assert loss(Similarity(best.a + step, best.b)) > loss(best)
        assert loss(Similarity(best.a, best.b + step)) > loss(best)


def test_mirrored_points_are_turned_and_never_mirrored() -> None:
    points = np.array([[0.0, 0.0], [1.0, 0.0], [0.5, 1.0]])
    mirrored = points * [-1.0, 1.0]
    found = fit(points, mirrored)
    determinant = np.linalg.det(found(np.eye(2)) - found(np.zeros((2, 2))))
    assert determinant > 0


@pytest.mark.parametrize("points", [np.zeros((3, 2)), np.full((3, 2), 7.0)])
def test_one_point_says_nothing(points: np.ndarray) -> None:
    with pytest.raises(UserInputError, match="one point"):
        fit(points, np.array([[0.0, 0.0], [1.0, 0.0], [0.5, 1.0]]))


@given(_SCALES, _ANGLES, _NUMBERS, _NUMBERS)
def test_an_inverse_leads_back(scale, angle, x, y) -> None:
    there, points = _similarity(scale, angle, x, y), np.array([[1.0, 2.0], [-30.0, 4.0]])
    assert there.inverse()(there(points)) == pytest.approx(points, abs=1e-6)
    assert there.after(there.inverse())(points) == pytest.approx(points, abs=1e-6)
    assert there.degrees == pytest.approx(math.degrees(angle), abs=1e-6)


def test_a_crop_of_whole_pixels_is_the_image_cropped() -> None:
    photo = _waves(90, 70)
    to_crop = fit(np.array([[10.0, 20.0], [42.0, 20.0]]), np.array([[0.0, 0.0], [1.0, 0.0]]))
    assert _difference(cut(photo, to_crop, 32), photo.crop((10, 20, 42, 52))).max() == 0


@pytest.mark.parametrize("size, side", [(256, 64), (64, 256), (101, 64)])
def test_each_place_of_a_crop_is_fetched_from_where_the_transform_says(size: int, side: int):
    photo = Image.fromarray(
        np.rint(np.tile(np.arange(size)[None, :, None] / size * 255, (size, 1, 3))).astype(
            np.uint8
        )
    )
    to_crop = _similarity(0.8 / size, 0.0, 0.1, 0.1)
    found = np.asarray(cut(photo, to_crop, side), dtype=np.float64)[side // 2, :, 0]
    x = (np.arange(side) + 0.5) / side
    inside = (x > 0.15) & (x < 0.85)
    expected = (to_crop.inverse()(np.stack([x, x], 1))[:, 0] - 0.5) / size * 255
    off = np.abs(found - expected)[inside]
    assert off.max() < 2.0


def test_fine_detail_is_averaged_and_not_picked() -> None:
    checks = (np.indices((256, 256)).sum(0) % 2 * 255).astype(np.uint8)
    photo = Image.fromarray(np.repeat(checks[:, :, None], 3, axis=2))
    found = np.asarray(cut(photo, _similarity(1 / 256, 0.3, 0.2, 0.0), 16))
    assert np.abs(found.astype(float) - 127.5).max() < 16


def test_outside_the_photograph_is_its_mirror_image() -> None:
    photo = _waves(32, 32, length=9.0)
    to_crop = Similarity(complex(1 / 32), complex(0.5))  # the crop begins 16 pixels to the left
    found = np.asarray(cut(photo, Similarity(to_crop.a, 0.5 + 0j), 32))
    assert (found[:, :16] == np.asarray(photo)[:, :16][:, ::-1]).all()


@pytest.mark.parametrize("degrees", [0, 15, -40, 170])
@pytest.mark.parametrize("side", [64, 300])
def test_a_crop_put_back_gives_the_photograph(degrees: int, side: int) -> None:
    photo = _waves(160, 120)
    turn = math.radians(degrees)
    to_crop = _similarity(1 / 80, turn, 0, 0)
    middle = to_crop(np.array([[85.0, 55.0]]))[0]
    to_crop = Similarity(to_crop.a, complex(0.5 - middle[0], 0.5 - middle[1]))
    back = paste(photo, cut(photo, to_crop, side), to_crop)
    assert back.size == photo.size and _difference(back, photo).max() <= 4


def test_what_lies_outside_the_crop_stays_to_the_bit() -> None:
    photo, white = _waves(160, 120), Image.new("RGB", (64, 64), "white")
    to_crop = _similarity(1 / 50, 0.3, -0.9, -0.6)
    back = np.asarray(paste(photo, white, to_crop))
    y, x = np.mgrid[:120, :160] + 0.5
    at = to_crop(np.stack([x, y], -1))
    outside = ((at < 0) | (at > 1)).any(-1)
    core = ((at > 0.25) & (at < 0.75)).all(-1)
    assert outside.any() and core.any()
    assert (back[outside] == np.asarray(photo)[outside]).all()
    assert (back[core] == 255).all()


@pytest.mark.parametrize("place", [(-40, 30), (150, 110), (500, 500)])
def test_a_crop_that_leaves_the_photograph_is_clipped(place: tuple[int, int]) -> None:
    photo = _waves(160, 120)
    to_crop = Similarity(complex(1 / 60), -complex(*place) / 60)
    back = paste(photo, cut(photo, to_crop, 48), to_crop)
    assert back.size == photo.size and _difference(back, photo).mean() < 2


def test_the_feather_is_full_inside_nothing_outside_and_never_rises() -> None:
    mask = np.asarray(feather_mask(100, 0.2)).astype(int)
    assert (mask[20:80, 20:80] == 255).all()
    assert not mask[[0, -1]].any() and not mask[:, [0, -1]].any()
    assert (np.diff(mask[50, 50:]) <= 0).all() and (np.diff(mask[50:, 50]) <= 0).all()
    assert np.abs(np.diff(mask[50])).max() < 30  # no edge
    assert (mask == mask.T).all() and (mask == mask[::-1]).all()


def test_no_edge_shows_where_an_image_is_put() -> None:
    photo, white = Image.new("RGB", (200, 200), "black"), Image.new("RGB", (64, 64), "white")
    back = np.asarray(paste(photo, white, Similarity(complex(1 / 120), -0.3 - 0.3j))).astype(int)
    assert np.abs(np.diff(back[:, :, 0], axis=0)).max() < 25
    assert back.max() == 255
