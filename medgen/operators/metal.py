"""Metal trace: projections without the rays that meet metal."""

from __future__ import annotations

import torch
from torch import Tensor

from medgen.checks import MedgenError
from medgen.operators.base import Operator
from medgen.operators.divergent import FanBeam
from medgen.operators.projection import ParallelBeam, view_angles
from medgen.operators.registry import register_operator

__all__ = ["MetalTrace"]


def _examples(dims: int) -> list[Operator]:
    size = (7, 6, 3)[:dims]
    metal = torch.zeros(size, dtype=torch.bool)
    metal[3, 2] = True
    fan = FanBeam(size, view_angles(4, arc=360), source_mm=20.0, detector_distance_mm=15.0)
    return [MetalTrace(ParallelBeam(size, view_angles(5)), metal), MetalTrace(fan, metal, threshold_mm=0.5)]


@register_operator("metal_trace", example=_examples)
class MetalTrace(Operator):
    """A projection in which rays through metal are 0: ``y = K P x``, ``K = 1`` where ``P m <= threshold``.

    The starting point of metal artefact reduction: what metal corrupts is not used, and a prior fills it in.

    Args:
        projection: ``P``: a parallel, fan or cone beam.
        metal: ``m``: True in metal, ``(*spatial)``.
        threshold_mm: of the length in metal above which a ray is left out.

    Raises:
        MedgenError: a mask of another size, or no ray left.

    Example:
        >>> metal = torch.zeros(9, 9, dtype=torch.bool)
        >>> metal[4, 4] = True
        >>> trace = MetalTrace(ParallelBeam((9, 9), view_angles(4)), metal)
        >>> trace.observed[0].int().tolist()
        [1, 1, 1, 1, 1, 1, 0, 1, 1, 1, 1, 1, 1]

    References:
        Kalender, Hebel and Ebersberger, "Reduction of CT artifacts caused by metallic implants", Radiology 164 (1987).
    """

    def __init__(self, projection: Operator, metal: Tensor, threshold_mm: float = 1e-3) -> None:
        super().__init__(projection.size)
        if tuple(metal.shape) != self.size:
            raise MedgenError(
                f"{self.caller}: metal must have shape {self.size}. Got {tuple(metal.shape)}. Use the volume's grid."
            )
        self.projection, self.metal, self.threshold_mm = projection, metal.detach().bool(), float(threshold_mm)
        self.keep = projection.forward(self.metal[None, None].float())[0, 0] <= self.threshold_mm
        if not bool(self.keep.any()):
            raise MedgenError(f"{self.caller}: every ray meets metal. Check the mask, or raise threshold_mm.")

    @property
    def observed(self) -> Tensor:
        """True at the rays that are kept."""
        return self.keep

    def measurement_shape(self, channels: int) -> tuple[int, ...]:
        """As the projection's."""
        return self.projection.measurement_shape(channels)

    def _forward(self, x: Tensor) -> Tensor:
        return self.projection.forward(x) * self.keep

    def _adjoint(self, y: Tensor) -> Tensor:
        return self.projection.adjoint(y * self.keep)
