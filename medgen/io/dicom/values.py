"""From stored numbers to values: spare bits, rescale, and the smallest type that holds the result."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from medgen.io.dicom.frames import Lut, Slice
from medgen.io.dicom.pixels import Layout, PixelFile
from medgen.io.findings import Refused

__all__ = ["apply_rescale", "clean_bits", "read_stored", "stored_type", "values_of"]

Range = tuple[float, float]


def clean_bits(stored: np.ndarray, layout: Layout, name: str) -> bool:
    """Drops, in place, the bits of stored words that are no part of the value and extends the sign of the rest.

    Args:
        stored: one slice, of the layout's type.
        layout: says which bits count. Where HighBit lies above the lowest bits, these must be zero and are dropped.
        name: of the file, for messages.

    Returns:
        Whether bits above the highest were other than zero or the continued sign.

    Raises:
        Refused: ``BAD_HIGH_BIT``: bits below those that count are set, so HighBit cannot be right.
    """
    if not layout.spare_bits:
        return False
    dtype, unused = layout.dtype, layout.bits_allocated - 1 - layout.high_bit
    lowest = layout.high_bit + 1 - layout.bits_stored
    low, high = int(stored.min()), int(stored.max())
    limit = 1 << layout.high_bit
    if lowest == 0 and (-limit <= low and high < limit if layout.signed else high < 2 * limit):
        return False
    plain = stored.view(np.dtype(f"u{dtype.itemsize}"))
    if lowest and np.any(plain & np.array((1 << lowest) - 1, dtype=plain.dtype)):
        raise Refused(
            "BAD_HIGH_BIT",
            f"'{name}' has high bit {layout.high_bit} and {layout.bits_stored} bits stored, but lower bits are set. "
            "Mend the header.",
        )
    above = plain >> np.uint64(layout.high_bit + 1).astype(plain.dtype) if unused else np.zeros(1, plain.dtype)
    odd = bool(np.any(above != 0))
    np.left_shift(stored, unused, out=stored)
    np.right_shift(stored, unused + lowest, out=stored)
    return odd


def read_stored(item: Slice, limit: int) -> np.ndarray:
    """The stored numbers of one slice, ``(rows, columns)`` (of a mosaic: all its tiles), without spare bits.

    Raises:
        Refused: they are not what the header promised.
    """
    if 2 * item.layout.frame_bytes > limit:
        raise Refused("OVER_BUDGET", f"'{item.header.path.name}' is larger than the memory budget of {limit} bytes.")
    stored = np.empty((item.layout.rows, item.layout.columns), item.layout.dtype)
    with PixelFile(item.header, item.layout, limit) as file:
        file.read_into(item.frame, stored)
    clean_bits(stored, item.layout, item.header.path.name)
    return stored


def stored_type(slices: Sequence[Slice]) -> np.dtype:
    """The type that holds the stored numbers of all slices."""
    dtypes = {item.layout.dtype for item in slices}
    if len(dtypes) == 1:
        return dtypes.pop()
    return np.result_type(*dtypes)


def values_of(slices: Sequence[Slice], stored: np.ndarray, ranges: Sequence[Range]) -> np.ndarray:
    """The values of slices in the smallest of int16, int32, float32 and float64 that tells them apart.

    Args:
        slices: whose rescale is used.
        stored: their stored numbers, ``(slices, rows, columns)``; may be used for the result.
        ranges: least and greatest stored number of each slice.

    Returns:
        ``(slices, rows, columns)``.
    """
    dtype = _value_type(slices, stored.dtype, ranges, stored)
    plain = all(item.lut is None and item.slope == 1 and item.intercept == 0 for item in slices)
    if plain and stored.dtype == dtype:
        return stored
    if plain and stored.dtype == np.uint16 and dtype == np.int16:
        return stored.view(np.int16)
    same_size = stored.dtype.itemsize == dtype.itemsize and stored.dtype.kind in "iu" and dtype.kind == "i"
    out = stored.view(dtype) if same_size else np.empty(stored.shape, dtype)
    for index, item in enumerate(slices):
        _into(out[index], stored[index], item)
    return out


def apply_rescale(stored: np.ndarray, slope: float, intercept: float, lut: Lut | None) -> np.ndarray:
    """Values of stored numbers: float64 by slope and intercept, or the table's integers."""
    if lut is not None:
        return lut.values[np.clip(stored.astype(np.int64) - lut.first, 0, len(lut.values) - 1)]
    return stored.astype(np.float64) * slope + intercept


def _into(out: np.ndarray, stored: np.ndarray, item: Slice) -> None:
    size = out.dtype.itemsize
    shifted = item.lut is None and item.slope == 1 and item.intercept == int(item.intercept)
    if shifted and out.dtype.kind == "i" and stored.dtype.itemsize <= size:
        # modulo arithmetic in the target's width: the result is known to fit
        wide = stored.view(out.dtype) if stored.dtype.itemsize == size else stored.astype(out.dtype)
        offset = np.array(int(item.intercept) % 2 ** (8 * size), dtype=f"u{size}")
        np.add(wide, offset.view(out.dtype), out=out)
        return
    values = apply_rescale(stored, item.slope, item.intercept, item.lut)
    out[...] = values if values.dtype.kind == out.dtype.kind or out.dtype.kind == "f" else np.rint(values)


def _value_type(slices: Sequence[Slice], stored: np.dtype, ranges: Sequence[Range], array: np.ndarray) -> np.dtype:
    low, high, whole = np.inf, -np.inf, stored.kind in "iu"
    finest = np.inf
    for item, (least, greatest) in zip(slices, ranges, strict=True):
        if item.lut is not None:
            ends: tuple[float, ...] = (float(item.lut.values.min()), float(item.lut.values.max()))
        else:
            ends = (least * item.slope + item.intercept, greatest * item.slope + item.intercept)
            whole = whole and item.slope == int(item.slope) and item.intercept == int(item.intercept)
            finest = min(finest, abs(item.slope))
        low, high = min(low, *ends), max(high, *ends)
    if whole:
        for name in ("int16", "int32"):
            if np.iinfo(name).min <= low and high <= np.iinfo(name).max:
                return np.dtype(name)
    largest = max(abs(low), abs(high))
    if stored.kind == "f":
        return np.dtype(np.float32) if stored.itemsize <= 4 and finest in (1.0, np.inf) else _float_type(array, largest)
    if largest < np.finfo(np.float32).max and np.spacing(np.float32(largest)) <= finest:
        return np.dtype(np.float32)
    return np.dtype(np.float64)


def _float_type(array: np.ndarray, largest: float) -> np.dtype:
    """float32 where it tells apart the stored floating numbers, else float64."""
    if not largest < np.finfo(np.float32).max:
        return np.dtype(np.float64)
    if array.dtype == np.float32:
        return np.dtype(np.float32)
    narrow = array.astype(np.float32)
    if np.array_equal(narrow, array) or len(np.unique(narrow)) == len(np.unique(array)):
        return np.dtype(np.float32)
    return np.dtype(np.float64)
