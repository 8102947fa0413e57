"""Inpainting: a region that was not measured."""

from __future__ import annotations

import torch
from torch import Tensor

from medgen.checks import MedgenError
from medgen.operators.base import Operator
from medgen.operators.registry import register_operator
from medgen.operators.svd import SVD, DiagonalSVD

__all__ = ["Mask"]


def _examples(dims: int) -> list[Operator]:
    hole = torch.zeros((6, 5, 4)[:dims], dtype=torch.bool)
    hole[2:4, 1:3] = True
    return [Mask(hole), Mask(1 - hole[None].float())]


@register_operator("mask", example=_examples)
class Mask(Operator):
    """Keeps what lies outside an ``inpaint_mask`` and sets the rest to 0: ``y = (1 - m) x``, a diagonal projection.

    Args:
        inpaint_mask: ``(*spatial)`` or ``(1, *spatial)``; 1 = regenerate, 0 = keep.

    Raises:
        MedgenError: values other than 0 and 1, or another shape.

    Example:
        >>> hole = torch.tensor([[0.0, 1.0], [0.0, 0.0]])
        >>> Mask(hole).forward(torch.full((1, 1, 2, 2), 3.0)).tolist()
        [[[[3.0, 0.0], [3.0, 3.0]]]]

    References:
        Lugmayr et al., "RePaint", CVPR 2022, equation 8; A+ = A* = A as in Wang et al., DDNM, ICLR 2023.
    """

    def __init__(self, inpaint_mask: Tensor) -> None:
        given = torch.as_tensor(inpaint_mask).detach()
        plain = given[0] if given.ndim == 4 or (given.ndim == 3 and given.shape[0] == 1) else given
        super().__init__(plain.shape)
        if not bool(((plain == 0) | (plain == 1)).all()):
            raise MedgenError(
                f"{self.caller}: inpaint_mask must hold 0 (keep) and 1 (regenerate) only. Got values from "
                f"{float(plain.min()):g} to {float(plain.max()):g}. Threshold it first."
            )
        self.inpaint_mask = plain.bool()

    @property
    def observed(self) -> Tensor:
        """True outside the region, ``(*spatial)``."""
        return ~self.inpaint_mask

    def _forward(self, x: Tensor) -> Tensor:
        return x.masked_fill(self.inpaint_mask, 0)

    def _adjoint(self, y: Tensor) -> Tensor:
        return y.masked_fill(self.inpaint_mask, 0)

    def _pseudo_inverse(self, y: Tensor) -> Tensor:
        return y.masked_fill(self.inpaint_mask, 0)

    def _svd(self) -> SVD:
        return DiagonalSVD(self.observed.double())
