"""Random diffeomorphic maps and the sampling of volumes through them.

A map is kept as a cubic B-spline over a lattice of a few millimetres (`LatticeMap`) and is read off at any set of
points; one map serves image and label. All operations are element-wise over the points, so that the result of a point
depends neither on the number of threads nor on which other points are asked for: a crop equals the crop of the whole,
bit for bit.

References:
    Arsigny et al., "A log-Euclidean framework for statistics on diffeomorphisms", MICCAI 2006 (scaling and squaring).
    Rueckert et al., "Nonrigid registration using free-form deformations", IEEE TMI 18 (1999) (B-spline lattice).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from medgen.checks import MedgenError, check_choice, check_positive

_B_SPLINE_POWER = 151 / 315  # mean over the phase of the sum of squared cubic B-spline weights


def bspline_weights(phase: float) -> tuple[float, float, float, float]:
    """The four cubic B-spline weights at a phase in [0, 1) between the second and the third coefficient."""
    t = phase
    return (
        (1 - t) ** 3 / 6,
        (3 * t**3 - 6 * t**2 + 4) / 6,
        (-3 * t**3 + 3 * t**2 + 3 * t + 1) / 6,
        t**3 / 6,
    )


def _weighted(parts: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Sum of parts times weights; separate products and sums, so that no fused operation changes a last bit."""
    total = parts[0] * weights[0]
    for part, weight in zip(parts[1:], weights[1:], strict=True):
        total += part * weight
    return total


def upsample(coefficients: Tensor, axis: int, start: int, stop: int, factor: int) -> Tensor:
    """Evaluate a cubic B-spline along one axis at steps ``start .. stop - 1`` of ``1 / factor`` lattice spacings.

    Step ``s`` lies ``s / factor`` lattice spacings after coefficient 1 (coefficient 0 is the margin before it).

    Args:
        coefficients: any shape; ``axis`` holds the lattice.
        axis: non-negative axis number.
        start: first step, at least 0.
        stop: one past the last step.
        factor: steps in a lattice spacing.

    Returns:
        The values, size ``stop - start`` along ``axis``.
    """
    first, last = start // factor, -(-stop // factor)
    taps = [coefficients.narrow(axis, first + tap, last - first) for tap in range(4)]
    phases = [_weighted(taps, bspline_weights(phase / factor)) for phase in range(factor)]
    values = torch.stack(phases, axis + 1).flatten(axis, axis + 1)
    return values.narrow(axis, start - first * factor, stop - start)


def smooth_noise(generator: torch.Generator, shape: Sequence[int], ratios: Sequence[float]) -> Tensor:
    """Gaussian noise of unit variance, smooth over ``ratios`` spacings along each axis.

    Args:
        generator: CPU stream.
        shape: size of the result per axis, after a leading axis of three components.
        ratios: spacing of the random control points along each axis, in units of the result's spacing.

    Returns:
        Noise, shape ``(3, *shape)``, float32.
    """
    counts = [math.ceil((size - 1) / ratio) + 4 for size, ratio in zip(shape, ratios, strict=True)]
    noise = torch.randn(3, *counts, generator=generator)
    for axis, (size, ratio) in enumerate(zip(shape, ratios, strict=True), start=1):
        offset = torch.arange(size, dtype=torch.float64) / ratio
        index = offset.floor()
        columns = [bspline_weights(float(t)) for t in offset - index]
        weights = torch.tensor(columns, dtype=torch.float32).T.reshape(4, *(-1 if a == axis else 1 for a in range(4)))
        taps = [noise.index_select(axis, index.long() + tap) * weights[tap] for tap in range(4)]
        noise = taps[0] + taps[1] + taps[2] + taps[3]
    return noise / _B_SPLINE_POWER ** (len(shape) / 2)


def random_velocity(
    generator: torch.Generator,
    shape: Sequence[int],
    spacing: Sequence[float],
    magnitude_mm: Sequence[float],
    smoothness_mm: Sequence[float],
) -> Tensor:
    """A stationary velocity field that is a sum of random fields of several smoothness lengths.

    Args:
        generator: CPU stream.
        shape: lattice nodes per axis (3).
        spacing: lattice spacing along each axis in mm.
        magnitude_mm: standard deviation of each velocity component at each scale, mm per unit time.
        smoothness_mm: distance between independent control points at each scale, mm.

    Returns:
        Velocity in mm, shape ``(3, *shape)``, float32, components along the lattice axes.

    Raises:
        MedgenError: lengths that differ, or a smoothness that is not positive.
    """
    if len(magnitude_mm) != len(smoothness_mm):
        raise MedgenError(
            f"random_velocity: magnitude_mm has {len(magnitude_mm)} scales and smoothness_mm {len(smoothness_mm)}. "
            "Give one magnitude for each smoothness."
        )
    velocity = torch.zeros(3, *shape)
    for magnitude, smoothness in zip(magnitude_mm, smoothness_mm, strict=True):
        check_positive("random_velocity", "smoothness_mm", smoothness)
        velocity += smooth_noise(generator, shape, [smoothness / step for step in spacing]) * magnitude
    return velocity


def compose(first: Tensor, second: Tensor, spacing: Sequence[float]) -> Tensor:
    """The displacement of ``second`` after ``first``: ``first(x) + second(x + first(x))``, linear between nodes.

    Args:
        first: displacement in mm, ``(3, X, Y, Z)``.
        second: displacement in mm on the same lattice.
        spacing: lattice spacing along each axis in mm.

    Returns:
        The displacement of the composed map, same shape; beyond the lattice the border's value holds.
    """
    axes = [torch.arange(size, dtype=torch.float32) for size in first.shape[1:]]
    nodes = torch.meshgrid(*axes, indexing="ij")
    scaled = [
        (node + part / step) * (2.0 / (size - 1)) - 1.0
        for node, part, step, size in zip(nodes, first, spacing, first.shape[1:], strict=True)
    ]
    points = torch.stack(scaled[::-1], -1)[None]
    moved = F.grid_sample(second[None], points, mode="bilinear", padding_mode="border", align_corners=True)
    return first + moved[0]


def integrate_velocity(velocity: Tensor, spacing: Sequence[float], steps: int = 6) -> Tensor:
    """The exponential of a stationary velocity field by scaling and squaring.

    Args:
        velocity: ``(3, X, Y, Z)`` in mm per unit time.
        spacing: lattice spacing along each axis in mm.
        steps: number of squarings; the first step is ``velocity / 2 ** steps``.

    Returns:
        Displacement in mm at unit time, same shape.

    References:
        Arsigny et al. 2006, section 3.2.
    """
    displacement = velocity / 2.0**steps
    for _ in range(steps):
        displacement = compose(displacement, displacement, spacing)
    return displacement


def jacobian_determinant(coordinates: Tensor, spacing: Sequence[float]) -> Tensor:
    """Determinant of the derivative of a map, by forward differences between neighbouring points.

    Args:
        coordinates: mapped position of each grid point in mm, ``(3, X, Y, Z)``.
        spacing: distance of the grid points along each axis in mm.

    Returns:
        Determinant, shape ``(X - 1, Y - 1, Z - 1)``; 1 for the identity, positive where the map keeps orientation.
    """
    x, y, z = (shape - 1 for shape in coordinates.shape[1:])
    a, b, c = (torch.diff(coordinates.double(), dim=axis + 1)[:, :x, :y, :z] / spacing[axis] for axis in range(3))
    return (a * torch.linalg.cross(b, c, dim=0)).sum(0)


@dataclass(frozen=True)
class AffineLimits:
    """Ranges of the random affine map; each parameter is drawn uniformly within plus and minus its limit.

    Attributes:
        rotation_degrees: rotation about each axis.
        scaling: relative size along each axis.
        common_scaling: relative size of the whole head.
        shear: off-diagonal shear.
        shift_mm: translation along each axis.
    """

    rotation_degrees: float = 10.0
    scaling: float = 0.06
    common_scaling: float = 0.06
    shear: float = 0.04
    shift_mm: float = 4.0


def random_affine(
    generator: torch.Generator, limits: AffineLimits | None = None
) -> tuple[Tensor, dict[str, list[float]]]:
    """A random affine map about the origin: rotation x shear x scaling, then shift.

    Args:
        generator: CPU stream.
        limits: ranges.

    Returns:
        The 4 x 4 float64 matrix (RAS+ mm to RAS+ mm) and the parameters drawn.
    """
    limits = limits or AffineLimits()
    draw = torch.rand(13, generator=generator, dtype=torch.float64) * 2 - 1
    angles = draw[0:3] * math.radians(limits.rotation_degrees)
    scales = torch.exp(draw[3:6] * limits.scaling + draw[12] * limits.common_scaling)
    shears, shift = draw[6:9] * limits.shear, draw[9:12] * limits.shift_mm
    shear = torch.eye(3, dtype=torch.float64)
    shear[0, 1], shear[0, 2], shear[1, 2] = shears
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[:3, :3] = _rotation(angles) @ shear @ torch.diag(scales)
    matrix[:3, 3] = shift
    named = {"rotation_degrees": torch.rad2deg(angles), "scaling": scales, "shear": shears, "shift_mm": shift}
    return matrix, {name: [round(float(v), 6) for v in values] for name, values in named.items()}


def _rotation(angles: Tensor) -> Tensor:
    """Rotation about x, then y, then z; angles in radians."""
    result = torch.eye(3, dtype=torch.float64)
    for axis, angle in enumerate(angles):
        i, j = [(1, 2), (2, 0), (0, 1)][axis]
        turn = torch.eye(3, dtype=torch.float64)
        turn[i, i] = turn[j, j] = torch.cos(angle)
        turn[i, j], turn[j, i] = -torch.sin(angle), torch.sin(angle)
        result = turn @ result
    return result


@dataclass(frozen=True)
class LatticeMap:
    """A map from the points of a regular grid to positions in another volume, as a cubic B-spline.

    Attributes:
        coefficients: positions in voxels of the other volume, ``(3, nx, ny, nz)`` float32.
        factor: grid steps in a lattice spacing.
        shape: grid points along each axis.
    """

    coefficients: Tensor
    factor: int
    shape: tuple[int, int, int]

    def points(self, start: Sequence[int], stop: Sequence[int]) -> Tensor:
        """Positions of the grid points ``start <= index < stop``, ``(3, *size)`` float32 in voxels."""
        values = self.coefficients
        for axis in range(3):
            values = upsample(values, axis + 1, start[axis], stop[axis], self.factor)
        return values


def lattice_shape(shape: Sequence[int], factor: int) -> tuple[int, int, int]:
    """Nodes needed for a grid of ``shape`` points with ``factor`` grid steps between nodes, margins included."""
    x, y, z = (-(-size // factor) + 3 for size in shape)
    return x, y, z


def sample_displacement(
    generator: torch.Generator,
    shape: Sequence[int],
    spacing: Sequence[float],
    magnitude_mm: Sequence[float],
    smoothness_mm: Sequence[float],
    steps: int = 6,
) -> Tensor:
    """A random diffeomorphic displacement on a lattice: a random velocity, integrated.

    Args and Returns: as `random_velocity` and `integrate_velocity`.
    """
    velocity = random_velocity(generator, shape, spacing, magnitude_mm, smoothness_mm)
    return integrate_velocity(velocity, spacing, steps)


def warp(volume: Tensor, coordinates: Tensor, mode: str = "bilinear") -> Tensor:
    """Read a volume at positions given in its voxels; zero outside.

    Args:
        volume: ``(X, Y, Z)`` float32.
        coordinates: ``(3, *points)`` with three point axes, in voxels.
        mode: "bilinear" (trilinear) or "nearest".

    Returns:
        Values, shape ``points``.
    """
    check_choice("warp", "mode", mode, ("bilinear", "nearest"))
    points = torch.empty_like(coordinates)
    for axis, size in enumerate(volume.shape):  # grid_sample wants the last axis first, in -1..1
        torch.mul(coordinates[axis], 2.0 / (size - 1), out=points[2 - axis]).sub_(1.0)
    grid = points.permute(1, 2, 3, 0)[None]
    return F.grid_sample(volume[None, None], grid, mode=mode, padding_mode="zeros", align_corners=True)[0, 0]
