"""From any input grid to a model's grid, and exactly back.

Frames: every affine maps voxel indices ``(i, j, k)`` (voxel centres) to RAS+ mm, as NIfTI has it; DICOM and ITK use
LPS+, which differs in the sign of the first two world axes and never appears here. A voxel reaches half a step beyond
its centre on every side.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from monai.data import MetaTensor
from torch.nn.functional import grid_sample

from medgen.checks import MedgenError, check_choice, check_positive
from medgen.intensity import IntensityWindow

__all__ = ["ModelGrid", "affine_fault", "resample", "same_grid", "spacing_of"]

Mode = Literal["area", "linear", "nearest", "label"]
_MODES = ("area", "linear", "nearest", "label")
_BLENDING = ("area", "linear")
_POINTS_PER_SLAB = 2_000_000
_IDS_PER_PASS = 8

NORMAL_AXIS = {"axial": 2, "coronal": 1, "sagittal": 0}
"""World axis (RAS+) that the slices of a plane lie across."""


def affine_fault(affine: np.ndarray) -> str | None:
    """What is wrong with an affine, or None: it is finite, no axis is empty and no two axes are nearly parallel.

    Args:
        affine: 4x4, any unit of length.

    Example:
        >>> affine_fault(np.diag([1.0, 2.0, 0.0, 1.0]))
        'an axis of no length'
    """
    if not np.isfinite(affine).all():
        return "not finite"
    if not (np.abs(affine) < 1e9).all():
        return "lengths beyond reason"
    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    if not (sizes > 1e-9).all():
        return "an axis of no length"
    if abs(np.linalg.det(affine[:3, :3] / sizes)) < 1e-4:
        return "it cannot be inverted"
    return None


def spacing_of(affine: np.ndarray) -> np.ndarray:
    """The distance of neighbouring voxels along each voxel axis.

    Args:
        affine: RAS+ mm, 4x4.

    Returns:
        Shape ``(3,)``, mm, in voxel axis order.

    Example:
        >>> spacing_of(np.diag([-1.0, 2.0, 3.0, 1.0])).tolist()
        [1.0, 2.0, 3.0]
    """
    return np.linalg.norm(np.asarray(affine, dtype=np.float64)[:3, :3], axis=0)


def same_grid(first: MetaTensor, second: MetaTensor, tolerance_mm: float = 1e-3) -> bool:
    """Whether two volumes have the same spatial shape and the same corners in mm.

    Args:
        first: shape ``(C, X, Y, Z)``.
        second: shape ``(C, X, Y, Z)``.
        tolerance_mm: the largest distance of corresponding corners.
    """
    if first.shape[1:] != second.shape[1:]:
        return False
    return _corner_distance(_array(first.affine), _array(second.affine), tuple(first.shape[1:])) <= tolerance_mm


@dataclass(frozen=True, eq=False)
class ModelGrid:
    """A model's grid laid over an input's grid, and the model's intensities over the input's: there and back.

    Made by :meth:`around`. Oblique and sheared inputs are turned to the world's axes, flipped and permuted ones put
    right, and cropped or padded to the model's size. With a window (:meth:`with_window`), intensities become the
    model's on the way there and the input's own on the way back; labels and masks (modes ``label`` and ``nearest``)
    keep their values.

    Attributes:
        affine: of the model's grid, RAS+ mm, 4x4 float64, diagonal with positive spacing.
        shape: of the model's grid, ``(X, Y, Z)``.
        source_affine: of the input's grid, RAS+ mm, 4x4 float64.
        source_shape: of the input's grid, ``(I, J, K)``.
        window: from the input's intensities to the model's; None: they are the same.

    Example:
        >>> grid = ModelGrid.around(np.diag([-1.0, 1.0, 3.0, 1.0]), (20, 20, 8), spacing=(2, 2, 2), multiple=4)
        >>> grid.shape
        (12, 12, 12)
        >>> volume = MetaTensor(torch.ones(1, 20, 20, 8), affine=torch.diag(torch.tensor([-1.0, 1.0, 3.0, 1.0])))
        >>> back = grid.from_model(grid.to_model(volume))
        >>> tuple(back.shape), bool(torch.allclose(back.affine, volume.affine.double()))
        ((1, 20, 20, 8), True)
        >>> grid.with_window(IntensityWindow(0.0, 4.0)).to_model(volume).unique().tolist()
        [0.0, 0.25]
    """

    affine: np.ndarray
    shape: tuple[int, int, int]
    source_affine: np.ndarray
    source_shape: tuple[int, int, int]
    window: IntensityWindow | None = None

    @classmethod
    def around(
        cls,
        affine: np.ndarray | torch.Tensor,
        shape: Sequence[int],
        spacing: Sequence[float],
        size: Sequence[int] | None = None,
        multiple: int | Sequence[int] | None = None,
        center_mm: Sequence[float] | None = None,
    ) -> ModelGrid:
        """Lays a model's grid around a point of an input's grid.

        Where an input axis is parallel to a world axis and one spacing is a whole multiple of the other, the edges of
        the voxels are made to coincide (a shift of at most half a voxel), so that equal spacing resamples nothing.

        Args:
            affine: of the input, RAS+ mm, 4x4.
            shape: of the input, ``(I, J, K)``.
            spacing: of the model's grid, mm, along R, A, S.
            size: of the model's grid along R, A, S; by default what covers the whole input.
            multiple: rounds the covering size up to a multiple of this; excludes ``size``.
            center_mm: RAS+ point of the model grid's centre; by default the input's centre.

        Raises:
            MedgenError: an affine that cannot be inverted, a spacing or size not above 0, or both size and multiple.
        """
        source_affine, source_shape = _checked_grid(affine, shape)
        steps = _three(spacing, "spacing")
        center = _center(source_affine, source_shape) if center_mm is None else np.asarray(center_mm, dtype=np.float64)
        if size is not None and multiple is not None:
            raise MedgenError("ModelGrid.around: size and multiple exclude each other. Give one.")
        if size is not None:
            counts = _three(size, "size").astype(int)
        else:
            unit = _three([multiple] * 3 if isinstance(multiple, int) else multiple or [1] * 3, "multiple")
            counts = _covering_size(source_affine, source_shape, steps, center, unit)
        lower_edge = _snap(center - steps * counts / 2, steps, source_affine)
        model_affine = np.diag([*steps, 1.0])
        model_affine[:3, 3] = lower_edge + steps / 2
        return cls(model_affine, _shape3(counts), source_affine, source_shape)

    def with_window(self, window: IntensityWindow | None) -> ModelGrid:
        """The same grids with another intensity window."""
        return replace(self, window=window)

    def to_model(self, volume: MetaTensor, mode: Mode = "area", fill: float = 0.0) -> MetaTensor:
        """Resamples an input volume onto the model's grid.

        Args:
            volume: shape ``(C, I, J, K)`` on the input's grid.
            mode: see :func:`resample`.
            fill: the value where the input does not reach, in the input's unit.

        Returns:
            Shape ``(C, X, Y, Z)`` on the model's grid, affine included; in the model's intensities (float32) where
            there is a window and the mode blends.

        Raises:
            MedgenError: ``volume`` is on another grid.
        """
        _check_on_grid("ModelGrid.to_model", volume, self.source_affine, self.source_shape)
        moved = _moved(volume, self.source_affine, self.affine, self.shape, mode, fill)
        return moved if self.window is None or mode not in _BLENDING else self.window.forward(moved)

    def from_model(self, volume: torch.Tensor, mode: Mode = "area", fill: float = 0.0) -> MetaTensor:
        """Resamples a volume on the model's grid back onto the exact input grid.

        Args:
            volume: shape ``(C, X, Y, Z)`` on the model's grid, in the model's intensities where there is a window.
            mode: see :func:`resample`.
            fill: the value where the model's grid does not reach, in the input's unit; see :meth:`covered`.

        Returns:
            Shape ``(C, I, J, K)`` with the input's affine, in the input's unit.

        Raises:
            MedgenError: ``volume`` is on another grid.
        """
        _check_on_grid("ModelGrid.from_model", volume, self.affine, self.shape)
        if self.window is not None and mode in _BLENDING:
            volume = self.window.inverse(volume)
        return _moved(volume, self.affine, self.source_affine, self.source_shape, mode, fill)

    def difference_from_model(self, difference: torch.Tensor) -> MetaTensor:
        """Like :meth:`from_model` for the difference of two images: scaled by the window, but not shifted.

        Args:
            difference: shape ``(C, X, Y, Z)`` on the model's grid, in the model's intensities.

        Returns:
            Shape ``(C, I, J, K)`` with the input's affine, in the input's unit; 0 where the model does not reach.

        Raises:
            MedgenError: ``difference`` is on another grid.
        """
        _check_on_grid("ModelGrid.difference_from_model", difference, self.affine, self.shape)
        if self.window is not None:
            difference = difference * (self.window.high - self.window.low)
        return _moved(difference, self.affine, self.source_affine, self.source_shape, "area", 0.0)

    def put_back(
        self, volume: MetaTensor, result: torch.Tensor, changed: torch.Tensor | None = None, mode: Mode = "area"
    ) -> MetaTensor:
        """The input volume with a result on the model's grid in place of some of its voxels.

        Args:
            volume: shape ``(C, I, J, K)`` on the input's grid.
            result: shape ``(C, X, Y, Z)`` on the model's grid, in the model's intensities where there is a window.
            changed: shape ``(1, I, J, K)``, non-zero = take the result; by default all that the model's grid reaches.
            mode: see :func:`resample`.

        Returns:
            Shape, grid and type of ``volume``; its own bits where nothing changed or the model's grid does not reach.
            Whole-number types take rounded values, cut to their range.

        Raises:
            MedgenError: a volume, result or mask on another grid.
        """
        _check_on_grid("ModelGrid.put_back", volume, self.source_affine, self.source_shape)
        take = self.covered()[None].to(volume.device)
        if changed is not None:
            _check_on_grid("ModelGrid.put_back", changed, self.source_affine, self.source_shape)
            take = take & (torch.as_tensor(changed) != 0).to(volume.device)
        values = self.from_model(result, mode).as_tensor().to(volume.device)
        if not volume.is_floating_point() and values.is_floating_point():
            limits = torch.iinfo(volume.dtype)
            values = values.double().round().clamp(limits.min, limits.max)
        merged = torch.where(take, values.to(volume.dtype), volume.as_tensor())
        return MetaTensor(merged, affine=volume.affine, meta=_meta_of(volume))

    def covered(self) -> torch.Tensor:
        """Which input voxels have their centre inside the model's grid: bool, shape ``(I, J, K)``."""
        inside = torch.ones((1, *self.shape))
        return resample(inside, self.affine, self.source_affine, self.source_shape, mode="nearest")[0] > 0.5


def resample(
    volume: torch.Tensor,
    affine: np.ndarray,
    new_affine: np.ndarray,
    new_shape: Sequence[int],
    mode: Mode = "area",
    fill: float = 0.0,
) -> torch.Tensor:
    """Values of a volume at the voxels of another grid.

    Args:
        volume: shape ``(C, I, J, K)``; floating for area and linear.
        affine: of ``volume``, RAS+ mm, 4x4.
        new_affine: of the result, RAS+ mm, 4x4.
        new_shape: ``(X, Y, Z)`` of the result.
        mode: ``"area"``: the mean over the new voxel, by trilinear values at enough points inside it (this is the
            anti-aliasing; it equals linear where the new grid is not coarser); ``"linear"``: trilinear at the centre;
            ``"nearest"``: the nearest voxel's value at the centre; ``"label"``: the id with the largest share of the
            new voxel, the shares being those of ``"area"`` on one-hot channels (the smaller id where two are equal).
        fill: the value of voxels whose centre lies outside ``volume``.

    Returns:
        Shape ``(C, X, Y, Z)``, dtype of ``volume``, on its device.

    Raises:
        MedgenError: an unknown mode, or whole numbers with area or linear.
    """
    check_choice("resample", "mode", mode, _MODES)
    plain = volume.as_tensor() if isinstance(volume, MetaTensor) else volume
    if mode in ("area", "linear") and not plain.is_floating_point():
        raise MedgenError(f"resample: mode '{mode}' would blend {plain.dtype} values. Use mode 'label', or .float().")
    matrix = np.linalg.inv(np.asarray(affine, dtype=np.float64)) @ np.asarray(new_affine, dtype=np.float64)
    counts = _points_per_voxel(matrix) if mode in ("area", "label") else (1, 1, 1)
    shape = _shape3(new_shape)
    result = torch.full((plain.shape[0], *shape), fill, dtype=plain.dtype, device=plain.device)
    ids = plain.unique() if mode == "label" else None
    for rows in _slabs(shape):
        points = _coordinates(matrix, rows, shape, plain)
        inside = _inside(points, plain.shape[1:])
        if not inside.any():
            continue
        if ids is None:
            values = _mean_over_voxel(plain, matrix, points, counts, "nearest" if mode == "nearest" else "bilinear")
        else:
            values = _majority(plain, ids, matrix, points, counts)
        result[:, rows] = torch.where(inside, values.to(plain.dtype), result[:, rows])
    return result


def _moved(
    volume: torch.Tensor,
    affine: np.ndarray,
    new_affine: np.ndarray,
    new_shape: tuple[int, int, int],
    mode: Mode,
    fill: float,
) -> MetaTensor:
    """:func:`resample` that carries ``meta`` along."""
    values = resample(volume, affine, new_affine, new_shape, mode, fill)
    return MetaTensor(values, affine=torch.from_numpy(new_affine), meta=_meta_of(volume))


def _meta_of(volume: torch.Tensor) -> dict[str, Any]:
    """What a volume carries along, but for what belongs to its grid."""
    meta = dict(volume.meta) if isinstance(volume, MetaTensor) else {}
    for stale in ("affine", "original_affine", "spatial_shape"):
        meta.pop(stale, None)
    return meta


def _points_per_voxel(matrix: np.ndarray) -> tuple[int, int, int]:
    """How many sample points along each new axis keep neighbours within one old voxel of each other."""
    x, y, z = (max(1, int(np.ceil(step - 1e-3))) for step in np.abs(matrix[:3, :3]).max(axis=0))
    return x, y, z


def _slabs(shape: tuple[int, int, int]) -> Iterator[slice]:
    """Slices of the first axis that bound the memory of one pass."""
    rows = max(1, _POINTS_PER_SLAB // max(1, shape[1] * shape[2]))
    for start in range(0, shape[0], rows):
        yield slice(start, min(start + rows, shape[0]))


def _coordinates(matrix: np.ndarray, rows: slice, shape: tuple[int, int, int], like: torch.Tensor) -> torch.Tensor:
    """Old voxel coordinates ``(x, y, z, 3)`` of the new voxels' centres, at least float32."""
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    axes = [torch.arange(rows.start, rows.stop), torch.arange(shape[1]), torch.arange(shape[2])]
    steps = torch.from_numpy(matrix[:3, :3].T.copy())
    x, y, z = (axis.double()[:, None] * step for axis, step in zip(axes, steps, strict=True))
    points = x[:, None, None] + y[None, :, None] + z[None, None] + torch.from_numpy(matrix[:3, 3].copy())
    return points.to(dtype).to(like.device)


def _inside(points: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """Which points lie in a voxel of the old grid: bool ``(x, y, z)``. A hair of tolerance absorbs rounding."""
    upper = torch.as_tensor(shape, dtype=points.dtype, device=points.device) - 0.5
    return ((points >= -0.5 - 1e-3) & (points <= upper + 1e-3)).all(-1)


def _sample(volume: torch.Tensor, points: torch.Tensor, interpolation: str) -> torch.Tensor:
    """Values ``(C, x, y, z)`` of ``volume`` at old voxel coordinates, the border continued."""
    last = torch.as_tensor(volume.shape[1:], dtype=points.dtype, device=points.device) - 1
    scaled = points / last.clamp(min=1) * 2 - 1
    work = volume.to(points.dtype)[None]
    return grid_sample(work, scaled.flip(-1)[None], interpolation, padding_mode="border", align_corners=True)[0]


def _mean_over_voxel(
    volume: torch.Tensor, matrix: np.ndarray, points: torch.Tensor, counts: tuple[int, int, int], interpolation: str
) -> torch.Tensor:
    """The mean of ``counts`` regularly spaced samples in each new voxel around ``points``."""
    total: torch.Tensor | None = None
    for place in itertools.product(*(range(count) for count in counts)):
        offset = matrix[:3, :3] @ ((np.array(place) + 0.5) / np.array(counts) - 0.5)
        values = _sample(volume, points + torch.from_numpy(offset).to(points), interpolation)
        total = values if total is None else total.add_(values)
    assert total is not None  # counts are at least one
    return total / float(np.prod(counts))


def _majority(
    volume: torch.Tensor, ids: torch.Tensor, matrix: np.ndarray, points: torch.Tensor, counts: tuple[int, int, int]
) -> torch.Tensor:
    """For each new voxel the id with the largest share, ``(C, x, y, z)``; some ids a time bound the memory."""
    winners = []
    for channel in volume:
        best = torch.full(points.shape[:3], -1.0, dtype=points.dtype, device=points.device)
        winner = torch.full(points.shape[:3], int(ids[0]), dtype=volume.dtype, device=points.device)
        for some in ids.split(_IDS_PER_PASS):
            one_hot = (channel[None] == some[:, None, None, None]).to(points.dtype)
            share, index = _mean_over_voxel(one_hot, matrix, points, counts, "bilinear").max(0)
            better = share > best + 1e-6
            best, winner = torch.where(better, share, best), torch.where(better, some[index], winner)
        winners.append(winner)
    return torch.stack(winners)


def _checked_grid(affine: np.ndarray | torch.Tensor, shape: Sequence[int]) -> tuple[np.ndarray, tuple[int, int, int]]:
    matrix = _array(affine)
    if matrix.shape != (4, 4) or affine_fault(matrix):
        raise MedgenError("ModelGrid.around: affine must be a finite 4x4 matrix that can be inverted. Mend the header.")
    if len(shape) != 3:
        raise MedgenError(f"ModelGrid.around: shape must have three axes; got {tuple(shape)}. Give (I, J, K).")
    return matrix, _shape3(shape)


def _array(affine: np.ndarray | torch.Tensor) -> np.ndarray:
    plain = affine.detach().cpu().numpy() if isinstance(affine, torch.Tensor) else affine
    return np.array(plain, dtype=np.float64)


def _three(values: Sequence[float], argument: str) -> np.ndarray:
    if len(values) != 3:
        raise MedgenError(f"ModelGrid.around: {argument} must have three numbers; got {tuple(values)}.")
    for value in values:
        check_positive("ModelGrid.around", argument, value)
    return np.asarray(values, dtype=np.float64)


def _shape3(shape: Sequence[int] | np.ndarray) -> tuple[int, int, int]:
    x, y, z = (int(size) for size in shape)
    return x, y, z


def _corners(shape: tuple[int, ...], margin: float = 0.0) -> np.ndarray:
    """Homogeneous voxel coordinates ``(4, 8)`` of a grid's corners, ``margin`` voxels beyond the outer centres."""
    ends = [(-margin, size - 1 + margin) for size in shape]
    return np.array([[*corner, 1.0] for corner in itertools.product(*ends)]).T


def _corner_distance(first: np.ndarray, second: np.ndarray, shape: tuple[int, ...]) -> float:
    """The largest distance in mm between the corners that two affines give to one shape."""
    return float(np.linalg.norm(((first - second) @ _corners(shape))[:3], axis=0).max())


def _center(affine: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    return affine[:3, :3] @ ((np.array(shape) - 1) / 2) + affine[:3, 3]


def _covering_size(
    affine: np.ndarray, shape: tuple[int, int, int], spacing: np.ndarray, center: np.ndarray, multiple: np.ndarray
) -> np.ndarray:
    """The smallest size, a multiple of ``multiple``, that covers every input voxel around ``center``."""
    corners = (affine @ _corners(shape, margin=0.5))[:3]
    reach = np.abs(corners - center[:, None]).max(axis=1)
    return (np.ceil(2 * reach / spacing / multiple - 1e-6) * multiple).astype(int)


def _snap(lower_edge: np.ndarray, spacing: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Moves the lower edge so that voxel edges coincide where axes are parallel and spacings whole multiples."""
    edge = np.array(lower_edge, dtype=np.float64)
    source_edge = affine[:3, 3] - affine[:3, :3].sum(axis=1) / 2
    for axis in range(3):
        column = int(np.abs(affine[axis, :3]).argmax())
        step = abs(affine[axis, column])
        if np.linalg.norm(np.delete(affine[:3, column], axis)) > 1e-4 * step:
            continue
        ratio = max(spacing[axis], step) / min(spacing[axis], step)
        if abs(ratio - round(ratio)) < 1e-4:
            unit = min(step, spacing[axis])
            edge[axis] = source_edge[axis] + round((edge[axis] - source_edge[axis]) / unit) * unit
    return edge


def _check_on_grid(caller: str, volume: torch.Tensor, affine: np.ndarray, shape: tuple[int, int, int]) -> None:
    """Raises unless a volume has the grid that is expected (a plain tensor: the shape)."""
    if volume.ndim != 4 or tuple(volume.shape[1:]) != shape:
        raise MedgenError(f"{caller}: the volume has shape {tuple(volume.shape)}; (C, *{shape}) is needed.")
    if isinstance(volume, MetaTensor) and _corner_distance(_array(volume.affine), affine, shape) > 1e-2:
        raise MedgenError(f"{caller}: the volume's affine is not that of this grid. Resample it, or make another grid.")
