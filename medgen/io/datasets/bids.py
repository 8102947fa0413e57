"""BIDS trees: ``sub-01/ses-1/anat/sub-01_ses-1_T1w.nii.gz``, ``participants.tsv``, ``derivatives/``.

Images of one session are one case; where a session has several of a suffix (runs, acquisitions), each set of entities
is one, and what there is once belongs to all. A contrast-enhanced T1w (``ce-``) is ``T1ce``. Where the tree itself has
no images, those of ``derivatives/`` are taken. A cohort that medgen generated is such a tree, flat or not.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from medgen.io.datasets.case import Attribute, Case, ImageFile, is_image, stem
from medgen.io.datasets.tables import rows_by

__all__ = ["is_bids", "read_bids"]

_OTHER_FOLDERS = ("func", "dwi", "fmap", "perf", "eeg", "meg", "ieeg", "beh", "figures")
_NO_IMAGES = ("dseg", "probseg", "mask", "hole", "roi", "bold", "dwi", "sbref", "epi", "xfm", "defacemask")


class _Scan(NamedTuple):
    path: Path
    entities: dict[str, str]
    suffix: str

    @property
    def rest(self) -> tuple[tuple[str, str], ...]:
        """Entities that tell scans of one session apart."""
        return tuple((k, v) for k, v in self.entities.items() if k not in ("sub", "ses"))


def is_bids(path: Path) -> bool:
    """Whether a folder holds scans of ``sub-*``."""
    return next(_scans(path), None) is not None or next(_derived(path), None) is not None


def _parsed(path: Path) -> _Scan | None:
    """A file name's entities and suffix; None for another kind of name."""
    *pairs, suffix = stem(path).split("_")
    if not pairs or not all(re.fullmatch(r"[A-Za-z0-9]+-[A-Za-z0-9.+-]+", pair) for pair in pairs):
        return None
    entities = dict(pair.split("-", 1) for pair in pairs)
    if "sub" not in entities:
        return None
    if suffix == "T1w" and "ce" in entities:
        suffix = "T1ce"
    return _Scan(path, entities, suffix)


def _files(root: Path) -> Iterator[Path]:
    for subject in sorted(root.glob("sub-*")):
        yield from [subject] if subject.is_file() else sorted(subject.rglob("*"))


def _scans(root: Path) -> Iterator[_Scan]:
    """Images below ``sub-*`` of a tree."""
    for path in _files(root):
        scan = _parsed(path) if is_image(path) and path.parent.name not in _OTHER_FOLDERS else None
        if scan is not None and scan.suffix not in _NO_IMAGES and "label" not in scan.entities:
            yield scan


def _derived(root: Path) -> Iterator[_Scan]:
    for pipeline in sorted((root / "derivatives").glob("*")):
        yield from _scans(pipeline)


def read_bids(path: Path) -> list[Case]:
    """The cases of a tree: attributes of ``participants.tsv`` and ``sub-*_sessions.tsv``, and ``session``.

    Labels are ``dseg`` files, or else lesion masks (``label-*_mask``, ``desc-*_mask``), beside the image or below
    ``derivatives/``: with the image's entities or more, or the only one of the session.

    Args:
        path: the tree.

    Raises:
        MedgenError: a table cannot be read.
    """
    scans = list(_scans(path)) or list(_derived(path))
    sessions: dict[tuple[str, str], list[_Scan]] = defaultdict(list)
    for scan in scans:
        sessions[scan.entities["sub"], scan.entities.get("ses", "")].append(scan)
    people = _table(path / "participants.tsv", "participant_id")
    labels = _labels(path)
    cases = []
    for (subject, session), found in sorted(sessions.items()):
        person = f"sub-{subject}"
        attributes: dict[str, Attribute] = {**people.get(person, {})}
        if session:
            table = _table(path / person / f"{person}_sessions.tsv", "session_id")
            attributes |= {"session": session, **table.get(f"ses-{session}", {})}
        for images in _together(found):
            label = _label_of(images, labels[subject, session])
            files = {name: ImageFile(scan.path) for name, scan in images.items()}
            cases.append(Case(person, files, None if label is None else ImageFile(label), attributes))
    return cases


def _table(path: Path, key: str) -> dict[str, dict[str, Attribute]]:
    return rows_by(path, key) if path.is_file() else {}


def _together(scans: Iterable[_Scan]) -> list[dict[str, _Scan]]:
    """Sets of images of one session, a suffix once in each."""
    by_suffix: dict[str, list[_Scan]] = defaultdict(list)
    for scan in scans:
        by_suffix[scan.suffix].append(scan)
    once = {suffix: found[0] for suffix, found in by_suffix.items() if len(found) == 1}
    several: dict[tuple[tuple[str, str], ...], dict[str, _Scan]] = defaultdict(dict)
    for suffix, found in by_suffix.items():
        for scan in found if len(found) > 1 else []:
            several[scan.rest][suffix] = scan
    return [{**once, **images} for _, images in sorted(several.items())] or [once]


def _labels(root: Path) -> dict[tuple[str, str], list[_Scan]]:
    """Label maps and lesion masks of the tree and its derivatives, by subject and session."""
    found: dict[tuple[str, str], list[_Scan]] = defaultdict(list)
    derived = (root / "derivatives").rglob("sub-*_*")
    for path in [*_files(root), *sorted(derived)]:
        scan = _parsed(path) if is_image(path) else None
        if scan is None:
            continue
        lesions = scan.suffix in ("mask", "roi") and (
            "label" in scan.entities or "esion" in scan.entities.get("desc", "")
        )
        if scan.suffix == "dseg" or lesions:
            found[scan.entities["sub"], scan.entities.get("ses", "")].append(scan)
    return found


def _label_of(images: dict[str, _Scan], labels: list[_Scan]) -> Path | None:
    """The label of a set of images: ``dseg`` before masks, those that name an image's entities before an only one."""
    for kind in (("dseg",), ("mask", "roi")):
        candidates = [label for label in labels if label.suffix in kind and _agree(label, images.values())]
        for scan in images.values():
            own = stem(scan.path).rsplit("_", 1)[0]
            fitting = sorted(label.path for label in candidates if label.path.name.startswith(f"{own}_"))
            if fitting:
                return next((p for p in fitting if p.parent == scan.path.parent), fitting[0])
        if len(candidates) == 1:
            return candidates[0].path
    return None


def _agree(label: _Scan, images: Iterable[_Scan]) -> bool:
    """Whether no image is of another run or acquisition than the label."""
    told = {key: value for key, value in label.rest if key not in ("space", "desc", "label", "res")}
    return not any(scan.entities.get(key, value) != value for scan in images for key, value in told.items())
