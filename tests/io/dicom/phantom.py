"""DICOM series whose values are a known function of the patient position, made from nothing.

Whatever order, orientation or split a reader chooses, its array and affine can then be checked voxel by voxel: the
value at a position must be that of the :class:`Field` there. Frames: DICOM is LPS+ mm; a :class:`Truth` is RAS+ mm.
"""

from __future__ import annotations

import hashlib
import io
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.tag import Tag
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

CT, MR, PT = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.5.1.4.1.1.128"
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
_SOP_CLASSES = {"CT": CT, "MR": MR, "PT": PT, "OT": SECONDARY_CAPTURE}
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])

Vector = tuple[float, float, float]


@dataclass(frozen=True)
class Field:
    """A smooth function of position that no flip, swap or shift leaves as it was.

    Args:
        base: the value at the patient's origin.
        gradient: change per mm along L, P, S.
        twist: weight of the products of coordinates, per mm squared.
    """

    base: float = 1200.0
    gradient: Vector = (6.0, 4.0, 9.0)
    twist: float = 0.02

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """Values at LPS positions in mm, shape ``(..., 3)``."""
        x, y, z = np.moveaxis(np.asarray(points, dtype=np.float64), -1, 0)
        linear = self.gradient[0] * x + self.gradient[1] * y + self.gradient[2] * z
        return np.asarray(self.base + linear + self.twist * (x * y - y * z / 2))

    def plus(self, amount: float) -> Field:
        """The same function with ``amount`` added."""
        return replace(self, base=self.base + amount)


BYTE = Field(base=128.0, gradient=(2.5, 2.0, 3.0), twist=0.0)
"""Stays within 0..255 on :data:`BYTE_GRID`."""


@dataclass(frozen=True)
class Truth:
    """What one volume must be.

    Args:
        affine: RAS+ mm of voxel ``(column, row, slice)``.
        shape: ``(columns, rows, slices)``.
        field: the values, by position in LPS mm.
        tolerance: the largest difference of a value.
        hole: values at voxels ``(column, row)`` that are not the field's, in every slice: (mask, value).
    """

    affine: np.ndarray
    shape: tuple[int, int, int]
    field: Field
    tolerance: float = 1.0
    hole: tuple[np.ndarray, float] | None = None


@dataclass(frozen=True)
class Grid:
    """The planes of a series, LPS+ mm.

    Args:
        columns: pixels in a row.
        rows: rows in a slice.
        slices: how many.
        origin: centre of the first pixel of the first slice.
        row: direction of growing column index.
        column: direction of growing row index.
        spacing: between columns, between rows.
        step: from a slice to the next.
    """

    columns: int = 24
    rows: int = 20
    slices: int = 8
    origin: Vector = (-9.0, -12.0, 30.0)
    row: Vector = (1.0, 0.0, 0.0)
    column: Vector = (0.0, 1.0, 0.0)
    spacing: tuple[float, float] = (0.75, 1.25)
    step: Vector = (0.0, 0.0, 3.0)

    @property
    def normal(self) -> np.ndarray:
        return np.cross(self.row, self.column)

    def position(self, index: float) -> np.ndarray:
        """Centre of the first pixel of a slice."""
        return np.asarray(self.origin) + index * np.asarray(self.step)

    def points(self, index: float) -> np.ndarray:
        """Centres of all pixels of a slice, ``(rows, columns, 3)``."""
        return self.points_from(self.position(index))

    def points_from(self, position: np.ndarray) -> np.ndarray:
        """Centres of all pixels of a slice whose first pixel lies at ``position``."""
        along = np.arange(self.columns)[None, :, None] * self.spacing[0] * np.asarray(self.row)
        down = np.arange(self.rows)[:, None, None] * self.spacing[1] * np.asarray(self.column)
        return position + along + down

    def turned(self, matrix: np.ndarray) -> Grid:
        """Row, column and step turned by a rotation matrix; the origin stays."""
        row, column, step = (_vector(matrix @ np.asarray(each)) for each in (self.row, self.column, self.step))
        return replace(self, row=row, column=column, step=step)

    def part(self, start: int, stop: int, stride: int = 1) -> Grid:
        """The slices ``start``, ``start + stride``, ... before ``stop``."""
        step = _vector(np.asarray(self.step) * stride)
        count = len(range(start, stop, stride))
        return replace(self, origin=_vector(self.position(start)), step=step, slices=count)

    def moved(self, offset: Sequence[float]) -> Grid:
        """The origin moved by ``offset`` mm."""
        return replace(self, origin=_vector(np.asarray(self.origin) + np.asarray(offset)))

    def truth(self, values: Field | None = None, tolerance: float = 1.0) -> Truth:
        """What a reader must make of all slices."""
        affine = np.eye(4)
        affine[:3, 0] = np.asarray(self.row) * self.spacing[0]
        affine[:3, 1] = np.asarray(self.column) * self.spacing[1]
        affine[:3, 2] = self.step
        affine[:3, 3] = self.origin
        shape = (self.columns, self.rows, self.slices)
        return Truth(_LPS_TO_RAS @ affine, shape, values or Field(), tolerance)


BYTE_GRID = Grid(origin=(-9.0, -12.0, -10.0))


@dataclass(frozen=True)
class Pixels:
    """How values become stored integers: ``value = stored * slope + intercept``.

    Args:
        slope: None leaves the rescale tags out.
        intercept: in the unit of the values.
        signed: two's complement.
        allocated: bits of a pixel cell.
        stored: bits of a value.
        photometric: PhotometricInterpretation.
    """

    slope: float | None = 1.0
    intercept: float = -1024.0
    signed: bool = False
    allocated: int = 16
    stored: int = 12
    photometric: str = "MONOCHROME2"

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(f"<{'i' if self.signed else 'u'}{max(1, self.allocated // 8)}")


PLAIN = Pixels(slope=None, intercept=0.0)
"""No rescale at all, as in most MR."""


@dataclass
class Made:
    """Slices in spatial order and what they must become."""

    grid: Grid
    field: Field
    slices: list[Dataset] = field(default_factory=list)

    @property
    def truth(self) -> Truth:
        return self.grid.truth(self.field)


def make_series(
    grid: Grid | None = None,
    values: Field | None = None,
    pixels: Pixels | None = None,
    *,
    modality: str = "CT",
    series: str = "a",
    first: int = 1,
    **tags: Any,
) -> Made:
    """A single-frame series, slices in the order of the grid.

    Args:
        grid: the planes.
        values: the field.
        pixels: the pixel format.
        modality: CT, MR, PT or OT.
        series: names the SeriesInstanceUID.
        first: InstanceNumber of the first slice.
        tags: set on every slice, by keyword.
    """
    grid, values = grid or Grid(), values or Field()
    pixels = pixels or (PLAIN if modality == "MR" else Pixels())
    made = Made(grid, values)
    for index in range(grid.slices):
        ds = header(modality, series, first + index)
        set_plane(ds, grid, grid.position(index))
        set_pixels(ds, values(grid.points(index)), pixels)
        for keyword, value in tags.items():
            setattr(ds, keyword, value)
        made.slices.append(ds)
    return made


def header(modality: str = "CT", series: str = "a", number: int = 1) -> Dataset:
    """Patient, study, series and instance of a file, without an image."""
    ds = Dataset()
    ds.SpecificCharacterSet = "ISO_IR 100"
    ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    ds.SOPClassUID = _SOP_CLASSES[modality]
    ds.SOPInstanceUID = uid("instance", series, number)
    ds.StudyDate, ds.StudyTime = "20200102", "101112"
    ds.AccessionNumber = ""
    ds.Modality = modality
    ds.Manufacturer = "phantom"
    ds.PatientName, ds.PatientID = "Phantom^One", "P1"
    ds.PatientPosition = "HFS"
    ds.StudyInstanceUID, ds.SeriesInstanceUID = uid("study"), uid("series", series)
    ds.StudyID, ds.SeriesNumber, ds.InstanceNumber = "1", 1, number
    ds.FrameOfReferenceUID = uid("frame")
    return ds


def set_plane(ds: Dataset, grid: Grid, position: np.ndarray) -> None:
    """Position, orientation, spacing, thickness and SliceLocation of a slice."""
    ds.ImagePositionPatient = numbers(position)
    ds.ImageOrientationPatient = numbers([*grid.row, *grid.column])
    ds.PixelSpacing = numbers([grid.spacing[1], grid.spacing[0]])
    ds.SliceThickness = numbers([float(np.linalg.norm(grid.step))])[0]
    ds.SliceLocation = numbers([float(np.dot(position, grid.normal))])[0]


def set_pixels(ds: Dataset, values: np.ndarray, pixels: Pixels) -> None:
    """The image pixel and rescale tags; values ``(rows, columns)`` or ``(frames, rows, columns)``."""
    set_format(ds, pixels, values.shape[-2:])
    slope = 1.0 if pixels.slope is None else pixels.slope
    if pixels.slope is not None:
        ds.RescaleIntercept, ds.RescaleSlope = numbers([pixels.intercept, pixels.slope])
    set_stored(ds, np.rint((values - pixels.intercept) / slope), pixels)


def set_format(ds: Dataset, pixels: Pixels, size: tuple[int, ...]) -> None:
    """The image pixel tags without the data."""
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, pixels.photometric
    ds.Rows, ds.Columns = int(size[0]), int(size[1])
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = pixels.allocated, pixels.stored, pixels.stored - 1
    ds.PixelRepresentation = int(pixels.signed)


def set_stored(ds: Dataset, stored: np.ndarray, pixels: Pixels) -> None:
    """PixelData of integers; raises where one does not fit."""
    low = -(2 ** (pixels.stored - 1)) if pixels.signed else 0
    if stored.min() < low or stored.max() >= low + 2**pixels.stored:
        raise ValueError(f"stored values {stored.min()}..{stored.max()} do not fit {pixels}")
    set_bytes(ds, stored.astype(pixels.dtype).tobytes())


def set_bytes(ds: Dataset, data: bytes, vr: str | None = None) -> None:
    """PixelData, padded to an even length."""
    ds.PixelData = data + b"\0" * (len(data) % 2)
    ds["PixelData"].VR = vr or ("OW" if ds.BitsAllocated > 8 else "OB")


def stored_of(ds: Dataset) -> np.ndarray:
    """The stored integers of native 8, 16 or 32 bit pixels, ``(..., rows, columns)``."""
    kind = "i" if ds.PixelRepresentation else "u"
    array = np.frombuffer(ds.PixelData, f"<{kind}{ds.BitsAllocated // 8}")
    frames = int(ds.get("NumberOfFrames", 1))
    array = array[: frames * ds.Rows * ds.Columns]
    return array.reshape((frames, ds.Rows, ds.Columns) if frames > 1 else (ds.Rows, ds.Columns))


def raw(ds: Dataset, keyword: str, vr: str, value: bytes) -> None:
    """Sets an element of the top level to bytes that pydicom would not let through; :func:`encode` puts them in."""
    value += (b" " if vr in ("DS", "IS", "CS", "LO", "UI") else b"\0") * (len(value) % 2)
    token = hashlib.sha256(f"{keyword}{vr}".encode() + value).hexdigest().encode()
    ds._dict[Tag(keyword)] = RawDataElement(Tag(keyword), "UT", len(token), token, 0, False, True)
    ds.__dict__.setdefault("_raw_elements", {})[int(Tag(keyword))] = (token, vr, value)


def numbers(values: Sequence[float] | np.ndarray) -> list[str]:
    """Decimal strings of at most 16 characters."""
    return [_decimal(float(value)) for value in values]


def uid(*parts: object) -> str:
    """A UID that is the same for the same parts."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return "2.25." + str(int.from_bytes(digest[:15], "big"))


def encode(ds: Dataset, syntax: str = ExplicitVRLittleEndian, preamble: bool = True) -> bytes:
    """The bytes of a DICOM file.

    Args:
        ds: the data set; compressed pixels must be of ``syntax`` already.
        syntax: the transfer syntax.
        preamble: without it: no preamble and no file meta group either.
    """
    buffer = io.BytesIO()
    if not preamble:
        implicit = syntax == ImplicitVRLittleEndian
        ds.__dict__.pop("file_meta", None)
        pydicom.dcmwrite(buffer, ds, implicit_vr=implicit, little_endian=True, enforce_file_format=False)
        return _with_raw(buffer.getvalue(), ds, implicit)
    ds.file_meta = FileMetaDataset()
    ds.file_meta.MediaStorageSOPClassUID = ds.get("SOPClassUID") or CT
    ds.file_meta.MediaStorageSOPInstanceUID = ds.get("SOPInstanceUID") or uid("none")
    ds.file_meta.TransferSyntaxUID = syntax
    ds.file_meta.ImplementationClassUID = uid("phantom")
    pydicom.dcmwrite(buffer, ds, enforce_file_format=True)
    return _with_raw(buffer.getvalue(), ds, syntax == ImplicitVRLittleEndian)


def _with_raw(data: bytes, ds: Dataset, implicit: bool) -> bytes:
    """The bytes of a file with the elements that :func:`raw` set."""
    for tag, (token, vr, value) in ds.__dict__.get("_raw_elements", {}).items():
        number = struct.pack("<HH", tag >> 16, tag & 0xFFFF)
        length = struct.pack("<I", len(token))
        old = number + (length if implicit else b"UT\0\0" + length) + token
        new = number + struct.pack("<I", len(value)) + value if implicit else element(tag, vr, value)
        if data.count(old) != 1:
            raise ValueError(f"element {tag:08x} was not written as it was set")
        data = data.replace(old, new)
    return data


def save(
    folder: Path, slices: Sequence[Dataset], pattern: str = "IM{:04d}.dcm", syntax: str = ExplicitVRLittleEndian
) -> list[Path]:
    """Writes the slices as files of a folder, named by their place in the list."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / pattern.format(number) for number in range(len(slices))]
    for path, ds in zip(paths, slices, strict=True):
        path.write_bytes(encode(ds, syntax))
    return paths


def element(tag: int, vr: str, value: bytes) -> bytes:
    """One explicit little-endian element, for surgery on bytes."""
    start = struct.pack("<HH", tag >> 16, tag & 0xFFFF) + vr.encode()
    if vr in ("OB", "OW", "OF", "OD", "SQ", "UN", "UT", "UC", "UR"):
        return start + struct.pack("<HI", 0, len(value)) + value
    return start + struct.pack("<H", len(value)) + value


def pixel_data_at(data: bytes) -> int:
    """Offset of the first byte of a native PixelData value in an explicit little-endian file."""
    return data.rindex(struct.pack("<HH", 0x7FE0, 0x0010) + b"O", 0) + 12


def rotation(axis: int, degrees: float) -> np.ndarray:
    """A rotation matrix about one axis of the patient."""
    angle, matrix = np.deg2rad(degrees), np.eye(3)
    a, b = [index for index in range(3) if index != axis]
    matrix[a, a] = matrix[b, b] = np.cos(angle)
    matrix[a, b], matrix[b, a] = -np.sin(angle), np.sin(angle)
    return matrix


def _decimal(value: float) -> str:
    if not np.isfinite(value):
        return str(value)
    for digits in range(15, 0, -1):
        text = f"{value:.{digits}g}"
        if len(text) <= 16:
            return text
    raise ValueError(value)


def _vector(values: np.ndarray) -> Vector:
    x, y, z = (float(value) for value in values)
    return x, y, z
