"""One volume of DICOM slices: what is known of it, and loading it."""

from __future__ import annotations

import hashlib
import re
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pydicom
import torch
from monai.data import MetaTensor

from medgen.io.dicom.decode import syntax_name
from medgen.io.dicom.frames import Slice, same_rescale
from medgen.io.dicom.geometry import affine_of, geometry_findings
from medgen.io.dicom.grouping import Part
from medgen.io.dicom.pixels import PixelFile
from medgen.io.dicom.tags import tag_name
from medgen.io.dicom.values import clean_bits, stored_type, values_of
from medgen.io.findings import Finding, Refused

__all__ = ["DicomVolume"]


class DicomVolume:
    """Slices that make one volume; a :class:`medgen.io.findings.VolumeSource`.

    Args:
        part: slices in order and the vector between them.
        number: position among the volumes of the series, from 1; 0 where there is one.
        memory_budget: bytes that loading may take.

    Raises:
        Refused: ``OVER_BUDGET``; ``BAD_RESCALE``: some slices have a rescale slope and some have none.
    """

    def __init__(self, part: Part, number: int, memory_budget: int) -> None:
        if part.step is None or part.first is None:
            raise ValueError("DicomVolume: a part that was refused is no volume")
        _check_rescale(part.slices)
        self._slices = part.slices
        self._step = part.step
        self._budget = memory_budget
        self._late: list[Finding] = []
        self._findings = [*part.findings, *geometry_findings(part.slices, part.step), *_header_findings(part.slices)]
        first = part.slices[0]
        self.name = _name(first, number)
        self.label = part.label
        self.series_uid = first.text(0x0020000E)
        self.modality = first.text(0x00080060)
        self.shape: tuple[int, int, int] = (first.columns, first.rows, len(part.slices))
        self.affine = affine_of(first, part.first, part.step)
        self.files: tuple[Path, ...] = tuple(dict.fromkeys(item.header.path for item in part.slices))
        self._check_budget()

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What is to be said about it; what only the voxels show comes with :meth:`load`."""
        return (*self._findings, *self._late)

    def add(self, finding: Finding) -> None:
        """Appends a finding about the series as a whole."""
        self._findings.append(finding)

    @property
    def references(self) -> tuple[tuple[str, str], ...]:
        """SOP class and instance UID of each slice, in order (the same one again for frames of one file)."""
        return tuple((item.text(0x00080016), item.text(0x00080018)) for item in self._slices)

    @property
    def header(self) -> pydicom.Dataset:
        """The data set of the first slice's file, without pixels."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return pydicom.dcmread(self._slices[0].header.path, stop_before_pixels=True, force=True)

    def load(self) -> MetaTensor:
        """Reads the voxels.

        Stored numbers are never inverted (MONOCHROME1) or windowed. Each slice has its own rescale.

        Returns:
            Shape ``(1, X, Y, Z)``: columns, rows, slices by ascending position along row x column. The smallest of
            int16, int32 and float32 that holds the values; float64 only where float32 would make two stored numbers
            one. Affine RAS+ mm, sheared where the gantry was tilted.

        Raises:
            Refused: ``TRUNCATED_PIXEL_DATA``, ``UNDECODABLE``, ``NON_FINITE``, ``UNREADABLE``: a file is not what
                it was, or not what its header says.
        """
        first = self._slices[0]
        stored = np.empty((len(self._slices), first.rows, first.columns), stored_type(self._slices))
        ranges, odd = self._read(stored)
        self._late = _late_findings(self._slices, stored, ranges, odd)
        values = values_of(self._slices, stored, ranges)
        tensor = torch.from_numpy(values.transpose(2, 1, 0)[None])
        meta = {
            "source": str(first.header.path),
            "space": "RAS",
            "series_uid": self.series_uid,
            "synthetic": any(finding.code == "SYNTHETIC" for finding in self.findings),
        }
        return MetaTensor(tensor, affine=torch.from_numpy(self.affine.copy()), meta=meta)

    def _read(self, stored: np.ndarray) -> tuple[list[tuple[float, float]], int]:
        """Fills ``stored``; returns the range of each slice, and how many had bits above their highest."""
        ranges: list[tuple[float, float]] = []
        odd = 0
        file: PixelFile | None = None
        scratch: np.ndarray | None = None
        try:
            for index, item in enumerate(self._slices):
                if file is None or file.header is not item.header:
                    if file is not None:
                        file.__exit__()
                    file, scratch = PixelFile(item.header, item.layout, self._budget).__enter__(), None
                if item.tile is None and stored.dtype == item.layout.dtype:
                    target = stored[index]
                    file.read_into(item.frame, target)
                    odd += clean_bits(target, item.layout, item.header.path.name)
                else:
                    if scratch is None or item.tile is None:
                        scratch = np.empty((item.layout.rows, item.layout.columns), item.layout.dtype)
                        file.read_into(item.frame, scratch)
                        odd += clean_bits(scratch, item.layout, item.header.path.name)
                    row, column = item.tile or (0, 0)
                    target = stored[index]
                    target[...] = scratch[row : row + item.rows, column : column + item.columns]
                ranges.append((target.min().item(), target.max().item()))
        finally:
            if file is not None:
                file.__exit__()
        if not np.isfinite(np.array(ranges, dtype=np.float64)).all():
            raise Refused("NON_FINITE", f"'{self.name}' holds values that are NaN or infinite. Replace them first.")
        return ranges, odd

    def _check_budget(self) -> None:
        """Refuses a volume whose stored numbers and values together exceed the budget."""
        voxels = int(np.prod(self.shape, dtype=object))
        itemsize = stored_type(self._slices).itemsize
        plain = all(item.slope == 1 and item.intercept == 0 and item.lut is None for item in self._slices)
        signed = all(item.layout.signed or item.layout.bits_stored < 16 for item in self._slices)
        frame = max(item.layout.frame_bytes for item in self._slices)
        need = voxels * (itemsize + (0 if plain and signed and itemsize == 2 else max(4, itemsize))) + 9 * frame
        if need > self._budget:
            raise Refused(
                "OVER_BUDGET",
                f"'{self.name}' of {self.shape} voxels takes {need} bytes to load; the budget is {self._budget}.",
            )


def _name(first: Slice, number: int) -> str:
    """Series number, description and a digest of the series UID; with a number where the series was split."""
    digest = hashlib.sha256(first.text(0x0020000E).encode()).hexdigest()[:8]
    words = re.sub(r"[^A-Za-z0-9]+", "-", first.text(0x0008103E)).strip("-")[:40] or first.text(0x00080060) or "series"
    series = first.numbers(0x00200011)
    parts = [
        f"{int(series[0]):03d}" if series and abs(series[0]) < 1e9 else "000",
        re.sub(r"[^A-Za-z0-9-]+", "-", words),
    ]
    return "_".join([*parts, digest, *([f"v{number:02d}"] if number else [])])


def _header_findings(slices: Sequence[Slice]) -> list[Finding]:
    """What the headers of a volume say that is to be known."""
    findings = []
    first = slices[0]
    if any(not same_rescale(first, item) for item in slices):
        slopes = [item.slope for item in slices]
        findings.append(
            Finding(
                "RESCALE_VARIES", f"rescale slopes run from {min(slopes):g} to {max(slopes):g}; each slice has its own."
            )
        )
    lossy = next((item for item in slices if item.lossy or item.text(0x00282110) == "01"), None)
    if lossy is not None:
        findings.append(
            Finding(
                "LOSSY_COMPRESSION", f"the pixels went through lossy compression ({syntax_name(lossy.layout.syntax)})."
            )
        )
    extra = max(item.layout.extra for item in slices)
    if extra:
        findings.append(Finding("EXTRA_BYTES", f"up to {extra} bytes follow the pixels; they were ignored."))
    if first.tile is not None:
        findings.append(
            Finding(
                "MOSAIC",
                f"{len(slices)} slices were cut from a mosaic of {first.layout.rows} x {first.layout.columns}.",
            )
        )
    short = max(item.layout.missing for item in slices)
    if short:
        text = f"pixel elements promise up to {short} bytes more than their files hold, beyond those that are needed."
        findings.append(Finding("HEADER_PROMISES_TOO_MUCH", text))
    findings += _uid_findings(slices)
    if any(item.layout.photometric == "MONOCHROME1" for item in slices):
        findings.append(Finding("MONOCHROME1", "stored values rise towards dark; they were not inverted."))
    if any(item.text(0x00280301) == "YES" for item in slices):
        findings.append(Finding("BURNED_IN_ANNOTATION", "the header says that text is burned into the pixels."))
    if any(item.text(0x00080008).startswith("DERIVED") for item in slices):
        findings.append(Finding("DERIVED", "the images were computed from others (ImageType)."))
    if any(item.text(0x0008001C) == "YES" for item in slices):
        findings.append(Finding("SYNTHETIC", "the images are synthetic (0008,001C)."))
    return findings


def _uid_findings(slices: Sequence[Slice]) -> list[Finding]:
    """Frames of reference that differ, and instance UIDs that different files share."""
    findings = []
    frames = {item.text(0x00200052) for item in slices}
    if len(frames) > 1:
        text = f"slices name {len(frames)} frames of reference; their positions were taken to be of one."
        findings.append(Finding("FRAME_OF_REFERENCE_DIFFERS", text))
    files = {item.header.path: item.text(0x00080018) for item in slices}
    named = [uid for uid in files.values() if uid]
    if len(set(named)) < len(named):
        text = f"{len(named)} files share {len(set(named))} SOPInstanceUIDs and hold different slices."
        findings.append(Finding("REPEATED_UID", text))
    return findings


def _check_rescale(slices: Sequence[Slice]) -> None:
    """Refuses slices whose rescale differs and of which some have a slope, or an intercept, and others have none."""
    if all(same_rescale(slices[0], item) for item in slices):
        return
    for tag in (0x00281053, 0x00281052):
        having = [bool(item.text(tag) or item.lut) for item in slices]
        if any(having) and not all(having):
            name = slices[having.index(False)].header.path.name
            text = f"'{name}' has no {tag_name(tag)}, other slices of its volume have. Mend the header."
            raise Refused("BAD_RESCALE", text)


def _late_findings(
    slices: Sequence[Slice], stored: np.ndarray, ranges: Sequence[tuple[float, float]], odd: int
) -> list[Finding]:
    """What only the voxels show."""
    findings = []
    if odd:
        findings.append(
            Finding("BITS_ABOVE_HIGH_BIT", f"bits above HighBit were set in {odd} slices; they were ignored.")
        )
    padded = 0
    for item, values, (low, high) in zip(slices, stored, ranges, strict=True):
        padding = item.numbers(0x00280120)
        if not padding:
            continue
        ends = [_as_stored(number, item) for number in (padding[0], *item.numbers(0x00280121)[:1])]
        if min(ends) <= high and low <= max(ends):
            padded += int(np.count_nonzero((values >= min(ends)) & (values <= max(ends))))
    if padded:
        findings.append(Finding("PADDING_VALUES", f"{padded} voxels hold the value that the header calls padding."))
    return findings


def _as_stored(number: float, item: Slice) -> float:
    """A padding value that was read as unsigned, in the sign of the pixels."""
    half = 1 << (item.layout.bits_allocated - 1)
    return number - 2 * half if item.layout.signed and number >= half else number
