"""The DICOM reader beside the corpus: its parts, types of values, tilt, budgets, and how it is called."""

from __future__ import annotations

import os
import resource
import struct
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np
import pydicom
import pytest
import torch
from monai.data import MetaTensor
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
)

from medgen.checks import MedgenError
from medgen.io.dicom import looks_like_dicom, read_plain, read_series, resample_upright, survey_dicom
from medgen.io.dicom.decode import Image, decode
from medgen.io.dicom.header import read_header
from medgen.io.findings import Refused, Survey
from tests.io.dicom.phantom import PLAIN, Field, Grid, Pixels, encode, make_series, numbers, save, set_bytes

GRID = Grid()


def codes(found: Survey) -> set[str]:
    return {finding.code for volume in found.volumes for finding in volume.findings}


def refusals(found: Survey) -> dict[str, str | None]:
    return {record.path.name: record.code for record in found.files if record.status == "refused"}


class TestHeader:
    """The parser finds the same in every encoding."""

    @pytest.mark.parametrize(
        "syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian]
    )
    def test_values_and_pixels(self, syntax: str, tmp_path: Path) -> None:
        ds = make_series().slices[3]
        path = tmp_path / "a.dcm"
        if syntax == ExplicitVRBigEndian:
            ds.PixelData = np.frombuffer(ds.PixelData, "<u2").astype(">u2").tobytes()
        path.write_bytes(encode(ds, syntax))
        header = read_header(path, 10**8)
        assert header is not None
        assert header.fault is None
        assert header.syntax == syntax
        assert header.little is (syntax != ExplicitVRBigEndian)
        assert header.numbers(0x00200032) == pytest.approx([float(v) for v in ds.ImagePositionPatient])
        assert (header.whole(0x00280010, 0), header.whole(0x00280011, 0)) == (GRID.rows, GRID.columns)
        assert header.pixel_length == GRID.rows * GRID.columns * 2

    def test_what_follows_a_large_element_is_read(self, tmp_path: Path) -> None:
        """The file is read in pieces; a private element far larger than one is stepped over."""
        ds = make_series().slices[0]
        ds.add_new(0x00090010, "LO", "PHANTOM")
        ds.add_new(0x00091001, "OB", b"\1" * 300_000)
        path = tmp_path / "a.dcm"
        path.write_bytes(encode(ds))
        header = read_header(path, 10**8)
        assert header is not None
        assert header.text(0x0020000E) == ds.SeriesInstanceUID
        assert header.pixel_offset > 300_000

    def test_a_header_of_many_tiny_elements_ends(self, tmp_path: Path) -> None:
        path = tmp_path / "zeros.dcm"
        path.write_bytes(b"\0" * 128 + b"DICM" + b"\x08\0\0\0UL\0\0" * 400_000)
        header = read_header(path, 10**8)
        assert header is not None
        assert header.pixel_tag == 0

    def test_a_deflated_bomb_is_refused(self, tmp_path: Path) -> None:
        ds = make_series().slices[0]
        path = tmp_path / "bomb.dcm"
        whole = encode(ds, DeflatedExplicitVRLittleEndian)
        start = _data_set_at(whole)
        packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
        path.write_bytes(whole[:start] + packer.compress(b"\0" * 50_000_000) + packer.flush())
        header = read_header(path, 1_000_000)
        assert header is not None
        assert header.fault is not None
        assert header.fault.code == "OVER_BUDGET"

    @pytest.mark.parametrize(
        ("content", "expected"),
        [
            (b"", False),
            (b"hello world, this is text", False),
            (b"\0" * 128 + b"DICM", True),
            (b"\x08\0\x05\0CS\x0a\0ISO_IR 100", True),
            (b"\x08\0\x05\0\x0a\0\0\0ISO_IR 100", True),
            (b"\x89PNG\r\n\x1a\n" + b"\0" * 200, False),
            (b"\0" * 300, False),
        ],
    )
    def test_looks_like_dicom(self, content: bytes, expected: bool, tmp_path: Path) -> None:
        path = tmp_path / "file"
        path.write_bytes(content)
        assert looks_like_dicom(path) is expected

    def test_no_file_looks_like_dicom(self, tmp_path: Path) -> None:
        assert not looks_like_dicom(tmp_path / "missing")
        assert not looks_like_dicom(tmp_path)


def _data_set_at(content: bytes) -> int:
    (length,) = struct.unpack_from("<I", content, 140)
    return 144 + length


class TestVolume:
    def test_all_that_a_volume_says(self, tmp_path: Path) -> None:
        made = make_series(SeriesDescription="T1 post / gadolinium", SeriesNumber=7)
        paths = save(tmp_path, [made.slices[index] for index in (5, 0, 3, 7, 1, 6, 2, 4)])
        found = survey_dicom(paths)
        (volume,) = found.volumes
        assert volume.shape == (24, 20, 8)
        assert volume.modality == "CT"
        assert volume.series_uid == made.slices[0].SeriesInstanceUID
        assert volume.name.startswith("007_T1-post-gadolinium_")
        assert [uid for _, uid in volume.references] == [ds.SOPInstanceUID for ds in made.slices]
        assert volume.header.SOPInstanceUID == made.slices[0].SOPInstanceUID
        assert "PixelData" not in volume.header
        assert volume.findings == ()
        assert all(record.status == "used" and record.volume == 0 for record in found.files)
        loaded = volume.load()
        assert isinstance(loaded, MetaTensor)
        assert loaded.dtype == torch.int16
        assert loaded.affine.dtype == torch.float64
        np.testing.assert_allclose(loaded.affine.numpy(), made.truth.affine, atol=1e-9)

    def test_names_do_not_depend_on_what_else_is_there(self, tmp_path: Path) -> None:
        first = save(tmp_path / "a", make_series(series="a").slices)
        alone = survey_dicom(first).volumes[0].name
        other = save(tmp_path / "b", make_series(series="b").slices)
        names = [volume.name for volume in survey_dicom([*other, *first]).volumes]
        assert alone in names
        assert len(set(names)) == 2
        assert names == sorted(names)

    def test_files_in_any_order_give_the_same(self, tmp_path: Path) -> None:
        paths = save(tmp_path, make_series().slices)
        one, other = survey_dicom(paths), survey_dicom([*reversed(paths), *paths])
        assert one.files == other.files
        assert torch.equal(one.volumes[0].load().as_tensor(), other.volumes[0].load().as_tensor())

    def test_pipes_folders_and_missing_files_are_accounted_for(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "pipe")
        (tmp_path / "folder").mkdir()
        (tmp_path / "empty").touch()
        paths = [tmp_path / name for name in ("pipe", "folder", "empty", "missing")]
        records = {record.path.name: (record.status, record.code) for record in survey_dicom(paths).files}
        assert records == {
            "pipe": ("skipped", "NOT_DICOM"),
            "folder": ("skipped", "NOT_DICOM"),
            "empty": ("skipped", "EMPTY_FILE"),
            "missing": ("refused", "UNREADABLE"),
        }

    def test_a_file_that_changes_after_the_survey_is_refused(self, tmp_path: Path) -> None:
        paths = save(tmp_path, make_series().slices)
        (volume,) = survey_dicom(paths).volumes
        paths[4].write_bytes(paths[4].read_bytes()[:-200])
        with pytest.raises(Refused, match="TRUNCATED_PIXEL_DATA"):
            volume.load()
        paths[4].unlink()
        with pytest.raises(Refused, match="UNREADABLE"):
            volume.load()


class TestTypes:
    """The smallest type that holds the values."""

    @pytest.mark.parametrize(
        ("pixels", "base", "expected"),
        [
            (PLAIN, 1200.0, torch.int16),
            (Pixels(slope=None, intercept=0.0, stored=16), 40000.0, torch.int32),
            (Pixels(slope=1.0, intercept=-30000.0, stored=16), 0.0, torch.int16),
            (Pixels(slope=1.0, intercept=-40000.0, stored=16), -38000.0, torch.int32),
            (Pixels(slope=2.0, intercept=10.0, stored=16), 1200.0, torch.int16),
            (Pixels(slope=0.5, intercept=0.0, stored=16), 1200.0, torch.float32),
            (Pixels(slope=1e-3, intercept=0.0, allocated=32, stored=32), 2e6, torch.float64),
            (Pixels(slope=1.0, intercept=0.0, allocated=32, stored=32), 3e9, torch.float64),
        ],
    )
    def test_type(self, pixels: Pixels, base: float, expected: torch.dtype, tmp_path: Path) -> None:
        field = Field(base=base)
        save(tmp_path, make_series(values=field, pixels=pixels).slices)
        volume = read_series(tmp_path)
        assert volume.dtype == expected
        points = np.stack([field(GRID.points(index)).T for index in range(GRID.slices)], axis=-1)
        step = pixels.slope or 1.0
        np.testing.assert_allclose(volume.as_tensor()[0].numpy(), points, atol=step / 2 * 1.001, rtol=0)

    @pytest.mark.parametrize(("kind", "expected"), [("f4", torch.float32), ("f8", torch.float64)])
    def test_floating_pixels(self, kind: str, expected: torch.dtype, tmp_path: Path) -> None:
        rng = np.random.default_rng(3)
        values = 1 + 1e-12 * rng.integers(0, 1000, (GRID.slices, GRID.rows, GRID.columns)).astype(kind)
        made = make_series()
        for ds, plane in zip(made.slices, values, strict=True):
            del ds.PixelData, ds.RescaleSlope, ds.RescaleIntercept, ds.BitsStored, ds.HighBit, ds.PixelRepresentation
            ds.BitsAllocated = plane.itemsize * 8
            setattr(ds, "FloatPixelData" if kind == "f4" else "DoubleFloatPixelData", plane.astype(kind).tobytes())
        save(tmp_path, made.slices)
        volume = read_series(tmp_path)
        assert volume.dtype == expected
        np.testing.assert_array_equal(volume.as_tensor()[0].numpy(), values.transpose(2, 1, 0))

    def test_nan_is_refused(self, tmp_path: Path) -> None:
        made = make_series()
        plane = np.zeros((GRID.rows, GRID.columns), "f4")
        for index, ds in enumerate(made.slices):
            plane[3, 3] = np.nan if index == 2 else 0
            del ds.PixelData, ds.RescaleSlope, ds.RescaleIntercept
            ds.BitsAllocated, ds.FloatPixelData = 32, plane.tobytes()
        save(tmp_path, made.slices)
        with pytest.raises(Refused, match="NON_FINITE"):
            read_series(tmp_path)

    def test_mixed_signedness(self, tmp_path: Path) -> None:
        """Half of the slices are signed, half are not: one volume of right values."""
        one = make_series(pixels=Pixels(slope=None, intercept=0.0, signed=True, stored=16))
        other = make_series(pixels=Pixels(slope=None, intercept=0.0, stored=16))
        save(tmp_path, [(one if index % 2 else other).slices[index] for index in range(GRID.slices)])
        points = np.stack([Field()(GRID.points(index)).T for index in range(GRID.slices)], axis=-1)
        np.testing.assert_allclose(read_series(tmp_path).as_tensor()[0].numpy(), points, atol=0.5)


class TestRunLengths:
    """The decoder behind RLE panics on some damaged input; none of it gets there."""

    def image(self) -> Image:
        return Image(RLELossless, 2, 4, 8, 8, False, "MONOCHROME2")

    def frame(self, segment: bytes) -> bytes:
        return struct.pack("<16I", 1, 64, *[0] * 14) + segment

    @pytest.mark.parametrize("padding", [b"", b"\0", b"\0\0", b"\0\0\0"])
    def test_padding_is_no_fault(self, padding: bytes) -> None:
        out = np.zeros((2, 4), np.uint8)
        decode(self.image(), self.frame(b"\x03\1\2\3\4\xfd\x09" + padding), out, "frame")
        assert out.tolist() == [[1, 2, 3, 4], [9, 9, 9, 9]]

    @pytest.mark.parametrize("segment", [b"", b"\x07\1\2\3\4\5\6\7", b"\xfd", b"\xfd\1", b"\x80"])
    def test_too_short(self, segment: bytes) -> None:
        with pytest.raises(Refused, match="UNDECODABLE"):
            decode(self.image(), self.frame(segment), np.zeros((2, 4), np.uint8), "frame")

    def test_any_bytes(self) -> None:
        rng = np.random.default_rng(5)
        for _ in range(2000):
            segment = rng.choice(np.array([0, 1, 2, 127, 128, 129, 254, 255], np.uint8), rng.integers(0, 30)).tobytes()
            with suppress(Refused):
                decode(self.image(), self.frame(segment), np.zeros((2, 4), np.uint8), "frame")


class TestBudget:
    def test_a_volume_over_the_budget(self, tmp_path: Path) -> None:
        paths = save(tmp_path, make_series().slices)
        found = survey_dicom(paths, memory_budget=5_000)
        assert not found.volumes
        assert set(refusals(found).values()) == {"OVER_BUDGET"}

    @pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, RLELossless])
    def test_a_promise_of_gigabytes_allocates_nothing(self, syntax: str, tmp_path: Path) -> None:
        made = make_series()
        for ds in made.slices:
            if syntax == RLELossless:
                ds.file_meta = pydicom.dataset.FileMetaDataset()
                ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
                ds.compress(RLELossless, generate_instance_uid=False)
            ds.Rows = ds.Columns = 65535
        paths = save(tmp_path, made.slices, syntax=syntax)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        found = survey_dicom(paths)
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000
        assert set(refusals(found).values()) == {"HEADER_PROMISES_TOO_MUCH"}


class TestOneVolume:
    def test_several(self, tmp_path: Path) -> None:
        save(tmp_path / "a", make_series(series="a").slices)
        save(tmp_path / "b", make_series(series="b").slices)
        with pytest.raises(Refused, match="SEVERAL_VOLUMES"):
            read_series(tmp_path)
        assert tuple(read_series(tmp_path / "b").shape) == (1, 24, 20, 8)

    def test_none(self, tmp_path: Path) -> None:
        with pytest.raises(Refused, match="NO_VOLUME"):
            read_series(tmp_path)
        with pytest.raises(Refused, match=r"NO_VOLUME.*does not exist"):
            read_series(tmp_path / "missing")

    def test_the_reason_why_there_is_none(self, tmp_path: Path) -> None:
        save(tmp_path, make_series().slices[:1])
        with pytest.raises(Refused, match=r"NO_VOLUME.*SINGLE_SLICE"):
            read_series(tmp_path)


class TestPlain:
    def test_without_geometry(self, tmp_path: Path) -> None:
        ds = make_series().slices[2]
        del ds.ImagePositionPatient, ds.PixelSpacing
        (path,) = save(tmp_path, [ds])
        assert refusals(survey_dicom([path])) == {path.name: "NO_GEOMETRY"}
        plain = read_plain(path)
        np.testing.assert_allclose(plain, Field()(GRID.points(2)), atol=0.5)

    def test_not_dicom(self, tmp_path: Path) -> None:
        (tmp_path / "text").write_text("no")
        with pytest.raises(Refused, match="NOT_DICOM"):
            read_plain(tmp_path / "text")
        with pytest.raises(Refused, match="UNREADABLE"):
            read_plain(tmp_path / "missing")

    def test_budget(self, tmp_path: Path) -> None:
        (path,) = save(tmp_path, make_series().slices[:1])
        with pytest.raises(Refused, match="OVER_BUDGET"):
            read_plain(path, memory_budget=1000)

    def test_colour(self, tmp_path: Path) -> None:
        ds = make_series().slices[0]
        ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PlanarConfiguration = 3, "RGB", 0
        set_bytes(ds, bytes(GRID.rows * GRID.columns * 6))
        (path,) = save(tmp_path, [ds])
        with pytest.raises(Refused, match="UNSUPPORTED_TYPE"):
            read_plain(path)


class TestUpright:
    """Gantry tilt undone."""

    @pytest.mark.parametrize("step", [(0.0, 1.1, 3.0), (0.0, -0.9, 3.0), (0.55, 0.3, 3.0)])
    def test_values_stay_at_their_places(self, step: tuple[float, float, float], tmp_path: Path) -> None:
        field = Field(twist=0.0)
        grid = Grid(step=step)
        save(tmp_path, make_series(grid, field).slices)
        found = survey_dicom(sorted(tmp_path.iterdir()))
        assert "GANTRY_TILT" in codes(found)
        tilted = found.volumes[0].load()
        upright = resample_upright(tilted, fill=-5000.0)
        affine = upright.affine.numpy()
        unit = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
        np.testing.assert_allclose(unit.T @ unit, np.eye(3), atol=1e-9)
        record = upright.meta["resampled_upright"]
        assert record["angle_degrees"] == pytest.approx(np.degrees(np.arctan2(np.hypot(*step[:2]), step[2])))
        array = upright.as_tensor()[0].numpy()
        index = np.argwhere(array > -1000)
        places = index @ affine[:3, :3].T + affine[:3, 3]
        inside = _well_inside(places, tilted)
        assert inside.sum() > 0.8 * tilted.numel()
        wanted = field(places[inside] * [-1, -1, 1])
        np.testing.assert_allclose(array[tuple(index[inside].T)], wanted, atol=1.0)

    def test_an_upright_volume_comes_back_as_it_is(self, tmp_path: Path) -> None:
        save(tmp_path, make_series().slices)
        volume = read_series(tmp_path)
        assert resample_upright(volume) is volume

    def test_what_has_no_affine_to_use_is_refused(self) -> None:
        volume = MetaTensor(torch.zeros(1, 2, 2, 2), affine=torch.diag(torch.tensor([1.0, 0.0, 1.0, 1.0])))
        with pytest.raises(MedgenError, match="resample_upright"):
            resample_upright(volume)


def _well_inside(places: np.ndarray, volume: MetaTensor) -> np.ndarray:
    back = np.linalg.inv(volume.affine.numpy())
    index = places @ back[:3, :3].T + back[:3, 3]
    upper = np.array(volume.shape[1:]) - 1
    return np.asarray(((index >= -1e-6) & (index <= upper + 1e-6)).all(axis=1))


class TestSplit:
    def test_names_and_volumes_do_not_depend_on_the_order_of_files(self, tmp_path: Path) -> None:
        """Two orientations and two echoes in one series: each gets its number whatever the files are called."""
        lying = make_series(modality="MR", EchoTime="10")
        late = make_series(modality="MR", values=Field().plus(50), first=20, EchoTime="20")
        standing = make_series(Grid(row=(0, 1, 0), column=(0, 0, -1), step=(3, 0, 0)), modality="MR", first=40)
        slices = [*lying.slices, *late.slices, *standing.slices]
        found = []
        for name, order in (("a", slices), ("b", slices[::-1]), ("c", slices[::2] + slices[1::2])):
            found.append(survey_dicom(save(tmp_path / name, order)))
        for other in found[1:]:
            assert [volume.name for volume in other.volumes] == [volume.name for volume in found[0].volumes]
            for one, two in zip(other.volumes, found[0].volumes, strict=True):
                assert torch.equal(one.load().as_tensor(), two.load().as_tensor())
        assert len(found[0].volumes) == 3
        assert codes(found[0]) == {"SPLIT_SERIES"}

    def test_slices_beside_each_other_are_no_stack(self, tmp_path: Path) -> None:
        save(tmp_path, make_series(Grid(step=(30.0, 0.0, 0.5))).slices)
        found = survey_dicom(sorted(tmp_path.iterdir()))
        assert set(refusals(found).values()) == {"BAD_GEOMETRY"}


class TestTolerance:
    """What counts as even: 2% of a step, at least 0.01 mm."""

    @pytest.mark.parametrize(("shift", "read"), [(0.0005, True), (0.03, True), (0.2, False)])
    def test_one_slice_off(self, shift: float, read: bool, tmp_path: Path) -> None:
        made = make_series()
        position = GRID.position(4) + np.array([0, 0, shift])
        made.slices[4].ImagePositionPatient = numbers(position)
        save(tmp_path, made.slices)
        found = survey_dicom(sorted(tmp_path.iterdir()))
        assert bool(found.volumes) is read
        if read:
            assert ("POSITIONS_ROUNDED" in codes(found)) is (shift > 0.01)
        else:
            assert set(refusals(found).values()) == {"UNEVEN_SLICES"}
