"""Fill a hole in a real scan of any spacing, orientation and size; nothing outside the hole changes."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from monai.data import MetaTensor
from numpy.typing import NDArray
from torch import Tensor

from medgen.checks import MedgenError, check_choice, check_positive
from medgen.continuation import kriged, membrane
from medgen.diffusion.randomness import derive_seed
from medgen.geometry import ModelGrid, same_grid, spacing_of
from medgen.intensity import IntensityWindow
from medgen.models.codec import CORRELATION_MM

if TYPE_CHECKING:
    from medgen.models.codec import Given
    from medgen.models.generative import GenerativeModel

MODES = ("mean", "sample")
MARGIN_MM = 32.0
BLEND_MM = 6.0
MEAN_DRAWS = 4


@dataclass(frozen=True)
class InpaintReport:
    """What was done.

    Attributes:
        fraction: share of the volume's voxels that were regenerated.
        voxels: how many.
        clipped: voxels whose new value did not fit the file's stored type.
        output: the written file.
    """

    fraction: float
    voxels: int
    clipped: int
    output: Path


def inpaint(
    volume: MetaTensor,
    inpaint_mask: MetaTensor,
    model: str | os.PathLike[str] | GenerativeModel = "brain-t1-inpaint",
    mode: str = "mean",
    samples: int = 1,
    seed: int = 0,
    *,
    device: str = "auto",
    callback: Callable[[int, int], None] | None = None,
) -> MetaTensor:
    """Fill the hole of one scan.

    The surroundings of the hole go to the model's grid, where the hole is regenerated, and what the model adds to
    their continuation comes back to the scan's own grid (see :class:`medgen.models.codec.Given`). What the model leaves of a step at the hole's edge is taken out by a correction that fades
    within ``BLEND_MM`` (a screened Poisson equation; Perez et al. 2003, "Poisson image editing", gives the unscreened
    one).

    Args:
        volume: ``(1, X, Y, Z)`` on any grid, RAS+ affine in mm, any intensity unit.
        inpaint_mask: ``(1, X, Y, Z)`` on the same grid, 1 = regenerate, 0 = keep.
        model: name or folder of a model of task ``inpaint``, or a loaded one.
        mode: ``mean``: the expected image (smooth, the smallest error); ``sample``: a plausible one.
        samples: with ``sample``, the mean of so many.
        seed: of the first sample.
        device: where a model given by name runs.
        callback: called with (sample, step) after each step.

    Returns:
        The scan with new values inside the mask, ``(1, X, Y, Z)`` float32; outside they are the scan's own bits.
        ``meta["synthetic"]`` is True.

    Raises:
        MedgenError: another grid or shape, an empty mask, one that covers all, values that are not 0 or 1, a model
            of another task.
    """
    check_choice("inpaint", "mode", mode, MODES)
    check_positive("inpaint", "samples", samples)
    check_hole(volume, inpaint_mask)
    chosen = _loaded(model, device)
    hole = inpaint_mask.as_tensor() > 0.5
    grid = _window_around(volume, hole[0], chosen)
    known = (~hole).float()
    weight = grid.to_model(MetaTensor(known, affine=volume.affine)).as_tensor()
    total = grid.to_model(MetaTensor(torch.where(hole, 0.0, volume.as_tensor().float()), affine=volume.affine))
    near = weight > 1e-3
    scan = torch.where(near, total.as_tensor() / weight.clamp(min=1e-3), 0.0)
    hole_share = grid.to_model(MetaTensor(hole.float(), affine=volume.affine)).as_tensor()
    coarse_hole = (hole_share > 0).float()
    window = IntensityWindow.of(scan[(coarse_hole == 0) & near])
    given = chosen.codec.given_hole(window.forward(scan)[None], coarse_hole[None])
    filled = _generate(chosen, given, mode, samples, seed, callback)
    learnt = (filled - given.center)[0]
    scan_array = volume.as_tensor()[0].double().numpy()
    spacing = spacing_of(np.asarray(volume.affine, dtype=np.float64)).tolist()
    if chosen.spec.reference == "continuation":  # on the scan's own grid it is finer than on the model's
        learnt = learnt * coarse_hole
        start = kriged(scan_array, hole[0].numpy(), spacing, CORRELATION_MM)
    else:
        start = np.full_like(scan_array, window.low)
    scaled = MetaTensor(learnt.cpu() * (window.high - window.low), affine=torch.from_numpy(grid.affine))
    fill = start + grid.from_model(scaled, mode="linear").as_tensor()[0].double().numpy()
    values = blended(scan_array, fill, hole[0].numpy(), spacing)
    result = torch.where(hole, torch.from_numpy(values)[None].float(), volume.as_tensor().float())
    kept = {key: value for key, value in volume.meta.items() if key != "affine"}
    meta = kept | {
        "synthetic": True,
        "provenance": chosen.provenance(seed, chosen.settings()) | {"mode": mode, "samples": samples},
    }
    return MetaTensor(result, affine=volume.affine, meta=meta)


def inpaint_file(
    image: str | os.PathLike[str],
    inpaint_mask: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    model: str | os.PathLike[str] | GenerativeModel = "brain-t1-inpaint",
    mode: str = "mean",
    samples: int = 1,
    seed: int = 0,
    overwrite: bool = False,
    device: str = "auto",
    callback: Callable[[int, int], None] | None = None,
) -> InpaintReport:
    """Fill the hole of a scan in a file; header, stored type and all voxels outside the hole stay bit for bit.

    Args:
        image: NIfTI file, one 3D volume.
        inpaint_mask: NIfTI file on the same grid, 1 = regenerate.
        output: NIfTI file to write.
        model, mode, samples, seed, device, callback: see :func:`inpaint`.
        overwrite: replace an existing output.

    Returns:
        What was done.

    Raises:
        MedgenError: see :func:`inpaint`; a file that is missing or unreadable, or an existing output.
    """
    from medgen.io.nifti import read_nifti, write_like

    target = Path(output)
    if not target.name.endswith((".nii", ".nii.gz")):
        raise MedgenError(f"output '{output}' must end in .nii or .nii.gz. Rename it.")
    if target.exists() and not overwrite:
        raise MedgenError(f"output '{output}' exists. Add --overwrite to replace it, or give another name.")
    volume = read_nifti(image, role="image")
    hole = read_nifti(inpaint_mask, role="inpaint_mask")
    result = inpaint(volume, hole, model, mode, samples, seed, device=device, callback=callback)
    clipped = write_like(target, image, result.as_tensor(), hole.as_tensor())
    count = int((hole.as_tensor() > 0.5).sum())
    return InpaintReport(count / hole[0].numel(), count, clipped, target)


def check_hole(volume: MetaTensor, inpaint_mask: MetaTensor) -> None:
    """Refuse a pair that cannot be inpainted.

    Raises:
        MedgenError: see :func:`inpaint`.
    """
    if volume.ndim != 4 or volume.shape[0] != 1:
        raise MedgenError(
            f"inpaint: volume must have shape (1, X, Y, Z). Got {tuple(volume.shape)}. Give one 3D volume."
        )
    if inpaint_mask.shape != volume.shape or not same_grid(volume, inpaint_mask):
        raise MedgenError(
            f"inpaint: inpaint_mask must lie on the image's grid. Got shape {tuple(inpaint_mask.shape[1:])} against "
            f"{tuple(volume.shape[1:])}, or another affine. Resample the mask to the image first."
        )
    values = torch.unique(inpaint_mask.as_tensor())
    if not bool(((values == 0) | (values == 1)).all()):
        raise MedgenError(
            f"inpaint: inpaint_mask must hold 0 (keep) and 1 (regenerate) only. Got {values[:5].tolist()}. Binarise it."
        )
    if not bool((values == 1).any()):
        raise MedgenError("inpaint: inpaint_mask is empty, there is nothing to fill. Mark the hole with 1.")
    if not bool((values == 0).any()):
        raise MedgenError("inpaint: inpaint_mask covers the whole volume, nothing real is left. Mark a smaller hole.")


def blended(
    scan: NDArray[np.float64], fill: NDArray[np.float64], hole: NDArray[np.bool_], spacing: Sequence[float]
) -> NDArray[np.float64]:
    """``fill`` with a correction that joins it to the scan at the hole's edge and fades inwards.

    The correction ``u`` solves ``laplace(u) = u / BLEND_MM**2`` in the hole with ``u = scan - fill`` on the known
    voxels that touch it; spacing enters the Laplacian.

    Args:
        scan: ``(X, Y, Z)``.
        fill: the same shape.
        hole: the same shape.
        spacing: mm per axis.
    """
    correction = membrane(scan - fill, hole, spacing, BLEND_MM)
    return np.where(hole, fill + correction, scan)


def _loaded(model: str | os.PathLike[str] | GenerativeModel, device: str) -> GenerativeModel:
    from medgen.models.bundled import load_model
    from medgen.models.generative import GenerativeModel

    chosen = model if isinstance(model, GenerativeModel) else load_model(model, device)
    if chosen.spec.task != "inpaint":
        raise MedgenError(
            f"inpaint: model '{chosen.spec.name}' is of task '{chosen.spec.task}'. Give one of task 'inpaint'."
        )
    return chosen


def _window_around(volume: MetaTensor, hole: Tensor, model: GenerativeModel) -> ModelGrid:
    """The model's grid around the hole with a margin, at least the model's own size."""
    affine = np.asarray(volume.affine, dtype=np.float64)
    places = torch.nonzero(hole).double().numpy()
    low, high = places.min(0) - 0.5, places.max(0) + 0.5
    corners = np.array([[x, y, z] for x in (low[0], high[0]) for y in (low[1], high[1]) for z in (low[2], high[2])])
    world = corners @ affine[:3, :3].T + affine[:3, 3]
    extent = world.max(0) - world.min(0) + 2 * MARGIN_MM
    spacing = np.array(model.spec.grid.spacing)
    unit = model.multiple
    needed = np.ceil(extent / spacing / unit).astype(int) * unit
    size = np.maximum(needed, np.array(model.spec.grid.size))
    center = (world.max(0) + world.min(0)) / 2
    return ModelGrid.around(
        affine, tuple(volume.shape[1:]), spacing.tolist(), size=size.tolist(), center_mm=center.tolist()
    )


def _generate(
    model: GenerativeModel,
    given: Given,
    mode: str,
    samples: int,
    seed: int,
    callback: Callable[[int, int], None] | None,
) -> Tensor:
    """Image ``(1, 1, *size)`` in the model's 0..1: the mean, or the mean of samples."""
    if mode == "mean":
        return model.mean(given, [derive_seed(seed, "mean", i) for i in range(MEAN_DRAWS)])
    total = torch.zeros_like(given.center)
    for i in range(samples):
        step = (lambda k, i=i: callback(i, k)) if callback else None
        image, _ = model.diffuse(given, derive_seed(seed + i, "sample"), model.settings(), callback=step)
        total += image.cpu()
    return total / samples
