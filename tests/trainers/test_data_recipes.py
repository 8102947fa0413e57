"""The configurations for public data sets, on small files in their layouts: read, trained for two steps, sampled."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import medgen
from medgen.io.configs import find_config
from medgen.models.card import validate_card
from medgen.trainers import train
from medgen.trainers.config import TrainConfig, load_config
from medgen.trainers.data import FileSource, Items, make_source
from tests.trainers.conftest import person, write_volume

ROOT = Path(__file__).parents[2]
SMALL = ["net#channels=[8,16]", "num_workers=0", "batch_size=2", "sampling#num_inference_steps=2"]
CUBE = ["grid={spacing: [1.0, 1.0, 1.0], size: [16, 16, 16]}", *SMALL]
SQUARE = ["grid={spacing: [1.0, 1.0], size: [16, 16]}", *SMALL]


def ixi(root: Path) -> Path:
    rows = ['"IXI_ID","SEX_ID (1=m, 2=f)","AGE"']
    for number in range(2, 8):
        write_volume(root / "IXI-T1" / f"IXI{number:03d}-Guys-0{number}28-T1.nii.gz", person(number)[0])
        rows.append(f"{number},{1 + number % 2},{30 + number}.5")
    (root / "IXI.csv").write_text("\n".join(rows) + "\n")
    return root


def brats(root: Path) -> Path:
    for number in range(2, 8):
        image, label = person(number)
        case = f"BraTS-GLI-{number:05d}-000"
        for i, kind in enumerate(("t1n", "t1c", "t2w", "t2f")):
            write_volume(root / case / f"{case}-{kind}.nii.gz", image * (1 + i))
        write_volume(root / case / f"{case}-seg.nii.gz", label * np.uint8(3))
    return root


def msd(root: Path) -> Path:
    training = []
    for number in range(2, 8):
        image, label = person(number)
        name = f"BRATS_{number:03d}.nii.gz"
        write_volume(root / "imagesTr" / name, np.stack([500 - image, image, image, image * 2], axis=-1))
        write_volume(root / "labelsTr" / name, label)
        training.append({"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"})
    content = {"modality": {"0": "FLAIR", "1": "T1w", "2": "t1gd", "3": "T2w"}, "training": training}
    (root / "dataset.json").write_text(json.dumps(content))
    return root


def medmnist(root: Path) -> Path:
    rng = np.random.default_rng(0)
    arrays: dict[str, Any] = {}
    for split, count in (("train", 8), ("val", 2), ("test", 2)):
        arrays[f"{split}_images"] = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        arrays[f"{split}_labels"] = (np.arange(count) % 2).astype(np.uint8)[:, None]
    root.mkdir(parents=True, exist_ok=True)
    np.savez(root / "pneumoniamnist_64.npz", **arrays)
    return root / "pneumoniamnist_64.npz"


def bids(root: Path) -> Path:
    rows = ["participant_id\tage\tsex"]
    for number in range(2, 8):
        write_volume(root / f"sub-{number:02d}" / "anat" / f"sub-{number:02d}_T1w.nii.gz", person(number)[0])
        rows.append(f"sub-{number:02d}\t{30 + number}\t{'MF'[number % 2]}")
    (root / "participants.tsv").write_text("\n".join(rows) + "\n")
    return root


RECIPES: dict[str, tuple[Callable[[Path], Path], list[str], int, dict[str, tuple[int, ...]]]] = {
    "ixi": (ixi, CUBE, 5, {"image": (1, 16, 16, 16), "classes": (1,), "numbers": (1,)}),
    "brats": (brats, CUBE, 5, {"image": (4, 16, 16, 16), "numbers": (1,)}),
    "msd": (msd, SQUARE, 5, {"image": (1, 16, 16), "source": (2, 16, 16), "present": (2,)}),
    "medmnist": (medmnist, SQUARE, 8, {"image": (1, 16, 16), "classes": (1,)}),
    "bids": (bids, SQUARE, 5, {"image": (1, 16, 16), "classes": (2,), "numbers": (1,)}),
}


def recipe(name: str, folder: Path) -> tuple[TrainConfig, list[str]]:
    make, changes, *_ = RECIPES[name]
    overrides = [f"data={make(folder / name)}", *changes]
    return load_config(find_config(name), overrides), overrides


@pytest.mark.parametrize("name", RECIPES)
def test_items_of_a_recipe(name: str, tmp_path: Path) -> None:
    config, _ = recipe(name, tmp_path)
    source = make_source(config)
    assert isinstance(source, FileSource)
    _, _, people, shapes = RECIPES[name]
    assert source.people == people, "people are held out"
    items = Items(source, config)
    for index in range(4):
        item = items[index]
        assert {key: tuple(item[key].shape) for key in shapes} == shapes
        assert item["image"].isfinite().all()
    assert not source.item(0).get("numbers", torch.zeros(1)).isnan().any()
    if name == "brats":
        assert set(source.item(0)["label"].unique().tolist()) == {0, 3}


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_has_its_card(name: str) -> None:
    card = validate_card(ROOT / "data_cards" / f"{name}.md", "dataset")
    text = (ROOT / "data_cards" / f"{name}.md").read_text(encoding="utf-8")
    assert card["name"] == name
    assert f"configs/{name}.yaml" in text
    assert f"data_cards/{name}.md" in find_config(name).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_trains_and_samples(name: str, tmp_path: Path) -> None:
    _, overrides = recipe(name, tmp_path)
    folder = train(find_config(name), tmp_path / "run", overrides, fast_dev_run=True, device="cpu", progress=False)
    model = medgen.load_model(folder, device="cpu")
    shape = RECIPES[name][3]["image"]
    if name == "msd":
        known = {"source": torch.rand(2, 16, 16), "present": torch.tensor([1.0, 0.0])}
        image = model.produce(known, (16, 16), 0, model.settings())[0]
    else:
        (made,) = model.sample(1, seed=0)
        image = made["image"]
    assert image is not None
    assert image.shape == shape
    assert image.isfinite().all()
