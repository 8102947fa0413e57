"""How much of what is made looks real, and how much of what is real is made: two sets of features, by neighbourhoods.

Each row of a set has a ball that reaches to its k-th nearest neighbour in the same set; the union of the balls is the
region the set covers.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medgen.checks import MedgenError, check_count, check_range
from medgen.metrics.frechet import Interval, bootstrap_interval, matrices

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]


class PrecisionRecall(NamedTuple):
    """Four shares, floats or intervals.

    Attributes:
        precision: share of the made rows that lie in a ball of a real one, 0..1.
        recall: share of the real rows that lie in a ball of a made one, 0..1.
        density: real balls around a made row, over k; 1 where both sets are of one distribution, above where the made
            ones crowd where real ones are dense.
        coverage: share of the real balls that hold a made row, 0..1; unlike recall not raised by outliers among the
            made ones.
    """

    precision: float
    recall: float
    density: float
    coverage: float


class PrecisionRecallIntervals(NamedTuple):
    """The figures of :class:`PrecisionRecall`, each with its interval."""

    precision: Interval
    recall: Interval
    density: Interval
    coverage: Interval


def improved_precision_recall(real: ArrayLike, made: ArrayLike, *, k: int = 5) -> PrecisionRecall:
    """Improved precision and recall, density and coverage.

    The figures depend on the number of rows: compare sets of equal size. Standardise the features first
    (:func:`medgen.metrics.standardise`), else those of large units decide.

    Args:
        real: features ``(n, d)``, n above k.
        made: features ``(m, d)``, m above k.
        k: which neighbour a ball reaches to.

    Raises:
        MedgenError: not two matrices of equal width, too few rows for ``k``, a value that is not finite.

    Example:
        >>> rows = np.arange(10.0)[:, None]
        >>> improved_precision_recall(rows, rows + 0.1, k=2)._asdict()
        {'precision': 1.0, 'recall': 1.0, 'density': 1.05, 'coverage': 1.0}
        >>> improved_precision_recall(rows, rows + 100, k=2)._asdict()
        {'precision': 0.0, 'recall': 0.0, 'density': 0.0, 'coverage': 0.0}

    References:
        Kynkaanniemi et al. 2019, arXiv:1904.06991, equations 1-3 (precision and recall). Naeem et al. 2020,
        arXiv:2002.09797, equations 4 and 5 (density and coverage).
    """
    in_real, in_made = _memberships(real, made, k)
    return _figures(in_real, in_made, k)


def precision_recall_intervals(
    real: ArrayLike, made: ArrayLike, *, k: int = 5, level: float = 0.95, repeats: int = 500, seed: int = 0
) -> PrecisionRecallIntervals:
    """:func:`improved_precision_recall` with confidence intervals over the rows of both sets.

    Rows are drawn anew with replacement, each with the ball it has in the whole set (a row drawn twice would have
    itself as a neighbour at distance 0). Shares are never given a narrower interval than Wilson's for as many
    independent rows: at 0 and at 1 the draws do not differ and would claim certainty.

    Args:
        real, made, k: see :func:`improved_precision_recall`.
        level: coverage, 0..1.
        repeats: number of draws.
        seed: of the draws.

    References:
        Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22, 1927.
    """
    check_range("precision_recall_intervals", "level", level, 0, 1)
    in_real, in_made = _memberships(real, made, k)
    rows = np.arange(in_real.shape[0]), np.arange(in_real.shape[1])
    found = []
    for name in PrecisionRecall._fields:

        def statistic(i: NDArray[np.int64], j: NDArray[np.int64], name: str = name) -> float:
            return float(getattr(_figures(in_real[np.ix_(i, j)], in_made[np.ix_(j, i)], k), name))

        interval = bootstrap_interval(statistic, *rows, level=level, repeats=repeats, seed=seed)
        if name == "density":
            found.append(interval._replace(low=max(0.0, interval.low)))
        else:
            count = len(rows[1] if name == "precision" else rows[0])
            low, high = wilson_interval(interval.value, count, level)
            found.append(
                interval._replace(low=max(0.0, min(interval.low, low)), high=min(1.0, max(interval.high, high)))
            )
    return PrecisionRecallIntervals(*found)


def wilson_interval(share: float, count: int, level: float = 0.95) -> tuple[float, float]:
    """Interval of a share seen among ``count`` independent cases.

    Args:
        share: 0..1.
        count: cases.
        level: coverage, 0..1.

    Returns:
        Lower and upper end, within 0..1.

    Example:
        >>> low, high = wilson_interval(0.0, 20)
        >>> round(low, 3), round(high, 3)
        (0.0, 0.161)
    """
    from scipy.stats import norm

    check_range("wilson_interval", "share", share, 0, 1)
    check_count("wilson_interval", "count", count)
    z = float(norm.ppf((1 + level) / 2))
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * float(np.sqrt(share * (1 - share) / count + z * z / (4 * count * count)))
    return max(0.0, middle - half), min(1.0, middle + half)


def _figures(in_real: Mask, in_made: Mask, k: int) -> PrecisionRecall:
    """From who lies in whose ball: ``in_real[i, j]`` = made j in the ball of real i, ``in_made[j, i]`` the converse."""
    return PrecisionRecall(
        precision=float(in_real.any(0).mean()),
        recall=float(in_made.any(0).mean()),
        density=float(in_real.sum(0).mean() / k),
        coverage=float(in_real.any(1).mean()),
    )


def _memberships(real: ArrayLike, made: ArrayLike, k: int) -> tuple[Mask, Mask]:
    check_count("improved_precision_recall", "k", k)
    x, y = matrices("improved_precision_recall", real, made)
    if min(len(x), len(y)) <= k:
        raise MedgenError(
            f"improved_precision_recall: each set must have more than k = {k} rows. Got {len(x)} and {len(y)}. "
            "Add subjects."
        )
    across = _distances(x, y)
    reach_real, reach_made = _radii(x, k)[:, None], _radii(y, k)[:, None]
    return across <= reach_real, reach_made >= across.T


def _distances(x: Array, y: Array) -> Array:
    """Euclidean distances ``(n, m)``, from differences: an expanded square would lose near-copies."""
    return np.stack([np.sqrt(np.square(y - row).sum(1)) for row in x])


def _radii(rows: Array, k: int) -> Array:
    """Distance of each row to its k-th nearest neighbour in the same set."""
    radii: Array = np.partition(_distances(rows, rows), k, axis=1)[:, k]  # column 0 is the row itself
    return radii
