"""Samples of what may be in the holes of a scan, made of the rest of it."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from medgen.continuation import CONTINUATION_MM, kriged
from medgen.io.findings import Refused
from medgen.restoration.elsewhere import AIR, REACH_MM, Place, air_of, places_like, put, search_in
from medgen.restoration.restorer_tasks import Progress, Scan

__all__ = ["samples_in_holes"]

Array = NDArray[np.float64]
Flags = NDArray[np.bool_]
Index = NDArray[np.int_]
ENOUGH = 16  # places; a hole with fewer is filled in parts
LONG = 1.5  # longest side over thickness; a longer part is filled in parts
SHORT_MM = 12.0  # longest side of a part that may be as thin as it likes
SMALLEST_MM = 6.0  # longest side of a part that is not cut again
ENDS = (0.001, 0.999)  # shares of the known voxels that are darker than what counts as 0 and as 1


def samples_in_holes(scan: Scan, hole: Tensor, seeds: range, callback: Progress | None = None) -> tuple[Tensor, int]:
    """One image for each seed: every hole holds what the scan shows at another place.

    The smooth continuation says what is expected in a hole (:mod:`medgen.restoration.elsewhere`). Sample ``seed`` takes
    the place of rank ``seed``, the most alike first, and begins anew where a hole has no more places. A hole that fits
    into fewer than ``ENOUGH`` places, or is long and thin, is cut in two across its longest side, and again, and filled
    part after part; other holes are not cut, however many samples are asked for.

    Args:
        scan: in any unit; what is in its holes is not looked at.
        hole: ``(1, X, Y, Z)``, True = drawn.
        seeds: one for each sample.
        callback: called with (steps done, steps).

    Returns:
        ``(K, X, Y, Z)`` float32, outside of the holes the scan; and the number of cuts.

    Raises:
        Refused: ``NO_PLACE``: a part with fewer places than there are to be samples, or more marked than tissue known.
    """
    marked = hole[0].numpy()
    filled = kriged(scan.values[0].double().numpy(), marked, scan.spacing, CONTINUATION_MM)
    low, high = np.quantile(filled[~marked], ENDS)
    unit = (filled - low) / (high - low) if high > low else np.zeros_like(filled)
    if int((unit[~marked] > AIR).sum()) < int(marked.sum()):
        raise Refused(
            "NO_PLACE",
            f"restore: samples of a hole are made of the rest of the scan, where less than the {int(marked.sum())} "
            "marked voxels are brighter than air. Mark less, or leave samples out, which gives the expected image.",
        )
    done, steps = 0, int(marked.sum()) * (1 + len(seeds))

    def step(at: Index) -> None:
        nonlocal done
        done += len(at)
        if callback is not None:
            callback(done, steps)

    parts: list[tuple[Index, list[Place]]] = []
    waiting = _connected(marked)
    holes = len(waiting)
    search = search_in(unit, marked, scan.affine)
    depth = ndimage.distance_transform_edt(marked, sampling=scan.spacing)
    while waiting:
        at = waiting.pop()
        long = _long(at, float(depth[tuple(at.T)].max()), scan.spacing)
        places = [] if long else places_like(search, at)
        halves = _halves(at, scan.spacing) if len(places) < ENOUGH else ()
        waiting += halves
        if not halves:
            _check(at, len(places), len(seeds))
            parts.append((at, places))
            step(at)
    samples, air = [], air_of(filled, marked)
    for seed in seeds:
        sample = filled.copy()
        for at, places in parts:
            sample[tuple(at.T)] = put(sample, at, places[seed % len(places)], scan.spacing, air)
            step(at)
        samples.append(torch.from_numpy(sample).float())
    return torch.stack(samples), len(parts) - holes


def _connected(marked: Flags) -> list[Index]:
    """Voxels ``(N, 3)`` of each connected part, corners included."""
    labels, _ = ndimage.label(marked, np.ones((3, 3, 3), int))
    found = []
    for number, box in enumerate(ndimage.find_objects(labels), 1):
        found.append(np.argwhere(labels[box] == number) + [side.start for side in box])
    return found


def _long(at: Index, depth: float, spacing: tuple[float, ...]) -> bool:
    """Whether a part is longer than ``LONG`` times its thickness: what surrounds one end says nothing of the other."""
    return _sides(at, spacing).max() > max(SHORT_MM, LONG * 2 * depth)


def _sides(at: Index, spacing: tuple[float, ...]) -> Array:
    """Of a part, in mm; 0 along an axis where it has one voxel, and cannot be cut."""
    voxels = np.ptp(at, axis=0) + 1
    return np.where(voxels > 1, voxels * spacing, 0.0)


def _halves(at: Index, spacing: tuple[float, ...]) -> tuple[Index, ...]:
    """The part, cut in the middle of its longest side; nothing if it is small."""
    low, high, sides = at.min(0), at.max(0), _sides(at, spacing)
    axis = int(np.argmax(sides))
    if sides[axis] <= SMALLEST_MM:
        return ()
    beyond = at[:, axis] > (low[axis] + high[axis]) // 2
    return at[beyond], at[~beyond]


def _check(at: Index, places: int, samples: int) -> None:
    if places >= samples:
        return
    centre = np.round(at.mean(0)).astype(int).tolist()
    most = f"Draw {places} at most, or" if places else "Give a larger part of the scan, or"
    raise Refused(
        "NO_PLACE",
        f"restore: samples of a hole are made of other places of the scan; for what is marked around voxel {centre} "
        f"there are {places} that are known, as large, and at most {REACH_MM:g} mm up, down, to the front or back. "
        f"Got samples {samples}. {most} leave samples out, which gives the expected image.",
    )
