"""Cases: several frames in one file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence as Items
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

from tests.io.dicom.cases_geometry import CORONAL, DOUBLE_OBLIQUE, SAGITTAL
from tests.io.dicom.compress import encoded_frames, items, set_frames
from tests.io.dicom.multiframe import (
    ENHANCED_CT,
    ENHANCED_MR,
    ENHANCED_PET,
    LEGACY_CT,
    Frame,
    enhanced,
    frames_of,
    mosaic,
)
from tests.io.dicom.phantom import (
    PLAIN,
    Field,
    Grid,
    Pixels,
    Truth,
    header,
    make_series,
    numbers,
    save,
    set_bytes,
    set_format,
    set_plane,
    stored_of,
    uid,
)
from tests.io.dicom.registry import Expected, add, aside, either, faulty, readable

_SHUFFLED = (5, 2, 7, 0, 3, 6, 1, 4)
_BAD = ("BAD_GEOMETRY", "NO_GEOMETRY")
_GAP = ("MISSING_SLICE", "UNEVEN_SLICES")
_CUT = ("TRUNCATED_PIXEL_DATA", "TRUNCATED_FILE", "HEADER_PROMISES_TOO_MUCH", "BAD_HEADER")
_MEASURES, _ORIENTATION, _RESCALE = (
    "PixelMeasuresSequence",
    "PlaneOrientationSequence",
    "PixelValueTransformationSequence",
)
_SHARED = (_MEASURES, _ORIENTATION, _RESCALE)


def _one(
    name: str,
    grid: Grid | None = None,
    *,
    order: Sequence[int] = range(8),
    sop_class: str = ENHANCED_CT,
    shared: Sequence[str] = _SHARED,
    syntax: str = ExplicitVRLittleEndian,
    findings: Sequence[str] = (),
    **frame: Any,
) -> None:
    """A readable enhanced object of one volume."""
    grid = grid or Grid()

    def build(folder: Path) -> Truth:
        frames = frames_of(grid, **frame)
        ds = enhanced([frames[index] for index in order], sop_class, shared=shared)
        if syntax == ExplicitVRBigEndian:
            set_bytes(ds, stored_of(ds).byteswap().tobytes())
        save(folder, [ds], syntax=syntax)
        return grid.truth(frame.get("values"))

    add("readable", findings, name, build)


_one("enhanced_ct")
_one("enhanced_mr", sop_class=ENHANCED_MR, pixels=PLAIN)
_one("enhanced_pet", sop_class=ENHANCED_PET)
_one("enhanced_legacy_converted", sop_class=LEGACY_CT)
_one("enhanced_frames_shuffled", order=_SHUFFLED)
_one("enhanced_frames_reversed", order=range(7, -1, -1))
_one("enhanced_all_groups_per_frame", shared=())
_one("enhanced_oblique", DOUBLE_OBLIQUE, order=_SHUFFLED)
_one("enhanced_coronal", CORONAL)
_one("enhanced_sagittal", SAGITTAL, shared=())
_one("enhanced_tilted", Grid(step=(0.0, 0.8, 3.0)), findings=("GANTRY_TILT",))
_one("enhanced_two_frames", Grid(slices=2), order=(1, 0))
_one("enhanced_signed", pixels=Pixels(None, 0.0, True, 16, 16), values=Field(-300.0, (6.0, 4.0, 2.0)))
_one("enhanced_32_bits", pixels=Pixels(None, 0.0, False, 32, 32))
_one("enhanced_odd_matrix", Grid(columns=23, rows=19))
_one("enhanced_implicit", syntax=ImplicitVRLittleEndian)
_one("enhanced_deflated", syntax=DeflatedExplicitVRLittleEndian)
_one("enhanced_big_endian", syntax=ExplicitVRBigEndian)
_one("enhanced_phase", sop_class=ENHANCED_MR, frame_type=("ORIGINAL", "PRIMARY", "PHASE_MAP", "NONE"))
_one("enhanced_in_stack_positions_reversed", content={"InStackPositionNumber": 1, "DimensionIndexValues": [1, 1]})


def _per_frame_rescale(name: str, pixels: Callable[[int], Pixels], order: Sequence[int] = range(8)) -> None:
    def build(folder: Path) -> Truth:
        frames = [Frame(Grid(), index, pixels=pixels(index)) for index in order]
        save(folder, [enhanced(frames, shared=(_MEASURES, _ORIENTATION))])
        return Grid().truth()

    add("readable", ("RESCALE_VARIES",), name, build)


_per_frame_rescale("enhanced_slope_per_frame", lambda k: Pixels(1 + 0.1 * k, -1024.0))
_per_frame_rescale("enhanced_intercept_per_frame", lambda k: Pixels(1.0, -1024.0 - 20 * k))
_per_frame_rescale("enhanced_rescale_per_frame_shuffled", lambda k: Pixels(1 + 0.1 * k, -1024.0 + 9 * k), _SHUFFLED)


@readable()
def enhanced_rescale_in_both_places(folder: Path) -> Truth:
    """A rescale at the top level of the data set contradicts the functional groups, which count."""
    ds = enhanced(frames_of(Grid()))
    ds.RescaleSlope, ds.RescaleIntercept = "3", "7"
    save(folder, [ds])
    return Grid().truth()


@readable()
def enhanced_geometry_in_both_places(folder: Path) -> Truth:
    """A position and spacing at the top level contradict the functional groups, which count."""
    ds = enhanced(frames_of(Grid()))
    ds.ImagePositionPatient, ds.ImageOrientationPatient = ["0", "0", "0"], ["0", "1", "0", "1", "0", "0"]
    ds.PixelSpacing, ds.SpacingBetweenSlices = ["9", "9"], "9"
    save(folder, [ds])
    return Grid().truth()


def _several(
    name: str,
    sets: Sequence[tuple[Grid, dict[str, Any], dict[str, Any], Sequence[str]]],
    kind: str = "readable",
    interleave: bool = False,
) -> None:
    """One object of several volumes: (grid, content, groups, frame type) of each."""

    def build(folder: Path) -> Sequence[Truth]:
        frames, truths = [], []
        for number, (grid, content, groups, frame_type) in enumerate(sets):
            values = Field().plus(90.0 * number)
            frames += frames_of(
                grid,
                values,
                pixels=PLAIN,
                content=content,
                groups=groups,
                frame_type=frame_type or ("ORIGINAL", "PRIMARY"),
            )
            truths.append(grid.truth(values))
        if interleave:
            frames = [frames[start + index] for index in range(8) for start in range(0, len(frames), 8)]
        save(folder, [enhanced(frames, ENHANCED_MR, shared=())])
        return truths

    codes = ("SPLIT_SERIES",) if kind == "readable" else ("SPLIT_SERIES", "DUPLICATE_SLICE", *_GAP)
    add(kind, codes, name, build)  # type: ignore[arg-type]


_A = Grid()
_several("enhanced_two_stacks", [(_A, {"StackID": "1"}, {}, ()), (CORONAL, {"StackID": "2"}, {}, ())])
_several("enhanced_three_stacks", [(g, {"StackID": str(n)}, {}, ()) for n, g in enumerate((_A, CORONAL, SAGITTAL))])
_several("enhanced_stacks_without_ids", [(_A, {}, {}, ()), (SAGITTAL, {}, {}, ())])
_several(
    "enhanced_parallel_stacks",
    [(_A, {"StackID": "1"}, {}, ()), (_A.moved((0, 0, 100.0)), {"StackID": "2"}, {}, ())],
)
_several("enhanced_time_points", [(_A, {"TemporalPositionIndex": n}, {}, ()) for n in (1, 2, 3)])
_several(
    "enhanced_time_points_interleaved", [(_A, {"TemporalPositionIndex": n}, {}, ()) for n in (1, 2)], interleave=True
)
_several("enhanced_time_offsets", [(_A, {}, {"TemporalPositionTimeOffset": 2.5 * n}, ()) for n in range(3)])
_several("enhanced_cardiac_phases", [(_A, {}, {"NominalCardiacTriggerDelayTime": 40.0 * n}, ()) for n in range(3)])
_several("enhanced_echoes", [(_A, {}, {"EffectiveEchoTime": echo}, ()) for echo in (4.6, 9.2)])
_several("enhanced_b_values", [(_A, {}, {"DiffusionBValue": b}, ()) for b in (0.0, 1000.0)], interleave=True)
_several(
    "enhanced_magnitude_and_phase",
    [(_A, {}, {}, ("ORIGINAL", "PRIMARY", part, "NONE")) for part in ("MAGNITUDE", "PHASE_MAP")],
)
_several(
    "enhanced_by_dimension_index_alone", [(_A, {"DimensionIndexValues": [n, 1]}, {}, ()) for n in (1, 2)], "either"
)
_several("enhanced_told_apart_by_nothing", [(_A, {}, {}, ()), (_A, {}, {}, ())], "either")


def _spoilt(
    name: str,
    kind: str,
    codes: Sequence[str],
    change: Callable[[Dataset], None],
    *,
    read: bool = False,
    shared: Sequence[str] = _SHARED,
    syntax: str = ExplicitVRLittleEndian,
) -> None:
    """An enhanced object with a change to its data set."""

    def build(folder: Path) -> Truth | None:
        ds = enhanced(frames_of(Grid()), shared=shared)
        change(ds)
        save(folder, [ds], syntax=syntax)
        return Grid().truth() if read else None

    add(kind, codes, name, build)  # type: ignore[arg-type]


def _frame(ds: Dataset, index: int) -> Dataset:
    frame: Dataset = ds.PerFrameFunctionalGroupsSequence[index]
    return frame


def _drop_frames(ds: Dataset, gone: Sequence[int]) -> None:
    kept = [index for index in range(8) if index not in gone]
    pixels = stored_of(ds)[kept]
    ds.PerFrameFunctionalGroupsSequence = Items([_frame(ds, index) for index in kept])
    ds.NumberOfFrames = len(kept)
    set_bytes(ds, pixels.tobytes())


def _repeat(ds: Dataset, other: bool) -> None:
    pixels = stored_of(ds)
    extra = pixels[3] + 5 * other
    ds.PerFrameFunctionalGroupsSequence.append(_frame(ds, 3))
    ds.NumberOfFrames = 9
    set_bytes(ds, np.concatenate([pixels, extra[None]]).astype("<u2").tobytes())


def _no_positions(ds: Dataset) -> None:
    for frame in ds.PerFrameFunctionalGroupsSequence:
        del frame.PlanePositionSequence


def _position(value: list[str], index: int = 4) -> Callable[[Dataset], None]:
    return lambda ds: setattr(_frame(ds, index).PlanePositionSequence[0], "ImagePositionPatient", value)


def _shared_group(ds: Dataset, name: str, **tags: object) -> None:
    item = ds.SharedFunctionalGroupsSequence[0][name].value[0]
    for keyword, value in tags.items():
        setattr(item, keyword, value)


_spoilt("enhanced_lacks_a_frame", "faulty", _GAP, lambda ds: _drop_frames(ds, [4]))
_spoilt("enhanced_lacks_two_frames", "faulty", _GAP, lambda ds: _drop_frames(ds, [2, 5]))
_spoilt("enhanced_one_frame", "faulty", ("SINGLE_SLICE",), lambda ds: _drop_frames(ds, range(1, 8)))
_spoilt(
    "enhanced_frame_twice",
    "either",
    ("DUPLICATES_DROPPED", "DUPLICATE_SLICE"),
    lambda ds: _repeat(ds, False),
    read=True,
)
_spoilt("enhanced_frame_twice_with_other_pixels", "faulty", ("DUPLICATE_SLICE",), lambda ds: _repeat(ds, True))
_spoilt("enhanced_without_positions", "faulty", _BAD, _no_positions)
_spoilt(
    "enhanced_without_orientation", "faulty", _BAD, lambda ds: ds.SharedFunctionalGroupsSequence[0].pop(_ORIENTATION)
)
_spoilt("enhanced_without_spacing", "faulty", _BAD, lambda ds: ds.SharedFunctionalGroupsSequence[0].pop(_MEASURES))
_spoilt("enhanced_without_groups", "faulty", (*_BAD, *_CUT), lambda ds: ds.pop("PerFrameFunctionalGroupsSequence"))
_spoilt(
    "enhanced_position_missing_in_one_frame",
    "faulty",
    (*_BAD, *_GAP),
    lambda ds: _frame(ds, 4).pop("PlanePositionSequence"),
)
_spoilt(
    "enhanced_position_sequence_empty",
    "faulty",
    (*_BAD, *_GAP),
    lambda ds: setattr(_frame(ds, 4), "PlanePositionSequence", Items([])),
)
_spoilt("enhanced_position_of_two_values", "faulty", (*_BAD, *_GAP), _position(["1", "2"]))
_spoilt("enhanced_position_off", "faulty", _GAP, _position(numbers([-9, -12, 42.7])))
_spoilt("enhanced_position_moved_in_plane", "faulty", (*_GAP, *_BAD), _position(numbers([-5, -12, 42])))
_spoilt(
    "enhanced_fewer_groups_than_frames", "faulty", (*_CUT, *_BAD), lambda ds: ds.PerFrameFunctionalGroupsSequence.pop()
)
_spoilt(
    "enhanced_more_groups_than_frames",
    "either",
    (*_CUT, *_BAD, "EXTRA_BYTES"),
    lambda ds: ds.PerFrameFunctionalGroupsSequence.append(_frame(ds, 0)),
    read=True,
)
_spoilt("enhanced_promises_more_frames", "faulty", (*_CUT, *_BAD), lambda ds: setattr(ds, "NumberOfFrames", 12))
_spoilt(
    "enhanced_promises_millions_of_frames",
    "faulty",
    (*_CUT, *_BAD, "OVER_BUDGET"),
    lambda ds: setattr(ds, "NumberOfFrames", 9_000_000),
)
_spoilt("enhanced_pixels_cut", "faulty", _CUT, lambda ds: set_bytes(ds, ds.PixelData[: len(ds.PixelData) // 2]))
_spoilt("enhanced_pixels_lack_a_frame", "faulty", _CUT, lambda ds: set_bytes(ds, ds.PixelData[:-960]))
_spoilt("enhanced_pixels_lack_a_byte_pair", "faulty", _CUT, lambda ds: set_bytes(ds, ds.PixelData[:-2]))
_spoilt("enhanced_slope_zero", "faulty", ("ZERO_SLOPE",), lambda ds: _shared_group(ds, _RESCALE, RescaleSlope="0"))
_spoilt("enhanced_spacing_zero", "faulty", _BAD, lambda ds: _shared_group(ds, _MEASURES, PixelSpacing=["0", "0"]))
_spoilt(
    "enhanced_orientation_zero",
    "faulty",
    _BAD,
    lambda ds: _shared_group(ds, _ORIENTATION, ImageOrientationPatient=["0"] * 6),
)
_spoilt(
    "enhanced_spacing_between_slices_wrong",
    "readable",
    ("SPACING_DISAGREES",),
    lambda ds: _shared_group(ds, _MEASURES, SpacingBetweenSlices="5"),
    read=True,
)
_spoilt("enhanced_colour", "faulty", ("UNSUPPORTED_TYPE",), lambda ds: _colour(ds))


def _colour(ds: Dataset) -> None:
    grey = (stored_of(ds) // 16).astype("u1")
    ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PlanarConfiguration = 3, "RGB", 0
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 8, 8, 7
    set_bytes(ds, np.stack([grey] * 3, axis=-1).tobytes())


@faulty(*_GAP, "SPLIT_SERIES", "SINGLE_SLICE", *_BAD)
def enhanced_orientation_of_one_frame_differs(folder: Path) -> None:
    """One frame of the stack is turned."""
    frames = frames_of(Grid())
    frames[4] = Frame(replace(CORONAL, origin=tuple(Grid().position(4))), 0)
    save(folder, [enhanced(frames, shared=(_MEASURES, _RESCALE))])


@readable()
def enhanced_one_frame_in_each_file(folder: Path) -> Truth:
    """Eight enhanced objects of one frame each, as some archives split them."""
    frames = frames_of(Grid())
    save(folder, [enhanced([frames[k]], number=n + 1) for n, k in enumerate(_SHUFFLED)])
    return Grid().truth()


@readable()
def enhanced_in_two_files(folder: Path) -> Truth:
    """A concatenation: four frames in each of two files."""
    frames = frames_of(Grid())
    parts = [enhanced(frames[start : start + 4], number=number + 1) for number, start in enumerate((0, 4))]
    for number, ds in enumerate(parts):
        ds.ConcatenationUID, ds.InConcatenationNumber, ds.InConcatenationTotalNumber = uid("whole"), number + 1, 2
        ds.ConcatenationFrameOffsetNumber = 4 * number
    save(folder, parts)
    return Grid().truth()


@faulty(*_GAP)
def enhanced_concatenation_lacks_a_part(folder: Path) -> None:
    """Three files of a concatenation; the middle one is missing."""
    frames = frames_of(Grid(slices=9))
    parts = [enhanced(frames[start : start + 3], number=number + 1) for number, start in enumerate((0, 3, 6))]
    for number, ds in enumerate(parts):
        ds.ConcatenationUID, ds.InConcatenationNumber, ds.InConcatenationTotalNumber = uid("whole"), number + 1, 3
    save(folder, [parts[0], parts[2]])


@faulty(*_BAD, *_GAP, "SPLIT_SERIES", "SINGLE_SLICE")
def enhanced_spacing_of_one_frame_differs(folder: Path) -> None:
    """One frame of the stack has larger pixels."""
    frames = frames_of(Grid())
    frames[4] = Frame(Grid(spacing=(0.8, 1.3)), 4)
    save(folder, [enhanced(frames, shared=(_ORIENTATION, _RESCALE))])


@faulty(*_BAD, "DUPLICATE_SLICE", "SINGLE_SLICE")
def enhanced_position_shared_by_all(folder: Path) -> None:
    """One position for all frames."""
    save(folder, [enhanced(frames_of(Grid()), shared=(*_SHARED, "PlanePositionSequence"))])


@readable()
def enhanced_time_point_in_each_file(folder: Path) -> Sequence[Truth]:
    """Two enhanced objects of the same planes in one series."""
    fields = [Field(), Field().plus(90)]
    save(folder, [enhanced(frames_of(Grid(), values), number=n + 1) for n, values in enumerate(fields)])
    return [Grid().truth(values) for values in fields]


@readable()
def enhanced_beside_a_classic_series(folder: Path) -> Sequence[Truth]:
    """The same scan exported in both ways, as two series."""
    save(folder, [enhanced(frames_of(Grid()))], "ENHANCED")
    save(folder, make_series(values=Field().plus(50)).slices)
    return [Grid().truth(), Grid().truth(Field().plus(50))]


def _enhanced_compressed(
    name: str, syntax: str, table: bool = True, split: bool = False, grid: Grid | None = None
) -> None:
    """An enhanced object whose frames are compressed."""
    grid = grid or Grid()

    def build(folder: Path) -> Truth:
        ds = enhanced([frames_of(grid)[index] for index in _SHUFFLED])
        frames = encoded_frames(ds, syntax)
        if split:
            halves = [(f[: len(f) // 4 * 2], f[len(f) // 4 * 2 :]) for f in frames]
            starts = np.cumsum([0, *[sum(len(h) + len(h) % 2 + 8 for h in pair) for pair in halves]])[:-1]
            set_frames(ds, items([half for pair in halves for half in pair], [int(start) for start in starts]))
        else:
            set_frames(ds, encapsulate(frames, has_bot=table))
        save(folder, [ds], syntax=syntax)
        return grid.truth()

    add("readable", (), name, build)


_LARGE = Grid(columns=40, rows=36)
_enhanced_compressed("enhanced_rle", RLELossless)
_enhanced_compressed("enhanced_rle_without_offset_table", RLELossless, table=False)
_enhanced_compressed("enhanced_jpeg_ls", JPEGLSLossless, grid=_LARGE)
_enhanced_compressed("enhanced_jpeg_ls_in_two_fragments", JPEGLSLossless, split=True, grid=_LARGE)
_enhanced_compressed("enhanced_jpeg_2000", JPEG2000Lossless, grid=_LARGE)
_enhanced_compressed("enhanced_jpeg_2000_in_two_fragments", JPEG2000Lossless, split=True, grid=_LARGE)
_enhanced_compressed("enhanced_jpeg_2000_without_offset_table", JPEG2000Lossless, table=False, grid=_LARGE)


@either(*_CUT, "UNDECODABLE")
def enhanced_jpeg_2000_in_two_fragments_without_table(folder: Path) -> Truth:
    """Two fragments a frame and no offset table: the frames must be told apart by their markers."""
    grid = Grid(columns=40, rows=36)
    ds = enhanced(frames_of(grid))
    halves = [
        half for f in encoded_frames(ds, JPEG2000Lossless) for half in (f[: len(f) // 4 * 2], f[len(f) // 4 * 2 :])
    ]
    set_frames(ds, items(halves))
    save(folder, [ds], syntax=JPEG2000Lossless)
    return grid.truth()


@either(*_CUT, "UNDECODABLE")
def enhanced_rle_with_a_wrong_offset_table(folder: Path) -> Truth:
    """The offsets do not point at fragments."""
    ds = enhanced(frames_of(Grid()))
    set_frames(ds, items(encoded_frames(ds, RLELossless), [13 * k for k in range(8)]))
    save(folder, [ds], syntax=RLELossless)
    return Grid().truth()


@faulty(*_CUT, "UNDECODABLE")
def enhanced_rle_lacks_a_frame(folder: Path) -> None:
    """Eight frames are promised, seven fragments are there."""
    ds = enhanced(frames_of(Grid()))
    set_frames(ds, encapsulate(encoded_frames(ds, RLELossless)[:7]))
    save(folder, [ds], syntax=RLELossless)


def _mosaic(
    name: str,
    grid: Grid,
    kind: str = "readable",
    codes: Sequence[str] = ("MOSAIC",),
    changes: Callable[[Dataset], None] | None = None,
    read: bool = True,
    **options: Any,
) -> None:
    """A Siemens mosaic."""

    def build(folder: Path) -> Truth | None:
        ds = mosaic(grid, Field(), **options)
        if changes is not None:
            changes(ds)
        save(folder, [ds])
        return grid.truth() if read else None

    add(kind, codes, name, build)  # type: ignore[arg-type]


_mosaic("mosaic", Grid())
_mosaic("mosaic_full", Grid(slices=9))
_mosaic("mosaic_two_by_two", Grid(slices=4), across=2)
_mosaic("mosaic_oblique", DOUBLE_OBLIQUE)
_mosaic("mosaic_coronal", CORONAL)
_mosaic("mosaic_sagittal", SAGITTAL)
_mosaic("mosaic_descending", Grid(step=(0, 0, -3)))
_mosaic("mosaic_with_csa_only", Grid(), private_count=False)
_mosaic("mosaic_without_csa", Grid(), "either", ("MOSAIC", *_BAD, "UNSUPPORTED_TYPE"), csa=False)
_mosaic(
    "mosaic_of_unknown_count",
    Grid(),
    "faulty",
    (*_BAD, "SINGLE_SLICE", "UNSUPPORTED_TYPE"),
    read=False,
    csa=False,
    private_count=False,
)
_mosaic(
    "mosaic_count_too_large",
    Grid(),
    "faulty",
    (*_BAD, *_CUT, "UNSUPPORTED_TYPE"),
    changes=lambda ds: _count(ds, 50),
    read=False,
    csa=False,
)
_mosaic(
    "mosaic_count_zero",
    Grid(),
    "faulty",
    (*_BAD, *_CUT, "SINGLE_SLICE", "UNSUPPORTED_TYPE"),
    changes=lambda ds: _count(ds, 0),
    read=False,
    csa=False,
)
_mosaic(
    "mosaic_without_position", Grid(), "faulty", _BAD, changes=lambda ds: ds.pop("ImagePositionPatient"), read=False
)
_mosaic(
    "mosaic_with_a_damaged_csa_header",
    Grid(),
    "either",
    ("MOSAIC", *_BAD, "UNSUPPORTED_TYPE", "BAD_HEADER"),
    changes=lambda ds: setattr(ds[0x00291010], "value", b"SV10\4\3\2\1" + b"\xff" * 200),
)
_mosaic(
    "mosaic_without_spacing_between_slices",
    Grid(),
    "either",
    ("MOSAIC", *_BAD),
    changes=lambda ds: ds.pop("SpacingBetweenSlices"),
)


def _count(ds: Dataset, count: int) -> None:
    ds[0x0019100A].value = count


@readable("MOSAIC")
def mosaic_time_points(folder: Path) -> Sequence[Truth]:
    """Three mosaics of one series: three volumes."""
    made = [mosaic(Grid(), Field().plus(60.0 * number), number=number + 1) for number in range(3)]
    for number, ds in enumerate(made):
        ds.AcquisitionNumber, ds.AcquisitionTime = number + 1, f"1015{10 + 2 * number}"
    save(folder, made)
    return [Grid().truth(Field().plus(60.0 * number)) for number in range(3)]


def _nuclear(spacing: str | None, positions: bool) -> Dataset:
    """A reconstructed nuclear medicine object: one position for all frames, in DetectorInformationSequence."""
    ds = header("CT")
    ds.Modality, ds.SOPClassUID, ds.ImageType = (
        "NM",
        "1.2.840.10008.5.1.4.1.1.20",
        ["ORIGINAL", "PRIMARY", "RECON TOMO"],
    )
    grid = Grid()
    values = Field()
    set_format(ds, Pixels(None, 0.0, stored=16), (20, 24))
    set_bytes(ds, np.stack([np.rint(values(grid.points(k))).astype("<u2") for k in range(8)]).tobytes())
    ds.NumberOfFrames, ds.PixelSpacing, ds.SliceThickness = 8, ["1.25", "0.75"], "3"
    ds.NumberOfSlices, ds.SliceVector = 8, list(range(1, 9))
    if spacing is not None:
        ds.SpacingBetweenSlices = spacing
    if positions:
        plane, detector = Dataset(), Dataset()
        set_plane(plane, grid, grid.position(0))
        detector.ImagePositionPatient = plane.ImagePositionPatient
        detector.ImageOrientationPatient = plane.ImageOrientationPatient
        ds.DetectorInformationSequence = Items([detector])
    return ds


_UNREAD = (*_BAD, "UNSUPPORTED_TYPE", "NOT_AN_IMAGE", "SEVERAL_FRAMES")


@either(*_UNREAD)
def nuclear_medicine_with_one_position(folder: Path) -> Truth:
    """Position and orientation of the first slice, spacing by SpacingBetweenSlices."""
    save(folder, [_nuclear("3", True)])
    return Grid().truth()


@faulty(*_UNREAD)
def nuclear_medicine_frames_alone(folder: Path) -> None:
    """Frames with a pixel spacing and no position."""
    save(folder, [_nuclear("3", False)])


def _dose() -> Dataset:
    ds = header("CT", "dose")
    ds.Modality, ds.SOPClassUID = "RTDOSE", "1.2.840.10008.5.1.4.1.1.481.2"
    grid, values = Grid(), Field()
    set_plane(ds, grid, grid.position(0))
    set_format(ds, Pixels(allocated=32, stored=32), (20, 24))
    stored = np.stack([np.rint(values(grid.points(k)) / 0.01).astype("<u4") for k in range(8)])
    set_bytes(ds, stored.tobytes())
    ds.NumberOfFrames, ds.DoseGridScaling, ds.DoseUnits = 8, "0.01", "GY"
    ds.GridFrameOffsetVector = numbers([3.0 * k for k in range(8)])
    ds.FrameIncrementPointer = 0x3004000C
    del ds.SliceThickness, ds.SliceLocation
    return ds


@either(*_UNREAD)
def dose_alone(folder: Path) -> Truth:
    """A dose grid: frames by offset, values by DoseGridScaling."""
    save(folder, [_dose()])
    return Grid().truth()


@either(*_UNREAD)
def dose_beside_its_scan(folder: Path) -> Expected:
    """A scan and its dose grid; the scan must be read."""
    made = make_series(values=Field().plus(100))
    save(folder, made.slices)
    save(folder, [_dose()], "RTDOSE.dcm")
    return Expected([[made.truth], [made.truth, Grid().truth()]], aside("RTDOSE.dcm"))


@faulty(*_UNREAD, "BAD_HEADER")
def classic_ct_of_several_frames(folder: Path) -> None:
    """A single-frame class with eight frames and one position."""
    ds = make_series().slices[0]
    values = Field()
    pixels = Pixels()
    stored = [np.rint(values(Grid().points(k)) + 1024).astype(pixels.dtype) for k in range(8)]
    set_bytes(ds, np.stack(stored).tobytes())
    ds.NumberOfFrames = 8
    save(folder, [ds])


def _parametric(folder: Path, offset: float) -> Truth:
    """A map of floating point frames (PS3.3 A.75)."""
    values = Field(base=12.5, gradient=(0.6, 0.4, 0.9))
    ds = enhanced(frames_of(Grid(), pixels=PLAIN), ENHANCED_MR)
    ds.SOPClassUID, ds.Modality = "1.2.840.10008.5.1.4.1.1.30", "MR"
    for gone in ("PixelData", "BitsStored", "HighBit", "PixelRepresentation"):
        delattr(ds, gone)
    ds.BitsAllocated = 32
    ds.FloatPixelData = np.stack([values(Grid().points(k)) for k in range(8)]).astype("<f4").tobytes()[int(offset) :]
    save(folder, [ds])
    return replace(Grid().truth(values), tolerance=1e-3)


@either("UNSUPPORTED_TYPE", "NOT_AN_IMAGE")
def parametric_map(folder: Path) -> Truth:
    """Float frames with positions of their own."""
    return _parametric(folder, 0)


@faulty("UNSUPPORTED_TYPE", "NOT_AN_IMAGE", *_CUT)
def parametric_map_cut(folder: Path) -> None:
    """Float frames that lack two numbers."""
    _parametric(folder, 8)
