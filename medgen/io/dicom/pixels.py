"""Stored pixels: what the header says about them, whether the file holds them, and how a frame is read.

Everything is checked against the size of the file before anything is allocated. Values stay as they are stored:
MONOCHROME1 is not inverted, colour is not converted.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from medgen.io.dicom.decode import Image, check_codestream, decode, is_compressed, is_native, syntax_name
from medgen.io.dicom.header import DEFLATED, Header, inflate
from medgen.io.findings import Refused

__all__ = ["Layout", "PixelFile", "pixel_layout"]

_LARGEST_FRAMES = 2**24
_RLE_BEST = 64
_PADDING = 3


@dataclass(frozen=True, slots=True)
class Layout:
    """How the pixels of one file are stored.

    Args:
        rows: of a frame.
        columns: of a frame.
        frames: in the file.
        bits_allocated: per pixel: 8, 16, 32 or 64.
        bits_stored: of them in use.
        high_bit: position of the highest bit in use.
        signed: two's complement.
        floating: float32 or float64 pixels.
        swapped: bytes of 8-bit pixels come in swapped pairs (big-endian words).
        little: byte order of uncompressed pixels.
        syntax: transfer syntax UID.
        photometric: photometric interpretation.
        extra: bytes of uncompressed pixels beyond those described.
        missing: bytes that the pixel element says to have and the file does not hold, none of which are needed.
    """

    rows: int
    columns: int
    frames: int
    bits_allocated: int
    bits_stored: int
    high_bit: int
    signed: bool
    floating: bool
    swapped: bool
    little: bool
    syntax: str
    photometric: str
    extra: int = 0
    missing: int = 0

    @property
    def dtype(self) -> np.dtype:
        """Of the stored pixels in this machine's byte order."""
        kind = "f" if self.floating else "i" if self.signed else "u"
        return np.dtype(f"{kind}{self.bits_allocated // 8}")

    @property
    def frame_bytes(self) -> int:
        """Bytes of one uncompressed frame."""
        return self.rows * self.columns * self.bits_allocated // 8

    @property
    def spare_bits(self) -> bool:
        """Whether a stored word holds bits that are no part of the value."""
        return not self.floating and (self.bits_stored < self.bits_allocated or self.high_bit + 1 != self.bits_stored)


def pixel_layout(header: Header, extra: bool = False) -> Layout:
    """Reads and checks the pixel description of a header, and that the file is long enough for it.

    Args:
        header: of the file.
        extra: let more pixels pass than are described.

    Raises:
        Refused: ``UNSUPPORTED_TYPE`` (colour, packed bits, ...), ``UNDECODABLE`` (no decoder), ``BAD_HEADER`` (missing
            or senseless), ``TRUNCATED_PIXEL_DATA`` or ``HEADER_PROMISES_TOO_MUCH`` (fewer bytes than described; the
            second where the file holds less than half of them and its pixel element is whole), ``EXTRA_BYTES`` (so
            many more than described that rows or columns may be wrong: over a tenth, or whole rows or columns).
    """
    name = header.path.name
    if not is_native(header.syntax) and not is_compressed(header.syntax):
        text = f"'{name}' has transfer syntax {header.syntax!r}, for which there is no decoder. Convert it first."
        raise Refused("UNDECODABLE", text)
    layout = _described(header)
    if header.pixel_length >= 0 and is_native(layout.syntax):
        return _check_length(header, layout, extra)
    if header.pixel_length >= 0 or is_native(layout.syntax):
        raise Refused(
            "BAD_HEADER", f"'{name}': pixels and transfer syntax {syntax_name(layout.syntax)} contradict each other."
        )
    if layout.syntax.endswith(".5") and layout.frame_bytes * layout.frames > _RLE_BEST * header.size:
        raise Refused(
            "HEADER_PROMISES_TOO_MUCH",
            f"'{name}' of {header.size} bytes cannot hold {layout.frames} frames of {layout.rows} x {layout.columns}.",
        )
    return layout


def _described(header: Header) -> Layout:
    name, floating = header.path.name, header.pixel_tag != 0x7FE00010
    samples, frames = header.whole(0x00280002, 1), header.whole(0x00280008, 1)
    rows, columns = header.whole(0x00280010, 0), header.whole(0x00280011, 0)
    photometric = header.text(0x00280004) or "MONOCHROME2"
    if samples != 1 or photometric not in ("MONOCHROME1", "MONOCHROME2"):
        raise Refused("UNSUPPORTED_TYPE", f"'{name}' is {photometric} with {samples} samples a pixel, not grey.")
    if rows < 1 or columns < 1 or not 1 <= frames <= _LARGEST_FRAMES:
        raise Refused("BAD_HEADER", f"'{name}' has {frames} frames of {rows} rows and {columns} columns.")
    if floating:
        allocated = 32 if header.pixel_tag == 0x7FE00008 else 64
        stored, high = allocated, allocated - 1
    else:
        allocated = header.whole(0x00280100, 0)
        stored = header.whole(0x00280101, allocated)
        high = header.whole(0x00280102, stored - 1)
    if allocated == 1:
        raise Refused("UNSUPPORTED_TYPE", f"'{name}' holds single bits (a mask), not an image.")
    if allocated not in (8, 16, 32, 64) or not 1 <= stored <= allocated or not stored - 1 <= high < allocated:
        raise Refused(
            "BAD_HEADER", f"'{name}' has {allocated} bits allocated, {stored} stored and high bit {high}: not possible."
        )
    representation = header.whole(0x00280103, 0)
    if representation not in (0, 1):
        raise Refused("BAD_HEADER", f"'{name}' has pixel representation {representation}; 0 or 1 is needed.")
    return Layout(
        rows, columns, frames, allocated, stored, high, bool(representation), floating,
        allocated == 8 and not header.little and header.pixel_vr == "OW", header.little, header.syntax, photometric,
    )  # fmt: skip


def _check_length(header: Header, layout: Layout, extra: bool) -> Layout:
    """Refuses uncompressed pixels that are shorter, or much longer, than described; notes what they are longer."""
    expected = layout.frame_bytes * layout.frames
    there = min(header.pixel_length, header.size - header.pixel_offset)
    if there >= expected:
        layout = replace(layout, missing=max(0, header.pixel_length - there))
        return layout if extra else _with_extra(header, layout, there - expected)
    text = (
        f"'{header.path.name}' holds {there} bytes of pixels; {layout.frames} x {layout.rows} x {layout.columns} of "
        f"{layout.bits_allocated} bits are {expected}. Copy or export it again."
    )
    whole = header.pixel_length <= header.size - header.pixel_offset
    raise Refused("HEADER_PROMISES_TOO_MUCH" if whole and expected > 2 * there else "TRUNCATED_PIXEL_DATA", text)


def _with_extra(header: Header, layout: Layout, extra: int) -> Layout:
    if extra <= _PADDING:
        return layout
    pixel = layout.bits_allocated // 8
    lines = extra % (layout.rows * pixel) == 0 or extra % (layout.columns * pixel) == 0
    if lines or 10 * extra > layout.frame_bytes * layout.frames:
        raise Refused(
            "EXTRA_BYTES",
            f"'{header.path.name}' holds {extra} bytes of pixels more than {layout.frames} x {layout.rows} x "
            f"{layout.columns} of {layout.bits_allocated} bits: rows or columns may be wrong. Export it again.",
        )
    return replace(layout, extra=extra)


class PixelFile:
    """Reads the frames of one file; a context manager that keeps it open.

    Args:
        header: of the file.
        layout: of its pixels.
        limit: bytes that a deflated file may take once inflated.
    """

    def __init__(self, header: Header, layout: Layout, limit: int) -> None:
        self.header = header
        self.layout = layout
        self.limit = limit
        self.path: Path = header.path
        self._descriptor = -1
        self._content: bytes | None = None
        self._frames: list[list[tuple[int, int]]] | None = None

    def __enter__(self) -> PixelFile:
        try:
            if self.layout.syntax == DEFLATED:
                self._content = self._inflated()
            self._descriptor = os.open(self.path, os.O_RDONLY)
        except OSError as error:
            raise Refused("UNREADABLE", f"'{self.path.name}' cannot be opened ({error.strerror}).") from None
        return self

    def __exit__(self, *_: object) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def read_into(self, frame: int, out: np.ndarray) -> None:
        """Reads one frame as it is stored.

        Args:
            frame: position in the file, from 0.
            out: C-contiguous, ``(rows, columns)``, of the layout's type.

        Raises:
            Refused: ``TRUNCATED_PIXEL_DATA`` or ``UNDECODABLE``.
        """
        if is_native(self.layout.syntax):
            self._read_native(frame, out)
        else:
            decode(self._image(), self._fragments(frame), out, f"'{self.path.name}' frame {frame + 1}")

    def check(self) -> bool:
        """Refuses encapsulated pixels that end early or whose code stream is of another size than the header says.

        Returns:
            Whether the compression loses something.

        Raises:
            Refused: ``TRUNCATED_PIXEL_DATA``, ``UNDECODABLE``, ``UNSUPPORTED_TYPE`` or ``HEADER_PROMISES_TOO_MUCH``.
        """
        if is_native(self.layout.syntax):
            return False
        frames, lossy = self._frame_places(), False
        for number in {0, len(frames) - 1}:
            offset, length = frames[number][0]
            head = self._bytes(offset, min(length, 64 * 1024))
            lossy |= check_codestream(self._image(), head, f"'{self.path.name}' frame {number + 1}")
        return lossy

    def _inflated(self) -> bytes:
        """The data set of a deflated file; its header was read from the same bytes."""
        with open(self.path, "rb") as file:
            content = file.read()
        index = 132 if content[128:132] == b"DICM" else 0
        while content[index : index + 2] == b"\x02\x00":
            long = content[index + 4 : index + 6] in (b"OB", b"OW", b"UN", b"UT", b"SQ")
            length = struct.unpack_from("<I" if long else "<H", content, index + (8 if long else 6))[0]
            index += (12 if long else 8) + length
        return inflate(content[index:], self.limit, self.path.name)

    def _image(self) -> Image:
        layout = self.layout
        return Image(
            layout.syntax, layout.rows, layout.columns, layout.bits_allocated, layout.bits_stored, layout.signed,
            layout.photometric,
        )  # fmt: skip

    def _bytes(self, offset: int, length: int) -> bytes:
        if self._content is not None:
            content = self._content[offset : offset + length]
        else:
            content = os.pread(self._descriptor, length, offset)
        if len(content) < length:
            raise Refused("TRUNCATED_PIXEL_DATA", f"'{self.path.name}' ends inside its pixels. Copy it again.")
        return content

    def _read_native(self, frame: int, out: np.ndarray) -> None:
        layout = self.layout
        offset = self.header.pixel_offset + frame * layout.frame_bytes
        if layout.swapped:
            start = offset - self.header.pixel_offset
            words = self._bytes(offset - start % 2, layout.frame_bytes + layout.frame_bytes % 2 + 2 * (start % 2))
            pairs = np.frombuffer(words, dtype=np.uint8).reshape(-1, 2)[:, ::-1].reshape(-1)
            out.reshape(-1).view(np.uint8)[:] = pairs[start % 2 :][: layout.frame_bytes]
            return
        flat = out.reshape(-1).view(np.uint8)
        if self._content is not None or os.preadv(self._descriptor, [flat.data], offset) != layout.frame_bytes:
            flat[:] = np.frombuffer(self._bytes(offset, layout.frame_bytes), dtype=np.uint8)
        if not layout.little and layout.bits_allocated > 8:
            out.byteswap(inplace=True)

    def _fragments(self, frame: int) -> bytes:
        return b"".join(self._bytes(offset, length) for offset, length in self._frame_places()[frame])

    def _frame_places(self) -> list[list[tuple[int, int]]]:
        """Offset and length of every fragment of every frame."""
        if self._frames is None:
            table, fragments = self._items()
            self._frames = _by_frame(fragments, self.layout.frames, table, self._extended_table(), self.path.name)
        return self._frames

    def _items(self) -> tuple[tuple[int, ...], list[tuple[int, int]]]:
        """The basic offset table and the place of every fragment."""
        table: tuple[int, ...] = ()
        fragments: list[tuple[int, int]] = []
        position, size, first, ended = self.header.pixel_offset, self.header.size, True, False
        while position + 8 <= size:
            group, element, length = struct.unpack("<HHI", self._bytes(position, 8))
            if (group, element) == (0xFFFE, 0xE0DD):
                ended = True
                break
            if (group, element) != (0xFFFE, 0xE000):
                raise Refused("UNDECODABLE", f"'{self.path.name}': byte {position} should begin a fragment of pixels.")
            if position + 8 + length > size:
                raise Refused("TRUNCATED_PIXEL_DATA", f"'{self.path.name}' ends inside its pixels. Copy it again.")
            if first:
                table = struct.unpack(f"<{length // 4}I", self._bytes(position + 8, length // 4 * 4))
            else:
                fragments.append((position + 8, length))
            first, position = False, position + 8 + length
        if not ended:
            raise Refused("TRUNCATED_PIXEL_DATA", f"'{self.path.name}' ends before its pixels do. Copy it again.")
        return table, fragments

    def _extended_table(self) -> tuple[int, ...]:
        return tuple(int(value) for value in self.header.numbers(0x7FE00001))


def _by_frame(
    fragments: list[tuple[int, int]], frames: int, table: tuple[int, ...], extended: tuple[int, ...], name: str
) -> list[list[tuple[int, int]]]:
    """Assigns fragments to frames: all to a single one, one to each, or as an offset table says."""
    if len(fragments) < frames or not fragments:
        raise Refused(
            "TRUNCATED_PIXEL_DATA", f"'{name}' holds {len(fragments)} fragments of pixels for {frames} frames."
        )
    if frames == 1:
        return [fragments]
    if len(fragments) == frames:
        return [[fragment] for fragment in fragments]
    starts = extended if len(extended) == frames else table
    origin = fragments[0][0] - 8
    places = {offset - 8 - origin: index for index, (offset, _) in enumerate(fragments)}
    if len(starts) != frames or any(start not in places for start in starts):
        raise Refused(
            "UNDECODABLE", f"'{name}': {len(fragments)} fragments of pixels cannot be assigned to {frames} frames."
        )
    ends = [*(places[start] for start in starts[1:]), len(fragments)]
    grouped = [fragments[places[start] : end] for start, end in zip(starts, ends, strict=True)]
    if not all(grouped):
        raise Refused("UNDECODABLE", f"'{name}': the offset table of its pixels is out of order.")
    return grouped
