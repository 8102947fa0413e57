"""Samples in a hole made of what the same scan shows elsewhere, where it looks like the hole's surroundings.

What a network draws into a hole is smooth unless it has seen many people; the scan itself has the contrast, the noise
and the folds that belong there. A sample is the tissue of another place, moved by what its border lacks:
``u + membrane(y - u)``, with ``u`` the other place and ``y`` the scan. That is conditional simulation by residuals
(Journel & Huijbregts 1978, "Mining geostatistics", VII.A; Hoffman & Ribak 1991, ApJ 380, L5, equation 3) with the
harmonic continuation as the expectation, and equals seamless cloning (Perez et al. 2003, ACM TOG 22, equation 4).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.signal import correlate

from medgen.continuation import membrane
from medgen.geometry import spacing_of

__all__ = ["Place", "places_like", "put"]

Array = NDArray[np.float64]
Flags = NDArray[np.bool_]
SEARCH_MM = 2.0  # size of the blocks that are compared
RING_MM = 8.0  # of the surroundings that are compared
SMOOTH_MM = 6.0  # width of the Gaussian that leaves of a fill what is expected of it
REACH_MM = 45.0  # around the hole, but from left to right, where all is searched
APART_MM = 10.0  # between places
FILL_WEIGHT = 2.0  # of the fill beside the surroundings
FAR_MM = 100.0  # so far away counts as much as a difference of the bright end
AIR = 0.1  # of the bright end
BORDER = 2  # voxels around a hole that what is put into it is fitted to
LEAST_VARIANCE = 1e-6


@dataclass(frozen=True)
class Place:
    """A place for a hole: its voxel ``v`` lies at ``sign * v + offset`` there; mirrored from left to right with -1."""

    sign: tuple[int, ...]
    offset: tuple[int, ...]

    def of(self, voxels: NDArray[np.int_]) -> NDArray[np.int_]:
        """Voxels ``(N, 3)`` of the hole, there."""
        return voxels * np.array(self.sign) + np.array(self.offset)


@dataclass(frozen=True)
class _Blocks:
    """Means over blocks of the part of a scan that is searched, with a margin that is not known.

    Attributes:
        values: ``(X, Y, Z)``, the bright end is 1.
        smooth: the same, smoothed.
        unknown: the same shape, True = some of it is in a hole or outside of the scan.
        hole: the same shape, True = some of it is in the hole.
        step: mm of each axis.
        across: the axis from left to right.
        middle: of the tissue along it.
    """

    values: NDArray[np.float32]
    smooth: NDArray[np.float32]
    unknown: Flags
    hole: Flags
    step: NDArray[np.float64]
    across: int
    middle: float


def places_like(filled: Array, part: Flags, hole: Flags, affine: NDArray[np.float64]) -> list[Place]:
    """Places of a scan that look like the surroundings of a hole and what is expected in it, the most alike first.

    All places within ``REACH_MM`` are compared, and their mirror images from left to right, in blocks of about
    ``SEARCH_MM``: by mean, deviation and correlation of the surroundings (a plain square distance would favour flat
    ones), by the square distance of the smoothed tissue from the smoothed fill, and by how far away they are; the
    distance from the middle counts, not the side.

    Args:
        filled: ``(X, Y, Z)``, the bright end is about 1; with a first fill in its holes.
        part: the same shape, True = the hole; one connected part of ``hole``.
        hole: the same shape, True = not known; no place touches it.
        affine: RAS+ mm, 4x4.

    Returns:
        More than ``APART_MM`` from each other along an axis, or on another side; none where the hole is larger than
        what is known.
    """
    spacing = spacing_of(affine)
    factor = np.maximum(1, np.round(SEARCH_MM / spacing)).astype(int)
    across = int(np.argmax(np.abs(affine[0, :3])))
    low, high = _searched(part, spacing, across)
    window = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    blocks, corner = _blocks(filled[window], part[window], hole[window], factor, spacing, across)
    found = np.stack([_scores(blocks, corner, mirrored) for mirrored in (False, True)])
    length = factor[across] * -(-(high - low)[across] // factor[across])
    apart = np.ceil(APART_MM / blocks.step).astype(int)
    places: list[Place] = []
    while np.isfinite(found.flat[best := int(np.argmin(found))]):
        mirrored, *at = (int(i) for i in np.unravel_index(best, found.shape))
        near = tuple(slice(max(0, i - n), i + n + 1) for i, n in zip(at, apart, strict=True))
        found[mirrored][near] = np.inf
        sign, offset = np.ones(3, int), (np.array(at) - corner) * factor
        if mirrored:
            sign[across], offset[across] = -1, length - 1 - offset[across]
        places.append(Place(tuple(sign.tolist()), tuple(offset.tolist())))
    return places


def put(filled: Array, part: Flags, place: Place, spacing: Sequence[float]) -> Array:
    """What lies at a place, fitted into a hole.

    Args:
        filled: ``(X, Y, Z)``, any unit; around the hole what the result joins.
        part: the same shape, True = the hole.
        place: see :func:`places_like`.
        spacing: mm of each axis.

    Returns:
        ``(N,)``, in the order of ``filled[part]``, within the range of what lies there and of what surrounds the hole.
    """
    at = np.argwhere(part)
    low, high = np.maximum(at.min(0) - BORDER, 0), np.minimum(at.max(0) + BORDER + 1, part.shape)
    box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    voxels = np.stack(np.meshgrid(*map(np.arange, low, high), indexing="ij"), -1).reshape(-1, 3)
    sources = np.clip(place.of(voxels), 0, np.array(part.shape) - 1)
    there = filled[tuple(sources.T)].reshape(high - low)
    inside, around = part[box], filled[box]
    made = there[inside] + membrane(around - there, inside, spacing)[inside]
    known = np.concatenate([there[inside], around[~inside]])
    return np.clip(made, known.min(), known.max())


def _searched(part: Flags, spacing: NDArray[np.float64], across: int) -> tuple[NDArray[np.int_], NDArray[np.int_]]:
    """First voxel and end of what is searched."""
    at, reach = np.argwhere(part), np.ceil(REACH_MM / spacing).astype(int)
    low, high = np.maximum(at.min(0) - reach, 0), np.minimum(at.max(0) + reach + 1, part.shape)
    low[across], high[across] = 0, part.shape[across]
    return low, high


def _blocks(
    values: Array,
    part: Flags,
    hole: Flags,
    factor: NDArray[np.int_],
    spacing: NDArray[np.float64],
    across: int,
) -> tuple[_Blocks, NDArray[np.int_]]:
    """What is compared, and where in it the box around the hole and its surroundings begins."""
    step = spacing * factor
    margin = np.ceil(RING_MM / step).astype(int)
    around = [(int(n), int(n)) for n in margin]
    small, unknown, inside = (
        np.pad(_means(x.astype(np.float32), factor, outside), around, constant_values=outside)
        for x, outside in ((values, 0.0), (hole, 1.0), (part, 0.0))
    )
    tissue = np.flatnonzero((small > AIR).any(tuple(a for a in range(3) if a != across)))
    middle = float(tissue.mean()) if len(tissue) else (small.shape[across] - 1) / 2
    smooth = ndimage.gaussian_filter(small, SMOOTH_MM / step)
    return _Blocks(small, smooth, unknown > 0, inside > 0, step, across, middle), np.argwhere(inside > 0).min(
        0
    ) - margin


def _means(x: NDArray[np.float32], factor: NDArray[np.int_], outside: float) -> NDArray[np.float32]:
    """Over blocks; ``outside`` fills the last ones up."""
    padded = np.pad(x, [(0, int(-n % f)) for n, f in zip(x.shape, factor, strict=True)], constant_values=outside)
    a, b, c = (n // f for n, f in zip(padded.shape, factor, strict=True))
    made: NDArray[np.float32] = padded.reshape(a, factor[0], b, factor[1], c, factor[2]).mean((1, 3, 5))
    return made


def _scores(blocks: _Blocks, corner: NDArray[np.int_], mirrored: bool) -> NDArray[np.float64]:
    """How unlike each place is, by where the box's corner lies (mirrored: in the mirrored scan); infinite: unknown."""
    margin = np.argwhere(blocks.hole).min(0) - corner
    box = tuple(slice(a, b) for a, b in zip(corner, np.argwhere(blocks.hole).max(0) + 1 + margin, strict=True))
    inside = blocks.hole[box]
    near = ndimage.distance_transform_edt(~inside, sampling=blocks.step) <= RING_MM
    ring = (near & ~blocks.unknown[box]).astype(np.float32)
    values, smooth, known = (
        np.flip(x, blocks.across) if mirrored else x
        for x in (blocks.values, blocks.smooth, (~blocks.unknown).astype(np.float32))
    )
    expected, pattern = blocks.smooth[box], inside.astype(np.float32)
    count = pattern.sum()
    scores = FILL_WEIGHT * (
        _sum(smooth**2, pattern) - 2 * _sum(smooth, pattern * expected) + (pattern * expected**2).sum()
    ) / count  # fmt: skip
    if ring.any():
        scores = scores + _unlike(values, blocks.values[box], ring)
    scores = scores + _far(blocks, corner, scores.shape, mirrored)
    return np.where(_sum(known, pattern) > count - 0.5, scores, np.inf)


def _unlike(values: NDArray[np.float32], wanted: NDArray[np.float32], ring: NDArray[np.float32]) -> Array:
    """``(m - m')^2 + (s - s')^2 + 2 s^2 (1 - r)`` with means, deviations and the correlation over a ring.

    The square distance with ``s^2`` in place of ``s s'``: it has the same value for equal deviations.
    """
    count = float(ring.sum())
    mean = float((ring * wanted).sum()) / count
    variance = max(float((ring * wanted**2).sum()) / count - mean**2, LEAST_VARIANCE)
    means = _sum(values, ring) / count
    variances = np.maximum(_sum(values**2, ring) / count - means**2, LEAST_VARIANCE)
    correlation = (_sum(values, ring * wanted) / count - means * mean) / np.sqrt(variances * variance)
    apart = (means - mean) ** 2 + (np.sqrt(variances) - variance**0.5) ** 2
    return np.asarray(apart + 2 * variance * (1 - np.clip(correlation, -1, 1)), np.float64)


def _sum(x: NDArray[np.float32], weights: NDArray[np.float32]) -> Array:
    """Of ``x`` times the weights, at each place that the weights fit into."""
    return np.asarray(correlate(x, weights, "valid", "fft"), np.float64)


def _far(blocks: _Blocks, corner: NDArray[np.int_], shape: tuple[int, ...], mirrored: bool) -> Array:
    """Square distance of each place over ``FAR_MM``; from left to right that from the middle, on either side."""
    far = np.zeros(shape)
    size = np.array(blocks.values.shape) - np.array(shape) + 1  # of the box
    for axis, (count, step) in enumerate(zip(shape, blocks.step, strict=True)):
        at, own = np.arange(count) + (size[axis] - 1) / 2, corner[axis] + (size[axis] - 1) / 2
        if axis == blocks.across:
            at = blocks.values.shape[axis] - 1 - at if mirrored else at
            at, own = np.abs(at - blocks.middle), abs(own - blocks.middle)
        distance = ((at - own) * step / FAR_MM) ** 2
        far += distance.reshape([-1 if a == axis else 1 for a in range(3)])
    return far
