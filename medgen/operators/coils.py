"""Receive coils: simulated sensitivities, a volume seen by each coil, and the sum back."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from medgen.checks import check_count, check_positive
from medgen.operators.base import checked_size

__all__ = ["combine_coils", "expand_coils", "simulate_sensitivities"]


def expand_coils(x: Tensor, sensitivities: Tensor | None) -> Tensor:
    """``S_c x``: what each coil sees.

    Args:
        x: ``(B, C, *spatial)``.
        sensitivities: ``(K, *spatial)``, or None for one coil with ``S = 1``.

    Returns:
        ``(B, C * K, *spatial)``.
    """
    if sensitivities is None:
        return x
    maps = sensitivities.to(x.dtype.to_complex())
    return (x[:, :, None] * maps).flatten(1, 2)


def combine_coils(y: Tensor, sensitivities: Tensor | None) -> Tensor:
    """``sum_c conj(S_c) y_c``, the adjoint of :func:`expand_coils`.

    Args:
        y: ``(B, C * K, *spatial)``, complex.
        sensitivities: ``(K, *spatial)``, or None.

    Returns:
        ``(B, C, *spatial)``.
    """
    if sensitivities is None:
        return y
    maps = sensitivities.to(y.dtype.to_complex())
    return (y.unflatten(1, (-1, len(maps))) * maps.conj()).sum(2)


def simulate_sensitivities(size: Sequence[int], coils: int, radius: float = 1.5, width: float = 0.6) -> Tensor:
    """Coils on a circle around the first two axes, each a loop of two long straight wires along the third.

    By Biot and Savart's law the transverse field of a wire at ``w`` in the complex plane is proportional to
    ``1 / (z - w)``, and that of a loop of opposite currents at ``w_1`` and ``w_2`` to ``1/(z - w_1) - 1/(z - w_2)``.
    The maps are scaled to ``sum_c |S_c|^2 = 1`` in every voxel.

    Args:
        size: spatial shape.
        coils: their number.
        radius: of the circle, in half fields of view (the field's corners lie at 1.41); above 1.42.
        width: of a loop, in half fields of view.

    Returns:
        complex64 ``(coils, *size)``, constant along the third axis.

    Example:
        >>> maps = simulate_sensitivities((8, 8), 4)
        >>> maps.shape, bool(torch.allclose(maps.abs().square().sum(0), torch.ones(8, 8)))
        (torch.Size([4, 8, 8]), True)

    References:
        Roemer et al., "The NMR phased array", Magn. Reson. Med. 16 (1990); Jackson, "Classical electrodynamics",
        chapter 5 (field of a straight wire).
    """
    size = checked_size("simulate_sensitivities", size)
    check_count("simulate_sensitivities", "coils", coils)
    check_positive("simulate_sensitivities", "radius", radius - 1.42)
    check_positive("simulate_sensitivities", "width", width)
    x, y = (((torch.arange(n, dtype=torch.float64) + 0.5) / n) * 2 - 1 for n in size[:2])
    z = torch.complex(x[:, None].expand(size[:2]), y[None].expand(size[:2]))
    angles = torch.arange(coils, dtype=torch.float64) * (2 * math.pi / coils)
    spread = math.atan2(width / 2, radius)
    reach = torch.full_like(angles, math.hypot(radius, width / 2))
    wires = [torch.polar(reach, angles + sign * spread)[:, None, None] for sign in (1, -1)]
    maps = 1 / (z - wires[0]) - 1 / (z - wires[1])
    maps = maps / maps.abs().square().sum(0).sqrt()
    if len(size) == 3:
        maps = maps[..., None].expand(coils, *size)
    return maps.to(torch.complex64).contiguous()
