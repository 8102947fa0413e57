"""Whether a scan or a label map is of the size that a model was trained on."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from medgen.models.specification import ModelSpec

__all__ = ["LARGER", "SMALLER", "bounds_mm", "far_from_training", "sizes_text", "warn_if_far"]

LARGER = 1.5
SMALLER = 1 / 3


def bounds_mm(mask: NDArray[np.bool_], affine: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The box along the world's axes around what a mask marks.

    Args:
        mask: ``(X, Y, Z)``, not empty.
        affine: RAS+ mm, 4x4.

    Returns:
        Lowest and highest corner, RAS+ mm; voxels reach half a step beyond their centres.

    Example:
        >>> low, high = bounds_mm(np.ones((2, 1, 1), bool), np.diag([2.0, 1.0, 1.0, 1.0]))
        >>> low.tolist(), high.tolist()
        ([-1.0, -0.5, -0.5], [3.0, 0.5, 0.5])
    """
    places = np.argwhere(mask)
    low, high = places.min(0) - 0.5, places.max(0) + 0.5
    corners = np.array([[x, y, z, 1] for x in (low[0], high[0]) for y in (low[1], high[1]) for z in (low[2], high[2])])
    world = (corners @ affine.T)[:, :3]
    return world.min(0), world.max(0)


def far_from_training(spec: ModelSpec, size: Sequence[float]) -> str:
    """What is to be said of a volume much larger or smaller than the model's own grid; nothing of others.

    Args:
        spec: of the model.
        size: voxels at the model's spacing, along its axes.

    Returns:
        One sentence; ``""`` where each axis lies between ``SMALLER`` and ``LARGER`` times that of the grid.
    """
    shares = [n / own for n, own in zip(size, spec.grid.size, strict=True)]
    larger = max(shares) > LARGER
    if not larger and min(shares) >= SMALLER:
        return ""
    shown, own = (
        sizes_text([n * step for n, step in zip(voxels, spec.grid.spacing, strict=True)])
        for voxels in (size, spec.grid.size)
    )
    remedy = "Cut out that region" if larger else "Check the region and the voxel size in its header"
    return (
        f"covers {shown} mm, far {'more' if larger else 'less'} than the {own} mm that model '{spec.name}' was trained "
        f"on. {remedy}, or do not rely on the result."
    )


def warn_if_far(spec: ModelSpec, what: str, size: Sequence[float]) -> None:
    """Warn of a volume that :func:`far_from_training` says something about.

    Args:
        spec: of the model.
        what: the volume, as the user knows it.
        size: see :func:`far_from_training`.
    """
    told = far_from_training(spec, size)
    if told:
        warnings.warn(f"{what} {told}", stacklevel=3)


def sizes_text(sizes: Sequence[float]) -> str:
    """Numbers by axis: ``35 x 51 x 35``.

    Example:
        >>> sizes_text((1.0, 1.0, 2.5))
        '1 x 1 x 2.5'
    """
    return " x ".join(f"{size:.4g}" for size in sizes)
