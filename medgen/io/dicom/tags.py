"""The attributes that reading needs, with the value representation that implicit files do not state."""

from __future__ import annotations

__all__ = ["KEPT", "LOCATED", "PIXELS", "SEQUENCES", "tag_name"]

PIXELS = {0x7FE00010: "PixelData", 0x7FE00008: "FloatPixelData", 0x7FE00009: "DoubleFloatPixelData"}
"""Where a header ends: the three kinds of pixels."""

SEQUENCES = {
    0x00283000: "ModalityLUTSequence",
    0x52009229: "SharedFunctionalGroupsSequence",
    0x52009230: "PerFrameFunctionalGroupsSequence",
    0x00209113: "PlanePositionSequence",
    0x00209116: "PlaneOrientationSequence",
    0x00289110: "PixelMeasuresSequence",
    0x00289145: "PixelValueTransformationSequence",
    0x00209111: "FrameContentSequence",
    0x00209310: "TemporalPositionSequence",
    0x00189114: "MREchoSequence",
    0x00189117: "MRDiffusionSequence",
    0x00189115: "MRModifierSequence",
    0x00189118: "CardiacSynchronizationSequence",
    0x00189226: "MRImageFrameTypeSequence",
    0x00189329: "CTImageFrameTypeSequence",
    0x00189076: "DiffusionGradientDirectionSequence",
}
"""Sequences whose items are kept; all others are stepped over."""

KEPT = {
    0x00020010: ("TransferSyntaxUID", "UI"),
    0x00020002: ("MediaStorageSOPClassUID", "UI"),
    0x00080005: ("SpecificCharacterSet", "CS"),
    0x00080008: ("ImageType", "CS"),
    0x00080016: ("SOPClassUID", "UI"),
    0x00080018: ("SOPInstanceUID", "UI"),
    0x0008001C: ("SyntheticData", "CS"),
    0x00080031: ("SeriesTime", "TM"),
    0x00080022: ("AcquisitionDate", "DA"),
    0x0008002A: ("AcquisitionDateTime", "DT"),
    0x00080032: ("AcquisitionTime", "TM"),
    0x00080033: ("ContentTime", "TM"),
    0x00080060: ("Modality", "CS"),
    0x00100020: ("PatientID", "LO"),
    0x00180010: ("ContrastBolusAgent", "LO"),
    0x00180024: ("SequenceName", "SH"),
    0x00180060: ("KVP", "DS"),
    0x00181030: ("ProtocolName", "LO"),
    0x00181210: ("ConvolutionKernel", "SH"),
    0x00089208: ("ComplexImageComponent", "CS"),
    0x0008103E: ("SeriesDescription", "LO"),
    0x00089007: ("FrameType", "CS"),
    0x00180050: ("SliceThickness", "DS"),
    0x00180080: ("RepetitionTime", "DS"),
    0x00180081: ("EchoTime", "DS"),
    0x00180082: ("InversionTime", "DS"),
    0x00180086: ("EchoNumbers", "IS"),
    0x00180088: ("SpacingBetweenSlices", "DS"),
    0x00181060: ("TriggerTime", "DS"),
    0x00181314: ("FlipAngle", "DS"),
    0x00189079: ("InversionTimes", "FD"),
    0x00189082: ("EffectiveEchoTime", "FD"),
    0x00189087: ("DiffusionBValue", "FD"),
    0x00189089: ("DiffusionGradientOrientation", "FD"),
    0x00189074: ("FrameAcquisitionDateTime", "DT"),
    0x00189151: ("FrameReferenceDateTime", "DT"),
    0x00189153: ("CardiacTriggerDelayTime", "FD"),
    0x00190010: ("PrivateCreator19", "LO"),
    0x0019100A: ("NumberOfImagesInMosaic", "US"),
    0x0019100C: ("PrivateBValue", "IS"),
    0x0020000D: ("StudyInstanceUID", "UI"),
    0x0020000E: ("SeriesInstanceUID", "UI"),
    0x00200011: ("SeriesNumber", "IS"),
    0x00200012: ("AcquisitionNumber", "IS"),
    0x00200032: ("ImagePositionPatient", "DS"),
    0x00200037: ("ImageOrientationPatient", "DS"),
    0x00200052: ("FrameOfReferenceUID", "UI"),
    0x00200100: ("TemporalPositionIdentifier", "IS"),
    0x00201041: ("SliceLocation", "DS"),
    0x00209056: ("StackID", "SH"),
    0x00209128: ("TemporalPositionIndex", "UL"),
    0x0020930D: ("TemporalPositionTimeOffset", "FD"),
    0x00209153: ("NominalCardiacTriggerDelayTime", "FD"),
    0x00209241: ("NominalPercentageOfCardiacPhase", "FL"),
    0x00209157: ("DimensionIndexValues", "UL"),
    0x00280002: ("SamplesPerPixel", "US"),
    0x00280004: ("PhotometricInterpretation", "CS"),
    0x00280008: ("NumberOfFrames", "IS"),
    0x00280010: ("Rows", "US"),
    0x00280011: ("Columns", "US"),
    0x00280030: ("PixelSpacing", "DS"),
    0x00280100: ("BitsAllocated", "US"),
    0x00280101: ("BitsStored", "US"),
    0x00280102: ("HighBit", "US"),
    0x00280103: ("PixelRepresentation", "US"),
    0x00280120: ("PixelPaddingValue", "US"),
    0x00280121: ("PixelPaddingRangeLimit", "US"),
    0x00280301: ("BurnedInAnnotation", "CS"),
    0x00281052: ("RescaleIntercept", "DS"),
    0x00281053: ("RescaleSlope", "DS"),
    0x00282110: ("LossyImageCompression", "CS"),
    0x00283002: ("LUTDescriptor", "US"),
    0x00283006: ("LUTData", "OW"),
    0x00541300: ("FrameReferenceTime", "DS"),
    0x00541330: ("ImageIndex", "US"),
    0x7FE00001: ("ExtendedOffsetTable", "OV"),
}
"""Attributes whose values are kept: keyword and value representation."""

LOCATED = frozenset({0x00291010, 0x00291110, 0x00291210})
"""Large private attributes of which only the place in the file is kept (Siemens CSA image header)."""

_NAMES = {tag: name for tag, (name, _) in KEPT.items()} | SEQUENCES | PIXELS


def tag_name(tag: int) -> str:
    """``"Rows (0028,0010)"``, for messages."""
    number = f"({tag >> 16:04X},{tag & 0xFFFF:04X})"
    return f"{_NAMES[tag]} {number}" if tag in _NAMES else number
