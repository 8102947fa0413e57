"""First weights of an autoencoder: the principal components of packed voxels.

A network of random weights spends hundreds of steps on what linear algebra says at once. Here an autoencoder without
halvings of its own (all of them are in the packing) begins as the best linear code of each block of voxels, its
residual branches at zero, and training adds what is beyond that: context and curvature.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

FAINT = 0.1  # of the random weights that stay, so that no two filters are equal


@torch.no_grad()
def quiet_branches(network: nn.Module) -> None:
    """Let every residual block begin as the identity: its last convolution at zero."""
    for block in network.modules():
        if type(block).__name__ in {"AEKLResBlock", "VQVAEResidualUnit"}:
            for parameter in block.conv2.parameters():  # type: ignore[union-attr]
                nn.init.zeros_(parameter)


@torch.no_grad()
def principal_start(network: Any, samples: Tensor, deviation: Tensor) -> None:
    """Make a network begin as a projection onto the principal components of its input, and back.

    With the components ``U`` and their deviations ``s`` of the packed voxels in their own unit, a latent of ``Z``
    channels is ``U_Z^T x / s`` (``AutoencoderKL``: every channel as wide as the others) or ``U_Z^T x / s_1``
    (``VQVAE``: distances between codes are errors of voxels).

    Args:
        network: MONAI's ``AutoencoderKL`` or ``VQVAE`` of one level with convolutions of 3 voxels and stride 1.
        samples: standardised inputs ``(N, P)``.
        deviation: of each input channel in voxels' unit, ``(P,)``.
    """
    first, last = network.encoder.blocks[0].conv, network.encoder.blocks[-1].conv
    back = [block.conv for block in network.decoder.blocks if hasattr(block, "conv")]
    width, latent = first.out_channels, last.out_channels
    axes, spread = _components(samples, deviation, width)
    up = axes[:, :latent] / deviation[:, None]
    if hasattr(network, "quant_conv_mu"):
        turns = torch.arange(width) % latent
        copies = nn.functional.one_hot(turns, latent).float()
        _set(first, (axes / spread).T * deviation)
        _set(last, torch.eye(latent, width))
        _set(back[0], copies)
        _set(back[-1], (up * spread[:latent]) @ (copies / copies.sum(0)).T)
        for conv in (network.quant_conv_mu.conv, network.post_quant_conv.conv):
            _set(conv, torch.eye(latent))
    else:  # both signs: an activation cuts off what is negative
        kept = min(width // 2, axes.shape[1])
        down = (axes[:, :kept] / spread[0]).T * deviation
        choose, signs = torch.eye(latent, kept), torch.eye(latent)
        _set(first, torch.cat([down, -down]))
        _set(last, torch.cat([choose, -choose], dim=1))
        _set(back[0], torch.cat([signs, -signs]))
        _set(back[-1], torch.cat([up, -up], dim=1) * spread[0])


def can_start_principal(network: Any, samples: int) -> bool:
    """Whether :func:`principal_start` is for this network: one level, stride 1, room for both signs of a code.

    Args:
        network: to begin.
        samples: how many inputs its components can be taken from.
    """
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Conv3d)]
    turned = [m for m in network.modules() if isinstance(m, nn.ConvTranspose2d | nn.ConvTranspose3d)]
    blocks = [*getattr(network.encoder, "blocks", ()), *getattr(network.decoder, "blocks", ())]
    if not all(set(m.stride) == {1} and set(m.kernel_size) <= {1, 3} for m in (*convolutions, *turned)) or not blocks:
        return False
    first, last = network.encoder.blocks[0].conv, network.encoder.blocks[-1].conv
    residual = any(type(m).__name__ in {"AEKLResBlock", "VQVAEResidualUnit"} for m in network.decoder.blocks)
    room = min(first.out_channels // 2, first.in_channels) >= last.out_channels
    return bool(residual and room and samples > first.in_channels)


def _components(samples: Tensor, deviation: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Principal axes ``(P, k)`` of the inputs in voxels' unit and the deviation along each, the widest first."""
    values = samples.double() * deviation.double()
    values = values - values.mean(0)
    axes, squares, _ = torch.linalg.svd(values.T @ values / len(values))
    spread = squares[:count].sqrt().clamp(min=1e-4)
    return axes[:, :count].float(), spread.float()


def _set(conv: Any, matrix: Tensor) -> None:
    """Centre of a convolution's kernels; what the matrix leaves out stays as it is, but faint, and no bias."""
    conv.weight.mul_(FAINT)
    if conv.bias is not None:
        conv.bias.zero_()
    transposed = isinstance(conv, nn.ConvTranspose2d | nn.ConvTranspose3d)
    weight = conv.weight.transpose(0, 1) if transposed else conv.weight
    centre = tuple(size // 2 for size in conv.kernel_size)
    rows, columns = matrix.shape
    weight[(slice(rows), slice(columns), *centre)] = matrix.to(weight)


def rows_of(samples: Iterable[Tensor]) -> Tensor:
    """Inputs ``(1, P, *spatial)`` as rows ``(N, P)``."""
    return torch.cat([sample.movedim(1, -1).flatten(0, -2).cpu() for sample in samples])
