"""Posterior methods through a decoder: an affine one against the closed form, a bent one by what it decodes to."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from medgen.checks import MedgenError
from medgen.diffusion.randomness import generators
from medgen.diffusion.samplers import SAMPLERS
from medgen.diffusion.schedules import logsnr_sigmas
from medgen.operators import CartesianKSpace, Chain, Phase, Separable, cartesian_mask
from medgen.restoration.latent import LatentMeasurement
from medgen.restoration.posterior import Measurement, posterior_denoiser
from tests.conformance.gaussian import GaussianData

LATENT, VOXELS, SEEN, NOISE = 6, 9, 4, 0.2
# smallest and largest variance over the closed form's, as measured, with room for the error of the draw
RATIOS = {"pigdm": (0.7, 1.35), "diffpir": (0.6, 1.6)}


@dataclass(frozen=True)
class Decoded:
    """Gaussian latents, an affine decoder, and a measurement of one decoded draw."""

    data: GaussianData
    w: Tensor
    b: Tensor
    operator: Separable
    y: Tensor

    @classmethod
    def make(cls, lowest: float = 0.05) -> Decoded:
        data = GaussianData.spread(lowest, 2.0 if lowest < 1 else lowest, d=LATENT)
        stream = torch.Generator().manual_seed(3)
        w, b, a = (
            torch.randn(*shape, generator=stream, dtype=torch.float64) / 2
            for shape in ((VOXELS, LATENT), (VOXELS,), (SEEN, VOXELS))
        )
        truth = data.at(0.0, 1, seed=4) @ w.T + b
        y = truth @ a.T + NOISE * torch.randn(1, 1, SEEN, generator=stream).double()
        return cls(data, w, b, Separable((1, VOXELS), {1: a}), y[:, None])

    def decode(self, z: Tensor) -> Tensor:
        return z @ self.w.T + self.b

    def denoise(self, z: Tensor, sigma: Tensor) -> Tensor:
        return self.data.denoise(z[:, :, 0], sigma)[:, :, None]

    def known(self, count: int) -> LatentMeasurement:
        return LatentMeasurement(Measurement(self.operator, self.y.expand(count, -1, -1, -1), NOISE), self.decode)

    @property
    def covariance(self) -> Tensor:
        return self.data.basis @ torch.diag(self.data.variances) @ self.data.basis.T

    def posterior(self) -> tuple[Tensor, Tensor]:
        """Mean and covariance of the latent."""
        c, a = self.covariance, self.operator.matrices[1] @ self.w
        gain = c @ a.T @ torch.linalg.inv(a @ c @ a.T + NOISE**2 * torch.eye(SEEN).double())
        missing = self.y[0, 0, 0] - self.operator.matrices[1] @ self.b - a @ self.data.mean
        return self.data.mean + gain @ missing, c - gain @ a @ c


def drawn(case: Decoded, method: str, sampler: str, count: int) -> Tensor:
    sigmas = logsnr_sigmas(60, 0.01, 20.0)
    x = case.data.mean + sigmas[0] * torch.randn(
        count, 1, 1, LATENT, dtype=torch.float64, generator=generators([5])[0]
    )  # fmt: skip
    denoise = posterior_denoiser(case.denoise, case.known(count), method)
    return SAMPLERS[sampler](denoise, x, sigmas, generators=generators(range(count)))[:, 0, 0]


def compared(case: Decoded, samples: Tensor) -> tuple[float, Tensor]:
    """Error of the mean in deviations of the prior, and variances over the closed form's."""
    mean, covariance = case.posterior()
    values, axes = torch.linalg.eigh(covariance)
    error = (samples.mean(0) - mean).norm() / case.covariance.diagonal().sum().sqrt()
    return float(error), (samples @ axes).var(0) / values


def test_pigdm_is_exact_for_isotropic_latents_and_an_affine_decoder() -> None:
    case = Decoded.make(lowest=1.0)
    error, ratios = compared(case, drawn(case, "pigdm", "dpmpp_2m", 3000))
    assert error < 0.04
    assert torch.allclose(ratios, torch.ones(LATENT).double(), atol=0.15)


@pytest.mark.parametrize("method", RATIOS)
def test_approximations_fit_the_measurement_and_their_bias_is_pinned(method: str) -> None:
    case = Decoded.make()
    samples = drawn(case, method, "ddpm", 800)
    error, ratios = compared(case, samples)
    prior_error = float((case.data.mean - case.posterior()[0]).norm() / case.covariance.diagonal().sum().sqrt())
    residual = case.known(800).residual(samples[:, None, None]).square().mean().sqrt()
    print(f"{method}: ratios {ratios.tolist()}, mean error {error:.3f} of {prior_error:.3f}, residual {residual:.3f}")
    assert residual < 1.5 * NOISE
    assert error < prior_error / 2
    low, high = RATIOS[method]
    assert low < float(ratios.min())
    assert float(ratios.max()) < high


def test_the_fit_is_that_of_the_operator_behind_the_decoder() -> None:
    case = Decoded.make()
    z = torch.randn(3, 1, 1, LATENT, dtype=torch.float64, generator=generators([0])[0])
    a = case.operator.matrices[1] @ case.w
    joined = Measurement(
        Separable((1, LATENT), {1: a}), (case.y - case.operator.matrices[1] @ case.b).expand(3, -1, -1, -1), NOISE
    )
    torch.testing.assert_close(case.known(3).fitted(z, 0.5), joined.fitted(z, 0.5), rtol=1e-4, atol=1e-5)


def bent(z: Tensor) -> Tensor:
    return torch.tanh(z) + 0.3 * z**2


def test_a_bent_decoder_is_followed_to_where_it_fits() -> None:
    operator = Separable((1, 4), {1: torch.eye(4).double()})
    truth = torch.tensor([[[[0.8, -0.5, 0.3, 1.2]]]], dtype=torch.float64)
    exact = Measurement(operator, bent(truth).expand(2, -1, -1, -1))
    start = torch.stack([torch.zeros(1, 1, 4), torch.full((1, 1, 4), 3.0)]).double()
    far = exact.residual(bent(start)).square().flatten(1).sum(1)
    one, many = (
        LatentMeasurement(exact, bent, steps=steps).fitted(start, 1.0) for steps in (1, 8)
    )  # fmt: skip
    nearer, nearest = (exact.residual(bent(z)).square().flatten(1).sum(1) for z in (one, many))
    assert bool((nearer <= far).all())
    assert bool((nearest <= nearer).all())
    assert float(nearest[0]) < 1e-6


def test_complex_measurements_of_decoded_images() -> None:
    stream = torch.Generator().manual_seed(0)
    kspace = Chain([Phase(torch.rand(8, 8, generator=stream)), CartesianKSpace(torch.ones(8, 8, dtype=torch.bool))])

    def decode(z: Tensor) -> Tensor:
        return 2 * z.repeat_interleave(2, -1).repeat_interleave(2, -2) + 1

    truth = torch.rand(1, 1, 4, 4, generator=stream)
    known = LatentMeasurement(Measurement(kspace, kspace.forward(decode(truth))), decode)
    torch.testing.assert_close(known.fitted(torch.zeros_like(truth), 1.0), truth, rtol=1e-3, atol=1e-3)
    partial = Chain([Phase(torch.zeros(8, 8)), CartesianKSpace(cartesian_mask((8, 8), 2.0))])
    guided = posterior_denoiser(
        lambda x, s: x / (1 + s.reshape(-1, 1, 1, 1)),
        LatentMeasurement(Measurement(partial, partial.forward(decode(truth))), decode),
        "dps",
    )
    assert guided(truth, torch.ones(1)).shape == truth.shape


def test_ddnm_is_refused() -> None:
    case = Decoded.make()
    with pytest.raises(MedgenError, match="Use 'pigdm' or 'diffpir'"):
        posterior_denoiser(case.denoise, case.known(1), "ddnm")
