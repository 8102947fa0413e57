"""Subjects on the model's grid: read from files once, kept in memory."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from medgen.checks import MedgenError
from medgen.geometry import NORMAL_AXIS
from medgen.intensity import IntensityWindow
from medgen.io.datasets import Case, ImageFile
from medgen.models.specification import TASKS
from medgen.trainers.config import TrainConfig
from medgen.trainers.data_config import PLANES, Slices
from medgen.trainers.gridding import CORNER_MM, check_ids, check_pair, fitted, resized
from medgen.trainers.measured import Attributes, measure_label

LEAST_SLICE = 0.1
SHOWN = 0.1
RECORDED_SLICES = 5
MIRRORED = 0.2  # of an axis, beyond which a warning is due


@dataclass
class Subject:
    """One case on the model's grid.

    Args:
        image: the model's image channels in 0..1, ``(C, *grid.size)``; None where it has only sources.
        label: ids int16, ``(1, *grid.size)``; 0 where there is none.
        source: given images in 0..1, ``(S, *grid.size)``, missing ones 0.
        present: which of them are there, ``(S,)`` float 0 or 1.
        attributes: of the case; ``spacing_mm`` is the largest voxel edge of its first image.
        mirrored: largest share of an axis of the grid that lies beyond the scan and shows its mirror image.
    """

    image: Tensor | None
    label: Tensor
    source: Tensor
    present: Tensor
    attributes: Attributes = field(default_factory=dict)
    mirrored: float = 0.0

    @property
    def stack(self) -> Tensor:
        """Image and sources as one ``(C + S, *spatial)``."""
        return self.source if self.image is None else torch.cat([self.image, self.source])

    def records(self, config: TrainConfig) -> list[Attributes]:
        """Its attributes, those measured on its label among them."""
        return [{**self.attributes, **measure_label(self.label, config.grid.spacing, config.measured)}]


@dataclass
class SlicedSubject(Subject):
    """A subject whose items are slices: a whole volume, image and source float16, all axes at the grid's spacing.

    Args:
        volumes: ``label_volume`` of the subject by attribute, ml.
        slices: by plane, the slices that show the subject, and all.
    """

    volumes: Mapping[str, float] = field(default_factory=dict)
    slices: Mapping[str, tuple[list[int], int]] = field(default_factory=dict)

    def records(self, config: TrainConfig) -> list[Attributes]:
        """Attributes of some slices of each plane that may be drawn."""
        found = []
        for plane in planes(config.slices or Slices()):
            shown, _ = self.slices[plane]
            for index in {shown[len(shown) * i // RECORDED_SLICES] for i in range(RECORDED_SLICES)}:
                label = self.label.select(1 + NORMAL_AXIS[plane], index)
                measured = measure_label(label, config.grid.spacing, config.measured, self.volumes)
                found.append({**self.attributes, "plane": plane, **measured})
        return found

    def slice(self, config: TrainConfig, stream: torch.Generator) -> tuple[Subject, Attributes]:
        """A random slice on the grid, and its plane as an attribute.

        Args:
            config: of the run.
            stream: of plane and place.
        """
        settings, size = config.slices or Slices(), config.grid.size
        options = planes(settings)
        plane = options[int(torch.randint(len(options), (), generator=stream))]
        shown, count = self.slices[plane]
        anywhere = float(torch.rand((), generator=stream, dtype=torch.float64)) >= settings.foreground
        choices = range(count) if anywhere or not shown else shown
        index = choices[int(torch.randint(len(choices), (), generator=stream))]
        axis = 1 + NORMAL_AXIS[plane]
        flat = Subject(
            None if self.image is None else fitted(self.image.select(axis, index).float(), size, "area"),
            fitted(self.label.select(axis, index), size, "nearest"),
            fitted(self.source.select(axis, index).float(), size, "area"),
            self.present,
            self.attributes,
        )
        return flat, {"plane": plane}


def planes(settings: Slices) -> tuple[str, ...]:
    """The planes that may be drawn."""
    return PLANES if settings.plane == "any" else (settings.plane,)


def image_names(config: TrainConfig) -> tuple[str, ...]:
    """Names of the model's image channels; for ``segment`` the first given one, where they are not named."""
    if config.channels:
        return config.channels
    if not TASKS[config.task].makes_image and config.source_modalities:
        return config.source_modalities[:1]
    return (config.modality,)


def image_of(config: TrainConfig, case: Case, name: str) -> ImageFile | None:
    """The image of a case that a configuration calls ``name``; where it asks for one alone, one without a name does."""
    several = len({*image_names(config), *config.source_modalities}) > 1
    return case.image(name, named=several)


def unpaired(config: TrainConfig) -> bool:
    """Whether an item's given images are of another person than its image: training without pairs."""
    return getattr(config, "kind", "") == "cyclegan"


def needs_label(config: TrainConfig) -> bool:
    """Whether every subject must have a label."""
    return bool(config.label_channels and config.task != "inpaint") or any(
        entry.bins is None for entry in config.measured.values()
    )


def read_case(config: TrainConfig, case: Case) -> Subject:
    """A case on the model's grid.

    All its images and its label are put on the grid about the centre of the first image that is there, by their place
    in the scanner; the label lies on the grid of one of the images.

    Args:
        config: of the run.
        case: with the images that the configuration names.

    Raises:
        MedgenError: a file that cannot be read, or see :func:`check_pair`.
    """
    targets = [image_of(config, case, name) for name in image_names(config)]
    sources = [image_of(config, case, name) for name in config.source_modalities]
    first = next(file for file in (*targets, *sources) if file is not None)
    reference = first.load()
    if len(config.grid.size) == 2:
        if reference.ndim == 3:
            return _read_picture(config, case, first, targets, sources, reference)
        if config.slices is None:
            raise MedgenError(
                f"image '{first.path}' is a volume and needs 3 axes in grid.size, or slices: {{plane: axial}}."
            )
    elif reference.ndim == 3:
        raise MedgenError(f"image '{first.path}' has two axes, and grid.size 3. Give a grid of 2 axes.")
    return _read_volume(config, case, first, targets, sources, reference)


def _read_volume(
    config: TrainConfig,
    case: Case,
    first: ImageFile,
    targets: Sequence[ImageFile | None],
    sources: Sequence[ImageFile | None],
    reference: Any,
) -> Subject:
    from medgen.geometry import same_grid, spacing_of

    sliced = len(config.grid.size) == 2
    place = _Sliced(config, reference) if sliced else _Cropped(config, reference)
    kind = torch.float16 if sliced else torch.float32
    loaded: dict[ImageFile, Tensor] = {first: place.normalised(reference).to(kind)}
    pair = first.path, reference
    ids = None if case.label is None else case.label.load("label")
    for file in (*targets, *sources):
        if file is not None and file not in loaded:
            volume = file.load()
            loaded[file] = place.normalised(volume).to(kind)
            if ids is not None and same_grid(volume, ids, CORNER_MM) and not same_grid(pair[1], ids, CORNER_MM):
                pair = file.path, volume
    images = [loaded[file] for file in targets if file is not None]
    given = [None if file is None else loaded[file] for file in sources]
    if case.label is None or ids is None:
        label = torch.zeros((1, *place.size), dtype=torch.int16)
    else:
        check_pair(*pair, case.label.path, ids, config)
        label = place.put(ids, "nearest").to(torch.int16)
    parts = (
        torch.cat(images) if len(images) == len(targets) else None,
        label,
        _filled(given, place.size, kind),
        torch.tensor([float(x is not None) for x in given]),
        {"spacing_mm": float(spacing_of(reference.affine).max()), **case.attributes},
        place.mirrored,
    )
    if not sliced:
        return Subject(*parts)
    table = {name: entry for name, entry in config.measured.items() if entry.label_volume is not None}
    subject = SlicedSubject(*parts)
    subject.volumes = {n: float(v) for n, v in measure_label(label, place.spacing, table).items()}
    subject.slices = {plane: _shown(subject, NORMAL_AXIS[plane]) for plane in PLANES}
    return subject


class _Cropped:
    """Places volumes on the grid about the reference's centre."""

    def __init__(self, config: TrainConfig, reference: Any) -> None:
        from medgen.geometry import ModelGrid

        self.spacing, self.size = config.grid.spacing, tuple(config.grid.size)
        self._grid = ModelGrid.around(reference.affine, reference.shape[1:], self.spacing, multiple=1)
        self.mirrored = beyond(self._grid.shape, self.size)

    def put(self, volume: Any, mode: Any) -> Tensor:
        """A volume ``(1, X, Y, Z)`` on the grid, ``(1, *size)``."""
        return fitted(_onto(self._grid, volume, mode), self.size, mode)

    def normalised(self, volume: Any) -> Tensor:
        """An image on the grid in 0..1."""
        grid_image = self.put(volume, "area")
        return IntensityWindow.of(grid_image).forward(grid_image)


class _Sliced(_Cropped):
    """Places whole volumes at the grid's spacing."""

    def __init__(self, config: TrainConfig, reference: Any) -> None:
        from medgen.geometry import ModelGrid

        step, other = config.grid.spacing
        if step != other:
            raise MedgenError(
                f"grid.spacing must be equal along both axes for slices. Got {[step, other]}. Correct it."
            )
        self.spacing = (step,) * 3
        self._grid = ModelGrid.around(reference.affine, reference.shape[1:], self.spacing, multiple=1)
        self.size = self._grid.shape
        flat = [[n for a, n in enumerate(self.size) if a != NORMAL_AXIS[p]] for p in planes(config.slices or Slices())]
        self.mirrored = max(beyond(shape, config.grid.size) for shape in flat)

    def put(self, volume: Any, mode: Any) -> Tensor:
        return _onto(self._grid, volume, mode)


def beyond(shape: Sequence[int], size: Sequence[int]) -> float:
    """Largest share of an axis of a grid of ``size`` voxels that a scan of ``shape`` voxels about its centre leaves."""
    return max(0.0, *(1 - have / want for have, want in zip(shape, size, strict=True)))


def warn_mirrored(config: TrainConfig, members: Sequence[Subject]) -> None:
    """Warn of a grid that reaches far beyond the scans: a model would learn their mirror images."""
    count, most = sum(m.mirrored > MIRRORED for m in members), max(m.mirrored for m in members)
    if count:
        extent = " x ".join(f"{n * s:g}" for n, s in zip(config.grid.size, config.grid.spacing, strict=True))
        warnings.warn(
            f"train: the grid ({extent} mm) reaches beyond {count} of {len(members)} scans, by up to {most:.0%} of an "
            "axis; what lies beyond is their mirror image. A smaller grid.size shows real tissue alone.",
            stacklevel=4,
        )


def _onto(grid: Any, volume: Any, mode: Any) -> Tensor:
    """A volume on a model grid: that of the reference, or one elsewhere in the scanner."""
    from medgen.geometry import resample

    affine = np.asarray(volume.affine, dtype=np.float64)
    same = tuple(volume.shape[1:]) == grid.source_shape and np.allclose(affine, grid.source_affine, atol=1e-3)
    if same:
        moved: Tensor = grid.to_model(volume, mode).as_tensor()
        return moved
    return resample(volume, affine, grid.affine, grid.shape, mode)


def _filled(images: Sequence[Tensor | None], size: Sequence[int], kind: torch.dtype) -> Tensor:
    """``(S, *size)``, zeros where an image is missing."""
    blank = torch.zeros((1, *size), dtype=kind)
    return torch.cat([blank if x is None else x for x in images]) if images else torch.zeros((0, *size), dtype=kind)


def _shown(subject: SlicedSubject, axis: int) -> tuple[list[int], int]:
    """Slices with at least ``LEAST_SLICE`` of the label (or image) that the fullest has; how many there are."""
    mask = subject.label[0] > 0
    if not bool(mask.any()):
        mask = subject.stack[0] > SHOWN
    area = mask.sum([other for other in range(3) if other != axis])
    keep = (area >= max(1.0, LEAST_SLICE * float(area.max()))).nonzero().flatten().tolist()
    return keep or list(range(len(area))), len(area)


def _read_picture(
    config: TrainConfig,
    case: Case,
    first: ImageFile,
    targets: Sequence[ImageFile | None],
    sources: Sequence[ImageFile | None],
    reference: Any,
) -> Subject:
    """A case of pictures; without a spacing in the file, the picture is made to fit into the grid."""
    size, shape = config.grid.size, tuple(reference.shape[1:])
    steps = reference.meta.get("spacing")
    if steps is None:
        factor = min(n / have for n, have in zip(size, shape, strict=True))
        new = [max(1, round(have * factor)) for have in shape]
    else:
        new = [
            max(1, round(have * step / want))
            for have, step, want in zip(shape, steps, config.grid.spacing, strict=True)
        ]

    def put(file: ImageFile) -> Tensor:
        picture = reference if file == first else file.load()
        if tuple(picture.shape[1:]) != shape:
            raise MedgenError(f"image '{file.path}' has {tuple(picture.shape[1:])} pixels, not {shape}. Register it.")
        x = picture.as_tensor()
        low, high = _limits(picture)
        return fitted((resized(x, new) - low) / (high - low), size, "area").clamp(0, 1.5)

    images = [put(file) for file in targets if file is not None]
    given = [None if file is None else put(file) for file in sources]
    label = torch.zeros((1, *size), dtype=torch.int16)
    if case.label is not None:
        ids = case.label.load("label")
        if tuple(ids.shape[1:]) != shape:
            raise MedgenError(
                f"label '{case.label.path}' has shape {tuple(ids.shape[1:])}, its image {shape}. Pair them."
            )
        check_ids(case.label.path, ids, config)
        label = fitted(F.interpolate(ids.as_tensor()[None].float(), new, mode="nearest-exact")[0], size, "nearest")
    return Subject(
        torch.cat(images) if len(images) == len(targets) else None,
        label.to(torch.int16),
        _filled(given, size, torch.float32),
        torch.tensor([float(x is not None) for x in given]),
        dict(case.attributes),
    )


def _limits(picture: Any) -> tuple[float, float]:
    """What becomes 0 and 1: the range of 8 bit, of other types that of the picture's own values."""
    if picture.meta.get("stored") == "uint8":
        return 0.0, 255.0
    window = IntensityWindow.of(picture.as_tensor())
    return window.low, window.high
