"""A model folder is a MONAI bundle: MONAI itself loads and runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from medgen.models import ModelSpec, save_model
from medgen.models.bundle import bundle_inference, bundle_metadata, licence_text

# keys that MONAI's bundle specification makes mandatory, and those of a tensor's format
MANDATORY = [
    *("version", "monai_version", "pytorch_version", "numpy_version", "required_packages_version", "task"),
    *("description", "authors", "copyright", "network_data_format", "changelog", "intended_use"),
]
TENSOR = {
    *("type", "format", "modality", "num_channels", "spatial_shape", "dtype", "value_range", "is_patch_data"),
    "channel_def",
}


@pytest.fixture
def quiet() -> Any:
    """MONAI warns of every config that it parses; the suite turns warnings into errors."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def test_metadata(spec: ModelSpec, content: dict[str, Any]) -> None:
    metadata = bundle_metadata(spec)
    assert all(metadata[key] for key in MANDATORY)
    for direction, name, channels in (("inputs", "image", 4), ("outputs", "pred", 1)):
        tensor = metadata["network_data_format"][direction][name]
        assert set(tensor) == TENSOR
        assert tensor["num_channels"] == len(tensor["channel_def"]) == channels
        assert tensor["spatial_shape"] == [8, 8, 8]
    assert "+" not in metadata["pytorch_version"]


def test_monai_loads_network_and_weights(folder: Path, state: dict[str, torch.Tensor], quiet: None) -> None:
    from monai.bundle import load

    network = load("tiny-t1", bundle_dir=folder.parent, workflow_type="inference", device="cpu")
    loaded = network.state_dict()
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[name], state[name]) for name in state)


def test_monai_finds_the_weights_by_default(folder: Path, state: dict[str, torch.Tensor], quiet: None) -> None:
    from monai.bundle import load

    loaded = load("tiny-t1", bundle_dir=folder.parent, device="cpu")
    assert all(torch.equal(loaded[name], state[name]) for name in state)


def test_monai_checks_metadata_against_the_network(folder: Path, quiet: None) -> None:
    from monai.bundle import verify_net_in_out

    verify_net_in_out(
        "network_def",
        meta_file=str(folder / "configs/metadata.json"),
        config_file=str(folder / "configs/inference.json"),
        device="cpu",
        extra_forward_args={"timesteps": torch.zeros(1)},
    )


def test_monai_runs_the_bundle(folder: Path, tmp_path: Path) -> None:
    """``python -m monai.bundle run`` generates subjects through medgen."""
    out = tmp_path / "out"
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", str(folder / "configs/inference.json")]
    command += ["--bundle_root", str(folder), "--output_dir", str(out), "--num_subjects", "1", "--device", "cpu"]
    here = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    run = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=here)
    assert run.returncode == 0, run.stderr[-2000:]
    assert {"sub-0001_T1w.nii.gz", "sub-0001_dseg.nii.gz", "sub-0001.json"} <= {item.name for item in out.iterdir()}
    provenance = json.loads((out / "sub-0001.json").read_text())
    assert "synthetic" in json.dumps(provenance).lower()


def test_network_of_medgen_is_named_by_its_import_path(content: dict[str, Any], tmp_path: Path, quiet: None) -> None:
    from monai.bundle import load

    from medgen.networks import build_network

    network = {"_target_": "ConditionalUNet", "spatial_dims": 3, "in_channels": 1, "out_channels": 1}
    network |= {"channels": [8, 16], "condition_channels": 3, "condition_embedding": 4}
    spec = ModelSpec.from_dict(content | {"network": network})
    assert bundle_inference(spec)["network_def"]["_target_"] == "medgen.networks.conditional_unet.ConditionalUNet"
    assert bundle_metadata(spec)["network_data_format"]["inputs"]["image"]["num_channels"] == 4
    save_model(tmp_path / "c", spec, build_network(spec.network).state_dict())
    load("c", bundle_dir=tmp_path, workflow_type="inference", device="cpu")


@pytest.mark.parametrize(
    ("licence", "words"),
    [
        ("Apache-2.0", ["Apache License", "Version 2.0, January 2004"]),
        ("CC-BY-SA-4.0", ["CC-BY-SA-4.0", "https://creativecommons.org/licenses/by-sa/4.0"]),
        ("NOASSERTION", ["No licence has been stated"]),
        ("LicenseRef-own", ["LicenseRef-own"]),
    ],
)
def test_licence_text(content: dict[str, Any], licence: str, words: list[str]) -> None:
    text = licence_text(ModelSpec.from_dict(content | {"licence": licence}))
    for word in words:
        assert word in text


def test_half_weights_load_in_monai(
    tmp_path: Path, spec: ModelSpec, state: dict[str, torch.Tensor], quiet: None, make: Callable[..., Path]
) -> None:
    from monai.bundle import load

    half = {name: t.half() for name, t in state.items()}
    save_model(tmp_path / "half", spec, half)
    network = load("half", bundle_dir=tmp_path, workflow_type="inference", device="cpu")
    assert all(torch.equal(t, half[name].float()) for name, t in network.state_dict().items())
