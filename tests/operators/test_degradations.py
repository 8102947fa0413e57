"""Degradations drawn from ranges: what each does to an image, and what is refused."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch

from medgen.checks import MedgenError
from medgen.diffusion.randomness import generators
from medgen.operators import NOISES, OPERATORS
from medgen.operators.degradations import DEGRADATIONS, LIMITS, check_degradations, draw_degradation

SIZES = {2: (20, 18), 3: (14, 12, 10)}
SPACING = (1.0, 1.5, 2.0)
CASES = [pytest.param(name, dims, id=f"{name}-{dims}D") for name in DEGRADATIONS for dims in SIZES]


def smooth(dims: int) -> torch.Tensor:
    """A positive image with structure of a few voxels, about 1 at its bright end, ``(1, 1, *size)``."""
    x = torch.ones(SIZES[dims])
    for axis, n in enumerate(SIZES[dims]):
        wave = torch.sin(torch.linspace(0, torch.pi, n)) * (1 + 0.4 * torch.sin(torch.arange(n) * 1.3))
        x = x * wave.clamp_min(0).reshape([-1 if a == axis else 1 for a in range(dims)])
    return (x / x.max())[None, None]


def degraded(name: str, x: torch.Tensor, seed: int = 0, **ranges: Any) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    size = tuple(x.shape[2:])
    return draw_degradation(name, size, SPACING[: len(size)], 1.0, generator, ranges)(x, generators([seed]))


def test_names_are_those_of_operators_and_noises() -> None:
    assert set(DEGRADATIONS) <= set(OPERATORS) | set(NOISES)
    assert set(NOISES) <= set(DEGRADATIONS)


@pytest.mark.parametrize(("name", "dims"), CASES)
def test_changes_the_image_and_keeps_its_unit(name: str, dims: int) -> None:
    """The unit: the degraded image is still proportional to the image."""
    x = smooth(dims) * (1000 if name == "transmission" else 1)
    y, again, other = (degraded(name, x, seed) for seed in (1, 1, 2))
    assert y.shape == x.shape
    assert y.dtype == torch.float32
    assert torch.equal(y, again)
    assert not torch.equal(y, other)
    change = float((y - x).norm() / x.norm())
    assert 0.002 < change < (0.9 if name != "mask" else 1.0), change
    inside = x > 0.3 * x.max()
    if name != "mask":
        assert 0.5 < float((y * x)[inside].sum() / (x * x)[inside].sum()) < 1.5


@pytest.mark.parametrize(
    ("name", "key", "mild", "strong"),
    [
        ("blur", "fwhm_mm", 1.0, 6.0),
        ("through_plane", "slice_spacing_mm", 2.0, 7.0),
        ("gibbs", "keep", 0.9, 0.3),
        ("bias_field", "strength", 0.05, 0.5),
        ("mask", "radius_mm", 1.0, 6.0),
        ("rigid_motion", "translation_mm", 0.2, 5.0),
        ("cartesian_kspace", "acceleration", 1.2, 4.0),
        ("radial_kspace", "spokes", 0.8, 0.1),
        ("parallel_beam", "views", 60, 6),
        ("metal_trace", "radius_mm", 1.0, 8.0),
        ("gaussian", "level", 0.01, 0.1),
        ("rician", "level", 0.01, 0.1),
        ("poisson", "level", 0.01, 0.1),
        ("transmission", "photons", 1e6, 1e3),
    ],
)
def test_ranges_make_it_mild_or_strong(name: str, key: str, mild: float, strong: float) -> None:
    x = smooth(2)
    errors = [float((degraded(name, x, 4, **{key: value}) - x).norm()) for value in (mild, (strong, strong))]
    assert errors[1] > 1.3 * errors[0], errors


def test_noise_levels_are_relative_to_the_bright_end() -> None:
    x = torch.full((1, 1, 60, 60), 80.0)
    for name in ("gaussian", "rician", "poisson"):
        drawn = draw_degradation(name, (60, 60), (1, 1), 80.0, torch.Generator(), {"level": 0.05})
        assert float(drawn(x, generators([1])).std()) == pytest.approx(4.0, rel=0.06)
    quiet = draw_degradation("gaussian", (60, 60), (1, 1), 80.0, torch.Generator(), {"level": 0})
    assert torch.equal(quiet(x, generators([1])), x)


def test_low_dose_keeps_the_mean_in_hu() -> None:
    x = torch.full((1, 1, 24, 24), -1000.0)
    x[..., 6:18, 6:18] = 40.0
    y = degraded("transmission", x, photons=1e4, electronic=0.0, views=60)
    gap = (y - x)[..., 8:16, 8:16]
    assert abs(float(gap.mean())) < 0.2 * float(gap.std())
    assert 3 < float(gap.std()) < 100


def test_thin_ranges_of_slices_are_no_thinner_than_voxels() -> None:
    made = draw_degradation(
        "through_plane", (20, 18), (1.0, 3.0), 1.0, torch.Generator(), {"slice_spacing_mm": 2, "axis": 1}
    )
    assert made.chain.operators[0].parameters()["slice_spacing_mm"] == 3.0


def test_what_is_unknown_is_refused() -> None:
    x = smooth(2)
    with pytest.raises(MedgenError, match=r"degradations must be one of blur, .*; got 'blurr'. Did you mean 'blur'"):
        degraded("blurr", x)
    with pytest.raises(
        MedgenError, match=r"degradation 'blur' has no range 'fwhm', only fwhm_mm. Did you mean 'fwhm_mm'"
    ):
        degraded("blur", x, fwhm=2)
    for bad in ((3, 2), "wide", (1, 2, 3), None, True):
        with pytest.raises(MedgenError, match=r"blur.fwhm_mm must be a number or \(low, high\) with low <= high. Got"):
            degraded("blur", x, fwhm_mm=bad)


RANGES = [
    (name, key)
    for name, made in DEGRADATIONS.items()
    for key in list(inspect.signature(made).parameters)[1:]
    if key not in ("axis", "profiles")
]


@pytest.mark.parametrize(("name", "key"), RANGES)
def test_what_lies_beyond_its_limits_is_refused_before_an_image_comes(name: str, key: str) -> None:
    """At the limits it works, so that they are neither too narrow nor too wide."""
    limits = LIMITS[key]
    x = smooth(2)
    for end, outward in ((limits.low, -1), (limits.high, 1)):
        if abs(end) < float("inf"):
            with pytest.raises(MedgenError, match=rf"^Who: {name}\.{key} must be .*(at least|at most|above) "):
                check_degradations("Who", {name: {key: end + outward}})
            nearest = end + 0.01 if limits.above and end == limits.low else end
            assert degraded(name, x, **{key: nearest}).isfinite().all()
    if limits.above:
        with pytest.raises(MedgenError, match=rf"Who: {name}\.{key} must be above {limits.low:g}.* Got 0"):
            check_degradations("Who", {name: {key: limits.low}})
    if limits.whole:
        with pytest.raises(MedgenError, match=rf"Who: {name}\.{key} must be whole and at least .* Got \(1, 2.5\)"):
            check_degradations("Who", {name: {key: (1, 2.5)}})


@pytest.mark.parametrize("profile", ["box", "gaussian", "sinc", "slr"])
def test_the_thinnest_slices_meet_a_voxel(profile: str) -> None:
    for spacing in (1.5, 2.1, 2.5, 3.7):
        settings = {"thickness": LIMITS["thickness"].low, "slice_spacing_mm": spacing, "axis": 0, "profiles": [profile]}
        assert degraded("through_plane", smooth(2), **settings).isfinite().all()


def test_axis_and_profiles_are_checked() -> None:
    for bad in (3, -4, 1.0, True, "x"):
        with pytest.raises(MedgenError, match=r"Who: through_plane.axis must be a whole number from -3 to 2, or None"):
            check_degradations("Who", {"through_plane": {"axis": bad}})
    with pytest.raises(MedgenError, match=r"rigid_motion.axis must be a whole number from -2 to 1, or None. Got 2"):
        degraded("rigid_motion", smooth(2), axis=2)
    for profiles in ("box", [], ["boxx"], None):
        with pytest.raises(MedgenError, match=r"through_plane.profiles must be a list of box, gaussian, sinc, slr"):
            check_degradations("Who", {"through_plane": {"profiles": profiles}})
    check_degradations("Who", {"through_plane": {"axis": -3, "profiles": ["box"]}, "rigid_motion": {"axis": None}})
