"""The label ids of every label map in medgen, and the tissues they stand for.

The numbers are those of FreeSurfer's colour table, so that an ``aseg`` or SynthSeg map can be used as it is; 259
(scalp) is medgen's own. Left is the patient's left: negative x in RAS+.

References:
    Fischl et al., "Whole brain segmentation", Neuron 33 (2002).
    Billot et al., "SynthSeg", Medical Image Analysis 86 (2023).
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray


class LabelInfo(NamedTuple):
    """What one label id means.

    Attributes:
        name: readable name, as in FreeSurfer's table where it has one.
        tissue: the tissue class; left and right share one.
        side: "left", "right" or "" for a midline or unsided structure.
        brain: whether the label belongs to a brain-extracted image (its ventricles and lesions included).
    """

    name: str
    tissue: str
    side: str
    brain: bool


LABELS: Final[dict[int, LabelInfo]] = {
    0: LabelInfo("Background", "background", "", False),
    2: LabelInfo("Left-Cerebral-White-Matter", "white_matter", "left", True),
    3: LabelInfo("Left-Cerebral-Cortex", "cortex", "left", True),
    4: LabelInfo("Left-Lateral-Ventricle", "ventricle", "left", True),
    7: LabelInfo("Left-Cerebellum-White-Matter", "cerebellum_white_matter", "left", True),
    8: LabelInfo("Left-Cerebellum-Cortex", "cerebellum_cortex", "left", True),
    10: LabelInfo("Left-Thalamus", "thalamus", "left", True),
    11: LabelInfo("Left-Caudate", "caudate", "left", True),
    12: LabelInfo("Left-Putamen", "putamen", "left", True),
    13: LabelInfo("Left-Pallidum", "pallidum", "left", True),
    14: LabelInfo("Third-Ventricle", "ventricle", "", True),
    15: LabelInfo("Fourth-Ventricle", "ventricle", "", True),
    16: LabelInfo("Brain-Stem", "brain_stem", "", True),
    17: LabelInfo("Left-Hippocampus", "medial_temporal", "left", True),
    18: LabelInfo("Left-Amygdala", "medial_temporal", "left", True),
    24: LabelInfo("CSF", "csf", "", True),
    41: LabelInfo("Right-Cerebral-White-Matter", "white_matter", "right", True),
    42: LabelInfo("Right-Cerebral-Cortex", "cortex", "right", True),
    43: LabelInfo("Right-Lateral-Ventricle", "ventricle", "right", True),
    46: LabelInfo("Right-Cerebellum-White-Matter", "cerebellum_white_matter", "right", True),
    47: LabelInfo("Right-Cerebellum-Cortex", "cerebellum_cortex", "right", True),
    49: LabelInfo("Right-Thalamus", "thalamus", "right", True),
    50: LabelInfo("Right-Caudate", "caudate", "right", True),
    51: LabelInfo("Right-Putamen", "putamen", "right", True),
    52: LabelInfo("Right-Pallidum", "pallidum", "right", True),
    53: LabelInfo("Right-Hippocampus", "medial_temporal", "right", True),
    54: LabelInfo("Right-Amygdala", "medial_temporal", "right", True),
    77: LabelInfo("White-Matter-Lesion", "lesion", "", True),
    165: LabelInfo("Skull", "skull", "", False),
    258: LabelInfo("Head-Soft-Tissue", "soft_tissue", "", False),
    259: LabelInfo("Scalp", "scalp", "", False),
}
"""Every label id and what it means."""

TISSUES: Final[tuple[str, ...]] = (
    "background",
    "csf",
    "ventricle",
    "cortex",
    "white_matter",
    "thalamus",
    "caudate",
    "putamen",
    "pallidum",
    "medial_temporal",
    "cerebellum_cortex",
    "cerebellum_white_matter",
    "brain_stem",
    "lesion",
    "skull",
    "soft_tissue",
    "scalp",
)
"""Tissue classes, in the order of the conditioning channels (background first, left out there)."""


def ids_of(tissue: str) -> tuple[int, ...]:
    """The label ids of one tissue, ascending.

    Example:
        >>> ids_of("cortex")
        (3, 42)
    """
    return tuple(label for label, info in sorted(LABELS.items()) if info.tissue == tissue)


CHANNELS: Final[tuple[tuple[str, tuple[int, ...]], ...]] = tuple((name, ids_of(name)) for name in TISSUES[1:])
"""Conditioning channels of the label-conditioned networks: (tissue, its label ids), background left out."""

BRAIN_IDS: Final[tuple[int, ...]] = tuple(label for label, info in sorted(LABELS.items()) if info.brain)
"""Ids kept in a brain-extracted label map (CSF only inside the brain's hull, see `Population`)."""


def opposite(label: int) -> int:
    """The id of the same structure on the other side; midline structures stay.

    Example:
        >>> opposite(17), opposite(53), opposite(16)
        (53, 17, 16)
    """
    info = LABELS[label]
    if not info.side:
        return label
    old, new = ("Left", "Right") if info.side == "left" else ("Right", "Left")
    other = info.name.replace(old, new)
    return next(key for key, value in LABELS.items() if value.name == other)


def swap_sides(label: NDArray[np.int16]) -> NDArray[np.int16]:
    """Exchange left and right ids in a label map; the array is not mirrored.

    Args:
        label: label map of any shape with ids of `LABELS`.

    Returns:
        A new map of the same shape and dtype.
    """
    table = np.arange(max(LABELS) + 1, dtype=label.dtype)
    for key in LABELS:
        table[key] = opposite(key)
    return table[label]
