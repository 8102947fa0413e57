"""Losses that know no truth are compared with the truth; denoisers learn from noisy scans alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from monai.data import MetaTensor
from torch import Tensor
from torch.nn import functional as F

from medgen.checks import MedgenError
from medgen.models import load_model
from medgen.operators.noise import GaussianNoise, RicianNoise
from medgen.restoration.restore import restore
from medgen.trainers import train
from medgen.trainers.config import load_config
from medgen.trainers.data import Items, make_source, make_validation_source
from medgen.trainers.noisy_scans import NoisyScanSource
from medgen.trainers.self_supervised import Measured, blind_spots, masked_error, probe, sure_error
from tests.trainers.conftest import write_volume

LEVEL = 0.1
CONTENT: dict[str, Any] = {
    "family": "restorer",
    "name": "tiny-self",
    "restores": "denoise",
    "learns_from": "noise2void",
    "noise": "gaussian",
    "variance": False,
    "grid": {"spacing": [1.0, 1.0, 1.0], "size": [16, 16, 16]},
    "margin": 0,
    "packing": "none",
    "variety": {"contrast": 0.0},
    "net": {"_target_": "RestorationUNet", "channels": [8, 16], "num_res_blocks": 1},
    "batch_size": 2,
    "steps": 4,
    "seed": 3,
    "held_out_endings": [1, 6],
    "optimisation": {"learning_rate": 5e-3, "warmup_steps": 2, "ema_decay": 0.9},
}


def waves(number: int, size: int = 20) -> np.ndarray:
    """``(size, size, size)`` float32, from 100 to 300: waves of 10 voxels and more."""
    draws = np.random.default_rng(number)
    place = np.indices((size,) * 3)
    parts = [np.sin(np.tensordot(draws.uniform(-0.35, 0.35, 3), place, 1) + draws.uniform(0, 6.3)) for _ in range(3)]
    return (200 + 100 * np.mean(parts, 0)).astype(np.float32)


def noisy(number: int) -> np.ndarray:
    """The waves with noise of 30."""
    clean = waves(number)
    return clean + 30 * np.random.default_rng(100 + number).standard_normal(clean.shape).astype(np.float32)


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noisy scans of people 1 to 6."""
    folder = tmp_path_factory.mktemp("noisy")
    for number in range(1, 7):
        write_volume(folder / "images" / f"{number}.nii.gz", noisy(number))
    return folder


@pytest.fixture
def config(tmp_path: Path, scans: Path) -> Any:
    def write(**changes: Any) -> Path:
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump({**CONTENT, "data": str(scans), **changes}))
        return path

    return write


def smooth(y: Tensor) -> Tensor:
    """A linear denoiser."""
    return F.avg_pool3d(F.pad(y, [1] * 6, mode="replicate"), 3, stride=1)


def shrunk(y: Tensor) -> Tensor:
    """Soft threshold around the middle of the range."""
    return 0.5 + F.softshrink(y - 0.5, 0.15)


def identity(y: Tensor) -> Tensor:
    return y


def clean_image(least: float) -> Tensor:
    """``(1, 1, 24, 24, 24)``, blocks of values from ``least`` to 1."""
    coarse = torch.rand(1, 1, 6, 6, 6, generator=torch.Generator().manual_seed(1))
    return least + (1 - least) * F.interpolate(coarse, scale_factor=4.0, mode="nearest")


def measure(clean: Tensor, noise: str, seed: int) -> Measured:
    cls = GaussianNoise if noise == "gaussian" else RicianNoise
    noisy = cls(LEVEL).sample(clean, [torch.Generator().manual_seed(seed)])
    return Measured(noisy, torch.tensor([LEVEL]), noise)


@pytest.mark.parametrize("denoise", [smooth, shrunk, identity])
@pytest.mark.parametrize(("noise", "least", "tolerance"), [("gaussian", 0.0, 0.02), ("rician", 0.3, 0.04)])
def test_sure_is_the_true_error_on_average(denoise: Any, noise: str, least: float, tolerance: float) -> None:
    """Over 40 draws of 13,824 voxels, within ``tolerance`` of the squared noise level."""
    clean = clean_image(least)
    estimated, true = [], []
    for seed in range(40):
        measured = measure(clean, noise, seed)
        direction = probe(clean.shape, torch.Generator().manual_seed(1000 + seed))
        estimated.append(float(sure_error(measured, denoise, direction)))
        error = measured.expected(denoise(measured.noisy)) - measured.expected(clean)
        true.append(float(error.square().mean()))
    assert np.mean(estimated) == pytest.approx(np.mean(true), abs=tolerance * LEVEL**2)
    assert np.mean(true) > 0.02 * LEVEL**2


def test_the_error_of_blind_spots_is_the_true_one_on_average() -> None:
    clean = clean_image(0.0)
    estimated, true = [], []
    for seed in range(60):
        measured = measure(clean, "gaussian", seed)
        shown, blind = blind_spots(measured.noisy[0], torch.Generator().manual_seed(seed))
        signal = smooth(shown[None])
        estimated.append(float(masked_error(measured, signal, blind[None])))
        true.append(float((signal - clean).square()[blind[None] > 0].mean()))
    assert np.mean(estimated) == pytest.approx(np.mean(true), abs=0.1 * LEVEL**2)


def test_rician_noise_where_there_is_no_signal() -> None:
    """In air the variance is 0.43 of that of each part, and the answer 0 explains the mean of what is measured."""
    air = torch.zeros(1, 1, 32, 32, 32)
    measured = measure(air, "rician", 0)
    assert float(measured.variance().mean()) == pytest.approx((2 - np.pi / 2) * LEVEL**2, rel=0.1)
    assert float(measured.expected(air).mean()) == pytest.approx(float(measured.noisy.mean()), rel=0.01)


def test_what_was_cut_out_has_no_noise() -> None:
    noisy = torch.rand(1, 1, 8, 8, 8, generator=torch.Generator().manual_seed(0)) + 0.5
    noisy[..., :4] = 0
    measured = Measured(noisy, torch.tensor([LEVEL]), "rician")
    assert bool((measured.variance()[..., :4] == 0).all())
    assert bool((measured.variance()[..., 4:] > 0).all())
    assert torch.equal(measured.expected(noisy)[..., :4], noisy[..., :4])


@pytest.mark.parametrize("size", [(16, 16, 16), (13, 9, 4), (32, 40), (9, 17)])
def test_blind_spots_do_not_show_their_own_voxel(size: tuple[int, ...]) -> None:
    image = torch.arange(float(np.prod(size))).reshape(1, *size)
    before = image.clone()
    shown, blind = blind_spots(image, torch.Generator().manual_seed(4))
    hidden = blind > 0
    assert torch.equal(image, before)
    assert torch.equal(shown[~hidden], image[~hidden])
    places, sources = torch.nonzero(hidden), torch.stack(torch.unravel_index(shown[hidden].long(), image.shape), 1)
    distance = (places - sources).abs().amax(1)
    assert int(distance.min()) >= 1
    assert int(distance.max()) <= 2
    assert float(blind.mean()) == pytest.approx(1 / 8, rel=0.25)


def test_a_network_cannot_see_its_own_voxel() -> None:
    """Other values at the blind spots change nothing of what the network is shown, anywhere."""
    first = torch.rand(1, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    _, blind = blind_spots(first, torch.Generator().manual_seed(5))
    second = first + 3 * blind
    shown, again = (blind_spots(image, torch.Generator().manual_seed(5))[0] for image in (first, second))
    assert not torch.equal(first, second)
    assert torch.equal(shown, again)


@pytest.mark.parametrize("learns_from", ["noise2void", "sure"])
def test_training_on_noisy_scans_comes_nearer_to_the_hidden_truth(
    config: Any, tmp_path: Path, learns_from: str
) -> None:
    path = config(learns_from=learns_from, steps=60)
    train(path, tmp_path / "run", progress=False, device="cpu")
    model: Any = load_model(tmp_path / "run" / "model", device="cpu")
    volume = MetaTensor(torch.from_numpy(noisy(1))[None], affine=torch.eye(4, dtype=torch.float64))  # held out
    made = restore(volume, "denoise", model)
    truth = torch.from_numpy(waves(1))[None]
    before, after = (float((x.as_tensor() - truth).square().mean()) for x in (volume, made.image))
    assert after < 0.3 * before
    assert made.std is None
    assert made.figures["noise_level"] == pytest.approx(30 / float(volume.quantile(0.999)), rel=0.15)
    assert made.remarks == ()
    assert model.spec.learns_from == learns_from


def test_nothing_is_hidden_in_what_is_shown(config: Any) -> None:
    loaded = load_config(config())
    source = make_validation_source(loaded, make_source(loaded))
    item = Items(source, loaded, "validation")[0]
    assert source.people == 1
    assert torch.equal(item["input"], item["image"])


def test_items_are_functions_of_their_number(config: Any) -> None:
    for learns_from, key in (("noise2void", "blind"), ("sure", "probe")):
        loaded = load_config(config(learns_from=learns_from))
        first, second = (Items(make_source(loaded), loaded) for _ in range(2))
        second[7]
        assert key in first[5]
        for name, value in first[5].items():
            assert torch.equal(value, second[5][name]), name


def test_scans_are_not_resampled(config: Any, tmp_path: Path) -> None:
    data = tmp_path / "other"
    write_volume(data / "images" / "2.nii.gz", noisy(2), np.diag([1.0, 1.0, 3.0, 1.0]))
    with pytest.raises(MedgenError, match=r"not resampled.*Got \[1.0, 1.0, 3.0\]"):
        make_source(load_config(config(data=str(data))))
    flat = load_config(config(data=str(data), grid={"spacing": [1.0, 1.0], "size": [16, 16]}))
    source = make_source(flat)
    assert isinstance(source, NoisyScanSource)
    assert source.scans[0].across == 3
    patch = source.item(0)["image"]
    assert any((patch[0] == part).all() for part in _windows_and_mirrors(source.scans[0].values[0], patch))


def _windows_and_mirrors(volume: Tensor, patch: Tensor) -> Any:
    """Every 16 x 16 window of every slice, turned every way, as bright as the patch."""
    for plane in volume.unbind(2):
        for part in plane.unfold(0, 16, 1).unfold(1, 16, 1).flatten(0, 1):
            for turned in (part, part.T):
                for axes in ([], [0], [1], [0, 1]):
                    yield turned.flip(axes) * (patch.max() / part.max())


def test_a_clean_scan_is_refused(config: Any, tmp_path: Path) -> None:
    write_volume(tmp_path / "clean" / "images" / "2.nii.gz", waves(2))
    with pytest.raises(MedgenError, match=r"no noise was found in '2.nii.gz'"):
        make_source(load_config(config(data=str(tmp_path / "clean"))))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"restores": "motion"}, "restores"),
        ({"degradations": [{"rician": {}}]}, "degradations"),
        ({"variance": True}, "variance"),
        ({"variety": {"contrast": 0.3}}, "variety.contrast"),
        ({"variety": {"contrast": 0.0, "population": 0.2}}, "variety.population"),
        ({"scaling": "hounsfield", "noise": "rician"}, "noise"),
        ({"data": "colin27"}, "noisy scans"),
    ],
)
def test_what_cannot_be_meant_is_refused(config: Any, change: dict[str, Any], message: str) -> None:
    with pytest.raises(MedgenError, match=message):
        load_config(config(**change))
