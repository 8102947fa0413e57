"""NIfTI files: one 3D volume in, one 3D volume out, nothing guessed.

Frames: affines are RAS+ mm (NIfTI's own), arrays stay in the stored voxel order.
"""

from __future__ import annotations

import gzip
import os
import zlib
from pathlib import Path
from typing import Any, Literal

import nibabel as nib
import numpy as np
import torch
from monai.data import MetaTensor
from nibabel.spatialimages import HeaderDataError

from medgen.checks import MedgenError, check_choice
from medgen.io.atomic import atomic_path

__all__ = ["read_nifti", "write_like", "write_nifti"]

Role = Literal["image", "label", "inpaint_mask"]
_COMPRESSION = 6
_READ_ERRORS = (OSError, EOFError, ValueError, zlib.error, HeaderDataError)


def read_nifti(path: str | os.PathLike[str], *, role: Role = "image") -> MetaTensor:
    """Reads one 3D volume.

    Args:
        path: a ``.nii`` or ``.nii.gz`` file (NIfTI-1 or -2) with three axes longer than one voxel; trailing axes of
            length one are dropped.
        role: ``"image"``: any finite numbers; ``"label"``: whole numbers that fit 32 bits; ``"inpaint_mask"``:
            exactly two values at most, 0 = keep, anything else = regenerate.

    Returns:
        Shape ``(1, X, Y, Z)`` in the stored voxel order; float32 (image), int32 (label) or uint8 0/1 (inpaint_mask);
        ``affine`` RAS+ mm, 4x4 float64; ``meta["source"]`` is the path.

    Raises:
        MedgenError: the file is missing, unreadable, truncated, not 3D, not finite, without a usable affine, or its
            values do not suit the role; the text names the file and the role.
    """
    check_choice("read_nifti", "role", role, ("image", "label", "inpaint_mask"))
    path = Path(path)
    data, affine = _read_array(path, role)
    if role == "image":
        array = torch.from_numpy(np.ascontiguousarray(data, dtype=np.float32))
    elif role == "label":
        array = torch.from_numpy(_whole_numbers(data, path))
    else:
        array = torch.from_numpy(_binary(data, path))
    return MetaTensor(array[None], affine=torch.from_numpy(affine), meta={"source": str(path), "space": "RAS"})


def write_nifti(
    path: str | os.PathLike[str], volume: torch.Tensor, dtype: Any = None, affine: np.ndarray | None = None
) -> None:
    """Writes one 3D volume, atomically, the same bytes for the same volume.

    Args:
        path: ends in ``.nii`` or ``.nii.gz``.
        volume: shape ``(1, X, Y, Z)`` or ``(X, Y, Z)``; a ``MetaTensor`` brings its affine along.
        dtype: stored numpy type; by default that of ``volume``. Whole-number types take rounded values, and values
            outside their range are refused.
        affine: RAS+ mm, 4x4; needed for a plain tensor.

    Raises:
        MedgenError: a wrong suffix or shape, no affine, values that are not finite or do not fit ``dtype``, or a path
            that cannot be written.
        OSError: the disk is full, or the like; no file of that name is left behind.
    """
    path = Path(path)
    if affine is None:
        affine = _affine_of(volume)
    array = _three_axes(volume)
    stored = _cast(array, np.dtype(dtype) if dtype is not None else array.dtype, f"write_nifti: '{path.name}'")
    image = nib.Nifti1Image(stored, np.asarray(affine, dtype=np.float64), dtype=stored.dtype)
    image.header.set_xyzt_units("mm")
    image.set_qform(image.affine, code=1)
    image.set_sform(image.affine, code=1)
    _write_bytes(path, image.to_bytes())


def write_like(
    path: str | os.PathLike[str],
    source_path: str | os.PathLike[str],
    new_values: torch.Tensor,
    changed_mask: torch.Tensor,
) -> int:
    """Writes a copy of a NIfTI file in which only the voxels of a mask have new values.

    Header, stored type, slope, intercept and extensions are the source's; the stored numbers outside the mask are bit
    for bit the source's. Inside, ``(value - intercept) / slope`` is rounded to a whole number where the type holds
    only those, and clipped to the type's range.

    Args:
        path: ends in ``.nii`` or ``.nii.gz``.
        source_path: the file that is copied.
        new_values: shape ``(1, X, Y, Z)`` or ``(X, Y, Z)`` on the source's grid, in the source's scaled unit.
        changed_mask: the same shape; non-zero = take the new value.

    Returns:
        The number of voxels that had to be clipped.

    Raises:
        MedgenError: the source is missing or unreadable, a shape differs, a new value is not finite, or the path
            cannot be written.
        OSError: the disk is full, or the like; no file of that name is left behind.
    """
    source_path = Path(source_path)
    image, content = _open(source_path, "image")
    raw = _stored_numbers(image, content, source_path)
    values = _three_axes(new_values).astype(np.float64)
    mask = _three_axes(changed_mask) != 0
    for name, array in (("new_values", values), ("changed_mask", mask)):
        if array.shape != raw.shape:
            raise MedgenError(
                f"write_like: {name} has shape {array.shape}, '{source_path}' has {raw.shape}. Use the source's grid."
            )
    if not np.isfinite(values[mask]).all():
        raise MedgenError("write_like: new_values holds values that are not finite inside changed_mask. Mend them.")
    scaled = (values[mask] - image.dataobj.inter) / image.dataobj.slope
    raw[mask], clipped = _fit(scaled, raw.dtype)
    _write_bytes(Path(path), bytes(content))
    return clipped


def _open(path: Path, role: str) -> tuple[Any, bytearray]:
    """The nibabel image of a NIfTI file, and its whole content, uncompressed (gzip's check sum is verified)."""
    if not path.exists():
        raise MedgenError(f"{role} '{path}' does not exist. Check the path.")
    if path.is_dir():
        raise MedgenError(f"{role} '{path}' is a folder. Give one .nii or .nii.gz file.")
    try:
        content = path.read_bytes()
        content = gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
        for kind in (nib.Nifti1Image, nib.Nifti2Image):
            if kind.header_class.may_contain_header(content[: kind.header_class.sizeof_hdr]):
                return kind.from_bytes(content), bytearray(content)
    except _READ_ERRORS as error:
        raise _unreadable(path, role, error) from error
    raise MedgenError(f"{role} '{path}' is not a NIfTI file. Convert it to .nii or .nii.gz.")


def _stored_numbers(image: Any, content: bytearray, path: Path) -> np.ndarray:
    """The numbers of a file as they are stored, ``(X, Y, Z)``: a view, so that writing to it changes ``content``."""
    proxy = image.dataobj
    try:
        flat = np.frombuffer(content, dtype=proxy.dtype, count=int(np.prod(image.shape)), offset=proxy.offset)
        return flat.reshape(image.shape[:3], order="F")
    except ValueError as error:
        raise _unreadable(path, "image", error) from error


def _read_array(path: Path, role: str) -> tuple[np.ndarray, np.ndarray]:
    """Scaled values ``(X, Y, Z)`` and the affine of a file, checked."""
    image, _ = _open(path, role)
    shape = tuple(image.shape)
    if len(shape) < 3 or any(size != 1 for size in shape[3:]) or min(shape[:3]) < 2:
        raise MedgenError(f"{role} '{path}' has shape {shape}; one 3D volume is needed. Split or select it first.")
    if image.get_data_dtype().kind not in "iuf":
        raise MedgenError(f"{role} '{path}' holds {image.get_data_dtype()}; plain numbers are needed. Convert it.")
    try:
        data = np.asarray(image.dataobj).reshape(shape[:3])
    except _READ_ERRORS as error:
        raise _unreadable(path, role, error) from error
    if not np.isfinite(data).all():
        count = int(np.count_nonzero(~np.isfinite(data)))
        raise MedgenError(f"{role} '{path}' holds {count} voxels that are NaN or infinite. Replace them first.")
    affine = np.array(image.affine, dtype=np.float64)
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise MedgenError(f"{role} '{path}' has no usable affine. Mend its sform or qform.")
    return data, affine


def _unreadable(path: Path, role: str, error: Exception) -> MedgenError:
    return MedgenError(f"{role} '{path}' cannot be read as NIfTI ({error}). Check that the file is whole.")


def _whole_numbers(data: np.ndarray, path: Path) -> np.ndarray:
    """Label values as int32; anything else is refused."""
    rounded = data if data.dtype.kind in "iu" else np.rint(data.astype(np.float64))
    if not np.array_equal(rounded, data):
        raise MedgenError(f"label '{path}' holds values that are not whole numbers. Give an integer label map.")
    if int(rounded.min()) < -(2**31) or int(rounded.max()) >= 2**31:
        raise MedgenError(f"label '{path}' holds ids beyond 32 bits. Give smaller ids.")
    return np.ascontiguousarray(rounded, dtype=np.int32)


def _binary(data: np.ndarray, path: Path) -> np.ndarray:
    """An inpaint mask as uint8 0/1; more than two values are refused."""
    values = np.unique(data)
    if values.size > 2 or (values.size == 2 and values[0] != 0):
        raise MedgenError(
            f"inpaint_mask '{path}' holds {values.size} values from {values[0]:g} to {values[-1]:g}; "
            "two are needed, 0 = keep and one other = regenerate. Threshold it first."
        )
    return np.ascontiguousarray(data != 0, dtype=np.uint8)


def _three_axes(volume: torch.Tensor | np.ndarray) -> np.ndarray:
    """``(1, X, Y, Z)`` or ``(X, Y, Z)`` as a numpy array ``(X, Y, Z)``."""
    plain = volume.as_tensor() if isinstance(volume, MetaTensor) else volume
    array = plain.detach().cpu().numpy() if isinstance(plain, torch.Tensor) else np.asarray(plain)
    if array.ndim == 4 and array.shape[0] == 1:
        array = array[0]
    if array.ndim != 3:
        raise MedgenError(f"a volume to write has shape {array.shape}; (1, X, Y, Z) or (X, Y, Z) is needed.")
    return array


def _affine_of(volume: torch.Tensor) -> np.ndarray:
    if not isinstance(volume, MetaTensor):
        raise MedgenError("write_nifti: a plain tensor has no affine. Give affine=, or a MetaTensor.")
    return volume.affine.cpu().numpy().astype(np.float64)


def _cast(array: np.ndarray, dtype: np.dtype, what: str) -> np.ndarray:
    """``array`` in the stored type; a value that does not fit is refused."""
    if not np.isfinite(array).all():
        raise MedgenError(f"{what} holds values that are NaN or infinite. Nothing was written.")
    if dtype == np.bool_:
        dtype = np.dtype(np.uint8)
    if dtype == np.int64 and array.dtype.kind in "iu":
        dtype = np.dtype(np.int32)
    fitted, clipped = _fit(array, dtype)
    if clipped:
        raise MedgenError(f"{what} holds {clipped} values that do not fit {dtype}. Store a wider type.")
    return fitted


def _fit(values: np.ndarray, dtype: np.dtype) -> tuple[np.ndarray, int]:
    """Values rounded (whole-number types) and clipped into ``dtype``, and how many were clipped."""
    if dtype.kind == "f":
        limit = np.finfo(dtype).max
        low, high = -limit, limit
    else:
        low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
        values = np.rint(values) if values.dtype.kind == "f" else values
    clipped = int(np.count_nonzero((values < low) | (values > high)))
    return (np.clip(values, low, high) if clipped else values).astype(dtype), clipped


def _write_bytes(path: Path, content: bytes) -> None:
    """Writes a NIfTI file, gzipped if its name says so, without a time or a name in the gzip header."""
    if not path.name.lower().endswith((".nii", ".nii.gz")):
        raise MedgenError(f"cannot write '{path}': the name must end in .nii.gz or .nii.")
    if path.name.lower().endswith(".gz"):
        content = gzip.compress(content, compresslevel=_COMPRESSION, mtime=0)
    with atomic_path(path) as temporary:
        with open(temporary, "wb") as file:
            file.write(content)
        if temporary.stat().st_size != len(content):
            raise OSError(f"'{path}' was written short: {temporary.stat().st_size} of {len(content)} bytes")
