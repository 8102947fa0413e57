"""Projection along parallel rays (CT), with all views, few or a limited arc; and what all beams share.

Views turn around the third axis. Lengths are in mm and the origin is the middle of the volume; at angle 0 the rays of a
parallel beam run along axis 0 and the detector lies along axis 1. A measurement is the volume's unit times mm: line
integrals of the attenuation, if the volume is attenuation per mm.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from medgen.checks import MedgenError, check_count, check_positive
from medgen.operators.base import Operator, linear_map, per_axis
from medgen.operators.filtered import filtered_back_projection
from medgen.operators.rays import project, unproject
from medgen.operators.registry import register_operator

__all__ = ["Beam", "ParallelBeam", "view_angles"]


def view_angles(views: int, arc: float = 180.0, start: float = 0.0) -> tuple[float, ...]:
    """Equal steps over an arc, its end left out: all views, few (sparse-view) or of a smaller arc (limited-angle).

    Args:
        views: their number.
        arc: in degrees; 180 is complete for parallel beams, 360 for fan and cone beams.
        start: of the first view, in degrees.

    Example:
        >>> view_angles(4), view_angles(3, arc=90, start=-45)
        ((0.0, 45.0, 90.0, 135.0), (-45.0, -15.0, 15.0))
    """
    check_count("view_angles", "views", views)
    check_positive("view_angles", "arc", arc)
    return tuple(start + arc * k / views for k in range(views))


class Beam(Operator):
    """What the geometries share; a subclass says where the points of a ray lie."""

    planes = True  # slice by slice, in the plane of the first two axes

    def __init__(
        self,
        size: Sequence[int],
        angles: Sequence[float],
        spacing: float | Sequence[float],
        step_mm: float | None,
    ) -> None:
        super().__init__(size)
        self.spacing = per_axis(self.caller, "spacing", spacing, len(self.size))
        self.angles = tuple(float(angle) for angle in angles)
        if not self.angles or not all(map(math.isfinite, self.angles)):
            raise MedgenError(f"{self.caller}: angles must be finite, at least one. Got {angles}. Use view_angles.")
        axes = 2 if self.planes else 3
        self.step_mm = min(self.spacing[:axes]) if step_mm is None else step_mm
        check_positive(self.caller, "step_mm", self.step_mm)
        self._radius = math.hypot(*(n * h / 2 for n, h in zip(self.size[:axes], self.spacing, strict=False)))

    def _detector(self) -> tuple[int, ...]:
        """Shape of the detector."""
        raise NotImplementedError

    def _rays(self, angle: Tensor) -> tuple[Tensor, Tensor]:
        """Base points in mm and unit directions, each ``(views, *detector, d)``, for angles in radians ``(views,)``.

        The base point is the one nearest to the origin.
        """
        raise NotImplementedError

    def _in_voxels(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """See ``medgen.operators.rays.Rays``."""
        base, direction = self._rays(torch.tensor(self.angles[start:stop], dtype=torch.float64).deg2rad())
        dims = base.shape[-1]
        middle = torch.tensor([(n - 1) / 2 for n in self.size[:dims]], dtype=torch.float64)
        spacing = torch.tensor(self.spacing[:dims], dtype=torch.float64)
        return base / spacing + middle, direction / spacing

    @property
    def _samples(self) -> Tensor:
        """Where each ray is sampled, in mm from its base point."""
        count = max(2, math.ceil(2 * self._radius / self.step_mm))
        return (torch.arange(count, dtype=torch.float64) + 0.5 - count / 2) * self.step_mm

    @property
    def _per_view(self) -> int:
        return math.prod(self._detector())

    @property
    def _slices(self) -> tuple[int, ...]:
        return self.size[2:] if self.planes else ()

    def measurement_shape(self, channels: int) -> tuple[int, ...]:
        """``(C, views, *detector)``, with the slices last where they are projected one by one."""
        return (channels, len(self.angles), *self._detector(), *self._slices)

    def _forward(self, x: Tensor) -> Tensor:
        return linear_map(x, self._there, self._back)

    def _adjoint(self, y: Tensor) -> Tensor:
        return linear_map(y, self._back, self._there)

    def _there(self, x: Tensor) -> Tensor:
        if x.is_complex():
            return torch.complex(self._there(x.real), self._there(x.imag))
        rows = (x.movedim(-1, 2) if self._slices else x).reshape(-1, *self.size[: len(self.size) - len(self._slices)])
        y = project(rows, self._in_voxels, len(self.angles), self._per_view, self._samples)
        return self._split(y, len(x))

    def _back(self, y: Tensor) -> Tensor:
        if y.is_complex():
            return torch.complex(self._back(y.real), self._back(y.imag))
        shape = self.measurement_shape(1)[1:]
        rows = (y.movedim(-1, 2) if self._slices else y).reshape(-1, *shape[: len(shape) - len(self._slices)])
        size = self.size[: len(self.size) - len(self._slices)]
        return self._split(unproject(rows, size, self._in_voxels, self._per_view, self._samples), len(y))

    def _split(self, rows: Tensor, batch: int) -> Tensor:
        """Rows back to ``(B, C, ..., slices)``."""
        if not self._slices:
            return rows.unflatten(0, (batch, -1))
        return rows.unflatten(0, (batch, -1, *self._slices)).movedim(2, -1)


def _parallel_examples(dims: int) -> list[Operator]:
    size = (7, 6, 3)[:dims]
    full = ParallelBeam(size, view_angles(6))
    limited = ParallelBeam(size, view_angles(4, arc=100, start=20), detectors=7, spacing=(1.0, 1.5, 2.0)[:dims])
    return [full, limited]


@register_operator("parallel_beam", example=_parallel_examples)
class ParallelBeam(Beam):
    """The Radon transform: ``y(theta, s) = int x(s e_s + t e_t) dt``, slice by slice in 3D.

    ``e_t = (cos theta, sin theta)`` and ``e_s = (-sin theta, cos theta)`` in the first two axes; the views of
    ``skimage.transform.radon`` have these angles.

    Args:
        size: spatial shape of the volume.
        angles: of the views, in degrees (see :func:`view_angles`).
        spacing: voxel size in mm, one or one for each axis.
        detectors: number of detector elements; by default they cover the diagonal.
        detector_mm: distance of their centres; the smallest in-plane voxel size by default.
        step_mm: between samples of a ray; the smallest in-plane voxel size by default.

    Raises:
        MedgenError: a value that is not above 0, or no angle.

    Example:
        >>> import torch
        >>> beam = ParallelBeam((9, 9), view_angles(4))
        >>> y = beam.forward(torch.ones(1, 1, 9, 9))
        >>> y.shape, [round(value, 2) for value in y[0, 0, 0, 5:8].tolist()]
        (torch.Size([1, 1, 4, 13]), [9.0, 9.0, 9.0])

    References:
        Kak and Slaney, "Principles of computerized tomographic imaging", chapter 3, section 3.1.
    """

    def __init__(
        self,
        size: Sequence[int],
        angles: Sequence[float],
        spacing: float | Sequence[float] = 1.0,
        detectors: int | None = None,
        detector_mm: float | None = None,
        step_mm: float | None = None,
    ) -> None:
        super().__init__(size, angles, spacing, step_mm)
        self.detector_mm = min(self.spacing[:2]) if detector_mm is None else detector_mm
        check_positive(self.caller, "detector_mm", self.detector_mm)
        self.detectors = math.ceil(2 * self._radius / self.detector_mm) if detectors is None else detectors
        check_count(self.caller, "detectors", self.detectors)

    def to_image(self, y: Tensor) -> Tensor:
        """Filtered back-projection, in the volume's unit.

        Args:
            y: ``(B, *measurement_shape(C))``.

        Returns:
            ``(B, C, *size)``.
        """
        self._check_measurement(y)
        voxel = self.spacing[0] * self.spacing[1]
        return filtered_back_projection(y, self.adjoint, self.angles, self.detector_mm, voxel)

    def _detector(self) -> tuple[int, ...]:
        return (self.detectors,)

    def _rays(self, angle: Tensor) -> tuple[Tensor, Tensor]:
        s = centred(self.detectors, self.detector_mm)[None, :, None]
        e_s, e_t = frame(angle)
        return s * e_s[:, None], e_t[:, None].expand(-1, self.detectors, -1)


def frame(angle: Tensor) -> tuple[Tensor, Tensor]:
    """``e_s`` and ``e_t`` of each view, ``(views, 2)``."""
    cos, sin = torch.cos(angle), torch.sin(angle)
    return torch.stack([-sin, cos], -1), torch.stack([cos, sin], -1)


def centred(count: int, step: float) -> Tensor:
    """Positions around 0, float64."""
    return (torch.arange(count, dtype=torch.float64) - (count - 1) / 2) * step
