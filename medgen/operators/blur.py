"""Gaussian blur, the same or different along each axis."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from medgen.operators.base import Operator, checked_size, per_axis
from medgen.operators.registry import register_operator
from medgen.operators.separable import Separable

__all__ = ["FWHM", "Blur"]

FWHM = 2 * math.sqrt(2 * math.log(2))
"""Full width at half maximum of a Gaussian over its standard deviation."""

_TRUNCATE = 4.0


def _examples(dims: int) -> list[Operator]:
    size = (7, 6, 5)[:dims]
    return [Blur(size, fwhm_mm=1.5), Blur(size, fwhm_mm=(0.0, 2.0, 4.0)[:dims], spacing=(1.0, 1.5, 3.0)[:dims])]


@register_operator("blur", example=_examples)
class Blur(Separable):
    """Convolution with a Gaussian: ``y = g * x``, ``g(d) ~ exp(-d^2 / 2 sigma^2)``, ``sigma = FWHM / 2.3548``.

    The kernel is sampled at the voxels, cut at 4 sigma and scaled to sum 1 along each axis; the volume goes on beyond
    its border as its mirror image. Each matrix is a sum of rows with sum 1: a constant volume stays as it is.

    Args:
        size: spatial shape of the volume.
        fwhm_mm: full width at half maximum in mm, one for all axes or one for each; 0 leaves an axis as it is.
        spacing: voxel size in mm, one or one for each axis.

    Raises:
        MedgenError: a width below 0, or a spacing that is not above 0.

    Example:
        >>> import torch
        >>> x = torch.zeros(1, 1, 5, 5)
        >>> x[..., 2, 2] = 1
        >>> y = Blur((5, 5), fwhm_mm=(2.0, 0.0)).forward(x)
        >>> y[0, 0, :, 2].mul(100).round().tolist(), round(float(y.sum()), 5)
        ([3.0, 23.0, 47.0, 23.0, 3.0], 1.0)

    References:
        Gonzalez and Woods, "Digital image processing", 4th edition, section 3.5; the same kernel as
        ``scipy.ndimage.gaussian_filter`` with ``mode="reflect"``.
    """

    def __init__(
        self, size: Sequence[int], fwhm_mm: float | Sequence[float], spacing: float | Sequence[float] = 1.0
    ) -> None:
        size = checked_size(self.caller, size)
        dims = len(size)
        self.fwhm_mm = per_axis(self.caller, "fwhm_mm", fwhm_mm, dims, zero=True)
        self.spacing = per_axis(self.caller, "spacing", spacing, dims)
        sigmas = [width / FWHM / step for width, step in zip(self.fwhm_mm, self.spacing, strict=True)]
        matrices = {axis: _gaussian(n, s) for axis, (n, s) in enumerate(zip(size, sigmas, strict=True)) if s > 0}
        super().__init__(size, matrices)

    def to_image(self, y: Tensor) -> Tensor:
        """The blurred image: it lies on the volume's grid already."""
        self._check_measurement(y)
        return y


def _gaussian(n: int, sigma: float) -> Tensor:
    """``(n, n)``: the kernel around each voxel, its parts beyond the border folded back."""
    radius = int(_TRUNCATE * sigma + 0.5)
    offset = torch.arange(-radius, radius + 1)
    kernel = torch.exp(-0.5 * (offset.double() / sigma) ** 2)
    place = (torch.arange(n)[:, None] + offset) % (2 * n)
    place = torch.where(place < n, place, 2 * n - 1 - place)
    matrix = torch.zeros(n, n, dtype=torch.float64)
    return matrix.scatter_add_(1, place, (kernel / kernel.sum()).expand(n, -1))
