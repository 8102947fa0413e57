"""Every file that comes with nibabel: loaded with its values, or refused or skipped by a code; no crash, no hang."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medgen.io.findings import CODES, Refused
from medgen.io.nifti_survey import survey_nifti
from medgen.io.survey import ReadOptions, survey

PACKAGE = Path(nib.__file__).parent
FILES = sorted(
    path
    for folder in PACKAGE.rglob("data")
    for path in folder.rglob("*")
    if path.is_file() and path.suffix not in (".py", ".pyc", ".m")
)
NIFTI = [path for path in FILES if path.name.endswith((".nii", ".nii.gz", ".hdr", ".img"))]
NOT_LOADED = {
    "analyze.hdr": "NO_GEOMETRY",
    "nifti1.hdr": "TRUNCATED_FILE",
    "nifti2.hdr": "TRUNCATED_FILE",
    "row_major.dconn.nii": "SINGLE_SLICE",
    "resampled_anat_moved.nii": "NON_FINITE",
}


def test_there_are_files() -> None:
    assert len(NIFTI) >= 10
    assert len(FILES) >= 60


@pytest.mark.parametrize("path", NIFTI, ids=lambda path: path.name)
def test_values_and_affine_are_those_of_nibabel(path: Path) -> None:
    found = survey_nifti(path, each_frame=True)
    if path.name in NOT_LOADED:
        try:
            code = found.files[0].code if not found.volumes else found.volumes[0].load()
        except Refused as refused:
            code = refused.code
        assert code == NOT_LOADED[path.name]
        return
    image = nib.load(path)
    values = np.asarray(image.dataobj)
    frames = values.reshape(*values.shape[:3], -1, order="F")
    assert len(found.volumes) == frames.shape[3]
    for frame in {0, frames.shape[3] - 1}:
        volume = found.volumes[frame].load()
        np.testing.assert_allclose(volume.numpy()[0], frames[..., frame], rtol=1e-6)
        np.testing.assert_allclose(volume.affine, image.affine, atol=1e-5)


def test_masked_where_asked() -> None:
    path = next(path for path in NIFTI if path.name == "resampled_anat_moved.nii")
    source = survey_nifti(path, mask_non_finite=True).volumes[0]
    volume, truth = source.load().numpy()[0], np.asarray(nib.load(path).dataobj)
    np.testing.assert_array_equal(volume, np.where(np.isfinite(truth), truth, 0))
    assert "NON_FINITE_MASKED" in [finding.code for finding in source.findings]


def test_every_file_is_accounted_for() -> None:
    """All of them at once, DICOM among them: used, skipped or refused; each volume loads or is refused."""
    found = survey(FILES, ReadOptions(each_frame=True))
    assert sorted(record.path for record in found.files) == FILES
    for record in found.files:
        assert (record.status == "used") == (record.code is None)
        assert record.code is None or record.code in CODES
    late = set()
    for volume in found.volumes:
        try:
            loaded = volume.load()
        except Refused as refused:
            late.add(refused.code)
        else:
            assert tuple(loaded.shape[1:]) == volume.shape
            assert loaded.isfinite().all()
    assert late <= {"NON_FINITE"}
