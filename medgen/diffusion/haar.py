"""Orthonormal Haar packing: every 2 x 2 (x 2) block of voxels becomes channels, and exactly back."""

from __future__ import annotations

import torch
from torch import Tensor

from medgen.checks import MedgenError


def haar_pack(x: Tensor) -> Tensor:
    """Trade resolution for channels with one level of the orthonormal Haar transform.

    Args:
        x: ``(B, C, *spatial)``, two or three spatial axes, each of even length.

    Returns:
        ``(B, C * 2**d, *spatial / 2)``; the sub-bands of input channel ``c`` are channels
        ``c * 2**d ... (c + 1) * 2**d - 1``, the low-pass band first.

    Raises:
        MedgenError: a spatial axis is odd.

    Example:
        >>> x = torch.arange(16.0).reshape(1, 1, 4, 4)
        >>> haar_pack(x).shape
        torch.Size([1, 4, 2, 2])
        >>> bool(torch.allclose(haar_unpack(haar_pack(x)), x, atol=1e-5))
        True

    References:
        Haar 1910; as the input of a diffusion model: Friedrich et al. 2024 (WDM, arXiv:2402.19043).
    """
    dims = x.ndim - 2
    if any(n % 2 for n in x.shape[2:]):
        raise MedgenError(
            f"haar_pack: x must have spatial axes of even length. Got {tuple(x.shape[2:])}. Pad it first."
        )
    for axis in range(2, 2 + dims):
        even, odd = x.unfold(axis, 2, 2).unbind(-1)
        # (B, C * k, ...) -> (B, C * k * 2, ...): the new bit varies fastest
        x = torch.stack([even + odd, even - odd], dim=2).flatten(1, 2) * 0.5**0.5
    return x


def haar_unpack(x: Tensor) -> Tensor:
    """Invert :func:`haar_pack`.

    Args:
        x: ``(B, C * 2**d, *spatial)`` with ``d`` spatial axes.

    Returns:
        ``(B, C, *(2 * spatial))``.

    Raises:
        MedgenError: the number of channels is no multiple of ``2**d``.
    """
    dims = x.ndim - 2
    if x.shape[1] % 2**dims:
        raise MedgenError(
            f"haar_unpack: x must have a multiple of {2**dims} channels. Got {x.shape[1]}. Give it what haar_pack made."
        )
    for axis in reversed(range(2, 2 + dims)):
        total, difference = x.unflatten(1, (-1, 2)).unbind(2)
        pair = torch.stack([total + difference, total - difference], dim=axis + 1) * 0.5**0.5
        x = pair.flatten(axis, axis + 1)
    return x
