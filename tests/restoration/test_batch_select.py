"""What an unattended restoration takes and what it leaves alone, each by a code."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pydicom
import pytest

from medgen.checks import MedgenError
from medgen.restoration.batch import BatchSummary, restore_batch
from medgen.restoration.batch_select import parsed_selection
from medgen.restoration.settings import RestoreSettings
from tests.restoration.mixed_inputs import image, save, series

SMOOTH = RestoreSettings("denoise", "classical")


def states(summary: BatchSummary) -> dict[str, str]:
    return {row["path"]: row["code"] or row["status"] for row in summary.report["files"]}


def test_own_outputs_are_not_restored_again(tmp_path: Path) -> None:
    save(tmp_path / "in" / "a.nii.gz", image(1))
    series(tmp_path / "in" / "s", 1)
    restore_batch(tmp_path / "in", tmp_path / "first", SMOOTH)
    (tmp_path / "first" / "a.json").unlink()
    summary = restore_batch(tmp_path / "first", tmp_path / "second", SMOOTH)
    assert set(states(summary).values()) == {"OWN_OUTPUT"}
    assert summary.status == 1
    summary = restore_batch(tmp_path / "first", tmp_path / "third", SMOOTH, include=["OWN_OUTPUT"])
    assert summary.made == 2


def test_selection(tmp_path: Path) -> None:
    series(tmp_path / "in" / "a", 1, SeriesDescription="T1 axial", EchoTime="3.0")
    series(tmp_path / "in" / "b", 2, SeriesDescription="T2 axial")
    save(tmp_path / "in" / "c.nii.gz", image(1))
    select = "Modality=mr SeriesDescription~'t1 AX' EchoTime=3 ImageType=primary"
    summary = restore_batch(tmp_path / "in", tmp_path / "out", SMOOTH, select=select)
    told = states(summary)
    assert {told[f"b/IM{n:04d}"] for n in range(1, 7)} == {"NOT_SELECTED"} == {told["c.nii.gz"]}
    assert summary.made == 1
    assert summary.warnings == ()
    for wrong in ("", "Modality", "Nonsense=1", "SeriesDescription~'a", "Modality<3"):
        with pytest.raises(MedgenError, match="--select"):
            parsed_selection(wrong)


def test_selection_that_holds_for_nothing_says_which_condition(tmp_path: Path) -> None:
    series(tmp_path / "in" / "a", 1, SeriesDescription="T1 axial")
    series(tmp_path / "in" / "b", 2, SeriesDescription="T2 axial")
    save(tmp_path / "in" / "c.nii.gz", image(1))
    logged: list[dict[str, Any]] = []
    select = "Modality=MR SeriesDescription~T1 PatientID=KV-000"
    summary = restore_batch(tmp_path / "in", tmp_path / "out", SMOOTH, select=select, log=logged.append)
    want = (
        "--select holds for none of 2 DICOM volumes: Modality holds for 2, SeriesDescription holds for 1, PatientID "
        "holds for 0. "
    )
    (text,) = summary.warnings
    assert text.startswith(want)
    assert logged == [{"event": "warning", "reason": text}]
    assert (summary.status, summary.report["select"]["selected"]) == (1, 0)


def test_what_still_arrives_is_left_alone(tmp_path: Path) -> None:
    series(tmp_path / "in" / "a", 1)
    series(tmp_path / "in" / "b", 2)
    series(tmp_path / "in" / "c", 3)[2].unlink()
    save(tmp_path / "in" / "d.nii.gz", image(1))
    past = time.time() - 3600
    for path in (tmp_path / "in").rglob("*"):
        if path.is_file() and path.name != "IM0001":
            os.utime(path, (past, past))
    os.utime(tmp_path / "in" / "a" / "IM0001", (past, past))
    summary = restore_batch(tmp_path / "in", tmp_path / "out", SMOOTH, settle_minutes=10)
    told = {path.split("/")[0]: code for path, code in states(summary).items()}
    assert told == {"a": "restored", "b": "ARRIVING", "c": "ARRIVING", "d.nii.gz": "restored"}
    assert summary.status == 0
    summary = restore_batch(tmp_path / "in", tmp_path / "out", SMOOTH, resume=True)
    assert (summary.made, summary.kept, summary.status) == (1, 2, 3)


@pytest.mark.parametrize(
    ("creator", "tag", "vr", "value"),
    [
        (("SIEMENS MR HEADER", 0x00190010), 0x0019100C, "IS", "800"),
        (("GEMS_PARM_01", 0x00430010), 0x00431039, "IS", ["1000000700", "8", "0", "0"]),
        (("Philips Imaging DD 001", 0x20010010), 0x20011003, "FL", 600.0),
        (None, 0x00080008, "CS", ["ORIGINAL", "PRIMARY", "DIFFUSION"]),
    ],
)
def test_diffusion_by_any_maker(tmp_path: Path, creator: Any, tag: int, vr: str, value: Any) -> None:
    file = series(tmp_path / "in", 1)[0]  # one slice says so: the whole series is
    header = pydicom.dcmread(file)
    if creator is not None:
        header.add_new(creator[1], "LO", creator[0])
    header[tag] = pydicom.DataElement(tag, vr, value)
    header.save_as(file, enforce_file_format=True)
    if creator is None:
        for other in (tmp_path / "in").iterdir():
            header = pydicom.dcmread(other)
            header.ImageType = value
            header.save_as(other, enforce_file_format=True)
    summary = restore_batch(tmp_path / "in", tmp_path / "out", SMOOTH)
    assert set(states(summary).values()) == {"DIFFUSION"}


def test_series_that_cannot_be_used_has_one_row(tmp_path: Path) -> None:
    for number in (1, 2):
        cut = series(tmp_path / "in" / f"cut{number}", number)[2]
        cut.write_bytes(cut.read_bytes()[:-100])
    series(tmp_path / "in" / "gap", 3)[3].unlink()
    save(tmp_path / "in" / "a.nii.gz", image(1))
    logged: list[dict[str, Any]] = []
    summary = restore_batch(tmp_path / "in", tmp_path / "out", SMOOTH, log=logged.append)
    told = {row["name"]: (row["code"], row.get("files")) for row in summary.report["cases"]}
    assert told == {
        "a": (None, None), "cut1/IM0001": ("TRUNCATED_PIXEL_DATA", 6), "cut2/IM0001": ("TRUNCATED_PIXEL_DATA", 6),
        "gap/IM0001": ("MISSING_SLICE", 5),
    }  # fmt: skip
    reasons = {row["name"]: row["reason"] for row in summary.report["cases"]}
    assert reasons["cut1/IM0001"].startswith("'IM0004' holds 860 bytes")  # the file at fault
    assert {row["case"] for row in summary.report["files"]} == told.keys()
    assert {event["case"]: event.get("code") for event in logged} == {name: code for name, (code, _) in told.items()}
    assert summary.report["counts"]["cases"] == {"found": 4, "restored": 1, "skipped": 0, "refused": 3, "failed": 0}
