"""Subjects between two seeds of a diffusion model."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from monai.data import MetaTensor

from medgen.checks import MedgenError, check_count
from medgen.diffusion.editing import slerp
from medgen.diffusion.randomness import derive_seed, generators, randn
from medgen.diffusion.samplers import SAMPLERS
from medgen.networks.threads import at_most_threads
from medgen.restoration.edit import editor, told

if TYPE_CHECKING:
    from medgen.models.diffusion_model import DiffusionModel

__all__ = ["interpolate"]

SAMPLER = "dpmpp_2m"


def interpolate(
    model: str | os.PathLike[str] | DiffusionModel,
    first: int = 0,
    second: int = 1,
    count: int = 5,
    *,
    conditions: Mapping[str, Any] | None = None,
    device: str = "auto",
    **options: Any,
) -> list[dict[str, MetaTensor]]:
    """Subjects on the way from one seed to another: their noises are mixed (:func:`~medgen.diffusion.editing.slerp`).

    Args:
        model: name or folder of a diffusion model of task ``image`` or ``joint``, or a loaded one.
        first: seed of the first subject.
        second: seed of the last.
        count: how many subjects, both ends among them.
        conditions: value by control, for all; what is left out is "not given".
        device: where a model given by name runs.
        options: ``num_inference_steps``, ``guidance_scale``; the sampler is the deterministic ``dpmpp_2m``.

    Returns:
        Dictionaries as :meth:`medgen.models.base.Model.sample` gives them.

    Raises:
        MedgenError: a model that needs an input, or fewer than two subjects.
    """
    check_count("interpolate", "count", count)
    chosen = editor(model, device)
    if count < 2:
        raise MedgenError(f"interpolate: count must be 2 or more, both ends among them. Got {count}. Give 5, say.")
    if chosen.spec.task not in ("image", "joint"):
        raise MedgenError(
            f"interpolate: model '{chosen.spec.name}' of task '{chosen.spec.task}' needs an input. Give one of task "
            "'image' or 'joint'."
        )
    if options.get("sampler") not in (None, SAMPLER):
        raise MedgenError(f"interpolate: sampler must be the deterministic '{SAMPLER}'. Got {options['sampler']!r}.")
    settings = chosen.settings(**{**options, "sampler": SAMPLER})
    asked = told("interpolate", chosen, conditions)
    controls = {key: value[None] for key, value in chosen.control_tensors(asked).items()}
    given = chosen.codec.given({}, chosen.spec.grid.size)
    ends = [randn(chosen.shape(given), generators([derive_seed(seed, "sample")])) for seed in (first, second)]
    sigmas = chosen.spec.sampling.sigmas(settings["num_inference_steps"])
    denoise = chosen.bound(given, settings, controls=controls)
    made = []
    for weight in np.linspace(0, 1, count).tolist():
        x = slerp(ends[0], ends[1], weight).to(chosen.device) * sigmas[0].item()
        with torch.no_grad(), at_most_threads(2, chosen.device):
            image, label = chosen.codec.decode(SAMPLERS[SAMPLER](denoise, x, sigmas).float(), given)
        provenance = chosen.provenance(first, settings) | {"interpolated": [first, second, weight]}
        provenance |= {"conditions": asked} if asked else {}
        meta, affine = {"synthetic": True, "provenance": provenance}, chosen.grid_affine()
        volumes = {"image": image, "label": label}
        made.append(
            {key: MetaTensor(x[0].cpu(), affine=affine, meta=dict(meta)) for key, x in volumes.items() if x is not None}
        )
    return made
