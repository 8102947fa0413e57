"""Cases: order, orientation, spacing, tilt, gaps, and geometry that is missing or impossible."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset

from tests.io.dicom.phantom import (
    Field,
    Grid,
    Made,
    Pixels,
    Truth,
    make_series,
    numbers,
    raw,
    rotation,
    save,
    set_plane,
)
from tests.io.dicom.registry import Expected, add, either, faulty, readable

CORONAL = Grid(row=(1, 0, 0), column=(0, 0, -1), step=(0, 3, 0))
SAGITTAL = Grid(row=(0, 1, 0), column=(0, 0, -1), step=(-3, 0, 0))
OBLIQUE = Grid().turned(rotation(0, 23.0))
DOUBLE_OBLIQUE = Grid().turned(rotation(2, 31.0) @ rotation(0, 17.0) @ rotation(1, -12.0))
_SHUFFLED = (5, 2, 7, 0, 3, 6, 1, 4)
_BAD = ("BAD_GEOMETRY", "NO_GEOMETRY")
_GAP = ("MISSING_SLICE", "UNEVEN_SLICES")


def _plain(name: str, grid: Grid, text: str = "", **tags: object) -> None:
    """A readable series on a grid, files and instance numbers shuffled."""

    def build(folder: Path) -> Truth:
        made = make_series(grid, **tags)  # type: ignore[arg-type]
        save(folder, [made.slices[index] for index in np.random.default_rng(3).permutation(grid.slices)])
        return made.truth

    add("readable", (), name, build)


_plain("axial", Grid())
_plain("axial_head_first_descending", Grid(step=(0, 0, -3)))
_plain("coronal", CORONAL)
_plain("coronal_other_way", replace(CORONAL, step=(0, -3, 0)))
_plain("sagittal", SAGITTAL)
_plain("sagittal_other_way", replace(SAGITTAL, step=(3, 0, 0)))
_plain("oblique", OBLIQUE)
_plain("double_oblique", DOUBLE_OBLIQUE)
_plain("double_oblique_descending", replace(DOUBLE_OBLIQUE, step=tuple(-x for x in DOUBLE_OBLIQUE.step)))
_plain("oblique_45_degrees", Grid().turned(rotation(0, 45.0) @ rotation(1, 45.0)))
_plain("prone", Grid(row=(-1, 0, 0), column=(0, -1, 0)), PatientPosition="HFP")
_plain("feet_first", Grid(row=(-1, 0, 0), column=(0, 1, 0), step=(0, 0, -3)), PatientPosition="FFS")
_plain("decubitus", Grid(row=(0, -1, 0), column=(1, 0, 0)), PatientPosition="HFDL")
_plain("patient_position_missing", Grid(), PatientPosition="")
_plain("pixels_tall", Grid(spacing=(0.5, 2.0)))
_plain("pixels_wide", Grid(spacing=(2.0, 0.5)))
_plain("thin_slices", Grid(step=(0, 0, 0.3)), values=Field(gradient=(6.0, 4.0, 40.0)))
_plain("thick_slices", Grid(step=(0, 0, 12.5)))
_plain("two_slices", Grid(slices=2))
_plain("forty_slices", Grid(slices=40, step=(0, 0, 1)))
_plain("one_row", Grid(rows=1))
_plain("square", Grid(columns=20, rows=20))
_plain("cube", Grid(columns=20, rows=20, slices=20, step=(0, 0, 1), spacing=(1, 1)))
_plain("far_away", Grid(origin=(-209.25, 183.5, -1543.25)), pixels=Pixels(intercept=-20000, stored=16))
_plain("across_zero", Grid(origin=(-9, -12, -10.5)))
_plain("third_of_a_millimetre", Grid(step=(0, 0, 1 / 3)), values=Field(gradient=(6.0, 4.0, 40.0)))


@readable()
def names_reversed(folder: Path) -> Truth:
    """The file names count down."""
    made = make_series()
    save(folder, made.slices[::-1])
    return made.truth


def _numbered(name: str, instance: Sequence[object] | None, files: Sequence[int] = range(8)) -> None:
    """A series whose InstanceNumber says something else than the positions."""

    def build(folder: Path) -> Truth:
        made = make_series(modality="MR")
        for index, ds in enumerate(made.slices):
            if instance is None:
                del ds.InstanceNumber
            else:
                raw(ds, "InstanceNumber", "IS", str(instance[index]).encode())
        save(folder, [made.slices[index] for index in files])
        return made.truth

    add("readable", (), name, build)


_numbered("instance_numbers_reversed", range(8, 0, -1))
_numbered("instance_numbers_shuffled", _SHUFFLED)
_numbered("instance_numbers_and_names_shuffled", _SHUFFLED, _SHUFFLED[::-1])
_numbered("instance_numbers_equal", [1] * 8)
_numbered("instance_numbers_missing", None, _SHUFFLED)
_numbered("instance_numbers_missing_in_order", None)
_numbered("instance_numbers_empty", [""] * 8)
_numbered("instance_numbers_with_gaps", [1, 2, 3, 14, 15, 16, 27, 28])
_numbered("instance_numbers_are_text", list("abcdefgh"))
_numbered("instance_numbers_negative", range(-3, 5))
_numbered("instance_numbers_decimal", [f"{n}.0" for n in range(1, 9)])
_numbered("instance_numbers_beyond_32_bits", [2**40 - n for n in range(8)])


def _tagged(
    name: str, kind: str, codes: Sequence[str], change: Callable[[Dataset, int], None], **made_of: object
) -> None:
    """A plain series with a change to each slice (given its index)."""

    def build(folder: Path) -> Truth:
        made = make_series(**made_of)  # type: ignore[arg-type]
        for index, ds in enumerate(made.slices):
            change(ds, index)
        save(folder, made.slices)
        return made.truth

    add(kind, codes, name, build)  # type: ignore[arg-type]


def _set(keyword: str, values: Callable[[int], object]) -> Callable[[Dataset, int], None]:
    return lambda ds, index: setattr(ds, keyword, values(index))


def _drop(*keywords: str) -> Callable[[Dataset, int], None]:
    def change(ds: Dataset, index: int) -> None:
        for keyword in keywords:
            delattr(ds, keyword)

    return change


_DISAGREES = ("SLICE_LOCATION_DISAGREES",)
_tagged("slice_location_reversed", "readable", (), _set("SliceLocation", lambda k: str(100 - 3 * k)))
_tagged("slice_location_shuffled", "readable", _DISAGREES, _set("SliceLocation", lambda k: str(3 * _SHUFFLED[k])))
_tagged("slice_location_constant", "readable", _DISAGREES, _set("SliceLocation", lambda k: "0"))
_tagged("slice_location_other_spacing", "readable", _DISAGREES, _set("SliceLocation", lambda k: str(30 + 5 * k)))
_tagged("slice_location_missing", "readable", (), _drop("SliceLocation"))
_tagged("slice_location_other_zero", "readable", (), _set("SliceLocation", lambda k: str(500.0 + 3 * k)))
_tagged("slice_location_is_text", "readable", (), lambda ds, k: raw(ds, "SliceLocation", "DS", b"unknown"))
_tagged("slice_thickness_wrong", "readable", ("SPACING_DISAGREES",), _set("SliceThickness", lambda k: "7.5"))
_tagged("slice_thickness_overlapping", "readable", (), _set("SliceThickness", lambda k: "6"))
_tagged("slice_thickness_with_gap", "readable", (), _set("SliceThickness", lambda k: "2.5"))
_tagged("slice_thickness_missing", "readable", (), _drop("SliceThickness"))
_tagged("slice_thickness_zero", "readable", (), _set("SliceThickness", lambda k: "0"))
_tagged("slice_thickness_varies", "readable", (), _set("SliceThickness", lambda k: str(3 + k % 2)))
_tagged("spacing_between_slices_wrong", "readable", ("SPACING_DISAGREES",), _set("SpacingBetweenSlices", lambda k: "5"))
_tagged("spacing_between_slices_negative", "readable", (), _set("SpacingBetweenSlices", lambda k: "-3"))
_tagged("spacing_between_slices_nan", "readable", (), lambda ds, k: raw(ds, "SpacingBetweenSlices", "DS", b"nan"))
_tagged("tilt_tag_without_tilt", "readable", (), _set("GantryDetectorTilt", lambda k: "15"))
_tagged("imager_pixel_spacing_differs", "readable", (), _set("ImagerPixelSpacing", lambda k: ["0.2", "0.2"]))
_tagged("pixel_aspect_ratio_differs", "readable", (), _set("PixelAspectRatio", lambda k: ["2", "1"]))


def _tilted(grid: Grid, degrees: float) -> Grid:
    """Slices that keep their plane while the step leans along the column direction."""
    lean = np.tan(np.deg2rad(degrees)) * float(np.linalg.norm(grid.step))
    step = np.asarray(grid.step) + lean * np.asarray(grid.column)
    return replace(grid, step=(float(step[0]), float(step[1]), float(step[2])))


def _tilt_case(name: str, grid: Grid, tag: str | None) -> None:
    def build(folder: Path) -> Truth:
        made = make_series(grid)
        for ds in made.slices:
            ds.SliceThickness = "3"
            if tag is not None:
                ds.GantryDetectorTilt = tag
        save(folder, [made.slices[index] for index in _SHUFFLED])
        return made.truth

    add("readable", ("GANTRY_TILT",), name, build)


_tilt_case("gantry_tilt_plus_15", _tilted(Grid(), 15), "15")
_tilt_case("gantry_tilt_minus_15", _tilted(Grid(), -15), "-15")
_tilt_case("gantry_tilt_of_the_wrong_sign_in_the_tag", _tilted(Grid(), 12), "-12")
_tilt_case("gantry_tilt_without_tag", _tilted(Grid(), 20), None)
_tilt_case("gantry_tilt_plus_30", _tilted(Grid(), 30), "30")
_tilt_case("gantry_tilt_oblique_plane", _tilted(OBLIQUE, 18), "18")
_tilt_case("gantry_tilt_descending", _tilted(Grid(step=(0, 0, -3)), 10), "10")
_tilt_case("tilt_along_the_rows", replace(Grid(), step=(0.9, 0, 3)), None)
_tilt_case("tilt_of_two_degrees", _tilted(Grid(), 2), "2")
_tilt_case("tilt_in_plane_turned_gantry", Grid(column=(0.0, 0.9659258263, 0.2588190451), step=(0, 0, 3)), "-15")


def _moved_slices(
    name: str, kind: str, codes: Sequence[str], offset: Callable[[int], Sequence[float]], grid: Grid | None = None
) -> None:
    """Slices moved off the even grid; the pixels follow the position that the header says."""
    grid = grid or Grid()

    def build(folder: Path) -> Truth | None:
        made = Made(grid, Field())
        for index in range(grid.slices):
            position = grid.position(index) + np.asarray(offset(index))
            one = replace(grid, origin=(float(position[0]), float(position[1]), float(position[2])), slices=1)
            made.slices.append(make_series(one, first=index + 1).slices[0])
            made.slices[-1].SliceThickness = "3"
        save(folder, made.slices)
        return made.truth if kind != "faulty" else None

    add(kind, codes, name, build)  # type: ignore[arg-type]


_JITTER = np.random.default_rng(5).uniform(-1, 1, 8)
_moved_slices("jitter_of_5_micrometres", "readable", (), lambda k: (0, 0, 0.005 * _JITTER[k]))
_moved_slices("jitter_in_plane_of_5_micrometres", "readable", (), lambda k: (0.005 * _JITTER[k], 0, 0))
_moved_slices(
    "positions_rounded_to_a_hundredth",
    "readable",
    (),
    lambda k: (0, 0, round(k / 3, 2) - k / 3),
    Grid(step=(0, 0, 1 / 3)),
)
_moved_slices("jitter_of_a_millimetre", "faulty", _GAP, lambda k: (0, 0, _JITTER[k]))
_moved_slices("one_slice_half_a_millimetre_off", "faulty", _GAP, lambda k: (0, 0, 0.5 * (k == 4)))
_moved_slices("last_slice_half_a_millimetre_off", "faulty", _GAP, lambda k: (0, 0, 0.5 * (k == 7)))
_moved_slices("first_slice_a_millimetre_off", "faulty", _GAP, lambda k: (0, 0, -1.0 * (k == 0)))
_moved_slices("spacing_grows", "faulty", _GAP, lambda k: (0, 0, 0.2 * k * k))
_moved_slices("two_spacings", "faulty", (*_GAP, "SPLIT_SERIES"), lambda k: (0, 0, 2.0 * max(0, k - 4)))
_moved_slices("one_slice_moved_in_plane", "faulty", (*_GAP, *_BAD), lambda k: (2.0 * (k == 4), 0, 0))
_moved_slices("one_slice_moved_in_plane_down", "faulty", (*_GAP, *_BAD), lambda k: (0, 1.5 * (k == 3), 0))
_moved_slices("last_slice_moved_in_plane", "faulty", (*_GAP, *_BAD), lambda k: (0, 3.0 * (k == 7), 0))
_moved_slices("stack_bent_in_plane", "faulty", (*_GAP, *_BAD), lambda k: (0.1 * k * k, 0, 0))
_moved_slices("uneven_oblique", "faulty", _GAP, lambda k: 0.8 * (k == 2) * OBLIQUE.normal, OBLIQUE)
_moved_slices(
    "all_positions_equal", "faulty", ("DUPLICATE_SLICE", "SINGLE_SLICE", *_BAD), lambda k: (0, 0, 30.0 - 3.0 * k)
)


def _without(name: str, missing: Sequence[int], grid: Grid | None = None, edge: bool = False) -> None:
    grid = grid or Grid()

    def build(folder: Path) -> Truth | None:
        made = make_series(grid)
        kept = [index for index in range(grid.slices) if index not in missing]
        save(folder, [made.slices[index] for index in kept])
        return grid.part(kept[0], kept[-1] + 1).truth() if edge else None

    add("readable" if edge else "faulty", () if edge else _GAP, name, build)


_without("missing_first_slice", [0], edge=True)
_without("missing_last_slice", [7], edge=True)
_without("missing_both_ends", [0, 7], edge=True)
_without("missing_second_slice", [1])
_without("missing_middle_slice", [4])
_without("missing_second_but_last_slice", [6])
_without("missing_two_together", [3, 4])
_without("missing_two_apart", [2, 5])
_without("missing_three_apart", [1, 3, 6])
_without("missing_every_other_of_the_second_half", [5, 7, 9], Grid(slices=11))
_without("missing_one_of_four", [1], Grid(slices=4))
_without("missing_one_of_forty", [17], Grid(slices=40, step=(0, 0, 1)))
_without("missing_slice_oblique", [4], DOUBLE_OBLIQUE)
_without("missing_slice_coronal", [3], CORONAL)
_without("missing_slice_sagittal", [3], SAGITTAL)
_without("missing_slice_tilted", [4], _tilted(Grid(), 15))
_without("missing_all_but_the_ends_and_one", [2, 3, 4, 5, 6])


def _broken(name: str, keyword: str, value: bytes | None, codes: Sequence[str], only: int | None = None) -> None:
    """Geometry of all slices (or of one) replaced by bytes, or left out: nothing may be read from it."""

    def build(folder: Path) -> Expected:
        made = make_series()
        for index, ds in enumerate(made.slices):
            if only not in (None, index):
                continue
            if value is None:
                delattr(ds, keyword)
            else:
                raw(ds, keyword, "DS", value)
            if keyword == "ImagePositionPatient":
                del ds.SliceLocation
        save(folder, made.slices)
        return Expected()

    add("faulty", codes, name, build)


_POSITION = (*_BAD, *_GAP, "SINGLE_SLICE", "DUPLICATE_SLICE")
for _name, _value in {
    "missing": None,
    "empty": b"",
    "nan": rb"nan\nan\nan",
    "infinite": rb"-9\-12\inf",
    "two_values": rb"-9\-12",
    "one_value": b"-9",
    "text": rb"left\top\up",
    "zero": rb"0\0\0",
}.items():
    _broken(f"position_{_name}", "ImagePositionPatient", _value, _POSITION)
    _broken(f"position_{_name}_in_one_slice", "ImagePositionPatient", _value, _POSITION, only=4)
_broken("position_huge_in_one_slice", "ImagePositionPatient", rb"-9\-12\1e30", _POSITION, only=4)

for _name, _value in {
    "missing": None,
    "empty": b"",
    "zero": rb"0\0\0\0\0\0",
    "nan": rb"1\0\0\0\nan\0",
    "of_five_numbers": rb"1\0\0\0\1",
    "of_three_numbers": rb"1\0\0",
    "text": rb"A\B\C\D\E\F",
    "not_orthogonal": rb"1\0\0\0.5\0.8660254\0",
    "parallel": rb"1\0\0\1\0\0",
    "slightly_skewed": rb"1\0\0\0.05\0.99875\0",
}.items():
    _codes = (*_BAD, *_GAP, "SINGLE_SLICE", "SPLIT_SERIES")
    _broken(f"orientation_{_name}", "ImageOrientationPatient", _value, _codes)
    _broken(f"orientation_{_name}_in_one_slice", "ImageOrientationPatient", _value, _codes, only=4)

for _name, _value in {
    "missing": None,
    "empty": b"",
    "zero": rb"0\0",
    "half_zero": rb"1.25\0",
    "negative": rb"1.25\-0.75",
    "nan": rb"nan\nan",
    "infinite": rb"inf\0.75",
    "of_one_number": b"1.25",
    "of_three_numbers": rb"1.25\0.75\3",
    "text": rb"a\b",
    "with_commas": rb"1,25\0,75",
}.items():
    _codes = (*_BAD, *_GAP, "SINGLE_SLICE", "SPLIT_SERIES")
    _broken(f"pixel_spacing_{_name}", "PixelSpacing", _value, _codes)
    _broken(f"pixel_spacing_{_name}_in_one_slice", "PixelSpacing", _value, _codes, only=4)
_broken("pixel_spacing_differs_in_one_slice", "PixelSpacing", rb"1.3\0.8", _codes, only=4)
_broken("pixel_spacing_turned_in_one_slice", "PixelSpacing", rb"0.75\1.25", _codes, only=4)
_broken("orientation_flipped_in_one_slice", "ImageOrientationPatient", rb"-1\0\0\0\1\0", _codes, only=4)
_broken(
    "orientation_three_degrees_off_in_one_slice", "ImageOrientationPatient", rb"1\0\0\0\.99863\.05234", _codes, only=4
)


def _written(name: str, kind: str, codes: Sequence[str], **tags: bytes) -> None:
    """Decimal strings written in unusual ways in every slice; the numbers are those of the plain series."""

    def change(ds: Dataset, index: int) -> None:
        for keyword, value in tags.items():
            raw(ds, keyword, "DS", value.replace(b"#", f"{30 + 3 * index}".encode()))

    _tagged(name, kind, codes, change)


_written("numbers_with_spaces", "readable", (), PixelSpacing=rb" 1.25 \ 0.75 ", ImagePositionPatient=rb" -9 \ -12\# ")
_written(
    "numbers_with_exponents", "readable", (), PixelSpacing=rb"125e-2\7.5E-1", ImagePositionPatient=rb"-0.9E1\-1.2e+1\#"
)
_written("numbers_with_plus_signs", "readable", (), PixelSpacing=rb"+1.25\+.75", ImagePositionPatient=rb"-9.\-12\+#")
_written(
    "numbers_with_leading_zeros", "readable", (), PixelSpacing=rb"01.25\00.75", ImagePositionPatient=rb"-09\-012\0#"
)
_written(
    "numbers_padded_with_nul", "readable", (), PixelSpacing=b"1.25\\0.75\0", ImagePositionPatient=b"-9\\-12\\#\0\0"
)
_written(
    "numbers_longer_than_16_characters",
    "readable",
    (),
    PixelSpacing=rb"1.2500000000000000001\0.7500000000000000000",
    ImageOrientationPatient=rb"1.00000000000000000000\0\0\0\1.0000000000000000000\0",
)
_written("orientation_of_four_digits", "readable", (), ImageOrientationPatient=rb"0.9999\0.0001\0\-0.0001\1.0001\0")
_written("orientation_negative_zero", "readable", (), ImageOrientationPatient=rb"1\-0.0\0\-0.0\1\-0.0")
_written("orientation_twice_as_long", "either", _BAD, ImageOrientationPatient=rb"2\0\0\0\2\0")
_written("position_with_a_fourth_value", "either", _BAD, ImagePositionPatient=rb"-9\-12\#\0")
_written("position_with_an_empty_fourth_value", "either", _BAD, ImagePositionPatient=b"-9\\-12\\#\\")


@readable()
def orientation_differs_by_rounding(folder: Path) -> Truth:
    """The last digits of the orientation differ from slice to slice."""
    made = make_series(DOUBLE_OBLIQUE)
    for index, ds in enumerate(made.slices):
        noise = 2e-6 * np.random.default_rng(index).uniform(-1, 1, 6)
        ds.ImageOrientationPatient = numbers(np.array([*DOUBLE_OBLIQUE.row, *DOUBLE_OBLIQUE.column]) + noise)
    save(folder, made.slices)
    return made.truth


@readable()
def pixel_spacing_differs_by_rounding(folder: Path) -> Truth:
    """0.75 in some slices, 0.7500001 in others."""
    made = make_series()
    for ds in made.slices[::2]:
        ds.PixelSpacing = ["1.25", "0.7500001"]
    save(folder, made.slices)
    return made.truth


@faulty("SINGLE_SLICE", "BAD_GEOMETRY", "UNEVEN_SLICES")
def radial_slices(folder: Path) -> None:
    """Each slice turned about the vertical axis: there is no stack."""
    made = make_series()
    for index, ds in enumerate(made.slices):
        set_plane(ds, CORONAL.turned(rotation(2, 22.5 * index)), np.asarray(CORONAL.origin))
    save(folder, made.slices)


@faulty("SINGLE_SLICE", "BAD_GEOMETRY", "UNEVEN_SLICES")
def fan_of_slices(folder: Path) -> None:
    """The orientation drifts by half a degree a slice."""
    made = make_series()
    for index, ds in enumerate(made.slices):
        grid = Grid().turned(rotation(0, 0.5 * index))
        set_plane(ds, grid, Grid().position(index))
    save(folder, made.slices)


@faulty("BAD_GEOMETRY", "DUPLICATE_SLICE", "UNEVEN_SLICES", "SINGLE_SLICE")
def slices_beside_each_other(folder: Path) -> None:
    """The step lies in the plane: the positions differ, the places along the normal do not."""
    made = make_series(replace(Grid(), step=(20.0, 0.0, 0.0)))
    save(folder, made.slices)


@either("BAD_GEOMETRY", "GANTRY_TILT")
def step_almost_in_the_plane(folder: Path) -> Truth:
    """Slices 0.3 mm apart and 3 mm aside: no gantry leans by 84 degrees."""
    made = make_series(replace(Grid(), step=(0.0, 3.0, 0.3)))
    save(folder, made.slices)
    return made.truth
