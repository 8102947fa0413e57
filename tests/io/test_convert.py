"""Conversion: what is written, what the report says, and that a stop at any moment costs nothing."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from medgen.checks import MedgenError
from medgen.io import convert as module
from medgen.io.convert import OutputExists, convert
from medgen.io.dicom import DicomVolume
from medgen.io.journal import JOURNAL
from tests.io import small_series


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Three good series, one with a gap, a stray slice, a text file and a hidden one."""
    source = tmp_path / "src"
    for number in (1, 2, 3):
        small_series.write(source / f"s{number}", series=f"{number}", spacing=(2.0, 1.5, 2.0 + number))
    small_series.write(source / "gap", series="4", leave_out=(2,))
    small_series.write(source / "s1", series="5", count=1, prefix="stray")
    (source / "readme.txt").write_text("hello")
    (source / "s1" / ".hidden").write_text("x")
    return source


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def report_of(folder: Path) -> dict[str, Any]:
    content = json.loads((folder / "report.json").read_text())
    assert isinstance(content, dict)
    return content


def check(source: Path, folder: Path) -> dict[str, Any]:
    """Every file accounted for, every volume right."""
    report = report_of(folder)
    found = {path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file()}
    assert {row["path"] for row in report["files"]} == found
    assert len(report["files"]) == len(found)
    names = [row["path"] for row in report["volumes"]]
    assert set(files_of(folder)) == {*names, "report.json"}
    for row in report["files"]:
        assert (row["volume"] in names) == (row["status"] == "used")
        assert (row["code"] is None) == (row["status"] == "used")
    for row in report["volumes"]:
        image = nib.load(folder / row["path"])
        assert list(image.shape) == row["shape"]
        np.testing.assert_allclose(image.affine, row["affine"], atol=1e-5)
        np.testing.assert_array_equal(np.asarray(image.dataobj), small_series.expected(image.affine, image.shape))
        assert image.get_data_dtype() == np.int16 == np.dtype(row["dtype"])
    return report


def test_folder_to_nifti_with_a_report(tree: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    summary = convert(tree, tmp_path / "out", progress=lambda done, total: seen.append((done, total)))
    report = check(tree, tmp_path / "out")
    assert (summary.made, summary.kept, summary.status) == (3, 0, 3)
    assert seen == [(1, 3), (2, 3), (3, 3)]
    rows = {row["path"]: row for row in report["files"]}
    assert rows["readme.txt"]["status"] == rows["s1/.hidden"]["status"] == "skipped"
    assert rows["s1/stray0001"]["code"] == "SINGLE_SLICE"
    assert {rows[path]["code"] for path in rows if path.startswith("gap/")} == {"MISSING_SLICE"}
    for name in files_of(tmp_path / "out"):
        assert "nobody" not in name.lower()
        assert "test-0001" not in name.lower()


def test_patient_in_a_description_is_no_part_of_a_name(tmp_path: Path) -> None:
    small_series.write(tmp_path / "a", description="Nobody Test TEST-0001 head/neck: T1")
    convert(tmp_path / "a", tmp_path / "out")
    (name,) = (path.name for path in (tmp_path / "out").glob("*.nii.gz"))
    assert "nobody" not in name.lower()
    assert "0001" not in name


def test_name_of_a_series_whose_patient_cannot_be_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(volume: DicomVolume) -> None:
        raise NotImplementedError("a value representation of another world")

    small_series.write(tmp_path / "a", description="Nobody")
    monkeypatch.setattr(DicomVolume, "header", property(broken))
    convert(tmp_path / "a", tmp_path / "out")
    (name,) = (path.name for path in (tmp_path / "out").glob("*.nii.gz"))
    assert name.startswith("series-")
    assert "nobody" not in name.lower()


def test_several_processes_give_the_same(tree: Path, tmp_path: Path) -> None:
    convert(tree, tmp_path / "one")
    convert(tree, tmp_path / "two", jobs=2)
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")
    assert multiprocessing.active_children() == []


def test_odd_names_stand_in_the_report_as_they_are(tmp_path: Path) -> None:
    source = tmp_path / "src"
    small_series.write(source / "a\n\u3000\x1b[31mé")
    (source / os.fsdecode(b"\xff.txt")).write_text("x")
    convert(source, tmp_path / "out")
    names = {row["path"] for row in report_of(tmp_path / "out")["files"]}
    assert names == {f"a\n\u3000\x1b[31mé/IM{number:04d}" for number in range(1, 6)} | {"\\xff.txt"}


def test_statuses(tree: Path, tmp_path: Path) -> None:
    assert convert(tree / "s2", tmp_path / "good").status == 0
    assert convert(tree / "gap", tmp_path / "bad").status == 1
    (tmp_path / "empty").mkdir()
    assert convert(tmp_path / "empty", tmp_path / "none").status == 1
    assert report_of(tmp_path / "none")["files"] == []
    nifti = next((tmp_path / "good").glob("*.nii.gz"))
    assert convert(nifti, tmp_path / "again").status == 0
    (copy,) = (tmp_path / "again").glob("*.nii.gz")
    np.testing.assert_array_equal(np.asarray(nib.load(copy).dataobj), np.asarray(nib.load(nifti).dataobj))


def test_output_that_exists_or_holds_the_input(tree: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    convert(tree, out)
    before = files_of(out)
    for wrong in ({}, {"resume": True, "overwrite": True}):
        with pytest.raises(OutputExists):
            convert(tree, out, **wrong)
    for place in (tree, tmp_path):
        with pytest.raises(OutputExists, match="lies in the output"):
            convert(tree, place, overwrite=True)
    with pytest.raises(MedgenError, match="does not exist"):
        convert(tmp_path / "none", tmp_path / "x")
    assert not (tmp_path / "x").exists()
    assert files_of(out) == before
    (out / "mine.txt").write_text("kept")
    convert(tree / "s1", out, overwrite=True)
    assert {path.name for path in out.iterdir()} == {"mine.txt", "report.json", *names_of(out)}
    assert len(names_of(out)) == 1


def names_of(out: Path) -> list[str]:
    return [row["path"] for row in report_of(out)["volumes"]]


def test_output_in_the_input(tree: Path) -> None:
    convert(tree, tree / "nifti")
    first = files_of(tree / "nifti")
    assert not any(row["path"].startswith("nifti/") for row in report_of(tree / "nifti")["files"])
    assert convert(tree, tree / "nifti", resume=True).kept == 3
    assert files_of(tree / "nifti") == first


def test_resume_keeps_what_is_whole_and_mends_the_rest(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    convert(tree, out)
    want = files_of(out)
    first, second, _ = names_of(out)
    (out / first).unlink()
    (out / second).write_bytes(want[second][:-5])
    (out / ".0123456789ab.x.nii.gz").write_bytes(b"left by a kill")
    kept = (out / names_of(out)[2]).stat().st_mtime_ns
    summary = convert(tree, out, resume=True)
    assert (summary.made, summary.kept) == (2, 1)
    assert files_of(out) == want
    assert (out / names_of(out)[2]).stat().st_mtime_ns == kept
    written: list[str] = []
    monkeypatch.setattr(module, "_write_one", lambda task: written.append(task.path))
    assert convert(tree, out, resume=True).kept == 3
    assert written == []


def test_changed_input_is_converted_again(tree: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    convert(tree, out)
    os.utime(next((tree / "s1").glob("IM*")), ns=(1, 1))
    assert convert(tree, out, resume=True).kept == 2


def test_resume_does_not_replace_what_it_did_not_write(tree: Path, tmp_path: Path) -> None:
    convert(tree, tmp_path / "out")
    name = names_of(tmp_path / "out")[0]
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / name).write_text("mine")
    with pytest.raises(OutputExists, match="was not written by"):
        convert(tree, tmp_path / "other", resume=True)
    assert (tmp_path / "other" / name).read_text() == "mine"


@pytest.mark.parametrize(
    "damage", ["", '{"planned": ["../x.nii.gz", 3]}\n[1]\n{"volume": {"path": "/etc/x.nii.gz"}}\n{"vo']
)
def test_damaged_journal(tree: Path, tmp_path: Path, damage: str) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (tmp_path / "x.nii.gz").write_text("mine")
    (out / JOURNAL).write_text(damage)
    convert(tree, out, resume=True)
    check(tree, out)
    assert (tmp_path / "x.nii.gz").read_text() == "mine"


def test_full_disk_stops_and_resume_goes_on(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from medgen.io import nifti

    convert(tree, tmp_path / "want")
    write, calls = nifti.write_nifti, []

    def full(path: Path, *arguments: Any) -> Any:
        calls.append(path)
        if len(calls) == 2:
            raise OSError(28, "No space left on device", str(path))
        return write(path, *arguments)

    monkeypatch.setattr(nifti, "write_nifti", full)
    out = tmp_path / "out"
    with pytest.raises(OSError, match="No space left"):
        convert(tree, out)
    assert len(list(out.glob("*.nii.gz"))) == 1
    assert not (out / "report.json").exists()
    monkeypatch.undo()
    assert convert(tree, out, resume=True).kept == 1
    assert files_of(out) == files_of(tmp_path / "want")


@pytest.mark.parametrize(("stop", "jobs"), [(signal.SIGKILL, 2), (signal.SIGINT, 1)])
def test_killed_and_resumed_gives_the_same_tree(tree: Path, tmp_path: Path, stop: signal.Signals, jobs: int) -> None:
    for number in range(10, 18):
        small_series.write(tree / f"s{number}", series=f"{number}", count=20, rows=64, columns=64)
    convert(tree, tmp_path / "want")
    out = tmp_path / "out"
    slow = (
        "import signal\nimport time\nfrom medgen.io.convert import convert\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a parent in the background ignores it
        "def wait(done, total):\n    time.sleep(1 if done < 5 else 30)\n"
        "if __name__ == '__main__':\n"
        f"    convert({str(tree)!r}, {str(out)!r}, jobs={jobs}, progress=wait)\n"
    )
    script = tmp_path / "slow.py"
    script.write_text(slow)
    environment = {**os.environ, "PYTHONPATH": str(Path(module.__file__).parents[2])}
    process = subprocess.Popen([sys.executable, script], env=environment, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (out / JOURNAL).exists() or (out / JOURNAL).read_bytes().count(b"\n") < 4:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    while process.poll() is None:  # Python loses an interruption that arrives while it destroys an object
        assert time.monotonic() < deadline
        process.send_signal(stop)
        time.sleep(0.5)
    assert process.returncode != 0
    assert not (out / "report.json").exists()
    time.sleep(0.2)
    summary = convert(tree, out, resume=True)
    assert summary.kept >= 3
    assert summary.kept + summary.made == 11
    assert files_of(out) == files_of(tmp_path / "want")
    check(tree, out)


def test_files_of_one_name_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    for folder in ("sub-1", "sub-2"):
        (tmp_path / "src" / folder).mkdir(parents=True)
        nib.save(nib.Nifti1Image(np.ones((4, 5, 6), np.int16), np.eye(4)), tmp_path / "src" / folder / "T1.nii.gz")
    summary = convert(tmp_path / "src", tmp_path / "out")
    assert [row["path"] for row in summary.report["volumes"]] == ["sub-1_T1.nii.gz", "sub-2_T1.nii.gz"]
