"""Cohorts of what was asked for: conditions, one label map for each subject, pictures of slices."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from medgen.checks import MedgenError
from medgen.cohort.conditions import check_asked, parse_conditions, requested, subject_conditions
from medgen.cohort.generate import generate_cohort
from medgen.cohort.labels import LabelFolder, on_model_grid, placed, placing_note, read_label
from medgen.io.nifti import read_nifti, write_nifti
from medgen.io.read_picture import read_picture
from medgen.io.write_picture import write_picture
from medgen.models.controls import check_conditions, class_control, draw_conditions, number_control

CONTROLS = (class_control("size", ["small", "large"]), number_control("volume_ml", [2.0, 3.0, 4.0], "ml"))


class FakeModel:
    """A box as bright as it was asked to be; volumes of three axes or slices of two."""

    hash = "abc"
    multiple = 4

    def __init__(self, dims: int = 3, channels: Sequence[str] = ()) -> None:
        self.dims, self.channels = dims, tuple(channels)
        self.spec = SimpleNamespace(
            name="fake", modality="T1w", controls=CONTROLS, channels=self.channels,
            image_channels=len(self.channels) or 1, grid=SimpleNamespace(spacing=(2.0,) * dims, size=(12,) * dims),
            intensity=SimpleNamespace(scale=1000.0, unit="arbitrary T1 units"),
        )  # fmt: skip

    def sample(
        self,
        n: int = 1,
        seed: int = 0,
        label: Any = None,
        *,
        conditions: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Sequence[dict[str, MetaTensor]]:
        drawn = draw_conditions(CONTROLS, seed, check_conditions(CONTROLS, conditions))
        affine = np.diag([*[2.0] * self.dims, *[1.0] * (4 - self.dims)])
        ids = torch.zeros((1, *[12] * self.dims), dtype=torch.int16)
        ids[(slice(None), *[slice(3, 9)] * self.dims)] = 1
        if label is not None:
            ids, affine = label.as_tensor().to(torch.int16), label.affine
        image = (ids * float(drawn["volume_ml"]) / 5).repeat(self.spec.image_channels, *[1] * self.dims)
        for channel in range(len(image)):
            image[channel] /= 1 + channel
        meta = {"synthetic": True, "provenance": {"conditions": drawn, **options}}
        return [{"image": MetaTensor(image, affine=affine, meta=meta), "label": MetaTensor(ids, affine=affine)}]


def record(folder: Path, number: int) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / f"sub-{number:04d}.json").read_text())
    return content


def test_what_was_asked_and_what_was_drawn_is_recorded(tmp_path: Path) -> None:
    generate_cohort(FakeModel(), 3, tmp_path / "c", seed=1, conditions={"size": "large"})
    manifest = json.loads((tmp_path / "c" / "manifest.json").read_text())
    assert manifest["request"]["conditions"] == {"size": "large"}
    for number in (1, 2, 3):
        told = record(tmp_path / "c", number)["conditions"]
        assert told["size"] == "large"
        assert 2 <= told["volume_ml"] <= 4
        assert manifest["subjects"][number - 1]["conditions"] == told
    assert len({record(tmp_path / "c", number)["conditions"]["volume_ml"] for number in (1, 2, 3)}) == 3


def test_a_range_is_spread_over_the_subjects_whatever_their_number(tmp_path: Path) -> None:
    asked = {"volume_ml": (2.5, 3.5)}
    generate_cohort(FakeModel(), 7, tmp_path / "c", conditions=asked)
    values = [record(tmp_path / "c", number)["conditions"]["volume_ml"] for number in range(1, 8)]
    assert sorted(values) == pytest.approx(np.linspace(2.625, 3.375, 7))
    generate_cohort(FakeModel(), 2, tmp_path / "d", conditions=asked)
    before = (tmp_path / "c" / "sub-0002_T1w.nii.gz").read_bytes()
    assert (tmp_path / "d" / "sub-0002_T1w.nii.gz").read_bytes() == before
    generate_cohort(FakeModel(), 3, tmp_path / "d", conditions=asked, resume=True)
    with pytest.raises(MedgenError, match="begun with conditions"):
        generate_cohort(FakeModel(), 3, tmp_path / "d", conditions={"volume_ml": (2.5, 3.6)}, resume=True)


@pytest.mark.parametrize(
    ("asked", "word"),
    [
        ({"size": "huge"}, "must be one of large, small; got 'huge'"),
        ({"colour": "red"}, "condition must be one of size, volume_ml; got 'colour'"),
        ({"volume_ml": (2.5, 9)}, r"must lie in 2..4 ml, as seen in training; got 9"),
        ({"volume_ml": (3.5, 2.5)}, "must be a number's LOW:HIGH"),
        ({"size": ("small", "large")}, "must be a number's LOW:HIGH|could not convert"),
    ],
)
def test_refused_requests_leave_nothing(tmp_path: Path, asked: dict[str, Any], word: str) -> None:
    with pytest.raises(MedgenError, match=word):
        generate_cohort(FakeModel(), 2, tmp_path / "c", conditions=asked)
    assert list(tmp_path.iterdir()) == []


def test_parsing() -> None:
    found = parse_conditions(["size=large", "volume_ml = 2.5:4", "note=a:b"], "a = b")
    assert found == {"size": "large", "volume_ml": (2.5, 4.0), "note": "a:b", "prompt": "a = b"}
    for options, word in (
        (["size"], "NAME=VALUE"),
        (["=x"], "NAME=VALUE"),
        (["size="], "NAME=VALUE"),
        (["a=1", "a=2"], "given twice"),
    ):
        with pytest.raises(MedgenError, match=word):
            parse_conditions(options)
    assert check_asked(CONTROLS, {"volume_ml": "3"}) == {"volume_ml": 3.0}
    two = [subject_conditions({"a": (0, 1), "b": (0, 1)}, i) for i in range(20)]
    assert len({(row["a"], row["b"]) for row in two}) == 20
    assert all(row["a"] != row["b"] for row in two)


@pytest.mark.parametrize(
    ("options", "prompt", "word"),
    [
        (["size"], None, "must be NAME=VALUE. Got 'size'."),
        (["sise=large"], None, "condition 'sise' is unknown. Did you mean 'size'?"),
        ([], "a large one", "--prompt: this model listens to no text."),
        (["volume_ml=2.5:3"], None, "condition 'volume_ml' must be one value here, not LOW:HIGH."),
    ],
)
def test_refusals_say_what_the_model_accepts(options: list[str], prompt: str | None, word: str) -> None:
    with pytest.raises(MedgenError) as refused:
        requested("boxes", CONTROLS, options, prompt, "edit")
    assert word in str(refused.value)
    assert str(refused.value).endswith("Model 'boxes' accepts size=large|small, volume_ml=2..4 ml.")
    with pytest.raises(MedgenError, match="Model 'boxes' has no conditions"):
        requested("boxes", (), options, prompt)
    with pytest.raises(MedgenError, match=r"^edit: condition 'size' must be one of large, small; got 'huge'"):
        requested("boxes", CONTROLS, ["size=huge"], command="edit")


def test_one_subject_for_each_label_map(tmp_path: Path) -> None:
    affine = np.diag([2.0, 2, 2, 1])
    (tmp_path / "labels").mkdir()
    for number, size in enumerate((2, 4, 6)):
        ids = np.zeros((12, 12, 12), np.int16)
        ids[:size, :size, :size] = 1
        write_nifti(tmp_path / "labels" / f"sub-{number}_dseg.nii.gz", torch.from_numpy(ids), affine=affine)
        write_nifti(tmp_path / "labels" / f"sub-{number}_T1w.nii.gz", torch.from_numpy(ids * 7), affine=affine)
    labels = LabelFolder(tmp_path / "labels")
    assert len(labels) == 3
    assert len(labels[:2]) == 2
    generate_cohort(FakeModel(), 4, tmp_path / "c", label=labels)
    made = [read_nifti(tmp_path / "c" / f"sub-000{i}_dseg.nii.gz", role="label") for i in (1, 2, 3, 4)]
    assert [int(label.sum()) for label in made] == [8, 64, 216, 8]
    hashes = {record(tmp_path / "c", number)["label_sha256"] for number in (1, 2, 3, 4)}
    assert len(hashes) == 3
    assert [record(tmp_path / "c", number)["label_file"] for number in (1, 2, 3, 4)] == [
        f"sub-{number}_dseg.nii.gz" for number in (0, 1, 2, 0)
    ]
    manifest = (tmp_path / "c" / "manifest.json").read_text()
    assert [entry["label_file"] for entry in json.loads(manifest)["subjects"]][1] == "sub-1_dseg.nii.gz"
    assert str(tmp_path) not in manifest
    with pytest.raises(MedgenError, match="begun with label_sha256"):
        generate_cohort(FakeModel(), 4, tmp_path / "c", label=labels[0], resume=True)
    with pytest.raises(MedgenError, match="holds no label maps"):
        LabelFolder(tmp_path)


@pytest.mark.parametrize(("format", "ending"), [(None, "png"), ("png", "png"), ("tiff", "tif")])
def test_pictures_of_slices(tmp_path: Path, format: str | None, ending: str) -> None:
    summary = generate_cohort(FakeModel(2), 2, tmp_path / "c", format=format, conditions={"volume_ml": 4.0})
    names = {file.name for file in (tmp_path / "c").iterdir()}
    assert names == {
        "contact_sheet.png", "manifest.json", "sub-0001.json", "sub-0002.json", f"sub-0001_T1w.{ending}",
        f"sub-0001_dseg.{ending}", f"sub-0002_T1w.{ending}", f"sub-0002_dseg.{ending}",
    }  # fmt: skip
    image = read_picture(tmp_path / "c" / f"sub-0001_T1w.{ending}")
    assert image.meta["synthetic"]
    assert image.meta["provenance"]["conditions"]["volume_ml"] == 4
    assert float(image.max()) == pytest.approx(0.8 * (255 if ending == "png" else 1000))
    label = read_picture(tmp_path / "c" / f"sub-0001_dseg.{ending}", role="label")
    assert int(label.sum()) == 36
    assert summary.made == 2
    kind = format or "png"
    assert (
        generate_cohort(FakeModel(2), 2, tmp_path / "c", resume=True, format=kind, conditions={"volume_ml": 4.0}).made
        == 0
    )
    generate_cohort(FakeModel(2), 1, tmp_path / "c", overwrite=True)
    assert not (tmp_path / "c" / f"sub-0002_T1w.{ending}").exists()


def test_each_channel_has_its_file(tmp_path: Path) -> None:
    generate_cohort(FakeModel(3, ["T1w", "FLAIR"]), 1, tmp_path / "v")
    t1, flair = (read_nifti(tmp_path / "v" / f"sub-0001_{name}.nii.gz") for name in ("T1w", "FLAIR"))
    assert torch.allclose(t1.as_tensor(), 2 * flair.as_tensor())
    generate_cohort(FakeModel(2, ["red", "green", "blue"]), 1, tmp_path / "s")
    assert read_picture(tmp_path / "s" / "sub-0001_T1w.png").shape == (3, 12, 12)


@pytest.mark.parametrize(("dims", "format", "word"), [(3, "png", "must be nifti"), (2, "nifti", "must be png or tiff")])
def test_formats_that_do_not_suit(tmp_path: Path, dims: int, format: str, word: str) -> None:
    with pytest.raises(MedgenError, match=word):
        generate_cohort(FakeModel(dims), 1, tmp_path / "c", format=format)


def read_label_of(folder: Path, ids: torch.Tensor) -> MetaTensor:
    """Read back from ``small.png``."""
    write_picture(folder / "small.png", ids)
    return read_label(folder / "small.png")


def test_a_map_that_is_only_turned_is_not_called_padded() -> None:
    affine = torch.tensor([[0.0, 2, 0, 0], [-2, 0, 0, 0], [0, 0, 2, 0], [0, 0, 0, 1]], dtype=torch.float64)
    turned = MetaTensor(torch.ones(1, 8, 12, 4, dtype=torch.int16), affine=affine)
    note = placing_note([placed(FakeModel(3), turned)[1]])
    assert note == (
        "the label map is turned for the model's grid: 8 x 12 x 4 voxels of 2 x 2 x 2 mm, PRS became "
        "12 x 8 x 4 voxels of 2 x 2 x 2 mm, RAS"
    )


def test_label_of_a_slice_comes_to_the_models_grid(tmp_path: Path) -> None:
    ids = torch.zeros(1, 20, 10, dtype=torch.int16)
    ids[:, 4:12, 2:8] = 3
    write_picture(tmp_path / "a.png", ids, spacing=(1.0, 1.0))
    found = on_model_grid(FakeModel(2), read_label(tmp_path / "a.png"))
    assert found.shape == (1, 12, 8)
    assert int((found == 3).sum()) == 4 * 3
    place = placed(FakeModel(2), read_label(tmp_path / "a.png"))[1]
    assert (place.file, place.given["size"], place.used["size"]) == ("a.png", [20, 10], [12, 8])
    assert "a.png is resampled" in placing_note([place])
    same = placed(FakeModel(2), found)[1]
    assert placing_note([same]) == ""
    small = placed(FakeModel(2), read_label_of(tmp_path, torch.ones(1, 10, 6, dtype=torch.int16)))[1]
    assert placing_note([small, same]) == (
        "small.png is padded with background for the model's grid: 10 x 6 voxels became 12 x 8 voxels"
    )
    assert placing_note([small, place, same, place]) == placing_note([place]) + (
        " (in all 2 resampled, 1 padded with background)"
    )
    write_picture(tmp_path / "b.png", ids)
    assert int((on_model_grid(FakeModel(2), read_label(tmp_path / "b.png")) == 3).sum()) == 8 * 6
    with pytest.raises(MedgenError, match="3 spatial axes"):
        on_model_grid(FakeModel(3), read_label(tmp_path / "b.png"))
