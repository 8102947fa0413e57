"""Filling holes: grids, bytes outside, refusals."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from medgen.checks import MedgenError
from medgen.models.generative import GenerativeModel
from medgen.models.specification import ModelSpec
from medgen.networks import build_network
from medgen.intensity import IntensityWindow
from medgen.restoration.inpaint import blended, inpaint, inpaint_file


@pytest.fixture(scope="module")
def model() -> GenerativeModel:
    """A small inpainting model with untrained weights."""
    spec = ModelSpec.from_dict(
        {
            "name": "tiny-inpaint",
            "version": "1.0.0",
            "network": {
                "_target_": "ConditionalUNet",
                "channels": [8, 16],
                "condition_embedding": 4,
                "spatial_dims": 3,
                "in_channels": 8,
                "out_channels": 8,
                "condition_channels": 16,
            },
            "prediction_type": "edm",
            "packing": "haar",
            "task": "inpaint",
            "channel_mean": [1.4] + [0.0] * 7,
            "channel_std": [0.2] * 8,
            "grid": {"spacing": [4.0, 4.0, 4.0], "size": [16, 16, 16]},
            "sampling": {
                "sampler": "dpmpp_2m",
                "num_inference_steps": 2,
                "schedule": "logsnr",
                "sigma_min": 0.1,
                "sigma_max": 10.0,
            },
        }
    )
    torch.manual_seed(0)
    return GenerativeModel(spec, build_network(spec.network).eval().requires_grad_(False), torch.device("cpu"))


def scan(affine: np.ndarray, shape: tuple[int, int, int]) -> tuple[MetaTensor, MetaTensor]:
    """A smooth bright object with noise, and a hole in it."""
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij"))
    rng = np.random.default_rng(0)
    image = 1000 * np.exp(-2 * (grid**2).sum(0)) + rng.normal(0, 5, shape) + 50
    hole = ((grid - 0.1) ** 2).sum(0) < 0.1
    made = torch.from_numpy(image[None]).float(), torch.from_numpy(hole[None].astype(np.float32))
    return MetaTensor(made[0], affine=torch.from_numpy(affine)), MetaTensor(made[1], affine=torch.from_numpy(affine))


AFFINES = {
    "ras": np.diag([2.0, 2.0, 2.0, 1.0]),
    "lps": np.diag([-1.5, -1.5, 5.0, 1.0]),
    "oblique": np.array([[0.0, 1.8, 0.6, 3], [-1.9, 0.0, 0.0, 5], [0.2, -0.6, 1.8, 1], [0, 0, 0, 1]]),
}


@pytest.mark.parametrize("name", AFFINES)
@pytest.mark.parametrize("mode", ["mean", "sample"])
def test_outside_is_untouched_and_inside_is_filled(model: GenerativeModel, name: str, mode: str) -> None:
    image, hole = scan(AFFINES[name], (31, 26, 20))
    before = image.as_tensor().clone()
    filled = inpaint(image, hole, model, mode, seed=3)
    inside = hole.as_tensor() > 0
    assert torch.equal(image.as_tensor(), before)
    assert torch.equal(filled.as_tensor()[~inside], before[~inside])
    assert not torch.equal(filled.as_tensor()[inside], before[inside])
    assert torch.isfinite(filled.as_tensor()).all()
    assert torch.equal(filled.affine, image.affine)
    assert filled.meta["synthetic"] is True
    again = inpaint(image, hole, model, mode, seed=3)
    assert torch.equal(again.as_tensor(), filled.as_tensor())


def test_what_lay_in_the_hole_is_never_looked_at(model: GenerativeModel) -> None:
    image, hole = scan(AFFINES["lps"], (31, 26, 20))
    other = image.clone()
    other[hole > 0] = 1e6
    assert torch.equal(inpaint(image, hole, model).as_tensor(), inpaint(other, hole, model).as_tensor())


def test_blending_joins_a_constant_offset_at_the_edge_and_leaves_an_exact_fill_alone() -> None:
    shape = (20, 20, 20)
    truth = np.random.default_rng(0).normal(size=shape)
    hole = np.zeros(shape, bool)
    hole[4:16, 4:16, 4:16] = True
    np.testing.assert_allclose(blended(truth, truth, hole, (3.0, 3.0, 3.0)), truth, atol=1e-5)
    shifted = blended(truth, truth + 10, hole, (3.0, 3.0, 3.0))
    assert np.abs(shifted - truth)[4, 8, 8] < 5  # most of the step is gone at the edge ...
    assert np.abs(shifted - truth)[10, 10, 10] > 5  # ... and the middle is the model's


def test_intensity_window_maps_robust_extremes_to_0_and_1() -> None:
    values = torch.cat([torch.zeros(500), torch.linspace(100, 200, 1000), torch.tensor([1e5])])
    window = IntensityWindow.of(values)
    assert window.low == 0
    assert window.high == pytest.approx(200, abs=2)
    torch.testing.assert_close(window.inverse(window.forward(values[:1500])), values[:1500], atol=0.01, rtol=1e-4)


def test_file_keeps_header_type_and_every_stored_number_outside(model: GenerativeModel, tmp_path: Path) -> None:
    image, hole = scan(AFFINES["oblique"], (31, 26, 20))
    source = nib.Nifti1Image(image[0].numpy().round().astype(np.int16), AFFINES["oblique"])
    source.header["descrip"] = b"scanner text"
    nib.save(source, tmp_path / "scan.nii.gz")
    nib.save(nib.Nifti1Image(hole[0].numpy().astype(np.uint8), AFFINES["oblique"]), tmp_path / "hole.nii.gz")
    report = inpaint_file(tmp_path / "scan.nii.gz", tmp_path / "hole.nii.gz", tmp_path / "out.nii.gz", model=model)
    made = nib.load(tmp_path / "out.nii.gz")
    assert made.get_data_dtype() == np.int16
    assert made.header["descrip"].item() == b"scanner text"
    inside = hole[0].numpy() > 0
    assert np.array_equal(np.asarray(made.dataobj)[~inside], np.asarray(source.dataobj)[~inside])
    assert report.fraction == pytest.approx(inside.mean())
    with pytest.raises(MedgenError, match="exists"):
        inpaint_file(tmp_path / "scan.nii.gz", tmp_path / "hole.nii.gz", tmp_path / "out.nii.gz", model=model)


def test_bad_holes_are_refused(model: GenerativeModel) -> None:
    image, hole = scan(AFFINES["ras"], (16, 16, 16))
    cases = {
        "empty": hole * 0,
        "covers the whole": hole * 0 + 1,
        "0 .keep. and 1": hole * 2,
        "grid": MetaTensor(hole.as_tensor(), affine=torch.diag(torch.tensor([3.0, 2, 2, 1]))),
        "image's grid": hole[:, :8],
    }
    for text, bad in cases.items():
        with pytest.raises(MedgenError, match=text):
            inpaint(image, bad, model)
