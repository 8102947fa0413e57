"""The derived series: values, geometry, identity, the same bytes again, nothing half written."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pydicom
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import EnhancedMRImageStorage, ExplicitVRLittleEndian

from medgen.checks import MedgenError
from medgen.io.dicom import read_series
from medgen.io.dicom_planes import planes_of
from medgen.io.dicom_values import rescale_for
from medgen.io.findings import Refused
from medgen.io.write_dicom import write_series
from medgen.io.write_seg import write_segmentation
from tests.io.dicom_sources import (
    PROVENANCE,
    SHAPE,
    affine_of,
    laid_on,
    numbers,
    read_back,
    rotation,
    source_series,
    volume_of,
)

KINDS = ("plain", "oblique", "sagittal", "tilted")
SMALL = np.arange(4 * 3 * 2, dtype=np.int16).reshape(4, 3, 2)


def check_read_back(files: list[Path], affine: np.ndarray, values: np.ndarray) -> None:
    array, its_affine = laid_on(affine, *read_back(files))
    step = float(pydicom.dcmread(files[0]).RescaleSlope)
    assert np.abs(its_affine - affine).max() < 1e-6
    assert np.abs(array - values).max() <= step / 2 * (1 + 1e-9)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_values_and_geometry_come_back(tmp_path: Path, modality: str, kind: str) -> None:
    affine, values = affine_of(kind), numbers(1, modality)
    files = write_series(tmp_path / "out", volume_of(affine, values), modality=modality, synthetic="all")
    assert [file.name for file in files] == [f"slice_{n:04d}.dcm" for n in range(1, SHAPE[2] + 1)]
    assert sorted(tmp_path.rglob("*.dcm")) == files
    check_read_back(files, affine, values)


@pytest.mark.parametrize("kind", ["plain", "oblique", "tilted"])
@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_by_medgens_own_reader(tmp_path: Path, modality: str, kind: str) -> None:
    affine, values = affine_of(kind), numbers(2, modality)
    files = write_series(tmp_path / "out", volume_of(affine, values), modality=modality, synthetic="all")
    volume = read_series(tmp_path / "out")
    array, its_affine = laid_on(affine, volume.numpy()[0].astype(np.float64), volume.affine.numpy())
    assert np.abs(its_affine - affine).max() < 1e-3
    assert np.abs(array - values).max() <= float(pydicom.dcmread(files[0]).RescaleSlope) / 2 * (1 + 1e-3)


@settings(max_examples=60)
@given(
    angles=st.tuples(*[st.floats(-3.1, 3.1)] * 3),
    spacing=st.tuples(*[st.floats(0.3, 6.0)] * 3),
    origin=st.tuples(*[st.floats(-400.0, 400.0)] * 3),
    axes=st.sampled_from(list(itertools.permutations(range(3)))),
    flips=st.tuples(*[st.sampled_from([1.0, -1.0])] * 3),
    shear=st.tuples(st.floats(-0.8, 0.8), st.floats(-0.8, 0.8)),
    sheared=st.booleans(),
)
def test_slices_of_any_grid_map_voxels_to_the_same_places(
    angles: tuple[float, ...],
    spacing: tuple[float, ...],
    origin: tuple[float, ...],
    axes: tuple[int, ...],
    flips: tuple[float, ...],
    shear: tuple[float, ...],
    sheared: bool,
) -> None:
    """Every voxel's value and place survive the cut into slices, whatever the orientation, flips and slice shear."""
    matrix = rotation(*angles) @ np.diag(spacing)
    if sheared:
        matrix[:, 2] += shear[0] * matrix[:, 0] / spacing[0] + shear[1] * matrix[:, 1] / spacing[1]
    affine = np.eye(4)
    affine[:3, :3] = matrix[:, axes] * flips
    affine[:3, 3] = origin
    shape = (4, 5, 3)
    planes = planes_of(affine, shape)
    index = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), axis=-1)
    expected = index @ affine[:3, :3].T + affine[:3, 3]
    places = np.stack([planes.frames(expected[..., world]) for world in range(3)], axis=-1)
    rows, columns = np.arange(planes.rows), np.arange(planes.columns)
    across = columns[:, None] * planes.pixel_spacing[1] * planes.orientation[:3]
    down = rows[:, None] * planes.pixel_spacing[0] * planes.orientation[3:]
    lps = planes.positions[:, None, None] + down[None, :, None] + across[None, None, :]
    assert np.allclose(lps * [-1, -1, 1], places, atol=1e-9)
    assert np.all(np.diff(planes.distances) > 0)
    if sheared and min(map(abs, shear)) > 1e-3:  # sheared along one axis only, two ways of cutting are possible
        assert planes.axes[0] == axes.index(2)


@settings(max_examples=12)
@given(
    angles=st.tuples(*[st.floats(-3.1, 3.1)] * 3),
    spacing=st.tuples(*[st.floats(0.05, 9.0)] * 3),
    origin=st.tuples(*[st.floats(-2000.0, 2000.0)] * 3),
    shear=st.tuples(*[st.sampled_from([-0.4, 0.0, 0.21])] * 2),
)
def test_written_affine_is_exact_to_a_micrometre(
    angles: tuple[float, ...], spacing: tuple[float, ...], origin: tuple[float, ...], shear: tuple[float, ...]
) -> None:
    """Nothing is lost where geometry becomes decimal text."""
    affine = np.eye(4)
    affine[:3, :3] = rotation(*angles) @ np.diag(spacing)
    affine[:3, 2] += shear[0] * affine[:3, 0] + shear[1] * affine[:3, 1]
    affine[:3, 3] = origin
    with tempfile.TemporaryDirectory() as folder:
        files = write_series(Path(folder) / "out", volume_of(affine, numbers(1, "CT", (5, 4, 3))), modality="CT")
        check_read_back(files, affine, numbers(1, "CT", (5, 4, 3)))


@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_axes_of_the_reference_are_kept(tmp_path: Path, modality: str) -> None:
    """A volume in any axis order is cut as its reference is."""
    source = source_series(tmp_path / "source", modality, "sagittal")
    array, affine = read_back(source)
    turned, turned_affine = np.transpose(array, (2, 0, 1))[::-1].astype(np.float32), affine.copy()
    turned_affine[:3, :3] = affine[:3, [2, 0, 1]] * [-1, 1, 1]
    turned_affine[:3, 3] += affine[:3, 2] * (array.shape[2] - 1)
    files = write_series(tmp_path / "out", volume_of(turned_affine, turned), reference=source)
    again, its_affine = read_back(files)
    assert np.allclose(its_affine, affine, atol=1e-6)
    assert np.array_equal(again, array)
    first, place = pydicom.dcmread(files[0]), read_back_place(source)
    assert first.SourceImageSequence[0].ReferencedSOPInstanceUID == place[tuple(map(float, first.ImagePositionPatient))]


def read_back_place(files: list[Path]) -> dict[tuple[float, ...], str]:
    datasets = [pydicom.dcmread(file) for file in files]
    return {tuple(map(float, d.ImagePositionPatient)): d.SOPInstanceUID for d in datasets}


@pytest.mark.parametrize(
    ("values", "slope", "intercept"),
    [
        (np.array([-1024, 3071]), "1", "0"),
        (np.array([0.0, 65535.0]), "1", "0"),
        (np.array([-5, 65530]), "1", "-5"),
        (np.array([1_000_000, 1_065_535]), "1", "1000000"),
        (np.array([True, False]), "1", "0"),
        (np.array([3.0, 3.0]), "1", "0"),
        (np.array([0.3, 0.3]), "1", "0.3"),
    ],
)
def test_whole_numbers_and_constants_are_exact(values: np.ndarray, slope: str, intercept: str) -> None:
    rescale = rescale_for(values.reshape(1, 1, -1))
    assert (rescale.slope_text, rescale.intercept_text) == (slope, intercept)
    assert np.array_equal(rescale.stored(values) * rescale.slope + rescale.intercept, values)


@settings(max_examples=200)
@given(
    low=st.floats(-1e12, 1e12),
    span=st.floats(1e-9, 1e12),
    inner=st.lists(st.floats(0, 1), min_size=1, max_size=8),
)
def test_any_values_fit_within_half_a_step(low: float, span: float, inner: list[float]) -> None:
    values = low + np.array([0.0, 1.0, *inner]) * span
    rescale = rescale_for(values.reshape(1, 1, -1))
    back = rescale.stored(values) * rescale.slope + rescale.intercept
    rounding = 4 * np.finfo(np.float64).eps * np.abs(values).max()
    assert len(rescale.slope_text) <= 16
    assert len(rescale.intercept_text) <= 16
    assert np.abs(back - values).max() <= rescale.slope / 2 + rounding
    if values.max() - values.min() > 70000:
        assert rescale.slope <= 2.01 * (values.max() - values.min()) / 65535 + rounding


def test_zero_stays_zero() -> None:
    values = np.array([0.0, -0.75, 3.1]).reshape(1, 1, -1)
    rescale = rescale_for(values)
    assert (rescale.stored(values) * rescale.slope + rescale.intercept)[0, 0, 0] == 0


def test_steps_of_the_source_are_kept(tmp_path: Path) -> None:
    """Values on the source's rescale steps keep their stored numbers; with others between them, by choice."""
    source = source_series(tmp_path / "source", "CT", RescaleSlope="1.7", RescaleIntercept="-20.5")
    array, affine = read_back(source)
    same = write_series(tmp_path / "same", volume_of(affine, array.astype(np.float32)), reference=source)
    first = pydicom.dcmread(same[0])
    assert (first.RescaleSlope, first.RescaleIntercept) == (1.7, -20.5)
    assert np.array_equal(read_back(same)[0], array)
    array[2:5, 2:5, 2] += 0.4
    chosen = write_series(tmp_path / "free", volume_of(affine, array), reference=source)
    assert pydicom.dcmread(chosen[0]).RescaleSlope != 1.7
    kept = write_series(tmp_path / "kept", volume_of(affine, array), reference=source, keep_rescale=True)
    assert pydicom.dcmread(kept[0]).RescaleSlope == 1.7
    assert np.count_nonzero(read_back(kept)[0] - array) == 9


def test_steps_of_the_source_are_not_kept_where_they_are_coarse(tmp_path: Path) -> None:
    """Values of 0 to 1 beside a source in whole numbers; whole numbers beside a source of slope 1.7."""
    values = numbers(1, "MR")
    for number, (array, slope) in enumerate([(values, "1"), (np.rint(values * 1000), "1.7")]):
        source = source_series(tmp_path / f"source{number}", "MR", RescaleSlope=slope, RescaleIntercept="0")
        volume = volume_of(affine_of("plain"), array)
        files = write_series(tmp_path / f"out{number}", volume, reference=source, keep_rescale=True)
        back = laid_on(affine_of("plain"), *read_back(files))[0]
        assert np.abs(back - array).max() < 1e-4


def test_another_modality_than_the_reference(tmp_path: Path) -> None:
    """A CT made from an MR has the patient, not the window, the polarity or the acquisition."""
    source = source_series(tmp_path / "source", "MR", PhotometricInterpretation="MONOCHROME1", RescaleSlope="3")
    volume = volume_of(affine_of("plain"), numbers(1, "CT"))
    ct = pydicom.dcmread(write_series(tmp_path / "ct", volume, reference=source, modality="CT", keep_rescale=True)[0])
    mr = pydicom.dcmread(write_series(tmp_path / "mr", volume, reference=source, keep_rescale=True)[0])
    assert (ct.PatientID, ct.Modality, ct.PhotometricInterpretation, ct.RescaleType) == (
        "ID",
        "CT",
        "MONOCHROME2",
        "HU",
    )
    assert "EchoTime" not in ct
    assert ct.WindowWidth != 400
    assert (mr.PhotometricInterpretation, mr.WindowWidth, mr.RescaleSlope) == ("MONOCHROME1", 400, 3)


def test_multi_frame_reference(tmp_path: Path) -> None:
    """An enhanced image is referenced frame by frame, in any order of its frames."""
    header, frames = enhanced_header(), []
    affine = affine_of("plain")
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    for index in (2, 0, 1, 4, 3, 5):
        frame = Dataset()
        frame.PlanePositionSequence = [Dataset()]
        frame.PlanePositionSequence[0].ImagePositionPatient = (lps[:3, 3] + index * lps[:3, 2]).tolist()
        frames.append(frame)
    header.PerFrameFunctionalGroupsSequence = frames
    header.save_as(tmp_path / "enhanced.dcm", enforce_file_format=True)
    volume = volume_of(affine, numbers(1, "MR"))
    files = write_series(tmp_path / "out", volume, reference=[tmp_path / "enhanced.dcm"])
    items = [pydicom.dcmread(file).SourceImageSequence for file in files]
    assert [[item.ReferencedFrameNumber for item in some] for some in items] == [[2], [3], [1], [5], [4], [6]]
    assert len(pydicom.dcmread(files[0]).ReferencedSeriesSequence[0].ReferencedInstanceSequence) == 1


def enhanced_header() -> Dataset:
    """An Enhanced MR image without pixels and frames."""
    header = Dataset()
    header.SOPClassUID, header.SOPInstanceUID, header.Modality = EnhancedMRImageStorage, "1.2.3.5.1", "MR"
    header.PatientName, header.PatientID, header.StudyInstanceUID = "A^B", "ID", "1.2.3.5.2"
    header.SeriesInstanceUID, header.FrameOfReferenceUID = "1.2.3.5.3", "1.2.3.5.4"
    header.Rows, header.Columns, header.NumberOfFrames = SHAPE[1], SHAPE[0], SHAPE[2]
    shared = Dataset()
    shared.PlaneOrientationSequence = [Dataset()]
    shared.PlaneOrientationSequence[0].ImageOrientationPatient = [-1, 0, 0, 0, -1, 0]
    header.SharedFunctionalGroupsSequence = [shared]
    header.file_meta = FileMetaDataset()
    header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return header


def test_header_of_a_derived_series(tmp_path: Path) -> None:
    source = source_series(tmp_path / "source", "CT", GantryDetectorTilt="0", LossyImageCompression="00")
    array, affine = read_back(source)
    files = write_series(
        tmp_path / "out",
        volume_of(affine, array + np.float32(0.25)),
        reference=source,
        description="Denoised",
        derivation="denoised",
        provenance=PROVENANCE,
    )
    headers, before = [pydicom.dcmread(file) for file in files], pydicom.dcmread(source[0])
    for header in headers:
        assert header.ImageType == ["DERIVED", "SECONDARY", "AXIAL"]
        for kept in (
            "PatientName", "PatientID", "PatientBirthDate", "PatientAge", "StudyInstanceUID", "FrameOfReferenceUID",
            "StudyDate", "AccessionNumber", "BodyPartExamined", "PatientPosition", "KVP", "AcquisitionDate",
        ):  # fmt: skip
            assert header[kept].value == before[kept].value, kept
        assert header.SeriesInstanceUID == headers[0].SeriesInstanceUID != before.SeriesInstanceUID
        assert "Denoised" in header.DerivationDescription
        assert header.DerivationCodeSequence[0].CodeValue == "denoised"
        assert header.BurnedInAnnotation == "NO"
        assert header.SliceThickness == 2.0
        assert (header.WindowCenter, header.WindowWidth) == (40, 400)
        assert "SyntheticData" not in header
        scanner, own = header.ContributingEquipmentSequence
        assert scanner.Manufacturer == "Maker"
        assert own.DeviceSerialNumber == PROVENANCE["model_sha256"]
        assert '"seed": 7' in own.ContributionDescription
        assert header.ReferencedSeriesSequence[0].SeriesInstanceUID == before.SeriesInstanceUID
        assert len(header.ReferencedSeriesSequence[0].ReferencedInstanceSequence) == SHAPE[2]
        assert header.SourceImageSequence[0].PurposeOfReferenceCodeSequence[0].CodeValue == "121322"
        for left in (
            "SmallestImagePixelValue", "ImageComments", "OperatorsName", "RequestAttributesSequence", "ExposureTime",
            "ConvolutionKernel", "InstitutionName",
        ):  # fmt: skip
            assert left not in header, left
        assert not [element for element in header.iterall() if element.tag.is_private]
    assert (
        len({header.SOPInstanceUID for header in headers} | {pydicom.dcmread(f).SOPInstanceUID for f in source}) == 12
    )
    assert [header.InstanceNumber for header in headers] == list(range(1, 7))
    assert str(headers[0].PatientName) == "Müller^Anna"


def test_resampled_slices_name_the_source_slices_around_them(tmp_path: Path) -> None:
    source = source_series(tmp_path / "source", "MR")
    affine = affine_of("plain")
    affine[2, 2] /= 2
    values = numbers(4, "MR", (SHAPE[0], SHAPE[1], 2 * SHAPE[2] - 1))
    files = write_series(tmp_path / "out", volume_of(affine, values), reference=source, derivation="resampled")
    counts = [len(pydicom.dcmread(file).SourceImageSequence) for file in files]
    assert counts == [1, 2] * (SHAPE[2] - 1) + [1]
    assert pydicom.dcmread(files[0]).SliceThickness == 1.25
    turned = affine_of("oblique")
    files = write_series(tmp_path / "turned", volume_of(turned, numbers(4, "MR")), reference=source)
    assert {len(pydicom.dcmread(file).SourceImageSequence) for file in files} == {SHAPE[2]}


def test_synthetic_is_said_and_inherited(tmp_path: Path) -> None:
    volume = volume_of(affine_of("plain"), numbers(1, "MR"))
    first = write_series(tmp_path / "a", volume, synthetic="all", provenance=PROVENANCE)
    second = write_series(tmp_path / "b", volume, reference=first, derivation="smoothed")
    third = write_series(tmp_path / "c", volume, reference=second, synthetic="all")
    headers = [pydicom.dcmread(files[0]) for files in (first, second, third)]
    assert {header.SyntheticData for header in headers} == {"YES"}
    assert len({header.PatientID for header in headers}) == 1
    assert len({header.SeriesInstanceUID for header in headers}) == 3
    assert len(headers[1].ContributingEquipmentSequence) == 2
    assert headers[0].ContributingEquipmentSequence[0].PurposeOfReferenceCodeSequence[0].CodeValue == "109100"
    real = source_series(tmp_path / "source", "MR")
    filled = write_series(tmp_path / "d", volume, reference=real, synthetic="part")
    assert pydicom.dcmread(filled[0]).SyntheticData == "YES"
    assert pydicom.dcmread(filled[0]).PatientID == "ID"


def test_same_call_same_bytes_other_output_other_series(tmp_path: Path) -> None:
    source = source_series(tmp_path / "source", "MR")
    volume = volume_of(affine_of("plain"), numbers(1, "MR"))
    calls = {
        "a": {"reference": source, "provenance": PROVENANCE},
        "b": {"reference": source[::-1], "provenance": dict(reversed(PROVENANCE.items()))},
    }
    for name, arguments in calls.items():
        write_series(tmp_path / name, volume, **arguments)
    contents = [[file.read_bytes() for file in sorted((tmp_path / name).iterdir())] for name in calls]
    assert contents[0] == contents[1]
    moved = volume_of(affine_of("plain"), numbers(1, "MR") + np.float32(1))
    others = [
        write_series(tmp_path / "c", moved, reference=source, provenance=PROVENANCE),
        write_series(tmp_path / "d", volume, reference=source, provenance={**PROVENANCE, "seed": 8}),
        write_series(tmp_path / "e", volume, reference=source, provenance=PROVENANCE, description="other"),
    ]
    uids = [pydicom.dcmread(files[0]).SeriesInstanceUID for files in (sorted((tmp_path / "a").iterdir()), *others)]
    assert len(set(uids)) == 4


def test_a_seed_is_a_subject(tmp_path: Path) -> None:
    """One seed: one patient, study and frame of reference, whatever the output; another seed: another patient."""
    made = {}
    for name, seed, values in (("a", 1, 1), ("b", 1, 2), ("c", 2, 1)):
        files = write_series(
            tmp_path / name,
            volume_of(affine_of("plain"), numbers(values, "MR")),
            synthetic="all",
            provenance={**PROVENANCE, "seed": seed},
        )
        made[name] = pydicom.dcmread(files[0])
    for keyword in ("PatientID", "StudyInstanceUID", "FrameOfReferenceUID", "StudyDate"):
        assert made["a"][keyword].value == made["b"][keyword].value != made["c"][keyword].value
    assert made["a"].SeriesInstanceUID != made["b"].SeriesInstanceUID


def test_long_provenance_keeps_what_matters(tmp_path: Path) -> None:
    provenance = {**PROVENANCE, "a_long_one": "x" * 3000}
    files = write_series(tmp_path / "out", volume_of(np.eye(4), SMALL), provenance=provenance)
    text = pydicom.dcmread(files[0]).ContributingEquipmentSequence[0].ContributionDescription
    assert len(text) <= 1024
    assert '"seed": 7' in text
    assert '"left_out": 1' in text


def test_without_a_seed_or_a_synthetic_subject_each_volume_is_a_patient(tmp_path: Path) -> None:
    """Two people's volumes restored with one model and one seed do not become one patient."""
    ids = set()
    for values in (1, 2):
        volume = volume_of(affine_of("plain"), numbers(values, "MR"))
        ids.add(pydicom.dcmread(write_series(tmp_path / str(values), volume, provenance=PROVENANCE)[0]).PatientID)
    assert len(ids) == 2


def test_filled_scans_without_a_reference_are_not_one_patient(tmp_path: Path) -> None:
    """The seed decides who a synthetic subject is, but not who a scan with a filled hole is of."""
    ids = set()
    for values in (1, 2):
        volume = volume_of(affine_of("plain"), numbers(values, "MR"))
        made = {**PROVENANCE, "inputs": {"image_sha256": str(values)}}
        header = pydicom.dcmread(write_series(tmp_path / str(values), volume, provenance=made, synthetic="part")[0])
        ids.add((header.PatientID, header.StudyInstanceUID))
        assert header[0x0008001C].value == "YES"
        assert str(header.PatientName).startswith("Unknown")
    assert len(ids) == 2


def test_window_of_the_reference_only_where_it_suits(tmp_path: Path) -> None:
    source = source_series(tmp_path / "source", "CT")
    array, affine = read_back(source)
    kept = pydicom.dcmread(write_series(tmp_path / "same", volume_of(affine, array), reference=source)[0])
    tiny = volume_of(affine, np.asarray(array, dtype=np.float32) / 10_000)
    fresh = pydicom.dcmread(write_series(tmp_path / "tiny", tiny, reference=source)[0])
    own = pydicom.dcmread(sorted(source)[0])
    assert (kept.WindowCenter, kept.WindowWidth) == (own.WindowCenter[0], own.WindowWidth[0])
    assert fresh.WindowWidth < 1


def test_text_outside_ascii(tmp_path: Path) -> None:
    source = source_series(tmp_path / "source", "MR")
    array, affine = read_back(source)
    files = write_series(tmp_path / "derived", volume_of(affine, array), reference=source, description="Größe µ Ω")
    header = pydicom.dcmread(files[0])
    assert (header.SeriesDescription, str(header.PatientName)) == ("Größe µ Ω", "Müller^Anna")
    files = write_series(tmp_path / "out", volume_of(np.eye(4), SMALL), description="Entrauscht µ", subject="Zoë")
    header = pydicom.dcmread(files[0])
    assert (header.SeriesDescription, header.PatientID) == ("Entrauscht µ", "Zoë")


def test_sidecars_come_with_the_series(tmp_path: Path) -> None:
    write_series(tmp_path / "out", volume_of(np.eye(4), SMALL), sidecars={"report.json": b"{}"})
    assert (tmp_path / "out" / "report.json").read_bytes() == b"{}"
    for name in ("slice_0001.dcm", "../a.json", ""):
        with pytest.raises(MedgenError, match="sidecar"):
            write_series(tmp_path / "other", volume_of(np.eye(4), SMALL), sidecars={name: b""})
    assert [folder.name for folder in tmp_path.iterdir()] == ["out"]


def _with(value: float) -> np.ndarray:
    values = SMALL.astype(np.float32)
    values[1, 1, 1] = value
    return values


_SHEARED = np.eye(4)
_SHEARED[0, 1] = _SHEARED[1, 2] = _SHEARED[0, 2] = 0.3


@pytest.mark.parametrize(
    ("values", "affine", "code"),
    [
        (_with(np.nan), np.eye(4), "NON_FINITE"),
        (_with(np.inf), np.eye(4), "NON_FINITE"),
        (SMALL.astype(np.complex64), np.eye(4), "UNSUPPORTED_TYPE"),
        (SMALL, _SHEARED, "UNWRITABLE_GEOMETRY"),
        (SMALL, np.diag([1.0, 1.0, 0.0, 1.0]), "BAD_AFFINE"),
        (SMALL, np.full((4, 4), np.nan), "BAD_AFFINE"),
        (SMALL[:, :, :1], np.eye(4), "SINGLE_SLICE"),
    ],
)
def test_what_cannot_be_written_is_refused(tmp_path: Path, values: np.ndarray, affine: np.ndarray, code: str) -> None:
    with pytest.raises(Refused) as refused:
        write_series(tmp_path / "out", volume_of(affine, values))
    assert refused.value.code == code
    assert list(tmp_path.iterdir()) == []


def test_bad_references_are_refused(tmp_path: Path) -> None:
    source = source_series(tmp_path / "source", "MR")
    other = source_series(tmp_path / "other", "MR", SeriesInstanceUID="1.2.3.4.999")
    ultrasound = source_series(tmp_path / "us", "MR", Modality="US")
    (tmp_path / "text.dcm").write_text("no DICOM")
    far = affine_of("plain")
    far[:3, 3] += 500
    near = volume_of(affine_of("plain"), numbers(1, "MR"))
    cases = [
        ([*source, *other], near, "values of SeriesInstanceUID"),
        ([], near, "no files"),
        ([tmp_path / "text.dcm"], near, "is missing|cannot be read"),
        ([tmp_path / "nothing.dcm"], near, "cannot be read"),
        ([*source, source[0]], near, "same image"),
        (ultrasound, near, "modality is 'US'"),
        (source, volume_of(far, numbers(1, "MR")), "does not meet"),
    ]
    for reference, volume, text in cases:
        with pytest.raises(Refused, match=text) as refused:
            write_series(tmp_path / "out", volume, reference=reference)
        assert refused.value.code == "BAD_REFERENCE"
    with pytest.raises(Refused, match="takes nothing from a real patient"):
        write_series(tmp_path / "out", near, reference=source, synthetic="all")
    assert not (tmp_path / "out").exists()


def test_a_damaged_reference_ends_in_a_series_or_a_refusal(tmp_path: Path) -> None:
    """Headers with some bytes changed: nothing else is ever raised, and the geometry is always the volume's."""
    source = source_series(tmp_path / "source", "MR")
    whole, rng = source[0].read_bytes(), random.Random(0)
    header, written = len(whole) - 2 * SHAPE[0] * SHAPE[1], 0
    affine, values = affine_of("plain"), numbers(1, "MR")
    label = volume_of(affine, (values > 0.5).astype(np.int16))
    for _ in range(60):
        content = bytearray(whole)
        for _ in range(rng.choice([1, 1, 2, 5])):
            content[rng.randrange(132, header)] = rng.choice([0, 32, 65, 255, rng.randrange(256)])
        source[0].write_bytes(content)
        with contextlib.suppress(Refused):
            files = write_series(tmp_path / "out", volume_of(affine, values), reference=source, overwrite=True)
            check_read_back(files, affine, values)
            written += 1
            write_segmentation(tmp_path / "seg.dcm", label, {}, source, overwrite=True)
    assert written > 10


def test_wrong_arguments(tmp_path: Path) -> None:
    volume, path = volume_of(np.eye(4), SMALL), tmp_path / "out"
    with pytest.raises(MedgenError, match="one channel"):
        write_series(path, MetaTensor(torch.zeros(2, 3, 3, 3)))
    with pytest.raises(MedgenError, match="no affine"):
        write_series(path, torch.zeros(1, 3, 3, 3))  # type: ignore[arg-type]
    with pytest.raises(MedgenError, match="modality must be one of"):
        write_series(path, volume, modality="PT")  # type: ignore[arg-type]
    with pytest.raises(MedgenError, match="provenance holds"):
        write_series(path, volume, provenance={"seed": object()})
    with pytest.raises(Refused, match="BAD_SUBJECT"):
        write_series(path, volume, subject="a\\b")
    path.mkdir()
    with pytest.raises(MedgenError, match="exists"):
        write_series(path, volume)
    write_series(path, volume, overwrite=True)
    assert len(list(path.iterdir())) == 2


@pytest.mark.skipif(os.name != "posix", reason="needs a file size limit")
@pytest.mark.parametrize("what", ["series", "segmentation"])
def test_no_room_leaves_nothing(tmp_path: Path, what: str) -> None:
    """A write that fails midway (file size limit, as a full disk) raises and leaves no file of any name."""
    volume = MetaTensor(torch.rand(1, 200, 200, 3))
    series = write_series(tmp_path / "series", volume)
    with no_file_above(5_000), pytest.raises(OSError, match="File too large"):
        if what == "series":
            write_series(tmp_path / "out", volume)
        else:
            write_segmentation(tmp_path / "out", (volume > 0.5).to(torch.int16), {}, series)
    assert [path.name for path in tmp_path.iterdir()] == ["series"]


@contextlib.contextmanager
def no_file_above(size: int) -> Iterator[None]:
    """Limits the size of a file, bytes, while the block runs."""
    import resource

    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
