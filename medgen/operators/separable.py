"""Operators that are one small matrix per axis, ``A = A_1 x A_2 x A_3`` (Kronecker): all in closed form.

The adjoint is the transpose, the pseudo-inverse and the singular value decomposition are those of the matrices.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from medgen.checks import MedgenError
from medgen.operators.base import Operator, checked_axis
from medgen.operators.registry import register_operator
from medgen.operators.svd import SVD, AxisSVD, along

__all__ = ["Separable"]

_RCOND = 1e-7


def _examples(dims: int) -> list[Operator]:
    generator = torch.Generator().manual_seed(0)
    tall, wide = torch.rand(7, 5, generator=generator), torch.rand(3, 6, generator=generator)
    deficient = torch.rand(4, 2, generator=generator) @ torch.rand(2, 6, generator=generator)
    size = (5, 6, 4)[:dims]
    return [Separable(size, {0: tall, 1: wide}), Separable(size, {-dims + 1: deficient.double()})]


@register_operator("separable", example=_examples)
class Separable(Operator):
    """Any matrix per axis: ``y = (A_1 x A_2 x A_3) x``.

    Args:
        size: spatial shape of the volume.
        matrices: spatial axis (counted from 0, or from the end) -> real ``(m, n)``, ``n`` the size of this axis; axes
            without one stay as they are.

    Raises:
        MedgenError: a matrix that does not fit its axis.

    Example:
        >>> import torch
        >>> pairs = torch.tensor([[0.5, 0.5, 0.0, 0.0], [0.0, 0.0, 0.5, 0.5]])
        >>> operator = Separable((3, 4), {1: pairs})
        >>> operator.forward(torch.arange(12.0).reshape(1, 1, 3, 4))[0, 0, 0].tolist()
        [0.5, 2.5]
        >>> operator.pseudo_inverse(torch.ones(1, 1, 3, 2))[0, 0, 0].tolist()
        [1.0, 1.0, 1.0, 1.0]

    References:
        Golub and Van Loan, "Matrix computations", 4th edition, chapters 2 (singular values) and
        12 (Kronecker products).
    """

    def __init__(self, size: Sequence[int], matrices: Mapping[int, Tensor]) -> None:
        super().__init__(size)
        self.matrices: dict[int, Tensor] = {}
        for axis, matrix in matrices.items():
            at = checked_axis(self.caller, axis, len(self.size))
            if matrix.ndim != 2 or matrix.shape[1] != self.size[at] or matrix.is_complex():
                raise MedgenError(
                    f"{self.caller}: the matrix of axis {axis} must be real with {self.size[at]} columns. "
                    f"Got {tuple(matrix.shape)}, {matrix.dtype}. Give one column for each voxel."
                )
            self.matrices[at] = matrix.detach().double()
        self._inverses: dict[int, Tensor] = {}

    def measurement_shape(self, channels: int) -> tuple[int, ...]:
        """``(C, *spatial)``, with the number of rows along each axis that has a matrix."""
        rows = [len(self.matrices[axis]) if axis in self.matrices else n for axis, n in enumerate(self.size)]
        return (channels, *rows)

    def _forward(self, x: Tensor) -> Tensor:
        for axis, matrix in self.matrices.items():
            x = along(matrix, x, axis)
        return x

    def _adjoint(self, y: Tensor) -> Tensor:
        for axis, matrix in self.matrices.items():
            y = along(matrix.T, y, axis)
        return y

    def _pseudo_inverse(self, y: Tensor) -> Tensor:
        if not self._inverses:  # computed once, a function of the matrices alone
            self._inverses = {axis: torch.linalg.pinv(a, rtol=_RCOND) for axis, a in self.matrices.items()}
        for axis, inverse in self._inverses.items():
            y = along(inverse, y, axis)
        return y

    def _svd(self) -> SVD:
        return AxisSVD(self.matrices, self.size)


def product(operators: Sequence[Separable]) -> Separable:
    """One operator for several, the first one applied first: the products of their matrices.

    Args:
        operators: each of the size that the one before it measures.
    """
    matrices: dict[int, Tensor] = {}
    for operator in operators:
        for axis, matrix in operator.matrices.items():
            matrices[axis] = matrix @ matrices[axis] if axis in matrices else matrix
    return Separable(operators[0].size, matrices)
