"""One scan restored from file to file."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

from medgen.checks import MedgenError
from medgen.io.convert import OutputExists, source_fingerprint
from medgen.io.findings import ReadOptions, Refused
from medgen.io.lock import locked
from medgen.io.survey import single_volume, survey
from medgen.restoration.batch_case import Case, Row, finished_row, is_outdated, own_outputs
from medgen.restoration.batch_inputs import secrets_of
from medgen.restoration.batch_process import Limits, outcomes
from medgen.restoration.batch_select import is_own_json
from medgen.restoration.settings import RestoreSettings
from medgen.restoration.write_restored import further_files
from medgen.restoration.written import NIFTI, planned

__all__ = ["is_file_output", "restore_file"]


def is_file_output(output: str | os.PathLike[str]) -> bool:
    """Whether an output is one NIfTI file, by its name; anything else is a folder."""
    return Path(output).name.lower().endswith(NIFTI)


def restore_file(
    image: str | os.PathLike[str],
    output: str | os.PathLike[str],
    settings: RestoreSettings,
    *,
    resume: bool = False,
    overwrite: bool = False,
    limits: Limits = Limits(),
    progress: Callable[[int, int], None] | None = None,
) -> Row:
    """Restores one scan into one NIfTI file; a JSON file beside it says how it was made.

    With ``settings.uncertainty``, maps lie beside it: ``NAME_std.nii.gz``, ``NAME_lower.nii.gz`` and
    ``NAME_upper.nii.gz``; with ``settings.samples``, ``NAME_sample-1.nii.gz`` and so on.

    Args:
        image: a volume file, or a folder with one DICOM series. What it is is not asked: a scan that medgen made, or a
            derived one, is restored like any other.
        output: a ``.nii`` or ``.nii.gz`` file.
        settings: what is done.
        resume: keep an output that is whole and of the same input and settings.
        overwrite: replace an existing output.
        limits: of time and memory.
        progress: called with (steps done, steps); never where there are limits, which need another process.

    Returns:
        What was done, as the row of :mod:`medgen.restoration.batch_case`; ``kept`` is true where it was done before,
        ``outdated`` where it had been done from another input or with other settings.

    Raises:
        MedgenError: the scan cannot be restored, or the output must not or cannot be written; the text begins with a
            code where there is one.
        OSError: the disk is full, or the like; the outputs stay as they were.
    """
    target = Path(output)
    ending = next(end for end in sorted(NIFTI, key=len, reverse=True) if target.name.lower().endswith(end))
    stem = target.name[: len(target.name) - len(ending)]
    _check_target(target, stem, resume, overwrite)
    source = single_volume(image)
    settings = settings.with_model(str(getattr(source, "modality", "")))
    kinds = further_files(settings.uncertainty, settings.samples)
    further = {kind: target.with_name(f"{stem}_{kind}{ending}") for kind in kinds}
    inputs = [image] if settings.mask is None else [image, settings.mask]
    files = planned(output, inputs, resume or overwrite, dict(further), series=False)
    found = survey(image)
    parts = [source_fingerprint(source, found, ReadOptions()), settings.fingerprint()]
    mark = hashlib.sha256("\n".join(parts).encode()).hexdigest()
    report = None if limits else progress
    case = Case(stem, source, files, target.parent, settings, mark, secrets_of(found), replaces=True, progress=report)
    target.parent.mkdir(parents=True, exist_ok=True)
    with locked(target, stem):
        _check_target(target, stem, resume, overwrite)  # another process may have ended meanwhile
        return _kept_or_made(case, limits, resume)


def _check_target(target: Path, stem: str, resume: bool, overwrite: bool) -> None:
    if resume and overwrite:
        raise OutputExists("resume and overwrite exclude each other. Give one of --resume and --overwrite.")
    if target.exists() and not resume and not overwrite:
        raise OutputExists(f"output '{target}' exists. Add --overwrite to replace it, or give another name.")
    if resume and target.exists() and not is_own_json(target.with_name(f"{stem}.json")):
        raise OutputExists(f"output '{target}' was not written by a restoration. Add --overwrite instead of --resume.")


def _kept_or_made(case: Case, limits: Limits, resume: bool) -> Row:
    row, outdated = (finished_row(case), is_outdated(case)) if resume else (None, False)
    if row is not None:
        return {**row, "kept": True, "outdated": False}
    earlier = own_outputs(case.files.record)
    made = _made(case, limits)
    for name in set(earlier) - set(made["outputs"]):  # maps that this run does not make
        (case.root / name).unlink(missing_ok=True)
    return {**made, "kept": False, "outdated": outdated}


def _made(case: Case, limits: Limits) -> Row:
    ((_, row, _),) = outcomes([case], 1, limits)
    if row["status"] == "restored":
        return row
    if row["code"] == "REFUSED":
        raise MedgenError(str(row["reason"]))
    raise Refused(str(row["code"]), str(row["reason"]))
