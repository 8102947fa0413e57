"""``medgen inspect``: tables, JSON, exit statuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from medgen.cli.app import app
from tests.io import small_series


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["inspect", *map(str, arguments)])


def test_tables(tmp_path: Path) -> None:
    small_series.write(tmp_path / "good")
    small_series.write(tmp_path / "gap", series="2", leave_out=(2,))
    (tmp_path / "notes\x1b[31m.txt").write_text("x" * 200)
    result = run(tmp_path)
    assert result.exit_code == 3, result.output
    assert "8 x 6 x 5" in result.stdout
    assert "1.5 x 2 x 3" in result.stdout
    assert "refused MISSING_SLICE: gap/IM0001, gap/IM0002, gap/IM0004 and 1 more: " in result.stdout
    assert "skipped NOT_DICOM: notes" in result.stdout
    assert "\x1b" not in result.stdout
    assert "10 files: 5 used, 1 skipped, 4 refused" in result.stdout
    assert "nobody" not in result.stdout.lower()


def test_json(tmp_path: Path) -> None:
    small_series.write(tmp_path / "good", SliceThickness="2")
    result = run(tmp_path, "--json", "--load")
    assert result.exit_code == 0, result.output
    content = json.loads(result.stdout)
    (volume,) = content["volumes"]
    assert volume["shape"] == [8, 6, 5]
    assert volume["spacing"] == [1.5, 2.0, 3.0]
    assert volume["modality"] == "MR"
    assert len(volume["affine"]) == 4
    assert volume["refused"] is None
    assert {row["volume"] for row in content["files"]} == {volume["name"]}
    assert content["counts"] == {"found": 5, "used": 5, "skipped": 0, "refused": 0, "volumes": 1}


def test_voxels_that_cannot_be_read_show_with_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from medgen.io.report import Refusal

    small_series.write(tmp_path / "good")
    monkeypatch.setattr("medgen.io.convert.loaded", lambda volume: Refusal("UNDECODABLE", "broken"))
    result = run(tmp_path, "--load", "--json")
    assert result.exit_code == 1
    content = json.loads(result.stdout)
    assert {row["code"] for row in content["files"]} == {"UNDECODABLE"}
    assert content["volumes"][0]["refused"]["code"] == "UNDECODABLE"


def test_statuses(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert run(tmp_path / "empty").exit_code == 1
    assert run(tmp_path / "none").exit_code == 2
    assert run().exit_code == 2
