"""Edits of a real scan with a diffusion model: noised and sampled again, or inverted and sampled otherwise."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from monai.data import MetaTensor
from numpy.typing import NDArray
from torch import Tensor

from medgen.checks import MedgenError, check_choice, check_count
from medgen.diffusion.editing import Region, edit_sigmas, invert_ddim, reconstruct_ddim, sdedit
from medgen.diffusion.randomness import derive_seed, generators
from medgen.geometry import ModelGrid, same_grid
from medgen.intensity import IntensityWindow
from medgen.models.controls import check_conditions
from medgen.networks.threads import at_most_threads
from medgen.restoration.extent import bounds_mm, warn_if_far

if TYPE_CHECKING:
    from medgen.models.codec import Given
    from medgen.models.diffusion_model import DiffusionModel
    from medgen.models.specification import Grid

__all__ = ["METHODS", "EditReport", "edit", "edit_file", "editor"]

METHODS = ("sdedit", "inversion")
TASKS = ("image", "joint", "label_to_image")
INVERSION_ITERATIONS = 6
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class EditReport:
    """What was done.

    Attributes:
        voxels: how many may have changed.
        fraction: their share of the volume.
        change: mean absolute change of these, in percent of the scan's intensity window.
        clipped: voxels whose new value did not fit the file's stored type.
        output: the written file or folder.
        record: the JSON file beside it.
        findings: what reading a DICOM series found out.
    """

    voxels: int
    fraction: float
    change: float
    clipped: int
    output: Path
    record: Path
    findings: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Subject:
    """A scan as the model sees it.

    Attributes:
        grid: the model's, over the scan's, with the scan's intensity window.
        image: ``(1, C, *size)`` in 0..1.
        label: ids ``(1, 1, *size)``, or None.
        given: what the task gives.
        without: the same without the label, for guidance.
        controls: what is asked for, batched.
    """

    grid: ModelGrid
    image: Tensor
    label: Tensor | None
    given: Given
    without: Given | None
    controls: Mapping[str, Tensor]


def edit(
    volume: MetaTensor,
    model: str | os.PathLike[str] | DiffusionModel,
    strength: float = 0.5,
    seed: int = 0,
    *,
    method: str = "sdedit",
    conditions: Mapping[str, Any] | None = None,
    source_conditions: Mapping[str, Any] | None = None,
    inpaint_mask: MetaTensor | None = None,
    label: MetaTensor | None = None,
    samples: int = 1,
    device: str = "auto",
    callback: Progress | None = None,
    **options: Any,
) -> MetaTensor:
    """Change a scan as a model sees fit, or as it is asked to.

    What the model changes on its grid is added to the scan on its own grid: detail finer than the model's stays.

    Args:
        volume: ``(1, X, Y, Z)`` on any grid and in any unit.
        model: name or folder of a 3D diffusion model of task ``image``, ``joint`` or ``label_to_image``, or a loaded
            one.
        strength: share of the sampling steps that are done again, above 0, one step at least: 1 keeps nothing but what
            the conditioning says.
        seed: of the noise.
        method: ``sdedit``: the scan is noised and sampled from there; ``inversion``: the noise that leads to the scan
            is sought under ``source_conditions`` and sampled under ``conditions``, so that only what they differ in
            changes (strength decides how far up).
        conditions: value by control, what is asked for; what is left out is "not given".
        source_conditions: with ``inversion``, what the scan is.
        inpaint_mask: ``(1, X, Y, Z)`` on the scan's grid, 1 = change: elsewhere the scan keeps its bits.
        label: ids ``(1, X, Y, Z)`` on the scan's grid, the anatomy that is wanted; task ``label_to_image`` needs it. A
            ``joint`` model without one reads the label off the scan first.
        samples: the mean of so many edits.
        device: where a model given by name runs.
        callback: called with (steps done, steps) of all samples together.
        options: ``sampler`` (of ``sdedit``), ``num_inference_steps``, ``guidance_scale`` (of ``inversion`` 1 unless
            stated: with more, equal conditions would not give the scan back).

    Returns:
        ``(1, X, Y, Z)`` float32, the scan's grid and unit; ``meta["synthetic"]`` is True.

    Raises:
        MedgenError: a volume, mask or label that does not suit, a model that cannot edit, a bad argument.

    Warns:
        UserWarning: the scan is of quite another size than what the model was trained on.
    """
    check_choice("edit", "method", method, METHODS)
    check_count("edit", "samples", samples)
    _check_strength(strength)
    chosen = editor(model, device)
    if source_conditions and method != "inversion":
        raise MedgenError("edit: source_conditions are for method 'inversion'. Leave them out, or set the method.")
    _check_volumes(volume, inpaint_mask, label)
    settings = chosen.settings(**options)
    if method == "inversion":
        if samples > 1 or options.get("sampler") is not None:
            raise MedgenError("edit: method 'inversion' draws nothing and has its own sampler. Leave both out.")
        settings |= {"sampler": "ddim"}
        if options.get("guidance_scale") is None:  # guidance would change more than what is asked for
            settings["guidance_scale"] = 1.0
    asked = told("edit", chosen, conditions)
    was = told("edit", chosen, source_conditions) if method == "inversion" else {}
    hole = torch.ones(volume.shape, dtype=torch.bool) if inpaint_mask is None else inpaint_mask.as_tensor().cpu() > 0.5
    subject = _subject(chosen, volume.cpu(), hole, label, asked)
    region = None if inpaint_mask is None else _coarse(subject.grid, hole, volume)
    sigmas = edit_sigmas(chosen.spec.sampling.sigmas(settings["num_inference_steps"]), strength)
    warn_if_far(chosen.spec, "the scan" if inpaint_mask is None else "the region", subject.grid.shape)
    reads_label = chosen.spec.task == "joint" and label is None
    step = _Steps(callback, samples * _steps(sigmas, method) + reads_label * settings["num_inference_steps"])
    subject = _with_label(chosen, subject, settings, seed, step) if reads_label else subject
    total = torch.zeros_like(subject.image[0])
    for i in range(samples):
        if method == "sdedit":
            made = _noised(chosen, subject, sigmas, settings, region, derive_seed(seed + i, "edit"), step)
        else:
            made = _inverted(chosen, subject, sigmas, settings, region, was, step)
        total += made[0]
    added = subject.grid.difference_from_model(total / samples - _as_made(chosen, subject, region)[0]).as_tensor()
    taken = hole & subject.grid.covered()[None]
    scan = volume.as_tensor().cpu().float()
    result = torch.where(taken, scan + added, scan)
    provenance = chosen.provenance(seed, settings) | {"edited": method, "strength": strength, "samples": samples}
    provenance |= {"conditions": asked} if asked else {}
    provenance |= {"source_conditions": was} if was else {}
    meta = {key: value for key, value in volume.meta.items() if key != "affine"}
    meta |= {"synthetic": True, "provenance": provenance}
    return MetaTensor(result.to(volume.device), affine=volume.affine, meta=meta)


def edit_file(
    image: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    model: str | os.PathLike[str] | DiffusionModel,
    strength: float = 0.5,
    seed: int = 0,
    inpaint_mask: str | os.PathLike[str] | None = None,
    label: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    device: str = "auto",
    **options: Any,
) -> EditReport:
    """:func:`edit` in files; outside an ``inpaint_mask`` all voxels keep their stored value bit for bit.

    Args:
        image: NIfTI file, or a folder with one DICOM series.
        output: NIfTI file to write, or, for a DICOM series, a folder.
        model: see :func:`edit`, as are ``strength``, ``seed``, ``device`` and ``options``.
        strength: see :func:`edit`.
        seed: see :func:`edit`.
        inpaint_mask: NIfTI file on the same grid, or a DICOM segmentation.
        label: NIfTI file on the same grid.
        overwrite: replace existing outputs.
        device: see :func:`edit`.
        options: the other arguments of :func:`edit`.

    Returns:
        What was done.

    Raises:
        MedgenError: see :func:`edit`; a file that is missing or unreadable, or an output that exists or cannot be
            written.
    """
    from medgen.io.nifti import read_nifti
    from medgen.restoration.scans import read_hole, read_scan
    from medgen.restoration.written import finding_texts, planned, write_results

    inputs = [path for path in (image, inpaint_mask, label) if path is not None]
    files = planned(output, inputs, overwrite)
    scan = read_scan(image)
    hole, hole_sha256 = (None, None) if inpaint_mask is None else read_hole(inpaint_mask, scan)
    ids = None if label is None else read_nifti(label, role="label")
    result = edit(
        scan.volume, model, strength, seed, inpaint_mask=hole, label=ids, device=device, **options
    )  # fmt: skip
    changed = torch.ones_like(result.as_tensor(), dtype=torch.uint8) if hole is None else hole.as_tensor()
    count = int((changed > 0).sum())
    window = IntensityWindow.of(scan.volume.as_tensor())
    difference = (result.as_tensor() - scan.volume.as_tensor())[changed > 0].abs().mean() / (window.high - window.low)
    fraction = count / changed.numel()
    provenance = result.meta["provenance"] | {
        "regenerated": {"fraction": fraction, "voxels": count},
        "inputs": {"image_sha256": scan.sha256} | ({"inpaint_mask_sha256": hole_sha256} if hole_sha256 else {}),
    }
    clipped = write_results(files, scan, result, provenance, "edited", changed=changed, overwrite=overwrite)
    change = 100 * float(difference)
    return EditReport(count, fraction, change, clipped, files.target, files.record, finding_texts([scan]))


def editor(model: str | os.PathLike[str] | DiffusionModel, device: str = "auto") -> DiffusionModel:
    """A model that can edit, by name or folder, or as it is.

    Raises:
        MedgenError: it is of another family or task, of slices, or of several image channels.
    """
    from medgen.models.bundled import load_model
    from medgen.models.diffusion_model import DiffusionModel

    chosen = model if isinstance(model, DiffusionModel) else load_model(model, device)
    if not isinstance(chosen, DiffusionModel) or chosen.spec.task not in TASKS:
        raise MedgenError(
            f"edit: model '{chosen.spec.name}' is of family '{chosen.spec.family}' and task '{chosen.spec.task}'. Give "
            f"a diffusion model of task {', '.join(TASKS)}."
        )
    if chosen.spec.spatial_dims != 3 or chosen.spec.image_channels != 1:
        raise MedgenError(f"edit: model '{chosen.spec.name}' must be 3D with one image channel. Give another one.")
    return chosen


def told(who: str, model: DiffusionModel, conditions: Mapping[str, Any] | None) -> dict[str, Any]:
    """The checked conditions; of a model that never saw one left out, all of them.

    Raises:
        MedgenError: an unknown condition, a value that it does not have, or one that is missing.
    """
    asked = check_conditions(model.spec.controls, conditions, who)
    missing = [control.name for control in model.spec.controls if control.name not in asked]
    if missing and not model.spec.control_dropout:
        raise MedgenError(
            f"{who}: model '{model.spec.name}' was trained without control dropout and must be told everything. Got "
            f"no {', '.join(missing)}. Give conditions for all."
        )
    return asked


def _check_strength(strength: float) -> None:
    if isinstance(strength, bool) or not 0 < strength <= 1:
        raise MedgenError(
            f"edit: strength must lie above 0, which changes nothing, and up to 1. Got {strength!r}. Give 0.3, say."
        )


class _Steps:
    """Counts the steps of samplers, whatever they pass, and reports how many of all are done."""

    def __init__(self, callback: Progress | None, total: int) -> None:
        self.callback, self.total, self.done = callback, total, 0
        self._report()

    def __call__(self, *_: object) -> None:
        self.done += 1
        self._report()

    def _report(self) -> None:
        if self.callback is not None:
            self.callback(self.done, max(self.done, self.total))


def _steps(sigmas: Tensor, method: str) -> int:
    """Steps of one edit: down, and with ``inversion`` up before; levels above zero only."""
    return len(sigmas) - 1 if method == "sdedit" else 2 * (int((sigmas > 0).sum()) - 1)


def _check_volumes(volume: MetaTensor, inpaint_mask: MetaTensor | None, label: MetaTensor | None) -> None:
    if volume.ndim != 4 or volume.shape[0] != 1:
        raise MedgenError(f"edit: volume must have shape (1, X, Y, Z). Got {tuple(volume.shape)}. Give one 3D volume.")
    if not bool(torch.isfinite(volume.as_tensor()).all()):
        raise MedgenError("edit: volume holds NaN or infinity. Replace them first.")
    for name, other in (("inpaint_mask", inpaint_mask), ("label", label)):
        if other is not None and not same_grid(volume, other):
            raise MedgenError(f"edit: {name} must lie on the image's grid. Resample it to the image first.")
    if inpaint_mask is not None and not bool((inpaint_mask.as_tensor() > 0.5).any()):
        raise MedgenError("edit: inpaint_mask is empty, there is nothing to change. Mark the region with 1.")


def _subject(
    model: DiffusionModel, volume: MetaTensor, hole: Tensor, label: MetaTensor | None, asked: Mapping[str, Any]
) -> _Subject:
    """The scan on the model's grid, with all that the model is told."""
    spec = model.spec
    if label is None and spec.task == "label_to_image":
        raise MedgenError(f"edit: model '{spec.name}' paints a label map. Give label=... (--label FILE).")
    if label is not None and not spec.label_channels:
        raise MedgenError(f"edit: model '{spec.name}' knows no labels. Leave label out.")
    grid = _grid_around(volume, hole[0].numpy(), spec.grid, spec.multiple)
    window = IntensityWindow.of(volume.as_tensor()[grid.covered()[None]])
    grid = grid.with_window(window)
    image = grid.to_model(volume, fill=window.low).as_tensor()[None]
    known = {key: value[None] for key, value in model.control_tensors(asked).items()}
    controls = dict(known)
    if label is not None:
        moved = grid.to_model(MetaTensor(label.as_tensor().cpu().int(), affine=label.affine.cpu()), "label")
        known["label"] = moved.as_tensor()[None]
    given = model.codec.given(known, grid.shape)
    drops = spec.label_dropout and label is not None and spec.told_label
    without = model.codec.given_nothing(grid.shape) if drops else None
    return _Subject(grid, image, known.get("label"), given, without, controls)


def _grid_around(volume: MetaTensor, hole: NDArray[np.bool_], own: Grid, multiple: int) -> ModelGrid:
    """The model's grid over the whole scan, or, where less of it is to be changed, over a box of the model's own size.

    Args:
        volume: the scan.
        hole: ``(X, Y, Z)``, what is to be changed.
        own: of the model.
        multiple: what each axis must be a multiple of.
    """
    affine = np.asarray(volume.affine, dtype=np.float64)
    shape = tuple(volume.shape[1:])
    whole = ModelGrid.around(affine, shape, own.spacing, multiple=multiple)
    low, high = bounds_mm(hole, affine)
    spacing = np.array(own.spacing)
    needed = np.maximum((high - low) / spacing + 2, own.size)  # a voxel on each side for the snap to the scan's edges
    size = np.minimum(np.ceil(needed / multiple).astype(int) * multiple, whole.shape)
    first = whole.affine[:3, 3] - spacing / 2
    half = spacing * size / 2
    center = np.clip((low + high) / 2, first + half, first + spacing * whole.shape - half)
    return ModelGrid.around(affine, shape, own.spacing, size=size.tolist(), center_mm=center.tolist())


def _with_label(
    model: DiffusionModel, subject: _Subject, settings: Mapping[str, Any], seed: int, step: Callable[..., None]
) -> _Subject:
    """A ``joint`` model diffuses the label too: where none is given, one is sampled with the image known."""
    spec = model.spec
    empty = torch.zeros(1, 1, *subject.grid.shape, dtype=torch.int16)
    z0 = model.codec.encode(subject.image, subject.given, empty).to(model.device)
    unknown = torch.zeros(1, spec.voxel_channels, *[1] * 3)
    unknown[:, spec.image_channels :] = 1
    sigmas = spec.sampling.sigmas(settings["num_inference_steps"])
    z = _sampled(model, subject, z0, sigmas, settings, unknown, derive_seed(seed, "label"), step)
    return replace(subject, label=model.codec.decode(z, subject.given)[1].cpu())  # type: ignore[union-attr]


def _coarse(grid: ModelGrid, hole: Tensor, volume: MetaTensor) -> Tensor:
    """``(1, 1, *size)``: the voxels of the model's grid that the region reaches."""
    share = grid.with_window(None).to_model(MetaTensor(hole.float(), affine=volume.affine)).as_tensor()
    return (share > 1e-3).float()[None]


def _voxels(model: DiffusionModel, given: Given) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """From what is diffused to a stack of voxel channels, and back."""
    codec, spec = model.codec, model.spec
    mean, std = (
        torch.tensor(values, device=model.device).reshape(1, -1, *[1] * spec.spatial_dims)
        for values in (spec.channel_mean, spec.channel_std)
    )

    def encode(stack: Tensor) -> Tensor:
        count = spec.image_channels
        image = (stack[:, :count] - given.center.to(stack)) / given.scale.to(stack)
        voxels = torch.cat([image, stack[:, count:]], dim=1)
        raw = codec.pack(voxels) if codec.latent is None else codec.latent.encode(voxels)
        return (raw - mean) / std

    return functools.partial(codec.decode_stack, given=given), encode


def _sampled(
    model: DiffusionModel,
    subject: _Subject,
    z0: Tensor,
    sigmas: Tensor,
    settings: Mapping[str, Any],
    region: Tensor | None,
    stream_seed: int,
    step: Callable[..., None],
) -> Tensor:
    """SDEdit of ``z0``, inside a region of voxels where there is one."""
    denoise: Any = model.bound(subject.given, settings, without=subject.without, controls=subject.controls)
    if region is not None:
        denoise = Region(denoise, z0, region, *_voxels(model, subject.given))
    default = model.spec.sampling
    options = default.sampler_options if settings["sampler"] == default.sampler else {}
    streams = generators([stream_seed])
    with torch.no_grad(), at_most_threads(2, model.device):
        return sdedit(
            denoise, z0, sigmas, generators=streams, sampler=settings["sampler"], callback=step, **options
        ).float()


def _noised(
    model: DiffusionModel,
    subject: _Subject,
    sigmas: Tensor,
    settings: Mapping[str, Any],
    region: Tensor | None,
    stream_seed: int,
    step: Callable[..., None],
) -> Tensor:
    """Image ``(1, C, *size)`` after SDEdit."""
    z0 = model.codec.encode(subject.image, subject.given, subject.label).to(model.device)
    z = _sampled(model, subject, z0, sigmas, settings, region, stream_seed, step)
    return _image(model, z, subject)


def _as_made(model: DiffusionModel, subject: _Subject, region: Tensor | None) -> Tensor:
    """The image ``(1, C, *size)`` as the model gives it back where nothing is changed.

    Of a latent model that is without the detail that its autoencoder does not keep, which a region costs twice: each
    answer goes to voxels and back.
    """
    if model.codec.latent is None:
        return subject.image
    with torch.no_grad(), at_most_threads(2, model.device):
        z = model.codec.encode(subject.image, subject.given, subject.label).to(model.device)
        if region is not None:
            to_voxels, from_voxels = _voxels(model, subject.given)
            z = from_voxels(to_voxels(z))
        return _image(model, z, subject)


def _inverted(
    model: DiffusionModel,
    subject: _Subject,
    sigmas: Tensor,
    settings: Mapping[str, Any],
    region: Tensor | None,
    source_conditions: Mapping[str, Any],
    step: Callable[..., None],
) -> Tensor:
    """Image ``(1, C, *size)`` after inversion under one conditioning and sampling under another."""
    z0 = model.codec.encode(subject.image, subject.given, subject.label).to(model.device)
    was = {key: value[None] for key, value in model.control_tensors(source_conditions).items()}
    plain = {**settings, "guidance_scale": 1.0}  # guidance does not invert stably
    source = model.bound(subject.given, plain, controls=was)
    target: Any = model.bound(subject.given, settings, without=subject.without, controls=subject.controls)
    if region is not None:
        target = Region(target, z0, region, *_voxels(model, subject.given))
    with torch.no_grad(), at_most_threads(2, model.device):
        noisy = invert_ddim(source, z0, sigmas, iterations=INVERSION_ITERATIONS, tolerance=1e-4, callback=step)
        z = reconstruct_ddim(target, noisy, sigmas, callback=step).float()
    return _image(model, z, subject)


def _image(model: DiffusionModel, z: Tensor, subject: _Subject) -> Tensor:
    image, _ = model.codec.decode(z, subject.given)
    if image is None:
        raise MedgenError(f"edit: model '{model.spec.name}' makes no image. Give another one.")
    return image.cpu()
