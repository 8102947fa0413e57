"""Samplers: pure functions from noise to sample that know only ``denoise``, ``x`` and ``sigmas``.

All work in the variance-exploding convention ``x = x0 + sigma * n``, in which the probability-flow ODE is
``dx / dsigma = (x - D(x, sigma)) / sigma`` (Karras et al. 2022, equation 1) and the exact step from s to t for a
constant ``D`` is ``x_t = (t / s) x_s + (1 - t / s) D``. A variance-preserving chain is this one times
``sqrt(alpha_bar)``, a rectified flow is this one over ``1 + sigma``; coefficients are computed in float64.
A final step to sigma = 0 returns the last ``D``. Sums are written ``a * x + b * y`` throughout: fused forms
(``lerp``, ``addcmul``) may round differently with the place of a sample in the batch.

Adding a sampler is one function under ``@_sampler``: the conformance tests run every entry of ``SAMPLERS``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ParamSpec

import torch
from torch import Tensor

from medgen.checks import MedgenError, check_choice, check_range
from medgen.diffusion.randomness import randn

P = ParamSpec("P")

Denoise = Callable[[Tensor, Tensor], Tensor]
"""``denoise(x, sigma) -> x0`` with x ``(B, C, *spatial)``, sigma ``(B,)`` on the device of x."""

Callback = Callable[[int, Tensor, float, Tensor], None]
"""``callback(step, x, sigma, x0)``, called once a step: the state it starts from and the denoiser's answer there."""


@dataclass(frozen=True)
class Sampler:
    """A sampler with what is known about it; calling it calls the function.

    ``sampler(denoise, x, sigmas, *, generators=None, callback=None, **options)`` with

    - denoise: the denoiser, ``denoise(x, sigma (B,)) -> x0``; sigma is float32, or float64 where x is.
    - x: start, ``(B, C, *spatial)``, at noise level ``sigmas[0]``: ``sigmas[0] * n`` for a fresh sample.
    - sigmas: noise levels, ``(num_inference_steps + 1,)``, strictly decreasing, above 0 but for the last.
    - generators: one per sample (see :func:`medgen.diffusion.randomness.generators`); stochastic samplers need them.
    - callback: ``callback(step, x, sigma, x0)``.

    Returns the sample at ``sigmas[-1]``, shape, dtype and device of ``x``, which stays unchanged. No gradients.

    Attributes:
        name: key in ``SAMPLERS``.
        function: the sampler itself, ``sample_<name>``.
        order: order of convergence to the probability-flow solution; for stochastic samplers that of the variance
            (measured on Gaussian data); 0 for one that takes a distilled model.
        deterministic: draws no noise with its default options.
        evaluations_per_step: calls of the denoiser in one step.
    """

    name: str
    function: Callable[..., Tensor]
    order: int
    deterministic: bool
    evaluations_per_step: int

    def __call__(self, denoise: Denoise, x: Tensor, sigmas: Tensor, **options: Any) -> Tensor:
        return self.function(denoise, x, sigmas, **options)


SAMPLERS: dict[str, Sampler] = {}


def _sampler(
    *, order: int, deterministic: bool = True, evaluations_per_step: int = 1
) -> Callable[[Callable[P, Tensor]], Callable[P, Tensor]]:
    """Enters ``sample_<name>`` into ``SAMPLERS`` and switches gradients off inside it."""

    def register(function: Callable[P, Tensor]) -> Callable[P, Tensor]:
        name = function.__name__.removeprefix("sample_")
        if name in SAMPLERS:
            raise MedgenError(f"SAMPLERS: name '{name}' is taken. Give the new sampler another name.")
        without_gradients: Callable[P, Tensor] = torch.no_grad()(function)
        SAMPLERS[name] = Sampler(name, without_gradients, order, deterministic, evaluations_per_step)
        return without_gradients

    return register


def evaluations(name: str, num_inference_steps: int, *, final_zero: bool = True) -> int:
    """How often a sampler calls the denoiser.

    Args:
        name: one of ``SAMPLERS``.
        num_inference_steps: number of steps.
        final_zero: whether the last step goes to sigma = 0; it needs one call whatever the sampler.

    Returns:
        Number of calls.

    Raises:
        MedgenError: for an unknown sampler.

    Example:
        >>> evaluations("heun", 10), evaluations("dpmpp_2m", 10)
        (19, 10)
    """
    check_choice("evaluations", "name", name, SAMPLERS)
    extra = SAMPLERS[name].evaluations_per_step - 1
    return num_inference_steps + extra * (num_inference_steps - final_zero)


@_sampler(order=1, deterministic=False)
def sample_ddpm(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    generators: Sequence[torch.Generator] | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """Ancestral sampling: every step draws from the posterior ``q(x_t | x_s, x0 = D)``, on any grid.

    With ``q = (t / s)**2``: mean ``D + q (x - D)``, variance ``t**2 (1 - q)``. Arguments: see :class:`Sampler`.

    References:
        Ho et al. 2020, arXiv:2006.11239, equations 6, 7 and 11 (variance: the posterior's, beta tilde).
    """
    _need_generators("sample_ddpm", x, generators)
    for step, (s, t) in enumerate(pairwise(_levels("sample_ddpm", sigmas))):
        x0 = _evaluate(denoise, x, s, step, callback)
        q = (t / s) ** 2
        x = q * x + (1 - q) * x0
        if t > 0:
            x = x + t * math.sqrt(1 - q) * _noise(x, generators)
    return x


@_sampler(order=1)
def sample_ddim(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    generators: Sequence[torch.Generator] | None = None,
    callback: Callback | None = None,
    eta: float = 0.0,
) -> Tensor:
    """DDIM: the predicted noise is kept, and a part ``eta`` of it replaced by fresh noise.

    Arguments: see :class:`Sampler`.

    Args:
        eta: 0 follows the probability flow, 1 is :func:`sample_ddpm`; above 0 it needs generators.

    References:
        Song, Meng and Ermon 2021, arXiv:2010.02502, equations 12 and 16, divided by ``sqrt(alpha_bar)``.
    """
    check_range("sample_ddim", "eta", eta, 0, 1)
    if eta > 0:
        _need_generators("sample_ddim", x, generators)
    for step, (s, t) in enumerate(pairwise(_levels("sample_ddim", sigmas))):
        x0 = _evaluate(denoise, x, s, step, callback)
        fresh = eta * t * math.sqrt(1 - (t / s) ** 2)
        kept = math.sqrt(t**2 - fresh**2) / s
        x = kept * x + (1 - kept) * x0
        if fresh > 0:
            x = x + fresh * _noise(x, generators)
    return x


@_sampler(order=1)
def sample_euler(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    generators: Sequence[torch.Generator] | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """Euler's method on the probability-flow ODE in sigma. Arguments: see :class:`Sampler`.

    References:
        Song et al. 2021, arXiv:2011.13456, equation 13; Karras et al. 2022, arXiv:2206.00364, equation 1.
    """
    for step, (s, t) in enumerate(pairwise(_levels("sample_euler", sigmas))):
        x0 = _evaluate(denoise, x, s, step, callback)
        slope = (x - x0) / s
        x = x + (t - s) * slope if t > 0 else x0
    return x


@_sampler(order=2, evaluations_per_step=2)
def sample_heun(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    generators: Sequence[torch.Generator] | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """Heun's method on the probability-flow ODE in sigma. Arguments: see :class:`Sampler`.

    References:
        Karras et al. 2022, arXiv:2206.00364, algorithm 1 with ``sigma(t) = t``, ``s(t) = 1``.
    """
    for step, (s, t) in enumerate(pairwise(_levels("sample_heun", sigmas))):
        x0 = _evaluate(denoise, x, s, step, callback)
        if t == 0:
            return x0
        slope = (x - x0) / s
        ahead = x + (t - s) * slope
        slope_ahead = (ahead - _evaluate(denoise, ahead, t)) / t
        x = x + (t - s) * (slope + slope_ahead) / 2
    return x


@_sampler(order=2)
def sample_dpmpp_2m(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    generators: Sequence[torch.Generator] | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """DPM-Solver++(2M): exact in the linear part, ``D`` extrapolated in ``lambda = -log sigma``.

    With ``h = log(s / t)`` and ``r = h_previous / h``: ``x_t = (t / s) x + (1 - t / s) (D + (D - D_previous) / 2r)``;
    the first step and a final step to zero are of first order. Arguments: see :class:`Sampler`.

    References:
        Lu et al. 2022, arXiv:2211.01095, algorithm 2.
    """
    levels = _levels("sample_dpmpp_2m", sigmas)
    previous = x
    for step, (s, t) in enumerate(pairwise(levels)):
        x0 = _evaluate(denoise, x, s, step, callback)
        slope = _halved_slope_weight(levels, step)
        ahead = x0 + slope * (x0 - previous) if slope else x0
        x = (t / s) * x + (1 - t / s) * ahead
        previous = x0
    return x


@_sampler(order=2, deterministic=False)
def sample_dpmpp_2m_sde(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    generators: Sequence[torch.Generator] | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """SDE-DPM-Solver++(2M): the reverse diffusion, exact but for ``D``, which is extrapolated in ``log sigma``.

    With ``q = (t / s)**2`` and D' as in :func:`sample_dpmpp_2m`: ``x_t = q x + (1 - q) D' + t sqrt(1 - q) n``. Without
    the extrapolation it is :func:`sample_ddpm`. Arguments: see :class:`Sampler`.

    References:
        Lu et al. 2022, arXiv:2211.01095, section 6 and appendix (SDE-DPM-Solver++(2M)).
    """
    _need_generators("sample_dpmpp_2m_sde", x, generators)
    levels = _levels("sample_dpmpp_2m_sde", sigmas)
    previous = x
    for step, (s, t) in enumerate(pairwise(levels)):
        x0 = _evaluate(denoise, x, s, step, callback)
        slope = _halved_slope_weight(levels, step)
        ahead = x0 + slope * (x0 - previous) if slope else x0
        q = (t / s) ** 2
        x = q * x + (1 - q) * ahead
        if t > 0:
            x = x + t * math.sqrt(1 - q) * _noise(x, generators)
        previous = x0
    return x


@_sampler(order=3)
def sample_unipc(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    generators: Sequence[torch.Generator] | None = None,
    callback: Callback | None = None,
    order: int = 2,
    variant: str = "bh2",
    corrector: bool = True,
) -> Tensor:
    """UniPC: a multistep predictor, and a corrector that uses the evaluation at the new point for the next step.

    UniP-p is of order p, the corrector raises it by one at no further evaluation. First steps, and last steps of a run
    that ends at zero, are of lower order. Arguments: see :class:`Sampler`.

    Args:
        order: of the predictor, 1 to 3.
        variant: ``"bh1"`` (``B(h) = h``) or ``"bh2"`` (``B(h) = exp(h) - 1``).
        corrector: whether to correct.

    References:
        Zhao et al. 2023, arXiv:2302.04867, algorithms 1, 2 and appendix (data prediction).
    """
    check_choice("sample_unipc", "order", order, (1, 2, 3))
    check_choice("sample_unipc", "variant", variant, ("bh1", "bh2"))
    levels = _levels("sample_unipc", sigmas)
    history: list[tuple[float, Tensor]] = []
    corrected, used = x, 0
    for step, (s, t) in enumerate(pairwise(levels)):
        x0 = _evaluate(denoise, x, s, step, callback)
        if corrector and step > 0:
            x = _unipc_step(corrected, history[-used:], s, variant, (s, x0))
        history = [*history, (s, x0)][-order:]
        steps_left = len(levels) - 1 - step if levels[-1] == 0 else order
        used = min(order, step + 1, steps_left)
        corrected, x = x, _unipc_step(x, history[-used:], t, variant)
    return x


@_sampler(order=2)
def sample_ab2(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    generators: Sequence[torch.Generator] | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """Adams-Bashforth of order 2 with variable steps on the rectified flow, in time ``t = sigma / (1 + sigma)``.

    The state is ``z = x / (1 + sigma) = (1 - t) x0 + t n``, its velocity ``v = (x - D) / sigma - D``; the first step
    and a final step to zero are Euler's. Arguments: see :class:`Sampler`.

    References:
        Liu et al. 2022, arXiv:2209.03003, equation 1; Lipman et al. 2022, arXiv:2210.02747; Hairer, Norsett and
        Wanner, Solving Ordinary Differential Equations I, section III.5 (variable steps).
    """
    levels = _levels("sample_ab2", sigmas)
    z, previous, last = x / (1 + levels[0]), x, 0.0
    for step, (s, t) in enumerate(pairwise(levels)):
        x = z * (1 + s)
        x0 = _evaluate(denoise, x, s, step, callback)
        if t == 0:
            return x0
        velocity = (x - x0) / s - x0
        h = t / (1 + t) - s / (1 + s)
        slope = h / (2 * last) if step > 0 else 0.0
        z = z + h * (velocity + slope * (velocity - previous) if slope else velocity)
        previous, last = velocity, h
    return z * (1 + levels[-1])


@_sampler(order=0, deterministic=False)
def sample_consistency(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    generators: Sequence[torch.Generator] | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """Multistep consistency sampling: jump to the clean end, add fresh noise of the next level, jump again.

    For a distilled model, whose answer is the end of the probability flow and not the mean of what is possible (see
    :mod:`medgen.diffusion.distillation`): then every step count gives the right distribution. With a plain denoiser it
    converges to nothing (order 0). Arguments: see :class:`Sampler`.

    References:
        Song et al. 2023, arXiv:2303.01469, algorithm 1.
    """
    _need_generators("sample_consistency", x, generators)
    for step, (s, t) in enumerate(pairwise(_levels("sample_consistency", sigmas))):
        x = _evaluate(denoise, x, s, step, callback)
        if t > 0:
            x = x + t * _noise(x, generators)
    return x


def _halved_slope_weight(levels: list[float], step: int) -> float:
    """``1 / 2r`` of DPM-Solver++(2M); 0 where the step is of first order."""
    if step == 0 or levels[step + 1] == 0:
        return 0.0
    before, s, t = levels[step - 1 : step + 2]
    return math.log(s / t) / (2 * math.log(before / s))


def _unipc_step(
    x: Tensor, history: list[tuple[float, Tensor]], t: float, variant: str, new: tuple[float, Tensor] | None = None
) -> Tensor:
    """One step of UniP (``new`` absent) or UniC (``new`` = level and denoised sample at the predicted point).

    Args:
        x: state at the last level of ``history``.
        history: levels and denoised samples, oldest first; as many as the order.
        t: level to step to.
        variant: ``"bh1"`` or ``"bh2"``.
        new: what the corrector knows besides.
    """
    s, x0 = history[-1]
    ahead = (t / s) * x + (1 - t / s) * x0
    others = [*history[:-1], *([new] if new else [])]
    if t == 0 or not others:
        return ahead
    h = math.log(s / t)
    ratios = [math.log(s / level) / h for level, _ in others]
    b = -h if variant == "bh1" else math.expm1(-h)
    for ratio, weight, (_, other) in zip(ratios, _unipc_weights(ratios, h, b), others, strict=True):
        ahead = ahead - (b * weight / ratio) * (other - x0)
    return ahead


def _unipc_weights(ratios: list[float], h: float, b: float) -> list[float]:
    """Weights ``a`` that solve ``sum_m a_m r_m**(n - 1) = n! (-h) phi_{n+1}(-h) / B``, one equation n per unknown.

    ``phi_{n+1}(z) = (phi_n(z) - 1 / n!) / z``, ``phi_0 = exp``. Zhao et al. 2023, theorem 3.1 for data prediction; a
    single unknown may be 1/2 without loss of order (there, appendix on degenerate cases).
    """
    if len(ratios) == 1:
        return [0.5]
    moments, phi = [], math.expm1(-h)
    for n in range(1, len(ratios) + 1):
        phi = phi / -h - 1 / math.factorial(n)
        moments.append(phi * math.factorial(n) / b)
    matrix = torch.tensor(ratios, dtype=torch.float64) ** torch.arange(len(ratios), dtype=torch.float64)[:, None]
    solution: list[float] = torch.linalg.solve(matrix, torch.tensor(moments, dtype=torch.float64)).tolist()
    return solution


def _evaluate(
    denoise: Denoise, x: Tensor, sigma: float, step: int | None = None, callback: Callback | None = None
) -> Tensor:
    """The denoiser's answer in the dtype of ``x``, shown to the callback where a step begins."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    x0 = denoise(x, torch.full((x.shape[0],), sigma, dtype=dtype, device=x.device))
    if x0.shape != x.shape:
        raise MedgenError(
            f"sampler: denoise must return the shape of x, {tuple(x.shape)}; got {tuple(x0.shape)}. Mend the denoiser."
        )
    x0 = x0.to(x.dtype)
    if callback is not None and step is not None:
        callback(step, x, sigma, x0)
    return x0


def _noise(x: Tensor, generators: Sequence[torch.Generator] | None) -> Tensor:
    """Standard normal noise like ``x``, each sample's from its own generator."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    return randn(x.shape[1:], list(generators or ()), dtype=dtype, device=x.device).to(x.dtype)


def _levels(caller: str, sigmas: Tensor) -> list[float]:
    """The sigmas as floats.

    Raises:
        MedgenError: unless there are at least two, finite, strictly decreasing, above 0 but for the last.
    """
    levels: list[float] = torch.as_tensor(sigmas).double().flatten().tolist()
    if torch.as_tensor(sigmas).ndim != 1 or len(levels) < 2:
        raise MedgenError(
            f"{caller}: sigmas must be one row of at least 2 levels; got shape {tuple(torch.as_tensor(sigmas).shape)}."
            " Make them with medgen.diffusion.schedules."
        )
    for i, (s, t) in enumerate(pairwise(levels)):
        if not (math.isfinite(s) and s > t >= 0):
            raise MedgenError(
                f"{caller}: sigmas must be finite, strictly decreasing and above 0 but for the last; got {s:g}, {t:g}"
                f" at places {i}, {i + 1}. Make them with medgen.diffusion.schedules."
            )
    return levels


def _need_generators(caller: str, x: Tensor, generators: Sequence[torch.Generator] | None) -> None:
    """Raises unless there is one generator for each sample."""
    found = 0 if generators is None else len(generators)
    if found != x.shape[0]:
        raise MedgenError(
            f"{caller}: generators must hold one per sample ({x.shape[0]}); got {found}."
            " Make them with medgen.diffusion.randomness.generators(seeds)."
        )
