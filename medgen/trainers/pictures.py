"""Pictures of what a model in training makes of a fixed item."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medgen.io.atomic import atomic_path
from medgen.models.base import Model

ANSWERS = {"joint": ("label",), "segment": ("label",), "super_resolve": ("label",)}


def validation_picture(model: Model[Any], item: dict[str, Tensor], path: Path, seed: int) -> None:
    """Write a PNG with the middle planes of what the model is told, what it makes of it, and the truth.

    Args:
        model: in training.
        item: of :class:`~medgen.trainers.data.Items`.
        path: of the PNG.
        seed: of the sample.
    """
    spec, size = model.spec, tuple(item["image" if "image" in item else "label"].shape[1:])
    answers = () if spec.family == "autoencoder" else ANSWERS.get(spec.task, ())
    known = {key: value for key, value in item.items() if key not in ("index", *answers)}
    image, label = model.produce(known, size, seed, model.settings())
    rows = [_told(item, spec.task)]
    rows += [image.cpu()] if image is not None else []
    rows += [item["image"]] if spec.makes_image else [_scaled(item["label"].float())]
    rows += [_scaled(label.cpu().float())] if label is not None else []
    write_png(path, np.concatenate([_planes(channel.float().numpy()) for row in rows for channel in row], axis=0))


def _told(item: dict[str, Tensor], task: str) -> Tensor:
    if task == "restore":
        return item["input"]
    if task == "inpaint":
        return torch.where(item["inpaint_mask"] > 0.5, 0.0, item["image"])
    return item["source"] if "source" in item else _scaled(item["label"].float())


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
