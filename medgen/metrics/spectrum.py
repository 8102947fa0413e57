"""Radial power spectrum of a volume inside a window."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from medgen.checks import MedgenError

Array = NDArray[np.float64]


def radial_bands(highest: float = 0.4, width: float = 0.05) -> Array:
    """Edges of even frequency bands from 0 to ``highest``, cycles per voxel.

    Example:
        >>> radial_bands(0.2, 0.1).tolist()
        [0.0, 0.1, 0.2]
    """
    return np.round(np.linspace(0.0, highest, round(highest / width) + 1), 9)


def soft_window(inside: ArrayLike, *, taper: float = 2.0) -> Array:
    """A window that falls smoothly to 0 towards the outside of a mask, so that its edge adds little to a spectrum.

    Args:
        inside: mask ``(X, Y, Z)``.
        taper: voxels over which it rises from 0 at the edge to 1 (a raised cosine of the distance).

    Returns:
        Window ``(X, Y, Z)`` in 0..1; 0 outside the mask.
    """
    depth = ndimage.distance_transform_edt(np.asarray(inside, bool))
    return (1 - np.cos(np.pi * np.clip(depth / (taper + 1), 0, 1))) / 2


def band_powers(volume: ArrayLike, edges: Sequence[float] | Array, window: ArrayLike | None = None) -> Array:
    """Mean power of a volume's Fourier coefficients in radial bands.

    The volume less its mean in the window is multiplied by the window; the power is divided by the window's energy,
    so that white noise of variance v has power v in every band whatever the window.

    Args:
        volume: ``(X, Y, Z)``, isotropic voxels.
        edges: band edges ``(k + 1,)``, ascending, cycles per voxel.
        window: weights ``(X, Y, Z)``, None for all ones.

    Returns:
        Power of each band ``(k,)``, squared unit of the volume.

    Raises:
        MedgenError: shapes differ, an empty window, a band without a coefficient.

    References:
        Harris, "On the use of windows for harmonic analysis with the DFT", Proc. IEEE 66 (1978), section IV.
    """
    x = np.asarray(volume, np.float64)
    w = np.ones_like(x) if window is None else np.asarray(window, np.float64)
    if x.shape != w.shape or not w.sum() > 0:
        raise MedgenError(f"band_powers: window must have shape {x.shape} and weight. Got {w.shape}, sum {w.sum():g}.")
    spectrum = np.abs(np.fft.rfftn((x - (x * w).sum() / w.sum()) * w)) ** 2 / np.square(w).sum()
    axes = [np.fft.fftfreq(n) for n in x.shape[:-1]] + [np.fft.rfftfreq(x.shape[-1])]
    radius = np.sqrt(sum(np.square(f) for f in np.meshgrid(*axes, indexing="ij", sparse=True)))
    # rfftn keeps half of the coefficients: those with a mirror image count twice
    weight = np.full(spectrum.shape, 2.0)
    weight[..., 0] = 1.0
    if x.shape[-1] % 2 == 0:
        weight[..., -1] = 1.0
    band = np.digitize(radius.ravel(), np.asarray(edges)) - 1
    count = len(edges) - 1
    inside = (band >= 0) & (band < count)
    total = np.bincount(band[inside], (spectrum * weight).ravel()[inside], count)
    number = np.bincount(band[inside], weight.ravel()[inside], count)
    if not (number > 0).all():
        raise MedgenError("band_powers: a band holds no coefficient. Give wider bands or a larger volume.")
    return total / number
