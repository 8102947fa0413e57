"""Nearest neighbours, AUC and features."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from medgen.checks import MedgenError
from medgen.metrics import classification_auc, named_radiomic_features, nearest_distances, radiomic_features, variation


def test_nearest_equals_the_full_table() -> None:
    generator = np.random.default_rng(0)
    a, b = generator.normal(size=(7, 5)), generator.normal(size=(11, 5))
    np.testing.assert_allclose(nearest_distances(a, b), cdist(a, b).min(1))
    table = cdist(a, a) + np.diag([np.inf] * 7)
    np.testing.assert_allclose(nearest_distances(a, a, skip_self=True), table.min(1))


def test_a_copy_is_found_exactly() -> None:
    rows = np.random.default_rng(1).normal(size=(4, 9)) + 1e4
    assert nearest_distances(rows[2:3], rows).tolist() == [0.0]


def test_nearest_refuses_other_widths() -> None:
    with pytest.raises(MedgenError, match="nearest_distances"):
        nearest_distances(np.ones((2, 3)), np.ones((2, 4)))
    with pytest.raises(MedgenError, match="skip_self"):
        nearest_distances(np.ones((2, 3)), np.ones((3, 3)), skip_self=True)


def test_auc() -> None:
    assert classification_auc([3, 4], [1, 2]) == 1.0
    assert classification_auc([1, 1], [1, 1]) == 0.5
    generator = np.random.default_rng(2)
    x, y = generator.normal(size=40) + 1, generator.normal(size=30)
    assert classification_auc(x, y) == pytest.approx((x[:, None] > y).mean())


def test_names_never_depend_on_the_data() -> None:
    generator = np.random.default_rng(3)
    image = generator.random((10, 11, 9))
    label = np.zeros(image.shape, int)
    label[3:6, 2:9, 4:5] = 1
    full, empty = named_radiomic_features(image, label), named_radiomic_features(0 * image, 0 * label)
    assert list(full) == list(empty)
    vector = radiomic_features(image, label)
    assert vector.shape == (len(full),)
    assert np.isfinite(vector).all()
    assert np.isfinite(list(empty.values())).all()
    assert list(named_radiomic_features(image)) == list(full)[: len(full) - 2 * 16]


def test_shape_features_in_mm() -> None:
    label = np.zeros((12, 12, 12), int)
    label[2:6, 2:4, 5:6] = 2
    found = named_radiomic_features(np.full(label.shape, 0.5), label, label_ids=(2,), spacing=(1, 2, 3))
    assert found["label_2_size"] == pytest.approx(48 ** (1 / 3))
    assert [found[f"label_2_extent_{axis}"] for axis in "xyz"] == [4, 4, 3]
    assert found["label_2_mean"] == pytest.approx(0.5)
    assert found["label_2_surface"] == 1


def test_a_slice_has_the_features_of_two_axes() -> None:
    generator = np.random.default_rng(6)
    image, label = generator.random((16, 12)), np.zeros((16, 12), int)
    label[4:12, 3:9] = 1
    found = named_radiomic_features(image, label, label_ids=(1,), spacing=(0.5, 2))
    assert found["label_1_size"] == pytest.approx((48 * 0.5 * 2) ** 0.5)
    assert [found[f"label_1_extent_{axis}"] for axis in "xy"] == [4, 12]
    assert [found[f"label_1_centre_{axis}"] for axis in "xy"] == [7.5 / 16, 5.5 / 12]
    assert not [name for name in found if name.endswith("_z")]
    noise = named_radiomic_features(generator.random((16, 12)))
    assert noise["cooccurrence_correlation_1"] < 0.3


def test_bands_tell_noise_from_blobs() -> None:
    from scipy.ndimage import gaussian_filter

    noise = np.random.default_rng(4).normal(size=(24, 24, 24)) * 0.1 + 0.5
    smooth = gaussian_filter(noise, 3)
    rough, fine = named_radiomic_features(noise), named_radiomic_features(smooth)
    assert rough["band_0"] - fine["band_0"] > rough["band_3"] - fine["band_3"] > 0
    assert rough["cooccurrence_contrast_1"] > fine["cooccurrence_contrast_1"]


def test_variation_within_groups() -> None:
    samples = np.random.default_rng(5).normal(size=(200, 6, 6, 6))
    samples[:, 3:] *= 2
    groups = np.zeros((6, 6, 6), int)
    groups[3:] = 1
    found = variation(samples, groups, ["one", "two", "absent"])
    assert list(found) == ["one", "two"]
    assert found["one"] == pytest.approx(1, abs=0.05)
    assert found["two"] == pytest.approx(2, abs=0.1)
    with pytest.raises(MedgenError, match="variation"):
        variation(samples[:1], groups, ["one"])


def test_features_refuse_what_is_no_volume() -> None:
    with pytest.raises(MedgenError, match="X, Y, Z"):
        radiomic_features(np.ones((4, 4, 4, 4)))
    with pytest.raises(MedgenError, match="spacing must have 2 entries"):
        radiomic_features(np.ones((4, 4)), spacing=(1, 1, 1))
    with pytest.raises(MedgenError, match="shape"):
        radiomic_features(np.ones((4, 4, 4)), np.ones((4, 4, 5)))
    with pytest.raises(MedgenError, match="finite"):
        radiomic_features(np.full((4, 4, 4), np.nan))
