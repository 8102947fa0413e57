"""Residual discriminator of StyleGAN2 for images and volumes, with projection of the conditioning.

References:
    Karras et al. 2020 (StyleGAN2, arXiv:1912.04958), section 4: residual discriminator.
    Karras et al. 2018 (arXiv:1710.10196), section 3: standard deviation over the minibatch.
    Miyato and Koyama 2018 (arXiv:1802.05637), equation 3: projection.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medgen.checks import MedgenError
from medgen.networks.style_generator import GAIN, EqualConvolution, EqualLinear

_POOL = {2: F.avg_pool2d, 3: F.avg_pool3d}


class StyleDiscriminator(nn.Module):
    """Image to one logit, high for a real one; any size, odd ones included.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the image (after packing, where the model packs).
        size: spatial size of the image.
        channels: width of each level, the finest first; each level halves the resolution of the one before.
        context_dim: width of conditioning tokens; 0 for none.
        group_size: samples over which the standard deviation is taken; 1 leaves that channel constant.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        size: Sequence[int],
        channels: Sequence[int] = (32, 64, 128),
        context_dim: int = 0,
        group_size: int = 4,
    ) -> None:
        super().__init__()
        if len(size) != spatial_dims:
            raise MedgenError(
                f"StyleDiscriminator: size must have {spatial_dims} entries, one per axis. Got {list(size)}."
            )
        self.size = tuple(size)
        self.context_dim = context_dim
        self.group_size = group_size
        last = channels[-1]
        coarsest = math.prod(-(-n // 2 ** (len(channels) - 1)) for n in size)
        self.enter = EqualConvolution(spatial_dims, in_channels, channels[0], kernel_size=1)
        self.blocks = nn.ModuleList(_DownBlock(spatial_dims, a, b) for a, b in itertools.pairwise(channels))
        self.final = EqualConvolution(spatial_dims, last + 1, last)
        self.dense = EqualLinear(last * coarsest, last)
        self.logit = EqualLinear(last, 1)
        self.projection = EqualLinear(context_dim, last) if context_dim else None

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Logits ``(B,)`` of ``x`` ``(B, in_channels, *size)`` (and tokens ``(B, T, context_dim)``).

        Raises:
            MedgenError: another size, or a context that the network was built without (or lacks).
        """
        self._check(x, context)
        x = F.leaky_relu(self.enter(x), 0.2) * GAIN
        for block in self.blocks:
            x = block(x)
        x = torch.cat([x, batch_deviation(x, self.group_size)], dim=1)
        x = F.leaky_relu(self.final(x), 0.2) * GAIN
        x = F.leaky_relu(self.dense(x.flatten(1)), 0.2) * GAIN
        logit: Tensor = self.logit(x)[:, 0]
        if self.projection is None or context is None:
            return logit
        told = self.projection(context.mean(1))
        return logit + (x * told).sum(1) / math.sqrt(x.shape[1])

    def _check(self, x: Tensor, context: Tensor | None) -> None:
        if tuple(x.shape[2:]) != self.size:
            raise MedgenError(f"StyleDiscriminator: x must have size {self.size}. Got {tuple(x.shape[2:])}. Crop it.")
        if (context is None) == bool(self.context_dim):
            raise MedgenError(
                f"StyleDiscriminator: context must be given exactly where context_dim is above 0. Got context_dim "
                f"{self.context_dim} and {'no' if context is None else 'a'} context."
            )


class _DownBlock(nn.Module):
    """``(pool(act(conv(act(conv(x))))) + pool(conv1(x))) / sqrt(2)``."""

    def __init__(self, spatial_dims: int, inputs: int, outputs: int) -> None:
        super().__init__()
        self.first = EqualConvolution(spatial_dims, inputs, inputs)
        self.second = EqualConvolution(spatial_dims, inputs, outputs)
        self.skip = EqualConvolution(spatial_dims, inputs, outputs, kernel_size=1, bias=False)
        self.pool = _POOL[spatial_dims]

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.leaky_relu(self.first(x), 0.2) * GAIN
        hidden = F.leaky_relu(self.second(self._halve(hidden)), 0.2) * GAIN
        return (hidden + self.skip(self._halve(x))) * 0.5**0.5

    def _halve(self, x: Tensor) -> Tensor:
        return self.pool(x, 2, ceil_mode=True)


def batch_deviation(x: Tensor, group_size: int) -> Tensor:
    """Mean over channels and places of the standard deviation over groups of samples, as one more channel.

    Args:
        x: ``(B, C, *spatial)``.
        group_size: samples a group; the largest divisor of ``B`` up to it is taken.

    Returns:
        ``(B, 1, *spatial)``, 0 where a group is one sample.
    """
    size = max(n for n in range(1, group_size + 1) if len(x) % n == 0)
    if size == 1:
        return x.new_zeros(len(x), 1, *x.shape[2:])
    groups = x.unflatten(0, (size, -1))
    deviation = (groups.var(0, unbiased=False) + 1e-8).sqrt().flatten(1).mean(1)
    return deviation.repeat(size).reshape(-1, 1, *[1] * (x.ndim - 2)).expand(-1, 1, *x.shape[2:])
