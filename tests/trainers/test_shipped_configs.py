"""Every shipped configuration, run for two steps on real people, and a sample of the model that it leaves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from medgen.cohort.generate import generate_cohort
from medgen.io.configs import shipped_configs
from medgen.models import load_model
from medgen.models.restorer import RestorerModel
from medgen.models.specification import TASKS
from medgen.restoration.restore import restore
from medgen.trainers import train
from medgen.trainers.config import load_config
from tests.trainers.open_ms_layout import open_ms_tree

pytestmark = [
    # the scans in the repository are cut out of larger ones, for which the grids are meant
    pytest.mark.filterwarnings("ignore:.*reaches beyond.*:UserWarning"),
    # sizes for a GPU come with more workers than a small machine has cores
    pytest.mark.filterwarnings("ignore:This DataLoader will create.*:UserWarning"),
]

ROOT = Path(__file__).parents[2]
HIPPOCAMPUS = ROOT / "tests" / "data" / "hippocampus"
QUICK = (
    "rectified_flow_tiny", "latent_diffusion_tiny", "stylegan2_tiny", "vq_transformer_tiny", "restore_denoise_tiny",
    "restore_self_denoise_tiny",
)  # fmt: skip
POPULATION = ("brain_t1", "brain_t1_inpaint", "brain_t1_whole")  # trained on the bundled population, tested elsewhere
SIMULATED = ("restore_bias", "restore_bias_tiny", "restore_ct", "restore_ct_tiny")  # on that population alone
BENT = ("restore_inpaint", "restore_inpaint_tiny")  # of whole heads: a hippocampus does not fill their patch
RECIPES = ("bids", "brats", "ixi", "medmnist", "msd")  # of public data, tested on their layouts in test_data_recipes
SLOW = sorted(set(shipped_configs()) - {*QUICK, *POPULATION, *RECIPES})


def run(name: str, folder: Path, tmp_path: Path) -> None:
    """Two steps, the model read back, a sample where the task allows one."""
    path = shipped_configs()[name]
    config = load_config(path)
    data = open_ms_tree(tmp_path / "open_ms") if config.data == "open_ms" else HIPPOCAMPUS
    held_out = [] if config.data == "open_ms" else ["held_out_endings=[1, 6]"]
    given = [] if name in SIMULATED else ["data=colin27"] if name in BENT else [f"data={data}", *held_out]
    train(path, folder, given, fast_dev_run=True, progress=False, device="cpu")
    model = load_model(folder / "model", device="cpu")
    assert model.spec.name == config.name
    assert set(model.networks) == set(model.spec.networks())
    if isinstance(model, RestorerModel):
        restored(model)
        return
    if model.spec.family == "autoencoder" or TASKS[model.spec.task].needs_source:
        return
    label = None
    if model.spec.task == "label_to_image":
        affine = torch.diag(torch.tensor([*model.spec.grid.spacing, *[1.0] * (4 - model.spec.spatial_dims)])).double()
        label = MetaTensor(torch.zeros(1, *model.spec.grid.size), affine=affine)
    generate_cohort(model, 1, folder / "cohort", seed=1, label=label)
    first, second = (model.sample(seed=1, label=label)[0] for _ in range(2))
    for key, volume in first.items():
        assert volume.shape[1:] == model.spec.grid.size
        assert np.array_equal(volume.numpy(), second[key].numpy()), "the same seed gives the same bytes"


def restored(model: RestorerModel) -> None:
    """A scan of random numbers with what the restorer asks for."""
    affine = torch.diag(torch.tensor([1.0, 1.0, 3.0 if model.spec.restores == "superres" else 1.0, 1.0])).double()
    scan = MetaTensor(torch.rand(1, 24, 20, 16, generator=torch.Generator().manual_seed(0)), affine=affine)
    hole = torch.zeros(scan.shape)
    hole[:, 8:12, 8:12, 6:10] = 1
    mask = MetaTensor(hole, affine=affine) if model.spec.restores == "inpaint" else None
    made = restore(scan, model.spec.restores, model, inpaint_mask=mask, guard="off")  # it is tiny
    assert made.image.shape[1:3] == scan.shape[1:3]
    assert bool(torch.isfinite(made.image).all())


@pytest.mark.parametrize("name", [name for name in QUICK if name in shipped_configs()])
def test_a_configuration_of_each_trainer_runs(name: str, tmp_path: Path) -> None:
    run(name, tmp_path / "run", tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_every_shipped_configuration_runs(name: str, tmp_path: Path) -> None:
    run(name, tmp_path / "run", tmp_path)
