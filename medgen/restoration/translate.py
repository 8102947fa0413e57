"""An image of one contrast from images of others of the same person, any of them missing."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from monai.data import MetaTensor
from torch import Tensor

from medgen.checks import MedgenError, check_choice, check_count
from medgen.geometry import NORMAL_AXIS
from medgen.intensity import IntensityWindow
from medgen.models.controls import check_conditions
from medgen.restoration.harmonize import check_is_scan
from medgen.restoration.sources import (
    Progress,
    Sources,
    check_draws,
    expected,
    loaded,
    prepared,
    produced,
    to_scan,
)

if TYPE_CHECKING:
    from medgen.models.base import Model
    from medgen.models.specification import ModelSpec

__all__ = ["MODES", "TranslateReport", "translate", "translate_file"]

MODES = ("mean", "sample")


@dataclass(frozen=True)
class TranslateReport:
    """What was done.

    Attributes:
        sources: modalities that were given.
        missing: modalities that the model knows and that were not.
        output: the written file or folder.
        record: the JSON file beside it.
        findings: what reading DICOM series found out.
    """

    sources: tuple[str, ...]
    missing: tuple[str, ...]
    output: Path
    record: Path
    findings: tuple[str, ...] = ()


def translate(
    images: Mapping[str, MetaTensor],
    model: str | os.PathLike[str] | Model[Any],
    mode: str = "mean",
    samples: int = 1,
    seed: int = 0,
    *,
    conditions: Mapping[str, Any] | None = None,
    reference: MetaTensor | None = None,
    plane: str = "axial",
    mirror: bool = False,
    device: str = "auto",
    callback: Callable[[int, int], None] | None = None,
    **options: Any,
) -> dict[str, MetaTensor]:
    """Make an image of a model's modality from images of others.

    Args:
        images: by source modality of the model (``{"T1w": ..., "T2w": ...}``), each ``(1, X, Y, Z)`` in any unit, of
            one person and aligned; grids may differ. Any subset of the model's source modalities: it was trained to do
            without the others as ``source_dropout`` says.
        model: name or folder of a model of task ``translate``, or a loaded one.
        mode: ``mean``: the expected image, the smallest error; of a diffusion model its regression at the highest noise
            level, of a GAN the one image it makes. ``sample``: a plausible image, textured.
        samples: with ``sample``, the mean of so many, and their deviation.
        seed: of the first sample.
        conditions: value by control of the model.
        reference: a scan of the wanted modality by the wanted scanner, of anybody, ``(1, X, Y, Z)``: its intensity
            window gives the unit of the result. By default what the model says of training (``spec.intensity``).
        plane: of a 2D model's slices: ``axial``, ``coronal``, ``sagittal``, or ``all``: the mean of the three, for
            models trained on slices of any plane.
        mirror: average with what is made of the person's mirror image, mirrored back: twice the time, a smaller error
            with models trained with ``augmentation.flip``.
        device: where a model given by name runs.
        callback: called with (slices done, slices) of all samples together.
        options: settings of the model's family: ``sampler``, ``num_inference_steps``, ``guidance_scale``.

    Returns:
        ``{"image": (C, X, Y, Z)}`` float32 on the grid of the first image in the model's order; with several samples
        ``"uncertainty"`` too, their standard deviation in the same unit. ``meta["synthetic"]`` is True,
        ``meta["provenance"]`` says how it was made.

    Raises:
        MedgenError: no image or an unknown modality, images that do not overlap, a model of another task, several
            samples of a mean.
    """
    _check_arguments(mode, samples)
    chosen = loaded(model, "translate", device)
    check_draws(chosen, "translate", samples)
    asked = check_conditions(chosen.spec.controls, conditions, "translate")
    settings = chosen.settings(**options)
    window = IntensityWindow(0.0, chosen.spec.intensity.scale)
    if reference is not None:
        window = IntensityWindow.of(reference.as_tensor().cpu())
    told = chosen.control_tensors(asked)
    passes = [(p, m) for p in _planes(chosen.spec, plane) for m in ((False, True) if mirror else (False,))]
    parts = []
    for number, (own, flipped) in enumerate(passes):
        sources = prepared(chosen.spec, images, own)
        progress = _shifted(callback, number, len(passes))
        drawn = _drawn(chosen, _mirrored(sources, flipped), mode, samples, seed, settings, told, progress)
        drawn = drawn.flip(2) if flipped else drawn
        parts.append(torch.stack([to_scan(sources, image, window) for image in drawn]))
    total = torch.stack(parts).mean(0)
    first = images[next(name for name in chosen.spec.source_modalities if name in images)]
    meta = {
        "synthetic": True,
        "provenance": chosen.provenance(seed, settings)
        | {"mode": mode, "samples": samples, "sources": sorted(images), "modality": chosen.spec.modality}
        | ({"plane": plane} if chosen.spec.spatial_dims == 2 else {})
        | ({"mirror": True} if mirror else {})
        | ({"conditions": asked} if asked else {}),
    }
    made = {"image": MetaTensor(total.mean(0), affine=first.affine, meta=dict(meta))}
    if samples > 1:
        made["uncertainty"] = MetaTensor(total.std(0), affine=first.affine, meta=dict(meta))
    return made


def translate_file(
    images: Mapping[str, str | os.PathLike[str]],
    output: str | os.PathLike[str],
    *,
    model: str | os.PathLike[str] | Model[Any],
    mode: str = "mean",
    samples: int = 1,
    seed: int = 0,
    conditions: Mapping[str, Any] | None = None,
    reference: str | os.PathLike[str] | None = None,
    plane: str = "axial",
    mirror: bool = False,
    uncertainty: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    device: str = "auto",
    callback: Callable[[int, int], None] | None = None,
    **options: Any,
) -> TranslateReport:
    """:func:`translate` in files: NIfTI files or folders of DICOM series in, NIfTI or a derived series out.

    Args:
        images: file or folder by source modality.
        output: NIfTI file to write, or, where the first image is a DICOM series, a folder.
        model: see :func:`translate`, as are ``mode``, ``samples``, ``seed``, ``conditions``, ``plane``, ``mirror``,
            ``device``, ``callback`` and ``options``.
        mode: see :func:`translate`.
        samples: see :func:`translate`.
        seed: see :func:`translate`.
        conditions: see :func:`translate`.
        reference: file or folder of a scan whose unit the result takes.
        plane: see :func:`translate`.
        mirror: see :func:`translate`.
        uncertainty: NIfTI file for the deviation of the samples.
        overwrite: replace existing outputs.
        device: see :func:`translate`.
        callback: see :func:`translate`.
        options: see :func:`translate`.

    Returns:
        What was done.

    Raises:
        MedgenError: see :func:`translate`; a file that is missing or unreadable, or an output that exists or cannot be
            written; a model of several image channels.
    """
    from medgen.restoration.scans import read_scan
    from medgen.restoration.written import finding_texts, planned, write_results

    _check_arguments(mode, samples)
    if uncertainty is not None and samples < 2:
        raise MedgenError("translate: uncertainty needs samples of 2 or more. Add --mode sample --samples 8.")
    chosen = loaded(model, "translate", device)
    check_draws(chosen, "translate", samples)
    if chosen.spec.image_channels != 1:
        raise MedgenError(
            f"translate: model '{chosen.spec.name}' makes {chosen.spec.image_channels} channels, a file holds one. "
            "Use medgen.restoration.translate.translate in Python."
        )
    order = [name for name in chosen.spec.source_modalities if name in images]
    order += [name for name in images if name not in order]  # unknown ones are refused with the others
    inputs = [images[name] for name in order] + ([] if reference is None else [reference])
    files = planned(output, inputs, overwrite, {"uncertainty": uncertainty})
    scans = {name: read_scan(images[name], pictures=True) for name in order}
    wanted = None if reference is None else read_scan(reference, pictures=True)
    if wanted is not None:
        check_is_scan("translate", wanted.volume, str(reference))
    volumes = {name: scan.volume for name, scan in scans.items()}
    made = translate(
        volumes, chosen, mode, samples, seed, conditions=conditions, plane=plane, mirror=mirror, callback=callback,
        reference=None if wanted is None else wanted.volume, **options,
    )  # fmt: skip
    hashes = {name: scan.sha256 for name, scan in scans.items()}
    provenance = made["image"].meta["provenance"] | {
        "inputs": {"source_sha256": hashes} | ({} if wanted is None else {"reference_sha256": wanted.sha256})
    }
    more = {"uncertainty": made["uncertainty"]} if "uncertainty" in made else {}
    first = scans[order[0]]
    write_results(files, first, made["image"], provenance, "translated", more=more, overwrite=overwrite)
    missing = tuple(name for name in chosen.spec.source_modalities if name not in images)
    return TranslateReport(tuple(order), missing, files.target, files.record, finding_texts(list(scans.values())))


def _check_arguments(mode: str, samples: int) -> None:
    check_choice("translate", "mode", mode, MODES)
    check_count("translate", "samples", samples)
    if mode == "mean" and samples != 1:
        raise MedgenError(
            f"translate: samples must be 1 with mode 'mean', which draws none. Got {samples}. Use mode 'sample' "
            "(--mode sample) for the mean of several samples."
        )


def _planes(spec: ModelSpec, plane: str) -> tuple[str, ...]:
    """The planes that a 2D model works in, one after the other."""
    check_choice("translate", "plane", plane, (*NORMAL_AXIS, "all"))
    if spec.spatial_dims == 3:
        return ("axial",)
    return tuple(NORMAL_AXIS) if plane == "all" else (plane,)


def _mirrored(sources: Sources, flipped: bool) -> Sources:
    """The same person, left and right exchanged where asked."""
    return replace(sources, source=sources.source.flip(1)) if flipped else sources


def _shifted(callback: Progress | None, number: int, passes: int) -> Progress | None:
    """Progress of one of several passes as that of all."""
    if callback is None:
        return None
    return lambda done, total: callback(number * total + done, passes * total)


def _drawn(
    model: Model[Any],
    sources: Sources,
    mode: str,
    samples: int,
    seed: int,
    settings: Mapping[str, Any],
    conditions: Mapping[str, Tensor],
    callback: Callable[[int, int], None] | None,
) -> Tensor:
    """Images ``(samples, C, X, Y, Z)`` in the model's 0..1."""
    if mode == "mean" and model.spec.family == "diffusion":
        if conditions:
            raise MedgenError("translate: mode 'mean' takes no conditions. Use mode 'sample' (--mode sample).")
        return expected(model, sources, seed, callback)[None]
    made = []
    for i in range(samples):
        report = None if callback is None else (lambda done, total, i=i: callback(i * total + done, samples * total))
        image, _ = produced(model, sources, seed + i, settings, report, conditions)
        if image is None:
            raise MedgenError(f"translate: model '{model.spec.name}' makes no image.")
        made.append(image.clamp(min=0))
    return torch.stack(made)
