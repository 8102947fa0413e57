"""RandDegrade: what is written down, prob, pairs, inverse and batches; the rest is in the conformance tests."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from monai.data import DataLoader, Dataset, MetaTensor
from monai.transforms import Compose, Flipd, Rotate90d

from medgen.checks import MedgenError
from medgen.transforms import RandDegrade, RandDegraded

STEPS = {"through_plane": {"slice_spacing_mm": (4.0, 6.0), "axis": 2}, "rician": {"level": 0.05}}


def scan(seed: int = 0) -> MetaTensor:
    values = torch.rand(1, 8, 9, 12, generator=torch.Generator().manual_seed(seed)) * 500
    return MetaTensor(values, affine=torch.diag(torch.tensor([1.0, 1.0, 2.0, 1.0], dtype=torch.float64)))


def test_what_was_drawn_is_in_the_applied_operations() -> None:
    image = scan()
    worse = RandDegrade(STEPS).set_random_state(seed=1)(image)
    entry = worse.applied_operations[-1]
    assert entry["class"] == "RandDegrade"
    slices, noise = entry["extra_info"]["degradations"]
    operator = slices["operators"][0]
    assert slices["name"] == operator["name"] == "through_plane"
    assert 4 <= operator["slice_spacing_mm"] <= 6
    assert operator["spacing_mm"] == 2.0
    assert noise["noise"]["std"] == pytest.approx(0.05 * 500, rel=0.2)
    assert json.loads(worse.meta["provenance"]["degradations"]) == [slices, noise]
    assert image.applied_operations == []


def test_a_step_depends_on_the_one_before_and_its_noise_is_its_own() -> None:
    image = scan()
    once, twice = (RandDegrade(steps).set_random_state(seed=1)(image) for steps in (STEPS, {**STEPS, "blur": {}}))
    first = RandDegrade({"through_plane": STEPS["through_plane"]}).set_random_state(seed=1)(image)
    assert not torch.equal(once, first)
    assert not torch.equal(once, twice)
    assert (
        once.applied_operations[-1]["extra_info"]["degradations"][0]
        == (twice.applied_operations[-1]["extra_info"]["degradations"][0])
    )


def test_repeats_without_a_new_draw_and_leaves_the_image_when_it_does_not_act() -> None:
    image = scan()
    degrade = RandDegrade(STEPS).set_random_state(seed=3)
    first = degrade(image)
    assert torch.equal(degrade(image, randomize=False), first)
    assert not torch.equal(degrade(image), first)
    assert RandDegrade(STEPS, prob=0.0)(image) is image


def test_pairs_keep_the_clean_image() -> None:
    item = {"image": scan()}
    pair = RandDegraded(output_key="degraded", degradations=STEPS).set_random_state(seed=0)(item)
    assert pair["image"] is item["image"]
    assert not torch.equal(pair["degraded"], pair["image"])
    kept = RandDegraded(output_key="degraded", degradations=STEPS, prob=0.0)({**item, "degraded": "old"})
    assert kept["degraded"] is item["image"]


def test_inverse_of_a_composition_undoes_geometry_only() -> None:
    degrade = RandDegraded(degradations=STEPS)
    compose = Compose([Flipd("image", spatial_axis=0), degrade, Rotate90d("image")]).set_random_state(seed=0)
    item = {"image": scan()}
    result = compose(dict(item))
    back = compose.inverse(result)
    assert back["image"].applied_operations == []
    assert torch.allclose(back["image"].affine, item["image"].affine)
    same_draw = Compose([Flipd("image", spatial_axis=0), RandDegraded(degradations=STEPS)]).set_random_state(seed=0)
    expected = same_draw(dict(item))["image"].as_tensor().flip(1)
    assert torch.equal(back["image"].as_tensor(), expected)
    assert not torch.allclose(back["image"].as_tensor().flip(1), expected, atol=50), "a flip would be seen"
    assert not torch.allclose(back["image"].as_tensor(), item["image"].as_tensor(), atol=50), "still degraded"
    idle = Compose([Flipd("image", spatial_axis=0), RandDegraded(degradations=STEPS, prob=0.0)])
    assert torch.equal(idle.inverse(idle(dict(item)))["image"], item["image"])


def test_batches_of_different_draws_are_collated() -> None:
    data = Dataset([{"image": scan(i)} for i in range(2)], RandDegraded(degradations=["rigid_motion", "bias_field"]))
    (batch,) = DataLoader(data, batch_size=2)
    assert batch["image"].shape == (2, 1, 8, 9, 12)


def test_channels_share_the_degradation() -> None:
    image = scan().repeat(2, 1, 1, 1)
    worse = RandDegrade("bias_field").set_random_state(seed=0)(image)
    assert torch.equal(worse[0], worse[1])


def test_what_cannot_be_meant_is_refused() -> None:
    with pytest.raises(MedgenError, match=r"RandDegrade: degradations must be one of .* got 'blurr'"):
        RandDegrade(["blurr"])
    with pytest.raises(MedgenError, match="RandDegraded: degradation 'blur' has no range 'sigma', only fwhm_mm"):
        RandDegraded(degradations={"blur": {"sigma": 1}})
    with pytest.raises(MedgenError, match=r"RandDegrade: degradations must name at least one"):
        RandDegrade([])
    with pytest.raises(MedgenError, match=r"RandDegrade: image must be finite"):
        RandDegrade()(np.full((1, 4, 4), np.nan))
    with pytest.raises(MedgenError, match=r"RandDegrade: image must be at least 0 for 'rician', which gives .* Got -1"):
        RandDegrade(["blur", "rician"])(-torch.ones(1, 4, 4))
    with pytest.raises(MedgenError, match=r"RandDegrade: image must be at least 0 for 'poisson', .* counts. Got -1"):
        RandDegrade("poisson")(-torch.ones(1, 4, 4))
    with pytest.raises(MedgenError, match=r"RandDegraded: gibbs.keep must be above 0 and at most 1. Got 1.5"):
        RandDegraded(degradations={"gibbs": {"keep": 1.5}})


def test_ringing_below_zero_may_be_followed_by_a_magnitude() -> None:
    image = torch.zeros(1, 16, 16)
    image[:, 4:12, 4:12] = 1
    assert float(RandDegrade("gibbs")(image).min()) < 0
    assert float(RandDegrade(["gibbs", "rician"])(image).min()) >= 0


@pytest.mark.parametrize("before", ["gibbs", "gaussian", "parallel_beam"])
def test_values_below_zero_count_as_zero_for_poisson(before: str) -> None:
    image = torch.zeros(1, 16, 16)
    image[:, 4:12, 4:12] = 1
    lowest = [
        float(RandDegrade(steps).set_random_state(seed=1)(image).min()) for steps in (before, [before, "poisson"])
    ]
    assert lowest[0] < 0
    assert lowest[1] == 0
