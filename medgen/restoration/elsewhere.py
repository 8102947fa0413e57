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

__all__ = ["AIR", "MOST", "REACH_MM", "Place", "places_like", "put"]

Array = NDArray[np.float64]
Blocks = NDArray[np.float32]
Flags = NDArray[np.bool_]
Index = NDArray[np.int_]
MOST = 64  # places of a hole
SEARCH_MM = 2.0  # size of the blocks that are compared
RING_MM = 8.0  # of the surroundings that are compared
SMOOTH_MM = 6.0  # deviation of the Gaussian that leaves of a fill what is expected of it
REACH_MM = 45.0  # from the hole up, down, to the front and back; from left to right all is searched
APART_MM = 10.0  # between places
FILL_WEIGHT = 2.0  # of the fill beside the surroundings
FAR_MM = 25.0  # the square of a distance over it counts as the variance of the surroundings
AIR = 0.1
BORDER = 2  # voxels around a hole that what is put into it is fitted to
LEAST_VARIANCE = 1e-6


@dataclass(frozen=True)
class Place:
    """A place for a hole: its voxel ``v`` lies at ``sign * v + offset`` there; mirrored from left to right with -1."""

    sign: tuple[int, ...]
    offset: tuple[int, ...]

    def of(self, voxels: Index) -> Index:
        """Voxels ``(N, 3)`` of the hole, there."""
        return voxels * np.array(self.sign) + np.array(self.offset)


@dataclass(frozen=True)
class _Searched:
    """Means over blocks of what is searched, with a margin of the width of the ring.

    Attributes:
        values: ``(X, Y, Z)``, in the margin those at the border.
        smooth: the same, smoothed.
        unknown: the same shape, True = some of it is in a hole or outside of the scan.
        part: the same shape, True = some of it is in the part of the hole that is to be filled.
        box: around that part, with the margin.
        step: mm of each axis.
        across: the axis from left to right.
        middle: of what is not air along it, in blocks.
    """

    values: Blocks
    smooth: Blocks
    unknown: Flags
    part: Flags
    box: tuple[slice, ...]
    step: Array
    across: int
    middle: float

    @property
    def corner(self) -> Index:
        """Where the box begins."""
        return np.array([side.start for side in self.box])


def places_like(filled: Array, at: Index, hole: Flags, affine: Array) -> list[Place]:
    """Places of a scan that look like the surroundings of a hole and what is expected in it, the most alike first.

    All places within ``REACH_MM`` are compared, and their mirror images from left to right, in blocks of about
    ``SEARCH_MM``: by mean, deviation and correlation of the surroundings (a plain square distance would favour flat
    ones), by the square distance of the smoothed tissue from the smoothed fill, and by how far away they are; from left
    to right the distance from the middle counts, not the side.

    Args:
        filled: ``(X, Y, Z)``, from 0, which is air, to about 1, the bright end; with a first fill in its holes.
        at: ``(N, 3)``, voxels of the hole, or of a part of it.
        hole: the shape of ``filled``, True = not known; no place touches it.
        affine: RAS+ mm, 4x4.

    Returns:
        ``MOST`` at most, more than ``APART_MM`` from each other along an axis, or mirrored; none where nothing that is
        known is as large as the hole.
    """
    spacing = spacing_of(affine)
    factor = np.minimum(np.maximum(1, np.round(SEARCH_MM / spacing)).astype(int), hole.shape)
    across = int(np.argmax(np.abs(affine[0, :3])))
    reach = np.ceil((REACH_MM + RING_MM) / spacing).astype(int)
    low, high = np.maximum(at.min(0) - reach, 0), np.minimum(at.max(0) + reach + 1, hole.shape)
    low[across], high[across] = 0, hole.shape[across]
    window = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    searched = _searched(filled[window], at - low, hole[window], factor, spacing, across)
    found = np.stack([_scores(searched, mirrored) for mirrored in (False, True)])
    length = factor[across] * -(-(high - low)[across] // factor[across])
    apart = np.ceil(APART_MM / searched.step).astype(int)
    places: list[Place] = []
    while len(places) < MOST and np.isfinite(found.flat[best := int(np.argmin(found))]):
        mirrored, *corner = (int(i) for i in np.unravel_index(best, found.shape))
        near = tuple(slice(max(0, i - n), i + n + 1) for i, n in zip(corner, apart, strict=True))
        found[mirrored][near] = np.inf
        sign, offset = np.ones(3, int), (np.array(corner) - searched.corner) * factor
        if mirrored:
            sign[across], offset[across] = -1, length - 1 - offset[across]
        places.append(Place(tuple(sign.tolist()), tuple(offset.tolist())))
    return places


def put(filled: Array, at: Index, place: Place, spacing: Sequence[float]) -> Array:
    """What lies at a place, fitted into a hole.

    Args:
        filled: ``(X, Y, Z)``, any unit; around the hole what the result joins.
        at: ``(N, 3)``, voxels of the hole, or of a part of it.
        place: see :func:`places_like`.
        spacing: mm of each axis.

    Returns:
        ``(N,)``, within the range of what lies there and of what surrounds the hole.
    """
    low, high = np.maximum(at.min(0) - BORDER, 0), np.minimum(at.max(0) + BORDER + 1, filled.shape)
    voxels = np.stack(np.meshgrid(*map(np.arange, low, high), indexing="ij"), -1).reshape(-1, 3)
    sources = np.clip(place.of(voxels), 0, np.array(filled.shape) - 1)
    there = filled[tuple(sources.T)].reshape(high - low)
    around = filled[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
    index = tuple((at - low).T)
    inside = np.zeros(around.shape, bool)
    inside[index] = True
    made = (there + membrane(around - there, inside, spacing))[index]
    known = np.concatenate([there[inside], around[~inside]])
    return np.clip(made, known.min(), known.max())


def _searched(values: Array, at: Index, hole: Flags, factor: Index, spacing: Array, across: int) -> _Searched:
    """See :class:`_Searched`; arguments as of :func:`places_like`, in the window, ``factor`` voxels to a block."""
    step = spacing * factor
    margin = np.ceil(RING_MM / step).astype(int)
    around = [(int(n), int(n)) for n in margin]
    part = np.zeros(values.shape, bool)
    part[tuple(at.T)] = True
    small = np.pad(_means(values, factor, mode="edge"), around, mode="edge")
    unknown = np.pad(_means(hole, factor, constant_values=1) > 0, around, constant_values=True)
    inside = np.pad(_means(part, factor, constant_values=0) > 0, around)
    shown = np.flatnonzero((small > AIR).any(tuple(a for a in range(3) if a != across)))
    middle = float(shown.mean()) if len(shown) else (small.shape[across] - 1) / 2
    blocks = np.argwhere(inside)
    ends = zip(blocks.min(0) - margin, blocks.max(0) + margin + 1, strict=True)
    box = tuple(slice(int(a), int(b)) for a, b in ends)
    return _Searched(
        small, ndimage.gaussian_filter(small, SMOOTH_MM / step), unknown, inside, box, step, across, middle
    )  # fmt: skip


def _means(x: NDArray[np.generic], factor: Index, **outside: object) -> Blocks:
    """Over blocks; ``outside`` says, as for ``np.pad``, how the last ones are filled up."""
    ends = [(0, int(-n % f)) for n, f in zip(x.shape, factor, strict=True)]
    padded = np.pad(x.astype(np.float32), ends, **outside)  # type: ignore[call-overload]
    a, b, c = (n // f for n, f in zip(padded.shape, factor, strict=True))
    made: Blocks = padded.reshape(a, factor[0], b, factor[1], c, factor[2]).mean((1, 3, 5))
    return made


def _scores(searched: _Searched, mirrored: bool) -> Array:
    """How unlike each place is, by where the box begins (mirrored: in the mirrored scan); infinite: unknown."""
    inside = searched.part[searched.box]
    near = ndimage.distance_transform_edt(~inside, sampling=searched.step) <= RING_MM
    ring = (near & ~searched.unknown[searched.box]).astype(np.float32)
    values, smooth, known = (
        np.flip(x, searched.across) if mirrored else x
        for x in (searched.values, searched.smooth, (~searched.unknown).astype(np.float32))
    )
    expected, pattern = searched.smooth[searched.box], inside.astype(np.float32)
    count = pattern.sum()
    scores = FILL_WEIGHT * (
        _sum(smooth**2, pattern) - 2 * _sum(smooth, pattern * expected) + (pattern * expected**2).sum()
    ) / count  # fmt: skip
    variance = LEAST_VARIANCE
    if ring.any():
        variance = max(float(searched.values[searched.box][ring > 0].var()), LEAST_VARIANCE)
        scores = scores + _unlike(values, searched.values[searched.box], ring, variance)
    scores = scores + variance * _far(searched, scores.shape, mirrored)
    return np.where(_sum(known, pattern) > count - 0.5, scores, np.inf)


def _unlike(values: Blocks, wanted: Blocks, ring: Blocks, variance: float) -> Array:
    """``(m - m')^2 + (s - s')^2 + 2 s^2 (1 - r)`` with means, deviations and the correlation over a ring.

    The square distance with ``s^2`` (``variance``) in place of ``s s'``: the same for equal deviations.
    """
    count = float(ring.sum())
    mean = float((ring * wanted).sum()) / count
    means = _sum(values, ring) / count
    variances = np.maximum(_sum(values**2, ring) / count - means**2, LEAST_VARIANCE)
    correlation = (_sum(values, ring * wanted) / count - means * mean) / np.sqrt(variances * variance)
    apart = (means - mean) ** 2 + (np.sqrt(variances) - variance**0.5) ** 2
    return np.asarray(apart + 2 * variance * (1 - np.clip(correlation, -1, 1)), np.float64)


def _sum(x: Blocks, weights: Blocks) -> Array:
    """Of ``x`` times the weights, at each place that the weights fit into."""
    return np.asarray(correlate(x, weights, "valid", "fft"), np.float64)


def _far(searched: _Searched, shape: tuple[int, ...], mirrored: bool) -> Array:
    """Square of each place's distance over ``FAR_MM``; infinite beyond ``REACH_MM``."""
    far = np.zeros(shape)
    for axis, (count, step, side) in enumerate(zip(shape, searched.step, searched.box, strict=True)):
        half = (side.stop - side.start - 1) / 2
        at, own = np.arange(count) + half, side.start + half
        if axis == searched.across:
            at = searched.values.shape[axis] - 1 - at if mirrored else at
            at, own = np.abs(at - searched.middle), abs(own - searched.middle)
        apart = np.abs(at - own) * step
        if axis != searched.across:
            apart[apart > REACH_MM] = np.inf
        far += ((apart / FAR_MM) ** 2).reshape([-1 if a == axis else 1 for a in range(3)])
    return far
