"""Generators of image-to-image translation: residual (CycleGAN), U-Net (pix2pix) and SPADE (label map to image).

All take any size: what is not a multiple of the coarsest level's step is padded by reflection and cut off again.

References:
    Isola et al. 2017 (pix2pix, arXiv:1611.07004); Zhu et al. 2017 (CycleGAN, arXiv:1703.10593).
    Park et al. 2019 (SPADE, arXiv:1903.07291), sections 3 and A; the normalisation is MONAI's ``SPADE``.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch
from monai.networks.blocks.spade_norm import SPADE
from torch import Tensor, nn
from torch.nn import functional as F

from medgen.checks import MedgenError

_CONVOLUTION: dict[int, type[nn.Conv2d] | type[nn.Conv3d]] = {2: nn.Conv2d, 3: nn.Conv3d}
_INTERPOLATION = {2: "bilinear", 3: "trilinear"}
_REFLECT = "reflect"
NOISE_STRENGTH = 0.1


def padded(function: Callable[[Tensor], Tensor], x: Tensor, multiple: int) -> Tensor:
    """``function(x)`` with the spatial axes padded at their ends to a multiple, and the result cut back.

    Args:
        function: keeps the spatial size.
        x: ``(B, C, *spatial)``.
        multiple: of every axis inside.
    """
    short = [-n % multiple for n in x.shape[2:]]
    if not any(short):
        return function(x)
    pads = [width for n in reversed(short) for width in (0, n)]
    mode = _REFLECT if all(s < n for s, n in zip(short, x.shape[2:], strict=True)) else "replicate"
    window = (slice(None), slice(None), *(slice(0, n) for n in x.shape[2:]))
    return function(F.pad(x, pads, mode=mode))[window]


def _norm(x: Tensor) -> Tensor:
    """Instance normalisation, without weights; a single voxel is left as it is."""
    return F.instance_norm(x) if x[0, 0].numel() > 1 else x


class _Residual(nn.Module):
    """``x + norm(conv(relu(norm(conv(x)))))``, reflecting borders."""

    def __init__(self, spatial_dims: int, width: int) -> None:
        super().__init__()
        convolution = _CONVOLUTION[spatial_dims]
        self.first = convolution(width, width, 3, padding=1, bias=False)
        self.second = convolution(width, width, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = x + _norm(self.second(F.relu(_norm(self.first(x)))))
        return result


def _check_residual(network: str, in_channels: int, out_channels: int, residual: bool) -> None:
    """A residual generator adds its first source channels to what it makes: there must be as many."""
    if residual and in_channels < out_channels:
        raise MedgenError(
            f"{network}: in_channels must be at least out_channels ({out_channels}) with residual. Got {in_channels}. "
            "Set residual to false, or give more source channels."
        )


class ResNetGenerator(nn.Module):
    """Down, residual blocks at the coarsest level, up: Johnson et al. 2016 (arXiv:1603.08155) as CycleGAN uses it.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the source.
        out_channels: channels of the image.
        channels: width of each level, the finest first; each level halves the resolution of the one before.
        num_res_blocks: residual blocks.
        residual: the first ``out_channels`` of the source are added to the output, so that only a change is learnt.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        channels: Sequence[int] = (32, 64, 128),
        num_res_blocks: int = 6,
        residual: bool = False,
    ) -> None:
        super().__init__()
        _check_residual("ResNetGenerator", in_channels, out_channels, residual)
        convolution = _CONVOLUTION[spatial_dims]
        steps = list(itertools.pairwise(channels))
        self.residual = residual
        self.multiple = 2 ** len(steps)
        self.mode = _INTERPOLATION[spatial_dims]
        self.out_channels = out_channels
        self.enter = convolution(in_channels, channels[0], 7, padding=3)
        self.down = nn.ModuleList(convolution(a, b, 3, stride=2, padding=1) for a, b in steps)
        self.blocks = nn.ModuleList(_Residual(spatial_dims, channels[-1]) for _ in range(num_res_blocks))
        self.up = nn.ModuleList(convolution(b, a, 3, padding=1) for a, b in reversed(steps))
        self.leave = convolution(channels[0], out_channels, 7, padding=3)
        _small(self.leave)

    def forward(self, x: Tensor) -> Tensor:
        """Image ``(B, out_channels, *spatial)`` of a source ``(B, in_channels, *spatial)``."""
        return padded(self._translate, x, self.multiple)

    def _translate(self, source: Tensor) -> Tensor:
        x = F.relu(_norm(self.enter(source)))
        for down in self.down:
            x = F.relu(_norm(down(x)))
        for block in self.blocks:
            x = block(x)
        for up in self.up:
            x = F.relu(_norm(up(F.interpolate(x, scale_factor=2, mode=self.mode, align_corners=False))))
        made: Tensor = self.leave(x)
        return made + source[:, : self.out_channels] if self.residual else made


class UNetGenerator(nn.Module):
    """U-Net of pix2pix (section 3.2.1), without dropout and with interpolation instead of transposed convolutions.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the source.
        out_channels: channels of the image.
        channels: width of each level, the finest first; each level halves the resolution of the one before.
        residual: the first ``out_channels`` of the source are added to the output.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        channels: Sequence[int] = (32, 64, 128, 128),
        residual: bool = False,
    ) -> None:
        super().__init__()
        _check_residual("UNetGenerator", in_channels, out_channels, residual)
        convolution = _CONVOLUTION[spatial_dims]
        steps = list(itertools.pairwise(channels))
        self.residual = residual
        self.multiple = 2 ** len(steps)
        self.mode = _INTERPOLATION[spatial_dims]
        self.out_channels = out_channels
        self.enter = convolution(in_channels, channels[0], 3, padding=1)
        self.down = nn.ModuleList(convolution(a, b, 4, stride=2, padding=1) for a, b in steps)
        self.middle = convolution(channels[-1], channels[-1], 3, padding=1)
        self.up = nn.ModuleList(convolution(b, a, 3, padding=1) for a, b in reversed(steps))
        self.merge = nn.ModuleList(convolution(2 * a, a, 3, padding=1) for a, _ in reversed(steps))
        self.leave = convolution(channels[0], out_channels, 3, padding=1)
        _small(self.leave)

    def forward(self, x: Tensor) -> Tensor:
        """Image ``(B, out_channels, *spatial)`` of a source ``(B, in_channels, *spatial)``."""
        return padded(self._translate, x, self.multiple)

    def _translate(self, source: Tensor) -> Tensor:
        x = F.leaky_relu(self.enter(source), 0.2)
        skips = []
        for down in self.down:
            skips.append(x)
            x = F.leaky_relu(_norm(down(x)), 0.2)
        x = F.leaky_relu(_norm(self.middle(x)), 0.2)
        for up, merge in zip(self.up, self.merge, strict=True):
            x = _norm(up(F.interpolate(x, scale_factor=2, mode=self.mode, align_corners=False)))
            x = F.leaky_relu(merge(torch.cat([F.leaky_relu(x, 0.2), skips.pop()], dim=1)), 0.2)
        made: Tensor = self.leave(x)
        return made + source[:, : self.out_channels] if self.residual else made


class SpadeGenerator(nn.Module):
    """Latent and label map to image: the latent starts a coarse field, the label map steers every normalisation.

    MONAI's ``SPADENet`` draws its latent from the global generator, changes the list it is given and needs an
    encoder to have a latent at all; its ``SPADE`` block is used here.

    Args:
        spatial_dims: 2 or 3.
        label_channels: channels of the label map (after packing, where the model packs).
        out_channels: channels of the image.
        size: spatial size for which the coarse field is made; other sizes interpolate it.
        channels: width of each level, the finest first; each level halves the resolution of the one before.
        latent_dim: length of the latent; 0 for none.
        hidden_channels: within each normalisation.
        context_dim: width of conditioning tokens, which join the latent; 0 for none.
        noise: whether every block adds noise of learnt strength, the texture that a label map does not tell.
    """

    def __init__(
        self,
        spatial_dims: int,
        label_channels: int,
        out_channels: int,
        size: Sequence[int],
        channels: Sequence[int] = (32, 64, 128),
        latent_dim: int = 32,
        hidden_channels: int = 32,
        context_dim: int = 0,
        noise: bool = True,
    ) -> None:
        super().__init__()
        convolution = _CONVOLUTION[spatial_dims]
        widths = list(reversed(channels))
        self.latent_dim = latent_dim
        self.context_dim = context_dim
        self.multiple = 2 ** (len(widths) - 1)
        self.mode = _INTERPOLATION[spatial_dims]
        self.coarse = tuple(max(1, n // self.multiple) for n in size)
        count = 1
        for n in self.coarse:
            count *= n
        told = latent_dim + context_dim
        self.start = nn.Linear(told, widths[0] * count) if told else None
        self.enter = convolution(label_channels, widths[0], 3, padding=1)

        def block(a: int, b: int) -> _SpadeBlock:
            return _SpadeBlock(spatial_dims, a, b, label_channels, hidden_channels, noise)

        pairs = [(widths[0], widths[0]), *itertools.pairwise(widths)]
        self.blocks = nn.ModuleList(block(a, b) for a, b in pairs)
        self.leave = convolution(widths[-1], out_channels, 3, padding=1)
        _small(self.leave)

    def noise_shapes(self, size: Sequence[int]) -> list[tuple[int, ...]]:
        """Shape ``(1, *size)`` of the noise of one sample in each block, for a label map of ``size``."""
        levels = range(len(self.blocks) - 1, -1, -1)
        padded_size = [n + -n % self.multiple for n in size]
        return [(1, *(n // 2**level for n in padded_size)) for level in levels]

    def forward(
        self,
        label: Tensor,
        z: Tensor | None = None,
        context: Tensor | None = None,
        *,
        noise: Sequence[Tensor] | None = None,
    ) -> Tensor:
        """Generate.

        Args:
            label: ``(B, label_channels, *spatial)``, one-hot or packed.
            z: latent ``(B, latent_dim)``, standard normal.
            context: conditioning tokens ``(B, T, context_dim)``.
            noise: ``(B, *shape)`` for each of :meth:`noise_shapes`; None leaves the noise out.

        Returns:
            ``(B, out_channels, *spatial)``.

        Raises:
            MedgenError: the latent is missing though the network takes one.
        """
        if self.latent_dim and z is None:
            raise MedgenError("SpadeGenerator: z must be given where latent_dim is above 0. Got None. Pass a latent.")
        parts = [z] if z is not None and self.latent_dim else []
        if context is not None and self.context_dim:
            parts.append(context.mean(1))
        told = torch.cat(parts, dim=1) if parts else None
        return padded(lambda x: self._generate(x, told, noise), label, self.multiple)

    def _generate(self, label: Tensor, told: Tensor | None, noise: Sequence[Tensor] | None) -> Tensor:
        coarse = [n // self.multiple for n in label.shape[2:]]
        x: Tensor = self.enter(F.interpolate(label, size=coarse, mode="area"))
        if self.start is not None and told is not None:
            field = self.start(told).reshape(len(label), -1, *self.coarse)
            if tuple(coarse) != self.coarse:
                field = F.interpolate(field, size=coarse, mode=self.mode, align_corners=False)
            x = x + field
        for index, block in enumerate(self.blocks):
            if index:
                x = F.interpolate(x, scale_factor=2, mode=self.mode, align_corners=False)
            x = block(x, label, noise[index] if noise is not None else None)
        made: Tensor = self.leave(F.leaky_relu(x, 0.2))
        return made


class _SpadeBlock(nn.Module):
    """``skip(x) + conv(act(spade(conv(act(spade(x)))))``: SPADE, figure 4."""

    def __init__(self, dims: int, inputs: int, outputs: int, labels: int, hidden: int, noise: bool) -> None:
        super().__init__()
        convolution = _CONVOLUTION[dims]
        middle = min(inputs, outputs)

        def norm(width: int) -> SPADE:
            return SPADE(labels, width, spatial_dims=dims, hidden_channels=hidden)

        self.first_norm, self.second_norm = norm(inputs), norm(middle)
        self.first = convolution(inputs, middle, 3, padding=1)
        self.second = convolution(middle, outputs, 3, padding=1)
        self.skip = convolution(inputs, outputs, 1, bias=False) if inputs != outputs else nn.Identity()
        self.strength = nn.Parameter(torch.full((1, inputs, *[1] * dims), NOISE_STRENGTH)) if noise else None

    def forward(self, x: Tensor, label: Tensor, noise: Tensor | None) -> Tensor:
        if self.strength is not None and noise is not None:
            x = x + self.strength * noise
        hidden = self.first(F.leaky_relu(self.first_norm(x, label), 0.2))
        hidden = self.second(F.leaky_relu(self.second_norm(hidden, label), 0.2))
        result: Tensor = self.skip(x) + hidden
        return result


def _small(layer: nn.Module) -> None:
    """A last layer that begins near zero."""
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.mul_(0.1)
