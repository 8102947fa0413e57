"""A fixed vector of radiomics-like features, and how much samples of one label map differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from medgen.checks import MedgenError

Array = NDArray[np.float64]
HISTOGRAM_BINS = 16
GREY_LEVELS = 16
BAND_SIGMAS = (0.0, 0.7, 1.4, 2.8, 5.6)
"""Gaussian widths in voxels whose differences are the frequency bands."""


def radiomic_features(
    image: ArrayLike,
    label: ArrayLike | None = None,
    *,
    label_ids: Sequence[int] = (1, 2),
    spacing: Sequence[float] | None = None,
) -> Array:
    """The values of :func:`named_radiomic_features` as a vector ``(d,)`` float64, in their fixed order."""
    return np.array(list(named_radiomic_features(image, label, label_ids=label_ids, spacing=spacing).values()))


def named_radiomic_features(
    image: ArrayLike,
    label: ArrayLike | None = None,
    *,
    label_ids: Sequence[int] = (1, 2),
    spacing: Sequence[float] | None = None,
) -> dict[str, float]:
    """Intensity, gradient, frequency, co-occurrence, and with a label per-label intensity and shape features.

    The names and their order depend on ``label_ids`` and on whether a label is given, never on the data. In the order
    of the result:

    - ``intensity_*``: mean, standard deviation, skewness, excess kurtosis, five percentiles; ``histogram_00..15``:
      square root of the share of voxels in 16 even bins of 0..1 (values outside count in the outer bins).
    - ``gradient_*``: mean, standard deviation and three percentiles of the gradient magnitude, per mm.
    - ``band_*``: log standard deviation of differences of Gaussians; ``haar_x/y/z``: of the finest Haar details.
    - ``cooccurrence_*``: contrast, homogeneity, energy, correlation, entropy of 16 grey levels of 0..1 at distance 1
      and 2, averaged over the axes.
    - ``label_<id>_*``: volume (its cube root, mm; of a slice the square root of the area), mean, standard deviation,
      5th and 95th percentile and gradient of the image inside, extents and principal standard deviations (mm), centre
      (fraction of the grid), share of surface voxels; all 0 where the label is absent.

    Args:
        image: ``(X, Y, Z)`` or ``(X, Y)``, scaled to about 0..1, each axis at least 4 voxels.
        label: ids, shape of the image, or None.
        label_ids: ids to describe, in this order.
        spacing: mm per axis; 1 mm if left out.

    Returns:
        Name to value.

    Raises:
        MedgenError: not a volume, another shape of the label, values that are not finite.

    References:
        Zwanenburg et al., "The Image Biomarker Standardisation Initiative", Radiology 295 (2020), sections 3.1, 3.3,
        3.4 and 3.6 (definitions of intensity, histogram, shape and co-occurrence features).
    """
    volume = np.asarray(image, dtype=np.float64)
    if volume.ndim not in (2, 3) or min(volume.shape) < 4:
        raise MedgenError(
            f"radiomic_features: image must be (X, Y, Z) or (X, Y), 4 voxels or more an axis. Got {volume.shape}."
        )
    spacing = (1.0,) * volume.ndim if spacing is None else spacing
    if len(spacing) != volume.ndim:
        raise MedgenError(f"radiomic_features: spacing must have {volume.ndim} entries. Got {list(spacing)}.")
    if not np.isfinite(volume).all():
        raise MedgenError("radiomic_features: image must be finite. Got nan or inf. Check the file.")
    slope = np.sqrt(sum(np.square(g) for g in np.gradient(volume, *spacing)))
    features = {**_intensity(volume), **_gradient(slope), **_bands(volume), **_cooccurrence(volume)}
    if label is None:
        return features
    ids = np.asarray(label)
    if ids.shape != volume.shape:
        raise MedgenError(f"radiomic_features: label must have the image's shape {volume.shape}. Got {ids.shape}.")
    for wanted in label_ids:
        described = _label(volume, slope, ids == wanted, spacing)
        features |= {f"label_{wanted}_{name}": value for name, value in described.items()}
    return features


def variation(samples: ArrayLike, groups: ArrayLike, names: Sequence[str]) -> dict[str, float]:
    """Standard deviation across samples of one label map, voxel by voxel, averaged within each group of voxels.

    Args:
        samples: ``(n, X, Y, Z)``, n >= 2 images of the same label map.
        groups: index into ``names`` for each voxel, ``(X, Y, Z)``; other values are left out.
        names: of the groups.

    Returns:
        For each group that has voxels the mean of the voxels' standard deviations (``n - 1`` in the denominator).
    """
    stack, where = np.asarray(samples, np.float64), np.asarray(groups)
    if stack.ndim != 4 or len(stack) < 2 or stack.shape[1:] != where.shape:
        raise MedgenError(f"variation: samples must be (n, *{where.shape}), n of 2 or more. Got {stack.shape}.")
    deviation = stack.std(0, ddof=1)
    return {name: float(deviation[where == k].mean()) for k, name in enumerate(names) if (where == k).any()}


def _intensity(volume: Array) -> dict[str, float]:
    mean, std = float(volume.mean()), float(volume.std())
    scaled = (volume - mean) / max(std, 1e-12)
    features = {
        "intensity_mean": mean,
        "intensity_std": std,
        "intensity_skewness": float((scaled**3).mean()),
        "intensity_kurtosis": float((scaled**4).mean()) - 3.0,
    }
    levels = (5, 25, 50, 75, 95)
    values = np.percentile(volume, levels)
    features |= {f"intensity_p{level:02d}": float(value) for level, value in zip(levels, values, strict=True)}
    counts = np.bincount(_quantised(volume, HISTOGRAM_BINS).ravel(), minlength=HISTOGRAM_BINS)
    shares = np.sqrt(counts / volume.size)
    return features | {f"histogram_{k:02d}": float(share) for k, share in enumerate(shares)}


def _gradient(slope: Array) -> dict[str, float]:
    features = {"gradient_mean": float(slope.mean()), "gradient_std": float(slope.std())}
    levels = (50, 90, 99)
    values = np.percentile(slope, levels)
    return features | {f"gradient_p{level}": float(value) for level, value in zip(levels, values, strict=True)}


def _bands(volume: Array) -> dict[str, float]:
    blurred = [volume, *(ndimage.gaussian_filter(volume, sigma, mode="reflect") for sigma in BAND_SIGMAS[1:])]
    features = {f"band_{k}": _log_std(fine - coarse) for k, (fine, coarse) in enumerate(pairwise(blurred))}
    for axis, name in enumerate("xyz"[: volume.ndim]):
        even = volume.shape[axis] // 2 * 2
        pairs = np.take(volume, range(even), axis)
        detail = np.take(pairs, range(0, even, 2), axis) - np.take(pairs, range(1, even, 2), axis)
        features[f"haar_{name}"] = _log_std(detail)
    return features


def _log_std(values: Array) -> float:
    return float(np.log(values.std() + 1e-6))


def _quantised(volume: Array, levels: int) -> NDArray[np.int64]:
    index: NDArray[np.int64] = np.clip(np.floor(volume * levels), 0, levels - 1).astype(np.int64)
    return index


def _cooccurrence(volume: Array) -> dict[str, float]:
    index = _quantised(volume, GREY_LEVELS)
    features: dict[str, float] = {}
    for distance in (1, 2):
        joint = np.zeros((GREY_LEVELS, GREY_LEVELS))
        for axis in range(volume.ndim):
            near = np.take(index, range(volume.shape[axis] - distance), axis)
            far = np.take(index, range(distance, volume.shape[axis]), axis)
            counts = np.bincount((near * GREY_LEVELS + far).ravel(), minlength=GREY_LEVELS**2)
            joint += counts.reshape(GREY_LEVELS, GREY_LEVELS) / near.size / volume.ndim
        joint = (joint + joint.T) / 2
        features |= {f"cooccurrence_{name}_{distance}": value for name, value in _haralick(joint).items()}
    return features


def _haralick(joint: Array) -> dict[str, float]:
    """Haralick, Shanmugam and Dinstein 1973, features 1, 2, 3, 5 and 9 of a symmetric co-occurrence matrix."""
    row, column = np.indices(joint.shape)
    mean = float((row * joint).sum())
    variance = float(((row - mean) ** 2 * joint).sum())
    covariance = float(((row - mean) * (column - mean) * joint).sum())
    return {
        "contrast": float(((row - column) ** 2 * joint).sum()),
        "homogeneity": float((joint / (1 + (row - column) ** 2)).sum()),
        "energy": float((joint**2).sum()),
        "correlation": covariance / variance if variance > 1e-12 else 1.0,
        "entropy": float(-(joint[joint > 0] * np.log(joint[joint > 0])).sum()),
    }


def _label(volume: Array, slope: Array, inside: NDArray[np.bool_], spacing: Sequence[float]) -> Mapping[str, float]:
    """Intensity and shape of one label; zeros where it is empty."""
    steps = np.asarray(spacing, np.float64)
    points = np.argwhere(inside).astype(np.float64)
    empty = not len(points)
    points = np.zeros((1, volume.ndim)) if empty else points
    values = np.zeros(1) if empty else volume[inside]
    surface = inside & ~ndimage.binary_erosion(inside)
    spread = np.cov((points * steps).T, bias=True)
    extent = np.zeros(volume.ndim) if empty else (np.ptp(points, axis=0) + 1) * steps
    axes = np.sqrt(np.clip(np.linalg.eigvalsh(np.atleast_2d(spread)), 0, None))
    centre = points.mean(0) / np.array(volume.shape)
    return {
        "size": float((inside.sum() * steps.prod()) ** (1 / volume.ndim)),
        "mean": float(values.mean()),
        "std": float(values.std()),
        "p05": float(np.percentile(values, 5)),
        "p95": float(np.percentile(values, 95)),
        "gradient": 0.0 if empty else float(slope[inside].mean()),
        **{f"extent_{name}": float(value) for name, value in zip("xyz", extent, strict=False)},
        **{f"axis_{k}": float(value) for k, value in enumerate(axes)},
        **{f"centre_{name}": float(value) for name, value in zip("xyz", centre, strict=False)},
        "surface": 0.0 if empty else float(surface.sum() / inside.sum()),
    }
