"""An interval found by filling the same hole elsewhere on the scan."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from medgen.restoration.hole_interval import PLACES, factor_on_the_scan, other_places

SHAPE = (40, 40, 40)


def scan() -> NDArray[np.float64]:
    image = np.random.default_rng(0).normal(1, 0.1, SHAPE)
    image[:4] = 0
    return image


def ball(centre: tuple[int, int, int], radius: float) -> NDArray[np.bool_]:
    return np.sqrt(sum((g - c) ** 2 for g, c in zip(np.indices(SHAPE), centre, strict=True))) <= radius


def test_places_are_known_tissue_and_apart() -> None:
    hole, tissue = ball((20, 20, 20), 5) | ball((8, 8, 8), 2), scan() > 0.1
    places = other_places(hole, tissue)
    assert len(places) == PLACES
    assert not np.any(np.sum([*places, hole], axis=0) > 1)
    for place in places:
        assert place.sum() == ball((20, 20, 20), 5).sum()  # the larger of the two holes
        assert tissue[place].mean() > 0.9


@pytest.mark.parametrize("true_over_expected", [0.5, 2.0])
def test_the_factor_is_that_of_the_scan(true_over_expected: float) -> None:
    """Normal errors of 0.1 around a flat fill: 90% lie within 1.645 deviations; the model's factor counts once."""

    def fill(image: NDArray[np.float64], moved: NDArray[np.bool_]) -> tuple[NDArray[np.float64], Any]:
        assert (image[moved] == 0).all()
        return np.where(moved, 1.0, image), np.full(SHAPE, 0.1 / true_over_expected)

    found = factor_on_the_scan(scan(), ball((20, 20, 20), 5), scan() > 0.1, fill, 1.5)
    assert found == pytest.approx((PLACES * 1.645 * true_over_expected + 1.5) / (PLACES + 1), rel=0.05)


def test_a_hole_without_an_equal_or_a_small_one_says_nothing() -> None:
    tissue = scan() > 0.1
    assert factor_on_the_scan(scan(), ball((20, 20, 20), 18), tissue, lambda image, moved: (image, image), 1.5) is None
    assert factor_on_the_scan(scan(), ball((20, 20, 20), 1), tissue, lambda image, moved: (image, image), 1.5) is None
