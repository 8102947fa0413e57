"""open_ms_data, cross-sectional: ``patient07/T1.nii.gz``, ``T2``, ``FLAIR``, ``T1POST`` and a lesion mask.

The names of the source (``T1W``, ``T1WKS``, ``consensus_gt``) are read as well.
"""

from __future__ import annotations

import re
from pathlib import Path

from medgen.io.datasets.case import Case, ImageFile, listed, modality_name, stem

__all__ = ["is_open_ms", "read_open_ms"]

_FOLDER = re.compile(r"patient\d+")
_LABELS = ("lesions", "consensus_gt")
_OTHERS = ("brain", "brainmask", "brain_mask")


def is_open_ms(path: Path) -> bool:
    """Whether a folder holds folders ``patientNN`` with a T1 each."""
    return any(
        folder.is_dir() and _FOLDER.fullmatch(folder.name) and _names(folder) for folder in path.glob("patient*")
    )


def _names(folder: Path) -> dict[str, Path]:
    """Files by what they are, the patient's name before it left out."""
    return {stem(path).removeprefix(f"{folder.name}_"): path for path in listed(folder)}


def read_open_ms(path: Path) -> list[Case]:
    """All patients.

    Args:
        path: folder of ``patientNN``.
    """
    cases = []
    for folder in sorted(path.glob("patient*")):
        found = _names(folder) if _FOLDER.fullmatch(folder.name) else {}
        label = next((found[name] for name in _LABELS if name in found), None)
        images = {modality_name(n): ImageFile(f) for n, f in found.items() if n not in (*_LABELS, *_OTHERS)}
        if images:
            cases.append(Case(folder.name, images, None if label is None else ImageFile(label)))
    return cases
