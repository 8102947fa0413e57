"""Under-sampled Cartesian k-space, of one coil or several."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from medgen.checks import MedgenError, check_choice, check_range
from medgen.operators.base import Operator, checked_axis, checked_size
from medgen.operators.coils import combine_coils, expand_coils, simulate_sensitivities
from medgen.operators.fourier import fft, ifft
from medgen.operators.registry import register_operator
from medgen.operators.svd import SVD, FourierSVD

__all__ = ["CartesianKSpace", "cartesian_mask"]

_KINDS = ("variable_density", "equispaced")


def _examples(dims: int) -> list[Operator]:
    size = (8, 6, 5)[:dims]
    mask = cartesian_mask(size, 2.0, torch.Generator().manual_seed(0), axes=(0,), center_fraction=0.2)
    coils = simulate_sensitivities(size, 3)
    return [CartesianKSpace(mask), CartesianKSpace(mask, coils), CartesianKSpace(torch.ones_like(mask), coils)]


@register_operator("cartesian_kspace", example=_examples)
class CartesianKSpace(Operator):
    """Masked k-space: ``y_c = M F S_c x``, ``F`` the centred unitary Fourier transform over all spatial axes.

    One coil: ``S = 1``, and ``A+ = A* = F* M``. Several: ``A* y = sum_c conj(S_c) F* M y_c``; with every entry measured
    ``A+ = (sum_c |S_c|^2)^-1 A*``.

    Args:
        mask: True where k-space is measured, ``(*spatial)``, frequency 0 in the middle (see :func:`cartesian_mask`).
        sensitivities: complex ``(coils, *spatial)`` without a unit, or None for one coil.

    Raises:
        MedgenError: shapes that do not fit.

    Example:
        >>> import torch
        >>> mask = cartesian_mask((8, 8), 2.0, torch.Generator().manual_seed(0), axes=(1,))
        >>> operator = CartesianKSpace(mask)
        >>> x = torch.randn(1, 1, 8, 8, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
        >>> y = operator.forward(x)
        >>> y.shape, bool(torch.allclose(operator.forward(operator.pseudo_inverse(y)), y, atol=1e-6))
        (torch.Size([1, 1, 8, 8]), True)

    References:
        Pruessmann et al., "SENSE", Magn. Reson. Med. 42 (1999); Lustig et al., "Sparse MRI", Magn. Reson. Med. 58
        (2007).
    """

    domain = "complex"

    def __init__(self, mask: Tensor, sensitivities: Tensor | None = None) -> None:
        super().__init__(mask.shape)
        if sensitivities is not None and tuple(sensitivities.shape[1:]) != self.size:
            raise MedgenError(
                f"{self.caller}: sensitivities must have shape (coils, {', '.join(map(str, self.size))}). "
                f"Got {tuple(sensitivities.shape)}. Make them for the mask's size."
            )
        self.mask = mask.detach().bool()
        self.sensitivities = None if sensitivities is None else sensitivities.detach()

    @property
    def coils(self) -> int:
        """Number of coils."""
        return 1 if self.sensitivities is None else len(self.sensitivities)

    @property
    def observed(self) -> Tensor:
        """The mask."""
        return self.mask

    @property
    def closed(self) -> bool:
        """With one coil, or with every entry of k-space measured by coils that see every voxel."""
        if self.sensitivities is None:
            return True
        return bool(self.mask.all()) and bool((self.sensitivities.abs().square().sum(0) > 0).all())

    @property
    def decomposed(self) -> bool:
        """With one coil."""
        return self.sensitivities is None

    def measurement_shape(self, channels: int) -> tuple[int, ...]:
        """``(C * coils, *size)``, the coils of a channel side by side."""
        return (channels * self.coils, *self.size)

    def measured_channels(self, channels: int) -> int:
        """Channels of the volume for ``C * coils``; 0 if that is no multiple of the coils."""
        return 0 if channels % self.coils else channels // self.coils

    def _forward(self, x: Tensor) -> Tensor:
        return fft(expand_coils(x, self.sensitivities)) * self.mask

    def _adjoint(self, y: Tensor) -> Tensor:
        return combine_coils(ifft(y * self.mask), self.sensitivities)

    def _pseudo_inverse(self, y: Tensor) -> Tensor:
        back = self._adjoint(y)
        if self.sensitivities is None:
            return back
        return back / self.sensitivities.abs().square().sum(0).to(back.real.dtype)

    def _svd(self) -> SVD:
        return FourierSVD(self.mask.double())


def cartesian_mask(
    size: Sequence[int],
    acceleration: float,
    generator: torch.Generator | None = None,
    *,
    axes: Sequence[int] = (0,),
    center_fraction: float = 0.08,
    kind: str = "variable_density",
    power: float = 3.0,
) -> Tensor:
    """Which k-space entries are measured: whole lines for one phase-encoding axis, points of a plane for two.

    ``variable_density`` draws without replacement, with probabilities that fall as ``(1 - r)^power`` with the distance
    ``r`` in 0..1 from the centre; ``equispaced`` takes lines at equal distances, from a drawn start. The middle is
    measured whole. The number of lines is the size over the acceleration, or the middle if that is more.

    Args:
        size: spatial shape.
        acceleration: at least 1.
        generator: CPU stream; None is one of seed 0.
        axes: the phase-encoding axes, one or two.
        center_fraction: share of each axis that is measured whole, in 0..1.
        kind: ``variable_density`` or ``equispaced`` (one axis).
        power: of the density.

    Returns:
        bool ``(*size)``, frequency 0 at ``n // 2``.

    Raises:
        MedgenError: a value outside of its range.

    Example:
        >>> mask = cartesian_mask((64, 4), 4.0, torch.Generator().manual_seed(0), center_fraction=0.08)
        >>> int(mask[:, 0].sum()), mask[30:35, 0].tolist()
        (16, [True, True, True, True, True])

    References:
        Lustig et al. (2007) (variable density); Zbontar et al., "fastMRI" (2018), arXiv:1811.08839 (the whole middle,
        equispaced lines).
    """
    size = checked_size("cartesian_mask", size)
    check_choice("cartesian_mask", "kind", kind, _KINDS)
    check_range("cartesian_mask", "acceleration", acceleration, 1, 1e6)
    check_range("cartesian_mask", "center_fraction", center_fraction, 0, 1)
    axes = tuple(checked_axis("cartesian_mask", axis, len(size)) for axis in axes)
    if len(set(axes)) != len(axes) or len(axes) not in (1, 2) or (kind == "equispaced" and len(axes) != 1):
        raise MedgenError(
            f"cartesian_mask: axes must be 1 or 2 different ones (equispaced: 1). Got {axes}. Correct it."
        )
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    shape = tuple(size[axis] for axis in axes)
    centre = torch.ones(shape, dtype=torch.bool)
    distance = torch.zeros(shape, dtype=torch.float64)
    for place, n in enumerate(shape):
        offset = torch.arange(n, dtype=torch.float64) - n // 2
        column = [-1 if a == place else 1 for a in range(len(shape))]
        whole = max(round(center_fraction * n), 1)
        centre &= ((offset >= -(whole // 2)) & (offset < whole - whole // 2)).reshape(column)
        distance = torch.maximum(distance, (offset.abs() / max(n / 2, 1)).reshape(column))
    wanted = round(centre.numel() / acceleration)
    if kind == "equispaced":
        chosen = centre | _equispaced(shape[0], wanted, int(centre.sum()), generator)
    else:
        chosen = _drawn(centre, (1 - distance).clamp_min(0) ** power + 1e-6, wanted, generator)
    order = sorted(range(len(axes)), key=lambda place: axes[place])
    full = chosen.permute(order).reshape([n if axis in axes else 1 for axis, n in enumerate(size)])
    return full.expand(size).contiguous()


def _drawn(centre: Tensor, density: Tensor, wanted: int, generator: torch.Generator) -> Tensor:
    """The centre and as many others as are wanted, drawn without replacement."""
    chosen = centre.clone()
    more = min(wanted - int(centre.sum()), int((~centre).sum()))
    if more > 0:
        picked = torch.multinomial((density * ~centre).flatten(), more, generator=generator)
        chosen.view(-1)[picked] = True
    return chosen


def _equispaced(n: int, wanted: int, inside: int, generator: torch.Generator) -> Tensor:
    """Lines at a distance such that with the whole middle there are about as many as wanted."""
    step = max(1.0, (n - inside) / max(wanted - inside, 1))
    start = float(torch.rand((), generator=generator, dtype=torch.float64)) * step
    lines = torch.zeros(n, dtype=torch.bool)
    lines[torch.arange(start, n, step, dtype=torch.float64).long().clamp_max(n - 1)] = True
    return lines
