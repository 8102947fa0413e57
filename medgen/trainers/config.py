"""What a training run is: the typed content of a YAML file in ``configs/``, with overrides from the command line."""

# ruff: noqa: RUF009  (fields are made by a function that attaches the check; it is called once per field, as meant)
from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from medgen.checks import MedgenError, nearest
from medgen.io.configs import read_yaml
from medgen.models.fields import (
    Checked,
    checked,
    choice,
    integer,
    label_channel,
    nested,
    number,
    optional,
    plain_object,
    read_fields,
    refuse,
    sequence,
    text,
)
from medgen.models.specification import (
    DEFAULT_FAMILY,
    LABEL_ENCODINGS,
    TASKS,
    Grid,
    Intensity,
    PopulationSource,
    channel_name,
)
from medgen.trainers.data_config import LAYOUTS, ControlConfig, Measured, Slices, measured_table

POPULATION = "colin27"
PRECISIONS = ("auto", "fp32", "bf16", "fp16")
FREE_TO_CHANGE = ("checkpoint_every", "validate_every", "num_workers", "data", "first_stage_model")
MOTIONS = ("rotation_degrees", "scale", "shift_mm", "flip")
LONGEST_AXIS = 1.15  # of a hole, over its drawn diameter; see medgen.trainers.data.random_holes


@dataclass(frozen=True)
class Optimisation(Checked):
    """AdamW with a linear warm-up and a cosine decay to zero.

    Args:
        learning_rate: the highest.
        betas: of Adam.
        weight_decay: decoupled.
        warmup_steps: steps of the linear rise.
        clip_norm: largest norm of the gradient.
        ema_decay: of the averaged weights, which are what is kept; rises with the step as (1 + k) / (10 + k).
    """

    learning_rate: float = checked(number(0, 1, above=True), default=1.5e-3)
    betas: tuple[float, ...] = checked(sequence(number(0, 1), 2, 2), default=(0.9, 0.99))
    weight_decay: float = checked(number(0, 1), default=0.0)
    warmup_steps: int = checked(integer(0, 10**6), default=100)
    clip_norm: float = checked(number(0, 1e6, above=True), default=1.0)
    ema_decay: float = checked(number(0, 1), default=0.998)


@dataclass(frozen=True)
class Augmentation(Checked):
    """What is drawn anew for each training item.

    All of it for items from files. The bundled population brings its own variety: it takes the intensities only, for
    task ``inpaint``, and refuses the rest.

    Args:
        rotation_degrees: largest rotation about each axis.
        scale: largest relative change of size.
        shift_mm: largest shift.
        flip: probability of a left-right mirror image. Image and label map are mirrored as they are, ids are not
            exchanged: a structure of the left would keep its id on the right. Use it only where both sides of a
            structure share a label channel; channels named left or right are refused.
        gamma: largest |ln gamma| of the intensities.
        bias: largest relative amplitude of a smooth multiplicative field.
        noise: largest standard deviation of added Gaussian noise.
        blur_mm: largest standard deviation of a Gaussian blur, in mm whatever the spacing.
    """

    rotation_degrees: float = checked(number(0, 180), default=0.0)
    scale: float = checked(number(0, 0.9), default=0.0)
    shift_mm: float = checked(number(0, 1000), default=0.0)
    flip: float = checked(number(0, 1), default=0.0)
    gamma: float = checked(number(0, 3), default=0.0)
    bias: float = checked(number(0, 0.9), default=0.0)
    noise: float = checked(number(0, 1), default=0.0)
    blur_mm: float = checked(number(0, 20), default=0.0)


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Checked):
    """A training run, of whatever family; each family adds its own fields.

    Args:
        family: ``diffusion``, ``autoencoder``, ...; see :data:`medgen.trainers.families.TRAINERS`.
        name: of the model that results.
        task: what is generated from what; see :class:`~medgen.models.specification.ModelSpec`.
        grid: voxel grid of the model, RAS+.
        steps: optimiser steps.
        data: ``colin27`` (the bundled population), or a path: a MONAI datalist JSON, a BIDS tree, a folder with image
            and label sub-folders, or another known data set.
        layout: of the data, one of ``LAYOUTS``; ``auto`` finds out.
        population: fields of :class:`~medgen.models.specification.PopulationSource` (with ``data: colin27``); its
            spacing is that of the grid, its size too by default.
        subjects: how many subjects of the population to train on; they are kept in memory.
        channels: names of the image channels; ``modality`` alone by default.
        source_modalities: names of the images that are given (tasks ``translate`` and ``segment``).
        source_dropout: share of training samples in which a given image is left out, at least one being kept.
        slices: two-dimensional items from volumes, see :class:`~medgen.trainers.data_config.Slices`.
        measured: attributes computed from labels, see :class:`~medgen.trainers.data_config.Measured`.
        controls: what the model listens to, see :class:`~medgen.trainers.data_config.ControlConfig`.
        control_dropout: share of training samples in which each control is left out.
        context_dim: channels of the embedded controls.
        label_encoding, label_distance_mm: see :class:`~medgen.models.specification.ModelSpec`.
        label_channels: ``[name, [ids]]``, or ``tissues`` for those of the bundled atlas.
        patch_size: voxels of a training patch, at most the subject's; the whole grid by default.
        holes: largest number of holes in a patch of task ``inpaint``.
        hole_diameter_mm: smallest and largest hole of task ``inpaint``; an axis of a hole may be 1.15 times as long,
            which must fit in the patch.
        held_out_endings: last digits of subject numbers never trained on (files only).
        first_stage: configuration, a file or a shipped name, of the model that this one builds on: the autoencoder of a
            latent model, the base of a cascade, the model that a control network steers, the teacher of a student.
            It is trained first, on the same data, into ``DIR/first_stage``.
        first_stage_model: that model, name or folder, where it exists already.
        start_from: a model, bundled name or folder, whose weights and intensity figures are the first (fine-tuning);
            networks, task and encoding must be its. Empty: anew.
        optimisation: see :class:`Optimisation`.
        batch_size, seed, num_workers, validate_every, checkpoint_every: as they say.
        precision: ``auto`` is bf16 on a GPU that has it, else fp32.

    Raises:
        MedgenError: a field fails its check, or two fields contradict each other.
    """

    family: str = checked(text(r"[a-z]+", "a name of small letters", 32), default=DEFAULT_FAMILY)
    name: str = checked(text(r"[a-z0-9][a-z0-9._-]*", "a name of small letters, digits, '-', '_' and '.'", 64))
    task: str = checked(choice(lambda: TASKS))
    grid: Grid = checked(nested(lambda: Grid))
    steps: int = checked(integer(1, 10**8))
    version: str = checked(text(r"\d{1,4}\.\d{1,4}\.\d{1,4}", "three numbers like 1.0.0", 14), default="1.0.0")
    data: str = checked(text(longest=4096), default="colin27")
    layout: str = checked(choice(lambda: LAYOUTS), default="auto")
    population: dict[str, Any] = checked(plain_object, default_factory=dict)
    subjects: int = checked(integer(1, 10**6), default=300)
    channels: tuple[str, ...] = checked(sequence(channel_name, 0, 64), default=())
    source_modalities: tuple[str, ...] = checked(sequence(channel_name, 0, 64), default=())
    source_dropout: float = checked(number(0, 1), default=0.0)
    slices: Slices | None = checked(optional(nested(lambda: Slices)), default=None)
    measured: dict[str, Measured] = checked(measured_table, default_factory=dict)
    controls: tuple[ControlConfig, ...] = checked(sequence(nested(lambda: ControlConfig), 0, 64), default=())
    control_dropout: float = checked(number(0, 1), default=0.0)
    context_dim: int = checked(integer(1, 4096), default=64)
    label_channels: tuple[tuple[str, tuple[int, ...]], ...] = checked(sequence(label_channel, 0, 256), default=())
    label_encoding: str = checked(choice(lambda: LABEL_ENCODINGS), default="one_hot")
    label_distance_mm: float = checked(number(0, 1000, above=True), default=4.0)
    patch_size: tuple[int, ...] | None = checked(optional(sequence(integer(1, 4096), 2, 3)), default=None)
    optimisation: Optimisation = checked(nested(lambda: Optimisation), default_factory=Optimisation)
    augmentation: Augmentation = checked(nested(lambda: Augmentation), default_factory=Augmentation)
    holes: int = checked(integer(1, 100), default=1)
    hole_diameter_mm: tuple[float, ...] = checked(sequence(number(0, 1000, above=True), 2, 2), default=(20.0, 44.0))
    held_out_endings: tuple[int, ...] = checked(sequence(integer(0, 9), 0, 9), default=())
    batch_size: int = checked(integer(1, 65536), default=4)
    first_stage: str = checked(text(longest=4096), default="")
    first_stage_model: str = checked(text(longest=4096), default="")
    start_from: str = checked(text(longest=4096), default="")
    seed: int = checked(integer(0, 2**62), default=0)
    num_workers: int = checked(integer(0, 256), default=0)
    validate_every: int = checked(integer(1, 10**8), default=1000)
    checkpoint_every: int = checked(integer(1, 10**8), default=200)
    precision: str = checked(choice(lambda: PRECISIONS), default="auto")
    intensity: Intensity = checked(nested(lambda: Intensity), default_factory=Intensity)
    modality: str = checked(text(r"[A-Za-z0-9]+", "a BIDS suffix of letters and digits", 16), default="T1w")
    body_part: str = checked(text(longest=64), default="")
    licence: str = checked(text(r"[A-Za-z0-9.+-]+", "an SPDX identifier", 64), default="NOASSERTION")
    authors: str = checked(text(longest=500), default="")
    copyright: str = checked(text(longest=1000), default="")
    description: str = checked(text(), default="")
    intended_use: str = checked(text(), default="Research and development. Not for clinical use.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.patch_size is not None and len(self.patch_size) != len(self.grid.size):
            raise MedgenError(
                f"TrainConfig: field 'patch_size' must have {len(self.grid.size)} entries, as grid.size. "
                f"Got {list(self.patch_size)}. Correct it."
            )
        _check_patch(self, _subject_size(self))
        _check_augmentation(self)

    @property
    def image_channels(self) -> int:
        """Channels of the image."""
        return len(self.channels) or 1

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self), allow_nan=False))
        return plain

    def identity(self) -> dict[str, Any]:
        """What decides the weights: all but where the data lie and how often something is written."""
        return {key: value for key, value in self.to_dict().items() if key not in FREE_TO_CHANGE}

    def sha256(self) -> str:
        """Hash of :meth:`identity`."""
        return hashlib.sha256(json.dumps(self.identity(), sort_keys=True).encode()).hexdigest()


def _subject_size(config: TrainConfig) -> tuple[int, ...]:
    """Voxels of a training subject: the population's, else the grid's.

    Raises:
        MedgenError: a field of ``population`` is unknown or bad, or its spacing is not the grid's.
    """
    if (config.data != POPULATION and not config.population) or len(config.grid.size) == 2:  # slices of larger ones
        return config.grid.size
    whole = {"spacing": config.grid.spacing, "size": config.grid.size} | config.population
    population = read_fields(PopulationSource, whole, "TrainConfig", "population.")
    if population.spacing != config.grid.spacing:
        raise refuse(
            "TrainConfig",
            "population.spacing",
            f"that of the grid, {list(config.grid.spacing)}",
            list(population.spacing),
            " Leave it out.",
        )
    return population.size if config.data == POPULATION else config.grid.size


def _check_patch(config: TrainConfig, subject: Sequence[int]) -> None:
    """A patch lies within a subject of ``subject`` voxels, and a hole within a patch."""
    patch = config.patch_size or config.grid.size
    if any(part > whole for part, whole in zip(patch, subject, strict=True)):
        name = "patch_size" if config.patch_size else "grid.size"
        raise refuse("TrainConfig", name, f"at most {list(subject)}, the voxels of a subject", list(patch))
    if config.task != "inpaint":
        return
    low, high = config.hole_diameter_mm
    if low > high:
        raise refuse("TrainConfig", "hole_diameter_mm", "[smallest, largest]", [low, high])
    extent = min(n * step for n, step in zip(patch, config.grid.spacing, strict=True))
    if LONGEST_AXIS * high >= extent:
        raise MedgenError(
            f"TrainConfig: field 'hole_diameter_mm' must stay below {extent / LONGEST_AXIS:.4g} mm, so that every hole "
            f"({LONGEST_AXIS} times as long at most) is smaller than the patch ({extent:g} mm). Got {[low, high]}. "
            "Set smaller holes or a larger patch_size."
        )


def _check_augmentation(config: TrainConfig) -> None:
    """Nothing is asked for that would not be done, or would give a structure the label of the other side."""
    asked = [name for name, value in dataclasses.asdict(config.augmentation).items() if value]
    if config.data == POPULATION:
        unused = [name for name in asked if config.task != "inpaint" or name in MOTIONS]
        if unused:
            raise MedgenError(
                f"TrainConfig: field 'augmentation' must leave out {', '.join(unused)} for task '{config.task}' with "
                f"data '{POPULATION}': the population brings its own variety. Remove them."
            )
    elif config.task != "inpaint" and config.augmentation.flip:
        sided = [name for name, _ in config.label_channels if {"left", "right"} & set(name.split("_"))]
        if sided:
            raise MedgenError(
                f"TrainConfig: field 'augmentation.flip' must be 0 with label channel '{sided[0]}': a mirror image "
                f"does not exchange sides. Got {config.augmentation.flip:g}. Set it to 0, or put both sides in one "
                "channel."
            )


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """Read a YAML configuration and apply overrides.

    Args:
        path: of the file.
        overrides: ``key=value``; ``#`` goes into an object or list as in MONAI (``net#channels=[16,32]``,
            ``net#channels#0=16``); values are YAML.

    Raises:
        MedgenError: no such file, not YAML, unknown key or bad value; the text names the nearest valid key.
    """
    file = Path(path)
    if not file.is_file():
        raise MedgenError(f"no configuration at '{path}'. Give the path of a YAML file.")
    try:
        content = read_yaml(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise MedgenError(f"{file.name} is no valid YAML: {error}. Mend the file.") from error
    if not isinstance(content, dict):
        raise MedgenError(f"{file.name} must hold keys and values. Got {type(content).__name__}. Mend the file.")
    for override in overrides:
        _apply(content, override)
    if content.get("label_channels") == "tissues":
        from medgen.anatomy.labels import CHANNELS

        content["label_channels"] = [[name, list(ids)] for name, ids in CHANNELS]
    from medgen.trainers.families import config_class

    return read_fields(config_class(content.get("family", DEFAULT_FAMILY), file.name), content, file.name)


def _apply(content: dict[str, Any], override: str) -> None:
    """Set one ``key#key=value`` in a nested object."""
    keys, equals, raw = override.partition("=")
    if not equals or not keys:
        raise MedgenError(f"override '{override}' must read key=value. Write, for example, steps=2000.")
    try:
        value = read_yaml(raw)
    except yaml.YAMLError as error:
        raise MedgenError(f"override '{override}' has no valid YAML value: {error}. Quote it.") from error
    path = keys.split("#")
    place: Any = content
    for key in path[:-1]:
        place = place.setdefault(key, {}) if isinstance(place, dict) else _entry(place, key, override)
    if isinstance(place, list):
        _entry(place, path[-1], override)
        place[int(path[-1])] = value
    elif isinstance(place, dict):
        place[path[-1]] = value
    else:
        raise MedgenError(f"override '{override}': '{'#'.join(path[:-1])}' holds no keys. Set it as a whole.")


def _entry(place: Any, key: str, override: str) -> Any:
    if not isinstance(place, list) or not key.isdigit() or int(key) >= len(place):
        known = [str(i) for i in range(len(place))] if isinstance(place, list) else []
        raise MedgenError(f"override '{override}': no entry '{key}' there.{nearest(key, known)} Check the path.")
    return place[int(key)]


def changed_keys(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Top-level keys in which two configurations differ."""
    return sorted(key for key in {*before, *after} if before.get(key) != after.get(key))
