"""The files of one subject: a NIfTI file for each image and its label map, or pictures where the model makes slices."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from monai.data import MetaTensor

from medgen.checks import MedgenError, check_choice
from medgen.io.nifti import read_nifti, write_nifti
from medgen.io.read_picture import read_picture
from medgen.io.write_picture import write_picture

__all__ = ["FORMATS", "choose_format", "file_hash", "read_subject", "write_subject"]

FORMATS = {"nifti": ".nii.gz", "png": ".png", "tiff": ".tif"}
_COLOURS = (("r", "g", "b"), ("red", "green", "blue"))


def choose_format(spec: Any, format: str | None) -> str:
    """The format of a model's files: NIfTI for volumes; PNG (by default) or TIFF for slices.

    Args:
        spec: of the model.
        format: ``nifti``, ``png``, ``tiff``, or None for the default.

    Raises:
        MedgenError: an unknown format, or one that does not suit the model.
    """
    flat = len(spec.grid.spacing) == 2
    if format is None:
        return "png" if flat else "nifti"
    check_choice("generate", "format", format, FORMATS)
    if flat != (format != "nifti"):
        wanted = "png or tiff, the model makes slices" if flat else "nifti, the model makes volumes"
        raise MedgenError(f"{spec.name}: format must be {wanted}; got '{format}'. Leave it out.")
    return format


def write_subject(
    spec: Any, folder: Path, name: str, subject: Mapping[str, MetaTensor], format: str = "nifti"
) -> dict[str, str]:
    """Writes image and label map of one subject.

    NIfTI and TIFF hold the image in the unit of ``spec.intensity``, as float32; PNG has 8 bit for 0..1 of the model.

    Args:
        spec: of the model.
        folder: of the cohort.
        name: of the subject.
        subject: what the model gave: ``"image"`` ``(C, *spatial)`` and ``"label"`` ``(1, *spatial)``, or one of them.
        format: one of ``FORMATS``.

    Returns:
        SHA-256 by name of the files.
    """
    files: dict[str, MetaTensor] = {}
    if "image" in subject:
        for suffix, channels in _images(spec, len(subject["image"]), format).items():
            files[_name(name, suffix, format)] = subject["image"][channels]
    if "label" in subject:
        files[_name(name, "dseg", format)] = subject["label"]
    for file, volume in files.items():
        _write(folder / file, volume, spec.intensity.scale, format)
    return {file: file_hash(folder / file) for file in files}


def _write(path: Path, volume: MetaTensor, scale: float, format: str) -> None:
    whole = not volume.dtype.is_floating_point
    if format == "nifti":
        write_nifti(path, volume if whole else volume * scale, dtype=np.int16 if whole else np.float32)
    elif format == "png" or whole:
        write_picture(path, volume)
    else:
        write_picture(path, volume * scale, dtype="float32")


def read_subject(spec: Any, folder: Path, name: str, format: str = "nifti") -> dict[str, MetaTensor]:
    """First image file and label map of a subject, where they are there."""
    count = getattr(spec, "image_channels", 1)
    wanted = {"image": next(iter(_images(spec, count, format))), "label": "dseg"}
    found = {}
    for key, suffix in wanted.items():
        path = folder / _name(name, suffix, format)
        if path.exists():
            role: Any = key
            found[key] = read_nifti(path, role=role) if format == "nifti" else read_picture(path, role=role)
    return found


def _images(spec: Any, count: int, format: str) -> dict[str, slice]:
    """Channels of each image file by the suffix of its name; colours stay together in a picture."""
    names = tuple(getattr(spec, "channels", ()))
    if len(names) != count:
        names = (spec.modality,) if count == 1 else tuple(f"{spec.modality}{i + 1}" for i in range(count))
    if format != "nifti" and tuple(n.lower() for n in names) in _COLOURS:
        return {spec.modality: slice(0, 3)}
    return {name: slice(i, i + 1) for i, name in enumerate(names)}


def _name(subject: str, suffix: str, format: str) -> str:
    return f"{subject}_{suffix}{FORMATS[format]}"


def file_hash(path: Path) -> str:
    """SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
