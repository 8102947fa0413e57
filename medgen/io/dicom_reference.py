"""The series that a written one is derived from: its headers, and what of them stays true.

Frames: LPS+ mm, as DICOM has it.
"""

from __future__ import annotations

import contextlib
import copy
import os
import warnings
from collections.abc import Iterable, Iterator
from collections.abc import Sequence as Sequence_
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom import config
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.tag import BaseTag
from pydicom.valuerep import validate_value

from medgen.io.dicom_planes import normal_of
from medgen.io.findings import Refused

__all__ = ["Reference", "SourceImage", "copied", "keywords", "quiet", "read_reference"]

_ONE_EACH = ("SeriesInstanceUID", "StudyInstanceUID", "PatientID", "FrameOfReferenceUID", "Modality", "SOPClassUID")
_BINARY = ("AT", "FD", "FL", "OB", "OW", "SL", "SS", "UL", "UN", "US")
_BROKEN = (
    OSError, ValueError, EOFError, KeyError, TypeError, AttributeError, NotImplementedError, BytesLengthException,
)  # fmt: skip
_NEEDED = ("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID")


@dataclass(frozen=True, eq=False)
class SourceImage:
    """One image, or one frame of one, that something is derived from.

    Attributes:
        sop_class: UID.
        sop_instance: UID.
        frame: number from 1 of a multi-frame image, else None.
        position: ImagePositionPatient, shape ``(3,)``, or None.
        orientation: ImageOrientationPatient, shape ``(6,)``, or None.
    """

    sop_class: str
    sop_instance: str
    frame: int | None
    position: np.ndarray | None
    orientation: np.ndarray | None


@dataclass(frozen=True, eq=False)
class Reference:
    """The headers of one series. Made by :func:`read_reference`.

    Attributes:
        headers: one for each file, without pixels, along the slice normal where positions tell it.
        images: what can be referenced, in the same order.
    """

    headers: tuple[Dataset, ...]
    images: tuple[SourceImage, ...]

    @property
    def first(self) -> Dataset:
        """The header that stands for all."""
        return self.headers[0]

    @property
    def middle(self) -> Dataset:
        """The header of the middle slice, which says most of how the images look."""
        return self.headers[len(self.headers) // 2]

    @property
    def orientation(self) -> np.ndarray | None:
        """ImageOrientationPatient that all images share, shape ``(6,)``, else None; with it, all have a position."""
        first = self.images[0].orientation
        if first is None or any(image.orientation is None or image.position is None for image in self.images):
            return None
        others = np.array([image.orientation for image in self.images], dtype=np.float64)
        return first if np.allclose(others, first, atol=1e-4) else None

    @property
    def positions(self) -> np.ndarray:
        """ImagePositionPatient of all images that have one, shape ``(N, 3)``."""
        return np.array([image.position for image in self.images if image.position is not None]).reshape(-1, 3)

    @property
    def pixel_spacing(self) -> np.ndarray | None:
        """PixelSpacing, mm between rows and between columns, shape ``(2,)``; None where it is not there."""
        return _numbers(self.first.get("PixelSpacing"), 2)

    @property
    def synthetic(self) -> bool:
        """Whether any image says that it is synthetic."""
        return any(header.get("SyntheticData", "") == "YES" for header in self.headers)

    @property
    def rescale(self) -> tuple[float, float] | None:
        """Slope and intercept that all images share (1 and 0 where they say nothing), else None."""
        pairs = {(header.get("RescaleSlope", 1), header.get("RescaleIntercept", 0)) for header in self.headers}
        if len(pairs) != 1 or "PerFrameFunctionalGroupsSequence" in self.first:
            return None
        pair = _numbers(pairs.pop(), 2)
        return None if pair is None else (float(pair[0]), float(pair[1]))

    def constant(self, keyword: str) -> bool:
        """Whether all files agree on a tag."""
        values = [header.get(keyword) for header in self.headers]
        return all(value == values[0] for value in values)

    def covers(self, distances: np.ndarray, normal: np.ndarray) -> list[list[SourceImage]]:
        """For each of some slices the source images that it lies on or between.

        Args:
            distances: of the slices along ``normal``, mm.
            normal: of the slices; where the source's is another one, every slice has all source images.
        """
        orientation = self.orientation
        if orientation is None or abs(normal_of(orientation) @ normal) < 1 - 1e-4:
            return [list(self.images) for _ in distances]
        places = self.positions @ normal
        gaps = np.diff(np.unique(places.round(3)))
        reach = (float(np.median(gaps)) if len(gaps) else 1.0) * (1 - 1e-3)
        chosen = []
        for distance in distances:
            off = np.abs(places - distance)
            near = off < max(reach, float(off.min()) * (1 + 1e-6) + 1e-6)
            exact = off < 1e-2 * reach
            chosen.append([self.images[i] for i in np.flatnonzero(exact if exact.any() else near)])
        return chosen


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps pydicom from warning of what is odd in a source: to say so is the reader's part; here it is copied."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@quiet()
def read_reference(files: Sequence_[str | os.PathLike[str]]) -> Reference:
    """Reads the headers of the images of one series.

    Args:
        files: DICOM files of one series: classic images, or one multi-frame image.

    Raises:
        Refused: ``BAD_REFERENCE``: a file is no DICOM image, lacks an identifying UID, or they are not of one series.
    """
    paths = [Path(file) for file in files]
    if not paths:
        raise Refused("BAD_REFERENCE", "the reference series has no files. Give its DICOM files, or no reference")
    headers = [_header(path) for path in paths]
    for keyword in _ONE_EACH:
        values = {str(header.get(keyword, "")) for header in headers}
        if len(values) > 1:
            found = f"the {len(paths)} reference files have {len(values)} values of {keyword}"
            raise Refused("BAD_REFERENCE", f"{found}. Give one series")
    if len({str(header.SOPInstanceUID) for header in headers}) < len(headers):
        raise Refused("BAD_REFERENCE", "two reference files are the same image. Give each once")
    pairs = [(list(_images(header)), header) for header in headers]
    if not all(some for some, _ in pairs):
        raise Refused("BAD_REFERENCE", "a reference file is a multi-frame image without frames. Give one with pixels")
    pairs.sort(key=lambda pair: _place(pair[0][0], pair[1]))
    images = tuple(image for some, _ in pairs for image in some)
    return Reference(tuple(header for _, header in pairs), images)


def copied(source: Dataset, names: Iterable[str], target: Dataset) -> None:
    """Copies the tags that are there, have a value, and hold what their type allows; nested private tags stay out."""
    for name in names:
        if name in source and not _empty(source[name]):
            element = _clean(source[name])
            if element is not None:
                target.add(element)


def _header(path: Path) -> Dataset:
    """The header of one file, decoded, without pixels and private tags; what cannot be decoded is left out."""
    try:
        header = pydicom.dcmread(path, stop_before_pixels=True, force=True)
        for tag in list(header.keys()):
            if tag.is_private or not _decodes(header, tag):
                del header[tag]
    except (InvalidDicomError, *_BROKEN) as error:
        raise Refused("BAD_REFERENCE", f"'{path}' cannot be read as DICOM ({error}). Give DICOM files") from error
    missing = [name for name in (*_NEEDED, "Rows", "Columns") if not header.get(name)]
    if missing:
        raise Refused("BAD_REFERENCE", f"'{path}' is no DICOM image: {', '.join(missing)} is missing")
    return header


def _decodes(header: Dataset, tag: BaseTag) -> bool:
    """Decodes one element, which pydicom does when it is asked for."""
    try:
        _ = header[tag].value
    except _BROKEN:
        return False
    return True


def _images(header: Dataset) -> Iterator[SourceImage]:
    """A classic image once, a multi-frame one once for each frame."""
    uids = (str(header.SOPClassUID), str(header.SOPInstanceUID))
    if "PerFrameFunctionalGroupsSequence" not in header:
        position, orientation = header.get("ImagePositionPatient"), header.get("ImageOrientationPatient")
        yield SourceImage(*uids, None, _numbers(position, 3), _numbers(orientation, 6))
        return
    shared = (header.get("SharedFunctionalGroupsSequence") or [Dataset()])[0]
    for number, frame in enumerate(header.PerFrameFunctionalGroupsSequence, start=1):
        position = _in_group("PlanePositionSequence", "ImagePositionPatient", frame, shared)
        orientation = _in_group("PlaneOrientationSequence", "ImageOrientationPatient", frame, shared)
        yield SourceImage(*uids, number, _numbers(position, 3), _numbers(orientation, 6))


def _in_group(sequence: str, keyword: str, *groups: Dataset) -> Any:
    for group in groups:
        if group.get(sequence):
            return group[sequence].value[0].get(keyword)
    return None


def _numbers(value: Any, count: int) -> np.ndarray | None:
    """A multi-valued tag as finite numbers, or None."""
    try:
        numbers = np.array([float(number) for number in value or ()])
    except (TypeError, ValueError):
        return None
    return numbers if numbers.shape == (count,) and np.isfinite(numbers).all() else None


def _place(image: SourceImage, header: Dataset) -> tuple[float, str]:
    """Sorts along the normal; images without a place by their UID, so that the order never depends on names."""
    if image.position is None or image.orientation is None:
        return 0.0, str(header.SOPInstanceUID)
    return float(image.position @ normal_of(image.orientation)), str(header.SOPInstanceUID)


def _empty(element: DataElement) -> bool:
    return element.is_empty or (element.VR == "SQ" and not len(element.value))


def _clean(element: DataElement) -> DataElement | None:
    """A copy, without private tags inside; None where the value is not of its type."""
    try:
        if element.VR == "SQ":
            items = copy.deepcopy(element.value)
            for item in items:
                item.remove_private_tags()
            return DataElement(element.tag, "SQ", items)
        for value in element.value if element.VM > 1 else [element.value]:
            validate_value(element.VR, value if element.VR in _BINARY else str(value), config.RAISE)
        return DataElement(element.tag, element.VR, copy.deepcopy(element.value), validation_mode=config.IGNORE)
    except _BROKEN:
        return None


def keywords(text: str) -> tuple[str, ...]:
    """DICOM keywords from a text that holds them with spaces between."""
    return tuple(text.split())
