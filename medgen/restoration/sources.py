"""Given images of one person on a model's grid, and what a model makes of them, slice by slice or as a volume."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from monai.data import MetaTensor
from numpy.typing import NDArray
from torch import Tensor

from medgen.checks import MedgenError, check_choice
from medgen.diffusion.randomness import derive_seed
from medgen.geometry import NORMAL_AXIS, ModelGrid, resample, spacing_of
from medgen.intensity import IntensityWindow
from medgen.restoration.extent import bounds_mm, warn_if_far
from medgen.restoration.harmonize import cut_out, foreground

if TYPE_CHECKING:
    from medgen.models.base import Model
    from medgen.models.specification import ModelSpec

__all__ = ["MEAN_DRAWS", "Progress", "Sources", "expected", "loaded", "prepared", "produced", "to_scan"]

MEAN_DRAWS = 2
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Sources:
    """What a model is told of a person.

    Attributes:
        grid: the model's grid over that of the first image; 2D models: their spacing in plane, the image's own across.
        source: ``(S, X, Y, Z)`` on the model's grid in 0..1, in the order of the model's source modalities; 0 where
            one is missing.
        present: ``(S,)``, 1 = there.
        body: ``(I, J, K)`` on the first image's grid: what was not cut out of every image.
        axis: which axis a 2D model's slices lie across; None for a 3D model.
    """

    grid: ModelGrid
    source: Tensor
    present: Tensor
    body: NDArray[np.bool_]
    axis: int | None

    def pieces(self) -> Iterator[tuple[int, Tensor]]:
        """Number and content ``(S, *size)`` of each slice that shows something, or 0 and the volume."""
        if self.axis is None:
            yield 0, self.source
            return
        for k in range(self.source.shape[1 + self.axis]):
            piece = self.source.select(1 + self.axis, k)
            if bool(piece.any()):
                yield k, piece

    def assembled(self, pieces: Mapping[int, Tensor]) -> Tensor:
        """``(C, X, Y, Z)`` from slices ``(C, *size)``, or from the volume; 0 where there was nothing to show."""
        if self.axis is None:
            return pieces[0]
        some = next(iter(pieces.values()))
        made = torch.zeros(some.shape[0], *self.source.shape[1:], dtype=some.dtype)
        for k, piece in pieces.items():
            made.select(1 + self.axis, k).copy_(piece)
        return made


def loaded(model: str | os.PathLike[str] | Model[Any], task: str, device: str) -> Model[Any]:
    """A model of a task, by name or folder, or as it is.

    Raises:
        MedgenError: it is of another task.
    """
    from medgen.models.base import Model
    from medgen.models.bundled import load_model

    chosen: Model[Any] = model if isinstance(model, Model) else load_model(model, device)
    if chosen.spec.task != task:
        raise MedgenError(f"{task}: model '{chosen.spec.name}' is of task '{chosen.spec.task}'. Give one of '{task}'.")
    return chosen


def prepared(spec: ModelSpec, images: Mapping[str, MetaTensor], plane: str = "axial") -> Sources:
    """Images of one person, aligned in the scanner's space, on a model's grid.

    Each image's own intensity window is taken from the whole scan, as in training
    (:meth:`~medgen.intensity.IntensityWindow.of`). The grid covers what the images show, centred on it, and has at
    least the model's own size.

    Args:
        spec: of the model.
        images: by source modality, each ``(1, I, J, K)`` on any grid and in any unit; any subset of the model's.
            The first one of the model's order that is there gives the grid of the result.
        plane: of a 2D model's slices, in the world's axes nearest to them.

    Raises:
        MedgenError: no image, an unknown modality, one that is no single finite volume, or that does not lie where the
            first one lies.

    Warns:
        UserWarning: what the first image shows is of quite another size than what the model was trained on.
    """
    check_choice(spec.task, "plane", plane, NORMAL_AXIS)
    for name, image in images.items():
        check_choice(spec.task, "source modality", name, spec.source_modalities)
        _check_image(spec.task, name, image)
        if spec.spatial_dims == 3 and 1 in image.shape[1:]:
            raise MedgenError(
                f"{spec.task}: image '{name}' is one slice, and model '{spec.name}' works on volumes. Got "
                f"{tuple(image.shape)}. Give a volume, or a model of slices."
            )
    there = [name for name in spec.source_modalities if name in images]
    if not there:
        wanted = ", ".join(spec.source_modalities)
        raise MedgenError(f"{spec.task}: no image is given. Give at least one of {wanted}.")
    axis = NORMAL_AXIS[plane] if spec.spatial_dims == 2 else None
    first = images[there[0]]
    body = foreground(first)
    _check_extent(spec, f"image '{there[0]}'", bounds_mm(body, np.asarray(first.affine.cpu(), dtype=np.float64)), axis)
    grid = _grid(spec, first, body, axis)
    source = torch.zeros(len(spec.source_modalities), *grid.shape)
    for name in there:
        source[spec.source_modalities.index(name)] = _brought(images[name], grid)
    present = torch.tensor([float(name in images) for name in spec.source_modalities])
    for name in there:
        if not bool(source[spec.source_modalities.index(name)].any()):
            raise MedgenError(f"{spec.task}: image '{name}' does not overlap '{there[0]}'. Align them first.")
    return Sources(grid, source, present, _kept(first, [images[name] for name in there]), axis)


def produced(
    model: Model[Any], sources: Sources, seed: int, settings: Mapping[str, Any], callback: Progress | None = None,
    conditions: Mapping[str, Tensor] | None = None,
) -> tuple[Tensor | None, Tensor | None]:  # fmt: skip
    """One sample for a person: image ``(C, X, Y, Z)`` in 0..1 and label ``(1, X, Y, Z)``, as the task has them.

    Args:
        model: of task ``translate`` or ``segment``.
        sources: see :func:`prepared`.
        seed: of the sample; slices have streams of their own.
        settings: of :meth:`~medgen.models.base.Model.settings`.
        callback: called with (slices done, slices).
        conditions: tensors of the model's controls.
    """
    images: dict[int, Tensor] = {}
    labels: dict[int, Tensor] = {}
    pieces = list(sources.pieces())
    for done, (k, piece) in enumerate(pieces):
        known = {"source": piece, "present": sources.present, **(conditions or {})}
        own = derive_seed(seed, "slice", k) if sources.axis is not None else derive_seed(seed, "sample")
        image, label = model.produce(known, tuple(piece.shape[1:]), own, settings)
        if image is not None:
            images[k] = image.cpu().float()
        if label is not None:
            labels[k] = label.cpu()
        if callback is not None:
            callback(done + 1, len(pieces))
    return (sources.assembled(images) if images else None, sources.assembled(labels) if labels else None)


def check_draws(model: Model[Any], caller: str, samples: int) -> None:
    """Refuse several samples of a model that answers the same every time.

    Raises:
        MedgenError: it is a translation network without noise.
    """
    if samples > 1 and getattr(model.spec, "kind", "") in ("pix2pix", "cyclegan"):
        raise MedgenError(
            f"{caller}: model '{model.spec.name}' draws nothing: all {samples} samples would be the same. Ask for one."
        )


def expected(model: Model[Any], sources: Sources, seed: int, callback: Progress | None = None) -> Tensor:
    """The expected image ``(C, X, Y, Z)`` in 0..1 of a diffusion model: its denoiser where the noise says nothing.

    Args:
        model: of family ``diffusion`` and task ``translate``, trained with ``noise_levels.at_maximum``.
        sources: see :func:`prepared`.
        seed: of the noise, which is averaged over ``MEAN_DRAWS`` draws.
        callback: called with (slices done, slices).

    Raises:
        MedgenError: a model of another family.
    """
    from medgen.models.diffusion_model import DiffusionModel

    if not isinstance(model, DiffusionModel):
        raise MedgenError(f"{model.spec.name}: only diffusion models have a mean without samples. Use mode 'sample'.")
    made: dict[int, Tensor] = {}
    pieces = list(sources.pieces())
    for done, (k, piece) in enumerate(pieces):
        given = model.codec.given_source(piece[None], sources.present[None])
        made[k] = model.mean(given, [derive_seed(seed, "mean", k, i) for i in range(MEAN_DRAWS)])[0].float()
        if callback is not None:
            callback(done + 1, len(pieces))
    return sources.assembled(made)


def to_scan(sources: Sources, image: Tensor, window: IntensityWindow) -> Tensor:
    """An image on the model's grid on that of the first scan; what was cut out of every source has the window's lowest.

    Args:
        sources: see :func:`prepared`.
        image: ``(C, X, Y, Z)`` in 0..1.
        window: to the unit that is wanted.

    Returns:
        ``(C, I, J, K)`` float32.
    """
    moved: Tensor = sources.grid.from_model(image.clamp(min=0)).as_tensor()
    inside = torch.from_numpy(sources.body)[None] & sources.grid.covered()[None]
    return torch.where(inside, window.inverse(moved), window.low).float()


def _check_image(who: str, name: str, image: MetaTensor) -> None:
    if not isinstance(image, MetaTensor) or image.ndim != 4 or image.shape[0] != 1:
        raise MedgenError(
            f"{who}: image '{name}' must be a MetaTensor (1, X, Y, Z). Got {type(image).__name__} "
            f"{tuple(image.shape)}. Give one 3D volume with its affine."
        )
    if not bool(torch.isfinite(image.as_tensor()).all()):
        raise MedgenError(f"{who}: image '{name}' holds NaN or infinity. Replace them first.")


def _check_extent(
    spec: ModelSpec, what: str, bounds: tuple[NDArray[np.float64], NDArray[np.float64]], axis: int | None
) -> None:
    """Warn where what an image shows is much larger or smaller than the model's grid; of slices, in their plane."""
    extent = bounds[1] - bounds[0] if axis is None else np.delete(bounds[1] - bounds[0], axis)
    warn_if_far(spec, what, (extent / np.array(spec.grid.spacing)).tolist())


def _brought(image: MetaTensor, grid: ModelGrid) -> Tensor:
    """``(X, Y, Z)`` in 0..1: an image on the model's grid, 0 where it does not reach."""
    values = image.as_tensor().cpu().float()
    window = IntensityWindow.of(values)
    affine = np.asarray(image.affine.cpu(), dtype=np.float64)
    return window.forward(resample(values, affine, grid.affine, grid.shape, "area", window.low))[0]


def _kept(first: MetaTensor, images: Sequence[MetaTensor]) -> NDArray[np.bool_]:
    """What was not cut out of every image (see :func:`~medgen.restoration.harmonize.cut_out`), on the first's grid."""
    own = np.asarray(first.affine.cpu(), dtype=np.float64)
    found = np.zeros(tuple(first.shape[1:]), bool)
    for image in images:
        body = ~cut_out(image)
        affine = np.asarray(image.affine.cpu(), dtype=np.float64)
        moved = resample(torch.from_numpy(body[None].astype(np.float32)), affine, own, found.shape, "nearest")
        found |= moved[0].numpy() > 0.5
    return found


def _grid(spec: ModelSpec, first: MetaTensor, body: NDArray[np.bool_], axis: int | None) -> ModelGrid:
    """The model's grid around what the first image shows."""
    affine = np.asarray(first.affine.cpu(), dtype=np.float64)
    low, high = bounds_mm(body, affine)
    extent, center = high - low, (low + high) / 2
    spacing, least, unit = _steps(spec, affine, axis)
    size = np.maximum(np.ceil(extent / spacing / unit - 1e-6).astype(int) * unit, least)
    shape = tuple(first.shape[1:])
    return ModelGrid.around(affine, shape, spacing.tolist(), size=size.tolist(), center_mm=center.tolist())


def _steps(
    spec: ModelSpec, affine: NDArray[np.float64], axis: int | None
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    """Spacing in mm, smallest size and unit of the size along each world axis."""
    if axis is None:
        size = np.array(spec.grid.size)
        return np.array(spec.grid.spacing), size, np.full(3, spec.multiple)
    column = int(np.abs(affine[axis, :3] / spacing_of(affine)).argmax())
    across = float(spacing_of(affine)[column])
    return (
        np.insert(np.array(spec.grid.spacing), axis, across),
        np.insert(np.array(spec.grid.size), axis, 1),
        np.insert(np.full(2, spec.multiple), axis, 1),
    )
