"""Pictures with two axes go through the same functions as scans, and come back as pictures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from medgen.checks import MedgenError
from medgen.io.nifti import read_nifti, write_nifti
from medgen.io.read_picture import read_picture
from medgen.io.write_picture import write_picture
from medgen.restoration.edit import edit_file
from medgen.restoration.harmonize import harmonize_file
from medgen.restoration.reconstruct import reconstruct_file
from medgen.restoration.segment import segment_file
from medgen.restoration.translate import translate_file
from tests.models.test_autoencoder import KL, content
from tests.models.test_autoencoder import model as autoencoder
from tests.restoration.small_models import small_model

SIZE = (21, 26)  # odd, larger than the models' grids


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    place = torch.stack(torch.meshgrid(*(torch.linspace(-1, 1, n) for n in SIZE), indexing="ij"))
    values = (200 * torch.exp(-3 * place.square().sum(0))).round().to(torch.uint8)
    write_picture(tmp_path / "scan.png", values[None], spacing=(2.0, 2.0))
    return tmp_path / "scan.png"


@pytest.mark.parametrize("ending", [".png", ".tif"])
def test_translation_of_a_picture(picture: Path, ending: str) -> None:
    model, out = small_model("translate", 2, spacing=2.0), picture.with_name(f"out{ending}")
    translate_file({"T1w": picture}, out, model=model, device="cpu")
    made = read_picture(out)
    assert made.shape == (1, *SIZE)
    assert made.meta["synthetic"]
    assert made.meta["spacing"] == [2.0, 2.0]
    assert made.std() > 0
    assert made.meta["stored"] == ("uint8" if ending == ".png" else "float32")
    assert json.loads(picture.with_name("out.json").read_text())["synthetic"] is True


def test_a_png_notes_the_window_of_its_values(picture: Path) -> None:
    model = small_model("translate", 2, spacing=2.0)
    for ending in (".png", ".tif"):
        translate_file({"T1w": picture}, picture.with_name(f"out{ending}"), model=model, overwrite=True, device="cpu")
    exact, coded = read_picture(picture.with_name("out.tif")), read_picture(picture.with_name("out.png"))
    low, high = coded.meta["provenance"]["window"]
    torch.testing.assert_close(
        low + coded.as_tensor() / 255 * (high - low), exact.as_tensor(), rtol=0, atol=(high - low) / 500
    )


def test_segmentation_of_a_picture_gives_a_picture_of_ids(picture: Path) -> None:
    model = small_model("segment", 2, spacing=2.0)
    out, apart = picture.with_name("label.png"), picture.with_name("apart.tif")
    segment_file({"T1w": picture}, out, model=model, samples=2, disagreement=apart, device="cpu")
    ids = read_picture(out, role="label")
    assert ids.shape == (1, *SIZE)
    assert set(torch.unique(ids).tolist()) <= {0, 1, 2}
    assert 0 <= read_picture(apart).min() <= read_picture(apart).max() <= 1


def test_harmonized_pictures_keep_their_type(picture: Path) -> None:
    brighter = picture.with_name("reference.png")
    write_picture(brighter, (read_picture(picture).as_tensor() * 0.5 + 60).to(torch.uint8), spacing=(2.0, 2.0))
    harmonize_file(picture, [brighter], picture.with_name("out.png"))
    made = read_picture(picture.with_name("out.png"))
    assert made.meta["stored"] == "uint8"
    assert abs(float(made.mean()) - float(read_picture(brighter).mean())) < 10


@pytest.mark.parametrize("task", ["image", "joint"])
def test_reconstruction_of_a_picture(picture: Path, task: str) -> None:
    channels = 4 * (2 if task == "joint" else 1)
    network = {**KL, "spatial_dims": 2, "in_channels": channels, "out_channels": channels}
    fields = {"channel_mean": [0.1] * channels, "channel_std": [0.5] * channels, "network": network}
    if task == "image":
        fields |= {"label_encoding": "one_hot", "label_channels": []}
    model = autoencoder(KL, 2, task=task, **fields)
    label = picture.with_name("label.png")
    write_picture(label, 3 * (read_picture(picture).as_tensor() > 100).to(torch.uint8), spacing=(2.0, 2.0))
    latent = picture.with_name("latent.npy")
    given = {"label": label} if task == "joint" else {}
    shape = reconstruct_file(picture, picture.with_name("out.png"), model=model, latent=latent, device="cpu", **given)
    assert shape == (3, 11, 13, 1)  # 21 x 26 pixels of 2 mm at 1 mm, an eighth of that, one slice
    made = read_picture(picture.with_name("out.png"))
    assert made.shape == (1, *SIZE)
    assert made.meta["stored"] == "uint8"
    if task == "image":
        with pytest.raises(MedgenError, match=r"label must be given exactly where the model encodes one\. Got one"):
            reconstruct_file(picture, picture.with_name("b.png"), model=model, label=label, device="cpu")


def test_an_autoencoder_of_label_maps(tmp_path: Path) -> None:
    network = {**KL, "spatial_dims": 3, "in_channels": 8, "out_channels": 8}
    fields = {"channel_mean": [0.1] * 8, "channel_std": [0.5] * 8, "network": network}
    model = autoencoder(KL, 3, task="segment", source_modalities=["T1w"], **fields)
    assert content(KL)["label_channels"] == [["ball", [3]]]
    ids = torch.zeros(1, 12, 14, 10, dtype=torch.int16)
    ids[:, 4:9, 3:9, 2:8] = 3
    write_nifti(tmp_path / "label.nii.gz", MetaTensor(ids, affine=torch.eye(4).double()))
    reconstruct_file(tmp_path / "label.nii.gz", tmp_path / "out.nii.gz", model=model, device="cpu")
    made = read_nifti(tmp_path / "out.nii.gz", role="label")
    assert made.shape == ids.shape
    assert set(torch.unique(made).tolist()) <= {0, 3}
    with pytest.raises(MedgenError, match="encodes a label map alone"):
        reconstruct_file(tmp_path / "label.nii.gz", tmp_path / "b.nii.gz", model=model, label=tmp_path / "label.nii.gz")


def test_a_label_elsewhere_is_refused(tmp_path: Path) -> None:
    model = autoencoder(KL)
    for name, shift in (("scan", 0.0), ("label", 5.0)):
        affine = torch.eye(4).double()
        affine[0, 3] = shift
        write_nifti(tmp_path / f"{name}.nii.gz", MetaTensor(torch.zeros(1, 12, 12, 12).to(torch.int16), affine=affine))
    with pytest.raises(MedgenError, match="label must lie on the image's grid"):
        reconstruct_file(
            tmp_path / "scan.nii.gz", tmp_path / "out.nii.gz", model=model, label=tmp_path / "label.nii.gz"
        )
    assert not (tmp_path / "out.nii.gz").exists()


def test_colours_are_refused(tmp_path: Path) -> None:
    write_picture(tmp_path / "colours.png", torch.zeros(3, 8, 8, dtype=torch.uint8))
    with pytest.raises(MedgenError, match="holds 3 channels; a scan has one"):
        translate_file({"T1w": tmp_path / "colours.png"}, tmp_path / "out.png", model=small_model("translate", 2))


def test_a_picture_does_not_become_a_volume(picture: Path) -> None:
    with pytest.raises(MedgenError, match=r"must end in .png, .tif or .tiff. Rename it"):
        translate_file({"T1w": picture}, picture.with_name("out.nii.gz"), model=small_model("translate", 2))


def test_a_volume_does_not_become_a_picture(tmp_path: Path) -> None:
    write_nifti(tmp_path / "scan.nii.gz", MetaTensor(torch.ones(1, 8, 8, 8), affine=torch.eye(4).double()))
    with pytest.raises(MedgenError, match=r"must end in .nii or .nii.gz. Rename it"):
        translate_file({"T1w": tmp_path / "scan.nii.gz"}, tmp_path / "out.png", model=small_model("translate", 2))


def test_pictures_are_not_volumes(picture: Path) -> None:
    with pytest.raises(MedgenError, match="is one slice, and model 'small-translate' works on volumes"):
        translate_file({"T1w": picture}, picture.with_name("out.png"), model=small_model("translate", 3))
    with pytest.raises(MedgenError, match="NO_GEOMETRY"):
        edit_file(picture, picture.with_name("out.png"), model=small_model("image"))


def test_a_tiff_of_signed_numbers_stays_a_tiff(tmp_path: Path) -> None:
    import tifffile

    values = np.linspace(-1000, 900, 300).astype(np.int16).reshape(20, 15)
    tifffile.imwrite(tmp_path / "scan.tif", values)
    tifffile.imwrite(tmp_path / "reference.tif", values + 50)
    harmonize_file(tmp_path / "scan.tif", [tmp_path / "reference.tif"], tmp_path / "out.tif")
    made = read_picture(tmp_path / "out.tif")
    assert made.meta["stored"] == "float32"
    assert float(made.min()) < -900
    assert torch.equal(made.as_tensor(), made.as_tensor().round())


def test_slices_of_a_volume_in_the_plane_that_is_asked_for() -> None:
    channels = 4
    network = {**KL, "spatial_dims": 2, "in_channels": channels, "out_channels": channels}
    fields = {"channel_mean": [0.1] * channels, "channel_std": [0.5] * channels, "network": network}
    model = autoencoder(KL, 2, task="image", label_encoding="one_hot", label_channels=[], **fields)
    affine = torch.diag(torch.tensor([3.0, 1.0, 1.0, 1.0], dtype=torch.float64))
    stack = MetaTensor(torch.rand(1, 6, 20, 24, generator=torch.Generator().manual_seed(0)), affine=affine)
    for plane, latent in (("sagittal", (3, 5, 6, 6)), ("axial", (3, 5, 5, 24))):
        made = model.reconstruct(stack, plane=plane)
        assert tuple(made["latent"].shape) == latent
        assert made["image"].shape == stack.shape
    alone = model.reconstruct(MetaTensor(stack[:, 2].as_tensor(), affine=torch.eye(4).double()))
    assert alone["image"].shape == (1, 20, 24)


def test_what_an_oblique_scan_does_not_reach_is_its_lowest() -> None:
    fields = {"channel_mean": [0.1] * 8, "channel_std": [0.5] * 8}
    network = {**KL, "spatial_dims": 3, "in_channels": 8, "out_channels": 8}
    model = autoencoder(KL, 3, task="image", label_encoding="one_hot", label_channels=[], network=network, **fields)
    turn = torch.eye(4, dtype=torch.float64)
    turn[:2, :2] = torch.tensor([[0.9063, -0.4226], [0.4226, 0.9063]], dtype=torch.float64)
    noise = torch.randn(1, 12, 12, 12, generator=torch.Generator().manual_seed(0))
    seen: list[torch.Tensor] = []
    plain = model.encode

    def noted(image: torch.Tensor, *others: object) -> torch.Tensor:
        seen.append(image)
        return plain(image, *others)

    model.encode = noted
    model.reconstruct(MetaTensor(-1000 + 50 * noise, affine=turn))
    assert seen[0].mean() < 0.6  # padding of 0 would lie far above all of the scan
    assert (seen[0] == 0).float().mean() > 0.2
