"""NIfTI files: one 3D volume in, one 3D volume out, nothing guessed.

Frames: affines are RAS+ mm, arrays stay in the stored voxel order.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from monai.data import MetaTensor

from medgen.checks import MedgenError, check_choice
from medgen.io.findings import DEFAULT_MEMORY_BUDGET, ReadOptions, Refused
from medgen.io.nifti_survey import nifti_volumes
from medgen.io.write_nifti import write_like, write_nifti

__all__ = ["read_nifti", "write_like", "write_nifti"]

Role = Literal["image", "label", "inpaint_mask"]


def read_nifti(
    path: str | os.PathLike[str], *, role: Role = "image", memory_budget: int = DEFAULT_MEMORY_BUDGET
) -> MetaTensor:
    """Reads one 3D volume.

    Args:
        path: a ``.nii`` or ``.nii.gz`` file (NIfTI-1 or -2) with three axes longer than one voxel; trailing axes of
            length one are dropped.
        role: ``"image"``: any finite numbers; ``"label"``: whole numbers that fit 32 bits; ``"inpaint_mask"``:
            exactly two values at most, 0 = keep, anything else = regenerate.
        memory_budget: bytes that the volume may take while it is loaded.

    Returns:
        Shape ``(1, X, Y, Z)`` in the stored voxel order (and the file's memory order: first axis fastest); float32
        (image), int32 (label) or uint8 0/1 (inpaint_mask); ``affine`` RAS+ mm, 4x4 float64; ``meta["source"]`` is the
        path, ``meta["findings"]`` the codes of what is to be said about the file, joined by commas.

    Raises:
        Refused: the file is unreadable, truncated, not 3D, not finite, or without a usable affine; the text names the
            file and the role.
        MedgenError: the file is missing, or its values do not suit the role.
    """
    check_choice("read_nifti", "role", role, ("image", "label", "inpaint_mask"))
    path = Path(path)
    if not path.exists():
        raise MedgenError(f"{role} '{path}' does not exist. Check the path.")
    if path.is_dir():
        raise MedgenError(f"{role} '{path}' is a folder. Give one .nii or .nii.gz file.")
    try:
        (source,) = nifti_volumes(path, ReadOptions(memory_budget=memory_budget))
        volume = source.load(as_float=role == "image")
    except Refused as refused:
        raise Refused(refused.code, f"{role} '{path}' cannot be read: {refused.reason}") from refused
    meta = {
        "source": str(path),
        "space": "RAS",
        "findings": ",".join(finding.code for finding in source.findings),
        "synthetic": source.header.synthetic,
    }
    if role == "image":
        values = volume.as_tensor()
    elif role == "label":
        values = torch.from_numpy(_whole_numbers(volume.numpy(), path))
    else:
        values = torch.from_numpy(_binary(volume.numpy(), path))
    return MetaTensor(values, affine=volume.affine, meta=meta)


def _whole_numbers(data: np.ndarray, path: Path) -> np.ndarray:
    """Label values as int32; anything else is refused."""
    if data.dtype.kind != "f":
        return data.astype(np.int32)
    rounded = np.rint(data)
    if not np.array_equal(rounded, data):
        raise MedgenError(f"label '{path}' holds values that are not whole numbers. Give an integer label map.")
    if int(rounded.min()) < -(2**31) or int(rounded.max()) >= 2**31:
        raise MedgenError(f"label '{path}' holds ids beyond 32 bits. Give smaller ids.")
    return rounded.astype(np.int32)


def _binary(data: np.ndarray, path: Path) -> np.ndarray:
    """An inpaint mask as uint8 0/1; more than two values are refused."""
    values = np.unique(data)
    if values.size > 2 or (values.size == 2 and values[0] != 0):
        raise Refused(
            "BAD_MASK",
            f"inpaint_mask '{path}' holds {values.size} values from {values[0]:g} to {values[-1]:g}; "
            "two are needed, 0 = keep and one other = regenerate. Threshold it first.",
        )
    return (data != 0).astype(np.uint8)
