"""Writing of a label map as a DICOM segmentation (SEG): one segment for each id.

Frames: volumes come with RAS+ mm affines; everything in the file is LPS+ mm, as DICOM has it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from collections.abc import Sequence as Sequence_
from pathlib import Path
from typing import Any, Literal

import highdicom as hd
import numpy as np
import torch
from monai.data import MetaTensor
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian

from medgen import __version__
from medgen.checks import MedgenError, check_choice
from medgen.io.atomic import atomic_path
from medgen.io.dicom_codes import code_sequence, segment_codes
from medgen.io.dicom_identity import (
    check_provenance,
    contributing_equipment,
    digest_of,
    kept_identity,
    model_name,
    software_versions,
    uid_of,
)
from medgen.io.dicom_objects import (
    Synthetic,
    check_identity,
    check_overlap,
    decimals,
    encoded,
    file_meta,
    geometry_key,
    series_item,
    series_number,
    set_dates,
    write_checked,
)
from medgen.io.dicom_planes import Planes, planes_of
from medgen.io.dicom_reference import Reference, copied, keywords, quiet, read_reference
from medgen.io.findings import Refused

__all__ = ["write_segmentation"]

AlgorithmType = Literal["AUTOMATIC", "SEMIAUTOMATIC", "MANUAL"]
_MOST_SEGMENTS = 65535
_UNKNOWN_MOMENT = {"ContentDate": "19000101", "ContentTime": "000000"}  # a SEG must have one
_PLACE = keywords(
    "Modality Rows Columns ImagePositionPatient ImageOrientationPatient PixelSpacing SliceThickness NumberOfFrames "
    "SharedFunctionalGroupsSequence PerFrameFunctionalGroupsSequence DimensionIndexSequence "
    "DimensionOrganizationSequence LossyImageCompression LossyImageCompressionRatio LossyImageCompressionMethod"
)
_FILLED_IN_LATER = keywords(
    "PatientName PatientID PatientBirthDate PatientSex StudyID StudyDate StudyTime AccessionNumber "
    "ReferringPhysicianName"
)
_CLOCKED = ("InstanceCreationDate", "InstanceCreationTime", "SeriesDate", "SeriesTime", "ContentDate", "ContentTime")


@quiet()
def write_segmentation(
    path: str | os.PathLike[str],
    label: MetaTensor,
    names: Mapping[int, str],
    reference: Sequence_[str | os.PathLike[str]],
    *,
    description: str = "Segmentation",
    provenance: Mapping[str, Any] | None = None,
    algorithm_type: AlgorithmType = "AUTOMATIC",
    synthetic: Synthetic = "no",
    overwrite: bool = False,
) -> Path:
    """Writes a label map as one DICOM SEG file of binary segments, atomically.

    Segments are numbered from 1 in the order of the ids; each says its id in SegmentDescription. Patient, study and
    frame of reference are those of the reference. Slices that lie as the reference's refer to it one by one; a label
    map on another grid of the same frame of reference has its own planes. Tilted slices are written as they are: every
    frame of a SEG has a position of its own.

    Args:
        path: of the file, ``.dcm`` by custom.
        label: shape ``(1, X, Y, Z)``, whole numbers, 0 = background; affine RAS+ mm.
        names: name of each id; an id without one is called ``Label 7``. Names of medgen's tables and their like get
            their SNOMED codes, others are generic tissue.
        reference: the files of the image series that the label map belongs to (real, derived or synthetic).
        description: SeriesDescription and ContentDescription, at most 64 characters.
        provenance: as in :func:`medgen.io.write_dicom.write_series`.
        algorithm_type: who drew the segments.
        synthetic: as in :func:`medgen.io.write_dicom.write_series`.
        overwrite: replaces a file of that name.

    Returns:
        ``path``.

    Raises:
        MedgenError: a wrong argument, or a path that exists or cannot be written.
        Refused: ``BAD_LABEL``, ``BAD_REFERENCE``, ``BAD_AFFINE``, ``UNWRITABLE_GEOMETRY``, ``SINGLE_SLICE``.
        OSError: the disk is full, or the like; no file of that name is left behind.
    """
    check_choice("write_segmentation", "synthetic", synthetic, ("no", "part", "all"))
    check_choice("write_segmentation", "algorithm_type", algorithm_type, ("AUTOMATIC", "SEMIAUTOMATIC", "MANUAL"))
    path = Path(path)
    if path.exists() and not overwrite:
        raise MedgenError(f"'{path}' exists. Choose another output, or allow to overwrite it.")
    facts = check_provenance(provenance or {})
    source = read_reference(reference)
    check_identity(source, synthetic, None, "write_segmentation")
    ids = _ids(label)
    planes = planes_of(label.affine.cpu().numpy(), ids.shape, source.orientation)
    check_overlap(planes, source)
    dataset = _segmentation(planes, planes.frames(ids), names, source, description, facts, algorithm_type, synthetic)
    content = encoded(dataset)
    with atomic_path(path) as temporary:
        write_checked(temporary, content)
    return path


def _segmentation(
    planes: Planes,
    frames: np.ndarray,
    names: Mapping[int, str],
    reference: Reference,
    description: str,
    provenance: dict[str, Any],
    algorithm_type: AlgorithmType,
    synthetic: Synthetic,
) -> Dataset:
    """The data set: highdicom's, with medgen's identity, and nothing in it from a clock or a random number."""
    present = [int(number) for number in np.unique(frames) if number]
    if not 0 < len(present) <= _MOST_SEGMENTS:
        raise Refused(
            "BAD_LABEL", f"the label map has {len(present)} ids above 0; 1 to {_MOST_SEGMENTS} can be written"
        )
    numbers = (np.searchsorted([0, *present], frames)).astype(np.uint8 if len(present) < 256 else np.uint16)
    named = {number: str(names.get(number, f"Label {number}")) for number in present}
    digest = digest_of(geometry_key(planes), np.ascontiguousarray(frames, dtype="<i4").tobytes())
    uids = [image.sop_instance for image in reference.images]
    key = [uids, provenance, description, algorithm_type, synthetic, list(named.items()), digest, __version__]
    series_uid = uid_of("segmentation series", key)
    segments = [
        _segment(number, label, name, provenance, algorithm_type)
        for number, (label, name) in enumerate(named.items(), start=1)
    ]
    model = model_name(provenance)
    identity = kept_identity(reference)
    dataset = _by_highdicom(
        planes,
        numbers,
        reference,
        identity,
        segment_descriptions=segments,
        series_instance_uid=series_uid,
        series_number=series_number(reference, series_uid),
        sop_instance_uid=uid_of("segmentation", key),
        instance_number=1,
        manufacturer="medgen",
        manufacturer_model_name=model,
        software_versions=f"medgen {__version__}",
        device_serial_number=str(provenance.get("model_sha256") or __version__)[:64],
        content_description=description.replace("\\", "/")[:64],
        content_label="SEGMENTATION",
        content_creator_name="Software^medgen",
    )
    _without_clock(dataset, reference, key)
    dataset.update(identity)
    dataset.SoftwareVersions = software_versions(provenance)
    dataset.SeriesDescription = description.replace("\\", "/")[:64]
    dataset.ContributingEquipmentSequence = contributing_equipment(provenance, reference, synthetic == "all")
    dataset.ReferencedSeriesSequence = Sequence([series_item(reference)])
    if synthetic != "no" or reference.synthetic:
        dataset.SyntheticData = "YES"
    if not all(text.isascii() for text in (description, model, *named.values())):
        dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.file_meta = file_meta(dataset)
    return dataset


def _by_highdicom(
    planes: Planes, numbers: np.ndarray, reference: Reference, identity: Dataset, **arguments: Any
) -> Dataset:
    """Builds the SEG; without planes of its own where the slices are the reference's."""
    if not _lie_as(planes, reference):
        orientation, spacing = decimals(planes.orientation, places=12), decimals([planes.step])[0]
        arguments["plane_orientation"] = hd.PlaneOrientationSequence("PATIENT", [float(o) for o in orientation])
        arguments["plane_positions"] = [
            hd.PlanePositionSequence("PATIENT", [float(p) for p in decimals(position)]) for position in planes.positions
        ]
        arguments["pixel_measures"] = hd.PixelMeasuresSequence(
            pixel_spacing=[float(s) for s in decimals(planes.pixel_spacing)],
            slice_thickness=float(spacing),
            spacing_between_slices=float(spacing),
        )
    try:
        return hd.seg.Segmentation(
            source_images=[_bare(header, identity) for header in reference.headers],
            pixel_array=np.ascontiguousarray(numbers),
            segmentation_type="BINARY",
            transfer_syntax_uid=ExplicitVRLittleEndian,
            omit_empty_frames=True,
            **arguments,
        )
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        raise Refused("BAD_REFERENCE", f"the reference series cannot carry a segmentation ({error})") from error


def _lie_as(planes: Planes, reference: Reference) -> bool:
    """Whether the slices are those of the reference's files, one by one."""
    first, orientation, spacing = reference.first, reference.orientation, reference.pixel_spacing
    if orientation is None or spacing is None or len(reference.headers) != len(planes.positions):
        return False
    return bool(
        (first.Rows, first.Columns) == (planes.rows, planes.columns)
        and np.allclose(spacing, planes.pixel_spacing, rtol=1e-5)
        and np.allclose(orientation, planes.orientation, atol=1e-5)
        and np.allclose(reference.positions, planes.positions, atol=1e-2)
    )


def _segment(
    number: int, label: int, name: str, provenance: Mapping[str, Any], algorithm_type: AlgorithmType
) -> hd.seg.SegmentDescription:
    codes = segment_codes(name)
    algorithm = None
    if algorithm_type != "MANUAL":
        algorithm = hd.AlgorithmIdentificationSequence(
            name=model_name(provenance),
            version=__version__,
            family=hd.sr.CodedConcept("123109", "DCM", "Manual Processing")
            if algorithm_type == "SEMIAUTOMATIC"
            else hd.sr.CodedConcept("123110", "DCM", "Artificial Intelligence"),
        )
    segment = hd.seg.SegmentDescription(
        segment_number=number,
        segment_label=name.replace("\\", "/")[:64],
        segmented_property_category=codes.category,
        segmented_property_type=codes.kind,
        algorithm_type=algorithm_type,
        algorithm_identification=algorithm,
    )
    segment.SegmentDescription = f"label id {label}"
    if codes.side is not None:
        segment.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence = code_sequence(
            codes.side
        )
    return segment


def _bare(header: Dataset, identity: Dataset) -> Dataset:
    """What highdicom needs of a source image: its place and its names; patient and study are added afterwards."""
    bare = Dataset()
    copied(header, _PLACE, bare)
    for name in ("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID"):
        bare.add(header[name])
    for name in ("StudyInstanceUID", "FrameOfReferenceUID"):
        bare.add(identity[name])
    for name in _FILLED_IN_LATER:
        setattr(bare, name, "")
    bare.file_meta = header.file_meta
    return bare


def _without_clock(dataset: Dataset, reference: Reference, key: list[Any]) -> None:
    """Replaces what highdicom took from the clock or from chance."""
    for keyword in _CLOCKED:
        if keyword in dataset:
            del dataset[keyword]
    set_dates(dataset, reference)
    for keyword, unknown in _UNKNOWN_MOMENT.items():
        if not dataset.get(keyword):
            setattr(dataset, keyword, unknown)
    organisation = uid_of("dimensions", key)
    for item in (*dataset.DimensionOrganizationSequence, *dataset.DimensionIndexSequence):
        item.DimensionOrganizationUID = organisation


def _ids(label: torch.Tensor) -> np.ndarray:
    """A label map as int32 ``(X, Y, Z)``."""
    if not isinstance(label, MetaTensor) or label.ndim != 4 or label.shape[0] != 1 or not label.numel():
        raise MedgenError(f"write_segmentation: label must be a MetaTensor (1, X, Y, Z); got {tuple(label.shape)}.")
    values = label.as_tensor().detach().cpu().numpy()[0]
    if values.dtype.kind not in "iub":
        rounded = np.rint(values)
        if values.dtype.kind != "f" or not np.array_equal(rounded, values):
            raise Refused("BAD_LABEL", "the label map holds values that are no whole numbers. Give ids")
        values = rounded
    if values.min() < 0 or values.max() >= 2**31:
        raise Refused("BAD_LABEL", f"ids {values.min()} to {values.max()}; 0 to 2147483647 can be written")
    return values.astype(np.int32)
