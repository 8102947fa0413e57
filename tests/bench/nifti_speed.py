"""Speed of NIfTI files against nibabel, interleaved: ``python -m tests.bench.nifti_speed [FILE ...]``.

Reading: ``.nii.gz`` to an array of the stored type, nibabel's ``np.asarray(dataobj)`` against a survey and a load.
Writing: nibabel's ``save`` (its default, level 1) against ``write_nifti``, which also waits for the disk. Each figure
is the ratio of the fastest of several runs, alternated; sizes are ours over nibabel's.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from monai.data import MetaTensor

from medgen.io.nifti import read_nifti, write_nifti
from medgen.io.nifti_survey import survey_nifti

RUNS = 7


def ct_like(shape: tuple[int, int, int] = (512, 512, 100), seed: int = 0) -> np.ndarray:
    """A body in air with noise, HU, int16, first axis fastest."""
    rng = np.random.default_rng(seed)
    x, y = np.meshgrid(*(np.linspace(-1, 1, size) for size in shape[:2]), indexing="ij")
    radius = np.hypot(x, y)
    volume = np.empty(shape, np.int16, order="F")
    for k in range(shape[2]):
        tissue = 40 + 60 * np.sin(7 * x + k / 10) * np.cos(5 * y)
        noise = rng.normal(0, 12, radius.shape) * (radius < 0.82)
        volume[..., k] = np.rint(np.where(radius < 0.8, tissue, -1000) + noise)
    return volume


def fastest(*actions: Callable[[], object]) -> list[float]:
    """Seconds of the fastest run of each action; runs alternate, so that all see the same machine."""
    best = [float("inf")] * len(actions)
    for _ in range(RUNS):
        for place, action in enumerate(actions):
            start = time.perf_counter()
            action()
            best[place] = min(best[place], time.perf_counter() - start)
    return best


def read_ratios(path: Path) -> tuple[float, float]:
    """How many times faster than nibabel: survey and load, and :func:`read_nifti`."""
    theirs, ours, image = fastest(
        lambda: np.asarray(nib.load(path).dataobj),
        lambda: survey_nifti(path).volumes[0].load(),
        lambda: read_nifti(path),
    )
    return theirs / ours, theirs / image


def write_ratio(path: Path, folder: Path, order: str) -> tuple[float, float]:
    """How many times faster than nibabel, and the size of the file against nibabel's.

    Args:
        path: whose voxels are written.
        folder: for the outputs.
        order: memory order of the volume, ``"F"`` (as files have it) or ``"C"`` (as models leave it).
    """
    image = nib.load(path)
    stored = (
        np.asarray(image.dataobj.get_unscaled()).reshape(image.shape[:3]).astype(image.get_data_dtype(), order=order)
    )
    plain = nib.Nifti1Image(stored, image.affine)
    volume = MetaTensor(torch.from_numpy(stored)[None], affine=torch.from_numpy(image.affine))
    theirs, ours = fastest(
        lambda: nib.save(plain, folder / "nibabel.nii.gz"), lambda: write_nifti(folder / "medgen.nii.gz", volume)
    )
    sizes = [(folder / f"{name}.nii.gz").stat().st_size for name in ("medgen", "nibabel")]
    return theirs / ours, sizes[0] / sizes[1]


def main(names: Sequence[str]) -> None:
    """Prints a row per file, and one for a volume like a CT."""
    print(f"{'file':44} {'read':>6} {'as image':>9} {'write':>6} {'size':>6} {'write C':>8}")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        nib.save(nib.Nifti1Image(ct_like(), np.eye(4)), folder / "ct-like-512x512x100.nii.gz")
        for path in [folder / "ct-like-512x512x100.nii.gz", *map(Path, names)]:
            read, image = read_ratios(path)
            (write, size), (other, _) = write_ratio(path, folder, "F"), write_ratio(path, folder, "C")
            print(f"{path.name[-44:]:44} {read:6.2f} {image:9.2f} {write:6.2f} {size:6.3f} {other:8.2f}")


if __name__ == "__main__":
    main(sys.argv[1:])
