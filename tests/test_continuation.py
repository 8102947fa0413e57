"""Continuations against functions and fields whose answer is known; bytes on any number of threads; refusals."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from scipy import ndimage

from medgen import continuation
from medgen.checks import MedgenError
from medgen.continuation import _laplacian, _solved, kriged, membrane

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


@pytest.mark.parametrize("shape", [(4, 5, 3), (1, 5, 3), (4, 1, 1), (1, 1, 1)])
def test_the_laplacian_of_a_constant_is_0_and_that_of_a_square_its_curvature(shape: tuple[int, ...]) -> None:
    operator = _laplacian(shape, SPACING)
    np.testing.assert_allclose(operator.sum(axis=1), 0, atol=1e-12)
    np.testing.assert_allclose((operator - operator.T).toarray(), 0, atol=1e-12)
    if shape[0] > 2:
        x = np.broadcast_to(np.arange(shape[0]).reshape(-1, 1, 1) * SPACING[0], shape)
        np.testing.assert_allclose((operator @ (x**2).ravel()).reshape(shape)[1:-1], 2)


@pytest.mark.parametrize("make", [membrane, kriged])
def test_an_axis_of_one_voxel_is_a_plane(make) -> None:
    x, y = (i[..., None] for i in np.indices((12, 12)).astype(float))
    hole = (x - 6) ** 2 + (y - 5) ** 2 < 9
    np.testing.assert_allclose(make(np.where(hole, 99.0, x - 2 * y), hole, (1.0, 1.0, 5.0)), x - 2 * y, atol=1e-3)


@pytest.mark.parametrize("length", [np.inf, 6.0])
def test_surroundings_of_one_value_give_that_value(length: float) -> None:
    values = np.where(ball(), 7.0, -1000.1)
    values[0] = 1e4  # far from the hole
    np.testing.assert_allclose(kriged(values, ball(), SPACING, length)[ball()], -1000.1)
    np.testing.assert_allclose(membrane(values, ball(), SPACING)[ball()], -1000.1)


def test_an_offset_and_a_factor_pass_through() -> None:
    values = np.random.default_rng(0).normal(size=ball().shape)
    for make in (membrane, kriged):
        moved = make(100 * values - 1e4, ball(), SPACING)
        np.testing.assert_allclose(moved, 100 * make(values, ball(), SPACING) - 1e4, rtol=0, atol=0.1)


def test_what_was_not_solved_is_refused_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(continuation, "_ITERATIONS", 3)
    x, y, _ = grid()
    with pytest.raises(MedgenError, match=r"a hole of \d+ voxels was not solved in 3 steps.*Fill a smaller hole"):
        kriged(x * y, ball(), SPACING)


def test_conjugate_gradients_solve_to_the_relative_residual() -> None:
    rng = np.random.default_rng(0)
    root = rng.normal(size=(30, 30))
    matrix, wanted = continuation.sparse.csr_array(root @ root.T + np.eye(30)), rng.normal(size=30)
    found = _solved(matrix, wanted)
    assert np.linalg.norm(matrix @ found - wanted) <= 1.01e-5 * np.linalg.norm(wanted)
    assert not _solved(matrix, 0 * wanted).any()


@pytest.mark.parametrize("hole", [np.zeros((3, 3, 3), bool), np.ones((3, 3, 3), bool)])
def test_a_hole_without_voxels_or_surroundings_is_refused(hole: np.ndarray) -> None:
    for make in (membrane, kriged):
        with pytest.raises(MedgenError, match="hole must leave some voxels and mark some"):
            make(np.zeros((3, 3, 3)), hole, SPACING)


def test_bytes_do_not_depend_on_the_number_of_threads() -> None:
    code = """
import hashlib, numpy as np
from medgen.continuation import kriged
values = np.random.default_rng(0).normal(size=(34, 34, 34))
hole = np.zeros(values.shape, bool)
hole[4:30, 4:30, 4:30] = True
print(hashlib.sha256(kriged(values, hole, (1.0, 1.0, 1.0), 3.0).tobytes()).hexdigest())
"""
    digests = set()
    for threads in ("1", "2"):
        names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
        environment = {**os.environ, **dict.fromkeys(names, threads), "PYTHONPATH": os.pathsep.join(sys.path)}
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        digests.add(done.stdout)
    assert len(digests) == 1
