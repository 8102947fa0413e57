"""Which slices make one volume.

The rule, for the slices of one SeriesInstanceUID:

1. Slices of one patient, SOP class, matrix size, orientation (each component within 1e-3) and pixel spacing (within
   1e-4 of itself) may make a volume together.
2. A file with the SOPInstanceUID and the pixels of another is a copy and left out.
3. Where positions repeat, or lie unevenly, an attribute is looked for whose values part the slices into complete
   volumes with the same positions each: stack, echo, image type, time, diffusion, inversion, flip angle, trigger,
   acquisition, dimension index. Where no value does, the order in time at each position may. Parts may be parted
   again.
4. Failing that, slices with the same pixels at the same place are copies and left out.
5. Failing that, an attribute will do that gives complete volumes for at least half of the slices: of the rest, a
   slice alone is refused with ``SINGLE_SLICE``, an incomplete part with ``MISSING_SLICE``.
6. Failing that, repeated positions are refused with ``DUPLICATE_SLICE``.

InstanceNumber, SliceLocation and file names are never looked at.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import cast

import numpy as np

from medgen.io.dicom.frames import Slice
from medgen.io.dicom.geometry import in_order, line_of, normal_of, places_of
from medgen.io.findings import Finding, Refused

__all__ = ["Part", "volumes_of"]

_ORIENTATION_TOLERANCE, _SPACING_TOLERANCE = 1e-3, 1e-4
_BY_VALUE: dict[str, int] = {
    "StackID": 0x00209056,
    "EchoTime": 0x00180081,
    "EffectiveEchoTime": 0x00189082,
    "EchoNumbers": 0x00180086,
    "ImageType": 0x00080008,
    "FrameType": 0x00089007,
    "TemporalPositionIdentifier": 0x00200100,
    "TemporalPositionIndex": 0x00209128,
    "TemporalPositionTimeOffset": 0x0020930D,
    "DiffusionBValue": 0x00189087,
    "DiffusionGradientOrientation": 0x00189089,
    "PrivateBValue": 0x0019100C,
    "SequenceName": 0x00180024,
    "InversionTime": 0x00180082,
    "InversionTimes": 0x00189079,
    "FlipAngle": 0x00181314,
    "TriggerTime": 0x00181060,
    "CardiacTriggerDelayTime": 0x00189153,
    "NominalCardiacTriggerDelayTime": 0x00209153,
    "NominalPercentageOfCardiacPhase": 0x00209241,
    "RepetitionTime": 0x00180080,
    "KVP": 0x00180060,
    "ConvolutionKernel": 0x00181210,
    "ContrastBolusAgent": 0x00180010,
    "ComplexImageComponent": 0x00089208,
    "AcquisitionNumber": 0x00200012,
    "StudyInstanceUID": 0x0020000D,
    "SeriesNumber": 0x00200011,
    "SeriesDescription": 0x0008103E,
    "ProtocolName": 0x00181030,
    "FrameOfReferenceUID": 0x00200052,
    "SeriesTime": 0x00080031,
    "FrameReferenceTime": 0x00541300,
    "AcquisitionDateTime": 0x0008002A,
    "AcquisitionTime": 0x00080032,
    "ContentTime": 0x00080033,
    "FrameReferenceDateTime": 0x00189151,
}
_INTERLEAVED = ("StackID", "EchoTime", "EffectiveEchoTime", "EchoNumbers", "ImageType", "FrameType")
_BY_ORDER = (
    "TriggerTime", "CardiacTriggerDelayTime", "NominalCardiacTriggerDelayTime", "TemporalPositionTimeOffset",
    "FrameReferenceTime", "AcquisitionNumber", "FrameReferenceDateTime", "FrameAcquisitionDateTime",
    "AcquisitionDateTime", "AcquisitionTime", "ContentTime",
)  # fmt: skip
_TAGS = _BY_VALUE | {"FrameAcquisitionDateTime": 0x00189074}
_DIMENSIONS = 0x00209157
_DEEPEST = 5
_TOGETHER = (0x00080016, 0x00100020)


@dataclass
class Part:
    """Slices that make one volume, or why they do not.

    Args:
        slices: by ascending position along the normal.
        first: position of the first, LPS mm.
        step: vector from each slice to the next, LPS mm.
        label: what parted it from the rest of its series; ``""`` for a series of one volume.
        refused: why it is no volume.
        copies: slices that were left out.
        findings: what grouping found out.
    """

    slices: list[Slice]
    first: np.ndarray | None = None
    step: np.ndarray | None = None
    label: str = ""
    refused: Refused | None = None
    copies: list[Slice] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)


def volumes_of(slices: Sequence[Slice], same_pixels: Callable[[Slice, Slice], bool]) -> list[Part]:
    """The parts of one series, by the rule of this module.

    Args:
        slices: all usable slices of one SeriesInstanceUID.
        same_pixels: whether two slices have equal stored pixels and rescale.

    Returns:
        Every slice once: in ``slices`` or ``copies`` of one part. Where there is more than one part, each volume has
        the finding ``SPLIT_SERIES``.
    """
    clusters = _clusters(slices)
    parts: list[Part] = []
    for cluster in clusters:
        kept, copies = _without_copies(cluster, same_pixels)
        found = _parted(kept, same_pixels)
        found[0].copies += copies
        parts += found
    _name_odd_sizes(parts)
    whole = [part for part in parts if part.refused is None]
    for part in whole:
        if len(parts) > 1:
            text = f"the series holds {len(parts)} groups of slices, {len(whole)} of them volumes"
            part.findings.insert(
                0, Finding("SPLIT_SERIES", text + (f"; this one: {part.label}." if part.label else "."))
            )
        if part.copies:
            names = ", ".join(sorted({f"'{item.header.path.name}'" for item in part.copies})[:5])
            part.findings.append(
                Finding("DUPLICATES_DROPPED", f"{len(part.copies)} identical copies left out: {names}.")
            )
    return parts


def _clusters(slices: Sequence[Slice]) -> list[list[Slice]]:
    """Slices by matrix size, orientation and spacing."""
    clusters: list[list[Slice]] = []
    for item in slices:
        for cluster in reversed(clusters):
            if _alike(cluster[0], item):
                cluster.append(item)
                break
        else:
            clusters.append([item])
    return sorted(clusters, key=lambda cluster: min((item.text(0x00080018), item.frame) for item in cluster))


def _alike(first: Slice, other: Slice) -> bool:
    if (first.rows, first.columns) != (other.rows, other.columns):
        return False
    if first.header is not other.header and any(first.text(tag) != other.text(tag) for tag in _TOGETHER):
        return False
    if (
        first.orientation is not other.orientation
        and np.abs(first.orientation - other.orientation).max() > _ORIENTATION_TOLERANCE
    ):
        return False
    return all(abs(a - b) <= _SPACING_TOLERANCE * a for a, b in zip(first.spacing, other.spacing, strict=True))


def _without_copies(
    slices: Sequence[Slice], same_pixels: Callable[[Slice, Slice], bool]
) -> tuple[list[Slice], list[Slice]]:
    """Slices without those that have the UID, place and pixels of another."""
    kept: list[Slice] = []
    copies: list[Slice] = []
    by_uid: dict[Hashable, list[Slice]] = defaultdict(list)
    for item in slices:
        uid = (item.text(0x00080018), item.frame, item.tile)
        twins = by_uid[uid] if uid[0] else []
        if any(np.array_equal(item.position, twin.position) and same_pixels(item, twin) for twin in twins):
            copies.append(item)
        else:
            kept.append(item)
            twins.append(item)
    return kept, copies


def _parted(slices: list[Slice], same_pixels: Callable[[Slice, Slice], bool]) -> list[Part]:
    """The parts of slices of one cluster."""
    places = places_of(slices)
    repeated = len(np.unique(places)) < len(slices)
    groups = _strictly(slices, places, _DEEPEST) if repeated else _interleaved(slices, 2, _INTERLEAVED)
    if groups is None and not repeated:
        part = _part(slices)
        groups = _interleaved(slices, 3, _BY_VALUE) if part.refused is not None else None
        if groups is None:
            return [part]
    if groups is None:
        kept, copies = _without_equal(slices, places, same_pixels)
        if len(kept) < len(slices):
            parts = _parted(kept, same_pixels)
            parts[0].copies += copies
            return parts
        return _leniently(slices, places)
    return [_part(group, label) for label, group in groups]


def _part(slices: list[Slice], label: str = "") -> Part:
    ordered, _ = in_order(slices)
    try:
        first, step = line_of(ordered)
        return Part(ordered, first, step, label)
    except Refused as error:
        return Part(ordered, label=label, refused=error)


Groups = list[tuple[str, list[Slice]]]


def _strictly(slices: list[Slice], places: np.ndarray, depth: int) -> Groups | None:
    """Parts that all have every place exactly once, or None."""
    count = int(places.max()) + 1
    if len(slices) % count or depth == 0:
        return None
    for name, values in _by_value(slices):
        groups = _split(values)
        if len(groups) < 2:
            continue
        deeper: Groups = []
        for value, members in groups.items():
            own = places[members]
            if len(members) % count or len(np.unique(own)) != count:
                break
            picked = [slices[index] for index in members]
            parts = [("", picked)] if len(members) == count else _strictly(picked, own, depth - 1)
            if parts is None:
                break
            deeper += [(" ".join(filter(None, (f"{name} {_show(value)}", label))), group) for label, group in parts]
        else:
            return deeper
    return _by_rank(slices, places, count)


def _by_rank(slices: list[Slice], places: np.ndarray, count: int) -> Groups | None:
    """Parts by the order in time at each place: first of each place, second of each place, ..."""
    if np.bincount(places).min() * count != len(slices):
        return None
    for name in _BY_ORDER:
        values = _values(slices, _TAGS[name])
        if values is None or not all(isinstance(value, tuple) and len(value) == 1 for value in values):
            continue
        ranks = np.empty(len(slices), dtype=np.int64)
        for place in range(count):
            members = np.flatnonzero(places == place)
            keys = [cast(tuple[float], values[index])[0] for index in members]
            if len(set(keys)) < len(keys):
                break
            ranks[members[np.argsort(keys, kind="stable")]] = np.arange(len(members))
        else:
            return [
                (f"{name} order {rank + 1}", [slices[index] for index in np.flatnonzero(ranks == rank)])
                for rank in range(int(ranks.max()) + 1)
            ]
    return None


def _interleaved(slices: list[Slice], least: int, names: Iterable[str]) -> Groups | None:
    """Parts of slices at different places: echoes or stacks whose slices lie between each other, each even alone."""
    for name, values in _by_value(slices):
        if name not in names:
            continue
        groups = _split(values)
        parts = [(f"{name} {_show(value)}", [slices[index] for index in members]) for value, members in groups.items()]
        if len(parts) < 2 or min(len(part) for _, part in parts) < least:
            continue
        if name != "StackID" and not _overlap([part for _, part in parts]):
            continue
        if all(_part(part).refused is None for _, part in parts):
            return parts
    return None


def _overlap(parts: Sequence[Sequence[Slice]]) -> bool:
    """Whether the stretches that the parts cover along the normal have a stretch in common."""
    normal = normal_of(parts[0][0])
    ends = [[float(item.position @ normal) for item in part] for part in parts]
    return max(min(end) for end in ends) < min(max(end) for end in ends)


def _leniently(slices: list[Slice], places: np.ndarray) -> list[Part]:
    """Parts of which the complete ones hold at least half of the slices; the rest is refused."""
    count = int(places.max()) + 1
    for name, values in _by_value(slices):
        groups = _split(values)
        if len(groups) < 2 or any(len(np.unique(places[members])) < len(members) for members in groups.values()):
            continue
        if 2 * sum(len(members) for members in groups.values() if len(members) == count) < len(slices):
            continue
        return [
            _complete([slices[index] for index in members], f"{name} {_show(value)}", count)
            for value, members in groups.items()
        ]
    repeats = [slices[index].header.path.name for index in np.flatnonzero(places == np.bincount(places).argmax())]
    names = ", ".join(f"'{name}'" for name in repeats[:4])
    ordered, _ = in_order(slices)
    text = f"{len(slices)} slices stand at {count} places, with different pixels, and no attribute parts them: {names}."
    return [Part(ordered, refused=Refused("DUPLICATE_SLICE", text))]


def _complete(slices: list[Slice], label: str, count: int) -> Part:
    part = _part(slices, label)
    if 1 < len(slices) < count:
        part.first = part.step = None
        text = f"{label} has {len(slices)} slices; other parts of the series have {count}."
        part.refused = Refused("MISSING_SLICE", text)
    return part


def _without_equal(
    slices: list[Slice], places: np.ndarray, same_pixels: Callable[[Slice, Slice], bool]
) -> tuple[list[Slice], list[Slice]]:
    """Slices without those that equal another at the same place in pixels and rescale."""
    kept: list[Slice] = []
    copies: list[Slice] = []
    for place in range(int(places.max()) + 1):
        here: list[Slice] = []
        for index in np.flatnonzero(places == place):
            twin = any(same_pixels(slices[index], other) for other in here)
            (copies if twin else here).append(slices[index])
        kept += here
    return kept, copies


def _name_odd_sizes(parts: list[Part]) -> None:
    """A single slice whose size differs from the rest of its series is refused for that."""
    sizes = {(part.slices[0].rows, part.slices[0].columns) for part in parts}
    if len(sizes) < 2:
        return
    largest = max(parts, key=lambda part: len(part.slices))
    usual = (largest.slices[0].rows, largest.slices[0].columns)
    for part in parts:
        item = part.slices[0]
        if part.refused is not None and part.refused.code == "SINGLE_SLICE" and (item.rows, item.columns) != usual:
            text = f"'{item.header.path.name}' is {item.rows} x {item.columns}, the series {usual[0]} x {usual[1]}."
            part.refused = Refused("SLICE_SIZE_DIFFERS", text)


def _by_value(slices: Sequence[Slice]) -> Iterable[tuple[str, list[Hashable]]]:
    """Name and values of each attribute that may part slices and that all of them have."""
    for name, tag in _BY_VALUE.items():
        values = _values(slices, tag)
        if values is not None:
            yield name, values
    if all(item.layout.frames > 1 or item.tile is not None for item in slices):
        yield "file", [item.header.path.name + "\0" + str(item.header.path) for item in slices]
    dimensions = [item.numbers(_DIMENSIONS) for item in slices]
    if all(dimensions) and len({len(values) for values in dimensions}) == 1:
        for number in range(len(dimensions[0])):
            yield f"dimension {number + 1}", [values[number] for values in dimensions]


def _values(slices: Sequence[Slice], tag: int) -> list[Hashable] | None:
    """An attribute of each slice as numbers where it holds some, else as text; None where no slice has it."""
    values: list[Hashable] = [item.numbers(tag) or item.text(tag) for item in slices]
    return values if any(values) else None


def _split(values: Sequence[Hashable]) -> dict[Hashable, list[int]]:
    """Indices by value, in the order of the values."""
    groups: dict[Hashable, list[int]] = defaultdict(list)
    for index, value in enumerate(values):
        groups[value].append(index)
    return dict(sorted(groups.items(), key=lambda pair: (isinstance(pair[0], str), pair[0])))


def _show(value: Hashable) -> str:
    if isinstance(value, tuple):
        return "\\".join(f"{number:g}" for number in itertools.islice(value, 6))
    return str(value).split("\0")[0] or "(none)"
