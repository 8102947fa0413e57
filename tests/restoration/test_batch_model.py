"""Unattended restoration with a model folder: here and in processes of their own."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest

from medgen.checks import MedgenError
from medgen.models.folder import save_model
from medgen.models.weights import joined_state
from medgen.restoration.batch import restore_batch
from medgen.restoration.settings import RestoreSettings
from tests.models.test_restorer import small_restorer
from tests.restoration.mixed_inputs import image, save, series


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    made = small_restorer()
    folder = tmp_path_factory.mktemp("model") / "small"
    save_model(folder, made.spec, joined_state(made.networks))
    return str(folder)


def test_model_restores_a_tree_with_maps(model: str, tmp_path: Path) -> None:
    save(tmp_path / "in" / "a.nii.gz", image(1))
    series(tmp_path / "in" / "s", 1)
    settings = RestoreSettings("denoise", model=model, uncertainty=True, noise_level=0.05, device="cpu")
    one = restore_batch(tmp_path / "in", tmp_path / "one", settings)
    two = restore_batch(tmp_path / "in", tmp_path / "two", settings, jobs=2)
    assert (one.made, one.status) == (2, 0)
    assert [row["outputs"].keys() for row in one.report["cases"]] == [
        row["outputs"].keys() for row in two.report["cases"]
    ]
    made = nib.load(tmp_path / "one" / "a.nii.gz")
    std = nib.load(tmp_path / "one" / "uncertainty" / "a_std.nii.gz")
    assert made.shape == std.shape == (20, 22, 8)
    assert np.asarray(std.dataobj).max() > 0
    header = pydicom.dcmread(next(path for path in (tmp_path / "one").rglob("slice_0001.dcm")))
    assert header.ContributingEquipmentSequence[-1].Manufacturer == "medgen"
    assert header.ManufacturerModelName == small_restorer().spec.name
    assert header.DerivationCodeSequence[0].CodeValue == "denoised"
    assert restore_batch(tmp_path / "in", tmp_path / "one", settings, resume=True).kept == 2


def test_model_for_another_task_is_refused_at_once(model: str) -> None:
    with pytest.raises(MedgenError, match="is for task 'denoise'"):
        RestoreSettings("motion", model=model)
