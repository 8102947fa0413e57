"""Lesions: where they are, how large, and that the map is otherwise as it was."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from scipy import ndimage

from medgen.anatomy.lesions import LESION_ID, LesionRanges, _cut_lognormal, add_lesions, draw_lesions
from medgen.checks import MedgenError


def brain() -> torch.Tensor:
    """A ball of white matter in a shell of cortex, with a ventricle in its middle; 64 voxels of 2 mm."""
    grid = np.stack(np.meshgrid(*[np.arange(64)] * 3, indexing="ij")) - 31.5
    radius = np.sqrt((grid**2).sum(0))
    label = np.select([radius < 8, radius < 26, radius < 29], [4, 2, 3], 0).astype(np.int16)
    return torch.from_numpy(label)[None]


SPACING = (2.0, 2.0, 2.0)


def test_same_seed_same_bytes_and_input_untouched() -> None:
    label = brain()
    copy = label.clone()
    first, again, other = (add_lesions(label, seed, SPACING) for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(label, copy)
    assert first.dtype == label.dtype


def test_only_white_matter_changes_and_only_to_77() -> None:
    label = brain()
    result = add_lesions(label, 1, SPACING, count=20)
    changed = result != label
    assert (result[changed] == LESION_ID).all()
    assert (label[changed] == 2).all()


def test_report_agrees_with_the_map() -> None:
    affine = torch.tensor([[0, -2.0, 0, 50], [2.0, 0, 0, -40], [0, 0, 2.0, 7], [0, 0, 0, 1]], dtype=torch.float64)
    label = MetaTensor(brain(), affine=affine)
    result, lesions = draw_lesions(label, 8, count=1)
    assert isinstance(result, MetaTensor)
    assert torch.equal(result.affine, affine)
    (lesion,) = lesions
    found = np.argwhere(result.as_tensor().numpy()[0] == LESION_ID)
    assert lesion.voxels == len(found)
    assert lesion.volume_ml == pytest.approx(len(found) * 0.008)
    center = affine.numpy()[:3, :3] @ found.mean(0) + affine.numpy()[:3, 3]
    np.testing.assert_allclose(lesion.center_mm, center, atol=1e-6)
    assert set(lesion.to_dict()) == {"site", "center_mm", "volume_ml", "voxels"}


@pytest.mark.parametrize(
    ("weights", "site", "id_near", "limit_mm"),
    [((1, 0, 0), "periventricular", 4, 6.0), ((0, 0, 1), "juxtacortical", 3, 6.0)],
)
def test_sites_touch_what_they_are_named_after(
    weights: tuple[float, float, float], site: str, id_near: int, limit_mm: float
) -> None:
    label = brain()
    ranges = LesionRanges(site_weights=weights, volume_limits_ml=(0.1, 1.0))
    distance = ndimage.distance_transform_edt(label[0].numpy() != id_near, sampling=SPACING)
    for seed in range(5):
        result, (lesion,) = draw_lesions(label, seed, SPACING, ranges, count=1)
        assert lesion.site == site
        assert distance[result[0].numpy() == LESION_ID].min() <= limit_mm


def test_each_lesion_is_one_piece_of_the_volume_drawn() -> None:
    ranges = LesionRanges(site_weights=(0, 1, 0), volume_limits_ml=(2.0, 2.0))
    for seed in range(5):
        result, (lesion,) = draw_lesions(brain(), seed, SPACING, ranges, count=1)
        assert ndimage.label(result[0].numpy() == LESION_ID, np.ones((3, 3, 3)))[1] == 1
        assert lesion.volume_ml == pytest.approx(2.0, rel=0.25)


def test_without_a_ventricle_another_site_is_used() -> None:
    label = brain()
    label[label == 4] = 2
    _, (lesion,) = draw_lesions(label, 0, SPACING, LesionRanges(site_weights=(1, 0, 0)), count=1)
    assert lesion.site != "periventricular"


def test_drawn_volumes_follow_the_measured_percentiles() -> None:
    uniform = np.random.default_rng(0).uniform(size=20_000)
    volumes = _cut_lognormal(uniform, np.full(20_000, -5.43), np.full(20_000, 1.82), (0.03, 20.0))
    np.testing.assert_allclose(np.percentile(volumes, [10, 50, 90, 99]), [0.033, 0.062, 0.231, 1.157], rtol=0.2)
    assert 0.03 <= volumes.min() <= volumes.max() <= 20.0


def test_full_white_matter_gives_fewer_lesions() -> None:
    label = torch.zeros(1, 8, 8, 8, dtype=torch.int16)
    label[0, 4, 4, 3:5] = 2
    result, lesions = draw_lesions(label, 0, count=6)
    assert len(lesions) <= 2
    assert int((result == LESION_ID).sum()) == sum(lesion.voxels for lesion in lesions) <= 2


def test_errors() -> None:
    with pytest.raises(MedgenError, match=r"must hold white matter \(ids \[2, 41\]\); found \[0\]"):
        add_lesions(torch.zeros(1, 4, 4, 4, dtype=torch.int16), 0)
    with pytest.raises(MedgenError, match=r"shape \(1, X, Y, Z\). Got \(4, 4, 4\)"):
        add_lesions(torch.zeros(4, 4, 4), 0)
    with pytest.raises(MedgenError, match="site_weights"):
        LesionRanges(site_weights=(0, 0, 0))
    with pytest.raises(MedgenError, match="roughness"):
        LesionRanges(roughness=(0.5, 0.1))
