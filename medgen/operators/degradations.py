"""Random degradations: operators with parameters drawn from ranges, and the way back to an image.

The names are those of operators and noise models. Every range is ``(low, high)``, drawn uniformly, or one number.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from medgen.checks import MedgenError, check_choice, nearest
from medgen.operators.bias import BiasField, draw_bias_field
from medgen.operators.blur import Blur
from medgen.operators.chain import Chain
from medgen.operators.drawing import Degradation, Draw, Limits, Range
from medgen.operators.gibbs import Gibbs
from medgen.operators.kspace import CartesianKSpace, cartesian_mask
from medgen.operators.mask import Mask
from medgen.operators.metal import MetalTrace
from medgen.operators.motion import draw_motion
from medgen.operators.noise import GaussianNoise, Noise, PoissonNoise, RicianNoise, TransmissionNoise
from medgen.operators.phase import Magnitude, Phase
from medgen.operators.projection import ParallelBeam, view_angles
from medgen.operators.radial import RadialKSpace
from medgen.operators.separable import Separable
from medgen.operators.slice_profiles import SLICE_PROFILES
from medgen.operators.through_plane import ThroughPlane

__all__ = ["DEGRADATIONS", "UNSIGNED", "check_degradations", "draw_degradation"]

_WATER = 0.0193
"""Attenuation of water at 70 keV, 1/mm (NIST XCOM)."""


def draw_degradation(
    name: str,
    size: Sequence[int],
    spacing: Sequence[float],
    scale: float,
    generator: torch.Generator,
    ranges: Mapping[str, Any] | None = None,
) -> Degradation:
    """A degradation with drawn parameters.

    Args:
        name: in ``DEGRADATIONS``.
        size: spatial shape of the image.
        spacing: voxel size in mm.
        scale: the image's bright end in its own unit; noise levels are relative to it.
        generator: CPU stream; it is advanced.
        ranges: replace the degradation's own.

    Raises:
        MedgenError: an unknown name or range.

    Example:
        >>> made = draw_degradation("blur", (8, 8), (1, 1), 1.0, torch.Generator().manual_seed(0), {"fwhm_mm": (2, 3)})
        >>> [2 <= width <= 3 for width in made.chain.operators[0].fwhm_mm]
        [True, True]
    """
    check_degradations("draw_degradation", {name: ranges or {}}, len(tuple(size)))
    draw = Draw(tuple(size), tuple(float(step) for step in spacing), scale, generator)
    made = DEGRADATIONS[name](draw, **(ranges or {}))
    return made if isinstance(made, Degradation) else Degradation(made)


def check_degradations(caller: str, degradations: Mapping[str, Mapping[str, Any]], dims: int = 3) -> None:
    """Raises unless all names and ranges are known and every range is a number or (low, high) within its limits.

    Args:
        caller: who is named in the error.
        degradations: name -> ranges.
        dims: of the image; 3 allows what suits any.

    Raises:
        MedgenError: naming the first fault.
    """
    for name, ranges in degradations.items():
        check_choice(caller, "degradations", name, DEGRADATIONS)
        known = list(inspect.signature(DEGRADATIONS[name]).parameters)[1:]
        for key, value in ranges.items():
            if key not in known:
                raise MedgenError(
                    f"{caller}: degradation '{name}' has no range '{key}', only {', '.join(known)}."
                    f"{nearest(key, known) or ' Choose one of these.'}"
                )
            if key == "axis":
                _check_axis(f"{caller}: {name}.axis", value, dims)
            elif key == "profiles":
                _check_profiles(f"{caller}: {name}.profiles", value)
            else:
                LIMITS[key].check(f"{caller}: {name}.{key}", value)


def _check_axis(who: str, axis: Any, dims: int) -> None:
    whole = isinstance(axis, int) and not isinstance(axis, bool)
    if axis is not None and not (whole and -dims <= axis < dims):
        raise MedgenError(
            f"{who} must be a whole number from {-dims} to {dims - 1}, or None. Got {axis!r}. Correct it."
        )


def _check_profiles(who: str, profiles: Any) -> None:
    names = profiles if isinstance(profiles, list | tuple) else ()
    if not names or any(name not in SLICE_PROFILES for name in names):
        raise MedgenError(f"{who} must be a list of {', '.join(SLICE_PROFILES)}. Got {profiles!r}. Correct it.")


def _noise(draw: Draw, level: Range, kind: type[GaussianNoise] | type[RicianNoise]) -> Noise | None:
    """Noise with a deviation of a share of the bright end, or None for none."""
    std = draw.uniform(level) * draw.scale
    return kind(std) if std > 0 else None


def _alone(draw: Draw, noise: Noise | None) -> Chain:
    """Noise on the image itself."""
    return Chain([Separable(draw.size, {})], noise)


def blur(draw: Draw, fwhm_mm: Range = (1.0, 3.0)) -> Chain:
    """Gaussian blur, drawn for each axis."""
    return Chain([Blur(draw.size, [draw.uniform(fwhm_mm) for _ in draw.size], draw.spacing)])


def through_plane(
    draw: Draw,
    slice_spacing_mm: Range = (2.0, 6.0),
    thickness: Range = (0.7, 1.0),
    axis: int | None = None,
    profiles: Sequence[str] = tuple(SLICE_PROFILES),
) -> Chain:
    """Thick slices along an axis (drawn, if None), and linear interpolation back; thickness is over slice spacing."""
    along = draw.axis(axis)
    step = draw.spacing[along]
    apart = max(draw.uniform(slice_spacing_mm), step)
    thick, profile = apart * draw.uniform(thickness), draw.choice(profiles)
    return Chain([ThroughPlane(draw.size, apart, thick, step, along, profile)])


def gibbs(draw: Draw, keep: Range = (0.5, 0.9)) -> Chain:
    """Truncated k-space, drawn for each axis."""
    return Chain([Gibbs(draw.size, [draw.uniform(keep) for _ in draw.size])])


def bias_field(draw: Draw, strength: Range = (0.05, 0.3), order: Range = (1, 4)) -> Chain:
    """A smooth factor with a deviation (of its logarithm) of ``strength``."""
    field: BiasField = draw_bias_field(draw.size, draw.generator, draw.uniform(strength), draw.integer(order))
    return Chain([field])


def mask(draw: Draw, radius_mm: Range = (10.0, 20.0)) -> Chain:
    """A ball of zeros somewhere in the image."""
    return Chain([Mask(_ball(draw, draw.uniform(radius_mm)))])


def rigid_motion(
    draw: Draw,
    events: Range = (1, 4),
    translation_mm: Range = (0.5, 3.0),
    rotation_deg: Range = (0.5, 3.0),
    axis: int | None = None,
) -> Chain:
    """A head that moves during the scan; the magnitude image."""
    moved = draw_motion(
        draw.size,
        draw.generator,
        events=draw.integer(events),
        translation_mm=draw.uniform(translation_mm),
        rotation_deg=draw.uniform(rotation_deg),
        axis=draw.axis(axis),
        spacing=draw.spacing,
    )
    return Chain([moved, Magnitude(draw.size)])


def cartesian_kspace(
    draw: Draw,
    acceleration: Range = (2.0, 4.0),
    center_fraction: Range = (0.06, 0.1),
    level: Range = 0.0,
    axis: int | None = None,
) -> Chain:
    """Lines of k-space left out, of an image with a smooth phase; zero-filled."""
    field = draw_bias_field(draw.size, draw.generator, strength=1.0)
    lines = cartesian_mask(
        draw.size,
        draw.uniform(acceleration),
        draw.generator,
        axes=(draw.axis(axis),),
        center_fraction=draw.uniform(center_fraction),
    )
    return Chain([Phase(field.field.log()), CartesianKSpace(lines)], _noise(draw, level, GaussianNoise))


def radial_kspace(draw: Draw, spokes: Range = (0.2, 0.5), level: Range = 0.0) -> Chain:
    """Spokes of k-space, a share of those that the plane needs (``pi / 2`` times its larger side)."""
    count = max(1, round(draw.uniform(spokes) * math.pi / 2 * max(draw.size[:2])))
    return Chain([RadialKSpace(draw.size, count)], _noise(draw, level, GaussianNoise))


def parallel_beam(draw: Draw, views: Range = (30, 90), arc: Range = 180.0, start: Range = (0.0, 180.0)) -> Chain:
    """Few views (sparse-view CT) or a smaller arc (limited angle), and filtered back-projection."""
    angles = view_angles(draw.integer(views), draw.uniform(arc), draw.uniform(start))
    return Chain([ParallelBeam(draw.size, angles, draw.spacing)])


def metal_trace(draw: Draw, radius_mm: Range = (2.0, 6.0), views: Range = 90) -> Chain:
    """Rays through a metal ball left out, and ten steps of least squares."""
    beam = ParallelBeam(draw.size, view_angles(draw.integer(views)), draw.spacing)
    return Chain([MetalTrace(beam, _ball(draw, draw.uniform(radius_mm)))])


def gaussian(draw: Draw, level: Range = (0.01, 0.1)) -> Chain:
    """Gaussian noise; ``level`` is its deviation over the image's bright end."""
    return _alone(draw, _noise(draw, level, GaussianNoise))


def rician(draw: Draw, level: Range = (0.01, 0.1)) -> Chain:
    """Rician noise; ``level`` is the deviation of each part over the image's bright end."""
    return _alone(draw, _noise(draw, level, RicianNoise))


def poisson(draw: Draw, level: Range = (0.01, 0.1)) -> Degradation:
    """Poisson noise; ``level`` is its deviation over the value, at the image's bright end.

    A value is the expected count, which is nowhere negative: what a step before it (ringing, Gaussian noise, filtered
    back-projection) left below 0 counts as 0.
    """
    share = draw.uniform(level)
    noise = PoissonNoise(1 / (share**2 * draw.scale)) if share > 0 else None
    return Degradation(_alone(draw, noise), counts=noise is not None)


def transmission(
    draw: Draw, photons: Range = (1e5, 1e6), electronic: Range = (0.0, 10.0), views: Range = 360
) -> Degradation:
    """Low-dose CT, for an image in HU: adds the noise that so many photons a ray give a filtered back-projection."""
    beam = ParallelBeam(draw.size, view_angles(draw.integer(views)), draw.spacing)
    noise = TransmissionNoise(draw.uniform(photons), draw.uniform(electronic))
    return Degradation(Chain([beam], noise), slope=_WATER / 1000, intercept=_WATER, noise_only=True)


def _ball(draw: Draw, radius_mm: float) -> Tensor:
    """True in a ball whose middle lies anywhere in the image."""
    distance = torch.zeros(draw.size, dtype=torch.float64)
    for axis, (n, step) in enumerate(zip(draw.size, draw.spacing, strict=True)):
        place = (torch.arange(n, dtype=torch.float64) - draw.integer((0, n - 1))) * step
        distance += place.reshape([-1 if a == axis else 1 for a in range(len(draw.size))]) ** 2
    return distance <= radius_mm**2


LIMITS = {
    "fwhm_mm": Limits(),
    "slice_spacing_mm": Limits(above=True),
    "thickness": Limits(low=0.01),  # below it a slice may fall between the points at which a profile is taken
    "keep": Limits(high=1, above=True),
    "strength": Limits(high=5),
    "order": Limits(low=1, whole=True),
    "radius_mm": Limits(),
    "events": Limits(whole=True),
    "translation_mm": Limits(),
    "rotation_deg": Limits(),
    "acceleration": Limits(low=1, high=1e6),
    "center_fraction": Limits(high=1),
    "spokes": Limits(above=True),
    "views": Limits(low=1, whole=True),
    "arc": Limits(above=True),
    "start": Limits(low=-math.inf),
    "level": Limits(),
    "photons": Limits(above=True),
    "electronic": Limits(),
}
"""Range -> its limits, the same in every degradation."""

DEGRADATIONS: dict[str, Callable[..., Chain | Degradation]] = {
    made.__name__: made
    for made in (
        blur, through_plane, gibbs, bias_field, mask, rigid_motion, cartesian_kspace, radial_kspace, parallel_beam,
        metal_trace, gaussian, rician, poisson, transmission,
    )
}  # fmt: skip
"""Name -> function of a ``Draw`` and ranges; names of operators and of noise models."""

_MAGNITUDE = "which gives a magnitude"

UNSIGNED = {
    "rigid_motion": _MAGNITUDE,
    "cartesian_kspace": _MAGNITUDE,
    "radial_kspace": _MAGNITUDE,
    "rician": _MAGNITUDE,
    "poisson": "which takes values for counts",
}
"""Degradations of images that are nowhere negative, and why: the sign would be lost."""
