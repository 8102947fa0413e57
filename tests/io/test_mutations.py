"""A thousand damaged headers each for DICOM and NIfTI: loaded or refused, never an error of another kind, never a hang.

Every seed makes the same damage in every run. The memory is that of the process (Linux), decoders in C included.
"""

from __future__ import annotations

import faulthandler
import gzip
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

from medgen.checks import MedgenError
from medgen.io.dicom import survey_dicom
from medgen.io.findings import Survey
from medgen.io.nifti_survey import survey_nifti
from tests.io.dicom.compress import JPEG_LOSSLESS, compress
from tests.io.dicom.multiframe import ENHANCED_MR, enhanced, frames_of, mosaic
from tests.io.dicom.phantom import Field, Grid, encode, make_series, set_bytes, stored_of

BUDGET = 32 * 2**20
"""Bytes given to the readers."""
_BLOCKS, _PER_BLOCK = 10, 100
_SECONDS = 5.0
"""For one folder; a healthy one takes milliseconds."""
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")

Damage = Callable[[bytes, int, np.random.Generator], bytes]


def _flip(data: bytes, end: int, random: np.random.Generator) -> bytes:
    """Some bytes become others."""
    out = bytearray(data)
    for at in random.integers(0, end, random.integers(1, 9)):
        out[at] = random.integers(256)
    return bytes(out)


def _extreme(data: bytes, end: int, random: np.random.Generator) -> bytes:
    """Two, four or eight bytes become the smallest or largest number."""
    size = int(random.choice([1, 2, 4, 8]))
    at = int(random.integers(0, max(1, end - size)))
    return data[:at] + bytes([random.choice([0, 0xFF, 0x7F, 0x80])]) * size + data[at + size :]


def _cut(data: bytes, end: int, random: np.random.Generator) -> bytes:
    """The file ends early."""
    return data[: random.integers(0, len(data))]


def _delete(data: bytes, end: int, random: np.random.Generator) -> bytes:
    at = int(random.integers(0, end))
    return data[:at] + data[at + random.integers(1, 40) :]


def _insert(data: bytes, end: int, random: np.random.Generator) -> bytes:
    at = int(random.integers(0, end))
    return data[:at] + random.bytes(int(random.integers(1, 40))) + data[at:]


def _repeat(data: bytes, end: int, random: np.random.Generator) -> bytes:
    start, stop = sorted(int(place) for place in random.integers(0, end, 2))
    return data[:stop] + data[start:stop] * int(random.integers(1, 4)) + data[stop:]


def _blank(data: bytes, end: int, random: np.random.Generator) -> bytes:
    start = int(random.integers(0, end))
    stop = min(end, start + int(random.integers(1, 200)))
    return data[:start] + bytes(stop - start) + data[stop:]


_DAMAGES: tuple[Damage, ...] = (_flip, _flip, _extreme, _extreme, _cut, _delete, _insert, _repeat, _blank)


def _element_damage(data: bytes, end: int, random: np.random.Generator) -> bytes:
    """The value or length of an explicit little-endian element of group 28, 20 or 8 becomes extreme."""
    group = int(random.choice([0x28, 0x28, 0x20, 0x08, 0x02, 0x5200]))
    places = [
        at
        for at in range(132, end - 12)
        if data[at : at + 2] == struct.pack("<H", group) and data[at + 4 : at + 6].isalpha()
    ]
    if not places:
        return _extreme(data, end, random)
    at = int(random.choice(places))
    offset = int(random.choice([2, 4, 6, 8]))
    value = random.choice([0, 1, 2, 3, 0x7FFF, 0x8000, 0xFFFF, 0xFFFE, int(random.integers(65536))])
    return data[: at + offset] + struct.pack("<H", int(value)) + data[at + offset + 2 :]


def _number_damage(data: bytes, end: int, random: np.random.Generator) -> bytes:
    """Digits become other signs of a decimal string."""
    out = bytearray(data)
    places = [at for at in range(132, end) if chr(out[at]) in "0123456789."]
    for at in random.choice(places, min(len(places), int(random.integers(1, 7))), replace=False):
        out[at] = random.choice(list(b"0123456789.eE+-\\ ,nN\0"))
    return bytes(out)


@pytest.fixture(scope="module")
def dicom_bases() -> list[list[bytes]]:
    """Folders of healthy files, of every kind."""
    grid, wide = Grid(columns=8, rows=6, slices=3), Grid(columns=34, rows=33, slices=2)
    bases = [[encode(ds) for ds in make_series(grid).slices]]
    bases.append([encode(ds, ImplicitVRLittleEndian) for ds in make_series(grid).slices])
    bases.append([encode(ds, ImplicitVRLittleEndian, preamble=False) for ds in make_series(grid).slices])
    bases.append([encode(ds, DeflatedExplicitVRLittleEndian) for ds in make_series(grid).slices])
    swapped = make_series(grid).slices
    for ds in swapped:
        set_bytes(ds, stored_of(ds).byteswap().tobytes())
    bases.append([encode(ds, ExplicitVRBigEndian) for ds in swapped])
    for syntax in (RLELossless, JPEGLSLossless, JPEG2000Lossless, JPEG_LOSSLESS):
        compressed = make_series(wide).slices
        for ds in compressed:
            compress(ds, syntax)
        bases.append([encode(ds, syntax) for ds in compressed])
    bases.append([encode(enhanced(frames_of(grid)), ExplicitVRLittleEndian)])
    bases.append([encode(enhanced(frames_of(grid), ENHANCED_MR, shared=()), ExplicitVRLittleEndian)])
    bases.append([encode(mosaic(Grid(columns=8, rows=6, slices=4), Field(), across=2))])
    return bases


@pytest.fixture(scope="module")
def nifti_bases() -> dict[str, bytes]:
    """Healthy files, of every kind."""
    array = np.arange(6 * 5 * 4, dtype=np.int16).reshape(6, 5, 4)
    affine = np.array([[0, -1.5, 0.1, 20], [2, 0, 0, -30], [0, 0.1, 3, 5], [0, 0, 0, 1.0]])
    scaled = nib.Nifti1Image(array, affine)
    scaled.header.set_slope_inter(2.5, -10)
    floats = nib.Nifti1Image(array.astype(np.float32), affine)
    double = nib.Nifti2Image(array.astype(np.float64), affine)
    frames = nib.Nifti1Image(np.stack([array, array], axis=-1), affine)
    plain = {
        f"{name}.nii": image.to_bytes() for name, image in zip("abcd", (scaled, floats, double, frames), strict=True)
    }
    return plain | {f"{name}.gz": gzip.compress(data, 6) for name, data in plain.items()}


@pytest.fixture
def guarded(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int, Callable[[], Survey]], str]]:
    """Runs one survey and loads what it found, under the eyes of a clock and of the process's memory."""

    def run(seed: int, survey: Callable[[], Survey]) -> str:
        faulthandler.dump_traceback_later(60, exit=True)
        _reset_peak()
        before, start = _resident("VmRSS"), time.monotonic()
        outcome = _outcome(survey)
        grown, took = _resident("VmHWM") - before, time.monotonic() - start
        if took > _SECONDS:
            outcome = f"took {took:.1f} s"
        if grown > 2 * BUDGET:
            outcome = f"took {grown / 2**20:.0f} MiB"
        return outcome if outcome in ("loaded", "refused") else f"seed {seed}: {outcome}"

    yield run
    faulthandler.cancel_dump_traceback_later()


def _outcome(survey: Callable[[], Survey]) -> str:
    """``loaded``, ``refused``, or the error that should not have come."""
    try:
        found = survey()
        for source in found.volumes:
            volume = source.load()
            if tuple(volume.shape[1:]) != source.shape or not np.isfinite(np.asarray(source.affine)).all():
                return f"shape {tuple(volume.shape)}, affine {source.affine.tolist()}"
    except MedgenError:
        return "refused"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    if any(record.status != "used" and not record.code for record in found.files):
        return "a file is set aside without a code"
    return "loaded" if found.volumes else "refused"


def _resident(field: str) -> int:
    """Bytes; 0 where the system does not say."""
    if not _STATUS.exists():
        return 0
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def _reset_peak() -> None:
    try:
        _CLEAR.write_text("5")
    except OSError:
        pytest.skip("the peak of memory cannot be measured here")


def _damaged(data: bytes, end: int, random: np.random.Generator, damages: Sequence[Damage]) -> bytes:
    for _ in range(int(random.integers(1, 4))):
        if len(data) > 2:
            data = damages[random.integers(len(damages))](data, max(1, min(end, len(data) - 1)), random)
    return data


@pytest.mark.parametrize("block", range(_BLOCKS))
def test_dicom_headers(
    block: int, tmp_path: Path, dicom_bases: list[list[bytes]], guarded: Callable[[int, Callable[[], Survey]], str]
) -> None:
    outcomes = []
    for seed in range(block * _PER_BLOCK, (block + 1) * _PER_BLOCK):
        random = np.random.default_rng([7, seed])
        base = dicom_bases[seed % len(dicom_bases)]
        hurt = int(random.integers(len(base)))
        paths = []
        for number, data in enumerate(base):
            at = data.rfind(b"\xe0\x7f\x10\x00")
            end = at + 12 if at > 0 else len(data)
            if number == hurt:
                data = _damaged(data, end, random, (*_DAMAGES, _element_damage, _element_damage, _number_damage))
            paths.append(tmp_path / f"{number}.dcm")
            paths[-1].write_bytes(data)
        outcomes.append(guarded(seed, lambda paths=paths: survey_dicom(paths, memory_budget=BUDGET)))
    assert set(outcomes) == {"loaded", "refused"}


@pytest.mark.parametrize("block", range(_BLOCKS))
def test_nifti_headers(
    block: int, tmp_path: Path, nifti_bases: dict[str, bytes], guarded: Callable[[int, Callable[[], Survey]], str]
) -> None:
    outcomes = []
    for seed in range(block * _PER_BLOCK, (block + 1) * _PER_BLOCK):
        random = np.random.default_rng([8, seed])
        name = sorted(nifti_bases)[seed % len(nifti_bases)]
        data = nifti_bases[name]
        within = name.endswith(".gz") and seed % 3 > 0
        plain = gzip.decompress(data) if within else data
        header = len(data) if name.endswith(".gz") and not within else (540 if name.startswith("c") else 352)
        hurt = _damaged(plain, header, random, _DAMAGES)
        path = tmp_path / name
        path.write_bytes(gzip.compress(hurt, 1) if within else hurt)
        each = bool(random.integers(2))
        outcomes.append(
            guarded(seed, lambda path=path, each=each: survey_nifti(path, each_frame=each, memory_budget=BUDGET))
        )
    assert set(outcomes) == {"loaded", "refused"}
