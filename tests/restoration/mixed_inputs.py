"""Twenty inputs of all kinds, as unattended restoration finds them, with canaries for what must not leak."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import torch
from monai.data import MetaTensor
from PIL import Image

from medgen.io.nifti import write_nifti
from medgen.io.write_dicom import write_series
from tests.io import small_series

CANARIES = ("Kanarie", "Vogelvrij", "KV-778899", "Dokterman", "Bedienaar", "ACC55443", "19330405")
RESTORED = ("T1", "sub-1_T2", "odd name", "s1", "s2", "ct")
_PERSON: dict[str, Any] = {
    "PatientName": "Kanarie^Vogelvrij",
    "PatientID": "KV-778899",
    "ReferringPhysicianName": "Dokterman^A",
    "OperatorsName": "Bedienaar^B",
    "AccessionNumber": "ACC55443",
    "PatientBirthDate": "19330405",
}


def series(folder: Path, number: int, *, count: int = 6, **tags: Any) -> list[Path]:
    """A series of the patient of the canaries, thick slices, with texture."""
    files = small_series.write(
        folder, series=f"{number}", count=count, rows=24, columns=20, spacing=(1.0, 1.0, 3.0), **(_PERSON | tags)
    )
    rng = np.random.default_rng(number)
    for file in files:
        header = pydicom.dcmread(file)
        pixels = np.frombuffer(header.PixelData, "<u2") + rng.normal(0, 20, 480).round()
        header.PixelData = pixels.clip(0, 4095).astype("<u2").tobytes()
        header.save_as(file, enforce_file_format=True)
    return files


def image(seed: int, shape: tuple[int, ...] = (20, 22, 8), dtype: Any = np.int16) -> np.ndarray:
    """Smooth shapes and noise."""
    rng = np.random.default_rng(seed)
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape[:3]), indexing="ij")
    smooth = 500 * np.exp(-(x**2 + y**2 + z**2)) + 200 * (x > 0.2)
    values = smooth + rng.normal(0, 25, shape[:3])
    return np.abs(values).astype(dtype)


def save(path: Path, values: np.ndarray, spacing: float = 3.0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    affine = np.array([[-1, 0, 0, 9], [0, 1, 0, -8], [0, 0, spacing, 4], [0, 0, 0, 1.0]])
    nib.save(nib.Nifti1Image(values, affine), path)
    return path


def mixed_inputs(folder: Path) -> Path:
    """Writes the twenty inputs.

    Six can be restored: three NIfTI files, two MR series and a CT series. The others are damaged (a gap, truncated
    pixels, a truncated file, NaN), left alone (localizer, derived, diffusion, three of medgen's own), or no volume.
    """
    save(folder / "T1.nii.gz", image(1))  # 1
    save(folder / "sub-1" / "T2.nii", image(2, dtype=np.float32))  # 2
    save(folder / "odd name.nii.gz", image(3, dtype=np.uint8))  # 3
    series(folder / "s1", 1, SeriesDescription="T1 axial Kanarie")  # 4
    series(folder / "deep" / "er" / "s2", 2, SeriesDescription="T2 TSE")  # 5
    ct(folder / "ct")  # 6
    series(folder / "gap", 4)[3].unlink()  # 7
    series(folder / "scout", 5, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])  # 8
    series(folder / "mpr", 6, ImageType=["DERIVED", "SECONDARY", "REFORMATTED"])  # 9
    dwi = series(folder / "dwi", 7)  # 10
    for file in dwi:
        header = pydicom.dcmread(file)
        header.add_new(0x00189087, "FD", 1000.0)
        header.save_as(file, enforce_file_format=True)
    cut = series(folder / "cut", 8)[2]  # 11
    cut.write_bytes(cut.read_bytes()[:-100])
    scan = save(folder / "broken.nii.gz", image(9))  # 12
    scan.write_bytes(scan.read_bytes()[:-500])
    save(folder / "nan.nii.gz", np.where(image(10) > 500, np.nan, 1.0).astype(np.float32))  # 13
    save(folder / "frames.nii.gz", np.zeros((6, 6, 4, 3), np.int16))  # 14
    made = MetaTensor(torch.from_numpy(image(11)[None]), affine=torch.eye(4, dtype=torch.float64))
    write_nifti(folder / "synthetic.nii.gz", made, synthetic=True)  # 15
    save(folder / "edited.nii.gz", image(12))  # 16
    (folder / "edited.json").write_text('{"synthetic": false, "versions": {"medgen": "0"}}')
    write_series(folder / "own", volume_like(folder / "s1"), reference=sorted((folder / "s1").iterdir()))  # 17
    (folder / "notes.txt").write_text("hello")  # 18
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(folder / "shot.png")  # 19
    (folder / "empty.nii.gz").touch()  # 20
    return folder


def ct(folder: Path) -> None:
    from tests.io.dicom_sources import source_series

    files = source_series(folder, "CT", **_PERSON)
    for index, file in enumerate(files):
        header = pydicom.dcmread(file)
        header.SeriesInstanceUID, header.StudyInstanceUID = f"{small_series.ROOT}33", f"{small_series.ROOT}34"
        header.SOPInstanceUID = f"{small_series.ROOT}33.{index + 1}"
        header.save_as(file, enforce_file_format=True)


def volume_like(folder: Path) -> MetaTensor:
    from medgen.io.survey import read_volume

    volume = read_volume(folder)
    return MetaTensor(volume.as_tensor().float(), affine=volume.affine)


def copied(tree: Path, folder: Path) -> Path:
    """The same tree elsewhere, with the same times."""
    return Path(shutil.copytree(tree, folder, copy_function=shutil.copy2))
