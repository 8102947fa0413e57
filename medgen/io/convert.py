"""Folders of any volume files to NIfTI, one file a volume, with a report that accounts for every file.

A conversion can be stopped at any moment and be continued: each volume is written whole or not at all, and a journal
says which are finished. Volumes are independent of each other, so that several processes give the same files as one.
"""

from __future__ import annotations

import functools
import hashlib
import multiprocessing
import os
import signal
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from monai.data import MetaTensor

from medgen import __version__
from medgen.checks import MedgenError, check_count
from medgen.io.atomic import check_writable, write_json
from medgen.io.findings import Refused, VolumeSource
from medgen.io.journal import REPORT, Journal, Past, file_sha256, file_state, read_json, remove_temporaries
from medgen.io.names import safe_name, unique_names, without
from medgen.io.report import Refusal, exit_status, file_rows, findings_of, geometry_of, report
from medgen.io.survey import FullSurvey, ReadOptions, survey

__all__ = [
    "ConvertSummary", "OutputExists", "check_output", "convert", "loaded", "no_interruption", "patient_of",
    "source_fingerprint", "volume_name",
]  # fmt: skip

_PATIENT = ("PatientName", "PatientID", "OtherPatientIDs", "OtherPatientNames", "PatientBirthName", "AccessionNumber")
_PARSING = (OSError, ValueError, LookupError, AttributeError, TypeError, NotImplementedError, EOFError, RecursionError)

_LONGEST_FOLDERS = 60

Progress = Callable[[int, int], None]


class OutputExists(MedgenError):
    """The output cannot be used as it was asked for: it exists, or it is the input."""


@dataclass(frozen=True)
class ConvertSummary:
    """What a conversion did.

    Args:
        report: the content of ``report.json``.
        made: volumes written in this run.
        kept: volumes that an earlier run had finished.
        status: 0: nothing was refused; 3: something was, the rest is converted; 1: nothing was readable.
    """

    report: dict[str, Any]
    made: int
    kept: int
    status: int


@dataclass(frozen=True)
class _Task:
    """One volume to write."""

    position: int
    source: VolumeSource
    folder: Path
    path: str
    fingerprint: str


def convert(
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    options: ReadOptions = ReadOptions(),
    *,
    jobs: int = 1,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> ConvertSummary:
    """Writes every volume in ``source`` as ``destination/<name>.nii.gz``, and ``destination/report.json``.

    Values are those of the files: the smallest of int16, int32 and float32 that holds them (the report says which), the
    affine is RAS+ in mm. Names are made of what the volume's source calls it, without the patient's name and number;
    those of files that are no DICOM, of their paths.

    Args:
        source: a folder, with anything in it, or a file.
        destination: a folder. It may lie in ``source``; it is no part of the input then.
        options: what is read beyond plain 3D volumes.
        jobs: processes; more than one need ``if __name__ == "__main__":`` in a script that calls this.
        resume: continue an earlier conversion; finished volumes of the same input are kept.
        overwrite: do all again; files of an earlier conversion are replaced or removed, others stay.
        progress: called with (finished, total) volumes.

    Returns:
        What was done; ``report["files"]`` has every file of ``source`` once, ``report["volumes"]`` every volume.

    Raises:
        MedgenError: ``source`` does not exist, ``destination`` exists and neither ``resume`` nor ``overwrite`` is
            given, or holds the source, or cannot be written.
        OSError: the disk is full, or the like: what is finished stays, ``resume`` continues.
    """
    check_count("convert", "jobs", jobs)
    source, folder = Path(source), Path(destination)
    if not os.path.lexists(source):
        raise MedgenError(f"source '{source}' does not exist. Check the path.")
    check_output(source, folder, resume=resume, overwrite=overwrite)
    folder.mkdir(parents=True, exist_ok=True)
    past = Past.of(folder)
    found = survey(source, options, exclude=folder)
    names = [f"{name}.nii.gz" for name in unique_names(_names(found))]
    marks = [source_fingerprint(volume, found, options) for volume in found.volumes]
    tasks = [
        _Task(position, volume, folder, names[position], marks[position])
        for position, volume in enumerate(found.volumes)
    ]
    done = {
        task.position: past.rows[task.path]
        for task in tasks
        if resume and past.is_whole(folder, task.path, task.fingerprint)
    }
    if resume and past.rows and not past.rows.keys() & set(names):
        raise OutputExists(
            f"'{folder}' holds volumes, {min(past.rows)} among them, and none of them is of '{source}'. Choose another "
            "output, or --overwrite."
        )
    journal = _started(folder, past, names, list(done.values()), resume)
    kept = len(done)
    refusals: dict[int, Refusal] = {}
    waiting = [task for task in tasks if task.position not in done]
    with closing(_outcomes(waiting, jobs)) as outcomes:  # an interruption stops the processes at once
        for position, outcome in outcomes:
            if isinstance(outcome, Refusal):
                refusals[position] = outcome
            else:
                done[position] = outcome
            if progress is not None:
                progress(len(done) + len(refusals), len(tasks))
    summary = _summary(found, names, done, refusals, kept)
    write_json(folder / REPORT, summary.report)
    journal.close()
    return summary


def check_output(
    source: Path, folder: Path, *, resume: bool, overwrite: bool, rows: str = "volumes", made_by: str = "conversion"
) -> None:
    """Refuses an output that must not be used.

    Args:
        source: what is read.
        folder: what is written.
        resume: continue an earlier run.
        overwrite: do all again.
        rows: what the report of such a run lists beside its files.
        made_by: what such a run is called, for errors.

    Raises:
        OutputExists: ``folder`` exists and neither flag is given, or both are, or ``source`` lies in it.
        MedgenError: it cannot be written.
    """
    if resume and overwrite:
        raise OutputExists("resume and overwrite exclude each other. Give one of --resume and --overwrite.")
    real_source, real_folder = source.resolve(), folder.resolve()
    if real_source == real_folder or real_folder in real_source.parents:
        raise OutputExists(f"'{source}' lies in the output '{folder}', which would change it. Choose another output.")
    if os.path.lexists(folder):
        if not folder.is_dir():
            raise OutputExists(f"cannot write the folder '{folder}': a file has that name. Choose another output.")
        if not resume and not overwrite:
            raise OutputExists(
                f"'{folder}' exists. Add --resume to continue, --overwrite to do all again, or choose another output."
            )
        if (folder / REPORT).exists() and not {"files", rows} <= read_json(folder / REPORT).keys():
            raise OutputExists(f"'{folder / REPORT}' is no report of a {made_by}. Choose another output.")
    check_writable(folder)


def source_fingerprint(volume: VolumeSource, found: FullSurvey, options: ReadOptions) -> str:
    """What tells whether a volume would come out the same again: its files' names, sizes and times, and the options."""
    parts: list[str] = [__version__, volume.name, repr(tuple(volume.shape)), repr(options)]
    parts += [repr(np.asarray(volume.affine, dtype=np.float64).tolist())]
    for path in volume.files:
        parts.append(f"{found.listing.names.get(path, path.name)} {file_state(path)}")
    return hashlib.sha256("\n".join(parts).encode("utf-8", "surrogateescape")).hexdigest()


def _names(found: FullSurvey) -> list[str]:
    """A name for each volume; files of one name in several folders (no DICOM) have that of their folders before it."""
    names = [volume_name(volume) for volume in found.volumes]
    counts = Counter(safe_name(name).lower() for name in names)
    for position, volume in enumerate(found.volumes):
        if counts[safe_name(names[position]).lower()] > 1 and not hasattr(volume, "series_uid"):
            place = found.listing.names.get(volume.files[0], "")
            folders = "_".join(place.split("/")[:-1])[-_LONGEST_FOLDERS:]
            names[position] = f"{folders}_{names[position]}" if folders else names[position]
    return names


def volume_name(volume: VolumeSource) -> str:
    """The name that its source gives a volume, without what would tell the patient."""
    series_uid = getattr(volume, "series_uid", None)
    if series_uid is None:  # no DICOM
        return volume.name
    secrets = patient_of(volume)
    if secrets is None:
        return f"series-{hashlib.sha256(str(series_uid).encode()).hexdigest()[:12]}"
    return without(safe_name(volume.name), [safe_name(secret) for secret in secrets if secret])


def patient_of(volume: VolumeSource) -> list[str] | None:
    """Names and numbers of the patient of a series; None where the header is too damaged to tell."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # unknown character sets and the like
        try:
            header: Any = getattr(volume, "header", {})
            return [str(header.get(keyword, "")) for keyword in _PATIENT]
        except _PARSING:
            return None


def _started(folder: Path, past: Past, names: Sequence[str], rows: list[dict[str, Any]], resume: bool) -> Journal:
    """Clears what earlier conversions left and this one does not keep, and begins the journal.

    Raises:
        OutputExists: with ``resume``, a file that no conversion wrote has the name of an output.
    """
    if resume:
        foreign = [name for name in names if name not in past.names and (folder / name).exists()]
        if foreign:
            raise OutputExists(
                f"'{folder / foreign[0]}' was not written by the conversion to resume. Choose another output."
            )
    journal = Journal(folder)
    kept = {row["path"] for row in rows}
    journal.start({*names, *past.names}, rows)
    remove_temporaries(folder)
    for name in sorted(past.names - kept):
        (folder / name).unlink(missing_ok=True)
    (folder / REPORT).unlink(missing_ok=True)
    return journal


def _outcomes(tasks: Sequence[_Task], jobs: int) -> Generator[tuple[int, dict[str, Any] | Refusal], None, None]:
    """Position and row, or refusal, of each volume, in any order."""
    jobs = min(jobs, len(tasks))
    if jobs <= 1:
        for task in tasks:
            yield task.position, _write_one(task)
        return
    pool = ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), initializer=_start_worker)
    try:
        with no_interruption():  # the processes start here, and must not take Ctrl-C for theirs
            futures = {pool.submit(_write_one, task): task.position for task in tasks}
        for future in as_completed(futures):
            yield futures[future], future.result()
    except BrokenProcessPool as error:
        raise MedgenError(
            "a process of the conversion died, perhaps for want of memory. Continue with --resume and fewer --jobs."
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def no_interruption() -> Generator[None, None, None]:
    """Ctrl-C is not heard in this block, nor by processes that start in it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _start_worker() -> None:
    """One thread a process; Ctrl-C is the parent's matter; and no worker outlives a parent that was killed."""
    import torch

    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=functools.partial(_leave_with, parent), daemon=True).start()


def _leave_with(parent: Any) -> None:
    parent.join()
    os._exit(1)


def _write_one(task: _Task) -> dict[str, Any] | Refusal:
    """Loads and writes one volume, and notes it in the journal.

    Raises:
        OSError: the output cannot be written; an input that cannot be read is a refusal instead.
    """
    from medgen.io.nifti import write_nifti

    volume = loaded(task.source)
    if isinstance(volume, Refusal):
        return volume
    path = task.folder / task.path
    try:
        changed = write_nifti(path, volume)
    except MedgenError as error:
        check_writable(path)  # if it is the folder's fault, that ends the conversion
        return Refusal("UNWRITABLE", str(error))
    row = {
        "path": task.path,
        **geometry_of(task.source),
        **findings_of((*task.source.findings, *changed)),
        "dtype": _type_name(nib.load(path).get_data_dtype()),
        "sha256": file_sha256(path),
        "fingerprint": task.fingerprint,
    }
    Journal(task.folder).add(row)  # here, not where the results come together: an interruption then loses none
    return row


def _type_name(dtype: np.dtype) -> str:
    """``int16``, ``float32``, ...; colours are ``rgb`` or ``rgba``."""
    return "".join(dtype.names).lower() if dtype.names else dtype.name


def loaded(source: VolumeSource) -> MetaTensor | Refusal:
    """The voxels of a volume, or why there are none."""
    try:
        return source.load()
    except Refused as refused:
        return Refusal(refused.code, refused.reason)
    except MemoryError:
        return Refusal("OVER_BUDGET", "there is not enough memory for its voxels")
    except OSError as error:
        return Refusal("UNREADABLE", error.strerror or str(error))


def _summary(
    found: FullSurvey,
    names: Sequence[str],
    done: dict[int, dict[str, Any]],
    refusals: dict[int, Refusal],
    kept: int,
) -> ConvertSummary:
    paths = [name if position in done else None for position, name in enumerate(names)]
    files = file_rows(found, paths, refusals)
    volumes = sorted(done.values(), key=lambda row: str(row["path"]))
    refused = [
        {
            "name": names[position].removesuffix(".nii.gz"),
            "code": refusals[position].code,
            "reason": refusals[position].reason,
        }
        for position in sorted(refusals)
    ]
    content = report(found, files, volumes, refused_volumes=refused)
    return ConvertSummary(content, len(done) - kept, kept, exit_status(files, len(done), len(refusals)))
