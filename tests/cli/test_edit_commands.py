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
from medgen.restoration.segment import SegmentReport
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
    for more, word in (
        (["--condition", "sise=large"], "Did you mean 'size'? Model 'small-image' accepts size=small|large."),
        (["--prompt", "a large one"], "listens to no text. Model 'small-image' accepts size=small|large."),
        (["--strength", 0], "strength must lie above 0"),
    ):
        wrong = run("edit", files / "scan.nii.gz", "-o", files / "b.nii.gz", "-m", files / "image", *more)
        assert wrong.exit_code == 1
        assert word in wrong.stderr


@pytest.mark.filterwarnings("default")
def test_a_warning_of_the_library_is_one_line(files: Path) -> None:
    scan = np.random.default_rng(0).normal(100, 20, (40, 16, 16)).astype(np.float32)
    nib.save(nib.Nifti1Image(scan, np.diag([4.0, 4, 4, 1])), files / "large.nii.gz")
    result = run("edit", files / "large.nii.gz", "-o", files / "out.nii.gz", "-m", files / "image", "--strength", 0.4)
    assert result.exit_code == 0, result.output
    assert result.stderr.startswith("medgen: warning: the scan covers 160 x 64 x 64 mm, far more than the 64 x 64 x 64")
    assert result.stderr.count("\n") == 1


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


def test_segment_says_what_no_sample_shows(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fake(given: object, output: Path, **options: object) -> SegmentReport:
        return SegmentReport({"front": 0.0, "back": 1.5}, {"front": 0.0, "back": 0.1}, {}, output, output)

    monkeypatch.setattr("medgen.restoration.segment.segment_file", fake)
    result = run("segment", f"T1w={files / 'scan.nii.gz'}", "-m", files / "segment", "-o", files / "label.nii.gz")
    assert result.exit_code == 0, result.output
    assert result.stderr == "medgen: warning: no sample shows front.\n"


def test_images_are_named_unless_there_is_only_one_kind(tmp_path: Path) -> None:
    assert images_by_modality(["scan.nii.gz"], ["T1w"], "m") == {"T1w": Path("scan.nii.gz")}
    odd = tmp_path / "a=b.nii.gz"
    odd.touch()
    assert images_by_modality([str(odd)], ["T1w"], "m") == {"T1w": odd}
    for arguments, text in (
        ([], "no image"),
        (["T1w=a", "T1w=b"], "twice"),
        (["a.nii.gz"], "must read MODALITY=PATH. Model 'm' takes T1w=PATH, T2w=PATH."),
        (["T1=a.nii.gz"], "modality 'T1' of 'T1=a.nii.gz' is unknown. Did you mean 'T1w'?"),
        (["T1w="], "names no file"),
    ):
        with pytest.raises(MedgenError) as refused:
            images_by_modality(arguments, ["T1w", "T2w"], "m")
        assert text in str(refused.value)
