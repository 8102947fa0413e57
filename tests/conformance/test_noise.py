"""Every entry of ``NOISES`` enrols itself: moments, one stream per row, types, parameters."""

from __future__ import annotations

import json
import pickle

import pytest
import torch

from medgen.checks import MedgenError
from medgen.diffusion.randomness import generators
from medgen.operators.noise import NOISES, GaussianNoise, Noise, register_noise

every = pytest.mark.parametrize("noise", [entry.example() for entry in NOISES.values()], ids=list(NOISES))


@every
@pytest.mark.parametrize("level", [0.0, 0.4, 2.0])
def test_mean_and_variance(noise: Noise, level: float) -> None:
    y = torch.full((1, 1, 60_000), level, dtype=torch.float64)
    drawn = noise.sample(y, generators([1]))
    mean, variance = float(noise.mean(y)[0, 0, 0]), float(noise.variance(y)[0, 0, 0])
    error = (max(variance, 1e-12) / y.numel()) ** 0.5
    assert abs(float(drawn.mean()) - mean) < 4 * error + 1e-3 * level
    assert float(drawn.var()) == pytest.approx(variance, rel=0.03)


@every
def test_rows_have_their_own_stream(noise: Noise) -> None:
    y = torch.rand(3, 2, 4, 5, generator=torch.Generator().manual_seed(0)) + 0.5
    kept, state = y.clone(), torch.random.get_rng_state()
    together = noise.sample(y, generators([5, 6, 5]))
    assert together.shape == y.shape
    assert together.dtype == torch.float32
    assert torch.equal(noise.sample(y[1:2], generators([6])), together[1:2])
    assert not torch.equal(together[0], together[1])
    assert torch.equal(noise.sample(y, generators([5, 6, 5])), together)
    assert torch.equal(y, kept)
    assert torch.equal(torch.random.get_rng_state(), state)
    with pytest.raises(MedgenError, match=r"generators must be one for each row. Got 2 for 3 rows"):
        noise.sample(y, generators([1, 2]))


@every
def test_parameters(noise: Noise) -> None:
    assert json.loads(json.dumps(noise.parameters())) == noise.parameters()
    copy = pickle.loads(pickle.dumps(noise))
    assert copy == noise
    assert hash(copy) == hash(noise)
    assert noise.parameters()["name"] == type(noise).name
    assert all(entry.example() != noise for name, entry in NOISES.items() if name != noise.name)
    first = next(key for key in noise.parameters() if key != "name")
    with pytest.raises(MedgenError, match=f"{type(noise).__name__}: {first} must be a number above 0; got -1"):
        type(noise)(**{first: -1.0})


@every
def test_complex_data_only_where_they_have_a_meaning(noise: Noise) -> None:
    y = torch.zeros(1, 1, 40_000, dtype=torch.complex64)
    if not noise.gaussian:
        with pytest.raises(MedgenError, match=r"y must be real. Got torch.complex64"):
            noise.sample(y, generators([0]))
        return
    drawn = noise.sample(y, generators([0]))
    variance = float(noise.variance(y)[0, 0, 0])
    assert float(drawn.real.var()) == pytest.approx(variance, rel=0.03)
    assert float(drawn.imag.var()) == pytest.approx(variance, rel=0.03)
    assert abs(float((drawn.real * drawn.imag).mean())) < 0.03 * variance


def test_values_outside_of_a_model_are_refused() -> None:
    with pytest.raises(MedgenError, match=r"PoissonNoise: y must be at least 0. Got -1"):
        NOISES["poisson"].example().sample(torch.full((1, 1, 2), -1.0), generators([0]))


def test_names_are_taken_once() -> None:
    with pytest.raises(MedgenError, match="'gaussian' is registered already"):
        register_noise("gaussian", lambda: GaussianNoise(1.0))(GaussianNoise)
