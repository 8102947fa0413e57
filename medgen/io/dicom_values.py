"""Values as the 16-bit numbers of a DICOM image: ``value = stored * slope + intercept``, to half a step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from pydicom.valuerep import format_number_as_ds

from medgen.io.findings import Refused

__all__ = ["Rescale", "rescale_for"]

_SPAN = 65535
_COARSEST = 0.01  # rounding to the source's steps, of the values' standard deviation
_SMALLEST_SLOPE = 1e-300
_SINGLE = float(np.finfo(np.float32).eps)


@dataclass(frozen=True)
class Rescale:
    """Slope, intercept and stored type. The texts are what the header holds; the numbers are exactly theirs.

    Attributes:
        slope_text: at most 16 characters, above 0.
        intercept_text: at most 16 characters.
        signed: int16, else uint16.
    """

    slope_text: str
    intercept_text: str
    signed: bool

    @property
    def slope(self) -> float:
        """RescaleSlope."""
        return float(self.slope_text)

    @property
    def intercept(self) -> float:
        """RescaleIntercept."""
        return float(self.intercept_text)

    def stored(self, values: np.ndarray) -> np.ndarray:
        """The numbers that stand for ``values``, int16 or uint16, same shape.

        Raises:
            Refused: ``VALUES_DO_NOT_FIT``.
        """
        numbers = np.rint((values.astype(np.float64) - self.intercept) / self.slope)
        limits = np.iinfo(np.int16 if self.signed else np.uint16)
        if numbers.size and (numbers.min() < limits.min or numbers.max() > limits.max):
            raise Refused(
                "VALUES_DO_NOT_FIT", f"values {values.min():g} to {values.max():g} do not fit 16 bits at {self}"
            )
        return numbers.astype(limits.dtype)


def rescale_for(frames: np.ndarray, source: tuple[float, float] | None = None, keep: bool = False) -> Rescale:
    """Chooses how values are stored. The first that holds:

    1. the source's slope and intercept, where all values lie on its steps and fit;
    2. slope 1, where all are whole numbers that span less than 65536: exact;
    3. the source's slope and intercept, where that is asked for, the values fit, and the rounding to its steps (root
       mean square ``slope / sqrt(12)``) is at most 1 % of their standard deviation;
    4. intercept 0, so that zero stays exactly zero, where that at most halves the resolution;
    5. the middle of the range as the intercept.

    Args:
        frames: shape ``(N, rows, columns)``, any real type.
        source: slope and intercept of the series that the values come from.
        keep: take ``source`` for values between its steps, too, so that the others keep their stored numbers.

    Raises:
        Refused: ``NON_FINITE``, ``VALUES_DO_NOT_FIT``.

    Example:
        >>> rescale_for(np.array([[[-1024, 3071]]]))
        Rescale(slope_text='1', intercept_text='0', signed=True)
        >>> rescale_for(np.array([[[0.0, 0.25, 1.0]]]))
        Rescale(slope_text='1.5259023712e-05', intercept_text='0', signed=False)
    """
    low, high = _range(frames)
    steps = None if source is None else _of_source(low, high, source)
    if steps is not None and _all(frames, lambda frame: _on_steps(frame, steps)):
        return steps
    if high - low <= _SPAN and max(abs(low), abs(high)) < 1e14 and _all(frames, _whole):
        return _whole_numbers(int(low), int(high))
    if keep and steps is not None and steps.slope / np.sqrt(12) <= _COARSEST * _deviation(frames):
        return steps
    if low == high:
        return Rescale("1", _text(low), signed=False)
    if low >= 0 and low <= high / 2:
        return Rescale(_slope(high / _SPAN), "0", signed=False)
    if low < 0 < high:
        return Rescale(_slope(max(high / 32767, -low / 32768)), "0", signed=True)
    middle = _text(_single(low + (high - low) / 2))
    return Rescale(_slope(max(high - float(middle), float(middle) - low) / 32767), middle, signed=True)


def _range(frames: np.ndarray) -> tuple[float, float]:
    """Smallest and largest value; anything that is no finite real number is refused."""
    if frames.dtype.kind not in "iufb":
        raise Refused("UNSUPPORTED_TYPE", f"values of type {frames.dtype}; real numbers are needed")
    bad = sum(int(np.count_nonzero(~np.isfinite(frame))) for frame in frames) if frames.dtype.kind == "f" else 0
    if bad:
        raise Refused("NON_FINITE", f"{bad} voxels are NaN or infinite. Replace them first; nothing was written")
    low, high = float(frames.min()), float(frames.max())
    if not np.isfinite(high - low):
        raise Refused("VALUES_DO_NOT_FIT", f"values {low:g} to {high:g} are too far apart for 16 bits")
    return low, high


def _all(frames: np.ndarray, holds: Callable[[np.ndarray], bool]) -> bool:
    """Whether something holds for each slice; one at a time bounds the memory."""
    return all(holds(frame) for frame in frames)


def _whole(frame: np.ndarray) -> bool:
    return frame.dtype.kind in "iub" or bool((frame == np.rint(frame)).all())


def _whole_numbers(low: int, high: int) -> Rescale:
    if low >= 0 and high <= _SPAN and high > 32767:
        return Rescale("1", "0", signed=False)
    if low >= -32768 and high <= 32767:
        return Rescale("1", "0", signed=low < 0)
    return Rescale("1", str(low), signed=False)


def _of_source(low: float, high: float, source: tuple[float, float]) -> Rescale | None:
    """The source's rescale, or None where it is none, or the values do not fit it."""
    slope, intercept = source
    if not (np.isfinite(slope) and np.isfinite(intercept) and slope > 0):
        return None
    first, last = np.rint((low - intercept) / slope), np.rint((high - intercept) / slope)
    signed = bool(first < 0)
    limits = np.iinfo(np.int16 if signed else np.uint16)
    if first < limits.min or last > limits.max:
        return None
    rescale = Rescale(_text(slope), _text(intercept), signed)
    return rescale if abs(rescale.slope - slope) * _SPAN <= 1e-3 * slope else None


def _deviation(frames: np.ndarray) -> float:
    """Standard deviation of all values; one slice at a time bounds the memory."""
    means = np.array([frame.mean(dtype=np.float64) for frame in frames])
    variances = np.array([frame.var(dtype=np.float64) for frame in frames])
    return float(np.sqrt(variances.mean() + means.var()))


def _on_steps(frame: np.ndarray, rescale: Rescale) -> bool:
    """Whether every value is one that the rescale makes, as far as single precision can tell."""
    values = frame.astype(np.float64)
    steps = np.rint((values - rescale.intercept) / rescale.slope)
    tolerance = 1e-6 * rescale.slope + 2 * _SINGLE * max(float(np.abs(values).max()), abs(rescale.intercept))
    off = np.abs(steps * rescale.slope + rescale.intercept - values).max()
    return tolerance < 1e-2 * rescale.slope and bool(off <= tolerance)


def _slope(value: float) -> str:
    """A slope of at least ``value``, as text: one that single precision holds, as some readers keep it in that."""
    single = _single(max(value, _SMALLEST_SLOPE))
    return _text(single if single >= value else float(np.nextafter(np.float32(single), np.float32(np.inf))))


def _single(value: float) -> float:
    """The nearest number of single precision; the number itself where that has none."""
    with np.errstate(over="ignore", under="ignore"):
        single = float(np.float32(value))
    return single if np.isfinite(single) and abs(single) > 1e-30 else value


def _text(value: float) -> str:
    """A number as a DS of at most 16 characters."""
    return str(int(value)) if value == int(value) and abs(value) < 1e14 else format_number_as_ds(value)
