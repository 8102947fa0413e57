"""Training of a student: from a teacher's folder or its configuration, resumed exactly, sampling in a few steps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from medgen.checks import MedgenError
from medgen.models.bundled import load_model
from medgen.models.folder import open_model
from medgen.trainers.config import load_config
from medgen.trainers.run import train

Write = Callable[..., Path]
SAMPLING = {"num_inference_steps": 3, "schedule": "logsnr", "sigma_min": 0.5, "sigma_max": 20.0}


def student(write_config: Write, teacher: Path | str, **changes: Any) -> Path:
    """The tiny configuration as a student of ``teacher``."""
    jump = changes.pop("jump", "next")
    sampler = {"last": "dpmpp_2m", "next": "ddim", "end": "consistency"}[jump]
    fields = {
        "family": "distillation", "name": "student", "first_stage_model": str(teacher), "steps": 4, "jump": jump,
        "teacher_steps": 2, "net": None, "sampling": {"sampler": sampler, **SAMPLING}, "augmentation": {"gamma": 0.1},
    }  # fmt: skip
    path = write_config(**fields | changes)
    return path.rename(path.with_name("student.yaml"))


def run(config: Path, folder: Path, *overrides: str, **options: Any) -> Path:
    return train(config, folder, overrides, device="cpu", progress=False, **options)


@pytest.fixture
def teacher(write_config: Write, tmp_path: Path) -> Path:
    return run(write_config(), tmp_path / "teacher", "steps=2")


@pytest.mark.parametrize("jump", ["last", "next", "end"])
def test_a_student_is_a_model_that_samples_in_few_steps(
    jump: str, write_config: Write, teacher: Path, tmp_path: Path
) -> None:
    before = open_model(teacher).state
    folder = run(student(write_config, teacher, jump=jump), tmp_path / "run")
    made: Any = load_model(folder, device="cpu")
    assert made.spec.sampling.num_inference_steps == 3
    assert made.spec.training["teacher"] == "tiny"
    assert made.spec.family == "diffusion"
    assert made.sample(1, seed=1)[0]["image"].shape == (1, 16, 16, 16)
    state = open_model(folder).state
    assert state.keys() == before.keys()
    assert any(not torch.equal(state[name], before[name]) for name in state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in open_model(teacher).state.items())


def test_a_student_starts_as_its_teacher(write_config: Write, teacher: Path, tmp_path: Path) -> None:
    config = student(write_config, teacher, optimisation={"learning_rate": 1e-12, "warmup_steps": 0})
    state, before = open_model(run(config, tmp_path / "run", "steps=1")).state, open_model(teacher).state
    assert all(torch.allclose(state[name], before[name], atol=1e-9) for name in before)


def test_resume_continues_exactly(write_config: Write, teacher: Path, tmp_path: Path) -> None:
    config = student(write_config, teacher, jump="last")
    whole = open_model(run(config, tmp_path / "whole")).state
    with pytest.MonkeyPatch.context() as patch:
        from medgen.trainers.distillation import DistillationTrainer

        original = DistillationTrainer.train_step

        def stop(self: DistillationTrainer, batch: dict[str, torch.Tensor], step: int) -> dict[str, float]:
            if step == 2:
                raise RuntimeError("killed")
            return original(self, batch, step)

        patch.setattr(DistillationTrainer, "train_step", stop)
        with pytest.raises(RuntimeError, match="killed"):
            run(config, tmp_path / "parts", "checkpoint_every=1")
    parts = open_model(run(config, tmp_path / "parts", "checkpoint_every=1", resume=True)).state
    assert all(torch.equal(parts[name], whole[name]) for name in whole)


def test_a_teacher_is_trained_first_where_there_is_none(write_config: Write, tmp_path: Path) -> None:
    plain = write_config()
    plain = plain.rename(plain.with_name("teacher.yaml"))
    config = student(write_config, "", first_stage="teacher")
    folder = run(config, tmp_path / "run", fast_dev_run=True)
    assert load_model(folder, device="cpu").spec.name == "student"
    assert load_model(tmp_path / "run" / "first_stage" / "model", device="cpu").spec.name == "tiny"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"first_stage_model": ""}, "field 'first_stage' must name the teacher's configuration"),
        ({"net": {"_target_": "ConditionalUNet"}}, "field 'net' must be empty: a student has its teacher's network"),
        ({"sampling": {"sampler": "ddpm", **SAMPLING}}, "field 'sampling.sampler' must be ddim with jump 'next'"),
        ({"flow_end": 0.6}, "field 'flow_end' must be below sampling.sigma_min"),
        ({"jump": "nxt"}, "Did you mean 'next'"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    changes: dict[str, Any], words: str, write_config: Write, tmp_path: Path
) -> None:
    jump = {"jump": changes.pop("jump")} if "jump" in changes else {}
    path = student(write_config, "teacher", **changes)
    overrides = [f"{key}={value}" for key, value in jump.items()]
    with pytest.raises(MedgenError, match=words):
        load_config(path, overrides)


def test_a_student_of_another_grid_is_refused(write_config: Write, teacher: Path, tmp_path: Path) -> None:
    config = student(write_config, teacher, grid={"spacing": [1.0] * 3, "size": [16, 16, 12]})
    with pytest.raises(MedgenError, match="field 'grid' must be the teacher's"):
        run(config, tmp_path / "run")
