"""Scans of people that no restorer is trained on, with brain, tissues and lesions, and places in them.

``mni152-T1`` (nilearn), T1, T2, FLAIR and T1 after contrast of ``open_ms/cross_sectional/patient19``, and the three
DICOM series of ``brain_tumour_dicom``. Intensities below 0, which resampling has left, are set to 0.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from monai.data import MetaTensor
from numpy.typing import NDArray
from scipy import ndimage

from medgen.checks import MedgenError
from medgen.io.nifti import read_nifti

Array = NDArray[np.float32]
Flags = NDArray[np.bool_]
Box = tuple[slice, ...]
TISSUES = {1: "CSF", 2: "grey", 3: "white"}
PATIENT = "patient19"
PATIENT_FILES = {"T1": "T1", "T2": "T2", "FLAIR": "FLAIR", "T1post": "T1POST"}
TUMOUR_SERIES = {"T1post": "12-T1post-05670", "T2": "37916-T2reg-88910", "FLAIR": "36459-FLAIRreg-76244"}
NAMES = (
    "mni152-T1",
    *(f"{PATIENT}-{name}" for name in PATIENT_FILES),
    *(f"tumour-{name}" for name in TUMOUR_SERIES),
)
MAIN = ("mni152-T1", f"{PATIENT}-T1", f"{PATIENT}-T2", f"{PATIENT}-FLAIR")


@dataclass(frozen=True)
class Scan:
    """A clean scan.

    Attributes:
        name: person and contrast.
        image: ``(X, Y, Z)``, from 0 up.
        affine: RAS+ mm, 4x4.
        brain: what is judged; of the tumour patient the head.
        top: 99.9th percentile of the whole image; noise levels and PSNR are relative to it.
        tissues: 0 none, else see ``TISSUES``; all 0 where they are not known.
        lesions: marked by experts.
        symmetric: a hole's mirror image along the first axis tells what is in it.
    """

    name: str
    image: Array
    affine: NDArray[np.float64]
    brain: Flags
    top: float
    tissues: NDArray[np.int8]
    lesions: Flags
    symmetric: bool = False

    @property
    def spacing(self) -> NDArray[np.float64]:
        """mm along each voxel axis."""
        return np.linalg.norm(self.affine[:3, :3], axis=0)

    def cut(self, box: Box) -> Scan:
        """The part in a box; ``top`` stays."""
        moved = self.affine.copy()
        moved[:3, 3] += self.affine[:3, :3] @ [axis.start for axis in box]
        parts = {name: getattr(self, name)[box] for name in ("image", "brain", "tissues", "lesions")}
        return replace(self, affine=moved, **parts)

    def with_image(self, image: Array) -> Scan:
        """Another image on the same grid."""
        return replace(self, image=image.astype(np.float32))


def scans(data: Path, names: Sequence[str] = MAIN) -> Iterator[Scan]:
    """Read scans.

    Args:
        data: the data folder.
        names: some of ``NAMES``.

    Raises:
        MedgenError: an unknown name.
    """
    for name in names:
        if name not in NAMES:
            raise MedgenError(f"bench: scans must be of {', '.join(NAMES)}. Got {name!r}.")
        person, contrast = name.split("-")
        if person == "mni152":
            yield _template()
        elif person == "tumour":
            yield _tumour(data, contrast)
        else:
            yield patient(data, person, contrast)


def _template() -> Scan:
    from nilearn.datasets import load_mni152_gm_template, load_mni152_template, load_mni152_wm_template

    template = load_mni152_template(resolution=1)
    image = np.asarray(template.dataobj, np.float32)
    grey, white = (
        np.asarray(load(resolution=1).dataobj, np.float32)
        for load in (load_mni152_gm_template, load_mni152_wm_template)
    )
    brain = image > 0
    tissues = np.zeros(image.shape, np.int8)
    tissues[brain & (grey < 0.2) & (white < 0.2)] = 1
    tissues[grey > 0.5], tissues[white > 0.5] = 2, 3
    return _scan("mni152-T1", image, template.affine, brain, tissues, np.zeros(image.shape, bool), symmetric=True)


def patient(data: Path, person: str, contrast: str) -> Scan:
    """A scan of ``open_ms/cross_sectional``.

    Args:
        data: the data folder.
        person: ``patient07`` (restorers are trained on it) or ``patient19``.
        contrast: a key of ``PATIENT_FILES``.
    """
    from skimage.filters import threshold_multiotsu

    folder = data / "open_ms" / "cross_sectional" / person
    files = {name: read_nifti(folder / f"{PATIENT_FILES[name]}.nii.gz") for name in ("T1", contrast)}
    anatomy, image = (np.maximum(files[name].numpy()[0], 0) for name in ("T1", contrast))
    lesions = read_nifti(folder / "lesions.nii.gz", role="label").numpy()[0] > 0
    brain = ndimage.binary_fill_holes((anatomy > 0) & (image > 0))
    tissues = np.zeros(image.shape, np.int8)
    known = brain & ~lesions
    tissues[known] = 1 + np.digitize(anatomy[known], threshold_multiotsu(anatomy[known], 3))
    return _scan(f"{person}-{contrast}", image, np.asarray(files[contrast].affine), brain, tissues, lesions)


def _tumour(data: Path, contrast: str) -> Scan:
    from medgen.restoration.scans import read_scan

    volume = read_scan(data / "brain_tumour_dicom" / TUMOUR_SERIES[contrast]).volume
    image = np.maximum(volume.numpy()[0], 0)
    head = ndimage.binary_fill_holes(image > 0.1 * np.percentile(image, 99.9))
    none = np.zeros(image.shape)
    return _scan(f"tumour-{contrast}", image, np.asarray(volume.affine), head, none, none)


def _scan(name: str, image: Array, affine: object, brain: Flags, tissues: Array, lesions: Array, **more: bool) -> Scan:
    matrix = np.array(affine, np.float64)
    top = float(np.percentile(image, 99.9))
    flags = np.asarray(brain, bool), np.asarray(tissues, np.int8), np.asarray(lesions, bool)
    return Scan(name, np.asarray(image, np.float32), matrix, flags[0], top, flags[1], flags[2], **more)


def bounding_box(mask: Flags, margin: int = 0) -> Box:
    """Around what is set, kept inside of the array."""
    found = ndimage.find_objects(mask.astype(np.int8))[0]
    return tuple(
        slice(max(0, a.start - margin), min(n, a.stop + margin)) for a, n in zip(found, mask.shape, strict=True)
    )


def blocks(brain: Flags, count: int, size: int = 48, margin: int = 8, seed: int = 0) -> list[tuple[Box, Box]]:
    """Random blocks within the brain's bounding box that show brain.

    Args:
        brain: ``(X, Y, Z)``.
        count: how many.
        size: edge of a block in voxels; less along an axis on which the bounding box is shorter.
        margin: shown to the methods around the block, as far as the scan goes.
        seed: of the places.

    Returns:
        For each the box with its margin, and the block within that.
    """
    rng = np.random.default_rng(seed)
    around = bounding_box(brain)
    places = np.argwhere(brain)
    found: list[tuple[Box, Box]] = []
    while len(found) < count:
        centre = places[rng.integers(len(places))]
        inner = tuple(_span(int(c), size, a) for c, a in zip(centre, around, strict=True))
        if brain[inner].mean() < 0.5:
            continue
        outer = tuple(
            slice(max(0, a.start - margin), min(n, a.stop + margin)) for a, n in zip(inner, brain.shape, strict=True)
        )
        within = tuple(slice(a.start - b.start, a.stop - b.start) for a, b in zip(inner, outer, strict=True))
        found.append((outer, within))
    return found


def _span(centre: int, size: int, within: slice) -> slice:
    size = min(size, within.stop - within.start)
    start = min(max(centre - size // 2, within.start), within.stop - size)
    return slice(start, start + size)


def sphere(shape: Sequence[int], centre: Sequence[float], radius_mm: float, spacing: Sequence[float]) -> Flags:
    """What lies within a radius of a voxel."""
    grids = np.ogrid[tuple(slice(n) for n in shape)]
    return sum(((g - c) * s) ** 2 for g, c, s in zip(grids, centre, spacing, strict=True)) <= radius_mm**2


def holes(scan: Scan, count: int, diameter_mm: tuple[float, float] = (20.0, 40.0), seed: int = 0) -> list[Flags]:
    """Spheres at random places, at least 90% of each in the brain.

    Args:
        scan: where.
        count: how many.
        diameter_mm: from, to.
        seed: of places and sizes.
    """
    rng = np.random.default_rng(seed)
    places = np.argwhere(scan.brain)
    found: list[Flags] = []
    while len(found) < count:
        centre, radius = places[rng.integers(len(places))], rng.uniform(*diameter_mm) / 2
        ball = sphere(scan.image.shape, centre, radius, scan.spacing)
        if scan.brain[ball].mean() >= 0.9:
            found.append(ball)
    return found


def as_meta(image: NDArray, affine: NDArray[np.float64]) -> MetaTensor:
    """``(1, X, Y, Z)`` float32 with its affine."""
    values = torch.from_numpy(np.ascontiguousarray(image, np.float32))[None]
    return MetaTensor(values, affine=torch.from_numpy(np.array(affine, np.float64)))
