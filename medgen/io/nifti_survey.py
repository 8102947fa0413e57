"""What is in a NIfTI file: known from the header and the file's size before a voxel is read.

Rules:

- the voxels that the header promises must be there: fewer are refused (``TRUNCATED_FILE``, or
  ``HEADER_PROMISES_TOO_MUCH`` where not even half is there); a slice more or beyond is refused, too
  (``SIZE_DISAGREES``), because then the header is that of another volume; fewer bytes more are a finding
  (``EXTRA_BYTES``).
- more memory than the budget is refused (``OVER_BUDGET``) before it is allocated.
- several frames, colours and complex numbers are refused unless asked for.
- the affine, its unit and its faults: see :mod:`medgen.io.nifti_affine`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from monai.data import MetaTensor

from medgen.io.findings import DEFAULT_MEMORY_BUDGET, FileRecord, Finding, ReadOptions, Refused, Survey
from medgen.io.gzip_bytes import LARGEST_RATIO, head, inflates_to, is_gzip, plain_size, read_array
from medgen.io.nifti_header import HEADER_BYTES, NiftiHeader, Stored, parse_header
from medgen.io.nifti_values import finite, scaled_values

__all__ = ["NiftiSource", "nifti_volumes", "survey_nifti"]

_SOONER: dict[bool, dict[str, np.dtype]] = {
    False: dict.fromkeys(("u1", "i1"), np.dtype(np.int16)),
    True: dict.fromkeys(("u1", "i1", "u2", "i2"), np.dtype(np.float32)),
}
"""Types that are read straight into another one, without and with ``as_float``."""
_ENDINGS = (".nii.gz", ".hdr.gz", ".img.gz", ".nii", ".hdr", ".img")


@dataclass
class NiftiSource:
    """One volume of a NIfTI file; see :class:`medgen.io.findings.VolumeSource`.

    Args:
        name: of the file without its ending; with frames, and their number.
        files: the file, or header and voxels of a pair.
        header: checked.
        affine: RAS+ mm, 4x4 float64.
        findings: what is to be said; those that only voxels show are added by :meth:`load`.
        frame: which volume of several; None where there is one.
        mask_non_finite: replace NaN and infinity by 0.
    """

    name: str
    files: tuple[Path, ...]
    header: NiftiHeader
    affine: np.ndarray
    findings: tuple[Finding, ...]
    frame: int | None = None
    mask_non_finite: bool = False

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels along the three array axes."""
        return self.header.space

    def load(self, *, as_float: bool = False) -> MetaTensor:
        """Values ``(C, X, Y, Z)``, C = 1 except for colours (3 or 4) and complex numbers (2: real, imaginary).

        The array keeps the file's memory order (first axis fastest). ``meta`` says how the numbers were stored:
        ``stored_dtype``, ``scl_slope``, ``scl_inter``; what the affine refers to: ``form_codes`` (of sform and qform);
        and whether the file is marked ``synthetic``.

        Args:
            as_float: float32 in any case.

        Raises:
            Refused: ``TRUNCATED_FILE``, ``UNDECODABLE``, ``SIZE_DISAGREES``, ``NON_FINITE``.
        """
        stored = self.header.stored
        values = scaled_values(self._numbers(stored, as_float), stored)
        if stored.kind == "complex" and stored.inter:
            values[1::2] -= stored.inter  # the intercept is a real number
        late = finite(values, self.mask_non_finite, self.files[0].name)
        self._add(late)
        if as_float:
            values = values.astype(np.float32, copy=False)
        x, y, z = self.shape
        meta = {
            "source": str(self.files[0]),
            "space": "RAS",
            "stored_dtype": stored.name,
            "scl_slope": stored.slope,
            "scl_inter": stored.inter,
            "form_codes": self.header.form_codes,
            "synthetic": self.header.synthetic,
        }
        array = torch.from_numpy(values.reshape(z, y, x, stored.channels).T)
        return MetaTensor(array, affine=torch.from_numpy(self.affine.copy()), meta=meta)

    def _numbers(self, stored: Stored, as_float: bool) -> np.ndarray:
        """The stored numbers of this volume, in file order; small whole ones at once in the type of the values."""
        header, path = self.header, self.files[-1]
        size = header.voxels * stored.bytes
        offset = header.offset + (self.frame or 0) * size
        last = (self.frame or 0) == header.frames - 1
        slice_bytes = size // self.shape[2]
        target = None if stored.scaled else _SOONER[as_float].get(stored.dtype.str[1:])
        numbers, rest = read_array(
            path, offset, header.voxels * stored.channels, stored.dtype, slice_bytes if last else None, target
        )  # fmt: skip
        self._add(_extra(path, rest, slice_bytes))
        return numbers

    def _add(self, findings: Sequence[Finding]) -> None:
        """Adds findings that are not there yet."""
        self.findings += tuple(new for new in findings if new not in self.findings)


def survey_nifti(
    path: str | os.PathLike[str],
    *,
    each_frame: bool = False,
    channels: bool = False,
    mask_non_finite: bool = False,
    without_geometry: bool = False,
    memory_budget: int = DEFAULT_MEMORY_BUDGET,
) -> Survey:
    """What one NIfTI file holds.

    Args:
        path: ``.nii``, ``.nii.gz``, or either file of a ``.hdr`` / ``.img`` pair (gzipped or not); NIfTI-1 or -2, of
            either byte order.
        each_frame: a file of more than three dimensions gives one volume per frame.
        channels: colours and complex numbers become channels.
        mask_non_finite: NaN and infinite values become 0, with a finding.
        without_geometry: a file without sform and qform is taken with voxel indices as mm, with a finding.
        memory_budget: bytes that one volume may take while it is loaded, stored numbers and values together.

    Returns:
        The volumes, and the file or the two files, used or refused.
    """
    path = Path(path)
    options = ReadOptions(each_frame, channels, mask_non_finite, without_geometry, memory_budget)
    try:
        volumes = nifti_volumes(path, options)
    except Refused as refused:
        return Survey([], [FileRecord(file, "refused", refused.code, refused.reason) for file in _files(path)])
    except OSError as error:
        reason = f"'{path.name}' cannot be read: {error.strerror or error}"
        return Survey([], [FileRecord(file, "refused", "UNREADABLE", reason) for file in _files(path)])
    return Survey(volumes, [FileRecord(file, "used", volume=0) for file in volumes[0].files])


def nifti_volumes(path: Path, options: ReadOptions) -> list[NiftiSource]:
    """The volumes of a NIfTI file, at least one; see :func:`survey_nifti`.

    Raises:
        Refused: with what is wrong.
        OSError: a file cannot be opened.
    """
    files = _files(path)
    header = parse_header(head(files[0], HEADER_BYTES), files[0].name)
    _check_files(header, files, path)
    _check_shape(header, options.each_frame, path.name)
    _check_kind(header, options.channels, path.name)
    findings = header.findings + tuple(_check_size(header, files[-1], options.memory_budget))
    affine, more = _geometry(header, options.without_geometry, path.name)
    stem = _stem(path)
    frames: list[int | None] = list(range(header.frames)) if header.frames > 1 else [None]
    return [
        NiftiSource(
            stem if frame is None else f"{stem}-{frame + 1:04d}",
            files, header, affine, findings + more, frame, options.mask_non_finite,
        )
        for frame in frames
    ]  # fmt: skip


def _files(path: Path) -> tuple[Path, ...]:
    """The file, or header and voxels of a pair, from either name; what is not there is left out."""
    lower = path.name.lower()
    if lower.endswith((".img", ".img.gz")):
        header = _sibling(path, ".img", ".hdr")
        return (path,) if header is None else (header, path)
    voxels = _sibling(path, ".hdr", ".img") if lower.endswith((".hdr", ".hdr.gz")) else None
    return (path,) if voxels is None else (path, voxels)


def _sibling(path: Path, old: str, new: str) -> Path | None:
    """The other file of a pair, gzipped or not."""
    name = path.name[:-3] if path.name.lower().endswith(".gz") else path.name
    stem, ending = name[: -len(old)], name[-len(old) :]
    new = new.upper() if ending.isupper() else new
    found = (path.with_name(stem + new + gz) for gz in ("", ".gz", ".GZ"))
    return next((candidate for candidate in found if candidate.is_file()), None)


def _check_files(header: NiftiHeader, files: tuple[Path, ...], path: Path) -> None:
    """The magic letters and the names must agree on whether there is one file or a pair."""
    pair = path.name.lower().endswith((".hdr", ".hdr.gz", ".img", ".img.gz"))
    if header.single == pair:
        said = "one file" if header.single else "a pair of files"
        raise Refused("BAD_HEADER", f"'{path.name}' says that it is {said}, its name says otherwise. Rename it.")
    if pair and len(files) == 1:
        raise Refused("TRUNCATED_FILE", f"'{path.name}' has no file with the voxels beside it. Give .hdr and .img.")


def _check_shape(header: NiftiHeader, each_frame: bool, name: str) -> None:
    shape = " x ".join(map(str, header.shape))
    if header.frames > 1 and not each_frame:
        raise Refused(
            "SEVERAL_FRAMES",
            f"'{name}' has shape {shape}; one 3D volume is needed. Give --each-frame (each_frame=True).",
        )
    if min(header.space) < 2:
        raise Refused("SINGLE_SLICE", f"'{name}' has shape {shape}; one 3D volume is needed, and this is a slice.")


def _check_kind(header: NiftiHeader, channels: bool, name: str) -> None:
    if header.stored.kind != "number" and not channels:
        kinds = {"complex": f"complex{16 * header.stored.dtype.itemsize} numbers", "colour": "colours"}
        raise Refused(
            "UNSUPPORTED_DTYPE",
            f"'{name}' holds {kinds[header.stored.kind]}; plain numbers are needed. Give --channels, or convert it.",
        )


def _check_size(header: NiftiHeader, path: Path, budget: int) -> list[Finding]:
    """Compares what the header promises with what the file holds and what memory allows, without allocating it."""
    stored, total = header.stored, header.voxels * header.frames * header.stored.bytes
    promised, slice_bytes = header.offset + total, header.voxels * header.stored.bytes // header.space[2]
    size, packed = path.stat().st_size, is_gzip(path)
    if packed and size * LARGEST_RATIO < promised:
        raise _too_short(path, promised, size * LARGEST_RATIO)
    needed = header.voxels * (stored.bytes + stored.channels * _value_bytes(stored))
    if packed and needed <= budget:
        told = plain_size(path)
        if told != promised % 2**32 or header.frames > 1:
            size = inflates_to(path, promised + slice_bytes)
        else:
            size = promised
    if needed > budget and (packed or size >= promised):
        raise Refused("OVER_BUDGET", f"'{path.name}' needs {needed} bytes of memory; {budget} are allowed.")
    if size < promised:
        raise _too_short(path, promised, size)
    return _extra(path, size - promised, slice_bytes)


def _value_bytes(stored: Stored) -> int:
    """Bytes of a value that stand beside the stored number while a volume is loaded; at most."""
    if stored.dtype.str[1:] in ("i2", "f4") and not stored.scaled:
        return 0
    return 2 if stored.dtype.itemsize == 1 and not stored.scaled else 8


def _too_short(path: Path, promised: int, there: int) -> Refused:
    code = "HEADER_PROMISES_TOO_MUCH" if there * 2 < promised else "TRUNCATED_FILE"
    return Refused(
        code, f"'{path.name}': the header promises {promised} bytes, at most {there} are there. Get a whole copy."
    )


def _extra(path: Path, count: int, slice_bytes: int) -> list[Finding]:
    """What bytes after the last voxel mean."""
    if count >= slice_bytes:
        raise Refused(
            "SIZE_DISAGREES",
            f"'{path.name}' holds {slice_bytes} bytes or more beyond what its header says: at least a slice. Mend the "
            "header.",
        )
    return [Finding("EXTRA_BYTES", f"{count} bytes follow the last voxel; they were not used")] if count else []


def _geometry(header: NiftiHeader, without: bool, name: str) -> tuple[np.ndarray, tuple[Finding, ...]]:
    """The affine, or voxel indices as mm where that is asked for."""
    if header.affine is not None:
        return header.affine, ()
    if not without:
        raise Refused(
            "NO_GEOMETRY",
            f"'{name}' has neither sform nor qform: no orientation or place. Mend it, or give --without-geometry.",
        )
    return np.eye(4), (Finding("NO_GEOMETRY", "no sform or qform; voxel indices were taken as mm, as asked"),)


def _stem(path: Path) -> str:
    """The file's name without its ending."""
    ending = next((end for end in _ENDINGS if path.name.lower().endswith(end)), path.suffix)
    return path.name[: len(path.name) - len(ending)] or path.name
