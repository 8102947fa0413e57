"""Adaptive discriminator augmentation for images and volumes.

Real and generated images alike pass through random, differentiable changes before the discriminator sees them; each
kind of change happens with probability ``p``, which follows a sign of overfitting. Changes that leave the identity
frequent enough do not leak into what is generated.

References:
    Karras et al. 2020 (ADA, arXiv:2006.06676), sections 2.2 and 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

MOST = 0.8


class Change(NamedTuple):
    """What is done to each sample of a batch.

    Attributes:
        affine: ``(B, d, d)``, where each output voxel looks, in voxels about the centre.
        shift: ``(B, d)`` voxels.
        contrast: ``(B,)`` factor of the image channels.
        brightness: ``(B,)`` added to them.
    """

    affine: Tensor
    shift: Tensor
    contrast: Tensor
    brightness: Tensor


@dataclass(frozen=True)
class AugmentationRange:
    """How far each change goes.

    Args:
        flip_axes: spatial axes that may be mirrored: only those whose mirror image is as plausible, labels of sides
            being what they are.
        shift: share of each axis; whole voxels, so that what is only shifted is not blurred.
        scale: largest change of size, 0.1 = by 10 percent.
        rotation_degrees: about each axis.
        contrast: standard deviation of the logarithm of the factor of the image channels.
        brightness: standard deviation of what is added to them, in units of the standardised image.
    """

    flip_axes: tuple[int, ...] = ()
    shift: float = 0.1
    scale: float = 0.1
    rotation_degrees: float = 8.0
    contrast: float = 0.2
    brightness: float = 0.2


def draw_change(ranges: AugmentationRange, size: Sequence[int], p: float, streams: Sequence[torch.Generator]) -> Change:
    """Draw the change of each sample, each kind with probability ``p``.

    Args:
        ranges: see :class:`AugmentationRange`.
        size: voxels per axis, 2 or 3.
        p: 0..1.
        streams: one generator per sample.
    """
    rows = [_draw_one(ranges, size, p, stream) for stream in streams]
    return Change(*(torch.stack(column) for column in zip(*rows, strict=True)))


def _draw_one(
    ranges: AugmentationRange, size: Sequence[int], p: float, stream: torch.Generator
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dims = len(size)
    chance = torch.rand(5 + dims, generator=stream) < p
    uniform = torch.rand(10, generator=stream) * 2 - 1
    normal = torch.randn(2, generator=stream)
    mirror = torch.ones(dims)
    for axis in ranges.flip_axes:
        mirror[axis] = -1.0 if chance[5 + axis] and uniform[axis] > 0 else 1.0
    angles = uniform[3:6] * torch.pi / 180 * ranges.rotation_degrees * chance[0]
    scale = (1 + ranges.scale * float(uniform[6])) if chance[1] else 1.0
    shift = (uniform[7 : 7 + dims] * ranges.shift * torch.tensor(size, dtype=torch.float32)).round() * chance[2]
    contrast = torch.exp(ranges.contrast * normal[0] * chance[3])
    brightness = ranges.brightness * normal[1] * chance[4]
    return _rotation(angles, dims) @ torch.diag(mirror / scale), shift, contrast, brightness


def _rotation(angles: Tensor, dims: int) -> Tensor:
    """Rotation by one angle (2D), or about the three axes one after the other (3D), radians."""
    total = torch.eye(dims)
    for angle, (a, b) in zip(angles, [(0, 1)] if dims == 2 else [(0, 1), (0, 2), (1, 2)], strict=False):
        turn = torch.eye(dims)
        turn[a, a] = turn[b, b] = angle.cos()
        turn[a, b], turn[b, a] = -angle.sin(), angle.sin()
        total = total @ turn
    return total


def apply_change(x: Tensor, change: Change, image_channels: int) -> Tensor:
    """Carry out the drawn changes, differentiably; samples with none keep their bytes.

    Args:
        x: ``(B, C, *spatial)``, image channels first.
        change: see :func:`draw_change`.
        image_channels: how many channels change their intensity; all are moved.
    """
    x = _move(x, change)
    ones = [1] * (x.ndim - 1)
    contrast = change.contrast.to(x).reshape(-1, *ones)
    brightness = change.brightness.to(x).reshape(-1, *ones)
    image = x[:, :image_channels] * contrast + brightness
    return torch.cat([image, x[:, image_channels:]], dim=1)


def _move(x: Tensor, change: Change) -> Tensor:
    dims = x.ndim - 2
    still = (change.affine == torch.eye(dims)).flatten(1).all(1) & (change.shift == 0).all(1)
    moving = (~still).nonzero()[:, 0]
    if len(moving) == 0:
        return x
    half = torch.tensor(x.shape[2:], dtype=torch.float32) / 2
    affine = change.affine[moving] * half[None, None, :] / half[None, :, None]  # in units of half the axis
    theta = torch.cat([affine, (change.shift[moving] / half)[..., None]], dim=2)
    theta[:, :, :dims] = theta[:, :, :dims].flip(1, 2)  # grid_sample counts axes from the last
    theta[:, :, dims] = theta[:, :, dims].flip(1)
    where = moving.to(x.device)
    chosen = x[where].float()  # places in half precision would be off by a voxel
    with torch.autocast(x.device.type, enabled=False):
        grid = F.affine_grid(theta.to(chosen), list(chosen.shape), align_corners=False)
        made = F.grid_sample(chosen, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    return x.index_copy(0, where, made.to(x.dtype))


def adapted(p: float, sign: float, target: float, samples: int, samples_to_full: float) -> float:
    """Next probability: up while the discriminator is surer of real images than ``target``, else down.

    Args:
        p: now.
        sign: mean sign of the logits of real images since the last change, see
            :func:`~medgen.adversarial.losses.real_sign`.
        target: of that sign, 0.6 in the paper.
        samples: real images seen since the last change.
        samples_to_full: images over which ``p`` could rise from 0 to 1, 500,000 in the paper.

    Returns:
        From 0 to ``MOST``, beyond which changes begin to leak (figure 4).
    """
    step = samples / samples_to_full
    return min(MOST, max(0.0, p + (step if sign > target else -step)))
