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
from medgen.models.bundle_tensors import data_format
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
TASK_WORDS = {
    "image": "Synthesis of an image",
    "label_to_image": "Synthesis of an image for a label map",
    "joint": "Synthesis of an image together with its label map",
    "inpaint": "Inpainting of an image",
    "translate": "Translation of images into another modality",
    "segment": "Segmentation of an image into one of its plausible label maps",
    "super_resolve": "Synthesis of an image from coarse to fine",
    "restore": "Restoration of a degraded image",
}
FAMILY_WORDS = {
    "diffusion": "by diffusion",
    "autoencoder": "by an autoencoder",
    "autoregressive": "by a transformer over codes",
    "gan": "by an adversarial network",
    "restorer": "by regression",
}


def bundle_metadata(spec: ModelSpec) -> dict[str, Any]:
    """The content of ``configs/metadata.json``.

    Args:
        spec: the model.

    Returns:
        MONAI's mandatory keys, and what else the model zoo uses.
    """
    task = f"{TASK_WORDS[spec.task]} {FAMILY_WORDS[spec.family]}"
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
        "network_data_format": data_format(spec),
    }


def _version(package: str) -> str:
    """Version of an installed package without its local part (``2.13.0+cpu`` -> ``2.13.0``)."""
    try:
        return distribution.version(package).split("+")[0]
    except distribution.PackageNotFoundError:
        return "0+unknown"


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
        **_network_definitions(spec),
        "seed": 0,
        "initialize": [],
        "finalize": [],
    }
    return common | _run(spec)


def _run(spec: ModelSpec) -> dict[str, Any]:
    """What ``python -m monai.bundle run`` does, by family and task."""
    if spec.family == "autoencoder":
        return _reconstruct_run(spec)
    if spec.family == "restorer":
        return _restore_run(spec)
    if spec.task == "inpaint":
        return _inpaint_run()
    if spec.source_modalities:
        return _from_sources_run(spec)
    return _generate_run(told=spec.task == "label_to_image" and spec.label_source is None)


def _network_definitions(spec: ModelSpec) -> dict[str, Any]:
    """``network_def`` of the main network, whose weights are ``models/model.pt`` if it is the only one."""
    forms = {name: form | {"_target_": _import_path(form["_target_"])} for name, form in spec.networks().items()}
    main, *others = forms
    further = {f"{name.replace('.', '_')}_def": forms[name] for name in others}
    return {"network_def": forms[main], **further, "network": "$@network_def.to(@device)"}


def _import_path(name: str) -> str:
    """What MONAI's parser imports for a registered network, its public name where it has one."""
    cls = NETWORKS[name].load()
    public = cls.__module__.startswith("monai.networks.nets.")
    return f"monai.networks.nets.{name}" if public else f"{cls.__module__}.{cls.__name__}"


def _generate_run(told: bool = False) -> dict[str, Any]:
    """Subjects; ``told`` models make them for a label map, whose file ``label`` names."""
    reader = ["$from medgen.cohort.labels import read_label"] if told else []
    given = ", label=read_label(@label)" if told else ""
    return {
        "imports": ["$import torch", "$from medgen.cohort.generate import generate_cohort", *reader, "$import medgen"],
        "model": "$medgen.load_model(@bundle_root, device=str(@device))",
        **({"label": "label.nii.gz"} if told else {}),
        "num_subjects": 4,
        "run": [f"$generate_cohort(@model, n=@num_subjects, output_dir=@output_dir, seed=@seed{given})"],
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


def _restore_run(spec: ModelSpec) -> dict[str, Any]:
    task = str(getattr(spec, "restores", ""))
    hole = {"inpaint_mask": "inpaint_mask.nii.gz"} if task == "inpaint" else {}
    given = f"'{task}', model=@bundle_root, device=str(@device)" + (", mask=@inpaint_mask" if hole else "")
    return {
        "imports": [
            "$import torch",
            "$from medgen.restoration.restore_file import restore_file",
            "$from medgen.restoration.settings import RestoreSettings",
        ],
        "image": "image.nii.gz",
        **hole,
        "output": "$@output_dir + '/restored.nii.gz'",
        "run": [f"$restore_file(@image, @output, RestoreSettings({given}))"],
    }


def _reconstruct_run(spec: ModelSpec) -> dict[str, Any]:
    label = {"label": "label.nii.gz"} if spec.makes_label and spec.makes_image else {}
    given = "@image, @output, model=@bundle_root, device=str(@device)" + (", label=@label" if label else "")
    return {
        "imports": ["$import torch", "$from medgen.restoration.reconstruct import reconstruct_file"],
        "image": "image.nii.gz" if spec.makes_image else "label.nii.gz",
        **label,
        "output": "$@output_dir + '/reconstructed.nii.gz'",
        "run": [f"$reconstruct_file({given})"],
    }


def _from_sources_run(spec: ModelSpec) -> dict[str, Any]:
    """Translation and segmentation: ``images`` names a file for each modality, of which any may be left out."""
    verb, name = ("segment", "segmented") if spec.task == "segment" else ("translate", "translated")
    return {
        "imports": ["$import torch", f"$from medgen.restoration.{verb} import {verb}_file"],
        "images": {modality: f"{modality}.nii.gz" for modality in spec.source_modalities},
        "output": f"$@output_dir + '/{name}.nii.gz'",
        "run": [f"${verb}_file(@images, @output, model=@bundle_root, seed=@seed, device=str(@device))"],
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
