"""Schedulers of MONAI and diffusers as denoisers: the clean estimate and whole runs equal theirs."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from monai.networks import schedulers as monai
from monai.networks.nets import DiffusionModelUNet
from torch import Tensor, nn

from medgen.checks import MedgenError
from medgen.diffusion.samplers import SAMPLERS
from medgen.diffusion.timesteps import ChainTimesteps, FlowTimesteps, make_timesteps
from medgen.models.interop.schedulers import adapt_scheduler, denoiser_from_scheduler

diffusers = pytest.importorskip("diffusers")
SHAPE = (2, 1, 8, 8)


def unet(**options: Any) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = DiffusionModelUNet(
            spatial_dims=2, in_channels=1, out_channels=1, channels=[8, 8], num_res_blocks=1, num_head_channels=4,
            attention_levels=[False, True], norm_num_groups=4, **options,
        )  # fmt: skip
        for parameter in network.parameters():
            parameter.data += 0.05 * torch.randn(parameter.shape)  # MONAI starts some at zero
    return network.eval().requires_grad_(False)


def start(seed: int = 0) -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))


def close(found: Tensor, wanted: Tensor, tolerance: float = 2e-5) -> None:
    scale = float(wanted.abs().max())
    assert float((found - wanted).abs().max()) < tolerance * scale


MONAI_CHAINS = [
    monai.DDPMScheduler(clip_sample=False),
    monai.DDPMScheduler(clip_sample=False, schedule="scaled_linear_beta", beta_start=0.0015, beta_end=0.0195),
    monai.DDPMScheduler(clip_sample=False, schedule="cosine", prediction_type="v_prediction"),
    monai.DDPMScheduler(clip_sample=False, schedule="sigmoid_beta", prediction_type="sample"),
    monai.DDIMScheduler(clip_sample=False, prediction_type="v_prediction"),
]


@pytest.mark.parametrize("scheduler", MONAI_CHAINS, ids=lambda s: f"{type(s).__name__}-{s.prediction_type}")
@pytest.mark.parametrize("timestep", [10, 500, 990])
def test_clean_estimate_is_monais(scheduler: Any, timestep: int) -> None:
    network, z = unet(), start()
    denoise, found = denoiser_from_scheduler(network, scheduler)
    output = network(z, timesteps=torch.tensor([timestep] * 2))
    wanted = scheduler.step(output, timestep, z)[1]
    sigma = found.timesteps.levels[timestep]
    assert found.timesteps(sigma[None]).item() == pytest.approx(timestep, abs=1e-9)
    close(denoise(z * float((1 + sigma**2).sqrt()), sigma.expand(2)), wanted)


def test_timesteps_of_pndm() -> None:
    found = adapt_scheduler(monai.PNDMScheduler(prediction_type="v_prediction"))
    assert (found.prediction_type, found.timesteps.num_train_timesteps) == ("v_prediction", 1000)


@pytest.mark.parametrize(
    "form",
    [
        {"schedule": "linear_beta"},
        {"schedule": "scaled_linear_beta", "beta_start": 0.0015, "beta_end": 0.0195},
        {"schedule": "sigmoid_beta", "sig_range": 5.0},
        {"schedule": "cosine"},
    ],
    ids=lambda form: form["schedule"],
)
def test_plain_values_give_the_schedulers_levels(form: dict[str, Any]) -> None:
    theirs = adapt_scheduler(monai.DDPMScheduler(num_train_timesteps=500, **form)).timesteps
    ours = make_timesteps({"num_train_timesteps": 500, **form})
    assert isinstance(ours, ChainTimesteps)
    torch.testing.assert_close(ours.levels, theirs.levels, rtol=2e-3, atol=0)


def test_rectified_flow_of_monai_runs_as_euler() -> None:
    network, z = unet(), start()
    scheduler = monai.RFlowScheduler(use_discrete_timesteps=False)
    denoise, found = denoiser_from_scheduler(network, scheduler)
    times = [999.0, 750.0, 500.0, 250.0, 0.0]
    wanted = z
    for now, then in pairwise(times):
        velocity = network(wanted, timesteps=torch.full((2,), now))
        wanted = wanted + velocity * (now - then) / 1000
    levels = torch.tensor([t / (1000 - t) for t in times], dtype=torch.float64)
    assert torch.allclose(found.timesteps(levels), torch.tensor(times, dtype=torch.float64))
    state = z * float(1 + levels[0])
    for now, then in pairwise(levels):  # Euler's step of the flow, in the convention x = x0 + sn
        clean = denoise(state, now.expand(2))
        velocity = (state - clean) / now - clean
        flow = state / (1 + now) + (then / (1 + then) - now / (1 + now)) * velocity
        state = flow * (1 + then)
    close(state, wanted, 1e-4)


@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")  # in diffusers
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("name", ["DDPMScheduler", "DDIMScheduler", "EulerDiscreteScheduler"])
def test_clean_estimate_is_diffusers(name: str, kind: str) -> None:
    clip = {} if name.startswith("Euler") else {"clip_sample": False}
    scheduler = getattr(diffusers, name)(prediction_type=kind, beta_schedule="scaled_linear", **clip)
    network = diffusers.UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, block_out_channels=(8, 8), layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=4, attention_head_dim=4,
    ).eval().requires_grad_(False)  # fmt: skip
    denoise, found = denoiser_from_scheduler(network, scheduler)
    timestep, z = 600, start()
    sigma = found.timesteps.levels[timestep]
    x = z * float((1 + sigma**2).sqrt())
    if name.startswith("Euler"):
        scheduler.set_timesteps(1000)
        t = scheduler.timesteps[1000 - 1 - timestep]
        output = network(scheduler.scale_model_input(x, t), t).sample
        wanted = scheduler.step(output, t, x).pred_original_sample
    else:
        scheduler.set_timesteps(1000)
        wanted = scheduler.step(network(z, timestep).sample, timestep, z).pred_original_sample
    close(denoise(x, sigma.expand(2)), wanted, 1e-4)


def test_whole_run_is_diffusers_ddim() -> None:
    network = unet()
    scheduler = diffusers.DDIMScheduler(clip_sample=False, timestep_spacing="trailing", set_alpha_to_one=True)
    denoise, found = denoiser_from_scheduler(network, scheduler)
    scheduler.set_timesteps(8)
    z = start()
    sigmas = found.timesteps.sigmas(8, "trailing")
    ours = SAMPLERS["ddim"](denoise, z * float((1 + sigmas[0] ** 2).sqrt()), sigmas)
    for t in scheduler.timesteps:
        z = scheduler.step(network(z, timesteps=t.expand(2)), t, z).prev_sample
    close(ours, z, 2e-4)


def test_flow_match_of_diffusers() -> None:
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    found = adapt_scheduler(scheduler)
    assert found.prediction_type == "flow"
    assert isinstance(found.timesteps, FlowTimesteps)
    assert (found.sign, found.timesteps.shift) == (1.0, 3.0)
    network, z = unet(), start()
    denoise, _ = denoiser_from_scheduler(network, scheduler)
    scheduler.set_timesteps(4)
    time = scheduler.timesteps[1]
    sigma = (time / (1000 - time)).double()
    velocity = network(z, timesteps=time.expand(2))
    close(denoise(z * float(1 + sigma), sigma.expand(2)), z - time / 1000 * velocity)


def test_class_labels_and_context_reach_the_network() -> None:
    network = unet(num_class_embeds=3)
    denoise, _ = denoiser_from_scheduler(network, monai.DDPMScheduler())
    x, sigma = 2 * start(), torch.tensor([1.0, 1.0])
    told = [denoise(x, sigma, {"class_labels": torch.tensor([k, k])}) for k in (0, 2)]
    assert not torch.equal(told[0], told[1])
    conditional = diffusers.UNet2DConditionModel(
        sample_size=8, in_channels=1, out_channels=1, block_out_channels=(8, 8), layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), norm_num_groups=4, cross_attention_dim=6,
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), attention_head_dim=4,
    ).eval().requires_grad_(False)  # fmt: skip
    denoise, _ = denoiser_from_scheduler(conditional, diffusers.DPMSolverMultistepScheduler())
    contexts = [torch.randn(2, 3, 6, generator=torch.Generator().manual_seed(k)) for k in (0, 1)]
    told = [denoise(x, sigma, {"context": context}) for context in contexts]
    assert not torch.equal(told[0], told[1])


@pytest.mark.parametrize(
    ("scheduler", "words"),
    [
        (object(), "scheduler must have alphas_cumprod or be a rectified flow. Got object"),
        (diffusers.EDMEulerScheduler(), "Got EDMEulerScheduler"),
        (
            diffusers.EulerDiscreteScheduler(timestep_type="continuous", prediction_type="v_prediction"),
            "timestep_type 'continuous'",
        ),
    ],
)
def test_other_schedulers_are_refused(scheduler: Any, words: str) -> None:
    with pytest.raises(MedgenError, match=words):
        adapt_scheduler(scheduler)


def test_a_chain_without_signal_at_its_end_stays_finite() -> None:
    found = adapt_scheduler(diffusers.DDIMScheduler(rescale_betas_zero_snr=True, timestep_spacing="trailing"))
    sigmas = found.timesteps.sigmas(5)
    assert torch.isfinite(sigmas).all()
    assert sigmas[0] > 1000
