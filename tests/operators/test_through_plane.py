"""Slices with a profile: block means, fractions, gaps, overlaps, the profiles themselves."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from medgen.checks import MedgenError
from medgen.operators import SLICE_PROFILES, ThroughPlane
from medgen.operators.slice_profiles import sinc_profile, slice_weights, slr_profile


def column(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64).reshape(1, 1, 1, -1)


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_a_box_of_whole_voxels_is_a_block_mean(factor: int) -> None:
    x = torch.randn(1, 1, 5, 4, 4 * factor, generator=torch.Generator().manual_seed(0))
    thick = ThroughPlane((5, 4, 4 * factor), slice_spacing_mm=factor * 0.7, spacing_mm=0.7)
    assert torch.allclose(thick.forward(x), x.unflatten(-1, (4, factor)).mean(-1), atol=1e-6)
    assert torch.allclose(
        thick.pseudo_inverse(thick.forward(x)), thick.forward(x).repeat_interleave(factor, -1), atol=1e-5
    )


def test_fractions_gaps_and_overlaps() -> None:
    x = column(*range(10))
    half = ThroughPlane((1, 10), slice_spacing_mm=2.5)
    assert half.slices == 4
    assert half.matrices[1][0].tolist() == pytest.approx([0.4, 0.4, 0.2, 0, 0, 0, 0, 0, 0, 0])
    assert half.forward(x).flatten().tolist() == pytest.approx([0.8, 3.2, 5.8, 8.2])
    gap = ThroughPlane((1, 10), slice_spacing_mm=5.0, thickness_mm=1.0)
    assert gap.forward(x).flatten().tolist() == pytest.approx([2.0, 7.0])
    overlap = ThroughPlane((1, 10), slice_spacing_mm=2.0, thickness_mm=4.0)
    assert overlap.matrices[1][2].tolist() == pytest.approx([0, 0, 0, 0.25, 0.25, 0.25, 0.25, 0, 0, 0])
    assert overlap.matrices[1][0].tolist() == pytest.approx([1 / 3, 1 / 3, 1 / 3, 0, 0, 0, 0, 0, 0, 0])


@pytest.mark.parametrize("profile", SLICE_PROFILES)
def test_thickness_is_the_full_width_at_half_maximum(profile: str) -> None:
    weights = slice_weights(profile, 401, torch.tensor([200.0], dtype=torch.float64), 80.0)[0]
    above = (weights >= weights.max() / 2).nonzero()
    assert int(above.max() - above.min()) + 1 == pytest.approx(80, abs=1.5)
    assert torch.allclose(weights, weights.flip(0))


def test_weights_add_up_and_profiles_differ() -> None:
    made = [ThroughPlane((2, 24), 4.0, profile=name) for name in SLICE_PROFILES]
    for thick in made:
        assert torch.allclose(thick.matrices[1].sum(1), torch.ones(6, dtype=torch.float64))
    gaps = [float((a.matrices[1] - b.matrices[1]).abs().max()) for i, a in enumerate(made) for b in made[:i]]
    assert min(gaps) > 0.01


def test_sinc_profile_is_the_spectrum_of_its_pulse() -> None:
    n, bandwidth = 4096, 4.0
    tau = (np.arange(n) + 0.5) / n - 0.5
    pulse = np.sinc(bandwidth * tau) * np.hamming(n)
    padded = np.zeros(16 * n)
    padded[:n] = pulse
    spectrum = np.abs(np.fft.rfft(padded)) / pulse.sum()
    u = np.arange(40) / 16 / bandwidth
    found = sinc_profile(torch.from_numpy(u)).abs().numpy()
    assert np.allclose(found, spectrum[:40], atol=2e-3)


def test_slr_profile_is_flat_within_sharp_at_the_edge_and_small_beyond() -> None:
    inside, beyond = (torch.linspace(low, high, 200, dtype=torch.float64) for low, high in ((0, 0.2), (0.75, 2.4)))
    assert float((slr_profile(inside) - 1).abs().max()) < 0.01
    assert float(slr_profile(beyond).abs().max()) < 0.02
    gaussian = SLICE_PROFILES["gaussian"]
    assert gaussian is not None
    assert float(gaussian(torch.tensor(0.2))) < 0.9
    assert math.isclose(float(slr_profile(torch.zeros(1))), 1.0, abs_tol=1e-6)


def test_way_back_is_linear_between_slices_and_flat_beyond() -> None:
    thick = ThroughPlane((3, 12), slice_spacing_mm=3.0)
    ramp = torch.tensor(thick.positions_mm, dtype=torch.float64).expand(1, 1, 3, 4)
    image = thick.to_image(ramp)
    assert image[0, 0, 0].tolist() == pytest.approx([1, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 10])


def test_number_of_slices_and_offset_can_be_given() -> None:
    thick = ThroughPlane((10, 2), 3.0, axis=0, slices=4, offset_mm=-0.5)
    assert thick.positions_mm == (-0.5, 2.5, 5.5, 8.5)
    assert thick.measurement_shape(2) == (2, 4, 2)
    assert ThroughPlane((10, 2), 2.9, axis=0).slices == 3


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(MedgenError, match="ThroughPlane: profile must be one of box, gaussian, sinc, slr; got 'boxx'"):
        ThroughPlane((4, 8), 2.0, profile="boxx")
    with pytest.raises(MedgenError, match="ThroughPlane: slice_spacing_mm must be a number above 0; got 0"):
        ThroughPlane((4, 8), 0)
    with pytest.raises(MedgenError, match="ThroughPlane: every slice must meet a voxel"):
        ThroughPlane((4, 8), 2.0, slices=20)
    with pytest.raises(MedgenError, match="ThroughPlane: slices must be an integer above 0"):
        ThroughPlane((4, 8), 2.0, slices=1.5)  # type: ignore[arg-type]
