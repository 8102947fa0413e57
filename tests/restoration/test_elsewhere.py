"""Places that look like a hole's surroundings, and what lies there put into the hole."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from medgen.restoration import elsewhere
from medgen.restoration.elsewhere import Place, air_of, put

SIZE = (48, 40, 36)


def found_in(filled: np.ndarray, at: np.ndarray, hole: np.ndarray, affine: np.ndarray) -> list[Place]:
    return elsewhere.places_like(elsewhere.search_in(filled, hole, affine), at)


def put_in(
    filled: np.ndarray, at: np.ndarray, place: Place, spacing: tuple[float, ...] = (1.0, 1.0, 1.0)
) -> np.ndarray:
    return put(filled, at, place, spacing, np.zeros(filled.shape, bool))


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
    first = found_in(filled, np.argwhere(hole), hole, np.diag([*spacing, 1.0]))[0]
    assert first.sign[0] == (-1 if mirrored else 1)
    at = np.argwhere(hole)
    expected = at + np.array([24, 12, 4])
    if mirrored:
        expected[:, 0] = 47 - at[:, 0]
    np.testing.assert_array_equal(first.of(at), expected)
    np.testing.assert_allclose(put_in(filled, at, first, spacing), truth[hole], atol=1e-3)


def test_no_place_touches_what_is_not_known() -> None:
    image, part, other = texture(), box(10, 10, 12), box(25, 20, 20, side=8)
    hole = part | other
    places = found_in(np.where(hole, 0.5, image), np.argwhere(part), hole, np.diag([-1.0, 1.0, 1.0, 1.0]))
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
    monkeypatch.setattr(elsewhere, "_unlike", lambda *_: 0.0)
    monkeypatch.setattr(elsewhere, "BORDER_WEIGHT", 0.0)
    plain = [p for p in found_in(image, np.argwhere(hole), hole, np.eye(4)) if p.sign == (1, 1, 1)]
    offsets = np.array([place.offset for place in plain])
    apart = np.abs(offsets[:, None] - offsets).max(-1)[~np.eye(len(plain), dtype=bool)]
    assert apart.min() >= elsewhere.APART_MM
    far = np.linalg.norm(offsets, axis=1)
    assert far[0] == pytest.approx(6, abs=0.1)
    assert far[0] < far[-1]


def test_a_hole_as_large_as_what_is_known_has_no_place() -> None:
    hole = np.zeros(SIZE, bool)
    hole[4:-4, 4:-4, 4:-4] = True
    assert found_in(np.where(hole, 0.5, texture()), np.argwhere(hole), hole, np.eye(4)) == []


def test_a_border_that_differs_by_a_ramp_moves_the_tissue_by_the_ramp() -> None:
    """The harmonic continuation of a linear function is that function."""
    image, hole = texture(), box(8, 8, 8)
    moved = image.copy()
    ramp = 0.1 + 0.01 * np.arange(18).reshape(-1, 1, 1)
    moved[22:40, 2:20, 2:20] = image[2:20, 2:20, 2:20] - ramp
    made = put_in(np.where(hole, 0.0, moved), np.argwhere(hole), Place((1, 1, 1), (20, 0, 0)))
    inside = (made > moved[22:40, 2:20, 2:20].min()) & (made < image.max())  # others were limited
    np.testing.assert_allclose(made[inside], image[hole][inside], atol=2e-3)
    assert inside.mean() > 0.9


def test_nothing_is_brighter_than_what_lies_there_or_around() -> None:
    image, hole = np.ones(SIZE), box(8, 8, 8)
    image[2:20, 2:20, 2:20] = np.linspace(1, 3, 18)  # brighter at the hole's border than the place's
    image[28:34, 8:14, 8:14] += np.linspace(0, 2, 6)
    made = put_in(np.where(hole, 0.0, image), np.argwhere(hole), Place((1, 1, 1), (20, 0, 0)))
    assert made.max() <= 3
    assert made.min() >= 1


def test_textures_are_not_flattened() -> None:
    """Copies of other places have the variance of the image, not that of an average."""
    image, holes = texture(), [box(x, y, z, side=8) for x in (6, 30) for y in (6, 26) for z in (6, 22)]
    deviations = []
    for hole in holes:
        filled, at = np.where(hole, image.mean(), image), np.argwhere(hole)
        found = [put_in(filled, at, place) for place in found_in(filled, at, hole, np.eye(4))[:8]]
        deviations.append(np.mean([one.std() for one in found]) / image[hole].std())
    assert 0.8 < np.median(deviations) < 1.25


def test_what_fits_the_border_best_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two copies of the surroundings in blocks: one is the same by voxel, the other has them in another order."""
    monkeypatch.setattr(elsewhere, "FAR_MM", 1e6)
    image, hole = texture(), box(8, 8, 8)
    for low in (14, 28):
        image[low + 2 : low + 18, 2:20, 2:20] = image[2:18, 2:20, 2:20]
    for shuffled, same in ((14, 28), (28, 14)):
        filled = np.where(hole, image.mean(), image)
        part = filled[shuffled + 2 : shuffled + 18, 2:20, 2:20]
        blocks = part.reshape(8, 2, 9, 2, 9, 2).copy()
        part[:] = blocks[:, ::-1, :, ::-1, :, ::-1].reshape(part.shape)
        assert found_in(filled, np.argwhere(hole), hole, np.eye(4))[0] == Place((1, 1, 1), (same, 0, 0))


def test_air_stays_empty_and_dark_tissue_is_fitted() -> None:
    image, hole = np.maximum(texture(), 0.05), box(8, 8, 8)
    image[30:] = 0  # there is air in one half of the place
    image[28, 10, 10] = 0  # and a flow void in the other
    air = air_of(image, hole)
    filled = np.where(hole, 0.5, image)
    made = put(filled, np.argwhere(hole), Place((1, 1, 1), (19, 0, 0)), (1.0, 1.0, 1.0), air).reshape(6, 6, 6)
    assert air[30:].all()
    assert not air[:30].any()
    assert (made[3:] == 0).all()
    assert (made[:3] > 0).all()


@pytest.mark.parametrize("spacing", [1.0, 1.2, 0.5])
@pytest.mark.parametrize("slices", [1, 3, 5, 8, 9])
def test_holes_through_all_slices_have_places(slices: int, spacing: float) -> None:
    image = texture(size=(48, 40, slices))
    hole = np.zeros(image.shape, bool)
    hole[20:25, 15:20] = True
    found = found_in(np.where(hole, 0.5, image), np.argwhere(hole), hole, np.diag([1.0, 1.0, spacing, 1.0]))
    assert len(found) > 5
    assert {place.offset[2] for place in found} == {0}


def test_left_and_right_of_an_oblique_scan_with_thick_slices() -> None:
    angle = np.deg2rad(15)
    turned = np.array([[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]])
    affine = np.eye(4)
    affine[:3, :3] = turned * [1.0, 1.0, 5.0]
    image = texture(size=(48, 40, 12))
    assert elsewhere.search_in(image, image > 9, affine).across == 0


def test_the_middle_is_that_of_the_tissue() -> None:
    image = np.zeros((60, 40, 40))
    image[:40] = 1.0  # to the end of the grid on one side
    search = elsewhere.search_in(image, image > 9, np.eye(4))
    assert (search.middle - search.margin[0] + 0.5) * search.step[0] == pytest.approx(20)


def test_a_very_bright_spot_changes_no_rank() -> None:
    image, hole = texture(), box(20, 16, 14)
    filled = np.where(hole, 0.5, image)
    plain = found_in(filled, np.argwhere(hole), hole, np.eye(4))
    filled[2:4, 2:4, 2:4] = 2.0
    bright = found_in(filled, np.argwhere(hole), hole, np.eye(4))
    filled[2:4, 2:4, 2:4] = 1e5
    assert found_in(filled, np.argwhere(hole), hole, np.eye(4)) == bright
    assert set(plain[:8]) & set(bright[:8])


@pytest.mark.parametrize("order", [(1, 2, 0), (2, 0, 1)])
def test_the_order_of_axes_does_not_matter(order: tuple[int, ...]) -> None:
    image, hole = texture(size=(40, 40, 40)), np.zeros((40, 40, 40), bool)
    hole[8:14, 16:22, 12:18] = True
    filled = np.where(hole, image.mean(), image)
    plain = found_in(filled, np.argwhere(hole), hole, np.eye(4))
    turned_affine = np.eye(4)[:, [*order, 3]]
    turned_hole = hole.transpose(order)
    turned = found_in(filled.transpose(order), np.argwhere(turned_hole), turned_hole, turned_affine)
    assert {place.sign for place in plain} == {(1, 1, 1), (-1, 1, 1)}
    for one, other in zip(plain[:10], turned[:10], strict=True):
        assert other.sign == tuple(one.sign[axis] for axis in order)
        assert other.offset == tuple(one.offset[axis] for axis in order)


def test_the_fill_says_what_is_expected(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two places with the same surroundings: the one that is as bright inside as the fill is the first."""
    monkeypatch.setattr(elsewhere, "FAR_MM", 1e6)
    image, hole = texture(), box(8, 8, 8)
    for low in (22, 42):
        image[low : low + 20, :24, :24] = image[:20, :24, :24][: 48 - low]
    image = np.concatenate([image, image[28:]])  # a place at 22, another at 42
    hole = np.zeros(image.shape, bool)
    hole[8:14, 8:14, 8:14] = True
    for bright in (22, 42):
        marked = image.copy()
        marked[8 + bright : 14 + bright, 8:14, 8:14] += 0.5
        filled = np.where(hole, marked[8 + bright : 14 + bright, 8:14, 8:14].mean(), marked)
        assert found_in(filled, np.argwhere(hole), hole, np.eye(4))[0].offset == (bright, 0, 0)


def test_places_at_the_end_of_the_reach_have_their_own_surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(elsewhere, "FAR_MM", 1e6)
    image = texture(size=(36, 120, 36))
    hole = np.zeros(image.shape, bool)
    hole[14:20, 30:36, 14:20] = True
    image[4:30, 64:90, 4:30] = image[4:30, 20:46, 4:30]  # 44 voxels on
    image[4:30, 94:120, 4:30] = image[4:30, 20:46, 4:30]  # too far away
    places = found_in(np.where(hole, 0.5, image), np.argwhere(hole), hole, np.eye(4))
    assert places[0] == Place((1, 1, 1), (0, 44, 0))
    assert max(abs(place.offset[1]) for place in places) <= elsewhere.REACH_MM
