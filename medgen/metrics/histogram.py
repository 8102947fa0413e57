"""Intensity histograms label by label, and the plainest image of a label map: each label's mean."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import wasserstein_distance

from medgen.checks import MedgenError

Array = NDArray[np.float64]


def label_wasserstein(
    image: ArrayLike, reference: ArrayLike, groups: ArrayLike, names: Sequence[str], *, least_voxels: int = 20
) -> dict[str, float]:
    """1-D Wasserstein distance between the intensities of two images inside each group of voxels.

    Args:
        image: ``(X, Y, Z)``.
        reference: ``(X, Y, Z)``, intensities in the same unit.
        groups: index into ``names`` for each voxel, ``(X, Y, Z)``; other values are left out.
        names: of the groups.
        least_voxels: groups of fewer voxels are left out.

    Returns:
        Distance, in the unit of the images, of each group that has voxels enough.

    Raises:
        MedgenError: shapes differ.

    References:
        Ramdas, Trillos and Cuturi 2017, arXiv:1509.02237, equation 4 (the order-1 case).
    """
    x, y, where = np.asarray(image, np.float64), np.asarray(reference, np.float64), np.asarray(groups)
    _same_shape("label_wasserstein", x, y, where)
    found = {}
    for k, name in enumerate(names):
        inside = where == k
        if inside.sum() >= least_voxels:
            found[name] = float(wasserstein_distance(x[inside], y[inside]))
    return found


def label_means(images: Sequence[ArrayLike], groups: Sequence[ArrayLike], count: int) -> Array:
    """Mean intensity of each group over the voxels of all images.

    Args:
        images: each ``(X, Y, Z)``.
        groups: for each image the group of each voxel, ``(X, Y, Z)``, 0 to ``count - 1``.
        count: number of groups.

    Returns:
        Means ``(count,)``; 0 for a group without voxels.
    """
    total, voxels = np.zeros(count), np.zeros(count)
    for image, group in zip(images, groups, strict=True):
        x, where = np.asarray(image, np.float64), np.asarray(group).astype(np.int64)
        _same_shape("label_means", x, where)
        total += np.bincount(where.ravel(), x.ravel(), count)[:count]
        voxels += np.bincount(where.ravel(), minlength=count)[:count]
    return total / np.maximum(voxels, 1)


def paint_labels(groups: ArrayLike, values: ArrayLike) -> Array:
    """The image with ``values[k]`` in every voxel of group ``k``, shape of ``groups``."""
    return np.asarray(values, np.float64)[np.asarray(groups).astype(np.int64)]


def _same_shape(caller: str, *arrays: NDArray[np.generic]) -> None:
    if len({array.shape for array in arrays}) > 1:
        shapes = ", ".join(str(array.shape) for array in arrays)
        raise MedgenError(f"{caller}: images and groups must have one shape. Got {shapes}. Bring them to one grid.")
