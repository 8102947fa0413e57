"""Small DICOM series, made from nothing, whose values are a known function of the patient's coordinates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage

ROOT = "1.2.826.0.1.3680043.8.498."


def expected(affine: NDArray[np.float64], shape: tuple[int, ...]) -> NDArray[np.float64]:
    """``(X, Y, Z)``: what a series of :func:`write` holds at each voxel of a RAS+ grid."""
    grid = np.stack(np.meshgrid(*(np.arange(size) for size in shape), indexing="ij"), axis=-1)
    x, y, z = np.moveaxis(grid @ np.asarray(affine)[:3, :3].T + np.asarray(affine)[:3, 3], -1, 0)
    return value_at(-x, -y, z)  # RAS+ to LPS+


def value_at(x: Any, y: Any, z: Any) -> Any:
    """The value at LPS+ mm."""
    return np.rint(1000 + 3 * x + 5 * y + 7 * z)


def write(
    folder: Path,
    *,
    count: int = 5,
    rows: int = 6,
    columns: int = 8,
    spacing: tuple[float, float, float] = (2.0, 1.5, 3.0),
    series: str = "1",
    description: str = "T1 sagittal",
    patient: tuple[str, str] = ("Nobody^Test", "TEST-0001"),
    leave_out: tuple[int, ...] = (),
    prefix: str = "IM",
    **tags: Any,
) -> list[Path]:
    """Writes ``count`` MR slices; ``spacing`` is (between rows, between columns, between slices) in mm."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for index in range(count):
        if index in leave_out:
            continue
        header = _slice(index, rows, columns, spacing, series, description, patient)
        for keyword, value in tags.items():
            setattr(header, keyword, value)
        files.append(folder / f"{prefix}{count - index:04d}")
        header.save_as(files[-1], enforce_file_format=True)
    return files


def _slice(
    index: int,
    rows: int,
    columns: int,
    spacing: tuple[float, float, float],
    series: str,
    description: str,
    patient: tuple[str, str],
) -> Dataset:
    header = Dataset()
    header.SOPClassUID = MRImageStorage
    header.SOPInstanceUID = f"{ROOT}{series}.{index + 1}"
    header.StudyInstanceUID, header.SeriesInstanceUID = f"{ROOT}9", f"{ROOT}{series}"
    header.FrameOfReferenceUID = f"{ROOT}8"
    header.PatientName, header.PatientID = patient
    header.PatientBirthDate, header.PatientSex = "19700101", "O"
    header.StudyDate, header.StudyTime, header.StudyID, header.AccessionNumber = "20200101", "120000", "1", "A1"
    header.ReferringPhysicianName = ""
    header.Modality, header.Manufacturer = "MR", "medgen tests"
    header.SeriesNumber, header.InstanceNumber = 3, str(index + 1)
    header.SeriesDescription = description
    header.ImageType = ["ORIGINAL", "PRIMARY", "M"]
    header.ScanningSequence, header.SequenceVariant, header.ScanOptions = "GR", "NONE", ""
    header.MRAcquisitionType, header.EchoTime, header.RepetitionTime, header.EchoTrainLength = "3D", "3", "8", "1"
    header.PositionReferenceIndicator = ""
    header.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    origin = (-7.0, 4.0, 10.0 + index * spacing[2])
    header.ImagePositionPatient = list(origin)
    header.PixelSpacing, header.SliceThickness = list(spacing[:2]), str(spacing[2])
    header.SamplesPerPixel, header.PhotometricInterpretation = 1, "MONOCHROME2"
    header.Rows, header.Columns = rows, columns
    header.BitsAllocated, header.BitsStored, header.HighBit, header.PixelRepresentation = 16, 12, 11, 0
    y, x = np.meshgrid(np.arange(rows) * spacing[0], np.arange(columns) * spacing[1], indexing="ij")
    pixels = value_at(origin[0] + x, origin[1] + y, origin[2]).astype("<u2")
    header.PixelData = pixels.tobytes()
    header.file_meta = FileMetaDataset()
    header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    header.file_meta.MediaStorageSOPClassUID = header.SOPClassUID
    header.file_meta.MediaStorageSOPInstanceUID = header.SOPInstanceUID
    return header
