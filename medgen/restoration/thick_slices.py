"""Which axis of a volume lies across thick slices, and where thinner ones lie."""

from __future__ import annotations

import numpy as np

from medgen.checks import check_positive
from medgen.io.findings import Refused

__all__ = ["THICK", "fine_affine", "thick_axis"]

THICK = 2.0  # slices so many times as thick as the voxels are wide are made thin by default


def thick_axis(spacing: tuple[float, ...], target: float | None = None) -> int:
    """The axis across the slices: the coarsest.

    Args:
        spacing: mm along each voxel axis.
        target: wanted spacing, mm; None: that of the voxels in the slices, which must be ``THICK`` times finer.

    Raises:
        Refused: ``NOTHING_TO_DO``: there is no such axis.
        MedgenError: ``target`` is no length.

    Example:
        >>> thick_axis((0.5, 3.0, 0.5))
        1
    """
    axis = int(np.argmax(spacing))
    fine = max(step for a, step in enumerate(spacing) if a != axis)
    shown = " x ".join(f"{step:g}" for step in spacing)
    if target is None and spacing[axis] < THICK * fine:
        raise Refused(
            "NOTHING_TO_DO",
            f"restore: slices must be at least {THICK:g} times as thick as voxels are wide. Got {shown} mm. State "
            "target_spacing (--target-spacing) if they are to be made thinner all the same.",
        )
    if target is not None:
        check_positive("restore", "target_spacing", target)
        if target >= spacing[axis]:
            text = f"restore: target_spacing must be below the slice spacing. Got {target:g} mm of {shown} mm."
            raise Refused("NOTHING_TO_DO", text)
    return axis


def fine_affine(affine: np.ndarray, axis: int, count: int, fine: int, target: float) -> np.ndarray:
    """The affine of a volume with other slices along one axis, about the same centre.

    Args:
        affine: RAS+ mm, 4x4, of the slices as they are.
        axis: voxel axis.
        count: slices as they are.
        fine: slices wanted.
        target: their spacing in mm.

    Example:
        >>> fine_affine(np.diag([1.0, 1.0, 4.0, 1.0]), 2, 2, 8, 1.0)[:, 3].tolist()
        [0.0, 0.0, -1.5, 1.0]
    """
    made = np.array(affine, dtype=np.float64)
    step = made[:3, axis].copy()
    unit = step / np.linalg.norm(step)
    made[:3, axis] = unit * target
    made[:3, 3] += step * (count - 1) / 2 - unit * target * (fine - 1) / 2
    return made
