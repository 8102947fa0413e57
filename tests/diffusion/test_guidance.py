"""Classifier-free guidance: the formula, its interval, and the calls it saves."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from medgen.checks import MedgenError
from medgen.diffusion.guidance import ClassifierFreeGuidance
from medgen.diffusion.samplers import SAMPLERS
from medgen.diffusion.schedules import logsnr_sigmas

ASKED = {"context": torch.tensor([[1.0], [2.0]])}
NULL = {"context": torch.zeros(2, 1)}


class Denoiser:
    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, x: Tensor, sigma: Tensor, conditioning: Mapping[str, Tensor] | None = None) -> Tensor:
        self.calls += 1
        return torch.zeros_like(x) if conditioning is None else x * 0 + conditioning["context"]


def guided(scale: float, interval: tuple[float, float] | None, sigma: list[float]) -> tuple[list[float], int]:
    denoiser = Denoiser()
    denoise = ClassifierFreeGuidance(denoiser, ASKED, NULL, scale, interval)
    return denoise(torch.ones(2, 1), torch.tensor(sigma)).flatten().tolist(), denoiser.calls


def test_extrapolates_from_the_null_answer() -> None:
    assert guided(3.0, None, [5.0, 5.0]) == ([3.0, 6.0], 2)
    assert guided(0.0, None, [5.0, 5.0]) == ([0.0, 0.0], 2)


def test_scale_one_needs_one_call() -> None:
    assert guided(1.0, None, [5.0, 5.0]) == ([1.0, 2.0], 1)


@pytest.mark.parametrize(
    ("sigma", "expected"),
    [
        ([5.0, 5.0], ([3.0, 6.0], 2)),
        ([10.0, 10.0], ([3.0, 6.0], 2)),
        ([11.0, 11.0], ([1.0, 2.0], 1)),
        ([1.0, 1.0], ([1.0, 2.0], 1)),
        ([11.0, 5.0], ([1.0, 6.0], 2)),
    ],
)
def test_acts_within_its_interval_only(sigma: list[float], expected: tuple[list[float], int]) -> None:
    assert guided(3.0, (1.0, 10.0), sigma) == expected


def test_null_conditioning_may_be_none() -> None:
    denoise = ClassifierFreeGuidance(Denoiser(), ASKED, None, 2.0)
    assert denoise(torch.ones(2, 1), torch.ones(2)).flatten().tolist() == [2.0, 4.0]


def test_a_sampler_takes_it() -> None:
    denoise = ClassifierFreeGuidance(Denoiser(), ASKED, NULL, 3.0, (0.5, 5.0))
    sample = SAMPLERS["dpmpp_2m"](denoise, torch.ones(2, 1), logsnr_sigmas(5))
    assert sample.flatten().tolist() == [1.0, 2.0]


@pytest.mark.parametrize("interval", [(2.0, 1.0), (1.0, 1.0), (-1.0, 1.0), (float("nan"), 1.0)])
def test_refuses_an_impossible_interval(interval: tuple[float, float]) -> None:
    with pytest.raises(MedgenError, match=r"interval must be \(sigma_lo, sigma_hi\)"):
        ClassifierFreeGuidance(Denoiser(), ASKED, NULL, 2.0, interval)


@pytest.mark.parametrize("scale", [float("nan"), float("inf")])
def test_refuses_an_infinite_scale(scale: float) -> None:
    with pytest.raises(MedgenError, match="guidance_scale must be finite"):
        ClassifierFreeGuidance(Denoiser(), ASKED, NULL, scale)
