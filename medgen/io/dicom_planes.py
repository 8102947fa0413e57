"""A volume cut into DICOM slices: which voxel axis the slices lie along, and where each slice is.

Frames: affines are RAS+ mm; positions, directions and normals here are DICOM's, LPS+ mm.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from medgen.geometry import affine_fault
from medgen.io.findings import Refused

__all__ = ["Planes", "planes_of"]

PERPENDICULAR = 1e-4
"""Largest cosine between the two axes of a slice. DICOM has rows and columns perpendicular; a cosine up to this, as
rounding makes it, is written as it is."""

_LONGEST_AXIS = 65535
_RAS_TO_LPS = np.array([-1.0, -1.0, 1.0])
# Slices look as radiologists have them: rows to the patient's left (sagittal: back), columns to the back (else: feet).
_DIRECTIONS = {0: ((0, 1, 0), (0, 0, -1)), 1: ((1, 0, 0), (0, 0, -1)), 2: ((1, 0, 0), (0, 1, 0))}


@dataclass(frozen=True, eq=False)
class Planes:
    """The slices of a volume, in the order of their distance along the normal. Made by :func:`planes_of`.

    Attributes:
        axes: the array axes that become (slices, rows, columns).
        flipped: whether each of these is walked from its end.
        orientation: ImageOrientationPatient, shape ``(6,)``: direction along a row, direction along a column.
        positions: ImagePositionPatient of each slice, shape ``(N, 3)``, LPS mm.
        pixel_spacing: PixelSpacing: mm between rows, between columns.
        rows: in a slice.
        columns: in a slice.
    """

    axes: tuple[int, int, int]
    flipped: tuple[bool, bool, bool]
    orientation: np.ndarray
    positions: np.ndarray
    pixel_spacing: tuple[float, float]
    rows: int
    columns: int

    @property
    def normal(self) -> np.ndarray:
        """Unit normal of the slices: row direction x column direction."""
        return normal_of(self.orientation)

    @property
    def distances(self) -> np.ndarray:
        """Distance of each slice along the normal, mm, shape ``(N,)``, ascending."""
        return self.positions @ self.normal

    @property
    def step(self) -> float:
        """Distance of neighbouring slices along the normal, mm."""
        distances = self.distances
        return float(distances[-1] - distances[0]) / (len(distances) - 1)

    @property
    def shear(self) -> np.ndarray:
        """What one slice is shifted within its plane against the one before: mm along a row, along a column."""
        step = (self.positions[-1] - self.positions[0]) / (len(self.positions) - 1)
        return np.array([step @ self.orientation[:3], step @ self.orientation[3:]])

    def frames(self, array: np.ndarray) -> np.ndarray:
        """The slices of an array ``(X, Y, Z)`` as a view ``(N, rows, columns)``."""
        walk = tuple(slice(None, None, -1 if flip else 1) for flip in self.flipped)
        return np.transpose(array, self.axes)[walk]


def normal_of(orientation: np.ndarray) -> np.ndarray:
    """Unit normal, LPS, of an ImageOrientationPatient ``(6,)``."""
    normal = np.cross(orientation[:3], orientation[3:])
    return normal / np.linalg.norm(normal)


def planes_of(affine: np.ndarray, shape: Sequence[int], like: np.ndarray | None = None) -> Planes:
    """Cuts a grid into slices.

    The slice axis is the one whose slices lie as ``like``; without it, the axis of clearly largest spacing (by more
    than 1 %), else the last one. Only an axis whose slices are rectangular can be it: a shear along the slice axis
    (gantry tilt) can be written, any other cannot. In the plane, rows and columns run as those of ``like``, else as
    radiologists have them.

    Args:
        affine: RAS+ mm, 4x4.
        shape: ``(X, Y, Z)``.
        like: an ImageOrientationPatient, shape ``(6,)``, LPS.

    Raises:
        Refused: ``BAD_AFFINE``; ``UNWRITABLE_GEOMETRY``: no two voxel axes are perpendicular, or a slice is larger
            than DICOM can say; ``SINGLE_SLICE``.

    Example:
        >>> planes = planes_of(np.diag([1.0, 1.0, 3.0, 1.0]), (40, 30, 20))
        >>> planes.axes, planes.orientation.tolist(), planes.positions[0].tolist()
        ((2, 1, 0), [1.0, 0.0, 0.0, 0.0, 1.0, 0.0], [-39.0, -29.0, 0.0])
    """
    matrix = np.asarray(affine, dtype=np.float64)
    if matrix.shape != (4, 4) or affine_fault(matrix):
        raise Refused("BAD_AFFINE", f"the affine {matrix.tolist()} is not a finite 4x4 matrix that can be inverted")
    steps = matrix[:3, :3] * _RAS_TO_LPS[:, None]
    spacing = np.linalg.norm(steps, axis=0)
    unit = steps / spacing
    slice_axis = _slice_axis(unit, spacing, like)
    row_axis, column_axis, signs = _in_plane(unit, slice_axis, like)
    orientation = np.concatenate([unit[:, column_axis] * signs[1], unit[:, row_axis] * signs[0]])
    sign = 1 if unit[:, slice_axis] @ normal_of(orientation) > 0 else -1
    axes, all_signs = (slice_axis, row_axis, column_axis), (sign, *signs)
    count, rows, columns = (int(shape[axis]) for axis in axes)
    _check_size(count, rows, columns)
    first = matrix[:3, 3] * _RAS_TO_LPS
    for axis, direction in zip(axes, all_signs, strict=True):
        first = first + (steps[:, axis] * (shape[axis] - 1) if direction < 0 else 0.0)
    positions = first + np.arange(count)[:, None] * (steps[:, slice_axis] * sign)
    flipped = (all_signs[0] < 0, all_signs[1] < 0, all_signs[2] < 0)
    pixel_spacing = (float(spacing[row_axis]), float(spacing[column_axis]))
    return Planes(axes, flipped, orientation + 0.0, positions + 0.0, pixel_spacing, rows, columns)


def _slice_axis(unit: np.ndarray, spacing: np.ndarray, like: np.ndarray | None) -> int:
    """The array axis that the slices lie along, among those whose slices are rectangular."""
    normals = {}
    for axis in (2, 1, 0):
        first, second = np.delete(unit, axis, axis=1).T
        if abs(first @ second) <= PERPENDICULAR:
            normals[axis] = np.cross(first, second)
    if not normals:
        cosines = [abs(unit[:, a] @ unit[:, b]) for a, b in ((0, 1), (0, 2), (1, 2))]
        raise Refused(
            "UNWRITABLE_GEOMETRY",
            f"no two voxel axes are perpendicular (smallest cosine {min(cosines):.2g}, at most {PERPENDICULAR:g} can "
            "be written): DICOM slices are rectangles. Resample the volume to an upright grid first.",
        )
    if like is not None:
        direction = normal_of(like)
        return max(normals, key=lambda axis: round(abs(float(normals[axis] @ direction)), 6))
    thickest = max(normals, key=lambda axis: spacing[axis])
    others = [spacing[axis] for axis in normals if axis != thickest]
    return thickest if not others or spacing[thickest] > 1.01 * max(others) else max(normals)


def _in_plane(unit: np.ndarray, slice_axis: int, like: np.ndarray | None) -> tuple[int, int, tuple[int, int]]:
    """Array axes along which the row number and the column number rise, and the sign of each."""
    first, second = (axis for axis in range(3) if axis != slice_axis)
    if like is None:
        dominant = int(np.abs(np.cross(unit[:, first], unit[:, second])).argmax())
        along_row, along_column = (np.array(direction, dtype=np.float64) for direction in _DIRECTIONS[dominant])
    else:
        along_row, along_column = like[:3], like[3:]
    fits = []
    for row_axis, column_axis in ((second, first), (first, second)):
        down, across = unit[:, row_axis] @ along_column, unit[:, column_axis] @ along_row
        signs = (1 if down >= 0 else -1, 1 if across >= 0 else -1)
        fits.append((round(float(abs(down) + abs(across)), 9), row_axis, column_axis, signs))
    _, row_axis, column_axis, signs = max(fits, key=lambda fit: fit[0])
    return row_axis, column_axis, signs


def _check_size(count: int, rows: int, columns: int) -> None:
    if count < 2:
        raise Refused("SINGLE_SLICE", "the volume has one slice; a series of slices needs at least two")
    if max(rows, columns) > _LONGEST_AXIS:
        raise Refused(
            "UNWRITABLE_GEOMETRY", f"a slice of {rows} x {columns}; DICOM holds at most {_LONGEST_AXIS} a side"
        )
