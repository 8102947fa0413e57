"""What every model is, of whatever family: the common content of ``medgen.json``.

Everything is data. Each field has a check that refuses what cannot be meant, in one line that names the field,
the value and the remedy; an unknown field, an expression (``$``) and a class outside the registry are refused.
"""

# ruff: noqa: RUF009  (fields are made by a function that attaches the check; it is called once per field, as meant)
from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from typing import Any, TypeVar

from medgen.checks import MedgenError
from medgen.models.controls import Control
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
    plain_object,
    read_fields,
    refuse,
    sequence,
    text,
)

FORMAT = 1
LABEL_ENCODINGS = ("one_hot", "distance")
MAX_VOXELS = 1_000_000_000
DEFAULT_FAMILY = "diffusion"
Spec = TypeVar("Spec", bound="ModelSpec")


@dataclass(frozen=True)
class Task:
    """What is generated from what.

    Args:
        makes_image: the sample has image channels.
        makes_label: the sample has label channels.
        needs_label: label channels must be named.
        needs_source: source modalities must be named.
    """

    makes_image: bool = True
    makes_label: bool = False
    needs_label: bool = False
    needs_source: bool = False


TASKS: dict[str, Task] = {
    "image": Task(),
    "joint": Task(makes_label=True, needs_label=True),
    "label_to_image": Task(needs_label=True),
    "inpaint": Task(),
    "translate": Task(needs_source=True),
    "segment": Task(makes_image=False, makes_label=True, needs_label=True, needs_source=True),
    "super_resolve": Task(makes_label=True),  # label channels where they are named
    "restore": Task(),
}


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


def label_source(value: Any, where: str, source: str) -> dict[str, Any]:
    """``{"population": {...}}``: where a label map comes from if none is given."""
    value = plain_object(value, where, source)
    if list(value) != ["population"]:
        raise refuse(source, where, "an object with one key, 'population'", value)
    population = read_fields(PopulationSource, value["population"], source, f"{where}.population.")
    return {"population": json.loads(json.dumps(dataclasses.asdict(population)))}


channel_name = text(r"[A-Za-z0-9][A-Za-z0-9_+.-]*", "a name of letters, digits, '_', '+', '.' and '-'", 32)


@dataclass(frozen=True, kw_only=True)
class ModelSpec(Checked):
    """What the specifications of all families have in common; each family adds its own.

    Args:
        name: of the model and its folder.
        version: three numbers, ``1.0.0``.
        task: what is generated from what, one of ``TASKS``.
        grid: see :class:`Grid`.
        family: ``diffusion``, ``autoencoder``, ... (:data:`medgen.models.families.FAMILIES`).
        image_channels: channels of the image, before packing.
        channels: name of each image channel; by default one, ``modality``.
        label_channels: ``(name, label ids)`` of each one-hot channel, background left out.
        label_encoding: how a label that is generated is represented: ``one_hot``, or ``distance``, the signed distance
            from the surface of each label, a smooth field that leaves no fragments (Park et al. 2019,
            arXiv:1901.05103).
        label_distance_mm: distance at which that field ends (``distance``).
        source_modalities: name of each given image channel (tasks ``translate`` and ``segment``).
        controls: class, number and text that the model listens to.
        control_encoder: network that embeds them; None without controls.
        control_dropout: share of training samples in which each control was left out.
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
    task: str = checked(choice(lambda: TASKS))
    grid: Grid = checked(nested(lambda: Grid))
    family: str = checked(name_text, default=DEFAULT_FAMILY)
    image_channels: int = checked(integer(1, 64), default=1)
    channels: tuple[str, ...] = checked(sequence(channel_name, 0, 64), default=())
    label_channels: tuple[tuple[str, tuple[int, ...]], ...] = checked(sequence(label_channel, 0, 256), default=())
    label_encoding: str = checked(choice(lambda: LABEL_ENCODINGS), default="one_hot")
    label_distance_mm: float = checked(number(0, 1000, above=True), default=4.0)
    source_modalities: tuple[str, ...] = checked(sequence(channel_name, 0, 64), default=())
    controls: tuple[Control, ...] = checked(sequence(nested(lambda: Control), 0, 64), default=())
    control_encoder: dict[str, Any] | None = checked(optional(network_form), default=None)
    control_dropout: float = checked(number(0, 1), default=0.0)
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
        _check_given(self)
        _check_population(self)

    @property
    def spatial_dims(self) -> int:
        """Number of spatial axes, 2 or 3."""
        return len(self.grid.size)

    @property
    def makes_image(self) -> bool:
        """Whether a sample has image channels."""
        return TASKS[self.task].makes_image

    @property
    def makes_label(self) -> bool:
        """Whether a sample has label channels."""
        return TASKS[self.task].makes_label and bool(self.label_channels)

    @property
    def told_label(self) -> bool:
        """Whether a given label map decides what is made."""
        return self.task == "label_to_image"

    @property
    def voxel_channels(self) -> int:
        """Channels of a sample before it is packed or encoded: image, then label."""
        return self.makes_image * self.image_channels + self.makes_label * len(self.label_channels)

    @property
    def multiple(self) -> int:
        """What each axis of a volume must be a multiple of, in voxels."""
        raise NotImplementedError

    def networks(self) -> dict[str, dict[str, Any]]:
        """Registry form of every network the model consists of, by name."""
        raise NotImplementedError

    @classmethod
    def from_dict(cls: type[Spec], data: Any, source: str = "ModelSpec") -> Spec:
        """Make a specification, of the family that ``data`` names, from the content of a ``medgen.json``.

        Args:
            data: what ``json.load`` gave.
            source: name of the file, for errors.

        Raises:
            MedgenError: an unknown, missing or bad field, or a family that is none of this class.
        """
        from medgen.models.families import spec_class

        family = spec_class(data.get("family", DEFAULT_FAMILY) if isinstance(data, dict) else DEFAULT_FAMILY, source)
        if not issubclass(family, cls):
            raise MedgenError(f"{source}: field 'family' must be one of {cls.__name__}. Got {data['family']!r}.")
        try:
            return read_fields(family, data, source)
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


def nested_networks(prefix: str, spec: ModelSpec) -> dict[str, dict[str, Any]]:
    """Networks of a specification inside another one: ``prefix`` for a single one, else ``prefix.name``."""
    inner = spec.networks()
    return {prefix if len(inner) == 1 else f"{prefix}.{name}": form for name, form in inner.items()}


def network_integer(form: dict[str, Any], key: str, default: int, source: str = "ModelSpec") -> int:
    """An integer argument in a network's registry form."""
    value = form.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool):
        raise refuse(source, f"network.{key}", "an integer", value)
    return value


def _check_labels(spec: ModelSpec) -> None:
    """Names and ids of the label channels are unique, and there where the task needs them."""
    names = [name for name, _ in spec.label_channels]
    ids = [str(i) for _, group in spec.label_channels for i in group]
    for what, values in (("names", names), ("label ids", ids)):
        twice = sorted({v for v in values if values.count(v) > 1})
        if twice:
            raise MedgenError(f"ModelSpec: field 'label_channels' must have unique {what}. Got {twice[0]} twice.")
    if not spec.makes_label and spec.label_encoding != "one_hot":
        raise refuse("ModelSpec", "label_encoding", f"one_hot for task '{spec.task}'", spec.label_encoding)
    if TASKS[spec.task].needs_label and not names:
        raise MedgenError(f"ModelSpec: field 'label_channels' must not be empty for task '{spec.task}'. Add channels.")


def _check_given(spec: ModelSpec) -> None:
    """Channel names, source modalities and controls agree with what the model is."""
    if spec.channels and len(spec.channels) != spec.image_channels:
        raise refuse("ModelSpec", "channels", f"{spec.image_channels} names, one per image channel", spec.channels)
    if bool(spec.source_modalities) != TASKS[spec.task].needs_source:
        wanted = "not empty" if TASKS[spec.task].needs_source else "empty"
        raise refuse("ModelSpec", "source_modalities", f"{wanted} for task '{spec.task}'", spec.source_modalities)
    if bool(spec.controls) != (spec.control_encoder is not None):
        raise refuse("ModelSpec", "control_encoder", "a network with controls, null without", spec.control_encoder)
    names = [control.name for control in spec.controls]
    if len(set(names)) != len(names):
        raise refuse("ModelSpec", "controls", "of different names", names)


def _check_population(spec: ModelSpec) -> None:
    """The population's label maps lie on the model's grid."""
    for key, value in (spec.label_source or {}).get("population", {}).items():
        if key in {"spacing", "size"} and tuple(value) != getattr(spec.grid, key):
            raise MedgenError(
                f"ModelSpec: field 'label_source.population.{key}' must be that of the grid, "
                f"{list(getattr(spec.grid, key))}. Got {value}."
            )
