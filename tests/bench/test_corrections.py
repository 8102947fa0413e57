"""The arithmetic of the benchmark of motion, bias fields and CT noise on small made-up scans; no data, no model."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from medgen.anatomy.labels import ids_of
from tests.bench import restoration_corrections as corrections
from tests.bench.restoration_people import Scan
from tests.bench.test_restoration import head


def textured() -> Scan:
    """A ball that is not the same when it is turned."""
    return head(48, texture=200.0)


def test_a_slab_shows_much_of_the_brain_and_is_a_function_of_the_seed() -> None:
    scan = head()
    part = corrections.slab(scan, 3)
    assert part.image.shape == (48, 48, corrections.SLICES)
    assert part.brain.sum((0, 1)).min() >= scan.brain.sum((0, 1)).max() / 2
    assert np.array_equal(part.affine, corrections.slab(scan, 3).affine)


def test_slices_move_alike_and_are_a_function_of_the_seed() -> None:
    flat = np.repeat(textured().image[:, :, 24:25], 4, axis=2)
    moved = corrections.sliced("rigid_motion", flat, 1)
    assert np.abs(moved - flat).max() > 1
    assert np.allclose(moved, moved[:, :, :1], atol=1e-3)
    assert np.array_equal(moved, corrections.sliced("rigid_motion", flat, 1))
    assert not np.allclose(moved, corrections.sliced("rigid_motion", flat, 2), atol=1)


def test_what_was_turned_and_shifted_is_put_back() -> None:
    clean = textured().image[:, :, 20 : 20 + corrections.SLICES]
    away = ndimage.shift(ndimage.rotate(clean, 3, reshape=False, order=3), (1.4, -0.7, 0), order=3)
    before, after = (float(np.square(one - clean).mean()) for one in (away, corrections.placed(away, clean)))
    assert after < before / 5
    assert np.array_equal(corrections.placed(clean, clean), clean)


def test_halved_scans_lie_where_they_lay() -> None:
    scan = textured()
    small = corrections.halved(scan)
    assert small.image[3, 4, 5] == pytest.approx(scan.image[6:8, 8:10, 10:12].mean())
    corners = np.array([scan.affine @ [6 + i, 8 + j, 10 + k, 1] for i in (0, 1) for j in (0, 1) for k in (0, 1)])
    assert small.affine @ [3, 4, 5, 1] == pytest.approx(corners.mean(0))
    assert set(np.unique(small.tissues)) == {0, 3}
    assert small.brain.sum() * 8 < scan.brain.sum()


def test_what_is_left_of_a_field() -> None:
    scan = head(32)
    field = np.exp(np.linspace(-0.3, 0.3, 32))[:, None, None]
    plain = {"uncorrected": scan.image, "perfect": scan.image, "half": scan.image}
    made = {"uncorrected": scan.image * field, "perfect": 2 * scan.image, "half": scan.image * field**0.5}
    left = {row["method"]: row for row in corrections.field_rows(scan, made, plain)}
    assert left["perfect"]["left"] == pytest.approx(0, abs=1e-6)
    assert left["half"]["left"] == pytest.approx(left["uncorrected"]["left"] / 2, rel=0.05)
    for row in left.values():  # white matter is all there is, and the same everywhere
        assert row["white"] == pytest.approx(row["left"], abs=1e-6)


def test_ct_errors_and_contrasts() -> None:
    ids = np.zeros((40, 40, 12), np.int64)
    ids[4:36, 4:36], ids[4:20, 4:36], ids[2:4] = ids_of("cortex")[0], ids_of("white_matter")[0], ids_of("skull")[0]
    lesions = corrections.balls(ids > 0, np.random.default_rng(0))
    assert lesions.any()
    clean = np.select([lesions, ids == ids_of("cortex")[0], ids == ids_of("skull")[0]], [60.0, 40.0, 900.0], 30.0)
    faint = np.where(ids == ids_of("skull")[0], clean + 10, 35 + (clean - 35) / 2)
    rows = {row["method"]: row for row in corrections.ct_rows(clean, ids, lesions, {"clean": clean, "faint": faint})}
    assert rows["clean"]["brain rms"] == 0
    assert rows["clean"]["lesion"] == rows["clean"]["grey-white"] == pytest.approx(1)
    assert rows["faint"]["bone bias"] == pytest.approx(10)
    assert rows["faint"]["grey-white"] == pytest.approx(0.5)
    assert rows["faint"]["lesion"] == pytest.approx(0.5)


def test_ghosts_in_air_do_not_count_in_the_brain() -> None:
    scan = textured()
    ghosts = scan.image + np.where(ndimage.binary_dilation(scan.brain, iterations=9), 0, 30).astype(np.float32)
    found = corrections.in_brain(ghosts, scan)
    assert not np.array_equal(ghosts, scan.image)
    assert found["psnr"] == np.inf
    assert found["ssim"] == pytest.approx(1)
    assert corrections.in_brain(scan.image + 1, scan)["psnr"] == pytest.approx(40)
