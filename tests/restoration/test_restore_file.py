"""One scan to one file: one process at a time, the codes of its geometry kept; how derived series are described."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from medgen.io.convert import OutputExists
from medgen.io.lock import Locked, locked
from medgen.restoration.batch_case import description
from medgen.restoration.restore_file import restore_file
from medgen.restoration.settings import RestoreSettings
from tests.restoration.mixed_inputs import image, save

SMOOTH = RestoreSettings("denoise", "classical")
FINE = RestoreSettings("superres", "classical")


def test_one_process_a_file(tmp_path: Path) -> None:
    source = save(tmp_path / "in" / "a.nii.gz", image(1))
    out = tmp_path / "new" / "b.nii.gz"
    out.parent.mkdir()
    with locked(out, "b"):
        for name in ("b.nii.gz", "b.nii"):  # one record
            with pytest.raises(Locked, match=rf"b\.nii.* is in use by process {os.getpid()}"):
                restore_file(source, out.with_name(name), SMOOTH, overwrite=True)
        restore_file(source, out.with_name("c.nii.gz"), SMOOTH)
    assert {path.name for path in out.parent.iterdir()} == {"c.nii.gz", "c.json"}
    restore_file(source, out, SMOOTH)
    assert {path.name for path in out.parent.iterdir()} == {"b.nii.gz", "b.json", "c.nii.gz", "c.json"}


def test_steps_are_reported(tmp_path: Path) -> None:
    source = save(tmp_path / "scan.nii.gz", image(1))
    seen: list[tuple[int, int]] = []
    settings = RestoreSettings("denoise", samples=2, device="cpu", guard="off")
    restore_file(source, tmp_path / "out.nii.gz", settings, progress=lambda *done: seen.append(done))
    total = seen[-1][1]
    assert seen == [(k, total) for k in range(1, total + 1)]


def test_a_file_that_came_meanwhile_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = save(tmp_path / "in" / "a.nii.gz", image(1))

    def other_process(path: Path, stem: str) -> Any:
        path.write_text("theirs")
        return locked(path, stem)

    monkeypatch.setattr("medgen.restoration.restore_file.locked", other_process)
    with pytest.raises(OutputExists, match="exists"):
        restore_file(source, tmp_path / "b.nii.gz", SMOOTH)
    assert (tmp_path / "b.nii.gz").read_text() == "theirs"


@pytest.mark.parametrize(
    ("given", "task", "want"),
    [
        ("T1 MPRAGE", "denoise", "T1 MPRAGE, denoised (medgen)"),
        ("T1 of Doe-Jane", "superres", "T1 of, thin slices (medgen)"),
        ("T1, denoised (medgen)", "superres", "T1, denoised, thin slices (medgen)"),
        ("", "motion", "motion corrected (medgen)"),
        (None, "bias", "bias corrected (medgen)"),
        ("a\tb" + 70 * "x", "inpaint", "a b" + 41 * "x" + ", inpainted (medgen)"),
    ],
)
def test_description_of_a_derived_series(given: str | None, task: str, want: str) -> None:
    source = SimpleNamespace(header={"SeriesDescription": given})
    made = description(source, task, ["Jane", "Doe"])
    assert made == want
    assert len(made) <= 64


@pytest.mark.parametrize(("sform", "qform", "want"), [(4, 0, (4, 0)), (0, 1, (0, 1)), (2, 2, (2, 2)), (4, 1, (4, 0))])
def test_codes_of_the_forms_are_kept(tmp_path: Path, sform: int, qform: int, want: tuple[int, int]) -> None:
    affine = np.array([[-1, 0, 0, 9], [0, 1, 0, -8], [0, 0, 3, 4], [0, 0, 0, 1.0]])
    scan = nib.Nifti1Image(image(1), affine)
    scan.set_sform(affine, sform)
    scan.set_qform(affine + (np.eye(4, k=3) * 50 if sform == 4 else 0), qform)  # elsewhere, in the last case
    nib.save(scan, tmp_path / "a.nii.gz")
    restore_file(tmp_path / "a.nii.gz", tmp_path / "b.nii.gz", FINE)
    made = nib.load(tmp_path / "b.nii.gz").header
    assert (int(made["sform_code"]), int(made["qform_code"])) == want
    np.testing.assert_allclose(made.get_best_affine()[:3, :3], np.diag([-1, 1, 1]), atol=1e-5)
