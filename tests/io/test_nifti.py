from __future__ import annotations

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from medgen.checks import MedgenError
from medgen.geometry import same_grid
from medgen.io.nifti import read_nifti, write_like, write_nifti

AFFINE = np.array([[0, -1.5, 0.1, 20], [2, 0, 0, -30], [0, 0.1, 3, 5], [0, 0, 0, 1.0]])


def volume(shape: tuple[int, ...] = (1, 6, 7, 8), seed: int = 0) -> MetaTensor:
    array = np.random.default_rng(seed).random(shape, dtype=np.float32) * 100
    return MetaTensor(torch.from_numpy(array), affine=torch.from_numpy(AFFINE))


def stored(path: Path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj.get_unscaled())


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_round_trip(tmp_path: Path, name: str) -> None:
    write_nifti(tmp_path / name, volume())
    back = read_nifti(tmp_path / name, role="image")
    assert torch.equal(back.as_tensor(), volume().as_tensor())
    assert back.dtype == torch.float32
    assert back.affine.dtype == torch.float64
    np.testing.assert_allclose(back.affine, AFFINE, atol=1e-6)
    assert same_grid(back, volume())


def test_same_bytes_without_time_or_name(tmp_path: Path) -> None:
    write_nifti(tmp_path / "a.nii.gz", volume())
    write_nifti(tmp_path / "b.nii.gz", volume())
    content = (tmp_path / "a.nii.gz").read_bytes()
    assert content == (tmp_path / "b.nii.gz").read_bytes()
    assert content[3] == 0  # no file name
    assert content[4:8] == b"\x00" * 4  # no time


def test_label_and_mask_types(tmp_path: Path) -> None:
    label = MetaTensor(torch.tensor([0, 41, 259]).repeat(72)[None].reshape(1, 6, 6, 6), affine=np.eye(4))
    write_nifti(tmp_path / "label.nii.gz", label, dtype=np.int16)
    assert nib.load(tmp_path / "label.nii.gz").get_data_dtype() == np.int16
    back = read_nifti(tmp_path / "label.nii.gz", role="label")
    assert back.dtype == torch.int32
    assert torch.equal(back.as_tensor(), label.as_tensor())
    write_nifti(tmp_path / "mask.nii.gz", (label == 41) * 255, dtype=np.uint8)
    mask = read_nifti(tmp_path / "mask.nii.gz", role="inpaint_mask")
    assert mask.dtype == torch.uint8
    assert torch.equal(mask.as_tensor().bool(), label.as_tensor() == 41)


def test_label_of_one_byte_is_read(tmp_path: Path) -> None:
    nib.save(nib.Nifti1Image(np.full((4, 4, 4), 255, np.uint8), np.eye(4)), tmp_path / "a.nii.gz")
    assert read_nifti(tmp_path / "a.nii.gz", role="label").unique().tolist() == [255]


def test_writing_refuses_what_does_not_fit(tmp_path: Path) -> None:
    with pytest.raises(MedgenError, match="do not fit uint8"):
        write_nifti(tmp_path / "a.nii.gz", volume() + 1000, dtype=np.uint8)
    with pytest.raises(MedgenError, match="NaN"):
        write_nifti(tmp_path / "a.nii.gz", volume() * float("nan"))
    with pytest.raises(MedgenError, match="must end in"):
        write_nifti(tmp_path / "a.mgz", volume())
    with pytest.raises(MedgenError, match="no affine"):
        write_nifti(tmp_path / "a.nii.gz", torch.zeros(1, 4, 4, 4))
    with pytest.raises(MedgenError, match="has shape"):
        write_nifti(tmp_path / "a.nii.gz", volume((2, 4, 4, 4)))
    assert list(tmp_path.iterdir()) == []


def bad_files(folder: Path) -> dict[str, Path]:
    """One file of each fault, by the words that its error must hold."""
    good = folder / "good.nii.gz"
    write_nifti(good, volume())
    plain = gzip.decompress(good.read_bytes())
    content = {
        "whole": good.read_bytes()[:-200],
        "header promises": plain[:-100],
        "not a NIfTI": b"hello" * 200,
        "is not a NIfTI": b"",
    }
    files = {"does not exist": folder / "missing.nii.gz", "is a folder": folder}
    for number, (words, data) in enumerate(content.items()):
        files[words] = folder / f"bad{number}.nii"
        files[words].write_bytes(data)
    arrays = {"4D": np.zeros((4, 4, 4, 3), np.float32), "2D": np.zeros((4, 4), np.float32)}
    arrays["NaN"] = np.full((4, 4, 4), np.nan, np.float32)
    arrays["complex64"] = np.zeros((4, 4, 4), np.complex64)
    words_of = {"4D": "one 3D volume", "2D": "shape 4 x 4 x 1", "NaN": "64 voxels", "complex64": "complex64"}
    for name, array in arrays.items():
        files[words_of[name]] = folder / f"{name}.nii.gz"
        nib.save(nib.Nifti1Image(array, np.eye(4)), files[words_of[name]])
    return files


@pytest.mark.parametrize("number", range(10))
def test_bad_file_is_named(tmp_path: Path, number: int) -> None:
    words, path = list(bad_files(tmp_path).items())[number]
    with pytest.raises(MedgenError) as caught:
        read_nifti(path, role="image")
    assert words in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_flipped_byte_in_gzip_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.nii.gz"
    write_nifti(path, volume())
    content = bytearray(path.read_bytes())
    content[-6] ^= 1  # the check sum
    path.write_bytes(content)
    with pytest.raises(MedgenError, match="cannot be read"):
        read_nifti(path)


def test_trailing_single_axis_is_dropped(tmp_path: Path) -> None:
    nib.save(nib.Nifti1Image(np.ones((4, 5, 6, 1), np.float32), np.eye(4)), tmp_path / "a.nii.gz")
    assert read_nifti(tmp_path / "a.nii.gz").shape == (1, 4, 5, 6)


def test_role_is_checked(tmp_path: Path) -> None:
    write_nifti(tmp_path / "a.nii.gz", volume())
    with pytest.raises(MedgenError, match="whole numbers"):
        read_nifti(tmp_path / "a.nii.gz", role="label")
    with pytest.raises(MedgenError, match="Threshold"):
        read_nifti(tmp_path / "a.nii.gz", role="inpaint_mask")


@pytest.mark.parametrize("dtype", ["u1", "<i2", ">i2", "<u2", "<f4", ">f4", "<f8"])
@pytest.mark.parametrize("scaling", [(1.0, 0.0), (0.37, -12.0)])
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_write_like_keeps_every_other_byte(
    tmp_path: Path, dtype: str, scaling: tuple[float, float], kind: type
) -> None:
    rng = np.random.default_rng(1)
    raw = rng.integers(0, 200, (6, 7, 8)).astype(dtype)
    header = kind.header_class()
    header.set_data_dtype(np.dtype(dtype))
    header["descrip"] = b"scanner"
    header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"a note"))
    image = kind(raw.astype(np.float64), AFFINE, header)
    image.header.set_slope_inter(1.0, 0.0)
    source = tmp_path / "source.nii"
    nib.save(image, source)
    content = bytearray(source.read_bytes())
    slope, inter = (image.header.template_dtype.fields[name][1] for name in ("scl_slope", "scl_inter"))
    width = "<f4" if kind is nib.Nifti1Image else "<f8"
    for place, value in ((slope, scaling[0]), (inter, scaling[1])):
        content[place : place + np.dtype(width).itemsize] = np.array(value, width).tobytes()
    source.write_bytes(content)

    values = read_nifti(source).as_tensor() * 0 + 12.3
    mask = torch.from_numpy(rng.random((6, 7, 8)) < 0.3)
    assert write_like(tmp_path / "out.nii", source, values, mask[None]) == 0

    before, after = stored(source), stored(tmp_path / "out.nii")
    assert after.dtype == before.dtype
    np.testing.assert_array_equal(after[~mask.numpy()], before[~mask.numpy()])
    tolerance = 1e-4 if np.dtype(dtype).kind == "f" else 0.5 * scaling[0] + 1e-3
    np.testing.assert_allclose(read_nifti(tmp_path / "out.nii").numpy()[0][mask.numpy()], 12.3, atol=tolerance)
    offset = nib.load(source).dataobj.offset
    assert (tmp_path / "out.nii").read_bytes()[:offset] == source.read_bytes()[:offset]


def test_write_like_without_change_is_the_source(tmp_path: Path) -> None:
    write_nifti(tmp_path / "a.nii", volume())
    write_like(tmp_path / "b.nii", tmp_path / "a.nii", volume() * 2, torch.zeros(1, 6, 7, 8))
    assert (tmp_path / "b.nii").read_bytes() == (tmp_path / "a.nii").read_bytes()


def test_write_like_clips_and_says_so(tmp_path: Path) -> None:
    write_nifti(tmp_path / "a.nii.gz", volume(), dtype=np.uint8)
    assert write_like(tmp_path / "b.nii.gz", tmp_path / "a.nii.gz", volume() * 0 + 300, torch.ones(1, 6, 7, 8)) == 336
    assert read_nifti(tmp_path / "b.nii.gz").unique().tolist() == [255.0]


def test_write_like_refuses_another_grid(tmp_path: Path) -> None:
    write_nifti(tmp_path / "a.nii.gz", volume())
    with pytest.raises(MedgenError, match="source's grid"):
        write_like(tmp_path / "b.nii.gz", tmp_path / "a.nii.gz", torch.zeros(1, 4, 4, 4), torch.ones(1, 6, 7, 8))
    assert not (tmp_path / "b.nii.gz").exists()
