"""Restorers: what they are told, windows, packing, and refusals."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from medgen.checks import MedgenError
from medgen.models.restorer import WINDOW, RestorerModel, predicted
from medgen.models.restorer_spec import RestorerSpec
from medgen.models.specification import ModelSpec
from medgen.networks import build_network

CONTENT: dict[str, Any] = {
    "family": "restorer",
    "name": "small-restorer",
    "version": "1.0.0",
    "task": "restore",
    "grid": {"spacing": [1.0, 1.0, 1.0], "size": [16, 16, 16]},
    "restores": "denoise",
    "degradations": [{"rician": {"level": [0.01, 0.1]}}],
    "strength": [0.01, 0.1],
    "interval_factor": 1.5,
}
NETWORKS: dict[str, dict[str, Any]] = {
    "RestorationUNet": {"channels": [8, 16], "num_res_blocks": 1},
    "UNet": {"channels": [4, 8], "strides": [2], "num_res_units": 1},
    "Restormer": {"dim": 4, "num_blocks": [1, 1], "heads": [1, 1], "num_refinement_blocks": 1},
    "SwinUNETR": {"feature_size": 12, "depths": [1, 1, 1, 1]},
}


def small_restorer(network: str = "RestorationUNet", **fields: Any) -> RestorerModel:
    """A restorer with random weights."""
    content = {**CONTENT, **fields}
    factor = 8 if content.get("packing", "haar") == "haar" else 1
    inputs = factor * (2 if content["restores"] == "inpaint" else 1) + 1
    content["network"] = {
        "_target_": network, "spatial_dims": 3, "in_channels": inputs,
        "out_channels": factor * (2 if content.get("variance", True) else 1), **NETWORKS[network],
    }  # fmt: skip
    if content["restores"] != "denoise":
        content |= {"degradations": content.get("given", []), "strength": [0.0, 0.0]}
    content.pop("given", None)
    spec = ModelSpec.from_dict(content)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        built = build_network(spec.networks()["restorer"])
        for parameter in built.parameters():
            if not parameter.any():
                torch.nn.init.normal_(parameter, std=0.02)
    return RestorerModel(spec, {"restorer": built.eval().requires_grad_(False)}, torch.device("cpu"), "0" * 64)


def noise(*size: int) -> Tensor:
    return torch.rand(size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("packing", ["haar", "none"])
def test_any_network_restores_any_size(network: str, packing: str) -> None:
    if network == "SwinUNETR" and packing == "haar":
        pytest.skip("needs a patch of 128")
    size = 64 if network == "SwinUNETR" else 16
    model = small_restorer(network, packing=packing, grid={"spacing": [1.0] * 3, "size": [size] * 3})
    mean, std = model.restored(noise(1, 9, 14, 11), 0.05)
    assert mean.shape == (1, 9, 14, 11)
    assert std is not None
    assert std.shape == mean.shape
    assert bool((std > 0).all())
    assert bool(torch.isfinite(mean).all())


def test_windows_agree_with_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is normalised, so that windows differ near their borders alone."""
    model, image = small_restorer(), noise(1, 48, 20, 20)
    whole, _ = model.restored(image, 0.05)
    monkeypatch.setitem(WINDOW, 3, 32)
    seen: list[tuple[int, int]] = []
    pieces, _ = model.restored(image, 0.05, callback=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 2), (2, 2)]
    torch.testing.assert_close(pieces[:, :8], whole[:, :8], atol=1e-5, rtol=0)
    assert float((pieces - whole).abs().mean()) < 0.05 * float((whole - image).abs().mean())


def test_the_strength_matters() -> None:
    model, image = small_restorer(), noise(1, 16, 16, 16)
    assert not torch.equal(model.restored(image, 0.01)[0], model.restored(image, 0.1)[0])


def test_a_hole_belongs_to_inpaint() -> None:
    image = noise(1, 16, 16, 16)
    with pytest.raises(MedgenError, match="inpaint_mask belongs to restorers of holes"):
        small_restorer().restored(image, 0.0, torch.ones(1, 16, 16, 16))
    filling = small_restorer(restores="inpaint")
    with pytest.raises(MedgenError, match="inpaint_mask belongs to restorers of holes"):
        filling.restored(image, 0.0)
    hole = torch.zeros(1, 16, 16, 16)
    hole[:, 4:9, 4:9, 4:9] = 1
    assert filling.restored(image, 0.0, hole)[0].shape == image.shape


def test_without_variance() -> None:
    model = small_restorer(variance=False, interval_factor=None)
    image = noise(2, 1, 16, 16, 16)
    mean, log_std = predicted(model.networks["restorer"], model.spec, image, torch.tensor([0.0, 0.1]))
    assert log_std is None
    assert mean.shape == image.shape
    assert model.restored(image[0], 0.0)[1] is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": "image"}, "task"),
        ({"interval_factor": 2.0, "variance": False}, "interval_factor|network.out_channels"),
        ({"grid": {"spacing": [1.0] * 3, "size": [16, 16, 15]}}, "multiples of 4"),
        ({"degradations": [{"rican": {}}]}, "rician"),
        ({"degradations": [{}]}, "at least one degradation"),
        ({"restores": "everything"}, "denoise"),
    ],
)
def test_what_cannot_be_meant_is_refused(change: dict[str, Any], message: str) -> None:
    content = small_restorer().spec.to_dict() | change
    with pytest.raises(MedgenError, match=message):
        ModelSpec.from_dict(content)


def test_a_network_that_is_no_regression_network_is_refused() -> None:
    content = small_restorer().spec.to_dict()
    content["network"] = {**content["network"], "_target_": "AutoencoderKL"}
    with pytest.raises(MedgenError, match="RestorationUNet, UNet"):
        ModelSpec.from_dict(content)


def test_it_has_nothing_to_sample() -> None:
    model = small_restorer()
    assert isinstance(model.spec, RestorerSpec)
    with pytest.raises(MedgenError, match="restores scans and has nothing to sample"):
        model.sample()
    with pytest.raises(MedgenError, match="has no 'sampler'"):
        model.settings(sampler="ddim")
