"""White-matter lesions of random number, site, size and shape, written into a label map.

The defaults come from the expert lesion masks of 23 patients with multiple sclerosis (1 mm, 2252 components of at
least three voxels, 26-connected; 969 of them of at least 0.03 ml, which the figures below describe):

===================================  ==================================================================
what was measured                    result
===================================  ==================================================================
lesions per patient                  4..115, median 32; log-normal with log mean 3.34, log std 0.99
load per patient, ml                 0.3..53, median 13.9
volume away from the ventricles, ml  10/50/90/99 %: 0.033, 0.062, 0.23, 1.16 (850 lesions);
                                     log-normal cut at 0.03 ml by maximum likelihood: log mean -5.43,
                                     log std 1.82 (its percentiles: 0.034, 0.062, 0.24, 1.01)
volume at the ventricles, ml         10/50/90 %: 0.038, 0.16, 5.1, largest 47 (119 lesions);
                                     log-normal cut at 0.03 ml: log mean -7.85, log std 4.36
axis ratios (square roots of the     major / middle: log mean 0.52, log std 0.31 (median 1.64);
covariance's eigenvalues)            middle / minor: log mean 0.40, log std 0.24 (median 1.46)
volume over the ellipsoid of equal   10/50/90 %: 0.37, 0.66, 0.81 (1 = an exact ellipsoid)
second moments
share within 4 mm of a ventricle     12 % of all lesions, 16 % in the median patient, 75 % of all volume
                                     (after scaling each brain mask to Colin27's, so within some mm)
share within 2 mm of the cortex      4 of 15 and 22 of 27 in the two patients with a T1 (three-class Otsu)
===================================  ==================================================================

Source: the open_ms data, Lesjak et al., CC BY.

References:
    Lesjak et al., "A novel public MR image dataset of multiple sclerosis patients with lesion segmentations based on
    multi-rater consensus", Neuroinformatics 16 (2018).
    Filippi et al., "Assessment of lesions on magnetic resonance imaging in multiple sclerosis", Brain 142 (2019), for
    the meaning of the sites.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

import numpy as np
import torch
from monai.data import MetaTensor
from numpy.typing import NDArray
from scipy import ndimage
from scipy.special import ndtr, ndtri

from medgen.anatomy.labels import ids_of
from medgen.checks import MedgenError

__all__ = ["LESION_ID", "SITES", "Lesion", "LesionRanges", "add_lesions", "draw_lesions"]

Site = Literal["periventricular", "deep", "juxtacortical"]
Array = NDArray[Any]
Box = tuple[slice, ...]

LESION_ID: Final = 77
SITES: Final[tuple[Site, ...]] = ("periventricular", "deep", "juxtacortical")


@dataclass(frozen=True)
class LesionRanges:
    """What lesions are drawn from; see the module for where the defaults come from.

    Attributes:
        count_log_mean: log-normal number of lesions: mean of the logarithm.
        count_log_std: its standard deviation.
        count_limits: fewest and most lesions.
        site_weights: of periventricular, deep and juxtacortical, in this order; need not add up to 1.
        volume_log_mean: log-normal volume (ml) of each site, cut at ``volume_limits_ml``: mean of the logarithm.
        volume_log_std: its standard deviation.
        volume_limits_ml: smallest and largest volume.
        elongation_log_mean: logarithms of major / middle and middle / minor axis: means.
        elongation_log_std: their standard deviations.
        roughness: smallest and largest amplitude of the boundary's noise, as a share of the radius.
        periventricular_mm: farthest a periventricular lesion's rim is from a ventricle.
        juxtacortical_mm: farthest a juxtacortical lesion's rim is from the cortex.
        allowed_ids: the labels lesions may replace.
        ventricle_ids: labels that count as ventricle.
        cortex_ids: labels that count as cortex.
    """

    count_log_mean: float = 3.34
    count_log_std: float = 0.99
    count_limits: tuple[int, int] = (1, 120)
    site_weights: tuple[float, float, float] = (0.15, 0.55, 0.30)
    volume_log_mean: tuple[float, float, float] = (-7.85, -5.43, -5.43)
    volume_log_std: tuple[float, float, float] = (4.36, 1.82, 1.82)
    volume_limits_ml: tuple[float, float] = (0.03, 20.0)
    elongation_log_mean: tuple[float, float] = (0.52, 0.40)
    elongation_log_std: tuple[float, float] = (0.31, 0.24)
    roughness: tuple[float, float] = (0.15, 0.5)
    periventricular_mm: float = 3.0
    juxtacortical_mm: float = 2.0
    allowed_ids: tuple[int, ...] = ids_of("white_matter")
    ventricle_ids: tuple[int, ...] = (4, 43)
    cortex_ids: tuple[int, ...] = ids_of("cortex")

    def __post_init__(self) -> None:
        if min(self.site_weights) < 0 or sum(self.site_weights) <= 0:
            raise MedgenError(
                f"LesionRanges: site_weights must be at least 0 with a sum above 0. Got {self.site_weights}."
            )
        for name in ("count_limits", "volume_limits_ml", "roughness"):
            low, high = getattr(self, name)
            if not 0 <= low <= high:
                raise MedgenError(f"LesionRanges: {name} must be (low, high) with 0 <= low <= high. Got {low, high}.")


@dataclass(frozen=True)
class Lesion:
    """One lesion as written.

    Attributes:
        site: periventricular, deep or juxtacortical.
        center_mm: centre of mass, RAS+ mm.
        volume_ml: of the voxels written.
        voxels: their number.
    """

    site: Site
    center_mm: tuple[float, float, float]
    volume_ml: float
    voxels: int

    def to_dict(self) -> dict[str, Any]:
        """Plain types for a report."""
        return asdict(self)


def add_lesions(
    label: torch.Tensor,
    seed: int,
    spacing_mm: Sequence[float] | None = None,
    ranges: LesionRanges = LesionRanges(),
    count: int | None = None,
) -> torch.Tensor:
    """A copy of a label map with random lesions (id 77); :func:`draw_lesions` without the report."""
    return draw_lesions(label, seed, spacing_mm, ranges, count)[0]


def draw_lesions(
    label: torch.Tensor,
    seed: int,
    spacing_mm: Sequence[float] | None = None,
    ranges: LesionRanges = LesionRanges(),
    count: int | None = None,
) -> tuple[torch.Tensor, tuple[Lesion, ...]]:
    """Writes random lesions into a copy of a label map.

    Each lesion takes, of the allowed voxels near its centre, those with the smallest value of a rough ellipsoid's
    radius, as many as its volume asks for: it follows the ventricle or cortex it touches and stays inside the white
    matter. Lesions may touch (confluence) and never overlap. A periventricular one is elongated away from the wall.
    A site that the map does not offer (no ventricle in a crop) is drawn as another.

    Args:
        label: ids of :mod:`medgen.anatomy.labels` (or those that ``ranges`` names), shape ``(1, X, Y, Z)``.
        seed: same seed, same bytes.
        spacing_mm: voxel size in voxel axis order; by default that of the affine (1 mm for a plain tensor).
        ranges: what is drawn from.
        count: the number of lesions; drawn by default.

    Returns:
        The label map (type, dtype and meta of ``label``) and a report of each lesion, largest first. It can hold fewer
        lesions than drawn where the white matter has no room left.

    Raises:
        MedgenError: a label of another shape, or without any allowed voxel.
    """
    ids = _checked_label(label)
    affine = _affine(label, spacing_mm)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    rng = np.random.default_rng(seed)
    room = np.isin(ids, ranges.allowed_ids)
    if not room.any():
        raise MedgenError(
            f"add_lesions: the label map must hold white matter (ids {list(ranges.allowed_ids)}); found "
            f"{np.unique(ids)[:20].tolist()}. Give LesionRanges(allowed_ids=...) that it holds."
        )
    box = _box(room, margin=2)
    painter = _Painter(ids[box].copy(), room[box], spacing, ranges)
    lesions = [_report(painter.paint(rng, *plan), affine, box) for plan in _plans(rng, ranges, count)]
    result = label.clone()
    result[0][box] = torch.from_numpy(painter.ids.astype(ids.dtype)).to(label)
    return result, tuple(sorted((item for item in lesions if item), key=lambda item: -item.volume_ml))


def _plans(rng: np.random.Generator, ranges: LesionRanges, count: int | None) -> list[tuple[Site, float]]:
    """Site and volume (ml) of each lesion, largest first so that large ones find room."""
    if count is None:
        drawn = np.exp(rng.normal(ranges.count_log_mean, ranges.count_log_std))
        count = int(np.clip(np.rint(drawn), *ranges.count_limits))
    weights = np.asarray(ranges.site_weights, dtype=np.float64)
    sites = rng.choice(len(SITES), size=count, p=weights / weights.sum())
    volumes = _cut_lognormal(
        rng.uniform(size=count),
        np.asarray(ranges.volume_log_mean)[sites],
        np.asarray(ranges.volume_log_std)[sites],
        ranges.volume_limits_ml,
    )
    return [(SITES[sites[i]], float(volumes[i])) for i in np.argsort(-volumes, kind="stable")]


def _cut_lognormal(uniform: Array, mean: Array, std: Array, limits: tuple[float, float]) -> Array:
    """Log-normal values between two limits, by the inverse of the (upper-tail) distribution function."""
    low, high = np.log(np.maximum(limits, 1e-9))
    upper = ndtr((mean - low) / std)
    lower = ndtr((mean - high) / std)
    logs = mean - std * ndtri(lower + uniform * (upper - lower))
    return np.asarray(np.exp(np.clip(logs, low, high)))


class _Painter:
    """The part of a label map around the white matter, with what is needed to place lesions in it.

    Args:
        ids: label ids, changed in place.
        room: where a lesion may be.
        spacing: mm.
        ranges: see :class:`LesionRanges`.
    """

    def __init__(self, ids: Array, room: Array, spacing: Array, ranges: LesionRanges) -> None:
        self.ids, self.room, self.spacing, self.ranges = ids, room, spacing, ranges
        self.to_ventricle = _distance(np.isin(ids, ranges.ventricle_ids), spacing)
        self.to_cortex = _distance(np.isin(ids, ranges.cortex_ids), spacing)

    def paint(self, rng: np.random.Generator, site: Site, volume_ml: float) -> tuple[Site, Array, float] | None:
        """Writes one lesion; returns its site, voxel indices ``(n, 3)`` and volume in ml, None without room."""
        radius = float(np.cbrt(volume_ml * 1000 * 3 / (4 * np.pi)))
        uniform, normal, noise_seed = rng.uniform(size=2), rng.normal(size=8), int(rng.integers(2**63))
        found = self._center(site, radius, uniform[0])
        if found is None:
            return None
        site, center = found
        axes = self._axes(site, center, radius, normal)
        amplitude = self.ranges.roughness[0] + uniform[1] * (self.ranges.roughness[1] - self.ranges.roughness[0])
        voxel_ml = float(np.prod(self.spacing)) / 1000
        wanted = max(1, round(volume_ml / voxel_ml))
        indices = self._grow(center, axes, amplitude, wanted, np.random.default_rng(noise_seed))
        self.ids[tuple(indices.T)] = LESION_ID
        self.room[tuple(indices.T)] = False
        return site, indices, len(indices) * voxel_ml

    def _center(self, site: Site, radius: float, uniform: float) -> tuple[Site, Array] | None:
        """A free voxel of the site, each as likely; other sites are tried where it has none."""
        for name in (site, *(other for other in SITES[1:] + SITES[:1] if other != site)):
            places = np.flatnonzero(self._candidates(name, radius))
            if len(places):
                index = places[int(uniform * len(places))]
                return name, np.array(np.unravel_index(index, self.room.shape))
        return None

    def _candidates(self, site: Site, radius: float) -> Array:
        """Where the centre of a lesion of this site may lie."""
        ventricle = self.ranges.periventricular_mm
        cortex = self.ranges.juxtacortical_mm
        reach = 0.7 * radius
        at_ventricle = self.to_ventricle <= ventricle + reach
        at_cortex = self.to_cortex <= cortex + reach
        if site == "periventricular":
            return self.room & at_ventricle
        if site == "juxtacortical":
            return self.room & at_cortex & ~at_ventricle
        return self.room & ~at_cortex & ~at_ventricle

    def _axes(self, site: Site, center: Array, radius: float, normal: Array) -> Array:
        """Rows: the directions of the ellipsoid's axes over their lengths in mm, major first."""
        mean, std = self.ranges.elongation_log_mean, self.ranges.elongation_log_std
        first, second = (abs(mean[i] + std[i] * normal[i]) for i in range(2))
        logs = np.array([2 * first + second, second - first, -first - 2 * second]) / 3
        major = normal[2:5]
        if site == "periventricular":
            away = _gradient(self.to_ventricle, center, self.spacing)
            major = away + 0.35 * major
        frame, _ = np.linalg.qr(np.stack([major, normal[5:8], np.cross(major, normal[5:8])], axis=1))
        return np.asarray(frame.T / (radius * np.exp(logs))[:, None])

    def _grow(self, center: Array, axes: Array, amplitude: float, wanted: int, rng: np.random.Generator) -> Array:
        """The ``wanted`` connected free voxels of smallest noisy ellipsoid radius around ``center``."""
        major_mm = 1 / np.linalg.norm(axes, axis=1).min()
        reach = np.maximum(3, np.ceil(2.0 * major_mm / self.spacing)).astype(int)
        box = tuple(
            slice(max(0, c - r), min(n, c + r + 1)) for c, r, n in zip(center, reach, self.room.shape, strict=True)
        )
        lower = np.array([part.start for part in box])
        offsets = np.stack(np.meshgrid(*(np.arange(p.start, p.stop) for p in box), indexing="ij"), -1) - center
        along = np.einsum("xyzi,ji->xyzj", offsets * self.spacing, axes)  # no BLAS: same bytes on any thread count
        radii = np.sqrt((along**2).sum(-1))
        minor_mm = 1 / np.linalg.norm(axes, axis=1).max()
        radii += amplitude * _smooth_noise(radii.shape, minor_mm / self.spacing, rng)
        free = self.room[box]
        values = np.where(free, radii, np.inf)
        values[tuple(center - lower)] = -np.inf
        limit = np.partition(values.ravel(), min(wanted, free.sum()) - 1)[min(wanted, free.sum()) - 1]
        parts, _ = ndimage.label((values <= limit) & free)
        return np.argwhere(parts == parts[tuple(center - lower)]) + lower


def _smooth_noise(shape: tuple[int, ...], sigma: Array, rng: np.random.Generator) -> Array:
    """Gaussian noise of unit variance, smooth over ``sigma`` voxels."""
    noise = ndimage.gaussian_filter(rng.standard_normal(shape), np.maximum(0.5, 0.7 * sigma), mode="reflect")
    return np.asarray(noise / max(noise.std(), 1e-9))


def _gradient(field: Array, center: Array, spacing: Array) -> Array:
    """Direction in which ``field`` grows at a voxel, unit length (zero where it is flat or unknown)."""
    result = np.zeros(3)
    for axis, n in enumerate(field.shape):
        low, high = center.copy(), center.copy()
        low[axis], high[axis] = max(0, center[axis] - 2), min(n - 1, center[axis] + 2)
        step = field[tuple(high)] - field[tuple(low)]
        result[axis] = step / ((high[axis] - low[axis]) * spacing[axis]) if np.isfinite(step) and step else 0.0
    return result / max(float(np.linalg.norm(result)), 1e-9)


def _distance(inside: Array, spacing: Array) -> Array:
    """Distance in mm to the nearest voxel of ``inside``; infinite where there is none."""
    if not inside.any():
        return np.full(inside.shape, np.inf, dtype=np.float32)
    return np.asarray(ndimage.distance_transform_edt(~inside, sampling=spacing), dtype=np.float32)


def _box(inside: Array, margin: int) -> Box:
    """The bounding box of ``inside`` with a margin in voxels."""
    found = ndimage.find_objects(inside.astype(np.int8))[0]
    return tuple(
        slice(max(0, p.start - margin), min(n, p.stop + margin)) for p, n in zip(found, inside.shape, strict=True)
    )


def _report(painted: tuple[Site, Array, float] | None, affine: Array, box: Box) -> Lesion | None:
    if painted is None:
        return None
    site, indices, volume = painted
    center = affine[:3, :3] @ (indices.mean(0) + [part.start for part in box]) + affine[:3, 3]
    return Lesion(site, (float(center[0]), float(center[1]), float(center[2])), volume, len(indices))


def _checked_label(label: torch.Tensor) -> Array:
    """The ids as an integer array ``(X, Y, Z)``."""
    if label.ndim != 4 or label.shape[0] != 1:
        raise MedgenError(f"add_lesions: label must have shape (1, X, Y, Z). Got {tuple(label.shape)}.")
    array = (label.as_tensor() if isinstance(label, MetaTensor) else label).detach().cpu().numpy()[0]
    return array if array.dtype.kind in "iu" else np.rint(array).astype(np.int32)


def _affine(label: torch.Tensor, spacing_mm: Sequence[float] | None) -> Array:
    """Voxel to RAS+ mm, with the spacing replaced where one is given."""
    affine = label.affine.double().cpu().numpy().copy() if isinstance(label, MetaTensor) else np.eye(4)
    if spacing_mm is not None:
        affine[:3, :3] *= np.asarray(spacing_mm, dtype=np.float64) / np.linalg.norm(affine[:3, :3], axis=0)
    return np.asarray(affine)
