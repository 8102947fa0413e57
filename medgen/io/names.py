"""Names of output files: safe on every system, and never the same twice."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence

__all__ = ["safe_name", "unique_names", "without"]

_LONGEST = 96
_RESERVED = {"con", "prn", "aux", "nul", *(f"{device}{n}" for device in ("com", "lpt") for n in range(10))}


def safe_name(text: str) -> str:
    """Letters, digits, ``.``, ``_`` and ``-`` only; no dot or dash at the ends; no name that Windows keeps for itself.

    Example:
        >>> safe_name("T1 / Schädel..nii"), safe_name("../../etc"), safe_name("CON"), safe_name("")
        ('T1-Schadel.nii', 'etc', 'volume-CON', 'volume')
    """
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", plain)
    plain = re.sub(r"-*\.[.-]*", ".", re.sub(r"-{2,}", "-", plain))[:_LONGEST].strip(".-_")
    if not plain:
        return "volume"
    return f"volume-{plain}" if plain.split(".")[0].lower() in _RESERVED else plain


def unique_names(texts: Iterable[str]) -> list[str]:
    """A safe name for each text; those that differ in case only, too, are told apart by a number.

    Example:
        >>> unique_names(["T1", "t1", "T1-2", "T2"])
        ['T1', 't1-3', 'T1-2', 'T2']
    """
    names = [safe_name(text) for text in texts]
    wished = {name.lower() for name in names}
    taken: set[str] = set()
    result = []
    for name in names:
        made, number = name, 1
        while made.lower() in taken or (number > 1 and made.lower() in wished):
            number += 1
            made = f"{name}-{number}"
        taken.add(made.lower())
        result.append(made)
    return result


def without(name: str, secrets: Sequence[str]) -> str:
    """``name`` less every part of ``secrets`` of three letters or more, whatever the case.

    Example:
        >>> without("MR-doe-T1-Doe", ["DOE^JANE", "4711"])
        'MR-T1'
    """
    parts = {part for text in secrets for part in re.split(r"[^\w]+|_", text) if len(part) >= 3}
    for part in sorted(parts, key=len, reverse=True):
        name = re.sub(re.escape(part), "", name, flags=re.IGNORECASE)
    return re.sub(r"([-_.])[-_.]+", r"\1", name).strip("-_.")
