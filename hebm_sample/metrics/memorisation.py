"""Does a model repeat its training images?

d(x) = distance in a feature space to the nearest training image. A model that repeats them
makes samples with shorter d than real images that it was not trained on. So the distribution of
d(sample) stands beside that of d(held-out image):

    shorter = P(d(sample) < d(held-out))      0.5 where both have one law
    tail    = share of samples with d below the held-out images' 1% quantile

The first is the test statistic of Meehan et al., "A Non-Parametric Test to Detect Data-Copying in
Generative Models" (arXiv 2004.05675), over the whole space as one cell.

"No shorter" is one test of both, one-sided at 1 in 20: the mean of -log(rank / (N + 1)) over the
samples, ranks among all N distances (Savage, "Contributions to the Theory of Rank Order
Statistics: the Two-Sample Case", 1956), against the same of random splits. It weighs the shortest
distances most, where few repeated images show before they show in the middle. Given the training
images, the two sets' distances are exchangeable where both have one law, so its level is exact.

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

__all__ = ["QUANTILES", "Memorisation", "measure_memorisation", "nearness_test"]

QUANTILES = (0.0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95)
TAIL = 0.01
LEVEL = 0.05
PERMUTATIONS = 999


@dataclass(frozen=True)
class Memorisation:
    """Distances to the nearest training image.

    Arguments:
        quantiles: By set, at `QUANTILES`: "samples", "held_out" and any other set given.
        shorter: P(d(sample) < d(held-out)).
        shorter_than: The same against each other set.
        tail: Share of samples with d below the held-out images' 1% quantile; its standard
            error is that of 1% among as many.
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
            "tail_expected": TAIL,
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
    scores = _scores(np.concatenate([samples, held_out]))
    found, count = scores[: len(samples)].mean(), len(samples)
    rng = np.random.default_rng(seed)
    others = [rng.permutation(scores)[:count].mean() for _ in range(permutations)]
    beyond = int((np.array(others) >= found - 1e-12 * abs(found)).sum())
    return (1 + beyond) / (permutations + 1)


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
    count = len(samples)
    # With the limit's own randomness, from the held-out images.
    spread = math.sqrt(TAIL * (1 - TAIL) * (1 / count + 1 / len(held_out)))
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
