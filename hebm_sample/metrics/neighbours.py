"""Nearest neighbours in a feature space, and what they say of two sets.

With B_k(x) the ball around x that reaches its k-th nearest neighbour in x's own set
(Kynkäänniemi et al., "Improved Precision and Recall Metric for Assessing Generative Models", arXiv
1904.06991; Naeem et al., "Reliable Fidelity and Diversity Metrics for Generative Models", arXiv
2002.09797):

    precision  share of the samples that lie in some B_k(real)            1: all look real
    recall     share of the real ones that lie in some B_k(sample)        1: all are reached
    density    mean over the samples of (balls B_k(real) they lie in) / k; about 1 for one law
    coverage   share of the B_k(real) that hold a sample

Recall is precision with the sets exchanged. All four depend on k and on the numbers of images:
compare equal numbers only. Their errors count the images whose indicator is averaged, not the
balls' own randomness.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from hebm_sample.errors import UserInputError
from hebm_sample.metrics.statistics import Figure, mean_figure

__all__ = ["Neighbourhoods", "nearest", "neighbourhoods"]

MAX_ENTRIES = 2**23  # of a matrix of distances: 64 MiB
DEFAULT_K = 5


def _squared_chunks(queries: np.ndarray, points: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """(rows, squared distances of these queries to all points), a chunk at a time."""
    step = max(1, MAX_ENTRIES // len(points))
    norms = (points**2).sum(axis=1)
    for start in range(0, len(queries), step):
        rows = slice(start, min(start + step, len(queries)))
        part = queries[rows]
        square = (part**2).sum(axis=1)[:, None] + norms[None] - 2 * part @ points.T
        yield rows, np.maximum(square, 0.0, out=square)


def _checked(*sets: np.ndarray) -> list[np.ndarray]:
    """float64 (N, D) each, moved by the mean of the last, which saves digits."""
    found = [np.asarray(x, dtype=np.float64) for x in sets]
    if any(x.ndim != 2 or x.shape[1] != found[0].shape[1] for x in found):
        raise UserInputError(
            f"features of shapes {[x.shape for x in found]} cannot be compared; they must be "
            "(N, D) with one D"
        )
    if not all(np.isfinite(x).all() for x in found):
        raise UserInputError("some features are not finite numbers")
    centre = found[-1].mean(axis=0)
    return [x - centre for x in found]


def nearest(
    queries: np.ndarray, points: np.ndarray, k: int = 1, *, among_itself: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Euclidean distances (Q, k), rising, and rows (Q, k) of each query's k nearest points.

    Arguments:
        queries: (Q, D).
        points: (P, D), P >= k.
        among_itself: The two are one set, and no row is its own neighbour.
    """
    queries, points = _checked(queries, points)
    most = len(points) - among_itself
    if not 1 <= k <= most:
        there = f"it can be 1 to {most}" if most > 0 else "there is no neighbour"
        raise UserInputError(f"k is {k}; among {len(points)} points {there}")
    rows_of = np.empty((len(queries), k), dtype=np.int64)
    for rows, square in _squared_chunks(queries, points):
        if among_itself:
            square[np.arange(len(square)), np.arange(rows.start, rows.stop)] = np.inf
        rows_of[rows] = np.argpartition(square, k - 1, axis=1)[:, :k]
    # By differences, because a sum of squares loses what is nearly equal.
    columns = [np.linalg.norm(queries - points[rows_of[:, i]], axis=1) for i in range(k)]
    distances = np.stack(columns, axis=1)
    order = np.argsort(distances, axis=1, kind="stable")
    return np.take_along_axis(distances, order, 1), np.take_along_axis(rows_of, order, 1)


@dataclass(frozen=True)
class Neighbourhoods:
    """The four shares of the module's table, each with its standard error."""

    precision: Figure
    recall: Figure
    density: Figure
    coverage: Figure
    k: int


def neighbourhoods(samples: np.ndarray, real: np.ndarray, *, k: int = DEFAULT_K) -> Neighbourhoods:
    """Precision, recall, density and coverage of samples (N, D) against real images (M, D).

    Raises:
        UserInputError: Either set has no more than k images, or they do not fit each other.
    """
    samples, real = _checked(samples, real)
    around_real = nearest(real, real, k, among_itself=True)[0][:, -1] ** 2
    around_samples = nearest(samples, samples, k, among_itself=True)[0][:, -1] ** 2
    balls = np.zeros(len(samples))
    covered, reached = np.zeros(len(real), dtype=bool), np.zeros(len(real), dtype=bool)
    for rows, square in _squared_chunks(samples, real):
        inside = square <= around_real[None]
        balls[rows] = inside.sum(axis=1)
        covered |= inside.any(axis=0)
        reached |= (square <= around_samples[rows, None]).any(axis=0)
    return Neighbourhoods(
        mean_figure(balls > 0),
        mean_figure(reached),
        mean_figure(balls / k),
        mean_figure(covered),
        k,
    )
