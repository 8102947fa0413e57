"""Restoration without a model, for comparison and where there is none: what every scan can be given.

``denoise``: non-local means (Buades et al. 2005); ``bias``: N4 (Tustison et al. 2010); ``superres``: a cubic B-spline
through the slices; ``inpaint``: the smooth continuation of :func:`medgen.continuation.kriged`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from numpy.typing import NDArray

import medgen
from medgen.checks import MedgenError, check_choice
from medgen.geometry import spacing_of
from medgen.io.findings import Refused
from medgen.restoration.restored import Restored
from medgen.restoration.settings import CLASSICAL
from medgen.restoration.thick_slices import fine_affine, thick_axis

__all__ = ["restore_classical"]

Array = NDArray[np.float32]
_PATCH = {"patch_size": 5, "patch_distance": 3}
_STRENGTH = 0.6  # filter strength over the noise's deviation
_ROUNDING = 1e-6  # of the bright end: noise below it is that of single precision
_N4_MM = 4.0  # the bias field is found at about this voxel size
_N4_ITERATIONS = (50, 50, 50, 50)
_LEAST = 4  # voxels along an axis that N4's shrinking leaves


def restore_classical(
    volume: MetaTensor,
    task: str,
    *,
    inpaint_mask: MetaTensor | None = None,
    noise_level: float | None = None,
    target_spacing: float | None = None,
) -> Restored:
    """Restore a scan without a model. Nothing is drawn: the same scan gives the same result.

    Args:
        volume: ``(1, X, Y, Z)``, any intensity unit, finite; RAS+ affine in mm.
        task: ``denoise``, ``bias``, ``superres`` or ``inpaint``.
        inpaint_mask: ``(1, X, Y, Z)`` on the same grid, 1 = fill, 0 = keep; for ``inpaint``, and needed there.
        noise_level: deviation of the noise over the scan's 99.9th percentile, for ``denoise``; estimated by default.
        target_spacing: of the slices, mm, for ``superres``; by default that of the voxels in the slices.

    Returns:
        The restored scan; of ``inpaint``, equal to ``volume`` outside the mask. There is no expected error.

    Raises:
        MedgenError: a task without such a method, a missing mask, slices that are thin already, a volume that N4
            cannot correct.
    """
    check_choice("restore_classical", "task", task, CLASSICAL)
    if volume.ndim != 4 or volume.shape[0] != 1:
        raise MedgenError(
            f"restore_classical: volume must have shape (1, X, Y, Z). Got {tuple(volume.shape)}. Give one 3D volume."
        )
    values = volume.as_tensor().cpu().float().numpy()[0]
    affine = np.asarray(volume.affine.cpu(), dtype=np.float64)
    options = {"hole": inpaint_mask, "noise_level": noise_level, "target_spacing": target_spacing, "volume": volume}
    method, work = _WORK[task]
    made, affine, figures = work(values, affine, options)
    provenance = {
        "method": method,
        "restores": task,
        "settings": {key: round(value, 9) for key, value in figures.items()},
        "synthetic": task == "inpaint",
        "versions": _versions(task),
    }
    image = torch.from_numpy(np.ascontiguousarray(made, dtype=np.float32)[None])
    return Restored(
        MetaTensor(image, affine=torch.from_numpy(affine), meta={"provenance": provenance}),
        figures=figures,
        provenance=provenance,
    )


Made = tuple[NDArray[Any], NDArray[np.float64], dict[str, float]]


def _non_local_means(values: Array, affine: NDArray[np.float64], options: dict[str, Any]) -> Made:
    """Each voxel the mean of those with a like surrounding; the noise's deviation is scikit-image's own estimate."""
    from skimage.restoration import denoise_nl_means, estimate_sigma

    from medgen.intensity import bright_end

    top, level = bright_end(torch.from_numpy(values)), options["noise_level"]
    deviation = float(estimate_sigma(values) if level is None else level * top)
    if not deviation > _ROUNDING * top:  # nothing to remove
        return values, affine, {"noise_level": 0.0}
    made = denoise_nl_means(values, h=_STRENGTH * deviation, sigma=deviation, fast_mode=True, **_PATCH)
    return made, affine, {"noise_level": deviation / top}


def _n4(values: Array, affine: NDArray[np.float64], options: dict[str, Any]) -> Made:
    """The scan over its bias field, which is found at a coarse grid inside Otsu's mask, one thread."""
    import SimpleITK as sitk

    if values.min() == values.max() or values.max() <= 0:
        raise MedgenError("restore_classical: volume must hold several values, some above 0, for N4. Give an image.")
    spacing = spacing_of(affine)
    image = sitk.GetImageFromArray(np.ascontiguousarray(values.T))
    image.SetSpacing([float(step) for step in spacing])
    shrink = [
        max(1, min(round(_N4_MM / step), size // _LEAST)) for step, size in zip(spacing, values.shape, strict=True)
    ]
    small = sitk.Shrink(image, shrink)
    n4 = sitk.N4BiasFieldCorrectionImageFilter()
    n4.SetMaximumNumberOfIterations(list(_N4_ITERATIONS))
    try:
        with _one_thread():
            n4.Execute(small, sitk.OtsuThreshold(small, 0, 1, 200))
            field = np.exp(sitk.GetArrayFromImage(n4.GetLogBiasFieldAsImage(image)).T.astype(np.float64))
    except RuntimeError as error:
        raise MedgenError(
            f"restore_classical: N4 found no bias field in a volume of shape {values.shape}. It may be too small, or "
            "show too little tissue. Use another method."
        ) from error
    figures = {"field_min": float(field.min()), "field_max": float(field.max())}
    return values / field, affine, figures


@contextmanager
def _one_thread() -> Iterator[None]:
    """SimpleITK with one thread in the block: what N4 sums up depends on their number and order."""
    import SimpleITK as sitk

    before = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    try:
        yield
    finally:
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(before)


def _spline(values: Array, affine: NDArray[np.float64], options: dict[str, Any]) -> Made:
    """A cubic spline through the slices, within the scan's range, constant beyond the outermost slice centres."""
    from scipy.interpolate import make_interp_spline

    spacing, target = spacing_of(affine).tolist(), options["target_spacing"]
    axis = thick_axis(tuple(spacing), target)
    count, apart = values.shape[axis], spacing[axis]
    if target is None:
        target = (sum(spacing) - apart) / 2
    fine = max(1, round(count * apart / target))
    place = (np.arange(fine) - (fine - 1) / 2) * (target / apart) + (count - 1) / 2
    degree = 3 if count > 3 else 1
    weights = make_interp_spline(np.arange(count), np.eye(count), k=degree)(place.clip(0, count - 1))
    made = np.moveaxis(np.tensordot(weights.astype(np.float32), values, (1, axis)), 0, axis)
    figures = {"slice_spacing_mm": float(apart), "target_spacing_mm": float(target)}
    made = made.clip(values.min(), values.max())
    return made, fine_affine(affine, axis, count, fine, target), figures


def _continued(values: Array, affine: NDArray[np.float64], options: dict[str, Any]) -> Made:
    """The smoothest continuation: value and slope at the hole's edge given (the biharmonic equation)."""
    from medgen.continuation import kriged
    from medgen.restoration.inpaint import check_hole

    if options["hole"] is None:
        raise Refused("NO_MASK", "restore_classical: inpaint_mask is missing (--mask FILE): what is to be filled?")
    check_hole(options["volume"], options["hole"])
    hole = options["hole"].as_tensor().cpu().numpy()[0] > 0.5
    known = np.where(hole, 0.0, values).astype(np.float64)
    filled = kriged(known, hole, spacing_of(affine).tolist())
    made = np.where(hole, filled.astype(np.float32), values)
    return made, affine, {"regenerated_share": float(hole.mean())}


_WORK: dict[str, tuple[str, Callable[[Array, NDArray[np.float64], dict[str, Any]], Made]]] = {
    "denoise": ("non-local means", _non_local_means),
    "bias": ("N4", _n4),
    "superres": ("cubic B-spline", _spline),
    "inpaint": ("biharmonic continuation", _continued),
}
"""Name and function of the method of each task."""


def _versions(task: str) -> dict[str, str]:
    """Of medgen and of what does the work."""
    from importlib.metadata import version

    package = {"denoise": "scikit-image", "bias": "SimpleITK", "superres": "scipy", "inpaint": "scipy"}[task]
    return {"medgen": medgen.__version__, package: version(package)}
