"""Whether a reader's volumes are what the phantom says: for any reader, from arrays, affines and a report."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from tests.io.dicom.phantom import Truth
from tests.io.dicom.registry import Case, Expected

Outcome = Literal["right", "flagged", "refused", "silent", "crashed"]
_LPS = np.array([-1.0, -1.0, 1.0])


@dataclass(frozen=True)
class Volume:
    """One volume that a reader made.

    Args:
        array: three axes.
        affine: RAS+ mm.
        findings: codes that came with it.
    """

    array: np.ndarray
    affine: np.ndarray
    findings: frozenset[str] = frozenset()


@dataclass
class Reading:
    """All that a reader made of a folder.

    Args:
        volumes: what it read.
        refused: code by file.
        skipped: code by file.
        warned: it said that something is wrong, without a code.
        refusal: it raised an error meant for the user, or read nothing and said so.
        crash: it died, or raised an error not meant for a user.
    """

    volumes: list[Volume] = field(default_factory=list)
    refused: Mapping[Path, str] = field(default_factory=dict)
    skipped: Mapping[Path, str] = field(default_factory=dict)
    warned: str = ""
    refusal: str = ""
    crash: str = ""


@dataclass(frozen=True)
class Verdict:
    """The outcome and, in one line, why."""

    outcome: Outcome
    why: str = ""


def judge(case: Case, expected: Expected, reading: Reading, strict: bool = True) -> Verdict:
    """What a reading of a case amounts to.

    Args:
        case: the case.
        expected: what its builder promised.
        reading: what the reader made of it.
        strict: codes count (medgen); otherwise any warning or error is a flag, and tilted slices may be resampled.

    Returns:
        ``right``: every volume within tolerance; ``flagged``: a fault that was said; ``refused``: nothing wrong was
        read, but something readable was not; ``silent``: a volume that is wrong or missing without a word;
        ``crashed``.
    """
    if reading.crash:
        return Verdict("crashed", reading.crash)
    wrong = _unmatched(expected.alternatives, reading.volumes, resampled=not strict)
    flags = _flags(reading)
    said = bool(flags) or bool(reading.warned) or bool(reading.refusal)
    if case.kind == "readable":
        return _judge_readable(case, expected, reading, wrong, flags, said, strict)
    flags |= set(reading.skipped.values()) & case.codes
    good = not wrong and bool(reading.volumes)
    if good and case.kind == "either":
        return Verdict("right")
    if wrong and reading.volumes and not (case.undecidable and said):
        return Verdict("flagged" if said and not strict else "silent", wrong)
    if not strict:
        return Verdict("flagged") if said or not reading.volumes else Verdict("silent", "used without a word")
    if not flags:
        return Verdict("silent", "nothing read and nothing said" if not reading.volumes else "used without a finding")
    if not flags & case.codes:
        return Verdict("refused", f"codes {sorted(flags)}; one of {sorted(case.codes)} was due")
    return Verdict("flagged", ", ".join(sorted(flags)))


def _judge_readable(
    case: Case, expected: Expected, reading: Reading, wrong: str, flags: set[str], said: bool, strict: bool
) -> Verdict:
    if wrong:
        read_something_wrong = bool(reading.volumes) and not wrong.startswith("missing")
        if strict and read_something_wrong:
            return Verdict("silent", f"{wrong}; codes {sorted(flags)}")
        return Verdict(
            "refused" if said else "silent", f"{wrong}; {reading.refusal or reading.warned or sorted(flags)}"
        )
    if not strict:
        return Verdict("right")
    if case.codes and not flags & case.codes:
        return Verdict("refused", f"right, but without one of the findings {sorted(case.codes)}; has {sorted(flags)}")
    return _judge_files(expected, reading)


def _judge_files(expected: Expected, reading: Reading) -> Verdict:
    """Files that must be set aside, and none beside them refused."""
    refused = {path.name: code for path, code in reading.refused.items()}
    aside = refused | {path.name: code for path, code in reading.skipped.items()}
    for name, codes in expected.aside.items():
        if name not in aside:
            return Verdict("silent", f"{name} is not set aside")
        if codes and aside[name] not in codes:
            return Verdict("refused", f"{name} is set aside as {aside[name]}; one of {sorted(codes)} was due")
    extra = sorted(name for name in refused if name not in expected.aside)
    return Verdict("refused", f"refused beside a right volume: {extra}") if extra else Verdict("right")


def _flags(reading: Reading) -> set[str]:
    return set(reading.refused.values()).union(*(volume.findings for volume in reading.volumes))


def _unmatched(alternatives: Sequence[Sequence[Truth]], volumes: Sequence[Volume], resampled: bool) -> str:
    """Empty where some alternative and the volumes match one to one; else the first difference of the nearest."""
    reasons = []
    for truths in alternatives:
        left, reason = list(volumes), ""
        for truth in truths:
            reports = [difference(truth, volume, resampled) for volume in left]
            if "" in reports:
                left.pop(reports.index(""))
            else:
                reason = reason or ("wrong: " + reports[0] if reports else "missing volume")
        if not reason and left and not resampled:
            reason = f"wrong: {len(left)} more volumes than there are"
        if not reason and left:
            rest = [all(difference(truth, volume, resampled) for truth in truths) for volume in left]
            reason = "wrong: a further volume" if any(rest) else ""
        if not reason:
            return ""
        reasons.append((len(truths) - len(volumes), reason))
    return min(reasons, key=lambda pair: abs(pair[0]))[1] if reasons else "wrong: nothing should be read"


def difference(truth: Truth, volume: Volume, resampled: bool = False) -> str:
    """Empty where a volume is the truth; else what differs first.

    Args:
        truth: grid and field.
        volume: any axis order and direction.
        resampled: any grid that covers the truth's will do; voxels beyond it are not looked at.
    """
    array = np.asarray(volume.array)
    if array.ndim != 3:
        return f"{array.ndim} axes"
    affine = np.asarray(volume.affine, dtype=np.float64)
    if affine.shape != (4, 4) or not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-12:
        return "no affine"
    to_truth = np.linalg.inv(truth.affine) @ affine
    index = _indices(array.shape, to_truth)
    if _same_lattice(index, truth.shape, to_truth):
        inside = np.ones(array.shape, dtype=bool)
    elif resampled and _covers(truth, affine, array.shape):
        inside = ((index >= -0.01) & (index <= np.array(truth.shape) - 0.99)).all(-1)
    else:
        return f"grid {array.shape} is not that of the {truth.shape} truth"
    points = (_grid_points(array.shape, affine) * _LPS)[inside]
    wanted = truth.field(points)
    if truth.hole is not None:
        mask, value = truth.hole
        columns, rows = (np.rint(index[inside][:, axis]).astype(int) for axis in (0, 1))
        wanted = np.where(mask[columns, rows], value, wanted)
    off = np.abs(array[inside].astype(np.float64) - wanted)
    if np.isnan(off).any():
        return "NaN voxels"
    count = int((off > truth.tolerance + 1e-9 * np.abs(wanted)).sum())
    return f"{count} of {off.size} voxels differ, by {off.max():.3g} at most" if count else ""


def _grid_points(shape: tuple[int, ...], affine: np.ndarray) -> np.ndarray:
    grid = np.stack(np.meshgrid(*(np.arange(size) for size in shape), indexing="ij"), axis=-1)
    return grid @ affine[:3, :3].T + affine[:3, 3]


def _indices(shape: tuple[int, ...], to_truth: np.ndarray) -> np.ndarray:
    return _grid_points(shape, to_truth)


def _same_lattice(index: np.ndarray, shape: tuple[int, int, int], to_truth: np.ndarray) -> bool:
    """Whether the voxels are the truth's, once each, in whatever order; to 2 % of a voxel over the whole volume."""
    if sorted(index.shape[:3]) != sorted(shape):
        return False
    flat = index.reshape(-1, 3)
    steps = np.abs(to_truth[:3, :3]).round()
    if not (np.array_equal(steps.sum(0), [1, 1, 1]) and np.array_equal(steps.sum(1), [1, 1, 1])):
        return False
    ends = flat.min(0), flat.max(0)
    near = np.abs(flat - flat.round()).max() < 0.02
    return bool(near and np.allclose(ends[0], 0, atol=0.02) and np.allclose(ends[1], np.array(shape) - 1, atol=0.02))


def _covers(truth: Truth, affine: np.ndarray, shape: tuple[int, ...]) -> bool:
    """Whether every corner of the truth lies in the grid."""
    to_grid = np.linalg.inv(affine) @ truth.affine
    corners = np.array(list(itertools.product(*((0, size - 1) for size in truth.shape))))
    places = corners @ to_grid[:3, :3].T + to_grid[:3, 3]
    return bool((places >= -0.05).all() and (places <= np.array(shape) - 0.95).all())
