"""Whether slices lie on one even grid, and its affine.

The rule: slices are ordered by the projection of ImagePositionPatient on the normal row x column. On the straight
line through the positions, every position must lie within :func:`tolerance` of its even step, in all
three directions. Two positions that differ by less than :func:`same_place` are one place.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from medgen.io.dicom.frames import Slice
from medgen.io.findings import Finding, Refused

__all__ = ["affine_of", "geometry_findings", "in_order", "line_of", "places_of", "tolerance"]

STEEPEST = 45.0
"""Degrees between the stack and the normal of its slices beyond which it is no stack."""
RELATIVE_TOLERANCE, LEAST_TOLERANCE = 0.02, 0.01
_WHOLE = 0.05


def tolerance(spacing: float) -> float:
    """How far a position may lie from its even step, in mm: 2% of the step, at least 0.01 mm (rounded headers)."""
    return max(RELATIVE_TOLERANCE * spacing, min(LEAST_TOLERANCE, 0.1 * spacing))


def same_place(item: Slice) -> float:
    """Positions nearer than this, in mm, are one place: 2% of a pixel."""
    return 0.02 * min(item.spacing)


def normal_of(item: Slice) -> np.ndarray:
    """Unit normal row x column, LPS."""
    return np.cross(item.orientation[:3], item.orientation[3:])


def in_order(slices: Sequence[Slice]) -> tuple[list[Slice], np.ndarray]:
    """Slices by ascending projection of their position on the normal of the first, and those projections in mm."""
    along = np.array([item.position for item in slices]) @ normal_of(slices[0])
    order = np.argsort(along, kind="stable")
    return [slices[index] for index in order], along[order]


def places_of(slices: Sequence[Slice]) -> np.ndarray:
    """For each slice the number of its place along the normal: equal numbers for repeated positions."""
    along = np.array([item.position for item in slices]) @ normal_of(slices[0])
    order = np.argsort(along, kind="stable")
    new = np.diff(along[order], prepend=along[order[0]]) > same_place(slices[0])
    places = np.empty(len(slices), dtype=np.int64)
    places[order] = np.cumsum(new)
    return places


def line_of(slices: Sequence[Slice]) -> tuple[np.ndarray, np.ndarray]:
    """First position and the vector from each slice to the next, LPS mm, of slices in order at different places.

    Raises:
        Refused: ``SINGLE_SLICE``; ``MISSING_SLICE``: all distances are whole multiples (within 5%) of the smallest and
            some are larger; ``UNEVEN_SLICES``: otherwise beyond the tolerance; ``BAD_GEOMETRY``: sheared by more than
            :data:`STEEPEST`.
    """
    if len(slices) < 2:
        raise Refused("SINGLE_SLICE", f"'{slices[0].header.path.name}' is one slice alone; a volume needs two or more.")
    positions = np.array([item.position for item in slices])
    first, step, off = _line(positions)
    if off.max() > tolerance(float(np.linalg.norm(step))):
        raise _uneven(slices, positions, off)
    angle = math.degrees(math.acos(min(1.0, float(step @ normal_of(slices[0])) / float(np.linalg.norm(step)))))
    if angle > STEEPEST:
        raise Refused(
            "BAD_GEOMETRY",
            f"from '{slices[0].header.path.name}' on, slices lie beside rather than behind each other: {angle:.0f} "
            f"degrees from their normal, more than the {STEEPEST:g} that tilt explains.",
        )
    return first, step


def _line(positions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """First point and step of the even line through positions, and how far each lies from it, in mm.

    The line runs from the first to the last where all lie on it to 1e-4 mm (exact headers), else it is the best fit.
    """
    count = np.arange(len(positions), dtype=np.float64)[:, None]
    first, step = positions[0], (positions[-1] - positions[0]) / (len(positions) - 1)
    off = np.abs(positions - first - count * step).max(axis=1)
    if off.max() > 1e-4:
        centred = count - count.mean()
        step = (centred * (positions - positions.mean(axis=0))).sum(axis=0) / (centred**2).sum()
        first = positions.mean(axis=0) - count.mean() * step
        off = np.abs(positions - first - count * step).max(axis=1)
    return first, step, off


def _uneven(slices: Sequence[Slice], positions: np.ndarray, off: np.ndarray) -> Refused:
    along = positions @ normal_of(slices[0])
    gaps = np.diff(along)
    smallest = float(gaps.min())
    typical = float(np.median(gaps[gaps < 1.5 * smallest]))
    ratios = gaps / typical
    where = int(gaps.argmax())
    names = f"'{slices[where].header.path.name}' and '{slices[where + 1].header.path.name}'"
    whole = np.abs(ratios - np.rint(ratios)) <= _WHOLE * np.maximum(1, np.rint(ratios))
    if whole.all() and ratios.max() > 1.5:
        missing = int(np.rint(ratios).sum()) - len(gaps)
        return Refused(
            "MISSING_SLICE",
            f"{missing} of {len(slices) + missing} slices are missing: {gaps.max():g} mm between {names}, elsewhere "
            f"{typical:g} mm. Copy the series again.",
        )
    if gaps.max() - gaps.min() <= tolerance(typical):
        worst = slices[int(off.argmax())].header.path.name
        return Refused("UNEVEN_SLICES", f"slices are shifted sideways by up to {off.max():g} mm, most in '{worst}'.")
    return Refused(
        "UNEVEN_SLICES",
        f"distances between slices run from {gaps.min():g} to {gaps.max():g} mm (largest between {names}). "
        "Resample the series, or copy it again.",
    )


def affine_of(item: Slice, first: np.ndarray, step: np.ndarray) -> np.ndarray:
    """The affine RAS+ mm of array axes (column, row, slice): its third column is ``step``, sheared or not."""
    affine = np.eye(4)
    affine[:3, 0] = item.orientation[:3] * item.spacing[1]
    affine[:3, 1] = item.orientation[3:] * item.spacing[0]
    affine[:3, 2] = step
    affine[:3, 3] = first
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine


def geometry_findings(slices: Sequence[Slice], step: np.ndarray) -> list[Finding]:
    """What is to be said about the geometry of slices in order: tilt, rounding, tags that disagree.

    Tilt is named where the slices of a stack move sideways by more than 0.1 mm in all and by more than 0.02 degrees.
    A spacing tag disagrees beyond 1%, SliceLocation beyond the tolerance of positions in either direction.
    """
    findings = []
    along = float(step @ normal_of(slices[0]))
    length = float(np.linalg.norm(step))
    sideways = math.sqrt(max(0.0, length**2 - along**2))
    angle = math.degrees(math.atan2(sideways, along))
    tilted = sideways * (len(slices) - 1) > 0.1 and angle > 0.02
    if tilted:
        findings.append(
            Finding(
                "GANTRY_TILT",
                f"slices are sheared by {angle:.2f} degrees; so is the affine. resample_upright mends it.",
            )
        )
    positions = np.array([item.position for item in slices])
    off = float(_line(positions)[2].max())
    if off > max(1e-3, 1e-3 * length):
        findings.append(
            Finding("POSITIONS_ROUNDED", f"positions lie up to {off:.4f} mm from an even grid, which was used.")
        )
    findings += _spacing_disagrees(slices, along, length)
    if slices[0].tile is None:
        findings += _location_disagrees(slices, (along, length, *np.abs(step)))
    return findings


def _spacing_disagrees(slices: Sequence[Slice], along: float, length: float) -> list[Finding]:
    between, thickness = slices[0].numbers(0x00180088), slices[0].numbers(0x00180050)
    name, stated = ("SpacingBetweenSlices", between) if between else ("SliceThickness", thickness)
    if not stated or min(abs(abs(stated[0]) - along), abs(abs(stated[0]) - length)) <= 0.01 * length:
        return []
    return [Finding("SPACING_DISAGREES", f"{name} is {stated[0]:g} mm, the positions are {along:g} mm apart.")]


def _location_disagrees(slices: Sequence[Slice], steps: Sequence[float]) -> list[Finding]:
    """SliceLocation may count along the normal, along the table, or along one axis of the patient; either way."""
    stated = [item.numbers(0x00201041)[:1] for item in slices]
    if not all(stated):
        return []
    offsets = np.array([numbers[0] for numbers in stated]) - stated[0][0]
    count = np.arange(len(slices))
    off = min(np.abs(offsets - sign * step * count).max() for sign in (1, -1) for step in steps if step > 0)
    if off <= max(0.05, 2 * tolerance(max(steps))):
        return []
    return [Finding("SLICE_LOCATION_DISAGREES", f"SliceLocation differs from the positions by up to {off:.3g} mm.")]
