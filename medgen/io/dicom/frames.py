"""From headers to slices: where each frame lies and how its stored numbers become values.

One kind of slice stands for all sources: a classic file, a frame of an enhanced multi-frame file (attributes of its
functional groups), a tile of a Siemens mosaic. Vectors are LPS, in mm.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from medgen.io.dicom.header import Elements, Header
from medgen.io.dicom.mosaic import mosaic_tiles
from medgen.io.dicom.pixels import Layout, pixel_layout
from medgen.io.dicom.tags import tag_name
from medgen.io.findings import Refused

__all__ = ["ORTHOGONAL_TOLERANCE", "Lut", "Slice", "rescale_of", "same_rescale", "slices_of"]

ORTHOGONAL_TOLERANCE = 3e-3
"""How far an orientation may be from unit length and from a right angle: what three decimals of rounding make."""
_FARTHEST = 1e5
_POSITION, _ORIENTATION, _SPACING = 0x00200032, 0x00200037, 0x00280030


@dataclass(frozen=True, slots=True)
class Lut:
    """A modality look-up table: stored number ``first + k`` means ``values[k]``, the ends continue."""

    first: int
    values: np.ndarray


@dataclass(slots=True, eq=False)
class Slice:
    """One slice of a volume that may be.

    Args:
        header: of its file.
        layout: of the file's pixels.
        frame: position in the file.
        elements: the attributes that hold for this frame.
        position: LPS mm, of the first pixel's centre.
        orientation: unit row direction and unit column direction, LPS.
        spacing: mm between rows, mm between columns.
        slope: value per stored step.
        intercept: value of stored zero.
        lut: where a modality look-up table replaces slope and intercept.
        tile: first row and first column in a mosaic.
        rows: of the slice.
        columns: of the slice.
        lossy: whether compression lost something.
    """

    header: Header
    layout: Layout
    frame: int
    elements: Elements
    position: np.ndarray
    orientation: np.ndarray
    spacing: tuple[float, float]
    slope: float
    intercept: float
    lut: Lut | None
    tile: tuple[int, int] | None
    rows: int
    columns: int
    lossy: bool = False

    def text(self, tag: int) -> str:
        """An attribute of this frame as text."""
        return self.header.text(tag, self.elements)

    def numbers(self, tag: int) -> tuple[float, ...]:
        """An attribute of this frame as numbers; empty where it is absent or holds something else."""
        try:
            return self.header.numbers(tag, self.elements)
        except ValueError:
            return ()


def slices_of(header: Header) -> list[Slice]:
    """The slices of one file.

    Tolerances: see :data:`ORTHOGONAL_TOLERANCE`. A coordinate beyond 100 m is taken for a fault.

    Raises:
        Refused: ``NO_GEOMETRY`` (position, orientation or spacing is missing), ``BAD_GEOMETRY`` (not finite, zero,
            not at right angles), ``ZERO_SLOPE``, ``BAD_RESCALE``, or a fault of the pixels.
    """
    layout = pixel_layout(header)
    frames = _frames(header, layout)
    if "MOSAIC" in header.text(0x00080008).split("\\"):
        return _mosaic(header, layout, frames[0])
    slices = []
    for number, elements in enumerate(frames):
        position, orientation, spacing = _geometry(header, elements)
        slope, intercept, lut = rescale_of(header, elements)
        slices.append(
            Slice(header, layout, number, elements, position, orientation, spacing, slope, intercept, lut, None,
                  layout.rows, layout.columns)
        )  # fmt: skip
    return slices


def _frames(header: Header, layout: Layout) -> list[Elements]:
    """The attributes of each frame: its own, then the shared, then the file's."""
    per_frame, shared = header.items(0x52009230), header.items(0x52009229)
    name = header.path.name
    if not per_frame and layout.frames == 1:
        return [{**header.elements, **_flat(shared[0])}] if shared else [header.elements]
    if not per_frame:
        raise Refused("NO_GEOMETRY", f"'{name}' has {layout.frames} frames and no position for each.")
    if len(per_frame) != layout.frames:
        raise Refused(
            "HEADER_PROMISES_TOO_MUCH",
            f"'{name}' has {layout.frames} frames and attributes of {len(per_frame)}. Export it again.",
        )
    common = {tag: value for tag, value in header.elements.items() if tag not in (0x52009229, 0x52009230)}
    if shared:
        common |= _flat(shared[0])
    return [common | _flat(item) for item in per_frame]


def _flat(item: Elements) -> Elements:
    """The attributes of an item and of the first items of its sequences, in one table."""
    flat: Elements = {}
    for tag, value in item.items():
        if isinstance(value, list) and tag != 0x00283000:
            flat |= _flat(value[0]) if value else {}
        else:
            flat[tag] = value
    return flat


def _geometry(header: Header, elements: Elements) -> tuple[np.ndarray, np.ndarray, tuple[float, float]]:
    position = _vector(header, elements, _POSITION, 3)
    orientation = _vector(header, elements, _ORIENTATION, 6)
    spacing = _vector(header, elements, _SPACING, 2)
    name = header.path.name
    if max(map(abs, position)) > _FARTHEST:
        raise Refused("BAD_GEOMETRY", f"'{name}': position {_show(position)} mm is out of this world.")
    if not all(1e-4 <= step <= 1e3 for step in spacing):
        raise Refused("BAD_GEOMETRY", f"'{name}': pixel spacing {_show(spacing)} mm is not possible.")
    row, column = orientation[:3], orientation[3:]
    lengths = math.hypot(*row), math.hypot(*column)
    skew = (
        math.sumprod(row, column) if hasattr(math, "sumprod") else sum(a * b for a, b in zip(row, column, strict=True))
    )
    if max(abs(lengths[0] - 1), abs(lengths[1] - 1), abs(skew)) > ORTHOGONAL_TOLERANCE:
        raise Refused(
            "BAD_GEOMETRY", f"'{name}': orientation {_show(orientation)} is no pair of unit vectors at right angles."
        )
    unit = np.array(orientation)
    unit[:3] /= lengths[0]
    unit[3:] /= lengths[1]
    return np.array(position), unit, (spacing[0], spacing[1])


def _vector(header: Header, elements: Elements, tag: int, count: int) -> tuple[float, ...]:
    try:
        numbers = header.numbers(tag, elements)
    except ValueError:
        raise Refused(
            "BAD_GEOMETRY",
            f"'{header.path.name}': {tag_name(tag)} is {header.text(tag, elements)[:60]!r}, not numbers.",
        ) from None
    if not numbers:
        raise Refused("NO_GEOMETRY", f"'{header.path.name}' has no {tag_name(tag)}.")
    if len(numbers) != count or not all(map(math.isfinite, numbers)):
        raise Refused(
            "BAD_GEOMETRY",
            f"'{header.path.name}': {tag_name(tag)} is {_show(numbers)}; {count} finite numbers are needed.",
        )
    return numbers


def rescale_of(header: Header, elements: Elements, zero_slope: bool = False) -> tuple[float, float, Lut | None]:
    """Slope, intercept and look-up table of a frame.

    Args:
        header: of the file.
        elements: the attributes that hold for the frame.
        zero_slope: let a slope of zero pass.

    Raises:
        Refused: ``ZERO_SLOPE`` or ``BAD_RESCALE``.
    """
    tables = header.items(0x00283000, elements)
    if tables:
        return 1.0, 0.0, _lut(header, tables[0])
    try:
        (slope,) = header.numbers(0x00281053, elements) or (1.0,)
        (intercept,) = header.numbers(0x00281052, elements) or (0.0,)
    except ValueError:
        slope = intercept = math.nan
    name = header.path.name
    if not math.isfinite(slope) or not math.isfinite(intercept):
        text = f"{header.text(0x00281053, elements)[:40]!r} and {header.text(0x00281052, elements)[:40]!r}"
        raise Refused("BAD_RESCALE", f"'{name}': rescale slope and intercept are {text}, not two finite numbers.")
    if slope == 0 and not zero_slope:
        raise Refused("ZERO_SLOPE", f"'{name}' has rescale slope 0: all its values would be equal. Mend the header.")
    return slope, intercept, None


def same_rescale(one: Slice, other: Slice) -> bool:
    """Whether two slices turn stored numbers into values in the same way."""
    if one.lut is None or other.lut is None:
        return one.lut is other.lut and (one.slope, one.intercept) == (other.slope, other.intercept)
    return one.lut.first == other.lut.first and np.array_equal(one.lut.values, other.lut.values)


def _lut(header: Header, item: Elements) -> Lut:
    """The table of a ModalityLUTSequence item.

    Raises:
        Refused: ``BAD_RESCALE``: it is missing or shorter than it says.
    """
    name = header.path.name
    try:
        descriptor = [int(number) for number in header.numbers(0x00283002, item)]
    except ValueError:
        descriptor = []
    data = item.get(0x00283006)
    if len(descriptor) != 3 or not isinstance(data, tuple):
        raise Refused("BAD_RESCALE", f"'{name}': its modality look-up table is incomplete.")
    count, first, bits = descriptor
    count = count % 2**16 or 2**16
    wide = bits > 8 or data[0] != "OW"
    order = "<" if header.little else ">"
    values = np.frombuffer(data[1][: len(data[1]) // 2 * 2 if wide else None], dtype=f"{order}u2" if wide else "u1")
    if len(values) < count:
        raise Refused("BAD_RESCALE", f"'{name}': its modality look-up table has {len(values)} of {count} entries.")
    if (
        header.elements.get(0x00280103, ("US", b"\0\0"))[1][: 1 if header.little else 2][-1:] == b"\x01"
        and first > 32767
    ):
        first -= 2**16
    return Lut(first, values[:count].astype(np.int32))


def _mosaic(header: Header, layout: Layout, elements: Elements) -> list[Slice]:
    position, orientation, spacing = _geometry(header, elements)
    slope, intercept, lut = rescale_of(header, elements)
    tiles = mosaic_tiles(header, layout.rows, layout.columns, position, orientation, spacing)
    return [
        Slice(header, layout, 0, elements, tile.position, orientation, spacing, slope, intercept, lut,
              (tile.row, tile.column), tile.rows, tile.columns)
        for tile in tiles
    ]  # fmt: skip


def _show(numbers: tuple[float, ...]) -> str:
    return "\\".join(f"{number:g}" for number in numbers[:8])
