"""What is in files and folders, whatever the format: every file accounted for, every volume named.

A folder may hold DICOM series, NIfTI files and other volume files side by side, and junk. DICOM files are told by their
content and are looked at together, because a series lies in many of them and in any folder; everything else is told by
its suffix and is looked at file by file.
"""

from __future__ import annotations

import glob
import os
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from monai.data import MetaTensor

from medgen.io.findings import FileRecord, ReadOptions, Refused, Survey, VolumeSource
from medgen.io.listing import Listing, list_files

__all__ = ["FullSurvey", "ReadOptions", "read_volume", "single_volume", "survey"]

_NIFTI = (".nii", ".nii.gz")
_PAIR = (".hdr", ".hdr.gz")
_VOXELS = (".img", ".img.gz")
_RASTER = (".nrrd", ".nhdr", ".mha", ".mhd")
_PICTURE = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff")
_HEADER_SIZES = {(348).to_bytes(4, order) for order in ("little", "big")} | {
    (540).to_bytes(4, order) for order in ("little", "big")
}


@dataclass
class FullSurvey(Survey):
    """A survey, and where it was made.

    Args:
        listing: names of the files in reports, and links that were not followed twice.
    """

    listing: Listing = field(default_factory=Listing)


def survey(
    paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    options: ReadOptions = ReadOptions(),
    *,
    exclude: Path | None = None,
) -> FullSurvey:
    """What is in files and folders of any kind.

    Args:
        paths: one or several files or folders. A plain picture (PNG, TIFF, JPEG) counts as a volume file only where it
            is given itself: in a folder it is skipped.
        options: what is allowed beyond plain 3D volumes.
        exclude: a folder that is left out.

    Returns:
        Volumes in the order of their names, files in the order of their paths: used + skipped + refused = found.

    Raises:
        MedgenError: a path does not exist.
    """
    given = [Path(path) for path in ([paths] if isinstance(paths, str | os.PathLike) else paths)]
    listing = list_files(given, exclude)
    kinds: dict[str, list[Path]] = defaultdict(list)
    for path in listing.readable:
        kinds[_kind(path, path in given)].append(path)
    parts = [_survey_nifti(path, options) for path in kinds["nifti"]]
    parts += [_survey_raster(path, options) for path in kinds["raster"]]
    parts += _survey_pictures(kinds["picture"], options)
    claimed = {record.path for part in parts for record in part.files}
    rest = [path for path in kinds["other"] if path not in claimed]
    if rest:
        parts.append(_survey_dicom(rest, options))
    return _joined(parts, list(listing.records), listing)


def single_volume(
    path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]], options: ReadOptions = ReadOptions()
) -> VolumeSource:
    """The one volume that is there.

    Args:
        path: a volume file, a folder with one DICOM series, or the files of one.
        options: see :class:`ReadOptions`.

    Raises:
        Refused: ``NO_VOLUME`` or ``SEVERAL_VOLUMES``, or, where one file or series was refused and there is nothing
            else, the code of that.
        MedgenError: the path does not exist.
    """
    found = survey(path, options)
    if len(found.volumes) == 1:
        return found.volumes[0]
    what = path if isinstance(path, str | os.PathLike) else f"{len(path)} files"
    if found.volumes:
        names = ", ".join(volume.name for volume in found.volumes[:8])
        more = f" and {len(found.volumes) - 8} more" if len(found.volumes) > 8 else ""
        raise Refused("SEVERAL_VOLUMES", f"'{what}' holds {len(found.volumes)} volumes ({names}{more}). Give one.")
    reasons = sorted({(record.code or "", record.reason or "") for record in found.files if record.status == "refused"})
    if len(reasons) == 1:
        raise Refused(reasons[0][0], f"'{what}': {reasons[0][1]}")
    codes = ", ".join(sorted({record.code or "" for record in found.files})) or "it is empty"
    raise Refused("NO_VOLUME", f"'{what}' holds no volume that can be used ({codes}). See 'medgen inspect'.")


def read_volume(
    path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]], options: ReadOptions = ReadOptions()
) -> MetaTensor:
    """Loads the one volume that is there; :func:`single_volume` says what is accepted.

    Returns:
        Shape ``(1, X, Y, Z)`` in the stored voxel order and the scaled unit, affine RAS+ mm; ``meta["findings"]`` has
        the codes, joined by commas, ``meta["synthetic"]`` whether it is so in whole or in part.

    Raises:
        Refused: see :func:`single_volume`; or the voxels are not what the header promised.
    """
    source = single_volume(path, options)
    volume = source.load()
    codes = [finding.code for finding in source.findings]
    volume.meta.update(findings=",".join(codes), synthetic="SYNTHETIC" in codes)
    return volume


def _kind(path: Path, is_given: bool) -> str:
    """``nifti``, ``raster``, ``picture`` (in a folder) or ``other`` (perhaps DICOM), by suffix if not by content."""
    name = path.name.lower()
    if name.endswith((*_PAIR, *_VOXELS, *_RASTER, *_PICTURE)) and _begins(path, 132)[128:] == b"DICM":
        return "other"
    if name.endswith(_NIFTI) or (name.endswith(_PAIR) and _is_pair_header(path)):
        return "nifti"
    if is_given and name.endswith(_VOXELS) and any(path.parent.glob(f"{glob.escape(path.name.split('.')[0])}.*hdr*")):
        return "nifti"
    if name.endswith(_RASTER) or (is_given and name.endswith(_PICTURE)):
        return "raster"
    return "picture" if name.endswith(_PICTURE) else "other"


def _is_pair_header(path: Path) -> bool:
    """Whether a ``.hdr`` file is that of NIfTI or Analyze, not of something else."""
    head = _begins(path, 4)
    return head in _HEADER_SIZES or head[:2] == b"\x1f\x8b"


def _begins(path: Path, count: int) -> bytes:
    """The first bytes of a file; none where it cannot be read (its reader says so)."""
    try:
        with open(path, "rb") as file:
            return file.read(count)
    except OSError:
        return b""


def _survey_nifti(path: Path, options: ReadOptions) -> Survey:
    from medgen.io.nifti_survey import survey_nifti

    return survey_nifti(path, **asdict(options))


def _survey_raster(path: Path | Sequence[Path], options: ReadOptions) -> Survey:
    from medgen.io.raster import survey_raster

    return survey_raster(path, **asdict(options))


def _survey_pictures(paths: Sequence[Path], options: ReadOptions) -> list[Survey]:
    """Pictures in folders: skipped, or, where that is asked for, one stack a folder in the order of their numbers."""
    folders: dict[Path, list[Path]] = defaultdict(list)
    for path in paths:
        folders[path.parent].append(path)
    if options.without_geometry:
        return [_survey_raster(sorted(stack, key=_by_number), options) for stack in folders.values()]
    reason = "a picture without a place in space; give its path itself, or ask for what has no geometry"
    return [Survey([], [FileRecord(path, "skipped", "PICTURE", reason) for path in paths])]


def _by_number(path: Path) -> list[tuple[int, str]]:
    """Sorts ``slice2`` before ``slice10``."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"([0-9]+)", path.name)]


def _survey_dicom(files: Sequence[Path], options: ReadOptions) -> Survey:
    """Series in ``files``; where there is no DICOM at all, nothing is "not DICOM among DICOM"."""
    from medgen.io.dicom import survey_dicom

    found = survey_dicom(files, memory_budget=options.memory_budget)
    if all(record.code == "NOT_DICOM" for record in found.files):
        reason = "no format that is read: DICOM, NIfTI, NRRD, MetaImage"
        found.files = [replace(record, code="UNKNOWN_FORMAT", reason=reason) for record in found.files]
    return found


def _joined(parts: Sequence[Survey], records: list[FileRecord], listing: Listing) -> FullSurvey:
    """Several surveys as one."""
    places = [(part, index) for part in parts for index in range(len(part.volumes))]
    places.sort(key=lambda place: _order(place[0].volumes[place[1]], listing))
    new = {(id(part), index): position for position, (part, index) in enumerate(places)}
    for part in parts:
        for record in part.files:
            volume = None if record.volume is None else new[id(part), record.volume]
            records.append(replace(record, volume=volume))
    records = _once(records)
    for record in records:  # files that a header names lie anywhere
        listing.names.setdefault(record.path, record.path.name)
    records.sort(key=lambda record: listing.names[record.path])
    return FullSurvey([part.volumes[index] for part, index in places], records, listing)


def _once(records: Sequence[FileRecord]) -> list[FileRecord]:
    """One record a file; where two headers name it, the one that uses it."""
    best: dict[Path, FileRecord] = {}
    for record in records:
        if record.path not in best or (record.status == "used" and best[record.path].status != "used"):
            best[record.path] = record
    return list(best.values())


def _order(volume: VolumeSource, listing: Listing) -> tuple[str, list[str]]:
    return volume.name, [listing.names.get(path, path.name) for path in volume.files[:1]]
