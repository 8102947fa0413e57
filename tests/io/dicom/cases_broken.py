"""Cases: files that end early, and headers that promise what the file does not hold."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from pathlib import Path

from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless

from tests.io.dicom.compress import compress
from tests.io.dicom.phantom import Grid, Truth, element, encode, make_series, raw, save, set_bytes, stored_of
from tests.io.dicom.registry import Expected, add, either, faulty, readable

_CUT = ("TRUNCATED_PIXEL_DATA", "TRUNCATED_FILE", "HEADER_PROMISES_TOO_MUCH")
_HEADER = (*_CUT, "NOT_DICOM", "BAD_HEADER", "UNDECODABLE", "MISSING_SLICE", "NOT_AN_IMAGE")


def _cut(
    name: str,
    keep: Callable[[bytes, Dataset], int],
    only: int | None = 4,
    codes: Sequence[str] = _CUT,
    syntax: str = ExplicitVRLittleEndian,
) -> None:
    """One slice (or all) cut to ``keep`` bytes. Where it is the last one, the others may be read."""

    def build(folder: Path) -> Expected:
        made = make_series()
        for index, path in enumerate(save(folder, made.slices, syntax=syntax)):
            if only in (None, index):
                data = path.read_bytes()
                path.write_bytes(data[: keep(data, made.slices[index])])
        rest = {0: (1, 8), 7: (0, 7)}.get(only if only is not None else -1)
        return Expected([[Grid().part(*rest).truth()]] if rest else [])

    add("faulty", codes, name, build)


def _pixels_at(data: bytes, ds: Dataset) -> int:
    return len(data) - len(ds.PixelData)


_cut("pixels_cut_in_half", lambda data, ds: _pixels_at(data, ds) + len(ds.PixelData) // 2)
_cut("pixels_cut_in_half_in_the_first_slice", lambda data, ds: len(data) - 480, only=0)
_cut("pixels_cut_in_half_in_the_last_slice", lambda data, ds: len(data) - 480, only=7)
_cut("pixels_cut_in_half_in_all_slices", lambda data, ds: len(data) - 480, only=None)
_cut("pixels_lack_a_byte", lambda data, ds: len(data) - 1)
_cut("pixels_lack_a_pixel", lambda data, ds: len(data) - 2)
_cut("pixels_lack_a_row", lambda data, ds: len(data) - 48)
_cut("pixels_lack_a_row_in_all_slices", lambda data, ds: len(data) - 48, only=None)
_cut("pixels_all_gone", _pixels_at)
_cut("pixels_cut_in_half_implicit", lambda data, ds: len(data) - 480, syntax=ImplicitVRLittleEndian)
_cut("cut_before_the_pixels", lambda data, ds: _pixels_at(data, ds) - 12, codes=_HEADER)
_cut("cut_in_the_pixel_element", lambda data, ds: _pixels_at(data, ds) - 3, codes=_HEADER)
_cut("cut_in_the_header", lambda data, ds: 600, codes=_HEADER)
_cut("cut_in_the_header_of_all_slices", lambda data, ds: 600, only=None, codes=_HEADER)
_cut("cut_in_the_file_meta", lambda data, ds: 200, codes=_HEADER)
_cut("cut_after_the_file_meta", lambda data, ds: 144 + struct.unpack("<I", data[140:144])[0], codes=_HEADER)
_cut("cut_to_the_preamble", lambda data, ds: 132, codes=_HEADER)
_cut("cut_to_nothing", lambda data, ds: 0, codes=(*_HEADER, "EMPTY_FILE"))


def _promising(name: str, codes: Sequence[str], change: Callable[[Dataset], None], only: int | None = None) -> None:
    """A header (of all slices, or of one) that differs from its pixels: nothing may be read from it."""

    def build(folder: Path) -> Expected:
        made = make_series()
        for index, ds in enumerate(made.slices):
            if only in (None, index):
                change(ds)
        save(folder, made.slices)
        return Expected()

    add("faulty", codes, name, build)


def _tags(**tags: int | str) -> Callable[[Dataset], None]:
    return lambda ds: ds.update(tags)


_MORE = (*_CUT, "OVER_BUDGET", "SLICE_SIZE_DIFFERS", "MISSING_SLICE", "BAD_HEADER", "UNDECODABLE", "UNSUPPORTED_TYPE")
_NONE = (*_MORE, "NOT_AN_IMAGE", "NO_GEOMETRY")
_promising("more_rows", _MORE, _tags(Rows=40))
_promising("more_rows_in_one_slice", _MORE, _tags(Rows=21), only=4)
_promising("more_columns", _MORE, _tags(Columns=25))
_promising("more_columns_in_one_slice", _MORE, _tags(Columns=48), only=3)
_promising("rows_and_columns_of_65535", _MORE, _tags(Rows=65535, Columns=65535))
_promising("more_frames", _MORE, _tags(NumberOfFrames="2"))
_promising("two_thousand_million_frames", _MORE, _tags(NumberOfFrames="2000000000"))
_promising("frames_negative", _NONE, _tags(NumberOfFrames="-1"))
_promising("frames_are_text", _NONE, lambda ds: raw(ds, "NumberOfFrames", "IS", b"many"))
_promising("rows_zero", _NONE, _tags(Rows=0))
_promising("columns_zero", _NONE, _tags(Columns=0))
_promising("rows_missing", _NONE, lambda ds: delattr(ds, "Rows"))
_promising("columns_missing", _NONE, lambda ds: delattr(ds, "Columns"))
_promising("rows_as_text", _NONE, lambda ds: raw(ds, "Rows", "LO", b"twenty"))
_promising("rows_of_one_byte", _NONE, lambda ds: raw(ds, "Rows", "US", b"") or setattr(ds, "Columns", 24))
_promising("pixels_missing", _NONE, lambda ds: delattr(ds, "PixelData"))
_promising("pixels_missing_in_one_slice", _NONE, lambda ds: delattr(ds, "PixelData"), only=4)
_promising("pixels_empty", _NONE, lambda ds: set_bytes(ds, b""))
_promising("pixels_empty_in_one_slice", _NONE, lambda ds: set_bytes(ds, b""), only=4)
_promising("fewer_columns", (*_MORE, "EXTRA_BYTES"), _tags(Columns=12))
_promising("fewer_rows_by_half", (*_MORE, "EXTRA_BYTES"), _tags(Rows=10))


@either("SEVERAL_FRAMES", "BAD_HEADER", *_MORE)
def frames_zero(folder: Path) -> Truth:
    """NumberOfFrames says zero in a single-frame series."""
    made = make_series()
    for ds in made.slices:
        raw(ds, "NumberOfFrames", "IS", b"0")
    save(folder, made.slices)
    return made.truth


@either(*_NONE)
def rows_of_two_values(folder: Path) -> Truth:
    """Rows says 20 twice."""
    made = make_series()
    for ds in made.slices:
        raw(ds, "Rows", "US", struct.pack("<HH", 20, 20))
    save(folder, made.slices)
    return made.truth


@readable()
def frames_one(folder: Path) -> Truth:
    """NumberOfFrames says one in a single-frame series."""
    made = make_series()
    for ds in made.slices:
        ds.NumberOfFrames = 1
    save(folder, made.slices)
    return made.truth


@readable()
def frames_empty(folder: Path) -> Truth:
    """NumberOfFrames is there, without a value."""
    made = make_series()
    for ds in made.slices:
        raw(ds, "NumberOfFrames", "IS", b"")
    save(folder, made.slices)
    return made.truth


@readable()
def extra_byte_of_padding(folder: Path) -> Truth:
    """Two bytes of padding where none are needed."""
    made = make_series(Grid(columns=23, rows=19))
    for ds in made.slices:
        set_bytes(ds, bytes(ds.PixelData) + b"\0\0")
    save(folder, made.slices)
    return made.truth


@either("EXTRA_BYTES")
def extra_bytes_after_the_pixels(folder: Path) -> Truth:
    """PixelData holds 100 bytes more than its rows and columns need."""
    made = make_series()
    for ds in made.slices:
        set_bytes(ds, bytes(ds.PixelData) + b"\x7f" * 100)
    save(folder, made.slices)
    return made.truth


@either("EXTRA_BYTES")
def extra_bytes_in_one_slice(folder: Path) -> Truth:
    """PixelData of one slice holds 64 bytes more than its rows and columns need."""
    made = make_series()
    set_bytes(made.slices[4], bytes(made.slices[4].PixelData) + b"\0" * 64)
    save(folder, made.slices)
    return made.truth


def _undecidable(name: str, change: Callable[[Dataset], None]) -> None:
    """The pixels are more than the header says; whether rows lack or bytes follow, the file does not tell."""

    def build(folder: Path) -> None:
        made = make_series()
        for ds in made.slices:
            change(ds)
        save(folder, made.slices)

    add("faulty", ("EXTRA_BYTES", "SLICE_SIZE_DIFFERS", "UNSUPPORTED_TYPE"), name, build, undecidable=True)


_undecidable("fewer_rows", _tags(Rows=18))
_undecidable("fewer_columns_by_two", _tags(Columns=22))


def _length(name: str, length: int, codes: Sequence[str] = (*_MORE, "EXTRA_BYTES"), kind: str = "either") -> None:
    """The length of the PixelData element is a lie."""

    def build(folder: Path) -> Expected:
        made = make_series()
        for path, ds in zip(save(folder, made.slices), made.slices, strict=True):
            data, size = path.read_bytes(), len(ds.PixelData)
            path.write_bytes(data[: len(data) - size - 4] + struct.pack("<I", length) + data[len(data) - size :])
        return Expected([[made.truth]])

    add(kind, codes, name, build)  # type: ignore[arg-type]


_length("pixel_length_too_large", 2000, kind="faulty")
_length("pixel_length_of_four_gigabytes", 0xFFFFFFFE, kind="faulty")
_length("pixel_length_undefined", 0xFFFFFFFF)
_length("pixel_length_zero", 0)
_length("pixel_length_too_small", 100)
_length("pixel_length_odd", 961)


def _element_length(name: str, keyword: int, value: int, codes: Sequence[str] = _HEADER) -> None:
    """The length of a header element of one slice reaches beyond the file."""

    def build(folder: Path) -> None:
        made = make_series()
        path = save(folder, made.slices)[4]
        data = path.read_bytes()
        at = data.index(struct.pack("<HH", keyword >> 16, keyword & 0xFFFF), 400)
        path.write_bytes(data[: at + 6] + struct.pack("<H", value) + data[at + 8 :])

    add("faulty", (*codes, "NO_GEOMETRY", "BAD_GEOMETRY", "SINGLE_SLICE", "UNSUPPORTED_TYPE"), name, build)


_element_length("length_of_a_header_element_too_large", 0x00200011, 0xFFFE)
_element_length("length_of_the_position_too_large", 0x00200032, 0x7FFE)
_element_length("length_of_the_rows_too_large", 0x00280010, 0x0FFE)


@faulty(*_HEADER)
def zeros_inside_the_header(folder: Path) -> None:
    """A block of one slice's header was lost to zeros."""
    made = make_series()
    path = save(folder, made.slices)[4]
    data = path.read_bytes()
    path.write_bytes(data[:500] + bytes(300) + data[800:])


@faulty(*_HEADER, "SINGLE_SLICE")
def unterminated_sequence(folder: Path) -> None:
    """A sequence of undefined length never ends in one slice."""
    made = make_series()
    path = save(folder, made.slices)[4]
    data = path.read_bytes()
    at = data.index(struct.pack("<HH", 0x20, 0x0D))
    start = struct.pack("<HH2sHI", 0x08, 0x1140, b"SQ", 0, 0xFFFFFFFF) + struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF)
    path.write_bytes(data[:at] + start + data[at:])


@either(*_HEADER)
def delimiter_missing_after_compressed_pixels(folder: Path) -> Truth:
    """The fragments are whole; the sequence delimiter is not there."""
    made = make_series()
    for ds in made.slices:
        compress(ds, RLELossless)
    for path in save(folder, made.slices, syntax=RLELossless):
        path.write_bytes(path.read_bytes()[:-8])
    return made.truth


@faulty(*_HEADER, "UNDECODABLE")
def compressed_file_cut(folder: Path) -> None:
    """A file of compressed pixels ends within its fragment."""
    made = make_series()
    for ds in made.slices:
        compress(ds, RLELossless)
    path = save(folder, made.slices, syntax=RLELossless)[5]
    data = path.read_bytes()
    path.write_bytes(data[: len(data) - 200])


@faulty(*_HEADER, "UNDECODABLE")
def fragment_length_beyond_the_file(folder: Path) -> None:
    """The length of a fragment is two thousand million."""
    made = make_series()
    for ds in made.slices:
        compress(ds, RLELossless)
    path = save(folder, made.slices, syntax=RLELossless)[5]
    data = path.read_bytes()
    at = data.rindex(struct.pack("<HH", 0xFFFE, 0xE000))
    path.write_bytes(data[: at + 4] + struct.pack("<I", 2_000_000_000) + data[at + 8 :])


@readable()
def large_private_element_is_cheap(folder: Path) -> Truth:
    """Two megabytes of private data before the pixels."""
    made = make_series(Grid(slices=3))
    for path in save(folder, made.slices):
        data = path.read_bytes()
        at = data.index(struct.pack("<HH", 0x28, 0x02))
        block = element(0x00270010, "LO", b"PHANTOM ") + element(0x00271001, "OB", bytes(2_000_000))
        path.write_bytes(data[:at] + block + data[at:])
    return made.truth


@faulty("MISSING_SLICE", "UNEVEN_SLICES", *_CUT)
def unreadable_slice_leaves_a_gap(folder: Path) -> None:
    """A slice overwritten by text: what is left has a gap."""
    made = make_series()
    paths = save(folder, made.slices)
    paths[3].write_text("disk error " * 50)


@faulty(*_CUT, "EXTRA_BYTES", "SLICE_SIZE_DIFFERS")
def rows_exchanged_with_a_shorter_image(folder: Path) -> None:
    """One slice holds the pixels of a smaller image under an unchanged header."""
    made = make_series()
    set_bytes(made.slices[2], stored_of(make_series(Grid(columns=12, rows=10)).slices[2]).tobytes())
    save(folder, made.slices)


@readable()
def cut_after_the_pixels(folder: Path) -> Truth:
    """The file ends within an element that follows the pixels."""
    made = make_series()
    for path in save(folder, made.slices):
        path.write_bytes(path.read_bytes() + element(0xFFFCFFFC, "OB", bytes(100))[:40])
    return made.truth


@faulty(*_NONE)
def pixels_at_an_address(folder: Path) -> None:
    """JPIP: the pixels stand at a URL."""
    made = make_series()
    for ds in made.slices:
        del ds.PixelData
        ds.PixelDataProviderURL = "https://example.org/image.jp2"
    save(folder, made.slices, syntax="1.2.840.10008.1.2.4.94")


@faulty("MISSING_SLICE", *_CUT)
def two_faults_at_once(folder: Path) -> None:
    """A slice is missing, another is cut."""
    made = make_series()
    paths = save(folder, [ds for index, ds in enumerate(made.slices) if index != 2])
    paths[4].write_bytes(paths[4].read_bytes()[:-300])


@readable()
def written_by_pydicom_as_it_comes(folder: Path) -> Truth:
    """The plainest file there is."""
    made = make_series()
    for index, ds in enumerate(made.slices):
        (folder / f"{index}.dcm").write_bytes(encode(ds))
    return made.truth
