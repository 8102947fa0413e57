"""Distance between two sets of feature vectors as Gaussians, and how sure it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medgen.checks import MedgenError, check_choice, check_positive, check_range

Array = NDArray[np.float64]


class Interval(NamedTuple):
    """A figure with its confidence interval."""

    value: float
    low: float
    high: float


def frechet_distance(a: ArrayLike, b: ArrayLike, *, shrinkage: float = 0.0) -> float:
    """Squared Frechet (2-Wasserstein) distance between Gaussians fitted to two sets of features.

    ``|mu_a - mu_b|^2 + tr(A) + tr(B) - 2 tr((A B)^(1/2))``. With factors ``A = F^T F`` and ``B = G^T G`` the last
    trace is the sum of the singular values of ``F G^T``: no matrix root, no complex numbers, and cheap where there
    are fewer samples than features. With few samples it is biased upwards (two draws of one Gaussian do not give 0):
    compare only figures from sets of equal size, or shrink.

    Args:
        a: features ``(n, d)``, n >= 2.
        b: features ``(m, d)``, m >= 2.
        shrinkage: 0..1, weight of ``tr(cov) / d * identity`` in each covariance.

    Returns:
        The distance, >= 0, in squared units of the features.

    Raises:
        MedgenError: not two matrices of equal width, fewer than two rows, a value that is not finite.

    Example:
        >>> rows = np.array([[0.0, 0.0], [2.0, 1.0], [1.0, 3.0]])
        >>> round(frechet_distance(rows, rows + [3.0, 4.0]), 9)
        25.0

    References:
        Dowson and Landau, "The Frechet distance between multivariate normal distributions", 1982, equation 4.
        Heusel et al. 2017, arXiv:1706.08500. Ledoit and Wolf 2004 (shrinkage target).
    """
    check_range("frechet_distance", "shrinkage", shrinkage, 0, 1)
    x, y = matrices("frechet_distance", a, b)
    f, g = (_factor(rows, shrinkage) for rows in (x, y))
    shift = float(np.square(x.mean(0) - y.mean(0)).sum())
    overlap = float(np.linalg.svd(f @ g.T, compute_uv=False).sum())
    return max(0.0, shift + float(np.square(f).sum() + np.square(g).sum()) - 2 * overlap)


def standardise(reference: ArrayLike, *others: ArrayLike, least_std: float = 1e-6) -> list[Array]:
    """Features in units of the reference's standard deviation about its mean; constant features left out.

    Args:
        reference: ``(n, d)``, the real set; its mean and deviation are used for all.
        *others: ``(m_i, d)``.
        least_std: features of the reference that vary less are dropped.

    Returns:
        The reference and the others, each ``(rows, d')``.

    Raises:
        MedgenError: see :func:`frechet_distance`; also where no feature varies.
    """
    rows = [matrices("standardise", reference, other)[1] for other in (reference, *others)]
    mean, std = rows[0].mean(0), rows[0].std(0, ddof=1)
    kept = std > least_std
    if not kept.any():
        raise MedgenError("standardise: no feature of the reference varies. Give different subjects.")
    return [(row[:, kept] - mean[kept]) / std[kept] for row in rows]


def bootstrap_interval(
    statistic: Callable[..., float],
    *samples: ArrayLike,
    level: float = 0.95,
    repeats: int = 500,
    method: str = "centred",
    seed: int = 0,
) -> Interval:
    """Confidence interval of a statistic by drawing the rows of each sample anew, with replacement.

    Args:
        statistic: ``statistic(*samples) -> float``.
        *samples: arrays whose first axis counts subjects; each is drawn independently of the others.
        level: coverage, 0..1.
        repeats: number of draws.
        method: ``"percentile"`` takes the draws' own quantiles. ``"centred"`` puts the draws' spread about the value
            itself: right where drawing with replacement shifts the statistic, as it does the Frechet distance (a draw
            holds about 63 percent of the subjects).
        seed: of the draws.

    Returns:
        The statistic of the samples themselves and its interval.

    Raises:
        MedgenError: a level outside 0..1, an unknown method, an empty sample.

    References:
        Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapters 10 and 13.
    """
    check_range("bootstrap_interval", "level", level, 0, 1)
    check_positive("bootstrap_interval", "repeats", repeats)
    check_choice("bootstrap_interval", "method", method, ("centred", "percentile"))
    arrays: list[NDArray[Any]] = [np.asarray(sample) for sample in samples]
    if not arrays or any(len(array) == 0 for array in arrays):
        raise MedgenError("bootstrap_interval: samples must not be empty. Give at least one subject in each.")
    generator = np.random.default_rng(seed)
    value = float(statistic(*arrays))
    draws = [
        float(statistic(*[array[generator.integers(0, len(array), len(array))] for array in arrays]))
        for _ in range(repeats)
    ]
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    shift = value - float(np.mean(draws)) if method == "centred" else 0.0
    return Interval(value, float(low) + shift, float(high) + shift)


def _factor(rows: Array, shrinkage: float) -> Array:
    """F with ``F^T F`` the (shrunk) covariance of the rows; at most d rows."""
    centred = (rows - rows.mean(0)) / np.sqrt(len(rows) - 1)
    if shrinkage:
        width = rows.shape[1]
        target = np.eye(width) * np.sqrt(shrinkage * np.square(centred).sum() / width)
        centred = np.concatenate([np.sqrt(1 - shrinkage) * centred, target])
    if len(centred) > centred.shape[1]:
        centred = np.linalg.qr(centred, mode="r")
    factor: Array = centred
    return factor


def matrices(caller: str, a: ArrayLike, b: ArrayLike) -> tuple[Array, Array]:
    """Two sets of features as float64, checked: equal width, two rows or more, finite."""
    x, y = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise MedgenError(f"{caller}: features must be (n, d) and (m, d). Got {x.shape} and {y.shape}. Stack rows.")
    if len(x) < 2 or len(y) < 2:
        raise MedgenError(f"{caller}: each set must have two rows or more. Got {len(x)} and {len(y)}. Add subjects.")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise MedgenError(f"{caller}: features must be finite. Got nan or inf. Drop these subjects or features.")
    return x, y
