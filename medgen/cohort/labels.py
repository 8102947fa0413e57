"""Label maps to make images for: from one file or a folder of them, brought to a model's grid."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from monai.data import MetaTensor
from torch.nn import functional as F

from medgen.checks import MedgenError
from medgen.geometry import ModelGrid
from medgen.io.nifti import read_nifti

__all__ = ["LabelFolder", "on_model_grid", "read_label", "volume_hash"]

_VOLUMES = (".nii", ".nii.gz")
_PICTURES = (".png", ".tif", ".tiff", ".bmp")


def read_label(path: str | os.PathLike[str]) -> MetaTensor:
    """A label map from a NIfTI file ``(1, X, Y, Z)`` or a picture ``(1, X, Y)``.

    Raises:
        MedgenError: the file is missing, or holds no whole numbers.
    """
    if Path(path).name.lower().endswith(_PICTURES):
        from medgen.io.read_picture import read_picture

        return read_picture(path, role="label")
    return read_nifti(path, role="label")


class LabelFolder(Sequence[MetaTensor]):
    """The label maps of a folder in the order of their names, each read when it is asked for.

    Where there are files called ``..._dseg``, as in a cohort, the others are left out.

    Args:
        folder: with NIfTI files or pictures.

    Raises:
        MedgenError: there is none.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        found = sorted(
            file for file in Path(folder).iterdir()
            if file.is_file() and not file.name.startswith(".") and file.name.lower().endswith(_VOLUMES + _PICTURES)
        )  # fmt: skip
        marked = [file for file in found if file.name.split(".")[0].endswith("_dseg")]
        self.files = marked or found
        if not self.files:
            raise MedgenError(f"'{folder}' holds no label maps (NIfTI or pictures). Give another folder.")

    def __len__(self) -> int:
        return len(self.files)

    @overload
    def __getitem__(self, index: int) -> MetaTensor: ...

    @overload
    def __getitem__(self, index: slice) -> list[MetaTensor]: ...

    def __getitem__(self, index: int | slice) -> MetaTensor | list[MetaTensor]:
        if isinstance(index, slice):
            return [read_label(file) for file in self.files[index]]
        return read_label(self.files[index])


def on_model_grid(model: Any, label: MetaTensor) -> MetaTensor:
    """A label map at the model's spacing, RAS+, padded with background to a size that the network takes.

    Args:
        model: its ``spec.grid.spacing`` and ``multiple``.
        label: ``(1, X, Y, Z)``, or ``(1, X, Y)`` for a model of slices, in mm where the file said so
            (``meta["spacing"]``), else at the model's spacing.

    Raises:
        MedgenError: another number of axes than the model has.
    """
    spacing = model.spec.grid.spacing
    if label.ndim - 1 != len(spacing):
        raise MedgenError(
            f"{model.spec.name}: label must have {len(spacing)} spatial axes. Got {tuple(label.shape[1:])}. "
            "Give volumes for a model of volumes, pictures for one of slices."
        )
    if len(spacing) == 3:
        grid = ModelGrid.around(label.affine, label.shape[1:], spacing, multiple=model.multiple)
        return grid.to_model(label, mode="label")
    return _slice_on_grid(label, spacing, model.multiple)


def _slice_on_grid(label: MetaTensor, spacing: Sequence[float], multiple: int) -> MetaTensor:
    """Nearest voxels at the model's spacing, padded evenly on both sides."""
    own = label.meta.get("spacing") or spacing
    ids = label.as_tensor()
    size = [max(1, round(n * a / b)) for n, a, b in zip(ids.shape[1:], own, spacing, strict=True)]
    if size != list(ids.shape[1:]):
        ids = F.interpolate(ids[None].double(), size=size, mode="nearest-exact")[0].to(ids.dtype)
    pads = []
    for n in reversed(size):
        missing = -n % multiple
        pads += [missing // 2, missing - missing // 2]
    affine = np.diag([*spacing, 1.0, 1.0])
    return MetaTensor(F.pad(ids, pads), affine=torch.from_numpy(affine))


def volume_hash(volume: MetaTensor) -> str:
    """SHA-256 of a volume's ids, shape and affine."""
    values = np.ascontiguousarray(volume.as_tensor().cpu().numpy().astype(np.int32))
    affine = np.ascontiguousarray(volume.affine.cpu().numpy().astype(np.float64))
    return hashlib.sha256(repr(values.shape).encode() + values.tobytes() + affine.tobytes()).hexdigest()
