"""What a model is: the typed content of ``medgen.json``.

Everything is data. Each field has a check that refuses what cannot be meant, in one line that names the field,
the value and the remedy; an unknown field, an expression (``$``) and a class outside the registry are refused.
"""

# ruff: noqa: RUF009  (fields are made by a function that attaches the check; it is called once per field, as meant)
from __future__ import annotations

import copy
import dataclasses
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from medgen.checks import MedgenError, nearest
from medgen.networks.registry import check_network_form, check_plain, short

FORMAT = 1
TASKS = ("label_to_image", "joint", "inpaint")
PACKINGS = ("none", "haar")
DIFFUSION_UNETS = ("DiffusionModelUNet", "ConditionalUNet")
MAX_VOXELS = 1_000_000_000
MAX_JSON = 262_144

# check(value, where, source) -> the value in its final type
Check = Callable[[Any, str, str], Any]
T = TypeVar("T")


def _refuse(source: str, where: str, constraint: str, value: Any, hint: str = "") -> MedgenError:
    return MedgenError(f"{source}: field {where!r} must be {constraint}. Got {short(value)}.{hint or ' Correct it.'}")


def text(pattern: str = r"[^\x00-\x1f\x7f]*", constraint: str = "text on one line", longest: int = 2000) -> Check:
    """Text that matches ``pattern`` as a whole and holds no expression."""

    def check(value: Any, where: str, source: str) -> str:
        if not isinstance(value, str) or len(value) > longest or not re.fullmatch(pattern, value):
            raise _refuse(source, where, f"{constraint} (at most {longest} characters)", value)
        check_plain(value, where, source)
        return value

    return check


def choice(choices: Callable[[], Iterable[str]]) -> Check:
    """One of the names that ``choices()`` gives (called late: tables live in heavy modules)."""

    def check(value: Any, where: str, source: str) -> str:
        names = list(choices())
        if value not in names:
            raise _refuse(source, where, f"one of {', '.join(names)}", value, nearest(value, names))
        return str(value)

    return check


def integer(low: int, high: int) -> Check:
    """An integer in ``low..high``."""

    def check(value: Any, where: str, source: str) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise _refuse(source, where, f"an integer in {low}..{high}", value)
        return value

    return check


def number(low: float, high: float, above: bool = False) -> Check:
    """A finite number in ``low..high``; ``above`` leaves ``low`` itself out."""

    def check(value: Any, where: str, source: str) -> float:
        real = isinstance(value, int | float) and not isinstance(value, bool)
        if not real or not low <= value <= high or (above and value == low):  # NaN fails the comparison
            raise _refuse(source, where, f"a finite number {'above' if above else 'from'} {low:g} to {high:g}", value)
        return float(value)

    return check


def sequence(of: Check, shortest: int, longest: int) -> Check:
    """A list of ``shortest..longest`` entries, each passing ``of``; becomes a tuple."""

    def check(value: Any, where: str, source: str) -> tuple[Any, ...]:
        if not isinstance(value, list | tuple) or not shortest <= len(value) <= longest:
            raise _refuse(source, where, f"a list of {shortest} to {longest} entries", value)
        return tuple(of(item, f"{where}[{i}]", source) for i, item in enumerate(value))

    return check


def optional(of: Check) -> Check:
    """Null, or what ``of`` accepts."""
    return lambda value, where, source: None if value is None else of(value, where, source)


def plain_object(value: Any, where: str, source: str) -> dict[str, Any]:
    """A JSON object without expressions, of at most ``MAX_JSON`` bytes."""
    if not isinstance(value, Mapping):
        raise _refuse(source, where, "an object", value)
    check_plain(dict(value), where, source)
    if len(json.dumps(dict(value))) > MAX_JSON:
        raise _refuse(source, where, f"an object of at most {MAX_JSON} bytes", value)
    return copy.deepcopy(dict(value))


def network_form(value: Any, where: str, source: str) -> dict[str, Any]:
    """A network specification of a registered class (its signature is checked when it is built)."""
    check_network_form(value, source, where)
    return copy.deepcopy(dict(value))


def label_channel(value: Any, where: str, source: str) -> tuple[str, tuple[int, ...]]:
    """``[name, [label ids]]``: one conditioning channel."""
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise _refuse(source, where, "[name, [label ids]]", value)
    name = text(r"[a-z][a-z0-9_]*", "a name of small letters, digits and _", 64)(value[0], f"{where}[0]", source)
    return name, sequence(integer(1, 32767), 1, 512)(value[1], f"{where}[1]", source)


def label_source(value: Any, where: str, source: str) -> dict[str, Any]:
    """``{"population": {...}}`` or ``{"model": name}``: where a label map comes from if none is given."""
    value = plain_object(value, where, source)
    if list(value) == ["population"]:
        return {"population": plain_object(value["population"], f"{where}.population", source)}
    if list(value) == ["model"]:
        return {"model": _name(value["model"], f"{where}.model", source)}
    raise _refuse(source, where, "an object with one key, 'population' or 'model'", value)


def nested(cls: Callable[[], type[Any]]) -> Check:
    """An object with the fields of the dataclass that ``cls()`` gives."""

    def check(value: Any, where: str, source: str) -> Any:
        kind = cls()
        return value if isinstance(value, kind) else _read(kind, value, source, f"{where}.")

    return check


_name = text(r"[a-z0-9][a-z0-9._-]*", "a name of small letters, digits, '.', '_' and '-'", 64)


def _checked(check: Check, **default: Any) -> Any:
    """A dataclass field with its check in the metadata."""
    return field(metadata={"check": check}, **default)


class _Checked:
    """Runs the check of every field on construction (frozen dataclasses derive from it)."""

    def __post_init__(self) -> None:
        for item in dataclasses.fields(self):  # type: ignore[arg-type]
            value = item.metadata["check"](getattr(self, item.name), item.name, type(self).__name__)
            object.__setattr__(self, item.name, value)


def _read(cls: type[T], data: Any, source: str, prefix: str = "") -> T:
    """Make ``cls`` from a JSON object: unknown and missing fields refused, every field checked under its full name."""
    if not isinstance(data, Mapping):
        raise _refuse(source, prefix.rstrip(".") or "(whole file)", "an object", data)
    known = {item.name: item for item in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key in data:
        if key not in known:
            hint = nearest(key, known) or f" Known fields: {', '.join(known)}."
            raise MedgenError(f"{source}: field {f'{prefix}{key}'!r} is unknown.{hint}")
    for name, item in known.items():
        required = item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING
        if required and name not in data:
            raise MedgenError(f"{source}: field {f'{prefix}{name}'!r} is missing. Add it.")
    return cls(**{key: known[key].metadata["check"](value, f"{prefix}{key}", source) for key, value in data.items()})


def _prediction_types() -> Iterable[str]:
    from medgen.diffusion.denoiser import PREDICTION_TYPES

    return PREDICTION_TYPES


def _samplers() -> Iterable[str]:
    from medgen.diffusion.samplers import SAMPLERS

    return SAMPLERS


def _schedules() -> Iterable[str]:
    from medgen.diffusion.schedules import SCHEDULES

    return SCHEDULES


@dataclass(frozen=True)
class Grid(_Checked):
    """The voxel grid a model works on, in RAS+ axes.

    Args:
        spacing: mm, per axis.
        size: voxels, per axis (before packing).
    """

    spacing: tuple[float, ...] = _checked(sequence(number(0, 100, above=True), 2, 3))
    size: tuple[int, ...] = _checked(sequence(integer(1, 4096), 2, 3))

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.spacing) != len(self.size):
            raise MedgenError(
                f"Grid: spacing and size must have one entry per axis. Got {self.spacing} and {self.size}. Add axes."
            )
        if math.prod(self.size) > MAX_VOXELS:
            raise _refuse("Grid", "size", f"at most {MAX_VOXELS:,} voxels", self.size)


@dataclass(frozen=True)
class Intensity(_Checked):
    """What a generated value of 1.0 becomes on disk.

    Args:
        scale: factor from the model's 0..1 to the unit of the files.
        unit: name of that unit.
    """

    scale: float = _checked(number(0, 1e6, above=True), default=1.0)
    unit: str = _checked(text(longest=100), default="arbitrary")


@dataclass(frozen=True)
class Sampling(_Checked):
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
    """

    sampler: str = _checked(choice(_samplers))
    num_inference_steps: int = _checked(integer(1, 10_000))
    schedule: str = _checked(choice(_schedules))
    sigma_min: float = _checked(number(0, 1e4, above=True))
    sigma_max: float = _checked(number(0, 1e6, above=True))
    guidance_scale: float = _checked(number(0, 100), default=1.0)
    guidance_interval: tuple[float, float] | None = _checked(optional(sequence(number(0, 1e6), 2, 2)), default=None)
    sampler_options: dict[str, Any] = _checked(plain_object, default_factory=dict)
    schedule_options: dict[str, Any] = _checked(plain_object, default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sigma_min >= self.sigma_max:
            raise _refuse("Sampling", "sigma_min", f"below sigma_max ({self.sigma_max:g})", self.sigma_min)
        if self.guidance_interval is not None and self.guidance_interval[0] >= self.guidance_interval[1]:
            raise _refuse("Sampling", "guidance_interval", "[low, high] with low < high", self.guidance_interval)


@dataclass(frozen=True)
class ModelSpec(_Checked):
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
        intensity: see :class:`Intensity`.
        label_source: where label maps come from if none is given: ``{"population": arguments}``,
            ``{"model": name}`` or None.
        training: summary of how it was trained (data, people, steps, seed, config hash).
        regression: settings of a regression output, or None.
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

    name: str = _checked(_name)
    version: str = _checked(text(r"\d{1,4}\.\d{1,4}\.\d{1,4}", "three numbers like 1.0.0", 14))
    network: dict[str, Any] = _checked(network_form)
    prediction_type: str = _checked(choice(_prediction_types))
    task: str = _checked(choice(lambda: TASKS))
    grid: Grid = _checked(nested(lambda: Grid))
    sampling: Sampling = _checked(nested(lambda: Sampling))
    channel_mean: tuple[float, ...] = _checked(sequence(number(-1e6, 1e6), 1, 4096))
    channel_std: tuple[float, ...] = _checked(sequence(number(0, 1e6, above=True), 1, 4096))
    sigma_data: float = _checked(number(0, 1e3, above=True), default=1.0)
    packing: str = _checked(choice(lambda: PACKINGS), default="none")
    image_channels: int = _checked(integer(1, 64), default=1)
    label_channels: tuple[tuple[str, tuple[int, ...]], ...] = _checked(sequence(label_channel, 0, 256), default=())
    label_dropout: float = _checked(number(0, 1), default=0.0)
    intensity: Intensity = _checked(nested(lambda: Intensity), default_factory=Intensity)
    label_source: dict[str, Any] | None = _checked(optional(label_source), default=None)
    training: dict[str, Any] = _checked(plain_object, default_factory=dict)
    regression: dict[str, Any] | None = _checked(optional(plain_object), default=None)
    modality: str = _checked(text(r"[A-Za-z0-9]+", "a BIDS suffix of letters and digits", 16), default="T1w")
    body_part: str = _checked(text(longest=64), default="")
    licence: str = _checked(text(r"[A-Za-z0-9.+-]+", "an SPDX identifier", 64), default="NOASSERTION")
    authors: str = _checked(text(longest=500), default="")
    copyright: str = _checked(text(longest=1000), default="")
    description: str = _checked(text(), default="")
    intended_use: str = _checked(text(), default="Research and development. Not for clinical use.")
    format: int = _checked(integer(FORMAT, FORMAT), default=FORMAT)

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_labels(self)
        _check_channels(self)
        _check_grid(self)

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
            return _read(cls, data, source)
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
    if spec.task != "inpaint" and not names:
        raise MedgenError(f"ModelSpec: field 'label_channels' must not be empty for task '{spec.task}'. Add channels.")


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
    given = _network_integer(spec, "in_channels", expected)
    if given < expected:
        raise MedgenError(f"ModelSpec: field 'network.in_channels' must be at least {expected}. Got {given}.")


def _network_integer(spec: ModelSpec, key: str, default: int) -> int:
    value = spec.network.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise _refuse("ModelSpec", f"network.{key}", "a positive integer", value)
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
