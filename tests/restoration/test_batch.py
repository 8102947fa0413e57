"""Unattended restoration: every file accounted for, nothing lost by a stop, no patient in what is said."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
import torch
from monai.data import MetaTensor

import medgen
from medgen.checks import MedgenError
from medgen.io.convert import OutputExists
from medgen.io.lock import LOCK, Locked, locked
from medgen.restoration import batch_case, batch_process
from medgen.restoration import restore as restore_module
from medgen.restoration.batch import PLAN, BatchSummary, restore_batch
from medgen.restoration.batch_case import redacted
from medgen.restoration.batch_process import Limits
from medgen.restoration.restore_file import restore_file
from medgen.restoration.restored import Restored
from medgen.restoration.settings import RestoreSettings
from tests.io.tools import entity_errors, object_errors
from tests.restoration.mixed_inputs import CANARIES, ct, image, mixed_inputs, save, series

SMOOTH = RestoreSettings("denoise", "classical")
FINE = RestoreSettings("superres", "classical")


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return mixed_inputs(tmp_path_factory.mktemp("mixed"))


@pytest.fixture(scope="module")
def want(mixed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The outputs of a run that nothing disturbed."""
    out = tmp_path_factory.mktemp("want") / "out"
    assert restore_batch(mixed, out, SMOOTH).status == 3
    return out


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def report_of(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "report.json").read_text()))


def states(summary: BatchSummary) -> dict[str, str]:
    return {row["path"]: row["code"] or row["status"] for row in summary.report["files"]}


def test_every_file_is_accounted_for(mixed: Path, want: Path) -> None:
    report = report_of(want)
    found = {path.relative_to(mixed).as_posix() for path in mixed.rglob("*") if path.is_file()}
    assert {row["path"] for row in report["files"]} == found
    assert len(report["files"]) == len(found) == report["counts"]["found"]
    code = {row["path"].split("/")[0]: row["code"] or row["status"] for row in report["files"]}
    assert code == {
        "T1.nii.gz": "restored", "sub-1": "restored", "odd name.nii.gz": "restored", "s1": "restored",
        "deep": "restored", "ct": "restored", "gap": "MISSING_SLICE", "scout": "LOCALIZER", "mpr": "DERIVED",
        "dwi": "DIFFUSION", "cut": "TRUNCATED_PIXEL_DATA", "broken.nii.gz": "TRUNCATED_FILE",
        "nan.nii.gz": "NON_FINITE", "frames.nii.gz": "SEVERAL_FRAMES", "synthetic.nii.gz": "OWN_OUTPUT",
        "edited.nii.gz": "OWN_OUTPUT", "edited.json": "OWN_OUTPUT", "own": "OWN_OUTPUT", "notes.txt": "NOT_DICOM",
        "shot.png": "PICTURE", "empty.nii.gz": "EMPTY_FILE",
    }  # fmt: skip
    named = {name for row in report["cases"] if row["status"] == "restored" for name in row["outputs"]}
    records = {f"{row['name']}.json" for row in report["cases"] if row["status"] == "restored"}
    assert set(files_of(want)) == named | records | {"report.json"}
    assert len(records) == 6


def test_header_geometry_and_type_are_kept(mixed: Path, want: Path) -> None:
    for name, made in (("T1.nii.gz", "T1.nii.gz"), ("sub-1/T2.nii", "sub-1_T2.nii.gz")):
        old, new = nib.load(mixed / name), nib.load(want / made)
        assert new.get_data_dtype() == old.get_data_dtype()
        np.testing.assert_array_equal(new.affine, old.affine)
        assert new.header["xyzt_units"] == old.header["xyzt_units"]
        before, after = np.asarray(old.dataobj, dtype=float), np.asarray(new.dataobj, dtype=float)
        assert np.abs(after - before).max() > 5
        assert abs(after.mean() - before.mean()) < 5
        assert np.diff(after, axis=0).std() < np.diff(before, axis=0).std()


def test_derived_series_of_the_same_study(mixed: Path, want: Path) -> None:
    rows = [row for row in report_of(want)["cases"] if row["status"] == "restored" and "." not in row["path"]]
    assert len(rows) == 3
    everything, described = [], set[str]()
    for row in rows:
        files = [want / name for name in row["outputs"]]
        header = pydicom.dcmread(files[0])
        assert header.ImageType[0] == "DERIVED"
        assert header.PatientName == "Kanarie^Vogelvrij"
        assert header.get("SyntheticData") is None
        assert "Smoothing" in header.DerivationDescription
        described.add(header.SeriesDescription)
        everything += files
    assert {"T1 axial, denoised (medgen)", "T2 TSE, denoised (medgen)"} < described
    assert object_errors(everything) == []
    for row in rows:
        assert entity_errors([want / name for name in row["outputs"]]) == []


def test_no_identity_in_what_is_said(mixed: Path, want: Path) -> None:
    said = [content for name, content in files_of(want).items() if name.endswith((".json", ".nii.gz"))]
    said += [name.encode() for name in files_of(want)]
    for canary in CANARIES:
        assert all(canary.lower().encode() not in text.lower() for text in said), canary
        assert any(canary.encode() in path.read_bytes() for path in (mixed / "s1").iterdir()), canary


def test_identity_in_paths_and_errors_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "in"
    series(source / "Kanarie_Vogelvrij", 1, leave_out=(2,))
    series(source / "KV-778899", 2)
    save(source / "kanarie_T1.nii.gz", image(1))

    def broken(*arguments: Any, **options: Any) -> Restored:
        raise KeyError("Kanarie^Vogelvrij")

    monkeypatch.setattr(restore_module, "restore", broken)
    logged: list[dict[str, Any]] = []
    monkeypatch.setattr("medgen.restoration.settings.check_model", lambda model, task: None)
    monkeypatch.setattr(RestoreSettings, "fingerprint", lambda self: "x")
    settings = RestoreSettings("denoise", model="any")
    summary = restore_batch(source, tmp_path / "out", settings, log=logged.append)
    text = (json.dumps(logged) + (tmp_path / "out" / "report.json").read_text()).lower()
    assert all(canary.lower() not in text for canary in CANARIES)
    told = {row["code"]: row["reason"] for row in summary.report["cases"]}
    assert told.keys() == {"FAILED", "MISSING_SLICE"}
    assert "KeyError at tests.restoration.test_batch" in told["FAILED"]
    assert summary.status == 1


def test_redacting() -> None:
    assert redacted("a/KV 778899/x", ["KV-778899"]) == "a/[removed]/x"
    assert redacted("testing the Test", ["Test"]) == "testing the [removed]"


def test_several_processes_give_the_same(mixed: Path, want: Path, tmp_path: Path) -> None:
    assert restore_batch(mixed, tmp_path / "out", SMOOTH, jobs=2).made == 6
    assert files_of(tmp_path / "out") == files_of(want)


def test_resume_keeps_what_is_whole(mixed: Path, want: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    restore_batch(mixed, out, SMOOTH)
    (out / "T1.nii.gz").write_bytes(b"x")
    next(out.glob("003_T2*/slice_0002.dcm")).unlink()
    (out / "sub-1_T2.json").unlink()
    (out / PLAN).write_text(json.dumps({"planned": ["sub-1_T2.nii.gz"]}))
    (out / ".0123456789ab.odd-name.nii.gz").write_bytes(b"left by a kill")
    (out / ".004_Series.0123456789ab").mkdir()
    logged: list[dict[str, Any]] = []
    summary = restore_batch(mixed, out, SMOOTH, resume=True, log=logged.append)
    assert (summary.made, summary.kept) == (3, 3)
    assert [event["status"] for event in logged].count("kept") == 3
    assert files_of(out) == files_of(want)
    other = RestoreSettings("denoise", "classical", noise_level=0.02)
    assert summary.warnings == ()
    changed = restore_batch(mixed, out, other, resume=True)
    assert changed.kept == 0
    assert "6 of the earlier results were not, and are removed and restored anew" in changed.warnings[0]


def killed(source: Path, out: Path, seconds: float, *more: str) -> int:
    """Starts the command and kills it after so many seconds of work; the number of finished scans."""
    command = [sys.executable, "-m", "medgen", "restore", str(source), "-o", str(out), "--task", "denoise"]
    environment = {**os.environ, "PYTHONPATH": str(Path(medgen.__file__).parents[1])}
    with open(out.with_suffix(".log"), "w") as log:
        process = subprocess.Popen(
            [*command, "--method", "classical", "--resume", *more], env=environment, stdout=log, stderr=log
        )
        deadline = time.monotonic() + 120
        while not (out / PLAN).exists() and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(seconds)
        process.send_signal(signal.SIGKILL)
        process.wait()
    return len(list(out.glob("*.json"))) if process.returncode else -1


def test_killed_and_resumed_gives_the_same(mixed: Path, want: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert killed(mixed, out, 0.2) >= 0
    assert not (out / "report.json").exists()
    assert (out / LOCK).exists()
    restore_batch(mixed, out, SMOOTH, resume=True)
    assert files_of(out) == files_of(want)


@pytest.mark.slow
@pytest.mark.parametrize("jobs", [1, 2])
def test_killed_five_times_and_resumed_gives_the_same(mixed: Path, want: Path, tmp_path: Path, jobs: int) -> None:
    draw = random.Random(jobs)
    out = tmp_path / "out"
    for _ in range(5):
        killed(mixed, out, draw.uniform(0, 1.5), "--jobs", str(jobs))
        time.sleep(0.2)
    restore_batch(mixed, out, SMOOTH, resume=True)
    assert files_of(out) == files_of(want)


def test_interrupted_leaves_no_half_file(mixed: Path, want: Path, tmp_path: Path) -> None:
    out, seen = tmp_path / "out", []

    def stop(done: int, total: int) -> None:
        seen.append(done)
        if done == 3:
            raise KeyboardInterrupt

    for jobs in (1, 2):
        with pytest.raises(KeyboardInterrupt):
            restore_batch(mixed, out, SMOOTH, resume=jobs == 2, overwrite=False, jobs=jobs, progress=stop)
        assert not (out / LOCK).exists()
        assert not (out / "report.json").exists()
        assert not [name for name in files_of(out) if name.startswith(".") and name != PLAN]
        seen.clear()
        if jobs == 1:
            for path in list(out.iterdir()):
                if path.name.startswith("T1"):
                    path.unlink()
    restore_batch(mixed, out, SMOOTH, resume=True)
    assert files_of(out) == files_of(want)


def test_limits_end_a_case_and_not_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "in" / "a.nii.gz", image(1))
    save(tmp_path / "in" / "b.nii.gz", image(2))
    with monkeypatch.context() as patched:
        patched.setattr(batch_process, "_child", _sleeps_on_b)
        summary = restore_batch(tmp_path / "in", tmp_path / "out", SMOOTH, limits=Limits(seconds=12.0))
        large = restore_batch(tmp_path / "in", tmp_path / "none", SMOOTH, limits=Limits(memory_bytes=2**20))
    assert states(summary) == {"a.nii.gz": "restored", "b.nii.gz": "TIMEOUT"}
    assert summary.status == 3
    assert set(files_of(tmp_path / "out")) == {"a.json", "a.nii.gz", "report.json"}
    assert states(large)["b.nii.gz"] == "OUT_OF_MEMORY"
    assert large.status != 0


def test_process_that_dies_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "in" / "a.nii.gz", image(1))
    monkeypatch.setattr(batch_process, "_child", _dies)
    summary = restore_batch(tmp_path / "in", tmp_path / "out", SMOOTH, jobs=2)
    assert states(summary) == {"a.nii.gz": "CRASHED"}


_CHILD = batch_process._child


def _sleeps_on_b(case: Any, *arguments: Any) -> None:
    if case.name == "b":
        time.sleep(600)
    _CHILD(case, *arguments)


def _dies(*arguments: Any) -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def test_full_disk_stops_the_run_and_resume_goes_on(
    mixed: Path, want: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from medgen.restoration import write_restored

    write, count = write_restored.write_restored, []

    def full(*arguments: Any) -> Any:
        count.append(1)
        if len(count) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(*arguments)

    monkeypatch.setattr(write_restored, "write_restored", full)
    with pytest.raises(MedgenError, match="No space left"):
        restore_batch(mixed, tmp_path / "out", SMOOTH)
    monkeypatch.undo()
    assert restore_batch(mixed, tmp_path / "out", SMOOTH, resume=True).kept == 2
    assert files_of(tmp_path / "out") == files_of(want)


def test_one_process_a_folder(tmp_path: Path) -> None:
    save(tmp_path / "in" / "a.nii.gz", image(1))
    with locked(tmp_path):
        (tmp_path / "out").mkdir()
        with locked(tmp_path / "out"), pytest.raises(Locked, match=f"in use by process {os.getpid()}"):
            restore_batch(tmp_path / "in", tmp_path / "out", SMOOTH, resume=True)
    (tmp_path / "out" / LOCK).write_text("process 999999 on elsewhere\n")  # left by a dead process
    assert restore_batch(tmp_path / "in", tmp_path / "out", SMOOTH, resume=True).made == 1
    assert not (tmp_path / "out" / LOCK).exists()


def test_output_that_must_not_be_used(tmp_path: Path) -> None:
    source = save(tmp_path / "in" / "a.nii.gz", image(1)).parent
    out = tmp_path / "out"
    restore_batch(source, out, SMOOTH)
    for how in ({}, {"resume": True, "overwrite": True}):
        with pytest.raises(OutputExists):
            restore_batch(source, out, SMOOTH, **how)
    with pytest.raises(OutputExists, match="lies in the output"):
        restore_batch(source, tmp_path, SMOOTH, overwrite=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a.nii.gz").write_text("mine")
    for how in ({"resume": True}, {"overwrite": True}):
        with pytest.raises(OutputExists, match="was not written by"):
            restore_batch(source, tmp_path / "mine", SMOOTH, **how)
    assert (tmp_path / "mine" / "a.nii.gz").read_text() == "mine"
    (out / "mine.txt").write_text("kept")
    save(source / "b.nii.gz", image(2))
    (source / "a.nii.gz").unlink()
    assert restore_batch(source, out, SMOOTH, overwrite=True).made == 1
    assert set(files_of(out)) == {"b.nii.gz", "b.json", "mine.txt", "report.json"}
    with pytest.raises(MedgenError, match="does not exist"):
        restore_batch(tmp_path / "none", tmp_path / "x", SMOOTH)


def test_superres_of_a_tree(tmp_path: Path) -> None:
    series(tmp_path / "in" / "thick", 1)
    save(tmp_path / "in" / "thick.nii.gz", image(1))
    save(tmp_path / "in" / "thin.nii.gz", image(2), spacing=1.2)
    summary = restore_batch(tmp_path / "in", tmp_path / "out", FINE)
    assert states(summary)["thin.nii.gz"] == "NOTHING_TO_DO"
    assert (summary.made, summary.status) == (2, 0)
    new, old = nib.load(tmp_path / "out" / "thick.nii.gz"), nib.load(tmp_path / "in" / "thick.nii.gz")
    assert new.shape == (20, 22, 24)
    assert new.get_data_dtype() == np.int16
    np.testing.assert_allclose(new.header.get_zooms(), (1, 1, 1))
    np.testing.assert_allclose(new.affine @ [9.5, 10.5, 11.5, 1], old.affine @ [9.5, 10.5, 3.5, 1], atol=1e-5)
    (folder,) = (path for path in (tmp_path / "out").iterdir() if path.is_dir())
    files = sorted(folder.iterdir())
    assert len(files) == 18
    assert pydicom.dcmread(files[0]).SpacingBetweenSlices == 1
    assert object_errors(files) == []
    nifti = RestoreSettings("superres", "classical", nifti=True)
    restore_batch(tmp_path / "in" / "thick", tmp_path / "nifti", nifti)
    assert len(list((tmp_path / "nifti").glob("*.nii.gz"))) == 1


def test_hole_outside_bit_identical(tmp_path: Path) -> None:
    values = image(1)
    source = save(tmp_path / "in" / "a.nii.gz", values)
    save(tmp_path / "in" / "other.nii.gz", image(2, (12, 12, 8)))
    hole = np.zeros(values.shape, np.uint8)
    hole[8:12, 8:12, 3:6] = 1
    mask = save(tmp_path / "hole.nii.gz", hole)
    settings = RestoreSettings("inpaint", "classical", mask=mask)
    summary = restore_batch(tmp_path / "in", tmp_path / "out", settings)
    assert states(summary) == {"a.nii.gz": "restored", "other.nii.gz": "GRIDS_DIFFER"}
    new = np.asarray(nib.load(tmp_path / "out" / "a.nii.gz").dataobj)
    np.testing.assert_array_equal(new[hole == 0], values[hole == 0])
    assert (new[hole == 1] != values[hole == 1]).mean() > 0.9
    assert json.loads((tmp_path / "out" / "a.json").read_text())["synthetic"] is True
    assert restore_file(source, tmp_path / "b.nii.gz", settings)["clipped"] == 0


def stand_in(volume: MetaTensor, task: str, model: str, **options: Any) -> Restored:
    """A model that halves the scan, and knows its error."""
    if options["device"] != "cpu":
        raise torch.OutOfMemoryError("CUDA out of memory")
    half = MetaTensor(volume.as_tensor() / 2, affine=volume.affine)
    provenance = {"model": model, "versions": {"medgen": "0"}, "synthetic": False}
    return Restored(half, half, half, half, None, {"noise_level": 0.1}, ("a remark",), provenance)


def test_model_maps_and_fallback_to_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restore_module, "restore", stand_in)
    monkeypatch.setattr("medgen.restoration.settings.check_model", lambda model, task: None)
    monkeypatch.setattr(RestoreSettings, "fingerprint", lambda self: "x")
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    source = save(tmp_path / "in" / "a.nii.gz", image(1))
    settings = RestoreSettings("denoise", model="halves", uncertainty=True)
    summary = restore_batch(tmp_path / "in", tmp_path / "out", settings)
    (row,) = summary.report["cases"]
    assert row["remarks"][0] == "a remark"
    assert "computed on the CPU" in row["remarks"][1]
    assert set(row["outputs"]) == {"a.nii.gz", *(f"uncertainty/a_{k}.nii.gz" for k in ("std", "lower", "upper"))}
    std = np.asarray(nib.load(tmp_path / "out" / "uncertainty" / "a_std.nii.gz").dataobj)
    np.testing.assert_allclose(std, image(1) / 2)
    row = restore_file(source, tmp_path / "b.nii.gz", settings)
    assert {path.name for path in tmp_path.glob("b*")} == {
        "b.json", "b.nii.gz", "b_std.nii.gz", "b_lower.nii.gz", "b_upper.nii.gz",
    }  # fmt: skip
    assert restore_file(source, tmp_path / "b.nii.gz", settings, resume=True)["kept"]
    with pytest.raises(OutputExists):
        restore_file(source, tmp_path / "b.nii.gz", settings)


def test_coarse_whole_numbers_become_float(tmp_path: Path) -> None:
    save(tmp_path / "in" / "a.nii.gz", (image(1) // 100).astype(np.uint8))
    summary = restore_batch(tmp_path / "in", tmp_path / "out", SMOOTH)
    assert nib.load(tmp_path / "out" / "a.nii.gz").get_data_dtype() == np.float32
    assert "TYPE_CHANGED" in summary.report["cases"][0]["remarks"][0]


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"task": "sharpen"}, "task must be one of"),
        ({"task": "motion", "method": "classical"}, "no classical method"),
        ({"task": "inpaint"}, "--mask"),
        ({"task": "denoise", "target_spacing": 1.0}, "--target-spacing"),
        ({"task": "denoise", "noise_level": -1.0}, "above 0"),
        ({"task": "denoise", "noise_level": 1.0}, "below 1"),
        ({"task": "denoise", "device": "gpu"}, "device must be one of"),
        ({"task": "denoise", "model": "brain-t1"}, "is no restorer"),
        ({"task": "denoise", "model": "brain-mri-superres"}, "is for task 'superres'"),
        ({"task": "denoise", "model": "no-such"}, "unknown model"),
        ({"task": "bias"}, "no bundled model does 'bias'"),
        ({"task": "denoise", "method": "classical", "model": "x"}, "--model"),
        ({"task": "superres", "slice_profile": "triangle"}, "slice_profile"),
    ],
)
def test_settings_that_cannot_be_meant(arguments: dict[str, Any], match: str) -> None:
    with pytest.raises(MedgenError, match=match):
        RestoreSettings(**arguments)


def test_scan_without_a_model_for_it_is_refused(tmp_path: Path) -> None:
    ct(tmp_path / "in")
    summary = restore_batch(tmp_path / "in", tmp_path / "out", RestoreSettings("superres"))
    (row,) = summary.report["cases"]
    assert row["code"] == "NO_MODEL"
    assert row["reason"].startswith("restore: no bundled model does 'superres' of CT.")
    assert batch_case.own_outputs(tmp_path / "out" / f"{row['name']}.json") == {}
