"""Makes the two volumes in this folder from the T1 of patient 07 of the open_ms data.

Usage: python make.py PATH/TO/open_ms/cross_sectional/patient07/T1.nii.gz
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from monai.data import MetaTensor

from medgen.io.nifti import read_nifti, write_nifti

MARGIN = 4  # voxels kept around the brain
CENTER_MM, RADIUS_MM = (-28.0, 12.0, 28.0), 15.0  # RAS+, in the left frontal lobe


def crop(volume: MetaTensor) -> MetaTensor:
    """Whole numbers, cut to the brain and a margin."""
    values = volume.as_tensor()[0].round().to(torch.int16)
    found = (values > 5).nonzero()
    low, high = found.amin(0) - MARGIN, found.amax(0) + MARGIN + 1
    affine = volume.affine.clone()
    affine[:3, 3] += affine[:3, :3] @ low.to(affine.dtype)
    return MetaTensor(values[tuple(slice(a, b) for a, b in zip(low, high, strict=True))][None], affine=affine)


def sphere(volume: MetaTensor) -> MetaTensor:
    """1 inside the hole, 0 elsewhere, on the volume's grid."""
    index = torch.stack(torch.meshgrid(*[torch.arange(n) for n in volume.shape[1:]], indexing="ij"), -1).double()
    points = index @ volume.affine[:3, :3].T + volume.affine[:3, 3]
    distance = (points - torch.tensor(CENTER_MM)).norm(dim=-1)
    return MetaTensor((distance <= RADIUS_MM)[None].to(torch.uint8), affine=volume.affine)


if __name__ == "__main__":
    folder = Path(__file__).parent
    scan = crop(read_nifti(sys.argv[1]))
    write_nifti(folder / "sub-07_T1w.nii.gz", scan, dtype=np.int16)
    write_nifti(folder / "sub-07_hole.nii.gz", sphere(scan))
