"""``medgen restore``: statuses, what is said, one file and a tree."""

from __future__ import annotations

import json
import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from typer.testing import CliRunner, Result

from medgen.cli.app import app
from medgen.io.findings import CODES
from medgen.io.lock import locked
from tests.restoration.mixed_inputs import CANARIES, image, save, series

GUARD = ("MODALITY", "SPACING", "FIELD_OF_VIEW", "UNIT", "INTENSITIES")


def run(*arguments: object, task: str = "denoise") -> Result:
    return CliRunner().invoke(app, ["restore", *map(str, arguments), "--task", task, "--method", "classical"])


def test_tree(tmp_path: Path) -> None:
    series(tmp_path / "in" / "a", 1)
    save(tmp_path / "in" / "b.nii.gz", image(1))
    save(tmp_path / "in" / "c.nii.gz", np.full((8, 8, 4), np.nan, np.float32))
    result = run(tmp_path / "in", "-o", tmp_path / "out")
    assert result.exit_code == 3, result.output
    assert "3 scans: 2 restored, 0 skipped, 1 refused, 0 failed" in result.stdout
    assert "8 files: 7 restored, 0 skipped, 1 refused, 0 failed" in result.stdout
    events = [json.loads(line) for line in result.stderr.splitlines()]
    assert [event["event"] for event in events] == ["case"] * 3
    assert {event["case"]: event["status"] for event in events}["c"] == "refused"
    assert all(canary.lower() not in result.output.lower() for canary in CANARIES)
    again = run(tmp_path / "in", "-o", tmp_path / "out", "--resume")
    assert again.exit_code == 3
    assert "2 of them before" in again.stdout
    assert run(tmp_path / "in" / "c.nii.gz", "-o", tmp_path / "none").exit_code == 1
    assert run(tmp_path / "in" / "a", "-o", tmp_path / "one", "--nifti").exit_code == 0


def test_one_file(tmp_path: Path) -> None:
    source = save(tmp_path / "a.nii.gz", image(1))
    result = run(source, "-o", tmp_path / "b.nii", "--uncertainty")
    assert result.exit_code == 0, result.output
    assert "noise_level: " in result.stdout
    assert "says nothing of its expected error" in result.stderr
    assert nib.load(tmp_path / "b.nii").shape == (20, 22, 8)
    assert json.loads((tmp_path / "b.json").read_text())["restores"] == "denoise"
    assert run(source, "-o", tmp_path / "b.nii").exit_code == 2
    assert run(source, "-o", tmp_path / "b.nii", "--overwrite").exit_code == 0
    assert run(source, "-o", source, "--overwrite").exit_code == 1
    series(tmp_path / "s", 1)
    assert run(tmp_path / "s", "-o", tmp_path / "s.nii.gz", task="superres").exit_code == 0
    assert nib.load(tmp_path / "s.nii.gz").shape == (20, 24, 18)
    result = run(tmp_path / "s.nii.gz", "-o", tmp_path / "t.nii.gz", task="superres")
    assert result.exit_code == 1
    assert "error: NOTHING_TO_DO: " in result.stderr


def test_progress_of_one_file_is_logged_without_a_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medgen.cli.restore._LOG_SECONDS", 0.0)
    source = save(tmp_path / "a.nii.gz", image(1))
    marked = np.zeros(image(1).shape, np.uint8)
    marked[8:11, 8:11, 3:5] = 1
    mask = save(tmp_path / "hole.nii.gz", marked)
    options = ["--task", "inpaint", "--mask", mask, "--samples", "1", "--uncertainty"]
    result = CliRunner().invoke(app, ["restore", str(source), "-o", str(tmp_path / "b.nii.gz"), *map(str, options)])
    assert result.exit_code == 0, result.output
    *events, remark = result.stderr.splitlines()
    assert json.loads(events[-1]) == {"event": "progress", "done": 36, "total": 36}
    assert remark.startswith("medgen: warning: one sample has no deviation")
    out = tmp_path / "out"
    again = CliRunner().invoke(
        app, ["restore", str(source), "-o", str(tmp_path / "b.nii.gz"), *map(str, options), "--resume", "--seed", "1"]
    )
    assert "of another input or other settings, and was replaced" in again.stderr
    limited = [*map(str, options), "--overwrite", "--timeout", "100"]
    result = CliRunner().invoke(app, ["restore", str(source), "-o", str(tmp_path / "b.nii.gz"), *limited])
    assert "progress" not in result.stderr
    result = CliRunner().invoke(app, ["restore", str(source), "-o", str(out), *map(str, options)])
    assert json.loads((out / "report.json").read_text())["method"] == "scan"


def test_readme_has_every_field_status_and_code(tmp_path: Path) -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    section = readme.split("### Unattended runs")[1].split("\n## ")[0]
    words = set(re.findall(r"`([A-Za-z_]+)`", section))
    series(tmp_path / "in" / "a", 1)
    series(tmp_path / "in" / "gap", 2)[2].unlink()
    save(tmp_path / "in" / "c.nii.gz", np.full((8, 8, 4), np.nan, np.float32))
    result = run(tmp_path / "in", "-o", tmp_path / "out", "--select", "Modality=MR")
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    events = [json.loads(line) for line in result.stderr.splitlines()]
    (record,) = (json.loads(path.read_text()) for path in (tmp_path / "out").glob("*_*.json"))
    objects = [report, report["select"], *report["select"]["conditions"], *report["files"], *report["cases"], *events]
    keys = {key for each in objects for key in each} | {"versions", "inputs", "restores", "synthetic", "restored"}
    assert keys <= words
    assert {"versions", "inputs", "restores", "synthetic", "restored"} <= record.keys()
    assert {event["event"] for event in events} <= words
    assert {word for word in words if word.isupper() and word != "OUT"} <= {*CODES, *GUARD}
    help_text = " ".join(CliRunner().invoke(app, ["restore", "--help"]).output.split())
    statuses = re.findall(r"^- (\d+): ", section, re.MULTILINE)
    assert statuses == ["0", "1", "2", "3", "130"]
    assert all(f"{status}: " in help_text for status in statuses)


def test_damaged_slice_does_not_hide_its_series(tmp_path: Path) -> None:
    for name, number in (("a", 1), ("b", 2)):
        cut = series(tmp_path / "in" / name, number)[2]
        cut.write_bytes(cut.read_bytes()[:-100])
    result = run(tmp_path / "in", "-o", tmp_path / "out")
    assert result.exit_code == 1
    lines = result.stdout.splitlines()
    assert [line.split("  ")[0] for line in lines[:2]] == ["a/IM0001 (6 files)", "b/IM0001 (6 files)"]
    assert all("  refused   TRUNCATED_PIXEL_DATA: 'IM0004' holds 860 bytes" in line for line in lines[:2])
    assert lines[2] == "2 scans: 0 restored, 0 skipped, 2 refused, 0 failed"
    assert lines[4].startswith("report: ")


@pytest.mark.parametrize("terminal", [False, True])
def test_selection_that_holds_for_nothing_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, terminal: bool
) -> None:
    series(tmp_path / "in" / "a", 1)
    if terminal:
        monkeypatch.setattr("medgen.cli.restore._log", lambda: None)
    result = run(tmp_path / "in", "-o", tmp_path / "out", "--select", "Modality=MR PatientID=Kanarie")
    assert result.exit_code == 1
    text = "--select holds for none of 1 DICOM volumes: Modality holds for 1, PatientID holds for 0."
    (line,) = result.stderr.splitlines()
    start = "medgen: warning: " if terminal else '{"event": "warning", "reason": "'
    assert line.startswith(start + text)
    assert all(canary.lower() not in result.output.lower() for canary in CANARIES)


def test_output_that_another_process_writes(tmp_path: Path) -> None:
    source = save(tmp_path / "a.nii.gz", image(1))
    with locked(tmp_path / "b.nii.gz", "b"):
        result = run(source, "-o", tmp_path / "b.nii.gz", "--overwrite")
    assert result.exit_code == 1
    assert "b.nii.gz' is in use by process" in result.stderr
    assert not (tmp_path / "b.nii.gz").exists()


@pytest.mark.parametrize(
    "options",
    [
        "--task inpaint",
        "--task motion",
        "--task denoise --model brain-mri-superres",
        "--task denoise --model no-such",
        "--task superres --slice-profile triangle",
        "--task denoise --noise-level 1.5",
        "--task denoise --device gpu",
        "--task denoise --include NOTHING",
        "--task denoise --timeout 0",
        "--task denoise --max-memory 0",
    ],
)
@pytest.mark.parametrize("output", ["new/out", "new/out.nii.gz"])
def test_options_are_checked_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: str, output: str
) -> None:
    source = save(tmp_path / "in" / "a.nii.gz", image(1))

    def read(*arguments: object, **more: object) -> None:
        raise AssertionError("the input was read")

    for module in ("batch_inputs", "restore_file"):
        monkeypatch.setattr(f"medgen.restoration.{module}.survey", read)
    monkeypatch.setattr("medgen.restoration.restore_file.single_volume", read)
    result = CliRunner().invoke(app, ["restore", str(source), "-o", str(tmp_path / output), *options.split()])
    assert result.exit_code == 2, result.output
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "options",
    [
        ["--select", "Nonsense=1"],
        ["--jobs", "0"],
        ["--mask", "x.nii.gz"],
        ["--model", "x"],
        ["--resume", "--overwrite"],
        ["--target-spacing", "1"],
    ],
)
def test_usage_errors(tmp_path: Path, options: list[str]) -> None:
    source = save(tmp_path / "in" / "a.nii.gz", image(1)).parent
    result = run(source, "-o", tmp_path / "out", *options)
    assert result.exit_code == 2
    assert "Traceback" not in result.output
    assert not (tmp_path / "out").exists()
    assert run(tmp_path / "none", "-o", tmp_path / "out").exit_code == 2
