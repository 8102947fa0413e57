"""Every transform in ``TRANSFORMS`` enrols itself: seeds, inputs, affine, dtype, pickling, workers, twins, errors."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, MapTransform, Randomizable
from torch.utils.data import DataLoader

from medgen.checks import MedgenError
from medgen.models import ModelSpec, save_model
from medgen.networks import build_network
from medgen.transforms import TRANSFORMS, SeededDataset, TransformPair

SHAPES = {2: (14, 12), 3: (10, 12, 9)}


CASES = [
    pytest.param(name, dims, id=f"{name}-{dims}D") for name, pair in TRANSFORMS.items() for dims in pair.spatial_dims
]
every = pytest.mark.parametrize(("name", "dims"), CASES)


def _tiny_spec(task: str) -> ModelSpec:
    conditions = 2 if task == "inpaint" else 3
    spacing = 4.0 if task == "inpaint" else 2.0  # inpainting looks 32 mm around the hole
    return ModelSpec.from_dict(
        {
            "name": f"tiny-{task.replace('_', '-')}",
            "version": "1.0.0",
            "network": {
                "_target_": "DiffusionModelUNet",
                "spatial_dims": 3,
                "in_channels": 1 + conditions,
                "out_channels": 1,
                "channels": [8, 16],
                "num_res_blocks": 1,
                "attention_levels": [False, False],
                "norm_num_groups": 4,
            },
            "prediction_type": "edm",
            "task": task,
            "label_channels": [] if task == "inpaint" else [[f"part_{i}", [i]] for i in (1, 2, 3)],
            "channel_mean": [0.3],
            "channel_std": [0.2],
            "grid": {"spacing": [spacing] * 3, "size": [8, 8, 8]},
            "sampling": {
                "sampler": "euler",
                "num_inference_steps": 2,
                "schedule": "karras",
                "sigma_min": 0.02,
                "sigma_max": 20.0,
            },
        }
    )


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """A tiny untrained model for each task."""
    made = {}
    for task in sorted({pair.task for pair in TRANSFORMS.values() if pair.task}):
        spec = _tiny_spec(task)
        generator = torch.Generator().manual_seed(0)
        shapes = build_network(spec.network).state_dict()
        state = {name: torch.randn(t.shape, generator=generator) * 0.1 for name, t in shapes.items()}
        made[task] = tmp_path_factory.mktemp("models") / spec.name
        save_model(made[task], spec, state)
    return made


def options(pair: TransformPair, folders: Mapping[str, Path]) -> dict[str, Any]:
    return {"model": str(folders[pair.task]), "device": "cpu"} if pair.task else {}


def volumes(pair: TransformPair, dims: int) -> dict[str, MetaTensor]:
    """A flipped and anisotropic grid; boxes of ids 0..3, a scan and a hole."""
    shape = SHAPES[dims]
    affine = torch.diag(torch.tensor([-2.0, 1.5, 3.0, 1.0], dtype=torch.float64))
    affine[:3, 3] = torch.tensor([5.0, -7.0, 11.0])
    label = torch.zeros(1, *shape, dtype=torch.int16)
    for i in (1, 2, 3):
        label[(slice(None), *(slice(i, n - i) for n in shape))] = i
    generator = torch.Generator().manual_seed(0)
    roles = {
        "label": label,
        "image": torch.rand(1, *shape, generator=generator) + label,
        "inpaint_mask": (label == 3).float(),
    }
    return {role: MetaTensor(roles[role], affine=affine.clone()) for role in pair.inputs}


def run_array(pair: TransformPair, given: Mapping[str, Any], settings: dict[str, Any], seed: int = 1) -> MetaTensor:
    transform = pair.array(**settings).set_random_state(seed=seed)
    result: MetaTensor = transform(*(given[role] for role in pair.inputs))
    return result


@every
def test_seeds_grid_and_dtype(name: str, dims: int, folders: Mapping[str, Path]) -> None:
    pair = TRANSFORMS[name]
    given, settings = volumes(pair, dims), options(pair, folders)
    before = {role: value.clone() for role, value in given.items()}
    metas = {role: (value.affine.clone(), dict(value.meta)) for role, value in given.items()}
    first, again, other = (run_array(pair, given, settings, seed) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    for role, value in given.items():
        assert torch.equal(value, before[role])
        assert torch.equal(value.affine, metas[role][0])
        assert value.meta.keys() == metas[role][1].keys()
    grid = given[pair.inputs[0]]
    assert isinstance(first, MetaTensor)
    assert first.dtype == torch.float32
    assert first.shape == grid.shape
    assert first.affine.dtype == torch.float64
    assert torch.equal(first.affine, grid.affine)
    assert torch.isfinite(first).all()
    assert first.meta["synthetic"] is True
    assert first.meta["provenance"]["transform"] == name


@every
def test_dictionary_twin_is_equal(name: str, dims: int, folders: Mapping[str, Path]) -> None:
    pair = TRANSFORMS[name]
    given, settings = volumes(pair, dims), options(pair, folders)
    twin = pair.dictionary(**settings).set_random_state(seed=1)
    data: dict[str, Any] = {**given, "other": "kept"}
    result = twin(data)
    assert torch.equal(result[pair.output], run_array(pair, given, settings))
    assert result["other"] == "kept"
    assert set(data) == {*given, "other"}
    assert isinstance(twin, Randomizable)
    assert isinstance(twin, MapTransform)


@every
def test_plain_tensors_and_arrays_work(name: str, dims: int, folders: Mapping[str, Path]) -> None:
    pair = TRANSFORMS[name]
    settings = options(pair, folders)
    plain = {role: value.as_tensor() for role, value in volumes(pair, dims).items()}
    arrays = {role: value.numpy() for role, value in plain.items()}
    first, second = (run_array(pair, given, settings) for given in (plain, arrays))
    assert torch.equal(first.as_tensor(), second.as_tensor())
    assert np.array_equal(first.affine, np.eye(4))


@every
def test_pickles_small_and_equal(name: str, dims: int, folders: Mapping[str, Path]) -> None:
    pair = TRANSFORMS[name]
    given, settings = volumes(pair, dims), options(pair, folders)
    for kind in (pair.array, pair.dictionary):
        transform = kind(**settings)
        if kind is pair.dictionary:
            transform(dict(given))  # a used one holds no weights either
        content = pickle.dumps(transform)
        assert len(content) < 20_000
        copy = pickle.loads(content)
        assert type(copy) is kind
        assert copy.__dict__.keys() == transform.__dict__.keys()


@every
def test_same_bytes_in_real_workers(name: str, dims: int, folders: Mapping[str, Path]) -> None:
    pair = TRANSFORMS[name]
    data = [volumes(pair, dims) for _ in range(3)]
    results = []
    for workers in (0, 2):
        items = SeededDataset(data, Compose([pair.dictionary(**options(pair, folders))]), seed=9)
        loader = DataLoader(items, batch_size=None, num_workers=workers)
        results.append([item[pair.output].numpy().tobytes() for item in loader])
    assert results[0] == results[1]
    assert len(set(results[0])) == 3


@every
def test_missing_keys(name: str, dims: int, folders: Mapping[str, Path]) -> None:
    pair = TRANSFORMS[name]
    given, settings = volumes(pair, dims), options(pair, folders)
    kind = pair.dictionary.__name__
    for role in pair.inputs:
        rest = {"other": 1, **{key: value for key, value in given.items() if key != role}}
        with pytest.raises(MedgenError) as raised:
            pair.dictionary(**settings)(rest)
        assert str(raised.value).startswith(f"{kind}: key '{role}' is missing; found ('other'")
        assert "Add " in str(raised.value)
        assert pair.dictionary(**settings, allow_missing_keys=True)(rest) == rest


@every
def test_constructor_refuses_prob(name: str, dims: int, folders: Mapping[str, Path]) -> None:
    pair = TRANSFORMS[name]
    for kind in (pair.array, pair.dictionary):
        with pytest.raises(MedgenError, match=rf"{kind.__name__}: prob must lie in 0..1; got -0.5"):
            kind(**options(pair, folders), prob=-0.5)


def test_medgen_alone_imports_no_transforms() -> None:
    import subprocess
    import sys

    code = "import medgen, sys; sys.exit(any(m in sys.modules for m in ('medgen.transforms', 'monai', 'torch')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
