"""Models that build on another one: it is trained first, resumed where it stopped, taken where it exists."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from medgen.checks import MedgenError
from medgen.models import load_model, read_model
from medgen.trainers import train
from medgen.trainers.autoencoder import AutoencoderTrainer
from tests.trainers.conftest import CONTENT

Write = Callable[..., Path]
AUTOENCODER: dict[str, Any] = {
    "family": "autoencoder",
    "name": "first",
    "task": "joint",
    "grid": CONTENT["grid"],
    "label_channels": CONTENT["label_channels"],
    "held_out_endings": [1, 6],
    "packing_levels": 1,
    "net": {
        "_target_": "AutoencoderKL", "channels": [8, 8], "num_res_blocks": 1, "attention_levels": [False, False],
        "with_encoder_nonlocal_attn": False, "with_decoder_nonlocal_attn": False, "norm_num_groups": 4,
        "latent_channels": 4,
    },
    "batch_size": 2,
    "steps": 4,
    "seed": 5,
    "checkpoint_every": 1,
}  # fmt: skip
LATENT = {
    "first_stage": "first", "packing": "none", "steps": 3, "checkpoint_every": 1,
    "net": {"_target_": "ConditionalUNet", "channels": [8, 16], "condition_embedding": 4},
}  # fmt: skip


@pytest.fixture
def config(write_config: Write) -> Path:
    """A latent model, its autoencoder's configuration beside it."""
    path = write_config(**LATENT)
    (path.parent / "first.yaml").write_text(yaml.safe_dump(AUTOENCODER))
    return path


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return read_model(folder / "model")[1]


def same(a: Path, b: Path) -> bool:
    first, second = weights(a), weights(b)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_the_first_stage_is_trained_first_and_kept_in_the_model(config: Path, tmp_path: Path) -> None:
    train(config, tmp_path / "run", progress=False, device="cpu")
    state, inner = weights(tmp_path / "run"), weights(tmp_path / "run" / "first_stage")
    assert {name.split(".")[0] for name in state} == {"denoiser", "autoencoder"}
    for name, value in inner.items():
        assert torch.equal(state[f"autoencoder.{name}"], value), "the second stage leaves it as it is"
    sample = load_model(tmp_path / "run" / "model", device="cpu").sample(seed=1)[0]
    assert sample["image"].shape == sample["label"].shape == (1, 16, 16, 16)
    train(config, tmp_path / "again", [f"first_stage_model={tmp_path / 'run' / 'first_stage' / 'model'}"],
          progress=False, device="cpu")  # fmt: skip
    assert not (tmp_path / "again" / "first_stage").exists()
    assert same(tmp_path / "run", tmp_path / "again")


@pytest.mark.parametrize("stopped", ["in the first stage", "in the second"])
def test_an_interrupted_run_ends_bit_for_bit_as_an_uninterrupted_one(
    config: Path, tmp_path: Path, stopped: str
) -> None:
    train(config, tmp_path / "whole", progress=False, device="cpu")
    from medgen.trainers.diffusion import DiffusionTrainer

    cls = AutoencoderTrainer if stopped == "in the first stage" else DiffusionTrainer
    original = cls.train_step

    def breaks(self: Any, batch: Any, step: int) -> dict[str, float]:
        if step == 2:
            raise KeyboardInterrupt
        return original(self, batch, step)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cls, "train_step", breaks)
        with pytest.raises(KeyboardInterrupt):
            train(config, tmp_path / "run", progress=False, device="cpu")
    assert not (tmp_path / "run" / "model").exists()
    train(config, tmp_path / "run", resume=True, progress=False, device="cpu")
    assert same(tmp_path / "whole", tmp_path / "run")


def test_a_first_stage_that_does_not_fit_is_refused_before_it_is_trained(config: Path, tmp_path: Path) -> None:
    content = {**AUTOENCODER, "task": "image", "label_channels": []}
    (config.parent / "first.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(MedgenError, match="'autoencoder' must be for 2 channels"):
        train(config, tmp_path / "run", progress=False, device="cpu")
    assert not (tmp_path / "run").exists()
    shutil.rmtree(tmp_path / "run", ignore_errors=True)
    with pytest.raises(MedgenError, match="no config 'nowhere'"):
        train(config, tmp_path / "run", ["first_stage=nowhere"], progress=False, device="cpu")


def test_overwrite_spares_a_run_until_its_successor_can_begin(config: Path, tmp_path: Path) -> None:
    old = tmp_path / "run"
    train(config, old, progress=False, device="cpu")
    given = {file: file.read_bytes() for file in old.rglob("*") if file.is_file()}
    for model, words in (
        ("no-such-model", "no-such-model"),
        (old / "first_stage" / "model", "in the run's own folder"),
    ):
        with pytest.raises(MedgenError, match=words):
            train(config, old, [f"first_stage_model={model}"], overwrite=True, progress=False, device="cpu")
        assert {file: file.read_bytes() for file in old.rglob("*") if file.is_file()} == given
    train(config, old, ["seed=6"], overwrite=True, progress=False, device="cpu")
    assert (old / "model" / "medgen.json").is_file()
