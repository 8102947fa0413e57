"""Inpainting of DICOM series: a series in, a derived series or a file out."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
import torch
from monai.data import MetaTensor

from medgen.checks import MedgenError
from medgen.io.nifti import write_nifti
from medgen.io.survey import read_volume, single_volume
from medgen.restoration import inpaint as module
from medgen.restoration.inpaint import inpaint_file
from tests.io import small_series


@pytest.fixture
def case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """A series, a hole in it, and a stand-in for the model that adds 40.4 in the hole."""
    series = tmp_path / "series"
    small_series.write(series, count=9, rows=10, columns=12, RescaleSlope="0.5", RescaleIntercept="-100")
    scan = read_volume(series)
    hole = torch.zeros(scan.shape, dtype=torch.uint8)
    hole[0, 3:7, 2:6, 2:5] = 1
    write_nifti(tmp_path / "hole.nii.gz", MetaTensor(hole, affine=scan.affine))

    def stand_in(volume: MetaTensor, inpaint_mask: MetaTensor, *_: Any, **__: Any) -> MetaTensor:
        values = torch.where(inpaint_mask.as_tensor() > 0, volume.as_tensor() + 40.4, volume.as_tensor())
        provenance = {"model": "tiny", "model_sha256": "ab" * 32, "seed": 3}
        return MetaTensor(values, affine=volume.affine, meta={"synthetic": True, "provenance": provenance})

    monkeypatch.setattr(module, "inpaint", stand_in)
    return {"image": series, "inpaint_mask": tmp_path / "hole.nii.gz"}


def by_position(folder: Path) -> dict[float, pydicom.Dataset]:
    slices = [pydicom.dcmread(path) for path in folder.iterdir()]
    return {float(header.ImagePositionPatient[2]): header for header in slices}


def test_series_to_series_keeps_stored_values_outside(case: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "filled"
    report = inpaint_file(**case, output=out)
    assert report.output == out
    before, after = by_position(case["image"]), by_position(out)
    assert before.keys() == after.keys()
    old, new = single_volume(case["image"]), single_volume(out)
    hole = nib.load(case["inpaint_mask"]).get_fdata() > 0
    np.testing.assert_allclose(new.affine, old.affine, atol=1e-6)
    values, filled = old.load().numpy()[0], new.load().numpy()[0]
    np.testing.assert_array_equal(filled[~hole], values[~hole])
    np.testing.assert_allclose(filled[hole], values[hole] + 40.4, atol=0.25 + 1e-3)
    for place, header in after.items():
        source = before[place]
        assert float(header.RescaleSlope) == 0.5
        outside = (header.pixel_array != source.pixel_array).sum()
        assert outside <= hole.sum(axis=(0, 1)).max()
        assert header[0x0008001C].value == "YES"
        assert header.StudyInstanceUID == source.StudyInstanceUID
        assert header.SeriesInstanceUID != source.SeriesInstanceUID
        assert header.SourceImageSequence[0].ReferencedSOPInstanceUID == source.SOPInstanceUID
    again = inpaint_file(**case, output=out, overwrite=True)
    assert by_position(again.output)[10.0].SOPInstanceUID == after[10.0].SOPInstanceUID


def test_record_names_the_inputs_by_their_content(case: dict[str, Path], tmp_path: Path) -> None:
    report = inpaint_file(**case, output=tmp_path / "filled")
    record = json.loads(report.record.read_text())
    assert report.record == tmp_path / "filled.json"
    assert record["synthetic"] is True
    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in single_volume(case["image"]).files]
    assert record["inputs"] == {
        "image_sha256": hashlib.sha256("".join(f"{digest}\n" for digest in digests).encode()).hexdigest(),
        "inpaint_mask_sha256": hashlib.sha256(case["inpaint_mask"].read_bytes()).hexdigest(),
    }
    assert str(tmp_path) not in report.record.read_text()


def test_series_to_file(case: dict[str, Path], tmp_path: Path) -> None:
    inpaint_file(**case, output=tmp_path / "filled.nii.gz")
    source = single_volume(case["image"])
    image = nib.load(tmp_path / "filled.nii.gz")
    hole = nib.load(case["inpaint_mask"]).get_fdata() > 0
    values = source.load().numpy()[0]
    assert image.get_data_dtype() == values.dtype
    np.testing.assert_allclose(image.affine, source.affine)
    np.testing.assert_array_equal(np.asarray(image.dataobj)[~hole], values[~hole])
    np.testing.assert_allclose(np.asarray(image.dataobj)[hole], values[hole] + 40.4, atol=0.5)


def test_segmentation_as_mask(case: dict[str, Path], tmp_path: Path) -> None:
    from medgen.io.write_seg import write_segmentation

    hole = MetaTensor(torch.from_numpy(nib.load(case["inpaint_mask"]).get_fdata()[None].astype(np.int16)))
    hole.affine = torch.from_numpy(single_volume(case["image"]).affine)
    write_segmentation(tmp_path / "hole.dcm", hole, {1: "hole"}, sorted(case["image"].iterdir()))
    by_file = inpaint_file(**case, output=tmp_path / "a.nii.gz")
    by_seg = inpaint_file(case["image"], tmp_path / "hole.dcm", tmp_path / "b.nii.gz")
    assert by_file.output.read_bytes() == by_seg.output.read_bytes()


def test_refusals_come_before_the_work(case: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "inpaint", lambda *_, **__: pytest.fail("the work was done"))
    (tmp_path / "file").write_text("x")
    for output, words in (
        (tmp_path / "file" / "filled", "is a file"),
        (tmp_path / "filled.dcm", "must end in"),
        (case["image"], "is an input"),
        (case["inpaint_mask"], "is an input"),
    ):
        with pytest.raises(MedgenError, match=words):
            inpaint_file(**case, output=output)
    with pytest.raises(MedgenError, match="is an input"):
        inpaint_file(**case, output=case["image"], overwrite=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("x")
    with pytest.raises(MedgenError, match=r"holds 'notes.txt'"):
        inpaint_file(**case, output=tmp_path / "mine", overwrite=True)
    with pytest.raises(MedgenError, match=r"must end in \.nii"):
        inpaint_file(case["inpaint_mask"], case["inpaint_mask"], tmp_path / "folder")
    with pytest.raises(MedgenError, match="does not exist"):
        inpaint_file(tmp_path / "none", case["inpaint_mask"], tmp_path / "x.nii.gz")
    assert not (tmp_path / "x.nii.gz").exists()


def test_a_failure_leaves_nothing(case: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("medgen.io.write_dicom.write_series", full)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(OSError, match="No space"):
        inpaint_file(**case, output=tmp_path / "filled")
    assert sorted(tmp_path.iterdir()) == before
