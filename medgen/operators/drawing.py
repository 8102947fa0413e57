"""What a random degradation is drawn from, and how it is applied to an image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from medgen.checks import MedgenError
from medgen.operators.base import checked_axis
from medgen.operators.chain import Chain

__all__ = ["Degradation", "Draw", "Limits", "Range"]

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
        counts: the chain works on expected counts: what ringing or noise before it left below 0 is 0 there.
    """

    chain: Chain
    slope: float = 1.0
    intercept: float = 0.0
    noise_only: bool = False
    counts: bool = False

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
        x = x.clamp_min(0) if self.counts else x
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
        dims = len(self.size)
        return self.integer((0, dims - 1)) if axis is None else checked_axis("Draw", axis, dims)


@dataclass(frozen=True)
class Limits:
    """Where both ends of a range must lie.

    Attributes:
        low: the least.
        high: the most.
        above: ``low`` itself is left out.
        whole: whole numbers only.

    Example:
        >>> Limits(high=1, above=True).check("gibbs.keep", (0.5, 1.5))
        Traceback (most recent call last):
        ...
        medgen.checks.MedgenError: gibbs.keep must be above 0 and at most 1. Got (0.5, 1.5). Correct it.
    """

    low: float = 0.0
    high: float = math.inf
    above: bool = False
    whole: bool = False

    def check(self, who: str, value: Any) -> None:
        """Raises unless ``value`` is a number or (low, high) within the limits.

        Raises:
            MedgenError: naming ``who`` and the value.
        """
        ends = pair(value, who)
        inside = all(self.low <= end <= self.high and not (self.above and end == self.low) for end in ends)
        if not inside or (self.whole and not all(end.is_integer() for end in ends)):
            raise MedgenError(f"{who} must be {self._text()}. Got {value!r}. Correct it.")

    def _text(self) -> str:
        bounds = [] if self.low == -math.inf else [f"{'above' if self.above else 'at least'} {self.low:g}"]
        bounds += [] if self.high == math.inf else [f"at most {self.high:g}"]
        return ("whole and " if self.whole else "") + " and ".join(bounds)


def pair(value: Any, who: str = "Draw") -> tuple[float, float]:
    """Low and high of a range."""
    ends = tuple(value) if isinstance(value, list | tuple) else (value, value)
    plain = all(isinstance(end, int | float) and not isinstance(end, bool) and math.isfinite(end) for end in ends)
    if len(ends) != 2 or not plain or ends[0] > ends[1]:
        raise MedgenError(f"{who} must be a number or (low, high) with low <= high. Got {value!r}. Correct it.")
    return float(ends[0]), float(ends[1])
