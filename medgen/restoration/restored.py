"""What a restoration gives."""

from __future__ import annotations

from dataclasses import dataclass, field

from monai.data import MetaTensor

__all__ = ["Restored"]


@dataclass(frozen=True)
class Restored:
    """A restored scan and what is known of it.

    Attributes:
        image: ``(1, *spatial)`` float32 in the scan's unit, RAS+ affine in mm: on the scan's grid, or for
            super-resolution and measurements off the grid on the image's own.
        std: expected error of each voxel, or the deviation of samples, in the scan's unit; None if nothing says it.
        lower: lower end of the 90% interval of each voxel; None as ``std``.
        upper: its upper end.
        samples: ``(K, *spatial)``, where some were drawn; ``image`` is their mean then.
        figures: what was measured on the way, in words and numbers: ``noise_level``, ``residual``, ...
        remarks: what the user should know: doubts of the guard, a residual larger than the noise, each one sentence.
        provenance: what made the image: model or method, settings, seed, versions.
    """

    image: MetaTensor
    std: MetaTensor | None = None
    lower: MetaTensor | None = None
    upper: MetaTensor | None = None
    samples: MetaTensor | None = None
    figures: dict[str, float] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()
    provenance: dict[str, object] = field(default_factory=dict)
