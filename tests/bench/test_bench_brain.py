"""The benchmarks of ``brain-t1`` run small, with an untrained network on a small grid: every part works."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from medgen.anatomy.labels import CHANNELS, TISSUES
from medgen.metrics import label_means, paint_labels
from medgen.models.diffusion_model import DiffusionModel
from medgen.models.specification import ModelSpec
from medgen.networks.registry import build_network
from tests.bench.brain_truth import brain_truth, write_json
from tests.bench.cases import central_window, make_case, population_of, training_seed, unseen_seed
from tests.bench.figures import measure
from tests.bench.floors import NetworkFree
from tests.bench.samplers_table import samplers_table

pytestmark = pytest.mark.bench


@pytest.fixture(scope="module")
def model() -> DiffusionModel:
    grid = {"spacing": [2.0, 2.0, 2.0], "size": [48, 48, 48]}
    network = {"_target_": "ConditionalUNet", "spatial_dims": 3, "in_channels": 8, "out_channels": 8}
    content = {
        "name": "untrained",
        "version": "1.0.0",
        "network": {**network, "channels": [8, 8, 8], "condition_channels": 8 * len(CHANNELS)},
        "prediction_type": "edm",
        "packing": "haar",
        "task": "label_to_image",
        "label_channels": [[name, list(ids)] for name, ids in CHANNELS],
        "channel_mean": [0.9, *[0.0] * 7],
        "channel_std": [0.5, *[0.05] * 7],
        "grid": grid,
        "label_source": {"population": {**grid, "brain_extracted": 0.25, "flip": 0.5}},
        "sampling": {
            "sampler": "dpmpp_2m",
            "num_inference_steps": 2,
            "schedule": "logsnr",
            "sigma_min": 0.1,
            "sigma_max": 20.0,
        },
    }
    spec = ModelSpec.from_dict({"format": 1, **content})
    return DiffusionModel(spec, {"denoiser": build_network(spec.network).eval()}, torch.device("cpu"))


def test_known_images_have_known_figures(model: DiffusionModel) -> None:
    population = population_of(model.spec)
    case = make_case(population, unseen_seed(0))
    training = [make_case(population, training_seed(model.spec, i)) for i in range(3)]
    means = label_means([c.image for c in training], [c.groups for c in training], len(TISSUES))
    real = measure([case.image], [case], means)
    assert all(real.passes().values())
    assert real.mean_wasserstein == 0
    plain = measure([paint_labels(case.groups, means)], [case], means)
    assert plain.mean_wasserstein == pytest.approx(1)
    assert not plain.passes()["wasserstein_brain"]
    free = measure([NetworkFree.fit(population, training).image(case, 0)], [case], means)
    assert free.mean_wasserstein < 0.25
    assert free.passes()["sharpness"]


def test_brain_truth_runs(model: DiffusionModel, tmp_path: Path) -> None:
    found = brain_truth(
        model, tmp_path, 2, training_subjects=2, regression_steps=2, variety_seeds=2, classifier_steps=5
    )
    assert set(found["figures"]) == {"model", "partial volume + noise", "label means", "regression"}
    assert all(0 <= value <= 1 for value in found["auc"].values())
    assert np.isfinite([row["ratio_regression"] for row in found["variety"].values()]).all()
    assert (tmp_path / "regression_2.pt").is_file()
    write_json(tmp_path / "out.json", found)


def test_samplers_table_runs(model: DiffusionModel, tmp_path: Path) -> None:
    found = samplers_table(model, 1, 32, grid={"dpmpp_2m": (2,), "heun": (1,)}, longest_subjects=0)
    assert [row["evaluations"] for row in found["rows"]] == [2, 1]
    assert found["verdicts"] == {"evaluations": True}
    write_json(tmp_path / "out.json", found)


def test_a_crop_keeps_its_place(model: DiffusionModel) -> None:
    case = make_case(population_of(model.spec), unseen_seed(1))
    window = central_window(case, 32)
    part = case.crop(window)
    start = np.array([*(s.start for s in window), 1.0])
    np.testing.assert_allclose((case.label.affine.numpy() @ start)[:3], part.label.affine.numpy()[:3, 3])
    np.testing.assert_array_equal(part.image, case.image[window])
