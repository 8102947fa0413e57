"""Any linear operator undone with a denoiser that was trained for none of them, and total variation beside it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from medgen.checks import MedgenError, check_count, check_positive
from medgen.diffusion.samplers import Denoise
from medgen.operators import Blur, Chain, Operator, Phase
from medgen.operators.blur import FWHM
from medgen.restoration.posterior import Measurement, make_consistent
from medgen.restoration.total_variation import VariationFit

__all__ = ["begins_with_phase", "plug_and_play", "refined_phase"]

EXACT = (
    0.005  # of the bright end: a measurement without noise is fitted as if it had so much, and made exact at the end
)
LOUD = 0.02  # from here on the levels rise with the noise
LAST = 0.3  # level over the first
FIRST = 80  # iterations of total variation alone, where the denoiser starts
FIRST_VARIATION = 4.0  # its weight, over that of the rest
PHASE_EVERY = 4


def plug_and_play(
    denoise: Denoise,
    measurement: Measurement,
    *,
    start: Tensor | None = None,
    steps: int = 40,
    sigma_max: float | None = None,
    sigma_min: float | None = None,
    weight: float = 0.35,
    variation: float = 0.12,
    phase_width: float | None = None,
    iterations: int = 8,
    callback: Callable[[int, int], None] | None = None,
) -> tuple[Tensor, Measurement]:
    """What fits the measurement, has few edges and stays as it is under a denoiser of low noise.

    Aliasing is no noise: at high levels a denoiser keeps it and takes detail, at low ones it needs a start without it.
    So total variation fills in first; then for falling ``sigma_k``

        ``x_k = argmin |A x - y|^2 / 2 n^2 + variation |grad x| / n + weight |x - z_k-1|^2 / 2 sigma_k^2``,
        ``z_k = D(x_k, sigma_k)``,

    ``n`` the noise: half-quadratic splitting (Zhang et al. 2021, arXiv:2008.13751, equations 6 and 7) with a second
    prior in the data step. ``D`` sees the image mirrored otherwise in each step (Terris et al. 2024,
    arXiv:2312.01831). One image, the same each time: no sample of a posterior.

    Args:
        denoise: ``D(x, sigma)`` of real images; no derivative is asked for.
        measurement: in the unit of the denoiser's images; of an operator with a norm of about 1.
        start: ``(B, C, *size)``, where total variation begins; ``A* y`` by default.
        steps: of ``sigma_k``, evenly spaced in its logarithm.
        sigma_max: the first; 0.02 by default, with a noise above ``LOUD`` as large as that.
        sigma_min: the last; three tenths of the first by default.
        weight: of the denoiser.
        variation: of total variation, over the noise.
        phase_width: with an operator that begins with :class:`~medgen.operators.Phase`: the phase is estimated, and
            corrected after every fourth step, by what varies no faster than a Gaussian of this deviation in voxels.
            None: it is exact.
        iterations: of the data step.
        callback: called with (steps done, steps).

    Returns:
        ``(B, C, *size)``, and the measurement, with the phase as corrected. With less noise than ``EXACT`` the image is
        made consistent with what was measured
        (:func:`~medgen.restoration.posterior.make_consistent`). Else nothing is forced on it: a residual above the
        noise says that the operator is not quite what measured.

    Raises:
        MedgenError: numbers that are not above 0, ``sigma_min`` above ``sigma_max``, an operator of complex volumes, or
            ``phase_width`` with an operator without a phase or of several volumes.
    """
    caller = "plug_and_play"
    first = max(LOUD, measurement.noise_std) if sigma_max is None else sigma_max
    last = LAST * first if sigma_min is None else sigma_min
    for name, count in (("steps", steps), ("iterations", iterations)):
        check_count(caller, name, count)
    for name, value in (("sigma_max", first), ("sigma_min", last), ("weight", weight), ("variation", variation)):
        check_positive(caller, name, value)
    if phase_width is not None:
        check_positive(caller, "phase_width", phase_width)
        _phased(measurement)
    if not last <= first:
        raise MedgenError(f"{caller}: sigma_min must be at most sigma_max, {first:g}. Got {last:g}. Lower it.")
    noise = max(measurement.noise_std, EXACT)
    fit = VariationFit(measurement.operator, measurement.y, start)
    made = fit(FIRST_VARIATION * variation * noise, FIRST)
    levels = first * (last / first) ** torch.linspace(0, 1, steps, dtype=torch.float64)
    for k, sigma in enumerate(levels.tolist()):
        if k:
            made = fit(variation * noise, iterations, near=made, pull=weight * (noise / sigma) ** 2)
        made = _mirrored(denoise, made, sigma, k)
        if phase_width is not None and k % PHASE_EVERY == PHASE_EVERY - 1:
            measurement = replace(measurement, operator=refined_phase(measurement, made, phase_width))
            fit.turn(measurement.operator)
        if callback is not None:
            callback(k + 1, steps)
    return (made if measurement.noise_std >= EXACT else make_consistent(made, measurement)), measurement


def _mirrored(denoise: Denoise, x: Tensor, sigma: float, turn: int) -> Tensor:
    """The denoiser, of the image mirrored along the axes whose bit is set in ``turn``."""
    axes = [axis for axis in range(2, x.ndim) if turn >> (axis - 2) & 1]
    return denoise(x.flip(axes), torch.full((len(x),), sigma, device=x.device)).flip(axes)


def refined_phase(measurement: Measurement, image: Tensor, width: float) -> Chain:
    """The operator with its phase corrected by what an image leaves unexplained.

    ``v = c + A* (y - A c)`` is the complex image that agrees with the measurement and is nearest to ``c = exp(i phi)
    x``. Its phase against ``c``, averaged with the weight ``|v| |c|`` over a Gaussian, is added to ``phi``.

    Args:
        measurement: of one volume, by a :class:`~medgen.operators.Chain` that begins with
            :class:`~medgen.operators.Phase`; what follows has a norm of about 1.
        image: ``(1, 1, *size)``, real.
        width: deviation of the Gaussian in voxels, above 0.

    Raises:
        MedgenError: another operator, or more than one volume.
    """
    check_positive("refined_phase", "width", width)
    first, rest = _phased(measurement)
    seen = first.forward(image.clamp(min=0))
    explained = seen + rest.adjoint(measurement.y - rest.forward(seen))
    against = Blur(first.size, width * FWHM).forward(explained * seen.conj())
    return Chain([Phase(first.phase + against[0, 0].angle()), *rest.operators])


def begins_with_phase(operator: Operator) -> bool:
    """Whether it is a chain whose phase can be corrected."""
    return isinstance(operator, Chain) and len(operator.operators) > 1 and isinstance(operator.operators[0], Phase)


def _phased(measurement: Measurement) -> tuple[Phase, Chain]:
    """Phase and the rest of what measured one volume."""
    operator = measurement.operator
    if not begins_with_phase(operator):
        raise MedgenError(
            f"refined_phase: operator must be a Chain that begins with Phase. Got {operator.caller}. Put it in front."
        )
    if len(measurement.y) != 1:
        raise MedgenError(f"refined_phase: measurement must be of one volume. Got {len(measurement.y)}. Go one by one.")
    first, *rest = operator.operators  # type: ignore[attr-defined]
    return first, Chain(rest)
