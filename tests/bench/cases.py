"""Unseen subjects of the population: the reference images, their labels and what is measured inside them."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from monai.data import MetaTensor
from numpy.typing import NDArray
from scipy import ndimage

from medgen.anatomy.labels import LABELS, TISSUES
from medgen.anatomy.population import Population
from medgen.diffusion.randomness import derive_seed
from medgen.models.specification import ModelSpec

Array = NDArray[np.float64]

BRAIN_TISSUES = tuple(t for t in TISSUES if any(i.tissue == t and i.brain for i in LABELS.values()) and t != "lesion")
OTHER_TISSUES = tuple(t for t in TISSUES if t not in BRAIN_TISSUES and t != "lesion")


@dataclass(frozen=True)
class Case:
    """One subject: the atlas's scan warped and resampled once, and the label map that a model is given.

    Attributes:
        seed: of the population.
        image: ``(X, Y, Z)`` in 0..1.
        label: ids, ``(1, X, Y, Z)`` with affine.
        groups: index into ``TISSUES``, ``(X, Y, Z)``.
        extracted: whether all but the brain is 0.
    """

    seed: int
    image: Array
    label: MetaTensor
    groups: NDArray[np.int64]
    extracted: bool

    def within(self, tissue: str) -> NDArray[np.bool_]:
        """Mask of a tissue."""
        mask: NDArray[np.bool_] = self.groups == TISSUES.index(tissue)
        return mask

    @functools.cached_property
    def brain(self) -> NDArray[np.bool_]:
        """The brain with its sulci: all brain tissues but CSF, closed by 2 voxels and filled."""
        tissues = [TISSUES.index(t) for t in BRAIN_TISSUES if t != "csf"]
        padded = np.pad(np.isin(self.groups, tissues), 3)
        closed = ndimage.binary_closing(padded, iterations=2)
        filled: NDArray[np.bool_] = ndimage.binary_fill_holes(closed)[3:-3, 3:-3, 3:-3]
        return filled

    def crop(self, window: Sequence[slice]) -> Case:
        """A part of it; the affine moves along."""
        a, b, c = window
        affine = self.label.affine.clone()
        starts = torch.tensor([s.start for s in window], dtype=affine.dtype)
        affine[:3, 3] += affine[:3, :3] @ starts
        label = MetaTensor(self.label.as_tensor()[:, a, b, c].clone(), affine=affine)
        return replace(self, image=self.image[a, b, c], label=label, groups=self.groups[a, b, c])


def population_of(spec: ModelSpec) -> Population:
    """The population whose label maps a model draws on."""
    return Population(**(spec.label_source or {})["population"])


def training_seed(spec: ModelSpec, index: int) -> int:
    """Population seed of a training subject (see ``medgen.trainers.data.PopulationSource``)."""
    return derive_seed(int(spec.training.get("seed", 1)), "subject", index)


def unseen_seed(index: int) -> int:
    """Population seed of a test subject: no training seed begins with this word."""
    return derive_seed("brain truth", index)


def make_case(population: Population, seed: int) -> Case:
    """Draw one subject."""
    subject = population.subject(seed)
    groups = tissue_table()[subject.label.numpy()[0]]
    image = subject.image.numpy()[0].astype(np.float64)
    return Case(seed, image, subject.label, groups, bool(subject.parameters["brain_extracted"]))


def tissue_table() -> NDArray[np.int64]:
    """Index into ``TISSUES`` of each label id."""
    table = np.zeros(max(LABELS) + 1, np.int64)
    for key, info in LABELS.items():
        table[key] = TISSUES.index(info.tissue)
    return table


def central_window(case: Case, size: int) -> tuple[slice, slice, slice]:
    """A cube about the middle of the brain, as far as the grid goes."""
    middle = [round(float(m)) for m in np.argwhere(case.brain).mean(0)]
    starts = [min(max(m - size // 2, 0), n - size) for m, n in zip(middle, case.groups.shape, strict=True)]
    x, y, z = (slice(s, s + size) for s in starts)
    return x, y, z
