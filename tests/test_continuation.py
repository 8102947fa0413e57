from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from medgen.continuation import kriged, membrane

SPACING = (1.0, 2.0, 1.5)


def grid(shape: tuple[int, ...] = (16, 14, 12)) -> list[np.ndarray]:
    return [i * s for i, s in zip(np.indices(shape).astype(float), SPACING, strict=True)]


def ball(shape: tuple[int, ...] = (16, 14, 12)) -> np.ndarray:
    x, y, z = grid(shape)
    return (x - 8) ** 2 + (y - 13) ** 2 + (z - 8) ** 2 < 25


def test_a_membrane_reproduces_a_harmonic_function() -> None:
    x, y, _ = grid()
    truth = 3 * x - y + 0.2 * (x**2 - y**2) + 5  # second differences are exact for quadratics
    made = membrane(np.where(ball(), 99.0, truth), ball(), SPACING)
    np.testing.assert_allclose(made, truth, atol=0.02)


def test_with_no_length_kriging_reproduces_a_biharmonic_function_that_a_membrane_flattens() -> None:
    x, y, z = grid()
    truth = 0.5 * x**2 + y * z + z  # laplacian 1: no membrane, but its laplacian vanishes
    made = kriged(np.where(ball(), -7.0, truth), ball(), SPACING)
    np.testing.assert_allclose(made, truth, atol=0.05)
    assert np.abs(membrane(truth, ball(), SPACING) - truth).max() > 1


def test_a_screened_membrane_fades_within_its_length() -> None:
    values, hole = np.ones((30, 5, 5)), np.zeros((30, 5, 5), bool)
    hole[5:] = True
    made = membrane(values, hole, (1.0, 1.0, 1.0), 3.0)[:, 2, 2]
    assert made[7] / made[4] == pytest.approx(np.exp(-1), rel=0.05)
    assert made[20] < 0.02


@pytest.mark.parametrize("make", [membrane, kriged])
def test_holes_at_the_border_and_apart_are_filled_and_the_rest_is_kept(make) -> None:
    values = np.random.default_rng(0).normal(size=(12, 12, 12)) + 100
    hole = np.zeros(values.shape, bool)
    hole[:3, :3, :3] = hole[8:10, 8:10, 8:10] = True
    made = make(np.where(hole, -1e4, values), hole, (1.0, 1.0, 1.0))
    np.testing.assert_array_equal(made[~hole], values[~hole])
    assert 95 < made[hole].min() <= made[hole].max() < 105


def test_kriging_is_the_conditional_mean_of_the_field_it_names() -> None:
    """Against the normal equations with the covariance exp(-r / length) in a box around the hole."""
    length, n = 4.0, 24
    places = np.stack(np.indices((n, n, n)), -1)[8:16, 8:16, 8:16].reshape(-1, 3).astype(float)
    hole = np.zeros((n, n, n), bool)
    hole[11:13, 11:13, 11:13] = True
    inside = hole[8:16, 8:16, 8:16].ravel()
    distance = np.linalg.norm(places[:, None] - places[None], axis=-1)
    covariance = np.exp(-distance / length)
    values = ndimage.gaussian_filter(np.random.default_rng(1).normal(size=(n, n, n)), 1.5)
    known = values[8:16, 8:16, 8:16].ravel()[~inside]
    weights = np.linalg.solve(covariance[np.ix_(~inside, ~inside)], covariance[np.ix_(~inside, inside)])
    made = kriged(values, hole, (1.0, 1.0, 1.0), length)[hole]
    assert np.corrcoef(made, weights.T @ known)[0, 1] > 0.95


def test_deep_in_a_hole_kriging_is_the_mean_of_the_surroundings() -> None:
    x, y, z = grid((24, 24, 24))
    hole = (x - 12) ** 2 + (y - 24) ** 2 + (z - 18) ** 2 < 100
    made = kriged(np.where(x > 12, 2.0, 1.0), hole, SPACING, 1.0)
    assert made[12, 12, 12] == pytest.approx(1.5, abs=0.1)
