"""Gibbs ringing: the acquired k-space ends."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from medgen.checks import check_range
from medgen.operators.base import Operator, checked_size, per_axis
from medgen.operators.registry import register_operator
from medgen.operators.separable import Separable

__all__ = ["Gibbs"]


def _examples(dims: int) -> list[Operator]:
    size = (8, 7, 6)[:dims]
    return [Gibbs(size, keep=0.6), Gibbs(size, keep=(1.0, 0.4, 0.7)[:dims])]


@register_operator("gibbs", example=_examples)
class Gibbs(Separable):
    """Truncation of k-space along each axis, filled with zeros: ``y = F* W F x``, ``W(k) = 1`` for ``|k| <= K``.

    Along an axis of ``n`` voxels this is the Dirichlet kernel ``P_ij = (1/n) sum_{|k| <= K} cos(2 pi k (i - j) / n)``,
    a real projection (``P = P* = P P = P+``), so that a real volume stays real.

    Args:
        size: spatial shape of the volume.
        keep: share of the frequencies that is kept, in 0..1, one for all axes or one for each;
            ``K = floor(keep n / 2)``; 1 leaves an axis as it is.

    Raises:
        MedgenError: a share outside of 0..1.

    Example:
        >>> import torch
        >>> x = torch.zeros(1, 1, 1, 16)
        >>> x[..., 4:12] = 1
        >>> y = Gibbs((1, 16), keep=(1.0, 0.5)).forward(x)
        >>> bool(y.max() > 1.05), bool(y.min() < -0.05)
        (True, True)

    References:
        Kellner et al., "Gibbs-ringing artifact removal based on local subvoxel-shifts", Magn. Reson. Med. 76 (2016).
    """

    def __init__(self, size: Sequence[int], keep: float | Sequence[float]) -> None:
        size = checked_size(self.caller, size)
        self.keep = per_axis(self.caller, "keep", keep, len(size))
        for share in self.keep:
            check_range(self.caller, "keep", share, 0, 1)
        matrices = {axis: _dirichlet(n, s) for axis, (n, s) in enumerate(zip(size, self.keep, strict=True)) if s < 1}
        super().__init__(size, matrices)


def _dirichlet(n: int, keep: float) -> Tensor:
    """``(n, n)``."""
    lag = torch.arange(n, dtype=torch.float64)
    k = torch.arange(1, min(math.floor(keep * n / 2), (n - 1) // 2) + 1, dtype=torch.float64)
    first = (1 + 2 * torch.cos(2 * math.pi / n * lag[:, None] * k).sum(1)) / n
    index = torch.arange(n)
    return first[(index[:, None] - index).remainder(n)]
