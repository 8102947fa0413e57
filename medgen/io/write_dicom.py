"""Writing of a volume as a DICOM series: CT or MR, one file for each slice, derived and saying so.

Frames: volumes come with RAS+ mm affines; everything in the files is LPS+ mm, as DICOM has it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from collections.abc import Sequence as Sequence_
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from monai.data import MetaTensor
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import CTImageStorage, MRImageStorage

from medgen import __version__
from medgen.checks import MedgenError, check_choice
from medgen.io.atomic import atomic_directory
from medgen.io.dicom_codes import DERIVATIONS, code_sequence
from medgen.io.dicom_identity import (
    check_provenance,
    contributing_equipment,
    digest_of,
    fresh_identity,
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
    first_number,
    geometry_key,
    series_item,
    series_number,
    set_dates,
    set_laterality,
    source_item,
    write_checked,
)
from medgen.io.dicom_planes import planes_of
from medgen.io.dicom_reference import Reference, SourceImage, copied, keywords, quiet, read_reference
from medgen.io.dicom_values import rescale_for
from medgen.io.findings import Refused

__all__ = ["Synthetic", "write_series"]

_NARROWEST = 0.05  # of the reference's window: values that span less would all look the same in it
_CLASSES = {"CT": CTImageStorage, "MR": MRImageStorage}

_KEPT = keywords(
    "BodyPartExamined AnatomicRegionSequence PatientPosition ProtocolName AcquisitionDate AcquisitionTime "
    "AcquisitionNumber LossyImageCompression LossyImageCompressionRatio LossyImageCompressionMethod "
    "RecognizableVisualFeatures ContrastBolusAgent ContrastBolusAgentSequence ContrastBolusRoute "
    "ContrastBolusAdministrationRouteSequence ContrastBolusIngredient"
)
_DEFAULTS: dict[str, dict[str, str | None]] = {
    "CT": {"PatientPosition": "HFS", "AcquisitionNumber": None, "KVP": None},
    "MR": {
        "PatientPosition": "HFS",
        "ScanningSequence": "RM",
        "SequenceVariant": "NONE",
        "ScanOptions": None,
        "MRAcquisitionType": None,
        "RepetitionTime": None,
        "EchoTime": None,
        "EchoTrainLength": None,
    },
}
"""What the standard demands, where the reference says nothing."""
_KEPT_OF: dict[str, tuple[str, ...]] = {
    "CT": ("KVP", "FilterType"),
    "MR": keywords(
        "ScanningSequence SequenceVariant ScanOptions MRAcquisitionType SequenceName AngioFlag RepetitionTime "
        "EchoTime InversionTime ImagingFrequency ImagedNucleus EchoNumbers MagneticFieldStrength "
        "EchoTrainLength FlipAngle"
    ),
}
"""What described the acquisition and still does. What described the source's pixels (matrix, bandwidth, averages,
exposure, reconstruction, window, smallest and largest value, padding, comments) does not and is not kept."""


@quiet()
def write_series(
    folder: str | os.PathLike[str],
    volume: MetaTensor,
    *,
    reference: Sequence_[str | os.PathLike[str]] | None = None,
    description: str = "medgen",
    derivation: str = "processed",
    provenance: Mapping[str, Any] | None = None,
    modality: Literal["CT", "MR"] | None = None,
    synthetic: Synthetic = "no",
    subject: str | None = None,
    keep_rescale: bool = False,
    overwrite: bool = False,
    sidecars: Mapping[str, bytes] | None = None,
) -> list[Path]:
    """Writes a volume as a derived DICOM series ``slice_0001.dcm``, ..., along the slice normal, atomically.

    With a reference, patient, study and frame of reference are its own, and so is what describes the acquisition; no
    private tag is kept, nor one that described the source's pixels. Without one, they are fresh and nothing of
    ``volume.meta`` is written. UIDs follow from the source's UIDs, the provenance and the output: the same call
    writes the same bytes, and another output is another series. There is no clock in it.

    Values come back within half a rescale step; whole numbers that span less than 65536 come back exactly, and so do
    values that lie on the reference's rescale steps. See :func:`medgen.io.dicom_values.rescale_for`.

    Args:
        folder: of the series; must not exist unless ``overwrite``.
        volume: shape ``(1, X, Y, Z)``, finite, any axis order; affine RAS+ mm. Sheared only along the slice axis.
        reference: the files of the series that it is derived from, in any order; None: a subject of its own.
        description: SeriesDescription (its first 64 characters) and start of DerivationDescription.
        derivation: a key of :data:`medgen.io.dicom_codes.DERIVATIONS`.
        provenance: JSON values; ``model``, ``model_sha256``, ``seed`` and whatever else decided the output. They are
            written into ContributingEquipmentSequence: no path, no name.
        modality: by default the reference's; ``"MR"`` without one.
        synthetic: ``"all"``: a synthetic subject; a reference, if any, must be synthetic itself. ``"part"``: an image
            of somebody with artificial content in it. Both set Synthetic Data (0008,001C), as does a
            synthetic reference.
        subject: PatientID where there is no reference.
        keep_rescale: store in the reference's rescale steps where the values fit, so that unchanged voxels keep their
            stored numbers though others lie between the steps, and where these steps are fine enough.
        overwrite: replaces a folder of that name, in one step.
        sidecars: more files for the folder, name -> content.

    Returns:
        The files of the series, in slice order.

    Raises:
        MedgenError: a wrong argument, an existing folder, or one that cannot be written.
        Refused: ``NON_FINITE``, ``BAD_AFFINE``, ``UNWRITABLE_GEOMETRY``, ``SINGLE_SLICE``, ``VALUES_DO_NOT_FIT``,
            ``BAD_REFERENCE``, ``UNSUPPORTED_TYPE``.
        OSError: the disk is full, or the like; nothing of that name is left behind.
    """
    check_choice("write_series", "synthetic", synthetic, ("no", "part", "all"))
    check_choice("write_series", "derivation", derivation, DERIVATIONS)
    source = None if reference is None else read_reference(reference)
    check_identity(source, synthetic, subject, "write_series")
    facts = _Facts(
        description, derivation, check_provenance(provenance or {}), _modality(modality, source), synthetic, subject
    )
    series = _Series(_array(volume), _affine(volume), source, facts, keep_rescale)
    width = max(4, len(str(len(series.frames))))
    names = [f"slice_{number:0{width}d}.dcm" for number in range(1, len(series.frames) + 1)]
    for name in sidecars or {}:
        if name in names or Path(name).name != name or not name:
            raise MedgenError(f"write_series: sidecar '{name}' must be a file name of its own. Choose another.")
    with atomic_directory(folder, overwrite=overwrite) as temporary:
        for name, content in (sidecars or {}).items():
            write_checked(temporary / name, content)
        for name, dataset in zip(names, series.slices(), strict=True):
            write_checked(temporary / name, encoded(dataset))
    return [Path(folder) / name for name in names]


class _Facts(NamedTuple):
    """What the caller says of a series; see :func:`write_series`."""

    description: str
    derivation: str
    provenance: dict[str, Any]
    modality: str
    synthetic: Synthetic
    subject: str | None


class _Series:
    """All that the slices of one series share; :meth:`slices` makes them one by one."""

    def __init__(
        self, array: np.ndarray, affine: np.ndarray, reference: Reference | None, facts: _Facts, keep_rescale: bool
    ) -> None:
        self.reference, self.modality = reference, facts.modality
        self.planes = planes_of(affine, array.shape, None if reference is None else reference.orientation)
        check_overlap(self.planes, reference)
        self.frames = self.planes.frames(array)
        # the same quantity as the source's, in the same unit: its steps, window and polarity still mean something
        same = reference is not None and reference.first.get("Modality") == facts.modality
        self.pixels_of = reference.middle if reference is not None and same else Dataset()
        self.rescale = rescale_for(self.frames, reference.rescale if reference and same else None, keep_rescale)
        digest = digest_of(geometry_key(self.planes), vars(self.rescale), *map(self._pixels, self.frames))
        if reference is None:
            self.common = fresh_identity(facts.provenance, digest, facts.subject, facts.synthetic == "all")
        else:
            self.common = kept_identity(reference)
        uids = [] if reference is None else [image.sop_instance for image in reference.images]
        self.key = [self.common.StudyInstanceUID, uids, facts, digest, __version__]
        self._describe(facts)
        self._acquisition()
        self._pixel_description()
        texts = (facts.description, str(facts.provenance.get("model", "")), facts.subject or "")
        if not all(text.isascii() for text in texts):
            self.common.SpecificCharacterSet = "ISO_IR 192"

    def slices(self) -> Iterator[Dataset]:
        """The data sets, in slice order; each is made when it is asked for."""
        planes = self.planes
        sources: Sequence_[Sequence_[SourceImage]] = [()] * len(self.frames)
        if self.reference is not None:
            sources = self.reference.covers(planes.distances, planes.normal)
        for index, frame in enumerate(self.frames):
            dataset = Dataset()
            dataset.update(self.common)
            dataset.SOPInstanceUID = uid_of("image", self.key, index)
            dataset.InstanceNumber = str(index + 1)
            dataset.ImagePositionPatient = decimals(planes.positions[index])
            dataset.SliceLocation = decimals([planes.distances[index]])[0]
            if sources[index]:
                dataset.SourceImageSequence = Sequence([source_item(image, "source") for image in sources[index]])
            dataset.add_new("PixelData", "OW", self._pixels(frame))
            dataset.file_meta = file_meta(dataset)
            yield dataset

    def _pixels(self, frame: np.ndarray) -> bytes:
        """PixelData of one slice, little endian."""
        return self.rescale.stored(frame).astype("<i2" if self.rescale.signed else "<u2").tobytes()

    def _describe(self, facts: _Facts) -> None:
        """What it is, what it is derived from and by what."""
        common, reference = self.common, self.reference
        description, provenance, code = facts.description, facts.provenance, DERIVATIONS[facts.derivation]
        common.SOPClassUID = _CLASSES[self.modality]
        common.Modality = self.modality
        common.ImageType = ["DERIVED", "SECONDARY", "AXIAL" if self.modality == "CT" else "OTHER"]
        common.SeriesInstanceUID = uid_of("series", self.key)
        common.SeriesNumber = str(series_number(reference, common.SeriesInstanceUID))
        common.SeriesDescription = description.replace("\\", "/")[:64].strip()
        common.DerivationDescription = f"{description}: {code.meaning} (medgen {__version__})"[:1024]
        common.DerivationCodeSequence = code_sequence(code)
        common.ContributingEquipmentSequence = contributing_equipment(provenance, reference, facts.synthetic == "all")
        common.Manufacturer = "medgen"
        common.ManufacturerModelName = model_name(provenance)
        common.SoftwareVersions = software_versions(provenance)
        common.BurnedInAnnotation = "NO"
        if reference is not None and any(header.get("BurnedInAnnotation") == "YES" for header in reference.headers):
            common.BurnedInAnnotation = "YES"
        if facts.synthetic != "no" or (reference is not None and reference.synthetic):
            common.SyntheticData = "YES"
        if reference is not None:
            common.ReferencedSeriesSequence = Sequence([series_item(reference)])
        set_dates(common, reference)

    def _acquisition(self) -> None:
        """What described the acquisition and still does; what the standard demands is there, if empty."""
        common, reference = self.common, self.reference
        if reference is not None:
            kept = (*_KEPT, *_KEPT_OF[self.modality])
            copied(reference.first, [keyword for keyword in kept if reference.constant(keyword)], common)
            if self.modality == "CT" and self._as_reference():
                copied(reference.first, ["GantryDetectorTilt"], common)
        set_laterality(common, reference)
        for keyword, value in _DEFAULTS[self.modality].items():
            if keyword not in common:
                setattr(common, keyword, value)
        if self.modality == "MR":
            inverted = "IR" in _several(common.ScanningSequence)
            if inverted and "InversionTime" not in common:
                common.InversionTime = None
            if not inverted and "InversionTime" in common:
                del common.InversionTime

    def _pixel_description(self) -> None:
        common, planes, rescale = self.common, self.planes, self.rescale
        common.ImageOrientationPatient = decimals(planes.orientation, places=12)
        common.PixelSpacing = decimals(planes.pixel_spacing)
        common.SliceThickness = decimals([self._thickness()])[0]
        if self.modality == "MR":
            common.SpacingBetweenSlices = decimals([planes.step])[0]
        common.SamplesPerPixel = 1
        inverted = self.pixels_of.get("PhotometricInterpretation") == "MONOCHROME1"
        common.PhotometricInterpretation = "MONOCHROME1" if inverted else "MONOCHROME2"
        common.Rows, common.Columns = planes.rows, planes.columns
        common.BitsAllocated = common.BitsStored = 16
        common.HighBit = 15
        common.PixelRepresentation = int(rescale.signed)
        common.RescaleIntercept, common.RescaleSlope = rescale.intercept_text, rescale.slope_text
        common.RescaleType = "HU" if self.modality == "CT" else "US"
        copied(self.pixels_of, ["RescaleType"], common)
        center, width = self._window()
        common.WindowCenter, common.WindowWidth = decimals([center])[0], decimals([width])[0]
        if width < 1:
            common.VOILUTFunction = "LINEAR_EXACT"

    def _as_reference(self) -> bool:
        """Whether the slices lie as the reference's, with their distance."""
        if self.reference is None or self.reference.orientation is None or len(self.reference.images) < 2:
            return False
        if not np.allclose(self.reference.orientation, self.planes.orientation, atol=1e-4):
            return False
        places = np.array([image.position for image in self.reference.images[:2]])
        return bool(np.allclose(np.diff(places, axis=0), np.diff(self.planes.positions[:2], axis=0), atol=1e-2))

    def _thickness(self) -> float:
        """The reference's slice thickness where its slices are these (they may have gaps), else the distance."""
        given = first_number(None if self.reference is None else self.reference.first.get("SliceThickness"))
        return given if given is not None and given > 0 and self._as_reference() else self.planes.step

    def _window(self) -> tuple[float, float]:
        """Center and width: those of the reference's middle slice if they suit, else the middle 99 % of the values."""
        source = self.pixels_of
        center, width = (first_number(source.get(keyword)) for keyword in ("WindowCenter", "WindowWidth"))
        linear = source.get("VOILUTFunction", "LINEAR") == "LINEAR"
        step = max(1, int(np.ceil((self.frames.size / 2_000_000) ** (1 / 3))))
        sample = np.asarray(self.frames[::step, ::step, ::step], dtype=np.float64)
        low, high = np.percentile(sample, [0.5, 99.5])
        if linear and center is not None and width is not None and width >= 1:
            inside = np.mean(np.abs(sample[sample > low] - center) <= width / 2) if high > low else 1.0
            if inside >= 0.05 and high - low >= _NARROWEST * width:
                return center, width
        if high <= low:
            low, high = low - 0.5, low + 0.5
        return float(low + (high - low) / 2), float(high - low)


def _several(value: Any) -> list[str]:
    """A tag of one or more values as a list."""
    return [value] if isinstance(value, str) else list(value or ())


def _modality(modality: str | None, reference: Reference | None) -> str:
    if modality is None and reference is not None:
        modality = str(reference.first.get("Modality", ""))
        if modality not in _CLASSES:
            raise Refused(
                "BAD_REFERENCE", f"the reference's modality is '{modality}'; CT and MR can be written. Give modality"
            )
    modality = modality or "MR"
    check_choice("write_series", "modality", modality, _CLASSES)
    return modality


def _array(volume: torch.Tensor) -> np.ndarray:
    """``(1, X, Y, Z)`` as a numpy array ``(X, Y, Z)``."""
    if not isinstance(volume, torch.Tensor) or volume.ndim != 4 or volume.shape[0] != 1 or not volume.numel():
        shape = tuple(getattr(volume, "shape", ()))
        raise MedgenError(f"write_series: volume must be a tensor (1, X, Y, Z); got shape {shape}. Give one channel.")
    plain = volume.as_tensor() if isinstance(volume, MetaTensor) else volume
    plain = plain.detach().cpu()
    return (plain.float() if plain.dtype in (torch.bfloat16, torch.float16) else plain).numpy()[0]


def _affine(volume: torch.Tensor) -> np.ndarray:
    if not isinstance(volume, MetaTensor):
        raise MedgenError("write_series: a plain tensor has no affine. Give a MetaTensor.")
    return volume.affine.cpu().numpy().astype(np.float64)
