"""DDRM against a Gaussian prior, whose posterior has a closed form."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from medgen.checks import MedgenError
from medgen.diffusion.randomness import generators, randn
from medgen.diffusion.schedules import logsnr_sigmas
from medgen.operators import CartesianKSpace, Chain, Phase, cartesian_mask
from medgen.restoration.ddrm import sample_ddrm
from medgen.restoration.posterior import Measurement
from tests.restoration.test_posterior import DIMENSIONS, NOISE, Case, mean_error, ratios

DRAWS, STEPS = 800, 50
# by eta: smallest and largest variance over the closed form's, as measured (0.17, 0.66; 0.02, 1.05), with room
RATIOS = {0.85: (0.12, 0.8), 0.0: (0.01, 1.4)}


def drawn(case: Case, count: int = DRAWS, noise_std: float = NOISE, **options: float) -> Tensor:
    sigmas = logsnr_sigmas(STEPS, 0.01, 20.0)
    x = sigmas[0] * randn((1, 1, DIMENSIONS), generators(range(9000, 9000 + count)), dtype=torch.float64)
    known = Measurement(case.operator, case.y.expand(count, -1, -1, -1), noise_std)
    return sample_ddrm(case.denoise, x, sigmas, known, generators=generators(range(count)), **options)[:, 0, 0]


@pytest.mark.parametrize("eta", RATIOS)
def test_it_fits_the_measurement_and_its_bias_is_pinned(eta: float) -> None:
    case = Case.make(isotropic=False)
    samples = drawn(case, eta=eta)
    found = ratios(case, samples)
    residual = (samples @ case.a.T - case.y[0, 0]).square().mean().sqrt()
    prior_error = float((case.data.mean - case.posterior()[0]).norm() / case.covariance.diagonal().sum().sqrt())
    error = mean_error(case, samples)
    print(f"eta {eta}: ratios {found.tolist()}, mean error {error:.3f} of {prior_error:.3f}, residual {residual:.3f}")
    assert residual < 1.5 * NOISE
    assert error < prior_error / 2
    low, high = RATIOS[eta]
    assert low < float(found.min())
    assert float(found.max()) < high


def test_without_noise_the_measurement_holds() -> None:
    case = Case.make(isotropic=False)
    samples = drawn(case, 8, 0.0)
    assert float((samples @ case.a.T - case.y[0, 0]).abs().max()) < 1e-6


def test_a_sample_depends_on_its_own_stream_alone() -> None:
    case = Case.make(isotropic=False)
    assert torch.equal(drawn(case, 3), drawn(case, 3))
    torch.testing.assert_close(drawn(case, 3)[:2], drawn(case, 2))


def test_complex_volumes_of_k_space() -> None:
    kspace = CartesianKSpace(cartesian_mask((8, 8), 2.0, torch.Generator().manual_seed(0)))
    stream = torch.Generator().manual_seed(1)
    truth = torch.complex(*torch.randn(2, 1, 1, 8, 8, generator=stream, dtype=torch.float64))
    y = kspace.forward(truth)
    sigmas, count = logsnr_sigmas(60, 0.01, 20.0), 200
    x = sigmas[0] * torch.complex(*torch.randn(2, count, 1, 8, 8, generator=stream, dtype=torch.float64))

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:  # each part of deviation 1
        return x / (1 + sigma.reshape(-1, 1, 1, 1) ** 2)

    known = Measurement(kspace, y.expand(count, -1, -1, -1))
    samples = sample_ddrm(denoise, x, sigmas, known, generators=generators(range(count)), eta=0.0)
    assert float(known.residual(samples).abs().max()) < 1e-6
    free = torch.fft.fft2(samples, norm="ortho").real.var(0)  # without fresh noise the prior's variance stays
    unmeasured = torch.fft.ifftshift(~kspace.mask)
    assert float(free[0][unmeasured].mean()) == pytest.approx(1.0, abs=0.1)
    with pytest.raises(MedgenError, match="Put Phase in front"):
        sample_ddrm(denoise, x.real, sigmas, known, generators=generators(range(count)))


def test_what_does_not_fit_is_refused() -> None:
    case = Case.make(isotropic=False)
    x, sigmas = torch.zeros(1, 1, 1, DIMENSIONS).double(), torch.tensor([1.0, 0.0])
    with pytest.raises(MedgenError, match=r"generators must be 1, one per sample\. Got 2"):
        sample_ddrm(case.denoise, x, sigmas, Measurement(case.operator, case.y), generators=generators([0, 1]))
    phased = Chain([Phase(torch.zeros(8, 8)), CartesianKSpace(cartesian_mask((8, 8), 2.0))])
    image = torch.zeros(1, 1, 8, 8)
    with pytest.raises(MedgenError, match="no cheap singular value decomposition"):
        sample_ddrm(
            case.denoise, image, sigmas, Measurement(phased, phased.forward(image)), generators=generators([0])
        )  # fmt: skip
