"""From files' grids to the model's: size, place, and what must fit together."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from medgen.checks import MedgenError
from medgen.trainers.config import TrainConfig

CORNER_MM = 0.1


def check_pair(image: Path, volume: Any, label: Path, ids: Any, config: TrainConfig) -> None:
    """Refuse a label on another grid than its image, or with ids that the configuration does not name.

    Args:
        image: path, for errors.
        volume: MetaTensor ``(1, X, Y, Z)`` of the image.
        label: path, for errors.
        ids: MetaTensor ``(1, X, Y, Z)`` of the label; its corners within ``CORNER_MM`` of the image's.
        config: of the run.

    Raises:
        MedgenError: naming the files and what differs.
    """
    from medgen.geometry import same_grid

    if ids.shape != volume.shape:
        raise MedgenError(f"label '{label}' has shape {tuple(ids.shape)}, its image {tuple(volume.shape)}. Pair them.")
    if not same_grid(volume, ids, CORNER_MM):
        raise MedgenError(
            f"label '{label}' lies on another grid than its image '{image}': corners differ by more than "
            f"{CORNER_MM:g} mm. Resample it."
        )
    check_ids(label, ids, config)


def check_ids(label: Path, ids: Tensor, config: TrainConfig) -> None:
    """Refuse label ids that the configuration does not name, where its task uses labels.

    Raises:
        MedgenError: naming them.
    """
    known = {0, *(i for _, channel in config.label_channels for i in channel)}
    unknown = sorted({int(i) for i in torch.unique(ids).tolist()} - known)
    if unknown and config.label_channels and config.task != "inpaint":
        raise MedgenError(
            f"label '{label}' holds ids {unknown[:8]} that label_channels does not name. It names {sorted(known)}. "
            "Add them to label_channels, or mend the label."
        )


def to_grid(volume: Any, spacing: Sequence[float], size: Sequence[int], mode: Any) -> Tensor:
    """A volume on a grid of given spacing and size about its own centre, RAS+.

    Args:
        volume: MetaTensor ``(1, X, Y, Z)``.
        spacing: mm.
        size: voxels.
        mode: of :meth:`~medgen.geometry.ModelGrid.to_model`.

    Returns:
        ``(1, *size)``; what lies beyond the volume is its mirror image (with mode ``nearest``: 0).
    """
    from medgen.geometry import ModelGrid

    grid = ModelGrid.around(volume.affine, volume.shape[1:], spacing, multiple=1)
    return fitted(grid.to_model(volume, mode).as_tensor(), size, mode)


def fitted(x: Tensor, size: Sequence[int], mode: str) -> Tensor:
    """``(C, *spatial)`` padded or cropped about its centre.

    Args:
        x: 2D or 3D.
        size: voxels.
        mode: ``nearest``: what lies beyond is 0; else the mirror image.
    """
    pads = []
    for have, want in zip(reversed(x.shape[1:]), reversed(list(size)), strict=True):
        low = (want - have) // 2
        pads += [low, want - have - low]
    crop = [min(p, 0) for p in pads]
    x = F.pad(x, crop)
    grow = [max(p, 0) for p in pads]
    if mode == "nearest":
        return F.pad(x, grow)
    if not any(grow):
        return x
    widths = [(0, 0), *zip(grow[-2::-2], grow[::-2], strict=True)]
    return torch.from_numpy(np.pad(x.numpy(), widths, mode="reflect"))  # torch's refuses more than one reflection


def resized(x: Tensor, size: Sequence[int]) -> Tensor:
    """``(1, X, Y)`` at another size: means over pixels where it shrinks, bilinear where it grows."""
    if list(x.shape[1:]) == list(size):
        return x.float()
    shrinks = all(new <= old for new, old in zip(size, x.shape[1:], strict=True))
    if shrinks:
        return F.interpolate(x[None].float(), list(size), mode="area")[0]
    return F.interpolate(x[None].float(), list(size), mode="bilinear", align_corners=False)[0]
