"""Label maps drawn from a model: agreement, Dice, files."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from medgen.checks import MedgenError
from medgen.restoration.segment import agreement, segment, segment_file
from tests.restoration.small_models import small_model
from tests.restoration.test_translate import AFFINES, scans


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("name", ["lps", "oblique"])
def test_samples_agreement_and_dice(dims: int, name: str) -> None:
    images, model = scans(name), small_model("segment", dims, channel_mean=[1.0 if dims == 2 else 1.4] * 2**dims * 2)
    found = segment(images, model, 3, seed=5)
    assert len(found.samples) == 3
    for sample in found.samples:
        assert sample.shape == images["T1w"].shape
        assert set(sample.unique().tolist()) <= {0, 1, 2}
        assert (sample.as_tensor()[images["T1w"].as_tensor() == 0] == 0).all()
    label, disagreement = agreement([sample.as_tensor() for sample in found.samples])
    assert torch.equal(found.label.as_tensor(), label)
    assert torch.equal(found.disagreement.as_tensor(), disagreement)
    assert set(found.dice) == {"front", "back"}
    assert all(0 <= value <= 1 for value in found.dice.values())
    again = segment(images, model, 1, seed=6)
    assert torch.equal(again.label.as_tensor(), found.samples[1].as_tensor())
    assert again.dice == {}


def test_agreement_takes_the_smaller_of_equals() -> None:
    label, disagreement = agreement([torch.tensor([2, 0, 1]), torch.tensor([1, 0, 1]), torch.tensor([0, 2, 1])])
    assert label.tolist() == [0, 0, 1]
    assert disagreement.tolist() == pytest.approx([2 / 3, 1 / 3, 0])


def test_files(tmp_path: Path) -> None:
    for key, volume in scans("lps").items():
        nib.save(nib.Nifti1Image(volume[0].numpy(), AFFINES["lps"]), tmp_path / f"{key}.nii.gz")
    given = {"T1w": tmp_path / "T1w.nii.gz"}
    more = {"disagreement": tmp_path / "apart.nii.gz", "every_sample": True}
    report = segment_file(given, tmp_path / "out.nii.gz", model=small_model("segment", 2), samples=2, **more)
    made = nib.load(tmp_path / "out.nii.gz")
    assert made.get_data_dtype() == np.int16
    np.testing.assert_allclose(made.affine, AFFINES["lps"])
    assert all((tmp_path / f"{name}.nii.gz").is_file() for name in ("apart", "out_sample-1", "out_sample-2"))
    record = json.loads(report.record.read_text())
    assert set(record["volume_ml"]) == {"front", "back"}
    assert record["synthetic"] is True
    with pytest.raises(MedgenError, match="exists"):
        segment_file(given, tmp_path / "out.nii.gz", model=small_model("segment", 2))
    with pytest.raises(MedgenError, match=r"\.nii"):
        segment_file(given, tmp_path / "out", model=small_model("segment", 2))
