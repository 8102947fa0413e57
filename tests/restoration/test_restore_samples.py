"""Posterior samples by a task's word or an operator: units, what stays, seeds, files, doubts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from scipy.ndimage import gaussian_filter

from medgen.checks import MedgenError
from medgen.io.findings import Refused
from medgen.models import load_model, save_model
from medgen.models.restorer import RestorerModel
from medgen.models.weights import joined_state
from medgen.operators import Blur, CartesianKSpace, Chain, Mask, Phase, ThroughPlane, cartesian_mask
from medgen.restoration import restore_measured
from medgen.restoration.batch import restore_batch
from medgen.restoration.consistency import denoised_check, slices_check
from medgen.restoration.denoiser_prior import continued, denoiser_of, restorer_prior
from medgen.restoration.restore import restore
from medgen.restoration.settings import RestoreSettings
from tests.models.test_restorer import small_restorer
from tests.restoration.mixed_inputs import series
from tests.restoration.small_models import small_model

SIZE = (20, 18, 16)
AFFINE = torch.diag(torch.tensor([-1.0, 1.0, 1.0, 1.0], dtype=torch.float64))


def scan(*size: int, affine: torch.Tensor = AFFINE) -> MetaTensor:
    values = np.random.default_rng(0).random((1, *(size or SIZE))) * 700
    return MetaTensor(torch.from_numpy(gaussian_filter(values, (0, 1, 1, 1))).float(), affine=affine)


def hole(volume: MetaTensor) -> MetaTensor:
    marked = torch.zeros(volume.shape)
    marked[:, 7:12, 7:12, 6:11] = 1
    return MetaTensor(marked, affine=volume.affine)


def test_samples_of_a_noisy_scan_are_in_its_unit() -> None:
    seen: list[tuple[int, int]] = []
    made = restore(
        scan(), "denoise", small_restorer(), samples=3, noise_level=0.05,
        callback=lambda done, total: seen.append((done, total)),
    )  # fmt: skip
    ten = restore(MetaTensor(10 * scan().as_tensor(), affine=AFFINE), "denoise", small_restorer(), samples=3,
                  noise_level=0.05)  # fmt: skip
    assert seen[-1] == (48, 48)
    assert made.samples is not None
    torch.testing.assert_close(made.image.as_tensor(), made.samples.as_tensor().mean(0, keepdim=True))
    torch.testing.assert_close(ten.image.as_tensor(), 10 * made.image.as_tensor(), rtol=1e-3, atol=0.5)
    assert float(made.std.mean()) > 0  # type: ignore[union-attr]
    assert float(made.samples.min()) >= 0, "a magnitude stays one"


def test_the_image_is_the_mean_of_the_samples_where_a_magnitude_is_dark_too() -> None:
    volume = scan()
    volume[:, : volume.shape[1] // 2] *= 0.01
    made = restore(volume, "denoise", small_restorer(), samples=3, noise_level=0.05)
    assert made.samples is not None
    assert made.std is not None
    drawn = made.samples.as_tensor()
    assert float((drawn == 0).float().mean()) > 0.01, "some are at the end of what a magnitude can be"
    torch.testing.assert_close(made.image.as_tensor(), drawn.mean(0, keepdim=True))
    torch.testing.assert_close(made.std.as_tensor(), drawn.std(0, keepdim=True))


@pytest.mark.parametrize("options", [{"slice_profile": "gaussian"}, {"seed": 7}, {"target_spacing": 1.0}])
def test_what_a_task_does_not_heed_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(Refused) as caught:
        restore(scan(), "denoise", small_restorer(), **options)
    assert caught.value.code == "WRONG_OPTION"


def test_a_gaussian_is_denoised_to_its_closed_form() -> None:
    """Voxels of deviation 0.2 about 0.5 with noise of 0.1: the reverse diffusion draws from their posterior."""

    class Exact(RestorerModel):
        def denoise(self, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
            level = sigma.reshape(-1, 1, 1, 1, 1) ** 2
            return (0.04 * x + level * 0.5) / (0.04 + level)

    model = small_restorer()
    exact = Exact(model.spec, model.networks, model.device)
    clean = 0.5 + 0.2 * torch.randn(1, 24, 24, 24, generator=torch.Generator().manual_seed(0))
    noisy = clean + 0.1 * torch.randn(1, 24, 24, 24, generator=torch.Generator().manual_seed(1))
    top = float(noisy.abs().quantile(0.999))
    volume = MetaTensor(noisy / top, affine=AFFINE)  # whose unit is the model's, but for a factor near 1
    scaled = Exact(model.spec, model.networks, model.device)
    scaled.denoise = lambda x, sigma: exact.denoise(x * top, sigma * top) / top  # type: ignore[method-assign]
    made = restore(volume, "denoise", scaled, samples=12, noise_level=0.1 / top)
    expected = (0.04 * noisy + 0.01 * 0.5) / 0.05 / top
    deviation = (0.04 * 0.01 / 0.05) ** 0.5 / top
    inside = (noisy / top).abs() > 0.05  # where no value was clamped
    assert float((made.image.as_tensor() - expected)[inside].abs().mean()) < deviation / 3
    assert float(made.std.as_tensor()[inside].mean()) == pytest.approx(deviation, rel=0.1)  # type: ignore[union-attr]


def test_thin_slices_of_each_sample_measured_again_are_the_scan() -> None:
    affine = torch.diag(torch.tensor([1.0, 1.0, 4.0, 1.0], dtype=torch.float64))
    volume = scan(18, 18, 5, affine=affine)
    thinner = small_restorer(restores="superres", given=[{"through_plane": {}}])
    made = restore(volume, "superres", thinner, samples=2, prior=small_restorer(), target_spacing=1.0)
    assert made.samples is not None
    assert made.samples.shape == (2, 18, 18, 20)
    again = ThroughPlane((18, 18, 20), 4.0, profile="gaussian", slices=5)
    for one in made.samples.as_tensor():
        back = again.forward(one[None, None])[0]
        assert float((back - volume.as_tensor()).abs().max()) < 0.01 * float(volume.max())
    assert not torch.equal(made.samples[0], made.samples[1])


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        ("motion", {"samples": 2}, "not for 'motion'"),
        ("denoise", {"samples": -1}, "0 or more"),
        ("denoise", {"samples": 2, "prior": "x"}, "prior is for task 'superres'"),
        ("superres", {"prior": "x"}, "prior goes with samples"),
        ("denoise", {"noise_std": 3.0}, "noise_std does not go with task 'denoise'"),
        ("sharpen", {}, "operator must be one of"),
        ("superres", {}, "is for task 'denoise', not for 'superres'"),
        (Blur(SIZE, fwhm_mm=2.0), {"noise_level": 0.1, "noise_std": 1.0}, "noise_level does not go with an operator"),
        (Blur(SIZE, fwhm_mm=2.0), {}, "needs noise_std"),
    ],
)
def test_what_does_not_suit_is_refused(task: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(MedgenError, match=message):
        restore(scan(), task, small_restorer(), **options)


def test_samples_of_noise_need_a_denoiser_of_volumes() -> None:
    with pytest.raises(Refused, match="samples need a denoiser of volumes, 'head-ct-denoise'"):
        restore(scan(), "denoise", "head-ct-denoise", samples=2, modality="CT", guard="off")


def test_an_operator_is_undone_by_a_denoiser() -> None:
    blur, volume = Blur(SIZE, fwhm_mm=3.0), scan()
    y = MetaTensor(blur.forward(volume.as_tensor()[None])[0], affine=AFFINE)
    one = restore(y, blur, small_restorer(), noise_std=5.0)
    assert one.image.shape == volume.shape
    assert torch.equal(one.image.affine, AFFINE)
    assert one.samples is None
    assert one.figures["residual_ratio"] <= 1.1
    both = restore(y, blur, small_restorer(), noise_std=5.0, samples=2)
    assert both.samples is not None
    assert both.samples.shape == (2, *SIZE)
    assert both.provenance["restored"] == "diffpir"
    assert both.std is not None


def test_a_hole_as_an_operator_and_flat_k_space() -> None:
    volume = scan()
    mask = Mask(hole(volume)[0].as_tensor())
    y = MetaTensor(mask.forward(volume.as_tensor()[None])[0], affine=AFFINE)
    made = restore(y, mask, small_restorer(), noise_std=0.0, samples=1)
    kept = mask.observed
    assert torch.equal(made.image.as_tensor()[0][kept], volume.as_tensor()[0][kept])
    pattern = cartesian_mask((16, 16), 2.0, torch.Generator().manual_seed(0))
    operator = Chain([Phase(torch.full((16, 16), 0.3)), CartesianKSpace(pattern)])
    y = operator.forward(scan(16, 16, 1)[None, ..., 0].as_tensor())[0]
    with pytest.raises(MedgenError, match="a diffusion model draws samples"):
        restore(y, operator, small_model("image", dims=2), noise_std=5.0)
    drawn = restore(y, operator, small_model("image", dims=2), noise_std=5.0, samples=1)
    assert drawn.image.shape == (1, 16, 16)
    assert drawn.std is None


@pytest.mark.parametrize("samples", [0, 1])
def test_a_phase_is_corrected_on_the_way(samples: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A phase that is wrong by a smooth bump is found; samples are of the corrected operator, too."""
    size, axis = (16, 16, 12), torch.linspace(-1, 1, 16)
    ball = (axis[:, None, None].square() + axis[:, None].square() + torch.linspace(-1, 1, 12).square()) < 0.8
    bump = 0.5 * axis[:, None, None].mul(2).square().neg().exp().expand(size)
    lines = CartesianKSpace(cartesian_mask(size, 2.0, torch.Generator().manual_seed(0), axes=(0,), center_fraction=0.3))
    y = Chain([Phase(bump), lines]).forward(100.0 * ball[None, None])[0]
    given = Chain([Phase(torch.zeros(size)), lines])
    seen: list[Any] = []
    plain = restore_measured.restore_samples

    def watched(y: torch.Tensor, operator: Any, *given: Any, **named: Any) -> Any:
        seen.append(operator)
        return plain(y, operator, *given, **named)

    monkeypatch.setattr(restore_measured, "restore_samples", watched)
    made = restore(y, given, small_restorer(), noise_std=0.5, samples=samples)
    if samples:
        assert float((seen[0].operators[0].phase - bump)[ball].abs().mean()) < 0.5 * float(bump[ball].mean())
    else:
        assert made.figures["phase_corrected_rad"] > 0.5 * float(bump[ball].square().mean().sqrt())
        assert made.provenance["phase_width"] == 3.0


def test_a_restorer_of_slices_serves_volumes() -> None:
    model = load_model("head-ct-denoise", "cpu")
    assert isinstance(model, RestorerModel)
    x = 0.5 + 0.05 * torch.randn(1, 1, 4, 8, 6, generator=torch.Generator().manual_seed(0))
    made = denoiser_of(model, 3)(x, torch.tensor([0.05]))
    across = [torch.cat([model.denoise(s, torch.tensor([0.05]))[..., None] for s in x.unbind(4)], -1)]
    across.append(torch.stack([model.denoise(s, torch.tensor([0.05])) for s in x.unbind(3)], 3))
    torch.testing.assert_close(made, sum(across) / 2)
    assert float(made.std()) < 0.7 * float(x.std())


def test_a_hole_in_a_slice_that_lies_in_space() -> None:
    hidden = torch.zeros(16, 16)
    hidden[6:9, 6:9] = 1
    y = MetaTensor(torch.rand(1, 16, 16, generator=torch.Generator().manual_seed(0)), affine=AFFINE)
    made = restore(y, Mask(hidden), "head-ct-denoise", noise_std=0.0)
    assert torch.equal(made.image.as_tensor()[0][hidden == 0], y.as_tensor()[0][hidden == 0])


def test_a_prior_has_derivatives_for_those_who_ask() -> None:
    model = small_restorer()
    x = torch.rand(1, 1, 16, 16, 16, generator=torch.Generator().manual_seed(0)).requires_grad_(True)
    made = model.denoise(x, torch.tensor([0.05]))
    (slope,) = torch.autograd.grad(made.sum(), x)
    assert float(slope.abs().max()) > 0
    assert not model.denoise(x.detach(), torch.tensor([0.05])).requires_grad
    with pytest.raises(MedgenError, match="that denoises images of 2 axes"):
        restorer_prior(model, torch.zeros(1, 1, 8, 8))


def test_an_answer_that_is_worse_than_the_noise_does_little() -> None:
    model, x = small_restorer(), torch.rand(1, 1, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    moved = [float((model.denoise(x, torch.tensor([level])) - x).abs().mean()) for level in (1e-4, 10.0)]
    whole = float((model.restored(x[0], 10.0)[0] - x[0]).abs().mean())
    assert moved[0] < 1e-6
    assert moved[1] == pytest.approx(whole, rel=1e-3)


def test_a_flat_hole_is_continued() -> None:
    ramp = torch.arange(12.0).reshape(1, 1, 12, 1).expand(1, 1, 12, 12)
    marked = torch.zeros(12, 12, dtype=torch.bool)
    marked[4:8, 4:8] = True
    torch.testing.assert_close(continued(ramp.masked_fill(marked, 99), marked), ramp, atol=0.01, rtol=0)


def test_what_was_taken_away_is_noise_or_is_told() -> None:
    clean = torch.full((1, 32, 32, 32), 0.5)
    noisy = clean + 0.05 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    figures, remarks = denoised_check(noisy, clean, 0.05)
    assert figures["residual_ratio"] == pytest.approx(1, abs=0.02)
    assert remarks == ()
    noisy[:, 14:18, 14:18, 14:18] += 0.15  # a lesion that the restored image lacks
    figures, remarks = denoised_check(noisy, clean, 0.05)
    assert figures["removed_voxels"] > 12
    assert "in 1 places of" in remarks[0]
    assert denoised_check(clean, clean, 0.0) == ({}, ())


def test_thin_slices_that_contradict_the_thick_ones_are_told() -> None:
    slices = ThroughPlane((8, 8, 16), 4.0)
    fine = 0.2 + 0.6 * torch.rand(1, 1, 8, 8, 16, generator=torch.Generator().manual_seed(0))
    measured = slices.forward(fine)
    assert slices_check(measured, fine, slices)[1] == ()
    figures, remarks = slices_check(measured, fine.flip(-1), slices)
    assert figures["residual_before"] > figures["residual_interpolated"]
    assert f"by {figures['residual_before']:.3f} of the bright end" in remarks[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    made, path = small_restorer(), tmp_path_factory.mktemp("prior") / "small"
    save_model(path, made.spec, joined_state(made.networks))
    return str(path)


def test_samples_of_a_tree_lie_in_a_folder_of_their_own(folder: str, tmp_path: Path) -> None:
    series(tmp_path / "in" / "s", 1)
    settings = RestoreSettings("denoise", model=folder, samples=1, noise_level=0.05, device="cpu", guard="off")
    summary = restore_batch(tmp_path / "in", tmp_path / "out", settings)
    (row,) = summary.report["cases"]
    assert row["status"] == "restored", row
    assert f"samples/{row['name']}_sample-1.nii.gz" in row["outputs"]
    assert restore_batch(tmp_path / "in", tmp_path / "out", settings, resume=True).kept == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"task": "motion", "samples": 2}, "whose degradation is not known exactly. Leave it out"),
        ({"task": "denoise", "seed": 1}, "--seed goes with --samples"),
        ({"task": "denoise", "samples": 2, "prior": "x"}, "--prior is for task 'superres'"),
        ({"task": "superres", "prior": "x"}, "--prior goes with --samples"),
        ({"task": "superres", "samples": 2, "prior": "head-ct-denoise x"}, "head-ct-denoise x"),
        ({"task": "denoise", "samples": 2, "method": "classical"}, "--samples goes with --method model"),
        ({"task": "denoise", "samples": -1}, "0 or above"),
    ],
)
def test_settings_that_do_not_suit(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(MedgenError, match=message):
        RestoreSettings(**settings)
