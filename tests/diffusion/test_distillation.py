"""Distillation: exact on Gaussian data, and a small student that learns its teacher's flow."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from medgen.checks import MedgenError
from medgen.diffusion.distillation import (
    distillation_levels,
    draw_above,
    draw_level,
    end_target,
    flow_between,
    log_variogram,
    next_target,
    pseudo_huber,
)
from medgen.diffusion.randomness import generators
from medgen.diffusion.samplers import SAMPLERS
from medgen.diffusion.schedules import logsnr_sigmas
from tests.conformance.gaussian import GaussianData

DATA = GaussianData.spread(0.05, 2.0, d=6)
LEVELS = distillation_levels(4, 0.5, 20.0, 0.02)


def teacher(x: Tensor, sigma: Tensor) -> Tensor:
    return DATA.denoise(x, sigma)


def flow_end(x: Tensor, sigma: Tensor) -> Tensor:
    """The exact consistency function, each sample from its own level."""
    rows = [DATA.flow(x[i : i + 1], float(sigma[i]), float(LEVELS[-1])) for i in range(len(x))]
    return torch.cat(rows)


def test_each_sample_flows_between_its_own_levels() -> None:
    start = torch.tensor([20.0, 3.0, 0.5], dtype=torch.float64)
    end = torch.tensor([3.0, 0.5, 0.02], dtype=torch.float64)
    x = torch.cat([DATA.at(float(s), 1, seed=i) for i, s in enumerate(start)])
    found = flow_between(teacher, x, start, end, 80)
    for i in range(3):
        exact = DATA.flow(x[i : i + 1], float(start[i]), float(end[i]))
        assert DATA.error(found[i : i + 1], exact) < 5e-3
        alone = SAMPLERS["dpmpp_2m"](
            teacher, x[i : i + 1], logsnr_sigmas(80, float(end[i]), float(start[i]), final_zero=False)
        )
        torch.testing.assert_close(found[i : i + 1], alone, rtol=1e-9, atol=1e-9)


def test_more_steps_of_the_teacher_are_nearer() -> None:
    start, end = torch.full((8,), 6.0, dtype=torch.float64), torch.full((8,), 0.5, dtype=torch.float64)
    x = DATA.at(6.0, 8)
    exact = DATA.flow(x, 6.0, 0.5)
    errors = [DATA.error(flow_between(teacher, x, start, end, n), exact) for n in (1, 2, 4, 8)]
    assert errors == sorted(errors, reverse=True)


def test_a_ddim_step_with_the_next_target_arrives_where_the_teacher_does() -> None:
    x, start, end = DATA.at(20.0, 5), LEVELS[0].expand(5), LEVELS[1].expand(5)
    answer = next_target(teacher, x, start, end, 6)
    stepped = SAMPLERS["ddim"](lambda *_: answer, x, LEVELS[:2])
    torch.testing.assert_close(stepped, flow_between(teacher, x, start, end, 6))


def test_a_consistency_function_is_its_own_target() -> None:
    place = torch.tensor([0, 1, 2, 3])
    start, end = LEVELS[place], LEVELS[place + 1]
    x = torch.cat([DATA.at(float(s), 1, seed=i) for i, s in enumerate(start)])
    found = end_target(teacher, flow_end, x, start, end, float(LEVELS[-1]), 100)
    assert DATA.error(found, flow_end(x, start)) < 0.01


def test_four_consistency_steps_give_the_right_distribution() -> None:
    draws = 20_000
    x = DATA.mean + (DATA.at(20.0, draws) - DATA.mean)
    sigmas = torch.cat([LEVELS[:-1], LEVELS.new_zeros(1)])
    sample = SAMPLERS["consistency"](
        lambda x, s: DATA.flow(x, float(s[0]), float(LEVELS[-1])), x, sigmas, generators=generators(range(draws))
    )
    along = ((sample - DATA.mean) @ DATA.basis)[:, 0]
    assert torch.allclose(along.var(0) / DATA.variances, torch.ones_like(DATA.variances), atol=0.06)


@pytest.mark.parametrize(("jump", "sampler"), [("next", "ddim"), ("end", "consistency")])
def test_a_linear_student_learns_its_teachers_flow(jump: str, sampler: str) -> None:
    """A matrix and an offset for each level can express both targets exactly."""
    count = len(LEVELS) - 1
    weight = torch.zeros(count, 6, 6, dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(count, 1, 6, dtype=torch.float64, requires_grad=True)

    def student(x: Tensor, sigma: Tensor) -> Tensor:
        place = (LEVELS[None] - sigma.double()[:, None]).abs().argmin(1).clamp(max=count - 1)
        scaled = x / (1 + sigma.double()[:, None, None])
        return scaled @ weight[place] + bias[place]

    optimizer = torch.optim.Adam([weight, bias], lr=0.1)
    for step in range(300):
        streams = generators([64 * step + i for i in range(64)])
        place = draw_level(streams, count)
        start, end = LEVELS[place], LEVELS[place + 1]
        noise = torch.stack([torch.randn(1, 6, generator=s, dtype=torch.float64) for s in streams])
        clean = DATA.mean + (noise[:, :, :6] * DATA.variances.sqrt()) @ DATA.basis.T
        other = torch.stack([torch.randn(1, 6, generator=s, dtype=torch.float64) for s in streams])
        x = clean + start[:, None, None] * other
        if jump == "next":
            target = next_target(teacher, x, start, end, 4)
        else:
            target = end_target(teacher, student, x, start, end, float(LEVELS[-1]), 4)
        loss = pseudo_huber(student(x, start) - target, 0.1).mean()
        optimizer.param_groups[0]["lr"] = 0.1 * (1 - step / 300)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    x, sigmas = DATA.at(20.0, 2000), torch.cat([LEVELS[:-1], LEVELS.new_zeros(1)])
    made = SAMPLERS[sampler](student, x, sigmas, generators=generators(range(2000)))
    plain = SAMPLERS["ddim"](teacher, x, sigmas)
    error = [((((y - DATA.mean) @ DATA.basis)[:, 0].var(0) / DATA.variances).log().abs().max()) for y in (made, plain)]
    assert error[0] < 0.25 < error[1]


def test_levels_and_draws() -> None:
    assert LEVELS.tolist() == pytest.approx([20.0, 5.848, 1.7100, 0.5, 0.02], rel=1e-3)
    places = draw_level(generators(range(400)), 4)
    assert sorted(places.unique().tolist()) == [0, 1, 2, 3]
    assert torch.equal(places, draw_level(generators(range(400)), 4))
    above = draw_above(generators(range(400)), 2.0, 20.0)
    assert 2.0 <= float(above.min()) < 2.2 < 18 < float(above.max()) <= 20.0
    with pytest.raises(MedgenError, match="flow_between: steps"):
        flow_between(teacher, DATA.at(1.0, 1), LEVELS[:1], LEVELS[1:2], 0)


def test_variogram_sees_roughness_along_each_axis() -> None:
    stripes = torch.zeros(1, 1, 8, 8)
    stripes[..., ::2, :] = 1
    variance, *others = log_variogram(stripes, (1, 2)).exp()[0, 0].tolist()
    assert variance == pytest.approx(0.25, abs=1e-4)
    assert others == pytest.approx([1.0, 0.0, 0.0, 0.0], abs=1e-4)
    assert log_variogram(torch.zeros(2, 3, 2, 2)).shape == (2, 3, 3)
    assert torch.isfinite(log_variogram(torch.zeros(1, 1, 4))).all()


def test_pseudo_huber_is_squared_then_absolute() -> None:
    small, large = pseudo_huber(torch.tensor([1e-3, 1e3], dtype=torch.float64), 0.1).tolist()
    assert small == pytest.approx(1e-6 / 0.2, rel=1e-3)
    assert large == pytest.approx(1e3, rel=1e-3)
