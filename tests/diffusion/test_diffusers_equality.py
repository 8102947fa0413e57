"""Our samplers against diffusers' schedulers on the same grid, network and start: final samples in float32."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from medgen.diffusion.randomness import generators, randn
from medgen.diffusion.samplers import SAMPLERS
from medgen.diffusion.schedules import SCHEDULES, linear_beta_sigmas

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    diffusers = pytest.importorskip("diffusers")

pytestmark = pytest.mark.filterwarnings("ignore")
SHAPE = (3, 6, 6)
TOLERANCE = 1e-4


def network() -> Callable[[Tensor, Tensor], Tensor]:
    """A fixed small convolutional noise predictor of the sample scaled to unit variance; sigma is one more channel."""
    layers = [nn.Conv2d(4, 16, 3, padding=1), nn.SiLU(), nn.Conv2d(16, 3, 3, padding=1)]
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in (p for layer in layers for p in layer.parameters()):
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.15)

    def predict_noise(scaled: Tensor, sigma: Tensor) -> Tensor:
        level = (sigma.log() / 4).reshape(-1, 1, 1, 1).expand(len(scaled), 1, *SHAPE[1:])
        hidden = torch.cat([scaled, level.to(scaled)], dim=1)
        with torch.no_grad():
            for layer in layers:
                hidden = layer(hidden)
        # the noise of unit data plus something not linear
        return scaled * (sigma / (1 + sigma**2).sqrt()).reshape(-1, 1, 1, 1) + 0.3 * hidden

    return predict_noise


PREDICT = network()


def denoise(x: Tensor, sigma: Tensor) -> Tensor:
    column = sigma.reshape(-1, 1, 1, 1)
    return x - column * PREDICT(x / (1 + column**2).sqrt(), sigma)


def run_preserving(scheduler: Any, x: Tensor, sigmas: Tensor, noises: list[Tensor] | None = None) -> Tensor:
    """diffusers' loop for schedulers whose state is variance preserving; ``sigmas`` are those of its timesteps."""
    z = x / (1 + sigmas[0] ** 2).sqrt()
    for step, t in enumerate(scheduler.timesteps):
        options = {} if noises is None else {"variance_noise": noises[step]}
        z = scheduler.step(PREDICT(z, sigmas[step].expand(len(z))), t, z, **options).prev_sample
    return z * (1 + sigmas[-1] ** 2).sqrt()


def run_exploding(scheduler: Any, x: Tensor) -> Tensor:
    """diffusers' loop for schedulers in Karras' convention, which scale the network's input themselves."""
    for step, t in enumerate(scheduler.timesteps):
        scaled = scheduler.scale_model_input(x, t)
        x = scheduler.step(PREDICT(scaled, scheduler.sigmas[step].expand(len(x))), t, x).prev_sample
    return x


def start(sigma: Tensor) -> Tensor:
    return randn(SHAPE, generators(range(4))) * (1 + sigma.float() ** 2).sqrt()


def difference(ours: Tensor, theirs: Tensor) -> float:
    assert ours.dtype == theirs.dtype == torch.float32
    assert theirs.std() > 0.2
    return float((ours - theirs).abs().max())


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("count", [10, 50])
def test_ddim(count: int, spacing: str, record_property: Callable[[str, object], None]) -> None:
    scheduler = diffusers.DDIMScheduler(clip_sample=False, timestep_spacing=spacing)
    scheduler.set_timesteps(count)
    sigmas = linear_beta_sigmas(count, spacing=spacing)
    x = start(sigmas[0])
    gap = difference(SAMPLERS["ddim"](denoise, x, sigmas), run_preserving(scheduler, x, sigmas.float()))
    record_property("difference", gap)
    assert gap < TOLERANCE


def test_ddim_with_noise(record_property: Callable[[str, object], None]) -> None:
    scheduler = diffusers.DDIMScheduler(clip_sample=False, timestep_spacing="trailing")
    scheduler.set_timesteps(10)
    sigmas, streams = linear_beta_sigmas(10), generators(range(4))
    x = start(sigmas[0])
    ours = SAMPLERS["ddim"](denoise, x, sigmas, generators=generators(range(4)), eta=0.7)
    noises = [randn(SHAPE, streams) for _ in range(9)] + [torch.zeros_like(x)]
    z, levels = x / (1 + sigmas[0].float() ** 2).sqrt(), sigmas.float()
    for step, t in enumerate(scheduler.timesteps):
        noise = PREDICT(z, levels[step].expand(4))
        z = scheduler.step(noise, t, z, eta=0.7, variance_noise=noises[step]).prev_sample
    gap = difference(ours, z)
    record_property("difference", gap)
    assert gap < TOLERANCE


MULTISTEP: dict[str, tuple[str, str, int, dict[str, Any]]] = {
    "dpmpp_2m": ("DPMSolverMultistepScheduler", "midpoint", 2, {}),
    "unipc": ("UniPCMultistepScheduler", "bh2", 2, {}),
    "unipc-bh1": ("UniPCMultistepScheduler", "bh1", 2, {"variant": "bh1"}),
    "unipc-3": ("UniPCMultistepScheduler", "bh2", 3, {"order": 3}),
}


def compare_multistep(key: str, count: int, **settings: Any) -> float:
    """Largest difference of one entry of ``MULTISTEP`` to diffusers' under these settings."""
    name, solver, order, options = MULTISTEP[key]
    scheduler = getattr(diffusers, name)(solver_order=order, solver_type=solver, **settings)
    scheduler.set_timesteps(count)
    sigmas = scheduler.sigmas.double()
    x = start(sigmas[0])
    ours = SAMPLERS[key.split("-")[0]](denoise, x, sigmas, **options)
    return difference(ours, run_preserving(scheduler, x, scheduler.sigmas))


@pytest.mark.parametrize("key", ["dpmpp_2m", "unipc", "unipc-3"])  # their bh1 gives NaN in a step to zero
@pytest.mark.parametrize("grid", [{}, {"use_karras_sigmas": True}], ids=["beta", "karras"])
@pytest.mark.parametrize("count", [10, 30])
def test_multistep(key: str, grid: dict[str, bool], count: int, record_property: Callable[[str, object], None]) -> None:
    gap = compare_multistep(key, count, **grid)
    record_property("difference", gap)
    assert gap < TOLERANCE


@pytest.mark.parametrize("key", MULTISTEP)
@pytest.mark.parametrize("count", [10, 30])
def test_multistep_to_sigma_min(key: str, count: int, record_property: Callable[[str, object], None]) -> None:
    gap = compare_multistep(key, count, final_sigmas_type="sigma_min", lower_order_final=False)
    record_property("difference", gap)
    assert gap < TOLERANCE


def test_multistep_sde(record_property: Callable[[str, object], None]) -> None:
    scheduler = diffusers.DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++", use_karras_sigmas=True)
    scheduler.set_timesteps(20)
    sigmas, streams = scheduler.sigmas.double(), generators(range(4))
    x = start(sigmas[0])
    ours = SAMPLERS["dpmpp_2m_sde"](denoise, x, sigmas, generators=generators(range(4)))
    noises = [randn(SHAPE, streams) for _ in range(19)] + [torch.zeros_like(x)]
    gap = difference(ours, run_preserving(scheduler, x, scheduler.sigmas, noises))
    record_property("difference", gap)
    assert gap < TOLERANCE


@pytest.mark.parametrize(("key", "name"), [("heun", "HeunDiscreteScheduler"), ("euler", "EulerDiscreteScheduler")])
@pytest.mark.parametrize("grid", [{}, {"use_karras_sigmas": True}], ids=["beta", "karras"])
@pytest.mark.parametrize("count", [10, 30])
def test_karras_convention(
    key: str, name: str, grid: dict[str, bool], count: int, record_property: Callable[[str, object], None]
) -> None:
    scheduler = getattr(diffusers, name)(timestep_spacing="linspace", beta_start=0.00085, beta_end=0.012, **grid)
    scheduler.set_timesteps(count)
    sigmas = scheduler.sigmas.double().unique().flip(0)
    x = start(sigmas[0])
    gap = difference(SAMPLERS[key](denoise, x, sigmas), run_exploding(scheduler, x))
    record_property("difference", gap)
    assert gap < TOLERANCE


@pytest.mark.parametrize("schedule", ["karras", "logsnr"])
def test_grids_agree(schedule: str) -> None:
    setting = {"karras": "use_karras_sigmas", "logsnr": "use_exponential_sigmas"}[schedule]
    scheduler = diffusers.DPMSolverMultistepScheduler(**{setting: True})
    scheduler.set_timesteps(10)
    theirs = scheduler.sigmas.double()
    ours = SCHEDULES[schedule](10, float(theirs[-2]), float(theirs[0]))
    assert torch.allclose(ours, theirs, rtol=1e-4)
