"""The benchmarks of ``brain-t1`` run small: every part works, and the figures of known images are what they must be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from medgen.anatomy.labels import TISSUES
from medgen.metrics import label_means, paint_labels
from medgen.models.bundled import bundled_models, load_model
from medgen.models.generative import GenerativeModel
from tests.bench.brain_truth import brain_truth
from tests.bench.cases import central_window, make_case, population_of, training_seed, unseen_seed
from tests.bench.figures import measure
from tests.bench.samplers_table import samplers_table

pytestmark = pytest.mark.bench


@pytest.fixture(scope="module")
def model() -> GenerativeModel:
    if "brain-t1" not in bundled_models():
        pytest.skip("brain-t1 is not bundled")
    return load_model("brain-t1")


def test_known_images_have_known_figures(model: GenerativeModel) -> None:
    population = population_of(model.spec)
    case = make_case(population, unseen_seed(0))
    training = make_case(population, training_seed(model.spec, 0))
    means = label_means([training.image], [training.groups], len(TISSUES))
    real = measure([case.image], [case], means)
    assert all(real.passes().values())
    assert real.mean_wasserstein == 0
    plain = measure([paint_labels(case.groups, means)], [case], means)
    assert plain.mean_wasserstein == pytest.approx(1)
    assert not plain.passes()["wasserstein_brain"]


def test_brain_truth_runs(model: GenerativeModel, tmp_path: Path) -> None:
    found = brain_truth(model, tmp_path, 2, training_subjects=2, regression_steps=2, variety_seeds=2)
    assert set(found["figures"]) == {"model", "partial volume + noise", "label means", "regression"}
    assert all(0 <= value <= 1 for value in found["auc"].values())
    assert np.isfinite([row["ratio_regression"] for row in found["variety"].values()]).all()


def test_samplers_table_runs(model: GenerativeModel) -> None:
    found = samplers_table(model, 1, 32, grid={"dpmpp_2m": (2,), "heun": (1,)}, longest_subjects=0)
    assert [row["evaluations"] for row in found["rows"]] == [2, 1]


def test_a_crop_keeps_its_place(model: GenerativeModel) -> None:
    case = make_case(population_of(model.spec), unseen_seed(1))
    window = central_window(case, 32)
    part = case.crop(window)
    start = np.array([*(s.start for s in window), 1.0])
    np.testing.assert_allclose((case.label.affine.numpy() @ start)[:3], part.label.affine.numpy()[:3, 3])
    np.testing.assert_array_equal(part.image, case.image[window])
