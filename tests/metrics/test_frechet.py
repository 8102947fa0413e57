"""Frechet distance against the textbook formula, and its interval."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.linalg import sqrtm

from medgen.checks import MedgenError
from medgen.metrics import bootstrap_interval, frechet_distance, standardise


def textbook(a: np.ndarray, b: np.ndarray, shrinkage: float = 0.0) -> float:
    covariances = []
    for rows in (a, b):
        covariance = np.cov(rows.T)
        target = np.eye(len(covariance)) * np.trace(covariance) / len(covariance)
        covariances.append((1 - shrinkage) * covariance + shrinkage * target)
    root = sqrtm(covariances[0] @ covariances[1]).real
    return float(np.square(a.mean(0) - b.mean(0)).sum() + np.trace(covariances[0] + covariances[1] - 2 * root))


@pytest.mark.parametrize(("count", "shrinkage"), [(60, 0.0), (60, 0.3), (9, 0.3), (9, 1.0)])
def test_equals_the_matrix_root(count: int, shrinkage: float) -> None:
    generator = np.random.default_rng(1)
    a = generator.normal(size=(count, 12)) @ generator.normal(size=(12, 12))
    b = generator.normal(size=(count + 5, 12)) * 2 + 1
    assert frechet_distance(a, b, shrinkage=shrinkage) == pytest.approx(textbook(a, b, shrinkage), rel=1e-6)


def test_fewer_samples_than_features() -> None:
    """A scaled set: tr((A c^2 A)^(1/2)) = c tr(A), so the distance is (1 - c)^2 tr(A) and the shift."""
    rows = np.random.default_rng(2).normal(size=(5, 40))
    expected = 4 * np.trace(np.cov(rows.T)) + np.square(2 * rows.mean(0)).sum()
    assert frechet_distance(rows, 3 * rows) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(rows, rows) == pytest.approx(0, abs=1e-9)


def test_standardise_uses_the_reference_and_drops_constants() -> None:
    reference = np.column_stack([np.arange(4.0), np.ones(4), 10 * np.arange(4.0)])
    own, other = standardise(reference, reference + 1)
    assert own.shape == other.shape == (4, 2)
    np.testing.assert_allclose(own.mean(0), 0, atol=1e-12)
    np.testing.assert_allclose(own.std(0, ddof=1), 1)
    np.testing.assert_allclose(other[:, 0] - own[:, 0], 1 / reference[:, 0].std(ddof=1))


def test_interval_of_a_mean_covers_the_normal_one() -> None:
    rows = np.random.default_rng(3).normal(size=(400, 1))
    for method in ("centred", "percentile"):
        found = bootstrap_interval(lambda x: float(x.mean()), rows, method=method)
        assert found.low < found.value < found.high
        assert found.high - found.low == pytest.approx(2 * 1.96 / 20, rel=0.15)
    assert found == bootstrap_interval(lambda x: float(x.mean()), rows, method="percentile")


def test_interval_of_a_distance_is_centred_on_it() -> None:
    generator = np.random.default_rng(4)
    a, b = generator.normal(size=(30, 6)), generator.normal(size=(30, 6))
    centred = bootstrap_interval(frechet_distance, a, b, repeats=100)
    plain = bootstrap_interval(frechet_distance, a, b, repeats=100, method="percentile")
    assert centred.low < centred.value < centred.high
    assert plain.low > centred.low  # drawing with replacement alone raises the distance


@pytest.mark.parametrize(
    ("a", "b"), [(np.ones((3, 2)), np.ones((3, 4))), (np.ones(3), np.ones(3)), (np.ones((1, 2)), np.ones((3, 2)))]
)
def test_refuses_other_shapes(a: np.ndarray, b: np.ndarray) -> None:
    with pytest.raises(MedgenError, match="frechet_distance"):
        frechet_distance(a, b)


def test_refuses_what_is_not_finite() -> None:
    with pytest.raises(MedgenError, match="finite"):
        frechet_distance(np.full((3, 2), np.nan), np.ones((3, 2)))
    with pytest.raises(MedgenError, match="no feature"):
        standardise(np.ones((3, 2)))
    with pytest.raises(MedgenError, match="method"):
        bootstrap_interval(np.mean, np.ones(3), method="centered")
