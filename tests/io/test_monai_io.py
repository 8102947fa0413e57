"""MONAI pipelines that read and write through medgen."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from monai.data import DataLoader, Dataset, MetaTensor, decollate_batch
from monai.transforms import (
    Compose,
    EnsureChannelFirstd,
    LoadImage,
    LoadImaged,
    Orientationd,
    SaveImage,
    SaveImaged,
    Spacingd,
)

from medgen.io.monai_io import MedgenReader, MedgenWriter
from medgen.io.nifti import write_nifti
from tests.io import small_series

pytestmark = pytest.mark.filterwarnings("ignore:NvImgCodecPydicomReader:UserWarning")  # of MONAI's own readers


@pytest.fixture
def volumes(tmp_path: Path) -> dict[str, Path]:
    """The same values as a series and as a file."""
    small_series.write(tmp_path / "series")
    (tmp_path / "series" / "notes.txt").write_text("junk")
    image = LoadImage(reader=MedgenReader, ensure_channel_first=True, dtype=np.int16)(tmp_path / "series")
    write_nifti(tmp_path / "scan.nii.gz", image)
    return {"series": tmp_path / "series", "file": tmp_path / "scan.nii.gz"}


@pytest.mark.parametrize("kind", ["series", "file", "files"])
def test_load_image(volumes: dict[str, Path], kind: str) -> None:
    path = sorted(volumes["series"].glob("IM*")) if kind == "files" else volumes[kind]
    image, meta = LoadImage(reader=MedgenReader, image_only=False)(path)
    assert image.shape == (8, 6, 5)
    assert image.dtype == torch.float32
    np.testing.assert_array_equal(image.numpy(), small_series.expected(image.affine.numpy(), tuple(image.shape)))
    assert meta["findings"] == ""
    assert torch.equal(torch.as_tensor(meta["original_affine"]), image.affine)
    first = LoadImage(reader="medgen.io.monai_io.MedgenReader", ensure_channel_first=True)(path)
    assert first.shape == (1, 8, 6, 5)


def test_a_refusal_is_not_passed_on_to_other_readers(tmp_path: Path) -> None:
    small_series.write(tmp_path / "gap", leave_out=(2,))
    whole = tmp_path / "scan.nii"
    write_nifti(whole, MetaTensor(torch.ones(1, 8, 8, 8, dtype=torch.int16), affine=torch.eye(4)))
    whole.write_bytes(whole.read_bytes()[:-100])
    load = LoadImage(reader=MedgenReader)
    with pytest.raises(ValueError, match=r"^MISSING_SLICE: "):
        load(tmp_path / "gap")
    with pytest.raises(ValueError, match=r"^TRUNCATED_FILE: |HEADER_PROMISES_TOO_MUCH: "):
        load(whole)


def test_other_formats_go_to_other_readers(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.ones((3, 4, 5)))
    assert LoadImage(reader=MedgenReader)(tmp_path / "a.npy").shape == (3, 4, 5)


def test_several_files_are_channels(tmp_path: Path) -> None:
    for number in (1, 2):
        values = torch.full((1, 4, 5, 6), number, dtype=torch.int16)
        write_nifti(tmp_path / f"{number}.nii.gz", MetaTensor(values, affine=torch.eye(4)))
    load = LoadImage(reader=MedgenReader, ensure_channel_first=True)
    image = load([tmp_path / "1.nii.gz", tmp_path / "2.nii.gz"])
    assert image.shape == (2, 4, 5, 6)
    assert image[:, 0, 0, 0].tolist() == [1, 2]
    write_nifti(tmp_path / "3.nii.gz", MetaTensor(torch.ones(1, 4, 5, 6), affine=2 * torch.eye(4)))
    with pytest.raises(ValueError, match=r"^GRIDS_DIFFER: "):
        load([tmp_path / "1.nii.gz", tmp_path / "3.nii.gz"])


def test_dictionary_pipeline_in_worker_processes(volumes: dict[str, Path]) -> None:
    items = [{"image": str(volumes[kind]), "label": str(volumes["file"])} for kind in ("series", "file", "series")]
    pipeline = Compose(
        [
            LoadImaged(keys=["image", "label"], reader=MedgenReader),
            EnsureChannelFirstd(keys=["image", "label"]),
            Orientationd(keys=["image", "label"], axcodes="RAS", labels=None),
            Spacingd(keys=["image"], pixdim=(2.0, 2.0, 2.0)),
        ]
    )
    loader = DataLoader(Dataset(items, pipeline), batch_size=3, num_workers=2)
    (batch,) = list(loader)
    assert batch["label"].shape == (3, 1, 8, 6, 5)
    assert batch["image"].meta["findings"] == ["", "", ""]
    assert torch.equal(batch["label"][0].as_tensor(), batch["label"][1].as_tensor())


def test_findings_are_in_the_metadata(tmp_path: Path) -> None:
    small_series.write(tmp_path / "s", PhotometricInterpretation="MONOCHROME1")
    assert LoadImage(reader=MedgenReader)(tmp_path / "s").meta["findings"] == "MONOCHROME1"


def test_save_image(volumes: dict[str, Path], tmp_path: Path) -> None:
    image = LoadImage(reader=MedgenReader, ensure_channel_first=True)(volumes["series"])
    save = SaveImage(tmp_path / "out", writer=MedgenWriter, resample=False, output_dtype=np.int16, print_log=False)
    save(image)
    (path,) = (tmp_path / "out").rglob("*.nii.gz")
    saved = nib.load(path)
    assert saved.get_data_dtype() == np.int16
    np.testing.assert_array_equal(np.asarray(saved.dataobj), image.numpy()[0])
    np.testing.assert_allclose(saved.affine, image.affine.numpy())


def test_save_a_batch_and_resample_back(volumes: dict[str, Path], tmp_path: Path) -> None:
    pipeline = Compose(
        [
            LoadImaged(keys="image", reader=MedgenReader, ensure_channel_first=True),
            Spacingd(keys="image", pixdim=(1.5, 2.0, 1.5)),
        ]
    )
    data = Dataset([{"image": str(path)} for path in volumes.values()], pipeline)
    (batch,) = list(DataLoader(data, batch_size=2))
    for resample in (False, True):
        save = SaveImaged(
            keys="image", output_dir=tmp_path / str(resample), writer=MedgenWriter, resample=resample, print_log=False
        )
        for item in decollate_batch(batch):
            save(item)
        paths = sorted((tmp_path / str(resample)).rglob("*.nii.gz"))
        assert len(paths) == 2
        assert {nib.load(path).shape for path in paths} == {(8, 6, 5) if resample else (8, 6, 9)}


def test_channels_and_labels_are_saved(tmp_path: Path) -> None:
    image = MetaTensor(torch.arange(2 * 60).reshape(2, 3, 4, 5).float(), affine=torch.eye(4))
    save = SaveImage(tmp_path, writer=MedgenWriter, output_ext=".nii", separate_folder=False, print_log=False)
    save(image, filename=tmp_path / "two")
    saved = np.asarray(nib.load(tmp_path / "two.nii").dataobj)
    assert saved.shape == (3, 4, 5, 2)
    np.testing.assert_array_equal(np.moveaxis(saved, -1, 0), image.numpy())
    with pytest.raises(RuntimeError, match="do not fit uint8"):
        SaveImage(tmp_path / "x", writer=MedgenWriter, output_dtype=np.uint8, print_log=False)(image * 10)


def test_what_does_not_fit_is_not_saved(tmp_path: Path) -> None:
    image = MetaTensor(torch.full((1, 3, 4, 5), 300.0), affine=torch.eye(4))
    save = SaveImage(tmp_path / "x", writer=MedgenWriter, output_dtype=np.uint8, print_log=False)
    with pytest.raises(RuntimeError, match="do not fit uint8"):
        save(image)
    image[0, 0, 0, 0] = float("nan")
    with pytest.raises(RuntimeError, match="NaN or infinite"):
        SaveImage(tmp_path / "x", writer=MedgenWriter, print_log=False)(image)
    assert not list((tmp_path / "x").rglob("*.nii.gz"))


def test_synthetic_stays_so(volumes: dict[str, Path], tmp_path: Path) -> None:
    image = LoadImage(reader=MedgenReader, ensure_channel_first=True)(volumes["file"])
    assert image.meta["synthetic"] is False
    write_nifti(tmp_path / "made.nii.gz", image, synthetic=True)
    load = LoadImage(reader=MedgenReader, ensure_channel_first=True)
    save = SaveImage(tmp_path / "out", writer=MedgenWriter, resample=False, separate_folder=False, print_log=False)
    save(load(tmp_path / "made.nii.gz") * 2)
    (path,) = (tmp_path / "out").glob("*.nii.gz")
    assert load(path).meta["synthetic"] is True


@pytest.mark.parametrize("ending", [".nrrd", ".mha"])
def test_files_of_other_formats(volumes: dict[str, Path], tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"scan{ending}"
    sitk.WriteImage(sitk.ReadImage(str(volumes["file"])), str(path))
    load = LoadImage(reader=MedgenReader)
    image, same = load(path), load(volumes["file"])
    assert torch.equal(image.as_tensor(), same.as_tensor())
    torch.testing.assert_close(image.affine, same.affine)
    assert image.meta["synthetic"] is False
