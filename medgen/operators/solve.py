"""Least squares by conjugate gradients, for operators without a closed pseudo-inverse; the norm of an operator."""

from __future__ import annotations

import torch
from torch import Tensor

from medgen.checks import MedgenError, check_count
from medgen.operators.base import Operator, inner

__all__ = ["least_squares", "square_norm"]

POWER_ITERATIONS = 10


def least_squares(
    operator: Operator,
    y: Tensor,
    *,
    start: Tensor | None = None,
    weight: float | Tensor = 0.0,
    iterations: int = 10,
    tolerance: float = 1e-6,
) -> Tensor:
    """``argmin_x |A x - y|^2 + weight |x - start|^2`` by conjugate gradients on the normal equations.

    From ``start = 0`` and with ``weight = 0`` the iterates tend to the pseudo-inverse; few iterations regularise. With
    a weight it is the proximal step of DiffPIR and of data consistency to a noise level.

    Args:
        operator: a linear one.
        y: ``(B, *measurement_shape(C))``.
        start: ``(B, C, *size)``; zeros by default.
        weight: at least 0, a number or ``(B,)``.
        iterations: products with ``A`` and ``A*``.
        tolerance: a row stops when its residual is this much of the first one.

    Returns:
        ``(B, C, *size)``; a row does not depend on the others of the batch.

    Raises:
        MedgenError: a negative weight, or an operator that is not linear.

    Example:
        >>> from medgen.operators import Blur
        >>> blur = Blur((8, 8), fwhm_mm=1.5)
        >>> x = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        >>> found = least_squares(blur, blur.forward(x), iterations=50)
        >>> bool((found - x).norm() < 0.02 * x.norm())
        True

    References:
        Hestenes and Stiefel, J. Res. Natl. Bur. Stand. 49 (1952); CGNR in Saad, "Iterative methods" (2003), 8.3.
    """
    check_count("least_squares", "iterations", iterations)
    if bool((torch.as_tensor(weight) < 0).any()):
        raise MedgenError(f"least_squares: weight must be at least 0. Got {weight}. Correct it.")

    def column(values: Tensor) -> Tensor:
        return values.reshape(-1, *[1] * (1 + len(operator.size)))

    def normal(x: Tensor) -> Tensor:
        return operator.adjoint(operator.forward(x)) + weights * x

    back = operator.adjoint(y)
    weights = column(torch.as_tensor(weight, dtype=back.real.dtype, device=back.device).expand(len(y)))
    x = torch.zeros_like(back) if start is None else start.to(back.dtype)
    residual = back if start is None else back + weights * x - normal(x)
    first = power = inner(residual, residual).real
    direction = residual
    for _ in range(iterations):
        applied = normal(direction)
        curvature = inner(direction, applied).real
        going = (power > tolerance**2 * first) & (curvature > 0)
        if not bool(going.any()):
            break
        step = torch.where(going, power / torch.where(going, curvature, 1.0), 0.0)
        x = x + column(step) * direction
        residual = residual - column(step) * applied
        new = inner(residual, residual).real
        ratio = torch.where(going, new / torch.where(going, power, 1.0), 0.0)
        direction, power = residual + column(ratio) * direction, torch.where(going, new, power)
    return x


def square_norm(operator: Operator, like: Tensor) -> float:
    """Largest eigenvalue of ``A* A``, by power iteration; a little too small.

    Args:
        operator: a linear one.
        like: ``(B, C, *size)``: an image of the type, place and channels that the operator is applied to.

    Returns:
        0 for an operator that measures nothing.
    """
    real = torch.randn(like[:1].shape, generator=torch.Generator().manual_seed(0))
    x, size = real.to(like), 0.0
    for _ in range(POWER_ITERATIONS):
        x = operator.adjoint(operator.forward(x / inner(x, x).real.sqrt()))
        x = x if like.is_complex() else x.real
        size = float(inner(x, x).real.sqrt())
        if size == 0:
            break
    return size
