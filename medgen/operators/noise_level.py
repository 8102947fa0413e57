"""How noisy a scan is, from the scan alone."""

from __future__ import annotations

from torch import Tensor

from medgen.checks import MedgenError
from medgen.diffusion.haar import haar_pack
from medgen.intensity import bright_end

__all__ = ["estimate_noise"]

OBJECT = 0.15  # of the bright end: what is brighter is no air, where Rician noise is of another size
LEAST = 512
NORMAL = 0.6744897501960817  # median of |n|, n standard normal


def estimate_noise(image: Tensor) -> float:
    """Deviation of white noise in an image: median of the finest diagonal wavelet coefficients where it is flat.

    Args:
        image: ``(1, *spatial)``, two or three axes, real, finite, any unit; of three axes one may have a single voxel:
            a slice. Interpolated images have less noise in that band than elsewhere, so that theirs is underestimated.

    Returns:
        In the unit of the image; of a Rician one the deviation of each part.

    Raises:
        MedgenError: fewer than two axes of two voxels or more.

    Example:
        >>> import torch
        >>> noise = torch.randn(1, 64, 64, generator=torch.Generator().manual_seed(0))
        >>> round(estimate_noise(10 + 2 * noise), 1)
        2.0

    References:
        Coupe et al. 2010, "Robust Rician noise estimation for MR images", Medical Image Analysis 14, section 2.2.
    """
    sides = [n for n in image.shape[1:] if n > 1]
    if len(sides) < 2:
        raise MedgenError(
            f"estimate_noise: image must have two voxels or more along two axes. Got {tuple(image.shape[1:])}. "
            "State the noise level."
        )
    even = (slice(None), *(slice(n - n % 2) for n in sides))
    bands = haar_pack(image.reshape(1, *sides)[even][None].float())[0]
    mean, detail = bands[0] / len(bands) ** 0.5, bands[-1]
    shown = mean > OBJECT * bright_end(image)
    if int(shown.sum()) < LEAST:
        return float(detail.abs().median()) / NORMAL
    slope = sum(band.square() for band in bands[1:-1])  # edges; their noise is not that of the band that is looked at
    flat = shown & (slope <= slope[shown].median())
    return float(detail[flat].abs().median()) / NORMAL
