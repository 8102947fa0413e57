"""Posterior samples with trained-model plumbing: units, axes, patches, seeds, intervals."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from torch import Tensor

from medgen.checks import MedgenError
from medgen.diffusion.schedules import logsnr_sigmas
from medgen.intensity import IntensityWindow
from medgen.operators import Blur, CartesianKSpace, Chain, GaussianNoise, Mask, Phase, ThroughPlane, cartesian_mask
from medgen.restoration.prior import Prior, decoded, model_prior
from medgen.restoration.sampled import PosteriorSamples, predictive_factor, restore_samples
from tests.restoration.small_models import small_model

SIZE = (12, 10, 8)
AFFINE = np.diag([4.0, 4.0, 4.0, 1.0])


def gaussian(size: tuple[int, ...] = SIZE, mean: float = 0.4, std: float = 0.2, steps: int = 16) -> Prior:
    """Independent voxels of the model's 0..1."""

    def denoise(z: Tensor, sigma: Tensor) -> Tensor:
        return z / (1 + sigma.reshape(-1, *[1] * (z.ndim - 1)) ** 2)

    return Prior(denoise, lambda z: mean + std * z, (1, *size), logsnr_sigmas(steps, 0.01, 20.0))


def scan(seed: int = 0) -> MetaTensor:
    values = 500 + 200 * torch.randn(1, *SIZE, generator=torch.Generator().manual_seed(seed))
    return MetaTensor(values, affine=torch.from_numpy(AFFINE))


def test_mean_and_deviation_are_the_closed_form_in_the_units_of_the_scan() -> None:
    y, noise, window = scan(), 100.0, IntensityWindow(0.0, 1000.0)
    made = restore_samples(
        y, Blur(SIZE, fwhm_mm=0.01), gaussian(mean=0.5), noise_std=noise, samples=16, window=window, consistent=False
    )
    share = 200**2 / (200**2 + noise**2)
    expected = 500 + share * (y.as_tensor() - 500)
    deviation = 200 * noise / np.hypot(200, noise)
    assert float((made.mean.as_tensor() - expected).abs().mean()) < deviation / 4
    assert float(made.std.mean()) == pytest.approx(deviation, rel=0.1)
    inside = (made.lower <= expected) & (expected <= made.upper)
    assert float(inside.float().mean()) > 0.95
    assert torch.equal(made.mean.affine, y.affine)
    assert made.mean.meta["synthetic"]
    assert made.provenance["restored"] == "pigdm"
    assert len(made.checks) == 16
    assert not made.remarks


def test_a_sample_is_a_function_of_its_own_seed() -> None:
    y, blur = scan(), Blur(SIZE, fwhm_mm=2.0)
    both = restore_samples(y, blur, gaussian(steps=5), noise_std=50.0, samples=2, seed=3)
    alone = restore_samples(y, blur, gaussian(steps=5), noise_std=50.0, samples=1, seed=4)
    assert torch.equal(both.samples[1], alone.samples[0])
    assert not torch.equal(both.samples[0], both.samples[1])
    assert float(alone.std.abs().max()) == 0


def test_what_a_mask_keeps_is_kept_to_the_bit() -> None:
    hole = torch.zeros(SIZE)
    hole[3:7, 3:7, 2:5] = 1
    y = Mask(hole).forward(scan()[None].as_tensor())[0]
    made = restore_samples(y, Mask(hole), gaussian(steps=5), noise_std=0.0, samples=2, affine=AFFINE)
    kept = hole == 0
    assert torch.equal(made.samples[:, kept], y[0][kept].expand(2, -1))
    assert float(made.std[0][~kept].min()) > 0
    assert made.checks == ()


def test_progress_counts_the_steps_of_all_samples() -> None:
    seen: list[tuple[int, int]] = []
    restore_samples(
        scan(), Blur(SIZE, fwhm_mm=2.0), gaussian(steps=4), noise_std=50.0, samples=2,
        callback=lambda done, total: seen.append((done, total)),
    )  # fmt: skip
    assert seen == [(i + 1, 8) for i in range(8)]


@pytest.mark.parametrize("task", ["image", "joint"])
@pytest.mark.parametrize("method", ["dps", "pigdm", "diffpir"])
def test_models_of_packed_voxels(task: str, method: str) -> None:
    y, blur = scan(), Blur(SIZE, fwhm_mm=6.0, spacing=4.0)
    made = restore_samples(y, blur, small_model(task), noise_std=50.0, samples=2, method=method)
    assert made.samples.shape == (2, *SIZE)
    assert bool(torch.isfinite(made.samples).all())
    rms = (y - blur.forward(made.samples[:, None])[:, 0]).square().mean().sqrt()
    assert float(rms) < 75  # made consistent to the noise


def test_slices_that_are_thicker_than_the_image() -> None:
    thick = ThroughPlane((12, 10, 16), 8.0, spacing_mm=4.0, axis=2)
    y = thick.forward(500 + 100 * torch.rand(1, 1, 12, 10, 16, generator=torch.Generator().manual_seed(0)))[0]
    made = restore_samples(y, thick, small_model("image"), noise_std=0.0, samples=1, affine=AFFINE)
    assert made.samples.shape == (1, 12, 10, 16)
    residual = y - thick.forward(made.samples[:, None])[:, 0]
    assert float(residual.abs().max()) < 0.5
    assert torch.equal(made.mean.affine, torch.from_numpy(AFFINE))


def test_k_space_with_a_known_phase() -> None:
    mask = cartesian_mask((16, 16), 2.0, torch.Generator().manual_seed(0))
    operator = Chain([Phase(torch.full((16, 16), 0.3)), CartesianKSpace(mask)], GaussianNoise(5.0))
    truth = 500 + 100 * torch.rand(1, 1, 16, 16, generator=torch.Generator().manual_seed(1))
    y = operator.sample(truth, [torch.Generator().manual_seed(2)])[0]
    made = restore_samples(y, operator, small_model("image", dims=2), noise_std=5.0, samples=1)
    assert made.samples.shape == (1, 16, 16)
    assert len(made.checks) == 1


def test_axes_are_turned_to_the_models() -> None:
    """The decoder's answer on a permuted, flipped grid is the same image in the world."""
    model = small_model("image", spacing=4.0)
    z = torch.randn(1, 8, 6, 5, 4, generator=torch.Generator().manual_seed(0))
    straight = model_prior(model, SIZE, AFFINE)
    turned_affine = AFFINE[:, [2, 0, 1, 3]].copy()
    turned_affine[:3, 0] *= -1
    turned = model_prior(model, (SIZE[2], SIZE[0], SIZE[1]), turned_affine)
    assert straight.shape == turned.shape
    # small-model needs multiples of 4: 12, 12, 8
    z = torch.randn(1, *straight.shape, generator=torch.Generator().manual_seed(0))
    image = straight.decode(z)
    assert image.shape == (1, 1, *SIZE)
    assert torch.equal(turned.decode(z), image.permute(0, 1, 4, 2, 3).flip(2))


def test_a_volume_larger_than_the_models_goes_in_patches() -> None:
    model = small_model("joint")
    prior = model_prior(model, (24, 16, 16))
    assert prior.provenance["patch"] == [16, 16, 16]
    z = torch.randn(1, *prior.shape, generator=torch.Generator().manual_seed(0))
    assert prior.denoise(z, torch.ones(1)).shape == z.shape
    assert "patch" not in model_prior(model, (16, 16, 16)).provenance
    y = 500 + 100 * torch.rand(1, 24, 16, 16, generator=torch.Generator().manual_seed(1))
    made = restore_samples(y, Blur((24, 16, 16), fwhm_mm=1.0), model, noise_std=50.0, samples=1, method="diffpir")
    assert made.samples.shape == (1, 24, 16, 16)


def test_decoding_with_derivatives_is_decoding() -> None:
    model = small_model("joint")
    given = model.codec.given_nothing((8, 8, 8))
    z = torch.randn(1, *model.shape(given), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(decoded(model, z, given), model.codec.decode_stack(z, given))


def test_intervals() -> None:
    samples = torch.arange(11.0).reshape(11, 1, 1, 1).expand(11, 2, 2, 2)
    made = PosteriorSamples(samples, torch.eye(4), coverage=0.8)
    wide = made.calibrated(2.0, 0.9)
    assert wide.coverage == 0.9
    torch.testing.assert_close(wide.upper - wide.lower, 4 * made.std)


def test_a_further_sample_lies_in_the_interval_as_often_as_is_said() -> None:
    drawn = torch.randn(6, 100, 100, 4, generator=torch.Generator().manual_seed(0))
    made = PosteriorSamples(drawn[:5], torch.eye(4))
    inside = (made.lower[0] <= drawn[5]) & (drawn[5] <= made.upper[0])
    assert float(inside.as_tensor().float().mean()) == pytest.approx(0.9, abs=0.01)
    assert predictive_factor(1) == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"method": "ddnm"}, "method must be one of dps, pigdm, diffpir"),
        ({"samples": 0}, "samples must be an integer above 0"),
        ({"measured": torch.zeros(1, 3, 3, 3)}, r"measured must have shape \(1, 12, 10, 8\)"),
        ({"measured": torch.full((1, *SIZE), float("nan"))}, "NaN or infinity"),
        ({"model": small_model("label_to_image")}, "must be of task image or joint"),
        ({"affine": np.diag([1.0, 1.0, 1.0, 1.0])}, r"voxels must be of the size of model .*\[4\.0, 4\.0, 4\.0\]"),
        ({"patch": (5, 8, 8)}, "patch must be 3 multiples of 4"),
        ({"model": gaussian(), "patch": (8, 8, 8)}, "patch is an option of a model"),
    ],
)
def test_what_does_not_suit_is_refused(arguments: dict[str, object], words: str) -> None:
    given = {
        "measured": scan(), "operator": Blur(SIZE, fwhm_mm=2.0), "model": small_model("image"), "noise_std": 50.0,
        **arguments,
    }  # fmt: skip
    with pytest.raises(MedgenError, match=words):
        restore_samples(**given)
