"""Pictures of volumes and slices: label outlines, a filled hole or other sets beside.

Of a volume planes are shown, upright, anterior or superior on top. The patient's left is on the left side of the
picture (neurological convention), and the picture says so. An image with two axes is shown as it is, second axis up.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import nibabel as nib
import numpy as np
import torch
from monai.data import MetaTensor
from scipy.ndimage import maximum_filter

from medgen.checks import MedgenError
from medgen.geometry import spacing_of
from medgen.io.atomic import atomic_path

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["comparison_sheet", "contact_sheet", "inpaint_sheet"]

PLANES = ("axial", "coronal", "sagittal")
MOST_SUBJECTS = 12
_PANEL_INCHES, _DPI = 2.3, 120
_SLICES_A_ROW = 6
_SIDE = "Left of the picture = left of the patient."


class _Panel(NamedTuple):
    """One volume to show, in RAS+ voxel order: values and, where there is one, a label map to outline.

    A slice is a volume of one voxel along its third axis.
    """

    title: str
    values: np.ndarray
    spacing: np.ndarray
    window: tuple[float, float]
    label: np.ndarray | None = None


class _Cell(NamedTuple):
    """One plane of a panel, through a voxel."""

    panel: _Panel
    plane: int
    at: tuple[int, int, int]
    titled: bool


def contact_sheet(
    volumes: Sequence[Mapping[str, MetaTensor]], path: str | os.PathLike[str], names: Sequence[str] | None = None
) -> None:
    """One row a subject: three planes of the image, and the same with the outlines of its label map.

    Planes go through the middle of what is labelled. Slices stand side by side. The same volumes give the same bytes.

    Args:
        volumes: each ``{"image": (C, X, Y, Z), "label": (1, X, Y, Z)}``, with affine, or without the third axis;
            ``"label"`` may be missing. Of the image the first channel is shown, of the subjects the first 12.
        path: a ``.png`` file.
        names: of the subjects; by default their numbers. Where there are more of them than volumes, the picture says
            how many are not shown.

    Raises:
        MedgenError: no volume, or a path that cannot be written.
    """
    if not volumes:
        raise MedgenError("contact_sheet: volumes is empty. Give at least one subject.")
    names = names or [str(number) for number in range(1, len(volumes) + 1)]
    rows: list[list[_Cell]] = []
    shown = volumes[:MOST_SUBJECTS]
    for name, volume in zip(names, shown, strict=False):
        plain, outlined, at = _subject(name, volume)
        panels = [plain] if outlined is None else [plain, outlined._replace(title=f"{name}, labels")]
        rows.append([cell for panel in panels for cell in _cells(panel, at)])
    flat = all(_is_slice(volume) for volume in shown)
    if flat:
        cells = [cell for row in rows for cell in row]
        rows = [cells[start : start + _SLICES_A_ROW] for start in range(0, len(cells), _SLICES_A_ROW)]
    more = len(names) - len(shown)
    _draw(rows, path, "Synthetic images" + (f", {more} more subjects not shown" if more > 0 else ""), flat=flat)


def comparison_sheet(
    sets: Mapping[str, Sequence[Mapping[str, MetaTensor]]], path: str | os.PathLike[str], columns: int = 6
) -> None:
    """Sets of subjects one below the other, a sagittal and a coronal plane of each, labels outlined.

    All are shown with the first set's black and white, so that a difference in brightness shows. Planes go through the
    middle of what is labelled. Of slices there is one row a set.

    Args:
        sets: name of each set and its subjects, as in :func:`contact_sheet`; the reference first.
        path: a ``.png`` file.
        columns: how many subjects of each set are shown.

    Raises:
        MedgenError: no set, or one without subjects; a path that cannot be written.
    """
    if not sets or not all(sets.values()):
        raise MedgenError("comparison_sheet: each set needs a subject. Got an empty one, or no set. Leave it out.")
    reference = next(iter(sets.values()))[:columns]
    windows = [_window(volume["image"][:1]) for volume in reference]
    window = float(np.mean([low for low, _ in windows])), float(np.mean([high for _, high in windows]))
    flat = all(_is_slice(volume) for volumes in sets.values() for volume in volumes[:columns])
    rows: list[list[_Cell]] = []
    for name, volumes in sets.items():
        found = [_subject(name, volume, window) for volume in volumes[:columns]]
        for plane in (0,) if flat else (2, 1):
            row = [_Cell(outlined or plain, plane, at, False) for plain, outlined, at in found]
            rows.append([cell._replace(titled=k == 0 and plane != 1) for k, cell in enumerate(row)])
    _draw(rows, path, "Sets: " + ", ".join(sets), flat=flat)


def inpaint_sheet(
    image: MetaTensor, inpaint_mask: MetaTensor, filled: MetaTensor, path: str | os.PathLike[str]
) -> None:
    """Three planes through the hole: the scan, the hole in it, what was filled in.

    Args:
        image: shape ``(1, X, Y, Z)`` or ``(1, X, Y)``, with affine.
        inpaint_mask: the same grid; non-zero = regenerated.
        filled: the same grid.
        path: a ``.png`` file.

    Raises:
        MedgenError: an empty mask, or a path that cannot be written.
    """
    hole = _canonical(inpaint_mask)[0] != 0
    if not hole.any():
        raise MedgenError("inpaint_sheet: inpaint_mask is empty; there is nothing to show. Mark some voxels.")
    window = _window(image)
    outline = hole.astype(np.int16)
    blanked = image * (inpaint_mask == 0)
    rows = [
        [_panel("scan", image, window), _panel("hole", blanked, window, outline)],
        [_panel("filled", filled, window), _panel("filled, outline", filled, window, outline)],
    ]
    cells = [[cell for panel in row for cell in _cells(panel, _middle(hole))] for row in rows]
    _draw(cells, path, "What is inside the outline is synthetic", flat=_is_slice({"image": image}))


def _is_slice(volume: Mapping[str, MetaTensor]) -> bool:
    return volume["image"].ndim == 3


def _subject(
    name: str, volume: Mapping[str, MetaTensor], window: tuple[float, float] | None = None
) -> tuple[_Panel, _Panel | None, tuple[int, int, int]]:
    """Its image, the same with labels where it has any, and the voxel that planes go through."""
    image, label = volume["image"][:1], volume.get("label")
    ids = _canonical(label)[0] if label is not None else None
    plain = _panel(name, image, window or _window(image))
    where = ids > 0 if ids is not None and (ids > 0).any() else plain.values > plain.values.mean()
    return plain, None if ids is None else plain._replace(label=ids), _middle(where)


def _cells(panel: _Panel, at: tuple[int, int, int]) -> list[_Cell]:
    """The three planes of a panel; of a slice the one."""
    planes = (0,) if panel.values.shape[2] == 1 else (0, 1, 2)
    return [_Cell(panel, plane, at, plane == 0) for plane in planes]


def _panel(title: str, volume: MetaTensor, window: tuple[float, float], label: np.ndarray | None = None) -> _Panel:
    values, spacing = _canonical(volume)
    return _Panel(title, values, spacing, window, label)


def _canonical(volume: MetaTensor) -> tuple[np.ndarray, np.ndarray]:
    """Values ``(X, Y, Z)`` flipped and permuted to the RAS+ voxel order nearest to the affine, and their spacing.

    A slice ``(1, X, Y)`` becomes ``(X, Y, 1)`` as it is: its axes may be any two of the body's.
    """
    affine = volume.affine.cpu().numpy()
    if volume.ndim == 3:
        return volume.as_tensor().detach().cpu().numpy()[0, :, :, None], spacing_of(affine)
    orientation = nib.orientations.io_orientation(affine)
    values = nib.orientations.apply_orientation(volume.as_tensor().detach().cpu().numpy()[0], orientation)
    order = np.argsort(orientation[:, 0])
    return values, spacing_of(affine)[order]


def _window(image: torch.Tensor) -> tuple[float, float]:
    """What is shown black and white: the 0.5th percentile (0 at most), and the 97th of what is above the mean.

    Of a head, the scalp is bright beyond that: brain and scalp at once would leave the brain dim.
    """
    values = np.asarray(image.detach().cpu().numpy(), dtype=np.float32)
    signal = values[values > values.mean()]
    high = float(np.percentile(signal, 97)) if signal.size else float(values.max()) + 1.0
    return min(0.0, float(np.percentile(values, 0.5))), high


def _middle(where: np.ndarray) -> tuple[int, int, int]:
    """The voxel nearest to the centroid of a mask; the array's centre if that is empty."""
    found = np.argwhere(where)
    center = found.mean(axis=0) if len(found) else np.array(where.shape) / 2
    x, y, z = (int(c) for c in np.rint(center))
    return x, y, z


def _slice(values: np.ndarray, plane: int, at: tuple[int, int, int]) -> np.ndarray:
    """One plane of a RAS+ array as picture rows from top to bottom: axial, coronal or sagittal."""
    axis = 2 - plane
    return np.take(values, at[axis], axis=axis).T[::-1]


def _aspect(spacing: np.ndarray, plane: int) -> float:
    """Height over width of one voxel in a plane's picture."""
    across, up = [axis for axis in range(3) if axis != 2 - plane]
    return float(spacing[up] / spacing[across])


def _outlines(label: np.ndarray) -> np.ndarray:
    """RGBA picture of the borders between ids, as fine as the screen allows; each id has a colour of its own."""
    from matplotlib.colors import hsv_to_rgb

    pixels_per_voxel = _PANEL_INCHES * _DPI / max(label.shape)
    magnify = max(1, int(pixels_per_voxel))
    large = label.repeat(magnify, axis=0).repeat(magnify, axis=1).astype(np.int64)
    owner = np.zeros_like(large)  # the larger id of a border's two
    for here, there in ((np.s_[:-1], np.s_[1:]), (np.s_[:, :-1], np.s_[:, 1:])):
        differs = large[here] != large[there]
        owner[here] = np.where(differs, np.maximum(large[here], large[there]), owner[here])
    owner = maximum_filter(owner, size=int(np.ceil(1 / min(1.0, pixels_per_voxel))))
    hue = owner * 0.6180339887 % 1.0  # the golden ratio keeps successive ids apart
    colour = hsv_to_rgb(np.stack([hue, np.full(hue.shape, 0.8), np.ones(hue.shape)], axis=-1))
    return np.concatenate([colour, (owner > 0)[..., None]], axis=-1)


def _draw(rows: Sequence[Sequence[_Cell]], path: str | os.PathLike[str], title: str, *, flat: bool) -> None:
    """Draws all cells into one PNG file, without time, name or version in it."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = max(len(row) for row in rows)
    height, width = _PANEL_INCHES * len(rows) + 0.35, _PANEL_INCHES * columns
    figure: Figure = Figure(figsize=(width, height), dpi=_DPI, facecolor="black")
    FigureCanvasAgg(figure)
    top = 1 - 0.35 / height
    axes = figure.subplots(
        len(rows), columns, squeeze=False, gridspec_kw={"wspace": 0.02, "hspace": 0.02, "top": top, "bottom": 0.0,
                                                        "left": 0.0, "right": 1.0}
    )  # fmt: skip
    figure.text(0.005, 1 - 0.24 / height, f"{title}." + ("" if flat else f" {_SIDE}"), color="w", size=8)
    for row, cells in zip(axes, rows, strict=True):
        for axis in row:
            axis.set_axis_off()
        for axis, cell in zip(row, cells, strict=False):
            _show(axis, cell)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": None}, facecolor="black")


def _show(axis: Axes, cell: _Cell) -> None:
    """One plane of one panel."""
    panel, plane, at = cell.panel, cell.plane, cell.at
    picture = _slice(panel.values, plane, at)
    extent = (0.0, float(picture.shape[1]), float(picture.shape[0]), 0.0)
    low, high = panel.window
    aspect = _aspect(panel.spacing, plane)
    axis.imshow(picture, cmap="gray", vmin=low, vmax=max(high, low + 1e-6), aspect=aspect, extent=extent)
    if panel.label is not None:
        outlines = _outlines(_slice(panel.label, plane, at))
        axis.imshow(outlines, aspect=aspect, extent=extent, interpolation="nearest")
    if cell.titled:
        axis.text(0.02, 0.98, panel.title, color="w", size=7, va="top", transform=axis.transAxes)
