"""The arithmetic of the benchmarks on small made-up subjects; no network, no atlas."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from rich.console import Console
from scipy.ndimage import gaussian_filter

from medgen.anatomy.labels import TISSUES, ids_of
from medgen.metrics import label_means, paint_labels
from tests.bench.brain_truth import MEANS, MODEL, NETWORK_FREE, REGRESSION, show, verdicts
from tests.bench.cases import Case, tissue_table
from tests.bench.classifier import patch_auc
from tests.bench.figures import measure

SIZE = 32


def made_up(seed: int) -> Case:
    """Shells of CSF, cortex and white matter in air, with texture."""
    radius = np.sqrt(sum(np.square(g - SIZE / 2) for g in np.indices((SIZE,) * 3)))
    ids = np.zeros((SIZE,) * 3, np.int16)
    for tissue, outer in (("csf", 14), ("cortex", 12), ("white_matter", 9)):
        ids[radius < outer] = ids_of(tissue)[0]
    groups = tissue_table()[ids]
    means = np.zeros(len(TISSUES))
    for tissue, value in (("csf", 0.2), ("cortex", 0.4), ("white_matter", 0.6)):
        means[TISSUES.index(tissue)] = value
    texture = np.random.default_rng(seed).normal(size=ids.shape) * 0.03 * (groups > 0)
    label = MetaTensor(torch.from_numpy(ids)[None], affine=torch.eye(4, dtype=torch.float64))
    return Case(seed, means[groups] + texture, label, groups, extracted=True)


CASES = [made_up(seed) for seed in range(4)]
LABEL_MEANS = label_means([c.image for c in CASES], [c.groups for c in CASES], len(TISSUES))


def test_the_reference_meets_every_target() -> None:
    found = measure([case.image for case in CASES], CASES, LABEL_MEANS)
    assert all(found.passes().values())
    assert found.mean_wasserstein == 0
    assert found.spectrum == pytest.approx([1.0] * 8)


def test_label_means_are_the_unit_and_fail() -> None:
    found = measure([paint_labels(case.groups, LABEL_MEANS) for case in CASES], CASES, LABEL_MEANS)
    assert all(value == pytest.approx(1) for value in found.wasserstein.values())
    assert all(value == pytest.approx(1, rel=0.01) for value in found.pooled.values())
    assert not found.passes()["wasserstein_brain"]


def test_an_even_shift_counts_in_every_subject() -> None:
    found = measure([case.image + 0.03 * (case.groups > 0) for case in CASES], CASES, LABEL_MEANS)
    # mean absolute deviation of N(0, 0.03) is 0.03 sqrt(2 / pi)
    assert found.wasserstein["white_matter"] == pytest.approx(np.sqrt(np.pi / 2), rel=0.02)
    assert found.pooled["white_matter"] == pytest.approx(np.sqrt(np.pi / 2), rel=0.02)


def test_shifts_that_cancel_show_in_the_mean_and_not_in_the_pool() -> None:
    signs = (1, -1, 1, -1)
    images = [case.image + 0.01 * sign for case, sign in zip(CASES, signs, strict=True)]
    found = measure(images, CASES, LABEL_MEANS)
    assert found.wasserstein["white_matter"] > 0.35
    assert found.pooled["white_matter"] < 0.1


def test_classifier_tells_blur_from_texture_and_not_a_copy() -> None:
    real = [case.image for case in CASES]
    flat = [paint_labels(case.groups, LABEL_MEANS) for case in CASES]
    assert patch_auc(real, flat, CASES, size=12, per_subject=16, steps=40, repeats=1) > 0.7
    assert patch_auc(real, real, CASES, size=12, per_subject=16, steps=5, repeats=1) == pytest.approx(0.5)


def test_tables_and_verdicts() -> None:
    real = measure([case.image for case in CASES], CASES, LABEL_MEANS)
    flat = measure([gaussian_filter(case.image, 1.5) for case in CASES], CASES, LABEL_MEANS)
    figures = {MODEL: real, NETWORK_FREE: real, MEANS: flat, REGRESSION: flat}
    row = {
        "std": 0.02,
        "residual_regression": 0.02,
        "residual_means": 0.04,
        "ratio_regression": 1.0,
        "ratio_means": 0.5,
    }
    found: dict[str, Any] = {
        "auc": {MODEL: 0.85, NETWORK_FREE: 0.99},
        "variety": {"cortex": row},
        "seconds_per_volume": 1.0,
    }
    found["verdicts"] = verdicts(figures, found)
    assert all(found["verdicts"].values())
    console = Console(record=True, width=200, quiet=True)
    show(console, figures, found)
    assert not verdicts(figures, {**found, "auc": {MODEL: 0.95, NETWORK_FREE: 0.99}})["auc"]
