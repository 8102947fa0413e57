"""Bundles, diffusers folders and weight files become model folders that sample; nothing in them runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.networks.nets import AutoencoderKL, DiffusionModelUNet
from safetensors.torch import save_file
from torch import Tensor, nn

import medgen
from medgen.checks import MedgenError
from medgen.models.interop.diffusers import diffusers_form, inexact, read_diffusers, timesteps_form
from medgen.models.interop.importer import import_model
from medgen.models.interop.monai_bundle import bundle_scheduler, bundle_value, read_bundle_config
from medgen.networks.registry import build_network
from tests.models.interop.test_weights import former_weights

diffusers = pytest.importorskip("diffusers")

SPEC: dict[str, Any] = {
    "name": "imported",
    "grid": {"spacing": [1.0, 1.0], "size": [16, 16]},
    "sampling": {
        "sampler": "ddim", "num_inference_steps": 2, "schedule": "logsnr", "sigma_min": 0.05, "sigma_max": 50.0
    },
}  # fmt: skip
LEVELS = {"num_res_blocks": 1, "attention_levels": [False, True], "norm_num_groups": 4}
UNET = {"spatial_dims": 2, "in_channels": 1, "out_channels": 1, "num_head_channels": 4, **LEVELS}
LATENT_UNET = UNET | {"in_channels": 2, "out_channels": 2}
KL = {"spatial_dims": 2, "latent_channels": 2, **LEVELS}


def random_state(network: nn.Module, seed: int = 0) -> dict[str, Tensor]:
    """The network with weights that are not zero anywhere."""
    stream = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=stream)
    return network.eval().state_dict()


def write_bundle(folder: Path, config: dict[str, Any], states: dict[str, dict[str, Tensor]]) -> Path:
    (folder / "configs").mkdir(parents=True)
    (folder / "models").mkdir()
    (folder / "configs" / "inference.json").write_text(json.dumps(config), encoding="utf-8")
    for name, state in states.items():
        torch.save(state, folder / "models" / name)
    return folder


BUNDLE: dict[str, Any] = {
    "imports": ["$import torch"],
    "spatial_dims": 2,
    "latent": {"channels": 2},
    "device": "$torch.device('cpu')",
    "autoencoder_def": {
        "_target_": "monai.networks.nets.AutoencoderKL", "spatial_dims": "@spatial_dims", "channels": [8, 8],
        "latent_channels": "@latent#channels", **LEVELS,
    },
    "network_def": {
        "_target_": "monai.networks.nets.DiffusionModelUNet", "spatial_dims": "$@spatial_dims", "channels": [8, 8],
        "in_channels": "@latent#channels", "out_channels": "@latent::channels", "num_head_channels": 4, **LEVELS,
    },
    "network": "$@network_def.to(@device)",
    "scale_factor": 0.5,
    "noise_scheduler": {
        "_target_": "monai.networks.schedulers.DDIMScheduler", "num_train_timesteps": 1000,
        "schedule": "scaled_linear_beta", "beta_start": 0.0015, "beta_end": 0.0195, "clip_sample": False,
    },
}  # fmt: skip


def test_a_latent_diffusion_bundle_samples(tmp_path: Path) -> None:
    unet = DiffusionModelUNet(channels=[8, 8], **LATENT_UNET)
    coder = AutoencoderKL(channels=[8, 8], **KL)
    states = {"diffusion.pt": {"unet_state_dict": random_state(unet)}, "autoencoder.pt": random_state(coder, 1)}
    bundle = write_bundle(tmp_path / "bundle", BUNDLE, states)
    import_model(bundle, tmp_path / "model", SPEC)
    model: Any = medgen.load_model(tmp_path / "model", device="cpu")
    assert model.spec.timesteps["schedule"] == "scaled_linear_beta"
    assert model.spec.autoencoder.latent_std == (2.0, 2.0)
    first, again = (model.sample(1, seed=3)[0]["image"] for _ in range(2))
    assert first.shape == (1, 16, 16)
    assert torch.equal(first, again)
    sigma = torch.tensor([1.7], dtype=torch.float64)
    x = torch.randn(1, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    time = model.denoiser.times(sigma)
    noise = unet(x / (1 + sigma.float() ** 2).sqrt(), timesteps=time.float())
    torch.testing.assert_close(model.denoiser(x, sigma), x - sigma.float() * noise, rtol=1e-4, atol=1e-4)
    decoded = model.codec.latent.decode(x, (16, 16))
    torch.testing.assert_close(decoded, coder.decode(x / 0.5), rtol=1e-4, atol=1e-5)


def test_former_weights_in_a_bundle_of_the_former_names(tmp_path: Path) -> None:
    config = {
        "network_def": {
            "_target_": "generative.networks.nets.DiffusionModelUNet", "num_channels": [8, 8],
            "num_class_embeds": 3, **UNET,
        },
        "scheduler": {"_target_": "generative.networks.schedulers.DDPMScheduler", "beta_schedule": "linear"},
    }  # fmt: skip
    bundle = write_bundle(tmp_path / "bundle", config, {"model.pt": former_weights("unet_2d_classes")})
    import_model(bundle, tmp_path / "model", SPEC)
    spec: Any = medgen.load_model(tmp_path / "model", device="cpu").spec
    assert spec.network["channels"] == [8, 8]
    assert (spec.timesteps["schedule"], spec.prediction_type) == ("linear_beta", "epsilon")


def test_rectified_flow_of_monai_is_turned_round(tmp_path: Path) -> None:
    network = DiffusionModelUNet(channels=[8, 8], **UNET)
    state = random_state(network)
    config = {
        "network_def": {"_target_": "DiffusionModelUNet", "channels": [8, 8], **UNET},
        "noise_scheduler": {"_target_": "monai.networks.schedulers.rectified_flow.RFlowScheduler"},
    }
    bundle = write_bundle(tmp_path / "bundle", config, {"model.pt": state})
    import_model(bundle, tmp_path / "model", SPEC)
    model: Any = medgen.load_model(tmp_path / "model", device="cpu")
    z = torch.randn(1, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    sigma = torch.tensor([3.0], dtype=torch.float64)  # time 0.75
    wanted = z + 0.75 * network(z, timesteps=torch.tensor([750.0]))
    torch.testing.assert_close(model.denoiser(z * 4, sigma), wanted, rtol=1e-4, atol=1e-5)


def test_expressions_are_refused_and_can_be_stated(tmp_path: Path) -> None:
    config = json.loads(json.dumps(BUNDLE)) | {"evil": "$__import__('pathlib').Path('touched').touch()"}
    config["network_def"]["channels"] = "$[8] * 2"
    states = {
        "diffusion.pt": random_state(DiffusionModelUNet(channels=[8, 8], **LATENT_UNET)),
        "autoencoder.pt": random_state(AutoencoderKL(channels=[8, 8], **KL)),
    }
    bundle = write_bundle(tmp_path / "bundle", config, states)
    with pytest.raises(MedgenError, match=r"field 'network_def.channels' of the bundle .* Got the expression '\$\[8\]"):
        import_model(bundle, tmp_path / "model", SPEC)
    stated = {"networks": {"denoiser": {"key": "network_def", "arguments": {"channels": [8, 8]}}}}
    import_model(bundle, tmp_path / "model", SPEC | stated)
    assert medgen.load_model(tmp_path / "model", device="cpu").spec.name == "imported"
    assert not Path("touched").exists()


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("@nothing", "refers to '@nothing', which is not there"),
        ("@loop", "refers to itself"),
        ("%file.json#a", "must be a plain value"),
        ("$1 + 1", "is not evaluated"),
    ],
)
def test_what_is_no_plain_value_is_refused(value: str, words: str) -> None:
    with pytest.raises(MedgenError, match=words):
        bundle_value({"loop": "@loop"}, value, "network_def.channels")


def test_other_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MedgenError, match="is no MONAI bundle"):
        read_bundle_config(tmp_path)
    with pytest.raises(MedgenError, match="no network was found"):
        import_model(tmp_path, tmp_path / "model", SPEC)
    assert bundle_scheduler({"network_def": {"_target_": "x"}}) is None
    with pytest.raises(MedgenError, match="does not say how noise was added"):
        config = {"network_def": {"_target_": "DiffusionModelUNet", "channels": [8, 8], **UNET}}
        state = random_state(DiffusionModelUNet(channels=[8, 8], **UNET))
        import_model(write_bundle(tmp_path / "b", config, {"model.pt": state}), tmp_path / "model", SPEC)


DIFFUSERS_UNET: dict[str, Any] = {
    "sample_size": 16, "in_channels": 1, "out_channels": 1, "block_out_channels": (8, 16), "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "norm_num_groups": 4, "attention_head_dim": 4,
}  # fmt: skip


@pytest.mark.parametrize("options", [{}, {"num_class_embeds": 3}, {"norm_eps": 1e-6, "attention_head_dim": None}])
def test_an_unconditional_diffusers_unet_is_monais(tmp_path: Path, options: dict[str, Any]) -> None:
    theirs = diffusers.UNet2DModel(**DIFFUSERS_UNET | options).eval()
    random_state(theirs)
    theirs.save_pretrained(tmp_path)
    form, state = read_diffusers(tmp_path)
    assert form["_target_"] == "DiffusionModelUNet"
    ours = build_network(form).eval()
    ours.load_state_dict(state)
    x, t = torch.randn(2, 1, 16, 16, generator=torch.Generator().manual_seed(0)), torch.tensor([3, 700])
    classes = torch.tensor([0, 2]) if "num_class_embeds" in options else None
    with torch.no_grad():
        wanted = theirs(x, t, class_labels=classes).sample
        torch.testing.assert_close(ours(x, t, class_labels=classes), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"freq_shift": 1},
        {"flip_sin_to_cos": False},
        {"downsample_padding": 0},
        {"act_fn": "gelu"},
        {"resnet_time_scale_shift": "scale_shift"},
        {"down_block_types": ("DownBlock2D", "ResnetDownsampleBlock2D")},
    ],
)
def test_what_monai_cannot_compute_stays_diffusers(options: dict[str, Any]) -> None:
    config = {"_class_name": "UNet2DModel", **DIFFUSERS_UNET, **options}
    assert inexact(config)
    assert diffusers_form(config, "config.json")[0]["_target_"] == "DiffusersUNet"


def test_a_diffusers_pipeline_samples(tmp_path: Path) -> None:
    unet = diffusers.UNet2DModel(
        **DIFFUSERS_UNET | {"in_channels": 2, "out_channels": 2, "freq_shift": 1, "sample_size": 8}
    ).eval()
    vae = diffusers.AutoencoderKL(
        in_channels=1, out_channels=1, latent_channels=2, block_out_channels=(8, 8), norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, scaling_factor=0.25,
        shift_factor=0.5,
    ).eval()  # fmt: skip
    random_state(unet)
    random_state(vae, 1)
    unet.save_pretrained(tmp_path / "pipe" / "unet", safe_serialization=False)
    vae.save_pretrained(tmp_path / "pipe" / "vae")
    diffusers.DDIMScheduler(prediction_type="v_prediction").save_pretrained(tmp_path / "pipe" / "scheduler")
    import_model(tmp_path / "pipe", tmp_path / "model", SPEC)
    model: Any = medgen.load_model(tmp_path / "model", device="cpu")
    assert model.sample(1, seed=0)[0]["image"].shape == (1, 16, 16)
    z, sigma = torch.randn(1, 2, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0.9]).double()
    time, alpha = model.denoiser.times(sigma).float(), (1 + sigma.float() ** 2).rsqrt()
    with torch.no_grad():
        velocity = unet(z, time).sample
        wanted = alpha * z - sigma.float() * alpha * velocity
        torch.testing.assert_close(model.denoiser(z / alpha, sigma), wanted, rtol=1e-4, atol=1e-4)
        picture = vae.decode(z / 0.25 + 0.5).sample / 2 + 0.5  # diffusers' images lie in -1..1
        torch.testing.assert_close(model.codec.latent.decode(z, (16, 16)), picture, rtol=1e-4, atol=1e-4)
        latent = (vae.encode(2 * picture - 1).latent_dist.mean - 0.5) * 0.25
        torch.testing.assert_close(model.codec.latent.encode(picture), latent, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"timestep_type": "continuous"}, "timestep_type 'continuous'"),
        ({"_class_name": "CosineDPMSolverMultistepScheduler"}, "CosineDPMSolverMultistepScheduler"),
        ({"prediction_type": "flow_prediction"}, "prediction_type"),
    ],
)
def test_scheduler_files_that_the_adapter_refuses_are_refused(config: dict[str, Any], words: str) -> None:
    with pytest.raises(MedgenError, match=words):
        timesteps_form({"_class_name": "EulerDiscreteScheduler", **config}, "scheduler_config.json")


def test_a_text_conditional_diffusers_unet_is_kept_and_equal(tmp_path: Path) -> None:
    theirs = diffusers.UNet2DConditionModel(
        sample_size=8, in_channels=1, out_channels=1, block_out_channels=(8, 8), layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), norm_num_groups=4, cross_attention_dim=6,
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), attention_head_dim=4,
    ).eval()  # fmt: skip
    theirs.save_pretrained(tmp_path)
    form, state = read_diffusers(tmp_path)
    ours = build_network(form).eval()
    ours.load_state_dict(state)
    x, t, context = torch.randn(2, 1, 8, 8), torch.tensor([3, 700]), torch.randn(2, 3, 6)
    with torch.no_grad():
        assert torch.equal(ours(x, t, context), theirs(x, t, context).sample)


def test_a_file_of_weights_needs_its_network_stated(tmp_path: Path) -> None:
    network = AutoencoderKL(channels=[8, 8], **KL)
    save_file(random_state(network), tmp_path / "vae.safetensors")
    with pytest.raises(MedgenError, match="no network was found"):
        import_model(tmp_path / "vae.safetensors", tmp_path / "model", SPEC)
    plain = {key: value for key, value in SPEC.items() if key != "sampling"}
    form = {"_target_": "AutoencoderKL", "channels": [8, 8], **KL}
    import_model(tmp_path / "vae.safetensors", tmp_path / "model", plain | {"networks": {"autoencoder": form}})
    model: Any = medgen.load_model(tmp_path / "model", device="cpu")
    assert model.spec.family == "autoencoder"
    image = torch.rand(1, 1, 16, 16)
    torch.testing.assert_close(model.encode(image), network.encode(image)[0], rtol=1e-4, atol=1e-5)
