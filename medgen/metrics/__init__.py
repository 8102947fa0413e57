"""Figures of merit: pure functions of arrays; a smaller distance, or a ratio nearer to 1, is better.

Names are imported on first use, so that ``import medgen.metrics`` stays light.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medgen.metrics.boundary import boundary_sharpness, label_border
    from medgen.metrics.calibration import (
        WidthComparison,
        compare_widths,
        conformal_factor,
        interval_coverage,
        shortest_interval,
    )
    from medgen.metrics.distances import classification_auc, nearest_distances
    from medgen.metrics.frechet import Interval, bootstrap_interval, frechet_distance, standardise
    from medgen.metrics.histogram import label_means, label_wasserstein, paint_labels
    from medgen.metrics.precision_recall import (
        PrecisionRecall,
        PrecisionRecallIntervals,
        improved_precision_recall,
        precision_recall_intervals,
        wilson_interval,
    )
    from medgen.metrics.spectrum import band_powers, radial_bands, soft_window
    from medgen.metrics.texture import named_radiomic_features, radiomic_features, variation

_HOMES = {
    "boundary": ("boundary_sharpness", "label_border"),
    "calibration": ("WidthComparison", "compare_widths", "conformal_factor", "interval_coverage", "shortest_interval"),
    "distances": ("classification_auc", "nearest_distances"),
    "frechet": ("Interval", "bootstrap_interval", "frechet_distance", "standardise"),
    "histogram": ("label_means", "label_wasserstein", "paint_labels"),
    "precision_recall": (
        "PrecisionRecall",
        "PrecisionRecallIntervals",
        "improved_precision_recall",
        "precision_recall_intervals",
        "wilson_interval",
    ),
    "spectrum": ("band_powers", "radial_bands", "soft_window"),
    "texture": ("named_radiomic_features", "radiomic_features", "variation"),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "Interval",
    "PrecisionRecall",
    "PrecisionRecallIntervals",
    "WidthComparison",
    "band_powers",
    "bootstrap_interval",
    "boundary_sharpness",
    "classification_auc",
    "compare_widths",
    "conformal_factor",
    "frechet_distance",
    "improved_precision_recall",
    "interval_coverage",
    "label_border",
    "label_means",
    "label_wasserstein",
    "named_radiomic_features",
    "nearest_distances",
    "paint_labels",
    "precision_recall_intervals",
    "radial_bands",
    "radiomic_features",
    "shortest_interval",
    "soft_window",
    "standardise",
    "variation",
    "wilson_interval",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'medgen.metrics' has no attribute {name!r}")
    return getattr(import_module(f"medgen.metrics.{_HOME_OF[name]}"), name)
