"""Cartesian and radial k-space, masks, coils, phases: against the definition of the Fourier transform."""

from __future__ import annotations

import math

import pytest
import torch

from medgen.checks import MedgenError
from medgen.operators import (
    CartesianKSpace,
    Chain,
    GaussianNoise,
    Magnitude,
    Phase,
    RadialKSpace,
    cartesian_mask,
    least_squares,
    simulate_sensitivities,
)
from medgen.operators.fourier import fft, frequencies
from medgen.operators.nufft import Nufft, direct_transform


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def complex_noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.complex128)


def disc(n: int, radius: float = 0.3) -> torch.Tensor:
    """A smooth disc, ``(1, 1, n, n)``."""
    at = torch.linspace(-0.5, 0.5, n, dtype=torch.float64)
    return torch.sigmoid((radius - torch.hypot(at[:, None], at)) * 30)[None, None]


def test_transform_is_its_definition() -> None:
    size = (5, 4)
    x = complex_noise(1, 1, *size)
    r = [torch.arange(n, dtype=torch.float64) - n // 2 for n in size]
    kernels = [torch.exp(-2j * math.pi * frequencies(n)[:, None] * at) for n, at in zip(size, r, strict=True)]
    expected = torch.einsum("ka,lb,ncab->nckl", *kernels, x) / math.sqrt(20)
    assert torch.allclose(fft(x), expected)
    whole = CartesianKSpace(torch.ones(size))
    assert torch.allclose(whole.forward(x), expected)
    assert torch.allclose(whole.pseudo_inverse(whole.forward(x)), x)


@pytest.mark.parametrize("acceleration", [2.0, 3.5, 4.0])
@pytest.mark.parametrize("kind", ["variable_density", "equispaced"])
def test_mask_has_its_lines_and_its_middle(acceleration: float, kind: str) -> None:
    mask = cartesian_mask((3, 120), acceleration, generator(), axes=(1,), center_fraction=0.1, kind=kind)
    assert bool((mask == mask[:1]).all())
    assert abs(int(mask[0].sum()) - 120 / acceleration) <= (0.5 if kind == "variable_density" else 4)
    assert bool(mask[0, 54:66].all())
    again = cartesian_mask((3, 120), acceleration, generator(), axes=(1,), center_fraction=0.1, kind=kind)
    other = cartesian_mask((3, 120), acceleration, generator(3), axes=(1,), center_fraction=0.1, kind=kind)
    assert torch.equal(mask, again)
    assert not torch.equal(mask, other)


def test_density_falls_outwards_and_equispaced_lines_are_apart() -> None:
    drawn = torch.stack([cartesian_mask((200, 2), 4.0, generator(s), center_fraction=0.05)[:, 0] for s in range(30)])
    counts = drawn.double().mean(0)
    assert float(counts[60:95].mean()) > 2.5 * float(counts[:35].mean())
    lines = cartesian_mask((120, 2), 4.0, generator(), center_fraction=0.08, kind="equispaced")[:, 0]
    apart = lines[:50].nonzero().flatten().diff()
    assert int(apart.max()) - int(apart.min()) <= 1
    assert int(apart.min()) >= 4


def test_two_axes_are_drawn_as_points_of_their_plane() -> None:
    mask = cartesian_mask((5, 20, 16), 4.0, generator(), axes=(2, 1), center_fraction=0.2)
    assert bool((mask == mask[:1]).all())
    assert int(mask[0].sum()) == 80
    assert bool(mask[0, 8:12, 7:9].all())
    assert int(mask[0].any(1).sum()) > 10
    assert int(mask[0].any(0).sum()) > 8


def test_full_coils_are_combined_exactly() -> None:
    size = (6, 7)
    coils = simulate_sensitivities(size, 4) * torch.linspace(0.5, 2, 7)
    operator = CartesianKSpace(torch.ones(size), coils)
    x = complex_noise(2, 3, *size)
    assert operator.forward(x).shape == (2, 12, *size)
    assert torch.allclose(operator.forward(x)[:, 4:8], fft(x[:, 1:2] * coils))
    assert torch.allclose(operator.pseudo_inverse(operator.forward(x)), x, atol=1e-6)


def test_several_coils_undo_skipped_lines() -> None:
    size = (24, 16)
    lines = torch.arange(24)[:, None].expand(size) % 2 == 0
    x = disc(24)[..., 4:20].to(torch.complex128)
    one, many = CartesianKSpace(lines), CartesianKSpace(lines, simulate_sensitivities(size, 8))
    errors = [float((least_squares(a, a.forward(x), iterations=60) - x).norm() / x.norm()) for a in (one, many)]
    assert errors[0] > 0.3
    assert errors[1] < 0.02


def test_coils_see_what_is_near_and_have_a_smooth_phase() -> None:
    maps = simulate_sensitivities((16, 16), 4).abs()
    assert maps[0].argmax() // 16 == 15
    assert maps[2].argmax() // 16 == 0
    assert float(maps[1].argmax() % 16) == 15
    assert simulate_sensitivities((4, 4, 3), 2).shape == (2, 4, 4, 3)
    with pytest.raises(MedgenError, match="coils must be an integer above 0"):
        simulate_sensitivities((4, 4), 0)


def test_a_real_volume_with_a_phase() -> None:
    size = (12, 10)
    phase = torch.rand(size, generator=generator()) * 6
    chain = Chain([Phase(phase), CartesianKSpace(torch.ones(size))], GaussianNoise(0.1))
    x = torch.rand(2, 1, *size, generator=generator(1))
    assert chain.domain == "real"
    back = chain.adjoint(chain.forward(x))
    assert not back.is_complex()
    assert torch.allclose(back, x, atol=1e-5)
    assert torch.allclose(chain.to_image(chain.forward(x)), x, atol=1e-5)
    noisy = chain.sample(x, [generator(1), generator(2)])
    assert float((noisy - chain.forward(x)).abs().square().mean()) == pytest.approx(2 * 0.1**2, rel=0.2)


def test_noise_falls_on_measured_entries_only() -> None:
    mask = cartesian_mask((16, 4), 4.0, generator())
    noisy = Chain([CartesianKSpace(mask)], GaussianNoise(1.0)).sample(torch.ones(1, 1, 16, 4), [generator()])
    assert bool((noisy[0, 0][~mask] == 0).all())
    assert bool((noisy[0, 0][mask].real != 0).all())


@pytest.mark.parametrize("size", [(16, 16), (15, 12)])
def test_interpolated_transform_is_near_the_sums(size: tuple[int, int]) -> None:
    points = torch.rand(150, 2, generator=generator(), dtype=torch.float64) - 0.5
    points[0], points[1], points[2] = 0.0, -0.5, 0.4999
    x = complex_noise(2, *size)
    expected = direct_transform(x, points)
    for width, tolerance in ((4, 2e-3), (6, 3e-5), (8, 5e-7)):
        found = Nufft(size, points, width).forward(x)
        assert float((found - expected).norm() / expected.norm()) < tolerance
        assert float((found - expected).abs().max() / expected.abs().max()) < 5 * tolerance


def test_points_on_the_grid_are_cartesian() -> None:
    k = torch.cartesian_prod(frequencies(8), frequencies(6))
    x = complex_noise(1, 8, 6)
    expected = fft(x[None])[0].flatten(1)
    assert float((Nufft((8, 6), k).forward(x) - expected).norm() / expected.norm()) < 3e-5


def test_radial_volume_comes_back_from_enough_spokes() -> None:
    x = disc(24).to(torch.complex128)
    full = RadialKSpace((24, 24), spokes=40, order="uniform")
    few = RadialKSpace((24, 24), spokes=6, order="uniform")
    errors = [float((a.to_image(a.forward(x)) - x).norm() / x.norm()) for a in (full, few)]
    assert errors[0] < 0.01
    assert errors[1] > 3 * errors[0]


def test_stack_of_stars_is_a_plane_after_a_transform() -> None:
    x = complex_noise(1, 1, 8, 6, 5)
    stack, plane = RadialKSpace((8, 6, 5), spokes=3), RadialKSpace((8, 6), spokes=3)
    y = stack.forward(x)
    assert y.shape == (1, 1, 3, 16, 5)
    assert torch.allclose(y[..., 2], plane.forward(fft(x, (2,))[..., 2]))
    assert torch.allclose(stack.points, plane.points)


def test_magnitude_and_what_does_not_fit() -> None:
    assert Magnitude((2, 2)).forward(torch.full((1, 1, 2, 2), -3.0)).unique().item() == 3
    with pytest.raises(
        MedgenError, match=r"CartesianKSpace: sensitivities must have shape \(coils, 4, 5\). Got \(2, 4, 4"
    ):
        CartesianKSpace(torch.ones(4, 5), torch.ones(2, 4, 4))
    with pytest.raises(MedgenError, match="cartesian_mask: kind must be one of variable_density, equispaced; got 'x'"):
        cartesian_mask((4, 4), 2.0, kind="x")
    with pytest.raises(MedgenError, match=r"cartesian_mask: acceleration must lie in 1..1e\+06; got 0.5"):
        cartesian_mask((4, 4), 0.5)
    with pytest.raises(MedgenError, match="cartesian_mask: axes must be 1 or 2 different ones"):
        cartesian_mask((4, 4), 2.0, axes=(0, 0))
    with pytest.raises(MedgenError, match="radial_angles: order must be one of golden, uniform; got 'random'"):
        RadialKSpace((4, 4), 3, order="random")
    with pytest.raises(MedgenError, match="Phase: phase must be real, in radians"):
        Phase(complex_noise(3, 3))
    with pytest.raises(MedgenError, match=r"Chain: CartesianKSpace must be of size \(4, 4\), which Magnitude measures"):
        Chain([Magnitude((4, 4)), CartesianKSpace(torch.ones(5, 4))])
    with pytest.raises(MedgenError, match="Chain: a real operator cannot follow a complex one"):
        Chain([CartesianKSpace(torch.ones(4, 4)), Phase(torch.ones(4, 4))])
    with pytest.raises(MedgenError, match=r"Chain: operators must be at least one. Got none"):
        Chain([])
