from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from medgen.checks import MedgenError
from medgen.trainers import data
from medgen.trainers.config import LONGEST_AXIS, Augmentation, TrainConfig, load_config
from medgen.trainers.data import (
    BatchesFrom,
    FileSource,
    Items,
    PopulationSource,
    find_pairs,
    is_held_out,
    make_source,
    make_validation_source,
    random_holes,
    random_window,
    reshaded,
    to_grid,
)
from tests.trainers.conftest import person, write_volume

Write = Callable[..., Path]


def names(pairs: list[tuple[Path, Path | None]]) -> list[tuple[str, str | None]]:
    return [(image.name, label.name if label else None) for image, label in pairs]


def test_images_and_labels_folders(people: Path) -> None:
    pairs = find_pairs(people)
    assert names(pairs)[0] == ("person_001.nii.gz", "person_001.nii.gz")
    assert len(pairs) == 12


def test_medical_segmentation_decathlon_layout(tmp_path: Path) -> None:
    image, label = person(1)
    write_volume(tmp_path / "imagesTr" / "case_007_0000.nii.gz", image)
    write_volume(tmp_path / "labelsTr" / "case_007.nii.gz", label)
    write_volume(tmp_path / "imagesTr" / "._case_007_0000.nii.gz", image)
    assert names(find_pairs(tmp_path)) == [("case_007_0000.nii.gz", "case_007.nii.gz")]


def test_a_datalist(tmp_path: Path, people: Path) -> None:
    entries: list[Any] = [
        {"image": str(people / "images" / "person_002.nii.gz"), "label": str(people / "labels" / "person_002.nii.gz")},
        {"image": ["near.nii.gz"]},
    ]
    shutil.copy(people / "images" / "person_003.nii.gz", tmp_path / "near.nii.gz")
    path = tmp_path / "list.json"
    path.write_text(json.dumps({"training": entries, "validation": [{"image": "other.nii.gz"}]}))
    assert names(find_pairs(path)) == [("person_002.nii.gz", "person_002.nii.gz"), ("near.nii.gz", None)]


@pytest.mark.parametrize(
    "content",
    ["{", "[1]", '{"train": []}', '{"training": [{"label": "a"}]}', '{"training": [{"image": ["a", "b"]}]}', "\xff"],
)
def test_a_bad_datalist_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "list.json"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(MedgenError, match="no MONAI datalist"):
        find_pairs(path)


def test_a_datalist_with_a_missing_file_names_it(tmp_path: Path) -> None:
    path = tmp_path / "list.json"
    path.write_text('{"training": [{"image": "gone.nii.gz"}]}')
    with pytest.raises(MedgenError, match=r"gone\.nii\.gz"):
        find_pairs(path)


def test_bids_labels_belong_to_their_own_subject(tmp_path: Path) -> None:
    image, label = person(1)
    for subject in ("sub-1", "sub-10"):
        write_volume(tmp_path / subject / "anat" / f"{subject}_T1w.nii.gz", image)
        write_volume(tmp_path / subject / "anat" / f"{subject}_T2w.nii.gz", image)
    write_volume(tmp_path / "derivatives" / "s" / "sub-10" / "anat" / "sub-10_space-orig_dseg.nii.gz", label)
    assert names(find_pairs(tmp_path)) == [
        ("sub-1_T1w.nii.gz", None),
        ("sub-10_T1w.nii.gz", "sub-10_space-orig_dseg.nii.gz"),
    ]
    assert names(find_pairs(tmp_path, "T2w"))[0] == ("sub-1_T2w.nii.gz", None)


def test_a_generated_cohort_is_training_data(tmp_path: Path) -> None:
    image, label = person(1)
    write_volume(tmp_path / "sub-0001_T1w.nii.gz", image)
    write_volume(tmp_path / "sub-0001_dseg.nii.gz", label)
    assert names(find_pairs(tmp_path)) == [("sub-0001_T1w.nii.gz", "sub-0001_dseg.nii.gz")]


def test_a_folder_of_images_has_no_labels(tmp_path: Path, write_config: Write) -> None:
    write_volume(tmp_path / "scans" / "b2.nii.gz", person(1)[0])
    assert names(find_pairs(tmp_path / "scans")) == [("b2.nii.gz", None)]
    with pytest.raises(MedgenError, match=r"no label found for 'b2\.nii\.gz'"):
        make_source(load_config(write_config(data=str(tmp_path / "scans"))))


def test_missing_data_name_the_nearest_path(tmp_path: Path) -> None:
    (tmp_path / "hippocampus").mkdir()
    with pytest.raises(MedgenError, match=r"Did you mean '.*hippocampus'"):
        find_pairs(tmp_path / "hipocampus")
    with pytest.raises(MedgenError, match="Did you mean 'colin27'"):
        find_pairs(Path("colin28"))
    with pytest.raises(MedgenError, match="no NIfTI files"):
        find_pairs(tmp_path / "hippocampus")


@pytest.mark.parametrize(
    ("name", "held"),
    [
        ("hippocampus_011.nii.gz", True),
        ("hippocampus_110.nii.gz", False),
        ("hippocampus_016_0000.nii.gz", True),
        ("hippocampus_010_0000.nii.gz", False),
        ("sub-06_ses-02_T1w.nii.gz", True),
        ("sub-02_ses-06_run-1_T1w.nii.gz", False),
        ("sub-CON0031_T1w.nii.gz", True),
        ("1.nii", True),
    ],
)
def test_people_are_held_out_by_their_number(name: str, held: bool) -> None:
    assert is_held_out(Path(name), (1, 6)) is held
    assert not is_held_out(Path(name), ())


def test_a_name_without_number_cannot_be_split() -> None:
    with pytest.raises(MedgenError, match="held_out_endings"):
        is_held_out(Path("anna.nii.gz"), (1, 6))


def test_the_source_holds_people_out(write_config: Write) -> None:
    source = make_source(load_config(write_config()))
    assert isinstance(source, FileSource)
    assert source.people == len(source.subjects) == 9  # without 1, 6 and 11
    with pytest.raises(MedgenError, match="no image is left"):
        make_source(
            load_config(
                write_config(held_out_endings=[0, 1, 2, 3, 4, 5, 6, 7, 8, 9][:9], data=str(_only_one(write_config)))
            )
        )


def _only_one(write_config: Write) -> Path:
    folder = write_config().parent / "one"
    image, label = person(1)
    write_volume(folder / "images" / "p_001.nii.gz", image)
    write_volume(folder / "labels" / "p_001.nii.gz", label)
    return folder


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ("shape", "has shape"),
        ("affine", "another grid"),
        ("turn", "another grid"),
        ("ids", r"ids \[7\]"),
        ("inf", "p_001"),
    ],
)
def test_a_label_that_does_not_fit_its_image_is_refused(write_config: Write, change: str, text: str) -> None:
    folder = _only_one(write_config)
    image, label = person(1)
    if change == "shape":
        write_volume(folder / "labels" / "p_001.nii.gz", label[1:])
    elif change == "affine":
        write_volume(folder / "labels" / "p_001.nii.gz", label, np.diag([-1.0, 1, 1, 1]))
    elif change == "turn":  # each entry of the matrix within 0.01, the far corners 0.15 mm apart
        turned = np.eye(4)
        turned[0, 1], turned[1, 0] = -0.009, 0.009
        write_volume(folder / "labels" / "p_001.nii.gz", label, turned)
    elif change == "ids":
        write_volume(folder / "labels" / "p_001.nii.gz", label * np.uint8(7))
    else:
        image[0, 0, 0] = np.inf
        write_volume(folder / "images" / "p_001.nii.gz", image)
    with pytest.raises(MedgenError, match=text):
        make_source(load_config(write_config(data=str(folder), held_out_endings=[])))


def test_a_header_rounded_in_the_last_digits_is_the_same_grid(write_config: Write) -> None:
    folder = _only_one(write_config)
    shifted = np.eye(4)
    shifted[0, 3] = 0.05
    write_volume(folder / "labels" / "p_001.nii.gz", person(1)[1], shifted)
    make_source(load_config(write_config(data=str(folder), held_out_endings=[])))


def test_two_axes_and_files_are_refused(write_config: Write) -> None:
    config = load_config(write_config(grid={"spacing": [1.0, 1.0], "size": [16, 16]}))
    with pytest.raises(MedgenError, match="3 axes"):
        make_source(config)


@pytest.mark.parametrize("task", ["joint", "inpaint"])
@pytest.mark.parametrize("workers", [1, 2])
def test_items_do_not_depend_on_the_workers(write_config: Write, task: str, workers: int) -> None:
    changes: dict[str, Any] = {"task": task, "hole_diameter_mm": [4.0, 8.0]}
    if task == "inpaint":
        changes |= {
            "label_channels": [],
            "label_dropout": 0.0,
            "augmentation": {"noise": 0.1, "bias": 0.2, "blur_mm": 1.0},
        }
    config = load_config(write_config(**changes))
    items = Items(make_source(config), config)
    alone = [items[index] for index in range(2, 8)]
    loader: DataLoader[Any] = DataLoader(items, batch_sampler=BatchesFrom(1, 4, 2), num_workers=workers)
    batches = list(loader)
    for key in alone[0]:
        together = torch.cat([batch[key].reshape(2, *alone[0][key].shape) for batch in batches])
        assert torch.equal(together, torch.stack([item[key] for item in alone])), key


def test_items_differ_from_one_another_and_are_in_range(write_config: Write) -> None:
    config = load_config(write_config(patch_size=[8, 12, 16]))
    items = Items(make_source(config), config)
    first, second = items[0], items[1]
    assert first["image"].shape == (1, 8, 12, 16)
    assert not torch.equal(first["image"], second["image"])
    assert first["image"].dtype == torch.float32
    assert first["label"].dtype == torch.int16
    assert 0 <= first["image"].min() <= first["image"].max() <= 1.5
    assert not torch.equal(first["image"], Items(items.source, config, "validation")[0]["image"])


def test_image_and_label_move_together(write_config: Write) -> None:
    config = load_config(
        write_config(augmentation={"rotation_degrees": 20.0, "scale": 0.1, "shift_mm": 3.0, "flip": 0.5})
    )
    items = Items(make_source(config), config)
    for index in range(6):
        item = items[index]
        inside = item["image"][item["label"] == 1].mean()
        assert inside > item["image"][item["label"] == 0].mean() + 0.3


@pytest.mark.parametrize("have", [4, 7, 15, 16, 17, 40])
def test_any_size_comes_onto_the_grid(have: int) -> None:
    from monai.data import MetaTensor

    values = torch.arange(have**3, dtype=torch.float32).reshape(1, have, have, have) + 1
    volume = MetaTensor(values, affine=torch.eye(4, dtype=torch.float64))
    grey = to_grid(volume, (1.0, 1.0, 1.0), (16, 16, 16), "area")
    ids = to_grid(volume, (1.0, 1.0, 1.0), (16, 16, 16), "nearest")
    assert grey.shape == ids.shape == (1, 16, 16, 16)
    assert grey.min() >= 1, "what lies beyond is mirrored"
    assert (ids == 0).any() == (have < 16), "beyond the label is background"
    margin = max(0, 16 - have) // 2  # the rest of an odd difference goes behind
    spot = (0, *[slice(margin, margin + min(have, 16))] * 3)
    starts = {(have - 16) // 2, (have - 15) // 2} if have > 16 else {0}
    cuts = [values[(0, *[slice(start, start + 16)] * 3)] for start in starts]
    assert any(torch.equal(ids[spot], cut) for cut in cuts), "nothing moves by more than half a voxel"
    torch.testing.assert_close(grey[spot], ids[spot], rtol=1e-5, atol=0)


def test_validation_shows_other_people_than_training(write_config: Write) -> None:
    config = load_config(write_config())
    training = make_source(config)
    validation = make_validation_source(config, training)
    assert isinstance(training, FileSource)
    assert isinstance(validation, FileSource)
    (shown, _), *others = validation.subjects
    assert not others
    assert not any(torch.equal(shown, image) for image, _ in training.subjects)
    of_person_1 = _with(config, held_out_endings=tuple(i for i in range(10) if i != 1))
    assert any(torch.equal(shown, image) for image, _ in make_source(of_person_1).subjects)  # type: ignore[attr-defined]
    everyone = _with(config, held_out_endings=())
    assert make_validation_source(everyone, training) is training, "where nobody is held out"


def test_validation_shows_another_subject_of_the_population(write_config: Write) -> None:
    config = load_config(write_config(data="colin27", augmentation={}, label_channels="tissues", subjects=2))
    training = make_source(config)
    validation = make_validation_source(config, training)
    assert isinstance(training, PopulationSource)
    assert isinstance(validation, PopulationSource)
    image = validation.subject(0)[0]
    assert not any(torch.equal(image, training.subject(index)[0]) for index in range(2))


def _with(config: TrainConfig, **changes: Any) -> TrainConfig:
    return dataclasses.replace(config, **changes)


@pytest.mark.parametrize("dims", [2, 3])
def test_blur_is_in_mm(dims: int) -> None:
    """The impulse response has the variance asked for along each axis, whatever the spacing."""
    spacing, limits = (1.0, 2.0, 0.5)[:dims], Augmentation(blur_mm=4.0)
    image = torch.zeros(1, *[49] * dims)
    image[(0, *[24] * dims)] = 1.0
    response = reshaded(image, spacing, limits, torch.Generator(), [-0.5, 0.0, 0.0, 0.0])[0].double()
    for axis, step in enumerate(spacing):
        profile = response.sum([other for other in range(dims) if other != axis])
        place = (torch.arange(49, dtype=torch.float64) - 24) * step
        assert float((profile * place.square()).sum()) == pytest.approx(2.0**2, rel=0.02)


@pytest.mark.parametrize("task", ["joint", "inpaint"])
def test_an_item_from_files_is_shaded_once(write_config: Write, task: str) -> None:
    config = load_config(
        write_config(
            task=task,
            label_dropout=0.5 if task == "joint" else 0.0,
            hole_diameter_mm=[4.0, 8.0],
            augmentation={"noise": 0.1, "blur_mm": 1.0},
        )
    )
    items = Items(make_source(config), config)
    with pytest.MonkeyPatch.context() as patch:
        calls: list[int] = []
        patch.setattr(data, "reshaded", lambda image, *_: calls.append(1) or image)
        items[0]
    assert calls == [1]


def test_the_largest_hole_is_as_long_as_the_configuration_assumes() -> None:
    """Along one axis, over many draws: close to LONGEST_AXIS diameters, never above."""
    longest = 0.0
    for seed in range(200):
        hole = random_holes((200, 200), (0.5, 0.5), (20.0, 20.0), 1, seed)
        longest = max(longest, float(hole.amax(2).sum()) * 0.5)
    assert 0.97 * LONGEST_AXIS * 20 < longest <= LONGEST_AXIS * 20 + 0.5


def test_windows_reach_every_place() -> None:
    stream = torch.Generator().manual_seed(0)
    starts = {random_window((6, 4), (3, 4), stream)[1].start for _ in range(60)}
    assert starts == {0, 1, 2, 3}


def test_holes_have_the_size_asked_for() -> None:
    for seed in range(5):
        hole = random_holes((48, 48, 48), (2.0, 2.0, 2.0), (30.0, 30.0), 1, seed)
        volume = float(hole.sum()) * 8
        assert 0.6 < volume / (4 / 3 * np.pi * 15**3) < 1.5
        assert set(hole.unique().tolist()) == {0.0, 1.0}
