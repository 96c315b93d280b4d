"""p-values of unusual images, on statistics whose law is known.

A distance whose held-out quantiles come from the images that fitted it calls every new image a
little unusual; one that misses correlations calls a broken one usual; one that divides by the
rounding of a constant calls all images equally unusual.
"""

import json
import math

import numpy as np
import pytest

from hebm_sample.errors import UserInputError
from hebm_sample.metrics.typicality import (
    FEWEST_IMAGES,
    Calibration,
    calibration_bytes,
    fit_calibration,
    in_words,
    p_values,
    share_in_words,
    shrunk_covariance,
    uniformity,
)

DIM = 30
NAMES = [f"s{i}" for i in range(DIM)]


def draws(seed, count):
    """Correlated, skewed and of very different scales."""
    rng = np.random.default_rng(seed)
    mix = np.random.default_rng(99).normal(size=(DIM, DIM))
    return np.exp(0.3 * rng.normal(size=(count, DIM)) @ mix / DIM**0.5) * 10.0 ** (
        np.arange(DIM) % 5
    )


@pytest.fixture(scope="module")
def calibration():
    return fit_calibration(draws(0, 2000), NAMES, {"data": "drawn"})


def test_new_images_have_uniform_p_values(calibration):
    distance = calibration.distance(draws(1, 1000))
    _, p = uniformity(calibration.distances, distance)
    assert p > 0.01
    found = calibration.p_value(draws(1, 1000))
    for level in (0.05, 0.2, 0.5, 0.8):
        error = (level * (1 - level) * 2 / 1000) ** 0.5  # of both sets
        assert abs((found <= level).mean() - level) < 4 * error


def test_the_images_that_fitted_it_would_not_do():
    """With few images the fitted half lies nearer than new images do."""
    x = draws(2, 200)
    found = fit_calibration(x, NAMES)
    _, p = uniformity(found.distance(x[:100]), found.distance(draws(3, 1000)))
    assert p < 1e-2
    _, p = uniformity(found.distances, found.distance(draws(3, 1000)))
    assert p > 0.01


def test_a_broken_correlation_is_unusual(calibration):
    """Each statistic alone is as it was; only what goes with what is another."""
    x, rng = draws(4, 300), np.random.default_rng(5)
    shuffled = np.stack([rng.permutation(column) for column in x.T], axis=1)
    assert np.median(calibration.p_value(shuffled)) < 0.01
    assert 0.3 < np.median(calibration.p_value(x)) < 0.7


def test_a_p_value_counts_the_held_out_images(calibration):
    held_out = np.arange(1.0, 10.0)
    np.testing.assert_allclose(p_values(held_out, np.array([0.0, 9.0, 9.5])), [1, 0.2, 0.1])
    nearest = calibration.mean[None]
    assert calibration.p_value(nearest) == 1
    assert calibration.p_value(nearest * 100) == pytest.approx(1 / 1001)


HARDLY = {
    "a constant that no float holds": (math.log(1e-12), 0.0),
    "rounding of float64": (6.2383, 1e-16),
    "rounding of float32": (-3048.7, 6e-8),
    "rounding about zero": (1e-9, 1.0),
}


@pytest.mark.parametrize("kind", HARDLY)
def test_what_hardly_varies_does_not_count(kind):
    """Divided by its spread, such a column would be the whole distance, or its rounding would."""
    value, rounding = HARDLY[kind]
    rng = np.random.default_rng(12)

    def rows(seed, count):
        x = draws(seed, count)
        x[:, 3] = value * (1 + rounding * rng.standard_normal(count))
        return x

    found = fit_calibration(rows(0, 2000), NAMES)
    _, p = uniformity(found.distances, found.distance(rows(1, 1000)))
    assert p > 0.01
    assert np.ptp(found.distances) > 0.2 * np.median(found.distances)
    far = rows(13, 20)
    far[:, :3] *= 20
    assert (found.p_value(far) < 0.01).all()
    plain = fit_calibration(np.delete(draws(0, 2000), 3, axis=1), NAMES[:-1])
    np.testing.assert_allclose(
        found.distance(rows(1, 50)), plain.distance(np.delete(draws(1, 50), 3, axis=1)), rtol=1e-4
    )


def test_what_varies_little_about_a_large_mean_counts():
    """Seven digits of the mean are needed to tell its values from each other."""
    rng = np.random.default_rng(14)
    x = draws(0, 2000)
    x[:, 3] = 1e5 + 3 * rng.standard_normal(2000)
    found = fit_calibration(x, NAMES)
    again = Calibration.from_dict(json.loads(json.dumps(found.to_dict())))
    usual, unusual = (np.repeat(x[:1], 2, axis=0) for _ in range(2))
    usual[:, 3], unusual[:, 3] = 1e5, 1e5 + 40
    assert (again.p_value(unusual) < 0.01).all() and (again.p_value(usual) > 0.01).all()


def test_a_file_has_no_more_bytes_than_foreseen(calibration):
    rng = np.random.default_rng(15)
    for dim in (1, 30, 301):
        x = rng.standard_normal((400, dim)) * 1.23456789e-100 + 1.23456789e-95
        x[:, 0] = rng.standard_normal(400)
        found = fit_calibration(x, [f"channel square {i}" for i in range(dim)])
        size = len(json.dumps(found.to_dict()))
        assert 0.5 * size < calibration_bytes(dim, 200) < size + 12_000 + 120 * dim


def test_a_batch_is_its_images_to_the_bit(calibration):
    x = draws(6, 50)
    together = calibration.distance(x)
    assert all(calibration.distance(x[i : i + 1])[0] == together[i] for i in range(50))


def test_what_a_file_holds_says_the_same(calibration):
    again = Calibration.from_dict(json.loads(json.dumps(calibration.to_dict())))
    x = draws(7, 100)
    np.testing.assert_array_equal(again.p_value(x), calibration.p_value(x))
    assert again.facts == {"images": 2000, "fitted_on": 1000, "data": "drawn"}


def test_shrinkage_is_less_the_more_rows_there_are():
    truth = np.cov(draws(8, 100_000).T)
    few, many = (shrunk_covariance(draws(9, n)) for n in (20, 20_000))
    assert np.linalg.eigvalsh(few).min() > 0  # 20 rows alone have rank 19
    assert np.abs(many - truth).max() < 0.15 * np.abs(truth).max()


def test_kolmogorov_smirnov_agrees_with_scipy():
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(11)
    for shift in (0.0, 0.1, 0.3):
        a, b = rng.normal(size=400), rng.normal(size=300) + shift
        largest, p = uniformity(a, b)
        expected = stats.ks_2samp(a, b, method="exact")
        assert largest == pytest.approx(expected.statistic)
        assert p == pytest.approx(expected.pvalue, abs=0.03)


def test_words():
    """They count the images that there are."""
    for count in (100, 105, 1000):
        held_out = np.arange(count) / count
        for beyond in (0, 1, 3, count // 2, count):
            (p,) = p_values(held_out, held_out[-beyond:][:1] if beyond else np.array([2.0]))
            share = f"{beyond:,} in {count:,}" if beyond else f"fewer than 1 in {count:,}"
            assert share_in_words(p, count) == share
            words = f"as unusual as {share}" if beyond else f"more unusual than all {count:,}"
            assert in_words(p, count) == f"{words} held-out images"


class TestBadInput:
    def test_too_few_images(self):
        with pytest.raises(UserInputError, match=r"199 held-out images.*needs 200"):
            fit_calibration(draws(0, FEWEST_IMAGES - 1), NAMES)

    def test_statistics_that_are_not_finite(self):
        x = draws(0, 300)
        x[3, 4] = np.nan
        with pytest.raises(UserInputError, match="finite"):
            fit_calibration(x, NAMES)

    def test_what_is_no_number_is_not_the_most_unusual(self, calibration):
        with pytest.raises(UserInputError, match="not a number"):
            p_values(np.arange(9.0), np.array([1.0, np.nan]))
        x = draws(4, 3)
        x[1, 2] = np.inf
        with pytest.raises(UserInputError, match="image 2 are not finite"):
            calibration.p_value(x)

    def test_statistics_that_do_not_vary(self):
        with pytest.raises(UserInputError, match="these images are alike"):
            fit_calibration(np.ones((300, 4)), NAMES[:4])

    def test_statistics_of_another_model(self, calibration):
        with pytest.raises(UserInputError, match=r"shape \(2, 3\); this calibration is of 30"):
            calibration.distance(np.zeros((2, 3)))

    @pytest.mark.parametrize(
        "change",
        [
            {"format_version": 1},
            {"mean": [0.0]},
            {"whitening": [[1.0, 2.0]]},
            {"whitening": "AAAA"},
            {"whitening": "no base64"},
            {"facts": {"draws": "two"}},
            {"facts": {"draws": 2.5}},
            {"facts": {"draws": None}},
            {"facts": {"draws": 0}},
            {"facts": {"draws": True}},
            {"facts": {"draws": 10**9}},
            {"facts": {"distortion": 3}},
            {"facts": {"distortion": {"0.99": "x"}}},
            {"facts": {"distortion": {"0.99": float("nan")}}},
            {"facts": {"weights": 7}},
            {"facts": 7},
            {"scale": [0.0] * DIM},
            {"distances": [1.0]},
            {"distances": "many"},
            {"mean": [float("nan")] * DIM},
            {"names": 3},
        ],
    )
    def test_a_file_of_something_else(self, calibration, change):
        with pytest.raises(UserInputError) as error:
            Calibration.from_dict(calibration.to_dict() | change)
        assert "\n" not in str(error.value)

    def test_a_file_without_its_numbers(self):
        with pytest.raises(UserInputError, match="lacks the keys"):
            Calibration.from_dict({"format_version": 2})
