"""Context in the lean U-Net, and control networks: the frozen network at first, steered once trained."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from monai.networks.nets import ControlNet, DiffusionModelUNet
from torch import nn

from medgen.checks import MedgenError
from medgen.diffusion.denoiser import Preconditioned
from medgen.networks.conditional_unet import ConditionalUNet
from medgen.networks.control_unet import ControlledUNet, ControlUNet, implied_control, start_from
from medgen.networks.registry import build_network


def filled(net: nn.Module, seed: int = 0) -> nn.Module:
    """Every weight random, the zero-initialised ones too."""
    stream = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=stream) * 0.1)
    return net.eval()


def noise(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def medgen_pair(dims: int = 3, **changes: Any) -> tuple[nn.Module, nn.Module]:
    arguments: dict[str, Any] = {"spatial_dims": dims, "in_channels": 2, "channels": [8, 16]} | changes
    network = build_network({"_target_": "ConditionalUNet", "out_channels": 2, **arguments})
    control = build_network({"_target_": "ControlUNet", "control_channels": 3, **arguments})
    return filled(network), control.eval()


def monai_pair(dims: int = 3) -> tuple[nn.Module, nn.Module]:
    arguments: dict[str, Any] = {
        "spatial_dims": dims, "in_channels": 2, "channels": [8, 16], "attention_levels": [False, False],
        "num_res_blocks": 1, "norm_num_groups": 4,
    }  # fmt: skip
    embedding = {"conditioning_embedding_in_channels": 3, "conditioning_embedding_num_channels": [8]}
    return filled(DiffusionModelUNet(out_channels=2, **arguments)), ControlNet(**arguments, **embedding).eval()


def test_without_context_the_network_is_what_it_was() -> None:
    """The same generator gives the same weights, in the same order and under the same names, as before context."""
    net = ConditionalUNet(3, 1, 1, channels=(8, 16), condition_channels=2, num_class_embeds=3)
    names = {name.split(".")[0] for name in net.state_dict()}
    assert names == {
        "embed", "time", "classes", "enter", "down_blocks", "down", "middle", "up", "up_blocks", "leave"
    }  # fmt: skip


@pytest.mark.parametrize("dims", [2, 3])
def test_context_counts_and_its_padding_does_not(dims: int) -> None:
    net = filled(ConditionalUNet(dims, 1, 1, channels=(8, 16), context_dim=6))
    x, t, context = noise(2, 1, *[4] * dims), torch.tensor([10.0, 500.0]), noise(2, 3, 6)
    made = net(x, t, context)
    assert not torch.allclose(made, net(x, t, context + 0.5))
    padded = torch.cat([context, torch.zeros(2, 4, 6)], dim=1)
    assert torch.allclose(made, net(x, t, padded), atol=1e-5)
    assert net(x, t, torch.zeros(2, 3, 6)).isfinite().all()
    assert torch.allclose(made[1:], net(x[1:], t[1:], context[1:]), atol=1e-5)


def test_context_acts_through_the_embedding_and_through_attention() -> None:
    x, t, context = noise(1, 1, 4, 4), torch.tensor([10.0]), noise(1, 3, 6)
    for silent in ("pool", "attention"):
        net = filled(ConditionalUNet(2, 1, 1, channels=(8, 16), context_dim=6))
        with torch.no_grad():
            for name, parameter in net.named_parameters():
                if name.startswith(silent):
                    parameter.zero_()
        assert not torch.equal(net(x, t, context), net(x, t, context + 0.5)), silent


@pytest.mark.parametrize("context", [None, torch.zeros(1, 2, 5), torch.zeros(1, 6)])
def test_context_of_another_shape_is_refused(context: torch.Tensor | None) -> None:
    net = ConditionalUNet(2, 1, 1, channels=(8, 16), context_dim=6)
    with pytest.raises(MedgenError, match=r"context must have shape \(B, tokens, 6\)"):
        net(noise(1, 1, 4, 4), torch.zeros(1), context)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("pair", [medgen_pair, monai_pair])
def test_a_new_control_network_changes_nothing_and_a_trained_one_steers(pair: Any, dims: int) -> None:
    network, control = pair(dims)
    assert start_from(control, network) > 10
    both = ControlledUNet(network, control).eval()
    x, t, label = noise(1, 2, *[4] * dims), torch.tensor([100.0]), noise(1, 3, *[4] * dims)
    alone = network(x, t)
    assert torch.allclose(both(torch.cat([x, label], dim=1), t), alone, atol=1e-6)
    filled(control, seed=5)
    assert not torch.allclose(both(torch.cat([x, label], dim=1), t), alone, atol=1e-3)
    assert torch.equal(both(torch.cat([x, 0 * label], dim=1), t), alone)
    half = ControlledUNet(network, control, conditioning_scale=0.5).eval()
    assert not torch.allclose(half(torch.cat([x, label], dim=1), t), both(torch.cat([x, label], dim=1), t))


def test_samples_without_a_map_are_left_alone() -> None:
    network, control = medgen_pair()
    both = ControlledUNet(network, filled(control, seed=5)).eval()
    x, t, label = noise(2, 2, 4, 4, 4), torch.tensor([10.0, 500.0]), noise(2, 3, 4, 4, 4)
    label[1] = 0
    made = both(torch.cat([x, label], dim=1), t)
    assert torch.allclose(made[1:], network(x, t)[1:], atol=1e-6)
    assert not torch.allclose(made[:1], network(x, t)[:1], atol=1e-3)


@pytest.mark.parametrize("pair", [medgen_pair, monai_pair])
def test_training_reaches_the_control_network_alone(pair: Any) -> None:
    network, control = pair()
    start_from(control, network)
    both = ControlledUNet(network, control).train()
    before = copy.deepcopy(network.state_dict())
    trained = [parameter for parameter in both.parameters() if parameter.requires_grad]
    assert len(trained) == len(list(control.parameters()))
    assert not network.training
    optimizer = torch.optim.SGD(trained, 1.0)
    for _ in range(3):  # gradients reach the copy once the zero layers have moved
        both(noise(1, 5, 4, 4, 4), torch.tensor([10.0])).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    with torch.no_grad():
        changed = both(noise(1, 5, 4, 4, 4), torch.tensor([10.0]))
    assert not torch.allclose(changed, network(noise(1, 5, 4, 4, 4)[:, :2], torch.tensor([10.0])), atol=1e-6)


def test_a_denoiser_takes_it_as_any_network() -> None:
    network, control = medgen_pair(condition_channels=1, condition_embedding=4, context_dim=6)
    start_from(control, network)
    denoiser = Preconditioned(ControlledUNet(network, control).eval(), "edm")
    told = {"concat": noise(1, 1 + 3, 4, 4, 4), "context": noise(1, 2, 6)}
    x, sigma = noise(1, 2, 4, 4, 4), torch.tensor([1.0])
    alone = Preconditioned(network, "edm")(x, sigma, {**told, "concat": told["concat"][:, :1]})
    assert torch.allclose(denoiser(x, sigma, told), alone, atol=1e-6)


@pytest.mark.parametrize(
    ("steered", "target"), [("ConditionalUNet", "ControlUNet"), ("DiffusionModelUNet", "ControlNet")]
)
def test_a_control_network_is_implied_by_the_one_it_steers(steered: str, target: str) -> None:
    form: dict[str, Any] = {
        "_target_": steered,
        "spatial_dims": 2,
        "in_channels": 2,
        "channels": [8, 16],
        "out_channels": 2,
    }
    if steered == "DiffusionModelUNet":
        form |= {"attention_levels": [False, False], "num_res_blocks": 1, "norm_num_groups": 4}
    network = filled(build_network(form))
    control = build_network({"_target_": target, **implied_control(target, form, 3)})
    start_from(control, network)
    both = ControlledUNet(network, control).eval()
    x = noise(1, 5, 8, 8)
    assert torch.allclose(both(x, torch.tensor([5.0])), network(x[:, :2], torch.tensor([5.0])), atol=1e-6)
    with pytest.raises(MedgenError, match="cannot steer"):
        implied_control("ControlNet" if target == "ControlUNet" else "ControlUNet", form, 3)


def test_refusals() -> None:
    network, control = medgen_pair()
    with pytest.raises(MedgenError, match="more than 2 channels"):
        ControlledUNet(network, control)(noise(1, 2, 4, 4, 4), torch.zeros(1))
    with pytest.raises(MedgenError, match=r"controlnet_cond must have shape \(B, 3, 4, 4, 4\)"):
        control(noise(1, 2, 4, 4, 4), torch.zeros(1), noise(1, 2, 4, 4, 4))
    with pytest.raises(MedgenError, match="differs in shape"):
        start_from(ControlUNet(3, 1, 3, channels=(8, 16)), network)
    with pytest.raises(MedgenError, match="no weight has the same name"):
        start_from(nn.Linear(1, 1), network)
