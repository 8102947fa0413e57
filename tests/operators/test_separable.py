"""Blur, Gibbs ringing and matrices per axis against scipy and the Fourier transform."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

from medgen.checks import MedgenError
from medgen.operators import Blur, Chain, GaussianNoise, Gibbs, Separable, ThroughPlane
from medgen.operators.blur import FWHM
from medgen.operators.fourier import fft, ifft


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(("size", "spacing"), [((12, 9), (1.0, 2.0)), ((10, 7, 5), (0.8, 1.0, 3.0))])
def test_blur_is_scipys_gaussian_filter(size: tuple[int, ...], spacing: tuple[float, ...]) -> None:
    widths = (1.7, 4.0, 2.5)[: len(size)]
    x = noise(1, 1, *size)
    sigma = [width / FWHM / step for width, step in zip(widths, spacing, strict=True)]
    expected = ndimage.gaussian_filter(x[0, 0].numpy(), sigma, mode="reflect", truncate=4.0)
    found = Blur(size, widths, spacing).forward(x)[0, 0].numpy()
    assert np.allclose(found, expected, atol=1e-12)


def test_blur_has_the_width_it_says() -> None:
    x = torch.zeros(1, 1, 1, 201, dtype=torch.float64)
    x[..., 100] = 1
    y = Blur((1, 201), (0.0, 8.0), (1.0, 0.2)).forward(x)[0, 0, 0]
    assert int((y >= y.max() / 2).sum()) * 0.2 == pytest.approx(8.0, abs=0.3)
    assert float(y.sum()) == pytest.approx(1.0)


def test_blur_keeps_a_constant_also_where_the_kernel_is_wider_than_the_volume() -> None:
    y = Blur((3, 4), 30.0).forward(torch.full((1, 1, 3, 4), 2.0))
    assert torch.allclose(y, torch.full_like(y, 2.0))


def test_blur_is_no_image_of_its_pseudo_inverse() -> None:
    blur = Blur((8, 8), 2.0)
    y = blur.forward(noise(1, 1, 8, 8))
    assert torch.equal(blur.to_image(y), y)
    assert not torch.allclose(blur.pseudo_inverse(y), y, atol=0.1)


@pytest.mark.parametrize("n", [8, 9, 16])
@pytest.mark.parametrize("keep", [0.3, 0.5, 0.75, 0.99])
def test_gibbs_is_truncated_k_space(n: int, keep: float) -> None:
    x = noise(1, 1, n, 5)
    k = torch.arange(n) - n // 2
    kept = (k.abs() <= int(keep * n / 2)) & (k.abs() < n / 2)
    expected = ifft(fft(x) * kept[:, None])
    y = Gibbs((n, 5), (keep, 1.0)).forward(x)
    assert torch.allclose(y, expected.real, atol=1e-12)
    assert float(expected.imag.abs().max()) < 1e-12
    assert torch.allclose(Gibbs((n, 5), (keep, 1.0)).forward(y), y)


def test_gibbs_overshoots_by_nine_percent() -> None:
    x = torch.zeros(1, 1, 1, 256, dtype=torch.float64)
    x[..., 64:192] = 1
    overshoot = float(Gibbs((1, 256), (1.0, 0.25)).forward(x).max()) - 1
    assert overshoot == pytest.approx(0.0895, abs=0.01)


def test_matrices_against_a_kronecker_product() -> None:
    a, b, c = noise(2, 3), noise(5, 4, seed=1), noise(2, 2, seed=2)
    operator = Separable((3, 4, 2), {0: a, 1: b, 2: c})
    x = noise(1, 1, 3, 4, 2, seed=3)
    full = torch.kron(torch.kron(a, b), c)
    assert torch.allclose(operator.forward(x).flatten(), full @ x.flatten())
    y = noise(1, 1, 2, 5, 2, seed=4)
    assert torch.allclose(operator.pseudo_inverse(y).flatten(), torch.linalg.pinv(full) @ y.flatten())
    expected = torch.linalg.svdvals(full).sort().values
    found = operator.svd().singular_values.flatten().sort().values
    assert torch.allclose(found[-len(expected) :], expected, atol=1e-10)


def test_a_chain_of_matrices_is_one_operator_with_its_singular_values() -> None:
    chain = Chain([Blur((4, 9), 2.0), Gibbs((4, 9), 0.8), ThroughPlane((4, 9), 3.0)], GaussianNoise(0.2))
    x = noise(1, 1, 4, 9)
    svd = chain.svd()
    assert torch.allclose(svd.u(svd.singular_values * svd.vh(x)), chain.forward(x))
    back = chain.pseudo_inverse(chain.forward(x))
    assert torch.allclose(chain.forward(back), chain.forward(x), atol=1e-8)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(MedgenError, match=r"Separable: the matrix of axis 1 must be real with 4 columns. Got \(2, 3\)"):
        Separable((3, 4), {1: torch.zeros(2, 3)})
    with pytest.raises(MedgenError, match="Separable: axis must be one of -2, -1, 0, 1; got 2"):
        Separable((3, 4), {2: torch.zeros(2, 3)})
    with pytest.raises(MedgenError, match="Blur: fwhm_mm must be a number above 0; got -1"):
        Blur((3, 4), -1.0)
    with pytest.raises(MedgenError, match=r"Blur: spacing must have 2 entries. Got \(1, 1, 1\)"):
        Blur((3, 4), 1.0, (1, 1, 1))
    with pytest.raises(MedgenError, match=r"Gibbs: keep must lie in 0..1; got 1.5"):
        Gibbs((3, 4), 1.5)
    with pytest.raises(MedgenError, match=r"Blur: size must have 2 or 3 axes. Got \(3,\)"):
        Blur((3,), 1.0)
    with pytest.raises(MedgenError, match="Blur: size must be an integer above 0; got 0"):
        Blur((3, 0), 1.0)
