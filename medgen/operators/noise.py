"""Noise models: what is added to a noiseless measurement, and its mean and variance there.

Levels are in the unit of the measurement. All draws come from generators, one for each row of a batch, so that a row
depends neither on its neighbours nor on any global state.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from medgen.checks import MedgenError, check_positive
from medgen.diffusion.randomness import randn

__all__ = ["NOISES", "GaussianNoise", "Noise", "PoissonNoise", "RicianNoise", "TransmissionNoise", "register_noise"]


class Noise:
    """A distribution of measurements around noiseless ones.

    Attributes:
        name: in ``NOISES``.
        gaussian: whether it is additive, Gaussian, and the same everywhere.
    """

    name: str = ""
    gaussian: bool = False

    def sample(self, y: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        """A noisy measurement.

        Args:
            y: noiseless, ``(B, *shape)``, float or complex where the model has a meaning for it.
            generators: one CPU stream for each row; they are advanced.

        Returns:
            The same shape, type and device.

        Raises:
            MedgenError: another number of generators, or values outside of the model.
        """
        if len(generators) != len(y):
            raise MedgenError(
                f"{type(self).__name__}: generators must be one for each row. Got {len(generators)} for {len(y)} rows. "
                "Use medgen.diffusion.randomness.generators."
            )
        return self._sample(y, generators)

    def mean(self, y: Tensor) -> Tensor:
        """Expected measurement for a noiseless one."""
        return y

    def variance(self, y: Tensor) -> Tensor:
        """Variance of each entry (of the real and of the imaginary part, if complex) for a noiseless measurement."""
        raise NotImplementedError

    def parameters(self) -> dict[str, Any]:
        """The arguments that made it, for provenance."""
        names = list(inspect.signature(type(self).__init__).parameters)[1:]
        return {"name": self.name, **{name: getattr(self, name) for name in names}}

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash(repr(self.parameters()))

    def __repr__(self) -> str:
        values = [f"{key}={value!r}" for key, value in self.parameters().items() if key != "name"]
        return f"{type(self).__name__}({', '.join(values)})"

    def _sample(self, y: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        raise NotImplementedError

    def _check_real(self, y: Tensor, lowest: float | None = None) -> None:
        if y.is_complex():
            raise MedgenError(f"{type(self).__name__}: y must be real. Got {y.dtype}. Use GaussianNoise in k-space.")
        if lowest is not None and bool((y < lowest).any()):
            raise MedgenError(
                f"{type(self).__name__}: y must be at least {lowest:g}. Got {float(y.min()):g}. Shift or clip it first."
            )


@dataclass(frozen=True)
class RegisteredNoise:
    """One entry of ``NOISES``.

    Attributes:
        cls: the class.
        example: one, for the conformance tests.
    """

    cls: type[Noise]
    example: Callable[[], Noise]


NOISES: dict[str, RegisteredNoise] = {}
"""Name -> entry; whatever is registered is tested by ``tests/conformance/test_noise.py``."""

T = TypeVar("T", bound=type[Noise])


def register_noise(name: str, example: Callable[[], Noise]) -> Callable[[T], T]:
    """Enrols a noise model under a name.

    Raises:
        MedgenError: the name is taken.
    """

    def enrol(cls: T) -> T:
        if name in NOISES:
            raise MedgenError(f"register_noise: {name!r} is registered already. Choose another name.")
        cls.name = name
        NOISES[name] = RegisteredNoise(cls, example)
        return cls

    return enrol


@register_noise("gaussian", example=lambda: GaussianNoise(0.3))
class GaussianNoise(Noise):
    """``y + std n``, ``n`` standard normal; in complex data in the real and in the imaginary part.

    Args:
        std: standard deviation, in the unit of the measurement.

    Example:
        >>> GaussianNoise(2.0).variance(torch.zeros(1, 1)).item()
        4.0
    """

    gaussian = True

    def __init__(self, std: float) -> None:
        check_positive(type(self).__name__, "std", std)
        self.std = float(std)

    def variance(self, y: Tensor) -> Tensor:
        """``std^2``."""
        return torch.full_like(y.real, self.std**2)

    def _sample(self, y: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        return y + self.std * _normal(y, generators)


@register_noise("rician", example=lambda: RicianNoise(0.5))
class RicianNoise(Noise):
    """Magnitude of a complex signal with Gaussian noise: ``|y + std (n_1 + i n_2)|``.

    With ``a = y^2 / (2 std^2)``: mean ``std sqrt(pi / 2) L(-a)``, ``L(-a) = e^(-a/2) ((1 + a) I_0(a/2) + a I_1(a/2))``;
    variance ``2 std^2 + y^2 - mean^2``. In air the mean is ``1.25 std``, far above the noise ``|y|``: the sign is lost.

    Args:
        std: of each part, in the unit of the measurement.

    Example:
        >>> noise = RicianNoise(1.0)
        >>> [round(noise.mean(torch.tensor([[value]])).item(), 3) for value in (0.0, 10.0)]
        [1.253, 10.05]

    References:
        Gudbjartsson and Patz, "The Rician distribution of noisy MRI data", Magn. Reson. Med. 34 (1995).
    """

    def __init__(self, std: float) -> None:
        check_positive(type(self).__name__, "std", std)
        self.std = float(std)

    def mean(self, y: Tensor) -> Tensor:
        """See the class."""
        a = y.double() ** 2 / (2 * self.std**2)
        bessel = (1 + a) * torch.special.i0e(a / 2) + a * torch.special.i1e(a / 2)
        return (self.std * math.sqrt(math.pi / 2) * bessel).to(y.dtype)

    def slope(self, y: Tensor) -> Tensor:
        """Of :meth:`mean`: ``sqrt(pi / 8) (y / std) e^(-a/2) (I_0(a/2) + I_1(a/2))``, 0 in air and 1 far above."""
        a = y.double() ** 2 / (2 * self.std**2)
        bessel = torch.special.i0e(a / 2) + torch.special.i1e(a / 2)
        return (math.sqrt(math.pi / 8) * (y.double() / self.std) * bessel).to(y.dtype)

    def variance(self, y: Tensor) -> Tensor:
        """See the class."""
        wide = y.double()
        return (2 * self.std**2 + wide**2 - self.mean(wide) ** 2).to(y.dtype)

    def _sample(self, y: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        self._check_real(y)
        real = y + self.std * _normal(y, generators)
        return torch.hypot(real, self.std * _normal(y, generators))


@register_noise("poisson", example=lambda: PoissonNoise(20.0))
class PoissonNoise(Noise):
    """Counting noise: ``N / scale``, ``N ~ Poisson(scale y)``; mean ``y``, variance ``y / scale``.

    Args:
        scale: counts for a measurement of 1.

    Example:
        >>> PoissonNoise(4.0).sample(torch.full((1, 2), 1.0), [torch.Generator().manual_seed(0)]).tolist()
        [[1.75, 0.75]]

    References:
        Barrett and Myers, "Foundations of image science" (2004), chapter 11.
    """

    def __init__(self, scale: float) -> None:
        check_positive(type(self).__name__, "scale", scale)
        self.scale = float(scale)

    def variance(self, y: Tensor) -> Tensor:
        """``y / scale``."""
        return y / self.scale

    def _sample(self, y: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        self._check_real(y, 0.0)
        return _poisson(y * self.scale, generators) / self.scale


@register_noise("transmission", example=lambda: TransmissionNoise(2e4, electronic=5.0))
class TransmissionNoise(Noise):
    """CT line integrals from counted photons: ``-log(max(N, 1) / I_0)``, ``N ~ Poisson(I_0 e^-y) + electronic n``.

    Mean and variance to first order, for many photons: ``y`` and ``(I_0 e^-y + electronic^2) / (I_0 e^-y)^2``.

    Args:
        photons: ``I_0``, photons of a ray in air.
        electronic: standard deviation of the read-out, in photons; ``n`` is standard normal.

    Example:
        >>> TransmissionNoise(1e4).variance(torch.zeros(1, 1)).item()
        9.999999747378752e-05

    References:
        Whiting et al., "Properties of preprocessed sinogram data in x-ray computed tomography", Med. Phys. 33 (2006);
        Zeng et al., "A simple low-dose x-ray CT simulation from high-dose scan", IEEE TNS 62 (2015).
    """

    def __init__(self, photons: float, electronic: float = 0.0) -> None:
        check_positive(type(self).__name__, "photons", photons)
        if electronic:
            check_positive(type(self).__name__, "electronic", electronic)
        self.photons, self.electronic = float(photons), float(electronic)

    def variance(self, y: Tensor) -> Tensor:
        """See the class."""
        expected = self.photons * torch.exp(-y)
        return (expected + self.electronic**2) / expected**2

    def _sample(self, y: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        self._check_real(y)
        counts = _poisson(self.photons * torch.exp(-y), generators)
        if self.electronic:
            counts = counts + self.electronic * _normal(y, generators)
        return -torch.log(counts.clamp_min(1) / self.photons)


def _normal(y: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """Standard normal, of the shape, type and device of ``y``; both parts, if complex."""
    real = y.real.dtype
    first = randn(y.shape[1:], generators, dtype=real, device=y.device)
    if not y.is_complex():
        return first
    return torch.complex(first, randn(y.shape[1:], generators, dtype=real, device=y.device))


def _poisson(rate: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """Counts, drawn on the CPU row by row."""
    rows = [torch.poisson(row.double(), generator=g) for row, g in zip(rate.cpu(), generators, strict=True)]
    return torch.stack(rows).to(rate)
