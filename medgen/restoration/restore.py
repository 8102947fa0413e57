"""Scans and measurements restored: by a task's restorer, or by any prior given the operator."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from monai.data import MetaTensor
from torch import Tensor

from medgen.checks import MedgenError, check_choice
from medgen.io.findings import Refused
from medgen.models.restorer_spec import RESTORED
from medgen.operators import Operator
from medgen.restoration.restore_measured import restore_measured
from medgen.restoration.restore_task import Task, restore_task
from medgen.restoration.restored import Restored
from medgen.restoration.restorer_tasks import Progress
from medgen.restoration.settings import GUARDS

if TYPE_CHECKING:
    from medgen.models.base import Model
    from medgen.restoration.prior import Prior

__all__ = ["restore"]


def restore(
    volume: MetaTensor | Tensor,
    operator: str | Operator,
    model: str | os.PathLike[str] | Model[Any] | Prior | None = None,
    *,
    samples: int = 0,
    seed: int = 0,
    inpaint_mask: MetaTensor | None = None,
    noise_level: float | None = None,
    target_spacing: float | None = None,
    slice_profile: str | None = None,
    prior: str | os.PathLike[str] | Model[Any] | None = None,
    interval: bool = True,
    noise_std: float | None = None,
    affine: Tensor | np.ndarray | None = None,
    method: str | None = None,
    modality: str | None = None,
    guard: str = "refuse",
    device: str = "auto",
    callback: Progress | None = None,
) -> Restored:
    """Undo a degradation.

    With a word for ``operator``, ``volume`` is a scan and a regression network answers with the expected image. With
    ``samples`` as many images are drawn that the scan allows: for ``denoise`` and ``superres`` with a denoising
    restorer as the prior, for ``inpaint`` from the rest of the scan (:mod:`medgen.restoration.hole_samples`), whatever
    its modality.

    With an operator, ``volume`` is what it measured, and ``model`` need not have seen it: a denoising restorer gives
    one image (:func:`~medgen.restoration.plug_and_play.plug_and_play`), or with ``samples`` as many; a diffusion model
    gives samples (:func:`~medgen.restoration.sampled.restore_samples`).

    Args:
        volume: a scan ``(1, X, Y, Z)`` on any grid, RAS+ affine in mm, any intensity unit, finite; or a measurement
            ``operator.measurement_shape(1)``, also complex (k-space) or off the image's grid (sinogram).
        operator: ``denoise``, ``superres``, ``inpaint``, ``motion``, ``bias``; or a linear operator.
        model: name or folder, or a loaded one. With a word: the task's restorer, the bundled one by default (none
            for ``inpaint`` with samples). With an operator: a denoising restorer (bundled by default), a
            diffusion model of images, or a :class:`~medgen.restoration.prior.Prior`.
        samples: how many images are drawn; ``image`` is their mean. 0: one expected image.
        seed: of the first; sample ``k`` is a function of ``seed + k`` alone. For ``inpaint`` the rank of the place that
            the first is made of: later ones are less alike.
        inpaint_mask: ``(1, X, Y, Z)`` on the scan's grid, 1 = fill, 0 = keep (``inpaint``).
        noise_level: deviation of the noise over the scan's 99.9th percentile (``denoise``); estimated by default.
        target_spacing: of the slices, mm (``superres``); by default that of the voxels in the slices.
        slice_profile: what the slices were measured with (``superres``), one of ``SLICE_PROFILES``, ``gaussian`` by
            default; as thick as they are apart.
        prior: denoising restorer that samples of ``superres`` are drawn with; bundled by default.
        interval: whether that of a hole is measured on the scan itself, for the price of up to four more fills
            (``inpaint``); else it is the model's.
        noise_std: with an operator, and needed there: deviation of the noise in the unit of ``volume``; 0: exact.
        affine: with an operator: of the image, RAS+ mm; by default that of ``volume`` where it lies on its grid.
        method: of samples with an operator: ``dps``, ``pigdm`` (by default) or ``diffpir`` (by default for restorers).
        modality: of the scan, ``MR``, ``CT`` or a BIDS suffix, where it is known.
        guard: what is done about a scan that a restorer was not made for (``spec.domain``): ``refuse`` what its card
            excludes and remark on what is doubtful, ``warn``: remark on both, ``off``. What an operator measured is not
            looked at, nor is a scan whose holes are sampled.
        device: where a model given by name runs; what has no model runs on the CPU.
        callback: called with (windows done, windows), or (steps done, steps of all samples).

    Returns:
        The restored image. Outside ``inpaint_mask`` its values, and those of each sample, are those of ``volume``, bit
        for bit; a super-resolved scan, its slices measured again, gives those of ``volume``. ``meta`` says how it was
        made. The interval is of 90%: as a restorer's was measured on people, in a hole as it is found on the scan
        itself (:mod:`medgen.restoration.hole_interval`), or of the samples
        (:func:`~medgen.restoration.sampled.predictive_factor`).

    Raises:
        Refused: ``WRONG_OPTION``, ``NO_MODEL``, ``NO_MASK``, ``BAD_MASK``, ``NO_PLACE``, ``GRIDS_DIFFER``,
            ``NON_FINITE``, ``NOTHING_TO_DO`` or ``EXCLUDED``, see :data:`~medgen.io.findings.CODES`.
        MedgenError: a volume of another shape, a model that is not there, or a word that is none of those allowed.
    """
    check_choice("restore", "guard", guard, GUARDS)
    if isinstance(samples, bool) or not isinstance(samples, int) or samples < 0:
        raise MedgenError(f"restore: samples must be a whole number of 0 or more. Got {samples!r}. Correct it.")
    of_task: dict[str, Any] = {
        "inpaint_mask": inpaint_mask, "noise_level": noise_level, "target_spacing": target_spacing, "prior": prior,
        "slice_profile": slice_profile,
    }  # fmt: skip
    of_operator: dict[str, Any] = {"noise_std": noise_std, "affine": affine, "method": method}
    if isinstance(operator, Operator):
        _refuse_given("an operator", of_task | {"modality": modality})
        if seed and not samples:
            raise Refused("WRONG_OPTION", "restore: seed goes with samples: nothing else is drawn. Leave it out.")
        return restore_measured(
            volume, operator, model, **of_operator, samples=samples, seed=seed, device=device, callback=callback
        )
    check_choice("restore", "operator", operator, RESTORED)
    _refuse_given(f"task '{operator}'", of_operator)
    how = Task(operator, samples, seed, modality=modality, guard=guard, device=device, interval=interval, **of_task)
    return restore_task(volume, model, how, callback)


def _refuse_given(what: str, options: Mapping[str, Any]) -> None:
    for name, value in options.items():
        if value is not None:
            raise Refused("WRONG_OPTION", f"restore: {name} does not go with {what}. Leave it out.")
