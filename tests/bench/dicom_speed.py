"""How fast a DICOM series is read: ``python -m tests.bench.dicom_speed``.

A series of 200 slices of 512 x 512 is written in five encodings and read by medgen, by a plain pydicom loop, by
SimpleITK's ImageSeriesReader and by MONAI's PydicomReader, in turn, so that a slow moment of the machine hits all. The
table shows the median process time of each, and the ratio of each to medgen: above 1, medgen is faster.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import SimpleITK as sitk
from monai.data.image_reader import PydicomReader
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.pixels import apply_modality_lut
from pydicom.uid import (
    CTImageStorage,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
    generate_uid,
)

from medgen.io.dicom import read_series

ENCODINGS = {
    "explicit": ExplicitVRLittleEndian,
    "implicit": ImplicitVRLittleEndian,
    "RLE": RLELossless,
    "JPEG-LS": JPEGLSLossless,
    "JPEG 2000": JPEG2000Lossless,
}
SPACING = (0.7, 0.7, 1.25)


def write_phantom(folder: Path, syntax: str, slices: int, size: int) -> None:
    """A CT of a noisy ball in air, one file a slice, names in no order of position."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(7)
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    study, series, frame = (generate_uid(entropy_srcs=[name]) for name in ("study", "series", "frame"))
    for index in range(slices):
        height = (index - (slices - 1) / 2) * size / slices
        ball = x**2 + y**2 + height**2 < (0.4 * size) ** 2
        image = np.where(ball, 1060 + rng.normal(0, 12, x.shape), 24 + rng.normal(0, 4, x.shape))
        ds = _header(index, image.shape, (study, series, frame))
        ds.PixelData = np.clip(np.rint(image), 0, 4095).astype("<u2").tobytes()
        ds["PixelData"].VR = "OW"
        ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        if syntax in (RLELossless, JPEGLSLossless, JPEG2000Lossless):
            ds.compress(syntax)
        ds.file_meta.TransferSyntaxUID = syntax
        ds.save_as(folder / f"{(index * 77) % slices:04d}.dcm", enforce_file_format=True)


def _header(index: int, shape: tuple[int, ...], uids: tuple[str, str, str]) -> Dataset:
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.SOPClassUID, ds.SOPInstanceUID = CTImageStorage, generate_uid(entropy_srcs=[str(index)])
    ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.FrameOfReferenceUID = uids
    ds.PatientName, ds.PatientID, ds.Modality = "Phantom", "phantom", "CT"
    ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    ds.SeriesNumber, ds.InstanceNumber, ds.AcquisitionNumber = 1, index + 1, 1
    ds.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    ds.ImagePositionPatient = [-179.2, -179.2, SPACING[2] * index]
    ds.PixelSpacing, ds.SliceThickness = list(SPACING[:2]), SPACING[2]
    ds.Rows, ds.Columns = shape
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 12, 11, 0
    ds.RescaleSlope, ds.RescaleIntercept = 1, -1024
    return ds


def read_with_medgen(folder: Path) -> np.ndarray:
    """Axes (column, row, slice)."""
    return read_series(folder).as_tensor()[0].numpy()


def read_with_pydicom(folder: Path) -> np.ndarray:
    """The loop that people write: read, sort by position, rescale, stack."""
    slices = [pydicom.dcmread(path) for path in folder.iterdir()]
    slices.sort(key=lambda ds: float(ds.ImagePositionPatient[2]))
    return np.stack([apply_modality_lut(ds.pixel_array, ds).T for ds in slices], axis=-1)


def read_with_simpleitk(folder: Path) -> np.ndarray:
    """ImageSeriesReader on the names that GDCM sorts."""
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder)))
    return sitk.GetArrayFromImage(reader.Execute()).transpose(2, 1, 0)


def read_with_monai(folder: Path) -> np.ndarray:
    """PydicomReader on the folder."""
    reader = PydicomReader()
    return np.asarray(reader.get_data(reader.read(str(folder)))[0])


READERS: dict[str, Callable[[Path], np.ndarray]] = {
    "medgen": read_with_medgen,
    "pydicom loop": read_with_pydicom,
    "SimpleITK": read_with_simpleitk,
    "MONAI": read_with_monai,
}


def measure(folder: Path, repeats: int) -> dict[str, float]:
    """Median process time of each reader in seconds, the readers in turn; the first round is not counted.

    Raises:
        ValueError: two readers give different values (the axes of MONAI's may be exchanged).
    """
    times: dict[str, list[float]] = {name: [] for name in READERS}
    expected = int(read_with_medgen(folder).sum(dtype=np.int64))
    for _ in range(repeats + 1):
        for name, reader in READERS.items():
            start = time.process_time()
            values = reader(folder)
            times[name].append(time.process_time() - start)
            if int(values.sum(dtype=np.float64)) != expected:
                raise ValueError(f"{name} reads other values in '{folder}' than medgen")
            del values
    return {name: statistics.median(all_times[1:]) for name, all_times in times.items()}


def main() -> None:
    """Writes the series, measures, prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--slices", type=int, default=200)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    print(f"{arguments.slices} slices of {arguments.size} x {arguments.size}, median of {arguments.repeats} in turn")
    print(f"{'':12}{'medgen':>10}" + "".join(f"{name:>22}" for name in list(READERS)[1:]))
    for encoding, syntax in ENCODINGS.items():
        with tempfile.TemporaryDirectory() as folder:
            write_phantom(Path(folder), syntax, arguments.slices, arguments.size)
            times = measure(Path(folder), arguments.repeats)
        cells = [f"{seconds:10.3f} s ({seconds / times['medgen']:5.2f}x)" for seconds in list(times.values())[1:]]
        print(f"{encoding:12}{times['medgen']:8.3f} s" + "".join(f"{cell:>22}" for cell in cells), flush=True)


if __name__ == "__main__":
    main()
