"""One whole visit to a machine with a CUDA device: the tests marked gpu, times, and many trainings side by side.

    python -m tests.gpu.visit OUT --minutes 8 --tests --times --train 'NAME=CONFIG[;KEY=VALUE...]' [--train ...]

Every training without ``steps=`` is first run for a minute beside the others, and its number of steps then set to what
fits into ``--minutes``, so that its learning rate comes down in time; one that does not end in time leaves what its
last checkpoint had learnt. ``NAME`` ``unet`` is MONAI's U-Net on the pairs of a restorer's configuration; its trial is
that of ``inpaint``. The processors that make the items are the limit, not the GPU: share them out with ``num_workers``.

``OUT/models.tar.*`` are pieces of one archive with the models in half precision (``python -m tests.gpu.unpack OUT
FOLDER`` makes model folders of them), ``OUT/visit.json`` says what ran, for how long and on what.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from medgen.models.bundled import bundled_models, load_model
from medgen.models.folder import open_model
from medgen.models.restorer import RestorerModel
from medgen.models.specification import TASKS, ModelSpec
from medgen.trainers.checkpoint import load_checkpoint
from medgen.trainers.config import load_config

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # a rehearsal
PILOT = ("steps=1000000", "subjects=8", "checkpoint_every=1000000", "validate_every=1000000")
PILOT_SECONDS = 60
SAFETY = 0.78
PIECE = 15 << 20
GRACE = 40


def command(name: str, config: str, changes: list[str], folder: Path) -> list[str]:
    """Of one training."""
    if name == "unet":
        steps = [change.split("=", 1)[1] for change in changes if change.startswith("steps=")]
        how = ["-o", str(folder / "unet.pt"), "--device", DEVICE, *(["--steps", steps[-1]] if steps else [])]
        return [sys.executable, "-m", "tests.bench.restoration_unet", config, *changes, *how]
    how = ["-o", str(folder), "--device", DEVICE, "--overwrite"]
    return [sys.executable, "-m", "medgen", "train", config, *how, *changes]


def together(jobs: dict[str, list[str]], logs: Path, seconds: float) -> dict[str, float]:
    """Run commands side by side, interrupt what takes longer; seconds that each took."""
    began = time.monotonic()
    running: dict[str, subprocess.Popen[bytes]] = {}
    took: dict[str, float] = {}
    asked: set[str] = set()
    for name, argv in jobs.items():
        with open(logs / f"{name}.log", "a", encoding="utf-8") as log:  # the process has its own handle
            running[name] = subprocess.Popen(argv, stdout=log, stderr=log)
    while running:
        time.sleep(0.5)
        spent = time.monotonic() - began
        for name, process in list(running.items()):
            if process.poll() is not None:
                took[name] = spent
                del running[name]
            elif spent > seconds + GRACE:
                process.kill()
            elif spent > seconds and name not in asked:
                process.send_signal(signal.SIGINT)  # a second one would leave no checkpoint
                asked.add(name)
    return took


def rates(jobs: dict[str, tuple[str, list[str]]], work: Path) -> dict[str, float]:
    """Steps a second of each training while all run."""
    pilots = {
        name: command(name, config, [*changes, *PILOT, *_few_pairs(config)], work / f"pilot_{name}")
        for name, (config, changes) in jobs.items()
        if name != "unet" and not any(change.startswith("steps=") for change in changes)
    }
    if pilots:
        together(pilots, work, PILOT_SECONDS)
    found = {}
    for name in pilots:
        try:
            state = load_checkpoint(work / f"pilot_{name}")
            found[name] = state["step"] / state["seconds"]
        except Exception as error:  # one that fails must not end the visit
            print(f"{name}: no pilot: {error}", flush=True)
    return found


def _few_pairs(config: str) -> list[str]:
    return ["pairs=64"] if getattr(load_config(config), "pairs", 0) else []


def main() -> None:
    """Parse the command line and do all of it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("--work", type=Path, default=Path("runs/visit"))
    parser.add_argument("--minutes", type=float, default=8.0, help="for the trainings, after their trial")
    parser.add_argument("--train", action="append", default=[], metavar="NAME=CONFIG[;KEY=VALUE...]")
    parser.add_argument("--tests", action="store_true", help="run the tests marked gpu first")
    parser.add_argument("--times", action="store_true", help="time the bundled models first")
    given = parser.parse_args()
    given.output.mkdir(parents=True, exist_ok=True)
    given.work.mkdir(parents=True, exist_ok=True)
    record: dict[str, Any] = {
        "gpu": torch.cuda.get_device_name() if DEVICE == "cuda" else "",
        "torch": torch.__version__,
    }
    jobs = {}
    for text in given.train:
        name, rest = text.split("=", 1)
        config, *changes = rest.split(";")
        jobs[name] = (config, changes)
    if given.tests:
        with open(given.output / "tests.txt", "w", encoding="utf-8") as log:
            argv = [sys.executable, "-m", "pytest", "-m", "gpu", "tests/gpu", "-q"]
            record["tests"] = subprocess.run(argv, stdout=log, stderr=log, check=False).returncode
    if given.times:
        record["seconds_per_volume"] = times()
    record["rates"] = rates(jobs, given.work)
    print(json.dumps(record), flush=True)
    chosen = {}
    for name, (config, changes) in jobs.items():
        rate = record["rates"].get("inpaint" if name == "unet" else name)
        share = SAFETY if name != "unet" else SAFETY - 0.1
        steps = [f"steps={max(50, int(share * rate * 60 * given.minutes))}"] if rate else []
        chosen[name] = command(name, config, [*changes, *steps], given.work / name)
        record.setdefault("steps", {})[name] = steps
    record["seconds"] = together(chosen, given.work, 60 * given.minutes + 60)
    pack(given.work, given.output, list(jobs))
    (given.output / "visit.json").write_text(json.dumps(record, indent=1), encoding="utf-8")
    print(json.dumps(record), flush=True)


def times() -> dict[str, float]:
    """Seconds that each bundled model takes for a volume: a sample of its own size, or a head of 181 x 217 x 181."""
    found = {}
    for name in bundled_models():
        model: Any = load_model(name, device=DEVICE)
        if isinstance(model, RestorerModel):
            image = torch.rand(1, *((181, 217, 181)[: model.spec.spatial_dims]))
            given = {"hole": (image > 0.99).float()} if model.spec.restores == "inpaint" else {}
            run = partial(model.restored, image, 0.05, **given)
        elif TASKS[model.spec.task].needs_source or model.spec.task == "inpaint":
            continue
        else:
            run = partial(model.sample, 1, seed=1)
        run()
        began = time.perf_counter()
        run()
        if DEVICE == "cuda":
            torch.cuda.synchronize()
        found[name] = round(time.perf_counter() - began, 3)
    return found


def pack(work: Path, output: Path, names: list[str]) -> None:
    """The models in half precision, the logs, as pieces of one archive; of an interrupted run what it had learnt."""
    archive = work / "models.tar"
    with tarfile.open(archive, "w") as tar:
        for name in names:
            folder = work / name
            if name != "unet":
                (folder / f"{name}.pt").unlink(missing_ok=True)  # of an earlier visit
            try:
                spec, state = learnt(folder)
                half = {key: x.half() if x.is_floating_point() else x for key, x in state.items()}
                torch.save({"spec": spec.to_dict(), "state": half}, folder / f"{name}.pt")
            except Exception as error:  # one that fails must not end the visit
                print(f"{name}: no model: {error}", flush=True)
            for path in (folder / f"{name}.pt", work / f"{name}.log", folder / "run.json"):
                if path.is_file():
                    tar.add(path, f"{name}/{path.name}")
    with open(archive, "rb") as stream:
        for number, piece in enumerate(iter(lambda: stream.read(PIECE), b"")):
            (output / f"models.tar.{number:02d}").write_bytes(piece)


def learnt(folder: Path) -> tuple[ModelSpec, Mapping[str, torch.Tensor]]:
    """The model of a run, or of its last checkpoint."""
    if (folder / "model").is_dir():
        files = open_model(folder / "model")
        return files.spec, files.state
    found = load_checkpoint(folder)
    spec = ModelSpec.from_dict(found["spec"], str(folder))
    own = {name: found["ema"].get(name, found["networks"].get(name)) for name in spec.networks()}
    if len(own) == 1:
        return spec, next(iter(own.values()))
    return spec, {f"{name}.{key}": x for name, state in own.items() for key, x in state.items()}


if __name__ == "__main__":
    main()
