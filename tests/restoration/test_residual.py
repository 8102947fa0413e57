"""The residual check: noise alone passes, what was made up does not."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from medgen.checks import MedgenError
from medgen.operators import Blur, CartesianKSpace, Chain, Mask, Operator, Phase, ThroughPlane, cartesian_mask
from medgen.restoration.posterior import Measurement
from medgen.restoration.residual import check_residual

SIZE, NOISE = (24, 24), 0.1


def operators() -> list[Operator]:
    hole = torch.zeros(SIZE)
    hole[8:14, 8:14] = 1
    kspace = CartesianKSpace(cartesian_mask(SIZE, 2.0, torch.Generator().manual_seed(0)))
    return [
        Mask(hole),
        Blur(SIZE, fwhm_mm=1.5),
        ThroughPlane(SIZE, 4.0, axis=1),
        Chain([Phase(torch.zeros(SIZE)), kspace]),
    ]


def measured(operator: Operator, seed: int) -> tuple[Tensor, Measurement]:
    stream = torch.Generator().manual_seed(seed)
    x = torch.rand(1, 1, *SIZE, generator=stream)
    y = operator.forward(x)
    noise = torch.randn(2, *y.shape, generator=stream)
    y = y + NOISE * (torch.complex(*noise) if y.is_complex() else noise[0])
    return x, Measurement(operator, y if operator.observed is None else y * operator.observed, NOISE)


@pytest.mark.parametrize("operator", operators(), ids=lambda operator: operator.name)
def test_noise_alone_is_rarely_flagged(operator: Operator) -> None:
    checks = [check_residual(known, x) for x, known in (measured(operator, seed) for seed in range(40))]
    assert sum(check.flagged for check in checks) <= 2  # 1% are expected at most
    assert sum(check.ratio for check in checks) / 40 == pytest.approx(1, abs=0.03)
    spread = torch.cat([check.z.flatten() for check in checks])
    assert float(spread[spread != 0].std()) == pytest.approx(1, abs=0.12)
    assert 0.2 < sum(check.p_value for check in checks) / 40 < 0.8


@pytest.mark.parametrize("operator", operators(), ids=lambda operator: operator.name)
def test_a_blob_that_was_made_up_is_flagged_where_it_is(operator: Operator) -> None:
    x, known = measured(operator, 0)
    x[..., 15:20, 15:20] += 3 * NOISE
    check = check_residual(known, x)
    assert check.flagged
    assert "contradicts the measurement" in check.sentence()
    assert "Do not rely" in check.sentence()
    if check.z.shape[1:] == SIZE:
        assert bool(check.places[..., 15:20, 15:20].any())
        assert not bool(check.places[..., :8, :].any())


def test_what_is_too_faint_to_matter_is_told_but_not_flagged() -> None:
    x, known = measured(operators()[0], 0)
    options = {"width": 8.0, "tolerance": 0.2}
    faint = check_residual(known, x + 0.35 * NOISE, least=0.8, **options)
    assert float(faint.z.abs().max()) > faint.bound  # the noise does not explain it
    assert not faint.flagged
    assert check_residual(known, x + 0.35 * NOISE, least=0.0, **options).flagged
    assert check_residual(known, x + 1.5 * NOISE, least=0.8, **options).flagged


def test_what_was_not_measured_cannot_contradict() -> None:
    x, known = measured(operators()[0], 0)
    x[..., 9:13, 9:13] += 5
    check = check_residual(known, x)
    assert not check.flagged
    assert check.sentence() == ""
    assert bool((check.z[..., 9:13, 9:13] == 0).all())


def test_an_image_of_the_noise_is_not_flagged() -> None:
    """Fitting noise is another fault, and no residual shows it."""
    _, known = measured(operators()[0], 0)
    check = check_residual(known, known.y.clone())
    assert check.ratio == 0
    assert not check.flagged


def test_exact_measurements_are_refused() -> None:
    x, known = measured(operators()[0], 0)
    with pytest.raises(MedgenError, match="a measurement with noise"):
        check_residual(Measurement(known.operator, known.y), x)
    with pytest.raises(MedgenError, match="width"):
        check_residual(known, x, width=0)
