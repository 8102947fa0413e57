"""Denoisers of volumes made of denoisers of slices or patches, for priors that were trained on less than a volume.

Each is a ``denoise(x, sigma) -> x0`` of the whole volume, so that samplers and posterior methods run on it unchanged.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from medgen.checks import MedgenError, check_count
from medgen.diffusion.randomness import derive_seed
from medgen.diffusion.samplers import Denoise

__all__ = ["PatchDenoiser", "SliceDenoiser"]


@dataclass(frozen=True)
class SliceDenoiser:
    """The mean of a 2D denoiser's answers for the slices across each of several axes.

    With two perpendicular axes the slices of one bind together those of the other (Lee et al. 2023, TPDM,
    arXiv:2303.08440, equation 9: a product of priors of perpendicular slices; here with equal shares at every level
    instead of alternating between levels).

    Args:
        denoise: of slices ``(B, C, H, W)``.
        axes: spatial axes 0, 1, 2 that the slices are taken across.
        batch: slices at a time.
    """

    denoise: Denoise
    axes: tuple[int, ...] = (2, 1)
    batch: int = 32

    def __post_init__(self) -> None:
        if not self.axes or len(set(self.axes)) != len(self.axes) or not set(self.axes) <= {0, 1, 2}:
            raise MedgenError(
                f"SliceDenoiser: axes must be different ones of 0, 1, 2. Got {self.axes}. Give (2, 1), say."
            )
        check_count("SliceDenoiser", "batch", self.batch)

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """``x`` ``(B, C, X, Y, Z)``, ``sigma`` ``(B,)``."""
        if x.ndim != 5:
            raise MedgenError(f"SliceDenoiser: x must have shape (B, C, X, Y, Z). Got {tuple(x.shape)}. Give volumes.")
        return torch.stack([self._across(x, sigma, axis) for axis in self.axes]).mean(0)

    def _across(self, x: Tensor, sigma: Tensor, axis: int) -> Tensor:
        moved = x.movedim(2 + axis, 1)  # (B, N, C, H, W)
        slices = moved.flatten(0, 1)
        levels = sigma.repeat_interleave(moved.shape[1])
        parts = [
            self.denoise(s, level) for s, level in zip(slices.split(self.batch), levels.split(self.batch), strict=True)
        ]
        return torch.cat(parts).reshape(moved.shape).movedim(1, 2 + axis)


@dataclass(frozen=True)
class PatchDenoiser:
    """The weighted mean of a denoiser's answers for overlapping patches of a volume.

    Weights fall off towards each patch's border; the grid of patches moves from level to level, so that no seam stays
    at its place through a run (as in Bar-Tal et al. 2023, MultiDiffusion, arXiv:2302.08113, equation 3: the mean is
    the volume that agrees best with all patches).

    Args:
        denoise: of patches ``(B, C, *patch)``.
        patch: voxels per axis, multiples of ``multiple``; a shorter axis is covered by one patch of its own length.
        overlap: share of a patch that it has in common with the next, 0 to below 1.
        multiple: what every axis of a patch must be a multiple of; volumes are padded to it by going on
            as they end.
        seed: of the grid's place.
    """

    denoise: Denoise
    patch: tuple[int, ...]
    overlap: float = 0.25
    multiple: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.overlap < 1:
            raise MedgenError(
                f"PatchDenoiser: overlap must be at least 0 and below 1. Got {self.overlap}. Give 0.25, say."
            )
        check_count("PatchDenoiser", "multiple", self.multiple)
        if any(n < 1 or n % self.multiple for n in self.patch):
            raise MedgenError(
                f"PatchDenoiser: patch must be multiples of {self.multiple}. Got {self.patch}. Round it up."
            )

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """``x`` ``(B, C, *spatial)``, ``sigma`` ``(B,)``."""
        if len(self.patch) != x.ndim - 2:
            raise MedgenError(
                f"PatchDenoiser: patch must have {x.ndim - 2} entries. Got {self.patch}. Give one per axis."
            )
        padded = self._padded(x)
        size = tuple(padded.shape[2:])
        patch = tuple(min(p, n) for p, n in zip(self.patch, size, strict=True))
        stream = torch.Generator().manual_seed(derive_seed(self.seed, "patches", f"{float(sigma[0]):.6g}"))
        rows = [starts(n, p, self.overlap, stream) for n, p in zip(size, patch, strict=True)]
        weight = window(patch).to(x)
        total, share = torch.zeros_like(padded), torch.zeros_like(padded[:1, :1])
        for place in itertools.product(*rows):
            here = (slice(None), slice(None), *(slice(s, s + p) for s, p in zip(place, patch, strict=True)))
            total[here] = total[here] + weight * self.denoise(padded[here], sigma)
            share[here] = share[here] + weight
        return (total / share)[(slice(None), slice(None), *(slice(n) for n in x.shape[2:]))]

    def _padded(self, x: Tensor) -> Tensor:
        pads = [p for n in reversed(x.shape[2:]) for p in (0, -n % self.multiple)]
        return F.pad(x, pads, mode="replicate") if any(pads) else x


def starts(length: int, patch: int, overlap: float, stream: torch.Generator) -> list[int]:
    """Where patches begin along an axis: evenly spaced, moved together by a random step, the ends covered.

    Args:
        length: voxels of the axis.
        patch: voxels of a patch, at most ``length``.
        overlap: least share of a patch that it has in common with the next.
        stream: of the move.

    Example:
        >>> starts(10, 10, 0.5, torch.Generator().manual_seed(0))
        [0]
        >>> sorted({0, 12} & set(starts(20, 8, 0.25, torch.Generator().manual_seed(0))))
        [0, 12]
    """
    last = length - patch
    if last == 0:
        return [0]
    step = max(1, int(patch * (1 - overlap)))
    move = int(torch.randint(step, (), generator=stream))
    return sorted({0, last, *range(move, last, step)})


def window(patch: Sequence[int]) -> Tensor:
    """Weight of each voxel of a patch ``(1, 1, *patch)``: ``sin**2`` along each axis, nowhere 0."""
    weight = torch.ones(1, 1, *patch)
    for axis, n in enumerate(patch):
        place = (torch.arange(n) + 0.5) / n
        weight = weight * (torch.pi * place).sin().square().reshape(-1, *[1] * (len(patch) - 1 - axis))
    return weight
