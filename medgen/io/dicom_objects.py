"""What every DICOM object that medgen writes has in common: checks, dates, references, the bytes of a file.

Frames: LPS+ mm, as DICOM has it.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian
from pydicom.valuerep import format_number_as_ds

from medgen import __version__
from medgen.checks import MedgenError
from medgen.io.dicom_codes import PURPOSES, code_sequence
from medgen.io.dicom_identity import IMPLEMENTATION_UID, digest_of
from medgen.io.dicom_planes import Planes
from medgen.io.dicom_reference import Reference, SourceImage, copied, keywords
from medgen.io.findings import Refused

__all__ = [
    "Synthetic",
    "check_identity",
    "check_overlap",
    "decimals",
    "encoded",
    "file_meta",
    "first_number",
    "geometry_key",
    "series_item",
    "series_number",
    "set_dates",
    "set_laterality",
    "source_item",
    "write_checked",
]

Synthetic = Literal["no", "part", "all"]

# PS3.16 annex L: body parts without a left and a right one; they have no Laterality.
_UNPAIRED = keywords(
    "ABDOMEN ABDOMENPELVIS AORTA BACK BLADDER BRAIN CEREBELLUM CERVIX CHEST CHESTABDOMEN CHESTABDPELVIS CIRCLEOFWILLIS "
    "COCCYX COLON CORONARYARTERY CSPINE CTSPINE DUODENUM ESOPHAGUS FACE GALLBLADDER HEAD HEADNECK HEART ILEUM ILIUM "
    "JAW JEJUNUM LARYNX LIVER LSPINE LSSPINE MAXILLA MEDIASTINUM MOUTH NECK NECKCHEST NECKCHESTABDOMEN "
    "NECKCHESTABDPELV NOSE PANCREAS PELVIS PENIS PHARYNX PROSTATE RECTUM SCALP SKULL SPINE SPLEEN SSPINE STERNUM "
    "STOMACH THYMUS THYROID TLSPINE TONGUE TRACHEA TSPINE URETER URETHRA UTERUS VAGINA VULVA WHOLEBODY"
)


def check_identity(reference: Reference | None, synthetic: Synthetic, subject: str | None, caller: str) -> None:
    """Refuses what would put a real patient's tags on a synthetic subject, or a name where one is given."""
    if reference is not None and synthetic == "all" and not reference.synthetic:
        raise Refused(
            "BAD_REFERENCE",
            "a synthetic subject takes nothing from a real patient's series, and this reference does not say that it "
            "is synthetic. Leave the reference out, or say synthetic 'part'",
        )
    if reference is not None and subject is not None:
        raise MedgenError(f"{caller}: subject and reference exclude each other: the patient is the reference's.")


def check_overlap(planes: Planes, reference: Reference | None) -> None:
    """Refuses a reference that lies elsewhere: its frame of reference cannot be the volume's."""
    orientation = None if reference is None else reference.orientation
    if reference is None or orientation is None:
        return
    first, spacing = reference.first, reference.pixel_spacing
    if spacing is None:
        return
    size = spacing * (first.Rows - 1, first.Columns - 1)
    low, high = _box(reference.positions, orientation, *size)
    own_size = (planes.pixel_spacing[0] * (planes.rows - 1), planes.pixel_spacing[1] * (planes.columns - 1))
    own_low, own_high = _box(planes.positions, planes.orientation, *own_size)
    if (own_low > high).any() or (own_high < low).any():
        raise Refused(
            "BAD_REFERENCE",
            f"the volume ({own_low.round(1)} to {own_high.round(1)} mm, LPS) does not meet the reference series "
            f"({low.round(1)} to {high.round(1)}): their frames of reference differ. Give the series that the volume "
            "comes from",
        )


def _box(positions: np.ndarray, orientation: np.ndarray, down: float, across: float) -> tuple[np.ndarray, np.ndarray]:
    """Smallest and largest LPS coordinates of slices of a size in mm."""
    corners = [positions + x * orientation[:3] + y * orientation[3:] for x in (0.0, across) for y in (0.0, down)]
    return np.min(corners, axis=(0, 1)), np.max(corners, axis=(0, 1))


def series_number(reference: Reference | None, uid: str) -> int:
    """A number that the study hardly has yet: the reference's, and three digits of the UID."""
    number = first_number(None if reference is None else reference.first.get("SeriesNumber")) or 0
    return int(abs(number)) % 10_000 * 1000 + int(digest_of(uid)[:8], 16) % 999 + 1


def set_dates(dataset: Dataset, reference: Reference | None) -> None:
    """Dates of series and content: the reference's, or those of a fresh study."""
    first = dataset if reference is None else reference.first
    for date, time in (("SeriesDate", "SeriesTime"), ("ContentDate", "ContentTime")):
        for source in (date, "SeriesDate", "StudyDate"):
            if first.get(source):
                copied(_renamed(first, {source: date, source.replace("Date", "Time"): time}), (date, time), dataset)
                break


def set_laterality(dataset: Dataset, reference: Reference | None) -> None:
    """The reference's side; empty, which means unknown, where the body part may have one and the reference has none."""
    of_image = "" if reference is None else reference.first.get("ImageLaterality", "")
    if reference is not None and of_image in ("R", "L", "U", "B") and reference.constant("ImageLaterality"):
        dataset.ImageLaterality = of_image
        return
    side = "" if reference is None else reference.first.get("Laterality", "")
    if dataset.get("BodyPartExamined") not in _UNPAIRED:
        dataset.Laterality = side if side in ("R", "L") else ""


def file_meta(dataset: Dataset) -> FileMetaDataset:
    """Group 2 of a file: explicit VR, little endian."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = IMPLEMENTATION_UID
    meta.ImplementationVersionName = f"MEDGEN_{__version__}"[:16]
    return meta


def encoded(dataset: Dataset) -> bytes:
    """A data set with its file meta information as the bytes of a file."""
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def write_checked(path: Path, content: bytes) -> None:
    """Writes a file and reads it back.

    Raises:
        OSError: what was read back differs.
    """
    path.write_bytes(content)
    if path.read_bytes() != content:
        raise OSError(f"'{path.name}' did not read back as it was written")


def decimals(numbers: Any, places: int = 9) -> list[str]:
    """Numbers as DS of at most 16 characters, to ``places`` decimals."""
    return [format_number_as_ds(round(float(number), places) + 0.0) for number in numbers]


def _renamed(source: Dataset, names: Mapping[str, str]) -> Dataset:
    renamed = Dataset()
    for old, new in names.items():
        if source.get(old):
            setattr(renamed, new, source.get(old))
    return renamed


def first_number(value: Any) -> float | None:
    """A tag's first value as a finite number, or None."""
    try:
        number = float(value[0] if hasattr(value, "__len__") and not isinstance(value, str) else value)
    except (TypeError, ValueError, IndexError):
        return None
    return number if np.isfinite(number) else None


def source_item(image: SourceImage, purpose: str | None) -> Dataset:
    """An item of SourceImageSequence: class and instance UID, the frame of a multi-frame image, and the purpose."""
    item = Dataset()
    item.ReferencedSOPClassUID = image.sop_class
    item.ReferencedSOPInstanceUID = image.sop_instance
    if image.frame is not None:
        item.ReferencedFrameNumber = image.frame
    if purpose is not None:
        item.PurposeOfReferenceCodeSequence = code_sequence(PURPOSES[purpose])
    return item


def series_item(reference: Reference) -> Dataset:
    """The whole source series, each file once."""
    item = Dataset()
    item.SeriesInstanceUID = reference.first.SeriesInstanceUID
    files = {image.sop_instance: image for image in reference.images}
    item.ReferencedInstanceSequence = Sequence([
        source_item(SourceImage(image.sop_class, uid, None, None, None), None) for uid, image in files.items()
    ])  # fmt: skip
    return item


def geometry_key(planes: Planes) -> list[Any]:
    """What the header says of the geometry, for :func:`medgen.io.dicom_identity.digest_of`."""
    return [
        decimals(planes.orientation, places=12),
        [decimals(position) for position in planes.positions],
        decimals(planes.pixel_spacing),
        [planes.rows, planes.columns],
    ]
