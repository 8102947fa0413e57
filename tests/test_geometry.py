from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor
from scipy.spatial.transform import Rotation

from medgen.checks import MedgenError
from medgen.geometry import ModelGrid, resample, same_grid, spacing_of
from medgen.intensity import IntensityWindow

WAVELENGTH = 70.0  # mm


@st.composite
def grids(draw: st.DrawFn) -> tuple[np.ndarray, tuple[int, int, int]]:
    """A grid of any orientation: oblique, flipped, permuted, anisotropic, sheared; RAS+ affine in mm, and its shape."""
    angles = draw(st.tuples(*[st.floats(-40, 40)] * 3)) if draw(st.booleans()) else (0.0, 0.0, 0.0)
    order = draw(st.permutations(range(3)))
    signs = np.array(draw(st.tuples(*[st.sampled_from([-1.0, 1.0])] * 3)))
    spacing = np.array(draw(st.tuples(*[st.floats(0.8, 3.5)] * 3)))
    affine = np.eye(4)
    rotation = Rotation.from_euler("xyz", angles, degrees=True).as_matrix()
    if draw(st.booleans()):  # a tilted gantry: the slices are shifted along the rows, the first axis
        rotation = rotation @ np.array([[1, 0, np.tan(np.deg2rad(draw(st.floats(-25, 25))))], [0, 1, 0], [0, 0, 1]])
    affine[:3, :3] = rotation @ np.eye(3)[:, order] * signs * spacing
    affine[:3, 3] = draw(st.tuples(*[st.floats(-100, 100)] * 3))
    shape = tuple(int(np.clip(round(50 / step), 12, 48)) for step in spacing)
    return affine, (shape[0], shape[1], shape[2])


def world(affine: np.ndarray, shape: tuple[int, ...]) -> torch.Tensor:
    """RAS+ mm of every voxel centre, ``(3, I, J, K)``."""
    index = np.stack(np.meshgrid(*[np.arange(size) for size in shape], indexing="ij")).reshape(3, -1)
    return torch.from_numpy((affine[:3, :3] @ index + affine[:3, 3:]).reshape(3, *shape))


def smooth(points: torch.Tensor) -> torch.Tensor:
    """A function of world position that no flip, permutation or shift leaves alone."""
    x, y, z = points * (2 * np.pi / WAVELENGTH)
    return (torch.sin(x) + torch.sin(0.7 * y + 0.5) + torch.cos(0.9 * z + 0.3 * x))[None].float()


def volume_on(affine: np.ndarray, shape: tuple[int, ...]) -> MetaTensor:
    return MetaTensor(smooth(world(affine, shape)), affine=torch.from_numpy(affine))


def interior(mask: torch.Tensor, margin: int = 2) -> torch.Tensor:
    """The voxels of a mask that are away from the array's edge."""
    inner = torch.zeros_like(mask)
    inner[tuple(slice(margin, size - margin) for size in mask.shape)] = True
    return mask & inner


@settings(max_examples=25, deadline=None)
@given(grids(), st.floats(1.0, 3.0))
def test_smooth_function_survives_there_and_back(source: tuple, spacing: float) -> None:
    affine, shape = source
    volume = volume_on(affine, shape)
    grid = ModelGrid.around(affine, shape, (spacing, spacing, 2.0), multiple=4)
    there = grid.to_model(volume)
    assert tuple(there.shape[1:]) == grid.shape
    assert all(size % 4 == 0 for size in grid.shape)
    np.testing.assert_array_equal(np.sign(grid.affine[:3, :3]), np.eye(3))  # RAS+
    # Away from the input's border the values are those of the function at the model's own voxel centres.
    inverse = np.linalg.inv(affine)
    index = torch.einsum("ij,jxyz->ixyz", torch.from_numpy(inverse[:3, :3]), world(grid.affine, grid.shape))
    index = index + torch.from_numpy(inverse[:3, 3]).reshape(3, 1, 1, 1)
    reach = 1 + 3 / spacing_of(affine).min()  # half a voxel of either grid, along any direction
    last = torch.tensor(shape).reshape(3, 1, 1, 1) - 1
    core = ((index >= reach) & (index <= last - reach)).all(0)
    if core.any():
        assert (there.as_tensor() - smooth(world(grid.affine, grid.shape)))[0][core].abs().max() < 0.1
    back = grid.from_model(there)
    assert same_grid(back, volume, 1e-9)
    assert grid.covered().all()
    margin = 2 + int(np.ceil(max(spacing, 2.0) / spacing_of(affine).min()))
    kept = interior(torch.ones(shape, dtype=torch.bool), min(margin, min(shape) // 3))
    assert (back.as_tensor() - volume.as_tensor())[0][kept].abs().max() < 0.3


@settings(max_examples=25, deadline=None)
@given(grids(), st.floats(1.0, 2.5))
def test_label_centroid_stays_in_place(source: tuple, spacing: float) -> None:
    affine, shape = source
    center = world(affine, shape).reshape(3, -1).mean(1)
    points = world(affine, shape)
    ball = (points - center[:, None, None, None]).square().sum(0).sqrt() < 10
    label = MetaTensor((ball[None] * 17).to(torch.int32), affine=torch.from_numpy(affine))
    grid = ModelGrid.around(affine, shape, (spacing,) * 3, multiple=2)
    there = grid.to_model(label, mode="label")
    assert there.dtype == torch.int32
    assert set(there.unique().tolist()) == {0, 17}
    for moved in (there, grid.from_model(there, mode="label")):
        found = world(moved.affine.numpy(), moved.shape[1:])[:, moved.as_tensor()[0] == 17].mean(1)
        assert (found - points[:, ball].mean(1)).norm() < 0.5


@settings(max_examples=25, deadline=None)
@given(grids())
def test_equal_axis_parallel_spacing_resamples_nothing(source: tuple) -> None:
    affine, shape = source
    axes = np.abs(affine[:3, :3]).argmax(1)
    if len(set(axes)) < 3:
        return
    steps = spacing_of(affine)
    straight = np.eye(4)
    straight[:3, :3] = 0
    for row, column in enumerate(axes):
        straight[row, column] = np.sign(affine[row, column]) * steps[column]
    straight[:3, 3] = affine[:3, 3]
    volume = MetaTensor(torch.rand((1, *shape), generator=torch.Generator().manual_seed(0)), affine=straight)
    grid = ModelGrid.around(straight, shape, steps[axes])
    assert grid.shape == tuple(np.array(shape)[axes])
    back = grid.from_model(grid.to_model(volume))
    torch.testing.assert_close(back.as_tensor(), volume.as_tensor(), atol=2e-4, rtol=0)


def inside(affine: np.ndarray, shape: tuple[int, ...], points: torch.Tensor, margin_mm: float) -> torch.Tensor:
    """Which world points lie in a grid at least ``margin_mm`` from its faces, whatever its shear."""
    inverse = torch.from_numpy(np.linalg.inv(affine))
    index = torch.einsum("ij,jxyz->ixyz", inverse[:3, :3], points) + inverse[:3, 3].reshape(3, 1, 1, 1)
    margin = margin_mm * inverse[:3, :3].norm(dim=1).reshape(3, 1, 1, 1)  # per mm across a face, in voxels
    last = torch.tensor(shape).reshape(3, 1, 1, 1) - 1
    return ((index >= margin) & (index <= last - margin)).all(0)


@settings(max_examples=40, deadline=None)
@given(grids(), st.tuples(*[st.floats(0.9, 3.0)] * 3))
def test_position_survives_there_and_back(source: tuple, spacing: tuple[float, float, float]) -> None:
    """Linear interpolation and means over voxels keep each world coordinate: exact on both grids, off the faces."""
    affine, shape = source
    points = world(affine, shape)
    volume = MetaTensor(points, affine=torch.from_numpy(affine))
    grid = ModelGrid.around(affine, shape, spacing, multiple=4)
    there = grid.to_model(volume)
    reach = float(np.linalg.norm(spacing) / 2 + np.linalg.norm(affine[:3, :3], axis=0).sum())
    place = world(grid.affine, grid.shape)
    core = inside(affine, shape, place, reach)
    assert not core.any() or (there.as_tensor() - place)[:, core].abs().max() < 1e-6
    back = grid.from_model(there)
    assert back.shape == volume.shape
    np.testing.assert_array_equal(back.affine, affine)
    core = inside(affine, shape, points, 2 * reach)
    assert not core.any() or (back.as_tensor() - points)[:, core].abs().max() < 1e-6


@settings(max_examples=25, deadline=None)
@given(grids(), st.floats(1.0, 3.0), st.sampled_from([torch.int16, torch.uint8, torch.float32, torch.float64]))
def test_untouched_voxels_are_the_same_bits(source: tuple, spacing: float, dtype: torch.dtype) -> None:
    affine, shape = source
    stream = torch.Generator().manual_seed(0)
    values = torch.randint(0, 255, (1, *shape), generator=stream).to(dtype)
    volume = MetaTensor(values + 0.125 if dtype.is_floating_point else values, affine=torch.from_numpy(affine))
    size = (8, 12, 8)
    grid = ModelGrid.around(affine, shape, (spacing,) * 3, size=size).with_window(IntensityWindow(-50.0, 400.0))
    changed = torch.rand((1, *shape), generator=stream) < 0.3
    result = torch.rand((1, *size), generator=stream)
    back = grid.put_back(volume, result, changed)
    assert back.dtype == dtype
    np.testing.assert_array_equal(back.affine, affine)
    take = changed & grid.covered()[None]
    assert torch.equal(back.as_tensor()[~take], volume.as_tensor()[~take])
    expected = grid.from_model(result).as_tensor()[take].clamp(*((0, 255) if dtype == torch.uint8 else (-50, 400)))
    tolerance = 1e-4 if dtype.is_floating_point else 0.5 + 1e-4
    if take.any():
        assert (back.as_tensor()[take].double() - expected).abs().max() <= tolerance


@settings(max_examples=15, deadline=None)
@given(grids(), st.floats(-1000, 1000), st.floats(1, 4000))
def test_window_goes_there_and_back_with_the_grid(source: tuple, low: float, width: float) -> None:
    affine, shape = source
    window = IntensityWindow(low, low + width)
    volume = volume_on(affine, shape)
    volume = MetaTensor((volume.as_tensor() + 3) / 6 * width + low, affine=volume.affine)  # all inside the window
    plain = ModelGrid.around(affine, shape, (2.0, 2.0, 2.0))
    grid = plain.with_window(window)
    there = grid.to_model(volume, fill=low)
    assert there.dtype == torch.float32
    assert -1e-4 <= float(there.min()) <= float(there.max()) <= 1 + 1e-4
    np.testing.assert_array_equal(there.affine, plain.affine)
    expected = plain.from_model(plain.to_model(volume, fill=low))
    scale = abs(low) + width
    assert (grid.from_model(there) - expected).abs().max() < 1e-5 * scale
    difference = grid.difference_from_model(there) - (grid.from_model(there, fill=low) - low)
    assert difference.abs().max() < 1e-5 * scale
    label = MetaTensor((volume.as_tensor() > low + width / 2).to(torch.int32), affine=volume.affine)
    assert torch.equal(grid.to_model(label, mode="label"), plain.to_model(label, mode="label"))


def test_voxels_of_a_micrometre_are_an_affine_like_any_other() -> None:
    affine = np.diag([1e-3, 1e-3, 2e-3, 1])
    grid = ModelGrid.around(affine, (8, 8, 8), (1e-3,) * 3)
    assert grid.shape == (8, 8, 16)


def test_area_is_the_mean_over_the_new_voxel() -> None:
    fine = torch.rand((1, 8, 8, 8), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    grid = ModelGrid.around(np.eye(4), (8, 8, 8), (2, 2, 2))
    expected = torch.nn.functional.avg_pool3d(fine[None], 2)[0]
    assert torch.allclose(resample(fine, np.eye(4), grid.affine, grid.shape), expected, atol=1e-6)
    blocks = fine.repeat_interleave(4, 1).repeat_interleave(4, 2).repeat_interleave(4, 3)
    grid = ModelGrid.around(np.eye(4), (32, 32, 32), (4, 4, 4))
    mean = resample(blocks, np.eye(4), grid.affine, grid.shape)
    assert torch.allclose(mean, torch.nn.functional.avg_pool3d(blocks[None], 4)[0], atol=1e-6)


def test_area_suppresses_what_the_new_grid_cannot_hold() -> None:
    """A stripe pattern of one voxel would alias to a constant 0 or 1 by point samples; the mean over voxels is 0.5."""
    stripes = (torch.arange(24) % 2).float()[None, :, None, None].expand(1, 24, 12, 12).contiguous()
    grid = ModelGrid.around(np.eye(4), (24, 12, 12), (4, 4, 4))
    assert (resample(stripes, np.eye(4), grid.affine, grid.shape)[:, 1:-1] - 0.5).abs().max() < 1e-5


def test_outside_is_filled_and_told() -> None:
    volume = MetaTensor(torch.ones(1, 20, 20, 20), affine=np.eye(4))
    grid = ModelGrid.around(volume.affine, (20, 20, 20), (1, 1, 1), size=(8, 8, 40), center_mm=(5, 5, 9.5))
    there = grid.to_model(volume, fill=-1)
    assert there.min() == -1
    assert (there == 1).sum() == 8 * 8 * 20
    assert grid.covered().sum() == 8 * 8 * 20
    back = grid.from_model(there, fill=7)
    assert torch.equal(back.as_tensor()[0] == 1, grid.covered())
    assert torch.equal(back.as_tensor()[0] == 7, ~grid.covered())


def test_nearest_invents_no_value() -> None:
    volume = MetaTensor(torch.randint(0, 5, (1, 9, 9, 9)).float(), affine=np.eye(4))
    grid = ModelGrid.around(volume.affine, (9, 9, 9), (0.7, 0.7, 0.7))
    assert set(grid.to_model(volume, mode="nearest").unique().tolist()) <= {0.0, 1.0, 2.0, 3.0, 4.0}


def test_slabs_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    affine = np.diag([1.3, 0.9, 2.0, 1])
    volume = volume_on(affine, (20, 21, 22))
    grid = ModelGrid.around(affine, (20, 21, 22), (1, 1, 1))
    whole = grid.to_model(volume).as_tensor()
    monkeypatch.setattr("medgen.geometry._POINTS_PER_SLAB", 1)
    assert torch.equal(grid.to_model(volume).as_tensor(), whole)


def test_meta_travels_and_the_affine_is_the_new_one() -> None:
    volume = MetaTensor(torch.ones(1, 8, 8, 8), affine=np.eye(4), meta={"synthetic": True})
    there = ModelGrid.around(np.eye(4), (8, 8, 8), (2, 2, 2)).to_model(volume)
    assert there.meta["synthetic"] is True
    np.testing.assert_allclose(spacing_of(there.affine.numpy()), 2)


def test_errors_are_plain() -> None:
    grid = ModelGrid.around(np.eye(4), (8, 8, 8), (2, 2, 2))
    with pytest.raises(MedgenError, match="is needed"):
        grid.from_model(torch.ones(1, 5, 5, 5))
    with pytest.raises(MedgenError, match="affine is not that"):
        grid.to_model(MetaTensor(torch.ones(1, 8, 8, 8), affine=np.diag([1, 1, 2.0, 1])))
    with pytest.raises(MedgenError, match="would blend"):
        grid.to_model(MetaTensor(torch.ones(1, 8, 8, 8, dtype=torch.int32), affine=np.eye(4)))
    with pytest.raises(MedgenError, match="inverted"):
        ModelGrid.around(np.zeros((4, 4)), (8, 8, 8), (2, 2, 2))
    with pytest.raises(MedgenError, match="above 0"):
        ModelGrid.around(np.eye(4), (8, 8, 8), (2, 0, 2))
    with pytest.raises(MedgenError, match="exclude"):
        ModelGrid.around(np.eye(4), (8, 8, 8), (2, 2, 2), size=(4, 4, 4), multiple=2)
