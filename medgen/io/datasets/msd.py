"""Medical Segmentation Decathlon and nnU-Net: ``dataset.json``, ``imagesTr``, ``labelsTr``.

The Decathlon keeps several channels in one 4D file; nnU-Net keeps each in a file ``case_0000.nii.gz``,
``case_0001.nii.gz``. ``modality`` (``channel_names`` in nnU-Net) of ``dataset.json`` names them.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

from medgen.checks import MedgenError
from medgen.io.datasets.case import Case, ImageFile, listed, modality_name, stem

__all__ = ["is_msd", "read_msd"]

_CHANNEL = re.compile(r"_(\d{4})$")


def is_msd(path: Path) -> bool:
    """Whether a folder holds ``imagesTr``."""
    return (path / "imagesTr").is_dir()


def read_msd(path: Path) -> list[Case]:
    """The training cases of one task.

    Args:
        path: folder with ``imagesTr`` and ``labelsTr``, and ``dataset.json`` where images have several channels.

    Raises:
        MedgenError: no images, ``dataset.json`` cannot be read, or it names files that do not exist.
    """
    content = _description(path / "dataset.json")
    names = channel_names(content)
    groups: dict[str, list[Path]] = defaultdict(list)
    images = _stated(path, content) or listed(path / "imagesTr")
    for image in images:
        groups[_CHANNEL.sub("", stem(image))].append(image)
    if not groups:
        raise MedgenError(f"data '{path}': 'imagesTr' holds no images. Put the training images there.")
    attributes: dict[str, str | float] = {}
    if isinstance(content.get("name"), str):
        attributes["data_set"] = content["name"]
    return [
        Case(person, _images(files, names, path), _label(path / "labelsTr", person, files[0]), attributes)
        for person, files in sorted(groups.items())
    ]


def _description(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise MedgenError(f"'{path}' is no valid JSON ({error}). Get a whole copy.") from error
    if not isinstance(content, dict):
        raise MedgenError(f"'{path}' must hold an object. Got {type(content).__name__}. Get a whole copy.")
    return content


def channel_names(content: dict[str, Any]) -> list[str]:
    """Names of the channels in their order; an only channel has none of use (``MRI``, ``CT``)."""
    table = content.get("modality") or content.get("channel_names") or {}
    if not isinstance(table, dict) or len(table) < 2:
        return ["image"]
    try:
        return [modality_name(str(name)) for _, name in sorted(table.items(), key=lambda entry: int(entry[0]))]
    except ValueError as error:
        raise MedgenError(
            f"dataset.json: modality must number its channels '0', '1', .... Got {list(table)}."
        ) from error


def _stated(path: Path, content: dict[str, Any]) -> list[Path]:
    """The images that ``training`` lists, if it does so."""
    entries = content.get("training")
    if not isinstance(entries, list):
        return []
    found = [
        path / entry["image"] for entry in entries if isinstance(entry, dict) and isinstance(entry.get("image"), str)
    ]
    kept = []
    for image in found:
        parts = [image] if image.is_file() else sorted(image.parent.glob(f"{stem(image)}_[0-9][0-9][0-9][0-9].nii*"))
        if not parts:
            raise MedgenError(
                f"data '{path}': dataset.json names '{image.name}', which does not exist. Get a whole copy."
            )
        kept += parts
    return kept


def _images(files: list[Path], names: list[str], root: Path) -> dict[str, ImageFile]:
    """Images by channel: of one file each, or the volumes of one file."""
    numbered = [int(found[1]) for found in (_CHANNEL.search(stem(file)) for file in files) if found]
    if len(files) > 1 or (len(names) > 1 and numbered):
        if len(numbered) != len(files):
            raise MedgenError(
                f"data '{root}': {', '.join(f.name for f in files)} belong to one case. Number all or none."
            )
        if names == ["image"]:
            names = [str(i) for i in range(max(numbered) + 1)]
        if max(numbered) >= len(names):
            raise MedgenError(f"data '{root}': '{files[-1].name}' has a channel that dataset.json does not name.")
        return {names[i]: ImageFile(file) for i, file in zip(numbered, files, strict=True)}
    if len(names) > 1:
        return {name: ImageFile(files[0], frame=i) for i, name in enumerate(names)}
    return {"image": ImageFile(files[0])}


def _label(folder: Path, person: str, image: Path) -> ImageFile | None:
    ending = image.name[len(stem(image)) :]
    for name in (image.name, f"{person}{ending}", f"{person}.nii.gz", f"{person}.nii"):
        if (folder / name).is_file():
            return ImageFile(folder / name)
    return None
