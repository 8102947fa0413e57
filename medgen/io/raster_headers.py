"""What the headers of MetaImage and NRRD files promise, to be held against the files' sizes.

SimpleITK reads the voxels; but it fills what is missing from a file with zeros, so it is only asked once all is there.

References: MetaIO, https://itk.org/Wiki/MetaIO/Documentation; NRRD, https://teem.sourceforge.net/nrrd/format.html
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

from medgen.io.findings import Refused

__all__ = ["RasterHeader", "metaimage_header", "nrrd_header"]

Packing = Literal["raw", "gzip", "zlib"]
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")
_LONGEST_HEADER = 1 << 20
_LONGEST_LINE = 1 << 16
_META_BYTES = {
    "CHAR": 1, "UCHAR": 1, "SHORT": 2, "USHORT": 2, "INT": 4, "UINT": 4, "LONG": 4, "ULONG": 4, "LONG_LONG": 8,
    "ULONG_LONG": 8, "FLOAT": 4, "DOUBLE": 8,
}  # fmt: skip
_META_PLACE = (
    (("transformmatrix", "rotation", "orientation"), 2),
    (("offset", "position", "origin"), 1),
    (("elementspacing",), 1),
)
"""Names of the fields that place an image; the number of their values is the number of axes to this power."""
_NRRD_BYTES = {
    1: ("signed char", "int8", "int8_t", "uchar", "unsigned char", "uint8", "uint8_t"),
    2: (
        "short", "short int", "signed short", "signed short int", "int16", "int16_t", "ushort", "unsigned short",
        "unsigned short int", "uint16", "uint16_t",
    ),
    4: ("int", "signed int", "int32", "int32_t", "uint", "unsigned int", "uint32", "uint32_t", "float"),
    8: (
        "longlong", "long long", "long long int", "signed long long", "signed long long int", "int64", "int64_t",
        "ulonglong", "unsigned long long", "unsigned long long int", "uint64", "uint64_t", "double",
    ),
}  # fmt: skip
_BYTES = ("uchar", "unsigned char", "uint8", "uint8_t")
_COLOUR_NAMES = {3: "rgb", 4: "rgba"}
_SPACES = ("right-anterior-superior", "ras", "left-anterior-superior", "las", "left-posterior-superior", "lps")
_COLOURS = (
    "rgb-color", "rgba-color", "3-color", "4-color", "hsv-color", "xyz-color", "complex",
    "vector", "2-vector", "3-vector", "4-vector", "covariant-vector", "normal", "3-normal",
)  # fmt: skip
_MICRONS = ("um", "µm", "μm", "micron", "microns", "micrometer", "micrometre")
_TO_MM = {"mm": 1.0, "cm": 10.0, "m": 1000.0, **dict.fromkeys(_MICRONS, 0.001)}


@dataclass(frozen=True)
class RasterHeader:
    """What a header promises.

    Args:
        space: voxels along the three axes of space.
        frames: volumes, one after the other.
        channels: colours, or other numbers that belong to one voxel.
        itemsize: bytes of a number.
        stored: ``rgb``, ``rgba``, ``complex64`` or ``complex128``; None for plain numbers and for vectors.
        data: the file with the numbers.
        offset: byte at which they begin; None: they are the last bytes of the file.
        packing: how they are packed.
        has_geometry: whether orientation, place and spacing are all there.
        unit: of length, as the header has it; None where it has none (mm by the format's custom).
    """

    space: tuple[int, ...]
    frames: int
    channels: int
    itemsize: int
    stored: str | None
    data: Path
    offset: int | None
    packing: Packing
    has_geometry: bool
    unit: str | None = None

    @property
    def promised(self) -> int:
        """Bytes of all numbers, unpacked."""
        return math.prod(self.space) * self.frames * self.channels * self.itemsize

    @property
    def to_mm(self) -> float | None:
        """Millimetres in the header's unit of length; None where that is not known."""
        return 1.0 if self.unit is None else _TO_MM.get(self.unit.strip().strip('"').lower())


def metaimage_header(path: Path) -> RasterHeader:
    """Of a ``.mha`` or ``.mhd`` file.

    Raises:
        Refused: ``BAD_HEADER``; ``UNSUPPORTED_TYPE``: text or several data files; ``TRUNCATED_FILE``: no data file.
    """
    fields: dict[str, str] = {}
    with open(path, "rb") as file:
        for line in _lines(file, path):
            key, equals, value = line.partition("=")
            if equals:
                fields[key.strip().lower()] = value.strip()
            if key.strip().lower() == "elementdatafile":
                break
        end = file.tell()
    if fields.get("objecttype", "image").lower() != "image" or "elementdatafile" not in fields:
        raise _bad(path, "it is not a MetaImage header")
    size = _whole(fields.get("dimsize", ""), path)
    if len(size) != _whole(fields.get("ndims", ""), path, 1)[0]:
        raise _bad(path, f"NDims and DimSize = {size} disagree")
    kind = fields.get("elementtype", "").upper().removeprefix("MET_").removesuffix("_ARRAY")
    if kind not in _META_BYTES:
        raise _bad(path, f"ElementType is {fields.get('elementtype')!r}")
    if not _is_true(fields.get("binarydata", "True")):
        raise Refused("UNSUPPORTED_TYPE", f"'{path.name}' holds its numbers as text, which is not read. Convert it.")
    for names, count in _META_PLACE:
        for name in names:
            if name in fields:
                _real(fields[name].split(), len(size) ** count, path)
    (channels,) = _whole(fields.get("elementnumberofchannels", "1"), path, 1)
    data, offset = _meta_data_file(path, fields, end)
    return RasterHeader(
        space=size[:3],
        frames=math.prod(size[3:]),
        channels=channels,
        itemsize=_META_BYTES[kind],
        stored=_COLOUR_NAMES.get(channels) if kind == "UCHAR" else None,
        data=data,
        offset=offset,
        packing="zlib" if _is_true(fields.get("compresseddata", "False")) else "raw",
        has_geometry=all(any(name in fields for name in names) for names, _ in _META_PLACE),
        unit=fields.get("distanceunits"),
    )


def nrrd_header(path: Path) -> RasterHeader:
    """Of a ``.nrrd`` or ``.nhdr`` file.

    Raises:
        Refused: ``BAD_HEADER``; ``UNSUPPORTED_TYPE``: an encoding other than raw and gzip, or several data files;
            ``TRUNCATED_FILE``: no data file.
    """
    fields: dict[str, str] = {}
    with open(path, "rb") as file:
        if not re.fullmatch(rb"NRRD000[1-5]\r?\n", file.readline(16)):
            raise _bad(path, "it is not an NRRD file")
        for line in _lines(file, path):
            if not line:
                break
            key, colon, value = line.partition(":")
            if not line.startswith("#") and colon and not value.startswith("="):
                fields[key.strip().lower()] = value.strip()
        end = file.tell()
    itemsize = next((n for n, names in _NRRD_BYTES.items() if fields.get("type", "").lower() in names), None)
    if itemsize is None:
        raise _bad(path, f"type is {fields.get('type')!r}")
    packing = {"raw": "raw", "gzip": "gzip", "gz": "gzip"}.get(fields.get("encoding", "").lower())
    if packing is None:
        raise Refused("UNSUPPORTED_TYPE", f"'{path.name}' has the encoding {fields.get('encoding')!r}. Convert it.")
    space, frames, channels = _nrrd_axes(path, fields)
    data, offset = _nrrd_data_file(path, fields, end)
    for vector in re.findall(r"\(([^)]*)\)", fields.get("space directions", "") + fields.get("space origin", "")):
        _real(vector.split(","), None, path)
    named = fields.get("space", "").lower() in _SPACES
    units = set(re.findall(r'"([^"]*)"', fields.get("space units", "")))
    return RasterHeader(
        space=space,
        frames=frames,
        channels=channels,
        itemsize=itemsize,
        stored=_nrrd_channels(fields, channels),
        data=data,
        offset=offset,
        packing="gzip" if packing == "gzip" else "raw",
        has_geometry=named and "space directions" in fields and "space origin" in fields,
        unit=None if not units else units.pop() if len(units) == 1 else "several units",
    )


def _nrrd_axes(path: Path, fields: dict[str, str]) -> tuple[tuple[int, ...], int, int]:
    """Sizes of the axes of space, number of frames and of channels."""
    sizes = _whole(fields.get("sizes", ""), path)
    if len(sizes) != _whole(fields.get("dimension", ""), path, 1)[0]:
        raise _bad(path, f"dimension and sizes = {sizes} disagree")
    kinds = fields.get("kinds", "").lower().split() or ["domain"] * len(sizes)
    directions = re.findall(r"none|\([^)]*\)", fields.get("space directions", "").lower())
    if len(kinds) != len(sizes) or (directions and len(directions) != len(sizes)):
        raise _bad(path, "kinds or space directions have another number of axes than sizes")
    spatial = [d != "none" for d in directions] or [k in ("domain", "space", "???", "none") for k in kinds]
    frames = channels = 1
    for size, kind, in_space in zip(sizes, kinds, spatial, strict=True):
        if not in_space and kind in _COLOURS:
            channels *= size
        elif not in_space:
            frames *= size
    space = tuple(size for size, in_space in zip(sizes, spatial, strict=True) if in_space)
    return space[:3], frames * math.prod(space[3:]), channels


def _nrrd_channels(fields: dict[str, str], channels: int) -> str | None:
    """What several numbers per voxel are, where NIfTI has a name for it."""
    kinds, kind = fields.get("kinds", "").lower().split(), fields["type"].lower()
    if "complex" in kinds and channels == 2 and kind in ("float", "double"):
        return "complex64" if kind == "float" else "complex128"
    return _COLOUR_NAMES.get(channels) if kind in _BYTES else None


def _meta_data_file(path: Path, fields: dict[str, str], end: int) -> tuple[Path, int | None]:
    """The file with the numbers, and where in it they begin."""
    name = fields["elementdatafile"]
    if name.upper() in ("LOCAL", "LIST") or "%" in name:
        if name.upper() != "LOCAL":
            raise Refused("UNSUPPORTED_TYPE", f"'{path.name}' has several data files, which are not read. Convert it.")
        return path, end
    skip = fields.get("headersize", "0")
    if not re.fullmatch(r"-1|\d{1,18}", skip):
        raise _bad(path, f"HeaderSize is {skip!r}")
    return _beside(path, name), None if skip == "-1" else int(skip)


def _nrrd_data_file(path: Path, fields: dict[str, str], end: int) -> tuple[Path, int | None]:
    """The file with the numbers, and where in it they begin."""
    name = fields.get("data file", fields.get("datafile"))
    if name is not None and (name.upper().startswith("LIST") or "%" in name):
        raise Refused("UNSUPPORTED_TYPE", f"'{path.name}' has several data files, which are not read. Convert it.")
    skips = [fields.get("line skip", fields.get("lineskip", "0")), fields.get("byte skip", fields.get("byteskip", "0"))]
    if skips[0] != "0" or not re.fullmatch(r"-1|\d{1,18}", skips[1]):
        raise Refused("UNSUPPORTED_TYPE", f"'{path.name}' skips lines of its data, which is not read. Convert it.")
    data = path if name is None else _beside(path, name)
    start = end if name is None else 0
    return data, None if skips[1] == "-1" else start + int(skips[1])


def _beside(path: Path, name: str) -> Path:
    """A data file that a header names; it must exist."""
    data = path.parent / name
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise Refused("UNSUPPORTED_TYPE", f"'{path.name}' names a data file outside its folder, '{name}'. Move it.")
    if "\0" in name or not data.is_file():
        raise Refused("TRUNCATED_FILE", f"'{path.name}' names the data file '{name}', which is not there. Give both.")
    return data


def _lines(file: IO[bytes], path: Path) -> Iterator[str]:
    """Header lines, one at a time, until the caller stops or the file ends."""
    while line := file.readline(_LONGEST_LINE):
        if file.tell() > _LONGEST_HEADER:
            raise _bad(path, "its header has no end")
        yield line.decode("utf-8", "replace").strip()


def _whole(text: str, path: Path, count: int | None = None) -> tuple[int, ...]:
    """Numbers above 0 of a header's line."""
    words = text.split()
    if not words or not all(re.fullmatch(r"\d{1,18}", word) and int(word) for word in words):
        raise _bad(path, f"{text!r} should be whole numbers above 0")
    if count is not None and len(words) != count:
        raise _bad(path, f"{text!r} should be {count} number")
    return tuple(int(word) for word in words)


def _real(words: list[str], count: int | None, path: Path) -> None:
    """Checks the numbers that place an image: SimpleITK takes what it cannot read for 0."""
    if (count is not None and len(words) != count) or not all(_NUMBER.fullmatch(word.strip()) for word in words):
        raise Refused("BAD_AFFINE", f"'{path.name}' has {' '.join(words)!r} where numbers place it. Mend the header.")


def _is_true(text: str) -> bool:
    return text.strip()[:1].upper() in ("T", "1")


def _bad(path: Path, what: str) -> Refused:
    return Refused("BAD_HEADER", f"'{path.name}': {what}. Mend the header.")
