"""A regression U-Net without normalisation: the same function of a patch and of a whole volume."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from torch import Tensor, nn

from medgen.checks import MedgenError, check_count
from medgen.networks.conditional_unet import zero


class RestorationUNet(nn.Module):
    """Residual blocks on every level, strided convolutions between them, added skips, nothing normalised.

    Statistics of a patch say nothing about a voxel that is to be restored, and would make the result depend on where
    patches are cut.

    Args:
        spatial_dims: 2 or 3.
        in_channels: of the input.
        out_channels: of the output, which begins as 0.
        channels: width of each level; each level halves the resolution of the one before.
        num_res_blocks: residual blocks on each side of each level.

    References:
        Zhang et al. 2021, "Plug-and-play image restoration with deep denoiser prior" (arXiv:2008.13751), section 3.1;
        blocks without normalisation: Lim et al. 2017 (arXiv:1707.02921).
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        channels: Sequence[int] = (24, 48, 96),
        num_res_blocks: int = 2,
    ) -> None:
        super().__init__()
        if spatial_dims not in (2, 3) or not channels:
            raise MedgenError(
                f"RestorationUNet: spatial_dims must be 2 or 3, channels not empty. Got {spatial_dims}, {channels}."
            )
        check_count("RestorationUNet", "num_res_blocks", num_res_blocks)
        convolution = nn.Conv2d if spatial_dims == 2 else nn.Conv3d
        transposed = nn.ConvTranspose2d if spatial_dims == 2 else nn.ConvTranspose3d
        self.multiple = 2 ** (len(channels) - 1)

        def level(width: int) -> nn.Sequential:
            return nn.Sequential(*(_Block(convolution, width) for _ in range(num_res_blocks)))

        self.enter = convolution(in_channels, channels[0], 3, padding=1)
        self.down_blocks = nn.ModuleList(level(width) for width in channels[:-1])
        self.down = nn.ModuleList(convolution(a, b, 2, stride=2) for a, b in itertools.pairwise(channels))
        self.middle = level(channels[-1])
        self.up = nn.ModuleList(transposed(b, a, 2, stride=2) for a, b in itertools.pairwise(channels))
        self.up_blocks = nn.ModuleList(level(width) for width in channels[:-1])
        self.leave = convolution(channels[0], out_channels, 3, padding=1)
        zero(self.leave)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, in_channels, *spatial)`` to ``(B, out_channels, *spatial)``.

        Raises:
            MedgenError: a spatial size is no multiple of ``2 ** (levels - 1)``.
        """
        if any(size % self.multiple for size in x.shape[2:]):
            raise MedgenError(
                f"RestorationUNet: x must have spatial sizes that are multiples of {self.multiple}. "
                f"Got {tuple(x.shape[2:])}. Pad it first."
            )
        x = self.enter(x)
        skips = []
        for blocks, down in zip(self.down_blocks, self.down, strict=True):
            x = blocks(x)
            skips.append(x)
            x = down(x)
        x = self.middle(x)
        for blocks, up, skip in zip(reversed(self.up_blocks), reversed(self.up), reversed(skips), strict=True):
            x = blocks(up(x) + skip)
        output: Tensor = self.leave(x)
        return output


class _Block(nn.Module):
    """``x + conv(relu(conv(x)))``; the identity until trained."""

    def __init__(self, convolution: type[nn.Conv2d] | type[nn.Conv3d], width: int) -> None:
        super().__init__()
        self.first = convolution(width, width, 3, padding=1)
        self.second = convolution(width, width, 3, padding=1)
        zero(self.second)

    def forward(self, x: Tensor) -> Tensor:
        hidden: Tensor = self.second(self.first(x).relu_())
        return x + hidden
