"""Adversarial training: every kind runs and can be used, and a run that was stopped continues exactly."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from medgen.checks import MedgenError
from medgen.models import load_model
from medgen.models.gan import GanModel
from medgen.networks.registry import build_network
from medgen.trainers import train
from medgen.trainers.checkpoint import load_checkpoint
from medgen.trainers.config import load_config
from medgen.trainers.data import BatchesFrom, Items, make_source
from medgen.trainers.gan import GanConfig, GanTrainer
from tests.trainers.conftest import CONTENT, write_volume

JUDGE = {"_target_": "StyleDiscriminator", "channels": [4, 8]}
PATCHES = {"_target_": "PatchDiscriminator", "channels": 4, "num_layers_d": 1, "norm": "INSTANCE"}
KEPT = ("name", "data", "grid", "label_channels", "augmentation", "batch_size", "seed", "held_out_endings")
BASE = {key: CONTENT[key] for key in KEPT} | {"family": "gan", "steps": 4, "packing_levels": 1}
SLICES = {"grid": {"spacing": [1.0, 1.0], "size": [16, 16]}, "slices": {"plane": "axial"}}
FLAIR = {"modality": "FLAIR", "channels": ["FLAIR"], "source_modalities": ["T1w"], "label_channels": []}
KINDS: dict[str, dict[str, Any]] = {
    "style": {
        "task": "joint", "label_encoding": "distance", "discriminator": JUDGE, "r1_gamma": 1.0, "r1_every": 2,
        "net": {"_target_": "StyleGenerator", "channels": [4, 8], "latent_dim": 4, "style_dim": 4},
        "style_mixing": 0.9, "path_length_weight": 2.0, "path_length_every": 2,
        "ada": {"samples_to_full": 20, "every": 2, "target": 0.0},
    },
    "spade": {
        "task": "label_to_image", "discriminator": PATCHES, "adversarial_loss": "hinge", "l1_weight": 1.0,
        "feature_matching_weight": 1.0,
        "net": {"_target_": "SpadeGenerator", "channels": [4, 8], "latent_dim": 3, "hidden_channels": 4},
    },
    "pix2pix": {
        "task": "translate", "discriminator": PATCHES, "adversarial_loss": "least_squares", "l1_weight": 10.0,
        "net": {"_target_": "UNetGenerator", "channels": [4, 8]}, **SLICES, **FLAIR,
    },
    "cyclegan": {
        "task": "translate", "discriminator": PATCHES, "adversarial_loss": "least_squares",
        "net": {"_target_": "ResNetGenerator", "channels": [4, 8], "num_res_blocks": 1}, **SLICES, **FLAIR,
    },
}  # fmt: skip


@pytest.fixture(scope="session")
def patients(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three patients with T1 and FLAIR."""
    folder = tmp_path_factory.mktemp("patients")
    for number in (2, 3, 4):
        base = np.random.default_rng(number).random((18, 18, 18)).astype(np.float32) + 1
        write_volume(folder / f"patient{number:02d}" / "T1.nii.gz", base)
        write_volume(folder / f"patient{number:02d}" / "FLAIR.nii.gz", 3 - base)
    return folder


@pytest.fixture
def write(tmp_path: Path, people: Path, patients: Path) -> Any:
    names = itertools.count()

    def make(kind: str, **changes: Any) -> Path:
        data = patients if kind in ("pix2pix", "cyclegan") else people
        path = tmp_path / f"{kind}{next(names)}.yaml"
        path.write_text(yaml.safe_dump(BASE | {"kind": kind, "data": str(data)} | KINDS[kind] | changes))
        return path

    return make


def weights(folder: Path) -> dict[str, torch.Tensor]:
    state = load_checkpoint(folder)
    parts = {(part, name): state[part][name] for part in ("networks", "ema") for name in state[part]}
    return {f"{part}.{name}.{key}": t for (part, name), found in parts.items() for key, t in found.items()}


@pytest.mark.parametrize("kind", list(KINDS))
def test_every_kind_trains_and_makes_images(kind: str, write: Any, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    model = load_model(train(write(kind), folder, progress=False, device="cpu", fast_dev_run=True), device="cpu")
    assert isinstance(model, GanModel)
    trained = load_checkpoint(folder)["networks"]
    config = load_config(folder / "config.yaml")
    assert isinstance(config, GanConfig)
    source = make_source(config)
    fresh = GanTrainer.build(config, GanTrainer.plan(config, source))
    for name, network in fresh.items():
        before = network.state_dict()
        assert any(not torch.equal(before[key], trained[name][key]) for key in before), f"{name} has learnt"
    item = Items(source, config)[0]
    known = {key: item[key] for key in ("label", "source", "present") if key in item and kind != "style"}
    image, _ = model.produce(known, tuple(config.grid.size), 3, model.settings())
    assert image is not None
    assert bool(torch.isfinite(image).all())


def test_a_run_that_was_stopped_continues_exactly(write: Any, tmp_path: Path) -> None:
    config = write("style")
    train(config, tmp_path / "whole", progress=False, device="cpu")
    short = tmp_path / "parts"

    def stop(trainer: GanTrainer, batch: Any, step: int, original: Any = GanTrainer.train_step) -> Any:
        if step == 3:
            raise KeyboardInterrupt
        return original(trainer, batch, step)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(GanTrainer, "train_step", stop)
        train(config, short, ["checkpoint_every=1"], progress=False, device="cpu")
    assert load_checkpoint(short)["step"] == 3
    train(config, short, progress=False, device="cpu", resume=True)
    whole, parts = weights(tmp_path / "whole"), weights(short)
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[key], parts[key]) for key in whole)
    states = [load_checkpoint(folder)["extra"] for folder in (tmp_path / "whole", short)]
    assert states[0] == states[1]
    assert states[0]["augmentation"] != 0 or states[0]["path_length"] != 0


def test_controls_reach_generator_and_discriminator(write: Any) -> None:
    controls = [{"name": "size", "kind": "class", "values": ["small", "large"], "quantiles": [0.5]}]
    path = write(
        "style",
        controls=controls,
        measured={"size": {"label_volume": [1]}},
        path_length_weight=0.0,
        context_dim=4,
    )
    config = load_config(path)
    assert isinstance(config, GanConfig)
    source = make_source(config)
    spec = GanTrainer.plan(config, source)
    networks = GanTrainer.build(config, spec)
    assert {"generator", "discriminator", "controls", "discriminator_controls"} == set(networks)
    items = Items(source, config)
    loader = torch.utils.data.DataLoader(items, batch_sampler=BatchesFrom(0, config.steps, config.batch_size))
    trainer = GanTrainer(config, spec, networks, loader, torch.device("cpu"))
    before = {name: [p.clone() for p in network.parameters()] for name, network in networks.items()}
    trainer.train_step(next(iter(loader)), 0)
    for name, network in networks.items():
        assert any(not torch.equal(a, b) for a, b in zip(before[name], network.parameters(), strict=True)), name


@pytest.mark.parametrize(
    ("kind", "changes", "word"),
    [
        ("style", {"task": "label_to_image", "label_encoding": "one_hot"}, "task"),
        ("style", {"patch_size": [8, 8, 8]}, "patch_size"),
        ("style", {"feature_matching_weight": 1.0}, "feature_matching_weight"),
        ("style", {"ada": {"flip_axes": [3]}}, "flip_axes"),
        ("style", {"ada": {"flip_axes": [0]}, "label_channels": [["left_ball", [1]]]}, "flip_axes"),
        ("style", {"discriminator": {"_target_": "UNet"}}, "discriminator._target_"),
        ("cyclegan", {"batch_size": 1}, "batch_size"),
    ],
)
def test_refusals(kind: str, changes: dict[str, Any], word: str, write: Any) -> None:
    with pytest.raises(MedgenError, match=word):
        load_config(write(kind, **changes))


def test_arguments_that_follow_from_the_rest_must_not_contradict(write: Any) -> None:
    config = load_config(write("style", net=KINDS["style"]["net"] | {"out_channels": 5}))
    assert isinstance(config, GanConfig)
    with pytest.raises(MedgenError, match=r"net.out_channels.*Leave it out"):
        GanTrainer.make_spec(config, 1)
    assert build_network(GanTrainer.make_spec(_as(write("style")), 1).network)


def _as(path: Path) -> GanConfig:
    config = load_config(path)
    assert isinstance(config, GanConfig)
    return config
