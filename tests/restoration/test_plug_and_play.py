"""Plug and play with total variation: against a Gaussian prior, in holes, on k-space whose phase is known or nearly."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import Tensor

from medgen.checks import MedgenError
from medgen.operators import Blur, CartesianKSpace, Chain, Mask, Operator, Phase, cartesian_mask
from medgen.restoration.plug_and_play import plug_and_play, refined_phase
from medgen.restoration.posterior import Measurement
from medgen.restoration.total_variation import VariationFit, divergence, gradient, total_variation
from tests.models.test_restorer import small_restorer
from tests.restoration.test_posterior import NOISE as CASE_NOISE
from tests.restoration.test_posterior import Case

SIZE = (32, 24)
NOISE = 0.002


def image() -> Tensor:
    """A disc with a brighter one within, a ramp and fine stripes."""
    place = torch.stack(torch.meshgrid(torch.linspace(-1, 1, 32), torch.linspace(-1, 1, 24), indexing="ij"))
    far = place.square().sum(0).sqrt()
    return ((far < 0.8) * (0.5 + 0.1 * place[0] + 0.1 * (9 * place[0] + 7 * place[1]).sin()) + 0.3 * (far < 0.3))[
        None, None
    ]


def phase() -> Tensor:
    return torch.linspace(-1.5, 1.5, 32)[:, None].square() + torch.linspace(0, 1, 24)


@cache
def lines() -> CartesianKSpace:
    stream = torch.Generator().manual_seed(1)
    return CartesianKSpace(cartesian_mask(SIZE, 2.0, stream, axes=(0,), center_fraction=0.15))


def measured(off: float = 0.0) -> Measurement:
    """Half of k-space; what is known of the phase is wrong by a bump of so many radians."""
    noise = NOISE * torch.randn(2, 1, 1, *SIZE, generator=torch.Generator().manual_seed(2))
    y = Chain([Phase(phase()), lines()]).forward(image()) + torch.complex(*noise) * lines().mask
    bump = off * torch.linspace(-2, 2, 32)[:, None].square().neg().exp().expand(SIZE)
    return Measurement(Chain([Phase(phase() + bump), lines()]), y, NOISE)


def error(made: Tensor) -> float:
    return float((made - image()).square().mean().sqrt())


def oracle(x: Tensor, sigma: Tensor) -> Tensor:
    """Half of the way to the truth, mirrored as the image is: better than any denoiser."""
    mirrored = [image().flip(axes) for axes in ([], [2], [3], [2, 3])]
    return (x + min(mirrored, key=lambda truth: float((truth - x).square().sum()))) / 2


def test_divergence_is_minus_the_adjoint_of_the_gradient() -> None:
    stream = torch.Generator().manual_seed(0)
    for size in ((5, 4), (5, 4, 3)):
        x, p = (torch.randn(*shape, 2, 1, *size, generator=stream) for shape in ((), (len(size),)))
        assert float((gradient(x) * p).sum()) == pytest.approx(-float((x * divergence(p)).sum()), rel=1e-4)


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_variation_has_the_least_of_what_it_minimises(scale: float) -> None:
    """Whatever the norm of the operator; no nearby image has less, and the start has much more."""
    operator, truth = _Scaled(Blur(SIZE, 2.0), scale), image()
    y = operator.forward(truth)

    def cost(x: Tensor) -> float:
        return float((operator.forward(x) - y).square().sum() / 2 + 0.01 * gradient(x).square().sum(0).sqrt().sum())

    made = VariationFit(operator, y)(0.01, 1500)
    stream = torch.Generator().manual_seed(0)
    near = [made + size * torch.randn(made.shape, generator=stream) for size in (1e-3, 1e-2)]
    toward = [made + share * (other - made) for share in (0.03, 0.3) for other in (truth, operator.adjoint(y))]
    assert cost(made) < min(map(cost, near + toward))


def test_variation_near_an_image() -> None:
    """With a strong pull it is that image, with none it does not matter."""
    known = measured()
    pulled = VariationFit(known.operator, known.y)(1e-6, 300, near=image() + 0.1, pull=1e4)
    torch.testing.assert_close(pulled, image() + 0.1, atol=1e-3, rtol=0)
    alone = VariationFit(known.operator, known.y)(1e-3, 50)
    torch.testing.assert_close(VariationFit(known.operator, known.y)(1e-3, 50, near=image()), alone)


def test_variation_fills_what_was_not_measured() -> None:
    known = measured()
    zero_filled = known.operator.adjoint(known.y)
    assert error(total_variation(known, 1e-3)) < 0.5 * error(zero_filled)


def test_the_denoiser_adds_to_total_variation() -> None:
    known, seen = measured(), list[tuple[int, int]]()
    made, same = plug_and_play(oracle, known, steps=6, callback=lambda k, n: seen.append((k, n)))
    plain, _ = plug_and_play(lambda x, sigma: x, known, steps=6)
    assert made.shape == (1, 1, *SIZE)
    assert made.dtype == torch.float32
    assert error(made) < 0.5 * error(plain)
    assert same is known
    assert seen == [(k, 6) for k in range(1, 7)]


@pytest.mark.parametrize("isotropic", [True, False])
def test_nearer_to_the_truth_than_the_prior(isotropic: bool) -> None:
    case = Case.make(isotropic)
    measurement = Measurement(case.operator, case.y, noise_std=CASE_NOISE, prior_std=1.0)
    made, _ = plug_and_play(case.denoise, measurement, sigma_max=2.0, weight=0.1, variation=1e-6)
    exact, _ = case.posterior()
    prior = (case.data.mean - exact).abs()
    assert float((made.flatten() - exact).square().mean()) < 0.5 * float(prior.square().mean())


def a_hole() -> Tensor:
    hole = torch.zeros(SIZE)
    hole[12:18, 8:15] = 1
    return hole


def test_what_was_measured_exactly_stays() -> None:
    """The hole is filled from where total variation begins, the rest is that of the measurement to the last bit."""
    operator, start = Mask(a_hole()), image() + 0.05 * a_hole()
    known = Measurement(operator, operator.forward(image()))
    made, _ = plug_and_play(oracle, known, start=start, steps=4)
    assert torch.equal(operator.forward(made), known.y)
    assert error(made) < 0.5 * error(start)
    assert error(start) < 0.5 * error(plug_and_play(lambda x, sigma: x, known, steps=4)[0])


def test_what_an_operator_hardly_lets_through_is_not_made_up() -> None:
    blur = Blur(SIZE, 6.0)
    for noise in (0.0, 0.01):
        y = blur.forward(image()) + noise * torch.randn(1, 1, *SIZE, generator=torch.Generator().manual_seed(0))
        made, _ = plug_and_play(oracle, Measurement(blur, y, noise), steps=4)
        assert error(made) < error(y)


def test_little_noise_is_no_more_than_that() -> None:
    noise = torch.randn(1, 1, *SIZE, generator=torch.Generator().manual_seed(0))
    known = Measurement(Mask(a_hole()), image() + 2e-4 * noise, 2e-4)
    made, _ = plug_and_play(oracle, known, start=image(), steps=4)
    seen = known.residual(made)[..., a_hole() == 0]
    assert float(seen.square().mean().sqrt()) <= 2.02e-4


def test_the_levels_rise_with_the_noise() -> None:
    seen: list[float] = []

    def watch(x: Tensor, sigma: Tensor) -> Tensor:
        seen.append(float(sigma[0]))
        return x

    for noise in (0.005, 0.1):
        plug_and_play(watch, Measurement(Mask(a_hole()), image(), noise), steps=2)
    assert seen == pytest.approx([0.02, 0.006, 0.1, 0.03])


def test_a_restorer_serves_as_denoiser() -> None:
    model = small_restorer()
    volume = torch.rand(1, 1, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    operator = Blur((16, 16, 16), [2.0] * 3)
    made, _ = plug_and_play(model.denoise, Measurement(operator, operator.forward(volume), 0.05), steps=2)
    assert made.shape == volume.shape
    assert bool(torch.isfinite(made).all())
    with pytest.raises(MedgenError, match="is no denoiser"):
        small_restorer(restores="motion", given=[{"rigid_motion": {}}]).denoise(volume, torch.tensor([0.1]))


def test_a_denoiser_sees_every_mirror_image() -> None:
    seen: list[bool] = []

    def watch(x: Tensor, sigma: Tensor) -> Tensor:
        seen.append(bool(x[..., :16, :].mean() > x[..., 16:, :].mean()))  # the ramp goes up
        return x

    plug_and_play(watch, measured(), steps=4)
    assert seen == [False, True, False, True]


def test_a_wrong_phase_is_corrected() -> None:
    known = measured(off=0.3)
    left = plug_and_play(oracle, known, steps=12)[0]
    made, refined = plug_and_play(oracle, known, steps=12, phase_width=3.0)
    assert error(made) < 0.5 * error(left)

    def misfit(known: Measurement) -> float:
        return float(known.residual(image()).abs().square().mean().sqrt())

    assert misfit(refined) < 0.3 * misfit(known)


def test_a_right_phase_stays() -> None:
    known = measured()
    turned = refined_phase(known, image(), 3.0).operators[0]
    assert isinstance(turned, Phase)
    inside = image()[0, 0] > 0
    assert float((turned.phase - phase())[inside].abs().max()) < 0.02


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps"),
        ({"iterations": 0}, "iterations"),
        ({"weight": 0.0}, "weight"),
        ({"variation": -1.0}, "variation"),
        ({"sigma_min": 3.0}, "at most sigma_max"),
        ({"sigma_max": -1.0}, "sigma_max"),
        ({"phase_width": 0.0, "steps": 1}, "phase_width"),
    ],
)
def test_bad_arguments(options: dict[str, float], message: str) -> None:
    with pytest.raises(MedgenError, match=message):
        plug_and_play(oracle, measured(), **options)  # type: ignore[arg-type]


def test_only_a_phase_can_be_corrected() -> None:
    holes = Mask(torch.zeros(SIZE))
    with pytest.raises(MedgenError, match="begins with Phase"):
        plug_and_play(oracle, Measurement(holes, image()), steps=1, phase_width=2.0)
    two = Measurement(measured().operator, measured().y.expand(2, 1, *SIZE), NOISE)
    with pytest.raises(MedgenError, match="one volume"):
        plug_and_play(oracle, two, steps=1, phase_width=2.0)


def test_complex_operators_ask_for_a_phase_at_once() -> None:
    with pytest.raises(MedgenError, match="Put Phase in front"):
        plug_and_play(lambda x, sigma: pytest.fail("was asked for"), Measurement(lines(), measured().y))


class _Scaled(Operator):
    def __init__(self, inside: Operator, scale: float) -> None:
        super().__init__(inside.size)
        self.inside, self.scale = inside, scale

    def _forward(self, x: Tensor) -> Tensor:
        return self.scale * self.inside.forward(x)

    def _adjoint(self, y: Tensor) -> Tensor:
        return self.scale * self.inside.adjoint(y)
