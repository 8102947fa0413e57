"""Bias field: a smooth factor, from the sensitivity of receive coils."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from medgen.checks import MedgenError, check_count
from medgen.operators.base import Operator
from medgen.operators.registry import register_operator
from medgen.operators.svd import SVD, DiagonalSVD, along

__all__ = ["BiasField", "draw_bias_field"]


def _examples(dims: int) -> list[Operator]:
    return [draw_bias_field((6, 5, 4)[:dims], torch.Generator().manual_seed(0), strength=0.3)]


@register_operator("bias_field", example=_examples)
class BiasField(Operator):
    """Multiplication with a smooth field: ``y = exp(b) x``, ``b(r) = sum_k c_k prod_a cos(pi k_a (r_a + 1/2) / n_a)``.

    Args:
        size: spatial shape of the volume.
        coefficients: ``c``, one axis for each spatial axis; entry ``k`` belongs to ``k_a`` half waves across axis
            ``a``. The field has no unit.

    Raises:
        MedgenError: coefficients of another number of axes, or that are not finite.

    Example:
        >>> field = BiasField((4, 4), torch.tensor([[0.0, 0.0], [0.1, 0.0]]))
        >>> field.forward(torch.ones(1, 1, 4, 4))[0, 0, :, 0].mul(100).round().tolist()
        [110.0, 104.0, 96.0, 91.0]

    References:
        Sled, Zijdenbos and Evans (N3), IEEE TMI 17 (1998), equation 1; cosines as in Ashburner and Friston, "Unified
        segmentation", NeuroImage 26 (2005).
    """

    def __init__(self, size: Sequence[int], coefficients: Tensor) -> None:
        super().__init__(size)
        self.coefficients = torch.as_tensor(coefficients, dtype=torch.float64).detach()
        if self.coefficients.ndim != len(self.size) or not bool(self.coefficients.isfinite().all()):
            raise MedgenError(
                f"{self.caller}: coefficients must be finite with {len(self.size)} axes. "
                f"Got shape {tuple(self.coefficients.shape)}. Use draw_bias_field."
            )
        self.field = _log_field(self.size, self.coefficients).exp()

    def _forward(self, x: Tensor) -> Tensor:
        return x * self.field.to(x.real.dtype)

    def _adjoint(self, y: Tensor) -> Tensor:
        return y * self.field.to(y.real.dtype)

    def _pseudo_inverse(self, y: Tensor) -> Tensor:
        return y / self.field.to(y.real.dtype)

    def to_image(self, y: Tensor) -> Tensor:
        """The image with its bias: as it is measured."""
        self._check_measurement(y)
        return y

    def _svd(self) -> SVD:
        return DiagonalSVD(self.field)


def draw_bias_field(
    size: Sequence[int], generator: torch.Generator, strength: float = 0.2, order: int = 3
) -> BiasField:
    """A random field: ``c_k`` normal over ``1 + |k|^2``, scaled to the wanted deviation of its logarithm.

    Args:
        size: spatial shape of the volume.
        generator: CPU stream; it is advanced.
        strength: standard deviation of the field's logarithm over the volume (0.2: about 20%).
        order: the largest number of half waves across an axis.

    Example:
        >>> field = draw_bias_field((16, 16), torch.Generator().manual_seed(0), strength=0.2).field
        >>> round(float(field.log().std(correction=0)), 3)
        0.2

    References:
        The fields of :mod:`medgen.anatomy.contrast`, after Billot et al., SynthSeg (2023).
    """
    check_count("draw_bias_field", "order", order)
    if not 0 <= strength <= 5:
        raise MedgenError(f"draw_bias_field: strength must lie in 0..5. Got {strength}. 0.2 is a field of 20%.")
    shape = (order + 1,) * len(tuple(size))
    frequency = sum(torch.meshgrid(*[torch.arange(k, dtype=torch.float64) ** 2 for k in shape], indexing="ij"))
    coefficients = torch.randn(shape, generator=generator, dtype=torch.float64) / (1 + frequency)
    coefficients.view(-1)[0] = 0
    deviation = _log_field(tuple(size), coefficients).std(correction=0).clamp_min(1e-12)
    return BiasField(size, coefficients * (strength / deviation))


def _log_field(size: tuple[int, ...], coefficients: Tensor) -> Tensor:
    """``b`` of the class, float64 ``(*size)``."""
    field = coefficients[None, None]
    for axis, n in enumerate(size):
        at = (torch.arange(n, dtype=torch.float64) + 0.5) / n
        field = along(torch.cos(torch.pi * at[:, None] * torch.arange(coefficients.shape[axis])), field, axis)
    return field[0, 0]
