"""Whether intervals hold what they promise, the factor that makes them, and what they cost against plain ones."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medgen.checks import MedgenError, check_choice, check_range
from medgen.metrics.frechet import Interval, bootstrap_interval

__all__ = ["WidthComparison", "compare_widths", "conformal_factor", "interval_coverage", "shortest_interval"]

Array = NDArray[np.float64]
UNITS = ("voxel", "case")
LARGEST_FACTOR = 1e3
HALVINGS = 60


class WidthComparison(NamedTuple):
    """Intervals of one tissue against the best constant one.

    Attributes:
        coverage: share of voxels whose truth lies in its interval.
        width: mean width, in the unit of the images.
        constant_width: width of the shortest interval about the estimate, the same in every voxel, that covers as many.
    """

    coverage: float
    width: float
    constant_width: float

    @property
    def ratio(self) -> float:
        """Of the widths; below 1 the intervals know where they are needed."""
        return self.width / self.constant_width if self.constant_width > 0 else math.inf


def interval_coverage(
    truths: Sequence[ArrayLike],
    lowers: Sequence[ArrayLike],
    uppers: Sequence[ArrayLike],
    masks: Sequence[ArrayLike] | None = None,
    *,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Share of voxels whose truth lies in its interval, ends included.

    The voxels of a scan err together, so that the confidence interval is drawn over cases.

    Args:
        truths: one image of each case, any shape.
        lowers: lower ends, likewise.
        uppers: upper ends, likewise.
        masks: which voxels count; all by default.
        level: of the confidence interval.
        seed: of its draws.

    Raises:
        MedgenError: fewer than two cases, shapes that differ, or no voxel that counts.

    Example:
        >>> ends = [np.zeros(4), np.zeros(4)], [np.ones(4), np.ones(4)]
        >>> interval_coverage([np.full(4, 0.5), np.array([0.5, 0.5, 2, 2])], *ends).value
        0.75
    """
    rows = []
    for truth, low, high, mask in _cases("interval_coverage", truths, lowers, uppers, masks=masks):
        rows.append((float(((truth >= low) & (truth <= high))[mask].sum()), float(mask.sum())))
    if len(rows) < 2:
        raise MedgenError(f"interval_coverage: truths must be 2 cases or more. Got {len(rows)}. Add people.")
    return bootstrap_interval(_share, np.array(rows), level=level, method="percentile", seed=seed)


def conformal_factor(
    truths: Sequence[ArrayLike],
    means: Sequence[ArrayLike],
    stds: Sequence[ArrayLike],
    masks: Sequence[ArrayLike] | None = None,
    *,
    coverage: float = 0.9,
    floor: float = 0.0,
    unit: str = "voxel",
) -> float:
    """The factor with which ``mean +- factor * std`` covers the truth, from cases that nothing was trained on.

    ``voxel``: the ``ceil((n + 1) coverage) / n`` quantile of ``|truth - mean| / std`` over all ``n`` voxels, each case
    with the same weight: it holds for a voxel drawn from a new case as far as the cases stand for it. ``case``: the
    least factor with ``(n R + 1) / (n + 1) <= 1 - coverage``, ``R`` the mean share missed over ``n`` cases: then the
    expected share missed of a new, exchangeable case is bounded, which needs ``n >= coverage / (1 - coverage)`` cases.

    Args:
        truths: one image of each case, any shape.
        means: estimates, in the same unit.
        stds: their deviation, in the same unit, at least 0.
        masks: which voxels count; all by default.
        coverage: wanted, 0..1.
        floor: least deviation, in the same unit.
        unit: ``voxel`` or ``case``.

    Raises:
        MedgenError: shapes that differ, no voxel that counts, or too few cases.

    References:
        Romano, Patterson and Candes 2019, arXiv:1905.03222 (the score scaled by an estimated spread); Angelopoulos and
        Bates 2021, arXiv:2107.07511, sections 1 and 2.3; Angelopoulos et al. 2022, arXiv:2208.02814, equation 4.

    Example:
        >>> error = np.arange(1, 100) / 100
        >>> conformal_factor([error], [np.zeros(99)], [np.full(99, 0.5)], coverage=0.9)
        1.8
    """
    check_range("conformal_factor", "coverage", coverage, 0, 1)
    check_choice("conformal_factor", "unit", unit, UNITS)
    scores = []
    for truth, mean, std, mask in _cases("conformal_factor", truths, means, stds, masks=masks):
        scores.append(_scores(truth[mask], mean[mask], np.maximum(std[mask], floor)))
    return _voxel_factor(scores, coverage) if unit == "voxel" else _case_factor(scores, coverage)


def compare_widths(
    truth: ArrayLike,
    mean: ArrayLike,
    lower: ArrayLike,
    upper: ArrayLike,
    tissues: Mapping[str, ArrayLike],
) -> dict[str, WidthComparison]:
    """Intervals against constant ones of the same coverage, tissue by tissue.

    Args:
        truth: any shape and unit.
        mean: the estimate.
        lower: lower ends.
        upper: upper ends.
        tissues: mask of each.

    Returns:
        By tissue; those without a voxel are left out.
    """
    found = {}
    for name, mask in tissues.items():
        ((x, m, low, high, inside),) = _cases("compare_widths", [truth], [mean], [lower], [upper], masks=[mask])
        if not inside.any():
            continue
        x, m, low, high = (values[inside] for values in (x, m, low, high))
        covered = float(((x >= low) & (x <= high)).mean())
        start, end = shortest_interval(x - m, covered)
        found[name] = WidthComparison(covered, float((high - low).mean()), end - start)
    return found


def shortest_interval(values: ArrayLike, share: float) -> tuple[float, float]:
    """The shortest interval that holds a share of the values.

    Args:
        values: any shape, not empty.
        share: 0..1.

    Example:
        >>> shortest_interval([0, 10, 11, 12, 30], 0.6)
        (10.0, 12.0)
    """
    check_range("shortest_interval", "share", share, 0, 1)
    ordered = np.sort(np.asarray(values, np.float64).ravel())
    if not len(ordered):
        raise MedgenError("shortest_interval: values must not be empty. Give at least one.")
    count = max(1, math.ceil(share * len(ordered) - 1e-9))
    widths = ordered[count - 1 :] - ordered[: len(ordered) - count + 1]
    first = int(np.argmin(widths))
    return float(ordered[first]), float(ordered[first + count - 1])


def _share(rows: ArrayLike) -> float:
    hits, counts = np.asarray(rows, np.float64).sum(0)
    return float(hits / counts) if counts else math.nan


def _scores(truth: Array, mean: Array, std: Array) -> Array:
    """``|truth - mean| / std``; without an error 0, with one and no deviation infinite."""
    error = np.abs(truth - mean)
    scores = np.full(error.shape, np.inf)
    np.divide(error, std, out=scores, where=std > 0)
    scores[error == 0] = 0
    return np.sort(scores)


def _voxel_factor(scores: Sequence[Array], coverage: float) -> float:
    pooled = np.concatenate(scores)
    weights = np.concatenate([np.full(len(part), 1 / (len(part) * len(scores))) for part in scores])
    order = np.argsort(pooled, kind="stable")
    wanted = min(1.0, coverage * (len(pooled) + 1) / len(pooled))
    place = int(np.searchsorted(np.cumsum(weights[order]), wanted - 1e-12))
    return float(pooled[order][min(place, len(pooled) - 1)])


def _case_factor(scores: Sequence[Array], coverage: float) -> float:
    n, missed = len(scores), 1 - coverage
    if 1 / (n + 1) > missed + 1e-12:
        raise MedgenError(
            f"conformal_factor: coverage {coverage:g} by case needs {math.ceil(coverage / missed - 1e-9)} cases or "
            f"more. Got {n}. Add people, or use unit 'voxel'."
        )

    def risk(factor: float) -> float:
        return float(np.mean([1 - np.searchsorted(part, factor, side="right") / len(part) for part in scores]))

    low, high = 0.0, LARGEST_FACTOR
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if (n * risk(middle) + 1) / (n + 1) <= missed + 1e-12 else (middle, high)
    if high >= LARGEST_FACTOR:
        raise MedgenError(
            f"conformal_factor: no factor up to {LARGEST_FACTOR:g} covers enough. The deviations are too small in too "
            "many voxels: set floor."
        )
    return high


def _cases(
    caller: str, *arrays: Sequence[ArrayLike], masks: Sequence[ArrayLike] | None
) -> list[tuple[Any, ...]]:  # fmt: skip
    """One tuple of flat arrays, the mask last, for each case.

    Raises:
        MedgenError: other numbers of cases or shapes, or a case of no voxel.
    """
    counts = {len(part) for part in arrays} | ({len(masks)} if masks is not None else set())
    if len(counts) != 1 or counts == {0}:
        raise MedgenError(f"{caller}: all arguments must hold one image of each case. Got {sorted(counts)}.")
    found = []
    for i, images in enumerate(zip(*arrays, strict=True)):
        flat = [np.asarray(image, np.float64) for image in images]
        mask = np.ones(flat[0].shape, bool) if masks is None else np.asarray(masks[i]) > 0
        shapes = {part.shape for part in (*flat, mask)}
        if len(shapes) > 1:
            raise MedgenError(f"{caller}: images of case {i} must have one shape. Got {sorted(shapes)}. Resample.")
        if caller != "compare_widths" and not mask.any():
            raise MedgenError(f"{caller}: case {i} has no voxel that counts. Leave it out.")
        found.append((*(part.ravel() for part in flat), mask.ravel()))
    return found
