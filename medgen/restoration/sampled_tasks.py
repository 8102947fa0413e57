"""Posterior samples of what restorers restore, task by task, with a denoising restorer as the prior."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from medgen.diffusion.randomness import derive_seed, generators, randn
from medgen.diffusion.samplers import SAMPLERS
from medgen.diffusion.schedules import logsnr_sigmas
from medgen.intensity import IntensityWindow
from medgen.io.findings import Refused
from medgen.networks.threads import at_most_threads
from medgen.operators import Mask, Operator
from medgen.restoration.adapted import STEPS, adapted
from medgen.restoration.consistency import denoised_check
from medgen.restoration.denoiser_prior import SIGMA_MIN, continued, restorer_prior
from medgen.restoration.prior import SAMPLER
from medgen.restoration.restorer_tasks import (
    Made,
    Progress,
    Scan,
    around,
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
HOLE_SIGMA, HOLE_STEPS = 0.25, 24
"""In a hole filled by a restorer; without one the first level is the greatest that the prior knows. From 0.12, 0.25 and
0.5 a sample's gradient energy is 0.45, 0.51 and 0.53 of the truth's in a hole of a smooth template, and intervals of
three cover 0.78, 0.85 and 0.88. To tell the denoiser less noise than there is brings the energy to 1, as speckle."""
HOLE_SIGMA_MIN = 0.02  # or the least level of training, if that is more
NOT_ADAPTED = (
    "too little is known around the hole: its samples are drawn as in other people's scans, and may be smoother or "
    "sharper than this one."
)


@dataclass(frozen=True)
class Asked:
    """What samples are drawn of.

    Attributes:
        prior: restorer for ``denoise`` of volumes, or for ``denoise_hole``.
        scan: in the unit of ``prior``.
        hole: ``(1, X, Y, Z)``, True where samples are drawn (task ``inpaint``).
        options: see :func:`medgen.restoration.restore.restore`.
        start: what the task's own restorer made, in the same unit; None: there is none.
        seeds: one for each sample.
        callback: called with (steps done, steps of all samples).
    """

    prior: RestorerModel
    scan: Scan
    hole: Tensor | None
    options: dict[str, Any]
    start: Made | None
    seeds: range
    callback: Progress | None = None

    @property
    def remarks(self) -> tuple[str, ...]:
        """Of the task's own restorer."""
        return () if self.start is None else self.start.remarks

    @property
    def settings(self) -> dict[str, Any]:
        """Of the task's own restorer."""
        return {} if self.start is None else dict(self.start.settings)


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


def _filled(asked: Asked) -> tuple[Made, Tensor]:
    """From the restorer's fill, or the smooth continuation where there is none."""
    scan, hole = asked.scan, asked.hole
    if hole is None:
        raise Refused("NO_MASK", "restore: task 'inpaint' fills holes. Give inpaint_mask (--mask FILE).")
    box = around(hole, asked.prior.spec.grid.size)
    values, marked = scan.values[box], hole[box]
    known = values.masked_fill(marked, 0)
    begun = continued(values[None], marked[0], scan.spacing)[0] if asked.start is None else asked.start.mean[box]
    samples = scan.values.repeat(len(asked.seeds), 1, 1, 1)
    remarks = asked.remarks
    if asked.prior.spec.restores == "denoise_hole":
        found, how = _drawn_in_hole(asked, hole, box, begun)
        if asked.options["adapt"] and not how["adapted"]:
            remarks = (*remarks, NOT_ADAPTED)
    else:
        first = None if asked.start is None else HOLE_SIGMA
        drawn = _drawn(asked, Mask(marked[0]), known, begun, sigma_max=first, num_inference_steps=HOLE_STEPS)
        how, found = _how(drawn), drawn.samples
    samples[(slice(None), *box[1:])] = found
    figures = {"regenerated_share": float(hole.float().mean())}
    return Made(scan.values, None, scan.affine, figures, remarks, asked.settings | how), samples


def _drawn_in_hole(
    asked: Asked, hole: Tensor, box: tuple[slice, ...], begun: Tensor
) -> tuple[Tensor, dict[str, Any]]:  # fmt: skip
    """The reverse diffusion in a hole alone, given what is around it, by a prior that is made used to the scan first.

    Args:
        asked: of what.
        hole: see :class:`Asked`.
        box: around the hole.
        begun: ``(1, *box)``; what is coarser than noise of the first level can hide stays.

    Returns:
        ``(K, *box)``, and how it was made, for the record.
    """
    prior, scan, sigma = asked.prior, asked.scan, asked.prior.spec.strength[1]
    before = STEPS if asked.options["adapt"] else 0
    total = before + len(asked.seeds) * HOLE_STEPS

    def report(done: int) -> None:
        if asked.callback is not None:
            asked.callback(done, total)

    used = None
    if asked.options["adapt"]:
        filled = scan.values.clone()
        filled[box] = torch.where(hole[box], begun, scan.values[box])
        used = adapted(prior, filled, hole, scan.affine, report)
    known = scan.values[box].masked_fill(hole[box], 0)
    drawn = []
    for k, seed in enumerate(asked.seeds):
        done = before + k * HOLE_STEPS
        one = _in_hole(
            used or prior, known, hole[box], begun, seed, lambda step, *_, done=done: report(done + step + 1)
        )
        drawn.append(one)
    how = {"sampler": SAMPLER, "num_inference_steps": HOLE_STEPS, "sigma_max": sigma, "adapted": used is not None}
    return torch.stack(drawn), how


def _in_hole(
    prior: RestorerModel, known: Tensor, hole: Tensor, begun: Tensor, seed: int, report: Callable[..., None]
) -> Tensor:  # fmt: skip
    """One sample ``(*spatial)``.

    Args:
        prior: for task ``denoise_hole``.
        known: ``(1, *spatial)``, 0 in the hole.
        hole: the same shape, True = drawn.
        begun: the same shape.
        seed: of the sample.
        report: called with (step, ...).
    """
    sigma = prior.spec.strength[1]

    def denoise(x: Tensor, level: Tensor) -> Tensor:
        return prior.denoise(torch.where(hole, x, known), level, hole.float())

    streams = generators([derive_seed(seed, "restore")])
    start = begun[None] + sigma * randn(begun.shape, streams)
    sigmas = logsnr_sigmas(HOLE_STEPS, min(max(HOLE_SIGMA_MIN, prior.spec.strength[0]), sigma / 2), sigma)
    with at_most_threads(2, prior.device):
        made: Tensor = SAMPLERS[SAMPLER](denoise, start, sigmas, generators=streams, callback=report)
    return made[0, 0]


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
    return Made(start.mean, None, start.affine, figures, asked.remarks, asked.settings | _how(drawn)), samples


def _drawn(asked: Asked, operator: Operator, measured: Tensor, start: Tensor, **how: Any) -> PosteriorSamples:
    """Samples of what an exact measurement allows; ``how`` is of :func:`restorer_prior`."""
    prior = restorer_prior(asked.prior, start[None], **how)
    return restore_samples(
        measured, operator, prior, noise_std=0.0, method="diffpir", samples=len(asked.seeds), seed=asked.seeds.start,
        affine=np.eye(4), window=IntensityWindow(0.0, 1.0), callback=asked.callback,
    )  # fmt: skip


def _how(drawn: PosteriorSamples) -> dict[str, Any]:
    """How samples were drawn, for the record."""
    return {name: drawn.provenance[name] for name in ("sampler", "num_inference_steps", "sigma_max")}


SAMPLED_TASKS: dict[str, Callable[[Asked], tuple[Made, Tensor]]] = {
    "denoise": _denoised,
    "superres": _thinned,
    "inpaint": _filled,
}
