"""Two samples of numbers, by their ranks.

    AUROC = P(high > low) + P(high = low) / 2

is 0.5 where both have one law. Its standard error is that of DeLong et al., "Comparing the Areas
under Two or More Correlated Receiver Operating Characteristic Curves" (1988): with the placements
v_i = share of `low` below high_i and w_j = share of `high` above low_j, ties counted half,

    SE^2 = var(v) / n_high + var(w) / n_low

Where all of n answers are right, or none, that error is 0 although the share need not be; there it
is how far the interval of one standard error of Wilson, "Probable Inference, the Law of
Succession, and Statistical Inference" (1927) reaches: 1 / (n + 1).
"""

import math
from typing import NamedTuple

import numpy as np

from hebm_sample.errors import UserInputError

__all__ = ["Figure", "auroc", "check_groups", "error_at_an_end", "mean_figure"]


class Figure(NamedTuple):
    """A number and its standard error."""

    value: float
    error: float

    def __str__(self) -> str:
        return f"{self.value:.3f} ± {self.error:.3f}"


def check_groups(num_groups: int, count: int) -> None:
    """`UserInputError` unless `count` images make so many groups of two or more for the
    delete-a-group jackknife.
    """
    if count < 4:
        raise UserInputError(f"{count} images are too few for an error; it takes 4 a set")
    if not 2 <= num_groups <= count // 2:
        raise UserInputError(
            f"num_groups is {num_groups}; with {count} images it can be 2 to {count // 2}"
        )


def error_at_an_end(count: int) -> float:
    """Of a share of `count` values that is 0 or 1."""
    return 1 / (count + 1)


def mean_figure(values: np.ndarray) -> Figure:
    """Mean and standard error of independent values (N,); the error of one value is nan. Of
    answers that are all right or all wrong it is `error_at_an_end`.
    """
    values = np.asarray(values, dtype=np.float64)
    spread = values.std(ddof=1) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    if len(values) > 1 and (not values.any() or (values == 1).all()):
        spread = error_at_an_end(len(values))
    return Figure(float(values.mean()), float(spread))


def _placements(values: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Share of `others` below each value, ties counted half."""
    others = np.sort(others)
    below = np.searchsorted(others, values, side="left")
    upto = np.searchsorted(others, values, side="right")
    return (below + upto) / (2 * len(others))


def auroc(low: np.ndarray, high: np.ndarray, *, paired: bool = False) -> Figure:
    """P(high > low), ties counted half, of numbers (N,) and (M,), both at least 2; its standard
    error is DeLong's.

    Arguments:
        paired: The i-th numbers of both are of one image and another that was made of it, so that
            what they say of the figure is not independent.

    Raises:
        UserInputError: Too few numbers, some that are not finite, or pairs of unequal numbers.
    """
    low, high = (np.asarray(x, dtype=np.float64).ravel() for x in (low, high))
    if min(len(low), len(high)) < 2:
        raise UserInputError(
            f"{len(low)} and {len(high)} numbers were given; an AUROC needs 2 of each"
        )
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        raise UserInputError("an AUROC needs finite numbers; some are not")
    if paired and len(low) != len(high):
        raise UserInputError(f"{len(low)} and {len(high)} numbers are no pairs")
    v, w = _placements(high, low), 1 - _placements(low, high)
    variance = v.var(ddof=1) / len(v) + w.var(ddof=1) / len(w)
    if paired:
        variance = (v + w).var(ddof=1) / len(v)
    error = math.sqrt(variance)
    if v.mean() in (0.0, 1.0):
        error = error_at_an_end(min(len(v), len(w)))
    return Figure(float(v.mean()), error)
