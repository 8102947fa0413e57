"""Total variation: what fits a measurement and has few edges, near a given image or anywhere."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from medgen.checks import MedgenError, check_count, check_positive
from medgen.operators.base import Operator
from medgen.operators.solve import square_norm
from medgen.restoration.posterior import Measurement

__all__ = ["VariationFit", "total_variation"]

RATIO = 10.0  # of the steps: images of about 1 converge in a hundred iterations, and in a thousand with 1
MARGIN = 1.1  # the norm is found from below


class VariationFit:
    """The least ``|A x - y|^2 / 2 + weight |grad x| + pull |x - near|^2 / 2``, each call from where the last ended.

    Chambolle and Pock 2011, J. Math. Imaging Vis. 40, algorithm 1; the measurement has a dual variable too, so that
    ``A`` need not be inverted. ``|grad x|`` is the sum over voxels of the gradient's length (forward differences, per
    voxel), the same for all spacings.

    Args:
        operator: ``A``, linear.
        y: ``(B, ...)``, as the operator gives it.
        start: ``(B, C, *size)``; ``A* y`` by default.
        ratio: of the primal to the dual steps.

    Raises:
        MedgenError: an operator of complex volumes.
    """

    def __init__(
        self, operator: Operator, y: Tensor, start: Tensor | None = None, ratio: float = RATIO
    ) -> None:  # fmt: skip
        if operator.domain == "complex":
            raise MedgenError(
                f"VariationFit: {operator.caller} takes complex volumes, and those fitted are real. Put Phase in "
                "front: Chain([Phase(...), operator])."
            )
        self.operator, self.y = operator, y
        self.x = self.ahead = _real(operator.adjoint(y)) if start is None else start
        self.edges = torch.zeros(len(operator.size), *self.x.shape, device=self.x.device)
        self.misfit = torch.zeros_like(y)
        bound = (4 * len(operator.size) + MARGIN * square_norm(operator, self.x)) ** -0.5
        self.primal, self.dual = bound * ratio, bound / ratio

    def __call__(self, weight: float, iterations: int, near: Tensor | None = None, pull: float = 0.0) -> Tensor:
        """Go on.

        Args:
            weight: of the variation, above 0.
            iterations: products with ``A`` and ``A*``.
            near: ``(B, C, *size)``; without it ``pull`` has no effect.
            pull: at least 0.

        Returns:
            ``(B, C, *size)``.
        """
        anchor, pull = (self.x, 0.0) if near is None else (near, pull)
        for _ in range(iterations):
            edges = self.edges + self.dual * gradient(self.ahead)
            self.edges = edges / (edges.square().sum(0).sqrt() / weight).clamp(min=1)
            self.misfit = (self.misfit + self.dual * (self.operator.forward(self.ahead) - self.y)) / (1 + self.dual)
            slope = _real(self.operator.adjoint(self.misfit)) - divergence(self.edges)
            new = (self.x + self.primal * (pull * anchor - slope)) / (1 + self.primal * pull)
            self.ahead, self.x = 2 * new - self.x, new
        return self.x

    def turn(self, operator: Operator) -> None:
        """Go on with an operator that differs little."""
        self.operator = operator


def total_variation(measurement: Measurement, weight: float, iterations: int = 150) -> Tensor:
    """``argmin |A x - y|^2 / 2 + weight |grad x|`` of real images.

    Args:
        measurement: see :class:`~medgen.restoration.posterior.Measurement`; its noise is not looked at.
        weight: above 0.
        iterations: of :class:`VariationFit`.

    Returns:
        ``(B, C, *size)``.

    Raises:
        MedgenError: numbers that are not above 0.

    References:
        Rudin, Osher and Fatemi, Physica D 60 (1992).
    """
    check_positive("total_variation", "weight", weight)
    check_count("total_variation", "iterations", iterations)
    return VariationFit(measurement.operator, measurement.y)(weight, iterations)


def gradient(x: Tensor) -> Tensor:
    """Forward differences ``(axes, *x.shape)`` of ``(B, C, *size)``, 0 at the far ends."""
    axes = range(2, x.ndim)
    return torch.stack([F.pad(x.diff(dim=axis), [0, 0] * (x.ndim - 1 - axis) + [0, 1]) for axis in axes])


def divergence(p: Tensor) -> Tensor:
    """Minus the adjoint of :func:`gradient`."""
    total = torch.zeros_like(p[0])
    for part, axis in zip(p, range(2, p.ndim - 1), strict=True):
        inside, after = part.narrow(axis, 0, part.shape[axis] - 1), [0, 0] * (part.ndim - 1 - axis)
        total = total + F.pad(inside, [*after, 0, 1]) - F.pad(inside, [*after, 1, 0])
    return total


def _real(x: Tensor) -> Tensor:
    return x.real if x.is_complex() else x
