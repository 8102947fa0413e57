"""Every family's model folder is a MONAI bundle, whose run gives the files that medgen itself writes.

A model of each shipped ``_tiny`` configuration, untrained: the two that stand for one and several networks through
``python -m monai.bundle run``, all others through MONAI's parser in this process (slow).
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from medgen.io.configs import shipped_configs
from medgen.io.nifti import write_nifti
from medgen.models import save_model
from medgen.models.bundle import bundle_metadata
from medgen.models.bundled import load_model
from medgen.models.restorer_spec import RestorerSpec
from medgen.models.specification import ModelSpec
from medgen.models.weights import joined_state
from medgen.trainers.base import initial_network
from medgen.trainers.config import load_config
from medgen.trainers.run import planned_spec
from tests.models.test_bundle import monai_run

TINY = [name for name in shipped_configs() if name.endswith("_tiny")]
SUBPROCESS = ("stylegan2_tiny", "latent_diffusion_tiny")
FEW_STEPS = {"num_inference_steps": 2}


def make(name: str, folder: Path) -> ModelSpec:
    """An untrained model of a shipped configuration; diffusion takes two steps."""
    path = shipped_configs()[name]
    spec: ModelSpec = planned_spec(load_config(path), path)
    spec = _hurried(spec)
    networks = {key: initial_network(form, 0, name, key) for key, form in spec.networks().items()}
    save_model(folder, spec, joined_state(networks))
    return spec


def _hurried(spec: Any) -> Any:
    """The same specification with two inference steps, those of a cascade's base included; for any scan."""
    content = spec.to_dict()
    if "domain" in content:  # the scans here are tiny
        content["domain"] = None
    for part in (content, content.get("base") or {}):
        if "sampling" in part:
            part["sampling"] |= FEW_STEPS
    return ModelSpec.from_dict(content)


def inputs(spec: ModelSpec, folder: Path) -> dict[str, Any]:
    """What a bundle's run is given: a random scan of each modality, or a label map of two boxes."""
    size, spacing = list(spec.grid.size), list(spec.grid.spacing)
    size, spacing = size + [4] * (3 - len(size)), spacing + [spacing[0]] * (3 - len(spacing))
    affine = torch.diag(torch.tensor([*spacing, 1.0], dtype=torch.float64))
    stream = torch.Generator().manual_seed(0)

    def written(name: str, values: torch.Tensor, dtype: Any) -> str:
        path = folder / f"{name}.nii.gz"
        write_nifti(path, MetaTensor(values, affine=affine), dtype)
        return str(path)

    found: dict[str, Any] = {}
    if isinstance(spec, RestorerSpec):
        affine[2, 2] = 3 * spacing[0] if spec.restores == "superres" else spacing[0]
        found["image"] = written("image", torch.rand(1, 24, 20, 12, generator=stream), np.float32)
        if spec.restores == "inpaint":
            hole = torch.zeros(1, 24, 20, 12)
            hole[:, 8:12, 8:12, 4:8] = 1
            found["inpaint_mask"] = written("inpaint_mask", hole, np.uint8)
    elif spec.family == "autoencoder":
        found["image"] = written("image", torch.rand(1, *size, generator=stream), np.float32)
    elif spec.source_modalities:
        found["images"] = {
            name: written(name, torch.rand(1, *size, generator=stream), np.float32) for name in spec.source_modalities
        }
    wants_label = spec.makes_label if spec.family == "autoencoder" else spec.task == "label_to_image"
    if wants_label and spec.label_source is None:
        ids = torch.zeros(1, *size, dtype=torch.int16)
        for k, (_, group) in enumerate(spec.label_channels[:2]):
            ids[:, 4 + 6 * k : 10 + 6 * k, 6:14] = group[0]
        found["label"] = written("label", ids, np.int16)
    return found


def by_medgen(folder: Path, out: Path, given: dict[str, Any]) -> None:
    """The same as the bundle's run, by the functions behind medgen's commands."""
    from medgen.cohort.generate import generate_cohort
    from medgen.cohort.labels import read_label
    from medgen.restoration.reconstruct import reconstruct_file
    from medgen.restoration.restore_file import restore_file
    from medgen.restoration.segment import segment_file
    from medgen.restoration.settings import RestoreSettings
    from medgen.restoration.translate import translate_file

    model = load_model(folder, device="cpu")
    if model.spec.family in ("autoencoder", "restorer") or model.spec.source_modalities:
        out.mkdir()
    if isinstance(model.spec, RestorerSpec):
        mask = Path(given["inpaint_mask"]) if "inpaint_mask" in given else None
        settings = RestoreSettings(model.spec.restores, model=str(folder), device="cpu", mask=mask)
        restore_file(given["image"], out / "restored.nii.gz", settings)
        return
    if model.spec.family == "autoencoder":
        target = out / "reconstructed.nii.gz"
        reconstruct_file(given["image"], target, model=folder, label=given.get("label"), device="cpu")
    elif model.spec.task == "segment":
        segment_file(given["images"], out / "segmented.nii.gz", model=folder, device="cpu")
    elif model.spec.source_modalities:
        translate_file(given["images"], out / "translated.nii.gz", model=folder, device="cpu")
    else:
        label = read_label(given["label"]) if "label" in given else None
        generate_cohort(model, n=1, output_dir=out, seed=0, label=label)


def same_files(theirs: Path, ours: Path) -> None:
    """Equal bytes of every volume and picture, of which there is at least one."""
    kinds = ("*.nii.gz", "*.png")
    names = sorted(path.name for kind in kinds for path in ours.glob(kind))
    assert names
    assert names == sorted(path.name for kind in kinds for path in theirs.glob(kind))
    for name in names:
        assert (theirs / name).read_bytes() == (ours / name).read_bytes(), name


@pytest.mark.parametrize("name", [name for name in SUBPROCESS if name in TINY])
def test_monais_command_gives_medgens_files(name: str, tmp_path: Path) -> None:
    spec = make(name, tmp_path / "model")
    given = inputs(spec, tmp_path)
    monai_run(tmp_path / "model", tmp_path, output_dir=tmp_path / "theirs", num_subjects=1, **given)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the command had: the last bits may differ otherwise
    try:
        by_medgen(tmp_path / "model", tmp_path / "ours", given)
    finally:
        torch.set_num_threads(threads)
    same_files(tmp_path / "theirs", tmp_path / "ours")


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in TINY if name not in SUBPROCESS])
def test_monais_parser_gives_medgens_files(name: str, tmp_path: Path) -> None:
    from monai.bundle import ConfigParser

    spec = make(name, tmp_path / "model")
    if any(control.kind == "text" for control in spec.controls):
        pytest.skip("prompts need a text encoder from elsewhere")
    given = inputs(spec, tmp_path)
    (tmp_path / "theirs").mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        parser = ConfigParser()
        parser.read_config(str(tmp_path / "model/configs/inference.json"))
        changes = {"bundle_root": str(tmp_path / "model"), "output_dir": str(tmp_path / "theirs"), "device": "cpu"}
        for key, value in {**changes, **given}.items():
            parser[key] = value
        if "num_subjects" in parser.config:
            parser["num_subjects"] = 1
            (tmp_path / "theirs").rmdir()
        parser.get_parsed_content("run")
    by_medgen(tmp_path / "model", tmp_path / "ours", given)
    same_files(tmp_path / "theirs", tmp_path / "ours")


@pytest.mark.parametrize("name", TINY)
def test_metadata_names_every_channel_of_the_network(name: str) -> None:
    spec = planned_spec(load_config(shipped_configs()[name]), shipped_configs()[name])
    form = next(iter(spec.networks().values()))
    described = bundle_metadata(spec)["network_data_format"]
    taken = sum(form.get(key, 0) for key in ("in_channels", "condition_channels", "label_channels"))
    if taken:
        assert described["inputs"]["image"]["num_channels"] == taken
    if "num_tokens" in form:
        assert described["outputs"]["pred"]["num_channels"] == form["num_tokens"]
        assert described["inputs"]["tokens"]["value_range"] == [0, form["num_tokens"] - 1]
        return
    made = described["outputs"]["pred"]
    assert made["num_channels"] == form["out_channels"]
    named = set(made["channel_def"].values())
    assert len(named) == made["num_channels"]
    assert not any(word.startswith("conditioning") for word in named)


def test_metadata_of_a_packed_autoencoder_speaks_of_voxels() -> None:
    spec = planned_spec(load_config(shipped_configs()["vqvae_tiny"]), shipped_configs()["vqvae_tiny"])
    described = bundle_metadata(spec)["network_data_format"]["inputs"]["image"]
    assert described["spatial_shape"] == [8, 12, 8]
    assert described["channel_def"]["0"] == "T1w, band 0"
    assert described["channel_def"]["191"] == "label posterior, band 63"
