"""``medgen edit``, ``harmonize`` and ``segment`` on small files; ``translate``: tests/restoration/test_translate.py."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import typer
from typer.testing import CliRunner, Result

from medgen.checks import MedgenError
from medgen.cli.edit import edit
from medgen.cli.harmonize import harmonize
from medgen.cli.modalities import images_by_modality
from medgen.cli.segment import segment
from medgen.models.folder import save_model
from medgen.models.weights import joined_state
from tests.restoration.small_models import small_model

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
for command in (edit, harmonize, segment):
    app.command()(command)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A scan, another one of another contrast, a region, and two models."""
    place = np.stack(np.meshgrid(*[np.linspace(-1, 1, 16)] * 3, indexing="ij"))
    radius = (place**2).sum(0)
    noise = np.random.default_rng(0).normal(0, 5, radius.shape)
    volumes = {
        "scan": np.where(radius < 0.8, 400 - 200 * radius + noise, 0),
        "other": np.where(radius < 0.8, 900 - 700 * radius + noise, 0),
        "region": radius < 0.2,
    }
    for name, values in volumes.items():
        nib.save(nib.Nifti1Image(values.astype(np.int16), np.diag([4.0, 4, 4, 1])), tmp_path / f"{name}.nii.gz")
    for task in ("image", "segment"):
        model = small_model(task, sized=task == "image")
        save_model(tmp_path / task, model.spec, joined_state(model.networks))
    return tmp_path


def test_edit(files: Path) -> None:
    options = ["-m", files / "image", "--condition", "size=large", "--inpaint-mask", files / "region.nii.gz"]
    result = run("edit", files / "scan.nii.gz", "-o", files / "out.nii.gz", "--strength", 0.6, *options)
    assert result.exit_code == 0, result.output
    assert "changed by" in result.stdout
    assert json.loads((files / "out.json").read_text())["conditions"] == {"size": "large"}
    wrong = run(
        "edit", files / "scan.nii.gz", "-o", files / "b.nii.gz", "-m", files / "image", "--condition", "size=big"
    )
    assert wrong.exit_code == 1
    assert "must be one of large, small" in wrong.stderr or "must be one of small, large" in wrong.stderr
    assert run("edit", "-o", "x.nii.gz", "-m", files / "image").exit_code == 2


def test_harmonize(files: Path) -> None:
    given = ["harmonize", files / "scan.nii.gz", "-o", files / "out.nii.gz"]
    for method in ("histogram", "landmarks", "texture"):
        result = run(*given, "-r", files / "other.nii.gz", "--method", method, "--overwrite")
        assert result.exit_code == 0, result.output
        assert json.loads((files / "out.json").read_text())["harmonized"] == method
    assert run(*given).exit_code == 2
    assert run(*given, "--method", "model").exit_code == 2


def test_segment(files: Path) -> None:
    given = ["segment", f"T1w={files / 'scan.nii.gz'}", "-m", files / "segment", "--samples", 2]
    result = run(*given, "-o", files / "label.nii.gz", "--disagreement", files / "apart.nii.gz")
    assert result.exit_code == 0, result.output
    assert "front: " in result.stdout
    assert (files / "apart.nii.gz").is_file()
    wrong = run("segment", files / "scan.nii.gz", "-m", files / "segment", "-o", files / "b.nii.gz")
    assert wrong.exit_code == 1
    assert "MODALITY=PATH" in wrong.stderr


def test_images_are_named_unless_there_is_only_one_kind() -> None:
    assert images_by_modality(["scan.nii.gz"], ["T1w"]) == {"T1w": Path("scan.nii.gz")}
    for arguments, text in (([], "no image"), (["T1w=a", "T1w=b"], "twice"), (["a.nii.gz"], "MODALITY=PATH")):
        with pytest.raises(MedgenError, match=text):
            images_by_modality(arguments, ["T1w", "T2w"])
