"""Cases: folders as archives hand them out: nested, with junk, indices, reports and objects that are no volume."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import ImplicitVRLittleEndian

from tests.io.dicom.phantom import (
    BYTE,
    BYTE_GRID,
    SECONDARY_CAPTURE,
    Field,
    Grid,
    Pixels,
    Truth,
    encode,
    header,
    make_series,
    save,
    set_bytes,
    set_format,
    stored_of,
    uid,
)
from tests.io.dicom.registry import Expected, add, aside, either, faulty, readable

_JUNK = ("NOT_DICOM", "UNKNOWN_FORMAT", "NOT_AN_IMAGE", "EMPTY_FILE", "TRUNCATED_FILE")
_STORAGE = "1.2.840.10008.5.1.4.1.1."


def _beside(name: str, file: str, content: Callable[[], bytes], *codes: str) -> None:
    """A series with one more file, which is no part of it: it is set aside, the series is read."""

    def build(folder: Path) -> Expected:
        made = make_series()
        save(folder, made.slices)
        path = folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content())
        return Expected([[made.truth]], aside(path.name, *codes))

    add("readable", (), name, build)


_beside("text_file", "readme.txt", lambda: b"Patient files, please return.\n" * 20, *_JUNK)
_beside("short_text_file", "x.txt", lambda: b"x", *_JUNK)
_beside("empty_file", "IM9999.dcm", lambda: b"", *_JUNK)
_beside("text_named_dcm", "IM9999.dcm", lambda: b"not an image" * 60, *_JUNK)
_beside("json_file", "report.json", lambda: json.dumps({"0020000D": {"vr": "UI"}}).encode(), *_JUNK)
_beside("zeros", "zeros.bin", lambda: bytes(4096), *_JUNK)
_beside("noise", "noise.bin", lambda: np.random.default_rng(0).bytes(4096), *_JUNK)
_beside("noise_after_a_preamble", "noise.dcm", lambda: bytes(128) + b"DICM" + np.random.default_rng(0).bytes(4096))
_beside("preamble_alone", "preamble.dcm", lambda: bytes(128) + b"DICM", *_JUNK, "BAD_HEADER")
_beside("half_a_preamble", "preamble.dcm", lambda: bytes(100), *_JUNK)
_beside("bytes_like_an_implicit_header", "x.dcm", lambda: b"\x08\0\x05\0\x0a\0\0\0ISO_IR 100" + b"\xff" * 99)
_beside("desktop_file", ".DS_Store", lambda: b"\0\0\0\x01Bud1" + bytes(600), "HIDDEN_FILE", *_JUNK)
_beside("thumbnails", "Thumbs.db", lambda: b"\xd0\xcf\x11\xe0" + bytes(600), *_JUNK)
_beside("web_page", "index.htm", lambda: b"<html><body>CD viewer</body></html>" * 9, *_JUNK)
_beside("program", "viewer.exe", lambda: b"MZ" + bytes(3000), *_JUNK)
_beside("autorun", "autorun.inf", lambda: b"[autorun]\r\nopen=viewer.exe\r\n", *_JUNK)
_beside("nested_junk", "a/b/c/d/notes.txt", lambda: b"nested" * 9, *_JUNK)
_beside("resource_fork", "._IM0000.dcm", lambda: b"\0\x05\x16\x07" + bytes(120), "HIDDEN_FILE", *_JUNK)
_beside("zip_archive", "images.zip", lambda: b"PK\x03\x04" + zlib.compress(b"x" * 99), *_JUNK)


def _object(sop_class: str, modality: str, *, series: str = "other") -> Dataset:
    ds = header("CT", series)
    ds.SOPClassUID, ds.Modality, ds.SOPInstanceUID = sop_class, modality, uid(sop_class, series)
    del ds.ImageType
    return ds


def _text_item(text: str) -> Dataset:
    item = Dataset()
    item.RelationshipType, item.ValueType, item.TextValue = "CONTAINS", "TEXT", text
    return item


def _report() -> bytes:
    ds = _object(_STORAGE + "88.22", "SR")
    ds.ValueType, ds.ContinuityOfContent = "CONTAINER", "SEPARATE"
    ds.ContentSequence = Items([_text_item("no finding")])
    return encode(ds)


def _report_in_the_series() -> bytes:
    ds = _object(_STORAGE + "88.33", "SR", series="a")
    ds.ContentSequence = Items([_text_item("dose")])
    return encode(ds)


def _segmentation() -> bytes:
    made = make_series(pixels=Pixels(None, 0.0, stored=16))
    ds = _object(_STORAGE + "66.4", "SEG")
    ds.NumberOfFrames = 8
    set_format(ds, Pixels(allocated=8, stored=8), (20, 24))
    set_bytes(ds, np.ones((8, 20, 24), np.uint8).tobytes())
    frames = []
    for index in range(8):
        plane, frame = Dataset(), Dataset()
        plane.ImagePositionPatient = made.slices[index].ImagePositionPatient
        frame.PlanePositionSequence = Items([plane])
        frames.append(frame)
    ds.PerFrameFunctionalGroupsSequence = Items(frames)
    measures, orientation, shared = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, orientation.ImageOrientationPatient = (
        made.slices[0].PixelSpacing,
        made.slices[0].ImageOrientationPatient,
    )
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = Items([measures]), Items([orientation])
    ds.SharedFunctionalGroupsSequence = Items([shared])
    return encode(ds)


def _contours() -> bytes:
    ds = _object(_STORAGE + "481.3", "RTSTRUCT")
    ds.StructureSetLabel = "organs"
    return encode(ds)


def _plain_object(sop: str, modality: str) -> Callable[[], bytes]:
    return lambda: encode(_object(_STORAGE + sop, modality))


def _pdf() -> bytes:
    ds = _object(_STORAGE + "104.1", "DOC")
    ds.EncapsulatedDocument, ds.MIMETypeOfEncapsulatedDocument = b"%PDF-1.4 nothing", "application/pdf"
    return encode(ds)


def _spectrum() -> bytes:
    ds = _object(_STORAGE + "4.2", "MR")
    ds.Rows, ds.Columns, ds.NumberOfFrames = 1, 1, 1
    ds.SpectroscopyData = np.zeros(64, "<f4").tobytes()
    return encode(ds)


def _directory() -> bytes:
    ds = Dataset()
    ds.SOPClassUID, ds.SOPInstanceUID = "1.2.840.10008.1.3.10", uid("directory")
    ds.FileSetID, ds.FileSetConsistencyFlag = "PHANTOM", 0
    ds.OffsetOfTheFirstDirectoryRecordOfTheRootDirectoryEntity = 0
    ds.OffsetOfTheLastDirectoryRecordOfTheRootDirectoryEntity = 0
    record = Dataset()
    record.OffsetOfTheNextDirectoryRecord, record.RecordInUseFlag = 0, 0xFFFF
    record.OffsetOfReferencedLowerLevelDirectoryEntity, record.DirectoryRecordType = 0, "IMAGE"
    record.ReferencedFileID = ["IM0000"]
    ds.DirectoryRecordSequence = Items([record])
    return encode(ds)


_NO_IMAGE = "NOT_AN_IMAGE"
_beside("report", "SR.dcm", _report, _NO_IMAGE)
_beside("report_under_the_series_uid", "SR.dcm", _report_in_the_series, _NO_IMAGE)
_beside("segmentation", "SEG.dcm", _segmentation, _NO_IMAGE)
_beside("contours", "RTSTRUCT.dcm", _contours, _NO_IMAGE)
_beside("plan", "RTPLAN.dcm", _plain_object("481.5", "RTPLAN"), _NO_IMAGE)
_beside("presentation_state", "PR.dcm", _plain_object("11.1", "PR"), _NO_IMAGE)
_beside("key_objects", "KO.dcm", _plain_object("88.59", "KO"), _NO_IMAGE)
_beside("registration", "REG.dcm", _plain_object("66.1", "REG"), _NO_IMAGE)
_beside("raw_data", "RAW.dcm", _plain_object("66", "MR"), _NO_IMAGE)
_beside("electrocardiogram", "ECG.dcm", _plain_object("9.1.1", "ECG"), _NO_IMAGE)
_beside("encapsulated_pdf", "DOC.dcm", _pdf, _NO_IMAGE)
_beside("spectroscopy", "SPECTRUM.dcm", _spectrum, _NO_IMAGE)
_beside("private_object", "CSA.dcm", lambda: encode(_object("1.3.12.2.1107.5.9.1", "MR")), _NO_IMAGE)
_beside("dicomdir", "DICOMDIR", _directory, "DICOMDIR")
_beside("dicomdir_of_another_name", "index.dcm", _directory, "DICOMDIR")


def _screenshot(series: str) -> bytes:
    ds = header("OT", series, 99)
    ds.ConversionType = "WSD"
    set_format(ds, Pixels(allocated=8, stored=8), (20, 24))
    ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PlanarConfiguration = 3, "RGB", 0
    set_bytes(ds, bytes(20 * 24 * 3))
    return encode(ds)


def _grey_capture(series: str) -> bytes:
    ds = header("OT", series, 99)
    ds.ConversionType = "WSD"
    set_format(ds, Pixels(allocated=8, stored=8), (20, 24))
    set_bytes(ds, bytes(20 * 24))
    return encode(ds)


_CAPTURE = (_NO_IMAGE, "UNSUPPORTED_TYPE", "NO_GEOMETRY", "SINGLE_SLICE", "BAD_GEOMETRY")
_beside("screenshot", "SC.dcm", lambda: _screenshot("b"), *_CAPTURE)
_beside("screenshot_under_the_series_uid", "SC.dcm", lambda: _screenshot("a"), *_CAPTURE)
_beside("grey_capture", "SC.dcm", lambda: _grey_capture("b"), *_CAPTURE)
_beside("grey_capture_under_the_series_uid", "SC.dcm", lambda: _grey_capture("a"), *_CAPTURE)


def _truncated_stranger() -> bytes:
    data = encode(make_series(series="b").slices[0])
    return data[: len(data) - 500]


_beside(
    "truncated_slice_of_another_series",
    "cut.dcm",
    _truncated_stranger,
    "TRUNCATED_PIXEL_DATA",
    "TRUNCATED_FILE",
    "HEADER_PROMISES_TOO_MUCH",
    "SINGLE_SLICE",
)


@readable()
def nested_folders(folder: Path) -> Truth:
    """Every slice in a folder of its own, at different depths."""
    made = make_series()
    for index, ds in enumerate(made.slices):
        save(folder.joinpath(*[f"level {depth}" for depth in range(index % 4)], str(index)), [ds], "IMAGE")
    return made.truth


@readable()
def two_patients_in_two_folders(folder: Path) -> Sequence[Truth]:
    """The same file names in two folders."""
    first, second = make_series(), make_series(values=Field().plus(400), series="b")
    for ds in second.slices:
        ds.PatientID = "P2"
    save(folder / "one", first.slices)
    save(folder / "two", second.slices)
    return [first.truth, second.truth]


@readable()
def one_series_over_two_folders(folder: Path) -> Truth:
    """Odd slices in one folder, even ones in another, under the same names."""
    made = make_series()
    save(folder / "one", made.slices[::2])
    save(folder / "two", made.slices[1::2])
    return made.truth


def _named(name: str, pattern: str) -> None:
    def build(folder: Path) -> Truth:
        made = make_series()
        save(folder, made.slices, pattern)
        return made.truth

    add("readable", (), name, build)


_named("names_without_suffix", "IM{:04d}")
_named("names_upper_case", "IM{:04d}.DCM")
_named("names_of_siemens", "PHANTOM.MR.{:d}.IMA")
_named("names_with_spaces", "slice {:d} of 8 .dcm")
_named("names_in_unicode", "коронка-{:d}-头.dcm")
_named("names_of_other_suffix", "{:d}.img")
_named("names_like_uids", "1.2.840.113619.2.55.{:d}")
_named("names_like_numbers_without_padding", "{:d}")
_named("names_of_200_characters", "x" * 200 + "{:d}")
_named("names_with_brackets", "[{:d}]* ?.dcm")
_named("names_with_a_backslash", "a\\{:d}.dcm")


@readable()
def folder_named_like_a_slice(folder: Path) -> Truth:
    """A folder is called IM0099.dcm."""
    made = make_series()
    save(folder, made.slices[:4])
    save(folder / "IM0099.dcm", made.slices[4:])
    return made.truth


@faulty("NO_GEOMETRY")
def positions_of_acr_nema(folder: Path) -> None:
    """Position and orientation in the retired elements alone, which are not of the patient."""
    made = make_series()
    for ds in made.slices:
        ds.add_new(0x00200030, "DS", ds.ImagePositionPatient)
        ds.add_new(0x00200035, "DS", ds.ImageOrientationPatient)
        del ds.ImagePositionPatient, ds.ImageOrientationPatient
    save(folder, made.slices)


@faulty("NO_GEOMETRY", "BAD_GEOMETRY")
def pixel_spacing_of_the_imager_alone(folder: Path) -> None:
    """ImagerPixelSpacing is a length at the detector, not in the patient."""
    made = make_series()
    for ds in made.slices:
        ds.ImagerPixelSpacing = ds.PixelSpacing
        del ds.PixelSpacing
    save(folder, made.slices)


@either("BAD_HEADER", "UNKNOWN_FORMAT")
def names_that_claim_nifti(folder: Path) -> Truth:
    """DICOM files whose names end in .nii."""
    made = make_series()
    save(folder, made.slices, "{:d}.nii")
    return made.truth


@either("HIDDEN_FILE", "MISSING_SLICE")
def hidden_slice_names(folder: Path) -> Truth:
    """All slices have names that begin with a dot."""
    made = make_series()
    save(folder, made.slices, ".IM{:04d}.dcm")
    return made.truth


@readable()
def links_to_the_slices(folder: Path) -> Truth:
    """The slices are symbolic links into another folder that is not part of the input."""
    made = make_series()
    for path in save(folder.parent / f"{folder.name}-store", made.slices):
        os.symlink(path, folder / path.name)
    return made.truth


@readable()
def derived_object_of_the_same_class(folder: Path) -> Sequence[Truth]:
    """A second series computed from the first."""
    first = make_series()
    second = make_series(values=Field().plus(-100), series="b", ImageType=["DERIVED", "SECONDARY", "MPR"])
    save(folder, [*first.slices, *second.slices])
    return [first.truth, second.truth]


@readable("SYNTHETIC")
def synthetic_series(folder: Path) -> Truth:
    """Synthetic Data (0008,001C) says YES."""
    made = make_series()
    for ds in made.slices:
        ds.add_new(0x0008001C, "CS", "YES")
    save(folder, made.slices)
    return made.truth


@readable()
def secondary_capture_with_geometry(folder: Path) -> Truth:
    """A series of secondary captures that has positions, as some converters write."""
    made = make_series(modality="CT")
    for ds in made.slices:
        ds.SOPClassUID = SECONDARY_CAPTURE
    save(folder, made.slices)
    return made.truth


@readable()
def implicit_dump_of_a_research_scanner(folder: Path) -> Truth:
    """No preamble, no meta, no patient, odd names."""
    made = make_series(BYTE_GRID, BYTE, Pixels(None, 0.0, allocated=8, stored=8), modality="MR")
    for index, ds in enumerate(made.slices):
        for keyword in (
            "PatientName",
            "PatientID",
            "StudyDate",
            "StudyTime",
            "AccessionNumber",
            "SpecificCharacterSet",
        ):
            delattr(ds, keyword)
        (folder / f"I.{index:03d}").write_bytes(encode(ds, ImplicitVRLittleEndian, preamble=False))
    return made.truth


def _alone(name: str, modality: str, sop: str, codes: Sequence[str], shape: tuple[int, ...]) -> None:
    """One file with pixels but without geometry: no volume."""

    def build(folder: Path) -> None:
        ds = header("CT")
        ds.SOPClassUID, ds.Modality = _STORAGE + sop, modality
        set_format(ds, Pixels(allocated=8, stored=8), shape[-2:])
        if len(shape) > 2:
            ds.NumberOfFrames = shape[0]
            ds.FrameTime = "33"
        set_bytes(ds, np.arange(np.prod(shape)).astype(np.uint8).tobytes())
        save(folder, [ds])

    add("faulty", codes, name, build)


_FLAT = ("NO_GEOMETRY", "SINGLE_SLICE", "UNSUPPORTED_TYPE", "BAD_GEOMETRY", "NOT_AN_IMAGE")
_alone("radiograph", "CR", "1", _FLAT, (20, 24))
_alone("digital_radiograph", "DX", "1.1", _FLAT, (20, 24))
_alone("mammogram", "MG", "1.2", _FLAT, (20, 24))
_alone("ultrasound_image", "US", "6.1", _FLAT, (20, 24))
_alone("ultrasound_clip", "US", "3.1", _FLAT, (6, 20, 24))
_alone("angiography_clip", "XA", "12.1", _FLAT, (6, 20, 24))
_alone("nuclear_medicine_without_positions", "NM", "20", _FLAT, (6, 20, 24))
_alone("capture_of_several_frames", "OT", "7.2", _FLAT, (6, 20, 24))


@faulty("NO_GEOMETRY", "UNSUPPORTED_TYPE", "NOT_AN_IMAGE")
def photographs_numbered_like_slices(folder: Path) -> None:
    """Eight captures with nothing but InstanceNumber and SliceLocation."""
    made = make_series()
    for ds in made.slices:
        del ds.ImagePositionPatient, ds.ImageOrientationPatient, ds.PixelSpacing
        ds.SOPClassUID = SECONDARY_CAPTURE
    save(folder, made.slices)


@faulty("NO_GEOMETRY", "SPLIT_SERIES", "SINGLE_SLICE")
def radiographs_of_several_exposures(folder: Path) -> None:
    """Three radiographs of one series: equal size, no positions."""
    for index in range(3):
        ds = header("CT", number=index + 1)
        ds.SOPClassUID, ds.Modality, ds.ImagerPixelSpacing = _STORAGE + "1.1", "DX", ["0.2", "0.2"]
        set_format(ds, Pixels(), (20, 24))
        set_bytes(ds, np.full((20, 24), 100 * index, "<u2").tobytes())
        save(folder, [ds], f"{index}.dcm")


@readable()
def series_beside_radiograph_and_text(folder: Path) -> Expected:
    """What a CD holds: a series, a radiograph, a text."""
    made = make_series(Grid(slices=6))
    save(folder / "DICOM", made.slices)
    ds = header("CT", "b", 50)
    ds.SOPClassUID, ds.Modality = _STORAGE + "1.1", "DX"
    set_format(ds, Pixels(), (30, 28))
    set_bytes(ds, np.zeros((30, 28), "<u2").tobytes())
    save(folder / "DICOM", [ds], "DX")
    (folder / "README.TXT").write_text("viewer")
    (folder / "DICOMDIR").write_bytes(_directory())
    return Expected([[made.truth]], aside("DX", *_FLAT) | aside(["README.TXT", "DICOMDIR"]))


@faulty("UNSUPPORTED_TYPE", "NO_GEOMETRY")
def colour_slices_beside_grey_ones(folder: Path) -> None:
    """Colour maps that repeat the positions of their series under its UID, without the grey ones: nothing to read."""
    made = make_series(BYTE_GRID, BYTE, Pixels(None, 0.0, allocated=8, stored=8))
    for ds in made.slices:
        grey = stored_of(ds)
        ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PlanarConfiguration = 3, "RGB", 0
        set_bytes(ds, np.stack([grey, grey // 2, grey // 3], axis=-1).tobytes())
    save(folder, made.slices)


@readable()
def colour_and_grey_share_a_series_uid(folder: Path) -> Expected:
    """Grey slices, and colour maps of the same positions: the grey ones are read, the colour ones are refused."""
    made = make_series()
    save(folder, made.slices)
    coloured = make_series(BYTE_GRID, BYTE, Pixels(None, 0.0, allocated=8, stored=8), first=20)
    for index, ds in enumerate(coloured.slices):
        grey = stored_of(ds)
        ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PlanarConfiguration = 3, "RGB", 0
        set_bytes(ds, np.stack([grey, grey, grey], axis=-1).tobytes())
        ds.ImagePositionPatient = made.slices[index].ImagePositionPatient
    save(folder, coloured.slices, "MAP{}.dcm")
    return Expected([[made.truth]], aside([f"MAP{k}.dcm" for k in range(8)], "UNSUPPORTED_TYPE", "NOT_AN_IMAGE"))
