"""Compressed frames: RLE, JPEG, JPEG-LS and JPEG 2000, each checked against the header before it is decoded."""

from __future__ import annotations

import struct
import warnings
from typing import NamedTuple

import numpy as np
from pydicom.pixels import get_decoder
from rle.rle import decode_segment

from medgen.io.findings import Refused

__all__ = ["Image", "check_codestream", "decode", "is_compressed", "is_native", "syntax_name"]

_NATIVE = frozenset(("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99"))
_RLE = "1.2.840.10008.1.2.5"
_DECODERS = {
    "1.2.840.10008.1.2.4.50": ("JPEG baseline", "pillow"),
    "1.2.840.10008.1.2.4.51": ("JPEG extended", "pillow"),
    "1.2.840.10008.1.2.4.57": ("JPEG lossless", "gdcm"),
    "1.2.840.10008.1.2.4.70": ("JPEG lossless", "gdcm"),
    "1.2.840.10008.1.2.4.80": ("JPEG-LS", "pyjpegls"),
    "1.2.840.10008.1.2.4.81": ("JPEG-LS near-lossless", "pyjpegls"),
    "1.2.840.10008.1.2.4.90": ("JPEG 2000 lossless", "pylibjpeg"),
    "1.2.840.10008.1.2.4.91": ("JPEG 2000", "pylibjpeg"),
    "1.2.840.10008.1.2.4.201": ("HTJ2K lossless", "pylibjpeg"),
    "1.2.840.10008.1.2.4.202": ("HTJ2K lossless RPCL", "pylibjpeg"),
    "1.2.840.10008.1.2.4.203": ("HTJ2K", "pylibjpeg"),
    _RLE: ("RLE", ""),
}
"""Name and pydicom plugin of each compression: one decoder for each, so that a file always gives the same values."""

_LOSSY = frozenset(("1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51", "1.2.840.10008.1.2.4.81"))
_JPEG_2000 = ("1.2.840.10008.1.2.4.9", "1.2.840.10008.1.2.4.20")

_START_OF_FRAME = frozenset((*range(0xC0, 0xC4), *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0), 0xF7))


class Image(NamedTuple):
    """What the header says about a compressed frame."""

    syntax: str
    rows: int
    columns: int
    bits_allocated: int
    bits_stored: int
    signed: bool
    photometric: str


def is_native(syntax: str) -> bool:
    """Whether pixels of this transfer syntax are uncompressed."""
    return syntax in _NATIVE


def is_compressed(syntax: str) -> bool:
    """Whether pixels of this transfer syntax are compressed, and can be decoded."""
    return syntax in _DECODERS


def syntax_name(syntax: str) -> str:
    """A name for messages."""
    return _DECODERS[syntax][0] if syntax in _DECODERS else syntax


def check_codestream(image: Image, head: bytes, what: str) -> bool:
    """Refuses a frame whose own header contradicts the data set, so that a decoder never allocates more.

    Args:
        image: what the header says.
        head: the first bytes of the frame.
        what: names the frame in messages.

    Returns:
        Whether the compression loses something: by its transfer syntax, or by the wavelet of JPEG 2000.

    Raises:
        Refused: ``UNDECODABLE`` or ``UNSUPPORTED_TYPE``.
    """
    if image.syntax == _RLE:
        _check_rle(image, head, what)
        return False
    wavelet = image.syntax.startswith(_JPEG_2000)
    size = _jpeg2000_size(head) if wavelet else _jpeg_size(head)
    if size is None:
        raise Refused("UNDECODABLE", f"{what} is no {syntax_name(image.syntax)} stream. Copy it again.")
    rows, columns, components, precision = size
    if (rows, columns) != (image.rows, image.columns) or components != 1:
        raise Refused(
            "UNDECODABLE",
            f"{what} is {rows} x {columns} with {components} components inside its stream, "
            f"{image.rows} x {image.columns} with 1 in its header.",
        )
    if image.syntax == "1.2.840.10008.1.2.4.51" and precision != 8:
        raise Refused("UNSUPPORTED_TYPE", f"{what} is lossy JPEG of {precision} bits. Decompress it first.")
    if precision > image.bits_allocated:
        raise Refused(
            "UNDECODABLE", f"{what} has {precision} bits in its stream, {image.bits_allocated} in its header."
        )
    return image.syntax in _LOSSY or (wavelet and _jpeg2000_is_lossy(head))


def decode(image: Image, content: bytes, out: np.ndarray, what: str) -> None:
    """Decodes one frame.

    Args:
        image: what the header says.
        content: the whole compressed frame.
        out: ``(rows, columns)`` of the stored type.
        what: names the frame in messages.

    Raises:
        Refused: ``UNDECODABLE``, or as :func:`check_codestream`.
    """
    check_codestream(image, content, what)
    if image.syntax != _RLE and b"\xff\xd9" not in content.rstrip(b"\0")[-16:]:
        raise Refused("UNDECODABLE", f"{what} ends before its {syntax_name(image.syntax)} stream does. Copy it again.")
    try:
        array = _decode_rle(image, content) if image.syntax == _RLE else _decode_with_pydicom(image, content)
    except Exception as error:  # decoders raise what they like on damaged streams
        raise Refused(
            "UNDECODABLE", f"{what}: {syntax_name(image.syntax)} cannot be decoded ({str(error)[:200]}). Copy it again."
        ) from error
    if array.shape != out.shape:
        raise Refused("UNDECODABLE", f"{what} decodes to {array.shape}, not {out.shape}.")
    out[...] = array


def _decode_rle(image: Image, content: bytes) -> np.ndarray:
    """One frame of run-length segments, one for each byte of a pixel, the highest first."""
    count, pixels = image.bits_allocated // 8, image.rows * image.columns
    starts = struct.unpack_from(f"<{count}I", content, 4)
    planes = np.empty((pixels, count), dtype=np.uint8)
    for index, (start, end) in enumerate(zip(starts, (*starts[1:], len(content)), strict=True)):
        planes[:, count - 1 - index] = _rle_bytes(content[start:end], pixels)
    return planes.view(f"<u{count}").reshape(image.rows, image.columns).view(f"<{'i' if image.signed else 'u'}{count}")


def _rle_bytes(segment: bytes, count: int) -> np.ndarray:
    """The first ``count`` bytes of a segment, which may end in padding.

    An odd number of padding zeros ends inside a run; one more zero completes it. What a truncated segment lacks it
    would complete, too, but then the segment ends exactly with the last byte.

    Raises:
        ValueError: the segment is too short.
    """
    if not segment:  # the decoder would panic
        raise ValueError("an empty segment")
    try:
        plain, least = decode_segment(segment), count
    except ValueError:
        plain, least = decode_segment(segment + b"\0"), count + 1
    if len(plain) < least:
        raise ValueError(f"a segment holds {len(plain)} of {count} bytes")
    return np.frombuffer(plain, dtype=np.uint8, count=count)


def _decode_with_pydicom(image: Image, content: bytes) -> np.ndarray:
    """One frame by the decoder that pydicom chooses, in the signedness that the header states."""
    padded = content + b"\0" * (len(content) % 2)
    items = (b"\xfe\xff\x00\xe0\0\0\0\0", b"\xfe\xff\x00\xe0", struct.pack("<I", len(padded)), padded)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        array, _ = get_decoder(image.syntax).as_array(
            b"".join(items),
            index=0,
            raw=True,
            decoding_plugin=_DECODERS[image.syntax][1],
            rows=image.rows,
            columns=image.columns,
            number_of_frames=1,
            samples_per_pixel=1,
            bits_allocated=image.bits_allocated,
            bits_stored=image.bits_stored,
            pixel_representation=int(image.signed),
            photometric_interpretation=image.photometric,
            pixel_keyword="PixelData",
        )
    return array


def _check_rle(image: Image, head: bytes, what: str) -> None:
    segments = image.bits_allocated // 8
    if len(head) < 64:
        raise Refused("UNDECODABLE", f"{what} is too short for RLE. Copy it again.")
    number, *offsets = struct.unpack_from("<16I", head)
    if number != segments or any(offset < 64 for offset in offsets[:segments]):
        raise Refused("UNDECODABLE", f"{what} has {number} RLE segments; {segments} are needed. Copy it again.")


def _jpeg_size(head: bytes) -> tuple[int, int, int, int] | None:
    """Rows, columns, components and bits of a JPEG or JPEG-LS stream."""
    position = 2
    if head[:2] != b"\xff\xd8":
        return None
    while position + 10 <= len(head):
        if head[position] != 0xFF:
            return None
        marker = head[position + 1]
        if marker == 0xFF:
            position += 1
            continue
        if marker in _START_OF_FRAME:
            precision, rows, columns, components = struct.unpack_from(">BHHB", head, position + 4)
            return rows, columns, components, precision
        position += 2 + struct.unpack_from(">H", head, position + 2)[0]
    return None


def _jpeg2000_size(head: bytes) -> tuple[int, int, int, int] | None:
    """Rows, columns, components and bits of a JPEG 2000 stream, bare or in a JP2 box."""
    start = head[:4096].find(b"\xff\x4f\xff\x51")
    if start < 0 or len(head) < start + 43:
        return None
    right, lower, left, upper = struct.unpack_from(">4I", head, start + 8)
    components, depth = struct.unpack_from(">HB", head, start + 40)
    return lower - upper, right - left, components, (depth & 0x7F) + 1


def _jpeg2000_is_lossy(head: bytes) -> bool:
    """Whether the default coding style names the irreversible 9-7 wavelet."""
    start = head.find(b"\xff\x52", head.find(b"\xff\x4f\xff\x51") + 40)
    return 0 <= start < len(head) - 13 and head[start + 13] == 0
