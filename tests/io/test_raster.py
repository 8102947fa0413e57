from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
import torch
from PIL import Image

from medgen.io.findings import CODES, Refused, Survey
from medgen.io.raster import survey_raster

SHAPE = (6, 5, 4)
ENDINGS = [".nrrd", ".nhdr", ".mha", ".mhd"]
DTYPES = ["u1", "i1", "i2", "u2", "i4", "u4", "i8", "f4", "f8"]


def numbers(dtype: Any = np.int16, shape: tuple[int, ...] = SHAPE[::-1]) -> np.ndarray:
    """As SimpleITK has arrays: last axis fastest."""
    return np.random.default_rng(0).integers(0, 100, shape).astype(dtype)


def write(path: Path, array: np.ndarray | None = None, packed: bool = False, vector: bool = False) -> sitk.Image:
    """An oblique, anisotropic, flipped volume."""
    image = sitk.GetImageFromArray(numbers() if array is None else array, isVector=vector)
    if image.GetDimension() == 3:
        c, s = np.cos(0.3), np.sin(0.3)
        image.SetDirection([c, -s, 0, s, c, 0, 0, 0, -1])
        image.SetSpacing((1.5, 2, 3.25))
        image.SetOrigin((10, -20, 30))
    sitk.WriteImage(image, str(path), packed)
    return image


def code_of(found: Survey) -> str:
    if not found.volumes:
        return str(found.files[0].code)
    with pytest.raises(Refused) as caught:
        found.volumes[0].load()
    return caught.value.code


def codes(found: Survey) -> list[str]:
    found.volumes[0].load()
    return [finding.code for finding in found.volumes[0].findings]


def replace(path: Path, old: bytes, new: bytes) -> Path:
    content = path.read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new, 1))
    return path


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("ending", ENDINGS)
def test_values_and_affine_are_those_of_simpleitk(tmp_path: Path, ending: str, dtype: str, packed: bool) -> None:
    image = write(tmp_path / f"a{ending}", numbers(dtype), packed)
    found = survey_raster(tmp_path / f"a{ending}")
    (source,) = found.volumes
    assert {record.path for record in found.files} == set(tmp_path.iterdir())
    assert all(record.status == "used" and record.volume == 0 for record in found.files)
    volume = pickle.loads(pickle.dumps(source)).load()
    np.testing.assert_array_equal(volume.numpy()[0], numbers(dtype).T)
    assert volume.dtype == (torch.float32 if dtype[0] == "f" else torch.int16)
    for index in ((0, 0, 0), (5, 0, 0), (0, 4, 3)):
        x, y, z = image.TransformIndexToPhysicalPoint(index)  # LPS
        np.testing.assert_allclose((volume.affine.numpy() @ [*index, 1])[:3], [-x, -y, z], rtol=0, atol=1e-12)
    assert (source.name, source.shape, source.findings) == ("a", SHAPE, ())


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("ending", ENDINGS)
def test_what_is_missing_is_not_filled_with_zeros(tmp_path: Path, ending: str, packed: bool) -> None:
    write(tmp_path / f"a{ending}", packed=packed)
    data = max(tmp_path.iterdir(), key=lambda path: (path.suffix not in ENDINGS, path.name))
    content = data.read_bytes()
    for cut in (1, 50):
        data.write_bytes(content[:-cut])
        assert code_of(survey_raster(tmp_path / f"a{ending}")) == "TRUNCATED_FILE"
    if data.suffix not in ENDINGS:
        data.unlink()
        assert code_of(survey_raster(tmp_path / f"a{ending}")) == "TRUNCATED_FILE"


@pytest.mark.parametrize(
    ("ending", "old", "new", "code"),
    [
        (".mha", b"DimSize = 6 5 4", b"DimSize = 60000 50000 40000", "HEADER_PROMISES_TOO_MUCH"),
        (".nrrd", b"sizes: 6 5 4", b"sizes: 60000 50000 40000", "HEADER_PROMISES_TOO_MUCH"),
        (".mha", b"DimSize = 6 5 4", b"DimSize = 6 5 3", "SIZE_DISAGREES"),
        (".nrrd", b"sizes: 6 5 4", b"sizes: 6 5 3", "SIZE_DISAGREES"),
        (".mha", b"DimSize = 6 5 4", b"DimSize = 6 5", "BAD_HEADER"),
        (".mha", b"DimSize = 6 5 4", b"DimSize = 6 0 4", "BAD_HEADER"),
        (".mha", b"MET_SHORT", b"MET_SHIRT", "BAD_HEADER"),
        (".nrrd", b"type: short", b"type: shirt", "BAD_HEADER"),
        (".nrrd", b"NRRD0004", b"NRRD0009", "BAD_HEADER"),
        (".nrrd", b"encoding: raw", b"encoding: hex", "UNSUPPORTED_TYPE"),
        (".mha", b"BinaryData = True", b"BinaryData = False", "UNSUPPORTED_TYPE"),
        (".mha", b"ElementDataFile = LOCAL", b"ElementDataFile = LIST", "UNSUPPORTED_TYPE"),
        (".mha", b"ElementDataFile = LOCAL", b"ElementDataFile = ../b", "UNSUPPORTED_TYPE"),
        (".mha", b"Offset = 10 -20 30\n", b"", "NO_GEOMETRY"),
        (".mha", b"ElementSpacing", b"ElementSpicing", "NO_GEOMETRY"),
        (".nrrd", b"space: left-posterior-superior", b"space dimension: 3", "NO_GEOMETRY"),
        (".nrrd", b"space origin", b"spice origin", "NO_GEOMETRY"),
        (".mha", b"ElementSpacing = 1.5 2 3.25", b"ElementSpacing = nan 2 3.25", "BAD_AFFINE"),
        (".mha", b"Offset = 10 -20 30", b"Offset = 10 nan 30", "BAD_AFFINE"),
    ],
)
def test_fault_is_refused_by_its_code(tmp_path: Path, ending: str, old: bytes, new: bytes, code: str) -> None:
    path = tmp_path / f"a{ending}"
    write(path)
    found = survey_raster(replace(path, old, new))
    assert code_of(found) == code
    assert code in CODES
    assert all(record.status == "refused" and record.reason for record in found.files)


def test_units_of_nrrd_and_metaimage_are_honoured(tmp_path: Path) -> None:
    for name, old, new in (
        ("a.nrrd", b"space origin", b'space units: "um" "um" "um"\nspace origin'),
        ("a.mha", b"Offset", b"DistanceUnits = um\nOffset"),
    ):
        write(tmp_path / name)
        plain = survey_raster(tmp_path / name).volumes[0].affine
        found = survey_raster(replace(tmp_path / name, old, new))
        assert codes(found) == ["UNITS_CONVERTED"]
        np.testing.assert_allclose(found.volumes[0].affine[:3], plain[:3] / 1000)


def test_extra_bytes_are_said(tmp_path: Path) -> None:
    write(tmp_path / "a.mha")
    with open(tmp_path / "a.mha", "ab") as file:
        file.write(b"tail")
    found = survey_raster(tmp_path / "a.mha")
    assert codes(found) == ["EXTRA_BYTES"]
    np.testing.assert_array_equal(found.volumes[0].load().numpy()[0], numbers().T)


@pytest.mark.parametrize("ending", [".mha", ".nrrd"])
def test_sheared_grid(tmp_path: Path, ending: str) -> None:
    image = sitk.GetImageFromArray(numbers())
    direction = np.array([[1, 0, 0.2], [0, 1, 0], [0, 0, np.sqrt(0.96)]])
    image.SetDirection(direction.ravel())
    image.SetSpacing((1, 2, 3))
    sitk.WriteImage(image, str(tmp_path / f"a{ending}"))
    (source,) = survey_raster(tmp_path / f"a{ending}").volumes
    np.testing.assert_allclose(source.affine[:3, :3], np.diag([-1, -1, 1]) @ direction @ np.diag([1, 2, 3]), atol=1e-9)


def test_ras_space_of_nrrd(tmp_path: Path) -> None:
    header = (
        b"NRRD0004\ntype: short\ndimension: 3\nspace: right-anterior-superior\nsizes: 6 5 4\n"
        b"space directions: (2,0,0) (0,0,3) (0,-1,0)\nspace origin: (1,2,3)\nendian: big\nencoding: raw\n\n"
    )
    (tmp_path / "a.nrrd").write_bytes(header + numbers(">i2").tobytes())
    (source,) = survey_raster(tmp_path / "a.nrrd").volumes
    np.testing.assert_allclose(source.affine, [[2, 0, 0, 1], [0, 0, -1, 2], [0, 3, 0, 3], [0, 0, 0, 1]])
    np.testing.assert_array_equal(source.load().numpy()[0], numbers().T)


def test_frames_and_channels_where_asked(tmp_path: Path) -> None:
    array = numbers(shape=(3, 4, 5, 6))
    write(tmp_path / "t.mha", array)
    assert code_of(survey_raster(tmp_path / "t.mha")) == "SEVERAL_FRAMES"
    found = survey_raster(tmp_path / "t.mha", each_frame=True)
    assert [volume.name for volume in found.volumes] == ["t-0001", "t-0002", "t-0003"]
    np.testing.assert_array_equal(found.volumes[1].load().numpy()[0], array[1].T)
    colours = numbers(np.uint8, (4, 5, 6, 3))
    for name in ("c.mha", "c.nrrd"):
        write(tmp_path / name, colours, vector=True)
        assert code_of(survey_raster(tmp_path / name)) == "UNSUPPORTED_DTYPE"
        volume = survey_raster(tmp_path / name, channels=True).volumes[0].load()
        np.testing.assert_array_equal(volume.numpy(), colours.T)
    replace(tmp_path / "c.nrrd", b"kinds: vector", b"kinds: list")
    found = survey_raster(tmp_path / "c.nrrd", each_frame=True)
    np.testing.assert_array_equal(found.volumes[2].load().numpy()[0], colours.T[2])


def test_non_finite_and_budget(tmp_path: Path) -> None:
    array = numbers(np.float32)
    array[0, 0, 0] = np.nan
    write(tmp_path / "a.mha", array)
    assert code_of(survey_raster(tmp_path / "a.mha")) == "NON_FINITE"
    assert codes(survey_raster(tmp_path / "a.mha", mask_non_finite=True)) == ["NON_FINITE_MASKED"]
    assert code_of(survey_raster(tmp_path / "a.mha", memory_budget=1000)) == "OVER_BUDGET"


def test_pictures_need_to_be_asked_for(tmp_path: Path) -> None:
    array = numbers(np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", array, photometric="minisblack")
    assert code_of(survey_raster(tmp_path / "a.tif")) == "NO_GEOMETRY"
    found = survey_raster(tmp_path / "a.tif", without_geometry=True)
    assert codes(found) == ["NO_GEOMETRY"]
    np.testing.assert_array_equal(found.volumes[0].load().numpy()[0], array.T)
    np.testing.assert_array_equal(found.volumes[0].affine, np.eye(4))
    content = (tmp_path / "a.tif").read_bytes()
    for end in (content.index(array[2].tobytes()), content.index(array[3].tobytes()) + 20):
        (tmp_path / "a.tif").write_bytes(content[:end])
        assert code_of(survey_raster(tmp_path / "a.tif", without_geometry=True)) == "TRUNCATED_FILE"


def test_a_stack_of_pictures(tmp_path: Path) -> None:
    array = numbers(np.uint8)
    paths = [tmp_path / f"{number}.png" for number in range(4)]
    for path, plane in zip(paths, array, strict=True):
        Image.fromarray(plane).save(path)
    found = survey_raster(paths, without_geometry=True)
    np.testing.assert_array_equal(found.volumes[0].load().numpy()[0], array.T)
    assert [record.path for record in found.files] == paths
    assert code_of(survey_raster(paths[0], without_geometry=True)) == "SINGLE_SLICE"
    assert code_of(survey_raster(paths, without_geometry=True, memory_budget=100)) == "OVER_BUDGET"
    Image.fromarray(array[0, :3]).save(paths[1])
    assert code_of(survey_raster(paths, without_geometry=True)) == "SLICE_SIZE_DIFFERS"
    paths[2].write_bytes(b"\x89PNG nothing")
    assert code_of(survey_raster(paths, without_geometry=True)) == "UNDECODABLE"


def test_other_files_are_refused(tmp_path: Path) -> None:
    for name in ("a.mha", "a.nrrd", "a.xyz", "a.tif", "a.png"):
        (tmp_path / name).write_bytes(b"nothing of the kind\n" * 9)
        assert code_of(survey_raster(tmp_path / name, without_geometry=True)) in CODES
    assert code_of(survey_raster(tmp_path / "missing.mha")) == "UNREADABLE"


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("ending", [".mha", ".nrrd"])
def test_mutated_headers_end_loaded_or_refused(tmp_path: Path, ending: str, packed: bool) -> None:
    path = tmp_path / f"a{ending}"
    write(path, packed=packed)
    good = path.read_bytes()
    size = good.index(b"LOCAL" if ending == ".mha" else b"\n\n")
    rng, seen, loaded = np.random.default_rng(int(packed)), set(), 0
    for _ in range(100):
        content = bytearray(good)
        for place in rng.integers(0, size, rng.integers(1, 4)):
            content[place] = rng.choice(list(b"0123456789 -.:=\naN\xff"))
        path.write_bytes(content)
        found = survey_raster(path, each_frame=True, channels=True, memory_budget=50_000_000)
        seen |= {str(record.code) for record in found.files if record.code}
        for source in found.volumes[:2]:
            try:
                volume = source.load()
            except Refused as refused:
                seen.add(refused.code)
            else:
                loaded += 1
                assert tuple(volume.shape[1:]) == source.shape
                assert np.isfinite(source.affine).all()
    assert loaded > 10
    assert seen <= set(CODES)
