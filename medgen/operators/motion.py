"""Rigid motion during an MR acquisition: every line of k-space belongs to a pose of the head.

Rotations and translations are unitary here (Fourier phases and shears), so that nothing is lost but by the mixing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from medgen.checks import MedgenError, check_positive
from medgen.operators.base import Operator, checked_axis, per_axis
from medgen.operators.fourier import fft, frequencies, ifft
from medgen.operators.registry import register_operator

__all__ = ["RigidMotion", "draw_motion"]

_PLANES = {2: ((0, 1),), 3: ((1, 2), (0, 2), (0, 1))}
_LARGEST_DEG = 45.0


def _examples(dims: int) -> list[Operator]:
    size = (7, 6, 4)[:dims]
    drawn = draw_motion(size, torch.Generator().manual_seed(0), events=2, spacing=(1.0, 1.5, 3.0)[:dims])
    still = RigidMotion(size, [[0.0] * dims], [[0.0] * len(_PLANES[dims])], [0] * 6, axis=1)
    return [drawn, still]


@register_operator("rigid_motion", example=_examples)
class RigidMotion(Operator):
    """K-space lines of different poses: ``y = F* sum_p M_p F T_p x``, an image with ghosts and blur.

    ``M_p`` keeps the lines of pose ``p``, ``F`` is the unitary Fourier transform along the phase-encoding axis and
    ``T_p`` the rigid motion: rotations about the middle of the volume, in 3D about the first, second and third axis in
    this order (positive: the first of the other two axes turns towards the second), then a translation. A rotation by
    ``theta`` is three shears, ``-tan(theta / 2)``, ``sin(theta)``, ``-tan(theta / 2)``; shears and translations are
    phases in Fourier space. They are unitary and real (the Nyquist frequency stays where it is), so
    ``A* y = sum_p T_p* F* M_p F y``. What leaves the volume enters on the other side.

    Args:
        size: spatial shape of the volume.
        translations_mm: of each pose, one entry for each axis.
        rotations_deg: of each pose, one angle in 2D, three in 3D, at most 45 degrees.
        poses: the pose of each line along the axis, from the most negative frequency on, 0 in the middle.
        axis: phase-encoding axis whose lines are acquired one after the other.
        spacing: voxel size in mm, one or one for each axis.

    Raises:
        MedgenError: numbers that do not fit, or an angle above 45 degrees.

    Example:
        >>> import torch
        >>> motion = RigidMotion((8, 8), [[0, 0], [2, 0]], [[0], [0]], poses=[0] * 4 + [1] * 4)
        >>> x = torch.zeros(1, 1, 8, 8)
        >>> x[..., 2:4, 2:4] = 1
        >>> y = motion.forward(x)
        >>> y.dtype, bool(torch.isclose(y[0, 0].sum().real, x.sum()))
        (torch.complex64, True)

    References:
        Batchelor et al., "Matrix description of general motion correction applied to multishot images", Magn. Reson.
        Med. 54 (2005); Larkin, Oldfield and Klemm, "Fast Fourier method for the accurate rotation of sampled images",
        Optics Communications 139 (1997) (three shears); Cordero-Grande et al., IEEE TCI 2 (2016).
    """

    domain = "complex"

    def __init__(
        self,
        size: Sequence[int],
        translations_mm: Sequence[Sequence[float]],
        rotations_deg: Sequence[Sequence[float]],
        poses: Sequence[int],
        axis: int = 0,
        spacing: float | Sequence[float] = 1.0,
    ) -> None:
        super().__init__(size)
        dims = len(self.size)
        self.spacing = per_axis(self.caller, "spacing", spacing, dims)
        self.axis = checked_axis(self.caller, axis, dims)
        self.translations_mm = _rows(self.caller, "translations_mm", translations_mm, dims)
        self.rotations_deg = _rows(self.caller, "rotations_deg", rotations_deg, len(_PLANES[dims]))
        self.poses = tuple(int(pose) for pose in poses)
        count = len(self.translations_mm)
        fits = len(self.rotations_deg) == count and len(self.poses) == self.size[self.axis]
        if not fits or any(not 0 <= pose < count for pose in self.poses):
            raise MedgenError(
                f"{self.caller}: rotations_deg must have {count} rows as translations_mm, and poses "
                f"{self.size[self.axis]} entries in 0..{count - 1}. Got {len(self.rotations_deg)} rows and "
                f"{self.poses}. Give one pose for each line."
            )
        if any(abs(angle) > _LARGEST_DEG for row in self.rotations_deg for angle in row):
            raise MedgenError(
                f"{self.caller}: rotations_deg must lie in -45..45. Got {self.rotations_deg}. Larger turns leave the "
                "field of view."
            )

    def _forward(self, x: Tensor) -> Tensor:
        x = x.to(x.dtype.to_complex())
        total = torch.zeros_like(x)
        for pose in sorted(set(self.poses)):
            total = total + fft(self._moved(x, pose), (self.axis,)) * self._lines(pose, x)
        return ifft(total, (self.axis,))

    def _adjoint(self, y: Tensor) -> Tensor:
        spectrum = fft(y, (self.axis,))
        total = torch.zeros_like(spectrum)
        for pose in sorted(set(self.poses)):
            total = total + self._moved(ifft(spectrum * self._lines(pose, y), (self.axis,)), pose, back=True)
        return total

    def to_image(self, y: Tensor) -> Tensor:
        """The image as reconstructed without a thought of motion: ``y``."""
        self._check_measurement(y)
        return y

    def _lines(self, pose: int, like: Tensor) -> Tensor:
        """1 at the lines of a pose, broadcast over a volume."""
        lines = torch.tensor([float(p == pose) for p in self.poses], dtype=like.real.dtype, device=like.device)
        return lines.reshape([-1 if axis == self.axis else 1 for axis in range(len(self.size))])

    def _moved(self, x: Tensor, pose: int, back: bool = False) -> Tensor:
        """``T_p x``, or ``T_p* x``."""
        steps = list(self._shifts(pose))
        for axis, shift in reversed(steps) if back else steps:
            x = _shifted(x, axis, -shift if back else shift)
        return x

    def _shifts(self, pose: int) -> list[tuple[int, Tensor]]:
        """Shears and translations of a pose: axis, and the shift along it in voxels, broadcast over a volume."""
        steps = []
        for (a, b), degrees in zip(_PLANES[len(self.size)], self.rotations_deg[pose], strict=True):
            angle = math.radians(degrees)
            if angle:
                half, whole = -math.tan(angle / 2), math.sin(angle)
                steps += [self._shear(a, b, half), self._shear(b, a, whole), self._shear(a, b, half)]
        for axis, mm in enumerate(self.translations_mm[pose]):
            if mm:
                steps.append((axis, torch.full([1] * len(self.size), mm / self.spacing[axis], dtype=torch.float64)))
        return steps

    def _shear(self, along: int, by: int, factor: float) -> tuple[int, Tensor]:
        """A shift along one axis that grows with the position along another."""
        n = self.size[by]
        place = (torch.arange(n, dtype=torch.float64) - (n - 1) / 2) * self.spacing[by]
        shape = [-1 if axis == by else 1 for axis in range(len(self.size))]
        return along, (factor / self.spacing[along] * place).reshape(shape)


def draw_motion(
    size: Sequence[int],
    generator: torch.Generator,
    *,
    events: int = 4,
    translation_mm: float = 2.0,
    rotation_deg: float = 2.0,
    axis: int = 0,
    spacing: float | Sequence[float] = 1.0,
) -> RigidMotion:
    """A head that moves at some random moments of the scan and stays there.

    Translations and angles of each pose are normal. The lines are acquired in order; the pose at the middle of k-space
    is the reference, so that the image stays where it is.

    Args:
        size: spatial shape of the volume.
        generator: CPU stream; it is advanced.
        events: number of moves.
        translation_mm: standard deviation of each component.
        rotation_deg: standard deviation of each angle.
        axis: phase-encoding axis.
        spacing: voxel size in mm.

    Example:
        >>> motion = draw_motion((8, 8), torch.Generator().manual_seed(1), events=2)
        >>> motion.poses, motion.translations_mm[motion.poses[4]]
        ((0, 1, 1, 1, 1, 1, 1, 2), (0.0, 0.0))
    """
    dims, n = len(tuple(size)), tuple(size)[axis]
    for name, value in (("translation_mm", translation_mm), ("rotation_deg", rotation_deg)):
        if value:
            check_positive("draw_motion", name, value)
    starts = sorted((torch.randperm(max(n - 1, 1), generator=generator)[:events] + 1).tolist())
    poses = [sum(start <= line for start in starts) for line in range(n)]
    moves = torch.randn(len(starts) + 1, dims, generator=generator, dtype=torch.float64) * translation_mm
    turns = torch.randn(len(starts) + 1, len(_PLANES[dims]), generator=generator, dtype=torch.float64) * rotation_deg
    moves[poses[n // 2]], turns[poses[n // 2]] = 0, 0
    turns = turns.clamp(-_LARGEST_DEG, _LARGEST_DEG)
    return RigidMotion(size, moves.tolist(), turns.tolist(), poses, axis, spacing)


def _shifted(x: Tensor, axis: int, shift: Tensor) -> Tensor:
    """A complex volume shifted along an axis by a number of voxels for each line; unitary, real stays real."""
    n = x.shape[axis + 2]
    frequency = torch.fft.ifftshift(frequencies(n))
    if n % 2 == 0:
        frequency[n // 2] = 0
    turn = -2 * math.pi * frequency.reshape([-1 if a == axis else 1 for a in range(shift.ndim)]) * shift
    phase = torch.polar(torch.ones_like(turn), turn).to(x.device, x.dtype)
    return torch.fft.ifft(torch.fft.fft(x, dim=axis + 2) * phase, dim=axis + 2)


def _rows(caller: str, argument: str, rows: Sequence[Sequence[float]], entries: int) -> tuple[tuple[float, ...], ...]:
    """Rows of finite numbers."""
    made = tuple(tuple(float(value) for value in row) for row in rows)
    if not made or any(len(row) != entries or not all(map(math.isfinite, row)) for row in made):
        raise MedgenError(
            f"{caller}: {argument} must have rows of {entries} finite numbers. Got {made}. Give a row for each pose."
        )
    return made
