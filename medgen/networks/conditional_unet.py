"""A lean diffusion U-Net for volumes: patch-trained, whole-volume sampled, cheap on a CPU.

MONAI's ``DiffusionModelUNet`` concatenates its skips, has one more residual block on the way up and always attends
globally in its middle block: for the same channels it costs about 1.7 times as much on a CPU, and attention over
a whole volume is another function than over the patch it was trained on. Here skips are added and there is no
attention; blocks are those of Dhariwal and Nichol 2021 (arXiv:2105.05233, section 3).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medgen.checks import MedgenError
from medgen.networks.threads import at_most_threads


class ConditionalUNet(nn.Module):
    """U-Net with MONAI's signature ``network(x, timesteps, context, class_labels)``, two or three dimensions.

    Conditioning channels (packed one-hot labels bring more than a hundred) are reduced by a point-wise
    convolution before they meet the noisy sample: a 3 x 3 x 3 convolution over all of them would cost more
    than the rest of a small network.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the noisy sample.
        out_channels: channels of the prediction.
        channels: width of each level; each level halves the resolution of the one before.
        condition_channels: channels that follow the noisy sample in ``x``; 0 for none.
        condition_embedding: what they are reduced to.
        num_res_blocks: residual blocks on each side of each level.
        num_class_embeds: number of classes, None for none.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        channels: Sequence[int] = (24, 48, 96),
        condition_channels: int = 0,
        condition_embedding: int = 16,
        num_res_blocks: int = 1,
        num_class_embeds: int | None = None,
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.condition_channels = condition_channels
        self.time_channels = 4 * channels[0]
        convolution, up = (nn.Conv2d, nn.ConvTranspose2d) if spatial_dims == 2 else (nn.Conv3d, nn.ConvTranspose3d)
        total = in_channels + (condition_embedding if condition_channels else 0)
        self.embed = nn.Conv1d(condition_channels, condition_embedding, 1) if condition_channels else None
        self.time = nn.Sequential(
            nn.Linear(self.time_channels, self.time_channels),
            nn.SiLU(),
            nn.Linear(self.time_channels, self.time_channels),
        )
        self.classes = nn.Embedding(num_class_embeds, self.time_channels) if num_class_embeds else None
        self.enter = convolution(total, channels[0], 3, padding=1)

        def blocks(width: int) -> _Stack:
            return _Stack(_ResidualBlock(spatial_dims, width, self.time_channels) for _ in range(num_res_blocks))

        steps = list(itertools.pairwise(channels))
        self.down_blocks = nn.ModuleList(blocks(width) for width in channels[:-1])
        self.down = nn.ModuleList(convolution(a, b, 2, stride=2) for a, b in steps)
        self.middle = blocks(channels[-1])
        self.up = nn.ModuleList(up(b, a, 2, stride=2) for a, b in steps)
        self.up_blocks = nn.ModuleList(blocks(width) for width in channels[:-1])
        self.leave = convolution(channels[0], out_channels, 3, padding=1)
        _zero(self.leave)

    @property
    def multiple(self) -> int:
        """Every spatial size must be a multiple of this."""
        return int(2 ** len(self.down))

    def forward(
        self, x: Tensor, timesteps: Tensor, context: Tensor | None = None, class_labels: Tensor | None = None
    ) -> Tensor:
        """Predict from ``x`` ``(B, in_channels + condition_channels, *spatial)`` at ``timesteps`` ``(B,)``, 0 to 1000.

        Returns:
            ``(B, out_channels, *spatial)``.

        Raises:
            MedgenError: wrong channels or sizes; ``context``, which this network has no use for.
        """
        self._check(x, context, class_labels)
        if self.embed is not None:
            noisy, condition = x.split([self.in_channels, self.condition_channels], dim=1)
            with at_most_threads(1, x.device):  # a product over many channels is split among threads: other bytes
                embedded = self.embed(condition.flatten(2)).unflatten(2, condition.shape[2:])
            x = torch.cat([noisy, embedded], dim=1)
        embedding = self.time(_sinusoidal(timesteps, self.time_channels).to(x.dtype).to(x.device))
        if self.classes is not None and class_labels is not None:
            embedding = embedding + self.classes(class_labels)
        embedding = F.silu(embedding)
        x = self.enter(x)
        skips = []
        for blocks, down in zip(self.down_blocks, self.down, strict=True):
            x = blocks(x, embedding)
            skips.append(x)
            x = down(x)
        x = self.middle(x, embedding)
        for blocks, up, skip in zip(reversed(self.up_blocks), reversed(self.up), reversed(skips), strict=True):
            x = blocks((up(x) + skip) * 0.5**0.5, embedding)
        output: Tensor = self.leave(F.silu(_norm(x)))
        return output

    def _check(self, x: Tensor, context: Tensor | None, class_labels: Tensor | None) -> None:
        expected = self.in_channels + self.condition_channels
        if x.shape[1] != expected:
            raise MedgenError(
                f"ConditionalUNet: x must have {expected} channels ({self.in_channels} noisy + "
                f"{self.condition_channels} conditioning). Got {x.shape[1]}. Pass the conditioning as 'concat'."
            )
        if any(size % self.multiple for size in x.shape[2:]):
            raise MedgenError(
                f"ConditionalUNet: x must have spatial sizes that are multiples of {self.multiple}. "
                f"Got {tuple(x.shape[2:])}. Pad it first."
            )
        if context is not None or (class_labels is not None and self.classes is None):
            what = "context" if context is not None else "class_labels"
            raise MedgenError(f"ConditionalUNet: {what} is given, but the network was built without it. Leave it out.")


class _ResidualBlock(nn.Module):
    """``x + conv(silu(scale * norm(conv(silu(norm(x)))) + shift))``, scale and shift from the embedding."""

    def __init__(self, spatial_dims: int, width: int, time_channels: int) -> None:
        super().__init__()
        convolution = nn.Conv2d if spatial_dims == 2 else nn.Conv3d
        self.first = convolution(width, width, 3, padding=1)
        self.second = convolution(width, width, 3, padding=1)
        self.modulation = nn.Linear(time_channels, 2 * width)
        _zero(self.second)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        scale, shift = self.modulation(embedding).reshape(x.shape[0], -1, *[1] * (x.ndim - 2)).chunk(2, dim=1)
        hidden = self.first(F.silu(_norm(x)))
        hidden = self.second(F.silu(torch.addcmul(shift, _norm(hidden), 1 + scale)))
        return x + hidden


class _Stack(nn.ModuleList):
    """Residual blocks one after the other."""

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        for block in self:
            x = block(x, embedding)
        return x


def _zero(layer: nn.Module) -> None:
    """A layer that answers zero until trained, so that a residual block begins as the identity."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)


def _norm(x: Tensor) -> Tensor:
    """Group normalisation, eight channels or more a group."""
    return F.group_norm(x, max(1, min(8, x.shape[1] // 4)))


def _sinusoidal(timesteps: Tensor, channels: int) -> Tensor:
    """Sinusoidal embedding ``(B, channels)``: Vaswani et al. 2017, section 3.5, periods from 2 pi to 2 pi 10^4.

    In float64 on the CPU: Apple's GPUs have no float64.
    """
    half = channels // 2
    frequencies = torch.exp(-torch.arange(half, dtype=torch.float64) * (math.log(1e4) / half))
    phase = timesteps.detach().cpu().double()[:, None] * frequencies
    return torch.cat([phase.cos(), phase.sin()], dim=1)
