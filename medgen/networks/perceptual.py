"""Perceptual distances that train a decoder: one that needs no trained network, and MONAI's."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from medgen.checks import MedgenError, check_choice, check_count

PERCEPTUAL_NETWORKS = (
    "alex", "vgg", "squeeze", "radimagenet_resnet50", "medicalnet_resnet10_23datasets",
    "medicalnet_resnet50_23datasets", "resnet50",
)  # fmt: skip


class MultiscalePerceptual(nn.Module):
    r"""Distance of local contrast at several scales, and of the amplitude spectrum; no weights, 2D and 3D.

    With ``B`` a binomial blur (1, 4, 6, 4, 1) / 16 along each axis, ``x_0 = x``, ``x_{k+1}`` every second voxel of
    ``B x_k``, the bands ``b_k = x_k - B x_k`` and the amplitudes ``A(x) = (|FFT x|^2 + eps^2)^{1/2}`` (orthonormal):

    .. math::

        d(x, y) = \frac{1}{K} \sum_{k<K} \operatorname{mean} \left| \frac{b_k(x)}{c + B|b_k(x)|}
                  - \frac{b_k(y)}{c + B|b_k(y)|} \right|
                  + w \operatorname{mean} \left| \log A(x) - \log A(y) \right|

    The first part is a normalised Laplacian pyramid (Laparra et al. 2016, doi:10.2352/ISSN.2470-1173.2016.16.HVEI-103)
    with absolute differences: an edge counts by its shape more than by its height, so that faint structures are not
    blurred away. The second part asks for as much fine detail as the target has, wherever it lies.

    Args:
        scales: number ``K`` of bands; fewer where the volume has become smaller than four voxels.
        contrast: ``c``, the contrast below which a band counts by its height, in units of the image.
        spectrum: ``w``.
        epsilon: ``eps``, amplitudes below which count little.

    Example:
        >>> x = torch.zeros(1, 1, 16, 16).index_fill_(2, torch.tensor([8]), 1.0)
        >>> distance = MultiscalePerceptual()
        >>> float(distance(x, x)), bool(distance(0.5 * x, x) < distance(x.roll(1, 2), x))
        (0.0, True)
    """

    def __init__(self, scales: int = 3, contrast: float = 0.05, spectrum: float = 0.05, epsilon: float = 0.02) -> None:
        super().__init__()
        check_count("MultiscalePerceptual", "scales", scales)
        self.scales, self.contrast, self.spectrum, self.epsilon = scales, contrast, spectrum, epsilon

    def forward(self, x: Tensor, y: Tensor, seed: int = 0) -> Tensor:
        """Distance of ``x`` to ``y``, both ``(B, C, *spatial)`` in about 0..1: a scalar; nothing is drawn."""
        x, y = x.float(), y.float()
        bands = list(zip(self._bands(x), self._bands(y), strict=True))
        total = torch.stack([(a - b).abs().mean() for a, b in bands]).mean()
        if self.spectrum:
            total = total + self.spectrum * (self._log_amplitude(x) - self._log_amplitude(y)).abs().mean()
        return total

    def _bands(self, x: Tensor) -> list[Tensor]:
        bands = []
        for _ in range(self.scales):
            low = blurred(x)
            band = x - low
            bands.append(band / (self.contrast + blurred(band.abs())))
            if min(x.shape[2:]) < 4:
                break
            x = low[(slice(None), slice(None), *[slice(None, None, 2)] * (x.ndim - 2))]
        return bands

    def _log_amplitude(self, x: Tensor) -> Tensor:
        spectrum = torch.fft.rfftn(x, dim=tuple(range(2, x.ndim)), norm="ortho")
        return 0.5 * (spectrum.real.square() + spectrum.imag.square() + self.epsilon**2).log()


def blurred(x: Tensor) -> Tensor:
    """``(B, C, *spatial)`` after the filter (1, 4, 6, 4, 1) / 16 along each axis; the border is continued."""
    for axis, _ in itertools.product(range(2, x.ndim), range(2)):
        n = x.shape[axis]
        before = torch.cat([x.narrow(axis, 0, 1), x.narrow(axis, 0, n - 1)], dim=axis)
        after = torch.cat([x.narrow(axis, 1, n - 1), x.narrow(axis, n - 1, 1)], dim=axis)
        x = (before + 2 * x + after) / 4
    return x


class SeededPerceptual(nn.Module):
    """MONAI's ``PerceptualLoss`` with its choice of slices drawn from a seed, not from the global generator.

    Args:
        loss: draws a part of the slices along each axis of a volume.
    """

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, x: Tensor, y: Tensor, seed: int = 0) -> Tensor:
        """Distance of ``x`` to ``y``, both ``(B, C, *spatial)``: a scalar.

        Args:
            x: images.
            y: images.
            seed: of the slices that are looked at.
        """
        devices = [x.device] if x.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(seed)
            distance: Tensor = self.loss(x, y)
        return distance


def monai_perceptual(spatial_dims: int, network_type: str, cache_dir: str | None = None) -> nn.Module:
    """MONAI's ``PerceptualLoss`` over a trained network, whose weights it downloads where they are not there yet.

    In three dimensions a two-dimensional network sees a part of the slices along each axis.

    Args:
        spatial_dims: 2 or 3.
        network_type: one of ``PERCEPTUAL_NETWORKS``.
        cache_dir: where the weights are, or go.

    Raises:
        MedgenError: an unknown network, or weights (or the package that knows them) that cannot be had.
    """
    from monai.losses.perceptual import PerceptualLoss

    check_choice("monai_perceptual", "network_type", network_type, PERCEPTUAL_NETWORKS)
    try:
        loss: nn.Module = PerceptualLoss(
            spatial_dims,
            network_type=network_type,
            is_fake_3d=spatial_dims == 3 and not network_type.startswith("medicalnet"),
            fake_3d_ratio=0.25,
            cache_dir=cache_dir,
            pretrained=True,
        )
    except Exception as error:  # no connection, no package, no space: each library has its own
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise MedgenError(
            f"perceptual network '{network_type}' cannot be had: {reason:.200}. Put its weights into torch's cache, or "
            "use the multiscale term, which needs none."
        ) from error
    return SeededPerceptual(loss).eval().requires_grad_(False)
