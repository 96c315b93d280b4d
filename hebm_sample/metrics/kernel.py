"""Maximum mean discrepancy: how far two sets are apart in a kernel's space.

    MMD^2 = E k(x, x') + E k(y, y') - 2 E k(x, y)

estimated without bias (pairs of one image with itself are left out), so that it scatters around
0, and may fall below it, where both sets have one law.

    KID       k(x, y) = (x . y / D + 1)^3     of features (Bińkowski et al., "Demystifying MMD
                                              GANs", arXiv 1801.01401)
    Gaussian  k(x, y) = exp(-|x - y|^2 / (2 h^2)),  h the median distance of the pooled sets

KID is usually printed as the mean over random subsets of 1,000 images. Its expectation does not
depend on their size, so all images are used at once here, which scatters least. The standard
error is the delete-a-group jackknife's, as for Fréchet distances; between sets of one law the
estimate is degenerate and the error no more than an order of magnitude.
"""

from collections.abc import Callable

import numpy as np

from hebm_sample.errors import UserInputError
from hebm_sample.metrics.statistics import Figure, check_groups

__all__ = ["Kernel", "gaussian_kernel", "kernel_distance", "mmd_squared", "polynomial_kernel"]

Kernel = Callable[[np.ndarray, np.ndarray], np.ndarray]
MEDIAN_ROWS = 1000


def polynomial_kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(x . y / D + 1)^3 of rows (N, D) and (M, D), (N, M)."""
    return (x @ y.T / x.shape[1] + 1) ** 3


def _squared_distances(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    square = (x**2).sum(1)[:, None] + (y**2).sum(1)[None] - 2 * x @ y.T
    return np.maximum(square, 0.0, out=square)


def gaussian_kernel(a: np.ndarray, b: np.ndarray) -> Kernel:
    """The Gaussian kernel whose width is the median distance among the first rows of both sets."""
    pooled = np.concatenate([a[: MEDIAN_ROWS // 2], b[: MEDIAN_ROWS // 2]]).astype(np.float64)
    above = np.triu_indices(len(pooled), 1)
    median = float(np.median(_squared_distances(pooled, pooled)[above]))
    if median <= 0:
        raise UserInputError("most rows of the two sets are the same; a kernel has no width there")
    return lambda x, y: np.exp(_squared_distances(x, y) / (-2 * median))


def _group_sums(
    x: np.ndarray, y: np.ndarray, starts: tuple[np.ndarray, np.ndarray], kernel: Kernel
) -> np.ndarray:
    """Sums of the kernel over every pair of groups, (K, K); groups are runs of rows."""
    ends = np.append(starts[0][1:], len(x))
    rows = zip(starts[0], ends, strict=True)
    return np.stack([np.add.reduceat(kernel(x[i:j], y).sum(axis=0), starts[1]) for i, j in rows])


def _diagonal(x: np.ndarray, starts: np.ndarray, kernel: Kernel) -> np.ndarray:
    """Sums of k(x_i, x_i) by group, (K,)."""
    own = np.concatenate([np.diag(kernel(part, part)) for part in np.array_split(x, len(starts))])
    return np.add.reduceat(own, starts)


def _without(sums: np.ndarray) -> np.ndarray:
    """Totals of (K, K) without row and column k, for each k, (K,)."""
    return sums.sum() - sums.sum(0) - sums.sum(1) + np.diag(sums)


def _ready(features: np.ndarray, num_groups: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    features = np.asarray(features, dtype=np.float64)
    if features.ndim != 2 or not np.isfinite(features).all():
        raise UserInputError(f"features of shape {features.shape} must be finite and (N, D)")
    check_groups(num_groups, len(features))
    order = np.random.default_rng(seed).permutation(len(features))
    sizes = [len(g) for g in np.array_split(order, num_groups)]
    return features[order], np.cumsum([0, *sizes[:-1]])


def mmd_squared(
    a: np.ndarray, b: np.ndarray, kernel: Kernel, *, num_groups: int = 20, seed: int = 0
) -> Figure:
    """Unbiased MMD^2 between rows (N, D) and (M, D), with its jackknife error.

    Arguments:
        kernel: Rows (n, D) and (m, D) to (n, m).
        num_groups: K of the jackknife.
        seed: Of its random groups.

    Raises:
        UserInputError: Too few rows for the groups, rows of other dimensions, or not finite.
    """
    (a, a_starts), (b, b_starts) = (_ready(x, num_groups, seed) for x in (a, b))
    if a.shape[1] != b.shape[1]:
        raise UserInputError(
            f"features of {a.shape[1]} and {b.shape[1]} dimensions cannot be compared; "
            "use one extractor for both"
        )
    within_a = _group_sums(a, a, (a_starts, a_starts), kernel)
    within_b = _group_sums(b, b, (b_starts, b_starts), kernel)
    across = _group_sums(a, b, (a_starts, b_starts), kernel)
    within_a[np.diag_indices(num_groups)] -= _diagonal(a, a_starts, kernel)
    within_b[np.diag_indices(num_groups)] -= _diagonal(b, b_starts, kernel)

    def estimate(aa: np.ndarray, bb: np.ndarray, ab: np.ndarray, n: np.ndarray, m: np.ndarray):  # noqa: ANN202
        return aa / (n * (n - 1)) + bb / (m * (m - 1)) - 2 * ab / (n * m)

    n, m = len(a), len(b)
    value = float(estimate(within_a.sum(), within_b.sum(), across.sum(), n, m))  # pyright: ignore
    left_n = n - np.diff(np.append(a_starts, n))
    left_m = m - np.diff(np.append(b_starts, m))
    values = estimate(_without(within_a), _without(within_b), _without(across), left_n, left_m)
    spread = np.sum((values - values.mean()) ** 2)
    return Figure(value, float(np.sqrt((num_groups - 1) / num_groups * spread)))


def kernel_distance(
    a: np.ndarray, b: np.ndarray, *, num_groups: int = 20, seed: int = 0
) -> Figure:
    """KID between features (N, D) and (M, D), with its standard error; see `mmd_squared`."""
    return mmd_squared(a, b, polynomial_kernel, num_groups=num_groups, seed=seed)
