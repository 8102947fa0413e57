"""Noise schedules: length, ends, monotonicity, equality with the formulas and with MONAI's chains."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from medgen.checks import MedgenError
from medgen.diffusion.schedules import (
    SCHEDULES,
    TIMESTEP_SPACINGS,
    alphas_cumprod_to_sigmas,
    flow_sigmas,
    karras_sigmas,
    logsnr_sigmas,
    make_sigmas,
    spaced_timesteps,
)

RANGED = ("karras", "logsnr", "flow")
CHAINS = ("linear_beta", "scaled_linear_beta", "cosine_beta")


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("count", [1, 2, 3, 10, 333, 999])
@pytest.mark.parametrize("final_zero", [True, False])
def test_levels_are_finite_and_strictly_decreasing(name: str, count: int, final_zero: bool) -> None:
    sigmas = make_sigmas(name, count, final_zero=final_zero)
    assert (sigmas.shape, sigmas.dtype, sigmas.device.type) == ((count + 1,), torch.float64, "cpu")
    assert (sigmas.diff() < 0).all()
    assert sigmas.isfinite().all()
    assert (sigmas[-1] == 0) == final_zero


@pytest.mark.parametrize("name", RANGED)
@pytest.mark.parametrize("options", [{}, {"final_zero": False}])
def test_ranged_schedules_keep_their_ends(name: str, options: dict[str, bool]) -> None:
    sigmas = make_sigmas(name, 1000, sigma_min=0.02, sigma_max=50.0, **options)
    assert sigmas[0] == 50.0
    assert math.isclose(sigmas[-2 if not options else -1], 0.02, rel_tol=1e-9)


def test_karras_is_uniform_in_its_power() -> None:
    steps = (karras_sigmas(9, rho=3.0)[:-1] ** (1 / 3)).diff()
    assert torch.allclose(steps, steps[0].expand(8))


def test_logsnr_with_a_knee_is_longer_above_it() -> None:
    plain, bent = logsnr_sigmas(10)[:-1], logsnr_sigmas(10, knee=10.0)[:-1]
    assert bent[0] == plain[0] == 80.0
    assert math.isclose(bent[-1], plain[-1], rel_tol=1e-9)
    ratios = [float(s / t) for s, t in pairwise(bent)]
    assert ratios == sorted(ratios, reverse=True)
    assert torch.allclose(logsnr_sigmas(10, knee=1e9)[:-1], plain, rtol=1e-6)


@pytest.mark.parametrize("shift", [0.5, 1.0, 3.0])
def test_flow_is_uniform_in_unshifted_time_and_starts_at_sigma_max(shift: float) -> None:
    sigmas = flow_sigmas(20, shift=shift)
    t = sigmas / (1 + sigmas)
    unshifted = t / (shift - (shift - 1) * t)
    assert torch.allclose(unshifted.diff(), unshifted.diff()[0].expand(20))
    assert sigmas[0] == 80.0


def test_flow_evaluates_nothing_below_sigma_min() -> None:
    assert math.isclose(flow_sigmas(1000, sigma_min=0.1)[-2], 0.1, rel_tol=1e-9)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "monai", "options"),
    [
        ("linear_beta", "linear_beta", {}),
        ("scaled_linear_beta", "scaled_linear_beta", {"beta_start": 0.0015, "beta_end": 0.0195}),
        ("cosine_beta", "cosine", {}),
    ],
)
def test_chains_equal_monai(name: str, monai: str, options: dict[str, float]) -> None:
    from monai.networks.schedulers import DDPMScheduler

    alphas_cumprod = DDPMScheduler(1000, schedule=monai, **options).alphas_cumprod
    theirs = alphas_cumprod_to_sigmas(alphas_cumprod).flip(0)
    ours = make_sigmas(name, 1000)[:-1]
    kept = alphas_cumprod.flip(0) > 1e-4  # below, their float32 product has lost its digits
    assert torch.allclose(ours[kept], theirs[kept], rtol=2e-3)


@pytest.mark.parametrize("spacing", TIMESTEP_SPACINGS)
@pytest.mark.parametrize("count", [1, 7, 50, 1000])
def test_timesteps_are_distinct_and_inside(spacing: str, count: int) -> None:
    kept = spaced_timesteps(count, 1000, spacing)
    assert len(set(kept.tolist())) == count
    assert 0 <= kept.min() <= kept.max() <= 999


def test_all_timesteps_are_the_whole_chain() -> None:
    for spacing in TIMESTEP_SPACINGS:
        assert spaced_timesteps(10, 10, spacing).tolist() == list(range(9, -1, -1))


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("count", [0, -1, 2.0, True, None])
def test_refuses_impossible_counts(name: str, count: object) -> None:
    with pytest.raises(MedgenError, match="num_inference_steps must be a whole number of at least 1"):
        make_sigmas(name, count)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", CHAINS)
def test_refuses_more_steps_than_the_chain_has(name: str) -> None:
    with pytest.raises(MedgenError, match="at most 100; got 101"):
        make_sigmas(name, 101, num_train_timesteps=100)


@pytest.mark.parametrize("name", RANGED)
@pytest.mark.parametrize(("low", "high"), [(0, 1), (1, 1), (2, 1), (0.1, float("inf"))])
def test_refuses_impossible_ranges(name: str, low: float, high: float) -> None:
    with pytest.raises(MedgenError, match="sigma_m"):
        make_sigmas(name, 5, sigma_min=low, sigma_max=high)


def test_names_are_checked() -> None:
    with pytest.raises(MedgenError, match="Did you mean 'karras'"):
        make_sigmas("karas", 5)
    with pytest.raises(MedgenError, match="Did you mean 'sigma_max'"):
        make_sigmas("logsnr", 5, sigma_mx=3)
    with pytest.raises(MedgenError, match="spacing must be one of"):
        make_sigmas("linear_beta", 5, spacing="even")
    with pytest.raises(MedgenError, match="shift"):
        make_sigmas("flow", 5, shift=0)
