"""Radial k-space: spokes through the centre, of one coil or several."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor

from medgen.checks import MedgenError, check_choice, check_count
from medgen.operators.base import Operator, linear_map
from medgen.operators.coils import combine_coils, expand_coils, simulate_sensitivities
from medgen.operators.fourier import fft, ifft
from medgen.operators.nufft import Nufft
from medgen.operators.registry import register_operator

__all__ = ["RadialKSpace", "radial_angles"]

_GOLDEN = math.pi * (math.sqrt(5) - 1) / 2
_ORDERS = ("golden", "uniform")


def _examples(dims: int) -> list[Operator]:
    size = (8, 7, 3)[:dims]
    return [
        RadialKSpace(size, spokes=4),
        RadialKSpace(size, spokes=3, samples=9, order="uniform", sensitivities=simulate_sensitivities(size, 2)),
    ]


@register_operator("radial_kspace", example=_examples)
class RadialKSpace(Operator):
    """K-space on spokes in the plane of the first two axes; along a third axis all of it (a stack of stars).

    ``y_cm = N^(-1/2) sum_r S_c(r) x(r) exp(-2 pi i k_m . r)`` by a Kaiser-Bessel transform whose adjoint is exact
    (:class:`~medgen.operators.nufft.Nufft`), with a unitary Fourier transform along the third axis.

    Args:
        size: spatial shape of the volume.
        spokes: their number.
        samples: of a spoke, from -1/2 to below 1/2 cycles per voxel; twice the larger side of the plane by default.
        order: ``golden`` turns by 111.25 degrees from one spoke to the next, ``uniform`` by 180 over ``spokes``.
        sensitivities: complex ``(coils, *size)``, or None for one coil.

    Raises:
        MedgenError: shapes that do not fit.

    Example:
        >>> import torch
        >>> radial = RadialKSpace((8, 8), spokes=5)
        >>> x = torch.ones(1, 1, 8, 8)
        >>> y = radial.forward(x)
        >>> y.shape, round(y[0, 0, :, 8].real.mean().item(), 3)
        (torch.Size([1, 1, 5, 16]), 8.0)

    References:
        Winkelmann et al., "An optimal radial profile order based on the golden ratio", IEEE TMI 26 (2007);
        Fessler and Sutton (2003); Beatty et al. (2005).
    """

    domain = "complex"

    def __init__(
        self,
        size: Sequence[int],
        spokes: int,
        samples: int | None = None,
        order: str = "golden",
        sensitivities: Tensor | None = None,
    ) -> None:
        super().__init__(size)
        check_count(self.caller, "spokes", spokes)
        self.spokes, self.order = spokes, order
        self.samples = 2 * max(self.size[:2]) if samples is None else samples
        check_count(self.caller, "samples", self.samples)
        if sensitivities is not None and tuple(sensitivities.shape[1:]) != self.size:
            raise MedgenError(
                f"{self.caller}: sensitivities must have shape (coils, {', '.join(map(str, self.size))}). "
                f"Got {tuple(sensitivities.shape)}. Make them for this size."
            )
        self.sensitivities = None if sensitivities is None else sensitivities.detach()
        self._nufft = Nufft(self.size[:2], self.points)

    @property
    def points(self) -> Tensor:
        """``k`` in cycles per voxel, spoke by spoke, ``(spokes * samples, 2)`` float64."""
        angle = radial_angles(self.spokes, self.order)[:, None]
        radius = torch.arange(self.samples, dtype=torch.float64) / self.samples - (self.samples // 2) / self.samples
        return torch.stack([radius * torch.cos(angle), radius * torch.sin(angle)], -1).flatten(0, 1)

    @property
    def coils(self) -> int:
        """Number of coils."""
        return 1 if self.sensitivities is None else len(self.sensitivities)

    @property
    def device(self) -> torch.device:
        """Where the interpolation lies."""
        return self._nufft.weights.device

    def to(self, device: torch.device | str) -> Self:
        """The same operator on another device."""
        moved = super().to(device)
        moved._nufft = self._nufft.to(device)
        return moved

    def measurement_shape(self, channels: int) -> tuple[int, ...]:
        """``(C * coils, spokes, samples)``, and the third axis in 3D."""
        return (channels * self.coils, self.spokes, self.samples, *self.size[2:])

    def measured_channels(self, channels: int) -> int:
        """Channels of the volume for ``C * coils``; 0 if that is no multiple of the coils."""
        return 0 if channels % self.coils else channels // self.coils

    def _forward(self, x: Tensor) -> Tensor:
        return linear_map(x.to(x.dtype.to_complex()), self._there, self._back)

    def _adjoint(self, y: Tensor) -> Tensor:
        return linear_map(y.to(y.dtype.to_complex()), self._back, self._there)

    def _there(self, x: Tensor) -> Tensor:
        seen = expand_coils(x, self.sensitivities)
        planes = seen[..., None] if len(self.size) == 2 else fft(seen, (2,))
        rows = planes.movedim(-1, 2).flatten(0, 2)
        found = self._nufft.forward(rows).unflatten(1, (self.spokes, self.samples))
        y = found.unflatten(0, (len(x), -1, planes.shape[-1])).movedim(2, -1)
        return y if len(self.size) == 3 else y[..., 0]

    def _back(self, y: Tensor) -> Tensor:
        planes = y if len(self.size) == 3 else y[..., None]
        rows = planes.movedim(-1, 2).flatten(0, 2).flatten(1)
        found = self._nufft.adjoint(rows).unflatten(0, (len(y), -1, planes.shape[-1])).movedim(2, -1)
        return combine_coils(ifft(found, (2,)) if len(self.size) == 3 else found[..., 0], self.sensitivities)


def radial_angles(spokes: int, order: str) -> Tensor:
    """Angle of each spoke in radians, float64 ``(spokes,)``.

    Args:
        spokes: their number.
        order: ``golden`` or ``uniform``.

    Example:
        >>> [round(angle, 2) for angle in radial_angles(3, "golden").rad2deg().tolist()]
        [0.0, 111.25, 222.49]
    """
    check_choice("radial_angles", "order", order, _ORDERS)
    step = _GOLDEN if order == "golden" else math.pi / spokes
    return torch.arange(spokes, dtype=torch.float64) * step
