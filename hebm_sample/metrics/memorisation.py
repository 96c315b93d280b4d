"""Does a model repeat its training images?

d(x) = distance in a feature space to the nearest training image. A model that repeats them
makes samples with shorter d than real images that it was not trained on. So the distribution of
d(sample) stands beside that of d(held-out image):

    shorter = P(d(sample) < d(held-out))      0.5 where both have one law
    tail    = share of samples with d below the held-out images' 1% quantile

The first is the test statistic of Meehan et al., "A Non-Parametric Test to Detect Data-Copying in
Generative Models" (arXiv 2004.05675), over the whole space as one cell.

"No shorter" is one-sided: it is refused where `shorter` exceeds 1/2, or `tail` its expected 1%, by
more than chance would in 1 of 20. Few repeated images show in the tail before they show in the
middle. Blurred images lie nearer to everything: the same decoder's reconstructions of held-out
images, which repeat nothing, say how much of a short d is its doing.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from hebm_sample.errors import UserInputError
from hebm_sample.metrics.neighbours import nearest
from hebm_sample.metrics.statistics import Figure, auroc

__all__ = ["QUANTILES", "Memorisation", "measure_memorisation"]

QUANTILES = (0.0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95)
TAIL = 0.01
ONE_SIDED = 1.645  # standard errors that chance exceeds in 1 of 20


@dataclass(frozen=True)
class Memorisation:
    """Distances to the nearest training image.

    Arguments:
        quantiles: By set, at `QUANTILES`: "samples", "held_out" and any other set given.
        shorter: P(d(sample) < d(held-out)).
        shorter_than: The same against each other set.
        tail: Share of samples with d below the held-out images' 1% quantile; its standard
            error is that of 1% among as many.
        no_shorter: Neither exceeds what is expected by more than chance would in 1 of 20.
        counts: Images by set, with "training".
        distances: d by set, for plots.
        closest: Rows of the samples in rising order of d.
        neighbours: Row of the nearest training image of each of them.
    """

    quantiles: dict[str, list[float]]
    shorter: Figure
    shorter_than: dict[str, Figure]
    tail: Figure
    no_shorter: bool
    counts: dict[str, int]
    distances: dict[str, np.ndarray]
    closest: np.ndarray
    neighbours: np.ndarray

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
            "no_shorter": self.no_shorter,
            "counts": self.counts,
        }


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
        no_shorter=shorter.value <= 0.5 + ONE_SIDED * shorter.error
        and tail.value <= TAIL + ONE_SIDED * tail.error,
        counts={**{n: len(x) for n, x in sets.items()}, "training": len(training)},
        distances=distances,
        closest=closest,
        neighbours=found["samples"][1][closest, 0],
    )
