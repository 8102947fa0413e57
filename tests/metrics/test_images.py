"""Histograms by label, spectra and borders of images whose figures are known."""

from __future__ import annotations

import numpy as np
import pytest

from medgen.checks import MedgenError
from medgen.metrics import (
    band_powers,
    boundary_sharpness,
    label_border,
    label_means,
    label_wasserstein,
    paint_labels,
    radial_bands,
    soft_window,
)


def halves(shape: tuple[int, int, int] = (16, 16, 16)) -> np.ndarray:
    groups = np.zeros(shape, int)
    groups[shape[0] // 2 :] = 1
    return groups


def test_wasserstein_of_a_shift_is_the_shift() -> None:
    groups = halves()
    image = np.random.default_rng(0).random(groups.shape)
    found = label_wasserstein(image + paint_labels(groups, [0.1, 0.3]), image, groups, ["a", "b", "c"])
    assert found == {"a": pytest.approx(0.1), "b": pytest.approx(0.3)}


def test_means_are_painted_back() -> None:
    groups = halves()
    means = label_means([np.where(groups, 4.0, 2.0), np.where(groups, 6.0, 2.0)], [groups, groups], 3)
    np.testing.assert_allclose(means, [2, 5, 0])
    assert paint_labels(groups, means)[-1, 0, 0] == 5


def test_white_noise_is_flat_whatever_the_window() -> None:
    noise = np.random.default_rng(1).normal(size=(32, 32, 31)) * 3
    ball = sum(np.square(g - 15.5) for g in np.indices(noise.shape)) < 14**2
    for window in (None, soft_window(ball)):
        np.testing.assert_allclose(band_powers(noise, radial_bands(0.4, 0.1), window), 9, rtol=0.35)
    np.testing.assert_allclose(band_powers(noise, [0.1, 0.5], None), 9, rtol=0.05)


def test_a_wave_lies_in_its_band() -> None:
    wave = np.cos(2 * np.pi * 0.25 * np.arange(32))[:, None, None] * np.ones((32, 32, 32))
    powers = band_powers(wave, radial_bands())
    assert powers.argmax() == 5
    assert np.delete(powers, 5).max() < 1e-20


def test_window_is_zero_outside_and_one_deep_inside() -> None:
    inside = np.zeros((12, 12, 12), bool)
    inside[2:10, 2:10, 2:10] = True
    window = soft_window(inside)
    assert window[~inside].max() == 0
    assert window[5, 5, 5] == 1
    assert 0 < window[2, 5, 5] < 1


def test_sharpness_of_a_step_and_of_a_blurred_one() -> None:
    from scipy.ndimage import gaussian_filter1d

    groups = halves()
    step = paint_labels(groups, [0.2, 0.8])
    assert boundary_sharpness(step, groups == 0, groups == 1) == pytest.approx(0.5)
    blurred = gaussian_filter1d(step, 2, axis=0)
    assert boundary_sharpness(blurred, groups == 0, groups == 1) < 0.3
    assert label_border(groups == 0, groups == 1).sum() == 2 * 16 * 16


def test_refusals() -> None:
    groups = halves()
    with pytest.raises(MedgenError, match="one shape"):
        label_wasserstein(np.ones((2, 2, 2)), np.ones((2, 2, 2)), groups, ["a"])
    with pytest.raises(MedgenError, match="touch"):
        boundary_sharpness(groups, groups == 0, groups == 5)
    with pytest.raises(MedgenError, match="one mean"):
        boundary_sharpness(groups * 0.0, groups == 0, groups == 1)
    with pytest.raises(MedgenError, match="window"):
        band_powers(np.ones((4, 4, 4)), [0, 0.5], np.zeros((4, 4, 4)))
    with pytest.raises(MedgenError, match="no coefficient"):
        band_powers(np.ones((4, 4, 4)), [0.01, 0.02])
