"""MONAI datalists: ``{"training": [{"image": ..., "label": ..., "age": 61, ...}]}``, paths relative to the file.

Several modalities are keys of their own (``"T1w": path, "FLAIR": path``), or a list under ``image`` that ``modality``
of the file names as in ``dataset.json``. ``person`` (``subject``, ``patient``) names who it is; every further key is an
attribute.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from medgen.checks import MedgenError
from medgen.io.datasets.case import Attribute, Case, ImageFile, attribute, is_image, modality_name, stem
from medgen.io.datasets.msd import channel_names

__all__ = ["read_datalist"]

_PERSON = ("person", "subject", "subject_id", "participant_id", "patient", "patient_id")


def read_datalist(path: Path) -> list[Case]:
    """The cases under ``training``, in the order of the list.

    Args:
        path: of the JSON file.

    Raises:
        MedgenError: it is no datalist, or names a file that does not exist.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        entries = content["training"] if isinstance(content, dict) else content
        names = channel_names(content) if isinstance(content, dict) else ["image"]
        cases = [_case(entry, names, path.parent) for entry in entries]
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
        raise MedgenError(
            f"data '{path}' is no MONAI datalist ({type(error).__name__}: {error}). "
            "Write {'training': [{'image': ..., 'label': ...}]}."
        ) from error
    cases = _told_apart(cases)
    for case in cases:
        for file in (*case.images.values(), *([case.label] if case.label else [])):
            if not file.path.is_file():
                raise MedgenError(f"data '{path}': file '{file.path}' does not exist. Mend the list.")
    return cases


def _told_apart(cases: list[Case]) -> list[Case]:
    """Cases whose files have one name in several folders are called after the folder."""
    folders = [next(iter(case.images.values())).path.parent.name for case in cases]
    names = [case.person for case in cases]
    if len(set(names)) == 1 < len(names) and len(set(folders)) == len(folders):
        return [replace(case, person=folder) for case, folder in zip(cases, folders, strict=True)]
    return cases


def _case(entry: Mapping[str, Any], names: list[str], root: Path) -> Case:
    images = _images(entry.get("image"), names, root)
    attributes: dict[str, Attribute] = {}
    person = ""
    for key, value in entry.items():
        if key in ("image", "label"):
            continue
        if key in _PERSON:
            person = str(value)
        elif isinstance(value, str) and is_image(Path(value)):
            images[modality_name(key)] = ImageFile(root / value)
        elif (found := attribute(value)) is not None and not isinstance(value, list | dict):
            attributes[key] = found
    if not images:
        raise KeyError("image")
    label = _one(entry.get("label"))
    first = next(iter(images.values())).path
    return Case(person or stem(first), images, ImageFile(root / label) if label else None, attributes)


def _images(value: Any, names: list[str], root: Path) -> dict[str, ImageFile]:
    if value is None:
        return {}
    if isinstance(value, list) and len(value) > 1:
        if len(value) != len(names) or not all(isinstance(entry, str) for entry in value):
            raise TypeError(f"{len(value)} images need as many names in 'modality', got {names}")
        return {name: ImageFile(root / entry) for name, entry in zip(names, value, strict=True)}
    file = root / (_one(value) or "")
    if len(names) > 1:
        return {name: ImageFile(file, frame=i) for i, name in enumerate(names)}
    return {"image": ImageFile(file)}


def _one(entry: Any) -> str | None:
    """A path: text, or a list of one."""
    if isinstance(entry, list) and len(entry) == 1:
        entry = entry[0]
    if entry is not None and not isinstance(entry, str):
        raise TypeError(f"one path is needed, got {entry!r:.60}")
    return entry
