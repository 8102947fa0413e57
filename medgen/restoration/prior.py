"""What posterior sampling asks of a trained model: a denoiser, the decoder behind it, and where to start."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from nibabel.orientations import io_orientation
from torch import Tensor

from medgen.checks import MedgenError
from medgen.diffusion.samplers import Denoise
from medgen.geometry import spacing_of
from medgen.models.codec import Given, column
from medgen.restoration.assembled import PatchDenoiser
from medgen.restoration.latent import Decode
from medgen.restoration.posterior import ITERATIONS

if TYPE_CHECKING:
    from medgen.models.diffusion_model import DiffusionModel

__all__ = ["Prior", "model_prior"]

TASKS = ("image", "joint")
SPACING_TOLERANCE = 0.1
NETWORK_ITERATIONS = 8
SAMPLER = "dpmpp_2m_sde"
"""Of posteriors: fresh noise mends what the methods' approximations do. On a correlated Gaussian behind a decoder
(``pigdm``, 60 steps) the residual is 1.17 times the noise and variances are 0.88 to 1.16 of the closed form's; with
``ddpm`` 1.16 and 0.81 to 1.05, with the deterministic ``dpmpp_2m`` 1.54 and 0.79 to 1.40."""


@dataclass(frozen=True)
class Prior:
    """Images of one size as a diffusion model knows them.

    Args:
        denoise: ``denoise(z, sigma)`` of samples ``(B, *shape)`` of deviation about 1.
        decode: from samples to images ``(B, C, *size)`` in the model's 0..1, with derivatives.
        shape: of one sample.
        sigmas: levels of a run.
        sampler: a name in ``SAMPLERS``.
        options: of the sampler.
        prior_std: deviation of an entry of a sample.
        start: what samples begin from, besides noise: of shape ``(1, *shape)``, for a denoiser whose greatest level
            does not drown the image; 0 by default.
        iterations: see :class:`~medgen.restoration.latent.LatentMeasurement`.
        device: where ``denoise`` runs.
        provenance: what made it, for the record.
    """

    denoise: Denoise
    decode: Decode
    shape: tuple[int, ...]
    sigmas: Tensor
    sampler: str = SAMPLER
    options: Mapping[str, Any] = field(default_factory=dict)
    prior_std: float = 1.0
    start: Tensor | None = None
    iterations: int = ITERATIONS
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    provenance: Mapping[str, Any] = field(default_factory=dict)


def model_prior(
    model: DiffusionModel,
    size: Sequence[int],
    affine: np.ndarray | None = None,
    *,
    patch: Sequence[int] | None = None,
    overlap: float = 0.25,
    conditions: Mapping[str, Any] | None = None,
    **options: Any,
) -> Prior:
    """A trained model as the prior of images of any size.

    Args:
        model: of task ``image``, or ``joint`` (its label is sampled along and left out).
        size: of the images, voxels.
        affine: of the images, RAS+ mm, 4x4: their axes are turned to the model's, which are the world's; None: they
            are the same.
        patch: voxels that the model sees at a time, along its own axes, multiples of ``model.multiple``; by default
            its own grid where that is smaller than the image, else all.
        overlap: of patches, see :class:`~medgen.restoration.assembled.PatchDenoiser`.
        conditions: value by control.
        options: ``sampler`` (:data:`SAMPLER` by default), ``num_inference_steps`` and ``guidance_scale`` (the model's
            own by default).

    Raises:
        MedgenError: a model of another task, several image channels or another number of axes, a voxel size that is
            not the model's, or a patch that does not fit.
    """
    from medgen.restoration.edit import told

    spec = model.spec
    if spec.task not in TASKS or spec.image_channels != 1:
        raise MedgenError(
            f"restore_samples: model '{spec.name}' must be of task image or joint, with one image channel. Got task "
            f"'{spec.task}' with {spec.image_channels}. Give another one."
        )
    if len(size) != spec.spatial_dims:
        raise MedgenError(
            f"restore_samples: model '{spec.name}' takes images of {spec.spatial_dims} axes. Got size {tuple(size)}. "
            "Give another model, or make its slices a volume's with SliceDenoiser."
        )
    turn = _Turn.of(affine, len(size))
    _check_spacing(model, affine)
    inner = tuple(size[axis] for axis in turn.axes)
    settings = model.settings(**options | {"sampler": options.get("sampler") or SAMPLER})
    seen = _patch(model, inner, patch)
    whole = tuple(-(-n // model.multiple) * model.multiple for n in inner)
    given = model.codec.given_nothing(whole)
    controls = {k: v[None] for k, v in model.control_tensors(told("restore_samples", model, conditions)).items()}
    denoise: Denoise = model.bound(model.codec.given_nothing(seen or whole), settings, controls=controls)
    if seen is not None:
        denoise = PatchDenoiser(denoise, tuple(n // spec.reduction for n in seen), overlap)

    def decode(z: Tensor) -> Tensor:
        image = decoded(model, z, given)[:, :1]
        return turn.back(image[(slice(None), slice(None), *(slice(n) for n in inner))])

    own = settings["sampler"] == spec.sampling.sampler
    return Prior(
        denoise,
        decode,
        model.shape(given),
        spec.sampling.sigmas(settings["num_inference_steps"]),
        settings["sampler"],
        spec.sampling.sampler_options if own else {},
        iterations=ITERATIONS if spec.autoencoder is None else NETWORK_ITERATIONS,
        device=model.device,
        provenance=model.provenance(0, settings) | ({"patch": list(seen)} if seen else {}),
    )


def decoded(model: DiffusionModel, z: Tensor, given: Given) -> Tensor:
    """:meth:`~medgen.models.codec.Codec.decode_stack` with derivatives through the autoencoder.

    Codes of a code book move to their nearest entries, and the derivative is that of leaving them where they are (van
    den Oord et al. 2017, arXiv:1711.00937, section 3.2).

    Args:
        model: pixel or latent.
        z: samples ``(B, Z, *small)``.
        given: what is known of the image.
    """
    latent, spec = model.codec.latent, model.spec
    if latent is None:
        return model.codec.decode_stack(z, given)
    own = latent.spec
    means, deviations = ((torch.tensor(spec.channel_mean), torch.tensor(spec.channel_std)),
                         (torch.tensor(own.latent_mean), torch.tensor(own.latent_std)))  # fmt: skip
    for mean, std in (means, deviations):
        z = z * column(std, z) + column(mean, z)
    if own.kind == "vq":
        entries = latent.network.quantizer.embed(latent.network.quantizer.quantize(z.detach()))
        z = z + (entries - z).detach()
    return latent.unpadded(latent.network.decode(z), given.size)


@dataclass(frozen=True)
class _Turn:
    """How an image's axes lie in the world's.

    Attributes:
        axes: the image's axis along each of the model's.
        flipped: the model's axes along which the image runs the other way.
    """

    axes: tuple[int, ...]
    flipped: tuple[int, ...]

    @classmethod
    def of(cls, affine: np.ndarray | None, dims: int) -> _Turn:
        if affine is None or dims != 3:
            return cls(tuple(range(dims)), ())
        found = io_orientation(np.asarray(affine, dtype=np.float64))
        axes = tuple(int(np.flatnonzero(found[:, 0] == world)[0]) for world in range(3))
        return cls(axes, tuple(world for world in range(3) if found[axes[world], 1] < 0))

    def back(self, image: Tensor) -> Tensor:
        """From the model's axes to the image's, ``(B, C, *spatial)``."""
        turned = image.flip([2 + axis for axis in self.flipped]) if self.flipped else image
        return turned.permute(0, 1, *(2 + self.axes.index(axis) for axis in range(len(self.axes))))


def _check_spacing(model: DiffusionModel, affine: np.ndarray | None) -> None:
    if affine is None or model.spec.spatial_dims != 3:
        return
    turn, steps = _Turn.of(affine, 3), spacing_of(affine)
    found = [float(steps[axis]) for axis in turn.axes]
    wanted = model.spec.grid.spacing
    if any(abs(a / b - 1) > SPACING_TOLERANCE for a, b in zip(found, wanted, strict=True)):
        raise MedgenError(
            f"restore_samples: voxels must be of the size of model '{model.spec.name}', {list(wanted)} mm along R, A, "
            f"S. Got {[round(step, 3) for step in found]}. Make the operator for a grid of that size, and give its "
            "affine."
        )


def _patch(model: DiffusionModel, size: tuple[int, ...], patch: Sequence[int] | None) -> tuple[int, ...] | None:
    """Voxels of a patch, at most the padded image; None where one patch is all."""
    whole = tuple(-(-n // model.multiple) * model.multiple for n in size)
    if patch is None:
        grid = model.spec.grid.size
        return None if all(n <= own for n, own in zip(whole, grid, strict=True)) else _smaller(grid, whole)
    if len(patch) != len(size) or any(n < 1 or n % model.multiple for n in patch):
        raise MedgenError(
            f"restore_samples: patch must be {len(size)} multiples of {model.multiple}. Got {tuple(patch)}. Round it."
        )
    return _smaller(patch, whole)


def _smaller(a: Sequence[int], b: Sequence[int]) -> tuple[int, ...]:
    return tuple(min(m, n) for m, n in zip(a, b, strict=True))
