"""Rigid motion: the poses themselves, and their mixing in k-space."""

from __future__ import annotations

import math

import pytest
import torch

from medgen.checks import MedgenError
from medgen.operators import RigidMotion, draw_motion
from medgen.operators.fourier import fft


def blob(size: tuple[int, ...], centre: torch.Tensor, spacing: tuple[float, ...]) -> torch.Tensor:
    """A smooth blob that is longer along its first axis of motion, in mm from the middle."""
    total = torch.zeros(size, dtype=torch.float64)
    for axis, (n, step) in enumerate(zip(size, spacing, strict=True)):
        at = (torch.arange(n, dtype=torch.float64) - (n - 1) / 2) * step - centre[axis]
        total = total + at.reshape([-1 if a == axis else 1 for a in range(len(size))]) ** 2
    return torch.exp(-total / (2 * 3.0**2))[None, None]


@pytest.mark.parametrize("degrees", [7.0, -20.0])
def test_one_pose_in_2d_turns_and_shifts(degrees: float) -> None:
    size, spacing, shift = (40, 45), (1.0, 0.9), (1.5, -2.2)
    start = torch.tensor([5.0, 3.0]).double()
    motion = RigidMotion(size, [shift], [[degrees]], [0] * 40, spacing=spacing)
    angle = math.radians(degrees)
    turn = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]).double()
    expected = blob(size, turn @ start + torch.tensor(shift).double(), spacing)
    found = motion.forward(blob(size, start, spacing))
    assert float((found - expected).abs().max()) < 2e-3
    assert float(found.imag.abs().max()) < 1e-10


def test_one_pose_in_3d_turns_about_each_axis_in_order() -> None:
    size, spacing = (20, 22, 24), (1.6, 1.5, 1.4)
    start = torch.tensor([4.0, 2.0, -3.0]).double()
    degrees = (8.0, -6.0, 10.0)
    motion = RigidMotion(size, [(0.0, 1.0, 0.0)], [degrees], [0] * 22, axis=1, spacing=spacing)
    point = start
    for axis, value in enumerate(degrees):
        a, b = (other for other in range(3) if other != axis)
        angle = math.radians(value)
        turn = torch.eye(3, dtype=torch.float64)
        turn[a, a] = turn[b, b] = math.cos(angle)
        turn[a, b], turn[b, a] = -math.sin(angle), math.sin(angle)
        point = turn @ point
    expected = blob(size, point + torch.tensor([0.0, 1.0, 0.0]).double(), spacing)
    found = motion.forward(blob(size, start, spacing))
    assert float((found - expected).abs().max()) < 5e-3


def test_a_pose_is_unitary_and_stillness_is_the_identity() -> None:
    x = torch.randn(1, 1, 9, 8, generator=torch.Generator().manual_seed(0), dtype=torch.complex128)
    one = RigidMotion((9, 8), [(1.3, 0.4)], [[12.0]], [0] * 9)
    assert float(one.forward(x).norm()) == pytest.approx(float(x.norm()))
    assert torch.allclose(one.adjoint(one.forward(x)), x)
    still = RigidMotion((9, 8), [(0.0, 0.0)] * 2, [[0.0]] * 2, [0, 1] * 4 + [0])
    assert torch.allclose(still.forward(x), x)


def test_each_line_is_that_of_its_pose() -> None:
    x = torch.randn(1, 1, 8, 6, generator=torch.Generator().manual_seed(0), dtype=torch.complex128)
    shift, poses = (2.0, -1.0), [0, 0, 0, 1, 1, 1, 0, 1]
    mixed = RigidMotion((8, 6), [(0.0, 0.0), shift], [[0.0], [5.0]], poses).forward(x)
    moved = RigidMotion((8, 6), [shift], [[5.0]], [0] * 8).forward(x)
    lines = torch.tensor(poses).bool()
    spectrum = fft(mixed, (0,))
    assert torch.allclose(spectrum[:, :, lines], fft(moved, (0,))[:, :, lines])
    assert torch.allclose(spectrum[:, :, ~lines], fft(x, (0,))[:, :, ~lines])


def test_motion_is_drawn_with_its_size_and_the_centre_at_rest() -> None:
    drawn = [draw_motion((64, 8), torch.Generator().manual_seed(s), events=3, translation_mm=2.0) for s in range(60)]
    for motion in drawn:
        assert len(motion.translations_mm) == 4
        assert list(motion.poses) == sorted(motion.poses)
        assert motion.translations_mm[motion.poses[32]] == (0.0, 0.0)
        assert motion.rotations_deg[motion.poses[32]] == (0.0,)
    others = torch.tensor([row for motion in drawn for row in motion.translations_mm if row != (0.0, 0.0)])
    assert float(others.std()) == pytest.approx(2.0, rel=0.1)
    assert draw_motion((64, 8), torch.Generator().manual_seed(0), events=3, translation_mm=2.0) == drawn[0]
    assert drawn[0] != drawn[1]
    assert draw_motion((3, 4, 5), torch.Generator(), axis=2, events=9).axis == 2


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(
        MedgenError, match=r"RigidMotion: rotations_deg must have 1 rows as translations_mm, and poses 4"
    ):
        RigidMotion((4, 5), [(0, 0)], [[0]], [0] * 5)
    with pytest.raises(MedgenError, match=r"RigidMotion: rotations_deg must lie in -45..45"):
        RigidMotion((4, 5), [(0, 0)], [[60.0]], [0] * 4)
    with pytest.raises(MedgenError, match=r"RigidMotion: translations_mm must have rows of 2 finite numbers"):
        RigidMotion((4, 5), [(0, math.nan)], [[0.0]], [0] * 4)
