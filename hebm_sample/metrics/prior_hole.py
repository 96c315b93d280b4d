"""The prior hole: can q(u) and the prior's samples be told apart, in u itself?

    q(u) = E_x q(u | x) (held-out images, encoded)    against    u ~ N(0, I),  u ~ p(u)

a group at a time and all groups together:

    accuracy   of a classifier on rows that did not train it (Lopez-Paz and Oquab, "Revisiting
               Classifier Two-Sample Tests", arXiv 1610.06545): 0.5 is closed, 1 is open. The joint
               one saturates: it has the sum of many small differences.
    KL         the estimate E_q[T] - log E_p[exp T] in nats, T the classifier's log odds, on the
               same rows. With expectations it is a lower bound of KL(q || p) (Donsker and
               Varadhan); the mean over n rows in the place of E_p misses the rare rows that make
               exp T, so that the estimate is too large where KL is not small beside log n.
    MMD^2      with a Gaussian kernel of median width, unbiased

Two classifiers, because each is blind to something: `quadratic` is a logistic regression on the
squares and products of the directions in which the two covariances and means differ most, all
that matters between Gaussians; `trees` is gradient boosting on the coordinates.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from hebm_sample.errors import UserInputError
from hebm_sample.io.extras import import_extra
from hebm_sample.metrics.kernel import gaussian_kernel, mmd_squared
from hebm_sample.metrics.statistics import Figure, mean_figure

__all__ = [
    "PriorHole",
    "better_of",
    "correlated_pairs",
    "measure_prior_hole",
    "two_sample_accuracy",
]

DIRECTIONS = 16  # of the quadratic classifier
FEWEST_ROWS = 30
CHOOSING = 4  # of so many rows one chooses the classifier
LARGEST_LOG_ODDS = 20.0
TREES = {"max_iter": 60, "max_leaf_nodes": 8, "learning_rate": 0.1}


@dataclass(frozen=True)
class PriorHole:
    """How far one set of samples is from q(u), in one group or in all.

    Arguments:
        quadratic, trees: Accuracies of the two classifiers.
        accuracy: Of the one that tells more, chosen on other rows than it is measured on.
        kl_bound: In nats, of the quadratic one.
        mmd: MMD^2.
    """

    quadratic: Figure
    trees: Figure
    kl_bound: float
    mmd: Figure
    accuracy: Figure

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "accuracy": self.accuracy.value,
            "accuracy_error": self.accuracy.error,
            "quadratic": self.quadratic.value,
            "trees": self.trees.value,
            "kl_bound": self.kl_bound,
            "mmd": self.mmd.value,
            "mmd_error": self.mmd.error,
        }


def _thirds(rows: np.ndarray, seed: int) -> list[np.ndarray]:
    return np.array_split(rows[np.random.default_rng(seed).permutation(len(rows))], 3)


def _directions(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(D, at most `DIRECTIONS` + 1): generalised eigenvectors of the two shrunk covariances with
    the most extreme ratios of variance, and the direction in which the means differ most for
    their widths.
    """
    linalg = import_extra("scipy.linalg", "eval")
    shrunk = import_extra("sklearn.covariance", "eval").LedoitWolf
    first, second = shrunk().fit(a).covariance_, shrunk().fit(b).covariance_
    ratios, vectors = linalg.eigh(first, second)
    order = np.argsort(-np.abs(np.log(np.maximum(ratios, 1e-12))))
    towards = linalg.solve(first + second, a.mean(0) - b.mean(0), assume_a="pos")
    return np.column_stack([vectors[:, order[:DIRECTIONS]], towards])


def _quadratic(parts: tuple[list[np.ndarray], list[np.ndarray]], seed: int) -> Any:
    """The fitted quadratic classifier. Directions from the first thirds and the regression from
    the second: on the rows that chose them, chance directions would look like differences.
    """
    linear = import_extra("sklearn.linear_model", "eval")
    processing = import_extra("sklearn.preprocessing", "eval")
    pipeline = import_extra("sklearn.pipeline", "eval")
    a, b = parts
    directions = _directions(a[0], b[0])
    project = processing.FunctionTransformer(lambda x: x @ directions)
    return pipeline.make_pipeline(
        project,
        processing.StandardScaler(),
        processing.PolynomialFeatures(2, include_bias=False),
        processing.StandardScaler(),
        linear.LogisticRegression(C=0.01, max_iter=500, random_state=seed),
    ).fit(np.concatenate([a[1], b[1]]), np.repeat([1, 0], [len(a[1]), len(b[1])]))


def _trees(parts: tuple[list[np.ndarray], list[np.ndarray]], seed: int) -> Any:
    boosting = import_extra("sklearn.ensemble", "eval").HistGradientBoostingClassifier
    a, b = (np.concatenate(x[:2]) for x in parts)
    labels = np.repeat([1, 0], [len(a), len(b)])
    return boosting(random_state=seed, **TREES).fit(np.concatenate([a, b]), labels)


class _Tested(NamedTuple):
    """Right answers of a classifier on rows (N,) and (M,) that did not train it; the KL bound."""

    hits: tuple[np.ndarray, np.ndarray]
    bound: float

    @property
    def accuracy(self) -> Figure:
        """Balanced."""
        return balanced(*self.hits)


def balanced(a: np.ndarray, b: np.ndarray) -> Figure:
    """The mean of two shares of right answers (N,) and (M,), with its standard error."""
    first, second = mean_figure(a), mean_figure(b)
    return Figure((first.value + second.value) / 2, float(np.hypot(first.error, second.error)) / 2)


def better_of(*classifiers: tuple[np.ndarray, np.ndarray]) -> Figure:
    """Balanced accuracy of the best of some classifiers by their right answers on the same rows:
    chosen on every fourth row and measured on the others, so that the choice adds nothing.
    """
    shares = [balanced(a[::CHOOSING], b[::CHOOSING]).value for a, b in classifiers]
    chosen = classifiers[int(np.argmax(shares))]
    return balanced(*(np.delete(rows, np.s_[::CHOOSING]) for rows in chosen))


def _tested(classifier: Any, a: np.ndarray, b: np.ndarray) -> _Tested:
    """On rows that did not train it."""
    odds = [
        np.clip(classifier.decision_function(x), -LARGEST_LOG_ODDS, LARGEST_LOG_ODDS)
        for x in (a, b)
    ]
    bound = float(odds[0].mean() - np.log(np.mean(np.exp(odds[1]))))
    return _Tested((odds[0] > 0, odds[1] <= 0), bound)


def _two_classifiers(q: np.ndarray, p: np.ndarray, seed: int) -> tuple[_Tested, _Tested]:
    """The quadratic one and the trees, each on a third that did not train it."""
    if min(len(q), len(p)) < FEWEST_ROWS:
        raise UserInputError(
            f"{len(q)} and {len(p)} rows were given; a two-sample test needs {FEWEST_ROWS} of each"
        )
    parts = (
        _thirds(np.asarray(q, np.float64), seed),
        _thirds(np.asarray(p, np.float64), seed + 1),
    )
    rows = parts[0][2], parts[1][2]
    return _tested(_quadratic(parts, seed), *rows), _tested(_trees(parts, seed), *rows)


def two_sample_accuracy(
    q: np.ndarray, p: np.ndarray, *, seed: int = 0
) -> tuple[Figure, Figure, float]:
    """Accuracies of the quadratic classifier and of trees in telling rows q (N, D) from p (M, D),
    each on a third that did not train it, and the first one's KL bound.

    Raises:
        UserInputError: Fewer than 30 rows per side.
        EnvironmentFailure: scikit-learn is not installed.
    """
    quadratic, trees = _two_classifiers(q, p, seed)
    return quadratic.accuracy, trees.accuracy, quadratic.bound


def measure_prior_hole(q: np.ndarray, p: np.ndarray, *, seed: int = 0) -> PriorHole:
    """All figures of one group, or of all in one row: q(u) as (N, D) against samples (M, D)."""
    quadratic, trees = _two_classifiers(q, p, seed)
    q, p = np.asarray(q, np.float64), np.asarray(p, np.float64)
    groups = min(20, min(len(q), len(p)) // 2)
    return PriorHole(
        quadratic.accuracy,
        trees.accuracy,
        quadratic.bound,
        mmd_squared(q, p, gaussian_kernel(q, p), num_groups=groups, seed=seed),
        better_of(quadratic.hits, trees.hits),
    )


def correlated_pairs(q: np.ndarray, count: int = 2) -> Sequence[tuple[int, int]]:
    """Pairs of columns of rows (N, D), no column twice, with the largest correlations: where
    N(0, I), which has none, is most wrong.

    Look at them in other rows than these: among many pairs some are correlated by chance.
    """
    strength = np.nan_to_num(np.triu(np.abs(np.corrcoef(q.T)), 1))
    pairs: list[tuple[int, int]] = []
    while len(pairs) < count and strength.any():
        i, j = np.unravel_index(strength.argmax(), strength.shape)
        pairs.append((int(i), int(j)))
        strength[[i, j]] = strength[:, [i, j]] = 0
    return pairs
