"""Who and what a written DICOM object belongs to: kept from a reference series, or made up for a synthetic subject.

Everything is a function of its inputs: no clock, no random number. The same call makes the same UIDs again.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import uuid
from collections.abc import Mapping
from typing import Any

from pydicom import config
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.valuerep import validate_value

from medgen import __version__
from medgen.checks import MedgenError
from medgen.io.dicom_codes import PURPOSES, code_sequence
from medgen.io.dicom_reference import Reference, copied, keywords
from medgen.io.findings import Refused

__all__ = [
    "IMPLEMENTATION_UID",
    "check_provenance",
    "contributing_equipment",
    "digest_of",
    "fresh_identity",
    "kept_identity",
    "model_name",
    "software_versions",
    "uid_of",
]

IMPLEMENTATION_UID = "2.25.187539487196403838246104311459461216105"
"""ImplementationClassUID of every file that medgen writes."""

PATIENT = keywords(
    "PatientName PatientID IssuerOfPatientID TypeOfPatientID IssuerOfPatientIDQualifiersSequence "
    "PatientBirthDate PatientBirthTime PatientSex OtherPatientIDs OtherPatientIDsSequence "
    "OtherPatientNames EthnicGroup PatientComments PatientSpeciesDescription PatientSpeciesCodeSequence "
    "PatientBreedDescription PatientBreedCodeSequence BreedRegistrationSequence ResponsiblePerson "
    "ResponsiblePersonRole ResponsibleOrganization QualityControlSubject PatientIdentityRemoved "
    "DeidentificationMethod DeidentificationMethodCodeSequence ReferencedPatientSequence "
    "ClinicalTrialSponsorName ClinicalTrialProtocolID ClinicalTrialProtocolName ClinicalTrialSiteID "
    "ClinicalTrialSiteName ClinicalTrialSubjectID ClinicalTrialSubjectReadingID"
)
STUDY = keywords(
    "StudyInstanceUID StudyDate StudyTime ReferringPhysicianName ReferringPhysicianIdentificationSequence "
    "StudyID AccessionNumber IssuerOfAccessionNumberSequence StudyDescription PhysiciansOfRecord "
    "NameOfPhysiciansReadingStudy RequestingService ProcedureCodeSequence ReferencedStudySequence "
    "AdmittingDiagnosesDescription AdmittingDiagnosesCodeSequence PatientAge PatientSize PatientWeight "
    "PatientSexNeutered SmokingStatus PregnancyStatus LastMenstrualDate Occupation "
    "AdditionalPatientHistory MedicalAlerts Allergies PatientState AdmissionID ServiceEpisodeID "
    "ServiceEpisodeDescription ClinicalTrialTimePointID ClinicalTrialTimePointDescription "
    "LongitudinalTemporalInformationModified"
)
FRAME_OF_REFERENCE = ("FrameOfReferenceUID", "PositionReferenceIndicator")
ACQUISITION_EQUIPMENT = keywords(
    "Manufacturer InstitutionName InstitutionAddress StationName InstitutionalDepartmentName "
    "ManufacturerModelName DeviceSerialNumber SoftwareVersions"
)

_MAY_BE_EMPTY = keywords(
    "PatientName PatientID PatientBirthDate PatientSex StudyDate StudyTime ReferringPhysicianName StudyID "
    "AccessionNumber PositionReferenceIndicator"
)
_MUST_BE_KEPT = ("PatientName", "PatientID", "StudyInstanceUID", "FrameOfReferenceUID")
_FIRST_KEYS = ("model", "model_sha256", "seed")
_LONGEST_TEXT = 1024


def digest_of(*parts: Any) -> str:
    """SHA-256, hex, of bytes and of whatever JSON holds, in order."""
    whole = hashlib.sha256()
    for part in parts:
        content = part if isinstance(part, bytes) else json.dumps(part, sort_keys=True, allow_nan=False).encode()
        whole.update(len(content).to_bytes(8, "big") + content)
    return whole.hexdigest()


def uid_of(*parts: Any) -> str:
    """A UID (``2.25.`` and a UUID) that is a function of ``parts``.

    Example:
        >>> uid_of("series", 1) == uid_of("series", 1), uid_of("series", 1) == uid_of("series", 2)
        (True, False)
        >>> len(uid_of("series", 1)) <= 64
        True
    """
    return f"2.25.{uuid.UUID(bytes=bytes.fromhex(digest_of(*parts))[:16], version=5).int}"


def check_provenance(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Provenance as plain JSON values.

    Raises:
        MedgenError: something in it is not JSON.
    """
    try:
        plain = json.loads(json.dumps(dict(provenance), allow_nan=False, sort_keys=True))
    except (TypeError, ValueError) as error:
        raise MedgenError(f"provenance holds what JSON does not ({error}). Give text, numbers, lists, None.") from error
    return plain


def kept_identity(reference: Reference) -> Dataset:
    """Patient, study and frame of reference of a reference series, as they are there."""
    identity, first = Dataset(), reference.first
    copied(first, (*PATIENT, *STUDY, *FRAME_OF_REFERENCE), identity)
    for keyword in _MUST_BE_KEPT:  # even where the source breaks the rules of its own type
        if keyword not in identity and first.get(keyword):
            element = first[keyword]
            identity.add(DataElement(element.tag, element.VR, element.value, validation_mode=config.IGNORE))
    if not identity.get("FrameOfReferenceUID"):
        identity.FrameOfReferenceUID = uid_of("frame of reference", str(first.SeriesInstanceUID))
    for keyword in _MAY_BE_EMPTY:
        if keyword not in identity:
            setattr(identity, keyword, "")
    if first.get("SpecificCharacterSet"):
        identity.SpecificCharacterSet = first.SpecificCharacterSet
    return identity


def fresh_identity(provenance: Mapping[str, Any], output_digest: str, subject: str | None, synthetic: bool) -> Dataset:
    """A patient, study and frame of reference of their own.

    Args:
        provenance: of a synthetic subject with a seed, made of nobody's scan (no ``inputs``): model, seed and label
            map decide who it is.
        output_digest: of the volume; it decides for all others.
        subject: PatientID; by default made from the digest.
        synthetic: whether nobody stands behind the images; then the date is made up, too.

    Raises:
        Refused: ``BAD_SUBJECT``: ``subject`` is no valid PatientID.
    """
    seeded = synthetic and provenance.get("seed") is not None and not provenance.get("inputs")
    key = [provenance.get(name) for name in ("model_sha256", "seed", "label_sha256")] if seeded else [output_digest]
    digest = digest_of("subject", *key, subject, synthetic)
    identity = Dataset()
    identity.PatientID = _subject_id(subject, ("SYN-" if synthetic else "MEDGEN-") + digest[:12].upper())
    identity.PatientName = f"{'Synthetic' if synthetic else 'Unknown'}^{identity.PatientID}"[:64]
    identity.StudyInstanceUID = uid_of("study", digest)
    identity.FrameOfReferenceUID = uid_of("frame of reference", digest)
    for keyword in _MAY_BE_EMPTY:
        if keyword not in identity:
            setattr(identity, keyword, "")
    identity.StudyID = "1"
    if synthetic:
        moment = datetime.datetime(2000, 1, 1) + datetime.timedelta(seconds=int(digest[:16], 16) % (3650 * 86400))
        identity.StudyDate, identity.StudyTime = f"{moment:%Y%m%d}", f"{moment:%H%M%S}"
        identity.StudyDescription = "Synthetic data"
    return identity


def contributing_equipment(provenance: Mapping[str, Any], reference: Reference | None, synthetic: bool) -> Sequence:
    """What made the source, in its own words or by its header, and what made this: model, hash, seed, parameters."""
    items: list[Dataset] = []
    if reference is not None:
        earlier, scanner = Dataset(), Dataset()
        copied(reference.first, ["ContributingEquipmentSequence"], earlier)
        items = list(earlier.get("ContributingEquipmentSequence", []))
        copied(reference.first, ACQUISITION_EQUIPMENT, scanner)
        if "Manufacturer" in scanner and not items:
            scanner.PurposeOfReferenceCodeSequence = code_sequence(PURPOSES["acquisition"])
            items.append(scanner)
    own = Dataset()
    own.PurposeOfReferenceCodeSequence = code_sequence(PURPOSES["synthesis" if synthetic else "processing"])
    own.Manufacturer = "medgen"
    own.ManufacturerModelName = model_name(provenance)
    if isinstance(provenance.get("model_sha256"), str):
        own.DeviceSerialNumber = provenance["model_sha256"][:64]
    own.SoftwareVersions = software_versions(provenance)
    own.ContributionDescription = _as_text(provenance)
    return Sequence([*items, own])


def model_name(provenance: Mapping[str, Any]) -> str:
    """What ManufacturerModelName calls the model, at most 64 characters; ``medgen`` where there was none."""
    return str(provenance.get("model") or "medgen").replace("\\", "/")[:64]


def software_versions(provenance: Mapping[str, Any]) -> list[str]:
    """SoftwareVersions: medgen's, and those that the provenance names."""
    others = provenance.get("versions")
    named = others if isinstance(others, dict) else {}
    texts = [f"medgen {__version__}", *(f"{key} {value}" for key, value in sorted(named.items()) if key != "medgen")]
    return [text.replace("\\", "/")[:64] for text in texts]


def _subject_id(subject: str | None, default: str) -> str:
    if subject is None:
        return default
    try:
        validate_value("LO", subject, config.RAISE)
    except ValueError as error:
        raise Refused("BAD_SUBJECT", f"'{subject}' is no PatientID ({error}). Give at most 64 characters") from error
    if not subject.strip() or "\\" in subject or not subject.isprintable():
        raise Refused("BAD_SUBJECT", f"'{subject}' is no PatientID: it is empty, or holds a backslash or a line break")
    return subject


def _as_text(provenance: Mapping[str, Any]) -> str:
    """Provenance as JSON of at most 1024 characters: model, hash and seed first; what had to go is counted."""
    order = [key for key in _FIRST_KEYS if key in provenance]
    order += [key for key in sorted(provenance) if key not in (*_FIRST_KEYS, "versions")]
    kept: dict[str, Any] = {"provenance_sha256": digest_of(dict(provenance)), "medgen": __version__}
    left_out = 0
    for key in order:
        trial = json.dumps({**kept, key: provenance[key], "left_out": len(order)}, ensure_ascii=True)
        if len(trial) <= _LONGEST_TEXT:
            kept[key] = provenance[key]
        else:
            left_out += 1
    return json.dumps({**kept, **({"left_out": left_out} if left_out else {})}, ensure_ascii=True)
