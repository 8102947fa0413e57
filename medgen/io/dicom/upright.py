"""Gantry tilt undone: a sheared volume on a grid whose slices stand at right angles to their normal."""

from __future__ import annotations

import math

import numpy as np
import torch
from monai.data import MetaTensor

from medgen.checks import MedgenError
from medgen.geometry import affine_fault

__all__ = ["resample_upright"]


def resample_upright(volume: MetaTensor, fill: float | None = None) -> MetaTensor:
    """Shifts the slices of a sheared volume in their planes so that its axes are at right angles, by interpolation.

    In-plane axes and spacing stay; the grid grows in-plane so that every voxel of the input lies in it. Slices stay
    where they are along the normal. Outside the input voxels are ``fill``.

    Args:
        volume: shape ``(C, X, Y, Z)``, slices along Z, affine RAS+ mm with X and Y at right angles.
        fill: value where there was none; by default the smallest of the volume.

    Returns:
        float32 ``(C, X', Y', Z)``; ``meta["resampled_upright"]`` holds the angle in degrees, the shift per slice in
        voxels, the interpolation and the fill. A volume that is not sheared (by less than 1e-3 of a voxel over all its
        slices) comes back as it is, without that entry.

    Raises:
        MedgenError: X and Y are not at right angles, or the affine cannot be inverted.
    """
    affine = volume.affine.detach().cpu().numpy().astype(np.float64)
    axes = affine[:3, :3]
    spacing = np.linalg.norm(axes, axis=0)
    if affine_fault(affine):
        raise MedgenError("resample_upright: the affine of volume must be finite and invertible. Mend it first.")
    unit = axes / spacing
    if abs(unit[:, 0] @ unit[:, 1]) > 1e-2:
        raise MedgenError("resample_upright: the first two axes of volume must be at right angles. Reorder them.")
    shift = np.array([axes[:, 2] @ unit[:, axis] / spacing[axis] for axis in (0, 1)])
    count = volume.shape[-1]
    if np.abs(shift).max() * (count - 1) < 1e-3:
        return volume
    value = float(volume.min()) if fill is None else float(fill)
    places = shift[:, None] * np.arange(count)
    low = np.floor(places.min(axis=1) + 1e-9).astype(int)
    high = np.ceil(places.max(axis=1) - 1e-9).astype(int)
    size = (volume.shape[1] + high[0] - low[0], volume.shape[2] + high[1] - low[1])
    out = torch.full((volume.shape[0], *size, count), value, dtype=torch.float32)
    plain = volume.as_tensor().detach().cpu().to(torch.float32)
    for index in range(count):
        out[..., index] = _shifted(plain[..., index], places[:, index] - low, size, value)
    upright = affine.copy()
    upright[:3, 2] -= axes[:, 0] * shift[0] + axes[:, 1] * shift[1]
    upright[:3, 3] += axes[:, 0] * low[0] + axes[:, 1] * low[1]
    angle = math.degrees(math.atan2(float(np.linalg.norm(shift * spacing[:2])), float(np.linalg.norm(upright[:3, 2]))))
    meta = dict(volume.meta)
    meta.pop("affine", None)
    meta["resampled_upright"] = {
        "angle_degrees": angle,
        "shift_per_slice_voxels": shift.tolist(),
        "interpolation": "linear",
        "fill": value,
    }
    return MetaTensor(out, affine=torch.from_numpy(upright), meta=meta)


def _shifted(plane: torch.Tensor, shift: np.ndarray, size: tuple[int, int], fill: float) -> torch.Tensor:
    """A plane ``(C, X, Y)`` moved by ``shift >= 0`` voxels into ``size``, ``fill`` around it."""
    for axis in (0, 1):
        whole = math.floor(shift[axis] + 1e-9)
        part = max(0.0, float(shift[axis]) - whole)
        length = plane.shape[axis + 1]
        grown_shape = list(plane.shape)
        grown_shape[axis + 1] = size[axis]
        grown = torch.full(grown_shape, fill, dtype=plane.dtype)
        grown.narrow(axis + 1, whole, length).copy_(plane)
        if part > 1e-9:
            later = torch.full(grown_shape, fill, dtype=plane.dtype)
            later.narrow(axis + 1, whole + 1, length).copy_(plane)
            grown = grown * (1 - part) + later * part
        plane = grown
    return plane
