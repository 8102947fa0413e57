"""A lean diffusion U-Net for volumes: patch-trained, whole-volume sampled, cheap on a CPU.

MONAI's ``DiffusionModelUNet`` concatenates its skips, has one more residual block on the way up and always attends
globally in its middle block: for the same channels it costs about 1.7 times as much on a CPU, and attention over
a whole volume is another function than over the patch it was trained on. Here skips are added and voxels attend to
nothing but the context; blocks are those of Dhariwal and Nichol 2021 (arXiv:2105.05233, section 3).
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


class ContractingPath(nn.Module):
    """What the U-Net and its control network share: embeddings, the way down and the middle.

    Args:
        network: name of the class, for errors.
        spatial_dims: 2 or 3.
        in_channels: channels of the noisy sample.
        channels: width of each level.
        condition_channels: channels that follow the noisy sample in ``x``; 0 for none.
        condition_embedding: what they are reduced to.
        num_res_blocks: residual blocks of each level.
        num_class_embeds: number of classes, None for none.
        context_dim: channels of a context token, None for none.
    """

    def __init__(
        self,
        network: str,
        spatial_dims: int,
        in_channels: int,
        channels: Sequence[int],
        condition_channels: int,
        condition_embedding: int,
        num_res_blocks: int,
        num_class_embeds: int | None,
        context_dim: int | None,
    ) -> None:
        super().__init__()
        wrong = [width for width in channels if width % _groups(width)]
        if wrong:
            raise MedgenError(
                f"{network}: channels must be multiples of their {_groups(wrong[0])} groups for normalisation. "
                f"Got {wrong[0]} in {list(channels)}. Take multiples of 8."
            )
        self.name = network
        self.in_channels = in_channels
        self.condition_channels = condition_channels
        self.context_dim = context_dim
        self.time_channels = 4 * channels[0]
        convolution = nn.Conv2d if spatial_dims == 2 else nn.Conv3d
        total = in_channels + (condition_embedding if condition_channels else 0)
        self.embed = nn.Conv1d(condition_channels, condition_embedding, 1) if condition_channels else None
        self.time = nn.Sequential(
            nn.Linear(self.time_channels, self.time_channels),
            nn.SiLU(),
            nn.Linear(self.time_channels, self.time_channels),
        )
        self.classes = nn.Embedding(num_class_embeds, self.time_channels) if num_class_embeds else None
        self.enter = convolution(total, channels[0], 3, padding=1)
        self.down_blocks = nn.ModuleList(
            residual_blocks(spatial_dims, width, self.time_channels, num_res_blocks) for width in channels[:-1]
        )
        self.down = nn.ModuleList(convolution(a, b, 2, stride=2) for a, b in itertools.pairwise(channels))
        self.middle = residual_blocks(spatial_dims, channels[-1], self.time_channels, num_res_blocks)
        self.pool = ContextPool(context_dim, self.time_channels) if context_dim else None
        self.attention = CrossAttention(channels[-1], context_dim) if context_dim else None

    @property
    def multiple(self) -> int:
        """Every spatial size must be a multiple of this."""
        return int(2 ** len(self.down))

    def begin(
        self, x: Tensor, timesteps: Tensor, context: Tensor | None, class_labels: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Check the inputs; first features ``(B, channels[0], *spatial)`` and embedding ``(B, time_channels)``."""
        self._check(x, context, class_labels)
        if self.embed is not None:
            noisy, condition = x.split([self.in_channels, self.condition_channels], dim=1)
            with at_most_threads(1, x.device):  # a product over many channels is split among threads: other bytes
                embedded = self.embed(condition.flatten(2)).unflatten(2, condition.shape[2:])
            x = torch.cat([noisy, embedded], dim=1)
        embedding = self.time(_sinusoidal(timesteps, self.time_channels).to(x.dtype).to(x.device))
        if self.classes is not None and class_labels is not None:
            embedding = embedding + self.classes(class_labels)
        if self.pool is not None:
            embedding = embedding + self.pool(context)
        return self.enter(x), F.silu(embedding)

    def contract(self, x: Tensor, embedding: Tensor, context: Tensor | None) -> tuple[list[Tensor], Tensor]:
        """The way down: features of each level but the last, and the middle."""
        skips = []
        for blocks, down in zip(self.down_blocks, self.down, strict=True):
            x = blocks(x, embedding)
            skips.append(x)
            x = down(x)
        x = self.middle(x, embedding)
        return skips, x if self.attention is None else self.attention(x, context)

    def _check(self, x: Tensor, context: Tensor | None, class_labels: Tensor | None) -> None:
        expected = self.in_channels + self.condition_channels
        if x.shape[1] != expected:
            raise MedgenError(
                f"{self.name}: x must have {expected} channels ({self.in_channels} noisy + "
                f"{self.condition_channels} conditioning). Got {x.shape[1]}. Pass the conditioning as 'concat'."
            )
        if any(size % self.multiple for size in x.shape[2:]):
            raise MedgenError(
                f"{self.name}: x must have spatial sizes that are multiples of {self.multiple}. "
                f"Got {tuple(x.shape[2:])}. Pad it first."
            )
        for what, given, built in (
            ("context", context, self.context_dim),
            ("class_labels", class_labels, self.classes),
        ):
            if given is not None and built is None:
                raise MedgenError(f"{self.name}: {what} is given, but the network was built without it. Leave it out.")
        if self.context_dim and (context is None or context.ndim != 3 or context.shape[2] != self.context_dim):
            found = None if context is None else tuple(context.shape)
            raise MedgenError(
                f"{self.name}: context must have shape (B, tokens, {self.context_dim}). Got {found}. "
                "Make it with a ControlEncoder of this context_dim."
            )


class ConditionalUNet(ContractingPath):
    """U-Net with MONAI's signature ``network(x, timesteps, context, class_labels)``, two or three dimensions.

    Conditioning channels (packed one-hot labels bring more than a hundred) are reduced by a point-wise
    convolution before they meet the noisy sample: a 3 x 3 x 3 convolution over all of them would cost more
    than the rest of a small network. Context tokens act twice: pooled, on the scale and shift of every block, and by
    cross-attention in the middle (Rombach et al. 2022, arXiv:2112.10752, section 3.3).

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the noisy sample.
        out_channels: channels of the prediction.
        channels: width of each level; each level halves the resolution of the one before.
        condition_channels: channels that follow the noisy sample in ``x``; 0 for none.
        condition_embedding: what they are reduced to.
        num_res_blocks: residual blocks on each side of each level.
        num_class_embeds: number of classes, None for none.
        context_dim: channels of a context token, None for none.
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
        context_dim: int | None = None,
    ) -> None:
        super().__init__(
            "ConditionalUNet", spatial_dims, in_channels, channels, condition_channels, condition_embedding,
            num_res_blocks, num_class_embeds, context_dim,
        )  # fmt: skip
        convolution, up = (nn.Conv2d, nn.ConvTranspose2d) if spatial_dims == 2 else (nn.Conv3d, nn.ConvTranspose3d)
        self.up = nn.ModuleList(up(b, a, 2, stride=2) for a, b in itertools.pairwise(channels))
        self.up_blocks = nn.ModuleList(
            residual_blocks(spatial_dims, width, self.time_channels, num_res_blocks) for width in channels[:-1]
        )
        self.leave = convolution(channels[0], out_channels, 3, padding=1)
        zero(self.leave)

    def forward(
        self,
        x: Tensor,
        timesteps: Tensor,
        context: Tensor | None = None,
        class_labels: Tensor | None = None,
        down_block_additional_residuals: Sequence[Tensor] | None = None,
        mid_block_additional_residual: Tensor | None = None,
    ) -> Tensor:
        """Predict from ``x`` ``(B, in_channels + condition_channels, *spatial)`` at ``timesteps`` ``(B,)``, 0 to 1000.

        Args:
            x: noisy sample, then conditioning channels.
            timesteps: of each sample.
            context: tokens ``(B, T, context_dim)``; a zero row is padding.
            class_labels: ``(B,)`` int64.
            down_block_additional_residuals: of a control network, added to the skip of each level but the last.
            mid_block_additional_residual: of a control network, added to the middle.

        Returns:
            ``(B, out_channels, *spatial)``.

        Raises:
            MedgenError: wrong channels or sizes; ``context`` or ``class_labels`` that this network has no use for.
        """
        x, embedding = self.begin(x, timesteps, context, class_labels)
        skips, x = self.contract(x, embedding, context)
        if down_block_additional_residuals is not None:
            skips = [s + r for s, r in zip(skips, down_block_additional_residuals, strict=True)]
        if mid_block_additional_residual is not None:
            x = x + mid_block_additional_residual
        for blocks, up, skip in zip(reversed(self.up_blocks), reversed(self.up), reversed(skips), strict=True):
            x = blocks((up(x) + skip) * 0.5**0.5, embedding)
        output: Tensor = self.leave(F.silu(_norm(x)))
        return output


class ContextPool(nn.Module):
    """Context tokens to one vector: a learnt query a head weighs the tokens, their mean in the beginning.

    Args:
        context_dim: channels of a token.
        out_channels: of the vector.
        heads: queries; each weighs a part of the channels.
    """

    def __init__(self, context_dim: int, out_channels: int, heads: int = 4) -> None:
        super().__init__()
        self.heads = math.gcd(heads, context_dim)
        self.query = nn.Linear(context_dim, self.heads, bias=False)
        self.project = nn.Sequential(
            nn.Linear(context_dim, out_channels), nn.SiLU(), nn.Linear(out_channels, out_channels)
        )
        zero(self.query)

    def forward(self, context: Tensor) -> Tensor:
        """``(B, T, context_dim)`` to ``(B, out_channels)``; zero rows do not count."""
        score = self.query(context).masked_fill(_padding(context)[..., None], -torch.inf)
        parts = context.unflatten(2, (self.heads, -1))
        pooled = (score.softmax(dim=1)[..., None] * parts).sum(dim=1)
        vector: Tensor = self.project(pooled.flatten(1))
        return vector


class CrossAttention(nn.Module):
    """``x + project(attention(norm(x), context))``, each voxel on its own; the identity until trained.

    Args:
        width: channels of ``x``.
        context_dim: channels of a token.
        heads: of the attention.

    References:
        Vaswani et al. 2017 (arXiv:1706.03762), equation 1.
    """

    def __init__(self, width: int, context_dim: int, heads: int = 4) -> None:
        super().__init__()
        self.heads = math.gcd(heads, width)
        self.query = nn.Linear(width, width, bias=False)
        self.keys_values = nn.Linear(context_dim, 2 * width, bias=False)
        self.project = nn.Linear(width, width)
        zero(self.project)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """``x`` ``(B, width, *spatial)``, ``context`` ``(B, T, context_dim)``; zero rows are not looked at."""
        with at_most_threads(1, x.device):
            voxels = _norm(x).flatten(2).transpose(1, 2)
            query = self.query(voxels).unflatten(2, (self.heads, -1)).transpose(1, 2)
            keys, values = (
                part.unflatten(2, (self.heads, -1)).transpose(1, 2)
                for part in self.keys_values(context).chunk(2, dim=2)
            )
            seen = ~_padding(context)[:, None, None, :]
            found = F.scaled_dot_product_attention(query, keys, values, attn_mask=seen)
            change = self.project(found.transpose(1, 2).flatten(2))
        return x + change.transpose(1, 2).reshape(x.shape)


def _padding(context: Tensor) -> Tensor:
    """``(B, T)``: which tokens are zero; none where all are, so that a softmax over them has a value."""
    empty = (context == 0).all(dim=2)
    return empty & ~empty.all(dim=1, keepdim=True)


def residual_blocks(spatial_dims: int, width: int, time_channels: int, count: int) -> _Stack:
    """``count`` residual blocks of one level."""
    return _Stack(_ResidualBlock(spatial_dims, width, time_channels) for _ in range(count))


class _ResidualBlock(nn.Module):
    """``x + conv(silu(scale * norm(conv(silu(norm(x)))) + shift))``, scale and shift from the embedding."""

    def __init__(self, spatial_dims: int, width: int, time_channels: int) -> None:
        super().__init__()
        convolution = nn.Conv2d if spatial_dims == 2 else nn.Conv3d
        self.first = convolution(width, width, 3, padding=1)
        self.second = convolution(width, width, 3, padding=1)
        self.modulation = nn.Linear(time_channels, 2 * width)
        zero(self.second)

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


def zero(layer: nn.Module) -> None:
    """A layer that answers zero until trained, so that a residual block begins as the identity."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)


def _norm(x: Tensor) -> Tensor:
    """Group normalisation, eight channels or more a group."""
    return F.group_norm(x, _groups(x.shape[1]))


def _groups(channels: int) -> int:
    return max(1, min(8, channels // 4))


def _sinusoidal(timesteps: Tensor, channels: int) -> Tensor:
    """Sinusoidal embedding ``(B, channels)``: Vaswani et al. 2017, section 3.5, periods from 2 pi to 2 pi 10^4.

    In float64 on the CPU: Apple's GPUs have no float64.
    """
    half = channels // 2
    frequencies = torch.exp(-torch.arange(half, dtype=torch.float64) * (math.log(1e4) / half))
    phase = timesteps.detach().cpu().double()[:, None] * frequencies
    return torch.cat([phase.cos(), phase.sin()], dim=1)
