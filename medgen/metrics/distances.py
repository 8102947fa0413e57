"""Distances of subjects to the nearest others, and how well two sets can be told apart."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medgen.checks import MedgenError

Array = NDArray[np.float64]
_CHUNK = 2**24


def nearest_distances(a: ArrayLike, b: ArrayLike, *, skip_self: bool = False) -> Array:
    """Euclidean distance from each row of ``a`` to the nearest row of ``b``.

    Args:
        a: rows ``(n, d)`` (features, or flattened volumes).
        b: rows ``(m, d)``.
        skip_self: ``a`` and ``b`` are the same set; row i is not its own neighbour.

    Returns:
        Distances ``(n,)``, in the units of the rows.

    Raises:
        MedgenError: widths differ, ``b`` is empty, ``skip_self`` with sets of different size.

    Example:
        >>> nearest_distances([[0.0, 0.0]], [[3.0, 4.0], [6.0, 8.0]]).tolist()
        [5.0]
    """
    x, y = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or len(y) < 1 + skip_self:
        raise MedgenError(
            f"nearest_distances: a and b must be (n, d) and (m, d) with m above 0. Got {x.shape} and {y.shape}."
        )
    if skip_self and len(x) != len(y):
        raise MedgenError(f"nearest_distances: skip_self needs one set twice. Got {len(x)} and {len(y)} rows.")
    found = np.empty(len(x))
    step = max(1, _CHUNK // max(1, y.size))
    for start in range(0, len(x), step):
        rows = x[start : start + step]
        # differences, not the expanded square: near-copies are the point, and cancellation would hide them
        squares = np.stack([np.square(y - row).sum(1) for row in rows])
        if skip_self:
            squares[np.arange(len(rows)), start + np.arange(len(rows))] = np.inf
        found[start : start + step] = np.sqrt(squares.min(1))
    return found


def classification_auc(positive: ArrayLike, negative: ArrayLike) -> float:
    """Area under the ROC curve: the chance that a positive scores above a negative, ties counting half.

    Args:
        positive: scores of the positive class ``(n,)``.
        negative: scores of the negative class ``(m,)``.

    Returns:
        0..1; 0.5 where the scores say nothing.

    Example:
        >>> classification_auc([2.0, 3.0], [1.0, 2.0])
        0.875

    References:
        Hanley and McNeil, Radiology 143, 1982 (equality with the Wilcoxon statistic).
    """
    from scipy.stats import rankdata

    x, y = np.ravel(np.asarray(positive, np.float64)), np.ravel(np.asarray(negative, np.float64))
    if not len(x) or not len(y):
        raise MedgenError(f"classification_auc: both classes need scores. Got {len(x)} and {len(y)}. Add samples.")
    ranks = rankdata(np.concatenate([x, y]))[: len(x)]
    return float((ranks.sum() - len(x) * (len(x) + 1) / 2) / (len(x) * len(y)))
