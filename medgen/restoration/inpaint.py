"""Fill a hole in a real scan of any spacing, orientation and size; nothing outside the hole changes."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from monai.data import MetaTensor
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from medgen.checks import MedgenError, check_choice, check_count
from medgen.continuation import kriged, membrane
from medgen.diffusion.randomness import derive_seed
from medgen.geometry import ModelGrid, same_grid, spacing_of
from medgen.intensity import IntensityWindow
from medgen.io.findings import Refused

if TYPE_CHECKING:
    from medgen.models.base import Model
    from medgen.models.codec import Given
    from medgen.models.diffusion_model import DiffusionModel
    from medgen.models.specification import Grid

__all__ = [
    "InpaintReport",
    "Surroundings",
    "blended",
    "check_hole",
    "grid_around",
    "inpaint",
    "inpaint_file",
    "surroundings",
]

MODES = ("mean", "sample")
MARGIN_MM = 32.0
BLEND_MM = 6.0
MEAN_DRAWS = 4
_SHARE = 1e-3  # of a voxel on the model's grid: less is rounding of the resampling


@dataclass(frozen=True)
class InpaintReport:
    """What was done.

    Attributes:
        fraction: share of the volume's voxels that were regenerated.
        voxels: how many.
        clipped: voxels whose new value did not fit the file's stored type.
        output: the written file or folder.
        record: the JSON file beside it, which says that and how it was made.
        findings: what reading a DICOM series found out, each a code and a sentence.
    """

    fraction: float
    voxels: int
    clipped: int
    output: Path
    record: Path
    findings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Surroundings:
    """What a model is told: a scan around its hole on the model's grid.

    Attributes:
        scan: ``(1, *size)`` float32, the model's 0..1 (at most 1.5); what lies in the hole means nothing.
        hole: ``(1, *size)`` float32, 1 = regenerate.
        window: from the scan's intensities to the model's.
    """

    scan: Tensor
    hole: Tensor
    window: IntensityWindow


def inpaint(
    volume: MetaTensor,
    inpaint_mask: MetaTensor,
    model: str | os.PathLike[str] | Model[Any] = "brain-t1-inpaint",
    mode: str = "mean",
    samples: int = 1,
    seed: int = 0,
    *,
    device: str = "auto",
    callback: Callable[[int, int], None] | None = None,
) -> MetaTensor:
    """Fill the hole of one scan.

    The surroundings of the hole go to the model's grid, where the hole is regenerated, and what the model adds to
    their continuation comes back to the scan's own grid (see :class:`medgen.models.codec.Given`). What the model leaves
    of a step at the hole's edge is taken out by a correction that fades within ``BLEND_MM``, see :func:`blended`.

    Args:
        volume: ``(1, X, Y, Z)`` on any grid and device, RAS+ affine in mm, any intensity unit.
        inpaint_mask: ``(1, X, Y, Z)`` on the same grid, any device, 1 = regenerate, 0 = keep.
        model: name or folder of a model of task ``inpaint``, or a loaded one.
        mode: ``mean``: the expected image (smooth, the smallest error); ``sample``: a plausible one.
        samples: with ``sample``, the mean of so many; with ``mean``, 1.
        seed: of the first sample.
        device: where a model given by name runs.
        callback: with ``sample``, called with (sample, step) after each step; ``mean`` takes no steps.

    Returns:
        The scan with new values inside the mask, ``(1, X, Y, Z)`` float32 on the device of ``volume``; outside they are
        the scan's own bits. ``meta["synthetic"]`` is True, ``meta["provenance"]`` says how it was made.

    Raises:
        MedgenError: another grid or shape, an empty mask, one that covers all, values that are not 0 or 1, known
            intensities that are not finite, a model of another task, or several samples of a mean.
    """
    _check_arguments(mode, samples)
    home, volume, inpaint_mask = volume.device, volume.cpu(), inpaint_mask.cpu()
    check_hole(volume, inpaint_mask)
    chosen = _loaded(model, device)
    hole = inpaint_mask.as_tensor() > 0.5
    grid = grid_around(volume, hole[0], chosen.spec.grid, chosen.multiple)
    told = surroundings(volume, hole, grid)
    given = chosen.codec.given_hole(told.scan[None], told.hole[None])
    learnt = (_generate(chosen, given, mode, samples, seed, callback).cpu() - given.center)[0]
    fill = _on_scan_grid(learnt, volume, hole, grid, told, chosen)
    spacing = spacing_of(np.asarray(volume.affine, dtype=np.float64)).tolist()
    values = blended(volume.as_tensor()[0].double().numpy(), fill, hole[0].numpy(), spacing)
    result = torch.where(hole, torch.from_numpy(values)[None].float(), volume.as_tensor().float())
    kept = {key: value for key, value in volume.meta.items() if key != "affine"}
    meta = kept | {
        "synthetic": True,
        "provenance": chosen.provenance(seed, chosen.settings()) | {"mode": mode, "samples": samples},
    }
    return MetaTensor(result.to(home), affine=volume.affine, meta=meta)


def inpaint_file(
    image: str | os.PathLike[str],
    inpaint_mask: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    model: str | os.PathLike[str] | Model[Any] = "brain-t1-inpaint",
    mode: str = "mean",
    samples: int = 1,
    seed: int = 0,
    picture: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    device: str = "auto",
    callback: Callable[[int, int], None] | None = None,
) -> InpaintReport:
    """Fill the hole of a scan in files; all voxels outside the hole keep their stored value bit for bit.

    A NIfTI scan keeps header and stored type too; one more header extension marks it as synthetic. A DICOM series comes
    out as a derived series of the same study, or as NIfTI. Beside ``filled.nii.gz`` (or the folder ``filled``) stands
    ``filled.json``: ``"synthetic": true``, model, seed, settings and versions, the SHA-256 of what came in, and how
    much was regenerated; no path and no clock time.
    All files are written, or none.

    Args:
        image: NIfTI file, one 3D volume; or a folder with one DICOM series.
        inpaint_mask: NIfTI file on the same grid, 0 = keep, else regenerate; or a DICOM segmentation.
        output: NIfTI file to write, or, for a DICOM series, a folder.
        model: see :func:`inpaint`, as are ``mode``, ``samples``, ``seed``, ``device`` and ``callback``.
        mode: see :func:`inpaint`.
        samples: see :func:`inpaint`.
        seed: see :func:`inpaint`.
        picture: PNG file of scan, hole and result to draw too.
        overwrite: replace existing outputs.
        device: see :func:`inpaint`.
        callback: see :func:`inpaint`.

    Returns:
        What was done.

    Raises:
        MedgenError: see :func:`inpaint`; a file that is missing or unreadable, or an output that exists or cannot be
            written.
        OSError: the disk is full, or the like; the outputs stay as they were.
    """
    from medgen.io.atomic import atomic_path, write_json
    from medgen.io.contact_sheet import inpaint_sheet
    from medgen.restoration.scans import outputs, read_hole, read_scan

    _check_arguments(mode, samples)
    files = outputs(output, picture, overwrite, image, inpaint_mask)
    scan = read_scan(image)
    hole, hole_sha256 = read_hole(inpaint_mask, scan)
    result = inpaint(scan.volume, hole, model, mode, samples, seed, device=device, callback=callback)
    count = int((hole.as_tensor() > 0.5).sum())
    regenerated = {"fraction": count / hole[0].numel(), "voxels": count}
    provenance = result.meta["provenance"] | {
        "synthetic": True,
        "regenerated": regenerated,
        "inputs": {"image_sha256": scan.sha256, "inpaint_mask_sha256": hole_sha256},
    }
    with ExitStack() as until_all_are_written:
        record_file = until_all_are_written.enter_context(atomic_path(files.record))
        write_json(record_file, provenance)
        if files.drawing is not None:
            drawing_file = until_all_are_written.enter_context(atomic_path(files.drawing))
            inpaint_sheet(scan.volume, hole, result, drawing_file)
        if files.is_series:
            clipped = scan.write_series(files.target, result, hole, provenance, overwrite)
        else:
            target_file = until_all_are_written.enter_context(atomic_path(files.target))
            clipped = scan.write_nifti(target_file, result.as_tensor(), hole.as_tensor())
    codes = tuple(dict.fromkeys(f"{finding.code}: {finding.text}" for finding in scan.findings))
    return InpaintReport(regenerated["fraction"], count, clipped, files.target, files.record, codes)


def check_hole(volume: MetaTensor, inpaint_mask: MetaTensor) -> None:
    """Refuse a pair that cannot be inpainted.

    Args:
        volume: see :func:`inpaint`.
        inpaint_mask: see :func:`inpaint`.

    Raises:
        Refused: ``GRIDS_DIFFER``, ``BAD_MASK`` or ``NON_FINITE``, see :func:`inpaint`.
        MedgenError: ``volume`` is no 3D volume.
    """
    if volume.ndim != 4 or volume.shape[0] != 1:
        raise MedgenError(
            f"inpaint: volume must have shape (1, X, Y, Z). Got {tuple(volume.shape)}. Give one 3D volume."
        )
    if inpaint_mask.shape != volume.shape or not same_grid(volume, inpaint_mask):
        raise Refused(
            "GRIDS_DIFFER",
            f"inpaint: inpaint_mask must lie on the image's grid. Got {_grid_text(inpaint_mask)}; the image has "
            f"{_grid_text(volume)}. Resample the mask to the image first.",
        )
    values = torch.unique(inpaint_mask.as_tensor())
    if not bool(((values == 0) | (values == 1)).all()):
        raise Refused(
            "BAD_MASK",
            f"inpaint: inpaint_mask must hold 0 (keep) and 1 (regenerate) only. Got {values[:5].tolist()}. Binarise "
            "it.",
        )
    if not bool((values == 1).any()):
        raise Refused("BAD_MASK", "inpaint: inpaint_mask is empty, there is nothing to fill. Mark the hole with 1.")
    if not bool((values == 0).any()):
        text = "inpaint: inpaint_mask covers the whole volume, nothing real is left. Mark a smaller hole."
        raise Refused("BAD_MASK", text)
    count = int((~torch.isfinite(volume.as_tensor()[inpaint_mask.as_tensor() == 0])).sum())
    if count:
        raise Refused(
            "NON_FINITE",
            f"inpaint: volume must be finite outside the hole. Got {count} voxels that are NaN or infinite. Mark them "
            "as hole too, or replace them first.",
        )


def _grid_text(volume: MetaTensor) -> str:
    affine = np.asarray(volume.affine.cpu(), dtype=np.float64)
    shape = "x".join(str(int(n)) for n in volume.shape[1:])
    rows = "; ".join(" ".join(f"{value + 0.0:.6g}" for value in row) for row in affine[:3])
    return f"{shape} voxels, affine [{rows}]"


def surroundings(volume: MetaTensor, hole: Tensor, grid: ModelGrid) -> Surroundings:
    """A scan around its hole, on the model's grid and in the model's intensities.

    A voxel of the model's grid that the hole reaches is of the hole; one that the scan does not reach has the nearest
    known value, so that a hole at the scan's face is not continued from what is not there.

    Args:
        volume: ``(1, X, Y, Z)``, any unit; what lies in the hole is not looked at.
        hole: ``(1, X, Y, Z)`` bool.
        grid: the model's, laid over the volume's.

    Raises:
        MedgenError: the hole leaves no known voxel on the model's grid.
    """

    def brought(values: Tensor) -> Tensor:
        made: Tensor = grid.to_model(MetaTensor(values, affine=volume.affine)).as_tensor()
        return made

    share_known, share_hole = brought((~hole).float()), brought(hole.float())
    coarse_hole = share_hole > _SHARE
    known = (share_known > _SHARE) & ~coarse_hole
    scan = brought(torch.where(hole, 0.0, volume.as_tensor().float())) / share_known.clamp(min=_SHARE)
    window = IntensityWindow.of(scan[known])
    unreached = ~known & ~coarse_hole
    if bool(unreached.any()):
        apart = ~known[0].numpy(), spacing_of(grid.affine).tolist()
        nearest = ndimage.distance_transform_edt(*apart, return_distances=False, return_indices=True)
        scan = torch.where(unreached, scan[0][tuple(torch.from_numpy(nearest).long())][None], scan)
    return Surroundings(window.forward(scan), coarse_hole.float(), window)


def blended(
    scan: NDArray[np.float64], fill: NDArray[np.float64], hole: NDArray[np.bool_], spacing: Sequence[float]
) -> NDArray[np.float64]:
    """``fill`` with a correction that joins it to the scan at the hole's edge and fades inwards.

    The correction ``u`` solves ``laplace(u) = u / BLEND_MM**2`` in the hole with ``u = scan - fill`` on the known
    voxels that touch it; spacing enters the Laplacian.

    Args:
        scan: ``(X, Y, Z)``, any unit.
        fill: the same shape and unit.
        hole: the same shape, True = filled.
        spacing: mm per voxel axis.

    Returns:
        ``(X, Y, Z)``, the unit of ``scan``: the corrected ``fill`` in the hole, ``scan`` elsewhere.

    References:
        Perez et al. 2003, Poisson image editing, equation 4: the same without the screening ``u / BLEND_MM**2``.
    """
    correction = membrane(scan - fill, hole, spacing, BLEND_MM)
    return np.where(hole, fill + correction, scan)


def _check_arguments(mode: str, samples: int) -> None:
    check_choice("inpaint", "mode", mode, MODES)
    check_count("inpaint", "samples", samples)
    if mode == "mean" and samples != 1:
        raise MedgenError(
            f"inpaint: samples must be 1 with mode 'mean', which draws none. Got {samples}. Use mode 'sample' "
            "(--mode sample) for the mean of several samples."
        )


def _loaded(model: str | os.PathLike[str] | Model[Any], device: str) -> DiffusionModel:
    from medgen.models.base import Model
    from medgen.models.bundled import load_model
    from medgen.models.diffusion_model import DiffusionModel

    chosen = model if isinstance(model, Model) else load_model(model, device)
    if chosen.spec.task != "inpaint" or not isinstance(chosen, DiffusionModel):
        raise MedgenError(
            f"inpaint: model '{chosen.spec.name}' is of task '{chosen.spec.task}'. Give one of task 'inpaint'."
        )
    return chosen


def grid_around(volume: MetaTensor, hole: Tensor, own: Grid, multiple: int) -> ModelGrid:
    """A model's grid around a hole with a margin, at least the model's own size.

    Args:
        volume: the scan, ``(1, X, Y, Z)``.
        hole: ``(X, Y, Z)``, not 0 where it is to be filled.
        own: spacing and size of the model's grid.
        multiple: what every axis must be a multiple of.
    """
    affine = np.asarray(volume.affine, dtype=np.float64)
    places = torch.nonzero(hole).double().numpy()
    low, high = places.min(0) - 0.5, places.max(0) + 0.5
    corners = np.array([[x, y, z] for x in (low[0], high[0]) for y in (low[1], high[1]) for z in (low[2], high[2])])
    world = corners @ affine[:3, :3].T + affine[:3, 3]
    extent = world.max(0) - world.min(0) + 2 * MARGIN_MM
    spacing = np.array(own.spacing)
    needed = np.ceil(extent / spacing / multiple).astype(int) * multiple
    size = np.maximum(needed, np.array(own.size))
    center = (world.max(0) + world.min(0)) / 2
    return ModelGrid.around(
        affine, tuple(volume.shape[1:]), spacing.tolist(), size=size.tolist(), center_mm=center.tolist()
    )


def _on_scan_grid(
    learnt: Tensor, volume: MetaTensor, hole: Tensor, grid: ModelGrid, told: Surroundings, model: DiffusionModel
) -> NDArray[np.float64]:
    """``(X, Y, Z)`` in the scan's unit: what the model starts from, and what it adds.

    Args:
        learnt: ``(1, *size)`` in the model's 0..1: the generated image less what it was diffused around.
        volume: the scan.
        hole: ``(1, X, Y, Z)`` bool.
        grid: the model's.
        told: what the model was told.
        model: names what it starts from.
    """
    scan = volume.as_tensor()[0].double().numpy()
    if model.spec.reference == "continuation":  # on the scan's own grid it is finer than on the model's
        spacing = spacing_of(np.asarray(volume.affine, dtype=np.float64)).tolist()
        start, learnt = kriged(scan, hole[0].numpy(), spacing, model.spec.correlation_mm), learnt * told.hole
    else:
        start = np.full_like(scan, told.window.low)
    added = grid.with_window(told.window).difference_from_model(learnt).as_tensor()[0].double().numpy()
    return np.asarray(start + added)


def _generate(
    model: DiffusionModel,
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
        total += image.cpu() if image is not None else 0
    return total / samples
