"""Non-uniform Fourier transform in a plane, by an oversampled FFT and a sparse Kaiser-Bessel interpolation.

References:
    Fessler and Sutton, "Nonuniform fast Fourier transforms using min-max interpolation", IEEE TSP 51 (2003).
    Beatty, Nishimura and Pauly, "Rapid gridding reconstruction with a minimal oversampling ratio", IEEE TMI 24 (2005).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from medgen.operators.fourier import fft, ifft

__all__ = ["Nufft", "direct_transform"]


class Nufft:
    """``X_m = N^(-1/2) sum_r x(r) exp(-2 pi i k_m . r)``, ``r`` counted from the middle voxel ``n // 2``.

    Three factors: division by the kernel's transform, a zero-padded FFT on a grid ``oversampling`` times as fine, and
    interpolation by ``W``, sparse and real. The adjoint is the product of their adjoints, so it is exact; only the
    interpolation is an approximation (relative error about 1e-5 with the values below).

    Args:
        size: of the plane, two axes.
        points: ``k``, cycles per voxel in -1/2..1/2, ``(M, 2)``.
        width: of the kernel, in grid points.
        oversampling: of the grid.

    Example:
        >>> points = torch.rand(20, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 0.5
        >>> x = torch.randn(1, 8, 6, generator=torch.Generator().manual_seed(1), dtype=torch.complex128)
        >>> exact, found = direct_transform(x, points), Nufft((8, 6), points).forward(x)
        >>> bool((found - exact).norm() < 1e-4 * exact.norm())
        True

    References:
        Fessler and Sutton (2003) for the three factors; Beatty et al. (2005), equation 5, for the kernel's shape
        ``beta``.
    """

    def __init__(self, size: Sequence[int], points: Tensor, width: int = 6, oversampling: float = 2.0) -> None:
        self.size = tuple(size)
        self.grid = tuple(2 * math.ceil(oversampling * n / 2) for n in self.size)
        self.width = width
        ratios = [g / n for g, n in zip(self.grid, self.size, strict=True)]
        self.betas = [math.pi * math.sqrt(width**2 / a**2 * (a - 0.5) ** 2 - 0.8) for a in ratios]
        self.weights = self._matrix(points.detach().cpu().double())
        self.transposed = self.weights.t().coalesce()
        factors = [
            1 / _kernel_transform((torch.arange(n, dtype=torch.float64) - n // 2) / g, width, beta)
            for n, g, beta in zip(self.size, self.grid, self.betas, strict=True)
        ]
        self.correction = factors[0][:, None] * factors[1] * math.sqrt(math.prod(self.grid) / math.prod(self.size))

    def to(self, device: torch.device | str) -> Nufft:
        """The same transform on another device."""
        moved = object.__new__(Nufft)
        moved.__dict__ = {key: v.to(device) if isinstance(v, Tensor) else v for key, v in vars(self).items()}
        return moved

    def forward(self, x: Tensor) -> Tensor:
        """From the plane to the points.

        Args:
            x: complex ``(N, *size)``.

        Returns:
            Complex ``(N, M)``.
        """
        padded = x.new_zeros(len(x), *self.grid)
        padded[(slice(None), *self._inside())] = x * self.correction.to(x.real.dtype)
        return _product(self.weights, fft(padded[None])[0].flatten(1))

    def adjoint(self, y: Tensor) -> Tensor:
        """From the points to the plane: ``A*``.

        Args:
            y: complex ``(N, M)``.

        Returns:
            Complex ``(N, *size)``.
        """
        spectrum = _product(self.transposed, y).unflatten(1, self.grid)
        return ifft(spectrum[None])[0][(slice(None), *self._inside())] * self.correction.to(y.real.dtype)

    def _inside(self) -> tuple[slice, ...]:
        """Where the plane lies in the padded grid: middle on middle."""
        starts = [g // 2 - n // 2 for g, n in zip(self.grid, self.size, strict=True)]
        return tuple(slice(start, start + n) for start, n in zip(starts, self.size, strict=True))

    def _matrix(self, points: Tensor) -> Tensor:
        """``W``, sparse ``(M, grid points)``, float64."""
        columns, values = [], []
        for axis, (g, beta) in enumerate(zip(self.grid, self.betas, strict=True)):
            at = points[:, axis] * g
            near = (at - self.width / 2).ceil()[:, None] + torch.arange(self.width)
            values.append(_kernel(at[:, None] - near, self.width, beta))
            columns.append((near.long() + g // 2) % g)
        column = columns[0][:, :, None] * self.grid[1] + columns[1][:, None, :]
        value = values[0][:, :, None] * values[1][:, None, :]
        row = torch.arange(len(points))[:, None].expand(-1, self.width**2).flatten()
        shape = (len(points), math.prod(self.grid))
        index = torch.stack([row, column.flatten()])
        return torch.sparse_coo_tensor(index, value.flatten(), shape, check_invariants=False).coalesce()


def direct_transform(x: Tensor, points: Tensor) -> Tensor:
    """The same sums term by term, to test against.

    Args:
        x: complex ``(N, *size)``, two axes.
        points: cycles per voxel, ``(M, 2)``.

    Returns:
        Complex ``(N, M)``.
    """
    phases = [
        torch.exp(-2j * math.pi * points[:, axis, None] * (torch.arange(n) - n // 2))
        for axis, n in enumerate(x.shape[1:])
    ]
    return torch.einsum("nab,ma,mb->nm", x, *(phase.to(x.dtype) for phase in phases)) / math.sqrt(x[0].numel())


def _kernel(u: Tensor, width: int, beta: float) -> Tensor:
    """``I_0(beta sqrt(1 - (2 u / J)^2)) / J`` for ``|u| <= J / 2``, else 0."""
    inside = 1 - (2 * u / width) ** 2
    return torch.special.i0(beta * inside.clamp_min(0).sqrt()) / width * (inside >= 0)


def _kernel_transform(nu: Tensor, width: int, beta: float) -> Tensor:
    """``sinh(s) / s``, ``s^2 = beta^2 - (pi J nu)^2``, above 0 wherever it is used."""
    s = (beta**2 - (math.pi * width * nu) ** 2).sqrt()
    return torch.sinh(s) / s


def _product(matrix: Tensor, values: Tensor) -> Tensor:
    """A sparse real ``(m, n)`` matrix times complex ``(N, n)``: real and imaginary parts are columns."""
    columns = torch.view_as_real(values.resolve_conj()).movedim(1, 0)
    result = torch.sparse.mm(matrix.to(columns.dtype), columns.flatten(1))
    return torch.view_as_complex(result.unflatten(1, columns.shape[1:]).movedim(0, 1).contiguous())
