"""Restorers learn on simulated pairs of any scan."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from medgen.checks import MedgenError
from medgen.models import load_model
from medgen.trainers import train
from medgen.trainers.config import load_config
from medgen.trainers.data import Items, make_source
from medgen.trainers.restorer import restoration_loss
from medgen.trainers.scans import ScanSource, strength_of

CONTENT: dict[str, Any] = {
    "family": "restorer",
    "name": "tiny-restorer",
    "restores": "denoise",
    "grid": {"spacing": [1.0, 1.0, 1.0], "size": [16, 16, 16]},
    "degradations": [{"rician": {"level": [0.02, 0.2]}}, {"gaussian": {"level": [0.02, 0.2]}}],
    "margin": 0,
    "net": {"_target_": "RestorationUNet", "channels": [8, 16], "num_res_blocks": 1},
    "batch_size": 2,
    "steps": 6,
    "seed": 3,
    "held_out_endings": [1, 6],
    "optimisation": {"learning_rate": 2e-3, "warmup_steps": 2},
}


@pytest.fixture
def config(tmp_path: Path, people: Path) -> Any:
    def write(**changes: Any) -> Path:
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump({**CONTENT, "data": str(people), **changes}))
        return path

    return write


def test_training_lowers_the_error_and_leaves_a_model(config: Any, tmp_path: Path) -> None:
    degradations = [{"gaussian": {"level": [0.3, 0.5]}}]
    path = config(steps=60, variety={"contrast": 0.0}, degradations=degradations)
    train(path, tmp_path / "run", progress=False, device="cpu")
    model: Any = load_model(tmp_path / "run" / "model", device="cpu")
    items = Items(ScanSource.validation(load_config(path)), load_config(path), "validation")
    before, after = 0.0, 0.0
    for i in range(8):
        item = items[i]
        made, _ = model.restored(item["input"], float(item["strength"]))
        before += float((item["input"] - item["image"]).square().mean())
        after += float((made - item["image"]).square().mean())
    assert after < 0.85 * before
    low, high = model.spec.strength
    assert 0.3 <= low < high <= 0.5
    assert 0.5 < model.spec.interval_factor < 10
    assert model.spec.training["people"] == 9


def test_the_same_seed_gives_the_same_model(config: Any, tmp_path: Path) -> None:
    path = config()
    train(path, tmp_path / "whole", progress=False, device="cpu")
    train(path, tmp_path / "again", progress=False, device="cpu")
    first, second = (load_model(tmp_path / name / "model", device="cpu") for name in ("whole", "again"))
    assert first.hash == second.hash


@pytest.mark.parametrize("restores", ["superres", "inpaint", "motion", "bias"])
def test_every_task_runs(config: Any, tmp_path: Path, restores: str) -> None:
    degradations: list[Any] = {
        "superres": [{"through_plane": {"slice_spacing_mm": [2, 4], "axis": -1}}],
        "inpaint": [],
        "motion": [{"rigid_motion": {}}],
        "bias": [{"bias_field": {}}],
    }[restores]
    margin = 0 if restores == "inpaint" else 2
    path = config(restores=restores, degradations=degradations, margin=margin, hole_diameter_mm=[5.0, 9.0], steps=2)
    train(path, tmp_path / "run", progress=False, device="cpu", fast_dev_run=True)
    model: Any = load_model(tmp_path / "run" / "model", device="cpu")
    assert model.spec.restores == restores
    item = Items(make_source(load_config(path)), load_config(path))[0]
    assert item["input"].shape == item["image"].shape == (1, 16, 16, 16)
    if restores == "inpaint":
        hole = item["inpaint_mask"] > 0.5
        assert torch.equal(item["input"][~hole], item["image"][~hole])
        assert not torch.equal(item["input"][hole], item["image"][hole])
    else:
        assert not torch.equal(item["input"], item["image"])
    assert (float(item["strength"]) > 1) == (restores == "superres")


def test_flat_scans(config: Any, tmp_path: Path) -> None:
    """Two axes: slices of volumes, across any axis."""
    path = config(grid={"spacing": [1.0, 1.0], "size": [16, 16]}, steps=2)
    train(path, tmp_path / "run", progress=False, device="cpu", fast_dev_run=True)
    model: Any = load_model(tmp_path / "run" / "model", device="cpu")
    assert model.restored(torch.rand(1, 19, 22), 0.05)[0].shape == (1, 19, 22)


def test_items_are_functions_of_their_number(config: Any) -> None:
    loaded = load_config(config(variety={"population": 0.5}, subjects=2))
    first, second = (Items(make_source(loaded), loaded) for _ in range(2))
    second[7]
    for key, value in first[5].items():
        assert torch.equal(value, second[5][key]), key


def test_nobody_held_out_is_trained_on(config: Any) -> None:
    loaded = load_config(config())
    training, validation = ScanSource.training(loaded), ScanSource.validation(loaded)
    assert training.scans is not None
    assert validation.scans is not None
    assert (training.people, validation.people) == (9, 3)
    shown = {float(v.double().sum()) for v in training.scans.volumes}
    assert not shown & {float(v.double().sum()) for v in validation.scans.volumes}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"degradations": []}, "not empty"),
        ({"restores": "inpaint"}, "empty for inpaint"),
        ({"patch_size": [8, 8, 8]}, "Set grid.size to the patch"),
        ({"data": "colin27"}, "variety.population"),
        ({"grid": {"spacing": [1.0] * 3, "size": [18, 16, 16]}}, "multiples of 4"),
        ({"net": {"_target_": "RestorationUNet", "in_channels": 3}}, "net.in_channels"),
    ],
)
def test_what_cannot_be_meant_is_refused(config: Any, tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(MedgenError, match=message):
        train(config(**change), tmp_path / "run", progress=False, device="cpu")
    assert not (tmp_path / "run").exists()


def test_the_loss_is_least_where_the_expected_error_is_right() -> None:
    stream = torch.Generator().manual_seed(0)
    clean = torch.randn(2, 1, 16, 16, 16, generator=stream)
    error = 0.3 * torch.randn(clean.shape, generator=stream)
    whole = torch.ones_like(clean)

    def loss(log_std: float) -> float:
        # the weight is without gradient: the slope tells, not the value
        level = torch.full_like(clean, log_std, requires_grad=True)
        restoration_loss(clean + error, level, clean, whole)[0].backward()
        assert level.grad is not None
        return float(level.grad.sum())

    right = float(torch.tensor(0.3).log())
    assert loss(right - 0.2) < 0 < loss(right + 0.2)
    assert abs(loss(right)) < 0.05


def test_voxels_that_do_not_count() -> None:
    clean, mean = torch.zeros(1, 1, 4, 4, 4), torch.zeros(1, 1, 4, 4, 4)
    mean[..., 0] = 7.0
    counted = torch.ones_like(clean)
    counted[..., 0] = 0
    assert float(restoration_loss(mean, None, clean, counted)[1]) == 0
    assert float(restoration_loss(mean, None, clean, torch.ones_like(clean))[1]) == pytest.approx(3.5)


def test_strength_of_what_has_none() -> None:
    from medgen.operators import Blur, Chain

    assert strength_of(Chain([Blur((4, 4), 2.0)])) == 0.0
