"""What every operator is: a degradation ``A`` bound to one volume size, with its adjoint.

Inner products are ``<a, b> = sum(conj(a) b)``; where a real volume has a complex measurement, their real part.
"""

from __future__ import annotations

import copy
import hashlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NoReturn, Self

import torch
from torch import Tensor

from medgen.checks import MedgenError, check_choice, check_count, check_positive
from medgen.operators.svd import SVD

__all__ = ["Operator", "inner", "linear_map", "plain"]

Domain = Literal["any", "real", "complex"]
_LARGEST_LIST = 256
_DTYPES = (torch.float32, torch.float64, torch.complex64, torch.complex128)


class Operator:
    """A degradation ``y = A(x)`` of volumes of one size; nothing in it changes after it was made.

    A subclass takes its arguments in ``__init__``, keeps each under the argument's own name, and writes ``_forward``,
    ``_adjoint`` and, where there is one, ``_pseudo_inverse`` and ``_svd``. Decorated with
    :func:`~medgen.operators.registry.register_operator` it is found by the conformance tests.

    Attributes:
        name: in ``OPERATORS``.
        domain: ``any``: a real matrix, that takes real and complex volumes; ``real``: real volumes only, the
            measurement is complex and the adjoint real again; ``complex``: measurement and adjoint are complex (a
            real volume counts as a complex one).
        size: the volume's spatial shape.
    """

    name: str = ""
    domain: Domain = "any"
    size: tuple[int, ...]

    def __init__(self, size: Sequence[int]) -> None:
        self.size = checked_size(self.caller, size)

    @property
    def caller(self) -> str:
        """How errors call this object."""
        return type(self).__name__

    @property
    def linear(self) -> bool:
        """Whether the operator is linear, so that it has an adjoint."""
        return True

    @property
    def closed(self) -> bool:
        """Whether :meth:`pseudo_inverse` exists in closed form."""
        return type(self)._pseudo_inverse is not Operator._pseudo_inverse

    @property
    def decomposed(self) -> bool:
        """Whether :meth:`svd` exists."""
        return type(self)._svd is not Operator._svd

    @property
    def device(self) -> torch.device | None:
        """Where the operator's tensors are; None if it has none and works anywhere."""
        for value in vars(self).values():
            parts = value.values() if isinstance(value, dict) else value if isinstance(value, tuple) else (value,)
            for part in parts:
                found = part.device if isinstance(part, Tensor | Operator) else None
                if found is not None:
                    return found
        return None

    @property
    def observed(self) -> Tensor | None:
        """What is measured: True or False, broadcast over a measurement; None if all of it is."""
        return None

    def measurement_shape(self, channels: int) -> tuple[int, ...]:
        """Shape of one measurement, without the batch axis.

        Args:
            channels: of the volume.
        """
        return (channels, *self.size)

    def measured_channels(self, channels: int) -> int:
        """Channels of the volume that a measurement of so many channels comes from."""
        return channels

    def forward(self, x: Tensor) -> Tensor:
        """``A x``, without noise.

        Args:
            x: ``(B, C, *size)``, float32 or complex64 (or their doubles), on the operator's device.

        Returns:
            ``(B, *measurement_shape(C))``, in the precision of ``x``.

        Raises:
            MedgenError: another shape, type or device.
        """
        self._check(x, "x", ("C", *self.size), self.domain != "real")
        return self._forward(x)

    def adjoint(self, y: Tensor) -> Tensor:
        """``A* y``, with ``<A x, y> = <x, A* y>`` for all ``x`` and ``y``.

        Args:
            y: ``(B, *measurement_shape(C))``.

        Returns:
            ``(B, C, *size)``.

        Raises:
            MedgenError: another shape, type or device, or an operator that is not linear.
        """
        if not self.linear:
            self._missing("is not linear and has no adjoint", "Use its forward and automatic differentiation.")
        self._check_measurement(y)
        return self._adjoint(y)

    def pseudo_inverse(self, y: Tensor) -> Tensor:
        """The Moore-Penrose inverse ``A+ y``: of all ``x`` that fit ``y`` best the one of least norm.

        Args:
            y: ``(B, *measurement_shape(C))``.

        Returns:
            ``(B, C, *size)``.

        Raises:
            MedgenError: there is no closed form, or ``y`` does not fit.
        """
        if not self.closed:
            self._missing("has no pseudo-inverse in closed form", "Use medgen.operators.least_squares(operator, y).")
        self._check_measurement(y)
        return self._pseudo_inverse(y)

    def svd(self) -> SVD:
        """The factors of ``A = U S V*`` as products, for samplers that work in them.

        Raises:
            MedgenError: none that is cheap.
        """
        if not self.decomposed:
            self._missing("has no cheap singular value decomposition", "Choose a sampler that needs none.")
        return self._svd()

    def to_image(self, y: Tensor) -> Tensor:
        """A plain image of the volume's size for a measurement: what a reader without a prior would look at.

        The pseudo-inverse where it is closed, else ten steps of least squares; but a measurement that lies on the
        volume's grid (blurred, with a bias, with motion) is left as it is, and some operators have a custom of their
        own (interpolation between slices, filtered back-projection).

        Args:
            y: ``(B, *measurement_shape(C))``.

        Returns:
            ``(B, C, *size)``.
        """
        from medgen.operators.solve import least_squares

        if self.closed:
            return self.pseudo_inverse(y)
        return least_squares(self, y) if self.linear else y

    def to(self, device: torch.device | str) -> Self:
        """The same operator with its tensors on another device."""
        moved = copy.copy(self)
        for key, value in vars(self).items():
            if isinstance(value, Tensor | Operator):
                setattr(moved, key, value.to(device))
            elif isinstance(value, dict):
                setattr(moved, key, {k: v.to(device) if isinstance(v, Tensor) else v for k, v in value.items()})
            elif isinstance(value, tuple):
                setattr(moved, key, tuple(v.to(device) if isinstance(v, Operator) else v for v in value))
        return moved

    def parameters(self) -> dict[str, Any]:
        """The arguments that made it, as plain values for JSON; a tensor is its shape and hash."""
        names = list(inspect.signature(type(self).__init__).parameters)[1:]
        return {"name": self.name, **{name: plain(getattr(self, name)) for name in names}}

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.parameters() == other.parameters()

    def __hash__(self) -> int:
        return hash(repr(self.parameters()))

    def __repr__(self) -> str:
        values = {key: value for key, value in self.parameters().items() if key != "name"}
        return f"{type(self).__name__}({', '.join(f'{key}={value!r}' for key, value in values.items())})"

    def _forward(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def _adjoint(self, y: Tensor) -> Tensor:
        raise NotImplementedError

    def _pseudo_inverse(self, y: Tensor) -> Tensor:
        raise NotImplementedError

    def _svd(self) -> SVD:
        raise NotImplementedError

    def _missing(self, what: str, remedy: str) -> NoReturn:
        raise MedgenError(f"{self.caller}: this operator {what}. {remedy}")

    def _check_measurement(self, y: Tensor) -> None:
        shape = self.measurement_shape(self.measured_channels(y.shape[1] if y.ndim > 1 else 0))
        self._check(y, "y", ("C" if shape[0] else "coils x C", *shape[1:]), True)

    def _check(self, x: Tensor, argument: str, shape: tuple[Any, ...], complex_too: bool) -> None:
        wanted = f"(B, {', '.join(map(str, shape))})"
        if x.ndim != len(shape) + 1 or tuple(x.shape[2:]) != shape[1:] or 0 in x.shape[:2] or shape[0] == "coils x C":
            raise MedgenError(
                f"{self.caller}: {argument} must have shape {wanted}. Got {tuple(x.shape)}. "
                "Make the operator for this size."
            )
        if x.dtype not in _DTYPES or (x.is_complex() and not complex_too):
            kind = "float32 or complex64" if complex_too else "float32"
            raise MedgenError(f"{self.caller}: {argument} must be {kind}. Got {x.dtype}. Convert it first.")
        device = self.device
        if device is not None and x.device != device:
            raise MedgenError(
                f"{self.caller}: {argument} must be on the operator's device {device}. Got {x.device}. "
                "Use operator.to(x.device)."
            )


def plain(value: Any) -> Any:
    """A parameter as JSON has it; of large and of complex tensors their shape and the SHA-256 of their bytes.

    Example:
        >>> plain((1, 2.5)), plain(torch.zeros(2)), plain(torch.zeros(99, 9))["shape"]
        ([1, 2.5], [0.0, 0.0], [99, 9])
    """
    if isinstance(value, Tensor) and value.numel() <= _LARGEST_LIST and not value.is_complex():
        return value.tolist()
    if isinstance(value, Tensor):
        digest = hashlib.sha256(value.detach().cpu().contiguous().numpy().tobytes()).hexdigest()
        return {"shape": list(value.shape), "dtype": str(value.dtype).removeprefix("torch."), "sha256": digest}
    if isinstance(value, Mapping):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    return value.parameters() if hasattr(value, "parameters") else value


def inner(a: Tensor, b: Tensor) -> Tensor:
    """``sum(conj(a) b)`` of each row, shape ``(B,)``."""
    return (a.conj() * b).flatten(1).sum(1)


def checked_size(caller: str, size: Sequence[int]) -> tuple[int, ...]:
    """Two or three axes of at least one voxel."""
    if len(tuple(size)) not in (2, 3):
        raise MedgenError(f"{caller}: size must have 2 or 3 axes. Got {tuple(size)}. Give the spatial shape only.")
    for n in size:
        check_count(caller, "size", n)
    return tuple(int(n) for n in size)


def per_axis(caller: str, argument: str, value: float | Sequence[float], dims: int, zero: bool = False) -> Any:
    """A number for each axis, from one for all or one for each; above 0, or with ``zero`` at least 0."""
    values = tuple(value) if isinstance(value, Sequence) else (value,) * dims
    if len(values) != dims:
        raise MedgenError(f"{caller}: {argument} must have {dims} entries. Got {values}. Give one for each axis.")
    for part in values:
        if not (zero and part == 0):
            check_positive(caller, argument, part)
    return tuple(float(part) for part in values)


def checked_axis(caller: str, axis: int, dims: int) -> int:
    """A spatial axis, counted from 0; negative ones count from the end."""
    check_choice(caller, "axis", axis, range(-dims, dims))
    return int(axis) % dims


class LinearMap(torch.autograd.Function):
    """A linear function whose gradient is its adjoint, so that nothing inside it is kept for the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, there: Callable[[Tensor], Tensor], back: Callable[[Tensor], Tensor]) -> Tensor:
        """``there(x)``; ``back`` is its adjoint."""
        ctx.there, ctx.back = there, back
        return there(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        """The adjoint of the gradient, which can be differentiated again."""
        return LinearMap.apply(grads[0], ctx.back, ctx.there), None, None


def linear_map(x: Tensor, there: Callable[[Tensor], Tensor], back: Callable[[Tensor], Tensor]) -> Tensor:
    """:class:`LinearMap`, typed."""
    result: Tensor = LinearMap.apply(x, there, back)
    return result
