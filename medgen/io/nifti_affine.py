"""Which of a NIfTI header's two affines is used, and what is to be said about the other.

The sform is used where ``sform_code`` is above 0, else the qform where ``qform_code`` is: the order of nibabel and of
ITK's default. Nothing is made up from the voxel sizes alone: a header with neither has no geometry.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from medgen.geometry import affine_fault
from medgen.io.findings import Finding, Refused

__all__ = ["chosen_affine", "form_codes"]

_CODES = range(6)
_TO_MM = {1: ("m", 1000.0), 2: ("mm", 1.0), 3: ("micron", 0.001)}
_TOLERANCE = 0.01
"""Of the smallest spacing: corners further apart than this disagree."""
_SPACING_TOLERANCE = 1e-3
"""Relative: spacings further apart than this disagree."""


def chosen_affine(fields: Any, shape: Sequence[int], name: str) -> tuple[np.ndarray | None, list[Finding]]:
    """The affine in mm and the findings about it.

    Two forms disagree where a corner of the volume lies more than 1 % of the smallest voxel size apart. A form whose
    code is none of the standard's 0..5 does not count by itself: it is used only where its voxel sizes are those of
    ``pixdim`` and there is no other form, and that is said.

    Args:
        fields: of the header.
        shape: ``(I, J, K)``.
        name: of the file, for errors.

    Returns:
        RAS+ mm, 4x4 float64, or None where neither form is there.

    Raises:
        Refused: ``BAD_AFFINE``: the form to use is not finite or cannot be inverted.
    """
    findings: list[Finding] = []
    sform = _sform(fields) if int(fields["sform_code"]) else None
    qform = _qform(fields) if int(fields["qform_code"]) else None
    wrong = [f for f in ("sform", "qform") if int(fields[f"{f}_code"]) not in _CODES]
    if wrong:
        codes = ", ".join(f"{form}_code = {int(fields[f'{form}_code'])}" for form in wrong)
        findings.append(Finding("BAD_FORM_CODE", f"{codes}, which the standard does not know"))
    if "sform" in wrong and qform is not None and "qform" not in wrong:
        sform, used = None, qform
    elif sform is not None:
        used = sform
    elif qform is not None:
        used = qform
    else:
        return None, findings
    which = "sform" if used is sform else "qform"
    fault = affine_fault(used)
    if fault:
        raise Refused("BAD_AFFINE", f"'{name}' has {which} {_rows(used)}: {fault}. Mend it.")
    if which in wrong and not _sizes_agree(used, fields):
        raise Refused("BAD_AFFINE", f"'{name}': {codes}, and its voxel sizes are not those of pixdim. Mend it.")
    if which == "sform" and qform is not None and "qform" not in wrong:
        findings += _disagreement(sform, qform, shape)
    if which == "sform" and not _sizes_agree(used, fields):
        have, told = _sizes(used), np.abs(np.asarray(fields["pixdim"][1:4], dtype=np.float64))
        text = f"pixdim has {_numbers(told)}, the sform {_numbers(have)}, which was used"
        findings.append(Finding("SPACING_DISAGREES", text))
    return _in_mm(used, int(fields["xyzt_units"]) & 7, findings, name), findings


def form_codes(fields: Any, findings: Sequence[Finding]) -> tuple[int, int]:
    """sform_code and qform_code that are true of the affine that was chosen.

    Args:
        fields: of the header, which has an affine.
        findings: about it, of :func:`chosen_affine`.

    Returns:
        Those of the header; 0 for a form that places voxels elsewhere or has an unknown code and was not used, 1
        (scanner) for one with an unknown code that was.
    """
    sform, qform = (int(fields[f"{form}_code"]) for form in ("sform", "qform"))
    if any(finding.code == "SFORM_QFORM_DISAGREE" for finding in findings):
        qform = 0
    sform, qform = (code if code in _CODES else 0 for code in (sform, qform))
    return (sform, qform) if sform or qform else (1, 0)


def _sform(fields: Any) -> np.ndarray:
    rows = [np.asarray(fields[row], dtype=np.float64) for row in ("srow_x", "srow_y", "srow_z")]
    return np.vstack([*rows, [0, 0, 0, 1.0]])


def _qform(fields: Any) -> np.ndarray:
    """Method 2 of the standard; NaN throughout where the quaternion or the voxel sizes are not possible."""
    b, c, d = (float(fields[f"quatern_{part}"]) for part in "bcd")
    pixdim = [float(size) for size in fields["pixdim"][:4]]
    rest = 1.0 - (b * b + c * c + d * d)
    if not (math.isfinite(rest) and rest > -1e-5 and all(math.isfinite(p) and p > 0 for p in pixdim[1:])):
        return np.full((4, 4), np.nan)
    a = math.sqrt(max(rest, 0.0))
    scale = 1.0 / math.sqrt(a * a + b * b + c * c + d * d)
    a, b, c, d = a * scale, b * scale, c * scale, d * scale
    rotation = np.array([
        [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
        [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
        [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
    ])  # fmt: skip
    affine = np.eye(4)
    affine[:3, :3] = rotation * [pixdim[1], pixdim[2], -pixdim[3] if pixdim[0] < 0 else pixdim[3]]
    affine[:3, 3] = [float(fields[f"qoffset_{axis}"]) for axis in "xyz"]
    return affine


def _disagreement(sform: np.ndarray | None, qform: np.ndarray, shape: Sequence[int]) -> list[Finding]:
    """Whether the two forms place the corners of the volume differently."""
    if sform is None:
        return []
    if affine_fault(qform):
        return [Finding("SFORM_QFORM_DISAGREE", "the qform is not possible; the sform was used")]
    ends = [(0, size - 1) for size in shape]
    corners = np.array([[i, j, k, 1.0] for i in ends[0] for j in ends[1] for k in ends[2]]).T
    places = (sform @ corners)[:3]
    apart = float(np.linalg.norm(places - (qform @ corners)[:3], axis=0).max())
    rounding = 1e-6 * float(np.abs(places).max())  # of single precision
    if apart <= _TOLERANCE * _sizes(sform).min() + rounding:
        return []
    text = f"sform and qform place a corner {apart:.4g} apart (in the header's unit); the sform was used"
    return [Finding("SFORM_QFORM_DISAGREE", text)]


def _in_mm(affine: np.ndarray, unit: int, findings: list[Finding], name: str) -> np.ndarray:
    """The affine in mm, by the header's unit of length."""
    if unit not in _TO_MM:
        said = "no unit of length" if unit == 0 else f"the unit of length {unit}, which the standard does not know"
        findings.append(Finding("UNITS_UNKNOWN", f"the header has {said}; mm was taken"))
        return affine
    word, factor = _TO_MM[unit]
    if factor == 1.0:
        return affine
    findings.append(Finding("UNITS_CONVERTED", f"lengths were in {word} and were converted to mm"))
    affine = np.diag([factor, factor, factor, 1.0]) @ affine
    fault = affine_fault(affine)
    if fault:
        raise Refused("BAD_AFFINE", f"'{name}' has lengths in {word} that are not possible: {fault}. Mend the unit.")
    return affine


def _sizes(affine: np.ndarray) -> np.ndarray:
    return np.linalg.norm(affine[:3, :3], axis=0)


def _sizes_agree(affine: np.ndarray, fields: Any) -> bool:
    """Whether the voxel sizes of an affine are those of ``pixdim``."""
    told = np.abs(np.asarray(fields["pixdim"][1:4], dtype=np.float64))
    return bool(np.allclose(_sizes(affine), told, rtol=_SPACING_TOLERANCE, atol=0))


def _numbers(values: np.ndarray) -> str:
    return " x ".join(f"{value:.5g}" for value in values)


def _rows(affine: np.ndarray) -> str:
    return np.array2string(affine[:3], precision=4, separator=", ")
