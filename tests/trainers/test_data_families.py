"""What families need beyond a volume and its label: slices, pictures, several modalities, controls."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor
from torch.utils.data import DataLoader

from medgen.checks import MedgenError
from medgen.io.write_picture import write_picture
from medgen.trainers.conditions import Conditions, dropped
from medgen.trainers.config import load_config
from medgen.trainers.data import (
    BatchesFrom,
    FileSource,
    Items,
    leave_out_sources,
    make_source,
    make_validation_source,
    measure_controls,
)
from medgen.trainers.data_config import ControlConfig, Measured, Slices
from medgen.trainers.measured import count, measure_label
from tests.trainers.conftest import person, write_volume

Write = Callable[..., Path]
FLAT = {"grid": {"spacing": [1.0, 1.0], "size": [16, 16]}}
VOLUME = {"volume_ml": {"label_volume": [1]}}


class Letters:
    """A text encoder of 16 tokens of 4 channels: letters as numbers."""

    name, sha256, tokens, text_dim = "letters", "0" * 64, 16, 4

    def __init__(self) -> None:
        self.calls = 0

    def encode(self, texts: Sequence[str]) -> Tensor:
        self.calls += len(texts)
        made = torch.zeros(len(texts), self.tokens, self.text_dim)
        for row, text in enumerate(texts):
            for place, letter in enumerate(text[: self.tokens]):
                made[row, place] = torch.tensor([ord(letter) % k for k in (3, 5, 7, 11)]) + 1.0
        return made


def file_source(config: Any, encoder: Letters | None = None) -> FileSource:
    source = make_source(config, encoder=encoder)
    assert isinstance(source, FileSource)
    return source


@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal", "any"])
def test_slices_show_the_label(write_config: Write, plane: str) -> None:
    config = load_config(write_config(**FLAT, slices={"plane": plane}))
    items = Items(make_source(config), config)
    for index in range(12):
        item = items[index]
        assert item["image"].shape == item["label"].shape == (1, 16, 16)
        assert item["image"].dtype == torch.float32
        assert item["label"].dtype == torch.int16
        assert (item["label"] == 1).any()
        assert item["image"][item["label"] == 1].mean() > item["image"][item["label"] == 0].mean() + 0.3


def test_a_slice_is_that_of_the_volume(write_config: Write) -> None:
    config = load_config(write_config(**FLAT, slices={"plane": "coronal"}, augmentation={}, held_out_endings=[]))
    member = file_source(config).members[0]
    flat, extra = member.slice(config, torch.Generator().manual_seed(0))  # type: ignore[attr-defined]
    assert extra == {"plane": "coronal"}
    label = torch.from_numpy(person(1)[1].astype(np.int16))[1:-1, :, 1:-1]  # 18 voxels cut to 16
    assert any(torch.equal(flat.label[0], label[:, index]) for index in range(18))


def test_all_slices_are_drawn_without_foreground(write_config: Write) -> None:
    config = load_config(write_config(**FLAT, slices={"plane": "axial", "foreground": False}))
    items = Items(make_source(config), config)
    shown = [bool((items[index]["label"] > 0).any()) for index in range(30)]
    assert 0 < sum(shown) < 30


def test_slices_of_sagittal_planes_are_not_mirrored(write_config: Write) -> None:
    config = load_config(write_config(**FLAT, slices={"plane": "sagittal"}, augmentation={"flip": 1.0}))
    plain = load_config(write_config(**FLAT, slices={"plane": "sagittal"}, augmentation={}))
    assert torch.equal(file_source(config).item(5)["image"], file_source(plain).item(5)["image"])
    for plane in ("axial", "coronal"):
        config = load_config(write_config(**FLAT, slices={"plane": plane}, augmentation={"flip": 1.0}))
        plain = load_config(write_config(**FLAT, slices={"plane": plane}, augmentation={}))
        assert torch.equal(file_source(config).item(5)["image"], file_source(plain).item(5)["image"].flip(1))


def test_slices_and_grids_that_contradict_each_other(write_config: Write) -> None:
    with pytest.raises(MedgenError, match="must have 2 axes"):
        make_source(load_config(write_config(slices={"plane": "axial"})))
    uneven = {"grid": {"spacing": [1.0, 2.0], "size": [16, 16]}}
    with pytest.raises(MedgenError, match="equal along both axes"):
        make_source(load_config(write_config(**uneven, slices={"plane": "axial"})))
    controls = [{"name": "volume_ml", "kind": "number"}]
    with pytest.raises(MedgenError, match="need data from files"):
        make_source(load_config(write_config(data="colin27", controls=controls, augmentation={})))


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Ten pictures of a bright square on a grey ground with their labels, two kinds by a table."""
    folder = tmp_path / "pictures"
    for name in ("images", "labels"):
        (folder / name).mkdir(parents=True)
    rows = ["name,kind,size"]
    for number in range(10):
        label = torch.zeros(1, 28, 28, dtype=torch.int16)
        edge = 6 + number
        label[0, 4 : 4 + edge, 6 : 6 + edge] = 1
        image = 0.2 + 0.6 * label.float()
        write_picture(folder / "images" / f"p{number}.png", image)
        write_picture(folder / "labels" / f"p{number}.png", label)
        rows.append(f"p{number},{'odd' if number % 2 else 'even'},{edge}")
    (folder / "attributes.csv").write_text("\n".join(rows) + "\n")
    return folder


def test_pictures_fill_the_grid(write_config: Write, pictures: Path) -> None:
    config = load_config(write_config(**FLAT, data=str(pictures), augmentation={}))
    item = file_source(config).item(1)
    assert item["image"].shape == (1, 16, 16)
    assert item["image"].min() == pytest.approx(0.2, abs=0.01), "8 bit are 0..255"
    assert item["image"].max() == pytest.approx(0.8, abs=0.01)
    assert item["image"][item["label"] == 1].mean() > 0.6
    with pytest.raises(MedgenError, match="Give a grid of 2 axes"):
        make_source(load_config(write_config(data=str(pictures))))
    with pytest.raises(MedgenError, match="label_volume needs volumes"):
        make_source(load_config(write_config(**FLAT, data=str(pictures), measured=VOLUME)))


def test_pictures_in_colours(write_config: Write, tmp_path: Path) -> None:
    (tmp_path / "rgb").mkdir()
    for number in range(3):
        image = torch.stack([torch.full((8, 8), value) for value in (0.25, 0.5, 1.0)])
        write_picture(tmp_path / "rgb" / f"p{number}.png", image)
    shared: dict[str, Any] = {
        **FLAT,
        "data": str(tmp_path / "rgb"),
        "held_out_endings": [],
        "augmentation": {},
        "task": "image",
    }
    shared |= {"label_channels": [], "label_dropout": 0.0, "label_encoding": "one_hot"}
    config = load_config(write_config(**shared, channels=["red", "green", "blue"]))
    item = file_source(config).item(0)
    torch.testing.assert_close(item["image"].mean((1, 2)), torch.tensor([0.25, 0.5, 1.0]), atol=0.01, rtol=0)
    grey = file_source(load_config(write_config(**shared))).item(0)
    assert float(grey["image"].mean()) == pytest.approx(0.299 * 0.25 + 0.587 * 0.5 + 0.114, abs=0.01)


@pytest.fixture
def modalities(tmp_path: Path) -> Path:
    """Eight people with T1 (as the ball), FLAIR (inverted), and T2 of some."""
    folder = tmp_path / "modalities"
    for number in range(1, 9):
        image, label = person(number)
        write_volume(folder / "images" / "T1w" / f"p{number}.nii.gz", image)
        write_volume(folder / "images" / "FLAIR" / f"p{number}.nii.gz", 500 - image)
        if number % 2:
            write_volume(folder / "images" / "T2w" / f"p{number}.nii.gz", image * 2)
        write_volume(folder / "labels" / f"p{number}.nii.gz", label)
    return folder


TRANSLATE: dict[str, Any] = {
    "task": "translate",
    "channels": ["FLAIR"],
    "source_modalities": ["T1w", "T2w"],
    "label_channels": [],
    "label_dropout": 0.0,
    "label_encoding": "one_hot",
}


def test_missing_modalities_are_blank(write_config: Write, modalities: Path) -> None:
    config = load_config(write_config(**TRANSLATE, data=str(modalities), augmentation={"gamma": 0.2}))
    source = file_source(config)
    assert source.people == 6  # without 1 and 6
    seen = set()
    for seed in range(20):
        item = source.item(seed)
        assert item["source"].shape == (2, 16, 16, 16)
        seen.add(tuple(item["present"].tolist()))
        assert bool(item["source"][1].any()) == bool(item["present"][1])
        image, given = item["image"].flatten(), item["source"][0].flatten()
        assert np.corrcoef(image, given)[0, 1] < -0.9, "of one person, moved together"
    assert seen == {(1.0, 0.0), (1.0, 1.0)}


def test_what_is_made_from_given_images_keeps_its_intensities(write_config: Write, modalities: Path) -> None:
    shaded = load_config(write_config(**TRANSLATE, data=str(modalities), augmentation={"noise": 0.3}))
    plain = load_config(write_config(**TRANSLATE, data=str(modalities), augmentation={}))
    one, other = (file_source(config).item(3) for config in (shaded, plain))
    assert torch.equal(one["image"], other["image"])
    assert not torch.equal(one["source"][0], other["source"][0])


def test_given_images_are_left_out_in_training_only(write_config: Write, modalities: Path) -> None:
    config = load_config(write_config(**TRANSLATE, data=str(modalities), source_dropout=0.5))
    source = file_source(config)
    training = [Items(source, config)[index]["present"] for index in range(40)]
    assert all(present.any() for present in training), "one stays"
    assert any(present[0] == 0 for present in training)
    assert all(Items(source, config, "validation")[index]["present"][0] == 1 for index in range(20))
    item = {"source": torch.ones(3, 2, 2), "present": torch.tensor([0.0, 1.0, 1.0])}
    leave_out_sources(item, 1.0, torch.Generator().manual_seed(0))
    assert item["present"].sum() == 1
    assert item["present"][0] == 0
    assert torch.equal(item["source"].amax((1, 2)), item["present"])


def test_several_channels_and_an_inpainting_task(write_config: Write, modalities: Path) -> None:
    config = load_config(
        write_config(
            task="inpaint", channels=["T1w", "FLAIR"], data=str(modalities), label_channels=[], label_dropout=0.0,
            hole_diameter_mm=[4.0, 8.0], augmentation={},
        )
    )  # fmt: skip
    item = Items(file_source(config), config)[0]
    assert item["image"].shape == (2, 16, 16, 16)
    assert item["inpaint_mask"].shape == (1, 16, 16, 16)
    assert np.corrcoef(item["image"][0].flatten(), item["image"][1].flatten())[0, 1] < -0.9


def test_people_without_the_images_are_left_out_and_said(write_config: Write, modalities: Path) -> None:
    settings = {**TRANSLATE, "channels": ["T2w"], "source_modalities": ["T1w"], "data": str(modalities)}
    with pytest.warns(UserWarning, match="4 of 8 cases lack an image"):
        source = make_source(load_config(write_config(**settings)))
    assert source.people == 3
    with pytest.raises(MedgenError, match=r"no case has the images PDw, T1w\. Found FLAIR, T1w, T2w"):
        make_source(load_config(write_config(**{**settings, "channels": ["PDw"]})))


def test_images_of_another_grid_are_put_in_place(write_config: Write, tmp_path: Path) -> None:
    """A FLAIR at half the resolution, elsewhere in the scanner, falls onto the T1."""
    image, _ = person(3, 20)
    for name, step in (("T1w", 1), ("FLAIR", 2)):
        affine = np.diag([step, step, step, 1.0])
        affine[:3, 3] = (step - 1) / 2
        blocks = image.reshape(20 // step, step, 20 // step, step, 20 // step, step).mean((1, 3, 5))
        if name == "FLAIR":
            blocks, affine[:3, 3] = blocks[1:], affine[:3, 3] + [step, 0, 0]
        write_volume(tmp_path / "two" / "images" / name / "p3.nii.gz", blocks.astype(np.float32), affine)
    config = load_config(
        write_config(
            task="image", channels=["T1w", "FLAIR"], data=str(tmp_path / "two"), label_channels=[], label_dropout=0.0,
            held_out_endings=[], augmentation={},
        )
    )  # fmt: skip
    one, two = file_source(config).item(0)["image"]
    smooth = torch.nn.functional.avg_pool3d(one[None], 2)[0]
    coarse = torch.nn.functional.avg_pool3d(two[None], 2)[0]
    assert np.corrcoef(smooth[1:].flatten(), coarse[1:].flatten())[0, 1] > 0.9


def test_a_label_may_lie_on_the_grid_of_any_image(write_config: Write, tmp_path: Path) -> None:
    image, label = person(3, 20)
    write_volume(tmp_path / "two" / "images" / "T1w" / "p3.nii.gz", image)
    half = np.diag([2.0, 2.0, 2.0, 1.0])
    half[:3, 3] = 0.5
    write_volume(tmp_path / "two" / "images" / "FLAIR" / "p3.nii.gz", image[::2, ::2, ::2], half)
    write_volume(tmp_path / "two" / "labels" / "p3.nii.gz", label[::2, ::2, ::2], half)
    settings = {"data": str(tmp_path / "two"), "held_out_endings": [], "augmentation": {}}
    config = load_config(write_config(**settings, channels=["T1w", "FLAIR"]))
    moved = file_source(config).item(0)["label"][0] > 0
    truth = torch.from_numpy(label)[2:18, 2:18, 2:18] > 0
    assert float((moved & truth).sum()) / float((moved | truth).sum()) > 0.6
    with pytest.raises(MedgenError, match="has shape"):
        make_source(load_config(write_config(**settings, channels=["T1w"])))


def test_numbers_are_those_of_the_moved_label(write_config: Write) -> None:
    config = load_config(
        write_config(
            measured=VOLUME, controls=[{"name": "volume_ml", "kind": "number"}], augmentation={"scale": 0.3},
        )
    )  # fmt: skip
    source = file_source(config)
    (control,) = measure_controls(config, source)
    assert control.unit == "ml"
    truth = [count(member.label, [1]) / 1000 for member in source.members]
    assert control.mean == pytest.approx(np.mean(truth))
    for seed in range(10):
        item = source.item(seed)
        told = float(item["numbers"][0]) * control.std + control.mean
        assert told == pytest.approx(count(item["label"], [1]) / 1000, rel=1e-5)


def test_the_volume_of_a_slice_is_its_subjects(write_config: Write) -> None:
    settings = {**VOLUME, "area": {"label_area": [1]}}
    controls = [{"name": "volume_ml", "kind": "number"}, {"name": "area", "kind": "number"}]
    config = load_config(
        write_config(**FLAT, slices={"plane": "any"}, measured=settings, controls=controls, augmentation={"scale": 0.3})
    )
    source = file_source(config)
    volume, area = source.controls
    items = [source.item(seed) for seed in range(40)]
    volumes = torch.stack([item["numbers"][0] for item in items]) * volume.std + volume.mean
    areas = torch.stack([item["numbers"][1] for item in items]) * area.std + area.mean
    shown = torch.tensor([float(count(item["label"], [1])) for item in items])
    torch.testing.assert_close(areas, shown, rtol=1e-4, atol=1e-3)
    assert stats.spearmanr(volumes, shown).statistic > 0.3
    assert volumes.std() > 1.2 * volume.std, "stretched in the plane"


def test_measured_values() -> None:
    label = torch.zeros(1, 4, 4, 4, dtype=torch.int16)
    label[0, 0], label[0, 1, :2] = 1, 2
    table = {
        "all_ml": Measured(label_volume=(1, 2)),
        "share": Measured(label_share=((1,), (1, 2))),
        "none": Measured(label_share=((3,), (4,))),
    }
    assert measure_label(label, (2.0, 1.0, 0.5), table) == {"all_ml": 24 / 1000, "share": 16 / 24}
    flat = {"mm2": Measured(label_area=(1,)), "all_ml": Measured(label_volume=(1,))}
    assert measure_label(label[:, 0], (2.0, 0.5), flat, {"all_ml": 3.5}) == {"mm2": 16.0, "all_ml": 3.5}


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({}, "exactly one"),
        ({"label_volume": [1], "label_area": [1]}, "exactly one"),
        ({"label_share": [[1]]}, "label_share"),
        ({"bins": {"of": "x", "names": ["a", "b", "c"], "edges": [1.0]}}, "2 ranges; 3 names"),
        ({"bins": {"of": "x", "names": ["a", "b", "c"], "edges": [2.0, 1.0]}}, "rising"),
    ],
)
def test_bad_measures_are_refused(write_config: Write, fields: dict[str, Any], text: str) -> None:
    with pytest.raises(MedgenError, match=text):
        load_config(write_config(measured={"x": fields}))


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"name": "Size", "kind": "class"}, "small letters"),
        ({"name": "size", "kind": "number", "values": ["a"]}, "empty for kind"),
        ({"name": "size", "kind": "text", "prompts": ["a"]}, "'prompt'"),
        ({"name": "prompt", "kind": "text"}, "needs prompts"),
        ({"name": "prompt", "kind": "text", "prompts": ["a {size"]}, "braces"),
        ({"name": "prompt", "kind": "text", "prompts": ["a {size!r}"]}, "name of an attribute"),
        ({"name": "size", "kind": "class", "edges": [1.0], "quantiles": [0.5], "values": ["a", "b"]}, "exclude"),
        ({"name": "size", "kind": "class", "values": ["a", "a"]}, "different names"),
        ({"name": "prompt", "kind": "text", "prompts": ["a"], "words": {"size": 3}}, "words"),
    ],
)
def test_bad_controls_are_refused(write_config: Write, fields: dict[str, Any], text: str) -> None:
    with pytest.raises(MedgenError, match=text):
        load_config(write_config(controls=[fields]))


CONTROLS = [
    {"name": "kind", "kind": "class"},
    {"name": "big", "kind": "class", "attribute": "size", "values": ["no", "yes"], "edges": [10.0]},
    {"name": "size", "kind": "number"},
    {
        "name": "prompt",
        "kind": "text",
        "prompts": ["{kind} square", "a square of {size}"],
        "words": {"kind": {"odd": ["uneven", "odd"]}},
    },
]


def test_controls_from_a_table(write_config: Write, pictures: Path) -> None:
    encoder = Letters()
    config = load_config(
        write_config(**FLAT, data=str(pictures), controls=CONTROLS, control_dropout=0.3, num_workers=2)
    )
    source = file_source(config, encoder)
    kind, big, size, prompt = source.controls
    assert (kind.values, kind.shares) == (("even", "odd"), (0.5, 0.5))
    assert (big.values, big.shares) == (("no", "yes"), (3 / 8, 5 / 8))
    assert size.range == (6, 15)
    assert {"even square", "odd square", "uneven square", "a square of 9"} <= set(prompt.prompts)
    before = encoder.calls
    items = [source.item(seed) for seed in range(30)]
    assert encoder.calls == before, "all prompts were encoded at the start"
    for item in items:
        assert item["classes"].dtype == torch.int64
        edge = float(item["numbers"][0]) * size.std + size.mean
        assert int(item["classes"][0]) == round(edge) % 2
        assert int(item["classes"][1]) == (edge >= 9.99)
        assert item["text"].shape == (16, 4)
        assert item["text"].any()
    trained = [Items(source, config)[index] for index in range(60)]
    gone = torch.tensor(
        [
            [bool(i["classes"][0] < 0), bool(i["classes"][1] < 0), bool(i["numbers"][0].isnan()), not i["text"].any()]
            for i in trained
        ]
    )
    assert ((gone.float().mean(0) > 0.3) & (gone.float().mean(0) < 0.75)).all(), "0.3 alone or all at once: 0.51"
    assert gone.all(1).float().mean() > 0.15
    validation = make_validation_source(config, source)
    assert isinstance(validation, FileSource)
    assert validation.controls == source.controls
    assert not Items(validation, config, "validation")[0]["numbers"].isnan().any()


def test_unknown_attributes_are_named(write_config: Write, pictures: Path) -> None:
    for controls in (
        [{"name": "sizes", "kind": "number"}],
        [{"name": "prompt", "kind": "text", "prompts": ["{sizes}"]}],
    ):
        config = load_config(write_config(**FLAT, data=str(pictures), controls=controls))
        with pytest.raises(MedgenError, match=r"attribute 'sizes'\. Did you mean 'size'"):
            make_source(config, encoder=Letters())
    with pytest.raises(MedgenError, match="must be a number"):
        make_source(
            load_config(write_config(**FLAT, data=str(pictures), controls=[{"name": "kind", "kind": "number"}]))
        )


def test_ranges_of_equal_shares() -> None:
    table = {"group": Measured(bins={"of": "age", "names": ["young", "middle", "old"]})}  # type: ignore[arg-type]
    records: list[dict[str, str | float]] = [{"age": float(age)} for age in range(30)]
    conditions = Conditions([ControlConfig("group", "class")], table, records)
    (control,) = conditions.controls
    assert control.values == ("young", "middle", "old")
    assert control.shares == pytest.approx((1 / 3, 1 / 3, 1 / 3))
    assert conditions.request({"age": 29.0}, 0) == {"group": "old"}
    assert conditions.request({}, 0) == {}
    assert conditions.tensors({}, 0)["classes"].tolist() == [-1]
    with pytest.raises(MedgenError, match="Give edges"):
        Conditions([ControlConfig("group", "class")], table, [{"age": 1.0}, {"age": 2.0}])


def test_one_control_is_dropped_at_its_own_rate() -> None:
    conditions = Conditions([ControlConfig("sex", "class")], {}, [{"sex": "F"}, {"sex": "M"}])
    gone = 0
    for seed in range(400):
        item = conditions.tensors({"sex": "M"}, seed)
        dropped(item, conditions.controls, 0.2, torch.Generator().manual_seed(seed))
        gone += int(item["classes"][0] < 0)
    assert 50 < gone < 110


def test_cycles_are_trained_on_different_people(write_config: Write, modalities: Path) -> None:
    for number in (2, 3):
        (modalities / "images" / "T1w" / f"p{number}.nii.gz").unlink()
    for number in (4, 5):
        (modalities / "images" / "FLAIR" / f"p{number}.nii.gz").unlink()
    settings = {**TRANSLATE, "source_modalities": ["T1w"], "data": str(modalities), "augmentation": {}}
    config = load_config(write_config(**settings))
    object.__setattr__(config, "kind", "cyclegan")
    source = file_source(config)
    assert source.people == 6
    found = [source.item(seed) for seed in range(20)]
    assert all(item["present"].all() and item["source"].any() and item["image"].any() for item in found)
    related = [np.corrcoef(i["image"].flatten(), i["source"].flatten())[0, 1] < -0.99 for i in found]
    assert sum(related) < 15


@pytest.mark.parametrize("workers", [0, 2])
def test_items_with_everything_do_not_depend_on_the_workers(
    write_config: Write, modalities: Path, workers: int
) -> None:
    config = load_config(
        write_config(
            **{**TRANSLATE, "label_channels": [["ball", [1]]]}, **FLAT, data=str(modalities), slices={"plane": "any"},
            patch_size=[8, 8], source_dropout=0.3, control_dropout=0.3, measured=VOLUME,
            controls=[{"name": "volume_ml", "kind": "number"}, {"name": "plane", "kind": "class"}],
            augmentation={"noise": 0.1, "bias": 0.2, "rotation_degrees": 10},
        )
    )  # fmt: skip
    items = Items(file_source(config), config)
    alone = [items[index] for index in range(2, 8)]
    loader: DataLoader[Any] = DataLoader(items, batch_sampler=BatchesFrom(1, 4, 2), num_workers=workers)
    batches = list(loader)
    for key in alone[0]:
        together = torch.cat([batch[key].reshape(2, *alone[0][key].shape) for batch in batches])
        apart = torch.stack([item[key] for item in alone])
        assert torch.equal(together.nan_to_num(9), apart.nan_to_num(9)), key


def test_true_and_false_are_shares() -> None:
    assert Slices(foreground=True).foreground == 1.0
    assert Slices(foreground=0.7).foreground == 0.7


def test_a_trial_with_few_people_knows_all_classes(write_config: Write, pictures: Path) -> None:
    table = (pictures / "attributes.csv").read_text().replace("p2,even", "p2,").replace("p4,even", "p4,rare")
    (pictures / "attributes.csv").write_text(table)
    config = load_config(write_config(**FLAT, data=str(pictures), controls=[{"name": "kind", "kind": "class"}]))
    source = make_source(config, 2)
    assert isinstance(source, FileSource)
    assert source.people == 2
    assert source.controls[0].values == ("even", "odd", "rare")
    assert [member.attributes["kind"] for member in source.members] == ["even", "odd"], "those who have the attribute"
