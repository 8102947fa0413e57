"""Edits with an exact denoiser: what stays, what changes, and inversion."""

from __future__ import annotations

import pytest
import torch

from medgen.checks import MedgenError
from medgen.diffusion.editing import Region, edit_sigmas, invert_ddim, reconstruct_ddim, sdedit, slerp
from medgen.diffusion.haar import haar_pack, haar_unpack
from medgen.diffusion.randomness import generators, randn
from medgen.diffusion.samplers import SAMPLERS
from medgen.diffusion.schedules import logsnr_sigmas
from tests.conformance.gaussian import GaussianData

DATA = GaussianData.spread()
SIGMAS = logsnr_sigmas(40, 0.02, 20.0)


def clean(count: int) -> torch.Tensor:
    return DATA.at(0.0, count, seed=5)


def test_a_stronger_edit_keeps_less_of_the_image_and_stays_in_the_distribution() -> None:
    x0 = clean(400)
    kept = []
    for strength in (0.25, 0.6, 1.0):
        edited = sdedit(DATA.denoise, x0, edit_sigmas(SIGMAS, strength), generators=generators(range(400)))
        a, b = ((x - DATA.mean) @ DATA.basis for x in (x0, edited))
        kept.append(float((a * b).mean() / (a.square().mean() * b.square().mean()).sqrt()))
        assert (b[:, 0].var(0) / DATA.variances).log().abs().max() < 0.4
    assert kept[0] > 0.95 > kept[1] > kept[2]
    assert abs(kept[2]) < 0.2  # sigma_max is 14 times the largest deviation


def test_an_edit_of_a_sample_does_not_depend_on_its_neighbours() -> None:
    x0, sigmas = clean(3), edit_sigmas(SIGMAS, 0.5)
    together = sdedit(DATA.denoise, x0, sigmas, generators=generators([1, 2, 3]), sampler="ddpm")
    alone = sdedit(DATA.denoise, x0[1:2], sigmas, generators=generators([2]), sampler="ddpm")
    torch.testing.assert_close(together[1:2], alone)


@pytest.mark.parametrize("strength", [0, -0.1, 1.1, float("nan")])
def test_a_strength_that_means_nothing_is_refused(strength: float) -> None:
    with pytest.raises(MedgenError, match="strength"):
        edit_sigmas(SIGMAS, strength)


def test_inversion_to_the_fixed_point_is_undone_exactly() -> None:
    x0 = clean(8)
    errors = []
    for iterations in (1, 100):
        noise = invert_ddim(DATA.denoise, x0, SIGMAS, iterations=iterations, tolerance=1e-14)
        errors.append(float((reconstruct_ddim(DATA.denoise, noise, SIGMAS) - x0).abs().max()))
    assert errors[1] < 1e-10
    assert errors[0] > 1e-2


def test_inversion_ends_in_the_exact_noise_with_many_steps() -> None:
    x0 = clean(8)
    noise = invert_ddim(DATA.denoise, x0, logsnr_sigmas(2000, 0.02, 20.0), iterations=20)
    exact = DATA.flow(x0, 0.02, 20.0)
    assert ((noise - exact).norm() / exact.norm()) < 0.01


def test_inversion_needs_levels_and_iterations() -> None:
    with pytest.raises(MedgenError, match="two levels"):
        invert_ddim(DATA.denoise, clean(1), torch.tensor([1.0, 0.0]))
    with pytest.raises(MedgenError, match="iterations"):
        invert_ddim(DATA.denoise, clean(1), SIGMAS, iterations=0)


@pytest.mark.parametrize("name", SAMPLERS)
def test_outside_a_region_every_sampler_returns_the_image(name: str) -> None:
    x0 = clean(6)
    mask = torch.zeros_like(x0)
    mask[..., :4] = 1
    region = Region(DATA.denoise, x0, mask)
    made = sdedit(region, x0, SIGMAS, generators=generators(range(6)), sampler=name)
    torch.testing.assert_close(made[mask == 0], x0[mask == 0])
    final = region.keep(made)
    assert torch.equal(final[mask == 0], x0[mask == 0])
    assert torch.equal(final[mask == 1], made[mask == 1])
    assert (final - x0)[mask == 1].abs().min() > 0


def test_the_region_is_told_of_its_surroundings() -> None:
    """Two correlated values: the one that is kept decides the mean of the other."""
    pair = GaussianData(
        torch.zeros(2, dtype=torch.float64),
        torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64) / 2**0.5,
        torch.tensor([1.9, 0.1], dtype=torch.float64),
    )
    x0 = torch.full((300, 1, 2), 1.5, dtype=torch.float64)
    x0[150:] = -1.5
    mask = torch.tensor([1.0, 0.0], dtype=torch.float64).expand_as(x0)
    made = sdedit(Region(pair.denoise, x0, mask), x0, SIGMAS, generators=generators(range(300)), sampler="ddpm")
    gap = made[:150, 0, 0].mean() - made[150:, 0, 0].mean()
    assert gap > 1.0  # 2.7 in truth; nothing known would leave 0


def test_a_region_lies_among_voxels_of_a_packed_image() -> None:
    x0 = randn((1, 8, 8), generators([3]))
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., 3:6, 2:5] = 1
    mask[..., 2, 2:5] = 0.5
    region = Region(lambda x, sigma: 0 * x, haar_pack(x0), mask, haar_unpack, haar_pack)
    answer = haar_unpack(region(haar_pack(x0), torch.ones(1)))
    torch.testing.assert_close(answer, (1 - mask) * x0)


def test_slerp_keeps_the_size_of_noise_and_its_ends() -> None:
    first, second = randn((1, 8, 8, 8), generators([0, 1])), randn((1, 8, 8, 8), generators([2, 3]))
    torch.testing.assert_close(slerp(first, second, 0.0), first)
    torch.testing.assert_close(slerp(first, second, 1.0), second)
    assert slerp(first, second, 0.5).std() == pytest.approx(1.0, abs=0.05)
    torch.testing.assert_close(slerp(first, first, 0.3), first)
    with pytest.raises(MedgenError, match="one shape"):
        slerp(first, second[:1], 0.5)
