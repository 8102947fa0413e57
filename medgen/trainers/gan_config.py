"""Adversarial training: the typed content of a configuration of family ``gan``."""

# ruff: noqa: RUF009  (fields are made by a function that attaches the check; it is called once per field, as meant)
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from medgen.checks import MedgenError
from medgen.models.fields import (
    Checked,
    checked,
    choice,
    integer,
    nested,
    network_form,
    number,
    optional,
    refuse,
    sequence,
)
from medgen.models.gan_spec import GAN_TASKS, GENERATORS
from medgen.trainers.config import POPULATION, TrainConfig

_weight = number(0, 1e6)


def _losses() -> Iterable[str]:
    from medgen.adversarial.losses import ADVERSARIAL_LOSSES

    return ADVERSARIAL_LOSSES


@dataclass(frozen=True)
class AdaptiveAugmentation(Checked):
    """Augmentation of what the discriminator sees, see :mod:`medgen.adversarial.augmentation`.

    Args:
        target: mean sign of real logits that the probability is steered to.
        samples_to_full: real images over which the probability could rise from 0 to 1.
        every: steps between changes of the probability.
        flip_axes: spatial axes that may be mirrored.
        shift, scale, rotation_degrees, contrast, brightness: see
            :class:`~medgen.adversarial.augmentation.AugmentationRange`.
    """

    target: float = checked(number(0, 1), default=0.6)
    samples_to_full: float = checked(number(1, 1e9), default=500_000)
    every: int = checked(integer(1, 10_000), default=4)
    flip_axes: tuple[int, ...] = checked(sequence(integer(0, 2), 0, 3), default=())
    shift: float = checked(number(0, 1), default=0.08)
    scale: float = checked(number(0, 0.9), default=0.1)
    rotation_degrees: float = checked(number(0, 180), default=8.0)
    contrast: float = checked(number(0, 3), default=0.2)
    brightness: float = checked(number(0, 3), default=0.2)


@dataclass(frozen=True, kw_only=True)
class GanConfig(TrainConfig):
    """Training of a generator against a discriminator.

    Args:
        kind: ``style``, ``spade``, ``pix2pix`` or ``cyclegan``; see :class:`~medgen.models.gan_spec.GanSpec`.
        net: generator: ``_target_`` is a name in the registry; channels and size follow from task, packing and grid.
        back_net: generator from image to source (``cyclegan``); ``net`` by default.
        discriminator: network that tells real from generated, ``StyleDiscriminator`` or ``PatchDiscriminator``.
        packing_levels: see :class:`~medgen.models.gan_spec.GanSpec`.
        truncation: default of the model that results.
        adversarial_loss: one of ``ADVERSARIAL_LOSSES``.
        discriminator_rate: learning rate of the discriminator over that of the generator.
        r1_gamma: weight of the gradient penalty on real images; 0 = off.
        r1_every: steps between penalties, each then counting as many times (lazy regularisation).
        path_length_weight: of the path length penalty (``style``); 0 = off.
        path_length_every: steps between penalties.
        style_mixing: share of samples made of two latents (``style``).
        ada: see :class:`AdaptiveAugmentation`; None = off.
        l1_weight: of the mean absolute error to the paired image (``spade`` and ``pix2pix``).
        feature_matching_weight: of the difference of the discriminator's features (``spade`` and ``pix2pix``, with a
            ``PatchDiscriminator``).
        cycle_weight: of the error after a way there and back (``cyclegan``).
        identity_weight: of the change that a generator makes to an image that is one of its targets (``cyclegan``).

    The rest: :class:`~medgen.trainers.config.TrainConfig`.

    Raises:
        MedgenError: a field fails its check, or two fields contradict each other.
    """

    kind: str = checked(choice(lambda: GENERATORS))
    net: dict[str, Any] = checked(network_form)
    back_net: dict[str, Any] | None = checked(optional(network_form), default=None)
    discriminator: dict[str, Any] = checked(network_form)
    packing_levels: int = checked(integer(0, 4), default=0)
    truncation: float = checked(number(0, 2), default=1.0)
    adversarial_loss: str = checked(choice(_losses), default="logistic")
    discriminator_rate: float = checked(number(0, 100, above=True), default=1.0)
    r1_gamma: float = checked(_weight, default=0.0)
    r1_every: int = checked(integer(1, 10_000), default=16)
    path_length_weight: float = checked(_weight, default=0.0)
    path_length_every: int = checked(integer(1, 10_000), default=8)
    style_mixing: float = checked(number(0, 1), default=0.0)
    ada: AdaptiveAugmentation | None = checked(optional(nested(lambda: AdaptiveAugmentation)), default=None)
    l1_weight: float = checked(_weight, default=0.0)
    feature_matching_weight: float = checked(_weight, default=0.0)
    cycle_weight: float = checked(_weight, default=10.0)
    identity_weight: float = checked(_weight, default=5.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.task not in GAN_TASKS[self.kind]:
            tasks = ", ".join(GAN_TASKS[self.kind])
            raise refuse("GanConfig", "task", f"one of {tasks} for kind '{self.kind}'", self.task)
        if self.kind == "style" and self.patch_size is not None and self.patch_size != self.grid.size:
            raise refuse("GanConfig", "patch_size", "null for kind 'style'", list(self.patch_size))
        if self.kind == "cyclegan" and self.batch_size < 2:
            raise refuse("GanConfig", "batch_size", "2 or more for kind 'cyclegan': pairs are broken in it", 1)
        _check_discriminator(self)
        _check_flips(self)


def _check_discriminator(config: GanConfig) -> None:
    name = config.discriminator["_target_"]
    if name not in ("StyleDiscriminator", "PatchDiscriminator"):
        known = "StyleDiscriminator or PatchDiscriminator"
        raise refuse("GanConfig", "discriminator._target_", known, name)
    if config.feature_matching_weight and (name != "PatchDiscriminator" or config.kind not in ("spade", "pix2pix")):
        wanted = "0 unless kind is spade or pix2pix with a PatchDiscriminator"
        raise refuse("GanConfig", "feature_matching_weight", wanted, config.feature_matching_weight)
    if config.controls and name != "StyleDiscriminator":
        raise refuse("GanConfig", "discriminator._target_", "StyleDiscriminator with controls", name)


def _check_flips(config: GanConfig) -> None:
    """No mirror image of channels that name a side, and only of axes that are there."""
    axes = config.ada.flip_axes if config.ada is not None else ()
    if any(axis >= len(config.grid.size) for axis in axes):
        raise refuse("GanConfig", "ada.flip_axes", f"below {len(config.grid.size)}", list(axes))
    sided = [name for name, _ in config.label_channels if {"left", "right"} & set(name.split("_"))]
    if 0 in axes and (sided or config.data == POPULATION):
        raise MedgenError(
            f"GanConfig: field 'ada.flip_axes' must leave out axis 0 (left to right) with label channels that name a "
            f"side. Got {list(axes)}. Remove it."
        )
