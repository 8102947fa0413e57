"""Pictures of what a model in training makes of a fixed item."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from medgen.io.atomic import atomic_path
from medgen.models.generative import GenerativeModel


def validation_picture(model: GenerativeModel, item: dict[str, Tensor], path: Path, seed: int) -> None:
    """Write a PNG with the middle planes of what the model is told, what it makes of it, and the truth.

    Args:
        model: in training.
        item: of :class:`~medgen.trainers.data.Items`.
        path: of the PNG.
        seed: of the sample.
    """
    codec, image = model.codec, item["image"]
    size = tuple(image.shape[1:])
    told = item["label"].float()
    if model.spec.task == "inpaint":
        told = torch.where(item["inpaint_mask"] > 0.5, 0.0, image)
        given = codec.given_hole(image[None], item["inpaint_mask"][None])
    elif model.spec.task == "joint":
        given = codec.given_nothing(size)
    else:
        given = codec.given_label(item["label"][None])
    made, label = model.diffuse(given, seed, model.settings())
    rows = [_scaled(told), made[0].cpu(), image]
    if label is not None:
        rows.append(_scaled(label[0].cpu().float()))
    write_png(path, np.concatenate([_planes(row[0].numpy()) for row in rows], axis=0))


def _scaled(x: Tensor) -> Tensor:
    """Ids spread over 0..1 by rank, so that neighbours differ."""
    values = torch.unique(x)
    return torch.searchsorted(values, x.contiguous()).float() / max(1, len(values) - 1) if len(values) < 64 else x


def _planes(volume: np.ndarray) -> np.ndarray:
    """Middle planes side by side, superior / anterior up; a 2D image as it is."""
    if volume.ndim == 2:
        return np.flipud(volume.T)
    x, y, z = (n // 2 for n in volume.shape)
    planes = [volume[x], volume[:, y], volume[:, :, z]]
    height = max(p.shape[1] for p in planes)
    return np.concatenate([np.pad(np.flipud(p.T), ((0, height - p.shape[1]), (0, 0))) for p in planes], axis=1)


def write_png(path: Path, grey: np.ndarray) -> None:
    """Write grey values in 0..1 as an 8-bit PNG, twice enlarged."""
    from skimage.io import imsave

    pixels = (np.clip(grey, 0, 1) * 255).astype(np.uint8).repeat(2, axis=0).repeat(2, axis=1)
    with atomic_path(path) as temporary:
        imsave(temporary, pixels, check_contrast=False)
