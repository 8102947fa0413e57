"""Edits of a given image with a denoiser: from a noised start, by inversion, inside a region, between two noises.

All is in the convention of :mod:`medgen.diffusion.samplers`, ``x = x0 + sigma * n``, and knows only
``denoise(x, sigma)`` bound to its conditioning: an edit asks for something else by binding something else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from medgen.checks import MedgenError, check_choice, check_count, check_range
from medgen.diffusion.randomness import randn
from medgen.diffusion.samplers import SAMPLERS, Callback, Denoise, sample_ddim

__all__ = ["Region", "edit_sigmas", "invert_ddim", "reconstruct_ddim", "sdedit", "slerp"]

Map = Callable[[Tensor], Tensor]


def edit_sigmas(sigmas: Tensor, strength: float) -> Tensor:
    """The part of a schedule that an edit runs: the last ``strength`` of its steps, at least one.

    Args:
        sigmas: noise levels of a whole run, high to low, ``(num_inference_steps + 1,)``.
        strength: 1 runs all of it and keeps little of the image, small values change texture only; above 0.

    Returns:
        The tail of ``sigmas``, from the level where the image is noised.

    Raises:
        MedgenError: a strength outside 0..1, or 0.

    Example:
        >>> edit_sigmas(torch.tensor([8.0, 4.0, 2.0, 1.0, 0.0]), 0.5).tolist()
        [2.0, 1.0, 0.0]
    """
    check_range("edit_sigmas", "strength", strength, 0, 1)
    if strength == 0:
        raise MedgenError("edit_sigmas: strength must be above 0, where nothing is changed. Got 0. Give 0.3, say.")
    steps = len(sigmas) - 1
    return sigmas[steps - max(1, round(strength * steps)) :]


def sdedit(
    denoise: Denoise,
    x0: Tensor,
    sigmas: Tensor,
    *,
    generators: Sequence[torch.Generator],
    sampler: str = "dpmpp_2m",
    callback: Callback | None = None,
    **options: object,
) -> Tensor:
    """Image to image: ``x0`` is noised to ``sigmas[0]`` and sampled from there.

    What is finer than the noise is made anew, what is coarser stays. To stay outside a region, pass
    ``Region(denoise, ...)``.

    Args:
        denoise: bound to what is asked for.
        x0: the image as it is diffused, ``(B, C, *spatial)``.
        sigmas: see :func:`edit_sigmas`.
        generators: one per sample.
        sampler: name in ``SAMPLERS``.
        callback: see :class:`~medgen.diffusion.samplers.Sampler`.
        options: of the sampler.

    Returns:
        The edited image, shape of ``x0``.

    Raises:
        MedgenError: an unknown sampler or bad levels.

    References:
        Meng et al. 2022 (SDEdit), arXiv:2108.01073, algorithm 1 with ``alpha = 1``, ``sigma(t_0) = sigmas[0]``.
    """
    check_choice("sdedit", "sampler", sampler, SAMPLERS)
    x = x0 + float(sigmas[0]) * randn(x0.shape[1:], generators, dtype=x0.dtype, device=x0.device)
    return SAMPLERS[sampler](denoise, x, sigmas, generators=generators, callback=callback, **options)


@torch.no_grad()
def invert_ddim(
    denoise: Denoise,
    x0: Tensor,
    sigmas: Tensor,
    *,
    iterations: int = 1,
    tolerance: float = 1e-6,
    callback: Callback | None = None,
) -> Tensor:
    """The noisy state from which DDIM comes to ``x0``: its steps one by one backwards.

    A step from s down to t is ``x_t = (t / s) x_s + (1 - t / s) D(x_s, s)``. Backwards ``x_s`` stands on both sides:
    ``x_s = (s / t) x_t + (1 - s / t) D(x_s, s)``. One iteration puts ``x_t`` into D (the usual, approximate inversion);
    more iterate to the fixed point, where :func:`reconstruct_ddim` returns ``x0`` but for rounding. The iteration
    contracts where ``(s / t - 1)`` times the slope of D is below 1: with some 20 steps or more.

    Args:
        denoise: bound to what the image is (the conditioning of the source).
        x0: ``(B, C, *spatial)``, taken as the state at the lowest level above zero.
        sigmas: noise levels of a run, high to low; a final 0 is left out.
        iterations: largest number of evaluations per step.
        tolerance: iteration ends where no entry changes by more than this times ``sigma``.
        callback: ``callback(step, x, sigma, x0)`` after each step, steps counted from the lowest level.

    Returns:
        The state at ``sigmas[0]``, shape of ``x0``.

    Raises:
        MedgenError: no iteration, or fewer than two levels above zero.

    References:
        Song, Meng and Ermon 2021, arXiv:2010.02502, section 4.3; fixed point: Pan et al. 2023 (AIDI),
        arXiv:2309.04907, section 3.2.
    """
    check_count("invert_ddim", "iterations", iterations)
    levels = _above_zero(sigmas).flip(0).tolist()
    x = x0
    for step, (t, s) in enumerate(pairwise(levels)):
        level = torch.full((len(x),), s, dtype=x.dtype, device=x.device)
        guess = x
        for _ in range(iterations):
            clean = denoise(guess, level)
            before, guess = guess, (s / t) * x + (1 - s / t) * clean
            if float((guess - before).abs().max()) <= tolerance * s:
                break
        x = guess
        if callback is not None:
            callback(step, x, s, clean)
    return x


def reconstruct_ddim(denoise: Denoise, x: Tensor, sigmas: Tensor, *, callback: Callback | None = None) -> Tensor:
    """DDIM down to the lowest level above zero: the inverse of :func:`invert_ddim`.

    Args:
        denoise: bound to what is asked for.
        x: state at ``sigmas[0]``, ``(B, C, *spatial)``.
        sigmas: noise levels, high to low; a final 0 is left out.
        callback: see :class:`~medgen.diffusion.samplers.Sampler`.

    Returns:
        The image, shape of ``x``.
    """
    return sample_ddim(denoise, x, _above_zero(sigmas), callback=callback)


@dataclass(frozen=True)
class Region:
    """A denoiser that knows the image outside a region: there its answer is ``x0`` itself.

    Every sampler then carries ``x0 + sigma * n`` outside (a step with a constant answer keeps it so), the network sees
    the true surroundings at each noise level, and the region is blended into them at each step. A final step to zero
    returns ``x0`` outside but for rounding: :meth:`keep` returns its bits.

    Attributes:
        denoise: bound to what is asked for inside.
        x0: the image, ``(B, C, *spatial)``.
        inpaint_mask: 1 = change, 0 = keep, between = blend; the shape of ``to_voxels(x0)``, channels may be 1.
        to_voxels: from what is diffused to where the mask lies (undoes packing and standardisation).
        from_voxels: its inverse, of an autoencoder as nearly as it goes.

    References:
        Avrahami et al. 2022 (Blended diffusion), arXiv:2111.14818, section 4.2; Lugmayr et al. 2022 (RePaint),
        arXiv:2201.09865, equation 8.
    """

    denoise: Denoise
    x0: Tensor
    inpaint_mask: Tensor
    to_voxels: Map = lambda z: z
    from_voxels: Map = lambda x: x

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """``inpaint_mask * D + (1 - inpaint_mask) * x0``, among voxels."""
        return self.from_voxels(self.keep(self.to_voxels(self.denoise(x, sigma))))

    def keep(self, voxels: Tensor) -> Tensor:
        """Voxels of the region, those of ``x0`` outside it, bit for bit."""
        known = self.to_voxels(self.x0)
        mask = self.inpaint_mask.to(voxels)
        blend = mask * voxels + (1 - mask) * known
        return torch.where(mask >= 1, voxels, torch.where(mask <= 0, known, blend))


def slerp(first: Tensor, second: Tensor, weight: float) -> Tensor:
    """Spherical interpolation of two noises, sample by sample: a mixture that is as likely as its ends.

    ``sin((1 - w) a) / sin(a) * first + sin(w a) / sin(a) * second`` with ``a`` the angle between them; linear where
    they are nearly parallel. A linear mixture of two independent Gaussians would be too small: 0.71 half-way.

    Args:
        first: ``(B, C, *spatial)``.
        second: same shape.
        weight: 0 gives ``first``, 1 ``second``.

    Returns:
        Same shape.

    Raises:
        MedgenError: shapes that differ.

    Example:
        >>> round(slerp(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]), 0.5).norm().item(), 4)
        1.0

    References:
        Shoemake 1985, Animating rotation with quaternion curves, section 3.3; for diffusion: Song, Meng and Ermon 2021,
        arXiv:2010.02502, appendix D.5.
    """
    if first.shape != second.shape:
        raise MedgenError(f"slerp: both must have one shape. Got {tuple(first.shape)} and {tuple(second.shape)}.")
    flat = first.flatten(1).double(), second.flatten(1).double()
    norms = [x.norm(dim=1, keepdim=True).clamp(min=1e-30) for x in flat]
    angle = torch.arccos(((flat[0] / norms[0]) * (flat[1] / norms[1])).sum(1, keepdim=True).clamp(-1, 1))
    small = torch.sin(angle) < 1e-4
    safe = torch.where(small, torch.ones_like(angle), angle)
    a = torch.where(small, 1 - weight, torch.sin((1 - weight) * safe) / torch.sin(safe))
    b = torch.where(small, weight, torch.sin(weight * safe) / torch.sin(safe))
    return (a * flat[0] + b * flat[1]).reshape(first.shape).to(first.dtype)


def _above_zero(sigmas: Tensor) -> Tensor:
    kept = sigmas[sigmas > 0]
    if len(kept) < 2:
        raise MedgenError(f"inversion: sigmas must have two levels above 0. Got {sigmas.tolist()}. Take more steps.")
    return kept
