"""Two-dimensional pictures in: PNG, TIFF, JPEG, BMP.

Frame: a picture's columns are the first array axis; its rows the second, upwards: the first row of the file is the last
index. A slice of a volume in RAS+ axes written by :mod:`medgen.io.write_picture` so has anterior or superior at the
top, and comes back as it was.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from monai.data import MetaTensor

from medgen.checks import MedgenError, check_choice
from medgen.io.findings import Refused
from medgen.io.pictures import _complaints, _faults, _opened, _pages, _size

__all__ = ["KEY", "picture_shape", "read_picture"]

KEY = "medgen"
_TIFF = (".tif", ".tiff")


def picture_shape(path: str | os.PathLike[str]) -> tuple[int, int, int]:
    """Channels, columns and rows of a picture, without its pixels.

    Raises:
        Refused: it cannot be read as a picture.
    """
    path = Path(path)
    if path.name.lower().endswith(_TIFF) and (found := _planar(path)) is not None:
        return found
    pages, rows, columns, colours, _ = _size(path)
    if pages != 1:
        raise Refused("SEVERAL_VOLUMES", f"'{path.name}' holds {pages} pages; one picture is needed. Split it.")
    return colours, columns, rows


def read_picture(path: str | os.PathLike[str], *, role: Literal["image", "label"] = "image") -> MetaTensor:
    """Reads one picture.

    Args:
        path: PNG, TIFF, JPEG or BMP; grey or in colours, or channels as written by
            :func:`medgen.io.write_picture.write_picture`.
        role: ``image``: any finite numbers; ``label``: whole numbers in one channel.

    Returns:
        Shape ``(C, X, Y)`` in the stored unit, float32 (image) or int32 (label); an opacity channel is left out.
        ``affine``: 4x4 diagonal, mm where medgen wrote the file with a spacing, else 1. ``meta``: ``stored`` (type),
        ``spacing`` (mm per axis, or None), ``synthetic``, ``provenance``.

    Raises:
        MedgenError: the file is missing, or its values do not suit the role.
        Refused: it cannot be read as a picture, or holds several.
    """
    check_choice("read_picture", "role", role, ("image", "label"))
    path = Path(path)
    if not path.is_file():
        raise MedgenError(f"{role} '{path}' does not exist or is a folder. Give one picture.")
    channels, columns, rows = picture_shape(path)
    (pixels, *others) = _pages(path)
    if channels > 1 and others:  # one page a channel
        pixels = np.stack([pixels, *others], axis=-1)
    elif channels > 1 and pixels.shape[0] == channels and pixels.shape != (rows, columns, channels):
        pixels = np.moveaxis(pixels, 0, -1)
    if pixels.dtype == bool:
        pixels = pixels.astype(np.uint8)
    values = pixels.reshape(rows, columns, -1)[::-1].transpose(2, 1, 0)
    if channels in (2, 4) and not others and pixels.dtype.kind == "u" and not _notes(path):
        values = values[:-1]  # opacity
    meta = _described(path, pixels.dtype)
    kept = _label(values, path) if role == "label" else _image(values, path)
    steps = meta["spacing"] or [1.0, 1.0]
    affine = torch.diag(torch.tensor([*steps, 1.0, 1.0], dtype=torch.float64))
    return MetaTensor(torch.from_numpy(kept), affine=affine, meta=meta)


def _image(values: np.ndarray, path: Path) -> np.ndarray:
    if not np.isfinite(values).all():
        raise Refused("NON_FINITE", f"image '{path}' holds values that are not finite. Mend them.")
    return np.ascontiguousarray(values, dtype=np.float32)


def _label(values: np.ndarray, path: Path) -> np.ndarray:
    if values.shape[0] != 1:
        raise MedgenError(f"label '{path}' holds colours. Give one channel of ids.")
    whole = np.rint(values)
    if not np.array_equal(whole, values):
        raise MedgenError(f"label '{path}' holds values that are not whole numbers. Give an integer label map.")
    return np.ascontiguousarray(whole, dtype=np.int32)


def _described(path: Path, dtype: np.dtype) -> dict[str, Any]:
    """What the file says of itself."""
    notes = _notes(path)
    spacing = notes.get("spacing_mm")
    good = (
        isinstance(spacing, list) and len(spacing) == 2 and all(isinstance(s, int | float) and s > 0 for s in spacing)
    )
    return {
        "source": str(path),
        "space": "RAS",
        "stored": str(dtype),
        "spacing": [float(s) for s in spacing] if good and spacing is not None else None,
        "synthetic": bool(notes.get("synthetic")),
        "provenance": notes.get("provenance", {}),
    }


def _notes(path: Path) -> dict[str, Any]:
    """The JSON that medgen put into a file; nothing where it is another's."""
    raw: Any = None
    if path.name.lower().endswith(_TIFF):
        import tifffile

        with _faults(path), _complaints(), tifffile.TiffFile(path) as file:
            raw = file.pages[0].tags.valueof(270)  # ImageDescription
    elif path.name.lower().endswith(".png"):
        with _faults(path), _opened(path) as picture:
            raw = getattr(picture, "text", {}).get(KEY)
    try:
        content = json.loads(raw) if isinstance(raw, str) else {}
    except json.JSONDecodeError:
        return {}
    found = content.get(KEY, content) if isinstance(content, dict) else {}
    return found if isinstance(found, dict) and ("synthetic" in found or "spacing_mm" in found) else {}


def _planar(path: Path) -> tuple[int, int, int] | None:
    """Channels, columns and rows of a TIFF file that keeps its channels one after another; None for other files."""
    import tifffile

    with _faults(path), _complaints(), tifffile.TiffFile(path) as file:
        page, count = file.pages[0], len(file.pages)
        if page.axes == "SYX":
            return page.shape[0], page.shape[2], page.shape[1]
    if count > 1 and _notes(path).get("channels") == count:
        return count, page.shape[1], page.shape[0]
    return None
