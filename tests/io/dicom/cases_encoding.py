"""Cases: transfer syntaxes, compression, and unusual but lawful bytes of the data set."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from openjpeg.utils import encode_array
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate_extended
from pydicom.sequence import Sequence as Items
from pydicom.uid import (
    JPEG2000,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from tests.io.dicom.compress import (
    JPEG_EXTENDED,
    JPEG_LOSSLESS,
    JPEG_PROCESS_14,
    SYNTAXES,
    compress,
    encoded_frames,
    fragments_of,
    items,
    set_frames,
)
from tests.io.dicom.phantom import (
    BYTE,
    BYTE_GRID,
    Field,
    Grid,
    Made,
    Pixels,
    Truth,
    element,
    encode,
    make_series,
    raw,
    save,
    set_bytes,
    stored_of,
    uid,
)
from tests.io.dicom.registry import add, either, faulty, readable

WIDE = Grid(columns=40, rows=36, slices=5)
"""Large enough for the six resolutions of the JPEG 2000 encoder."""
_LOW = Field(base=-300.0, gradient=(6.0, 4.0, 2.0))
_SIGNED = Pixels(None, 0.0, signed=True, stored=16)
_EIGHT = Pixels(None, 0.0, allocated=8, stored=8)
_GARBAGE = ("BITS_ABOVE_HIGH_BIT",)
_UNREAD = ("UNDECODABLE", "UNSUPPORTED_TYPE")


def _native(
    name: str, syntax: str, pixels: Pixels | None = None, values: Field | None = None, grid: Grid | None = None
) -> None:
    """Uncompressed pixels in a transfer syntax."""

    def build(folder: Path) -> Truth:
        made = make_series(grid, values, pixels)
        for ds in made.slices:
            if syntax == ExplicitVRBigEndian and ds.BitsAllocated > 8:
                set_bytes(ds, stored_of(ds).byteswap().tobytes())
        save(folder, made.slices, syntax=syntax)
        return made.truth

    add("readable", (), name, build)


_ODD = replace(BYTE_GRID, columns=23, rows=19)
_native("implicit", ImplicitVRLittleEndian)
_native("implicit_signed", ImplicitVRLittleEndian, _SIGNED, _LOW)
_native("deflated", DeflatedExplicitVRLittleEndian)
_native("big_endian_16_bits", ExplicitVRBigEndian)
_native("big_endian_signed", ExplicitVRBigEndian, _SIGNED, _LOW)
_native("big_endian_32_bits", ExplicitVRBigEndian, Pixels(None, 0.0, allocated=32, stored=32))
_native("big_endian_8_bits_named_ob", ExplicitVRBigEndian, _EIGHT, BYTE, BYTE_GRID)
_native("big_endian_8_bits_of_odd_length", ExplicitVRBigEndian, _EIGHT, BYTE, _ODD)
_native("implicit_8_bits_of_odd_length", ImplicitVRLittleEndian, _EIGHT, BYTE, _ODD)


def _bytes(
    name: str, kind: str, codes: Sequence[str], change: Callable[[bytes, Dataset], bytes], *, whole: bool = True
) -> None:
    """A plain series whose files are worked on as bytes."""

    def build(folder: Path) -> Truth | None:
        made = make_series()
        for path, ds in zip(save(folder, made.slices), made.slices, strict=True):
            path.write_bytes(change(path.read_bytes(), ds))
        return made.truth if whole else None

    add(kind, codes, name, build)  # type: ignore[arg-type]


def _meta_length(data: bytes) -> int:
    """Where the data set begins."""
    return 144 + int(struct.unpack("<I", data[140:144])[0])


def _without_syntax(data: bytes, ds: Dataset) -> bytes:
    meta = data[144 : _meta_length(data)]
    at = meta.index(struct.pack("<HH", 2, 0x10))
    length = struct.unpack("<H", meta[at + 6 : at + 8])[0]
    meta = meta[:at] + meta[at + 8 + length :]
    return data[:140] + struct.pack("<I", len(meta)) + meta + data[_meta_length(data) :]


def _other_syntax(data: bytes, syntax: str) -> bytes:
    meta = data[144 : _meta_length(data)]
    at = meta.index(struct.pack("<HH", 2, 0x10))
    length = struct.unpack("<H", meta[at + 6 : at + 8])[0]
    text = syntax.encode() + b"\0" * (len(syntax) % 2)
    meta = meta[:at] + element(0x00020010, "UI", text) + meta[at + 8 + length :]
    return data[:140] + struct.pack("<I", len(meta)) + meta + data[_meta_length(data) :]


def _before_pixels(extra: bytes) -> Callable[[bytes, Dataset], bytes]:
    def change(data: bytes, ds: Dataset) -> bytes:
        at = len(data) - len(ds.PixelData) - 12
        return data[:at] + extra + data[at:]

    return change


def _at_group(data: bytes, group: int, extra: bytes) -> bytes:
    """Bytes put in before the first element of a group (an even group of the phantom)."""
    at = data.index(struct.pack("<HH", group, {0x18: 0x50, 0x20: 0x0D, 0x28: 0x02}[group]))
    return data[:at] + extra + data[at:]


_NOT_READ = (
    "UNDECODABLE",
    "TRUNCATED_FILE",
    "NOT_DICOM",
    "BAD_HEADER",
    "UNSUPPORTED_TYPE",
    "UNKNOWN_FORMAT",
)
_bytes("implicit_without_preamble", "readable", (), lambda data, ds: encode(ds, ImplicitVRLittleEndian, preamble=False))
_bytes("explicit_without_preamble", "readable", (), lambda data, ds: encode(ds, preamble=False))
_bytes("preamble_of_text", "readable", (), lambda data, ds: b"II*\0" + b"text " * 24 + b"    " + data[128:])
_bytes("meta_without_preamble", "either", _NOT_READ, lambda data, ds: data[132:])
_bytes("meta_length_wrong", "readable", (), lambda data, ds: data[:140] + struct.pack("<I", 64) + data[144:])
_bytes("meta_length_missing", "readable", (), lambda data, ds: data[:132] + data[144:])
_bytes("transfer_syntax_missing", "either", _NOT_READ, _without_syntax)
_bytes("meta_missing_implicit", "either", _NOT_READ, lambda d, ds: d[:132] + encode(ds, ImplicitVRLittleEndian, False))
_bytes("meta_missing_explicit", "either", _NOT_READ, lambda d, ds: d[:132] + encode(ds, preamble=False))
_bytes(
    "syntax_says_explicit_is_implicit",
    "either",
    _NOT_READ,
    lambda d, ds: _other_syntax(encode(ds, ImplicitVRLittleEndian), ExplicitVRLittleEndian),
)
_bytes("syntax_says_implicit_is_explicit", "either", _NOT_READ, lambda d, ds: _other_syntax(d, ImplicitVRLittleEndian))
_bytes("syntax_says_big_endian_is_little", "either", _NOT_READ, lambda d, ds: _other_syntax(d, ExplicitVRBigEndian))
_bytes("syntax_says_rle_is_native", "faulty", _NOT_READ, lambda d, ds: _other_syntax(d, RLELossless))
_bytes("syntax_says_jpeg_is_native", "faulty", _NOT_READ, lambda d, ds: _other_syntax(d, JPEG_LOSSLESS))
_bytes(
    "syntax_says_deflated_is_not", "faulty", _NOT_READ, lambda d, ds: _other_syntax(d, DeflatedExplicitVRLittleEndian)
)
_bytes("syntax_unknown", "either", _NOT_READ, lambda d, ds: _other_syntax(d, "1.2.3.4.5"))
_bytes("syntax_of_video", "either", (*_NOT_READ, *_UNREAD), lambda d, ds: _other_syntax(d, "1.2.840.10008.1.2.4.102"))
_bytes("syntax_padded_with_space", "readable", (), lambda d, ds: _other_syntax(d, ExplicitVRLittleEndian + " "))
_bytes("trailing_padding_element", "readable", (), lambda d, ds: d + element(0xFFFCFFFC, "OB", b"\0" * 64))
_bytes("trailing_signature", "readable", (), lambda d, ds: d + element(0xFFFAFFFA, "SQ", b""))
_bytes("trailing_zeros", "readable", (), lambda d, ds: d + b"\0" * 512)
_bytes(
    "trailing_garbage",
    "either",
    ("EXTRA_BYTES", "TRUNCATED_FILE", "BAD_HEADER"),
    lambda d, ds: d + b"\xde\xad\xbe\xef" * 33,
)
_bytes("trailing_newline", "readable", (), lambda d, ds: d + b"\r\n")
_bytes(
    "long_text_before_pixels",
    "readable",
    (),
    lambda d, ds: _at_group(d, 0x28, element(0x00204000, "UT", b"x" * 100_000)),
)
_bytes(
    "group_lengths",
    "readable",
    (),
    lambda d, ds: _at_group(
        _at_group(d, 0x28, element(0x00280000, "UL", struct.pack("<I", 999))),
        0x20,
        element(0x00200000, "UL", struct.pack("<I", 7)),
    ),
)
_bytes("position_known_as_un", "either", ("NO_GEOMETRY", "BAD_GEOMETRY"), lambda d, ds: _position_as_un(d))
_bytes(
    "private_block_of_half_a_megabyte",
    "readable",
    (),
    lambda d, ds: _at_group(d, 0x28, _private(b"\xe0\x7f\x10\x00OW" * 80_000)),
)
_bytes(
    "private_data_like_a_file",
    "readable",
    (),
    lambda d, ds: _at_group(d, 0x28, _private(b"\0" * 128 + b"DICM" + d[132:])),
)
_bytes(
    "private_after_pixels",
    "readable",
    (),
    lambda d, ds: d + element(0x7FE10010, "LO", b"PHANTOM ") + element(0x7FE11001, "OB", bytes(100)),
)
_bytes(
    "element_out_of_order",
    "either",
    ("BAD_HEADER",),
    lambda d, ds: _before_pixels(element(0x00200105, "IS", b"1 "))(d, ds),
)
_bytes("position_stands_twice_the_same", "either", ("BAD_HEADER", "BAD_GEOMETRY"), lambda d, ds: _position_twice(d))
_bytes("pixels_stand_twice", "either", ("BAD_HEADER", "EXTRA_BYTES"), lambda d, ds: d + d[-len(ds.PixelData) - 12 :])


def _private(content: bytes) -> bytes:
    return element(0x00270010, "LO", b"PHANTOM ") + element(0x00271001, "OB", content + b"\0" * (len(content) % 2))


def _position(data: bytes) -> tuple[int, int]:
    at = data.index(struct.pack("<HH", 0x20, 0x32) + b"DS")
    return at, at + 8 + int(struct.unpack("<H", data[at + 6 : at + 8])[0])


def _position_as_un(data: bytes) -> bytes:
    start, stop = _position(data)
    return data[:start] + element(0x00200032, "UN", data[start + 8 : stop]) + data[stop:]


def _position_twice(data: bytes) -> bytes:
    start, stop = _position(data)
    return data[:stop] + data[start:stop] + data[stop:]


@either("NO_GEOMETRY", "BAD_GEOMETRY", "TRUNCATED_FILE", "BAD_HEADER", "UNDECODABLE")
def pixel_data_of_undefined_length_natively(folder: Path) -> Truth:
    """Native pixels in one item of undefined length, in an uncompressed transfer syntax."""
    made = make_series()
    for path, ds in zip(save(folder, made.slices), made.slices, strict=True):
        data = path.read_bytes()
        head = data[: len(data) - len(ds.PixelData) - 12]
        body = items([bytes(ds.PixelData)]) + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
        path.write_bytes(head + struct.pack("<HH2sHI", 0x7FE0, 0x10, b"OW", 0, 0xFFFFFFFF) + body)
    return made.truth


def _dataset(
    name: str, change: Callable[[Dataset, int], None], syntax: str = ExplicitVRLittleEndian, kind: str = "readable"
) -> None:
    """A readable series with a change to the data set."""

    def build(folder: Path) -> Truth:
        made = make_series()
        for index, ds in enumerate(made.slices):
            change(ds, index)
        save(folder, made.slices, syntax=syntax)
        return made.truth

    add(kind, ("BAD_HEADER", "UNDECODABLE"), name, build) if kind == "either" else add("readable", (), name, build)


def _icon(undefined: bool) -> Callable[[Dataset, int], None]:
    """A small picture with rows, columns and pixels of its own, before those that count."""

    def change(ds: Dataset, index: int) -> None:
        icon = Dataset()
        icon.SamplesPerPixel, icon.PhotometricInterpretation, icon.Rows, icon.Columns = 1, "MONOCHROME2", 4, 4
        icon.BitsAllocated, icon.BitsStored, icon.HighBit, icon.PixelRepresentation = 8, 8, 7, 0
        icon.add_new(0x7FE00010, "OB", bytes(range(16)))
        icon.is_undefined_length_sequence_item = undefined
        ds.IconImageSequence = Items([icon])
        ds["IconImageSequence"].is_undefined_length = undefined

    return change


def _nested(depth: int) -> Callable[[Dataset, int], None]:
    """Sequences in sequences, each with a position and rescale that do not count."""

    def change(ds: Dataset, index: int) -> None:
        inner = Dataset()
        inner.ImagePositionPatient, inner.RescaleSlope, inner.Rows = ["1", "2", "3"], "7", 3
        for _ in range(depth):
            outer = Dataset()
            outer.ReferencedImageSequence = Items([inner])
            outer["ReferencedImageSequence"].is_undefined_length = True
            outer.is_undefined_length_sequence_item = True
            outer.ImagePositionPatient = ["4", "5", "6"]
            inner = outer
        ds.ReferencedImageSequence = inner.ReferencedImageSequence
        ds["ReferencedImageSequence"].is_undefined_length = True

    return change


_dataset("icon_before_the_image", _icon(False))
_dataset("icon_of_undefined_length", _icon(True))
_dataset("icon_of_undefined_length_implicit", _icon(True), ImplicitVRLittleEndian)
_dataset("sequences_three_deep", _nested(3))
_dataset("sequences_twelve_deep", _nested(12))
_dataset("sequences_forty_deep", _nested(40), kind="either")
_dataset("sequences_three_deep_implicit", _nested(3), ImplicitVRLittleEndian)
_dataset("sequences_three_deep_deflated", _nested(3), DeflatedExplicitVRLittleEndian)
_dataset("empty_sequence", lambda ds, k: setattr(ds, "ReferencedImageSequence", Items([])))


def _name(name: str, character_set: str, text: bytes) -> None:
    """A series whose names are bytes of some character set."""

    def build(folder: Path) -> Truth:
        made = make_series()
        for ds in made.slices:
            raw(ds, "PatientName", "PN", text + b" " * (len(text) % 2))
            raw(ds, "SeriesDescription", "LO", text)
        plain = element(0x00080005, "CS", b"ISO_IR 100")
        other = element(0x00080005, "CS", character_set.encode() + b" " * (len(character_set) % 2))
        for path in save(folder, made.slices):
            path.write_bytes(path.read_bytes().replace(plain, other))
        return made.truth

    add("readable", (), name, build)


_name("names_in_latin_1", "ISO_IR 100", "Müller^Jörg".encode("latin-1"))
_name("names_in_utf_8", "ISO_IR 192", "Ζωή^王^😀".encode())
_name("names_in_japanese", "\\ISO 2022 IR 87", b"Yamada^Tarou=\x1b$B;3ED\x1b(B^\x1b$BB@O:\x1b(B")
_name("names_in_gb18030", "GB18030", "王^小东".encode("gb18030"))
_name("names_in_an_unknown_character_set", "ISO_IR 999", b"M\xfcller^J\xf6rg")
_name("names_in_the_wrong_character_set", "ISO_IR 192", b"M\xfcller^\xff\xfe")
_dataset("character_set_missing", lambda ds, k: ds.pop("SpecificCharacterSet"))
_dataset("name_of_two_kilobytes", lambda ds, k: raw(ds, "PatientName", "PN", b"A^" * 1000))
_dataset("dates_are_text", lambda ds, k: raw(ds, "StudyDate", "DA", b"tomorrow"))


def _unknown_vr(ds: Dataset, index: int) -> None:
    block = ds.private_block(0x0019, "PHANTOM", create=True)
    block.add_new(1, "UN", struct.pack("<HHI", 0xFFFE, 0xE000, 0) * 3)
    block.add_new(2, "UN", bytes(range(256)))
    block.add_new(3, "SQ", Items([Dataset()]))


_dataset("private_elements_of_unknown_kind", _unknown_vr)
_dataset("private_elements_of_unknown_kind_implicit", _unknown_vr, ImplicitVRLittleEndian)


@readable()
def private_sequence_of_undefined_length_as_un(folder: Path) -> Truth:
    """VR UN of undefined length holds implicit little-endian items (PS3.5 6.2.2)."""
    made = make_series()
    inner = struct.pack("<HHI", 0x0020, 0x0032, 6) + rb"1\2\3 "
    item = struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF) + inner + struct.pack("<HHI", 0xFFFE, 0xE00D, 0)
    body = item * 2 + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
    extra = element(0x00190010, "LO", b"PHANTOM ") + struct.pack("<HH2sHI", 0x19, 0x1001, b"UN", 0, 0xFFFFFFFF) + body
    for path in save(folder, made.slices):
        path.write_bytes(_at_group(path.read_bytes(), 0x20, extra))
    return made.truth


def _compressed(
    name: str,
    syntax: str,
    pixels: Pixels | None = None,
    values: Field | None = None,
    grid: Grid | None = None,
    kind: str = "readable",
    codes: Sequence[str] = (),
    change: Callable[[Dataset], None] | None = None,
    tolerance: float = 1.0,
    **options: object,
) -> None:
    """A series of compressed slices."""

    def build(folder: Path) -> Truth:
        made = make_series(grid, values, pixels)
        for ds in made.slices:
            compress(ds, syntax, **options)
            if change is not None:
                change(ds)
        save(folder, made.slices, syntax=syntax)
        return replace(made.truth, tolerance=tolerance)

    add(kind, codes, name, build)  # type: ignore[arg-type]


_BYTES_WIDE = replace(BYTE_GRID, columns=40, rows=36, spacing=(0.5, 0.7), slices=5)
for _name_, _syntax in SYNTAXES.items():
    _compressed(_name_, _syntax, grid=WIDE)
    _compressed(f"{_name_}_16_bits", _syntax, Pixels(1.0, -20000.0, stored=16), grid=WIDE)
    _compressed(f"{_name_}_8_bits", _syntax, _EIGHT, BYTE, _BYTES_WIDE)
    if _syntax != JPEG_LOSSLESS:  # gdcm does not encode it
        _compressed(f"{_name_}_8_bits_odd_matrix", _syntax, _EIGHT, BYTE, replace(_BYTES_WIDE, columns=37, rows=33))
    _compressed(f"{_name_}_signed", _syntax, _SIGNED, _LOW, WIDE)
    _compressed(f"{_name_}_signed_12_bits", _syntax, Pixels(None, 0.0, signed=True), _LOW, WIDE, "either", _UNREAD)
    _compressed(
        f"{_name_}_without_offset_table", _syntax, grid=WIDE, change=lambda ds: set_frames(ds, items(fragments_of(ds)))
    )
_compressed("jpeg_process_14", JPEG_PROCESS_14)
_compressed(
    "jpeg_ls_near_lossless",
    JPEGLSNearLossless,
    grid=WIDE,
    codes=("LOSSY_COMPRESSION",),
    tolerance=2.5,
    jls_error=2,
    change=lambda ds: ds.update({"LossyImageCompression": "01"}),
)
_compressed(
    "jpeg_2000_lossy",
    JPEG2000,
    grid=WIDE,
    codes=("LOSSY_COMPRESSION",),
    tolerance=4.0,
    j2k_psnr=[80],
    change=lambda ds: ds.update({"LossyImageCompression": "01"}),
)
_compressed(
    "jpeg_2000_lossy_without_tag", JPEG2000, grid=WIDE, codes=("LOSSY_COMPRESSION",), tolerance=4.0, j2k_psnr=[80]
)
_compressed("jpeg_baseline", JPEGBaseline8Bit, _EIGHT, BYTE, BYTE_GRID, codes=("LOSSY_COMPRESSION",), tolerance=3.0)
_compressed("jpeg_extended_12_bits", JPEG_EXTENDED, None, None, None, "either", _UNREAD, tolerance=4.0)


def _split(ds: Dataset) -> None:
    """Each frame in three fragments."""
    frame = b"".join(fragments_of(ds))
    third = len(frame) // 6 * 2
    set_frames(ds, items([frame[:third], frame[third : 2 * third], frame[2 * third :]]))


_compressed("jpeg_2000_in_three_fragments", JPEG2000Lossless, grid=WIDE, change=_split)
_compressed("jpeg_ls_in_three_fragments", JPEGLSLossless, grid=WIDE, change=_split)
_compressed("jpeg_lossless_in_three_fragments", JPEG_LOSSLESS, grid=WIDE, change=_split)
_compressed("rle_in_three_fragments", RLELossless, grid=WIDE, kind="either", codes=_UNREAD, change=_split)
_compressed(
    "jpeg_2000_with_an_empty_fragment",
    JPEG2000Lossless,
    grid=WIDE,
    kind="either",
    codes=(*_UNREAD, "TRUNCATED_PIXEL_DATA", "HEADER_PROMISES_TOO_MUCH", "EXTRA_BYTES"),
    change=lambda ds: set_frames(ds, items([*fragments_of(ds), b""])),
)
_compressed(
    "jpeg_ls_padded_with_zeros",
    JPEGLSLossless,
    grid=WIDE,
    change=lambda ds: set_frames(ds, items([fragments_of(ds)[0] + b"\0" * 64])),
)
_compressed(
    "rle_padded_with_zeros",
    RLELossless,
    grid=WIDE,
    change=lambda ds: set_frames(ds, items([fragments_of(ds)[0] + b"\0" * 64])),
)
_compressed(
    "rle_with_a_wrong_offset_table",
    RLELossless,
    kind="either",
    codes=_UNREAD,
    change=lambda ds: set_frames(ds, items(fragments_of(ds), [400])),
)
_compressed("jpeg_ls_with_an_extended_offset_table", JPEGLSLossless, grid=WIDE, change=lambda ds: _extended_table(ds))


def _extended_table(ds: Dataset) -> None:
    data, ds.ExtendedOffsetTable, ds.ExtendedOffsetTableLengths = encapsulate_extended(fragments_of(ds))
    set_frames(ds, data)


@either(*_UNREAD)
def jpeg_2000_in_a_jp2_file(folder: Path) -> Truth:
    """The code stream is wrapped as a JP2 file, which the standard forbids."""
    made = make_series(WIDE)
    for ds in made.slices:
        set_frames(ds, items([encode_array(stored_of(ds).astype("u2"), bits_stored=12, codec_format=1)]))
    save(folder, made.slices, syntax=JPEG2000Lossless)
    return made.truth


@faulty(*_UNREAD, "BAD_HEADER", "TRUNCATED_PIXEL_DATA")
def jpeg_xl(folder: Path) -> None:
    """A transfer syntax that no decoder here knows."""
    made = make_series(WIDE)
    for ds in made.slices:
        set_frames(ds, items([b"\xff\x0a" + bytes(200)]))
    for path in save(folder, made.slices, syntax=JPEG2000Lossless):
        path.write_bytes(_other_syntax(path.read_bytes(), "1.2.840.10008.1.2.4.110"))


@readable()
def values_of_odd_length(folder: Path) -> Truth:
    """Strings are not padded to even lengths."""
    made = make_series()
    for path in save(folder, made.slices):
        data = path.read_bytes()
        path.write_bytes(data.replace(element(0x00100020, "LO", b"P1"), element(0x00100020, "LO", b"P10")))
    return made.truth


@readable(*_GARBAGE)
def rle_with_garbage_above_high_bit(folder: Path) -> Truth:
    """Compressed pixels whose unused bits are not zero."""
    made = make_series()
    for index, ds in enumerate(made.slices):
        noise = np.random.default_rng(index).integers(0, 16, (20, 24)).astype("<u2") << 12
        set_bytes(ds, (stored_of(ds) | noise).astype("<u2").tobytes())
        compress(ds, RLELossless)
    save(folder, made.slices, syntax=RLELossless)
    return made.truth


@readable()
def compressed_and_native_slices(folder: Path) -> Truth:
    """Half of the slices are compressed, each in its own way."""
    made = make_series(WIDE)
    syntaxes = [RLELossless, ExplicitVRLittleEndian, JPEGLSLossless, ImplicitVRLittleEndian, JPEG2000Lossless]
    for index, (ds, syntax) in enumerate(zip(made.slices, syntaxes, strict=True)):
        if syntax.is_compressed:
            compress(ds, syntax)
        save(folder, [ds], f"{index}.dcm", syntax)
    return made.truth


@either(*_UNREAD, "TRUNCATED_PIXEL_DATA")
def jpeg_2000_code_stream_of_other_depth(folder: Path) -> Truth:
    """The code stream has 12 bits, the header says 16 stored."""
    return _header_differs(folder, JPEG2000Lossless, BitsStored=16, HighBit=15)


@either(*_UNREAD, "TRUNCATED_PIXEL_DATA")
def jpeg_ls_code_stream_of_other_depth(folder: Path) -> Truth:
    """The code stream has 12 bits, the header says 16 stored."""
    return _header_differs(folder, JPEGLSLossless, BitsStored=16, HighBit=15)


@either(*_UNREAD)
def jpeg_2000_code_stream_of_other_sign(folder: Path) -> Truth:
    """The code stream is unsigned, the header says signed; no value reaches the sign bit."""
    return _header_differs(folder, JPEG2000Lossless, Pixels(None, 0.0, stored=16), PixelRepresentation=1)


def _header_differs(folder: Path, syntax: str, pixels: Pixels | None = None, **tags: int) -> Truth:
    made = make_series(WIDE, pixels=pixels)
    for ds in made.slices:
        compress(ds, syntax)
        ds.update(tags)
    save(folder, made.slices, syntax=syntax)
    return made.truth


def _code_stream(name: str, syntax: str, change: Callable[[bytes], bytes], codes: Sequence[str] = ()) -> None:
    """The code stream of one slice is spoilt."""

    def build(folder: Path) -> None:
        made = make_series(WIDE)
        for index, ds in enumerate(made.slices):
            frames = encoded_frames(ds, syntax)
            set_frames(ds, items([change(frame) if index == 2 else frame for frame in frames]))
        save(folder, made.slices, syntax=syntax)

    add("faulty", (*_UNREAD, "TRUNCATED_PIXEL_DATA", "TRUNCATED_FILE", "HEADER_PROMISES_TOO_MUCH", *codes), name, build)


for _name_, _syntax in SYNTAXES.items():
    _code_stream(f"{_name_}_cut_in_half", _syntax, lambda frame: frame[: len(frame) // 2])
    _code_stream(f"{_name_}_cut_to_a_tenth", _syntax, lambda frame: frame[: len(frame) // 10])
    _code_stream(f"{_name_}_empty", _syntax, lambda frame: b"")
    _code_stream(f"{_name_}_of_zeros", _syntax, lambda frame: bytes(len(frame)))
    _code_stream(f"{_name_}_of_noise", _syntax, lambda frame: np.random.default_rng(1).bytes(len(frame)))


def _smaller(syntax: str) -> bytes:
    return encoded_frames(make_series(Grid(columns=32, rows=32, slices=1)).slices[0], syntax)[0]


def _foreign(name: str, syntax: str) -> None:
    """One slice holds the code stream of a smaller image."""
    _code_stream(name, syntax, lambda frame: _smaller(syntax), ("SLICE_SIZE_DIFFERS",))


for _name_, _syntax in SYNTAXES.items():
    _foreign(f"{_name_}_of_a_smaller_image", _syntax)


@faulty("UNSUPPORTED_TYPE")
def jpeg_baseline_colour(folder: Path) -> None:
    """A colour photograph in slices."""
    made: Made = make_series(BYTE_GRID, BYTE, _EIGHT)
    for ds in made.slices:
        compress(ds, JPEGBaseline8Bit)
        ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PlanarConfiguration = 3, "YBR_FULL_422", 0
    save(folder, made.slices, syntax=JPEGBaseline8Bit)


@readable()
def deflated_by_another_level(folder: Path) -> Truth:
    """Stored, not compressed, inside the deflated stream; bytes follow its end."""
    made = make_series()
    for path in save(folder, made.slices, syntax=DeflatedExplicitVRLittleEndian):
        data = path.read_bytes()
        at = _meta_length(data)
        packer = zlib.compressobj(0, zlib.DEFLATED, -15)
        body = zlib.decompressobj(-15).decompress(data[at:])
        path.write_bytes(data[:at] + packer.compress(body) + packer.flush() + b"\0")
    return made.truth


@faulty(
    "OVER_BUDGET", "TRUNCATED_FILE", "HEADER_PROMISES_TOO_MUCH", "UNDECODABLE", "TRUNCATED_PIXEL_DATA", "BAD_HEADER"
)
def deflated_cut(folder: Path) -> None:
    """The deflated stream of one slice ends early."""
    made = make_series()
    paths = save(folder, made.slices, syntax=DeflatedExplicitVRLittleEndian)
    data = paths[3].read_bytes()
    paths[3].write_bytes(data[: len(data) - 300])


@readable()
def element_longer_than_64_kilobytes(folder: Path) -> Truth:
    """A sequence of defined length, larger than what a header usually is."""
    made = make_series()
    for ds in made.slices:
        many = [Dataset() for _ in range(1500)]
        for number, item in enumerate(many):
            item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = ds.SOPClassUID, uid(number)
        ds.ReferencedImageSequence = Items(many)
    save(folder, made.slices)
    return made.truth
