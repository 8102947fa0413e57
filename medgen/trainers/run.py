"""One training run: a configuration in, a model folder out; interrupted or killed at any point, it continues exactly."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from ignite.engine import Events
from torch.utils.data import DataLoader

from medgen.checks import MedgenError
from medgen.diffusion.denoiser import Preconditioned
from medgen.diffusion.randomness import derive_seed
from medgen.io.atomic import atomic_path
from medgen.models.codec import Codec
from medgen.models.device import resolve_device
from medgen.models.folder import save_model
from medgen.models.generative import GenerativeModel
from medgen.models.specification import ModelSpec
from medgen.networks.registry import build_network
from medgen.trainers.checkpoint import load_checkpoint, save_checkpoint
from medgen.trainers.config import TrainConfig, changed_keys, load_config
from medgen.trainers.data import BatchesFrom, Items, Source, make_source
from medgen.trainers.diffusion import DiffusionTrainer

STATISTICS_ITEMS = 24


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
        output_dir: gets ``config.yaml``, ``checkpoint.pt``, ``logs/`` (TensorBoard), ``pictures/`` and ``model/``.
        overrides: ``key=value``, see :func:`~medgen.trainers.config.load_config`.
        resume: continue from the checkpoint in ``output_dir``.
        fast_dev_run: two steps, one picture, the saved model: a check of everything before a long run.
        overwrite: replace what is in ``output_dir``.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
        progress: show a progress bar on a terminal.

    Returns:
        The model folder, ``output_dir/model``.

    Raises:
        MedgenError: a bad configuration or override, missing data, an existing ``output_dir`` without ``resume`` or
            ``overwrite``, nothing to resume, another configuration than the checkpoint's, or a loss that is no number.
        KeyboardInterrupt: interrupted; the checkpoint of the last finished step is written first.
    """
    settings = load_config(config, overrides)
    where = resolve_device(device, "train")
    folder = Path(output_dir)
    if fast_dev_run:
        settings = dataclasses.replace(settings, steps=2, validate_every=2, checkpoint_every=2, subjects=1)
    _prepare_folder(folder, resume, overwrite)
    source = make_source(settings)
    state = load_checkpoint(folder) if resume else None
    if state is not None:
        _check_same(state["config"], settings)
    else:
        torch.manual_seed(settings.seed)
    run = _Run(settings, folder, source, where, state)
    run.go(progress)
    return run.save()


class _Run:
    """The parts of one run, put together."""

    def __init__(
        self, config: TrainConfig, folder: Path, source: Source, device: torch.device, state: dict[str, Any] | None
    ) -> None:
        self.config = config
        self.folder = folder
        self.source = source
        self.device = device
        if state is None:
            mean, std = measure_channels(config, source)
        else:
            mean, std = state["channel_mean"], state["channel_std"]
            torch.set_num_threads(state["threads"])
        self.spec = make_spec(config, source, mean, std)
        network = build_network(self.spec.network, config.name).to(device)
        start = int(state["step"]) if state is not None else 0
        batches = BatchesFrom(start, config.steps, config.batch_size)
        loader: DataLoader[Any] = DataLoader(
            Items(source, config),
            batch_sampler=batches,  # type: ignore[arg-type]
            num_workers=config.num_workers,
            pin_memory=device.type == "cuda",
            persistent_workers=False,
        )
        denoiser = Preconditioned(network, config.prediction_type, self.spec.sigma_data)
        self.trainer = DiffusionTrainer(config, Codec(self.spec), denoiser, loader, device, start)
        if state is not None:
            self.trainer.load_state_dict_of_run(state)

    def go(self, progress: bool) -> None:
        """Train to the last step."""
        with contextlib.ExitStack() as stack:
            if self.trainer.start >= self.config.steps:
                return
            report = stack.enter_context(_reporter(self.config, self.trainer.start, progress, self.folder))
            stack.enter_context(_terminate_as_interrupt())
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
            try:
                engine.run()
            except KeyboardInterrupt:
                raise KeyboardInterrupt(
                    f"training stopped at step {engine.steps_done}; the checkpoint in '{self.folder}' continues it "
                    "with --resume"
                ) from None
            self.keep()

    def keep(self) -> None:
        """Write the checkpoint."""
        content = self.trainer.state_dict_of_run() | {
            "config": self.config.to_dict(),
            "channel_mean": list(self.spec.channel_mean),
            "channel_std": list(self.spec.channel_std),
            "threads": torch.get_num_threads(),
        }
        save_checkpoint(self.folder, content)

    def model(self) -> GenerativeModel:
        """The averaged weights as a model."""
        return GenerativeModel(self.spec, self.trainer.ema.network, self.device)

    def picture(self, step: int) -> None:
        """Validation picture: conditioning, sample and truth of a fixed item."""
        from medgen.trainers.pictures import validation_picture

        item = Items(self.source, self.config, "validation")[0]
        path = self.folder / "pictures" / f"step_{step:07d}.png"
        validation_picture(self.model(), item, path, derive_seed(self.config.seed, "validation"))

    def save(self) -> Path:
        """Write ``model/``."""
        target = self.folder / "model"
        save_model(target, self.spec, self.trainer.ema.network.state_dict(), overwrite=True)
        return target


def make_spec(config: TrainConfig, source: Source, mean: Sequence[float], std: Sequence[float]) -> ModelSpec:
    """The specification of the model that a configuration trains; channels in and out filled in."""
    population = config.data == "colin27"
    grid = {"spacing": list(config.grid.spacing), "size": list(config.grid.size)}
    label_source = (
        {"population": {**grid, **config.population}} if population and config.task == "label_to_image" else None
    )
    shared: dict[str, Any] = {
        name: getattr(config, name)
        for name in [
            "name",
            "version",
            "task",
            "grid",
            "sampling",
            "prediction_type",
            "packing",
            "label_channels",
            "label_dropout",
            "intensity",
            "modality",
            "body_part",
            "licence",
            "authors",
            "copyright",
            "description",
            "intended_use",
        ]
    }
    training = {
        "data": config.data if population else "files",
        "people": source.people,
        "steps": config.steps,
        "batch_size": config.batch_size,
        "seed": config.seed,
        "config_sha256": config.sha256(),
    }
    spec = ModelSpec(
        **shared,
        network=complete_network(config),
        channel_mean=tuple(mean),
        channel_std=tuple(std),
        label_source=label_source,
        training=training,
    )
    build_network(spec.network, config.name)  # wrong arguments are refused here, before anything is trained
    return spec


def complete_network(config: TrainConfig) -> dict[str, Any]:
    """``config.net`` with ``spatial_dims`` and the channels that task and packing imply."""
    dims = len(config.grid.size)
    factor = 2**dims if config.packing == "haar" else 1
    labels = len(config.label_channels)
    diffused = (1 + (labels if config.task == "joint" else 0)) * factor
    condition = (2 if config.task == "inpaint" else labels) * factor + bool(config.label_dropout)
    channels = {"spatial_dims": dims, "in_channels": diffused, "out_channels": diffused}
    if config.net["_target_"] == "ConditionalUNet":
        channels["condition_channels"] = condition
    else:
        channels["in_channels"] = diffused + condition
    for key, value in channels.items():
        if config.net.get(key, value) != value:
            raise MedgenError(f"field 'net.{key}' must be {value} for this task. Got {config.net[key]}. Leave it out.")
    return {**config.net, **channels}


def measure_channels(config: TrainConfig, source: Source) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each packed diffused channel, over a fixed draw of items."""
    count = len(config.label_channels) if config.task == "joint" else 0
    channels = (1 + count) * (2 ** len(config.grid.size) if config.packing == "haar" else 1)
    plain = make_spec(config, source, [0.0] * channels, [1.0] * channels)
    codec, items = Codec(plain), Items(source, config, "statistics")
    total, square, voxels = torch.zeros(channels).double(), torch.zeros(channels).double(), 0
    for index in range(STATISTICS_ITEMS):
        item = items[index]
        raw = codec.raw(item["image"][None], item["label"][None])[0].double().flatten(1)
        total, square, voxels = total + raw.sum(1), square + raw.square().sum(1), voxels + raw.shape[1]
    mean = total / voxels
    std = (square / voxels - mean.square()).clamp(min=0).sqrt().clamp(min=1e-4)
    return mean.tolist(), std.tolist()


def _prepare_folder(folder: Path, resume: bool, overwrite: bool) -> None:
    if folder.exists() and not folder.is_dir():
        raise MedgenError(f"output '{folder}' is a file. Give a folder.")
    filled = folder.is_dir() and any(folder.iterdir())
    if resume:
        return
    if filled and not overwrite:
        raise MedgenError(f"output '{folder}' is not empty. Add --resume to continue it, --overwrite to replace it.")
    if filled:
        for name in ("checkpoint.pt", "config.yaml"):
            (folder / name).unlink(missing_ok=True)
        for name in ("logs", "pictures", "model"):
            shutil.rmtree(folder / name, ignore_errors=True)


def _check_same(before: dict[str, Any], config: TrainConfig) -> None:
    now = config.to_dict()
    free = ("checkpoint_every", "validate_every", "num_workers", "data")
    changed = [key for key in changed_keys(before, now) if key not in free]
    if changed:
        raise MedgenError(
            f"cannot resume: the configuration differs from the checkpoint's in {', '.join(changed)}. "
            "Give the same configuration, or train anew into another folder."
        )


@contextlib.contextmanager
def _terminate_as_interrupt() -> Iterator[None]:
    """SIGTERM stops a run as Ctrl-C does."""

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not in the main thread: nothing to change
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _reporter(config: TrainConfig, start: int, progress: bool, folder: Path) -> Iterator[Any]:
    """Loss to TensorBoard and to a progress bar; the configuration beside them."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    from torch.utils.tensorboard import SummaryWriter

    with atomic_path(folder / "config.yaml") as temporary:
        temporary.write_text(yaml.safe_dump(config.to_dict(), sort_keys=True), encoding="utf-8")
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
