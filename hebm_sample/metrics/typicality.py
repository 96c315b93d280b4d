r"""How unusual is an image among held-out ones: a distance, and the share of them beyond it.

    d(s)^2 = |W (s - m) / v|^2,   W^T W = Sigma^{-1}        Mahalanobis distance of statistics s
    p(x)   = (1 + #{held-out i: d_i >= d(x)}) / (n + 1)     its p-value

m and v are mean and standard deviation of each statistic, Sigma their covariance, shrunk towards a
multiple of the identity (Ledoit and Wolf, "A well-conditioned estimator for large-dimensional
covariance matrices", 2004). They are fitted on one half of the held-out images, the distances d_i
are those of the other half, which fitted nothing: then p is a conformal p-value, uniform for
another image of the same kind whatever the statistics are (Bates et al., "Testing for Outliers
with Conformal p-values", arXiv 2104.08279). It takes in-distribution images only. A statistic that
hardly varies among them says nothing but how numbers were rounded, and does not count.

A Mahalanobis distance of a network's own features is the detector of Lee et al., "A Simple Unified
Framework for Detecting Out-of-Distribution Samples and Adversarial Attacks" (arXiv 1807.03888);
of a generative model's statistics, DoSE (Morningstar et al., arXiv 2006.09273) with a Gaussian.
"""

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from hebm_sample.errors import UserInputError

__all__ = [
    "FEWEST_IMAGES",
    "MAX_DRAWS",
    "Calibration",
    "calibration_bytes",
    "fit_calibration",
    "in_words",
    "p_values",
    "share_in_words",
    "uniformity",
]

FEWEST_IMAGES = 200  # to calibrate with: 100 that fit, and p-values in steps of 1 in 101
MAX_DRAWS = 1000
FORMAT_VERSION = 2
# Of a statistic's mean, or of 1: networks compute in float32, so what varies less is rounding.
LEAST_SPREAD = 1e-5
_KEYS = ("names", "mean", "scale", "whitening", "distances", "facts")
_ROUNDING = 1e-6  # of networks in batches of other sizes, as a share


def p_values(held_out: np.ndarray, values: np.ndarray) -> np.ndarray:
    """(1 + number of `held_out` (n,) that are at least the value) / (n + 1), as `values`.

    Raises:
        UserInputError: A value is not a number, which would be taken for the most unusual.
    """
    if np.isnan(values).any():
        raise UserInputError("a p-value needs numbers to compare; some are not a number (nan)")
    ordered = np.sort(np.asarray(held_out, dtype=np.float64).ravel())
    beyond = len(ordered) - np.searchsorted(ordered, values, side="left")
    return (1 + beyond) / (len(ordered) + 1)


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
        whitening: W, (D, D), lower triangular; 0 where a statistic does not count.
        distances: d of the held-out images that fitted nothing, in order, (n,).
        facts: As plain JSON, `images` and `fitted_on`, and what a model adds: `draws` of u for
            each image, `distortion`, quantiles of the reconstruction error in nats, and
            `weights`, the hash of the weights that they are the scores of.
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
        _check_facts(self.facts)

    @property
    def draws(self) -> int | None:
        """Samples of u an image that its statistics are means over."""
        return self.facts.get("draws")

    @property
    def weights(self) -> str | None:
        """The hash of the weights that gave the statistics."""
        return self.facts.get("weights")

    def distortion(self, share: str) -> float | None:
        """The reconstruction error in nats that so large a share of held-out images stays below,
        such as "0.99"; None where it was not kept.
        """
        return self.facts.get("distortion", {}).get(share)

    def saying(self, **facts: Any) -> "Calibration":
        """The same with further facts."""
        return replace(self, facts={**self.facts, **facts})

    def distance(self, statistics: np.ndarray) -> np.ndarray:
        """d of statistics (N, D) in the order of `names`, (N,); large for what is unusual."""
        x = np.asarray(statistics, dtype=np.float64)
        if x.ndim != 2 or x.shape[1] != len(self.names):
            raise UserInputError(
                f"statistics have shape {x.shape}; this calibration is of {len(self.names)}"
            )
        if not np.isfinite(x).all():
            row = int(np.flatnonzero(~np.isfinite(x).all(axis=1))[0])
            raise UserInputError(f"the statistics of image {row + 1} are not finite numbers")
        # Row by row: a matrix product's rounding depends on how many rows there are.
        rows = [self.whitening @ row for row in (x - self.mean) / self.scale]
        return np.array([math.sqrt(float(r @ r)) for r in rows])

    def p_value(self, statistics: np.ndarray) -> np.ndarray:
        """The share of held-out images that are at least as unusual, (N,), in (0, 1]."""
        # A tie counts as at least as unusual: without, duplicates would be too rare.
        return p_values(self.distances * (1 + _ROUNDING), self.distance(statistics))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; the lower triangle of W, row by row, as base64 of float32."""
        return {
            "format_version": FORMAT_VERSION,
            "names": list(self.names),
            "mean": self.mean.tolist(),
            "scale": self.scale.tolist(),
            "whitening": _packed(self.whitening),
            "distances": self.distances.tolist(),
            "facts": dict(self.facts),
        }

    @classmethod
    def from_dict(cls, data: Any) -> "Calibration":
        """Undoes `to_dict`; `UserInputError` for anything else."""
        if not isinstance(data, dict) or data.get("format_version") != FORMAT_VERSION:
            raise UserInputError(
                f"it is no calibration of format {FORMAT_VERSION}: calibrate the model again with "
                "hebm-train calibrate"
            )
        missing = [key for key in _KEYS if key not in data]
        if missing:
            raise UserInputError(f"it lacks the keys {missing}")
        try:
            names = tuple(map(str, data["names"]))
            whitening = _unpacked(data["whitening"], len(names))
            parts = [np.array(data[k], dtype=np.float64) for k in ("mean", "scale", "distances")]
            return cls(names, parts[0], parts[1], whitening, parts[2], dict(data["facts"]))
        except (TypeError, IndexError) as error:
            raise UserInputError(f"its numbers are not as they should be: {error}") from error
        except ValueError as error:
            raise UserInputError(str(error)) from error


def _check_facts(facts: Mapping[str, Any]) -> None:
    """What is read of a file that anybody may have written."""
    draws, quantiles = facts.get("draws", 1), facts.get("distortion", {})
    weights = facts.get("weights", "")
    if type(draws) is not int or not 1 <= draws <= MAX_DRAWS:
        raise UserInputError(f"draws of a calibration must be 1 to {MAX_DRAWS}")
    if not isinstance(quantiles, Mapping) or not all(map(_is_finite, quantiles.values())):
        raise UserInputError("distortion of a calibration must be finite numbers by their shares")
    if not isinstance(weights, str):
        raise UserInputError("weights of a calibration must be a hash")


def _is_finite(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < math.inf


def _packed(whitening: np.ndarray) -> str:
    rows = [row[: i + 1].astype("<f4") for i, row in enumerate(whitening)]
    return base64.b64encode(b"".join(row.tobytes() for row in rows)).decode()


def _unpacked(text: Any, count: int) -> np.ndarray:
    """W (D, D) of its lower triangle."""
    if not isinstance(text, str):
        raise UserInputError("whitening of a calibration must be base64")
    data = base64.b64decode(text, validate=True)
    if len(data) != 2 * count * (count + 1):  # before room for D x D is taken
        raise UserInputError(
            f"whitening of a calibration has {len(data)} bytes; of {count} statistics it must "
            f"have {2 * count * (count + 1)}"
        )
    values, whitening = np.frombuffer(data, dtype="<f4"), np.zeros((count, count))
    for i in range(count):
        whitening[i, : i + 1] = values[i * (i + 1) // 2 :][: i + 1]
    return whitening


def calibration_bytes(statistics: int, distances: int) -> int:
    """What a calibration's file takes at most."""
    packed = -(-2 * statistics * (statistics + 1) // 3) * 4 + 4
    return packed + 120 * statistics + 27 * distances + 10_000


def fit_calibration(
    statistics: np.ndarray, names: Sequence[str], facts: Mapping[str, Any] | None = None
) -> Calibration:
    """From statistics (N, D) of held-out images in random order: the first half fits the distance,
    the second half's distances are kept.

    Raises:
        UserInputError: Fewer than `FEWEST_IMAGES`, statistics that are not finite, or none that
            varies.
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
    mean, scale, whitening = _whitened(x[:half])
    known = {"images": len(x), "fitted_on": half, **(facts or {})}
    first = Calibration(tuple(names), mean, scale, whitening, np.zeros(len(x)), known)
    # As a file holds it, so that a model that was saved and loaded says the same.
    first = Calibration.from_dict(first.to_dict())
    return replace(first, distances=np.sort(first.distance(x[half:])))


def _whitened(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """m, v and W of statistics (N, D): scale 1 and whitening 0 for those that do not count."""
    mean, spread = x.mean(axis=0), x.std(axis=0)
    counts = np.flatnonzero(spread > LEAST_SPREAD * np.maximum(np.abs(mean), 1))
    if not len(counts):
        raise UserInputError("a calibration needs statistics that vary; these images are alike")
    scale = np.ones_like(spread)
    scale[counts] = spread[counts]
    covariance = shrunk_covariance((x[:, counts] - mean[counts]) / scale[counts])
    root = np.linalg.cholesky(covariance + 1e-9 * np.eye(len(counts)))
    whitening = np.zeros((x.shape[1], x.shape[1]))
    whitening[np.ix_(counts, counts)] = np.tril(np.linalg.inv(root))
    return mean, scale, whitening


def _at_least(p_value: float, count: int) -> int:
    """How many of `count` held-out images are at least as unusual."""
    return max(0, round(p_value * (count + 1)) - 1)


def share_in_words(p_value: float, count: int) -> str:
    """How many of `count` held-out images are at least as unusual.

    >>> share_in_words(4 / 1001, 1000), share_in_words(1 / 101, 100)
    ('3 in 1,000', 'fewer than 1 in 100')
    """
    found = _at_least(p_value, count)
    return f"{found:,} in {count:,}" if found else f"fewer than 1 in {count:,}"


def in_words(p_value: float, count: int) -> str:
    """What a p-value among `count` held-out images says.

    >>> in_words(4 / 1001, 1000), in_words(1 / 1001, 1000)
    ('as unusual as 3 in 1,000 held-out images', 'more unusual than all 1,000 held-out images')
    """
    if not _at_least(p_value, count):
        return f"more unusual than all {count:,} held-out images"
    return f"as unusual as {share_in_words(p_value, count)} held-out images"
