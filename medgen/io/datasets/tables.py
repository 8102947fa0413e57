"""Tables beside images: TSV and CSV files of attributes."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping
from pathlib import Path

from medgen.checks import MedgenError
from medgen.io.datasets.case import Attribute, attribute

__all__ = ["read_table", "rows_by"]


def read_table(path: Path) -> list[dict[str, str]]:
    """Rows of a table with a header; separated by tabs in ``.tsv``, else by the first of ``, ; tab`` in the header.

    Raises:
        MedgenError: the file is no text, or has no header.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (UnicodeDecodeError, OSError) as error:
        raise MedgenError(f"table '{path}' cannot be read ({error}). Save it as UTF-8 text.") from error
    head = text.split("\n", 1)[0]
    if not head.strip():
        raise MedgenError(f"table '{path}' has no header. Name its columns in the first line.")
    separator = "\t" if path.suffix == ".tsv" else max(",;\t", key=head.count)
    rows = csv.DictReader(text.splitlines(), delimiter=separator)
    return [{key.strip(): value or "" for key, value in row.items() if key is not None} for row in rows]


def rows_by(path: Path, key: str) -> dict[str, dict[str, Attribute]]:
    """Attributes of each row by the value of its column ``key``; names in small letters, missing entries left out.

    Raises:
        MedgenError: see :func:`read_table`; or there is no such column.
    """
    table: dict[str, dict[str, Attribute]] = {}
    for row in read_table(path):
        if key not in row:
            raise MedgenError(f"table '{path}' has no column '{key}'. It has {', '.join(row)}.")
        table.setdefault(row[key].strip(), {}).update(attributes_of(row, key))
    return table


def attributes_of(row: Mapping[str, str], *leave_out: str) -> dict[str, Attribute]:
    """Attributes of one row.

    Example:
        >>> attributes_of({"participant_id": "sub-1", "Age (years)": "61", "sex": "n/a"}, "participant_id")
        {'age_years': 61.0}
    """
    found = {}
    for name, value in row.items():
        entry = attribute(value)
        plain = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
        if entry is not None and name not in leave_out and plain:
            found[plain] = entry
    return found
