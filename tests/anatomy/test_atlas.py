"""The bundled head: its labels are plausible in size, place, brightness and side."""

from __future__ import annotations

import numpy as np
import pytest

from medgen.anatomy.atlas import load_atlas
from medgen.anatomy.labels import CHANNELS, LABELS, TISSUES
from medgen.checks import MedgenError

# ml, generous bounds of adult anatomy (Colin27 is stored in MNI space, larger than life)
VOLUMES = {
    (2, 41): (400, 750),
    (3, 42): (450, 850),
    (4, 43): (10, 60),
    (14,): (0.5, 5),
    (15,): (0.8, 6),
    (7, 46): (20, 60),
    (8, 47): (90, 190),
    (10, 49): (12, 24),
    (11, 50): (7, 16),
    (12, 51): (9, 18),
    (13, 52): (2, 8),
    (17, 53): (6, 16),
    (18, 54): (2, 7),
    (16,): (18, 50),
    (24,): (150, 500),
    (165,): (300, 1000),
    (259,): (250, 1300),
}


def test_arrays_and_orientation() -> None:
    atlas = load_atlas("colin27")
    assert atlas.image.shape == atlas.label.shape == atlas.brain.shape == (181, 217, 181)
    assert atlas.image.dtype == np.float32
    assert atlas.label.dtype == np.int16
    assert (np.diag(atlas.affine) == 1).all()
    assert 0 == atlas.image.min() < atlas.image.max() == 1
    assert set(np.unique(atlas.label)) <= set(LABELS)
    assert load_atlas("colin27") is atlas


@pytest.mark.parametrize("ids", list(VOLUMES))
def test_volume_is_plausible(ids: tuple[int, ...]) -> None:
    low, high = VOLUMES[ids]
    assert low < np.isin(load_atlas().label, ids).sum() / 1000 < high


@pytest.mark.parametrize("label", [k for k, v in LABELS.items() if v.side])
def test_left_is_negative_x(label: int) -> None:
    x = np.argwhere(load_atlas().label == label)[:, 0].mean() - 90
    assert (x < 0) == (LABELS[label].side == "left")


def test_brightness_order_of_t1() -> None:
    atlas = load_atlas()
    mean = {name: float(atlas.image[np.isin(atlas.label, ids)].mean()) for name, ids in CHANNELS if name != "lesion"}
    assert mean["skull"] < mean["cortex"] < mean["white_matter"]
    assert mean["ventricle"] < mean["caudate"] < mean["pallidum"]
    assert mean["csf"] < mean["cortex"]


def test_brain_mask_holds_the_tissue() -> None:
    atlas = load_atlas()
    tissue = np.isin(atlas.label, [k for k, v in LABELS.items() if v.brain and k != 24])
    assert atlas.brain[tissue].mean() > 0.995
    assert not atlas.brain[atlas.label >= 165].any()


def test_channels_cover_every_label_once() -> None:
    ids = [i for _, members in CHANNELS for i in members]
    assert sorted(ids) == sorted(set(LABELS) - {0})
    assert tuple(name for name, _ in CHANNELS) == TISSUES[1:]


def test_unknown_atlas_names_the_nearest() -> None:
    with pytest.raises(MedgenError, match="colin27"):
        load_atlas("colin72")
