"""Classifier-free guidance, limited to an interval of noise levels."""

from __future__ import annotations

import math

from torch import Tensor

from medgen.checks import MedgenError
from medgen.diffusion.denoiser import Conditioning, Denoiser


class ClassifierFreeGuidance:
    """A denoiser bound to its conditioning: ``D = D_null + guidance_scale (D_conditioned - D_null)``.

    What a sampler calls. The unconditional answer is computed only where it counts: never at a scale of 1, never
    when no sample of the batch lies within the interval.

    Args:
        denoiser: ``denoiser(x, sigma, conditioning) -> x0``.
        conditioning: what is asked for, one row per sample.
        null_conditioning: what stands for "nothing asked" in training, such as zeros; None passes None.
        guidance_scale: 1 is the conditional model itself, 0 the unconditional one, above 1 exaggerates.
        interval: ``(sigma_lo, sigma_hi)``: guidance acts where ``sigma_lo < sigma <= sigma_hi``; elsewhere the
            conditional model alone. None means at every level.

    Raises:
        MedgenError: for a scale that is not finite or an interval that is not ``0 <= sigma_lo < sigma_hi``.

    Example:
        >>> import torch
        >>> denoiser = lambda x, sigma, conditioning: x * 0 + conditioning["class_labels"]
        >>> asked, null = ({"class_labels": torch.tensor([value])} for value in (1.0, 0.0))
        >>> guided = ClassifierFreeGuidance(denoiser, asked, null, guidance_scale=3.0, interval=(0.1, 10.0))
        >>> guided(torch.zeros(1), torch.tensor([5.0])), guided(torch.zeros(1), torch.tensor([50.0]))
        (tensor([3.]), tensor([1.]))

    References:
        Ho and Salimans 2022, arXiv:2207.12598, equation 6 (``guidance_scale = 1 + w``); interval: Kynkaanniemi et
        al. 2024, arXiv:2404.07724, section 3.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        conditioning: Conditioning | None,
        null_conditioning: Conditioning | None,
        guidance_scale: float = 1.0,
        interval: tuple[float, float] | None = None,
    ) -> None:
        if not math.isfinite(guidance_scale):
            raise MedgenError(
                f"ClassifierFreeGuidance: guidance_scale must be finite; got {guidance_scale!r}. 1 is no guidance."
            )
        if interval is not None and not 0 <= interval[0] < interval[1]:
            raise MedgenError(
                "ClassifierFreeGuidance: interval must be (sigma_lo, sigma_hi) with 0 <= sigma_lo < sigma_hi;"
                f" got {interval!r}. Give it low to high."
            )
        self.denoiser = denoiser
        self.conditioning = conditioning
        self.null_conditioning = null_conditioning
        self.guidance_scale = guidance_scale
        self.interval = interval

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Guided estimate of the clean sample.

        Args:
            x: noisy sample ``(B, C, *spatial)``.
            sigma: noise level of each sample ``(B,)``.

        Returns:
            Clean sample, shape of ``x``.
        """
        conditioned = self.denoiser(x, sigma, self.conditioning)
        inside = None if self.interval is None else (sigma > self.interval[0]) & (sigma <= self.interval[1])
        if self.guidance_scale == 1 or (inside is not None and not inside.any()):
            return conditioned
        null = self.denoiser(x, sigma, self.null_conditioning)
        guided = null + self.guidance_scale * (conditioned - null)
        if inside is None:
            return guided
        return guided.where(inside.reshape(-1, *[1] * (x.ndim - 1)), conditioned)
