"""Whether a restored image still explains what was measured: its residual against the noise it should have."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from medgen.checks import MedgenError, check_count, check_positive, check_range
from medgen.diffusion.randomness import derive_seed, generators, randn
from medgen.operators import Operator
from medgen.restoration.posterior import Measurement

__all__ = ["ResidualCheck", "check_residual"]

REACH = 3.0  # standard deviations of the smoothing window
FWHM = 2.354820045030949  # over the standard deviation
DRAWS = 32


@dataclass(frozen=True)
class ResidualCheck:
    """What the residual ``y - A x`` says of one image.

    Attributes:
        ratio: root mean square of the residual over the deviation of the noise; 1 is expected of a posterior sample.
        p_value: chance that noise alone leaves a residual as large, over the whole measurement.
        z: smoothed residual of each place in deviations of smoothed noise, shape ``(C, *spatial)``: on the grid of the
            measurement where this has one, else projected back to the image's. 0 where nothing was measured.
        bound: how far noise alone leaves ``|z|`` anywhere, but for ``level`` of all cases.
        places: where the image contradicts the measurement: ``|z|`` beyond the bound, and the smoothed residual beyond
            ``least`` times the noise.
        flagged: the residual is larger than the noise allows: somewhere the image says what was not measured.
    """

    ratio: float
    p_value: float
    z: Tensor
    bound: float
    places: Tensor
    flagged: bool

    def sentence(self) -> str:
        """The finding, for a user; empty without one."""
        if not self.flagged:
            return ""
        share = float(self.places.float().mean())
        return (
            f"The restored image contradicts the measurement: residual {self.ratio:.2f} times the noise, "
            f"{100 * share:.2g}% of all places beyond {self.bound:.1f} deviations. Do not rely on detail there."
        )


def check_residual(
    measurement: Measurement,
    x: Tensor,
    *,
    width: float = 3.0,
    level: float = 0.01,
    least: float = 0.5,
    tolerance: float = 0.05,
    draws: int = DRAWS,
) -> ResidualCheck:
    """Compare the residual of one image with white noise of ``measurement.noise_std``.

    Over the whole measurement by the sum of squares, which is chi-square distributed with as many degrees of freedom as
    numbers were measured; place by place by the residual under a Gaussian window, in which noise averages out and a
    structure that was made up does not. Only too large a residual is flagged.

    Args:
        measurement: of one image, with noise.
        x: ``(1, C, *spatial)``, before it was made consistent.
        width: full width at half maximum of the window, voxels.
        level: share of clean cases that may be flagged, half by the sum and half by the map.
        least: of the noise that a smoothed residual must have to be flagged: in a large volume the test alone would
            find what no eye does.
        tolerance: by how much the whole residual must exceed the noise to be flagged, likewise.
        draws: of noise, for a measurement that does not lie on a grid of space: they tell the deviation of noise
            projected back.

    Raises:
        MedgenError: several images, or a measurement without noise.

    References:
        Morozov 1966, the discrepancy principle; Bonferroni's bound over all places.
    """
    check_positive("check_residual", "width", width)
    check_range("check_residual", "level", level, 1e-9, 0.5)
    check_count("check_residual", "draws", draws)
    if not measurement.noise_std > 0 or len(x) != 1:
        raise MedgenError(
            f"check_residual: it takes one image, and a measurement with noise. Got {len(x)} and noise_std "
            f"{measurement.noise_std}. Of an exact one look at measurement.residual(x) itself."
        )
    residual = measurement.residual(x)
    there = _observed(residual, measurement.operator)
    parts = 2 if residual.is_complex() else 1
    square = residual.abs().square() / measurement.noise_std**2 * there
    freedom = parts * float(there.sum())
    ratio, p_value = math.sqrt(float(square.sum()) / freedom), _chance(float(square.sum()), freedom)
    spatial = not residual.is_complex() and residual.ndim == x.ndim
    if spatial and _is_image(measurement.operator):
        z, spread = _by_place(residual / measurement.noise_std, there, width)
    else:
        z, spread = _projected(measurement, residual, width, draws)
    bound = -_normal(level / (4 * z.numel()))  # level / 2, shared by both signs of every place
    places = (z.abs() > bound) & (z.abs() * spread > least)
    flagged = bool(places.any()) or (p_value < level / 2 and ratio > 1 + tolerance)
    return ResidualCheck(ratio, p_value, z, bound, places, flagged)


def _observed(residual: Tensor, operator: Operator) -> Tensor:
    """1 where a number was measured, shape of the residual."""
    if operator.observed is None:
        return torch.ones_like(residual.real)
    return operator.observed.expand(residual.shape).to(residual.real)


def _is_image(operator: Operator) -> bool:
    """Whether measurements lie in space: each number near its own place."""
    last = getattr(operator, "operators", (operator,))[-1]
    return last.name in ("mask", "blur", "bias_field", "gibbs", "separable", "through_plane", "phase")


def _by_place(unit: Tensor, there: Tensor, width: float) -> tuple[Tensor, Tensor]:
    """Smoothed residual over the deviation of smoothed white noise, and that deviation, ``(C, *spatial)``."""
    share = _smoothed(there, width).clamp(min=1e-6)  # of the window that was measured
    mean = _smoothed(unit * there, width) / share
    spread = _smoothed(there, width, squared=True).clamp(min=1e-12).sqrt() / share
    return torch.where(there > 0, mean / spread, 0.0)[0], spread[0]


def _projected(measurement: Measurement, residual: Tensor, width: float, draws: int) -> tuple[Tensor, Tensor]:
    """``A* r`` likewise; the deviation of noise comes from draws, before (as the unit) and after it is smoothed."""
    operator, there = measurement.operator, _observed(residual, measurement.operator)
    back = _smoothed(operator.adjoint(residual).real, width) / measurement.noise_std
    raw, total = torch.zeros_like(back), torch.zeros_like(back)
    for stream in generators([derive_seed("residual", i) for i in range(draws)]):
        noise = operator.adjoint(_white(residual, stream) * there).real
        raw, total = raw + noise.square(), total + _smoothed(noise, width).square()
    inside = draws * _smoothed(torch.ones_like(total), 4 * width)
    spread, unit = ((_smoothed(x, 4 * width) / inside).clamp(min=1e-12).sqrt() for x in (total, raw))
    return (back / spread)[0], (spread / unit)[0]


def _white(like: Tensor, stream: torch.Generator) -> Tensor:
    """Noise of deviation 1, of a complex measurement in either part."""
    if not like.is_complex():
        return randn(like.shape[1:], [stream], dtype=like.dtype, device=like.device)
    real = randn((2, *like.shape[1:]), [stream], dtype=like.real.dtype, device=like.device)[0]
    return torch.complex(real[0], real[1])[None]


def _smoothed(x: Tensor, width: float, squared: bool = False) -> Tensor:
    """``(B, C, *spatial)`` under a Gaussian window of full width ``width``, 0 beyond the ends.

    Args:
        x: real.
        width: voxels.
        squared: with the squares of the weights, which give the variance of smoothed noise.
    """
    sigma = width / FWHM
    reach = max(1, math.ceil(REACH * sigma))
    place = torch.arange(-reach, reach + 1, dtype=torch.float64, device="cpu")
    weights = torch.exp(-((place / sigma) ** 2) / 2)
    weights = (weights / weights.sum()) ** (2 if squared else 1)
    kernel = weights.to(x.dtype).to(x.device).reshape(1, 1, -1)
    for axis in range(2, x.ndim):
        moved = x.movedim(axis, -1)
        rows = torch.nn.functional.conv1d(moved.reshape(-1, 1, moved.shape[-1]), kernel, padding=reach)
        x = rows.reshape(moved.shape).movedim(-1, axis)
    return x


def _chance(square: float, freedom: float) -> float:
    """Upper tail of the chi-square distribution."""
    from scipy.stats import chi2

    return float(chi2.sf(square, freedom))


def _normal(share: float) -> float:
    """Lower quantile of the standard normal distribution."""
    from scipy.stats import norm

    return float(norm.ppf(share))
