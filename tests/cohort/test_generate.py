from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from medgen.checks import MedgenError
from medgen.cohort.generate import generate_cohort
from medgen.io.nifti import read_nifti


class FakeModel:
    """Noise with a box for a label, by seed; fails at a chosen seed."""

    spec = SimpleNamespace(
        name="fake",
        modality="T1w",
        grid=SimpleNamespace(spacing=(2.0, 2.0, 2.0), size=(16, 16, 16)),
        intensity=SimpleNamespace(scale=1000.0, unit="arbitrary T1 units"),
    )
    hash = "abc"
    multiple = 4

    def __init__(self, fail_at: int | None = None) -> None:
        self.fail_at = fail_at
        self.seeds: list[int] = []

    def sample(self, n: int = 1, seed: int = 0, label: Any = None, **options: Any) -> Sequence[dict[str, MetaTensor]]:
        if seed == self.fail_at:
            raise OSError(28, "No space left on device")
        self.seeds.append(seed)
        ids = torch.zeros((1, 12, 14, 10), dtype=torch.int16)
        ids[:, 3:9, 3:9, 3:9] = 41
        affine = torch.diag(torch.tensor([2.0, 2, 2, 1], dtype=torch.float64))
        if label is not None:
            ids, affine = label.as_tensor(), label.affine
        image = torch.rand(ids.shape, generator=torch.Generator().manual_seed(seed))
        meta = {"synthetic": True, "provenance": {"sampler": options["sampler"] or "ab2"}}
        return [{"image": MetaTensor(image, affine=affine, meta=meta), "label": MetaTensor(ids, affine=affine)}]


def content(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


def test_files_and_provenance(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    summary = generate_cohort(FakeModel(), 2, tmp_path / "c", seed=5, progress=lambda *done: seen.append(done))
    assert sorted(content(tmp_path / "c")) == [
        "contact_sheet.png", "manifest.json",
        "sub-0001.json", "sub-0001_T1w.nii.gz", "sub-0001_dseg.nii.gz",
        "sub-0002.json", "sub-0002_T1w.nii.gz", "sub-0002_dseg.nii.gz",
    ]  # fmt: skip
    assert (summary.made, summary.subjects) == (2, ("sub-0001", "sub-0002"))
    assert seen == [(1, 2), (2, 2)]
    record = json.loads((tmp_path / "c" / "sub-0002.json").read_text())
    assert record["synthetic"] is True
    assert record["seed"] == 6
    assert record["sampler"] == "ab2"
    assert (record["model"], record["model_sha256"]) == ("fake", "abc")
    assert record["versions"]["torch"].startswith("2")
    assert record["intensity_unit"] == "arbitrary T1 units"
    assert str(tmp_path) not in (tmp_path / "c" / "manifest.json").read_text() + json.dumps(record)
    image = read_nifti(tmp_path / "c" / "sub-0002_T1w.nii.gz")
    assert torch.equal(image.as_tensor(), FakeModel().sample(seed=6, sampler=None)[0]["image"].as_tensor() * 1000)
    assert read_nifti(tmp_path / "c" / "sub-0002_dseg.nii.gz", role="label").unique().tolist() == [0, 41]
    np.testing.assert_array_equal(image.affine, np.diag([2, 2, 2, 1]))


def test_same_call_same_bytes_and_subjects_stand_alone(tmp_path: Path) -> None:
    for name in "ab":
        generate_cohort(FakeModel(), 3, tmp_path / name, seed=1)
    assert content(tmp_path / "a") == content(tmp_path / "b")
    generate_cohort(FakeModel(), 1, tmp_path / "third", seed=3)
    assert content(tmp_path / "third")["sub-0001_T1w.nii.gz"] == content(tmp_path / "a")["sub-0003_T1w.nii.gz"]


def test_existing_folder_is_refused(tmp_path: Path) -> None:
    generate_cohort(FakeModel(), 1, tmp_path / "c")
    before = content(tmp_path / "c")
    with pytest.raises(MedgenError, match="--overwrite or --resume"):
        generate_cohort(FakeModel(), 1, tmp_path / "c")
    assert content(tmp_path / "c") == before


def test_overwrite_replaces_a_cohort_and_nothing_else(tmp_path: Path) -> None:
    generate_cohort(FakeModel(), 3, tmp_path / "c")
    (tmp_path / "c" / "notes.txt").write_text("mine")
    generate_cohort(FakeModel(), 1, tmp_path / "c", seed=9, overwrite=True)
    assert "sub-0003.json" not in content(tmp_path / "c")
    assert (tmp_path / "c" / "notes.txt").read_text() == "mine"
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "sub-0001.json").write_text("mine")
    with pytest.raises(MedgenError, match="holds no cohort"):
        generate_cohort(FakeModel(), 1, tmp_path / "other", overwrite=True)
    assert (tmp_path / "other" / "sub-0001.json").read_text() == "mine"


def test_interrupted_run_resumes_to_the_same_bytes(tmp_path: Path) -> None:
    generate_cohort(FakeModel(), 4, tmp_path / "whole", seed=1)
    with pytest.raises(OSError, match="No space"):
        generate_cohort(FakeModel(fail_at=3), 4, tmp_path / "c", seed=1)
    assert json.loads((tmp_path / "c" / "manifest.json").read_text())["complete"] is False
    assert "sub-0002.json" in content(tmp_path / "c")
    assert not any(name.startswith("sub-0003") for name in content(tmp_path / "c"))
    (tmp_path / "c" / "sub-0002_T1w.nii.gz").write_bytes(b"damaged")
    model = FakeModel()
    summary = generate_cohort(model, 4, tmp_path / "c", seed=1, resume=True)
    assert model.seeds == [2, 3, 4]
    assert summary.made == 3
    assert content(tmp_path / "c") == content(tmp_path / "whole")


def test_resume_extends_but_never_mixes(tmp_path: Path) -> None:
    generate_cohort(FakeModel(), 2, tmp_path / "c", seed=1)
    model = FakeModel()
    generate_cohort(model, 3, tmp_path / "c", seed=1, resume=True)
    assert model.seeds == [3]
    with pytest.raises(MedgenError, match="begun with seed 1, not 2"):
        generate_cohort(FakeModel(), 3, tmp_path / "c", seed=2, resume=True)
    with pytest.raises(MedgenError, match="begun with sampler None, not heun"):
        generate_cohort(FakeModel(), 3, tmp_path / "c", seed=1, sampler="heun", resume=True)
    with pytest.raises(MedgenError, match="begun with n 3, not 1"):
        generate_cohort(FakeModel(), 1, tmp_path / "c", seed=1, resume=True)


def test_failure_before_the_first_subject_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space"):
        generate_cohort(FakeModel(fail_at=0), 2, tmp_path / "c")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"n": 0}, "n must be"),
        ({"n": 1, "seed": -1}, "seed must lie"),
        ({"n": 1, "num_inference_steps": 0}, "num_inference_steps"),
        ({"n": 1, "overwrite": True, "resume": True}, "exclude"),
    ],
)
def test_wrong_arguments(tmp_path: Path, arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(MedgenError, match=words):
        generate_cohort(FakeModel(), output_dir=tmp_path / "c", **arguments)
    assert list(tmp_path.iterdir()) == []


def test_own_label_of_any_grid(tmp_path: Path) -> None:
    """An LPS map of 1 mm comes out at the model's 2 mm, RAS+, each axis a multiple of 4."""
    ids = torch.zeros((1, 30, 30, 30), dtype=torch.int32)
    ids[:, 5:15, 11:21, 11:21] = 17
    label = MetaTensor(ids, affine=np.diag([-1.0, -1, 1, 1]))
    notes: list[str] = []
    generate_cohort(FakeModel(), 1, tmp_path / "c", label=label, notify=notes.append)
    made = read_nifti(tmp_path / "c" / "sub-0001_dseg.nii.gz", role="label")
    assert made.shape == (1, 16, 16, 16)
    assert (made == 17).sum() == 125
    np.testing.assert_array_equal(np.diag(made.affine), [2, 2, 2, 1])
    record = json.loads((tmp_path / "c" / "sub-0001.json").read_text())
    assert len(record["label_sha256"]) == 64
    assert record["label_grid"] == {
        "given": {"size": [30, 30, 30], "spacing": [1, 1, 1], "axes": "LPS"},
        "used": {"size": [16, 16, 16], "spacing": [2, 2, 2], "axes": "RAS"},
    }
    assert notes == [
        "the label map is resampled for the model's grid: 30 x 30 x 30 voxels of 1 x 1 x 1 mm, LPS became 16 x 16 x 16 "
        "voxels of 2 x 2 x 2 mm, RAS"
    ]


def test_a_label_map_of_another_region_is_warned_of_once(tmp_path: Path) -> None:
    labels = [MetaTensor(torch.ones(1, size, 16, 16, dtype=torch.int16), affine=np.diag([2.0, 2, 2, 1])) for size in
              (16, 40, 60)]  # fmt: skip
    with pytest.warns(UserWarning, match="label map covers 80 x 32 x 32 mm, far more than the 32 x 32 x 32 mm") as told:
        generate_cohort(FakeModel(), 3, tmp_path / "c", label=labels)
    assert len(told) == 1
    generate_cohort(FakeModel(), 1, tmp_path / "d", label=labels)  # the large ones are not used


def test_output_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "c").write_text("")
    with pytest.raises(MedgenError, match="is a file"):
        generate_cohort(FakeModel(), 1, tmp_path / "c", overwrite=True)


def test_an_overwritten_cohort_is_kept_until_the_model_has_answered(tmp_path: Path) -> None:
    class Refusing(FakeModel):
        def sample(self, *_: Any, **__: Any) -> Sequence[dict[str, MetaTensor]]:
            raise MedgenError("label map holds ids [9] that the model does not know")

    generate_cohort(FakeModel(), 2, tmp_path / "c")
    before = content(tmp_path / "c")
    with pytest.raises(MedgenError, match="does not know"):
        generate_cohort(Refusing(), 2, tmp_path / "c", overwrite=True)
    assert content(tmp_path / "c") == before


class Stopped(FakeModel):
    """Ctrl-C comes at a seed."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.at = at

    def sample(self, n: int = 1, seed: int = 0, label: Any = None, **options: Any) -> Sequence[dict[str, MetaTensor]]:
        if seed == self.at:
            raise KeyboardInterrupt
        return super().sample(n, seed, label, **options)


def test_ctrl_c_says_how_to_go_on_once_there_is_a_cohort_to_go_on_with(tmp_path: Path) -> None:
    for resume in (False, True):
        with pytest.raises(KeyboardInterrupt, match=r"^$"):
            generate_cohort(Stopped(0), 2, tmp_path / "c", resume=resume)
        assert list(tmp_path.iterdir()) == []
    with pytest.raises(KeyboardInterrupt, match=r"^interrupted: complete subjects stay; continue with --resume$"):
        generate_cohort(Stopped(1), 3, tmp_path / "c")
    with pytest.raises(KeyboardInterrupt, match="continue with --resume"):
        generate_cohort(Stopped(2), 3, tmp_path / "c", resume=True)
    generate_cohort(FakeModel(), 3, tmp_path / "c", resume=True)
    before = content(tmp_path / "c")
    with pytest.raises(KeyboardInterrupt, match=r"^$"):
        generate_cohort(Stopped(0), 2, tmp_path / "c", overwrite=True)
    assert content(tmp_path / "c") == before
