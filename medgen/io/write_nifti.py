"""NIfTI files out: whole or not at all, and the same bytes for the same volume.

A volume that was read from a file brings along how its numbers were stored there (``meta``: ``stored_dtype``,
``scl_slope``, ``scl_inter``). They are stored so again where that holds the values: all in range, and rounding to
stored numbers (root mean square of a uniform error, ``slope / sqrt(12)``) at most 1 % of the values' standard
deviation, or next to none at all. Its sform_code and qform_code (``meta``: ``form_codes``) stay, too.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.data import MetaTensor

from medgen.checks import MedgenError
from medgen.geometry import affine_fault
from medgen.io.atomic import atomic_path
from medgen.io.findings import DEFAULT_MEMORY_BUDGET, Finding, Refused
from medgen.io.gzip_bytes import plain_bytes, write_gzip
from medgen.io.nifti_header import HEADER_BYTES, MARK, PROCESSED, NiftiHeader, mark_of, parse_header

__all__ = ["cast_to", "check_name", "write_like", "write_nifti", "write_pieces"]

_ROUNDING = 0.01
_TILE = 16
_SLAB_BYTES = 1 << 26
_RECORDS = {
    "rgb": (3, np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])),
    "rgba": (4, np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1"), ("A", "u1")])),
    "complex64": (2, np.dtype(np.complex64)),
    "complex128": (2, np.dtype(np.complex128)),
}


def write_nifti(
    path: str | os.PathLike[str],
    volume: torch.Tensor,
    dtype: Any = None,
    affine: np.ndarray | None = None,
    *,
    synthetic: bool = False,
    processed: bool = False,
) -> tuple[Finding, ...]:
    """Writes one 3D volume, atomically, the same bytes for the same volume.

    Args:
        path: ends in ``.nii`` or ``.nii.gz``.
        volume: shape ``(1, X, Y, Z)`` or ``(X, Y, Z)``; a ``MetaTensor`` brings its affine along. Colours and complex
            numbers, read as channels, have their own number of channels.
        dtype: stored numpy type; whole-number types take rounded values, and values outside their range are refused.
            By default the type and scaling that the volume's source had, where they hold the values (see the module's
            text), else that of ``volume``.
        affine: RAS+ mm, 4x4; needed for a plain tensor.
        synthetic: mark the file so (:data:`medgen.io.nifti_header.MARK`); a ``MetaTensor`` whose
            ``meta["synthetic"]`` is true is marked in any case.
        processed: mark a file that is not synthetic as computed (:data:`medgen.io.nifti_header.PROCESSED`).

    Returns:
        ``TYPE_CHANGED`` where the source's type did not hold the values.

    Raises:
        MedgenError: a wrong suffix or shape, no affine or one that cannot be inverted, values that are not finite or
            do not fit ``dtype``, or a path that cannot be written.
        OSError: the disk is full, or the like; no file of that name is left behind.
    """
    path = Path(path)
    check_name(path)
    if affine is None:
        affine = _affine_of(volume)
    matrix = np.asarray(affine, dtype=np.float64)
    if matrix.shape != (4, 4) or affine_fault(matrix):
        raise MedgenError(f"write_nifti: the affine must be finite, 4x4 and invertible. Got {matrix.tolist()}.")
    meta = volume.meta if isinstance(volume, MetaTensor) else {}
    array = _stored_records(volume, meta)
    findings: tuple[Finding, ...] = ()
    slope, inter = 1.0, 0.0
    if array is None:
        array = _three_axes(volume)
        target = np.dtype(dtype) if dtype is not None else array.dtype
        if dtype is None and "stored_dtype" in meta:
            array, target, slope, inter, findings = _as_stored(array, meta)
        array = cast_to(array, target, f"write_nifti: '{path.name}'")
    mark = MARK if synthetic or meta.get("synthetic") else PROCESSED if processed else None
    write_pieces(path, _pieces(array, (matrix, meta.get("form_codes", (1, 1))), slope, inter, mark))
    return findings


def write_like(
    path: str | os.PathLike[str],
    source_path: str | os.PathLike[str],
    new_values: torch.Tensor,
    changed_mask: torch.Tensor,
    *,
    synthetic: bool = False,
    processed: bool = False,
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
        synthetic: mark the copy so, by one more extension (:data:`medgen.io.nifti_header.MARK`).
        processed: mark a copy that is not synthetic as computed (:data:`medgen.io.nifti_header.PROCESSED`).

    Returns:
        The number of voxels that had to be clipped.

    Raises:
        MedgenError: the source is missing or unreadable, a shape differs, a new value is not finite, or the path
            cannot be written.
        OSError: the disk is full, or the like; no file of that name is left behind.
    """
    source_path = Path(source_path)
    check_name(Path(path))
    content, raw, header = _source_numbers(source_path)
    slope, inter = header.stored.slope, header.stored.inter
    values = _three_axes(new_values)
    mask = _three_axes(changed_mask) != 0
    for name, array in (("new_values", values), ("changed_mask", mask)):
        if array.shape != raw.shape:
            raise MedgenError(
                f"write_like: {name} has shape {array.shape}, '{source_path}' has {raw.shape}. Use the source's grid."
            )
    new = values[mask].astype(np.float64)
    if not np.isfinite(new).all():
        raise MedgenError("write_like: new_values holds values that are not finite inside changed_mask. Mend them.")
    raw[mask], clipped = _fit((new - inter) / slope, raw.dtype)
    mark = MARK if synthetic else PROCESSED if processed else None
    has_it = header.synthetic or (header.processed and not synthetic)
    write_pieces(Path(path), [content] if mark is None or has_it else _marked(content, header, mark))
    return clipped


def _marked(content: bytearray, header: NiftiHeader, text: bytes) -> list[bytes | memoryview]:
    """The content of a file with one more extension, the first."""
    order = "<" if content[:4] in (b"\x5c\x01\0\0", b"\x1c\x02\0\0") else ">"
    size = int(np.frombuffer(content[:4], f"{order}i4")[0])
    fields = nib.nifti1.header_dtype if size == 348 else nib.nifti2.header_dtype
    block = np.frombuffer(bytes(content[:size]), fields.newbyteorder(order)).copy()
    mark = mark_of(order, text)
    block["vox_offset"] = header.offset + len(mark)
    others = memoryview(content)[size + 4 :] if content[size] else memoryview(content)[header.offset :]
    if not content[size]:
        block["vox_offset"] = size + 4 + len(mark)
    return [block.tobytes(), b"\1\0\0\0", mark, others]


def _source_numbers(path: Path) -> tuple[bytearray, np.ndarray, NiftiHeader]:
    """A file's plain content, its stored numbers ``(X, Y, Z)`` as a view of it, and its header."""
    if not path.is_file():
        raise MedgenError(f"image '{path}' does not exist or is a folder. Give one .nii or .nii.gz file.")
    try:
        content = plain_bytes(path, DEFAULT_MEMORY_BUDGET)
        header = parse_header(bytes(content[:HEADER_BYTES]), path.name)
    except Refused as refused:
        raise Refused(refused.code, f"image '{path}' cannot be read: {refused.reason}") from refused
    stored = header.stored
    if not header.single or header.frames > 1 or stored.kind != "number":
        raise MedgenError(f"image '{path}' must be one 3D volume of plain numbers in one .nii file. Convert it first.")
    if len(content) < header.offset + header.voxels * stored.bytes:
        raise Refused("TRUNCATED_FILE", f"image '{path}' ends before its voxels do. Get a whole copy.")
    numbers = np.frombuffer(content, stored.dtype, header.voxels, header.offset).reshape(header.space, order="F")
    return content, numbers, header


def _as_stored(
    array: np.ndarray, meta: Mapping[str, Any]
) -> tuple[np.ndarray, np.dtype, float, float, tuple[Finding, ...]]:
    """Stored numbers, their type, slope and intercept: the source's where they hold the values, else float32."""
    # NIfTI-1 has them in single precision: the stored numbers are made for what it will hold
    with np.errstate(over="ignore", under="ignore"):
        slope, inter = float(np.float32(meta.get("scl_slope", 1))), float(np.float32(meta.get("scl_inter", 0)))
    target = np.dtype(str(meta["stored_dtype"]))
    if array.dtype == target and (slope, inter) == (1.0, 0.0):
        return array, target, 1.0, 0.0, ()
    usable = slope != 0 and math.isfinite(slope) and math.isfinite(inter)  # beyond single precision they are not
    numbers = array if (slope, inter) == (1.0, 0.0) or not usable else (array.astype(np.float64) - inter) / slope
    if usable and _holds(numbers, target):
        return numbers, target, slope, inter, ()
    if array.dtype.kind in "iu":
        kept = array.dtype
    else:
        largest = float(np.abs(array).max())
        kept = np.dtype(np.float32) if largest <= np.finfo(np.float32).max else array.dtype
    scaling = "" if (slope, inter) == (1.0, 0.0) else f" with slope {slope:g} and intercept {inter:g}"
    text = f"the source's {target.name}{scaling} does not hold the values; {kept.name} was stored"
    return array, kept, 1.0, 0.0, (Finding("TYPE_CHANGED", text),)


def _holds(numbers: np.ndarray, target: np.dtype) -> bool:
    """Whether a type holds numbers well enough: all in range, little lost by rounding."""
    if target.kind == "f":
        return bool(np.abs(numbers).max() <= np.finfo(target).max)
    low, high = np.iinfo(target).min, np.iinfo(target).max
    if not (low <= np.rint(numbers.min()) and np.rint(numbers.max()) <= high):
        return False
    if numbers.dtype.kind in "iu":
        return True
    step = 1 / math.sqrt(12)
    if step <= _ROUNDING * float(numbers.std(dtype=np.float64)):
        return True
    return bool(np.abs(numbers - np.rint(numbers)).max() <= 1e-3)


def _stored_records(volume: torch.Tensor, meta: Mapping[str, Any]) -> np.ndarray | None:
    """Colours or complex numbers ``(X, Y, Z)`` of a volume that has them as channels; None where it has not."""
    channels, record = _RECORDS.get(str(meta.get("stored_dtype")), (0, np.dtype("u1")))
    if volume.ndim != 4 or volume.shape[0] != channels:
        return None
    parts = volume.as_tensor() if isinstance(volume, MetaTensor) else volume
    array = np.moveaxis(parts.detach().cpu().numpy(), 0, -1)
    if record.kind == "c":
        made = array[..., 0] + 1j * array[..., 1].astype(np.float64)
        return np.asarray(made).astype(record)
    if array.min() < 0 or array.max() > 255:
        raise MedgenError("write_nifti: colours must lie in 0..255. Nothing was written.")
    return np.ascontiguousarray(array.round().astype(np.uint8)).view(record)[..., 0]


def _pieces(
    array: np.ndarray, place: tuple[np.ndarray, tuple[int, int]], slope: float, inter: float, text: bytes | None
) -> Iterator[memoryview]:
    """The plain bytes of a NIfTI-1 file (NIfTI-2 where an axis is too long for it), some slices at a time.

    Args:
        array: stored numbers ``(X, Y, Z)``.
        place: affine, RAS+ mm, and the codes of sform and qform.
        slope: of the scaling.
        inter: of the scaling.
        text: of the mark.
    """
    kind = nib.Nifti1Header if max(array.shape) < 2**15 else nib.Nifti2Header
    header = kind()
    header.set_data_dtype(array.dtype)
    header.set_data_shape(array.shape)
    header.set_xyzt_units("mm")
    _set_forms(header, *place)
    if (slope, inter) != (1.0, 0.0):
        header.set_slope_inter(slope, inter)
    header["magic"] = kind.single_magic
    mark = b"\1\0\0\0" + mark_of(header.endianness, text) if text else bytes(4)
    header["vox_offset"] = len(header.binaryblock) + len(mark)
    yield memoryview(header.binaryblock + mark)
    step = min(array.shape[2], max(1, _SLAB_BYTES * array.shape[2] // array.nbytes))
    slab = np.empty((step, *array.shape[1::-1]), array.dtype)
    for start in range(0, array.shape[2], step):
        part = array[:, :, start : start + step].T
        if not part.flags.c_contiguous:
            _transpose(part, slab)
            part = slab[: len(part)]
        yield part.reshape(-1).view(np.uint8).data


def _set_forms(header: nib.Nifti1Header, affine: np.ndarray, codes: tuple[int, int]) -> None:
    """Both forms with their codes; a sheared affine, which no qform holds, has an sform in any case."""
    sform, qform = codes
    header.set_qform(affine, code=qform)
    if not sform and not np.allclose(header.get_qform(), affine, rtol=1e-4, atol=1e-3):
        sform = qform
    header.set_sform(affine, code=sform)


def _transpose(source: np.ndarray, target: np.ndarray) -> None:
    """Copies into the other memory order, a column of tiles at a time, which the caches like better."""
    depth, height, width = source.shape
    for y in range(0, height, _TILE):
        for x in range(0, width, _TILE):
            target[:depth, y : y + _TILE, x : x + _TILE] = source[:, y : y + _TILE, x : x + _TILE]


def check_name(path: Path) -> None:
    """Refuses a name that does not end in ``.nii`` or ``.nii.gz``.

    Raises:
        MedgenError: with the name.
    """
    if not path.name.lower().endswith((".nii", ".nii.gz")):
        raise MedgenError(f"cannot write '{path}': the name must end in .nii.gz or .nii.")


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


def cast_to(array: np.ndarray, dtype: np.dtype, what: str) -> np.ndarray:
    """``array`` in the stored type; a value that does not fit is refused."""
    if array.dtype.kind == "f" and not (np.isfinite(array.min()) and np.isfinite(array.max())):
        raise MedgenError(f"{what} holds values that are NaN or infinite. Nothing was written.")
    if dtype == np.bool_:
        dtype = np.dtype(np.uint8)
    if dtype == np.int64 and array.dtype.kind in "iu":
        dtype = np.dtype(np.int32)
    if array.dtype == dtype:
        return array
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


def write_pieces(path: Path, pieces: Iterable[Any]) -> None:
    """Writes a NIfTI file, gzipped if its name says so."""
    with atomic_path(path) as temporary:
        with open(temporary, "wb") as file:
            packed = path.name.lower().endswith(".gz")
            count = write_gzip(file, pieces) if packed else sum(file.write(piece) for piece in pieces)
        if temporary.stat().st_size != count:
            raise OSError(f"'{path}' was written short: {temporary.stat().st_size} of {count} bytes")
