"""How far fills are off, found on the scan itself: the same hole elsewhere, where the truth is known."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

__all__ = ["PLACES", "Fill", "factor_on_the_scan", "other_places"]

Fill = Callable[[NDArray[np.float64], NDArray[np.bool_]], tuple[NDArray[np.float64], NDArray[np.float64]]]
"""The image and its expected error, both ``(X, Y, Z)``, of an image and a hole."""

PLACES = 4
TRIES = 400
APART = 2  # voxels between the hole and the same hole elsewhere
SHARE = 0.9  # of the hole's share of tissue that another place must have
LEAST = 500  # voxels of tissue, below which nothing is said
COVERED = 0.9


def factor_on_the_scan(
    filled: NDArray[np.float64], hole: NDArray[np.bool_], tissue: NDArray[np.bool_], fill: Fill, factor: float
) -> float | None:
    """Half the width of the 90% interval over the expected error, for this scan.

    Its largest hole is moved to up to ``PLACES`` other places one after the other and filled there. The 90th percentile
    of the error over the expected one, of all tissue there, counts as often as there are places, ``factor`` once.

    Args:
        filled: ``(X, Y, Z)``, the scan with its fill.
        hole: the same shape, True = filled.
        tissue: the same shape; air says nothing of tissue.
        fill: what filled it.
        factor: of the model, on other people.

    Returns:
        None where the scan has no room for the same hole, or the hole is small.
    """
    ratios = []
    for moved in other_places(hole, tissue):
        made, error = fill(np.where(moved, 0, filled), moved)
        seen = moved & tissue & (error > 0)
        ratios.append(np.abs(made - filled)[seen] / error[seen])
    if sum(map(len, ratios)) < LEAST:
        return None
    found = float(np.quantile(np.concatenate(ratios), COVERED))
    return (len(ratios) * found + factor) / (len(ratios) + 1)


def other_places(hole: NDArray[np.bool_], tissue: NDArray[np.bool_]) -> list[NDArray[np.bool_]]:
    """The largest hole of a mask, moved to where all is known and as much of it is tissue; apart from each other.

    Args:
        hole: ``(X, Y, Z)``.
        tissue: the same shape, in the hole as it was filled.

    Returns:
        At most ``PLACES`` masks of the same shape, the same each time.
    """
    parts, _ = ndimage.label(hole)
    largest = parts == 1 + int(np.bincount(parts[hole])[1:].argmax())
    at = np.argwhere(largest)
    wanted = SHARE * float(tissue[largest].mean())
    taken = ndimage.binary_dilation(hole, iterations=APART)
    candidates = np.argwhere(tissue & ~taken)
    rng = np.random.default_rng(len(at))
    found: list[NDArray[np.bool_]] = []
    for centre in rng.permutation(candidates)[:TRIES]:
        places = at - np.round(at.mean(0)).astype(int) + centre
        if len(found) == PLACES:
            break
        if (places < 0).any() or (places >= hole.shape).any():
            continue
        index = tuple(places.T)
        if taken[index].any() or tissue[index].mean() < wanted:
            continue
        moved = np.zeros(hole.shape, bool)
        moved[index] = True
        found.append(moved)
        taken |= ndimage.binary_dilation(moved, iterations=APART)
    return found
