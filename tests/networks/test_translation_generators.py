"""Generators of translation: any size in, the same size out, 2D and 3D; a label map is followed."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from medgen.checks import MedgenError
from medgen.networks.translation_generators import ResNetGenerator, SpadeGenerator, UNetGenerator

SIZES = {2: (13, 10), 3: (7, 6, 9)}


def translators(dims: int) -> list[nn.Module]:
    torch.manual_seed(0)
    return [
        ResNetGenerator(dims, 3, 2, channels=(4, 6, 8), num_res_blocks=1),
        ResNetGenerator(dims, 3, 2, channels=(4, 6), num_res_blocks=1, residual=True),
        UNetGenerator(dims, 3, 2, channels=(4, 6, 8)),
        UNetGenerator(dims, 3, 2, channels=(4, 6), residual=True),
    ]


@pytest.mark.parametrize("dims", [2, 3])
def test_any_size_and_one_sample(dims: int) -> None:
    for net in translators(dims):
        made = net(torch.randn(1, 3, *SIZES[dims]))
        assert made.shape == (1, 2, *SIZES[dims])
        made.sum().backward()
        assert all(p.grad is not None for p in net.parameters())


def test_residual_begins_near_the_source() -> None:
    x = torch.randn(1, 3, 8, 8)
    for net in translators(2)[1::2]:
        assert (net(x) - x[:, :2]).abs().mean() < 0.5 * x.abs().mean()


@pytest.mark.parametrize("dims", [2, 3])
def test_spade_follows_label_latent_noise_and_context(dims: int) -> None:
    torch.manual_seed(0)
    net = SpadeGenerator(dims, 2, 1, SIZES[dims], channels=(4, 6), latent_dim=3, hidden_channels=4, context_dim=2)
    for name, parameter in net.named_parameters():
        if name.endswith("strength"):
            nn.init.constant_(parameter, 0.5)
    label, z, context = torch.rand(1, 2, *SIZES[dims]).round(), torch.randn(1, 3), torch.randn(1, 1, 2)
    noise = [torch.randn(1, *shape) for shape in net.noise_shapes(SIZES[dims])]
    made = net(label, z, context, noise=noise)
    assert made.shape == (1, 1, *SIZES[dims])
    others = [
        net(1 - label, z, context, noise=noise),
        net(label, -z, context, noise=noise),
        net(label, z, -context, noise=noise),
        net(label, z, context),
    ]
    assert not any(torch.allclose(made, other) for other in others)
    assert net(torch.zeros(1, 2, *[8] * dims), z, context).shape == (1, 1, *[8] * dims), "another size"


def test_refusals() -> None:
    for build in (ResNetGenerator, UNetGenerator):
        with pytest.raises(MedgenError, match="in_channels must be at least"):
            build(2, 1, 2, residual=True)
    with pytest.raises(MedgenError, match="z must be given"):
        SpadeGenerator(2, 1, 1, (8, 8), channels=(4, 4))(torch.zeros(1, 1, 8, 8))
