"""The table of operators: whatever is registered is tested, its adjoint first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

from medgen.checks import MedgenError
from medgen.operators.base import Operator, inner

__all__ = ["OPERATORS", "RegisteredOperator", "adjoint_error", "register_operator"]


@dataclass(frozen=True)
class RegisteredOperator:
    """One entry of ``OPERATORS``.

    Attributes:
        name: of the operator.
        cls: its class.
        examples: small ones for a number of spatial axes (none where it has no such form), for the conformance tests.
    """

    name: str
    cls: type[Operator]
    examples: Callable[[int], Sequence[Operator]]


OPERATORS: dict[str, RegisteredOperator] = {}
"""Name -> entry; whatever is registered is tested by ``tests/conformance/test_operators.py``."""

T = TypeVar("T", bound=type[Operator])


def register_operator(name: str, example: Callable[[int], Sequence[Operator]]) -> Callable[[T], T]:
    """Enrols an operator class under a name.

    Args:
        name: a lower-case identifier.
        example: number of spatial axes -> small operators of this class, for the conformance tests.

    Raises:
        MedgenError: the name is taken or no identifier.
    """

    def enrol(cls: T) -> T:
        if not name.isidentifier():
            raise MedgenError(f"register_operator: name must be an identifier. Got {name!r}. Use letters and digits.")
        if name in OPERATORS:
            raise MedgenError(f"register_operator: {name!r} is registered already. Choose another name.")
        cls.name = name
        OPERATORS[name] = RegisteredOperator(name, cls, example)
        return cls

    return enrol


def adjoint_error(operator: Operator, channels: int = 1, batch: int = 2, seed: int = 0) -> float:
    """How far an operator is from having its adjoint: ``|<A x, y> - <x, A* y>| / (|A x| |y|)`` at random ``x``, ``y``.

    Args:
        operator: a linear one.
        channels: of the volume.
        batch: rows tried; the largest error counts.
        seed: of the draw.

    Returns:
        About 1e-16 for an exact adjoint: the test runs in double precision.
    """
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, channels, *operator.size, generator=generator, dtype=torch.float64)
    if operator.domain == "complex":
        x = torch.complex(x, torch.randn(x.shape, generator=generator, dtype=torch.float64))
    x = x.to(operator.device or "cpu")
    image = operator.forward(x)
    y = torch.randn(image.shape, generator=generator, dtype=torch.float64).to(image.device)
    if image.is_complex():
        y = torch.complex(y, torch.randn(image.shape, generator=generator, dtype=torch.float64).to(image.device))
    back = operator.adjoint(y)
    gap = inner(image, y) - inner(x, back)
    scale = (inner(image, image).real * inner(y, y).real).sqrt().clamp_min(1e-30)
    return float(((gap.real if operator.domain == "real" else gap.abs()) / scale).abs().max())
