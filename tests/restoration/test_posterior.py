"""Every posterior method against a Gaussian prior, whose posterior has a closed form."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from medgen.checks import MedgenError
from medgen.diffusion.randomness import generators
from medgen.diffusion.samplers import SAMPLERS, Denoise
from medgen.diffusion.schedules import logsnr_sigmas
from medgen.operators import Blur, CartesianKSpace, Chain, Mask, Operator, Phase, Separable, cartesian_mask
from medgen.restoration.assembled import PatchDenoiser, SliceDenoiser, starts
from medgen.restoration.posterior import METHODS, Measurement, make_consistent, posterior_denoiser
from medgen.restoration.repaint import sample_repaint
from tests.conformance.gaussian import GaussianData

NOISE, DRAWS, DIMENSIONS, SEEN = 0.2, 3000, 8, 4
# smallest and largest variance over the closed form's, as measured, with room for the error of the draw
RATIOS = {"pigdm": (0.9, 1.2), "diffpir": (0.8, 1.6), "ddnm": (0.3, 1.1), "dps": (0.08, 1.9)}


@dataclass(frozen=True)
class Case:
    """Data, an operator, and what was measured of one draw."""

    data: GaussianData
    operator: Separable
    y: Tensor

    @classmethod
    def make(cls, isotropic: bool) -> Case:
        data = GaussianData.spread(0.05, 2.0, d=DIMENSIONS)
        if isotropic:
            data = GaussianData(data.mean, data.basis, torch.ones_like(data.variances))
        stream = torch.Generator().manual_seed(3)
        a = torch.randn(SEEN, DIMENSIONS, generator=stream, dtype=torch.float64) / 2
        truth = data.at(0.0, 1, seed=4)
        y = truth @ a.T + NOISE * torch.randn(1, 1, SEEN, generator=stream).double()
        return cls(data, Separable((1, DIMENSIONS), {1: a}), y[:, None])

    @property
    def a(self) -> Tensor:
        """The matrix ``(SEEN, DIMENSIONS)``."""
        return self.operator.matrices[1]

    def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
        """The prior's, of volumes ``(B, 1, 1, d)``."""
        return self.data.denoise(x[:, :, 0], sigma)[:, :, None]

    @property
    def covariance(self) -> Tensor:
        return self.data.basis @ torch.diag(self.data.variances) @ self.data.basis.T

    def posterior(self) -> tuple[Tensor, Tensor]:
        """Mean ``(d,)`` and covariance."""
        c, a = self.covariance, self.a
        gain = c @ a.T @ torch.linalg.inv(a @ c @ a.T + NOISE**2 * torch.eye(SEEN).double())
        return self.data.mean + gain @ (self.y[0, 0, 0] - a @ self.data.mean), c - gain @ a @ c

    def exact(self, x: Tensor, sigma: Tensor) -> Tensor:
        """``E[x0 | x, y]``: the closed form for the Gaussian with both measurements."""
        mean, c = self.posterior()
        level = float(sigma[0]) ** 2
        return mean + (x - mean) @ (c @ torch.linalg.inv(c + level * torch.eye(DIMENSIONS).double())).T

    def draw(self, denoise: Denoise, steps: int = 150) -> Tensor:
        """Samples ``(DRAWS, d)`` of ancestral sampling."""
        sigmas = logsnr_sigmas(steps, 0.01, 20.0)
        x = self.data.mean + sigmas[0] * torch.randn(
            DRAWS, 1, 1, DIMENSIONS, dtype=torch.float64, generator=generators([5])[0]
        )
        return SAMPLERS["ddpm"](denoise, x, sigmas, generators=generators(range(DRAWS)))[:, 0, 0]

    def measurement(self, noise_std: float = NOISE) -> Measurement:
        return Measurement(self.operator, self.y.expand(DRAWS, -1, -1, -1), noise_std)


def ratios(case: Case, samples: Tensor) -> Tensor:
    """Variance along the principal axes of the posterior over the closed form's."""
    _, covariance = case.posterior()
    values, axes = torch.linalg.eigh(covariance)
    return (samples @ axes).var(0) / values


def mean_error(case: Case, samples: Tensor) -> float:
    """Of the mean, in deviations of the prior."""
    return float((samples.mean(0) - case.posterior()[0]).norm() / case.covariance.diagonal().sum().sqrt())


def test_the_exact_score_gives_mean_and_covariance() -> None:
    case = Case.make(isotropic=False)
    samples = case.draw(case.exact)
    assert mean_error(case, samples) < 0.03
    assert torch.allclose(ratios(case, samples), torch.ones(DIMENSIONS).double(), atol=0.12)


def test_pigdm_is_exact_for_an_isotropic_prior() -> None:
    case = Case.make(isotropic=True)
    samples = case.draw(posterior_denoiser(case.denoise, case.measurement(), "pigdm"))
    assert mean_error(case, samples) < 0.03
    assert torch.allclose(ratios(case, samples), torch.ones(DIMENSIONS).double(), atol=0.12)


@pytest.mark.parametrize("method", METHODS)
def test_approximations_fit_the_measurement_and_their_bias_is_pinned(method: str) -> None:
    case = Case.make(isotropic=False)
    samples = case.draw(posterior_denoiser(case.denoise, case.measurement(), method))
    found = ratios(case, samples)
    residual = (samples @ case.a.T - case.y[0, 0]).square().mean().sqrt()
    prior_error = float((case.data.mean - case.posterior()[0]).norm() / case.covariance.diagonal().sum().sqrt())
    print(f"{method}: ratios {found.tolist()}, mean error {mean_error(case, samples):.3f}, residual {residual:.3f}")
    assert residual < 1.5 * NOISE
    assert mean_error(case, samples) < prior_error / 2
    low, high = RATIOS[method]
    assert low < float(found.min())
    assert float(found.max()) < high


def test_without_noise_the_measurement_holds() -> None:
    case = Case.make(isotropic=False)
    exact = Measurement(case.operator, case.y.expand(8, -1, -1, -1))
    guided = posterior_denoiser(case.denoise, exact, "pigdm")
    sigmas = logsnr_sigmas(60, 0.01, 20.0)
    x = case.data.mean + sigmas[0] * torch.randn(8, 1, 1, DIMENSIONS, dtype=torch.float64, generator=generators([1])[0])
    sample = SAMPLERS["ddpm"](guided, x, sigmas, generators=generators(range(8)))
    assert exact.residual(sample).abs().max() < 0.05
    assert exact.residual(make_consistent(sample, exact)).abs().max() < 1e-4


def test_consistency_with_noise_goes_as_far_as_the_noise() -> None:
    case = Case.make(isotropic=False)
    noisy = Measurement(case.operator, case.y.expand(2, -1, -1, -1), NOISE)
    far = torch.zeros(2, 1, 1, DIMENSIONS, dtype=torch.float64)
    near = make_consistent(far, Measurement(case.operator, case.y.expand(2, -1, -1, -1)))
    moved = noisy.residual(make_consistent(far, noisy)).square().flatten(1).mean(1).sqrt()
    torch.testing.assert_close(moved, torch.full((2,), NOISE).double(), rtol=1e-3, atol=1e-6)
    assert torch.equal(make_consistent(near, noisy), near)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [({"noise_std": -1.0}, "noise_std must be 0 or above. Got -1"), ({"prior_std": 0.0}, "prior_std")],
)
def test_bad_measurements(arguments: dict[str, float], words: str) -> None:
    with pytest.raises(MedgenError, match=words):
        Measurement(Mask(torch.zeros(1, 1, 4, 4)), torch.zeros(1, 1, 4, 4), **arguments)


def test_an_unknown_method_is_refused() -> None:
    case = Case.make(isotropic=True)
    with pytest.raises(MedgenError, match="method"):
        posterior_denoiser(case.denoise, case.measurement(), "magic")


def test_repaint_samples_the_hole_given_what_is_known() -> None:
    """Of a correlated Gaussian: mean and deviation of the hole given the rest, in closed form."""
    data = GaussianData.spread(0.2, 2.0, d=4)
    covariance = data.basis @ torch.diag(data.variances) @ data.basis.T
    known = torch.tensor([0.5, -0.3, 0.0, 0.0], dtype=torch.float64)
    hole = torch.tensor([False, False, True, True])
    gain = covariance[2:, :2] @ torch.linalg.inv(covariance[:2, :2])
    mean = data.mean[2:] + gain @ (known - data.mean)[:2]
    deviation = (covariance[2:, 2:] - gain @ covariance[:2, 2:]).diagonal().sqrt()
    sigmas, draws = logsnr_sigmas(60, 0.01, 20.0), 1500
    sigmas = torch.cat([sigmas[sigmas > 0], torch.zeros(1).double()])
    x = data.mean + sigmas[0] * torch.randn(draws, 1, 4, dtype=torch.float64, generator=generators([5])[0])
    samples = sample_repaint(
        data.denoise, x, sigmas, known.expand(draws, 1, 4), hole[None, None].double(),
        generators=generators(range(draws)), resamplings=8,
    )[:, 0]  # fmt: skip
    assert torch.equal(samples[:, :2], known[:2].expand(draws, 2))
    assert ((samples[:, 2:].mean(0) - mean) / deviation).abs().max() < 0.2
    assert ((samples[:, 2:].std(0) / deviation) - 1).abs().max() < 0.2


def test_patches_and_slices_of_a_local_denoiser_make_that_of_the_volume() -> None:
    def half(x: Tensor, sigma: Tensor) -> Tensor:
        assert len(sigma) == len(x)
        return x / (1 + sigma.reshape(-1, *[1] * (x.ndim - 1)))

    x = torch.randn(2, 1, 11, 9, 13, generator=torch.Generator().manual_seed(0))
    sigma = torch.tensor([0.5, 0.5])
    patched = PatchDenoiser(half, (8, 8, 8), overlap=0.5, multiple=4)
    torch.testing.assert_close(patched(x, sigma), half(x, sigma))
    torch.testing.assert_close(SliceDenoiser(half, (2, 0), batch=3)(x, sigma), half(x, sigma))
    with pytest.raises(MedgenError, match="axes must be different"):
        SliceDenoiser(half, (1, 1))
    with pytest.raises(MedgenError, match="overlap"):
        PatchDenoiser(half, (8, 8, 8), overlap=1.0)


def test_patches_cover_every_voxel_and_move() -> None:
    seen = set()
    for seed in range(5):
        places = starts(30, 8, 0.25, torch.Generator().manual_seed(seed))
        assert {i + k for i in places for k in range(8)} == set(range(30))
        seen.add(tuple(places))
    assert len(seen) > 1


def test_consistency_counts_what_is_measured() -> None:
    stream = torch.Generator().manual_seed(0)
    hole = (torch.rand(1, 1, 10, 10, generator=stream) < 0.9).float()
    operator = Mask(hole[0, 0])
    y = operator.forward(torch.zeros(1, 1, 10, 10))
    known = Measurement(operator, y, noise_std=0.1)
    moved = known.residual(make_consistent(torch.full((1, 1, 10, 10), 0.25), known))
    seen = moved[hole == 0]
    torch.testing.assert_close(seen.square().mean().sqrt(), torch.tensor(0.1), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("scale", [1.0, 0.01])
def test_consistency_whatever_the_norm(scale: float) -> None:
    """Exact where the operator lets much through; what it hardly lets through is not made up."""
    truth = torch.rand(1, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    for factor, within in ((1.0, 1e-5), (4.0, 1e-2)):
        operator = Chain([Blur((16, 16), factor), _Scaled((16, 16), scale)])
        y = operator.forward(truth)
        made = make_consistent(torch.zeros_like(truth), Measurement(operator, y))
        assert float((operator.forward(made) - y).norm()) < within * float(y.norm())
        assert float(made.abs().max()) < 3


class _Scaled(Operator):
    def __init__(self, size: tuple[int, ...], scale: float) -> None:
        super().__init__(size)
        self.scale = scale

    def _forward(self, x: Tensor) -> Tensor:
        return self.scale * x

    def _adjoint(self, y: Tensor) -> Tensor:
        return self.scale * y


def test_complex_operators_ask_for_a_phase() -> None:
    kspace = CartesianKSpace(cartesian_mask((8, 8), 2.0))
    x = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with pytest.raises(MedgenError, match="Put Phase in front"):
        make_consistent(x, Measurement(kspace, kspace.forward(x)))
    real = Chain([Phase(torch.zeros(8, 8)), kspace])
    known = Measurement(real, real.forward(x))
    fitted = make_consistent(torch.zeros_like(x), known)
    assert not fitted.is_complex()
    assert known.residual(fitted).abs().max() < 0.05


def test_repaint_and_patches_refuse_what_does_not_fit() -> None:
    x, sigmas = torch.zeros(1, 2, 4, 4), torch.tensor([1.0, 0.0])
    with pytest.raises(MedgenError, match=r"inpaint_mask must have shape \(1, 1, 4, 4\), or 1 for the batch"):
        sample_repaint(lambda x, s: x, x, sigmas, x, torch.zeros(3, 1, 4, 4), generators=generators([0]))
    with pytest.raises(MedgenError, match=r"generators must be 1, one per sample\. Got 2"):
        sample_repaint(lambda x, s: x, x, sigmas, x, torch.zeros(1, 1, 4, 4), generators=generators([0, 1]))
    with pytest.raises(MedgenError, match="patch must be multiples of 4"):
        PatchDenoiser(lambda x, s: x, (6, 8), multiple=4)
    thin = torch.ones(1, 1, 3, 16)
    assert torch.equal(PatchDenoiser(lambda x, s: x, (8, 8), multiple=8)(thin, sigmas[:1]), thin)
