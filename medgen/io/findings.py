"""What reading finds out: files used, skipped or refused, volumes and what is to be said about them, by stable codes.

A code is a stable upper-case word that scripts may rely on. The same word stands in ``report.json``, in the text of an
error and in :data:`CODES`, where each is explained.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np

from medgen.checks import MedgenError

if TYPE_CHECKING:
    from monai.data import MetaTensor

__all__ = [
    "CODES",
    "DEFAULT_MEMORY_BUDGET",
    "FileRecord",
    "Finding",
    "ReadOptions",
    "Refused",
    "Survey",
    "VolumeSource",
]

DEFAULT_MEMORY_BUDGET = 8 * 2**30
"""Bytes that one volume may take when it is loaded; more is refused with ``OVER_BUDGET`` before it is allocated."""

CODES: dict[str, str] = {
    # skipped: not an image of a volume
    "NOT_DICOM": "not a DICOM file, among DICOM files",
    "NOT_AN_IMAGE": "a DICOM object without an image volume (report, segmentation, plan, ...)",
    "DICOMDIR": "an index of DICOM files",
    "LOCALIZER": "a scout or localizer image",
    "HIDDEN_FILE": "a file whose name begins with a dot",
    "UNKNOWN_FORMAT": "a file of no format that medgen reads",
    "EMPTY_FILE": "a file of no bytes",
    "PICTURE": "a plain picture in a folder",
    "SPECIAL_FILE": "a pipe, socket or device",
    "SAME_FILE": "a link to a file that is read under its own name",
    # skipped: an image that an unattended restoration leaves alone
    "OWN_OUTPUT": "something that medgen made",
    "DIFFUSION": "a diffusion series: its b-values say so",
    "NOT_SELECTED": "a volume that was not asked for",
    "ARRIVING": "a series whose files were still being written",
    "NOTHING_TO_DO": "a volume that has what was asked for already",
    # refused: an image that cannot be used as it is
    "MISSING_SLICE": "slices are missing between the first and the last",
    "UNEVEN_SLICES": "the distances between slices differ",
    "SINGLE_SLICE": "one slice alone is no volume",
    "DUPLICATE_SLICE": "two slices at one position differ, and nothing tells them apart",
    "SLICE_SIZE_DIFFERS": "slices of one series differ in size",
    "TRUNCATED_PIXEL_DATA": "fewer pixels than the header promises",
    "TRUNCATED_FILE": "the file ends early",
    "NO_GEOMETRY": "no position, orientation or spacing",
    "BAD_GEOMETRY": "a position, orientation or spacing that is not finite or not possible",
    "BAD_AFFINE": "an affine that is not finite or not invertible",
    "BAD_HEADER": "a header that is not of the format that the name says, or not possible",
    "BAD_HIGH_BIT": "a HighBit that the pixels contradict",
    "UNREADABLE": "a file or folder that cannot be opened or read",
    "ZERO_SLOPE": "a rescale slope of zero",
    "BAD_RESCALE": "a rescale slope or intercept that is no finite number",
    "HEADER_PROMISES_TOO_MUCH": "the header promises more than the file can hold",
    "SIZE_DISAGREES": "the file holds so much more than its header says that the header cannot be right",
    "OVER_BUDGET": "more memory than the budget allows",
    "UNSUPPORTED_TYPE": "a kind of image that is not read (colour, ...)",
    "UNSUPPORTED_DTYPE": "colour, complex or rare numbers, unless asked for",
    "UNDECODABLE": "compressed pixels that cannot be decoded",
    "NON_FINITE": "values that are NaN or infinite",
    "SEVERAL_FRAMES": "more than three dimensions",
    # refused: a volume that cannot be written as asked
    "UNWRITABLE_GEOMETRY": "a grid that DICOM slices cannot hold",
    "VALUES_DO_NOT_FIT": "values that the stored type cannot hold",
    "BAD_REFERENCE": "a reference series that cannot be what the volume is derived from",
    "BAD_SUBJECT": "a name that is no PatientID",
    "BAD_LABEL": "a label map that cannot be written as segments",
    "BROKEN_LINK": "a link that leads to nothing",
    "NO_VOLUME": "no volume where one is needed",
    "SEVERAL_VOLUMES": "several volumes where one is needed",
    "UNWRITABLE": "a volume that the output format cannot hold",
    "GRIDS_DIFFER": "volumes that must share a grid do not",
    "EXCLUDED": "a volume that the model's card excludes; the text has the card's line",
    "NO_MODEL": "no bundled model does this task for this modality",
    "WRONG_OPTION": "an option that the task does not heed, or out of its range, or a model of another kind",
    "NO_MASK": "there is no mask of what is to be filled",
    "NO_PLACE": "a hole that has too few other places in the scan to make samples of",
    "BAD_MASK": "a mask that is empty, covers the whole volume, or holds other values than 0 and 1",
    "REFUSED": "a volume that the method or the model does not take for another reason; the text says why",
    # failed: a volume that could not be finished
    "TIMEOUT": "more time than was allowed",
    "OUT_OF_MEMORY": "more memory than was allowed, or than there is",
    "CRASHED": "the process died",
    "FAILED": "an error that nobody foresaw",
    # findings: used, and this is to be known
    "SPLIT_SERIES": "one series held several volumes",
    "DUPLICATES_DROPPED": "identical copies of slices were left out",
    "GANTRY_TILT": "slices are sheared: the affine is, too",
    "POSITIONS_ROUNDED": "positions lie a little off an even grid, which was used",
    "FRAME_OF_REFERENCE_DIFFERS": "slices of one volume name different frames of reference",
    "REPEATED_UID": "different slices share one SOPInstanceUID",
    "SLICE_LOCATION_DISAGREES": "SliceLocation differs from the positions, which were used",
    "SPACING_DISAGREES": "a spacing tag differs from the positions, which were used",
    "RESCALE_VARIES": "rescale differs between slices; each has its own",
    "LOSSY_COMPRESSION": "the values went through lossy compression",
    "MOSAIC": "slices were cut from a mosaic",
    "MONOCHROME1": "stored values rise towards dark; they were not inverted",
    "BITS_ABOVE_HIGH_BIT": "bits above HighBit were not zero; they were ignored",
    "SFORM_QFORM_DISAGREE": "sform and qform differ; the text says which was used",
    "BAD_FORM_CODE": "an sform_code or qform_code that the standard does not know",
    "UNITS_CONVERTED": "lengths were not in mm and were converted",
    "UNITS_UNKNOWN": "no unit of length; mm was taken",
    "NON_FINITE_MASKED": "values that were NaN or infinite were replaced, as asked",
    "PADDING_VALUES": "voxels hold the value that the header calls padding",
    "EXTRA_BYTES": "the file holds more bytes than its header says",
    "BITPIX_DISAGREES": "bitpix differs from the datatype, which was used",
    "BURNED_IN_ANNOTATION": "text may be burned into the pixels",
    "DERIVED": "the images were computed from others",
    "TYPE_CHANGED": "the source's stored type did not hold the values; another was written",
    "SYNTHETIC": "the images are synthetic",
}
"""Every code and its meaning. Codes are only ever added."""

Status = Literal["used", "skipped", "refused"]


class Refused(MedgenError):
    """A file, or a set of files, that is not read because the result would be wrong or is not asked for.

    Args:
        code: stable, see the module's text.
        reason: one sentence: what was found and how to mend it.
    """

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(f"{code}: {reason}")
        self.code = code
        self.reason = reason


@dataclass(frozen=True)
class Finding:
    """Something to know about a volume that is used all the same.

    Args:
        code: stable, see the module's text.
        text: one sentence with the figures.
    """

    code: str
    text: str


@dataclass(frozen=True)
class FileRecord:
    """What became of one file.

    Args:
        path: the file.
        status: ``used`` in a volume; ``skipped``: not an image of a volume; ``refused``: an image that cannot be used.
        code: why, for skipped and refused.
        reason: one sentence, for skipped and refused.
        volume: position in ``Survey.volumes``, for used.
    """

    path: Path
    status: Status
    code: str | None = None
    reason: str | None = None
    volume: int | None = None


@dataclass(frozen=True)
class ReadOptions:
    """What a reader may do that it does not do unasked.

    Args:
        each_frame: the volumes of a 4D file, one after the other.
        channels: colour and complex numbers, as channels.
        mask_non_finite: NaN and infinite values become 0, with a finding, where they are refused otherwise.
        without_geometry: files (no DICOM) without orientation, place or spacing are taken with voxel indices as mm,
            with a finding; the pictures of a folder make one volume.
        memory_budget: bytes that one volume may take.
    """

    each_frame: bool = False
    channels: bool = False
    mask_non_finite: bool = False
    without_geometry: bool = False
    memory_budget: int = DEFAULT_MEMORY_BUDGET


class VolumeSource(Protocol):
    """One volume that can be loaded: everything about it is known before its voxels are."""

    @property
    def name(self) -> str:
        """A short name for output files, made of what identifies the volume; no suffix, no separator."""
        ...

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that it is made of."""
        ...

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels along the three array axes."""
        ...

    @property
    def affine(self) -> np.ndarray:
        """RAS+ mm, 4x4 float64."""
        ...

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What is to be said about it."""
        ...

    def load(self) -> MetaTensor:
        """Shape ``(1, X, Y, Z)``, values in the scaled unit, affine RAS+ mm.

        The type is the smallest of int16, int32 and float32 that holds the values (float64 only where float32 cannot
        tell two stored numbers apart). Late findings, which only the voxels show, are appended to ``findings`` by
        then.

        Raises:
            Refused: the voxels are not what the header promised.
        """
        ...


@dataclass
class Survey:
    """What is in a set of files: every file once, every volume once.

    Args:
        volumes: in the order of their names.
        files: used + skipped + refused = found; in the order of their paths.
    """

    volumes: Sequence[VolumeSource] = field(default_factory=list)
    files: Sequence[FileRecord] = field(default_factory=list)
