"""What is found in folders: every file once, whatever it is and however it is reached."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from medgen.checks import MedgenError
from medgen.io.findings import CODES, Refused
from medgen.io.listing import list_files, shown
from medgen.io.names import safe_name, unique_names, without
from medgen.io.nifti import write_nifti
from medgen.io.survey import FullSurvey, read_volume, single_volume, survey
from tests.io import small_series


def nifti(path: Path, shape: tuple[int, int, int] = (4, 5, 6)) -> Path:
    values = torch.arange(np.prod(shape)).reshape(1, *shape).to(torch.int16)
    write_nifti(path, MetaTensor(values, affine=torch.diag(torch.tensor([1.0, 2.0, 3.0, 1.0]))))
    return path


def told(found: FullSurvey) -> dict[str, tuple[str, str | None]]:
    rows = {found.listing.names[record.path]: (record.status, record.code) for record in found.files}
    assert len(rows) == len(found.files)
    assert all(code is None or code in CODES for _, code in rows.values())
    return rows


def test_a_tree_of_everything(tmp_path: Path) -> None:
    small_series.write(tmp_path / "a" / "deep", series="1")
    small_series.write(tmp_path / "b", series="2", description="T2")
    nifti(tmp_path / "b" / "scan.nii.gz")
    (tmp_path / "notes.txt").write_text("notes")
    (tmp_path / "empty").touch()
    (tmp_path / "a" / ".DS_Store").write_bytes(b"x")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "config").write_text("x")
    (tmp_path / "view.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    found = survey(tmp_path)
    rows = told(found)
    assert set(rows) == {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert len(found.volumes) == 3
    assert [status for status, _ in rows.values()].count("used") == 11
    assert rows["notes.txt"] == ("skipped", "NOT_DICOM")
    assert rows["empty"] == ("skipped", "EMPTY_FILE")
    assert rows["a/.DS_Store"] == rows[".git/config"] == ("skipped", "HIDDEN_FILE")
    assert rows["view.png"] == ("skipped", "PICTURE")
    for record in found.files:
        assert (record.volume is not None) == (record.status == "used")
        assert record.volume is None or record.path in found.volumes[record.volume].files


def test_links_loops_and_special_files_survive(tmp_path: Path) -> None:
    files = small_series.write(tmp_path / "real", count=3)
    (tmp_path / "real" / "loop").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "again").symlink_to(tmp_path / "real", target_is_directory=True)
    (tmp_path / "self").symlink_to("self")
    (tmp_path / "gone").symlink_to("nowhere")
    (tmp_path / "same").symlink_to(files[0])
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.path.relpath(tmp_path / "sock"))
        found = survey(tmp_path)
    rows = told(found)
    assert rows["self"] == rows["gone"] == ("refused", "BROKEN_LINK")
    assert rows["same"] == ("skipped", "SAME_FILE")
    assert rows["pipe"] == rows["sock"] == ("skipped", "SPECIAL_FILE")
    assert sorted(name for name, _ in found.listing.links) == ["again", "real/loop"]
    assert len(found.volumes) == 1
    assert len(found.volumes[0].files) == 3


def test_links_lead_to_what_is_nowhere_else(tmp_path: Path) -> None:
    small_series.write(tmp_path / "store" / "x", count=3)
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "series").symlink_to(tmp_path / "store" / "x", target_is_directory=True)
    (tree / "scan.nii").symlink_to(nifti(tmp_path / "store" / "y.nii"))
    found = survey(tree)
    assert set(told(found)) == {"scan.nii", "series/IM0001", "series/IM0002", "series/IM0003"}
    assert len(found.volumes) == 2


def test_unreadable_files_and_folders_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_series.write(tmp_path / "a", count=3)
    (tmp_path / "locked").write_bytes(b"x" * 200)
    (tmp_path / "closed").mkdir()
    scandir, access = os.scandir, os.access

    def closed(path: Path) -> object:
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", closed)
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "locked" and access(path, mode))
    rows = told(survey(tmp_path))
    assert rows["locked"] == rows["closed"] == ("refused", "UNREADABLE")


def test_excluded_folder_and_several_paths(tmp_path: Path) -> None:
    first, second = nifti(tmp_path / "a" / "x.nii"), nifti(tmp_path / "b" / "x.nii")
    assert list(told(survey(tmp_path, exclude=tmp_path / "b"))) == ["a/x.nii"]
    found = survey([first, second, first])
    assert list(told(found)) == [first.as_posix(), second.as_posix()]
    with pytest.raises(MedgenError, match="does not exist"):
        list_files([tmp_path / "none"])


def test_one_volume_or_a_code(tmp_path: Path) -> None:
    files = small_series.write(tmp_path / "s")
    volume = read_volume(tmp_path / "s")
    assert volume.meta["findings"] == ""
    np.testing.assert_array_equal(
        volume.numpy()[0], small_series.expected(volume.affine.numpy(), tuple(volume.shape[1:]))
    )
    assert torch.equal(read_volume(files).as_tensor(), volume.as_tensor())
    nifti(tmp_path / "s" / "x.nii")
    with pytest.raises(Refused, match=r"^SEVERAL_VOLUMES: .*holds 2 volumes"):
        single_volume(tmp_path / "s")
    (tmp_path / "none").mkdir()
    with pytest.raises(Refused, match=r"^NO_VOLUME: .*it is empty"):
        single_volume(tmp_path / "none")
    small_series.write(tmp_path / "gap", leave_out=(2,))
    with pytest.raises(Refused, match=r"^MISSING_SLICE: "):
        single_volume(tmp_path / "gap")
    (tmp_path / "text.txt").write_text("x" * 300)
    with pytest.raises(Refused, match=r"^NO_VOLUME: .*UNKNOWN_FORMAT"):
        single_volume(tmp_path / "text.txt")


def test_names() -> None:
    assert [safe_name(text) for text in ("..", "a/b\\c:d", "nul.x", "é" * 300, "-x-", "a\nb\0c")] == [
        "volume", "a-b-c-d", "volume-nul.x", "e" * 96, "x", "a-b-c",
    ]  # fmt: skip
    many = unique_names(["a", "A", "a-2", "a", "ä", ""])
    assert len({name.lower() for name in many}) == 6
    assert without("MR-3-Doe-head", ["DOE-JANE", "X1"]) == "MR-3-head"
    assert shown("a\udcffb\nc\x1b[31m") == "a\\xffb\\nc\\x1b[31m"
