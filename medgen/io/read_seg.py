"""A DICOM segmentation (SEG) as a mask on the grid of a volume.

Frames of the file are LPS+ mm, as DICOM has it; volumes have RAS+ mm affines.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import torch
from monai.data import MetaTensor
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.uid import SegmentationStorage

from medgen.io.findings import Refused

__all__ = ["read_segmentation"]

_LABEL_MAP = "1.2.840.10008.5.1.4.1.1.66.7"
_OFF_GRID = 0.05  # of a voxel
_READ_ERRORS = (OSError, ValueError, AttributeError, KeyError, IndexError, TypeError, NotImplementedError, RuntimeError)


def read_segmentation(path: str | os.PathLike[str], volume: MetaTensor) -> MetaTensor:
    """All segments of a SEG file together, on the grid of ``volume``; nothing is resampled.

    Args:
        path: of a SEG file, of any kind of segments; of fractional ones, what is at least half counts.
        volume: shape ``(1, X, Y, Z)``, affine RAS+ mm.

    Returns:
        Shape ``(1, X, Y, Z)`` uint8, 1 = in a segment.

    Raises:
        Refused: ``NOT_AN_IMAGE``: no SEG; ``UNDECODABLE``: it cannot be read; ``BAD_GEOMETRY``: a frame without a
            place; ``GRIDS_DIFFER``: its pixels do not lie on the voxels of ``volume``.
    """
    path = Path(path)
    header, frames = _read(path)
    mask = np.zeros(tuple(volume.shape[1:]), dtype=np.uint8)
    to_voxels = np.linalg.inv(np.asarray(volume.affine, dtype=np.float64))
    for frame, place in zip(frames, _places(header, path), strict=True):
        rows, columns = np.nonzero(frame)
        if rows.size == 0:
            continue
        points = np.stack([columns, rows, np.zeros_like(rows), np.ones_like(rows)]).astype(np.float64)
        exact = (to_voxels @ place @ points)[:3]
        index = np.rint(exact).astype(int)
        off = np.abs(exact - index).max()
        outside = (index < 0).any() or (index >= np.array(mask.shape)[:, None]).any()
        if off > _OFF_GRID or outside:
            raise Refused(
                "GRIDS_DIFFER", f"'{path.name}' does not lie on the scan's grid. Resample it to the scan first."
            )
        mask[tuple(index)] = 1
    return MetaTensor(torch.from_numpy(mask)[None], affine=volume.affine.clone())


def _read(path: Path) -> tuple[Dataset, np.ndarray]:
    """Header and bool ``(frames, rows, columns)``.

    Raises:
        Refused: see :func:`read_segmentation`.
    """
    try:
        header = pydicom.dcmread(path)
        if header.get("SOPClassUID") not in (SegmentationStorage, _LABEL_MAP):
            raise Refused("NOT_AN_IMAGE", f"'{path.name}' is no DICOM segmentation. Give a SEG file, or NIfTI.")
        pixels = np.asarray(header.pixel_array)
        pixels = pixels[None] if pixels.ndim == 2 else pixels
        least = 1
        if header.get("SegmentationType") == "FRACTIONAL":
            least = (int(header.get("MaximumFractionalValue", 255)) + 1) // 2
    except Refused:
        raise
    except (InvalidDicomError, *_READ_ERRORS) as error:
        raise Refused("UNDECODABLE", f"'{path.name}' cannot be read as a DICOM segmentation ({error}).") from error
    return header, pixels >= least


def _places(header: Dataset, path: Path) -> Iterator[np.ndarray]:
    """For each frame the matrix from (column, row, 0, 1) to RAS+ mm."""
    try:
        shared = header.get("SharedFunctionalGroupsSequence", [Dataset()])[0]
        for frame in header.PerFrameFunctionalGroupsSequence:
            yield _place(frame, shared)
    except _READ_ERRORS as error:
        raise Refused("BAD_GEOMETRY", f"'{path.name}' has a frame without a place in space ({error}).") from error


def _place(frame: Dataset, shared: Dataset) -> np.ndarray:
    def group(keyword: str) -> Any:
        return (frame if keyword in frame else shared)[keyword].value[0]

    position = np.array(group("PlanePositionSequence").ImagePositionPatient, dtype=np.float64)
    orientation = np.array(group("PlaneOrientationSequence").ImageOrientationPatient, dtype=np.float64)
    spacing = np.array(group("PixelMeasuresSequence").PixelSpacing, dtype=np.float64)
    matrix = np.eye(4)
    matrix[:3, 0], matrix[:3, 1] = orientation[:3] * spacing[1], orientation[3:] * spacing[0]
    matrix[:3, 3] = position
    matrix[:2] *= -1  # LPS+ to RAS+
    if not np.isfinite(matrix).all():
        raise ValueError("a number is not finite")
    return matrix
