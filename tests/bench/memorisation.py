"""Whether samples are copies: distances to the nearest training person, beside those of people never seen.

A model that learnt by heart makes samples that lie nearer to a training person than other real people do.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medgen.io.contact_sheet import comparison_sheet
from medgen.metrics import standardise
from tests.bench.judge import Judge
from tests.bench.people import People, Volume, as_meta

Array = NDArray[np.float64]
SPACES = ("voxels", "network")
CANDIDATES = 8


class Gallery:
    """What a model may have learnt by heart, in voxels' values and in the judge's features, and held-out people there.

    Args:
        people: whose gallery is searched.
        judge: whose features are compared.
    """

    def __init__(self, people: People, judge: Judge) -> None:
        self._judge = judge
        self._features = judge.features(people.gallery)
        self._pixels = _pixels(people.gallery)
        self._held_out = {name: self._distances(name, people.held_out) for name in SPACES}

    def compare(self, samples: Sequence[Volume]) -> dict[str, dict[str, float]]:
        """Distances of samples to their nearest volume of the gallery.

        Returns:
            For each space: ``made`` and ``held_out``, the medians; ``made_p05`` and ``held_out_p05``; ``ratio`` of the
            medians; ``nearer``, the share of samples that are nearer than any held-out person.
        """
        found = {}
        for name, real in self._held_out.items():
            ours = self._distances(name, samples)
            found[name] = {
                "made": float(np.median(ours)),
                "held_out": float(np.median(real)),
                "made_p05": float(np.percentile(ours, 5)),
                "held_out_p05": float(np.percentile(real, 5)),
                "ratio": float(np.median(ours) / np.median(real)),
                "nearer": float((ours < real.min()).mean()),
            }
        return found

    def nearest(self, samples: Sequence[Volume]) -> tuple[Array, NDArray[np.int64]]:
        """Distance in voxels' values to the nearest volume of the gallery, and its index."""
        return _nearest(_pixels(samples), self._pixels)

    def _distances(self, name: str, volumes: Sequence[Volume]) -> Array:
        if name == "voxels":
            return self.nearest(volumes)[0]
        gallery, rows = standardise(self._features, self._judge.features(volumes))
        return _nearest(rows, gallery)[0]


def planted(people: People, count: int, noise: float = 0.02, seed: int = 0) -> list[Volume]:
    """Copies of training people under a little noise: what :meth:`Gallery.compare` must find."""
    rng = np.random.default_rng(seed)
    chosen = [people.gallery[i] for i in rng.integers(len(people.gallery), size=count)]
    return [v._replace(image=(v.image + rng.normal(0, noise, v.image.shape)).astype(np.float32)) for v in chosen]


def nearest_sheet(samples: Sequence[Volume], people: People, gallery: Gallery, path: Path, columns: int = 6) -> None:
    """Picture of the samples that lie nearest to a training person, and of these people above."""
    distances, nearest = gallery.nearest(samples)
    order = np.argsort(distances)[:columns]
    real = [as_meta(people.gallery[nearest[i]], people.grid) for i in order]
    made = [as_meta(samples[i], people.grid) for i in order]
    comparison_sheet({"nearest training": real, "synthetic": made}, path, columns)


def _pixels(volumes: Sequence[Volume]) -> NDArray[np.float32]:
    return np.stack([v.image.ravel() for v in volumes])


def _nearest(rows: NDArray[Any], gallery: NDArray[Any]) -> tuple[Array, NDArray[np.int64]]:
    """Distance to the nearest of ``gallery`` and its index: candidates by expanded squares, then exact differences."""
    x, y = rows.astype(np.float32), gallery.astype(np.float32)
    squares = np.square(y).sum(1) - 2 * x @ y.T
    candidates = np.argsort(squares, axis=1)[:, :CANDIDATES]
    exact = np.stack([
        np.sqrt(np.square(gallery[found].astype(np.float64) - row).sum(1))
        for row, found in zip(rows, candidates, strict=True)
    ])  # fmt: skip
    best = exact.argmin(1)
    index = np.arange(len(rows))
    return exact[index, best], candidates[index, best]
