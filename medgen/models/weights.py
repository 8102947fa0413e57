"""The weights of a model's networks as one flat dictionary, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from medgen.checks import MedgenError
from medgen.networks.registry import MAX_PARAMETERS, build_network, parameter_shapes

if TYPE_CHECKING:
    import torch
    from torch import nn

    from medgen.models.specification import ModelSpec


def joined_state(networks: Mapping[str, nn.Module]) -> dict[str, torch.Tensor]:
    """One dictionary: bare names for a single network, else ``network.name``."""
    return _joined({name: network.state_dict() for name, network in networks.items()})


def expected_state(spec: ModelSpec, source: str) -> dict[str, torch.Tensor]:
    """Names, shapes and types of a model's weights, on the ``meta`` device.

    Args:
        spec: of the model.
        source: for errors.

    Raises:
        MedgenError: see :func:`~medgen.networks.registry.parameter_shapes`; also for the networks together.
    """
    state = _joined({name: parameter_shapes(form, source) for name, form in spec.networks().items()})
    total = sum(tensor.numel() for tensor in state.values())
    if total > MAX_PARAMETERS:
        raise MedgenError(f"{source}: the networks have {total:,} parameters, more than {MAX_PARAMETERS:,}.")
    return state


def _joined(states: Mapping[str, Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    if len(states) == 1:
        return dict(next(iter(states.values())))
    return {f"{network}.{name}": tensor for network, state in states.items() for name, tensor in state.items()}


def split_state(names: Mapping[str, object], state: Mapping[str, torch.Tensor]) -> dict[str, dict[str, torch.Tensor]]:
    """Inverse of :func:`joined_state`.

    Args:
        names: of the networks.
        state: of all of them.
    """
    if len(names) == 1:
        return {next(iter(names)): dict(state)}
    return {n: {key[len(n) + 1 :]: t for key, t in state.items() if key.startswith(f"{n}.")} for n in names}


def build_networks(spec: ModelSpec, state: Mapping[str, torch.Tensor], device: torch.device) -> dict[str, nn.Module]:
    """The networks of a model with their weights, frozen, in evaluation mode.

    Args:
        spec: of the model.
        state: see :func:`joined_state`; checked already.
        device: where they go.
    """
    import torch

    parts = split_state(spec.networks(), state)
    built = {}
    for name, form in spec.networks().items():
        with torch.random.fork_rng(devices=[]):  # the first weights, which are thrown away, are drawn
            network = build_network(form, spec.name)
        network.load_state_dict(parts[name])
        built[name] = network.eval().requires_grad_(False).to(device)
    return built
