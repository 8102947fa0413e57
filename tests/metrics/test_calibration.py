"""Coverage, conformal factors and widths against what is known of Gaussian errors."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from medgen.checks import MedgenError
from medgen.metrics import compare_widths, conformal_factor, interval_coverage, shortest_interval
from medgen.metrics.calibration import Array

NORMAL_90 = 1.6448536


def people(
    count: int, seed: int, spread: float = 0.0, size: int = 4000
) -> tuple[list[Array], list[Array], list[Array]]:
    """Truths, means, and deviations that are half of the true ones; each person's errors a little larger or smaller."""
    stream = np.random.default_rng(seed)
    truths, means, stds = [], [], []
    for _ in range(count):
        std = stream.uniform(0.5, 2, size)
        means.append(np.zeros(size))
        stds.append(std / 2)
        truths.append(std * stream.standard_normal(size) * np.exp(spread * stream.standard_normal()))
    return truths, means, stds


def ends(means: list[Array], stds: list[Array], factor: float) -> tuple[list[Array], list[Array]]:
    return ([m - factor * s for m, s in zip(means, stds, strict=True)],
            [m + factor * s for m, s in zip(means, stds, strict=True)])  # fmt: skip


@pytest.mark.parametrize("unit", ["voxel", "case"])
def test_the_factor_covers_people_it_has_not_seen(unit: str) -> None:
    factor = conformal_factor(*people(20, 0, 0.1), unit=unit)
    truths, means, stds = people(30, 1, 0.1)
    covered = interval_coverage(truths, *ends(means, stds, factor))
    assert covered.low < covered.value < covered.high
    assert 0.87 < covered.value < 0.96
    if unit == "voxel":
        assert factor == pytest.approx(2 * NORMAL_90, rel=0.05)
    else:
        assert factor > conformal_factor(*people(20, 0, 0.1))  # it pays for the number of people


def test_expected_misses_by_case_are_bounded_on_average_over_calibrations() -> None:
    missed = []
    for seed in range(60):
        factor = conformal_factor(*people(9, seed, 0.3, 200), unit="case", coverage=0.9)
        truths, means, stds = people(1, 1000 + seed, 0.3, 200)
        missed.append(float((np.abs(truths[0] - means[0]) > factor * stds[0]).mean()))
    assert np.mean(missed) <= 0.1


def test_exact_ranks() -> None:
    error = np.arange(1.0, 11)
    unit = [np.ones(10)]
    assert conformal_factor([error], [np.zeros(10)], unit, coverage=0.8) == 9  # ceil(11 * 0.8) = 9
    assert conformal_factor([error], [np.zeros(10)], unit, coverage=0.99) == 10
    weighted = conformal_factor([np.full(1000, 1.0), np.full(10, 5.0)], [np.zeros(1000), np.zeros(10)],
                                [np.ones(1000), np.ones(10)], coverage=0.6)  # fmt: skip
    assert weighted == 5  # each case counts the same


def test_voxels_without_deviation() -> None:
    truth, mean, std = np.array([0.0, 1.0, 1.0]), np.array([0.0, 0.0, 0.0]), np.array([0.0, 0.0, 1.0])
    assert conformal_factor([truth], [mean], [std], coverage=0.3) == 1
    assert conformal_factor([truth], [mean], [std], coverage=0.7) == np.inf
    assert conformal_factor([truth], [mean], [std], coverage=0.7, floor=0.5) == 2
    with pytest.raises(MedgenError, match="set floor"):
        conformal_factor([truth] * 20, [mean] * 20, [std] * 20, unit="case")


def test_coverage_counts_what_the_masks_mark() -> None:
    truths = [np.array([0.5, 3.0]), np.array([0.5, 3.0])]
    low, high = [np.zeros(2)] * 2, [np.ones(2)] * 2
    assert interval_coverage(truths, low, high).value == 0.5
    assert interval_coverage(truths, low, high, [np.array([1, 0])] * 2).value == 1


def test_widths_against_constant_ones() -> None:
    stream = np.random.default_rng(0)
    std = stream.choice([0.2, 3.0], 20000)
    truth, mean = std * stream.standard_normal(20000), np.zeros(20000)
    half = std < 1
    found = compare_widths(
        truth, mean, -NORMAL_90 * std, NORMAL_90 * std, {"all": np.ones(20000), "half": half, "none": np.zeros(20000)}
    )
    assert set(found) == {"all", "half"}
    assert found["half"].ratio == pytest.approx(1, abs=0.05)  # nothing to know there
    assert found["all"].coverage == pytest.approx(0.9, abs=0.01)
    assert found["all"].ratio < 0.8  # it knows where the error is large
    assert found["all"].width == pytest.approx(2 * NORMAL_90 * 1.6, rel=0.03)
    assert shortest_interval([3.0], 0.5) == (3, 3)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: interval_coverage([np.zeros(2)], [np.zeros(2)], [np.zeros(2)]), "2 cases or more. Got 1"),
        (lambda: interval_coverage([np.zeros(2)] * 2, [np.zeros(3)] * 2, [np.zeros(2)] * 2), "must have one shape"),
        (lambda: conformal_factor([np.zeros(2)], [], []), "one image of each case"),
        (lambda: conformal_factor(*people(3, 0), unit="case"), "needs 9 cases or more. Got 3"),
        (lambda: conformal_factor(*people(3, 0), coverage=2), "coverage"),
        (lambda: conformal_factor([np.zeros(2)], [np.zeros(2)], [np.ones(2)], [np.zeros(2)]), "no voxel that counts"),
        (lambda: shortest_interval([], 0.5), "must not be empty"),
    ],
)
def test_what_does_not_suit_is_refused(call: Callable[[], object], words: str) -> None:
    with pytest.raises(MedgenError, match=words):
        call()
