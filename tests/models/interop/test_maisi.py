"""MAISI's networks: registered, read from their checkpoints' layouts, and told spacing and control as they expect."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from monai.networks.schedulers import DDPMScheduler, RFlowScheduler
from torch import Tensor, nn

from medgen.models.interop.schedulers import denoiser_from_scheduler
from medgen.models.interop.weights import fit_weights, read_weights
from medgen.networks.registry import build_network, parameter_shapes

LEVELS = {"num_channels": [8, 8], "num_res_blocks": 1, "attention_levels": [False, True], "norm_num_groups": 4}
UNET: dict[str, Any] = {
    "_target_": "DiffusionModelUNetMaisi", "spatial_dims": 3, "in_channels": 2, "out_channels": 2,
    "num_head_channels": [0, 4], "include_spacing_input": True, **LEVELS,
}  # fmt: skip
CODER: dict[str, Any] = {
    "_target_": "AutoencoderKlMaisi", "spatial_dims": 3, "in_channels": 1, "out_channels": 1, "latent_channels": 2,
    "norm_float16": False, "num_splits": 2, "save_mem": False, **LEVELS | {"num_res_blocks": [1, 1]},
    "attention_levels": [False, False],
}  # fmt: skip
CONTROL: dict[str, Any] = {
    "_target_": "ControlNetMaisi", "spatial_dims": 3, "in_channels": 2, "num_head_channels": [0, 4],
    "conditioning_embedding_num_channels": [4, 4], "use_checkpointing": False, **LEVELS,
}  # fmt: skip


def network(form: dict[str, Any], seed: int = 0) -> nn.Module:
    """A registered network, no weight of which is zero."""
    built = build_network(form).eval().requires_grad_(False)
    stream = torch.Generator().manual_seed(seed)
    for parameter in built.parameters():
        parameter.copy_(0.1 * torch.randn(parameter.shape, generator=stream))
    return built


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("form", "key", "suffix"),
    [(UNET, "unet_state_dict", ".pt"), (CODER, None, ".pt"), (CONTROL, "controlnet_state_dict", ".pt")],
    ids=["diffusion", "autoencoder", "controlnet"],
)
def test_checkpoints_in_maisis_layouts(form: dict[str, Any], key: str | None, suffix: str, tmp_path: Path) -> None:
    state = network(form).state_dict()
    content = state if key is None else {key: state, "scale_factor": torch.tensor(1.1), "epoch": 7}
    torch.save(content, tmp_path / f"w{suffix}")
    fitted = fit_weights(read_weights(tmp_path / f"w{suffix}"), parameter_shapes(form), "w")
    other = network(form, seed=2)
    other.load_state_dict(fitted)
    assert all(torch.equal(tensor, state[name]) for name, tensor in other.state_dict().items())


@pytest.mark.parametrize("scheduler", [DDPMScheduler(clip_sample=False), RFlowScheduler()], ids=["ddpm", "rflow"])
def test_spacing_and_control_reach_the_network(scheduler: Any) -> None:
    unet, control = network(UNET), network(CONTROL, 3)
    denoise, found = denoiser_from_scheduler(unet, scheduler)
    sigma = torch.tensor([0.8], dtype=torch.float64)
    z, time = draw(1, 2, 8, 8, 8), found.timesteps(sigma).float()
    down, middle = control(z, time, draw(1, 1, 16, 16, 16))
    told = {
        "spacing_tensor": torch.tensor([[1.0, 1.0, 2.0]]),
        "down_block_additional_residuals": down,
        "mid_block_additional_residual": middle,
    }
    output = unet(z, time, **{k: v.clone() if isinstance(v, Tensor) else v for k, v in told.items()})
    if isinstance(scheduler, RFlowScheduler):
        wanted, x = z + 0.8 / 1.8 * output, z * 1.8
    else:
        alpha = (1 + sigma.float() ** 2).rsqrt()
        wanted, x = (z - sigma.float() * alpha * output) / alpha, z / alpha
    torch.testing.assert_close(denoise(x, sigma, told), wanted, rtol=1e-4, atol=1e-5)
    without = denoise(x, sigma, {"spacing_tensor": told["spacing_tensor"]})
    assert not torch.allclose(without, wanted, atol=1e-4)


def test_the_autoencoder_encodes_and_decodes() -> None:
    coder: Any = network(CODER)
    mean, std = coder.encode(draw(1, 1, 16, 16, 16))
    assert mean.shape == std.shape == (1, 2, 8, 8, 8)
    assert coder.decode(mean).shape == (1, 1, 16, 16, 16)
