"""Compressed pixels for the phantoms, from the encoders that the test suite installs anyway."""

from __future__ import annotations

import io
import struct
import tempfile
from collections.abc import Sequence
from pathlib import Path

import gdcm
import numpy as np
import pydicom
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate, generate_fragmented_frames, generate_frames
from pydicom.uid import (
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLSLossless,
    RLELossless,
)

from tests.io.dicom.phantom import encode, stored_of

JPEG_LOSSLESS, JPEG_PROCESS_14, JPEG_EXTENDED = (
    "1.2.840.10008.1.2.4.70",
    "1.2.840.10008.1.2.4.57",
    "1.2.840.10008.1.2.4.51",
)
_GDCM = {
    JPEG_LOSSLESS: gdcm.TransferSyntax.JPEGLosslessProcess14_1,
    JPEG_PROCESS_14: gdcm.TransferSyntax.JPEGLosslessProcess14,
    JPEG_EXTENDED: gdcm.TransferSyntax.JPEGExtendedProcess2_4,
}


def compress(ds: Dataset, syntax: str, **options: object) -> None:
    """Replaces native PixelData by compressed ones of the transfer syntax, in place."""
    frames = encoded_frames(ds, syntax, **options)
    set_frames(ds, encapsulate(frames))
    if syntax in (JPEG_EXTENDED, JPEGBaseline8Bit):
        ds.LossyImageCompression = "01"


def encoded_frames(ds: Dataset, syntax: str, **options: object) -> list[bytes]:
    """The code stream of each frame."""
    if syntax in _GDCM:
        return list(generate_frames(_by_gdcm(ds, syntax), number_of_frames=int(ds.get("NumberOfFrames", 1))))
    if syntax == JPEGBaseline8Bit:
        buffer = io.BytesIO()
        Image.fromarray(stored_of(ds).astype(np.uint8)).save(buffer, "JPEG", quality=100)
        return [buffer.getvalue()]
    copy = Dataset()
    copy.update({element.keyword: element.value for element in ds if element.tag.group in (0x28, 0x7FE0)})
    copy.SOPInstanceUID, copy.file_meta = ds.SOPInstanceUID, FileMetaDataset()
    copy.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    if syntax == RLELossless:
        options = {"encoding_plugin": "pylibjpeg", **options}  # gdcm's encoder ends the process on odd sizes
    copy.compress(syntax, generate_instance_uid=False, **options)
    return list(generate_frames(copy.PixelData, number_of_frames=int(ds.get("NumberOfFrames", 1))))


def set_frames(ds: Dataset, encapsulated: bytes) -> None:
    """Encapsulated PixelData of undefined length."""
    ds.PixelData = encapsulated
    ds["PixelData"].VR = "OB"
    ds["PixelData"].is_undefined_length = True


def items(fragments: Sequence[bytes], offsets: Sequence[int] = ()) -> bytes:
    """Encapsulated PixelData made of these fragments and this basic offset table, without the final delimiter."""
    table = struct.pack(f"<{len(offsets)}I", *offsets)
    out = struct.pack("<HHI", 0xFFFE, 0xE000, len(table)) + table
    for fragment in fragments:
        padded = fragment + b"\0" * (len(fragment) % 2)
        out += struct.pack("<HHI", 0xFFFE, 0xE000, len(padded)) + padded
    return out


def fragments_of(ds: Dataset) -> list[bytes]:
    """All fragments of encapsulated PixelData."""
    frames = generate_fragmented_frames(ds.PixelData, number_of_frames=int(ds.get("NumberOfFrames", 1)))
    return [bytes(fragment) for frame in frames for fragment in frame]


def _by_gdcm(ds: Dataset, syntax: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "in.dcm"), Path(folder, "out.dcm")
        source.write_bytes(encode(ds))
        reader = gdcm.ImageReader()
        reader.SetFileName(str(source))
        change = gdcm.ImageChangeTransferSyntax()
        change.SetTransferSyntax(gdcm.TransferSyntax(_GDCM[syntax]))
        if not reader.Read():
            raise ValueError("gdcm cannot read the phantom")
        change.SetInput(reader.GetImage())
        if not change.Change():
            raise ValueError(f"gdcm cannot encode {syntax}")
        writer = gdcm.ImageWriter()
        writer.SetFileName(str(target))
        writer.SetFile(reader.GetFile())
        writer.SetImage(change.GetOutput())
        writer.Write()
        return bytes(pydicom.dcmread(target).PixelData)


SYNTAXES = {
    "rle": RLELossless,
    "jpeg_ls": JPEGLSLossless,
    "jpeg_2000": JPEG2000Lossless,
    "jpeg_lossless": JPEG_LOSSLESS,
}
