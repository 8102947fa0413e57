"""Denoisers that know a measurement: what turns any sampler into a sampler of the posterior.

A measurement is ``y = A(x0) + noise`` with Gaussian noise of deviation ``noise_std``. By Tweedie's formula the
denoiser of the posterior is the prior's plus the score of the likelihood,

    E[x0 | x, y] = D(x, sigma) + sigma**2 grad_x log p(y | x),        p(y | x) = E[p(y | x0) | x],

so that every method here is a ``denoise(x, sigma) -> x0`` of its own, and each sampler of
:mod:`medgen.diffusion.samplers` runs on it unchanged. The methods differ in what they take ``p(x0 | x)`` for. With
``D`` the prior's denoiser and ``r**2`` the variance that ``p(x0 | x)`` is given:

- ``dps``: a point mass at ``D`` (Chung et al. 2023, arXiv:2209.14687, equations 13 to 16), the step normalised by the
  residual's length.
- ``pigdm``: ``N(D, r**2 I)``, so that ``y ~ N(A D, r**2 A A* + noise_std**2 I)`` (Song et al. 2023, "Pseudoinverse-
  guided diffusion models", equations 5 to 7).
- ``diffpir``: the same without the derivative of ``D``: the nearest point to ``D`` that fits the measurement, weighed
  by both variances (Zhu et al. 2023, arXiv:2305.08995, equation 13 and algorithm 1).
- ``ddnm``: the part of ``D`` that the measurement sees is replaced by the pseudo-inverse's, as far as the noise allows
  (Wang et al. 2023, arXiv:2212.00490, equations 12 and 17: DDNM and DDNM+).

``r**2 = sigma**2 s**2 / (sigma**2 + s**2)`` is the posterior variance of a Gaussian prior of deviation ``s``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from medgen.checks import MedgenError, check_choice, check_count, check_positive
from medgen.diffusion.samplers import Denoise
from medgen.operators import Mask, Operator, least_squares
from medgen.operators.solve import square_norm

__all__ = ["METHODS", "Known", "Measurement", "make_consistent", "posterior_denoiser"]

METHODS = ("dps", "pigdm", "diffpir", "ddnm")
ITERATIONS = 30
SLIGHT = 1e-3  # of the operator's squared norm: weight of staying, in each step to what was measured
REFINEMENTS, INEXACT, CLOSE = 8, 1e-3, 1e-6
SMALLEST_WEIGHT = 1e-6  # of the prior in an exact measurement: what no measurement tells stays


class Known(Protocol):
    """What the methods ask of a measurement: of the samples themselves, or of what is decoded from them."""

    @property
    def prior_std(self) -> float:
        """Deviation of an entry over the prior's samples."""

    def residual(self, x: Tensor, /) -> Tensor:
        """What is measured less what samples would give."""

    def fitted(self, x: Tensor, /, variance: float) -> Tensor:
        """Mean given the measurement, where it was ``N(x, variance)`` before."""


@dataclass(frozen=True)
class Measurement:
    """What is known of a volume.

    Attributes:
        operator: ``A``, linear.
        y: what was measured ``(B, ...)``, as the operator gives it, in the unit of the denoiser's samples.
        noise_std: deviation of the noise in ``y`` (of a complex one: of either part); 0: exact.
        prior_std: deviation ``s`` of a voxel over the prior's samples.
    """

    operator: Operator
    y: Tensor
    noise_std: float = 0.0
    prior_std: float = 1.0

    def __post_init__(self) -> None:
        check_positive("Measurement", "prior_std", self.prior_std)
        if not self.noise_std >= 0:
            raise MedgenError(f"Measurement: noise_std must be 0 or above. Got {self.noise_std}. Give 0 for no noise.")
        if not self.operator.linear:
            raise MedgenError(f"Measurement: operator must be linear. Got {self.operator.caller}. Choose another one.")

    def residual(self, x: Tensor) -> Tensor:
        """``y - A x``.

        Raises:
            MedgenError: real volumes of an operator that takes complex ones.
        """
        if self.operator.domain == "complex" and not x.is_complex():
            raise MedgenError(
                f"Measurement: {self.operator.caller} takes complex volumes, and the samples are real. Put Phase in "
                "front: Chain([Phase(...), operator])."
            )
        return self.y - self.operator.forward(x)

    def fitted(self, x: Tensor, variance: float, iterations: int = ITERATIONS) -> Tensor:
        """Mean of ``x0`` given ``y``, where it was ``N(x, r**2 I)`` before.

        ``x + r**2 A* (r**2 A A* + noise_std**2 I)**-1 (y - A x)``, the ``z`` with the least
        ``|y - A z|**2 / noise_std**2 + |z - x|**2 / r**2``.

        Args:
            x: ``(B, C, *spatial)``, the mean before.
            variance: ``r**2``, before.
            iterations: at most, of conjugate gradients.
        """
        weight = max(self.noise_std**2 / variance, SMALLEST_WEIGHT)
        return least_squares(self.operator, self.y, start=x, weight=weight, iterations=iterations)


def posterior_denoiser(denoise: Denoise, measurement: Known, method: str = "pigdm", *, weight: float = 1.0) -> Denoise:
    """``denoise(x, sigma) -> E[x0 | x, y]``, approximately, for any sampler.

    Args:
        denoise: of the prior; its gradient with respect to ``x`` is needed by ``dps`` and ``pigdm``.
        measurement: of as many volumes as are sampled; where samples are latents or packed, a
            :class:`~medgen.restoration.latent.LatentMeasurement`.
        method: see this module, one of :data:`METHODS`.
        weight: of the likelihood; of ``dps`` the step ``zeta`` of its equation 16.

    Raises:
        MedgenError: an unknown method, or ``ddnm`` of what must be decoded first.
    """
    check_choice("posterior_denoiser", "method", method, METHODS)
    if method == "ddnm" and not isinstance(measurement, Measurement):
        raise MedgenError(
            "posterior_denoiser: method 'ddnm' replaces voxels of the samples themselves, which these must be decoded "
            "to first. Use 'pigdm' or 'diffpir'."
        )
    function = _METHODS[method]

    def conditioned(x: Tensor, sigma: Tensor) -> Tensor:
        return function(denoise, measurement, x, sigma, weight)

    return conditioned


def _dps(denoise: Denoise, known: Known, x: Tensor, sigma: Tensor, weight: float) -> Tensor:
    """``D - 2 weight sigma grad_x |y - A D|``.

    Equation 16 steps by ``rho grad |y - A D|**2 = 2 zeta grad |y - A D|`` with ``rho = zeta / |y - A D|``; here that is
    the score's share ``sigma**2 grad log p`` of the denoiser with ``zeta = weight / sigma``: the pull fades as slowly
    as the steps of the sampler do.
    """
    with torch.enable_grad():
        at = x.detach().requires_grad_(True)
        x0 = denoise(at, sigma)
        length = known.residual(x0).abs().square().flatten(1).sum(1).sqrt()
        (slope,) = torch.autograd.grad(length.sum(), at)
    return x0.detach() - 2 * weight * _column(sigma, x) * slope


def _pigdm(denoise: Denoise, known: Known, x: Tensor, sigma: Tensor, weight: float) -> Tensor:
    with torch.enable_grad():
        at = x.detach().requires_grad_(True)
        x0 = denoise(at, sigma)
        mean, variance = x0.detach(), _variance(known, sigma)
        pull = (known.fitted(mean, variance) - mean) / variance
        (slope,) = torch.autograd.grad((x0 * pull).sum(), at)
    return x0.detach() + weight * _column(sigma, x) ** 2 * slope


def _diffpir(denoise: Denoise, known: Known, x: Tensor, sigma: Tensor, weight: float) -> Tensor:
    x0 = denoise(x, sigma)
    return x0 + weight * (known.fitted(x0, _variance(known, sigma)) - x0)


def _ddnm(denoise: Denoise, known: Measurement, x: Tensor, sigma: Tensor, weight: float) -> Tensor:
    x0 = denoise(x, sigma)
    trust = min(1.0, float(sigma[0]) / known.noise_std) if known.noise_std else 1.0
    return x0 + weight * trust * _pseudo_inverse(known.operator, known.residual(x0), ITERATIONS)


_METHODS: dict[str, Callable[[Denoise, Any, Tensor, Tensor, float], Tensor]] = {
    "dps": _dps,
    "pigdm": _pigdm,
    "diffpir": _diffpir,
    "ddnm": _ddnm,
}


def _variance(known: Known, sigma: Tensor) -> float:
    """``r**2``; the levels of a batch are equal."""
    level = float(sigma[0]) ** 2
    return level * known.prior_std**2 / (level + known.prior_std**2)


def make_consistent(x: Tensor, measurement: Measurement, iterations: int = 100) -> Tensor:
    """The nearest volume to ``x`` that agrees with the measurement, to the noise's level.

    Without noise the measurement holds exactly for a mask, to the last bit, and else as far as iterated Tikhonov steps
    go: what an operator lets through with less than a hundredth of its norm stays as in ``x``, or nearly, as numbers of
    single precision say little of it. With noise ``x`` moves only where its residual is larger than the noise, and so
    far that it is about as large.

    Args:
        x: ``(B, C, *spatial)``.
        measurement: see :class:`Measurement`.
        iterations: of conjugate gradients, at most, in each step.

    Returns:
        Shape of ``x``.

    Raises:
        MedgenError: ``iterations`` below 1, or real volumes of an operator that takes complex ones.
    """
    check_count("make_consistent", "iterations", iterations)
    residual = measurement.residual(x)
    if isinstance(measurement.operator, Mask) and not measurement.noise_std:  # x + (y - x) need not be y
        return torch.where(measurement.operator.observed, measurement.y.to(x.dtype), x)
    size = _rms(residual, measurement.operator.observed)
    excess = (1 - measurement.noise_std / size.clamp(min=torch.finfo(size.dtype).tiny)).clamp(min=0)
    missing = residual * excess.reshape(-1, *[1] * (residual.ndim - 1))
    operator, wanted = measurement.operator, float(CLOSE * measurement.y.abs().max())
    weight = SLIGHT * square_norm(operator, x)
    for _ in range(REFINEMENTS):
        if float(missing.abs().max()) <= wanted:
            break
        step = least_squares(operator, missing, weight=weight, iterations=iterations, tolerance=INEXACT)
        x, missing = x + step, missing - operator.forward(step)
    return x


def _pseudo_inverse(operator: Operator, y: Tensor, iterations: int) -> Tensor:
    return operator.pseudo_inverse(y) if operator.closed else least_squares(operator, y, iterations=iterations)


def _rms(x: Tensor, observed: Tensor | None) -> Tensor:
    """Root mean square of each row over what is measured, of a complex one over both parts."""
    square = x.abs().square() / (2 if x.is_complex() else 1)
    if observed is None:
        return square.flatten(1).mean(1).sqrt()
    there = observed.expand(x.shape[1:]).to(square)
    return ((square * there).flatten(1).sum(1) / there.sum().clamp(min=1)).sqrt()


def _column(values: Tensor, like: Tensor) -> Tensor:
    return values.to(like.dtype).reshape(-1, *[1] * (like.ndim - 1))
