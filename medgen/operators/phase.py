"""Between real and complex volumes: a given phase, and the magnitude."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from medgen.checks import MedgenError
from medgen.operators.base import Operator
from medgen.operators.registry import register_operator

__all__ = ["Magnitude", "Phase"]


def _phase_examples(dims: int) -> list[Operator]:
    return [Phase(torch.rand((5, 4, 3)[:dims], generator=torch.Generator().manual_seed(0)) * 6)]


@register_operator("phase", example=_phase_examples)
class Phase(Operator):
    """Gives a real volume a known phase: ``y = exp(i phi) x``, ``A* y = Re(exp(-i phi) y) = A+ y``.

    Put it before a k-space operator, and a prior over real (magnitude) volumes can drive it.

    Args:
        phase: ``phi`` in radians, real, ``(*spatial)``.

    Raises:
        MedgenError: a phase that is complex, or of another number of axes.

    Example:
        >>> operator = Phase(torch.full((2, 2), torch.pi / 2))
        >>> y = operator.forward(torch.ones(1, 1, 2, 2))
        >>> y[0, 0, 0, 0].imag.item(), operator.adjoint(y)[0, 0, 0, 0].item()
        (1.0, 1.0)

    References:
        Bydder and Robson, "Partial Fourier partially parallel imaging", Magn. Reson. Med. 53 (2005).
    """

    domain = "real"

    def __init__(self, phase: Tensor) -> None:
        super().__init__(phase.shape)
        if phase.is_complex():
            raise MedgenError(f"{self.caller}: phase must be real, in radians. Got {phase.dtype}. Use x.angle().")
        self.phase = phase.detach().double()

    def _forward(self, x: Tensor) -> Tensor:
        return x * torch.polar(torch.ones_like(self.phase), self.phase).to(x.dtype.to_complex())

    def _adjoint(self, y: Tensor) -> Tensor:
        return (y * torch.polar(torch.ones_like(self.phase), -self.phase).to(y.dtype.to_complex())).real.contiguous()

    def _pseudo_inverse(self, y: Tensor) -> Tensor:
        return self._adjoint(y)

    def to_image(self, y: Tensor) -> Tensor:
        """The magnitude: a reader does not know the phase."""
        self._check_measurement(y)
        return y.abs()


@register_operator("magnitude", example=lambda dims: [Magnitude((5, 4, 3)[:dims])])
class Magnitude(Operator):
    """``y = |x|``, what most scanners export; not linear.

    Args:
        size: spatial shape of the volume.

    Example:
        >>> Magnitude((1, 1)).forward(torch.tensor([[[[3 + 4j]]]])).item()
        5.0

    References:
        Gudbjartsson and Patz, Magn. Reson. Med. 34 (1995).
    """

    def __init__(self, size: Sequence[int]) -> None:
        super().__init__(size)

    @property
    def linear(self) -> bool:
        """No."""
        return False

    def _forward(self, x: Tensor) -> Tensor:
        return x.abs()
