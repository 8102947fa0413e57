"""One training run: a configuration in, a model folder out; killed at any point, it continues exactly."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from ignite.engine import Events
from torch.utils.data import DataLoader

from medgen.checks import MedgenError
from medgen.diffusion.randomness import derive_seed
from medgen.io.atomic import atomic_path, check_writable, write_json
from medgen.io.configs import find_config
from medgen.models.base import Model
from medgen.models.bundled import RUN, find_model, load_model
from medgen.models.device import resolve_device
from medgen.models.folder import SPECIFICATION, ModelFiles, open_model, read_spec, save_model
from medgen.models.specification import ModelSpec
from medgen.models.weights import joined_state, split_state
from medgen.networks.registry import short
from medgen.trainers.base import RunTrainer, not_finite, precision_type
from medgen.trainers.checkpoint import CHECKPOINT, Checkpoint, load_checkpoint, remove_leftovers, save_checkpoint
from medgen.trainers.config import FREE_TO_CHANGE, TrainConfig, changed_keys, load_config
from medgen.trainers.data import BatchesFrom, FileSource, Items, Source, make_source, make_validation_source
from medgen.trainers.families import trainer_class

CONFIG = "config.yaml"
RECORD = "run.json"
FIRST_STAGE = "first_stage"
FAST_PEOPLE = 4


def train(
    config: str | Path,
    output_dir: str | Path,
    overrides: Sequence[str] = (),
    *,
    resume: bool = False,
    fast_dev_run: bool = False,
    overwrite: bool = False,
    device: str = "auto",
    progress: bool = True,
) -> Path:
    """Train the model that a YAML configuration describes.

    Args:
        config: path of the configuration.
        output_dir: gets ``config.yaml``, ``checkpoint.pt``, ``logs/`` (TensorBoard), ``pictures/``, ``model/``,
            ``run.json`` (minutes of training) and, where the model builds on another, ``first_stage/``.
        overrides: ``key=value``, see :func:`~medgen.trainers.config.load_config`.
        resume: continue from the checkpoint in ``output_dir``; a run killed before its first starts again.
        fast_dev_run: two steps, one picture, the saved model: a check of everything before a long run.
        overwrite: replace the run in ``output_dir``, once the new configuration, data and ``first_stage_model`` have
            been found good.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
        progress: show a progress bar on a terminal.

    Returns:
        The model folder, ``output_dir/model``.

    Raises:
        MedgenError: a bad configuration or override, missing data, an existing ``output_dir`` without ``resume`` or
            ``overwrite``, nothing to resume, another configuration than the checkpoint's, or a loss that is no number.
        KeyboardInterrupt: interrupted (Ctrl-C or SIGTERM); the step under way is finished and its checkpoint written
            first. A second signal stops at once.
    """
    settings = load_config(config, overrides)
    where = resolve_device(device, "train")
    folder = Path(output_dir)
    if fast_dev_run:
        settings = dataclasses.replace(settings, steps=2, validate_every=2, checkpoint_every=2, subjects=1)
    _check_settings(settings, where, config)
    _check_folder(folder, resume, overwrite)
    state = load_checkpoint(folder) if resume and (folder / CHECKPOINT).exists() else None
    if state is not None:
        _check_same(state["config"], settings)
    source = make_source(settings, FAST_PEOPLE if fast_dev_run else None)
    first = _given_first_stage(settings, folder, where) if state is None else None
    trains_first = state is None and first is None and bool(settings.first_stage)
    if trains_first:
        if not resume:  # the first stage is already part of the new run
            _clear_folder(folder)
        first = _first_stage(settings, config, folder, fast_dev_run=fast_dev_run, device=where, progress=progress)
    with _threads(state["threads"] if state is not None else None):
        run = _prepare_run(settings, folder, source, where, state, first)
        remove_leftovers(folder)
        if not (resume or trains_first):
            _clear_folder(folder)
        _write_config(settings, folder)
        run.go(progress)
        return run.save()


def _given_first_stage(config: TrainConfig, folder: Path, device: torch.device) -> Model[Any] | None:
    """The model that ``first_stage_model`` names, None without.

    Raises:
        MedgenError: it lies in the run's own folder, which the run replaces.
    """
    if not config.first_stage_model:
        return None
    given = Path(config.first_stage_model)
    if given.exists() and given.resolve().is_relative_to(folder.resolve()):
        raise MedgenError(
            f"first_stage_model '{given}' lies in the run's own folder, which is replaced. Copy it elsewhere first."
        )
    return load_model(config.first_stage_model, device=device)


def _first_stage(
    config: TrainConfig, path: str | Path, folder: Path, *, fast_dev_run: bool, device: torch.device, progress: bool
) -> Model[Any]:
    """The model that this one builds on, trained before or now into ``first_stage``."""
    inner = folder / FIRST_STAGE
    if not (inner / RUN / SPECIFICATION).is_file():
        held_out = list(config.held_out_endings)  # nobody may be trained on in the first stage alone
        changes = [f"data={config.data}", f"layout={config.layout}", f"held_out_endings={held_out}"]
        resume = (inner / CHECKPOINT).exists()
        train(
            _first_stage_config(config, path), inner, changes,
            resume=resume, fast_dev_run=fast_dev_run, device=str(device), progress=progress,
        )  # fmt: skip
    return load_model(inner / RUN, device=device)


def _first_stage_config(config: TrainConfig, path: str | Path) -> Path:
    """The configuration that ``first_stage`` names: beside this one, else a path or a shipped name."""
    beside = Path(path).parent / config.first_stage
    for candidate in (beside, beside.with_name(f"{beside.name}.yaml")):
        if candidate.is_file():
            return candidate
    return Path(find_config(config.first_stage))


def planned_spec(config: TrainConfig, path: str | Path = "") -> ModelSpec:
    """The specification that a configuration will give, its figures not measured yet; first stages included.

    Args:
        config: of the run.
        path: of its file, beside which its first stage may lie.

    Raises:
        MedgenError: a wrong argument of a network, channels or sizes that do not fit together.
    """
    first: ModelSpec | None = None
    if config.first_stage_model:
        first = read_spec(find_model(config.first_stage_model))
    elif config.first_stage:
        inner = _first_stage_config(config, path)
        first = planned_spec(load_config(inner), inner)
    return trainer_class(config.family, config.name).make_spec(config, 0, None, first)


@contextlib.contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """Within the block torch works with ``count`` threads; None changes nothing."""
    if count is None:
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _check_settings(config: TrainConfig, device: torch.device, path: str | Path) -> None:
    """Refuse, before any data are read, what the network or the device cannot do."""
    precision_type(config.precision, device)
    unit = planned_spec(config, path).multiple
    for name, size in (("grid.size", config.grid.size), ("patch_size", config.patch_size or config.grid.size)):
        if any(n % unit for n in size):
            raise MedgenError(f"field '{name}' must be multiples of {unit} for this network. Got {list(size)}.")


def _write_config(config: TrainConfig, folder: Path) -> None:
    """Write ``config.yaml``: the run as it is, overrides included."""
    with atomic_path(folder / CONFIG) as temporary:
        temporary.write_text(yaml.safe_dump(config.to_dict(), sort_keys=True), encoding="utf-8")


def _prepare_run(
    config: TrainConfig,
    folder: Path,
    source: Source,
    device: torch.device,
    state: Checkpoint | None,
    first: Model[Any] | None,
) -> _Run:
    """Put the parts of a run together: measured anew, or continued from a checkpoint; nothing is written."""
    cls = trainer_class(config.family, config.name)
    validation = make_validation_source(config, source)
    origin = open_model(find_model(config.start_from)) if config.start_from and state is None else None
    if state is not None:
        spec = ModelSpec.from_dict(state["spec"], str(folder / CHECKPOINT))
    elif origin is not None:
        wanted = ("controls", *cls.measured_fields)
        measured = {name: getattr(origin.spec, name) for name in wanted if hasattr(origin.spec, name)}
        spec = cls.make_spec(config, source.people, measured, first.spec if first is not None else None)
    else:
        spec = cls.plan(config, source, first)
    for given in (source, validation):
        if isinstance(given, FileSource):
            given.tell_as(spec.controls)
    networks = cls.build(config, spec, first)
    if origin is not None:
        _check_origin(spec, origin, cls.origin_fields)
        for name, weights in split_state(spec.networks(), origin.state).items():
            networks[name].load_state_dict(weights)
    networks = {name: network.to(device) for name, network in networks.items()}
    start = state["step"] if state is not None else 0
    loader: DataLoader[Any] = DataLoader(
        Items(source, config),
        batch_sampler=BatchesFrom(start, config.steps, config.batch_size),
        num_workers=config.num_workers,
        worker_init_fn=_ignore_interrupt,
        pin_memory=device.type == "cuda",
        persistent_workers=False,
        generator=torch.Generator(),  # else the loader draws from the global one; no item depends on it
    )
    trainer = cls(config, spec, networks, loader, device, start)
    if state is not None:
        trainer.load_state_dict_of_run(state)
    return _Run(folder, trainer, validation, state["seconds"] if state is not None else 0.0)


def _check_origin(spec: ModelSpec, origin: ModelFiles, names: Sequence[str]) -> None:
    """Refuse to continue from a model that another network or another encoding belongs to."""
    for name in ("family", *names):
        wanted, found = getattr(spec, name, None), getattr(origin.spec, name, None)
        if wanted == found:
            continue
        if isinstance(wanted, dict) and isinstance(found, dict):
            key = next(key for key in (*wanted, *found) if wanted.get(key) != found.get(key))
            name, wanted, found = f"{name}.{key}", wanted.get(key), found.get(key)
        raise MedgenError(
            f"start_from '{origin.spec.name}': its {name} is {short(found)}, the configuration's {short(wanted)}. "
            "Make them equal, or start anew."
        )


class _Run:
    """One run, ready to go.

    Args:
        folder: of what it writes.
        trainer: at its first step or at that of a checkpoint.
        validation: of the pictures.
        seconds: spent on the steps before.
    """

    def __init__(self, folder: Path, trainer: RunTrainer[Any, Any], validation: Source, seconds: float) -> None:
        self.folder = folder
        self.trainer = trainer
        self.validation = validation
        self.config = trainer.config
        self.seconds_before = seconds
        self.began = time.monotonic()

    @property
    def seconds(self) -> float:
        """Spent on the steps so far, earlier runs counted in."""
        return self.seconds_before + time.monotonic() - self.began

    def go(self, progress: bool) -> None:
        """Train to the last step."""
        with contextlib.ExitStack() as stack:
            if self.trainer.start >= self.config.steps:
                return
            report = stack.enter_context(_reporter(self.config, self.trainer.start, progress, self.folder))
            asked_to_stop = stack.enter_context(_stop_signals())
            every = self.config.checkpoint_every
            engine = self.trainer
            engine.add_event_handler(Events.ITERATION_COMPLETED, lambda e: report(e.steps_done, e.state.output))
            engine.add_event_handler(
                Events.ITERATION_COMPLETED(event_filter=lambda e, _: e.steps_done % every == 0), lambda _: self.keep()
            )
            often = self.config.validate_every
            engine.add_event_handler(
                Events.ITERATION_COMPLETED(event_filter=lambda e, _: e.steps_done % often == 0),
                lambda e: self.picture(e.steps_done),
            )
            engine.add_event_handler(Events.ITERATION_COMPLETED, lambda _: self.stop() if asked_to_stop() else None)
            engine.run()
            self.keep()

    def stop(self) -> None:
        """Write the checkpoint of the step that has just ended, and leave.

        Raises:
            KeyboardInterrupt: always; its text says how to go on.
        """
        self.keep()
        raise KeyboardInterrupt(
            f"training stopped after step {self.trainer.steps_done}; --resume continues it from '{self.folder}'"
        )

    def keep(self) -> None:
        """Write the checkpoint.

        Raises:
            MedgenError: a weight is not finite; the checkpoint before stays.
        """
        weights = (p for network in self.trainer.networks.values() for p in network.parameters())
        if not all(bool(torch.isfinite(p).all()) for p in weights):
            raise not_finite(self.trainer.steps_done, "weights", "not finite")
        content: Checkpoint = {
            **self.trainer.state_dict_of_run(),
            "spec": self.trainer.spec.to_dict(),
            "config": self.config.to_dict(),
            "threads": torch.get_num_threads(),
            "seconds": self.seconds,
        }
        save_checkpoint(self.folder, content)

    def picture(self, step: int) -> None:
        """Validation picture: conditioning, sample and truth of a fixed item.

        Its subject is not trained on, unless the data are files of which nobody is held out: then it is one of those
        trained on.
        """
        from medgen.trainers.pictures import validation_picture

        item = Items(self.validation, self.config, "validation")[0]
        path = self.folder / "pictures" / f"step_{step:07d}.png"
        validation_picture(self.trainer.model(), item, path, derive_seed(self.config.seed, "validation"))

    def save(self) -> Path:
        """Write ``model/``, and how long the training took to ``run.json``."""
        target = self.folder / RUN
        save_model(target, self.trainer.final_spec(), joined_state(self.trainer.kept()), overwrite=True)
        write_json(self.folder / RECORD, {"steps": self.trainer.steps_done, "minutes": round(self.seconds / 60, 2)})
        return target


def _check_folder(folder: Path, resume: bool, overwrite: bool) -> None:
    """Refuse a folder that cannot take the run; nothing is touched."""
    check_writable(folder)
    if folder.exists() and not folder.is_dir():
        raise MedgenError(f"output '{folder}' is a file. Give a folder.")
    if resume and not folder.is_dir():
        raise MedgenError(f"nothing to resume: there is no '{folder}'. Leave --resume out.")
    if folder.is_dir() and any(folder.iterdir()) and not resume and not overwrite:
        raise MedgenError(f"output '{folder}' is not empty. Add --resume to continue it, --overwrite to replace it.")


def _clear_folder(folder: Path) -> None:
    """Clear what a run before left; nothing else is touched."""
    for name in (CHECKPOINT, CONFIG, RECORD):
        (folder / name).unlink(missing_ok=True)
    for name in ("logs", "pictures", RUN, FIRST_STAGE):
        shutil.rmtree(folder / name, ignore_errors=True)


def _check_same(before: dict[str, Any], config: TrainConfig) -> None:
    """Refuse to continue a run with another configuration; the optimisation may be changed, which is said."""
    now = config.to_dict()
    changed = [key for key in changed_keys(before, now) if key not in FREE_TO_CHANGE]
    if changed == ["optimisation"]:
        warnings.warn(
            "train: the optimisation differs from the checkpoint's; the result is not that of one uninterrupted run",
            stacklevel=3,
        )
    elif changed:
        raise MedgenError(
            f"cannot resume: the configuration differs from the checkpoint's in {', '.join(changed)}. "
            "Give the same configuration, or train anew into another folder."
        )


def _ignore_interrupt(_: int) -> None:
    """In a DataLoader worker: Ctrl-C reaches the whole process group, but it is the main process that stops a run."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextlib.contextmanager
def _stop_signals() -> Iterator[Callable[[], bool]]:
    """Within the block a first SIGINT or SIGTERM is only noted, so that no step is cut in two; a second one raises.

    Yields:
        Whether a signal has come.
    """
    noted: list[int] = []

    def note(number: int, _: Any) -> None:
        if noted:
            raise KeyboardInterrupt("training stopped within a step; --resume continues from the last checkpoint")
        noted.append(number)

    if threading.current_thread() is not threading.main_thread():  # signals arrive elsewhere
        yield lambda: False
        return
    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(noted)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _reporter(config: TrainConfig, start: int, progress: bool, folder: Path) -> Iterator[Any]:
    """Loss to TensorBoard and to a progress bar."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    from torch.utils.tensorboard import SummaryWriter

    console = Console(stderr=True)
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("loss {task.fields[loss]:.4f}"),
        console=console,
        disable=not (progress and console.is_terminal),
    )
    writer = SummaryWriter(str(folder / "logs"), purge_step=start)
    with bar, contextlib.closing(writer):
        task = bar.add_task(f"train {config.name}", total=config.steps, completed=start, loss=float("nan"))

        def report(step: int, output: dict[str, float]) -> None:
            for key, value in output.items():
                writer.add_scalar(key, value, step)
            bar.update(task, completed=step, loss=output["loss"])

        yield report
