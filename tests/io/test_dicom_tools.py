"""What other people's programs say of the files: dciodvfy, dcentvfy, dcm2niix, storescu and storescp."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest

from medgen.io.dicom import read_series
from medgen.io.write_dicom import write_series
from medgen.io.write_seg import write_segmentation
from tests.io import tools
from tests.io.dicom_sources import (
    PROVENANCE,
    SHAPE,
    affine_of,
    laid_on,
    numbers,
    read_back,
    source_series,
    volume_of,
)

CASES = [(modality, kind) for modality in ("CT", "MR") for kind in ("plain", "oblique", "sagittal", "tilted")]
NAMES = {1: "Left-Hippocampus", 2: "something"}


class Written:
    """A source, a series derived from it, a synthetic series, and a segmentation of each."""

    def __init__(self, folder: Path, modality: str, kind: str) -> None:
        self.folder, self.modality, self.kind = folder, modality, kind
        self.source = source_series(folder / "source", modality, kind)
        array, self.affine = read_back(self.source)
        self.values = (array * 0.37 + numbers(3, modality).astype(np.float64)).astype(np.float32)
        volume = volume_of(self.affine, self.values)
        label = volume_of(self.affine, (self.values > 50).astype(np.int16) + (self.values > 200))
        self.derived = write_series(
            folder / "derived", volume, reference=self.source, derivation="denoised", provenance=PROVENANCE
        )
        self.synthetic = write_series(
            folder / "synthetic", volume, modality=modality, synthetic="all", provenance=PROVENANCE
        )
        self.segs = [
            write_segmentation(folder / "seg1.dcm", label, NAMES, self.source, provenance=PROVENANCE),
            write_segmentation(folder / "seg2.dcm", label, NAMES, self.derived, provenance=PROVENANCE),
            write_segmentation(folder / "seg3.dcm", label, NAMES, self.synthetic, provenance=PROVENANCE),
        ]


@pytest.fixture(scope="module", params=CASES, ids=lambda case: "-".join(case))
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Written:
    return Written(tmp_path_factory.mktemp("written"), *request.param)


def test_dciodvfy_finds_no_error(written: Written) -> None:
    ends = [files[i] for files in (written.derived, written.synthetic) for i in (0, 1, -1)]
    assert tools.object_errors([*ends, *written.segs]) == []


def test_dcentvfy_finds_no_error(written: Written) -> None:
    derived = [*written.source, *written.derived, *written.segs[:2]]
    assert tools.entity_errors(derived) == []
    assert tools.entity_errors([*written.synthetic, written.segs[2]]) == []


@pytest.mark.parametrize("which", ["derived", "synthetic"])
def test_dcm2niix_reads_the_same_volume(written: Written, which: str, tmp_path: Path) -> None:
    """Tilted series, which dcm2niix resamples, are read by medgen."""
    files = getattr(written, which)
    if written.kind == "tilted":
        volume = read_series(files[0].parent)
        volumes = [(volume.numpy()[0].astype(np.float64), volume.affine.numpy())]
    else:
        volumes = tools.by_dcm2niix(files[0].parent, tmp_path)
    ((array, affine),) = volumes
    array, affine = laid_on(written.affine, array, affine)
    assert np.abs(affine - written.affine).max() < 1e-3
    step = float(pydicom.dcmread(files[0]).RescaleSlope)
    assert np.abs(array - written.values).max() <= step / 2 * (1 + 1e-5)


def test_dcm2niix_reads_whole_numbers_exactly(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(-1024, 3072, SHAPE).astype(np.float32)
    write_series(tmp_path / "out", volume_of(affine_of("oblique"), values), modality="CT")
    array, _ = laid_on(affine_of("oblique"), *tools.by_dcm2niix(tmp_path / "out", tmp_path / "nii")[0])
    assert np.array_equal(array, values)


def test_a_storage_server_accepts_all(written: Written, tmp_path: Path) -> None:
    files = [*written.derived, *written.synthetic, *written.segs]
    assert tools.accepted_by_storescp(files, tmp_path / "received") == len(files)


def test_a_series_without_any_date_and_its_segmentation(tmp_path: Path) -> None:
    """A file of another format has no date; a SEG must have one."""
    files = write_series(tmp_path / "out", volume_of(affine_of("plain"), numbers(1, "MR")), subject="sub-01")
    label = volume_of(affine_of("plain"), (numbers(1, "MR") > 0.5).astype(np.int16))
    seg = write_segmentation(tmp_path / "seg.dcm", label, NAMES, files)
    assert tools.object_errors([files[0], seg]) == []
    assert tools.entity_errors([*files, seg]) == []


@pytest.mark.parametrize("body_part", ["", "KNEE", "CHEST", "UNHEARD OF"])
@pytest.mark.parametrize("laterality", [None, "", "L"])
def test_laterality_follows_the_body_part(tmp_path: Path, body_part: str, laterality: str | None) -> None:
    tags = {"BodyPartExamined": body_part} | ({} if laterality is None else {"Laterality": laterality})
    source = source_series(tmp_path / "source", "MR", **tags)
    array, affine = read_back(source)
    files = write_series(tmp_path / "out", volume_of(affine, array), reference=source)
    seg = write_segmentation(tmp_path / "seg.dcm", volume_of(affine, (array > 0).astype(np.int16)), NAMES, source)
    assert tools.object_errors([files[0], seg]) == []
    assert tools.entity_errors([*files, seg]) == []


@pytest.mark.parametrize(
    "tags",
    [
        {"RescaleSlope": "2.5", "RescaleIntercept": "-1000", "RescaleType": "US"},
        {"ScanningSequence": ["SE", "IR"], "InversionTime": "100"},
        {"ScanningSequence": ["EP", "GR"], "RepetitionTime": ""},
        {"ContrastBolusAgent": "Agent", "ContrastBolusRoute": "IV"},
        {
            "LossyImageCompression": "01",
            "LossyImageCompressionRatio": "10",
            "LossyImageCompressionMethod": "ISO_10918_1",
        },
        {"StudyDate": "", "StudyTime": "", "StudyID": "", "AccessionNumber": "", "PatientBirthDate": ""},
        {"BurnedInAnnotation": "YES"},
        {"BodyPartExamined": "KNEE", "ImageLaterality": "L"},
        {"PhotometricInterpretation": "MONOCHROME1"},
        {"SpecificCharacterSet": "ISO_IR 192", "PatientName": "山田^太郎"},
    ],
    ids=lambda tags: next(iter(tags)),
)
def test_what_a_source_says_is_kept_as_the_standard_wants(tmp_path: Path, tags: dict[str, object]) -> None:
    source = source_series(tmp_path / "source", "MR", **tags)
    array, affine = read_back(source)
    files = write_series(tmp_path / "out", volume_of(affine, array + 0.3), reference=source)
    seg = write_segmentation(tmp_path / "seg.dcm", volume_of(affine, (array > 0).astype(np.int16)), NAMES, files)
    assert tools.object_errors([*files, seg]) == []
    assert tools.entity_errors([*source, *files, seg]) == []


def test_a_missing_program_skips_by_name_or_fails_where_it_is_required(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv(tools.REQUIRE, raising=False)
    with pytest.raises(pytest.skip.Exception, match="dcm2niix is missing"):
        tools.tool("dcm2niix")
    monkeypatch.setenv(tools.REQUIRE, "1")
    with pytest.raises(pytest.fail.Exception, match="install the package dcmtk"):
        tools.tool("storescp")
