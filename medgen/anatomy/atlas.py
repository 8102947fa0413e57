"""The bundled labelled heads."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from importlib.resources import as_file, files
from typing import Final

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from medgen.checks import check_choice

ATLASES: Final[tuple[str, ...]] = ("colin27",)
"""Names of the bundled atlases."""


@dataclass(frozen=True)
class Atlas:
    """A labelled head.

    Attributes:
        image: T1, shape ``(X, Y, Z)``, float32 in 0..1; 1 is the 99.9th percentile of the head (brighter is cut).
        label: ids of `medgen.anatomy.labels.LABELS`, shape ``(X, Y, Z)``, int16.
        brain: the brain with the CSF in its sulci, as a brain extraction keeps it, bool ``(X, Y, Z)``.
        affine: voxel index to RAS+ mm, 4 x 4 float64; the axes run right, anterior, superior.
    """

    image: NDArray[np.float32]
    label: NDArray[np.int16]
    brain: NDArray[np.bool_]
    affine: NDArray[np.float64]


@functools.cache
def load_atlas(name: str = "colin27") -> Atlas:
    """Read a bundled atlas; kept for the life of the process, so do not write to its arrays.

    Args:
        name: one of `ATLASES`.

    Returns:
        The atlas; its arrays are read-only.

    Raises:
        MedgenError: unknown name.

    Example:
        >>> load_atlas("colin27").label.shape
        (181, 217, 181)
    """
    check_choice("load_atlas", "name", name, ATLASES)
    stored, affine = _read(f"{name}_t1.nii.gz")
    label, _ = _read(f"{name}_label.nii.gz")
    brain = _read(f"{name}_brain.nii.gz")[0] > 0
    top = np.percentile(stored[label > 0], 99.9)
    image = np.minimum(stored.astype(np.float32) / np.float32(top), np.float32(1))
    for array in (image, label, brain, affine):
        array.setflags(write=False)
    return Atlas(image, label, brain, affine)


def _read(name: str) -> tuple[NDArray[np.int16], NDArray[np.float64]]:
    with as_file(files("medgen.anatomy") / "data" / name) as path:
        image = nib.nifti1.Nifti1Image.from_filename(path)
        return np.asarray(image.dataobj, np.int16), np.array(image.affine, np.float64)
