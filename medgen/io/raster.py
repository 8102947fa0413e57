"""NRRD, MetaImage and plain pictures, by the rules of NIfTI files: nothing guessed, nothing filled in.

NRRD and MetaImage have a place in space, in LPS+ or RAS+; SimpleITK reads them, in LPS+, once the file is known to hold
what its header promises. Pictures (PNG, TIFF, JPEG, ...) have none and are refused unless asked for.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor

from medgen.geometry import affine_fault
from medgen.io.findings import DEFAULT_MEMORY_BUDGET, FileRecord, Finding, Refused, Survey
from medgen.io.gzip_bytes import LARGEST_RATIO, inflates_to
from medgen.io.nifti_values import finite, smallest_type
from medgen.io.pictures import PICTURES, survey_pictures
from medgen.io.raster_headers import RasterHeader, metaimage_header, nrrd_header

__all__ = ["RasterSource", "survey_raster"]

_META = (".mha", ".mhd")
_NRRD = (".nrrd", ".nhdr")
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass
class RasterSource:
    """One volume of an NRRD or MetaImage file; see :class:`medgen.io.findings.VolumeSource`.

    Args:
        name: of the file without its ending; with frames, and their number.
        files: the header's file, and that of the numbers where it is another one.
        header: what the file promises.
        affine: RAS+ mm, 4x4 float64.
        findings: what is to be said; those that only voxels show are added by :meth:`load`.
        frame: which volume of several; None where there is one.
        mask_non_finite: replace NaN and infinity by 0.
    """

    name: str
    files: tuple[Path, ...]
    header: RasterHeader
    affine: np.ndarray
    findings: tuple[Finding, ...]
    frame: int | None = None
    mask_non_finite: bool = False

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels along the three array axes."""
        x, y, z = self.header.space
        return x, y, z

    def load(self) -> MetaTensor:
        """Values ``(C, X, Y, Z)``, C = 1 except for colours and the like; the array keeps the file's memory order.

        Raises:
            Refused: ``UNDECODABLE``, ``TRUNCATED_FILE``, ``NON_FINITE``.
        """
        _check_size(self.header, self.files[0].name)
        array = _array(self.files[0], self.header, self.frame or 0)
        stored = self.header.stored or array.dtype.name
        values = smallest_type(array)
        late = finite(values, self.mask_non_finite, self.files[0].name)
        self.findings += tuple(new for new in late if new not in self.findings)
        meta = {"source": str(self.files[0]), "space": "RAS", "stored_dtype": stored}
        return MetaTensor(torch.from_numpy(values), affine=torch.from_numpy(self.affine.copy()), meta=meta)


def survey_raster(
    path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    each_frame: bool = False,
    channels: bool = False,
    mask_non_finite: bool = False,
    without_geometry: bool = False,
    memory_budget: int = DEFAULT_MEMORY_BUDGET,
) -> Survey:
    """What an NRRD, MetaImage or picture file holds.

    Args:
        path: ``.nrrd``, ``.nhdr``, ``.mha``, ``.mhd``, a picture (PNG, TIFF, JPEG, ...), or, with
            ``without_geometry``, several pictures in the order of their slices.
        each_frame: a file of more than three dimensions gives one volume per frame.
        channels: colours, vectors and complex numbers become channels.
        mask_non_finite: NaN and infinite values become 0, with a finding.
        without_geometry: what has no orientation, place or spacing is taken with voxel indices as mm, with a finding.
        memory_budget: bytes that one volume may take while it is loaded.

    Returns:
        The volumes, and the files, used or refused.
    """
    several = not isinstance(path, str | os.PathLike)
    paths = [Path(one) for one in path] if several else [Path(path)]  # type: ignore[union-attr,arg-type]
    if several or paths[0].name.lower().endswith(PICTURES):
        return survey_pictures(
            paths, channels=channels, without_geometry=without_geometry, memory_budget=memory_budget
        )  # fmt: skip
    files: tuple[Path, ...] = (paths[0],)
    try:
        header = _header(paths[0])
        files = files if header.data == paths[0] else (paths[0], header.data)
        _check_kind(header, each_frame, channels, paths[0].name)
        findings = _check_size(header, paths[0].name, memory_budget)
        affine, more = _geometry(paths[0], header, without_geometry)
    except Refused as refused:
        return Survey([], [FileRecord(file, "refused", refused.code, refused.reason) for file in files])
    except OSError as error:
        reason = f"'{paths[0].name}' cannot be read: {error.strerror or error}"
        return Survey([], [FileRecord(file, "refused", "UNREADABLE", reason) for file in files])
    stem = paths[0].name[: -len(paths[0].suffix)] or paths[0].name
    frames: list[int | None] = list(range(header.frames)) if header.frames > 1 else [None]
    volumes = [
        RasterSource(
            stem if frame is None else f"{stem}-{frame + 1:04d}",
            files, header, affine, (*findings, *more), frame, mask_non_finite,
        )
        for frame in frames
    ]  # fmt: skip
    return Survey(volumes, [FileRecord(file, "used", volume=0) for file in files])


def _header(path: Path) -> RasterHeader:
    name = path.name.lower()
    if name.endswith(_META):
        return metaimage_header(path)
    if name.endswith(_NRRD):
        return nrrd_header(path)
    raise Refused("UNKNOWN_FORMAT", f"'{path.name}' is not NRRD, MetaImage or a picture. Convert it.")


def _check_kind(header: RasterHeader, each_frame: bool, channels: bool, name: str) -> None:
    """Refuses what is not asked for."""
    shape = " x ".join(map(str, header.space))
    if header.frames > 1 and not each_frame:
        raise Refused(
            "SEVERAL_FRAMES", f"'{name}' holds {header.frames} frames of {shape}; one is needed. Give --each-frame."
        )
    if len(header.space) < 3 or min(header.space) < 2:
        raise Refused("SINGLE_SLICE", f"'{name}' has shape {shape}; one 3D volume is needed, and this is a slice.")
    if header.channels > 1 and (not channels or header.frames > 1 or header.stored is None):
        raise Refused(
            "UNSUPPORTED_DTYPE",
            f"'{name}' holds {header.channels} numbers per voxel; one is needed. Give --channels (colours and "
            "complex numbers are read so), or convert it.",
        )


def _check_size(header: RasterHeader, name: str, budget: int | None = None) -> list[Finding]:
    """Compares what the header promises with what the file holds and what memory allows, without allocating it."""
    promised, start = header.promised, header.offset or 0
    held, slice_bytes = header.data.stat().st_size - start, promised // header.frames // header.space[2]
    packed = header.packing != "raw"
    most = held * LARGEST_RATIO if packed else held
    if most < promised:
        code = "HEADER_PROMISES_TOO_MUCH" if most * 2 < promised else "TRUNCATED_FILE"
        raise Refused(code, f"'{name}': the header promises {promised} bytes, the file holds less. Get a whole copy.")
    needed = 2 * promised + 8 // header.itemsize * promised // header.frames  # SimpleITK's, numpy's and wider values
    if budget is not None and needed > budget:
        raise Refused("OVER_BUDGET", f"'{name}' needs {needed} bytes of memory; {budget} are allowed.")
    if packed:
        held = inflates_to(header.data, promised + slice_bytes, start, header.packing == "zlib")
    extra = 0 if header.offset is None else held - promised
    if held < promised:
        raise Refused("TRUNCATED_FILE", f"'{name}': {held} of {promised} bytes are there. Get a whole copy.")
    if extra >= slice_bytes:
        raise Refused("SIZE_DISAGREES", f"'{name}' holds a slice or more beyond what its header says. Mend the header.")
    return [Finding("EXTRA_BYTES", f"{extra} bytes follow the last voxel; they were not used")] if extra else []


def _geometry(path: Path, header: RasterHeader, without: bool) -> tuple[np.ndarray, list[Finding]]:
    """The affine, RAS+ mm, and the findings about it."""
    if not header.has_geometry:
        if not without:
            raise Refused(
                "NO_GEOMETRY",
                f"'{path.name}' lacks orientation, place or spacing. Mend it, or give --without-geometry.",
            )
        return np.eye(4), [Finding("NO_GEOMETRY", "no geometry; voxel indices were taken as mm, as asked")]
    reader = _reader(path)
    dims = reader.GetDimension()
    if tuple(reader.GetSize()[:3]) != header.space:
        raise Refused("BAD_HEADER", f"'{path.name}': sizes {reader.GetSize()} and {header.space}. Mend the header.")
    direction = np.array(reader.GetDirection()).reshape(dims, dims)
    if dims > 3 and (direction[:3, 3:].any() or direction[3:, :3].any()):
        raise Refused("BAD_AFFINE", f"'{path.name}': its frames do not lie on one grid. Convert it.")
    lps = np.eye(4)
    lps[:3, :3] = direction[:3, :3] * np.array(reader.GetSpacing()[:3])
    lps[:3, 3] = reader.GetOrigin()[:3]
    affine, factor, findings = _LPS_TO_RAS @ lps + 0.0, header.to_mm, []
    if factor is None:
        findings.append(Finding("UNITS_UNKNOWN", f"the unit of length is {header.unit!r}; mm was taken"))
    elif factor != 1.0:
        findings.append(Finding("UNITS_CONVERTED", f"lengths were in {header.unit} and were converted to mm"))
        affine = np.diag([factor, factor, factor, 1.0]) @ affine
    fault = affine_fault(affine)
    if fault:
        raise Refused("BAD_AFFINE", f"'{path.name}': its affine has a fault: {fault}. Mend the header.")
    return affine, findings


def _array(path: Path, header: RasterHeader, frame: int) -> np.ndarray:
    """Numbers of one frame, ``(C, X, Y, Z)``, in native byte order."""
    import SimpleITK as sitk

    try:
        array = sitk.GetArrayFromImage(_reader(path).Execute())
    except RuntimeError as error:
        raise Refused("UNDECODABLE", f"'{path.name}' cannot be read ({_last_line(error)}). Convert it.") from error
    if array.dtype.kind == "c":
        array = array[..., None].view(array.real.dtype)
    x, y, z = header.space
    if header.frames > 1:
        array = array[frame] if array.shape == (header.frames, z, y, x) else array[..., frame]
    array = array.reshape(z, y, x, -1)
    if array.shape[3] != header.channels:
        raise Refused("BAD_HEADER", f"'{path.name}' has {array.shape[3]} numbers per voxel. Mend the header.")
    return np.asarray(array.T)


def _reader(path: Path) -> Any:
    """SimpleITK's reader with the header read."""
    import SimpleITK as sitk

    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise Refused("BAD_HEADER", f"'{path.name}' cannot be read ({_last_line(error)}). Mend the header.") from error
    return reader


def _last_line(error: Exception) -> str:
    """What SimpleITK says after all its file names."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:120] if lines else type(error).__name__
