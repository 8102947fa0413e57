"""The header of a NIfTI file, read without trust: what it says, what it contradicts, and which numbers are used.

Frames: NIfTI's world is RAS+; an affine maps voxel indices ``(i, j, k)`` to it, here always in mm.

References: the NIfTI-1 and NIfTI-2 headers (nifti1.h, nifti2.h).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from nibabel.nifti1 import header_dtype as _DTYPE_1
from nibabel.nifti2 import header_dtype as _DTYPE_2

from medgen.io.findings import Finding, Refused
from medgen.io.nifti_affine import chosen_affine, form_codes

__all__ = ["HEADER_BYTES", "MARK", "PROCESSED", "NiftiHeader", "Stored", "mark_of", "parse_header"]

HEADER_BYTES = 640
"""Bytes that hold the header of either version, and the mark."""

MARK = b"medgen: synthetic"
"""Text of the header extension, the first one, of a file that is synthetic in whole or in part."""

PROCESSED = b"medgen: processed"
"""The same, of a file that medgen computed from a scan and that is not synthetic."""

Kind = Literal["number", "complex", "colour"]
_NUMBERS = {
    2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8"
}  # fmt: skip
_COMPLEX = {32: "f4", 1792: "f8"}
_COLOURS = {128: 3, 2304: 4}
_REFUSED_TYPES = {1: "single bits", 1536: "128-bit floating point", 2048: "256-bit complex"}
_COMMENT = 6  # code of an extension that is plain text
_LINE_ENDS = b"\r\n\x1a\n"


@dataclass(frozen=True)
class Stored:
    """How one voxel is stored.

    Args:
        kind: plain numbers, complex ones or colours.
        dtype: of each number, with its byte order.
        channels: numbers per voxel: 1, 2 (complex), 3 (RGB) or 4 (RGBA), side by side.
        slope: a value is ``slope * number + inter``; 1 where there is no scaling.
        inter: see ``slope``; 0 where there is no scaling.
    """

    kind: Kind
    dtype: np.dtype
    channels: int
    slope: float = 1.0
    inter: float = 0.0

    @property
    def bytes(self) -> int:
        """Of one voxel."""
        return self.dtype.itemsize * self.channels

    @property
    def name(self) -> str:
        """``int16``, ``float32``, ...; ``rgb``, ``rgba``; ``complex64``, ``complex128``."""
        if self.kind == "colour":
            return "rgba" if self.channels == 4 else "rgb"
        plain = self.dtype.newbyteorder("=").name
        return f"complex{16 * self.dtype.itemsize}" if self.kind == "complex" else plain

    @property
    def scaled(self) -> bool:
        """Whether values differ from the stored numbers."""
        return (self.slope, self.inter) != (1.0, 0.0)


@dataclass(frozen=True)
class NiftiHeader:
    """What a header says, checked.

    Args:
        shape: all axes; at least three.
        stored: of the voxels.
        offset: byte of the file with the voxels at which they begin.
        single: whether header and voxels share a file; else the voxels are in the ``.img`` file.
        affine: RAS+ mm, 4x4 float64; None where the header has no orientation.
        findings: what is to be said.
        synthetic: whether the file bears the :data:`MARK`.
        processed: whether it bears :data:`PROCESSED` instead.
        form_codes: sform_code and qform_code of a copy with another affine: 0 of a form that places voxels elsewhere.
    """

    shape: tuple[int, ...]
    stored: Stored
    offset: int
    single: bool
    affine: np.ndarray | None
    findings: tuple[Finding, ...]
    synthetic: bool = False
    processed: bool = False
    form_codes: tuple[int, int] = (1, 1)

    @property
    def space(self) -> tuple[int, int, int]:
        """Voxels along the three axes of space."""
        return self.shape[0], self.shape[1], self.shape[2]

    @property
    def frames(self) -> int:
        """How many volumes there are."""
        return math.prod(self.shape[3:])

    @property
    def voxels(self) -> int:
        """Of one volume."""
        return math.prod(self.space)


def parse_header(block: bytes, name: str) -> NiftiHeader:
    """Reads and checks a header.

    Args:
        block: the first :data:`HEADER_BYTES` plain bytes of the file, or fewer where it is shorter.
        name: of the file, for errors.

    Returns:
        The header; ``affine`` is None where neither sform nor qform is there.

    Raises:
        Refused: ``BAD_HEADER``: not NIfTI, or fields that are not possible; ``NO_GEOMETRY``: Analyze, which has no
            orientation; ``UNSUPPORTED_DTYPE``; ``BAD_RESCALE``; ``BAD_AFFINE``.
    """
    fields, version, order = _fields(block, name)
    single = _is_single(fields, version, name)
    shape = _shape(fields, name)
    stored, findings = _stored(fields, order, name)
    affine, more = chosen_affine(fields, shape[:3], name)
    offset = _offset(fields, version, single, name)
    size = {1: 348, 2: 540}[version]
    marked = _is_marked(block, size, order, MARK)
    if marked:
        findings.append(Finding("SYNTHETIC", "the file says that it is synthetic, in whole or in part"))
    processed = _is_marked(block, size, order, PROCESSED)
    codes = (1, 1) if affine is None else form_codes(fields, more)
    return NiftiHeader(shape, stored, offset, single, affine, (*findings, *more), marked, processed, codes)


def mark_of(order: str = "<", text: bytes = MARK) -> bytes:
    """The header extension that marks a file, in a byte order: 32 bytes, to stand first of all extensions.

    Args:
        order: ``<`` or ``>``.
        text: :data:`MARK` or :data:`PROCESSED`.

    Example:
        >>> len(mark_of())
        32
    """
    return np.array([32, _COMMENT], f"{order}i4").tobytes() + text.ljust(24, b"\0")


def _is_marked(block: bytes, size: int, order: str, text: bytes) -> bool:
    """Whether the first extension after a header of this size is a mark."""
    mark = mark_of(order, text)[: 8 + len(text)]
    return block[size : size + 1] not in (b"", b"\0") and block[size + 4 :].startswith(mark)


def _fields(block: bytes, name: str) -> tuple[Any, int, str]:
    """The named fields, the version, and the byte order, which the header's own size reveals."""
    for dtype, size, version in ((_DTYPE_1, 348, 1), (_DTYPE_2, 540, 2)):
        for order in "<>":
            if block[:4] == np.array(size, f"{order}i4").tobytes() and len(block) >= size:
                return np.frombuffer(block[:size], dtype.newbyteorder(order))[0], version, order
    raise Refused("BAD_HEADER", f"'{name}' is not a NIfTI file. Convert it to .nii or .nii.gz.")


def _is_single(fields: Any, version: int, name: str) -> bool:
    """Whether header and voxels share one file, by the magic letters."""
    magic = bytes(fields["magic"]).rstrip(b"\0")
    if version == 1 and magic in (b"n+1", b"ni1"):
        return magic == b"n+1"
    if version == 2 and magic[:3] in (b"n+2", b"ni2"):
        if bytes(fields["eol_check"]) not in (_LINE_ENDS, bytes(4)):
            raise Refused("BAD_HEADER", f"'{name}' was transferred as text, which changed its bytes. Copy it anew.")
        return magic[:3] == b"n+2"
    if version == 1 and not magic:
        raise Refused("NO_GEOMETRY", f"'{name}' is an Analyze file, which has no orientation. Convert it to NIfTI.")
    raise Refused("BAD_HEADER", f"'{name}' has the magic letters {magic!r}; NIfTI has others. Get a whole copy.")


def _shape(fields: Any, name: str) -> tuple[int, ...]:
    """Sizes of all axes, three at least; trailing axes of one are dropped."""
    dim = [int(size) for size in fields["dim"]]
    if not 1 <= dim[0] <= 7 or min(dim[1 : dim[0] + 1]) < 1:
        raise Refused("BAD_HEADER", f"'{name}' has dim = {dim}, which is no shape. Mend the header.")
    shape = dim[1 : dim[0] + 1] + [1] * (3 - dim[0])
    while len(shape) > 3 and shape[-1] == 1:
        shape.pop()
    return tuple(shape)


def _stored(fields: Any, order: str, name: str) -> tuple[Stored, list[Finding]]:
    """Type and scaling of the voxels."""
    code, bits = int(fields["datatype"]), int(fields["bitpix"])
    findings: list[Finding] = []
    if code in _NUMBERS:
        stored = Stored("number", np.dtype(order + _NUMBERS[code]), 1, *_scaling(fields, findings, name))
    elif code in _COMPLEX:
        stored = Stored("complex", np.dtype(order + _COMPLEX[code]), 2, *_scaling(fields, findings, name))
    elif code in _COLOURS:
        stored = Stored("colour", np.dtype("u1"), _COLOURS[code])
    else:
        what = _REFUSED_TYPES.get(code, "unknown")
        raise Refused("UNSUPPORTED_DTYPE", f"'{name}' has datatype {code} ({what}), which is not read. Convert it.")
    if bits != 8 * stored.bytes:
        text = f"bitpix is {bits}, datatype {code} has {8 * stored.bytes} bits, which were used"
        findings.append(Finding("BITPIX_DISAGREES", text))
    return stored, findings


def _scaling(fields: Any, findings: list[Finding], name: str) -> tuple[float, float]:
    """Slope and intercept; a slope of 0 means none, as the standard says, and so does NaN, which nibabel writes."""
    slope, inter = float(fields["scl_slope"]), float(fields["scl_inter"])
    if slope == 0 or math.isnan(slope):
        if math.isfinite(inter) and inter != 0:
            text = f"scl_slope is {slope:g}, so scl_inter = {inter:g} does not count"
            findings.append(Finding("ZERO_SLOPE", text))
        return 1.0, 0.0
    if not (math.isfinite(slope) and math.isfinite(inter)):
        raise Refused("BAD_RESCALE", f"'{name}' has scl_slope = {slope:g}, scl_inter = {inter:g}. Mend the header.")
    return slope, inter


def _offset(fields: Any, version: int, single: bool, name: str) -> int:
    """Byte at which the voxels begin."""
    offset = float(fields["vox_offset"])
    least = ({1: 352, 2: 544}[version]) if single else 0
    if single and offset == 0:
        return least
    if not (math.isfinite(offset) and offset == int(offset) and least <= offset < 2**62):
        raise Refused("BAD_HEADER", f"'{name}' has vox_offset = {offset:g}; {least} or more is needed. Mend it.")
    return int(offset)
