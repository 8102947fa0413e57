"""Argument checks with one-line errors: who, which argument, the constraint, the value received, the remedy."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from numbers import Integral
from typing import Any

__all__ = ["MedgenError", "check_choice", "check_count", "check_positive", "check_range", "nearest"]


class MedgenError(ValueError):
    """A fault in what the user gave: a file, an argument, a model folder. Its text is one line.

    Args:
        message: what is wrong and how to mend it; line breaks become spaces.
    """

    def __init__(self, message: object) -> None:
        super().__init__(" ".join(str(message).split()))


def nearest(value: object, choices: Iterable[object]) -> str:
    """The hint that ends an error about an unknown name.

    Args:
        value: what was given.
        choices: what would have been valid.

    Returns:
        ``" Did you mean 'x'?"``, or ``""`` where nothing is close.

    Example:
        >>> nearest("eulr", ["euler", "heun"])
        " Did you mean 'euler'?"
        >>> nearest("zzz", ["euler", "heun"])
        ''
    """
    names = {str(choice).lower(): str(choice) for choice in choices}
    found = difflib.get_close_matches(str(value).lower(), list(names), n=1, cutoff=0.6)
    return f" Did you mean '{names[found[0]]}'?" if found else ""


def check_choice(caller: str, argument: str, value: object, choices: Iterable[object]) -> None:
    """Raises unless ``value`` is one of ``choices``.

    Args:
        caller: the function or class that was called, as the user knows it.
        argument: the name of the argument.
        value: what was given.
        choices: what is valid.

    Raises:
        MedgenError: naming the valid values and the nearest one.

    Example:
        >>> check_choice("sample", "sampler", "eulr", ["euler", "heun"])
        Traceback (most recent call last):
        ...
        medgen.checks.MedgenError: sample: sampler must be one of euler, heun; got 'eulr'. Did you mean 'euler'?
    """
    choices = list(choices)
    if value in choices:
        return
    valid = ", ".join(map(str, choices)) or "(none exist)"
    end = nearest(value, choices) or " Choose one of these."
    raise MedgenError(f"{caller}: {argument} must be one of {valid}; got {value!r}.{end}")


def check_count(caller: str, argument: str, value: Any) -> None:
    """Raises unless ``value`` is an integer above zero.

    Raises:
        MedgenError: naming the value.

    Example:
        >>> check_count("sample", "n", 1.5)
        Traceback (most recent call last):
        ...
        medgen.checks.MedgenError: sample: n must be an integer above 0; got 1.5. Correct it.
    """
    if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
        raise MedgenError(f"{caller}: {argument} must be an integer above 0; got {value!r}. Correct it.")


def check_positive(caller: str, argument: str, value: Any) -> None:
    """Raises unless ``value`` is a finite number above zero.

    Raises:
        MedgenError: naming the value.

    Example:
        >>> check_positive("generate_cohort", "n", 0)
        Traceback (most recent call last):
        ...
        medgen.checks.MedgenError: generate_cohort: n must be a number above 0; got 0. Give a positive value.
    """
    if not (_is_finite(value) and value > 0):
        raise MedgenError(f"{caller}: {argument} must be a number above 0; got {value!r}. Give a positive value.")


def check_range(caller: str, argument: str, value: Any, low: float, high: float) -> None:
    """Raises unless ``value`` is a finite number with ``low <= value <= high``.

    Raises:
        MedgenError: naming the value and the range.

    Example:
        >>> check_range("RandLabelsToImage", "prob", 1.5, 0, 1)
        Traceback (most recent call last):
        ...
        medgen.checks.MedgenError: RandLabelsToImage: prob must lie in 0..1; got 1.5. Give a value in this range.
    """
    if not (_is_finite(value) and low <= value <= high):
        raise MedgenError(
            f"{caller}: {argument} must lie in {low:g}..{high:g}; got {value!r}. Give a value in this range."
        )


def _is_finite(value: Any) -> bool:
    """Whether ``value`` is a real, finite number (a bool is not one)."""
    if isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except (TypeError, ValueError, OverflowError):
        return False
