"""Phantoms of several frames in one file: enhanced CT, MR and PET, mosaics, and older multi-frame objects."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as Items

from tests.io.dicom.phantom import Field, Grid, Pixels, header, numbers, set_bytes, set_format, set_plane, uid

ENHANCED_CT, ENHANCED_MR, ENHANCED_PET, LEGACY_CT = (
    "1.2.840.10008.5.1.4.1.1.2.1",
    "1.2.840.10008.5.1.4.1.1.4.1",
    "1.2.840.10008.5.1.4.1.1.130",
    "1.2.840.10008.5.1.4.1.1.2.2",
)
_GROUP_OF = {
    "EffectiveEchoTime": "MREchoSequence",
    "DiffusionBValue": "MRDiffusionSequence",
    "TemporalPositionTimeOffset": "TemporalPositionSequence",
    "NominalCardiacTriggerDelayTime": "CardiacSynchronizationSequence",
}


@dataclass
class Frame:
    """One frame.

    Args:
        grid: orientation, spacing and matrix.
        index: the slice of the grid.
        values: the field.
        pixels: the pixel format and this frame's rescale.
        content: tags of FrameContentSequence.
        groups: tags of other functional groups, by keyword.
        frame_type: FrameType.
    """

    grid: Grid
    index: int
    values: Field = field(default_factory=Field)
    pixels: Pixels = field(default_factory=Pixels)
    content: Mapping[str, Any] = field(default_factory=dict)
    groups: Mapping[str, Any] = field(default_factory=dict)
    frame_type: Sequence[str] = ("ORIGINAL", "PRIMARY", "VOLUME", "NONE")

    def stored(self) -> np.ndarray:
        values = self.values(self.grid.points(self.index))
        return np.rint((values - self.pixels.intercept) / (self.pixels.slope or 1.0)).astype(self.pixels.dtype)


def frames_of(grid: Grid, values: Field | None = None, **options: Any) -> list[Frame]:
    """One frame for each slice of a grid."""
    return [Frame(grid, index, values or Field(), **options) for index in range(grid.slices)]


def enhanced(
    frames: Sequence[Frame],
    sop_class: str = ENHANCED_CT,
    *,
    shared: Sequence[str] = ("PixelMeasuresSequence", "PlaneOrientationSequence", "PixelValueTransformationSequence"),
    number: int = 1,
) -> Dataset:
    """An enhanced multi-frame data set.

    Args:
        frames: in the order of the pixels.
        sop_class: which enhanced object.
        shared: functional groups that stand once for all frames, taken from the first one.
        number: InstanceNumber.
    """
    ds = header("MR" if sop_class == ENHANCED_MR else "CT", "enhanced", number)
    ds.SOPClassUID, ds.SOPInstanceUID = sop_class, uid("enhanced", sop_class, number)
    ds.ImageType = list(frames[0].frame_type)
    ds.NumberOfFrames = len(frames)
    groups = [_groups(frame, number + 1, sop_class) for number, frame in enumerate(frames)]
    for_all = Dataset()
    for name in shared:
        if name in groups[0]:
            setattr(for_all, name, groups[0][name].value)
    for group in groups:
        for name in shared:
            group.pop(name, None)
    ds.SharedFunctionalGroupsSequence, ds.PerFrameFunctionalGroupsSequence = Items([for_all]), Items(groups)
    set_format(ds, frames[0].pixels, (frames[0].grid.rows, frames[0].grid.columns))
    set_bytes(ds, np.stack([frame.stored() for frame in frames]).tobytes())
    return ds


def _groups(frame: Frame, number: int, sop_class: str) -> Dataset:
    group, plane, orientation, measures = Dataset(), Dataset(), Dataset(), Dataset()
    classic = Dataset()
    set_plane(classic, frame.grid, frame.grid.position(frame.index))
    plane.ImagePositionPatient = classic.ImagePositionPatient
    orientation.ImageOrientationPatient = classic.ImageOrientationPatient
    measures.PixelSpacing, measures.SliceThickness = classic.PixelSpacing, classic.SliceThickness
    content = Dataset()
    content.FrameAcquisitionNumber, content.StackID, content.InStackPositionNumber = number, "1", frame.index + 1
    content.DimensionIndexValues = [1, frame.index + 1]
    for keyword, value in frame.content.items():
        setattr(content, keyword, value)
    group.FrameContentSequence = Items([content])
    group.PlanePositionSequence, group.PlaneOrientationSequence = Items([plane]), Items([orientation])
    group.PixelMeasuresSequence = Items([measures])
    if frame.pixels.slope is not None:
        rescale = Dataset()
        rescale.RescaleIntercept, rescale.RescaleSlope = numbers([frame.pixels.intercept, frame.pixels.slope])
        rescale.RescaleType = "HU"
        group.PixelValueTransformationSequence = Items([rescale])
    kind = Dataset()
    kind.FrameType = list(frame.frame_type)
    setattr(
        group, "MRImageFrameTypeSequence" if sop_class == ENHANCED_MR else "CTImageFrameTypeSequence", Items([kind])
    )
    for keyword, value in frame.groups.items():
        item = Dataset()
        setattr(item, keyword, value)
        setattr(group, _GROUP_OF[keyword], Items([item]))
    return group


def mosaic(
    grid: Grid,
    values: Field,
    *,
    across: int = 3,
    csa: bool = True,
    private_count: bool = True,
    normal: Sequence[float] | None = None,
    number: int = 1,
) -> Dataset:
    """A Siemens mosaic: the slices as tiles of one image, ``across`` in a row; unused tiles are zero.

    Args:
        grid: the slices.
        values: the field.
        across: tiles in a row and in a column.
        csa: write the image header with count and normal.
        private_count: write (0019,100A) NumberOfImagesInMosaic.
        normal: SliceNormalVector of the header; that of the step otherwise.
        number: InstanceNumber.
    """
    ds = header("MR", "mosaic", number)
    ds.ImageType = ["ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"]
    ds.Manufacturer = "SIEMENS"
    height, width = across * grid.rows, across * grid.columns
    image = np.zeros((height, width), "<u2")
    for index in range(grid.slices):
        down, right = divmod(index, across)
        tile = np.rint(values(grid.points(index))).astype("<u2")
        image[down * grid.rows : (down + 1) * grid.rows, right * grid.columns : (right + 1) * grid.columns] = tile
    columns, rows = (width - grid.columns) / 2, (height - grid.rows) / 2
    shift = columns * grid.spacing[0] * np.asarray(grid.row) + rows * grid.spacing[1] * np.asarray(grid.column)
    set_plane(ds, grid, grid.position(0) - shift)
    ds.SpacingBetweenSlices = ds.SliceThickness
    set_format(ds, Pixels(stored=12), image.shape)
    set_bytes(ds, image.tobytes())
    if private_count:
        block = ds.private_block(0x0019, "SIEMENS MR HEADER", create=True)
        block.add_new(0x0A, "US", grid.slices)
    if csa:
        step = np.asarray(grid.step) / np.linalg.norm(grid.step)
        direction = step if normal is None else np.asarray(normal)
        content = csa_header(
            {
                "NumberOfImagesInMosaic": ("US", [str(grid.slices)]),
                "SliceNormalVector": ("FD", [f"{value:.8f}" for value in direction]),
            }
        )
        block = ds.private_block(0x0029, "SIEMENS CSA HEADER", create=True)
        block.add_new(0x10, "OB", content)
    return ds


def csa_header(tags: Mapping[str, tuple[str, Sequence[str]]]) -> bytes:
    """A header of Siemens' second kind ("SV10")."""
    out = b"SV10\4\3\2\1" + struct.pack("<II", len(tags), 77)
    for name, (vr, values) in tags.items():
        count = max(6, len(values))
        out += name.encode().ljust(64, b"\0") + struct.pack("<i", len(values)) + vr.encode().ljust(4, b"\0")
        out += struct.pack("<iii", 0, count, 77)
        for index in range(count):
            text = values[index].encode() + b"\0" if index < len(values) else b""
            out += struct.pack("<iiii", len(text), len(text), 77, len(text)) + text + bytes(-len(text) % 4)
    return out + bytes(-len(out) % 4)
