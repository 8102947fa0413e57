"""Training targets and weights of denoisers, and the noise levels they are trained at."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from medgen.checks import check_choice
from medgen.diffusion.denoiser import Conditioning, Preconditioned, exact


def edm_weight(sigma: Tensor, sigma_data: float) -> Tensor:
    """``(sigma**2 + sigma_data**2) / (sigma * sigma_data)**2``: Karras et al. 2022, section 5, equation 18."""
    return (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2


def min_snr_weight(sigma: Tensor, sigma_data: float, gamma: float = 5.0) -> Tensor:
    """``min(SNR, gamma)`` on the x0 error, SNR = (sigma_data / sigma)^2: Hang et al. 2023 (arXiv:2303.09556), eq. 6."""
    return (sigma_data / sigma).square().clamp(max=gamma)


def flow_weight(sigma: Tensor, sigma_data: float) -> Tensor:
    """``1 / t**2``, ``t = sigma / (1 + sigma)``: the plain velocity loss of rectified flow seen as an x0 loss."""
    return ((1 + sigma) / sigma).square()


WEIGHTINGS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "edm": edm_weight,
    "min_snr": min_snr_weight,
    "flow": flow_weight,
}


def lognormal_sigmas(streams: Sequence[torch.Generator], mean: float, std: float) -> Tensor:
    """Noise levels ``ln sigma ~ N(mean, std**2)``, ``(B,)`` float64, one per stream (Karras et al. 2022, equation 16).

    ``mean=0, std=1`` is the logit-normal time of rectified flow (Esser et al. 2024, arXiv:2403.03206, section 3.1).
    """
    draws = [torch.randn((), generator=stream, dtype=torch.float64) for stream in streams]
    return (torch.stack(draws) * std + mean).exp()


def denoising_loss(
    denoiser: Preconditioned,
    x0: Tensor,
    noise: Tensor,
    sigma: Tensor,
    conditioning: Conditioning | None = None,
    *,
    weighting: str = "edm",
    voxel_weight: Tensor | None = None,
) -> Tensor:
    """Weighted squared error of the denoised sample, one value per sample.

    Args:
        denoiser: the model in training.
        x0: clean samples ``(B, C, *spatial)``.
        noise: standard normal, same shape.
        sigma: noise levels ``(B,)``.
        conditioning: see :class:`~medgen.diffusion.denoiser.Denoiser`.
        weighting: one of ``WEIGHTINGS``.
        voxel_weight: optional ``(B, 1, *spatial)`` or ``(B, C, *spatial)`` weight of each error.

    Returns:
        ``(B,)`` losses in float32.
    """
    check_choice("denoising_loss", "weighting", weighting, WEIGHTINGS)
    level = sigma.to(x0.dtype).to(x0.device).reshape(-1, *[1] * (x0.ndim - 1))
    error = (denoiser(x0 + level * noise, sigma, conditioning) - x0).float().square()
    if voxel_weight is not None:
        error = error * voxel_weight
    weight = WEIGHTINGS[weighting](exact(sigma), denoiser.sigma_data).to(error.dtype).to(error.device)
    return weight * error.flatten(1).mean(1)
