"""The maps keep orientation, are smooth, and read the same whatever is asked for."""

from __future__ import annotations

import pytest
import torch

from medgen.anatomy import deformation
from medgen.checks import MedgenError

SPACING = (6.0, 6.0, 6.0)


def random_map(seed: int, shape: tuple[int, int, int] = (20, 22, 20)) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return deformation.sample_displacement(generator, shape, SPACING, (4.0, 1.9, 1.0), (48.0, 28.0, 16.0))


def positions(displacement: torch.Tensor) -> torch.Tensor:
    axes = [torch.arange(n) * s for n, s in zip(displacement.shape[1:], SPACING, strict=True)]
    return torch.stack(torch.meshgrid(*axes, indexing="ij")) + displacement


@pytest.mark.parametrize("seed", range(5))
def test_integrated_velocity_keeps_orientation(seed: int) -> None:
    determinant = deformation.jacobian_determinant(positions(random_map(seed)), SPACING)
    assert determinant.min() > 0


def test_zero_velocity_is_the_identity() -> None:
    still = deformation.integrate_velocity(torch.zeros(3, 6, 7, 8), SPACING)
    assert still.abs().max() == 0
    assert torch.allclose(
        deformation.jacobian_determinant(positions(still), SPACING), torch.ones(5, 6, 7, dtype=torch.float64)
    )


def test_negative_velocity_inverts() -> None:
    generator = torch.Generator().manual_seed(3)
    velocity = deformation.random_velocity(generator, (24, 24, 24), SPACING, (3.0,), (48.0,))
    forward = deformation.integrate_velocity(velocity, SPACING)
    backward = deformation.integrate_velocity(-velocity, SPACING)
    left = deformation.compose(forward, backward, SPACING)[:, 4:-4, 4:-4, 4:-4]
    assert left.abs().max() < 0.25
    assert forward[:, 4:-4, 4:-4, 4:-4].abs().max() > 3


def test_noise_has_unit_variance() -> None:
    generator = torch.Generator().manual_seed(0)
    noise = deformation.smooth_noise(generator, (90, 90, 90), (2.5, 2.5, 2.5))
    assert 0.95 < float(noise.std()) < 1.05


def test_bspline_weights_sum_to_one_and_reproduce_lines() -> None:
    line = torch.arange(9, dtype=torch.float32)[None, :]
    values = deformation.upsample(line, 1, 0, 20, 4)
    assert torch.allclose(values[0], 1 + torch.arange(20) / 4, atol=1e-5)


def test_a_part_of_the_map_equals_the_part_of_the_whole() -> None:
    mapping = deformation.LatticeMap(
        torch.randn(3, 10, 9, 8, generator=torch.Generator().manual_seed(0)), 4, (28, 24, 20)
    )
    whole = mapping.points((0, 0, 0), mapping.shape)
    part = mapping.points((5, 2, 3), (17, 23, 10))
    assert torch.equal(part, whole[:, 5:17, 2:23, 3:10])


def test_affine_stays_within_its_limits() -> None:
    limits = deformation.AffineLimits()
    for seed in range(20):
        matrix, drawn = deformation.random_affine(torch.Generator().manual_seed(seed), limits)
        assert torch.linalg.det(matrix) > 0
        assert max(map(abs, drawn["rotation_degrees"])) <= limits.rotation_degrees


def test_unmatched_scales_are_refused() -> None:
    with pytest.raises(MedgenError, match="one magnitude for each"):
        deformation.random_velocity(torch.Generator(), (4, 4, 4), SPACING, (1.0,), (8.0, 16.0))


def test_warp_reads_the_volume_and_is_zero_outside() -> None:
    volume = torch.arange(60, dtype=torch.float32).reshape(3, 4, 5) + 1
    points = torch.tensor([[1.0, 9.0], [2.0, 0.0], [3.0, 0.0]]).reshape(3, 2, 1, 1)
    assert torch.allclose(deformation.warp(volume, points).flatten(), torch.tensor([float(volume[1, 2, 3]), 0.0]))
    with pytest.raises(MedgenError, match="mode"):
        deformation.warp(volume, points, "cubic")
