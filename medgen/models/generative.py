"""A trained model, ready to sample."""

from __future__ import annotations

import functools
import platform
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from torch import Tensor, nn

import medgen
from medgen.checks import MedgenError, check_choice, check_count
from medgen.diffusion.denoiser import Preconditioned
from medgen.diffusion.guidance import ClassifierFreeGuidance
from medgen.diffusion.randomness import derive_seed, generators, randn
from medgen.diffusion.samplers import SAMPLERS
from medgen.models.codec import Codec, Given
from medgen.models.specification import ModelSpec, size_multiple
from medgen.networks.threads import at_most_threads

Step = Callable[[int, int], None]


class GenerativeModel:
    """Specification, network and everything between a seed and an image.

    Args:
        spec: what the model is.
        network: the trained network, in evaluation mode, on ``device``.
        device: where it runs.
        hash: identity of the model folder, written into every result.
    """

    def __init__(self, spec: ModelSpec, network: nn.Module, device: torch.device, hash: str = "") -> None:
        self.spec = spec
        self.device = device
        self.hash = hash
        self.codec = Codec(spec)
        self.denoiser = Preconditioned(network, spec.prediction_type, spec.sigma_data)

    @property
    def multiple(self) -> int:
        """What every axis of a volume must be a multiple of."""
        return size_multiple(self.spec)

    def sample(
        self,
        n: int = 1,
        seed: int = 0,
        label: MetaTensor | None = None,
        *,
        sampler: str | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        callback: Step | None = None,
    ) -> list[dict[str, MetaTensor]]:
        """Generate subjects; subject ``i`` is a function of ``seed + i`` alone.

        Args:
            n: how many.
            seed: of the first.
            label: label map ``(1, *spatial)`` on a grid of the model's spacing, RAS+, each axis a multiple of
                :attr:`multiple`; used for all subjects. By default each gets one from the model's own source.
            sampler: name in ``SAMPLERS``; the model's default otherwise.
            num_inference_steps: steps of the sampler; the model's default otherwise.
            guidance_scale: classifier-free guidance of the label; 1 = off.
            callback: called after each step with (subject, step).

        Returns:
            For each subject ``{"image": (C, *spatial) float32, "label": (1, *spatial) int16}``, the image from 0 to
            about 1: MetaTensors with an RAS+ affine in mm and ``synthetic=True`` and ``provenance`` in their meta.

        Raises:
            MedgenError: a bad argument, or a model that fills holes.
        """
        if self.spec.task == "inpaint":
            raise MedgenError(f"{self.spec.name}: this model fills holes and has nothing to sample alone. Use inpaint.")
        check_count("sample", "n", n)
        settings = self.settings(sampler, num_inference_steps, guidance_scale)
        return [
            self._subject(seed + i, label, settings, functools.partial(callback, i) if callback else None)
            for i in range(n)
        ]

    def settings(
        self, sampler: str | None = None, num_inference_steps: int | None = None, guidance_scale: float | None = None
    ) -> dict[str, Any]:
        """The sampling settings of a run, defaults filled in and checked."""
        default = self.spec.sampling
        chosen = sampler or default.sampler
        check_choice("sample", "sampler", chosen, SAMPLERS)
        steps = default.num_inference_steps if num_inference_steps is None else num_inference_steps
        check_count("sample", "num_inference_steps", steps)
        scale = default.guidance_scale if guidance_scale is None else guidance_scale
        if scale != 1.0 and not self.spec.label_dropout:
            raise MedgenError(
                f"{self.spec.name}: guidance_scale must be 1, the model was trained without label dropout. Got {scale}."
            )
        return {"sampler": chosen, "num_inference_steps": int(steps), "guidance_scale": float(scale)}

    def diffuse(
        self,
        given: Given,
        stream_seed: int,
        settings: dict[str, Any],
        *,
        without: Given | None = None,
        callback: Callable[[int], None] | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """One run of the sampler: noise to image (and label).

        Args:
            given: what is known of the one image.
            stream_seed: seed of this sample's only random stream.
            settings: see :meth:`settings`.
            without: the same without the label, for guidance.
            callback: called with each finished step.
        """
        streams = generators([stream_seed])
        default = self.spec.sampling
        sigmas = default.sigmas(settings["num_inference_steps"])
        factor = 2 if self.spec.packing == "haar" else 1
        shape = (self.spec.diffused_channels, *(n // factor for n in given.size))
        told = {"concat": given.condition.to(self.device)}
        denoise: Any = functools.partial(self.denoiser, conditioning=told)
        if without is not None and settings["guidance_scale"] != 1.0:
            null = {"concat": without.condition.to(self.device)}
            interval = default.guidance_interval or (0.0, float("inf"))
            denoise = ClassifierFreeGuidance(self.denoiser, told, null, settings["guidance_scale"], interval)
        x = randn(shape, streams, device=self.device) * sigmas[0].item()
        report = (lambda step, *_: callback(step)) if callback else None
        options = default.sampler_options if settings["sampler"] == default.sampler else {}
        with torch.no_grad(), at_most_threads(2, self.device):
            z = SAMPLERS[settings["sampler"]](denoise, x, sigmas, generators=streams, callback=report, **options)
        return self.codec.decode(z.float(), given)

    def mean(self, given: Given, stream_seeds: Sequence[int]) -> Tensor:
        """The expected image given the conditioning alone: the denoiser at ``sigma_max``.

        ``E[x0 | x, c]`` tends to ``E[x0 | c]`` as sigma grows; what little the noise still says is averaged over a few
        draws. What it adds to the reference is scaled by ``sampling.mean_weight``.

        Args:
            given: what is known of the one image.
            stream_seeds: one seed per draw.

        Returns:
            ``(1, C, *size)`` in 0..1, on the CPU.
        """
        factor = 2 if self.spec.packing == "haar" else 1
        shape = (self.spec.diffused_channels, *(n // factor for n in given.size))
        sigma = torch.tensor([self.spec.sampling.sigma_max], dtype=torch.float64)
        told = {"concat": given.condition.to(self.device)}
        total = torch.zeros(1, *shape)
        with torch.no_grad(), at_most_threads(2, self.device):
            for stream in generators(stream_seeds):
                x = randn(shape, [stream], device=self.device) * sigma.item()
                total += self.denoiser(x, sigma, told).cpu()
        made = self.codec.decode(total / len(stream_seeds), given)[0]
        return given.center + self.spec.sampling.mean_weight * (made - given.center)

    def _subject(
        self, seed: int, label: MetaTensor | None, settings: dict[str, Any], callback: Callable[[int], None] | None
    ) -> dict[str, MetaTensor]:
        label = label if label is not None else self._own_label(seed)
        size = tuple(label.shape[1:]) if label is not None else self.spec.grid.size
        self._check_size(size)
        if label is not None:
            self._check_affine(label)
            given = self.codec.given_label(label.as_tensor()[None])
            without = self.codec.given_nothing(size) if self.spec.label_dropout else None
        else:
            given, without = self.codec.given_nothing(size), None
        image, made = self.diffuse(given, derive_seed(seed, "sample"), settings, without=without, callback=callback)
        affine = label.affine if label is not None else self._affine()
        meta = {"synthetic": True, "provenance": self.provenance(seed, settings)}
        result = {"image": MetaTensor(image[0].cpu().clamp(min=0), affine=affine, meta=dict(meta))}
        final = label.as_tensor().to(torch.int16) if label is not None else made[0].cpu() if made is not None else None
        if final is not None:
            result["label"] = MetaTensor(final.cpu(), affine=affine, meta=dict(meta))
        return result

    def _own_label(self, seed: int) -> MetaTensor | None:
        source = self.spec.label_source
        if source is None:
            if self.spec.task == "joint":
                return None
            raise MedgenError(f"{self.spec.name}: the model needs a label map. Pass label=... (--label FILE).")
        from medgen.anatomy.population import Population

        made: MetaTensor = Population(**source["population"]).label(derive_seed(seed, "anatomy"))
        return made

    def _check_size(self, size: tuple[int, ...]) -> None:
        if len(size) != self.spec.spatial_dims or any(n % self.multiple or n < self.multiple for n in size):
            raise MedgenError(
                f"{self.spec.name}: label must have {self.spec.spatial_dims} spatial axes, each a multiple of "
                f"{self.multiple}. Got {size}. Bring it there with medgen.geometry.ModelGrid."
            )

    def _check_affine(self, label: MetaTensor) -> None:
        if not isinstance(label, MetaTensor):
            raise MedgenError(
                f"{self.spec.name}: label must be a MetaTensor, which says where it lies. Got {type(label).__name__}. "
                "Read it with medgen.io or wrap it: MetaTensor(ids, affine=...)."
            )
        wanted, found = np.diag([*self.spec.grid.spacing]), np.asarray(label.affine, dtype=np.float64)[:3, :3]
        if self.spec.spatial_dims == 3 and not np.allclose(found, wanted, atol=1e-3):
            raise MedgenError(
                f"{self.spec.name}: label must have RAS+ axes and spacing {list(self.spec.grid.spacing)} mm. Got the "
                f"affine {found.round(3).tolist()}. Bring it there with medgen.geometry.ModelGrid."
            )

    def _affine(self) -> Tensor:
        """Model grid with its centre at the origin, RAS+ mm."""
        spacing = np.array([*self.spec.grid.spacing, *[1.0] * (3 - self.spec.spatial_dims)])
        size = np.array([*self.spec.grid.size, *[1] * (3 - self.spec.spatial_dims)])
        affine = np.diag([*spacing, 1.0])
        affine[:3, 3] = -spacing * (size - 1) / 2
        return torch.from_numpy(affine)

    def provenance(self, seed: int, settings: dict[str, Any]) -> dict[str, Any]:
        """What made a sample: enough to make it again, and nothing about when or where."""
        return {
            "synthetic": True,
            "model": self.spec.name,
            "model_version": self.spec.version,
            "model_sha256": self.hash,
            "seed": seed,
            **settings,
            "schedule": self.spec.sampling.schedule,
            "device": self.device.type,
            "versions": {"medgen": medgen.__version__, "torch": torch.__version__, "python": platform.python_version()},
        }
