"""Plausible label maps of an image by a generative model: several samples, what they agree on, and where not."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from monai.data import MetaTensor
from torch import Tensor

from medgen.checks import MedgenError, check_count
from medgen.restoration.sources import check_draws, loaded, prepared, produced

if TYPE_CHECKING:
    from medgen.models.base import Model

__all__ = ["SegmentReport", "Segmentation", "agreement", "segment", "segment_file"]


@dataclass(frozen=True)
class Segmentation:
    """Label maps of one person.

    Attributes:
        label: the id that most samples have, ``(1, X, Y, Z)`` int16; the smaller one where two have as many.
        samples: each sample, ``(1, X, Y, Z)`` int16.
        disagreement: share of the samples that have another id than ``label``, ``(1, X, Y, Z)`` float32.
        dice: of each label, the mean over all pairs of samples; 1 where neither of a pair has it. Empty for one sample.
    """

    label: MetaTensor
    samples: tuple[MetaTensor, ...]
    disagreement: MetaTensor
    dice: Mapping[str, float]


@dataclass(frozen=True)
class SegmentReport:
    """What was done.

    Attributes:
        volumes_ml: of each label, mean over the samples.
        deviations_ml: of each label, standard deviation over the samples.
        dice: see :class:`Segmentation`.
        output: the written file.
        record: the JSON file beside it.
        findings: what reading DICOM series found out.
    """

    volumes_ml: Mapping[str, float]
    deviations_ml: Mapping[str, float]
    dice: Mapping[str, float]
    output: Path
    record: Path
    findings: tuple[str, ...] = ()


def segment(
    images: Mapping[str, MetaTensor],
    model: str | os.PathLike[str] | Model[Any],
    samples: int = 8,
    seed: int = 0,
    *,
    plane: str = "axial",
    device: str = "auto",
    callback: Callable[[int, int], None] | None = None,
    **options: Any,
) -> Segmentation:
    """Draw label maps of a person from ``p(label | images)``.

    Args:
        images: by source modality of the model, each ``(1, X, Y, Z)`` in any unit, aligned; any subset of the model's.
        model: name or folder of a model of task ``segment``, or a loaded one.
        samples: how many label maps to draw.
        seed: of the first one.
        plane: of a 2D model's slices.
        device: where a model given by name runs.
        callback: called with (slices done, slices) of all samples together.
        options: settings of the model's family.

    Returns:
        Label maps on the grid of the first image in the model's order.

    Raises:
        MedgenError: see :func:`medgen.restoration.translate.translate`.

    References:
        Rahman et al. 2023 (ambiguous segmentation by diffusion), arXiv:2304.04745; Wolleb et al. 2022,
        arXiv:2112.03145, section 3.
    """
    check_count("segment", "samples", samples)
    chosen = loaded(model, "segment", device)
    check_draws(chosen, "segment", samples)
    sources = prepared(chosen.spec, images, plane)
    settings = chosen.settings(**options)
    first = images[next(name for name in chosen.spec.source_modalities if name in images)]
    provenance = chosen.provenance(seed, settings) | {"samples": samples, "sources": sorted(images)}
    meta = {"synthetic": True, "provenance": provenance}
    body = torch.from_numpy(sources.body)[None]
    drawn = []
    for i in range(samples):
        report = None if callback is None else (lambda done, total, i=i: callback(i * total + done, samples * total))
        _, label = produced(chosen, sources, seed + i, settings, report)
        if label is None:
            raise MedgenError(f"segment: model '{chosen.spec.name}' makes no label map.")
        moved = sources.grid.from_model(label.to(torch.int16), "label").as_tensor()
        drawn.append(torch.where(body, moved, 0).to(torch.int16))
    label, disagreement = agreement(drawn)
    names = dict(chosen.spec.label_channels)

    def placed(values: Tensor) -> MetaTensor:
        return MetaTensor(values, affine=first.affine, meta=dict(meta))

    return Segmentation(
        placed(label), tuple(placed(x) for x in drawn), placed(disagreement), _pairwise_dice(drawn, names)
    )


def segment_file(
    images: Mapping[str, str | os.PathLike[str]],
    output: str | os.PathLike[str],
    *,
    model: str | os.PathLike[str] | Model[Any],
    samples: int = 8,
    seed: int = 0,
    plane: str = "axial",
    disagreement: str | os.PathLike[str] | None = None,
    every_sample: bool = False,
    overwrite: bool = False,
    device: str = "auto",
    callback: Callable[[int, int], None] | None = None,
    **options: Any,
) -> SegmentReport:
    """:func:`segment` in files; beside ``OUT.nii.gz`` stands ``OUT.json`` with volumes and Dice.

    Args:
        images: file or folder by source modality.
        output: NIfTI file for what most samples agree on.
        model: see :func:`segment`, as are ``samples``, ``seed``, ``plane``, ``device``, ``callback`` and ``options``.
        samples: see :func:`segment`.
        seed: see :func:`segment`.
        plane: see :func:`segment`.
        disagreement: NIfTI file for the share of samples that differ.
        every_sample: write each sample too: ``OUT_sample-1.nii.gz``, ...
        overwrite: replace existing outputs.
        device: see :func:`segment`.
        callback: see :func:`segment`.
        options: see :func:`segment`.

    Returns:
        What was done.

    Raises:
        MedgenError: see :func:`segment`; a file that is missing or unreadable, or an output that exists or cannot be
            written.
    """
    from medgen.restoration.scans import read_scan
    from medgen.restoration.written import NIFTI, finding_texts, planned, write_results

    check_count("segment", "samples", samples)
    chosen = loaded(model, "segment", device)
    order = [name for name in chosen.spec.source_modalities if name in images]
    order += [name for name in images if name not in order]
    target = Path(output)
    ending = next((end for end in NIFTI if target.name.lower().endswith(end)), "")
    stem = target.name[: len(target.name) - len(ending)]
    more: dict[str, str | os.PathLike[str] | None] = {"disagreement": disagreement}
    if every_sample:
        more |= {f"sample {i + 1}": target.with_name(f"{stem}_sample-{i + 1}{ending}") for i in range(samples)}
    files = planned(output, [images[name] for name in order], overwrite, more, series=False)
    scans = {name: read_scan(images[name], pictures=True) for name in order}
    volumes = {name: scan.volume for name, scan in scans.items()}
    found = segment(volumes, chosen, samples, seed, plane=plane, callback=callback, **options)
    sizes = _sizes(found.samples, dict(chosen.spec.label_channels))
    mean = {name: float(values.mean()) for name, values in sizes.items()}
    spread = {name: float(values.std()) if samples > 1 else 0.0 for name, values in sizes.items()}
    provenance = found.label.meta["provenance"] | {
        "inputs": {"source_sha256": {name: scan.sha256 for name, scan in scans.items()}},
        "volume_ml": {name: {"mean": mean[name], "deviation": spread[name]} for name in mean},
        "dice_between_samples": dict(found.dice),
    }
    also: dict[str, Tensor] = {"disagreement": found.disagreement}
    also |= {f"sample {i + 1}": sample for i, sample in enumerate(found.samples)}
    write_results(files, scans[order[0]], found.label, provenance, "segmented", more=also, overwrite=overwrite)
    texts = finding_texts(list(scans.values()))
    return SegmentReport(mean, spread, found.dice, files.target, files.record, texts)


def agreement(labels: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """What most label maps say, and the share of them that say something else.

    Args:
        labels: each of one shape, whole numbers.

    Returns:
        The most frequent id at each voxel, the smaller one of equals; and the share of others, float32.

    Example:
        >>> label, disagreement = agreement([torch.tensor([1, 2]), torch.tensor([1, 0])])
        >>> label.tolist(), disagreement.tolist()
        ([1, 0], [0.0, 0.5])
    """
    stack = torch.stack([label.long() for label in labels])
    best, winner = torch.zeros(stack.shape[1:]), torch.zeros_like(stack[0])
    for i in stack.unique().tolist():
        share = (stack == i).float().mean(0)
        winner = torch.where(share > best, i, winner)
        best = torch.maximum(share, best)
    return winner.to(labels[0].dtype), 1 - best


def _channel(label: Tensor, ids: Sequence[int]) -> Tensor:
    return torch.isin(label, torch.tensor(list(ids), dtype=label.dtype))


def _pairwise_dice(labels: Sequence[Tensor], names: Mapping[str, Sequence[int]]) -> dict[str, float]:
    """Mean Dice of each label over all pairs."""
    if len(labels) < 2:
        return {}
    found = {}
    for name, ids in names.items():
        masks = [_channel(label, ids) for label in labels]
        pairs = [(int((a & b).sum()), int(a.sum() + b.sum())) for a, b in combinations(masks, 2)]
        found[name] = sum(2 * both / total if total else 1.0 for both, total in pairs) / len(pairs)
    return found


def _sizes(labels: Sequence[MetaTensor], names: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    """Volume of each label in each map, in ml, ``(K,)``."""
    voxel = float(labels[0].affine[:3, :3].double().det().abs()) / 1000
    plain = [label.as_tensor() for label in labels]
    return {
        name: torch.tensor([float(_channel(x, ids).sum()) * voxel for x in plain], dtype=torch.float64)
        for name, ids in names.items()
    }
