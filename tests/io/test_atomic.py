from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from medgen.checks import MedgenError
from medgen.io.atomic import atomic_directory, atomic_path, check_writable, write_json

LIMITED = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
sys.dont_write_bytecode = True
import numpy as np, torch
from medgen.io.nifti import write_nifti
rng = np.random.default_rng(0)
write_nifti(sys.argv[1], torch.from_numpy(rng.random((40, 40, 40), dtype=np.float32)), affine=np.eye(4))
"""


def test_file_appears_whole(tmp_path: Path) -> None:
    with atomic_path(tmp_path / "new" / "a.nii.gz") as temporary:
        assert temporary.name.endswith(".a.nii.gz")
        temporary.write_bytes(b"content")
        assert not (tmp_path / "new" / "a.nii.gz").exists()
    assert (tmp_path / "new" / "a.nii.gz").read_bytes() == b"content"
    assert len(list((tmp_path / "new").iterdir())) == 1


def test_error_keeps_the_old_file_and_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError), atomic_path(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert [file.name for file in tmp_path.iterdir()] == ["a.txt"]
    assert path.read_text() == "old"


def test_folder_in_the_way(tmp_path: Path) -> None:
    with pytest.raises(MedgenError, match="it is a folder"), atomic_path(tmp_path):
        pass


def test_parent_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(MedgenError, match="cannot make the folder"), atomic_path(tmp_path / "file" / "a.txt"):
        pass


@pytest.mark.skipif(os.name != "posix", reason="needs a file size limit")
def test_no_room_leaves_nothing(tmp_path: Path) -> None:
    """A write that fails midway (file size limit, as a full disk) raises and leaves no file of any name."""
    path = tmp_path / "a.nii.gz"
    run = subprocess.run([sys.executable, "-c", LIMITED, str(path)], capture_output=True, text=True, check=False)
    assert run.returncode != 0
    assert "File too large" in run.stderr
    assert list(tmp_path.iterdir()) == []


def test_directory_appears_whole_and_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    for content in ("first", "second"):
        with atomic_directory(path, overwrite=True) as temporary:
            (temporary / "sub").mkdir()
            (temporary / "sub" / "a.txt").write_text(content)
        assert (path / "sub" / "a.txt").read_text() == content
    assert [entry.name for entry in tmp_path.iterdir()] == ["folder"]


def test_directory_is_not_overwritten_unasked(tmp_path: Path) -> None:
    with pytest.raises(MedgenError, match="exists"), atomic_directory(tmp_path):
        pass


def test_directory_error_keeps_the_old(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    path.mkdir()
    (path / "old").write_text("")
    with pytest.raises(RuntimeError), atomic_directory(path, overwrite=True) as temporary:
        (temporary / "new").write_text("")
        raise RuntimeError
    assert [entry.name for entry in tmp_path.rglob("*")] == ["folder", "old"]


def test_json_is_sorted_and_strict(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"b": 1, "a": "µ"})
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == '{\n  "a": "µ",\n  "b": 1\n}\n'
    assert json.loads((tmp_path / "a.json").read_bytes()) == {"a": "µ", "b": 1}
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "b.json", float("nan"))


def test_an_output_that_cannot_be_made_is_found_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_writable(tmp_path / "new" / "deeper")
    assert not (tmp_path / "new").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(MedgenError, match="is a file"):
        check_writable(tmp_path / "file" / "new")
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)  # root may write everywhere
    with pytest.raises(MedgenError, match=f"no permission in '{tmp_path}'"):
        check_writable(tmp_path / "new" / "deeper")
