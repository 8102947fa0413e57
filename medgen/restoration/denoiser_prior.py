"""A denoising restorer as the prior of posterior samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from medgen.continuation import kriged
from medgen.diffusion.samplers import Denoise
from medgen.diffusion.schedules import logsnr_sigmas
from medgen.io.findings import Refused
from medgen.restoration.assembled import SliceDenoiser
from medgen.restoration.prior import SAMPLER, Prior

if TYPE_CHECKING:
    from medgen.models.restorer import RestorerModel

__all__ = ["SIGMA_MIN", "continued", "denoiser_of", "restorer_prior"]

SIGMA_MIN = 0.005  # least level of a run, above the least of training
PRIOR_STD = 0.3  # of a voxel over scans whose bright end is 1
STEPS = 40


def restorer_prior(
    model: RestorerModel,
    start: Tensor,
    *,
    sigma_max: float | None = None,
    num_inference_steps: int = STEPS,
    sampler: str = SAMPLER,
) -> Prior:
    """A denoiser whose greatest level does not drown the image, begun from what is known of the image.

    What is coarser than noise of ``sigma_max`` can hide stays as in ``start``; the rest is drawn. As the noise that
    the sampler adds at each level is fresh, no derivative of the denoiser is asked for; methods that take one
    (``pigdm``, ``dps``) work, too.

    Args:
        model: restorer for ``denoise``; one of slices serves volumes, see :func:`denoiser_of`.
        start: ``(1, 1, *spatial)`` in the model's 0..1: a continuation into a hole, a regression's output.
        sigma_max: first level; the greatest that the model was trained on by default.
        num_inference_steps: of the run.
        sampler: a name in ``SAMPLERS``, best one that draws fresh noise.

    Raises:
        MedgenError: see :func:`denoiser_of`.
    """
    denoise = denoiser_of(model, start.ndim - 2)
    greatest = max(model.spec.strength[1], 2 * SIGMA_MIN)
    sigmas = logsnr_sigmas(num_inference_steps, SIGMA_MIN, greatest if sigma_max is None else sigma_max)
    settings = {"sampler": sampler, "num_inference_steps": num_inference_steps, "sigma_max": float(sigmas[0])}
    return Prior(
        denoise,
        lambda z: z,
        tuple(start.shape[1:]),
        sigmas,
        sampler,
        prior_std=PRIOR_STD,
        start=start.to(model.device),
        device=model.device,
        provenance=model.provenance(0, settings),
    )


def denoiser_of(model: RestorerModel, axes: int) -> Denoise:
    """``D(x, sigma)`` of images of so many axes.

    A restorer of slices denoises those across two axes of a volume, and the mean of both is taken
    (:class:`~medgen.restoration.assembled.SliceDenoiser`).

    Raises:
        MedgenError: a restorer of another task, or one of volumes for slices.
    """
    own = model.spec
    if own.restores == "denoise" and own.spatial_dims == axes:
        return model.denoise
    if own.restores == "denoise" and (own.spatial_dims, axes) == (2, 3):
        return SliceDenoiser(model.denoise)
    raise Refused(
        "WRONG_OPTION",
        f"restore: the operator needs a restorer that denoises images of {axes} axes. Got '{own.name}', for task "
        f"'{own.restores}' with {own.spatial_dims}. Give another.",
    )


def continued(image: Tensor, hole: Tensor, spacing: Sequence[float] | None = None) -> Tensor:
    """The smoothest continuation into a hole, where samples begin.

    Args:
        image: ``(1, 1, *spatial)``, two or three axes; what lies in the hole is not looked at.
        hole: ``(*spatial)``, True = to be filled.
        spacing: mm of each axis; all alike by default.

    Returns:
        Shape of ``image``, float32.
    """
    values, marked = image[0, 0].detach().cpu().double().numpy(), hole.cpu().numpy()
    steps = tuple(spacing or (1.0,) * values.ndim)
    if values.ndim == 2:
        values, marked, steps = values[..., None], marked[..., None], (*steps, 1.0)
    return torch.from_numpy(kriged(values, marked, steps)).float().reshape(image.shape)
