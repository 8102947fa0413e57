"""Diffusion training on MONAI's engine: batch, noise and noise level of step k are functions of seed, k and item."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import torch
from monai.engines import SupervisedTrainer
from monai.utils.enums import CommonKeys
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader

from medgen.checks import MedgenError
from medgen.diffusion.denoiser import Preconditioned
from medgen.diffusion.losses import denoising_loss, lognormal_sigmas
from medgen.diffusion.randomness import derive_seed, generators, randn
from medgen.models.codec import Codec
from medgen.trainers.checkpoint import TrainerState
from medgen.trainers.config import Optimisation, TrainConfig

KNOWN_WEIGHT = 0.05
LEAST_SHARE = 1e-3


class Ema:
    """Exponential moving average of a network's weights (Karras et al. 2022, section 5; warm-up as in TensorFlow's).

    Args:
        network: whose weights are averaged.
        decay: of the average, reached as ``min(decay, (1 + k) / (10 + k))`` at update ``k``.
    """

    def __init__(self, network: torch.nn.Module, decay: float) -> None:
        self.decay = decay
        self.network = copy.deepcopy(network).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, network: torch.nn.Module, step: int) -> None:
        """Move the average towards ``network`` after optimiser step ``step`` (from 0)."""
        weight = 1 - min(self.decay, (1 + step) / (10 + step))
        own: list[Tensor] = list(self.network.parameters())
        new: list[Tensor] = list(network.parameters())
        torch._foreach_lerp_(own, new, weight)
        for buffer, latest in zip(self.network.buffers(), network.buffers(), strict=True):
            buffer.copy_(latest)


def learning_rate(step: int, steps: int, settings: Optimisation) -> float:
    """Linear warm-up, then a cosine to zero at ``steps``; a function of the step alone, so that resuming is exact."""
    rise = min(1.0, (step + 1) / max(1, settings.warmup_steps))
    return settings.learning_rate * rise * 0.5 * (1 + math.cos(math.pi * min(1.0, step / steps)))


def channel_weight(std: Sequence[float], balance: float, dims: int) -> Tensor:
    """Weight ``(1, C, 1, ...)`` of each channel in the loss: ``std ** balance`` over its mean."""
    weight = torch.tensor(std, dtype=torch.float32) ** balance
    return (weight / weight.mean()).reshape(1, -1, *[1] * dims)


def not_finite(step: int, what: str, value: object) -> MedgenError:
    """The error of a run whose numbers have run away."""
    return MedgenError(
        f"training stopped: {what} of step {step}: {value}. The last good checkpoint is kept. Resume it with a lower "
        "optimisation#learning_rate, or look for unusual values in the data."
    )


def precision_type(precision: str, device: torch.device) -> torch.dtype:
    """The floating type of ``auto | fp32 | bf16 | fp16`` on a device.

    Raises:
        MedgenError: half precision on a CPU, where it is many times slower.
    """
    if device.type != "cuda":
        if precision in ("bf16", "fp16"):
            raise MedgenError(
                f"precision '{precision}' needs a CUDA GPU; on {device.type} it is slower. Use precision=fp32."
            )
        return torch.float32
    if precision == "auto":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]


class DiffusionTrainer(SupervisedTrainer):
    """Trains a denoiser; everything random is drawn from ``(seed, item)``.

    Args:
        config: of the run.
        codec: from items to what is diffused.
        denoiser: in training, on ``device``.
        loader: batches of :class:`~medgen.trainers.data.Items` from step ``start`` on.
        device: where to train.
        start: steps done before.
    """

    def __init__(
        self,
        config: TrainConfig,
        codec: Codec,
        denoiser: Preconditioned,
        loader: DataLoader[Any],
        device: torch.device,
        start: int = 0,
    ) -> None:
        settings = config.optimisation
        optimizer = torch.optim.AdamW(
            denoiser.parameters(),
            lr=settings.learning_rate,
            betas=(settings.betas[0], settings.betas[1]),
            weight_decay=settings.weight_decay,
        )
        super().__init__(
            device=device,
            max_epochs=1,
            train_data_loader=loader,
            network=denoiser,
            optimizer=optimizer,
            loss_function=denoising_loss,
            epoch_length=config.steps - start,
            decollate=False,
        )
        self.config = config
        self.codec = codec
        self.start = start
        self.ema = Ema(denoiser.network, settings.ema_decay)
        self.channel_weight = channel_weight(codec.spec.channel_std, config.channel_balance, len(config.grid.size))
        self.channel_weight = self.channel_weight.to(device)
        self.dtype = precision_type(config.precision, device)
        self.gradient_scaler = torch.amp.GradScaler("cuda", enabled=self.dtype is torch.float16)

    @property
    def steps_done(self) -> int:
        """Optimiser steps since the very beginning, earlier runs counted in."""
        return self.start + int(self.state.iteration)

    def state_dict_of_run(self) -> TrainerState:
        """All that a continuation needs."""
        return {
            "step": self.steps_done,
            "network": self.network.network.state_dict(),
            "ema": self.ema.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "gradient_scaler": self.gradient_scaler.state_dict(),
        }

    def load_state_dict_of_run(self, state: TrainerState) -> None:
        """Continue from :meth:`state_dict_of_run`."""
        self.network.network.load_state_dict(state["network"])
        self.ema.network.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.gradient_scaler.load_state_dict(state["gradient_scaler"])

    def _iteration(self, engine: SupervisedTrainer, batchdata: dict[str, Tensor]) -> dict[str, Any]:
        step = self.steps_done - 1
        x0, conditioning, noise, sigma, weight = self.prepare(batchdata)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(step, self.config.steps, self.config.optimisation)
        self.network.train()
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.state.device.type, dtype=self.dtype, enabled=self.dtype is not torch.float32):
            losses = denoising_loss(
                self.network,
                x0,
                noise,
                sigma,
                conditioning,
                weighting=self.config.weighting,
                voxel_weight=self.channel_weight * weight,
            )
        loss = losses.mean()
        if not torch.isfinite(loss):
            raise not_finite(step + 1, "loss", loss.item())
        self.gradient_scaler.scale(loss).backward()
        self.gradient_scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.config.optimisation.clip_norm)
        if not torch.isfinite(norm) and not self.gradient_scaler.is_enabled():
            raise not_finite(step + 1, "gradient", norm.item())
        self.gradient_scaler.step(self.optimizer)
        self.gradient_scaler.update()
        self.ema.update(self.network.network, step)
        return {CommonKeys.LOSS: loss.item(), "gradient_norm": norm.item(), "learning_rate": group["lr"]}

    def prepare(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor], Tensor, Tensor, Tensor]:
        """Clean samples, conditioning, noise ``(B, C, *packed)``, levels ``(B,)``, weights ``(B, 1, *packed)``.

        All but the result is computed on the CPU; it is moved to the device at the end.
        """
        config = self.config
        seeds = [derive_seed(config.seed, "noise", index) for index in batch["index"].tolist()]
        streams = generators(seeds)
        sigma = lognormal_sigmas(streams, config.noise_levels.mean, config.noise_levels.std)
        draws = torch.stack([torch.rand(2, generator=s, dtype=torch.float64) for s in streams])
        top = torch.full_like(sigma, config.sampling.sigma_max)
        sigma = torch.where(draws[:, 0] < config.noise_levels.at_maximum, top, sigma)
        if config.task == "inpaint":
            given = self.codec.given_hole(batch["image"], batch["inpaint_mask"])
        else:
            given = self.codec.given_label(batch["label"], draws[:, 1] >= config.label_dropout)
        x0 = self.codec.encode(batch["image"], given, batch.get("label"))
        noise = randn(x0.shape[1:], streams)
        weight = torch.ones(len(x0), 1, *x0.shape[2:])
        if config.task == "inpaint":
            weight = hole_weight(batch["inpaint_mask"], x0.shape[2:])
        elif config.label_balance:
            weight = label_weight(self.codec.kind(batch["label"]), config.label_balance, x0.shape[2:])
        device = self.state.device
        told = {"concat": given.condition.to(device)}
        return x0.to(device), told, noise.to(device), sigma, weight.to(device)


def packed_mask(inpaint_mask: Tensor, size: Sequence[int]) -> Tensor:
    """Which packed voxels hold a voxel of the hole.

    Args:
        inpaint_mask: ``(B, 1, *spatial)`` float, 1 in the hole.
        size: packed voxels per axis, 2D or 3D.

    Returns:
        ``(B, 1, *size)`` float, 1 where a voxel of the hole is packed.
    """
    pool = F.adaptive_max_pool2d if len(size) == 2 else F.adaptive_max_pool3d
    return pool(inpaint_mask, list(size))


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


def label_weight(kind: Tensor, balance: float, size: Sequence[int]) -> Tensor:
    """Weight of each packed voxel in the loss: small labels count as much as large ones with ``balance`` 1.

    Args:
        kind: ``(B, 1, *spatial)`` int64, see :meth:`medgen.models.codec.Codec.kind`.
        balance: a label's voxels weigh ``share ** -balance``, its share of the item at least ``LEAST_SHARE``.
        size: packed voxels per axis, 2D or 3D.

    Returns:
        ``(B, 1, *size)``: the mean over the voxels packed together, over that of the item.
    """
    share = torch.stack([torch.bincount(k.flatten(), minlength=int(kind.max()) + 1) / k.numel() for k in kind])
    table = share.clamp(min=LEAST_SHARE) ** -balance
    each = torch.stack([t[k] for t, k in zip(table, kind, strict=True)])
    weight = F.interpolate(each, size=list(size), mode="area")
    return weight / weight.flatten(1).mean(1).reshape(-1, *[1] * (weight.ndim - 1))
