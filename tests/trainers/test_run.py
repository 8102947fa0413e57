"""Runs of the trainer: what they leave, and that killing them at any point changes nothing."""

from __future__ import annotations

import itertools
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from medgen.checks import MedgenError
from medgen.diffusion.randomness import derive_seed
from medgen.models import load_model, open_model, read_model
from medgen.models.codec import VoxelCodec
from medgen.networks.registry import build_network
from medgen.trainers import run as trainers_run
from medgen.trainers import train
from medgen.trainers.base import initial_network
from medgen.trainers.checkpoint import Checkpoint, load_checkpoint
from medgen.trainers.config import Optimisation, load_config
from medgen.trainers.data import Item, Items, make_source
from medgen.trainers.diffusion import (
    KNOWN_WEIGHT,
    DiffusionTrainer,
    channel_weight,
    hole_weight,
    label_weight,
)
from medgen.trainers.diffusion_config import DiffusionConfig
from medgen.trainers.ema import Ema, learning_rate
from medgen.trainers.run import planned_spec
from medgen.trainers.statistics import measure_labels

Write = Callable[..., Path]
ROOT = Path(__file__).parents[2]


def run(config: Path, folder: Path, *overrides: str, **options: Any) -> Path:
    return train(config, folder, overrides, progress=False, device="cpu", **options)


def same_state(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def same_run(a: Path, b: Path) -> bool:
    """Model bytes and everything in the checkpoint but where the data lie."""
    first, second = load_checkpoint(a), load_checkpoint(b)
    weights = all(
        same_state(first[part][name], second[part][name]) for part in ("networks", "ema") for name in first[part]
    )
    files = [folder / "model" / "models" / "model.safetensors" for folder in (a, b)]
    return weights and first["step"] == second["step"] and files[0].read_bytes() == files[1].read_bytes()


@pytest.fixture(scope="session")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory, people: Path) -> Path:
    """The tiny run, six steps in one go."""
    import yaml

    from tests.trainers.conftest import CONTENT

    folder = tmp_path_factory.mktemp("uninterrupted")
    (folder / "tiny.yaml").write_text(yaml.safe_dump({**CONTENT, "data": str(people)}))
    run(folder / "tiny.yaml", folder / "run")
    return folder / "run"


def test_a_run_leaves_model_checkpoint_configuration_and_log(uninterrupted: Path) -> None:
    assert load_checkpoint(uninterrupted)["step"] == 6
    assert load_config(uninterrupted / "config.yaml").steps == 6, "the written configuration can be run again"
    assert list((uninterrupted / "logs").glob("events.out.tfevents*"))
    spec, state = read_model(uninterrupted / "model")
    assert spec.training["people"] == 9
    assert spec.channel_std[0] > 0
    assert same_state(state, load_checkpoint(uninterrupted)["ema"]["denoiser"]), "the model is the averaged network"
    subject = load_model(uninterrupted / "model", device="cpu").sample(seed=1)[0]
    assert subject["image"].shape == subject["label"].shape == (1, 16, 16, 16)


def test_tensorboard_has_every_step(uninterrupted: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = EventAccumulator(str(uninterrupted / "logs"))
    log.Reload()
    assert [event.step for event in log.Scalars("loss")] == [1, 2, 3, 4, 5, 6]
    assert {"loss", "gradient_norm", "learning_rate"} <= set(log.Tags()["scalars"])


def test_workers_change_nothing(uninterrupted: Path, write_config: Write, tmp_path: Path) -> None:
    run(write_config(), tmp_path / "run", "num_workers=1")
    assert same_run(uninterrupted, tmp_path / "run")


def test_the_global_generator_changes_nothing(uninterrupted: Path, write_config: Write, tmp_path: Path) -> None:
    torch.manual_seed(99)
    before = torch.get_rng_state()
    run(write_config(), tmp_path / "run", "steps=1")
    assert torch.equal(torch.get_rng_state(), before), "the run draws nothing from it"
    first = load_checkpoint(tmp_path / "run")["networks"]["denoiser"]
    torch.manual_seed(7)
    run(write_config(), tmp_path / "again", "steps=1")
    assert same_state(first, load_checkpoint(tmp_path / "again")["networks"]["denoiser"])


def test_another_seed_is_another_model(uninterrupted: Path, write_config: Write, tmp_path: Path) -> None:
    run(write_config(), tmp_path / "run", "seed=4", "steps=1")
    assert not same_state(
        load_checkpoint(tmp_path / "run")["networks"]["denoiser"],
        load_checkpoint(uninterrupted)["networks"]["denoiser"],
    )


def test_fast_dev_run_goes_through_everything(write_config: Write, tmp_path: Path) -> None:
    model = run(write_config(), tmp_path / "run", "steps=100000", fast_dev_run=True)
    assert load_checkpoint(tmp_path / "run")["step"] == 2
    assert [path.name for path in (tmp_path / "run" / "pictures").iterdir()] == ["step_0000002.png"]
    assert read_model(model)[0].training["people"] == 4, "a few people are enough for a check"


@pytest.mark.parametrize(
    ("task", "changes"),
    [
        ("label_to_image", {"noise_levels": {"at_maximum": 0.5}, "label_dropout": 0.0}),
        ("label_to_image", {"reference": "label_means", "label_dropout": 0.0}),
        ("inpaint", {"label_channels": [], "label_dropout": 0.0, "hole_diameter_mm": [4.0, 8.0]}),
        (
            "inpaint",
            {
                "label_channels": [],
                "label_dropout": 0.0,
                "hole_diameter_mm": [4.0, 8.0],
                "reference": "continuation",
                "noise_levels": {"at_maximum": 0.5},
            },
        ),
    ],
)
def test_the_other_tasks(write_config: Write, tmp_path: Path, task: str, changes: dict[str, Any]) -> None:
    model = run(write_config(task=task, **changes), tmp_path / "run", fast_dev_run=True)
    spec, state = read_model(model)
    assert (spec.task, spec.reference) == (task, changes.get("reference", "none"))
    assert len(spec.label_intensities) == (2 if spec.reference == "label_means" else 0)
    assert all(bool(torch.isfinite(value).all()) for value in state.values())
    untrained = initial_network(spec.network, 3, spec.name).state_dict()
    assert not same_state(state, untrained), "two steps change the weights"


@pytest.mark.parametrize("prediction", ["epsilon", "flow", "v_prediction", "sample"])
def test_other_networks_and_predictions(write_config: Write, tmp_path: Path, prediction: str) -> None:
    net = {
        "_target_": "DiffusionModelUNet",
        "channels": [8, 16],
        "num_res_blocks": 1,
        "attention_levels": [False, False],
        "norm_num_groups": 4,
    }
    weighting = "flow" if prediction == "flow" else "min_snr"
    config = write_config(net=net, prediction_type=prediction, packing="none", weighting=weighting)
    run(config, tmp_path / "run", "steps=1")


def test_two_dimensions() -> None:
    """The trainer itself is as much for slices as for volumes; only the file reader is not."""
    from tests.trainers.conftest import CONTENT

    class Slices:
        people = 1

        def item(self, seed: int) -> Item:
            stream = torch.Generator().manual_seed(seed)
            label = (torch.rand(1, 16, 16, generator=stream) > 0.5).to(torch.int16)
            return {"image": label * 0.8, "label": label}

    from torch.utils.data import DataLoader

    from medgen.trainers.data import BatchesFrom

    config = DiffusionConfig(**{**CONTENT, "grid": {"spacing": [1.0, 1.0], "size": [16, 16]}, "steps": 12})
    spec = DiffusionTrainer.plan(config, Slices())
    networks = DiffusionTrainer.build(config, spec)
    loader = DataLoader(Items(Slices(), config), batch_sampler=BatchesFrom(0, 12, 2))
    trainer = DiffusionTrainer(config, spec, networks, loader, torch.device("cpu"))
    losses: list[float] = []
    from ignite.engine import Events

    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda e: losses.append(e.state.output["loss"]))
    trainer.run()
    assert len(losses) == trainer.steps_done == 12
    assert all(math.isfinite(loss) for loss in losses)


# What is refused, before any data are read


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        (["net#chanels=[8]"], "chanels"),
        (["net#in_channels=3"], "must be"),
        (["precision=bf16"], "needs a CUDA GPU"),
        (["grid#size=[18,18,18]"], "multiples of"),
        (["patch_size=[6,6,6]"], "multiples of"),
        (["sampling#sampler=eulr"], "euler"),
    ],
)
def test_what_cannot_work_is_refused_before_the_data_are_read(
    write_config: Write, tmp_path: Path, overrides: list[str], text: str
) -> None:
    with pytest.raises(MedgenError) as caught:
        run(write_config(data="nowhere"), tmp_path / "run", *overrides)
    assert text in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_missing_data_leave_nothing_behind(write_config: Write, tmp_path: Path) -> None:
    with pytest.raises(MedgenError, match="does not exist"):
        run(write_config(data="nowhere"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_existing_run_is_not_overwritten(uninterrupted: Path, write_config: Write, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.txt").write_text("keep")
    with pytest.raises(MedgenError, match=r"not empty.*--resume.*--overwrite"):
        run(write_config(), tmp_path / "run")
    run(write_config(), tmp_path / "run", "steps=1", overwrite=True)
    assert (tmp_path / "run" / "mine.txt").read_text() == "keep"
    (tmp_path / "file").write_text("")
    with pytest.raises(MedgenError, match="is a file"):
        run(write_config(), tmp_path / "file")


@pytest.mark.parametrize("fault", ["no data", "no statistics"])
def test_overwriting_keeps_the_old_run_until_the_new_one_is_ready(
    uninterrupted: Path, write_config: Write, tmp_path: Path, fault: str
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(uninterrupted, folder)
    (folder / "pictures").mkdir(exist_ok=True)
    (folder / "pictures" / "step_0000001.png").write_bytes(b"old")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.MonkeyPatch.context() as patch:
        if fault == "no statistics":
            patch.setattr(DiffusionTrainer, "measure", lambda *_: (_ for _ in ()).throw(MedgenError("does not exist")))
        changes = {"data": "nowhere"} if fault == "no data" else {}
        with pytest.raises(MedgenError, match="does not exist"):
            run(write_config(**changes), folder, "seed=9", overwrite=True)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


# Going on


def test_resume_continues_exactly(uninterrupted: Path, write_config: Write, tmp_path: Path) -> None:
    folder, calls = tmp_path / "run", 0
    original = DiffusionTrainer._iteration

    def stop_at_four(self: Any, engine: Any, batch: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise RuntimeError("power failure")
        return original(self, engine, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DiffusionTrainer, "_iteration", stop_at_four)
        with pytest.raises(RuntimeError, match="power failure"):
            run(write_config(), folder, "checkpoint_every=2")
    assert load_checkpoint(folder)["step"] == 2
    torch.manual_seed(5)
    run(write_config(), folder, "checkpoint_every=3", resume=True)
    assert same_run(uninterrupted, folder)
    run(write_config(), folder, resume=True)  # nothing is left to do, and nothing changes
    assert same_run(uninterrupted, folder)


def test_resume_without_anything_to_resume(write_config: Write, uninterrupted: Path, tmp_path: Path) -> None:
    with pytest.raises(MedgenError, match="nothing to resume"):
        run(write_config(), tmp_path / "none", resume=True)
    (tmp_path / "early").mkdir()  # killed before its first checkpoint
    run(write_config(), tmp_path / "early", resume=True)
    assert same_run(uninterrupted, tmp_path / "early")


def test_resume_with_another_configuration_is_refused(write_config: Write, tmp_path: Path) -> None:
    run(write_config(), tmp_path / "run", "steps=1")
    with pytest.raises(MedgenError, match="differs from the checkpoint's in batch_size, steps"):
        run(write_config(), tmp_path / "run", "batch_size=3", resume=True)


def test_a_lower_learning_rate_may_go_on(write_config: Write, tmp_path: Path) -> None:
    run(write_config(), tmp_path / "run", "steps=1")
    with pytest.warns(UserWarning, match="not that of one uninterrupted run"):
        run(write_config(), tmp_path / "run", "steps=1", "optimisation#learning_rate=1e-4", resume=True)


def test_a_checkpoint_holds_what_is_asked_of_it(uninterrupted: Path) -> None:
    assert load_checkpoint(uninterrupted).keys() == Checkpoint.__required_keys__


@pytest.mark.parametrize("lacking", ["gradient_scaler", "spec", "threads"])
def test_a_checkpoint_that_lacks_a_part_is_refused(uninterrupted: Path, tmp_path: Path, lacking: str) -> None:
    content = dict(load_checkpoint(uninterrupted))
    del content[lacking]
    torch.save(content, tmp_path / "checkpoint.pt")
    with pytest.raises(MedgenError, match=f"it lacks {lacking}"):
        load_checkpoint(tmp_path)


def test_the_threads_of_a_checkpoint_hold_for_the_run_only(
    uninterrupted: Path, write_config: Write, tmp_path: Path
) -> None:
    shutil.copytree(uninterrupted, tmp_path / "run")
    before = torch.get_num_threads()
    torch.save(dict(load_checkpoint(uninterrupted)) | {"threads": before + 1}, tmp_path / "run" / "checkpoint.pt")
    with pytest.MonkeyPatch.context() as patch:
        seen: list[int] = []
        patch.setattr(trainers_run._Run, "go", lambda *_: seen.append(torch.get_num_threads()))
        run(write_config(), tmp_path / "run", resume=True)
    assert seen == [before + 1]
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut", None])
def test_a_damaged_or_foreign_checkpoint_is_refused(write_config: Write, tmp_path: Path, content: bytes | None) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    if content is None:
        torch.save({"weights": torch.zeros(1)}, folder / "checkpoint.pt")
    else:
        (folder / "checkpoint.pt").write_bytes(content)
    with pytest.raises(MedgenError, match=r"checkpoint '.*' (cannot be read|is none of)"):
        run(write_config(), folder, resume=True)


def test_what_a_killed_run_was_writing_is_removed(write_config: Write, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    (folder / ".model.0123456789ab" / "models").mkdir(parents=True)
    (folder / ".model.0123456789ab.old").mkdir()
    (folder / ".0123456789ab.checkpoint.pt").write_bytes(b"half")
    (folder / ".0123456789ab.mine.txt").write_bytes(b"keep")
    run(write_config(), folder, "steps=1", resume=True)
    assert sorted(path.name for path in folder.glob(".*")) == [".0123456789ab.mine.txt"]


# Numbers that run away


def test_a_loss_that_is_no_number_keeps_the_last_good_checkpoint(write_config: Write, tmp_path: Path) -> None:
    from medgen.trainers import data

    original = data.Items.__getitem__

    def poisoned(self: data.Items, index: int) -> Item:
        item = original(self, index)
        if self.purpose == "train" and index >= 8:  # step 5
            item["image"] = item["image"] * math.inf
        return item

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data.Items, "__getitem__", poisoned)
        with pytest.raises(MedgenError, match="loss of step 5: nan") as caught:
            run(write_config(), tmp_path / "run", "checkpoint_every=2")
    assert "\n" not in str(caught.value)
    state = load_checkpoint(tmp_path / "run")
    assert state["step"] == 4
    assert all(bool(torch.isfinite(value).all()) for value in state["networks"]["denoiser"].values())


def test_infinite_weights_are_never_kept(write_config: Write, tmp_path: Path) -> None:
    original = DiffusionTrainer._iteration

    def burst(self: Any, engine: Any, batch: Any) -> Any:
        output = original(self, engine, batch)
        if self.steps_done == 3:
            next(self.networks["denoiser"].parameters()).data.fill_(math.inf)
        return output

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DiffusionTrainer, "_iteration", burst)
        with pytest.raises(MedgenError, match="weights of step 3"):
            run(write_config(), tmp_path / "run", "checkpoint_every=1")
    assert load_checkpoint(tmp_path / "run")["step"] == 2


# The arithmetic of a step


def test_learning_rate_rises_and_falls_to_zero() -> None:
    settings = Optimisation(learning_rate=0.1, warmup_steps=10)
    rates = [learning_rate(step, 100, settings) for step in range(101)]
    assert rates[0] == pytest.approx(0.01)
    assert max(rates) == pytest.approx(0.1, rel=0.03)
    assert int(np.argmax(rates)) == 9
    assert rates[100] == pytest.approx(0, abs=1e-12)
    assert all(a > b for a, b in itertools.pairwise(rates[9:]))


def test_ema_is_the_exponential_average() -> None:
    network = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(network.weight)
    ema, expected = Ema(network, 0.9), 0.0
    for step in range(30):
        network.weight.data.fill_(float(step))
        ema.update(network, step)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
    assert float(ema.network.weight) == pytest.approx(expected, rel=1e-5)
    assert not ema.network.weight.requires_grad


def test_channel_balance_weighs_coarse_structure_up() -> None:
    even = channel_weight([0.6, 0.1, 0.2], 0.0, 3)
    assert even.flatten().tolist() == [1.0, 1.0, 1.0]
    weight = channel_weight([0.6, 0.1, 0.2], 1.0, 3)
    assert weight.shape == (1, 3, 1, 1, 1)
    assert weight.flatten().tolist() == pytest.approx([2.0, 1 / 3, 2 / 3])


def test_hole_weight_has_mean_one_and_favours_the_hole() -> None:
    mask = torch.zeros(2, 1, 8, 8, 8)
    mask[0, 0, :4, :4, :4] = 1  # 8 of 64 packed voxels
    mask[1, 0, 7, 7, 7] = 1  # one voxel is enough for its packed voxel
    weight = hole_weight(mask, (4, 4, 4))
    assert weight.shape == (2, 1, 4, 4, 4)
    assert weight.flatten(1).mean(1).tolist() == pytest.approx([1.0, 1.0])
    for item, count in zip(weight, (8, 1), strict=True):
        high, low = float(item.max()), float(item.min())
        assert int((item == high).sum()) == count
        assert high / low == pytest.approx((1 + KNOWN_WEIGHT) / KNOWN_WEIGHT)
    assert float(weight[1, 0, 3, 3, 3]) == float(weight[1].max())
    assert hole_weight(torch.ones(1, 1, 4, 4), (2, 2)).unique().tolist() == [1.0], "2D, all hole"


def test_initial_weights_are_a_function_of_the_seed_alone(write_config: Write) -> None:
    spec = planned_spec(load_config(write_config()))
    torch.manual_seed(derive_seed(3, "weights"))  # what the seed means
    expected = build_network(spec.network, spec.name).state_dict()
    torch.manual_seed(0)
    before = torch.get_rng_state()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "manual_seed", None)  # it would seed the GPUs too
        assert same_state(initial_network(spec.network, 3, spec.name).state_dict(), expected)
    assert torch.equal(torch.get_rng_state(), before)


# What is measured before the first step


class Blocks:
    """Halves of an 8 x 8 x 8 volume: background of 0.2 and label 1 of 0.8, give or take 0.1; no label 2."""

    people = 1

    def item(self, seed: int) -> Item:
        label = torch.zeros(1, 8, 8, 8, dtype=torch.int16)
        label[:, 4:] = 1
        sign = 1 - 2 * (torch.arange(8) % 2)  # alternates along the last axis
        return {"image": 0.2 + 0.6 * label + 0.1 * sign, "label": label}


def test_label_means_and_deviations_are_those_of_the_data(write_config: Write) -> None:
    channels = [["ball", [1]], ["absent", [2]]]
    settings = {"task": "label_to_image", "label_dropout": 0.0, "reference": "label_means"}
    config = load_config(write_config(label_channels=channels, **settings))
    source = Blocks()
    drawn = [source.item(seed) for seed in range(2)]
    background, ball, absent = measure_labels(VoxelCodec(planned_spec(config)), drawn)
    # painted means are smoothed by (1, 2, 1) / 4: the layer at the edge is 0.6 / 4 off
    edge = math.sqrt(0.1**2 + (0.6 / 4) ** 2)
    for label, mean in ((background, 0.2), (ball, 0.8)):
        assert label[0] == pytest.approx((mean, edge), abs=1e-5)
        assert all(deeper == pytest.approx((mean, 0.1), abs=1e-5) for deeper in label[1:])
    assert all(at == pytest.approx((0.8, 0.1), rel=0.01) for at in absent), "the figures of all labels together"


def test_a_depth_with_few_voxels_has_the_figures_of_the_one_before(write_config: Write) -> None:
    settings = {"task": "label_to_image", "label_dropout": 0.0, "reference": "label_means"}
    config = load_config(write_config(**settings))
    label = torch.zeros(1, 16, 16, 16, dtype=torch.int16)
    label[:, 5:10, 5:10, 5:10] = 1  # 98 voxels at the edge, 26 next to it, 1 deeper
    image = torch.where(label > 0, 0.8, 0.2)
    image[:, 6:9, 6:9, 6:9] = 0.5
    _, ball = measure_labels(VoxelCodec(planned_spec(config)), [{"image": image, "label": label}])
    assert [round(mean, 5) for mean, _ in ball] == [0.8] * 4
    _, ball = measure_labels(VoxelCodec(planned_spec(config)), [{"image": image, "label": label}] * 2)
    assert [round(mean, 5) for mean, _ in ball] == [0.8, 0.5, 0.5, 0.5]


def test_holes_between_the_voxels_are_refused(write_config: Write) -> None:
    settings = {"task": "inpaint", "label_channels": [], "label_dropout": 0.0}
    config = load_config(write_config(hole_diameter_mm=[0.01, 0.01], **settings))
    with pytest.raises(MedgenError, match="no voxel lies in any of the first 24 holes"):
        DiffusionTrainer.measure(config, make_source(config))


def test_a_patch_that_is_all_hole_is_counted(write_config: Write) -> None:
    settings = {"task": "inpaint", "label_channels": [], "label_dropout": 0.0}
    config = load_config(write_config(hole_diameter_mm=[4.0, 8.0], **settings))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Items, "__getitem__", lambda *_: {"image": image, "inpaint_mask": torch.ones_like(image)} | blank)
        image, blank = torch.linspace(0, 1, 512).reshape(1, 8, 8, 8), {"label": torch.zeros(1, 8, 8, 8)}
        assert DiffusionTrainer.measure(config, Blocks())["channel_mean"][0] == pytest.approx(
            0.5 * math.sqrt(8), rel=1e-4
        )


# Killing


def start(config: Path, folder: Path, *overrides: str, resume: bool = False) -> subprocess.Popen[str]:
    options = ["--resume"] if resume else []
    command = [sys.executable, "-m", "medgen", "train", str(config), "-o", str(folder), *options, *overrides]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)


def wait_for_step(folder: Path, step: int, process: subprocess.Popen[str], timeout: float = 300) -> None:
    end = time.monotonic() + timeout
    while process.poll() is None and time.monotonic() < end:
        if (folder / "checkpoint.pt").exists() and load_checkpoint(folder)["step"] >= step:
            return
        time.sleep(0.02)


def kill_and_resume(config: Path, reference: Path, folder: Path, kills: int, overrides: tuple[str, ...]) -> None:
    """SIGKILL ``kills`` times at random moments after progress, then finish; the result must not differ by one bit."""
    draws = np.random.default_rng(kills)
    steps = load_checkpoint(reference)["step"]
    done = 0
    for count in range(kills):
        process = start(config, folder, *overrides, resume=folder.exists())
        wait_for_step(folder, min(done + 1, steps - 1), process)
        time.sleep(float(draws.uniform(0, 0.3)))
        process.kill()
        process.communicate()
        assert process.returncode in (-signal.SIGKILL, 0), f"run {count} ended by itself"
        done = int(load_checkpoint(folder)["step"]) if (folder / "checkpoint.pt").exists() else 0
    process = start(config, folder, *overrides, resume=folder.exists())
    _, text = process.communicate()
    assert process.returncode == 0, text
    assert same_run(reference, folder)


def test_killed_twice_the_weights_are_the_same(uninterrupted: Path, write_config: Write, tmp_path: Path) -> None:
    kill_and_resume(write_config(), uninterrupted, tmp_path / "run", 2, ("checkpoint_every=1",))


@pytest.mark.slow
def test_killed_ten_times_the_weights_are_the_same(write_config: Write, tmp_path: Path) -> None:
    overrides = ("steps=40", "checkpoint_every=2", "validate_every=5")
    run(write_config(), tmp_path / "reference", *overrides)
    kill_and_resume(write_config(), tmp_path / "reference", tmp_path / "run", 10, overrides)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_after_the_step_with_a_checkpoint(
    write_config: Write, tmp_path: Path, number: signal.Signals
) -> None:
    folder = tmp_path / "run"
    process = start(write_config(), folder, "steps=100000", "validate_every=100000", "checkpoint_every=3")
    wait_for_step(folder, 3, process)
    process.send_signal(number)
    _, text = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "Traceback" not in text
    assert "--resume" in text
    step = load_checkpoint(folder)["step"]
    assert f"after step {step}" in text, "the checkpoint is that of the last finished step"


def test_a_run_starts_from_the_weights_and_figures_of_a_model(write_config: Write, tmp_path: Path) -> None:
    first = train(write_config(), tmp_path / "first", ["steps=3"])
    overrides = ["steps=1", f"start_from={first}", "optimisation#learning_rate=1e-12", "seed=5"]
    second = train(write_config(), tmp_path / "second", overrides)
    one, two = open_model(first), open_model(second)
    assert one.spec.channel_std == two.spec.channel_std
    assert all(torch.allclose(one.state[name], two.state[name], atol=1e-6) for name in one.state)
    with pytest.raises(MedgenError, match=r"its network\.channels is \[8, 16\], the configuration's \[16, 16\]"):
        train(write_config(), tmp_path / "third", [*overrides, "net#channels=[16, 16]"])
    assert not (tmp_path / "third").exists() or not any((tmp_path / "third").iterdir())


def test_small_labels_weigh_more_with_label_balance() -> None:
    kind = torch.zeros(2, 1, 8, 8, 8, dtype=torch.long)
    kind[0, 0, :4, :4, :2] = 2  # 32 of 512 voxels
    weight = label_weight(kind, 0.5, (4, 4, 4))
    assert weight.shape == (2, 1, 4, 4, 4)
    assert weight[1].unique().tolist() == [1.0], "one label alone"
    assert weight[0].mean().item() == pytest.approx(1.0)
    rare, common = weight[0, 0, 0, 0, 0].item(), weight[0, 0, 3, 3, 3].item()
    assert rare / common == pytest.approx((480 / 32) ** 0.5)
    assert label_weight(kind, 0.0, (4, 4, 4)).unique().tolist() == [1.0]
    single = torch.zeros(1, 1, 16, 16, 16, dtype=torch.long)
    single[..., 0, 0, 0] = 1
    assert label_weight(single, 1.0, (16, 16, 16)).max() < 1001, "a stray voxel does not rule the loss"


def test_small_pieces_weigh_more_with_balance_by_piece() -> None:
    kind = torch.zeros(1, 1, 16, 16, dtype=torch.long)
    kind[0, 0, :4, :4] = 1  # 16 voxels
    kind[0, 0, 10, 10] = kind[0, 0, 11, 11] = 1  # 2, joined by their corners
    kind[0, 0, 8:10, :2] = 2  # 4
    by_label, by_piece = (label_weight(kind, 0.5, (16, 16), by)[0, 0] for by in ("label", "piece"))
    assert by_label[0, 0] == by_label[10, 10]
    assert (by_piece[10, 10] / by_piece[0, 0]).item() == pytest.approx(8**0.5)
    assert by_piece[10, 10] == by_piece[11, 11]
    ones = kind[0, 0] == 1
    assert by_piece[ones].sum().item() == pytest.approx(by_label[ones].sum().item()), "the label weighs the same"
    assert torch.allclose(by_piece[~ones], by_label[~ones]), "one piece, and the background"
