"""What a model is: the typed content of ``medgen.json``.

Everything is data. Each field has a check that refuses what cannot be meant, in one line that names the field,
the value and the remedy; an unknown field, an expression (``$``) and a class outside the registry are refused.
"""

# ruff: noqa: RUF009  (fields are made by a function that attaches the check; it is called once per field, as meant)
from __future__ import annotations

import dataclasses
import inspect
import json
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from medgen.checks import MedgenError
from medgen.models.fields import (
    Checked,
    checked,
    choice,
    integer,
    label_channel,
    name_text,
    nested,
    network_form,
    number,
    optional,
    options,
    plain_object,
    read_fields,
    refuse,
    sequence,
    text,
)

if TYPE_CHECKING:
    import torch

FORMAT = 1
TASKS = ("label_to_image", "joint", "inpaint")
PACKINGS = ("none", "haar")
LABEL_ENCODINGS = ("one_hot", "distance")
REFERENCES = {"none": TASKS, "label_means": ("label_to_image",), "continuation": ("inpaint",)}
DIFFUSION_UNETS = ("DiffusionModelUNet", "ConditionalUNet")
DEPTHS = 4
MAX_VOXELS = 1_000_000_000


def prediction_types() -> Iterable[str]:
    from medgen.diffusion.denoiser import PREDICTION_TYPES

    return PREDICTION_TYPES


def _samplers() -> Iterable[str]:
    from medgen.diffusion.samplers import SAMPLERS

    return SAMPLERS


def _schedules() -> Iterable[str]:
    from medgen.diffusion.schedules import SCHEDULES

    return SCHEDULES


@dataclass(frozen=True)
class Grid(Checked):
    """The voxel grid a model works on, in RAS+ axes.

    Args:
        spacing: mm, per axis.
        size: voxels, per axis (before packing).
    """

    spacing: tuple[float, ...] = checked(sequence(number(0, 100, above=True), 2, 3))
    size: tuple[int, ...] = checked(sequence(integer(1, 4096), 2, 3))

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.spacing) != len(self.size):
            raise MedgenError(
                f"Grid: spacing and size must have one entry per axis. Got {self.spacing} and {self.size}. Add axes."
            )
        if math.prod(self.size) > MAX_VOXELS:
            raise refuse("Grid", "size", f"at most {MAX_VOXELS:,} voxels", self.size)


@dataclass(frozen=True)
class PopulationSource(Checked):
    """Arguments of :class:`medgen.anatomy.population.Population`, whose label maps the model draws on.

    Args:
        spacing: mm per axis, as the model's grid.
        size: voxels per axis, as the model's grid.
        atlas: name of a bundled atlas.
        brain_extracted: share of subjects without skull and scalp.
        flip: share of subjects mirrored left to right.
    """

    spacing: tuple[float, ...] = checked(sequence(number(0, 100, above=True), 3, 3))
    size: tuple[int, ...] = checked(sequence(integer(1, 4096), 3, 3))
    atlas: str = checked(name_text, default="colin27")
    brain_extracted: float = checked(number(0, 1), default=0.25)
    flip: float = checked(number(0, 1), default=0.5)


@dataclass(frozen=True)
class Intensity(Checked):
    """What a generated value of 1.0 becomes on disk.

    Args:
        scale: factor from the model's 0..1 to the unit of the files.
        unit: name of that unit.
    """

    scale: float = checked(number(0, 1e6, above=True), default=1.0)
    unit: str = checked(text(longest=100), default="arbitrary")


@dataclass(frozen=True)
class Sampling(Checked):
    """Default way to sample a model.

    Args:
        sampler: a name in ``medgen.diffusion.samplers.SAMPLERS``.
        num_inference_steps: steps of one run.
        schedule: a name in ``medgen.diffusion.schedules.SCHEDULES``.
        sigma_min: last noise level, in units of the standardised data.
        sigma_max: first noise level, same unit.
        guidance_scale: classifier-free guidance, 1 = off.
        guidance_interval: lowest and highest noise level with guidance, None = all.
        sampler_options: further arguments of the sampler.
        schedule_options: further arguments of the schedule (``rho``, ``shift``).
        mean_weight: share of what was learnt beyond the reference that the mean output of ``inpaint`` adds to it: a
            shrinkage, to be chosen on scans of other people than those trained on.
    """

    sampler: str = checked(choice(_samplers))
    num_inference_steps: int = checked(integer(1, 10_000))
    schedule: str = checked(choice(_schedules))
    sigma_min: float = checked(number(0, 1e4, above=True))
    sigma_max: float = checked(number(0, 1e6, above=True))
    guidance_scale: float = checked(number(0, 100), default=1.0)
    guidance_interval: tuple[float, float] | None = checked(optional(sequence(number(0, 1e6), 2, 2)), default=None)
    sampler_options: dict[str, Any] = checked(options, default_factory=dict)
    schedule_options: dict[str, Any] = checked(options, default_factory=dict)
    mean_weight: float = checked(number(0, 1), default=1.0)

    def sigmas(self, num_inference_steps: int | None = None) -> torch.Tensor:
        """Noise levels of a run, high to low, ``(num_inference_steps + 1,)`` float64.

        Args:
            num_inference_steps: the default ones if None.

        Returns:
            What the schedule makes of ``sigma_min``, ``sigma_max`` (where it takes them) and ``schedule_options``.
        """
        from medgen.diffusion.schedules import SCHEDULES, make_sigmas

        known = inspect.signature(SCHEDULES[self.schedule]).parameters
        levels = {key: value for key in ("sigma_min", "sigma_max") if key in known for value in [getattr(self, key)]}
        return make_sigmas(
            self.schedule, num_inference_steps or self.num_inference_steps, **self.schedule_options | levels
        )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sigma_min >= self.sigma_max:
            raise refuse("Sampling", "sigma_min", f"below sigma_max ({self.sigma_max:g})", self.sigma_min)
        if self.guidance_interval is not None and self.guidance_interval[0] >= self.guidance_interval[1]:
            raise refuse("Sampling", "guidance_interval", "[low, high] with low < high", self.guidance_interval)
        _try_out(self)


def _try_out(sampling: Sampling) -> None:
    """Make the sigmas and take two steps with a single number, so that a bad option shows at once.

    Raises:
        MedgenError: the schedule or the sampler refuses its options.
    """
    import torch

    from medgen.diffusion.samplers import SAMPLERS

    with _blame("schedule_options"):
        sampling.sigmas()
    streams = [torch.Generator().manual_seed(0)]
    steps = torch.tensor([2.0, 1.0, 0.5], dtype=torch.float64)
    with _blame("sampler_options"):
        sample = SAMPLERS[sampling.sampler]
        sample(lambda x, _: 0 * x, torch.ones(1, 1), steps, generators=streams, **sampling.sampler_options)


@contextmanager
def _blame(name: str) -> Iterator[None]:
    """Whatever a function makes of options that it did not expect becomes one line about the field ``name``."""
    try:
        yield
    except Exception as error:
        raise MedgenError(f"Sampling: field '{name}' is not accepted: {error}") from error


def label_source(value: Any, where: str, source: str) -> dict[str, Any]:
    """``{"population": {...}}``: where a label map comes from if none is given."""
    value = plain_object(value, where, source)
    if list(value) != ["population"]:
        raise refuse(source, where, "an object with one key, 'population'", value)
    population = read_fields(PopulationSource, value["population"], source, f"{where}.population.")
    return {"population": json.loads(json.dumps(dataclasses.asdict(population)))}


@dataclass(frozen=True)
class ModelSpec(Checked):
    """The declarative specification of a model, the content of ``medgen.json``.

    Args:
        name: of the model and its folder.
        version: three numbers, ``1.0.0``.
        network: ``{"_target_": name in the registry, **constructor arguments}``.
        prediction_type: what the network predicts, one of ``PREDICTION_TYPES``.
        task: ``label_to_image`` (diffuses the image given the one-hot label), ``joint`` (image and label together)
            or ``inpaint`` (the image given the image with a hole and the ``inpaint_mask``).
        grid: see :class:`Grid`.
        sampling: see :class:`Sampling`.
        channel_mean: mean of each packed diffused channel over the training data (image in 0..1).
        channel_std: standard deviation of each.
        sigma_data: standard deviation of the standardised data, for the ``edm`` parametrisation.
        packing: ``haar`` (2^d voxels become channels) or ``none``.
        image_channels: channels of the image, before packing.
        label_channels: ``(name, label ids)`` of each one-hot channel, background left out.
        label_dropout: share of training samples whose conditioning was dropped.
        label_encoding: how ``joint`` diffuses the label: ``one_hot``, or ``distance``, the signed distance from the
            surface of each label, a smooth field that leaves no fragments (Park et al. 2019, arXiv:1901.05103).
        label_distance_mm: distance at which that field ends (``distance``).
        reference: what the image is diffused relative to (see :class:`medgen.models.codec.Given`): ``none``;
            ``label_means``, the painted mean of each label over its deviation; ``continuation``, the expected
            continuation of the surroundings into the hole.
        correlation_mm: length of the covariance behind ``continuation``, see :func:`medgen.continuation.kriged`.
        label_intensities: for ``label_means``: mean and standard deviation of the image within the background and
            each label channel, at its edge, one voxel from it, two, and deeper (see :func:`medgen.models.codec.depth`).
        intensity: see :class:`Intensity`.
        label_source: where label maps come from if none is given: ``{"population": arguments}`` or None.
        training: summary of how it was trained (data, people, steps, seed, config hash).
        modality: BIDS suffix of the image (``T1w``).
        body_part: what is shown, one word or two.
        licence: SPDX identifier; ``NOASSERTION`` = not stated.
        authors: who made it.
        copyright: copyright line of weights or data.
        description: one or two sentences.
        intended_use: what it may be used for.
        format: version of this file's layout.

    Raises:
        MedgenError: a field fails its check, or two fields contradict each other.
    """

    name: str = checked(name_text)
    version: str = checked(text(r"\d{1,4}\.\d{1,4}\.\d{1,4}", "three numbers like 1.0.0", 14))
    network: dict[str, Any] = checked(network_form)
    prediction_type: str = checked(choice(prediction_types))
    task: str = checked(choice(lambda: TASKS))
    grid: Grid = checked(nested(lambda: Grid))
    sampling: Sampling = checked(nested(lambda: Sampling))
    channel_mean: tuple[float, ...] = checked(sequence(number(-1e6, 1e6), 1, 4096))
    channel_std: tuple[float, ...] = checked(sequence(number(0, 1e6, above=True), 1, 4096))
    sigma_data: float = checked(number(0, 1e3, above=True), default=1.0)
    packing: str = checked(choice(lambda: PACKINGS), default="none")
    image_channels: int = checked(integer(1, 64), default=1)
    label_channels: tuple[tuple[str, tuple[int, ...]], ...] = checked(sequence(label_channel, 0, 256), default=())
    label_dropout: float = checked(number(0, 1), default=0.0)
    label_encoding: str = checked(choice(lambda: LABEL_ENCODINGS), default="one_hot")
    label_distance_mm: float = checked(number(0, 1000, above=True), default=4.0)
    reference: str = checked(choice(lambda: REFERENCES), default="none")
    correlation_mm: float = checked(number(0, 1000, above=True), default=6.0)
    label_intensities: tuple[tuple[tuple[float, float], ...], ...] = checked(
        sequence(sequence(sequence(number(-1e6, 1e6), 2, 2), DEPTHS, DEPTHS), 0, 257), default=()
    )
    intensity: Intensity = checked(nested(lambda: Intensity), default_factory=Intensity)
    label_source: dict[str, Any] | None = checked(optional(label_source), default=None)
    training: dict[str, Any] = checked(plain_object, default_factory=dict)
    modality: str = checked(text(r"[A-Za-z0-9]+", "a BIDS suffix of letters and digits", 16), default="T1w")
    body_part: str = checked(text(longest=64), default="")
    licence: str = checked(text(r"[A-Za-z0-9.+-]+", "an SPDX identifier", 64), default="NOASSERTION")
    authors: str = checked(text(longest=500), default="")
    copyright: str = checked(text(longest=1000), default="")
    description: str = checked(text(), default="")
    intended_use: str = checked(text(), default="Research and development. Not for clinical use.")
    format: int = checked(integer(FORMAT, FORMAT), default=FORMAT)

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_labels(self)
        _check_reference(self)
        _check_channels(self)
        _check_grid(self)
        _check_population(self)

    @property
    def spatial_dims(self) -> int:
        """Number of spatial axes, 2 or 3."""
        return len(self.grid.size)

    @property
    def packing_factor(self) -> int:
        """Channels that one voxel channel becomes: 2^d with Haar packing, else 1."""
        return 2**self.spatial_dims if self.packing == "haar" else 1

    @property
    def diffused_channels(self) -> int:
        """Channels that noise is added to, after packing."""
        labels = len(self.label_channels) if self.task == "joint" else 0
        return (self.image_channels + labels) * self.packing_factor

    @property
    def condition_channels(self) -> int:
        """Channels of the conditioning: packed labels (or image with hole and mask), and a flag with label dropout."""
        count = self.image_channels + 1 if self.task == "inpaint" else len(self.label_channels)
        return count * self.packing_factor + (self.label_dropout > 0)

    @classmethod
    def from_dict(cls, data: Any, source: str = "ModelSpec") -> ModelSpec:
        """Make a specification from the content of a ``medgen.json``.

        Args:
            data: what ``json.load`` gave.
            source: name of the file, for errors.

        Raises:
            MedgenError: an unknown, missing or bad field.
        """
        try:
            return read_fields(cls, data, source)
        except MedgenError as error:
            if str(error).startswith(source):
                raise
            raise MedgenError(f"{source}: {error}") from error  # a check between fields

    def to_dict(self) -> dict[str, Any]:
        """The content of ``medgen.json``: plain JSON types."""
        plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self), allow_nan=False))
        return plain

    def to_json(self) -> str:
        """``to_dict`` as sorted, indented text."""
        return json.dumps(self.to_dict(), indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def _check_labels(spec: ModelSpec) -> None:
    """Names and ids of the label channels are unique, and there where the task needs them."""
    names = [name for name, _ in spec.label_channels]
    ids = [str(i) for _, group in spec.label_channels for i in group]
    for what, values in (("names", names), ("label ids", ids)):
        twice = sorted({v for v in values if values.count(v) > 1})
        if twice:
            raise MedgenError(f"ModelSpec: field 'label_channels' must have unique {what}. Got {twice[0]} twice.")
    if spec.task == "inpaint" and spec.label_dropout:
        raise refuse("ModelSpec", "label_dropout", "0 for task 'inpaint'", spec.label_dropout)
    if spec.task == "joint" and not spec.label_dropout:
        raise refuse("ModelSpec", "label_dropout", "above 0 for task 'joint', which samples without a label too", 0)
    if spec.task != "joint" and spec.label_encoding != "one_hot":
        raise refuse("ModelSpec", "label_encoding", f"one_hot for task '{spec.task}'", spec.label_encoding)
    if spec.task != "inpaint" and not names:
        raise MedgenError(f"ModelSpec: field 'label_channels' must not be empty for task '{spec.task}'. Add channels.")


def _check_reference(spec: ModelSpec) -> None:
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


def _check_channels(spec: ModelSpec) -> None:
    """Statistics and network agree with the channels that task, labels and packing imply."""
    expected = spec.diffused_channels
    for name in ("channel_mean", "channel_std"):
        count = len(getattr(spec, name))
        if count != expected:
            raise MedgenError(
                f"ModelSpec: field '{name}' must have {expected} entries, the packed diffused channels. Got {count}."
            )
    out = _network_integer(spec, "out_channels", expected)
    if out != expected:
        raise MedgenError(
            f"ModelSpec: field 'network.out_channels' must be {expected} (diffused channels after packing). Got {out}."
        )
    _check_condition(spec)


def _check_condition(spec: ModelSpec) -> None:
    """The network takes the diffused and the conditioning channels."""
    name, diffused, condition = spec.network["_target_"], spec.diffused_channels, spec.condition_channels
    if name == "ConditionalUNet":
        wanted = {"in_channels": diffused, "condition_channels": condition}
    elif name == "DiffusionModelUNet":
        wanted = {"in_channels": diffused + condition}
    else:
        raise refuse("ModelSpec", "network._target_", f"one of {', '.join(DIFFUSION_UNETS)} (it takes timesteps)", name)
    for key, count in wanted.items():
        given = _network_integer(spec, key, 0 if key == "condition_channels" else count)
        if given != count:
            raise MedgenError(
                f"ModelSpec: field 'network.{key}' must be {count} ({diffused} diffused and {condition} conditioning "
                f"channels after packing). Got {given}."
            )


def _network_integer(spec: ModelSpec, key: str, default: int) -> int:
    value = spec.network.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool):
        raise refuse("ModelSpec", f"network.{key}", "an integer", value)
    return value


def _check_grid(spec: ModelSpec) -> None:
    """The network has the grid's axes, and the grid can be halved as often as packing and network do."""
    dims = _network_integer(spec, "spatial_dims", spec.spatial_dims)
    if dims != spec.spatial_dims:
        raise MedgenError(f"ModelSpec: field 'network.spatial_dims' must be {spec.spatial_dims}, as grid. Got {dims}.")
    multiple = size_multiple(spec)
    if any(n % multiple for n in spec.grid.size):
        raise MedgenError(
            f"ModelSpec: field 'grid.size' must be multiples of {multiple} (packing and levels of the network). "
            f"Got {list(spec.grid.size)}."
        )


def _check_population(spec: ModelSpec) -> None:
    """The population's label maps lie on the model's grid."""
    for key, value in (spec.label_source or {}).get("population", {}).items():
        if key in {"spacing", "size"} and tuple(value) != getattr(spec.grid, key):
            raise MedgenError(
                f"ModelSpec: field 'label_source.population.{key}' must be that of the grid, "
                f"{list(getattr(spec.grid, key))}. Got {value}."
            )


def size_multiple(spec: ModelSpec) -> int:
    """What each axis of a volume must be a multiple of, in voxels before packing.

    Args:
        spec: the model.

    Returns:
        2 for Haar packing times 2 for every level of a diffusion U-Net below the first.
    """
    channels = spec.network.get("channels") if spec.network["_target_"] in DIFFUSION_UNETS else None
    levels = len(channels) if isinstance(channels, list | tuple) else 1
    return (2 if spec.packing == "haar" else 1) * 2 ** max(levels - 1, 0)
