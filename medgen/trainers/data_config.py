"""Settings of training data: slices of volumes, attributes measured from labels, controls.

Each is the typed content of a key of a configuration: ``slices``, ``measured`` and ``controls``.
"""

# ruff: noqa: RUF009  (fields are made by a function that attaches the check; it is called once per field, as meant)
from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from medgen.checks import MedgenError
from medgen.models.fields import (
    Checked,
    checked,
    choice,
    integer,
    nested,
    number,
    optional,
    read_fields,
    refuse,
    sequence,
    text,
)

PLANES = ("axial", "coronal", "sagittal")
LAYOUTS = ("auto", "msd", "brats", "ixi", "medmnist", "bids", "folders", "datalist", "open_ms")
KINDS = ("class", "number", "text")
MOST_CLASSES = 256

attribute_name = text(r"[A-Za-z][A-Za-z0-9_]*", "a name of letters, digits and _", 64)
control_name = text(r"[a-z][a-z0-9_]*", "a name of small letters, digits and _", 64)
_prompt = text(longest=500)
_ids = sequence(integer(1, 32767), 1, 512)
_levels = sequence(number(-1e12, 1e12), 0, MOST_CLASSES - 1)
_shares = sequence(number(0, 1, above=True), 0, MOST_CLASSES - 1)
_names = sequence(text(longest=100), 0, MOST_CLASSES)


def share(value: Any, where: str, source: str) -> float:
    """A number in 0..1, or a truth value for 1 and 0."""
    return float(value) if isinstance(value, bool) else float(number(0, 1)(value, where, source))


def synonyms(value: Any, where: str, source: str) -> dict[str, dict[str, tuple[str, ...]]]:
    """``{attribute: {value: [words]}}``: what a value is called in prompts."""
    if not isinstance(value, Mapping) or not all(isinstance(table, Mapping) for table in value.values()):
        raise refuse(source, where, "{attribute: {value: [words]}}", value)
    words = sequence(text(longest=100), 1, 64)
    return {
        attribute_name(name, where, source): {
            str(key): words(entry, f"{where}.{name}.{key}", source) for key, entry in table.items()
        }
        for name, table in value.items()
    }


@dataclass(frozen=True)
class Slices(Checked):
    """Two-dimensional items cut from volumes, for grids with two axes.

    A volume is kept at the grid's spacing along all three axes; each item is a random slice of it, padded or cropped
    about its centre to the grid.

    Args:
        plane: ``axial``, ``coronal``, ``sagittal``, or ``any``: one of the three, drawn anew; it is the attribute
            ``plane``.
        foreground: share of items whose slice shows the subject: its label, or without one its image (``true`` = 1).
            The rest is drawn from all slices.
    """

    plane: str = checked(choice(lambda: (*PLANES, "any")), default="axial")
    foreground: float = checked(share, default=1.0)


@dataclass(frozen=True)
class Bins(Checked):
    """Names for ranges of a number.

    Args:
        of: the attribute that is a number.
        names: one for each range, rising.
        edges: between the ranges, in the attribute's unit, rising; a value at an edge is in the upper range.
        quantiles: instead of ``edges``: shares of the training subjects below each edge; none of both: equal shares.
    """

    of: str = checked(attribute_name)
    names: tuple[str, ...] = checked(sequence(text(longest=100), 2, MOST_CLASSES))
    edges: tuple[float, ...] = checked(_levels, default=())
    quantiles: tuple[float, ...] = checked(_shares, default=())

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_edges("Bins", self.edges, self.quantiles, len(self.names))


@dataclass(frozen=True)
class Measured(Checked):
    """An attribute computed from a subject's label, or from another attribute; exactly one of the fields.

    Args:
        label_volume: volume of these label ids together, in ml, of the whole subject as it was moved.
        label_area: area of these ids in a two-dimensional item, in mm2.
        label_share: ``[part, whole]``: share of the ids of ``whole`` that those of ``part`` have; 2D: in the slice.
        bins: names for ranges of a number.
    """

    label_volume: tuple[int, ...] | None = checked(optional(_ids), default=None)
    label_area: tuple[int, ...] | None = checked(optional(_ids), default=None)
    label_share: tuple[tuple[int, ...], ...] | None = checked(optional(sequence(_ids, 2, 2)), default=None)
    bins: Bins | None = checked(optional(nested(lambda: Bins)), default=None)

    def __post_init__(self) -> None:
        super().__post_init__()
        given = [name for name in ("label_volume", "label_area", "label_share", "bins") if getattr(self, name)]
        if len(given) != 1:
            raise MedgenError(
                "Measured: give exactly one of label_volume, label_area, label_share and bins. "
                f"Got {' and '.join(given) or 'none'}."
            )


def measured_table(value: Any, where: str, source: str) -> dict[str, Measured]:
    """``{attribute: fields of Measured}``."""
    if not isinstance(value, Mapping) or len(value) > 64:
        raise refuse(source, where, "an object of at most 64 attributes", value)
    return {
        attribute_name(name, where, source): entry
        if isinstance(entry, Measured)
        else read_fields(Measured, entry, source, f"{where}.{name}.")
        for name, entry in value.items()
    }


@dataclass(frozen=True)
class ControlConfig(Checked):
    """What a model is to be told: a class, a number or a text, made from the subjects' attributes.

    Args:
        name: of the control; a text is called ``prompt``.
        kind: ``class``, ``number`` or ``text``.
        attribute: of the subjects; the control's name by default (class and number).
        values: names of the classes, in order; those found in the training subjects, sorted, by default. With
            ``edges`` or ``quantiles`` one name for each range.
        edges: classes are ranges of a number: between the ranges, rising.
        quantiles: likewise, as shares of the training subjects below each edge.
        prompts: templates of a text, ``"a {size} hippocampus"``; names in braces are attributes or class controls.
            Each item draws one of those all of whose names it has.
        words: ``{attribute: {value: [words]}}``: what a value is called in prompts; each item draws one.
        encoder: of the texts: a name or folder that :mod:`medgen.models.text` knows; empty: its default.
    """

    name: str = checked(control_name)
    kind: str = checked(choice(lambda: KINDS))
    attribute: str = checked(optional(attribute_name), default="")
    values: tuple[str, ...] = checked(_names, default=())
    edges: tuple[float, ...] = checked(_levels, default=())
    quantiles: tuple[float, ...] = checked(_shares, default=())
    prompts: tuple[str, ...] = checked(sequence(_prompt, 0, 10_000), default=())
    words: dict[str, dict[str, tuple[str, ...]]] = checked(synonyms, default_factory=dict)
    encoder: str = checked(text(longest=4096), default="")

    def __post_init__(self) -> None:
        object.__setattr__(self, "attribute", self.attribute or self.name)
        super().__post_init__()
        _check_control(self)


def _check_control(control: ControlConfig) -> None:
    """Fields that the kind does not use are empty, and prompts name attributes."""
    used = {"class": ("values", "edges", "quantiles"), "number": (), "text": ("prompts", "words", "encoder")}
    for kind, names in used.items():
        for name in names:
            if kind != control.kind and getattr(control, name):
                raise refuse("ControlConfig", name, f"empty for kind '{control.kind}'", getattr(control, name))
    if control.kind == "text":
        if control.name != "prompt":
            raise refuse("ControlConfig", "name", "'prompt' for kind 'text'", control.name)
        if not control.prompts:
            raise MedgenError(f"ControlConfig: control '{control.name}' of kind 'text' needs prompts. Add templates.")
        for prompt in control.prompts:
            template_fields(prompt)
    if control.edges or control.quantiles:
        _check_edges("ControlConfig", control.edges, control.quantiles, len(control.values))
    elif len(control.values) != len(set(control.values)):
        raise refuse("ControlConfig", "values", "different names", control.values)


def _check_edges(source: str, edges: Sequence[float], quantiles: Sequence[float], names: int) -> None:
    if edges and quantiles:
        raise MedgenError(f"{source}: edges and quantiles exclude each other. Give one.")
    given = edges or quantiles
    if list(given) != sorted(set(given)):
        raise refuse(source, "edges" if edges else "quantiles", "rising numbers", list(given))
    if given and names != len(given) + 1:
        raise MedgenError(f"{source}: {len(given)} edges make {len(given) + 1} ranges; {names} names are given. Match.")


def template_fields(prompt: str) -> tuple[str, ...]:
    """Names in braces of a prompt template.

    Raises:
        MedgenError: the braces do not match, or hold something else than a name and a number format.

    Example:
        >>> template_fields("a {size} hippocampus of {volume_ml:.1f} ml")
        ('size', 'volume_ml')
    """
    try:
        found = [(name, conversion) for _, name, _, conversion in string.Formatter().parse(prompt) if name is not None]
    except ValueError as error:
        raise MedgenError(f"prompt '{prompt}': {error}. Write names in braces, {{size}}.") from error
    for name, conversion in found:
        if conversion or not name.isidentifier():
            raise MedgenError(f"prompt '{prompt}': '{{{name}}}' must be the name of an attribute. Correct it.")
    return tuple(name for name, _ in found)
