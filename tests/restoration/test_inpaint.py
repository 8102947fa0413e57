"""Filling holes: grids, bytes outside, refusals."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from medgen.checks import MedgenError
from medgen.geometry import ModelGrid
from medgen.io import contact_sheet
from medgen.models.diffusion_model import DiffusionModel
from medgen.models.specification import ModelSpec
from medgen.networks import build_network
from medgen.restoration.inpaint import blended, inpaint, inpaint_file, surroundings


@pytest.fixture(scope="module")
def model() -> DiffusionModel:
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
    return DiffusionModel(
        spec, {"denoiser": build_network(spec.network).eval().requires_grad_(False)}, torch.device("cpu")
    )


def scan(affine: np.ndarray, shape: tuple[int, int, int]) -> tuple[MetaTensor, MetaTensor]:
    """A smooth bright object with noise, and a hole in it."""
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij"))
    rng = np.random.default_rng(0)
    image = 1000 * np.exp(-2 * (grid**2).sum(0)) + rng.normal(0, 5, shape) + 50
    hole = ((grid - 0.1) ** 2).sum(0) < 0.1
    made = torch.from_numpy(image[None]).float(), torch.from_numpy(hole[None].astype(np.float32))
    return MetaTensor(made[0], affine=torch.from_numpy(affine)), MetaTensor(made[1], affine=torch.from_numpy(affine))


@pytest.fixture(scope="module")
def continuing(model: DiffusionModel) -> DiffusionModel:
    """One that diffuses around the continuation of the surroundings."""
    spec = dataclasses.replace(model.spec, reference="continuation", channel_mean=(0.0,) * 8)
    torch.manual_seed(0)
    return DiffusionModel(
        spec, {"denoiser": build_network(spec.network).eval().requires_grad_(False)}, torch.device("cpu")
    )


AFFINES = {
    "ras": np.diag([2.0, 2.0, 2.0, 1.0]),
    "lps": np.diag([-1.5, -1.5, 5.0, 1.0]),
    "oblique": np.array([[0.0, 1.8, 0.6, 3], [-1.9, 0.0, 0.0, 5], [0.2, -0.6, 1.8, 1], [0, 0, 0, 1]]),
}


@pytest.mark.parametrize("name", AFFINES)
@pytest.mark.parametrize("mode", ["mean", "sample"])
def test_outside_is_untouched_and_inside_is_filled(model: DiffusionModel, name: str, mode: str) -> None:
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


def test_what_lay_in_the_hole_is_never_looked_at(model: DiffusionModel) -> None:
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


def test_file_keeps_header_type_and_every_stored_number_outside(model: DiffusionModel, tmp_path: Path) -> None:
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


def test_bad_holes_are_refused(model: DiffusionModel) -> None:
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
    volume = image.clone()
    volume[0, 0, 0, 0] = float("nan")
    with pytest.raises(MedgenError, match=r"finite outside the hole. Got 1 voxels"):
        inpaint(volume, hole, model)
    with pytest.raises(MedgenError, match=r"samples must be 1 with mode 'mean'.*Got 8. Use mode 'sample'"):
        inpaint(image, hole, model, "mean", samples=8)


def on_the_face() -> tuple[MetaTensor, torch.Tensor, ModelGrid]:
    """Air of -1000 with tissue of 40 in it, a hole on the first face, and a model's grid that reaches beyond it."""
    values = torch.full((1, 20, 18, 16), -1000.0)
    values[:, 12:18, 5:14, 4:12] = 40.0
    hole = torch.zeros(values.shape, dtype=torch.bool)
    hole[:, :5, 6:12, 5:11] = True
    affine = torch.diag(torch.tensor([2.0, 2, 2, 1], dtype=torch.float64))
    grid = ModelGrid.around(affine, values.shape[1:], (4.0, 4.0, 4.0), size=(24, 24, 24))
    return MetaTensor(torch.where(hole, 1e4, values), affine=affine), hole, grid


def test_beyond_the_scan_stands_the_nearest_known_value() -> None:
    volume, hole, grid = on_the_face()
    told = surroundings(volume, hole, grid)
    assert (told.window.low, told.window.high) == (-1000, 40)
    reached = grid.to_model(MetaTensor(torch.ones(volume.shape), affine=volume.affine)).as_tensor() > 0.5
    assert 0 < int(told.hole.sum()) < int(reached.sum()) < reached.numel() / 3
    assert not told.scan[~reached].any()  # all of it air, where 0 would have been tissue
    assert not told.hole[~reached].any()


def test_a_hole_on_the_face_of_air_is_filled_with_air(continuing: DiffusionModel) -> None:
    volume, hole, _ = on_the_face()
    mask = MetaTensor(hole.float(), affine=volume.affine)
    nothing_learnt = continuing.__class__(continuing.spec, {"denoiser": _Zero()}, torch.device("cpu"))
    filled = inpaint(volume, mask, nothing_learnt).as_tensor()
    assert (filled[hole] + 1000).abs().max() < 20  # what is left of the noise; tissue would be 1040 away


class _Zero(torch.nn.Module):
    """A network that adds nothing."""

    def forward(self, x: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
        return torch.zeros_like(x[:, :8])


def test_equal_grids_keep_the_hole_and_the_scan() -> None:
    image, hole = scan(np.diag([4.0, 4.0, 4.0, 1.0]), (24, 20, 22))
    grid = ModelGrid.around(image.affine, image.shape[1:], (4.0, 4.0, 4.0), size=(32, 32, 32))
    told = surroundings(image, hole.as_tensor() > 0.5, grid)
    np.testing.assert_array_equal(grid.from_model(told.hole, mode="nearest").as_tensor(), hole.as_tensor())
    back = told.window.inverse(grid.from_model(told.scan, mode="nearest").as_tensor())
    wanted = told.window.inverse(told.window.forward(image.as_tensor()))
    known = hole.as_tensor() == 0
    torch.testing.assert_close(back[known], wanted[known], atol=0.05, rtol=1e-4)


def test_what_lay_in_the_hole_is_never_looked_at_around_a_continuation(continuing: DiffusionModel) -> None:
    image, hole = scan(AFFINES["lps"], (31, 26, 20))
    other = image.clone()
    other[hole > 0] = float("nan")
    filled = inpaint(image, hole, continuing)
    assert torch.isfinite(filled.as_tensor()).all()
    assert torch.equal(filled.as_tensor(), inpaint(other, hole, continuing).as_tensor())


def files(folder: Path) -> dict[str, Path]:
    image, hole = scan(AFFINES["lps"], (31, 26, 20))
    for name, volume in (("scan", image), ("hole", hole)):
        nib.save(nib.Nifti1Image(volume[0].numpy(), AFFINES["lps"]), folder / f"{name}.nii.gz")
    return {"image": folder / "scan.nii.gz", "inpaint_mask": folder / "hole.nii.gz", "output": folder / "out.nii.gz"}


def test_a_record_says_that_and_how_a_file_was_made(model: DiffusionModel, tmp_path: Path) -> None:
    given = files(tmp_path)
    report = inpaint_file(**given, model=model, mode="sample", samples=2, seed=4)
    assert report.record == tmp_path / "out.json"
    record = json.loads(report.record.read_text())
    expected = {"synthetic": True, "model": "tiny-inpaint", "mode": "sample", "samples": 2, "seed": 4}
    assert {key: record[key] for key in expected} == expected
    assert record["regenerated"] == {"fraction": report.fraction, "voxels": report.voxels}
    assert str(tmp_path) not in report.record.read_text()
    before = report.record.read_bytes()
    inpaint_file(**given, model=model, mode="sample", samples=2, seed=4, overwrite=True)
    assert report.record.read_bytes() == before


@pytest.mark.parametrize("there", ["nothing", "earlier outputs"])
def test_a_failure_leaves_all_outputs_as_they_were(
    model: DiffusionModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: str
) -> None:
    given = {**files(tmp_path), "picture": tmp_path / "out.png"}
    if there == "earlier outputs":
        inpaint_file(**given, model=model, mode="sample")
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}

    def full(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(contact_sheet, "inpaint_sheet", full)
    with pytest.raises(OSError, match="no space"):
        inpaint_file(**given, model=model, mode="sample", seed=1, overwrite=True)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_samples_report_their_steps(model: DiffusionModel) -> None:
    image, hole = scan(AFFINES["ras"], (16, 16, 16))
    seen: list[tuple[int, int]] = []
    inpaint(image, hole, model, "sample", samples=2, callback=lambda sample, step: seen.append((sample, step)))
    assert {sample for sample, _ in seen} == {0, 1}
    assert len(seen) == 4
