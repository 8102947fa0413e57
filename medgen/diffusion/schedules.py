"""Noise schedules: functions that lay out the sigmas of one sampling run, high to low.

Every schedule returns a 1-D float64 CPU tensor of ``num_inference_steps + 1`` levels in the convention
``x = x0 + sigma * n``. The last level is ``0.0``; with ``final_zero=False`` it is the lowest level of the
schedule instead. A sampler steps exactly from one level to the next, so grid and steps cannot disagree.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from medgen.checks import MedgenError, check_choice, check_positive

SIGMA_MIN, SIGMA_MAX = 0.002, 80.0
"""Range of Karras et al. 2022, table 1, for data of unit scale."""

TIMESTEP_SPACINGS = ("linspace", "leading", "trailing")


def karras_sigmas(
    num_inference_steps: int,
    sigma_min: float = SIGMA_MIN,
    sigma_max: float = SIGMA_MAX,
    *,
    rho: float = 7.0,
    final_zero: bool = True,
) -> Tensor:
    """Levels uniform in ``sigma ** (1 / rho)``: shorter steps where the noise is low.

    Args:
        num_inference_steps: number of steps, at least 1.
        sigma_min: lowest level above zero.
        sigma_max: first level.
        rho: 1 is uniform in sigma, large values approach :func:`logsnr_sigmas`.
        final_zero: end at 0 after ``sigma_min``; otherwise end at ``sigma_min``.

    Returns:
        Sigmas ``(num_inference_steps + 1,)``, float64.

    Raises:
        MedgenError: for a step count below 1 or a range that is not ``0 < sigma_min < sigma_max``.

    References:
        Karras et al. 2022, arXiv:2206.00364, equation 5.
    """
    _check_range("karras_sigmas", num_inference_steps, sigma_min, sigma_max)
    check_positive("karras_sigmas", "rho", rho)
    ramp = _ramp(sigma_max ** (1 / rho), sigma_min ** (1 / rho), num_inference_steps, final_zero)
    return _finish(ramp**rho, sigma_max, final_zero)


def logsnr_sigmas(
    num_inference_steps: int,
    sigma_min: float = SIGMA_MIN,
    sigma_max: float = SIGMA_MAX,
    *,
    knee: float | None = None,
    final_zero: bool = True,
) -> Tensor:
    """Levels uniform in ``log sigma``, that is in half the log signal-to-noise ratio.

    Scale-free: no step is wasted or missing whatever the spread of the data. With a ``knee`` the levels are uniform
    in ``log(sigma / (knee + sigma))`` instead, which passes the range above it in few steps. That gains where nothing
    is decided up there and loses where something is: about 7 times the data's largest principal deviation is safe.

    Args:
        num_inference_steps: number of steps, at least 1.
        sigma_min: lowest level above zero.
        sigma_max: first level.
        knee: noise level above which steps grow longer; None for nowhere.
        final_zero: end at 0 after ``sigma_min``; otherwise end at ``sigma_min``.

    Returns:
        Sigmas ``(num_inference_steps + 1,)``, float64.

    Raises:
        MedgenError: for a step count below 1, a range that is not ``0 < sigma_min < sigma_max``, a knee <= 0.

    Example:
        >>> [round(sigma, 9) for sigma in logsnr_sigmas(3, 0.01, 1.0).tolist()]
        [1.0, 0.1, 0.01, 0.0]

    References:
        Lu et al. 2022 (DPM-Solver), arXiv:2206.00927, section 3.4; the knee is medgen's own.
    """
    _check_range("logsnr_sigmas", num_inference_steps, sigma_min, sigma_max)
    if knee is None:
        ramp = _ramp(math.log(sigma_max), math.log(sigma_min), num_inference_steps, final_zero)
        return _finish(ramp.exp(), sigma_max, final_zero)
    check_positive("logsnr_sigmas", "knee", knee)
    high, low = (math.log(sigma / (knee + sigma)) for sigma in (sigma_max, sigma_min))
    t = _ramp(high, low, num_inference_steps, final_zero).exp()
    return _finish(knee * t / (1 - t), sigma_max, final_zero)


def flow_sigmas(
    num_inference_steps: int,
    sigma_min: float = SIGMA_MIN,
    sigma_max: float = SIGMA_MAX,
    *,
    shift: float = 1.0,
    final_zero: bool = True,
) -> Tensor:
    """Levels uniform in flow time ``t = sigma / (1 + sigma)``, optionally shifted for the resolution.

    The shift ``t -> shift t / (1 + (shift - 1) t)`` multiplies every sigma by ``shift``; the ends of the grid
    are moved the other way beforehand, so that it starts at ``sigma_max`` whatever the shift. Flow time 1 is
    sigma = infinity, hence the finite ``sigma_max``. With ``final_zero`` the grid is uniform down to t = 0
    unless that would evaluate below ``sigma_min``; then it is uniform down to ``sigma_min``, 0 following.

    Args:
        num_inference_steps: number of steps, at least 1.
        sigma_min: no level but the final zero lies below this.
        sigma_max: first level.
        shift: above 1 spends more steps at high noise; ``sqrt(m / n)`` for m voxels where n were usual.
        final_zero: end at 0; otherwise end at ``sigma_min``.

    Returns:
        Sigmas ``(num_inference_steps + 1,)``, float64.

    Raises:
        MedgenError: for a step count below 1, a range that is not ``0 < sigma_min < sigma_max``, a shift <= 0.

    Example:
        >>> [round(s, 6) for s in flow_sigmas(4, 0.001, 4.0).tolist()]
        [4.0, 1.5, 0.666667, 0.25, 0.0]

    References:
        Liu et al. 2022, arXiv:2209.03003; Lipman et al. 2022, arXiv:2210.02747; shift: Esser et al. 2024,
        arXiv:2403.03206, equation 23.
    """
    _check_range("flow_sigmas", num_inference_steps, sigma_min, sigma_max)
    check_positive("flow_sigmas", "shift", shift)
    high, low = (sigma / shift / (1 + sigma / shift) for sigma in (sigma_max, sigma_min))
    if final_zero:
        low = max(low, high / num_inference_steps)
    t = _ramp(high, low, num_inference_steps, final_zero)
    return _finish(shift * t / (1 - t), sigma_max, final_zero)


def linear_beta_sigmas(
    num_inference_steps: int,
    *,
    num_train_timesteps: int = 1000,
    beta_start: float = 1e-4,
    beta_end: float = 0.02,
    spacing: str = "trailing",
    final_zero: bool = True,
) -> Tensor:
    """Levels of a model trained with betas that rise linearly (DDPM).

    Args:
        num_inference_steps: number of steps, from 1 to ``num_train_timesteps``.
        num_train_timesteps: length of the training chain.
        beta_start: first beta.
        beta_end: last beta.
        spacing: which training timesteps are kept, see :func:`spaced_timesteps`.
        final_zero: end at 0; otherwise the last of ``num_inference_steps + 1`` timesteps ends the grid.

    Returns:
        Sigmas ``(num_inference_steps + 1,)``, float64.

    Raises:
        MedgenError: for a step count or spacing that is not valid.

    References:
        Ho et al. 2020, arXiv:2006.11239, section 4.
    """
    betas = torch.linspace(beta_start, beta_end, num_train_timesteps, dtype=torch.float64)
    return _beta_sigmas("linear_beta_sigmas", betas, num_inference_steps, spacing, final_zero)


def scaled_linear_beta_sigmas(
    num_inference_steps: int,
    *,
    num_train_timesteps: int = 1000,
    beta_start: float = 0.0015,
    beta_end: float = 0.0195,
    spacing: str = "trailing",
    final_zero: bool = True,
) -> Tensor:
    """Levels of a model trained with betas whose square root rises linearly (latent diffusion).

    Args, returns and raises are those of :func:`linear_beta_sigmas`.

    References:
        Rombach et al. 2022, arXiv:2112.10752, appendix.
    """
    betas = torch.linspace(beta_start**0.5, beta_end**0.5, num_train_timesteps, dtype=torch.float64) ** 2
    return _beta_sigmas("scaled_linear_beta_sigmas", betas, num_inference_steps, spacing, final_zero)


def cosine_beta_sigmas(
    num_inference_steps: int,
    *,
    num_train_timesteps: int = 1000,
    offset: float = 0.008,
    spacing: str = "trailing",
    final_zero: bool = True,
) -> Tensor:
    """Levels of a model trained with the cosine schedule, betas cut at 0.999.

    Args:
        num_inference_steps: number of steps, from 1 to ``num_train_timesteps``.
        num_train_timesteps: length of the training chain.
        offset: the ``s`` of the paper.
        spacing: which training timesteps are kept, see :func:`spaced_timesteps`.
        final_zero: end at 0; otherwise the last of ``num_inference_steps + 1`` timesteps ends the grid.

    Returns:
        Sigmas ``(num_inference_steps + 1,)``, float64.

    Raises:
        MedgenError: for a step count or spacing that is not valid.

    References:
        Nichol and Dhariwal 2021, arXiv:2102.09672, equation 17.
    """
    t = torch.arange(num_train_timesteps + 1, dtype=torch.float64) / num_train_timesteps
    alpha_bar = torch.cos((t + offset) / (1 + offset) * math.pi / 2) ** 2
    betas = (1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=0.999)
    return _beta_sigmas("cosine_beta_sigmas", betas, num_inference_steps, spacing, final_zero)


SCHEDULES: dict[str, Callable[..., Tensor]] = {
    "karras": karras_sigmas,
    "logsnr": logsnr_sigmas,
    "flow": flow_sigmas,
    "linear_beta": linear_beta_sigmas,
    "scaled_linear_beta": scaled_linear_beta_sigmas,
    "cosine_beta": cosine_beta_sigmas,
}


def make_sigmas(schedule: str, num_inference_steps: int, **options: Any) -> Tensor:
    """Sigmas of a schedule by name, with that schedule's options.

    Args:
        schedule: one of ``SCHEDULES``.
        num_inference_steps: number of steps, at least 1.
        **options: what that schedule takes besides, such as ``sigma_min`` or ``num_train_timesteps``.

    Returns:
        Sigmas ``(num_inference_steps + 1,)``, float64.

    Raises:
        MedgenError: for an unknown schedule or option, or a value that the schedule refuses.

    Example:
        >>> make_sigmas("logsnr", 2, sigma_min=0.5, sigma_max=2.0).tolist()
        [2.0, 0.5, 0.0]
    """
    check_choice("make_sigmas", "schedule", schedule, SCHEDULES)
    function = SCHEDULES[schedule]
    known = list(inspect.signature(function).parameters)[1:]
    for name in options:
        check_choice("make_sigmas", f"option of schedule '{schedule}'", name, known)
    return function(num_inference_steps, **options)


def alphas_cumprod_to_sigmas(alphas_cumprod: Tensor) -> Tensor:
    """``sigma = sqrt((1 - alpha_bar) / alpha_bar)``: a variance-preserving chain in the convention used here.

    Args:
        alphas_cumprod: ``alpha_bar`` of each training timestep, in (0, 1], any shape.

    Returns:
        Sigmas of that shape, float64; the noisy sample here is the chain's over ``sqrt(alpha_bar)``.
    """
    alpha_bar = alphas_cumprod.double()
    return ((1 - alpha_bar) / alpha_bar).sqrt()


def spaced_timesteps(num_inference_steps: int, num_train_timesteps: int, spacing: str = "trailing") -> Tensor:
    """Training timesteps kept for inference, high to low.

    Args:
        num_inference_steps: how many, from 1 to ``num_train_timesteps``.
        num_train_timesteps: length of the training chain, counted from 0.
        spacing: ``"linspace"`` keeps first and last, ``"leading"`` starts at 0 with a whole stride,
            ``"trailing"`` ends at the last timestep with an even stride.

    Returns:
        Timesteps ``(num_inference_steps,)``, int64.

    Raises:
        MedgenError: for a count out of range or an unknown spacing.

    Example:
        >>> spaced_timesteps(4, 1000, "trailing").tolist()
        [999, 749, 499, 249]

    References:
        Lin et al. 2023, arXiv:2305.08891, table 2.
    """
    _check_steps("spaced_timesteps", num_inference_steps, most=num_train_timesteps)
    check_choice("spaced_timesteps", "spacing", spacing, TIMESTEP_SPACINGS)
    index = torch.arange(num_inference_steps, dtype=torch.float64)
    if spacing == "linspace":
        kept = (num_train_timesteps - 1) * (1 - index / max(num_inference_steps - 1, 1))
    elif spacing == "leading":
        kept = (num_inference_steps - 1 - index) * (num_train_timesteps // num_inference_steps)
    else:
        kept = num_train_timesteps * (1 - index / num_inference_steps) - 1
    return kept.round().long()


def _beta_sigmas(caller: str, betas: Tensor, num_inference_steps: int, spacing: str, final_zero: bool) -> Tensor:
    """Sigmas of the kept timesteps of a chain with these betas."""
    points = num_inference_steps if final_zero else num_inference_steps + 1
    _check_steps(caller, num_inference_steps, most=len(betas) - (not final_zero))
    levels = alphas_cumprod_to_sigmas(torch.cumprod(1 - betas, dim=0))
    sigmas = levels[spaced_timesteps(points, len(betas), spacing)]
    return _finish(sigmas, float(sigmas[0]), final_zero)


def _ramp(start: float, end: float, num_inference_steps: int, final_zero: bool) -> Tensor:
    """Even levels from ``start`` to ``end``, leaving room for the final zero where there is one."""
    points = num_inference_steps if final_zero else num_inference_steps + 1
    return torch.linspace(start, end, points, dtype=torch.float64)


def _finish(sigmas: Tensor, sigma_max: float, final_zero: bool) -> Tensor:
    """Puts the exact first level in place of the rounded one and appends the zero."""
    sigmas = torch.cat([sigmas.new_tensor([sigma_max]), sigmas[1:]])
    return torch.cat([sigmas, sigmas.new_zeros(1)]) if final_zero else sigmas


def _check_steps(caller: str, num_inference_steps: object, most: int | None = None) -> None:
    """Raises unless the step count is a whole number from 1 to ``most``."""
    whole = isinstance(num_inference_steps, int) and not isinstance(num_inference_steps, bool)
    if not whole or num_inference_steps < 1 or (most is not None and num_inference_steps > most):  # type: ignore[operator]
        top = "" if most is None else f" and at most {most}"
        raise MedgenError(
            f"{caller}: num_inference_steps must be a whole number of at least 1{top}; got {num_inference_steps!r}."
            " Give such a number."
        )


def _check_range(caller: str, num_inference_steps: int, sigma_min: float, sigma_max: float) -> None:
    """Raises unless the grid is possible."""
    _check_steps(caller, num_inference_steps)
    check_positive(caller, "sigma_min", sigma_min)
    check_positive(caller, "sigma_max", sigma_max)
    if sigma_min >= sigma_max:
        raise MedgenError(
            f"{caller}: sigma_min must be below sigma_max; got {sigma_min!r} and {sigma_max!r}. Exchange them."
        )
