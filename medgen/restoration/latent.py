"""A measurement of the decoded image, seen from where the samples live: latents, or packed and standardised voxels.

:class:`LatentMeasurement` takes the place of a :class:`~medgen.restoration.posterior.Measurement` in
:func:`~medgen.restoration.posterior.posterior_denoiser`. Its ``dps`` is posterior sampling through the decoder (Rout et
al. 2023, arXiv:2307.00619, equation 4, without the term for the encoder). Its ``diffpir`` moves the expected latent to
where the decoded image fits (the hard data consistency of Song et al. 2024, arXiv:2307.08123, equation 9), by
Gauss-Newton steps instead of gradient descent; ``pigdm`` takes the derivative of the denoiser along. With a decoder
that is affine both are those of the operator ``A W``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from medgen.checks import check_count, check_positive
from medgen.operators import Operator, least_squares
from medgen.restoration.posterior import ITERATIONS, SMALLEST_WEIGHT, Measurement

__all__ = ["Decode", "LatentMeasurement"]

Decode = Callable[[Tensor], Tensor]
"""``decode(z) -> image``: ``(B, Z, *small)`` to ``(B, C, *spatial)``, with derivatives of both kinds."""

HALVINGS = 4


@dataclass(frozen=True)
class LatentMeasurement:
    """What a measurement of the image says of its latent.

    Args:
        measurement: of the image.
        decode: from samples to images in the unit of the measurement.
        prior_std: deviation of an entry over the prior's samples.
        steps: of Gauss-Newton; one is exact for an affine decoder.
        iterations: at most, of conjugate gradients in each step; each takes the decoder's derivative forwards and back.
    """

    measurement: Measurement
    decode: Decode
    prior_std: float = 1.0
    steps: int = 1
    iterations: int = ITERATIONS

    def __post_init__(self) -> None:
        check_positive("LatentMeasurement", "prior_std", self.prior_std)
        check_count("LatentMeasurement", "steps", self.steps)
        check_count("LatentMeasurement", "iterations", self.iterations)

    def residual(self, z: Tensor) -> Tensor:
        """``y - A decode(z)``."""
        return self.measurement.residual(self.decode(z))

    def fitted(self, z: Tensor, variance: float) -> Tensor:
        """The ``w`` with the least ``|y - A decode(w)|^2 / noise_std^2 + |w - z|^2 / r^2``, near ``z``.

        Args:
            z: samples ``(B, Z, *small)``.
            variance: ``r^2``.
        """
        weight = max(self.measurement.noise_std**2 / variance, SMALLEST_WEIGHT)
        found = z
        for _ in range(self.steps):
            tangent = _Tangent(self, found)
            missing = self.measurement.residual(tangent.image)
            step = least_squares(tangent, missing, start=z - found, weight=weight, iterations=self.iterations)
            found = self._downhill(found, step, z, weight, missing)
        return found

    def _downhill(self, found: Tensor, step: Tensor, z: Tensor, weight: float, missing: Tensor) -> Tensor:
        """A step, halved in each row until the sum of squares falls; not taken if it never does."""
        before = _square(missing) + weight * _square(found - z)
        share = torch.ones_like(before)
        for _ in range(HALVINGS):
            moved = found + share.reshape(-1, *[1] * (z.ndim - 1)) * step
            better = _square(self.residual(moved)) + weight * _square(moved - z) <= before
            if bool(better.all()):
                return moved
            share = torch.where(better, share, share / 2)
        return torch.where(better.reshape(-1, *[1] * (z.ndim - 1)), moved, found)


class _Tangent(Operator):
    """``v -> A J v`` with ``J`` the derivative of the decoder at one batch of samples.

    Args:
        known: measurement and decoder.
        at: samples ``(B, Z, *small)``.
    """

    domain: Literal["any", "real", "complex"] = "real"

    def __init__(self, known: LatentMeasurement, at: Tensor) -> None:
        super().__init__(at.shape[2:])
        self._known, self._at = known, at
        pulled: Any = torch.func.vjp(known.decode, at)
        self.image, self._pull = pulled
        self._channels = at.shape[1], self.image.shape[1]

    def measurement_shape(self, channels: int) -> tuple[int, ...]:
        """The operator's, of the image."""
        return self._known.measurement.operator.measurement_shape(self._channels[1])

    def measured_channels(self, channels: int) -> int:
        """Of the samples."""
        return self._channels[0]

    def _forward(self, x: Tensor) -> Tensor:
        pushed: Any = torch.func.jvp(self._known.decode, (self._at,), (x,))
        return self._known.measurement.operator.forward(pushed[1])

    def _adjoint(self, y: Tensor) -> Tensor:
        back: Tensor = self._pull(self._known.measurement.operator.adjoint(y))[0]
        return back


def _square(x: Tensor) -> Tensor:
    """Sum of squares of each row."""
    return x.abs().square().flatten(1).sum(1)
