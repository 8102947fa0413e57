"""The oracle of the sampler tests: Gaussian data, whose denoiser and probability flow have a closed form.

``python -m tests.conformance.gaussian`` prints the fitted orders of all samplers, their errors by number of
evaluations, and MONAI's DDIM scheduler on the same oracle.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from unittest import mock

import torch
from torch import Tensor

from medgen.diffusion.randomness import generators
from medgen.diffusion.samplers import SAMPLERS, Sampler, evaluations
from medgen.diffusion.schedules import logsnr_sigmas, make_sigmas


@dataclass(frozen=True)
class GaussianData:
    """Data ``N(mean, basis diag(variances) basis^T)`` of shape ``(B, 1, d)``.

    Attributes:
        mean: ``(d,)``.
        basis: orthogonal ``(d, d)``, principal directions in columns.
        variances: ``(d,)`` along these.
    """

    mean: Tensor
    basis: Tensor
    variances: Tensor

    @classmethod
    def spread(cls, lowest: float = 0.01, highest: float = 2.0, d: int = 12, seed: int = 0) -> GaussianData:
        """Variances spread evenly in log over a range, random mean and directions, float64."""
        generator = torch.Generator().manual_seed(seed)
        variances = torch.logspace(math.log10(lowest), math.log10(highest), d, dtype=torch.float64)
        mean, square = (torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((d,), (d, d)))
        return cls(mean / 2, torch.linalg.qr(square).Q, variances)

    def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
        """``E[x0 | x] = mean + C (C + sigma^2)^-1 (x - mean)``, C the covariance."""
        sigma = sigma.to(x)[:, None, None]
        return self._along(x, self.variances / (self.variances + sigma**2))

    def flow(self, x: Tensor, start: float, end: float) -> Tensor:
        """Probability flow from noise level ``start`` to ``end``: each direction scales with its total deviation."""
        return self._along(x, ((self.variances + end**2) / (self.variances + start**2)).sqrt())

    def at(self, sigma: float, count: int, seed: int = 0) -> Tensor:
        """Exact noisy data at a level, ``(count, 1, d)``."""
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(count, 1, len(self.mean), generator=generator, dtype=torch.float64)
        return self.mean + (noise * (self.variances + sigma**2).sqrt()) @ self.basis.T

    def error(self, x: Tensor, exact: Tensor) -> float:
        """Root mean square over samples and directions of the error over the data's deviation there."""
        return float(((((x - exact) @ self.basis) ** 2) / self.variances).mean().sqrt())

    def _along(self, x: Tensor, factors: Tensor) -> Tensor:
        """``x - mean`` scaled along the principal directions, and back."""
        return self.mean + (((x - self.mean) @ self.basis) * factors) @ self.basis.T


def fitted_order(errors: Sequence[float], steps: Sequence[int]) -> float:
    """Negative slope of log error over log steps, by least squares."""
    a, b = (torch.tensor(values, dtype=torch.float64).log() for values in (steps, errors))
    a, b = a - a.mean(), b - b.mean()
    return -float((a * b).sum() / (a * a).sum())


def convergence(
    sampler: Callable[..., Tensor],
    steps: Sequence[int] = (64, 96, 128, 192, 256),
    sigma_min: float = 0.05,
    sigma_max: float = 20.0,
    schedule: str = "logsnr",
) -> tuple[list[float], float]:
    """Errors of a sampler against the exact flow from ``sigma_max`` to ``sigma_min``, and their fitted order."""
    data = GaussianData.spread()
    x = data.at(sigma_max, 32)
    exact = data.flow(x, sigma_max, sigma_min)
    errors = []
    for count in steps:
        sigmas = make_sigmas(schedule, count, sigma_min=sigma_min, sigma_max=sigma_max, final_zero=False)
        errors.append(data.error(sampler(data.denoise, x, sigmas), exact))
    return errors, fitted_order(errors, steps)


def monai_ddim(data: GaussianData, x: Tensor, num_inference_steps: int) -> Tensor:
    """MONAI's ``DDIMScheduler`` (linear betas, 1000 steps, no clipping) driven by the exact noise.

    Args:
        data: the oracle.
        x: start in the convention ``x0 + sigma n`` at the chain's last level.
        num_inference_steps: number of steps.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from monai.networks.schedulers import DDIMScheduler
    scheduler = DDIMScheduler(num_train_timesteps=1000, clip_sample=False)
    scheduler.set_timesteps(num_inference_steps)
    alpha_bar = scheduler.alphas_cumprod.double()
    z = x * alpha_bar[-1].sqrt()
    for t in scheduler.timesteps.tolist():
        alpha, sigma = alpha_bar[t].sqrt(), ((1 - alpha_bar[t]) / alpha_bar[t]).sqrt()
        noise = (z / alpha - data.denoise(z / alpha, sigma.expand(len(z)))) / sigma
        z, _ = scheduler.step(noise, t, z)
    return z


def chain_range() -> tuple[float, float]:
    """Lowest and highest sigma of that chain."""
    sigmas = make_sigmas("linear_beta", 1000)
    return float(sigmas[-2]), float(sigmas[0])


def error_within(sampler: Sampler, calls: int, data: GaussianData, x: Tensor, schedule: str, **options: float) -> float:
    """Error at sigma = 0 of a sampler given a number of denoiser calls, from the chain's highest level."""
    sigma_max = chain_range()[1]
    steps = max(n for n in range(1, calls + 1) if evaluations(sampler.name, n) <= calls)
    sigmas = make_sigmas(schedule, steps, sigma_max=sigma_max, **options)
    return data.error(sampler(data.denoise, x, sigmas), data.flow(x, sigma_max, 0.0))


def exact_variances(sampler: Sampler, sigmas: Tensor, variances: Tensor, distilled: bool = False) -> Tensor:
    """Variances that a stochastic sampler gives, without sampling error.

    On centred Gaussian data every sampler is linear in its start and its noises. The last axis of the state holds the
    coefficients of these: entry 0 of the start, entry k of the k-th noise.

    Args:
        sampler: any entry of ``SAMPLERS``.
        sigmas: levels of the run.
        variances: of the data, ``(d,)``.
        distilled: give the sampler the flow's end instead of the expected clean sample.
    """
    x = torch.zeros(1, 1, len(variances), len(sigmas) + 1, dtype=torch.float64)
    x[..., 0] = (variances + sigmas[0] ** 2).sqrt()
    drawn = 0

    def unit(shape: Sequence[int], streams: object, **_: object) -> Tensor:
        nonlocal drawn
        drawn += 1
        noise = torch.zeros(1, *shape, dtype=torch.float64)
        noise[..., drawn] = 1
        return noise

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        share = variances / (variances + sigma[0] ** 2)
        return x * (share.sqrt() if distilled else share)[:, None]

    with mock.patch("medgen.diffusion.samplers.randn", unit):
        result = sampler(denoise, x, sigmas, generators=generators([0]))
    return (result**2).sum(-1)[0, 0]


def deterministic() -> list[Sampler]:
    """The samplers of the table that follow the probability flow."""
    return [sampler for sampler in SAMPLERS.values() if sampler.deterministic]


def stochastic() -> list[Sampler]:
    """The samplers of the table that draw noise and converge, given a denoiser."""
    return [sampler for sampler in SAMPLERS.values() if not sampler.deterministic and sampler.order > 0]


def variance_convergence(sampler: Sampler, steps: Sequence[int] = (64, 96, 128, 192, 256)) -> tuple[list[float], float]:
    """Largest relative error of the variances by number of steps, sigma 20 to 0.05, and the fitted weak order."""
    variances = GaussianData.spread().variances
    errors = []
    for count in steps:
        sigmas = logsnr_sigmas(count, 0.05, 20.0, final_zero=False)
        target = variances + sigmas[-1] ** 2
        errors.append(float((exact_variances(sampler, sigmas, variances) / target - 1).abs().max()))
    return errors, fitted_order(errors, steps)


def print_orders() -> None:
    """Errors and fitted orders away from sigma = 0."""
    steps = (64, 96, 128, 192, 256)
    for schedule in ("logsnr", "karras", "flow"):
        print(f"\nsigma 20 to 0.05, {schedule} grid, float64: error by steps {steps}, fitted order (theory)")
        for sampler in deterministic():
            _print_order(sampler, *convergence(sampler, steps, schedule=schedule))
    print(f"\nthe same, logsnr grid: relative error of the variance by steps {steps}, fitted weak order (theory)")
    for sampler in stochastic():
        _print_order(sampler, *variance_convergence(sampler, steps))


def _print_order(sampler: Sampler, errors: Sequence[float], order: float) -> None:
    row = " ".join(f"{error:9.2e}" for error in errors)
    print(f"  {sampler.name:12s} {row}  order {order:5.2f} ({sampler.order})")


def print_errors(lowest: float, highest: float) -> None:
    """Errors at sigma = 0 by number of evaluations, and MONAI's DDIM, for data deviations in a range."""
    data = GaussianData.spread(lowest**2, highest**2)
    sigma_min, sigma_max = chain_range()
    x = data.at(sigma_max, 64)
    counts = (5, 10, 20, 50, 250)
    print(f"\ndata deviations {lowest:g}..{highest:g}, sigma {sigma_max:.0f} to 0: error / deviation by calls {counts}")
    grids: list[tuple[str, dict[str, float]]] = [("logsnr", {}), ("logsnr", {"sigma_min": sigma_min})]
    grids += [("logsnr", {"knee": 7 * highest}), ("karras", {}), ("flow", {})]
    for schedule, options in grids:
        title = " ".join([schedule, *(f"{name}={value:.2g}" for name, value in options.items())])
        for sampler in deterministic():
            errors = [error_within(sampler, calls, data, x, schedule, **options) for calls in counts]
            print(f"  {sampler.name:12s} {title:24s} " + " ".join(f"{error:8.4f}" for error in errors))
    exact = data.flow(x, sigma_max, 0.0)
    errors = [data.error(monai_ddim(data, x, calls), exact) for calls in counts]
    print(f"  {'MONAI DDIM':12s} {'linspace':24s} " + " ".join(f"{error:8.4f}" for error in errors))


if __name__ == "__main__":
    print_orders()
    for lowest, highest in ((0.01, 2.0), (0.03, 1.4), (0.1, 1.4), (0.1, 30.0)):
        print_errors(lowest, highest)
