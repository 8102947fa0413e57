"""Random patches of images, and random holes in them; 2D and 3D."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["foreground_window", "random_holes", "random_window"]

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
