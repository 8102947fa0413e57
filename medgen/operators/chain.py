"""Several operators one after the other, and the noise of the measurement."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from medgen.checks import MedgenError
from medgen.operators.base import Domain, Operator
from medgen.operators.bias import draw_bias_field
from medgen.operators.blur import Blur
from medgen.operators.kspace import CartesianKSpace, cartesian_mask
from medgen.operators.noise import GaussianNoise, Noise
from medgen.operators.phase import Magnitude, Phase
from medgen.operators.registry import register_operator
from medgen.operators.separable import Separable, product
from medgen.operators.svd import SVD
from medgen.operators.through_plane import ThroughPlane

__all__ = ["Chain"]


def _examples(dims: int) -> list[Operator]:
    size = (6, 7, 9)[:dims]
    generator = torch.Generator().manual_seed(0)
    thick = Chain([Blur(size, 1.5), ThroughPlane(size, 2.0)], GaussianNoise(0.1))
    biased = Chain([draw_bias_field(size, generator), ThroughPlane(size, 2.0)])
    phase = Phase(torch.rand(size, generator=generator))
    mri = Chain([phase, CartesianKSpace(cartesian_mask(size, 2.0, generator))], GaussianNoise(0.1))
    return [thick, biased, mri, Chain([phase, Magnitude(size)])]


@register_operator("chain", example=_examples)
class Chain(Operator):
    """``y = A_n ... A_2 A_1 x + noise``: the first operator is applied first, the noise last.

    Operators that are one matrix per axis are multiplied into one, so that a chain of them keeps its pseudo-inverse and
    its singular values.

    Args:
        operators: each of the size that the one before it measures.
        noise: of the measurement, added by :meth:`sample` only; None for none.

    Raises:
        MedgenError: operators that do not fit each other.

    Example:
        >>> chain = Chain([Blur((1, 8), 2.0), ThroughPlane((1, 8), 2.0)], GaussianNoise(0.1))
        >>> x = torch.ones(1, 1, 1, 8)
        >>> chain.forward(x).mul(100).round().tolist()
        [[[[100.0, 100.0, 100.0, 100.0]]]]
        >>> chain.sample(x, [torch.Generator().manual_seed(0)]).shape, chain.closed
        (torch.Size([1, 1, 1, 4]), True)
    """

    def __init__(self, operators: Sequence[Operator], noise: Noise | None = None) -> None:
        self.operators = tuple(operators)
        if not self.operators:
            raise MedgenError("Chain: operators must be at least one. Got none. Add one.")
        super().__init__(self.operators[0].size)
        self.noise = noise
        for before, after in zip(self.operators, self.operators[1:], strict=False):
            if before.measurement_shape(1)[1:] != after.size:
                raise MedgenError(
                    f"Chain: {after.caller} must be of size {before.measurement_shape(1)[1:]}, which {before.caller} "
                    f"measures. Got {after.size}. Make it for this size."
                )
        domains = [operator.domain for operator in self.operators]
        complex_since = next((i for i, domain in enumerate(domains) if domain != "any"), len(domains))
        if "real" in domains[complex_since + 1 :]:
            raise MedgenError(f"Chain: a real operator cannot follow a complex one. Got {domains}. Put it first.")

    @property
    def domain(self) -> Domain:  # type: ignore[override]
        """That of the first operator that is bound to one."""
        return next((operator.domain for operator in self.operators if operator.domain != "any"), "any")

    @property
    def linear(self) -> bool:
        """Whether all are."""
        return all(operator.linear for operator in self.operators)

    @property
    def closed(self) -> bool:
        """With one operator that is, or with matrices per axis only."""
        return self._merged() is not None and cast(Operator, self._merged()).closed

    @property
    def decomposed(self) -> bool:
        """With one operator that is, or with matrices per axis only."""
        return self._merged() is not None and cast(Operator, self._merged()).decomposed

    @property
    def observed(self) -> Tensor | None:
        """As the last operator's."""
        return self.operators[-1].observed

    def measurement_shape(self, channels: int) -> tuple[int, ...]:
        """Of the last operator."""
        shape: tuple[int, ...] = (channels, *self.size)
        for operator in self.operators:
            shape = operator.measurement_shape(shape[0])
        return shape

    def measured_channels(self, channels: int) -> int:
        """Back through all operators."""
        for operator in reversed(self.operators):
            channels = operator.measured_channels(channels)
        return channels

    def sample(self, x: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        """A noisy measurement; what is not observed stays 0.

        Args:
            x: ``(B, C, *size)``.
            generators: one CPU stream for each row.

        Returns:
            ``(B, *measurement_shape(C))``.
        """
        y = self.forward(x)
        if self.noise is None:
            return y
        noisy = self.noise.sample(y, generators)
        return noisy if self.observed is None else noisy * self.observed

    def to_image(self, y: Tensor) -> Tensor:
        """Back through each operator's own ``to_image``, the last one first.

        Args:
            y: ``(B, *measurement_shape(C))``.

        Returns:
            ``(B, C, *size)``.
        """
        for operator in reversed(self.operators):
            y = operator.to_image(y)
        return y

    def parameters(self) -> dict[str, Any]:
        """Those of the operators and of the noise."""
        noise = None if self.noise is None else self.noise.parameters()
        return {"name": self.name, "operators": [part.parameters() for part in self.operators], "noise": noise}

    def _forward(self, x: Tensor) -> Tensor:
        for operator in self.operators:
            x = operator.forward(x)
        return x

    def _adjoint(self, y: Tensor) -> Tensor:
        for operator in reversed(self.operators):
            y = operator.adjoint(y)
        return y

    def _pseudo_inverse(self, y: Tensor) -> Tensor:
        return cast(Operator, self._merged()).pseudo_inverse(y)

    def _svd(self) -> SVD:
        return cast(Operator, self._merged()).svd()

    def _merged(self) -> Operator | None:
        """One operator that is the chain, if there is one."""
        if len(self.operators) == 1:
            return self.operators[0]
        parts = [operator for operator in self.operators if isinstance(operator, Separable)]
        return product(parts) if len(parts) == len(self.operators) else None
