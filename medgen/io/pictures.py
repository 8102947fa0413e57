"""Plain pictures and stacks of them: no orientation, no place, no spacing.

A picture is refused unless its caller asks for it as a bare array. Then its columns are the first array axis, its rows
the second and its pages (or the files, in the order given) the third, and voxel indices stand for mm.
"""

from __future__ import annotations

import logging
import math
import struct
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor

from medgen.io.findings import FileRecord, Finding, Refused, Survey
from medgen.io.nifti_values import finite, smallest_type

__all__ = ["PICTURES", "PictureSource", "survey_pictures"]

_TIFF = (".tif", ".tiff")
PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", *_TIFF)
"""Endings of the names of files that hold pictures."""
_READ_ERRORS = (
    OSError, ValueError, TypeError, LookupError, ArithmeticError, AttributeError, SyntaxError, EOFError, RuntimeError,
    NotImplementedError, ImportError, Warning, struct.error, zlib.error,
)  # fmt: skip


@dataclass
class PictureSource:
    """A stack of pictures; see :class:`medgen.io.findings.VolumeSource`.

    Args:
        name: of the first file without its ending.
        files: in the order of their slices; or one file of several pages.
        shape: columns, rows, pages.
        channels: colours per pixel.
        findings: what is to be said.
    """

    name: str
    files: tuple[Path, ...]
    shape: tuple[int, int, int]
    channels: int
    findings: tuple[Finding, ...]

    @property
    def affine(self) -> np.ndarray:
        """The identity: voxel indices as mm."""
        return np.eye(4)

    def load(self) -> MetaTensor:
        """Values ``(C, X, Y, Z)``.

        Raises:
            Refused: ``UNDECODABLE``, ``NON_FINITE``.
        """
        pages = [page for file in self.files for page in _pages(file)]
        if len(pages) != self.shape[2] or any(page.shape != pages[0].shape for page in pages):
            raise Refused("UNDECODABLE", f"'{self.files[0].name}' has other pages than its header says. Convert it.")
        x, y, z = self.shape
        values = smallest_type(np.stack(pages).reshape(z, y, x, self.channels).T)
        finite(values, False, self.files[0].name)
        meta = {"source": str(self.files[0]), "space": "RAS"}
        return MetaTensor(torch.from_numpy(values), affine=torch.eye(4, dtype=torch.float64), meta=meta)


def survey_pictures(
    paths: Sequence[Path], *, channels: bool, without_geometry: bool, memory_budget: int
) -> Survey:  # fmt: skip
    """What pictures hold, as one volume; see :func:`medgen.io.raster.survey_raster`."""
    try:
        if not without_geometry:
            raise Refused(
                "NO_GEOMETRY",
                f"'{paths[0].name}' is a picture without orientation, place or spacing. Give --without-geometry.",
            )
        sizes = [_size(path) for path in paths]
        if len({size[1:] for size in sizes}) != 1:
            raise Refused("SLICE_SIZE_DIFFERS", "the pictures differ in size. Give those of one stack.")
        pages = sum(size[0] for size in sizes)
        rows, columns, colours, itemsize = sizes[0][1:]
        source = _source(paths, (columns, rows, pages), colours, itemsize, channels, memory_budget)
    except Refused as refused:
        return Survey([], [FileRecord(path, "refused", refused.code, refused.reason) for path in paths])
    return Survey([source], [FileRecord(path, "used", volume=0) for path in paths])


def _source(
    paths: Sequence[Path],
    shape: tuple[int, int, int],
    colours: int,
    itemsize: int,
    channels: bool,
    memory_budget: int,
) -> PictureSource:
    name, needed = paths[0].name, math.prod(shape) * colours * (2 * itemsize + 8)
    if min(shape) < 2:
        raise Refused("SINGLE_SLICE", f"'{name}' has shape {shape}; one 3D volume is needed, and this is a slice.")
    if colours > 1 and not channels:
        raise Refused("UNSUPPORTED_DTYPE", f"'{name}' holds colours. Give --channels (channels=True), or convert it.")
    if needed > memory_budget:
        raise Refused("OVER_BUDGET", f"'{name}' needs {needed} bytes of memory; {memory_budget} are allowed.")
    finding = Finding("NO_GEOMETRY", "no geometry; voxel indices were taken as mm, as asked")
    return PictureSource(paths[0].stem, tuple(paths), shape, colours, (finding,))


def _size(path: Path) -> tuple[int, int, int, int, int]:
    """Pages, rows, columns, colours and bytes per number of a picture file, without its pixels."""
    if path.name.lower().endswith(_TIFF):
        return _tiff_size(path)
    with _faults(path), _opened(path) as picture:
        mode = picture.mode
        if mode not in ("1", "L", "I", "F", "I;16", "I;16B", "RGB", "RGBA"):
            raise Refused("UNSUPPORTED_DTYPE", f"'{path.name}' has pixels of the kind {mode}. Convert it.")
        pages = int(getattr(picture, "n_frames", 1))
        return pages, picture.height, picture.width, len(picture.getbands()), 1 if mode in ("1", "L") else 4


def _tiff_size(path: Path) -> tuple[int, int, int, int, int]:
    """:func:`_size` of a TIFF file; its pages must lie inside the file."""
    import tifffile

    size = path.stat().st_size
    with _faults(path), _complaints() as complaints, tifffile.TiffFile(path) as file:
        first, count = file.pages[0], len(file.pages)
        for page in file.pages:
            if any(start + count > size for start, count in zip(page.dataoffsets, page.databytecounts, strict=False)):
                raise Refused("TRUNCATED_FILE", f"'{path.name}' ends before its pixels do. Get a whole copy.")
            if page.shape != first.shape or page.dtype != first.dtype:
                raise Refused("SLICE_SIZE_DIFFERS", f"'{path.name}' has pages of several sizes. Split it.")
        if complaints:  # after one, pages are missing
            raise Refused("TRUNCATED_FILE", f"'{path.name}' is not whole ({complaints[0]}). Get a whole copy.")
        if first.dtype is None or first.dtype.kind not in "biuf" or first.axes not in ("YX", "YXS"):
            raise Refused("UNSUPPORTED_DTYPE", f"'{path.name}' has pixels of the kind {first.dtype}. Convert it.")
        colours = first.shape[2] if len(first.shape) == 3 else 1
        return count, first.shape[0], first.shape[1], colours, first.dtype.itemsize


def _pages(path: Path) -> list[np.ndarray]:
    """Pixels of each page, ``(rows, columns)`` or ``(rows, columns, colours)``."""
    if path.name.lower().endswith(_TIFF):
        import tifffile

        with _faults(path), tifffile.TiffFile(path) as file:
            return [page.asarray() for page in file.pages]
    pages = []
    with _faults(path), _opened(path) as picture:
        for number in range(int(getattr(picture, "n_frames", 1))):
            picture.seek(number)
            pages.append(np.array(picture))
    return pages


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A Pillow image; one of very many pixels is refused."""
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with Image.open(path) as picture:
            yield picture


@contextmanager
def _complaints() -> Iterator[list[str]]:
    """What tifffile logs in the meantime: it does not raise where pages cannot be found."""
    made: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: made.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("tifffile")
    logger.addHandler(handler)
    try:
        yield made
    finally:
        logger.removeHandler(handler)


@contextmanager
def _faults(path: Path) -> Iterator[None]:
    """Whatever the readers of pictures raise, as a refusal."""
    from PIL import Image

    try:
        yield
    except Refused:
        raise
    except (Image.DecompressionBombWarning, Image.DecompressionBombError, MemoryError) as error:
        raise Refused("OVER_BUDGET", f"'{path.name}' has too many pixels ({error}). Cut it.") from error
    except _READ_ERRORS as error:
        raise Refused("UNDECODABLE", f"'{path.name}' cannot be read as a picture ({error}). Convert it.") from error
