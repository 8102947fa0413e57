"""Cases: which slices belong together: several series, time points, echoes, copies, strays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset

from tests.io.dicom.cases_geometry import CORONAL, OBLIQUE, SAGITTAL
from tests.io.dicom.phantom import PT, Field, Grid, Made, Pixels, Truth, make_series, numbers, raw, save, uid
from tests.io.dicom.registry import Expected, add, aside, either, faulty, readable

_SINGLE = ("SINGLE_SLICE", "SLICE_SIZE_DIFFERS", "MISSING_SLICE", "DUPLICATE_SLICE", "BAD_GEOMETRY")
_UNEVEN = ("UNEVEN_SLICES", "MISSING_SLICE")
_REPEATED = ("DUPLICATE_SLICE", "SPLIT_SERIES")
_STRAY = "STRAY.dcm"


def _mixed(folder: Path, *series: Made) -> list[Truth]:
    """Several sets of slices in one folder, in a fixed random order."""
    slices = [ds for made in series for ds in made.slices]
    order = np.random.default_rng(11).permutation(len(slices))
    save(folder, [slices[index] for index in order])
    return [made.truth for made in series]


def _mr(amount: float = 0.0, grid: Grid | None = None, first: int = 1, **tags: object) -> Made:
    made = make_series(grid, Field().plus(amount), modality="MR", first=first, **tags)  # type: ignore[arg-type]
    for ds in made.slices:
        ds.SOPInstanceUID = uid("mr", amount, first, ds.InstanceNumber)
    return made


@readable()
def two_series_in_one_folder(folder: Path) -> Sequence[Truth]:
    """Two series of the same planes, names mixed."""
    return _mixed(folder, make_series(), make_series(values=Field().plus(300), series="b"))


@readable()
def two_series_of_interleaved_planes(folder: Path) -> Sequence[Truth]:
    """The slices of one lie between those of the other."""
    return _mixed(folder, make_series(), make_series(Grid().moved((0, 0, 1.5)), Field().plus(300), series="b"))


@readable()
def three_orientations_as_three_series(folder: Path) -> Sequence[Truth]:
    """Axial, coronal and sagittal series."""
    return _mixed(folder, make_series(), make_series(CORONAL, series="b"), make_series(SAGITTAL, series="c"))


@readable()
def four_series_two_studies(folder: Path) -> Sequence[Truth]:
    """Two studies of two series each."""
    made = [make_series(values=Field().plus(100 * number), series=str(number)) for number in range(4)]
    for one in made[2:]:
        for ds in one.slices:
            ds.StudyInstanceUID = uid("study", 2)
    return _mixed(folder, *made)


@readable("SPLIT_SERIES")
def one_series_uid_two_orientations(folder: Path) -> Sequence[Truth]:
    """Axial and coronal slices share the SeriesInstanceUID."""
    return _mixed(folder, make_series(), make_series(CORONAL, first=9))


@readable("SPLIT_SERIES")
def one_series_uid_three_orientations(folder: Path) -> Sequence[Truth]:
    """Axial, sagittal and oblique slices share the SeriesInstanceUID."""
    return _mixed(folder, make_series(), make_series(SAGITTAL, first=9), make_series(OBLIQUE, first=17))


@readable("SPLIT_SERIES")
def one_series_uid_two_sizes(folder: Path) -> Sequence[Truth]:
    """Two complete sets of slices of different matrix size share the SeriesInstanceUID."""
    return _mixed(folder, make_series(), make_series(Grid(columns=16, rows=12), first=9))


@readable("SPLIT_SERIES")
def one_series_uid_transposed_sizes(folder: Path) -> Sequence[Truth]:
    """24 x 20 and 20 x 24 pixels share the SeriesInstanceUID."""
    return _mixed(folder, make_series(), make_series(Grid(columns=20, rows=24), first=9))


@readable()
def good_series_beside_one_with_a_gap(folder: Path) -> Expected:
    """Two series; one lacks a slice: it is refused, the other is read."""
    good, bad = make_series(), make_series(values=Field().plus(300), series="b")
    del bad.slices[3]
    save(folder, good.slices)
    save(folder, bad.slices, "GAP{}.dcm")
    return Expected([[good.truth]], aside([f"GAP{k}.dcm" for k in range(7)], "MISSING_SLICE", "UNEVEN_SLICES"))


@readable()
def good_series_beside_one_without_geometry(folder: Path) -> Expected:
    """Two series; one has no positions: it is refused, the other is read."""
    good, bad = make_series(), make_series(values=Field().plus(300), series="b")
    for ds in bad.slices:
        del ds.ImagePositionPatient
    save(folder, good.slices)
    save(folder, bad.slices, "NO{}.dcm")
    return Expected([[good.truth]], aside([f"NO{k}.dcm" for k in range(8)], "NO_GEOMETRY"))


@readable()
def good_series_beside_a_truncated_one(folder: Path) -> Expected:
    """Two series; the pixels of one are cut: it is refused, the other is read."""
    good, bad = make_series(), make_series(values=Field().plus(300), series="b")
    save(folder, good.slices)
    for path in save(folder, bad.slices, "CUT{}.dcm"):
        path.write_bytes(path.read_bytes()[:-100])
    return Expected([[good.truth]], aside([f"CUT{k}.dcm" for k in range(8)], "TRUNCATED_PIXEL_DATA", "TRUNCATED_FILE"))


@either("SPLIT_SERIES", "SLICE_SIZE_DIFFERS", "MISSING_SLICE")
def size_changes_halfway(folder: Path) -> Sequence[Truth]:
    """The first four slices are larger than the last four."""
    return _mixed(folder, make_series(Grid(slices=4)), make_series(Grid(columns=16, rows=12).part(4, 8), first=5))


@either("SPLIT_SERIES", "BAD_GEOMETRY", "MISSING_SLICE")
def spacing_changes_halfway(folder: Path) -> Sequence[Truth]:
    """The pixels of the first four slices are larger than those of the last four."""
    return _mixed(folder, make_series(Grid(slices=4)), make_series(Grid(spacing=(0.5, 0.5)).part(4, 8), first=5))


@either("SPLIT_SERIES", "BAD_GEOMETRY", "MISSING_SLICE")
def half_of_the_slices_turned(folder: Path) -> Sequence[Truth]:
    """The last four slices are turned by 180 degrees in their plane."""
    turned = Grid(row=(-1, 0, 0), column=(0, -1, 0)).part(4, 8)
    return _mixed(folder, make_series(Grid(slices=4)), make_series(turned, first=5))


@faulty("DUPLICATE_SLICE", "SINGLE_SLICE", "BAD_GEOMETRY", "MISSING_SLICE")
def positions_equal_locations_differ(folder: Path) -> None:
    """Every slice has the first one's position; only SliceLocation counts on."""
    made = make_series()
    for ds in made.slices:
        ds.ImagePositionPatient = made.slices[0].ImagePositionPatient
    save(folder, made.slices)


@readable("SPLIT_SERIES")
def one_series_uid_two_spacings(folder: Path) -> Sequence[Truth]:
    """Two complete sets of slices of different pixel spacing share the SeriesInstanceUID."""
    return _mixed(folder, make_series(), make_series(Grid(spacing=(0.5, 0.5)), first=9))


def _together(
    name: str,
    kind: str,
    codes: Sequence[str],
    tags: Sequence[dict[str, object]],
    change: Callable[[Dataset, int, int], None] | None = None,
    grids: Sequence[Grid] | None = None,
) -> None:
    """Several sets of slices that share positions and the SeriesInstanceUID, told apart by ``tags`` of each set."""

    def build(folder: Path) -> Sequence[Truth]:
        sets = []
        for number, some in enumerate(tags):
            grid = grids[number] if grids else None
            made = _mr(90.0 * number, grid, first=1 + 8 * number, **some)
            for index, ds in enumerate(made.slices):
                if change is not None:
                    change(ds, number, index)
            sets.append(made)
        return _mixed(folder, *sets)

    add(kind, codes, name, build)  # type: ignore[arg-type]


def _by(keyword: str, *values: object) -> list[dict[str, object]]:
    return [{keyword: value} for value in values]


for _name, _tags in {
    "temporal_position": _by("TemporalPositionIdentifier", 1, 2, 3),
    "acquisition_number": _by("AcquisitionNumber", 1, 2, 3),
    "acquisition_time": _by("AcquisitionTime", "101500", "101530", "101600.5"),
    "acquisition_date_time": _by("AcquisitionDateTime", "20200102101500", "20200102101530"),
    "trigger_time": _by("TriggerTime", "0", "120.5", "400"),
    "content_time": _by("ContentTime", "101500", "101530"),
    "trigger_and_acquisition_time": [{"TriggerTime": str(t), "AcquisitionTime": "101500"} for t in (0, 55, 110)],
    "acquisition_time_across_midnight": [
        {"AcquisitionDate": "20200102", "AcquisitionTime": "235950"},
        {"AcquisitionDate": "20200103", "AcquisitionTime": "000010"},
    ],
}.items():
    _together(f"time_points_by_{_name}", "readable", ("SPLIT_SERIES",), _tags)
_together("twelve_time_points", "readable", ("SPLIT_SERIES",), _by("TemporalPositionIdentifier", *range(1, 13)))
_together("echoes_by_echo_time", "readable", ("SPLIT_SERIES",), _by("EchoTime", "4.6", "9.2", "13.8"))
_together("echoes_by_echo_number", "readable", ("SPLIT_SERIES",), _by("EchoNumbers", 1, 2))
_together(
    "echoes_by_both",
    "readable",
    ("SPLIT_SERIES",),
    [{"EchoNumbers": 1, "EchoTime": "20"}, {"EchoNumbers": 2, "EchoTime": "80"}],
)
_together("flip_angles", "readable", ("SPLIT_SERIES",), _by("FlipAngle", "5", "15", "30"))
_together("inversion_times", "readable", ("SPLIT_SERIES",), _by("InversionTime", "100", "500", "2000"))
_together("repetition_times", "readable", ("SPLIT_SERIES",), _by("RepetitionTime", "500", "2000"))
_together("b_values", "readable", ("SPLIT_SERIES",), _by("DiffusionBValue", 0.0, 500.0, 1000.0))
_together(
    "diffusion_directions",
    "readable",
    ("SPLIT_SERIES",),
    [{"DiffusionBValue": 1000.0, "DiffusionGradientOrientation": list(map(float, d))} for d in np.eye(3)],
)
_together(
    "magnitude_and_phase",
    "readable",
    ("SPLIT_SERIES",),
    _by("ImageType", ["ORIGINAL", "PRIMARY", "M", "FFE"], ["ORIGINAL", "PRIMARY", "P", "FFE"]),
)
_together(
    "water_and_fat",
    "readable",
    ("SPLIT_SERIES",),
    _by("ImageType", ["DERIVED", "PRIMARY", "DIXON", "WATER"], ["DERIVED", "PRIMARY", "DIXON", "FAT"]),
)
_together(
    "real_and_imaginary",
    "readable",
    ("SPLIT_SERIES",),
    _by("ImageType", ["ORIGINAL", "PRIMARY", "R"], ["ORIGINAL", "PRIMARY", "I"]),
)
_together(
    "echoes_and_phases",
    "readable",
    ("SPLIT_SERIES",),
    [{"EchoTime": echo, "ImageType": ["ORIGINAL", "PRIMARY", part]} for echo in ("4.6", "9.2") for part in ("M", "P")],
)
_together("kernels", "readable", ("SPLIT_SERIES",), _by("ConvolutionKernel", "B30f", "B70f"))
_together("tube_voltages", "readable", ("SPLIT_SERIES",), _by("KVP", "80", "140"))
_together("series_numbers", "either", _REPEATED, _by("SeriesNumber", 4, 5))
_together("series_descriptions", "either", _REPEATED, _by("SeriesDescription", "before", "after"))
_together("contrast_agents", "either", _REPEATED, _by("ContrastBolusAgent", "", "gadolinium"))
_together("studies_share_a_series_uid", "either", _REPEATED, _by("StudyInstanceUID", uid("s1"), uid("s2")))
_together("patients_share_a_series_uid", "either", _REPEATED, _by("PatientID", "P1", "P2"))
_together("frames_of_reference_share_a_series_uid", "either", _REPEATED, _by("FrameOfReferenceUID", uid(1), uid(2)))
_together("copies_told_apart_by_nothing", "either", _REPEATED, [{}, {}])
_together(
    "time_points_by_slice_times",
    "either",
    _REPEATED,
    [{}, {}],
    lambda ds, number, index: setattr(ds, "AcquisitionTime", f"1015{10 + 20 * number + index:02d}"),
)
_together(
    "time_points_by_interleaved_slice_times",
    "either",
    _REPEATED,
    [{}, {}],
    lambda ds, number, index: setattr(ds, "AcquisitionTime", f"1015{10 + number + 5 * index:02d}"),
)
_together(
    "time_points_numbered_within_the_slice",
    "readable",
    ("SPLIT_SERIES",),
    _by("TemporalPositionIdentifier", 1, 2),
    lambda ds, number, index: setattr(ds, "InstanceNumber", 2 * index + number + 1),
)
_together(
    "time_points_with_slice_times_and_a_number",
    "readable",
    ("SPLIT_SERIES",),
    _by("AcquisitionNumber", 1, 2),
    lambda ds, number, index: setattr(ds, "AcquisitionTime", f"1015{10 + 20 * number + 2 * index:02d}"),
)
_together(
    "time_points_of_other_rescale",
    "readable",
    ("SPLIT_SERIES",),
    _by("TemporalPositionIdentifier", 1, 2),
    lambda ds, number, index: ds.update({"RescaleType": "US"}),
)


def _private(name: str, creator: str, group: int, offset: int, vr: str, values: Sequence[object]) -> None:
    def change(ds: Dataset, number: int, index: int) -> None:
        ds.private_block(group, creator, create=True).add_new(offset, vr, values[number])

    _together(name, "either", _REPEATED, [{} for _ in values], change)


_together(
    "pet_frames",
    "readable",
    ("SPLIT_SERIES",),
    [
        {"FrameReferenceTime": t, "ActualFrameDuration": "5000", "AcquisitionTime": a}
        for t, a in (("2500", "101500"), ("7500", "101505"))
    ],
)
_together("pet_frames_by_reference_time", "readable", ("SPLIT_SERIES",), _by("FrameReferenceTime", "2500", "7500"))
_together("cardiac_phases", "either", _REPEATED, _by("NominalPercentageOfCardiacPhase", 40.0, 70.0))
_together(
    "time_points_tilted",
    "readable",
    ("SPLIT_SERIES",),
    _by("TemporalPositionIdentifier", 1, 2),
    grids=[replace(Grid(), step=(0.0, 0.8, 3.0))] * 2,
)
_together(
    "time_points_descending",
    "readable",
    ("SPLIT_SERIES",),
    _by("AcquisitionNumber", 2, 1),
    grids=[Grid(step=(0, 0, -3))] * 2,
)
_together(
    "diffusion_b0_and_directions",
    "readable",
    ("SPLIT_SERIES",),
    [{"DiffusionBValue": 0.0}]
    + [{"DiffusionBValue": 1000.0, "DiffusionGradientOrientation": list(map(float, d))} for d in np.eye(3)],
)
_private("b_values_private_siemens", "SIEMENS MR HEADER", 0x19, 0x0C, "IS", ["0", "1000"])
_private("b_values_private_ge", "GEMS_PARM_01", 0x43, 0x39, "IS", [["0", "8", "0", "0"], ["1000", "8", "0", "0"]])
_private("b_values_private_philips", "Philips Imaging DD 001", 0x2001, 0x03, "FL", [0.0, 1000.0])

_HALF = (Grid(), Grid().moved((0, 0, 1.5)))
_BETWEEN = (Grid(), Grid().moved((0, 0, 1.0)))
_together("echoes_half_a_step_apart", "readable", ("SPLIT_SERIES",), _by("EchoTime", "20", "80"), grids=_HALF)
_together("echoes_a_third_of_a_step_apart", "readable", ("SPLIT_SERIES",), _by("EchoTime", "20", "80"), grids=_BETWEEN)
_together("b_values_a_third_of_a_step_apart", "either", _UNEVEN, _by("DiffusionBValue", 0.0, 9.0), grids=_BETWEEN)
_together(
    "acquisitions_a_third_of_a_step_apart",
    "either",
    ("UNEVEN_SLICES", "MISSING_SLICE"),
    _by("AcquisitionNumber", 1, 2),
    grids=_BETWEEN,
)
_together(
    "acquisitions_that_overlap_by_two_slices",
    "either",
    _REPEATED,
    _by("AcquisitionNumber", 1, 2),
    grids=(Grid(), Grid().moved((0, 0, 18.0))),
)
_together(
    "acquisitions_a_hundred_millimetres_apart",
    "either",
    ("UNEVEN_SLICES", "MISSING_SLICE"),
    _by("AcquisitionNumber", 1, 2),
    grids=(Grid(), Grid().moved((0, 0, 121.0))),
)


def _one_volume(
    name: str, tags: Callable[[int], dict[str, object]], modality: str = "MR", kind: str = "readable"
) -> None:
    """Tags that differ from slice to slice in a series that is one volume all the same."""

    def build(folder: Path) -> Truth:
        made = make_series(modality=modality)
        for index, ds in enumerate(made.slices):
            for keyword, value in tags(index).items():
                setattr(ds, keyword, value)
        save(folder, made.slices)
        return made.truth

    codes = ("SPLIT_SERIES", "BAD_GEOMETRY", "UNEVEN_SLICES", "MISSING_SLICE", "DUPLICATE_SLICE", "BAD_HEADER")
    codes += ("REPEATED_UID", "FRAME_OF_REFERENCE_DIFFERS")
    add(kind, () if kind == "readable" else codes, name, build)  # type: ignore[arg-type]


_one_volume("one_volume_acquisition_times_differ", lambda k: {"AcquisitionTime": f"1015{10 + k:02d}"})
_one_volume("one_volume_interleaved_times", lambda k: {"AcquisitionTime": f"1015{10 + k // 2 + 20 * (k % 2):02d}"})
_one_volume("one_volume_two_interleaved_packages", lambda k: {"AcquisitionNumber": 1 + k % 2})
_one_volume("one_volume_three_packages", lambda k: {"AcquisitionNumber": 1 + k // 3})
_one_volume("one_volume_acquisition_per_slice", lambda k: {"AcquisitionNumber": k + 1}, "CT")
_one_volume("one_volume_trigger_times_differ", lambda k: {"TriggerTime": str(17 * k)})
_one_volume("one_volume_echo_time_noise", lambda k: {"EchoTime": f"{4.6 + 1e-5 * k:.5f}"})
_one_volume("one_volume_windows_differ", lambda k: {"WindowCenter": str(40 + k), "WindowWidth": str(400 + k)})
_one_volume("one_volume_image_types_differ", lambda k: {"ImageType": ["ORIGINAL", "PRIMARY", "AXIAL", f"V{k}"]})
_one_volume("one_volume_series_numbers_differ", lambda k: {"SeriesNumber": k + 1})
_one_volume("one_volume_descriptions_differ", lambda k: {"SeriesDescription": f"part {k}"})
_one_volume(
    "one_volume_dates_differ", lambda k: {"ContentTime": f"1016{k:02d}", "InstanceCreationTime": f"1017{k:02d}"}
)
_one_volume("one_volume_exposures_differ", lambda k: {"Exposure": str(100 + k), "XRayTubeCurrent": 90 + k}, "CT")
_one_volume("one_volume_temporal_position_constant", lambda k: {"TemporalPositionIdentifier": 1})
_one_volume("one_volume_table_heights_differ", lambda k: {"TableHeight": str(100 + 0.1 * k)}, "CT")
_one_volume("one_instance_uid_for_all", lambda k: {"SOPInstanceUID": uid("same")}, kind="faulty")
_one_volume("two_frames_of_reference", lambda k: {"FrameOfReferenceUID": uid("frame", k // 4)}, kind="faulty")
_one_volume("image_type_missing", lambda k: {"ImageType": None})
_one_volume("modality_missing", lambda k: {"Modality": ""})
_one_volume("modality_of_its_own", lambda k: {"Modality": "XYZ"})
_one_volume("instance_uid_missing", lambda k: {"SOPInstanceUID": ""}, kind="either")
_one_volume("trigger_times_in_acquisition_order", lambda k: {"TriggerTime": str(300 * (k % 4) + 5 * k)})
_one_volume(
    "one_volume_heart_beats_differ", lambda k: {"AcquisitionNumber": k // 2, "AcquisitionTime": f"1015{k // 2:02d}"}
)
_one_volume("no_frame_of_reference", lambda k: {"FrameOfReferenceUID": ""})
_one_volume("no_series_uid", lambda k: {"SeriesInstanceUID": ""}, kind="either")
_one_volume("no_study_uid", lambda k: {"StudyInstanceUID": ""}, kind="either")
_one_volume("no_patient", lambda k: {"PatientID": "", "PatientName": ""})


@readable()
def series_uid_padded_in_two_ways(folder: Path) -> Truth:
    """Half of the slices end their SeriesInstanceUID with a space instead of NUL."""
    made = make_series(series="padded")
    text = uid("series", "odd")
    text += "1" * (1 - len(text) % 2)
    for index, ds in enumerate(made.slices):
        raw(ds, "SeriesInstanceUID", "UI", text.encode() + (b" " if index % 2 else b"\0"))
    save(folder, made.slices)
    return made.truth


@faulty("SPLIT_SERIES", "MISSING_SLICE", "DUPLICATE_SLICE", "UNEVEN_SLICES")
def patients_alternate_in_one_series(folder: Path) -> Sequence[Truth]:
    """Odd slices of one patient, even ones of another, under one SeriesInstanceUID."""
    halves = [
        make_series(Grid().part(start, 8, 2), Field().plus(200 * start), first=1 + start * 10) for start in (0, 1)
    ]
    for number, made in enumerate(halves):
        for ds in made.slices:
            ds.PatientID, ds.PatientName = f"P{number}", f"Phantom^{number}"
    return _mixed(folder, *halves)


@either("SPLIT_SERIES", "DUPLICATE_SLICE", "UNSUPPORTED_TYPE")
def ct_and_pt_share_a_series_uid(folder: Path) -> Sequence[Truth]:
    """A PET/CT whose parts were given one SeriesInstanceUID."""
    ct, pt = make_series(), make_series(values=Field().plus(77), first=9)
    for ds in pt.slices:
        ds.Modality, ds.SOPClassUID = "PT", PT
    return _mixed(folder, ct, pt)


def _incomplete(name: str, gone: int, codes: Sequence[str]) -> None:
    """Two time points; one slice of the second is missing: the first may be read, the second only if at an end."""

    def build(folder: Path) -> Expected:
        first, second = _mr(TemporalPositionIdentifier=1), _mr(90, first=9, TemporalPositionIdentifier=2)
        del second.slices[gone]
        _mixed(folder, first, second)
        alternatives: list[list[Truth]] = [[first.truth]]
        if gone == 7:
            alternatives.append([first.truth, Grid().part(0, 7).truth(second.field)])
        return Expected(alternatives)

    add("faulty", codes, name, build)


_incomplete("time_point_lacks_a_middle_slice", 4, ("MISSING_SLICE", "UNEVEN_SLICES", "DUPLICATE_SLICE"))
_incomplete("time_point_lacks_the_last_slice", 7, ("MISSING_SLICE", "UNEVEN_SLICES", "DUPLICATE_SLICE", "SPLIT_SERIES"))


@faulty("DUPLICATE_SLICE", "SINGLE_SLICE", "MISSING_SLICE")
def cine_of_one_slice(folder: Path) -> None:
    """One position at eight times is no volume."""
    save(folder, _cine(8))


@faulty("SINGLE_SLICE", "DUPLICATE_SLICE", "MISSING_SLICE")
def cine_of_one_slice_beside_another_orientation(folder: Path) -> None:
    """Two views of a beating heart: two positions, eight times each."""
    save(folder, _cine(8) + _cine(8, CORONAL))


def _cine(count: int, grid: Grid | None = None) -> list[Dataset]:
    grid = replace(grid or Grid(), slices=1)
    made = [_mr(20.0 * k, grid, first=k + 1, TriggerTime=str(40 * k)) for k in range(count)]
    return [one.slices[0] for one in made]


def _copies(name: str, indices: Sequence[int], change: Callable[[Dataset], None] | None = None) -> None:
    """Some slices twice, bit by bit (but for what ``change`` does): the copies are left out."""

    def build(folder: Path) -> Truth:
        made = make_series()
        save(folder, made.slices)
        copies = [made.slices[index] for index in indices]
        for ds in copies:
            if change is not None:
                change(ds)
        save(folder, copies, "copy of {:02d}.dcm")
        return made.truth

    add("readable", ("DUPLICATES_DROPPED",), name, build)


_copies("one_slice_copied", [3])
_copies("all_slices_copied", range(8))
_copies("first_slice_copied_with_another_uid", [0], lambda ds: setattr(ds, "SOPInstanceUID", uid("copy")))
_copies("last_slice_copied_with_another_number", [7], lambda ds: setattr(ds, "InstanceNumber", 99))


@readable("DUPLICATES_DROPPED")
def series_copied_into_a_subfolder(folder: Path) -> Truth:
    """The whole series once more, one folder below, under the same names."""
    made = make_series()
    save(folder, made.slices)
    save(folder / "backup", made.slices)
    return made.truth


@readable("DUPLICATES_DROPPED")
def copy_in_another_transfer_syntax(folder: Path) -> Truth:
    """One slice exists as explicit and as implicit VR."""
    made = make_series()
    save(folder, made.slices)
    save(folder, made.slices[2:3], "implicit{}.dcm", "1.2.840.10008.1.2")
    return made.truth


def _doubled(name: str, change: Callable[[Dataset], None], codes: Sequence[str] = ("DUPLICATE_SLICE",)) -> None:
    """One slice once more, with a difference that nobody can settle."""

    def build(folder: Path) -> None:
        made = make_series()
        save(folder, made.slices)
        change(made.slices[3])
        save(folder, made.slices[3:4], "other{}.dcm")

    add("faulty", codes, name, build)


def _other_pixels(ds: Dataset) -> None:
    ds.PixelData = bytes(reversed(ds.PixelData))


def _other_pixels_and_uid(ds: Dataset) -> None:
    _other_pixels(ds)
    ds.SOPInstanceUID, ds.InstanceNumber = uid("other"), 20


def _one_other_pixel(ds: Dataset) -> None:
    ds.PixelData = ds.PixelData[:200] + bytes([ds.PixelData[200] ^ 1]) + ds.PixelData[201:]
    ds.SOPInstanceUID = uid("other")


def _nudged(ds: Dataset) -> None:
    _other_pixels_and_uid(ds)
    ds.ImagePositionPatient = numbers(Grid().position(3) + np.array([0, 0, 2e-4]))


_doubled("same_position_other_pixels", _other_pixels_and_uid)
_doubled("same_uid_other_pixels", _other_pixels)
_doubled("same_position_one_other_pixel", _one_other_pixel)
_doubled("same_pixels_other_slope", lambda ds: ds.update({"RescaleSlope": "2", "SOPInstanceUID": uid("other")}))
_doubled("same_pixels_other_intercept", lambda ds: ds.update({"RescaleIntercept": "0"}))
_doubled("position_repeated_0_2_micrometres_off", _nudged, ("DUPLICATE_SLICE", "UNEVEN_SLICES", "MISSING_SLICE"))
_doubled(
    "same_pixels_other_position",
    lambda ds: ds.update({"ImagePositionPatient": numbers(Grid().position(3.5)), "SOPInstanceUID": uid("other")}),
    ("UNEVEN_SLICES", "MISSING_SLICE"),
)


def _stray(name: str, grid: Grid, series: str = "a", codes: Sequence[str] = _SINGLE, **tags: object) -> None:
    """One slice more, which belongs to no volume: it is set aside by name, the series is read."""

    def build(folder: Path) -> Expected:
        made = make_series()
        save(folder, made.slices)
        stray = make_series(grid, Field().plus(33), series=series, first=40, **tags).slices[:1]  # type: ignore[arg-type]
        save(folder, stray, _STRAY)
        return Expected([[made.truth]], aside(_STRAY, *codes))

    add("readable", (), name, build)


_stray("stray_slice_of_another_series", Grid(), "b")
_stray("stray_slice_of_another_orientation", CORONAL)
_stray("stray_slice_of_another_size", Grid(columns=16, rows=12).moved((0, 0, 24)))
_stray("stray_slice_of_another_spacing", Grid(spacing=(0.5, 0.5)).moved((0, 0, 24)))
_stray("stray_oblique_slice", OBLIQUE)
_LOCALIZER = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
_stray("localizer_in_the_series", CORONAL, codes=("LOCALIZER",), ImageType=_LOCALIZER)
_stray("localizer_of_the_same_planes", Grid().moved((0, 0, 1)), codes=("LOCALIZER",), ImageType=_LOCALIZER)
_stray("localizer_of_its_own_series", SAGITTAL, "b", codes=("LOCALIZER",), ImageType=_LOCALIZER)
_stray("localizer_with_more_words", SAGITTAL, "b", codes=("LOCALIZER",), ImageType=[*_LOCALIZER, "CT_SOM5 TOP"])


@readable()
def three_plane_localizer(folder: Path) -> Expected:
    """A localizer of one slice in each of three orientations, beside a series."""
    made = make_series(modality="MR")
    save(folder, made.slices)
    scouts = [
        _mr(5, replace(g, slices=1), series="b", ImageType=_LOCALIZER).slices[0] for g in (Grid(), CORONAL, SAGITTAL)
    ]
    for number, ds in enumerate(scouts):
        ds.SOPInstanceUID = uid("scout", number)
    save(folder, scouts, "SCOUT{}.dcm")
    return Expected([[made.truth]], aside([f"SCOUT{k}.dcm" for k in range(3)], "LOCALIZER"))


@faulty("SINGLE_SLICE")
def one_slice_alone(folder: Path) -> None:
    """A folder with one slice."""
    save(folder, make_series().slices[:1])


@faulty("SINGLE_SLICE")
def three_slices_of_three_series(folder: Path) -> None:
    """Three slices, each of its own series."""
    save(folder, [make_series(series=name).slices[0] for name in "abc"])


def _odd_one_out(name: str, grid: Grid, codes: Sequence[str]) -> None:
    """One slice inside the series is of another kind: without it there is a gap, with it there is no volume."""

    def build(folder: Path) -> None:
        made = make_series()
        place = grid.moved(np.array(made.grid.step) * 4)
        made.slices[4] = make_series(replace(place, slices=1), first=5).slices[0]
        save(folder, made.slices)

    add("faulty", codes, name, build)


_INSIDE = ("SLICE_SIZE_DIFFERS", "MISSING_SLICE", "UNEVEN_SLICES", "SINGLE_SLICE")
_odd_one_out("slice_inside_of_another_size", Grid(columns=16, rows=12), _INSIDE)
_odd_one_out("slice_inside_transposed", Grid(columns=20, rows=24), _INSIDE)
_odd_one_out("slice_inside_with_a_row_more", Grid(rows=21), _INSIDE)
_odd_one_out("slice_inside_of_another_spacing", Grid(spacing=(0.5, 0.5)), _INSIDE)
_odd_one_out("slice_inside_of_another_orientation", replace(CORONAL, origin=Grid().origin), _INSIDE)


def _per_slice(name: str, pixels: Callable[[int], Pixels], kind: str = "readable", codes: Sequence[str] = ()) -> None:
    """The pixel format changes from slice to slice; the values do not."""

    def build(folder: Path) -> Truth:
        made = Made(Grid(), Field())
        for index in range(8):
            made.slices.append(
                make_series(Grid().part(index, index + 1), pixels=pixels(index), first=index + 1).slices[0]
            )
        for ds in made.slices:
            ds.SliceThickness = "3"
        save(folder, made.slices)
        return made.truth

    add(kind, codes, name, build)  # type: ignore[arg-type]


_per_slice("signed_and_unsigned_slices", lambda k: Pixels(signed=bool(k % 2), stored=16))
_per_slice("bits_stored_differ", lambda k: Pixels(stored=12 + k % 4))
_per_slice("bits_allocated_differ", lambda k: Pixels(allocated=16 + 16 * (k % 2), stored=16))
_per_slice(
    "photometric_interpretation_differs",
    lambda k: Pixels(photometric=f"MONOCHROME{1 + k % 2}"),
    "either",
    ("MONOCHROME1", "UNSUPPORTED_TYPE", "SPLIT_SERIES"),
)
_per_slice("slope_differs", lambda k: Pixels(slope=1 + 0.1 * k), codes=("RESCALE_VARIES",))
_per_slice("intercept_differs", lambda k: Pixels(intercept=-1024.0 - 10 * k), codes=("RESCALE_VARIES",))
_per_slice(
    "slope_and_intercept_differ", lambda k: Pixels(0.5 + 0.1 * k, -5.0 * k, stored=16), codes=("RESCALE_VARIES",)
)
_per_slice("slope_missing_in_one_slice", lambda k: Pixels(None if k == 4 else 1.0, 0.0, stored=16))
_per_slice("last_slice_of_another_slope", lambda k: Pixels(1.5 if k == 7 else 1.0), codes=("RESCALE_VARIES",))
