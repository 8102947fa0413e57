"""InpaintRegion: what it hands to the restoration layer, and grids."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from medgen.checks import MedgenError
from medgen.transforms import InpaintRegion, InpaintRegiond, models


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Stands in for the restoration layer: fills the hole with noise of the seed."""
    calls: list[dict[str, Any]] = []

    def inpaint(volume: MetaTensor, inpaint_mask: MetaTensor, model: Any, **options: Any) -> MetaTensor:
        calls.append({"model": model, **options})
        noise = torch.rand(volume.shape, generator=torch.Generator().manual_seed(options["seed"]))
        return MetaTensor(torch.where(inpaint_mask > 0.5, noise, volume).as_tensor(), affine=volume.affine)

    module = ModuleType("medgen.restoration.inpaint")
    module.inpaint = inpaint  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "medgen.restoration.inpaint", module)
    monkeypatch.setitem(sys.modules, "medgen.restoration", ModuleType("medgen.restoration"))
    monkeypatch.setattr(models, "_load", lambda name, device: f"{name} on {device}")
    return calls


def scan() -> tuple[MetaTensor, MetaTensor]:
    affine = torch.diag(torch.tensor([-1.0, 2.0, 3.0, 1.0], dtype=torch.float64))
    mask = torch.zeros(1, 6, 7, 8)
    mask[:, 2:4, 2:4, 2:4] = 1
    return MetaTensor(torch.rand(1, 6, 7, 8), affine=affine), MetaTensor(mask, affine=affine)


def test_hands_on_model_mode_samples_and_seed(asked: list[dict[str, Any]]) -> None:
    image, mask = scan()
    transform = InpaintRegion("some-model", mode="sample", samples=8, device="cpu").set_random_state(seed=1)
    filled = transform(image, mask)
    (call,) = asked
    assert {k: call[k] for k in ("model", "mode", "samples")} == {
        "model": "some-model on cpu", "mode": "sample", "samples": 8
    }  # fmt: skip
    assert filled.meta["provenance"]["seed"] == call["seed"]
    assert filled.meta["synthetic"] is True
    assert torch.equal(filled[mask == 0], image[mask == 0])
    assert not torch.equal(filled[mask == 1], image[mask == 1])
    assert torch.equal(filled.affine, image.affine)


def test_dictionary_twin_is_equal_and_keeps_the_mask(asked: list[dict[str, Any]]) -> None:
    image, mask = scan()
    data = InpaintRegiond(model="m").set_random_state(seed=5)({"image": image, "inpaint_mask": mask})
    assert torch.equal(data["image"], InpaintRegion("m").set_random_state(seed=5)(image, mask))
    assert data["inpaint_mask"] is mask


def test_prob_zero_is_the_input(asked: list[dict[str, Any]]) -> None:
    image, mask = scan()
    assert InpaintRegion("m", prob=0.0)(image, mask) is image
    assert not asked


def test_a_mask_without_affine_is_taken_on_the_images_grid(asked: list[dict[str, Any]]) -> None:
    image, mask = scan()
    assert InpaintRegion("m")(image, np.asarray(mask)).shape == image.shape


def test_other_grids_and_missing_keys_are_refused(asked: list[dict[str, Any]]) -> None:
    image, mask = scan()
    with pytest.raises(MedgenError, match=r"inpaint_mask must lie on the image's grid. Got shapes \(1, 6, 7, 4\)"):
        InpaintRegion("m")(image, mask[..., :4])
    with pytest.raises(MedgenError, match=r"InpaintRegiond: key 'inpaint_mask' is missing; found \('image',\)"):
        InpaintRegiond(model="m")({"image": image})
    untouched = InpaintRegiond(model="m", allow_missing_keys=True)({"image": image})
    assert untouched["image"] is image
