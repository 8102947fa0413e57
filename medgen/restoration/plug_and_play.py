"""Any linear operator undone with a denoiser that was trained for none of them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from medgen.checks import MedgenError, check_count, check_positive
from medgen.diffusion.samplers import Denoise
from medgen.restoration.posterior import Measurement, make_consistent

__all__ = ["plug_and_play"]

LAMBDA = 0.23
SMALLEST = 1e-3


def plug_and_play(
    denoise: Denoise,
    measurement: Measurement,
    *,
    steps: int = 24,
    sigma_max: float = 0.2,
    sigma_min: float | None = None,
    weight: float = LAMBDA,
    iterations: int = 20,
    callback: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Half-quadratic splitting: what fits the measurement and what the denoiser leaves as it is, in turn.

    For falling ``sigma_k``: ``x_k`` has the least ``|y - A x|^2 / noise_std^2 + weight |x - z_k-1|^2 / sigma_k^2``,
    and ``z_k = D(x_k, sigma_k)`` (Zhang et al. 2021, arXiv:2008.13751, equations 6 and 7, algorithm 1). One image, the
    same each time: no sample of a posterior.

    Args:
        denoise: ``D(x, sigma)`` of real images; no derivative is asked for.
        measurement: of as many volumes as are restored.
        steps: of ``sigma_k``, evenly spaced in its logarithm.
        sigma_max: the first, about the error of the start; in the unit of the denoiser's images.
        sigma_min: the last; the noise of the measurement by default.
        weight: of the denoiser against the measurement.
        iterations: of conjugate gradients in each step.
        callback: called with (steps done, steps).

    Returns:
        ``(B, C, *size)``, on the device of the measurement, its residual no larger than the noise.

    Raises:
        MedgenError: numbers that are not above 0, or ``sigma_min`` above ``sigma_max``.
    """
    check_count("plug_and_play", "steps", steps)
    for name, value in (("sigma_max", sigma_max), ("weight", weight)):
        check_positive("plug_and_play", name, value)
    last = max(measurement.noise_std, SMALLEST) if sigma_min is None else sigma_min
    if not 0 < last <= sigma_max:
        raise MedgenError(
            f"plug_and_play: sigma_min must be above 0 and at most sigma_max, {sigma_max:g}. Got {last:g}. Correct it."
        )
    made = measurement.operator.to_image(measurement.y)
    made = made.real if made.is_complex() else made
    share = torch.linspace(0, 1, steps, dtype=torch.float64)
    levels = sigma_max * (last / sigma_max) ** share
    for k, sigma in enumerate(levels.tolist()):
        fitted = measurement.fitted(made, sigma**2 / weight, iterations)
        made = denoise(fitted, torch.full((len(fitted),), sigma, device=fitted.device))
        if callback is not None:
            callback(k + 1, steps)
    return make_consistent(made, measurement)
