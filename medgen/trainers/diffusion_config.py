"""Training of a diffusion model: the typed content of a configuration of family ``diffusion``."""

# ruff: noqa: RUF009  (fields are made by a function that attaches the check; it is called once per field, as meant)
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from medgen.checks import MedgenError
from medgen.models.diffusion_spec import PACKINGS, REFERENCES, prediction_types
from medgen.models.fields import Checked, checked, choice, integer, nested, network_form, number, optional
from medgen.models.sampling import Sampling
from medgen.trainers.config import TrainConfig


def _weightings() -> Iterable[str]:
    from medgen.diffusion.losses import WEIGHTINGS

    return WEIGHTINGS


@dataclass(frozen=True)
class NoiseLevels(Checked):
    """Noise levels of training, ``ln sigma ~ N(mean, std**2)``.

    Args:
        mean: of ``ln sigma``.
        std: of ``ln sigma``.
        at_maximum: share of samples trained at ``sampling.sigma_max`` itself, where the denoiser is a regression.
    """

    mean: float = checked(number(-10, 10), default=0.0)
    std: float = checked(number(0, 10, above=True), default=1.2)
    at_maximum: float = checked(number(0, 1), default=0.0)


@dataclass(frozen=True, kw_only=True)
class DiffusionConfig(TrainConfig):
    """Training of a denoiser.

    Args:
        net: network: ``_target_`` is a name in the registry; channels in and out follow from task and packing.
        sampling: default way to sample the model.
        prediction_type, packing, packing_levels, label_dropout, reference, correlation_mm: see
            :class:`~medgen.models.diffusion_spec.DiffusionSpec`.
        control_net: network that steers the first stage's, which is frozen and is the ``net``.
        noise_levels: see :class:`NoiseLevels`.
        low_resolution_noise: standard deviation of the noise on the low-resolution sample of task ``super_resolve`` in
            training, so that the model forgives what its base does wrong (Ho et al. 2021, arXiv:2106.15282, section 4).
        weighting: of the loss over noise levels, one of ``WEIGHTINGS``.
        channel_balance: weight of each packed channel in the loss, ``std ** channel_balance`` over its mean: with 0
            the finest detail counts as much as the coarse structure, with 2 as much as its share of the variance.
        label_balance: weight of each voxel in the loss (tasks with a label): its label's share of the item to the
            power of ``-label_balance``, over the mean. With 0 a small nucleus counts by its few voxels.
        label_balance_by: ``label``, or ``piece``: what a label weighs is shared out anew among its connected pieces (of
            slices, in the slice), so that a small lesion counts beside a large one; with a ``label_balance`` only; see
            :func:`~medgen.trainers.diffusion.label_weight`.
        text_warm_up: steps, before the first, in which what embeds the controls learns to tell what prompts say; with a
            text control whose prompts use ``words``. The loss of a denoiser says little about a text, see
            :func:`~medgen.trainers.text_warm_up.warm_up`.

    The rest: :class:`~medgen.trainers.config.TrainConfig`.

    Raises:
        MedgenError: a field fails its check, or two fields contradict each other.
    """

    net: dict[str, Any] | None = checked(optional(network_form), default=None)
    sampling: Sampling = checked(nested(lambda: Sampling))
    prediction_type: str = checked(choice(prediction_types), default="edm")
    packing: str = checked(choice(lambda: PACKINGS), default="haar")
    packing_levels: int = checked(integer(1, 4), default=1)
    label_dropout: float = checked(number(0, 1), default=0.0)
    reference: str = checked(choice(lambda: REFERENCES), default="none")
    correlation_mm: float = checked(number(0, 1000, above=True), default=6.0)
    control_net: dict[str, Any] | None = checked(optional(network_form), default=None)
    noise_levels: NoiseLevels = checked(nested(lambda: NoiseLevels), default_factory=NoiseLevels)
    low_resolution_noise: float = checked(number(0, 1), default=0.05)
    weighting: str = checked(choice(_weightings), default="edm")
    channel_balance: float = checked(number(0, 2), default=0.0)
    label_balance: float = checked(number(0, 1), default=0.0)
    label_balance_by: str = checked(choice(lambda: ("label", "piece")), default="label")
    text_warm_up: int = checked(integer(0, 10**6), default=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.noise_levels.at_maximum and self.task in ("image", "joint"):
            raise MedgenError("TrainConfig: field 'noise_levels.at_maximum' is for conditional tasks. Set it to 0.")
        if self.label_balance_by == "piece" and not self.label_balance:
            raise MedgenError(
                "TrainConfig: field 'label_balance_by' piece has no effect with label_balance 0. Raise label_balance, "
                "or leave label_balance_by out."
            )
        if (self.net is None) != (self.control_net is not None):
            raise MedgenError(
                "TrainConfig: give field 'net', or 'control_net' with the first_stage whose network it steers."
            )
