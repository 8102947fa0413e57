"""A scan restored by the restorer of a task, in the scan's own intensities and geometry."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy
import torch
from monai.data import MetaTensor
from torch import Tensor

import medgen
from medgen.checks import MedgenError, check_choice
from medgen.intensity import restorer_unit
from medgen.io.findings import Refused
from medgen.operators.slice_profiles import SLICE_PROFILES
from medgen.restoration.hole_samples import samples_in_holes
from medgen.restoration.restored import Restored
from medgen.restoration.restorer_tasks import RESTORER_TASKS, Made, Progress, Scan
from medgen.restoration.sampled import predictive_factor
from medgen.restoration.sampled_tasks import Asked, sampled_task
from medgen.restoration.settings import SAMPLED, TASK_OF_OPTION, default_model

if TYPE_CHECKING:
    from medgen.models.base import Model
    from medgen.models.restorer import RestorerModel

__all__ = ["Task", "loaded_restorer", "restore_task"]

ENOUGH = 4
FEW = f"the interval of fewer than {ENOUGH} samples says little: it is wide, and its width is chance."
ONE = f"one sample has no deviation and no interval: there is no map of them. Draw {ENOUGH} or more."
CUT = "{} cuts of holes that are long and thin, or larger than any place: seams may be seen there. Look at them."


@dataclass(frozen=True)
class Task:
    """What is to be done with a scan; see :func:`medgen.restoration.restore.restore`.

    Raises:
        Refused: ``WRONG_OPTION``: an option that the task does not heed, or out of its range.
    """

    word: str
    samples: int = 0
    seed: int = 0
    slice_profile: str | None = None
    modality: str | None = None
    guard: str = "refuse"
    device: str = "auto"
    inpaint_mask: MetaTensor | None = None
    noise_level: float | None = None
    target_spacing: float | None = None
    prior: str | os.PathLike[str] | Model[Any] | None = None
    interval: bool = True

    def __post_init__(self) -> None:
        for name, task in {"inpaint_mask": "inpaint", **TASK_OF_OPTION}.items():
            if getattr(self, name) is not None and task != self.word:
                raise _wrong(f"{name} is for task '{task}', not for '{self.word}'. Leave it out.")
        if self.slice_profile is not None:
            check_choice("restore", "slice_profile", self.slice_profile, SLICE_PROFILES)
        if self.seed and not self.samples:
            raise _wrong("seed goes with samples: nothing else is drawn. Leave it out.")
        if self.noise_level is not None and not 0 < self.noise_level < 1:
            raise _wrong(f"noise_level must be above 0 and below 1. Got {self.noise_level}. 0.05 is 5%.")
        if self.samples and self.word not in SAMPLED:
            raise _wrong(f"samples are drawn for {', '.join(SAMPLED)}, not for '{self.word}'. Leave samples out.")
        if self.prior is not None and not self.samples:
            raise _wrong("prior goes with samples. Leave it out.")

    @property
    def seeds(self) -> range:
        """One for each sample."""
        return range(self.seed, self.seed + self.samples)

    @property
    def remarks(self) -> tuple[str, ...]:
        """On what is asked for."""
        if not self.interval or not 0 < self.samples < ENOUGH:
            return ()
        return (FEW if self.samples > 1 else ONE,)

    @property
    def options(self) -> dict[str, Any]:
        """Of the functions in :mod:`medgen.restoration.restorer_tasks`."""
        profile = self.slice_profile or "gaussian"
        return {
            "noise_level": self.noise_level, "target_spacing": self.target_spacing, "slice_profile": profile,
            "interval": self.interval and not self.samples,  # that of samples is theirs
        }  # fmt: skip


def restore_task(
    volume: MetaTensor | Tensor,
    model: str | os.PathLike[str] | Model[Any] | Any | None,
    task: Task,
    callback: Progress | None = None,
) -> Restored:
    """Undo what a restorer was trained to undo; see :func:`medgen.restoration.restore.restore`."""
    from medgen.restoration.inpaint import check_hole

    given = _checked_volume(volume)
    if task.inpaint_mask is not None:
        check_hole(given, task.inpaint_mask)
    if task.word == "inpaint" and task.samples:
        return _holes_drawn(given, model, task, callback)
    maker, beginner = _models(model, task)
    scan = _in_unit(given, task.inpaint_mask, maker.spec.scaling)
    hole = None if task.inpaint_mask is None else (task.inpaint_mask.as_tensor().cpu() > 0.5)
    doubts = [text for one in (beginner, maker) if one is not None for text in _doubts(one, scan, task)]
    record: dict[str, Any] = {"restores": task.word, "synthetic": hole is not None or task.samples > 0}
    if task.samples:
        begun = None if beginner is None else RESTORER_TASKS[task.word](beginner, scan, hole, task.options, None)
        made = sampled_task(task.word, Asked(maker, scan, task.options, begun, task.seeds, callback))
        record |= {"samples": task.samples, "start": None if beginner is None else _named(beginner)}
    else:
        made = RESTORER_TASKS[task.word](maker, scan, hole, task.options, callback)
    record = maker.provenance(task.seed, made.settings) | record
    if not task.samples:
        record.pop("seed")
    made = replace(made, remarks=tuple(dict.fromkeys((*doubts, *made.remarks, *task.remarks))))
    factor = maker.spec.interval_factor if made.interval_factor is None else made.interval_factor
    return _finished(given, scan, made, hole, task, factor, record)


def _holes_drawn(volume: MetaTensor, model: Any, task: Task, callback: Progress | None) -> Restored:
    """Samples of holes, of any modality: the scan alone is asked."""
    if task.inpaint_mask is None:
        raise Refused("NO_MASK", "restore: task 'inpaint' fills holes. Give inpaint_mask (--mask FILE).")
    if model is not None:
        raise _wrong("samples of inpaint are made of the rest of the scan, by no model. Leave model out.")
    scan = _in_unit(volume, task.inpaint_mask, "percentile")
    hole = task.inpaint_mask.as_tensor().cpu() > 0.5
    drawn, cuts = samples_in_holes(scan, hole, task.seeds, callback)
    figures = {"regenerated_share": float(hole.float().mean()), "cuts": float(cuts)}
    remarks = (*task.remarks, CUT.format(cuts)) if cuts else task.remarks
    made = Made(drawn.mean(0, keepdim=True), None, scan.affine, figures, remarks, samples=drawn)
    record = {
        "method": "tissue from elsewhere in the scan", "restores": task.word, "samples": task.samples,
        "seed": task.seed, "synthetic": True, "versions": {"medgen": medgen.__version__, "scipy": scipy.__version__},
    }  # fmt: skip
    return _finished(volume, scan, made, hole, task, None, record)


def _finished(
    volume: MetaTensor, scan: Scan, made: Made, hole: Tensor | None, task: Task, factor: float | None,
    record: dict[str, Any],
) -> Restored:  # fmt: skip
    """In the scan's unit, with intervals, on the device of ``volume``."""
    given = volume.as_tensor().cpu().float()
    magnitude = float((given if hole is None else given[~hole]).min()) >= 0
    kept = {key: value for key, value in volume.meta.items() if key != "affine"}
    synthetic = bool(record["synthetic"]) or bool(kept.get("synthetic"))
    meta = kept | {"synthetic": synthetic, "provenance": record}

    def native(x: Tensor) -> Tensor:
        x = x * scan.scale + scan.low
        x = x if hole is None else torch.where(hole, x, given)
        if not magnitude or task.word == "superres":  # whose slices, measured again, would be others
            return x
        return x.clamp(min=0)

    def placed(x: Tensor) -> MetaTensor:
        return MetaTensor(x.float().to(volume.device), affine=torch.from_numpy(made.affine), meta=dict(meta))

    drawn = None if made.samples is None else native(made.samples)
    values = native(made.mean)
    if drawn is not None:
        values = drawn.mean(0, keepdim=True) if hole is None else torch.where(hole, drawn.mean(0, keepdim=True), given)
    done = Restored(placed(values), figures=made.figures, remarks=made.remarks, provenance=record)
    std = None if made.std is None else made.std * scan.scale
    if drawn is not None:
        done = replace(done, samples=placed(drawn))
        factor = predictive_factor(len(drawn))
        std = drawn.std(0, keepdim=True) if len(drawn) > 1 else None
    if std is None:
        return done
    std = std if hole is None else std * hole
    done = replace(done, std=placed(std))
    if factor is None:
        return done
    low = values - factor * std
    low = torch.minimum(low.clamp(min=0), values) if magnitude else low
    return replace(done, lower=placed(low), upper=placed(values + factor * std))


def _models(model: Any, task: Task) -> tuple[RestorerModel, RestorerModel | None]:
    """What makes the images, and the restorer that samples begin from, if there is one."""
    modality, beginner = task.modality or "", None
    maker = _of_task(default_model(task.word, modality) if model is None else model, task.word, task.device)
    if task.samples and task.word != "denoise":
        beginner = maker
        maker = _of_task(task.prior or default_model("denoise", modality), "denoise", task.device)
        if beginner.spec.scaling != maker.spec.scaling:
            raise _wrong(f"'{beginner.spec.name}' and '{maker.spec.name}' must have one unit. Give another prior.")
    if task.samples and maker.spec.spatial_dims != 3:
        raise _wrong(
            f"samples need a denoiser of volumes, '{maker.spec.name}' is one of slices. Give another, or no samples."
        )
    return maker, beginner


def _of_task(model: Any, word: str, device: str) -> RestorerModel:
    found = loaded_restorer(model, device)
    if found.spec.restores != word:
        raise _wrong(f"model '{found.spec.name}' is for task '{found.spec.restores}', not for '{word}'. Give another.")
    return found


def loaded_restorer(model: str | os.PathLike[str] | Model[Any], device: str) -> RestorerModel:
    """A restorer, by name, folder or as it is."""
    from medgen.models.base import Model
    from medgen.models.bundled import load_model
    from medgen.models.restorer import RestorerModel

    chosen = model if isinstance(model, Model) else load_model(model, device)
    if not isinstance(chosen, RestorerModel):
        raise _wrong(f"model '{chosen.spec.name}' is of family '{chosen.spec.family}'. Give one of family 'restorer'.")
    return chosen


def _named(model: RestorerModel) -> dict[str, str]:
    return {"model": model.spec.name, "model_version": model.spec.version, "model_sha256": model.hash}


def _checked_volume(volume: Any) -> MetaTensor:
    if not isinstance(volume, MetaTensor) or volume.ndim != 4 or volume.shape[0] != 1:
        raise MedgenError(
            f"restore: volume must be a MetaTensor (1, X, Y, Z). Got {type(volume).__name__} {tuple(volume.shape)}. "
            "Give one 3D volume with its affine."
        )
    return volume


def _doubts(model: RestorerModel, scan: Scan, task: Task) -> tuple[str, ...]:
    """What speaks against a scan, as ``guard`` has it."""
    from medgen.restoration.guard import guard as found
    from medgen.restoration.guard import refuse_doubtful

    domain = model.spec.domain
    if domain is None or task.guard == "off":
        return ()
    volume = MetaTensor(scan.values * scan.scale + scan.low, affine=torch.from_numpy(scan.affine))
    doubts = found(volume, domain, modality=task.modality)
    if task.guard == "refuse":
        return refuse_doubtful(f"restore: model '{model.spec.name}'", doubts)
    return tuple(doubt.text() for doubt in doubts)


def _in_unit(volume: MetaTensor, inpaint_mask: MetaTensor | None, scaling: str) -> Scan:
    """The scan as the model sees it; what lies in a hole is 0.

    Raises:
        Refused: ``NON_FINITE``: known values that are not.
    """
    values = volume.as_tensor().cpu().float()
    if inpaint_mask is not None:
        values = torch.where(inpaint_mask.as_tensor().cpu() > 0.5, 0.0, values)
    if not bool(torch.isfinite(values).all()):
        raise Refused("NON_FINITE", "restore: volume holds NaN or infinity. Replace them first.")
    affine = np.asarray(volume.affine.cpu(), dtype=np.float64)
    scale, low = restorer_unit(values, scaling)
    return Scan((values - low) / scale, affine, scale, low)


def _wrong(text: str) -> Refused:
    return Refused("WRONG_OPTION", f"restore: {text}")
