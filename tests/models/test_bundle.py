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

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from medgen.io.nifti import read_nifti, write_nifti
from medgen.models import ModelSpec, model_hash, save_model
from medgen.models.bundle import bundle_inference, bundle_metadata, licence_text
from medgen.models.folder import verify_folder

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


def monai_run(folder: Path, cwd: Path, **overrides: object) -> None:
    """``python -m monai.bundle run`` on a model folder, from another folder."""
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", str(folder / "configs/inference.json")]
    for key, value in {"bundle_root": folder, "device": "cpu", **overrides}.items():
        command += [f"--{key}", str(value)]
    here = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    run = subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=here)
    assert run.returncode == 0, run.stderr[-2000:]


def test_monai_runs_the_bundle(folder: Path, tmp_path: Path) -> None:
    """It generates subjects through medgen, and leaves the folder as it was."""
    out = tmp_path / "out"
    monai_run(folder, tmp_path, output_dir=out, num_subjects=1)
    assert {"sub-0001_T1w.nii.gz", "sub-0001_dseg.nii.gz", "sub-0001.json"} <= {item.name for item in out.iterdir()}
    provenance = json.loads((out / "sub-0001.json").read_text())
    assert "synthetic" in json.dumps(provenance).lower()
    assert model_hash(folder) in json.dumps(provenance)
    verify_folder(folder)


def test_monai_runs_an_inpainting_bundle(content: dict[str, Any], tmp_path: Path) -> None:
    from medgen.networks import build_network

    changes = {"task": "inpaint", "label_channels": [], "label_source": None, "label_dropout": 0.0}
    spec = ModelSpec.from_dict(content | changes | {"network": content["network"] | {"in_channels": 3}})
    save_model(tmp_path / "filler", spec, build_network(spec.network).state_dict())
    scan = torch.rand(1, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    hole = torch.zeros(1, 16, 16, 16)
    hole[:, 6:10, 6:10, 6:10] = 1
    affine = torch.diag(torch.tensor([2.0, 2, 2, 1], dtype=torch.float64))
    for name, volume, dtype in (("image", scan, np.float32), ("inpaint_mask", hole, np.uint8)):
        write_nifti(tmp_path / f"{name}.nii.gz", MetaTensor(volume, affine=affine), dtype)
    monai_run(tmp_path / "filler", tmp_path, output="filled.nii.gz")
    filled = read_nifti(tmp_path / "filled.nii.gz").as_tensor()
    assert torch.equal(filled[hole == 0], scan[hole == 0])
    assert not torch.equal(filled, scan)


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
