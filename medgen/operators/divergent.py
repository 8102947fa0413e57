"""Projection along rays from a point (CT): fan and cone beam, frames and units as in ``operators.projection``."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from medgen.checks import MedgenError, check_count, check_positive
from medgen.operators.base import Operator
from medgen.operators.projection import Beam, centred, frame, view_angles
from medgen.operators.registry import register_operator

__all__ = ["ConeBeam", "FanBeam"]


def _fan_examples(dims: int) -> list[Operator]:
    size = (7, 6, 3)[:dims]
    return [FanBeam(size, view_angles(5, arc=360), source_mm=20.0, detector_distance_mm=15.0)]


@register_operator("fan_beam", example=_fan_examples)
class FanBeam(Beam):
    """Rays from a point to a flat detector, slice by slice in 3D: the integral from source to detector element.

    The source lies at ``-D e_t``, element ``s`` at ``d e_t + s e_s`` (axes as in :class:`ParallelBeam`).

    Args:
        size: spatial shape of the volume.
        angles: of the views, in degrees; a full turn is 360.
        source_mm: ``D``, from the source to the axis of rotation; more than half the plane's diagonal.
        detector_distance_mm: ``d``, from the axis to the detector.
        spacing: voxel size in mm, one or one for each axis.
        detectors: number of detector elements; by default they cover the circle around the plane.
        detector_mm: distance of their centres; by default the smallest in-plane voxel size, magnified.
        step_mm: between samples of a ray; the smallest in-plane voxel size by default.

    Raises:
        MedgenError: a value that is not above 0, a source within the volume, or no angle.

    Example:
        >>> import torch
        >>> beam = FanBeam((8, 8), view_angles(6, arc=360), source_mm=50.0, detector_distance_mm=50.0)
        >>> beam.forward(torch.ones(1, 1, 8, 8)).shape
        torch.Size([1, 1, 6, 12])

    References:
        Kak and Slaney, chapter 3 (fan beams with equally spaced collinear detectors).
    """

    def __init__(
        self,
        size: Sequence[int],
        angles: Sequence[float],
        source_mm: float,
        detector_distance_mm: float,
        spacing: float | Sequence[float] = 1.0,
        detectors: int | None = None,
        detector_mm: float | None = None,
        step_mm: float | None = None,
    ) -> None:
        super().__init__(size, angles, spacing, step_mm)
        self.source_mm, self.detector_distance_mm = source_mm, detector_distance_mm
        magnification = checked_source(self.caller, source_mm, detector_distance_mm, self._radius)
        self.detector_mm = min(self.spacing[:2]) * magnification if detector_mm is None else detector_mm
        check_positive(self.caller, "detector_mm", self.detector_mm)
        seen = 2 * shadow(self._radius, source_mm, detector_distance_mm)
        self.detectors = math.ceil(seen / self.detector_mm) if detectors is None else detectors
        check_count(self.caller, "detectors", self.detectors)

    def _detector(self) -> tuple[int, ...]:
        return (self.detectors,)

    def _rays(self, angle: Tensor) -> tuple[Tensor, Tensor]:
        s = centred(self.detectors, self.detector_mm)[None, :, None]
        e_s, e_t = (axis[:, None] for axis in frame(angle))
        return nearest(-self.source_mm * e_t, (self.source_mm + self.detector_distance_mm) * e_t + s * e_s)


def _cone_examples(dims: int) -> list[Operator]:
    if dims == 2:
        return []
    return [ConeBeam((6, 5, 4), view_angles(4, arc=360), 20.0, 15.0, spacing=(1.0, 1.0, 1.5), panel=(7, 6))]


@register_operator("cone_beam", example=_cone_examples)
class ConeBeam(Beam):
    """Rays from a point on a circle to a flat panel, in 3D: element ``(s, v)`` lies at ``d e_t + s e_s + v e_z``.

    Args:
        size: spatial shape of the volume, three axes; views turn around the third.
        angles: of the views, in degrees; a full turn is 360.
        source_mm: from the source to the axis of rotation; more than half the volume's diagonal.
        detector_distance_mm: from the axis to the panel.
        spacing: voxel size in mm, one or one for each axis.
        panel: numbers of elements around and along the axis; by default they cover the sphere around the volume.
        detector_mm: distance of their centres; by default the smallest voxel size, magnified.
        step_mm: between samples of a ray; the smallest voxel size by default.

    Raises:
        MedgenError: a value that is not above 0, a source within the volume, no angle, or two axes.

    Example:
        >>> import torch
        >>> beam = ConeBeam((6, 6, 4), view_angles(3, arc=360), 60.0, 40.0, panel=(10, 8))
        >>> beam.forward(torch.ones(1, 1, 6, 6, 4)).shape
        torch.Size([1, 1, 3, 10, 8])

    References:
        Feldkamp, Davis and Kress, "Practical cone-beam algorithm", J. Opt. Soc. Am. A 1 (1984).
    """

    planes = False

    def __init__(
        self,
        size: Sequence[int],
        angles: Sequence[float],
        source_mm: float,
        detector_distance_mm: float,
        spacing: float | Sequence[float] = 1.0,
        panel: Sequence[int] | None = None,
        detector_mm: float | None = None,
        step_mm: float | None = None,
    ) -> None:
        if len(tuple(size)) != 3:
            raise MedgenError(f"{self.caller}: size must have 3 axes. Got {tuple(size)}. Use FanBeam in 2D.")
        super().__init__(size, angles, spacing, step_mm)
        self.source_mm, self.detector_distance_mm = source_mm, detector_distance_mm
        magnification = checked_source(self.caller, source_mm, detector_distance_mm, self._radius)
        self.detector_mm = min(self.spacing) * magnification if detector_mm is None else detector_mm
        check_positive(self.caller, "detector_mm", self.detector_mm)
        wide = math.ceil(2 * shadow(self._radius, source_mm, detector_distance_mm) / self.detector_mm)
        self.panel = (wide, wide) if panel is None else tuple(panel)
        for count in self.panel:
            check_count(self.caller, "panel", count)

    def _detector(self) -> tuple[int, ...]:
        return self.panel

    def _rays(self, angle: Tensor) -> tuple[Tensor, Tensor]:
        s, v = (centred(count, self.detector_mm) for count in self.panel)
        e_s, e_t = (torch.nn.functional.pad(axis, (0, 1))[:, None, None] for axis in frame(angle))
        e_z = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
        across = s[:, None, None] * e_s + v[:, None] * e_z
        return nearest(-self.source_mm * e_t, (self.source_mm + self.detector_distance_mm) * e_t + across)


def nearest(source: Tensor, ray: Tensor) -> tuple[Tensor, Tensor]:
    """The point of each ray that is nearest to the origin, and its unit direction."""
    direction = ray / ray.norm(dim=-1, keepdim=True)
    along = (source * direction).sum(-1, keepdim=True)
    return source - along * direction, direction


def checked_source(caller: str, source_mm: float, detector_mm: float, radius: float) -> float:
    """The magnification, of a source outside the volume."""
    check_positive(caller, "detector_distance_mm", detector_mm)
    check_positive(caller, "source_mm", source_mm)
    if source_mm <= radius:
        raise MedgenError(
            f"{caller}: source_mm must be above {radius:g}, half the volume's diagonal. Got {source_mm}. Move it away."
        )
    return (source_mm + detector_mm) / source_mm


def shadow(radius: float, source_mm: float, detector_mm: float) -> float:
    """Half width of the shadow of a circle on the detector."""
    return (source_mm + detector_mm) * radius / math.sqrt(source_mm**2 - radius**2)
