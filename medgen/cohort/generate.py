"""Generates cohorts: numbered subjects with image, label, provenance; complete or not there; resumable."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

from monai.data import MetaTensor

from medgen import __version__
from medgen.checks import MedgenError, check_count, check_range
from medgen.cohort.conditions import check_asked, subject_conditions
from medgen.cohort.labels import LabelPlace, placed, placing_note
from medgen.cohort.subject_files import FORMATS, choose_format, file_hash, read_subject, write_subject
from medgen.io.atomic import check_writable, write_json
from medgen.io.contact_sheet import MOST_SUBJECTS, contact_sheet
from medgen.restoration.extent import far_from_training, warn_if_far

__all__ = ["CohortSummary", "SubjectModel", "generate_cohort"]

MANIFEST = "manifest.json"
CONTACT_SHEET = "contact_sheet.png"
_LARGEST_SEED = 2**62
_DEFAULTS = {"format": "nifti"}  # of cohorts begun before there was a choice


class SubjectModel(Protocol):
    """What a model must offer to make a cohort: :class:`medgen.models.base.Model` does."""

    @property
    def spec(self) -> Any:
        """A :class:`medgen.models.specification.ModelSpec`: name, modality, grid, intensity, controls."""

    @property
    def multiple(self) -> int:
        """What every axis of a volume must be a multiple of."""

    @property
    def hash(self) -> str:
        """Of the model folder."""

    def sample(
        self,
        n: int = 1,
        seed: int = 0,
        label: MetaTensor | None = None,
        *,
        conditions: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Sequence[dict[str, MetaTensor]]:
        """``n`` subjects with ``"image"`` and, where the model has labels, ``"label"``."""


@dataclass(frozen=True)
class CohortSummary:
    """What :func:`generate_cohort` leaves.

    Attributes:
        folder: of the cohort.
        subjects: ``sub-0001``, ...
        made: how many of them this call made; the others were complete before.
        contact_sheet: the picture.
    """

    folder: Path
    subjects: tuple[str, ...]
    made: int
    contact_sheet: Path


def generate_cohort(
    model: SubjectModel,
    n: int,
    output_dir: str | os.PathLike[str],
    seed: int = 0,
    *,
    sampler: str | None = None,
    num_inference_steps: int | None = None,
    guidance_scale: float | None = None,
    options: Mapping[str, Any] | None = None,
    label: MetaTensor | Sequence[MetaTensor] | None = None,
    conditions: Mapping[str, Any] | None = None,
    format: str | None = None,
    overwrite: bool = False,
    resume: bool = False,
    progress: Callable[[int, int], None] | None = None,
    notify: Callable[[str], None] | None = None,
) -> CohortSummary:
    """Writes ``n`` generated subjects, each with image, label map and provenance.

    Subject number ``i`` (``sub-0001`` is number 0) uses ``seed + i`` and does not depend on ``n``. Its files are
    ``sub-0001_<modality>.nii.gz``, ``sub-0001_dseg.nii.gz`` and, last, ``sub-0001.json`` with provenance and SHA-256 of
    the others: a subject with that file is complete. No file holds a clock time or a path, so that the same call gives
    the same bytes on the same machine.

    Args:
        model: makes the subjects.
        n: how many.
        output_dir: the cohort's folder; a new one, unless ``overwrite`` or ``resume`` is given.
        seed: of the first subject.
        sampler: name of a sampler; by default the model's.
        num_inference_steps: by default the model's.
        guidance_scale: by default the model's.
        options: further settings of the model's family.
        label: label map ``(1, X, Y, Z)``, in the model's ids, for all subjects, of any spacing and orientation: it is
            brought to the model's spacing and RAS+ axes first. Several: subject ``i`` takes number ``i``, and after
            the last the first again. By default each subject has its own, from the model's source of labels.
        conditions: what is asked of the subjects: value by control, ``(low, high)`` to spread a number over them.
            What is not stated is drawn for each subject as the training people were.
        format: ``nifti`` for volumes; ``png`` (default) or ``tiff`` for slices.
        overwrite: removes the cohort that is in the folder first; a folder that holds none is refused.
        resume: keeps the complete subjects of an interrupted call with the same settings; ``n`` may be larger.
        progress: called with (subjects done, n).
        notify: called with one line about what becomes of given label maps, before the first subject is made; the
            record of each subject says it too (``label_file``, ``label_grid``).

    Returns:
        Where everything is.

    Raises:
        MedgenError: a wrong argument, an existing folder, a folder made with other settings, or no write permission.
        OSError: the disk is full, or the like; the subjects written before are complete.
        KeyboardInterrupt: Ctrl-C; its text says how to go on, once there is a cohort to go on with.
    """
    _check_arguments(n, seed, num_inference_steps, overwrite, resume)
    folder = Path(output_dir)
    format = choose_format(model.spec, format)
    asked = check_asked(getattr(model.spec, "controls", ()), conditions)
    labels = [label] if isinstance(label, MetaTensor) else label
    places = [placed(model, given)[1] for given in labels or ()]
    settings: dict[str, Any] = {
        "sampler": sampler, "num_inference_steps": num_inference_steps, "guidance_scale": guidance_scale,
        **(options or {}),
    }  # fmt: skip
    request = _request(model, seed, settings, _labels_hash(places), asked, format)
    _check_folder(folder, request, n, overwrite, resume)
    _tell_of(model, places[:n], notify)

    def make(number: int) -> tuple[dict[str, MetaTensor], LabelPlace | None]:
        volume, place = placed(model, labels[number % len(labels)]) if labels else (None, None)
        wanted = subject_conditions(asked, number) or None
        return model.sample(n=1, seed=seed + number, label=volume, conditions=wanted, **settings)[0], place

    # what the model refuses is refused before an old cohort is removed
    first = None if resume else make(0)
    if overwrite:
        _remove_cohort(folder)
    new, made = not folder.exists(), 0
    subjects: list[dict[str, Any]] = []
    write_json(folder / MANIFEST, _manifest(request, n, subjects, complete=False))
    with _left_resumable(folder, new, subjects):
        for number in range(n):
            name = f"sub-{number + 1:04d}"
            record = _complete(folder, name) if resume else None
            if record is None:
                subject, place = first if first and not number else make(number)
                record = _write_record(model, folder, name, seed + number, subject, place, format)
                made += 1
            subjects.append(_listed(name, seed + number, record))
            if progress is not None:
                progress(number + 1, n)
        write_json(folder / MANIFEST, _manifest(request, n, subjects, complete=True))
        names = tuple(subject["id"] for subject in subjects)
        shown = [read_subject(model.spec, folder, name, format) for name in names[:MOST_SUBJECTS]]
        contact_sheet([volume for volume in shown if "image" in volume], folder / CONTACT_SHEET, names)
    return CohortSummary(folder, names, made, folder / CONTACT_SHEET)


@contextmanager
def _left_resumable(folder: Path, new: bool, subjects: Sequence[Any]) -> Iterator[None]:
    """After a failure a new folder without a subject is removed; any other can be resumed, as Ctrl-C is told."""
    try:
        yield
    except BaseException as error:
        if new and not subjects:
            shutil.rmtree(folder, ignore_errors=True)
        elif isinstance(error, KeyboardInterrupt):
            raise KeyboardInterrupt("interrupted: complete subjects stay; continue with --resume") from None
        raise


def _check_arguments(n: int, seed: int, num_inference_steps: int | None, overwrite: bool, resume: bool) -> None:
    check_count("generate_cohort", "n", n)
    check_range("generate_cohort", "seed", seed, 0, _LARGEST_SEED)
    if num_inference_steps is not None:
        check_count("generate_cohort", "num_inference_steps", num_inference_steps)
    if overwrite and resume:
        raise MedgenError("generate_cohort: overwrite and resume exclude each other. Give one.")


def _request(
    model: SubjectModel,
    seed: int,
    settings: Mapping[str, Any],
    label_sha256: str | None,
    asked: Mapping[str, Any],
    format: str,
) -> dict[str, Any]:
    """What decides every byte of a subject but its number; two calls with the same one may share a folder."""
    return {
        "model": model.spec.name,
        "model_sha256": model.hash,
        "seed": seed,
        **settings,
        "label_sha256": label_sha256,
        "conditions": {name: list(v) if isinstance(v, tuple) else v for name, v in asked.items()} or None,
        "format": format,
    }


def _labels_hash(places: Sequence[LabelPlace]) -> str | None:
    """Of the one label map on the model's grid, or of those of all."""
    hashes = [place.sha256 for place in places]
    if len(hashes) < 2:
        return hashes[0] if hashes else None
    return hashlib.sha256("".join(hashes).encode()).hexdigest()


def _tell_of(model: SubjectModel, places: Sequence[LabelPlace], notify: Callable[[str], None] | None) -> None:
    """What became of label maps; a warning, once, where one is of quite another size than the model's."""
    note = placing_note(places)
    if note and notify is not None:
        notify(note)
    for place in places:
        if far_from_training(model.spec, place.used["size"]):
            warn_if_far(model.spec, f"label map '{place.file}'" if place.file else "the label map", place.used["size"])
            return


def _check_folder(folder: Path, request: dict[str, Any], n: int, overwrite: bool, resume: bool) -> None:
    """Refuses or accepts an existing folder, and one that cannot be written."""
    check_writable(folder)
    if not folder.exists():
        return
    if not folder.is_dir():
        raise MedgenError(f"'{folder}' is a file. Give another output folder.")
    if not overwrite and not resume:
        raise MedgenError(f"'{folder}' exists. Choose another output, or add --overwrite or --resume.")
    if not any(folder.iterdir()):
        return
    before = _read_json(folder / MANIFEST)
    if before is None or "request" not in before:
        raise MedgenError(f"'{folder}' exists and holds no cohort of medgen. Choose another output.")
    if not overwrite:
        _check_same_request(folder, before, request, n)


def _check_same_request(folder: Path, before: dict[str, Any], request: dict[str, Any], n: int) -> None:
    """Refuses to resume a cohort with other settings than it was begun with."""
    for key in (*request, *(key for key in before["request"] if key not in request)):
        value, was = (record.get(key, _DEFAULTS.get(key)) for record in (request, before["request"]))
        if was != value:
            raise MedgenError(
                f"'{folder}' was begun with {key} {was}, not {value}. Resume with the same settings, or choose another "
                "output."
            )
    if n < int(before.get("n", 0)):
        raise MedgenError(f"'{folder}' was begun with n {before['n']}, not {n}. Resume with at least as many.")


def _remove_cohort(folder: Path) -> None:
    """Removes a cohort's own files and nothing else."""
    endings = [f"sub-[0-9]*{ending}" for ending in (*FORMATS.values(), ".json")]
    for pattern in (*endings, CONTACT_SHEET, MANIFEST):
        for file in folder.glob(pattern):
            file.unlink()


def _write_record(
    model: SubjectModel,
    folder: Path,
    name: str,
    seed: int,
    subject: dict[str, MetaTensor],
    place: LabelPlace | None,
    format: str,
) -> dict[str, Any]:
    """Writes one subject; its record is written last."""
    files = write_subject(model.spec, folder, name, subject, format)
    record = {**_provenance(model, seed, next(iter(subject.values())), place), "files": files}
    write_json(folder / f"{name}.json", record)
    return record


def _listed(name: str, seed: int, record: Mapping[str, Any]) -> dict[str, Any]:
    """A subject's entry in the manifest."""
    entry = {"id": name, "seed": seed, "files": record["files"]}
    return entry | {key: record[key] for key in ("conditions", "label_file", "label_grid") if record.get(key)}


def _provenance(model: SubjectModel, seed: int, image: MetaTensor, place: LabelPlace | None) -> dict[str, Any]:
    """Where a subject comes from: no clock time, no path."""
    record = {"model": model.spec.name, "model_sha256": model.hash, **image.meta.get("provenance", {})}
    versions = {name: metadata.version(name) for name in ("torch", "monai", "numpy")}
    record["versions"] = {**record.get("versions", {}), "medgen": __version__, **versions}
    record |= {"label_sha256": None} if place is None else place.record()
    return {**record, "synthetic": True, "seed": seed, "intensity_unit": model.spec.intensity.unit}


def _complete(folder: Path, name: str) -> dict[str, Any] | None:
    """The record of a subject whose files are all there and whole, else None."""
    record = _read_json(folder / f"{name}.json")
    if record is None or not isinstance(record.get("files"), dict):
        return None
    for file, digest in record["files"].items():
        if not (folder / file).is_file() or file_hash(folder / file) != digest:
            return None
    return record


def _manifest(request: dict[str, Any], n: int, subjects: list[dict[str, Any]], complete: bool) -> dict[str, Any]:
    return {
        "format": 1,
        "synthetic": True,
        "generator": f"medgen {__version__}",
        "request": request,
        "n": n,
        "complete": complete,
        "subjects": subjects,
    }


def _read_json(path: Path) -> dict[str, Any] | None:
    """A JSON object, or None where the file is missing or damaged."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None
