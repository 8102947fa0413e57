"""Singular value decompositions ``A = U S V*`` as products, for operators that have a cheap one.

``V`` is square and unitary; the coefficients ``V* x`` have one entry for each voxel. Singular values are 0 for what the
operator does not see. They are not sorted.

References:
    Kawar et al., "Denoising diffusion restoration models" (DDRM), NeurIPS 2022.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from medgen.operators.fourier import fft, ifft

__all__ = ["SVD", "AxisSVD", "DiagonalSVD", "FourierSVD", "along"]


def along(matrix: Tensor, x: Tensor, axis: int) -> Tensor:
    """``matrix`` times the vectors along one spatial axis.

    Args:
        matrix: real, ``(m, n)``.
        x: ``(B, C, *spatial)`` with ``n`` entries along the axis.
        axis: spatial axis, counted from 0.

    Returns:
        The same shape with ``m`` entries along the axis, in the type of ``x``.
    """
    return (x.movedim(axis + 2, -1) @ matrix.T.to(x.dtype)).movedim(-1, axis + 2)


class SVD:
    """The factors of ``A = U S V*``; diagonal in the voxels, unless a subclass says otherwise.

    Args:
        singular_values: at least 0, broadcast over coefficients ``(B, C, *size)``.
    """

    def __init__(self, singular_values: Tensor) -> None:
        self.singular_values = singular_values

    def v(self, coefficients: Tensor) -> Tensor:
        """``V c``: a volume ``(B, C, *size)`` from its coefficients."""
        return coefficients

    def vh(self, x: Tensor) -> Tensor:
        """``V* x``: coefficients ``(B, C, *size)`` of a volume."""
        return x

    def u(self, coefficients: Tensor) -> Tensor:
        """``U c``: a measurement from coefficients; those of no singular value are left out."""
        return coefficients

    def uh(self, y: Tensor) -> Tensor:
        """``U* y``: coefficients ``(B, C, *size)`` of a measurement, 0 where there is no singular value."""
        return y


class DiagonalSVD(SVD):
    """``A`` multiplies each voxel with a number of at least 0: ``U = V = 1``."""


class FourierSVD(SVD):
    """``A = M F``, ``F`` the unitary Fourier transform and ``M`` a mask: ``U = 1``, ``V = F*``."""

    def v(self, coefficients: Tensor) -> Tensor:
        """The volume of a spectrum."""
        return ifft(coefficients)

    def vh(self, x: Tensor) -> Tensor:
        """The spectrum of a volume."""
        return fft(x)

    def u(self, coefficients: Tensor) -> Tensor:
        """Measured entries only."""
        return coefficients * (self.singular_values > 0)

    def uh(self, y: Tensor) -> Tensor:
        """Measured entries only."""
        return y * (self.singular_values > 0)


class AxisSVD(SVD):
    """One small matrix per axis: ``U``, ``S`` and ``V`` are Kronecker products of those of the axes.

    Args:
        matrices: axis -> real ``(m, n)``; axes without one stay as they are.
        size: of the volume.
    """

    def __init__(self, matrices: Mapping[int, Tensor], size: tuple[int, ...]) -> None:
        self._u, self._v = {}, {}
        device = next(iter(matrices.values())).device if matrices else torch.device("cpu")
        values = torch.ones((), dtype=torch.float64, device=device)
        for axis, n in enumerate(size):
            factor = torch.ones(n, dtype=torch.float64, device=device)
            if axis in matrices:
                self._u[axis], factor, self._v[axis] = _square_svd(matrices[axis].double())
            values = values[..., None] * factor
        super().__init__(values)

    def v(self, coefficients: Tensor) -> Tensor:
        """``V c`` by axis."""
        return self._each(self._v, coefficients, False)

    def vh(self, x: Tensor) -> Tensor:
        """``V* x`` by axis."""
        return self._each(self._v, x, True)

    def u(self, coefficients: Tensor) -> Tensor:
        """``U c`` by axis."""
        return self._each(self._u, coefficients, False)

    def uh(self, y: Tensor) -> Tensor:
        """``U* y`` by axis."""
        return self._each(self._u, y, True)

    @staticmethod
    def _each(matrices: Mapping[int, Tensor], x: Tensor, transposed: bool) -> Tensor:
        for axis, matrix in matrices.items():
            x = along(matrix.T if transposed else matrix, x, axis)
        return x


def _square_svd(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``U (m, n)``, ``s (n,)`` and ``V (n, n)`` of an ``(m, n)`` matrix; columns of U without a value are 0."""
    m, n = matrix.shape
    u, s, vh = torch.linalg.svd(matrix)
    rank = len(s)
    wide, values = matrix.new_zeros(m, n), matrix.new_zeros(n)
    wide[:, :rank], values[:rank] = u[:, :rank], s
    return wide, values, vh.T.contiguous()
