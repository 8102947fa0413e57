"""Patches of a scan that is turned, stretched and bent at random: other heads of the same person, nearly."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["warped_patch"]

KNOT_MM = 32.0
DEGREES_PER_MM = 2.0
STRETCH_PER_MM = 0.02


def warped_patch(
    volume: Tensor, patch: Sequence[int], spacing: Sequence[float], bend_mm: float, stream: torch.Generator
) -> Tensor:
    """A random patch ``(1, *patch)``, 0 where it leaves the volume; linear interpolation.

    Displacements are normal at knots ``KNOT_MM`` apart, of deviation ``bend_mm / 2``; angles and the logarithms of
    stretches are uniform, at most ``DEGREES_PER_MM`` and ``STRETCH_PER_MM`` times ``bend_mm``.

    Args:
        volume: ``(1, X, Y, Z)``.
        patch: voxels per axis.
        spacing: mm per axis, of both.
        bend_mm: how much.
        stream: of the draws.
    """
    draws = (2 * torch.rand(9, generator=stream) - 1).tolist()
    step = torch.tensor(spacing)
    extents = [(n - 1) * s for n, s in zip(patch, spacing, strict=True)]
    axes = [torch.linspace(-e / 2, e / 2, n) for e, n in zip(extents, patch, strict=True)]
    place = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1) @ _matrix(draws[:6], bend_mm).T
    knots = [math.ceil(e / KNOT_MM) + 2 for e in extents]
    bend = torch.randn(1, 3, *knots, generator=stream) * (bend_mm / 2)
    place = place + F.interpolate(bend, size=tuple(patch), mode="trilinear", align_corners=True)[0].movedim(0, -1)
    size = torch.tensor(volume.shape[1:])
    room = (size - torch.tensor(patch)).clamp(min=0) / 2  # how far the patch's centre lies from the volume's
    place = place / step + torch.tensor(draws[6:]) * room
    seen = (place / ((size - 1).clamp(min=1) / 2)).flip(-1)
    return F.grid_sample(volume[None].float(), seen[None], mode="bilinear", padding_mode="zeros", align_corners=True)[0]


def _matrix(draws: Sequence[float], bend_mm: float) -> Tensor:
    """Rotation about each axis, after a stretch along each."""
    matrix = torch.diag(torch.tensor(draws[3:]).mul(STRETCH_PER_MM * bend_mm).exp())
    for (i, j), draw in zip(((0, 1), (0, 2), (1, 2)), draws[:3], strict=True):
        angle, turn = math.radians(DEGREES_PER_MM * bend_mm * draw), torch.eye(3)
        turn[i, i] = turn[j, j] = math.cos(angle)
        turn[i, j], turn[j, i] = -math.sin(angle), math.sin(angle)
        matrix = turn @ matrix
    return matrix
