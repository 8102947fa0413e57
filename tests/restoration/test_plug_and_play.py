"""Plug and play against a Gaussian prior, and on an image with a plain smoother as denoiser."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from medgen.checks import MedgenError
from medgen.operators import Blur, CartesianKSpace, Chain, Mask, Phase, cartesian_mask
from medgen.restoration.plug_and_play import plug_and_play
from medgen.restoration.posterior import Measurement
from tests.models.test_restorer import small_restorer
from tests.restoration.test_posterior import NOISE, Case


@pytest.mark.parametrize("isotropic", [True, False])
def test_nearer_to_the_truth_than_the_prior(isotropic: bool) -> None:
    """Mean error below the prior's, residual no larger than the noise; the posterior's mean within its deviation."""
    case = Case.make(isotropic)
    measurement = Measurement(case.operator, case.y, noise_std=NOISE, prior_std=1.0)
    made = plug_and_play(case.denoise, measurement, sigma_max=2.0)
    exact, covariance = case.posterior()
    deviation = covariance.diagonal().sqrt()
    error = (made.flatten() - exact).abs()
    prior = (case.data.mean - exact).abs()
    print(f"error over posterior deviation {error / deviation}")
    assert float(error.square().mean()) < 0.25 * float(prior.square().mean())
    residual = measurement.residual(made).square().mean().sqrt()
    assert float(residual) <= NOISE * 1.01


def image() -> Tensor:
    place = torch.stack(torch.meshgrid(torch.linspace(-1, 1, 24), torch.linspace(-1, 1, 32), indexing="ij"))
    return torch.exp(-3 * place.square().sum(0))[None, None] + 0.2


def a_hole() -> Tensor:
    hole = torch.zeros(24, 32)
    hole[8:14, 10:18] = 1
    return hole


def smoother(x: Tensor, sigma: Tensor) -> Tensor:
    width = float(sigma[0]) * 20 + 0.01
    return Blur(x.shape[2:], [width, width]).forward(x)


def test_a_hole() -> None:
    truth, operator = image(), Mask(a_hole())
    y, seen = operator.forward(truth), list[tuple[int, int]]()
    made = plug_and_play(smoother, Measurement(operator, y), steps=6, callback=lambda k, n: seen.append((k, n)))
    assert float((made - truth).square().mean()) < 0.5 * float((operator.to_image(y) - truth).square().mean())
    assert seen[-1] == (6, 6)


def test_complex_measurements_of_real_images() -> None:
    lines = cartesian_mask((24, 32), 2.0, torch.Generator().manual_seed(0), axes=(1,), center_fraction=0.1)
    operator = Chain([Phase(torch.full((24, 32), 0.3)), CartesianKSpace(lines)])
    measurement = Measurement(operator, operator.forward(image()), noise_std=0.01)
    made = plug_and_play(smoother, measurement, steps=3)
    assert made.dtype == torch.float32
    residual = measurement.residual(made)[..., lines.expand(24, 32)].abs().square().mean() / 2
    assert float(residual.sqrt()) <= 0.0101


def test_what_was_measured_exactly_stays() -> None:
    truth, operator = image(), Mask(a_hole())
    made = plug_and_play(smoother, Measurement(operator, operator.forward(truth)), steps=3)
    assert torch.equal(operator.forward(made), operator.forward(truth))


def test_a_restorer_serves_as_denoiser() -> None:
    model = small_restorer()
    volume = torch.rand(1, 1, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    operator = Blur((16, 16, 16), [2.0] * 3)
    made = plug_and_play(model.denoise, Measurement(operator, operator.forward(volume), 0.05), steps=2)
    assert made.shape == volume.shape
    assert bool(torch.isfinite(made).all())
    with pytest.raises(MedgenError, match="is no denoiser"):
        small_restorer(restores="motion", given=[{"rigid_motion": {}}]).denoise(volume, torch.tensor([0.1]))


@pytest.mark.parametrize(
    ("options", "message"),
    [({"steps": 0}, "steps"), ({"sigma_max": 0.0}, "sigma_max"), ({"sigma_min": 3.0}, "at most sigma_max")],
)
def test_bad_arguments(options: dict[str, float], message: str) -> None:
    operator = Mask(torch.eye(4))
    with pytest.raises(MedgenError, match=message):
        plug_and_play(smoother, Measurement(operator, torch.zeros(1, 1, 4, 4)), **options)  # type: ignore[arg-type]
