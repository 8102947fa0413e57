"""``medgen restore``: statuses, what is said, one file and a tree."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from typer.testing import CliRunner, Result

from medgen.cli.app import app
from tests.restoration.mixed_inputs import CANARIES, image, save, series


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
