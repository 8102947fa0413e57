"""Every entry of ``SAMPLERS`` against Gaussian data with a closed form, and what all samplers promise."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from medgen.checks import MedgenError
from medgen.diffusion.randomness import generators
from medgen.diffusion.samplers import SAMPLERS, Sampler, evaluations, sample_ddim, sample_unipc
from medgen.diffusion.schedules import logsnr_sigmas
from tests.conformance.gaussian import (
    GaussianData,
    chain_range,
    convergence,
    deterministic,
    error_within,
    exact_variances,
    monai_ddim,
    stochastic,
    variance_convergence,
)

EVERY = pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)
DETERMINISTIC = pytest.mark.parametrize("sampler", deterministic(), ids=lambda sampler: sampler.name)
STOCHASTIC = pytest.mark.parametrize("sampler", stochastic(), ids=lambda sampler: sampler.name)
ENDS = pytest.mark.parametrize("final_zero", [True, False], ids=["to_zero", "to_sigma_min"])


class Network:
    """An elementwise denoiser that counts its calls and keeps the levels it saw."""

    def __init__(self) -> None:
        self.levels: list[float] = []

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        assert sigma.shape == (len(x),)
        assert not torch.is_grad_enabled()
        self.levels.append(float(sigma[0]))
        column = sigma.to(x.dtype).reshape(-1, *[1] * (x.ndim - 1))
        return x / (1 + column * column) + 0.25


def start(count: int = 3, shape: tuple[int, ...] = (2, 5, 4), dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(0)).to(dtype) * 10


@DETERMINISTIC
@pytest.mark.parametrize("schedule", ["logsnr", "karras"])
def test_converges_to_the_probability_flow_at_its_order(sampler: Sampler, schedule: str) -> None:
    errors, order = convergence(sampler, (64, 128, 256), schedule=schedule)
    assert sampler.order - 0.1 < order < sampler.order + 0.3, errors
    assert errors[-1] < 0.01


@pytest.mark.parametrize(
    ("options", "expected"),
    [({"corrector": False}, 2), ({"order": 1}, 2), ({"variant": "bh1"}, 3), ({"order": 1, "corrector": False}, 1)],
)
def test_unipc_order_of_its_variants(options: dict[str, object], expected: int) -> None:
    _, order = convergence(lambda *a: sample_unipc(*a, **options), (64, 128, 256))  # type: ignore[arg-type]
    assert abs(order - expected) < 0.15


@STOCHASTIC
def test_variance_converges_at_its_weak_order(sampler: Sampler) -> None:
    errors, order = variance_convergence(sampler, (64, 128, 256))
    assert sampler.order - 0.1 < order < sampler.order + 0.3, errors


@STOCHASTIC
def test_samples_have_the_right_variance(sampler: Sampler) -> None:
    data, draws = GaussianData.spread(0.05, 2.0, d=4), 4000
    sigmas = logsnr_sigmas(400, 0.005, 20.0)
    x = data.mean + sigmas[0] * torch.randn(4, draws, 4, dtype=torch.float64, generator=generators([5])[0])
    sample = sampler(data.denoise, x, sigmas, generators=generators(range(4)))
    along = ((sample - data.mean) @ data.basis).flatten(0, 1)
    error = (2 / len(along)) ** 0.5
    assert torch.allclose(along.var(0) / data.variances, torch.ones(4, dtype=torch.float64), atol=4 * error)
    assert (along.mean(0).abs() < 4 * (data.variances / len(along)).sqrt()).all()


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_consistency_is_exact_at_every_number_of_steps(steps: int) -> None:
    """From the flow's own start, whose variance is ``variances + sigmas[0]**2``, with the end of that flow."""
    variances = GaussianData.spread().variances
    found = exact_variances(SAMPLERS["consistency"], logsnr_sigmas(steps, 0.3, 20.0), variances, distilled=True)
    assert torch.allclose(found, variances)


def test_exact_variances_agree_with_sampling() -> None:
    variances = torch.tensor([0.1, 1.0], dtype=torch.float64)
    data = GaussianData(torch.zeros(2, dtype=torch.float64), torch.eye(2, dtype=torch.float64), variances)
    sigmas = logsnr_sigmas(8, 0.05, 20.0)
    x = data.at(20.0, 4 * 5000).reshape(4, 5000, 2)
    sample = SAMPLERS["ddpm"](data.denoise, x, sigmas, generators=generators(range(4)))
    ratio = sample.flatten(0, 1).var(0) / exact_variances(SAMPLERS["ddpm"], sigmas, variances)
    assert torch.allclose(ratio, torch.ones_like(ratio), atol=4 * (2 / 20000) ** 0.5)


@pytest.mark.parametrize(
    ("lowest", "highest", "options"), [(0.01, 2.0, {}), (0.03, 1.4, {}), (0.1, 1.4, {"knee": 10.0})]
)
def test_ten_evaluations_are_as_near_as_250_of_monai_ddim(
    lowest: float, highest: float, options: dict[str, float]
) -> None:
    data = GaussianData.spread(lowest**2, highest**2)
    sigma_min, sigma_max = chain_range()
    x = data.at(sigma_max, 32)
    ours = error_within(SAMPLERS["dpmpp_2m"], 10, data, x, "logsnr", sigma_min=sigma_min, **options)
    assert ours <= data.error(monai_ddim(data, x, 250), data.flow(x, sigma_max, 0.0))


@EVERY
@ENDS
def test_no_evaluation_is_wasted(sampler: Sampler, final_zero: bool) -> None:
    network, sigmas = Network(), logsnr_sigmas(6, 0.1, 10.0, final_zero=final_zero)
    sampler(network, start(), sigmas, generators=generators(range(3)))
    assert len(network.levels) == evaluations(sampler.name, 6, final_zero=final_zero)
    assert set(network.levels) <= set(sigmas.float().tolist()) - {0.0}


@EVERY
def test_final_step_to_zero_returns_the_last_x0(sampler: Sampler) -> None:
    answers: list[Tensor] = []

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        answers.append(x / (1 + sigma[0] ** 2))
        return answers[-1]

    sample = sampler(denoise, start(), logsnr_sigmas(5, 0.1, 10.0), generators=generators(range(3)))
    assert torch.equal(sample, answers[-1])


@EVERY
@ENDS
@pytest.mark.parametrize("shape", [(1, 7), (2, 5, 4), (1, 3, 4, 5)])
def test_a_sample_does_not_depend_on_its_neighbours(sampler: Sampler, final_zero: bool, shape: tuple[int, ...]) -> None:
    x, sigmas = start(3, shape), logsnr_sigmas(6, 0.1, 10.0, final_zero=final_zero)
    together = sampler(Network(), x, sigmas, generators=generators([7, 8, 9]))
    alone = [sampler(Network(), x[i : i + 1], sigmas, generators=generators([7 + i])) for i in range(3)]
    assert torch.equal(together, torch.cat(alone))


@EVERY
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_keeps_dtype_and_leaves_x_alone(sampler: Sampler, dtype: torch.dtype) -> None:
    x = start(dtype=dtype).requires_grad_()
    before = x.detach().clone()
    sample = sampler(Network(), x, logsnr_sigmas(4, 0.1, 10.0), generators=generators(range(3)))
    assert (sample.dtype, sample.shape, sample.requires_grad) == (dtype, x.shape, False)
    assert torch.equal(x, before)


@EVERY
def test_callback_sees_every_step(sampler: Sampler) -> None:
    seen: list[tuple[int, float]] = []
    x, sigmas = start(), logsnr_sigmas(5, 0.1, 10.0)

    def callback(step: int, state: Tensor, sigma: float, x0: Tensor) -> None:
        assert state.shape == x0.shape == x.shape
        assert torch.equal(x0, Network()(state, torch.full((3,), sigma)))
        seen.append((step, sigma))

    sampler(Network(), x, sigmas, generators=generators(range(3)), callback=callback)
    assert seen == list(enumerate(sigmas[:-1].tolist()))


@EVERY
@pytest.mark.parametrize(
    "sigmas", [[1.0], [1.0, 1.0, 0.0], [0.5, 1.0], [float("inf"), 1.0], [1.0, float("nan")], [1.0, -0.1], [[1.0, 0.5]]]
)
def test_refuses_impossible_sigmas(sampler: Sampler, sigmas: list[float]) -> None:
    with pytest.raises(MedgenError, match=rf"^sample_{sampler.name}: sigmas must be .*; got .*schedules\.$"):
        sampler(Network(), start(), torch.tensor(sigmas), generators=generators(range(3)))


@STOCHASTIC
@pytest.mark.parametrize("streams", [None, generators([1, 2])], ids=["none", "too_few"])
def test_stochastic_samplers_need_one_generator_a_sample(
    sampler: Sampler, streams: list[torch.Generator] | None
) -> None:
    with pytest.raises(MedgenError, match=r"generators must hold one per sample \(3\); got [02]"):
        sampler(Network(), start(), logsnr_sigmas(3), generators=streams)


@DETERMINISTIC
def test_deterministic_samplers_draw_nothing(sampler: Sampler) -> None:
    streams = generators(range(3))
    before = [stream.get_state() for stream in streams]
    sampler(Network(), start(), logsnr_sigmas(3), generators=streams)
    assert all(torch.equal(a, b.get_state()) for a, b in zip(before, streams, strict=True))


@EVERY
def test_refuses_a_denoiser_of_another_shape(sampler: Sampler) -> None:
    with pytest.raises(MedgenError, match="denoise must return the shape of x"):
        sampler(lambda x, sigma: x[:, :1], start(), logsnr_sigmas(3), generators=generators(range(3)))


def test_ddim_with_full_eta_is_ddpm_and_with_none_is_euler() -> None:
    x, sigmas = start(dtype=torch.float64), logsnr_sigmas(6, 0.1, 10.0)
    ddpm = SAMPLERS["ddpm"](Network(), x, sigmas, generators=generators(range(3)))
    full = sample_ddim(Network(), x, sigmas, generators=generators(range(3)), eta=1.0)
    assert torch.allclose(full, ddpm, rtol=1e-12)
    assert torch.allclose(sample_ddim(Network(), x, sigmas), SAMPLERS["euler"](Network(), x, sigmas), rtol=1e-12)


def test_unipc_without_corrector_is_dpmpp_2m() -> None:
    x, sigmas = start(dtype=torch.float64), logsnr_sigmas(6, 0.1, 10.0)
    plain = sample_unipc(Network(), x, sigmas, corrector=False)
    assert torch.allclose(plain, SAMPLERS["dpmpp_2m"](Network(), x, sigmas), rtol=1e-12)


def test_options_are_checked() -> None:
    x, sigmas = start(), logsnr_sigmas(3)
    with pytest.raises(MedgenError, match=r"sample_ddim: eta must lie in 0..1; got 2"):
        sample_ddim(Network(), x, sigmas, eta=2)
    with pytest.raises(MedgenError, match="Did you mean 'bh2'"):
        sample_unipc(Network(), x, sigmas, variant="bh3")
    with pytest.raises(MedgenError, match="sample_unipc: order"):
        sample_unipc(Network(), x, sigmas, order=4)
    with pytest.raises(MedgenError, match="Did you mean 'heun'"):
        evaluations("huen", 3)
