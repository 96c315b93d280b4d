"""Fréchet distance between two sets of images, and the share of the gap that a prior closes.

Each set is summed up by the mean and covariance of its features (Heusel et al., "GANs Trained by a
Two Time-Scale Update Rule Converge to a Local Nash Equilibrium", arXiv 1706.08500):

    FD(a, b) = |mu_a - mu_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^{1/2})

With R = S^{1/2} symmetric, tr (S_a S_b)^{1/2} = tr (R_a S_b R_a)^{1/2} is the sum of the singular
values of R_a R_b. That form needs no root of a non-symmetric matrix, and a covariance of deficient
rank (fewer images than features) costs no digits: singular values are accurate to rounding,
where square roots of the eigenvalues of R_a S_b R_a would turn an error of 1e-16 into one of 1e-8.

    gap closed = (FD_gauss - FD_model) / (FD_gauss - FD_recon)

is 0 for samples as bad as the Gaussian prior's and 1 for samples as good as reconstructions.
Everything is float64. A Fréchet distance falls with the number of images: compare equal numbers
only.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from hebm_sample.errors import UserInputError
from hebm_sample.metrics.statistics import check_groups

__all__ = [
    "DEFAULT_GROUPS",
    "FeatureStatistics",
    "GapMeasurement",
    "frechet_distance",
    "frechet_standard_error",
    "gap_closed",
    "jackknife_standard_error",
    "measure_gap",
]

DEFAULT_GROUPS = 20


@dataclass(frozen=True)
class FeatureStatistics:
    """First two moments of a set's features.

    Arguments:
        mean: (D,), float64.
        covariance: (D, D), float64, symmetric, with the divisor `count - 1`.
        count: Number of images.
    """

    mean: np.ndarray
    covariance: np.ndarray
    count: int

    @classmethod
    def from_features(cls, features: np.ndarray) -> "FeatureStatistics":
        """Moments of features (N, D); raises `UserInputError` unless N >= 2 and all are finite."""
        features = _checked(features)
        mean = features.mean(axis=0)
        centred = features - mean
        covariance = centred.T @ centred / (len(features) - 1)
        return cls(mean, (covariance + covariance.T) / 2, len(features))


def _checked(features: np.ndarray) -> np.ndarray:
    features = np.asarray(features, dtype=np.float64)
    if features.ndim != 2 or len(features) < 2 or features.shape[1] < 1:
        raise UserInputError(
            f"features have shape {features.shape}; a Fréchet distance needs (N, D) with N >= 2"
        )
    if not np.isfinite(features).all():
        bad = int((~np.isfinite(features)).any(axis=1).sum())
        raise UserInputError(
            f"the features of {bad} of {len(features)} images are not finite numbers"
        )
    return features


def _square_root(covariance: np.ndarray) -> np.ndarray:
    """Symmetric square root (D, D) of a positive semi-definite matrix, by eigendecomposition.

    Eigenvalues at the rounding level are set to 0: the root would turn 1e-16 into 1e-8.
    """
    values, vectors = np.linalg.eigh(covariance)
    floor = max(values[-1], 0.0) * len(values) * np.finfo(np.float64).eps
    roots = np.sqrt(np.where(values > floor, values, 0.0))
    return (vectors * roots) @ vectors.T


def frechet_distance(a: FeatureStatistics, b: FeatureStatistics) -> float:
    """FD(a, b) in squared feature units, never negative; `UserInputError` if dimensions differ."""
    if a.mean.shape != b.mean.shape:
        raise UserInputError(
            f"features of {len(a.mean)} and {len(b.mean)} dimensions cannot be compared; "
            "use one extractor for both"
        )
    singular = np.linalg.svd(
        _square_root(a.covariance) @ _square_root(b.covariance), compute_uv=False
    )
    spread = np.trace(a.covariance) + np.trace(b.covariance) - 2 * singular.sum()
    return max(float(np.sum((a.mean - b.mean) ** 2) + spread), 0.0)


def gap_closed(fd_gauss: float, fd_model: float, fd_recon: float) -> float:
    """Share of the gap that the model's prior closes; nan if FD_gauss <= FD_recon.

    >>> gap_closed(20.0, 8.0, 4.0)
    0.75
    """
    gap = fd_gauss - fd_recon
    return (fd_gauss - fd_model) / gap if gap > 0 else float("nan")


def _leave_one_group_out(
    features: np.ndarray, num_groups: int, seed: int
) -> list[FeatureStatistics]:
    """Statistics without each of `num_groups` random groups.

    Sums and outer products are taken once per group and subtracted from the total, so that all
    together cost one pass over the features; centring first keeps the subtraction accurate.
    """
    features = _checked(features)
    check_groups(num_groups, len(features))
    centre = features.mean(axis=0)
    # the same order in every set, so that rows paired by their noise are left out together
    order = np.random.default_rng(seed).permutation(len(features))
    groups = np.array_split((features - centre)[order], num_groups)
    sums = np.stack([g.sum(axis=0) for g in groups])
    products = np.stack([g.T @ g for g in groups])
    total_sum, total_product = sums.sum(axis=0), products.sum(axis=0)
    statistics = []
    for group, group_sum, group_product in zip(groups, sums, products, strict=True):
        count = len(features) - len(group)
        mean = (total_sum - group_sum) / count
        covariance = (total_product - group_product - count * np.outer(mean, mean)) / (count - 1)
        statistics.append(FeatureStatistics(centre + mean, (covariance + covariance.T) / 2, count))
    return statistics


def _jackknife(
    statistic: Callable[..., Sequence[float]],
    sets: Sequence[np.ndarray],
    num_groups: int,
    seed: int,
) -> np.ndarray:
    left_out = [_leave_one_group_out(features, num_groups, seed) for features in sets]
    values = np.array([statistic(*statistics) for statistics in zip(*left_out, strict=True)])
    deviations = values - values.mean(axis=0)
    return np.sqrt((num_groups - 1) / num_groups * np.sum(deviations**2, axis=0))


def jackknife_standard_error(
    statistic: Callable[..., float],
    *features: np.ndarray,
    num_groups: int = DEFAULT_GROUPS,
    seed: int = 0,
) -> float:
    """Standard error of a smooth function of sets' moments, by the delete-a-group jackknife.

    Each of K random groups is left out in turn, of all sets at once:

        SE^2 = (K-1)/K sum_k (f_k - mean f)^2

    It is itself uncertain by about 1 / sqrt(2 (K-1)), 16% for K = 20. It counts the randomness of
    the images only: not the training's, nor a finite set's bias. Where two sets have the same
    law, FD is quadratic in the errors and the figure is no more than an order of magnitude.

    Arguments:
        statistic: Takes one `FeatureStatistics` a set, in order; returns a number.
        features: The sets, each (N_i, D); independent, or of one size and paired row by row.
        num_groups: K, at least 2.
        seed: Of the random groups.
    """
    return float(_jackknife(lambda *s: (statistic(*s),), features, num_groups, seed)[0])


def frechet_standard_error(
    a: np.ndarray, b: np.ndarray, *, num_groups: int = DEFAULT_GROUPS, seed: int = 0
) -> float:
    """Standard error of FD between features (N, D) and (M, D), by `jackknife_standard_error`."""
    return jackknife_standard_error(frechet_distance, a, b, num_groups=num_groups, seed=seed)


@dataclass(frozen=True)
class GapMeasurement:
    """Fréchet distances to the reference, gap closed, and standard errors (`*_error`)."""

    fd_gauss: float
    fd_model: float
    fd_recon: float
    gap_closed: float
    fd_gauss_error: float
    fd_model_error: float
    fd_recon_error: float
    gap_closed_error: float
    num_images: int
    num_reference: int

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers under the attributes' names."""
        return asdict(self)


def _gap_values(
    gauss: FeatureStatistics,
    model: FeatureStatistics,
    recon: FeatureStatistics,
    reference: FeatureStatistics,
) -> tuple[float, float, float, float]:
    fd_gauss, fd_model, fd_recon = (frechet_distance(s, reference) for s in (gauss, model, recon))
    return fd_gauss, fd_model, fd_recon, gap_closed(fd_gauss, fd_model, fd_recon)


def measure_gap(
    gauss: np.ndarray,
    model: np.ndarray,
    recon: np.ndarray,
    reference: np.ndarray,
    *,
    num_groups: int = DEFAULT_GROUPS,
    seed: int = 0,
) -> GapMeasurement:
    """The whole measurement from features (N, D) of three sets and a reference set (M, D).

    Arguments:
        gauss: Samples of the Gaussian prior.
        model: Samples of the energy-based prior.
        recon: Reconstructions of held-out images that are not in `reference`.
        reference: Held-out images.
        num_groups: K of the jackknife.
        seed: Of the jackknife's groups.

    Raises:
        UserInputError: The three sets differ in size, or any set is malformed.
    """
    sizes = [len(s) for s in (gauss, model, recon)]
    if len(set(sizes)) != 1:
        raise UserInputError(
            f"Gaussian samples, model samples and reconstructions number {sizes}; "
            "Fréchet distances compare only for equal numbers of images"
        )
    sets = (gauss, model, recon, reference)
    values = _gap_values(*(FeatureStatistics.from_features(s) for s in sets))
    errors = (float(e) for e in _jackknife(_gap_values, sets, num_groups, seed))
    return GapMeasurement(*values, *errors, num_images=sizes[0], num_reference=len(reference))
