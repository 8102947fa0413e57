"""Each layout on small files named and laid out as the public data set has them."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

from medgen.checks import MedgenError
from medgen.io.datasets import Case, ImageFile, detect_layout, find_cases, modality_name
from medgen.io.write_picture import write_picture

SHAPE = (4, 5, 6)


def volume(path: Path, value: float = 1.0, shape: tuple[int, ...] = SHAPE, dtype: Any = np.float32) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.full(shape, value, dtype=dtype)
    if len(shape) == 4:
        array[:] = np.arange(shape[3])
    nib.save(nib.Nifti1Image(array, np.eye(4)), path)
    return path


def label(path: Path) -> Path:
    return volume(path, 1, dtype=np.uint8)


def text(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")


def only(cases: list[Case]) -> Case:
    (case,) = cases
    return case


def test_decathlon_task_with_one_channel(tmp_path: Path) -> None:
    for number in ("001", "016"):
        volume(tmp_path / "imagesTr" / f"hippocampus_{number}.nii.gz")
        label(tmp_path / "labelsTr" / f"hippocampus_{number}.nii.gz")
    volume(tmp_path / "imagesTs" / "hippocampus_002.nii.gz")
    volume(tmp_path / "imagesTr" / "._hippocampus_001.nii.gz")
    training = [
        {"image": f"./imagesTr/hippocampus_{n}.nii.gz", "label": f"./labelsTr/hippocampus_{n}.nii.gz"}
        for n in ("001", "016")
    ]
    content = {"name": "Hippocampus", "modality": {"0": "MRI"}, "training": training, "test": ["./imagesTs/x.nii.gz"]}
    text(tmp_path / "dataset.json", json.dumps(content))
    assert detect_layout(tmp_path) == "msd"
    first, second = find_cases(tmp_path)
    assert (first.person, list(first.images), first.attributes) == (
        "hippocampus_001",
        ["image"],
        {"data_set": "Hippocampus"},
    )
    assert second.label is not None
    assert second.label.path.name == "hippocampus_016.nii.gz"
    assert second.held_out([6])
    assert not second.held_out([1])
    assert first.image("T1w") is first.images["image"]
    assert first.image("T1w", named=True) is None


def test_decathlon_task_with_four_channels_in_a_file(tmp_path: Path) -> None:
    volume(tmp_path / "imagesTr" / "BRATS_457.nii.gz", shape=(*SHAPE, 4))
    label(tmp_path / "labelsTr" / "BRATS_457.nii.gz")
    content = {
        "modality": {"0": "FLAIR", "1": "T1w", "2": "t1gd", "3": "T2w"},
        "training": [{"image": "./imagesTr/BRATS_457.nii.gz", "label": "./labelsTr/BRATS_457.nii.gz"}],
    }
    text(tmp_path / "dataset.json", json.dumps(content))
    case = only(find_cases(tmp_path))
    assert list(case.images) == ["FLAIR", "T1w", "T1ce", "T2w"]
    for value, name in enumerate(case.images):
        loaded = case.images[name].load()
        assert loaded.shape == (1, *SHAPE)
        assert loaded.unique().tolist() == [value]
    assert case.label is not None
    assert case.label.load("label").dtype == torch.int32


def test_decathlon_description_that_names_a_missing_file(tmp_path: Path) -> None:
    volume(tmp_path / "imagesTr" / "a_1.nii.gz")
    text(tmp_path / "dataset.json", json.dumps({"training": [{"image": "./imagesTr/a_2.nii.gz"}]}))
    with pytest.raises(MedgenError, match=r"a_2\.nii\.gz"):
        find_cases(tmp_path)
    text(tmp_path / "dataset.json", "{")
    with pytest.raises(MedgenError, match="no valid JSON"):
        find_cases(tmp_path)


def test_nnunet_keeps_channels_in_files(tmp_path: Path) -> None:
    for channel in range(2):
        volume(tmp_path / "imagesTr" / f"case_012_000{channel}.nii.gz", channel)
    label(tmp_path / "labelsTr" / "case_012.nii.gz")
    content = {"channel_names": {"0": "T1", "1": "FLAIR"}, "labels": {"background": 0}, "file_ending": ".nii.gz"}
    text(tmp_path / "dataset.json", json.dumps(content))
    case = only(find_cases(tmp_path))
    assert (case.person, list(case.images)) == ("case_012", ["T1w", "FLAIR"])
    assert case.images["FLAIR"].load().unique().tolist() == [1]
    assert case.label is not None
    assert case.held_out([2])


def test_brats_2020(tmp_path: Path) -> None:
    for number in ("001", "016"):
        folder = tmp_path / f"BraTS20_Training_{number}"
        for kind in ("t1", "t1ce", "t2", "flair", "seg"):
            volume(folder / f"{folder.name}_{kind}.nii.gz", dtype=np.int16)
    (tmp_path / "BraTS20_Training_016" / "BraTS20_Training_016_seg.nii.gz").rename(
        tmp_path / "BraTS20_Training_016" / "W39_1998.09.19_Segm.nii.gz"
    )
    text(
        tmp_path / "name_mapping.csv",
        "Grade,BraTS_2017_subject_ID,BraTS_2020_subject_ID\nHGG,Brats17_CBICA_AAB_1,BraTS20_Training_001\n"
        "LGG,NA,BraTS20_Training_016\n",
    )
    text(
        tmp_path / "survival_info.csv",
        "Brats20ID,Age,Survival_days,Extent_of_Resection\nBraTS20_Training_001,60.46,289,GTR\n",
    )
    assert detect_layout(tmp_path) == "brats"
    first, second = find_cases(tmp_path)
    assert sorted(first.images) == ["FLAIR", "T1ce", "T1w", "T2w"]
    assert first.attributes["age"] == 60.46
    assert first.attributes["survival_days"] == 289
    assert first.attributes["extent_of_resection"] == "GTR"
    assert (first.attributes["grade"], second.attributes["grade"]) == ("HGG", "LGG")
    assert second.label is not None
    assert second.label.path.name == "W39_1998.09.19_Segm.nii.gz"
    assert second.held_out([6])
    assert not first.held_out([6])


def test_brats_2018_grades_and_numbers(tmp_path: Path) -> None:
    names = {
        "HGG": ("Brats18_2013_16_1", "Brats18_CBICA_AAB_1", "Brats18_CBICA_AAG_1"),
        "LGG": ("Brats18_TCIA09_141_1",),
    }
    for grade, cases in names.items():
        for case in cases:
            for kind in ("t1", "flair", "seg"):
                volume(tmp_path / grade / case / f"{case}_{kind}.nii.gz")
    found = {case.person: case for case in find_cases(tmp_path)}
    assert {p: c.number for p, c in found.items()} == {
        "Brats18_2013_16": 16,
        "Brats18_CBICA_AAB": 1,
        "Brats18_CBICA_AAG": 6,
        "Brats18_TCIA09_141": 141,
    }
    assert found["Brats18_TCIA09_141"].attributes == {"session": "1", "grade": "LGG"}


def test_brats_2023_times_of_one_person(tmp_path: Path) -> None:
    for time in ("000", "001"):
        case = f"BraTS-GLI-00016-{time}"
        for kind in ("t1n", "t1c", "t2w", "t2f", "seg"):
            volume(tmp_path / case / f"{case}-{kind}.nii.gz")
    cases = find_cases(tmp_path)
    assert [case.person for case in cases] == ["BraTS-GLI-00016"] * 2
    assert [case.attributes["session"] for case in cases] == ["000", "001"]
    assert all(case.held_out([6]) and not case.held_out([0, 1]) for case in cases)
    assert sorted(cases[0].images) == ["FLAIR", "T1ce", "T1w", "T2w"]
    assert all(case.label is not None for case in cases)


IXI_CSV = (
    '"IXI_ID","SEX_ID (1=m, 2=f)","HEIGHT","WEIGHT","ETHNIC_ID","AGE"\n'
    "2,2,164,58,1,35.80\n16,1,175,70,1,55.17\n35,2,0,0,1,\n"
)


def make_ixi(root: Path) -> None:
    for name in ("IXI002-Guys-0828", "IXI016-Guys-0697", "IXI035-IOP-0873"):
        for kind in ("T1", "T2"):
            volume(root / f"IXI-{kind}" / f"{name}-{kind}.nii.gz")
    (root / "IXI-T2" / "IXI035-IOP-0873-T2.nii.gz").unlink()


def test_ixi_with_its_table_as_csv(tmp_path: Path) -> None:
    make_ixi(tmp_path)
    text(tmp_path / "IXI.csv", IXI_CSV)
    assert detect_layout(tmp_path) == "ixi"
    first, second, third = find_cases(tmp_path)
    assert first.attributes == {"site": "Guys", "sex": "F", "age": 35.80, "height": 164, "weight": 58}
    assert sorted(first.images) == ["T1w", "T2w"]
    assert second.attributes["sex"] == "M"
    assert second.held_out([6])
    assert not first.held_out([1, 6, 8])
    assert third.attributes == {"site": "IOP", "sex": "F"}, "0 and nothing mean not known"
    assert list(third.images) == ["T1w"]
    assert len(find_cases(tmp_path / "IXI-T1")) == 3, "one of its folders, the table beside"


def test_ixi_without_a_reader_of_its_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_ixi(tmp_path)
    (tmp_path / "IXI.xls").write_bytes(b"\xd0\xcf\x11\xe0")
    monkeypatch.setitem(sys.modules, "xlrd", None)
    with pytest.warns(UserWarning, match=r"IXI\.csv"):
        cases = find_cases(tmp_path)
    assert cases[0].attributes == {"site": "Guys"}


def archive(path: Path, shape: tuple[int, ...], classes: int = 1) -> Path:
    rng = np.random.default_rng(0)
    arrays: dict[str, np.ndarray] = {}
    for split, count in (("train", 4), ("val", 2), ("test", 3)):
        arrays[f"{split}_images"] = rng.integers(0, 256, (count, *shape), dtype=np.uint8)
        arrays[f"{split}_labels"] = np.arange(count * classes, dtype=np.uint8).reshape(count, classes) % 2
    np.savez_compressed(path, **arrays)  # type: ignore[arg-type]
    return path


def test_medmnist_pictures_keep_their_split(tmp_path: Path) -> None:
    path = archive(tmp_path / "pneumoniamnist.npz", (28, 28))
    assert detect_layout(path) == detect_layout(tmp_path) == "medmnist"
    cases = find_cases(path)
    assert [case.attributes["split"] for case in cases] == ["train"] * 4 + ["val"] * 2 + ["test"] * 3
    assert [case.held_out([]) for case in cases] == [False] * 4 + [True] * 5
    assert [case.attributes["class"] for case in cases[:4]] == ["0", "1", "0", "1"]
    with np.load(path) as arrays:
        row = arrays["val_images"][1]
    loaded = cases[5].image("CXR")
    assert loaded is not None
    picture = loaded.load()
    assert picture.shape == (1, 28, 28)
    assert torch.equal(picture.as_tensor()[0], torch.from_numpy(np.flipud(row).T.astype(np.float32)))
    assert picture.meta["stored"] == "uint8"


def test_medmnist_colours_findings_and_volumes(tmp_path: Path) -> None:
    colours = find_cases(archive(tmp_path / "pathmnist.npz", (28, 28, 3)))[0]
    assert list(colours.images) == ["red", "green", "blue", "grey"]
    red, green, blue, grey = (colours.images[name].load() for name in colours.images)
    torch.testing.assert_close(grey, 0.299 * red + 0.587 * green + 0.114 * blue)
    findings = find_cases(archive(tmp_path / "chestmnist.npz", (28, 28), 14))[0]
    assert findings.attributes["finding_1"] == "yes"
    assert findings.attributes["finding_13"] == "yes"
    volumes = find_cases(archive(tmp_path / "organmnist3d.npz", (28, 28, 28)))[0]
    assert volumes.images["image"].load().shape == (1, 28, 28, 28)


def test_another_archive_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    with pytest.raises(MedgenError, match=r"holds x; 'train_images'"):
        find_cases(tmp_path / "other.npz")
    np.savez(tmp_path / "flat.npz", train_images=np.zeros((3, 4)))
    with pytest.raises(MedgenError, match=r"Got \(3, 4\)"):
        find_cases(tmp_path / "flat.npz")


def make_bids(root: Path) -> None:
    text(root / "dataset_description.json", '{"Name": "x", "BIDSVersion": "1.8.0"}')
    text(root / "participants.tsv", "participant_id\tage\tsex\nsub-0011\t61\tF\nsub-02\tn/a\tM\n")
    text(root / "sub-0011" / "sub-0011_sessions.tsv", "session_id\tdelay\nses-1\t0\nses-2\t180\n")
    for session in ("1", "2"):
        for suffix in ("T1w", "FLAIR"):
            stem = f"sub-0011_ses-{session}_{suffix}"
            volume(root / "sub-0011" / f"ses-{session}" / "anat" / f"{stem}.nii.gz")
    volume(root / "sub-0011" / "ses-1" / "func" / "sub-0011_ses-1_task-rest_bold.nii.gz", shape=(*SHAPE, 3))
    for run in ("1", "2"):
        volume(root / "sub-02" / "anat" / f"sub-02_run-{run}_T1w.nii.gz")
    volume(root / "sub-02" / "anat" / "sub-02_T2w.nii.gz")
    volume(root / "sub-02" / "anat" / "sub-02_ce-gadolinium_T1w.nii.gz")
    label(root / "derivatives" / "seg" / "sub-0011" / "ses-2" / "anat" / "sub-0011_ses-2_space-orig_dseg.nii.gz")
    label(root / "derivatives" / "seg" / "sub-02" / "anat" / "sub-02_run-2_dseg.nii.gz")


def test_bids_sessions_runs_and_derivatives(tmp_path: Path) -> None:
    make_bids(tmp_path)
    assert detect_layout(tmp_path) == "bids"
    one, two, *runs = find_cases(tmp_path)
    assert one.attributes == {"age": 61, "sex": "F", "session": "1", "delay": 0}
    assert two.attributes["delay"] == 180
    assert sorted(one.images) == sorted(two.images) == ["FLAIR", "T1w"]
    assert one.label is None
    assert two.label is not None
    assert one.person == two.person == "sub-0011"
    assert one.held_out([1])
    assert [sorted(run.images) for run in runs] == [["T1ce", "T1w", "T2w"]] * 2
    assert [run.images["T1w"].path.name for run in runs] == ["sub-02_run-1_T1w.nii.gz", "sub-02_run-2_T1w.nii.gz"]
    assert [run.label is not None for run in runs] == [False, True]
    assert runs[0].attributes == {"sex": "M"}, "n/a is not known"


def test_bids_lesion_masks_and_derived_images(tmp_path: Path) -> None:
    anat = tmp_path / "derivatives" / "atlas" / "sub-r001s003" / "ses-1" / "anat"
    volume(anat / "sub-r001s003_ses-1_space-MNI_desc-brain_T1w.nii.gz")
    label(anat / "sub-r001s003_ses-1_space-MNI_label-L_desc-T1lesion_mask.nii.gz")
    case = only(find_cases(tmp_path))
    assert list(case.images) == ["T1w"]
    assert case.label is not None
    assert case.label.path.name.endswith("mask.nii.gz")


def test_open_ms(tmp_path: Path) -> None:
    for patient in ("patient07", "patient19"):
        for name in ("T1", "T2", "FLAIR", "T1POST", "lesions"):
            volume(tmp_path / patient / f"{name}.nii.gz", dtype=np.int16)
    for name in ("T1W", "T1WKS", "brainmask", "consensus_gt"):
        volume(tmp_path / "patient20" / f"patient20_{name}.nii.gz", dtype=np.int16)
    assert detect_layout(tmp_path) == "open_ms"
    seven, nineteen, twenty = find_cases(tmp_path)
    assert sorted(seven.images) == ["FLAIR", "T1ce", "T1w", "T2w"]
    assert sorted(twenty.images) == ["T1ce", "T1w"]
    assert all(case.label is not None for case in (seven, nineteen, twenty))
    assert [case.held_out([7]) for case in (seven, nineteen)] == [True, False]


def test_folders_of_modalities_with_a_table(tmp_path: Path) -> None:
    for name in ("p01", "p02"):
        volume(tmp_path / "images" / "t1" / f"{name}.nii.gz")
    volume(tmp_path / "images" / "flair" / "p01.nii.gz")
    label(tmp_path / "labels" / "p01.nii.gz")
    text(tmp_path / "attributes.csv", "name;age;group\np01;40;a\np02.nii.gz;;b\n")
    first, second = find_cases(tmp_path)
    assert detect_layout(tmp_path) == "folders"
    assert sorted(first.images) == ["FLAIR", "T1w"]
    assert first.attributes == {"age": 40, "group": "a"}
    assert second.attributes == {"group": "b"}
    assert first.label is not None
    assert second.label is None


def test_folders_of_pictures(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    write_picture(tmp_path / "images" / "a1.png", torch.rand(1, 6, 4))
    write_picture(tmp_path / "images" / "a2.tif", torch.rand(1, 6, 4))
    write_picture(tmp_path / "images" / "a3.png", torch.rand(3, 6, 4))
    write_picture(tmp_path / "labels" / "a2.png", torch.ones(1, 6, 4, dtype=torch.int16))
    grey, tiff, colours = find_cases(tmp_path)
    assert list(grey.images) == list(tiff.images) == ["image"]
    assert list(colours.images) == ["red", "green", "blue", "grey"]
    assert tiff.label is not None
    assert tiff.label.load("label").unique().tolist() == [1]
    assert colours.image("CFP") == colours.images["grey"]


def test_a_datalist_with_modalities_and_attributes(tmp_path: Path) -> None:
    for name in ("a_t1.nii.gz", "a_fl.nii.gz", "b.nii.gz", "seg.nii.gz"):
        volume(tmp_path / name)
    entries = [
        {"T1w": "a_t1.nii.gz", "flair": "a_fl.nii.gz", "label": "seg.nii.gz", "person": "7", "age": 61, "sex": "F"},
        {"image": ["b.nii.gz"], "fold": 0},
    ]
    text(tmp_path / "list.json", json.dumps({"training": entries}))
    first, second = find_cases(tmp_path / "list.json")
    assert (first.person, sorted(first.images)) == ("7", ["FLAIR", "T1w"])
    assert first.attributes == {"age": 61, "sex": "F"}
    assert first.held_out([7])
    assert (second.person, second.attributes) == ("b", {"fold": 0})
    several = {"modality": {"0": "T1w", "1": "FLAIR"}, "training": [{"image": ["a_t1.nii.gz", "a_fl.nii.gz"]}]}
    text(tmp_path / "several.json", json.dumps(several))
    assert list(only(find_cases(tmp_path / "several.json")).images) == ["T1w", "FLAIR"]


@pytest.mark.parametrize("layout", ["msd", "brats", "ixi", "medmnist", "bids", "open_ms"])
def test_another_layout_than_named_says_what_was_found(tmp_path: Path, layout: str) -> None:
    for i in range(4):
        (tmp_path / f"folder{i}").mkdir()
    text(tmp_path / "read.me", "x")
    with pytest.raises(MedgenError, match=r"4 folders \(folder0, folder1, folder2, \.\.\.\) and 1 file \(read\.me\)"):
        find_cases(tmp_path, layout)


def test_an_unknown_layout_is_named(tmp_path: Path) -> None:
    with pytest.raises(MedgenError, match="Did you mean 'brats'"):
        find_cases(tmp_path, "brat")
    with pytest.raises(MedgenError, match="It is empty"):
        find_cases(tmp_path)


def test_names_of_modalities() -> None:
    assert [modality_name(n) for n in ("t1n", "T1W", "t1gd", "T2f", "PD")] == ["T1w", "T1w", "T1ce", "FLAIR", "PDw"]
    case = Case("p", {"T1w": ImageFile(Path("a")), "FLAIR": ImageFile(Path("b"))})
    assert case.image("t1") == ImageFile(Path("a"))
    assert case.image("T2w") is None


def test_nothing_is_said_of_good_data(tmp_path: Path) -> None:
    make_bids(tmp_path / "bids")
    make_ixi(tmp_path / "ixi")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        find_cases(tmp_path / "bids")
        find_cases(tmp_path / "ixi")
