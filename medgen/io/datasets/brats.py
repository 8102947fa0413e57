"""BraTS: one folder a case, ``*_t1.nii.gz`` (2018 to 2021) or ``*-t1n.nii.gz`` (2023 on).

Labels are 1 necrosis, 2 oedema, 4 enhancing (3 from 2023 on). The numbers of people: ``BraTS20_Training_001``,
``BraTS2021_00005``, ``BraTS-GLI-00005-000`` (the second is the time); ``Brats18_TCIA01_147_1``; codes of letters count
in base 26 (``Brats18_CBICA_AAB_1`` is person 1).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from medgen.io.datasets.case import Attribute, Case, ImageFile, modality_name
from medgen.io.datasets.tables import attributes_of, read_table

__all__ = ["brats_person", "is_brats", "read_brats"]

_FILE = re.compile(r"(?i)(?P<case>brats.*?)[_-](?P<kind>t1ce|t1c|t1n|t1|t2w|t2f|t2|flair|seg)\.nii(\.gz)?$")
_ID_COLUMNS = re.compile(r"(?i)brats.*(id|subject)")


def is_brats(path: Path) -> bool:
    """Whether a folder, or one one or two levels below, holds files named as in BraTS."""
    return next(_files(path), None) is not None


def _files(path: Path) -> Iterator[tuple[Path, re.Match[str]]]:
    for pattern in ("*.nii*", "*/*.nii*", "*/*/*.nii*"):
        for file in sorted(path.glob(pattern)):
            found = _FILE.match(file.name)
            if found and file.is_file():
                yield file, found


def read_brats(path: Path) -> list[Case]:
    """All cases, with ``grade`` (folders ``HGG`` and ``LGG``, or ``name_mapping.csv``) and the survival table.

    Args:
        path: folder of cases, or of ``HGG`` and ``LGG``.
    """
    cases: dict[str, dict[str, ImageFile]] = {}
    folders: dict[str, Path] = {}
    for file, found in _files(path):
        name = found["case"]
        folders.setdefault(name, file.parent)
        cases.setdefault(name, {})["seg" if found["kind"].lower() == "seg" else modality_name(found["kind"])] = (
            ImageFile(file)
        )
    tables = _tables(path)
    made = []
    for name, files in sorted(cases.items()):
        label = files.pop("seg", None) or _odd_label(folders[name])
        if files:
            person, time, number = brats_person(name)
            attributes: dict[str, Attribute] = {"session": time} if time else {}
            if folders[name].parent.name in ("HGG", "LGG"):
                attributes["grade"] = folders[name].parent.name
            made.append(Case(person, files, label, {**attributes, **tables.get(name, {})}, number))
    return made


def brats_person(case: str) -> tuple[str, str, int]:
    """Person, time and number of a case.

    Example:
        >>> brats_person("BraTS-GLI-00005-001"), brats_person("BraTS20_Training_016")
        (('BraTS-GLI-00005', '001', 5), ('BraTS20_Training_016', '', 16))
        >>> brats_person("Brats18_2013_10_1"), brats_person("Brats18_CBICA_AAB_1")
        (('Brats18_2013_10', '1', 10), ('Brats18_CBICA_AAB', '1', 1))
    """
    person, time = case, ""
    dated = re.fullmatch(r"(BraTS-[A-Za-z]+-\d+)-(\d+)", case) or re.fullmatch(
        r"(?i)(brats1[789]_.+_[A-Za-z0-9]+)_(\d+)", case
    )
    if dated:
        person, time = dated[1], dated[2]
    code = re.split(r"[_-]", person)[-1]
    return person, time, int(code) if code.isdigit() else _base26(code)


def _base26(code: str) -> int:
    number = 0
    for letter in code.upper():
        number = number * 26 + (ord(letter) - ord("A") if letter.isalpha() else ord(letter) - ord("0"))
    return number


def _odd_label(folder: Path) -> ImageFile | None:
    """A label under another name (``W39_1998.09.19_Segm.nii`` of BraTS20_Training_355)."""
    found = sorted(file for file in folder.glob("*.nii*") if re.search(r"(?i)segm?\.nii", file.name))
    return ImageFile(found[0]) if len(found) == 1 and not _FILE.match(found[0].name) else None


def _tables(path: Path) -> dict[str, dict[str, Attribute]]:
    """Rows of the CSV files beside the cases, by case."""
    found: dict[str, dict[str, Attribute]] = {}
    for file in sorted(path.glob("*.csv")):
        for row in read_table(file):
            key = next((column for column in row if _ID_COLUMNS.match(column)), None)
            for column in [c for c in row if _ID_COLUMNS.match(c)]:
                if row[column].lower().startswith("brats"):
                    key = column
            if key is not None:
                others = [c for c in row if _ID_COLUMNS.match(c)]
                found.setdefault(row[key].strip(), {}).update(attributes_of(row, *others))
    return found
