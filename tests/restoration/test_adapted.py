"""A denoiser of holes made used to one scan: what it learns from, what it leaves, where it gives up."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from medgen.restoration import adapted as module
from medgen.restoration.adapted import adapted
from medgen.restoration.restore import restore
from tests.models.test_restorer import small_restorer

SIZE = (28, 24, 24)


@pytest.fixture(autouse=True)
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STEPS", 100)
    monkeypatch.setattr(module, "LEARNING_RATE", 6e-3)
    monkeypatch.setattr(module, "DIAMETER_MM", (6.0, 12.0))


def striped() -> torch.Tensor:
    """Planes across the second axis, bright and dark in turn."""
    return (0.25 + 0.5 * (torch.arange(SIZE[1]) // 3 % 2)).reshape(1, 1, -1, 1).expand(1, *SIZE).clone()


def marked() -> torch.Tensor:
    hole = torch.zeros(1, *SIZE, dtype=torch.bool)
    hole[:, 10:18, 8:16, 8:16] = True
    return hole


def test_it_learns_the_scan_and_the_model_stays() -> None:
    model, values, hole = small_restorer(restores="denoise_hole"), striped(), marked()
    before = {key: weight.clone() for key, weight in model.networks["restorer"].state_dict().items()}
    steps: list[int] = []
    used = adapted(model, values, hole, np.eye(4), steps.append)
    assert used is not None
    assert steps == list(range(1, 101))
    assert all(torch.equal(weight, before[key]) for key, weight in model.networks["restorer"].state_dict().items())
    noisy = torch.where(
        hole, values + 0.5 * torch.randn(values.shape, generator=torch.Generator().manual_seed(1)), values
    )

    def error(one: object) -> float:
        made = one.denoise(noisy[None], torch.tensor([0.5]), hole.float())  # type: ignore[attr-defined]
        return float((made[0] - values)[hole].square().mean())

    assert error(used) < 0.85 * error(model)


def test_what_lies_in_the_hole_is_not_learnt_and_the_result_is_a_function_of_the_scan() -> None:
    """Other values in the hole are seen as noise alone, by patches that show them."""
    model, hole = small_restorer(restores="denoise_hole"), marked()
    first, again = (adapted(model, striped(), hole, np.eye(4)) for _ in range(2))
    assert first is not None
    assert again is not None
    for one, other in zip(
        first.networks["restorer"].parameters(), again.networks["restorer"].parameters(), strict=True
    ):
        assert torch.equal(one, other)
    known = module._Known(striped(), hole, (24, 24, 24), 1)
    stream = torch.Generator().manual_seed(0)
    for _ in range(20):
        item = known.item(model.spec, stream)
        assert item is not None
        clean, noisy, told, counts, level = item
        assert torch.equal(clean[told < 0.5], noisy[told < 0.5])
        assert not bool(((counts > 0.5) & (told < 0.5)).any())
        assert float(told.sum() - counts.sum()) > 0, "the hole is told and does not count"
        assert 0.1 <= float(level) <= 6


def test_too_little_that_is_known() -> None:
    model, hole = small_restorer(restores="denoise_hole"), torch.ones(1, *SIZE, dtype=torch.bool)
    hole[:, :2] = False
    assert adapted(model, striped(), hole, np.eye(4)) is None
    assert adapted(model, striped()[:, :2], hole[:, :2], np.eye(4)) is None, (
        "smaller than a packed voxel of the network"
    )
    affine = torch.eye(4, dtype=torch.float64)
    made = restore(
        MetaTensor(500 * striped(), affine=affine), "inpaint", small_restorer(restores="inpaint"), samples=1,
        prior=model, inpaint_mask=MetaTensor(hole.float(), affine=affine), guard="off",
    )  # fmt: skip
    assert any("too little is known around the hole" in remark for remark in made.remarks)
    assert made.provenance["adapted"] is False
