from __future__ import annotations

import numpy as np
import pytest

from medgen.continuation import membrane, thin_plate

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


def test_a_thin_plate_reproduces_a_biharmonic_function_that_a_membrane_flattens() -> None:
    x, y, z = grid()
    truth = 0.5 * x**2 + y * z + z  # laplacian 1: no membrane, but its laplacian vanishes
    made = thin_plate(np.where(ball(), -7.0, truth), ball(), SPACING)
    np.testing.assert_allclose(made, truth, atol=0.05)
    assert np.abs(membrane(truth, ball(), SPACING) - truth).max() > 1


def test_a_screened_membrane_fades_within_its_length() -> None:
    values, hole = np.ones((30, 5, 5)), np.zeros((30, 5, 5), bool)
    hole[5:] = True
    made = membrane(values, hole, (1.0, 1.0, 1.0), 3.0)[:, 2, 2]
    assert made[7] / made[4] == pytest.approx(np.exp(-1), rel=0.05)
    assert made[20] < 0.02


@pytest.mark.parametrize("make", [membrane, thin_plate])
def test_holes_at_the_border_and_apart_are_filled_and_the_rest_is_kept(make) -> None:
    values = np.random.default_rng(0).normal(size=(12, 12, 12)) + 100
    hole = np.zeros(values.shape, bool)
    hole[:3, :3, :3] = hole[8:10, 8:10, 8:10] = True
    made = make(np.where(hole, -1e4, values), hole, (1.0, 1.0, 1.0))
    np.testing.assert_array_equal(made[~hole], values[~hole])
    assert 95 < made[hole].min() <= made[hole].max() < 105
