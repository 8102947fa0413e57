"""Whether a regression's answer explains what was measured: figures for every scan, a remark where it does not."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from medgen.operators import Mask, ThroughPlane
from medgen.operators.noise_level import estimate_noise
from medgen.restoration.posterior import Measurement
from medgen.restoration.residual import check_residual

__all__ = ["Said", "denoised_check", "measured_check", "slices_check"]

Said = tuple[dict[str, float], tuple[str, ...]]
"""Figures, and remarks of one sentence each."""

SIGNAL = 3.0  # over the noise: below it Rician noise has a mean
TOLERANCE = 0.25
"""Of the residual over the noise: its level is an estimate. With 5% and 10% Rician noise the ratio is 0.70 to 0.92."""
FITTED = 0.1  # the same, where the noise is known and an image was fitted by a finite number of iterations
STRUCTURE = 12
"""Voxels that must hang together. Denoised crops of three contrasts at 5% and 10% noise have 10 at most where nothing
is missing; a sphere of 4 mm at 20% contrast that is taken away leaves 45 at 5% noise, one of 6 mm 116 at 10%."""
TISSUE = 0.1  # of the bright end


def denoised_check(noisy: Tensor, restored: Tensor, noise_std: float) -> Said:
    """Whether more than noise was taken away.

    Looked at where the restored image is above ``SIGNAL`` times the noise.

    Args:
        noisy: ``(1, *spatial)``, any unit.
        restored: the same shape and unit.
        noise_std: deviation of the noise, the same unit.

    Returns:
        ``residual_ratio``: root mean square of what was taken away over the noise; ``removed_voxels``: in structures
        of ``STRUCTURE`` voxels or more where the smoothed residual is no noise.
    """
    dark = restored[0] <= SIGNAL * noise_std
    if noise_std <= 0 or bool(dark.all()):
        return {}, ()
    measurement = Measurement(Mask(dark), torch.where(dark, 0.0, noisy)[None], noise_std)
    found = check_residual(measurement, restored[None], tolerance=TOLERANCE)
    structures = structures_of(found.places)
    figures = {"residual_ratio": found.ratio, "removed_voxels": float(structures.sum())}
    if not len(structures) and found.ratio <= 1 + TOLERANCE:
        return figures, ()
    return figures, (
        f"more than noise was taken away: the residual is {found.ratio:.2f} times the noise, and is no noise in "
        f"{len(structures)} places of {int(structures.sum())} voxels. Compare with the scan before relying on detail.",
    )


def structures_of(places: Tensor) -> NDArray[np.int64]:
    """Voxels of each structure of ``STRUCTURE`` voxels or more.

    Args:
        places: ``(1, *spatial)``, True where a residual is no noise.
    """
    parts, _ = ndimage.label(places[0].cpu().numpy())
    sizes = np.bincount(parts.ravel())[1:]
    return sizes[sizes >= STRUCTURE]


def measured_check(measurement: Measurement, image: Tensor) -> Said:
    """Whether an image that was not drawn at random contradicts what an operator measured.

    Args:
        measurement: of one volume, with noise.
        image: ``(1, 1, *size)``, in the unit of the measurement.

    Returns:
        ``residual_ratio``: root mean square of the residual over the noise; a remark where it is more than
        ``FITTED`` too large, or no noise in structures of ``STRUCTURE`` voxels or more.
    """
    found = check_residual(measurement, image, tolerance=FITTED)
    structures = structures_of(found.places)
    figures = {"residual_ratio": found.ratio}
    if found.ratio <= 1 + FITTED and not len(structures):
        return figures, ()
    return figures, (
        f"the restored image contradicts the measurement: the residual is {found.ratio:.2f} times the noise, and is no "
        f"noise in {len(structures)} places of {int(structures.sum())} voxels. Do not rely on detail.",
    )


def slices_check(measured: Tensor, fine: Tensor, slices: ThroughPlane) -> Said:
    """Whether thin slices, before they are made consistent, give the thick ones less well than interpolation does.

    Args:
        measured: ``(1, 1, *thick)``, bright end 1.
        fine: ``(1, 1, *size)``.
        slices: what measures.

    Returns:
        ``residual_before``: root mean square over tissue, the bright end being 1; ``residual_interpolated``: that of
        linear interpolation.
    """
    tissue = measured > TISSUE
    if not bool(tissue.any()):
        return {}, ()
    found, plain = (
        float((measured - slices.forward(x))[tissue].square().mean().sqrt()) for x in (fine, slices.to_image(measured))
    )
    figures = {"residual_before": found, "residual_interpolated": plain}
    if found <= max(plain, estimate_noise(measured[0])):
        return figures, ()
    return figures, (
        f"before it was made consistent, the result contradicted the slices by {found:.3f} of the bright end, more "
        f"than interpolation does ({plain:.3f}). Do not rely on detail between slices.",
    )
