"""``medgen import`` from a MAISI-like bundle to samples."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from typer.testing import CliRunner

from medgen.cli.app import app
from medgen.networks.registry import build_network

UNET: dict[str, Any] = {
    "_target_": "monai.apps.generation.maisi.networks.diffusion_model_unet_maisi.DiffusionModelUNetMaisi",
    "spatial_dims": "@spatial_dims", "in_channels": "@latent_channels", "out_channels": "@latent_channels",
    "num_channels": [8, 8], "num_res_blocks": 1, "attention_levels": [False, False], "norm_num_groups": 4,
}  # fmt: skip
CODER: dict[str, Any] = {
    "_target_": "monai.apps.generation.maisi.networks.autoencoderkl_maisi.AutoencoderKlMaisi",
    "spatial_dims": "@spatial_dims", "in_channels": 1, "out_channels": 1, "latent_channels": "@latent_channels",
    "num_channels": [8, 8], "num_res_blocks": [1, 1], "attention_levels": [False, False], "norm_num_groups": 4,
    "num_splits": 1, "save_mem": False, "with_encoder_nonlocal_attn": False, "with_decoder_nonlocal_attn": False,
}  # fmt: skip
SPECIFICATION: dict[str, Any] = {
    "name": "maisi-like",
    "modality": "ct",
    "grid": {"spacing": [2.0, 2.0, 2.0], "size": [16, 16, 8]},
    "scheduler": {"name": "RFlowScheduler"},
    "sampling": {
        "sampler": "ab2", "num_inference_steps": 2, "schedule": "flow", "sigma_min": 0.01, "sigma_max": 200.0
    },
}  # fmt: skip


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    folder = tmp_path / "bundle"
    for name in ("configs", "models"):
        (folder / name).mkdir(parents=True)
    config = {
        "spatial_dims": 3, "latent_channels": 2, "device": "$torch.device('cuda')",
        "autoencoder_def": CODER, "diffusion_unet_def": UNET, "scale_factor": "$@checkpoint['scale_factor']",
    }  # fmt: skip
    (folder / "configs/inference.json").write_text(json.dumps(config), encoding="utf-8")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for form, file, wrap in (
            (UNET, "diff_unet_ckpt.pt", lambda s: {"unet_state_dict": s, "scale_factor": torch.tensor(0.5)}),
            (CODER, "autoencoder_epoch273.pt", lambda s: s),
        ):
            plain = {"_target_": str(form["_target_"]).rsplit(".", 1)[-1], "spatial_dims": 3}
            rest = {k: 2 if v == "@latent_channels" else v for k, v in form.items() if k not in plain}
            torch.save(wrap(build_network(plain | rest).state_dict()), folder / "models" / file)
    return folder


def test_a_bundle_becomes_a_model_that_generates(bundle: Path, tmp_path: Path) -> None:
    said = tmp_path / "said.yaml"
    said.write_text(yaml.safe_dump(SPECIFICATION), encoding="utf-8")
    run = CliRunner().invoke(app, ["import", str(bundle), "-o", str(tmp_path / "model"), "--config", str(said)])
    assert run.exit_code == 0, run.output
    assert f"model: {tmp_path / 'model'}" in run.output
    inner = json.loads((tmp_path / "model" / "medgen.json").read_text())["autoencoder"]
    assert inner["latent_std"] == [2.0, 2.0]
    made = CliRunner().invoke(
        app, ["generate", str(tmp_path / "model"), "-n", "1", "-o", str(tmp_path / "out"), "--device", "cpu"]
    )
    assert made.exit_code == 0, made.output
    assert list((tmp_path / "out").glob("*_ct.nii.gz"))


def test_what_is_wrong_is_one_line(bundle: Path, tmp_path: Path) -> None:
    said = tmp_path / "said.yaml"
    without = {key: value for key, value in SPECIFICATION.items() if key != "scheduler"}
    said.write_text(yaml.safe_dump(without), encoding="utf-8")
    run = CliRunner().invoke(app, ["import", str(bundle), "-o", str(tmp_path / "model"), "--config", str(said)])
    assert run.exit_code == 1
    assert "does not say how noise was added in training" in run.output
    assert len(run.output.strip().splitlines()) == 1
    assert not (tmp_path / "model").exists()


@pytest.mark.slow  # starts Python three times
def test_the_example_of_the_readme_runs(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    section = (root / "README.md").read_text(encoding="utf-8").split("## Models from MONAI and diffusers")[1]
    script = section.split("```bash\n")[1].split("```")[0]
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, module in (("python", ""), ("medgen", "-m medgen ")):
        (commands / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {module}"$@"\n')
        (commands / name).chmod(0o755)
    paths = os.pathsep.join([str(root), *filter(None, [os.environ.get("PYTHONPATH")])])
    known = {**os.environ, "PATH": f"{commands}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": paths}
    done = subprocess.run(["bash", "-e", "-c", script], cwd=tmp_path, env=known, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "1 subject made: from_imported" in done.stdout
    assert (tmp_path / "from_imported" / "sub-0001_T1w.png").is_file()
