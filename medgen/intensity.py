"""From a scan's own intensities to the 0..1 that models work in, and back."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from medgen.checks import MedgenError

MOST_VOXELS = 1_000_000


@dataclass(frozen=True)
class IntensityWindow:
    """An affine map of a scan's intensities, in any unit, to the model's 0..1, which has none.

    Attributes:
        low: intensity that becomes 0, in the scan's unit.
        high: intensity that becomes 1, in the scan's unit, above ``low``.

    Example:
        >>> import torch
        >>> window = IntensityWindow(-1000.0, 1000.0)
        >>> window.forward(torch.tensor([-2000.0, -1000.0, 500.0, 5000.0])).tolist()
        [0.0, 0.0, 0.75, 1.5]
        >>> window.inverse(torch.tensor([0.0, 0.75])).tolist()
        [-1000.0, 500.0]
    """

    low: float
    high: float

    @classmethod
    def of(cls, values: Tensor) -> IntensityWindow:
        """From known intensities: 0.5th percentile, and 99.5th of those above it; of a constant image, one unit.

        Args:
            values: known intensities, any shape and unit, finite.

        Raises:
            MedgenError: there is none.
        """
        if not values.numel():
            raise MedgenError("intensity window: there is no known voxel to take it from. Mark a smaller hole.")
        flat = values.flatten().double()
        low = _ranked(flat, 0.005)
        above = flat[flat > low]
        return cls(low, _ranked(above, 0.995) if len(above) else low + 1)

    def forward(self, x: Tensor) -> Tensor:
        """Scan intensities to model intensities: any shape, float32, clamped to 0..1.5."""
        return ((x - self.low) / (self.high - self.low)).clamp(0, 1.5).float()

    def inverse(self, x: Tensor) -> Tensor:
        """Model intensities to scan intensities: any shape, the dtype of ``x``."""
        return x * (self.high - self.low) + self.low


def restorer_unit(values: Tensor, scaling: str) -> tuple[float, float]:
    """Factor and offset from a restorer's unit to a scan's: ``scan = factor * x + offset``; nothing is clamped.

    Args:
        values: of the scan, any shape, finite.
        scaling: ``percentile``: the 99.9th percentile of the magnitude is 1 and 0 is 0; ``hounsfield``: -1000 HU is 0
            and 1000 HU is 1.
    """
    return (2000.0, -1000.0) if scaling == "hounsfield" else (bright_end(values), 0.0)


def bright_end(values: Tensor, share: float = 0.999) -> float:
    """The percentile of the magnitude that noise levels are relative to; 1 for an image of zeros.

    Of a large image every k-th voxel is looked at.

    Args:
        values: any shape and unit, finite.
        share: of the voxels that lie below.
    """
    flat = values.abs().flatten()
    top = float(flat[:: max(1, len(flat) // MOST_VOXELS)].float().quantile(share))
    return top if top > 0 else 1.0


def _ranked(values: Tensor, share: float) -> float:
    """The value that the given share of the rest lies below."""
    return float(values.kthvalue(1 + int(share * (len(values) - 1))).values)
