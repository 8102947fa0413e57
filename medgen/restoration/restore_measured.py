"""What an operator measured, restored with a prior that was trained for no operator."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from monai.data import MetaTensor
from torch import Tensor

from medgen.geometry import spacing_of
from medgen.intensity import IntensityWindow, restorer_unit
from medgen.io.findings import Refused
from medgen.networks.threads import at_most_threads
from medgen.operators import Mask, Operator
from medgen.restoration.consistency import measured_check
from medgen.restoration.denoiser_prior import continued, denoiser_of, restorer_prior
from medgen.restoration.plug_and_play import begins_with_phase, plug_and_play
from medgen.restoration.posterior import Measurement, make_consistent
from medgen.restoration.prior import Prior
from medgen.restoration.restored import Restored
from medgen.restoration.sampled import PosteriorSamples, Progress, checked_measurement, restore_samples
from medgen.restoration.settings import default_model

if TYPE_CHECKING:
    from medgen.models.base import Model
    from medgen.models.restorer import RestorerModel

__all__ = ["restore_measured"]

SIGMA_MAX = 0.2  # of samples begun from plug and play
PHASE_WIDTH = 3.0  # voxels: the phase of a Chain that begins with one is corrected by what varies no faster


def restore_measured(
    measured: Tensor,
    operator: Operator,
    model: str | os.PathLike[str] | Model[Any] | Prior | None = None,
    *,
    noise_std: float | None,
    samples: int = 0,
    seed: int = 0,
    affine: Tensor | np.ndarray | None = None,
    method: str | None = None,
    device: str = "auto",
    callback: Progress | None = None,
) -> Restored:
    """See :func:`medgen.restoration.restore.restore`."""
    from medgen.models.bundled import load_model
    from medgen.models.restorer import RestorerModel

    if noise_std is None:
        raise Refused("WRONG_OPTION", "restore: an operator needs noise_std, in the unit of volume; 0: exact. Give it.")
    chosen = default_model("denoise") if model is None else model
    prior: Any = load_model(chosen, device) if isinstance(chosen, str | os.PathLike) else chosen
    if isinstance(prior, RestorerModel):
        denoiser_of(prior, len(operator.size))
        y, placed = checked_measurement(measured, operator, affine)
        window = _unit_of(operator, y, prior)
        known = _in_unit(operator, y, window, noise_std)
        if not samples:
            return _single(known, Measurement(operator, y, noise_std), prior, window, placed, callback)
        prior, operator = _prior(prior, known, placed)
        method = method or "diffpir"
    else:
        window = None
    if not samples:
        raise Refused("WRONG_OPTION", "restore: a diffusion model draws samples. Give samples, 8 say.")
    drawn = restore_samples(
        measured, operator, prior, noise_std=noise_std, method=method or "pigdm", samples=samples, seed=seed,
        affine=affine, window=window, callback=callback,
    )  # fmt: skip
    return _of_samples(drawn)


def _unit_of(operator: Operator, y: Tensor, model: RestorerModel) -> IntensityWindow:
    """The restorer's 0..1, by a plain image of what was measured."""
    plain = operator.to_image(y)
    scale, low = restorer_unit(plain.abs() if plain.is_complex() else plain, model.spec.scaling)
    return IntensityWindow(low, low + scale)


def _in_unit(operator: Operator, y: Tensor, window: IntensityWindow, noise_std: float) -> Measurement:
    scale = window.high - window.low
    offset = operator.forward(torch.full((1, 1, *operator.size), window.low, device=y.device))
    return Measurement(operator, (y - offset) / scale, noise_std / scale)


def _played(
    model: RestorerModel, known: Measurement, affine: Tensor | None, callback: Progress | None = None
) -> tuple[Tensor, Measurement]:
    """Plug and play ``(1, 1, *size)`` in the restorer's unit, and the measurement with its phase corrected."""
    width = PHASE_WIDTH if begins_with_phase(known.operator) else None
    denoise, start = denoiser_of(model, len(known.operator.size)), _continued(known, affine)
    with torch.no_grad(), at_most_threads(2, model.device):
        return plug_and_play(denoise, known, start=start, phase_width=width, callback=callback)


def _continued(known: Measurement, affine: Tensor | None) -> Tensor | None:
    """The smooth continuation into what a mask hides; None for other operators."""
    if not isinstance(known.operator, Mask):
        return None
    axes = len(known.operator.size)
    steps = None if affine is None else [float(step) for step in spacing_of(affine.numpy())[:axes]]
    return continued(known.y, known.operator.inpaint_mask, steps).to(known.y.device)


def _single(
    measured: Measurement,
    native: Measurement,
    model: RestorerModel,
    window: IntensityWindow,
    affine: Tensor | None,
    callback: Progress | None,
) -> Restored:
    """One image; ``measured`` is in the restorer's unit, ``native`` the same in its own."""
    operator, noise_std = native.operator, native.noise_std
    found, known = _played(model, measured, affine, callback)
    made = window.inverse(found)
    if isinstance(operator, Mask) and noise_std == 0:
        made = make_consistent(made, native)  # to the last bit, in this unit too
    figures, remarks = dict[str, float](), tuple[str, ...]()
    if noise_std > 0:
        figures, remarks = measured_check(known, found)
    settings = {"restored": "plug_and_play", "operator": operator.parameters(), "noise_std": noise_std}
    if known.operator is not operator:
        figures["phase_corrected_rad"] = _turned(operator, known.operator, found)
        settings["phase_width"] = PHASE_WIDTH
    record = model.provenance(0, settings)
    record.pop("seed")
    placed = torch.eye(4, dtype=torch.float64) if affine is None else affine
    image = MetaTensor(made[0].float(), affine=placed, meta={"synthetic": True, "provenance": record})
    return Restored(image, figures=figures, remarks=remarks, provenance=record)


def _prior(model: RestorerModel, known: Measurement, affine: Tensor | None) -> tuple[Prior, Operator]:
    """Begun from the smooth continuation into a hole at the model's greatest level, else from plug and play.

    With the operator, its phase as corrected by that.
    """
    start = _continued(known, affine)
    if start is not None:
        return restorer_prior(model, start), known.operator
    start, known = _played(model, known, affine)
    return restorer_prior(model, start, sigma_max=SIGMA_MAX), known.operator


def _turned(before: Any, after: Any, image: Tensor) -> float:
    """Root mean square difference of the phases that two chains begin with, in radians, weighed by the image."""
    turn = after.operators[0].phase - before.operators[0].phase
    weight = image[0, 0].square()
    square = torch.polar(torch.ones_like(turn), turn).angle().square()
    return float(((weight * square).sum() / weight.sum().clamp(min=torch.finfo(weight.dtype).tiny)).sqrt())


def _of_samples(drawn: PosteriorSamples) -> Restored:
    """As every restoration is given back."""
    figures = {"residual_ratio": max(check.ratio for check in drawn.checks)} if drawn.checks else {}
    samples = MetaTensor(
        drawn.samples, affine=drawn.affine, meta={"synthetic": True, "provenance": dict(drawn.provenance)}
    )
    done = Restored(
        drawn.mean, samples=samples, figures=figures, remarks=drawn.remarks, provenance=dict(drawn.provenance)
    )  # fmt: skip
    if len(drawn.samples) == 1:
        return done
    return replace(done, std=drawn.std, lower=drawn.lower, upper=drawn.upper)
