"""The noise that is found is the noise that was added."""

from __future__ import annotations

import pytest
import torch

from medgen.checks import MedgenError
from medgen.operators.noise import RicianNoise
from medgen.operators.noise_level import estimate_noise


def head(*size: int) -> torch.Tensor:
    """A bright ball with a darker middle in air, ``(1, *size)``."""
    place = torch.stack(torch.meshgrid(*(torch.linspace(-1, 1, n) for n in size), indexing="ij"))
    radius = place.square().sum(0).sqrt()
    return ((radius < 0.85) * (60.0 + 40.0 * (radius > 0.4)))[None]


@pytest.mark.parametrize("size", [(64, 64), (40, 41, 37)])
@pytest.mark.parametrize("level", [2.0, 8.0])
def test_rician_noise(size: tuple[int, ...], level: float) -> None:
    noisy = RicianNoise(level).sample(head(*size)[None], [torch.Generator().manual_seed(0)])[0]
    assert estimate_noise(noisy) == pytest.approx(level, rel=0.1)


def test_air_that_was_cut_out_does_not_count() -> None:
    clean = head(40, 40, 40)
    noisy = torch.where(clean > 0, clean + 5 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0)), 0)
    assert estimate_noise(noisy) == pytest.approx(5.0, rel=0.1)


def test_one_slice_is_an_image_of_two_axes() -> None:
    noisy = RicianNoise(4.0).sample(head(64, 64)[None], [torch.Generator().manual_seed(0)])[0]
    assert estimate_noise(noisy[:, :, None]) == estimate_noise(noisy)
    with pytest.raises(MedgenError, match="along two axes"):
        estimate_noise(torch.zeros(1, 8, 1, 1))


def test_the_slope_of_a_magnitudes_mean() -> None:
    signal, step, noise = torch.tensor([0.0, 0.5, 2.0, 7.0, 200.0], dtype=torch.float64), 1e-4, RicianNoise(2.0)
    found = noise.slope(signal)
    torch.testing.assert_close(found, (noise.mean(signal + step) - noise.mean((signal - step).abs())) / (2 * step))
    assert found[0] == 0
    assert float(found[-1]) == pytest.approx(1, abs=1e-4)
