"""A trained diffusion model, ready to sample."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from medgen.checks import MedgenError, check_choice, check_count
from medgen.diffusion.denoiser import Preconditioned, network_time
from medgen.diffusion.guidance import ClassifierFreeGuidance
from medgen.diffusion.randomness import derive_seed, generators, randn
from medgen.diffusion.samplers import SAMPLERS
from medgen.diffusion.timesteps import make_timesteps
from medgen.models.base import CONTROL_KEYS, Model, refuse_options
from medgen.models.codec import Codec, Given
from medgen.models.controls import null_conditions
from medgen.models.diffusion_spec import DiffusionSpec
from medgen.models.specification import nested_networks
from medgen.networks.threads import at_most_threads

OPTIONS = ("sampler", "num_inference_steps", "guidance_scale")


class DiffusionModel(Model[DiffusionSpec]):
    """Denoiser, sampler, and what lies around them: packing or autoencoder, controls, base model of a cascade."""

    def __init__(
        self, spec: DiffusionSpec, networks: Mapping[str, nn.Module], device: torch.device, hash: str = ""
    ) -> None:
        super().__init__(spec, networks, device, hash)
        self._codec = make_codec(spec, self.networks)
        self.denoiser = make_denoiser(spec, self.networks)
        self.base = (
            DiffusionModel(spec.base, inner_networks("base", spec.base, networks), device) if spec.base else None
        )

    @property
    def codec(self) -> Codec:
        return self._codec

    def settings(self, **options: Any) -> dict[str, Any]:
        """The sampling settings of a run, defaults filled in and checked.

        Args:
            options: ``sampler``, a name in ``SAMPLERS``; ``num_inference_steps``; ``guidance_scale`` of what is asked
                for (label and controls), 1 = off. None is the model's default.

        Raises:
            MedgenError: another option, or a bad value.
        """
        refuse_options(self.spec, options, OPTIONS)
        default = self.spec.sampling
        chosen = options.get("sampler") or default.sampler
        check_choice("sample", "sampler", chosen, SAMPLERS)
        steps = options.get("num_inference_steps")
        steps = default.num_inference_steps if steps is None else steps
        check_count("sample", "num_inference_steps", steps)
        scale = options.get("guidance_scale")
        scale = default.guidance_scale if scale is None else scale
        guided = (self.spec.told_label and self.spec.label_dropout) or (
            self.spec.controls and self.spec.control_dropout
        )
        if scale != 1.0 and not guided:
            raise MedgenError(
                f"{self.spec.name}: guidance_scale must be 1, the model was trained without label dropout or control "
                f"dropout. Got {scale}."
            )
        return {
            "sampler": chosen,
            "num_inference_steps": int(steps),
            "guidance_scale": float(scale),
            "schedule": default.schedule,
        }

    def produce(
        self,
        known: Mapping[str, Tensor],
        size: tuple[int, ...],
        seed: int,
        settings: Mapping[str, Any],
        callback: Callable[[int], None] | None = None,
    ) -> tuple[Tensor | None, Tensor | None]:
        batch = {key: value[None] for key, value in known.items()}
        if self.spec.task == "super_resolve" and "low_resolution" not in known:
            batch["low_resolution"] = self._low_resolution(known, size, seed)
        given = self.codec.given(batch, size)
        drops = self.spec.label_dropout and "label" in known
        without = self.codec.given_nothing(size) if drops and self.spec.told_label else None
        controls = {key: batch[key] for key in CONTROL_KEYS if key in batch}
        image, label = self.diffuse(given, seed, settings, without=without, controls=controls, callback=callback)
        return image if image is None else image[0], label if label is None else label[0]

    def _low_resolution(self, known: Mapping[str, Tensor], size: tuple[int, ...], seed: int) -> Tensor:
        """The low-resolution sample ``(1, C, *coarse)`` that the base model draws."""
        base = self.base
        if base is None:
            raise MedgenError(f"{self.spec.name}: no base model to draw a low-resolution sample. Give low_resolution.")
        ratio = [b / a for a, b in zip(self.spec.grid.spacing, base.spec.grid.spacing, strict=True)]
        coarse = tuple(round(n / r) for n, r in zip(size, ratio, strict=True))
        base.check_size(coarse)
        told = {key: value for key, value in known.items() if key in CONTROL_KEYS}
        image, label = base.produce(told, coarse, derive_seed(seed, "base"), base.settings())
        if image is None:
            raise MedgenError(f"{self.spec.name}: its base model makes no image. Train another one.")
        return base.codec.stack(image[None], None if label is None else label[None]).cpu()

    def conditioning(self, given: Given, controls: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """What the denoiser is told, on the device.

        Args:
            given: what the task gives.
            controls: ``classes``, ``numbers`` and ``text``, batched; left out, nothing is asked for.
        """
        return tell(self.spec, self.networks, given, controls, self.device)

    def diffuse(
        self,
        given: Given,
        stream_seed: int,
        settings: Mapping[str, Any],
        *,
        without: Given | None = None,
        controls: Mapping[str, Tensor] | None = None,
        callback: Callable[[int], None] | None = None,
    ) -> tuple[Tensor | None, Tensor | None]:
        """One run of the sampler: noise to image (and label).

        Args:
            given: what is known of the one image.
            stream_seed: seed of this sample's only random stream.
            settings: see :meth:`settings`.
            without: the same without the label, for guidance.
            controls: see :meth:`conditioning`.
            callback: called with each finished step.

        Returns:
            Image ``(1, C, *size)`` and label ``(1, 1, *size)``, where the task has them.
        """
        streams = generators([stream_seed])
        default = self.spec.sampling
        sigmas = default.sigmas(settings["num_inference_steps"])
        denoise = self.bound(given, settings, without=without, controls=controls)
        x = randn(self.shape(given), streams, device=self.device) * sigmas[0].item()
        report = (lambda step, *_: callback(step)) if callback else None
        options = default.sampler_options if settings["sampler"] == default.sampler else {}
        with torch.no_grad(), at_most_threads(2, self.device):
            z = SAMPLERS[settings["sampler"]](denoise, x, sigmas, generators=streams, callback=report, **options)
            return self.codec.decode(z.float(), given)

    def bound(
        self,
        given: Given,
        settings: Mapping[str, Any],
        *,
        without: Given | None = None,
        controls: Mapping[str, Tensor] | None = None,
    ) -> Callable[[Tensor, Tensor], Tensor]:
        """``denoise(x, sigma)`` with its conditioning and guidance; arguments as in :meth:`diffuse`."""
        told = self.conditioning(given, controls)
        guided = settings["guidance_scale"] != 1.0 and (without is not None or (controls and self.spec.control_dropout))
        if not guided:
            return functools.partial(self.denoiser, conditioning=told)
        interval = self.spec.sampling.guidance_interval or (0.0, float("inf"))
        null = self.conditioning(without or given, None if self.spec.control_dropout else controls)
        return ClassifierFreeGuidance(self.denoiser, told, null, settings["guidance_scale"], interval)

    def shape(self, given: Given) -> tuple[int, ...]:
        """Channels and voxels of what is diffused, without the batch."""
        return (self.spec.diffused_channels, *(n // self.spec.reduction for n in given.size))

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
        sigma = torch.tensor([self.spec.sampling.sigma_max], dtype=torch.float64)
        told = self.conditioning(given)
        shape = self.shape(given)
        total = torch.zeros(1, *shape, device=self.device)
        with torch.no_grad(), at_most_threads(2, self.device):
            for stream in generators(stream_seeds):
                x = randn(shape, [stream], device=self.device) * sigma.item()
                total += self.denoiser(x, sigma, told)
            made = self.codec.decode_stack(total / len(stream_seeds), given)[:, : self.spec.image_channels].cpu()
        return given.center + self.spec.sampling.mean_weight * (made - given.center)


def inner_networks(prefix: str, inner: Any, networks: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """The networks of a model inside another one, under their own names; see :func:`nested_networks`."""
    return {own: networks[outer] for own, outer in zip(inner.networks(), nested_networks(prefix, inner), strict=True)}


def make_codec(spec: DiffusionSpec, networks: Mapping[str, nn.Module]) -> Codec:
    """The codec of a model, with the autoencoder where it has one."""
    if spec.autoencoder is None:
        return Codec(spec)
    from medgen.models.autoencoder import LatentSpace

    inner = inner_networks("autoencoder", spec.autoencoder, networks)
    return Codec(spec, LatentSpace(spec.autoencoder, next(iter(inner.values()))))


def make_denoiser(spec: DiffusionSpec, networks: Mapping[str, nn.Module]) -> Preconditioned:
    """The denoiser of a model; with a control network, the frozen network steered by it."""
    network = networks["denoiser"]
    if spec.control_network is not None:
        from medgen.networks.control_unet import ControlledUNet

        network = ControlledUNet(network, networks["control"])
    times = network_time if spec.timesteps is None else make_timesteps(spec.timesteps)
    return Preconditioned(network, spec.prediction_type, spec.sigma_data, times)


def tell(
    spec: DiffusionSpec,
    networks: Mapping[str, nn.Module],
    given: Given,
    controls: Mapping[str, Tensor] | None,
    device: torch.device,
) -> dict[str, Tensor]:
    """The ``conditioning`` of a denoiser: ``concat`` and ``context``.

    Args:
        spec: of the model.
        networks: by name; ``controls`` embeds the controls.
        given: what the task gives.
        controls: ``classes``, ``numbers`` and ``text``, batched; what is left out is not asked for.
        device: where the networks are.
    """
    told: dict[str, Tensor] = {}
    if given.condition.shape[1]:
        told["concat"] = given.condition.to(device)
    if spec.controls:
        asked = null_conditions(spec.controls, len(given.condition)) | dict(controls or {})
        told["context"] = networks["controls"](**{key: value.to(device) for key, value in asked.items()})
    return told
