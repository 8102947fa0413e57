"""The command line: what it parses, what it says, how it ends. Models and training are tested where they live."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from typer.testing import CliRunner, Result

from medgen.checks import MedgenError
from medgen.cli.app import app
from medgen.cohort.generate import CohortSummary
from medgen.io.nifti import write_nifti


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def check_one_line_error(result: Result, *words: str) -> None:
    """Status 1, nothing on stdout, one line on stderr with these words, no traceback."""
    assert result.exit_code == 1, result.output
    assert result.stdout == ""
    assert result.stderr.startswith("medgen: error: ")
    assert result.stderr.count("\n") == 1
    for word in words:
        assert word in result.stderr


def test_help_names_every_command_and_option() -> None:
    assert all(name in run("--help").stdout for name in ("generate", "inpaint", "train", "models", "--version"))
    for command in ("generate", "inpaint", "train", "models"):
        text = run(command, "--help").stdout
        assert all(option in text for option in ("-i,", "-o,", "--device")), command


def test_module_and_version() -> None:
    process = subprocess.run([sys.executable, "-m", "medgen", "--version"], capture_output=True, text=True, check=True)
    assert process.stdout.startswith("medgen ")


def test_usage_errors_name_the_nearest() -> None:
    for arguments, words in (
        (["generat"], "Did you mean 'generate'"),
        (["generate", "brain-t1", "--sede", "1", "-o", "x"], "--seed"),
        (["inpaint", "-o", "x"], "the scan and the inpaint mask"),
        (["inpaint", "a", "b", "-o", "x", "--mode", "men"], "sample"),
        (["generate", "brain-t1", "-n", "0", "-o", "x"], "-n"),
    ):
        result = run(*arguments)
        assert result.exit_code == 2
        assert words in result.stderr
        assert "Traceback" not in result.stderr


def test_bad_input_is_one_line(tmp_path: Path) -> None:
    out = tmp_path / "out"
    check_one_line_error(run("generate", "brain-t1", "-o", out, "--sampler", "eulr"), "'eulr'", "Did you mean 'euler'?")
    check_one_line_error(run("generate", "no-such-model", "-o", out), "no-such-model")
    check_one_line_error(run("generate", "brain-t1", "-o", out, "--label", tmp_path / "no.nii.gz"), "no.nii.gz")
    check_one_line_error(run("train", "no-such-config", "-o", out), "no-such-config")
    check_one_line_error(run("models", tmp_path / "none"), "none")
    assert list(tmp_path.iterdir()) == []


def test_unexpected_errors_are_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medgen.models.bundled.describe_models", lambda folder: 1 / 0)
    assert isinstance(run("models").exception, ZeroDivisionError)


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (OSError(28, "No space left on device", "c/sub-0001_T1w.nii.gz"), 1, "No space left on device: 'c/sub-0001"),
        (MedgenError("first line\nsecond line"), 1, "first line second line"),
        (MemoryError(), 1, "not enough memory"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_errors_end_in_one_line(monkeypatch: pytest.MonkeyPatch, error: BaseException, status: int, words: str) -> None:
    def fail(folder: object) -> None:
        raise error

    monkeypatch.setattr("medgen.models.bundled.describe_models", fail)
    result = run("models")
    assert result.exit_code == status
    assert words in result.stderr
    assert result.stderr.count("\n") == 1


def test_generate_passes_everything_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[dict[str, Any]] = []

    def fake(model: object, n: int, output: Path, seed: int, **options: Any) -> CohortSummary:
        calls.append({"model": model, "n": n, "output": output, "seed": seed, **options})
        return CohortSummary(output, ("sub-0001", "sub-0002"), 1, output / "contact_sheet.png")

    monkeypatch.setattr("medgen.cohort.generate.generate_cohort", fake)
    loaded = SimpleNamespace(spec=SimpleNamespace(name="brain-t1", controls=()))
    monkeypatch.setattr(
        "medgen.models.bundled.load_model", lambda name, device: calls.append({"loaded": (name, device)}) or loaded
    )
    write_nifti(tmp_path / "label.nii.gz", MetaTensor(torch.ones(1, 4, 4, 4, dtype=torch.int16), affine=np.eye(4)))
    result = run(
        "generate", "brain-t1", "-n", 2, "-o", tmp_path / "c", "--seed", 7, "--sampler", "heun",
        "--num-inference-steps", 5, "--label", tmp_path / "label.nii.gz", "--resume", "--device", "cpu",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "1 subject made, 1 kept" in result.stdout
    assert str(tmp_path / "c" / "contact_sheet.png") in result.stdout
    assert calls[0]["loaded"] == ("brain-t1", "cpu")
    call = calls[1]
    assert call["model"] is loaded
    assert callable(call["notify"])
    assert (call["n"], call["seed"], call["sampler"], call["num_inference_steps"]) == (2, 7, "heun", 5)
    assert call["label"].shape == (1, 4, 4, 4)
    assert (call["resume"], call["overwrite"]) == (True, False)


@pytest.mark.parametrize("text", ["", "interrupted: complete subjects stay; continue with --resume"])
def test_an_interrupted_cohort_says_what_is_true(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt(text)

    loaded = SimpleNamespace(spec=SimpleNamespace(name="brain-t1", controls=()))
    monkeypatch.setattr("medgen.models.bundled.load_model", lambda name, device: loaded)
    monkeypatch.setattr("medgen.cohort.generate.generate_cohort", stop)
    result = run("generate", "brain-t1", "-o", tmp_path / "c")
    assert result.exit_code == 130
    assert result.stderr == f"medgen: {text or 'interrupted'}\n"


def fake_inpaint(monkeypatch: pytest.MonkeyPatch, fraction: float) -> list[tuple[Any, ...]]:
    calls: list[tuple[Any, ...]] = []

    def fake(image: Path, inpaint_mask: Path, output: Path, **options: Any) -> SimpleNamespace:
        calls.append((image, inpaint_mask, output, options))
        return SimpleNamespace(fraction=fraction, clipped=3, findings=(), record=output.with_name("out.json"))

    module = SimpleNamespace(inpaint_file=fake)
    monkeypatch.setitem(sys.modules, "medgen.restoration.inpaint", module)  # type: ignore[arg-type]
    return calls


def test_inpaint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image, mask, out, picture = (tmp_path / name for name in ("t1.nii.gz", "mask.nii.gz", "out.nii.gz", "p.png"))
    calls = fake_inpaint(monkeypatch, fraction=0.6)
    result = run("inpaint", image, mask, "-o", out, "--mode", "sample", "--samples", 3, "--picture", picture)
    assert result.exit_code == 0, result.output
    assert "regenerated 60.00%" in result.stdout
    assert f"record: {tmp_path / 'out.json'}" in result.stdout
    assert f"picture: {picture}" in result.stdout
    assert "more than half" in result.stderr
    assert "3 new values were clipped" in result.stderr
    assert run("inpaint", "-i", image, mask, "-o", out).exit_code == 0
    for call in calls:
        assert call[:3] == (image, mask, out)
    assert callable(calls[0][3].pop("callback"))
    assert calls[0][3] == {
        "model": "brain-t1-inpaint", "mode": "sample", "samples": 3, "seed": 0, "picture": picture, "overwrite": False,
        "device": "auto",
    }  # fmt: skip


def test_train_passes_overrides_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[dict[str, Any]] = []

    def fake(config: Path, output: Path, **options: Any) -> None:
        calls.append({"config": config, "output": output, **options})

    monkeypatch.setitem(sys.modules, "medgen.trainers", SimpleNamespace(train=fake))  # type: ignore[arg-type]
    (tmp_path / "mine.yaml").write_text("a: 1\n")
    result = run(
        "train", tmp_path / "mine.yaml", "-o", tmp_path / "run", "--fast-dev-run", "network#channels=[8, 16]",
        "seed=3", "-i", tmp_path,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert str(tmp_path / "run" / "model") in result.stdout
    assert calls[0]["overrides"] == ["network#channels=[8, 16]", "seed=3", f"data={tmp_path}"]
    assert (calls[0]["fast_dev_run"], calls[0]["resume"]) == (True, False)


def test_importing_starts_nothing() -> None:
    """Neither ``import medgen`` nor the command line's own modules import anything heavy."""
    code = (
        "import sys, medgen, medgen.cli, medgen.cli.app\n"
        "print([m for m in ('torch', 'monai', 'numpy', 'scipy', 'nibabel', 'matplotlib') if m in sys.modules])"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert process.stdout.strip() == "[]"


@pytest.mark.bench
def test_help_is_quick() -> None:
    """``medgen --help`` takes less than a third of the time of ``import monai``: best of three, interleaved."""
    commands = {"help": ["-m", "medgen", "--help"], "monai": ["-c", "import monai"]}
    seconds: dict[str, float] = dict.fromkeys(commands, float("inf"))
    for name, arguments in 3 * list(commands.items()):
        before = os.times()
        subprocess.run([sys.executable, *arguments], capture_output=True, check=True)
        after = os.times()
        spent = after.children_user + after.children_system - before.children_user - before.children_system
        seconds[name] = min(seconds[name], spent)
    help_, monai = seconds["help"], seconds["monai"]
    print(f"medgen --help {help_:.2f} s, import monai {monai:.2f} s, ratio {help_ / monai:.2f}")
    assert help_ < monai / 3
