"""Places that look like a hole's surroundings, and what lies there put into the hole."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from medgen.restoration import elsewhere
from medgen.restoration.elsewhere import Place, places_like, put

SIZE = (48, 40, 36)


def texture(seed: int = 0, size: tuple[int, ...] = SIZE) -> np.ndarray:
    made = gaussian_filter(np.random.default_rng(seed).normal(size=size), 1.5)
    return 0.5 + 0.2 * made / made.std()


def box(*low: int, side: int = 6) -> np.ndarray:
    marked = np.zeros(SIZE, bool)
    marked[tuple(slice(n, n + side) for n in low)] = True
    return marked


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.7, 2.0, 1.4)])
@pytest.mark.parametrize("mirrored", [False, True])
def test_a_copy_of_the_surroundings_is_found_and_fills_the_hole(
    spacing: tuple[float, ...], mirrored: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(elsewhere, "FAR_MM", 1e6)  # the copy lies far away
    image, hole = texture(), box(10, 10, 12)
    around, moved = (slice(0, 24), slice(2, 24), slice(4, 26)), (slice(24, 48), slice(14, 36), slice(8, 30))
    image[moved] = image[around][::-1] if mirrored else image[around]
    truth = image.copy()
    filled = np.where(hole, 0.5, image)
    first = places_like(filled, hole, hole, np.diag([*spacing, 1.0]))[0]
    assert first.sign[0] == (-1 if mirrored else 1)
    at = np.argwhere(hole)
    expected = at + np.array([24, 12, 4])
    if mirrored:
        expected[:, 0] = 47 - at[:, 0]
    np.testing.assert_array_equal(first.of(at), expected)
    np.testing.assert_allclose(put(filled, hole, first, spacing), truth[hole], atol=1e-3)


def test_no_place_touches_what_is_not_known() -> None:
    image, part, other = texture(), box(10, 10, 12), box(25, 20, 20, side=8)
    hole = part | other
    places = places_like(np.where(hole, 0.5, image), part, hole, np.diag([-1.0, 1.0, 1.0, 1.0]))
    assert len(places) > 20
    assert {place.sign[0] for place in places} == {1, -1}
    for place in places:
        at = place.of(np.argwhere(part))
        assert (at >= 0).all()
        assert (at < SIZE).all()
        assert not hole[tuple(at.T)].any()


def test_places_lie_apart_and_the_nearest_of_equal_ones_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    image, hole = texture(), box(20, 16, 14)
    monkeypatch.setattr(elsewhere, "FILL_WEIGHT", 0.0)
    monkeypatch.setattr(elsewhere, "_unlike", lambda values, wanted, ring: 0.0)
    plain = [p for p in places_like(image, hole, hole, np.eye(4)) if p.sign == (1, 1, 1)]
    offsets = np.array([place.offset for place in plain])
    apart = np.abs(offsets[:, None] - offsets).max(-1)[~np.eye(len(plain), dtype=bool)]
    assert apart.min() >= elsewhere.APART_MM
    far = np.linalg.norm(offsets, axis=1)
    assert far[0] == pytest.approx(6, abs=0.1)
    assert far[0] < far[-1]


def test_a_hole_as_large_as_what_is_known_has_no_place() -> None:
    hole = np.zeros(SIZE, bool)
    hole[4:-4, 4:-4, 4:-4] = True
    assert places_like(np.where(hole, 0.5, texture()), hole, hole, np.eye(4)) == []


def test_a_border_that_differs_by_a_ramp_moves_the_tissue_by_the_ramp() -> None:
    """The harmonic continuation of a linear function is that function."""
    image, hole = texture(), box(8, 8, 8)
    moved = image.copy()
    ramp = 0.1 + 0.01 * np.arange(18).reshape(-1, 1, 1)
    moved[22:40, 2:20, 2:20] = image[2:20, 2:20, 2:20] - ramp
    made = put(np.where(hole, 0.0, moved), hole, Place((1, 1, 1), (20, 0, 0)), (1.0, 1.0, 1.0))
    inside = (made > moved[22:40, 2:20, 2:20].min()) & (made < image.max())  # others were limited
    np.testing.assert_allclose(made[inside], image[hole][inside], atol=2e-3)
    assert inside.mean() > 0.9


def test_nothing_is_brighter_than_what_lies_there_or_around() -> None:
    image, hole = np.ones(SIZE), box(8, 8, 8)
    image[2:20, 2:20, 2:20] = np.linspace(1, 3, 18)  # brighter at the hole's border than the place's
    image[28:34, 8:14, 8:14] += np.linspace(0, 2, 6)
    made = put(np.where(hole, 0.0, image), hole, Place((1, 1, 1), (20, 0, 0)), (1.0, 1.0, 1.0))
    assert made.max() <= 3
    assert made.min() >= 1


def test_textures_are_not_flattened() -> None:
    """The copy of another place has the variance of the image, not that of an average."""
    image, hole = texture(), box(20, 16, 14, side=10)
    filled = np.where(hole, image.mean(), image)
    found = [put(filled, hole, place, (1.0, 1.0, 1.0)) for place in places_like(filled, hole, hole, np.eye(4))[:8]]
    assert np.mean([one.std() for one in found]) > 0.8 * image.std()
