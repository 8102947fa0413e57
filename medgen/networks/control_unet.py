"""ControlNet: a trainable copy of a frozen U-Net's way down steers it by a map, such as a label map.

Zhang et al. 2023 (arXiv:2302.05543), section 3: the copy sees the map through layers that are zero at first, and what
it finds is added to the frozen network's skips through layers that are zero at first. Training begins at the frozen
network itself, which keeps what it learnt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medgen.checks import MedgenError
from medgen.networks.conditional_unet import ContractingPath, zero
from medgen.networks.registry import NETWORKS, TARGET
from medgen.networks.threads import at_most_threads

STEERED_BY = {"ControlUNet": "ConditionalUNet", "ControlNet": "DiffusionModelUNet"}


class ControlUNet(ContractingPath):
    """The control network of a :class:`~medgen.networks.conditional_unet.ConditionalUNet`, signature of MONAI's.

    Args:
        spatial_dims: 2 or 3.
        in_channels: as the frozen network's.
        control_channels: channels of the map, at the resolution of ``x``.
        channels: as the frozen network's.
        condition_channels: as the frozen network's.
        condition_embedding: as the frozen network's.
        control_embedding: what the map's channels are reduced to point by point.
        num_res_blocks: as the frozen network's.
        num_class_embeds: as the frozen network's.
        context_dim: as the frozen network's.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        control_channels: int,
        channels: Sequence[int] = (24, 48, 96),
        condition_channels: int = 0,
        condition_embedding: int = 16,
        control_embedding: int = 32,
        num_res_blocks: int = 1,
        num_class_embeds: int | None = None,
        context_dim: int | None = None,
    ) -> None:
        super().__init__(
            "ControlUNet", spatial_dims, in_channels, channels, condition_channels, condition_embedding,
            num_res_blocks, num_class_embeds, context_dim,
        )  # fmt: skip
        convolution = nn.Conv2d if spatial_dims == 2 else nn.Conv3d
        self.control_channels = control_channels
        self.hint = nn.Conv1d(control_channels, control_embedding, 1)
        self.hint_in = convolution(control_embedding, channels[0], 3, padding=1)
        self.controls = nn.ModuleList(convolution(width, width, 1) for width in channels)
        for layer in (self.hint_in, *self.controls):
            zero(layer)

    def forward(
        self,
        x: Tensor,
        timesteps: Tensor,
        controlnet_cond: Tensor,
        conditioning_scale: float = 1.0,
        context: Tensor | None = None,
        class_labels: Tensor | None = None,
    ) -> tuple[list[Tensor], Tensor]:
        """What to add to the frozen network's skips and to its middle.

        Args:
            x: as the frozen network gets it.
            timesteps: ``(B,)``, 0 to 1000.
            controlnet_cond: the map ``(B, control_channels, *spatial)``.
            conditioning_scale: factor of the result.
            context: as the frozen network gets it.
            class_labels: as the frozen network gets it.

        Raises:
            MedgenError: a map of another shape, or inputs that the frozen network would refuse.
        """
        if controlnet_cond.shape[1:] != (self.control_channels, *x.shape[2:]):
            raise MedgenError(
                f"ControlUNet: controlnet_cond must have shape (B, {self.control_channels}, "
                f"{', '.join(map(str, x.shape[2:]))}). Got {tuple(controlnet_cond.shape)}. Pack it as the sample is."
            )
        x, embedding = self.begin(x, timesteps, context, class_labels)
        with at_most_threads(1, x.device):
            hint = self.hint(controlnet_cond.to(x).flatten(2)).unflatten(2, x.shape[2:])
        skips, middle = self.contract(x + self.hint_in(F.silu(hint)), embedding, context)
        found = [conditioning_scale * layer(part) for layer, part in zip(self.controls, [*skips, middle], strict=True)]
        return found[:-1], found[-1]


class ControlledUNet(nn.Module):
    """A frozen network and its control network as one, with the call of the frozen one.

    The channels of ``x`` that follow those of the frozen network are the map. Where they are all zero the frozen
    network answers alone, bit for bit: that is "no map", as guidance needs it.

    Args:
        network: ``ConditionalUNet`` or MONAI's ``DiffusionModelUNet``, trained; it is frozen here.
        control: ``ControlUNet`` or MONAI's ``ControlNet``, which goes with it.
        conditioning_scale: how much the map steers; 1 as in training.
    """

    def __init__(self, network: nn.Module, control: nn.Module, conditioning_scale: float = 1.0) -> None:
        super().__init__()
        self.network = network.requires_grad_(False)
        self.control = control
        self.conditioning_scale = conditioning_scale
        self.in_channels = int(getattr(network, "in_channels"))  # noqa: B009  (MONAI's is untyped)
        self.own_channels = self.in_channels + int(getattr(network, "condition_channels", 0))

    def train(self, mode: bool = True) -> ControlledUNet:
        """The control network alone is trained."""
        super().train(mode)
        self.network.eval()
        return self

    def forward(
        self, x: Tensor, timesteps: Tensor, context: Tensor | None = None, class_labels: Tensor | None = None
    ) -> Tensor:
        """Predict from noisy sample, conditioning of the frozen network and map, one behind the other in ``x``.

        Raises:
            MedgenError: ``x`` holds no map.
        """
        if x.shape[1] <= self.own_channels:
            raise MedgenError(
                f"ControlledUNet: x must have more than {self.own_channels} channels, those of the frozen network. "
                f"Got {x.shape[1]}. Pass the map behind them ('concat')."
            )
        own, control = x[:, : self.own_channels], x[:, self.own_channels :]
        given: dict[str, Any] = {"context": context, "class_labels": class_labels}
        there = control.flatten(1).any(dim=1)
        if not bool(there.any()):
            alone: Tensor = self.network(own, timesteps, **given)
            return alone
        down, middle = self.control(own, timesteps, control, self.conditioning_scale, **given)
        down, middle = [_kept(part, there) for part in down], _kept(middle, there)
        steered: Tensor = self.network(
            own, timesteps, **given, down_block_additional_residuals=down, mid_block_additional_residual=middle
        )
        return steered


def _kept(part: Tensor, there: Tensor) -> Tensor:
    """Zero for the samples without a map."""
    return part * there.to(part).reshape(-1, *[1] * (part.ndim - 1))


def implied_control(target: str, network: Mapping[str, Any], control_channels: int) -> dict[str, Any]:
    """Arguments that a control network has from the network it steers, and from the map it is given.

    Args:
        target: registered name of the control network.
        network: registry form of the network it steers.
        control_channels: channels of the map, which has the resolution of the sample.

    Raises:
        MedgenError: the two do not go together.

    Example:
        >>> unet = {"_target_": "ConditionalUNet", "spatial_dims": 3, "in_channels": 8, "channels": [16, 32]}
        >>> implied_control("ControlUNet", unet, 17)
        {'spatial_dims': 3, 'in_channels': 8, 'channels': [16, 32], 'control_channels': 17}
    """
    if STEERED_BY.get(target) != network[TARGET]:
        pairs = ", ".join(f"{control} with {steered}" for control, steered in STEERED_BY.items())
        raise MedgenError(f"control network '{target}' cannot steer a {network[TARGET]}. Use {pairs}.")
    shared = {name: network[name] for name in NETWORKS[target].parameters() if name in network}
    if target == "ControlUNet":
        return {**shared, "control_channels": control_channels}
    embedding = {"conditioning_embedding_in_channels": control_channels}
    return {**shared, **embedding, "conditioning_embedding_num_channels": [32]}  # more of them would halve the map


@torch.no_grad()
def start_from(control: nn.Module, network: nn.Module) -> int:
    """Copy into a control network the weights that the frozen network has under the same names.

    Args:
        control: changed in place.
        network: whose way down is copied.

    Returns:
        How many tensors were copied.

    Raises:
        MedgenError: a name in common with another shape, or the two have nothing in common.
    """
    own, source = control.state_dict(), network.state_dict()
    shared = [name for name in own if name in source]
    wrong = [name for name in shared if own[name].shape != source[name].shape]
    if wrong or not shared:
        what = f"'{wrong[0]}' differs in shape" if wrong else "no weight has the same name"
        raise MedgenError(
            f"start_from: the control network must have the arguments of the frozen one; {what}. Build it with them."
        )
    for name in shared:
        own[name].copy_(source[name])
    return len(shared)
