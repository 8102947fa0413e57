"""The figures of a set of images against the references of the same labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import wasserstein_distance

from medgen.anatomy.labels import TISSUES
from medgen.metrics import band_powers, boundary_sharpness, label_wasserstein, paint_labels, radial_bands, soft_window
from tests.bench.cases import BRAIN_TISSUES, OTHER_TISSUES, Case

Array = NDArray[np.float64]
BRAIN_WASSERSTEIN, OTHER_WASSERSTEIN = 0.25, 0.50
SPECTRUM = (0.7, 1.4)
SHARPNESS = (0.7, 1.3)
_POOLED_VOXELS = 20_000


@dataclass(frozen=True)
class Figures:
    """What the tables show.

    Attributes:
        wasserstein: per tissue the mean distance over the subjects, over that of the image of label means.
        pooled: the same of the histograms of all subjects together, where subjects may make up for each other.
        spectrum: per band the mean power over the subjects, over that of the references.
        sharpness: mean grey / white sharpness over the subjects, over that of the references.
        order: share of subjects with CSF < grey < white in mean.
    """

    wasserstein: dict[str, float]
    pooled: dict[str, float]
    spectrum: list[float]
    sharpness: float
    order: float

    @property
    def mean_wasserstein(self) -> float:
        """Over the brain tissues."""
        return float(np.mean([v for k, v in self.wasserstein.items() if k in BRAIN_TISSUES]))

    @property
    def worst_brain(self) -> tuple[str, float]:
        """The brain tissue farthest off."""
        return max(((k, v) for k, v in self.wasserstein.items() if k in BRAIN_TISSUES), key=lambda kv: kv[1])

    @property
    def worst_other(self) -> tuple[str, float]:
        """The other tissue farthest off; ("", 0) where a crop holds none."""
        rest = ((k, v) for k, v in self.wasserstein.items() if k in OTHER_TISSUES)
        return max(rest, key=lambda kv: kv[1], default=("", 0.0))

    @property
    def worst_band(self) -> float:
        """Ratio of the band farthest from 1 in the logarithm."""
        return max(self.spectrum, key=lambda r: abs(np.log(max(r, 1e-12))))

    def passes(self) -> dict[str, bool]:
        """Which targets are met."""
        return {
            "wasserstein_brain": self.worst_brain[1] <= BRAIN_WASSERSTEIN,
            "wasserstein_rest": self.worst_other[1] <= OTHER_WASSERSTEIN,
            "spectrum": all(SPECTRUM[0] <= r <= SPECTRUM[1] for r in self.spectrum),
            "sharpness": SHARPNESS[0] <= self.sharpness <= SHARPNESS[1],
            "order": self.order == 1.0,
        }

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            **asdict(self),
            "mean_wasserstein_brain": self.mean_wasserstein,
            "worst_brain": self.worst_brain,
            "worst_rest": self.worst_other,
            "worst_band": self.worst_band,
            "passes": self.passes(),
        }


def measure(images: Sequence[Array], cases: Sequence[Case], means: Array) -> Figures:
    """Figures of images, one per case.

    Args:
        images: each of its case's shape, in 0..1.
        cases: the references.
        means: intensity of each of ``TISSUES``, the image of plain label means.
    """
    edges = radial_bands()
    distances: dict[str, list[tuple[float, float]]] = {}
    values: dict[str, list[tuple[Array, Array]]] = {}
    powers, sharpness, order = [], [], []
    for image, case in zip(images, cases, strict=True):
        own = label_wasserstein(image, case.image, case.groups, TISSUES)
        plain = label_wasserstein(paint_labels(case.groups, means), case.image, case.groups, TISSUES)
        for name, value in own.items():
            if name != "background" or not case.extracted:  # there background is 0 in all, and so its distance
                distances.setdefault(name, []).append((value, plain[name]))
                inside = case.within(name)
                step = max(1, int(inside.sum()) // _POOLED_VOXELS)
                values.setdefault(name, []).append((image[inside][::step], case.image[inside][::step]))
        window = soft_window(case.brain)
        powers.append([band_powers(x, edges, window) for x in (image, case.image)])
        grey, white = case.within("cortex"), case.within("white_matter")
        sharpness.append([boundary_sharpness(x, grey, white) for x in (image, case.image)])
        order.append(image[case.within("csf")].mean() < image[grey].mean() < image[white].mean())
    ratios = {name: float(np.sum(pairs, 0)[0] / np.sum(pairs, 0)[1]) for name, pairs in distances.items()}
    pooled = {name: _pooled(pairs, means[TISSUES.index(name)]) for name, pairs in values.items()}
    own_power, real_power = np.mean(powers, 0)
    own_sharp, real_sharp = np.mean(sharpness, 0)
    spectrum = (own_power / real_power).tolist()
    return Figures(ratios, pooled, spectrum, float(own_sharp / real_sharp), float(np.mean(order)))


def _pooled(pairs: Sequence[tuple[Array, Array]], mean: float) -> float:
    """Wasserstein distance of the values of all subjects together over that of the label mean."""
    own, real = (np.concatenate(parts) for parts in zip(*pairs, strict=True))
    return float(wasserstein_distance(own, real) / np.abs(real - mean).mean())
