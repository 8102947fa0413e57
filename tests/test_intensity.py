"""The window between a scan's intensities and the model's."""

from __future__ import annotations

import pytest
import torch

from medgen.checks import MedgenError
from medgen.intensity import IntensityWindow


def test_robust_extremes_become_0_and_1() -> None:
    values = torch.cat([torch.zeros(500), torch.linspace(100, 200, 1000), torch.tensor([1e5])])
    window = IntensityWindow.of(values)
    assert window.low == 0
    assert window.high == pytest.approx(200, abs=2)
    torch.testing.assert_close(window.inverse(window.forward(values[:1500])), values[:1500], atol=0.01, rtol=1e-4)
    assert float(window.forward(values[-1])) == 1.5


def test_neither_order_nor_shape_matters() -> None:
    values = torch.rand(6, 7, 8, generator=torch.Generator().manual_seed(0)) * 2000 - 1000
    assert IntensityWindow.of(values) == IntensityWindow.of(values.flatten().flip(0))


@pytest.mark.parametrize("value", [0.0, -1000.0, 3e4])
def test_a_constant_image_becomes_0_and_comes_back(value: float) -> None:
    values = torch.full((1, 4, 4, 4), value)
    window = IntensityWindow.of(values)
    assert window.high > window.low == value
    assert not window.forward(values).any()
    assert torch.equal(window.inverse(window.forward(values)), values)


def test_one_value_is_enough() -> None:
    assert IntensityWindow.of(torch.tensor([5])) == IntensityWindow(5.0, 6.0)


@pytest.mark.parametrize("shape", [(0,), (1, 0, 4, 4)])
def test_no_known_voxel_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(MedgenError, match="no known voxel"):
        IntensityWindow.of(torch.zeros(shape))
