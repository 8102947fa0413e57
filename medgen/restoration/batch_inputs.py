"""What a batch of restorations finds: every file once, every volume with a name, taken or left alone."""

from __future__ import annotations

import re
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medgen.io.convert import patient_of, volume_name
from medgen.io.findings import FileRecord, VolumeSource
from medgen.io.names import safe_name, unique_names, without
from medgen.io.survey import FullSurvey, survey
from medgen.restoration.batch_case import Row, redacted
from medgen.restoration.batch_select import Condition, is_own_json, left_alone, matches, read_tags

__all__ = ["RESERVED", "Inputs", "file_rows", "found_inputs", "secrets_of", "selection_text"]

_LOOK = "See medgen inspect for what they say."
RESERVED = ("report", "uncertainty", "samples")
"""Names in an output folder that no scan may have."""

_PERSONS = (
    "PatientName", "PatientID", "OtherPatientIDs", "OtherPatientNames", "PatientBirthName", "PatientMotherBirthName",
    "PatientBirthDate", "PatientAddress", "PatientTelephoneNumbers", "AccessionNumber", "ReferringPhysicianName",
    "PerformingPhysicianName", "PhysiciansOfRecord", "OperatorsName",
)  # fmt: skip
_SHORTEST_NAME, _SHORTEST_NUMBER = 3, 4
_LONGEST_FOLDERS = 60
_NO_DICOM = ("HIDDEN_FILE", "SPECIAL_FILE", "EMPTY_FILE", "NOT_DICOM", "UNKNOWN_FORMAT", "PICTURE", "BROKEN_LINK")


@dataclass
class Inputs:
    """What was found.

    Args:
        found: the survey; ``found.files`` has every file once.
        names: of each volume, without suffix; they say nothing of the patient.
        aside: of each volume that is left alone, by its position: code and reason.
        arriving: files that are no part of a volume yet, and may become one.
        secrets: what tells the patients, whatever file it stands in.
        unread: of each other file that is refused, the row of the series or file that cannot be used for it.
        selection: what the conditions of a selection hold for; None: there is none.
    """

    found: FullSurvey
    names: list[str]
    aside: dict[int, tuple[str, str]] = field(default_factory=dict)
    arriving: set[Path] = field(default_factory=set)
    secrets: tuple[str, ...] = ()
    unread: dict[Path, Row] = field(default_factory=dict)
    selection: dict[str, Any] | None = None

    def unread_rows(self) -> list[Row]:
        """The rows of what cannot be used, each once."""
        return list({id(row): row for row in self.unread.values()}.values())


def found_inputs(
    source: Path,
    exclude: Path | None,
    *,
    select: Sequence[Condition] = (),
    settle_minutes: float = 0.0,
    include: Sequence[str] = (),
    now: float | None = None,
) -> Inputs:
    """Looks for volumes, and for what is not to be restored.

    Args:
        source: a file or folder.
        exclude: a folder that is no part of it (the output).
        select: conditions on DICOM attributes; other volumes are ``NOT_SELECTED``.
        settle_minutes: volumes whose series has a file younger than this are ``ARRIVING``.
        include: codes of :data:`~medgen.restoration.batch_select.LEFT_ALONE` that are restored all the same.
        now: seconds since the epoch; None: the clock's.

    Raises:
        MedgenError: ``source`` does not exist.
    """
    found = survey(source, exclude=exclude)
    secrets = secrets_of(found)
    inputs = Inputs(found, _names(found, secrets), secrets=secrets)
    young = _young(found, settle_minutes, time.time() if now is None else now) if settle_minutes > 0 else set()
    inputs.arriving = {record.path for record in found.files if record.status == "refused" and record.path in young}
    for position, volume in enumerate(found.volumes):
        reason = _aside(volume, select, young, include)
        if reason is not None:
            inputs.aside[position] = reason
    _spread_diffusion(found, inputs.aside)
    inputs.unread = _unread(inputs)
    inputs.selection = _selection(found, select) if select else None
    return inputs


def _aside(
    volume: VolumeSource, select: Sequence[Condition], young: set[Path], include: Sequence[str]
) -> tuple[str, str] | None:
    reason = left_alone(volume)
    if reason is not None and reason[0] not in include:
        return reason
    if select and not _is_selected(volume, select):
        return "NOT_SELECTED", "--select does not hold for it"
    if young.intersection(volume.files):
        return "ARRIVING", "its newest file is younger than --settle allows"
    return None


def _is_selected(volume: VolumeSource, select: Sequence[Condition]) -> bool:
    """What is no DICOM has no attributes."""
    header: Any = getattr(volume, "header", None) if hasattr(volume, "series_uid") else None
    return header is not None and matches(header, select)


def _spread_diffusion(found: FullSurvey, aside: dict[int, tuple[str, str]]) -> None:
    """A volume without a b-value is of a diffusion series, too, if another of its series has one."""
    series = {getattr(found.volumes[p], "series_uid", None): why for p, why in aside.items() if why[0] == "DIFFUSION"}
    series.pop(None, None)
    for position, volume in enumerate(found.volumes):
        uid = getattr(volume, "series_uid", None)
        if uid in series and position not in aside:
            aside[position] = series[uid]


def _selection(found: FullSurvey, select: Sequence[Condition]) -> dict[str, Any]:
    """How many DICOM volumes there are, and for how many of them each condition holds: no value of any attribute."""
    headers = [getattr(volume, "header", None) for volume in found.volumes if hasattr(volume, "series_uid")]
    holds = [[header is not None and matches(header, [condition]) for header in headers] for condition in select]
    return {
        "looked_at": len(headers),
        "selected": sum(all(column) for column in zip(*holds, strict=True)),
        "conditions": [
            {"keyword": condition.keyword, "holds_for": sum(row)} for condition, row in zip(select, holds, strict=True)
        ],
    }


def selection_text(selection: Mapping[str, Any]) -> str:
    """What is said where a selection holds for nothing.

    Example:
        >>> selection_text({"looked_at": 3, "selected": 0, "conditions": [{"keyword": "Modality", "holds_for": 0}]})
        '--select holds for none of 3 DICOM volumes: Modality holds for 0. See medgen inspect for what they say.'
    """
    parts = (f"{condition['keyword']} holds for {condition['holds_for']}" for condition in selection["conditions"])
    looked_at = selection["looked_at"]
    return f"--select holds for none of {looked_at} DICOM volumes: {', '.join(parts)}. {_LOOK}"


def _unread(inputs: Inputs) -> dict[Path, Row]:
    """One row for each series, or single file, that cannot be used; the reason is that of the file at fault."""
    groups: dict[str, list[FileRecord]] = defaultdict(list)
    for record in inputs.found.files:
        if record.status == "refused" and record.path not in inputs.arriving:
            groups[_series_of(record)].append(record)
    rows: dict[Path, Row] = {}
    for records in groups.values():
        name = inputs.found.listing.names[records[0].path]
        fault = min(records, key=lambda record: len(record.reason or ""))  # others tell of it, in more words
        row = {
            "name": redacted(name, inputs.secrets),
            "status": "refused",
            "code": fault.code,
            "reason": redacted(fault.reason or "", inputs.secrets),
            "files": len(records),
        }
        rows |= {record.path: row for record in records}
    return rows


def _series_of(record: FileRecord) -> str:
    """The series of a file; its path where that is not known."""
    return str(read_tags(record.path, [0x0020000E]).get("SeriesInstanceUID") or record.path)


def _young(found: FullSurvey, minutes: float, now: float) -> set[Path]:
    """All files of series, or single files, of which one was changed within so many minutes."""
    groups: dict[str, list[Path]] = defaultdict(list)
    for volume in found.volumes:
        key = getattr(volume, "series_uid", None) or str(volume.files[0])
        groups[key] += volume.files
    for record in found.files:
        if record.status == "refused":
            groups[_series_of(record)].append(record.path)
    return {path for paths in groups.values() if max(map(_changed, paths)) > now - 60 * minutes for path in paths}


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _names(found: FullSurvey, secrets: Sequence[str]) -> list[str]:
    """Of DICOM as ``medgen convert`` has it, of files by their whole path, so that new files change no other's name."""
    names = []
    for volume in found.volumes:
        name = volume_name(volume)
        if not hasattr(volume, "series_uid"):
            place = found.listing.names.get(volume.files[0], "")
            folders = "_".join(place.split("/")[:-1])[-_LONGEST_FOLDERS:]
            name = f"{folders}_{name}" if folders else name
        names.append(without(safe_name(name), [safe_name(secret) for secret in secrets]) or "volume")
    return unique_names([*RESERVED, *names])[len(RESERVED) :]


def secrets_of(found: FullSurvey) -> tuple[str, ...]:
    """Names and numbers of the patients of all DICOM files, those that cannot be used among them; as single words."""
    words: set[str] = set()
    for volume in found.volumes:
        if hasattr(volume, "series_uid"):
            words |= _words(dict(zip(("PatientName", "PatientID"), patient_of(volume) or (), strict=False)))
            words |= _of_file(volume.files[0])
    for record in found.files:
        if record.status != "used" and record.code not in _NO_DICOM:
            words |= _of_file(record.path)
    return tuple(sorted(words, key=lambda word: (-len(word), word)))


def _of_file(path: Path) -> set[str]:
    from pydicom.datadict import tag_for_keyword

    header = read_tags(path, [tag_for_keyword(keyword) or 0 for keyword in _PERSONS])
    values = {}
    for keyword in _PERSONS:
        try:
            values[keyword] = str(header.get(keyword, ""))
        except (ValueError, TypeError, LookupError, AttributeError, NotImplementedError):
            continue
    return _words(values)


def _words(values: Mapping[str, str]) -> set[str]:
    """What must not be seen of persons' names (each part) and numbers (as a whole)."""
    words: set[str] = set()
    for keyword, value in values.items():
        if keyword.endswith(("Name", "Names", "OfRecord")):
            words |= {part for part in re.split(r"[\W_]+", value) if len(part) >= _SHORTEST_NAME and not part.isdigit()}
        elif len(re.sub(r"[\W_]+", "", value)) >= _SHORTEST_NUMBER:
            words.add(value.strip())
    return words


def file_rows(inputs: Inputs, rows: Mapping[int, Row]) -> list[Row]:
    """One row for each file that was found: what became of it.

    Args:
        inputs: what was found.
        rows: of the volumes that were taken, by position.

    Returns:
        ``path, status, code, reason, case``; a file in several volumes has the best of their states.
    """
    users: dict[Path, list[int]] = defaultdict(list)
    for position, volume in enumerate(inputs.found.volumes):
        for path in dict.fromkeys(volume.files):
            users[path].append(position)
    return [_file_row(inputs, rows, record, users[record.path]) for record in inputs.found.files]


def _file_row(inputs: Inputs, rows: Mapping[int, Row], record: FileRecord, positions: Sequence[int]) -> Row:
    name = redacted(inputs.found.listing.names[record.path], inputs.secrets)
    status, code, reason, case = str(record.status), record.code, record.reason, None
    if record.path in inputs.arriving:
        status, code, reason = "skipped", "ARRIVING", "its series is still arriving, and cannot be used yet"
    elif record.status == "skipped" and record.path.suffix.lower() == ".json" and is_own_json(record.path):
        code, reason = "OWN_OUTPUT", "a record of medgen"
    elif record.path in inputs.unread:
        case = str(inputs.unread[record.path]["name"])
    elif record.status == "used":
        states = [_state(inputs, rows, position) for position in positions or [record.volume or 0]]
        status, code, reason, case = min(states, key=lambda state: _BEST.index(state[0]))
    reason = None if reason is None else redacted(reason, inputs.secrets)
    return {"path": name, "status": status, "code": code, "reason": reason, "case": case}


_BEST = ("restored", "failed", "refused", "skipped")


def _state(inputs: Inputs, rows: Mapping[int, Row], position: int) -> tuple[str, str | None, str | None, str | None]:
    if position in inputs.aside:
        return ("skipped", *inputs.aside[position], None)
    row = rows[position]
    return str(row["status"]), row["code"], row["reason"], inputs.names[position]
