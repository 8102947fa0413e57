"""The comparison of families on made-up people: slices with a disc of two halves; no training beyond a few steps."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from torch import nn

from medgen.checks import MedgenError
from medgen.models.specification import Grid
from tests.bench import families
from tests.bench.families import (
    Comparison,
    Row,
    families_bench,
    markdown,
    measure_model,
    plane_of,
    training_minutes,
    verdict,
)
from tests.bench.judge import Judge, floors, overlap, train_judge
from tests.bench.memorisation import Gallery, nearest_sheet, planted
from tests.bench.people import People, Volume, as_meta, load_people, volume_of

GRID = Grid(spacing=(1.0, 1.0), size=(32, 32))
REPOSITORY = Path(__file__).parents[1]


def person(seed: int, noise: float = 0.03) -> Volume:
    """A bright disc, its halves labelled 1 and 2, of random size and place."""
    rng = np.random.default_rng(seed)
    x, y = np.indices((32, 32)) - rng.uniform(13, 19, (2, 1, 1))
    ids = np.where(x**2 + y**2 < rng.uniform(5, 9) ** 2, 1 + (x > 0), 0).astype(np.int16)
    image = 0.2 + 0.3 * (ids > 0) + 0.1 * (ids == 2) + rng.normal(0, noise, ids.shape)
    return Volume(image.clip(0, 1.5).astype(np.float32), ids)


def people() -> People:
    training = [person(i) for i in range(12)]
    return People(GRID, "axial", training, [person(100 + i) for i in range(8)], training)


class Model:
    """Draws people of its own, or for a label; its network is only counted."""

    hash = "0"

    def __init__(self, spec: Any, networks: dict[str, nn.Module], device: torch.device, noise: float = 0.5) -> None:
        self.spec, self.networks, self.device, self.noise = spec, networks, device, noise

    def settings(self, **options: Any) -> dict[str, Any]:
        return {"num_inference_steps": 2} | options

    def sample(self, n: int, seed: int, label: MetaTensor | None = None, **_: Any) -> list[dict[str, MetaTensor]]:
        made = [as_meta(person(1000 + seed + i, self.noise), GRID) for i in range(n)]
        if label is not None:
            told = person(1000 + seed, self.noise)._replace(label=label.numpy()[0])
            return [as_meta(told._replace(image=(0.2 + 0.3 * (told.ids > 0)).astype(np.float32)), GRID)]
        return made


def model(task: str = "joint", **changes: Any) -> Any:
    form = {"_target_": "BasicUNet", "spatial_dims": 2, "features": [4] * 6}
    fields = {
        "name": "made-up", "family": "diffusion", "task": task, "grid": GRID, "spatial_dims": 2, "makes_label": True,
        "networks": lambda: {"net": form}, "told_label": True,
    } | changes  # fmt: skip
    return Model(SimpleNamespace(**fields), {"net": nn.Linear(2, 3)}, torch.device("cpu"), noise=0.03)


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Judge:
    return train_judge(people(), tmp_path_factory.mktemp("judge"), steps=12)


@pytest.fixture(scope="module")
def comparison(judge: Judge) -> Comparison:
    return Comparison(people(), judge, count=8, repeats=5)


def test_judge_is_kept_and_read_again(tmp_path: Path) -> None:
    first, again = (train_judge(people(), tmp_path, steps=2) for _ in range(2))
    assert len(list(tmp_path.glob("judge-*.pt"))) == 1
    assert np.array_equal(first.features(people().held_out), again.features(people().held_out))
    assert train_judge(people(), tmp_path, steps=3).key != first.key


def test_floors_have_the_labels_they_were_painted_for_and_can_outnumber_people() -> None:
    found = floors(people().training, 20)
    assert list(found) == list(families.FLOORS)
    assert all(len(volumes) == 20 for volumes in found.values())
    painted = found["label means and noise"][0]
    assert painted.image[painted.ids == 2].mean() > painted.image[painted.ids == 0].mean() + 0.2


def test_references_are_in_order(comparison: Comparison) -> None:
    rows = {row.name: row for row in comparison.references()}
    ceiling, noise = rows[families.CEILING], rows["white noise"]
    for space in families.SPACES:
        assert ceiling.frechet[space][0] < noise.frechet[space][0]
    assert ceiling.shares["precision"][0] > 0.8
    assert noise.shares["coverage"][0] < 0.3
    assert rows[families.COPIES].nearest["voxels"]["nearer"] == 1
    assert ceiling.dice["told"]["whole"] == pytest.approx(comparison.judge.dice(people().held_out)["whole"])


def test_a_good_model_beats_its_untrained_self(comparison: Comparison) -> None:
    (row, fresh), samples = measure_model(model(), comparison)
    assert (row.parameters, row.minutes, row.kind) == (9, None, "model")
    assert set(row.dice) == {"told", "made"}
    assert len(samples) == 16
    assert fresh.name == "made-up, untrained"
    found = verdict(row, [row, fresh, *comparison.references()])
    assert isinstance(found["clear"], bool)
    assert found["way"]["texture"] > 0.5
    assert row.frechet["texture"][2] < fresh.frechet["texture"][0]


def test_labels_are_given_where_the_task_needs_them(comparison: Comparison) -> None:
    (row, _), samples = measure_model(model("label_to_image"), comparison)
    assert set(row.dice) == {"told", "made"}
    assert np.array_equal(samples[0].ids, people().held_out[0].ids)


def test_a_model_without_labels_has_no_dice(comparison: Comparison) -> None:
    image_only = model("image", told_label=False, makes_label=False)
    (row, fresh), samples = measure_model(image_only, comparison)
    assert row.dice == fresh.dice == {}
    assert len(samples) == 8


def test_memorisation_finds_copies_and_not_other_people(judge: Judge) -> None:
    gallery = Gallery(people(), judge)
    copies, others = (gallery.compare(volumes) for volumes in (planted(people(), 8), people().held_out))
    assert copies["voxels"]["nearer"] == 1
    assert copies["voxels"]["ratio"] < 0.5
    assert others["voxels"]["nearer"] == 0
    assert others["voxels"]["ratio"] == others["network"]["ratio"] == 1


def test_nearest_are_those_copied(tmp_path: Path, judge: Judge) -> None:
    gallery, chosen = Gallery(people(), judge), [3, 0, 7]
    copies = [people().gallery[i] for i in chosen]
    distances, nearest = gallery.nearest(copies)
    assert nearest.tolist() == chosen
    assert distances.tolist() == [0.0] * 3
    nearest_sheet(copies, people(), gallery, tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 1000


def test_table_has_a_line_for_every_row(comparison: Comparison) -> None:
    rows = [*measure_model(model(), comparison)[0], *comparison.references()]
    text = markdown(rows, 8)
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + len(rows)
    assert len({line.count("|") for line in lines}) == 1
    assert "diffusion, joint" in text
    assert all(row.name in text for row in rows)


def test_whole_run_is_kept_and_leaves_out_what_cannot_sample(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, judge: Judge
) -> None:
    def refusing(*_: Any, **__: Any) -> None:
        raise MedgenError("works on given images")

    translator = model(name="translator")
    translator.hash, translator.sample = "1", refusing
    known = {"good": model(), "translator": translator}
    monkeypatch.setattr(families.medgen, "load_model", lambda path, device: known[path])
    monkeypatch.setattr(families, "load_people", lambda *_: people())
    monkeypatch.setattr(families, "train_judge", lambda *_: judge)
    arguments = ([*known], tmp_path, tmp_path / "out" / "t.md", tmp_path / "cache", 7)
    rows = families_bench(*arguments, plane="axial", repeats=5)
    assert [row.name for row in rows if row.kind == "model"] == ["made-up"]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "t.md", "t.json", "t_made-up.png", "t_made-up_nearest.png"
    }  # fmt: skip
    assert json.loads((tmp_path / "out" / "t.json").read_text())["rows"][0]["name"] == families.CEILING
    monkeypatch.setattr(families, "measure_model", refusing)
    again = families_bench(*arguments, plane="axial", repeats=5)
    assert [dataclasses.asdict(row) for row in again] == [dataclasses.asdict(row) for row in rows]


def test_plane_is_that_of_the_run(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("slices: {plane: coronal}\n")
    assert plane_of(tmp_path / "model") == "coronal"
    with pytest.raises(MedgenError, match="--plane"):
        plane_of(tmp_path / "other" / "model")


def test_minutes_are_those_of_all_stages(tmp_path: Path) -> None:
    assert training_minutes(tmp_path / "model") is None
    for folder, minutes in ((tmp_path, 2.5), (tmp_path / "first_stage", 4)):
        folder.mkdir(exist_ok=True)
        (folder / "run.json").write_text(json.dumps({"minutes": minutes, "steps": 3}))
    assert training_minutes(tmp_path / "model") == 6.5


def test_people_of_the_repository_as_volumes_and_as_slices(tmp_path: Path) -> None:
    source = REPOSITORY / "data" / "hippocampus"
    for old, new in (("003", "003"), ("033", "033"), ("077", "071"), ("088", "086")):
        for kind in ("images", "labels"):
            (tmp_path / kind).mkdir(exist_ok=True)
            shutil.copy(source / kind / f"hippocampus_{old}.nii.gz", tmp_path / kind / f"hippocampus_{new}.nii.gz")
    whole = load_people(tmp_path, Grid((1.0,) * 3, (32, 48, 32)))
    assert (len(whole.training), len(whole.held_out), len(whole.gallery)) == (2, 2, 2)
    flat = load_people(tmp_path, Grid((0.5, 0.5), (64, 64)), "coronal")
    assert flat.name == "2D 64x64 coronal"
    assert len(flat.gallery) > 20
    assert all(volume.image.shape == (64, 64) and volume.ids.any() for volume in flat.gallery)
    with pytest.raises(MedgenError, match="people of both kinds"):
        load_people(source, Grid((1.0,) * 3, (32, 48, 32)))


def test_overlap_and_rows() -> None:
    empty = np.zeros(3, bool)
    assert overlap(empty, empty) == 1
    assert overlap(empty, ~empty) == 0
    assert Row("a", "model", "g").dice == {}
    image = torch.full((2, 4, 4), 9.0)
    assert volume_of(image, None).image.max() == 1.5
    with pytest.raises(MedgenError, match="no label"):
        _ = volume_of(image, None).ids
