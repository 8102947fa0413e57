"""IXI: folders ``IXI-T1``, ``IXI-T2``, ``IXI-PD``, ``IXI-MRA`` of ``IXI002-Guys-0828-T1.nii.gz``, and a table.

The images of a person are not on one grid: T1 is sagittal, T2 and PD are axial. The table is ``IXI.xls`` as it is
distributed (read where the package ``xlrd`` is there), or saved from it as ``IXI.csv``.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

from medgen.io.datasets.case import Attribute, Case, ImageFile, attribute, modality_name
from medgen.io.datasets.tables import read_table

__all__ = ["is_ixi", "read_ixi"]

_FILE = re.compile(r"(IXI(\d{3,4}))-([A-Za-z]+)-(\d+)-([A-Za-z0-9]+)\.nii(\.gz)?$")
_SEX = {"1": "M", "2": "F"}


def _files(path: Path) -> Iterator[tuple[Path, re.Match[str]]]:
    for pattern in ("*.nii*", "*/*.nii*"):
        for file in sorted(path.glob(pattern)):
            found = _FILE.match(file.name)
            if found:
                yield file, found


def is_ixi(path: Path) -> bool:
    """Whether a folder, or one below it, holds files named as in IXI."""
    return next(_files(path), None) is not None


def read_ixi(path: Path) -> list[Case]:
    """All people: ``site``, and from the table ``age`` (years), ``sex`` (M, F), ``height`` (cm), ``weight`` (kg).

    Args:
        path: folder of the folders, or one of them.
    """
    images: dict[tuple[str, str], dict[str, ImageFile]] = {}
    sites: dict[tuple[str, str], str] = {}
    for file, found in _files(path):
        key = found[1], found[4]
        images.setdefault(key, {})[modality_name(found[5])] = ImageFile(file)
        sites[key] = found[3]
    table = _table(path)
    return [
        Case(person, files, None, {"site": sites[person, scan], **table.get(int(person[3:]), {})}, int(person[3:]))
        for (person, scan), files in sorted(images.items())
    ]


def _table(path: Path) -> dict[int, dict[str, Attribute]]:
    for folder in (path, path.parent):
        for name in ("IXI.csv", "ixi.csv", "IXI.tsv"):
            if (folder / name).is_file():
                return _people(read_table(folder / name))
        if (folder / "IXI.xls").is_file():
            return _people(_excel(folder / "IXI.xls"))
    return {}


def _excel(path: Path) -> list[dict[str, str]]:
    try:
        import xlrd  # type: ignore[import-untyped,import-not-found,unused-ignore]
    except ImportError:
        text = f"'{path}' is not read without the package xlrd. Install it, or save the table as IXI.csv beside it."
        warnings.warn(text, stacklevel=2)
        return []
    sheet = xlrd.open_workbook(str(path)).sheet_by_index(0)
    head, *rows = [[str(value) for value in sheet.row_values(i)] for i in range(sheet.nrows)]
    return [dict(zip(head, row, strict=True)) for row in rows]


def _people(rows: list[dict[str, str]]) -> dict[int, dict[str, Attribute]]:
    """Attributes by number; of a person listed twice, the row that states the age."""
    people: dict[int, dict[str, Attribute]] = {}
    for row in rows:
        by_name = {re.split(r"[^A-Z_]", key.upper())[0]: value for key, value in row.items()}
        number = attribute(by_name.get("IXI_ID", ""))
        if isinstance(number, float):
            made = _attributes(by_name)
            if "age" in made or int(number) not in people:
                people.setdefault(int(number), {}).update(made)
    return people


def _attributes(row: Mapping[str, str]) -> dict[str, Attribute]:
    found: dict[str, Attribute] = {}
    sex = attribute(row.get("SEX_ID", ""))
    if isinstance(sex, float) and f"{sex:g}" in _SEX:
        found["sex"] = _SEX[f"{sex:g}"]
    for column in ("AGE", "HEIGHT", "WEIGHT"):
        value = attribute(row.get(column, ""))
        if isinstance(value, float) and value > 0:  # 0 stands for "not known"
            found[column.lower()] = value
    return found
