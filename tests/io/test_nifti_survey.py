from __future__ import annotations

import gzip
import pickle
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

from medgen.io.findings import CODES, Refused, Survey
from medgen.io.gzip_bytes import inflates_to
from medgen.io.nifti_survey import survey_nifti

SHAPE = (7, 6, 5)
AFFINE = np.array([[0, -1.5, 0.0, 20], [2, 0, 0, -30], [0, 0.0, 3, 5], [0, 0, 0, 1.0]])


def numbers(dtype: Any = np.int16, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 100, shape).astype(dtype)


def plain(
    array: np.ndarray | None = None, kind: type = nib.Nifti1Image, unit: str = "mm", order: str = "<"
) -> bytearray:
    """The bytes of a good single file."""
    array = numbers() if array is None else array
    header = kind.header_class(endianness=order)
    header.set_data_dtype(array.dtype.newbyteorder(order) if array.dtype.fields is None else array.dtype)
    header.set_xyzt_units(unit)
    image = kind(array, AFFINE, header)
    image.set_sform(AFFINE, 1)
    image.set_qform(AFFINE, 1)
    return bytearray(image.to_bytes())


def put(content: bytearray, **fields: Any) -> bytearray:
    """Changes fields of a NIfTI header in place."""
    dtype = nib.nifti1.header_dtype if content[:2] in (b"\x5c\x01", b"\0\0") else nib.nifti2.header_dtype
    header = np.frombuffer(content, dtype.newbyteorder("<"), 1)
    for name, value in fields.items():
        header[name][0] = value
    return content


def surveyed(folder: Path, content: bytes | bytearray, name: str = "a.nii", **options: Any) -> Survey:
    path = folder / name
    path.write_bytes(gzip.compress(bytes(content)) if name.endswith(".gz") else bytes(content))
    return survey_nifti(path, **options)


def code_of(survey: Survey) -> str:
    """The code of a refusal, at the survey or at the load."""
    if not survey.volumes:
        assert survey.files[0].status == "refused"
        return str(survey.files[0].code)
    with pytest.raises(Refused) as caught:
        survey.volumes[0].load()
    return caught.value.code


def findings(survey: Survey) -> list[str]:
    survey.volumes[0].load()
    return [finding.code for finding in survey.volumes[0].findings]


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("dtype", ["u1", "i1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"])
def test_values_and_affine_are_those_of_nibabel(tmp_path: Path, name: str, order: str, kind: type, dtype: str) -> None:
    found = surveyed(tmp_path, plain(numbers(dtype), kind, order=order), name)
    assert [(file.status, file.volume) for file in found.files] == [("used", 0)]
    source = found.volumes[0]
    volume, image = source.load(), nib.load(tmp_path / name)
    np.testing.assert_array_equal(volume.numpy()[0], np.asarray(image.dataobj))
    np.testing.assert_allclose(source.affine, image.affine, atol=1e-6)
    np.testing.assert_array_equal(volume.affine, source.affine)
    assert source.name == "a"
    assert source.shape == SHAPE
    assert source.findings == ()
    assert volume.dtype == (torch.float32 if dtype[0] == "f" else torch.int16)


@pytest.mark.parametrize(
    ("dtype", "largest", "expected"),
    [
        ("u2", 40000, torch.int32),
        ("i4", 2**31 - 1, torch.int32),
        ("u4", 2**31 + 1, torch.float64),
        ("u4", 2**31 + 256, torch.float32),
        ("i8", 2**53, torch.float32),
        ("f8", 0.1, torch.float64),
        ("f8", 0.5, torch.float32),
        ("f8", 1e300, torch.float64),
    ],
)
def test_smallest_type_that_holds_the_values(tmp_path: Path, dtype: str, largest: float, expected: torch.dtype) -> None:
    array = numbers(dtype)
    array[0, 0, 0] = largest
    volume = surveyed(tmp_path, plain(array)).volumes[0].load()
    assert volume.dtype == expected
    assert volume.double().max() == largest or largest < 1


@pytest.mark.parametrize(
    ("slope", "inter", "expected"),
    [
        (0.37, -12.0, torch.float32),
        (2.0, -1024.0, torch.int16),
        (1000.0, 5.0, torch.int32),
        (1e-3, 1e9, torch.float64),
        (0.0, 0.0, torch.int16),
        (np.nan, np.nan, torch.int16),
        (np.nan, 0.0, torch.int16),
    ],
)
def test_scaling(tmp_path: Path, slope: float, inter: float, expected: torch.dtype) -> None:
    found = surveyed(tmp_path, put(plain(), scl_slope=slope, scl_inter=inter))
    volume = found.volumes[0].load()
    truth = np.asarray(nib.load(tmp_path / "a.nii").dataobj)
    assert volume.dtype == expected
    np.testing.assert_allclose(volume.numpy()[0], truth, rtol=1e-7, atol=1e-12)
    assert found.volumes[0].findings == ()


def test_slope_of_zero_takes_no_intercept_and_says_so(tmp_path: Path) -> None:
    found = surveyed(tmp_path, put(plain(), scl_slope=0, scl_inter=5))
    assert findings(found) == ["ZERO_SLOPE"]
    np.testing.assert_array_equal(found.volumes[0].load().numpy()[0], numbers())


REFUSED: dict[str, tuple[str, Callable[[], bytes | bytearray]]] = {
    "not a NIfTI": ("BAD_HEADER", lambda: b"hello" * 200),
    "a few bytes": ("BAD_HEADER", lambda: b"\x5c\x01\0\0"),
    "Analyze": ("NO_GEOMETRY", lambda: put(plain(), magic=b"")),
    "other magic": ("BAD_HEADER", lambda: put(plain(), magic=b"n+7")),
    "pair in one": ("BAD_HEADER", lambda: put(plain(), magic=b"ni1")),
    "text transfer": ("BAD_HEADER", lambda: put(plain(kind=nib.Nifti2Image), eol_check=[13, 13, 26, 10])),
    "no dimensions": ("BAD_HEADER", lambda: put(plain(), dim=[0, 7, 6, 5, 1, 1, 1, 1])),
    "eight dimensions": ("BAD_HEADER", lambda: put(plain(), dim=[8, 7, 6, 5, 1, 1, 1, 1])),
    "negative size": ("BAD_HEADER", lambda: put(plain(), dim=[3, 7, -6, 5, 1, 1, 1, 1])),
    "size of zero": ("BAD_HEADER", lambda: put(plain(), dim=[3, 7, 0, 5, 1, 1, 1, 1])),
    "one slice": ("SINGLE_SLICE", lambda: plain(numbers(shape=(7, 6)))),
    "4D": ("SEVERAL_FRAMES", lambda: plain(numbers(shape=(7, 6, 5, 3)))),
    "5D": ("SEVERAL_FRAMES", lambda: plain(numbers(shape=(7, 6, 5, 1, 3)))),
    "colours": ("UNSUPPORTED_DTYPE", lambda: plain(colours())),
    "complex": ("UNSUPPORTED_DTYPE", lambda: plain(numbers(np.complex64))),
    "unknown type": ("UNSUPPORTED_DTYPE", lambda: put(plain(), datatype=3)),
    "long double": ("UNSUPPORTED_DTYPE", lambda: put(plain(), datatype=1536)),
    "bits": ("UNSUPPORTED_DTYPE", lambda: put(plain(), datatype=1)),
    "infinite slope": ("BAD_RESCALE", lambda: put(plain(), scl_slope=np.inf)),
    "NaN intercept": ("BAD_RESCALE", lambda: put(plain(), scl_slope=2, scl_inter=np.nan)),
    "overflowing slope": ("NON_FINITE", lambda: put(plain(numbers("f8") * 1e300), scl_slope=1e30)),
    "no form": ("NO_GEOMETRY", lambda: put(plain(), sform_code=0, qform_code=0)),
    "NaN sform": ("BAD_AFFINE", lambda: put(plain(), srow_x=[0, np.nan, 0, 1])),
    "infinite sform": ("BAD_AFFINE", lambda: put(plain(), srow_z=[0, 0, np.inf, 1])),
    "singular sform": ("BAD_AFFINE", lambda: put(plain(), srow_x=[2, 0, 0, 1], srow_y=[2, 0, 0, 1])),
    "empty sform": ("BAD_AFFINE", lambda: put(plain(), srow_x=[0] * 4, srow_y=[0] * 4, srow_z=[0] * 4)),
    "impossible quaternion": ("BAD_AFFINE", lambda: put(plain(), sform_code=0, quatern_b=3)),
    "negative spacing": ("BAD_AFFINE", lambda: put(plain(), sform_code=0, pixdim=[1, -2, 1, 1, 1, 1, 1, 1])),
    "unknown sform_code": ("BAD_AFFINE", lambda: put(plain(), sform_code=134, qform_code=0, srow_x=[9, 0, 0, 0])),
    "NaN offset": ("BAD_HEADER", lambda: put(plain(), vox_offset=np.nan)),
    "offset in the header": ("BAD_HEADER", lambda: put(plain(), vox_offset=100)),
    "offset beyond the end": ("HEADER_PROMISES_TOO_MUCH", lambda: put(plain(), vox_offset=1e6)),
    "a slice too few": ("TRUNCATED_FILE", lambda: plain()[:-84]),
    "no voxels": ("HEADER_PROMISES_TOO_MUCH", lambda: plain(numbers(shape=(20, 20, 20)))[:352]),
    "a slice too many": ("SIZE_DISAGREES", lambda: plain() + bytes(84)),
    "wrong type": ("SIZE_DISAGREES", lambda: put(plain(), datatype=2, bitpix=8)),
    "huge": ("HEADER_PROMISES_TOO_MUCH", lambda: put(plain(), dim=[3, 30000, 30000, 30000, 1, 1, 1, 1])),
    "NaN voxel": ("NON_FINITE", lambda: plain(np.where(numbers() == 7, np.nan, 1).astype(np.float32))),
}


def colours() -> np.ndarray:
    rgb = np.random.default_rng(0).integers(0, 255, (*SHAPE, 3), dtype=np.uint8)
    return np.ascontiguousarray(rgb).view([("R", "u1"), ("G", "u1"), ("B", "u1")])[..., 0]


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("fault", REFUSED)
def test_fault_is_refused_by_its_code(tmp_path: Path, fault: str, name: str) -> None:
    code, make = REFUSED[fault]
    found = surveyed(tmp_path, make(), name)
    assert code_of(found) == code
    assert code in CODES


FINDINGS: dict[str, tuple[str, Callable[[], bytes | bytearray]]] = {
    "metres": ("UNITS_CONVERTED", lambda: put(plain(), xyzt_units=1)),
    "micrometres": ("UNITS_CONVERTED", lambda: put(plain(), xyzt_units=3)),
    "no unit": ("UNITS_UNKNOWN", lambda: put(plain(), xyzt_units=0)),
    "strange unit": ("UNITS_UNKNOWN", lambda: put(plain(), xyzt_units=7)),
    "forms": ("SFORM_QFORM_DISAGREE", lambda: put(plain(), qoffset_x=40)),
    "bad qform": ("SFORM_QFORM_DISAGREE", lambda: put(plain(), quatern_b=np.nan)),
    "unknown qform_code": ("BAD_FORM_CODE", lambda: put(plain(), qform_code=9)),
    "unknown sform_code": ("BAD_FORM_CODE", lambda: put(plain(), sform_code=134, qform_code=0)),
    "pixdim": ("SPACING_DISAGREES", lambda: put(plain(), qform_code=0, pixdim=[1, 1, 1, 1, 1, 1, 1, 1])),
    "few bytes more": ("EXTRA_BYTES", lambda: plain() + bytes(10)),
    "bitpix": ("BITPIX_DISAGREES", lambda: put(plain(), bitpix=32)),
}


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("fault", FINDINGS)
def test_what_can_be_used_is_used_and_said(tmp_path: Path, fault: str, name: str) -> None:
    code, make = FINDINGS[fault]
    found = surveyed(tmp_path, make(), name)
    assert findings(found) == [code]
    assert code in CODES
    np.testing.assert_array_equal(found.volumes[0].load().numpy()[0], numbers())
    factor = {"metres": 1000, "micrometres": 0.001}.get(fault, 1)
    np.testing.assert_allclose(found.volumes[0].affine[:3], AFFINE[:3] * factor, rtol=1e-6, atol=1e-6 * factor)


def test_of_two_forms_with_one_unknown_code_the_other_is_used(tmp_path: Path) -> None:
    found = surveyed(tmp_path, put(plain(), sform_code=134, srow_x=[9, 0, 0, 0]))
    assert findings(found) == ["BAD_FORM_CODE"]
    np.testing.assert_allclose(found.volumes[0].affine, AFFINE, atol=1e-5)


def test_an_extension_is_no_finding(tmp_path: Path) -> None:
    image = nib.Nifti1Image(numbers(), AFFINE)
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"a note"))
    image.header.set_xyzt_units("mm")
    nib.save(image, tmp_path / "a.nii.gz")
    found = survey_nifti(tmp_path / "a.nii.gz")
    assert findings(found) == []
    np.testing.assert_array_equal(found.volumes[0].load().numpy()[0], numbers())


def test_each_frame_where_asked(tmp_path: Path) -> None:
    array = numbers(shape=(7, 6, 5, 3))
    for name in ("a.nii", "a.nii.gz"):
        found = surveyed(tmp_path, plain(array), name, each_frame=True)
        assert [volume.name for volume in found.volumes] == ["a-0001", "a-0002", "a-0003"]
        for frame in (2, 0, 1):
            np.testing.assert_array_equal(found.volumes[frame].load().numpy()[0], array[..., frame])


def test_channels_where_asked(tmp_path: Path) -> None:
    array = colours()
    volume = surveyed(tmp_path, plain(array), channels=True).volumes[0].load()
    for channel, colour in enumerate("RGB"):
        np.testing.assert_array_equal(volume.numpy()[channel], array[colour])
    array = (numbers() + 1j * numbers()[::-1]).astype(np.complex64)
    content = put(plain(array), scl_slope=2, scl_inter=10)
    volume = surveyed(tmp_path, content, channels=True).volumes[0].load()
    np.testing.assert_array_equal(volume.numpy()[0], array.real * 2 + 10)
    np.testing.assert_array_equal(volume.numpy()[1], array.imag * 2)


def test_non_finite_voxels_are_masked_where_asked(tmp_path: Path) -> None:
    array = numbers(np.float32)
    array[1, 2, 3], array[0, 0, 0] = np.nan, -np.inf
    found = surveyed(tmp_path, plain(array), mask_non_finite=True)
    volume = found.volumes[0].load()
    assert found.volumes[0].load().isfinite().all()
    assert [finding.code for finding in found.volumes[0].findings] == ["NON_FINITE_MASKED"]
    assert "2 voxels" in found.volumes[0].findings[0].text
    assert volume[0, 1, 2, 3] == volume[0, 0, 0, 0] == 0


def test_no_geometry_where_asked(tmp_path: Path) -> None:
    found = surveyed(tmp_path, put(plain(), sform_code=0, qform_code=0), without_geometry=True)
    assert findings(found) == ["NO_GEOMETRY"]
    np.testing.assert_array_equal(found.volumes[0].affine, np.eye(4))


@pytest.mark.parametrize("endings", [(".hdr", ".img"), (".hdr.gz", ".img.gz"), (".HDR", ".IMG")])
def test_pair(tmp_path: Path, endings: tuple[str, str]) -> None:
    image = nib.Nifti1Pair(numbers(), AFFINE)
    image.header.set_xyzt_units("mm")
    nib.save(image, tmp_path / "plain.hdr")
    for plain_ending, ending in zip((".hdr", ".img"), endings, strict=True):
        content = (tmp_path / f"plain{plain_ending}").read_bytes()
        (tmp_path / f"a{ending}").write_bytes(gzip.compress(content) if ending.endswith(".gz") else content)
    for ending in endings:
        found = survey_nifti(tmp_path / f"a{ending}")
        assert [(file.path.name, file.status) for file in found.files] == [(f"a{end}", "used") for end in endings]
        np.testing.assert_array_equal(found.volumes[0].load().numpy()[0], numbers())
    voxels = tmp_path / f"a{endings[1]}"
    voxels.unlink()
    assert survey_nifti(tmp_path / f"a{endings[0]}").files[0].code == "TRUNCATED_FILE"


def test_memory_budget(tmp_path: Path) -> None:
    content = plain(numbers(shape=(40, 40, 40)))
    for name in ("a.nii", "a.nii.gz"):
        assert code_of(surveyed(tmp_path, content, name, memory_budget=100_000)) == "OVER_BUDGET"
        assert surveyed(tmp_path, content, name, memory_budget=130_000).volumes


def test_a_gzip_file_that_inflates_without_end_is_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A header of a small volume before a gigabyte of zeros: counting stops one slice after what is promised."""
    path = tmp_path / "a.nii.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(plain())
        for _ in range(64):
            file.write(bytes(1 << 20))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = survey_nifti(path)
    assert found.files[0].code == "SIZE_DISAGREES"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000  # KiB
    assert inflates_to(path, 1000) < 400_000


def test_a_small_gzip_file_that_promises_much_is_refused_before_it_is_inflated(tmp_path: Path) -> None:
    found = surveyed(tmp_path, put(plain(), dim=[3, 30000, 30000, 3000, 1, 1, 1, 1]), "a.nii.gz", memory_budget=2**50)
    assert found.files[0].code == "HEADER_PROMISES_TOO_MUCH"


def test_truncated_and_damaged_gzip(tmp_path: Path) -> None:
    content = gzip.compress(bytes(plain()))
    for part, codes in (
        (content[:-200], "TRUNCATED_FILE"),
        (content[:-4], "TRUNCATED_FILE"),
        (content[:5], "TRUNCATED_FILE"),
    ):
        (tmp_path / "a.nii.gz").write_bytes(part)
        assert code_of(survey_nifti(tmp_path / "a.nii.gz")) == codes
    damaged = bytearray(content)
    damaged[-6] ^= 1
    (tmp_path / "a.nii.gz").write_bytes(damaged)
    assert code_of(survey_nifti(tmp_path / "a.nii.gz")) == "UNDECODABLE"


def test_gzip_of_several_members_is_one_file(tmp_path: Path) -> None:
    content = bytes(plain())
    path = tmp_path / "a.nii.gz"
    path.write_bytes(b"".join(gzip.compress(part) for part in (content[:100], content[100:500], content[500:])))
    np.testing.assert_array_equal(survey_nifti(path).volumes[0].load().numpy()[0], numbers())


def test_a_file_that_changed_after_the_survey(tmp_path: Path) -> None:
    found = surveyed(tmp_path, plain())
    (tmp_path / "a.nii").write_bytes(plain()[:-100])
    assert code_of(found) == "TRUNCATED_FILE"


def test_sources_travel_between_processes(tmp_path: Path) -> None:
    source = surveyed(tmp_path, plain(), "a.nii.gz").volumes[0]
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(source)).load().numpy()[0], numbers())


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_mutated_headers_end_loaded_or_refused(tmp_path: Path, packed: bool, kind: type) -> None:
    """1,000 in all: some header bytes at random; nothing but Refused, memory within the budget."""
    rng = np.random.default_rng(int(packed) + 2 * (kind is nib.Nifti2Image))
    good = plain(kind=kind)
    size = kind.header_class.sizeof_hdr
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    loaded, codes = 0, set()
    for _ in range(250):
        content = bytearray(good)
        for place in rng.integers(4 * rng.integers(0, 2), size, rng.integers(1, 5)):
            content[place] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, rng.integers(256)])
        name = "a.nii.gz" if packed else "a.nii"
        found = surveyed(tmp_path, content, name, each_frame=True, channels=True, memory_budget=50_000_000)
        assert len(found.files) == 1
        codes |= {str(file.code) for file in found.files if file.code}
        for source in found.volumes[:2]:
            try:
                volume = source.load()
            except Refused as refused:
                codes.add(refused.code)
            else:
                loaded += 1
                assert volume.isfinite().all()
                assert tuple(volume.shape[1:]) == source.shape
                assert np.isfinite(source.affine).all()
    assert loaded > 50
    assert len(codes) > 3
    assert codes <= set(CODES)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 60_000  # KiB
