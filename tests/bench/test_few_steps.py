"""The default sampler needs at most 12 evaluations for the error of rectified flow with 30 Euler steps."""

from __future__ import annotations

import pytest
import torch

import medgen
from medgen.diffusion.randomness import generators, randn
from medgen.models.diffusion_model import DiffusionModel
from tests.bench.few_steps import default_passes, root_mean_square, sampler_errors
from tests.conformance.gaussian import GaussianData


@pytest.mark.parametrize(("lowest", "highest"), [(0.01, 2.0), (0.03, 1.4), (0.1, 1.0)])
def test_with_an_exact_denoiser(lowest: float, highest: float) -> None:
    data = GaussianData.spread(lowest**2, highest**2)
    x = data.at(80.0, 32)
    errors = sampler_errors(data.denoise, x, 0.002, 80.0, data.error, data.flow(x, 80.0, 0.0))
    assert default_passes(errors), errors


def test_with_a_trained_model() -> None:
    """A small volume, to save time; ``python -m tests.bench.few_steps`` does it at full size."""
    model = medgen.load_model("hippocampus-t1", device="cpu")
    assert isinstance(model, DiffusionModel)
    given = model.codec.given_nothing((16, 16, 16))
    sampling = model.spec.sampling
    denoise = model.bound(given, model.settings())
    x = randn(model.shape(given), generators([5])) * sampling.sigma_max
    with torch.no_grad():
        errors = sampler_errors(denoise, x, sampling.sigma_min, sampling.sigma_max, root_mean_square, None, 60)
    assert default_passes(errors), errors
