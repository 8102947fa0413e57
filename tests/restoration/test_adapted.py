"""A denoiser of holes made used to one scan: what it learns from, what it leaves, where it gives up."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from medgen.restoration import adapted as module
from medgen.restoration import sampled_tasks
from medgen.restoration.adapted import adapted
from medgen.restoration.restore import restore
from tests.models.test_restorer import small_restorer

SIZE = (28, 24, 24)


@pytest.fixture(autouse=True)
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STEPS", 100)
    monkeypatch.setattr(module, "LEARNING_RATE", 6e-3)


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


def test_what_lies_in_the_hole_is_told_and_not_learnt() -> None:
    """Patches are the whole scan here, mirrored from left to right or not."""
    hole = marked()
    hole[:, :12] = False
    turned = np.array([[0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]], dtype=float)  # left to right: axis 2
    for affine, across in ((np.eye(4), 1), (turned, 2)):
        values = torch.rand((1, 16, 16, 16), generator=torch.Generator().manual_seed(2)) + 0.2
        part = hole[:, 4:20, :16, :16]
        model = small_restorer(restores="denoise_hole")
        known = module._Known(values, part, affine, model.spec)
        assert known.size == (16, 16, 16)
        stream, mirrored = torch.Generator().manual_seed(0), set()
        for _ in range(20):
            clean, noisy, told, counts, level = known.item(stream)
            is_mirrored = not torch.equal(clean, values)
            mirrored.add(is_mirrored)
            unknown = part.flip(across) if is_mirrored else part
            assert torch.equal(clean, values.flip(across) if is_mirrored else values)
            assert torch.equal(clean[told < 0.5], noisy[told < 0.5])
            assert bool((told[unknown] == 1).all())
            assert not bool(counts[unknown].any())
            assert not bool(((counts > 0.5) & (told < 0.5)).any())
            assert 0.02 <= float(level) <= 6
        assert mirrored == {True, False}


def test_the_result_is_a_function_of_the_scan_whatever_is_around() -> None:
    model, hole = small_restorer(restores="denoise_hole"), marked()
    first = adapted(model, striped(), hole, np.eye(4))
    torch.manual_seed(5)
    with torch.inference_mode():
        again = adapted(model, striped(), hole, np.eye(4))
    assert first is not None
    assert again is not None
    for one, other in zip(
        first.networks["restorer"].parameters(), again.networks["restorer"].parameters(), strict=True
    ):
        assert torch.equal(one, other)


def test_samples_are_drawn_by_the_model_that_is_used_to_the_scan(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STEPS", 3)
    monkeypatch.setattr(sampled_tasks, "STEPS", 3)
    monkeypatch.setattr(sampled_tasks, "HOLE_STEPS", 4)
    affine, seen = torch.eye(4, dtype=torch.float64), []
    options = {
        "inpaint_mask": MetaTensor(marked().float(), affine=affine), "guard": "off", "samples": 2,
        "prior": small_restorer(restores="denoise_hole"),
    }  # fmt: skip
    volume, start = MetaTensor(500 * striped(), affine=affine), small_restorer(restores="inpaint")
    made = restore(volume, "inpaint", start, callback=lambda *done: seen.append(done), **options)
    plain = restore(volume, "inpaint", start, adapt=False, **options)
    assert seen == [(k, 11) for k in range(1, 12)]
    assert (made.provenance["adapted"], plain.provenance["adapted"]) == (True, False)
    assert made.samples is not None
    assert not torch.equal(made.samples, plain.samples)
    assert not any("too little" in remark for remark in (*made.remarks, *plain.remarks))


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
