"""What is asked of the subjects of a cohort: the same of all, or numbers spread over a range."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from medgen.checks import MedgenError, nearest
from medgen.models.controls import PROMPT, Condition, Control, check_conditions

__all__ = ["accepted", "check_asked", "control_text", "parse_conditions", "requested", "subject_conditions"]

Asked = Mapping[str, Condition | tuple[float, float]]
_BASES = (2, 3, 5, 7, 11, 13)


def control_text(control: Control) -> str:
    """How a control is asked for on the command line, and what it takes.

    Example:
        >>> control_text(Control("size", "class", values=("small", "large"), shares=(0.4, 0.6)))
        'size=small|large'
        >>> control_text(Control("volume_ml", "number", quantiles=(2.0, 4.5), unit="ml"))
        'volume_ml=2..4.5 ml'
    """
    if control.kind == "class":
        return f"{control.name}={'|'.join(control.values)}"
    if control.kind == "number":
        low, high = control.range
        return f"{control.name}={low:g}..{high:g}{f' {control.unit}' if control.unit else ''}"
    return f"{PROMPT}=TEXT such as '{control.prompts[0]}'"


def accepted(name: str, controls: Sequence[Control]) -> str:
    """One sentence: what a model can be asked for.

    Args:
        name: of the model.
        controls: of the model.
    """
    if not controls:
        return f"Model '{name}' has no conditions: leave it out."
    return f"Model '{name}' accepts {', '.join(map(control_text, controls))}."


def requested(
    name: str, controls: Sequence[Control], options: Sequence[str], prompt: str | None = None, command: str = "generate"
) -> dict[str, Any]:
    """:func:`parse_conditions` for one model; what it cannot be asked for is refused with what it can.

    Args:
        name: of the model.
        controls: of the model.
        options: see :func:`parse_conditions`.
        prompt: see :func:`parse_conditions`.
        command: for errors; only ``generate`` takes ``LOW:HIGH``, which needs several subjects.

    Raises:
        MedgenError: see :func:`parse_conditions`; a condition that the model does not have, or a bad value.
    """
    told, known = accepted(name, controls), [control.name for control in controls]
    try:
        asked = parse_conditions(options, prompt)
    except MedgenError as error:
        raise MedgenError(f"{error} {told}") from None
    for key, value in asked.items():
        if key not in known:
            what = "--prompt: this model listens to no text" if key == PROMPT else f"condition '{key}' is unknown"
            raise MedgenError(f"{what}.{nearest(key, known)} {told}")
        if isinstance(value, tuple) and command != "generate":
            raise MedgenError(f"condition '{key}' must be one value here, not LOW:HIGH. {told}")
    return check_asked(controls, asked, command)


def parse_conditions(options: Sequence[str], prompt: str | None = None) -> dict[str, Any]:
    """``["size=large", "volume_ml=2.5:4.0"]`` and a prompt as a request.

    Args:
        options: ``NAME=VALUE``, or ``NAME=LOW:HIGH`` for a number that is to be spread over the subjects.
        prompt: the text, under the name ``prompt``.

    Raises:
        MedgenError: an option without name, ``=`` or value, or a name given twice.

    Example:
        >>> parse_conditions(["size=large", "volume_ml=2.5:4.0"], "a large one")
        {'size': 'large', 'volume_ml': (2.5, 4.0), 'prompt': 'a large one'}
    """
    asked: dict[str, Any] = {}
    pairs = [option.partition("=") for option in options]
    if prompt is not None:
        pairs.append((PROMPT, "=", prompt))
    for name, sign, value in pairs:
        if not sign or not name.strip() or not value.strip():
            raise MedgenError(f"a condition must be NAME=VALUE. Got '{name}{sign}{value}'.")
        if name.strip() in asked:
            raise MedgenError(f"condition '{name.strip()}' is given twice. Give it once.")
        asked[name.strip()] = value.strip() if name == PROMPT else _range(value) or value.strip()
    return asked


def _range(value: str) -> tuple[float, float] | None:
    """``LOW:HIGH``, or None for anything else."""
    parts = value.split(":")
    try:
        low, high = (float(part) for part in parts)
    except ValueError:
        return None
    return low, high


def check_asked(controls: Sequence[Control], asked: Asked | None, who: str = "generate") -> dict[str, Any]:
    """A request with every value in its final type; both ends of a range are checked.

    Args:
        controls: of the model.
        asked: value by control; ``(low, high)`` spreads a number over the subjects.
        who: the caller, for errors.

    Raises:
        MedgenError: as :func:`medgen.models.controls.check_conditions`; a range of something else than a number, or
            the wrong way round.
    """
    asked = asked or {}
    ends = {name: value for name, value in asked.items() if isinstance(value, tuple | list)}
    found: dict[str, Any] = dict(check_conditions(controls, {n: v for n, v in asked.items() if n not in ends}, who))
    numbers = [control.name for control in controls if control.kind == "number"]
    for name, (low, high) in ends.items():
        lows = check_conditions(controls, {name: low}, who)
        highs = check_conditions(controls, {name: high}, who)
        if name not in numbers or not float(lows[name]) < float(highs[name]):
            raise MedgenError(f"{who}: condition '{name}' = {low}:{high} must be a number's LOW:HIGH. Correct it.")
        found[name] = (float(lows[name]), float(highs[name]))
    return found


def subject_conditions(asked: Asked, number: int) -> dict[str, Condition]:
    """What is asked of subject ``number`` (from 0).

    Numbers of a range follow the Halton sequence, one base for each: evenly spread for every number of subjects, and a
    function of ``number`` alone (Halton 1960, Numerische Mathematik 2, 84-90).

    Example:
        >>> [subject_conditions({"volume_ml": (2.0, 4.0)}, i)["volume_ml"] for i in range(4)]
        [3.0, 2.5, 3.5, 2.25]
    """
    found: dict[str, Condition] = {}
    spread = 0
    for name, value in asked.items():
        if isinstance(value, tuple | list):
            share = _radical_inverse(number + 1, _BASES[spread % len(_BASES)])
            spread += 1
            found[name] = float(f"{value[0] + share * (value[1] - value[0]):.6g}")
        else:
            found[name] = value
    return found


def _radical_inverse(number: int, base: int) -> float:
    """The digits of ``number`` mirrored at the point."""
    share, unit = 0.0, 1.0 / base
    while number:
        number, digit = divmod(number, base)
        share += digit * unit
        unit /= base
    return share
