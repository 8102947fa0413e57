"""From a label map of a head to a CT of it, in HU, without noise."""

from __future__ import annotations

from typing import Final

import numpy as np
import torch
from monai.data import MetaTensor
from scipy import ndimage

from medgen.anatomy.labels import LABELS
from medgen.anatomy.population import Subject

__all__ = ["HOUNSFIELD", "attenuation"]

AIR_HU: Final = -1000.0
HOUNSFIELD: Final[dict[str, tuple[float, float, float]]] = {
    "csf": (8, 3, 2), "ventricle": (6, 2, 1), "cortex": (38, 2, 2), "white_matter": (29, 2, 1.5),
    "thalamus": (37, 2, 1.5), "caudate": (38, 2, 1.5), "putamen": (38, 2, 1.5), "pallidum": (40, 3, 2),
    "medial_temporal": (38, 2, 2), "cerebellum_cortex": (38, 2, 2), "cerebellum_white_matter": (30, 2, 1.5),
    "brain_stem": (32, 2, 2), "lesion": (20, 5, 3), "skull": (1000, 200, 250), "soft_tissue": (45, 10, 12),
    "scalp": (-40, 30, 15),
}  # fmt: skip
"""HU of each tissue: mean, deviation between people, deviation within the tissue."""
FINE, COARSE = 0.7, 2.0  # voxels
PARTIAL = 0.45


def attenuation(subject: Subject, seed: int) -> torch.Tensor:
    """A CT of a subject of the population.

    Args:
        subject: with the ids of ``medgen.anatomy.labels``.
        seed: of the values of tissues and their texture.

    Returns:
        HU, ``(1, X, Y, Z)`` float32.

    References:
        Bushberg et al., "The essential physics of medical imaging", 3rd edition, table 10-1 (ranges of HU).

    Example:
        >>> from medgen.anatomy.population import Population
        >>> head = Population(spacing=(8, 8, 8), size=(24, 28, 24), brain_extracted=0.0).subject(1)
        >>> image = attenuation(head, 0)
        >>> image.shape, bool(image.min() < -900), bool(image.max() > 500)
        (torch.Size([1, 24, 28, 24]), True, True)
    """
    label: MetaTensor = subject.label
    ids = label.numpy()[0].astype(np.int64)
    rng = np.random.default_rng(seed)
    means, spread = np.full(max(LABELS) + 1, AIR_HU), np.zeros(max(LABELS) + 1)
    drawn = {tissue: rng.normal(mean, between) for tissue, (mean, between, _) in HOUNSFIELD.items()}
    for number, info in LABELS.items():
        if info.tissue in HOUNSFIELD:
            means[number], spread[number] = drawn[info.tissue], HOUNSFIELD[info.tissue][2]
    fine, coarse = (_texture(ids.shape, width, rng) for width in (FINE, COARSE))
    image = means[ids] + spread[ids] * (fine + coarse) * 0.5**0.5
    image = ndimage.gaussian_filter(image, PARTIAL, mode="nearest")
    return torch.from_numpy(image.clip(AIR_HU, 3000).astype(np.float32))[None]


def _texture(shape: tuple[int, ...], width: float, rng: np.random.Generator) -> np.ndarray:
    """Smooth noise of unit variance."""
    noise = ndimage.gaussian_filter(rng.standard_normal(shape), width, mode="wrap")
    return np.asarray(noise / noise.std())
