"""DDRM: sampling in an operator's singular vectors, where each coefficient has a measurement of its own or none."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from medgen.checks import MedgenError, check_range
from medgen.diffusion.randomness import randn
from medgen.diffusion.samplers import Callback, Denoise
from medgen.restoration.posterior import Measurement

__all__ = ["sample_ddrm"]

UNSEEN = 1e-6  # singular values of less than this share of the largest one measure nothing


@torch.no_grad()
def sample_ddrm(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    measurement: Measurement,
    *,
    generators: Sequence[torch.Generator],
    eta: float = 0.85,
    eta_b: float = 1.0,
    callback: Callback | None = None,
) -> Tensor:
    """Samples given a measurement ``y = U S V* x0 + noise``, the prior's denoiser called once a level.

    With ``c0`` the coefficients ``V* D``, ``k = S^-1 U* y`` what was measured and ``e = noise_std / S`` its deviation,
    the coefficients at the next level ``t`` are drawn with mean and deviation

    - not measured: ``c0 + sqrt(1 - eta^2) (t / s) (c - c0)``, ``eta t``;
    - ``t < e``: ``c0 + sqrt(1 - eta^2) (t / e) (k - c0)``, ``eta t``;
    - ``t >= e``: ``(1 - eta_b) c0 + eta_b k``, ``sqrt(t^2 - eta_b^2 e^2)``.

    Args:
        denoise: of the prior.
        x: start ``(B, C, *spatial)`` at ``sigmas[0]``; complex for operators that take complex volumes, with
            independent parts.
        sigmas: levels ``(num_inference_steps + 1,)``, falling.
        measurement: of an operator that is ``decomposed``, of as many volumes as are sampled.
        generators: one per sample.
        eta: fresh noise in what is not measured, or worse than the level, 0..1. It is as much in a short step as in a
            long one: with many steps samples gather about their mean (0.85 in 50 steps: 0.17 to 0.66 of a correlated
            Gaussian's posterior variance), and 1 forgets what was measured worse than the level.
        eta_b: trust in what is measured better than the level, 0..1.
        callback: see :class:`~medgen.diffusion.samplers.Sampler`.

    Returns:
        Shape of ``x``. Without noise and with ``eta_b = 1`` it agrees with the measurement.

    Raises:
        MedgenError: an operator without a cheap decomposition, real volumes of a complex one, or not one generator
            per sample.

    References:
        Kawar et al. 2022, arXiv:2201.11793, equations 7 and 8.
    """
    check_range("sample_ddrm", "eta", eta, 0, 1)
    check_range("sample_ddrm", "eta_b", eta_b, 0, 1)
    if len(generators) != len(x):
        raise MedgenError(
            f"sample_ddrm: generators must be {len(x)}, one per sample. Got {len(generators)}. Make them by "
            "medgen.diffusion.randomness.generators."
        )
    svd = measurement.operator.svd()
    measurement.residual(x)  # shapes and kinds agree
    values = svd.singular_values.to(x.real.dtype)
    seen = values > UNSEEN * values.max()
    divisor = torch.where(seen, values, 1.0)
    known, deviation = svd.uh(measurement.y) / divisor, measurement.noise_std / divisor
    levels = sigmas.double().tolist()
    start = known + (1 - (deviation / levels[0]).square()).clamp(min=0).sqrt() * svd.vh(x)
    x = svd.v(torch.where(seen & (deviation < levels[0]), start, svd.vh(x)))
    keep = math.sqrt(1 - eta**2)
    for step, (s, t) in enumerate(pairwise(levels)):
        x0 = denoise(x, torch.full((len(x),), s, dtype=x.real.dtype, device=x.device))
        if callback is not None:
            callback(step, x, s, x0)
        c0, fresh = svd.vh(x0), svd.vh(_noise(x, generators)) if t > 0 else 0.0
        blind = c0 + keep * (t / s) * (svd.vh(x) - c0) + eta * t * fresh
        rough = c0 + keep * (t / deviation.clamp(min=t or 1.0)) * (known - c0) + eta * t * fresh
        spread = (t**2 - (eta_b * deviation).square()).clamp(min=0).sqrt()
        fine = (1 - eta_b) * c0 + eta_b * known + spread * fresh
        x = svd.v(torch.where(seen, torch.where(deviation <= t, fine, rough), blind))
    return x


def _noise(like: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """Standard normal, of a complex volume in either part."""
    parts = 2 if like.is_complex() else 1
    drawn = randn((parts, *like.shape[1:]), list(generators), dtype=like.real.dtype, device=like.device)
    return torch.complex(drawn[:, 0], drawn[:, 1]) if parts == 2 else drawn[:, 0]
