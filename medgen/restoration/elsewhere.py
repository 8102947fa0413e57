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
from scipy.fft import irfftn, next_fast_len, rfftn

from medgen.continuation import membrane
from medgen.geometry import spacing_of

__all__ = ["AIR", "MOST", "REACH_MM", "Place", "Search", "places_like", "put", "search_in"]

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
BORDER_WEIGHT = 1.0  # of the voxels next to the hole beside the surroundings
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
class Search:
    """A scan in which places of holes are searched, in blocks of about ``SEARCH_MM``; see :func:`search_in`.

    The arrays of blocks have a margin of the width of the ring.

    Attributes:
        filled: ``(X, Y, Z)``.
        hole: the same shape.
        values: means over blocks; in the margin those at the border.
        smooth: the same, smoothed.
        unknown: the same shape, True = some of it is in a hole or outside of the scan.
        factor: voxels of a block.
        step: mm of a block.
        margin: blocks.
        across: the axis from left to right.
        middle: of what is not air along it, in blocks.
    """

    filled: Array
    hole: Flags
    values: Blocks
    smooth: Blocks
    unknown: Flags
    factor: Index
    step: Array
    margin: Index
    across: int
    middle: float


def search_in(filled: Array, hole: Flags, affine: Array) -> Search:
    """A scan, made ready for :func:`places_like`.

    Args:
        filled: ``(X, Y, Z)``, from 0, which is air, to about 1, the bright end; with a first fill in its holes.
        hole: the same shape, True = not known; no place touches it.
        affine: RAS+ mm, 4x4.
    """
    spacing = spacing_of(affine)
    factor = np.minimum(np.maximum(1, np.round(SEARCH_MM / spacing)).astype(int), hole.shape)
    step = spacing * factor
    margin = np.ceil(RING_MM / step).astype(int)
    around = [(int(n), int(n)) for n in margin]
    values = np.pad(_means(filled, factor, mode="edge"), around, mode="edge")
    smooth = ndimage.gaussian_filter(values, SMOOTH_MM / step)
    unknown = np.pad(_means(hole, factor, constant_values=1) > 0, around, constant_values=True)
    across = int(np.argmax(np.abs(affine[0, :3])))
    shown = np.flatnonzero((values > AIR).any(tuple(a for a in range(3) if a != across)))
    middle = float(shown.mean()) if len(shown) else (values.shape[across] - 1) / 2
    return Search(filled, hole, values, smooth, unknown, factor, step, margin, across, middle)


def places_like(search: Search, at: Index) -> list[Place]:
    """Places of a scan that look like the surroundings of a hole and what is expected in it, the most alike first.

    All places within ``REACH_MM`` are compared, and their mirror images from left to right, in blocks: by mean,
    deviation and correlation of the surroundings (a plain square distance would favour flat ones), by the square
    distance of the smoothed tissue from the smoothed fill, and by how far away they are; from left to right the
    distance from the middle counts, not the side. Those found are ranked by that and by the square distance of the
    voxels next to the hole.

    Args:
        search: the scan.
        at: ``(N, 3)``, voxels of the hole, or of a part of it.

    Returns:
        ``MOST`` at most, more than ``APART_MM`` from each other along an axis, or mirrored; none where nothing that is
        known is as large as the hole.
    """
    blocks = at // search.factor + search.margin
    low, high = blocks.min(0) - search.margin, blocks.max(0) + search.margin + 1
    inside = np.zeros(high - low, np.float32)
    inside[tuple((blocks - low).T)] = 1
    reach = np.ceil(REACH_MM / search.step).astype(int)
    first, last = np.maximum(low - reach, 0), np.minimum(high + reach, search.values.shape)
    first[search.across], last[search.across] = 0, search.values.shape[search.across]
    window = tuple(slice(a, b) for a, b in zip(first, last, strict=True))
    begin = low - first
    found = _scores(search, window, inside, begin)
    length = search.factor[search.across] * (search.values.shape[search.across] - 2 * search.margin[search.across])
    apart = np.ceil(APART_MM / search.step).astype(int)
    places: list[Place] = []
    scores: list[float] = []
    while len(places) < MOST and np.isfinite(score := found.flat[best := int(np.argmin(found))]):
        scores.append(float(score))
        mirrored, *corner = (int(i) for i in np.unravel_index(best, found.shape))
        near = tuple(slice(max(0, i - n), i + n + 1) for i, n in zip(corner, apart, strict=True))
        found[mirrored][near] = np.inf
        sign, offset = np.ones(3, int), (np.array(corner) - begin) * search.factor
        if mirrored:
            sign[search.across], offset[search.across] = -1, length - 1 - offset[search.across]
        places.append(Place(tuple(sign.tolist()), tuple(offset.tolist())))
    return _ranked(search, at, places, scores)


def _ranked(search: Search, at: Index, places: list[Place], scores: list[float]) -> list[Place]:
    """Places by their score and by the square distance of their voxels from those that border on the part."""
    border = _border(at, search.hole)
    if not len(border):
        return places
    last = np.array(search.hole.shape) - 1
    wanted = search.filled[tuple(border.T)]
    there = (search.filled[tuple(np.clip(place.of(border), 0, last).T)] for place in places)
    apart = [float(((values - wanted) ** 2).mean()) for values in there]
    order = np.argsort(np.array(scores) + BORDER_WEIGHT * np.array(apart), kind="stable")
    return [places[i] for i in order]


def _border(at: Index, hole: Flags) -> Index:
    """Known voxels next to a part of a hole, ``(N, 3)``."""
    low, high = np.maximum(at.min(0) - BORDER, 0), np.minimum(at.max(0) + BORDER + 1, hole.shape)
    box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    part = np.zeros(high - low, bool)
    part[tuple((at - low).T)] = True
    near = ndimage.binary_dilation(part, np.ones((3, 3, 3)), BORDER) & ~hole[box]
    return np.argwhere(near) + low


def put(filled: Array, at: Index, place: Place, spacing: Sequence[float]) -> Array:
    """What lies at a place, fitted into a hole.

    Args:
        filled: ``(X, Y, Z)``, any unit; around the hole what the result joins.
        at: ``(N, 3)``, voxels of the hole, or of a part of it.
        place: see :func:`places_like`.
        spacing: mm of each axis.

    Returns:
        ``(N,)``, within the range of what lies there and of what surrounds the hole; where the darkest value of the
        scan lies there, that value: the air around an extracted brain stays empty.
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
    near = ndimage.binary_dilation(inside, np.ones((3, 3, 3)), BORDER) & ~inside
    known = np.concatenate([there[inside], around[near]])
    made, darkest = np.clip(made, known.min(), known.max()), filled.min()
    return np.where(there[inside] > darkest, made, darkest)


def _means(x: NDArray[np.generic], factor: Index, **outside: object) -> Blocks:
    """Over blocks; ``outside`` says, as for ``np.pad``, how the last ones are filled up."""
    ends = [(0, int(-n % f)) for n, f in zip(x.shape, factor, strict=True)]
    padded = np.pad(x.astype(np.float32), ends, **outside)  # type: ignore[call-overload]
    a, b, c = (n // f for n, f in zip(padded.shape, factor, strict=True))
    made: Blocks = padded.reshape(a, factor[0], b, factor[1], c, factor[2]).mean((1, 3, 5))
    return made


def _scores(search: Search, window: tuple[slice, ...], inside: Blocks, begin: Index) -> Array:
    """How unlike each place is, ``(2, ...)``, by where the box of the part begins: as it is, and mirrored.

    Args:
        search: the scan.
        window: of its blocks.
        inside: 1 in the part, 0 around it.
        begin: where it lies in the window.
    """
    values, smooth, unknown = (x[window] for x in (search.values, search.smooth, search.unknown))
    box = tuple(slice(a, a + n) for a, n in zip(begin, inside.shape, strict=True))
    near = ndimage.distance_transform_edt(inside == 0, sampling=search.step) <= RING_MM
    ring = near & np.logical_not(unknown[box])
    count, known, fill = float(inside.sum()), float(ring.sum()), inside * smooth[box]
    mean = float(values[box][ring].mean()) if known else 0.0
    variance = max(float(values[box][ring].var()), LEAST_VARIANCE) if known else LEAST_VARIANCE
    size = [next_fast_len(n, real=True) for n in values.shape]
    valid = tuple(slice(0, n - m + 1) for n, m in zip(values.shape, inside.shape, strict=True))

    def total(spectrum: NDArray[np.complex64]) -> Blocks:
        return np.asarray(irfftn(spectrum, size)[valid], np.float32)

    plain, square, soft, soft_square, missing = (
        rfftn(x, size) for x in (values, values**2, smooth, smooth**2, unknown.astype(np.float32))
    )
    scores = []
    for mirrored in (False, True):
        kernels = (inside, fill, ring.astype(np.float32), ring * (values[box] - mean))
        turned = (np.flip(k, search.across) if mirrored else k for k in kernels)
        part, expected, around, wanted = (np.conj(rfftn(k, size)) for k in turned)
        made = FILL_WEIGHT * (total(soft_square * part - 2 * soft * expected) + (fill**2).sum()) / count
        if known:
            means, squares, products = (total(x) / known for x in (plain * around, square * around, plain * wanted))
            made = made + _unlike(means, squares, products, mean, variance)
        made = np.where(total(missing * part) < 0.5, made, np.inf)
        made = np.flip(made, search.across) if mirrored else made
        scores.append(made + variance * _far(search, window, inside.shape, begin, mirrored))
    return np.stack(scores).astype(np.float64)


def _unlike(means: Blocks, squares: Blocks, products: Blocks, mean: float, variance: float) -> Blocks:
    """``(m - m')^2 + (s - s')^2 + 2 s^2 (1 - r)`` with means, deviations and the correlation over a ring.

    The square distance with ``s^2`` (``variance``) in place of ``s s'``: the same for equal deviations.

    Args:
        means: at each place.
        squares: the same, of the squares.
        products: covariances with the ring of the hole.
        mean: of the ring of the hole.
        variance: the same.
    """
    variances = np.maximum(squares - means**2, LEAST_VARIANCE)
    correlation = products / np.sqrt(variances * variance)
    apart = (means - mean) ** 2 + (np.sqrt(variances) - variance**0.5) ** 2
    return apart + 2 * variance * (1 - np.clip(correlation, -1, 1))


def _far(search: Search, window: tuple[slice, ...], shape: tuple[int, ...], begin: Index, mirrored: bool) -> Array:
    """Square of each place's distance over ``FAR_MM``; infinite beyond ``REACH_MM``."""
    counts = [side.stop - side.start - n + 1 for side, n in zip(window, shape, strict=True)]
    far = np.zeros(counts)
    for axis, (count, step, long) in enumerate(zip(counts, search.step, shape, strict=True)):
        half = (long - 1) / 2
        at, own = np.arange(count) + half, begin[axis] + half
        if axis == search.across:
            at = search.values.shape[axis] - 1 - at if mirrored else at
            at, own = np.abs(at - search.middle), abs(own - search.middle)
        apart = np.abs(at - own) * step
        if axis != search.across:
            apart[apart > REACH_MM] = np.inf
        far += ((apart / FAR_MM) ** 2).reshape([-1 if a == axis else 1 for a in range(3)])
    return far
