"""Exact encoding and decoding of large volumes within a memory bound.

A sliding window over an autoencoder computes overlaps several times and normalises every window by itself: seams and
another result. Here the network runs layer by layer over the whole volume, each layer slab by slab: a slab is read with
the halo that its convolution needs, so that every output is computed once, and the mean and variance of a group
normalisation are those of the whole feature map, collected while it was written. Of a feature map that does not fit,
only slabs are in memory; the rest lies in a temporary file (in host memory if the network is on a GPU).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medgen.checks import MedgenError
from medgen.networks.feature_map import FeatureMap

Pointwise = Callable[[Tensor], Tensor]
Pads = Sequence[tuple[int, int]]
LARGEST_SLAB = 2**27  # bytes; larger slabs are no faster
_ELEMENTWISE = (
    nn.Identity, nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.SiLU, nn.GELU, nn.ELU, nn.Mish, nn.Sigmoid, nn.Tanh, nn.Softplus,
    nn.Dropout, nn.Dropout2d, nn.Dropout3d,
)  # fmt: skip


class TiledAutoencoder:
    """``encode`` and ``decode`` of a MONAI autoencoder with bounded memory: equal arithmetic, equal results.

    Args:
        network: ``AutoencoderKL``, ``AutoencoderKlMaisi`` or ``VQVAE`` of MONAI, 2D or 3D, in evaluation mode.
        memory_budget: bytes for feature maps and what a layer needs besides. Weights, input and result come on top.

    Attention layers keep keys and values of all positions and take the queries in portions.

    Raises:
        MedgenError: another network, or one in training mode.

    Example:
        >>> from monai.networks.nets import AutoencoderKL
        >>> network = AutoencoderKL(2, channels=(8, 8), num_res_blocks=1, attention_levels=(False, False),
        ...                         norm_num_groups=4).eval()
        >>> x = torch.linspace(-1, 1, 4096).reshape(1, 1, 64, 64)
        >>> mean, _ = TiledAutoencoder(network, 500_000).encode(x)
        >>> bool(torch.allclose(mean, network.encode(x)[0], atol=1e-5))
        True
    """

    def __init__(self, network: nn.Module, memory_budget: int) -> None:
        from monai.networks.nets import VQVAE, AutoencoderKL

        if not isinstance(network, AutoencoderKL | VQVAE):
            raise MedgenError(
                "TiledAutoencoder: network must be an AutoencoderKL, AutoencoderKlMaisi or VQVAE. "
                f"Got {type(network).__name__}. Use the network's own encode and decode."
            )
        if network.training:
            raise MedgenError("TiledAutoencoder: network must be in evaluation mode. Call network.eval() first.")
        self.network: Any = network
        self.memory_budget = int(memory_budget)

    @torch.no_grad()
    def encode(self, x: Tensor) -> Any:
        """As ``network.encode``: mean and deviation of the posterior (KL), or the codes before quantisation (VQ).

        Args:
            x: ``(B, C, *spatial)``.

        Raises:
            MedgenError: a layer cannot be computed within the memory budget, or is of an unknown kind.
        """
        codes = self._run(self.network.encoder.blocks, x)
        if not hasattr(self.network, "quant_conv_mu"):
            return codes
        log_variance = self._run([self.network.quant_conv_log_sigma], codes).clamp(-30.0, 20.0)
        return self._run([self.network.quant_conv_mu], codes), torch.exp(log_variance / 2)

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """As ``network.decode``.

        Args:
            z: ``(B, Z, *spatial)``.

        Raises:
            MedgenError: see :meth:`encode`.
        """
        first = [self.network.post_quant_conv] if hasattr(self.network, "post_quant_conv") else []
        return self._run([*first, *self.network.decoder.blocks], z)

    def _run(self, blocks: Iterable[nn.Module], x: Tensor) -> Tensor:
        layers = list(blocks)
        return torch.stack([_Pass(sample, self.memory_budget).run(layers) for sample in x])


class _Pass:
    """One sample ``(C, *spatial)`` on its way through the layers."""

    def __init__(self, x: Tensor, budget: int) -> None:
        self.budget = budget
        self.dims = x.ndim - 1
        self.axis = max(range(self.dims), key=lambda axis: x.shape[1 + axis])  # the longest: thinnest slabs
        self.device, self.dtype = x.device, x.dtype
        self.alive: list[FeatureMap] = []
        self.current = FeatureMap.of(x, self.axis)

    def run(self, layers: Sequence[nn.Module]) -> Tensor:
        norm: nn.GroupNorm | None = None
        try:
            for layer in layers:
                if isinstance(layer, nn.GroupNorm):
                    norm = layer
                    continue
                self._layer(layer, norm)
                norm = None
            return self.current.whole()
        finally:
            for feature_map in self.alive:
                feature_map.close()

    def _layer(self, layer: Any, norm: nn.GroupNorm | None) -> None:
        """Replace ``current`` by what ``layer`` makes of it."""
        kind = type(layer).__name__
        if kind in {"AEKLResBlock", "MaisiResBlock"}:
            self._residual_block(layer)
        elif kind == "VQVAEResidualUnit":
            self._vq_residual(layer)
        elif kind == "SpatialAttentionBlock":
            self._attention(layer)
        elif kind in {"AEKLDownsample", "MaisiDownsample"}:
            self._replace(self._convolved(self.current, _plain(layer.conv), pads=[(0, 1)] * self.dims))
        elif kind in {"UpSample", "MaisiUpsample"}:
            self._upsample(layer, kind)
        elif isinstance(layer, _ELEMENTWISE):
            self._elementwise(layer)
        else:
            before = self._normalised(self.current, norm) if norm is not None else None
            after = _activation(layer)
            self._replace(self._convolved(self.current, _plain(layer), before=before, after=after))

    def _residual_block(self, block: Any) -> None:
        """``shortcut(x) + conv2(silu(norm2(conv1(silu(norm1(x))))))``, written over ``x`` where channels agree."""
        x = self.current
        hidden = self._convolved(x, _plain(block.conv1), before=self._normalised(x, block.norm1, silu=True))
        before = self._normalised(hidden, block.norm2, silu=True)
        if not isinstance(block.nin_shortcut, nn.Identity):
            self._replace(self._convolved(x, _plain(block.nin_shortcut)))
            x = self.current
        self._replace(self._convolved(hidden, _plain(block.conv2), before=before, add=x))
        self._close(hidden)

    def _vq_residual(self, block: Any) -> None:
        """``relu(x + conv2(activation(conv1(x))))``."""
        hidden = self._convolved(self.current, _plain(block.conv1), after=_activation(block.conv1))
        self._replace(self._convolved(hidden, _plain(block.conv2), add=self.current, after=F.relu))
        self._close(hidden)

    def _upsample(self, layer: Any, kind: str) -> None:
        if kind == "MaisiUpsample":
            conv, mode = _plain(layer.conv), "linear"
        elif hasattr(layer, "deconv"):
            conv, mode = layer.deconv, ""
        else:
            parts = dict(layer.named_children())
            parts.pop("upsample_non_trainable", None)
            (conv,), mode = [_plain(part) for part in parts.values()], "nearest"
        if isinstance(conv, nn.ConvTranspose2d | nn.ConvTranspose3d):
            self._replace(self._convolved(self.current, conv))
        else:
            self._replace(self._convolved(self.current, conv, enlarge=mode))

    def _elementwise(self, layer: Pointwise) -> None:
        source, target = self.current, self._make(self.current.channels, self.current.size)
        for low, high in self._portions(source.length, 3 * source.plane_bytes, 0):
            target.write(low, layer(source.read(low, high)[None])[0])
        self._replace(target)

    def _normalised(self, source: FeatureMap, norm: Any, silu: bool = False) -> Pointwise:
        """Group normalisation with the statistics of the whole map, then SiLU: in place on a slab."""
        mean, variance = source.group_statistics(norm.num_groups)
        scale = norm.weight.double() / (variance + norm.eps).sqrt().to(norm.weight.device)
        shift = norm.bias.double() - mean.to(scale) * scale
        shape = (-1, *[1] * self.dims)
        factor, offset = scale.to(self.dtype).reshape(shape), shift.to(self.dtype).reshape(shape)

        def apply(slab: Tensor) -> Tensor:
            slab.mul_(factor).add_(offset)
            return F.silu(slab, inplace=True) if silu else slab

        return apply

    def _convolved(
        self,
        source: FeatureMap,
        conv: Any,
        *,
        pads: Pads | None = None,
        before: Pointwise | None = None,
        after: Pointwise | None = None,
        add: FeatureMap | None = None,
        enlarge: str = "",
    ) -> FeatureMap:
        """``after(add + conv(enlarge(before(source))))``, slab by slab; ``add`` itself becomes the result."""
        if isinstance(conv, nn.ConvTranspose2d | nn.ConvTranspose3d):
            return _transposed(self, source, conv, after)
        window = _Window.of(conv, source.size, pads, 2 if enlarge else 1)
        target = self._make(conv.out_channels, window.out_size) if add is None else add
        target.forget_statistics()
        step, reach = window.stride[self.axis], window.reach[self.axis]
        grown = source.plane_bytes * window.scale**self.dims
        each = 3 * step * grown + 4 * target.plane_bytes
        for low, high in self._portions(target.length, each, 3 * reach * grown):
            slab = window.read(source, self.axis, low, high, before, enlarge)
            result = _correlate(conv, slab)
            del slab
            if add is not None:
                result += add.read(low, high)
            target.write(low, after(result) if after is not None else result)
            del result
        return target

    def _attention(self, block: Any) -> None:
        """``x + project(softmax(q k^T / sqrt(d)) v)`` with keys and values of all positions, queries by portions."""
        attention, x = block.attn, self.current
        if attention.causal or attention.rel_positional_embedding is not None:
            raise MedgenError("TiledAutoencoder: causal attention or relative positions are not supported. Use encode.")
        before, positions = self._normalised(x, block.norm), math.prod(x.size)
        kept = 2 * positions * x.channels * self.dtype.itemsize
        score = 3 * positions * attention.num_heads * self.dtype.itemsize  # of one query with all keys
        free = self._room(kept + score + 10 * x.plane_bytes) - kept - 10 * x.plane_bytes
        parts = [self._tokens(attention, before(x.read(i, i + 1)), "kv") for i in range(x.length)]
        keys, values = (torch.cat(part, dim=2) for part in zip(*parts, strict=True))
        del parts
        x.forget_statistics()
        for i in range(x.length):
            slab = x.read(i, i + 1)
            (queries,) = self._tokens(attention, before(slab.clone()), "q")
            portions = queries.split(max(1, min(free, LARGEST_SLAB) // score), dim=2)
            mixed = torch.cat([_attend(part * attention.scale, keys, values) for part in portions], dim=2)
            mixed = attention.out_proj(attention.out_rearrange(mixed))
            x.write(i, slab + mixed[0].T.reshape(slab.shape))

    @staticmethod
    def _tokens(attention: Any, slab: Tensor, which: str) -> list[Tensor]:
        """Queries, or keys and values, ``(1, heads, positions, d)`` of a slab."""
        tokens, width = slab.flatten(1).T[None], attention.inner_dim
        found = []
        for name in which:
            if attention.use_combined_linear:
                rows = slice("qkv".index(name) * width, ("qkv".index(name) + 1) * width)
                bias = attention.qkv.bias[rows] if attention.qkv.bias is not None else None
                made = F.linear(tokens, attention.qkv.weight[rows], bias)
            else:
                made = getattr(attention, f"to_{name}")(tokens)
            found.append(made.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2))
        return found

    def _make(self, channels: int, size: Sequence[int]) -> FeatureMap:
        """A new feature map, in memory if three quarters of the budget hold it and what is there."""
        needed = channels * math.prod(size) * self.dtype.itemsize
        inside = self._used() + needed <= 0.75 * self.budget
        made = FeatureMap.empty(channels, size, self.axis, self.dtype, self.device, inside)
        self.alive.append(made)
        return made

    def _replace(self, made: FeatureMap) -> None:
        if made is not self.current:
            self._close(self.current)
            self.current = made

    def _close(self, feature_map: FeatureMap) -> None:
        self.alive = [other for other in self.alive if other is not feature_map]
        feature_map.close()

    def _used(self) -> int:
        return sum(feature_map.bytes_inside for feature_map in self.alive)

    def _room(self, needed: int) -> int:
        """Free bytes, after feature maps were put out of memory until ``needed`` are free."""
        for feature_map in sorted(self.alive, key=lambda m: -m.bytes_inside):
            if self.budget - self._used() >= needed:
                break
            feature_map.put_out()
        free = self.budget - self._used()
        if free < needed:
            raise MedgenError(
                f"TiledAutoencoder: memory_budget must be at least {needed:,} bytes for the thinnest slab of this "
                f"volume. Got {self.budget:,}. Raise it, or cut the volume."
            )
        return free

    def _portions(self, length: int, each: int, fixed: int) -> list[tuple[int, int]]:
        """Ranges of planes that fit: ``fixed`` bytes and ``each`` per plane."""
        free = min(self._room(each + fixed), max(LARGEST_SLAB, each + fixed))
        count = -(-length // max(1, (free - fixed) // each))
        edges = [length * i // count for i in range(count + 1)]
        return list(itertools.pairwise(edges))


@dataclass(frozen=True)
class _Window:
    """Which inputs a convolution reads: sizes, paddings and strides per axis."""

    out_size: tuple[int, ...]
    pads: Pads
    stride: tuple[int, ...]
    reach: tuple[int, ...]
    scale: int

    @classmethod
    def of(cls, conv: Any, size: Sequence[int], pads: Pads | None, scale: int) -> _Window:
        pads = [(p, p) for p in conv.padding] if pads is None else pads
        reach = tuple(d * (k - 1) for d, k in zip(conv.dilation, conv.kernel_size, strict=True))
        out = [
            (n * scale + sum(pad) - r - 1) // s + 1 for n, pad, r, s in zip(size, pads, reach, conv.stride, strict=True)
        ]
        return cls(tuple(out), pads, tuple(conv.stride), reach, scale)

    def read(
        self, source: FeatureMap, axis: int, low: int, high: int, before: Pointwise | None, enlarge: str
    ) -> Tensor:
        """The padded input of outputs ``low..high`` along ``axis``."""
        first = low * self.stride[axis] - self.pads[axis][0]
        last = (high - 1) * self.stride[axis] + self.reach[axis] + 1 - self.pads[axis][0]
        start, stop = max(first, 0), min(last, source.length * self.scale)
        slab = _enlarged(source, axis, start, stop, enlarge) if enlarge else source.read(start, stop)
        slab = before(slab) if before is not None else slab
        pads = list(self.pads)
        pads[axis] = (start - first, last - stop)
        return F.pad(slab, [p for pair in reversed(pads) for p in pair]) if any(map(any, pads)) else slab


def _enlarged(source: FeatureMap, axis: int, start: int, stop: int, mode: str) -> Tensor:
    """Planes ``start..stop`` of the map at twice its size, by nearest neighbours or linearly."""
    halo = 0 if mode == "nearest" else 1
    low, high = max(start // 2 - halo, 0), min(-(-stop // 2) + halo, source.length)
    small = source.read(low, high)[None]
    if mode == "linear":
        mode = "bilinear" if small.ndim == 4 else "trilinear"
    return F.interpolate(small, scale_factor=2.0, mode=mode)[0].narrow(1 + axis, start - 2 * low, stop - start)


def _attend(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    return (queries @ keys.transpose(-1, -2)).softmax(dim=-1) @ values


def _correlate(conv: Any, slab: Tensor) -> Tensor:
    """``conv`` without padding of its own; torch would take another, several times slower kernel for thin slabs."""
    padding, settings = [0] * (slab.ndim - 1), (conv.stride, conv.dilation, conv.groups)
    if slab.device.type == "cpu" and slab.dtype is torch.float32 and torch.backends.mkldnn.is_available():
        made: Tensor = torch.mkldnn_convolution(slab[None], conv.weight, conv.bias, padding, *settings)
        return made[0]
    function = F.conv2d if isinstance(conv, nn.Conv2d) else F.conv3d
    return function(slab[None], conv.weight, conv.bias, conv.stride, 0, conv.dilation, conv.groups)[0]


def _transposed(run: _Pass, source: FeatureMap, conv: Any, after: Pointwise | None) -> FeatureMap:
    """A transposed convolution: every input is spread once, what slabs share is carried over and added."""
    axis, dims = run.axis, run.dims
    rows = zip(
        source.size, conv.stride, conv.padding, conv.dilation, conv.kernel_size, conv.output_padding, strict=True
    )
    size = [(n - 1) * s - 2 * p + d * (k - 1) + o + 1 for n, s, p, d, k, o in rows]
    target = run._make(conv.out_channels, size)
    stride, padding = conv.stride[axis], list(conv.padding)
    padding[axis] = 0
    extra = [o if a != axis else 0 for a, o in enumerate(conv.output_padding)]
    function = F.conv_transpose2d if dims == 2 else F.conv_transpose3d
    bias = 0 if conv.bias is None else conv.bias.reshape(-1, *[1] * dims)
    carry: Tensor | None = None
    each = 3 * source.plane_bytes + 5 * stride * target.plane_bytes
    overlap = 5 * conv.dilation[axis] * conv.kernel_size[axis] * target.plane_bytes
    for low, high in run._portions(source.length, each, overlap):
        spread = function(
            source.read(low, high)[None], conv.weight, None, conv.stride, padding, extra, conv.groups, conv.dilation
        )[0]
        if carry is not None:
            spread.narrow(1 + axis, 0, carry.shape[1 + axis]).add_(carry)
        start = low * stride - conv.padding[axis]  # of the spread planes in the target
        done = target.length - start if high == source.length else (high - low) * stride
        spread = F.pad(spread, [0, 0] * (dims - 1 - axis) + [0, max(done - spread.shape[1 + axis], 0)])
        carry = spread.narrow(1 + axis, done, spread.shape[1 + axis] - done).clone()
        first, last = max(start, 0), min(start + done, target.length)
        if first < last:
            result = spread.narrow(1 + axis, first - start, last - first) + bias
            target.write(first, after(result) if after is not None else result)
    return target


def _plain(layer: Any) -> Any:
    """The ``nn.Conv`` within MONAI's wrappers."""
    while not isinstance(layer, nn.Conv2d | nn.Conv3d | nn.ConvTranspose2d | nn.ConvTranspose3d):
        if not hasattr(layer, "conv"):
            raise MedgenError(
                f"TiledAutoencoder: layer {type(layer).__name__} is of an unknown kind. Use the network's own methods."
            )
        layer = layer.conv
    if layer.padding_mode != "zeros":
        raise MedgenError("TiledAutoencoder: padding_mode must be 'zeros'. Use the network's own methods.")
    return layer


def _activation(layer: nn.Module) -> Pointwise | None:
    """What follows the convolution in MONAI's ``Convolution``, on ``(C, *spatial)``."""
    parts = [part for name, child in layer.named_children() if name != "conv" for part in child.modules()]
    found = [part for part in parts if not list(part.children())]
    for part in found:
        if not isinstance(part, _ELEMENTWISE):
            raise MedgenError(
                f"TiledAutoencoder: layer {type(part).__name__} after a convolution is of an unknown kind. "
                "Use the network's own methods."
            )
    if not found:
        return None
    return lambda slab: nn.Sequential(*found)(slab[None])[0]
