"""Siemens mosaics: one image that holds all slices of a volume as tiles."""

from __future__ import annotations

import math
import os
import struct
from typing import NamedTuple

import numpy as np

from medgen.io.dicom.header import Header
from medgen.io.findings import Refused

__all__ = ["Tile", "mosaic_tiles"]

_LARGEST_CSA = 2**22
_MOST_TAGS = 1024


class Tile(NamedTuple):
    """One slice in a mosaic: its first row and column, its size, and the LPS position of its first pixel in mm."""

    row: int
    column: int
    rows: int
    columns: int
    position: np.ndarray


def mosaic_tiles(
    header: Header, rows: int, columns: int, position: np.ndarray, orientation: np.ndarray, spacing: tuple[float, float]
) -> list[Tile]:
    """The tiles of a mosaic, in the order in which it holds them.

    The number of slices comes from ``(0019,100A)`` or the CSA image header; the mosaic is the smallest square of tiles
    that holds them, filled row by row. ImagePositionPatient is that of a single image as large as the mosaic about the
    same centre. Slices follow each other by SpacingBetweenSlices along the CSA header's SliceNormalVector, or along
    row x column where it has none.

    Args:
        header: of the file.
        rows: of the whole mosaic.
        columns: of the whole mosaic.
        position: ImagePositionPatient, LPS mm.
        orientation: unit row and column directions, LPS.
        spacing: mm between rows, mm between columns.

    Raises:
        Refused: ``NO_GEOMETRY``: number or distance of the slices is missing; ``BAD_GEOMETRY``: the tiles do not fit.
    """
    csa = _csa(header)
    count = int(_first(csa.get("NumberOfImagesInMosaic"), 0)) or header.whole(0x0019100A, 0)
    name = header.path.name
    if count < 1:
        raise Refused("NO_GEOMETRY", f"'{name}' is a mosaic that does not say of how many slices.")
    side = math.isqrt(count - 1) + 1
    if rows % side or columns % side:
        raise Refused("BAD_GEOMETRY", f"'{name}': {count} slices do not tile a mosaic of {rows} x {columns}.")
    try:
        step = header.number(0x00180088, 0.0)
    except ValueError:
        step = 0.0
    if not (math.isfinite(step) and 1e-4 < step < 1e3):
        raise Refused("NO_GEOMETRY", f"'{name}' is a mosaic without a distance between its slices (0018,0088).")
    tile_rows, tile_columns = rows // side, columns // side
    row, column = orientation[:3], orientation[3:]
    first = position + row * spacing[1] * (columns - tile_columns) / 2 + column * spacing[0] * (rows - tile_rows) / 2
    normal = _normal(csa, row, column, name)
    return [
        Tile(
            index // side * tile_rows,
            index % side * tile_columns,
            tile_rows,
            tile_columns,
            first + index * step * normal,
        )
        for index in range(count)
    ]


def _normal(csa: dict[str, list[str]], row: np.ndarray, column: np.ndarray, name: str) -> np.ndarray:
    """The direction in which slices follow each other."""
    normal = np.cross(row, column)
    try:
        stated = np.array([float(part) for part in csa.get("SliceNormalVector", [])[:3]])
    except ValueError:
        stated = np.array([])
    if stated.size != 3:
        return normal
    along = float(stated @ normal)
    if not abs(abs(along) - 1) < 1e-2:
        raise Refused("BAD_GEOMETRY", f"'{name}': the mosaic's slice normal {stated} is not that of its orientation.")
    return normal * math.copysign(1.0, along)


def _first(values: list[str] | None, default: float) -> float:
    try:
        number = float(values[0]) if values else default
    except ValueError:
        return default
    return number if math.isfinite(number) else default


def _csa(header: Header) -> dict[str, list[str]]:
    """Name and values of the CSA image header's tags; empty where there is none or it is damaged."""
    for offset, length in header.located.values():
        if length > _LARGEST_CSA or header.path.stat().st_size < offset + length:
            continue
        with open(header.path, "rb") as file:
            content = os.pread(file.fileno(), length, offset)
        try:
            tags = _csa_tags(content)
        except (struct.error, UnicodeDecodeError):
            continue
        if "NumberOfImagesInMosaic" in tags or "SliceNormalVector" in tags:
            return tags
    return {}


def _csa_tags(content: bytes) -> dict[str, list[str]]:
    """The tags of a CSA header: ``SV10``, or the older form without that mark."""
    position = 8 if content[:4] == b"SV10" else 0
    (count,) = struct.unpack_from("<I", content, position)
    position += 8
    tags: dict[str, list[str]] = {}
    surplus = None  # the older form counts the items of its first tag into every length
    for _ in range(min(count, _MOST_TAGS)):
        name, _, _, _, items, _ = struct.unpack_from("<64si4siii", content, position)
        surplus = items if surplus is None else surplus
        position += 84
        values = []
        for _ in range(items):
            lengths = struct.unpack_from("<4i", content, position)
            length = lengths[1] if content[:4] == b"SV10" else lengths[0] - surplus
            position += 16
            if not 0 <= length <= len(content) - position:
                return tags
            values.append(content[position : position + length].split(b"\0")[0].decode("latin-1").strip())
            position += (length + 3) // 4 * 4
        tags[name.split(b"\0")[0].decode("latin-1")] = [value for value in values if value]
    return tags
