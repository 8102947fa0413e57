"""Style-based generator for images and volumes: a constant, modulated convolutions, noise in every layer.

Modulation and demodulation of the weights are done as a scaling of the features before and after one ordinary
convolution, which is the same function (Karras et al. 2020, section 2.2, equations 1 to 3) and on a CPU many times
faster than a grouped convolution per sample.

References:
    Karras et al. 2019 (StyleGAN, arXiv:1812.04948): mapping network, style mixing, truncation.
    Karras et al. 2020 (StyleGAN2, arXiv:1912.04958): modulated convolutions, output skips.
    Karras et al. 2018 (arXiv:1710.10196), section 4.1: equalised learning rate.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medgen.checks import MedgenError

GAIN = 2**0.5
NOISE_STRENGTH = 0.1  # at the start, so that texture is not sought elsewhere first
_CONVOLUTIONS = {2: F.conv2d, 3: F.conv3d}
_INTERPOLATION = {2: "bilinear", 3: "trilinear"}


class EqualLinear(nn.Module):
    """Linear layer whose weights are drawn from N(0, 1) and scaled when used, so that all learn at one rate.

    Args:
        inputs: features in.
        outputs: features out.
        bias: initial value of the bias.
        rate: learning rate relative to other layers.
    """

    def __init__(self, inputs: int, outputs: int, bias: float = 0.0, rate: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs) / rate)
        self.bias = nn.Parameter(torch.full((outputs,), bias / rate))
        self.scale = rate / math.sqrt(inputs)
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * self.scale, self.bias * self.rate)


class EqualConvolution(nn.Module):
    """Convolution of stride 1 with equalised learning rate and zero padding to the same size.

    Args:
        spatial_dims: 2 or 3.
        inputs: channels in.
        outputs: channels out.
        kernel_size: odd.
        bias: whether a bias is added.
    """

    def __init__(self, spatial_dims: int, inputs: int, outputs: int, kernel_size: int = 3, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, *[kernel_size] * spatial_dims))
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None
        self.scale = 1 / math.sqrt(inputs * kernel_size**spatial_dims)
        self.convolve = _CONVOLUTIONS[spatial_dims]
        self.padding = kernel_size // 2

    def forward(self, x: Tensor) -> Tensor:
        return self.convolve(x, self.weight * self.scale, self.bias, padding=self.padding)


class ModulatedConvolution(nn.Module):
    """Convolution whose input channels are scaled by a style, and its outputs brought back to unit variance.

    ``w'_oik = s_i w_oik``, ``w''_oik = w'_oik / sqrt(sum_ik w'_oik^2 + eps)`` (equations 1 and 3).

    Args:
        spatial_dims: 2 or 3.
        inputs: channels in.
        outputs: channels out.
        style_dim: length of the style vector.
        kernel_size: odd.
        demodulate: whether equation 3 is applied.
    """

    def __init__(
        self,
        spatial_dims: int,
        inputs: int,
        outputs: int,
        style_dim: int,
        kernel_size: int = 3,
        demodulate: bool = True,
    ) -> None:
        super().__init__()
        self.convolution = EqualConvolution(spatial_dims, inputs, outputs, kernel_size, bias=False)
        self.style = EqualLinear(style_dim, inputs, bias=1.0)
        self.demodulate = demodulate

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        scale = self.style(style)
        ones = [1] * (x.ndim - 2)
        x = self.convolution(x * scale.reshape(*scale.shape, *ones))
        if not self.demodulate:
            return x
        squares = (self.convolution.weight * self.convolution.scale).square().flatten(2).sum(2)
        back = (scale.square() @ squares.T + 1e-8).rsqrt()
        return x * back.reshape(*back.shape, *ones)


class StyleLayer(nn.Module):
    """Modulated convolution, interpolation where the layer is larger than its input, noise, bias and leaky ReLU.

    Each channel has its own strength of the noise (Karras et al. 2019, figure 1b).

    Args:
        spatial_dims: 2 or 3.
        inputs: channels in.
        outputs: channels out.
        style_dim: length of the style vector.
        size: spatial size of the result.
    """

    def __init__(self, spatial_dims: int, inputs: int, outputs: int, style_dim: int, size: Sequence[int]) -> None:
        super().__init__()
        self.convolution = ModulatedConvolution(spatial_dims, inputs, outputs, style_dim)
        self.noise_strength = nn.Parameter(torch.full((outputs,), NOISE_STRENGTH))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.size = tuple(size)

    def forward(self, x: Tensor, style: Tensor, noise: Tensor | None) -> Tensor:
        x = grown(self.convolution(x, style), self.size)
        ones = [1] * (x.ndim - 2)
        if noise is not None:
            x = x + self.noise_strength.reshape(-1, *ones) * noise
        return F.leaky_relu(x + self.bias.reshape(-1, *ones), 0.2) * GAIN


class Mapping(nn.Module):
    """From latent and conditioning to the style vector ``w``.

    Args:
        latent_dim: length of the latent ``z``.
        style_dim: length of ``w``.
        layers: fully connected layers.
        context_dim: width of the conditioning's tokens; 0 for none.
        rate: learning rate relative to the other layers.
    """

    def __init__(self, latent_dim: int, style_dim: int, layers: int, context_dim: int = 0, rate: float = 0.1) -> None:
        super().__init__()
        self.context = EqualLinear(context_dim, style_dim) if context_dim else None
        widths = [latent_dim + (style_dim if context_dim else 0), *[style_dim] * layers]
        self.layers = nn.ModuleList(EqualLinear(a, b, rate=rate) for a, b in itertools.pairwise(widths))

    def forward(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        x = _unit(z)
        if self.context is not None and context is not None:
            x = torch.cat([x, _unit(self.context(context.mean(1)))], dim=1)
        for layer in self.layers:
            x = F.leaky_relu(layer(x), 0.2) * GAIN
        return x


class StyleGenerator(nn.Module):
    """Latent to image, every layer steered by a style vector; any size, odd ones included.

    Args:
        spatial_dims: 2 or 3.
        out_channels: channels of the image (after packing, where the model packs).
        size: spatial size of the image.
        channels: width of each level, the finest first; each level halves the resolution of the one before.
        latent_dim: length of the latent ``z``.
        style_dim: length of the style vector ``w``.
        mapping_layers: fully connected layers from ``z`` to ``w``.
        context_dim: width of conditioning tokens (see ``ControlEncoder``); 0 for none.

    Attributes:
        noise_shapes: shape ``(1, *size)`` of the noise of one sample in each layer, the coarsest first.
    """

    mean_style: Tensor

    def __init__(
        self,
        spatial_dims: int,
        out_channels: int,
        size: Sequence[int],
        channels: Sequence[int] = (32, 64, 128),
        latent_dim: int = 64,
        style_dim: int = 64,
        mapping_layers: int = 2,
        context_dim: int = 0,
    ) -> None:
        super().__init__()
        if len(size) != spatial_dims:
            raise MedgenError(f"StyleGenerator: size must have {spatial_dims} entries, one per axis. Got {list(size)}.")
        self.latent_dim = latent_dim
        self.context_dim = context_dim
        self.sizes = [tuple(-(-n // 2**level) for n in size) for level in reversed(range(len(channels)))]
        widths = list(reversed(channels))
        self.mapping = Mapping(latent_dim, style_dim, mapping_layers, context_dim)
        self.constant = nn.Parameter(torch.randn(1, widths[0], *self.sizes[0]))
        pairs = [(widths[0], widths[0])]
        for before, width in itertools.pairwise(widths):
            pairs += [(before, width), (width, width)]
        levels = [0, *(level for level in range(1, len(widths)) for _ in range(2))]
        self.noise_shapes = [(1, *self.sizes[level]) for level in levels]
        self.layers = nn.ModuleList(
            StyleLayer(spatial_dims, *pair, style_dim, self.sizes[level])
            for pair, level in zip(pairs, levels, strict=True)
        )
        self.outputs = nn.ModuleList(
            ModulatedConvolution(spatial_dims, width, out_channels, style_dim, kernel_size=1, demodulate=False)
            for width in widths
        )
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.register_buffer("mean_style", torch.zeros(style_dim))

    def forward(
        self,
        z: Tensor | None = None,
        context: Tensor | None = None,
        *,
        noise: Sequence[Tensor] | None = None,
        truncation: float = 1.0,
        styles: Tensor | None = None,
    ) -> Tensor:
        """Generate.

        Args:
            z: latent ``(B, latent_dim)``, standard normal.
            context: conditioning tokens ``(B, T, context_dim)``.
            noise: ``(B, *shape)`` for each of :attr:`noise_shapes`; None leaves the noise out.
            truncation: 1 = none; below, styles are drawn towards their mean (StyleGAN, appendix B).
            styles: one for each layer ``(B, layers, style_dim)`` instead of ``z``, see :meth:`mixed`.

        Returns:
            ``(B, out_channels, *size)``.

        Raises:
            MedgenError: neither latent nor styles, or a context that the network was built without (or lacks).
        """
        if styles is None:
            styles = self.styles(self.style(z, context), truncation)
        return self.synthesise(styles, noise)

    def style(self, z: Tensor | None, context: Tensor | None = None) -> Tensor:
        """Style vector ``w`` ``(B, style_dim)`` of a latent ``(B, latent_dim)``."""
        if z is None:
            raise MedgenError("StyleGenerator: z or styles must be given. Got neither. Pass a latent.")
        if (context is None) == bool(self.context_dim):
            raise MedgenError(
                f"StyleGenerator: context must be given exactly where context_dim is above 0. Got context_dim "
                f"{self.context_dim} and {'no' if context is None else 'a'} context."
            )
        w: Tensor = self.mapping(z, context)
        return w

    def styles(self, w: Tensor, truncation: float = 1.0) -> Tensor:
        """One style for each layer ``(B, layers, style_dim)``: ``mean + truncation (w - mean)``."""
        w = torch.lerp(self.mean_style.to(w), w, truncation) if truncation != 1 else w
        return w[:, None].expand(-1, len(self.layers), -1)

    def mixed(self, first: Tensor, second: Tensor, crossover: Tensor) -> Tensor:
        """Style mixing: ``first`` in the layers before ``crossover``, ``second`` from there on (StyleGAN, 3.1).

        Args:
            first: ``(B, style_dim)``.
            second: same shape.
            crossover: ``(B,)`` int, number of layers of ``first``; the number of layers or more mixes nothing.
        """
        early = torch.arange(len(self.layers), device=first.device)[None] < crossover.to(first.device)[:, None]
        return torch.where(early[..., None], first[:, None], second[:, None])

    def synthesise(self, styles: Tensor, noise: Sequence[Tensor] | None = None) -> Tensor:
        """Image of the styles ``(B, layers, style_dim)``."""
        drawn = iter(noise) if noise is not None else None
        x = self.constant.expand(len(styles), *self.constant.shape[1:])
        image = x.new_zeros(())
        index = 0
        for level, output in enumerate(self.outputs):
            if level:
                image = grown(image, self.sizes[level])
            for _ in range(2 if level else 1):
                x = self.layers[index](x, styles[:, index], next(drawn) if drawn else None)
                index += 1
            image = image + output(x, styles[:, index - 1])
        return image + self.bias.reshape(-1, *[1] * (x.ndim - 2))

    @torch.no_grad()
    def track_mean(self, w: Tensor, decay: float = 0.995) -> None:
        """Move the mean style, which truncation draws towards, to that of ``w`` ``(B, style_dim)``."""
        self.mean_style.lerp_(w.detach().float().mean(0), 1 - decay)


def _unit(x: Tensor) -> Tensor:
    """Rows scaled to mean square 1."""
    return x * (x.square().mean(1, keepdim=True) + 1e-8).rsqrt()


def grown(x: Tensor, size: Sequence[int]) -> Tensor:
    """``(B, C, *spatial)`` interpolated to twice its size and cut to ``size``; as it is where it has that size."""
    if tuple(x.shape[2:]) == tuple(size):
        return x
    x = F.interpolate(x, scale_factor=2, mode=_INTERPOLATION[x.ndim - 2], align_corners=False)
    return x[(slice(None), slice(None), *(slice(0, n) for n in size))]
