"""Samples in a hole made of what the same scan shows elsewhere, where it looks like the hole's surroundings.

What a network draws into a hole is smooth unless it has seen many people; the scan itself has the contrast, the noise
and the folds that belong there. A sample is the tissue of another place, moved by what its border lacks:
``u + membrane(y - u)``, with ``u`` the other place and ``y`` the scan. That is conditional simulation by residuals
(Journel & Huijbregts 1978, "Mining geostatistics", VII.A; Hoffman & Ribak 1991, ApJ 380, L5, equation 3) with the
harmonic continuation as the expectation, and equals seamless cloning (Perez et al. 2003, ACM TOG 22, equation 4).
Places are found as in exemplar-based inpainting (Criminisi et al. 2004, IEEE TIP 13, section III), the whole hole at
once, by normalised cross-correlation.
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

__all__ = ["AIR", "MOST", "REACH_MM", "Place", "Search", "air_of", "places_like", "put", "search_in"]

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
LEAST_VARIANCE = 1e-6  # single precision says nothing of less
SHORT = 16  # blocks along an axis; a shorter axis has no block that is not full
RANGE = (-1.0, 2.0)  # what is darker or brighter is compared as if it were this


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

    The arrays of blocks, ``(A, B, C)``, have a margin of the width of the ring on each side.

    Attributes:
        filled: ``(X, Y, Z)``, air 0, the bright end about 1.
        hole: ``(X, Y, Z)``, True = not known.
        values: ``(A, B, C)``, means over blocks; in the margin those at the border.
        smooth: ``(A, B, C)``, ``values`` smoothed.
        unknown: ``(A, B, C)``, True = some of the block is in a hole or outside of the scan.
        factor: ``(3,)``, voxels of a block along each axis.
        step: ``(3,)``, mm of a block.
        margin: ``(3,)``, blocks.
        across: the axis from left to right.
        middle: of what is not air along it, in blocks, those of the margin counted.
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

    Returns:
        What all holes of the scan share.
    """
    spacing = spacing_of(affine)
    factor = np.array([_factor(size, step) for size, step in zip(hole.shape, spacing, strict=True)])
    step = spacing * factor
    margin = np.ceil(RING_MM / step).astype(int)
    around = [(int(n), int(n)) for n in margin]
    means = _means(np.clip(filled, *RANGE), factor, mode="edge")
    across = int(np.argmax(np.abs(affine[0, :3]) / spacing))
    shown = np.flatnonzero((means > AIR).any(tuple(a for a in range(3) if a != across)))
    middle = float(shown.mean()) if len(shown) else (means.shape[across] - 1) / 2
    values = np.pad(means, around, mode="edge")
    smooth = ndimage.gaussian_filter(values, SMOOTH_MM / step)
    unknown = np.pad(_means(hole, factor, constant_values=1) > 0, around, constant_values=True)
    return Search(filled, hole, values, smooth, unknown, factor, step, margin, across, middle + int(margin[across]))


def _factor(size: int, step: float) -> int:
    """Voxels of a block along an axis; of a short one a divisor of its size: what is left over counts as unknown."""
    most = min(max(1, round(SEARCH_MM / step)), size)
    if size >= SHORT * most:
        return most
    return max(n for n in range(1, most + 1) if size % n == 0)


def places_like(search: Search, at: Index) -> list[Place]:
    """Places of a scan that look like the surroundings of a hole and what is expected in it, the most alike first.

    All places within ``REACH_MM``, from left to right all, are compared, and their mirror images, in blocks: by mean,
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
    low, _, border = _near(at, search.hole.shape)
    voxels = np.argwhere(border) + low
    voxels = voxels[~search.hole[tuple(voxels.T)]]
    if not len(voxels):
        return places
    last = np.array(search.hole.shape) - 1
    wanted = search.filled[tuple(voxels.T)]
    there = (search.filled[tuple(np.clip(place.of(voxels), 0, last).T)] for place in places)
    apart = [float(((values - wanted) ** 2).mean()) for values in there]
    order = np.argsort(np.array(scores) + BORDER_WEIGHT * np.array(apart), kind="stable")
    return [places[i] for i in order]


def _near(at: Index, shape: tuple[int, ...]) -> tuple[Index, Flags, Flags]:
    """A box around a part: where it begins, and in it the part and the ``BORDER`` voxels around it."""
    low, high = np.maximum(at.min(0) - BORDER, 0), np.minimum(at.max(0) + BORDER + 1, shape)
    part = np.zeros(high - low, bool)
    part[tuple((at - low).T)] = True
    return low, part, ndimage.binary_dilation(part, np.ones((3, 3, 3)), BORDER) & ~part


def put(filled: Array, at: Index, place: Place, spacing: Sequence[float], air: Flags) -> Array:
    """What lies at a place, fitted into a hole.

    Args:
        filled: ``(X, Y, Z)``, any unit; around the hole what the result joins.
        at: ``(N, 3)``, voxels of the hole, or of a part of it.
        place: see :func:`places_like`.
        spacing: mm of each axis.
        air: ``(X, Y, Z)``, True = empty, and stays so when it is put elsewhere; see :func:`air_of`.

    Returns:
        ``(N,)``, within the range of what lies there and of what surrounds the hole.
    """
    low, inside, border = _near(at, filled.shape)
    voxels = np.argwhere(np.ones_like(inside)) + low
    sources = tuple(np.clip(place.of(voxels), 0, np.array(filled.shape) - 1).T)
    there = filled[sources].reshape(inside.shape)
    around = filled[tuple(slice(a, a + n) for a, n in zip(low, inside.shape, strict=True))]
    index = tuple((at - low).T)
    made = (there + membrane(around - there, inside, spacing))[index]
    known = np.concatenate([there[inside], around[border]])
    empty = air[sources].reshape(inside.shape)[index]
    return np.where(empty, there[index], np.clip(made, known.min(), known.max()))


def air_of(values: Array, hole: Flags) -> Flags:
    """What was cut away around an extracted brain: the darkest known voxels that reach the border of the grid.

    Args:
        values: ``(X, Y, Z)``, any unit.
        hole: the same shape, True = not known.

    Returns:
        The same shape; of noisy air hardly a voxel.
    """
    labels, _ = ndimage.label(~hole & (values <= values[~hole].min()))
    ends = [np.take(labels, [0, -1], axis) for axis in range(3)]
    return np.isin(labels, np.setdiff1d(np.concatenate([end.ravel() for end in ends]), [0]))


def _means(x: NDArray[np.generic], factor: Index, **outside: object) -> Blocks:
    """Over blocks; ``outside`` says, as for ``np.pad``, how the last ones are filled up."""
    ends = [(0, int(-n % f)) for n, f in zip(x.shape, factor, strict=True)]
    padded = np.pad(x.astype(np.float32), ends, **outside)  # type: ignore[call-overload]
    a, b, c = (n // f for n, f in zip(padded.shape, factor, strict=True))
    made: Blocks = padded.reshape(a, factor[0], b, factor[1], c, factor[2]).mean((1, 3, 5))
    return made


def _scores(search: Search, window: tuple[slice, ...], inside: Blocks, begin: Index) -> Array:
    """How unlike the hole each place is.

    Args:
        search: the scan.
        window: of its blocks, in which places are searched.
        inside: ``(a, b, c)``, a box with a margin around the part: 1 = part, else 0.
        begin: ``(3,)``, blocks: where that box lies in the window.

    Returns:
        ``(2, A, B, C)``, by where the box begins: as it is, and mirrored from left to right; infinite where something
        is unknown or beyond the reach.
    """
    values, smooth, unknown = (x[window] for x in (search.values, search.smooth, search.unknown))
    box = tuple(slice(a, a + n) for a, n in zip(begin, inside.shape, strict=True))
    near = ndimage.distance_transform_edt(inside == 0, sampling=search.step) <= RING_MM
    ring = near & np.logical_not(unknown[box])
    count, known = float(inside.sum()), float(ring.sum())
    mean = float(values[box][ring].mean()) if known else 0.0
    values, smooth = values - mean, smooth - mean  # sums of squares keep their digits
    fill = inside * smooth[box]
    variance = max(float(values[box][ring].var()), LEAST_VARIANCE) if known else LEAST_VARIANCE
    size = [next_fast_len(n, real=True) for n in values.shape]
    valid = tuple(slice(0, n - m + 1) for n, m in zip(values.shape, inside.shape, strict=True))

    def correlation(spectrum: NDArray[np.complex64]) -> Blocks:
        return np.asarray(irfftn(spectrum, size)[valid], np.float32)

    plain, square, soft, soft_square, missing = (
        rfftn(x, size) for x in (values, values**2, smooth, smooth**2, unknown.astype(np.float32))
    )
    scores = []
    for mirrored in (False, True):
        kernels = (inside, fill, ring.astype(np.float32), ring * values[box])
        turned = (np.flip(k, search.across) if mirrored else k for k in kernels)
        part, expected, around, wanted = (np.conj(rfftn(k, size)) for k in turned)
        made = FILL_WEIGHT * (correlation(soft_square * part - 2 * soft * expected) + (fill**2).sum()) / count
        if known:
            means, squares, covariances = (
                correlation(x) / known for x in (plain * around, square * around, plain * wanted)
            )
            made = made + _unlike(means, squares, covariances, variance)
        made = np.where(correlation(missing * part) < 0.5, made, np.inf)
        made = np.flip(made, search.across) if mirrored else made
        scores.append(made + variance * _far(search, window, inside.shape, begin, mirrored))
    return np.stack(scores).astype(np.float64)


def _unlike(means: Blocks, squares: Blocks, covariances: Blocks, variance: float) -> Blocks:
    """``(m - m')^2 + (s - s')^2 + 2 s^2 (1 - r)`` with means, deviations and the correlation ``r`` over a ring.

    The mean square distance, which is that with ``s s'`` in place of ``s^2``, would favour flat places.

    Args:
        means: of the ring at each place, less the mean of the hole's ring.
        squares: means of its squares, likewise.
        covariances: of it with the hole's ring.
        variance: ``s^2``, of the hole's ring.
    """
    variances = np.maximum(squares - means**2, LEAST_VARIANCE)
    similar = np.clip(covariances / np.sqrt(variances * variance), -1, 1)
    return means**2 + (np.sqrt(variances) - variance**0.5) ** 2 + 2 * variance * (1 - similar)


def _far(search: Search, window: tuple[slice, ...], shape: tuple[int, ...], begin: Index, mirrored: bool) -> Array:
    """Square of each place's distance over ``FAR_MM``; infinite beyond ``REACH_MM``.

    Args:
        search: the scan.
        window: see :func:`_scores`.
        shape: of the box, in blocks.
        begin: of the box in the window, in blocks.
        mirrored: whether places are in the mirrored scan.
    """
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
