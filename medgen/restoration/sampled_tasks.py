"""Posterior samples of what restorers restore, task by task, with a denoising restorer as the prior."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from medgen.diffusion.randomness import derive_seed, generators
from medgen.diffusion.samplers import SAMPLERS
from medgen.diffusion.schedules import logsnr_sigmas
from medgen.intensity import IntensityWindow
from medgen.io.findings import Refused
from medgen.networks.threads import at_most_threads
from medgen.operators import Operator
from medgen.restoration.consistency import denoised_check
from medgen.restoration.denoiser_prior import SIGMA_MIN, restorer_prior
from medgen.restoration.prior import SAMPLER
from medgen.restoration.restorer_tasks import (
    Made,
    Progress,
    Scan,
    beyond,
    consistent,
    noise_of,
    shown,
    slices_of,
)  # fmt: skip
from medgen.restoration.sampled import PosteriorSamples, restore_samples

if TYPE_CHECKING:
    from medgen.models.restorer import RestorerModel

__all__ = ["SAMPLED_TASKS", "Asked", "sampled_task"]

NOISE_STEPS = 16
SLICES_SIGMA, SLICES_STEPS = 0.1, 16
"""First level between slices. On crops of two people at 4 mm, four samples' intervals cover 0.86 and 0.87 from 0.05,
0.89 and 0.93 from 0.1, 0.91 and 0.95 from 0.15; the PSNR of their mean falls by 0.2 and 0.5 dB with each."""


@dataclass(frozen=True)
class Asked:
    """What samples are drawn of.

    Attributes:
        prior: restorer for ``denoise`` of volumes.
        scan: in the unit of ``prior``.
        options: see :func:`medgen.restoration.restore.restore`.
        start: what the task's own restorer made, in the same unit; None: there is none.
        seeds: one for each sample.
        callback: called with (steps done, steps of all samples).
    """

    prior: RestorerModel
    scan: Scan
    options: dict[str, Any]
    start: Made | None
    seeds: range
    callback: Progress | None = None


def sampled_task(task: str, asked: Asked) -> Made:
    """What a scan may have been: one sample for each seed, their mean and deviation.

    Args:
        task: a key of ``SAMPLED_TASKS``.
        asked: of what.

    Returns:
        With samples; a single one has no deviation.
    """
    made, samples = SAMPLED_TASKS[task](asked)
    std = samples.std(0, keepdim=True) if len(samples) > 1 else None
    return replace(made, mean=samples.mean(0, keepdim=True), std=std, samples=samples)


def _denoised(asked: Asked) -> tuple[Made, Tensor]:
    """The reverse diffusion from the scan itself, which is a state at the level of its noise.

    Where the noise is Gaussian and the denoiser exact, the samples are those of the posterior, without a likelihood to
    approximate (the idea of Kawar et al. 2021, arXiv:2101.09552).
    """
    scan, prior = asked.scan, asked.prior
    level, settings = noise_of(scan, asked.options)
    box = shown(scan.values)
    sigmas = logsnr_sigmas(NOISE_STEPS, min(SIGMA_MIN, level / 2), level) if level > 0 else torch.zeros(1)
    drawn = []
    for k, seed in enumerate(asked.seeds):
        image = scan.values.clone()
        with at_most_threads(2, prior.device):
            image[box] = _reverse(prior, scan.values[box], sigmas, seed, _report(asked, k, len(sigmas) - 1))
        drawn.append(image[0])
    samples = torch.stack(drawn)
    figures, doubts = denoised_check(scan.values[box], samples.mean(0, keepdim=True)[box], level)
    remarks = (*beyond(prior, "noise level", level), *doubts)
    how = settings | {"sampler": SAMPLER, "num_inference_steps": len(sigmas) - 1, "sigma_max": level}
    return Made(scan.values, None, scan.affine, settings | figures, remarks, how), samples


def _reverse(
    prior: RestorerModel, noisy: Tensor, sigmas: Tensor, seed: int, report: Callable[..., None] | None
) -> Tensor:  # fmt: skip
    if len(sigmas) < 2:
        return noisy
    streams = generators([derive_seed(seed, "restore")])
    made: Tensor = SAMPLERS[SAMPLER](prior.denoise, noisy[None], sigmas, generators=streams, callback=report)[0]
    return made


def _report(asked: Asked, sample: int, steps: int) -> Callable[..., None] | None:
    callback = asked.callback
    if callback is None:
        return None
    return lambda step, *_: callback(sample * steps + step + 1, len(asked.seeds) * steps)


def _thinned(asked: Asked) -> tuple[Made, Tensor]:
    """From the restorer's thin slices; each sample's slices, measured again, are those of the scan."""
    scan, start = asked.scan, asked.start
    if start is None:
        raise Refused("WRONG_OPTION", "restore: samples between slices begin from a restorer for 'superres'. Give one.")
    slices, measured = slices_of(scan, asked.options), scan.values[None]
    drawn = _drawn(
        asked, slices, scan.values, start.mean, sigma_max=SLICES_SIGMA, num_inference_steps=SLICES_STEPS
    )  # fmt: skip
    samples = torch.stack([consistent(one[None, None], measured, slices)[0, 0] for one in drawn.samples])
    residual = max(float((measured - slices.forward(one[None, None])).abs().max()) for one in samples)
    figures = dict(start.figures) | {"residual": residual}
    how = {name: drawn.provenance[name] for name in ("sampler", "num_inference_steps", "sigma_max")}
    return Made(start.mean, None, start.affine, figures, start.remarks, dict(start.settings) | how), samples


def _drawn(asked: Asked, operator: Operator, measured: Tensor, start: Tensor, **how: Any) -> PosteriorSamples:
    """Samples of what an exact measurement allows; ``how`` is of :func:`restorer_prior`."""
    prior = restorer_prior(asked.prior, start[None], **how)
    return restore_samples(
        measured, operator, prior, noise_std=0.0, method="diffpir", samples=len(asked.seeds), seed=asked.seeds.start,
        affine=np.eye(4), window=IntensityWindow(0.0, 1.0), callback=asked.callback,
    )  # fmt: skip


SAMPLED_TASKS: dict[str, Callable[[Asked], tuple[Made, Tensor]]] = {
    "denoise": _denoised,
    "superres": _thinned,
}
