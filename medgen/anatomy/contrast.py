"""From a label map to an image of random or given MR contrast, without a network.

Steps, after SynthSeg (Billot et al. 2023, section 3; its equations in words):

1. a Gaussian mixture: voxels of label ``k`` have mean ``mu_k`` and standard deviation ``sigma_k``, drawn from uniform
   ranges, per tissue or per label, or near the values of a T1, T2 or FLAIR (``PRIORS``);
2. partial volume: ``sum_k p_k mu_k`` with ``p_k`` the smoothed one-hot map of label ``k``. Smoothing is linear, so
   this is the smoothed map of means, which is how it is computed;
3. a bias field, ``exp`` of a smooth Gaussian field, multiplied;
4. scaling to 0..1 and gamma, ``x ** exp(g)`` with ``g`` normal;
5. acquisition: each axis is blurred by a slice profile whose full width at half maximum is the slice thickness,
   sampled at the slice spacing, given Rician or Gaussian noise there, and brought back to the label's grid (linear).

Unlike the paper's white noise in step 1, the texture of a tissue is correlated, as measured on Colin27 (correlation of
neighbours at 1, 2 and 4 mm about 0.65, 0.4 and 0.25 in the brain, 0.9, 0.7 and 0.5 in muscle and fat).

References:
    Billot et al., "SynthSeg: Segmentation of brain MRI scans of any contrast and resolution without retraining",
    Medical Image Analysis 86 (2023). Written from the paper.
    Gudbjartsson and Patz, "The Rician distribution of noisy MRI data", Magn. Reson. Med. 34 (1995).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import reduce
from typing import Any, Final

import numpy as np
import torch
from monai.data import MetaTensor
from numpy.typing import NDArray
from scipy import ndimage, sparse

from medgen.anatomy.labels import LABELS
from medgen.checks import MedgenError, check_choice, check_positive

__all__ = [
    "CONTRASTS",
    "PRIORS",
    "ContrastParameters",
    "ContrastRanges",
    "draw_contrast",
    "render_contrast",
    "synthesize_contrast",
]

Array = NDArray[Any]
Range = tuple[float, float]

_FWHM = 2.3548200450309493  # full width at half maximum of a Gaussian over its standard deviation
_OUTSIDE: Final = frozenset({"skull", "soft_tissue", "scalp"})

PRIORS: Final[Mapping[str, Mapping[str, tuple[float, float]]]] = {
    "t1": {
        "csf": (0.42, 0.13), "ventricle": (0.36, 0.06), "cortex": (0.80, 0.04), "white_matter": (1.00, 0.034),
        "thalamus": (0.87, 0.05), "caudate": (0.80, 0.04), "putamen": (0.86, 0.04), "pallidum": (0.92, 0.03),
        "medial_temporal": (0.77, 0.04), "cerebellum_cortex": (0.78, 0.04), "cerebellum_white_matter": (0.94, 0.037),
        "brain_stem": (0.88, 0.036), "lesion": (0.72, 0.08), "skull": (0.22, 0.13), "soft_tissue": (0.78, 0.35),
        "scalp": (0.95, 0.31),
    },
    "t2": {
        "csf": (3.1, 0.5), "ventricle": (3.5, 0.2), "cortex": (1.38, 0.12), "white_matter": (1.00, 0.06),
        "thalamus": (1.15, 0.07), "caudate": (1.30, 0.07), "putamen": (1.20, 0.07), "pallidum": (0.85, 0.06),
        "medial_temporal": (1.45, 0.10), "cerebellum_cortex": (1.35, 0.12), "cerebellum_white_matter": (1.05, 0.07),
        "brain_stem": (1.05, 0.08), "lesion": (1.85, 0.30), "skull": (0.35, 0.25), "soft_tissue": (0.95, 0.45),
        "scalp": (2.0, 0.7),
    },
    "flair": {
        "csf": (0.38, 0.12), "ventricle": (0.25, 0.06), "cortex": (1.16, 0.07), "white_matter": (1.00, 0.05),
        "thalamus": (1.08, 0.06), "caudate": (1.15, 0.06), "putamen": (1.10, 0.06), "pallidum": (0.90, 0.06),
        "medial_temporal": (1.25, 0.08), "cerebellum_cortex": (1.10, 0.07), "cerebellum_white_matter": (1.00, 0.06),
        "brain_stem": (1.00, 0.07), "lesion": (1.40, 0.13), "skull": (0.15, 0.09), "soft_tissue": (0.45, 0.20),
        "scalp": (0.50, 0.22),
    },
}  # fmt: skip
"""Contrast -> tissue -> mean and standard deviation over the mean of white matter.

T1: medians and inner deviations in the Colin27 scan. Grey matter, CSF and lesions of T2 and FLAIR: two patients of
open_ms (Lesjak et al., CC BY), tissue classes by Otsu's thresholds on their T1; the rest was judged by eye on its raw
scans (FLAIR with fat suppression)."""

CONTRASTS: Final = ("random", *PRIORS)
"""Names in ``ContrastRanges.contrasts``: ``random`` draws every mean freely, the others stay near ``PRIORS``."""


@dataclass(frozen=True)
class ContrastRanges:
    """What a contrast is drawn from; every pair is (low, high) of a uniform distribution.

    Attributes:
        contrasts: name in ``CONTRASTS`` -> weight; need not add up to 1.
        share_tissues: whether the labels of one tissue (so left and right too) get the same mean and deviation; with
            False only left and right share. Ids outside ``medgen.anatomy.labels`` always have their own.
        mean: of a label, contrast ``random``, in 0..1.
        std: of a label, contrast ``random``.
        background_probability: how often the background is above 0, contrast ``random``.
        background: its mean then.
        prior_mean_jitter: standard deviation of the relative change of a prior's mean.
        prior_std_factor: what a prior's deviation is multiplied by.
        coarse_share: share of the texture's variance with long correlation, inside the brain and for unknown ids.
        coarse_share_outside: the same for skull, soft tissue and scalp.
        fine_mm: standard deviation of the smoothing kernel of the fine texture.
        coarse_mm: of the coarse one.
        partial_volume: standard deviation of the partial-volume kernel, in voxels.
        bias_std: standard deviation of the bias field's logarithm.
        bias_order: smallest and largest number of half waves across an axis.
        gamma_std: standard deviation of the logarithm of gamma.
        isotropic_probability: how often the resolution is the same along all axes (else one slice axis is coarser).
        isotropic_mm: spacing then. A spacing below the label's own changes nothing.
        in_plane_mm: spacing within the slices.
        slice_spacing_mm: between slice centres.
        slice_thickness: slice thickness over slice spacing.
        noise_std: of the noise at the acquired resolution, over the image's 0..1.
        rician_probability: how often the noise is Rician (else Gaussian).
        masked_probability: how often the background (id 0) is set to 0 at the end.
    """

    contrasts: Mapping[str, float] = field(default_factory=lambda: {"random": 0.4, "t1": 0.2, "t2": 0.2, "flair": 0.2})
    share_tissues: bool = True
    mean: Range = (0.05, 1.0)
    std: Range = (0.01, 0.08)
    background_probability: float = 0.2
    background: Range = (0.0, 0.15)
    prior_mean_jitter: float = 0.05
    prior_std_factor: Range = (0.7, 1.3)
    coarse_share: Range = (0.2, 0.5)
    coarse_share_outside: Range = (0.5, 0.8)
    fine_mm: Range = (0.5, 0.9)
    coarse_mm: Range = (2.0, 4.0)
    partial_volume: Range = (0.3, 0.6)
    bias_std: Range = (0.0, 0.2)
    bias_order: tuple[int, int] = (2, 4)
    gamma_std: float = 0.2
    isotropic_probability: float = 0.5
    isotropic_mm: Range = (0.8, 2.0)
    in_plane_mm: Range = (0.6, 1.5)
    slice_spacing_mm: Range = (2.0, 6.5)
    slice_thickness: Range = (0.6, 1.0)
    noise_std: Range = (0.003, 0.035)
    rician_probability: float = 0.7
    masked_probability: float = 0.2

    def __post_init__(self) -> None:
        for name in self.contrasts:
            check_choice("ContrastRanges", "contrasts", name, CONTRASTS)
        if min(self.contrasts.values(), default=0) < 0 or sum(self.contrasts.values()) <= 0:
            raise MedgenError(
                f"ContrastRanges: contrasts must have weights of at least 0 and a sum above 0. Got {self.contrasts}."
            )
        for name, value in vars(self).items():
            if isinstance(value, tuple) and not 0 <= value[0] <= value[1]:
                raise MedgenError(f"ContrastRanges: {name} must be (low, high) with 0 <= low <= high. Got {value}.")
            if name.endswith("_probability") and not 0 <= value <= 1:
                raise MedgenError(f"ContrastRanges: {name} must lie in 0..1. Got {value}.")


@dataclass(frozen=True)
class ContrastParameters:
    """Everything that :func:`render_contrast` needs: plain values, so that they can be stored beside the image.

    Attributes:
        contrast: name in ``CONTRASTS``.
        ids: label ids, ascending; the next three follow their order.
        means: of each id.
        stds: of each id.
        coarse_shares: share of the coarse texture in each id's variance.
        fine_mm: see :class:`ContrastRanges`.
        coarse_mm: see :class:`ContrastRanges`.
        texture_seed: of texture and noise.
        partial_volume: in voxels.
        bias: coefficients of the log bias field's cosines, nested by axis (their scale does not matter).
        bias_std: standard deviation of the field they make.
        gamma: exponent.
        spacing_mm: acquired, for each axis.
        thickness_mm: full width at half maximum of the profile, for each axis.
        noise_std: see :class:`ContrastRanges`.
        rician: Rician noise, else Gaussian.
        masked: background set to 0 at the end.
    """

    contrast: str
    ids: tuple[int, ...]
    means: tuple[float, ...]
    stds: tuple[float, ...]
    coarse_shares: tuple[float, ...]
    fine_mm: float
    coarse_mm: float
    texture_seed: int
    partial_volume: float
    bias: Any
    bias_std: float
    gamma: float
    spacing_mm: tuple[float, ...]
    thickness_mm: tuple[float, ...]
    noise_std: float
    rician: bool
    masked: bool

    def to_dict(self) -> dict[str, Any]:
        """Plain types, for provenance."""
        return asdict(self)


def synthesize_contrast(
    label: torch.Tensor,
    seed: int,
    spacing_mm: Sequence[float] | None = None,
    ranges: ContrastRanges = ContrastRanges(),
) -> torch.Tensor:
    """An image of random contrast for a label map.

    Args:
        label: any whole ids, shape ``(1, X, Y)`` or ``(1, X, Y, Z)``.
        seed: same seed, same bytes.
        spacing_mm: voxel size in voxel axis order; by default that of the affine (1 mm for a plain tensor).
        ranges: what is drawn from.

    Returns:
        float32 in 0..1, the shape of ``label``, on its device; a MetaTensor with its affine if ``label`` is one.

    Raises:
        MedgenError: a label of another shape, with values that are not whole, or a spacing not above 0.

    Example:
        >>> label = torch.zeros(1, 16, 16, dtype=torch.int16)
        >>> label[:, 4:12, 4:12] = 2
        >>> image = synthesize_contrast(label, seed=1)
        >>> image.shape, bool(torch.equal(image, synthesize_contrast(label, seed=1)))
        (torch.Size([1, 16, 16]), True)
    """
    ids = _present(_array(label))
    parameters = draw_contrast(np.random.default_rng(seed), ids, ranges, spatial_dims=label.ndim - 1)
    return render_contrast(label, parameters, spacing_mm)


def draw_contrast(
    generator: np.random.Generator, ids: Iterable[int], ranges: ContrastRanges, spatial_dims: int = 3
) -> ContrastParameters:
    """Draws the parameters of one image; all randomness but the noise (whose seed it draws) is here.

    Args:
        generator: its state is advanced.
        ids: the label ids of the map.
        ranges: what is drawn from.
        spatial_dims: 2 or 3.
    """

    def uniform(pair: Sequence[float]) -> float:
        return float(generator.uniform(pair[0], pair[1]))

    def chance(probability: float) -> bool:
        return bool(generator.uniform() < probability)

    names = sorted(ranges.contrasts)
    weights = np.array([ranges.contrasts[name] for name in names], dtype=np.float64)
    contrast = str(generator.choice(names, p=weights / weights.sum()))
    known = tuple(sorted({int(i) for i in ids}))
    means, stds, coarse = _draw_mixture(generator, known, contrast, ranges)
    order = int(generator.integers(ranges.bias_order[0], ranges.bias_order[1] + 1)) + 1
    spacing, thickness = _draw_resolution(generator, ranges, spatial_dims)
    return ContrastParameters(
        contrast=contrast,
        ids=known,
        means=means,
        stds=stds,
        coarse_shares=coarse,
        fine_mm=uniform(ranges.fine_mm),
        coarse_mm=uniform(ranges.coarse_mm),
        texture_seed=int(generator.integers(2**63)),
        partial_volume=uniform(ranges.partial_volume),
        bias=_draw_bias(generator, order, spatial_dims).tolist(),
        bias_std=uniform(ranges.bias_std),
        gamma=float(np.exp(ranges.gamma_std * generator.standard_normal())),
        spacing_mm=spacing,
        thickness_mm=thickness,
        noise_std=uniform(ranges.noise_std),
        rician=chance(ranges.rician_probability),
        masked=chance(ranges.masked_probability),
    )


def render_contrast(
    label: torch.Tensor, parameters: ContrastParameters, spacing_mm: Sequence[float] | None = None
) -> torch.Tensor:
    """The image that ``parameters`` give a label map; nothing is drawn but the noise of their seed.

    Args:
        label: ids of ``parameters``, shape ``(1, *spatial)``.
        parameters: see :class:`ContrastParameters`.
        spacing_mm: see :func:`synthesize_contrast`.

    Returns:
        As :func:`synthesize_contrast`.

    Raises:
        MedgenError: an id that ``parameters`` do not hold, another number of axes, or a bad label or spacing.
    """
    ids = _array(label)
    if ids.ndim != len(parameters.spacing_mm):
        raise MedgenError(
            f"render_contrast: label must have {len(parameters.spacing_mm)} spatial axes, as the parameters. "
            f"Got {ids.ndim}. Draw with spatial_dims={ids.ndim}."
        )
    spacing = _spacing(label, spacing_mm)
    rng = np.random.default_rng(parameters.texture_seed)
    image = _mixture(ids, parameters, spacing, rng)
    image = ndimage.gaussian_filter(image, parameters.partial_volume, mode="nearest")
    image *= np.exp(_bias_field(ids.shape, parameters))
    image = _unit_range(image) ** np.float32(parameters.gamma)
    image = _acquire(image, parameters, spacing, rng)
    if parameters.masked:
        image[ids == 0] = 0
    return _like(label, _unit_range(image))


def _draw_mixture(
    generator: np.random.Generator, ids: tuple[int, ...], contrast: str, ranges: ContrastRanges
) -> tuple[tuple[float, ...], tuple[float, ...], tuple[float, ...]]:
    """Means, deviations and coarse shares for each id; ids of one group share one draw."""
    drawn: dict[Any, tuple[float, float, float]] = {}
    for label in ids:
        key = _group(label, ranges.share_tissues)
        if key not in drawn:
            drawn[key] = _draw_gaussian(generator, label, contrast, ranges)
    rows = [drawn[_group(label, ranges.share_tissues)] for label in ids]
    return tuple(r[0] for r in rows), tuple(r[1] for r in rows), tuple(r[2] for r in rows)


def _draw_gaussian(
    generator: np.random.Generator, label: int, contrast: str, ranges: ContrastRanges
) -> tuple[float, float, float]:
    tissue = LABELS[label].tissue if label in LABELS else ""
    coarse = generator.uniform(*(ranges.coarse_share_outside if tissue in _OUTSIDE else ranges.coarse_share))
    free, place, factor = generator.uniform(), generator.uniform(), generator.uniform()
    jitter = generator.standard_normal()
    if label == 0:
        above = contrast == "random" and free < ranges.background_probability
        return (_between(ranges.background, place) if above else 0.0), 0.0, float(coarse)
    prior = PRIORS.get(contrast, {}).get(tissue)
    if prior is None:
        return _between(ranges.mean, place), _between(ranges.std, factor), float(coarse)
    mean = prior[0] * max(0.0, 1 + ranges.prior_mean_jitter * jitter)
    return float(mean), prior[1] * _between(ranges.prior_std_factor, factor), float(coarse)


def _between(pair: Range, place: float) -> float:
    return float(pair[0] + place * (pair[1] - pair[0]))


def _group(label: int, share_tissues: bool) -> Any:
    """What ids must have in common to share a Gaussian."""
    info = LABELS.get(label)
    if info is None:
        return label
    return info.tissue if share_tissues else info.name.replace("Left-", "").replace("Right-", "")


def _draw_bias(generator: np.random.Generator, order: int, spatial_dims: int) -> Array:
    """Coefficients of cosines with up to ``order - 1`` half waves, falling with their frequency."""
    frequency = sum(np.square(part) for part in np.indices((order,) * spatial_dims))
    coefficients = generator.standard_normal((order,) * spatial_dims) / (1 + frequency)
    coefficients.flat[0] = 0.0
    return coefficients


def _draw_resolution(
    generator: np.random.Generator, ranges: ContrastRanges, spatial_dims: int
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Spacing and thickness in mm along each axis."""
    isotropic = generator.uniform() < ranges.isotropic_probability
    same, plane = generator.uniform(*ranges.isotropic_mm), generator.uniform(*ranges.in_plane_mm)
    between, share = generator.uniform(*ranges.slice_spacing_mm), generator.uniform(*ranges.slice_thickness)
    axis = int(generator.integers(spatial_dims))
    spacing = np.full(spatial_dims, same if isotropic else plane)
    thickness = spacing.copy()
    if not isotropic:
        spacing[axis], thickness[axis] = between, between * share
    return tuple(map(float, spacing)), tuple(map(float, thickness))


def _mixture(ids: Array, parameters: ContrastParameters, spacing: Array, rng: np.random.Generator) -> Array:
    """Step 1: the mean of each voxel's label plus its texture, float32."""
    index = _index(ids, parameters.ids)
    share = np.asarray(parameters.coarse_shares, dtype=np.float32)
    stds = np.asarray(parameters.stds, dtype=np.float32)
    image = np.asarray(parameters.means, dtype=np.float32)[index]
    image += (stds * np.sqrt(1 - share))[index] * _texture(ids.shape, parameters.fine_mm / spacing, rng)
    image += (stds * np.sqrt(share))[index] * _texture(ids.shape, parameters.coarse_mm / spacing, rng)
    return np.maximum(image, 0)


def _texture(shape: tuple[int, ...], sigma: Array, rng: np.random.Generator) -> Array:
    """Gaussian noise of unit variance, smoothed by ``sigma`` voxels along each axis."""
    noise = rng.standard_normal(shape, dtype=np.float32)
    for axis, width in enumerate(sigma):
        if width > 0.2:
            kernel = ndimage.gaussian_filter1d(np.eye(1, 8 * int(width + 1) + 1, 4 * int(width + 1))[0], width)
            noise = ndimage.gaussian_filter1d(noise, width, axis=axis, mode="wrap")
            noise *= np.float32(1 / np.sqrt((kernel**2).sum()))
    return noise


def _index(ids: Array, known: tuple[int, ...]) -> Array:
    """Position of every voxel's id in ``known``."""
    table = np.asarray(known, dtype=np.int64)
    index = np.searchsorted(table, ids).clip(0, len(table) - 1).astype(np.int32)
    if not np.array_equal(table[index], ids):
        missing = sorted(set(_present(ids)) - set(known))
        raise MedgenError(f"render_contrast: the parameters do not hold the ids {missing}. Draw them with these ids.")
    return index


def _bias_field(shape: tuple[int, ...], parameters: ContrastParameters) -> Array:
    """The logarithm of step 3: a sum of cosines with the drawn standard deviation, float32."""
    field = np.asarray(parameters.bias, dtype=np.float64)
    for axis, n in enumerate(shape):
        order = field.shape[axis]
        basis = np.cos(np.pi * np.outer((np.arange(n) + 0.5) / n, np.arange(order)))
        columns = (
            np.expand_dims(field.take(k, axis), axis) * _along(basis[:, k], axis, field.ndim) for k in range(order)
        )
        field = reduce(np.add, columns).astype(np.float32 if axis == len(shape) - 1 else np.float64)
    return np.asarray(field * np.float32(parameters.bias_std / max(float(field.std()), 1e-9)))


def _along(vector: Array, axis: int, ndim: int) -> Array:
    return vector.reshape([-1 if i == axis else 1 for i in range(ndim)])


def _acquire(image: Array, parameters: ContrastParameters, spacing: Array, rng: np.random.Generator) -> Array:
    """Step 5: blur, sample, add noise, and back to the grid."""
    back = []
    for axis, (old, new, thick) in enumerate(zip(spacing, parameters.spacing_mm, parameters.thickness_mm, strict=True)):
        if new > old * 1.05 and image.shape[axis] > 1:
            down, up = _sampling(image.shape[axis], new / old, thick / old)
            image = _apply(down, image, axis)
            back.append((up, axis))
    image = _noisy(image, parameters, rng)
    return reduce(lambda volume, step: _apply(step[0], volume, step[1]), back, image)


def _sampling(n: int, step: float, thickness: float) -> tuple[sparse.csr_array, sparse.csr_array]:
    """Matrices ``(m, n)`` and ``(n, m)``: samples by slice profile, and linear interpolation back.

    Args:
        n: voxels.
        step: sample spacing, in voxels.
        thickness: full width at half maximum of the profile in the image, in voxels; a voxel's own width is taken off.
    """
    m = max(2, round(n / step))
    at = (n - 1) / 2 + (np.arange(m) - (m - 1) / 2) * step
    sigma = max(0.35, np.sqrt(max(0.0, thickness**2 - 1)) / _FWHM)
    distance = np.abs(np.arange(n)[None] - at.clip(0, n - 1)[:, None])
    weights = np.exp(-0.5 * (distance / sigma) ** 2) * (distance <= 3.5 * sigma + 1)
    down = weights / weights.sum(1, keepdims=True)
    place = ((np.arange(n) - at[0]) / step).clip(0, m - 1)
    up = np.maximum(0, 1 - np.abs(place[:, None] - np.arange(m)[None]))
    return sparse.csr_array(down.astype(np.float32)), sparse.csr_array(up.astype(np.float32))


def _apply(matrix: sparse.csr_array, image: Array, axis: int) -> Array:
    """``matrix`` along one axis. Sparse products run on one thread: the same bytes everywhere."""
    moved = np.moveaxis(image, axis, 0)
    result = matrix @ np.ascontiguousarray(moved).reshape(moved.shape[0], -1)
    return np.moveaxis(result.reshape(matrix.shape[0], *moved.shape[1:]), 0, axis)


def _noisy(image: Array, parameters: ContrastParameters, rng: np.random.Generator) -> Array:
    """Rician: the magnitude of a complex signal with Gaussian noise in both parts; or Gaussian."""
    scale = np.float32(parameters.noise_std)
    real = image + scale * rng.standard_normal(image.shape, dtype=np.float32)
    if not parameters.rician:
        return real
    return np.asarray(np.hypot(real, scale * rng.standard_normal(image.shape, dtype=np.float32)))


def _unit_range(image: Array) -> Array:
    """0 and the 99.9th percentile of what is above 0 become 0 and 1; values are clipped there."""
    positive = image[image > 0]
    top = float(np.percentile(positive, 99.9)) if positive.size else 1.0
    return np.asarray(np.clip(image / np.float32(max(top, 1e-6)), 0, 1), dtype=np.float32)


def _present(ids: Array) -> tuple[int, ...]:
    """The ids of a map, ascending."""
    low, high = int(ids.min()), int(ids.max())
    if high - low < 1 << 20:
        return tuple(int(i) + low for i in np.flatnonzero(np.bincount((ids - low).ravel())))
    return tuple(int(i) for i in np.unique(ids))


def _array(label: torch.Tensor) -> Array:
    """The ids as int64 ``(*spatial)``."""
    if label.ndim not in (3, 4) or label.shape[0] != 1 or label.numel() == 0:
        raise MedgenError(
            f"synthesize_contrast: label must have shape (1, X, Y) or (1, X, Y, Z). Got {tuple(label.shape)}. "
            "Turn one-hot channels into ids with AsDiscrete(argmax=True)."
        )
    array = (label.as_tensor() if isinstance(label, MetaTensor) else label).detach().cpu().numpy()[0]
    ids = array.astype(np.int64)
    if array.dtype.kind == "f" and not np.array_equal(ids, array):
        raise MedgenError(
            "synthesize_contrast: label must hold whole ids. Got fractions. Resample labels with mode='nearest'."
        )
    return np.asarray(ids)


def _spacing(label: torch.Tensor, spacing_mm: Sequence[float] | None) -> Array:
    """mm along each voxel axis."""
    dims = label.ndim - 1
    if spacing_mm is None:
        if not isinstance(label, MetaTensor):
            return np.ones(dims)
        return np.asarray(np.linalg.norm(label.affine.double().cpu().numpy()[:dims, :dims], axis=0))
    for value in spacing_mm:
        check_positive("synthesize_contrast", "spacing_mm", value)
    if len(spacing_mm) != dims:
        raise MedgenError(f"synthesize_contrast: spacing_mm must have {dims} entries. Got {list(spacing_mm)}.")
    return np.asarray(spacing_mm, dtype=np.float64)


def _like(label: torch.Tensor, image: Array) -> torch.Tensor:
    """``image`` with the channel, device and affine of ``label``."""
    plain = torch.from_numpy(np.ascontiguousarray(image))[None].to(label.device)
    return MetaTensor(plain, affine=label.affine.clone()) if isinstance(label, MetaTensor) else plain
