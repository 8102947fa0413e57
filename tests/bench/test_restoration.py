"""The arithmetic of the restoration benchmarks on small made-up scans; no data, no model."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

from medgen.models import load_model
from tests.bench import restoration_lesions as lesions
from tests.bench.restoration_figures import gradient_energy, psnr, table
from tests.bench.restoration_inpaint import fills, judged
from tests.bench.restoration_interval import Site, rows_of
from tests.bench.restoration_methods import interpolated, rician, thick, unbiased, whole_slices
from tests.bench.restoration_people import Scan, blocks, bounding_box, holes, sphere
from tests.bench.restoration_superres import again, upsampled
from tests.bench.restoration_unet import Filler, network


def head(size: int = 48, texture: float = 0.0) -> Scan:
    """A ball of white matter in air."""
    brain = sphere((size,) * 3, (size / 2,) * 3, size / 2 - 4, (1, 1, 1))
    noise = np.random.default_rng(0).standard_normal(brain.shape)
    image = np.where(brain, 100 + texture * ndimage.gaussian_filter(noise, 2), 0).astype(np.float32)
    tissues = np.where(brain, 3, 0).astype(np.int8)
    return Scan("made-T1", image, np.diag([-1.0, 1, 1, 1]), brain, 100.0, tissues, np.zeros(brain.shape, bool))


def test_psnr_of_a_constant_error() -> None:
    assert psnr(np.full((8, 8), 11.0), np.full((8, 8), 1.0), 100) == pytest.approx(20)


def test_blocks_lie_in_the_brains_box_with_a_margin() -> None:
    scan = head()
    around = bounding_box(scan.brain)
    for box, inner in blocks(scan.brain, 5, size=16, margin=4):
        for outer, part, limit in zip(box, inner, around, strict=True):
            start = outer.start + part.start
            assert part.stop - part.start == 16
            assert start >= limit.start
            assert start + 16 <= limit.stop
    assert blocks(scan.brain, 5, 16, 4) == blocks(scan.brain, 5, 16, 4)


def test_cut_moves_the_affine() -> None:
    scan = head()
    part = scan.cut((slice(3, 9), slice(0, 5), slice(2, 8)))
    assert part.affine[:3, 3].tolist() == [-3, 0, 2]
    assert part.image.shape == (6, 5, 6)


def test_rician_bias_is_taken_out() -> None:
    flat = np.full((40, 40, 40), 2.0, np.float32)
    mean = rician(flat, 1.0, 0).mean()
    assert mean > 2.2
    assert unbiased(np.array([mean, 200.0], np.float32), 1.0) == pytest.approx([2.0, 200.0], abs=0.02)


@pytest.mark.parametrize("axis", [0, 2])
def test_splines_give_back_a_ramp(axis: int) -> None:
    scan = whole_slices(head(), axis)
    ramp = scan.with_image(np.broadcast_to(np.indices(scan.image.shape)[axis], scan.image.shape))
    measured, operator = thick(ramp, axis)
    inner = [slice(None)] * 3
    inner[axis] = slice(10, -10)
    for order in (1, 3):
        made = interpolated(measured.numpy()[0], operator, order)
        assert np.abs(made - ramp.image)[tuple(inner)].max() < 0.1
    step = np.asarray(measured.affine)[:3, axis]
    assert np.linalg.norm(step) == pytest.approx(4)
    assert again(ramp.image, operator) == pytest.approx(measured.numpy()[0])


def test_cubic_beats_linear_on_a_smooth_scan() -> None:
    scan = whole_slices(head(texture=100.0), 2)
    made = upsampled(scan, 2, None)
    assert psnr(made["cubic"], scan.image, 100) > psnr(made["linear"], scan.image, 100)


def test_fills_do_not_see_the_hole_and_leave_the_rest() -> None:
    scan = head(32, texture=50.0)
    hole = sphere(scan.image.shape, (16, 16, 16), 4, (1, 1, 1))
    blanked = scan.with_image(np.where(hole, 0, scan.image))
    made = fills(blanked, hole, None, None, None, classical=True)
    for image in made.values():
        assert np.array_equal(image[~hole], scan.image[~hole])
    scores = {name: judged(image, scan, hole) for name, image in made.items()}
    assert scores["biharmonic"]["mae"] < scores["mean"]["mae"]
    assert judged(scan.image, scan, hole)["sharpness"] == pytest.approx(1)


def test_holes_lie_in_the_brain() -> None:
    scan = head(64)
    for hole in holes(scan, 3, (12.0, 20.0)):
        assert scan.brain[hole].mean() >= 0.9
        assert 12 <= (6 * hole.sum() / np.pi) ** (1 / 3) <= 21


def test_gradient_energy_of_a_ramp() -> None:
    ramp = np.broadcast_to(3.0 * np.arange(9)[:, None, None], (9, 9, 9))
    assert gradient_energy(ramp, np.ones(ramp.shape, bool)) == pytest.approx(9)


def test_planted_lesions_have_their_contrast_and_half_of_it_is_seen_as_half() -> None:
    scan = head(96)
    sick, found = lesions.planted(scan, 2)
    pairs = np.array([[lesion.contrast(sick.image)] * 2 for lesion in found])
    assert len(found) == 8
    assert np.abs(pairs).min() > 0.6 * lesions.STRENGTH * 100
    assert {bool(before > 0) for before, _ in pairs} == {True, False}
    weaker = scan.image + (sick.image - scan.image) / 2
    halved = np.array([[lesion.contrast(sick.image), lesion.contrast(weaker)] for lesion in found])
    assert lesions.kept(halved) == pytest.approx(0.5, abs=1e-3)


def test_blobs_are_found_where_lesions_are_planted_and_nowhere_else() -> None:
    scan = head(96)
    sick, found = lesions.planted(scan, 2)
    seen = lesions.blobs(sick.image, scan)
    assert all(seen[lesion.box][lesion.inside].any() for lesion in found)
    assert not lesions.blobs(scan.image, scan).any()
    regions = lesions.clean_regions(scan, 4)
    assert len(regions) == 4
    assert not any((regions[0] & region).any() for region in regions[1:])


def test_interval_rows_of_a_known_spread() -> None:
    rng = np.random.default_rng(0)
    shape = (20, 20, 20)
    sites = []
    for _ in range(3):
        clean = rng.standard_normal(shape)
        half = np.full(shape, 1.6449)
        sites.append(Site(clean, 0 * clean, -half, half, {"white": np.ones(shape, bool)}))
    rows = rows_of(sites, 1.0, scan="made")
    assert np.mean([row["coverage"] for row in rows if "coverage" in row]) == pytest.approx(0.9, abs=0.01)
    assert rows[0]["ratio"] == pytest.approx(1, abs=0.03)
    assert "coverage 0.9" in table(rows, ("scan", "tissue"), {"coverage": ".3f", "ratio": ".2f"})[0]


def test_unet_fills_the_hole_alone() -> None:
    torch.manual_seed(0)
    scan = head(32)
    hole = sphere(scan.image.shape, (16, 16, 16), 4, (1, 1, 1))
    filler = Filler(network(3, 2), load_model("brain-mri-inpaint", device="cpu").spec)
    filled = filler(scan.image, scan.affine, hole)
    assert np.array_equal(filled[~hole], scan.image[~hole])
    assert (filled[hole] != scan.image[hole]).all()
    other = scan.image.copy()
    other[hole] = 7
    assert np.array_equal(filler(other, scan.affine, hole), filled)
