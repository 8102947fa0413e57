"""One training run: a configuration in, a model folder out; killed at any point, it continues exactly."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import signal
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from ignite.engine import Events
from torch import Tensor
from torch.utils.data import DataLoader

from medgen.checks import MedgenError
from medgen.diffusion.denoiser import Preconditioned
from medgen.diffusion.randomness import derive_seed
from medgen.io.atomic import atomic_path, check_writable
from medgen.models.bundled import find_model
from medgen.models.codec import Codec, depth, smoothed
from medgen.models.device import resolve_device
from medgen.models.folder import open_model, save_model
from medgen.models.generative import GenerativeModel
from medgen.models.specification import DEPTHS, ModelSpec, size_multiple
from medgen.networks.registry import build_network, short
from medgen.trainers.checkpoint import (
    CHECKPOINT,
    Checkpoint,
    LabelIntensities,
    Statistics,
    load_checkpoint,
    remove_leftovers,
    save_checkpoint,
)
from medgen.trainers.config import FREE_TO_CHANGE, POPULATION, TrainConfig, changed_keys, load_config
from medgen.trainers.data import BatchesFrom, Item, Items, Source, make_source, make_validation_source
from medgen.trainers.diffusion import DiffusionTrainer, not_finite, packed_mask, precision_type

CONFIG = "config.yaml"
STATISTICS_ITEMS = 24
ORIGIN_FIELDS = (
    "task", "network", "prediction_type", "packing", "label_channels", "label_dropout", "label_encoding",
    "label_distance_mm", "reference", "correlation_mm",
)  # fmt: skip
SMALLEST_DEVIATION = 0.005
FEWEST_VOXELS = 30
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
        output_dir: gets ``config.yaml``, ``checkpoint.pt``, ``logs/`` (TensorBoard), ``pictures/`` and ``model/``.
        overrides: ``key=value``, see :func:`~medgen.trainers.config.load_config`.
        resume: continue from the checkpoint in ``output_dir``; a run killed before its first starts again.
        fast_dev_run: two steps, one picture, the saved model: a check of everything before a long run.
        overwrite: replace the run in ``output_dir``, once the new configuration and data have been found good.
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
    _check_settings(settings, where)
    _check_folder(folder, resume, overwrite)
    state = load_checkpoint(folder) if resume and (folder / CHECKPOINT).exists() else None
    if state is not None:
        _check_same(state["config"], settings)
    source = make_source(settings, FAST_PEOPLE if fast_dev_run else None)
    with _threads(state["threads"] if state is not None else None):
        run = _prepare_run(settings, folder, source, where, state)
        _clear_folder(folder, resume)
        _write_config(settings, folder)
        run.go(progress)
        return run.save()


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


def _check_settings(config: TrainConfig, device: torch.device) -> None:
    """Refuse, before any data are read, what the network or the device cannot do."""
    precision_type(config.precision, device)
    unit = size_multiple(make_spec(config, 0))
    for name, size in (("grid.size", config.grid.size), ("patch_size", config.patch_size or config.grid.size)):
        if any(n % unit for n in size):
            raise MedgenError(f"field '{name}' must be multiples of {unit} for this network. Got {list(size)}.")


def _write_config(config: TrainConfig, folder: Path) -> None:
    """Write ``config.yaml``: the run as it is, overrides included."""
    with atomic_path(folder / CONFIG) as temporary:
        temporary.write_text(yaml.safe_dump(config.to_dict(), sort_keys=True), encoding="utf-8")


def _prepare_run(
    config: TrainConfig, folder: Path, source: Source, device: torch.device, state: Checkpoint | None
) -> _Run:
    """Put the parts of a run together: measured anew, or continued from a checkpoint; nothing is written."""
    validation = make_validation_source(config, source)
    origin = open_model(find_model(config.start_from)) if config.start_from and state is None else None
    if state is not None:
        statistics = _statistics(state)
    else:
        statistics = measure(config, source) if origin is None else _statistics(vars(origin.spec))
    spec = make_spec(config, source.people, **statistics)
    network = initial_network(spec, config.seed)
    if origin is not None:
        _check_origin(spec, origin.spec)
        network.load_state_dict(origin.state)
    network = network.to(device)
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
    denoiser = Preconditioned(network, config.prediction_type, spec.sigma_data)
    trainer = DiffusionTrainer(config, Codec(spec), denoiser, loader, device, start)
    if state is not None:
        trainer.load_state_dict_of_run(state)
    return _Run(folder, spec, trainer, validation, device)


def _check_origin(spec: ModelSpec, origin: ModelSpec) -> None:
    """Refuse to continue from a model that another network or another encoding belongs to."""
    for name in ORIGIN_FIELDS:
        wanted, found = getattr(spec, name), getattr(origin, name)
        if wanted != found:
            raise MedgenError(
                f"start_from '{origin.name}': its {name} is {short(found)}, the configuration's {short(wanted)}. "
                "Make them equal, or start anew."
            )


def _statistics(content: Mapping[str, Any]) -> Statistics:
    """The measured part of a checkpoint, or of the fields of a specification."""
    return Statistics(
        channel_mean=content["channel_mean"],
        channel_std=content["channel_std"],
        label_intensities=content["label_intensities"],
    )


class _Run:
    """One run, ready to go.

    Args:
        folder: of what it writes.
        spec: of the model that results.
        trainer: at its first step or at that of a checkpoint.
        validation: of the pictures.
        device: where to train.
    """

    def __init__(
        self, folder: Path, spec: ModelSpec, trainer: DiffusionTrainer, validation: Source, device: torch.device
    ) -> None:
        self.folder = folder
        self.spec = spec
        self.trainer = trainer
        self.validation = validation
        self.device = device
        self.config = trainer.config

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
        if not all(bool(torch.isfinite(p).all()) for p in self.trainer.network.parameters()):
            raise not_finite(self.trainer.steps_done, "weights", "not finite")
        content: Checkpoint = {
            **self.trainer.state_dict_of_run(),
            **_statistics(vars(self.spec)),
            "config": self.config.to_dict(),
            "threads": torch.get_num_threads(),
        }
        save_checkpoint(self.folder, content)

    def model(self) -> GenerativeModel:
        """The averaged weights as a model."""
        return GenerativeModel(self.spec, self.trainer.ema.network, self.device)

    def picture(self, step: int) -> None:
        """Validation picture: conditioning, sample and truth of a fixed item.

        Its subject is not trained on, unless the data are files of which nobody is held out: then it is one of those
        trained on.
        """
        from medgen.trainers.pictures import validation_picture

        item = Items(self.validation, self.config, "validation")[0]
        path = self.folder / "pictures" / f"step_{step:07d}.png"
        validation_picture(self.model(), item, path, derive_seed(self.config.seed, "validation"))

    def save(self) -> Path:
        """Write ``model/``."""
        target = self.folder / "model"
        save_model(target, self.spec, self.trainer.ema.network.state_dict(), overwrite=True)
        return target


def initial_network(spec: ModelSpec, seed: int) -> torch.nn.Module:
    """The untrained network, its weights a function of the seed alone; the global generators stay as they are."""
    with torch.random.fork_rng(devices=[]):  # torch.manual_seed would seed the GPUs too, which are not put back
        torch.default_generator.manual_seed(derive_seed(seed, "weights"))
        return build_network(spec.network, spec.name)


def make_spec(
    config: TrainConfig,
    people: int,
    channel_mean: Sequence[float] | None = None,
    channel_std: Sequence[float] | None = None,
    label_intensities: LabelIntensities | None = None,
) -> ModelSpec:
    """The specification of the model that a configuration trains; channels in and out filled in.

    Args:
        config: of the run.
        people: how many it is trained on.
        channel_mean: of each packed diffused channel; 0 if left out.
        channel_std: likewise; 1 if left out.
        label_intensities: see :class:`ModelSpec`; mean 0 and deviation 1 if left out.

    Raises:
        MedgenError: an unknown or wrong argument of the network, or channels that do not suit the task.
    """
    population = config.data == POPULATION
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
            "label_encoding",
            "label_distance_mm",
            "reference",
            "correlation_mm",
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
        "people": people,
        "steps": config.steps,
        "batch_size": config.batch_size,
        "seed": config.seed,
        "config_sha256": config.sha256(),
    }
    network = complete_network(config)
    diffused = network["out_channels"]
    if label_intensities is None:
        label_intensities = (
            [((0.0, 1.0),) * DEPTHS] * (1 + len(config.label_channels)) if config.reference == "label_means" else []
        )
    spec = ModelSpec(
        **shared,
        network=network,
        channel_mean=tuple(channel_mean or [0.0] * diffused),
        channel_std=tuple(channel_std or [1.0] * diffused),
        label_intensities=tuple(tuple(label) for label in label_intensities),
        label_source=label_source,
        training=training,
    )
    with torch.random.fork_rng(devices=[]):
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


def measure(config: TrainConfig, source: Source) -> Statistics:
    """Statistics of a fixed draw of items: of the image within each label, then of each diffused channel.

    For task ``inpaint`` of the packed voxels that hold a voxel of a hole.

    Raises:
        MedgenError: none of the holes drawn holds the centre of a voxel.
    """
    items = Items(source, config, "statistics")
    drawn = [items[index] for index in range(STATISTICS_ITEMS)]
    intensities = measure_labels(config, source, drawn) if config.reference == "label_means" else ()
    codec = Codec(make_spec(config, source.people, label_intensities=intensities))
    channels = codec.spec.diffused_channels
    total, square, voxels = torch.zeros(channels).double(), torch.zeros(channels).double(), 0.0
    for item in drawn:
        batch = {key: value[None] for key, value in item.items()}
        if config.task == "inpaint":
            given = codec.given_hole(batch["image"], batch["inpaint_mask"])
        else:
            given = codec.given_label(batch["label"])
        raw = codec.raw(batch["image"], given, batch["label"])[0].double()
        counted = torch.ones(raw.shape[1:], dtype=torch.bool)
        if config.task == "inpaint":
            counted = packed_mask(batch["inpaint_mask"], raw.shape[1:])[0, 0] > 0
        values = raw[:, counted]
        total, square, voxels = total + values.sum(1), square + values.square().sum(1), voxels + values.shape[1]
    if not voxels:
        raise MedgenError(
            f"field 'hole_diameter_mm': no voxel lies in any of the first {STATISTICS_ITEMS} holes. Got "
            f"{list(config.hole_diameter_mm)} on a grid of {list(config.grid.spacing)} mm. Set larger holes."
        )
    mean = total / voxels
    std = (square / voxels - mean.square()).clamp(min=0).sqrt().clamp(min=1e-4)
    return Statistics(channel_mean=mean.tolist(), channel_std=std.tolist(), label_intensities=intensities)


def measure_labels(config: TrainConfig, source: Source, drawn: Sequence[Item]) -> LabelIntensities:
    """Mean of the image within the background and each label channel by depth, and its deviation from those painted.

    A depth at which a label has fewer than ``FEWEST_VOXELS`` voxels has the figures of the depth before it, an absent
    label those of all labels together.
    """
    codec = Codec(make_spec(config, source.people))
    kinds = [codec.kind(item["label"][None]) for item in drawn]
    rows = [kind * DEPTHS + depth(kind) - 1 for kind in kinds]
    image = torch.cat([item["image"].double().flatten() for item in drawn])
    kind, row = (torch.cat([x.flatten() for x in parts]) for parts in (kinds, rows))
    labelled = image[kind > 0] if bool((kind > 0).any()) else image
    count = torch.bincount(row, minlength=DEPTHS * (1 + len(config.label_channels)))
    mean = _filled(torch.bincount(row, image, minlength=len(count)) / count, count, float(labelled.mean()))
    error = (image - torch.cat([smoothed(mean[x]).flatten() for x in rows])).square()
    square = _filled(torch.bincount(row, error, minlength=len(count)) / count, count, float(labelled.var()))
    deviation = square.sqrt().clamp(min=SMALLEST_DEVIATION)
    pairs = list(zip(mean.tolist(), deviation.tolist(), strict=True))
    return tuple(tuple(pairs[i : i + DEPTHS]) for i in range(0, len(pairs), DEPTHS))


def _filled(figures: Tensor, count: Tensor, otherwise: float) -> Tensor:
    """Figures of (label, depth), those of too few voxels replaced as :func:`measure_labels` says."""
    filled = figures.clone()
    for row in range(len(filled)):
        if count[row] < FEWEST_VOXELS:
            filled[row] = filled[row - 1] if row % DEPTHS else otherwise
    return filled


def _check_folder(folder: Path, resume: bool, overwrite: bool) -> None:
    """Refuse a folder that cannot take the run; nothing is touched."""
    check_writable(folder)
    if folder.exists() and not folder.is_dir():
        raise MedgenError(f"output '{folder}' is a file. Give a folder.")
    if resume and not folder.is_dir():
        raise MedgenError(f"nothing to resume: there is no '{folder}'. Leave --resume out.")
    if folder.is_dir() and any(folder.iterdir()) and not resume and not overwrite:
        raise MedgenError(f"output '{folder}' is not empty. Add --resume to continue it, --overwrite to replace it.")


def _clear_folder(folder: Path, resume: bool) -> None:
    """Clear what a killed run was writing and, unless it goes on, what a run before left (nothing else is touched)."""
    remove_leftovers(folder)
    if not resume:
        for name in (CHECKPOINT, CONFIG):
            (folder / name).unlink(missing_ok=True)
        for name in ("logs", "pictures", "model"):
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
