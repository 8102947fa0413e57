"""What a diffusion model is: the content of ``medgen.json`` of family ``diffusion``."""

# ruff: noqa: RUF009  (fields are made by a function that attaches the check; it is called once per field, as meant)
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from medgen.checks import MedgenError
from medgen.models.autoencoder_spec import AutoencoderSpec
from medgen.models.fields import (
    checked,
    choice,
    integer,
    nested,
    network_form,
    number,
    optional,
    options,
    refuse,
    sequence,
)
from medgen.models.sampling import Sampling
from medgen.models.specification import TASKS, ModelSpec, nested_networks, network_integer

PACKINGS = ("none", "haar")
REFERENCES = {"none": tuple(TASKS), "label_means": ("label_to_image",), "continuation": ("inpaint",)}
DIFFUSION_UNETS = ("DiffusionModelUNet", "ConditionalUNet", "DiffusionModelUNetMaisi", "DiffusersUNet")
DEPTHS = 4


def prediction_types() -> Iterable[str]:
    from medgen.diffusion.denoiser import PREDICTION_TYPES

    return PREDICTION_TYPES


@dataclass(frozen=True)
class Shape:
    """Channels of what is diffused and of what is given, at the diffused resolution.

    Args:
        task: one of ``TASKS``.
        dims: spatial axes.
        image_channels: of the image.
        labels: number of label channels.
        sources: number of given images.
        label_dropout: see :class:`DiffusionSpec`.
        reduction: voxels per diffused voxel, along each axis.
        latent_channels: of the autoencoder; 0 where voxels are diffused.
    """

    task: str
    dims: int
    image_channels: int
    labels: int
    sources: int
    label_dropout: float
    reduction: int
    latent_channels: int = 0

    @property
    def factor(self) -> int:
        """Channels that one channel of voxels becomes: one for each voxel packed together."""
        return int(self.reduction**self.dims)

    @property
    def voxel_channels(self) -> int:
        """Channels of a sample before it is packed or encoded."""
        task = TASKS[self.task]
        return task.makes_image * self.image_channels + task.makes_label * self.labels

    @property
    def diffused(self) -> int:
        """Channels that noise is added to."""
        return self.latent_channels or self.voxel_channels * self.factor

    @property
    def told_label(self) -> bool:
        """Whether a label map is part of the conditioning."""
        return self.task == "label_to_image" or (self.task == "joint" and self.label_dropout < 1)

    @property
    def condition(self) -> int:
        """Channels of the conditioning.

        Packed labels and, with label dropout, a flag; image with hole, and mask; source images, and a flag for each;
        low-resolution sample.
        """
        if self.told_label:
            return self.labels * self.factor + (self.label_dropout > 0)
        if self.task == "inpaint":
            return (self.image_channels + 1) * self.factor
        if self.sources:
            return self.sources * (self.factor + 1)
        return self.voxel_channels * self.factor if self.task == "super_resolve" else 0


def timesteps_form(value: Any, where: str, source: str) -> dict[str, Any]:
    """A chain of betas or a flow, by plain values."""
    from medgen.diffusion.timesteps import make_timesteps

    form = options(value, where, source)
    try:
        make_timesteps(form)
    except MedgenError as error:
        raise MedgenError(f"{source}: field {where!r}: {error}") from error
    return form


@dataclass(frozen=True, kw_only=True)
class DiffusionSpec(ModelSpec):
    """A denoiser, and where its samples live: voxels, Haar packets of voxels, or the latents of an autoencoder.

    Args:
        network: ``{"_target_": name in the registry, **constructor arguments}``.
        prediction_type: what the network predicts, one of ``PREDICTION_TYPES``.
        sampling: see :class:`~medgen.models.sampling.Sampling`.
        channel_mean: mean of each diffused channel over the training data (image in 0..1).
        channel_std: standard deviation of each.
        sigma_data: standard deviation of the standardised data, for the ``edm`` parametrisation.
        timesteps: what the network is fed at each noise level, as
            :func:`medgen.diffusion.timesteps.make_timesteps` takes it; None: ``1000 sigma / (1 + sigma)``.
        packing: ``haar`` (blocks of voxels become channels) or ``none``.
        packing_levels: how often that is done: ``2**d`` voxels become channels each time.
        autoencoder: specification of the autoencoder whose latents are diffused; its grid, channels and label encoding
            are the model's. None: voxels are.
        base: specification of the model that draws the low-resolution sample of task ``super_resolve``.
        control_network: network that steers the frozen ``network`` by what the task gives (ControlNet: Zhang et al.
            2023, arXiv:2302.05543); None: what is given is joined to the network's input.
        label_dropout: share of training samples whose label was dropped; 1 for task ``joint``: no label is ever given.
        reference: what the image is diffused relative to (see :class:`medgen.models.codec.Given`): ``none``;
            ``label_means``, the painted mean of each label over its deviation; ``continuation``, the expected
            continuation of the surroundings into the hole.
        correlation_mm: length of the covariance behind ``continuation``, see :func:`medgen.continuation.kriged`.
        label_intensities: for ``label_means``: mean and standard deviation of the image within the background and
            each label channel, at its edge, one voxel from it, two, and deeper (see :func:`medgen.models.codec.depth`).

    The rest: :class:`~medgen.models.specification.ModelSpec`.

    Raises:
        MedgenError: a field fails its check, or two fields contradict each other.
    """

    network: dict[str, Any] = checked(network_form)
    prediction_type: str = checked(choice(prediction_types))
    sampling: Sampling = checked(nested(lambda: Sampling))
    channel_mean: tuple[float, ...] = checked(sequence(number(-1e6, 1e6), 1, 4096))
    channel_std: tuple[float, ...] = checked(sequence(number(0, 1e6, above=True), 1, 4096))
    sigma_data: float = checked(number(0, 1e3, above=True), default=1.0)
    timesteps: dict[str, Any] | None = checked(optional(timesteps_form), default=None)
    packing: str = checked(choice(lambda: PACKINGS), default="none")
    packing_levels: int = checked(integer(1, 4), default=1)
    autoencoder: AutoencoderSpec | None = checked(optional(nested(lambda: AutoencoderSpec)), default=None)
    base: DiffusionSpec | None = checked(optional(nested(lambda: DiffusionSpec)), default=None)
    control_network: dict[str, Any] | None = checked(optional(network_form), default=None)
    label_dropout: float = checked(number(0, 1), default=0.0)
    reference: str = checked(choice(lambda: REFERENCES), default="none")
    correlation_mm: float = checked(number(0, 1000, above=True), default=6.0)
    label_intensities: tuple[tuple[tuple[float, float], ...], ...] = checked(
        sequence(sequence(sequence(number(-1e6, 1e6), 2, 2), DEPTHS, DEPTHS), 0, 257), default=()
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_dropout(self)
        _check_reference(self)
        _check_parts(self)
        _check_channels(self)
        _check_grid(self)

    @property
    def reduction(self) -> int:
        """Voxels per diffused voxel, along each axis."""
        if self.autoencoder is not None:
            return self.autoencoder.downsampling
        return int(2**self.packing_levels) if self.packing == "haar" else 1

    @property
    def shape(self) -> Shape:
        """Channels diffused and given."""
        return Shape(
            self.task, self.spatial_dims, self.image_channels, len(self.label_channels), len(self.source_modalities),
            self.label_dropout, self.reduction, self.autoencoder.latent_channels if self.autoencoder is not None else 0,
        )  # fmt: skip

    @property
    def packing_factor(self) -> int:
        """See :attr:`Shape.factor`."""
        return self.shape.factor

    @property
    def diffused_channels(self) -> int:
        """Channels that noise is added to."""
        return self.shape.diffused

    @property
    def told_label(self) -> bool:
        """Whether a label map is part of the conditioning."""
        return self.shape.told_label

    @property
    def condition_channels(self) -> int:
        """Channels of the conditioning, see :attr:`Shape.condition`."""
        return self.shape.condition

    @property
    def multiple(self) -> int:
        """What each axis must be a multiple of: packing or encoding, times 2 for every further level of the network."""
        channels = self.network.get("channels", self.network.get("num_channels"))
        levels = len(channels) if isinstance(channels, list | tuple) else 1
        return self.reduction * int(2 ** max(levels - 1, 0))

    def networks(self) -> dict[str, dict[str, Any]]:
        found = {"denoiser": self.network}
        if self.control_network is not None:
            found["control"] = self.control_network
        if self.control_encoder is not None:
            found["controls"] = self.control_encoder
        if self.autoencoder is not None:
            found |= nested_networks("autoencoder", self.autoencoder)
        if self.base is not None:
            found |= nested_networks("base", self.base)
        return found


def _check_dropout(spec: DiffusionSpec) -> None:
    """A label can be dropped only where one is given, and ``joint`` must be able to do without."""
    if spec.label_dropout and spec.task not in ("label_to_image", "joint"):
        raise refuse("ModelSpec", "label_dropout", f"0 for task '{spec.task}'", spec.label_dropout)
    if spec.task == "joint" and not spec.label_dropout:
        raise refuse("ModelSpec", "label_dropout", "above 0 for task 'joint', which samples without a label too", 0)
    if spec.task == "label_to_image" and spec.label_dropout == 1:
        raise refuse("ModelSpec", "label_dropout", "below 1 for task 'label_to_image'", spec.label_dropout)


def _check_reference(spec: DiffusionSpec) -> None:
    """The reference suits the task, and the label means have their figures."""
    if spec.task not in REFERENCES[spec.reference]:
        suited = ", ".join(name for name, tasks in REFERENCES.items() if spec.task in tasks)
        raise refuse("ModelSpec", "reference", f"one of {suited} for task '{spec.task}'", spec.reference)
    if spec.reference == "label_means" and spec.label_dropout:
        raise refuse("ModelSpec", "label_dropout", "0 with reference 'label_means'", spec.label_dropout)
    if spec.sampling.mean_weight != 1 and spec.reference != "continuation":
        where = f"1 with reference '{spec.reference}', from which there is nothing to shrink"
        raise refuse("ModelSpec", "sampling.mean_weight", where, spec.sampling.mean_weight)
    expected = 1 + len(spec.label_channels) if spec.reference == "label_means" else 0
    if len(spec.label_intensities) != expected:
        raise MedgenError(
            f"ModelSpec: field 'label_intensities' must have {expected} entries with reference '{spec.reference}' "
            f"(background and each label channel). Got {len(spec.label_intensities)}."
        )
    if any(std <= 0 for label in spec.label_intensities for _, std in label):
        raise refuse("ModelSpec", "label_intensities", "[mean, deviation above 0]", spec.label_intensities)


def _check_parts(spec: DiffusionSpec) -> None:
    """Autoencoder and base fit the model."""
    if spec.autoencoder is not None:
        if spec.packing != "none":
            raise refuse("ModelSpec", "packing", "none with an autoencoder", spec.packing)
        if spec.autoencoder.voxel_channels != spec.voxel_channels:
            raise refuse(
                "ModelSpec", "autoencoder", f"for {spec.voxel_channels} channels", spec.autoencoder.voxel_channels
            )
        if spec.reference != "none":
            raise refuse("ModelSpec", "reference", "none with an autoencoder", spec.reference)
    if spec.base is None:
        return
    if spec.task != "super_resolve":
        raise refuse("ModelSpec", "base", f"null for task '{spec.task}'", spec.base.name)
    if spec.base.task not in ("image", "joint") or spec.base.controls != spec.controls:
        raise MedgenError(
            f"ModelSpec: field 'base' must be a model of task 'image' or 'joint' with the same controls. Got "
            f"'{spec.base.name}' of task '{spec.base.task}' with {[c.name for c in spec.base.controls]}. Train it so."
        )
    extent = [round(n * s, 4) for n, s in zip(spec.grid.size, spec.grid.spacing, strict=True)]
    coarse = [round(n * s, 4) for n, s in zip(spec.base.grid.size, spec.base.grid.spacing, strict=True)]
    if extent != coarse or spec.base.voxel_channels != spec.voxel_channels:
        raise refuse("ModelSpec", "base", f"of {extent} mm and {spec.voxel_channels} channels", coarse)


def _check_channels(spec: DiffusionSpec) -> None:
    """Statistics and network agree with the channels that task, labels and packing imply."""
    expected = spec.diffused_channels
    for name in ("channel_mean", "channel_std"):
        count = len(getattr(spec, name))
        if count != expected:
            raise MedgenError(
                f"ModelSpec: field '{name}' must have {expected} entries, the packed diffused channels. Got {count}."
            )
    out = network_integer(spec.network, "out_channels", expected)
    if out != expected:
        raise MedgenError(
            f"ModelSpec: field 'network.out_channels' must be {expected} (diffused channels after packing). Got {out}."
        )
    _check_condition(spec)


def _check_condition(spec: DiffusionSpec) -> None:
    """The network takes the diffused and the conditioning channels."""
    name, diffused = spec.network["_target_"], spec.diffused_channels
    condition = 0 if spec.control_network is not None else spec.condition_channels
    if name == "ConditionalUNet":
        wanted = {"in_channels": diffused, "condition_channels": condition}
    elif name in DIFFUSION_UNETS:
        wanted = {"in_channels": diffused + condition}
    else:
        raise refuse("ModelSpec", "network._target_", f"one of {', '.join(DIFFUSION_UNETS)} (it takes timesteps)", name)
    for key, count in wanted.items():
        given = network_integer(spec.network, key, 0 if key == "condition_channels" else count)
        if given != count:
            raise MedgenError(
                f"ModelSpec: field 'network.{key}' must be {count} ({diffused} diffused and {condition} conditioning "
                f"channels after packing). Got {given}."
            )


def _check_grid(spec: DiffusionSpec) -> None:
    """The network has the grid's axes, and the grid can be halved as often as packing and network do."""
    dims = network_integer(spec.network, "spatial_dims", spec.spatial_dims)
    if dims != spec.spatial_dims:
        raise MedgenError(f"ModelSpec: field 'network.spatial_dims' must be {spec.spatial_dims}, as grid. Got {dims}.")
    if any(n % spec.multiple for n in spec.grid.size):
        raise MedgenError(
            f"ModelSpec: field 'grid.size' must be multiples of {spec.multiple} (packing and levels of the network). "
            f"Got {list(spec.grid.size)}."
        )
