"""Figures of a fixed draw of training items: of the image within each label, and of what is diffused."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from medgen.checks import MedgenError
from medgen.models.codec import Codec, VoxelCodec, depth, lowered, smoothed
from medgen.models.diffusion_spec import DEPTHS
from medgen.trainers.config import TrainConfig
from medgen.trainers.data import Item, Items, Source

STATISTICS_ITEMS = 24
SMALLEST_DEVIATION = 0.005
FEWEST_VOXELS = 30
LabelIntensities = tuple[tuple[tuple[float, float], ...], ...]  # (label, depth): mean and deviation


def drawn_items(config: TrainConfig, source: Source) -> list[Item]:
    """The items that figures are taken from: the same for the same seed."""
    items = Items(source, config, "statistics")
    return [items[index] for index in range(STATISTICS_ITEMS)]


def channel_moments(
    samples: Sequence[Tensor], smallest: float = SMALLEST_DEVIATION
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel over samples ``(C, *spatial)``.

    Args:
        samples: of the same channels.
        smallest: what a deviation is at least.
    """
    values = torch.cat([sample.flatten(1).cpu().double() for sample in samples], dim=1)
    return tuple(values.mean(1).tolist()), tuple(values.std(1).clamp(min=smallest).tolist())


def measure_diffused(config: TrainConfig, source: Source, codec: Codec) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each diffused channel.

    For task ``inpaint`` of the packed voxels that hold a voxel of a hole.

    Raises:
        MedgenError: none of the holes drawn holds the centre of a voxel.
    """
    channels = codec.spec.diffused_channels
    total, square, voxels = torch.zeros(channels).double(), torch.zeros(channels).double(), 0.0
    for item in drawn_items(config, source):
        batch = {key: value[None] for key, value in item.items()}
        size = tuple(batch["image" if "image" in batch else "label"].shape[2:])
        if codec.spec.base is not None:
            coarse = [n * b // a for n, a, b in zip(size, config.grid.size, codec.spec.base.grid.size, strict=True)]
            batch["low_resolution"] = lowered(VoxelCodec(codec.spec.base), batch["image"], batch.get("label"), coarse)
        with torch.no_grad():
            raw = codec.raw(batch.get("image"), codec.given(batch, size), batch.get("label"))[0].cpu().double()
        counted = torch.ones(raw.shape[1:], dtype=torch.bool)
        if config.task == "inpaint":
            counted = packed_mask(batch["inpaint_mask"], raw.shape[1:])[0, 0] > 0
        values = raw[:, counted]
        total, square, voxels = total + values.sum(1), square + values.square().sum(1), voxels + values.shape[1]
    if not voxels:
        raise MedgenError(
            f"field 'hole_diameter_mm': no voxel lies in any of the first {STATISTICS_ITEMS} holes. Got "
            f"{list(config.hole_diameter_mm)} on a grid of {list(config.grid.spacing)} mm. Set larger holes."
        )
    mean = total / voxels
    std = (square / voxels - mean.square()).clamp(min=0).sqrt().clamp(min=1e-4)
    return mean.tolist(), std.tolist()


def measure_labels(codec: VoxelCodec, drawn: Sequence[Item]) -> LabelIntensities:
    """Mean of the image within the background and each label channel by depth, and its deviation from those painted.

    A depth at which a label has fewer than ``FEWEST_VOXELS`` voxels has the figures of the depth before it, an absent
    label those of all labels together.
    """
    kinds = [codec.kind(item["label"][None]) for item in drawn]
    rows = [kind * DEPTHS + depth(kind) - 1 for kind in kinds]
    image = torch.cat([item["image"].double().flatten() for item in drawn])
    kind, row = (torch.cat([x.flatten() for x in parts]) for parts in (kinds, rows))
    labelled = image[kind > 0] if bool((kind > 0).any()) else image
    count = torch.bincount(row, minlength=DEPTHS * (1 + len(codec.spec.label_channels)))
    mean = _filled(torch.bincount(row, image, minlength=len(count)) / count, count, float(labelled.mean()))
    error = (image - torch.cat([smoothed(mean[x]).flatten() for x in rows])).square()
    square = _filled(torch.bincount(row, error, minlength=len(count)) / count, count, float(labelled.var()))
    deviation = square.sqrt().clamp(min=SMALLEST_DEVIATION)
    pairs = list(zip(mean.tolist(), deviation.tolist(), strict=True))
    return tuple(tuple(pairs[i : i + DEPTHS]) for i in range(0, len(pairs), DEPTHS))


def _filled(figures: Tensor, count: Tensor, otherwise: float) -> Tensor:
    """Figures of (label, depth), those of too few voxels replaced as :func:`measure_labels` says."""
    filled = figures.clone()
    for row in range(len(filled)):
        if count[row] < FEWEST_VOXELS:
            filled[row] = filled[row - 1] if row % DEPTHS else otherwise
    return filled


def packed_mask(inpaint_mask: Tensor, size: Sequence[int]) -> Tensor:
    """Which packed voxels hold a voxel of the hole.

    Args:
        inpaint_mask: ``(B, 1, *spatial)`` float, 1 in the hole.
        size: packed voxels per axis, 2D or 3D.

    Returns:
        ``(B, 1, *size)`` float, 1 where a voxel of the hole is packed.
    """
    pool = F.adaptive_max_pool2d if len(size) == 2 else F.adaptive_max_pool3d
    return pool(inpaint_mask, list(size))
