"""A small tree in the layout of open_ms's cross-sectional set, made of the one scan that lies in the repository."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np

SCAN = Path(__file__).parents[1] / "data" / "open_ms" / "sub-07_T1w.nii.gz"


def open_ms_tree(folder: Path) -> Path:
    """``patient19`` and ``patient07`` with T1, T2 and FLAIR (T1 reversed and squared) and a lesion each."""
    scan = nib.load(SCAN)
    values = np.asarray(scan.dataobj, dtype=np.float32)
    top = float(values.max())
    contrasts = {"T1": values, "T2": np.where(values > 0, top - values, 0), "FLAIR": values**2 / top}
    lesions = np.zeros(values.shape, dtype=np.uint8)
    middle = tuple(slice(n // 2 - 3, n // 2 + 3) for n in values.shape)
    lesions[middle] = 1
    for person in ("patient19", "patient07"):
        (folder / person).mkdir(parents=True)
        for name, contrast in contrasts.items():
            nib.save(nib.Nifti1Image(contrast.astype(np.float32), scan.affine), folder / person / f"{name}.nii.gz")
        nib.save(nib.Nifti1Image(lesions, scan.affine), folder / person / "lesions.nii.gz")
    return folder
