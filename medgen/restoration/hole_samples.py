"""Samples of what may be in the holes of a scan, made of the rest of it."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from medgen.continuation import CONTINUATION_MM, kriged
from medgen.io.findings import Refused
from medgen.restoration.elsewhere import Place, places_like, put
from medgen.restoration.restorer_tasks import Progress, Scan

__all__ = ["samples_in_holes"]

Array = NDArray[np.float64]
Flags = NDArray[np.bool_]
ENOUGH = 16  # places; a hole with fewer is filled in parts
SMALLEST_MM = 6.0  # longest side of a part that is not cut again


def samples_in_holes(scan: Scan, hole: Tensor, seeds: range, callback: Progress | None = None) -> Tensor:
    """One image for each seed: every hole holds what the scan shows at another place.

    The smooth continuation says what is expected in a hole (:mod:`medgen.restoration.elsewhere`). Sample ``seed`` takes
    the place of rank ``seed``, the most alike first, and begins anew where a hole has no more places. A hole that fits
    into fewer than ``ENOUGH`` places is cut in two across its longest side, and again, and filled part after part.

    Args:
        scan: in a unit in which its bright end is about 1; what is in its holes is not looked at.
        hole: ``(1, X, Y, Z)``, True = drawn.
        seeds: one for each sample.
        callback: called with (steps done, steps).

    Returns:
        ``(K, X, Y, Z)`` float32; outside of the holes the scan.

    Raises:
        Refused: ``NO_PLACE``: a part with fewer places than there are to be samples.
    """
    marked = hole[0].numpy()
    filled = kriged(scan.values[0].double().numpy(), marked, scan.spacing, CONTINUATION_MM)
    done, steps = 0, int(marked.sum()) * (1 + len(seeds))

    def step(part: Flags) -> None:
        nonlocal done
        done += int(part.sum())
        if callback is not None:
            callback(done, steps)

    parts: list[tuple[Flags, list[Place]]] = []
    labels, count = ndimage.label(marked, np.ones((3, 3, 3), int))
    waiting = [labels == number for number in range(count, 0, -1)]
    while waiting:
        part = waiting.pop()
        places = places_like(filled, part, marked, scan.affine)
        halves = _halves(part, scan.spacing) if len(places) < ENOUGH else ()
        waiting += halves
        if not halves:
            _check(part, len(places), len(seeds))
            parts.append((part, places))
            step(part)
    samples = []
    for seed in seeds:
        sample = filled.copy()
        for part, places in parts:
            sample[part] = put(sample, part, places[seed % len(places)], scan.spacing)
            step(part)
        samples.append(torch.from_numpy(sample).float())
    return torch.stack(samples)


def _halves(part: Flags, spacing: tuple[float, ...]) -> tuple[Flags, ...]:
    """The part, cut in the middle of its longest side; nothing if it is small."""
    at = np.argwhere(part)
    sides = (np.ptp(at, axis=0) + 1) * spacing
    axis = int(np.argmax(sides))
    if sides[axis] <= SMALLEST_MM or np.ptp(at[:, axis]) == 0:
        return ()
    beyond = np.zeros(part.shape, bool)
    np.moveaxis(beyond, axis, 0)[int(np.floor(np.median(at[:, axis]))) + 1 :] = True
    halves = (part & beyond, part & ~beyond)
    return halves if all(half.any() for half in halves) else ()


def _check(part: Flags, places: int, samples: int) -> None:
    if places >= samples:
        return
    centre = np.round(np.argwhere(part).mean(0)).astype(int).tolist()
    most = f"Draw {places} at most, or" if places else "Mark less, or"
    raise Refused(
        "NO_PLACE",
        f"restore: samples of a hole are made of other places of the scan, and the hole around voxel {centre} has "
        f"{places} within 45 mm that are known, for {samples} samples. {most} leave samples out: the restorer fills "
        "any hole.",
    )
