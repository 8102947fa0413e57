"""Adversarial training of all kinds: generators make a round, discriminators judge it, both learn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from medgen.adversarial.augmentation import AugmentationRange, adapted, apply_change, draw_change
from medgen.adversarial.losses import (
    ADVERSARIAL_LOSSES,
    feature_matching,
    gradient_penalty,
    path_length_penalty,
    real_sign,
)
from medgen.diffusion.randomness import derive_seed, generators
from medgen.models.base import Model
from medgen.models.gan import GanCodec
from medgen.models.gan_spec import GanShape, GanSpec, completed
from medgen.models.specification import TASKS, ModelSpec
from medgen.networks.registry import build_network
from medgen.trainers.base import RunTrainer, Statistics, adamw, initial_network, shared_fields
from medgen.trainers.data import Source
from medgen.trainers.ema import Ema
from medgen.trainers.gan_config import GanConfig
from medgen.trainers.gan_rounds import ROUNDS, Contest, Table
from medgen.trainers.statistics import channel_moments, drawn_items

__all__ = ["GanConfig", "GanTrainer"]
JUDGES = "discriminator"  # networks whose names begin so learn against the others
PATH_DECAY = 0.99


class GanTrainer(RunTrainer[GanConfig, GanSpec]):
    """Trains one or two generators against as many discriminators.

    Attributes:
        augmentation: probability of each change of what discriminators see; part of the checkpoint.
        path_length: running mean of the path lengths (StyleGAN2, section 3.2); part of the checkpoint.
    """

    origin_fields: ClassVar[tuple[str, ...]] = (
        "task", "kind", "network", "back_network", "packing_levels", "label_channels", "label_encoding",
        "label_distance_mm",
    )  # fmt: skip
    measured_fields: ClassVar[tuple[str, ...]] = (
        "channel_mean", "channel_std", "source_mean", "source_std", "band_std", "source_band_std",
    )  # fmt: skip

    def __init__(
        self,
        config: GanConfig,
        spec: GanSpec,
        networks: Mapping[str, nn.Module],
        loader: DataLoader[Any],
        device: torch.device,
        start: int = 0,
    ) -> None:
        super().__init__(config, spec, networks, loader, device, start)
        self.codec = GanCodec(spec)
        self.table = Table(config, self.codec, self.networks, device)
        self.judges = {name: net for name, net in self.networks.items() if name.startswith(JUDGES)}
        self.makers = {name: net for name, net in self.networks.items() if name not in self.judges}
        self.optimizers = {
            "generator": adamw(config, parameters_of(self.makers)),
            "discriminator": adamw(config, parameters_of(self.judges)),
        }
        self.ema = {name: Ema(net, config.optimisation.ema_decay) for name, net in self.makers.items()}
        self.loss = ADVERSARIAL_LOSSES[config.adversarial_loss]
        self.augmentation = 0.0
        self.path_length = 0.0
        self._signs: list[float] = []
        self.ranges = augmentation_ranges(config)

    # what it is made of

    @classmethod
    def measure(cls, config: GanConfig, source: Source, first: Model[Any] | None = None) -> dict[str, Any]:
        found = super().measure(config, source, first)
        codec = GanCodec(cls.make_spec(config, source.people, found))
        items = drawn_items(config, source)
        stacks = [codec.stack(i["image"][None], i["label"][None] if "label" in i else None) for i in items]
        found["channel_mean"], found["channel_std"] = channel_moments([stack[0] for stack in stacks])
        if config.source_modalities:
            found["source_mean"], found["source_std"] = channel_moments([item["source"] for item in items])
        codec = GanCodec(cls.make_spec(config, source.people, found))
        found["band_std"] = channel_moments([codec.standardised(stack)[0] for stack in stacks])[1]
        if config.kind == "cyclegan":
            found["source_band_std"] = channel_moments(
                [codec.encode_source(item["source"][None])[0] for item in items]
            )[1]
        return found

    @classmethod
    def make_spec(
        cls, config: GanConfig, people: int, statistics: Statistics | None = None, first: ModelSpec | None = None
    ) -> GanSpec:
        figure = dict(statistics or {})
        shared = shared_fields(config, people, figure)
        encoder = shared.get("control_encoder")
        shape = planned_shape(config, encoder["context_dim"] if encoder else 0)
        own = {name: getattr(config, name) for name in ("kind", "packing_levels", "truncation")}
        own["network"] = completed(config.net, shape.generator(), config.name, "net")
        if config.kind == "cyclegan":
            form = config.back_net or config.net
            own["back_network"] = completed(form, shape.generator(back=True), config.name, "back_net")
        for name, count in (("channel", shape.voxel_channels), ("source", len(config.source_modalities))):
            own[f"{name}_mean"] = tuple(figure.get(f"{name}_mean") or [0.0] * count)
            own[f"{name}_std"] = tuple(figure.get(f"{name}_std") or [1.0] * count)
        for name, count in (("band_std", shape.sample), ("source_band_std", shape.returned)):
            own[name] = tuple(figure.get(name) or [1.0] * count)
        spec = GanSpec(**shared, **own, family="gan")
        with torch.random.fork_rng(devices=[]):
            for form in [*spec.networks().values(), *judge_forms(config, spec).values()]:
                build_network(form, config.name)  # wrong arguments are refused here, before anything is trained
        return spec

    @classmethod
    def build(cls, config: GanConfig, spec: GanSpec, first: Model[Any] | None = None) -> dict[str, nn.Module]:
        networks = super().build(config, spec, first)
        forms = judge_forms(config, spec)
        return networks | {name: initial_network(form, config.seed, spec.name, name) for name, form in forms.items()}

    # one step

    def train_step(self, batch: dict[str, Tensor], step: int) -> dict[str, float]:
        streams = generators([derive_seed(self.config.seed, "noise", index) for index in batch["index"].tolist()])
        self.networks_in_training()
        with self.autocast():
            play = ROUNDS[self.config.kind](self.table, batch, streams, step)
            judged = [self.judge(contest, streams, step) for contest in play.contests]
            loss = torch.stack(judged).sum()
        rate = self.learning_rate(step)
        second = rate * self.config.discriminator_rate
        self.optimise("discriminator", loss, parameters_of(self.judges), step, second)
        with self.autocast():
            gained = [self.gain(contest, streams) for contest in play.contests]
            terms = dict(play.terms)
            if play.lengths is not None:
                terms["path_length"] = self.path_penalty(play.lengths)
            total = torch.stack([*gained, *terms.values()]).sum()
        norm = self.optimise("generator", total, parameters_of(self.makers), step, rate)
        for name, ema in self.ema.items():
            ema.update(self.networks[name], step)
        self.adapt(step, len(batch["index"]))
        others = {name: term.item() for name, term in terms.items()}
        adversarial = {"adversarial": sum(g.item() for g in gained), "discriminator": loss.item()}
        state = {"gradient_norm": norm.item(), "learning_rate": rate, "augmentation": self.augmentation}
        return {"loss": total.item(), **adversarial, **others, **state}

    def networks_in_training(self) -> None:
        """All of them in training mode, all weights with gradients."""
        for network in self.networks.values():
            network.train().requires_grad_(True)

    def judge(self, contest: Contest, streams: Sequence[torch.Generator], step: int) -> Tensor:
        """Loss of the discriminator of a contest, with its gradient penalty where it is due."""
        config = self.config
        due = config.r1_gamma > 0 and step % config.r1_every == 0
        real = self.seen(contest, contest.real, streams)
        fake = self.seen(contest, contest.fake.detach(), streams)
        if due:
            real = real.detach().requires_grad_(True)
        real_logits, fake_logits = self.logits(contest, real)[-1], self.logits(contest, fake)[-1]
        if config.ada is not None:
            self._signs.append(real_sign(real_logits))
        loss = self.loss.discriminator(real_logits, fake_logits)
        if due:
            loss = loss + config.r1_gamma * config.r1_every * gradient_penalty(real_logits, real)
        return loss

    def gain(self, contest: Contest, streams: Sequence[torch.Generator]) -> Tensor:
        """Adversarial loss of the generator in a contest, and the matching of features."""
        for network in self.judges.values():
            network.requires_grad_(False)
        answers = self.logits(contest, self.seen(contest, contest.fake, streams))
        loss = self.loss.generator(answers[-1])
        if self.config.feature_matching_weight and contest.paired:
            with torch.no_grad():
                wanted = self.logits(contest, self.seen(contest, contest.real, ()))
            changed = self.augmentation or self.spec.makes_blocks  # then what was judged is not where the real one is
            shown = self.logits(contest, self.seen(contest, contest.fake, ())) if changed else answers
            loss = loss + self.config.feature_matching_weight * feature_matching(wanted[:-1], shown[:-1])
        return loss

    def logits(self, contest: Contest, seen: Tensor) -> list[Tensor]:
        """Answer of a discriminator: features of its layers, where it gives them, and the logits last."""
        network = self.networks[contest.discriminator]
        context = self.table.context(contest.controls, "discriminator_controls")
        answer = network(seen) if context is None else network(seen, context)
        return list(answer) if isinstance(answer, list) else [answer]

    def seen(self, contest: Contest, sample: Tensor, streams: Sequence[torch.Generator]) -> Tensor:
        """A sample as the discriminator sees it: augmented, with what it was made for.

        Samples that are made in blocks are rolled by a part of a block, the same for the batch, so that the grid of
        blocks does not show; and each band is divided by the root of its deviation, so that fine detail counts.

        Args:
            contest: of the sample.
            sample: packed; its real or its generated one.
            streams: one per sample; none leaves the sample where it is.
        """
        told = contest.told
        x = sample if told is None else torch.cat([sample, told], dim=1)
        if streams and (self.augmentation or self.spec.makes_blocks):
            x = self.codec.pack(self.changed(self.codec.unpack(x), streams))
        bands = self.codec.bands(contest.back).to(x).sqrt()
        return torch.cat([x[:, : sample.shape[1]] / bands, x[:, sample.shape[1] :]], dim=1)

    def changed(self, voxels: Tensor, streams: Sequence[torch.Generator]) -> Tensor:
        """Voxels rolled by a part of a block where they are made in blocks, and augmented."""
        dims = self.spec.spatial_dims
        if self.spec.makes_blocks:
            shifts = torch.randint(self.spec.reduction, (dims,), generator=streams[0]).tolist()
            voxels = voxels.roll(shifts, list(range(2, 2 + dims)))
        if not self.augmentation:
            return voxels
        change = draw_change(self.ranges, voxels.shape[2:], self.augmentation, streams)
        return apply_change(voxels, change, self.spec.image_channels if self.spec.makes_image else 0)

    def path_penalty(self, lengths: Tensor) -> Tensor:
        """Path length penalty (StyleGAN2, equation 4); moves the running mean."""
        now = float(lengths.detach().mean())
        self.path_length = PATH_DECAY * self.path_length + (1 - PATH_DECAY) * now if self.path_length else now
        weight = self.config.path_length_weight * self.config.path_length_every
        return weight * path_length_penalty(lengths, lengths.new_tensor(self.path_length))

    def adapt(self, step: int, batch: int) -> None:
        """Move the probability of augmentation by the signs of the logits since the last change."""
        ada = self.config.ada
        if ada is None or (step + 1) % ada.every:
            return
        sign = sum(self._signs) / len(self._signs)
        self.augmentation = adapted(self.augmentation, sign, ada.target, ada.every * batch, ada.samples_to_full)
        self._signs = []

    def extra_state(self) -> dict[str, Any]:
        return {"augmentation": self.augmentation, "path_length": self.path_length, "signs": list(self._signs)}

    def load_extra_state(self, extra: Mapping[str, Any]) -> None:
        self.augmentation = float(extra["augmentation"])
        self.path_length = float(extra["path_length"])
        self._signs = [float(sign) for sign in extra["signs"]]


def augmentation_ranges(config: GanConfig) -> AugmentationRange:
    """How far augmentation goes; what ``ada`` says."""
    if config.ada is None:
        return AugmentationRange()
    return AugmentationRange(**{item.name: getattr(config.ada, item.name) for item in fields(AugmentationRange)})


def planned_shape(config: GanConfig, context_dim: int) -> GanShape:
    """Channels and sizes of the networks that a configuration asks for."""
    task = TASKS[config.task]
    voxel_channels = task.makes_image * config.image_channels + task.makes_label * len(config.label_channels)
    size = tuple(n // 2**config.packing_levels for n in config.grid.size)
    factor = 2 ** (config.packing_levels * len(size))
    labels, sources = len(config.label_channels), len(config.source_modalities)
    return GanShape(config.kind, size, voxel_channels, labels, sources, factor, context_dim)


def judge_forms(config: GanConfig, spec: GanSpec) -> dict[str, dict[str, Any]]:
    """Registry form of every network that is only trained against, by name."""
    form = config.discriminator
    patch = [n // spec.reduction for n in config.patch_size or config.grid.size]

    def whole(back: bool) -> dict[str, Any]:
        wiring = spec.shape.discriminator(form["_target_"], patch, back)
        return completed(form, wiring, config.name, "discriminator")

    found = {"discriminator": whole(back=False)}
    if config.kind == "cyclegan":
        found["discriminator_back"] = whole(back=True)
    if spec.control_encoder is not None:
        found["discriminator_controls"] = spec.control_encoder
    return found


def parameters_of(networks: Mapping[str, nn.Module]) -> list[Tensor]:
    """All parameters of several networks."""
    return [parameter for network in networks.values() for parameter in network.parameters()]
