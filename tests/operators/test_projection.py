"""Projection against scikit-image and against line integrals in closed form; filtered back-projection; metal."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from skimage.transform import radon

from medgen.checks import MedgenError
from medgen.operators import ConeBeam, FanBeam, MetalTrace, ParallelBeam, least_squares, view_angles
from medgen.operators.filtered import ramp_filter


def blob(size: tuple[int, ...], centre: tuple[float, ...], width: float, spacing: tuple[float, ...]) -> torch.Tensor:
    """``exp(-|r - c|^2 / 2 w^2)``, ``r`` in mm from the middle, ``(1, 1, *size)``."""
    squares = torch.zeros(size, dtype=torch.float64)
    for axis, (n, step, c) in enumerate(zip(size, spacing, centre, strict=True)):
        at = (torch.arange(n, dtype=torch.float64) - (n - 1) / 2) * step - c
        squares = squares + at.reshape([-1 if a == axis else 1 for a in range(len(size))]) ** 2
    return torch.exp(-squares / (2 * width**2))[None, None]


def integral(source: torch.Tensor, target: torch.Tensor, centre: torch.Tensor, width: float) -> torch.Tensor:
    """Of the blob along lines: ``w sqrt(2 pi) exp(-d^2 / 2 w^2)``, ``d`` the distance from its centre."""
    direction = (target - source) / (target - source).norm(dim=-1, keepdim=True)
    offset = centre - source
    along = (offset * direction).sum(-1, keepdim=True)
    distance = (offset - along * direction).norm(dim=-1)
    return width * math.sqrt(2 * math.pi) * torch.exp(-(distance**2) / (2 * width**2))


def test_parallel_beam_is_scikit_images_radon() -> None:
    n = 41
    x = blob((n, n), (6.0, -4.0), 3.0, (1, 1)) + 0.5 * blob((n, n), (-7.0, 3.0), 2.5, (1, 1))
    x[x < 1e-4] = 0  # nothing outside the circle
    angles = view_angles(12)
    expected = radon(x[0, 0].numpy(), theta=np.array(angles), circle=True).T
    found = ParallelBeam((n, n), angles, detectors=n).forward(x)[0, 0].numpy()
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() < 0.02 * expected.max()


def test_parallel_beam_in_mm_against_the_closed_form() -> None:
    spacing, centre, width = (1.0, 0.8, 3.0), (5.0, -3.0), 4.0
    plane = blob((40, 50), centre, width, spacing[:2])
    x = torch.stack([plane, 2 * plane, 0 * plane], -1)
    beam = ParallelBeam((40, 50, 3), view_angles(7, arc=180, start=10), spacing, detectors=31, detector_mm=1.5)
    y = beam.forward(x)
    assert y.shape == (1, 1, 7, 31, 3)
    s = (torch.arange(31, dtype=torch.float64) - 15) * 1.5
    angle = torch.tensor(beam.angles, dtype=torch.float64).deg2rad()[:, None]
    middle = centre[1] * torch.cos(angle) - centre[0] * torch.sin(angle)
    expected = width * math.sqrt(2 * math.pi) * torch.exp(-((s - middle) ** 2) / (2 * width**2))
    assert torch.allclose(y[0, 0, :, :, 0], expected, atol=0.01 * float(expected.max()))
    assert torch.allclose(y[..., 1], 2 * y[..., 0])
    assert float(y[..., 2].abs().max()) == 0


def test_fan_beam_against_the_closed_form() -> None:
    centre, width, source, behind = (4.0, -6.0), 4.0, 60.0, 40.0
    x = blob((40, 40), centre, width, (1.0, 1.0))
    beam = FanBeam((40, 40), view_angles(5, arc=360), source, behind, detectors=60)
    y = beam.forward(x)[0, 0]
    s = (torch.arange(60, dtype=torch.float64) - 29.5) * beam.detector_mm
    for view, degrees in enumerate(beam.angles):
        cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
        e_t, e_s = torch.tensor([cos, sin]).double(), torch.tensor([-sin, cos]).double()
        target = behind * e_t + s[:, None] * e_s
        expected = integral(-source * e_t, target, torch.tensor(centre).double(), width)
        assert torch.allclose(y[view], expected, atol=0.01 * float(expected.max()))


def test_cone_beam_against_the_closed_form_and_its_middle_is_a_fan() -> None:
    size, centre, width, source, behind = (26, 26, 25), (3.0, -2.0, 2.0), 3.0, 60.0, 40.0
    x = blob(size, centre, width, (1.0, 1.0, 1.0))
    beam = ConeBeam(size, view_angles(3, arc=360, start=20), source, behind, panel=(21, 15), detector_mm=2.0)
    y = beam.forward(x)[0, 0]
    s, v = ((torch.arange(n, dtype=torch.float64) - (n - 1) / 2) * 2.0 for n in (21, 15))
    for view, degrees in enumerate(beam.angles):
        cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
        e_t, e_s = torch.tensor([cos, sin, 0.0]).double(), torch.tensor([-sin, cos, 0.0]).double()
        e_z = torch.tensor([0.0, 0.0, 1.0]).double()
        target = behind * e_t + s[:, None, None] * e_s + v[:, None] * e_z
        expected = integral(-source * e_t, target, torch.tensor(centre).double(), width)
        assert torch.allclose(y[view], expected, atol=0.03 * float(expected.max()))
    fan = FanBeam(size, beam.angles, source, behind, detectors=21, detector_mm=2.0)
    assert torch.allclose(y[..., 7], fan.forward(x)[0, 0, ..., 12], atol=0.02 * float(y.max()))


@pytest.mark.parametrize("spacing", [1.0, (0.7, 1.1)])
def test_filtered_back_projection_brings_the_image_back(spacing: float | tuple[float, float]) -> None:
    steps = (spacing, spacing) if isinstance(spacing, float) else spacing
    x = blob((32, 32), (3.0, -2.0), 3.0, steps) + 0.6 * blob((32, 32), (-4.0, 3.0), 2.5, steps)
    full = ParallelBeam((32, 32), view_angles(60), spacing)
    errors = {}
    for name, beam in {
        "full": full,
        "sparse": ParallelBeam((32, 32), view_angles(8), spacing),
        "limited": ParallelBeam((32, 32), view_angles(30, arc=90), spacing),
    }.items():
        errors[name] = float((beam.to_image(beam.forward(x)) - x).norm() / x.norm())
    assert errors["full"] < 0.05
    assert min(errors["sparse"], errors["limited"]) > 3 * errors["full"]
    complex_image = full.to_image(full.forward(x * (1 + 2j)))
    assert torch.allclose(complex_image, full.to_image(full.forward(x)) * (1 + 2j))


def test_ramp_is_that_of_the_frequency() -> None:
    response = torch.fft.fft(ramp_filter(256, 0.5)).real * 0.5
    frequency = torch.fft.fftfreq(256, d=0.5, dtype=torch.float64).abs()
    assert torch.allclose(response, frequency, atol=0.01)


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    beam = ConeBeam((6, 5, 4), view_angles(5, arc=360), 20.0, 15.0, panel=(7, 6))
    x = torch.randn(2, 1, 6, 5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = beam.forward(x)
    back = beam.adjoint(y)
    monkeypatch.setattr("medgen.operators.rays._VALUES_PER_CHUNK", 1000)
    assert torch.allclose(beam.forward(x), y)
    assert torch.allclose(beam.adjoint(y), back)


def test_metal_removes_its_shadow_and_least_squares_fills_it() -> None:
    size = (24, 24)
    x = blob(size, (2.0, -3.0), 4.0, (1, 1))
    metal = blob(size, (-4.0, 4.0), 1.0, (1, 1))[0, 0] > 0.5
    beam = ParallelBeam(size, view_angles(40))
    trace = MetalTrace(beam, metal)
    shadow = ~trace.observed
    assert torch.equal(shadow, beam.forward(metal[None, None].double())[0, 0] > 1e-3)
    bright = x + 50 * metal
    assert torch.allclose(trace.forward(bright)[0, 0][~shadow], beam.forward(x)[0, 0][~shadow], atol=0.06)
    found = least_squares(trace, trace.forward(x), iterations=30)
    outside = ~metal
    assert float((found - x)[0, 0][outside].norm() / x.norm()) < 0.1


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(MedgenError, match=r"FanBeam: source_mm must be above 5.65685, half the volume.s diagonal. Got"):
        FanBeam((8, 8), (0.0,), 5.0, 10.0)
    with pytest.raises(MedgenError, match=r"ConeBeam: size must have 3 axes. Got \(8, 8\). Use FanBeam in 2D"):
        ConeBeam((8, 8), (0.0,), 50.0, 10.0)
    with pytest.raises(MedgenError, match=r"ParallelBeam: angles must be finite, at least one"):
        ParallelBeam((8, 8), ())
    with pytest.raises(MedgenError, match="ParallelBeam: step_mm must be a number above 0"):
        ParallelBeam((8, 8), (0.0,), step_mm=-1.0)
    with pytest.raises(MedgenError, match=r"MetalTrace: metal must have shape \(8, 8\). Got \(7, 8\)"):
        MetalTrace(ParallelBeam((8, 8), (0.0,)), torch.zeros(7, 8))
    with pytest.raises(MedgenError, match="MetalTrace: every ray meets metal"):
        MetalTrace(ParallelBeam((8, 8), (0.0,), detectors=6), torch.ones(8, 8))
