"""One set of images against a reference, by every measure that takes two sets of features.

Their sources are named where they are computed: `frechet`, `kernel` and `neighbours`.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from hebm_sample.errors import UserInputError
from hebm_sample.metrics.frechet import (
    FeatureStatistics,
    frechet_distance,
    frechet_standard_error,
    jackknife_standard_error,
)
from hebm_sample.metrics.kernel import kernel_distance
from hebm_sample.metrics.neighbours import DEFAULT_K, Neighbourhoods, neighbourhoods
from hebm_sample.metrics.statistics import Figure

__all__ = ["Quality", "measure_quality", "measure_to_reference"]

MAX_GROUPS = 20


@dataclass(frozen=True)
class Quality:
    """Distances and shares, each with its standard error.

    Arguments:
        frechet: FD.
        kernel: KID.
        neighbours: Precision, recall, density, coverage; None where a set is too small.
        num_images, num_reference: In the two sets.
    """

    frechet: Figure
    kernel: Figure
    neighbours: Neighbourhoods | None
    num_images: int
    num_reference: int

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values under flat names, errors as `*_error`."""
        figures = {"frechet": self.frechet, "kernel": self.kernel}
        if self.neighbours is not None:
            names = ("precision", "recall", "density", "coverage")
            figures |= {name: getattr(self.neighbours, name) for name in names}
        plain: dict[str, Any] = {}
        for name, figure in figures.items():
            plain |= {name: figure.value, f"{name}_error": figure.error}
        if self.neighbours is not None:
            plain["k"] = self.neighbours.k
        return plain | {"num_images": self.num_images, "num_reference": self.num_reference}

    def __str__(self) -> str:
        text = f"KID {self.kernel.value:.4f} ± {self.kernel.error:.4f}"
        if self.neighbours is None:
            return text
        names = ("precision", "recall", "density", "coverage")
        return ", ".join([text, *(f"{n} {getattr(self.neighbours, n)}" for n in names)])


def _neighbours(samples: np.ndarray, reference: np.ndarray, k: int) -> Neighbourhoods | None:
    """Of equal numbers: random rows of the larger set, which may be sorted by class."""
    count = min(len(samples), len(reference))
    if count <= k:
        return None
    random = np.random.default_rng(0)
    samples, reference = (
        x if len(x) == count else x[np.sort(random.permutation(len(x))[:count])]
        for x in (samples, reference)
    )
    return neighbourhoods(samples, reference, k=k)


def measure_quality(
    samples: np.ndarray, reference: np.ndarray, *, k: int = DEFAULT_K, seed: int = 0
) -> Quality:
    """From features (N, D) of the images and (M, D) of the reference.

    Raises:
        UserInputError: Fewer than 4 images in a set, or features that do not fit each other.
    """
    smaller = min(len(samples), len(reference))
    if smaller < 4:
        raise UserInputError(
            f"{len(samples)} and {len(reference)} images were given; a comparison needs 4 per side"
        )
    groups = min(MAX_GROUPS, smaller // 2)
    statistics = [FeatureStatistics.from_features(x) for x in (samples, reference)]
    error = frechet_standard_error(samples, reference, num_groups=groups, seed=seed)
    return Quality(
        Figure(frechet_distance(*statistics), error),
        kernel_distance(samples, reference, num_groups=groups, seed=seed),
        _neighbours(samples, reference, k),
        len(samples),
        len(reference),
    )


def measure_to_reference(
    samples: np.ndarray,
    statistics: FeatureStatistics,
    features: np.ndarray,
    *,
    k: int = DEFAULT_K,
    seed: int = 0,
) -> Quality:
    """The same where only moments of the reference and some of its features are known.

    Arguments:
        samples: (N, D).
        statistics: Of the whole reference, for FD, whose error then is that of the samples alone.
        features: (R, D) of a part of it, for KID and, beside as many samples, for the neighbours.
    """
    groups = min(MAX_GROUPS, min(len(samples), len(features)) // 2)
    error = jackknife_standard_error(
        lambda s: frechet_distance(s, statistics), samples, num_groups=groups, seed=seed
    )
    found = FeatureStatistics.from_features(samples)
    return Quality(
        Figure(frechet_distance(found, statistics), error),
        kernel_distance(samples, features, num_groups=groups, seed=seed),
        _neighbours(samples, features, k),
        len(samples),
        statistics.count,
    )
