"""Line integrals along straight rays: linear sampling of the volume, and the exact transpose.

``y = step * sum_t x(p + t d)``: the volume is read by (bi- or tri-)linear interpolation at points along each ray, with
voxels of 0 around it. The transpose spreads every value with the same weights.

References:
    Joseph, IEEE TMI 1 (1982), for interpolation along rays; Natterer, "The mathematics of computerized tomography".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["project", "unproject"]

_VALUES_PER_CHUNK = 4_000_000

Rays = Callable[[int, int], tuple[Tensor, Tensor]]
"""First view, one past the last -> points and directions of these rays in voxels, ``(views, *detector, d)``,
float64, direction per mm."""


def project(x: Tensor, rays: Rays, views: int, per_view: int, t: Tensor) -> Tensor:
    """Integrals of all rays.

    Args:
        x: real ``(N, *size)``, ``d`` spatial axes.
        rays: see ``Rays``.
        views: their number.
        per_view: rays in a view, for the size of the chunks.
        t: where a ray is sampled, in mm from its point, equally spaced, ``(T,)``.

    Returns:
        ``(N, views, *detector)``, the volume's unit times mm.
    """
    parts = []
    for start, stop in _chunks(views, per_view * len(t) * len(x)):
        points, directions = rays(start, stop)
        sampled = F.grid_sample(x[None], _grid(points, directions, t, x), align_corners=False)[0]
        parts.append(sampled.reshape(len(x), *points.shape[:-1], len(t)).sum(-1) * _step(t))
    return torch.cat(parts, 1)


def unproject(y: Tensor, size: Sequence[int], rays: Rays, per_view: int, t: Tensor) -> Tensor:
    """The transpose of :func:`project`.

    Args:
        y: real ``(N, views, *detector)``.
        size: of the volume.
        rays: see ``Rays``.
        per_view: see :func:`project`.
        t: see :func:`project`.

    Returns:
        ``(N, *size)``.
    """
    total = y.new_zeros(len(y), *size)
    for start, stop in _chunks(y.shape[1], per_view * len(t) * len(y)):
        grid = _grid(*rays(start, stop), t, total)
        values = (y[:, start:stop, ..., None] * _step(t)).expand(*y[:, start:stop].shape, len(t))
        with torch.inference_mode(False), torch.enable_grad():
            volume = torch.zeros_like(total, requires_grad=True)
            sampled = F.grid_sample(volume[None], grid.clone(), align_corners=False)[0]
            (part,) = torch.autograd.grad(sampled, volume, values.reshape(sampled.shape).clone())
        total += part
    return total


def _grid(points: Tensor, directions: Tensor, t: Tensor, like: Tensor) -> Tensor:
    """All samples as ``grid_sample`` has them: -1..1 from edge to edge, axes reversed, ``(1, rays ..., T, d)``."""
    n = torch.tensor(like.shape[:0:-1], dtype=torch.float64)
    base = ((2 * points.flip(-1) + 1) / n - 1).reshape(-1, 1, len(n)).to(like)
    slope = (2 * directions.flip(-1) / n).reshape(-1, 1, len(n)).to(like)
    grid = torch.addcmul(base, t[:, None].to(like), slope)[None]
    return grid if like.ndim == 3 else grid[:, None]


def _step(t: Tensor) -> float:
    """Distance of neighbouring samples."""
    return float(t[1] - t[0])


def _chunks(views: int, values_per_view: int) -> Iterator[tuple[int, int]]:
    """Ranges of views with a bounded number of sampled values."""
    count = max(1, _VALUES_PER_CHUNK // max(values_per_view, 1))
    for start in range(0, views, count):
        yield start, min(start + count, views)
