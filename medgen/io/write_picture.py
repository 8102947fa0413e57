"""Two-dimensional pictures out: PNG and TIFF, whole or not at all, marked where they are synthetic.

Frame: see :mod:`medgen.io.read_picture`. What a file says of itself is one JSON text: in a PNG under the keyword
``medgen``, in a TIFF as its description.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor

from medgen.checks import MedgenError, check_choice
from medgen.io.atomic import atomic_path
from medgen.io.read_picture import KEY

__all__ = ["write_picture"]

_TYPES = ("uint8", "uint16", "float32")
_TIFF = (".tif", ".tiff")


def write_picture(
    path: str | os.PathLike[str],
    picture: torch.Tensor,
    dtype: str | None = None,
    *,
    window: tuple[float, float] = (0.0, 1.0),
    spacing: tuple[float, float] | None = None,
    synthetic: bool = False,
    provenance: Mapping[str, Any] | None = None,
) -> None:
    """Writes one picture, atomically, the same bytes for the same content.

    Args:
        path: ends in ``.png``, ``.tif`` or ``.tiff``.
        picture: ``(C, X, Y)`` or ``(X, Y)``, y upwards; whole numbers (a label) are stored as they are, floating ones
            as ``dtype`` says.
        dtype: ``uint8`` or ``uint16``: ``window`` becomes the whole range, values beyond are cut; ``float32`` (TIFF
            only): as they are. By default ``uint8`` (PNG) or ``float32`` (TIFF), and for whole numbers the smallest.
        window: values that become the least and the greatest stored number.
        spacing: mm per axis, noted in the file; a ``MetaTensor`` from :func:`~medgen.io.read_picture.read_picture` or
            from a model brings it along.
        synthetic: mark the file so; a ``MetaTensor`` whose ``meta["synthetic"]`` is true is marked in any case.
        provenance: further JSON to note; that of a ``MetaTensor`` by default.

    Raises:
        MedgenError: another ending, shape or type, values that are not finite or do not fit, or a path that cannot be
            written.
    """
    path = Path(path)
    if path.suffix.lower() not in (".png", *_TIFF):
        raise MedgenError(f"write_picture: '{path.name}' must end in .png, .tif or .tiff. Correct the name.")
    meta = picture.meta if isinstance(picture, MetaTensor) else {}
    values = np.asarray(picture.detach().cpu().numpy() if isinstance(picture, torch.Tensor) else picture)
    values = values[None] if values.ndim == 2 else values
    if values.ndim != 3 or 0 in values.shape:
        raise MedgenError(f"write_picture: a picture must be (C, X, Y). Got {values.shape}. Take one slice.")
    stored = _stored(values, dtype, window, path)
    notes: dict[str, Any] = {
        "synthetic": synthetic or bool(meta.get("synthetic")),
        "provenance": dict(provenance if provenance is not None else meta.get("provenance") or {}),
        "channels": len(stored),
    }
    steps = spacing or meta.get("spacing") or _steps(picture)
    if steps is not None:
        notes["spacing_mm"] = [float(step) for step in steps]
    if path.suffix.lower() == ".png":
        _png(path, stored, notes)
    else:
        _tiff(path, stored, notes)


def _steps(picture: Any) -> tuple[float, float] | None:
    """Spacing from an affine that is not the identity."""
    if not isinstance(picture, MetaTensor):
        return None
    x, y = np.linalg.norm(np.asarray(picture.affine, dtype=np.float64)[:, :2], axis=0)
    return None if (x, y) == (1.0, 1.0) else (float(x), float(y))


def _stored(values: np.ndarray, dtype: str | None, window: tuple[float, float], path: Path) -> np.ndarray:
    """Numbers of the stored type, ``(C, rows, columns)``."""
    turned = values.transpose(0, 2, 1)[:, ::-1]
    png = path.suffix.lower() == ".png"
    if values.dtype.kind in "biu":
        low, high = int(values.min()), int(values.max())
        kind = dtype or ("uint8" if high < 256 else "uint16")
        if kind not in ("uint8", "uint16") or low < 0 or high > np.iinfo(kind).max:
            raise MedgenError(f"write_picture: '{path.name}': whole numbers {low}..{high} do not fit {kind}. Map them.")
        return np.ascontiguousarray(turned.astype(kind))
    kind = dtype or ("uint8" if png else "float32")
    check_choice("write_picture", "dtype", kind, _TYPES[:2] if png else _TYPES)
    if not np.isfinite(values).all():
        raise MedgenError(f"write_picture: '{path.name}': values are not finite. Mend them.")
    if kind == "float32":
        return np.ascontiguousarray(turned.astype(np.float32))
    if not window[0] < window[1]:
        raise MedgenError(f"write_picture: window must be (least, greatest). Got {window}. Correct it.")
    top = np.iinfo(kind).max
    share = (turned.astype(np.float64) - window[0]) / (window[1] - window[0])
    return np.ascontiguousarray(np.rint(share.clip(0, 1) * top).astype(kind))


def _png(path: Path, stored: np.ndarray, notes: Mapping[str, Any]) -> None:
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    if len(stored) not in (1, 3) or (len(stored) == 3 and stored.dtype != np.uint8):
        raise MedgenError(
            f"write_picture: a PNG holds one channel, or three of 8 bit. Got {len(stored)} of {stored.dtype} for "
            f"'{path.name}'. Write a .tif."
        )
    info = PngInfo()
    info.add_text("Software", "medgen")
    info.add_text(KEY, json.dumps(notes, sort_keys=True))
    pixels = stored[0] if len(stored) == 1 else np.moveaxis(stored, 0, -1)
    with atomic_path(path) as temporary:
        Image.fromarray(np.ascontiguousarray(pixels)).save(temporary, format="PNG", pnginfo=info)


def _tiff(path: Path, stored: np.ndarray, notes: Mapping[str, Any]) -> None:
    import tifffile

    colours = len(stored) == 3 and stored.dtype == np.uint8
    pixels = np.ascontiguousarray(np.moveaxis(stored, 0, -1)) if colours else stored
    with atomic_path(path) as temporary:
        tifffile.imwrite(
            temporary,
            pixels if colours or len(stored) > 1 else stored[0],
            photometric="rgb" if colours else "minisblack",
            compression="zlib",
            description=json.dumps({KEY: notes}, sort_keys=True),
            metadata=None,
            software="medgen",
        )
