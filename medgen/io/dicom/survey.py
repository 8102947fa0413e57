"""What is in a list of DICOM files: every file once, every volume once."""

from __future__ import annotations

import stat
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from medgen.io.dicom.frames import Slice, same_rescale, slices_of
from medgen.io.dicom.grouping import Part, volumes_of
from medgen.io.dicom.header import Header, read_header
from medgen.io.dicom.kinds import set_aside
from medgen.io.dicom.pixels import PixelFile
from medgen.io.dicom.values import read_stored
from medgen.io.dicom.volume import DicomVolume
from medgen.io.findings import DEFAULT_MEMORY_BUDGET, FileRecord, Finding, Refused, Survey

__all__ = ["survey_dicom"]

_Kind = tuple[bytes, ...]
_DOSE = "1.2.840.10008.5.1.4.1.1.481.2"


def survey_dicom(files: Sequence[Path], *, memory_budget: int = DEFAULT_MEMORY_BUDGET) -> Survey:
    """Finds the volumes in a list of files, whatever their folders and names.

    Only headers are read (and the beginnings of compressed pixels): what can be known is found before voxels are
    allocated. The rules of grouping stand in :mod:`medgen.io.dicom.grouping`, those of even spacing, with their
    tolerances, in :mod:`medgen.io.dicom.geometry`. A fault in one slice (missing geometry, truncated pixels, zero
    slope, ...) refuses all slices of its series that have its matrix size: a volume without it would be wrong.

    Args:
        files: what to look at; a file named twice counts once.
        memory_budget: bytes that one volume may take.

    Returns:
        Volumes in the order of their names, and what became of every file, in the order of their paths: used,
        skipped (no DICOM, no image, localizer, identical copy) or refused, with a code and a reason.
    """
    return _Survey(memory_budget).of(files)


class _Survey:
    """One call of :func:`survey_dicom`."""

    def __init__(self, memory_budget: int) -> None:
        self.budget = memory_budget
        self.records: dict[Path, FileRecord] = {}
        self.slices: dict[str, list[Slice]] = defaultdict(list)
        self.faults: dict[str, list[tuple[Header, Refused]]] = defaultdict(list)
        self.volumes: list[DicomVolume] = []

    def of(self, files: Sequence[Path]) -> Survey:
        paths = sorted({Path(path) for path in files})
        for path in paths:
            self._look_at(path)
        for uid in dict.fromkeys((*self.slices, *self.faults)):
            self._series(uid)
        self.volumes.sort(key=lambda volume: (volume.name, volume.files))
        for number, volume in enumerate(self.volumes):
            for path in volume.files:
                if path not in self.records:
                    self.records[path] = FileRecord(path, "used", volume=number)
        return Survey(self.volumes, [self.records[path] for path in paths])

    def _look_at(self, path: Path) -> None:
        """Reads the header of one file and sets it aside, or keeps its slices or its fault."""
        try:
            status = path.stat()
            if not stat.S_ISREG(status.st_mode):
                return self._skip(path, "NOT_DICOM", f"'{path.name}' is no file.")
            if status.st_size == 0:
                return self._skip(path, "EMPTY_FILE", f"'{path.name}' is empty.")
            header = read_header(path, self.budget)
        except OSError as error:
            return self._refuse(path, "UNREADABLE", f"'{path.name}' cannot be read ({error.strerror}).")
        if header is None:
            return self._skip(path, "NOT_DICOM", f"'{path.name}' is no DICOM file.")
        aside = set_aside(header)
        if aside is not None:
            return self._skip(path, *aside)
        uid = header.text(0x0020000E) or f"no UID in {path.parent}"
        try:
            self.slices[uid] += self._checked(header)
        except Refused as error:
            self.faults[uid].append((header, error))
        except OSError as error:
            text = f"'{path.name}' cannot be read ({error.strerror})."
            self.faults[uid].append((header, Refused("UNREADABLE", text)))
        return None

    def _checked(self, header: Header) -> list[Slice]:
        """The slices of a file whose pixels are there."""
        if header.fault is not None:
            raise header.fault
        if not header.pixel_tag:
            raise Refused("TRUNCATED_PIXEL_DATA", f"'{header.path.name}' describes an image and holds no pixels.")
        if header.text(0x00080016) == _DOSE:
            raise Refused("UNSUPPORTED_TYPE", f"'{header.path.name}' is a dose grid, whose scaling is not read.")
        slices = slices_of(header)
        if header.pixel_length < 0:
            with PixelFile(header, slices[0].layout, self.budget) as file:
                lossy = file.check()
            for item in slices:
                item.lossy = lossy
        return slices

    def _series(self, uid: str) -> None:
        """Makes volumes of the slices of one series, or refuses them."""
        faults, slices = self.faults[uid], self.slices[uid]
        spoilt: dict[_Kind, Refused] = {}
        for header, fault in faults:
            self._refuse(header.path, fault.code, fault.reason)
            if header.text(0x00280004) in ("", "MONOCHROME1", "MONOCHROME2"):  # colour is another kind of image
                spoilt.setdefault(_kind(header), fault)
        good: list[Slice] = []
        for item in slices:
            own = _kind(item.header)
            spoiler = next((fault for kind, fault in spoilt.items() if _agree(kind, own)), None)
            if spoiler is None:
                good.append(item)
            else:
                self._refuse(item.header.path, spoiler.code, f"its series cannot be used: {spoiler.reason}")
        if good:
            self._volumes(volumes_of(good, self._same_pixels))

    def _volumes(self, parts: list[Part]) -> None:
        volumes: list[DicomVolume] = []
        refused: list[tuple[Part, Refused]] = []
        several = sum(part.refused is None for part in parts) > 1
        for part in parts:
            try:
                if part.refused is not None:
                    raise part.refused
                volumes.append(DicomVolume(part, len(volumes) + 1 if several else 0, self.budget))
            except Refused as error:
                refused.append((part, error))
        used = {path for volume in volumes for path in volume.files}
        for part, reason in refused:
            for path in dict.fromkeys(item.header.path for item in (*part.slices, *part.copies)):
                if path not in used:
                    self._refuse(path, reason.code, reason.reason)
            if used & {item.header.path for item in part.slices}:
                for volume in volumes:
                    volume.add(Finding(reason.code, f"frames were left out of the series: {reason.reason}"))
        for part in parts:
            for item in part.copies:
                if item.header.path not in used and item.header.path not in self.records:
                    self._skip(
                        item.header.path, "DUPLICATES_DROPPED", f"'{item.header.path.name}' is a copy of a slice."
                    )
        self.volumes += volumes

    def _same_pixels(self, first: Slice, other: Slice) -> bool:
        """Whether two slices hold the same stored pixels and the same rescale."""
        if first.tile != other.tile or not same_rescale(first, other):
            return False
        try:
            return np.array_equal(read_stored(first, self.budget), read_stored(other, self.budget))
        except Refused:
            return False

    def _skip(self, path: Path, code: str, reason: str) -> None:
        self.records[path] = FileRecord(path, "skipped", code, reason)

    def _refuse(self, path: Path, code: str, reason: str) -> None:
        self.records[path] = FileRecord(path, "refused", code, reason)


def _kind(header: Header) -> _Kind:
    """SOP class, rows and columns, as bytes: what a slice shares with the others of its volume."""
    values = (header.elements.get(tag) for tag in (0x00080016, 0x00280010, 0x00280011))
    return tuple(value[1] if isinstance(value, tuple) else b"" for value in values)


def _agree(one: _Kind, other: _Kind) -> bool:
    """Whether two files could be slices of one volume, as far as both say."""
    return all(not mine or not yours or mine == yours for mine, yours in zip(one, other, strict=True))
