"""Filtered back-projection for parallel beams."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

__all__ = ["filtered_back_projection", "ramp_filter"]


def filtered_back_projection(
    y: Tensor,
    back_project: Callable[[Tensor], Tensor],
    angles: Sequence[float],
    detector_mm: float,
    voxel_mm2: float,
) -> Tensor:
    """``f(r) = int_0^pi (p_theta * h)(r . e_s) dtheta``, the integral a sum with the mean step of the views.

    The transpose of a projection that samples its rays spreads a value over voxels of density ``voxel / detector``:
    hence the factor.

    Args:
        y: sinogram ``(B, C, views, detectors, ...)``, in unit times mm.
        back_project: the transpose of the projection.
        angles: of the views, in degrees.
        detector_mm: distance of detector elements.
        voxel_mm2: area of a voxel.

    Returns:
        ``(B, C, *size)``, in the volume's unit.

    References:
        Kak and Slaney, chapter 3, section 3.3; the discrete ramp is equation 61.
    """
    n = y.shape[3]
    padded = 2 ** math.ceil(math.log2(2 * n))
    spectrum = torch.fft.fft(y, n=padded, dim=3)
    response = torch.fft.fft(ramp_filter(padded, detector_mm).to(y.device, y.real.dtype)).real
    filtered = torch.fft.ifft(spectrum * response.reshape(-1, *[1] * (y.ndim - 4)), dim=3).narrow(3, 0, n)
    filtered = filtered * detector_mm if y.is_complex() else filtered.real * detector_mm
    span = sorted(angles)
    arc = (span[-1] - span[0]) * len(span) / max(len(span) - 1, 1) if len(span) > 1 else 180.0
    step = math.radians(min(arc, 180.0)) / len(span)
    return back_project(filtered) * (step * detector_mm / voxel_mm2)


def ramp_filter(n: int, step: float) -> Tensor:
    """Band-limited ramp in space: ``h(0) = 1/(4 s^2)``, ``-1/(pi k s)^2`` at odd ``k``, 0 at even ``k``.

    Args:
        n: length, even; lag 0 comes first, negative lags at the end.
        step: ``s`` in mm.

    Returns:
        float64 ``(n,)``, 1/mm^2.

    Example:
        >>> ramp_filter(4, 1.0).mul(1000).round().int().tolist()
        [250, -101, 0, -101]
    """
    lag = torch.arange(n, dtype=torch.float64)
    lag = torch.minimum(lag, n - lag)
    odd = -1 / (math.pi * lag.clamp_min(1) * step) ** 2 * (lag % 2 == 1)
    odd[0] = 1 / (4 * step**2)
    return odd
