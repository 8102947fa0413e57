"""Folders of scans restored by one call, unattended: every file accounted for, one bad scan stops no other.

A run can be stopped at any moment and be continued. Scans are independent of each other, so that several processes
give what one gives, if each computes with as many threads.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medgen import __version__
from medgen.checks import MedgenError, check_count
from medgen.io.atomic import remove_unfinished, write_json
from medgen.io.convert import OutputExists, check_output, source_fingerprint
from medgen.io.findings import ReadOptions, Refused, VolumeSource
from medgen.io.journal import REPORT, read_json
from medgen.io.lock import LOCK, locked
from medgen.restoration.batch_case import (
    Case,
    Row,
    clear_case,
    finished_row,
    is_outdated,
    own_outputs,
    remove_series,
)
from medgen.restoration.batch_inputs import Inputs, file_rows, found_inputs, selection_text
from medgen.restoration.batch_process import Limits, outcomes
from medgen.restoration.batch_select import Condition, check_include, is_own_json, parsed_selection
from medgen.restoration.settings import RestoreSettings
from medgen.restoration.write_restored import MAPS, further_files
from medgen.restoration.written import Files

__all__ = ["BatchSummary", "Limits", "restore_batch"]

PLAN = ".medgen-restore.json"
STATES = ("restored", "skipped", "refused", "failed")
MAP_FOLDER, SAMPLE_FOLDER = "uncertainty", "samples"

Progress = Callable[[int, int], None]
Log = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class BatchSummary:
    """What a batch did.

    Args:
        report: the content of ``report.json``.
        made: scans restored in this run.
        kept: scans that an earlier run had finished.
        status: 0: all that was to be restored is; 3: something was refused or failed, the rest is restored; 1: nothing
            is restored.
        warnings: what is to be said of the whole run.
    """

    report: dict[str, Any]
    made: int
    kept: int
    status: int
    warnings: tuple[str, ...] = ()


def restore_batch(
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    settings: RestoreSettings,
    *,
    jobs: int = 1,
    resume: bool = False,
    overwrite: bool = False,
    select: str | None = None,
    settle_minutes: float = 0.0,
    include: Sequence[str] = (),
    limits: Limits = Limits(),
    progress: Progress | None = None,
    log: Log | None = None,
) -> BatchSummary:
    """Restores every scan in ``source`` into ``destination``, and writes ``destination/report.json``.

    A DICOM series gives a folder with a derived series, anything else ``NAME.nii.gz``; ``NAME.json`` says how it was
    made. Names say nothing of the patient, nor does any report or log.

    Args:
        source: a folder, with anything in it, or a file.
        destination: a folder. It may lie in ``source``; it is no part of the input then.
        settings: what is done.
        jobs: scans at once; more than one need ``if __name__ == "__main__":`` in a script that calls this.
        resume: continue an earlier run: what is finished and of the same input and settings is kept.
        overwrite: do all again; files of an earlier run are replaced or removed, others stay.
        select: conditions on DICOM attributes, see :func:`~medgen.restoration.batch_select.parsed_selection`.
        settle_minutes: leave series alone that have a file younger than this.
        include: of ``OWN_OUTPUT``, ``DERIVED``, ``DIFFUSION``, which are skipped otherwise.
        limits: of time and memory, of each scan.
        progress: called with (finished, total) scans.
        log: called once for each scan, and with a warning; the README has the fields.

    Returns:
        What was done; ``report["files"]`` has every file of ``source`` once, ``report["cases"]`` every scan taken.

    Raises:
        MedgenError: a wrong argument, a ``source`` that does not exist, a ``destination`` that must not or cannot be
            used, or is in use by another process.
        OSError: the disk is full, or the like: what is finished stays, ``resume`` continues.
    """
    source, folder = Path(source), Path(destination)
    conditions = _checked(source, jobs, select, include)
    for given in (source, *(() if settings.mask is None else (settings.mask,))):
        check_output(given, folder, resume=resume, overwrite=overwrite, rows="cases", made_by="restoration")
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        if not resume and not overwrite and _names_in(folder) != {LOCK}:  # another run began and ended meanwhile
            raise OutputExists(f"'{folder}' is no longer empty. Add --resume to continue, or --overwrite.")
        inputs = found_inputs(source, folder, select=conditions, settle_minutes=settle_minutes, include=include)
        cases = _cases(inputs, folder, settings)
        outdated = sum(map(is_outdated, cases.values())) if resume else 0
        said = _warnings(inputs, outdated)
        rows = _started(folder, cases, resume)
        kept = len(rows)
        waiting = [position for position in cases if position not in rows]
        told = _Told(len(cases), progress, log)
        told.found(inputs, said)
        for position in rows:
            told.kept(cases[position])
        with closing(outcomes([cases[position] for position in waiting], jobs, limits)) as made:
            for index, row, seconds in made:  # an interruption stops the processes at once
                rows[waiting[index]] = row
                told.done(row, seconds)
        summary = _summary(inputs, settings, rows, kept, said)
        _remove_empty(folder)
        write_json(folder / REPORT, summary.report)
        (folder / PLAN).unlink(missing_ok=True)
    return summary


def _checked(source: Path, jobs: int, select: str | None, include: Sequence[str]) -> tuple[Condition, ...]:
    check_count("restore", "jobs", jobs)
    check_include(include)
    if not os.path.lexists(source):
        raise MedgenError(f"source '{source}' does not exist. Check the path.")
    return () if select is None else parsed_selection(select)


def _cases(inputs: Inputs, folder: Path, settings: RestoreSettings) -> dict[int, Case]:
    """The scans to restore, by their position among the volumes."""
    return {
        position: _case(volume, inputs, position, folder, settings)
        for position, volume in enumerate(inputs.found.volumes)
        if position not in inputs.aside
    }


def _case(volume: VolumeSource, inputs: Inputs, position: int, folder: Path, settings: RestoreSettings) -> Case:
    name, fault = inputs.names[position], ""
    try:
        settings = settings.with_model(str(getattr(volume, "modality", "")))
    except Refused as error:
        fault = error.reason
    of_series = hasattr(volume, "series_uid") and not settings.nifti
    kinds = further_files(settings.uncertainty, settings.samples)
    folders = {kind: folder / (MAP_FOLDER if kind in MAPS else SAMPLE_FOLDER) for kind in kinds}
    files = Files(
        folder / (name if of_series else f"{name}.nii.gz"),
        folder / f"{name}.json",
        of_series,
        {kind: folders[kind] / f"{name}_{kind}.nii.gz" for kind in kinds},
    )
    parts = [source_fingerprint(volume, inputs.found, ReadOptions()), settings.fingerprint(), name]
    mark = hashlib.sha256("\n".join(parts).encode()).hexdigest()
    return Case(name, volume, files, folder, settings, mark, inputs.secrets, fault)


def _started(folder: Path, cases: dict[int, Case], resume: bool) -> dict[int, Row]:
    """Clears what earlier runs left and this one does not keep, and says what will be written.

    Returns:
        Rows of what is kept.

    Raises:
        OutputExists: a file that no restoration wrote has the name of an output.
    """
    targets = {case.files.target.name for case in cases.values()}
    earlier = _earlier(folder)
    foreign = [name for name in sorted(targets - earlier) if os.path.lexists(folder / name)]
    records = [case.files.record for case in cases.values() if os.path.lexists(case.files.record)]
    foreign += [path.name for path in records if not is_own_json(path)]
    if foreign:
        raise OutputExists(f"'{folder / foreign[0]}' was not written by a restoration. Choose another output.")
    remove_unfinished(folder)
    for further in (MAP_FOLDER, SAMPLE_FOLDER):
        remove_unfinished(folder / further)
    rows: dict[int, Row] = {}
    if resume:
        found = {position: finished_row(case) for position, case in cases.items()}
        rows = {position: row for position, row in found.items() if row is not None}
    else:
        _remove_earlier(folder)
    write_json(folder / PLAN, {"planned": sorted({*targets, *(earlier & _names_in(folder))})})
    for position, case in cases.items():
        if position not in rows:
            clear_case(case)
    (folder / REPORT).unlink(missing_ok=True)
    return rows


def _earlier(folder: Path) -> set[str]:
    """Names, in a folder, that an earlier run wrote or was to write."""
    names = _planned(folder)
    for record in _records(folder):
        names |= {name.split("/")[0] for name in own_outputs(record)}
    return names


def _planned(folder: Path) -> set[str]:
    """Names that a run that did not end was to write."""
    planned = read_json(folder / PLAN).get("planned", [])
    names = planned if isinstance(planned, list) else []
    return {name for name in names if isinstance(name, str) and Path(name).name == name and name not in ("", ".", "..")}


def _records(folder: Path) -> list[Path]:
    """The records of restored scans in a folder."""
    return [path for path in sorted(folder.glob("*.json")) if path.name != REPORT and own_outputs(path)]


def _names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def _remove_earlier(folder: Path) -> None:
    """Takes away what earlier runs wrote, or were to write, and their records."""
    for planned in _planned(folder):
        path = folder / planned
        remove_series(path) if path.is_dir() else path.unlink(missing_ok=True)
    for record in _records(folder):
        for name in own_outputs(record):
            (folder / name).unlink(missing_ok=True)
        record.unlink(missing_ok=True)
    _remove_empty(folder)


def _remove_empty(folder: Path) -> None:
    for name in (MAP_FOLDER, SAMPLE_FOLDER):
        if (folder / name).is_dir() and not any((folder / name).iterdir()):
            (folder / name).rmdir()


class _Told:
    """Tells how far it is, and each scan's end to the log."""

    def __init__(self, total: int, progress: Progress | None, log: Log | None) -> None:
        self.total, self.progress, self.log, self.count = total, progress, log, 0

    def found(self, inputs: Inputs, warnings: Sequence[str]) -> None:
        """What is known before any scan is restored."""
        if self.log is None:
            return
        for row in inputs.unread_rows():
            self.log({"event": "case", "case": row["name"], **{key: row[key] for key in row if key != "name"}})
        for reason in warnings:
            self.log({"event": "warning", "reason": reason})

    def kept(self, case: Case) -> None:
        self._tell({"event": "case", "case": case.name, "status": "kept"})

    def done(self, row: Row, seconds: float) -> None:
        chosen = {key: row[key] for key in ("status", "code", "reason", "remarks", "figures") if row.get(key)}
        self._tell({"event": "case", "case": row["name"], **chosen, "seconds": round(seconds, 3)})

    def _tell(self, event: dict[str, Any]) -> None:
        self.count += 1
        if self.log is not None:
            self.log(event)
        if self.progress is not None:
            self.progress(self.count, self.total)


def _summary(
    inputs: Inputs, settings: RestoreSettings, rows: dict[int, Row], kept: int, warnings: tuple[str, ...]
) -> BatchSummary:
    """The report has no time and no path beyond input and output: a rerun gives the same bytes."""
    files = file_rows(inputs, rows)
    cases = sorted([*rows.values(), *inputs.unread_rows()], key=lambda row: str(row["name"]))
    report: dict[str, Any] = {
        "medgen": __version__,
        "task": settings.task,
        "method": settings.made_by,
        "files": files,
        "cases": cases,
        "counts": {
            "found": len(files),
            **_counts(files),
            "cases": {"found": len(cases), **_counts(cases)},
        },
    }
    if inputs.selection is not None:
        report["select"] = inputs.selection
    made = sum(row["status"] == "restored" for row in cases)
    faults = any(row["status"] in ("refused", "failed") for row in (*files, *cases))
    return BatchSummary(report, made - kept, kept, 1 if not made else 3 if faults else 0, warnings)


def _warnings(inputs: Inputs, outdated: int) -> tuple[str, ...]:
    selection = inputs.selection
    found = [selection_text(selection)] if selection is not None and not selection["selected"] else []
    if outdated:
        found.append(
            f"--resume keeps what was restored from the same input with the same settings; {outdated} of the earlier "
            "results were not, and are removed and restored anew."
        )
    return tuple(found)


def _counts(rows: Iterable[Row]) -> dict[str, int]:
    states = [row["status"] for row in rows]
    return {state: states.count(state) for state in STATES}
