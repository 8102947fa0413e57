"""What kind of DICOM object a file holds: an image of a volume, or something that is set aside."""

from __future__ import annotations

from medgen.io.dicom.header import Header

__all__ = ["set_aside"]

_DIRECTORY = "1.2.840.10008.1.3.10"
_STORAGE = "1.2.840.10008.5.1.4.1.1."
_OTHER = {
    "4.2": "spectroscopy",
    "66.4": "a segmentation",
    "66.7": "a label map segmentation",
    "66": "raw data",
    "66.1": "a spatial registration",
    "66.2": "spatial fiducials",
    "66.3": "a deformable registration",
    "66.5": "a surface segmentation",
    "66.6": "tractography results",
    "67": "real world value mapping",
    "9": "a waveform",
    "11": "a presentation state",
    "88": "a structured report",
    "104": "an encapsulated document",
    "481.3": "a structure set",
    "481.4": "a treatment record",
    "481.5": "a treatment plan",
    "481.6": "a treatment record",
    "481.7": "a treatment record",
    "481.8": "a treatment plan",
    "481.9": "a treatment record",
}


def set_aside(header: Header) -> tuple[str, str] | None:
    """Code and reason for a file that is no image of a volume; None for one that may be.

    Segmentations, reports, plans, registrations and the like by their SOP class; whatever else has no pixels and is of
    no image class; directories; localizers by the third value of ImageType.
    """
    name = header.path.name
    sop_class = header.text(0x00080016) or header.text(0x00020002)
    if sop_class == _DIRECTORY:
        return "DICOMDIR", f"'{name}' is an index of files."
    if sop_class.startswith(_STORAGE):
        short = sop_class.removeprefix(_STORAGE)
        kind = _OTHER.get(short) or _OTHER.get(short.split(".")[0] if short.split(".")[0] != "66" else "")
        if kind:
            return "NOT_AN_IMAGE", f"'{name}' is {kind}."
    elif sop_class and not header.pixel_tag and header.fault is None:
        return "NOT_AN_IMAGE", f"'{name}' is of class {sop_class} and holds no pixels."
    if not header.pixel_tag and header.fault is None and not (header.elements.keys() & {0x00280010, 0x00280011}):
        return "NOT_AN_IMAGE", f"'{name}' holds no pixels."
    if {"LOCALIZER", "SCOUT"} & set(header.text(0x00080008).upper().split("\\")):
        return "LOCALIZER", f"'{name}' is a localizer."
    return None
