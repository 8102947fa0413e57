"""What a survey or a conversion says about files and volumes, as plain JSON."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import nibabel as nib
import numpy as np

from medgen import __version__
from medgen.geometry import spacing_of
from medgen.io.findings import Finding, VolumeSource
from medgen.io.listing import as_text
from medgen.io.survey import FullSurvey

__all__ = ["Refusal", "exit_status", "file_rows", "findings_of", "geometry_of", "report"]


@dataclass(frozen=True)
class Refusal:
    """Why a volume that looked right was refused when its voxels were read.

    Args:
        code: stable.
        reason: one sentence.
    """

    code: str
    reason: str


def geometry_of(volume: VolumeSource) -> dict[str, Any]:
    """Shape (voxels), spacing (mm), orientation (where the voxel axes point, RAS+) and affine (RAS+ mm) as JSON."""
    affine = np.asarray(volume.affine, dtype=np.float64)
    return {
        "shape": [int(size) for size in volume.shape],
        "spacing": [round(float(step), 6) for step in spacing_of(affine)],
        "orientation": "".join(nib.aff2axcodes(affine)),
        "affine": [[float(value) for value in row] for row in affine],
    }


def findings_of(findings: Sequence[Finding]) -> dict[str, Any]:
    """Codes in order, each once, and the sentences that belong to them."""
    return {
        "findings": list(dict.fromkeys(finding.code for finding in findings)),
        "finding_texts": [f"{finding.code}: {as_text(finding.text)}" for finding in findings],
    }


def file_rows(
    found: FullSurvey, paths: Sequence[str | None], refusals: Mapping[int, Refusal] | None = None
) -> list[dict[str, Any]]:
    """One row for each file that was found.

    Args:
        found: the survey.
        paths: what to call each of its volumes; None for one that was refused.
        refusals: why, by the volume's position.

    Returns:
        ``path, status, code, reason, volume``; ``volumes`` too, where a file went into several.
    """
    refusals = refusals or {}
    users: dict[Any, list[int]] = defaultdict(list)
    for position, volume in enumerate(found.volumes):
        for path in dict.fromkeys(volume.files):
            users[path].append(position)
    rows = []
    for record in found.files:
        row: dict[str, Any] = {
            "path": as_text(found.listing.names[record.path]),
            "status": record.status,
            "code": record.code,
            "reason": None if record.reason is None else as_text(record.reason),
            "volume": None,
        }
        if record.status == "used":
            positions = users.get(record.path) or ([] if record.volume is None else [record.volume])
            made = [paths[position] for position in positions if paths[position] is not None]
            refused = next((refusals[position] for position in positions if position in refusals), None)
            if made:
                row["volume"] = made[0]
            elif refused is not None:
                row |= {"status": "refused", "code": refused.code, "reason": as_text(refused.reason)}
            if len(made) > 1:
                row["volumes"] = made
        rows.append(row)
    return rows


def exit_status(files: Sequence[Mapping[str, Any]], made: int, refused: int = 0) -> int:
    """0: nothing was refused; 3: something was, the rest is there; 1: there is no volume at all."""
    if not made:
        return 1
    return 3 if refused or any(row["status"] == "refused" for row in files) else 0


def report(
    found: FullSurvey, files: list[dict[str, Any]], volumes: list[dict[str, Any]], **more: Any
) -> dict[str, Any]:
    """The whole report; no clock time and no path outside input and output, so that a rerun gives the same bytes."""
    counts = {status: sum(row["status"] == status for row in files) for status in ("used", "skipped", "refused")}
    links = [{"path": as_text(name), "to": "a folder that was read already"} for name, _ in found.listing.links]
    return {
        "medgen": __version__,
        "files": files,
        "volumes": volumes,
        "counts": {"found": len(files), **counts, "volumes": len(volumes)},
        "links": links,
        **more,
    }
