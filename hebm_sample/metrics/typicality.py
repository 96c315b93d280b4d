r"""How unusual is an image among held-out ones: a distance, and the share of them beyond it.

    d(s)^2 = |W (s - m) / v|^2,   W^T W = Sigma^{-1}        Mahalanobis distance of statistics s
    p(x)   = (1 + #{held-out i: d_i >= d(x)}) / (n + 1)     its p-value

m and v are mean and standard deviation of each statistic, Sigma their covariance, shrunk towards a
multiple of the identity (Ledoit and Wolf, "A well-conditioned estimator for large-dimensional
covariance matrices", 2004). They are fitted on one half of the held-out images, the distances d_i
are those of the other half, which fitted nothing: then p is a conformal p-value, uniform for
another image of the same kind whatever the statistics are (Bates et al., "Testing for Outliers
with Conformal p-values", arXiv 2104.08279). It takes in-distribution images only.

A Mahalanobis distance of a network's own features is the detector of Lee et al., "A Simple Unified
Framework for Detecting Out-of-Distribution Samples and Adversarial Attacks" (arXiv 1807.03888);
of a generative model's statistics, DoSE (Morningstar et al., arXiv 2006.09273) with a Gaussian.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hebm_sample.errors import UserInputError

__all__ = [
    "FEWEST_IMAGES",
    "Calibration",
    "fisher_combination",
    "fit_calibration",
    "in_words",
    "p_values",
    "uniformity",
]

FEWEST_IMAGES = 200  # to calibrate with: 100 that fit, and p-values in steps of 1 in 101
FORMAT_VERSION = 1
DIGITS = 6
_KEYS = ("names", "mean", "scale", "whitening", "distances")
_ROUNDING = 1e-9


def p_values(held_out: np.ndarray, values: np.ndarray) -> np.ndarray:
    """(1 + number of `held_out` (n,) that are at least the value) / (n + 1), as `values`."""
    ordered = np.sort(np.asarray(held_out, dtype=np.float64).ravel())
    beyond = len(ordered) - np.searchsorted(ordered, values, side="left")
    return (1 + beyond) / (len(ordered) + 1)


def fisher_combination(p: np.ndarray) -> np.ndarray:
    """-2 sum_j log p_j of p-values (N, J), (N,): Fisher's statistic, large for what is unusual.

    The p-values of one image depend on each other, so its law is taken from held-out images.
    """
    return -2 * np.log(np.asarray(p, dtype=np.float64)).sum(axis=1)


def uniformity(held_out: np.ndarray, values: np.ndarray) -> tuple[float, float]:
    """The two-sample Kolmogorov-Smirnov statistic of numbers (n,) and (m,), and its p-value
    (asymptotic): small where the p-values of `values` among `held_out` are not uniform.
    """
    a, b = (np.sort(np.asarray(x, dtype=np.float64).ravel()) for x in (held_out, values))
    if min(len(a), len(b)) < 2:
        raise UserInputError(f"{len(a)} and {len(b)} numbers were given; a comparison needs 2")
    every = np.concatenate([a, b])
    shares = [np.searchsorted(x, every, side="right") / len(x) for x in (a, b)]
    largest = float(np.abs(shares[0] - shares[1]).max())
    root = math.sqrt(len(a) * len(b) / (len(a) + len(b)))
    scaled = (root + 0.12 + 0.11 / root) * largest
    if scaled < 0.2:  # where the series does not converge
        return largest, 1.0
    terms = (2 * (-1) ** (k - 1) * math.exp(-2 * (k * scaled) ** 2) for k in range(1, 101))
    return largest, min(1.0, max(0.0, math.fsum(terms)))


def shrunk_covariance(rows: np.ndarray) -> np.ndarray:
    """Ledoit and Wolf's covariance (D, D) of rows (N, D): (1 - a) S + a tr(S) / D I, with the a
    that is best in expected squared error.
    """
    x = rows - rows.mean(axis=0)
    n, d = x.shape
    sample = x.T @ x / n
    scale = np.trace(sample) / d
    off = ((sample - scale * np.eye(d)) ** 2).sum()
    noise = (np.square(np.square(x).sum(axis=1)).sum() / n - np.square(sample).sum()) / n
    share = min(1.0, max(0.0, noise / off)) if off > 0 else 1.0
    return (1 - share) * sample + share * scale * np.eye(d)


@dataclass(frozen=True)
class Calibration:
    """What held-out images look like to a model.

    Arguments:
        names: Of the statistics, D.
        mean, scale: m and v, (D,).
        whitening: W, (D, D), lower triangular.
        distances: d of the held-out images that fitted nothing, in order, (n,).
        facts: Where they came from, as plain JSON.
    """

    names: tuple[str, ...]
    mean: np.ndarray
    scale: np.ndarray
    whitening: np.ndarray
    distances: np.ndarray
    facts: Mapping[str, Any]

    def __post_init__(self) -> None:
        d = len(self.names)
        shapes = {"mean": (d,), "scale": (d,), "whitening": (d, d)}
        for name, shape in shapes.items():
            if getattr(self, name).shape != shape:
                found = getattr(self, name).shape
                raise UserInputError(f"{name} of a calibration is {found}; it must be {shape}")
        numbers = (self.mean, self.scale, self.whitening, self.distances)
        if not d or not all(np.isfinite(x).all() for x in numbers) or (self.scale <= 0).any():
            raise UserInputError("a calibration needs finite numbers and positive scales")
        if self.distances.ndim != 1 or len(self.distances) < FEWEST_IMAGES // 2:
            raise UserInputError(
                f"a calibration has {self.distances.size} distances; it must have "
                f"{FEWEST_IMAGES // 2}"
            )

    def distance(self, statistics: np.ndarray) -> np.ndarray:
        """d of statistics (N, D) in the order of `names`, (N,); large for what is unusual."""
        x = np.asarray(statistics, dtype=np.float64)
        if x.ndim != 2 or x.shape[1] != len(self.names):
            raise UserInputError(
                f"statistics have shape {x.shape}; this calibration is of {len(self.names)}"
            )
        # Row by row: a matrix product's rounding depends on how many rows there are.
        rows = [self.whitening @ row for row in (x - self.mean) / self.scale]
        return np.array([math.sqrt(float(r @ r)) for r in rows])

    def p_value(self, statistics: np.ndarray) -> np.ndarray:
        """The share of held-out images that are at least as unusual, (N,), in (0, 1]."""
        return p_values(self.distances * (1 - _ROUNDING), self.distance(statistics))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, numbers to six digits; W as the rows of its lower triangle."""
        rows = [_rounded(row[: i + 1]) for i, row in enumerate(self.whitening)]
        return {
            "format_version": FORMAT_VERSION,
            "names": list(self.names),
            "mean": _rounded(self.mean),
            "scale": _rounded(self.scale),
            "whitening": rows,
            "distances": _rounded(self.distances),
            "facts": dict(self.facts),
        }

    @classmethod
    def from_dict(cls, data: Any) -> "Calibration":
        """Undoes `to_dict`; `UserInputError` for anything else."""
        if not isinstance(data, dict) or data.get("format_version") != FORMAT_VERSION:
            raise UserInputError(
                f"it is no calibration of format {FORMAT_VERSION}: calibrate the model again"
            )
        missing = [key for key in (*_KEYS, "facts") if key not in data]
        if missing:
            raise UserInputError(f"it lacks the keys {missing}")
        try:
            names = tuple(map(str, data["names"]))
            whitening = np.zeros((len(names), len(names)))
            for i, row in enumerate(data["whitening"]):
                whitening[i, : i + 1] = row
            parts = [np.array(data[k], dtype=np.float64) for k in ("mean", "scale", "distances")]
            return cls(names, parts[0], parts[1], whitening, parts[2], dict(data["facts"]))
        except (TypeError, IndexError) as error:
            raise UserInputError(f"its numbers are not as they should be: {error}") from error
        except ValueError as error:
            raise UserInputError(str(error)) from error


def _rounded(values: np.ndarray) -> list[float]:
    return [float(f"{v:.{DIGITS}g}") for v in values]


def fit_calibration(
    statistics: np.ndarray, names: Sequence[str], facts: Mapping[str, Any] | None = None
) -> Calibration:
    """From statistics (N, D) of held-out images in random order: the first half fits the distance,
    the second half's distances are kept.

    Raises:
        UserInputError: Fewer than `FEWEST_IMAGES`, or statistics that are not finite.
    """
    x = np.asarray(statistics, dtype=np.float64)
    if len(x) < FEWEST_IMAGES:
        raise UserInputError(
            f"{len(x)} held-out images were given; a calibration needs {FEWEST_IMAGES}, and 2000 "
            "tell 1 in 1,000"
        )
    if not np.isfinite(x).all():
        raise UserInputError("a calibration needs finite statistics; some are not")
    half = len(x) // 2
    mean, scale = x[:half].mean(axis=0), x[:half].std(axis=0)
    scale = np.where(scale > 0, scale, 1.0)
    covariance = shrunk_covariance((x[:half] - mean) / scale)
    whitening = np.linalg.inv(np.linalg.cholesky(covariance + 1e-9 * np.eye(x.shape[1])))
    known = {"images": len(x), "fitted_on": half, **(facts or {})}
    first = Calibration(tuple(names), mean, scale, np.tril(whitening), np.zeros(len(x)), known)
    # As a file holds it, so that a model that was saved and loaded says the same.
    first = Calibration.from_dict(first.to_dict())
    distances = np.sort(first.distance(x[half:]))
    return Calibration.from_dict({**first.to_dict(), "distances": _rounded(distances)})


def in_words(p_value: float, count: int) -> str:
    """What a p-value among `count` held-out images says.

    >>> in_words(0.003, 1000), in_words(1 / 1001, 1000), in_words(0.42, 1000)
    ('as unusual as 3 in 1,000 held-out images', 'more unusual than all 1,000 held-out images',
    'as unusual as 42 in 100 held-out images')
    """
    if p_value * (count + 1) < 1.5:
        return f"more unusual than all {count:,} held-out images"
    base = 100 if p_value >= 0.1 else 1000
    return f"as unusual as {max(1, round(p_value * base))} in {base:,} held-out images"
