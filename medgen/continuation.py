"""Smooth continuation of an image into a hole: solutions of linear elliptic equations on the voxel grid.

Values are in any unit. Axes are the voxel axes, in the order of ``spacing``; nothing here knows of a world frame. A
hole at the border of the grid is continued with slope 0 across the border. The same input gives the same bytes,
whatever the number of threads.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, sparse

from medgen.checks import MedgenError

__all__ = ["CONTINUATION_MM", "kriged", "membrane"]

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
CONTINUATION_MM = 30.0
"""``length_mm`` of :func:`kriged` that restorers of holes begin with: nearly the biharmonic continuation."""
_TOLERANCE = 1e-5
_ITERATIONS = 20_000


def membrane(values: Array, hole: Mask, spacing: Sequence[float], length_mm: float = np.inf) -> Array:
    """``u`` with ``laplace(u) = u / length_mm**2`` in the hole and ``u = values`` around it.

    Args:
        values: ``(X, Y, Z)``, any unit; what lies in the hole is not looked at.
        hole: same shape, True = to be filled.
        spacing: mm per voxel axis.
        length_mm: depth within which ``u`` falls to 1/e; infinite: the harmonic function.

    Returns:
        ``(X, Y, Z)``, the unit of ``values``: ``u`` in the hole, ``values`` elsewhere.

    Raises:
        MedgenError: a hole without a voxel or without surroundings, or an equation that was not solved.

    Example:
        >>> values = np.array([0.0, 9.0, 9.0, 9.0, 4.0]).reshape(5, 1, 1)
        >>> membrane(values, values == 9, (1.0, 1.0, 1.0)).ravel().round(2).tolist()
        [0.0, 1.0, 2.0, 3.0, 4.0]
    """
    box = _around(hole)
    inside = hole[box].ravel()
    known = values[box].ravel()[~inside].astype(np.float64)
    middle = 0.0 if np.isfinite(length_mm) else float(known.mean())  # a constant is harmonic
    rows = _laplacian(hole[box].shape, spacing)[inside]
    matrix = sparse.eye_array(int(inside.sum()), format="csr") / length_mm**2 - rows[:, inside]
    found = _solved(matrix, rows[:, ~inside] @ (known - middle))
    return _put(values, hole, found + middle)


def kriged(values: Array, hole: Mask, spacing: Sequence[float], length_mm: float = np.inf) -> Array:
    """The expected image in the hole if it is a Gaussian random field with covariance ``exp(-r / length_mm)``.

    The ``u`` of least ``sum((laplace(u) - (u - m) / length_mm**2)**2)`` that is ``values`` outside the hole, with ``m``
    the mean of the two layers of voxels around it (Lindgren et al. 2011, J. R. Stat. Soc. B 73, equation 2 with
    alpha = 2). Its field is the Matern field of smoothness ``alpha - d / 2``. In three dimensions that is 1/2 and the
    covariance is ``exp(-r / length_mm)`` exactly, but for the size of the voxels; in two (an axis of length 1) it is 1,
    a smoother field of about the same length. With an infinite length it is the smoothest continuation, the biharmonic
    equation with value and slope given at the edge.

    Args:
        values: ``(X, Y, Z)``, any unit; what lies in the hole is not looked at.
        hole: same shape, True = to be filled.
        spacing: mm per voxel axis.
        length_mm: how far the surroundings say something.

    Returns:
        ``(X, Y, Z)``, the unit of ``values``: ``u`` in the hole, within the range of the voxels around it; ``values``
        elsewhere.

    Raises:
        MedgenError: a hole without a voxel or without surroundings, or an equation that was not solved.

    Example:
        >>> values = np.array([0.0, 1.0, 9.0, 9.0, 4.0, 5.0]).reshape(6, 1, 1)
        >>> kriged(values, values == 9, (1.0, 1.0, 1.0)).ravel().round(2).tolist()
        [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    """
    box = _around(hole)
    known = values[box][~hole[box] & ndimage.binary_dilation(hole[box], iterations=2)].astype(np.float64)
    middle = float(known.mean())
    inside, near = hole[box].ravel(), ndimage.binary_dilation(hole[box]).ravel()
    operator = _laplacian(hole[box].shape, spacing) - sparse.eye_array(inside.size) / length_mm**2
    rows = operator.tocsr()[near]
    own = rows[:, inside]
    given = rows[:, ~inside] @ (values[box].ravel()[~inside].astype(np.float64) - middle)
    found = _solved((own.T @ own).tocsr(), -(own.T @ given)) + middle
    return _put(values, hole, found.clip(known.min(), known.max()))


def _around(hole: Mask) -> tuple[slice, ...]:
    """The hole's bounding box and two voxels more, within the volume."""
    if not hole.any() or hole.all():
        raise MedgenError(
            f"continuation: hole must leave some voxels and mark some. Got {int(hole.sum())} of {hole.size} marked. "
            "Mark what is to be filled, and nothing else."
        )
    found = ndimage.find_objects(hole.astype(np.int8))[0]
    return tuple(slice(max(0, side.start - 2), side.stop + 2) for side in found)


def _laplacian(shape: Sequence[int], spacing: Sequence[float]) -> sparse.csr_array:
    """The (2 d + 1)-point Laplacian of a grid in C order; at its border the missing neighbour equals the voxel."""
    total = sparse.csr_array((1, 1))
    for size, step in zip(shape, spacing, strict=True):
        middle = np.full(size, -2.0)
        middle[0] += 1.0
        middle[-1] += 1.0  # the same voxel where the axis has only one
        beside = np.ones(size - 1)
        line = sparse.diags_array([beside, middle, beside], offsets=[-1, 0, 1], shape=(size, size)) / step**2
        total = sparse.kron(total, sparse.eye_array(size)) + sparse.kron(sparse.eye_array(total.shape[0]), line)
    return total.tocsr()


def _solved(matrix: sparse.csr_array, wanted: Array) -> Array:
    """``x`` with ``matrix @ x = wanted``, by conjugate gradients preconditioned with the diagonal.

    Begins with 0 and stops where ``|wanted - matrix @ x| <= 1e-5 |wanted|``. Sums are numpy's own: those of a BLAS
    depend on its number of threads.

    Args:
        matrix: symmetric, positive definite, ``(N, N)``.
        wanted: ``(N,)``.

    Raises:
        MedgenError: that is not reached.

    References:
        Shewchuk 1994, An introduction to the conjugate gradient method without the agonizing pain, B3.
    """
    enough = _TOLERANCE**2 * float((wanted * wanted).sum())
    if enough == 0:
        return np.zeros_like(wanted)
    weight = 1 / matrix.diagonal()
    x, residual = np.zeros_like(wanted), wanted.copy()
    scaled = weight * residual
    direction, slope = scaled, float((residual * scaled).sum())
    for _ in range(_ITERATIONS):
        if float((residual * residual).sum()) <= enough:
            return x
        ahead = matrix @ direction
        step = slope / float((direction * ahead).sum())
        x += step * direction
        residual -= step * ahead
        scaled = weight * residual
        slope, before = float((residual * scaled).sum()), slope
        direction = scaled + (slope / before) * direction
    error = np.sqrt((residual * residual).sum() / (wanted * wanted).sum())
    raise MedgenError(
        f"continuation: a hole of {x.size} voxels was not solved in {_ITERATIONS} steps: the relative residual must be "
        f"at most {_TOLERANCE:g}, got {error:.2g}. Fill a smaller hole, or resample the scan to larger voxels first."
    )


def _put(values: Array, hole: Mask, found: Array) -> Array:
    """A copy of ``values`` with ``found`` ``(N,)`` in the hole."""
    result = values.astype(np.float64)  # copies
    result[hole] = found
    return result
