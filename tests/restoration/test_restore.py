"""One restorer on one scan: units, geometry, what stays, what is said."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from scipy.ndimage import gaussian_filter

from medgen.checks import MedgenError
from medgen.models.restorer import RestorerModel
from medgen.operators import ThroughPlane
from medgen.restoration.restore import restore
from medgen.restoration.thick_slices import fine_affine, thick_axis
from tests.models.test_restorer import small_restorer

AFFINE = np.array([[0, -1.2, 0, 10], [1.1, 0, 0, -5], [0, 0, 4.0, 3], [0, 0, 0, 1]], dtype=np.float64)


def thinner() -> RestorerModel:
    return small_restorer(restores="superres", given=[{"through_plane": {}}])


def scan(*size: int, scale: float = 700.0, affine: np.ndarray = AFFINE) -> MetaTensor:
    stream = torch.Generator().manual_seed(3)
    values = torch.rand((1, *size), generator=stream) * scale
    values[:, :4] = 0
    return MetaTensor(values, affine=torch.from_numpy(affine), meta={"source": "here"})


def test_denoised_in_the_scans_own_unit_and_grid() -> None:
    model = small_restorer()
    made, ten = (restore(scan(20, 18, 12, scale=s), "denoise", model, noise_level=0.05) for s in (700.0, 7000.0))
    assert made.image.shape == (1, 20, 18, 12)
    assert np.array_equal(made.image.affine, AFFINE)
    assert float(made.image.min()) >= 0, "a magnitude stays one"
    torch.testing.assert_close(ten.image.as_tensor(), 10 * made.image.as_tensor(), rtol=1e-3, atol=0.5)
    assert made.std is not None
    assert made.lower is not None
    assert made.upper is not None
    width = made.upper - made.image
    torch.testing.assert_close(width.as_tensor(), 1.5 * made.std.as_tensor())
    assert made.image.meta["source"] == "here"
    assert made.image.meta["synthetic"] is False
    assert made.provenance["noise_level"] == 0.05
    assert made.provenance["restores"] == "denoise"


def test_the_noise_is_estimated_and_said() -> None:
    made = restore(scan(20, 18, 12), "denoise", small_restorer())
    assert made.figures["noise_level"] > 0.1
    assert "was trained on 0.01 to 0.1" in made.remarks[0], "uniform noise is far beyond"
    stated = restore(scan(20, 18, 12), "denoise", small_restorer(), noise_level=0.05)
    assert not any("was trained on" in remark for remark in stated.remarks)


def test_thick_slices_measured_again_are_the_scan() -> None:
    model = thinner()
    volume = MetaTensor(gaussian_filter(scan(20, 18, 6).numpy(), (0, 1, 1, 1)), affine=torch.from_numpy(AFFINE))
    made = restore(volume, "superres", model)
    assert made.figures["target_spacing_mm"] == pytest.approx(1.15)
    count = round(6 * 4.0 / 1.15)
    assert made.image.shape == (1, 20, 18, count)
    again = ThroughPlane((20, 18, count), 4.0, spacing_mm=1.15, profile="gaussian", slices=6)
    back = again.forward(made.image.as_tensor()[None])[0]
    assert float((back - volume.as_tensor()).abs().max()) < 0.01 * float(volume.max())
    middles = [affine @ [10, 9, (n - 1) / 2, 1] for affine, n in ((AFFINE, 6), (made.image.affine.numpy(), count))]
    assert np.allclose(*middles), "about the same centre"


def test_the_slice_axis_may_be_any() -> None:
    model = thinner()
    volume = scan(20, 18, 6)
    turned = MetaTensor(volume.as_tensor().permute(0, 3, 1, 2), affine=torch.from_numpy(AFFINE[:, [2, 0, 1, 3]]))
    made, other = restore(volume, "superres", model), restore(turned, "superres", model)
    torch.testing.assert_close(other.image.as_tensor().permute(0, 2, 3, 1), made.image.as_tensor(), atol=0.5, rtol=1e-3)


def test_outside_a_hole_no_bit_changes() -> None:
    model = small_restorer(restores="inpaint")
    volume = scan(24, 22, 20)
    hole = torch.zeros(volume.shape)
    hole[:, 8:14, 9:12, 5:11] = 1
    mask = MetaTensor(hole, affine=volume.affine)
    broken = volume.clone()
    broken.data[hole > 0] = torch.nan
    made = restore(broken, "inpaint", model, inpaint_mask=mask)
    assert torch.equal(made.image.as_tensor()[hole == 0], volume.as_tensor()[hole == 0])
    assert bool(torch.isfinite(made.image).all())
    assert made.image.meta["synthetic"] is True
    same = restore(volume, "inpaint", model, inpaint_mask=mask)
    assert torch.equal(same.image, made.image), "what lies in the hole is not looked at"
    assert float(made.std[hole == 0].max()) == 0  # type: ignore[index]


def test_the_interval_of_a_hole_is_that_of_the_scan() -> None:
    model = small_restorer(restores="inpaint", interval_factor=1.5)
    volume = scan(40, 40, 40)
    hole = torch.zeros(volume.shape)
    hole[:, 16:24, 16:24, 16:24] = 1
    mask, seen = MetaTensor(hole, affine=volume.affine), list[tuple[int, int]]()
    made = restore(volume, "inpaint", model, inpaint_mask=mask, guard="off", callback=lambda k, n: seen.append((k, n)))
    plain = restore(volume, "inpaint", model, inpaint_mask=mask, guard="off", interval=False)
    assert "interval_factor" not in plain.figures
    for one, factor in ((made, made.figures["interval_factor"]), (plain, 1.5)):
        assert one.upper is not None
        assert one.std is not None
        torch.testing.assert_close(one.upper - one.image, factor * one.std, rtol=1e-3, atol=1e-3)
    assert made.figures["interval_factor"] != pytest.approx(1.5)
    hole[:, 4:36, 4:36, 4:36] = 1
    large = restore(volume, "inpaint", model, inpaint_mask=MetaTensor(hole, affine=volume.affine), guard="off")
    assert "has no equal place" in large.remarks[0]
    assert seen[-1] == (5, 5)


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        ({}, {"target_spacing": 1.0}, "target_spacing is for task 'superres'"),
        ({}, {"noise_level": 20.0}, "0.05 is 5%"),
        ({"restores": "inpaint"}, {}, "Give inpaint_mask"),
        ({"restores": "superres", "given": [{"through_plane": {}}]}, {"target_spacing": 5.0}, "below the slice"),
        ({"restores": "superres", "given": [{"through_plane": {}}]}, {"noise_level": 0.1}, "for task 'denoise'"),
    ],
)
def test_what_does_not_fit_is_refused(model: dict[str, Any], options: dict[str, Any], message: str) -> None:
    with pytest.raises(MedgenError, match=message):
        restore(scan(16, 16, 8), model.get("restores", "denoise"), small_restorer(**model), **options)


def test_bad_volumes_are_refused() -> None:
    model = small_restorer()
    with pytest.raises(MedgenError, match=r"MetaTensor \(1, X, Y, Z\)"):
        restore(torch.zeros(1, 4, 4, 4), "denoise", model)  # type: ignore[arg-type]
    with pytest.raises(MedgenError, match="NaN or infinity"):
        restore(MetaTensor(torch.full((1, 8, 8, 8), torch.nan)), "denoise", model)
    with pytest.raises(MedgenError, match="2 times as thick"):
        restore(scan(16, 16, 16, affine=np.eye(4)), "superres", thinner())


def test_hounsfield_units_stay() -> None:
    model = small_restorer(scaling="hounsfield")
    volume = scan(16, 16, 16) - 1000
    made = restore(volume, "denoise", model, noise_level=0.02)
    assert float(made.image.min()) < -500, "air is not clipped"


def test_a_constant_scan_is_restored_too() -> None:
    made = restore(MetaTensor(torch.zeros(1, 16, 16, 16)), "denoise", small_restorer(), noise_level=0.02)
    assert bool(torch.isfinite(made.image).all())


def test_axes_and_affines() -> None:
    assert thick_axis((1.0, 1.0, 3.0)) == 2
    with pytest.raises(MedgenError, match="above 0"):
        thick_axis((1.0, 1.0, 3.0), -1.0)
    assert np.allclose(fine_affine(np.eye(4), 0, 4, 4, 1.0), np.eye(4))
