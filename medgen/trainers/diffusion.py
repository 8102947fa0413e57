"""Diffusion training: batch, noise and noise level of step k are functions of seed, k and item."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from medgen.checks import MedgenError
from medgen.diffusion.losses import denoising_loss, lognormal_sigmas
from medgen.diffusion.randomness import derive_seed, generators, randn
from medgen.models.base import CONTROL_KEYS, Model
from medgen.models.codec import Given, VoxelCodec, lowered
from medgen.models.diffusion_model import make_codec, make_denoiser, tell
from medgen.models.diffusion_spec import DEPTHS, DiffusionSpec, Shape
from medgen.models.specification import ModelSpec, nested_networks
from medgen.networks.control_unet import implied_control, start_from
from medgen.networks.registry import build_network
from medgen.trainers.base import RunTrainer, Statistics, adamw, shared_fields
from medgen.trainers.data import Source
from medgen.trainers.diffusion_config import DiffusionConfig
from medgen.trainers.ema import Ema
from medgen.trainers.statistics import drawn_items, measure_diffused, measure_labels, packed_mask
from medgen.trainers.text_warm_up import warm_up

MOST_PROMPTS = 4096

KNOWN_WEIGHT = 0.05
LEAST_SHARE = 1e-3


@dataclass(frozen=True)
class Prepared:
    """One batch as the loss takes it, on the device.

    Args:
        x0: clean samples ``(B, C, *diffused)``.
        given: what the task gives.
        noise: standard normal, shape of ``x0``.
        sigma: noise levels ``(B,)``.
        weight: of each voxel in the loss, ``(B, 1, *diffused)``.
        controls: ``classes``, ``numbers``, ``text``.
    """

    x0: Tensor
    given: Given
    noise: Tensor
    sigma: Tensor
    weight: Tensor
    controls: dict[str, Tensor]


class DiffusionTrainer(RunTrainer[DiffusionConfig, DiffusionSpec]):
    """Trains a denoiser on voxels, Haar packets or latents, or a control network on a frozen denoiser."""

    origin_fields: ClassVar[tuple[str, ...]] = (
        "task", "network", "prediction_type", "packing", "packing_levels", "label_channels", "label_dropout",
        "label_encoding", "label_distance_mm", "reference", "correlation_mm",
    )  # fmt: skip
    measured_fields: ClassVar[tuple[str, ...]] = ("channel_mean", "channel_std", "label_intensities")

    def __init__(
        self,
        config: DiffusionConfig,
        spec: DiffusionSpec,
        networks: Mapping[str, nn.Module],
        loader: DataLoader[Any],
        device: torch.device,
        start: int = 0,
    ) -> None:
        super().__init__(config, spec, networks, loader, device, start)
        self.denoiser = make_denoiser(spec, self.networks)
        self.codec = make_codec(spec, self.networks)
        trained = self.trained_networks(spec)
        for name, network in self.networks.items():
            network.requires_grad_(name in trained)
        self.trained = [name for name in self.networks if name in trained]
        self.parameters = [p for name in self.trained for p in self.networks[name].parameters()]
        if config.text_warm_up and not start and not config.start_from and "controls" in self.trained:
            prompts, answers = loader.dataset.source.conditions.said(  # type: ignore[attr-defined]  # of medgen's Items
                MOST_PROMPTS, derive_seed(config.seed, "said")
            )
            warm_up(self.networks["controls"], prompts, answers, config.text_warm_up, config.seed)
        self.optimizers = {"denoiser": adamw(config, self.parameters)}
        self.ema = {name: Ema(self.networks[name], config.optimisation.ema_decay) for name in self.trained}
        weight = channel_weight(spec.channel_std, config.channel_balance, spec.spatial_dims)
        self.channel_weight = weight.to(device)

    @classmethod
    def trained_networks(cls, spec: DiffusionSpec) -> set[str]:
        """Names of the networks that learn; the others are frozen."""
        if spec.control_network is not None:
            return {"control"}  # what embeds the controls belongs to the frozen network
        return {"denoiser", "controls"}

    @classmethod
    def measure(cls, config: DiffusionConfig, source: Source, first: Model[Any] | None = None) -> dict[str, Any]:
        found = super().measure(config, source, first)
        if config.control_net is not None and first is not None:
            return found | {name: getattr(first.spec, name) for name in cls.measured_fields}
        first_spec = first.spec if first is not None else None
        if config.reference == "label_means":
            plain = VoxelCodec(cls.make_spec(config, source.people, found, first_spec))
            found["label_intensities"] = measure_labels(plain, drawn_items(config, source))
        spec = cls.make_spec(config, source.people, found, first_spec)
        latent = nested_networks("autoencoder", spec.autoencoder) if spec.autoencoder is not None else {}
        inner = dict(zip(latent, first.networks.values(), strict=True)) if first is not None and latent else {}
        mean, std = measure_diffused(config, source, make_codec(spec, inner))
        return found | {"channel_mean": mean, "channel_std": std}

    @classmethod
    def make_spec(
        cls,
        config: DiffusionConfig,
        people: int,
        statistics: Statistics | None = None,
        first: ModelSpec | None = None,
    ) -> DiffusionSpec:
        figures = dict(statistics or {})
        shared = shared_fields(config, people, figures) | cls._own_fields(config) | cls._from_first(config, first)
        autoencoder = shared.get("autoencoder")
        shape = Shape(
            config.task, len(config.grid.size), config.image_channels, len(config.label_channels),
            len(config.source_modalities), config.label_dropout,
            autoencoder.downsampling if autoencoder else 2**config.packing_levels if config.packing == "haar" else 1,
            autoencoder.latent_channels if autoencoder else 0,
        )  # fmt: skip
        if config.control_net is not None:
            shared["control_network"] = complete_control(config, shared["network"], shape)
        else:
            shared["network"] = complete_network(config, shape)
        plain = [((0.0, 1.0),) * DEPTHS] * (1 + len(config.label_channels)) if config.reference == "label_means" else []
        diffused = shape.diffused
        spec = DiffusionSpec(
            **shared,
            channel_mean=tuple(figures.get("channel_mean") or [0.0] * diffused),
            channel_std=tuple(figures.get("channel_std") or [1.0] * diffused),
            label_intensities=tuple(tuple(label) for label in figures.get("label_intensities") or plain),
        )
        with torch.random.fork_rng(devices=[]):
            for form in spec.networks().values():
                build_network(form, config.name)  # wrong arguments are refused here, before anything is trained
        return spec

    @classmethod
    def _own_fields(cls, config: DiffusionConfig) -> dict[str, Any]:
        names = (
            "sampling", "prediction_type", "packing", "packing_levels", "label_dropout", "reference", "correlation_mm"
        )  # fmt: skip
        return {name: getattr(config, name) for name in names}

    @classmethod
    def _from_first(cls, config: DiffusionConfig, first: ModelSpec | None) -> dict[str, Any]:
        """Fields that the first stage brings: an autoencoder, the base of a cascade, or the network to steer."""
        if first is None:
            if config.first_stage or config.first_stage_model:
                raise MedgenError(
                    f"{config.name}: the first stage is missing. Train it, or set first_stage_model=PATH."
                )
            if config.task == "super_resolve" or config.control_net is not None:
                raise MedgenError(f"{config.name}: field 'first_stage' is empty: say what this model builds on.")
            return {}
        if first.family == "autoencoder":
            return {"autoencoder": first, "packing": "none"}
        if not isinstance(first, DiffusionSpec):
            raise MedgenError(f"{config.name}: the first stage is of family '{first.family}'. Give a diffusion model.")
        if config.task == "super_resolve":
            return {"base": first}
        if config.control_net is None:
            raise MedgenError(f"{config.name}: a diffusion model as first stage needs 'control_net', or super_resolve.")
        if first.condition_channels:
            raise MedgenError(
                f"{config.name}: '{first.name}' is told something already ({first.condition_channels} channels); "
                "a control network steers a model of task 'image', or 'joint' with label_dropout 1."
            )
        kept = ("network", "prediction_type", "packing", "packing_levels", "sigma_data", "autoencoder")
        fields = {name: getattr(first, name) for name in kept}
        if first.controls:
            fields |= {"controls": first.controls, "control_encoder": first.control_encoder}
        return fields

    @classmethod
    def build(
        cls, config: DiffusionConfig, spec: DiffusionSpec, first: Model[Any] | None = None
    ) -> dict[str, nn.Module]:
        networks = super().build(config, spec, first)
        if first is None:
            return networks
        if spec.control_network is not None:
            for name, network in first.networks.items():
                networks[name].load_state_dict(network.state_dict())
            start_from(networks["control"], networks["denoiser"])
            return networks
        prefix = "base" if spec.base is not None else "autoencoder"
        for outer, network in zip(nested_networks(prefix, first.spec), first.networks.values(), strict=True):
            networks[outer].load_state_dict(network.state_dict())
        return networks

    def train_step(self, batch: dict[str, Tensor], step: int) -> dict[str, float]:
        item = self.prepare(batch)
        for name, network in self.networks.items():
            network.train(name in self.trained)
        with self.autocast():
            losses = denoising_loss(
                self.denoiser,
                item.x0,
                item.noise,
                item.sigma,
                tell(self.spec, self.networks, item.given, item.controls, self.device),
                weighting=self.config.weighting,
                voxel_weight=self.channel_weight * item.weight,
            )
        loss = losses.mean()
        norm = self.optimise("denoiser", loss, self.parameters, step)
        for name, ema in self.ema.items():
            ema.update(self.networks[name], step)
        return {"loss": loss.item(), "gradient_norm": norm.item(), "learning_rate": self.learning_rate(step)}

    def prepare(self, batch: dict[str, Tensor]) -> Prepared:
        """Everything a step needs, drawn and computed on the CPU (but for latents) and moved to the device."""
        config = self.config
        streams = generators([derive_seed(config.seed, "noise", index) for index in batch["index"].tolist()])
        sigma = lognormal_sigmas(streams, config.noise_levels.mean, config.noise_levels.std)
        draws = torch.stack([torch.rand(2, generator=s, dtype=torch.float64) for s in streams])
        top = torch.full_like(sigma, config.sampling.sigma_max)
        sigma = torch.where(draws[:, 0] < config.noise_levels.at_maximum, top, sigma)
        size = tuple(batch["image" if "image" in batch else "label"].shape[2:])
        known = dict(batch)
        if self.spec.base is not None:
            known["low_resolution"] = self._low_resolution(batch, size, streams)
        given = self.codec.given(known, size, draws[:, 1] >= config.label_dropout)
        x0 = self.codec.encode(batch.get("image"), given, batch.get("label"))
        noise = randn(x0.shape[1:], streams)
        weight = torch.ones(len(x0), 1, *x0.shape[2:])
        if config.task == "inpaint":
            weight = hole_weight(batch["inpaint_mask"], x0.shape[2:])
        elif config.label_balance:
            kind = self.codec.kind(batch["label"])
            weight = label_weight(kind, config.label_balance, x0.shape[2:], config.label_balance_by)
        device = self.device
        controls = {key: batch[key].to(device) for key in CONTROL_KEYS if key in batch}
        return Prepared(x0.to(device), given, noise.to(device), sigma, weight.to(device), controls)

    def _low_resolution(
        self, batch: dict[str, Tensor], size: Sequence[int], streams: Sequence[torch.Generator]
    ) -> Tensor:
        """Low-resolution samples of the batch as the base would draw them, with a little noise."""
        base = self.spec.base
        if base is None:
            raise MedgenError(f"{self.spec.name}: no base model. Set first_stage.")
        ratio = [b / a for a, b in zip(self.spec.grid.spacing, base.grid.spacing, strict=True)]
        coarse = [round(n / r) for n, r in zip(size, ratio, strict=True)]
        low = lowered(VoxelCodec(base), batch["image"], batch.get("label"), coarse)
        return low + self.config.low_resolution_noise * randn(low.shape[1:], streams)


def complete_network(config: DiffusionConfig, shape: Shape) -> dict[str, Any]:
    """``config.net`` with ``spatial_dims`` and the channels that task and packing imply.

    Raises:
        MedgenError: it says otherwise.
    """
    net = config.net or {}
    channels = {"spatial_dims": shape.dims, "in_channels": shape.diffused, "out_channels": shape.diffused}
    if net["_target_"] == "ConditionalUNet":
        channels["condition_channels"] = shape.condition
        if config.controls:
            channels["context_dim"] = config.context_dim
    else:
        channels["in_channels"] = shape.diffused + shape.condition
        if config.controls:
            channels |= {"with_conditioning": True, "cross_attention_dim": config.context_dim}
    return _filled(config, "net", net, channels)


def complete_control(config: DiffusionConfig, network: Mapping[str, Any], shape: Shape) -> dict[str, Any]:
    """``config.control_net`` with what it shares with the network it steers, and the channels of what it is given."""
    form = config.control_net or {}
    return _filled(config, "control_net", form, implied_control(form["_target_"], network, shape.condition))


def _filled(config: DiffusionConfig, field: str, form: Mapping[str, Any], implied: Mapping[str, Any]) -> dict[str, Any]:
    for key, value in implied.items():
        if form.get(key, value) != value:
            raise MedgenError(f"field '{field}.{key}' must be {value} for this task. Got {form[key]}. Leave it out.")
    return {**form, **implied}


def channel_weight(std: Sequence[float], balance: float, dims: int) -> Tensor:
    """Weight ``(1, C, 1, ...)`` of each channel in the loss: ``std ** balance`` over its mean."""
    weight = torch.tensor(std, dtype=torch.float32) ** balance
    return (weight / weight.mean()).reshape(1, -1, *[1] * dims)


def hole_weight(inpaint_mask: Tensor, size: Sequence[int]) -> Tensor:
    """Weight of each packed voxel in the loss: mean 1 in each item, in the hole 21 times that outside.

    Args:
        inpaint_mask: ``(B, 1, *spatial)`` float, 1 in the hole.
        size: packed voxels per axis, 2D or 3D.

    Returns:
        ``(B, 1, *size)``: ``1 + KNOWN_WEIGHT`` in the hole and ``KNOWN_WEIGHT`` outside, over their mean.
    """
    weight = packed_mask(inpaint_mask, size) + KNOWN_WEIGHT
    return weight / weight.flatten(1).mean(1).reshape(-1, *[1] * (weight.ndim - 1))


def label_weight(kind: Tensor, balance: float, size: Sequence[int], by: str = "label") -> Tensor:
    """Weight of each packed voxel in the loss: small labels count as much as large ones with ``balance`` 1.

    Args:
        kind: ``(B, 1, *spatial)`` int64, see :meth:`medgen.models.codec.Codec.kind`.
        balance: a label's voxels weigh ``share ** -balance``, its share of the item at least ``LEAST_SHARE``.
        size: packed voxels per axis, 2D or 3D.
        by: ``label``, or ``piece``: what a label weighs is then shared out anew among its connected pieces, see
            :func:`shared_out`.

    Returns:
        ``(B, 1, *size)``: the mean over the voxels packed together, over that of the item.
    """
    each = torch.stack([_shares(k) ** -balance for k in kind])
    if by == "piece":
        each = torch.stack([shared_out(w, k, balance) for w, k in zip(each, kind, strict=True)])
    weight = F.interpolate(each, size=list(size), mode="area")
    return weight / weight.flatten(1).mean(1).reshape(-1, *[1] * (weight.ndim - 1))


def _shares(parts: Tensor) -> Tensor:
    """Share of the item that each voxel's part has, at least ``LEAST_SHARE``; ``parts`` int64 of any shape."""
    return (torch.bincount(parts.flatten()) / parts.numel()).clamp(min=LEAST_SHARE)[parts]


def shared_out(weight: Tensor, kind: Tensor, balance: float) -> Tensor:
    """``weight`` with that of each label shared out among its connected pieces, diagonals joining.

    Args:
        weight: ``(1, *spatial)`` float32.
        kind: ``(1, *spatial)`` int64, 0 for the background, which stays as it is.
        balance: voxels of a piece weigh its ``share ** -balance``, over the mean of the label.
    """
    done = weight.clone()
    for label in torch.unique(kind[kind > 0]).tolist():
        mask = kind == label
        numbers, _ = ndimage.label(mask.numpy(), np.ones([3] * kind.ndim))
        own = _shares(torch.from_numpy(numbers).long())[mask] ** -balance
        done[mask] = weight[mask] * own / own.mean()
    return done
