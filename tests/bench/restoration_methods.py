"""What the restorers are compared with, and the restorers under the same interface.

Arrays are ``(X, Y, Z)`` in the scan's unit. ``bm4d`` is optional (PyPI, for comparison only): without it its rows are
missing.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from numpy.typing import NDArray
from scipy import ndimage

from medgen.operators import RicianNoise, ThroughPlane
from medgen.restoration.restore import restore
from medgen.restoration.restored import Restored
from medgen.restoration.thick_slices import fine_affine
from tests.bench.restoration_people import Scan, as_meta, bounding_box

Array = NDArray[np.float32]
NLM_PATCH, NLM_DISTANCE, NLM_STRENGTH = 5, 6, 0.6  # the best of six settings on patient19
CROP = 6


def rician(clean: Array, sigma: float, seed: int) -> Array:
    """With Rician noise of a seed."""
    values = torch.from_numpy(np.ascontiguousarray(clean))[None]
    return RicianNoise(sigma).sample(values, [torch.Generator().manual_seed(seed)])[0].numpy()


def non_local_means(noisy: Array) -> Array:
    """scikit-image's, with the noise that it estimates itself."""
    from skimage.restoration import denoise_nl_means, estimate_sigma

    sigma = estimate_sigma(noisy)
    return denoise_nl_means(noisy, NLM_PATCH, NLM_DISTANCE, NLM_STRENGTH * sigma, fast_mode=True, sigma=sigma)


def has_bm4d() -> bool:
    """Whether it is installed."""
    return find_spec("bm4d") is not None


def bm4d(noisy: Array, sigma: float) -> Array:
    """Of PyPI, told the noise."""
    from bm4d import bm4d as filtered

    return np.asarray(filtered(noisy, sigma), np.float32)


def unbiased(mean: Array, sigma: float) -> Array:
    """The signal whose Rician mean is given; 0 below what no signal has."""
    signal = torch.linspace(0, 60, 6001, dtype=torch.float64)
    means = RicianNoise(1.0).mean(signal).numpy()
    inverted = np.interp(mean / sigma, means, signal.numpy())
    return np.where(mean / sigma > means[-1], mean, inverted * sigma).astype(np.float32)


def denoisers(noisy: Array, sigma: float) -> dict[str, Array]:
    """The filters, plain and with their Rician bias taken out by the true noise."""
    made = {"noisy": noisy, "nlm": non_local_means(noisy)}
    made["nlm, unbiased"] = unbiased(made["nlm"], sigma)
    if has_bm4d():
        made["bm4d"] = bm4d(noisy, sigma)
        made["bm4d, unbiased"] = unbiased(made["bm4d"], sigma)
    return made


def whole_slices(scan: Scan, axis: int, factor: int = 4) -> Scan:
    """The brain's surroundings, along one axis a whole number of thick slices."""
    box = list(bounding_box(scan.brain, margin=4))
    span = box[axis]
    box[axis] = slice(span.start, span.start + (span.stop - span.start) // factor * factor)
    return scan.cut(tuple(box))


def thick(scan: Scan, axis: int, slice_mm: float = 4.0) -> tuple[MetaTensor, ThroughPlane]:
    """Slices of Gaussian profile, as wide at half maximum as they are apart, and the operator that made them.

    Args:
        scan: of 1 mm along the axis.
        axis: across the slices.
        slice_mm: from slice to slice.
    """
    operator = ThroughPlane(scan.image.shape, slice_mm, axis=axis, profile="gaussian")
    measured = operator.forward(torch.from_numpy(np.ascontiguousarray(scan.image))[None, None])[0, 0].numpy()
    affine = fine_affine(scan.affine, axis, scan.image.shape[axis], operator.slices, slice_mm)
    return as_meta(measured, affine), operator


def interpolated(measured: Array, operator: ThroughPlane, order: int) -> Array:
    """Splines through the slices at the thin slices' places; order 1 linear, 3 cubic."""
    axis = operator.axis
    scale, offset = np.ones(3), np.zeros(3)
    scale[axis] = operator.spacing_mm / operator.slice_spacing_mm
    offset[axis] = -operator.positions_mm[0] / operator.slice_spacing_mm
    return ndimage.affine_transform(measured, scale, offset, operator.size, order=order, mode="nearest")


def surrounding_mean(image: Array, hole: NDArray[np.bool_], brain: NDArray[np.bool_]) -> Array:
    """Holes filled with the mean of the known brain within 5 voxels of them."""
    shell = ndimage.binary_dilation(hole, iterations=5) & ~hole & brain
    return np.where(hole, image[shell].mean(), image)


def biharmonic(image: Array, hole: NDArray[np.bool_]) -> Array:
    """``skimage.restoration.inpaint_biharmonic`` in 3D on a crop around each hole."""
    from skimage.restoration import inpaint_biharmonic

    filled = np.where(hole, 0, image).astype(np.float64)
    scale = float(filled.max())
    parts, count = ndimage.label(hole)
    for number in range(1, count + 1):
        box = bounding_box(parts == number, CROP)
        filled[box] = inpaint_biharmonic(filled[box] / scale, hole[box]) * scale
    return np.where(hole, filled, image).astype(np.float32)


def by_model(scan: Scan, model: Any, **options: Any) -> Restored:
    """A restorer on the image of a scan; blocks are smaller than the guard would let pass."""
    return restore(as_meta(scan.image, scan.affine), model.spec.restores, model, guard="off", **options)


def array_of(volume: MetaTensor) -> Array:
    """The only channel."""
    return volume.as_tensor().cpu().numpy()[0]
