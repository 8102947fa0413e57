"""Small lesions planted into training images, so that restorers do not take real ones for noise."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["planted"]

MOST = 4
DIAMETER_MM = (3.0, 12.0)
CONTRAST = (0.1, 0.7)
LONGER = 0.35  # |ln| of an axis over the diameter
EDGE_MM = (0.3, 1.5)
TRIES = 10


def planted(patch: Tensor, spacing: Sequence[float], shown: float, stream: torch.Generator) -> Tensor:
    """A copy with one to four ellipsoids, brighter or darker than what was there by a drawn share of it.

    Centres lie where something is shown. Diameters, contrasts and the width of edges are drawn from ``DIAMETER_MM``,
    ``CONTRAST`` (evenly in the logarithm, either sign) and ``EDGE_MM``.

    Args:
        patch: ``(1, *spatial)``, two or three axes, in the model's unit.
        spacing: mm per axis.
        shown: voxels above it may be a centre.
        stream: of the draws.
    """
    patch, size = patch.clone(), patch.shape[1:]
    for _ in range(1 + int(torch.randint(MOST, (), generator=stream))):
        centre = _centre(patch, shown, stream)
        draws = torch.rand(4 + len(size), generator=stream).tolist()
        if centre is None:
            continue
        diameter = DIAMETER_MM[0] * (DIAMETER_MM[1] / DIAMETER_MM[0]) ** draws[0]
        contrast = CONTRAST[0] * (CONTRAST[1] / CONTRAST[0]) ** draws[1] * (1 if draws[2] < 0.5 else -1)
        edge = EDGE_MM[0] + (EDGE_MM[1] - EDGE_MM[0]) * draws[3]
        radii = [diameter / 2 * math.exp(LONGER * (2 * draw - 1)) for draw in draws[4:]]
        window, inside = _ellipsoid(centre, radii, edge, size, spacing)
        patch[window] *= 1 + contrast * inside
    return patch


def _centre(patch: Tensor, shown: float, stream: torch.Generator) -> list[int] | None:
    """A random voxel that shows something; None if none is found."""
    for _ in range(TRIES):
        place = [int(torch.randint(n, (), generator=stream)) for n in patch.shape[1:]]
        if float(patch[(0, *place)]) > shown:
            return place
    return None


def _ellipsoid(
    centre: Sequence[int], radii: Sequence[float], edge: float, size: Sequence[int], spacing: Sequence[float]
) -> tuple[tuple[slice, ...], Tensor]:
    """The window around an ellipsoid and how much of it is inside ``(*window)``, 1 within and 0 without."""
    reach = [math.ceil((radius + 3 * edge) / step) for radius, step in zip(radii, spacing, strict=True)]
    sides = [slice(max(0, c - r), min(n, c + r + 1)) for c, r, n in zip(centre, reach, size, strict=True)]
    square = torch.zeros(())
    for axis, (side, c, radius, step) in enumerate(zip(sides, centre, radii, spacing, strict=True)):
        away = (torch.arange(side.start, side.stop) - c) * (step / radius)
        square = square + away.square().reshape(-1, *[1] * (len(sides) - 1 - axis))
    depth = (1 - square.sqrt()) * min(radii)  # mm inside the surface, about
    return (slice(None), *sides), torch.sigmoid(depth * (4 / edge))
