"""The lean U-Net: shapes in 2D and 3D, what it refuses, and that all of its inputs matter."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from medgen.checks import MedgenError
from medgen.networks.conditional_unet import ConditionalUNet


def network(dims: int = 3, **changes: Any) -> ConditionalUNet:
    """A small network whose zero-initialised layers are filled, so that everything shows in the output."""
    arguments: dict[str, Any] = {"channels": (8, 16), "condition_channels": 3, "condition_embedding": 4}
    torch.manual_seed(0)
    net = ConditionalUNet(dims, 2, 2, **(arguments | changes))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn(parameter.shape) * 0.1)
    return net.eval()


def test_output_starts_at_zero() -> None:
    net = ConditionalUNet(3, 1, 1, channels=(8, 16))
    assert not net(torch.randn(1, 1, 4, 4, 4), torch.zeros(1)).any()


@pytest.mark.parametrize("dims", [2, 3])
def test_shape(dims: int) -> None:
    x = torch.randn(2, 5, *[8] * dims)
    assert network(dims)(x, torch.tensor([1.0, 900.0])).shape == (2, 2, *[8] * dims)


def test_every_input_matters() -> None:
    net = network(num_class_embeds=2)
    x, t, c = torch.randn(1, 5, 4, 4, 4), torch.tensor([10.0]), torch.tensor([0])
    reference = net(x, t, class_labels=c)
    noisy, condition = x.clone(), x.clone()
    noisy[:, 0] += 1
    condition[:, 4] += 1
    for other in (
        net(noisy, t, class_labels=c),
        net(condition, t, class_labels=c),
        net(x, t + 500, class_labels=c),
        net(x, t, class_labels=c + 1),
    ):
        assert not torch.allclose(reference, other)


@pytest.mark.parametrize(
    ("shape", "options", "word"),
    [
        ((1, 4, 4, 4, 4), {}, "5 channels"),
        ((1, 5, 4, 4, 5), {}, "multiples of 2"),
        ((1, 5, 4, 4, 4), {"context": torch.zeros(1, 1, 1)}, "context"),
        ((1, 5, 4, 4, 4), {"class_labels": torch.zeros(1, dtype=torch.long)}, "class_labels"),
    ],
)
def test_refusals(shape: tuple[int, ...], options: dict[str, Any], word: str) -> None:
    with pytest.raises(MedgenError, match=word):
        network()(torch.zeros(shape), torch.zeros(1), **options)


def test_bytes_of_a_network_of_real_width_do_not_depend_on_threads() -> None:
    net = network(channels=(32, 64, 96), condition_channels=144, condition_embedding=16)
    x, before = torch.randn(1, 146, 24, 24, 24, generator=torch.Generator().manual_seed(0)), torch.get_num_threads()
    made = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            with torch.no_grad():
                made.append(net(x, torch.tensor([500.0])))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*made)
