"""What a denoiser took away and is no noise, put back."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

from medgen.operators import RicianNoise

__all__ = ["given_back"]

WIDTH = 0.8
"""Deviation of the window, in the shortest edge of a voxel. Chosen on a person trained on (T1, T2 and FLAIR, 5% and
10% noise): the widest of 0.8, 1.0, 1.2 and 1.5 with which ten lesions of each of 4, 6, 8 and 10 mm at 20% contrast keep
nine tenths of it: 91% to 98%, where the denoiser alone kept 75% to 95%; its PSNR became -0.3 to +0.3 dB more."""
LEAST = 0.3  # of the mean's squared slope: where it is less, in air, little is put back


def given_back(
    noisy: Tensor, restored: Tensor, noise_std: float, spacing: Sequence[float], *, magnitude: bool
) -> tuple[Tensor, Tensor]:
    """Twicing (Tukey 1977): what is left of the scan, averaged over a few voxels, is added to the restored one.

    A denoiser that expects smooth tissue takes small faint lesions for noise. Noise averages out over a Gaussian ``G``
    of a voxel's width (in 3D 21% of it stay, in thick slices 35%), a lesion of four does not. With the mean ``m(x)``
    of the noisy value, the offset ``d`` about each voxel has the least ``G * (y - m(x) - m'(x) d)^2``:

        ``d = (G * m'(x) (y - m(x))) / (G * m'(x)^2)``.

    Args:
        noisy: ``(1, *spatial)``.
        restored: the same shape and unit.
        noise_std: deviation of the noise, the same unit; of a magnitude that of each of its parts. 0: nothing is done.
        spacing: mm along each axis.
        magnitude: whether the noise is Rician; else its mean is 0.

    Returns:
        The image, a magnitude not negative, and the deviation of the white noise that came back with it; both
        ``(1, *spatial)`` float32, on the CPU.
    """
    if noise_std <= 0:
        return restored.float().cpu(), torch.zeros(restored.shape)
    width = [WIDTH * min(spacing) / step for step in spacing]
    x, y = (part[0].cpu().numpy().astype(np.float32) for part in (restored, noisy))
    left = noise_std * float(np.prod([_left(w) for w in width]))
    if not magnitude:
        return torch.from_numpy(x + gaussian_filter(y - x, width))[None], torch.full(restored.shape, left)
    noise = RicianNoise(noise_std)
    mean, slope = (part(torch.from_numpy(x)).numpy() for part in (noise.mean, noise.slope))
    above, below = (gaussian_filter(part, width) for part in (slope * (y - mean), slope**2))
    share = slope**2 / (slope**2 + LEAST)  # 0 in air, which has no slope
    made = x + share * above / (below + LEAST) * (1 + LEAST) ** 2
    came = np.asarray(left * (1 + LEAST) * share, np.float32)
    return torch.from_numpy(np.maximum(made, 0, dtype=np.float32))[None], torch.from_numpy(came)[None]


def _left(width: float) -> float:
    """Deviation of white noise of 1 after the window along an axis."""
    point = np.zeros(2 * int(4 * width + 1) + 1)
    point[len(point) // 2] = 1
    return float(np.linalg.norm(gaussian_filter(point, width)))
