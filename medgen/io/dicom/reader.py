"""Reading what is known to be one thing: one volume, or one file as a plain array."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import numpy as np
from monai.data import MetaTensor

from medgen.io.dicom.frames import rescale_of
from medgen.io.dicom.header import read_header
from medgen.io.dicom.pixels import PixelFile, pixel_layout
from medgen.io.dicom.survey import survey_dicom
from medgen.io.dicom.values import apply_rescale, clean_bits
from medgen.io.findings import DEFAULT_MEMORY_BUDGET, Refused

__all__ = ["read_plain", "read_series"]


def read_series(path: str | os.PathLike[str], *, memory_budget: int = DEFAULT_MEMORY_BUDGET) -> MetaTensor:
    """Reads the one volume of a folder (with all folders in it) or of a file.

    Args:
        path: a folder or a multi-frame file.
        memory_budget: bytes that the volume may take.

    Returns:
        Shape ``(1, X, Y, Z)`` (columns, rows, slices), rescaled values, affine RAS+ mm; see
        :meth:`medgen.io.dicom.volume.DicomVolume.load`.

    Raises:
        Refused: ``NO_VOLUME``: there is none, with the first reason why; ``SEVERAL_VOLUMES``: names them.
    """
    path = Path(path)
    if not path.exists():
        raise Refused("NO_VOLUME", f"'{path}' does not exist. Check the path.")
    files = [path] if path.is_file() else sorted(item for item in path.rglob("*") if item.is_file())
    found = survey_dicom(files, memory_budget=memory_budget)
    refused = next((record for record in found.files if record.status == "refused"), None)
    if not found.volumes:
        why = f" {refused.code}: {refused.reason}" if refused else ""
        raise Refused("NO_VOLUME", f"'{path}' holds no DICOM volume.{why}")
    if len(found.volumes) > 1:
        names = ", ".join(volume.name for volume in found.volumes)
        raise Refused(
            "SEVERAL_VOLUMES", f"'{path}' holds {len(found.volumes)} volumes ({names}). Give the files of one."
        )
    return found.volumes[0].load()


def read_plain(path: str | os.PathLike[str], *, memory_budget: int = DEFAULT_MEMORY_BUDGET) -> np.ndarray:
    """The values of one file as a plain array without geometry, for images that have none.

    Args:
        path: a DICOM file with grey pixels.
        memory_budget: bytes that the array may take.

    Returns:
        ``(rows, columns)``, or ``(frames, rows, columns)`` where there are several; the output of the file's modality
        look-up table or slope and intercept (float64 where it has either of these, else the stored type).

    Raises:
        Refused: no DICOM file, no grey pixels, or pixels that are not as promised.
    """
    path = Path(path)
    try:
        header = read_header(path, memory_budget) if stat.S_ISREG(os.stat(path).st_mode) else None
    except OSError as error:
        raise Refused("UNREADABLE", f"'{path}' cannot be opened ({error.strerror}). Check the path.") from None
    if header is None:
        raise Refused("NOT_DICOM", f"'{path}' is no DICOM file.")
    if header.fault is not None:
        raise header.fault
    if not header.pixel_tag:
        raise Refused("NOT_AN_IMAGE", f"'{path}' holds no pixels.")
    layout = pixel_layout(header, extra=True)
    voxels = layout.frames * layout.rows * layout.columns
    if voxels * (layout.dtype.itemsize + 8) > memory_budget:
        raise Refused("OVER_BUDGET", f"'{path}' holds {voxels} pixels: more than the budget of {memory_budget} bytes.")
    slope, intercept, lut = rescale_of(header, header.elements, zero_slope=True)
    with PixelFile(header, layout, memory_budget) as file:
        file.check()
        stored = np.empty((layout.frames, layout.rows, layout.columns), layout.dtype)
        for frame in range(layout.frames):
            file.read_into(frame, stored[frame])
            clean_bits(stored[frame], layout, path.name)
    has_rescale = lut is not None or 0x00281053 in header.elements
    values = apply_rescale(stored, slope, intercept, lut) if has_rescale else stored
    return values[0] if layout.frames == 1 else values
