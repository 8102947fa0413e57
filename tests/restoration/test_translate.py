"""Translation of scans: grids, units, missing images, slices and volumes."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from typer.testing import CliRunner

from medgen.checks import MedgenError
from medgen.diffusion.denoiser import Preconditioned
from medgen.io.nifti import read_nifti
from medgen.models.folder import save_model
from medgen.models.weights import joined_state
from medgen.restoration.sources import prepared
from medgen.restoration.translate import translate, translate_file
from tests.restoration.small_models import small_model

AFFINES = {
    "ras": np.diag([4.0, 4.0, 4.0, 1.0]),
    "lps": np.diag([-1.5, -1.5, 5.0, 1.0]),
    "oblique": np.array([[0.0, 1.8, 0.6, 3], [-1.9, 0.0, 0.0, 5], [0.2, -0.6, 1.8, 1], [0, 0, 0, 1]]),
}


def scans(name: str, shape: tuple[int, int, int] = (24, 20, 16)) -> dict[str, MetaTensor]:
    """Two contrasts of an object that was cut out of its air."""
    place = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij"))
    radius = (place**2).sum(0)
    body = radius < 0.8
    affine = torch.from_numpy(AFFINES[name])
    texture = np.random.default_rng(0).normal(0, 5, shape)
    first = np.where(body, 300 + 200 * (radius < 0.3) + texture, 0)
    second = np.where(body, 900 - 500 * (radius < 0.3) + texture, 0)
    return {
        key: MetaTensor(torch.from_numpy(values[None]).float(), affine=affine)
        for key, values in (("T1w", first), ("T2w", second))
    }


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("name", AFFINES)
def test_geometry_air_and_seed(dims: int, name: str) -> None:
    images = scans(name)
    before = images["T1w"].as_tensor().clone()
    model = small_model("translate", dims)
    for mode in ("mean", "sample"):
        made = translate(images, model, mode, seed=2)["image"]
        assert made.shape == images["T1w"].shape
        assert torch.equal(made.affine, images["T1w"].affine)
        assert torch.isfinite(made.as_tensor()).all()
        assert (made.as_tensor()[before == 0] == 0).all()
        assert made.as_tensor()[before > 0].std() > 0
        assert torch.equal(made.as_tensor(), translate(images, model, mode, seed=2)["image"].as_tensor())
    assert torch.equal(images["T1w"].as_tensor(), before)
    assert made.meta["synthetic"] is True
    if dims == 2:
        each = [translate(images, model, plane=p)["image"].as_tensor() for p in ("axial", "coronal", "sagittal")]
        torch.testing.assert_close(
            translate(images, model, plane="all")["image"].as_tensor(), torch.stack(each).mean(0)
        )


@pytest.mark.parametrize("dims", [2, 3])
def test_any_subset_of_the_images_will_do_and_each_counts(dims: int) -> None:
    images, model = scans("lps"), small_model("translate", dims)
    made = [translate(given, model)["image"].as_tensor() for given in (
        images, {"T1w": images["T1w"]}, {"T2w": images["T2w"]}
    )]  # fmt: skip
    assert not torch.equal(made[0], made[1])
    assert not torch.equal(made[1], made[2])


def test_a_scan_on_another_grid_is_brought_over() -> None:
    images, model = scans("ras"), small_model("translate", spacing=4.0)
    finer = MetaTensor(
        torch.nn.functional.interpolate(images["T2w"].as_tensor()[None], scale_factor=2)[0],
        affine=torch.tensor([[2.0, 0, 0, -1], [0, 2, 0, -1], [0, 0, 2, -1], [0, 0, 0, 1]], dtype=torch.float64),
    )
    same, moved = (prepared(model.spec, {**images, "T2w": second}).source for second in (images["T2w"], finer))
    torch.testing.assert_close(same, moved, atol=0.02, rtol=0)
    made = translate({**images, "T2w": finer}, model)["image"]
    assert made.shape == images["T1w"].shape


def test_slices_of_a_two_dimensional_model_lie_in_the_plane() -> None:
    """A denoiser that gives T1w back: the translated volume is the given one, whatever the plane and orientation."""

    class Echo(Preconditioned):
        def forward(self, x: torch.Tensor, sigma: torch.Tensor, conditioning: object = None) -> torch.Tensor:
            source = model.codec.unpack(conditioning["concat"][:, :4])  # type: ignore[index]
            return model.codec.encode(source, model.codec.given_source(torch.cat([source, source], 1)))

    model = small_model("translate", 2, spacing=1.5)
    model.denoiser = Echo(model.networks["denoiser"])
    for name, plane in (("lps", "axial"), ("lps", "coronal"), ("ras", "sagittal")):
        images = scans(name)
        spacing = 1.5 if name == "lps" and plane == "axial" else 4.0
        model.spec.grid.__dict__["spacing"] = (spacing, spacing)
        made = translate(images, model, plane=plane, reference=images["T1w"])["image"]
        error = (made - images["T1w"]).abs()[images["T1w"] > 0]
        assert error.mean() < (2.0 if plane != "coronal" else 60.0), plane  # coronal slices of 5 mm are resampled


def test_several_samples_give_a_mean_and_its_uncertainty() -> None:
    images, model = scans("lps"), small_model("translate", 2)
    seen: list[tuple[int, int]] = []
    made = translate(images, model, "sample", samples=3, callback=lambda done, total: seen.append((done, total)))
    alone = [translate(images, model, "sample", seed=i)["image"].as_tensor() for i in range(3)]
    torch.testing.assert_close(made["image"].as_tensor(), torch.stack(alone).mean(0), atol=2.0, rtol=0.02)
    assert made["uncertainty"].as_tensor().max() > 0
    assert seen[-1][0] == seen[-1][1] == len(seen)


def test_the_unit_is_the_models_or_that_of_a_reference() -> None:
    images, model = scans("ras"), small_model("translate")
    own = translate(images, model)["image"].as_tensor()
    doubled = translate(images, model, reference=images["T1w"] * 2)["image"].as_tensor()
    window = 2 * float(images["T1w"].max())
    assert doubled.max() / own.max() == pytest.approx(window / 500, rel=0.05)


@pytest.mark.parametrize("dims", [2, 3])
def test_a_small_piece_of_a_head_is_warned_of(dims: int) -> None:
    images, model = scans("ras"), small_model("translate", dims, spacing=18.0)
    with pytest.warns(UserWarning, match="image 'T1w' covers .* far less than the 288 x 288"):
        translate(images, model)


def test_what_cannot_be_translated_is_refused() -> None:
    images, model = scans("ras"), small_model("translate")
    shifted = images["T2w"].affine.clone()
    shifted[:3, 3] += 900
    far = MetaTensor(images["T2w"].as_tensor(), affine=shifted)
    cases = [
        ("at least one", lambda: translate({}, model)),
        ("Did you mean 'T1w'", lambda: translate({"T1": images["T1w"]}, model)),
        ("overlap", lambda: translate({**images, "T2w": far}, model)),
        ("samples must be 1", lambda: translate(images, model, samples=2)),
        ("of task 'segment'", lambda: translate(images, small_model("segment"))),
        ("NaN", lambda: translate({"T1w": images["T1w"] * float("nan")}, model)),
        ("plane", lambda: translate(images, model, plane="axia")),
    ]
    for text, call in cases:
        with pytest.raises(MedgenError, match=text):
            call()


def test_files_and_command(tmp_path: Path) -> None:
    from medgen.cli.translate import translate as command

    model = small_model("translate", 2)
    save_model(tmp_path / "model", model.spec, joined_state(model.networks))
    for key, volume in scans("oblique").items():
        values = volume[0].numpy().round().astype(np.int16)
        nib.save(nib.Nifti1Image(values, AFFINES["oblique"]), tmp_path / f"{key}.nii.gz")
    given = {key: tmp_path / f"{key}.nii.gz" for key in ("T1w", "T2w")}
    report = translate_file(
        given, tmp_path / "out.nii.gz", model=model, mode="sample", samples=2, uncertainty=tmp_path / "std.nii.gz"
    )
    made = read_nifti(tmp_path / "out.nii.gz")
    np.testing.assert_allclose(made.affine, AFFINES["oblique"])
    assert made.meta["synthetic"] is True
    assert (tmp_path / "std.nii.gz").is_file()
    record = json.loads(report.record.read_text())
    assert set(record["inputs"]["source_sha256"]) == {"T1w", "T2w"}
    assert str(tmp_path) not in report.record.read_text()
    import typer

    app = typer.Typer(add_completion=False)
    app.command()(command)
    arguments = [f"T1w={given['T1w']}", "--model", tmp_path / "model", "-o", tmp_path / "cli.nii.gz"]
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert result.exit_code == 0, result.output
    assert "T2w not given" in result.stderr
    again = CliRunner().invoke(app, [str(a) for a in arguments])
    assert again.exit_code == 1
    assert "exists" in again.stderr


def test_the_mirror_image_gives_the_same_average_mirrored() -> None:
    images, model = scans("ras"), small_model("translate")
    flipped = {name: MetaTensor(x.as_tensor().flip(1), affine=x.affine) for name, x in images.items()}
    here, there = (translate(given, model, mirror=True)["image"].as_tensor() for given in (images, flipped))
    torch.testing.assert_close(here, there.flip(1), atol=0.5, rtol=0)
    assert not torch.equal(here, translate(images, model)["image"].as_tensor())
