"""One restorer on one scan, in the scan's own intensities and geometry."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from monai.data import MetaTensor
from torch import Tensor

from medgen.checks import MedgenError, check_choice
from medgen.intensity import restorer_unit
from medgen.restoration.restorer_tasks import RESTORER_TASKS, Made, Progress, Scan

if TYPE_CHECKING:
    from medgen.models.base import Model
    from medgen.models.restorer import RestorerModel

__all__ = ["Restored", "restore"]

GUARDS = ("refuse", "warn", "off")


@dataclass(frozen=True)
class Restored:
    """A restored scan and what is known of it.

    Attributes:
        image: ``(1, X, Y, Z)`` float32 in the scan's unit, RAS+ affine in mm: on the scan's grid, or for
            super-resolution on a finer one.
        std: expected error of each voxel, in the scan's unit; None if nothing says it.
        lower: lower end of the 90% interval of each voxel; None as ``std``.
        upper: its upper end.
        figures: what was measured on the way, in words and numbers: ``noise_level``, ``residual``, ...
        remarks: what the user should know: doubts of the guard, a residual larger than the noise, each one sentence.
        provenance: what made the image: model or method, settings, seed, versions.
    """

    image: MetaTensor
    std: MetaTensor | None = None
    lower: MetaTensor | None = None
    upper: MetaTensor | None = None
    figures: dict[str, float] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()
    provenance: dict[str, object] = field(default_factory=dict)


def restore(
    volume: MetaTensor,
    model: str | os.PathLike[str] | Model[Any],
    *,
    inpaint_mask: MetaTensor | None = None,
    noise_level: float | None = None,
    target_spacing: float | None = None,
    slice_profile: str = "gaussian",
    modality: str | None = None,
    guard: str = "refuse",
    device: str = "auto",
    callback: Progress | None = None,
) -> Restored:
    """Undo what a restorer was trained to undo.

    Args:
        volume: ``(1, X, Y, Z)`` on any grid, RAS+ affine in mm, any intensity unit, finite.
        model: name or folder of a restorer, or a loaded one; see :class:`~medgen.models.restorer_spec.RestorerSpec`.
        inpaint_mask: ``(1, X, Y, Z)`` on the same grid, 1 = fill, 0 = keep (restorers of holes).
        noise_level: deviation of the noise over the 99.9th percentile of the scan (denoising); estimated by default.
        target_spacing: of the slices, mm (super-resolution); by default that of the voxels in the slices.
        slice_profile: what the slices were measured with, one of ``SLICE_PROFILES``; as thick as they are apart.
        modality: of the scan, ``MR``, ``CT`` or a BIDS suffix, where it is known.
        guard: what is done about a scan that the model was not made for (``spec.domain``): ``refuse`` what its card
            excludes and remark on what is doubtful, ``warn``: remark on both, ``off``.
        device: where a model given by name runs.
        callback: called with (windows done, windows).

    Returns:
        The restored scan. Outside ``inpaint_mask`` its values are those of ``volume``, bit for bit; a super-resolved
        scan, its slices measured again, gives those of ``volume``. ``meta`` says that and how it was made.

    Raises:
        MedgenError: a volume of another shape or that is not finite, a model that is no restorer, an option that
            belongs to another task, slices that are thin already, a scan outside of the model's card.
    """
    from medgen.restoration.inpaint import check_hole

    chosen = _loaded(model, device)
    _check_volume(volume)
    _check_options(chosen, inpaint_mask, noise_level, target_spacing)
    if inpaint_mask is not None:
        check_hole(volume, inpaint_mask)
    scan = _in_unit(volume, inpaint_mask, chosen.spec.scaling)
    hole = None if inpaint_mask is None else (inpaint_mask.as_tensor().cpu() > 0.5)
    doubts = _doubts(chosen, scan, modality, guard)
    options = {"noise_level": noise_level, "target_spacing": target_spacing, "slice_profile": slice_profile}
    made = RESTORER_TASKS[chosen.spec.restores](chosen, scan, hole, options, callback)
    return _finished(volume, scan, replace(made, remarks=(*doubts, *made.remarks)), hole, chosen)


def _finished(volume: MetaTensor, scan: Scan, made: Made, hole: Tensor | None, model: RestorerModel) -> Restored:
    """In the scan's unit, with intervals, on the device of ``volume``."""
    values = made.mean * scan.scale + scan.low
    given = volume.as_tensor().cpu().float()
    if hole is not None:
        values = torch.where(hole, values, given)
    magnitude = float((given if hole is None else given[~hole]).min()) >= 0
    if magnitude and model.spec.restores != "superres":  # whose slices measured again would be others
        values = values.clamp(min=0)
    provenance = model.provenance(0, made.settings) | {"synthetic": hole is not None, "restores": model.spec.restores}
    provenance.pop("seed")
    kept = {key: value for key, value in volume.meta.items() if key != "affine"}
    meta = kept | {"synthetic": hole is not None or bool(kept.get("synthetic")), "provenance": provenance}

    def placed(x: Tensor) -> MetaTensor:
        return MetaTensor(x.float().to(volume.device), affine=torch.from_numpy(made.affine), meta=dict(meta))

    done = Restored(placed(values), figures=made.figures, remarks=made.remarks, provenance=provenance)
    if made.std is None:
        return done
    std = made.std * scan.scale
    factor = model.spec.interval_factor
    done = replace(done, std=placed(std))
    if factor is None:
        return done
    low = values - factor * std
    low = torch.minimum(low.clamp(min=0), values) if magnitude else low
    return replace(done, lower=placed(low), upper=placed(values + factor * std))


def _loaded(model: str | os.PathLike[str] | Model[Any], device: str) -> RestorerModel:
    from medgen.models.base import Model
    from medgen.models.bundled import load_model
    from medgen.models.restorer import RestorerModel

    chosen = model if isinstance(model, Model) else load_model(model, device)
    if not isinstance(chosen, RestorerModel):
        raise MedgenError(
            f"restore: model '{chosen.spec.name}' is of family '{chosen.spec.family}'. Give one of family 'restorer'."
        )
    return chosen


def _check_volume(volume: MetaTensor) -> None:
    if not isinstance(volume, MetaTensor) or volume.ndim != 4 or volume.shape[0] != 1:
        raise MedgenError(
            f"restore: volume must be a MetaTensor (1, X, Y, Z). Got {type(volume).__name__} {tuple(volume.shape)}. "
            "Give one 3D volume with its affine."
        )


def _check_options(
    model: RestorerModel, inpaint_mask: MetaTensor | None, noise_level: float | None, target_spacing: float | None
) -> None:
    """Nothing is asked for that the task would not heed."""
    task = model.spec.restores
    given = {"inpaint_mask": inpaint_mask, "noise_level": noise_level, "target_spacing": target_spacing}
    belongs = {"inpaint_mask": "inpaint", "noise_level": "denoise", "target_spacing": "superres"}
    for name, value in given.items():
        if value is not None and belongs[name] != task:
            raise MedgenError(
                f"restore: {name} is for task '{belongs[name]}', model '{model.spec.name}' for '{task}'. Leave it out."
            )
    if noise_level is not None and not 0 < noise_level < 1:
        raise MedgenError(f"restore: noise_level must be above 0 and below 1. Got {noise_level}. 0.05 is 5%.")


def _doubts(model: RestorerModel, scan: Scan, modality: str | None, guard: str) -> tuple[str, ...]:
    """What speaks against a scan, as ``guard`` has it."""
    from medgen.restoration.guard import guard as found
    from medgen.restoration.guard import refuse_doubtful

    check_choice("restore", "guard", guard, GUARDS)
    domain = model.spec.domain
    if domain is None or guard == "off":
        return ()
    volume = MetaTensor(scan.values * scan.scale + scan.low, affine=torch.from_numpy(scan.affine))
    doubts = found(volume, domain, modality=modality)
    if guard == "refuse":
        return refuse_doubtful(f"restore: model '{model.spec.name}'", doubts)
    return tuple(doubt.text() for doubt in doubts)


def _in_unit(volume: MetaTensor, inpaint_mask: MetaTensor | None, scaling: str) -> Scan:
    """The scan as the model sees it; what lies in a hole is 0.

    Raises:
        MedgenError: known values that are not finite.
    """
    values = volume.as_tensor().cpu().float()
    if inpaint_mask is not None:
        values = torch.where(inpaint_mask.as_tensor().cpu() > 0.5, 0.0, values)
    if not bool(torch.isfinite(values).all()):
        raise MedgenError("restore: volume holds NaN or infinity. Replace them first.")
    affine = np.asarray(volume.affine.cpu(), dtype=np.float64)
    scale, low = restorer_unit(values, scaling)
    return Scan((values - low) / scale, affine, scale, low)
