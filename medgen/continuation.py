"""Smooth continuation of an image into a hole: solutions of linear elliptic equations on the voxel grid."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, sparse
from scipy.sparse.linalg import cg

Array = NDArray[np.float64]
_TOLERANCE = 1e-5
_ITERATIONS = 4000


def membrane(values: Array, hole: NDArray[np.bool_], spacing: Sequence[float], length_mm: float = np.inf) -> Array:
    """``u`` with ``laplace(u) = u / length_mm**2`` in the hole and ``u = values`` around it.

    Args:
        values: ``(X, Y, Z)``; what lies in the hole is not looked at.
        hole: same shape.
        spacing: mm per axis.
        length_mm: depth within which ``u`` falls to 1/e; infinite: the harmonic function.

    Returns:
        ``(X, Y, Z)``: ``u`` in the hole, ``values`` elsewhere.
    """
    box = _around(hole)
    inside = hole[box].ravel()
    rows = _laplacian(hole[box].shape, spacing)[inside]
    matrix = sparse.identity(int(inside.sum()), format="csr") / length_mm**2 - rows[:, inside]
    return _filled(values, box, inside, matrix, rows[:, ~inside])


def kriged(values: Array, hole: NDArray[np.bool_], spacing: Sequence[float], length_mm: float = np.inf) -> Array:
    """The expected image in the hole if it is a Gaussian random field with covariance ``exp(-r / length_mm)``.

    The ``u`` of least ``sum((laplace(u) - (u - m) / length_mm**2)**2)`` that is ``values`` outside the hole, with ``m``
    the mean of the two layers of voxels around it (Lindgren et al. 2011, J. R. Stat. Soc. B 73, equation 2 with
    alpha = 2: in three dimensions the Matern field of smoothness 1/2). With an infinite length it is the smoothest
    continuation, the biharmonic equation with value and slope given at the edge.

    Args:
        values: ``(X, Y, Z)``; what lies in the hole is not looked at.
        hole: same shape.
        spacing: mm per axis.
        length_mm: how far the surroundings say something.

    Returns:
        ``(X, Y, Z)``: ``u`` in the hole, within the range of the voxels around it; ``values`` elsewhere.
    """
    box = _around(hole)
    near = ndimage.binary_dilation(hole[box]).ravel()
    inside = hole[box].ravel()
    operator = _laplacian(hole[box].shape, spacing) - sparse.eye_array(inside.size) / length_mm**2
    rows = operator.tocsr()[near]
    own = rows[:, inside]
    known = values[box][~hole[box] & ndimage.binary_dilation(hole[box], iterations=2)]
    middle = float(known.mean()) if np.isfinite(length_mm) else 0.0
    made = _filled(values - middle, box, inside, own.T @ own, -(own.T @ rows[:, ~inside])) + middle
    return np.where(hole, made.clip(known.min(), known.max()), values)


def _around(hole: NDArray[np.bool_]) -> tuple[slice, ...]:
    """The hole's bounding box and two voxels more, within the volume."""
    found = ndimage.find_objects(hole.astype(np.int8))[0]
    return tuple(slice(max(0, side.start - 2), side.stop + 2) for side in found)


def _laplacian(shape: Sequence[int], spacing: Sequence[float]) -> sparse.csr_array:
    """The (2 d + 1)-point Laplacian of a grid in C order; at its border the missing neighbour equals the voxel."""
    total = sparse.csr_array((1, 1))
    for size, step in zip(shape, spacing, strict=True):
        middle = np.full(size, -2.0)
        middle[[0, -1]] += 1.0
        line = sparse.diags_array([np.ones(size - 1), middle, np.ones(size - 1)], offsets=[-1, 0, 1]) / step**2
        total = sparse.kron(total, sparse.eye_array(size)) + sparse.kron(sparse.eye_array(total.shape[0]), line)
    return total.tocsr()


def _filled(
    values: Array,
    box: tuple[slice, ...],
    inside: NDArray[np.bool_],
    matrix: sparse.csr_array,
    coupling: sparse.csr_array,
) -> Array:
    """Solve ``matrix @ u = coupling @ known`` and put ``u`` into the hole."""
    flat = values[box].astype(np.float64).ravel()
    start = np.full(int(inside.sum()), flat[~inside].mean())
    flat[inside], _ = cg(matrix, coupling @ flat[~inside], x0=start, rtol=_TOLERANCE, maxiter=_ITERATIONS)
    result = values.astype(np.float64).copy()
    result[box] = flat.reshape(values[box].shape)
    return result
