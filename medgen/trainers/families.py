"""Which configuration and which trainer belong to the word ``family`` in a configuration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from medgen.checks import MedgenError, nearest
from medgen.models.families import imported

if TYPE_CHECKING:
    from medgen.trainers.base import RunTrainer
    from medgen.trainers.config import TrainConfig


@dataclass(frozen=True)
class FamilyTrainer:
    """Classes of one family, imported when they are needed.

    Args:
        config: ``module:class`` of the configuration.
        trainer: ``module:class`` of the trainer.
    """

    config: str
    trainer: str


TRAINERS: dict[str, FamilyTrainer] = {
    "diffusion": FamilyTrainer(
        "medgen.trainers.diffusion_config:DiffusionConfig", "medgen.trainers.diffusion:DiffusionTrainer"
    ),
    "distillation": FamilyTrainer(
        "medgen.trainers.distillation:DistillationConfig", "medgen.trainers.distillation:DistillationTrainer"
    ),
    "autoencoder": FamilyTrainer(
        "medgen.trainers.autoencoder:AutoencoderConfig", "medgen.trainers.autoencoder:AutoencoderTrainer"
    ),
    "autoregressive": FamilyTrainer(
        "medgen.trainers.autoregressive:AutoregressiveConfig", "medgen.trainers.autoregressive:AutoregressiveTrainer"
    ),
    "gan": FamilyTrainer("medgen.trainers.gan:GanConfig", "medgen.trainers.gan:GanTrainer"),
    "restorer": FamilyTrainer(
        "medgen.trainers.restorer_config:RestorerConfig", "medgen.trainers.restorer:RestorerTrainer"
    ),
}


def _find(name: Any, source: str) -> FamilyTrainer:
    if not isinstance(name, str) or name not in TRAINERS:
        raise MedgenError(
            f"{source}: field 'family' must be one of {', '.join(TRAINERS)}. Got {name!r:.60}.{nearest(name, TRAINERS)}"
        )
    return TRAINERS[name]


def config_class(name: Any, source: str) -> type[TrainConfig]:
    """The configuration's class of a family.

    Raises:
        MedgenError: there is none of that name.
    """
    found: type[TrainConfig] = imported(_find(name, source).config)
    return found


def trainer_class(name: Any, source: str) -> type[RunTrainer[Any, Any]]:
    """The trainer's class of a family.

    Raises:
        MedgenError: there is none of that name.
    """
    found: type[RunTrainer[Any, Any]] = imported(_find(name, source).trainer)
    return found
