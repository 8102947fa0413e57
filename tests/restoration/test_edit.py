"""Edits of scans: what stays bit for bit, what changes, and what is refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from medgen import load_model
from medgen.checks import MedgenError
from medgen.io.nifti import read_nifti
from medgen.models.diffusion_spec import DiffusionSpec
from medgen.restoration.edit import edit, edit_file
from medgen.restoration.interpolate import interpolate
from tests.models.test_diffusion_parts import build, kinds
from tests.restoration.small_models import small_model

AFFINES = {
    "ras": np.diag([4.0, 4.0, 4.0, 1.0]),
    "lps": np.diag([-1.5, -1.5, 5.0, 1.0]),
    "oblique": np.array([[0.0, 1.8, 0.6, 3], [-1.9, 0.0, 0.0, 5], [0.2, -0.6, 1.8, 1], [0, 0, 0, 1]]),
}
HIPPOCAMPUS = Path(__file__).parents[1] / "data" / "hippocampus"


def scan(name: str, shape: tuple[int, int, int] = (24, 20, 16)) -> tuple[MetaTensor, MetaTensor, MetaTensor]:
    """A bright object, a region in it, and two labels."""
    place = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij"))
    image = 900 * np.exp(-2 * (place**2).sum(0)) + np.random.default_rng(0).normal(0, 5, shape) + 50
    region = ((place - 0.1) ** 2).sum(0) < 0.2
    label = np.where((place**2).sum(0) < 0.4, np.where(place[0] > 0, 1, 3), 0)
    affine = torch.from_numpy(AFFINES[name])
    return (
        MetaTensor(torch.from_numpy(image[None]).float(), affine=affine),
        MetaTensor(torch.from_numpy(region[None].astype(np.uint8)), affine=affine),
        MetaTensor(torch.from_numpy(label[None].astype(np.int32)), affine=affine),
    )


@pytest.mark.parametrize("name", AFFINES)
@pytest.mark.parametrize("method", ["sdedit", "inversion"])
def test_outside_a_region_no_bit_changes_and_inside_all_do(name: str, method: str) -> None:
    image, region, _ = scan(name)
    before = image.as_tensor().clone()
    model = small_model("image", sized=True)
    made = edit(image, model, 0.7, 3, method=method, inpaint_mask=region, conditions={"size": "large"})
    inside = region.as_tensor() > 0
    assert torch.equal(image.as_tensor(), before)
    assert torch.equal(made.as_tensor()[~inside], before[~inside])
    assert (made.as_tensor()[inside] != before[inside]).float().mean() > 0.99
    assert torch.isfinite(made.as_tensor()).all()
    assert torch.equal(made.affine, image.affine)
    assert made.meta["synthetic"] is True
    assert made.meta["provenance"]["conditions"] == {"size": "large"}
    again = edit(image, model, 0.7, 3, method=method, inpaint_mask=region, conditions={"size": "large"})
    assert torch.equal(made.as_tensor(), again.as_tensor())


def test_a_condition_and_a_seed_change_the_result() -> None:
    image, _, _ = scan("ras")
    model = small_model("image", sized=True)
    made = [
        edit(image, model, 0.7, seed, conditions=asked)
        for seed, asked in ((0, {"size": "large"}), (0, {"size": "small"}), (1, {"size": "large"}), (0, None))
    ]
    for other in made[1:]:
        assert not torch.equal(made[0].as_tensor(), other.as_tensor())


@pytest.mark.parametrize("task", ["joint", "label_to_image"])
def test_models_with_labels_take_one(task: str) -> None:
    image, _, label = scan("lps")
    model = small_model(task)
    made = edit(image, model, 0.5, label=label)
    assert torch.isfinite(made.as_tensor()).all()
    if task == "joint":  # reads it off the image
        assert torch.isfinite(edit(image, model, 0.5).as_tensor()).all()
    else:
        with pytest.raises(MedgenError, match="label"):
            edit(image, model, 0.5)


def test_inversion_under_the_same_conditions_gives_the_scan_back() -> None:
    files = (HIPPOCAMPUS / folder / "hippocampus_003.nii.gz" for folder in ("images", "labels"))
    image, label = (
        MetaTensor(volume.as_tensor()[:, 4:28, 8:40, 4:28].clone(), affine=volume.affine)
        for volume in map(read_nifti, files)
    )
    model = load_model("hippocampus-t1")
    made = edit(image, model, 0.2, method="inversion", label=label, num_inference_steps=10)
    assert (made - image).abs().mean() < 0.01 * image.std()
    other = edit(image, model, 0.2, label=label, num_inference_steps=10)
    assert (other - image).abs().mean() > 0.1 * image.std()


def test_what_cannot_be_edited_is_refused() -> None:
    image, region, label = scan("ras")
    model = small_model("image")
    cases = [
        ("strength must lie above 0", lambda: edit(image, model, 0.0)),
        ("and up to 1. Got 1.5", lambda: edit(image, model, 1.5)),
        ("method", lambda: edit(image, model, method="sdedi")),
        ("empty", lambda: edit(image, model, inpaint_mask=region * 0)),
        ("grid", lambda: edit(image, model, inpaint_mask=scan("lps")[1])),
        ("knows no labels", lambda: edit(image, model, label=label)),
        ("task", lambda: edit(image, small_model("translate"))),
        ("no controls", lambda: edit(image, model, conditions={"size": "large"})),
        (
            "source_conditions",
            lambda: edit(image, small_model("image", sized=True), source_conditions={"size": "small"}),
        ),
        ("NaN", lambda: edit(image * float("nan"), model)),
    ]
    for text, call in cases:
        with pytest.raises(MedgenError, match=text):
            call()


def test_a_region_of_a_far_larger_scan_is_edited_in_a_box_of_the_models_size() -> None:
    """The rest of the scan does not matter, not even for the intensities; nothing is to be warned of."""
    image, region, _ = scan("ras", (60, 20, 16))
    region[:] = 0
    region[:, 50:53, 8:11, 6:9] = 1
    model = small_model("image")
    made = edit(image, model, 0.7, inpaint_mask=region)
    inside = region.as_tensor() > 0
    assert torch.equal(made.as_tensor()[~inside], image.as_tensor()[~inside])
    assert (made.as_tensor()[inside] != image.as_tensor()[inside]).all()
    other = image.clone()
    other[:, :20] *= 40
    torch.testing.assert_close(
        edit(other, model, 0.7, inpaint_mask=region).as_tensor()[inside], made.as_tensor()[inside]
    )
    with pytest.warns(UserWarning, match="the scan covers 240 x 80 x 64 mm, far more than the 64 x 64 x 64 mm"):
        edit(image, model, 0.7)


@pytest.mark.parametrize("method", ["sdedit", "inversion"])
@pytest.mark.parametrize("task", ["image", "joint"])
def test_progress_counts_the_steps_of_all_samples(method: str, task: str) -> None:
    seen: list[tuple[int, int]] = []
    image, _, _ = scan("ras")
    samples = 2 if method == "sdedit" else 1
    edit(
        image, small_model(task), 1.0, method=method, samples=samples, num_inference_steps=4,
        callback=lambda done, total: seen.append((done, total)),
    )  # fmt: skip
    total = (8 if method == "sdedit" else 6) + (4 if task == "joint" else 0)
    assert seen == [(done, total) for done in range(total + 1)]


def test_inversion_draws_nothing_and_says_what_it_did() -> None:
    image, _, _ = scan("ras")
    for options in ({"samples": 2}, {"sampler": "ddpm"}):
        with pytest.raises(MedgenError, match="'inversion' draws nothing and has its own sampler"):
            edit(image, small_model("image"), method="inversion", **options)
    model = small_model("image", sized=True)
    asked = {"conditions": {"size": "large"}, "source_conditions": {"size": "small"}}
    made = edit(image, model, method="inversion", num_inference_steps=3, **asked)
    record = made.meta["provenance"]
    assert record["conditions"] == {"size": "large"}
    assert record["source_conditions"] == {"size": "small"}
    assert record["sampler"] == "ddim"
    assert record["guidance_scale"] == 1.0
    same = {"conditions": {"size": "small"}, "source_conditions": {"size": "small"}}
    back = edit(image, model, 0.5, method="inversion", num_inference_steps=12, **same)
    assert (back.as_tensor() - image.as_tensor()).abs().mean() < 0.05 * image.as_tensor().std()


def test_a_model_without_control_dropout_is_told_everything() -> None:
    image, _, _ = scan("ras")
    model = small_model("image", sized=True)
    model.spec = dataclasses.replace(model.spec, control_dropout=0.0)
    with pytest.raises(MedgenError, match=r"must be told everything\. Got no size"):
        edit(image, model)
    with pytest.raises(MedgenError, match=r"must be told everything\. Got no size"):
        interpolate(model)
    assert edit(image, model, conditions={"size": "small"}, num_inference_steps=2).shape == image.shape


@pytest.mark.parametrize("inside", [False, True], ids=["whole", "region"])
def test_a_latent_model_that_changes_nothing_changes_nothing(inside: bool) -> None:
    model = build(DiffusionSpec.from_dict(kinds()["latent"]))
    image, region, label = (volume[:, :8, :8, :8] for volume in scan("ras"))
    ids = MetaTensor((label.as_tensor() > 0).int(), affine=torch.eye(4).double())
    image, region = (MetaTensor(x.as_tensor(), affine=torch.eye(4).double()) for x in (image, region))
    region[:, 2:6, 2:6, 2:6] = 1
    clean: list[torch.Tensor] = []
    encode = model.codec.encode

    def noted(*arguments: object) -> torch.Tensor:
        clean.append(encode(*arguments))
        return clean[-1]

    model.codec.encode = noted
    model.bound = lambda *_, **__: lambda x, sigma: clean[0]
    made = edit(image, model, 0.8, label=ids, inpaint_mask=region if inside else None, num_inference_steps=3)
    torch.testing.assert_close(made.as_tensor(), image.as_tensor(), rtol=0, atol=1e-2 * float(image.std()))


def test_files_keep_header_type_and_every_stored_number_outside(tmp_path: Path) -> None:
    image, region, _ = scan("oblique")
    source = nib.Nifti1Image(image[0].numpy().round().astype(np.int16), AFFINES["oblique"])
    source.header["descrip"] = b"scanner text"
    nib.save(source, tmp_path / "scan.nii.gz")
    nib.save(nib.Nifti1Image(region[0].numpy(), AFFINES["oblique"]), tmp_path / "region.nii.gz")
    given = {"image": tmp_path / "scan.nii.gz", "output": tmp_path / "out.nii.gz", "model": small_model("image")}
    report = edit_file(**given, inpaint_mask=tmp_path / "region.nii.gz", strength=0.6)
    made, inside = nib.load(tmp_path / "out.nii.gz"), region[0].numpy() > 0
    assert made.get_data_dtype() == np.int16
    assert made.header["descrip"].item() == b"scanner text"
    assert np.array_equal(np.asarray(made.dataobj)[~inside], np.asarray(source.dataobj)[~inside])
    assert report.voxels == inside.sum()
    record = json.loads(report.record.read_text())
    assert {key: record[key] for key in ("synthetic", "edited", "strength", "model")} == {
        "synthetic": True, "edited": "sdedit", "strength": 0.6, "model": "small-image",
    }  # fmt: skip
    assert read_nifti(tmp_path / "out.nii.gz").meta["synthetic"] is True
    with pytest.raises(MedgenError, match="exists"):
        edit_file(**given)


def test_interpolation_goes_from_one_subject_to_the_other() -> None:
    model = small_model("joint")
    made = interpolate(model, 0, 1, 3)
    ends = [model.sample(1, seed, sampler="dpmpp_2m")[0]["image"] for seed in (0, 1)]
    torch.testing.assert_close(made[0]["image"].clamp(min=0).as_tensor(), ends[0].as_tensor())
    torch.testing.assert_close(made[2]["image"].clamp(min=0).as_tensor(), ends[1].as_tensor())
    apart = [(made[1]["image"] - made[i]["image"]).abs().mean() for i in (0, 2)]
    assert max(apart) < (made[0]["image"] - made[2]["image"]).abs().mean()
    with pytest.raises(MedgenError, match="task"):
        interpolate(small_model("label_to_image"))
