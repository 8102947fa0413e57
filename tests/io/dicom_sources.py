"""DICOM series made from scratch, as a scanner would write them, and what the writer's tests read back by hand."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import torch
from monai.data import MetaTensor
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, MRImageStorage

SHAPE = (18, 14, 6)
PROVENANCE = {"model": "brain-t1", "model_sha256": "0123456789abcdef" * 4, "seed": 7, "sampler": "heun"}
_CLASSES = {"CT": CTImageStorage, "MR": MRImageStorage}


def rotation(a: float, b: float, c: float) -> np.ndarray:
    """Turns about z, y, x by these angles (radians)."""
    around_z = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    around_y = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
    around_x = np.array([[1, 0, 0], [0, np.cos(c), -np.sin(c)], [0, np.sin(c), np.cos(c)]])
    return around_z @ around_y @ around_x


def affine_of(kind: str) -> np.ndarray:
    """RAS+ affines of the kinds that scanners make."""
    affine = np.diag([0.9, 0.8, 2.5, 1.0])
    if kind == "oblique":
        affine[:3, :3] = rotation(0.3, 0.2, -0.4) @ affine[:3, :3]
    elif kind == "sagittal":
        affine[:3, :3] = np.array([[0, 0, -2.5], [0.9, 0, 0], [0, 0.8, 0]])
    elif kind == "tilted":
        affine[1, 2] = 2.5 * np.tan(np.deg2rad(12))
    affine[:3, 3] = [-31.5, -20.25, 11.125]
    return affine


def volume_of(affine: np.ndarray, values: np.ndarray) -> MetaTensor:
    return MetaTensor(torch.from_numpy(np.ascontiguousarray(values))[None], affine=torch.from_numpy(affine))


def numbers(seed: int, modality: str, shape: Sequence[int] = SHAPE) -> np.ndarray:
    """Floating values as a model makes them: HU around 0, or MR intensities from 0 on."""
    rng = np.random.default_rng(seed)
    values = rng.normal(0, 400, shape) if modality == "CT" else np.maximum(rng.normal(0.4, 0.3, shape), 0)
    return values.astype(np.float32)


def source_series(folder: Path, modality: str, kind: str = "plain", mark: str = "", **tags: Any) -> list[Path]:
    """Writes an original series of the grid of ``kind``; the files' order says nothing about the slices'.

    Args:
        folder: to be made.
        modality: CT or MR.
        kind: see :func:`affine_of`.
        mark: goes into the text of every tag, private ones and nested ones included.
        tags: more tags, or other values.
    """
    folder.mkdir(parents=True)
    affine, rng = affine_of(kind), np.random.default_rng(5)
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    across, down = lps[:3, 0] / np.linalg.norm(lps[:3, 0]), lps[:3, 1] / np.linalg.norm(lps[:3, 1])
    files = []
    for index in range(SHAPE[2]):
        dataset = _header(modality, mark)
        dataset.SOPInstanceUID = f"1.2.3.4.{index + 1}"
        dataset.InstanceNumber = SHAPE[2] - index
        dataset.ImagePositionPatient = [f"{x:.6f}" for x in lps[:3, 3] + index * lps[:3, 2]]
        dataset.ImageOrientationPatient = [f"{x:.10f}" for x in (*across, *down)]
        dataset.PixelSpacing = [0.8, 0.9]
        dataset.SliceThickness = 2.0
        dataset.Rows, dataset.Columns = SHAPE[1], SHAPE[0]
        for keyword, value in tags.items():
            setattr(dataset, keyword, value)
        dataset.PixelData = rng.integers(-900, 900, (SHAPE[1], SHAPE[0]), dtype=np.int16).tobytes()
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        files.append(folder / f"{(index * 5) % SHAPE[2]:02d}.dcm")
        dataset.save_as(files[-1], enforce_file_format=True)
    return files


def read_back(files: Sequence[Path]) -> tuple[np.ndarray, np.ndarray]:
    """Array (columns, rows, slices) and RAS+ affine of a series, by pydicom and the standard's formula alone."""
    slices = [pydicom.dcmread(file) for file in files]
    across, down = np.reshape([float(x) for x in slices[0].ImageOrientationPatient], (2, 3))
    normal = np.cross(across, down)
    slices.sort(key=lambda s: float(np.dot([float(x) for x in s.ImagePositionPatient], normal)))
    places = np.array([[float(x) for x in s.ImagePositionPatient] for s in slices])
    spacing = [float(x) for x in slices[0].PixelSpacing]
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = across * spacing[1], down * spacing[0]
    affine[:3, 2] = (places[-1] - places[0]) / (len(places) - 1)
    affine[:3, 3] = places[0]
    values = [
        s.pixel_array.astype(np.float64) * float(s.get("RescaleSlope", 1)) + float(s.get("RescaleIntercept", 0))
        for s in slices
    ]
    return np.stack(values).transpose(2, 1, 0), np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine


def laid_on(affine: np.ndarray, array: np.ndarray, its_affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """An array and its affine with their axes permuted and flipped to run as those of ``affine``."""
    best: tuple[float, np.ndarray, np.ndarray] | None = None
    for axes in itertools.permutations(range(3)):
        for flips in itertools.product((1, -1), repeat=3):
            turned = its_affine.copy()
            turned[:3, :3] = its_affine[:3, axes] * flips
            for axis, flip in zip(axes, flips, strict=True):
                turned[:3, 3] += its_affine[:3, axis] * (array.shape[axis] - 1) * (flip < 0)
            off = float(np.abs(turned - affine).max())
            if best is None or off < best[0]:
                walk = tuple(slice(None, None, flip) for flip in flips)
                best = off, np.transpose(array, axes)[walk], turned
    assert best is not None
    return best[1], best[2]


def _header(modality: str, mark: str) -> Dataset:
    """All that one image of a scanner says, but its place and pixels."""
    d = Dataset()
    d.SpecificCharacterSet = "ISO_IR 100"
    d.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL" if modality == "CT" else "OTHER"]
    d.SOPClassUID = _CLASSES[modality]
    d.StudyDate, d.SeriesDate, d.AcquisitionDate, d.ContentDate = "20110203", "20110204", "20110205", "20110206"
    d.StudyTime, d.SeriesTime, d.AcquisitionTime, d.ContentTime = "010203", "020304.5", "030405", "040506"
    d.AccessionNumber = f"{mark}ACC"[:16]
    d.Modality = modality
    d.Manufacturer, d.InstitutionName, d.StationName = f"{mark}Maker", f"{mark}Hospital", f"{mark}ST"[:16]
    d.ReferringPhysicianName, d.OperatorsName = f"{mark}Referrer^Å", f"{mark}Operator^A"
    d.StudyDescription, d.SeriesDescription = f"{mark}Study", f"{mark}Series"
    d.ManufacturerModelName, d.SoftwareVersions = f"{mark}Model", f"{mark}Software"
    d.PatientName, d.PatientID = f"{mark}Müller^Anna", f"{mark}ID"
    d.PatientBirthDate, d.PatientSex, d.PatientAge, d.PatientWeight = "19500607", "F", "060Y", "61.5"
    d.PatientComments, d.ImageComments = f"{mark}patient comment", f"{mark}image comment"
    d.OtherPatientIDsSequence = Items([Dataset()])
    d.OtherPatientIDsSequence[0].PatientID = f"{mark}other"
    d.OtherPatientIDsSequence[0].TypeOfPatientID = "TEXT"
    d.OtherPatientIDsSequence[0].add_new(0x00110010, "LO", f"{mark}inner creator")
    d.OtherPatientIDsSequence[0].add_new(0x00111001, "LO", f"{mark}inner private")
    d.BodyPartExamined, d.PatientPosition, d.ProtocolName = "BRAIN", "HFS", f"{mark}Protocol"
    d.StudyInstanceUID, d.SeriesInstanceUID, d.FrameOfReferenceUID = "1.2.3.4.100", "1.2.3.4.200", "1.2.3.4.300"
    d.StudyID, d.SeriesNumber, d.AcquisitionNumber, d.PositionReferenceIndicator = f"{mark}S"[:16], 4, 1, ""
    d.SamplesPerPixel, d.PhotometricInterpretation = 1, "MONOCHROME2"
    d.BitsAllocated, d.BitsStored, d.HighBit, d.PixelRepresentation = 16, 16, 15, 1
    d.SmallestImagePixelValue, d.LargestImagePixelValue = -900, 900
    d.WindowCenter, d.WindowWidth = ["40", "500"], ["400", "1500"]
    d.RequestAttributesSequence = Items([Dataset()])
    d.RequestAttributesSequence[0].RequestedProcedureDescription = f"{mark}requested"
    d.RequestAttributesSequence[0].RequestedProcedureID = f"{mark}R"[:16]
    d.RequestAttributesSequence[0].ScheduledProcedureStepID = f"{mark}P"[:16]
    d.add_new(0x00090010, "LO", f"{mark}creator")
    d.add_new(0x00091001, "LT", f"{mark}private")
    if modality == "CT":
        d.KVP, d.ConvolutionKernel, d.ExposureTime = "120", f"{mark}K"[:16], 500
        d.RescaleIntercept, d.RescaleSlope, d.RescaleType = "0", "1", "HU"
    else:
        d.ScanningSequence, d.SequenceVariant, d.ScanOptions, d.MRAcquisitionType = "SE", "SK", "", "2D"
        d.RepetitionTime, d.EchoTime, d.EchoTrainLength, d.MagneticFieldStrength = "600", "10", 1, "3"
        d.SequenceName = f"{mark}seq"[:16]
    return d
