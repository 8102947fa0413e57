"""Parametrisations, packing, losses and random streams."""

from __future__ import annotations

import pytest
import torch

from medgen.checks import MedgenError
from medgen.diffusion.denoiser import PREDICTION_TYPES, Preconditioned
from medgen.diffusion.haar import haar_pack, haar_unpack
from medgen.diffusion.losses import WEIGHTINGS, denoising_loss, lognormal_sigmas
from medgen.diffusion.randomness import derive_seed, generators, randn

SIGMA = torch.tensor([0.03, 1.0, 25.0], dtype=torch.float64)


class Target(torch.nn.Module):
    """A network that answers what each parametrisation asks of a perfect one, for a known clean sample."""

    def __init__(self, kind: str, x0: torch.Tensor, noise: torch.Tensor, sigma_data: float) -> None:
        super().__init__()
        s = SIGMA.reshape(-1, 1, 1, 1)
        alpha = (1 + s**2).rsqrt()
        total = (s**2 + sigma_data**2).sqrt()
        x = x0 + s * noise
        self.answer = {
            "epsilon": noise,
            "sample": x0,
            "v_prediction": alpha * noise - s * alpha * x0,
            "flow": noise - x0,
            # the target of Karras et al. 2022, equation 8: (x0 - c_skip x) / c_out
            "edm": (x0 - sigma_data**2 / total**2 * x) / (s * sigma_data / total),
        }[kind]

    def forward(self, x: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        self.seen = x, timesteps
        return self.answer


@pytest.mark.parametrize("kind", PREDICTION_TYPES)
@pytest.mark.parametrize("sigma_data", [1.0, 0.5])
def test_perfect_network_gives_the_clean_sample(kind: str, sigma_data: float) -> None:
    x0, noise = torch.randn(2, 3, 2, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).unbind()
    network = Target(kind, x0, noise, sigma_data)
    x = x0 + SIGMA.reshape(-1, 1, 1, 1) * noise
    torch.testing.assert_close(Preconditioned(network, kind, sigma_data)(x, SIGMA), x0, rtol=1e-9, atol=1e-9)
    seen, timesteps = network.seen
    assert timesteps.min() >= 0
    assert timesteps.max() < 1000
    if kind == "edm" and sigma_data == 1.0:
        assert seen.std() == pytest.approx(1, abs=0.2)


def test_conditioning_is_joined_to_the_input() -> None:
    class Shape(torch.nn.Module):
        def forward(self, x: torch.Tensor, timesteps: torch.Tensor, class_labels: torch.Tensor) -> torch.Tensor:
            assert x.shape[1] == 5
            assert class_labels.tolist() == [7]
            return x[:, :2]

    given = {"concat": torch.ones(1, 3, 4, 4), "class_labels": torch.tensor([7])}
    out = Preconditioned(Shape(), "sample")(torch.zeros(1, 2, 4, 4), torch.tensor([1.0]), given)
    assert out.shape == (1, 2, 4, 4)


@pytest.mark.parametrize("shape", [(2, 3, 4, 6), (1, 2, 4, 6, 8)])
def test_haar_is_orthonormal_and_invertible(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    packed = haar_pack(x)
    assert packed.shape == (shape[0], shape[1] * 2 ** (len(shape) - 2), *(n // 2 for n in shape[2:]))
    torch.testing.assert_close(packed.square().sum(), x.square().sum())
    torch.testing.assert_close(haar_unpack(packed), x)
    constant = haar_pack(torch.ones(shape))
    bands = 2 ** (len(shape) - 2)
    assert constant[:, 1:bands].abs().max() < 1e-6  # all of a constant is in the low-pass band


def test_haar_refuses_what_it_cannot_pack() -> None:
    with pytest.raises(MedgenError, match="even length"):
        haar_pack(torch.zeros(1, 1, 5, 4))
    with pytest.raises(MedgenError, match="multiple of 8"):
        haar_unpack(torch.zeros(1, 4, 2, 2, 2))


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_loss_is_zero_for_a_perfect_network_and_one_value_per_sample(weighting: str) -> None:
    x0, noise = torch.randn(2, 3, 2, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).unbind()
    perfect = Preconditioned(Target("edm", x0, noise, 1.0), "edm")
    loss = denoising_loss(perfect, x0, noise, SIGMA, weighting=weighting)
    assert loss.shape == (3,)
    assert float(loss.max()) < 1e-9
    with pytest.raises(MedgenError, match="weighting"):
        denoising_loss(perfect, x0, noise, SIGMA, weighting="emd")


def test_edm_loss_of_an_untrained_network_is_one_at_every_noise_level() -> None:
    """c_out**2 * weight = 1 (Karras et al. 2022, equation 144), so a zero network loses the target's variance, one."""

    class Zero(torch.nn.Module):
        def forward(self, x: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
            return torch.zeros_like(x)

    streams = generators(range(3))
    x0, noise = randn((2, 32, 32), streams), randn((2, 32, 32), streams)
    loss = denoising_loss(Preconditioned(Zero(), "edm"), x0, noise, SIGMA)
    torch.testing.assert_close(loss, torch.ones(3), atol=0.1, rtol=0)


def test_streams_are_independent_of_the_batch() -> None:
    together = randn((4,), generators([5, 6, 7]))
    assert torch.equal(together[1], randn((4,), generators([6]))[0])
    many = lognormal_sigmas(generators(range(4000)), -0.4, 1.3).log()
    assert float(many.mean()) == pytest.approx(-0.4, abs=0.1)
    assert float(many.std()) == pytest.approx(1.3, abs=0.1)


def test_derived_seeds_differ_by_every_part() -> None:
    seeds = {derive_seed(a, b, c) for a in range(3) for b in ("noise", "item") for c in range(50)}
    assert len(seeds) == 300
    assert derive_seed(1, 23) != derive_seed(12, 3)
    assert derive_seed("1") != derive_seed(1)
