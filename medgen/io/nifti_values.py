"""From stored numbers to the values of a volume, in the smallest type that holds them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from medgen.io.findings import Finding, Refused

if TYPE_CHECKING:
    from medgen.io.nifti_header import Stored

__all__ = ["finite", "scaled_values", "smallest_type"]

_BLOCK = 1 << 17
_SMALL = ("u1", "i1", "i2")


def scaled_values(numbers: np.ndarray, stored: Stored) -> np.ndarray:
    """Values of stored numbers, ``slope * number + inter`` in double precision, rounded once.

    Args:
        numbers: shape ``(n,)``, in the stored type and byte order; may be changed.
        stored: how they are stored.

    Returns:
        Shape ``(n,)``: int16 or int32 where these hold the values; else float32; float64 where float32 cannot tell two
        stored numbers apart.
    """
    if not numbers.dtype.isnative:
        numbers = numbers.byteswap(inplace=True).view(numbers.dtype.newbyteorder("="))
    if not stored.scaled:
        return smallest_type(numbers)
    target = _scaled_type(numbers, stored.slope, stored.inter)
    result = np.empty(numbers.shape, target)
    with np.errstate(over="ignore", invalid="ignore"):
        for start in range(0, numbers.size, _BLOCK):
            block = numbers[start : start + _BLOCK].astype(np.float64)
            block *= stored.slope
            block += stored.inter
            result[start : start + _BLOCK] = block
    return result


def smallest_type(numbers: np.ndarray) -> np.ndarray:
    """Numbers in the smallest of int16, int32, float32 and float64 that holds each exactly (beyond that: float64)."""
    kind = numbers.dtype.str[1:]
    if kind in ("i2", "f4"):
        return numbers
    if kind in _SMALL or numbers.dtype == np.bool_:
        return numbers.astype(np.int16)
    if numbers.dtype.kind == "f":
        return _narrowed(numbers)
    low, high = int(numbers.min()), int(numbers.max())
    for target in (np.int16, np.int32):
        if np.iinfo(target).min <= low and high <= np.iinfo(target).max:
            return numbers.astype(target, copy=False)
    return _narrowed(numbers)


def finite(values: np.ndarray, mask_non_finite: bool, name: str) -> list[Finding]:
    """Checks that all values are numbers; where asked, those that are not become 0 in place.

    Args:
        values: any shape; changed where asked.
        mask_non_finite: replace instead of refuse.
        name: of the file, for errors.

    Returns:
        A finding where values were replaced.

    Raises:
        Refused: ``NON_FINITE``.
    """
    if values.dtype.kind != "f" or (np.isfinite(values.min()) and np.isfinite(values.max())):
        return []
    wrong = ~np.isfinite(values)
    count = int(np.count_nonzero(wrong))
    if not mask_non_finite:
        raise Refused(
            "NON_FINITE",
            f"'{name}' holds {count} voxels that are NaN or infinite. Replace them, or give --mask-non-finite.",
        )
    values[wrong] = 0
    return [Finding("NON_FINITE_MASKED", f"{count} voxels were NaN or infinite and became 0, as asked")]


def _narrowed(numbers: np.ndarray) -> np.ndarray:
    """float32 where it holds every number exactly, else float64."""
    with np.errstate(over="ignore", invalid="ignore"):
        narrow = numbers.astype(np.float32)
        same = np.array_equal(narrow.astype(numbers.dtype), numbers, equal_nan=numbers.dtype.kind == "f")
    return narrow if same else numbers.astype(np.float64, copy=False)


def _scaled_type(numbers: np.ndarray, slope: float, inter: float) -> np.dtype:
    """The type for ``slope * number + inter``."""
    low, high = float(numbers.min()), float(numbers.max())
    ends = np.array([low * slope + inter, high * slope + inter])
    if numbers.dtype.kind == "f":
        wide = numbers.dtype.itemsize > 4 or not np.abs(ends).max() < np.finfo(np.float32).max
        return np.dtype(np.float64 if wide else np.float32)
    if slope == int(slope) and inter == int(inter) and np.abs(ends).max() < 2**53:
        for target in (np.int16, np.int32):
            if np.iinfo(target).min <= ends.min() and ends.max() <= np.iinfo(target).max:
                return np.dtype(target)
    largest = np.abs(ends).max()
    apart = largest < np.finfo(np.float32).max and np.spacing(np.float32(largest)) <= abs(slope)
    return np.dtype(np.float32 if apart else np.float64)
