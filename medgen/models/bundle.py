"""What makes a model folder a MONAI bundle: ``configs/metadata.json``, ``configs/inference.json``, ``LICENSE``.

``inference.json`` holds ``$`` expressions because MONAI's runner needs them. medgen writes it and never parses it.

References:
    MONAI Bundle Specification, https://docs.monai.io/en/stable/mb_specification.html
"""

from __future__ import annotations

from importlib import metadata as distribution
from pathlib import Path
from typing import Any

import medgen
from medgen.models.specification import ModelSpec
from medgen.networks.registry import NETWORKS

SCHEMA = "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json"
LICENCE_URLS = {
    "Apache-2.0": "https://www.apache.org/licenses/LICENSE-2.0",
    "BSD-3-Clause": "https://spdx.org/licenses/BSD-3-Clause.html",
    "CC-BY-4.0": "https://creativecommons.org/licenses/by/4.0/legalcode",
    "CC-BY-SA-4.0": "https://creativecommons.org/licenses/by-sa/4.0/legalcode",
    "CC0-1.0": "https://creativecommons.org/publicdomain/zero/1.0/legalcode",
    "MIT": "https://spdx.org/licenses/MIT.html",
}
_TASKS = {
    "label_to_image": "Synthesis of an image for a label map by diffusion",
    "joint": "Synthesis of an image together with its label map by diffusion",
    "inpaint": "Inpainting of an image by diffusion",
}


def bundle_metadata(spec: ModelSpec) -> dict[str, Any]:
    """The content of ``configs/metadata.json``.

    Args:
        spec: the model.

    Returns:
        MONAI's mandatory keys, and what else the model zoo uses.
    """
    task = _TASKS[spec.task]
    return {
        "schema": SCHEMA,
        "name": spec.name,
        "version": spec.version,
        "changelog": {spec.version: "Written by medgen"},
        "monai_version": _version("monai"),
        "pytorch_version": _version("torch"),
        "numpy_version": _version("numpy"),
        "required_packages_version": {
            "medgen": medgen.__version__,
            "nibabel": _version("nibabel"),
            "safetensors": _version("safetensors"),
        },
        "task": task,
        "description": spec.description or f"{task} ({spec.modality}), for use with medgen.",
        "authors": spec.authors or "Not stated",
        "copyright": spec.copyright or "Not stated",
        "intended_use": spec.intended_use,
        "data_type": "nibabel",
        "network_data_format": {
            "inputs": {"image": _tensor(spec, "in_channels")},
            "outputs": {"pred": _tensor(spec, "out_channels")},
        },
    }


def _version(package: str) -> str:
    """Version of an installed package without its local part (``2.13.0+cpu`` -> ``2.13.0``)."""
    try:
        return distribution.version(package).split("+")[0]
    except distribution.PackageNotFoundError:
        return "0+unknown"


def _tensor(spec: ModelSpec, which: str) -> dict[str, Any]:
    """MONAI's description of the network's own input or output tensor."""
    channels = int(spec.network.get(which, spec.diffused_channels))
    if which == "in_channels":
        channels += int(spec.network.get("condition_channels", 0))
    packed = 2 if spec.packing == "haar" else 1
    return {
        "type": "image",
        "format": "latent" if packed == 2 else "magnitude",
        "modality": "MR" if spec.modality.lower() not in {"ct", "pet"} else spec.modality.upper(),
        "num_channels": channels,
        "spatial_shape": [n // packed for n in spec.grid.size],
        "dtype": "float32",
        "value_range": [],
        "is_patch_data": False,
        "channel_def": {str(i): name for i, name in enumerate(_channel_names(spec, channels))},
    }


def _channel_names(spec: ModelSpec, count: int) -> list[str]:
    """Plain words for each channel of a network tensor: the diffused ones first, then the conditioning."""
    voxel = [f"image {i}" for i in range(spec.image_channels)]
    if spec.task == "joint":
        voxel += [f"label {name}" for name, _ in spec.label_channels]
    bands = spec.packing_factor
    names = [f"{name}, band {b}" if bands > 1 else name for name in voxel for b in range(bands)]
    return [*names, *(f"conditioning {i}" for i in range(count - len(names)))][:count]


def bundle_inference(spec: ModelSpec) -> dict[str, Any]:
    """The content of ``configs/inference.json``, run by ``python -m monai.bundle run``.

    Args:
        spec: the model.

    Returns:
        A MONAI config: ``network_def`` is the bare network; ``run`` samples or inpaints through medgen.
    """
    common = {
        "bundle_root": ".",
        "output_dir": "generated",  # not in the bundle: nothing may be added to a verified folder
        "dataset_dir": "$@output_dir",
        "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
        "network_def": spec.network | {"_target_": _import_path(spec.network["_target_"])},
        "network": "$@network_def.to(@device)",
        "seed": 0,
        "initialize": [],
        "finalize": [],
    }
    return common | (_inpaint_run() if spec.task == "inpaint" else _generate_run())


def _import_path(name: str) -> str:
    """What MONAI's parser imports for a registered network, its public name where it has one."""
    cls = NETWORKS[name].load()
    return f"monai.networks.nets.{name}" if cls.__module__.startswith("monai.") else f"{cls.__module__}.{cls.__name__}"


def _generate_run() -> dict[str, Any]:
    return {
        "imports": ["$import torch", "$from medgen.cohort.generate import generate_cohort", "$import medgen"],
        "model": "$medgen.load_model(@bundle_root, device=str(@device))",
        "num_subjects": 4,
        "run": ["$generate_cohort(@model, n=@num_subjects, output_dir=@output_dir, seed=@seed)"],
    }


def _inpaint_run() -> dict[str, Any]:
    return {
        "imports": ["$import torch", "$from medgen.restoration.inpaint import inpaint_file"],
        "image": "image.nii.gz",
        "inpaint_mask": "inpaint_mask.nii.gz",
        "output": "$@output_dir + '/inpainted.nii.gz'",
        "run": [
            "$inpaint_file(@image, @inpaint_mask, @output, model=@bundle_root, seed=@seed, device=str(@device))",
        ],
    }


def licence_text(spec: ModelSpec) -> str:
    """The content of ``LICENSE``: the full text where medgen carries it, else the name and where it stands.

    Args:
        spec: the model.
    """
    head = f"{spec.name} {spec.version}\n" + (f"{spec.copyright}\n" if spec.copyright else "")
    if spec.licence == "NOASSERTION":
        return head + "\nNo licence has been stated for these weights. Ask their authors before passing them on.\n"
    where = LICENCE_URLS.get(spec.licence)
    notice = f"\nThis model is distributed under {spec.licence}" + (f", {where}\n" if where else ".\n")
    notice += "Sources of the training data and what they ask for are named in docs/README.md.\n"
    full = Path(__file__).parent / "licences" / f"{spec.licence}.txt"
    return head + notice + (f"\n{full.read_text(encoding='utf-8')}" if full.is_file() else "")
