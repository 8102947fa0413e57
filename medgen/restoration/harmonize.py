"""A scan in the style of other scans: contrast and texture of another scanner, anatomy unchanged.

Without a model, statistics of the foreground are matched: all quantiles (``histogram``), a few of them (``landmarks``),
or quantiles and the strength of each octave of texture (``texture``). Learnt styles are translation models:
:func:`medgen.restoration.translate.translate`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from numpy.typing import NDArray
from scipy import ndimage

import medgen
from medgen.checks import MedgenError, check_choice, check_range
from medgen.geometry import spacing_of

__all__ = [
    "METHODS",
    "HarmonizeReport",
    "Style",
    "check_is_scan",
    "cut_out",
    "foreground",
    "harmonize",
    "harmonize_file",
]

Array = NDArray[np.float64]
METHODS = ("histogram", "landmarks", "texture")
LANDMARKS = (1.0, 10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 70.0, 80.0, 90.0, 99.0)
OCTAVES_MM = (1.0, 2.0, 4.0, 8.0)
LARGEST_GAIN = 3.0
CUT_OUT = 0.1  # share of voxels of exactly the lowest value: nothing measured is so even
LABEL_SHARE = 0.5  # of equal neighbours in a label map: 0.95 and more; in real 8-bit scans up to 0.13
_QUANTILES = 1001
_ROUNDS = 3
_SAMPLE = 2_000_000


@dataclass(frozen=True)
class HarmonizeReport:
    """What was done.

    Attributes:
        before: mean absolute difference of the quantiles of scan and reference, in the reference's unit.
        after: the same of the result.
        clipped: voxels whose new value did not fit the file's stored type.
        output: the written file or folder.
        record: the JSON file beside it.
        findings: what reading a DICOM series found out.
    """

    before: float
    after: float
    clipped: int
    output: Path
    record: Path
    findings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Style:
    """How scans of one scanner and contrast look, people averaged.

    Attributes:
        quantiles: of the foreground, equally spaced from 0 to 1, in the scans' unit.
        textures: root mean square of each octave of texture (see ``OCTAVES_MM``), same unit.
        air: median outside the foreground, same unit.
        scans: how many were averaged.
    """

    quantiles: Array
    textures: Array
    air: float = 0.0
    scans: int = 1

    @classmethod
    def of(cls, volumes: Sequence[MetaTensor]) -> Style:
        """From reference scans, each ``(1, X, Y, Z)`` in one common unit.

        Raises:
            MedgenError: no scan, or one that is not a single finite volume.
        """
        if not volumes:
            raise MedgenError("Style.of: volumes is empty. Give at least one reference scan.")
        found = [_measured(volume) for volume in volumes]
        quantiles, textures, air = zip(*found, strict=True)
        return cls(np.mean(quantiles, 0), np.mean(textures, 0), float(np.mean(air)), len(found))


def foreground(volume: MetaTensor) -> NDArray[np.bool_]:
    """Where a scan shows the body: above a tenth of its robust range (2nd to 98th percentile), filled, in one piece.

    The threshold is BET's (Smith 2002, section 2.1). A part is kept where it has a tenth of the largest one's voxels.
    Where a share of ``CUT_OUT`` or more has exactly the lowest value, the scan was cut out: the rest is the body.

    Args:
        volume: ``(1, X, Y, Z)``, any unit.

    Returns:
        ``(X, Y, Z)``.

    Raises:
        MedgenError: a constant image, or values that are not finite.
    """
    values = volume.as_tensor().cpu().numpy()[0]
    if not np.isfinite(values).all() or values.min() == values.max():
        raise MedgenError("foreground: volume must be finite and not constant. Replace NaN and infinite values first.")
    removed = cut_out(volume)
    if removed.any():
        return ~removed
    low, high = np.percentile(values, [2, 98])
    body = ndimage.binary_fill_holes(values > low + 0.1 * (high - low))
    parts, _ = ndimage.label(body)
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    kept: NDArray[np.bool_] = (sizes >= 0.1 * sizes.max())[parts]
    return kept


def check_is_scan(who: str, volume: MetaTensor, name: str) -> None:
    """Refuse a label map or mask where a scan is needed.

    That is one of whole numbers in which, the most frequent one apart, ``LABEL_SHARE`` of the voxels or more equal
    their next neighbour.

    Args:
        who: the caller, for errors.
        volume: ``(1, X, Y, Z)``, any unit.
        name: what the user gave.

    Raises:
        MedgenError: it is one.
    """
    values = volume.as_tensor().cpu().numpy()[0]
    if not np.array_equal(values, np.rint(values)):
        return
    ids, counts = np.unique(values, return_counts=True)
    commonest, equal, all_ = ids[counts.argmax()], 0, 0
    for axis in range(3):
        ahead = np.moveaxis(values, axis, 0)
        pairs = (ahead[1:] != commonest) & (ahead[:-1] != commonest)
        equal += int((pairs & (ahead[1:] == ahead[:-1])).sum())
        all_ += int(pairs.sum())
    if len(ids) <= 2 or equal >= LABEL_SHARE * max(all_, 1):
        raise MedgenError(
            f"{who}: '{name}' looks like a label map or mask: {len(ids)} whole numbers in patches of one value. Give a "
            "scan."
        )


def cut_out(volume: MetaTensor) -> NDArray[np.bool_]:
    """What was cut out of a scan (skull stripping, padding): its lowest value, where ``CUT_OUT`` of the voxels have it.

    Args:
        volume: ``(1, X, Y, Z)``, any unit.

    Returns:
        ``(X, Y, Z)``, holes of the body left out; nowhere, where nothing was cut out.
    """
    values = volume.as_tensor().cpu().numpy()[0]
    lowest = values == values.min()
    if lowest.mean() < CUT_OUT:
        return np.zeros_like(lowest)
    removed: NDArray[np.bool_] = ~ndimage.binary_fill_holes(~lowest)
    return removed


def harmonize(
    volume: MetaTensor,
    reference: Style | MetaTensor | Sequence[MetaTensor],
    method: str = "histogram",
    strength: float = 1.0,
) -> MetaTensor:
    """Give a scan the style of reference scans; they need not be of the same person nor aligned.

    Args:
        volume: ``(1, X, Y, Z)``, any grid and unit.
        reference: scans of the style that is wanted, or what :meth:`Style.of` made of them.
        method: ``histogram``: every quantile of the foreground becomes the reference's; ``landmarks``: those of
            ``LANDMARKS`` do, straight lines between (Nyul and Udupa 1999; Nyul, Udupa and Zhang 2000), more robust to a
            lesion or a missing part; ``texture``: as ``histogram``, and each octave of texture gets the reference's
            strength, by a factor of ``LARGEST_GAIN`` at most, as AdaIN does with feature maps (Huang and Belongie
            2017, arXiv:1703.06868, equation 8).
        strength: share of the way to the reference's style, in the reference's unit: below 1 the scan's own
            contrast, brought to the reference's mean and deviation, is mixed in.

    Returns:
        ``(1, X, Y, Z)`` float32 on the volume's grid, in the reference's unit. Air that was cut out (one exact value)
        becomes the reference's; other air goes on from the map of the foreground's lowest values by its mean slope.

    Raises:
        MedgenError: an unknown method, a strength outside 0..1, or see :meth:`Style.of`.
    """
    check_choice("harmonize", "method", method, METHODS)
    check_range("harmonize", "strength", strength, 0, 1)
    _check_volume("harmonize", volume)
    style = reference if isinstance(reference, Style) else Style.of(_as_list(reference))
    body = foreground(volume)
    values = volume.as_tensor().cpu().double().numpy()[0]
    share = np.linspace(0, 1, _QUANTILES) if method != "landmarks" else np.array(LANDMARKS) / 100
    own = np.quantile(_some(values[body]), share)
    wanted = np.interp(share, np.linspace(0, 1, _QUANTILES), style.quantiles)
    mapped = _mapped(values, own, wanted)
    if method == "texture":
        spacing = spacing_of(np.asarray(volume.affine, dtype=np.float64))
        textured = mapped
        for _ in range(_ROUNDS):  # each undoes a part of the other (Heeger and Bergen 1995, section 3)
            textured = _textured(textured, body, style, spacing)
            textured = _mapped(textured, np.quantile(_some(textured[body]), share), wanted)
        mapped = np.where(body, textured, mapped)
    if strength < 1:
        plain = wanted.mean() + (values - own.mean()) * (wanted.std() / max(own.std(), 1e-12))
        mapped = strength * mapped + (1 - strength) * plain
    mapped = np.where(cut_out(volume), style.air, mapped)
    if style.quantiles[0] >= 0:
        mapped = np.clip(mapped, 0, None)
    meta = {key: value for key, value in volume.meta.items() if key != "affine"}
    made = torch.from_numpy(mapped[None]).float()
    return MetaTensor(made, affine=volume.affine, meta=meta | {"provenance": _provenance(method, volume)})


def harmonize_file(
    image: str | os.PathLike[str],
    references: Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    *,
    method: str = "histogram",
    strength: float = 1.0,
    overwrite: bool = False,
) -> HarmonizeReport:
    """:func:`harmonize` in files: geometry, header and stored type of the scan are kept; a record stands beside.

    Args:
        image: NIfTI file, or a folder with one DICOM series.
        references: scans of the wanted style, files or folders.
        output: NIfTI file to write, or, for a DICOM series, a folder.
        method: see :func:`harmonize`.
        strength: see :func:`harmonize`.
        overwrite: replace existing outputs.

    Returns:
        What was done.

    Raises:
        MedgenError: see :func:`harmonize`; a file that is missing or unreadable, or an output that exists or cannot be
            written.
    """
    from medgen.restoration.scans import read_scan
    from medgen.restoration.written import finding_texts, planned, write_results

    check_choice("harmonize", "method", method, METHODS)
    files = planned(output, [image, *references], overwrite)
    scan = read_scan(image, pictures=True)
    others = [read_scan(path, pictures=True) for path in references]
    for path, given in zip([image, *references], [scan, *others], strict=True):
        check_is_scan("harmonize", given.volume, str(path))
    style = Style.of([other.volume for other in others])
    result = harmonize(scan.volume, style, method, strength)
    gap = [float(np.abs(_measured(x, textures=False)[0] - style.quantiles).mean()) for x in (scan.volume, result)]
    provenance = result.meta["provenance"] | {
        "strength": strength,
        "inputs": {"image_sha256": scan.sha256, "reference_sha256": [other.sha256 for other in others]},
        "quantile_difference": {"before": gap[0], "after": gap[1]},
    }
    clipped = write_results(files, scan, result, provenance, "harmonized", overwrite=overwrite)
    return HarmonizeReport(gap[0], gap[1], clipped, files.target, files.record, finding_texts([scan]))


def _provenance(method: str, volume: MetaTensor) -> dict[str, Any]:
    """How it was made; a real scan whose intensities are mapped stays a real one."""
    synthetic = bool(volume.meta.get("synthetic"))
    return {"synthetic": synthetic, "harmonized": method, "versions": {"medgen": medgen.__version__}}


def _as_list(reference: MetaTensor | Sequence[MetaTensor]) -> list[MetaTensor]:
    return [reference] if isinstance(reference, torch.Tensor) else list(reference)


def _check_volume(who: str, volume: MetaTensor) -> None:
    if volume.ndim != 4 or volume.shape[0] != 1:
        raise MedgenError(f"{who}: volume must have shape (1, X, Y, Z). Got {tuple(volume.shape)}. Give one 3D volume.")


def _measured(volume: MetaTensor, textures: bool = True) -> tuple[Array, Array, float]:
    """Quantiles of the foreground, the strength of each octave of its texture, and the median of the rest."""
    _check_volume("Style.of", volume)
    body = foreground(volume)
    values = volume.as_tensor().cpu().double().numpy()[0]
    quantiles = np.quantile(_some(values[body]), np.linspace(0, 1, _QUANTILES))
    air = float(np.median(values[~body])) if not body.all() else 0.0
    if not textures:
        return quantiles, np.empty(0), air
    spacing = spacing_of(np.asarray(volume.affine, dtype=np.float64))
    return quantiles, np.array([_size(band, body) for band in _bands(values, body, spacing)[:-1]]), air


def _some(values: Array) -> Array:
    """At most ``_SAMPLE`` of the values, equally spaced."""
    return values[:: max(1, len(values) // _SAMPLE)]


def _mapped(values: Array, own: Array, wanted: Array) -> Array:
    """Piecewise linear map that takes ``own`` to ``wanted``, continued by its mean slope beyond both ends."""
    kept = np.concatenate([[True], np.diff(own) > 1e-12 * (1 + np.abs(own).max())])
    x, y = own[kept], wanted[kept]
    if len(x) < 2:
        return values - own.mean() + wanted.mean()
    slope = (y[-1] - y[0]) / (x[-1] - x[0])
    inner: Array = np.interp(values, x, y)
    return inner + slope * (np.minimum(values - x[0], 0) + np.maximum(values - x[-1], 0))


def _bands(values: Array, body: NDArray[np.bool_], spacing: Array) -> list[Array]:
    """Octaves of texture, fine to coarse, and what is coarser; their sum is ``values`` in the body.

    Blurs see the body alone (normalised convolution: Knutsson and Westin 1993).
    """
    mask = body.astype(np.float64)
    filled, bands = values * mask, []
    previous = values
    for sigma in OCTAVES_MM:
        width = sigma / spacing
        weight = ndimage.gaussian_filter(mask, width)
        blurred = ndimage.gaussian_filter(filled, width) / np.maximum(weight, 1e-6)
        bands.append(previous - blurred)
        previous = blurred
    return [*bands, previous]


def _size(band: Array, body: NDArray[np.bool_]) -> float:
    """Root mean square of a band well within the body, where no edge to the air counts."""
    inside = ndimage.binary_erosion(body, iterations=2)
    return float(np.sqrt(np.mean(band[inside if inside.any() else body] ** 2)))


def _textured(values: Array, body: NDArray[np.bool_], style: Style, spacing: Array) -> Array:
    """``values`` with each octave scaled to the reference's strength."""
    *bands, coarse = _bands(values, body, spacing)
    made = coarse
    for band, wanted in zip(bands, style.textures, strict=True):
        gain = wanted / max(_size(band, body), 1e-12)
        made = made + np.clip(gain, 1 / LARGEST_GAIN, LARGEST_GAIN) * band
    return made
