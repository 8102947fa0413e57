"""Scans as restoration takes and leaves them: files in, and a copy of them out in which only some voxels differ."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from monai.data import MetaTensor

from medgen.checks import MedgenError
from medgen.io.atomic import check_writable
from medgen.io.datasets.case import PICTURES

if TYPE_CHECKING:
    from medgen.io.findings import Finding, VolumeSource

__all__ = ["Outputs", "Scan", "is_series", "outputs", "read_hole", "read_scan", "scan_of"]

_NIFTI = (".nii.gz", ".nii")


@dataclass(frozen=True)
class Scan:
    """A scan, and where it came from.

    Args:
        volume: ``(1, X, Y, Z)`` float32 in the scan's unit, affine RAS+ mm; of a picture one slice ``(1, X, Y, 1)``.
        path: file or folder that was given.
        sha256: of the file's bytes; of a series, of the SHA-256 of its files in slice order, a line each.
        findings: what reading found out.
        series: the DICOM series; None for files.
        stored: ``(X, Y, Z)`` of a series or picture in the type that holds its values exactly; None for NIfTI.
    """

    volume: MetaTensor
    path: Path
    sha256: str
    findings: tuple[Finding, ...] = ()
    series: VolumeSource | None = None
    stored: np.ndarray | None = None

    def write_nifti(self, path: Path, new_values: torch.Tensor, changed_mask: torch.Tensor) -> int:
        """Writes a NIfTI file in which only the voxels of a mask differ; returns how many had to be clipped.

        Args:
            path: ends in ``.nii`` or ``.nii.gz``.
            new_values: ``(1, X, Y, Z)`` in the scan's unit.
            changed_mask: the same shape; non-zero = take the new value.
        """
        from medgen.io import nifti

        if self.stored is None:
            return nifti.write_like(path, self.path, new_values, changed_mask, synthetic=True)
        values, clipped = merged(self.stored, new_values, changed_mask)
        meta = {"synthetic": True}
        nifti.write_nifti(path, MetaTensor(torch.from_numpy(values[None]), affine=self.volume.affine, meta=meta))
        return clipped

    def write_series(
        self,
        folder: Path,
        new_values: torch.Tensor,
        changed_mask: torch.Tensor,
        provenance: dict[str, Any],
        overwrite: bool,
    ) -> int:
        """Writes a derived DICOM series in which only the voxels of a mask differ; returns how many were clipped.

        Args:
            folder: a new one, or one to replace.
            new_values: ``(1, X, Y, Z)`` in the scan's unit.
            changed_mask: the same shape; non-zero = take the new value.
            provenance: what made the new values.
        """
        from medgen.io.write_dicom import write_series

        assert self.series is not None  # the caller made sure
        assert self.stored is not None  # a series has it
        values, clipped = merged(self.stored, new_values, changed_mask)
        volume = MetaTensor(torch.from_numpy(values[None]), affine=self.volume.affine)
        write_series(
            folder,
            volume,
            reference=self.series.files,
            description="inpainted by medgen",
            derivation="inpainted",
            provenance=provenance,
            synthetic="part",
            keep_rescale=True,
            overwrite=overwrite,
        )
        return clipped


def merged(stored: np.ndarray, new_values: torch.Tensor, changed_mask: torch.Tensor) -> tuple[np.ndarray, int]:
    """Old and new values in the type of the old ones: rounded and clipped where that is one of whole numbers.

    Args:
        stored: ``(X, Y, Z)``.
        new_values: ``(1, X, Y, Z)`` in the scan's unit.
        changed_mask: the same shape; non-zero = take the new value.

    Returns:
        ``(X, Y, Z)``, and how many values had to be clipped.
    """
    values, mask = stored.copy(), changed_mask.cpu().numpy()[0] != 0
    new = new_values.cpu().numpy()[0][mask].astype(np.float64)
    clipped = 0
    if values.dtype.kind in "iu":
        low, high = np.iinfo(values.dtype).min, np.iinfo(values.dtype).max
        new = np.rint(new)
        clipped = int(np.count_nonzero((new < low) | (new > high)))
        new = np.clip(new, low, high)
    values[mask] = new.astype(values.dtype)
    return values, clipped


@dataclass(frozen=True)
class Outputs:
    """Where results go.

    Args:
        target: the scan: a NIfTI file, or a folder for a DICOM series.
        record: the JSON file beside it.
        drawing: a PNG file, or None.
        is_series: whether ``target`` is a folder.
    """

    target: Path
    record: Path
    drawing: Path | None
    is_series: bool


def is_series(path: str | os.PathLike[str]) -> bool:
    """Whether a scan is a DICOM series: a folder, or one DICOM file."""
    from medgen.io.dicom import looks_like_dicom

    path = Path(path)
    return path.is_dir() or (path.is_file() and not path.name.lower().endswith(_NIFTI) and looks_like_dicom(path))


def is_picture(path: str | os.PathLike[str]) -> bool:
    """Whether a file is a picture with two axes, by its name."""
    return Path(path).name.lower().endswith(PICTURES)


def read_scan(path: str | os.PathLike[str], *, pictures: bool = False) -> Scan:
    """Reads a NIfTI file, another volume file, or a folder with one DICOM series.

    Args:
        path: of it.
        pictures: whether a picture of one channel is taken too, as one slice.

    Raises:
        MedgenError: it is missing, or not one volume of finite numbers; the text begins with a code where it has one.
    """
    from medgen.io.nifti import read_nifti
    from medgen.io.survey import single_volume

    path = Path(path)
    if path.is_file() and path.name.lower().endswith(_NIFTI):
        return Scan(read_nifti(path, role="image"), path, _sha256([path]))
    if not path.exists():
        raise MedgenError(f"image '{path}' does not exist. Check the path.")
    if pictures and is_picture(path):
        return _read_picture(path)
    return scan_of(single_volume(path), path)


def scan_of(source: VolumeSource, path: Path) -> Scan:
    """A volume that a survey found, other than a NIfTI file, as a scan.

    Args:
        source: the volume.
        path: file or folder that it is called by.

    Raises:
        Refused: its voxels are not what the header promised, or not finite.
    """
    from medgen.io.findings import Refused

    stored = source.load()
    if not torch.isfinite(stored.as_tensor()).all():
        raise Refused("NON_FINITE", f"image '{path}' holds values that are NaN or infinite. Replace them first.")
    meta = {"source": str(path), "space": "RAS", "synthetic": bool(stored.meta.get("synthetic"))}
    volume = MetaTensor(stored.as_tensor().float(), affine=stored.affine, meta=meta)
    return Scan(volume, path, _sha256(source.files), tuple(source.findings), source, stored.numpy()[0])


def _read_picture(path: Path) -> Scan:
    """One slice, axial by convention; a pixel is 1 mm where the file does not say."""
    from medgen.io.read_picture import read_picture

    picture = read_picture(path)
    if picture.shape[0] != 1:
        raise MedgenError(f"image '{path}' holds {picture.shape[0]} channels; a scan has one. Convert it to grey.")
    meta = {"source": str(path), "space": "RAS", "synthetic": bool(picture.meta["synthetic"])}
    volume = MetaTensor(picture.as_tensor()[..., None], affine=picture.affine, meta=meta)
    return Scan(volume, path, _sha256([path]), stored=volume.numpy()[0].astype(picture.meta["stored"]))


def read_hole(path: str | os.PathLike[str], scan: Scan) -> tuple[MetaTensor, str]:
    """Reads an inpaint mask on the grid of ``scan``: a NIfTI file, or a DICOM segmentation (all its segments).

    Returns:
        ``(1, X, Y, Z)`` uint8, 1 = regenerate; and the SHA-256 of the file.

    Raises:
        MedgenError: it is missing, unreadable, or no mask.
    """
    from medgen.io.nifti import read_nifti

    path = Path(path)
    if path.is_file() and is_series(path):
        from medgen.io.read_seg import read_segmentation

        return read_segmentation(path, scan.volume), _sha256([path])
    return read_nifti(path, role="inpaint_mask"), _sha256([path])


def outputs(
    output: str | os.PathLike[str],
    picture: str | os.PathLike[str] | None,
    overwrite: bool,
    image: str | os.PathLike[str],
    inpaint_mask: str | os.PathLike[str],
) -> Outputs:
    """Names of the filled scan, its record and the picture, all of which can be written.

    Args:
        output: a ``.nii`` or ``.nii.gz`` file, or a folder, for which the scan must be a DICOM series.
        picture: a PNG file, or None.
        overwrite: whether outputs may exist.
        image: the scan.
        inpaint_mask: its hole.

    Raises:
        MedgenError: an output that is an input, a wrong suffix, one that exists without ``overwrite``, one that cannot
            be written, a folder that holds the scan or anything but a series, or a record that is of another make.
    """
    of_series = is_series(image)
    target, drawing = Path(output), None if picture is None else Path(picture)
    ending = next((end for end in _NIFTI if target.name.lower().endswith(end)), "")
    is_series_out = not ending and of_series and (target.is_dir() or not target.suffix)
    if not ending and not is_series_out:
        folder = " (or be a folder, without a suffix)" if of_series else ""
        raise MedgenError(f"output '{output}' must end in .nii or .nii.gz{folder}. Rename it.")
    if drawing is not None and drawing.suffix.lower() != ".png":
        raise MedgenError(f"picture '{picture}' must end in .png. Rename it.")
    record = target.with_name(target.name[: len(target.name) - len(ending)] + ".json")
    inputs = {os.path.realpath(path) for path in (image, inpaint_mask)}
    for role, path in (("output", target), ("record", record), ("picture", drawing)):
        if path is not None and os.path.realpath(path) in inputs:
            raise MedgenError(f"{role} '{path}' is an input, which would be lost. Choose another name.")
        if path is not None and path.exists() and not overwrite:
            raise MedgenError(f"{role} '{path}' exists. Add --overwrite to replace it, or give another name.")
        if path is not None:
            check_writable(path)
    if is_series_out:
        from medgen.io.convert import check_output
        from medgen.io.convert_dicom import check_own

        check_output(Path(image), target, resume=False, overwrite=True)
        check_own(target)
    if record.exists() and not _is_record(record):
        raise MedgenError(f"record '{record}' would replace a file of another make. Name the output otherwise.")
    return Outputs(target, record, drawing, is_series_out)


def _is_record(path: Path) -> bool:
    """Whether a JSON file says that what it stands beside is synthetic."""
    try:
        content: Any = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and content.get("synthetic") is True


def _sha256(files: Any) -> str:
    """SHA-256 of a file's bytes; of several files, of the SHA-256 of each, a line each."""
    from medgen.io.journal import file_sha256

    digests = [file_sha256(path) for path in files]
    if len(digests) == 1:
        return digests[0]
    return hashlib.sha256("".join(f"{digest}\n" for digest in digests).encode()).hexdigest()
