"""Does a model repeat its training images?

d(x) = distance in a feature space to the nearest training image. A model that repeats them
makes samples with shorter d than real images that it was not trained on. So the distribution of
d(sample) stands beside that of d(held-out image):

    shorter = P(d(sample) < d(held-out))      0.5 where both have one law
    tail    = share of samples with d below the held-out images' 1% quantile

The first is the test statistic of Meehan et al., "A Non-Parametric Test to Detect Data-Copying in
Generative Models" (arXiv 2004.05675), over the whole space as one cell.

"No shorter" is one test, one-sided at 1 in 20, of two statistics against random splits of all N
distances: the mean of -log(rank / (N + 1)) over the samples (Savage, "Contributions to the Theory
of Rank Order Statistics: the Two-Sample Case", 1956), and, for samples that are elsewhere further
away and would hide a few copies in that mean, how many of the k shortest distances are samples',
in standard deviations, at the k of `NEAREST` where these are most. What counts is how rare the
rarer of the two is. Given the training images, the two sets' distances are exchangeable where
both have one law, so its level is exact. Chance alone explains what it finds not: a few copies
among thousands can still be too few to be told.

Blurred images lie nearer to everything: the same decoder's reconstructions of held-out images,
which repeat nothing, say how much of a short d is its doing.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from hebm_sample.errors import UserInputError
from hebm_sample.metrics.neighbours import nearest
from hebm_sample.metrics.statistics import Figure, auroc

__all__ = ["QUANTILES", "Memorisation", "expected_tail", "measure_memorisation", "nearness_test"]

QUANTILES = (0.0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95)
TAIL = 0.01
LEVEL = 0.05
PERMUTATIONS = 999
NEAREST = (5, 10, 20, 40, 80, 160)  # of all distances


@dataclass(frozen=True)
class Memorisation:
    """Distances to the nearest training image.

    Arguments:
        quantiles: By set, at `QUANTILES`: "samples", "held_out" and any other set given.
        shorter: P(d(sample) < d(held-out)).
        shorter_than: The same against each other set.
        tail: Share of samples with d below the held-out images' 1% quantile; its standard
            error is that of the share that one law would have there (`expected_tail`).
        p_value: Of the module's test that samples are no nearer than held-out images.
        counts: Images by set, with "training".
        distances: d by set, for plots.
        closest: Rows of the samples in rising order of d.
        neighbours: Row of the nearest training image of each of them.
    """

    quantiles: dict[str, list[float]]
    shorter: Figure
    shorter_than: dict[str, Figure]
    tail: Figure
    p_value: float
    counts: dict[str, int]
    distances: dict[str, np.ndarray]
    closest: np.ndarray
    neighbours: np.ndarray

    @property
    def no_shorter(self) -> bool:
        """Chance would bring samples as near in more than 1 of 20 cases."""
        return self.p_value > LEVEL

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, without the distances themselves."""
        return {
            "quantile_levels": list(QUANTILES),
            "quantiles": self.quantiles,
            "shorter": self.shorter.value,
            "shorter_error": self.shorter.error,
            "shorter_than": {
                name: {"value": f.value, "error": f.error} for name, f in self.shorter_than.items()
            },
            "tail": self.tail.value,
            "tail_expected": expected_tail(self.counts["held_out"]),
            "tail_error": self.tail.error,
            "p_value": self.p_value,
            "no_shorter": self.no_shorter,
            "counts": self.counts,
        }


def _scores(values: np.ndarray) -> np.ndarray:
    """-log(rank / (N + 1)) of values (N,), the mean of it over tied ones."""
    _, which, counts = np.unique(values, return_inverse=True, return_counts=True)
    scores = -np.log(np.arange(1, len(values) + 1) / (len(values) + 1))
    starts = np.cumsum(counts) - counts
    return (np.add.reduceat(scores, starts) / counts)[which]


def nearness_test(
    samples: np.ndarray,
    held_out: np.ndarray,
    *,
    permutations: int = PERMUTATIONS,
    seed: int = 0,
) -> float:
    """p-value of distances (N,) of samples being no shorter than those (M,) of held-out images:
    uniform, on multiples of 1 / (permutations + 1), where both have one law.
    """
    values, rng = np.concatenate([samples, held_out]), np.random.default_rng(seed)
    scores = _scores(values)
    order = rng.permutation(len(values))  # so that no set is first among tied ones
    order = order[np.argsort(values[order], kind="stable")]
    mine = np.arange(len(values)) < len(samples)
    splits = [mine, *(rng.permutation(mine) for _ in range(permutations))]
    found = np.array([(scores[m].mean(), _lead(m[order], values[order])) for m in splits])
    # How rare each is among all, and how rare the rarer of the two: the least of both.
    rarer = np.minimum(*(_share_beyond(column) for column in found.T))
    return float((rarer <= rarer[0]).mean())


def _lead(mine: np.ndarray, values: np.ndarray) -> float:
    """The most standard deviations by which the k first hold more of a set than a random order
    would, over k.

    Arguments:
        mine: (N,) bool, whose each of the sorted `values` is; none is counted apart from those
            that are tied with it.
    """
    total, share = len(mine), mine.mean()
    places = np.array([k for k in NEAREST if k <= total // 2] or [max(1, total // 2)])
    places = np.unique(np.searchsorted(values, values[places - 1], side="right"))
    spread = np.sqrt(places * share * (1 - share) * (total - places) / max(1, total - 1))
    lead = np.cumsum(mine)[places - 1] - places * share
    return float(np.max(lead / np.maximum(spread, 1e-9)))


def _share_beyond(values: np.ndarray) -> np.ndarray:
    """Of each of (n,) numbers the share of all that are at least as large, to rounding."""
    ordered = np.sort(values)
    at = ordered.searchsorted(values - 1e-12 * np.abs(values), side="left")
    return (len(values) - at) / len(values)


def expected_tail(count: int) -> float:
    """The share of further distances of the same law that lie below the 1% quantile of `count`:
    that lies between two of them, of which a share of i / (count + 1) is expected below the i-th.
    """
    return (TAIL * (count - 1) + 1) / (count + 1)


def measure_memorisation(
    samples: np.ndarray,
    held_out: np.ndarray,
    training: np.ndarray,
    **others: np.ndarray,
) -> Memorisation:
    """Compare distances to the nearest training image, in features (N, D) of each set.

    Arguments:
        samples: The model's images.
        held_out: Real images that it was not trained on.
        training: Those that it was.
        others: Further sets whose distances stand beside, such as `reconstructions`.

    Raises:
        UserInputError: Fewer than 2 images in a set, or features that do not fit each other.
    """
    sets = {"samples": samples, "held_out": held_out, **others}
    if min(len(x) for x in (*sets.values(), training)) < 2:
        raise UserInputError("a comparison of distances needs at least 2 images in every set")
    found = {name: nearest(x, training) for name, x in sets.items()}
    distances = {name: d[:, 0] for name, (d, _) in found.items()}
    shorter = auroc(distances["samples"], distances["held_out"])
    limit = np.quantile(distances["held_out"], TAIL)
    expected = expected_tail(len(held_out))
    # With the limit's own randomness, from the held-out images.
    spread = math.sqrt(expected * (1 - expected) * (1 / len(samples) + 1 / len(held_out)))
    tail = Figure(float((distances["samples"] < limit).mean()), spread)
    closest = np.argsort(distances["samples"], kind="stable")
    return Memorisation(
        quantiles={n: np.quantile(d, QUANTILES).tolist() for n, d in distances.items()},
        shorter=shorter,
        shorter_than={n: auroc(distances["samples"], distances[n]) for n in others},
        tail=tail,
        p_value=nearness_test(distances["samples"], distances["held_out"]),
        counts={**{n: len(x) for n, x in sets.items()}, "training": len(training)},
        distances=distances,
        closest=closest,
        neighbours=found["samples"][1][closest, 0],
    )
