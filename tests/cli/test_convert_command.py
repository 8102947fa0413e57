"""``medgen convert``: statuses, what is said, both directions."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import torch
from monai.data import MetaTensor
from typer.testing import CliRunner, Result

from medgen.cli.app import app
from medgen.io.nifti import write_nifti
from medgen.io.survey import read_volume
from tests.io import small_series


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["convert", *map(str, arguments)])


def test_statuses(tmp_path: Path) -> None:
    source = tmp_path / "src"
    small_series.write(source / "good")
    assert run(source, tmp_path / "a").exit_code == 0
    small_series.write(source / "gap", series="2", leave_out=(2,))
    result = run(source, tmp_path / "b")
    assert result.exit_code == 3
    assert "1 volume written" in result.stdout
    assert "9 files: 5 used, 0 skipped, 4 refused" in result.stdout
    assert "warning: MISSING_SLICE: gap/IM0001: " in result.stderr
    assert "(3 more with this code)" in result.stderr
    assert len(list((tmp_path / "b").glob("*.nii.gz"))) == 1
    assert run(source / "gap", tmp_path / "c").exit_code == 1
    assert json.loads((tmp_path / "c" / "report.json").read_text())["counts"]["refused"] == 4


@pytest.mark.parametrize(
    "options", [[], ["--jobs", "0"], ["--resume", "--overwrite"], ["--reference", "x"], ["--modality", "MR"]]
)
def test_usage_errors(tmp_path: Path, options: list[str]) -> None:
    small_series.write(tmp_path / "src")
    out = tmp_path / ("out" if options else "src")
    result = run(tmp_path / "src", out, *options)
    assert result.exit_code == 2
    assert "Traceback" not in result.output
    assert run(tmp_path / "none", tmp_path / "out").exit_code == 2
    assert not (tmp_path / "out").exists()


def test_output_that_exists(tmp_path: Path) -> None:
    small_series.write(tmp_path / "src")
    assert run(tmp_path / "src", tmp_path / "out").exit_code == 0
    result = run(tmp_path / "src", tmp_path / "out")
    assert result.exit_code == 2
    assert "--resume" in result.stderr
    result = run(tmp_path / "src", tmp_path / "out", "--resume")
    assert result.exit_code == 0
    assert "0 volumes written, 1 kept" in result.stdout
    assert run(tmp_path / "src", tmp_path / "out", "--overwrite").exit_code == 0


def nifti(path: Path) -> MetaTensor:
    values = torch.from_numpy(np.random.default_rng(0).integers(-50, 900, (1, 6, 7, 5)).astype(np.int16))
    volume = MetaTensor(values, affine=torch.tensor([[-2.0, 0, 0, 5], [0, 0, 3, 1], [0, 1.5, 0, 9], [0, 0, 0, 1]]))
    write_nifti(path, volume)
    return volume


def test_nifti_to_dicom_and_back(tmp_path: Path) -> None:
    volume = nifti(tmp_path / "scan.nii.gz")
    result = run(tmp_path / "scan.nii.gz", tmp_path / "dcm", "--to", "dicom", "--modality", "CT")
    assert result.exit_code == 0, result.output
    names = {path.name for path in (tmp_path / "dcm").iterdir()}
    assert "report.json" in names
    assert all(name.endswith(".dcm") for name in names - {"report.json"})
    report = json.loads((tmp_path / "dcm" / "report.json").read_text())
    assert [row["path"] for row in report["volumes"]] == ["."]
    assert report["volumes"][0]["shape"] == [6, 7, 5]
    assert [(row["path"], row["status"], row["volume"]) for row in report["files"]] == [("scan.nii.gz", "used", ".")]
    assert run(tmp_path / "dcm", tmp_path / "back").exit_code == 0
    (path,) = (tmp_path / "back").glob("*.nii.gz")
    image = nib.load(path)
    moved = np.linalg.inv(image.affine) @ volume.affine.numpy()  # from old voxels to new ones
    index = np.stack(np.meshgrid(*(np.arange(n) for n in (6, 7, 5)), indexing="ij"), -1)
    place = np.rint(index @ moved[:3, :3].T + moved[:3, 3]).astype(int)
    np.testing.assert_array_equal(np.asarray(image.dataobj)[tuple(np.moveaxis(place, -1, 0))], volume.numpy()[0])


def test_dicom_resume_overwrite_and_what_is_foreign(tmp_path: Path) -> None:
    nifti(tmp_path / "scan.nii.gz")
    arguments = (tmp_path / "scan.nii.gz", tmp_path / "dcm", "--to", "dicom")
    assert run(*arguments).exit_code == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "dcm").iterdir()}
    assert run(*arguments).exit_code == 2
    result = run(*arguments, "--resume")
    assert (result.exit_code, "1 kept" in result.stdout) == (0, True)
    next((tmp_path / "dcm").glob("*.dcm")).unlink()
    result = run(*arguments, "--resume")
    assert "1 volume written" in result.stdout
    assert run(*arguments, "--overwrite").exit_code == 0
    assert {path.name: path.read_bytes() for path in (tmp_path / "dcm").iterdir()} == before
    (tmp_path / "dcm" / "mine.txt").write_text("kept")
    assert run(*arguments, "--overwrite").exit_code == 2
    assert (tmp_path / "dcm" / "mine.txt").read_text() == "kept"


def test_dicom_of_a_reference_and_of_what_is_synthetic(tmp_path: Path) -> None:
    small_series.write(tmp_path / "series")
    volume = read_volume(tmp_path / "series")
    write_nifti(tmp_path / "filled.nii.gz", volume)
    (tmp_path / "filled.json").write_text('{"synthetic": true, "model": "m", "model_sha256": "ab", "seed": 3}')
    arguments = (tmp_path / "filled.nii.gz", tmp_path / "dcm", "--to", "dicom", "--reference", tmp_path / "series")
    assert run(*arguments).exit_code == 0
    header = pydicom.dcmread(next((tmp_path / "dcm").glob("*.dcm")))
    assert header.PatientID == "TEST-0001"
    assert header[0x0008001C].value == "YES"
    assert header.SeriesInstanceUID != f"{small_series.ROOT}1"
    assert torch.equal(read_volume(tmp_path / "dcm").as_tensor(), volume.as_tensor())
    assert run(*arguments[:1], tmp_path / "fresh", "--to", "dicom").exit_code == 0
    header = pydicom.dcmread(next((tmp_path / "fresh").glob("*.dcm")))
    assert header.PatientID != "TEST-0001"
    assert header[0x0008001C].value == "YES"


def test_refused_file_to_dicom(tmp_path: Path) -> None:
    (tmp_path / "scan.nii").write_bytes(b"x" * 400)
    assert run(tmp_path / "scan.nii", tmp_path / "dcm", "--to", "dicom").exit_code == 1
    report = json.loads((tmp_path / "dcm" / "report.json").read_text())
    assert report["files"][0]["status"] == "refused"
    assert report["volumes"] == []


def test_synthetic_stays_so_through_nifti(tmp_path: Path) -> None:
    nifti(tmp_path / "made.nii.gz")
    (tmp_path / "made.json").write_text('{"synthetic": true, "model": "m", "model_sha256": "ab", "seed": 3}')
    assert run(tmp_path / "made.nii.gz", tmp_path / "dcm", "--to", "dicom").exit_code == 0
    assert run(tmp_path / "dcm", tmp_path / "back").exit_code == 0
    (path,) = (tmp_path / "back").glob("*.nii.gz")
    assert run(path, tmp_path / "again", "--to", "dicom").exit_code == 0
    assert pydicom.dcmread(next((tmp_path / "again").glob("*.dcm")))[0x0008001C].value == "YES"


def test_a_report_of_something_else_is_kept(tmp_path: Path) -> None:
    nifti(tmp_path / "scan.nii.gz")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "report.json").write_text('{"mine": 1}')
    for option in ("--resume", "--overwrite"):
        assert run(tmp_path / "scan.nii.gz", tmp_path / "out", option).exit_code == 2
    assert (tmp_path / "out" / "report.json").read_text() == '{"mine": 1}'


def test_resume_of_another_source_keeps_what_is_there(tmp_path: Path) -> None:
    nifti(tmp_path / "scan.nii.gz")
    nifti(tmp_path / "other.nii.gz")
    assert run(tmp_path / "scan.nii.gz", tmp_path / "out").exit_code == 0
    before = (tmp_path / "out" / "scan.nii.gz").read_bytes()
    result = run(tmp_path / "other.nii.gz", tmp_path / "out", "--resume")
    assert (result.exit_code, "none of them is of" in result.output) == (2, True)
    assert (tmp_path / "out" / "scan.nii.gz").read_bytes() == before


def test_a_marked_file_without_its_record_stays_synthetic(tmp_path: Path) -> None:
    volume = nifti(tmp_path / "plain.nii.gz")
    write_nifti(tmp_path / "renamed.nii.gz", volume, synthetic=True)
    for name, marked in (("renamed", True), ("plain", False)):
        assert run(tmp_path / f"{name}.nii.gz", tmp_path / name, "--to", "dicom").exit_code == 0
        header = pydicom.dcmread(next((tmp_path / name).glob("*.dcm")))
        assert ((0x0008001C in header) and header[0x0008001C].value == "YES") == marked
