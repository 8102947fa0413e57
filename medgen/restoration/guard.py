"""Whether a scan is one that a model was made for: its modality, geometry and intensities against the card."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from monai.data import MetaTensor
from nibabel.orientations import io_orientation
from torch import Tensor

from medgen.checks import MedgenError
from medgen.geometry import spacing_of
from medgen.intensity import bright_end
from medgen.io.findings import Refused
from medgen.models.domain import FIGURES, Domain, Limit
from medgen.operators.noise_level import estimate_noise

__all__ = ["Doubt", "guard", "refuse_doubtful", "scan_figures"]

DARK = 0.1
MOST_VOXELS = 2_000_000
CODES = {"spacing": "SPACING", "extent": "FIELD_OF_VIEW", "bright": "UNIT"}
MR = ("T1W", "T2W", "FLAIR", "PDW", "T2STARW", "SWI", "BOLD", "DWI", "ASL", "MRI", "INPLANET2", "UNIT1")


@dataclass(frozen=True)
class Doubt:
    """Why a scan is none that a model was made for.

    Attributes:
        code: ``MODALITY``, ``SPACING``, ``FIELD_OF_VIEW``, ``UNIT`` or ``INTENSITIES``; scripts may rely on it.
        sentence: the card's line that excludes it.
        figure: what was measured, one of ``FIGURES``, or ``modality``.
        value: that of the scan.
        allowed: in words: ``0.7 to 1.5``, ``MR``.
        severity: ``warn`` or ``refuse``.
    """

    code: str
    sentence: str
    figure: str
    value: float | str
    allowed: str
    severity: str

    def text(self) -> str:
        """One line for a log."""
        value = self.value if isinstance(self.value, str) else f"{self.value:.3g}"
        return f"{self.code}: {self.sentence} ({self.figure} {value}, allowed {self.allowed})"


def guard(
    volume: MetaTensor,
    domain: Domain,
    *,
    modality: str | None = None,
) -> list[Doubt]:
    """What speaks against a scan; nothing where all figures lie in the model's domain.

    Args:
        volume: ``(1, X, Y, Z)`` in any unit, RAS+ affine in mm, finite.
        domain: of the model.
        modality: as the user knows it: ``MR``, ``CT``, or a BIDS suffix such as ``T1w``.

    Returns:
        Refusals first. A figure beyond two limits is told once, by the severer one.

    Raises:
        MedgenError: a volume of another shape, or that is not finite (``NON_FINITE``).
    """
    doubts = _modality(modality or "", domain)
    wanted = {limit.figure for limit in domain.limits}
    figures = scan_figures(volume, wanted)
    severest: dict[str, Doubt] = {}
    for limit in domain.limits:
        value = figures[limit.figure]
        if not limit.admits(value) and severest.get(limit.figure, _NONE).severity != "refuse":
            severest[limit.figure] = _doubt(limit, value)
    return sorted([*doubts, *severest.values()], key=lambda doubt: doubt.severity != "refuse")


def refuse_doubtful(who: str, doubts: Sequence[Doubt]) -> tuple[str, ...]:
    """Raises on the first refusal.

    Args:
        who: is asked, as the user knows it.
        doubts: of :func:`guard`.

    Returns:
        The text of each doubt that only warns.

    Raises:
        Refused: ``EXCLUDED``, with the doubt's code, the card's line, and what was measured.
    """
    for doubt in doubts:
        if doubt.severity == "refuse":
            raise Refused(
                "EXCLUDED",
                f"{who}: {doubt.text()}. Choose another model, or go on at your own risk (guard='warn', --guard warn).",
            )
    return tuple(doubt.text() for doubt in doubts)


def scan_figures(volume: MetaTensor, wanted: Iterable[str] = tuple(FIGURES)) -> dict[str, float]:
    """A scan in figures, see :data:`~medgen.models.domain.FIGURES`.

    Args:
        volume: ``(1, X, Y, Z)``, RAS+ affine in mm, finite.
        wanted: which.

    Raises:
        MedgenError: a volume of another shape or that is not finite.

    Example:
        >>> scan = MetaTensor(torch.ones(1, 4, 4, 8), affine=torch.diag(torch.tensor([1.0, 1.0, 2.0, 1.0])))
        >>> scan_figures(scan, ["spacing_most", "extent_s", "zero"])
        {'spacing_most': 2.0, 'extent_s': 16.0, 'zero': 0.0}
    """
    if volume.ndim != 4 or volume.shape[0] != 1:
        raise MedgenError(f"guard: volume must have shape (1, X, Y, Z). Got {tuple(volume.shape)}. Give one 3D volume.")
    values = volume.as_tensor().detach().cpu().float()
    if not bool(torch.isfinite(values).all()):
        raise Refused("NON_FINITE", "guard: volume holds NaN or infinity. Replace them first.")
    wanted = list(wanted)
    found = _geometry(np.asarray(volume.affine.cpu(), dtype=np.float64), tuple(volume.shape[1:]))
    if any(name not in found for name in wanted):
        found |= _intensities(values)
    if "noise" in wanted:
        found["noise"] = estimate_noise(values) / bright_end(values)
    return {name: found[name] for name in wanted}


_NONE = Doubt("", "", "", "", "", "")


def _doubt(limit: Limit, value: float) -> Doubt:
    low, high = (None if end is None else f"{end:.3g}" for end in (limit.low, limit.high))
    allowed = f"{low} to {high}" if low and high else f"at least {low}" if low else f"at most {high}"
    code = CODES.get(limit.figure.split("_")[0], "INTENSITIES")
    return Doubt(code, limit.sentence, limit.figure, value, allowed, limit.severity)


def _modality(told: str, domain: Domain) -> list[Doubt]:
    """Of a modality that is not told there is nothing to say."""
    if not told or not domain.modalities:
        return []
    name = "MR" if told.upper() in MR else told.upper()
    if name in {"MR" if known.upper() in MR else known.upper() for known in domain.modalities}:
        return []
    shown = told if re.fullmatch(r"[A-Za-z0-9]{1,16}", told) else "another one"
    allowed = ", ".join(domain.modalities)
    return [Doubt("MODALITY", domain.modality_sentence, "modality", shown, allowed, "refuse")]


def _geometry(affine: np.ndarray, shape: tuple[int, ...]) -> dict[str, float]:
    steps, axes = spacing_of(affine), io_orientation(affine)[:, 0].astype(int)
    found = {}
    for axis, world in enumerate(axes):
        letter = "ras"[world]
        found[f"spacing_{letter}"] = float(steps[axis])
        found[f"extent_{letter}"] = float(steps[axis]) * shape[axis]
    return found | {"spacing_least": float(steps.min()), "spacing_most": float(steps.max())}


def _intensities(values: Tensor) -> dict[str, float]:
    """Of a scan that is constant or empty, the figures of what is no background are 0."""
    flat = values.flatten()
    flat = flat[:: max(1, len(flat) // MOST_VOXELS)]
    top = bright_end(flat)
    shown = flat[flat.abs() > DARK * top].double()
    shares = torch.tensor([0.025, 0.25, 0.5, 0.75, 0.975, 0.99], dtype=torch.float64)
    rows = torch.quantile(shown, shares) if len(shown) else torch.zeros(6, dtype=torch.float64)
    low, first, middle, third, high, bright = rows.tolist()
    return {
        "negative": float((flat < 0).float().mean()),
        "zero": float((flat == 0).float().mean()),
        "background": 1 - len(shown) / max(1, len(flat)),
        "bright_end": top,
        "middle": middle / bright if bright else 0.0,
        "spread": (third - first) / middle if middle else 0.0,
        "tails": (high - low) / (third - first) if third > first else 0.0,
    }
