"""Distillation of a denoiser into a few steps: a student that jumps along its teacher's probability flow.

With levels ``s_0 > s_1 > ... > s_n`` the teacher walks from each to the next in several small steps, and the student,
which starts from the teacher's weights and has the shape of a denoiser, learns to do it in one. Three kinds of jump:

- ``last``: only from the last level to the end of the flow, ``s_n``, where hardly any noise is left. Above, the student
  stays the denoiser that its teacher is, and a solver of second order takes long steps there (``dpmpp_2m``): with noise
  the flow is nearly straight, and it is the fine detail that a solver cannot reach in one step.
- ``next``: from each level to the next one. The student answers the ``D`` with which one DDIM step arrives where the
  teacher did; it is sampled with ``ddim``. Salimans and Ho 2022 (arXiv:2202.00512), algorithm 2, with many teacher's
  steps at once instead of halving again and again; a consistency trajectory model (Kim et al. 2023, arXiv:2310.02279)
  that knows one arrival for each departure.
- ``end``: from each level to the end of the flow. The student answers a consistency function: the same for all points
  of one trajectory, ``f(x, s_n) = x``; it is sampled with ``consistency``. Song et al. 2023 (arXiv:2303.01469),
  definition 1 and algorithm 2; with few levels: Heek et al. 2024 (arXiv:2403.06807).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from medgen.checks import check_count
from medgen.diffusion.schedules import logsnr_sigmas

Denoise = Callable[[Tensor, Tensor], Tensor]
LEAST_SQUARE = 1e-8


def distillation_levels(num_inference_steps: int, sigma_min: float, sigma_max: float, end: float) -> Tensor:
    """Noise levels between which a student jumps, high to low.

    Args:
        num_inference_steps: of the student.
        sigma_min: its last level.
        sigma_max: its first.
        end: where the teacher's flow ends, below ``sigma_min``.

    Returns:
        ``(num_inference_steps + 1,)`` float64: the student's levels, uniform in ``log sigma``, and ``end``.

    Example:
        >>> distillation_levels(3, 0.5, 32.0, 0.25).round(decimals=6).tolist()
        [32.0, 4.0, 0.5, 0.25]
    """
    levels = logsnr_sigmas(num_inference_steps, sigma_min, sigma_max)
    return torch.cat([levels[:-1], levels.new_tensor([end])])


def draw_level(streams: Sequence[torch.Generator], count: int) -> Tensor:
    """One of ``count`` places in the list of levels for each stream, ``(B,)`` int64."""
    return torch.stack([torch.randint(count, (), generator=stream) for stream in streams])


def draw_above(streams: Sequence[torch.Generator], low: float, high: float) -> Tensor:
    """Noise levels uniform in ``log sigma`` between two, ``(B,)`` float64, one for each stream."""
    draws = torch.stack([torch.rand((), generator=stream, dtype=torch.float64) for stream in streams])
    return low * (high / low) ** draws


@torch.no_grad()
def flow_between(denoise: Denoise, x: Tensor, start: Tensor, end: Tensor, steps: int) -> Tensor:
    """The probability flow from one noise level to another, each sample between its own.

    DPM-Solver++(2M) on steps uniform in ``log sigma``: see :func:`medgen.diffusion.samplers.sample_dpmpp_2m`.

    Args:
        denoise: the teacher, ``denoise(x, sigma (B,)) -> x0``.
        x: points of the flow ``(B, C, *spatial)`` at ``start``.
        start: noise levels ``(B,)``.
        end: noise levels ``(B,)``, above 0 and at most ``start``.
        steps: evaluations of the teacher.

    Returns:
        Points at ``end``, shape of ``x``.

    Raises:
        MedgenError: a number of steps below 1.

    Example:
        >>> x, one = torch.full((1, 1, 1), 3.0), torch.ones(1, dtype=torch.float64)
        >>> round(flow_between(lambda x, sigma: 0 * x, x, 3 * one, one, 2).item(), 6)
        1.0

    References:
        Lu et al. 2022, arXiv:2211.01095, algorithm 2.
    """
    check_count("flow_between", "steps", steps)
    start, end = start.double().cpu(), end.double().cpu()
    ratio = (end / start) ** (1 / steps)
    keep = ratio.to(x.dtype).to(x.device).reshape(-1, *[1] * (x.ndim - 1))
    previous = x
    for step in range(steps):
        x0 = denoise(x, start * ratio**step)
        ahead = x0 + (x0 - previous) / 2 if step else x0
        x = keep * x + (1 - keep) * ahead
        previous = x0
    return x


@torch.no_grad()
def next_target(teacher: Denoise, x: Tensor, start: Tensor, end: Tensor, steps: int) -> Tensor:
    """The ``D`` with which one DDIM step from ``start`` arrives where the teacher's flow is at ``end``.

    ``x_t = r x_s + (1 - r) D`` with ``r = t / s``, solved for ``D``.

    Args:
        teacher: a denoiser.
        x: noisy samples ``(B, C, *spatial)`` at ``start``.
        start: noise levels ``(B,)``.
        end: the next level of each.
        steps: evaluations of the teacher on the way.

    Returns:
        Shape of ``x``.

    References:
        Salimans and Ho 2022, arXiv:2202.00512, appendix G.
    """
    arrived = flow_between(teacher, x, start, end, steps)
    ratio = (end.double().cpu() / start.double().cpu()).to(x.dtype).to(x.device).reshape(-1, *[1] * (x.ndim - 1))
    return (arrived - ratio * x) / (1 - ratio)


@torch.no_grad()
def end_target(
    teacher: Denoise, student: Denoise, x: Tensor, start: Tensor, end: Tensor, last: float, steps: int
) -> Tensor:
    """A consistency function's own answer where the teacher's flow arrives at ``end``.

    Args:
        teacher: a denoiser.
        student: the average of the student's weights, a consistency function.
        x: noisy samples ``(B, C, *spatial)`` at ``start``.
        start: noise levels ``(B,)``.
        end: the next level of each.
        last: the end of the flow, where the answer is the point itself.
        steps: evaluations of the teacher on the way.

    Returns:
        Clean samples, shape of ``x``.

    References:
        Song et al. 2023, arXiv:2303.01469, algorithm 2, with the boundary condition ``f(x, last) = x``.
    """
    arrived = flow_between(teacher, x, start, end, steps)
    there = end.to(torch.float64) <= last * (1 + 1e-9)
    if bool(there.all()):
        return arrived
    return arrived.where(there.to(x.device).reshape(-1, *[1] * (x.ndim - 1)), student(arrived, end))


def pseudo_huber(error: Tensor, scale: float) -> Tensor:
    """``sqrt(error**2 + scale**2) - scale``: squared below ``scale``, absolute above it.

    Song and Dhariwal 2023 (arXiv:2310.14189), section 3.3, for each element instead of the whole sample, so that it
    means the same for every size.

    Args:
        error: any shape.
        scale: above 0.
    """
    return (error.square() + scale**2).sqrt() - scale


def log_variogram(x: Tensor, lags: Sequence[int] = (1, 2, 4)) -> Tensor:
    """How much each channel varies, and how fast along each axis: logarithms of mean squares.

    A regression onto a flow that the student cannot follow in every detail is smooth; this says by how much.

    Args:
        x: ``(B, C, *spatial)``.
        lags: distances in voxels; those that an axis does not hold are left out.

    Returns:
        ``(B, C, k)``: the variance, and the mean squared difference of voxels ``lag`` apart along each axis.

    Example:
        >>> log_variogram(torch.tensor([[[0.0, 1.0, 0.0, 1.0]]]), lags=(1,)).exp().round(decimals=3).tolist()
        [[[0.25, 1.0]]]

    References:
        Matheron, "Principles of geostatistics", Economic Geology 58 (1963), equation 3.
    """
    squares = [x.flatten(2).var(2, unbiased=False)]
    for axis in range(2, x.ndim):
        n = x.shape[axis]
        for lag in (lag for lag in lags if lag < n):
            difference = x.narrow(axis, lag, n - lag) - x.narrow(axis, 0, n - lag)
            squares.append(difference.flatten(2).square().mean(2))
    return (torch.stack(squares, dim=-1) + LEAST_SQUARE).log()
