"""What each kind of adversarial model makes in one step: the pairs that a discriminator judges, and other losses.

A round is made by the generators alone; :class:`~medgen.trainers.gan.GanTrainer` lets the discriminators judge it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medgen.adversarial.losses import path_lengths
from medgen.diffusion.randomness import randn
from medgen.models.base import CONTROL_KEYS
from medgen.models.gan import GanCodec, embedded
from medgen.trainers.gan_config import GanConfig


@dataclass(frozen=True)
class Contest:
    """Real and generated samples for one discriminator.

    Args:
        discriminator: its name.
        real: packed ``(B, C, *packed)``.
        fake: packed, with its graph.
        told: what both were made for, packed ``(B, K, *packed)``, which the discriminator sees too; None for nothing.
        controls: ``classes``, ``numbers``, ``text`` of the batch.
        paired: ``fake[i]`` was made for what ``real[i]`` shows.
        back: the samples are sources (``cyclegan``).
    """

    discriminator: str
    real: Tensor
    fake: Tensor
    told: Tensor | None = None
    controls: Mapping[str, Tensor] = field(default_factory=dict)
    paired: bool = False
    back: bool = False


@dataclass(frozen=True)
class Round:
    """What the generators made of one batch.

    Args:
        contests: what the discriminators judge.
        terms: further losses of the generators, weighted, by name.
        lengths: path lengths of the styles ``(B',)``; None where they are not due.
    """

    contests: Sequence[Contest]
    terms: Mapping[str, Tensor] = field(default_factory=dict)
    lengths: Tensor | None = None


@dataclass(frozen=True)
class Table:
    """What a round is played with.

    Args:
        config: of the run.
        codec: of the model.
        networks: by name.
        device: where they are.
    """

    config: GanConfig
    codec: GanCodec
    networks: Mapping[str, Any]
    device: torch.device

    def encoded(self, batch: Mapping[str, Tensor]) -> Tensor:
        """The real samples."""
        return self.codec.encode(batch["image"], batch.get("label")).to(self.device)

    def told(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Label maps or sources, packed."""
        told = self.codec.told(batch)
        return (batch["image"][:, :0] if told is None else told).to(self.device)

    def controls(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {key: batch[key] for key in CONTROL_KEYS if key in batch}

    def context(self, controls: Mapping[str, Tensor], encoder: str = "controls") -> Tensor | None:
        """Context tokens by one of the encoders; None without controls."""
        if encoder not in self.networks:
            return None
        network: nn.Module = self.networks[encoder]
        return embedded(self.codec.spec, network, controls, self.device)

    def noise(self, shapes: Sequence[Sequence[int]], streams: Sequence[torch.Generator]) -> list[Tensor]:
        return [randn(shape, streams, device=self.device) for shape in shapes]


Streams = Sequence[torch.Generator]
Player = Callable[[Table, Mapping[str, Tensor], Streams, int], Round]


def style_round(table: Table, batch: Mapping[str, Tensor], streams: Streams, step: int) -> Round:
    """Samples of mixed styles, and every ``path_length_every`` steps the length of paths of half of them."""
    config, network = table.config, table.networks["generator"]
    controls = table.controls(batch)
    context = table.context(controls)
    first, second = (randn((network.latent_dim,), streams, device=table.device) for _ in range(2))
    layers = len(network.layers)
    draws = torch.stack([torch.rand(2, generator=stream) for stream in streams])
    crossover = torch.where(draws[:, 0] < config.style_mixing, 1 + (draws[:, 1] * (layers - 1)).long(), layers)
    w = network.style(first, context)
    other = network.style(second, context) if config.style_mixing else w
    network.track_mean(w)
    styles = network.mixed(w, other, crossover)
    noise = table.noise(network.noise_shapes, streams)
    fake = table.codec.finished(network(styles=styles, noise=noise))
    lengths = None
    if config.path_length_weight and step % config.path_length_every == 0:
        half = max(1, len(styles) // 2)
        image = table.codec.finished(network(styles=styles[:half], noise=[n[:half] for n in noise]))
        lengths = path_lengths(image, styles, randn(image.shape[1:], streams[:half], device=table.device))[:half]
    contest = Contest("discriminator", table.encoded(batch), fake, controls=controls)
    return Round([contest], lengths=lengths)


def spade_round(table: Table, batch: Mapping[str, Tensor], streams: Streams, step: int) -> Round:
    """Images of the batch's label maps."""
    network, told = table.networks["generator"], table.told(batch)
    controls = table.controls(batch)
    latent = randn((network.latent_dim,), streams, device=table.device)
    noise = table.noise(network.noise_shapes(told.shape[2:]), streams)
    fake = table.codec.finished(network(told, latent, table.context(controls), noise=noise))
    return _paired(table, batch, fake, told, controls)


def pix2pix_round(table: Table, batch: Mapping[str, Tensor], streams: Streams, step: int) -> Round:
    """Images (or label maps) of the batch's sources."""
    told = table.told(batch)
    flags = table.codec.flags(batch["source"], batch.get("present")).to(told)
    fake = table.codec.finished(table.networks["generator"](torch.cat([told, flags], dim=1)))
    return _paired(table, batch, fake, told, {})


def _paired(
    table: Table, batch: Mapping[str, Tensor], fake: Tensor, told: Tensor, controls: Mapping[str, Tensor]
) -> Round:
    real = table.encoded(batch)
    terms = {"l1": table.config.l1_weight * F.l1_loss(fake, real)} if table.config.l1_weight else {}
    return Round([Contest("discriminator", real, fake, told, controls, paired=True)], terms)


def cyclegan_round(table: Table, batch: Mapping[str, Tensor], streams: Streams, step: int) -> Round:
    """Each way and back again (Zhu et al. 2017, arXiv:1703.10593, equations 2 and 3, section 5.2).

    The images of the batch are moved on by one, so that no source meets its own.
    """
    config = table.config

    def forward(x: Tensor) -> Tensor:
        return table.codec.finished(table.networks["generator"](x))

    def back(x: Tensor) -> Tensor:
        return table.codec.finished(table.networks["back"](x), back=True)

    source, image = table.told(batch), table.encoded(batch).roll(1, 0)
    made, returned = forward(source), back(image)
    cycle = F.l1_loss(back(made), source) + F.l1_loss(forward(returned), image)
    terms = {"cycle": config.cycle_weight * cycle}
    if config.identity_weight and source.shape[1] == image.shape[1]:
        identity = F.l1_loss(forward(image), image) + F.l1_loss(back(source), source)
        terms["identity"] = config.identity_weight * identity
    contests = [Contest("discriminator", image, made), Contest("discriminator_back", source, returned, back=True)]
    return Round(contests, terms)


ROUNDS: dict[str, Player] = {
    "style": style_round,
    "spade": spade_round,
    "pix2pix": pix2pix_round,
    "cyclegan": cyclegan_round,
}
