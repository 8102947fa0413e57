"""Cases: how stored bits become values: rescale, signs, depths, padding, overlays, floating point, colour."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as Items

from tests.io.dicom.phantom import (
    BYTE,
    BYTE_GRID,
    PLAIN,
    Field,
    Grid,
    Pixels,
    Truth,
    make_series,
    numbers,
    raw,
    save,
    set_bytes,
    set_format,
    stored_of,
)
from tests.io.dicom.registry import add, either, faulty, readable

_RESCALE = ("BAD_RESCALE", "ZERO_SLOPE")
_TYPE = ("UNSUPPORTED_TYPE", "UNDECODABLE")
_LENGTH = ("TRUNCATED_PIXEL_DATA", "TRUNCATED_FILE", "HEADER_PROMISES_TOO_MUCH", "UNDECODABLE")


def _format(
    name: str,
    pixels: Pixels,
    values: Field | None = None,
    grid: Grid | None = None,
    codes: Sequence[str] = (),
    tolerance: float = 1.0,
    **tags: object,
) -> None:
    """A readable series of one pixel format."""

    def build(folder: Path) -> Truth:
        made = make_series(grid, values, pixels, **tags)  # type: ignore[arg-type]
        save(folder, made.slices)
        return replace(made.truth, tolerance=tolerance)

    add("readable", codes, name, build)


_LOW = Field(base=-300.0, gradient=(6.0, 4.0, 2.0))
_HIGH = Field(base=32000.0, gradient=(300.0, 400.0, 500.0))
_HUGE = Field(base=2.5e9, gradient=(6e6, 4e6, 9e6))
_format("unsigned_16_bits_with_intercept", Pixels(stored=16))
_format("signed_16_bits", Pixels(intercept=0.0, signed=True, stored=16), _LOW)
_format("signed_16_bits_with_intercept", Pixels(intercept=-1024.0, signed=True, stored=16), _LOW)
_format("signed_12_bits_in_16", Pixels(intercept=0.0, signed=True), _LOW)
_format("signed_13_bits_in_16", Pixels(intercept=100.0, signed=True, stored=13), _LOW)
_format("signed_10_bits_in_16", Pixels(intercept=0.0, signed=True, stored=10), _LOW)
_format("signed_16_bits_no_rescale", Pixels(None, 0.0, signed=True, stored=16), _LOW)
_format("unsigned_16_bits_full_range", Pixels(None, 0.0, stored=16), _HIGH)
_format("unsigned_16_bits_full_range_with_intercept", Pixels(1.0, -32768.0, stored=16), _HIGH.plus(-32768))
_format("values_beyond_16_bits", Pixels(3.0, 1000.0, stored=16), Field(70000.0, (300.0, 400.0, 500.0)), tolerance=1.6)
_format("unsigned_8_bits", Pixels(None, 0.0, allocated=8, stored=8), BYTE, BYTE_GRID)
_format("unsigned_8_bits_with_rescale", Pixels(1.0, -50.0, allocated=8, stored=8), BYTE.plus(-50), BYTE_GRID)
_format("signed_8_bits", Pixels(None, 0.0, True, 8, 8), BYTE.plus(-128), BYTE_GRID)
_format("unsigned_7_bits_in_8", Pixels(2.0, 0.0, False, 8, 7), BYTE, BYTE_GRID)
_format("unsigned_8_bits_in_16", Pixels(None, 0.0, stored=8), BYTE, BYTE_GRID)
_format("unsigned_8_bits_of_odd_length", Pixels(None, 0.0, False, 8, 8), BYTE, replace(BYTE_GRID, columns=23, rows=19))
_format("unsigned_16_bits_odd_matrix", Pixels(), None, Grid(columns=23, rows=19))
_format("unsigned_32_bits", Pixels(None, 0.0, allocated=32, stored=32))
_format("signed_32_bits", Pixels(None, 0.0, True, 32, 32), _LOW)
_format("unsigned_32_bits_beyond_float32", Pixels(None, 0.0, allocated=32, stored=32), _HUGE)
_format("signed_32_bits_beyond_float32", Pixels(None, 0.0, True, 32, 32), Field(-1.9e9, (-6e6, -4e6, 9e6)))
_format("unsigned_24_bits_in_32", Pixels(None, 0.0, False, 32, 24), Field(9e6, (6e3, 4e3, 9e3)))
_format("slope_of_two", Pixels(2.0, -1024.0), values=None)
_format("slope_of_a_tenth", Pixels(0.1, -1024.0, stored=16))
_format("slope_of_a_third", Pixels(1 / 3, -100.0, stored=16))
_format("slope_negative", Pixels(-1.0, 4000.0))
_format("slope_of_a_millionth", Pixels(1e-6, 0.0, stored=16), Field(0.03, (1e-4, 2e-4, 3e-4), 0.0), tolerance=1e-6)
_format("slope_of_a_thousand", Pixels(1000.0, 0.0, stored=16), Field(3e7, (1e5, 2e5, 3e5)), tolerance=501.0)
_format("intercept_of_a_half", Pixels(1.0, -1024.5, stored=16))
_format("no_rescale", PLAIN)
_format("no_rescale_mr", PLAIN, modality="MR")
_format("monochrome1", Pixels(photometric="MONOCHROME1"), codes=("MONOCHROME1",))
_format("monochrome1_signed", Pixels(None, 0.0, True, 16, 16, "MONOCHROME1"), _LOW, codes=("MONOCHROME1",))
_format("window_is_not_applied", Pixels(), WindowCenter="40", WindowWidth="80", VOILUTFunction="SIGMOID")
_format("smallest_and_largest_wrong", Pixels(), SmallestImagePixelValue=0, LargestImagePixelValue=1)
_format("rescale_type_unspecified", Pixels(), RescaleType="US")
_format("planar_configuration_of_one_sample", Pixels(), PlanarConfiguration=1)
_format("burned_in_annotation", Pixels(), codes=("BURNED_IN_ANNOTATION",), BurnedInAnnotation="YES")
_format("lossy_once", Pixels(), codes=("LOSSY_COMPRESSION",), LossyImageCompression="01")
_format("derived_secondary", Pixels(), codes=("DERIVED",), ImageType=["DERIVED", "SECONDARY", "REFORMATTED"])


def _changed(
    name: str,
    kind: str,
    codes: Sequence[str],
    change: Callable[[Dataset, int], None],
    pixels: Pixels | None = None,
    truth: Callable[[Truth], Truth | None] = lambda truth: truth,
    values: Field | None = None,
    grid: Grid | None = None,
    **tags: Any,
) -> None:
    """A series of one pixel format with a change to each slice (given its index)."""

    def build(folder: Path) -> Truth | None:
        made = make_series(grid, values, pixels, **tags)
        for index, ds in enumerate(made.slices):
            change(ds, index)
        save(folder, made.slices)
        return truth(made.truth)

    add(kind, codes, name, build)  # type: ignore[arg-type]


def _nothing(truth: Truth) -> None:
    return None


def _raw(keyword: str, value: bytes, vr: str = "DS", only: int | None = None) -> Callable[[Dataset, int], None]:
    def change(ds: Dataset, index: int) -> None:
        if only in (None, index):
            raw(ds, keyword, vr, value)

    return change


def _drop(*keywords: str) -> Callable[[Dataset, int], None]:
    def change(ds: Dataset, index: int) -> None:
        for keyword in keywords:
            delattr(ds, keyword)

    return change


_ZERO = Pixels(1.0, 0.0)
_changed("slope_missing", "either", _RESCALE, _drop("RescaleSlope"))
_changed("intercept_missing", "either", _RESCALE, _drop("RescaleIntercept"), _ZERO)
for _name, _value in {"zero": b"0", "zero_written_long": b"0.000000", "nan": b"nan", "infinite": b"inf"}.items():
    _changed(f"slope_{_name}", "faulty", _RESCALE, _raw("RescaleSlope", _value), truth=_nothing)
    _changed(f"slope_{_name}_in_one_slice", "faulty", _RESCALE, _raw("RescaleSlope", _value, only=4), truth=_nothing)
_changed("slope_is_text", "faulty", _RESCALE, _raw("RescaleSlope", b"one"), truth=_nothing)
_changed("slope_with_comma", "faulty", _RESCALE, _raw("RescaleSlope", b"1,5"), truth=_nothing)
_changed("slope_of_two_values", "faulty", _RESCALE, _raw("RescaleSlope", rb"1\2"), truth=_nothing)
_changed("slope_empty", "either", _RESCALE, _raw("RescaleSlope", b""))
_changed("slope_with_spaces", "readable", (), _raw("RescaleSlope", b"  1.0 "))
_changed("slope_with_exponent", "readable", (), _raw("RescaleSlope", b"10E-1"))
_changed("slope_of_many_digits", "readable", (), _raw("RescaleSlope", b"1.0000000000000000000000000"))
_changed("slope_of_two_equal_values", "either", _RESCALE, _raw("RescaleSlope", rb"1\1"))
_changed("intercept_nan", "faulty", _RESCALE, _raw("RescaleIntercept", b"nan"), truth=_nothing)
_changed("intercept_infinite", "faulty", _RESCALE, _raw("RescaleIntercept", b"-inf"), truth=_nothing)
_changed("intercept_is_text", "faulty", _RESCALE, _raw("RescaleIntercept", b"water"), truth=_nothing)
_changed("intercept_nan_in_one_slice", "faulty", _RESCALE, _raw("RescaleIntercept", b"nan", only=2), truth=_nothing)
_changed("intercept_empty", "either", _RESCALE, _raw("RescaleIntercept", b""), _ZERO)
_changed("intercept_with_exponent", "readable", (), _raw("RescaleIntercept", b"-1.024e3"))


@faulty("RESCALE_VARIES", *_RESCALE)
def slope_missing_in_one_slice_of_two(folder: Path) -> None:
    """Seven slices have a slope of two, one has none: its values would be half."""
    made = make_series(pixels=Pixels(2.0, 0.0))
    del made.slices[4].RescaleSlope, made.slices[4].RescaleIntercept
    save(folder, made.slices)


@faulty("RESCALE_VARIES", *_RESCALE)
def intercept_missing_in_one_slice(folder: Path) -> None:
    """Seven slices have an intercept of -1024, one has none."""
    made = make_series()
    del made.slices[4].RescaleIntercept
    save(folder, made.slices)


@either(*_TYPE, "BAD_HEADER")
def float_pixels_beside_integers(folder: Path) -> Truth:
    """PixelData and FloatPixelData in one file: the integers are those of the header."""
    made = make_series()
    for ds in made.slices:
        ds.FloatPixelData = stored_of(ds).astype("<f4").tobytes()
    save(folder, made.slices)
    return made.truth


@readable("RESCALE_VARIES")
def pet_with_a_slope_for_each_slice(folder: Path) -> Truth:
    """As PET scanners write it: every slice scaled to its own maximum."""
    made = make_series(pixels=Pixels(stored=16), modality="PT", DecayCorrection="START", Units="BQML")
    for index, ds in enumerate(made.slices):
        slope = float(numbers([(1700.0 + 90 * index) / 32767])[0])
        stored = np.rint(made.field(made.grid.points(index)) / slope).astype("<i2")
        set_format(ds, Pixels(signed=True, stored=16), stored.shape)
        ds.RescaleSlope, ds.RescaleIntercept = numbers([slope, 0])
        set_bytes(ds, stored.tobytes())
    save(folder, made.slices)
    return made.truth


def _bits_above(ds: Dataset, index: int) -> None:
    stored = stored_of(ds).astype("<u2")
    noise = np.random.default_rng(index).integers(0, 16, stored.shape, dtype="<u2") << 12
    set_bytes(ds, ((stored & 0x0FFF) | noise).astype("<u2").tobytes())


def _overlay_in_pixels(ds: Dataset, index: int) -> None:
    _bits_above(ds, index)
    ds.add_new(0x60000010, "US", ds.Rows)
    ds.add_new(0x60000011, "US", ds.Columns)
    ds.add_new(0x60000040, "CS", "G")
    ds.add_new(0x60000050, "SS", [1, 1])
    ds.add_new(0x60000100, "US", 16)
    ds.add_new(0x60000102, "US", 12)


def _overlay_apart(ds: Dataset, index: int) -> None:
    _overlay_in_pixels(ds, index)
    ds.PixelData = (stored_of(ds) & 0x0FFF).astype("<u2").tobytes()
    ds[0x60000100].value, ds[0x60000102].value = 1, 0
    ds.add_new(0x60003000, "OW", b"\xaa\x55" * (ds.Rows * ds.Columns // 16))


def _padding_range(ds: Dataset) -> None:
    """Some values lie in the range that is called padding; they are what they are."""
    ds.add_new(0x00280120, "US", 0)
    ds.add_new(0x00280121, "US", 1300)


def _left_aligned(ds: Dataset, index: int) -> None:
    set_bytes(ds, (stored_of(ds).astype("<u2") << 4).astype("<u2").tobytes())
    ds.HighBit = 15


_GARBAGE = ("BITS_ABOVE_HIGH_BIT",)
_changed("garbage_above_high_bit", "readable", _GARBAGE, _bits_above)
_changed("garbage_above_high_bit_signed", "readable", _GARBAGE, _bits_above, Pixels(None, 0.0, True), values=_LOW)
_changed("overlay_in_the_upper_bits", "readable", _GARBAGE, _overlay_in_pixels)
_changed("overlay_of_its_own", "readable", (), _overlay_apart)
_changed("stored_bits_at_the_top", "either", ("BAD_HIGH_BIT", *_TYPE), _left_aligned)
_changed("padding_range", "readable", (), lambda ds, k: _padding_range(ds), Pixels(1.0, 0.0, stored=16))
_changed("unused_bits_extend_the_sign", "readable", (), lambda ds, k: None, Pixels(None, 0.0, True), values=_LOW)


def _bit_tags(**tags: int) -> Callable[[Dataset, int], None]:
    return lambda ds, index: ds.update(tags)


_BITS = (*_TYPE, *_LENGTH, "BAD_HIGH_BIT", "EXTRA_BYTES", "BITS_ABOVE_HIGH_BIT", "BAD_HEADER")
_changed(
    "bits_allocated_8_for_16", "faulty", _BITS, _bit_tags(BitsAllocated=8, BitsStored=8, HighBit=7), truth=_nothing
)
_changed("bits_allocated_32_for_16", "faulty", _BITS, _bit_tags(BitsAllocated=32), truth=_nothing)
_changed("bits_allocated_zero", "faulty", _BITS, _bit_tags(BitsAllocated=0), truth=_nothing)
_changed("bits_allocated_12", "faulty", _BITS, _bit_tags(BitsAllocated=12), truth=_nothing)
_changed("bits_allocated_24", "faulty", _BITS, _bit_tags(BitsAllocated=24), truth=_nothing)
_changed("bits_allocated_64", "faulty", _BITS, _bit_tags(BitsAllocated=64, BitsStored=64, HighBit=63), truth=_nothing)
_changed("bits_stored_zero", "either", _BITS, _bit_tags(BitsStored=0))
_changed("bits_stored_beyond_allocated", "either", _BITS, _bit_tags(BitsStored=17, HighBit=16))
_changed("high_bit_wrong", "either", _BITS, _bit_tags(HighBit=15))
_changed("high_bit_missing", "either", _BITS, _drop("HighBit"))
_changed("bits_stored_missing", "either", _BITS, _drop("BitsStored"))
_changed("bits_allocated_missing", "faulty", _BITS, lambda ds, k: raw(ds, "BitsAllocated", "US", b""))
_changed("pixel_representation_missing", "either", _BITS, _drop("PixelRepresentation"))
_changed("pixel_representation_of_two", "faulty", _BITS, _bit_tags(PixelRepresentation=2), truth=_nothing)
_changed("samples_missing", "either", _BITS, _drop("SamplesPerPixel"))
_changed("samples_zero", "either", _BITS, _bit_tags(SamplesPerPixel=0))
_changed("samples_two", "faulty", _BITS, _bit_tags(SamplesPerPixel=2), truth=_nothing)
_changed("samples_three_for_one", "faulty", _BITS, _bit_tags(SamplesPerPixel=3), truth=_nothing)
_changed("photometric_missing", "either", _BITS, _drop("PhotometricInterpretation"))
_changed("photometric_unknown", "either", _BITS, lambda ds, k: ds.update({"PhotometricInterpretation": "GREY"}))
_changed("pixel_data_named_ob", "readable", (), lambda ds, k: setattr(ds["PixelData"], "VR", "OB"))
_changed("pixel_data_named_un", "either", _TYPE, lambda ds, k: raw(ds, "PixelData", "UN", bytes(ds.PixelData)))
_changed(
    "eight_bits_named_ow",
    "readable",
    (),
    lambda ds, k: setattr(ds["PixelData"], "VR", "OW"),
    Pixels(None, 0.0, allocated=8, stored=8),
    values=BYTE,
    grid=BYTE_GRID,
)

_ROUND = np.hypot(*np.meshgrid(np.linspace(-1, 1, 24), np.linspace(-1, 1, 20), indexing="ij")) > 1


def _padded(name: str, stored: int, pixels: Pixels, vr: str | None, tag: int | None = None) -> None:
    """Voxels outside a circle hold the padding value; it passes through the rescale like any other."""

    def build(folder: Path) -> Truth:
        made = make_series(pixels=pixels)
        for ds in made.slices:
            array = stored_of(ds).astype(pixels.dtype)
            array[_ROUND.T] = stored
            set_bytes(ds, array.tobytes())
            if vr is not None:
                ds.add_new(0x00280120, vr, stored if tag is None else tag)
        save(folder, made.slices)
        value = stored * (pixels.slope or 1.0) + pixels.intercept
        return replace(made.truth, hole=(_ROUND, value))

    add("readable", () if vr is None else ("PADDING_VALUES",), name, build)


_SIGNED = Pixels(1.0, 0.0, signed=True, stored=16)
_padded("padding_signed", -2000, _SIGNED, "SS")
_padded("padding_signed_named_us", -2000, _SIGNED, "US", 65536 - 2000)
_padded("padding_unsigned", 0, Pixels(), "US")
_padded("padding_high", 4095, Pixels(), "US")
_padded("padding_without_tag", -2000, _SIGNED, None)
_padded("padding_of_63536", 63536, Pixels(1.0, -1024.0, stored=16), "US")


@either("UNSUPPORTED_TYPE", "BAD_RESCALE")
def modality_lut(folder: Path) -> Truth:
    """A modality lookup table instead of slope and intercept: twice the stored value."""
    made = make_series(pixels=Pixels(2.0, 0.0))
    for ds in made.slices:
        del ds.RescaleSlope, ds.RescaleIntercept
        table = Dataset()
        table.add_new(0x00283002, "US", [4096, 0, 16])
        table.add_new(0x00283006, "OW", (2 * np.arange(4096, dtype="<u2")).tobytes())
        table.ModalityLUTType = "US"
        ds.ModalityLUTSequence = Items([table])
    save(folder, made.slices)
    return made.truth


@readable()
def voi_lut_is_not_applied(folder: Path) -> Truth:
    """A table for display changes no values."""
    made = make_series()
    for ds in made.slices:
        table = Dataset()
        table.add_new(0x00283002, "US", [4096, 0, 16])
        table.add_new(0x00283006, "OW", np.arange(4096, dtype="<u2")[::-1].tobytes())
        ds.VOILUTSequence = Items([table])
    save(folder, made.slices)
    return made.truth


@readable()
def real_world_values_are_not_applied(folder: Path) -> Truth:
    """A real world value mapping beside the rescale changes no values."""
    made = make_series(modality="MR", pixels=Pixels(1.0, 0.0))
    for ds in made.slices:
        mapping = Dataset()
        mapping.add_new(0x00409211, "US", 4095)
        mapping.add_new(0x00409216, "US", 0)
        mapping.RealWorldValueIntercept, mapping.RealWorldValueSlope = 7.0, 3.5
        ds.RealWorldValueMappingSequence = Items([mapping])
    save(folder, made.slices)
    return made.truth


@readable()
def private_scale_of_philips_is_not_applied(folder: Path) -> Truth:
    """Scale slope and intercept of (2005,100E) and (2005,100D) stand beside the rescale."""
    made = make_series(modality="MR", pixels=Pixels(1.0, 0.0))
    for ds in made.slices:
        block = ds.private_block(0x2005, "Philips MR Imaging DD 001", create=True)
        block.add_new(0x0D, "FL", 0.0)
        block.add_new(0x0E, "FL", 0.0123)
    save(folder, made.slices)
    return made.truth


def _floating(
    name: str, keyword: str, kind: str, codes: Sequence[str], spoil: float | None = None, **tags: str
) -> None:
    """Pixels as floating point numbers."""

    def build(folder: Path) -> Truth | None:
        made = make_series(Grid(), Field(base=12.5, gradient=(0.6, 0.4, 0.9)), Pixels(None, 0.0), modality="MR")
        double = keyword == "DoubleFloatPixelData"
        for index, ds in enumerate(made.slices):
            values = made.field(made.grid.points(index)).astype("<f8" if double else "<f4")
            if spoil is not None and index == 4:
                values[3, 5] = spoil
            for gone in ("PixelData", "BitsStored", "HighBit", "PixelRepresentation"):
                delattr(ds, gone)
            ds.BitsAllocated = 64 if double else 32
            setattr(ds, keyword, values.tobytes())
            for tag, value in tags.items():
                setattr(ds, tag, value)
        save(folder, made.slices)
        exact = replace(made.truth, tolerance=1e-3)
        return None if spoil is not None else exact

    add(kind, codes, name, build)  # type: ignore[arg-type]


_floating("float_pixels", "FloatPixelData", "readable", ())
_floating("double_pixels", "DoubleFloatPixelData", "readable", ())
_floating("float_pixels_with_nan", "FloatPixelData", "faulty", ("NON_FINITE",), np.nan)
_floating("float_pixels_with_infinity", "FloatPixelData", "faulty", ("NON_FINITE",), np.inf)


def _colour(name: str, photometric: str, planar: int = 0) -> None:
    """Three samples a pixel."""

    def build(folder: Path) -> None:
        made = make_series(BYTE_GRID, BYTE, Pixels(None, 0.0, allocated=8, stored=8))
        for ds in made.slices:
            grey = stored_of(ds)
            ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PlanarConfiguration = 3, photometric, planar
            set_bytes(ds, np.stack([grey, grey, grey], axis=0 if planar else -1).tobytes())
        save(folder, made.slices)

    add("faulty", ("UNSUPPORTED_TYPE",), name, build)


_colour("colour_rgb", "RGB")
_colour("colour_rgb_planes", "RGB", 1)
_colour("colour_ybr", "YBR_FULL")


@faulty("UNSUPPORTED_TYPE")
def colour_ybr_422(folder: Path) -> None:
    """Two samples a pixel on average."""
    made = make_series(BYTE_GRID, BYTE, Pixels(None, 0.0, allocated=8, stored=8))
    for ds in made.slices:
        ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PlanarConfiguration = 3, "YBR_FULL_422", 0
        set_bytes(ds, bytes(ds.PixelData) * 2)
    save(folder, made.slices)


@faulty("UNSUPPORTED_TYPE")
def colour_palette(folder: Path) -> None:
    """Indices into a table of colours are no quantities."""
    made = make_series(BYTE_GRID, BYTE, Pixels(None, 0.0, allocated=8, stored=8, photometric="PALETTE COLOR"))
    for ds in made.slices:
        for number, colour in enumerate(("Red", "Green", "Blue")):
            setattr(ds, f"{colour}PaletteColorLookupTableDescriptor", [256, 0, 16])
            ramp = np.arange(256, dtype="<u2")[:: 1 if number else -1] * 256
            setattr(ds, f"{colour}PaletteColorLookupTableData", ramp.astype("<u2").tobytes())
    save(folder, made.slices)


@either("UNSUPPORTED_TYPE")
def one_bit_pixels(folder: Path) -> Truth:
    """Eight pixels a byte, the first in the lowest bit: the sign of x."""
    grid = Grid(origin=(-9.0, -12.0, 30.0))
    made = make_series(grid, _Sign(), Pixels(None, 0.0, stored=16))
    for ds in made.slices:
        bits = np.packbits(stored_of(ds).astype(np.uint8).ravel(), bitorder="little").tobytes()
        ds.BitsAllocated, ds.BitsStored, ds.HighBit = 1, 1, 0
        set_bytes(ds, bits)
    save(folder, made.slices)
    return replace(made.truth, tolerance=0.0)


class _Sign(Field):
    """1 at positions left of the middle, else 0; every other millimetre of y turns it."""

    def __call__(self, points: np.ndarray) -> np.ndarray:
        x, y = points[..., 0], points[..., 1]
        return ((x > -0.4).astype(float) + (np.rint((y + 12) / 1.25) % 3 == 0)) % 2
