"""Which volumes an unattended restoration takes: told by what files say of themselves, never by a guess."""

from __future__ import annotations

import re
import shlex
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pydicom
from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset

from medgen.checks import MedgenError, check_choice
from medgen.io.findings import VolumeSource
from medgen.io.journal import read_json

__all__ = [
    "LEFT_ALONE", "Condition", "check_include", "is_own_json", "left_alone", "matches", "parsed_selection", "read_tags",
]  # fmt: skip

LEFT_ALONE = ("OWN_OUTPUT", "DERIVED", "DIFFUSION")
"""Codes of volumes that are skipped unless they are asked for."""

_TERM = re.compile(r"(?P<keyword>[A-Za-z0-9]+)(?P<sign>[=~])(?P<value>.*)", re.DOTALL)
_PARSING = (OSError, ValueError, LookupError, AttributeError, TypeError, NotImplementedError, EOFError, RecursionError)
_B_VALUE, _SIEMENS, _GE, _PHILIPS = 0x00189087, 0x0019100C, 0x00431039, 0x20011003
_FUNCTIONAL = (0x52009229, 0x52009230)
_FACTS = (
    0x00080008, 0x0008001C, 0x00080070, 0x0018A001, _B_VALUE, _SIEMENS, _GE, _PHILIPS, 0x00190010, 0x00430010,
    0x20010010, *_FUNCTIONAL,
)  # fmt: skip
_GE_CODED = 100_000  # GE adds multiples of this to some b-values


@dataclass(frozen=True)
class Condition:
    """One condition on a DICOM attribute.

    Args:
        keyword: of the attribute.
        sign: ``=`` equal, ``~`` contains.
        value: text, compared whatever the case; equal numbers are equal however they are written.
    """

    keyword: str
    sign: str
    value: str


def check_include(codes: Sequence[str]) -> None:
    """Refuses what is none of ``LEFT_ALONE``.

    Raises:
        MedgenError: naming the first.
    """
    for code in codes:
        check_choice("restore", "include", code, LEFT_ALONE)


def parsed_selection(text: str) -> tuple[Condition, ...]:
    """The conditions of a selection, all of which must hold.

    Args:
        text: ``Keyword=value`` or ``Keyword~part``, apart by blanks; quotes keep blanks together.

    Raises:
        MedgenError: something else, or a keyword that DICOM does not have.

    Example:
        >>> parsed_selection("Modality=MR SeriesDescription~'t1 post'")[1]
        Condition(keyword='SeriesDescription', sign='~', value='t1 post')
    """
    try:
        terms = shlex.split(text)
    except ValueError as error:
        raise MedgenError(f"restore: --select must have closed quotes. Got {text!r}. Close them.") from error
    found = []
    for term in terms:
        match = _TERM.fullmatch(term)
        if match is None or tag_for_keyword(match["keyword"]) is None:
            raise MedgenError(
                "restore: --select must be conditions Keyword=value or Keyword~part on DICOM attributes. Got "
                f"{term!r}. Correct it, or quote what belongs together."
            )
        found.append(Condition(match["keyword"], match["sign"], match["value"]))
    if not found:
        raise MedgenError("restore: --select is empty. Give a condition, such as Modality=MR, or leave it out.")
    return tuple(found)


def matches(header: Dataset, conditions: Sequence[Condition]) -> bool:
    """Whether all conditions hold; an attribute that is missing equals nothing."""
    return all(_holds(header, condition) for condition in conditions)


def _holds(header: Dataset, condition: Condition) -> bool:
    try:
        value = header.get(condition.keyword)
    except _PARSING:
        return False
    if value is None:
        return False
    several = [str(item) for item in value] if isinstance(value, pydicom.multival.MultiValue) else [str(value)]
    texts = [text.strip().lower() for text in (*several, "\\".join(several))]
    wanted = condition.value.strip().lower()
    if condition.sign == "~":
        return any(wanted in text for text in texts)
    return any(text == wanted or _equal_numbers(text, wanted) for text in texts)


def _equal_numbers(one: str, other: str) -> bool:
    try:
        return float(one) == float(other)
    except ValueError:
        return False


def left_alone(source: VolumeSource) -> tuple[str, str] | None:
    """Code and reason for a volume that an unattended restoration leaves alone; None for one that it takes.

    Args:
        source: a volume of a survey.
    """
    codes = {finding.code for finding in source.findings}
    if getattr(source, "series_uid", None) is None:
        return _left_file(source, codes)
    facts = [read_tags(path, _FACTS) for path in dict.fromkeys(source.files)]
    if any(_is_own(header) for header in facts):
        return "OWN_OUTPUT", "medgen made it (ContributingEquipmentSequence, Manufacturer)"
    if "SYNTHETIC" in codes:
        return "OWN_OUTPUT", "it is synthetic (SyntheticData)"
    if any(_is_diffusion(header) for header in facts):
        return "DIFFUSION", "its images have b-values above 0, or are of type DIFFUSION"
    if "DERIVED" in codes:
        return "DERIVED", "it was computed from other images (ImageType)"
    return None


def _left_file(source: VolumeSource, codes: set[str]) -> tuple[str, str] | None:
    """The same for a volume that is no DICOM series."""
    path = source.files[0]
    if "SYNTHETIC" in codes or getattr(getattr(source, "header", None), "processed", False):
        return "OWN_OUTPUT", "medgen made it (header extension)"
    stem = re.sub(r"\.(nii|nii\.gz|hdr|img|nrrd|nhdr|mha|mhd)$", "", path.name, flags=re.IGNORECASE)
    if is_own_json(path.with_name(f"{stem}.json")):
        return "OWN_OUTPUT", "a record of medgen stands beside it"
    if _b_values(path.with_name(f"{stem}.bval")):
        return "DIFFUSION", "a file of b-values above 0 stands beside it"
    return None


def is_own_json(path: Path) -> bool:
    """Whether a JSON file is a record or a report of medgen."""
    content = read_json(path)
    return "medgen" in content or {"synthetic", "versions"} <= content.keys()


def read_tags(path: Path, tags: Sequence[int]) -> Dataset:
    """Some attributes of a DICOM file; none of one that cannot be read."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(tags), force=True)
        except _PARSING:
            return Dataset()


def _is_own(header: Dataset) -> bool:
    if str(header.get("Manufacturer", "")) == "medgen":
        return True
    items = header.get("ContributingEquipmentSequence") or ()
    return any(str(item.get("Manufacturer", "")) == "medgen" for item in items)


def _is_diffusion(header: Dataset) -> bool:
    """Whether an image, or a frame of one, has a b-value above 0, or says that it is of this type."""
    try:
        types = header.get("ImageType") or ()
        return "DIFFUSION" in [str(part) for part in types] or any(b > 0 for b in _of_header(header))
    except _PARSING:
        return False


def _of_header(header: Dataset) -> Iterator[float]:
    """All b-values of a file: of the standard, of Siemens, GE and Philips."""
    yield from _numbers(header.get(_B_VALUE))
    for sequence in _FUNCTIONAL:
        for group in header[sequence].value if sequence in header else ():
            for item in group.get("MRDiffusionSequence") or ():
                yield from _numbers(item.get(_B_VALUE))
    for tag, creator, maker in (
        (_SIEMENS, 0x00190010, "SIEMENS MR HEADER"),
        (_GE, 0x00430010, "GEMS_PARM_01"),
        (_PHILIPS, 0x20010010, "Philips Imaging DD 001"),
    ):
        if tag in header and str(header[creator].value if creator in header else "").strip() == maker:
            numbers = list(_numbers(header.get(tag)))[:1]
            yield from (number % _GE_CODED for number in numbers) if tag == _GE else numbers


def _numbers(element: Any) -> Iterator[float]:
    """The numbers of an element, whatever its representation."""
    value = getattr(element, "value", element)
    if value is None:
        return
    if isinstance(value, bytes):
        value = value.decode("ascii", "ignore").replace("\0", "").split("\\")
    for part in value if isinstance(value, list | tuple | pydicom.multival.MultiValue) else [value]:
        try:
            yield float(part)
        except (TypeError, ValueError):
            continue


def _b_values(path: Path) -> bool:
    try:
        words = path.read_text(encoding="ascii", errors="ignore").split()
    except OSError:
        return False
    return any(number > 0 for word in words for number in _numbers(word))
