"""Plain bytes of a file that may be gzipped: never more than asked for, always checked to the last byte.

A gzip file of some kilobytes can hold gigabytes, so nothing here inflates without a limit. The check sum and the length
at the end of each gzip member are verified when the end is reached.
"""

from __future__ import annotations

import gzip
import os
import struct
import zlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import deflate
import numpy as np
from isal import igzip, isal_zlib

from medgen.io.findings import Refused

__all__ = ["head", "inflates_to", "is_gzip", "plain_bytes", "plain_size", "read_array", "write_gzip"]

LARGEST_RATIO = 1032
"""Deflate stores at most 258 bytes in two bits: no gzip file holds more than so many times its size."""

_LEVEL = 2
_RAW = -15
_BLOCK = 1 << 20
_THREADS = 2
_ONE_SHOT = 1 << 25
_CHUNK = 1 << 18
_DAMAGED: Any = (isal_zlib.error, zlib.error, gzip.BadGzipFile)
_GZIP = b"\x1f\x8b"


def write_gzip(file: IO[bytes], pieces: Iterable[Any]) -> int:
    """Writes a gzip file: the same bytes for the same content, without a name or a time.

    Blocks of a fixed size are packed on two threads, so that the bytes do not depend on the number of cores.

    Args:
        file: to write to.
        pieces: the content, piece by piece: anything with contiguous bytes. A piece may be overwritten when the next
            one is asked for.

    Returns:
        The number of bytes written.
    """
    count = file.write(_GZIP + b"\x08" + bytes(6) + b"\xff")
    check, size = 0, 0
    with ThreadPoolExecutor(_THREADS) as pool:
        for piece in pieces:
            view = memoryview(piece).cast("B")
            blocks = [view[start : start + _BLOCK] for start in range(0, len(view), _BLOCK)]
            for packed in pool.map(_packed, blocks):
                count += file.write(packed)
            check, size = isal_zlib.crc32(view, check), size + len(view)
    last = isal_zlib.compressobj(_LEVEL, isal_zlib.DEFLATED, _RAW).flush()
    return count + file.write(last + struct.pack("<II", check, size % 2**32))


def _packed(block: memoryview) -> bytes:
    """A deflate block that ends at a byte, so that blocks can be put together."""
    packer = isal_zlib.compressobj(_LEVEL, isal_zlib.DEFLATED, _RAW)
    made: bytes = packer.compress(block) + packer.flush(isal_zlib.Z_SYNC_FLUSH)
    return made


def is_gzip(path: Path) -> bool:
    """Whether a file begins as gzip files do."""
    with open(path, "rb") as file:
        return file.read(2) == _GZIP


def head(path: Path, count: int) -> bytes:
    """The first ``count`` plain bytes of a file, or fewer where it holds fewer.

    Raises:
        Refused: ``UNDECODABLE`` or ``TRUNCATED_FILE``: not even these can be inflated.
    """
    content = bytearray()
    with _opened(path) as file:
        while len(content) < count and (more := file.read(count - len(content))):
            content += more
    return bytes(content)


def plain_size(path: Path) -> int | None:
    """The size that a file has, or says that it has: the last four bytes of a gzip file, modulo 2**32.

    Returns:
        A number of bytes, to be checked where it is of a gzip file; None where a gzip file is too short to say.
    """
    size = path.stat().st_size
    if not is_gzip(path):
        return size
    if size < 18:
        return None
    with open(path, "rb") as file:
        file.seek(-4, os.SEEK_END)
        (told,) = struct.unpack("<I", file.read(4))
    return int(told)


def inflates_to(path: Path, limit: int, offset: int = 0, zlib_format: bool = False) -> int:
    """How many plain bytes a file holds, counted without keeping them.

    Args:
        path: gzipped or not.
        limit: counting ends above it.
        offset: byte at which the content begins.
        zlib_format: the content is in zlib's format, not in gzip's (MetaImage), or in either.

    Raises:
        Refused: ``UNDECODABLE`` or ``TRUNCATED_FILE``.
    """
    count = 0
    with _opened(path, offset, zlib_format) as file:
        while count <= limit and (more := file.read(_CHUNK)):
            count += len(more)
    return count


def plain_bytes(path: Path, limit: int) -> bytearray:
    """The whole plain content of a file.

    Args:
        path: gzipped or not.
        limit: the largest number of bytes that is accepted.

    Raises:
        Refused: ``OVER_BUDGET``, ``UNDECODABLE`` or ``TRUNCATED_FILE``.
    """
    content = bytearray()
    with _opened(path) as file:
        while more := file.read(_CHUNK):
            content += more
            if len(content) > limit:
                raise Refused("OVER_BUDGET", f"'{path.name}' holds more than {limit} bytes. Allow more memory.")
    return content


def read_array(
    path: Path, offset: int, count: int, dtype: np.dtype, beyond: int | None, target: np.dtype | None = None
) -> tuple[np.ndarray, int]:
    """Numbers of a file, read straight into their array.

    Args:
        path: gzipped or not.
        offset: plain bytes before the first number.
        count: of numbers.
        dtype: as stored.
        beyond: plain bytes after the last number that are counted, at least up to the end of the file if it is near
            (this verifies the check sum); None: the rest is not looked at.
        target: type of the result, which must hold all numbers of ``dtype``; by default ``dtype``.

    Returns:
        Shape ``(count,)``, writable, and the number of bytes that follow, at most ``beyond + 1``.

    Raises:
        Refused: ``TRUNCATED_FILE``: the file ends early; ``UNDECODABLE``.
    """
    if beyond is not None and offset % dtype.itemsize == 0:
        content = _at_once(path, offset + count * dtype.itemsize)
        if content is not None:
            numbers = np.frombuffer(content, dtype, count, offset)
            return numbers if target is None else numbers.astype(target), 0
    array = np.empty(count, target or dtype)
    same = array.dtype == dtype
    step = _CHUNK // dtype.itemsize
    part = np.empty(step, dtype)
    with _opened(path) as file:
        _skip(file, offset, path)
        for start in range(0, count, step):
            numbers = array[start : start + step] if same else part[: min(step, count - start)]
            if (got := _fill(file, numbers)) < numbers.nbytes:
                there, needed = offset + start * dtype.itemsize + got, offset + count * dtype.itemsize
                raise Refused("TRUNCATED_FILE", f"'{path.name}' ends after {there} of {needed} bytes.")
            if not same:
                array[start : start + step] = numbers
        rest = 0
        while beyond is not None and rest <= beyond and (more := file.read(min(_CHUNK, beyond + 1 - rest))):
            rest += len(more)
    return array, rest


def _at_once(path: Path, size: int) -> bytearray | None:
    """The content of a gzip file that says that it holds ``size`` bytes and does; None where it is large or not so.

    libdeflate is the faster one while the content fits into the caches.
    """
    if size > _ONE_SHOT or not is_gzip(path) or plain_size(path) != size:
        return None
    try:
        content: bytearray = deflate.gzip_decompress(path.read_bytes(), size)
    except deflate.DeflateError:
        return None  # the caller's slower way says what is wrong
    return content if len(content) == size else None


def _fill(file: Any, numbers: np.ndarray) -> int:
    """Fills an array with what a file holds next; the number of bytes that were there."""
    target, done = memoryview(numbers.view(np.uint8).data), 0
    while done < len(target) and (got := file.readinto(target[done:])):
        done += got
    return done


def _skip(file: IO[bytes], count: int, path: Path) -> None:
    """Passes over ``count`` plain bytes."""
    while count:
        got = len(file.read(min(count, _CHUNK)))
        if not got:
            raise Refused("TRUNCATED_FILE", f"'{path.name}' ends before its voxels begin.")
        count -= got


@contextmanager
def _opened(path: Path, offset: int = 0, zlib_format: bool = False) -> Iterator[Any]:
    """A file of plain bytes, from ``offset`` on; faults of gzip and zlib become refusals."""
    try:
        with open(path, "rb") as raw:
            raw.seek(offset)
            packed = raw.read(2) == _GZIP
            raw.seek(offset)
            if packed:
                with igzip.IGzipFile(fileobj=raw, mode="rb") as file:
                    yield file
            else:
                yield _Zlib(raw) if zlib_format else raw
    except EOFError as error:
        raise Refused("TRUNCATED_FILE", f"'{path.name}' ends before its packed bytes do. Get a whole copy.") from error
    except _DAMAGED as error:
        raise Refused("UNDECODABLE", f"'{path.name}' is damaged ({error}). Get a whole copy.") from error


class _Zlib:
    """Reads a stream in zlib's format."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.stream = file, zlib.decompressobj()

    def read(self, count: int) -> bytes:
        """Up to ``count`` plain bytes; none at the end."""
        while not self.stream.eof:
            more = self.stream.unconsumed_tail or self.file.read(_CHUNK)
            if not more:
                raise EOFError
            if plain := self.stream.decompress(more, count):
                return plain
        return b""
