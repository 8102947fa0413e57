"""A volume file to a DICOM series, with the same report as the other direction."""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any, Literal

from monai.data import MetaTensor

from medgen.checks import MedgenError
from medgen.io.atomic import check_writable, write_json
from medgen.io.convert import ConvertSummary, OutputExists, check_output, loaded, source_fingerprint
from medgen.io.findings import Refused, VolumeSource
from medgen.io.journal import REPORT, file_sha256, file_state, is_temporary, read_json
from medgen.io.report import Refusal, exit_status, file_rows, findings_of, geometry_of, report
from medgen.io.survey import FullSurvey, ReadOptions, survey

__all__ = ["check_own", "convert_to_dicom"]

_SLICE = re.compile(r"slice_\d+\.dcm")
_ENDING = re.compile(r"(\.nii|\.hdr|\.img|\.nrrd|\.nhdr|\.mha|\.mhd)?(\.gz)?$", re.IGNORECASE)
_HERE = "."


def convert_to_dicom(
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    options: ReadOptions = ReadOptions(),
    *,
    reference: str | os.PathLike[str] | None = None,
    modality: Literal["MR", "CT"] | None = None,
    resume: bool = False,
    overwrite: bool = False,
) -> ConvertSummary:
    """Writes the one volume of ``source`` as ``destination/slice_0001.dcm``, ..., and ``destination/report.json``.

    What a record beside the source calls synthetic (``"synthetic": true`` in ``NAME.json``, or in ``sub-X.json`` for
    ``sub-X_T1w.nii.gz``) is marked so in the series, and so is a file that bears the mark itself.

    Args:
        source: a volume file, or a folder that holds one volume.
        destination: a folder.
        options: what is read beyond plain 3D volumes.
        reference: a folder with the one series of the patient and study that the volume belongs to; without one,
            patient and study are fresh, or those of ``source`` where that is a DICOM series itself.
        modality: by default the reference's, or MR.
        resume: keep a finished conversion of the same input, do it again otherwise.
        overwrite: replace an earlier conversion; a folder that holds other things is refused.

    Returns:
        What was done; the volume's path in the report is ``"."``, the folder itself.

    Raises:
        MedgenError: ``source`` does not exist or holds several volumes, the reference is none, or the output exists, is
            of another make, or cannot be written.
        OSError: the disk is full, or the like; there is no partial series.
    """
    source, folder = Path(source), Path(destination)
    if not os.path.lexists(source):
        raise MedgenError(f"source '{source}' does not exist. Check the path.")
    check_output(source, folder, resume=resume, overwrite=overwrite)
    if reference is not None:
        check_output(Path(reference), folder, resume=True, overwrite=False)
    check_own(folder)
    found = survey(source, options, exclude=folder)
    if len(found.volumes) > 1:
        raise Refused("SEVERAL_VOLUMES", f"'{source}' holds {len(found.volumes)} volumes. Give one file.")
    if not found.volumes:
        return _summary(folder, found, None, {})
    volume = found.volumes[0]
    series = _series(reference) if reference is not None else volume if hasattr(volume, "series_uid") else None
    fingerprint = _fingerprint(volume, found, options, series, modality, _record(volume))
    earlier = read_json(folder / REPORT)
    if resume and _is_whole(folder, earlier, fingerprint):
        return ConvertSummary(earlier, 0, 1, exit_status(earlier["files"], 1))
    values = loaded(volume)
    if isinstance(values, Refusal):
        return _summary(folder, found, None, {0: values})
    files = _write(folder, values, series, modality, _record(volume))
    row = {
        "path": _HERE,
        **geometry_of(volume),
        **findings_of(volume.findings),
        "slices": {file.name: file_sha256(file) for file in files},
        "fingerprint": fingerprint,
    }
    return _summary(folder, found, row, {})


def _write(
    folder: Path,
    volume: MetaTensor,
    series: VolumeSource | None,
    modality: Literal["MR", "CT"] | None,
    record: dict[str, Any],
) -> list[Path]:
    """The series, in one step."""
    from medgen.io.write_dicom import write_series

    synthetic = record.get("synthetic") is True
    # with inputs it was made from somebody's scan; without a model nothing says that it was not
    partly = series is not None or bool(record.get("inputs")) or "model" not in record
    return write_series(
        folder,
        volume,
        reference=None if series is None else series.files,
        description="converted by medgen",
        derivation="converted",
        provenance={key: value for key, value in record.items() if key != "synthetic"} if synthetic else {},
        modality=modality,
        synthetic="no" if not synthetic else "part" if partly else "all",
        overwrite=True,
    )


def _summary(
    folder: Path, found: FullSurvey, row: dict[str, Any] | None, refusals: dict[int, Refusal]
) -> ConvertSummary:
    """Writes the report."""
    files = file_rows(found, [None if row is None else _HERE] * len(found.volumes), refusals)
    content = report(found, files, [] if row is None else [row])
    folder.mkdir(parents=True, exist_ok=True)
    if row is None:
        for path in folder.iterdir():
            if _SLICE.fullmatch(path.name):
                path.unlink()
    write_json(folder / REPORT, content)
    made = int(row is not None)
    return ConvertSummary(content, made, 0, exit_status(files, made, len(refusals)))


def check_own(folder: Path) -> None:
    """Refuses a folder for a series that cannot be written, or that holds anything but such a series.

    Raises:
        OutputExists: it holds other things, which would go.
        MedgenError: it cannot be written.
    """
    check_writable(folder)
    if folder.is_dir():
        names = [path.name for path in folder.iterdir()]
        foreign = [name for name in names if name != REPORT and not (_SLICE.fullmatch(name) or is_temporary(name))]
        if foreign:
            raise OutputExists(f"'{folder}' holds '{sorted(foreign)[0]}', which is no slice. Choose another output.")


def _series(reference: str | os.PathLike[str]) -> VolumeSource:
    """The reference series.

    Raises:
        MedgenError: there is none, or several.
    """
    from medgen.io.survey import single_volume

    series = single_volume(reference)
    if getattr(series, "series_uid", None) is None:
        raise MedgenError(f"reference '{reference}' is no DICOM series. Give the folder of one.")
    return series


def _record(volume: VolumeSource) -> dict[str, Any]:
    """What a JSON file beside a volume file says of something synthetic; else whether the file bears the mark."""
    path = volume.files[0]
    stem = _ENDING.sub("", path.name)
    for name in dict.fromkeys((stem, stem.split("_")[0])):
        record = read_json(path.with_name(f"{name}.json"))
        if record.get("synthetic") is True:
            return record
    return {"synthetic": True} if any(finding.code == "SYNTHETIC" for finding in volume.findings) else {}


def _fingerprint(
    volume: VolumeSource,
    found: FullSurvey,
    options: ReadOptions,
    series: VolumeSource | None,
    modality: str | None,
    record: dict[str, Any],
) -> str:
    parts = [source_fingerprint(volume, found, options), str(modality), json.dumps(record, sort_keys=True)]
    parts += [f"{path.name} {file_state(path)}" for path in (() if series is None else series.files)]
    return hashlib.sha256("\n".join(parts).encode("utf-8", "surrogateescape")).hexdigest()


def _is_whole(folder: Path, earlier: dict[str, Any], fingerprint: str) -> bool:
    """Whether a finished conversion of the same input is there and is as it was written."""
    rows = earlier.get("volumes")
    if not isinstance(rows, list) or len(rows) != 1 or not isinstance(rows[0], dict):
        return False
    if rows[0].get("fingerprint") != fingerprint:
        return False
    slices = rows[0].get("slices", {})
    there = {path.name for path in folder.iterdir() if path.name != REPORT}
    return there == set(slices) and all(file_sha256(folder / name) == digest for name, digest in slices.items())
