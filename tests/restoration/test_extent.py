"""What is said of scans and label maps that are far larger or smaller than a model's grid."""

from __future__ import annotations

import numpy as np
import pytest

from medgen.restoration.extent import bounds_mm, far_from_training, warn_if_far
from tests.restoration.small_models import small_model


@pytest.mark.parametrize(
    ("size", "word"),
    [
        ((16, 16, 16), ""),
        ((24, 5.4, 16), ""),
        ((24.1, 16, 16), "covers 96.4 x 64 x 64 mm, far more than the 64 x 64 x 64 mm"),
        ((16, 16, 5.3), "far less than the 64 x 64 x 64 mm that model 'small-image' was trained on"),
    ],
)
def test_only_what_is_far_from_the_grid_is_told(size: tuple[float, ...], word: str) -> None:
    spec = small_model("image").spec
    told = far_from_training(spec, size)
    assert word in told
    assert bool(told) == bool(word)
    if word:
        with pytest.warns(UserWarning, match="^the scan covers"):
            warn_if_far(spec, "the scan", size)
    else:
        warn_if_far(spec, "the scan", size)  # a warning would be an error


def test_bounds_of_an_oblique_mask() -> None:
    turn = np.array([[0, -2.0, 0, 5], [2.0, 0, 0, 1], [0, 0, 3.0, 0], [0, 0, 0, 1]])
    mask = np.zeros((6, 6, 6), bool)
    mask[1:3, 2:5, 4] = True
    low, high = bounds_mm(mask, turn)
    assert low.tolist() == [5 - 2 * 4.5, 1 + 2 * 0.5, 3 * 3.5]
    assert high.tolist() == [5 - 2 * 1.5, 1 + 2 * 2.5, 3 * 4.5]
