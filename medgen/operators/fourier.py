"""The centred, unitary discrete Fourier transform that all k-space operators share.

``X(k) = N^(-1/2) sum_r x(r) exp(-2 pi i sum_a k_a r_a / n_a)``, ``r`` and ``k`` counted from the middle ``n // 2``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["fft", "frequencies", "ifft"]


def fft(x: Tensor, axes: Sequence[int] | None = None) -> Tensor:
    """Volume to k-space.

    Args:
        x: ``(B, C, *spatial)``, real or complex.
        axes: spatial axes, counted from 0; all by default.

    Returns:
        Complex, same shape and norm, frequency 0 in the middle.

    Example:
        >>> x = torch.randn(1, 1, 6, 5, generator=torch.Generator().manual_seed(0))
        >>> bool(torch.allclose(ifft(fft(x)).real, x, atol=1e-6)), bool(torch.isclose(fft(x).norm(), x.norm()))
        (True, True)
    """
    dims = _dims(x, axes)
    return torch.fft.fftshift(torch.fft.fftn(torch.fft.ifftshift(x, dims), dim=dims, norm="ortho"), dims)


def ifft(y: Tensor, axes: Sequence[int] | None = None) -> Tensor:
    """K-space to volume: inverse and adjoint of :func:`fft`."""
    dims = _dims(y, axes)
    return torch.fft.fftshift(torch.fft.ifftn(torch.fft.ifftshift(y, dims), dim=dims, norm="ortho"), dims)


def frequencies(n: int) -> Tensor:
    """Frequency of each k-space entry along an axis of ``n``, in cycles per voxel, float64, ascending.

    Example:
        >>> frequencies(4).tolist()
        [-0.5, -0.25, 0.0, 0.25]
    """
    return (torch.arange(n, dtype=torch.float64) - n // 2) / n


def _dims(x: Tensor, axes: Sequence[int] | None) -> tuple[int, ...]:
    return tuple(range(2, x.ndim)) if axes is None else tuple(axis + 2 for axis in axes)
