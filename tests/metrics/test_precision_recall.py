"""Precision, recall, density and coverage: known sets, brute force, what each is blind to, and their intervals."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from medgen.checks import MedgenError
from medgen.metrics import improved_precision_recall, precision_recall_intervals, wilson_interval

Array = NDArray[np.float64]


def normal(count: int, width: int = 4, seed: int = 0, shift: float = 0.0, scale: float = 1.0) -> Array:
    return np.random.default_rng(seed).normal(shift, scale, (count, width))


def by_hand(real: Array, made: Array, k: int) -> tuple[float, float, float, float]:
    """The definitions, a loop at a time."""

    def ball(rows: Array, i: int) -> float:
        return float(sorted(np.linalg.norm(rows[i] - other) for j, other in enumerate(rows) if j != i)[k - 1])

    def inside(point: Array, rows: Array) -> list[bool]:
        return [bool(np.linalg.norm(point - row) <= ball(rows, i)) for i, row in enumerate(rows)]

    precision = np.mean([any(inside(y, real)) for y in made])
    recall = np.mean([any(inside(x, made)) for x in real])
    density = np.mean([sum(inside(y, real)) / k for y in made])
    coverage = np.mean([any(np.linalg.norm(y - x) <= ball(real, i) for y in made) for i, x in enumerate(real)])
    return float(precision), float(recall), float(density), float(coverage)


@pytest.mark.parametrize(("n", "m", "k", "shift"), [(12, 9, 1, 0.5), (15, 20, 3, 1.0), (8, 8, 5, 0.0)])
def test_equals_the_definition(n: int, m: int, k: int, shift: float) -> None:
    real, made = normal(n), normal(m, seed=1, shift=shift)
    assert improved_precision_recall(real, made, k=k) == pytest.approx(by_hand(real, made, k))


def test_one_distribution_has_all_of_it_and_density_one() -> None:
    figures = improved_precision_recall(normal(400), normal(400, seed=1))
    assert min(figures.precision, figures.recall, figures.coverage) > 0.9
    assert figures.density == pytest.approx(1, abs=0.1)


def test_collapse_costs_recall_and_noise_costs_precision() -> None:
    real = normal(200)
    collapsed = improved_precision_recall(real, normal(200, seed=1, scale=0.1))
    noisy = improved_precision_recall(real, normal(200, seed=1, scale=4.0))
    assert collapsed.precision > 0.95
    assert collapsed.recall < 0.1
    assert collapsed.coverage < 0.5
    assert noisy.precision < 0.3
    assert noisy.recall > 0.9


def test_outliers_raise_recall_but_not_coverage() -> None:
    """Balls of made outliers are wide and take in real rows that nothing made is near (Naeem et al., section 3)."""
    real, far = normal(100), normal(100, seed=1, scale=30.0)
    figures = improved_precision_recall(real, far)
    assert figures.recall > 0.8
    assert figures.coverage < 0.2


def test_intervals_hold_the_value_and_cover_as_often_as_they_say() -> None:
    truth = improved_precision_recall(normal(1500, 2, seed=99), normal(1500, 2, seed=98, shift=0.7), k=5)
    hits = 0
    for seed in range(20):
        found = precision_recall_intervals(
            normal(60, 2, seed=seed), normal(60, 2, seed=100 + seed, shift=0.7), repeats=60
        )
        for interval in found:
            assert interval.low <= interval.value <= interval.high
        assert found.precision.low >= 0
        assert found.precision.high <= 1
        # precision grows with the number of rows: the same sizes are compared, in the mean
        hits += found.density.low <= truth.density <= found.density.high
    assert hits >= 15


def test_zero_is_not_certain() -> None:
    found = precision_recall_intervals(normal(20), normal(20, shift=50.0), repeats=20)
    assert found.precision.value == 0
    assert found.precision.high == pytest.approx(wilson_interval(0.0, 20)[1])
    assert found.density == (0, 0, 0)


def test_same_seed_same_interval() -> None:
    real, made = normal(20), normal(20, seed=1)
    first = precision_recall_intervals(real, made, repeats=20, seed=3)
    assert first == precision_recall_intervals(real, made, repeats=20, seed=3)
    assert first != precision_recall_intervals(real, made, repeats=20, seed=4)


@pytest.mark.parametrize(
    ("real", "made", "k", "word"),
    [
        (np.zeros((6, 2)), np.zeros((6, 3)), 2, "must be"),
        (np.zeros((5, 2)), np.zeros((6, 2)), 5, "more than k = 5"),
        (np.full((6, 2), np.nan), np.zeros((6, 2)), 2, "finite"),
        (np.zeros((6, 2)), np.zeros((6, 2)), 0, "'?k'?"),
    ],
)
def test_refusals(real: Array, made: Array, k: int, word: str) -> None:
    with pytest.raises(MedgenError, match=word):
        improved_precision_recall(real, made, k=k)
