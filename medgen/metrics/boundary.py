"""How sharp the border between two tissues is, in units of their contrast."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from medgen.checks import MedgenError


def label_border(first: ArrayLike, second: ArrayLike) -> NDArray[np.bool_]:
    """Voxels of either mask that share a face with a voxel of the other.

    Args:
        first: mask ``(X, Y, Z)``.
        second: mask ``(X, Y, Z)``.

    Returns:
        Mask ``(X, Y, Z)``.
    """
    a, b = np.asarray(first, bool), np.asarray(second, bool)
    border: NDArray[np.bool_] = (a & ndimage.binary_dilation(b)) | (b & ndimage.binary_dilation(a))
    return border


def boundary_sharpness(image: ArrayLike, first: ArrayLike, second: ArrayLike) -> float:
    """Mean gradient magnitude on the border of two tissues over the difference of their means.

    Args:
        image: ``(X, Y, Z)``, isotropic voxels.
        first: mask of one tissue ``(X, Y, Z)``.
        second: mask of the other.

    Returns:
        Sharpness per voxel (central differences): about 0.5 for an ideal step across a flat border.

    Raises:
        MedgenError: the tissues do not touch, or do not differ.
    """
    x, a, b = np.asarray(image, np.float64), np.asarray(first, bool), np.asarray(second, bool)
    border = label_border(a, b)
    if not border.any():
        raise MedgenError("boundary_sharpness: the two tissues do not touch. Give masks of neighbours.")
    contrast = abs(float(x[b].mean() - x[a].mean()))
    if contrast == 0:
        raise MedgenError("boundary_sharpness: the two tissues have one mean; no contrast to divide by.")
    slope = np.sqrt(sum(np.square(g) for g in np.gradient(x)))
    return float(slope[border].mean()) / contrast
