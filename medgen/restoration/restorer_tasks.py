"""What restorers do with a scan, task by task: from the scan in the model's unit to the restored one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from monai.data import MetaTensor
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from torch import Tensor

from medgen.continuation import CONTINUATION_MM, kriged
from medgen.geometry import ModelGrid, spacing_of
from medgen.intensity import bright_end
from medgen.io.findings import Refused
from medgen.operators.noise_level import estimate_noise
from medgen.operators.through_plane import ThroughPlane
from medgen.restoration.consistency import denoised_check, slices_check
from medgen.restoration.given_back import given_back
from medgen.restoration.hole_interval import PLACES, factor_on_the_scan
from medgen.restoration.inpaint import blended, grid_around
from medgen.restoration.thick_slices import fine_affine, thick_axis

if TYPE_CHECKING:
    from medgen.models.restorer import RestorerModel

__all__ = [
    "RESTORER_TASKS", "Made", "Progress", "Scan", "beyond", "consistent", "noise_of", "shown", "slices_of",
]  # fmt: skip

Progress = Callable[[int, int], None]
BEYOND = 1.25  # a strength so far outside of that of training is remarked on
MARGIN = 8
SLIGHT = 1e-6
PROJECTIONS = 300
CLOSE = 2e-3  # of the brightest slice voxel
SMOOTH_MM = 12.0
LEAST_WEIGHT = 1e-3
AIR = 0.1  # of the bright end
OVER = 1.2  # of the brightest slice voxel
NO_PLACE = (
    "the hole is small, or has no equal place in the scan: its interval was not measured there, it is the model's, "
    "from other heads."
)
SLICED = 1.2  # voxels so many times as long as wide lie in slices


@dataclass(frozen=True)
class Scan:
    """A scan in the model's unit: ``unit * scale + low`` is the scan's.

    Attributes:
        values: ``(1, X, Y, Z)`` float32.
        affine: RAS+ mm, 4x4.
        scale: of the unit.
        low: of the unit.
    """

    values: Tensor
    affine: np.ndarray
    scale: float
    low: float

    @property
    def spacing(self) -> tuple[float, ...]:
        """mm along each voxel axis."""
        return tuple(float(step) for step in spacing_of(self.affine))


@dataclass(frozen=True)
class Made:
    """What a task made, in the model's unit.

    ``samples``: ``(K, X, Y, Z)``, where some were drawn. ``interval_factor``: see
    :class:`~medgen.models.restorer_spec.RestorerSpec`, found on this scan; None: that of the model.
    """

    mean: Tensor
    std: Tensor | None
    affine: np.ndarray
    figures: dict[str, float] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)
    samples: Tensor | None = None
    interval_factor: float | None = None


def noise_of(scan: Scan, options: dict[str, Any]) -> tuple[float, dict[str, float]]:
    """Deviation of the noise in the model's unit, asked for or estimated; and over the bright end, for the record."""
    top = bright_end(scan.values * scan.scale + scan.low) / scan.scale  # 1, but for HU
    asked = options["noise_level"]
    level = estimate_noise(scan.values) if asked is None else float(asked) * top
    return level, {"noise_level": level / top if asked is None else float(asked)}


def _run(
    model: RestorerModel, scan: Scan, values: Tensor, strength: float, callback: Progress | None
) -> tuple[Tensor, Tensor | None]:
    """The whole volume, or for a 2D restorer one slice after the other.

    Slices lie across the coarsest axis; of voxels that are as long as wide, across the one that is nearest to the
    body's.
    """
    if model.spec.spatial_dims == 3:
        return model.restored(values, strength, callback=callback)
    coarse = max(scan.spacing) > SLICED * min(scan.spacing)
    axis = int(np.argmax(scan.spacing if coarse else np.abs(scan.affine[2, :3])))
    made = []
    for k, one in enumerate(values.unbind(1 + axis)):
        made.append(model.restored(one, strength))
        if callback is not None:
            callback(k + 1, values.shape[1 + axis])
    mean = torch.stack([image for image, _ in made], dim=1 + axis)
    errors = [std for _, std in made if std is not None]
    return mean, torch.stack(errors, dim=1 + axis) if errors else None


def _denoised(
    model: RestorerModel, scan: Scan, hole: Tensor | None, options: dict[str, Any], callback: Progress | None
) -> Made:
    level, settings = noise_of(scan, options)
    box = shown(scan.values)
    mean, std = scan.values.clone(), torch.zeros_like(scan.values)
    mean[box], found = _run(model, scan, scan.values[box], level, callback)
    if found is not None:
        std[box] = found
    if model.spec.learns_from == "pairs":  # one that saw noisy scans alone has no expectation against lesions
        magnitude = scan.low == 0 and float(scan.values.min()) >= 0
        mean[box], came = given_back(scan.values[box], mean[box], level, scan.spacing, magnitude=magnitude)
        std[box] = (std[box].square() + came.square()).sqrt()
    figures, doubts = denoised_check(scan.values[box], mean[box], level)
    remarks = (*beyond(model, "noise level", level), *doubts)
    return Made(mean, None if found is None else std, scan.affine, settings | figures, remarks, dict(settings))


def slices_of(scan: Scan, options: dict[str, Any]) -> ThroughPlane:
    """What measures the thick slices of a scan from thin ones."""
    axis = thick_axis(scan.spacing, options["target_spacing"])
    others = [step for a, step in enumerate(scan.spacing) if a != axis]
    target = float(options["target_spacing"] or sum(others) / 2)
    apart, count = scan.spacing[axis], scan.values.shape[1 + axis]
    size = list(scan.values.shape[1:])
    size[axis] = max(1, round(count * apart / target))
    return ThroughPlane(size, apart, spacing_mm=target, axis=axis, profile=options["slice_profile"], slices=count)


def _thinned(
    model: RestorerModel, scan: Scan, hole: Tensor | None, options: dict[str, Any], callback: Progress | None
) -> Made:
    slices = slices_of(scan, options)
    axis, apart, target = slices.axis, slices.slice_spacing_mm, slices.spacing_mm
    measured = scan.values[None]
    start = slices.to_image(measured)[0].movedim(1 + axis, -1)
    ratio = apart / target
    mean, std = model.restored(start, ratio, callback=callback)
    mean = mean.movedim(-1, 1 + axis)[None]
    checked, doubts = slices_check(measured, mean, slices)
    fitted = consistent(mean, measured, slices)
    residual = float((measured - slices.forward(fitted)).abs().max())
    figures = {"slice_spacing_mm": apart, "target_spacing_mm": target, "residual": residual} | checked
    settings = {"target_spacing": target, "slice_profile": slices.profile}
    affine = fine_affine(scan.affine, axis, slices.slices, slices.size[axis], target)
    std = None if std is None else std.movedim(-1, 1 + axis)
    remarks = (*beyond(model, "slice spacing over target", ratio), *doubts, *_outside(fitted, measured, scan))
    return Made(fitted[0], std, affine, figures, remarks, settings)


def _outside(fitted: Tensor, measured: Tensor, scan: Scan) -> tuple[str, ...]:
    """A remark where thin slices are much brighter than the thick ones, or negative where those are not."""
    low, high = float(measured.min()), float(measured.max())
    least, most = float(fitted.min()), float(fitted.max())
    if most <= OVER * high and (low < 0 or least >= -(OVER - 1) * high):
        return ()
    ends = [end * scan.scale + scan.low for end in (least, most, low, high)]
    return (
        f"thin slices reach from {ends[0]:.4g} to {ends[1]:.4g}, the thick ones from {ends[2]:.4g} to {ends[3]:.4g}: a "
        "few voxels beside sharp edges are too dark or too bright, so that their means are right.",
    )


def consistent(mean: Tensor, measured: Tensor, slices: ThroughPlane) -> Tensor:
    """The volume near ``mean`` whose slices are those measured, not negative if they are not and it can be had.

    Projections onto both sets in turn (Bregman 1965; "projections onto convex sets"), for each line across the slices
    until they are within ``CLOSE`` of what was measured. Noise can make a line that no magnitude has: there the
    measurement comes first, and some values are a little negative.

    Args:
        mean: ``(1, 1, *size)``.
        measured: ``(1, 1, *thick)``.
        slices: what measures.
    """
    axis = 2 + slices.axis
    matrix = slices.matrices[slices.axis].float()
    inverse = torch.linalg.pinv(matrix.double()).float()
    lines, wanted = mean.movedim(axis, -1), measured.movedim(axis, -1)
    shape = lines.shape
    lines, wanted = lines.reshape(-1, shape[-1]), wanted.reshape(-1, wanted.shape[-1])
    lines = lines + (wanted - lines @ matrix.T) @ inverse.T
    if float(measured.min()) >= 0:
        lines = lines.clamp(min=0)
        close = CLOSE * float(wanted.max())
        open_ = torch.arange(len(lines))
        for _ in range(PROJECTIONS):
            residual = wanted[open_] - lines[open_] @ matrix.T
            still = residual.abs().amax(1) > close
            open_ = open_[still]
            if not len(open_):
                break
            lines[open_] = (lines[open_] + residual[still] @ inverse.T).clamp(min=0)
        lines[open_] += (wanted[open_] - lines[open_] @ matrix.T) @ inverse.T
    return lines.reshape(shape).movedim(-1, axis)


def _filled(
    model: RestorerModel, scan: Scan, hole: Tensor | None, options: dict[str, Any], callback: Progress | None
) -> Made:
    if hole is None:
        raise Refused("NO_MASK", f"restore: model '{model.spec.name}' fills holes. Give inpaint_mask (--mask FILE).")
    marked = hole[0].numpy()
    values = scan.values[0].double().numpy()
    of_model = model.spec.interval_factor if options["interval"] else None
    fills, done = 1 + (0 if of_model is None else PLACES), 0

    def report(window: int, windows: int) -> None:
        if callback is not None:
            callback(done * windows + window, fills * windows)

    made, std = _fill(model, scan, values, marked, report)
    factor = None
    if std is not None and of_model is not None:

        def fill(image: NDArray[np.float64], moved: NDArray[np.bool_]) -> tuple[NDArray[np.float64], Any]:
            nonlocal done
            done += 1
            return _fill(model, scan, image, moved, report)

        factor = factor_on_the_scan(made, marked, made > AIR, fill, of_model)
        if callback is not None:
            callback(fills, fills)  # there may be fewer places
    figures = {"regenerated_share": float(hole.float().mean())}
    if factor is not None:
        figures["interval_factor"] = factor
    error = None if std is None else torch.from_numpy(std)[None].float()
    doubts = (NO_PLACE,) if of_model is not None and factor is None else ()
    return Made(torch.from_numpy(made)[None].float(), error, scan.affine, figures, doubts, interval_factor=factor)


def _fill(
    model: RestorerModel,
    scan: Scan,
    values: NDArray[np.float64],
    marked: NDArray[np.bool_],
    callback: Progress | None,
) -> tuple[NDArray[np.float64], NDArray[np.float64] | None]:
    """Values ``(X, Y, Z)`` on the scan's grid with a hole filled, and the expected error there."""
    affine, hole = torch.from_numpy(scan.affine), torch.from_numpy(marked)[None]
    start = torch.from_numpy(kriged(values, marked, scan.spacing, CONTINUATION_MM))[None].float()
    volume = MetaTensor(start, affine=affine)
    grid = grid_around(volume, hole[0], model.spec.grid, model.multiple)
    coarse = grid.to_model(volume).as_tensor()
    inside = (grid.to_model(MetaTensor(hole.float(), affine=affine)).as_tensor() > SLIGHT).float()
    found, std = model.restored(coarse, 0.0, inside, callback)
    made = (start + grid.from_model((found - coarse) * inside).as_tensor())[0].double().numpy()
    made = blended(values, made, marked, scan.spacing)
    if std is None:
        return made, None
    finer = start - grid.from_model(coarse).as_tensor()  # the error is of what is finer than the model's grid, too
    beside = grid.covered()[None] & ~hole & (start > AIR)
    error = (grid.from_model(std).as_tensor().square() + finer[beside].square().mean().nan_to_num()).sqrt() * hole
    return made, error[0].double().numpy()


def _corrected(
    model: RestorerModel, scan: Scan, hole: Tensor | None, options: dict[str, Any], callback: Progress | None
) -> Made:
    mean, std = _run(model, scan, scan.values, 0.0, callback)
    return Made(mean, std, scan.affine)


def _unbiased(
    model: RestorerModel, scan: Scan, hole: Tensor | None, options: dict[str, Any], callback: Progress | None
) -> Made:
    """Times a smooth field: at the model's spacing, the one that leads best from the scan to the restored one."""
    grid = ModelGrid.around(scan.affine, tuple(scan.values.shape[1:]), model.spec.grid.spacing, multiple=1)
    coarse = grid.to_model(MetaTensor(scan.values, affine=torch.from_numpy(scan.affine))).as_tensor()
    mean, _ = model.restored(coarse, 0.0, callback=callback)
    width = [SMOOTH_MM / step for step in model.spec.grid.spacing]
    above, below = (gaussian_filter(part.numpy()[0], width) for part in (mean.clamp(min=0) * coarse, coarse.square()))
    least = LEAST_WEIGHT * float(below.max())
    field = (above + least) / (below + least)  # 1 far from all tissue
    there = coarse[0].numpy() > AIR
    field = field / np.exp(np.log(field[there]).mean()) if there.any() else field
    fine = grid.from_model(torch.from_numpy(field)[None].float(), fill=1.0).as_tensor()
    fine = torch.where(grid.covered()[None], fine, 1.0)
    figures = {"field_least": float(fine.min()), "field_most": float(fine.max())}
    return Made(scan.values * fine, None, scan.affine, figures)


RESTORER_TASKS: dict[str, Callable[..., Made]] = {
    "denoise": _denoised,
    "superres": _thinned,
    "inpaint": _filled,
    "motion": _corrected,
    "bias": _unbiased,
}


def shown(values: Tensor) -> tuple[slice, ...]:
    """The box around what is not 0, with a margin: the rest of an extracted brain is 0 and stays so."""
    places = torch.nonzero(values[0].abs() > SLIGHT)
    if not len(places):
        return (slice(None),) * values.ndim
    low, high = (places.amin(0) - MARGIN).clamp(min=0).tolist(), (places.amax(0) + 1 + MARGIN).tolist()
    return (slice(None), *(slice(a, b) for a, b in zip(low, high, strict=True)))


def beyond(model: RestorerModel, what: str, strength: float) -> tuple[str, ...]:
    """A remark where a strength is far from those of training."""
    low, high = model.spec.strength
    if low / BEYOND <= strength <= high * BEYOND:
        return ()
    return (
        f"the {what} is {strength:.3g}, model '{model.spec.name}' was trained on {low:.3g} to {high:.3g}: it is not "
        "known how it does there.",
    )
