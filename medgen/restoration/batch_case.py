"""One scan of a restoration from the command line: read, restored, written, and accounted for in a row.

A row is plain JSON: ``status`` is ``restored``, ``skipped`` (there was nothing to do), ``refused`` (the scan cannot be
used) or ``failed`` (it could not be finished); all but the first have a ``code`` and a ``reason``. A finished scan's
row stands in its record too, with the SHA-256 of each file: that is how a later run tells that it is whole.
"""

from __future__ import annotations

import errno
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from medgen.checks import MedgenError
from medgen.geometry import spacing_of
from medgen.io.atomic import remove_unfinished, write_json
from medgen.io.findings import Refused, VolumeSource
from medgen.io.journal import file_sha256, read_json
from medgen.io.listing import as_text
from medgen.io.report import findings_of
from medgen.restoration.restored import Restored
from medgen.restoration.settings import RestoreSettings
from medgen.restoration.written import NIFTI, Files

if TYPE_CHECKING:
    from monai.data import MetaTensor

    from medgen.restoration.scans import Scan

__all__ = [
    "Case", "DiskFault", "case_row", "clear_case", "description", "finished_row", "is_outdated", "own_outputs",
    "redacted", "remove_series", "run_case",
]  # fmt: skip

Row = dict[str, Any]
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
_HIDDEN = "[removed]"
_DONE = {
    "denoise": "denoised", "superres": "thin slices", "inpaint": "inpainted", "motion": "motion corrected",
    "bias": "bias corrected",
}  # fmt: skip
_BY = " (medgen)"
_LONGEST = 64  # characters of a DICOM description
_PARSING = (ValueError, LookupError, AttributeError, TypeError, NotImplementedError)


class DiskFault(MedgenError):
    """The output cannot be written whatever the scan: the disk is full, or the like."""


@dataclass(frozen=True)
class Case:
    """One scan to restore.

    Args:
        name: in reports and logs; says nothing of the patient.
        source: the volume.
        files: where it goes.
        root: the folder that reports name files by; all of ``files`` are in it.
        settings: with a model named, if one is needed.
        fingerprint: of source and settings.
        secrets: what tells the patient, and is written nowhere.
        settings_fault: why the settings do not suit this scan (no model for it).
        replaces: whether its outputs may be there before, and stay if it fails.
        progress: called with (steps done, steps); of a case that runs in this process.
    """

    name: str
    source: VolumeSource
    files: Files
    root: Path
    settings: RestoreSettings
    fingerprint: str
    secrets: tuple[str, ...] = ()
    settings_fault: str = ""
    replaces: bool = False
    progress: Callable[[int, int], None] | None = field(default=None, compare=False)


def run_case(case: Case) -> Row:
    """Restores one scan and writes it. Whatever is wrong with the scan is in the row.

    Raises:
        DiskFault: the output cannot be written.
    """
    try:
        return _row_of(case)
    except Refused as refused:
        status = "skipped" if refused.code == "NOTHING_TO_DO" else "refused"
        return case_row(case, status, refused.code, refused.reason)
    except MedgenError as error:
        return case_row(case, "refused", "REFUSED", str(error))
    except MemoryError:
        return case_row(case, "failed", "OUT_OF_MEMORY", "there is not enough memory for it")
    except OSError as error:
        if error.errno in _DISK:
            text = f"{error.strerror}: the output cannot be written. Free space, and continue with --resume."
            raise DiskFault(text) from None
        return case_row(case, "failed", "UNREADABLE", error.strerror or type(error).__name__)
    except Exception as error:  # of any library, on a scan of any kind: the other scans go on
        if isinstance(error, RuntimeError) and "can't allocate memory" in str(error):
            return case_row(case, "failed", "OUT_OF_MEMORY", "there is not enough memory for it")
        return case_row(case, "failed", "FAILED", f"{type(error).__name__} at {_place(error)}")


def case_row(case: Case, status: str, code: str, reason: str) -> Row:
    """The row of a scan that was not restored."""
    for path in case.source.files:  # no path of this machine in a report
        reason = reason.replace(str(path), path.name).replace(f"{path.parent}/", "")
    return {"name": case.name, "status": status, "code": code, "reason": redacted(reason, case.secrets)}


def finished_row(case: Case) -> Row | None:
    """The row of a scan that an earlier run restored from the same input, if all its files are as they were written."""
    row = _row_on_record(case)
    if row.get("fingerprint") != case.fingerprint:
        return None
    outputs = own_outputs(case.files.record)
    if not outputs or len(outputs) != len(row["outputs"]):
        return None
    try:
        whole = all(file_sha256(case.root / name) == digest for name, digest in outputs.items())
    except OSError:
        return None
    return row if whole else None


def is_outdated(case: Case) -> bool:
    """Whether an earlier run restored it from another input or with other settings."""
    row = _row_on_record(case)
    return bool(row) and row.get("fingerprint") != case.fingerprint


def _row_on_record(case: Case) -> Row:
    """What an earlier run wrote into the record; empty: nothing."""
    row = read_json(case.files.record).get("restored")
    return row if isinstance(row, dict) else {}


def own_outputs(record: Path) -> dict[str, str]:
    """The files that a record of a restored scan names, and their SHA-256; what is no output's name is left out."""
    row = read_json(record).get("restored")
    outputs = row.get("outputs") if isinstance(row, dict) else None
    named = outputs if isinstance(outputs, dict) else {}
    return {name: str(digest) for name, digest in named.items() if _is_below(name)}


def _is_below(name: str) -> bool:
    """Whether the name of an output is plain: a file, or a file in one folder."""
    parts = PurePosixPath(name).parts
    return len(parts) in (1, 2) and name == "/".join(parts) and not {"..", "/"} & set(parts) and "\\" not in name


def clear_case(case: Case) -> None:
    """Takes away what an earlier or an unfinished run left of a scan; of one that replaces, only what is unfinished."""
    paths = (case.files.target, case.files.record, *case.files.more.values())
    for path in paths:
        remove_unfinished(path.parent, path.name)
    if case.replaces:
        return
    for name in own_outputs(case.files.record):
        (case.root / name).unlink(missing_ok=True)
    for path in paths:
        if path.is_dir():
            remove_series(path)
        else:
            path.unlink(missing_ok=True)


def redacted(text: str, secrets: Sequence[str]) -> str:
    """A text without what tells the patient.

    Example:
        >>> redacted("doe_jane/T1.nii: no Janet", ["Jane", "Doe"])
        '[removed]_[removed]/T1.nii: no Janet'
    """
    text = as_text(text)
    for secret in sorted(secrets, key=len, reverse=True):
        words = [re.escape(word) for word in re.split(r"[\W_]+", secret) if word]
        pattern = r"(?<![^\W_])" + r"[\W_]*".join(words) + r"(?![^\W_])"
        text = re.sub(pattern, _HIDDEN, text, flags=re.IGNORECASE) if words else text
    return text


def description(source: VolumeSource, task: str, secrets: Sequence[str]) -> str:
    """The SeriesDescription of a derived series: the source's, without what tells the patient, and what was done.

    Args:
        source: a volume; one that is no DICOM has no description.
        task: see :class:`~medgen.restoration.settings.RestoreSettings`.
        secrets: what tells the patient.

    Returns:
        At most 64 characters.

    Example:
        >>> from types import SimpleNamespace
        >>> description(SimpleNamespace(header={"SeriesDescription": "T1 MPRAGE Doe"}), "denoise", ["Doe"])
        'T1 MPRAGE, denoised (medgen)'
    """
    done = _DONE[task] + _BY
    try:
        given = str(getattr(source, "header", {}).get("SeriesDescription") or "")
    except _PARSING:  # a damaged header
        given = ""
    text = redacted(given, secrets).replace(_HIDDEN, " ").removesuffix(_BY)
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    text = text[: _LONGEST - len(done) - 2].strip(" ,-_^")
    return f"{text}, {done}" if text else done


def _row_of(case: Case) -> Row:
    from medgen.restoration.scans import read_hole
    from medgen.restoration.thick_slices import thick_axis
    from medgen.restoration.write_restored import write_restored

    if case.settings_fault:
        raise Refused("NO_MODEL", case.settings_fault)
    scan = _scan(case)
    if case.settings.task == "superres":
        spacing = tuple(float(step) for step in spacing_of(np.asarray(scan.volume.affine.cpu())))
        thick_axis(spacing, case.settings.target_spacing)  # thin slices need no thinning: no fault of the scan
    hole, digests = None, {"image_sha256": scan.sha256}
    if case.settings.mask is not None:
        hole, digests["inpaint_mask_sha256"] = read_hole(case.settings.mask, scan)
    restored, said = _restored(scan.volume, hole, case.settings, case.progress)
    record = _record(case, restored, scan, digests)
    mask = None if hole is None else hole.as_tensor()
    told = description(case.source, case.settings.task, case.secrets)
    clipped, remarks = write_restored(case.files, scan, case.source, restored, record, mask, told)
    remarks = (*restored.remarks, *said, *remarks)
    if case.settings.uncertainty and not case.settings.samples and not _maps(case, restored):
        remarks = (*remarks, "this method says nothing of its expected error: there is no map of it.")
    affine = np.asarray(restored.image.affine.cpu(), dtype=np.float64)
    row = {
        "name": case.name,
        "status": "restored",
        "code": None,
        "reason": None,
        "path": _relative(case.files.target, case.root),
        "outputs": _digests(case),
        "shape": [int(size) for size in restored.image.shape[1:]],
        "spacing": [round(float(step), 6) for step in spacing_of(affine)],
        "affine": affine.tolist(),
        "figures": {key: float(value) for key, value in sorted(restored.figures.items())},
        "remarks": [redacted(remark, case.secrets) for remark in dict.fromkeys(remarks)],
        "clipped": clipped,
        "fingerprint": case.fingerprint,
    }
    for key, value in findings_of(case.source.findings).items():
        row[key] = [redacted(text, case.secrets) for text in value]
    write_json(case.files.record, {**record, "restored": row})
    return row


def _scan(case: Case) -> Scan:
    """The scan's voxels; what reading says names no file outside the input."""
    from medgen.restoration.scans import read_scan, scan_of

    path = case.source.files[0]
    is_nifti = len(case.source.files) == 1 and path.name.lower().endswith(NIFTI)
    scan = read_scan(path) if is_nifti else scan_of(case.source, path)
    modality = getattr(case.source, "modality", "")
    if modality:
        scan.volume.meta["modality"] = modality
    return scan


def _restored(
    volume: MetaTensor, hole: MetaTensor | None, settings: RestoreSettings, progress: Callable[[int, int], None] | None
) -> tuple[Restored, tuple[str, ...]]:
    """The restored scan and what was warned of; on the CPU where the GPU's memory does not do."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        made = _on_device(volume, hole, settings, progress)
        if made is None:
            torch.cuda.empty_cache()
            made = _on_device(volume, hole, replace(settings, device="cpu"), progress)
            if made is None:
                raise MemoryError
            made = replace(made, remarks=(*made.remarks, "the GPU's memory did not do: this was computed on the CPU."))
    texts = (" ".join(str(item.message).split()) for item in caught if issubclass(item.category, UserWarning))
    return made, tuple(dict.fromkeys(texts))


def _on_device(
    volume: MetaTensor, hole: MetaTensor | None, settings: RestoreSettings, progress: Callable[[int, int], None] | None
) -> Restored | None:
    """The restored scan; None where a device's memory does not do."""
    if settings.method == "classical":
        from medgen.restoration.classical import restore_classical

        return restore_classical(
            volume,
            settings.task,
            inpaint_mask=hole,
            noise_level=settings.noise_level,
            target_spacing=settings.target_spacing,
        )
    from medgen.restoration import restore as module

    options: dict[str, Any] = {
        name: getattr(settings, name) for name in ("device", "guard", "samples", "seed", "prior")
    } | {"inpaint_mask": hole, "interval": settings.uncertainty, "callback": progress}
    if volume.meta.get("modality"):
        options["modality"] = volume.meta["modality"]
    for name in ("noise_level", "target_spacing", "slice_profile"):
        if getattr(settings, name) is not None:
            options[name] = getattr(settings, name)
    try:
        return module.restore(volume, settings.task, settings.model, **options)
    except torch.OutOfMemoryError:
        return None


def _record(case: Case, restored: Restored, scan: Scan, digests: Mapping[str, str]) -> dict[str, Any]:
    """How the scan was made, as plain JSON; ``synthetic`` where something in it is invented, or was before."""
    provenance = dict(restored.provenance)
    synthetic = bool(provenance.get("synthetic", case.settings.task == "inpaint"))
    synthetic = synthetic or bool(scan.volume.meta.get("synthetic"))
    return {
        "versions": {},
        **provenance,
        "restores": case.settings.task,
        "synthetic": synthetic,
        "inputs": dict(digests),
    }


def _maps(case: Case, restored: Restored) -> list[Path]:
    from medgen.restoration.write_restored import maps_of

    return [case.files.more[name] for name in maps_of(restored) if name in case.files.more]


def _digests(case: Case) -> dict[str, str]:
    """SHA-256 of each file that was written, by its name below the root."""
    target = case.files.target
    paths: Iterable[Path] = sorted(target.iterdir()) if case.files.is_series else [target]
    paths = [*paths, *(path for path in case.files.more.values() if path.exists())]
    return {_relative(path, case.root): file_sha256(path) for path in paths}


def _relative(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()


def remove_series(folder: Path) -> None:
    """A folder of slices, and the folder itself if nothing else is in it."""
    for path in folder.glob("slice_*.dcm"):
        path.unlink(missing_ok=True)
    if not any(folder.iterdir()):
        folder.rmdir()


def _place(error: BaseException) -> str:
    """Module and line where an error arose: no text of it, which may quote a header."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return "an unknown place"
    return f"{trace.tb_frame.f_globals.get('__name__', '?')}:{trace.tb_lineno}"
