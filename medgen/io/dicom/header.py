"""A bounded parser of DICOM headers: the attributes that reading needs, and where the pixels lie.

It reads no more of a file than its header, steps over everything else by arithmetic, and never trusts a length: a
value that would reach beyond the file ends the header with a fault. Explicit and implicit little endian, explicit big
endian, deflated, and files without preamble or file meta group are read.
"""

from __future__ import annotations

import os
import stat
import struct
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medgen.io.dicom.tags import KEPT, LOCATED, PIXELS, SEQUENCES, tag_name
from medgen.io.findings import Refused

__all__ = ["DEFLATED", "Header", "inflate", "looks_like_dicom", "read_header"]

IMPLICIT_LITTLE = "1.2.840.10008.1.2"
EXPLICIT_LITTLE = "1.2.840.10008.1.2.1"
DEFLATED = "1.2.840.10008.1.2.1.99"
EXPLICIT_BIG = "1.2.840.10008.1.2.2"
UNDEFINED = 0xFFFFFFFF

_CHUNK = 16 * 1024
_MOST_ELEMENTS = 4_000_000
_MOST_NESTED = 64
_LARGEST_VALUE = 4 * 2**20
_LONG = frozenset((b"OB", b"OW", b"OF", b"OD", b"OL", b"OV", b"SQ", b"UC", b"UR", b"UT", b"UN", b"SV", b"UV"))
_SHORT = frozenset(b"AE AS AT CS DA DS DT FL FD IS LO LT PN SH SL SS ST TM UI UL US".split())
_BINARY = {"US": "H", "SS": "h", "UL": "I", "SL": "i", "FL": "f", "FD": "d", "OW": "H", "OV": "Q", "UV": "Q", "SV": "q"}
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD

Value = tuple[str, bytes]
Items = list["Elements"]
Elements = dict[int, Any]


@dataclass(slots=True)
class Header:
    """What one file says about itself.

    Args:
        path: the file.
        size: bytes of the data set's source: the file, or what it inflates to.
        elements: value representation and bytes of each kept attribute; for a sequence the list of its items.
        syntax: transfer syntax UID.
        little: byte order.
        pixel_tag: which kind of pixels; 0 where there are none.
        pixel_vr: their value representation.
        pixel_offset: where they begin, in bytes.
        pixel_length: as the header says; -1 for encapsulated pixels, whose length is not stated.
        located: offset and length of the large private attributes.
        fault: why the header could not be read to its end.
    """

    path: Path
    size: int
    elements: Elements = field(default_factory=dict)
    syntax: str = ""
    little: bool = True
    pixel_tag: int = 0
    pixel_vr: str = ""
    pixel_offset: int = 0
    pixel_length: int = 0
    located: dict[int, tuple[int, int]] = field(default_factory=dict)
    fault: Refused | None = None

    def text(self, tag: int, inside: Elements | None = None) -> str:
        """The value as text without padding; ``""`` where it is absent."""
        value = (self.elements if inside is None else inside).get(tag)
        return value[1].decode("latin-1").strip(" \0") if isinstance(value, tuple) else ""

    def numbers(self, tag: int, inside: Elements | None = None) -> tuple[float, ...]:
        """The value's numbers; empty where it is absent.

        Raises:
            ValueError: it holds something else.
        """
        value = (self.elements if inside is None else inside).get(tag)
        if not isinstance(value, tuple) or not value[1]:
            return ()
        vr, content = value
        if vr in _BINARY:
            code = _BINARY[vr]
            count = len(content) // struct.calcsize(code)
            return struct.unpack_from(f"{'<' if self.little else '>'}{count}{code}", content)
        text = content.decode("latin-1").strip(" \0")
        return tuple(float(part) for part in text.split("\\")) if text else ()

    def number(self, tag: int, default: float, inside: Elements | None = None) -> float:
        """The first number of a value, or ``default`` where it is absent.

        Raises:
            ValueError: it holds something else.
        """
        numbers = self.numbers(tag, inside)
        return numbers[0] if numbers else default

    def whole(self, tag: int, default: int) -> int:
        """A value that must be one whole number, or ``default`` where it is absent.

        Raises:
            Refused: ``BAD_HEADER``: it is something else.
        """
        try:
            numbers = self.numbers(tag) or (default,)
            if len(numbers) != 1 or numbers[0] != int(numbers[0]):
                raise ValueError
            return int(numbers[0])
        except (ValueError, OverflowError):
            raise Refused(
                "BAD_HEADER", f"'{self.path.name}': {tag_name(tag)} is not one whole number: {self.text(tag)[:40]!r}."
            ) from None

    def items(self, tag: int, inside: Elements | None = None) -> Items:
        """The items of a sequence; empty where it is absent."""
        value = (self.elements if inside is None else inside).get(tag)
        return value if isinstance(value, list) else []


def looks_like_dicom(path: str | os.PathLike[str]) -> bool:
    """Whether a file begins as DICOM does: with ``DICM`` after 128 bytes, or with a plausible first attribute."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            return False
        with open(path, "rb") as file:
            return _start(file.read(256)) is not None
    except OSError:
        return False


def read_header(path: Path, limit: int) -> Header | None:
    """The header of one file; ``None`` where it is no DICOM file.

    Args:
        path: a regular file.
        limit: bytes that a deflated data set may take once inflated.

    Returns:
        The header; ``fault`` is set where it ends before its time.

    Raises:
        OSError: the file cannot be opened or read.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        size = os.fstat(descriptor).st_size
        window = _Window(descriptor, size)
        start = _start(window.buffer)
        if start is None:
            return None
        header = Header(path, size)
        try:
            _read(window, header, start, limit)
        except _Ended as error:
            header.fault = Refused("TRUNCATED_FILE", f"'{path.name}' ends inside its header ({error}). Copy it again.")
        except _Senseless as error:
            header.fault = Refused("BAD_HEADER", f"'{path.name}': {error}. Copy it again.")
        except Refused as error:
            header.fault = error
        return header
    finally:
        os.close(descriptor)


def inflate(content: bytes, limit: int, name: str) -> bytes:
    """A deflated data set, inflated.

    Raises:
        Refused: it is damaged, ends early, or takes more than ``limit`` bytes.
    """
    stream = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        whole = stream.decompress(content, max(1, limit))
        over = not stream.eof and bool(stream.unconsumed_tail)
    except zlib.error as error:
        raise Refused("UNDECODABLE", f"'{name}' holds damaged deflated data ({error}). Copy it again.") from None
    if over:
        raise Refused("OVER_BUDGET", f"'{name}' inflates to more than {limit} bytes. Raise the memory budget.")
    if not stream.eof:
        raise Refused("TRUNCATED_FILE", f"'{name}' ends inside its deflated data. Copy it again.")
    return whole


class _Ended(Exception):
    """The file ends before the header does."""


class _Senseless(Exception):
    """Bytes that cannot be a header."""


class _Window:
    """The bytes of a file around a position, read as they are asked for."""

    def __init__(self, descriptor: int, size: int, content: bytes | None = None) -> None:
        self.descriptor = descriptor
        self.size = size
        self.base = 0
        self.buffer = os.pread(descriptor, _CHUNK, 0) if content is None else content
        self.elements = 0

    def at(self, position: int, count: int) -> int:
        """Index in ``buffer`` from which ``count`` bytes at ``position`` of the file stand."""
        if position + count > self.size:
            raise _Ended(f"byte {position + count} of {self.size}")
        if position < self.base or position + count > self.base + len(self.buffer):
            self.buffer = os.pread(self.descriptor, max(_CHUNK, count), position)
            self.base = position
            if len(self.buffer) < count:
                raise _Ended(f"byte {position + count} of {self.size}")
        return position - self.base

    def take(self, position: int, count: int) -> bytes:
        start = self.at(position, count)
        return self.buffer[start : start + count]


def _start(head: bytes) -> tuple[int, bool] | None:
    """Where the first attribute stands and whether a file meta group may follow, or None for no DICOM file."""
    if head[128:132] == b"DICM":
        return 132, True
    if len(head) < 8:
        return None
    group, element, vr, _ = struct.unpack_from("<HH2sH", head)
    explicit = vr in _SHORT or vr in _LONG
    if group == 2 and explicit:
        return 0, True
    if group == 8 and element <= 0x0018 and (explicit or struct.unpack_from("<I", head, 4)[0] <= 512):
        return 0, False
    group, element = struct.unpack_from(">HH", head)
    return (0, False) if group == 8 and element <= 0x0018 and explicit else None


def _read(window: _Window, header: Header, start: tuple[int, bool], limit: int) -> None:
    """Fills ``header`` from the file."""
    position, _ = start
    position = _read_meta(window, header, position)
    header.syntax = header.text(0x00020010)
    if header.syntax == DEFLATED:
        content = inflate(os.pread(window.descriptor, window.size - position, position), limit, header.path.name)
        window = _Window(-1, len(content), content)
        header.size, position = len(content), 0
    if position >= window.size:
        raise _Ended(f"byte {window.size}")
    first = window.take(position, min(8, window.size - position))
    explicit = first[4:6] in _SHORT or first[4:6] in _LONG
    header.little = header.syntax != EXPLICIT_BIG and not (first[0] == 0 and first[1] in (2, 8) and explicit)
    if not header.syntax:
        header.syntax = IMPLICIT_LITTLE if not explicit else EXPLICIT_LITTLE if header.little else EXPLICIT_BIG
    _Scanner(window, header).top_level(position, explicit)


def _read_meta(window: _Window, header: Header, position: int) -> int:
    """Reads the file meta group (explicit little endian by definition) and returns where the data set begins."""
    while position + 8 <= window.size:
        index = window.at(position, 8)
        group, element, vr, length = struct.unpack_from("<HH2sH", window.buffer, index)
        if group != 2:
            break
        head = 8
        if vr in _LONG:
            length, head = struct.unpack_from("<I", window.buffer, window.at(position, 12) + 8)[0], 12
        elif vr not in _SHORT:
            length = struct.unpack_from("<I", window.buffer, index + 4)[0]
        tag = group << 16 | element
        if tag in KEPT:
            header.elements[tag] = ("UI", window.take(position + head, min(length, 256)))
        position += head + length
    return position


class _Scanner:
    """Walks the elements of one data set."""

    def __init__(self, window: _Window, header: Header) -> None:
        order = "<" if header.little else ">"
        self.window = window
        self.header = header
        self.short = struct.Struct(f"{order}HH2sH")
        self.long = struct.Struct(f"{order}HHI")
        self.count = struct.Struct(f"{order}I")

    def head(self, position: int, explicit: bool) -> tuple[int, str, int, int]:
        """Tag, value representation, length and start of the value at ``position``."""
        window = self.window
        window.elements += 1
        if window.elements > _MOST_ELEMENTS:
            raise _Senseless(f"more than {_MOST_ELEMENTS} attributes")
        index = window.at(position, 8)
        group, element, vr, length = self.short.unpack_from(window.buffer, index)
        tag = group << 16 | element
        if explicit and group != 0xFFFE:
            if vr in _SHORT:
                return tag, vr.decode(), length, position + 8
            if vr in _LONG:
                index = window.at(position, 12)
                return tag, vr.decode(), self.count.unpack_from(window.buffer, index + 8)[0], position + 12
        length = self.count.unpack_from(window.buffer, index + 4)[0]
        return tag, KEPT[tag][1] if tag in KEPT else "", length, position + 8

    def top_level(self, position: int, explicit: bool) -> None:
        """Walks to the pixels or the end of the data set."""
        header, elements, size = self.header, self.header.elements, self.window.size
        while position < size:
            if size - position < 8:
                if any(self.window.take(position, size - position)):
                    raise _Ended(f"byte {position}")
                return
            tag, vr, length, value = self.head(position, explicit)
            if tag in PIXELS:
                header.pixel_tag, header.pixel_vr, header.pixel_offset = tag, vr, value
                header.pixel_length = -1 if length == UNDEFINED else length
                return
            if tag in LOCATED and length != UNDEFINED:
                header.located[tag] = (value, length)
            position = self.element(elements, tag, vr, length, value, explicit, 0)

    def element(
        self, into: Elements | None, tag: int, vr: str, length: int, value: int, explicit: bool, depth: int
    ) -> int:
        """Keeps or steps over one element; returns where the next begins."""
        if length == UNDEFINED:
            if tag in PIXELS or vr in ("OB", "OW"):
                return self.fragments(value)
            items: Items | None = [] if into is not None and tag in SEQUENCES else None
            end = self.sequence(items, value, None, explicit and vr != "UN", depth + 1)
            if into is not None and items is not None:
                into[tag] = items
            return end
        end = value + length
        if end > self.window.size:
            raise _Ended(f"{tag_name(tag)} has {length} bytes, {max(0, self.window.size - value)} are there")
        if into is None:
            return end
        if tag in SEQUENCES:
            items = []
            self.sequence(items, value, end, explicit and vr != "UN", depth + 1)
            into[tag] = items
        elif tag in KEPT:
            if length > _LARGEST_VALUE:
                raise _Senseless(f"{tag_name(tag)} has {length} bytes")
            into[tag] = (KEPT[tag][1] if vr in ("UN", "OB") else vr, self.window.take(value, length))
        return end

    def sequence(self, items: Items | None, position: int, end: int | None, explicit: bool, depth: int) -> int:
        """Walks the items of a sequence that ends at ``end`` or, where that is None, at its delimiter."""
        if depth > _MOST_NESTED:
            raise _Senseless(f"sequences nested deeper than {_MOST_NESTED}")
        while end is None or position < end:
            tag, _, length, value = self.head(position, False)
            if tag == _SEQUENCE_END:
                return value
            if tag != _ITEM:
                raise _Senseless(f"{tag_name(tag)} where an item of a sequence should be, at byte {position}")
            item: Elements | None = None if items is None else {}
            position = self.item(item, value, None if length == UNDEFINED else value + length, explicit, depth)
            if items is not None and item is not None:
                items.append(item)
        return position

    def item(self, item: Elements | None, position: int, end: int | None, explicit: bool, depth: int) -> int:
        """Walks the elements of one item."""
        if end is not None and end > self.window.size:
            raise _Ended(f"an item at byte {position}")
        if end is not None and item is None:
            return end
        while end is None or position < end:
            tag, vr, length, value = self.head(position, explicit)
            if tag == _ITEM_END:
                return value
            position = self.element(item, tag, vr, length, value, explicit, depth)
        return position

    def fragments(self, position: int) -> int:
        """Steps over encapsulated pixels inside a sequence, such as those of an icon."""
        while True:
            tag, _, length, value = self.head(position, False)
            if tag == _SEQUENCE_END:
                return value
            if tag != _ITEM or length == UNDEFINED:
                raise _Senseless(f"{tag_name(tag)} where a fragment should be, at byte {position}")
            position = value + length
            if position > self.window.size:
                raise _Ended(f"a fragment at byte {value}")
