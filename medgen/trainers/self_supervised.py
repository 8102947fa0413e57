"""Denoising without clean scans: estimates of the error that need only the noisy scan and its noise level.

``y`` is a noisy scan, ``g(x)`` its expectation for the clean one ``x``, and the network's ``f`` is compared with ``y``
through ``g``: with Rician noise ``f`` is then the signal itself, not the larger mean of its magnitudes. Noise must be
independent from voxel to voxel: not interpolated, not filtered, not from several coils with correlated noise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from medgen.operators.noise import RicianNoise

__all__ = ["NOISE", "Measured", "blind_spots", "masked_error", "probe", "sure_error"]

NOISE = ("gaussian", "rician")
CELL = {2: 3, 3: 2}  # voxels along its edge, with one blind spot in each
REACH = 2
DRAWS = 8
PROBE_STEP = 0.1  # of the noise level: far above the rounding of float32, far below what changes the network's slope
SIGNALS = torch.linspace(0, 10, 1001, dtype=torch.float64)  # over the noise level; above, Rician noise is Gaussian


@dataclass(frozen=True)
class Measured:
    """Noisy patches and what is known of their noise; voxels of exactly 0 were cut out or added, and have none.

    Attributes:
        noisy: ``y``, ``(B, 1, *spatial)`` in the model's unit.
        level: of the noise, ``(B,)``, same unit.
        noise: ``gaussian`` or ``rician``.
    """

    noisy: Tensor
    level: Tensor
    noise: str

    @property
    def row_level(self) -> Tensor:
        """``level`` as it multiplies images, ``(B, 1, ...)``."""
        return self.level.to(self.noisy).reshape(-1, *[1] * (self.noisy.ndim - 1))

    def expected(self, signal: Tensor) -> Tensor:
        """``g``, the mean of measurements of a signal; see :class:`~medgen.operators.noise.RicianNoise`.

        Args:
            signal: ``(B, 1, *spatial)``.
        """
        if self.noise == "gaussian":
            return signal
        level = self.row_level
        return torch.where(self.noisy == 0, signal, RicianNoise(1.0).mean(signal / level) * level)

    def variance(self) -> Tensor:
        """``v``, of each voxel's noise, as ``noisy``; of Rician noise that at the signal whose mean the 3 x 3 (x 3)
        mean is."""
        square = self.row_level.square()
        if self.noise == "rician":
            dims = self.noisy.ndim - 2
            pool = F.avg_pool2d if dims == 2 else F.avg_pool3d
            mean = pool(F.pad(self.noisy, [1] * (2 * dims), mode="replicate"), 3, stride=1)
            square = square * _rician_variance(mean / self.row_level)
        return square * (self.noisy != 0)


def _rician_variance(mean: Tensor) -> Tensor:
    """Variance of Rician noise of level 1 where its mean is given."""
    rician = RicianNoise(1.0)
    means, variances = (part.to(mean) for part in (rician.mean(SIGNALS), rician.variance(SIGNALS)))
    high = torch.searchsorted(means, mean.contiguous()).clamp(1, len(means) - 1)
    share = ((mean - means[high - 1]) / (means[high] - means[high - 1])).clamp(0, 1)
    return torch.lerp(variances[high - 1], variances[high], share)


def blind_spots(image: Tensor, stream: torch.Generator) -> tuple[Tensor, Tensor]:
    """A patch in which one voxel of every cell has the value of a random neighbour; its own is nowhere to be seen.

    Args:
        image: ``(1, *spatial)``.
        stream: of the draws, which do not depend on the values.

    Returns:
        The patch, and 1 where it was replaced, both ``(1, *spatial)`` float32.

    References:
        Krull et al. 2019, "Noise2Void" (arXiv:1811.10980), section 3.4, stratified sampling. Theirs are rarer, and a
        voxel may be its own neighbour.
    """
    size, dims = image.shape[1:], image.ndim - 1
    corners = torch.cartesian_prod(*(torch.arange(0, n, CELL[dims]) for n in size))
    spots = corners + torch.randint(CELL[dims], corners.shape, generator=stream)
    spots = spots[(spots < torch.tensor(size)).all(1)]
    hidden = torch.zeros(size, dtype=torch.bool)
    hidden[tuple(spots.T)] = True
    sources = spots.clone()
    for _ in range(DRAWS):
        open_ = hidden[tuple(sources.T)]
        moves = torch.randint(-REACH, REACH + 1, (int(open_.sum()), dims), generator=stream)
        sources[open_] = _within(spots[open_] + moves, size)
    found = ~hidden[tuple(sources.T)]
    shown, blind = image.float().clone(), torch.zeros_like(image, dtype=torch.float32)
    shown[(0, *spots[found].T)] = shown[(0, *sources[found].T)]
    blind[(0, *spots[found].T)] = 1
    return shown, blind


def masked_error(measured: Measured, signal: Tensor, blind: Tensor) -> Tensor:
    """Mean square error of what was said of voxels that were not shown: ``mean((g(f) - y)^2 - v)``.

    The noise of a voxel that the network has not seen is independent of its answer, so that
    ``E (g(f) - y)^2 = E (g(f) - g(x))^2 + v``.

    Args:
        measured: without blind spots.
        signal: ``f`` of the patches with blind spots, ``(B, 1, *spatial)``.
        blind: 1 = a blind spot, same shape.

    Returns:
        ``(B,)``, the square of the model's unit; below 0 by chance.

    References:
        Krull et al. 2019 (arXiv:1811.10980), equation 6; Batson and Royer 2019, "Noise2Self" (arXiv:1901.11365),
        proposition 1.
    """
    terms = blind * ((measured.expected(signal) - measured.noisy).square() - measured.variance())
    return terms.flatten(1).sum(1) / blind.flatten(1).sum(1).clamp(min=1)


def sure_error(measured: Measured, denoise: Callable[[Tensor], Tensor], direction: Tensor) -> Tensor:
    """Stein's unbiased estimate of the mean square error, its divergence along one random direction ``b``.

    With ``h(y) = g(denoise(y))``: ``mean((h(y) - y)^2 - v + 2 v b (h(y + e b) - h(y)) / e)`` estimates
    ``mean((h(y) - g(x))^2)`` for normal noise of variance ``v``. Rician noise is nearly normal where the signal is
    three times the noise or more; below, it is skewed and the estimate is off.

    Args:
        measured: the patches.
        denoise: ``f``, ``(B, 1, *spatial)`` to the same.
        direction: ``b`` of :func:`probe`, as the patches.

    Returns:
        ``(B,)``, the square of the model's unit; below 0 by chance.

    References:
        Ramani et al. 2008, "Monte-Carlo SURE", IEEE TIP 17, equations 8 and 14; Stein 1981, Ann. Statist. 9.
    """
    noisy, variance = measured.noisy, measured.variance()
    step = PROBE_STEP * measured.row_level
    direction = direction * (noisy != 0)
    made = measured.expected(denoise(noisy))
    slope = direction * (measured.expected(denoise(noisy + step * direction)) - made) / step
    return ((made - noisy).square() - variance + 2 * variance * slope).flatten(1).mean(1)


def probe(size: Sequence[int], stream: torch.Generator) -> Tensor:
    """A direction of random signs, ``size``: its estimates of a divergence scatter least (Hutchinson 1990)."""
    return torch.randint(2, tuple(size), generator=stream).float() * 2 - 1


def _within(places: Tensor, size: Sequence[int]) -> Tensor:
    """Voxels of a grid, those beyond its edges moved onto them."""
    return torch.minimum(places.clamp(min=0), torch.tensor(size) - 1)
