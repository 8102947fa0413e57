"""The commands run through with tiny untrained models: files, bytes, and what bad input leaves behind."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from typer.testing import CliRunner, Result

from medgen.cli.app import app
from medgen.io.nifti import read_nifti, write_nifti
from medgen.models import ModelSpec, save_model
from medgen.networks import build_network


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def refused(result: Result, *words: str) -> None:
    assert result.exit_code == 1, result.output
    assert result.stderr.startswith("medgen: error: ")
    assert result.stderr.count("\n") == 1
    assert all(word in result.stderr for word in words), result.stderr


def save_tiny(folder: Path, task: str) -> Path:
    """An untrained model of one task with random weights."""
    channels, condition = {"joint": (24, 17), "inpaint": (8, 16)}[task]
    spec = ModelSpec.from_dict(
        {
            "name": folder.name,
            "version": "1.0.0",
            "network": {
                "_target_": "ConditionalUNet", "spatial_dims": 3, "channels": [8, 16], "condition_embedding": 4,
                "in_channels": channels, "out_channels": channels, "condition_channels": condition,
            },
            "prediction_type": "edm",
            "packing": "haar",
            "task": task,
            "label_channels": [] if task == "inpaint" else [["first", [1, 3]], ["second", [2]]],
            "label_dropout": 0.0 if task == "inpaint" else 0.5,
            "channel_mean": [0.1] * channels,
            "channel_std": [0.5] * channels,
            "grid": {"spacing": [2.0, 2.0, 2.0], "size": [16, 12, 8]},
            "intensity": {"scale": 1000.0, "unit": "arbitrary T1 units"},
            "sampling": {
                "sampler": "dpmpp_2m", "num_inference_steps": 2, "schedule": "logsnr",
                "sigma_min": 0.1, "sigma_max": 9.0,
            },
        }
    )  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    shapes = build_network(spec.network).state_dict()
    save_model(folder, spec, {name: torch.randn(t.shape, generator=generator) * 0.1 for name, t in shapes.items()})
    return folder


@pytest.fixture(scope="module")
def joint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("models") / "tiny", "joint")


@pytest.fixture(scope="module")
def filler(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("models") / "filler", "inpaint")


def content(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_generate_is_reproducible_resumable_and_plain(joint: Path, tmp_path: Path) -> None:
    for name in "ab":
        result = run("generate", joint, "-n", 2, "-o", tmp_path / name, "--seed", 1, "--device", "cpu")
        assert result.exit_code == 0, result.output
    assert content(tmp_path / "a") == content(tmp_path / "b")
    run("generate", joint, "-o", tmp_path / "second", "--seed", 2, "--device", "cpu")
    one, two = content(tmp_path / "second"), content(tmp_path / "a")
    assert one["sub-0001_T1w.nii.gz"] == two["sub-0002_T1w.nii.gz"]
    assert one["sub-0001_dseg.nii.gz"] == two["sub-0002_dseg.nii.gz"]
    refused(run("generate", joint, "-n", 2, "-o", tmp_path / "a"), "exists", "--overwrite", "--resume")
    (tmp_path / "a" / "sub-0002.json").unlink()
    result = run("generate", joint, "-n", 2, "-o", tmp_path / "a", "--seed", 1, "--resume", "--device", "cpu")
    assert "1 subject made, 1 kept" in result.stdout
    assert content(tmp_path / "a") == content(tmp_path / "b")
    record = json.loads(two["sub-0002.json"])
    assert (record["synthetic"], record["seed"], record["sampler"], record["num_inference_steps"]) == (
        True, 2, "dpmpp_2m", 2,
    )  # fmt: skip
    assert len(record["model_sha256"]) == 64
    assert str(tmp_path).encode() not in b"".join(two.values())


def test_generate_for_an_own_label_map(joint: Path, tmp_path: Path) -> None:
    ids = torch.zeros(1, 24, 24, 16, dtype=torch.int16)
    ids[:, 6:18, 6:18, 4:12] = 2
    write_nifti(tmp_path / "label.nii.gz", MetaTensor(ids, affine=np.diag([-1.0, -1, 1, 1])))
    result = run("generate", joint, "-o", tmp_path / "c", "--label", tmp_path / "label.nii.gz", "--device", "cpu")
    assert result.exit_code == 0, result.output
    made = read_nifti(tmp_path / "c" / "sub-0001_dseg.nii.gz", role="label")
    assert made.unique().tolist() == [0, 2]
    assert read_nifti(tmp_path / "c" / "sub-0001_T1w.nii.gz").shape == made.shape


def test_generate_refuses_and_leaves_nothing(joint: Path, filler: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "c"
    ids = MetaTensor(torch.full((1, 8, 8, 8), 99, dtype=torch.int16), affine=np.diag([2.0, 2, 2, 1]))
    write_nifti(tmp_path / "label.nii.gz", ids)
    refused(run("generate", joint, "-o", out, "--label", tmp_path / "label.nii.gz"), "99")
    refused(run("generate", filler, "-o", out), "fills holes")
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    for file in (path for path in joint.rglob("*") if path.is_file()):
        target = damaged / file.relative_to(joint)
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(file.read_bytes())
    weights = damaged / "models" / "model.safetensors"
    flipped = bytearray(weights.read_bytes())
    flipped[-5] ^= 1
    weights.write_bytes(flipped)
    refused(run("generate", damaged, "-o", out), "model.safetensors")
    result = run("models", tmp_path)
    assert result.exit_code == 1
    assert "damaged: cannot be loaded" in result.stdout
    assert not out.exists()


def scan_and_hole(folder: Path) -> tuple[Path, Path]:
    """An oblique int16 scan with slope and intercept, thick slices, and a hole in it."""
    affine = np.array([[0, -1.1, 0.2, 10], [1.0, 0, 0, -20], [0, 0.1, 3, 5], [0, 0, 0, 1.0]])
    rng = np.random.default_rng(0)
    image = nib.Nifti1Image(rng.integers(50, 400, (25, 22, 9)).astype(np.int16), affine)
    image.header.set_slope_inter(0.5, -3)
    nib.save(image, folder / "scan.nii.gz")
    mask = np.zeros((25, 22, 9), np.uint8)
    mask[8:15, 7:14, 3:6] = 1
    nib.save(nib.Nifti1Image(mask, affine), folder / "hole.nii.gz")
    return folder / "scan.nii.gz", folder / "hole.nii.gz"


def test_inpaint_changes_the_hole_and_nothing_else(filler: Path, tmp_path: Path) -> None:
    scan, hole = scan_and_hole(tmp_path)
    out, picture = tmp_path / "filled.nii.gz", tmp_path / "filled.png"
    arguments = ("inpaint", scan, hole, "-o", out, "--model", filler, "--device", "cpu", "--mode", "sample")
    result = run(*arguments, "--picture", picture)
    assert result.exit_code == 0, result.output
    assert "regenerated 2.97%" in result.stdout
    before, after = nib.load(scan), nib.load(out)
    inside = np.asarray(nib.load(hole).dataobj) == 1
    stored = [np.asarray(image.dataobj.get_unscaled()) for image in (before, after)]
    assert stored[1].dtype == np.int16
    np.testing.assert_array_equal(stored[0][~inside], stored[1][~inside])
    assert (stored[0][inside] != stored[1][inside]).mean() > 0.9
    np.testing.assert_array_equal(before.affine, after.affine)
    assert (after.dataobj.slope, after.dataobj.inter) == (0.5, -3)
    assert picture.stat().st_size > 5000
    refused(run(*arguments), "exists", "--overwrite")
    before_again = content(tmp_path)
    assert run(*arguments, "--picture", picture, "--overwrite").exit_code == 0
    assert content(tmp_path) == before_again
    record = json.loads((tmp_path / "filled.json").read_text())
    assert (record["synthetic"], record["model"], record["mode"], record["seed"]) == (True, "filler", "sample", 0)
    assert record["regenerated"] == {"fraction": inside.mean(), "voxels": inside.sum()}
    assert str(tmp_path) not in (tmp_path / "filled.json").read_text()


def test_inpaint_refuses_and_leaves_nothing(filler: Path, joint: Path, tmp_path: Path) -> None:
    scan, hole = scan_and_hole(tmp_path)
    out = tmp_path / "filled.nii.gz"

    def attempt(image: Path, mask: Path, model: Path = filler) -> Result:
        return run("inpaint", image, mask, "-o", out, "--model", model, "--device", "cpu")

    values = np.asarray(nib.load(hole).dataobj)
    affine = nib.load(hole).affine
    for name, array, moved in (
        ("empty", values * 0, affine),
        ("all", values * 0 + 1, affine),
        ("shifted", values, affine + np.eye(4)[:, [1, 2, 3, 0]] * 0.5),
        ("smaller", values[:20], affine),
    ):
        nib.save(nib.Nifti1Image(array, moved), tmp_path / f"{name}.nii.gz")
        refused(attempt(scan, tmp_path / f"{name}.nii.gz"), "mask")
    nib.save(nib.Nifti1Image(np.zeros((8, 8, 8, 2), np.int16), affine), tmp_path / "4d.nii.gz")
    refused(attempt(tmp_path / "4d.nii.gz", hole), "4d.nii.gz", "3D")
    refused(attempt(tmp_path / "none.nii.gz", hole), "none.nii.gz", "does not exist")
    refused(attempt(scan, hole, joint), "tiny")
    refused(run("inpaint", scan, hole, "-o", out, "--model", filler, "--samples", 8), "samples", "--mode sample")
    before = set(content(tmp_path))
    for name in ("filled.json", "filled.png"):
        (tmp_path / name).write_text("{}")
        options = ("--model", filler, "--picture", tmp_path / "filled.png")
        refused(run("inpaint", scan, hole, "-o", out, *options), name, "exists")
        (tmp_path / name).unlink()
    (tmp_path / "filled.json").write_text('{"RepetitionTime": 2.3}')
    refused(run("inpaint", scan, hole, "-o", out, "--model", filler, "--overwrite"), "filled.json", "another make")
    (tmp_path / "filled.json").unlink()
    assert set(content(tmp_path)) == before
    assert not out.exists()
    (tmp_path / "file").write_text("")
    refused(run("inpaint", scan, hole, "-o", tmp_path / "file" / "a.nii.gz", "--model", filler), "file")
