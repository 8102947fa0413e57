"""Coded words of the DICOM objects that medgen writes: how an image was derived, what a segment shows.

References:
    DICOM PS3.16: CID 7202 (source image purposes), CID 7203 (image derivation), CID 7005 (contributing equipment),
    CID 7140 and 7151 (anatomic structures), CID 244 (laterality).
"""

from __future__ import annotations

from typing import NamedTuple

from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.sr.coding import Code

__all__ = ["DERIVATIONS", "PURPOSES", "SegmentCodes", "code_sequence", "segment_codes"]

PURPOSES = {
    "source": Code("121322", "DCM", "Source image for image processing operation"),
    "acquisition": Code("109101", "DCM", "Acquisition Equipment"),
    "processing": Code("109102", "DCM", "Processing Equipment"),
    "synthesis": Code("109100", "DCM", "Synthesizing Equipment"),
}
"""Why something is referenced."""

DERIVATIONS = {
    "processed": Code("processed", "99MEDGEN", "Image processing"),
    "converted": Code("converted", "99MEDGEN", "Conversion from another file format"),
    "denoised": Code("denoised", "99MEDGEN", "Noise reduction by a model"),
    "restored": Code("restored", "99MEDGEN", "Image restoration by a model"),
    "inpainted": Code("inpainted", "99MEDGEN", "Inpainting by a generative model"),
    "patched": Code("patched", "99MEDGEN", "Inpainting with tissue from elsewhere in the scan"),
    "generated": Code("generated", "99MEDGEN", "Generation by a generative model"),
    "resampled": Code("113085", "DCM", "Spatial resampling"),
    "smoothed": Code("113087", "DCM", "Smoothing"),
    "segmented": Code("113076", "DCM", "Segmentation"),
}
"""How an image was made. DICOM has no code for most of what models do: these are medgen's own."""

_TISSUE = Code("85756007", "SCT", "Tissue")
_STRUCTURE = Code("91723000", "SCT", "Anatomical Structure")
_ALTERED = Code("49755003", "SCT", "Morphologically Altered Structure")
_SUBSTANCE = Code("91720002", "SCT", "Body Substance")
_SIDES = {"left": Code("7771000", "SCT", "Left"), "right": Code("24028007", "SCT", "Right")}

# by the name of a label, lower case, without its side
_TYPES = {
    "cerebral-white-matter": (_STRUCTURE, Code("68523003", "SCT", "Cerebral White Matter")),
    "cerebral-cortex": (_STRUCTURE, Code("40146001", "SCT", "Cerebral cortex")),
    "lateral-ventricle": (_STRUCTURE, Code("66720007", "SCT", "Lateral Ventricle")),
    "cerebellum-white-matter": (_STRUCTURE, Code("33060004", "SCT", "Cerebellar White Matter")),
    "cerebellum-cortex": (_STRUCTURE, Code("25991003", "SCT", "Cerebellar Cortex")),
    "thalamus": (_STRUCTURE, Code("42695009", "SCT", "Thalamus")),
    "caudate": (_STRUCTURE, Code("11000004", "SCT", "Caudate Nucleus")),
    "putamen": (_STRUCTURE, Code("89278009", "SCT", "Putamen")),
    "pallidum": (_STRUCTURE, Code("14738005", "SCT", "Globus Pallidus")),
    "third-ventricle": (_STRUCTURE, Code("49841001", "SCT", "Third ventricle")),
    "fourth-ventricle": (_STRUCTURE, Code("35918002", "SCT", "Fourth Ventricle")),
    "brain-stem": (_STRUCTURE, Code("119238007", "SCT", "Brain Stem")),
    "hippocampus": (_STRUCTURE, Code("5366008", "SCT", "Hippocampus")),
    "anterior-hippocampus": (_STRUCTURE, Code("5366008", "SCT", "Hippocampus")),
    "posterior-hippocampus": (_STRUCTURE, Code("5366008", "SCT", "Hippocampus")),
    "amygdala": (_STRUCTURE, Code("4958002", "SCT", "Amygdala")),
    "csf": (_SUBSTANCE, Code("65216001", "SCT", "Cerebrospinal Fluid")),
    "white-matter-lesion": (_ALTERED, Code("52988006", "SCT", "Lesion")),
    "lesion": (_ALTERED, Code("52988006", "SCT", "Lesion")),
    "skull": (_STRUCTURE, Code("89546000", "SCT", "Skull")),
    "head-soft-tissue": (_TISSUE, Code("87784001", "SCT", "Soft tissue")),
    "scalp": (_STRUCTURE, Code("41695006", "SCT", "Scalp")),
    "brain": (_STRUCTURE, Code("12738006", "SCT", "Brain")),
}


class SegmentCodes(NamedTuple):
    """What a segment shows.

    Attributes:
        category: of the segmented property.
        kind: the segmented property itself.
        side: left, right or None.
    """

    category: Code
    kind: Code
    side: Code | None


def segment_codes(name: str) -> SegmentCodes:
    """The codes for a label's name; a name that is not in the table is generic tissue.

    Args:
        name: as in a label table, such as ``Left-Hippocampus``; case, spaces and underscores do not matter.

    Example:
        >>> segment_codes("Left-Hippocampus").kind.meaning, segment_codes("left hippocampus").side.meaning
        ('Hippocampus', 'Left')
        >>> segment_codes("something").kind.meaning
        'Tissue'
    """
    plain = name.strip().lower().replace(" ", "-").replace("_", "-")
    side, _, rest = plain.partition("-")
    if side not in _SIDES or not rest:
        side, rest = "", plain
    category, kind = _TYPES.get(rest, (_TISSUE, _TISSUE))
    return SegmentCodes(category, kind, _SIDES.get(side))


def code_sequence(*codes: Code) -> Sequence:
    """A code sequence with one item for each code."""
    items = []
    for code in codes:
        item = Dataset()
        item.CodeValue = code.value
        item.CodingSchemeDesignator = code.scheme_designator
        item.CodeMeaning = code.meaning
        items.append(item)
    return Sequence(items)
