"""Models inside transforms: loaded once per process, never pickled; and the user's label ids in the model's."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from monai.data import MetaTensor

from medgen.anatomy.labels import LABELS
from medgen.checks import MedgenError, nearest
from medgen.models.device import resolve_device

if TYPE_CHECKING:
    from medgen.models.base import Model
    from medgen.models.specification import ModelSpec

__all__ = ["map_label_ids", "process_model", "resolve_label_map"]


def process_model(name: str | os.PathLike[str], device: str, caller: str) -> Model[Any]:
    """The model of a name and device, loaded at its first use in this process.

    Args:
        name: bundled name or folder.
        device: see :func:`~medgen.models.device.resolve_device`; ``auto`` is the CPU inside a forked worker.
        caller: the transform's name, for errors.

    Raises:
        MedgenError: no such model or device, or CUDA in a forked worker.
    """
    return _load(os.fspath(name), str(resolve_device(device, caller)))


@lru_cache(maxsize=4)
def _load(name: str, device: str) -> Model[Any]:
    from medgen.models.bundled import load_model

    return load_model(name, device=device)


def resolve_label_map(label_map: Mapping[int, int | str], spec: ModelSpec, caller: str) -> dict[int, int]:
    """The user's label ids in the model's ids.

    Args:
        label_map: user's id -> the model's id, the name of one of its label channels (``white_matter``), a name of
            :data:`medgen.anatomy.labels.LABELS` (``Left-Thalamus``) or ``background``.
        spec: of the model.
        caller: for errors.

    Returns:
        User's id -> model's id; 0 is background unless it is mapped.

    Raises:
        MedgenError: a target that the model does not know, with the nearest one.
    """
    known = {_plain(name): ids[0] for name, ids in spec.label_channels}
    valid = {i for _, ids in spec.label_channels for i in ids} | {0}
    known |= {_plain(info.name): i for i, info in LABELS.items() if i in valid}
    known["background"] = 0
    result = {0: 0}
    for source, target in label_map.items():
        found = known.get(_plain(target)) if isinstance(target, str) else (int(target) if target in valid else None)
        if found is None:
            names = [name for name, _ in spec.label_channels]
            hint = nearest(target, known) or f" Its names: background, {', '.join(names)}."
            raise MedgenError(f"{caller}: label_map[{source}] = {target!r} is unknown to model '{spec.name}'.{hint}")
        result[int(source)] = found
    return result


def map_label_ids(
    label: MetaTensor, label_map: Mapping[int, int | str] | None, spec: ModelSpec, caller: str
) -> MetaTensor:
    """A label map in the ids of a model.

    Args:
        label: shape ``(1, *spatial)``, whole ids of the user.
        label_map: see :func:`resolve_label_map`; None if the ids are the model's already.
        spec: of the model.
        caller: for errors.

    Returns:
        int32, the grid of ``label``.

    Raises:
        MedgenError: an id that is not mapped, by its value (and name, where medgen has one), or fractions.
    """
    values = label.as_tensor()
    if values.is_floating_point() and not torch.equal(values, values.round()):
        raise MedgenError(f"{caller}: label must hold whole ids. Got fractions. Resample labels with mode='nearest'.")
    own = {i: i for _, ids in spec.label_channels for i in ids} | {0: 0}
    table = own if label_map is None else resolve_label_map(label_map, spec, caller)
    present, index = np.unique(values.cpu().numpy().astype(np.int64), return_inverse=True)
    unknown = [int(i) for i in present if int(i) not in table]
    if unknown:
        raise _unmapped(unknown, label_map, spec, caller)
    mapped = np.array([table[int(i)] for i in present], dtype=np.int32)[index.reshape(values.shape)]
    return MetaTensor(torch.from_numpy(mapped), affine=label.affine.clone())


def _unmapped(
    unknown: list[int], label_map: Mapping[int, int | str] | None, spec: ModelSpec, caller: str
) -> MedgenError:
    shown = ", ".join(f"{i} ({LABELS[i].name})" if i in LABELS and label_map is None else str(i) for i in unknown[:8])
    more = f" and {len(unknown) - 8} more" if len(unknown) > 8 else ""
    names = ", ".join(["background", *(name for name, _ in spec.label_channels)])
    what = f"unknown to model '{spec.name}'" if label_map is None else "not in label_map"
    return MedgenError(
        f"{caller}: label ids {shown}{more} are {what}. Add label_map={{{unknown[0]}: name}} with a name of {names}."
    )


def _plain(name: str) -> str:
    return name.lower().replace("_", "-").replace(" ", "-")
