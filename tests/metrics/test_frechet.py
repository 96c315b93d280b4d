"""The Fréchet distance is the closed form, to rounding, also where covariances are singular.

An inexact matrix square root shifts every published figure by an amount that looks like progress;
a wrong standard error makes noise look like a result.
"""

import math

import numpy as np
import pytest

from hebm_sample.errors import UserInputError
from hebm_sample.metrics.frechet import (
    FeatureStatistics,
    frechet_distance,
    frechet_standard_error,
    gap_closed,
    jackknife_standard_error,
    measure_gap,
)


def correlated(rng: np.random.Generator, count: int, dim: int) -> np.ndarray:
    return rng.normal(size=(count, dim)) @ rng.normal(size=(dim, dim)) + rng.normal(size=dim)


def statistics(features: np.ndarray) -> FeatureStatistics:
    return FeatureStatistics.from_features(features)


def test_statistics_are_numpy_moments():
    features = correlated(np.random.default_rng(0), 50, 4).astype(np.float32)
    found = statistics(features)
    assert found.mean.dtype == found.covariance.dtype == np.float64
    assert found.count == 50
    np.testing.assert_allclose(found.mean, features.astype(np.float64).mean(axis=0))
    np.testing.assert_allclose(found.covariance, np.cov(features.astype(np.float64).T))


@pytest.mark.parametrize("dim", [1, 7, 40])
def test_agrees_with_matrix_square_root(dim: int):
    linalg = pytest.importorskip("scipy.linalg")
    rng = np.random.default_rng(dim)
    a, b = (statistics(correlated(rng, 3 * dim + 10, dim)) for _ in range(2))
    root = linalg.sqrtm(a.covariance @ b.covariance).real
    expected = np.sum((a.mean - b.mean) ** 2) + np.trace(a.covariance + b.covariance - 2 * root)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-6)


def test_diagonal_closed_form():
    a = FeatureStatistics(np.array([1.0, 0.0]), np.diag([4.0, 0.0]), 10)
    b = FeatureStatistics(np.array([0.0, 2.0]), np.diag([1.0, 9.0]), 10)
    assert frechet_distance(a, b) == pytest.approx(1 + 4 + (2 - 1) ** 2 + (0 - 3) ** 2, rel=1e-14)


@pytest.mark.parametrize("count", [5, 20, 500])  # fewer images than dimensions: singular
def test_identical_sets_are_at_distance_zero(count: int):
    found = statistics(correlated(np.random.default_rng(1), count, 30))
    assert 0 <= frechet_distance(found, found) < 1e-12 * np.trace(found.covariance)


def test_singular_covariances_on_orthogonal_axes():
    """Disjoint supports: both traces and no cross term, to rounding and not to its root."""
    rng = np.random.default_rng(2)
    basis = np.linalg.qr(rng.normal(size=(20, 20)))[0]
    a, b = (rng.normal(size=(40, 10)) @ half for half in (basis[:10], basis[10:]))
    a, b = statistics(a - a.mean(axis=0)), statistics(b - b.mean(axis=0))
    expected = np.trace(a.covariance) + np.trace(b.covariance)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-12)


def test_symmetric_and_rotation_invariant():
    rng = np.random.default_rng(3)
    x, y = correlated(rng, 60, 8), correlated(rng, 60, 8)
    forward = frechet_distance(statistics(x), statistics(y))
    assert frechet_distance(statistics(y), statistics(x)) == pytest.approx(forward, rel=1e-12)
    turn = np.linalg.qr(rng.normal(size=(8, 8)))[0]
    turned = frechet_distance(statistics(x @ turn), statistics(y @ turn))
    assert turned == pytest.approx(forward, rel=1e-10)


def test_gap_closed():
    assert gap_closed(100, 40, 20) == pytest.approx(0.75)
    assert gap_closed(100, 100, 20) == 0
    assert gap_closed(100, 120, 20) < 0
    assert math.isnan(gap_closed(20, 10, 20))


def test_jackknife_of_a_mean_is_the_textbook_standard_error():
    features = np.random.default_rng(4).normal(size=(2000, 1))
    error = jackknife_standard_error(lambda s: s.mean[0], features, num_groups=1000)
    assert error == pytest.approx(features.std(ddof=1) / math.sqrt(2000), rel=0.1)


def test_jackknife_tracks_the_spread_of_independent_repeats():
    rng = np.random.default_rng(5)

    def draw() -> tuple[np.ndarray, np.ndarray]:
        return rng.normal(size=(400, 3)), 1 + 1.5 * rng.normal(size=(300, 3))

    repeats = [draw() for _ in range(300)]
    spread = np.std([frechet_distance(statistics(a), statistics(b)) for a, b in repeats])
    errors = [frechet_standard_error(a, b) for a, b in repeats[:40]]
    assert np.sqrt(np.mean(np.square(errors))) == pytest.approx(spread, rel=0.2)


def test_paired_rows_are_left_out_together():
    """Two copies of one set differ by nothing: their difference has no error."""
    features = np.random.default_rng(6).normal(size=(100, 2))
    error = jackknife_standard_error(lambda a, b: a.mean[0] - b.mean[0], features, features)
    assert error == pytest.approx(0, abs=1e-12)


def test_measure_gap():
    rng = np.random.default_rng(7)
    gauss, model, recon, reference = (s + rng.normal(size=(400, 4)) for s in (2.0, 1.0, 0.0, 0.0))
    found = measure_gap(gauss, model, recon, reference)
    assert found == measure_gap(gauss, model, recon, reference)
    assert found.fd_gauss == pytest.approx(16, abs=4 * found.fd_gauss_error)
    assert found.gap_closed == gap_closed(found.fd_gauss, found.fd_model, found.fd_recon)
    assert 0 < found.gap_closed_error < 0.1
    assert found.gap_closed == pytest.approx(0.75, abs=4 * found.gap_closed_error)
    assert (found.num_images, found.num_reference) == (400, 400)
    assert found.to_dict()["fd_model"] == found.fd_model


def test_bad_input():
    good = np.random.default_rng(8).normal(size=(40, 3))
    with pytest.raises(UserInputError, match=r"shape \(1, 3\).*N >= 2"):
        statistics(good[:1])
    with pytest.raises(UserInputError, match="2 of 40 images are not finite"):
        statistics(np.where(np.arange(40)[:, None] < 2, np.nan, good))
    with pytest.raises(UserInputError, match="3 and 2 dimensions.*one extractor"):
        frechet_distance(statistics(good), statistics(good[:, :2]))
    with pytest.raises(UserInputError, match="num_groups is 21.*2 to 20"):
        frechet_standard_error(good, good, num_groups=21)
    with pytest.raises(UserInputError, match=r"\[40, 39, 40\].*equal numbers"):
        measure_gap(good, good[1:], good, good)
