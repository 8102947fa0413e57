"""What scans a model was made for, in figures that any scan can be measured by."""

from __future__ import annotations

from dataclasses import dataclass

from medgen.checks import MedgenError
from medgen.models.fields import Checked, checked, choice, nested, number, optional, sequence, text

__all__ = ["FIGURES", "SEVERITIES", "Domain", "Limit"]

FIGURES: dict[str, str] = {
    "spacing_r": "mm between voxels along the axis nearest to right",
    "spacing_a": "mm between voxels along the axis nearest to anterior",
    "spacing_s": "mm between voxels along the axis nearest to superior",
    "spacing_least": "mm along the finest axis",
    "spacing_most": "mm along the coarsest axis",
    "extent_r": "mm of the field of view along the axis nearest to right",
    "extent_a": "mm of the field of view along the axis nearest to anterior",
    "extent_s": "mm of the field of view along the axis nearest to superior",
    "negative": "share of voxels below 0",
    "zero": "share of voxels that are 0",
    "background": "share of voxels below a tenth of the 99.9th percentile",
    "middle": "median over 99th percentile of what is no background",
    "spread": "difference of the quartiles over the median of what is no background",
    "tails": "difference of the 2.5th and 97.5th percentiles over that of the quartiles; 2.9 of a Gaussian",
    "noise": "deviation of the noise over the 99.9th percentile",
    "bright_end": "99.9th percentile of the magnitude, in the scan's unit: about 1 of a scan scaled to 0..1",
}
"""What a scan is measured by, see :func:`medgen.restoration.guard.scan_figures`."""

SEVERITIES = ("warn", "refuse")
_code = text(r"[A-Za-z0-9]{1,16}", "a code of letters and digits", 16)
_sentence = text(r"[^\x00-\x1f\x7f]+", "a sentence", 500)


@dataclass(frozen=True)
class Limit(Checked):
    """Scans that one line of the card excludes.

    Args:
        figure: one of ``FIGURES``.
        sentence: the card's line.
        low: least value allowed, None for any.
        high: greatest value allowed, None for any.
        severity: of a scan beyond: ``warn`` or ``refuse``.

    Raises:
        MedgenError: a field fails its check, no end, or ends that cross.
    """

    figure: str = checked(choice(lambda: FIGURES))
    sentence: str = checked(_sentence)
    low: float | None = checked(optional(number(-1e6, 1e6)), default=None)
    high: float | None = checked(optional(number(-1e6, 1e6)), default=None)
    severity: str = checked(choice(lambda: SEVERITIES), default="warn")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.low is None and self.high is None:
            raise MedgenError(f"Limit: low or high of '{self.figure}' must be given. Got neither. Give one.")
        if self.low is not None and self.high is not None and self.low > self.high:
            raise MedgenError(
                f"Limit: low of '{self.figure}' must not exceed high. Got {self.low:g} and {self.high:g}. Swap them."
            )

    def admits(self, value: float) -> bool:
        """Whether a scan of this figure is allowed.

        Example:
            >>> limit = Limit("spacing_most", "Slices thicker than 1.5 mm.", high=1.5)
            >>> limit.admits(1.0), limit.admits(3.0)
            (True, False)
        """
        return (self.low is None or value >= self.low) and (self.high is None or value <= self.high)


@dataclass(frozen=True)
class Domain(Checked):
    """The scans that a model was made for.

    Args:
        modalities: as DICOM names them (``MR``, ``CT``); empty: any.
        modality_sentence: the card's line about others.
        limits: see :class:`Limit`; a figure may have one that warns and a wider one that refuses.

    Raises:
        MedgenError: a field fails its check, or modalities without their sentence.
    """

    modalities: tuple[str, ...] = checked(sequence(_code, 0, 16), default=())
    modality_sentence: str = checked(text(longest=500), default="")
    limits: tuple[Limit, ...] = checked(sequence(nested(lambda: Limit), 0, 64), default=())

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.modalities and not self.modality_sentence:
            raise MedgenError("Domain: modality_sentence must say what is excluded. Got ''. Add the card's line.")
