"""Restoration without a model: each method does what it is for, and nothing where there is nothing to do."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from medgen.checks import MedgenError
from medgen.restoration.classical import restore_classical
from medgen.restoration.settings import CLASSICAL


def volume_of(values: np.ndarray, spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)) -> MetaTensor:
    affine = torch.diag(torch.tensor([*spacing, 1.0], dtype=torch.float64))
    return MetaTensor(torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))[None], affine=affine)


def blocks(shape: tuple[int, int, int] = (24, 20, 16)) -> np.ndarray:
    """Flat regions of 100, 300 and 600."""
    values = np.full(shape, 100.0)
    values[6:18, 4:16, 3:13] = 300
    values[10:16, 8:14, 5:11] = 600
    return values


def test_denoising_estimates_the_noise_and_lowers_it() -> None:
    clean = blocks((32, 32, 24))
    noisy = clean + np.random.default_rng(0).normal(0, 30, clean.shape)
    done = restore_classical(volume_of(noisy), "denoise")
    error = np.sqrt(np.mean((done.image.numpy()[0] - clean) ** 2))
    assert error < 12
    assert done.figures["noise_level"] == pytest.approx(30 / np.percentile(noisy, 99.9), rel=0.15)
    assert done.std is None
    assert not done.provenance["synthetic"]
    stated = restore_classical(volume_of(noisy), "denoise", noise_level=1e-4)
    np.testing.assert_allclose(stated.image.numpy()[0], noisy, atol=1)


def test_denoising_a_constant_changes_nothing() -> None:
    done = restore_classical(volume_of(np.full((8, 8, 8), 7.0)), "denoise")
    assert done.figures == {"noise_level": 0.0}
    assert bool((done.image == 7).all())


def test_bias_field_is_removed() -> None:
    clean = blocks((40, 40, 32)) * (1 + 0.01 * np.random.default_rng(0).normal(size=(40, 40, 32)))
    field = np.exp(0.4 * np.linspace(-1, 1, 40))[:, None, None]
    done = restore_classical(volume_of(clean * field, (4.0, 4.0, 4.0)), "bias")
    inside = blocks((40, 40, 32)) >= 300

    def spread(values: np.ndarray) -> float:
        return float(np.std(np.log(values[inside] / clean[inside])))

    assert spread(done.image.numpy()[0]) < 0.4 * spread(clean * field)


def test_superres_is_a_cubic_spline_through_the_slices() -> None:
    z = np.arange(12)
    slices = np.broadcast_to((z**3 - 20.0 * z**2), (5, 6, 12))
    done = restore_classical(volume_of(slices, (1.0, 1.0, 4.0)), "superres")
    assert done.image.shape == (1, 5, 6, 48)
    np.testing.assert_allclose(np.diag(done.image.affine), [1, 1, 1, 1])
    place = (done.image.affine[2, 3].item() + np.arange(48)) / 4  # in slices
    inside = (place >= 0) & (place <= 11)
    np.testing.assert_allclose(
        done.image.numpy()[0, 2, 3, inside], np.clip((place**3 - 20 * place**2)[inside], slices.min(), 0), atol=0.05
    )
    assert restore_classical(volume_of(slices, (1.0, 1.0, 4.0)), "superres", target_spacing=2).image.shape[-1] == 24


def test_superres_along_any_axis_keeps_the_centre() -> None:
    values = np.random.default_rng(0).normal(size=(5, 12, 12))
    volume = volume_of(values, (5.0, 1.5, 1.5))
    done = restore_classical(volume, "superres", target_spacing=2.0)
    middle = [(n - 1) / 2 for n in done.image.shape[1:]]
    before = volume.affine.numpy() @ [2, 5.5, 5.5, 1]
    np.testing.assert_allclose(done.image.affine.numpy() @ [*middle, 1], before, atol=1e-9)


def test_hole_is_continued_and_the_rest_kept() -> None:
    x, y, z = np.meshgrid(*(np.arange(n) for n in (16, 15, 14)), indexing="ij")
    plane = 2.0 * x + 3 * y - z + 50
    hole = np.zeros(plane.shape, np.uint8)
    hole[5:10, 5:10, 4:9] = 1
    given = volume_of(np.where(hole, -999, plane))
    done = restore_classical(
        given, "inpaint", inpaint_mask=MetaTensor(torch.from_numpy(hole)[None], affine=given.affine)
    )
    np.testing.assert_allclose(done.image.numpy()[0], plane, atol=0.1)
    assert torch.equal(done.image.as_tensor()[0][hole == 0], given.as_tensor()[0][hole == 0])
    assert done.provenance["synthetic"]


@pytest.mark.parametrize(
    ("task", "values", "match"),
    [
        ("motion", np.ones((4, 4, 4)), "task must be one of"),
        ("superres", np.ones((4, 4, 4)), "twice|2 times"),
        ("inpaint", np.ones((4, 4, 4)), "--mask"),
        ("bias", np.zeros((8, 8, 8)), "above 0"),
    ],
)
def test_refusals(task: str, values: np.ndarray, match: str) -> None:
    with pytest.raises(MedgenError, match=match):
        restore_classical(volume_of(values), task)


@pytest.mark.parametrize("task", CLASSICAL)
def test_same_scan_same_bytes(task: str) -> None:
    noisy = blocks() + np.random.default_rng(1).normal(0, 5, (24, 20, 16))
    given, hole = volume_of(noisy, (1.0, 1.0, 3.0)), torch.zeros(1, 24, 20, 16)
    hole[:, 10:14, 8:12, 6:9] = 1
    mask = MetaTensor(hole, affine=given.affine) if task == "inpaint" else None
    before = given.clone()
    first, again = (restore_classical(given, task, inpaint_mask=mask) for _ in range(2))
    assert torch.equal(first.image.as_tensor(), again.image.as_tensor())
    assert torch.equal(before.as_tensor(), given.as_tensor())
