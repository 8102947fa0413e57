"""The corpus through the whole conversion: NIfTI files and ``report.json``, as a user's script sees them."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medgen.io.convert import convert
from tests.io.dicom.corpus import CASES, cases_folder
from tests.io.dicom.judge import Reading, Volume, judge

_SOME = [name for number, name in enumerate(CASES) if number % 3 == 0]
_FOLDERS = [name for name, case in CASES.items() if case.build.__module__ == cases_folder.__name__]


def converted(source: Path, folder: Path) -> tuple[Reading, int]:
    """What stands in ``folder`` after the conversion, and its exit status."""
    summary = convert(source, folder)
    report = json.loads((folder / "report.json").read_text())
    reading = Reading()
    for row in report["volumes"]:
        image = nib.load(folder / row["path"])
        assert list(image.shape) == row["shape"]
        reading.volumes.append(Volume(np.asarray(image.dataobj), image.affine, frozenset(row["findings"])))
    written = {path.name for path in folder.iterdir()}
    assert written == {row["path"] for row in report["volumes"]} | {"report.json"}
    found = {path.relative_to(source).as_posix() for path in source.rglob("*") if not path.is_dir()}
    assert {row["path"] for row in report["files"]} == found
    assert len(report["files"]) == len(found)
    reading.refused = {Path(row["path"]): row["code"] for row in report["files"] if row["status"] == "refused"}
    reading.skipped = {Path(row["path"]): row["code"] for row in report["files"] if row["status"] == "skipped"}
    return reading, summary.status


@pytest.mark.parametrize("name", list(dict.fromkeys([*_SOME, *_FOLDERS])))
def test_case(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    expected = case.make(tmp_path / "case")
    reading, status = converted(tmp_path / "case", tmp_path / "out")
    verdict = judge(case, expected, reading)
    assert verdict.outcome in ("right", "flagged"), f"{verdict.outcome}: {verdict.why}"
    assert status == (1 if not reading.volumes else 3 if reading.refused else 0)
