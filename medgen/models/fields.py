"""Typed, checked fields: what the files of models and trainings may hold.

A dataclass that derives from :class:`Checked` gives each field a check. What cannot be meant is refused in one line
that names the field, the value and the remedy; an unknown field, an expression (``$``) and a class outside the
registry are refused.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import field
from typing import Any, TypeVar

from medgen.checks import MedgenError, nearest
from medgen.networks.registry import check_network_form, check_plain, short

MAX_JSON = 262_144

# check(value, where, source) -> the value in its final type
Check = Callable[[Any, str, str], Any]
T = TypeVar("T")


def refuse(source: str, where: str, constraint: str, value: Any, hint: str = "") -> MedgenError:
    return MedgenError(f"{source}: field {where!r} must be {constraint}. Got {short(value)}.{hint or ' Correct it.'}")


def text(pattern: str = r"[^\x00-\x1f\x7f]*", constraint: str = "text on one line", longest: int = 2000) -> Check:
    """Text that matches ``pattern`` as a whole and holds no expression."""

    def check(value: Any, where: str, source: str) -> str:
        if not isinstance(value, str) or len(value) > longest or not re.fullmatch(pattern, value):
            raise refuse(source, where, f"{constraint} (at most {longest} characters)", value)
        check_plain(value, where, source)
        return value

    return check


def choice(choices: Callable[[], Iterable[str]]) -> Check:
    """One of the names that ``choices()`` gives (called late: tables live in heavy modules)."""

    def check(value: Any, where: str, source: str) -> str:
        names = list(choices())
        if value not in names:
            raise refuse(source, where, f"one of {', '.join(names)}", value, nearest(value, names))
        return str(value)

    return check


def integer(low: int, high: int) -> Check:
    """An integer in ``low..high``."""

    def check(value: Any, where: str, source: str) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise refuse(source, where, f"an integer in {low}..{high}", value)
        return value

    return check


def number(low: float, high: float, above: bool = False) -> Check:
    """A finite number in ``low..high``; ``above`` leaves ``low`` itself out."""

    def check(value: Any, where: str, source: str) -> float:
        real = isinstance(value, int | float) and not isinstance(value, bool)
        if not real or not low <= value <= high or (above and value == low):  # NaN fails the comparison
            raise refuse(source, where, f"a finite number {'above' if above else 'from'} {low:g} to {high:g}", value)
        return float(value)

    return check


def sequence(of: Check, shortest: int, longest: int) -> Check:
    """A list of ``shortest..longest`` entries, each passing ``of``; becomes a tuple."""

    def check(value: Any, where: str, source: str) -> tuple[Any, ...]:
        if not isinstance(value, list | tuple) or not shortest <= len(value) <= longest:
            raise refuse(source, where, f"a list of {shortest} to {longest} entries", value)
        return tuple(of(item, f"{where}[{i}]", source) for i, item in enumerate(value))

    return check


def optional(of: Check) -> Check:
    """Null, or what ``of`` accepts."""
    return lambda value, where, source: None if value is None else of(value, where, source)


def plain_object(value: Any, where: str, source: str) -> dict[str, Any]:
    """A JSON object without expressions, of at most ``MAX_JSON`` bytes."""
    if not isinstance(value, Mapping):
        raise refuse(source, where, "an object", value)
    check_plain(dict(value), where, source)
    if len(json.dumps(dict(value))) > MAX_JSON:
        raise refuse(source, where, f"an object of at most {MAX_JSON} bytes", value)
    return copy.deepcopy(dict(value))


def network_form(value: Any, where: str, source: str) -> dict[str, Any]:
    """A network specification of a registered class (its signature is checked when it is built)."""
    check_network_form(value, source, where)
    return copy.deepcopy(dict(value))


def label_channel(value: Any, where: str, source: str) -> tuple[str, tuple[int, ...]]:
    """``[name, [label ids]]``: one conditioning channel."""
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise refuse(source, where, "[name, [label ids]]", value)
    name = text(r"[a-z][a-z0-9_]*", "a name of small letters, digits and _", 64)(value[0], f"{where}[0]", source)
    return name, sequence(integer(1, 32767), 1, 512)(value[1], f"{where}[1]", source)


def options(value: Any, where: str, source: str) -> dict[str, Any]:
    """Named settings of a function: at most 16 numbers, truth values, short texts or nulls."""
    value = plain_object(value, where, source)
    if len(value) > 16:
        raise refuse(source, where, "an object of at most 16 settings", value)
    for key, item in value.items():
        if isinstance(item, str):
            text(longest=64)(item, f"{where}.{key}", source)
        elif item is not None and not isinstance(item, bool):
            number(-1e6, 1e6)(item, f"{where}.{key}", source)
    return value


def nested(cls: Callable[[], type[Any]]) -> Check:
    """An object with the fields of the dataclass that ``cls()`` gives."""

    def check(value: Any, where: str, source: str) -> Any:
        kind = cls()
        return value if isinstance(value, kind) else read_fields(kind, value, source, f"{where}.")

    return check


name_text = text(r"[a-z0-9][a-z0-9._-]*", "a name of small letters, digits, '.', '_' and '-'", 64)


def checked(check: Check, **default: Any) -> Any:
    """A dataclass field with its check in the metadata."""
    return field(metadata={"check": check}, **default)


class Checked:
    """Runs the check of every field on construction (frozen dataclasses derive from it)."""

    def __post_init__(self) -> None:
        for item in dataclasses.fields(self):  # type: ignore[arg-type]
            value = item.metadata["check"](getattr(self, item.name), item.name, type(self).__name__)
            object.__setattr__(self, item.name, value)


def read_fields(cls: type[T], data: Any, source: str, prefix: str = "") -> T:
    """Make ``cls`` from a JSON object: unknown and missing fields refused, every field checked under its full name."""
    if not isinstance(data, Mapping):
        raise refuse(source, prefix.rstrip(".") or "(whole file)", "an object", data)
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
