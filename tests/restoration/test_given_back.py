"""What a denoiser took away and is no noise."""

from __future__ import annotations

import pytest
import torch
from monai.data import MetaTensor
from torch import Tensor

from medgen.intensity import bright_end
from medgen.operators import RicianNoise
from medgen.restoration.given_back import given_back
from medgen.restoration.restore import restore
from tests.models.test_restorer import small_restorer

SIZE, NOISE = (40, 40, 40), 0.05
EQUAL = (1.0, 1.0, 1.0)


def flat() -> Tensor:
    """Tissue with air around: what a denoiser that lost the lesion gives."""
    image = torch.zeros(1, *SIZE)
    image[:, 8:32, 8:32, 8:32] = 0.5
    return image


def ball(diameter: float) -> Tensor:
    far = sum((axis - 20.0) ** 2 for axis in torch.meshgrid(*[torch.arange(40.0)] * 3, indexing="ij"))
    return (far.sqrt() <= diameter / 2)[None]


def rician(clean: Tensor) -> Tensor:
    return RicianNoise(NOISE).sample(clean, [torch.Generator().manual_seed(1)])


@pytest.mark.parametrize(("diameter", "least"), [(4.0, 0.35), (6.0, 0.5), (10.0, 0.65)])
@pytest.mark.parametrize("sign", [1, -1])
def test_a_lesion_comes_back(diameter: float, least: float, sign: int) -> None:
    lesion = ball(diameter)
    made, _ = given_back(rician(flat() + sign * 0.1 * lesion), flat(), NOISE, EQUAL, magnitude=True)
    kept = float(made[lesion].mean() - 0.5) / (sign * 0.1)
    assert least < kept < 1.1


def test_little_noise_comes_back_and_none_in_air() -> None:
    clean = flat()
    made, came = given_back(rician(clean), clean, NOISE, EQUAL, magnitude=True)
    inside = torch.zeros_like(clean, dtype=torch.bool)
    inside[:, 12:28, 12:28, 12:28] = True
    error = float((made - clean)[inside].square().mean().sqrt())
    assert 0.15 * NOISE < error < 0.28 * NOISE
    assert error == pytest.approx(float(came[inside].mean()), rel=0.1)
    assert float(made[:, :4].max()) == float(came[:, :4].max()) == 0
    assert abs(float((made - clean)[inside].mean())) < 0.05 * NOISE  # the mean of Rician noise is no lesion


def test_signed_values_have_gaussian_noise() -> None:
    clean = -flat() - 0.5
    noisy = clean + NOISE * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    made, came = given_back(noisy, clean, NOISE, EQUAL, magnitude=False)
    assert float((made - clean).square().mean().sqrt()) == pytest.approx(float(came.mean()), rel=0.1)
    assert float(made.max()) < 0


def test_thick_slices_are_not_averaged_over() -> None:
    clean = torch.full((1, *SIZE), 0.5)
    noisy = clean.clone()
    noisy[..., 20] += 0.2
    made, _ = given_back(noisy, clean, NOISE, (0.5, 0.5, 5.0), magnitude=False)
    assert float((made - clean)[..., 19].abs().max()) < 1e-3
    assert float(made[0, 20, 20, 20]) == pytest.approx(0.7, abs=1e-3)


def test_without_noise_nothing_is_done() -> None:
    restored = flat()
    made, came = given_back(restored + 1, restored, 0.0, EQUAL, magnitude=True)
    assert torch.equal(made, restored)
    assert not came.any()


def test_a_restored_scan_has_it() -> None:
    """What ``restore`` gives is the network's answer with the rest of the scan given back."""
    model = small_restorer()
    clean = flat() + 0.1 * ball(10.0)
    scan = MetaTensor(rician(clean), affine=torch.eye(4))
    made = restore(scan, "denoise", model, noise_level=0.08, guard="off")
    top = bright_end(scan.as_tensor())
    unit = scan.as_tensor() / top
    answer, error = model.restored(unit, 0.08)
    wanted, came = (part * top for part in given_back(unit, answer, 0.08, EQUAL, magnitude=True))
    torch.testing.assert_close(made.image.as_tensor(), wanted, atol=2e-4, rtol=0)
    assert float((wanted - answer * top).abs().max()) > 0.01
    assert made.std is not None
    assert error is not None
    torch.testing.assert_close(made.std.as_tensor(), ((error * top).square() + came.square()).sqrt(), atol=2e-4, rtol=0)


def test_not_by_one_that_saw_noisy_scans_alone() -> None:
    model = small_restorer(learns_from="sure", variance=False, interval_factor=None)
    scan = MetaTensor(rician(flat()), affine=torch.eye(4))
    made = restore(scan, "denoise", model, noise_level=0.08, guard="off")
    top = bright_end(scan.as_tensor())
    answer, _ = model.restored(scan.as_tensor() / top, 0.08)
    torch.testing.assert_close(made.image.as_tensor(), answer.clamp(min=0) * top, atol=2e-4, rtol=0)
