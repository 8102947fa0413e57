"""A tiny run: 12 people of smooth noise with a ball each, 16 x 16 x 16 voxels, a network of two levels."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import yaml

with warnings.catch_warnings():  # ignite imports what torch calls deprecated
    warnings.simplefilter("ignore", DeprecationWarning)
    import ignite  # noqa: F401

CONTENT: dict[str, Any] = {
    "name": "tiny",
    "task": "joint",
    "data": "people",
    "grid": {"spacing": [1.0, 1.0, 1.0], "size": [16, 16, 16]},
    "label_channels": [["ball", [1]]],
    "label_dropout": 0.5,
    "augmentation": {"rotation_degrees": 5.0, "shift_mm": 1.0, "gamma": 0.1},
    "net": {"_target_": "ConditionalUNet", "channels": [8, 16], "condition_embedding": 4},
    "batch_size": 2,
    "steps": 6,
    "seed": 3,
    "held_out_endings": [1, 6],
    "optimisation": {"learning_rate": 1e-3, "warmup_steps": 2},
    "sampling": {
        "sampler": "dpmpp_2m",
        "num_inference_steps": 2,
        "schedule": "logsnr",
        "sigma_min": 0.02,
        "sigma_max": 20.0,
    },
}


def write_volume(path: Path, array: np.ndarray, affine: np.ndarray | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, np.eye(4) if affine is None else affine), path)
    return path


def person(number: int, size: int = 18) -> tuple[np.ndarray, np.ndarray]:
    """Image float32 and label uint8 ``(size, size, size)`` of one made-up person."""
    draws = np.random.default_rng(number)
    place = np.indices((size,) * 3) - draws.uniform(0.4, 0.6, 3).reshape(3, 1, 1, 1) * size
    label = (np.square(place).sum(0) < draws.uniform(9, 25)).astype(np.uint8)
    image = 100.0 + 200.0 * label + 20.0 * draws.standard_normal(label.shape)
    return image.astype(np.float32), label


@pytest.fixture(scope="session")
def people(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images/ and labels/ of people 1 to 12."""
    folder = tmp_path_factory.mktemp("people")
    for number in range(1, 13):
        image, label = person(number)
        write_volume(folder / "images" / f"person_{number:03d}.nii.gz", image)
        write_volume(folder / "labels" / f"person_{number:03d}.nii.gz", label)
    return folder


@pytest.fixture
def write_config(tmp_path: Path, people: Path) -> Callable[..., Path]:
    """Writes the tiny configuration, with changes, as ``tmp_path/tiny.yaml``."""

    def write(**changes: Any) -> Path:
        path = tmp_path / "tiny.yaml"
        path.write_text(yaml.safe_dump({**CONTENT, "data": str(people), **changes}))
        return path

    return write
