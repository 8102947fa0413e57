"""The real hippocampus people on the grid of a model: volumes, or slices of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from monai.data import MetaTensor
from numpy.typing import NDArray

from medgen.checks import MedgenError
from medgen.io.configs import find_config
from medgen.models.specification import Grid
from medgen.trainers.config import TrainConfig, load_config
from medgen.trainers.data import FileSource, find_pairs, is_held_out
from medgen.trainers.subjects import NORMAL_AXIS, SlicedSubject, Subject, fitted, planes

LABELS = (1, 2)
HELD_OUT_ENDINGS = (1, 6)


class Volume(NamedTuple):
    """Image in 0..1.5 and label ids, both ``(X, Y, Z)``, or ``(X, Y)`` of a slice. No label: None."""

    image: NDArray[np.float32]
    label: NDArray[np.int16] | None

    @property
    def ids(self) -> NDArray[np.int16]:
        """The label, which must be there."""
        if self.label is None:
            raise MedgenError("bench: this volume has no label. Use one of a task that makes or takes labels.")
        return self.label


@dataclass(frozen=True)
class People:
    """Real people on one grid.

    Args:
        grid: of all volumes.
        plane: of slices: ``axial``, ``coronal``, ``sagittal`` or ``any``; empty for volumes.
        training: of each training person the volume, or one slice that shows the label.
        held_out: the same of the people that nothing is trained on.
        gallery: everything that may be learnt by heart: the training volumes, or all their slices that show the label.
    """

    grid: Grid
    plane: str
    training: list[Volume]
    held_out: list[Volume]
    gallery: list[Volume]

    @property
    def name(self) -> str:
        """Of the grid, for file names and headings: ``3D 32x48x32``."""
        size = "x".join(str(n) for n in self.grid.size)
        return f"{len(self.grid.size)}D {size}" + (f" {self.plane}" if self.plane else "")


def load_people(data: Path, grid: Grid, plane: str = "", limit: int | None = None) -> People:
    """Training and held-out people as the trainers prepare them, without augmentation.

    Args:
        data: folder with ``images`` and ``labels``.
        grid: of the model.
        plane: see :class:`People`; needed where the grid has two axes.
        limit: at most so many of either kind, for a trial.

    Raises:
        MedgenError: fewer than two people of a kind.
    """
    pairs = find_pairs(data)
    kinds = [[p for p in pairs if is_held_out(p[0], HELD_OUT_ENDINGS) is held][:limit] for held in (False, True)]
    if min(len(kind) for kind in kinds) < 2:
        raise MedgenError(f"bench: '{data}' needs people of both kinds. Got {[len(kind) for kind in kinds]}.")
    config = _config(data, grid, plane)
    sets = [[list(_views(config, subject)) for subject in FileSource.read(config, kind).members] for kind in kinds]
    rng = np.random.default_rng(0)
    training, held_out = ([views[rng.integers(len(views))] for views in people] for people in sets)
    return People(grid, plane, training, held_out, [view for views in sets[0] for view in views])


def _config(data: Path, grid: Grid, plane: str) -> TrainConfig:
    """The configuration that ``hippocampus-t1`` is trained with, on another grid."""
    changes = [f"data={data}", f"grid#spacing={list(grid.spacing)}", f"grid#size={list(grid.size)}"]
    if len(grid.size) == 2:
        changes.append(f"slices={{plane: {plane}}}")
    return load_config(find_config("hippocampus"), changes)


def _views(config: TrainConfig, subject: Subject) -> Iterator[Volume]:
    """The volume of a person, or all slices that show its label."""
    if not isinstance(subject, SlicedSubject):
        yield volume_of(subject.image, subject.label)
        return
    for plane in planes(config.slices):
        axis = 1 + NORMAL_AXIS[plane]
        for k in subject.slices[plane][0]:
            image = fitted(subject.image.select(axis, k).float(), config.grid.size, "area")
            yield volume_of(image, fitted(subject.label.select(axis, k), config.grid.size, "nearest"))


def volume_of(image: torch.Tensor, label: torch.Tensor | None) -> Volume:
    """From tensors ``(C, *spatial)`` and ``(1, *spatial)``; of the image the first channel."""
    pixels = np.asarray(image.detach().cpu().as_subclass(torch.Tensor)[0], np.float32).clip(0, 1.5)
    ids = None if label is None else np.asarray(label.detach().cpu().as_subclass(torch.Tensor)[0], np.int16)
    return Volume(pixels, ids)


def as_meta(volume: Volume, grid: Grid) -> dict[str, MetaTensor]:
    """A volume as models and pictures take it: ``(1, *spatial)`` with an affine."""
    affine = np.diag([*grid.spacing, *[1.0] * (3 - len(grid.spacing)), 1.0])
    found = {"image": MetaTensor(torch.from_numpy(volume.image.copy())[None], affine=affine)}
    if volume.label is not None:
        found["label"] = MetaTensor(torch.from_numpy(volume.label.copy())[None], affine=affine)
    return found
