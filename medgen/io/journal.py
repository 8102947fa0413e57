"""What a long conversion has finished, so that it can go on after it was stopped at any moment.

The journal is a hidden file of JSON lines in the output folder. Its first lines say which names the conversion will
write, before any is; one line follows for each finished file. It goes when the report is written, which then serves in
its place.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = [
    "JOURNAL",
    "REPORT",
    "Journal",
    "Past",
    "file_sha256",
    "file_state",
    "is_temporary",
    "read_json",
    "remove_temporaries",
]

JOURNAL = ".medgen-convert.jsonl"
REPORT = "report.json"
_TEMPORARY = re.compile(r"\.[0-9a-f]{12}\..+\.(nii\.gz|json|jsonl)")
_OUTPUT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\.nii\.gz")


@dataclass
class Past:
    """What an earlier conversion left in a folder.

    Args:
        names: of files that it wrote or was to write.
        rows: of finished volumes, as they stand in the report, by name.
    """

    names: set[str] = field(default_factory=set)
    rows: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def of(cls, folder: Path) -> Past:
        """Reads report and journal of ``folder``; what is damaged, or names what is no output, is left out."""
        past = cls()
        report = read_json(folder / REPORT)
        for row in report.get("volumes", []) if isinstance(report.get("volumes"), list) else []:
            past._add(row)
        for line in _text(folder / JOURNAL).splitlines():
            entry = _parsed(line)
            past._plan(entry.get("planned", []))
            past._add(entry.get("volume"))
        return past

    def is_whole(self, folder: Path, name: str, fingerprint: str) -> bool:
        """Whether a finished file of that name, made of the same input, is there and is as it was written."""
        row = self.rows.get(name)
        return (
            row is not None
            and row.get("fingerprint") == fingerprint
            and (folder / name).is_file()
            and file_sha256(folder / name) == row.get("sha256")
        )

    def _plan(self, names: object) -> None:
        if isinstance(names, list):
            self.names |= {name for name in names if isinstance(name, str) and _OUTPUT.fullmatch(name)}

    def _add(self, row: object) -> None:
        if isinstance(row, dict) and isinstance(row.get("path"), str) and _OUTPUT.fullmatch(row["path"]):
            self.rows[row["path"]] = row
            self.names.add(row["path"])


class Journal:
    """The journal of a conversion that runs.

    Args:
        folder: the output folder, which exists.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / JOURNAL

    def start(self, names: Iterable[str], rows: Iterable[dict[str, Any]]) -> None:
        """Says what will be written, and repeats what is done; an older journal is replaced in one step."""
        from medgen.io.atomic import atomic_path

        entries: list[dict[str, Any]] = [{"planned": sorted(names)}, *({"volume": row} for row in rows)]
        with atomic_path(self.path) as temporary:
            temporary.write_text("".join(_line(entry) for entry in entries), encoding="utf-8")

    def add(self, row: dict[str, Any]) -> None:
        """Says that a volume is finished; it is on the disk when this returns."""
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(_line({"volume": row}))
            file.flush()
            os.fsync(file.fileno())

    def close(self) -> None:
        """Takes the journal away."""
        self.path.unlink(missing_ok=True)


def is_temporary(name: str) -> bool:
    """Whether a file has the name of what a conversion that was killed leaves half-written."""
    return _TEMPORARY.fullmatch(name) is not None


def remove_temporaries(folder: Path) -> None:
    """Takes away the temporary files of a conversion that was killed."""
    for path in folder.iterdir():
        if is_temporary(path.name):
            path.unlink(missing_ok=True)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_state(path: Path) -> str:
    """Size and time of a file, which tell whether it changed; that it is gone shows when it is read."""
    try:
        status = os.stat(path)
    except OSError:
        return "gone"
    return f"{status.st_size} {status.st_mtime_ns}"


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file; an empty one where there is none."""
    return _parsed(_text(path))


def _line(entry: dict[str, Any]) -> str:
    return json.dumps(entry, sort_keys=True) + "\n"


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _parsed(text: str) -> dict[str, Any]:
    """A JSON object; an empty one for anything else (the last line of a journal may be cut)."""
    try:
        content = json.loads(text)
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}
