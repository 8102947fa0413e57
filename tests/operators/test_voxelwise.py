"""Masks and bias fields, noise at known levels, least squares with a weight."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
import torch

from medgen.checks import MedgenError
from medgen.diffusion.randomness import generators
from medgen.operators import (
    BiasField,
    Blur,
    Chain,
    GaussianNoise,
    Magnitude,
    Mask,
    ParallelBeam,
    RicianNoise,
    TransmissionNoise,
    draw_bias_field,
    least_squares,
    view_angles,
)


def test_voxels_outside_the_mask_stay_bit_identical() -> None:
    hole = torch.zeros(6, 5, 4)
    hole[1:3] = 1
    x = torch.randn(2, 1, 6, 5, 4, generator=torch.Generator().manual_seed(0))
    y = Mask(hole).forward(x)
    assert torch.equal(y[:, :, hole == 0], x[:, :, hole == 0])
    assert bool((y[:, :, hole == 1] == 0).all())
    assert Mask(hole) == Mask(hole[None].bool())
    with pytest.raises(MedgenError, match=r"Mask: inpaint_mask must hold 0 \(keep\) and 1 \(regenerate\) only"):
        Mask(hole * 0.5)


def test_bias_field_has_its_strength_and_is_smooth() -> None:
    fields = [draw_bias_field((20, 24), torch.Generator().manual_seed(s), 0.3, order=2) for s in range(3)]
    for field in fields:
        log = field.field.log()
        assert float(log.std(correction=0)) == pytest.approx(0.3)
        assert float(log.diff(dim=0).abs().max()) < 0.2
    assert fields[0] != fields[1]
    assert fields[0].parameters()["coefficients"][1][0] == fields[0].coefficients[1, 0].item()
    assert torch.allclose(draw_bias_field((4, 5), torch.Generator(), 0.0).field, torch.ones(4, 5, dtype=torch.float64))
    for bad, message in (((4, 5, 6), "must be finite with 3 axes"), ((4, 5), "must be finite with 2 axes")):
        with pytest.raises(MedgenError, match=f"BiasField: coefficients {message}"):
            BiasField(bad, torch.full((2, 2), math.nan))
    with pytest.raises(MedgenError, match=r"draw_bias_field: strength must lie in 0..5. Got -1"):
        draw_bias_field((4, 5), torch.Generator(), -1.0)


def test_rician_noise_is_the_magnitude_of_complex_noise() -> None:
    y = torch.full((1, 1, 200, 200), 2.0)
    noisy = GaussianNoise(0.7).sample(y.to(torch.complex64), generators([1]))
    magnitude = Magnitude((200, 200)).forward(noisy)
    rician = RicianNoise(0.7).sample(y, generators([2]))
    for statistic in (torch.mean, torch.std):
        assert float(statistic(rician)) == pytest.approx(float(statistic(magnitude)), rel=0.01)


def test_transmission_noise_grows_behind_dense_material() -> None:
    noise = TransmissionNoise(1e4, electronic=0.0)
    y = torch.tensor([0.0, 3.0]).repeat_interleave(20_000).reshape(1, 1, 2, -1)
    drawn = noise.sample(y, generators([0]))
    assert drawn[0, 0].std(dim=1).tolist() == pytest.approx([0.01, math.exp(1.5) / 100], rel=0.03)
    starved = noise.sample(torch.full((1, 1, 100), 30.0), generators([0]))
    assert bool(torch.isfinite(starved).all())
    assert float(starved.max()) <= math.log(1e4) + 1e-5


def test_a_chain_samples_its_noise_around_its_forward() -> None:
    chain = Chain([Blur((30, 30), 2.0)], GaussianNoise(0.5))
    x = torch.rand(2, 1, 30, 30, generator=torch.Generator().manual_seed(0))
    noisy = chain.sample(x, generators([1, 2]))
    gap = noisy - chain.forward(x)
    assert float(gap.std()) == pytest.approx(0.5, rel=0.05)
    assert torch.equal(noisy[1:], chain.sample(x[1:], generators([2])))
    assert chain.parameters()["noise"] == {"name": "gaussian", "std": 0.5}
    assert torch.equal(Chain([Blur((30, 30), 2.0)]).sample(x, []), chain.forward(x))


def test_weighted_least_squares_is_the_proximal_step() -> None:
    beam = ParallelBeam((5, 4), view_angles(3))
    columns = torch.eye(20, dtype=torch.float64).reshape(20, 1, 5, 4)
    matrix = beam.forward(columns).flatten(1).T
    rows = torch.Generator().manual_seed(0)
    y = torch.randn(2, *beam.measurement_shape(1), generator=rows, dtype=torch.float64)
    start = torch.randn(2, 1, 5, 4, generator=rows, dtype=torch.float64)
    weight = torch.tensor([0.5, 3.0], dtype=torch.float64)
    found = least_squares(beam, y, start=start, weight=weight, iterations=80, tolerance=1e-12)
    for row in range(2):
        normal = matrix.T @ matrix + weight[row] * torch.eye(20)
        expected = torch.linalg.solve(normal, matrix.T @ y[row].flatten() + weight[row] * start[row].flatten())
        assert torch.allclose(found[row].flatten(), expected, atol=1e-8)
    alone = least_squares(beam, y[1:], start=start[1:], weight=3.0, iterations=7)
    together = least_squares(beam, y, start=start, weight=weight, iterations=7)
    assert torch.allclose(alone, together[1:])
    with pytest.raises(MedgenError, match="least_squares: weight must be at least 0"):
        least_squares(beam, y, weight=-1.0)


def test_a_gradient_through_a_gradient() -> None:
    """Of ``|A x|^2 / 2`` twice: ``A* A v``, also where the gradient is an adjoint of its own."""
    for operator in (Blur((5, 6), 2.0), ParallelBeam((5, 6), view_angles(3))):
        x, v = (torch.rand(1, 1, 5, 6, generator=torch.Generator().manual_seed(s), dtype=torch.float64) for s in (0, 1))
        x.requires_grad_()
        (slope,) = torch.autograd.grad(operator.forward(x).square().sum() / 2, x, create_graph=True)
        (found,) = torch.autograd.grad((slope * v).sum(), x)
        assert torch.allclose(found, operator.adjoint(operator.forward(v)))


def test_operators_need_torch_only() -> None:
    code = "import sys, medgen.operators; sys.exit(any(m in sys.modules for m in ('monai', 'scipy', 'skimage')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
