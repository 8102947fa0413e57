"""Label maps to make images for: from one file or a folder of them, brought to a model's grid."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import nibabel as nib
import numpy as np
import torch
from monai.data import MetaTensor
from torch.nn import functional as F

from medgen.checks import MedgenError
from medgen.geometry import ModelGrid, spacing_of
from medgen.io.nifti import read_nifti
from medgen.restoration.extent import sizes_text

__all__ = ["LabelFolder", "LabelPlace", "on_model_grid", "placed", "placing_note", "read_label", "volume_hash"]

_RESAMPLED, _PADDED, _TURNED = "resampled", "padded with background", "turned"
_VOLUMES = (".nii", ".nii.gz")
_PICTURES = (".png", ".tif", ".tiff", ".bmp")


@dataclass(frozen=True)
class LabelPlace:
    """What became of a given label map on the way to a model's grid.

    Attributes:
        sha256: of the label map there, see :func:`volume_hash`.
        file: name of the file that it was read from, without its folder; None where there was none.
        given: ``size`` in voxels, ``spacing`` in mm and, of volumes, ``axes`` (``RAS``) before.
        used: the same on the model's grid.
        resampled: whether voxels are others than the given ones; otherwise they were at most padded and turned.
    """

    sha256: str
    file: str | None
    given: dict[str, Any]
    used: dict[str, Any]
    resampled: bool

    def record(self) -> dict[str, Any]:
        """For the JSON file of a subject: no path."""
        grids = {"given": self.given, "used": self.used}
        return {"label_sha256": self.sha256, "label_file": self.file, "label_grid": grids}


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


def placed(model: Any, label: MetaTensor) -> tuple[MetaTensor, LabelPlace]:
    """A label map on a model's grid, and what became of it.

    Args:
        model: see :func:`on_model_grid`.
        label: see :func:`on_model_grid`.

    Raises:
        MedgenError: see :func:`on_model_grid`.
    """
    volume = on_model_grid(model, label)
    source = label.meta.get("source")
    spacing = model.spec.grid.spacing
    if len(spacing) == 3:
        given, used = (_grid(x, spacing_of(x.affine.cpu().numpy()).tolist(), axes=True) for x in (label, volume))
        matrix = np.linalg.inv(volume.affine.cpu().numpy()) @ label.affine.cpu().numpy()
        steps = np.abs(matrix[:3, :3])
        resampled = not np.allclose(np.sort(steps, axis=0), [[0], [0], [1]], atol=1e-3)
    else:
        given, used = _grid(label, label.meta.get("spacing") or spacing), _grid(volume, spacing)
        resampled = given["spacing"] != used["spacing"]
    name = None if source is None else Path(str(source)).name
    return volume, LabelPlace(volume_hash(volume), name, given, used, resampled)


def placing_note(labels: Sequence[LabelPlace]) -> str:
    """One line about what became of label maps on the way to a model's grid; ``""`` where they stayed as they were.

    It shows a resampled one, where there is one, and counts the others by kind.
    """
    kinds = [_change(label) for label in labels]
    counts = {kind: kinds.count(kind) for kind in (_RESAMPLED, _PADDED, _TURNED) if kind in kinds}
    if not counts:
        return ""
    kind = next(iter(counts))
    first = labels[kinds.index(kind)]
    given, used = (_grid_text(grid, kind != _PADDED) for grid in (first.given, first.used))
    total = ", ".join(f"{count} {each}" for each, count in counts.items())
    others = f" (in all {total})" if sum(counts.values()) > 1 else ""
    return f"{first.file or 'the label map'} is {kind} for the model's grid: {given} became {used}{others}"


def _change(label: LabelPlace) -> str:
    """What was done to a label map; ``""`` for nothing."""
    if label.resampled:
        return _RESAMPLED
    if math.prod(label.given["size"]) != math.prod(label.used["size"]):
        return _PADDED
    return _TURNED if label.given.get("axes") != label.used.get("axes") else ""


def _grid(volume: MetaTensor, spacing: Sequence[float], axes: bool = False) -> dict[str, Any]:
    found: dict[str, Any] = {"size": list(volume.shape[1:]), "spacing": [float(f"{x:.6g}") for x in spacing]}
    return found | ({"axes": "".join(nib.aff2axcodes(volume.affine.cpu().numpy()))} if axes else {})


def _grid_text(grid: dict[str, Any], whole: bool) -> str:
    """Size, and where asked voxel size and axes."""
    more = f" of {sizes_text(grid['spacing'])} mm{', ' + grid['axes'] if 'axes' in grid else ''}" if whole else ""
    return f"{sizes_text(grid['size'])} voxels{more}"


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
