"""A tiny model: two levels, 8 and 16 channels, label map to image on an 8 x 8 x 8 grid."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from medgen.anatomy.labels import LABELS
from medgen.models import ModelSpec, save_model
from medgen.networks import build_network

CSF = [4, 14, 15, 24, 43]
TISSUE = [i for i in LABELS if i not in {0, *CSF}]


@pytest.fixture
def content() -> dict[str, Any]:
    """The content of a valid ``medgen.json``, with required and most optional fields."""
    return {
        "format": 1,
        "name": "tiny-t1",
        "version": "1.0.0",
        "network": {
            "_target_": "DiffusionModelUNet",
            "spatial_dims": 3,
            "in_channels": 4,
            "out_channels": 1,
            "channels": [8, 16],
            "num_res_blocks": 1,
            "attention_levels": [False, False],
            "norm_num_groups": 4,
        },
        "prediction_type": "edm",
        "sigma_data": 1.0,
        "packing": "none",
        "task": "label_to_image",
        "image_channels": 1,
        "label_channels": [["csf", CSF], ["tissue", TISSUE]],  # all ids that a population draws
        "channel_mean": [0.2],
        "channel_std": [0.3],
        "label_dropout": 0.1,
        "grid": {"spacing": [2.0, 2.0, 2.0], "size": [8, 8, 8]},
        "intensity": {"scale": 1000.0, "unit": "arbitrary T1 units"},
        "label_source": {
            "population": {
                "atlas": "colin27",
                "spacing": [2.0, 2.0, 2.0],
                "size": [8, 8, 8],
                "brain_extracted": 0.25,
                "flip": 0.5,
            }
        },
        "sampling": {
            "sampler": "dpmpp_2m",
            "num_inference_steps": 2,
            "schedule": "karras",
            "sigma_min": 0.01,
            "sigma_max": 80.0,
            "guidance_scale": 1.0,
        },
        "training": {"data": "none", "people": 0, "steps": 0, "seed": 0},
        "licence": "Apache-2.0",
    }


@pytest.fixture
def spec(content: dict[str, Any]) -> ModelSpec:
    return ModelSpec.from_dict(content)


@pytest.fixture
def state(spec: ModelSpec) -> dict[str, torch.Tensor]:
    """Random weights that depend on nothing but this line."""
    generator = torch.Generator().manual_seed(0)
    shapes = build_network(spec.network).state_dict()
    return {name: torch.randn(t.shape, generator=generator) * 0.1 for name, t in shapes.items()}


@pytest.fixture
def make(tmp_path: Path, spec: ModelSpec, state: dict[str, torch.Tensor]) -> Callable[..., Path]:
    """Saves the tiny model under ``tmp_path/name``."""

    def make(name: str = "tiny-t1", **options: Any) -> Path:
        save_model(tmp_path / name, spec, state, **options)
        return tmp_path / name

    return make


@pytest.fixture
def folder(make: Callable[..., Path]) -> Path:
    return make()
