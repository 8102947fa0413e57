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
from medgen.trainers.lesions import planted
from medgen.trainers.restorer import filling_loss, restoration_loss
from medgen.trainers.scans import ScanSource, strength_of
from medgen.trainers.warping import warped_patch

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

    def loss(log_std: float) -> float:
        # the weight is without gradient: the slope tells, not the value
        level = torch.full_like(clean, log_std, requires_grad=True)
        restoration_loss(clean + error, level, clean)[0].backward()
        assert level.grad is not None
        return float(level.grad.sum())

    right = float(torch.tensor(0.3).log())
    assert loss(right - 0.2) < 0 < loss(right + 0.2)
    assert abs(loss(right)) < 0.05


def test_the_loss_of_holes_counts_holes_alone_and_each_alike() -> None:
    stream = torch.Generator().manual_seed(0)
    hole = torch.zeros(2, 1, 12, 12, 12)
    hole[..., :6] = 1
    clean = torch.rand(hole.shape, generator=stream)
    scale = torch.tensor([1.0, 0.01]).reshape(2, 1, 1, 1, 1)
    mean = (clean + 0.5 * scale).requires_grad_()
    loss, error = filling_loss(mean, None, clean, clean + scale, hole)
    assert loss.item() == pytest.approx(0.5)
    assert error.item() == pytest.approx(0.5 * (0.5 * (1 + 1e-4)) ** 0.5)
    loss.backward()
    assert mean.grad is not None
    assert not bool(mean.grad[hole < 0.5].any())
    assert float(mean.grad[1].sum()) == pytest.approx(100 * float(mean.grad[0].sum()))


def test_the_expected_error_of_holes_is_right_for_laplace_errors() -> None:
    stream = torch.Generator().manual_seed(0)
    off = torch.distributions.Laplace(0.0, 0.2).icdf(
        torch.rand(1, 1, 40, 40, 40, generator=stream).clamp(1e-6, 1 - 1e-6)
    )
    clean, hole = torch.zeros_like(off), torch.ones_like(off)

    def slope(std: float) -> float:
        level = torch.full_like(off, std).log().requires_grad_()
        filling_loss(off, level, clean, off, hole)[0].backward()
        assert level.grad is not None
        return float(level.grad.sum())

    right = 0.2 * 2**0.5
    assert slope(0.95 * right) < 0 < slope(1.05 * right)


def test_subjects_and_pairs_made_by_processes_are_those_made_one_by_one(config: Any) -> None:
    changes: dict[str, Any] = {
        "grid": {"spacing": [4.0] * 3, "size": [16, 16, 16]}, "variety": {"population": 0.5}, "subjects": 3, "pairs": 4
    }  # fmt: skip
    alone = ScanSource.training(load_config(config(**changes)))
    ahead = ScanSource.training(load_config(config(**changes, num_workers=2, steps=50)))
    assert (len(ahead._kept), len(ahead._pairs), len(alone._kept)) == (3, 4, 0)
    for seed in range(6):
        one, other = alone.item(seed), ahead.item(seed)
        assert all(torch.equal(one[key], other[key]) for key in one)


def test_planted_lesions_are_small_and_of_the_drawn_contrast() -> None:
    patch = torch.full((1, 48, 48, 48), 0.5)
    patch[:, :10] = 0
    changed = []
    for seed in range(20):
        made = planted(patch, (1.0, 1.0, 1.0), 0.05, torch.Generator().manual_seed(seed))
        ratio = (made / patch)[patch > 0] - 1
        assert 0.05 < float(ratio.abs().max()) < 3
        assert not bool(made[patch == 0].any())
        changed.append(float((ratio.abs() > 0.05).float().sum()))
    assert min(changed) > 20
    assert max(changed) < 8 * 4 / 3 * 3.1416 * 8.6**3
    assert planted(patch[..., 0], (1.0, 1.0), 0.05, torch.Generator().manual_seed(1)).shape == patch[..., 0].shape


def test_a_patch_that_is_not_bent_is_the_volume() -> None:
    volume = torch.rand(1, 20, 22, 24, generator=torch.Generator().manual_seed(0))
    same = warped_patch(volume, (20, 22, 24), (2.0, 2.0, 2.0), 0.0, torch.Generator().manual_seed(1))
    assert float((same - volume).abs().max()) < 1e-5
    bent = warped_patch(volume, (20, 22, 24), (2.0, 2.0, 2.0), 6.0, torch.Generator().manual_seed(1))
    assert float((bent - volume).abs().mean()) > 0.05


def test_strength_of_what_has_none() -> None:
    from medgen.operators import Blur, Chain

    assert strength_of(Chain([Blur((4, 4), 2.0)])) == 0.0
