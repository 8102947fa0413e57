"""Training items: each one a function of its seed alone, whatever worker makes it and in whatever order."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from medgen.checks import MedgenError, nearest
from medgen.diffusion.randomness import derive_seed
from medgen.intensity import IntensityWindow
from medgen.trainers.config import POPULATION, Augmentation, TrainConfig

Item = dict[str, Tensor]
CORNER_MM = 0.1
_SUFFIXES = (".nii", ".nii.gz")


class Source(Protocol):
    """Where training subjects come from."""

    people: int

    def item(self, seed: int) -> Item:
        """Image ``(1, *patch)`` in 0..1 and label ``(1, *patch)`` int16 of a random subject and patch.

        For task ``inpaint`` the image is not shaded yet: :class:`Items` does it.
        """


class PopulationSource:
    """Patches of a fixed number of subjects of the bundled population, drawn once and kept in memory as 8 bit.

    Args:
        config: of the run.
        purpose: keeps the subjects of training and of validation apart.
    """

    def __init__(self, config: TrainConfig, purpose: str = "subject") -> None:
        from medgen.anatomy.population import Population

        self.config = config
        self.purpose = purpose
        self.population = Population(**{"spacing": config.grid.spacing, "size": config.grid.size} | config.population)
        self.patch = config.patch_size or config.grid.size
        self.people = 1
        self._kept: dict[int, tuple[Tensor, Tensor]] = {}

    def subject(self, index: int) -> tuple[Tensor, Tensor]:
        """Image uint8 and label int16 ``(1, *size)`` of one subject."""
        if index not in self._kept:
            made = self.population.subject(derive_seed(self.config.seed, self.purpose, index))
            image = (made.image.as_tensor() * 255).round().clamp(0, 255).to(torch.uint8)
            self._kept[index] = image, made.label.as_tensor()
        return self._kept[index]

    def item(self, seed: int) -> Item:
        stream = torch.Generator().manual_seed(seed)
        image, label = self.subject(int(torch.randint(self.config.subjects, (), generator=stream)))
        window = random_window(image.shape[1:], self.patch, stream)
        return {"image": image[window].float() / 255, "label": label[window]}


class FileSource:
    """Subjects from files, kept in memory; each item is moved anew.

    Args:
        config: of the run.
        subjects: image in 0..1 and label int16, each ``(1, *grid.size)``.
    """

    def __init__(self, config: TrainConfig, subjects: Sequence[tuple[Tensor, Tensor]]) -> None:
        self.config = config
        self.patch = config.patch_size or config.grid.size
        self.people = len(subjects)
        self.subjects = subjects

    @classmethod
    def read(cls, config: TrainConfig, pairs: Sequence[tuple[Path, Path | None]]) -> FileSource:
        """Read subjects and bring them to the model's grid.

        Args:
            config: of the run.
            pairs: (image, label or None) paths.

        Raises:
            MedgenError: a file that cannot be read, or see :func:`check_pair`.
        """
        return cls(config, [read_subject(config, *pair) for pair in pairs])

    def item(self, seed: int) -> Item:
        stream = torch.Generator().manual_seed(seed)
        image, label = self.subjects[int(torch.randint(len(self.subjects), (), generator=stream))]
        draws = (torch.rand(16, generator=stream, dtype=torch.float64) * 2 - 1).tolist()
        spacing, limits = self.config.grid.spacing, self.config.augmentation
        image, label = moved(image, label, spacing, limits, draws)
        if self.config.task != "inpaint":
            image = reshaded(image, spacing, limits, stream, draws[10:])
        window = random_window(image.shape[1:], self.patch, stream)
        return {"image": image[window], "label": label[window]}


def read_subject(config: TrainConfig, image: Path, label: Path | None) -> tuple[Tensor, Tensor]:
    """Image in 0..1 and label int16 (0 where there is none), ``(1, *grid.size)``, of one subject's files.

    Raises:
        MedgenError: a file that cannot be read, or see :func:`check_pair`.
    """
    from medgen.io.nifti import read_nifti

    spacing, size = config.grid.spacing, config.grid.size
    volume = read_nifti(image, role="image")
    grid_image = to_grid(volume, spacing, size, "area")
    normalised = IntensityWindow.of(grid_image).forward(grid_image)
    if label is None:
        return normalised, torch.zeros(grid_image.shape, dtype=torch.int16)
    ids = read_nifti(label, role="label")
    check_pair(image, volume, label, ids, config)
    return normalised, to_grid(ids, spacing, size, "nearest").to(torch.int16)


def check_pair(image: Path, volume: Any, label: Path, ids: Any, config: TrainConfig) -> None:
    """Refuse a label on another grid than its image, or with ids that the configuration does not name.

    Args:
        image: path, for errors.
        volume: MetaTensor ``(1, X, Y, Z)`` of the image.
        label: path, for errors.
        ids: MetaTensor ``(1, X, Y, Z)`` of the label; its corners within ``CORNER_MM`` of the image's.
        config: of the run.

    Raises:
        MedgenError: naming the files and what differs.
    """
    from medgen.geometry import same_grid

    if ids.shape != volume.shape:
        raise MedgenError(f"label '{label}' has shape {tuple(ids.shape)}, its image {tuple(volume.shape)}. Pair them.")
    if not same_grid(volume, ids, CORNER_MM):
        raise MedgenError(
            f"label '{label}' lies on another grid than its image '{image}': corners differ by more than "
            f"{CORNER_MM:g} mm. Resample it."
        )
    known = {0, *(i for _, channel in config.label_channels for i in channel)}
    unknown = sorted({int(i) for i in torch.unique(ids).tolist()} - known)
    if unknown and config.task != "inpaint":
        raise MedgenError(
            f"label '{label}' holds ids {unknown[:8]} that label_channels does not name. It names {sorted(known)}. "
            "Add them to label_channels, or mend the label."
        )


def to_grid(volume: Any, spacing: Sequence[float], size: Sequence[int], mode: Any) -> Tensor:
    """A volume on a grid of given spacing and size about its own centre, RAS+.

    Args:
        volume: MetaTensor ``(1, X, Y, Z)``.
        spacing: mm.
        size: voxels.
        mode: of :meth:`~medgen.geometry.ModelGrid.to_model`.

    Returns:
        ``(1, *size)``; what lies beyond the volume is its mirror image (with mode ``nearest``: 0).
    """
    from medgen.geometry import ModelGrid

    grid = ModelGrid.around(volume.affine, volume.shape[1:], spacing, multiple=1)
    x = grid.to_model(volume, mode).as_tensor()
    pads = []
    for have, want in zip(reversed(x.shape[1:]), reversed(list(size)), strict=True):
        low = (want - have) // 2
        pads += [low, want - have - low]
    crop = [min(p, 0) for p in pads]
    x = F.pad(x, crop)
    grow = [max(p, 0) for p in pads]
    if mode == "nearest":
        return F.pad(x, grow)
    widths = [(0, 0), *zip(grow[-2::-2], grow[::-2], strict=True)]
    return torch.from_numpy(np.pad(x.numpy(), widths, mode="reflect"))  # torch's refuses more than one reflection


def random_window(size: Sequence[int], patch: Sequence[int], stream: torch.Generator) -> tuple[slice, ...]:
    """A random patch of a ``(C, *size)`` array, uniform over places."""
    starts = [int(torch.randint(n - min(p, n) + 1, (), generator=stream)) for n, p in zip(size, patch, strict=True)]
    return (slice(None), *(slice(s, s + p) for s, p in zip(starts, patch, strict=True)))


def moved(
    image: Tensor, label: Tensor, spacing: Sequence[float], limits: Augmentation, draws: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """Rigid and scaling motion and mirror image of a subject, 2D or 3D.

    Args:
        image: ``(1, *spatial)``.
        label: same shape; ids are not exchanged in a mirror image.
        spacing: mm per axis.
        limits: largest changes.
        draws: ten numbers in -1..1: rotations, scales, shifts (three each), mirror image.
    """
    dims = image.ndim - 1
    if limits.rotation_degrees or limits.scale or limits.shift_mm:
        image, label = _resampled(image, label, spacing, limits, draws, dims)
    if limits.flip and (draws[9] + 1) / 2 < limits.flip:
        image, label = image.flip(1), label.flip(1)
    return image, label


def _resampled(
    image: Tensor, label: Tensor, spacing: Sequence[float], limits: Augmentation, draws: Sequence[float], dims: int
) -> tuple[Tensor, Tensor]:
    matrix = torch.eye(dims, dtype=torch.float64)
    for k, (i, j) in enumerate([(0, 1)] if dims == 2 else [(0, 1), (0, 2), (1, 2)]):
        angle = np.deg2rad(limits.rotation_degrees * draws[k])
        turn = torch.eye(dims, dtype=torch.float64)
        turn[i, i] = turn[j, j] = np.cos(angle)
        turn[i, j], turn[j, i] = -np.sin(angle), np.sin(angle)
        matrix = matrix @ turn
    matrix = matrix @ torch.diag(torch.tensor([1 + limits.scale * d for d in draws[3 : 3 + dims]], dtype=torch.float64))
    # mm to grid_sample's -1..1 units, whose axes run last to first
    half = torch.tensor([n * s / 2 for n, s in zip(image.shape[1:], spacing, strict=True)], dtype=torch.float64)
    shift = torch.tensor([limits.shift_mm * d for d in draws[6 : 6 + dims]], dtype=torch.float64) / half
    theta = torch.cat([(matrix * half / half[:, None]).flip(0, 1), shift.flip(0)[:, None]], dim=1)
    grid = F.affine_grid(theta[None].float(), [1, 1, *image.shape[1:]], align_corners=False)
    warped = F.grid_sample(image[None], grid, mode="bilinear", padding_mode="reflection", align_corners=False)[0]
    ids = F.grid_sample(label[None].float(), grid, mode="nearest", padding_mode="zeros", align_corners=False)[0]
    return warped, ids.to(label.dtype)


def reshaded(
    image: Tensor, spacing: Sequence[float], limits: Augmentation, stream: torch.Generator, draws: Sequence[float]
) -> Tensor:
    """Random blur, gamma, bias field and noise of an image.

    Args:
        image: ``(1, *spatial)`` in 0..1, 2D or 3D.
        spacing: mm per axis.
        limits: largest changes.
        stream: of the bias field and the noise.
        draws: four numbers in -1..1: strengths of blur, gamma, bias and noise.
    """
    if limits.blur_mm:
        image = _blurred(image, spacing, limits.blur_mm * abs(draws[0]))
    if limits.gamma:
        image = image.clamp(min=0) ** float(np.exp(limits.gamma * draws[1]))
    if limits.bias:
        coarse = torch.rand([1, 1, *[4] * (image.ndim - 1)], generator=stream) * 2 - 1
        mode = "bilinear" if image.ndim == 3 else "trilinear"
        field = F.interpolate(coarse, image.shape[1:], mode=mode, align_corners=True)[0]
        image = image * (1 + limits.bias * abs(draws[2]) * field)
    if limits.noise:
        noise = torch.randn(image.shape, generator=stream)
        image = (image + limits.noise * abs(draws[3]) * noise * (image > 0)).clamp(min=0)
    return image


def _blurred(image: Tensor, spacing: Sequence[float], sigma_mm: float) -> Tensor:
    """Gaussian blur of ``(1, *spatial)``, its standard deviation in mm."""
    from scipy.ndimage import gaussian_filter

    return torch.from_numpy(gaussian_filter(image.numpy(), (0, *(sigma_mm / step for step in spacing))))


def random_holes(
    size: Sequence[int], spacing: Sequence[float], diameters: Sequence[float], most: int, seed: int
) -> Tensor:
    """One to ``most`` random ellipsoids to fill, ``(1, *size)`` float32, 1 inside.

    Args:
        size: voxels of the patch.
        spacing: mm.
        diameters: smallest and largest diameter in mm; each axis differs from the drawn one by up to 15 percent.
        most: largest number of holes.
        seed: of the draw.
    """
    stream = torch.Generator().manual_seed(seed)
    hole = torch.zeros(*size, dtype=torch.bool)
    for _ in range(1 + int(torch.randint(most, (), generator=stream))):
        draws = torch.rand(2 * len(size) + 1, generator=stream, dtype=torch.float64).tolist()
        diameter = diameters[0] + (diameters[1] - diameters[0]) * draws[0]
        total = torch.zeros(*size, dtype=torch.float64)
        for axis, n in enumerate(size):
            radius = diameter / 2 * (0.85 + 0.3 * draws[1 + axis]) / spacing[axis]
            middle = n * (0.2 + 0.6 * draws[1 + len(size) + axis])
            place = ((torch.arange(n, dtype=torch.float64) + 0.5 - middle) / radius).square()
            total = total + place.reshape([-1 if a == axis else 1 for a in range(len(size))])
        hole |= total <= 1
    return hole[None].float()


class Items(Dataset[Item]):
    """Item ``i`` of a run: the subject, patch and hole that ``(seed, i)`` draws.

    Args:
        source: of subjects.
        config: of the run.
        purpose: keeps training and validation draws apart.
    """

    def __init__(self, source: Source, config: TrainConfig, purpose: str = "train") -> None:
        self.source = source
        self.config = config
        self.purpose = purpose

    def __len__(self) -> int:
        return self.config.steps * self.config.batch_size

    def __getitem__(self, index: int) -> Item:
        seed = derive_seed(self.config.seed, self.purpose, index)
        item = self.source.item(seed)
        item["index"] = torch.tensor(index)
        if self.config.task == "inpaint":
            stream = torch.Generator().manual_seed(derive_seed(seed, "shade"))
            draws = (torch.rand(8, generator=stream, dtype=torch.float64) * 2 - 1).tolist()
            size, spacing = item["image"].shape[1:], self.config.grid.spacing
            item["image"] = reshaded(item["image"], spacing, self.config.augmentation, stream, draws)
            diameters, most = self.config.hole_diameter_mm, self.config.holes
            hole = random_holes(size, spacing, diameters, most, derive_seed(seed, "hole"))
            item["inpaint_mask"] = hole
            item["image"] = IntensityWindow.of(item["image"][hole == 0]).forward(item["image"])
        return item


@dataclass(frozen=True)
class BatchesFrom:
    """Batch sampler of a run that starts at step ``start``: batch ``k`` holds items ``k * size .. (k + 1) * size``."""

    start: int
    stop: int
    size: int

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self.start, self.stop):
            yield list(range(step * self.size, (step + 1) * self.size))

    def __len__(self) -> int:
        return self.stop - self.start


def make_source(config: TrainConfig, limit: int | None = None) -> Source:
    """The source that ``config.data`` names.

    Args:
        config: of the run.
        limit: use only the first subjects (files only).

    Raises:
        MedgenError: nothing of a known layout at that path, or no label where the task needs one.
    """
    if config.data == POPULATION:
        return PopulationSource(config)
    pairs = [pair for pair in _pairs(config) if not is_held_out(pair[0], config.held_out_endings)][:limit]
    if not pairs:
        raise MedgenError(
            f"data '{config.data}': no image is left after holding out endings {config.held_out_endings}."
        )
    return FileSource.read(config, pairs)


def make_validation_source(config: TrainConfig, training: Source) -> Source:
    """Subjects that are not trained on: others of the population, or the first person held out.

    Args:
        config: of the run.
        training: its source, which is the answer where nobody is held out.
    """
    if config.data == POPULATION:
        return PopulationSource(dataclasses.replace(config, subjects=1), "validation")
    pairs = [pair for pair in _pairs(config) if is_held_out(pair[0], config.held_out_endings)]
    return FileSource.read(config, pairs[:1]) if pairs else training


def _pairs(config: TrainConfig) -> list[tuple[Path, Path | None]]:
    """All images and labels at ``config.data``, held-out people included."""
    if len(config.grid.size) != 3:
        raise MedgenError(f"grid.size: data from files are volumes and need 3 axes. Got {list(config.grid.size)}.")
    pairs = find_pairs(Path(config.data), config.modality)
    if config.task != "inpaint" and any(label is None for _, label in pairs):
        missing = next(image for image, label in pairs if label is None)
        raise MedgenError(f"data '{config.data}': no label found for '{missing.name}'. Task '{config.task}' needs one.")
    return pairs


def is_held_out(image: Path, endings: Sequence[int]) -> bool:
    """Whether the subject number in a file name ends in one of ``endings`` (held out by person).

    Example:
        >>> is_held_out(Path("hippocampus_011.nii.gz"), (1, 6)), is_held_out(Path("hippocampus_014.nii.gz"), (1, 6))
        (True, False)
        >>> is_held_out(Path("sub-0016_ses-02_T1w.nii.gz"), (1, 6)), is_held_out(Path("case16_0000.nii.gz"), (1, 6))
        (True, True)

    Raises:
        MedgenError: people are to be held out and the name has no number.
    """
    if not endings:
        return False
    found = re.match(r"sub-[A-Za-z]*(\d+)", image.name) or re.search(r"(\d+)(?:_0000)?\D*$", image.name.split(".")[0])
    if found is None:
        raise MedgenError(
            f"image '{image}' has no subject number in its name, but held_out_endings is {list(endings)}. "
            "Name the files by number, or set held_out_endings=[] to train on all."
        )
    return int(found[1][-1]) in endings


def find_pairs(path: Path, modality: str = "T1w") -> list[tuple[Path, Path | None]]:
    """Image and label files at ``path``, in sorted order.

    A MONAI datalist JSON (``{"training": [{"image": ..., "label": ...}]}``, paths relative to the file); a BIDS tree
    (``sub-*/anat/*_T1w.nii.gz`` with ``*_dseg.nii.gz`` beside it or under ``derivatives/``), or a cohort that medgen
    generated; or a folder with ``images`` / ``labels`` (or MSD's ``imagesTr`` / ``labelsTr``) of equal file names; or
    a folder of images.

    Args:
        path: of the data.
        modality: BIDS suffix of the images.

    Raises:
        MedgenError: none of these.
    """
    if path.is_file():
        return _from_datalist(path)
    if not path.is_dir():
        raise MedgenError(
            f"data '{path}' does not exist.{_nearest_path(path)} "
            "Set data=PATH: a datalist JSON, a BIDS tree or a folder of images."
        )
    for images, labels in (("images", "labels"), ("imagesTr", "labelsTr")):
        if (path / images).is_dir():
            found = _volumes(path / images)
            return [(image, _same_name(path / labels, image)) for image in found]
    subjects = sorted(p for sub in path.glob("sub-*") for p in ([sub] if sub.is_file() else sub.rglob("*")))
    scans = [p for p in subjects if p.name.endswith(tuple(f"_{modality}{suffix}" for suffix in _SUFFIXES))]
    if scans:
        return [(image, _bids_label(path, image)) for image in scans]
    found = _volumes(path)
    if not found:
        raise MedgenError(f"data '{path}' holds no NIfTI files of a known layout. Give images/ and labels/ folders.")
    return [(image, None) for image in found]


def _volumes(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.name.endswith(_SUFFIXES) and not p.name.startswith("."))


def _same_name(folder: Path, image: Path) -> Path | None:
    """The label of an image: the same name, MSD's ``_0000`` channel suffix left out."""
    for name in (image.name, image.name.replace("_0000.", ".")):
        if (folder / name).is_file():
            return folder / name
    return None


def _nearest_path(path: Path) -> str:
    """The hint that ends an error about a missing path."""
    beside = [str(path.parent / p.name) for p in path.parent.iterdir()] if path.parent.is_dir() else []
    return nearest(path, [POPULATION, *beside])


def _bids_label(root: Path, image: Path) -> Path | None:
    """The ``dseg`` of a scan: beside it or under ``derivatives/``, with the same entities or more."""
    stem = image.name.rsplit("_", 1)[0]
    found = sorted([*image.parent.glob(f"{stem}_*dseg.nii*"), *root.glob(f"derivatives/**/{stem}_*dseg.nii*")])
    return next((p for p in found if p.name.rsplit("_", 1)[1].startswith("dseg.")), None)


def _from_datalist(path: Path) -> list[tuple[Path, Path | None]]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        entries = content["training"] if isinstance(content, dict) else content
        pairs = [(_one(entry["image"]), _one(entry.get("label"))) for entry in entries]
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
        raise MedgenError(
            f"data '{path}' is no MONAI datalist ({type(error).__name__}: {error}). "
            "Write {'training': [{'image': ..., 'label': ...}]}."
        ) from error
    made = [(path.parent / (image or ""), path.parent / label if label else None) for image, label in pairs]
    for file in (f for pair in made for f in pair if f is not None):
        if not file.is_file():
            raise MedgenError(f"data '{path}': file '{file}' does not exist. Mend the list.")
    return made


def _one(entry: Any) -> str | None:
    """A path in a datalist: text, or a list of one (several channels are not trained on)."""
    if isinstance(entry, list) and len(entry) == 1:
        entry = entry[0]
    if entry is not None and not isinstance(entry, str):
        raise TypeError(f"one path is needed, got {entry!r:.60}")
    return entry
