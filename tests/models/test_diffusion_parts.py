"""Latent, cascaded, controlled and translating diffusion models: channels, conditioning, save and load, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from monai.data import MetaTensor

from medgen.checks import MedgenError
from medgen.models import DiffusionModel, DiffusionSpec, ModelSpec, load_model, save_model
from medgen.models.codec import Codec, VoxelCodec, lowered
from medgen.models.weights import joined_state, split_state
from medgen.networks.registry import build_network

SAMPLING = {"sampler": "dpmpp_2m", "num_inference_steps": 2, "schedule": "logsnr", "sigma_min": 0.05, "sigma_max": 10.0}


def content(dims: int = 3, diffused: int = 16, condition: int = 0, **changes: Any) -> dict[str, Any]:
    """A joint model of one label, Haar-packed, that is told nothing."""
    return {
        "name": "parts",
        "version": "1.0.0",
        "task": "joint",
        "grid": {"spacing": [1.0] * dims, "size": [8] * dims},
        "label_channels": [["ball", [1]]],
        "label_dropout": 1.0,
        "packing": "haar",
        "prediction_type": "edm",
        "sampling": SAMPLING,
        "channel_mean": [0.0] * diffused,
        "channel_std": [1.0] * diffused,
        "network": {
            "_target_": "ConditionalUNet", "spatial_dims": dims, "in_channels": diffused, "out_channels": diffused,
            "channels": [8, 16], "condition_channels": condition, "condition_embedding": 4,
        },
        **changes,
    }  # fmt: skip


def base() -> dict[str, Any]:
    return content(grid={"spacing": [2.0] * 3, "size": [4] * 3}, name="coarse") | {
        "network": content()["network"] | {"channels": [8]}
    }


def autoencoder() -> dict[str, Any]:
    return {
        "family": "autoencoder", "name": "latents", "version": "1.0.0", "task": "joint", "packing_levels": 1,
        "grid": {"spacing": [1.0] * 3, "size": [8] * 3}, "label_channels": [["ball", [1]]],
        "latent_mean": [0.0] * 4, "latent_std": [1.0] * 4,
        "network": {
            "_target_": "AutoencoderKL", "spatial_dims": 3, "in_channels": 16, "out_channels": 16, "channels": [8, 8],
            "num_res_blocks": 1, "attention_levels": [False, False], "with_encoder_nonlocal_attn": False,
            "with_decoder_nonlocal_attn": False, "norm_num_groups": 4, "latent_channels": 4,
        },
    }  # fmt: skip


CONTROLS = [
    {"name": "size", "kind": "class", "values": ["small", "large"], "shares": [0.5, 0.5]},
    {"name": "volume_ml", "kind": "number", "mean": 3.0, "std": 0.5, "quantiles": [2.0, 3.0, 4.0]},
]
ENCODER = {"_target_": "ControlEncoder", "context_dim": 8, "classes": [2], "numbers": 1, "text_dim": 0}


def kinds() -> dict[str, dict[str, Any]]:
    """One specification for each way to build a diffusion model."""
    latent = content(diffused=4, packing="none", autoencoder=autoencoder())
    latent["network"] |= {"channels": [8]}
    controlled = content(controls=CONTROLS, control_encoder=ENCODER, control_dropout=0.1)
    controlled["network"] |= {"context_dim": 8}
    two_levels = content(diffused=128, packing_levels=2)
    two_levels["network"] |= {"channels": [8]}
    steered = content(diffused=8, task="label_to_image", label_dropout=0.0)
    steered["control_network"] = {
        "_target_": "ControlUNet", "spatial_dims": 3, "in_channels": 8, "control_channels": 8, "channels": [8, 16]
    }  # fmt: skip
    return {
        "two dimensions": content(dims=2, diffused=8),
        "wavelet packets of two levels": two_levels,
        "latent": latent,
        "cascade": content(condition=16, task="super_resolve", label_dropout=0.0, base=base()),
        "controls": controlled,
        "control network": steered,
    }


def build(spec: DiffusionSpec) -> DiffusionModel:
    torch.manual_seed(0)
    networks = {name: build_network(form).eval().requires_grad_(False) for name, form in spec.networks().items()}
    for network in networks.values():
        for parameter in network.parameters():  # zero layers would hide what the networks are told
            parameter.add_(0.05 * torch.randn(parameter.shape))
    return DiffusionModel(spec, networks, torch.device("cpu"), "0" * 64)


def label_for(spec: DiffusionSpec) -> MetaTensor | None:
    if spec.task != "label_to_image":
        return None
    ids = torch.zeros(1, *spec.grid.size)
    ids[:, 2:5, 2:5] = 1
    return MetaTensor(ids, affine=torch.eye(4).double())


@pytest.mark.parametrize("kind", kinds())
def test_a_model_samples_the_same_after_saving_and_loading(kind: str, tmp_path: Path) -> None:
    spec = DiffusionSpec.from_dict(kinds()[kind])
    assert ModelSpec.from_dict(spec.to_dict()) == spec
    model = build(spec)
    first = model.sample(n=2, seed=5, label=label_for(spec))
    save_model(tmp_path / "model", spec, joined_state(model.networks))
    again = load_model(tmp_path / "model", device="cpu").sample(n=1, seed=6, label=label_for(spec))[0]
    for key in first[1]:
        assert first[1][key].shape == (1, *spec.grid.size)
        assert torch.equal(first[1][key].as_tensor(), again[key].as_tensor()), key
    assert not torch.equal(first[0]["image"].as_tensor(), first[1]["image"].as_tensor())


def test_a_run_folder_points_to_its_model(tmp_path: Path) -> None:
    spec = DiffusionSpec.from_dict(content())
    save_model(tmp_path / "run" / "model", spec, joined_state(build(spec).networks))
    with pytest.raises(MedgenError, match=r"Give '.*run/model'"):
        load_model(tmp_path / "run")


def test_channels_that_cannot_be_normalised_are_refused() -> None:
    with pytest.raises(MedgenError, match=r"multiples of their 2 groups.*Got 9"):
        build_network(content()["network"] | {"channels": [8, 9]})


def test_weights_of_several_networks_are_joined_and_split() -> None:
    spec = DiffusionSpec.from_dict(kinds()["cascade"])
    networks = {name: build_network(form) for name, form in spec.networks().items()}
    assert set(networks) == {"denoiser", "base"}
    parts = split_state(networks, joined_state(networks))
    for name, network in networks.items():
        assert parts[name].keys() == network.state_dict().keys()


def test_conditions_change_the_sample_and_are_recorded() -> None:
    model = build(DiffusionSpec.from_dict(kinds()["controls"]))
    small, large = (model.sample(seed=1, conditions={"size": size})[0] for size in ("small", "large"))
    assert not torch.equal(small["image"].as_tensor(), large["image"].as_tensor())
    made = small["image"].meta["provenance"]["conditions"]
    assert made["size"] == "small"
    assert 2 <= made["volume_ml"] <= 4, "what is not stated is drawn from the distribution of training"
    guided = model.sample(seed=1, conditions={"size": "small"}, guidance_scale=3.0)[0]
    assert not torch.equal(small["image"].as_tensor(), guided["image"].as_tensor())
    with pytest.raises(MedgenError, match="'size' must be one of"):
        model.sample(conditions={"size": "huge"})
    with pytest.raises(MedgenError, match=r"must lie in 2\.\.4"):
        model.sample(conditions={"volume_ml": 9})


def test_a_control_network_is_told_the_label() -> None:
    model = build(DiffusionSpec.from_dict(kinds()["control network"]))
    label = label_for(model.spec)
    other = label * 0
    one, two = (model.sample(seed=1, label=given)[0]["image"].as_tensor() for given in (label, other))
    assert not torch.equal(one, two)


def test_a_cascade_draws_on_its_base() -> None:
    spec = DiffusionSpec.from_dict(kinds()["cascade"])
    model = build(spec)
    before = model.sample(seed=3)[0]["image"].as_tensor()
    with torch.no_grad():
        next(model.networks["base"].parameters()).mul_(2)
    assert not torch.equal(before, model.sample(seed=3)[0]["image"].as_tensor())


def test_low_resolution_is_the_mean_of_blocks_and_the_label_of_most() -> None:
    codec = VoxelCodec(DiffusionSpec.from_dict(base()))
    image = torch.arange(512.0).reshape(1, 1, 8, 8, 8) / 512
    label = torch.zeros(1, 1, 8, 8, 8)
    label[..., :2, :2, :2] = 1
    label[..., 4, 4, 4] = 1  # one voxel of eight
    low = lowered(codec, image, label, [4, 4, 4])
    assert low.shape == (1, 2, 4, 4, 4)
    assert float(low[0, 0, 0, 0, 0]) == pytest.approx(float(image[0, 0, :2, :2, :2].mean()))
    assert low[0, 1].sum() == 1


@pytest.mark.parametrize("present", [[1.0, 1.0], [1.0, 0.0], [0.0, 1.0]])
def test_a_missing_source_is_zero_and_flagged(present: list[float]) -> None:
    spec = DiffusionSpec.from_dict(
        content(diffused=8, condition=18, task="translate", label_channels=[], label_dropout=0.0)
        | {"source_modalities": ["T1w", "T2w"], "modality": "FLAIR"}
    )
    source = torch.rand(1, 2, 8, 8, 8)
    given = Codec(spec).given({"source": source, "present": torch.tensor([present])}, (8, 8, 8))
    assert given.condition.shape == (1, 18, 4, 4, 4)
    assert given.condition[0, 16:, 0, 0, 0].tolist() == present
    for k, there in enumerate(present):
        assert bool(given.condition[0, 8 * k : 8 * k + 8].any()) == bool(there)
    model = build(spec)
    known = {"source": source[0], "present": torch.tensor(present)}
    image, label = model.produce(known, (8, 8, 8), 1, model.settings())
    assert label is None
    assert image is not None
    assert image.shape == (1, 8, 8, 8)
    with pytest.raises(MedgenError, match=r"works on given images \(T1w, T2w\)"):
        model.sample()


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"base": base()}, "'base' must be null for task 'joint'"),
        (
            {"task": "super_resolve", "label_dropout": 0.0, "base": base() | {"task": "image", "label_channels": []}},
            "must",
        ),
        ({"source_modalities": ["T1w"]}, "'source_modalities' must be empty"),
        ({"controls": CONTROLS}, "'control_encoder' must be a network with controls"),
        ({"family": "diffusoin"}, "Did you mean 'diffusion'"),
        ({"autoencoder": autoencoder()}, "'packing' must be none with an autoencoder"),
        ({"packing_levels": 9}, "'packing_levels' must be an integer in 1..4"),
        ({"label_dropout": 0.0}, "above 0 for task 'joint'"),
        ({"channels": ["a", "b"]}, "'channels' must be 1 names"),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(MedgenError) as caught:
        ModelSpec.from_dict(content() | changes)
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_label_that_would_not_be_heeded_is_refused() -> None:
    model = build(DiffusionSpec.from_dict(content(dims=3)))
    with pytest.raises(MedgenError, match="told no label map"):
        model.sample(label=MetaTensor(torch.zeros(1, 8, 8, 8), affine=torch.eye(4).double()))
    with pytest.raises(MedgenError, match="guidance_scale must be 1"):
        model.sample(guidance_scale=2.0)
