"""No word of a real patient's header reaches a synthetic series, what lies beside it, or a log."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pydicom
import pytest

from medgen.io.findings import Refused
from medgen.io.write_dicom import write_series
from medgen.io.write_seg import write_segmentation
from tests.io.dicom_sources import PROVENANCE, read_back, source_series, volume_of

MARK = "CANARY"


def uids_of(files: list[Path]) -> set[str]:
    """Every UID that identifies something of this source."""
    keywords = ("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID")
    return {str(pydicom.dcmread(file)[keyword].value) for file in files for keyword in keywords}


def dates_of(files: list[Path]) -> set[str]:
    found = {e.value for file in files for e in pydicom.dcmread(file).iterall() if e.VR == "DA"}
    return {str(value) for value in found}


def test_marks_are_in_the_source(tmp_path: Path) -> None:
    """The check below is worth something: every free text of the source has the mark."""
    header = pydicom.dcmread(source_series(tmp_path / "source", "CT", mark=MARK)[0])
    texts = [e for e in header.iterall() if e.VR in ("LO", "PN", "SH", "LT", "ST", "UT") and e.value]
    assert [e.keyword for e in texts if MARK not in str(e.value) and e.keyword != "RescaleType"] == []
    assert len(texts) > 20


@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_synthetic_series_holds_nothing_of_a_patient(
    tmp_path: Path, modality: str, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    source = source_series(tmp_path / f"{MARK}source", modality, mark=MARK)
    array, affine = read_back(source)
    volume = volume_of(affine, array.astype(np.float32))
    # a volume that was read from the patient's files carries their header along
    header = pydicom.dcmread(source[0], stop_before_pixels=True)
    volume.meta.update({e.keyword: str(e.value) for e in header if e.keyword} | {"source": str(source[0])})
    label = volume_of(affine, (array > 0).astype(np.int16))
    label.meta.update(volume.meta)
    files = write_series(
        tmp_path / "out",
        volume,
        modality=modality,
        synthetic="all",
        provenance=PROVENANCE,
        sidecars={"sub-0001.json": b"{}"},
    )
    seg = write_segmentation(tmp_path / "out" / "seg.dcm", label, {1: "Brain"}, files, synthetic="all")
    with pytest.raises(Refused) as refused:
        write_series(tmp_path / "other", volume, reference=source, synthetic="all")
    written = list((tmp_path / "out").iterdir())
    assert {*files, seg} < set(written)
    out, err = capfd.readouterr()
    logs = (caplog.text + out + err + str(refused.value)).encode()
    for content in [logs, *(file.read_bytes() for file in written)]:
        for canary in {MARK, "Anna", *uids_of(source), *dates_of(source), "060Y"}:
            assert canary.encode() not in content, canary
            assert canary.encode("utf-16-le") not in content, canary
    assert pydicom.dcmread(files[0]).PatientID.startswith("SYN-")


@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_derived_series_holds_only_what_stays_true(tmp_path: Path, modality: str) -> None:
    """The tags of a derived series that carry the source's words are the known ones."""
    source = source_series(tmp_path / "source", modality, mark=MARK)
    array, affine = read_back(source)
    files = write_series(tmp_path / "out", volume_of(affine, array.astype(np.float32)), reference=source)
    seg = write_segmentation(tmp_path / "seg.dcm", volume_of(affine, (array > 0).astype(np.int16)), {}, source)
    known = {
        "PatientName", "PatientID", "PatientComments", "StudyDescription", "StudyID", "AccessionNumber",
        "ReferringPhysicianName", "ProtocolName", "SequenceName", "Manufacturer", "ManufacturerModelName",
        "InstitutionName", "StationName", "SoftwareVersions",
    }  # fmt: skip
    for file in (*files, seg):
        dataset = pydicom.dcmread(file)
        marked = {e.keyword for e in dataset.iterall() if e.VR != "SQ" and MARK in str(e.value)}
        assert marked <= known
        assert dataset.Manufacturer == "medgen"
        assert "InstitutionName" not in dataset
