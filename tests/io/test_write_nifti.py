from __future__ import annotations

import gzip
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from medgen.checks import MedgenError
from medgen.io.gzip_bytes import write_gzip
from medgen.io.nifti_survey import survey_nifti
from medgen.io.write_nifti import write_like, write_nifti

AFFINE = np.array([[0, -1.5, 0.0, 20], [2, 0, 0, -30], [0, 0.0, 3, 5], [0, 0, 0, 1.0]])
SHAPE = (7, 6, 5)


def source(path: Path, dtype: str, slope: float = 1.0, inter: float = 0.0) -> MetaTensor:
    """A volume as it is loaded from a file of this type and scaling."""
    raw = np.random.default_rng(0).integers(0, 200, SHAPE).astype(dtype)
    image = nib.Nifti1Image(raw, AFFINE)
    image.header.set_xyzt_units("mm")
    nib.save(image, path)
    content = bytearray(path.read_bytes())
    header = np.frombuffer(content, nib.nifti1.header_dtype, 1)
    header["scl_slope"], header["scl_inter"] = slope, inter
    path.write_bytes(content)
    return survey_nifti(path).volumes[0].load()


def stored(path: Path) -> tuple[np.ndarray, str, float, float]:
    image = nib.load(path)
    raw = np.asarray(image.dataobj.get_unscaled())
    return raw, image.get_data_dtype().name, image.dataobj.slope, image.dataobj.inter


@pytest.mark.parametrize("dtype", ["u1", "i1", "i2", "u2", "i4", "u4", "f4", "f8"])
@pytest.mark.parametrize("scaling", [(1.0, 0.0), (0.5, -12.0), (2.0, -1024.0)])
def test_unchanged_volume_keeps_type_scaling_and_numbers(
    tmp_path: Path, dtype: str, scaling: tuple[float, float]
) -> None:
    volume = source(tmp_path / "a.nii", dtype, *scaling)
    assert write_nifti(tmp_path / "b.nii.gz", volume) == ()
    before, after = stored(tmp_path / "a.nii"), stored(tmp_path / "b.nii.gz")
    np.testing.assert_array_equal(before[0], after[0])
    assert before[1:] == after[1:]


def test_scaling_beyond_single_precision_moves_no_value(tmp_path: Path) -> None:
    """NIfTI-2 has slope and intercept in double precision, the NIfTI-1 that is written in single."""
    volume = source(tmp_path / "a.nii", "i4", 1.0, 0.0).double()
    volume.meta["scl_slope"], volume.meta["scl_inter"], volume.meta["stored_dtype"] = 1e-3, 123456.785, "int16"
    values = volume * 1e-3 + 123456.785
    write_nifti(tmp_path / "b.nii.gz", values)
    back = survey_nifti(tmp_path / "b.nii.gz").volumes[0].load()
    np.testing.assert_allclose(back.numpy(), values.numpy(), rtol=0, atol=0.00051)


def test_restored_values_keep_a_type_that_rounds_little(tmp_path: Path) -> None:
    volume = source(tmp_path / "a.nii", "i2", 0.5, -12.0)
    assert write_nifti(tmp_path / "b.nii.gz", volume + 0.2) == ()
    assert stored(tmp_path / "b.nii.gz")[1:] == ("int16", 0.5, -12.0)
    back = survey_nifti(tmp_path / "b.nii.gz").volumes[0].load()
    assert (back - volume - 0.2).abs().max() <= 0.25 + 1e-5


@pytest.mark.parametrize("change", [lambda v: v / 500, lambda v: v * 1000.5])
def test_values_that_the_type_does_not_hold_are_float32_and_said(tmp_path: Path, change: Any) -> None:
    volume = change(source(tmp_path / "a.nii", "i2").float())
    (finding,) = write_nifti(tmp_path / "b.nii.gz", volume)
    assert finding.code == "TYPE_CHANGED"
    assert "float32" in finding.text
    assert stored(tmp_path / "b.nii.gz")[1] == "float32"
    back = survey_nifti(tmp_path / "b.nii.gz").volumes[0].load()
    np.testing.assert_array_equal(back.numpy(), volume.numpy())


def test_whole_numbers_beyond_the_type_keep_their_own(tmp_path: Path) -> None:
    volume = source(tmp_path / "a.nii", "u1") - 5
    (finding,) = write_nifti(tmp_path / "b.nii.gz", volume)
    assert finding.code == "TYPE_CHANGED"
    assert stored(tmp_path / "b.nii.gz")[1] == "int16"


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32, np.float64])
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_any_memory_order_and_size(tmp_path: Path, name: str, dtype: Any, order: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr("medgen.io.write_nifti._SLAB_BYTES", 4000)
    array = np.asarray(np.random.default_rng(0).integers(0, 255, (37, 21, 19)).astype(dtype), order=order)
    write_nifti(tmp_path / name, torch.from_numpy(array), affine=AFFINE)
    image = nib.load(tmp_path / name)
    np.testing.assert_array_equal(np.asarray(image.dataobj), array)
    np.testing.assert_allclose(image.affine, AFFINE, atol=1e-6)
    assert image.header.get_xyzt_units()[0] == "mm"
    assert nib.load(tmp_path / name).header["qform_code"] == nib.load(tmp_path / name).header["sform_code"] == 1
    (found,) = survey_nifti(tmp_path / name).volumes
    assert found.findings == ()


@pytest.mark.parametrize("dtype", ["rgb", "complex64"])
def test_channels_go_back_as_they_came(tmp_path: Path, dtype: str) -> None:
    rng = np.random.default_rng(0)
    if dtype == "rgb":
        array = rng.integers(0, 255, (*SHAPE, 3), dtype=np.uint8).view([(c, "u1") for c in "RGB"])[..., 0]
    else:
        array = (rng.random(SHAPE) + 1j * rng.random(SHAPE)).astype(np.complex64)
    nib.save(nib.Nifti1Image(array, AFFINE), tmp_path / "a.nii")
    volume = survey_nifti(tmp_path / "a.nii", channels=True).volumes[0].load()
    write_nifti(tmp_path / "b.nii.gz", volume)
    np.testing.assert_array_equal(np.asarray(nib.load(tmp_path / "b.nii.gz").dataobj), array)


def test_an_axis_too_long_for_nifti_1(tmp_path: Path) -> None:
    write_nifti(tmp_path / "a.nii.gz", torch.zeros(40_000, 2, 2, dtype=torch.uint8), affine=AFFINE)
    assert isinstance(nib.load(tmp_path / "a.nii.gz"), nib.Nifti2Image)
    assert survey_nifti(tmp_path / "a.nii.gz").volumes[0].shape == (40_000, 2, 2)


def test_gzip_is_whole_for_every_length_and_core_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = np.random.default_rng(0).integers(0, 9, 3_000_001, dtype=np.uint8).tobytes()
    made = []
    for threads in (1, 2, 3):
        monkeypatch.setattr("medgen.io.gzip_bytes._THREADS", threads)
        for pieces in ([], [b""], [content[:1]], [content], [content[: 1 << 20], content[1 << 20 :]]):
            with open(tmp_path / "a.gz", "wb") as file:
                count = write_gzip(file, pieces)
            packed = (tmp_path / "a.gz").read_bytes()
            assert len(packed) == count
            assert gzip.decompress(packed) == b"".join(pieces)
            made.append(packed)
    assert made[:5] == made[5:10] == made[10:]
    assert made[3] == made[4]  # pieces that end with a block change nothing
    assert made[3][3:8] == bytes(5)  # no name, no time


@pytest.mark.parametrize("affine", [np.zeros((4, 4)), np.full((4, 4), np.nan), np.eye(3)])
def test_an_impossible_affine_is_refused(tmp_path: Path, affine: np.ndarray) -> None:
    with pytest.raises(MedgenError, match="invertible"):
        write_nifti(tmp_path / "a.nii.gz", torch.zeros(4, 4, 4), affine=affine)
    assert list(tmp_path.iterdir()) == []


FULL = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
sys.dont_write_bytecode = True
import numpy as np, torch
from medgen.io.write_nifti import write_nifti
rng = np.random.default_rng(0)
volume = torch.from_numpy(rng.integers(0, 9999, (150, 150, 150), dtype=np.int16))
for path in sys.argv[1:]:
    write_nifti(path, volume[:4, :4, :4], affine=np.eye(4))
resource.setrlimit(resource.RLIMIT_FSIZE, (3_000_000, 3_000_000))
for path in sys.argv[1:]:
    try:
        write_nifti(path, volume, affine=np.eye(4))
    except OSError as error:
        print(type(error).__name__, error.strerror)
"""


@pytest.mark.skipif(os.name != "posix", reason="needs a file size limit")
def test_a_full_disk_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    names = ["a.nii", "a.nii.gz"]
    command = [sys.executable, "-c", FULL, *(str(tmp_path / name) for name in names)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert run.stdout.count("OSError") == 2
    assert sorted(file.name for file in tmp_path.iterdir()) == names
    for name in names:
        assert nib.load(tmp_path / name).shape == (4, 4, 4)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("noted", [False, True])
def test_mark_of_what_is_synthetic(tmp_path: Path, order: str, kind: Any, noted: bool) -> None:
    """The mark is the first extension; header, other extensions and voxels stay."""
    raw = np.random.default_rng(1).integers(0, 99, SHAPE).astype("i2")
    header = kind.header_class(endianness=order)
    header.set_data_dtype(np.dtype(f"{order}i2"))
    header["descrip"] = b"scanner"
    if noted:
        header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"a note"))
    nib.save(kind(raw, AFFINE, header), tmp_path / "a.nii")
    volume = survey_nifti(tmp_path / "a.nii").volumes[0].load()
    assert volume.meta["synthetic"] is False
    changed = torch.zeros(1, *SHAPE)
    changed[0, 1, 2, 3] = 1
    write_like(tmp_path / "b.nii.gz", tmp_path / "a.nii", volume + 1, changed, synthetic=True)
    write_like(tmp_path / "c.nii", tmp_path / "b.nii.gz", volume + 1, changed, synthetic=True)  # marked once
    for name in ("b.nii.gz", "c.nii"):
        (found,) = survey_nifti(tmp_path / name).volumes
        assert "SYNTHETIC" in [finding.code for finding in found.findings]
        back = found.load()
        assert back.meta["synthetic"] is True
        np.testing.assert_array_equal(back.numpy()[0], raw + changed.numpy()[0])
        image = nib.load(tmp_path / name)
        np.testing.assert_array_equal(np.asarray(image.dataobj), raw + changed.numpy()[0])
        assert image.header["descrip"].item() == b"scanner"
        notes = [extension.get_content() for extension in image.header.extensions]
        assert len(notes) == 1 + noted
        assert (b"a note" in str(notes[-1]).encode()) == noted
    write_nifti(tmp_path / "d.nii.gz", back)  # what was read marked is written marked
    assert survey_nifti(tmp_path / "d.nii.gz").volumes[0].load().meta["synthetic"] is True
