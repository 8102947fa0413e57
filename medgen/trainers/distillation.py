"""Distillation of a trained diffusion model, the teacher, into a student that samples in a few steps."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from medgen.checks import MedgenError
from medgen.diffusion.denoiser import Preconditioned
from medgen.diffusion.distillation import (
    Denoise,
    distillation_levels,
    draw_above,
    draw_level,
    end_target,
    flow_between,
    log_variogram,
    next_target,
    pseudo_huber,
)
from medgen.diffusion.randomness import derive_seed, generators, randn
from medgen.models.base import Model
from medgen.models.diffusion_model import make_denoiser, tell
from medgen.models.diffusion_spec import DiffusionSpec
from medgen.models.fields import checked, choice, integer, number, refuse
from medgen.models.specification import ModelSpec
from medgen.trainers.base import Statistics, shared_fields
from medgen.trainers.config import TrainConfig
from medgen.trainers.data import Source
from medgen.trainers.diffusion import DiffusionTrainer
from medgen.trainers.diffusion_config import DiffusionConfig

SAME = ("task", "grid", "label_channels", "label_encoding", "source_modalities")
OWN = (
    "name", "version", "licence", "authors", "copyright", "description", "intended_use", "intensity", "body_part",
    "modality", "training",
)  # fmt: skip
VARIOGRAM_SCALE = 0.1
JUMPS = {"last": "dpmpp_2m", "next": "ddim", "end": "consistency"}
KEEP_EVERY = 4


@dataclass(frozen=True, kw_only=True)
class DistillationConfig(DiffusionConfig):
    """Training of a student with the network of its teacher, the first stage.

    ``sampling`` is the student's: its few steps, and the levels between which it jumps. What is not named here has the
    same meaning as for a diffusion model; the network is the teacher's, ``net`` stays empty.

    Args:
        jump: what the student learns, ``last`` (sampler ``dpmpp_2m``), ``next`` (``ddim``) or ``end``
            (``consistency``); see :mod:`medgen.diffusion.distillation`.
        teacher_steps: evaluations of the teacher from one level of the student to the next.
        flow_end: noise level at which the teacher's flow ends, below ``sampling.sigma_min``.
        huber_scale: error above which the loss grows linearly.
        variogram_weight: of the loss that keeps the student's final answers as rough as the data, see
            :func:`~medgen.diffusion.distillation.log_variogram`; 0 leaves it out.

    Raises:
        MedgenError: a field fails its check, or two fields contradict each other.
    """

    jump: str = checked(choice(lambda: JUMPS), default="last")
    teacher_steps: int = checked(integer(1, 1000), default=3)
    flow_end: float = checked(number(0, 1e4, above=True), default=0.03)
    huber_scale: float = checked(number(0, 100, above=True), default=0.3)
    variogram_weight: float = checked(number(0, 100), default=0.05)

    def __post_init__(self) -> None:
        TrainConfig.__post_init__(self)  # not DiffusionConfig's, which asks for a network
        if self.net is not None or self.control_net is not None:
            raise refuse("TrainConfig", "net", "empty: a student has its teacher's network", self.net)
        if not (self.first_stage or self.first_stage_model):
            raise MedgenError("TrainConfig: field 'first_stage' must name the teacher's configuration, or set "
                              "first_stage_model=PATH. Add one.")  # fmt: skip
        wanted = {"sampler": JUMPS[self.jump], "schedule": "logsnr"}
        for name, value in wanted.items():
            if getattr(self.sampling, name) != value:
                found = getattr(self.sampling, name)
                raise refuse("TrainConfig", f"sampling.{name}", f"{value} with jump '{self.jump}'", found)
        if self.flow_end >= self.sampling.sigma_min:
            raise refuse(
                "TrainConfig", "flow_end", f"below sampling.sigma_min ({self.sampling.sigma_min:g})", self.flow_end
            )


class DistillationTrainer(DiffusionTrainer):
    """Trains a student to jump to the end of its teacher's probability flow from each of a few noise levels."""

    config: DistillationConfig
    origin_fields: ClassVar[tuple[str, ...]] = DiffusionTrainer.origin_fields

    def __init__(
        self,
        config: DistillationConfig,
        spec: DiffusionSpec,
        networks: Mapping[str, nn.Module],
        loader: DataLoader[Any],
        device: torch.device,
        start: int = 0,
    ) -> None:
        super().__init__(config, spec, networks, loader, device, start)
        self.teacher = make_denoiser(spec, {**self.networks, "denoiser": self.networks["teacher"]})
        self.average = make_denoiser(spec, {**self.networks, "denoiser": self.ema["denoiser"].network})
        sampling = config.sampling
        self.levels = distillation_levels(
            sampling.num_inference_steps, sampling.sigma_min, sampling.sigma_max, config.flow_end
        )

    @classmethod
    def trained_networks(cls, spec: DiffusionSpec) -> set[str]:
        return {"denoiser"}  # what embeds the controls stays the teacher's

    @classmethod
    def measure(cls, config: DiffusionConfig, source: Source, first: Model[Any] | None = None) -> dict[str, Any]:
        return {}  # all figures are the teacher's

    @classmethod
    def make_spec(
        cls,
        config: DiffusionConfig,
        people: int,
        statistics: Statistics | None = None,
        first: ModelSpec | None = None,
    ) -> DiffusionSpec:
        if not isinstance(first, DiffusionSpec) or first.control_network is not None or first.base is not None:
            found = "none" if first is None else f"family '{first.family}'"
            raise MedgenError(
                f"{config.name}: the teacher (first_stage) must be a diffusion model without control network or base. "
                f"Got {found}. Name another."
            )
        for name in SAME:
            if getattr(config, name) != getattr(first, name):
                raise refuse(config.name, name, f"the teacher's, {getattr(first, name)}", getattr(config, name))
        shared = shared_fields(config, people)
        own = {name: shared[name] for name in OWN}
        own["training"] = {**own["training"], "teacher": first.name, "teacher_version": first.version}
        return dataclasses.replace(first, **own, sampling=config.sampling)

    @classmethod
    def build(
        cls, config: DiffusionConfig, spec: DiffusionSpec, first: Model[Any] | None = None
    ) -> dict[str, nn.Module]:
        networks = super().build(config, spec)
        networks["teacher"] = super().build(config, spec)["denoiser"]
        if first is not None:  # else a run that continues, whose weights follow
            for name, network in first.networks.items():
                networks[name].load_state_dict(network.state_dict())
            networks["teacher"].load_state_dict(first.networks["denoiser"].state_dict())
        return networks

    def train_step(self, batch: dict[str, Tensor], step: int) -> dict[str, float]:
        item = self.prepare(batch)
        start, end, x = self._depart(batch, item.x0, step)
        for name, network in self.networks.items():
            network.train(name in self.trained)
        told = tell(self.spec, self.networks, item.given, item.controls, self.device)
        with self.autocast():
            target = self._target(x, start, end, told)
            answer = self.denoiser(x, start, told)
            error = pseudo_huber((answer - target).float(), self.config.huber_scale)
        flow = (self.channel_weight * item.weight * error).mean()
        rough = self._roughness(answer.float(), item.x0.float(), self._final(end))
        loss = flow + self.config.variogram_weight * rough
        norm = self.optimise("denoiser", loss, self.parameters, step)
        self.ema["denoiser"].update(self.networks["denoiser"], step)
        return {
            "loss": loss.item(),
            "flow": flow.item(),
            "roughness": rough.item(),
            "gradient_norm": norm.item(),
            "learning_rate": self.learning_rate(step),
        }

    def _depart(self, batch: Mapping[str, Tensor], x0: Tensor, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """Level of each item, where it goes from there (nowhere, if it is to stay a denoiser), and the noisy item."""
        streams = generators([derive_seed(self.config.seed, "jump", index) for index in batch["index"].tolist()])
        count = len(self.levels) - 1
        if self.config.jump != "last":
            place = draw_level(streams, count)
            start, end = self.levels[place], self.levels[place + 1]
        elif step % KEEP_EVERY == KEEP_EVERY - 1 and count > 1:
            start = end = draw_above(streams, float(self.levels[-3]), float(self.levels[0]))
        else:
            start, end = (level.expand(len(streams)) for level in self.levels[-2:])
        noise = randn(x0.shape[1:], streams).to(x0)
        return start, end, x0 + start.to(x0.dtype).to(x0.device).reshape(-1, *[1] * (x0.ndim - 1)) * noise

    @torch.no_grad()
    def _target(self, x: Tensor, start: Tensor, end: Tensor, told: Mapping[str, Tensor]) -> Tensor:
        """What the student is to answer at ``(x, start)``."""
        teacher, average = _bound(self.teacher, told), _bound(self.average, told)
        last, steps = self.config.flow_end, self.config.teacher_steps
        if self.config.jump == "next":
            return next_target(teacher, x, start, end, steps)
        if self.config.jump == "end":
            return end_target(teacher, average, x, start, end, last, steps)
        return flow_between(teacher, x, start, end, steps) if bool(self._final(end).any()) else teacher(x, start)

    def _final(self, end: Tensor) -> Tensor:
        """Which answers ``(B,)`` are clean samples."""
        if self.config.jump == "end":
            return torch.ones(len(end), dtype=torch.bool)
        return end <= self.config.flow_end * (1 + 1e-9)

    def _roughness(self, answer: Tensor, x0: Tensor, final: Tensor) -> Tensor:
        """How far the variograms of clean answers are from those of the items that they were made of."""
        kept = final.nonzero().flatten().to(answer.device)
        if not self.config.variogram_weight or not len(kept):
            return torch.zeros((), device=answer.device)
        made, real = (log_variogram(self._voxels(z[kept])) for z in (answer, x0))
        return pseudo_huber(made - real, VARIOGRAM_SCALE).mean() * len(kept) / len(x0)

    def _voxels(self, z: Tensor) -> Tensor:
        """Standardised samples as voxels; latents as they are."""
        if self.codec.latent is not None:
            return z
        shape = (1, -1, *[1] * (z.ndim - 2))
        mean, std = (
            torch.tensor(getattr(self.spec, name), dtype=z.dtype).to(z.device).reshape(shape)
            for name in ("channel_mean", "channel_std")
        )
        return self.codec.unpack(z * std + mean)


def _bound(denoiser: Preconditioned, told: Mapping[str, Tensor]) -> Denoise:
    return lambda x, sigma: denoiser(x, sigma, told)
