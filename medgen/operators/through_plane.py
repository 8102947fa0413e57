"""Through-plane down-sampling: thick slices with a profile, from thin ones."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from medgen.checks import MedgenError, check_choice, check_count, check_positive
from medgen.operators.base import Operator, checked_axis, checked_size
from medgen.operators.registry import register_operator
from medgen.operators.separable import Separable
from medgen.operators.slice_profiles import SLICE_PROFILES, slice_weights
from medgen.operators.svd import along

__all__ = ["ThroughPlane"]


def _examples(dims: int) -> list[Operator]:
    size = (6, 5, 13)[3 - dims :]
    made: list[Operator] = [ThroughPlane(size, slice_spacing_mm=2.5, profile=name) for name in SLICE_PROFILES]
    gap = ThroughPlane(size, slice_spacing_mm=4.0, thickness_mm=3.0, spacing_mm=1.2, axis=0, offset_mm=0.4)
    overlap = ThroughPlane(size, slice_spacing_mm=2.0, thickness_mm=3.0, slices=6, profile="slr")
    return [*made, gap, overlap]


@register_operator("through_plane", example=_examples)
class ThroughPlane(Separable):
    """Slices of a thickness at a distance: ``y_j = sum_i w_ij x_i``, ``w_ij = c_j int_voxel_i p((z - z_j) / t) dz``.

    ``p`` is the slice profile (see :mod:`medgen.operators.slice_profiles`), ``t`` the thickness, the volume constant
    within a voxel, and ``c_j`` makes the weights of a slice 1 in sum, so that a slice cut by the border of the volume
    is averaged over what is there. The slices lie around the middle of the volume. Thickness below the slice spacing
    is a gap, above it an overlap; neither need be a multiple of the voxel size.

    Args:
        size: spatial shape of the volume.
        slice_spacing_mm: from slice centre to slice centre.
        thickness_mm: full width at half maximum of the profile; the slice spacing by default.
        spacing_mm: voxel size of the volume along the axis.
        axis: spatial axis of the slices, the last by default.
        profile: ``box``, ``gaussian``, ``sinc`` (Hamming-windowed) or ``slr``.
        slices: their number; by default as many as have their centre's whole distance inside the volume.
        offset_mm: shift of all slices along the axis.

    Raises:
        MedgenError: a value that is not above 0, an unknown profile, or a slice without a voxel.

    Example:
        >>> import torch
        >>> thick = ThroughPlane((1, 8), slice_spacing_mm=2.5, thickness_mm=2.0)
        >>> thick.matrices[1][0].tolist()
        [0.25, 0.5, 0.25, 0.0, 0.0, 0.0, 0.0, 0.0]
        >>> thick.forward(torch.arange(8.0).reshape(1, 1, 1, 8)).tolist(), thick.positions_mm
        ([[[[1.0, 3.5, 6.0]]]], (1.0, 3.5, 6.0))

    References:
        Zhao et al., "SMORE: a self-supervised anti-aliasing and super-resolution algorithm for MRI", IEEE TMI 40
        (2021); Remedios et al., "ESPRESO", MLMI 2021 (slice profiles).
    """

    def __init__(
        self,
        size: Sequence[int],
        slice_spacing_mm: float,
        thickness_mm: float | None = None,
        spacing_mm: float = 1.0,
        axis: int = -1,
        profile: str = "box",
        slices: int | None = None,
        offset_mm: float = 0.0,
    ) -> None:
        self.size = checked_size(self.caller, size)
        self.axis = checked_axis(self.caller, axis, len(self.size))
        self.slice_spacing_mm, self.spacing_mm = slice_spacing_mm, spacing_mm
        self.thickness_mm = slice_spacing_mm if thickness_mm is None else thickness_mm
        self.profile, self.offset_mm = profile, float(offset_mm)
        for name in ("slice_spacing_mm", "thickness_mm", "spacing_mm"):
            check_positive(self.caller, name, getattr(self, name))
        check_choice(self.caller, "profile", profile, SLICE_PROFILES)
        n = self.size[self.axis]
        self.slices = max(1, math.floor(n * spacing_mm / slice_spacing_mm + 1e-6)) if slices is None else slices
        check_count(self.caller, "slices", self.slices)
        centres = torch.tensor(self.positions_mm, dtype=torch.float64) / spacing_mm
        weights = slice_weights(profile, n, centres, self.thickness_mm / spacing_mm)
        if not bool((weights.abs().sum(1) > 0).all()):
            raise MedgenError(
                f"{self.caller}: every slice must meet a voxel. Got slices at {self.positions_mm} mm over {n} voxels "
                f"of {spacing_mm} mm. Give fewer slices or a smaller offset_mm."
            )
        super().__init__(self.size, {self.axis: weights / weights.sum(1, keepdim=True)})

    @property
    def positions_mm(self) -> tuple[float, ...]:
        """Centres of the slices, from the centre of the first voxel."""
        middle = (self.size[self.axis] - 1) / 2 * self.spacing_mm + self.offset_mm
        return tuple(middle + (j - (self.slices - 1) / 2) * self.slice_spacing_mm for j in range(self.slices))

    def to_image(self, y: Tensor) -> Tensor:
        """Linear interpolation between the slices, the outermost ones going on to the border.

        Args:
            y: ``(B, C, *spatial)``.

        Returns:
            ``(B, C, *size)``.
        """
        self._check_measurement(y)
        n = self.size[self.axis]
        place = (torch.arange(n, dtype=torch.float64) * self.spacing_mm - self.positions_mm[0]) / self.slice_spacing_mm
        distance = place.clamp(0, self.slices - 1)[:, None] - torch.arange(self.slices)
        return along((1 - distance.abs()).clamp_min(0).to(y.device), y, self.axis)
