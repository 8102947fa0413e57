"""Style-based generator and discriminator: the equations, odd sizes, 2D and 3D, what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from medgen.checks import MedgenError
from medgen.networks.style_discriminator import StyleDiscriminator, batch_deviation
from medgen.networks.style_generator import ModulatedConvolution, StyleGenerator

SIZES = {2: (9, 7), 3: (5, 6, 7)}


def generator(dims: int = 2, **changes: Any) -> StyleGenerator:
    torch.manual_seed(0)
    arguments: dict[str, Any] = {"channels": (4, 6, 8), "latent_dim": 5, "style_dim": 6}
    net = StyleGenerator(dims, 2, SIZES[dims], **(arguments | changes))
    for layer in net.layers:
        torch.nn.init.constant_(layer.noise_strength, 0.3)
    return net


def latent(count: int = 3) -> torch.Tensor:
    return torch.randn(count, 5, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("demodulate", [False, True])
@pytest.mark.parametrize("dims", [2, 3])
def test_scaled_features_equal_modulated_weights(dims: int, demodulate: bool) -> None:
    torch.manual_seed(0)
    layer = ModulatedConvolution(dims, 3, 4, 5, demodulate=demodulate)
    x, style = torch.randn(2, 3, *SIZES[dims]), torch.randn(2, 5)
    weight = (layer.convolution.weight * layer.convolution.scale)[None]
    weight = weight * layer.style(style).reshape(2, 1, 3, *[1] * dims)  # equation 1
    if demodulate:
        norm = weight.square().flatten(2).sum(2).add(1e-8).sqrt()
        weight = weight / norm.reshape(2, 4, 1, *[1] * dims)  # equation 3
    convolve = F.conv2d if dims == 2 else F.conv3d
    grouped = convolve(x.flatten(0, 1)[None], weight.flatten(0, 1), padding=1, groups=2)
    assert torch.allclose(layer(x, style), grouped[0].unflatten(0, (2, 4)), atol=1e-5)


@pytest.mark.parametrize("dims", [2, 3])
def test_odd_sizes_and_one_sample(dims: int) -> None:
    net = generator(dims)
    noise = [torch.randn(1, *shape) for shape in net.noise_shapes]
    made = net(latent(1), noise=noise)
    assert made.shape == (1, 2, *SIZES[dims])
    assert not torch.allclose(made, net(latent(1)))
    made.sum().backward()
    assert all(p.grad is not None for p in net.parameters())


def test_a_sample_does_not_depend_on_its_neighbours() -> None:
    net, z = generator(), latent()
    assert torch.allclose(net(z)[1], net(z[1:2])[0], atol=1e-5)


def test_truncation_draws_towards_the_mean_style() -> None:
    net, z = generator(), latent(2)
    net.track_mean(net.style(latent(8)), decay=0.0)
    mean = net(styles=net.styles(net.mean_style[None]))
    collapsed = net(z, truncation=0.0)
    assert torch.allclose(collapsed[0], mean[0], atol=1e-5)
    assert torch.allclose(collapsed[0], collapsed[1], atol=1e-5)
    assert not torch.allclose(net(z)[0], net(z)[1])


def test_mixing_takes_the_first_layers_of_the_one_and_the_rest_of_the_other() -> None:
    net = generator()
    a, b = net.style(latent(2)), net.style(-latent(2))
    mixed = net.mixed(a, b, torch.tensor([2, len(net.layers)]))
    assert torch.equal(mixed[0, :2], a[0].expand(2, -1))
    assert torch.equal(mixed[0, 2:], b[0].expand(len(net.layers) - 2, -1))
    assert torch.equal(mixed[1], a[1].expand(len(net.layers), -1))


@pytest.mark.parametrize("dims", [2, 3])
def test_context_matters_to_both(dims: int) -> None:
    net, context = generator(dims, context_dim=4), torch.randn(3, 2, 4)
    made = net(latent(), context)
    assert not torch.allclose(made, net(latent(), context + 1))
    judge = StyleDiscriminator(dims, 2, SIZES[dims], channels=(4, 6, 8), context_dim=4)
    assert judge(made, context).shape == (3,)
    assert not torch.allclose(judge(made, context), judge(made, context + 1))


@pytest.mark.parametrize("dims", [2, 3])
def test_discriminator_of_odd_sizes_and_one_sample(dims: int) -> None:
    judge = StyleDiscriminator(dims, 2, SIZES[dims], channels=(4, 6, 8))
    for count in (1, 3, 4):
        assert judge(torch.randn(count, 2, *SIZES[dims])).shape == (count,)


def test_batch_deviation_is_that_of_groups() -> None:
    x = torch.zeros(4, 1, 2, 2)
    x[2:] = 2.0  # groups of samples 0 and 2, 1 and 3
    assert torch.allclose(batch_deviation(x, 2), torch.ones(4, 1, 2, 2), atol=1e-3)
    assert not batch_deviation(x[:1], 4).any()


def test_refusals() -> None:
    with pytest.raises(MedgenError, match="z or styles must be given"):
        generator()()
    with pytest.raises(MedgenError, match="context must be given exactly"):
        generator()(latent(), torch.zeros(3, 1, 4))
    with pytest.raises(MedgenError, match="size must have 2 entries"):
        StyleGenerator(2, 1, (4, 4, 4))
    judge = StyleDiscriminator(2, 1, (4, 4), channels=(4,))
    with pytest.raises(MedgenError, match="x must have size"):
        judge(torch.zeros(1, 1, 4, 5))
    with pytest.raises(MedgenError, match="context must be given exactly"):
        judge(torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 4))
