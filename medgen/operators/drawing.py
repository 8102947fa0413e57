"""What a random degradation is drawn from, and how it is applied to an image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from medgen.checks import MedgenError
from medgen.operators.chain import Chain

__all__ = ["Degradation", "Draw", "Range", "pair"]

Range = float | tuple[float, float]
"""One number, or (low, high)."""


@dataclass(frozen=True)
class Degradation:
    """A drawn degradation of images.

    Attributes:
        chain: operators and noise.
        slope: the chain works on ``slope * image + intercept`` (attenuation of a CT in HU).
        intercept: see ``slope``.
        noise_only: the image keeps its resolution; what the noise changes in the reconstruction is added.
    """

    chain: Chain
    slope: float = 1.0
    intercept: float = 0.0
    noise_only: bool = False

    def to(self, device: torch.device | str) -> Degradation:
        """The same degradation with its tensors on another device."""
        return replace(self, chain=self.chain.to(device))

    def __call__(self, image: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        """The degraded image.

        Args:
            image: real, ``(B, C, *size)``.
            generators: of the noise, one CPU stream for each row.

        Returns:
            Real, the same shape.
        """
        x = self.slope * image + self.intercept
        noisy = self.chain.sample(x, generators)
        if self.noise_only:
            return image + self.chain.to_image(noisy - self.chain.forward(x)) / self.slope
        made = self.chain.to_image(noisy)
        return ((made.abs() if made.is_complex() else made) - self.intercept) / self.slope


@dataclass(frozen=True)
class Draw:
    """What a degradation is drawn for, and from.

    Attributes:
        size: spatial shape of the image.
        spacing: voxel size in mm.
        scale: its bright end (99.9th percentile of the magnitude), in its unit; noise levels are relative to it.
        generator: CPU stream.
    """

    size: tuple[int, ...]
    spacing: tuple[float, ...]
    scale: float
    generator: torch.Generator

    def uniform(self, value: Range) -> float:
        """A number from a range."""
        low, high = pair(value)
        return low + (high - low) * float(torch.rand((), generator=self.generator, dtype=torch.float64))

    def integer(self, value: Range) -> int:
        """A whole number from a range, both ends included."""
        low, high = (round(end) for end in pair(value))
        return int(torch.randint(low, high + 1, (), generator=self.generator))

    def choice(self, values: Sequence[Any]) -> Any:
        """One of several."""
        return values[self.integer((0, len(values) - 1))]

    def axis(self, axis: int | None) -> int:
        """The axis given, or any."""
        return self.integer((0, len(self.size) - 1)) if axis is None else axis % len(self.size)


def pair(value: Any, who: str = "Draw") -> tuple[float, float]:
    """Low and high of a range."""
    ends = tuple(value) if isinstance(value, list | tuple) else (value, value)
    plain = all(isinstance(end, int | float) and math.isfinite(end) for end in ends)
    if len(ends) != 2 or not plain or ends[0] > ends[1]:
        raise MedgenError(f"{who} must be a number or (low, high) with low <= high. Got {value!r}. Correct it.")
    return float(ends[0]), float(ends[1])
