"""What is drawn anew for each training item: motion, shading, patches and holes; 2D and 3D."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

if TYPE_CHECKING:
    from medgen.trainers.config import Augmentation

DRAWS = 16
SHADING = 10
LEAST_FOREGROUND = 0.25
TRIES = 10


def random_window(size: Sequence[int], patch: Sequence[int], stream: torch.Generator) -> tuple[slice, ...]:
    """A random patch of a ``(C, *size)`` array, uniform over places."""
    starts = [int(torch.randint(n - min(p, n) + 1, (), generator=stream)) for n, p in zip(size, patch, strict=True)]
    return (slice(None), *(slice(s, s + p) for s, p in zip(starts, patch, strict=True)))


def foreground_window(shown: Tensor, patch: Sequence[int], stream: torch.Generator) -> tuple[slice, ...]:
    """A random patch that shows the subject: the first of ``TRIES`` draws with ``LEAST_FOREGROUND`` of it foreground,
    or else the one with most.

    Args:
        shown: ``(1, *size)`` bool.
        patch: voxels per axis.
        stream: of the draws.
    """
    best, most = None, -1.0
    for _ in range(TRIES):
        window = random_window(shown.shape[1:], patch, stream)
        share = float(shown[window].float().mean())
        if share > most:
            best, most = window, share
        if share >= LEAST_FOREGROUND:
            break
    return best or random_window(shown.shape[1:], patch, stream)


def moved(
    image: Tensor, label: Tensor, spacing: Sequence[float], limits: Augmentation, draws: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """Rigid and scaling motion and mirror image of a subject, 2D or 3D.

    Args:
        image: ``(C, *spatial)``.
        label: ``(1, *spatial)``; ids are not exchanged in a mirror image.
        spacing: mm per axis.
        limits: largest changes.
        draws: ten numbers in -1..1: rotations, scales, shifts (three each), mirror image.
    """
    dims = image.ndim - 1
    if limits.rotation_degrees or limits.scale or limits.shift_mm:
        image, label = _resampled(image, label, spacing, limits, draws, dims)
    if limits.flip and (draws[9] + 1) / 2 < limits.flip:
        image, label = image.flip(1), label.flip(1)
    return image, label


def stretch(limits: Augmentation, draws: Sequence[float], dims: int) -> float:
    """How much larger a subject is after :func:`moved`: its volume (2D: area) over that before.

    Args:
        limits: largest changes.
        draws: as :func:`moved` takes them.
        dims: number of spatial axes.
    """
    factor = 1.0
    for draw in draws[3 : 3 + dims]:
        factor *= 1 + limits.scale * draw
    return 1 / factor  # the matrix leads from the new voxels to the old


def _resampled(
    image: Tensor, label: Tensor, spacing: Sequence[float], limits: Augmentation, draws: Sequence[float], dims: int
) -> tuple[Tensor, Tensor]:
    matrix = torch.eye(dims, dtype=torch.float64)
    for k, (i, j) in enumerate([(0, 1)] if dims == 2 else [(0, 1), (0, 2), (1, 2)]):
        angle = np.deg2rad(limits.rotation_degrees * draws[k])
        turn = torch.eye(dims, dtype=torch.float64)
        turn[i, i] = turn[j, j] = np.cos(angle)
        turn[i, j], turn[j, i] = -np.sin(angle), np.sin(angle)
        matrix = matrix @ turn
    matrix = matrix @ torch.diag(torch.tensor([1 + limits.scale * d for d in draws[3 : 3 + dims]], dtype=torch.float64))
    # mm to grid_sample's -1..1 units, whose axes run last to first
    half = torch.tensor([n * s / 2 for n, s in zip(image.shape[1:], spacing, strict=True)], dtype=torch.float64)
    shift = torch.tensor([limits.shift_mm * d for d in draws[6 : 6 + dims]], dtype=torch.float64) / half
    theta = torch.cat([(matrix * half / half[:, None]).flip(0, 1), shift.flip(0)[:, None]], dim=1)
    grid = F.affine_grid(theta[None].float(), [1, 1, *image.shape[1:]], align_corners=False)
    warped = F.grid_sample(image[None], grid, mode="bilinear", padding_mode="reflection", align_corners=False)[0]
    ids = F.grid_sample(label[None].float(), grid, mode="nearest", padding_mode="zeros", align_corners=False)[0]
    return warped, ids.to(label.dtype)


def reshaded(
    image: Tensor, spacing: Sequence[float], limits: Augmentation, stream: torch.Generator, draws: Sequence[float]
) -> Tensor:
    """Random blur, gamma, bias field and noise of an image.

    Args:
        image: ``(1, *spatial)`` in 0..1, 2D or 3D.
        spacing: mm per axis.
        limits: largest changes.
        stream: of the bias field and the noise.
        draws: four numbers in -1..1: strengths of blur, gamma, bias and noise.
    """
    if limits.blur_mm:
        image = _blurred(image, spacing, limits.blur_mm * abs(draws[0]))
    if limits.gamma:
        image = image.clamp(min=0) ** float(np.exp(limits.gamma * draws[1]))
    if limits.bias:
        coarse = torch.rand([1, 1, *[4] * (image.ndim - 1)], generator=stream) * 2 - 1
        mode = "bilinear" if image.ndim == 3 else "trilinear"
        field = F.interpolate(coarse, image.shape[1:], mode=mode, align_corners=True)[0]
        image = image * (1 + limits.bias * abs(draws[2]) * field)
    if limits.noise:
        noise = torch.randn(image.shape, generator=stream)
        image = (image + limits.noise * abs(draws[3]) * noise * (image > 0)).clamp(min=0)
    return image


def _blurred(image: Tensor, spacing: Sequence[float], sigma_mm: float) -> Tensor:
    """Gaussian blur of ``(1, *spatial)``, its standard deviation in mm."""
    from scipy.ndimage import gaussian_filter

    return torch.from_numpy(gaussian_filter(image.numpy(), (0, *(sigma_mm / step for step in spacing))))


def shaded_channels(
    image: Tensor,
    spacing: Sequence[float],
    limits: Augmentation,
    stream: torch.Generator,
    draws: Sequence[float],
    others: Sequence[torch.Generator],
) -> Tensor:
    """:func:`reshaded` of every channel on its own: the first by ``stream`` and ``draws``, the rest by ``others``.

    Args:
        image: ``(C, *spatial)`` in 0..1.
        spacing: mm per axis.
        limits: largest changes.
        stream: of the first channel.
        draws: of the first channel.
        others: one stream for each further channel.
    """
    done = [reshaded(image[:1], spacing, limits, stream, draws)]
    for channel, own in zip(image[1:], others, strict=True):
        strengths = (torch.rand(4, generator=own, dtype=torch.float64) * 2 - 1).tolist()
        done.append(reshaded(channel[None], spacing, limits, own, strengths))
    return torch.cat(done)


def random_holes(
    size: Sequence[int], spacing: Sequence[float], diameters: Sequence[float], most: int, seed: int
) -> Tensor:
    """One to ``most`` random ellipsoids to fill, ``(1, *size)`` float32, 1 inside.

    Args:
        size: voxels of the patch.
        spacing: mm.
        diameters: smallest and largest diameter in mm; each axis differs from the drawn one by up to 15 percent.
        most: largest number of holes.
        seed: of the draw.
    """
    stream = torch.Generator().manual_seed(seed)
    hole = torch.zeros(*size, dtype=torch.bool)
    for _ in range(1 + int(torch.randint(most, (), generator=stream))):
        draws = torch.rand(2 * len(size) + 1, generator=stream, dtype=torch.float64).tolist()
        diameter = diameters[0] + (diameters[1] - diameters[0]) * draws[0]
        total = torch.zeros(*size, dtype=torch.float64)
        for axis, n in enumerate(size):
            radius = diameter / 2 * (0.85 + 0.3 * draws[1 + axis]) / spacing[axis]
            middle = n * (0.2 + 0.6 * draws[1 + len(size) + axis])
            place = ((torch.arange(n, dtype=torch.float64) + 0.5 - middle) / radius).square()
            total = total + place.reshape([-1 if a == axis else 1 for a in range(len(size))])
        hole |= total <= 1
    return hole[None].float()
