"""RePaint: a hole filled by sampling, its surroundings noised to each level and put in place."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from medgen.checks import MedgenError, check_count
from medgen.diffusion.randomness import randn
from medgen.diffusion.samplers import Callback, Denoise

__all__ = ["sample_repaint"]


@torch.no_grad()
def sample_repaint(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    known: Tensor,
    inpaint_mask: Tensor,
    *,
    generators: Sequence[torch.Generator],
    resamplings: int = 10,
    callback: Callback | None = None,
) -> Tensor:
    """Ancestral sampling of a hole; at each level what is known is drawn anew from ``q(x_t | x0)``.

    A level is left ``resamplings`` times: after each step down but the last, noise leads back up, so that the hole
    has time to agree with what surrounds it.

    Args:
        denoise: of the prior.
        x: start ``(B, C, *spatial)`` at ``sigmas[0]``.
        sigmas: levels ``(num_inference_steps + 1,)``, falling.
        known: ``(B, C, *spatial)``; what lies in the hole is not looked at.
        inpaint_mask: ``(B or 1, 1, *spatial)``, 1 = regenerate.
        generators: one per sample.
        resamplings: how often each step is taken, ``r`` of the paper with jumps of length 1.
        callback: see :class:`~medgen.diffusion.samplers.Sampler`, called once a level.

    Returns:
        Shape of ``x``; outside the hole ``known`` where the last level is 0.

    Raises:
        MedgenError: shapes that do not agree, or no resampling.

    References:
        Lugmayr et al. 2022, arXiv:2201.09865, equation 8 and algorithm 1.
    """
    check_count("sample_repaint", "resamplings", resamplings)
    if known.shape != x.shape:
        raise MedgenError(
            f"sample_repaint: known must have the shape of x, {tuple(x.shape)}. Got {tuple(known.shape)}. Give the "
            "scan in the denoiser's own channels."
        )
    wanted = (*x.shape[:1], 1, *x.shape[2:])
    if tuple(inpaint_mask.shape) not in {wanted, (1, *wanted[1:])}:
        raise MedgenError(
            f"sample_repaint: inpaint_mask must have shape {wanted}, or 1 for the batch. Got "
            f"{tuple(inpaint_mask.shape)}. Give one mask for each sample, or one for all."
        )
    if len(generators) != len(x):
        raise MedgenError(
            f"sample_repaint: generators must be {len(x)}, one per sample. Got {len(generators)}. Make them by "
            "medgen.diffusion.randomness.generators."
        )
    hole = inpaint_mask > 0.5
    levels = sigmas.double().tolist()
    for step, (s, t) in enumerate(pairwise(levels)):
        times = resamplings if t > 0 else 1
        for turn in range(times):
            sigma = torch.full((len(x),), s, dtype=torch.float64, device=x.device).to(x.dtype)
            x0 = denoise(x, sigma)
            if callback is not None and turn == 0:
                callback(step, x, s, x0)
            q = (t / s) ** 2
            down = q * x + (1 - q) * x0
            outside = known
            if t > 0:
                down = down + t * math.sqrt(1 - q) * _noise(x, generators)
                outside = known + t * _noise(x, generators)
            x = torch.where(hole, down, outside)
            if turn < times - 1:
                x = x + math.sqrt(s**2 - t**2) * _noise(x, generators)
    return x


def _noise(like: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    return randn(tuple(like.shape[1:]), list(generators), device=like.device).to(like.dtype)
