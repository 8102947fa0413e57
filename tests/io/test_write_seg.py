"""The DICOM segmentation: segments, places, codes, the same bytes again."""

from __future__ import annotations

import datetime
from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
import pytest

from medgen.anatomy.labels import LABELS
from medgen.checks import MedgenError
from medgen.io.dicom_codes import segment_codes
from medgen.io.findings import Refused
from medgen.io.write_dicom import write_series
from medgen.io.write_seg import write_segmentation
from tests.io.dicom_sources import PROVENANCE, SHAPE, affine_of, numbers, read_back, source_series, volume_of

NAMES = {17: "Left-Hippocampus", 53: "Right-Hippocampus", 77: "White-Matter-Lesion"}


def label_of(shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    label = np.zeros(shape, dtype=np.int32)
    label[2:7, 3:9, 1:4], label[9:14, 3:9, 2:5], label[0, 0, 0], label[15, 12, 5] = 17, 53, 77, 400
    return label


def places_by_id(file: Path) -> dict[int, set[tuple[float, ...]]]:
    """RAS+ places of the voxels of each id, from the frames' own geometry alone."""
    dataset = pydicom.dcmread(file)
    shared = dataset.SharedFunctionalGroupsSequence[0]
    ids = {s.SegmentNumber: int(s.SegmentDescription.split()[-1]) for s in dataset.SegmentSequence}
    found: dict[int, set[tuple[float, ...]]] = {}
    for pixels, frame in zip(dataset.pixel_array, dataset.PerFrameFunctionalGroupsSequence, strict=True):
        place = np.array([float(x) for x in frame.PlanePositionSequence[0].ImagePositionPatient])
        turn = (frame if "PlaneOrientationSequence" in frame else shared).PlaneOrientationSequence[0]
        across, down = np.reshape([float(x) for x in turn.ImageOrientationPatient], (2, 3))
        spacing = [float(x) for x in shared.PixelMeasuresSequence[0].PixelSpacing]
        rows, columns = np.nonzero(pixels)
        points = place + rows[:, None] * spacing[0] * down + columns[:, None] * spacing[1] * across
        number = ids[frame.SegmentIdentificationSequence[0].ReferencedSegmentNumber]
        found.setdefault(number, set()).update(_places(points * [-1, -1, 1]))
    return found


def expected_places(label: np.ndarray, affine: np.ndarray) -> dict[int, set[tuple[float, ...]]]:
    found = {}
    for number in np.unique(label[label > 0]):
        points = np.argwhere(label == number) @ affine[:3, :3].T + affine[:3, 3]
        found[int(number)] = _places(points)
    return found


def _places(points: np.ndarray) -> set[tuple[float, ...]]:
    """Points (mm) in whole steps of 0.05 mm; the shift keeps halves from being rounded either way."""
    return set(map(tuple, (points / 0.05 + 0.0123).round().astype(int)))


@pytest.mark.parametrize("kind", ["plain", "oblique", "sagittal", "tilted"])
@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_segments_lie_where_the_labels_do(tmp_path: Path, modality: str, kind: str) -> None:
    affine = affine_of(kind)
    series = write_series(tmp_path / "out", volume_of(affine, numbers(1, modality)), modality=modality)
    file = write_segmentation(tmp_path / "seg.dcm", volume_of(affine, label_of()), NAMES, series)
    assert places_by_id(file) == expected_places(label_of(), affine)
    dataset = pydicom.dcmread(file)
    assert len(hd.seg.segread(file).segment_numbers) == 4
    sources = {pydicom.dcmread(image).SOPInstanceUID for image in series}
    for frame in dataset.PerFrameFunctionalGroupsSequence:
        assert frame.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID in sources


def test_on_a_real_series(tmp_path: Path) -> None:
    source = source_series(tmp_path / "source", "CT")
    array, affine = read_back(source)
    label = label_of(array.shape)
    file = write_segmentation(
        tmp_path / "seg.dcm", volume_of(affine, label), NAMES, source, provenance=PROVENANCE, algorithm_type="MANUAL"
    )
    dataset, before = pydicom.dcmread(file), pydicom.dcmread(source[0])
    assert places_by_id(file) == expected_places(label, affine)
    for keyword in ("PatientName", "PatientID", "PatientAge", "StudyInstanceUID", "FrameOfReferenceUID", "StudyDate"):
        assert dataset[keyword].value == before[keyword].value, keyword
    assert dataset.ReferencedSeriesSequence[0].SeriesInstanceUID == before.SeriesInstanceUID
    assert not [element for element in dataset.iterall() if element.tag.is_private]
    assert "SyntheticData" not in dataset


def test_codes_of_segments(tmp_path: Path) -> None:
    series = write_series(tmp_path / "out", volume_of(affine_of("plain"), numbers(1, "MR")), synthetic="all")
    file = write_segmentation(tmp_path / "seg.dcm", volume_of(affine_of("plain"), label_of()), NAMES, series)
    dataset = pydicom.dcmread(file)
    said = [
        (s.SegmentNumber, s.SegmentLabel, s.SegmentedPropertyTypeCodeSequence[0].CodeMeaning)
        for s in dataset.SegmentSequence
    ]
    assert said == [
        (1, "Left-Hippocampus", "Hippocampus"),
        (2, "Right-Hippocampus", "Hippocampus"),
        (3, "White-Matter-Lesion", "Lesion"),
        (4, "Label 400", "Tissue"),
    ]
    kind = dataset.SegmentSequence[0].SegmentedPropertyTypeCodeSequence[0]
    assert kind.SegmentedPropertyTypeModifierCodeSequence[0].CodeMeaning == "Left"
    assert dataset.SyntheticData == "YES"


def test_every_label_of_medgen_has_a_code() -> None:
    kinds = {info.name: segment_codes(info.name).kind.meaning for number, info in LABELS.items() if number}
    assert [name for name, kind in kinds.items() if kind == "Tissue"] == []
    for info in LABELS.values():
        side = segment_codes(info.name).side
        assert (side.meaning.lower() if side else "") == info.side


def test_another_grid_has_planes_of_its_own(tmp_path: Path) -> None:
    source = source_series(tmp_path / "source", "MR")
    affine = affine_of("oblique")
    affine[:3, :3] *= 0.7
    label = label_of((20, 16, 8))
    file = write_segmentation(tmp_path / "seg.dcm", volume_of(affine, label), NAMES, source)
    assert places_by_id(file) == expected_places(label, affine)


def test_same_call_same_bytes_whatever_the_clock(tmp_path: Path) -> None:
    series = write_series(tmp_path / "out", volume_of(affine_of("plain"), numbers(1, "MR")), synthetic="all")
    label = volume_of(affine_of("plain"), label_of())
    days, contents = [f"{datetime.datetime.now():%Y%m%d}"], []
    for _ in range(2):
        file = write_segmentation(tmp_path / "seg.dcm", label, NAMES, series, overwrite=True)
        contents.append(file.read_bytes())
        days.append(f"{datetime.datetime.now():%Y%m%d}")
    assert contents[0] == contents[1]
    assert not [day for day in days if day.encode() in contents[0]]


@pytest.mark.parametrize(
    "values",
    [np.zeros(SHAPE, dtype=np.int16), np.full(SHAPE, 0.5, dtype=np.float32), np.full(SHAPE, -1, dtype=np.int16)],
)
def test_what_is_no_label_map_is_refused(tmp_path: Path, values: np.ndarray) -> None:
    series = write_series(tmp_path / "out", volume_of(affine_of("plain"), numbers(1, "MR")))
    with pytest.raises(Refused, match="BAD_LABEL"):
        write_segmentation(tmp_path / "seg.dcm", volume_of(affine_of("plain"), values), NAMES, series)
    assert not (tmp_path / "seg.dcm").exists()


def test_wrong_arguments(tmp_path: Path) -> None:
    series = write_series(tmp_path / "out", volume_of(affine_of("plain"), numbers(1, "MR")))
    label = volume_of(affine_of("plain"), label_of())
    with pytest.raises(Refused, match="takes nothing from a real patient"):
        write_segmentation(tmp_path / "seg.dcm", label, NAMES, series, synthetic="all")
    with pytest.raises(MedgenError, match="MetaTensor"):
        write_segmentation(tmp_path / "seg.dcm", label.as_tensor(), NAMES, series)  # type: ignore[arg-type]
    write_segmentation(tmp_path / "seg.dcm", label, NAMES, series)
    with pytest.raises(MedgenError, match="exists"):
        write_segmentation(tmp_path / "seg.dcm", label, NAMES, series)
