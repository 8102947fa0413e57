"""Slice profiles by name: how much a slice of thickness 1 sees at a distance from its centre.

Whatever the pulse, the thickness is the full width at half maximum of the profile; ``sinc`` and ``slr`` have small side
lobes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

__all__ = ["SLICE_PROFILES", "slice_weights"]

_TIME_BANDWIDTH = 4.0
_REACH = 2.5  # half width, in thicknesses, beyond which a profile counts as 0
_POINTS = 24  # midpoints at which a profile is averaged over a voxel
_TAPS = 65


def gaussian_profile(u: Tensor) -> Tensor:
    """``p(u) = exp(-4 ln 2 u^2)``: an RF pulse of Gaussian shape, at a small flip angle.

    Args:
        u: distance from the centre over the nominal thickness, any shape.

    Example:
        >>> gaussian_profile(torch.tensor([0.0, 0.5])).tolist()
        [1.0, 0.5]
    """
    return torch.exp(-4 * math.log(2) * u**2)


def sinc_profile(u: Tensor) -> Tensor:
    """The profile of a Hamming-windowed sinc pulse of time-bandwidth product ``TB = 4`` at a small flip angle.

    The magnetisation follows the Fourier transform of the pulse, over its duration ``tau`` in -1/2..1/2:
    ``p(u) ~ int sinc(TB tau) (0.54 + 0.46 cos 2 pi tau) cos(2 pi TB u tau) dtau``, scaled to ``p(0) = 1``.

    Args:
        u: distance from the centre over the nominal thickness, any shape.

    References:
        Bernstein, King and Zhou, "Handbook of MRI pulse sequences" (2004), on sinc pulses.
    """
    tau = (torch.arange(200, dtype=torch.float64) + 0.5) / 400  # the other half is the same
    pulse = torch.sinc(_TIME_BANDWIDTH * tau) * (0.54 + 0.46 * torch.cos(2 * math.pi * tau))
    spectrum = torch.cos(2 * math.pi * _TIME_BANDWIDTH * u.double()[..., None] * tau) @ pulse
    return spectrum / pulse.sum()


def slr_profile(u: Tensor) -> Tensor:
    """The profile of a 90 degree excitation by a Shinnar-Le Roux pulse: ``|M_xy| = 2 |A B|``, ``|A|^2 = 1 - |B|^2``.

    ``B(u) = sin(45 deg) H(u)``, ``H`` a linear-phase low-pass filter of time-bandwidth product 4, by least squares;
    its transition is as wide as ripples of 1% need (Pauly's empirical ``D_inf``).

    Args:
        u: distance from the centre over the nominal thickness, any shape.

    References:
        Pauly et al., "Parameter relations for the Shinnar-Le Roux selective excitation pulse design algorithm", IEEE
        TMI 10 (1991).
    """
    k = torch.arange(1, _TAPS // 2 + 1, dtype=torch.float64)
    omega = 2 * math.pi * _TIME_BANDWIDTH * u.double()[..., None] / _TAPS
    coefficients = _low_pass()
    low_pass = coefficients[0] + (torch.cos(omega * k) * coefficients[1:]).sum(-1)
    b = math.sqrt(0.5) * low_pass
    return 2 * b * (1 - b**2).clamp_min(0).sqrt()


@cache
def _low_pass() -> Tensor:
    """Cosine coefficients of the filter, least squares over pass and stop band."""
    ripple_in, ripple_out = math.sqrt(0.01 / 2), 0.01 / math.sqrt(2)
    a, b = math.log10(ripple_in), math.log10(ripple_out)
    spread = (5.309e-3 * a * a + 7.114e-2 * a - 4.761e-1) * b + (-2.66e-3 * a * a - 5.941e-1 * a - 4.278e-1)
    transition = spread / _TIME_BANDWIDTH
    u = torch.linspace(0, _TAPS / 2 / _TIME_BANDWIDTH, 2000, dtype=torch.float64)
    passing, stopping = u <= (1 - transition) / 2, u >= (1 + transition) / 2
    weight = passing.double() + stopping * (ripple_in / ripple_out)
    k = torch.arange(_TAPS // 2 + 1, dtype=torch.float64)
    basis = torch.cos(2 * math.pi * _TIME_BANDWIDTH / _TAPS * u[:, None] * k)
    found = torch.linalg.lstsq(basis * weight[:, None], (passing * weight)[:, None]).solution[:, 0]
    return found / found.sum()


SLICE_PROFILES: dict[str, Callable[[Tensor], Tensor] | None] = {
    "box": None,
    "gaussian": gaussian_profile,
    "sinc": sinc_profile,
    "slr": slr_profile,
}
"""Name -> profile over the thickness; ``box`` (None) is 1 up to half a thickness, in closed form."""


def slice_weights(profile: str, n: int, centres: Tensor, thickness: float) -> Tensor:
    """The integral of each slice's profile over each voxel.

    Args:
        profile: name in ``SLICE_PROFILES``.
        n: voxels along the axis, voxel ``i`` from ``i - 1/2`` to ``i + 1/2``.
        centres: of the slices, in voxels, ``(m,)``, float64.
        thickness: full width at half maximum, in voxels.

    Returns:
        ``(m, n)`` float64, not scaled.

    Example:
        >>> slice_weights("box", 4, torch.tensor([1.0]), 2.0).tolist()
        [[0.5, 1.0, 0.5, 0.0]]
    """
    distance = torch.arange(n, dtype=torch.float64) - centres[:, None]
    shape = SLICE_PROFILES[profile]
    if shape is None:
        return ((distance + 0.5).clamp_max(thickness / 2) - (distance - 0.5).clamp_min(-thickness / 2)).clamp_min(0)
    inside = (torch.arange(_POINTS, dtype=torch.float64) + 0.5) / _POINTS - 0.5
    u = (distance[..., None] + inside) / thickness
    seen, near = torch.zeros_like(u), u.abs() <= _REACH
    seen[near] = shape(u[near] * _width(profile))
    return seen.mean(-1)


@cache
def _width(profile: str) -> float:
    """Full width at half maximum of a profile, in units of its nominal thickness."""
    shape = SLICE_PROFILES[profile]
    if shape is None:
        return 1.0
    u = torch.linspace(0, 1, 4001, dtype=torch.float64)
    return 2 * float(u[(shape(u) >= 0.5 * shape(u[:1])).int().argmin()])
